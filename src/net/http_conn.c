/* One connection of the server: requests in, one after the other, answers out. */
#include "net/http_impl.h"

#include "base/err.h"
#include "base/log.h"

#include <stdlib.h>
#include <string.h>

enum {
    REST_MAX = 16 * 1024,   /* read ahead while a request is served: so that a peer's end is seen */
    FINISH_MS = 300 * 1000, /* for a last answer; one that stands still is cut much earlier */
    LINGER_MS = 2000,
    POOL_MAX = 1024
};

/* --- exchanges */

static struct exchange *exchange_get(struct http_conn *c)
{
    struct http_server *s = c->server;
    struct exchange *x = SLIST_FIRST(&s->pool);
    if (x != NULL) {
        SLIST_REMOVE_HEAD(&s->pool, link);
        s->n_pool--;
        s->pool_low = s->n_pool < s->pool_low ? s->n_pool : s->pool_low;
    } else {
        x = calloc(1, sizeof *x);
        if (x == NULL) {
            err_setf(SYM_ENOMEM, "out of memory");
            return NULL;
        }
    }
    memset(&x->req, 0, sizeof x->req);
    x->conn = c;
    x->given = x->answered = x->chunked = x->over = x->close = x->notify = false;
    http_parser_begin(&x->parser, s->limits.max_head, s->limits.max_body, &s->held, s->limits.max_memory);
    return x;
}

void exchange_free(struct exchange *x)
{
    http_parser_free(&x->parser);
    free(x);
}

static void exchange_put(struct http_server *s, struct exchange *x)
{
    http_parser_end(&x->parser);
    if (s->n_pool >= POOL_MAX) {
        exchange_free(x);
        return;
    }
    SLIST_INSERT_HEAD(&s->pool, x, link);
    s->n_pool++;
}

/* Takes the request from the connection: the last that its handler hears of it. */
static void exchange_end(struct http_conn *c)
{
    struct exchange *x = c->x;
    c->x = NULL;
    if (x->given && x->req.on_gone != NULL) {
        x->req.on_gone(&x->req);
    }
    exchange_put(c->server, x);
}

/* --- phases */

static void enter(struct http_conn *c, enum http_phase phase)
{
    struct http_server *s = c->server;
    TAILQ_REMOVE(&s->phases[c->phase], c, link);
    s->alive -= phase == PHASE_GONE && c->phase != PHASE_GONE;
    c->phase = phase;
    c->since = uv_now(s->loop);
    TAILQ_INSERT_TAIL(&s->phases[phase], c, link);
}

void conn_close(struct http_conn *c, int status)
{
    if (c->phase != PHASE_GONE) {
        enter(c, PHASE_GONE);
        stream_close(c->stream, status);
    }
}

void conn_finish(struct http_conn *c)
{
    if (c->phase != PHASE_END && c->phase != PHASE_GONE) {
        enter(c, PHASE_END);
        stream_finish(c->stream, FINISH_MS);
    }
}

void conn_fail(struct http_conn *c, int status, const char *why)
{
    int code = status == 413 || status == 431 ? SYM_ETOOBIG
               : status == 408                ? SYM_ETIMEOUT
               : status == 503                ? SYM_EBUSY
                                              : SYM_EINVAL;
    if (c->phase == PHASE_END || c->phase == PHASE_GONE) {
        return;
    }
    http_answer_error(c->stream, status, code, why);
    if (c->x != NULL) {
        exchange_end(c);
    }
    enter(c, PHASE_END);
    stream_linger(c->stream, LINGER_MS);
}

void conn_want_turn(struct http_conn *c)
{
    if (!c->queued) {
        c->queued = true;
        TAILQ_INSERT_TAIL(&c->server->turns, c, turn);
    }
}

/* --- requests */

/* A request is over: back to idle, or to the end. */
static void settle(struct http_conn *c)
{
    bool end = c->x->close || c->server->closing;
    exchange_end(c);
    if (c->phase != PHASE_BUSY) {
        return;
    }
    if (end) {
        conn_finish(c);
        return;
    }
    enter(c, PHASE_IDLE);
    if (c->rest.len > 0) {
        conn_want_turn(c);
    }
}

void conn_over(struct http_conn *c)
{
    c->x->over = true;
    if (!c->in_handler) {
        conn_want_turn(c);
    }
}

static void serve(struct http_conn *c)
{
    struct http_server *s = c->server;
    struct exchange *x = c->x;
    struct http_req *req = &x->req;
    req->method = x->parser.method;
    req->path = x->parser.path;
    req->path_len = x->parser.path_len;
    req->query = x->parser.query;
    req->body = x->parser.body.len > 0 ? buf_data(&x->parser.body) : (const uint8_t *)"";
    req->body_len = x->parser.body.len;
    req->from = stream_peer_addr(c->stream);
    req->peer = stream_tls_peer(c->stream);
    req->tls = req->peer != NULL;
    req->arrived_ms = uv_now(s->loop);
    enter(c, PHASE_BUSY);
    s->stats.requests++;
    x->given = true;
    c->in_handler = true;
    s->handler(req, s->arg);
    c->in_handler = false;
    if (!x->answered && req->on_gone == NULL) {
        http_respond_error(req, SYM_EIO, "the request was not answered", NULL);
    }
    if (x->over) {
        settle(c);
    }
}

static void keep_rest(struct http_conn *c, const uint8_t *data, size_t n)
{
    if (buf_append(&c->rest, data, n) != 0) {
        conn_close(c, SYM_ENOMEM);
    } else if (c->rest.len >= REST_MAX) {
        c->paused = true;
        stream_pause(c->stream);
    }
}

/* Parses @data, of which c->rest is the owner or nobody. */
static void feed(struct http_conn *c, const uint8_t *data, size_t n, bool is_rest)
{
    size_t used;
    if (c->x == NULL) {
        c->x = exchange_get(c);
        if (c->x == NULL) {
            conn_close(c, SYM_ENOMEM);
            return;
        }
        if (c->phase != PHASE_HEAD) {
            enter(c, PHASE_HEAD);
        }
    }
    struct http_parser *p = &c->x->parser;
    enum http_parsed rv = http_parse(p, data, n, &used);
    if (rv == HTTP_PARSE_BAD) {
        conn_fail(c, p->status, err_msg());
        return;
    }
    if (is_rest) {
        buf_consume(&c->rest, used);
    } else if (used < n) {
        keep_rest(c, data + used, n - used);
    }
    if (c->phase == PHASE_GONE) {
        return;
    }
    if (rv == HTTP_PARSE_REQUEST) {
        serve(c);
    } else if (p->state != HTTP_IN_HEAD && c->phase == PHASE_HEAD) {
        static const char go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";
        enter(c, PHASE_BODY);
        if (p->wants_continue && p->body.len == 0) {
            (void)stream_write(c->stream, go_on, sizeof go_on - 1);
        }
    }
}

static void read_rest(struct http_conn *c)
{
    feed(c, buf_data(&c->rest), c->rest.len, true);
    if (c->phase == PHASE_GONE || c->phase == PHASE_END) {
        return;
    }
    if (c->rest.len == 0) {
        buf_free(&c->rest);
    }
    if (c->paused && c->rest.len < REST_MAX) {
        c->paused = false;
        stream_resume(c->stream);
    }
}

void conn_turn(struct http_conn *c)
{
    struct exchange *x = c->x;
    bool room = !stream_congested(c->stream);
    if (c->phase == PHASE_GONE || c->phase == PHASE_END) {
        return;
    }
    if (x != NULL && x->over) {
        settle(c);
    } else if (x != NULL && x->notify && room) {
        x->notify = false;
        if (x->req.on_drain != NULL) {
            x->req.on_drain(&x->req);
        }
    } else if (c->phase == PHASE_IDLE && c->rest.len > 0 && room) {
        read_rest(c);
    }
}

/* --- stream */

static void on_open(struct stream *stream)
{
    struct http_conn *c = stream_data(stream);
    const struct tls_peer *peer = stream_tls_peer(stream);
    if (c->server->admit != NULL && peer != NULL && !c->server->admit(c->server->arg, peer)) {
        conn_close(c, err_setf(SYM_EDENIED, "not admitted"));
    }
}

static void on_data(struct stream *stream, const uint8_t *data, size_t n)
{
    struct http_conn *c = stream_data(stream);
    bool later = (c->x != NULL && c->x->given) || c->rest.len > 0 || stream_congested(stream);
    if (c->phase == PHASE_GONE || c->phase == PHASE_END) {
        return;
    }
    if (later) {
        keep_rest(c, data, n);
    } else {
        feed(c, data, n, false);
    }
}

static void on_drain(struct stream *stream)
{
    struct http_conn *c = stream_data(stream);
    struct exchange *x = c->x;
    if (x == NULL || !x->given) {
        conn_want_turn(c);
    } else if (!x->over) {
        x->notify = false;
        if (x->req.on_drain != NULL) {
            x->req.on_drain(&x->req);
        }
    }
}

static void on_close(struct stream *stream, int status)
{
    struct http_conn *c = stream_data(stream);
    if (c == NULL) {
        return;
    }
    if (status != 0 && status != SYM_ECLOSED) {
        const struct peer_addr *from = stream_peer_addr(stream);
        log_debug("connection from %s: %s", from->is_unix ? "a unix socket" : from->host, err_msg());
    }
    struct http_server *s = c->server;
    enter(c, PHASE_GONE);
    if (c->x != NULL) {
        exchange_end(c);
    }
    TAILQ_REMOVE(&s->phases[PHASE_GONE], c, link);
    if (c->queued) {
        TAILQ_REMOVE(&s->turns, c, turn);
    }
    addr_count_drop(&s->addrs, c->addr);
    buf_free(&c->rest);
    free(c);
    server_conn_gone(s);
}

const struct stream_ops http_conn_ops = {
    .on_open = on_open,
    .on_data = on_data,
    .on_drain = on_drain,
    .on_close = on_close,
};

void conn_opened(struct http_server *s, struct stream *stream)
{
    const struct peer_addr *from = stream_peer_addr(stream);
    struct http_conn *c = calloc(1, sizeof *c);
    if (c == NULL) {
        stream_close(stream, err_setf(SYM_ENOMEM, "out of memory"));
        return;
    }
    if (!from->is_unix) {
        c->addr = addr_count_add(&s->addrs, from);
        if (c->addr == NULL) {
            free(c);
            stream_close(stream, SYM_ENOMEM);
            return;
        }
    }
    c->server = s;
    c->stream = stream;
    c->phase = PHASE_HEAD;
    c->since = uv_now(s->loop);
    TAILQ_INSERT_TAIL(&s->phases[PHASE_HEAD], c, link);
    s->alive++;
    s->stats.open++;
    s->stats.accepted++;
    stream_set_data(stream, c);
}
