/* What stands between libraft and its storage and network, so that libraft's known faults are not met: rules
 * 3 to 10 of the notes on raft, each named in guard*.c where it is kept.
 *
 * Wraps the methods of a struct raft_io in place, after raft_init and before raft_start or raft_bootstrap,
 * over raft_uv's io and over the test fixture's io alike: the simulation runs this very code. It also keeps
 * count of the bytes of the log that libraft holds in memory, and of what is on its way to each follower
 * (flight.h). Finds itself through raft->data, which is
 * therefore taken.
 */
#ifndef SYM_RAFT_GUARD_H
#define SYM_RAFT_GUARD_H

#include "raft/disk_stats.h"
#include "raft/flight.h"

#include <raft.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Work for another thread. @run is called there, then @done on the loop; @done never before the call that
 * gave the job has returned. */
struct guard_job {
    void (*run)(struct guard_job *job);
    void (*done)(struct guard_job *job);
    void *slot[16]; /* for whoever runs it */
};

struct guard_ops {
    /* The process cannot go on (rules 3 and 4). Does not return. */
    void (*fatal)(void *arg, const char *what, int rv);
    /* After each tick, received message, finished append and finished snapshot: state, leader, term,
     * configuration, commit and applied index may be others now. */
    void (*changed)(void *arg);
    void (*work)(void *arg, struct guard_job *job);
    /* Off the loop: the bytes (raft_malloc'd) of the snapshot that fsm->snapshot has pinned. 0 or an error.
     */
    int (*encode)(void *arg, struct raft_buffer *out);
    /* Off the loop: checks a received snapshot and prepares what fsm->restore will swap in. 0 or an error. */
    int (*prepare)(void *arg, const struct raft_buffer *data);
    /* Is there room on the disk for a received snapshot of so many bytes? Else it is as if lost on the way. */
    bool (*room)(void *arg, size_t bytes);
    /* Nanoseconds, for the figures alone; NULL: nothing is measured. */
    uint64_t (*clock)(void *arg);
};

struct guard {
    struct raft *raft;
    const struct guard_ops *ops;
    void *arg;
    struct raft_io inner; /* the methods as they were */
    raft_io_tick_cb tick;
    raft_io_recv_cb recv;
    raft_io_close_cb close;
    bool closing, inner_closed;
    unsigned holds; /* the close callback waits until there are none */
    raft_term term; /* as last stored */
    /* What is known to be committed from elsewhere than the log: the state holds it. A log that ends before
     * it is behind (others had stored the entries when they were applied here) or has lost something; until
     * it has come this far, this server neither leads nor votes for one whose log ends before it. */
    raft_index witnessed;
    struct guard_put *put;
    uint64_t given_up; /* snapshots that could not be encoded */
    struct disk_stats stats;
    struct flights flights;
    bool sending; /* a snapshot is being loaded to be sent, or is on its way */
    /* Of the snapshot that is just being handed to libraft for sending. */
    raft_index loaded_index;
    raft_term loaded_term;
    /* Bytes of the log by index, counted from the start: sums[i - first] is the sum up to and with entry i.
     */
    uint64_t *sums;
    size_t n_sums, cap_sums, head_sums; /* a ring */
    raft_index first;
    uint64_t base; /* the sum before @first */
    uint64_t snapshot_sum;
    raft_index snapshot_at;
};

/* All-zero @g, alive until the io's close callback has fired. */
void guard_wrap(struct guard *g, struct raft *raft, const struct guard_ops *ops, void *arg);
/* libraft's close is not over before each hold is released: sends still under way need its log. */
void guard_hold(struct guard *g);
void guard_release(struct guard *g);
/* Frees what it holds, after the close callback. */
void guard_free(struct guard *g);

/* Gives a received message to raft; what it owns (entries with their batch, configuration, data) is taken
 * over. */
void guard_deliver(struct guard *g, struct raft_message *m);
/* There is a new connection to @id: what an earlier one was given may be lost. */
void guard_connected(struct guard *g, raft_id id);
/* libraft has a follower wait for the next entries, or heartbeat, to learn that the last ones are committed.
 * guard_untold: the commit index if this is the leader and there is a follower that has not been told what it
 * could be; else 0. guard_tell: tells those who have not been told of @index by now. */
raft_index guard_untold(struct guard *g);
void guard_tell(struct guard *g, raft_index index);
/* A tick now, besides the regular ones. */
void guard_tick(struct guard *g);

/* A follower that knows its leader to be gone: it may vote again. */
void guard_forget_leader(struct raft *r);

/* A snapshot is being written, sent ones not counted. */
bool guard_snapshotting(const struct guard *g);
/* Bytes of the log that libraft holds in memory, and of those the ones that are not in a snapshot yet. */
uint64_t guard_log_bytes(struct guard *g);
uint64_t guard_fresh_bytes(struct guard *g);
/* How many entries up to @index to keep behind a snapshot at @index: at most @n and about @bytes, at least 1.
 */
unsigned guard_trailing(struct guard *g, raft_index index, unsigned n, uint64_t bytes);

/* Term of the entry at @index as libraft holds it; 0 if it is not there. */
raft_term guard_term_of(const struct raft *r, raft_index index);

/* Up to where follower @id has confirmed the log to this leader in this term, 0 if not at all. */
raft_index guard_confirmed(const struct raft *r, raft_id id);

/* Frees what io->load or io->snapshot_get has given. */
void guard_free_snapshot(struct raft_snapshot *s);

/* For the tests that show what each rule is for: bit N switches rule N off. */
extern unsigned guard_rules_off;
static inline bool guard_rule(unsigned n)
{
    return (guard_rules_off & 1u << n) == 0;
}

#endif
