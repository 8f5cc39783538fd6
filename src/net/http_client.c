/* One call on one connection. */
#include "net/http.h"

#include "base/err.h"
#include "net/http_text.h"

#include <llhttp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEAD_MAX = 64 * 1024, TIMEOUT_MS = 10000, IDLE_MS = 60000, MAX_BODY = 16 << 20 };

struct http_call {
    struct http_call_opts opts; /* its pointers are not used after the start, but for the callbacks and arg */
    struct stream *stream;
    uv_timer_t timer;
    llhttp_t engine;
    struct buf request;
    struct buf body;
    const uint8_t *piece; /* body bytes of the read under way: in place if they are one run, else gathered */
    size_t piece_len;
    struct buf gathered;
    size_t head; /* bytes of heads so far, with trailers */
    int status;
    int err;
    char *why;
    unsigned handles;
    bool is_head;
    bool asked;  /* the request is on its way */
    bool headed; /* on_head was called */
    bool whole;  /* the answer is complete */
    bool paused;
    bool ending; /* stream_close was called from here */
};

/* --- the end */

static void on_closed(struct http_call *c)
{
    if (--c->handles > 0) {
        return;
    }
    size_t n = c->body.len;
    uint8_t *body = NULL;
    if (c->err == 0 && c->opts.on_data == NULL) {
        body = buf_take(&c->body, &n);
        if (body == NULL) {
            c->err = SYM_ENOMEM;
        }
    }
    if (c->err != 0) {
        err_setf(c->err, "%s", c->why != NULL ? c->why : err_name(c->err));
    }
    c->opts.on_done(c->opts.arg, c->err, c->status, body, body != NULL ? n : 0);
    free(body);
    buf_free(&c->body);
    buf_free(&c->gathered);
    buf_free(&c->request);
    free(c->why);
    free(c);
}

static void on_timer_closed(uv_handle_t *handle)
{
    on_closed(handle->data);
}

/* Ends the call with @err, and err_msg() if it is none of 0; the first end counts. */
static void end(struct http_call *c, int err)
{
    if (c->ending) {
        return;
    }
    c->ending = true;
    c->err = err;
    if (err != 0) {
        c->why = strdup(err_msg());
    }
    stream_close(c->stream, 0);
}

static void on_deadline(uv_timer_t *timer)
{
    struct http_call *c = timer->data;
    end(c, err_setf(SYM_ETIMEOUT, c->headed ? "the answer stopped for %llu ms" : "no answer within %llu ms",
               (unsigned long long)(c->headed ? c->opts.idle_ms : c->opts.timeout_ms)));
}

/* --- llhttp's callbacks. They return -1 after the call has failed with a code of its own (c->err). */

static int too_big(struct http_call *c, const char *what)
{
    c->err = err_setf(SYM_ETOOBIG, "%s of the answer is too large", what);
    return -1;
}

static int on_head_bytes(llhttp_t *engine, const char *at, size_t n)
{
    struct http_call *c = engine->data;
    (void)at;
    c->head += n + 4;
    return c->head > HEAD_MAX ? too_big(c, "the head") : 0;
}

static int on_headers(llhttp_t *engine)
{
    struct http_call *c = engine->data;
    int status = llhttp_get_status_code(engine);
    engine->upgrade = 0;
    if (status / 100 == 1) {
        return status == 101 ? -1 : 1; /* without a body, whatever its head says */
    }
    if (status < 200 || status > 599) {
        llhttp_set_error_reason(engine, "there is no such status");
        return -1;
    }
    c->status = status;
    return c->is_head ? 1 : 0;
}

static int on_body(llhttp_t *engine, const char *at, size_t n)
{
    struct http_call *c = engine->data;
    if (c->opts.on_data == NULL) {
        if (n > c->opts.max_body - c->body.len) {
            return too_big(c, "the body");
        }
        if (buf_append(&c->body, at, n) != 0) {
            c->err = SYM_ENOMEM;
            return -1;
        }
        return 0;
    }
    if (c->piece_len == 0) {
        c->piece = (const uint8_t *)at;
        c->piece_len = n;
        return 0;
    }
    if ((c->gathered.len == 0 && buf_append(&c->gathered, c->piece, c->piece_len) != 0) ||
        buf_append(&c->gathered, at, n) != 0) {
        c->err = SYM_ENOMEM;
        return -1;
    }
    c->piece = buf_data(&c->gathered);
    c->piece_len = c->gathered.len;
    return 0;
}

static int on_message(llhttp_t *engine)
{
    struct http_call *c = engine->data;
    if (llhttp_get_status_code(engine) / 100 == 1) {
        return 0; /* "100 Continue": the answer is still to come */
    }
    c->whole = true;
    return HPE_PAUSED;
}

static const llhttp_settings_t settings = {
    .on_status = on_head_bytes,
    .on_header_field = on_head_bytes,
    .on_header_value = on_head_bytes,
    .on_headers_complete = on_headers,
    .on_body = on_body,
    .on_message_complete = on_message,
};

/* --- the answer */

/* Hands on what one read has brought. */
static void deliver(struct http_call *c)
{
    if (c->status != 0 && !c->headed) {
        c->headed = true;
        if (c->opts.on_head != NULL) {
            c->opts.on_head(c->opts.arg, c->status);
        }
    }
    if (c->piece_len > 0 && !c->ending) {
        c->opts.on_data(c->opts.arg, c->piece, c->piece_len);
    }
    c->piece_len = 0;
    buf_free(&c->gathered);
    if (c->whole && !c->paused) {
        end(c, 0);
    }
    if (!c->ending && c->headed && !c->paused) {
        uv_update_time(c->timer.loop); /* on_data may have taken its time: a terminal, say */
        uv_timer_start(&c->timer, on_deadline, c->opts.idle_ms, 0);
    }
}

static void on_data(struct stream *s, const uint8_t *data, size_t n)
{
    struct http_call *c = stream_data(s);
    if (c->whole) {
        return; /* bytes behind the answer are nobody's */
    }
    llhttp_errno_t rv = llhttp_execute(&c->engine, (const char *)data, n);
    if (rv != HPE_OK && rv != HPE_PAUSED) {
        int err = c->err != 0 ? c->err : err_setf(SYM_EPROTO, "not an HTTP answer: %s", c->engine.reason);
        c->err = 0;
        end(c, err);
        return;
    }
    deliver(c);
}

static void on_open(struct stream *s)
{
    struct http_call *c = stream_data(s);
    int rv = c->opts.check_peer != NULL ? c->opts.check_peer(c->opts.arg, s) : 0;
    if (rv != 0) {
        end(c, rv);
        return;
    }
    c->asked = true;
    (void)stream_write(s, buf_data(&c->request), c->request.len); /* a failure closes the stream */
    buf_free(&c->request);
}

/* Why the connection ended, as far as the call goes: 0 if its end is the end of the answer. */
static int judge_end(struct http_call *c, int status)
{
    if (status == SYM_ECLOSED) {
        (void)llhttp_finish(&c->engine); /* an answer without a length ends here, and on_message is called */
    }
    if (c->whole) {
        return 0;
    }
    if (status == SYM_ECONNECT && c->asked) {
        /* It could be reached, and may have done what it was asked: that is not "unreachable". */
        char why[256];
        snprintf(why, sizeof why, "%s", err_msg());
        return err_setf(SYM_ECLOSED, "%s", why);
    }
    if (status == 0 || status == SYM_ECLOSED) {
        return err_setf(SYM_ECLOSED,
            c->status == 0 ? "the peer closed the connection without an answer" : "the answer was cut");
    }
    return status;
}

static void on_close(struct stream *s, int status)
{
    struct http_call *c = stream_data(s);
    if (!c->ending) {
        c->ending = true;
        c->err = c->whole ? 0 : judge_end(c, status);
        c->why = c->err != 0 ? strdup(err_msg()) : NULL;
    }
    c->stream = NULL;
    uv_close((uv_handle_t *)&c->timer, on_timer_closed);
    on_closed(c);
}

/* --- the request */

static int write_request(const struct http_call_opts *o, struct buf *out)
{
    const char *host = o->unix_path != NULL ? "localhost" : o->host;
    bool v6 = strchr(host, ':') != NULL;
    char port[8] = "";
    if (o->unix_path == NULL) {
        snprintf(port, sizeof port, ":%u", o->port);
    }
    int rv = buf_appendf(out, "%s %s HTTP/1.1\r\nHost: %s%s%s%s\r\nConnection: close\r\n", o->method, o->path,
        v6 ? "[" : "", host, v6 ? "]" : "", port);
    if (rv == 0 && (o->body_len > 0 || strcmp(o->method, "POST") == 0 || strcmp(o->method, "PUT") == 0)) {
        rv = buf_appendf(out, "Content-Length: %zu\r\n", o->body_len);
    }
    rv = rv != 0 ? rv : buf_appendf(out, "%s\r\n", o->headers != NULL ? o->headers : "");
    return rv != 0 ? rv : buf_append(out, o->body, o->body_len);
}

int http_call_start(uv_loop_t *loop, const struct http_call_opts *opts, struct http_call **out)
{
    static const struct stream_ops ops = {.on_open = on_open, .on_data = on_data, .on_close = on_close};
    if ((opts->unix_path == NULL && opts->host == NULL) || !http_is_token(opts->method) ||
        !http_is_target(opts->path) || (opts->headers != NULL && !http_are_headers(opts->headers)) ||
        (opts->host != NULL && strpbrk(opts->host, " \t\r\n/") != NULL)) {
        return err_setf(
            SYM_EINVAL, "the address, method, path or headers of the request are not well-formed");
    }
    struct http_call *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    c->opts = *opts;
    c->opts.timeout_ms = opts->timeout_ms != 0 ? opts->timeout_ms : TIMEOUT_MS;
    c->opts.idle_ms = opts->idle_ms != 0 ? opts->idle_ms : IDLE_MS;
    c->opts.max_body = opts->max_body != 0 ? opts->max_body : MAX_BODY;
    c->is_head = strcmp(opts->method, "HEAD") == 0;
    llhttp_init(&c->engine, HTTP_RESPONSE, &settings);
    c->engine.data = c;
    int rv = write_request(opts, &c->request);
    if (rv != 0) {
        goto free_call;
    }
    struct stream_config cfg = {
        .ops = &ops,
        .data = c,
        .tls = opts->tls,
        .open_ms = c->opts.timeout_ms,
        .max_queued = c->request.len + (1 << 20),
    };
    rv = opts->unix_path != NULL ? stream_connect_unix(loop, opts->unix_path, &cfg, &c->stream)
                                 : stream_connect_tcp(loop, opts->host, opts->port, &cfg, &c->stream);
    if (rv != 0) {
        goto free_call;
    }
    uv_timer_init(loop, &c->timer);
    c->timer.data = c;
    c->handles = 2;
    uv_timer_start(&c->timer, on_deadline, c->opts.timeout_ms, 0);
    *out = c;
    return 0;

free_call:
    buf_free(&c->request);
    free(c);
    return rv;
}

void http_call_cancel(struct http_call *c)
{
    int rv = err_setf(SYM_ECANCELED, "canceled");
    if (c->ending) {
        /* Its end is under way already; the caller has asked not to hear of any other. */
        free(c->why);
        c->why = strdup(err_msg());
        c->err = rv;
    } else {
        end(c, rv);
    }
}

void http_call_pause(struct http_call *c)
{
    c->paused = true;
    if (!c->ending) {
        uv_timer_stop(&c->timer);
        stream_pause(c->stream);
    }
}

void http_call_resume(struct http_call *c)
{
    if (!c->paused) {
        return;
    }
    c->paused = false;
    if (c->ending) {
        return;
    }
    if (c->whole) {
        end(c, 0);
        return;
    }
    stream_resume(c->stream);
    uv_timer_start(&c->timer, on_deadline, c->headed ? c->opts.idle_ms : c->opts.timeout_ms, 0);
}
