/* The time that a job may take, and may wait. */
#include "sandbox/host_impl.h"

#include "base/err.h"

enum {
    START_MS = 10000, /* for the child to be ready */
    STARVED = 5,      /* one that gets no processor has this many times the deadline */
    TEST_TIMES = 4    /* a test may take so many times the deadline of a load */
};

static unsigned deadline_of(const struct host *h, const struct job *job)
{
    return job->kind == FRAME_CALL   ? h->cfg.deadline_ms
           : job->kind == FRAME_TEST ? TEST_TIMES * h->cfg.load_deadline_ms
                                     : h->cfg.load_deadline_ms;
}

static void on_tick(uv_timer_t *timer);

void host_keep_time(struct host *h)
{
    unsigned ms = h->cfg.deadline_ms / 4;
    ms = ms < 5 ? 5 : ms > 50 ? 50 : ms;
    if (!uv_is_active((uv_handle_t *)&h->tick)) {
        uv_timer_start(&h->tick, on_tick, ms, ms);
    }
}

/* A child writes on the page what it does, and its answers a little later. So time counts from when that job was first
 * seen there; but none can put it off for ever by writing there what is not so. */
static void check_running(struct host *h)
{
    const struct job *job = host_under_way(h), *first = TAILQ_FIRST(&h->sent);
    uint64_t now = uv_now(h->loop), cpu = child_proc_cpu_ns(h->child) / 1000000;
    unsigned deadline = deadline_of(h, job);
    bool late;
    if (job->id != h->watched) {
        h->watched = job->id;
        h->watched_ms = now;
        h->watched_cpu = cpu;
        h->overdue = false;
    }
    /* One that has not got the processor for half of the time is not to blame for being late. */
    bool starved = 2 * (cpu - h->watched_cpu) < now - h->watched_ms;
    late = now - h->watched_ms >= (starved ? STARVED * deadline : deadline);
    late = late || now - h->head_ms >= STARVED * (deadline + deadline_of(h, first));
    /* After the loop itself was late, the answer may be there already: it is looked at first. */
    if (!late || !h->overdue) {
        h->overdue = late;
        return;
    }
    h->stats.killed++;
    err_setf(SYM_EPOLICYTIME, "it was not done after %u ms", deadline);
    host_lose(h, SYM_EPOLICYTIME);
}

/* In the order in which they came; what the child has to be told in any case waits as long as it takes. */
static void check_waiting(struct host *h)
{
    struct job *job = TAILQ_FIRST(&h->waiting);
    uint64_t now = uv_now(h->loop);
    while (job != NULL) {
        if (job->again || job->kind == FRAME_DROP) {
            job = TAILQ_NEXT(job, link);
            continue;
        }
        if (now - job->queued_ms < HOST_WAIT_MS) {
            return;
        }
        TAILQ_REMOVE(&h->waiting, job, link);
        h->n_waiting--;
        if (h->ready) {
            err_setf(SYM_EBUSY, "the policies had no time for it within %d ms", HOST_WAIT_MS);
        } else {
            err_setf(SYM_EBUSY, "the policies are not running: %s",
                h->why[0] != '\0' ? h->why : "they are being started");
        }
        host_fail(h, job, SYM_EBUSY, "");
        job = TAILQ_FIRST(&h->waiting); /* who was told may have asked for more, or closed it all */
    }
}

static void on_tick(uv_timer_t *timer)
{
    struct host *h = timer->data;
    if (h->child != NULL && !h->ready && uv_now(h->loop) - h->started_ms > START_MS) {
        err_setf(SYM_ETIMEOUT, "it was not ready after %d s", START_MS / 1000);
        h->stats.killed++;
        host_lose(h, SYM_EPOLICYDIED);
    } else if (h->n_sent > 0) {
        check_running(h);
    }
    check_waiting(h);
    if (host_is_idle(h) && (h->child == NULL || h->ready)) {
        uv_timer_stop(&h->tick);
    }
}
