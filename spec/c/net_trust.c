/* What the HTTP server takes from peers that it trusts and from all others, over TLS. */
#include "net/http.h"
#include "net_support.h"

#include <openssl/ssl.h>

enum { SMALL = 60000, LARGE = 200000 };

static struct http_server *server;
static struct http_limits limits;
static struct tls_ctx *server_tls;
static uint16_t port;
static unsigned handled;
static struct http_req *waiting;
static uint8_t body[LARGE];

/* --- the server */

static void on_gone(struct http_req *req)
{
    waiting = waiting == req ? NULL : waiting;
}

static void handle(struct http_req *req, void *arg)
{
    (void)arg;
    char text[64];
    handled++;
    if (strcmp(req->path, "/huge") == 0) {
        static char huge[24 << 20];
        http_respond(
            req, 200, "text/plain", NULL, huge, req->peer->present ? sizeof huge : sizeof huge - (4 << 20));
        return;
    }
    if (strcmp(req->path, "/wait") == 0) {
        req->on_gone = on_gone;
        waiting = req;
        return;
    }
    snprintf(text, sizeof text, "[%zu %s]", req->body_len,
        tls_peer_expired(req->peer) ? "expired"
        : req->peer->present        ? "valid"
                                    : "none");
    http_respond(req, 200, "text/plain", NULL, text, strlen(text));
}

static bool trust_nobody(void *arg, const struct tls_peer *peer)
{
    (void)arg;
    assert_true(peer->present);
    return false;
}

static int begin(void **state)
{
    server = NULL;
    handled = 0;
    waiting = NULL;
    limits = (struct http_limits){.max_small_body = SMALL};
    return loop_begin(state);
}

static void start(void)
{
    assert_int_equal(
        tls_ctx_new(TLS_SERVER | TLS_PEER_OPTIONAL, server_chain, server_id.key, ca.cert, &server_tls), 0);
    assert_int_equal(http_server_new(&loop, &limits, handle, NULL, &server), 0);
    assert_int_equal(http_server_listen_tcp(server, "127.0.0.1", 0, server_tls, &port), 0);
}

static int end(void **state)
{
    http_server_close(server, 0, NULL, NULL);
    int rv = loop_end(state);
    tls_ctx_free(server_tls);
    return rv;
}

/* --- a client that says what it is told to */

struct client {
    struct stream *stream;
    bool open, closed;
    struct buf seen;
};

static void client_open(struct stream *s)
{
    ((struct client *)stream_data(s))->open = true;
}

static void client_data(struct stream *s, const uint8_t *data, size_t n)
{
    struct client *c = stream_data(s);
    assert_int_equal(buf_append(&c->seen, data, n), 0);
}

static void client_close(struct stream *s, int status)
{
    (void)status;
    ((struct client *)stream_data(s))->closed = true;
}

static void client_begin(struct client *c, const struct ident *who)
{
    static const struct stream_ops ops = {
        .on_open = client_open, .on_data = client_data, .on_close = client_close};
    struct tls_ctx *tls;
    memset(c, 0, sizeof *c);
    assert_int_equal(
        tls_ctx_new(0, who != NULL ? who->cert : NULL, who != NULL ? who->key : NULL, ca.cert, &tls), 0);
    struct stream_config cfg = {.ops = &ops, .data = c, .tls = tls};
    assert_int_equal(stream_connect_tcp(&loop, "127.0.0.1", port, &cfg, &c->stream), 0);
    tls_ctx_free(tls);
    run_until(c->open || c->closed);
    assert_true(c->open);
}

static void client_end(struct client *c)
{
    if (!c->closed) {
        stream_close(c->stream, 0);
        run_until(c->closed);
    }
    buf_free(&c->seen);
}

/* Sends the head of a request with a body of @n bytes, and @now of these. */
static void send_part(struct client *c, const char *path, size_t n, size_t now)
{
    char head[128];
    int len =
        snprintf(head, sizeof head, "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n", path, n);
    if (!c->closed && stream_write(c->stream, head, (size_t)len) == 0 && now > 0) {
        (void)stream_write(c->stream, body, now);
    }
}

static bool saw(const struct client *c, const char *text)
{
    const uint8_t *data = buf_data(&c->seen);
    return data != NULL && memmem(data, c->seen.len, text, strlen(text)) != NULL;
}

/* A request with a body of @n bytes is answered with @want. */
static void asks(struct client *c, size_t n, const char *want)
{
    buf_clear(&c->seen);
    send_part(c, "/", n, n);
    run_until(saw(c, want) || c->closed);
    if (!saw(c, want)) {
        print_error("wanted %s, got %.*s\n", want, (int)c->seen.len, (const char *)buf_data(&c->seen));
        fail();
    }
}

/* --- */

/* A large one is refused on the word of its head: nothing of it is kept. */
static void large_bodies(void **state)
{
    (void)state;
    static const char refused[] = " 413 Content Too Large";
    struct client c;
    struct ident expired;
    start();
    client_begin(&c, NULL);
    asks(&c, SMALL, "[60000 none]");
    buf_clear(&c.seen);
    send_part(&c, "/", SMALL + 1, 0);
    run_until(saw(&c, refused) && saw(&c, "too_big"));
    client_end(&c);

    client_begin(&c, &client_id);
    asks(&c, LARGE, "[200000 valid]");
    client_end(&c);

    make_ident(&ca, "late", "operator", false, -60, &expired);
    client_begin(&c, &expired);
    asks(&c, SMALL, "[60000 expired]");
    asks(&c, SMALL + 1, refused);
    client_end(&c);
    ident_free(&expired);

    http_server_set_trust(server, trust_nobody);
    client_begin(&c, &client_id);
    asks(&c, SMALL, "[60000 valid]");
    asks(&c, SMALL + 1, refused);
    client_end(&c);
}

/* Those who send slowly take nothing from others: not from those that are trusted, and not from each other. */
static void budgets(void **state)
{
    (void)state;
    struct client slow[4], fresh, member;
    limits.max_memory = LARGE;
    limits.max_small_memory = 3 * SMALL; /* two, and a little */
    start();
    for (int i = 0; i < 4; i++) {
        client_begin(&slow[i], NULL);
        send_part(&slow[i], "/", SMALL, SMALL - 1);
        /* It is there when the server answers another one. */
        client_begin(&member, &client_id);
        asks(&member, LARGE, "[200000 valid]");
        client_end(&member);
    }
    client_begin(&fresh, NULL);
    asks(&fresh, SMALL, "[60000 none]");
    client_end(&fresh);
    run_until(saw(&slow[0], " 503 Service Unavailable") && saw(&slow[1], " 503 ") && saw(&slow[2], " 503 "));
    assert_false(slow[3].closed);
    stream_write(slow[3].stream, "x", 1);
    run_until(saw(&slow[3], "[60000 none]"));
    for (int i = 0; i < 4; i++) {
        client_end(&slow[i]);
    }
}

/* Requests that are being served keep what they have: the next is refused, and only that. */
static void budget_in_use(void **state)
{
    (void)state;
    struct client busy, fresh;
    limits.max_small_memory = SMALL;
    start();
    client_begin(&busy, NULL);
    send_part(&busy, "/wait", SMALL, SMALL);
    run_until(waiting != NULL);
    client_begin(&fresh, NULL);
    asks(&fresh, SMALL, " 503 ");
    client_end(&fresh);
    http_respond(waiting, 200, NULL, NULL, "done", 4);
    run_until(saw(&busy, "done"));
    asks(&busy, SMALL, "[60000 none]");
    client_end(&busy);
}

/* A crowd of strangers throws out its own, and not the connection that a member keeps for later. */
static void crowd(void **state)
{
    (void)state;
    enum { N = 12 };
    struct client member, strangers[N];
    struct http_stats st;
    limits.max_conns = 4;
    start();
    client_begin(&member, &client_id);
    asks(&member, 10, "[10 valid]");
    for (int i = 0; i < N; i++) {
        client_begin(&strangers[i], NULL);
        asks(&strangers[i], 10, "[10 none]");
    }
    asks(&member, 10, "[10 valid]");
    http_server_stats(server, &st);
    assert_int_equal(st.refused, 0);
    for (int i = 0; i < N; i++) {
        client_end(&strangers[i]);
    }
    client_end(&member);
}

/* Who does not read what it asked for loses its own connection, and not that of a member with more to read. */
static void unread_answers(void **state)
{
    (void)state;
    struct client member, strangers[3];
    struct http_stats st;
    limits.max_memory = 60 << 20; /* the system takes some of what is sent, but not so much */
    start();
    client_begin(&member, &client_id);
    stream_pause(member.stream);
    send_part(&member, "/huge", 0, 0);
    run_until(handled == 1);
    for (int i = 0; i < 3; i++) {
        client_begin(&strangers[i], NULL);
        stream_pause(strangers[i].stream);
        send_part(&strangers[i], "/huge", 0, 0);
    }
    do {
        uv_run(&loop, UV_RUN_ONCE);
        http_server_stats(server, &st);
    } while (st.open == 4);
    stream_resume(member.stream);
    run_until(member.closed || member.seen.len > 24 << 20);
    assert_false(member.closed);
    for (int i = 0; i < 3; i++) {
        client_end(&strangers[i]);
    }
    client_end(&member);
}

/* A certificate whose time is up while its connection is open. */
static void expires(void **state)
{
    (void)state;
    struct client c;
    struct ident brief;
    start();
    make_ident(&ca, "brief", "operator", false, 2, &brief);
    client_begin(&c, &brief);
    asks(&c, LARGE, "[200000 valid]");
    do {
        asks(&c, 1, "[1 ");
    } while (saw(&c, "valid"));
    assert_true(saw(&c, "[1 expired]"));
    asks(&c, LARGE, " 413 ");
    client_end(&c);
    ident_free(&brief);
}

/* A peer that asks for one key update after another and never reads the answers, which nobody bounds but us. */
static void key_updates(void **state)
{
    (void)state;
    struct http_stats st;
    limits.head_ms = limits.idle_ms = 3600 * 1000;
    start();
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    SSL *ssl = SSL_new(ctx);
    int fd = raw_connect(port), rv;
    assert_non_null(ssl);
    /* The kernel holds some megabytes for a connection before we hold anything. */
    enum { MOST = 1000 * 1000 };
    assert_int_equal(SSL_set_fd(ssl, fd), 1);
    while ((rv = SSL_connect(ssl)) != 1) {
        assert_int_equal(SSL_get_error(ssl, rv), SSL_ERROR_WANT_READ);
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    run_until((http_server_stats(server, &st), st.open == 1));
    unsigned n = 0;
    for (unsigned tries = 0; tries < MOST && st.open == 1; tries++) {
        n += SSL_key_update(ssl, SSL_KEY_UPDATE_REQUESTED) == 1;
        (void)SSL_write(ssl, "", 0);
        uv_run(&loop, UV_RUN_NOWAIT);
        http_server_stats(server, &st);
    }
    print_message("cut after %u key updates\n", n);
    assert_true(n > 1000);
    assert_int_equal(st.open, 0);
    SSL_free(ssl);
    SSL_CTX_free(ctx);
    close(fd);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, begin, end)
    const struct CMUnitTest tests[] = {
        TEST(large_bodies),
        TEST(budgets),
        TEST(budget_in_use),
        TEST(crowd),
        TEST(unread_answers),
        TEST(expires),
        TEST(key_updates),
    };
    return cmocka_run_group_tests(tests, group_begin, group_end);
}
