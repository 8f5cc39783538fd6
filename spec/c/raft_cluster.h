/* Managers in one process, on one loop, each with its own folder, certificate and port: for the tests of
 * src/raft. */
#ifndef SPEC_RAFT_CLUSTER_H
#define SPEC_RAFT_CLUSTER_H

#include "base/err.h"
#include "base/log.h"
#include "crypto/crypto.h"
#include "raft/authorize.h"
#include "raft/node.h"
#include "store/store.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <ftw.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

enum { MANAGERS_MAX = 8 };

struct manager {
    struct cluster *c;
    uint64_t id;
    char address[64], raft_dir[256], state_dir[256];
    uint16_t port;
    uint64_t starts, moves;
    struct buf cert;
    struct key *key;
    struct store *store;
    struct rnode *node;
    struct store_config store_config;
    unsigned changes, applied, removed;
    int removed_code;
};

struct cluster {
    uv_loop_t loop;
    uv_timer_t wake;
    char dir[128];
    struct key *ca_key;
    struct buf ca;
    struct manager managers[MANAGERS_MAX];
    bool gone[64]; /* raft ids that authorize refuses as removed */
    bool by_state; /* authorize as the daemon does */
    unsigned election_ms, heartbeat_ms;
    uint64_t disk_floor;
    size_t quota;
};

static inline uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static inline int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path);
}

static inline void remove_tree(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* @to, if there is one, goes first. A manager that runs renames and removes files meanwhile, and cp complains of those
 * that it does not find any more: then it is done again. */
static inline void copy_tree(const char *from, const char *to)
{
    char line[700];
    int rv = -1;
    snprintf(line, sizeof line, "cp -a --sparse=always '%s' '%s'", from, to);
    for (unsigned tries = 0; rv != 0 && tries < 20; tries++) {
        remove_tree(to);
        rv = system(line);
    }
    assert_int_equal(rv, 0);
}

static unsigned threads_kept; /* this one and libuv's, which wait while nothing runs */

static inline unsigned count_threads(void)
{
    DIR *d = opendir("/proc/self/task");
    struct dirent *e;
    unsigned n = 0;
    assert_non_null(d);
    while ((e = readdir(d)) != NULL) {
        n += e->d_name[0] != '.';
    }
    closedir(d);
    return n;
}

/* fork(), for a child that goes on in this program, when no other thread does anything. libraft's contexts of I/O are
 * destroyed by threads of their own (src/raft/aio.c), which may be on their way out of the allocator at that moment,
 * and with an ASan that knows nothing of fork the child would find it locked for ever. */
static inline pid_t fork_alone(void)
{
    uint64_t end = 0;
    assert_int_not_equal(threads_kept, 0);
    for (unsigned n; (n = count_threads()) > threads_kept; usleep(1000)) {
        end = end != 0 ? end : now_ms() + 60000;
        if (now_ms() > end) {
            fail_msg("%u threads, and only %u are to stay", n, threads_kept);
        }
    }
    fflush(NULL);
    return fork();
}

static inline uint16_t free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    close(fd);
    return ntohs(a.sin_port);
}

#define check_ok(call)                                                                                       \
    do {                                                                                                     \
        int rv_ = (call);                                                                                    \
        if (rv_ != 0) {                                                                                      \
            fail_msg("%s: %s (%s)", #call, err_name(rv_), err_msg());                                        \
        }                                                                                                    \
    } while (0)

static inline void on_wake(uv_timer_t *t)
{
    (void)t;
}

static inline void on_work(uv_work_t *work)
{
    (void)work;
}

static inline void on_work_done(uv_work_t *work, int status)
{
    (void)work;
    assert_int_equal(status, 0);
}

/* Before anything has been started: has libuv start its threads. */
static inline void count_kept(uv_loop_t *loop)
{
    uv_work_t work;
    assert_int_equal(uv_queue_work(loop, &work, on_work, on_work_done), 0);
    uv_run(loop, UV_RUN_DEFAULT);
    threads_kept = count_threads();
}

static inline void cluster_open(struct cluster *c)
{
    memset(c, 0, sizeof *c);
    const char *tmp = getenv("TMPDIR");
    snprintf(c->dir, sizeof c->dir, "%s/sym-raft-XXXXXX", tmp != NULL ? tmp : "/tmp");
    assert_non_null(mkdtemp(c->dir));
    assert_int_equal(uv_loop_init(&c->loop), 0);
    if (threads_kept == 0) {
        count_kept(&c->loop);
    }
    uv_timer_init(&c->loop, &c->wake);
    uv_timer_start(&c->wake, on_wake, 5, 5);
    time_t now = time(NULL);
    check_ok(key_generate(&c->ca_key));
    check_ok(cert_new_ca(c->ca_key, "test", now - 3600, now + 86400, &c->ca));
    signal(SIGPIPE, SIG_IGN);
}

static inline void cluster_close(struct cluster *c)
{
    uv_close((uv_handle_t *)&c->wake, NULL);
    uv_run(&c->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&c->loop), 0);
    for (unsigned i = 0; i < MANAGERS_MAX; i++) {
        buf_free(&c->managers[i].cert);
        if (c->managers[i].key != NULL) {
            key_free(c->managers[i].key);
        }
    }
    key_free(c->ca_key);
    buf_free(&c->ca);
    remove_tree(c->dir);
}

/* A loaded machine under sanitizers: how much longer than it should take is waited for something. */
enum { PATIENCE = 10 };

/* Runs the loop until @cond holds; fails the test, saying so, after @ms (and patience). */
#define run_until(c, ms, cond)                                                                               \
    do {                                                                                                     \
        uint64_t end_ = now_ms() + PATIENCE * (uint64_t)(ms);                                                \
        while (!(cond)) {                                                                                    \
            if (now_ms() > end_) {                                                                           \
                cluster_print(c);                                                                            \
                fail_msg("waited %d ms for: %s", (int)(ms), #cond);                                          \
            }                                                                                                \
            uv_run(&(c)->loop, UV_RUN_ONCE);                                                                 \
        }                                                                                                    \
    } while (0)

static inline void cluster_print(struct cluster *c)
{
    static const char *const states[] = {"follower", "candidate", "leader", "down"};
    for (unsigned i = 0; i < MANAGERS_MAX; i++) {
        struct manager *m = &c->managers[i];
        struct rnode_status s;
        if (m->node == NULL) {
            continue;
        }
        rnode_status(m->node, &s);
        fprintf(stderr,
            "  %" PRIu64 ": %s term %" PRIu64 " leader %" PRIu64 " last %" PRIu64 " commit %" PRIu64
            " applied %" PRIu64 " snapshot %" PRIu64 " log %" PRIu64 " revision %" PRIu64 "%s%s%s, servers",
            m->id, states[s.state], s.term, s.leader, s.last_index, s.commit_index, s.applied_index,
            s.snapshot_index, s.log_bytes, store_revision(m->store), s.has_quorum ? " quorum" : "",
            s.changing ? " changing" : "", s.no_space ? " no_space" : "");
        for (unsigned k = 0; k < s.n_servers; k++) {
            fprintf(stderr, " %" PRIu64 "(%s%s %" PRIu64 ")", s.servers[k].id,
                s.servers[k].role == ROLE_VOTER     ? "voter"
                : s.servers[k].role == ROLE_STANDBY ? "standby"
                                                    : "spare",
                s.servers[k].up ? " up" : "", s.servers[k].match_index);
        }
        fprintf(stderr, "\n");
    }
}

static inline int authorize(void *arg, uint64_t id, const struct tls_peer *peer)
{
    struct manager *m = arg;
    char cn[32];
    if (m->c->by_state) {
        return raft_authorize(m->store, id, peer);
    }
    snprintf(cn, sizeof cn, "node-%" PRIu64, id);
    if (!peer->present || strcmp(peer->cert.cn, cn) != 0) {
        return err_setf(SYM_EDENIED, "not %s", cn);
    }
    return m->c->gone[id] ? err_setf(SYM_ENOTFOUND, "removed") : 0;
}

static inline void on_change(void *arg)
{
    ((struct manager *)arg)->changes++;
}

static inline void on_applied(void *arg)
{
    ((struct manager *)arg)->applied++;
}

static inline void on_removed(void *arg, int code, const char *reason)
{
    struct manager *m = arg;
    (void)reason;
    m->removed++;
    m->removed_code = code;
}

/* Makes what a manager needs to be started. @i from 0; its raft id is i + 1. */
static inline struct manager *manager_new(struct cluster *c, unsigned i)
{
    struct manager *m = &c->managers[i];
    struct buf csr = {0};
    char cn[32];
    time_t now = time(NULL);
    m->c = c;
    m->id = i + 1;
    m->port = free_port();
    snprintf(m->address, sizeof m->address, "127.0.0.1:%u", m->port);
    snprintf(m->raft_dir, sizeof m->raft_dir, "%s/raft-%u", c->dir, i + 1);
    snprintf(m->state_dir, sizeof m->state_dir, "%s/state-%u", c->dir, i + 1);
    snprintf(cn, sizeof cn, "node-%u", i + 1);
    check_ok(key_generate(&m->key));
    check_ok(csr_new(m->key, cn, &csr));
    struct cert_spec spec = {.cn = cn,
        .ou = "manager",
        .o = "test",
        .not_before = now - 3600,
        .not_after = now + 86400,
        .server = true,
        .raft_id = m->id};
    check_ok(cert_sign(
        c->ca_key, (char *)buf_data(&c->ca), c->ca.len, (char *)buf_data(&csr), csr.len, &spec, &m->cert));
    buf_append(&m->cert, "", 1);
    buf_free(&csr);
    return m;
}

static inline int manager_try_start(struct manager *m)
{
    struct cluster *c = m->c;
    m->store_config =
        (struct store_config){.dir = m->state_dir, .quota = c->quota == 0 ? 64 << 20 : c->quota};
    check_ok(store_open(&m->store_config, &m->store));
    struct buf ca = {0};
    check_ok(buf_append(&ca, buf_data(&c->ca), c->ca.len));
    check_ok(buf_append(&ca, "", 1));
    struct rnode_config cfg = {
        .loop = &c->loop,
        .id = m->id,
        .address = m->address,
        .moves = m->moves,
        .bind_addr = "127.0.0.1",
        .port = m->port,
        .dir = m->raft_dir,
        .store = m->store,
        .store_config = &m->store_config,
        .cluster_id = "test",
        .cert = (char *)buf_data(&m->cert),
        .key = m->key,
        .ca = (char *)buf_data(&ca),
        .starts = ++m->starts,
        .election_ms = c->election_ms,
        .heartbeat_ms = c->heartbeat_ms,
        .disk_floor = c->disk_floor != 0 ? c->disk_floor : 1 << 20,
        .arg = m,
        .authorize = authorize,
        .on_change = on_change,
        .on_applied = on_applied,
        .on_removed = on_removed,
    };
    int rv = rnode_start(&cfg, &m->node);
    buf_free(&ca);
    if (rv != 0) {
        char text[512];
        snprintf(text, sizeof text, "%s", err_msg());
        for (unsigned i = 0; i < 50; i++) {
            uv_run(&c->loop, UV_RUN_ONCE); /* it closes by and by */
        }
        store_close(m->store);
        m->store = NULL;
        m->node = NULL;
        err_setf(rv, "%s", text);
    }
    return rv;
}

static inline void manager_start(struct manager *m)
{
    check_ok(manager_try_start(m));
}

static inline void on_stopped(void *arg)
{
    struct manager *m = arg;
    m->node = NULL;
    store_close(m->store);
    m->store = NULL;
}

static inline void manager_stop(struct manager *m)
{
    rnode_stop(m->node, on_stopped, m);
    run_until(m->c, 10000, m->node == NULL);
}

struct answer {
    unsigned n;
    int status;
    struct txn_result result;
    char text[256];
};

static inline void on_answer(void *arg, int status)
{
    struct answer *a = arg;
    a->n++;
    a->status = status;
    snprintf(a->text, sizeof a->text, "%s", status == 0 ? "" : err_msg());
}

static inline void on_txn_answer(void *arg, int status, const struct txn_result *result)
{
    struct answer *a = arg;
    on_answer(a, status);
    if (result != NULL) {
        a->result = *result;
    }
}

/* The answer of a call that takes (..., cb, arg), waited for. */
#define ask(c, ms, a, call, ...)                                                                             \
    do {                                                                                                     \
        memset(&(a), 0, sizeof(a));                                                                          \
        call(__VA_ARGS__, on_answer, &(a));                                                                  \
        assert_int_equal((a).n, 0); /* never from inside */                                                  \
        run_until(c, ms, (a).n > 0);                                                                         \
        assert_int_equal((a).n, 1);                                                                          \
    } while (0)

static inline void put(
    struct manager *m, const char *key, const char *value, uint64_t timeout_ms, struct answer *a)
{
    struct txn *t = calloc(1, sizeof *t);
    struct buf bytes = {0};
    t->n_ops = 1;
    t->ops[0] =
        (struct txn_op){OP_PUT, {(const uint8_t *)key, strlen(key)}, {(const uint8_t *)value, strlen(value)}};
    check_ok(txn_encode(t, &bytes));
    memset(a, 0, sizeof *a);
    rnode_submit(m->node, buf_data(&bytes), bytes.len, timeout_ms, on_txn_answer, a);
    assert_int_equal(a->n, 0);
    buf_free(&bytes);
    free(t);
}

static inline void put_ok(struct manager *m, const char *key, const char *value)
{
    struct answer a;
    put(m, key, value, 5000 * PATIENCE, &a);
    run_until(m->c, 6000, a.n > 0);
    if (a.status != 0) {
        cluster_print(m->c);
        fail_msg("put %s at manager %" PRIu64 ": %s (%s)", key, m->id, err_name(a.status), a.text);
    }
    assert_int_equal(a.result.status, TXN_APPLIED);
}

static inline void read_ok(struct manager *m)
{
    struct answer a;
    ask(m->c, 6000, a, rnode_read, m->node, 5000 * PATIENCE);
    if (a.status != 0) {
        cluster_print(m->c);
        fail_msg("read at manager %" PRIu64 ": %s (%s)", m->id, err_name(a.status), a.text);
    }
}

/* "" if the key is not there. Local. */
static inline const char *get(struct manager *m, const char *key)
{
    static char value[256];
    struct kv kv;
    int rv = store_get(m->store, key, strlen(key), &kv);
    if (rv == SYM_ENOTFOUND) {
        return "";
    }
    check_ok(rv);
    snprintf(value, sizeof value, "%.*s", (int)kv.value.n, (const char *)kv.value.p);
    return value;
}

static inline struct manager *leader_of(struct cluster *c)
{
    for (unsigned i = 0; i < MANAGERS_MAX; i++) {
        if (c->managers[i].node != NULL && rnode_is_leader(c->managers[i].node)) {
            return &c->managers[i];
        }
    }
    return NULL;
}

static inline bool knows_itself_as(struct manager *m, enum raft_role role)
{
    struct rnode_status s;
    rnode_status(m->node, &s);
    for (unsigned i = 0; i < s.n_servers; i++) {
        if (s.servers[i].is_self && s.servers[i].role == role && !s.changing) {
            return true;
        }
    }
    return false;
}

static inline bool sees_up(struct manager *m, uint64_t id)
{
    struct rnode_status s;
    rnode_status(m->node, &s);
    for (unsigned i = 0; i < s.n_servers; i++) {
        if (s.servers[i].id == id) {
            return s.servers[i].up;
        }
    }
    return false;
}

/* A change of the membership at the leader, said again while it is refused for a reason that passes. */
#define change_ok(c, call, ...)                                                                              \
    do {                                                                                                     \
        struct answer a_;                                                                                    \
        uint64_t end_of_ = now_ms() + 15000 * PATIENCE;                                                      \
        do {                                                                                                 \
            run_until(c, 5000, leader_of(c) != NULL);                                                        \
            ask(c, 31000, a_, call, leader_of(c)->node, __VA_ARGS__);                                        \
        } while ((a_.status == SYM_EBUSY || a_.status == SYM_ECONNECT || a_.status == SYM_ENOTLEADER) &&     \
                 now_ms() < end_of_);                                                                        \
        if (a_.status != 0) {                                                                                \
            cluster_print(c);                                                                                \
            fail_msg("%s: %s (%s)", #call, err_name(a_.status), a_.text);                                    \
        }                                                                                                    \
    } while (0)

/* A cluster of @n voters, led by the first. */
static inline void form(struct cluster *c, unsigned n)
{
    struct manager *first = manager_new(c, 0);
    check_ok(rnode_bootstrap(first->raft_dir, first->id, first->address));
    manager_start(first);
    run_until(c, 5000, rnode_is_leader(first->node));
    for (unsigned i = 1; i < n; i++) {
        struct manager *m = manager_new(c, i);
        manager_start(m);
        change_ok(c, rnode_add, m->id, m->address);
        change_ok(c, rnode_assign, m->id, ROLE_STANDBY);
        change_ok(c, rnode_assign, m->id, ROLE_VOTER);
        run_until(c, 5000, knows_itself_as(m, ROLE_VOTER));
    }
}

static inline void stop_all(struct cluster *c)
{
    for (unsigned i = 0; i < MANAGERS_MAX; i++) {
        if (c->managers[i].node != NULL) {
            manager_stop(&c->managers[i]);
        }
    }
}

#endif
