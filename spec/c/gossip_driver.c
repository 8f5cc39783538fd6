/* Gossip over real sockets on loopback: nodes find each other, miss each other, leave, are removed, change keys; and
 * what is not from a node costs little and changes nothing. */
#include "check.h"

#include "gossip/gossip.c"
#include "gossip/swim_wire.h"

#include "gossip_nodes.h"

/* ---- finding each other ---- */

static void by_join(void **state)
{
    (void)state;
    nodes_meet(5);
    assert_int_equal(swim_count(gossip_swim(nodes[0].g)), 5);
    for (unsigned i = 0; i < 5; i++) {
        run_until(nodes[i].told[SWIM_JOINED][(i + 1) % 5] == 1); /* the event comes after the fact */
        assert_int_equal(nodes[i].told[SWIM_JOINED][i], 0);
        assert_true(stats_of(i).verdicts[SEAL_OK] > 0);
        assert_int_equal(stats_of(i).peers, 4);
        assert_int_equal(stats_of(i).swim.bad_signatures, 0);
    }
    struct swim_member m;
    assert_true(swim_get(gossip_swim(nodes[4].g), &nodes[3].id, &m));
    assert_int_equal(m.addr.port, gossip_port(nodes[3].g));
    assert_memory_equal(m.meta, "meta", 4);
    nodes_close(5);
}

static void by_exchange(void **state)
{
    (void)state;
    nodes_open(4);
    exchange(0, 1);
    exchange(1, 2);
    exchange(2, 3);
    run_until(all_met(4));
    run_until(nodes[3].told[SWIM_JOINED][0] == 1);
    struct buf piece = {0};
    uint32_t cursor = 0;
    OK(swim_export(gossip_swim(nodes[0].g), &cursor, 1024, &piece));
    FAILS(SYM_EPROTO, gossip_merge(nodes[1].g, &nodes[0].id, buf_data(&piece), piece.len - 1));
    buf_free(&piece);
    nodes_close(4);
}

/* A node with another cluster's key, and one that claims an id without having its private key. */
static void not_believed(void **state)
{
    (void)state;
    nodes_open(3);
    struct seal_key other = ring_key(1, true);
    other.secret[0] ^= 1;
    OK(gossip_keys(nodes[1].g, &other, 1));
    OK(gossip_peer(nodes[0].g, &nodes[2].id, nodes[3].spki, SPKI_LEN)); /* not its key */
    run_with(stats_of(0).verdicts[SEAL_FORGED] > 2 && stats_of(0).swim.bad_signatures > 2,
        (join(1, 0), join(2, 0)));
    assert_int_equal(swim_count(gossip_swim(nodes[0].g)), 1);
    assert_int_equal(alarms(3, SWIM_JOINED), nodes[2].told[SWIM_JOINED][0]);
    nodes_close(3);
}

static void updated(void **state)
{
    (void)state;
    nodes_meet(3);
    struct swim_member m;
    gossip_self(nodes[0].g, &m);
    struct swim_addr addr = m.addr;
    OK(gossip_update(nodes[0].g, &addr, "new", 3));
    run_until(nodes[1].told[SWIM_UPDATED][0] == 1 && nodes[2].told[SWIM_UPDATED][0] == 1);
    assert_true(swim_get(gossip_swim(nodes[2].g), &nodes[0].id, &m));
    assert_memory_equal(m.meta, "new", 3);
    static const uint8_t big[SWIM_META_MAX + 1];
    FAILS(SYM_EINVAL, gossip_update(nodes[0].g, &addr, big, sizeof big));
    nodes_close(3);
}

/* It comes back at another port with a later start, and the others follow its word. */
static void moved(void **state)
{
    (void)state;
    nodes_meet(3);
    uint16_t before = gossip_port(nodes[2].g);
    int taken;
    struct swim_addr addr;
    node_close(2);
    taken = plain_socket(&addr); /* whatever port it is: the next one is another */
    OK(node_try(&loop, 2, "127.0.0.1", "127.0.0.1"));
    node_knows(2, 0);
    node_knows(2, 1);
    join(2, 0);
    run_until(all_met(3));
    struct swim_member m;
    run_until(swim_get(gossip_swim(nodes[1].g), &nodes[2].id, &m) && m.addr.port == gossip_port(nodes[2].g));
    (void)before;
    close(taken);
    nodes_close(3);
}

/* ---- missing each other ---- */

static void death(void **state)
{
    (void)state;
    nodes_meet(4);
    node_close(3);
    run_until(nodes[0].told[SWIM_DIED][3] == 1 && nodes[1].told[SWIM_DIED][3] == 1 &&
              nodes[2].told[SWIM_DIED][3] == 1);
    assert_true(sees(0, 3, SWIM_DEAD));
    assert_int_equal(swim_count(gossip_swim(nodes[0].g)), 3);
    assert_true(all_met(3));
    nodes_close(3);
}

/* Over the reliable channel it answers: it is not even suspected. */
static void reliable_channel(void **state)
{
    (void)state;
    nodes_meet(3);
    nodes[0].answer = nodes[1].answer = PROBE_ALIVE;
    node_close(2);
    unsigned before = nodes[0].probes + nodes[1].probes;
    run_until(nodes[0].probes + nodes[1].probes >= before + 6);
    assert_true(swim_id_eq(&nodes[0].probed, &nodes[2].id) || swim_id_eq(&nodes[1].probed, &nodes[2].id));
    assert_int_equal(nodes[0].told[SWIM_DIED][2] + nodes[1].told[SWIM_DIED][2], 0);
    nodes[0].answer = nodes[1].answer = PROBE_DEAD;
    run_until(nodes[0].told[SWIM_DIED][2] == 1 && nodes[1].told[SWIM_DIED][2] == 1);
    nodes_close(2);
}

/* A node that hears nobody for a while, and is heard by nobody. */
static void refuted(void **state)
{
    (void)state;
    struct seal_key good = ring_key(1, true), deaf = ring_key(9, true);
    nodes_meet(4);
    OK(gossip_keys(nodes[3].g, &deaf, 1));
    run_until(nodes[0].told[SWIM_SUSPECTED][3] > 0 || nodes[0].told[SWIM_DIED][3] > 0);
    OK(gossip_keys(nodes[3].g, &good, 1));
    run_until(nodes[3].told[SWIM_ACCUSED][3] > 0 && all_met(4));
    run_until(nodes[0].told[SWIM_REFUTED][3] + nodes[0].told[SWIM_RETURNED][3] > 0);
    nodes_close(4);
}

/* A process that did not run: it takes in what has come meanwhile before it looks who is silent. */
static void stalled(void **state)
{
    (void)state;
    uv_loop_t second;
    assert_int_equal(uv_loop_init(&second), 0);
    OK(node_try(&loop, 0, "127.0.0.1", "127.0.0.1"));
    OK(node_try(&second, 1, "127.0.0.1", "127.0.0.1"));
    node_knows(0, 1);
    node_knows(1, 0);
    join(0, 1);
    run_with(sees(0, 1, SWIM_ALIVE) && sees(1, 0, SWIM_ALIVE), uv_run(&second, UV_RUN_NOWAIT));
    unsigned quiet = nodes[1].told[SWIM_SUSPECTED][0];
    run_until(nodes[0].told[SWIM_SUSPECTED][1] > 0);
    uint64_t stalls = stats_of(1).swim.stalls, in = stats_of(1).in;
    uv_update_time(&second);
    on_tick(&nodes[1].g->tick);
    assert_true(stats_of(1).swim.stalls > stalls);
    assert_true(stats_of(1).in > in);
    run_with(sees(0, 1, SWIM_ALIVE), uv_run(&second, UV_RUN_NOWAIT));
    assert_int_equal(nodes[1].told[SWIM_SUSPECTED][0], quiet);
    assert_int_equal(alarms(2, SWIM_DIED), 0);
    gossip_close(nodes[1].g, node_closed, &nodes[1]);
    uv_run(&second, UV_RUN_DEFAULT);
    assert_true(nodes[1].closed);
    assert_int_equal(uv_loop_close(&second), 0);
    nodes_close(1);
}

/* ---- played by hand ---- */

/* A ping that is sealed for node 0. */
static size_t letter(struct seal *s, uint8_t out[SEAL_MAX])
{
    struct wire_head h = {.type = WIRE_PING, .seq = 1, .incarnation = 1};
    struct buf b = {0};
    struct wr w = wr_init(&b);
    wire_put_head(&w, &h);
    OK(seal_wrap(s, &nodes[0].id, buf_data(&b), b.len, out));
    size_t n = b.len + SEAL_OVERHEAD;
    buf_free(&b);
    return n;
}

static bool nobody(void *arg, const struct swim_id *id)
{
    (void)arg;
    (void)id;
    return false;
}

/* The envelopes of node @i by hand. */
static struct seal *hand(unsigned i, uint64_t start)
{
    struct seal *s;
    struct seal_key k = ring_key(1, true);
    struct swim_id id = node_id(i);
    OK(seal_open(&id, start, nobody, NULL, 1, &s));
    OK(seal_keys(s, &k, 1));
    return s;
}

#define counts_as(verdict, fd, data, n)                                                                      \
    do {                                                                                                     \
        uint64_t before_ = stats_of(0).verdicts[verdict];                                                    \
        size_t n_ = (n);                                                                                     \
        throw_at(fd, 0, data, n_);                                                                           \
        run_until(stats_of(0).verdicts[verdict] == before_ + 1);                                             \
    } while (0)

static uint64_t refusals(void)
{
    uint64_t n = 0;
    for (int v = SEAL_OK + 1; v < SEAL_VERDICTS; v++) {
        n += stats_of(0).verdicts[v];
    }
    return n;
}

/* Node 0 refuses nothing but what is sent behind it. */
static void is_taken(int fd, const uint8_t *data, size_t n)
{
    uint64_t before = refusals();
    throw_at(fd, 0, data, n);
    throw_at(fd, 0, "x", 1);
    run_until(refusals() > before);
    assert_int_equal(refusals(), before + 1);
}

/* ---- leaving ---- */

static void leaving(void **state)
{
    (void)state;
    nodes_meet(4);
    OK(gossip_leave(nodes[1].g, node_left, &nodes[1]));
    assert_false(nodes[1].has_left); /* not from within */
    FAILS(SYM_EBUSY, gossip_leave(nodes[1].g, node_left, &nodes[1]));
    run_until(nodes[1].has_left);
    run_until(nodes[0].told[SWIM_DEPARTED][1] == 1 && nodes[2].told[SWIM_DEPARTED][1] == 1 &&
              nodes[3].told[SWIM_DEPARTED][1] == 1);
    assert_true(sees(2, 1, SWIM_LEFT));
    assert_int_equal(alarms(4, SWIM_DIED), 0);
    node_close(1);
    nodes_close(4);
}

/* Nobody listens any more: it is over all the same. */
static void leaving_the_dead(void **state)
{
    (void)state;
    nodes_meet(2);
    node_close(1);
    OK(gossip_leave(nodes[0].g, node_left, &nodes[0]));
    run_until(nodes[0].has_left);
    nodes_close(1);
    OK(node_try(&loop, 0, "127.0.0.1", "127.0.0.1"));
    OK(gossip_leave(nodes[0].g, NULL, NULL));
    nodes[0].has_left = false;
    gossip_close(nodes[0].g, node_closed, &nodes[0]); /* while it is under way */
    run_until(nodes[0].closed);
    assert_false(nodes[0].has_left); /* nor later */
}

static void removed(void **state)
{
    (void)state;
    nodes_meet(4);
    for (unsigned i = 0; i < 3; i++) {
        gossip_forget(nodes[i].g, &nodes[3].id);
        gossip_forget(nodes[i].g, &nodes[3].id);
    }
    run_until(nodes[0].told[SWIM_FORGOTTEN][3] == 1 && nodes[1].told[SWIM_FORGOTTEN][3] == 1 &&
              nodes[2].told[SWIM_FORGOTTEN][3] == 1);
    uint64_t before = stats_of(0).verdicts[SEAL_STRANGER];
    run_with(stats_of(0).verdicts[SEAL_STRANGER] > before + 3, join(3, 0));
    struct swim_member m;
    for (unsigned i = 0; i < 3; i++) {
        assert_false(swim_get(gossip_swim(nodes[i].g), &nodes[3].id, &m));
        assert_int_equal(stats_of(i).peers, 2);
        assert_int_equal(nodes[i].told[SWIM_JOINED][3], 1); /* from before */
        assert_int_equal(nodes[i].told[SWIM_DIED][3], 0);   /* and it was at once */
    }
    run_until(nodes[3].told[SWIM_DIED][0] == 1); /* nobody answers it */
    node_close(3);
    /* One that comes anew under its id is no replay of it. */
    struct swim_addr addr;
    struct swim_id three = node_id(3);
    uint8_t data[SEAL_MAX];
    struct seal *s = hand(3, 5);
    int fd = plain_socket(&addr);
    OK(gossip_peer(nodes[0].g, &three, nodes[3].spki, SPKI_LEN));
    size_t n = letter(s, data);
    is_taken(fd, data, n);
    counts_as(SEAL_REPLAYED, fd, data, n);
    seal_close(s);
    close(fd);
    nodes_close(3);
}

/* ---- keys ---- */

static uint64_t ago(unsigned i, uint32_t key)
{
    struct gossip_key_use uses[SEAL_KEYS_MAX];
    size_t n = gossip_key_uses(nodes[i].g, uses);
    for (size_t k = 0; k < n; k++) {
        if (uses[k].id == key) {
            return uses[k].ago_ms;
        }
    }
    return UINT64_MAX - 1; /* not in the ring */
}

static void ring(unsigned i, struct seal_key a, struct seal_key b)
{
    struct seal_key keys[2] = {a, b};
    OK(gossip_keys(nodes[i].g, keys, 2));
}

static bool all_heard(unsigned count, uint32_t key)
{
    for (unsigned i = 0; i < count; i++) {
        if (ago(i, key) >= UINT64_MAX - 1) {
            return false;
        }
    }
    return true;
}

/* One node after the other accepts, uses, drops, with the protocol running in between. */
static void rotation(void **state)
{
    (void)state;
    enum { COUNT = 4 };
    nodes_meet(COUNT);
    assert_int_equal(ago(0, 2), UINT64_MAX - 1);
    assert_true(all_heard(COUNT, 1));
    for (unsigned i = 0; i < COUNT; i++) {
        uint64_t probes = stats_of(0).swim.probes;
        ring(i, ring_key(1, true), ring_key(2, false));
        assert_int_equal(ago(i, 2), UINT64_MAX);
        assert_true(ago(i, 1) < UINT64_MAX - 1); /* kept */
        run_until(stats_of(0).swim.probes >= probes + 3);
    }
    for (unsigned i = 0; i < COUNT; i++) {
        uint64_t probes = stats_of(0).swim.probes;
        ring(i, ring_key(1, false), ring_key(2, true));
        run_until(stats_of(0).swim.probes >= probes + 3);
    }
    run_until(all_heard(COUNT, 2));
    assert_int_equal(stats_of(0).keys_of_others, 2);
    for (unsigned i = 0; i < COUNT; i++) {
        struct seal_key last = ring_key(2, true);
        uint64_t probes = stats_of(0).swim.probes;
        OK(gossip_keys(nodes[i].g, &last, 1));
        run_until(stats_of(0).swim.probes >= probes + 3);
    }
    assert_int_equal(stats_of(0).keys_of_others, 1);
    for (unsigned i = 0; i < COUNT; i++) {
        assert_int_equal(stats_of(i).verdicts[SEAL_UNKNOWN_KEY] + stats_of(i).verdicts[SEAL_FORGED], 0);
    }
    assert_int_equal(alarms(COUNT, SWIM_DIED), 0);
    struct seal_key two[2] = {ring_key(3, true), ring_key(4, true)};
    FAILS(SYM_EINVAL, gossip_keys(nodes[0].g, two, 2));
    FAILS(SYM_EINVAL, gossip_keys(nodes[0].g, two, 0));
    assert_true(ago(0, 2) < UINT64_MAX - 1); /* as it was */
    nodes_close(COUNT);
}

/* ---- bad input ---- */

static void bad_input(void **state)
{
    (void)state;
    struct swim_addr addr;
    uint8_t data[2 * SEAL_MAX] = {0}, copy[2 * SEAL_MAX];
    int fd = plain_socket(&addr);
    nodes_meet(2);
    struct swim_id three = node_id(3);
    OK(gossip_peer(nodes[0].g, &three, nodes[3].spki, SPKI_LEN));
    struct seal *s = hand(3, 5), *stranger = hand(6, 5);

    counts_as(SEAL_MALFORMED, fd, data, 0);
    counts_as(SEAL_MALFORMED, fd, data, 1);
    counts_as(SEAL_MALFORMED, fd, data, sizeof data); /* longer than any */
    size_t n = letter(s, data);
    is_taken(fd, data, n);
    counts_as(SEAL_REPLAYED, fd, data, n);
    n = letter(s, data);
    memcpy(copy, data, n);
    counts_as(SEAL_FORGED, fd, copy, n - 1); /* truncated */
    counts_as(SEAL_MALFORMED, fd, copy, SEAL_OVERHEAD);
    copy[n - 1] ^= 1;
    counts_as(SEAL_FORGED, fd, copy, n);
    is_taken(fd, data, n); /* all that did not use it up */
    n = letter(stranger, data);
    counts_as(SEAL_STRANGER, fd, data, n);
    data[2] ^= 1;
    n = letter(s, data);
    data[2] ^= 1; /* the key's id */
    counts_as(SEAL_UNKNOWN_KEY, fd, data, n);

    /* Its own, sent back to it. */
    ssize_t got = -1;
    gossip_join(nodes[0].g, &addr);
    run_until((got = recv(fd, data, sizeof data, 0)) > 0);
    counts_as(SEAL_REFLECTED, fd, data, (size_t)got);

    /* In order by its envelope and not inside. */
    OK(seal_wrap(s, &nodes[0].id, "\xff\xff\xff", 3, data));
    uint64_t malformed = stats_of(0).swim.malformed;
    throw_at(fd, 0, data, 3 + SEAL_OVERHEAD);
    run_until(stats_of(0).swim.malformed == malformed + 1);

    assert_true(all_met(2));
    assert_int_equal(alarms(2, SWIM_DIED) + nodes[0].told[SWIM_JOINED][3], 0);
    seal_close(s);
    seal_close(stranger);
    close(fd);
    nodes_close(2);
}

/* Far more than there is room for, all the time: a turn of the loop takes a bounded number, and those that are nodes
 * keep each other alive. */
static void flood(void **state)
{
    (void)state;
    enum { A_TURN = 100 };
    struct swim_addr addr;
    uint8_t forged[SEAL_MAX], strange[200] = {1}, short_one[3] = {1};
    uint64_t most = 0, thrown = 0;
    int fd = plain_socket(&addr);
    nodes_meet(3);
    struct seal *s = hand(1, 1u << 30); /* a start of node 1 that it never had, ever again */
    size_t n = letter(s, forged);
    forged[n - 1] ^= 1;
    uint64_t probes[3] = {stats_of(0).swim.probes, stats_of(1).swim.probes, stats_of(2).swim.probes};
#define flood_turn                                                                                           \
    do {                                                                                                     \
        for (unsigned i_ = 0; i_ < A_TURN; i_++) {                                                           \
            throw_at(fd, 0, forged, n);                                                                      \
            throw_at(fd, 0, strange, sizeof strange);                                                        \
            throw_at(fd, 0, short_one, sizeof short_one);                                                    \
            forged[22]++; /* the start */                                                                    \
        }                                                                                                    \
        thrown += 3 * A_TURN;                                                                                \
        uint64_t in_ = stats_of(0).in;                                                                       \
        uv_run(&loop, UV_RUN_NOWAIT);                                                                        \
        most = stats_of(0).in - in_ > most ? stats_of(0).in - in_ : most;                                    \
    } while (0)
    run_with(stats_of(0).swim.probes > probes[0] + 30 && stats_of(1).swim.probes > probes[1] + 30 &&
                 stats_of(2).swim.probes > probes[2] + 30 && stats_of(0).verdicts[SEAL_BUSY] > 0,
        flood_turn);
    /* A tick, a look at the socket and what was left of a batch, each no more than its bound. */
    assert_in_range(most, 1, DRAIN_MAX + 2 * TURN_MAX + 3 * BATCH);
    assert_true(thrown > 1000);
    assert_true(stats_of(0).verdicts[SEAL_MALFORMED] > 0 && stats_of(0).verdicts[SEAL_STRANGER] > 0);
    assert_true(stats_of(0).verdicts[SEAL_FORGED] > 0);
    assert_int_equal(alarms(3, SWIM_DIED), 0);
    run_until(all_met(3));
    seal_close(s);
    close(fd);
    nodes_close(3);
}

/* A turn of the loop takes a part of what is there, a tick all of it. */
static void turns(void **state)
{
    (void)state;
    struct swim_addr addr;
    int fd = plain_socket(&addr);
    nodes_open(1);
    for (unsigned i = 0; i < 200; i++) {
        throw_at(fd, 0, "x", 1);
    }
    on_readable(&nodes[0].g->poll, 0, UV_READABLE);
    assert_int_equal(stats_of(0).in, TURN_MAX);
    on_readable(&nodes[0].g->poll, 0, UV_READABLE);
    assert_int_equal(stats_of(0).in, 2 * TURN_MAX);
    on_tick(&nodes[0].g->tick);
    assert_int_equal(stats_of(0).in, 200);
    assert_int_equal(stats_of(0).verdicts[SEAL_MALFORMED], 200);
    close(fd);
    nodes_close(1);
}

/* Signatures take long: a turn with many of them ends in the middle of a batch, and what is left comes without anything
 * new to wake it. */
static void many_signatures(void **state)
{
    (void)state;
    enum { COUNT = HEAVY_MAX + 10 };
    struct swim_addr addr;
    uint8_t data[SEAL_MAX], meta[] = "x", sig[KEY_SIG_MAX] = {0};
    int fd = plain_socket(&addr);
    nodes_open(1);
    struct swim_id three = node_id(3);
    OK(gossip_peer(nodes[0].g, &three, nodes[3].spki, SPKI_LEN));
    struct seal *s = hand(3, 5);
    struct wire_head h = {.type = WIRE_GOSSIP, .seq = 1, .incarnation = 1};
    struct claim_view v = {.id = three,
        .incarnation = 1,
        .addr = addr,
        .meta = meta,
        .meta_len = 1,
        .sig = sig,
        .sig_len = KEY_SIG_MAX};
    struct buf b = {0};
    struct wr w = wr_init(&b);
    wire_put_head(&w, &h);
    wire_put_claim(&w, &v);  /* wrongly signed */
    throw_at(fd, 0, "x", 1); /* or it would be the end of a batch */
    for (unsigned i = 0; i < COUNT; i++) {
        OK(seal_wrap(s, &nodes[0].id, buf_data(&b), b.len, data));
        throw_at(fd, 0, data, b.len + SEAL_OVERHEAD);
    }
    on_readable(&nodes[0].g->poll, 0, UV_READABLE);
    assert_int_equal(stats_of(0).swim.bad_signatures, HEAVY_MAX);
    assert_true(nodes[0].g->next < nodes[0].g->n && uv_is_active((uv_handle_t *)&nodes[0].g->idle));
    int64_t paid = (int64_t)REFUSED_MOST * 1000 - nodes[0].g->refused.left;
    assert_true(paid >= (int64_t)HEAVY_MAX * COST_SIGNED * 1000);
    run_until(stats_of(0).swim.bad_signatures == COUNT);
    buf_free(&b);
    seal_close(s);
    close(fd);
    nodes_close(1);
}

/* More than comes back while a test gets from one line to the next. */
static void overdraw(unsigned i)
{
    nodes[i].g->refused.left = -30 * (int64_t)REFUSED_A_SECOND; /* 30 ms */
}

/* The budget used up: the socket rests, for a few milliseconds, and then all goes on. */
static void pauses(void **state)
{
    (void)state;
    struct swim_addr addr;
    int fd = plain_socket(&addr);
    nodes_meet(2);
    overdraw(0);
    throw_at(fd, 0, "x", 1);
    run_until(nodes[0].g->paused);
    run_until(!nodes[0].g->paused);
    assert_true(stats_of(0).pauses > 0);
    uint64_t ok = stats_of(0).verdicts[SEAL_OK];
    run_until(stats_of(0).verdicts[SEAL_OK] > ok + 5);
    assert_true(all_met(2));
    overdraw(0);
    throw_at(fd, 0, "x", 1);
    run_until(nodes[0].g->paused);
    node_close(0);
    close(fd);
    nodes_close(2);
}

static void budgets(void **state)
{
    (void)state;
    struct budget b = budget_init(1000, 10, 500);
    assert_true(budget_has(&b, 500));
    budget_take(&b, 9);
    assert_true(budget_has(&b, 500));
    budget_take(&b, 1);
    assert_false(budget_has(&b, 500));
    assert_true(budget_has(&b, 501));
    budget_take(&b, 100);
    assert_false(budget_has(&b, 599));
    assert_true(budget_has(&b, 601));
    assert_true(budget_has(&b, UINT64_MAX)); /* full, and no more */
    budget_take(&b, 10);
    assert_false(budget_has(&b, UINT64_MAX));
}

/* libuv takes an error of the socket for its end. */
static void socket_errors(void **state)
{
    (void)state;
    nodes_meet(2);
    uv_poll_stop(&nodes[0].g->poll);
    on_readable(&nodes[0].g->poll, UV_EBADF, 0);
    uint64_t ok = stats_of(0).verdicts[SEAL_OK];
    run_until(stats_of(0).verdicts[SEAL_OK] > ok + 5);
    nodes_close(2);
}

/* More events than are kept: that some are missing is said once, after the others. */
static void too_many_events(void **state)
{
    (void)state;
    nodes_open(1);
    struct gossip *g = nodes[0].g;
    struct swim_member m;
    gossip_self(g, &m);
    for (unsigned i = 0; i < NOTES_MAX + 5; i++) {
        on_event(g, SWIM_UPDATED, &m);
    }
    assert_int_equal(nodes[0].told[SWIM_UPDATED][0], 0);
    assert_int_equal(stats_of(0).events_lost, 5);
    uv_run(&loop, UV_RUN_NOWAIT);
    assert_in_range(nodes[0].told[SWIM_UPDATED][0], 1, 2 * NOTES_TURN);
    assert_int_equal(nodes[0].lost, 0);
    run_until(nodes[0].lost == 1);
    assert_int_equal(nodes[0].told[SWIM_UPDATED][0], NOTES_MAX);
    nodes_close(1);
}

static void close_in_event(struct node *n, enum swim_event what)
{
    (void)what;
    n->also = NULL;
    gossip_close(n->g, node_closed, n);
    n->g = NULL;
}

/* From within what it tells, with more to tell. */
static void closed_in_callback(void **state)
{
    (void)state;
    nodes_open(4);
    exchange(1, 2);
    exchange(3, 2);
    nodes[0].also = close_in_event;
    exchange(2, 0);
    run_until(nodes[0].closed);
    assert_int_equal(
        nodes[0].told[SWIM_JOINED][1] + nodes[0].told[SWIM_JOINED][2] + nodes[0].told[SWIM_JOINED][3], 1);
    nodes_close(4);
}

/* ---- the socket ---- */

static void ports(void **state)
{
    (void)state;
    struct swim_addr addr;
    char text[GOSSIP_ADDR_TEXT];
    int fd = plain_socket(&addr);
    struct seal_key k = ring_key(1, true);
    struct gossip *g;
    struct gossip_config c = {.swim = {.id = node_id(0), .addr = addr},
        .bind_addr = "127.0.0.1",
        .port = addr.port,
        .start = 1,
        .key = nodes[0].key,
        .keys = &k,
        .n_keys = 1};
    FAILS(SYM_EINUSE, gossip_open(&loop, &c, &node_ops, &nodes[0], &g));
    snprintf(text, sizeof text, "%u", addr.port);
    assert_non_null(strstr(err_msg(), text));
    close(fd);
    OK(gossip_open(&loop, &c, &node_ops, &nodes[0], &g));
    assert_int_equal(gossip_port(g), addr.port);
    struct gossip *again;
    FAILS(SYM_EINUSE, gossip_open(&loop, &c, &node_ops, &nodes[0], &again));
    gossip_close(g, NULL, NULL);
    OK(gossip_open(&loop, &c, &node_ops, &nodes[0], &g)); /* free at once */
    gossip_close(g, NULL, NULL);
    c.bind_addr = "localhost";
    FAILS(SYM_EINVAL, gossip_open(&loop, &c, &node_ops, &nodes[0], &g));
    c.bind_addr = "192.0.2.1"; /* nobody's */
    assert_int_not_equal(gossip_open(&loop, &c, &node_ops, &nodes[0], &g), 0);
    assert_non_null(strstr(err_msg(), "192.0.2.1"));
    c.bind_addr = "127.0.0.1";
    c.n_keys = 0;
    FAILS(SYM_EINVAL, gossip_open(&loop, &c, &node_ops, &nodes[0], &g));
    c.n_keys = 1;
    c.swim.period_ms = 1;
    FAILS(SYM_EINVAL, gossip_open(&loop, &c, &node_ops, &nodes[0], &g));
    uv_run(&loop, UV_RUN_DEFAULT);
}

static bool has_ipv6(void)
{
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = socket(AF_INET6, SOCK_DGRAM, 0);
    bool ok = fd >= 0 && bind(fd, (struct sockaddr *)&in6, sizeof in6) == 0;
    if (fd >= 0) {
        close(fd);
    }
    return ok;
}

static void ipv6(void **state)
{
    (void)state;
    if (!has_ipv6()) {
        print_message("no IPv6 here: left out\n");
        skip();
    }
    OK(node_try(&loop, 0, "::1", "::1"));
    OK(node_try(&loop, 1, "::", "::1"));
    OK(node_try(&loop, 2, "127.0.0.1", "127.0.0.1"));
    for (unsigned i = 0; i < 3; i++) {
        for (unsigned of = 0; of < 3; of++) {
            if (i != of) {
                node_knows(i, of);
            }
        }
    }
    join(1, 0);
    join(1, 2);
    run_until(sees(0, 1, SWIM_ALIVE) && sees(1, 0, SWIM_ALIVE) && sees(1, 2, SWIM_ALIVE));
    /* An IPv4 socket cannot send to the others' addresses: harmless, and counted. */
    run_until(stats_of(2).out_failed > 0);
    nodes_close(3);
}

static void addresses(void **state)
{
    (void)state;
    static const struct {
        const char *text, *back;
    } good[] = {
        {"192.0.2.7:80", "192.0.2.7:80"},
        {"192.0.2.7", "192.0.2.7:9"},
        {"[2001:db8::1]:80", "[2001:db8::1]:80"},
        {"2001:db8::1", "[2001:db8::1]:9"},
        {"[::ffff:192.0.2.7]:80", "192.0.2.7:80"},
    };
    static const char *const bad[] = {"", "localhost:80", "192.0.2:80", "192.0.2.7:0", "192.0.2.7:65536",
        "[::1", "[fe80::1%lo]:80", "[::1]x"};
    struct swim_addr a, b;
    struct sockaddr_storage sa;
    socklen_t len;
    char text[GOSSIP_ADDR_TEXT];
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        OK(gossip_addr_parse(good[i].text, 9, &a));
        gossip_addr_text(&a, text);
        assert_string_equal(text, good[i].back);
        assert_int_equal(gossip_addr_to_system(&a, AF_INET, &sa, &len), a.family == 4);
        assert_true(gossip_addr_to_system(&a, AF_INET6, &sa, &len));
        assert_true(gossip_addr_from_system(&sa, &b));
        assert_true(swim_addr_eq(&a, &b));
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        FAILS(SYM_EINVAL, gossip_addr_parse(bad[i], 9, &a));
    }
    sa.ss_family = AF_UNIX;
    assert_false(gossip_addr_from_system(&sa, &a));
}

static void peers(void **state)
{
    (void)state;
    nodes_open(1);
    uint8_t long_key[SPKI_LEN + 1] = {0};
    FAILS(SYM_EINVAL, gossip_peer(nodes[0].g, &nodes[1].id, long_key, SPKI_LEN));
    FAILS(SYM_EINVAL, gossip_peer(nodes[0].g, &nodes[1].id, nodes[1].spki, SPKI_LEN - 1));
    OK(gossip_peer(nodes[0].g, &nodes[0].id, nodes[0].spki, SPKI_LEN));
    assert_int_equal(stats_of(0).peers, 0);
    struct swim_id one = node_id(1);
    OK(gossip_peer(nodes[0].g, &one, nodes[1].spki, SPKI_LEN));
    OK(gossip_peer(nodes[0].g, &one, nodes[2].spki, SPKI_LEN));
    assert_int_equal(stats_of(0).peers, 1);
    gossip_forget(nodes[0].g, &one);
    gossip_forget(nodes[0].g, &one);
    assert_int_equal(stats_of(0).peers, 0);
    nodes_close(1);
}

static int begin_all(void **state)
{
    (void)state;
    nodes_begin();
    return 0;
}

static int end_all(void **state)
{
    (void)state;
    nodes_end();
    return 0;
}

#define TEST(name) cmocka_unit_test_teardown(name, nodes_close_left)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(addresses),
        TEST(budgets),
        TEST(by_join),
        TEST(by_exchange),
        TEST(not_believed),
        TEST(updated),
        TEST(moved),
        TEST(death),
        TEST(reliable_channel),
        TEST(refuted),
        TEST(stalled),
        TEST(leaving),
        TEST(leaving_the_dead),
        TEST(removed),
        TEST(rotation),
        TEST(bad_input),
        TEST(flood),
        TEST(turns),
        TEST(many_signatures),
        TEST(pauses),
        TEST(socket_errors),
        TEST(too_many_events),
        TEST(closed_in_callback),
        TEST(ports),
        TEST(ipv6),
        TEST(peers),
    };
    return cmocka_run_group_tests(tests, begin_all, end_all);
}
