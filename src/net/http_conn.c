/* One connection of the server: requests in, and answers out in the same order. */
#include "net/http_impl.h"

#include "base/err.h"
#include "base/log.h"

#include <stdlib.h>
#include <string.h>

enum {
    DUE_MAX = 64,           /* requests of one connection that are served at once */
    TURN_MAX = 16,          /* requests of one connection that are read before the others have their turn */
    REST_MAX = 16 * 1024,   /* read ahead while a request is served: so that a peer's end is seen */
    FINISH_MS = 300 * 1000, /* for a last answer; one that stands still is cut much earlier */
    LINGER_MS = 2000,
    POOL_MAX = 1024,
    KEEP_KEPT = 1024 /* bytes of room for an answer that stay with an exchange for the next */
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
    x->continued = x->given = x->answered = x->streamed = x->chunked = false;
    x->over = x->close = x->linger = x->notify = false;
    const struct http_limits *l = &s->limits;
    if (conn_is_trusted(c)) {
        http_parser_begin(&x->parser, l->max_head, l->max_body, &s->held, l->max_memory);
    } else {
        http_parser_begin(&x->parser, l->max_head, l->max_small_body, &s->small, l->max_small_memory);
    }
    return x;
}

void exchange_free(struct exchange *x)
{
    buf_free(&x->kept);
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

/* What was kept of its answer has gone. */
static void let_go(struct exchange *x)
{
    x->conn->kept -= x->kept.len;
    buf_trim(&x->kept, KEEP_KEPT);
}

/* The last that the handler hears of it. */
static void exchange_end(struct exchange *x)
{
    if (x->given && !x->answered) {
        x->conn->server->stats.classes[x->req.class].answers[0]++;
    }
    if (x->given && x->req.on_gone != NULL) {
        x->req.on_gone(&x->req);
    }
    let_go(x);
    exchange_put(x->conn->server, x);
}

/* What was read becomes due to be answered. */
static void add_due(struct http_conn *c)
{
    TAILQ_INSERT_TAIL(&c->due, c->x, order);
    c->n_due++;
    c->x = NULL;
}

static struct exchange *take_due(struct http_conn *c)
{
    struct exchange *x = TAILQ_FIRST(&c->due);
    TAILQ_REMOVE(&c->due, x, order);
    c->n_due--;
    return x;
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

static bool is_over(const struct http_conn *c)
{
    return c->phase == PHASE_END || c->phase == PHASE_GONE;
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
    if (!is_over(c)) {
        enter(c, PHASE_END);
        stream_finish(c->stream, FINISH_MS);
    }
}

void conn_want_turn(struct http_conn *c)
{
    if (!c->queued) {
        c->queued = true;
        TAILQ_INSERT_TAIL(&c->server->turns, c, turn);
    }
}

/* --- answers */

int conn_write(struct exchange *x, const void *data, size_t n)
{
    struct http_conn *c = x->conn;
    /* Where more answers are due they go out together, in the connection's turn. */
    if (TAILQ_FIRST(&c->due) == x && x->kept.len == 0 && (c->n_due == 1 || x->streamed)) {
        return stream_write(c->stream, data, n);
    }
    int rv = buf_append(&x->kept, data, n);
    if (rv != 0) {
        conn_close(c, rv);
        return rv;
    }
    c->kept += n;
    return 0;
}

bool conn_congested(const struct exchange *x)
{
    return TAILQ_FIRST(&x->conn->due) != x || stream_congested(x->conn->stream);
}

void conn_over(struct exchange *x)
{
    x->over = true;
    if (!x->conn->in_handler) {
        conn_want_turn(x->conn);
    }
}

size_t conn_holds(const struct http_conn *c)
{
    return stream_queued(c->stream) + c->rest.len + c->kept;
}

void conn_fail(struct http_conn *c, int status, const char *why)
{
    struct exchange *x = c->x;
    int code = status == 413 || status == 431 ? SYM_ETOOBIG
               : status == 408                ? SYM_ETIMEOUT
               : status == 503                ? SYM_EBUSY
                                              : SYM_EINVAL;
    if (is_over(c)) {
        return;
    }
    c->server->stats.malformed++;
    http_parser_drop_body(&x->parser);
    add_due(c);
    c->last = true;
    enter(c, PHASE_BUSY);
    x->answered = x->close = x->linger = true;
    http_answer_error(x, status, code, why);
    conn_over(x);
}

/* Tells the peer to send the body that it holds back. */
static void tell_to_go_on(struct http_conn *c)
{
    static const char go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";
    const struct http_parser *p = &c->x->parser;
    if (p->wants_continue && p->body.len == 0 && !c->x->continued) {
        c->x->continued = true;
        (void)stream_write(c->stream, go_on, sizeof go_on - 1);
    }
}

/* The request that has been read so far, if any, is all there is now. */
static void await_rest(struct http_conn *c)
{
    if (c->x == NULL) {
        enter(c, PHASE_IDLE);
    } else if (c->x->parser.state == HTTP_IN_HEAD) {
        enter(c, PHASE_HEAD);
    } else {
        enter(c, PHASE_BODY);
        tell_to_go_on(c);
    }
}

/* The first that is due is over: back to reading, or to the end. */
static void settle(struct http_conn *c)
{
    struct exchange *x = take_due(c);
    bool end = x->close || (c->server->closing && c->n_due == 0);
    bool linger = x->linger;
    exchange_end(x);
    if (c->phase != PHASE_BUSY) {
        return;
    }
    if (end && linger) {
        enter(c, PHASE_END);
        stream_linger(c->stream, LINGER_MS);
    } else if (end) {
        conn_finish(c);
    } else if (c->n_due == 0) {
        await_rest(c);
    }
}

/* Sends what was kept of the answers whose turn it is, and settles those that are over. */
static void answer(struct http_conn *c)
{
    struct exchange *x;
    stream_cork(c->stream);
    while (c->phase == PHASE_BUSY && (x = TAILQ_FIRST(&c->due)) != NULL) {
        if (x->kept.len > 0) {
            (void)stream_write(c->stream, buf_data(&x->kept), x->kept.len);
            let_go(x);
        }
        if (!x->over) {
            break;
        }
        settle(c);
    }
    stream_uncork(c->stream);
}

/* --- requests */

/* Requests of the same kind may be served side by side. */
enum kind { ALONE, READS, WRITES };

static enum kind kind_of(const char *method)
{
    if (strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0) {
        return READS;
    }
    return strcmp(method, "PUT") == 0 || strcmp(method, "DELETE") == 0 ? WRITES : ALONE;
}

struct http_req *http_req_before(const struct http_req *req)
{
    struct exchange *x = exchange_of(req);
    do {
        x = TAILQ_PREV(x, exchanges, order);
    } while (x != NULL && x->over);
    return x != NULL ? &x->req : NULL;
}

static bool is_whole(const struct exchange *x)
{
    return x != NULL && x->parser.state == HTTP_WHOLE;
}

/* Whether what comes may be parsed already. */
static bool may_read(const struct http_conn *c)
{
    const struct exchange *before = TAILQ_LAST(&c->due, exchanges);
    return !is_over(c) && !c->last && !c->server->closing && !is_whole(c->x) &&
           !stream_congested(c->stream) && (before == NULL || (before->req.overlap && c->n_due < DUE_MAX));
}

/* Whether the handler may have the request that has been read. */
static bool may_serve(const struct http_conn *c)
{
    const struct exchange *before = TAILQ_LAST(&c->due, exchanges);
    enum kind kind = kind_of(c->x->parser.method);
    return before == NULL || (before->req.overlap && kind != ALONE && kind == kind_of(before->req.method));
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
    add_due(c);
    c->last = !x->parser.keep_alive;
    if (c->phase != PHASE_BUSY) {
        enter(c, PHASE_BUSY);
    }
    s->stats.requests++;
    x->began = http_clock(s);
    x->given = true;
    c->in_handler = true;
    s->handler(req, s->arg);
    c->in_handler = false;
    if (!x->answered && req->on_gone == NULL) {
        http_respond_error(req, SYM_EIO, "the request was not answered", NULL);
    }
    /* Also one before it may have been completed by its handler. */
    struct exchange *first = TAILQ_FIRST(&c->due);
    if (first != NULL && first->over) {
        answer(c);
        first = TAILQ_FIRST(&c->due);
        if (first != NULL && (first->notify || first->req.on_first != NULL)) {
            conn_want_turn(c);
        }
    }
}

/* Parses @data up to the end of one request, and serves that if it may be. Returns what was taken. */
static size_t read_some(struct http_conn *c, const uint8_t *data, size_t n)
{
    size_t used = 0;
    if (c->x == NULL) {
        c->x = exchange_get(c);
        if (c->x == NULL) {
            conn_close(c, SYM_ENOMEM);
            return n;
        }
        if (c->phase == PHASE_IDLE) {
            enter(c, PHASE_HEAD);
        }
    }
    struct http_parser *p = &c->x->parser;
    if (p->held == &c->server->small) {
        server_make_room(c->server, c, n);
    }
    enum http_parsed rv = http_parse(p, data, n, &used);
    if (rv == HTTP_PARSE_BAD) {
        bool small = p->status == 413 && p->held == &c->server->small;
        conn_fail(
            c, p->status, small ? "the body is too large without a certificate that allows it" : err_msg());
    } else if (rv == HTTP_PARSE_REQUEST) {
        if (may_serve(c)) {
            serve(c);
        }
    } else if (c->phase == PHASE_HEAD && p->state != HTTP_IN_HEAD) {
        await_rest(c);
    }
    return used;
}

/* Reads what may be read now; returns what was taken. */
static size_t read_all(struct http_conn *c, const uint8_t *data, size_t n)
{
    size_t used = read_some(c, data, n);
    stream_cork(c->stream); /* answers that come at once go out together */
    for (unsigned i = 1; i < TURN_MAX && used < n && may_read(c); i++) {
        used += read_some(c, data + used, n - used);
    }
    stream_uncork(c->stream);
    return used;
}

/* Keeps what may not be parsed yet. */
static void keep_rest(struct http_conn *c, const uint8_t *data, size_t n)
{
    if (buf_append(&c->rest, data, n) != 0) {
        conn_close(c, SYM_ENOMEM);
    } else if (c->rest.len >= REST_MAX && !c->paused) {
        c->paused = true;
        stream_pause(c->stream);
    }
}

static void read_rest(struct http_conn *c)
{
    if (is_whole(c->x) && may_serve(c)) {
        serve(c);
    }
    if (c->rest.len > 0 && may_read(c)) {
        buf_consume(&c->rest, read_all(c, buf_data(&c->rest), c->rest.len));
    }
    if (is_over(c)) {
        return;
    }
    if (c->rest.len == 0) {
        buf_free(&c->rest);
    } else if (may_read(c)) {
        conn_want_turn(c);
    }
    if (c->paused && c->rest.len < REST_MAX) {
        c->paused = false;
        stream_resume(c->stream);
    }
}

/* Tells the first that is due that it is. */
static void tell_first(struct http_conn *c)
{
    struct exchange *x = TAILQ_FIRST(&c->due);
    if (c->phase == PHASE_BUSY && x != NULL && x->req.on_first != NULL) {
        void (*fn)(struct http_req *) = x->req.on_first;
        x->req.on_first = NULL;
        fn(&x->req);
    }
}

void conn_turn(struct http_conn *c)
{
    if (is_over(c)) {
        return;
    }
    answer(c);
    tell_first(c);
    struct exchange *x = TAILQ_FIRST(&c->due);
    if (is_over(c) || stream_congested(c->stream)) {
        return;
    }
    if (x != NULL && x->notify) {
        x->notify = false;
        if (x->req.on_drain != NULL) {
            x->req.on_drain(&x->req);
        }
    } else if (c->rest.len > 0 || is_whole(c->x)) {
        read_rest(c);
    }
}

/* --- stream */

static void on_open(struct stream *stream)
{
    struct http_conn *c = stream_data(stream);
    struct http_server *s = c->server;
    const struct tls_peer *peer = stream_tls_peer(stream);
    c->opened = true;
    c->trusted = peer != NULL && peer->present && (s->trust == NULL || s->trust(s->arg, peer));
    stream_forget_chain(stream);
}

bool conn_is_trusted(const struct http_conn *c)
{
    return !c->tls || (c->trusted && !tls_peer_expired(stream_tls_peer(c->stream)));
}

static void on_data(struct stream *stream, const uint8_t *data, size_t n)
{
    struct http_conn *c = stream_data(stream);
    size_t used = c->rest.len == 0 && may_read(c) ? read_all(c, data, n) : 0;
    if (used < n && !is_over(c)) {
        keep_rest(c, data + used, n - used);
        if (may_read(c)) {
            conn_want_turn(c);
        }
    }
}

static void on_drain(struct stream *stream)
{
    struct http_conn *c = stream_data(stream);
    struct exchange *x = TAILQ_FIRST(&c->due);
    if (x == NULL || x->over) {
        conn_want_turn(c);
        return;
    }
    x->notify = false;
    if (x->req.on_drain != NULL) {
        x->req.on_drain(&x->req);
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
    s->stats.no_handshake += c->tls && !c->opened && !s->closing;
    enter(c, PHASE_GONE);
    while (!TAILQ_EMPTY(&c->due)) {
        exchange_end(take_due(c));
    }
    if (c->x != NULL) {
        exchange_end(c->x);
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

void conn_opened(struct http_server *s, struct stream *stream, bool tls)
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
    c->tls = tls;
    TAILQ_INIT(&c->due);
    c->phase = PHASE_HEAD;
    c->since = c->stuck_since = uv_now(s->loop);
    TAILQ_INSERT_TAIL(&s->phases[PHASE_HEAD], c, link);
    s->alive++;
    s->stats.open++;
    s->stats.accepted++;
    stream_set_data(stream, c);
}
