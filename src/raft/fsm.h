/* libraft's state machine over the store: one committed entry is one pack of txns.
 *
 * A snapshot is pinned on the loop (a read transaction) and encoded on the pool; a received one is built on
 * the pool and swapped in on the loop. An entry that the store holds already is skipped, which is how a
 * restart replays its log.
 */
#ifndef SYM_RAFT_FSM_H
#define SYM_RAFT_FSM_H

#include "store/store.h"

#include <raft.h>

struct fsm_ops {
    /* Rule 4: the state cannot be trusted to follow the log any further. Does not return. */
    void (*fatal)(void *arg, const char *what, int rv);
    /* Are the results of entry @index waited for here? */
    bool (*wanted)(void *arg, uint64_t index);
    /* They are: @results (malloc'd) belong to the callee. */
    void (*deliver)(void *arg, uint64_t index, struct txn_result *results, unsigned n);
    /* May a snapshot be taken now? Else libraft asks again. */
    bool (*may_take)(void *arg);
    /* A snapshot is about to be taken at the commit index: the moment to say how much of the log stays. */
    void (*taking)(void *arg);
};

struct fsm {
    struct raft_fsm base;
    struct raft *raft;
    struct store *store;
    struct store_config config;
    const struct fsm_ops *ops;
    void *arg;
    struct snap *pinned;      /* of the snapshot under way */
    struct install *prepared; /* of the one being installed */
    struct raft_buffer placeholder;
    uint64_t snapshots;
    int failed; /* why restoring at the start failed: SYM_E* with err_msg() */
    bool running;
};

/* @config's strings live as long as the fsm. */
void fsm_init(struct fsm *f, struct raft *raft, struct store *store, const struct store_config *config,
    const struct fsm_ops *ops, void *arg);
/* From here on a failure is fatal: until then (raft_start) it is told in @failed. */
void fsm_started(struct fsm *f);
void fsm_close(struct fsm *f);

/* For struct guard_ops; called off the loop. */
int fsm_encode(struct fsm *f, struct raft_buffer *out);
int fsm_prepare(struct fsm *f, const struct raft_buffer *data);

#endif
