/* What gossip datagrams that are refused cost a node: scripts/build bench_garbage && build/bin/bench_garbage [SECONDS]
 *
 * Another process sends as fast as it can, one kind after the other. For each kind: how many came in, what the node's
 * thread spent on one (user and system), which part of a core that was while the flood went on, and what the system
 * dropped before the node saw it. Another node, on a thread of its own, tells how often it suspected the node meanwhile
 * and took it for dead: with default settings, and without a reliable channel, which in a cluster would have answered. */
#include "base/err.h"
#include "gossip/gossip.h"
#include "gossip/gossip_addr.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { A_CALL = 64, LEN = 400 };

enum kind { QUIET, MALFORMED, STRANGER, UNKNOWN_KEY, REPLAYED, FORGED, NEW_STARTS, KINDS };
static const char *const names[KINDS] = {
    "quiet", "malformed", "stranger", "unknown key", "replayed", "forged", "forged, new starts"};
static const struct swim_id self = {{1}}, other = {{2}}, nobody = {{3}};

static void check(int rv)
{
    if (rv != 0) {
        fprintf(stderr, "garbage: %s\n", err_msg());
        exit(1);
    }
}

static bool known(void *arg, const struct swim_id *id)
{
    (void)arg;
    (void)id;
    return true;
}

static size_t letter(const struct swim_id *from, uint32_t key_id, uint8_t out[SEAL_MAX])
{
    static const uint8_t plain[LEN] = {1};
    struct seal *s;
    struct seal_key key = {.id = key_id, .use = true, .secret = {1}};
    check(seal_open(from, 5, known, NULL, 1, &s));
    check(seal_keys(s, &key, 1));
    check(seal_wrap(s, &self, plain, sizeof plain, out));
    seal_close(s);
    return sizeof plain + SEAL_OVERHEAD;
}

static size_t make(enum kind kind, uint8_t out[SEAL_MAX])
{
    size_t n = letter(kind == STRANGER ? &nobody : &other, kind == UNKNOWN_KEY ? 7 : 1, out);
    if (kind == MALFORMED) {
        out[0] = 99;
    } else if (kind == FORGED || kind == NEW_STARTS) {
        out[30] = 200; /* a counter that has not been */
        out[n - 1] ^= 1;
    }
    return n;
}

static void send_all(enum kind kind, const struct sockaddr_storage *to, socklen_t len)
{
    static uint8_t data[A_CALL][SEAL_MAX];
    static struct mmsghdr heads[A_CALL];
    static struct iovec iov[A_CALL];
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    size_t n = make(kind, data[0]);
    for (int i = 0; i < A_CALL; i++) {
        memcpy(data[i], data[0], n);
        iov[i] = (struct iovec){.iov_base = data[i], .iov_len = n};
        heads[i].msg_hdr =
            (struct msghdr){.msg_name = (void *)to, .msg_namelen = len, .msg_iov = &iov[i], .msg_iovlen = 1};
    }
    for (uint32_t start = 6;;) {
        for (int i = 0; kind == NEW_STARTS && i < A_CALL; i++, start++) {
            memcpy(data[i] + 22, &start, sizeof start);
        }
        if (sendmmsg(fd, heads, A_CALL, 0) < 0) {
            exit(1);
        }
    }
}

static double cpu(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void on_event(void *arg, enum swim_event what, const struct swim_member *m)
{
    (void)arg;
    (void)what;
    (void)m;
}

/* ---- the other node ---- */

static struct {
    uv_loop_t loop;
    uv_async_t stop;
    uv_thread_t thread;
    struct gossip *g;
    atomic_uint suspected, died, joined;
} second;

static void on_second(void *arg, enum swim_event what, const struct swim_member *m)
{
    (void)arg;
    (void)m;
    second.suspected += what == SWIM_SUSPECTED ? 1 : 0;
    second.died += what == SWIM_DIED ? 1 : 0;
    second.joined += what == SWIM_JOINED ? 1 : 0;
}

static void on_stop(uv_async_t *stop)
{
    gossip_close(second.g, NULL, NULL);
    uv_close((uv_handle_t *)stop, NULL);
}

static void second_main(void *arg)
{
    (void)arg;
    uv_run(&second.loop, UV_RUN_DEFAULT);
}

static void on_end(uv_timer_t *timer)
{
    uv_stop(timer->loop);
}

static void run_for(uv_loop_t *loop, uint64_t ms)
{
    uv_timer_t timer;
    uv_update_time(loop);
    uv_timer_init(loop, &timer);
    uv_timer_start(&timer, on_end, ms, 0);
    uv_run(loop, UV_RUN_DEFAULT);
    uv_close((uv_handle_t *)&timer, NULL);
    uv_run(loop, UV_RUN_NOWAIT);
}

static void measure(enum kind kind, struct gossip *g, uv_loop_t *loop, uint64_t ms)
{
    struct sockaddr_storage sa;
    socklen_t len;
    struct swim_addr to = {.family = 4, .port = gossip_port(g), .ip = {127, 0, 0, 1}};
    struct gossip_stats before, after;
    unsigned suspected = second.suspected, died = second.died;
    (void)gossip_addr_to_system(&to, AF_INET, &sa, &len);
    if (kind == REPLAYED) { /* once it is right */
        uint8_t data[SEAL_MAX];
        int fd = socket(AF_INET, SOCK_DGRAM, 0);
        size_t n = make(kind, data);
        (void)!sendto(fd, data, n, 0, (struct sockaddr *)&sa, len);
        run_for(loop, 50);
        close(fd);
    }
    pid_t child = kind == QUIET ? -1 : fork();
    if (child == 0) {
        send_all(kind, &sa, len);
    }
    run_for(loop, 200);
    gossip_stats(g, &before);
    double cpu_before = cpu();
    uint64_t began = uv_hrtime();
    run_for(loop, ms);
    double spent = cpu() - cpu_before, passed = (double)(uv_hrtime() - began) / 1e9;
    gossip_stats(g, &after);
    if (child > 0) {
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    uint64_t in = after.in - before.in;
    printf("%-20s %10.0f %10.2f %8.1f %12.0f %8.0f %8u %6u\n", names[kind], (double)in / passed,
        in == 0 ? 0 : spent / (double)in * 1e6, spent / passed * 100,
        (double)(after.system_dropped - before.system_dropped) / passed,
        (double)(after.verdicts[SEAL_BUSY] - before.verdicts[SEAL_BUSY]) / passed,
        second.suspected - suspected, second.died - died);
    run_for(loop, 200); /* what is left in the socket */
}

/* A node that @g knows and has met. */
static void open_second(const struct gossip_config *like, uv_loop_t *loop, struct gossip *g)
{
    static const struct swim_id id = {{4}};
    static const struct gossip_ops ops = {.event = on_second};
    struct gossip_config c = *like;
    struct key *key;
    struct swim_addr addr = {.family = 4, .port = gossip_port(g), .ip = {127, 0, 0, 1}};
    uint8_t spki[SPKI_LEN];
    uv_loop_init(&second.loop);
    check(key_generate(&key));
    c.key = key;
    c.swim.id = id;
    check(gossip_open(&second.loop, &c, &ops, NULL, &second.g));
    check(key_public(key, spki));
    check(gossip_peer(g, &id, spki, sizeof spki));
    check(key_public(like->key, spki));
    check(gossip_peer(second.g, &like->swim.id, spki, sizeof spki));
    key_free(key);
    gossip_join(second.g, &addr);
    uv_async_init(&second.loop, &second.stop, on_stop);
    uv_thread_create(&second.thread, second_main, NULL);
    while (second.joined == 0) {
        uv_run(loop, UV_RUN_ONCE);
    }
}

int main(int argc, char **argv)
{
    static const struct gossip_ops ops = {.event = on_event};
    uint64_t ms = (argc > 1 ? strtoull(argv[1], NULL, 10) : 3) * 1000;
    struct seal_key ring = {.id = 1, .use = true, .secret = {1}};
    struct gossip_config c = {
        .swim = {.id = self, .addr = {.family = 4, .ip = {127, 0, 0, 1}}, .incarnation = 1},
        .bind_addr = "127.0.0.1",
        .start = 1,
        .keys = &ring,
        .n_keys = 1};
    uv_loop_t loop;
    struct gossip *g;
    struct key *key;
    uint8_t spki[SPKI_LEN];
    uv_loop_init(&loop);
    check(key_generate(&key));
    check(key_public(key, spki));
    c.key = key;
    check(gossip_open(&loop, &c, &ops, NULL, &g));
    check(gossip_peer(g, &other, spki, sizeof spki));
    open_second(&c, &loop, g);
    printf("%-20s %10s %10s %8s %12s %8s %8s %6s\n", "datagrams of 454 B", "taken/s", "us each", "% core",
        "sys drop/s", "busy/s", "suspects", "deaths");
    for (enum kind kind = QUIET; kind < KINDS; kind++) {
        measure(kind, g, &loop, ms);
    }
    uv_async_send(&second.stop);
    uv_thread_join(&second.thread);
    gossip_close(g, NULL, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
    key_free(key);
    return uv_loop_close(&loop);
}
