/* Some drivers of gossip on loopback, in one process and one loop, that note what they are told. */
#ifndef SYM_SPEC_GOSSIP_NODES_H
#define SYM_SPEC_GOSSIP_NODES_H

#include "check.h"

#include "gossip/gossip.h"
#include "gossip/gossip_addr.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { NODES_MAX = 8, EVENT_KINDS = SWIM_DOUBLE + 1 };

struct node {
    struct gossip *g;
    uv_loop_t *on;
    struct swim_id id;
    struct key *key;
    uint8_t spki[SPKI_LEN];
    uint64_t start;
    unsigned told[EVENT_KINDS][NODES_MAX]; /* how often, of which node */
    unsigned lost, probes, departed;
    bool has_left, closed;
    enum { PROBE_NO, PROBE_ALIVE, PROBE_DEAD } answer;
    struct swim_id probed;
    void (*also)(struct node *n, enum swim_event what);
};

static uv_loop_t loop;
static struct node nodes[NODES_MAX];

static inline struct swim_id node_id(unsigned i)
{
    return (struct swim_id){{(uint8_t)(i + 1), 7, 7}};
}

static inline unsigned node_index(const struct swim_id *id)
{
    assert_in_range(id->b[0], 1, NODES_MAX);
    return id->b[0] - 1u;
}

static inline void node_event(void *arg, enum swim_event what, const struct swim_member *m)
{
    struct node *n = arg;
    assert_false(n->closed);
    n->told[what][node_index(&m->id)]++;
    if (n->also != NULL) {
        n->also(n, what);
    }
}

static inline void node_lost(void *arg)
{
    ((struct node *)arg)->lost++;
}

static inline void node_probe(void *arg, const struct swim_member *m, uint32_t ticket)
{
    struct node *n = arg;
    n->probes++;
    n->probed = m->id;
    if (n->answer != PROBE_NO) {
        gossip_probe_done(n->g, ticket, n->answer == PROBE_ALIVE);
    }
}

static inline void node_left(void *arg)
{
    ((struct node *)arg)->has_left = true;
}

static inline void node_closed(void *arg)
{
    ((struct node *)arg)->closed = true;
}

static const struct gossip_ops node_ops = {.event = node_event, .lost = node_lost, .probe = node_probe};

static inline struct seal_key ring_key(uint32_t id, bool use)
{
    struct seal_key k = {.id = id, .use = use};
    memset(k.secret, (int)id, sizeof k.secret);
    return k;
}

/* Once before all; keys take a while to make. */
static inline void nodes_begin(void)
{
    assert_int_equal(uv_loop_init(&loop), 0);
    for (unsigned i = 0; i < NODES_MAX; i++) {
        OK(key_generate(&nodes[i].key));
        OK(key_public(nodes[i].key, nodes[i].spki));
    }
}

static inline void nodes_end(void)
{
    for (unsigned i = 0; i < NODES_MAX; i++) {
        key_free(nodes[i].key);
    }
    assert_int_equal(uv_loop_close(&loop), 0);
}

static inline int node_try(uv_loop_t *on, unsigned i, const char *bind_addr, const char *address)
{
    struct node *n = &nodes[i];
    static uint64_t starts = 1000;
    struct seal_key k = ring_key(1, true);
    struct gossip_config c = {
        .bind_addr = bind_addr, .start = ++starts, .key = n->key, .keys = &k, .n_keys = 1};
    struct key *key = n->key;
    uint8_t spki[SPKI_LEN];
    memcpy(spki, n->spki, sizeof spki);
    *n = (struct node){.on = on, .id = node_id(i), .key = key, .start = starts};
    memcpy(n->spki, spki, sizeof spki);
    OK(gossip_addr_parse(address, 0, &c.swim.addr));
    c.swim.id = n->id;
    c.swim.incarnation = starts;
    c.swim.cluster = "test";
    c.swim.cluster_len = 4;
    c.swim.meta = "meta";
    c.swim.meta_len = 4;
    c.swim.period_ms = 60;
    c.swim.probe_timeout_ms = 25;
    c.swim.gossip_ms = 20;
    c.swim.reconnect_ms = 100;
    return gossip_open(on, &c, &node_ops, n, &n->g);
}

static inline void node_knows(unsigned i, unsigned of)
{
    OK(gossip_peer(nodes[i].g, &nodes[of].id, nodes[of].spki, SPKI_LEN));
}

/* Nodes 0 to @count - 1, that are known to each other but have not met. */
static inline void nodes_open(unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        OK(node_try(&loop, i, "127.0.0.1", "127.0.0.1"));
        for (unsigned of = 0; of < i; of++) {
            node_knows(i, of);
            node_knows(of, i);
        }
    }
}

static inline void node_close(unsigned i)
{
    struct node *n = &nodes[i];
    gossip_close(n->g, node_closed, n);
    n->g = NULL;
    while (!n->closed) {
        uv_run(&loop, UV_RUN_ONCE);
    }
}

static inline void nodes_close(unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (nodes[i].g != NULL) {
            node_close(i);
        }
    }
}

/* After a test that failed. */
static inline int nodes_close_left(void **state)
{
    (void)state;
    for (unsigned i = 0; i < NODES_MAX; i++) {
        if (nodes[i].g != NULL && !nodes[i].closed && nodes[i].on == &loop) {
            node_close(i);
        }
    }
    return 0;
}

static inline void on_give_up(uv_timer_t *timer)
{
    *(bool *)timer->data = true;
}

static inline void on_limit_closed(uv_handle_t *handle)
{
    *(bool *)handle->data = false;
}

/* Runs the loop until @cond is true, with @also in each turn; fails after 30 seconds. */
#define run_with(cond, also)                                                                                 \
    do {                                                                                                     \
        bool too_late_ = false, open_ = true;                                                                \
        uv_timer_t limit_;                                                                                   \
        uv_update_time(&loop);                                                                               \
        uv_timer_init(&loop, &limit_);                                                                       \
        limit_.data = &too_late_;                                                                            \
        uv_timer_start(&limit_, on_give_up, 30000, 0);                                                       \
        while (!(cond) && !too_late_) {                                                                      \
            also;                                                                                            \
            uv_run(&loop, UV_RUN_ONCE);                                                                      \
        }                                                                                                    \
        limit_.data = &open_;                                                                                \
        uv_close((uv_handle_t *)&limit_, on_limit_closed);                                                   \
        while (open_) {                                                                                      \
            uv_run(&loop, UV_RUN_NOWAIT);                                                                    \
        }                                                                                                    \
        if (too_late_) {                                                                                     \
            fail_msg("%s:%d: never became true: %s", __FILE__, __LINE__, #cond);                             \
        }                                                                                                    \
    } while (0)
#define run_until(cond) run_with(cond, (void)0)

static inline bool sees(unsigned i, unsigned of, enum swim_state state)
{
    struct swim_member m;
    return swim_get(gossip_swim(nodes[i].g), &nodes[of].id, &m) && m.state == state;
}

/* All of 0 to @count - 1 see each other alive. */
static inline bool all_met(unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        for (unsigned of = 0; of < count; of++) {
            if (!sees(i, of, SWIM_ALIVE)) {
                return false;
            }
        }
    }
    return true;
}

static inline void join(unsigned i, unsigned to)
{
    struct swim_member m;
    gossip_self(nodes[to].g, &m);
    gossip_join(nodes[i].g, &m.addr);
}

static inline void nodes_meet(unsigned count)
{
    nodes_open(count);
    for (unsigned i = 1; i < count; i++) {
        join(i, 0);
    }
    run_until(all_met(count));
}

static inline struct gossip_stats stats_of(unsigned i)
{
    struct gossip_stats s;
    gossip_stats(nodes[i].g, &s);
    return s;
}

/* How many have been told that somebody died or was suspected. */
static inline unsigned alarms(unsigned count, enum swim_event what)
{
    unsigned n = 0;
    for (unsigned i = 0; i < count; i++) {
        for (unsigned of = 0; of < NODES_MAX; of++) {
            n += nodes[i].told[what][of];
        }
    }
    return n;
}

/* A full exchange, one way. */
static inline void exchange(unsigned from, unsigned to)
{
    uint32_t cursor = 0;
    do {
        struct buf piece = {0};
        OK(swim_export(gossip_swim(nodes[from].g), &cursor, 1024, &piece));
        OK(gossip_merge(nodes[to].g, &nodes[from].id, buf_data(&piece), piece.len));
        buf_free(&piece);
    } while (cursor != 0);
}

/* A socket that is no node. */
static inline int plain_socket(struct swim_addr *addr)
{
    struct sockaddr_storage sa;
    socklen_t len;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    struct swim_addr any = {.family = 4, .ip = {127, 0, 0, 1}};
    assert_true(fd >= 0 && gossip_addr_to_system(&any, AF_INET, &sa, &len));
    assert_int_equal(bind(fd, (struct sockaddr *)&sa, len), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&sa, &len), 0);
    assert_true(gossip_addr_from_system(&sa, addr));
    return fd;
}

/* To node @i, from the plain socket. Retries: the buffer of a socket on loopback may be full for a moment. */
static inline void throw_at(int fd, unsigned i, const void *data, size_t n)
{
    struct sockaddr_storage sa;
    socklen_t len;
    struct swim_addr to = {.family = 4, .port = gossip_port(nodes[i].g), .ip = {127, 0, 0, 1}};
    assert_true(gossip_addr_to_system(&to, AF_INET, &sa, &len));
    assert_int_equal(sendto(fd, data, n, 0, (struct sockaddr *)&sa, len), (int)n);
}

#endif
