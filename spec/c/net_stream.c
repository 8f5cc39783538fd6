/* Streams and listeners on loopback and unix sockets, plain and with TLS. */
#include "net_support.h"

#include <sys/resource.h>

/* One end of a connection and what happened to it. */
struct end {
    struct stream *s;
    struct buf in;
    unsigned opened, drained, closed;
    int status;
    char why[256];
    bool echo;
    size_t total; /* bytes received */
    unsigned sum; /* and their sum, when @in is not kept */
    bool keep_nothing;
};

static struct end client, server;
static struct listener *listener;
static struct tls_ctx *server_tls, *client_tls;
static struct stream_config server_cfg;
static bool refuse;

static void on_open(struct stream *s)
{
    ((struct end *)stream_data(s))->opened++;
}

static void on_data(struct stream *s, const uint8_t *data, size_t n)
{
    struct end *e = stream_data(s);
    e->total += n;
    if (e->keep_nothing) {
        for (size_t i = 0; i < n; i++) {
            e->sum += data[i];
        }
    } else {
        assert_int_equal(buf_append(&e->in, data, n), 0);
    }
    if (e->echo) {
        stream_write(s, data, n);
    }
}

static void on_drain(struct stream *s)
{
    ((struct end *)stream_data(s))->drained++;
}

static void on_close(struct stream *s, int status)
{
    struct end *e = stream_data(s);
    if (e == NULL) {
        return;
    }
    e->closed++;
    e->status = status;
    snprintf(e->why, sizeof e->why, "%s", status != 0 ? err_msg() : "");
}

static const struct stream_ops ops = {
    .on_open = on_open, .on_data = on_data, .on_drain = on_drain, .on_close = on_close};

static bool on_accept(void *arg, const struct peer_addr *from, struct stream_config *cfg)
{
    (void)arg;
    (void)from;
    *cfg = server_cfg;
    cfg->ops = &ops;
    cfg->data = &server;
    return !refuse;
}

static void on_accepted(void *arg, struct stream *s)
{
    (void)arg;
    server.s = s;
}

static int begin(void **state)
{
    memset(&client, 0, sizeof client);
    memset(&server, 0, sizeof server);
    memset(&server_cfg, 0, sizeof server_cfg);
    refuse = false;
    listener = NULL;
    folder_begin();
    return loop_begin(state);
}

static int end(void **state)
{
    if (listener != NULL) {
        listener_close(listener);
    }
    buf_free(&client.in);
    buf_free(&server.in);
    int rv = loop_end(state);
    rmdir(folder);
    if (server_tls != NULL) {
        tls_ctx_free(server_tls);
    }
    if (client_tls != NULL) {
        tls_ctx_free(client_tls);
    }
    server_tls = client_tls = NULL;
    return rv;
}

static void listen_tcp(void)
{
    assert_int_equal(listener_tcp(&loop, "127.0.0.1", 0, on_accept, on_accepted, NULL, &listener), 0);
    assert_true(listener_port(listener) != 0);
}

static void dial(const struct stream_config *more)
{
    struct stream_config cfg = more != NULL ? *more : (struct stream_config){0};
    cfg.ops = &ops;
    cfg.data = &client;
    cfg.tls = cfg.tls != NULL ? cfg.tls : client_tls;
    assert_int_equal(stream_connect_tcp(&loop, "127.0.0.1", listener_port(listener), &cfg, &client.s), 0);
    assert_int_equal(client.opened, 0);
}

static void both_open(void)
{
    run_until((client.opened && server.opened) || client.closed || server.closed);
    if (client.closed || server.closed) {
        print_error("client: %s; server: %s\n", client.why, server.why);
    }
    assert_int_equal(client.opened, 1);
    assert_int_equal(server.opened, 1);
}

static void both_closed(void)
{
    run_until(client.closed && server.closed);
}

static bool holds(const struct buf *b, const char *text)
{
    return b->len == strlen(text) && memcmp(buf_data(b), text, b->len) == 0;
}

static void use_tls(void)
{
    assert_int_equal(
        tls_ctx_new(TLS_SERVER | TLS_PEER_OPTIONAL, server_chain, server_id.key, ca.cert, &server_tls), 0);
    assert_int_equal(tls_ctx_new(0, client_id.cert, client_id.key, ca.cert, &client_tls), 0);
    server_cfg.tls = server_tls;
}

/* --- plain */

static void echo(void **state)
{
    (void)state;
    server.echo = true;
    listen_tcp();
    dial(NULL);
    assert_int_equal(stream_write(client.s, "x", 1), SYM_ECLOSED); /* not open yet */
    both_open();
    assert_int_equal(stream_write(client.s, "hello", 5), 0);
    run_until(client.in.len == 5);
    assert_true(holds(&client.in, "hello"));
    assert_int_equal(stream_sent(client.s), 5);
    assert_string_equal(stream_peer_addr(server.s)->host, "127.0.0.1");
    assert_int_equal(stream_peer_addr(client.s)->port, listener_port(listener));
    assert_null(stream_tls_peer(client.s));
    stream_close(client.s, 0);
    stream_close(client.s, SYM_EIO);
    assert_int_equal(client.closed, 0);
    assert_int_equal(stream_write(client.s, "x", 1), SYM_ECLOSED);
    both_closed();
    assert_int_equal(client.status, 0);
    assert_int_equal(server.status, SYM_ECLOSED);
    assert_string_equal(server.why, "the peer closed the connection");
}

static void close_reason(void **state)
{
    (void)state;
    listen_tcp();
    dial(NULL);
    both_open();
    stream_close(client.s, err_setf(SYM_EPROTO, "bad frame"));
    err_setf(SYM_EIO, "something else");
    both_closed();
    assert_int_equal(client.status, SYM_EPROTO);
    assert_string_equal(client.why, "bad frame");
}

static void refused_and_unreachable(void **state)
{
    (void)state;
    refuse = true;
    listen_tcp();
    dial(NULL);
    run_until(client.closed);
    assert_int_equal(server.opened, 0);

    uint16_t port = listener_port(listener);
    listener_close(listener);
    listener = NULL;
    memset(&client, 0, sizeof client);
    struct stream_config cfg = {.ops = &ops, .data = &client};
    assert_int_equal(stream_connect_tcp(&loop, "127.0.0.1", port, &cfg, &client.s), 0);
    run_until(client.closed);
    assert_int_equal(client.status, SYM_ECONNECT);
    assert_non_null(strstr(client.why, "127.0.0.1:"));

    memset(&client, 0, sizeof client);
    assert_int_equal(stream_connect_tcp(&loop, "no..such", 1, &cfg, &client.s), 0);
    run_until(client.closed);
    assert_int_equal(client.status, SYM_ENOTFOUND);
    assert_non_null(strstr(client.why, "cannot resolve no..such"));

    assert_int_equal(stream_connect_tcp(&loop, "", 1, &cfg, &client.s), SYM_EINVAL);
    assert_int_equal(stream_connect_tcp(&loop, "127.0.0.1", 0, &cfg, &client.s), SYM_EINVAL);
}

/* "localhost" may be ::1 first: nobody listens there, and the next address is tried. */
static void by_name(void **state)
{
    (void)state;
    struct stream_config cfg = {.ops = &ops, .data = &client};
    listen_tcp();
    assert_int_equal(stream_connect_tcp(&loop, "localhost", listener_port(listener), &cfg, &client.s), 0);
    both_open();
    stream_close(client.s, 0);
    both_closed();

    /* Closed before the name is known. */
    memset(&client, 0, sizeof client);
    assert_int_equal(stream_connect_tcp(&loop, "localhost", listener_port(listener), &cfg, &client.s), 0);
    stream_close(client.s, 0);
    run_until(client.closed);
    assert_int_equal(client.opened, 0);
}

static void ipv6(void **state)
{
    (void)state;
    struct stream_config cfg = {.ops = &ops, .data = &client};
    if (listener_tcp(&loop, "::", 0, on_accept, on_accepted, NULL, &listener) != 0) {
        print_message("no IPv6 here: %s\n", err_msg());
        listener = NULL;
        return;
    }
    /* Both kinds come in, and IPv4 ones are called so. */
    assert_int_equal(stream_connect_tcp(&loop, "127.0.0.1", listener_port(listener), &cfg, &client.s), 0);
    both_open();
    assert_string_equal(stream_peer_addr(server.s)->host, "127.0.0.1");
    stream_close(client.s, 0);
    both_closed();
    memset(&client, 0, sizeof client);
    memset(&server, 0, sizeof server);
    assert_int_equal(stream_connect_tcp(&loop, "::1", listener_port(listener), &cfg, &client.s), 0);
    run_until(client.opened || client.closed);
    if (client.opened) {
        run_until(server.opened);
        assert_string_equal(stream_peer_addr(server.s)->host, "::1");
        stream_close(client.s, 0);
        both_closed();
    }
}

static void port_in_use(void **state)
{
    (void)state;
    struct listener *other;
    char number[16];
    listen_tcp();
    snprintf(number, sizeof number, "%u", listener_port(listener));
    assert_int_equal(
        listener_tcp(&loop, "127.0.0.1", listener_port(listener), on_accept, on_accepted, NULL, &other),
        SYM_EINUSE);
    assert_non_null(strstr(err_msg(), number));
    assert_int_equal(listener_tcp(&loop, "localhost", 0, on_accept, on_accepted, NULL, &other), SYM_EINVAL);
}

/* More than fits anywhere, to a peer that stops reading: it is taken, said to be too much, and arrives whole.
 */
static void back_pressure(void **state)
{
    (void)state;
    enum { PIECE = 100 * 1000 };
    static uint8_t piece[PIECE];
    size_t sent = 0;
    unsigned sum = 0;
    for (size_t i = 0; i < PIECE; i++) {
        piece[i] = (uint8_t)(i * 7);
    }
    server.keep_nothing = true;
    listen_tcp();
    dial(NULL);
    both_open();
    stream_pause(server.s);
    while (!stream_congested(client.s)) {
        assert_int_equal(stream_write(client.s, piece, PIECE), 0);
        sent += PIECE;
        for (size_t i = 0; i < PIECE; i++) {
            sum += piece[i];
        }
    }
    assert_true(stream_queued(client.s) >= 1 << 20);
    for (int i = 0; i < 20; i++) {
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    assert_int_equal(client.drained, 0);
    assert_int_equal(server.total, 0);
    assert_true(stream_sent(client.s) + stream_queued(client.s) >= sent);
    stream_resume(server.s);
    run_until(client.drained == 1);
    assert_false(stream_congested(client.s));
    run_until(server.total == sent);
    assert_int_equal(server.sum, sum);
    assert_int_equal(stream_queued(client.s), 0);
    stream_close(client.s, 0);
    both_closed();
}

static void queue_is_bounded(void **state)
{
    (void)state;
    static uint8_t piece[1 << 20];
    struct stream_config cfg = {.max_queued = 3 << 20};
    int rv = 0;
    listen_tcp();
    dial(&cfg);
    both_open();
    stream_pause(server.s);
    for (int i = 0; i < 1000 && rv == 0; i++) {
        rv = stream_write(client.s, piece, sizeof piece);
    }
    assert_int_equal(rv, SYM_EBUSY);
    run_until(client.closed);
    assert_int_equal(client.status, SYM_EBUSY);
    stream_resume(server.s);
    both_closed();
}

/* While corked nothing goes out, then all in one; and on_drain comes also when the cork held more than the
 * mark. */
static void cork(void **state)
{
    (void)state;
    static uint8_t piece[1000];
    struct stream_config cfg = {.high_water = 50 * 1000};
    if (*state != NULL) {
        use_tls();
    }
    listen_tcp();
    dial(&cfg);
    both_open();
    uint64_t before = stream_sent(client.s);
    stream_cork(client.s);
    stream_cork(client.s);
    for (int i = 0; i < 60; i++) {
        assert_int_equal(stream_write(client.s, piece, sizeof piece), 0);
    }
    stream_uncork(client.s);
    for (int i = 0; i < 10; i++) {
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    assert_int_equal(stream_sent(client.s), before);
    assert_int_equal(server.total, 0);
    assert_true(stream_congested(client.s));
    stream_uncork(client.s);
    run_until(server.total == 60 * 1000);
    run_until(client.drained == 1);
    assert_false(stream_congested(client.s));
    stream_close(client.s, 0);
    both_closed();
}

static void finish_sends_all(void **state)
{
    static uint8_t big[8 << 20];
    if (*state != NULL) {
        use_tls();
    }
    memset(big, 1, sizeof big);
    server.keep_nothing = true;
    listen_tcp();
    dial(NULL);
    both_open();
    assert_int_equal(stream_write(client.s, big, sizeof big), 0);
    stream_finish(client.s, 10000);
    stream_finish(client.s, 1);
    assert_int_equal(stream_write(client.s, big, 1), SYM_ECLOSED);
    both_closed();
    assert_int_equal(server.total, sizeof big);
    assert_int_equal(server.sum, sizeof big);
    assert_int_equal(client.status, 0);
    assert_int_equal(server.status, SYM_ECLOSED);
}

static void finish_has_a_deadline(void **state)
{
    (void)state;
    static uint8_t big[16 << 20];
    listen_tcp();
    dial(NULL);
    both_open();
    stream_pause(server.s);
    assert_int_equal(stream_write(client.s, big, sizeof big), 0);
    stream_finish(client.s, 50);
    run_until(client.closed);
    assert_int_equal(client.status, 0);
    stream_close(server.s, 0);
    both_closed();
}

/* A last word to a peer that goes on sending reaches it. */
static void linger(void **state)
{
    static uint8_t flood[256 * 1024];
    if (*state != NULL) {
        use_tls();
    }
    listen_tcp();
    dial(NULL);
    both_open();
    stream_write(client.s, flood, sizeof flood);
    run_until(server.total > 0);
    stream_write(server.s, "too much", 8);
    stream_linger(server.s, 10000);
    for (int i = 0; i < 20 && !client.closed; i++) {
        stream_write(client.s, flood, sizeof flood);
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    both_closed();
    assert_true(holds(&client.in, "too much"));
    assert_int_equal(client.status, SYM_ECLOSED);
    assert_int_equal(server.status, 0);
}

static void other_on_data(struct stream *s, const uint8_t *data, size_t n)
{
    (void)data;
    *(size_t *)stream_data(s) += n;
}

static void other_on_close(struct stream *s, int status)
{
    (void)status;
    *(size_t *)stream_data(s) += 1000;
}

static void handed_over(void **state)
{
    (void)state;
    static const struct stream_ops others = {.on_data = other_on_data, .on_close = other_on_close};
    size_t n = 0;
    listen_tcp();
    dial(NULL);
    both_open();
    stream_write(client.s, "hello", 5);
    run_until(server.total == 5);
    stream_set_ops(server.s, &others);
    stream_set_data(server.s, &n);
    stream_write(client.s, "again", 5);
    run_until(n == 5);
    stream_close(client.s, 0);
    run_until(n == 1005 && client.closed);
    assert_int_equal(server.closed, 0);
}

/* --- closing at every step */

static int close_at;
static struct end *closer;

static void maybe_close(struct stream *s, int step)
{
    if (step == close_at && stream_data(s) == closer) {
        stream_close(s, 0);
    }
}

static void hasty_open(struct stream *s)
{
    on_open(s);
    stream_write(s, "first", 5);
    maybe_close(s, 0);
}

static void hasty_data(struct stream *s, const uint8_t *data, size_t n)
{
    on_data(s, data, n);
    maybe_close(s, 1);
    stream_write(s, "second", 6);
    maybe_close(s, 2);
    stream_finish(s, 1000);
    maybe_close(s, 3);
}

static void hasty_close(struct stream *s, int status)
{
    on_close(s, status);
    stream_close(s, 0);
}

static const struct stream_ops hasty = {
    .on_open = hasty_open, .on_data = hasty_data, .on_close = hasty_close};

static bool hasty_accept(void *arg, const struct peer_addr *from, struct stream_config *cfg)
{
    bool rv = on_accept(arg, from, cfg);
    cfg->ops = &hasty;
    return rv;
}

static void hasty_accepted(void *arg, struct stream *s)
{
    (void)arg;
    server.s = s;
    maybe_close(s, 4);
}

static void close_anywhere(void **state)
{
    if (*state != NULL) {
        use_tls();
    }
    assert_int_equal(listener_tcp(&loop, "127.0.0.1", 0, hasty_accept, hasty_accepted, NULL, &listener), 0);
    for (int i = 0; i < 12; i++) {
        struct stream_config cfg = {.ops = &hasty, .data = &client, .tls = client_tls};
        close_at = i % 6;
        closer = i < 6 ? &client : &server;
        buf_free(&client.in);
        buf_free(&server.in);
        memset(&client, 0, sizeof client);
        memset(&server, 0, sizeof server);
        assert_int_equal(stream_connect_tcp(&loop, "127.0.0.1", listener_port(listener), &cfg, &client.s), 0);
        maybe_close(client.s, 5);
        /* A client that closed before the connection stood may never have been seen. */
        run_until(
            client.closed && (server.closed || (close_at == 5 && closer == &client && server.s == NULL)));
        assert_int_equal(client.closed, 1);
    }
}

/* --- TLS */

static void tls_mutual(void **state)
{
    (void)state;
    struct buf chain = {0};
    use_tls();
    server.echo = true;
    listen_tcp();
    dial(NULL);
    assert_null(stream_tls_peer(client.s));
    both_open();
    const struct tls_peer *peer = stream_tls_peer(server.s);
    assert_true(peer->present);
    assert_string_equal(peer->cert.cn, "client-node");
    assert_string_equal(peer->cert.ou, "worker");
    assert_string_equal(stream_tls_peer(client.s)->cert.cn, "server-node");
    assert_int_equal(stream_tls_chain(client.s, &chain), 0);
    assert_int_equal(buf_append(&chain, "", 1), 0);
    assert_non_null(strstr(strstr((char *)buf_data(&chain), "BEGIN") + 1, "BEGIN"));
    buf_clear(&chain);
    assert_int_equal(stream_tls_chain(server.s, &chain), 0);
    assert_true(chain.len > 0);
    buf_clear(&chain);
    stream_forget_chain(server.s);
    assert_int_equal(stream_tls_chain(server.s, &chain), 0);
    assert_int_equal(chain.len, 0);
    assert_string_equal(stream_tls_peer(server.s)->cert.cn, "client-node");
    buf_free(&chain);
    for (int i = 0; i < 3; i++) {
        size_t before = client.in.len;
        stream_write(client.s, "hello", 5);
        run_until(client.in.len == before + 5);
    }
    stream_finish(client.s, 1000);
    both_closed();
    assert_int_equal(server.status, SYM_ECLOSED);
    assert_int_equal(client.status, 0);
}

static void tls_bulk(void **state)
{
    (void)state;
    static uint8_t big[5 << 20];
    memset(big, 1, sizeof big);
    use_tls();
    server.keep_nothing = true;
    listen_tcp();
    dial(NULL);
    both_open();
    stream_pause(server.s);
    stream_write(client.s, big, sizeof big);
    stream_resume(server.s);
    run_until(server.total == sizeof big);
    assert_int_equal(server.sum, sizeof big);
    stream_close(server.s, 0);
    both_closed();
    /* No close_notify: for all the client knows somebody has cut the line. */
    assert_int_equal(client.status, SYM_ECONNECT);
}

/* Have all @n opened? *@most: how many have at once. */
static bool all_opened(unsigned n, unsigned *before, unsigned *most)
{
    unsigned now = (unsigned)server.opened;
    *most = now - *before > *most ? now - *before : *most;
    *before = now;
    return now == n && (unsigned)client.opened == n;
}

/* More handshakes at once than one turn of the loop does: whoever has been let in has turns meanwhile. */
static void tls_crowd(void **state)
{
    (void)state;
    enum { N = 100 };
    unsigned before = 0, most = 0;
    struct stream_config cfg = {.ops = &ops, .data = &client};
    struct stream *all[N];
    use_tls();
    cfg.tls = client_tls;
    listen_tcp();
    for (int i = 0; i < N; i++) {
        assert_int_equal(stream_connect_tcp(&loop, "127.0.0.1", listener_port(listener), &cfg, &all[i]), 0);
    }
    run_until(all_opened(N, &before, &most));
    assert_in_range(most, 1, 4);
    for (int i = 0; i < N; i++) {
        stream_close(all[i], 0);
    }
    run_until(client.closed == N && server.closed == N);
}

static void tls_foreign_ca(void **state)
{
    (void)state;
    struct ident other;
    use_tls();
    tls_ctx_free(client_tls);
    make_ca(&other);
    assert_int_equal(tls_ctx_new(0, NULL, NULL, other.cert, &client_tls), 0);
    listen_tcp();
    dial(NULL);
    both_closed();
    assert_int_equal(client.opened, 0);
    assert_int_equal(client.status, SYM_EAUTH);
    assert_int_not_equal(server.status, 0);

    /* And the other way: the server refuses the client, and the client learns that it was refused. */
    struct ident stranger;
    make_ident(&other, "stranger", "manager", false, 3600, &stranger);
    tls_ctx_free(client_tls);
    assert_int_equal(tls_ctx_new(0, stranger.cert, stranger.key, ca.cert, &client_tls), 0);
    memset(&client, 0, sizeof client);
    memset(&server, 0, sizeof server);
    dial(NULL);
    both_closed();
    assert_int_equal(server.opened, 0);
    assert_int_equal(server.status, SYM_EAUTH);
    assert_int_not_equal(client.status, 0);
    assert_int_not_equal(client.status, SYM_ECLOSED);
    ident_free(&stranger);
    ident_free(&other);
}

static void tls_against_plain(void **state)
{
    (void)state;
    /* The server speaks no TLS and echoes what it is sent. */
    server.echo = true;
    assert_int_equal(tls_ctx_new(0, NULL, NULL, ca.cert, &client_tls), 0);
    listen_tcp();
    dial(NULL);
    both_closed();
    assert_int_equal(client.opened, 0);
    assert_int_equal(client.status, SYM_EPROTO);

    /* It says nothing at all. */
    struct stream_config cfg = {.open_ms = 60};
    memset(&client, 0, sizeof client);
    buf_free(&server.in);
    memset(&server, 0, sizeof server);
    dial(&cfg);
    both_closed();
    assert_int_equal(client.status, SYM_ETIMEOUT);

    /* The server does, the client sends something else. */
    tls_ctx_free(client_tls);
    client_tls = NULL;
    buf_free(&server.in);
    use_tls();
    tls_ctx_free(client_tls);
    client_tls = NULL;
    memset(&server, 0, sizeof server);
    int fd = raw_connect(listener_port(listener));
    raw_text(fd, "GET / HTTP/1.1\r\n\r\n");
    shutdown(fd, SHUT_WR);
    run_until(server.closed);
    assert_int_equal(server.opened, 0);
    assert_int_equal(server.status, SYM_EPROTO);
    close(fd);

    /* Or nothing. */
    server_cfg.open_ms = 60;
    memset(&server, 0, sizeof server);
    fd = raw_connect(listener_port(listener));
    run_until(server.closed);
    assert_int_equal(server.status, SYM_ETIMEOUT);
    close(fd);
}

/* --- unix sockets */

static void unix_echo_at(const char *path)
{
    struct stream_config cfg = {.ops = &ops, .data = &client};
    memset(&client, 0, sizeof client);
    memset(&server, 0, sizeof server);
    server.echo = true;
    assert_int_equal(stream_connect_unix(&loop, path, &cfg, &client.s), 0);
    both_open();
    const struct peer_addr *from = stream_peer_addr(server.s);
    assert_true(from->is_unix);
    assert_int_equal(from->uid, getuid());
    assert_int_equal(from->gid, getgid());
    assert_int_equal(from->pid, getpid());
    stream_write(client.s, "hello", 5);
    run_until(client.in.len == 5);
    stream_close(client.s, 0);
    both_closed();
    buf_free(&client.in);
    buf_free(&server.in);
}

static int listen_at(const char *path, mode_t mode)
{
    return listener_unix(&loop, path, mode, (gid_t)-1, on_accept, on_accepted, NULL, &listener);
}

static void unix_socket(void **state)
{
    (void)state;
    char path[128];
    struct stat st;
    struct listener *other;
    snprintf(path, sizeof path, "%s/s", folder);
    mode_t old = umask(0);
    assert_int_equal(listen_at(path, 0600), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    umask(0777);
    unix_echo_at(path);

    /* A live one is left alone. */
    assert_int_equal(
        listener_unix(&loop, path, 0600, (gid_t)-1, on_accept, on_accepted, NULL, &other), SYM_EINUSE);
    assert_non_null(strstr(err_msg(), path));
    listener_close(listener);
    assert_int_not_equal(stat(path, &st), 0);

    /* The umask takes nothing away, either. */
    assert_int_equal(listen_at(path, 0660), 0);
    umask(old);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0660);
    /* Somebody else's file in its place is not removed. */
    assert_int_equal(unlink(path), 0);
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    assert_true(fd >= 0);
    close(fd);
    listener_close(listener);
    listener = NULL;
    assert_int_equal(stat(path, &st), 0);
    /* Nor is what is no socket. */
    assert_int_equal(listen_at(path, 0600), SYM_EEXIST);
    assert_int_equal(unlink(path), 0);
}

static void unix_stale(void **state)
{
    (void)state;
    char path[128];
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    snprintf(path, sizeof path, "%s/s", folder);
    memcpy(sun.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&sun, sizeof sun), 0);
    close(fd);
    struct stream_config cfg = {.ops = &ops, .data = &client};
    assert_int_equal(stream_connect_unix(&loop, path, &cfg, &client.s), 0);
    run_until(client.closed);
    assert_int_equal(client.status, SYM_ECONNECT);
    assert_int_equal(listen_at(path, 0600), 0);
    unix_echo_at(path);
}

static void unix_long_path(void **state)
{
    (void)state;
    char deep[512], path[600], name[128];
    snprintf(deep, sizeof deep, "%s/", folder);
    memset(deep + strlen(deep), 'd', 200);
    deep[strlen(folder) + 201] = '\0';
    assert_int_equal(mkdir(deep, 0700), 0);
    snprintf(path, sizeof path, "%s/control.sock", deep);
    assert_int_equal(listen_at(path, 0600), 0);
    unix_echo_at(path);
    listener_close(listener);
    listener = NULL;
    assert_int_equal(rmdir(deep), 0);

    /* No folder, no name, or a name that nothing can make short. */
    struct stream_config cfg = {.ops = &ops, .data = &client};
    assert_int_equal(stream_connect_unix(&loop, path, &cfg, &client.s), SYM_ECONNECT);
    assert_int_equal(listen_at(path, 0600), SYM_ENOTFOUND);
    assert_int_equal(listen_at("", 0600), SYM_EINVAL);
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    assert_int_equal(listen_at(name, 0600), SYM_EINVAL);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_int_equal(listen_at(path, 0600), SYM_EINVAL);
    assert_non_null(strstr(err_msg(), "too long"));
}

static void unix_nobody(void **state)
{
    (void)state;
    char path[128];
    struct stream_config cfg = {.ops = &ops, .data = &client};
    snprintf(path, sizeof path, "%s/none", folder);
    assert_int_equal(stream_connect_unix(&loop, path, &cfg, &client.s), 0);
    run_until(client.closed);
    assert_int_equal(client.status, SYM_ECONNECT);
    assert_non_null(strstr(client.why, path));
}

/* --- no descriptors left */

static void no_descriptors(void **state)
{
    (void)state;
    int fds[4096];
    int n = 0;
    struct rlimit before, few;
    listen_tcp();
    uv_run(&loop, UV_RUN_NOWAIT);
    int fd = raw_connect(listener_port(listener));
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    few = before;
    few.rlim_cur = before.rlim_cur < 256 ? before.rlim_cur : 256;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    while (n < 4096 && (fds[n] = dup(0)) >= 0) {
        n++;
    }
    for (int i = 0; i < 30; i++) {
        uv_run(&loop, UV_RUN_NOWAIT);
        poll(NULL, 0, 5);
    }
    assert_int_equal(server.opened, 0);
    while (n > 0) {
        close(fds[--n]);
    }
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    run_until(server.opened);
    close(fd);
    run_until(server.closed);
}

static int tls_begin(void **state)
{
    (void)state;
    idents_begin();
    return 0;
}

static int tls_end(void **state)
{
    (void)state;
    idents_end();
    return 0;
}

int main(void)
{
    static char with_tls[] = "tls";
#define TEST(f) cmocka_unit_test_setup_teardown(f, begin, end)
    const struct CMUnitTest tests[] = {
        TEST(echo),
        TEST(close_reason),
        TEST(refused_and_unreachable),
        TEST(by_name),
        TEST(ipv6),
        TEST(port_in_use),
        TEST(back_pressure),
        TEST(queue_is_bounded),
        TEST(cork),
        {"cork over tls", cork, begin, end, with_tls},
        TEST(finish_sends_all),
        {"finish_sends_all over tls", finish_sends_all, begin, end, with_tls},
        TEST(finish_has_a_deadline),
        TEST(linger),
        {"linger over tls", linger, begin, end, with_tls},
        TEST(handed_over),
        TEST(close_anywhere),
        {"close_anywhere over tls", close_anywhere, begin, end, with_tls},
        TEST(tls_mutual),
        TEST(tls_bulk),
        TEST(tls_crowd),
        TEST(tls_foreign_ca),
        TEST(tls_against_plain),
        TEST(unix_socket),
        TEST(unix_stale),
        TEST(unix_long_path),
        TEST(unix_nobody),
        TEST(no_descriptors),
    };
    return cmocka_run_group_tests(tests, tls_begin, tls_end);
}
