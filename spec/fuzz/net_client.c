/* The client's reading of an answer: at once and in pieces, collected and streamed, it is the same answer, and
 * each call ends exactly once. The first byte chooses the size of the pieces.
 *
 * The peer is a plain socket; it closes its side behind what it said, so that no call waits for its deadline. */
#include "base/err.h"
#include "fuzz_seed.h"
#include "net/http.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { BODY_MAX = 4096 };

static uv_loop_t loop;
static int server = -1;
static char path[64];

struct answer {
    int err, status, head;
    unsigned done, heads;
    struct buf body;
};

static void must(int ok)
{
    if (!ok) {
        abort();
    }
}

static void remove_socket(void)
{
    unlink(path);
}

static void listen_once(void)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    if (server >= 0) {
        return;
    }
    snprintf(path, sizeof path, "/tmp/fuzz_net_client.%d", (int)getpid());
    snprintf(addr.sun_path, sizeof addr.sun_path, "%s", path);
    server = socket(AF_UNIX, SOCK_STREAM, 0);
    must(server >= 0 && bind(server, (struct sockaddr *)&addr, sizeof addr) == 0 && listen(server, 4) == 0);
    atexit(remove_socket);
    must(uv_loop_init(&loop) == 0);
}

static void on_head(void *arg, int status)
{
    struct answer *a = arg;
    a->heads++;
    a->head = status;
}

static void on_data(void *arg, const uint8_t *data, size_t n)
{
    struct answer *a = arg;
    must(a->heads == 1 && a->done == 0 && n > 0);
    must(buf_append(&a->body, data, n) == 0);
}

static void on_done(void *arg, int err, int status, const uint8_t *body, size_t n)
{
    struct answer *a = arg;
    a->done++;
    a->err = err;
    a->status = status;
    must(err == 0 || err_msg()[0] != '\0');
    if (body != NULL) {
        must(err == 0 && n <= BODY_MAX && body[n] == '\0');
        must(n == 0 || buf_append(&a->body, body, n) == 0);
    }
}

static void call(const uint8_t *data, size_t n, size_t piece, bool streamed, bool head, struct answer *a)
{
    struct http_call_opts opts = {.unix_path = path,
        .method = head ? "HEAD" : "GET",
        .path = "/x",
        .on_head = on_head,
        .on_data = streamed ? on_data : NULL,
        .on_done = on_done,
        .max_body = BODY_MAX,
        .arg = a};
    struct http_call *c;
    must(http_call_start(&loop, &opts, &c) == 0);
    int peer = accept(server, NULL, NULL);
    must(peer >= 0);
    for (size_t at = 0; at < n && a->done == 0; at += piece) {
        size_t len = n - at < piece ? n - at : piece;
        if (send(peer, data + at, len, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)len) {
            break; /* it has heard enough */
        }
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    shutdown(peer, SHUT_WR);
    uv_run(&loop, UV_RUN_DEFAULT);
    close(peer);
    must(a->done == 1 && a->heads <= 1);
    must(a->err != 0 || (a->heads == 1 && a->status == a->head && a->status >= 200 && a->status <= 599));
}

static void same(const struct answer *a, const struct answer *b)
{
    must(a->err == b->err && a->status == b->status);
    must(a->err != 0 ||
         (a->body.len == b->body.len &&
             (a->body.len == 0 || memcmp(buf_data(&a->body), buf_data(&b->body), a->body.len) == 0)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct answer whole = {0}, cut = {0}, streamed = {0};
    if (n < 1 || n > 32768) {
        return 0;
    }
    listen_once();
    size_t piece = 1 + data[0] % 64;
    bool head = data[0] >= 192;
    piece = piece < n / 64 ? n / 64 : piece;
    call(data + 1, n - 1, n, false, head, &whole);
    call(data + 1, n - 1, piece, false, head, &cut);
    call(data + 1, n - 1, n, true, head, &streamed);
    same(&whole, &cut);
    if (whole.err == 0) {
        same(&whole, &streamed);
    }
    buf_free(&whole.body);
    buf_free(&cut.body);
    buf_free(&streamed.body);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned random)
{
    static const char *const texts[] = {
        "0HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Revision: 7\r\n\r\nhello",
        "1HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;e=f\r\nd\r\n0\r\nT: t\r\n\r\n",
        "2HTTP/1.1 503 No\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{\"error\":{}}",
        "3HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
        "4HTTP/1.0 200 OK\r\n\r\nuntil the end",
        "\xd0HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
        "6HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nx",
    };
    static struct buf seeds[sizeof texts / sizeof texts[0]];
    for (size_t i = 0; i < sizeof texts / sizeof texts[0] && seeds[i].len == 0; i++) {
        must(buf_append(&seeds[i], texts[i], strlen(texts[i])) == 0);
    }
    return seed_mutate(seeds, sizeof texts / sizeof texts[0], data, n, max, random);
}
