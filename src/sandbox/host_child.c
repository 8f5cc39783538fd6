/* The child: started, let go of, and what becomes of its work when it is gone. */
#include "sandbox/host_impl.h"

#include "base/err.h"
#include "base/log.h"

#include <stdio.h>

enum { BACKOFF_MS = 50, BACKOFF_MAX_MS = 5000 };

static const struct child_ops ops = {host_on_frame, host_expects, host_on_read, host_on_lost};

static bool put_setup(struct host *h)
{
    struct wr w = wr_init(child_proc_out(h->child));
    size_t at = frame_begin(&w, FRAME_SETUP, 0);
    wr_u64(&w, h->cfg.memory);
    wr_u64(&w, 8 * (uint64_t)h->cfg.memory);
    wr_u64(&w, h->cfg.instructions);
    wr_u8(&w, h->cfg.full);
    frame_end(&w, at);
    return !w.bad;
}

static void try_later(struct host *h)
{
    uint64_t ms = (uint64_t)BACKOFF_MS << (h->deaths < 10 ? h->deaths : 10);
    h->deaths++;
    uv_timer_start(&h->later, host_on_later, ms < BACKOFF_MAX_MS ? ms : BACKOFF_MAX_MS, 0);
}

void host_start(struct host *h)
{
    h->renew = false;
    int rv = host_load_again(h);
    rv = rv != 0 ? rv : child_proc_start(h->loop, &ops, h, &h->child);
    if (rv != 0) {
        snprintf(h->why, sizeof h->why, "%s", err_msg());
        log_error("policies cannot be run: %s", h->why);
        h->child = NULL;
        host_drop_reloads(h);
        try_later(h);
        return;
    }
    h->stats.started++;
    h->ready = false;
    h->started_ms = uv_now(h->loop);
    if (put_setup(h)) {
        child_proc_flush(h->child);
    } else {
        host_replace(h);
    }
}

/* The child is let go of; what it had comes again, in order, before what waits. */
void host_let_go(struct host *h)
{
    struct job *job;
    child_proc_kill(h->child);
    h->child = NULL;
    h->ready = false;
    while ((job = TAILQ_LAST(&h->sent, jobs)) != NULL) {
        TAILQ_REMOVE(&h->sent, job, link);
        h->n_sent--;
        if (job->again) {
            host_drop_reload(h, job);
        } else {
            job->reads = 0;
            host_put_first(h, job);
        }
    }
    host_drop_reloads(h);
    uv_timer_stop(&h->later);
}

/* Another takes the place of the child; at once, unless that has been in vain. */
static void begin_again(struct host *h)
{
    host_let_go(h);
    try_later(h);
    if (h->deaths == 1) {
        uv_timer_start(&h->later, host_on_later, 0, 0);
    }
}

void host_replace(struct host *h)
{
    snprintf(h->why, sizeof h->why, "%s", err_msg());
    log_warn("the process that runs the policies is started again: %s", h->why);
    begin_again(h);
}

/* Whom the page names, if it is a name; else "". */
static void name_on_page(const struct host *h, char out[BOX_NAME_MAX + 1])
{
    const struct frame_page *page = child_proc_page(h->child);
    size_t n = 0;
    for (; n < BOX_NAME_MAX && page->policy[n] != '\0'; n++) {
        out[n] = page->policy[n];
    }
    out[n] = '\0';
    if (!box_name_valid(out, n)) {
        out[0] = '\0';
    }
}

struct job *host_under_way(struct host *h)
{
    struct job *job = host_find_sent(h, child_proc_page(h->child)->id);
    return job != NULL ? job : TAILQ_FIRST(&h->sent);
}

/* It is gone, or has to go, because of what it was doing: err_msg() says why. */
void host_lose(struct host *h, int status)
{
    char name[BOX_NAME_MAX + 1];
    struct job *job = host_under_way(h);
    struct policy *p = NULL;
    snprintf(h->why, sizeof h->why, "%s", err_msg());
    name_on_page(h, name);
    if (job != NULL) {
        if (job->kind == FRAME_LOAD) {
            snprintf(name, sizeof name, "%s", job->name);
            p = host_find(h, name);
        } else if (job->kind == FRAME_TEST) {
            name[0] = '\0';
        }
        TAILQ_REMOVE(&h->sent, job, link);
        h->n_sent--;
    }
    log_warn("the process that runs the policies is started again: %s%s%s", job != NULL ? name : "",
        job != NULL && name[0] != '\0' ? ": " : "", h->why);
    if (job != NULL && job->again && p != NULL) {
        host_break(h, p, h->why);
    }
    begin_again(h);
    if (job != NULL) {
        err_setf(status, name[0] != '\0' ? "policy %s: %s" : "%s%s", name, h->why);
        host_fail(h, job, status, name);
    }
}

void host_on_lost(void *arg)
{
    struct host *h = arg;
    h->stats.died++;
    host_lose(h, SYM_EPOLICYDIED);
}

void host_on_later(uv_timer_t *timer)
{
    struct host *h = timer->data;
    if (h->child == NULL && (h->n_policies > 0 || !host_is_idle(h))) {
        host_start(h);
    } else if (h->child != NULL && h->n_policies == 0 && host_is_idle(h)) {
        host_let_go(h);
    }
}
