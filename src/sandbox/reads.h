/* What a policy looks up in the state while it runs: asked of whoever has the state, and recorded, so that the decision
 * can be bound to it. */
#ifndef SYM_SANDBOX_READS_H
#define SYM_SANDBOX_READS_H

#include "base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    READS_MAX = 64,        /* of one call; that of a prefix counts twice, as it takes two compares */
    READS_LIST_MAX = 1000, /* keys given to a policy by one list() */
    READS_ANSWER_MAX = 1 << 20,
    READS_KEY_MAX = 1088 /* the store's own */
};

enum read_kind { READ_GET = 1, READ_LIST, READ_COUNT };

/* Looks something up. @limit only with READ_LIST. Appends the answer to @answer (empty):
 *   READ_GET    u64 mod_revision (0: absent), blob value
 *   otherwise   u64 highest mod_revision, u64 count (of all below the prefix), u32 n, n times: blob key, blob value
 * 0, or SYM_E* with err_msg(). */
typedef int (*read_fn)(
    void *arg, enum read_kind kind, const char *key, size_t n, unsigned limit, struct buf *answer);

struct read_record {
    bool prefix;
    char *key;
    size_t n;
    uint64_t revision, count;
};

struct reads {
    read_fn fn;
    void *arg;
    struct read_record records[READS_MAX];
    unsigned n, cost;
    struct buf answer; /* the last one */
};

/* True for what policies may read: below /kv/, /res/, /node/ or /status/. */
bool reads_allowed(const char *key, size_t n);
/* Asks, and records. The answer is in r->answer until the next. SYM_EDENIED, SYM_ETOOBIG (too many), or fn's. */
int reads_ask(struct reads *r, enum read_kind kind, const char *key, size_t n, unsigned limit);
/* Appends [{"key","revision"} | {"prefix","revision","count"}]. */
int reads_write(const struct reads *r, struct buf *out);
/* Forgets what is recorded, and frees. */
void reads_clear(struct reads *r);

/* A read_fn over a JSON object of keys and values (texts), for tries: @arg is a struct reads_fake. A revision is 1. */
struct reads_fake {
    const uint8_t *json;
    size_t n;
};
int reads_from_json(
    void *arg, enum read_kind kind, const char *key, size_t n, unsigned limit, struct buf *answer);

#endif
