/* The server's request parser: a stream of pipelined requests, in one piece and cut into pieces, gives the
 * same requests and the same refusal; limits hold; what a request says is text within its own buffers.
 *
 * The first two bytes choose the size of the pieces.
 */
#include "base/err.h"
#include "net/http_parse.h"
#include "net/http_text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_HEAD = 512, MAX_BODY = 256, MAX_HELD = 300 };

static void must(int ok)
{
    if (!ok) {
        abort();
    }
}

static void look_at(const struct http_parser *p, struct buf *out)
{
    must(p->head.len <= MAX_HEAD && p->body.len <= MAX_BODY);
    must(strlen(p->path) == p->path_len);
    must(http_is_token(p->method));
    char value[64];
    (void)http_query_param(p->query, "a", value, sizeof value);
    const char *host = http_parser_header(p, "host");
    must(host != NULL || p->http10);
    for (unsigned i = 0; i < p->n_headers; i++) {
        const char *name = (const char *)buf_data(&p->head) + p->headers[i].name;
        must(strlen(name) == p->headers[i].name_len);
        must(http_parser_header(p, name) != NULL);
    }
    must(buf_appendf(out, "%s %s?%s %s %d %d:", p->method, p->path, p->query, host != NULL ? host : "-",
             p->keep_alive, p->n_headers) == 0);
    must(p->body.len == 0 || buf_append(out, buf_data(&p->body), p->body.len) == 0);
}

/* Parses all there is and writes down what was seen. */
static void parse(const uint8_t *data, size_t n, size_t piece, struct buf *out)
{
    struct http_parser *p = calloc(1, sizeof *p);
    size_t held = 0, at = 0;
    must(p != NULL);
    http_parser_begin(p, MAX_HEAD, MAX_BODY, &held, MAX_HELD);
    while (at < n) {
        size_t take = n - at < piece ? n - at : piece, used;
        uint8_t *copy = malloc(take);
        must(copy != NULL);
        memcpy(copy, data + at, take);
        enum http_parsed rv = http_parse(p, copy, take, &used);
        free(copy);
        must(used <= take && held <= MAX_HELD && held == p->body.len);
        if (rv == HTTP_PARSE_BAD) {
            must(p->status >= 400 && p->status < 600 && err_msg()[0] != '\0');
            must(buf_appendf(out, "%d", p->status) == 0);
            break;
        }
        must(rv == HTTP_PARSE_REQUEST || used == take);
        at += used;
        if (rv == HTTP_PARSE_REQUEST) {
            look_at(p, out);
            http_parser_end(p);
            http_parser_begin(p, MAX_HEAD, MAX_BODY, &held, MAX_HELD);
        }
    }
    http_parser_free(p);
    must(held == 0);
    free(p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct buf whole = {0}, cut = {0};
    if (n < 2) {
        return 0;
    }
    size_t piece = 1 + (data[0] | (size_t)data[1] << 8) % 300;
    parse(data + 2, n - 2, SIZE_MAX, &whole);
    parse(data + 2, n - 2, piece, &cut);
    must(
        whole.len == cut.len && (whole.len == 0 || memcmp(buf_data(&whole), buf_data(&cut), whole.len) == 0));
    buf_free(&whole);
    buf_free(&cut);
    return 0;
}

/* --- inputs to start from */

size_t LLVMFuzzerMutate(uint8_t *data, size_t n, size_t max);

static const char *const seeds[] = {
    "GET /v1/kv/a%2Fb?x=1&a=%20 HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n",
    "PUT /k HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: y\r\nConnection: "
    "close\r\n\r\n",
    "POST /p HTTP/1.1\r\nhost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;e=\"f\"\r\nd\r\n0\r\nT: "
    "t\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok",
    "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "\r\nOPTIONS * HTTP/1.1\r\nHost: \r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    "DELETE http://h/p?q HTTP/1.1\r\nHost: h\r\n\r\n",
};

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned random)
{
    const char *seed = seeds[random / 64 % (sizeof seeds / sizeof seeds[0])];
    size_t len = strlen(seed);
    if ((n < 16 || random % 64 == 0) && len + 2 <= max) {
        data[0] = (uint8_t)(random >> 16);
        data[1] = 0;
        memcpy(data + 2, seed, len);
        n = len + 2;
    }
    return LLVMFuzzerMutate(data, n, max);
}
