/* Linearizable reads without a log entry (ReadIndex): the leader notes its commit index, then asks the voters
 * whether its term is still theirs; once a majority says so, whoever has applied up to that index may answer
 * from its own state what was asked before the round began. A follower asks the leader for such an index.
 *
 * A few rounds may be under way; each answer confirms all rounds up to its own. Pure: time and network come
 * from the owner. Nothing is answered from within reads_begin.
 */
#ifndef SYM_RAFT_READS_H
#define SYM_RAFT_READS_H

#include <raft.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

enum {
    READS_MAX = 65536,        /* under way at one node, more are SYM_EBUSY */
    READS_VOTERS_MAX = 64,    /* voters whose answers are kept */
    READS_ROUNDS = 2,         /* under way at a time; what arrives meanwhile waits for the next */
    READS_AGAIN_MS = 100,     /* a frame may have been lost: ask again */
    READS_REFUSED_MAX = 1024, /* for want of memory, in one turn of the loop; more end the process */
};

struct reads_ops {
    void (*fatal)(void *arg, const char *what, int rv); /* does not return */
    uint64_t (*now)(void *arg);                         /* milliseconds */
    /* Sends a copy; may fail silently. */
    void (*send)(void *arg, uint64_t id, uint8_t kind, const void *data, size_t n);
    void (*kick)(void *arg); /* have reads_flush called from the loop, soon */
};

typedef void (*reads_cb)(void *arg, int status);

struct read;
TAILQ_HEAD(read_list, read);

struct reads {
    struct raft *raft;
    const struct reads_ops *ops;
    void *arg;
    uint64_t term;            /* and role that the following belongs to */
    uint64_t leader;          /* ours, when leading; 0 when unknown */
    uint64_t term_start;      /* leading: index that must be applied before the first read */
    struct read_list fresh;   /* no round or question has begun since they arrived */
    struct read_list asking;  /* one has: by number, ascending */
    struct read_list waiting; /* have an index, which is not applied here yet: by index, ascending */
    unsigned n;
    uint64_t number;    /* of the last round or question; unique in this process, and from a random start */
    uint64_t confirmed; /* the highest that a majority has confirmed, or the leader has answered */
    uint64_t sent_at;
    struct {
        uint64_t id, number;
    } acks[READS_VOTERS_MAX];
    unsigned n_acks;
    bool closing;
    struct {
        reads_cb cb;
        void *arg;
    } refused[READS_REFUSED_MAX]; /* there was no memory to queue them: SYM_ENOMEM, by the next flush */
    unsigned n_refused;
    uint64_t count, rounds;
    uint64_t failed; /* of ours: no quorum in time, or refused */
};

/* @seed: a random number of this process. */
void reads_init(struct reads *r, struct raft *raft, uint64_t seed, const struct reads_ops *ops, void *arg);
/* @cb: 0 when the local state may be read, SYM_ENOQUORUM at the deadline, SYM_EBUSY, SYM_ENOMEM,
 * SYM_ECANCELED. */
void reads_begin(struct reads *r, uint64_t timeout_ms, reads_cb cb, void *arg);
/* Starts a round or asks, and answers what can be. To be called after libraft may have applied something,
 * too. */
void reads_flush(struct reads *r);
void reads_tick(struct reads *r);
/* State, term or leader may be others now; before anything else is proposed. */
void reads_changed(struct reads *r);
/* Leading, and all that former leaders committed is applied here. */
bool reads_may_serve(const struct reads *r);
/* Frames of KIND_CONFIRM, KIND_CONFIRMED, KIND_ASK and KIND_INDEX from @id: any bytes. */
void reads_on_frame(struct reads *r, uint64_t id, uint8_t kind, const uint8_t *data, size_t n);
void reads_close(struct reads *r);

#endif
