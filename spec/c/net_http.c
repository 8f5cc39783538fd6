/* The HTTP server against raw sockets: requests, limits, hostile peers, the end. */
#include "net/http.h"
#include "net_support.h"

#define GET(path) "GET " path " HTTP/1.1\r\nHost: x\r\n\r\n"

static struct http_server *server;
static uint16_t port;
static struct http_limits limits;
static unsigned handled, gone;
static bool closed;
static struct http_req *waiting;  /* /wait: answered by the test */
static struct http_req *later[8]; /* /later: the same, and side by side */
static unsigned n_later;
static bool drained;
static char last_body[64];
static bool close_when_gone;
static struct tls_ctx *tls;

static void on_server_closed(void *arg)
{
    *(bool *)arg = true;
}

static void on_gone(struct http_req *req)
{
    gone++;
    if (close_when_gone) {
        http_server_close(server, 1000, on_server_closed, &closed);
    }
    if (waiting == req) {
        waiting = NULL;
    }
}

static void on_drain(struct http_req *req)
{
    (void)req;
    drained = true;
}

static void respond(struct http_req *req, const char *text)
{
    http_respond(req, 200, "text/plain", NULL, text, strlen(text));
}

static void handle(struct http_req *req, void *arg)
{
    assert_ptr_equal(arg, &handled);
    handled++;
    req->on_gone = on_gone;
    req->on_drain = on_drain;
    req->class = strcmp(req->path, "/echo") == 0     ? 3
                 : strcmp(req->path, "/stream") == 0 ? HTTP_CLASSES - 1
                                                     : 0;
    if (strcmp(req->path, "/hello") == 0) {
        respond(req, "hello");
    } else if (strcmp(req->path, "/echo") == 0) {
        snprintf(last_body, sizeof last_body, "%.*s", (int)req->body_len, (const char *)req->body);
        http_respond(req, 200, NULL, "X-Extra: yes\r\n", req->body, req->body_len);
    } else if (strcmp(req->path, "/who") == 0) {
        char text[256];
        snprintf(text, sizeof text, "%s %s %s %s", req->from->is_unix ? "unix" : req->from->host,
            req->tls ? "tls" : "plain", req->peer != NULL && req->peer->present ? req->peer->cert.cn : "-",
            http_req_header(req, "host"));
        respond(req, text);
    } else if (strcmp(req->path, "/wait") == 0) {
        assert_null(waiting);
        waiting = req;
    } else if (strcmp(req->path, "/later") == 0) {
        assert_true(n_later < 8);
        later[n_later++] = req;
        req->overlap = true;
    } else if (strcmp(req->path, "/both") == 0) {
        req->overlap = true;
        http_respond(later[0], 200, "text/plain", NULL, "one", 3);
        http_respond(req, 200, "text/plain", NULL, "two", 3);
    } else if (strcmp(req->path, "/stream-behind") == 0) {
        http_stream_start(req, 200, "text/plain");
        assert_int_equal(http_stream_write(req, "one,", 4), SYM_EBUSY);
        later[n_later++] = req;
        respond(later[0], "first");
    } else if (strcmp(req->path, "/stream") == 0) {
        http_stream_start(req, 200, "text/plain");
        assert_int_equal(http_stream_write(req, "one,", 4), 0);
        assert_int_equal(http_stream_write(req, "", 0), 0);
        assert_int_equal(http_stream_write(req, "two", 3), 0);
        http_stream_end(req);
    } else if (strcmp(req->path, "/none") == 0) {
        http_respond(req, 204, NULL, NULL, NULL, 0);
    } else if (strcmp(req->path, "/big") == 0) {
        static char big[200 * 1000];
        memset(big, 'b', sizeof big);
        http_respond(req, 200, "text/plain", NULL, big, sizeof big);
    } else if (strcmp(req->path, "/huge") == 0) {
        static char huge[20 << 20];
        http_respond(req, 200, "text/plain", NULL, huge, sizeof huge);
    } else if (strcmp(req->path, "/nobody") == 0) {
        req->on_gone = NULL;
    } else if (strcmp(req->path, "/abort") == 0) {
        http_abort(req);
    } else if (strcmp(req->path, "/cut") == 0) {
        http_stream_start(req, 200, NULL);
        http_stream_write(req, "half", 4);
        http_abort(req);
    } else if (strcmp(req->path, "/close") == 0) {
        http_server_close(server, 1000, on_server_closed, &closed);
        respond(req, "closing");
    } else {
        http_respond_error(req, SYM_ENOTFOUND, "no such \"thing\"\n", "look \xff");
    }
}

static int begin(void **state)
{
    (void)state;
    server = NULL;
    handled = gone = 0;
    closed = drained = close_when_gone = false;
    waiting = NULL;
    n_later = 0;
    memset(&limits, 0, sizeof limits);
    folder_begin();
    return loop_begin(state);
}

static void start(void)
{
    assert_int_equal(http_server_new(&loop, &limits, handle, &handled, &server), 0);
    assert_int_equal(http_server_listen_tcp(server, "127.0.0.1", 0, tls, &port), 0);
}

static int end(void **state)
{
    if (server != NULL && !closed) {
        http_server_close(server, 0, NULL, NULL);
    }
    int rv = loop_end(state);
    if (handled > gone) {
        print_error("%u requests were handled, %u are gone\n", handled, gone);
        rv = -1;
    }
    rmdir(folder);
    if (tls != NULL) {
        tls_ctx_free(tls);
        tls = NULL;
    }
    return rv;
}

static unsigned n_open(void)
{
    struct http_stats st;
    http_server_stats(server, &st);
    return st.open;
}

/* --- requests and answers */

static void answers(void **state)
{
    (void)state;
    struct seen s = {0};
    start();
    int fd = raw_connect(port);
    raw_text(fd, GET("/hello"));
    raw_until(fd, &s, "hello");
    assert_string_equal(
        s.text, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello");
    seen_free(&s);
    assert_int_equal(gone, 1);

    raw_text(fd, "PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
    raw_until(fd, &s, "\r\n\r\nabc");
    assert_non_null(strstr(s.text, "Content-Type: application/json\r\n"));
    assert_non_null(strstr(s.text, "X-Extra: yes\r\n"));
    seen_free(&s);

    raw_text(fd,
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n");
    raw_until(fd, &s, "\r\n\r\nabc");
    seen_free(&s);

    raw_text(fd, GET("/none"));
    raw_until(fd, &s, "\r\n\r\n");
    assert_string_equal(s.text, "HTTP/1.1 204 No Content\r\n\r\n");
    seen_free(&s);

    raw_text(fd, GET("/where"));
    raw_until(fd, &s, "}}");
    assert_non_null(strstr(s.text, "HTTP/1.1 404 Not Found\r\n"));
    assert_non_null(strstr(
        s.text, "{\"error\":{\"code\":\"not_found\",\"message\":\"no such \\\"thing\\\"\\n\",\"hint\":"));
    seen_free(&s);

    raw_text(fd, GET("/nobody"));
    raw_until(fd, &s, "}}");
    assert_non_null(strstr(s.text, "HTTP/1.1 500 "));
    gone++;
    seen_free(&s);

    raw_text(fd, GET("/who"));
    raw_until(fd, &s, "127.0.0.1 plain - x");
    seen_free(&s);
    assert_int_equal(n_open(), 1);
    close(fd);
    run_until(n_open() == 0);
    assert_int_equal(handled, gone);
}

static void streamed(void **state)
{
    (void)state;
    struct seen s = {0};
    start();
    int fd = raw_connect(port);
    raw_text(fd, GET("/stream"));
    raw_until(fd, &s, "\r\n0\r\n\r\n");
    assert_string_equal(s.text,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
        "4\r\none,\r\n3\r\ntwo\r\n0\r\n\r\n");
    seen_free(&s);
    /* HTTP/1.0 gets it without chunks, up to the end. */
    raw_text(fd, "GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    raw_until(fd, &s, NULL);
    assert_string_equal(
        s.text, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\none,two");
    seen_free(&s);
    close(fd);
    /* A cut one is seen to be cut. */
    fd = raw_connect(port);
    raw_text(fd, GET("/cut"));
    raw_until(fd, &s, NULL);
    assert_non_null(strstr(s.text, "4\r\nhalf\r\n"));
    assert_null(strstr(s.text, "\r\n0\r\n"));
    seen_free(&s);
    close(fd);
    fd = raw_connect(port);
    raw_text(fd, GET("/abort"));
    raw_until(fd, &s, NULL);
    assert_int_equal(s.n, 0);
    seen_free(&s);
    close(fd);
    run_until(n_open() == 0);
    assert_int_equal(gone, 4);
}

static void head(void **state)
{
    (void)state;
    struct seen s = {0};
    start();
    int fd = raw_connect(port);
    raw_text(fd, "HEAD /hello HTTP/1.1\r\nHost: x\r\n\r\n"
                 "HEAD /stream HTTP/1.1\r\nHost: x\r\n\r\n"
                 "HEAD /big HTTP/1.1\r\nHost: x\r\n\r\n"
                 "HEAD /none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    raw_until(fd, &s, NULL);
    assert_string_equal(s.text,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\n"
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 200000\r\n\r\n"
        "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
    seen_free(&s);
    close(fd);
    assert_int_equal(gone, 4);
}

static void connection_header(void **state)
{
    (void)state;
    static const struct {
        const char *request;
        const char *header; /* in the answer, NULL: none */
        bool ends;
    } cases[] = {
        {GET("/hello"), NULL, false},
        {"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "Connection: close", true},
        {"GET /hello HTTP/1.0\r\n\r\n", "Connection: close", true},
        {"GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "Connection: keep-alive", false},
    };
    start();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct seen s = {0};
        int fd = raw_connect(port);
        raw_text(fd, cases[i].request);
        raw_until(fd, &s, cases[i].ends ? NULL : "\r\n\r\nhello");
        if (cases[i].header != NULL) {
            assert_non_null(strstr(s.text, cases[i].header));
        } else {
            assert_null(strstr(s.text, "Connection"));
        }
        seen_free(&s);
        close(fd);
    }
}

static void expects_100(void **state)
{
    (void)state;
    struct seen s = {0};
    start();
    int fd = raw_connect(port);
    raw_text(fd, "PUT /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    raw_until(fd, &s, "100 Continue\r\n\r\n");
    assert_int_equal(handled, 0);
    seen_free(&s);
    raw_text(fd, "ok");
    raw_until(fd, &s, "\r\n\r\nok");
    seen_free(&s);
    /* The body came without waiting. */
    raw_text(fd, "PUT /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok");
    raw_until(fd, &s, "\r\n\r\nok");
    assert_null(strstr(s.text, "100 Continue"));
    seen_free(&s);
    /* It would be too much: refused before it is sent. */
    raw_text(
        fd, "PUT /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9999999999\r\n\r\n");
    raw_until(fd, &s, NULL);
    assert_non_null(strstr(s.text, "HTTP/1.1 413 "));
    assert_null(strstr(s.text, "100 Continue"));
    seen_free(&s);
    close(fd);
}

/* Many at once come back one by one and in order, also when one of them is answered later. */
static void pipelining(void **state)
{
    (void)state;
    enum { N = 500 };
    struct seen s = {0};
    char *all = calloc(N, 128);
    size_t n = 0;
    start();
    int fd = raw_connect(port);
    for (int i = 0; i < N; i++) {
        n += (size_t)sprintf(all + n, "%s",
            i == 100 ? GET("/wait")
            : i % 2  ? "PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"
                     : GET("/hello"));
    }
    n += (size_t)sprintf(all + n, "GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    raw_send(fd, all, n);
    run_until(waiting != NULL);
    for (int i = 0; i < 20; i++) {
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    assert_int_equal(handled, 101);
    respond(waiting, "waited");
    raw_until(fd, &s, NULL);
    assert_int_equal(handled, N + 1);
    assert_int_equal(gone, N + 1);
    const char *at = s.text;
    for (int i = 0; i < N; i++) {
        at = strstr(at, "\r\n\r\n");
        assert_non_null(at);
        at += 4;
        const char *want = i == 100 ? "waited" : i % 2 ? "body" : "hello";
        assert_memory_equal(at, want, strlen(want));
    }
    assert_non_null(strstr(at, "404 Not Found"));
    seen_free(&s);
    free(all);
    close(fd);
}

/* One greedy pipeline does not hold up another connection. */
static void pipelines_take_turns(void **state)
{
    (void)state;
    enum { N = 400 };
    struct seen s = {0};
    char *all = calloc(N, 64);
    size_t n = 0;
    start();
    int fd = raw_connect(port), other = raw_connect(port);
    run_until(n_open() == 2);
    for (int i = 0; i < N; i++) {
        n += (size_t)sprintf(all + n, GET("/hello"));
    }
    assert_int_equal(send(fd, all, n, 0), n);
    assert_int_equal(send(other, GET("/wait"), strlen(GET("/wait")), 0), strlen(GET("/wait")));
    for (int i = 0; i < 3; i++) {
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    assert_non_null(waiting);
    assert_true(handled < N / 2);
    respond(waiting, "x");
    run_until(handled == N + 1);
    raw_ask(other, "", "x");
    seen_free(&s);
    free(all);
    close(fd);
    close(other);
}

/* Those that may overlap are served at once; their answers come in the order of the requests. */
static void overlapping(void **state)
{
    (void)state;
    struct seen s = {0};
    start();
    int fd = raw_connect(port);
    raw_text(fd, GET("/later") GET("/later") "HEAD /later HTTP/1.1\r\nHost: x\r\n\r\n" GET("/later"));
    run_until(n_later == 4);
    respond(later[3], "four");
    respond(later[1], "two");
    respond(later[2], "three");
    for (int i = 0; i < 20; i++) {
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    assert_int_equal(gone, 0);
    respond(later[0], "one");
    raw_until(fd, &s, "\r\n\r\nfour");
    const char *one = strstr(s.text, "\r\n\r\none"), *two = strstr(s.text, "\r\n\r\ntwo");
    assert_true(one != NULL && two != NULL && one < two);
    assert_null(strstr(s.text, "three"));
    assert_int_equal(gone, 4);
    seen_free(&s);
    close(fd);
}

static struct http_req *firsts[8];
static unsigned n_firsts;

static void note_first(struct http_req *req)
{
    firsts[n_firsts++] = req;
    if (n_firsts == 1) {
        respond(req, "two");
    }
}

/* One that is served beside others can be told when it is the first of them, once. */
static void overlapping_in_order(void **state)
{
    (void)state;
    struct seen s = {0};
    start();
    n_firsts = 0;
    int fd = raw_connect(port);
    raw_text(fd, GET("/later") GET("/later") GET("/later") GET("/later"));
    run_until(n_later == 4);
    assert_null(http_req_before(later[0]));
    assert_ptr_equal(http_req_before(later[1]), later[0]);
    assert_ptr_equal(http_req_before(later[3]), later[2]);
    for (unsigned i = 1; i < 4; i++) {
        later[i]->on_first = note_first;
    }
    respond(later[2], "three"); /* answered before it was the first: it is never told */
    assert_ptr_equal(http_req_before(later[3]), later[1]);
    for (int i = 0; i < 20; i++) {
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    assert_int_equal(n_firsts, 0);
    respond(later[0], "one");
    assert_int_equal(n_firsts, 0); /* not inside the call */
    run_until(n_firsts == 2);
    assert_ptr_equal(firsts[0], later[1]);
    assert_ptr_equal(firsts[1], later[3]);
    assert_null(http_req_before(later[3]));
    respond(later[3], "four");
    raw_until(fd, &s, "\r\n\r\nfour");
    assert_int_equal(n_firsts, 2);
    assert_int_equal(gone, 4);
    seen_free(&s);
    /* Who goes takes those that wait with him. */
    n_later = n_firsts = 0;
    raw_text(fd, GET("/later") GET("/later"));
    run_until(n_later == 2);
    later[1]->on_first = note_first;
    close(fd);
    run_until(gone == 6);
    assert_int_equal(n_firsts, 0);
}

/* The handler of one completes another of the same connection. */
static void overlapping_in_handler(void **state)
{
    (void)state;
    struct seen s = {0};
    start();
    int fd = raw_connect(port);
    raw_text(fd, GET("/later") GET("/both"));
    raw_until(fd, &s, "\r\n\r\ntwo");
    assert_non_null(strstr(s.text, "\r\n\r\none"));
    assert_int_equal(gone, 2);
    seen_free(&s);
    close(fd);
}

/* What may not run beside those under way waits for them, and then is served. */
static void overlapping_no_others(void **state)
{
    (void)state;
    static const char *const others[] = {
        "PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        "PUT /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    };
    start();
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        struct seen s = {0};
        char text[512];
        int fd = raw_connect(port);
        n_later = 0;
        snprintf(text, sizeof text, "%s%s%s%s", GET("/later"), GET("/later"), others[i], GET("/hello"));
        raw_text(fd, text);
        run_until(n_later == 2);
        unsigned before = handled;
        for (int k = 0; k < 20; k++) {
            uv_run(&loop, UV_RUN_NOWAIT);
        }
        assert_int_equal(handled, before);
        respond(later[0], "one");
        for (int k = 0; k < 20; k++) {
            uv_run(&loop, UV_RUN_NOWAIT);
        }
        assert_int_equal(handled, before);
        respond(later[1], "two");
        run_until(handled == before + 2);
        raw_until(fd, &s, "X-Extra: yes\r\n\r\nhelloHTTP/1.1 200 OK");
        seen_free(&s);
        close(fd);
    }
    /* One that does not say that it may overlap lets nothing pass. */
    struct seen s = {0};
    int fd = raw_connect(port);
    n_later = 0;
    raw_text(fd, GET("/later") GET("/wait") GET("/hello"));
    run_until(waiting != NULL);
    unsigned before = handled;
    respond(later[0], "one");
    raw_until(fd, &s, "\r\n\r\none");
    assert_int_equal(handled, before);
    respond(waiting, "two");
    raw_until(fd, &s, "\r\n\r\nhello");
    seen_free(&s);
    close(fd);
}

/* A streamed answer behind another one is held back, and goes on when it is first. */
static void overlapping_stream(void **state)
{
    (void)state;
    struct seen s = {0};
    start();
    int fd = raw_connect(port);
    raw_text(fd, GET("/later") GET("/later"));
    run_until(n_later == 2);
    http_stream_start(later[1], 200, "text/plain");
    assert_int_equal(http_stream_write(later[1], "one,", 4), SYM_EBUSY);
    http_stream_notify(later[1]);
    for (int i = 0; i < 20; i++) {
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    assert_false(drained);
    respond(later[0], "first");
    run_until(drained);
    assert_int_equal(http_stream_write(later[1], "two", 3), 0);
    http_stream_end(later[1]);
    raw_until(fd, &s, "first");
    raw_until(fd, &s, "4\r\none,\r\n3\r\ntwo\r\n0\r\n\r\n");
    seen_free(&s);
    close(fd);
}

/* Whoever was told to wait hears when the answer's turn has come, without asking for it. */
static void overlapping_drain(void **state)
{
    (void)state;
    struct seen s = {0};
    start();
    int fd = raw_connect(port);
    raw_text(fd, GET("/later") GET("/later"));
    run_until(n_later == 2);
    http_stream_start(later[1], 200, "text/plain");
    assert_int_equal(http_stream_write(later[1], "one,", 4), SYM_EBUSY);
    respond(later[0], "first");
    raw_until(fd, &s, "4\r\none,\r\n");
    run_until(drained);
    assert_int_equal(http_stream_write(later[1], "two", 3), 0);
    http_stream_end(later[1]);
    raw_until(fd, &s, "3\r\ntwo\r\n0\r\n\r\n");

    /* It comes inside its own handler. */
    drained = false;
    n_later = 0;
    raw_text(fd, GET("/later") GET("/stream-behind"));
    run_until(n_later == 2);
    run_until(drained);
    assert_int_equal(http_stream_write(later[1], "three", 5), 0);
    http_stream_end(later[1]);
    raw_until(fd, &s, "5\r\nthree\r\n0\r\n\r\n");
    seen_free(&s);
    close(fd);
}

/* Requests end in the middle of a pipeline: with a mistake, with "close", without more bytes, with the peer. */
static void overlapping_ends(void **state)
{
    (void)state;
    static const struct {
        const char *request, *last;
    } cases[] = {
        {"GET /later HTTP/1.1\r\n\r\n" GET("/hello"), "HTTP/1.1 400 "},
        {"GET /later HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" GET("/hello"), "Connection: close"},
        {"GET /later HTTP/1.1\r\nHos", "HTTP/1.1 408 "},
    };
    limits.head_ms = 50;
    start();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct seen s = {0};
        char text[256];
        int fd = raw_connect(port);
        n_later = 0;
        snprintf(text, sizeof text, "%s%s%s", GET("/later"), GET("/later"), cases[i].request);
        raw_text(fd, text);
        run_until(n_later == (i == 1 ? 3 : 2));
        for (unsigned k = n_later; k > 0; k--) {
            respond(later[k - 1], k == 1 ? "one" : k == 2 ? "two" : "three");
        }
        raw_until(fd, &s, NULL);
        const char *two = strstr(s.text, "\r\n\r\ntwo");
        assert_non_null(two);
        if (strstr(two, cases[i].last) == NULL) {
            fail_msg("case %zu: %s", i, s.text);
        }
        assert_null(strstr(s.text, "hello"));
        seen_free(&s);
        close(fd);
    }
    int fd = raw_connect(port);
    n_later = 0;
    raw_text(fd, GET("/later") GET("/later") "GET /la");
    run_until(n_later == 2);
    respond(later[1], "two");
    close(fd);
    run_until(gone == handled);
}

/* A server that closes waits for all that are due. */
static void overlapping_closed(void **state)
{
    (void)state;
    struct seen s = {0};
    start();
    int fd = raw_connect(port);
    raw_text(fd, GET("/later") GET("/later"));
    run_until(n_later == 2);
    http_server_close(server, 5000, on_server_closed, &closed);
    respond(later[1], "two");
    for (int i = 0; i < 20; i++) {
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    assert_false(closed);
    respond(later[0], "one");
    raw_until(fd, &s, NULL);
    assert_non_null(strstr(s.text, "\r\n\r\ntwo"));
    run_until(closed);
    seen_free(&s);
    close(fd);
}

static void large_answer(void **state)
{
    (void)state;
    (void)state;
    struct seen s = {0};
    start();
    int fd = raw_connect(port);
    raw_text(fd, "GET /huge HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    raw_until(fd, &s, NULL);
    char *body = strstr(s.text, "\r\n\r\n");
    assert_non_null(body);
    assert_int_equal(s.n - (size_t)(body + 4 - s.text), 20 << 20);
    seen_free(&s);
    close(fd);
}

/* --- the peer and the request's life */

static void peer_leaves(void **state)
{
    (void)state;
    start();
    int fd = raw_connect(port);
    raw_text(fd, GET("/wait"));
    run_until(waiting != NULL);
    close(fd);
    run_until(waiting == NULL);
    assert_int_equal(gone, 1);

    /* With the answer half streamed. */
    fd = raw_connect(port);
    raw_text(fd, GET("/wait"));
    run_until(waiting != NULL);
    http_stream_start(waiting, 200, NULL);
    http_stream_write(waiting, "x", 1);
    close(fd);
    run_until(waiting == NULL);

    /* It is answered in the moment in which the peer has gone, before that is seen. */
    fd = raw_connect(port);
    raw_text(fd, GET("/wait"));
    run_until(waiting != NULL);
    struct linger hard = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close(fd);
    struct http_req *req = waiting;
    http_stream_start(req, 200, NULL);
    int rv = 0;
    for (int i = 0; i < 5; i++) {
        rv = http_stream_write(req, "x", 1);
    }
    assert_int_equal(rv, SYM_ECLOSED);
    assert_ptr_equal(waiting, req);
    http_stream_end(req);
    assert_ptr_equal(waiting, req);
    run_until(waiting == NULL);
    assert_int_equal(gone, 3);
    run_until(n_open() == 0);
}

static void answered_later(void **state)
{
    (void)state;
    struct seen s = {0};
    start();
    int fd = raw_connect(port);
    for (int i = 0; i < 3; i++) {
        raw_text(fd, GET("/wait"));
        run_until(waiting != NULL);
        respond(waiting, "late");
        assert_non_null(waiting); /* not gone inside the call */
        assert_int_equal(gone, i);
        run_until(gone == (unsigned)i + 1);
        raw_until(fd, &s, "late");
        seen_free(&s);
    }
    close(fd);
}

static void back_pressure(void **state)
{
    (void)state;
    static char piece[64 * 1024];
    struct seen s = {0};
    int rv = 0;
    size_t sent = 0;
    memset(piece, 'p', sizeof piece);
    start();
    int fd = raw_connect(port);
    raw_text(fd, GET("/wait"));
    run_until(waiting != NULL);
    http_stream_start(waiting, 200, NULL);

    /* Asked for while there is room: it comes in the next turn. */
    http_stream_notify(waiting);
    assert_false(drained);
    run_until(drained);
    drained = false;

    while (rv == 0) {
        rv = http_stream_write(waiting, piece, sizeof piece);
        sent += sizeof piece;
    }
    assert_int_equal(rv, SYM_EBUSY);
    http_stream_notify(waiting);
    for (int i = 0; i < 20; i++) {
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    assert_false(drained);
    while (!drained) {
        static char sink[65536];
        uv_run(&loop, UV_RUN_NOWAIT);
        ssize_t n = recv(fd, sink, sizeof sink, 0);
        assert_true(n > 0 || errno == EAGAIN);
    }
    http_stream_write(waiting, "fin", 3);
    http_stream_end(waiting);
    raw_until(fd, &s, "fin\r\n0\r\n\r\n");
    seen_free(&s);
    assert_true(sent > 1 << 20);
    run_until(gone == 1);
    close(fd);
}

/* --- limits and hostile peers */

static void bad_requests(void **state)
{
    (void)state;
    static const struct {
        const char *request, *want;
    } cases[] = {
        {"\x16\x03\x01\x02\x03", "400 Bad Request"},
        {"GET / HTTP/1.1\r\n\r\n", "400 Bad Request"},
        {"GET / HTTP/2.0\r\n\r\n", "505 HTTP Version"},
        {"PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\nx", "413 Content Too Large"},
        {"PUT /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3D0900\r\n", NULL},
        {GET("/hello") "nonsense", "hello"},
    };
    start();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct seen s = {0};
        int fd = raw_connect(port);
        raw_text(fd, cases[i].request);
        if (cases[i].want == NULL) {
            static char body[4000000];
            for (size_t at = 0; at < sizeof body; at += 100000) {
                if (send(fd, body + at, 100000, MSG_NOSIGNAL) < 0 && errno != EAGAIN) {
                    break;
                }
                uv_run(&loop, UV_RUN_NOWAIT);
            }
            raw_until(fd, &s, "413 Content Too Large");
        } else {
            raw_until(fd, &s, NULL);
            assert_non_null(strstr(s.text, cases[i].want));
            assert_non_null(strstr(s.text, i == 5 ? "400 Bad" : "Connection: close"));
        }
        seen_free(&s);
        close(fd);
    }
    char big[20000];
    struct seen s = {0};
    memset(big, 'a', sizeof big);
    int fd = raw_connect(port);
    raw_text(fd, "GET / HTTP/1.1\r\nHost: x\r\nA: ");
    raw_send(fd, big, sizeof big);
    raw_until(fd, &s, "431 Request Header");
    assert_non_null(strstr(s.text, "\"code\":\"too_big\""));
    seen_free(&s);
    close(fd);
    assert_int_equal(handled, 1);
    run_until(n_open() == 0);
}

static void too_slow(void **state)
{
    (void)state;
    struct seen s = {0};
    limits = (struct http_limits){.head_ms = 60, .body_ms = 80, .idle_ms = 100};
    start();
    int silent = raw_connect(port), drip = raw_connect(port), body = raw_connect(port),
        idle = raw_connect(port);
    raw_ask(idle, GET("/hello"), "hello");
    raw_text(body, "PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc");
    /* A byte now and then does not help. */
    const char *request = GET("/hello");
    for (size_t i = 0; !s.closed && i < strlen(request) - 1; i++) {
        (void)!send(drip, request + i, 1, MSG_NOSIGNAL);
        uv_run(&loop, UV_RUN_NOWAIT);
        char piece[512];
        ssize_t n = recv(drip, piece, sizeof piece, MSG_DONTWAIT);
        if (n > 0) {
            assert_non_null(memmem(piece, (size_t)n, " 408 ", 5));
            break;
        }
        poll(NULL, 0, 10);
        assert_true(i < strlen(request) - 2);
    }
    raw_until(body, &s, NULL);
    assert_non_null(strstr(s.text, " 408 Request Timeout\r\n"));
    seen_free(&s);
    raw_until(silent, &s, NULL);
    assert_int_equal(s.n, 0);
    seen_free(&s);
    raw_until(idle, &s, NULL);
    assert_int_equal(s.n, 0);
    seen_free(&s);
    close(silent);
    close(drip);
    close(body);
    close(idle);
    assert_int_equal(handled, 1);
    run_until(n_open() == 0);
}

/* A request under way has no deadline here: that is the handler's. */
static void patience(void **state)
{
    (void)state;
    limits = (struct http_limits){.head_ms = 20, .body_ms = 20, .idle_ms = 20, .send_ms = 20};
    start();
    int fd = raw_connect(port);
    raw_text(fd, GET("/wait"));
    run_until(waiting != NULL);
    for (int i = 0; i < 20; i++) {
        uv_run(&loop, UV_RUN_NOWAIT);
        poll(NULL, 0, 10);
    }
    assert_non_null(waiting);
    respond(waiting, "late");
    raw_ask(fd, "", "late");
    close(fd);
}

/* A thousand that say nothing, or a byte: who has something to say gets through. */
static void crowd(void **state)
{
    (void)state;
    enum { N = 300 };
    struct http_stats st;
    int fds[N];
    limits = (struct http_limits){.max_conns = 64};
    start();
    int old = raw_connect(port);
    raw_ask(old, GET("/hello"), "hello");
    raw_text(old, GET("/wait"));
    run_until(waiting != NULL);
    for (int i = 0; i < N; i++) {
        fds[i] = raw_connect(port);
        if (i % 2) {
            (void)!send(fds[i], "G", 1, MSG_NOSIGNAL);
        }
        uv_run(&loop, UV_RUN_NOWAIT);
        assert_true(n_open() <= 64 + 64);
    }
    int fresh = raw_connect(port);
    raw_ask(fresh, GET("/hello"), "hello");
    /* The one that is being served was not thrown out. */
    respond(waiting, "still here");
    raw_ask(old, "", "still here");
    http_server_stats(server, &st);
    assert_int_equal(st.accepted, N + 2);
    assert_int_equal(st.refused, 0);
    assert_int_equal(st.requests, 3);
    for (int i = 0; i < N; i++) {
        close(fds[i]);
    }
    close(old);
    close(fresh);
    run_until(n_open() == 0);
}

static void one_address(void **state)
{
    (void)state;
    struct http_stats st;
    int fds[6];
    limits = (struct http_limits){.max_conns_addr = 4};
    start();
    for (int i = 0; i < 6; i++) {
        fds[i] = raw_connect(port);
    }
    do {
        uv_run(&loop, UV_RUN_ONCE);
        http_server_stats(server, &st);
    } while (st.accepted + st.refused < 6);
    assert_int_equal(st.accepted, 4);
    assert_int_equal(st.refused, 2);
    for (int i = 0; i < 6; i++) {
        close(fds[i]);
    }
    run_until(n_open() == 0);
    int fd = raw_connect(port);
    raw_ask(fd, GET("/hello"), "hello");
    close(fd);
}

/* Full of requests that are being served: the next is refused. */
static void all_busy(void **state)
{
    (void)state;
    struct seen s = {0};
    limits = (struct http_limits){.max_conns = 1};
    start();
    int fd = raw_connect(port);
    raw_text(fd, GET("/wait"));
    run_until(waiting != NULL);
    int other = raw_connect(port);
    raw_until(other, &s, NULL);
    assert_int_equal(s.n, 0);
    respond(waiting, "x");
    raw_ask(fd, "", "x");
    close(fd);
    close(other);
}

static void does_not_read(void **state)
{
    (void)state;
    limits = (struct http_limits){.send_ms = 60};
    start();
    int fd = raw_connect(port);
    raw_text(fd, GET("/huge"));
    run_until(handled == 1);
    run_until(n_open() == 0);
    close(fd);

    /* All unsent answers together are bounded: the longest goes, the other stays. */
    http_server_close(server, 0, NULL, NULL);
    limits = (struct http_limits){.max_memory = 16 << 20, .idle_ms = 400};
    start();
    int a = raw_connect(port), b = raw_connect(port);
    raw_text(a, GET("/huge"));
    raw_ask(b, GET("/hello"), "hello");
    run_until(n_open() == 1);
    raw_ask(b, GET("/hello"), "hello");
    close(a);
    close(b);
}

static void open_unix_door(char path[128])
{
    snprintf(path, 128, "%s/s", folder);
    assert_int_equal(http_server_listen_unix(server, path, 0600, (gid_t)-1), 0);
}

static int unix_connect(const char *path)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    memcpy(sun.sun_path, path, strlen(path) + 1);
    assert_int_equal(connect(fd, (struct sockaddr *)&sun, sizeof sun), 0);
    return fd;
}

/* At a unix socket somebody may page through what a command prints. */
static void reads_when_he_likes(void **state)
{
    (void)state;
    char path[128];
    limits = (struct http_limits){.send_ms = 200};
    start();
    open_unix_door(path);
    int a = unix_connect(path), b = raw_connect(port);
    raw_text(a, GET("/huge"));
    raw_text(b, GET("/huge"));
    run_until(handled == 2);
    assert_int_equal(n_open(), 2);
    run_until(n_open() == 1); /* at its time, and the other one at another */
    raw_ask(a, "", " 200 OK");
    assert_int_equal(n_open(), 1);
    close(a);
    close(b);
}

/* Some of the next request makes no difference. */
static void does_not_read_but_writes(void **state)
{
    (void)state;
    static const struct http_limits cases[] = {
        {.send_ms = 60, .head_ms = 60000, .body_ms = 60000},
        {.max_memory = 300000, .head_ms = 60000, .body_ms = 60000},
    };
    static const char *const some[] = {"G", "PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx"};
    for (unsigned i = 0; i < 4; i++) {
        char path[128], text[512];
        limits = cases[i / 2];
        start();
        open_unix_door(path);
        int a = unix_connect(path), b = unix_connect(path);
        snprintf(text, sizeof text, "%s%s", GET("/big") GET("/big") GET("/big") GET("/big"), some[i % 2]);
        raw_text(a, text); /* more than the socket takes, and not so much that no more is read */
        raw_ask(b, GET("/hello"), "hello");
        run_until(n_open() == 1);
        raw_ask(b, GET("/hello"), "hello");
        close(a);
        close(b);
        closed = false;
        http_server_close(server, 0, on_server_closed, &closed);
        run_until(closed);
    }
}

static void bodies_are_bounded(void **state)
{
    (void)state;
    static char body[60000];
    struct seen s = {0};
    limits = (struct http_limits){.max_memory = 100000};
    start();
    int a = raw_connect(port), b = raw_connect(port);
    raw_text(a, "PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 60001\r\n\r\n");
    raw_send(a, body, sizeof body);
    raw_text(b, "PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 60001\r\n\r\n");
    raw_send(b, body, sizeof body);
    raw_until(b, &s, " 503 Service Unavailable");
    seen_free(&s);
    close(b);
    raw_text(a, "x");
    run_until(handled == 1);
    close(a);
}

/* More than is read ahead, while the first is being served; then all of it is. */
static void reads_ahead(void **state)
{
    (void)state;
    static char body[400 * 1000];
    struct seen s = {0};
    size_t at = 0;
    start();
    int fd = raw_connect(port);
    raw_text(fd, GET("/wait") "PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 400000\r\n\r\n");
    memset(body, 'r', sizeof body);
    memcpy(body + sizeof body - 3, "end", 3);
    for (int i = 0; i < 50; i++) {
        ssize_t n = send(fd, body + at, sizeof body - at, MSG_NOSIGNAL);
        at += n > 0 ? (size_t)n : 0;
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    assert_int_equal(handled, 1);
    respond(waiting, "first");
    raw_send(fd, body + at, sizeof body - at);
    raw_until(fd, &s, "rend");
    assert_int_equal(handled, 2);
    seen_free(&s);
    close(fd);
}

/* --- doors */

static void unix_door(void **state)
{
    (void)state;
    char path[128];
    struct seen s = {0};
    struct stat st;
    start();
    open_unix_door(path);
    int fd = unix_connect(path);
    raw_text(fd, GET("/who"));
    raw_until(fd, &s, "unix plain - x");
    seen_free(&s);
    close(fd);
    http_server_close(server, 0, on_server_closed, &closed);
    assert_int_not_equal(stat(path, &st), 0);
    run_until(closed);
}

/* --- the end */

static void close_idle(void **state)
{
    (void)state;
    struct seen s = {0};
    start();
    int idle = raw_connect(port), half = raw_connect(port), fresh = raw_connect(port);
    raw_ask(idle, GET("/hello"), "hello");
    raw_text(half, "PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc");
    run_until(n_open() == 3);
    http_server_close(server, 10000, on_server_closed, &closed);
    assert_false(closed);
    run_until(closed);
    raw_until(idle, &s, NULL);
    raw_until(half, &s, NULL);
    raw_until(fresh, &s, NULL);
    assert_int_equal(s.n, 0);
    close(idle);
    close(half);
    close(fresh);
}

static void close_waits_for_answers(void **state)
{
    (void)state;
    struct seen s = {0};
    start();
    int fd = raw_connect(port), stream = raw_connect(port);
    raw_text(stream, GET("/wait"));
    run_until(waiting != NULL);
    http_stream_start(waiting, 200, NULL);
    waiting = NULL;
    raw_text(fd, GET("/wait") GET("/hello"));
    run_until(waiting != NULL);
    http_server_close(server, 10000, on_server_closed, &closed);
    /* The streamed one is cut at once, the door is shut. */
    raw_until(stream, &s, NULL);
    seen_free(&s);
    assert_int_equal(gone, 1);
    assert_non_null(waiting);
    respond(waiting, "just in time");
    raw_until(fd, &s, NULL);
    assert_non_null(strstr(s.text, "Connection: close"));
    assert_non_null(strstr(s.text, "just in time"));
    seen_free(&s);
    run_until(closed);
    assert_int_equal(handled, 2); /* what came behind it was not begun */
    close(fd);
    close(stream);
}

static void close_has_a_deadline(void **state)
{
    (void)state;
    start();
    int fd = raw_connect(port), slow = raw_connect(port);
    raw_text(slow, GET("/huge"));
    raw_text(fd, GET("/wait"));
    run_until(waiting != NULL && handled == 2);
    http_server_close(server, 50, on_server_closed, &closed);
    run_until(closed);
    assert_int_equal(gone, 2);
    close(fd);
    close(slow);
}

static void close_inside(void **state)
{
    (void)state;
    struct seen s = {0};
    start();
    int fd = raw_connect(port);
    raw_text(fd, GET("/close"));
    raw_until(fd, &s, NULL);
    assert_non_null(strstr(s.text, "closing"));
    seen_free(&s);
    run_until(closed);
    close(fd);
}

/* The server is closed from on_gone: of an answered request, of one that others follow, of one whose peer left. */
static void close_when_it_is_gone(void **state)
{
    (void)state;
    static const char *const requests[] = {GET("/hello"), GET("/hello") GET("/hello") GET("/wait"),
        GET("/abort"), GET("/big"), GET("/stream") GET("/hello"), GET("/wait")};
    for (size_t i = 0; i < sizeof requests / sizeof requests[0]; i++) {
        close_when_gone = true;
        closed = false;
        start();
        int fd = raw_connect(port), other = raw_connect(port);
        raw_text(other, "PUT /half");
        raw_text(fd, requests[i]);
        if (i == 5) {
            run_until(waiting != NULL);
            shutdown(fd, SHUT_WR);
        }
        run_until(closed);
        assert_int_equal(handled, gone);
        close(fd);
        close(other);
    }
}

/* --- TLS */

static void over_tls(void **state)
{
    (void)state;
    struct http_stats st;
    assert_int_equal(
        tls_ctx_new(TLS_SERVER | TLS_PEER_OPTIONAL, server_chain, server_id.key, ca.cert, &tls), 0);
    start();
    int fd = raw_connect(port);
    raw_text(fd, GET("/hello"));
    struct seen s = {0};
    raw_until(fd, &s, NULL);
    assert_int_equal(handled, 0);
    seen_free(&s);
    close(fd);
    run_until(n_open() == 0);
    http_server_stats(server, &st);
    assert_int_equal(st.requests, 0);
    assert_int_equal(st.no_handshake, 1);
}

static uint64_t measured(const struct http_class *class)
{
    uint64_t n = 0;
    for (int i = 0; i <= HISTOGRAM_LIMITS; i++) {
        n += class->durations.counts[i];
    }
    return n;
}

/* Requests are counted once each, by class and by what became of them. */
static void counts(void **state)
{
    (void)state;
    struct http_stats st;
    start();
    int fd = raw_connect(port);
    raw_ask(fd, GET("/hello"), "hello");
    raw_ask(fd, GET("/unknown"), "no such");
    raw_ask(fd, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", "abc");
    raw_ask(fd, GET("/stream"), "two");
    raw_text(fd, GET("/cut"));
    run_until(n_open() == 0);
    close(fd);
    static const char *const unanswered[] = {GET("/abort"), GET("/wait")};
    for (int i = 0; i < 2; i++) {
        fd = raw_connect(port);
        raw_text(fd, unanswered[i]);
        run_until(waiting != NULL || gone == 6);
        close(fd);
        run_until(n_open() == 0);
    }
    fd = raw_connect(port);
    raw_ask(fd, "GET / HTTP/9\r\n\r\n", "invalid");
    close(fd);
    run_until(n_open() == 0);
    http_server_stats(server, &st);
    assert_int_equal(st.requests, 7);
    assert_int_equal(st.malformed, 1);
    assert_int_equal(st.no_handshake, 0);
    const struct http_class *plain = &st.classes[0];
    assert_int_equal(plain->answers[2], 2); /* also the one that was cut behind its beginning */
    assert_int_equal(plain->answers[4], 1);
    assert_int_equal(plain->answers[0], 2);
    assert_int_equal(measured(plain), 3);
    assert_true(plain->durations.sum_ns > 0);
    assert_int_equal(st.classes[3].answers[2], 1);
    assert_int_equal(measured(&st.classes[3]), 1);
    assert_int_equal(st.classes[HTTP_CLASSES - 1].answers[2], 1);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, begin, end)
    const struct CMUnitTest tests[] = {
        TEST(answers),
        TEST(streamed),
        TEST(head),
        TEST(connection_header),
        TEST(expects_100),
        TEST(pipelining),
        TEST(pipelines_take_turns),
        TEST(overlapping),
        TEST(overlapping_in_order),
        TEST(overlapping_in_handler),
        TEST(overlapping_no_others),
        TEST(overlapping_stream),
        TEST(overlapping_drain),
        TEST(overlapping_ends),
        TEST(overlapping_closed),
        TEST(large_answer),
        TEST(peer_leaves),
        TEST(answered_later),
        TEST(back_pressure),
        TEST(bad_requests),
        TEST(too_slow),
        TEST(patience),
        TEST(crowd),
        TEST(one_address),
        TEST(all_busy),
        TEST(does_not_read),
        TEST(reads_when_he_likes),
        TEST(does_not_read_but_writes),
        TEST(bodies_are_bounded),
        TEST(reads_ahead),
        TEST(unix_door),
        TEST(close_idle),
        TEST(close_waits_for_answers),
        TEST(close_has_a_deadline),
        TEST(close_inside),
        TEST(close_when_it_is_gone),
        TEST(over_tls),
        TEST(counts),
    };
    return cmocka_run_group_tests(tests, group_begin, group_end);
}
