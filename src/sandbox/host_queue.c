/* What is to be done: it waits, goes to the child, and is answered. */
#include "sandbox/host_impl.h"

#include "base/err.h"

#include <stdlib.h>

enum {
    WINDOW = 64,            /* jobs that the child has at once */
    WINDOW_BYTES = 4 << 20, /* the same in bytes that it has not taken yet */
    LINGER_MS = 5000        /* a child without policies ends after this */
};

struct job *host_job_new(struct host *h, enum frame_kind kind, host_cb cb, void *arg)
{
    struct job *job = calloc(1, sizeof *job);
    if (job == NULL) {
        err_setf(SYM_ENOMEM, "out of memory");
        return NULL;
    }
    h->last_id = h->last_id == UINT32_MAX ? 1 : h->last_id + 1;
    job->kind = kind;
    job->id = h->last_id;
    job->cb = cb;
    job->arg = arg;
    job->queued_ms = uv_now(h->loop);
    return job;
}

void host_job_free(struct host *h, struct job *job)
{
    h->bytes -= job->frame.len;
    buf_free(&job->frame);
    free(job);
}

int host_enqueue(struct host *h, struct job *job, bool bad)
{
    if (bad) {
        buf_free(&job->frame);
        free(job);
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    h->bytes += job->frame.len;
    TAILQ_INSERT_TAIL(&h->waiting, job, link);
    h->n_waiting++;
    host_schedule(h);
    return 0;
}

void host_put_first(struct host *h, struct job *job)
{
    TAILQ_INSERT_HEAD(&h->waiting, job, link);
    h->n_waiting++;
}

void host_finish(struct host *h, struct job *job, const struct host_answer *answer)
{
    h->stats.failures += answer->status != 0 && job->kind == FRAME_CALL;
    h->stats.calls += job->kind == FRAME_CALL;
    if (job->cb != NULL) {
        job->cb(job->arg, answer);
    }
    host_job_free(h, job);
}

void host_fail(struct host *h, struct job *job, int status, const char *policy)
{
    struct host_answer answer = {.status = status, .policy = policy, .json = ""};
    host_finish(h, job, &answer);
}

struct job *host_find_sent(struct host *h, uint32_t id)
{
    struct job *job = TAILQ_FIRST(&h->sent);
    while (job != NULL && job->id != id) {
        job = TAILQ_NEXT(job, link);
    }
    return job;
}

bool host_is_idle(const struct host *h)
{
    return h->n_waiting == 0 && h->n_sent == 0;
}

/* --- sending --- */

void host_new_head(struct host *h)
{
    h->head_ms = uv_now(h->loop);
    h->head_ns = uv_hrtime();
}

/* Where nobody asks, the child would go on with other policies than it ought to have. */
static void could_not_send(struct host *h, struct job *job)
{
    if (job->again) {
        host_drop_reload(h, job);
        host_replace(h);
    } else if (job->kind == FRAME_DROP) {
        host_job_free(h, job);
        host_replace(h);
    } else {
        host_fail(h, job, SYM_ENOMEM, "");
    }
}

static void send_job(struct host *h, struct job *job)
{
    TAILQ_REMOVE(&h->waiting, job, link);
    h->n_waiting--;
    const struct policy *broken = host_broken_one(h, job);
    if (broken != NULL) {
        err_setf(SYM_EBUSY, "policy %s failed: it does not load again, and is tried: %s", broken->name,
            broken->why);
        host_fail(h, job, SYM_EBUSY, broken->name);
        return;
    }
    if (buf_append(child_proc_out(h->child), buf_data(&job->frame), job->frame.len) != 0) {
        could_not_send(h, job);
        return;
    }
    if (job->kind == FRAME_DROP) {
        host_job_free(h, job);
        return;
    }
    if (h->n_sent == 0) {
        host_new_head(h);
    }
    TAILQ_INSERT_TAIL(&h->sent, job, link);
    h->n_sent++;
}

/* Nothing is asked before all are there again that have a word in it, or are known not to be. */
static bool may_send(struct host *h, const struct job *job)
{
    const struct job *sent;
    if (job->again || !h->reloading) {
        return true;
    }
    TAILQ_FOREACH (sent, &h->sent, link) {
        if (sent->again) {
            return false;
        }
    }
    h->reloading = false;
    return true;
}

static void dispatch(struct host *h)
{
    struct job *job;
    if (h->child == NULL) {
        if (!uv_is_active((uv_handle_t *)&h->later) && (h->n_policies > 0 || !host_is_idle(h))) {
            host_start(h);
        }
    } else if (h->renew && h->n_sent == 0) {
        host_let_go(h);
        host_start(h);
    }
    while (h->child != NULL && h->ready && !h->renew && (job = TAILQ_FIRST(&h->waiting)) != NULL &&
           h->n_sent < WINDOW && child_proc_queued(h->child) < WINDOW_BYTES && may_send(h, job)) {
        send_job(h, job);
    }
    if (h->child != NULL) {
        child_proc_flush(h->child);
    }
    if (!host_is_idle(h) || (h->child != NULL && !h->ready)) {
        host_keep_time(h);
    }
    if (h->child != NULL && h->n_policies == 0 && host_is_idle(h) &&
        !uv_is_active((uv_handle_t *)&h->later)) {
        uv_timer_start(&h->later, host_on_later, LINGER_MS, 0);
    }
}

static void turn_ends(struct host *h)
{
    h->scheduled = false;
    uv_prepare_stop(&h->prepare);
    uv_check_stop(&h->check);
    if (!h->closed) {
        dispatch(h);
    }
}

static void on_prepare(uv_prepare_t *prepare)
{
    turn_ends(prepare->data);
}

static void on_check(uv_check_t *check)
{
    turn_ends(check->data);
}

/* What is to be sent goes as one at the end of this turn of the loop. */
void host_schedule(struct host *h)
{
    if (!h->scheduled && !h->closed) {
        h->scheduled = true;
        uv_prepare_start(&h->prepare, on_prepare);
        uv_check_start(&h->check, on_check);
    }
}
