#include "daemon/api_impl.h"

#include "base/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    HEARTBEAT_MS = 10000,
    /* Who is unknown here costs a round of the quorum with each request: as often as of Lua's routes (router.lua). */
    LOOKS = 100,
    LOOK_MS = 200
};

void call_release(struct call *c)
{
    if (c->req == NULL && !c->pending) {
        if (c->behind != NULL) {
            c->behind->before = c->before;
        }
        if (c->before != NULL) {
            c->before->behind = c->behind;
        }
        free(c);
    }
}

void call_gone(struct http_req *req)
{
    struct call *c = req->data;
    c->req = NULL;
    if (c->kind == WATCH_KEYS) {
        TAILQ_REMOVE(&c->api->watches, c, link);
        if (c->watch != NULL) {
            watch_close(c->watch);
            watch_drop(c);
        }
    }
    call_release(c);
}

void api_fail(struct http_req *req, int code, const char *hint)
{
    http_respond_error(req, code, err_msg(), hint);
}

const char *api_hint(int code)
{
    switch (code) {
    case SYM_ENOQUORUM:
        return API_QUORUM_HINT;
    case SYM_EUNKNOWN:
        return "it may or may not have been carried out: read the key, or repeat it with the same "
               "Idempotency-Key";
    case SYM_ENOSPACE:
        return "free disk space on the managers, or delete keys: see `symphony manager status`";
    case SYM_ESTATE:
        return "ask another manager, or this one again later";
    default:
        return NULL;
    }
}

static void refuse_method(struct http_req *req, const char *allowed)
{
    char body[192], extra[64];
    int n = snprintf(body, sizeof body,
        "{\"error\":{\"code\":\"invalid\",\"message\":\"this route has no such method\","
        "\"hint\":\"allowed: %s\"}}\n",
        allowed);
    snprintf(extra, sizeof extra, "Allow: %s\r\n", allowed);
    http_respond(req, 405, NULL, extra, body, (size_t)n);
}

static void refuse_stopped(struct daemon *d, struct http_req *req)
{
    if (d->stopping || d->node_stopping) {
        err_setf(SYM_ECLOSED, "this node is stopping");
        api_fail(req, SYM_ECLOSED, NULL);
    } else if (strcmp(d->opt.role, "manager") != 0) {
        err_setf(SYM_ECLOSED, "this node is a worker: the state is with the managers");
        api_fail(req, SYM_ECLOSED, "ask a manager");
    } else {
        err_setf(SYM_ECLOSED, "this node is not part of a cluster");
        api_fail(req, SYM_ECLOSED, "`symphony manager init` or `symphony manager join`");
    }
}

static int start_call(struct call *c, bool unsure)
{
    switch (c->kind) {
    case WATCH_KEYS:
        return call_watch(c);
    case LIST_KEYS:
        return call_list(c);
    case GET_KEY:
        return call_read(c);
    default:
        if (unsure) {
            return call_read(c);
        }
        call_begin(c);
        return 0;
    }
}

bool api_handle(struct api *a, struct http_req *req)
{
    static const char kv[] = "/v1/kv";
    struct daemon *d = a->d;
    if (req->path_len < sizeof kv - 1) {
        return false;
    }
    bool is_kv = memcmp(req->path, kv, sizeof kv - 1) == 0;
    bool one = is_kv && req->path_len > sizeof kv && req->path[sizeof kv - 1] == '/';
    bool list =
        is_kv && (req->path_len == sizeof kv - 1 || (req->path_len == sizeof kv && req->path[6] == '/'));
    bool watch = !is_kv && strcmp(req->path, "/v1/watch") == 0;
    bool health = !is_kv && strcmp(req->path, "/healthz") == 0;
    if (!one && !list && !watch && !health) {
        return false;
    }
    /* The body of an answer to HEAD is left out below. */
    bool get = strcmp(req->method, "GET") == 0 || (strcmp(req->method, "HEAD") == 0 && !watch);
    bool put = one && strcmp(req->method, "PUT") == 0;
    bool del = one && strcmp(req->method, "DELETE") == 0;
    if (!get && !put && !del) {
        refuse_method(req, one ? "GET, HEAD, PUT, DELETE" : watch ? "GET" : "GET, HEAD");
        return true;
    }
    if (health) {
        http_respond(req, 200, NULL, NULL, "{\"ok\":true}\n", 12);
        return true;
    }
    if ((put || del) && req->tls && peer_is_role(req->peer, "manager") &&
        http_req_header(req, "symphony-forwarded") != NULL) {
        return false; /* what it rests on besides that manager is in its headers: basis.lua */
    }
    if (d->raft == NULL || (watch && d->node_stopping)) {
        refuse_stopped(d, req);
        return true;
    }
    int may = api_access_of(d, req);
    if ((may & (UNSURE | (get ? READ : WRITE))) == 0) {
        api_refuse(req);
        return true;
    }
    bool unsure = (may & UNSURE) != 0;
    if (unsure && !allowance_take(&a->looks, req->peer->cert.fingerprint, uv_now(d->loop))) {
        err_setf(SYM_EBUSY, "cannot tell so often whether this peer is a member");
        api_fail(req, SYM_EBUSY, "say it again in some seconds");
        return true;
    }
    size_t key_len = one ? req->path_len - sizeof kv : 0;
    if (key_len > USER_KEY_MAX) {
        err_setf(SYM_ETOOBIG, "a key of %zu bytes; at most %d fit", key_len, USER_KEY_MAX);
        api_fail(req, SYM_ETOOBIG, NULL);
        return true;
    }
    if (put && req->body_len > VALUE_MAX) {
        err_setf(SYM_ETOOBIG, "a value of %zu bytes; at most 1 MiB fits", req->body_len);
        api_fail(req, SYM_ETOOBIG, NULL);
        return true;
    }
    bool for_lua = !get && a->lua_decides && (unsure || !policies_may_be_asked(a, req));
    if (for_lua && http_req_before(req) == NULL) {
        return false;
    }
    /* Most are for one key, and that is short. */
    struct call *c = malloc(sizeof *c + (one ? PREFIX_LEN + key_len : 2 * KEY_ROOM));
    if (c == NULL) {
        err_setf(SYM_ENOMEM, "out of memory");
        api_fail(req, SYM_ENOMEM, NULL);
        return true;
    }
    *c = (struct call){.api = a, .req = req, .start = one ? NULL : c->key + KEY_ROOM};
    memcpy(c->key, API_KV_FOLDER, PREFIX_LEN);
    memcpy(c->key + PREFIX_LEN, one ? req->path + sizeof kv : "", key_len);
    c->key_len = PREFIX_LEN + key_len;
    c->kind = watch ? WATCH_KEYS : list ? LIST_KEYS : put ? PUT_KEY : del ? DELETE_KEY : GET_KEY;
    req->data = c;
    req->on_gone = call_gone;
    /* Changes go into one queue, and from there into the log, as they come; but not those that wait for a read, or
     * that are Lua's. */
    req->overlap = one && !unsure && !for_lua;
    if (watch) {
        TAILQ_INSERT_TAIL(&a->watches, c, link);
    }
    if (for_lua) {
        call_hand_over(c);
        return true;
    }
    int rv = start_call(c, unsure);
    if (rv != 0) {
        api_fail(req, rv, NULL);
    }
    return true;
}

int api_new(struct daemon *d, struct api **out)
{
    struct api *a = calloc(1, sizeof *a);
    if (a == NULL) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    a->d = d;
    a->looks.burst = LOOKS;
    a->looks.every = LOOK_MS;
    TAILQ_INIT(&a->watches);
    TAILQ_INIT(&a->asking);
    uv_timer_init(d->loop, &a->heartbeat);
    uv_unref((uv_handle_t *)&a->heartbeat);
    a->heartbeat.data = a;
    uv_timer_start(&a->heartbeat, watches_heartbeat, HEARTBEAT_MS, HEARTBEAT_MS);
    *out = a;
    return 0;
}

void api_shut(struct api *a)
{
    struct call *c, *next;
    for (c = TAILQ_FIRST(&a->watches); c != NULL; c = next) {
        next = TAILQ_NEXT(c, link);
        if (c->watch != NULL) {
            watch_cut(c, SYM_ECLOSED);
        }
    }
}

static void heartbeat_closed(uv_handle_t *handle)
{
    struct api *a = handle->data;
    buf_free(&a->scratch);
    free(a);
}

void api_free(struct api *a)
{
    struct call *c;
    /* Their answers do not come any more. */
    while ((c = TAILQ_FIRST(&a->asking)) != NULL) {
        TAILQ_REMOVE(&a->asking, c, link);
        if (c->req != NULL) {
            c->req->data = NULL;
            c->req->on_gone = NULL;
        }
        free(c);
    }
    uv_close((uv_handle_t *)&a->heartbeat, heartbeat_closed);
}
