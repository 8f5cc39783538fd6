/* Answers: heads put together by hand, short ones sent with their body in one piece. */
#include "net/http_impl.h"

#include "base/err.h"
#include "codec/json.h"
#include "net/http_text.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

enum {
    JOIN_MAX = 32 * 1024, /* a body up to here is copied behind its head; a longer one is not */
    HEAD_MAX = 256,       /* a head without content type and extra lines */
    SCRATCH_KEEP = 256 * 1024
};

/* Answers are built here and copied or sent before the call returns. */
static _Thread_local struct buf scratch;

static const char *reason(int status)
{
    static const struct {
        int status;
        const char *text;
    } known[] = {
        {200, "OK"},
        {201, "Created"},
        {202, "Accepted"},
        {204, "No Content"},
        {304, "Not Modified"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {408, "Request Timeout"},
        {409, "Conflict"},
        {410, "Gone"},
        {412, "Precondition Failed"},
        {413, "Content Too Large"},
        {417, "Expectation Failed"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {499, "Client Closed Request"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {502, "Bad Gateway"},
        {503, "Service Unavailable"},
        {504, "Gateway Timeout"},
        {505, "HTTP Version Not Supported"},
        {507, "Insufficient Storage"},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (known[i].status == status) {
            return known[i].text;
        }
    }
    return "Other";
}

static char *put(char *at, const char *text, size_t n)
{
    memcpy(at, text, n);
    return at + n;
}

static char *put_text(char *at, const char *text)
{
    return put(at, text, strlen(text));
}

static char *put_number(char *at, size_t v)
{
    char digits[20];
    size_t n = 0;
    do {
        digits[sizeof digits - ++n] = (char)('0' + v % 10);
        v /= 10;
    } while (v != 0);
    return put(at, digits + sizeof digits - n, n);
}

#define PUT(at, literal) put(at, literal, sizeof(literal) - 1)

enum framing { NO_BODY, LENGTH, CHUNKS, TO_THE_END };

struct head {
    int status;
    const char *ctype, *extra;
    enum framing framing;
    size_t length;
    bool close;
    bool say_keep_alive; /* HTTP/1.0 must be told */
};

/* Begins scratch with the head; there is room for @more bytes behind it. */
static int begin(const struct head *h, size_t more)
{
    const char *ctype = h->ctype != NULL ? h->ctype : "application/json";
    size_t extra_len = h->extra != NULL ? strlen(h->extra) : 0;
    buf_clear(&scratch);
    char *start = (char *)buf_reserve(&scratch, HEAD_MAX + strlen(ctype) + extra_len + more);
    if (start == NULL) {
        return SYM_ENOMEM;
    }
    char *at = start;
    if (h->status == 200) {
        at = PUT(at, "HTTP/1.1 200 OK\r\n");
    } else {
        at = PUT(at, "HTTP/1.1 ");
        at = put_number(at, (size_t)h->status);
        *at++ = ' ';
        at = put_text(at, reason(h->status));
        at = PUT(at, "\r\n");
    }
    if (h->framing != NO_BODY) {
        at = PUT(at, "Content-Type: ");
        at = put_text(at, ctype);
        at = PUT(at, "\r\n");
    }
    if (h->framing == LENGTH) {
        at = PUT(at, "Content-Length: ");
        at = put_number(at, h->length);
        at = PUT(at, "\r\n");
    } else if (h->framing == CHUNKS) {
        at = PUT(at, "Transfer-Encoding: chunked\r\n");
    }
    if (h->close) {
        at = PUT(at, "Connection: close\r\n");
    } else if (h->say_keep_alive) {
        at = PUT(at, "Connection: keep-alive\r\n");
    }
    at = put(at, h->extra != NULL ? h->extra : "", extra_len);
    at = PUT(at, "\r\n");
    buf_commit(&scratch, (size_t)(at - start));
    return 0;
}

/* Sends scratch and @data behind it, if there was room for it there, in one piece. */
static int send_scratch(struct exchange *x, const void *data, size_t n, bool joined, const char *tail)
{
    struct stream *stream = x->conn->stream;
    int rv;
    if (joined) {
        /* The room was reserved: this cannot fail. */
        (void)buf_append(&scratch, data, n);
        (void)buf_append(&scratch, tail, strlen(tail));
        rv = conn_write(x, buf_data(&scratch), scratch.len);
    } else {
        stream_cork(stream);
        rv = conn_write(x, buf_data(&scratch), scratch.len);
        rv = rv != 0 ? rv : conn_write(x, data, n);
        rv = rv != 0 ? rv : conn_write(x, tail, strlen(tail));
        stream_uncork(stream);
    }
    buf_trim(&scratch, SCRATCH_KEEP);
    return rv == 0 ? 0 : SYM_ECLOSED;
}

static void send_answer(struct exchange *x, const struct head *head, const void *body, size_t n)
{
    bool joined = n <= JOIN_MAX;
    if (begin(head, joined ? n : 0) != 0) {
        stream_close(x->conn->stream, SYM_ENOMEM);
    } else {
        (void)send_scratch(x, body, n, joined, ""); /* a peer that is gone is heard of from the stream */
    }
}

/* Whether the connection ends with it. A server that closes still answers those that are due behind it. */
static bool is_last(const struct exchange *x)
{
    return !x->parser.keep_alive || (x->conn->server->closing && TAILQ_NEXT(x, order) == NULL);
}

static void count(const struct exchange *x, int status)
{
    struct http_server *s = x->conn->server;
    struct http_class *class = &s->stats.classes[x->req.class];
    uint64_t now = http_clock(s);
    if (now == x->began) {
        /* Answered at once, or the clock is still the one of its beginning: how long it took would not be seen. */
        s->clock_uses = 0;
        now = http_clock(s);
    }
    class->answers[status / 100]++;
    histogram_add(&class->durations, now - x->began);
}

void http_respond(
    struct http_req *req, int status, const char *ctype, const char *extra, const void *body, size_t n)
{
    struct exchange *x = exchange_of(req);
    assert(!x->answered);
    assert(status >= 200 && status <= 599);
    x->answered = true;
    count(x, status);
    x->close = is_last(x);
    bool no_body = status == 204 || status == 304;
    struct head head = {
        .status = status,
        .ctype = ctype,
        .extra = extra,
        .framing = no_body ? NO_BODY : LENGTH,
        .length = n,
        .close = x->close,
        .say_keep_alive = x->parser.http10,
    };
    send_answer(x, &head, body, no_body || x->parser.is_head ? 0 : n);
    conn_over(x);
}

static int put_error(struct buf *out, const char *code, const char *message, const char *hint)
{
    const char *texts[] = {code, message, hint};
    static const char *const names[] = {"{\"error\":{\"code\":", ",\"message\":", ",\"hint\":"};
    for (int i = 0; i < 3 && texts[i] != NULL; i++) {
        const uint8_t *text = (const uint8_t *)texts[i];
        size_t n = strlen(texts[i]);
        if (!utf8_valid(text, n)) {
            text = (const uint8_t *)"(not text)";
            n = 10;
        }
        if (buf_append(out, names[i], strlen(names[i])) != 0 || json_string(out, text, n) != 0) {
            return SYM_ENOMEM;
        }
    }
    return buf_append(out, "}}\n", 3);
}

void http_respond_error(struct http_req *req, int code, const char *message, const char *hint)
{
    static const char last_resort[] =
        "{\"error\":{\"code\":\"out_of_memory\",\"message\":\"out of memory\"}}\n";
    struct buf body = {0};
    if (put_error(&body, err_name(code), message != NULL ? message : err_name(code), hint) == 0) {
        http_respond(req, err_http_status(code), NULL, NULL, buf_data(&body), body.len);
    } else {
        http_respond(req, 500, NULL, NULL, last_resort, sizeof last_resort - 1);
    }
    buf_free(&body);
}

void http_answer_error(struct exchange *x, int status, int code, const char *message)
{
    struct buf body = {0};
    bool whole = put_error(&body, err_name(code), message, NULL) == 0;
    struct head head = {.status = status, .framing = LENGTH, .length = whole ? body.len : 0, .close = true};
    send_answer(x, &head, whole ? buf_data(&body) : NULL, head.length);
    buf_free(&body);
}

void http_stream_start(struct http_req *req, int status, const char *ctype)
{
    struct exchange *x = exchange_of(req);
    assert(!x->answered);
    assert(status >= 200 && status <= 599 && status != 204 && status != 304);
    x->answered = x->streamed = true;
    count(x, status);
    x->chunked = !x->parser.http10;
    /* HTTP/1.0 has no chunks: the end of the connection is the end of the answer. */
    x->close = is_last(x) || !x->chunked;
    struct head head = {
        .status = status,
        .ctype = ctype,
        .framing = x->chunked ? CHUNKS : TO_THE_END,
        .close = x->close,
    };
    send_answer(x, &head, NULL, 0);
}

int http_stream_write(struct http_req *req, const void *data, size_t n)
{
    struct exchange *x = exchange_of(req);
    assert(x->answered && !x->over);
    if (n > 0 && !x->parser.is_head) {
        bool joined = n <= JOIN_MAX;
        buf_clear(&scratch);
        char *at = (char *)buf_reserve(&scratch, 32 + (joined ? n : 0));
        if (at == NULL) {
            stream_close(x->conn->stream, SYM_ENOMEM);
            return SYM_ECLOSED;
        }
        if (x->chunked) {
            buf_commit(&scratch, (size_t)snprintf(at, 24, "%zx\r\n", n));
        }
        if (send_scratch(x, data, n, joined, x->chunked ? "\r\n" : "") != 0) {
            return SYM_ECLOSED;
        }
    }
    if (!conn_congested(x)) {
        return 0;
    }
    x->notify = true; /* also if all that it waits for is its turn */
    return SYM_EBUSY;
}

void http_stream_end(struct http_req *req)
{
    struct exchange *x = exchange_of(req);
    assert(x->answered && !x->over);
    if (x->chunked && !x->parser.is_head) {
        (void)conn_write(x, "0\r\n\r\n", 5);
    }
    conn_over(x);
}

void http_stream_notify(struct http_req *req)
{
    struct exchange *x = exchange_of(req);
    x->notify = true;
    if (!conn_congested(x)) {
        conn_want_turn(x->conn);
    }
}

void http_abort(struct http_req *req)
{
    struct exchange *x = exchange_of(req);
    if (!x->over) {
        x->conn->server->stats.classes[x->req.class].answers[0] += !x->answered;
        x->answered = true;
        conn_close(x->conn, err_setf(SYM_ECANCELED, "the answer was cut"));
    }
}

const char *http_req_header(const struct http_req *req, const char *name)
{
    return http_parser_header(&((const struct exchange *)req)->parser, name);
}

int http_req_param(const struct http_req *req, const char *name, char *out, size_t size)
{
    return http_query_param(req->query, name, out, size);
}
