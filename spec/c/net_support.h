/* What the tests of net share: a loop that is run until something is so, raw sockets, certificates. */
#ifndef SYM_SPEC_NET_SUPPORT_H
#define SYM_SPEC_NET_SUPPORT_H

#include "base/err.h"
#include "net/stream.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static uv_loop_t loop;

/* --- the loop */

static inline void on_give_up(uv_timer_t *timer)
{
    *(bool *)timer->data = true;
}

/* Runs the loop until @cond is true; fails after ten seconds. */
#define run_until(cond)                                                                                      \
    do {                                                                                                     \
        bool too_late_ = false;                                                                              \
        uv_timer_t limit_;                                                                                   \
        uv_update_time(&loop);                                                                               \
        uv_timer_init(&loop, &limit_);                                                                       \
        limit_.data = &too_late_;                                                                            \
        uv_timer_start(&limit_, on_give_up, 10000, 0);                                                       \
        while (!(cond) && !too_late_) {                                                                      \
            uv_run(&loop, UV_RUN_ONCE);                                                                      \
        }                                                                                                    \
        uv_close((uv_handle_t *)&limit_, NULL);                                                              \
        while (loop_has(&limit_)) {                                                                          \
            uv_run(&loop, UV_RUN_NOWAIT);                                                                    \
        }                                                                                                    \
        if (too_late_) {                                                                                     \
            print_error("%s:%d: never became true: %s\n", __FILE__, __LINE__, #cond);                        \
            fail();                                                                                          \
        }                                                                                                    \
    } while (0)

static inline void on_found(uv_handle_t *handle, void *arg)
{
    void **wanted = arg;
    if (handle == *wanted) {
        *wanted = NULL;
    }
}

/* Whether @handle is still the loop's. */
static inline bool loop_has(void *handle)
{
    void *wanted = handle;
    uv_walk(&loop, on_found, &wanted);
    return wanted == NULL;
}

static inline int loop_begin(void **state)
{
    (void)state;
    return uv_loop_init(&loop);
}

static inline void print_handle(uv_handle_t *handle, void *arg)
{
    (void)arg;
    print_error("left in the loop: %s%s\n", uv_handle_type_name(handle->type),
        uv_is_closing(handle) ? " (closing)" : "");
}

/* What a test started must have ended by itself. */
static inline int loop_end(void **state)
{
    (void)state;
    for (int i = 0; i < 2000 && uv_run(&loop, UV_RUN_NOWAIT) != 0; i++) {
        poll(NULL, 0, 1);
    }
    if (uv_loop_close(&loop) != 0) {
        uv_walk(&loop, print_handle, NULL);
        return -1;
    }
    return 0;
}

/* --- raw sockets */

static inline int raw_connect(uint16_t port)
{
    struct sockaddr_in sa = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
    return fd;
}

static inline void raw_send(int fd, const void *data, size_t n)
{
    for (size_t at = 0; at < n;) {
        ssize_t rv = send(fd, (const char *)data + at, n - at, MSG_NOSIGNAL);
        assert_true(rv > 0 || errno == EAGAIN);
        at += rv > 0 ? (size_t)rv : 0;
        uv_run(&loop, UV_RUN_NOWAIT);
    }
}

static inline void raw_text(int fd, const char *text)
{
    raw_send(fd, text, strlen(text));
}

struct seen {
    char *text; /* NUL-terminated */
    size_t n, room;
    bool closed;
};

static inline void seen_free(struct seen *s)
{
    free(s->text);
    memset(s, 0, sizeof *s);
}

/* Runs the loop and reads until @want is among what came (NULL: until the peer's end); fails after ten
 * seconds. */
static inline void raw_until(int fd, struct seen *s, const char *want)
{
    for (int i = 0; i < 10000; i++) {
        char piece[65536];
        uv_run(&loop, UV_RUN_NOWAIT);
        ssize_t rv = recv(fd, piece, sizeof piece, MSG_DONTWAIT);
        if (rv > 0) {
            if (s->n + (size_t)rv >= s->room) {
                s->room = 2 * (s->n + (size_t)rv + 1);
                s->text = realloc(s->text, s->room);
                assert_non_null(s->text);
            }
            memcpy(s->text + s->n, piece, (size_t)rv);
            s->n += (size_t)rv;
            s->text[s->n] = '\0';
        } else if (rv == 0 || errno != EAGAIN) {
            s->closed = true;
        }
        if (want != NULL ? s->text != NULL && strstr(s->text, want) != NULL : s->closed) {
            return;
        }
        if (s->closed) {
            break;
        }
        if (rv < 0) {
            poll(NULL, 0, 1);
        }
    }
    print_error("never came: %s\nseen%s: %s\n", want != NULL ? want : "(the end)",
        s->closed ? ", and the end" : "", s->text != NULL ? s->text : "nothing");
    fail();
}

/* Sends @request, expects @want in the answer and forgets the answer. */
static inline void raw_ask(int fd, const char *request, const char *want)
{
    struct seen s = {0};
    raw_text(fd, request);
    raw_until(fd, &s, want);
    seen_free(&s);
}

/* --- folders */

static char folder[64];

static inline void folder_begin(void)
{
    snprintf(folder, sizeof folder, "/tmp/net-XXXXXX");
    assert_non_null(mkdtemp(folder));
}

/* --- certificates: a CA, a server (manager) and a client (worker) */

struct ident {
    struct key *key;
    char *cert;
};
static struct ident ca, server_id, client_id;
static char *server_chain; /* with the CA behind it */

static inline char *text_of(struct buf *b)
{
    size_t n;
    char *text = (char *)buf_take(b, &n);
    assert_non_null(text);
    return text;
}

static inline void make_ca(struct ident *out)
{
    struct buf pem = {0};
    int64_t now = time(NULL);
    assert_int_equal(key_generate(&out->key), 0);
    assert_int_equal(cert_new_ca(out->key, "cluster", now - 3600, now + 3600, &pem), 0);
    out->cert = text_of(&pem);
}

static inline void make_ident(
    const struct ident *by, const char *cn, const char *ou, bool server, int64_t until, struct ident *out)
{
    struct buf csr = {0}, pem = {0};
    int64_t now = time(NULL);
    struct cert_spec spec = {.cn = cn,
        .ou = ou,
        .o = "cluster",
        .not_before = now - 7200,
        .not_after = now + until,
        .server = server};
    assert_int_equal(key_generate(&out->key), 0);
    assert_int_equal(csr_new(out->key, cn, &csr), 0);
    assert_int_equal(
        cert_sign(by->key, by->cert, strlen(by->cert), (char *)buf_data(&csr), csr.len, &spec, &pem), 0);
    out->cert = text_of(&pem);
    buf_free(&csr);
}

static inline void ident_free(struct ident *i)
{
    key_free(i->key);
    free(i->cert);
    memset(i, 0, sizeof *i);
}

static inline void idents_begin(void)
{
    make_ca(&ca);
    make_ident(&ca, "server-node", "manager", true, 3600, &server_id);
    make_ident(&ca, "client-node", "worker", false, 3600, &client_id);
    assert_true(asprintf(&server_chain, "%s%s", server_id.cert, ca.cert) > 0);
}

static inline void idents_end(void)
{
    ident_free(&ca);
    ident_free(&server_id);
    ident_free(&client_id);
    free(server_chain);
}

/* For cmocka_run_group_tests. */
static inline int group_begin(void **state)
{
    (void)state;
    idents_begin();
    return 0;
}

static inline int group_end(void **state)
{
    (void)state;
    idents_end();
    return 0;
}

#endif
