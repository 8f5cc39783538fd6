/* What the files of the host share: host.c (what is asked of it), host_queue.c, host_policies.c, host_child.c,
 * host_time.c, host_reply.c, host_reads.c. Private to them. */
#ifndef SYM_SANDBOX_HOST_IMPL_H
#define SYM_SANDBOX_HOST_IMPL_H

#include "sandbox/child_proc.h"
#include "sandbox/host.h"

#include <sys/queue.h>

struct job {
    TAILQ_ENTRY(job) link;
    enum frame_kind kind;
    uint32_t id;
    struct buf frame;
    host_cb cb; /* NULL: nobody asks */
    void *arg;
    uint64_t queued_ms;
    unsigned reads;              /* what a call has cost in reads; see READS_MAX */
    bool again;                  /* a load that the child's predecessor had done */
    bool dropped;                /* a load whose policy has been dropped since, */
    bool stays;                  /* of which the child could not be told with it */
    char name[BOX_NAME_MAX + 1]; /* of a load */
};
TAILQ_HEAD(jobs, job);

struct policy {
    TAILQ_ENTRY(policy) link;
    char name[BOX_NAME_MAX + 1];
    char *source;
    size_t n_source, memory;
    struct rules rules;
    bool broken; /* it did not load again: what it would have to say is not known */
    char why[256];
    unsigned tries;  /* of loading it again, in vain */
    uint64_t due_ms; /* when to try next */
};

struct host {
    uv_loop_t *loop;
    struct store *(*store_of)(void *arg);
    void *arg;
    struct host_config cfg;
    struct child_proc *child;
    bool ready, closed, renew, scheduled;
    bool reloading; /* the child has not yet loaded again what its predecessor had */
    TAILQ_HEAD(policies, policy) policies;
    struct jobs waiting, sent;
    unsigned n_waiting, n_sent, n_policies, n_broken;
    size_t bytes;
    uint32_t last_id;
    uint64_t started_ms;
    uint64_t head_ms, head_ns;        /* when the first of @sent became the first */
    uint32_t watched;                 /* the id of the job that the last tick saw running, */
    uint64_t watched_ms, watched_cpu; /* when it first saw it, and what CPU time the child had used then */
    bool overdue;
    unsigned deaths; /* in a row, without an answer between them */
    char why[256];   /* of the last one */
    uv_timer_t tick, later, mend;
    uv_prepare_t prepare;
    uv_check_t check;
    unsigned open;
    struct host_stats stats;
};

/* --- host_queue.c --- */

/* NULL: SYM_ENOMEM. */
struct job *host_job_new(struct host *h, enum frame_kind kind, host_cb cb, void *arg);
void host_job_free(struct host *h, struct job *job);
/* At the end. @bad: its frame could not be written; SYM_ENOMEM, and it is freed. */
int host_enqueue(struct host *h, struct job *job, bool bad);
void host_put_first(struct host *h, struct job *job);
/* Answers it, and frees it; it is in no queue any more. */
void host_finish(struct host *h, struct job *job, const struct host_answer *answer);
void host_fail(struct host *h, struct job *job, int status, const char *policy);
struct job *host_find_sent(struct host *h, uint32_t id);
bool host_is_idle(const struct host *h);
/* There is another first of those that were sent. */
void host_new_head(struct host *h);
/* What is to be sent goes as one at the end of this turn of the loop. */
void host_schedule(struct host *h);

/* --- host_policies.c --- */

struct policy *host_find(struct host *h, const char *name);
void host_forget(struct host *h, struct policy *p);
int host_remember(struct host *h, const struct job *job, const struct frame_answer *answer);
void host_put_load(struct job *job, const char *name, const void *source, size_t n, bool *bad);
int host_load_again(struct host *h);
void host_drop_reload(struct host *h, struct job *job);
void host_drop_reloads(struct host *h);
void host_set_mend(struct host *h);
/* It did not load again: it is tried later. */
void host_break(struct host *h, struct policy *p, const char *why);
const struct policy *host_broken_one(struct host *h, const struct job *job);

/* --- host_child.c --- */

void host_start(struct host *h);
void host_let_go(struct host *h);
/* The child could not be told what it has to know, and nobody is to blame: err_msg() says why. */
void host_replace(struct host *h);
/* What it does just now, as far as can be told; NULL: nothing. */
struct job *host_under_way(struct host *h);
void host_lose(struct host *h, int status);
void host_on_lost(void *arg);
void host_on_later(uv_timer_t *timer);

/* --- host_time.c, host_reply.c, host_reads.c --- */

void host_keep_time(struct host *h);
void host_on_frame(void *arg, const struct frame *f);
bool host_expects(void *arg);
void host_on_read(void *arg, uint32_t id, enum read_kind kind, const char *key, size_t n, unsigned limit);

#endif
