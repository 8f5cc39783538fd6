/* How much a request costs the server: 64 kept-alive connections put 256 bytes each, over and over. Prints a
 * figure and checks only that every request was answered.
 *
 *   test_net_rate [REQUESTS [CONNECTIONS [tls]]]
 */
#include "net/http.h"
#include "net_support.h"

#include <sys/resource.h>
#include <sys/wait.h>

static unsigned n_requests = 20000, n_conns = 64;
static bool with_tls;
static struct tls_ctx *server_tls, *client_tls;

/* --- the server, in a process of its own */

struct report {
    uint64_t handled;
    double user, sys; /* CPU seconds while it served */
};

static uv_loop_t own;
static struct http_server *http;
static struct report report;
static int line; /* to the parent: the port at the beginning, the report at the end, which its closing brings
                    about */

static void handle(struct http_req *req, void *arg)
{
    static const char body[] = "{\"revision\":12345}\n";
    (void)arg;
    report.handled++;
    http_respond(req, 200, NULL, NULL, body, sizeof body - 1);
}

static void on_parent(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    http_server_close(http, 0, NULL, NULL);
    uv_close((uv_handle_t *)poll, NULL);
}

static void used(int sign)
{
    struct rusage now;
    getrusage(RUSAGE_SELF, &now);
    report.user += sign * ((double)now.ru_utime.tv_sec + (double)now.ru_utime.tv_usec / 1e6);
    report.sys += sign * ((double)now.ru_stime.tv_sec + (double)now.ru_stime.tv_usec / 1e6);
}

static int serve(struct tls_ctx *tls)
{
    uv_poll_t poll;
    uint16_t port;
    uv_loop_init(&own);
    uv_poll_init(&own, &poll, line);
    uv_poll_start(&poll, UV_READABLE, on_parent);
    if (http_server_new(&own, NULL, handle, NULL, &http) != 0 ||
        http_server_listen_tcp(http, "127.0.0.1", 0, tls, &port) != 0 ||
        write(line, &port, sizeof port) != sizeof port) {
        return 1;
    }
    used(-1);
    uv_run(&own, UV_RUN_DEFAULT);
    used(1);
    return write(line, &report, sizeof report) != sizeof report;
}

/* Returns the server's port. */
static uint16_t start_server(pid_t *pid)
{
    int ends[2];
    uint16_t port;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    *pid = fork();
    assert_true(*pid >= 0);
    if (*pid == 0) {
        close(ends[0]);
        line = ends[1];
        _exit(serve(server_tls));
    }
    close(ends[1]);
    line = ends[0];
    assert_int_equal(read(line, &port, sizeof port), sizeof port);
    return port;
}

/* --- the clients */

struct client {
    struct stream *s;
    struct buf in;
};
static struct client *clients;
static char *request;
static size_t request_len;
static unsigned sent, answered, n_open, n_closed;

static void next(struct client *c)
{
    if (sent < n_requests) {
        sent++;
        stream_write(c->s, request, request_len);
    }
}

static void on_open(struct stream *s)
{
    (void)s;
    n_open++;
}

static void on_data(struct stream *s, const uint8_t *data, size_t n)
{
    struct client *c = stream_data(s);
    if (c->in.len == 0 && n > 2 && data[n - 2] == '}') {
        answered++;
        next(c);
        return;
    }
    assert_int_equal(buf_append(&c->in, data, n), 0);
    if (buf_data(&c->in)[c->in.len - 2] == '}') {
        buf_clear(&c->in);
        answered++;
        next(c);
    }
}

static void on_close(struct stream *s, int status)
{
    struct client *c = stream_data(s);
    (void)status;
    buf_free(&c->in);
    n_closed++;
}

static void rate(void **state)
{
    (void)state;
    static const struct stream_ops ops = {.on_open = on_open, .on_data = on_data, .on_close = on_close};
    struct buf out = {0};
    char value[257];
    pid_t pid;
    if (with_tls) {
        assert_int_equal(
            tls_ctx_new(TLS_SERVER | TLS_PEER_OPTIONAL, server_chain, server_id.key, ca.cert, &server_tls),
            0);
        assert_int_equal(tls_ctx_new(0, client_id.cert, client_id.key, ca.cert, &client_tls), 0);
    }
    uint16_t port = start_server(&pid);

    memset(value, 'v', 256);
    value[256] = '\0';
    assert_int_equal(
        buf_appendf(&out,
            "PUT /v1/kv/bench/00012345 HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: rate\r\nAccept: */*\r\n"
            "Content-Length: 256\r\n\r\n%s",
            value),
        0);
    request = (char *)buf_data(&out);
    request_len = out.len;
    clients = calloc(n_conns, sizeof *clients);
    assert_non_null(clients);
    for (unsigned i = 0; i < n_conns; i++) {
        struct stream_config cfg = {.ops = &ops, .data = &clients[i], .tls = client_tls, .open_ms = 30000};
        assert_int_equal(stream_connect_tcp(&loop, "127.0.0.1", port, &cfg, &clients[i].s), 0);
    }
    while (n_open < n_conns) {
        uv_run(&loop, UV_RUN_ONCE);
        assert_int_equal(n_closed, 0);
    }
    uint64_t from = uv_hrtime();
    for (unsigned i = 0; i < n_conns; i++) {
        next(&clients[i]);
    }
    while (answered < n_requests) {
        uv_run(&loop, UV_RUN_ONCE);
        assert_int_equal(n_closed, 0);
    }
    double took = (double)(uv_hrtime() - from) / 1e9;
    for (unsigned i = 0; i < n_conns; i++) {
        stream_close(clients[i].s, 0);
    }
    run_until(n_closed == n_conns);
    int code;
    assert_int_equal(shutdown(line, SHUT_WR), 0);
    assert_int_equal(read(line, &report, sizeof report), sizeof report);
    assert_int_equal(waitpid(pid, &code, 0), pid);
    assert_int_equal(code, 0);
    close(line);
    assert_int_equal(report.handled, n_requests);
    print_message(
        "%u requests on %u %s connections: %.0f/s, CPU of the server for each: %.2f us, of which %.2f us in "
        "user space\n",
        n_requests, n_conns, with_tls ? "TLS" : "plain", n_requests / took,
        (report.user + report.sys) / n_requests * 1e6, report.user / n_requests * 1e6);
    free(clients);
    buf_free(&out);
    if (with_tls) {
        tls_ctx_free(server_tls);
        tls_ctx_free(client_tls);
    }
}

int main(int argc, char **argv)
{
    n_requests = argc > 1 ? (unsigned)atoi(argv[1]) : n_requests;
    n_conns = argc > 2 ? (unsigned)atoi(argv[2]) : n_conns;
    with_tls = argc > 3;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(rate, loop_begin, loop_end),
    };
    return cmocka_run_group_tests(tests, group_begin, group_end);
}
