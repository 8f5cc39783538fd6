#include "sandbox/reads.h"

#include "base/err.h"
#include "codec/json.h"
#include "codec/rw.h"
#include "sandbox/json_read.h"

#include <stdlib.h>
#include <string.h>

bool reads_allowed(const char *key, size_t n)
{
    static const char *const below[] = {"/kv/", "/res/", "/node/", "/status/"};
    for (size_t i = 0; i < sizeof below / sizeof *below; i++) {
        size_t len = strlen(below[i]);
        if (n >= len && memcmp(key, below[i], len) == 0) {
            return n <= READS_KEY_MAX && utf8_valid((const uint8_t *)key, n);
        }
    }
    return false;
}

static struct read_record *known(struct reads *r, bool prefix, const char *key, size_t n)
{
    for (unsigned i = 0; i < r->n; i++) {
        struct read_record *rec = &r->records[i];
        if (rec->prefix == prefix && rec->n == n && memcmp(rec->key, key, n) == 0) {
            return rec;
        }
    }
    return NULL;
}

/* The first time counts: what it was then is what the txn compares, and a later change is a conflict. */
static int record(struct reads *r, bool prefix, const char *key, size_t n)
{
    struct rd answer = rd_init(buf_data(&r->answer), r->answer.len);
    if (known(r, prefix, key, n) != NULL) {
        return 0;
    }
    struct read_record *rec = &r->records[r->n];
    *rec = (struct read_record){.prefix = prefix, .key = malloc(n + 1), .n = n};
    if (rec->key == NULL) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    memcpy(rec->key, key, n);
    rec->revision = rd_u64(&answer);
    rec->count = prefix ? rd_u64(&answer) : 0;
    r->n++;
    return 0;
}

int reads_ask(struct reads *r, enum read_kind kind, const char *key, size_t n, unsigned limit)
{
    unsigned cost = kind == READ_GET ? 1 : 2;
    if (!reads_allowed(key, n)) {
        return err_setf(SYM_EDENIED, "a policy reads keys below /kv/, /res/, /node/ and /status/, not '%.*s'",
            (int)(n < 80 ? n : 80), key);
    }
    if (r->fn == NULL) {
        return err_setf(SYM_EDENIED, "the state can be read in a hook only");
    }
    /* What is read again costs again: each is an answer to be made. */
    if (r->cost + cost > READS_MAX) {
        return err_setf(SYM_ETOOBIG, "at most %d reads of the state (a prefix counts twice)", READS_MAX);
    }
    r->cost += cost;
    buf_clear(&r->answer);
    int rv = r->fn(r->arg, kind, key, n, limit, &r->answer);
    return rv != 0 ? rv : record(r, kind != READ_GET, key, n);
}

int reads_write(const struct reads *r, struct buf *out)
{
    int rv = buf_append(out, "[", 1);
    for (unsigned i = 0; i < r->n && rv == 0; i++) {
        const struct read_record *rec = &r->records[i];
        rv = buf_text(out, i > 0 ? "," : "");
        rv = rv != 0 ? rv : buf_text(out, rec->prefix ? "{\"prefix\":" : "{\"key\":");
        rv = rv != 0 ? rv : json_string(out, (const uint8_t *)rec->key, rec->n);
        rv = rv != 0 ? rv : buf_text(out, ",\"revision\":");
        rv = rv != 0 ? rv : buf_decimal(out, rec->revision);
        if (rec->prefix) {
            rv = rv != 0 ? rv : buf_text(out, ",\"count\":");
            rv = rv != 0 ? rv : buf_decimal(out, rec->count);
        }
        rv = rv != 0 ? rv : buf_text(out, "}");
    }
    return rv != 0 ? rv : buf_append(out, "]", 1);
}

void reads_clear(struct reads *r)
{
    for (unsigned i = 0; i < r->n; i++) {
        free(r->records[i].key);
    }
    r->n = r->cost = 0;
    buf_free(&r->answer);
}

/* --- a state that is made up --- */

struct pair {
    struct buf key, value;
};

/* The next member, or 1 at the end, or SYM_E*. Anything but a text stands for itself, as JSON. */
static int next_pair(struct json_reader *r, struct pair *pair)
{
    enum json_token t = json_next(r);
    if (t == JSON_CLOSE) {
        return 1;
    }
    if (t != JSON_KEY) {
        return err_setf(SYM_EINVAL, "the state is to be an object of keys and values");
    }
    buf_clear(&pair->key);
    buf_clear(&pair->value);
    uint8_t *room = buf_reserve(&pair->key, r->n + 1);
    if (room == NULL) {
        return SYM_ENOMEM;
    }
    buf_commit(&pair->key, json_unescape(r, room));
    t = json_next(r);
    if (t == JSON_STRING) {
        room = buf_reserve(&pair->value, r->n + 1);
        if (room == NULL) {
            return SYM_ENOMEM;
        }
        buf_commit(&pair->value, json_unescape(r, room));
        return 0;
    }
    if (t != JSON_OBJECT && t != JSON_ARRAY) {
        return err_setf(SYM_EINVAL, "the state is to be an object of keys and values");
    }
    const uint8_t *from = r->p - 1;
    if (!json_skip(r, t)) {
        return err_setf(SYM_EINVAL, "the state is not JSON");
    }
    return buf_append(&pair->value, from, (size_t)(r->p - from));
}

static int fake_get(struct json_reader *r, struct pair *pair, const char *key, size_t n, struct buf *answer)
{
    struct wr w = wr_init(answer);
    int rv;
    while ((rv = next_pair(r, pair)) == 0) {
        if (pair->key.len == n && memcmp(buf_data(&pair->key), key, n) == 0) {
            break;
        }
    }
    wr_u64(&w, rv == 0 ? 1 : 0);
    wr_blob(&w, rv == 0 ? buf_data(&pair->value) : NULL, rv == 0 ? pair->value.len : 0);
    return rv < 0 ? rv : w.bad ? SYM_ENOMEM : 0;
}

static int fake_list(
    struct json_reader *r, struct pair *pair, const char *key, size_t n, unsigned limit, struct buf *answer)
{
    struct buf items = {0};
    struct wr w = wr_init(&items);
    uint64_t count = 0;
    uint32_t given = 0;
    int rv;
    while ((rv = next_pair(r, pair)) == 0) {
        if (pair->key.len < n || memcmp(buf_data(&pair->key), key, n) != 0) {
            continue;
        }
        count++;
        if (given < limit) {
            given++;
            wr_blob(&w, buf_data(&pair->key), pair->key.len);
            wr_blob(&w, buf_data(&pair->value), pair->value.len);
        }
    }
    bool bad = w.bad;
    w = wr_init(answer);
    wr_u64(&w, count > 0);
    wr_u64(&w, count);
    wr_u32(&w, given);
    wr_bytes(&w, buf_data(&items), items.len);
    buf_free(&items);
    return rv < 0 ? rv : bad || w.bad ? SYM_ENOMEM : 0;
}

int reads_from_json(
    void *arg, enum read_kind kind, const char *key, size_t n, unsigned limit, struct buf *answer)
{
    const struct reads_fake *fake = arg;
    struct pair pair = {{0}, {0}};
    struct json_reader r;
    json_begin(&r, fake->json, fake->n);
    if (json_next(&r) != JSON_OBJECT) {
        return err_setf(SYM_EINVAL, "the state is to be an object of keys and values");
    }
    int rv = kind == READ_GET ? fake_get(&r, &pair, key, n, answer)
                              : fake_list(&r, &pair, key, n, kind == READ_LIST ? limit : 0, answer);
    buf_free(&pair.key);
    buf_free(&pair.value);
    return rv;
}
