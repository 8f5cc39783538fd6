/* Memory that ends: a whole exchange between client and server, with the n-th allocation failing, for every
 * n. Whatever fails, nothing crashes, every callback comes once, and everything is given back.
 *
 * The program's own malloc is put in front of the system's, so that all of net, and what is below it, is
 * reached.
 */
#include "net/http.h"
#include "net_support.h"

static _Thread_local bool armed;
static _Thread_local long countdown;
static _Thread_local bool hit;

static bool fails(void)
{
    if (!armed || countdown-- > 0) {
        return false;
    }
    hit = true;
    armed = false;
    return true;
}

#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define REAL(f) __interceptor_##f
#else
#define REAL(f) __libc_##f
#endif
void *REAL(malloc)(size_t n);
void *REAL(calloc)(size_t n, size_t size);
void *REAL(realloc)(void *p, size_t n);
void REAL(free)(void *p);

void *malloc(size_t n)
{
    return fails() ? NULL : REAL(malloc)(n);
}
void *calloc(size_t n, size_t size)
{
    return fails() ? NULL : REAL(calloc)(n, size);
}
void *realloc(void *p, size_t n)
{
    return fails() ? NULL : REAL(realloc)(p, n);
}

/* --- the exchange */

static struct http_server *server;
static unsigned begun, gone, done, closed;
static int outcome, status;
static char last_why[300];
static struct tls_ctx *server_tls, *client_tls;
static char body[100000];

static void on_gone(struct http_req *req)
{
    (void)req;
    gone++;
}

static void handle(struct http_req *req, void *arg)
{
    (void)arg;
    begun++;
    req->on_gone = on_gone;
    if (strcmp(req->path, "/stream") == 0) {
        http_stream_start(req, 200, NULL);
        int rv = http_stream_write(req, "piece", 5);
        rv = rv == SYM_ECLOSED ? rv : http_stream_write(req, req->body, req->body_len);
        if (rv == SYM_ECLOSED) {
            http_abort(req);
        } else {
            http_stream_end(req);
        }
    } else if (strcmp(req->path, "/error") == 0) {
        http_respond_error(req, SYM_ENOTFOUND, "nothing here", "nor there");
    } else {
        http_respond(req, 200, NULL, NULL, req->body, req->body_len);
    }
}

static void on_done(void *arg, int err, int code, const uint8_t *data, size_t n)
{
    (void)arg;
    (void)data;
    (void)n;
    done++;
    outcome = err;
    snprintf(last_why, sizeof last_why, "%s", err_msg());
    status = code;
}

static void on_data(void *arg, const uint8_t *data, size_t n)
{
    (void)arg;
    (void)data;
    (void)n;
}

static void on_closed(void *arg)
{
    (void)arg;
    closed++;
}

/* True if it went through undisturbed. */
static bool exchange(long n, bool tls, const char *path, bool collect)
{
    uint16_t port;
    struct http_call *c;
    struct http_limits limits = {.head_ms = 2000, .body_ms = 2000};
    begun = gone = done = closed = 0;
    outcome = status = 0;
    hit = false;
    uv_update_time(&loop);
    countdown = n;
    armed = true;
    int rv = http_server_new(&loop, &limits, handle, NULL, &server);
    if (rv != 0) {
        armed = false;
        assert_int_equal(rv, SYM_ENOMEM);
        return false;
    }
    rv = http_server_listen_tcp(server, "127.0.0.1", 0, tls ? server_tls : NULL, &port);
    if (rv == 0) {
        struct http_call_opts o = {
            .host = "127.0.0.1",
            .port = port,
            .tls = tls ? client_tls : NULL,
            .method = "POST",
            .path = path,
            .headers = "X-A: b\r\n",
            .body = body,
            .body_len = sizeof body,
            .timeout_ms = 2000,
            .on_data = collect ? NULL : on_data,
            .on_done = on_done,
        };
        rv = http_call_start(&loop, &o, &c);
        while (rv == 0 && done == 0) {
            uv_run(&loop, UV_RUN_ONCE);
        }
    }
    http_server_close(server, 1000, on_closed, NULL);
    while (closed == 0) {
        uv_run(&loop, UV_RUN_ONCE);
    }
    armed = false;
    assert_int_equal(closed, 1);
    assert_int_equal(done, rv == 0 ? 1 : 0);
    assert_int_equal(begun, gone);
    if (!hit) {
        if (rv != 0 || outcome != 0) {
            print_error("undisturbed, and yet: %s\n", rv != 0 ? err_msg() : last_why);
        }
        assert_int_equal(rv, 0);
        assert_int_equal(outcome, 0);
    }
    return !hit;
}

static void every_allocation(bool tls, const char *path, bool collect, long step)
{
    long n = 0;
    /* What is set up once and for all, in OpenSSL too, is set up by the first. */
    assert_true(exchange(1000000, tls, path, collect));
    while (!exchange(n, tls, path, collect)) {
        n += step;
        assert_true(n < 100000);
    }
    assert_true(n > 5);
    print_message("%s over %s: %ld allocations\n", path, tls ? "TLS" : "TCP", n);
}

static void plain(void **state)
{
    (void)state;
    every_allocation(false, "/echo", true, 1);
    every_allocation(false, "/stream", false, 1);
    every_allocation(false, "/error", true, 1);
}

static void with_tls(void **state)
{
    (void)state;
    assert_int_equal(
        tls_ctx_new(TLS_SERVER | TLS_PEER_OPTIONAL, server_chain, server_id.key, ca.cert, &server_tls), 0);
    assert_int_equal(tls_ctx_new(0, client_id.cert, client_id.key, ca.cert, &client_tls), 0);
    every_allocation(true, "/stream", true, 29);
    tls_ctx_free(server_tls);
    tls_ctx_free(client_tls);
}

static int fault_begin(void **state)
{
    /* libuv aborts without memory for its own tables: that is not what is looked at here. */
    assert_int_equal(uv_replace_allocator(REAL(malloc), REAL(realloc), REAL(calloc), REAL(free)), 0);
    return group_begin(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(plain, loop_begin, loop_end),
        cmocka_unit_test_setup_teardown(with_tls, loop_begin, loop_end),
    };
    return cmocka_run_group_tests(tests, fault_begin, group_end);
}
