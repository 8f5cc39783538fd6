/* The HTTP client: against the server, plain and over TLS, and against a peer that says what the test wants.
 */
#include "net/http.h"
#include "net_support.h"

struct call {
    struct http_call *c;
    unsigned heads, pieces, done;
    int err, status, head_status;
    char why[256];
    struct buf body; /* what on_data or on_done gave */
    bool body_was_null;
    int cancel_at; /* 1: in on_head, 2: in on_data */
    bool pause;    /* in the first on_data */
    int block_ms;  /* in the first on_data, and nothing else runs meanwhile */
    int check;     /* what check_peer says */
    char peer[64];
};

static struct call call;
static struct http_server *server;
static struct listener *listener;
static uint16_t port;
static unsigned handled, gone;
static struct http_req *waiting;
static struct tls_ctx *server_tls, *client_tls;

/* --- the server */

static void on_gone(struct http_req *req)
{
    gone++;
    waiting = waiting == req ? NULL : waiting;
}

static void handle(struct http_req *req, void *arg)
{
    (void)arg;
    handled++;
    req->on_gone = on_gone;
    if (strcmp(req->path, "/echo") == 0) {
        http_respond(req, 200, NULL, NULL, req->body, req->body_len);
    } else if (strcmp(req->path, "/about") == 0) {
        char text[256];
        snprintf(text, sizeof text, "%s %s %s %s %s", req->method, req->query, http_req_header(req, "x-a"),
            http_req_header(req, "host"), req->peer != NULL && req->peer->present ? req->peer->cert.cn : "-");
        http_respond(req, 201, "text/plain", NULL, text, strlen(text));
    } else if (strcmp(req->path, "/wait") == 0) {
        waiting = req;
    } else if (strcmp(req->path, "/stream") == 0) {
        http_stream_start(req, 200, NULL);
        http_stream_write(req, "one,", 4);
        http_stream_write(req, "two,", 4);
        http_stream_write(req, "three", 5);
        http_stream_end(req);
    } else if (strcmp(req->path, "/cut") == 0) {
        http_stream_start(req, 200, NULL);
        http_stream_write(req, "half", 4);
        http_abort(req);
    } else {
        http_respond_error(req, SYM_ENOTFOUND, "nothing here", NULL);
    }
}

static void start(struct tls_ctx *tls)
{
    assert_int_equal(http_server_new(&loop, NULL, handle, NULL, &server), 0);
    assert_int_equal(http_server_listen_tcp(server, "127.0.0.1", 0, tls, &port), 0);
}

/* --- a peer that answers anything with @canned, in pieces, and then ends the connection if @canned_end */

static const char *canned[4];
static bool canned_end;
static struct stream *peer;

static void peer_data(struct stream *s, const uint8_t *data, size_t n)
{
    (void)data;
    (void)n;
    for (int i = 0; i < 4 && canned[i] != NULL; i++) {
        stream_write(s, canned[i], strlen(canned[i]));
    }
    if (canned_end) {
        stream_finish(s, 1000);
    }
}

static void peer_close(struct stream *s, int status)
{
    (void)s;
    (void)status;
    peer = NULL;
}

static bool peer_accept(void *arg, const struct peer_addr *from, struct stream_config *cfg)
{
    static const struct stream_ops ops = {.on_data = peer_data, .on_close = peer_close};
    (void)arg;
    (void)from;
    cfg->ops = &ops;
    return true;
}

static void peer_opened(void *arg, struct stream *s)
{
    (void)arg;
    peer = s;
}

static void say(const char *text, bool and_end)
{
    memset(canned, 0, sizeof canned);
    canned[0] = text;
    canned_end = and_end;
    if (listener == NULL) {
        assert_int_equal(listener_tcp(&loop, "127.0.0.1", 0, peer_accept, peer_opened, NULL, &listener), 0);
        port = listener_port(listener);
    }
}

/* --- the call */

static void on_head(void *arg, int status)
{
    struct call *k = arg;
    k->heads++;
    k->head_status = status;
    if (k->cancel_at == 1) {
        http_call_cancel(k->c);
    }
}

static void on_data(void *arg, const uint8_t *data, size_t n)
{
    struct call *k = arg;
    k->pieces++;
    assert_int_equal(buf_append(&k->body, data, n), 0);
    if (k->block_ms > 0) {
        poll(NULL, 0, k->block_ms);
        k->block_ms = 0;
    }
    if (k->pause) {
        k->pause = false;
        http_call_pause(k->c);
    }
    if (k->cancel_at == 2) {
        http_call_cancel(k->c);
        http_call_cancel(k->c);
    }
}

static void on_done(void *arg, int err, int status, const uint8_t *body, size_t n)
{
    struct call *k = arg;
    k->done++;
    k->err = err;
    k->status = status;
    k->body_was_null = body == NULL;
    snprintf(k->why, sizeof k->why, "%s", err != 0 ? err_msg() : "");
    if (body != NULL) {
        assert_int_equal(body[n], 0);
        assert_int_equal(buf_append(&k->body, body, n), 0);
    }
}

static int check_peer(void *arg, struct stream *s)
{
    struct call *k = arg;
    snprintf(k->peer, sizeof k->peer, "%s", stream_tls_peer(s)->cert.cn);
    return k->check != 0 ? err_setf(k->check, "not the peer that we want") : 0;
}

static struct http_call_opts opts(const char *method, const char *path)
{
    buf_free(&call.body);
    memset(&call, 0, sizeof call);
    return (struct http_call_opts){
        .host = "127.0.0.1",
        .port = port,
        .method = method,
        .path = path,
        .on_head = on_head,
        .on_done = on_done,
        .arg = &call,
    };
}

static void start_call(const struct http_call_opts *o)
{
    assert_int_equal(http_call_start(&loop, o, &call.c), 0);
    assert_int_equal(call.done, 0);
}

static void run_call(const struct http_call_opts *o)
{
    start_call(o);
    run_until(call.done);
    assert_int_equal(call.done, 1);
}

static void succeeded(int status, const char *body)
{
    if (call.err != 0) {
        print_error("failed: %s: %s\n", err_name(call.err), call.why);
    }
    assert_int_equal(call.err, 0);
    assert_int_equal(call.status, status);
    assert_int_equal(call.head_status, status);
    assert_int_equal(call.heads, 1);
    assert_int_equal(call.body.len, strlen(body));
    assert_memory_equal(call.body.len > 0 ? (char *)buf_data(&call.body) : "", body, strlen(body));
}

static void failed(int err, int status, const char *why)
{
    if (call.err != err || strstr(call.why, why) == NULL) {
        print_error("ended with %s: %s; expected %s: %s\n", err_name(call.err), call.why, err_name(err), why);
    }
    assert_int_equal(call.err, err);
    assert_int_equal(call.status, status);
    assert_non_null(strstr(call.why, why));
    assert_true(call.body_was_null);
}

static int begin(void **state)
{
    memset(&call, 0, sizeof call);
    server = NULL;
    listener = NULL;
    peer = NULL;
    waiting = NULL;
    handled = gone = 0;
    folder_begin();
    return loop_begin(state);
}

static int end(void **state)
{
    if (server != NULL) {
        http_server_close(server, 0, NULL, NULL);
    }
    if (listener != NULL) {
        listener_close(listener);
    }
    if (peer != NULL) {
        stream_close(peer, 0);
    }
    buf_free(&call.body);
    int rv = loop_end(state);
    rmdir(folder);
    if (server_tls != NULL) {
        tls_ctx_free(server_tls);
    }
    if (client_tls != NULL) {
        tls_ctx_free(client_tls);
    }
    server_tls = client_tls = NULL;
    return handled == gone ? rv : -1;
}

/* --- against the server */

static void calls(void **state)
{
    (void)state;
    char want[128];
    start(NULL);
    struct http_call_opts o = opts("POST", "/echo");
    o.body = "hello";
    o.body_len = 5;
    run_call(&o);
    succeeded(200, "hello");

    o = opts("DELETE", "/about?a=b");
    o.headers = "X-A: 1\r\nX-B: 2\r\n";
    run_call(&o);
    snprintf(want, sizeof want, "DELETE a=b 1 127.0.0.1:%u -", port);
    succeeded(201, want);

    o = opts("HEAD", "/about");
    o.headers = "X-A: 1\r\n";
    run_call(&o);
    succeeded(201, "");

    o = opts("GET", "/stream");
    run_call(&o);
    succeeded(200, "one,two,three");

    o = opts("GET", "/none");
    run_call(&o);
    assert_int_equal(call.err, 0);
    assert_int_equal(call.status, 404);

    o = opts("GET", "/stream");
    o.on_head = NULL;
    o.on_data = on_data;
    run_call(&o);
    call.heads = 1;
    call.head_status = 200;
    succeeded(200, "one,two,three");
    assert_true(call.body_was_null);
}

static void large_bodies(void **state)
{
    (void)state;
    enum { N = 2000000 };
    static uint8_t big[N];
    for (size_t i = 0; i < N; i++) {
        big[i] = (uint8_t)(i >> 4);
    }
    start(NULL);
    for (int streamed = 0; streamed < 2; streamed++) {
        struct http_call_opts o = opts("PUT", "/echo");
        o.body = big;
        o.body_len = N;
        o.on_data = streamed ? on_data : NULL;
        run_call(&o);
        assert_int_equal(call.err, 0);
        assert_int_equal(call.body.len, N);
        assert_memory_equal(buf_data(&call.body), big, N);
    }
}

static void over_unix(void **state)
{
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s/s", folder);
    start(NULL);
    assert_int_equal(http_server_listen_unix(server, path, 0600, (gid_t)-1), 0);
    struct http_call_opts o = opts("GET", "/about");
    o.host = NULL;
    o.unix_path = path;
    o.headers = "X-A: 1\r\n";
    run_call(&o);
    succeeded(201, "GET  1 localhost -");

    snprintf(path, sizeof path, "%s/nobody", folder);
    o = opts("GET", "/about");
    o.unix_path = path;
    run_call(&o);
    failed(SYM_ECONNECT, 0, path);
}

static void misuse(void **state)
{
    (void)state;
    static const struct http_call_opts bad[] = {
        {.method = "GET", .path = "/"},
        {.host = "h", .port = 1, .method = "GET", .path = "/ HTTP/1.1"},
        {.host = "h", .port = 1, .method = "GET", .path = ""},
        {.host = "h", .port = 1, .method = "GET", .path = "relative"},
        {.host = "h", .port = 1, .method = "GE T", .path = "/"},
        {.host = "h", .port = 1, .method = "", .path = "/"},
        {.host = "h", .port = 1, .method = "GET", .path = "/", .headers = "A: b"},
        {.host = "h", .port = 1, .method = "GET", .path = "/", .headers = "A: b\n"},
        {.host = "h", .port = 1, .method = "GET", .path = "/", .headers = "\r\n\r\n"},
        {.host = "h", .port = 1, .method = "GET", .path = "/", .headers = " A: b\r\n"},
        {.host = "h", .port = 1, .method = "GET", .path = "/", .headers = "A b\r\n"},
        {.host = "h", .port = 1, .method = "GET", .path = "/", .headers = "A: b\r\nHost: c\r\n"},
        {.host = "h", .port = 1, .method = "GET", .path = "/", .headers = "content-length: 5\r\n"},
        {.host = "h\r\nX: y", .port = 1, .method = "GET", .path = "/"},
        {.host = "127.0.0.1", .port = 0, .method = "GET", .path = "/"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct http_call_opts o = bad[i];
        struct http_call *c;
        o.on_done = on_done;
        if (http_call_start(&loop, &o, &c) != SYM_EINVAL) {
            print_error("case %zu was taken\n", i);
            fail();
        }
    }
}

/* Runs between the data and the end that they lead to. */
static void cancel_after_head(uv_check_t *check)
{
    (void)check;
    if (call.heads == 1 && call.done == 0) {
        http_call_cancel(call.c);
    }
}

static void cancels(void **state)
{
    (void)state;
    uv_check_t check;
    uv_check_init(&loop, &check);
    start(NULL);
    for (int step = 0; step < 6; step++) {
        struct http_call_opts o = opts("GET", step == 3 ? "/wait" : "/stream");
        o.on_data = step == 2 ? on_data : NULL;
        if (step == 5) {
            o.host = "localhost";
        }
        call.cancel_at = step;
        start_call(&o);
        if (step == 0 || step == 5) {
            http_call_cancel(call.c);
        } else if (step == 3) {
            run_until(waiting != NULL);
            http_call_cancel(call.c);
        } else if (step == 4) {
            uv_check_start(&check, cancel_after_head);
        }
        run_until(call.done);
        assert_int_equal(call.err, SYM_ECANCELED);
        assert_string_equal(call.why, "canceled");
        uv_check_stop(&check);
    }
    uv_close((uv_handle_t *)&check, NULL);
    run_until(handled == gone);
}

static void times_out(void **state)
{
    (void)state;
    start(NULL);
    struct http_call_opts o = opts("GET", "/wait");
    o.timeout_ms = 50;
    run_call(&o);
    failed(SYM_ETIMEOUT, 0, "no answer within 50 ms");
    run_until(waiting == NULL);

    o = opts("GET", "/wait");
    o.idle_ms = 50;
    start_call(&o);
    run_until(waiting != NULL);
    http_stream_start(waiting, 200, NULL);
    http_stream_write(waiting, "x", 1);
    run_until(call.done);
    failed(SYM_ETIMEOUT, 200, "the answer stopped");
    run_until(waiting == NULL);

    /* As long as something comes it goes on. */
    o = opts("GET", "/wait");
    o.idle_ms = 1000;
    o.on_data = on_data;
    start_call(&o);
    run_until(waiting != NULL);
    http_stream_start(waiting, 200, NULL);
    for (unsigned i = 1; i <= 8; i++) {
        http_stream_write(waiting, "x", 1);
        run_until(call.pieces == i);
        poll(NULL, 0, 150);
    }
    http_stream_end(waiting);
    run_until(call.done);
    succeeded(200, "xxxxxxxx");
}

/* Who takes long for a piece, as a client whose terminal stands still, has not waited for the next one. */
static void blocks(void **state)
{
    (void)state;
    start(NULL);
    struct http_call_opts o = opts("GET", "/wait");
    o.on_data = on_data;
    o.idle_ms = 1000;
    call.block_ms = 1500;
    start_call(&o);
    run_until(waiting != NULL);
    http_stream_start(waiting, 200, NULL);
    http_stream_write(waiting, "one,", 4);
    run_until(call.pieces == 1);
    http_stream_write(waiting, "two", 3);
    http_stream_end(waiting);
    run_until(call.done);
    succeeded(200, "one,two");
}

static void pauses(void **state)
{
    (void)state;
    enum { PIECE = 100000 };
    static char piece[PIECE];
    size_t sent = 0;
    start(NULL);
    struct http_call_opts o = opts("GET", "/wait");
    o.on_data = on_data;
    o.idle_ms = 1000;
    call.pause = true;
    start_call(&o);
    run_until(waiting != NULL);
    http_stream_start(waiting, 200, NULL);
    while (http_stream_write(waiting, piece, PIECE) == 0) {
        sent += PIECE;
    }
    sent += PIECE;
    run_until(call.pieces == 1);
    /* Nothing more comes, nor does the pause count as silence. */
    for (int i = 0; i < 24; i++) {
        uv_run(&loop, UV_RUN_NOWAIT);
        poll(NULL, 0, 50);
    }
    assert_int_equal(call.pieces, 1);
    assert_int_equal(call.done, 0);
    http_stream_end(waiting);
    http_call_resume(call.c);
    run_until(call.done);
    assert_int_equal(call.err, 0);
    assert_int_equal(call.body.len, sent);

    /* All of it came before the pause: the end waits, too. */
    o = opts("GET", "/stream");
    o.on_data = on_data;
    call.pause = true;
    start_call(&o);
    run_until(call.pieces > 0);
    for (int i = 0; i < 20; i++) {
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    assert_int_equal(call.done, 0);
    http_call_resume(call.c);
    run_until(call.done);
    succeeded(200, "one,two,three");
}

/* --- against a peer that misbehaves, or just behaves otherwise */

static void other_answers(void **state)
{
    (void)state;
    struct http_call_opts o;
    say("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false);
    o = opts("GET", "/");
    run_call(&o);
    succeeded(200, "ok");

    say("HTTP/1.0 200 OK\r\n\r\nto the end", true);
    o = opts("GET", "/");
    run_call(&o);
    succeeded(200, "to the end");

    say("HTTP/1.1 204 No Content\r\n\r\n", false);
    o = opts("GET", "/");
    run_call(&o);
    succeeded(204, "");

    say("HTTP/1.1 103 Hints\r\nContent-Length: 4\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        false);
    o = opts("GET", "/");
    run_call(&o);
    succeeded(200, "ok");

    say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more", false);
    o = opts("GET", "/");
    run_call(&o);
    succeeded(200, "ok");
}

static void bad_answers(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool and_end;
        int err, status;
        const char *why;
    } cases[] = {
        {"SSH-2.0-OpenSSH\r\n", false, SYM_EPROTO, 0, "not an HTTP answer"},
        {"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", false, SYM_EPROTO,
            0, ""},
        {"HTTP/1.1 1\r\nContent-Length: 0\r\n\r\n", false, SYM_EPROTO, 0, "not an HTTP answer"},
        {"HTTP/1.1 000 None\r\nContent-Length: 0\r\n\r\n", false, SYM_EPROTO, 0, "not an HTTP answer"},
        {"HTTP/1.1 600 Much\r\nContent-Length: 0\r\n\r\n", false, SYM_EPROTO, 0, "not an HTTP answer"},
        {"", true, SYM_ECLOSED, 0, "without an answer"},
        {"HTTP/1.1 200 OK\r\nContent-Le", true, SYM_ECLOSED, 0, "without an answer"},
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhal", true, SYM_ECLOSED, 200, "cut"},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal", true, SYM_ECLOSED, 200, "cut"},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", false, SYM_EPROTO, 200,
            "not an HTTP answer"},
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", true, SYM_ETOOBIG, 200, "the body"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        say(cases[i].text, cases[i].and_end);
        struct http_call_opts o = opts("GET", "/");
        o.max_body = 4;
        run_call(&o);
        failed(cases[i].err, cases[i].status, cases[i].why);
    }
    char *big = malloc(100000);
    memset(big, 'a', 99999);
    memcpy(big, "HTTP/1.1 200 OK\r\nA: ", 20);
    big[99999] = '\0';
    say(big, false);
    struct http_call_opts o = opts("GET", "/");
    run_call(&o);
    failed(SYM_ETOOBIG, 0, "the head");
    free(big);
}

static void cut_by_the_server(void **state)
{
    (void)state;
    start(NULL);
    struct http_call_opts o = opts("GET", "/cut");
    o.on_data = on_data;
    run_call(&o);
    assert_int_equal(call.err, SYM_ECLOSED);
    assert_int_equal(call.status, 200);
}

/* --- TLS */

/* What was asked may have been done: that is another thing than a peer that was never reached. */
static void cut_over_tls(void **state)
{
    (void)state;
    assert_int_equal(
        tls_ctx_new(TLS_SERVER | TLS_PEER_OPTIONAL, server_chain, server_id.key, ca.cert, &server_tls), 0);
    assert_int_equal(tls_ctx_new(0, client_id.cert, client_id.key, ca.cert, &client_tls), 0);
    start(server_tls);
    struct http_call_opts o = opts("GET", "/cut");
    o.tls = client_tls;
    o.on_data = on_data;
    run_call(&o);
    assert_int_equal(call.err, SYM_ECLOSED);
}

static void over_tls(void **state)
{
    (void)state;
    char want[128];
    struct ident other;
    assert_int_equal(
        tls_ctx_new(TLS_SERVER | TLS_PEER_OPTIONAL, server_chain, server_id.key, ca.cert, &server_tls), 0);
    assert_int_equal(tls_ctx_new(0, client_id.cert, client_id.key, ca.cert, &client_tls), 0);
    start(server_tls);
    struct http_call_opts o = opts("GET", "/about");
    o.headers = "X-A: 1\r\n";
    o.tls = client_tls;
    o.check_peer = check_peer;
    run_call(&o);
    snprintf(want, sizeof want, "GET  1 127.0.0.1:%u client-node", port);
    succeeded(201, want);
    assert_string_equal(call.peer, "server-node");

    /* The peer is not the one that is wanted: not a byte of the request leaves. */
    handled = gone = 0;
    o = opts("GET", "/about");
    o.tls = client_tls;
    o.check_peer = check_peer;
    call.check = SYM_EAUTH;
    run_call(&o);
    failed(SYM_EAUTH, 0, "not the peer that we want");
    assert_int_equal(handled, 0);

    /* A renewed certificate serves new connections. */
    struct tls_ctx *renewed;
    make_ident(&ca, "renewed-node", "manager", true, 3600, &other);
    assert_int_equal(
        tls_ctx_new(TLS_SERVER | TLS_PEER_OPTIONAL, other.cert, other.key, ca.cert, &renewed), 0);
    http_server_set_tls(server, renewed);
    tls_ctx_free(server_tls);
    server_tls = renewed;
    o = opts("GET", "/echo");
    o.tls = client_tls;
    o.check_peer = check_peer;
    run_call(&o);
    succeeded(200, "");
    assert_string_equal(call.peer, "renewed-node");
    ident_free(&other);
}

static void dropped_by_name(void **state)
{
    (void)state;
    assert_int_equal(
        tls_ctx_new(TLS_SERVER | TLS_PEER_OPTIONAL, server_chain, server_id.key, ca.cert, &server_tls), 0);
    assert_int_equal(tls_ctx_new(0, client_id.cert, client_id.key, ca.cert, &client_tls), 0);
    start(server_tls);
    struct http_call_opts o = opts("GET", "/wait");
    o.tls = client_tls;
    start_call(&o);
    run_until(waiting != NULL);
    http_server_drop_cn(server, "server-node");
    http_server_drop_cn(server, "client");
    for (int i = 0; i < 10; i++) {
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    assert_non_null(waiting);
    http_server_drop_cn(server, "client-node");
    run_until(call.done);
    assert_null(waiting);
    assert_int_not_equal(call.err, 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, begin, end)
    const struct CMUnitTest tests[] = {
        TEST(calls),
        TEST(large_bodies),
        TEST(over_unix),
        TEST(misuse),
        TEST(cancels),
        TEST(times_out),
        TEST(blocks),
        TEST(pauses),
        TEST(other_answers),
        TEST(bad_answers),
        TEST(cut_by_the_server),
        TEST(cut_over_tls),
        TEST(over_tls),
        TEST(dropped_by_name),
    };
    return cmocka_run_group_tests(tests, group_begin, group_end);
}
