/* One HTTP/1.1 request from bytes, without I/O: llhttp with what is stricter or bounded here.
 *
 * The head is collected as it came and then parsed in place, so that its strings point into one buffer.
 * Refused beyond what llhttp refuses: lines that do not end in CRLF, folded lines, white space before a
 * colon, more than one Host or none, any Transfer-Encoding but "chunked", HTTP/0.9, CONNECT, a NUL in the
 * path.
 */
#ifndef SYM_NET_HTTP_PARSE_H
#define SYM_NET_HTTP_PARSE_H

#include "base/buf.h"

#include <llhttp.h>
#include <stdbool.h>

enum { HTTP_HEADERS_MAX = 100 };

enum http_parsed {
    HTTP_PARSE_MORE,    /* took everything, wants more */
    HTTP_PARSE_REQUEST, /* a request is whole; *used says where the next begins */
    HTTP_PARSE_BAD      /* answer with p->status and err_msg(), then close */
};

struct http_parser {
    llhttp_t engine;
    size_t max_head, max_body;
    size_t *held; /* sum of bodies held in memory by all parsers that share it, */
    size_t max_held;
    enum { HTTP_IN_HEAD, HTTP_IN_BODY, HTTP_IN_CHUNKS, HTTP_WHOLE } state;
    struct buf head, body;
    size_t line;    /* bytes of the line under way */
    unsigned lines; /* before it, blank ones in front of the request not counted */
    unsigned blank;
    uint8_t last;              /* byte before */
    uint64_t left;             /* of the Content-Length */
    uint64_t wire;             /* bytes of chunks with their framing */
    size_t target, target_len; /* offset in head */
    unsigned n_headers, max_headers;
    struct http_field {
        uint32_t name, name_len, value, value_len; /* offsets in head */
    } * headers;                                   /* of max_headers, as many as have been needed */
    int status;                                    /* of HTTP_PARSE_BAD */
    /* Valid from the end of the head (state is past HTTP_IN_HEAD). */
    const char *method, *path, *query;
    size_t path_len;
    bool keep_alive, http10, is_head, wants_continue;
};

/* @held may be NULL. The buffers of a parser that is begun again are kept. */
void http_parser_begin(
    struct http_parser *p, size_t max_head, size_t max_body, size_t *held, size_t max_held);
/* Gives up what it holds beyond a small head buffer and room for a few headers. */
void http_parser_end(struct http_parser *p);
/* The body alone: the request will not be served. */
void http_parser_drop_body(struct http_parser *p);
void http_parser_free(struct http_parser *p);

enum http_parsed http_parse(struct http_parser *p, const uint8_t *data, size_t n, size_t *used);

const char *http_parser_header(const struct http_parser *p, const char *name);

#endif
