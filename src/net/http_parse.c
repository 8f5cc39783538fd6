#include "net/http_parse.h"

#include "base/err.h"
#include "net/http_text.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum {
    BLANK_MAX = 4,    /* empty lines before a request that are overlooked */
    KEEP_HEAD = 4096, /* kept from one request to the next */
    KEEP_BODY = 8192,
    FEW_HEADERS = 8,         /* room for so many is made first, */
    KEEP_HEADERS = 32,       /* and for so many is kept */
    RESERVE_MAX = 64 * 1024, /* of a body on the word of its Content-Length, */
    RESERVE_TIMES = 4        /* and so many times what has come of it */
};

static enum http_parsed bad(struct http_parser *p, int status, const char *why)
{
    p->status = status;
    err_setf(SYM_EINVAL, "%s", why);
    return HTTP_PARSE_BAD;
}

/* --- llhttp's callbacks */

static int on_url(llhttp_t *engine, const char *at, size_t n)
{
    struct http_parser *p = engine->data;
    p->target = (size_t)(at - (const char *)buf_data(&p->head));
    p->target_len = n;
    return 0;
}

/* Room for one more header. A hundred for every request would be most of what a long answer holds. */
static int more_headers(struct http_parser *p)
{
    unsigned max = p->max_headers == 0 ? FEW_HEADERS : 2 * p->max_headers;
    struct http_field *headers = realloc(p->headers, max * sizeof *headers);
    if (headers == NULL) {
        p->status = 503;
        err_setf(SYM_ENOMEM, "no memory for the headers");
        return HPE_USER;
    }
    p->headers = headers;
    p->max_headers = max;
    return 0;
}

static int on_field(llhttp_t *engine, const char *at, size_t n)
{
    struct http_parser *p = engine->data;
    if (p->state != HTTP_IN_HEAD) {
        return 0; /* a trailer: bounded with the chunks, and of no use to anybody */
    }
    if (p->n_headers == HTTP_HEADERS_MAX) {
        p->status = 431;
        return HPE_USER;
    }
    if (p->n_headers == p->max_headers && more_headers(p) != 0) {
        return HPE_USER;
    }
    p->headers[p->n_headers].name = (uint32_t)(at - (const char *)buf_data(&p->head));
    p->headers[p->n_headers].name_len = (uint32_t)n;
    p->headers[p->n_headers].value_len = 0;
    return 0;
}

static int on_value(llhttp_t *engine, const char *at, size_t n)
{
    struct http_parser *p = engine->data;
    if (p->state == HTTP_IN_HEAD) {
        p->headers[p->n_headers].value = (uint32_t)(at - (const char *)buf_data(&p->head));
        p->headers[p->n_headers].value_len = (uint32_t)n;
    }
    return 0;
}

static int on_value_end(llhttp_t *engine)
{
    struct http_parser *p = engine->data;
    if (p->state == HTTP_IN_HEAD) {
        p->n_headers++;
    }
    return 0;
}

static int on_head_end(llhttp_t *engine)
{
    engine->upgrade = 0; /* there is nothing to upgrade to: it stays HTTP/1.1 */
    return HPE_PAUSED;
}

static int on_body(llhttp_t *engine, const char *at, size_t n);
static int on_chunk_header(llhttp_t *engine);

static int on_message_end(llhttp_t *engine)
{
    (void)engine;
    return HPE_PAUSED;
}

static const llhttp_settings_t settings = {
    .on_url = on_url,
    .on_header_field = on_field,
    .on_header_value = on_value,
    .on_header_value_complete = on_value_end,
    .on_headers_complete = on_head_end,
    .on_body = on_body,
    .on_chunk_header = on_chunk_header,
    .on_message_complete = on_message_end,
};

/* --- life */

void http_parser_begin(struct http_parser *p, size_t max_head, size_t max_body, size_t *held, size_t max_held)
{
    llhttp_init(&p->engine, HTTP_REQUEST, &settings);
    p->engine.data = p;
    p->max_head = max_head;
    p->max_body = max_body;
    p->held = held;
    p->max_held = max_held;
    p->state = HTTP_IN_HEAD;
    p->line = p->lines = p->blank = 0;
    p->last = 0;
    p->left = p->wire = 0;
    p->n_headers = 0;
    p->status = 0;
    p->wants_continue = false;
}

void http_parser_drop_body(struct http_parser *p)
{
    if (p->held != NULL) {
        *p->held -= p->body.len;
    }
    buf_trim(&p->body, KEEP_BODY);
}

void http_parser_end(struct http_parser *p)
{
    http_parser_drop_body(p);
    buf_trim(&p->head, KEEP_HEAD);
    if (p->max_headers > KEEP_HEADERS) {
        free(p->headers);
        p->headers = NULL;
        p->max_headers = 0;
    }
}

void http_parser_free(struct http_parser *p)
{
    http_parser_end(p);
    buf_free(&p->head);
    buf_free(&p->body);
    free(p->headers);
    p->headers = NULL;
    p->max_headers = 0;
}

/* --- head */

/* Looks for the end of the head in what is new. *end is 0 while it is not there. */
static enum http_parsed scan_lines(struct http_parser *p, const uint8_t *data, size_t n, size_t *end)
{
    *end = 0;
    for (size_t at = 0; at < n;) {
        uint8_t first = data[at];
        if (p->line == 0 && (first == ' ' || first == '\t')) {
            return bad(p, 400, "a line begins with white space");
        }
        if (p->line == 0 && p->lines == 0 && (first < 'A' || first > 'Z') && first != '\r' && first != '\n') {
            return bad(p, 400, "this is not HTTP");
        }
        const uint8_t *lf = memchr(data + at, '\n', n - at);
        size_t len = lf != NULL ? (size_t)(lf - data) + 1 - at : n - at;
        if (lf == NULL) {
            p->last = data[n - 1];
            p->line += len;
            return HTTP_PARSE_MORE;
        }
        if (len >= 2 ? lf[-1] != '\r' : p->line == 0 || p->last != '\r') {
            return bad(p, 400, "a line does not end in CRLF");
        }
        at += len;
        if (p->line + len > 2) {
            p->lines++;
        } else if (p->lines > 0) {
            *end = at;
            return HTTP_PARSE_MORE;
        } else if (++p->blank > BLANK_MAX) {
            return bad(p, 400, "empty lines before the request");
        }
        p->line = 0;
    }
    return HTTP_PARSE_MORE;
}

static enum http_parsed engine_error(struct http_parser *p)
{
    switch (llhttp_get_errno(&p->engine)) {
    case HPE_USER:
    case HPE_CB_CHUNK_HEADER:
        return bad(p, p->status, p->status == 431 ? "too many headers" : err_msg());
    case HPE_INVALID_METHOD:
        return bad(p, 501, "no such method");
    case HPE_INVALID_VERSION:
    case HPE_PAUSED_H2_UPGRADE:
        return bad(p, 505, "this server speaks HTTP/1.1");
    default:
        return bad(p, 400, llhttp_get_error_reason(&p->engine));
    }
}

/* Splits the target into path and query, in place. The byte behind it is a space, so there is room for a NUL.
 */
static enum http_parsed take_target(struct http_parser *p)
{
    char *at = (char *)buf_data(&p->head) + p->target;
    char *end = at + p->target_len;
    if (strncmp(end, " HTTP/", 6) != 0) {
        return bad(p, 505, "this server speaks HTTP/1.1"); /* llhttp knows RTSP and ICE, too */
    }
    *end = '\0';
    if (*at != '/' && strcmp(at, "*") != 0) {
        /* The absolute form, meant for a proxy: what stands before the path does not matter here. */
        size_t scheme = strncasecmp(at, "http://", 7) == 0 ? 7 : strncasecmp(at, "https://", 8) == 0 ? 8 : 0;
        at += scheme + strcspn(at + scheme, "/?#");
        if (scheme == 0 || *at != '/') {
            return bad(p, 400, "the request target is not a path");
        }
    }
    if (memchr(at, '#', (size_t)(end - at)) != NULL) {
        return bad(p, 400, "the request target has a fragment");
    }
    char *mark = strchr(at, '?');
    p->query = mark != NULL ? mark + 1 : end;
    size_t encoded = (size_t)((mark != NULL ? mark : end) - at);
    ssize_t len = http_percent_decode(at, encoded, at, encoded);
    if (len < 0) {
        return bad(p, 400, "the path is not properly percent-encoded");
    }
    at[len] = '\0';
    p->path = at;
    p->path_len = (size_t)len;
    return HTTP_PARSE_MORE;
}

/* Ends the strings in place: behind a name stands a colon, behind a value white space or CR. */
static enum http_parsed take_headers(struct http_parser *p)
{
    char *head = (char *)buf_data(&p->head);
    unsigned hosts = 0, codings = 0;
    for (unsigned i = 0; i < p->n_headers; i++) {
        char *name = head + p->headers[i].name;
        if (name[p->headers[i].name_len] != ':' || p->headers[i].name_len == 0) {
            return bad(p, 400, "a header name is followed by something else than a colon");
        }
        for (uint32_t j = 0; j < p->headers[i].name_len; j++) {
            if (name[j] >= 'A' && name[j] <= 'Z') {
                name[j] |= 32;
            } else if (name[j] == ' ' || name[j] == '\t') {
                return bad(p, 400, "white space in a header name");
            }
        }
        name[p->headers[i].name_len] = '\0';
        uint32_t len = p->headers[i].value_len;
        if (len == 0) {
            p->headers[i].value = p->headers[i].name + p->headers[i].name_len; /* that NUL */
        }
        char *value = head + p->headers[i].value;
        while (len > 0 && (value[len - 1] == ' ' || value[len - 1] == '\t')) {
            len--;
        }
        value[len] = '\0';
        if (strcmp(name, "host") == 0) {
            hosts++;
        } else if (strcmp(name, "transfer-encoding") == 0 &&
                   (strcasecmp(value, "chunked") != 0 || ++codings > 1)) {
            return bad(p, 501, "the only Transfer-Encoding here is chunked");
        }
    }
    if (hosts > 1 || (hosts == 0 && !p->http10)) {
        return bad(p, 400, "a request has one Host header");
    }
    if (codings > 0 && p->http10) {
        return bad(p, 400, "HTTP/1.0 has no Transfer-Encoding");
    }
    return HTTP_PARSE_MORE;
}

static enum http_parsed end_head(struct http_parser *p)
{
    llhttp_t *engine = &p->engine;
    const char *head = (const char *)buf_data(&p->head);
    size_t n = p->head.len;
    if (llhttp_execute(engine, head, n) != HPE_PAUSED) {
        return llhttp_get_errno(engine) == HPE_OK ? bad(p, 400, "the head has no end") : engine_error(p);
    }
    uint8_t method = llhttp_get_method(engine);
    if (llhttp_get_error_pos(engine) != head + n) {
        return bad(p, 400, "the head has two ends");
    }
    if (llhttp_get_http_major(engine) != 1 || llhttp_get_http_minor(engine) > 1) {
        return bad(p, 505, "this server speaks HTTP/1.1");
    }
    if (method == HTTP_CONNECT || method > HTTP_SOURCE) {
        return bad(p, 501, "no such method");
    }
    p->method = llhttp_method_name((llhttp_method_t)method);
    p->is_head = method == HTTP_HEAD;
    p->http10 = llhttp_get_http_minor(engine) == 0;
    p->keep_alive = llhttp_should_keep_alive(engine) != 0;
    if (take_target(p) == HTTP_PARSE_BAD || take_headers(p) == HTTP_PARSE_BAD) {
        return HTTP_PARSE_BAD;
    }
    if ((engine->flags & F_CHUNKED) != 0) {
        p->state = HTTP_IN_CHUNKS;
        llhttp_resume(engine);
    } else {
        p->left = (engine->flags & F_CONTENT_LENGTH) != 0 ? engine->content_length : 0;
        p->state = p->left > 0 ? HTTP_IN_BODY : HTTP_WHOLE;
        if (p->left > p->max_body) {
            return bad(p, 413, "the body is too large");
        }
    }
    const char *expect = http_parser_header(p, "expect");
    if (expect != NULL && !p->http10) {
        if (strcasecmp(expect, "100-continue") != 0) {
            return bad(p, 417, "the only Expect here is 100-continue");
        }
        p->wants_continue = p->state != HTTP_WHOLE;
    }
    return HTTP_PARSE_MORE;
}

/* --- body */

static int add_body(struct http_parser *p, const void *data, size_t n)
{
    if (n > p->max_body - p->body.len) {
        p->status = 413;
        return err_setf(SYM_ETOOBIG, "the body is too large");
    }
    if (p->held != NULL && n > p->max_held - *p->held) {
        p->status = 503;
        return err_setf(SYM_EBUSY, "too many requests are under way");
    }
    if (buf_append(&p->body, data, n) != 0) {
        p->status = 503;
        return SYM_ENOMEM;
    }
    if (p->held != NULL) {
        *p->held += n;
    }
    return 0;
}

static int on_body(llhttp_t *engine, const char *at, size_t n)
{
    return add_body(engine->data, at, n) == 0 ? 0 : HPE_USER;
}

/* A chunk that would be too much is refused when it is announced, not when it has come. */
static int on_chunk_header(llhttp_t *engine)
{
    struct http_parser *p = engine->data;
    if (engine->content_length <= p->max_body - p->body.len) {
        return 0;
    }
    p->status = 413;
    err_setf(SYM_ETOOBIG, "the body is too large");
    return HPE_USER;
}

static enum http_parsed take_length(struct http_parser *p, const uint8_t *data, size_t n, size_t *used)
{
    size_t take = n < p->left ? n : (size_t)p->left;
    size_t whole = p->left < RESERVE_MAX ? (size_t)p->left : RESERVE_MAX;
    whole = whole < RESERVE_TIMES * take ? whole : RESERVE_TIMES * take;
    if (p->body.len == 0 && take < whole && buf_reserve(&p->body, whole) == NULL) {
        return bad(p, 503, err_msg());
    }
    if (add_body(p, data, take) != 0) {
        return HTTP_PARSE_BAD;
    }
    p->left -= take;
    *used += take;
    if (p->left == 0) {
        p->state = HTTP_WHOLE;
    }
    return HTTP_PARSE_MORE;
}

static enum http_parsed take_chunks(struct http_parser *p, const uint8_t *data, size_t n, size_t *used)
{
    /* Chunk extensions and trailers may not be used to send without end. */
    uint64_t room = 2 * (uint64_t)p->max_body + p->max_head - p->wire;
    size_t take = n < room ? n : (size_t)room;
    llhttp_errno_t rv = llhttp_execute(&p->engine, (const char *)data, take);
    if (rv == HPE_PAUSED) {
        take = (size_t)(llhttp_get_error_pos(&p->engine) - (const char *)data);
        p->state = HTTP_WHOLE;
    } else if (rv != HPE_OK) {
        return engine_error(p);
    } else if (take < n) {
        return bad(p, 413, "the framing of the body is too large");
    }
    p->wire += take;
    *used += take;
    return HTTP_PARSE_MORE;
}

enum http_parsed http_parse(struct http_parser *p, const uint8_t *data, size_t n, size_t *used)
{
    enum http_parsed rv = HTTP_PARSE_MORE;
    *used = 0;
    if (p->state == HTTP_IN_HEAD) {
        size_t end, room = p->max_head - p->head.len;
        rv = scan_lines(p, data, n < room ? n : room, &end);
        size_t take = end != 0 ? end : n;
        if (rv == HTTP_PARSE_BAD) {
            return rv;
        }
        if (take > room) {
            return bad(p, 431, "the head of the request is too large");
        }
        if (buf_append(&p->head, data, take) != 0) {
            return bad(p, 503, err_msg());
        }
        *used = take;
        rv = end != 0 ? end_head(p) : rv;
    }
    if (rv == HTTP_PARSE_MORE && *used < n && p->state == HTTP_IN_BODY) {
        rv = take_length(p, data + *used, n - *used, used);
    } else if (rv == HTTP_PARSE_MORE && *used < n && p->state == HTTP_IN_CHUNKS) {
        rv = take_chunks(p, data + *used, n - *used, used);
    }
    return rv == HTTP_PARSE_MORE && p->state == HTTP_WHOLE ? HTTP_PARSE_REQUEST : rv;
}

/* --- reading it */

const char *http_parser_header(const struct http_parser *p, const char *name)
{
    const char *head = (const char *)buf_data(&p->head);
    size_t n = strlen(name);
    for (unsigned i = 0; i < p->n_headers; i++) {
        if (p->headers[i].name_len == n && memcmp(head + p->headers[i].name, name, n) == 0) {
            return head + p->headers[i].value;
        }
    }
    return NULL;
}
