/* Group commit, on the leader: txns that wait are packed into one log entry, a small number of entries is in
 * flight, and what arrives meanwhile goes into the next.
 *
 * Drives a struct raft and nothing else: no clock, no network. Whoever owns it calls propose_flush when there
 * may be something to do (from the loop, not from within a submit).
 */
#ifndef SYM_RAFT_PROPOSE_H
#define SYM_RAFT_PROPOSE_H

#include "base/histogram.h"
#include "raft/guard.h"
#include "store/store.h"

#include <sys/queue.h>

enum {
    PROPOSE_TXNS_MAX = 65536,     /* waiting, more are SYM_EBUSY */
    PROPOSE_BYTES_MAX = 64 << 20, /* the same in bytes */
    PROPOSE_IN_FLIGHT = 4,        /* entries */
    /* Keys that the compares of prefixes of one entry may go through when it is applied, and so those of one txn
     * (more is SYM_ETOOBIG): some milliseconds of every member's loop, of which the election timeout has hundreds. */
    PROPOSE_VISITS_MAX = 10000,
    PROPOSE_WORTH =
        64 << 10, /* bytes that must wait for a further entry to go while one is in flight: the disk writes
                                     one after the other anyway, so a small one gains nothing by not waiting */
};

struct propose_ops {
    /* Rule 3. Does not return. */
    void (*fatal)(void *arg, const char *what, int rv);
    /* May this leader propose just now? 0, or why not: SYM_ENOSPACE answers the txn so, anything else makes
     * it wait, and is what propose_waits_for says. */
    int (*may)(void *arg, const uint8_t *txn, size_t n);
    uint64_t (*revision)(void *arg);
    /* store_txn_cost in the leader's state. */
    int (*cost)(void *arg, const uint8_t *txn, size_t n, uint64_t puts, uint64_t most, struct txn_cost *out);
    /* Nanoseconds, for the figures alone; NULL: nothing is measured. */
    uint64_t (*clock)(void *arg);
};

struct prop;
/* 0 with the result; SYM_ENOTLEADER: surely not proposed; SYM_EUNKNOWN: it was, and leadership was lost;
 * SYM_ENOSPACE, SYM_ECANCELED and SYM_ETOOBIG (compares of prefixes with too many keys): not proposed. From
 * propose_flush, propose_lost or libraft's callbacks. The prop is freed after it. */
typedef void (*prop_cb)(void *arg, int status, const struct txn_result *result);

struct prop {
    TAILQ_ENTRY(prop) link;
    struct pack *pack; /* NULL: waiting */
    uint8_t *txn;      /* the submitter's, valid until the callback or propose_cancel */
    size_t n;
    bool fresh; /* surely never proposed before: its dedup window opens now */
    prop_cb cb;
    void *arg;
};
TAILQ_HEAD(props, prop);

struct propose {
    struct raft *raft;
    const struct propose_ops *ops;
    void *arg;
    struct props waiting;
    unsigned n_waiting;
    size_t bytes_waiting;
    struct pack_list {
        struct pack *first, **last;
    } in_flight;
    unsigned n_in_flight, max_in_flight;
    uint64_t ops_in_flight; /* operations of these */
    uint64_t visits;        /* keys that were counted in this flush */
    struct pack *stalled;   /* built, but not taken by libraft for want of a segment */
    int waits_for;          /* see propose_waits_for */
    bool closing;
    uint64_t packs, pack_txns;
    struct histogram commits; /* an entry's way from here into the state of this leader */
};

void propose_init(struct propose *p, struct raft *raft, const struct propose_ops *ops, void *arg);
/* 0 and *out, SYM_EBUSY, SYM_ENOMEM. */
int propose_submit(
    struct propose *p, uint8_t *txn, size_t n, bool fresh, prop_cb cb, void *arg, struct prop **out);
/* The submitter wants no answer any more. True if the txn was not proposed and will not be. */
bool propose_cancel(struct propose *p, struct prop *prop);
/* Why what waits is not proposed, as of the last flush: what may() said; SYM_ENOSPACE, no segment of the log has
 * room for it; SYM_ENOQUORUM, what went before is not committed. */
int propose_waits_for(const struct propose *p);
/* Builds and proposes what may go now. True when more might, but enough was counted for one turn of the loop: to be
 * called again soon. */
bool propose_flush(struct propose *p);
/* Not the leader (any more): what has not been proposed is answered SYM_ENOTLEADER. What has been is answered
 * by libraft. */
void propose_lost(struct propose *p);
/* Answers the rest with SYM_ECANCELED; after raft_close has completed what was in flight. */
void propose_close(struct propose *p);

/* For struct fsm_ops. */
bool propose_wanted(const struct propose *p, uint64_t index);
void propose_deliver(struct propose *p, uint64_t index, struct txn_result *results, unsigned n);

#endif
