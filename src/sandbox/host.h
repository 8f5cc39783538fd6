/* The daemon's side of the policies: starts the child that runs them, gives it what there is to do, serves its reads
 * from the store, and kills it at the deadline.
 *
 * The child is hostile: what it sends is bounded and checked, and one that does something else than answer in time is
 * killed. Then another is started, loads the policies again, and does what waits, but not the call that was under way.
 * A policy that does not load again (it may be the machine's fault) is tried now and then, and until it does, what it
 * would have a word in at admit.* is refused with SYM_EBUSY and its name; what it would say elsewhere is not heard.
 * Used from the loop thread only. Every callback fires exactly once, from the loop, never inside the call that takes
 * it; or, with SYM_ECLOSED, inside host_close.
 */
#ifndef SYM_SANDBOX_HOST_H
#define SYM_SANDBOX_HOST_H

#include "sandbox/boxes.h"

#include <uv.h>

struct store;
struct host;

struct host_config {
    size_t memory;             /* bytes of one policy; 0: 16 MiB */
    uint64_t instructions;     /* 0: two million */
    unsigned deadline_ms;      /* of a call; 0: 100 */
    unsigned load_deadline_ms; /* 0: 500 */
    bool full;                 /* see struct box_limits */
};

enum {
    HOST_QUEUE_MAX = 4096,       /* calls that wait or are under way; more are SYM_EBUSY */
    HOST_QUEUE_BYTES = 64 << 20, /* the same in bytes */
    HOST_WAIT_MS = 3000          /* the longest that one waits until it is its turn */
};

/* @store_of(arg): the state that is read from, or NULL. */
int host_new(uv_loop_t *loop, struct store *(*store_of)(void *arg), void *arg, struct host **out);
/* Kills the child, and tells all who wait. What is left on the loop ends by itself. NULL is fine. */
void host_close(struct host *h);
/* From the next child on; the present one is replaced when it has nothing to do. */
void host_configure(struct host *h, const struct host_config *cfg);

struct host_answer {
    int status; /* SYM_EPOLICY, SYM_EPOLICYTIME, SYM_EPOLICYDIED, SYM_EINVAL, SYM_EBUSY...; with err_msg() */
    const char *policy; /* that is to blame; "" */
    const char *json;   /* "" when there is none. A call that failed has the trace up to there */
    size_t n;
};
/* What is in @answer is there until this returns; json is any bytes of the child's, without a NUL behind them. */
typedef void (*host_cb)(void *arg, const struct host_answer *answer);

/* All of these: 0, or SYM_EINVAL, SYM_ETOOBIG, SYM_EBUSY, SYM_ENOMEM, and then @cb does not fire. */

/* Takes the place of one with the same name, which stays if this one does not load. The answer is box_about. */
int host_load(struct host *h, const char *name, const char *source, size_t n, host_cb cb, void *arg);
void host_drop(struct host *h, const char *name);
struct host_call {
    const char *hook;
    const char *only;  /* names between blanks; NULL: all */
    const void *input; /* a JSON object */
    size_t n_input;
    const void *state; /* JSON: read from this instead; NULL: the store */
    size_t n_state;
};
/* See boxes_call. */
int host_call(struct host *h, const struct host_call *call, host_cb cb, void *arg);
/* How many of those that are loaded have @hook and want to hear of an input with these texts: so many a call would ask, if
 * none amended it or ended it. */
unsigned host_concerned(const struct host *h, const char *hook, const char *const values[RULES_FIELDS]);
/* See boxes_test; @cases NULL: its own. */
int host_test(
    struct host *h, const char *source, size_t n, const void *cases, size_t n_cases, host_cb cb, void *arg);

struct host_stats {
    int pid;                            /* 0: there is none */
    unsigned policies, broken, waiting; /* @broken: of them, those that did not load again */
    uint64_t started, killed, died, calls, failures, us_total;
    uint64_t memory; /* of the policies when they were loaded */
};
void host_stats(const struct host *h, struct host_stats *out);
struct host_broken {
    const char *name, *why;
    unsigned tries; /* in vain */
    uint64_t ms;    /* until the next */
};
/* Tells of each policy that did not load again. */
void host_broken(const struct host *h, void (*each)(void *arg, const struct host_broken *b), void *arg);

#endif
