#include "sandbox/host_impl.h"

#include "base/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { INSTRUCTIONS = 2000000 }; /* some 50 ms: the budget ends what loops, and the deadline what hangs */

static int admit(struct host *h, size_t n)
{
    if (h->closed) {
        return err_setf(SYM_ECLOSED, "this node is stopping");
    }
    if (h->n_waiting + h->n_sent >= HOST_QUEUE_MAX || h->bytes + n > HOST_QUEUE_BYTES) {
        return err_setf(SYM_EBUSY, "too much waits for the policies already");
    }
    return 0;
}

int host_load(struct host *h, const char *name, const char *source, size_t n, host_cb cb, void *arg)
{
    bool bad;
    if (!box_name_valid(name, strlen(name))) {
        return err_setf(SYM_EINVAL, "that is no name of a policy");
    }
    if (n > BOX_SOURCE_MAX) {
        return err_setf(SYM_ETOOBIG, "a policy has at most %d bytes", BOX_SOURCE_MAX);
    }
    int rv = admit(h, n);
    struct job *job = rv == 0 ? host_job_new(h, FRAME_LOAD, cb, arg) : NULL;
    if (job == NULL) {
        return rv != 0 ? rv : SYM_ENOMEM;
    }
    host_put_load(job, name, source, n, &bad);
    return host_enqueue(h, job, bad);
}

static bool put_drop(struct buf *out, uint32_t id, const char *name)
{
    struct wr w = wr_init(out);
    size_t at = frame_begin(&w, FRAME_DROP, id);
    frame_put_text(&w, name);
    frame_end(&w, at);
    return !w.bad;
}

/* Whichever child is given the load, also one that is given it anew, has it dropped right behind. */
static void mark_dropped(struct host *h, struct jobs *jobs, const char *name)
{
    struct job *job;
    TAILQ_FOREACH (job, jobs, link) {
        if (job->kind != FRAME_LOAD || job->dropped || strcmp(job->name, name) != 0) {
            continue;
        }
        size_t n = job->frame.len;
        job->dropped = true;
        job->stays = !put_drop(&job->frame, job->id, name);
        job->frame.len = job->stays ? n : job->frame.len;
        h->bytes += job->frame.len - n;
    }
}

void host_drop(struct host *h, const char *name)
{
    struct policy *p = host_find(h, name);
    mark_dropped(h, &h->sent, name);
    mark_dropped(h, &h->waiting, name);
    if (p != NULL) {
        host_forget(h, p);
    }
    if (!box_name_valid(name, strlen(name)) || h->child == NULL) {
        return; /* the next one does not load it */
    }
    struct job *job = host_job_new(h, FRAME_DROP, NULL, NULL);
    if (job == NULL) {
        h->renew = true; /* without it */
        host_schedule(h);
        return;
    }
    if (host_enqueue(h, job, !put_drop(&job->frame, job->id, name)) != 0) {
        h->renew = true;
        host_schedule(h);
    }
}

unsigned host_concerned(const struct host *h, const char *hook, const char *const values[RULES_FIELDS])
{
    const struct policy *p;
    unsigned n = 0;
    TAILQ_FOREACH (p, &h->policies, link) {
        n += rules_fit(&p->rules, hook, values);
    }
    return n;
}

int host_call(struct host *h, const struct host_call *call, host_cb cb, void *arg)
{
    if (!rules_hook_known(call->hook)) {
        return err_setf(SYM_EINVAL, "there is no hook %.80s", call->hook);
    }
    if (call->n_input > BOX_INPUT_MAX || call->n_state > BOX_INPUT_MAX ||
        (call->only != NULL && strlen(call->only) > FRAME_ONLY_MAX)) {
        return err_setf(SYM_ETOOBIG, "the input of a hook has at most %d bytes", BOX_INPUT_MAX);
    }
    int rv = admit(h, call->n_input + call->n_state);
    struct job *job = rv == 0 ? host_job_new(h, FRAME_CALL, cb, arg) : NULL;
    if (job == NULL) {
        return rv != 0 ? rv : SYM_ENOMEM;
    }
    struct wr w = wr_init(&job->frame);
    const struct frame_call frame = {.hook = call->hook,
        .only = call->only,
        .input = call->input,
        .n_input = call->n_input,
        .has_state = call->state != NULL,
        .state = call->state,
        .n_state = call->n_state};
    frame_put_call(&w, job->id, &frame);
    return host_enqueue(h, job, w.bad);
}

int host_test(
    struct host *h, const char *source, size_t n, const void *cases, size_t n_cases, host_cb cb, void *arg)
{
    if (n > BOX_SOURCE_MAX || n_cases > BOX_INPUT_MAX) {
        return err_setf(SYM_ETOOBIG, "a policy has at most %d bytes", BOX_SOURCE_MAX);
    }
    int rv = admit(h, n + n_cases);
    struct job *job = rv == 0 ? host_job_new(h, FRAME_TEST, cb, arg) : NULL;
    if (job == NULL) {
        return rv != 0 ? rv : SYM_ENOMEM;
    }
    struct wr w = wr_init(&job->frame);
    size_t at = frame_begin(&w, FRAME_TEST, job->id);
    wr_blob(&w, source, n);
    wr_u8(&w, cases != NULL);
    wr_blob(&w, cases, cases != NULL ? n_cases : 0);
    frame_end(&w, at);
    return host_enqueue(h, job, w.bad);
}

void host_stats(const struct host *h, struct host_stats *out)
{
    *out = h->stats;
    out->pid = h->child != NULL ? child_proc_pid(h->child) : 0;
    out->policies = h->n_policies;
    out->broken = h->n_broken;
    out->waiting = h->n_waiting + h->n_sent;
}

void host_broken(const struct host *h, void (*each)(void *arg, const struct host_broken *b), void *arg)
{
    const struct policy *p;
    uint64_t now = uv_now(h->loop);
    TAILQ_FOREACH (p, &h->policies, link) {
        if (p->broken) {
            uint64_t ms = p->due_ms > now && p->due_ms != UINT64_MAX ? p->due_ms - now : 0;
            each(arg, &(struct host_broken){p->name, p->why, p->tries, ms});
        }
    }
}

/* --- beginning and end --- */

void host_configure(struct host *h, const struct host_config *cfg)
{
    h->cfg = *cfg;
    h->cfg.memory = cfg->memory != 0 ? cfg->memory : 16 << 20;
    h->cfg.instructions = cfg->instructions != 0 ? cfg->instructions : INSTRUCTIONS;
    h->cfg.deadline_ms = cfg->deadline_ms != 0 ? cfg->deadline_ms : 100;
    h->cfg.load_deadline_ms = cfg->load_deadline_ms != 0 ? cfg->load_deadline_ms : 500;
    struct policy *p;
    TAILQ_FOREACH (p, &h->policies, link) {
        p->due_ms = 0; /* it may be another matter now */
    }
    if (h->child != NULL) {
        h->renew = true;
        host_schedule(h);
    }
}

int host_new(uv_loop_t *loop, struct store *(*store_of)(void *arg), void *arg, struct host **out)
{
    struct host *h = calloc(1, sizeof *h);
    const struct host_config defaults = {0};
    if (h == NULL) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    h->loop = loop;
    h->store_of = store_of;
    h->arg = arg;
    TAILQ_INIT(&h->policies);
    TAILQ_INIT(&h->waiting);
    TAILQ_INIT(&h->sent);
    uv_timer_init(loop, &h->tick);
    uv_timer_init(loop, &h->later);
    uv_timer_init(loop, &h->mend);
    uv_prepare_init(loop, &h->prepare);
    uv_check_init(loop, &h->check);
    h->tick.data = h->later.data = h->mend.data = h->prepare.data = h->check.data = h;
    h->open = 5;
    host_configure(h, &defaults);
    *out = h;
    return 0;
}

static void on_closed(uv_handle_t *handle)
{
    struct host *h = handle->data;
    if (--h->open == 0) {
        free(h);
    }
}

void host_close(struct host *h)
{
    struct job *job;
    struct policy *p;
    if (h == NULL || h->closed) {
        return;
    }
    if (h->child != NULL) {
        host_let_go(h);
    }
    h->closed = true;
    while ((job = TAILQ_FIRST(&h->waiting)) != NULL) {
        TAILQ_REMOVE(&h->waiting, job, link);
        h->n_waiting--;
        err_setf(SYM_ECLOSED, "this node is stopping");
        host_fail(h, job, SYM_ECLOSED, "");
    }
    while ((p = TAILQ_FIRST(&h->policies)) != NULL) {
        host_forget(h, p);
    }
    uv_close((uv_handle_t *)&h->tick, on_closed);
    uv_close((uv_handle_t *)&h->later, on_closed);
    uv_close((uv_handle_t *)&h->mend, on_closed);
    uv_close((uv_handle_t *)&h->prepare, on_closed);
    uv_close((uv_handle_t *)&h->check, on_closed);
}
