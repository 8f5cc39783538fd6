/* What the store's tests share: folders, packs in one line, a seeded generator, and snapshots to compare
 * stores by. */
#ifndef SYM_SPEC_STORE_SUPPORT_H
#define SYM_SPEC_STORE_SUPPORT_H

#include "check.h"
#include "store/store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static inline struct slice str(const char *text)
{
    return (struct slice){(const uint8_t *)text, strlen(text)};
}

/* --- folders --- */

static inline int make_folder(void **state)
{
    char path[] = "/tmp/symphony-store-XXXXXX";
    if (mkdtemp(path) == NULL) {
        return -1;
    }
    *state = strdup(path);
    return *state == NULL ? -1 : 0;
}

static inline void shell(const char *fmt, ...)
{
    char line[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    if (system(line) != 0) {
        fail_msg("%s", line);
    }
}

static inline int remove_folder(void **state)
{
    shell("rm -rf '%s'", (const char *)*state);
    free(*state);
    return 0;
}

/* <folder>/<name>; stays valid. */
static inline const char *in_folder(void **state, const char *name)
{
    static char paths[64][256];
    char path[256];
    snprintf(path, sizeof path, "%s/%s", (const char *)*state, name);
    for (unsigned i = 0; i < 64; i++) {
        if (paths[i][0] == '\0') {
            snprintf(paths[i], sizeof paths[i], "%s", path);
        }
        if (strcmp(paths[i], path) == 0) {
            return paths[i];
        }
    }
    fail_msg("too many paths");
    return NULL;
}

static inline bool exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

static inline struct store *open_store(const struct store_config *cfg)
{
    struct store *s = NULL;
    OK(store_open(cfg, &s));
    return s;
}

/* --- random, the same for the same seed --- */

static uint64_t rnd_state = 1;

static inline uint64_t rnd(uint64_t below)
{
    rnd_state ^= rnd_state << 13;
    rnd_state ^= rnd_state >> 7;
    rnd_state ^= rnd_state << 17;
    return (rnd_state >> 11) % below;
}

/* --- packs --- */

struct packer {
    struct buf pack, txn;
    unsigned n;
};

static inline void packer_begin(struct packer *p)
{
    buf_clear(&p->pack);
    p->n = 0;
    OK(pack_begin(&p->pack));
}

static inline void packer_add(struct packer *p, const struct txn *t)
{
    buf_clear(&p->txn);
    OK(txn_encode(t, &p->txn));
    OK(pack_add(&p->pack, buf_data(&p->txn), p->txn.len));
    p->n++;
}

static inline void packer_end(struct packer *p)
{
    OK(pack_end(&p->pack, p->n));
}

static inline void packer_free(struct packer *p)
{
    buf_free(&p->pack);
    buf_free(&p->txn);
}

static inline struct txn_cmp cmp_value(const char *key, const char *value)
{
    return (struct txn_cmp){.kind = CMP_VALUE, .key = str(key), .value = str(value)};
}
static inline struct txn_cmp cmp_number(enum cmp_kind kind, const char *key, uint64_t number)
{
    return (struct txn_cmp){.kind = kind, .key = str(key), .number = number};
}
static inline struct txn_op op_put(const char *key, const char *value)
{
    return (struct txn_op){OP_PUT, str(key), str(value)};
}
static inline struct txn_op op_del(const char *key)
{
    return (struct txn_op){.kind = OP_DELETE, .key = str(key)};
}

/* Applies one txn as the next entry and gives its result. */
static inline struct txn_result apply_one(struct store *s, const struct txn *t)
{
    struct packer p = {0};
    struct txn_result *results = NULL;
    unsigned n = 0;
    packer_begin(&p);
    packer_add(&p, t);
    packer_end(&p);
    OK(store_apply(s, store_applied(s) + 1, buf_data(&p.pack), p.pack.len, &results, &n));
    packer_free(&p);
    assert_int_equal(n, 1);
    struct txn_result result = results[0];
    free(results);
    return result;
}

static inline struct txn_result put(struct store *s, const char *key, const char *value)
{
    struct txn *t = calloc(1, sizeof *t);
    assert_non_null(t);
    t->n_ops = 1;
    t->ops[0] = op_put(key, value);
    struct txn_result result = apply_one(s, t);
    free(t);
    return result;
}

static inline struct txn_result del(struct store *s, const char *key)
{
    struct txn *t = calloc(1, sizeof *t);
    assert_non_null(t);
    t->n_ops = 1;
    t->ops[0] = op_del(key);
    struct txn_result result = apply_one(s, t);
    free(t);
    return result;
}

static inline void assert_value(struct store *s, const char *key, const char *value)
{
    struct kv kv;
    int rv = store_get(s, key, strlen(key), &kv);
    if (value == NULL) {
        assert_int_equal(rv, SYM_ENOTFOUND);
        return;
    }
    assert_int_equal(rv, 0);
    if (kv.value.n != strlen(value) || memcmp(kv.value.p, value, kv.value.n) != 0) {
        fail_msg("%s is '%.*s', not '%s'", key, (int)kv.value.n, kv.value.p, value);
    }
}

/* --- snapshots --- */

static inline void take_snapshot(struct store *s, struct buf *out)
{
    struct snap *sn = NULL;
    OK(snap_begin(s, &sn));
    OK(snap_encode(sn, out));
    snap_end(sn);
}

static inline void assert_same(struct store *a, struct store *b)
{
    struct buf x = {0}, y = {0};
    take_snapshot(a, &x);
    take_snapshot(b, &y);
    if (x.len != y.len || memcmp(buf_data(&x), buf_data(&y), x.len) != 0) {
        fail_msg("snapshots differ: %zu and %zu bytes, entries %llu and %llu, revisions %llu and %llu", x.len,
            y.len, (unsigned long long)store_applied(a), (unsigned long long)store_applied(b),
            (unsigned long long)store_revision(a), (unsigned long long)store_revision(b));
    }
    buf_free(&x);
    buf_free(&y);
}

#endif
