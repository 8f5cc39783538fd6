/* The state machine on one environment: keys, counters and remembered results, and what a pack does to them.
 * Private to src/store. Everything in it is the same on every member at the same index. */
#ifndef SYM_STORE_STATE_H
#define SYM_STORE_STATE_H

#include "store/dedup.h"
#include "store/keyspace.h"
#include "store/memo.h"
#include "store/ring.h"

enum { QUOTA_DEFAULT = 1 << 30 };

/* One record of DB_META, in the writer's own byte order: the file does not leave the machine. */
struct meta {
    uint64_t format;
    uint64_t applied;
    uint64_t revision;
    uint64_t keys;
    /* A txn with an id that is not remembered was surely never applied if its @since is @floor or more: the
     * revision after the newest entry that was forgotten, and one. */
    uint64_t floor;
    /* Txns remembered since the revision last rose. When they are half the window it rises by itself: what is
     * forgotten is then always below the present revision, and new txns are above the floor. */
    uint64_t quiet;
};

struct state {
    struct db *db;
    struct meta meta;
    struct dedup dedup;
    struct memo memo;     /* of the present state, or of the one that is being written */
    struct db_tx *reader; /* kept; @reading: it sees the present */
    bool reading;
    /* Bytes in use as store_headroom last counted them, after which entry (0: not yet). */
    size_t used;
    uint64_t used_at;
};

/* Opens or makes the state in @dir, which takes the place of @cfg's. */
int state_open(const struct store_config *cfg, const char *dir, struct state **out);
/* The environment alone. */
int state_open_db(const struct store_config *cfg, const char *dir, struct db **out);
void state_close(struct state *st); /* NULL is fine */

/* A read transaction on the present; ended by the next change. */
int state_read(struct state *st, struct db_tx **tx);
void state_let_go(struct state *st);

/* What a pack did. Begins with @events initialised and all else zero. */
struct applied {
    struct txn_result *results; /* malloc'd */
    unsigned n;
    struct event_list events;
    bool lost; /* there are more events, for which there was no memory */
};
/* On failure nothing has changed; @out is to be freed in any case. */
int state_apply(
    struct state *st, uint64_t index, unsigned window, const uint8_t *pack, size_t n, struct applied *out);
void applied_free(struct applied *out);
/* See store_txn_cost. */
int state_cost(
    struct state *st, const uint8_t *bytes, size_t n, uint64_t puts, uint64_t most, struct txn_cost *out);

int meta_get(struct db_tx *tx, struct meta *meta);
int meta_put(struct db_tx *tx, const struct meta *meta);
int dedup_put(struct db_tx *tx, const struct dedup_entry *e);
int dedup_del(struct db_tx *tx, uint64_t index);
int dedup_index(struct slice key, uint64_t *index); /* of a record of DB_DEDUP */

#endif
