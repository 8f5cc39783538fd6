/* A txn's way to the leader, from the node where it came in: queued while no leader is known, proposed here
 * when this node leads, else sent there; said again, under the same id, when the outcome got lost. And the
 * leader's side of it.
 *
 * Pure: time, network and the leader's name come from its owner. Nothing is answered from within submit_txn.
 */
#ifndef SYM_RAFT_SUBMIT_H
#define SYM_RAFT_SUBMIT_H

#include "base/err.h"
#include "raft/propose.h"

#include <sys/queue.h>

enum {
    SUBMIT_CALLS_MAX = 65536,    /* under way at one node, more are SYM_EBUSY */
    SUBMIT_BYTES_MAX = 64 << 20, /* the same in bytes */
    SUBMIT_FRAME = 1 << 20,      /* txns are sent together up to this many bytes */
    SUBMIT_AGAIN_MS = 1000,      /* an answer may have been lost: ask again */
    SUBMIT_DEFER_MS = 20,        /* before asking one again that said it does not lead */
    SUBMIT_REFUSED_MAX = 1024,   /* for want of memory, in one turn of the loop; more end the process */
};

struct submit_ops {
    uint64_t (*now)(void *arg); /* milliseconds */
    /* The leader's id; our own when we lead and may propose; 0 when none is known. */
    uint64_t (*leader)(void *arg);
    /* Sends a copy; may fail silently. */
    void (*send)(void *arg, uint64_t id, uint8_t kind, const void *data, size_t n);
    /* Have submit_flush called from the loop, soon. */
    void (*kick)(void *arg);
};

typedef void (*submit_cb)(void *arg, int status, const struct txn_result *result);

struct call;
struct remote;
TAILQ_HEAD(calls, call);
TAILQ_HEAD(remotes, remote);
struct outbox {
    uint64_t id;
    struct buf bytes;
};

struct submit {
    const struct submit_ops *ops;
    void *arg;
    struct propose *propose;
    uint64_t self;
    uint8_t origin[16]; /* of the ids that we give */
    uint64_t next_seq, next_number;
    uint64_t leader; /* as last seen */
    struct calls waiting, active;
    struct call *by_number;
    unsigned n_calls;
    size_t bytes;
    struct remotes remotes; /* others' txns, in our propose queue */
    struct outbox *outboxes;
    unsigned n_outboxes;
    bool closing;
    struct {
        submit_cb cb;
        void *arg;
    } refused[SUBMIT_REFUSED_MAX]; /* there was no memory to queue them: SYM_ENOMEM, by the next flush */
    unsigned n_refused;
    uint64_t submitted, forwarded;
    uint64_t ended[SYM_ERR_MAX]; /* by -status; 0: applied, */
    uint64_t conflicts;          /* but for these, of which a compare did not hold */
};

/* @origin: 16 random bytes of this process. */
void submit_init(struct submit *s, struct propose *propose, uint64_t self, const uint8_t origin[16],
    const struct submit_ops *ops, void *arg);
void submit_txn(struct submit *s, const uint8_t *txn, size_t n, uint64_t timeout_ms, submit_cb cb, void *arg);
/* Sends on what waits, and answers. */
void submit_flush(struct submit *s);
/* Deadlines; to be called every few tens of milliseconds. */
void submit_tick(struct submit *s);
/* The leader may be another one. */
void submit_changed(struct submit *s);
/* The connection to @id is gone: what it was asked is asked again. */
void submit_down(struct submit *s, uint64_t id);
/* Frames of KIND_SUBMIT and KIND_RESULT from @id: any bytes. */
void submit_on_txns(struct submit *s, uint64_t id, const uint8_t *data, size_t n);
void submit_on_results(struct submit *s, uint64_t id, const uint8_t *data, size_t n);
/* Every call ends with SYM_ECANCELED; after propose_close. */
void submit_close(struct submit *s);

#endif
