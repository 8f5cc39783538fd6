/* Watches of the users' keys. */
#include "daemon/api_impl.h"

#include "base/err.h"
#include "codec/json.h"

#include <stdio.h>
#include <string.h>

/* From here on nothing is delivered. The hub has closed it already, or does now. */
void watch_drop(struct call *c)
{
    if (c->watch != NULL) {
        c->api->n_unsynced -= !c->synced;
        c->watch = NULL;
    }
}

static int event_line(struct event *ev)
{
    struct buf line = {0};
    int rv = buf_appendf(&line, "{\"type\":\"%s\",", ev->is_delete ? "delete" : "put");
    rv = rv != 0 ? rv : json_bytes(&line, "key", ev->key.p + PREFIX_LEN, ev->key.n - PREFIX_LEN);
    if (rv == 0 && !ev->is_delete) {
        rv = buf_append(&line, ",", 1);
        rv = rv != 0 ? rv : json_bytes(&line, "value", ev->value.p, ev->value.n);
        rv = rv != 0
                 ? rv
                 : buf_appendf(&line, ",\"create_revision\":%llu", (unsigned long long)ev->create_revision);
    }
    rv = rv != 0 ? rv : buf_appendf(&line, ",\"revision\":%llu}\n", (unsigned long long)ev->revision);
    if (rv == 0) {
        ev->line = buf_take(&line, &ev->line_len);
    }
    buf_free(&line);
    return ev->line == NULL ? SYM_ENOMEM : 0;
}

static void watch_end(struct call *c, int code)
{
    char text[256];
    int n = snprintf(text, sizeof text, "{\"error\":{\"code\":\"%s\",\"message\":\"%s\"}}\n", err_name(code),
        code == SYM_ECOMPACTED ? "the history that this watch needs is gone: list again"
        : code == SYM_EEXPIRED ? "the certificate has expired"
                               : "the watch has ended");
    if (http_stream_write(c->req, text, (size_t)n) != SYM_ECLOSED) {
        http_stream_end(c->req);
    }
}

/* Ends it for our own reasons. */
void watch_cut(struct call *c, int code)
{
    watch_close(c->watch);
    watch_drop(c);
    watch_end(c, code);
}

/* Its certificate may have expired since it began. */
static bool watch_expired(const struct call *c)
{
    return c->req->tls && tls_peer_expired(c->req->peer);
}

static bool watch_events(void *arg, int status, struct event **events, unsigned n)
{
    struct call *c = arg;
    if (status != 0) {
        watch_drop(c);
        watch_end(c, status);
        return true;
    }
    if (watch_expired(c)) {
        watch_cut(c, SYM_EEXPIRED);
        return true;
    }
    bool room = true;
    for (unsigned i = 0; i < n; i++) {
        if (events[i]->line == NULL && event_line(events[i]) != 0) {
            http_abort(c->req);
            return false;
        }
        int rv = http_stream_write(c->req, events[i]->line, events[i]->line_len);
        if (rv != 0 && rv != SYM_EBUSY) {
            return false;
        }
        room = room && rv == 0;
    }
    c->paused = !room;
    return room;
}

static void watch_drain(struct http_req *req)
{
    struct call *c = req->data;
    if (c->watch != NULL) {
        c->paused = false;
        watch_resume(c->watch);
        daemon_pump(c->api->d);
    }
}

void call_answer_watch(struct call *c)
{
    struct api *a = c->api;
    uint64_t after = c->has_after ? c->after : store_revision(a->d->store);
    struct slice prefix = {c->key, c->key_len};
    int rv = call_check_known(c, false);
    rv = rv != 0 ? rv : watch_open(a->d->store, prefix, after, watch_events, c, &c->watch);
    if (rv != 0) {
        api_fail(c->req, rv,
            rv == SYM_ECOMPACTED ? "list the keys again and watch from the list's revision + 1"
                                 : api_hint(rv));
        return;
    }
    a->n_unsynced++;
    c->req->on_drain = watch_drain;
    http_stream_start(c->req, 200, "application/x-ndjson");
    daemon_pump(a->d);
}

static void watch_progress(struct call *c, const char *type)
{
    char text[80];
    int n = snprintf(
        text, sizeof text, "{\"type\":\"%s\",\"revision\":%llu}\n", type, (unsigned long long)c->api->told);
    (void)http_stream_write(c->req, text, (size_t)n); /* a peer that is gone is heard of from the stream */
}

/* A client may go on after the revision of a "sync" or "heartbeat", so it must not be ahead of the events. */
void api_told(struct api *a)
{
    struct call *c;
    a->told = store_revision(a->d->store);
    if (a->n_unsynced == 0) {
        return;
    }
    TAILQ_FOREACH (c, &a->watches, link) {
        if (c->watch != NULL && !c->synced && !c->paused) {
            c->synced = true;
            a->n_unsynced--;
            watch_progress(c, "sync");
        }
    }
}

/* Tells an idle client that the line is alive, and how far the state is. */
void watches_heartbeat(uv_timer_t *timer)
{
    struct api *a = timer->data;
    struct call *c;
    if (a->d->store == NULL) {
        return;
    }
    daemon_deliver(a->d);
    TAILQ_FOREACH (c, &a->watches, link) {
        if (c->watch != NULL && watch_expired(c)) {
            watch_cut(c, SYM_EEXPIRED);
        } else if (c->watch != NULL && c->synced && !c->paused) {
            watch_progress(c, "heartbeat");
        }
    }
}

void api_recheck(struct api *a)
{
    struct call *c;
    TAILQ_FOREACH (c, &a->watches, link) {
        if (c->watch != NULL && (api_access_of(a->d, c->req) & READ) == 0) {
            http_abort(c->req);
        }
    }
}

int call_watch(struct call *c)
{
    uint64_t from = 0;
    int rv = api_key_param(c->req, "prefix", c->key, &c->key_len);
    int given = api_number_param(c->req, "from", &from);
    if (rv < 0 || given < 0) {
        return rv < 0 ? rv : given;
    }
    c->has_after = given == 1 && from > 0;
    c->after = from > 0 ? from - 1 : 0;
    return call_read(c);
}
