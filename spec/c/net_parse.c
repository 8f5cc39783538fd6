/* The request parser, without sockets. */
#include "base/err.h"
#include "net/http_parse.h"
#include "net/http_text.h"
#include "net/stream.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define HEAD "Host: x\r\n"

static struct http_parser parser;
static size_t held;

static enum http_parsed feed(const char *text, size_t n, size_t step, size_t *used)
{
    enum http_parsed rv = HTTP_PARSE_MORE;
    size_t at = 0;
    while (at < n && rv == HTTP_PARSE_MORE) {
        size_t took;
        size_t piece = n - at < step ? n - at : step;
        /* A copy of its own, so that a sanitizer sees a read past its end. */
        uint8_t *copy = malloc(piece);
        assert_non_null(copy);
        memcpy(copy, text + at, piece);
        rv = http_parse(&parser, copy, piece, &took);
        free(copy);
        if (rv == HTTP_PARSE_MORE) {
            assert_int_equal(took, piece);
        }
        at += took;
    }
    *used = at;
    return rv;
}

static void begin(void)
{
    http_parser_begin(&parser, 1024, 100, &held, 1000);
}

static int finish(void **state)
{
    (void)state;
    http_parser_free(&parser);
    memset(&parser, 0, sizeof parser);
    assert_int_equal(held, 0);
    return 0;
}

/* Every way of cutting @text into pieces gives the same request. */
static void good(const char *text, const char *method, const char *path, const char *query, const char *body)
{
    size_t n = strlen(text), used;
    for (size_t step = 1; step <= n; step++) {
        begin();
        enum http_parsed rv = feed(text, n, step, &used);
        if (rv != HTTP_PARSE_REQUEST) {
            print_error(
                "%s\nin pieces of %zu: %d, status %d, %s\n", text, step, rv, parser.status, err_msg());
        }
        assert_int_equal(rv, HTTP_PARSE_REQUEST);
        assert_int_equal(used, n);
        assert_string_equal(parser.method, method);
        assert_string_equal(parser.path, path);
        assert_int_equal(parser.path_len, strlen(path));
        assert_string_equal(parser.query, query);
        assert_int_equal(parser.body.len, strlen(body));
        assert_memory_equal(
            parser.body.len > 0 ? buf_data(&parser.body) : (const uint8_t *)"", body, strlen(body));
        assert_int_equal(held, strlen(body));
        http_parser_end(&parser);
    }
}

static void refused(const char *text, int status)
{
    size_t n = strlen(text), used;
    for (size_t step = 1; step <= n; step += step < 8 ? 1 : n) {
        begin();
        enum http_parsed rv = feed(text, n, step, &used);
        if (rv != HTTP_PARSE_BAD || parser.status != status) {
            print_error(
                "%s\nin pieces of %zu: %d, status %d instead of %d\n", text, step, rv, parser.status, status);
        }
        assert_int_equal(rv, HTTP_PARSE_BAD);
        assert_int_equal(parser.status, status);
        assert_true(err_msg()[0] != '\0');
        http_parser_end(&parser);
    }
}

static void requests(void **state)
{
    (void)state;
    good("GET / HTTP/1.1\r\n" HEAD "\r\n", "GET", "/", "", "");
    good("\r\n\r\nGET /a?b=c HTTP/1.1\r\n" HEAD "\r\n", "GET", "/a", "b=c", "");
    good("DELETE /v1/kv/a%2fb%20%C3%BC?x=%3f HTTP/1.1\r\n" HEAD "\r\n", "DELETE", "/v1/kv/a/b \xc3\xbc",
        "x=%3f", "");
    good("PUT /k HTTP/1.1\r\n" HEAD "Content-Length: 5\r\n\r\nhello", "PUT", "/k", "", "hello");
    good("PUT /k HTTP/1.1\r\n" HEAD "Content-Length: 0\r\n\r\n", "PUT", "/k", "", "");
    good("POST /k? HTTP/1.1\r\n" HEAD
         "Transfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n2;x=\"y\"\r\nde\r\n0\r\nA: b\r\n\r\n",
        "POST", "/k", "", "abcde");
    good("GET http://other:80/p?q HTTP/1.1\r\n" HEAD "\r\n", "GET", "/p", "q", "");
    good("OPTIONS * HTTP/1.1\r\n" HEAD "\r\n", "OPTIONS", "*", "", "");
    good("GET / HTTP/1.0\r\n\r\n", "GET", "/", "", "");
    good("GET / HTTP/1.1\r\n" HEAD "Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n", "GET", "/", "", "");
}

static void refusals(void **state)
{
    (void)state;
    refused("\x16\x03\x01", 400);
    refused("get / HTTP/1.1\r\n" HEAD "\r\n", 400);
    refused("\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\n" HEAD "\r\n", 400);
    refused("GET / HTTP/1.1\nHost: x\n\n", 400);
    refused("GET / HTTP/1.1\r\nHost: x\n\r\n", 400);
    refused("GET / HTTP/1.1\r\n" HEAD "A: b\rc\r\n\r\n", 400);
    refused("GET / HTTP/1.1\r\n" HEAD "A: b\r\n c\r\n\r\n", 400);
    refused("GET / HTTP/1.1\r\n" HEAD "A : b\r\n\r\n", 400);
    refused("GET / HTTP/1.1\r\n" HEAD ": b\r\n\r\n", 400);
    refused("GET / HTTP/1.1\r\n" HEAD "A b: c\r\n\r\n", 400);
    refused("GET / HTTP/1.1\r\n" HEAD "A: \x01\r\n\r\n", 400);
    refused("GET / HTTP/1.1\r\n\r\n", 400);
    refused("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400);
    refused("GET /\r\n\r\n", 505);
    refused("GET / HTTP/2.0\r\n" HEAD "\r\n", 505);
    refused("GET / HTTP/1.2\r\n" HEAD "\r\n", 505);
    refused("GET / RTSP/1.0\r\n" HEAD "\r\n", 505);
    refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400);
    refused("CONNECT a:1 HTTP/1.1\r\n" HEAD "\r\n", 501);
    refused("FROB / HTTP/1.1\r\n" HEAD "\r\n", 501);
    refused("GET /%00 HTTP/1.1\r\n" HEAD "\r\n", 400);
    refused("GET /%4 HTTP/1.1\r\n" HEAD "\r\n", 400);
    refused("GET /%zz HTTP/1.1\r\n" HEAD "\r\n", 400);
    refused("GET /#f HTTP/1.1\r\n" HEAD "\r\n", 400);
    refused("GET http://x HTTP/1.1\r\n" HEAD "\r\n", 400);
    refused("POST / HTTP/1.1\r\n" HEAD "Expect: the worst\r\nContent-Length: 1\r\n\r\n", 417);
}

/* What a proxy in front might take for another length than we do. */
static void smuggling(void **state)
{
    (void)state;
    refused("POST / HTTP/1.1\r\n" HEAD "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400);
    refused("POST / HTTP/1.1\r\n" HEAD "Content-Length: 5, 5\r\n\r\nhello", 400);
    refused("POST / HTTP/1.1\r\n" HEAD "Content-Length: +5\r\n\r\nhello", 400);
    refused("POST / HTTP/1.1\r\n" HEAD "Content-Length: -1\r\n\r\n", 400);
    refused("POST / HTTP/1.1\r\n" HEAD "Content-Length: 99999999999999999999\r\n\r\n", 400);
    refused("POST / HTTP/1.1\r\n" HEAD "Content-Length : 5\r\n\r\nhello", 400);
    refused(
        "POST / HTTP/1.1\r\n" HEAD "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400);
    refused(
        "POST / HTTP/1.1\r\n" HEAD "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400);
    refused("POST / HTTP/1.1\r\n" HEAD "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501);
    refused("POST / HTTP/1.1\r\n" HEAD "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501);
    refused("POST / HTTP/1.1\r\n" HEAD "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400);
    refused("POST / HTTP/1.1\r\n" HEAD
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        400);
    refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400);
    refused("POST / HTTP/1.1\r\n" HEAD "Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", 400);
    refused("POST / HTTP/1.1\r\n" HEAD "Transfer-Encoding: chunked\r\n\r\n-1\r\n", 400);
    refused("POST / HTTP/1.1\r\n" HEAD "Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n", 400);
#if LLHTTP_STRICT_MODE || LLHTTP_VERSION_MAJOR >= 9
    refused("GET / HTTP/1.1\r\n" HEAD "\r\r\r\n\r\n", 400);
    refused("POST / HTTP/1.1\r\n" HEAD "Transfer-Encoding: chunked\r\n\r\n5\rXhello\r\n0\r\n\r\n", 400);
    refused("POST / HTTP/1.1\r\n" HEAD "Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n", 400);
#endif
}

static void limits(void **state)
{
    (void)state;
    char text[4096];
    size_t used;
    /* A head of exactly the limit, and one byte more. */
    for (int more = 0; more <= 1; more++) {
        int n = snprintf(text, sizeof text, "GET / HTTP/1.1\r\n" HEAD "A: ");
        memset(text + n, 'a', 1024);
        snprintf(text + 1024 - 4 + more, 5, "\r\n\r\n");
        if (more == 0) {
            good(text, "GET", "/", "", "");
        } else {
            refused(text, 431);
        }
    }
    memset(text, 'A', 2000);
    text[2000] = '\0';
    refused(text, 431);
    refused("POST / HTTP/1.1\r\n" HEAD "Content-Length: 101\r\n\r\n", 413);
    refused("POST / HTTP/1.1\r\n" HEAD "Content-Length: 18446744073709551615\r\n\r\n", 413);
    refused("POST / HTTP/1.1\r\n" HEAD "Transfer-Encoding: chunked\r\n\r\n65\r\n", 413);
    refused("POST / HTTP/1.1\r\n" HEAD "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", 413);

    /* Chunked: too long in all, and too much framing around too little. */
    int n =
        snprintf(text, sizeof text, "POST / HTTP/1.1\r\n" HEAD "Transfer-Encoding: chunked\r\n\r\n65\r\n");
    memset(text + n, 'b', 101);
    snprintf(text + n + 101, 20, "\r\n0\r\n\r\n");
    refused(text, 413);
    n = snprintf(text, sizeof text, "POST / HTTP/1.1\r\n" HEAD "Transfer-Encoding: chunked\r\n\r\n1;");
    memset(text + n, 'c', 1300);
    text[n + 1300] = '\0';
    refused(text, 413);
    n = snprintf(text, sizeof text, "POST / HTTP/1.1\r\n" HEAD "Transfer-Encoding: chunked\r\n\r\n0\r\nA: ");
    memset(text + n, 'd', 1300);
    text[n + 1300] = '\0';
    refused(text, 413);

    /* Headers: as many as there may be, and one more. */
    for (int more = 0; more <= 1; more++) {
        http_parser_begin(&parser, 4096, 100, NULL, 0);
        n = snprintf(text, sizeof text, "GET / HTTP/1.1\r\n" HEAD);
        for (int i = 0; i < HTTP_HEADERS_MAX - 1 + more; i++) {
            n += snprintf(text + n, sizeof text - (size_t)n, "A%d: %d\r\n", i, i);
        }
        snprintf(text + n, sizeof text - (size_t)n, "\r\n");
        enum http_parsed rv = feed(text, strlen(text), SIZE_MAX, &used);
        assert_int_equal(rv, more == 0 ? HTTP_PARSE_REQUEST : HTTP_PARSE_BAD);
        assert_int_equal(parser.status, more == 0 ? 0 : 431);
        if (more == 0) {
            assert_string_equal(http_parser_header(&parser, "a98"), "98");
        }
        http_parser_end(&parser);
        assert_int_equal(parser.max_headers, 0); /* so much room is not kept */
    }
    http_parser_begin(&parser, 4096, 100, NULL, 0);
    assert_int_equal(feed("GET / HTTP/1.1\r\n" HEAD "\r\n", 27, SIZE_MAX, &used), HTTP_PARSE_REQUEST);
    assert_in_range(parser.max_headers, 1, 8);
    http_parser_end(&parser);

    /* All bodies together. */
    held = 950;
    refused("POST / HTTP/1.1\r\n" HEAD "Content-Length: 60\r\n\r\n"
            "123456789.123456789.123456789.123456789.123456789.123456789.",
        503);
    assert_int_equal(held, 950);
    held = 0;
}

static void pipelined(void **state)
{
    (void)state;
    static const char first[] = "PUT /1 HTTP/1.1\r\n" HEAD "Content-Length: 3\r\n\r\nabc";
    static const char second[] = "GET /2 HTTP/1.1\r\n" HEAD "\r\n";
    static const char third[] =
        "POST /3 HTTP/1.1\r\n" HEAD "Transfer-Encoding: chunked\r\n\r\n1\r\nz\r\n0\r\n\r\n";
    const size_t lengths[] = {sizeof first - 1, sizeof second - 1, sizeof third - 1};
    const char *const paths[] = {"/1", "/2", "/3"};
    char text[256];
    snprintf(text, sizeof text, "%s%s%s", first, second, third);
    const char *at = text;
    for (int i = 0; i < 3; i++) {
        size_t used;
        begin();
        assert_int_equal(feed(at, strlen(at), SIZE_MAX, &used), HTTP_PARSE_REQUEST);
        assert_int_equal(used, lengths[i]);
        assert_string_equal(parser.path, paths[i]);
        http_parser_end(&parser);
        at += used;
    }
}

static void headers(void **state)
{
    (void)state;
    static const char text[] =
        "GET / HTTP/1.1\r\nHOST:  example \t\r\nX-Empty:\r\nx-Two: a, b\r\nX-TWO: c\r\n\r\n";
    size_t used;
    begin();
    assert_int_equal(feed(text, sizeof text - 1, SIZE_MAX, &used), HTTP_PARSE_REQUEST);
    assert_string_equal(http_parser_header(&parser, "host"), "example");
    assert_string_equal(http_parser_header(&parser, "x-empty"), "");
    assert_string_equal(http_parser_header(&parser, "x-two"), "a, b");
    assert_null(http_parser_header(&parser, "x-tw"));
    http_parser_end(&parser);
}

static void keep_alive(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool keep;
    } cases[] = {
        {"GET / HTTP/1.1\r\n" HEAD "\r\n", true},
        {"GET / HTTP/1.1\r\n" HEAD "Connection: close\r\n\r\n", false},
        {"GET / HTTP/1.1\r\n" HEAD "Connection: x, Close\r\n\r\n", false},
        {"GET / HTTP/1.0\r\n\r\n", false},
        {"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t used;
        begin();
        assert_int_equal(feed(cases[i].text, strlen(cases[i].text), SIZE_MAX, &used), HTTP_PARSE_REQUEST);
        assert_int_equal(parser.keep_alive, cases[i].keep);
        http_parser_end(&parser);
    }
}

static void query_params(void **state)
{
    (void)state;
    static const char query[] = "a=1&bb=%20x+y&c&d=&a=2&e=%&f=%00&long=12345678&aa=3";
    char out[8];
    assert_int_equal(http_query_param(query, "a", out, sizeof out), 0);
    assert_string_equal(out, "1");
    assert_int_equal(http_query_param(query, "bb", out, sizeof out), 0);
    assert_string_equal(out, " x+y");
    assert_int_equal(http_query_param(query, "c", out, sizeof out), 0);
    assert_string_equal(out, "");
    assert_int_equal(http_query_param(query, "d", out, sizeof out), 0);
    assert_string_equal(out, "");
    assert_int_equal(http_query_param(query, "aa", out, sizeof out), 0);
    assert_string_equal(out, "3");
    assert_int_equal(http_query_param(query, "b", out, sizeof out), SYM_ENOTFOUND);
    assert_int_equal(http_query_param("", "b", out, sizeof out), SYM_ENOTFOUND);
    assert_int_equal(http_query_param(query, "e", out, sizeof out), SYM_EINVAL);
    assert_int_equal(http_query_param(query, "f", out, sizeof out), SYM_EINVAL);
    assert_int_equal(http_query_param(query, "long", out, sizeof out), SYM_ETOOBIG);
    /* Bad encoding behind more than fits. */
    assert_int_equal(http_query_param("x=123456789%%%%%%", "x", out, sizeof out), SYM_ETOOBIG);
    assert_int_equal(http_query_param("x=%31%32%33%34%35%36%37", "x", out, sizeof out), 0);
    assert_string_equal(out, "1234567");
}

static void addresses(void **state)
{
    (void)state;
    static const struct {
        const char *text, *host;
        uint16_t port;
    } good_ones[] = {
        {"example.org:80", "example.org", 80},
        {"example.org", "example.org", 7},
        {"10.0.0.1:65535", "10.0.0.1", 65535},
        {"[::1]:1", "::1", 1},
        {"[::1]", "::1", 7},
        {"::1", "::1", 7},
        {"[fe80::1%eth0]:5", "fe80::1%eth0", 5},
        {"a_b-c.d", "a_b-c.d", 7},
    };
    static const char *const bad_ones[] = {"", ":80", "a:", "a:0", "a:65536", "a:99999999999", "a:-1", "a:+1",
        "a: 1", "a:1x", "a b", "a/b", "[::1", "[::1]80", "[]:80", "[a]:80", "1:2:3", "-a", "[::1%]:5",
        "http://a", "a\n", "[::1]:", "::1%averyveryverylongname"};
    char host[256];
    uint16_t port;
    for (size_t i = 0; i < sizeof good_ones / sizeof good_ones[0]; i++) {
        assert_int_equal(addr_parse(good_ones[i].text, 7, host, &port), 0);
        assert_string_equal(host, good_ones[i].host);
        assert_int_equal(port, good_ones[i].port);
    }
    for (size_t i = 0; i < sizeof bad_ones / sizeof bad_ones[0]; i++) {
        if (addr_parse(bad_ones[i], 7, host, &port) != SYM_EINVAL) {
            print_error("\"%s\" was taken\n", bad_ones[i]);
            fail();
        }
    }
    char text[300];
    memset(text, 'a', sizeof text);
    text[253] = '\0';
    assert_int_equal(addr_parse(text, 7, host, &port), 0);
    text[253] = 'a';
    text[254] = '\0';
    assert_int_equal(addr_parse(text, 7, host, &port), SYM_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(requests, finish),
        cmocka_unit_test_teardown(refusals, finish),
        cmocka_unit_test_teardown(smuggling, finish),
        cmocka_unit_test_teardown(limits, finish),
        cmocka_unit_test_teardown(pipelined, finish),
        cmocka_unit_test_teardown(headers, finish),
        cmocka_unit_test_teardown(keep_alive, finish),
        cmocka_unit_test(query_params),
        cmocka_unit_test(addresses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
