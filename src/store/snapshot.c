/* The state as bytes, little endian:
 *
 *   magic and version (8), applied, revision, floor, quiet, number of keys, number of dedup entries (8 each);
 *   keys in order: length (2), key, create_revision (8), mod_revision (8), length (4), value;
 *   dedup entries in order: index (8), length (4), record as in dedup.h;
 *   SHA-256 of all that (32).
 */
#include "base/err.h"
#include "crypto/crypto.h"
#include "store/internal.h"
#include "store/snapshot.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static const uint8_t MAGIC[8] = "SYMSNAP\1";
enum { HEAD_LEN = 8 + 6 * 8, LEAST_LEN = HEAD_LEN + SHA256_LEN, POPULATE_STEP = 8 << 20 };

/* --- taking one --- */

struct snap {
    struct store *store; /* NULL once it has been cut off */
    struct db_tx *tx;
    struct meta meta;
    struct timespec since;
    atomic_bool cut;
    pthread_mutex_t lock; /* of @reading and, for the pool, @tx */
    pthread_cond_t idle;
    bool reading;
};

int snap_begin(struct store *s, struct snap **out)
{
    if (s->snap != NULL) {
        return err_setf(SYM_EBUSY, "a snapshot is being taken");
    }
    struct snap *sn = calloc(1, sizeof *sn);
    if (sn == NULL) {
        return err_setf(SYM_ENOMEM, "snapshot");
    }
    int rv = db_begin(s->state->db, &sn->tx);
    if (rv != 0) {
        free(sn);
        return rv;
    }
    pthread_mutex_init(&sn->lock, NULL);
    pthread_cond_init(&sn->idle, NULL);
    clock_gettime(CLOCK_MONOTONIC, &sn->since);
    sn->meta = s->state->meta;
    sn->store = s;
    s->snap = *out = sn;
    return 0;
}

uint64_t snap_index(const struct snap *sn)
{
    return sn->meta.applied;
}

const struct db_tx *snap_tx(const struct snap *sn)
{
    return sn->tx;
}

uint64_t snap_age(const struct snap *sn)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)(now.tv_sec - sn->since.tv_sec);
}

void snap_cut(struct snap *sn)
{
    atomic_store(&sn->cut, true);
    pthread_mutex_lock(&sn->lock);
    while (sn->reading) {
        pthread_cond_wait(&sn->idle, &sn->lock);
    }
    db_abort(sn->tx);
    sn->tx = NULL;
    pthread_mutex_unlock(&sn->lock);
    sn->store->snap = NULL;
    sn->store = NULL;
}

void snap_end(struct snap *sn)
{
    if (sn->store != NULL) {
        snap_cut(sn);
    }
    pthread_cond_destroy(&sn->idle);
    pthread_mutex_destroy(&sn->lock);
    free(sn);
}

/* --- encoding --- */

static int cut_off(void)
{
    err_setf(SYM_ECANCELED, "the store has let go of the snapshot");
    return SYM_ECANCELED;
}

/* Walks the keys and the dedup records, measuring (@w NULL) or writing. */
static int encode_keys(struct snap *sn, struct wr *w, size_t *size)
{
    struct ks_iter it;
    struct kv kv;
    int rv = ks_seek(&it, sn->tx, (struct slice){NULL, 0}, &kv);
    for (; rv == 0; rv = ks_next(&it, &kv)) {
        if (atomic_load_explicit(&sn->cut, memory_order_relaxed)) {
            rv = cut_off();
            break;
        }
        *size += 2 + kv.key.n + 16 + 4 + kv.value.n;
        if (w != NULL) {
            wr_u16(w, (uint16_t)kv.key.n);
            wr_bytes(w, kv.key.p, kv.key.n);
            wr_u64(w, kv.create_revision);
            wr_u64(w, kv.mod_revision);
            wr_blob(w, kv.value.p, kv.value.n);
        }
    }
    ks_end(&it);
    return rv == 1 ? 0 : rv;
}

static int encode_dedup(struct snap *sn, struct wr *w, size_t *size, uint64_t *n)
{
    struct db_cur *cur;
    struct slice key, data;
    uint64_t index;
    int rv = db_cur_open(sn->tx, DB_DEDUP, &cur);
    if (rv != 0) {
        return rv;
    }
    *n = 0;
    rv = db_cur_move(cur, DB_FIRST, &key, &data);
    while (rv == 0 && (rv = dedup_index(key, &index)) == 0) {
        if (atomic_load_explicit(&sn->cut, memory_order_relaxed)) {
            rv = cut_off();
            break;
        }
        (*n)++;
        *size += 8 + 4 + data.n;
        if (w != NULL) {
            wr_u64(w, index);
            wr_blob(w, data.p, data.n);
        }
        rv = db_cur_move(cur, DB_NEXT, &key, &data);
    }
    db_cur_close(cur);
    return rv == 1 ? 0 : rv;
}

/* Fetches the memory of what is reserved at once: page by page, as it is written, takes several times as long,
 * and so long the snapshot keeps pages of the state from being used again. That it may fail does not matter. In
 * steps, as who cuts the snapshot off waits for one. */
static void populate(const struct snap *sn, uint8_t *p, size_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), skip = -(uintptr_t)p % page;
    if (n <= skip) {
        return;
    }
    p += skip;
    n = (n - skip) & -page;
    while (n > 0 && !atomic_load_explicit(&sn->cut, memory_order_relaxed)) {
        size_t step = n < POPULATE_STEP ? n : POPULATE_STEP;
        (void)madvise(p, step, MADV_POPULATE_WRITE);
        p += step;
        n -= step;
    }
}

static int encode(struct snap *sn, struct buf *out)
{
    struct wr w = wr_init(out);
    size_t size = LEAST_LEN, written = 0;
    uint64_t entries, same;
    int rv = encode_keys(sn, NULL, &size);
    if (rv == 0) {
        rv = encode_dedup(sn, NULL, &size, &entries);
    }
    if (rv != 0) {
        return rv;
    }
    /* All at once: growing would hold it twice. */
    uint8_t *room = buf_reserve(out, size);
    if (room == NULL) {
        return SYM_ENOMEM;
    }
    populate(sn, room, size);
    wr_bytes(&w, MAGIC, sizeof MAGIC);
    wr_u64(&w, sn->meta.applied);
    wr_u64(&w, sn->meta.revision);
    wr_u64(&w, sn->meta.floor);
    wr_u64(&w, sn->meta.quiet);
    wr_u64(&w, sn->meta.keys);
    wr_u64(&w, entries);
    rv = encode_keys(sn, &w, &written);
    if (rv == 0) {
        rv = encode_dedup(sn, &w, &written, &same);
    }
    return rv == 0 && w.bad ? SYM_ENOMEM : rv;
}

int snap_encode(struct snap *sn, struct buf *out)
{
    size_t start = out->len;
    uint8_t digest[SHA256_LEN];
    pthread_mutex_lock(&sn->lock);
    sn->reading = sn->tx != NULL;
    pthread_mutex_unlock(&sn->lock);
    if (!sn->reading) {
        return cut_off();
    }
    int rv = encode(sn, out);
    pthread_mutex_lock(&sn->lock);
    sn->reading = false;
    pthread_cond_signal(&sn->idle);
    pthread_mutex_unlock(&sn->lock);

    if (rv == 0) {
        rv = crypto_sha256(buf_data(out) + start, out->len - start, digest);
    }
    if (rv == 0) {
        rv = buf_append(out, digest, sizeof digest);
    }
    if (rv != 0) {
        out->len = start;
    }
    return rv;
}

/* --- decoding --- */

static int damaged(const char *what)
{
    err_setf(SYM_ECORRUPT, "snapshot: %s", what);
    return SYM_ECORRUPT;
}

static bool read_head(struct rd *r, struct snap_head *h)
{
    const uint8_t *magic = rd_bytes(r, sizeof MAGIC);
    h->meta = (struct meta){0};
    h->meta.applied = rd_u64(r);
    h->meta.revision = rd_u64(r);
    h->meta.floor = rd_u64(r);
    h->meta.quiet = rd_u64(r);
    h->meta.keys = rd_u64(r);
    h->entries = rd_u64(r);
    return !r->bad && memcmp(magic, MAGIC, sizeof MAGIC) == 0;
}

uint64_t snap_peek_index(const uint8_t *data, size_t n)
{
    struct rd r = rd_init(data, n);
    struct snap_head h;
    return n >= LEAST_LEN && read_head(&r, &h) ? h.meta.applied : 0;
}

int snap_check(const uint8_t *data, size_t n, struct rd *r, struct snap_head *h)
{
    uint8_t digest[SHA256_LEN];
    if (n < LEAST_LEN) {
        return damaged("too short");
    }
    *r = rd_init(data, n - SHA256_LEN);
    if (!read_head(r, h)) {
        return damaged("not one of this version");
    }
    int rv = crypto_sha256(data, n - SHA256_LEN, digest);
    if (rv != 0) {
        return rv;
    }
    if (memcmp(digest, data + n - SHA256_LEN, SHA256_LEN) != 0) {
        return damaged("its digest does not match");
    }
    if (h->meta.floor > h->meta.revision + 1 || h->meta.revision == UINT64_MAX) {
        return damaged("impossible revisions");
    }
    return 0;
}

int snap_keys(struct rd *r, const struct snap_head *h, int (*each)(void *arg, const struct kv *kv), void *arg)
{
    struct slice last = {NULL, 0};
    for (uint64_t i = 0; i < h->meta.keys; i++) {
        struct kv kv;
        kv.key.n = rd_u16(r);
        kv.key.p = rd_bytes(r, kv.key.n);
        kv.create_revision = rd_u64(r);
        kv.mod_revision = rd_u64(r);
        kv.value.p = rd_blob(r, VALUE_MAX, &kv.value.n);
        if (r->bad || kv.key.n == 0 || kv.key.n > KEY_MAX) {
            return damaged("bad key");
        }
        if (slice_cmp(last, kv.key) >= 0) {
            return damaged("keys out of order");
        }
        if (kv.create_revision == 0 || kv.create_revision > kv.mod_revision ||
            kv.mod_revision > h->meta.revision) {
            return damaged("impossible revisions");
        }
        int rv = each(arg, &kv);
        if (rv != 0) {
            return rv;
        }
        last = kv.key;
    }
    return 0;
}

int snap_entries(struct rd *r, const struct snap_head *h,
    int (*each)(void *arg, uint64_t index, struct slice entry), void *arg)
{
    for (uint64_t i = 0; i < h->entries; i++) {
        struct slice entry;
        uint64_t index = rd_u64(r);
        entry.p = rd_blob(r, SIZE_MAX, &entry.n);
        if (r->bad || index > h->meta.applied) {
            return damaged("bad results of txns");
        }
        int rv = each(arg, index, entry);
        if (rv != 0) {
            return rv;
        }
    }
    return rd_done(r) ? 0 : damaged("bytes behind its end");
}

int snap_each(const uint8_t *data, size_t n, int (*each)(void *arg, const struct kv *kv), void *arg)
{
    struct rd r;
    struct snap_head h;
    int rv = snap_check(data, n, &r, &h);
    return rv != 0 ? rv : snap_keys(&r, &h, each, arg);
}
