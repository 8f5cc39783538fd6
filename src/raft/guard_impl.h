/* What the files of the guard share: guard.c (storage, messages, beginning and end), guard_bytes.c, guard_snapshots.c.
 * Private to them. */
#ifndef SYM_RAFT_GUARD_IMPL_H
#define SYM_RAFT_GUARD_IMPL_H

#include "raft/guard.h"

static inline struct guard *guard_of(struct raft_io *io)
{
    return ((struct raft *)io->data)->data;
}

static inline uint64_t guard_clock_of(const struct guard *g)
{
    return g->ops->clock != NULL ? g->ops->clock(g->arg) : 0;
}

/* Says that the io is closed, once it is and nothing needs libraft any more. */
void guard_closed(struct guard *g);

/* Counts entries that are in the log from @index on; what was there before is gone. */
void guard_count(struct guard *g, raft_index index, const struct raft_entry *entries, size_t n);

/* Methods of the io. */
int guard_snapshot_put(struct raft_io *io, unsigned trailing, struct raft_io_snapshot_put *req,
    const struct raft_snapshot *snapshot, raft_io_snapshot_put_cb cb);
int guard_snapshot_get(struct raft_io *io, struct raft_io_snapshot_get *req, raft_io_snapshot_get_cb cb);

#endif
