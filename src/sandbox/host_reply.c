/* What the child says. */
#include "sandbox/host_impl.h"

#include "base/err.h"
#include "base/log.h"

static void on_ready(struct host *h, const struct frame *f)
{
    struct frame_answer answer;
    if (f->kind == FRAME_READY) {
        h->ready = true;
        host_schedule(h);
        return;
    }
    if (frame_get_answer(f, &answer) && answer.status != 0) {
        err_setf(answer.status, "it cannot shut itself in: %s", answer.message);
    } else {
        err_setf(SYM_EPROTO, "it broke the rules of its protocol");
    }
    h->stats.died++;
    host_lose(h, SYM_EPOLICYDIED);
}

/* 0, or why the policy is not to be taken for loaded; then the child has it all the same, and is replaced. */
static int loaded(struct host *h, const struct job *job, const struct frame_answer *answer)
{
    struct policy *p = host_find(h, job->name);
    if (answer->status == 0 && !job->again && !job->dropped) {
        int rv = host_remember(h, job, answer);
        h->renew = h->renew || rv != 0;
        return rv;
    } else if (answer->status != 0 && job->again && p != NULL) {
        host_break(h, p, answer->message);
    } else if (job->again && p != NULL && p->broken) {
        log_info("policy %s is loaded again", p->name);
        p->broken = false;
        p->tries = 0;
        h->n_broken--;
    }
    h->renew = h->renew || (answer->status == 0 && job->stays);
    return answer->status;
}

void host_on_frame(void *arg, const struct frame *f)
{
    struct host *h = arg;
    struct frame_answer got;
    struct job *job = TAILQ_FIRST(&h->sent);
    if (!h->ready) {
        on_ready(h, f);
        return;
    }
    if (job == NULL || f->kind != FRAME_ANSWER || f->id != job->id || !frame_get_answer(f, &got)) {
        err_setf(SYM_EPROTO, "it broke the rules of its protocol");
        h->stats.died++;
        host_lose(h, SYM_EPOLICYDIED);
        return;
    }
    uint64_t us = (uv_hrtime() - h->head_ns) / 1000;
    TAILQ_REMOVE(&h->sent, job, link);
    h->n_sent--;
    h->stats.us_total += job->kind == FRAME_CALL ? us : 0;
    h->deaths = job->again ? h->deaths : 0;
    h->overdue = false;
    host_new_head(h);
    if (job->kind == FRAME_LOAD && loaded(h, job, &got) != 0 && got.status == 0) {
        got =
            (struct frame_answer){.status = SYM_EPROTO, .policy = job->name, .message = "it cannot be kept"};
    }
    if (h->n_waiting > 0 || h->n_sent == 0) {
        host_schedule(h);
    }
    struct host_answer answer = {.status = got.status,
        .policy = got.policy,
        .json = got.n > 0 ? (const char *)got.data : "",
        .n = got.n};
    if (got.status != 0) {
        err_setf(got.status, "%s", got.message);
    }
    host_finish(h, job, &answer);
}

bool host_expects(void *arg)
{
    const struct host *h = arg;
    return !h->ready || h->n_sent > 0;
}
