#include "sandbox/host.h"

#include "base/err.h"
#include "base/log.h"
#include "sandbox/child_proc.h"
#include "sandbox/json_read.h"
#include "store/store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    WINDOW = 64,            /* jobs that the child has at once */
    WINDOW_BYTES = 4 << 20, /* the same in bytes that it has not taken yet */
    WALK_MAX = 4000,        /* keys below a prefix that is read: each is gone through again by the compares */
    START_MS = 10000,       /* for the child to be ready */
    STARVED = 5,            /* one that gets no processor has this many times the deadline */
    BACKOFF_MS = 50,
    BACKOFF_MAX_MS = 5000,
    MEND_MS = 1000, /* after this one that did not load again is tried, and then after twice that... */
    MEND_MAX_MS = 60000,
    LINGER_MS = 5000,       /* a child without policies ends after this */
    INSTRUCTIONS = 2000000, /* some 50 ms: the budget ends what loops, and the deadline what hangs */
    TEST_TIMES = 4          /* a test may take so many times the deadline of a load */
};

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
    bool dropped;                /* a load whose policy has been dropped since */
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

static void schedule(struct host *h);

/* --- jobs --- */

static struct job *job_new(struct host *h, enum frame_kind kind, host_cb cb, void *arg)
{
    struct job *job = calloc(1, sizeof *job);
    if (job == NULL) {
        err_setf(SYM_ENOMEM, "out of memory");
        return NULL;
    }
    h->last_id = h->last_id == UINT32_MAX ? 1 : h->last_id + 1;
    *job = (struct job){.kind = kind, .id = h->last_id, .cb = cb, .arg = arg, .queued_ms = uv_now(h->loop)};
    return job;
}

static void job_free(struct host *h, struct job *job)
{
    h->bytes -= job->frame.len;
    buf_free(&job->frame);
    free(job);
}

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

static int enqueue(struct host *h, struct job *job, bool bad)
{
    if (bad) {
        buf_free(&job->frame);
        free(job);
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    h->bytes += job->frame.len;
    TAILQ_INSERT_TAIL(&h->waiting, job, link);
    h->n_waiting++;
    schedule(h);
    return 0;
}

static void finish(struct host *h, struct job *job, const struct host_answer *answer)
{
    h->stats.failures += answer->status != 0 && job->kind == FRAME_CALL;
    h->stats.calls += job->kind == FRAME_CALL;
    if (job->cb != NULL) {
        job->cb(job->arg, answer);
    }
    job_free(h, job);
}

static void fail(struct host *h, struct job *job, int status, const char *policy)
{
    struct host_answer answer = {.status = status, .policy = policy, .json = ""};
    finish(h, job, &answer);
}

/* --- policies --- */

static struct policy *find_policy(struct host *h, const char *name)
{
    struct policy *p;
    TAILQ_FOREACH (p, &h->policies, link) {
        if (strcmp(p->name, name) == 0) {
            return p;
        }
    }
    return NULL;
}

static void forget(struct host *h, struct policy *p)
{
    TAILQ_REMOVE(&h->policies, p, link);
    h->n_policies--;
    h->n_broken -= p->broken;
    h->stats.memory -= p->memory;
    free(p->source);
    rules_free(&p->rules);
    free(p);
}

/* The token behind the key @name of the object that the reader is in. */
static enum json_token find_key(struct json_reader *r, const char *name)
{
    while (json_next(r) == JSON_KEY) {
        bool found = json_is(r, name);
        enum json_token t = json_next(r);
        if (found) {
            return t;
        }
        if (!json_skip(r, t)) {
            break;
        }
    }
    return JSON_BAD;
}

static size_t memory_of(const char *about, size_t n)
{
    struct json_reader r;
    json_begin(&r, about, n);
    return json_next(&r) == JSON_OBJECT && find_key(&r, "memory") == JSON_INTEGER && r.integer > 0
               ? (size_t)r.integer
               : 0;
}

/* What a load has sent is kept for the child's successors. */
static int remember(struct host *h, const struct job *job, const struct frame_answer *answer)
{
    struct rd r = rd_init(buf_data(&job->frame) + FRAME_HEADER, job->frame.len - FRAME_HEADER);
    size_t n;
    frame_get_text(&r, BOX_NAME_MAX);
    const uint8_t *source = rd_blob(&r, FRAME_TO_CHILD_MAX, &n);
    struct policy *old = find_policy(h, job->name);
    struct policy *p = calloc(1, sizeof *p);
    char *copy = malloc(n + 1);
    if (p == NULL || copy == NULL) {
        free(p);
        free(copy);
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    int rv = rules_read(&p->rules, (const char *)answer->data, answer->n);
    if (rv != 0) {
        rules_free(&p->rules);
        free(p);
        free(copy);
        return rv;
    }
    memcpy(copy, source, n);
    snprintf(p->name, sizeof p->name, "%s", job->name);
    p->source = copy;
    p->n_source = n;
    p->memory = memory_of((const char *)answer->data, answer->n);
    if (old != NULL) {
        forget(h, old);
    }
    TAILQ_INSERT_TAIL(&h->policies, p, link);
    h->n_policies++;
    h->stats.memory += p->memory;
    return 0;
}

/* --- the child's life --- */

static void put_load(struct job *job, const char *name, const void *source, size_t n, bool *bad)
{
    struct wr w = wr_init(&job->frame);
    size_t at = frame_begin(&w, FRAME_LOAD, job->id);
    frame_put_text(&w, name);
    wr_blob(&w, source, n);
    frame_end(&w, at);
    snprintf(job->name, sizeof job->name, "%s", name);
    *bad = w.bad;
}

static void put_first(struct host *h, struct job *job)
{
    TAILQ_INSERT_HEAD(&h->waiting, job, link);
    h->n_waiting++;
}

static int reload(struct host *h, struct policy *p)
{
    bool bad;
    struct job *job = job_new(h, FRAME_LOAD, NULL, NULL);
    if (job == NULL) {
        return SYM_ENOMEM;
    }
    put_load(job, p->name, p->source, p->n_source, &bad);
    job->again = true;
    p->due_ms = UINT64_MAX;
    h->bytes += job->frame.len;
    put_first(h, job);
    return bad ? err_setf(SYM_ENOMEM, "out of memory") : 0;
}

/* Before all that waits. */
static int load_again(struct host *h)
{
    struct policy *p;
    int rv = 0;
    TAILQ_FOREACH_REVERSE(p, &h->policies, policies, link)
    {
        if (rv == 0 && (!p->broken || p->due_ms <= uv_now(h->loop))) {
            rv = reload(h, p);
        }
    }
    h->reloading = true;
    return rv;
}

static void drop_reload(struct host *h, struct job *job)
{
    struct policy *p = find_policy(h, job->name);
    if (p != NULL) {
        p->due_ms = uv_now(h->loop);
    }
    job_free(h, job);
}

static void drop_reloads(struct host *h)
{
    struct job *job, *next;
    for (job = TAILQ_FIRST(&h->waiting); job != NULL; job = next) {
        next = TAILQ_NEXT(job, link);
        if (job->again) {
            TAILQ_REMOVE(&h->waiting, job, link);
            h->n_waiting--;
            drop_reload(h, job);
        }
    }
}

/* --- those that do not load again --- */

static bool is_being_loaded(const struct jobs *jobs, const char *name)
{
    const struct job *job;
    TAILQ_FOREACH (job, jobs, link) {
        if (job->kind == FRAME_LOAD && strcmp(job->name, name) == 0) {
            return true;
        }
    }
    return false;
}

static void on_mend(uv_timer_t *timer);

/* For when the next of them is to be tried. */
static void set_mend(struct host *h)
{
    const struct policy *p;
    uint64_t now = uv_now(h->loop), first = UINT64_MAX;
    TAILQ_FOREACH (p, &h->policies, link) {
        first = p->broken && p->due_ms < first ? p->due_ms : first;
    }
    if (first == UINT64_MAX || h->closed) {
        uv_timer_stop(&h->mend);
    } else {
        uv_timer_start(&h->mend, on_mend, first > now ? first - now : 0, 0);
    }
}

/* One is tried at once; else its source may have been taken over by a load under way, and a child that is not there has
 * it among the first that it does. */
static void on_mend(uv_timer_t *timer)
{
    struct host *h = timer->data;
    struct policy *p;
    bool can = h->child != NULL && h->ready && !h->renew;
    TAILQ_FOREACH (p, &h->policies, link) {
        if (!p->broken || p->due_ms > uv_now(h->loop)) {
            continue;
        }
        if (!can || is_being_loaded(&h->waiting, p->name) || is_being_loaded(&h->sent, p->name) ||
            reload(h, p) != 0) {
            p->due_ms = uv_now(h->loop) + MEND_MS;
        }
    }
    schedule(h);
    set_mend(h);
}

static void break_policy(struct host *h, struct policy *p, const char *why)
{
    uint64_t ms = (uint64_t)MEND_MS << (p->tries < 10 ? p->tries : 10);
    ms = ms < MEND_MAX_MS ? ms : MEND_MAX_MS;
    h->n_broken += !p->broken;
    p->broken = true;
    p->tries++;
    p->due_ms = uv_now(h->loop) + ms;
    snprintf(p->why, sizeof p->why, "%s", why);
    log_error("policy %s does not load again, and is tried in %llu s: %s", p->name,
        (unsigned long long)ms / 1000, why);
    set_mend(h);
}

/* What one would say is known only to itself: it may have been called something else on the way to it. */
static bool would_hear(const struct policy *p, const char *hook, const char *const values[RULES_FIELDS])
{
    return strcmp(hook, "admit.change") == 0 ? rules_fit(&p->rules, hook, values)
                                             : rules_have_hook(&p->rules, hook);
}

/* One that would have a word in this, whose fail mode is closed, and cannot be asked. */
static const struct policy *broken_one(struct host *h, const struct job *job)
{
    const struct frame f = {.data = buf_data(&job->frame) + FRAME_HEADER, .n = job->frame.len - FRAME_HEADER};
    const struct policy *p, *found = NULL;
    struct box_subject subject = {0};
    struct frame_call call;
    if (h->n_broken == 0 || job->kind != FRAME_CALL || !frame_get_call(&f, &call) ||
        strncmp(call.hook, "admit.", 6) != 0) {
        return NULL;
    }
    if (box_subject(call.input, call.n_input, &subject) == 0) {
        TAILQ_FOREACH (p, &h->policies, link) {
            if (found == NULL && p->broken && rules_name(call.only, p->name) &&
                would_hear(p, call.hook, subject.values)) {
                found = p;
            }
        }
    }
    box_subject_free(&subject);
    return found;
}

/* --- the child itself --- */

static void on_frame(void *arg, const struct frame *f);
static bool expects(void *arg);
static void on_read(void *arg, uint32_t id, enum read_kind kind, const char *key, size_t n, unsigned limit);
static void on_lost(void *arg);
static const struct child_ops ops = {on_frame, expects, on_read, on_lost};

static void put_setup(struct host *h)
{
    struct wr w = wr_init(child_proc_out(h->child));
    size_t at = frame_begin(&w, FRAME_SETUP, 0);
    wr_u64(&w, h->cfg.memory);
    wr_u64(&w, 8 * (uint64_t)h->cfg.memory);
    wr_u64(&w, h->cfg.instructions);
    wr_u8(&w, h->cfg.full);
    frame_end(&w, at);
    child_proc_flush(h->child);
}

static void on_later(uv_timer_t *timer);

static void try_later(struct host *h)
{
    uint64_t ms = (uint64_t)BACKOFF_MS << (h->deaths < 10 ? h->deaths : 10);
    h->deaths++;
    uv_timer_start(&h->later, on_later, ms < BACKOFF_MAX_MS ? ms : BACKOFF_MAX_MS, 0);
}

static void start(struct host *h)
{
    h->renew = false;
    int rv = load_again(h);
    rv = rv != 0 ? rv : child_proc_start(h->loop, &ops, h, &h->child);
    if (rv != 0) {
        snprintf(h->why, sizeof h->why, "%s", err_msg());
        log_error("policies cannot be run: %s", h->why);
        h->child = NULL;
        drop_reloads(h);
        try_later(h);
        return;
    }
    h->stats.started++;
    h->ready = false;
    h->started_ms = uv_now(h->loop);
    put_setup(h);
}

/* The child is let go of; what it had comes again, in order, before what waits. */
static void let_go(struct host *h)
{
    struct job *job;
    child_proc_kill(h->child);
    h->child = NULL;
    h->ready = false;
    while ((job = TAILQ_LAST(&h->sent, jobs)) != NULL) {
        TAILQ_REMOVE(&h->sent, job, link);
        h->n_sent--;
        if (job->again) {
            drop_reload(h, job);
        } else {
            job->reads = 0;
            put_first(h, job);
        }
    }
    drop_reloads(h);
    uv_timer_stop(&h->later);
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

static struct job *find_sent(struct host *h, uint32_t id)
{
    struct job *job = TAILQ_FIRST(&h->sent);
    while (job != NULL && job->id != id) {
        job = TAILQ_NEXT(job, link);
    }
    return job;
}

static struct job *job_under_way(struct host *h)
{
    struct job *job = find_sent(h, child_proc_page(h->child)->id);
    return job != NULL ? job : TAILQ_FIRST(&h->sent);
}

/* It is gone, or has to go, because of what it was doing: err_msg() says why. */
static void lose(struct host *h, int status)
{
    char name[BOX_NAME_MAX + 1];
    struct job *job = job_under_way(h);
    struct policy *p = NULL;
    snprintf(h->why, sizeof h->why, "%s", err_msg());
    name_on_page(h, name);
    if (job != NULL) {
        if (job->kind == FRAME_LOAD) {
            snprintf(name, sizeof name, "%s", job->name);
            p = find_policy(h, name);
        } else if (job->kind == FRAME_TEST) {
            name[0] = '\0';
        }
        TAILQ_REMOVE(&h->sent, job, link);
        h->n_sent--;
    }
    log_warn("the process that runs the policies is started again: %s%s%s", job != NULL ? name : "",
        job != NULL && name[0] != '\0' ? ": " : "", h->why);
    if (job != NULL && job->again && p != NULL) {
        break_policy(h, p, h->why);
    }
    let_go(h);
    try_later(h);
    if (h->deaths == 1) {
        uv_timer_start(&h->later, on_later, 0, 0);
    }
    if (job != NULL) {
        err_setf(status, name[0] != '\0' ? "policy %s: %s" : "%s%s", name, h->why);
        fail(h, job, status, name);
    }
}

static void on_lost(void *arg)
{
    struct host *h = arg;
    h->stats.died++;
    lose(h, SYM_EPOLICYDIED);
}

static bool idle(const struct host *h)
{
    return h->n_waiting == 0 && h->n_sent == 0;
}

static void on_later(uv_timer_t *timer)
{
    struct host *h = timer->data;
    if (h->child == NULL && (h->n_policies > 0 || !idle(h))) {
        start(h);
    } else if (h->child != NULL && h->n_policies == 0 && idle(h)) {
        let_go(h);
    }
}

/* --- sending --- */

static unsigned deadline_of(const struct host *h, const struct job *job)
{
    return job->kind == FRAME_CALL   ? h->cfg.deadline_ms
           : job->kind == FRAME_TEST ? TEST_TIMES * h->cfg.load_deadline_ms
                                     : h->cfg.load_deadline_ms;
}

static void on_tick(uv_timer_t *timer);

static void keep_time(struct host *h)
{
    unsigned ms = h->cfg.deadline_ms / 4;
    ms = ms < 5 ? 5 : ms > 50 ? 50 : ms;
    if (!uv_is_active((uv_handle_t *)&h->tick)) {
        uv_timer_start(&h->tick, on_tick, ms, ms);
    }
}

static void new_head(struct host *h)
{
    h->head_ms = uv_now(h->loop);
    h->head_ns = uv_hrtime();
}

static void send_job(struct host *h, struct job *job)
{
    TAILQ_REMOVE(&h->waiting, job, link);
    h->n_waiting--;
    const struct policy *broken = broken_one(h, job);
    if (broken != NULL) {
        err_setf(SYM_EBUSY, "policy %s failed: it does not load again, and is tried: %s", broken->name,
            broken->why);
        fail(h, job, SYM_EBUSY, broken->name);
        return;
    }
    if (buf_append(child_proc_out(h->child), buf_data(&job->frame), job->frame.len) != 0) {
        fail(h, job, SYM_ENOMEM, "");
        return;
    }
    if (job->kind == FRAME_DROP) {
        job_free(h, job);
        return;
    }
    if (h->n_sent == 0) {
        new_head(h);
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
        if (!uv_is_active((uv_handle_t *)&h->later) && (h->n_policies > 0 || !idle(h))) {
            start(h);
        }
    } else if (h->renew && h->n_sent == 0) {
        let_go(h);
        start(h);
    }
    while (h->child != NULL && h->ready && !h->renew && (job = TAILQ_FIRST(&h->waiting)) != NULL &&
           h->n_sent < WINDOW && child_proc_queued(h->child) < WINDOW_BYTES && may_send(h, job)) {
        send_job(h, job);
    }
    if (h->child != NULL) {
        child_proc_flush(h->child);
    }
    if (!idle(h) || (h->child != NULL && !h->ready)) {
        keep_time(h);
    }
    if (h->child != NULL && h->n_policies == 0 && idle(h) && !uv_is_active((uv_handle_t *)&h->later)) {
        uv_timer_start(&h->later, on_later, LINGER_MS, 0);
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
static void schedule(struct host *h)
{
    if (!h->scheduled && !h->closed) {
        h->scheduled = true;
        uv_prepare_start(&h->prepare, on_prepare);
        uv_check_start(&h->check, on_check);
    }
}

/* --- what comes back --- */

static void on_ready(struct host *h, const struct frame *f)
{
    struct frame_answer answer;
    if (f->kind == FRAME_READY) {
        h->ready = true;
        schedule(h);
        return;
    }
    if (frame_get_answer(f, &answer) && answer.status != 0) {
        err_setf(answer.status, "it cannot shut itself in: %s", answer.message);
    } else {
        err_setf(SYM_EPROTO, "it broke the rules of its protocol");
    }
    h->stats.died++;
    lose(h, SYM_EPOLICYDIED);
}

/* 0, or why the policy is not to be taken for loaded; then the child has it all the same, and is replaced. */
static int loaded(struct host *h, const struct job *job, const struct frame_answer *answer)
{
    struct policy *p = find_policy(h, job->name);
    if (answer->status == 0 && !job->again && !job->dropped) {
        int rv = remember(h, job, answer);
        h->renew = h->renew || rv != 0;
        return rv;
    } else if (answer->status != 0 && job->again && p != NULL) {
        break_policy(h, p, answer->message);
    } else if (job->again && p != NULL && p->broken) {
        log_info("policy %s is loaded again", p->name);
        p->broken = false;
        p->tries = 0;
        h->n_broken--;
    }
    return answer->status;
}

static void on_frame(void *arg, const struct frame *f)
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
        lose(h, SYM_EPOLICYDIED);
        return;
    }
    char *json = got.n > 0 ? strndup((const char *)got.data, got.n) : NULL;
    uint64_t us = (uv_hrtime() - h->head_ns) / 1000;
    TAILQ_REMOVE(&h->sent, job, link);
    h->n_sent--;
    h->stats.us_total += job->kind == FRAME_CALL ? us : 0;
    h->deaths = job->again ? h->deaths : 0;
    h->overdue = false;
    new_head(h);
    if (job->kind == FRAME_LOAD && loaded(h, job, &got) != 0 && got.status == 0) {
        got =
            (struct frame_answer){.status = SYM_EPROTO, .policy = job->name, .message = "it cannot be kept"};
    }
    if (h->n_waiting > 0 || h->n_sent == 0) {
        schedule(h);
    }
    struct host_answer answer = {.status = got.status,
        .policy = got.policy,
        .json = json != NULL ? json : "",
        .n = json != NULL ? strlen(json) : 0};
    if (got.n > 0 && json == NULL) {
        answer.status = err_setf(SYM_ENOMEM, "out of memory");
    } else if (got.status != 0) {
        err_setf(got.status, "%s", got.message);
    }
    finish(h, job, &answer);
    free(json);
}

static bool expects(void *arg)
{
    const struct host *h = arg;
    return !h->ready || h->n_sent > 0;
}

/* --- deadlines --- */

/* A child writes on the page what it does, and its answers a little later. So time counts from when that job was first
 * seen there; but none can put it off for ever by writing there what is not so. */
static void check_running(struct host *h)
{
    const struct job *job = job_under_way(h), *first = TAILQ_FIRST(&h->sent);
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
    lose(h, SYM_EPOLICYTIME);
}

static void check_waiting(struct host *h)
{
    struct job *job;
    uint64_t now = uv_now(h->loop);
    while ((job = TAILQ_FIRST(&h->waiting)) != NULL && !job->again && now - job->queued_ms >= HOST_WAIT_MS) {
        TAILQ_REMOVE(&h->waiting, job, link);
        h->n_waiting--;
        if (h->ready) {
            err_setf(SYM_EBUSY, "the policies had no time for it within %d ms", HOST_WAIT_MS);
        } else {
            err_setf(SYM_EBUSY, "the policies are not running: %s",
                h->why[0] != '\0' ? h->why : "they are being started");
        }
        fail(h, job, SYM_EBUSY, "");
    }
}

static void on_tick(uv_timer_t *timer)
{
    struct host *h = timer->data;
    if (h->child != NULL && !h->ready && uv_now(h->loop) - h->started_ms > START_MS) {
        err_setf(SYM_ETIMEOUT, "it was not ready after %d s", START_MS / 1000);
        h->stats.killed++;
        lose(h, SYM_EPOLICYDIED);
    } else if (h->n_sent > 0) {
        check_running(h);
    }
    check_waiting(h);
    if (idle(h) && (h->child == NULL || h->ready)) {
        uv_timer_stop(&h->tick);
    }
}

/* --- reads --- */

struct walk {
    struct buf items;
    uint64_t revision, count;
    uint32_t given;
    unsigned limit;
};

static int walk_one(void *arg, const struct kv *kv)
{
    struct walk *walk = arg;
    if (++walk->count > WALK_MAX) {
        return err_setf(SYM_ETOOBIG, "there are more than %d keys below that prefix", WALK_MAX);
    }
    walk->revision = kv->mod_revision > walk->revision ? kv->mod_revision : walk->revision;
    if (walk->given < walk->limit) {
        struct wr w = wr_init(&walk->items);
        walk->given++;
        wr_blob(&w, kv->key.p, kv->key.n);
        wr_blob(&w, kv->value.p, kv->value.n);
        if (w.bad || walk->items.len > READS_ANSWER_MAX) {
            return err_setf(SYM_ETOOBIG, "the values below that prefix are too large to be read at once");
        }
    }
    return 0;
}

static int read_prefix(struct store *s, struct slice prefix, unsigned limit, struct buf *answer)
{
    struct walk walk = {.limit = limit};
    int rv = store_list(s, prefix, NULL, walk_one, &walk);
    if (rv == 0) {
        struct wr w = wr_init(answer);
        wr_u64(&w, walk.revision);
        wr_u64(&w, walk.count);
        wr_u32(&w, walk.given);
        wr_bytes(&w, buf_data(&walk.items), walk.items.len);
        rv = w.bad ? SYM_ENOMEM : 0;
    }
    buf_free(&walk.items);
    return rv;
}

static int read_key(struct store *s, struct slice key, struct buf *answer)
{
    struct kv kv;
    struct wr w = wr_init(answer);
    int rv = store_get(s, key.p, key.n, &kv);
    if (rv != 0 && rv != SYM_ENOTFOUND) {
        return rv;
    }
    wr_u64(&w, rv == 0 ? kv.mod_revision : 0);
    wr_blob(&w, rv == 0 ? kv.value.p : NULL, rv == 0 ? kv.value.n : 0);
    return w.bad ? SYM_ENOMEM : 0;
}

static void on_read(void *arg, uint32_t id, enum read_kind kind, const char *key, size_t n, unsigned limit)
{
    struct host *h = arg;
    struct job *job = find_sent(h, id);
    struct store *s = h->store_of(h->arg);
    struct buf answer = {0};
    struct slice k = {(const uint8_t *)key, n};
    int rv;
    if (job == NULL || job->kind != FRAME_CALL) {
        err_setf(SYM_EPROTO, "it reads the state for a call that there is not");
        on_lost(h);
        return;
    }
    job->reads += kind == READ_GET ? 1 : 2;
    if (job->reads > READS_MAX) {
        err_setf(SYM_EPROTO, "it reads the state more than %d times in a call", READS_MAX);
        on_lost(h);
        return;
    }
    if (!reads_allowed(key, n)) {
        rv = err_setf(SYM_EDENIED, "that key is not for policies");
    } else if (s == NULL) {
        rv = err_setf(SYM_ECLOSED, "the node is not started");
    } else {
        rv = kind == READ_GET ? read_key(s, k, &answer)
                              : read_prefix(s, k, kind == READ_LIST ? limit : 0, &answer);
    }
    child_proc_reply(h->child, rv, &answer);
    buf_free(&answer);
}

/* --- what is asked of it --- */

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
    struct job *job = rv == 0 ? job_new(h, FRAME_LOAD, cb, arg) : NULL;
    if (job == NULL) {
        return rv != 0 ? rv : SYM_ENOMEM;
    }
    put_load(job, name, source, n, &bad);
    return enqueue(h, job, bad);
}

static void mark_dropped(struct jobs *jobs, const char *name)
{
    struct job *job;
    TAILQ_FOREACH (job, jobs, link) {
        if (job->kind == FRAME_LOAD && strcmp(job->name, name) == 0) {
            job->dropped = true;
        }
    }
}

void host_drop(struct host *h, const char *name)
{
    struct policy *p = find_policy(h, name);
    mark_dropped(&h->sent, name);
    mark_dropped(&h->waiting, name);
    if (p != NULL) {
        forget(h, p);
    }
    if (!box_name_valid(name, strlen(name)) || h->child == NULL) {
        return; /* the next one does not load it */
    }
    struct job *job = job_new(h, FRAME_DROP, NULL, NULL);
    if (job == NULL) {
        h->renew = true; /* without it */
        schedule(h);
        return;
    }
    struct wr w = wr_init(&job->frame);
    size_t at = frame_begin(&w, FRAME_DROP, job->id);
    frame_put_text(&w, name);
    frame_end(&w, at);
    if (enqueue(h, job, w.bad) != 0) {
        h->renew = true;
        schedule(h);
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
    struct job *job = rv == 0 ? job_new(h, FRAME_CALL, cb, arg) : NULL;
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
    return enqueue(h, job, w.bad);
}

int host_test(
    struct host *h, const char *source, size_t n, const void *cases, size_t n_cases, host_cb cb, void *arg)
{
    if (n > BOX_SOURCE_MAX || n_cases > BOX_INPUT_MAX) {
        return err_setf(SYM_ETOOBIG, "a policy has at most %d bytes", BOX_SOURCE_MAX);
    }
    int rv = admit(h, n + n_cases);
    struct job *job = rv == 0 ? job_new(h, FRAME_TEST, cb, arg) : NULL;
    if (job == NULL) {
        return rv != 0 ? rv : SYM_ENOMEM;
    }
    struct wr w = wr_init(&job->frame);
    size_t at = frame_begin(&w, FRAME_TEST, job->id);
    wr_blob(&w, source, n);
    wr_u8(&w, cases != NULL);
    wr_blob(&w, cases, cases != NULL ? n_cases : 0);
    frame_end(&w, at);
    return enqueue(h, job, w.bad);
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
        schedule(h);
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
        let_go(h);
    }
    h->closed = true;
    while ((job = TAILQ_FIRST(&h->waiting)) != NULL) {
        TAILQ_REMOVE(&h->waiting, job, link);
        h->n_waiting--;
        err_setf(SYM_ECLOSED, "this node is stopping");
        fail(h, job, SYM_ECLOSED, "");
    }
    while ((p = TAILQ_FIRST(&h->policies)) != NULL) {
        forget(h, p);
    }
    uv_close((uv_handle_t *)&h->tick, on_closed);
    uv_close((uv_handle_t *)&h->later, on_closed);
    uv_close((uv_handle_t *)&h->mend, on_closed);
    uv_close((uv_handle_t *)&h->prepare, on_closed);
    uv_close((uv_handle_t *)&h->check, on_closed);
}
