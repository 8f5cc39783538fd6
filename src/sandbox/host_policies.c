/* The policies that the child has, or is to have again: kept for its successors, and tried again when one does not
 * load there. */
#include "sandbox/host_impl.h"

#include "base/err.h"
#include "base/log.h"
#include "sandbox/json_read.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MEND_MS = 1000, /* after this one that did not load again is tried, and then after twice that... */
    MEND_MAX_MS = 60000
};

struct policy *host_find(struct host *h, const char *name)
{
    struct policy *p;
    TAILQ_FOREACH (p, &h->policies, link) {
        if (strcmp(p->name, name) == 0) {
            return p;
        }
    }
    return NULL;
}

void host_forget(struct host *h, struct policy *p)
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
int host_remember(struct host *h, const struct job *job, const struct frame_answer *answer)
{
    struct rd r = rd_init(buf_data(&job->frame) + FRAME_HEADER, job->frame.len - FRAME_HEADER);
    size_t n;
    frame_get_text(&r, BOX_NAME_MAX);
    const uint8_t *source = rd_blob(&r, FRAME_TO_CHILD_MAX, &n);
    struct policy *old = host_find(h, job->name);
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
        host_forget(h, old);
    }
    TAILQ_INSERT_TAIL(&h->policies, p, link);
    h->n_policies++;
    h->stats.memory += p->memory;
    return 0;
}

/* --- loading them again --- */

void host_put_load(struct job *job, const char *name, const void *source, size_t n, bool *bad)
{
    struct wr w = wr_init(&job->frame);
    size_t at = frame_begin(&w, FRAME_LOAD, job->id);
    frame_put_text(&w, name);
    wr_blob(&w, source, n);
    frame_end(&w, at);
    snprintf(job->name, sizeof job->name, "%s", name);
    *bad = w.bad;
}

static int reload(struct host *h, struct policy *p)
{
    bool bad;
    struct job *job = host_job_new(h, FRAME_LOAD, NULL, NULL);
    if (job == NULL) {
        return SYM_ENOMEM;
    }
    host_put_load(job, p->name, p->source, p->n_source, &bad);
    h->bytes += job->frame.len;
    if (bad) {
        host_job_free(h, job);
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    job->again = true;
    p->due_ms = UINT64_MAX;
    host_put_first(h, job);
    return 0;
}

/* Before all that waits. */
int host_load_again(struct host *h)
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

void host_drop_reload(struct host *h, struct job *job)
{
    struct policy *p = host_find(h, job->name);
    if (p != NULL) {
        p->due_ms = uv_now(h->loop);
    }
    host_job_free(h, job);
}

void host_drop_reloads(struct host *h)
{
    struct job *job, *next;
    for (job = TAILQ_FIRST(&h->waiting); job != NULL; job = next) {
        next = TAILQ_NEXT(job, link);
        if (job->again) {
            TAILQ_REMOVE(&h->waiting, job, link);
            h->n_waiting--;
            host_drop_reload(h, job);
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
void host_set_mend(struct host *h)
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
    host_schedule(h);
    host_set_mend(h);
}

void host_break(struct host *h, struct policy *p, const char *why)
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
    host_set_mend(h);
}

/* What one would say is known only to itself: it may have been called something else on the way to it. */
static bool would_hear(const struct policy *p, const char *hook, const char *const values[RULES_FIELDS])
{
    return strcmp(hook, "admit.change") == 0 ? rules_fit(&p->rules, hook, values)
                                             : rules_have_hook(&p->rules, hook);
}

/* One that would have a word in this, whose fail mode is closed, and cannot be asked. */
const struct policy *host_broken_one(struct host *h, const struct job *job)
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
