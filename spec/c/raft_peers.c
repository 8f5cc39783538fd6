/* The managers' transport: several of them in one loop, with real certificates, and rogues that speak to
 * them. */
#include "crypto_support.h"

#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "base_fault.h"
#include "raft/frame.c"
#include "raft/peers.c"
#include "raft/peers_conn.c"

enum { IDS = 4, KEPT = 64, PATIENCE_MS = 30000 };

static struct identity ca, stranger_ca;
static struct identity identities[IDS]; /* [id] */
static uv_loop_t loop;
static unsigned live; /* members that are not closed yet */

/* ---- members ---- */

struct frame {
    uint64_t from;
    uint8_t kind;
    uint8_t *data;
    size_t n;
};

struct node {
    struct peers *peers;
    uint64_t id;
    char address[32];
    unsigned ups[IDS], downs[IDS];
    unsigned n_frames;
    struct frame frames[KEPT]; /* the first ones; more are only counted */
    int refused;
    unsigned n_refused;
    char reason[256];
    int verdict[IDS]; /* what authorize says of an id whose certificate is right */
    bool closed;
    struct node *close_in_frame; /* closes this one from on_frame */
};

static int authorize(void *arg, uint64_t id, const struct tls_peer *peer)
{
    struct node *n = arg;
    char cn[32];
    snprintf(cn, sizeof cn, "node-%d", (int)id);
    if (peer == NULL || !peer->present || id >= IDS || strcmp(peer->cert.cn, cn) != 0) {
        return err_setf(SYM_EDENIED, "%s is not %s", peer != NULL ? peer->cert.cn : "nobody", cn);
    }
    return n->verdict[id];
}

static void on_peers_closed(void *arg)
{
    struct node *n = arg;
    n->closed = true;
    n->peers = NULL;
    live--;
}

static void on_node_frame(void *arg, uint64_t id, uint8_t kind, uint8_t *data, size_t size)
{
    struct node *n = arg;
    assert_non_null(data);
    if (n->n_frames < KEPT) {
        n->frames[n->n_frames] = (struct frame){id, kind, data, size};
    } else {
        (free)(data);
    }
    n->n_frames++;
    if (n->close_in_frame != NULL) {
        struct node *victim = n->close_in_frame;
        n->close_in_frame = NULL;
        peers_close(victim->peers, on_peers_closed, victim);
    }
}

static void on_up(void *arg, uint64_t id)
{
    struct node *n = arg;
    assert_int_equal(n->ups[id], n->downs[id]);
    assert_true(peers_is_up(n->peers, id));
    n->ups[id]++;
}

static void on_down(void *arg, uint64_t id)
{
    struct node *n = arg;
    assert_false(peers_is_up(n->peers, id));
    n->downs[id]++;
    assert_int_equal(n->ups[id], n->downs[id]);
}

static void on_refused(void *arg, uint64_t id, int code, const char *reason)
{
    struct node *n = arg;
    (void)id;
    n->refused = code;
    n->n_refused++;
    snprintf(n->reason, sizeof n->reason, "%s", reason);
}

static void clear_frames(struct node *n)
{
    for (unsigned i = 0; i < n->n_frames && i < KEPT; i++) {
        (free)(n->frames[i].data);
    }
    n->n_frames = 0;
}

static struct peers_config config_of(struct node *n, uint64_t id, uint64_t starts)
{
    return (struct peers_config){
        .loop = &loop,
        .self = id,
        .cluster_id = "cluster",
        .bind_addr = "127.0.0.1",
        .address = "10.9.8.7:15760",
        .starts = starts,
        .arg = n,
        .authorize = authorize,
        .on_frame = on_node_frame,
        .on_up = on_up,
        .on_down = on_down,
        .on_refused = on_refused,
    };
}

static void start_as(struct node *n, const struct peers_config *cfg, const struct identity *who)
{
    n->id = cfg->self;
    n->closed = false;
    OK(peers_new(cfg, who->pem, who->key, ca.pem, &n->peers));
    live++;
    snprintf(n->address, sizeof n->address, "127.0.0.1:%u", peers_port(n->peers));
}

static void start(struct node *n, uint64_t id, uint64_t starts);
static void stop(struct node *n);

/* Gives it a port of its own, and has it say so to others. */
static void at_a_port(struct peers_config *cfg, char address[32])
{
    struct node there;
    start(&there, 3, 1);
    cfg->port = peers_port(there.peers);
    snprintf(address, 32, "%s", there.address);
    cfg->address = address;
    stop(&there);
}

static void start(struct node *n, uint64_t id, uint64_t starts)
{
    *n = (struct node){0};
    struct peers_config cfg = config_of(n, id, starts);
    start_as(n, &cfg, &identities[id]);
}

/* ---- waiting ---- */

static uv_timer_t patience;
static bool too_late;

static void on_too_late(uv_timer_t *timer)
{
    (void)timer;
    too_late = true;
}

#define UNTIL(condition)                                                                                     \
    do {                                                                                                     \
        too_late = false;                                                                                    \
        uv_timer_start(&patience, on_too_late, PATIENCE_MS, 0);                                              \
        while (!(condition) && !too_late) {                                                                  \
            uv_run(&loop, UV_RUN_ONCE);                                                                      \
        }                                                                                                    \
        uv_timer_stop(&patience);                                                                            \
        if (too_late) {                                                                                      \
            fail_msg("line %d: never came true: %s", __LINE__, #condition);                                  \
        }                                                                                                    \
    } while (0)

static void stop(struct node *n)
{
    if (n->peers != NULL) {
        peers_close(n->peers, on_peers_closed, n);
        UNTIL(n->closed);
    }
    clear_frames(n);
}

static bool both_up(struct node *a, struct node *b)
{
    return peers_is_up(a->peers, b->id) && peers_is_up(b->peers, a->id);
}

static void meet(struct node *a, struct node *b)
{
    OK(peers_set(a->peers, b->id, b->address));
    OK(peers_set(b->peers, a->id, a->address));
    UNTIL(both_up(a, b));
}

/* ---- sending ---- */

struct sends {
    unsigned asked, done, ok, busy, canceled, unconnected, no_memory;
    bool inside;
};

static void on_sent(void *arg, int status)
{
    struct sends *s = arg;
    assert_false(s->inside);
    s->done++;
    s->ok += status == 0;
    s->busy += status == SYM_EBUSY;
    s->canceled += status == SYM_ECANCELED;
    s->unconnected += status == SYM_ECONNECT;
    s->no_memory += status == SYM_ENOMEM;
}

static void send_to(struct node *from, uint64_t to, uint8_t kind, bool urgent, const void *data, size_t n,
    struct sends *sends)
{
    uv_buf_t bufs[2] = {uv_buf_init((char *)data, (unsigned)(n / 3)),
        uv_buf_init((char *)data + n / 3, (unsigned)(n - n / 3))};
    if (sends != NULL) {
        sends->asked++;
        sends->inside = true;
    }
    peers_send(from->peers, to, kind, urgent, bufs, 2, sends != NULL ? on_sent : NULL, sends);
    if (sends != NULL) {
        sends->inside = false;
    }
}

static uint8_t *pattern(size_t n, unsigned seed)
{
    uint8_t *data = (malloc)(n > 0 ? n : 1);
    assert_non_null(data);
    for (size_t i = 0; i < n; i++) {
        data[i] = (uint8_t)((i * 31 + seed) ^ (i >> 8));
    }
    return data;
}

static void expect(
    const struct node *n, unsigned i, uint64_t from, uint8_t kind, const void *data, size_t size)
{
    assert_true(i < n->n_frames);
    assert_int_equal(n->frames[i].from, from);
    assert_int_equal(n->frames[i].kind, kind);
    assert_int_equal(n->frames[i].n, size);
    assert_memory_equal(n->frames[i].data, data, size);
}

/* ---- the tests ---- */

static void exchange(void **state)
{
    (void)state;
    const size_t sizes[] = {0, 1, 2, 100, 65535, 65536, 65537, 1 << 20, PEER_BULK};
    enum { SIZES = sizeof sizes / sizeof sizes[0] };
    struct node a, b;
    struct sends sends = {0};
    uint8_t *data = pattern(PEER_BULK, 1);

    start(&a, 1, 1);
    start(&b, 2, 7);
    assert_int_equal(peers_set(a.peers, 1, b.address), SYM_EINVAL);
    assert_int_equal(peers_set(a.peers, 0, b.address), SYM_EINVAL);
    assert_int_equal(peers_set(a.peers, 2, ":no address:"), SYM_EINVAL);
    assert_false(peers_is_up(a.peers, 2));
    assert_int_equal(peers_last_heard(b.peers, 1), 0);
    assert_null(peers_heard_address(b.peers, 1));
    meet(&a, &b);
    assert_int_equal(a.ups[2], 1);
    assert_int_equal(b.ups[1], 1);
    OK(peers_set(a.peers, 2, b.address)); /* the same: nothing happens */
    assert_true(peers_is_up(a.peers, 2));
    for (unsigned i = 0; i < SIZES; i++) {
        send_to(&a, 2, (uint8_t)(i + 1), false, data, sizes[i], &sends);
        send_to(&b, 1, (uint8_t)(i + 100), false, data, sizes[i], &sends);
    }
    assert_int_equal(sends.done, 0);
    UNTIL(sends.done == sends.asked && a.n_frames == SIZES && b.n_frames == SIZES);
    assert_int_equal(sends.ok, sends.asked);
    for (unsigned i = 0; i < SIZES; i++) {
        expect(&b, i, 1, (uint8_t)(i + 1), data, sizes[i]);
        expect(&a, i, 2, (uint8_t)(i + 100), data, sizes[i]);
    }
    assert_true(peers_last_heard(b.peers, 1) > 0);
    assert_string_equal(peers_heard_address(b.peers, 1), "10.9.8.7:15760");
    assert_int_equal(a.downs[2] + b.downs[1], 0);
    stop(&a);
    UNTIL(b.downs[1] == 1);
    stop(&b);
    (free)(data);
}

static void three(void **state)
{
    (void)state;
    struct node nodes[IDS];
    struct sends sends = {0};

    for (uint64_t i = 1; i < IDS; i++) {
        start(&nodes[i], i, 1);
    }
    meet(&nodes[1], &nodes[2]);
    meet(&nodes[2], &nodes[3]);
    meet(&nodes[3], &nodes[1]);
    for (unsigned k = 0; k < 20; k++) {
        for (unsigned i = 1; i < IDS; i++) {
            for (unsigned j = 1; j < IDS; j++) {
                if (i != j) {
                    send_to(&nodes[i], j, (uint8_t)k, k % 2 == 0, "hello", 5, &sends);
                }
            }
        }
    }
    UNTIL(sends.done == sends.asked && nodes[1].n_frames == 40 && nodes[2].n_frames == 40 &&
          nodes[3].n_frames == 40);
    assert_int_equal(sends.ok, sends.asked);
    stop(&nodes[2]);
    UNTIL(nodes[1].downs[2] == 1 && nodes[3].downs[2] == 1);
    assert_true(both_up(&nodes[1], &nodes[3]));
    assert_int_equal(nodes[1].downs[3], 0);
    stop(&nodes[1]);
    stop(&nodes[3]);
}

static void without_connection(void **state)
{
    (void)state;
    struct node a;
    struct sends sends = {0};

    start(&a, 1, 1);
    send_to(&a, 2, 1, false, "x", 1, &sends);
    OK(peers_set(a.peers, 2, "127.0.0.1:1")); /* nobody listens there */
    send_to(&a, 2, 1, true, "x", 1, &sends);
    send_to(&a, 2, 1, true, "x", 1, NULL);
    assert_int_equal(sends.done, 0);
    UNTIL(sends.done == 2);
    assert_int_equal(sends.unconnected, 2);
    struct peer *peer = peer_find(a.peers, 2);
    UNTIL(peer->backoff >= 400); /* it goes on trying, less often */
    send_to(&a, 2, 1, false, "x", 1, &sends);
    stop(&a);
    assert_int_equal(sends.done, 3);
    assert_int_equal(a.ups[2] + a.downs[2], 0);
}

/* A new member that knows nobody hears the leader, and learns from it where it is. */
static void from_unknown(void **state)
{
    (void)state;
    struct node a, b;
    struct sends sends = {0};

    *(&a) = (struct node){0};
    struct peers_config cfg = config_of(&a, 1, 1);
    char address[32];
    start(&b, 2, 1);
    /* Its own port is taken from a first incarnation, so that what it advertises is true. */
    start_as(&a, &cfg, &identities[1]);
    snprintf(address, sizeof address, "%s", a.address);
    cfg.port = peers_port(a.peers);
    stop(&a);
    a = (struct node){0};
    cfg.address = address;
    start_as(&a, &cfg, &identities[1]);

    OK(peers_set(a.peers, 2, b.address));
    UNTIL(peers_is_up(a.peers, 2));
    send_to(&a, 2, 5, false, "who", 3, &sends);
    UNTIL(b.n_frames == 1);
    expect(&b, 0, 1, 5, "who", 3);
    assert_false(peers_is_up(b.peers, 1));
    assert_string_equal(peers_heard_address(b.peers, 1), address);
    OK(peers_set(b.peers, 1, peers_heard_address(b.peers, 1)));
    UNTIL(peers_is_up(b.peers, 1));
    send_to(&b, 1, 6, false, "me", 2, &sends);
    UNTIL(a.n_frames == 1);
    stop(&a);
    stop(&b);
    assert_int_equal(sends.ok, 2);
}

static void urgent_overtakes(void **state)
{
    (void)state;
    enum { BIG = 20 << 20 };
    struct node a, b;
    struct sends bulk = {0}, small = {0};
    uint8_t *data = pattern(BIG, 3);

    start(&a, 1, 1);
    start(&b, 2, 1);
    meet(&a, &b);
    send_to(&a, 2, 1, true, data, BIG, &bulk); /* urgent or not: it is too large for that */
    const struct peer *to = peer_find(a.peers, 2);
    UNTIL(to->queue.count[FRAME_BULKY] > 0 && TAILQ_FIRST(&to->queue.of[FRAME_BULKY])->done > 0);
    /* The other side stops reading until nothing more goes out. */
    struct stream *in = peer_find(b.peers, 1)->in->stream;
    stream_pause(in);
    UNTIL(stream_congested(to->out->stream));
    assert_int_equal(bulk.done, 0);
    send_to(&a, 2, 2, false, data, PEER_BULK, &small);
    send_to(&a, 2, 3, true, "vote", 4, &small);
    stream_resume(in);
    UNTIL(b.n_frames == 3);
    expect(&b, 0, 1, 3, "vote", 4);
    expect(&b, 1, 1, 2, data, PEER_BULK);
    expect(&b, 2, 1, 1, data, BIG);
    UNTIL(bulk.ok == 1 && small.ok == 2);
    stop(&a);
    stop(&b);
    (free)(data);
}

static void full_queues(void **state)
{
    (void)state;
    struct node a, b;
    struct sends sends = {0}, bulk = {0};
    uint8_t *data = pattern(PEER_BULK + 1, 9);

    start(&a, 1, 1);
    start(&b, 2, 1);
    meet(&a, &b);
    for (int i = 0; i < FRAME_QUEUE_COUNT + 10; i++) {
        send_to(&a, 2, 1, false, "x", 1, &sends);
    }
    send_to(&a, 2, 2, true, "y", 1, &sends); /* the urgent have their own room */
    send_to(&a, 2, 3, false, data, PEER_BULK + 1, &bulk);
    send_to(&a, 2, 3, false, data, PEER_BULK + 1, &bulk);
    send_to(&a, 2, 1, false, data, 10, NULL); /* silently */
    UNTIL(sends.done == sends.asked && bulk.done == 2 && b.n_frames == FRAME_QUEUE_COUNT + 2);
    assert_int_equal(sends.busy, 10);
    assert_int_equal(bulk.busy, 1);
    assert_int_equal(b.frames[0].kind, 2);
    for (int i = 0; i < 5; i++) {
        send_to(&a, 2, 1, false, data, PEER_BULK, &sends);
    }
    UNTIL(sends.done == sends.asked);
    assert_int_equal(sends.busy, 11);

    /* Larger than any frame: refused before it is looked at. */
    uv_buf_t huge = uv_buf_init((char *)data, (unsigned)PEER_FRAME_MAX + 1);
    peers_send(a.peers, 2, 1, false, &huge, 1, on_sent, &sends);
    unsigned done = sends.done;
    UNTIL(sends.done == done + 1);
    stop(&a);
    stop(&b);
    (free)(data);
}

static void copies(void **state)
{
    (void)state;
    struct node a, b;
    char text[] = "copied";

    start(&a, 1, 1);
    start(&b, 2, 1);
    meet(&a, &b);
    send_to(&a, 2, 1, true, text, 6, NULL);
    memset(text, 0, sizeof text);
    UNTIL(b.n_frames == 1);
    expect(&b, 0, 1, 1, "copied", 6);
    stop(&a);
    stop(&b);
}

/* Everything may be closed, or forgotten, at any moment. */
static void end_at_every_step(void **state)
{
    (void)state;
    enum { BIG = PEER_BULK + 1 };
    uint8_t *data = pattern(BIG, 2);

    for (unsigned steps = 0; steps < 50; steps++) {
        struct node a, b;
        struct sends sends = {0};
        bool forget = steps % 2 == 1;
        start(&a, 1, 1);
        start(&b, 2, 1);
        OK(peers_set(a.peers, 2, b.address));
        OK(peers_set(b.peers, 1, a.address));
        bool sent = false;
        for (unsigned i = 0; i < steps / 2; i++) {
            uv_run(&loop, UV_RUN_ONCE);
            if (!sent && peers_is_up(a.peers, 2)) {
                sent = true;
                send_to(&a, 2, 1, false, data, BIG, &sends);
                send_to(&a, 2, 1, false, data, 1000, &sends);
                send_to(&a, 2, 1, true, data, 1000, &sends);
            }
        }
        send_to(&a, 2, 1, false, data, 10, &sends);
        if (forget) {
            unsigned downs = a.downs[2];
            peers_forget(a.peers, 2);
            assert_false(peers_is_up(a.peers, 2));
            send_to(&a, 2, 1, false, data, 10, &sends);
            UNTIL(sends.done == sends.asked);
            assert_int_equal(a.downs[2], downs);
            a.ups[2] = a.downs[2] = 0;
            OK(peers_set(a.peers, 2, b.address));
            UNTIL(both_up(&a, &b));
        }
        stop(&a);
        assert_int_equal(sends.done, sends.asked);
        assert_int_equal(sends.done, sends.ok + sends.canceled + sends.unconnected);
        stop(&b);
    }
    (free)(data);
}

static void close_from_a_callback(void **state)
{
    (void)state;
    for (int own = 0; own < 2; own++) {
        struct node a, b;
        struct sends sends = {0};
        start(&a, 1, 1);
        start(&b, 2, 1);
        meet(&a, &b);
        b.close_in_frame = own ? &b : &a;
        for (int i = 0; i < 10; i++) {
            send_to(&a, 2, 1, false, "x", 1, &sends);
        }
        UNTIL(own ? b.closed : a.closed);
        stop(&a);
        stop(&b);
        assert_int_equal(sends.done, 10);
    }
}

static struct sends resent;
static unsigned resend_left;

static void send_again(void *arg, int status)
{
    struct node *n = arg;
    on_sent(&resent, status);
    if (resend_left > 0) {
        uv_buf_t buf = uv_buf_init("x", 1);
        resend_left--;
        resent.asked++;
        peers_send(n->peers, 2, 1, false, &buf, 1, send_again, n);
    }
}

/* A sender that tries again at once must not keep the loop to itself, nor be forgotten at the end. */
static void send_from_completion(void **state)
{
    (void)state;
    struct node a;
    uv_buf_t buf = uv_buf_init("x", 1);
    start(&a, 1, 1);
    resent = (struct sends){.asked = 1};
    resend_left = 1000;
    peers_send(a.peers, 2, 1, false, &buf, 1, send_again, &a);
    uv_run(&loop, UV_RUN_NOWAIT);
    assert_true(resent.done < 10);
    UNTIL(resent.done == 1001);
    resent = (struct sends){.asked = 1};
    resend_left = 3;
    peers_send(a.peers, 2, 1, false, &buf, 1, send_again, &a);
    stop(&a);
    assert_int_equal(resent.done, 4);
}

static struct sends relentless;

static void on_prepare(uv_prepare_t *prepare)
{
    struct node *n = prepare->data;
    if (n->peers != NULL) {
        send_to(n, 2, 1, true, "x", 1, &relentless);
    }
}

/* To the last moment every completion is told. */
static void send_while_closing(void **state)
{
    (void)state;
    struct node a;
    uv_prepare_t prepare;
    start(&a, 1, 1);
    relentless = (struct sends){0};
    uv_prepare_init(&loop, &prepare);
    prepare.data = &a;
    uv_prepare_start(&prepare, on_prepare);
    UNTIL(relentless.done > 3);
    stop(&a);
    assert_int_equal(relentless.done, relentless.asked);
    assert_int_equal(relentless.done, relentless.canceled + relentless.unconnected);
    assert_true(relentless.canceled > 0);
    uv_close((uv_handle_t *)&prepare, NULL);
    uv_run(&loop, UV_RUN_NOWAIT);
}

static void restart(void **state)
{
    (void)state;
    struct node a, b;

    start(&a, 1, 1);
    start(&b, 2, 1);
    struct peers_config cfg = config_of(&b, 2, 1);
    cfg.port = peers_port(b.peers);
    meet(&a, &b);
    for (unsigned i = 1; i < 4; i++) {
        stop(&b);
        UNTIL(a.downs[2] == i);
        b = (struct node){0};
        cfg.starts = 1 + i;
        start_as(&b, &cfg, &identities[2]);
        OK(peers_set(b.peers, 1, a.address));
        UNTIL(both_up(&a, &b));
        assert_int_equal(a.ups[2], 1 + i);
    }
    stop(&a);
    stop(&b);
}

/* The other process is killed: no close, no goodbye. Both ways of noticing are prompt. */
static void killed(void **state)
{
    (void)state;
    for (int round = 0; round < 2; round++) {
        struct node a;
        int pipefd[2];
        char address[32];
        start(&a, 1, 1);
        assert_int_equal(pipe(pipefd), 0);
        snprintf(address, sizeof address, "%s", a.address);
        pid_t child = fork();
        if (child == 0) {
            /* A loop of its own: the parent's descriptors and handles are not touched. */
            struct node b = {0};
            close(pipefd[0]);
            memset(&loop, 0, sizeof loop);
            uv_loop_init(&loop);
            struct peers_config cfg = config_of(&b, 2, 1);
            b.id = 2;
            if (peers_new(&cfg, identities[2].pem, identities[2].key, ca.pem, &b.peers) != 0) {
                _exit(1);
            }
            uint16_t port = peers_port(b.peers);
            if (write(pipefd[1], &port, sizeof port) != sizeof port || peers_set(b.peers, 1, address) != 0) {
                _exit(1);
            }
            uv_run(&loop, UV_RUN_DEFAULT);
            _exit(0);
        }
        uint16_t port = 0;
        close(pipefd[1]);
        assert_int_equal(read(pipefd[0], &port, sizeof port), sizeof port);
        close(pipefd[0]);
        char child_address[32];
        snprintf(child_address, sizeof child_address, "127.0.0.1:%u", port);
        OK(peers_set(a.peers, 2, child_address));
        struct peer *peer = NULL;
        UNTIL(peers_is_up(a.peers, 2) && (peer = peer_find(a.peers, 2)) != NULL && peer->in != NULL);
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, NULL, 0), child);
        /* All it takes is the ends of the connections, which are there by now: no timer. */
        for (int i = 0; i < 20 && a.downs[2] == 0; i++) {
            uv_run(&loop, UV_RUN_NOWAIT);
        }
        assert_int_equal(a.downs[2], 1);
        stop(&a);
    }
}

static void refusals(void **state)
{
    (void)state;
    const struct {
        int verdict, code;
        const char *cluster;
        uint64_t starts, nonce;
        const char *reason;
    } cases[] = {
        {SYM_ENOTFOUND, SYM_ENOTFOUND, "cluster", 5, 0, "removed"},
        {SYM_EDENIED, SYM_EDENIED, "cluster", 5, 0, "certificate"},
        {0, SYM_EDENIED, "other", 5, 0, "cluster"},
        {0, SYM_ECONFLICT, "cluster", 4, 0, "older copy"},
        {0, SYM_ECONFLICT, "cluster", 5, 99, "older copy"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct node a, b;
        start(&b, 2, 1);
        /* It has once started for the fifth time. */
        start(&a, 1, 5);
        OK(peers_set(a.peers, 2, b.address));
        UNTIL(peers_is_up(a.peers, 2));
        stop(&a);

        a = (struct node){0};
        struct peers_config cfg = config_of(&a, 1, cases[i].starts);
        cfg.cluster_id = cases[i].cluster;
        cfg.nonce = cases[i].nonce;
        b.verdict[1] = cases[i].verdict;
        start_as(&a, &cfg, &identities[1]);
        OK(peers_set(a.peers, 2, b.address));
        UNTIL(a.n_refused > 0);
        assert_int_equal(a.refused, cases[i].code);
        assert_non_null(strstr(a.reason, cases[i].reason));
        assert_false(peers_is_up(a.peers, 2));
        assert_int_equal(a.ups[2] + b.n_frames, 0);
        const struct peer *peer = peer_find(a.peers, 2);
        bool slow = cases[i].code == SYM_ENOTFOUND || cases[i].code == SYM_ECONFLICT;
        assert_int_equal(peer_is_slow(peer), slow);
        assert_true((peer->retry_at - uv_now(&loop) > 2000) == slow);
        /* Accepted after all, when the reason is gone. */
        if (cases[i].verdict != 0) {
            b.verdict[1] = 0;
            OK(peers_set(a.peers, 2, "127.0.0.1:1"));
            OK(peers_set(a.peers, 2, b.address));
            UNTIL(peers_is_up(a.peers, 2));
        }
        stop(&a);
        stop(&b);
    }
}

/* Let in on its certificate alone, and told as soon as the state knows better. Members are in the configuration. */
static void removed_while_connected(void **state)
{
    (void)state;
    struct node a, b, c;
    start(&a, 1, 1);
    start(&b, 2, 1);
    start(&c, 3, 1);
    OK(peers_set(a.peers, 2, b.address));
    OK(peers_set(b.peers, 3, c.address));
    OK(peers_set(c.peers, 2, b.address));
    UNTIL(peers_is_up(a.peers, 2) && peers_is_up(c.peers, 2));
    b.verdict[1] = SYM_ENOTFOUND;
    UNTIL(a.n_refused > 0);
    assert_int_equal(a.refused, SYM_ENOTFOUND);
    assert_int_equal(c.n_refused + c.downs[2], 0);
    stop(&a);
    stop(&b);
    stop(&c);
}

/* What is remembered of the others outlasts a restart of all. */
static void starts_are_kept(void **state)
{
    (void)state;
    char dir[] = "/tmp/symphony-peers-XXXXXX", path[64], tmp[80];
    struct node a, b = {0};
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/starts", dir);
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    struct peers_config cfg = config_of(&b, 2, 1);
    cfg.starts_file = path;
    /* It learns it from the hello of one that connects, and from the welcome of one that it connects to. */
    for (unsigned way = 0; way < 2; way++) {
        uint64_t started = 5 + 10 * way;
        start(&a, 1, started);
        start_as(&b, &cfg, &identities[2]);
        if (way == 0) {
            OK(peers_set(a.peers, 2, b.address));
            UNTIL(peers_is_up(a.peers, 2));
        } else {
            OK(peers_set(b.peers, 1, a.address));
            UNTIL(peers_is_up(b.peers, 1));
        }
        stop(&a);
        stop(&b);
        b = (struct node){0};
        cfg.starts++;
        start_as(&b, &cfg, &identities[2]);
        start(&a, 1, started - 1);
        OK(peers_set(a.peers, 2, b.address));
        UNTIL(a.n_refused > 0);
        assert_int_equal(a.refused, SYM_ECONFLICT);
        stop(&a);
        stop(&b);
        b = (struct node){0};
    }

    /* One that cannot be written keeps nobody out; it is made up for at the next start of another. */
    assert_int_equal(mkdir(tmp, 0700), 0);
    start_as(&b, &cfg, &identities[2]);
    start(&a, 1, 20);
    OK(peers_set(a.peers, 2, b.address));
    UNTIL(peers_is_up(a.peers, 2));
    stop(&a);
    assert_int_equal(rmdir(tmp), 0);
    start(&a, 3, 1);
    OK(peers_set(a.peers, 2, b.address));
    UNTIL(peers_is_up(a.peers, 2));
    stop(&a);
    stop(&b);
    b = (struct node){0};
    start_as(&b, &cfg, &identities[2]);
    assert_int_equal(peer_find(b.peers, 1)->starts, 20);
    assert_int_equal(peer_find(b.peers, 3)->starts, 1);
    stop(&b);

    assert_int_equal(truncate(path, 30), 0);
    assert_int_equal(peers_new(&cfg, identities[2].pem, identities[2].key, ca.pem, &b.peers), SYM_ECORRUPT);
    assert_non_null(strstr(err_msg(), path));
    unlink(path);
    assert_int_equal(rmdir(dir), 0);
}

static void the_wrong_one(void **state)
{
    (void)state;
    struct node a, b, c;

    start(&a, 1, 1);
    start(&b, 2, 1);
    start(&c, 3, 1);
    /* 3 is said to live where 2 does: its certificate says otherwise, and it hears nothing from us. */
    OK(peers_set(a.peers, 3, b.address));
    struct peer *peer = peer_find(a.peers, 3);
    UNTIL(peer->backoff > BACKOFF_MIN_MS);
    assert_int_equal(a.ups[3] + a.n_refused, 0);
    assert_null(peer_find(b.peers, 1));
    stop(&c);

    /* The acceptor's own id is not claimed, nor another's with a certificate that is not its. */
    c = (struct node){0};
    struct peers_config cfg = config_of(&c, 1, 1);
    start_as(&c, &cfg, &identities[3]);
    OK(peers_set(c.peers, 2, b.address));
    UNTIL(c.n_refused > 0);
    assert_int_equal(c.refused, SYM_EDENIED);
    stop(&c);
    c = (struct node){0};
    cfg = config_of(&c, 2, 1);
    start_as(&c, &cfg, &identities[3]);
    OK(peers_set(c.peers, 1, b.address));
    UNTIL(peer_find(c.peers, 1)->backoff > BACKOFF_MIN_MS);
    assert_int_equal(c.n_refused, 0); /* it is not 1 who answers */
    stop(&c);
    stop(&a);
    stop(&b);
}

static void change_of_address(void **state)
{
    (void)state;
    struct node a, b, c;
    struct sends sends = {0};

    start(&a, 1, 1);
    start(&b, 2, 1);
    meet(&a, &b);
    start(&c, 2, 2); /* the same member somewhere else, started once more */
    uint8_t *data = pattern(8 << 20, 4);
    send_to(&a, 2, 1, false, data, 8 << 20, &sends);
    OK(peers_set(a.peers, 2, c.address));
    assert_false(peers_is_up(a.peers, 2));
    assert_int_equal(a.downs[2], 0); /* not inside the call */
    UNTIL(peers_is_up(a.peers, 2));
    assert_int_equal(a.downs[2], 1);
    assert_int_equal(a.ups[2], 2);
    assert_int_equal(sends.unconnected, 1);
    send_to(&a, 2, 2, false, "new", 3, &sends);
    UNTIL(c.n_frames == 1);
    /* The old one connects again: it is told that its folder is an older copy. */
    OK(peers_set(b.peers, 1, "127.0.0.1:1"));
    OK(peers_set(b.peers, 1, a.address));
    UNTIL(b.n_refused > 0);
    assert_int_equal(b.refused, SYM_ECONFLICT);
    /* And where the older answers, we do not stay. */
    OK(peers_set(a.peers, 2, b.address));
    UNTIL(peer_find(a.peers, 2)->backoff > BACKOFF_MIN_MS);
    assert_int_equal(a.ups[2], 2);
    stop(&a);
    stop(&b);
    stop(&c);
    (free)(data);
}

/* A member that has moved is looked for where it says in its hello, also by one that is told otherwise later. */
static void moved(void **state)
{
    (void)state;
    struct node a, b;

    start(&a, 1, 1);
    start(&b, 2, 1);
    meet(&a, &b);
    char before[32];
    snprintf(before, sizeof before, "%s", b.address);
    stop(&b);
    UNTIL(a.downs[2] == 1);

    b = (struct node){0};
    struct peers_config cfg = config_of(&b, 2, 2);
    char address[32];
    at_a_port(&cfg, address);
    cfg.moves = 4;
    start_as(&b, &cfg, &identities[2]);
    OK(peers_set(b.peers, 1, a.address)); /* who moved comes to those who did not */
    UNTIL(both_up(&a, &b));
    assert_string_equal(peers_address(a.peers, 2), address);
    /* What is older than that is not believed, nor what says nothing of how old it is. */
    OK(peers_set(a.peers, 2, before));
    OK(peers_locate(a.peers, 2, before, 3));
    OK(peers_locate(a.peers, 2, before, 4));
    assert_string_equal(peers_address(a.peers, 2), address);
    assert_true(peers_is_up(a.peers, 2));
    stop(&b);
    UNTIL(a.downs[2] == 2);

    /* It is remembered before it is set, and after it was forgotten. */
    OK(peers_locate(a.peers, 3, "127.0.0.1:1", 1));
    assert_null(peers_address(a.peers, 3));
    OK(peers_set(a.peers, 3, "127.0.0.1:2"));
    assert_string_equal(peers_address(a.peers, 3), "127.0.0.1:1");
    peers_forget(a.peers, 3);
    OK(peers_set(a.peers, 3, "127.0.0.1:2"));
    assert_string_equal(peers_address(a.peers, 3), "127.0.0.1:1");
    assert_int_equal(peers_locate(a.peers, 3, ":no address:", 9), SYM_EINVAL);
    assert_int_equal(peers_locate(a.peers, 1, "127.0.0.1:1", 9), SYM_EINVAL);
    stop(&a);
}

/* Neither knows where the other is now but by a third, as from the state or from gossip. */
static void located(void **state)
{
    (void)state;
    struct node a = {0}, b = {0};
    char at[2][32];

    struct peers_config one = config_of(&a, 1, 2), two = config_of(&b, 2, 2);
    at_a_port(&one, at[0]);
    at_a_port(&two, at[1]);
    start_as(&a, &one, &identities[1]);
    start_as(&b, &two, &identities[2]);
    OK(peers_set(a.peers, 2, "127.0.0.1:1"));
    OK(peers_set(b.peers, 1, "127.0.0.1:1"));
    struct peer *peer = peer_find(a.peers, 2);
    UNTIL(peer->backoff >= 400);
    OK(peers_locate(a.peers, 2, b.address, 1));
    OK(peers_locate(b.peers, 1, a.address, 1));
    UNTIL(both_up(&a, &b));

    /* One that is given another address as it runs says so. */
    assert_int_equal(peers_move(a.peers, ":no address:", 2), SYM_EINVAL);
    OK(peers_move(a.peers, "127.0.0.1:2", 2));
    UNTIL(b.downs[1] == 1);
    assert_string_equal(peers_address(b.peers, 1), "127.0.0.1:2");
    UNTIL(peers_is_up(a.peers, 2));
    stop(&a);
    stop(&b);
}

/* Whoever has a copy of a folder has its next start, too; but not while the member runs. */
static void a_second_one(void **state)
{
    (void)state;
    struct node a, b, c = {0};

    start(&a, 1, 1);
    start(&b, 2, 1);
    meet(&a, &b);
    UNTIL(peer_find(a.peers, 2)->in != NULL);
    struct peers_config cfg = config_of(&c, 2, 2);
    cfg.address = "127.0.0.1:3";
    cfg.moves = 1;
    start_as(&c, &cfg, &identities[2]);
    OK(peers_set(c.peers, 1, a.address));
    UNTIL(c.n_refused > 0);
    assert_int_equal(c.refused, SYM_EBUSY);
    assert_non_null(strstr(c.reason, "copied"));
    assert_string_equal(peers_address(a.peers, 2), b.address);
    assert_true(both_up(&a, &b));
    stop(&b);
    UNTIL(peer_find(a.peers, 2)->in != NULL); /* now it may */
    assert_string_equal(peers_address(a.peers, 2), "127.0.0.1:3");
    stop(&a);
    stop(&c);
}

/* The same where others have heard of it, and would connect to it themselves. */
static void a_second_one_heard_of(void **state)
{
    (void)state;
    struct node a, b = {0}, c = {0};
    char there[32], elsewhere[32];
    start(&a, 1, 1);
    struct peers_config member = config_of(&b, 2, 1), copy = config_of(&c, 2, 2);
    at_a_port(&member, there);
    at_a_port(&copy, elsewhere);
    copy.moves = 1;
    start_as(&b, &member, &identities[2]);
    meet(&a, &b);
    struct peer *peer = peer_find(a.peers, 2);
    UNTIL(peer->in != NULL);
    OK(peers_locate(a.peers, 2, elsewhere, 1));
    assert_string_equal(peers_address(a.peers, 2), there);
    /* While it is cut off, that has to be believed; but not when it is back. */
    OK(peers_set(b.peers, 1, "127.0.0.1:1"));
    UNTIL(peer->in == NULL);
    OK(peers_locate(a.peers, 2, elsewhere, 1));
    assert_string_equal(peers_address(a.peers, 2), elsewhere);
    UNTIL(!peers_is_up(a.peers, 2));
    OK(peers_set(b.peers, 1, a.address));
    UNTIL(both_up(&a, &b));
    assert_string_equal(peers_address(a.peers, 2), there);
    /* A copy runs there, and comes by itself. */
    start_as(&c, &copy, &identities[2]);
    OK(peers_set(c.peers, 1, a.address));
    UNTIL(c.n_refused > 0);
    assert_int_equal(c.refused, SYM_EBUSY);
    /* Nothing is heard of the member for a moment, and of the copy just then. */
    peer->in->quiet = ALIVE_TICKS + 1;
    OK(peers_locate(a.peers, 2, elsewhere, 2));
    assert_string_equal(peers_address(a.peers, 2), elsewhere);
    UNTIL(peer->out != NULL);
    peer->in->quiet = 0;
    UNTIL(both_up(&a, &b) && strcmp(peers_address(a.peers, 2), there) == 0);
    assert_int_equal(peer->starts, 1);
    assert_int_equal(b.n_refused, 0);
    stop(&b);
    UNTIL(peer->in != NULL); /* now it may */
    UNTIL(peers_is_up(a.peers, 2));
    assert_string_equal(peers_address(a.peers, 2), elsewhere);
    stop(&a);
    stop(&c);
}

/* A member that starts again is back before its old connections have ended, as after a cut of power. */
static void another_process(void **state)
{
    (void)state;
    struct node a, b, c;

    start(&a, 1, 1);
    start(&b, 2, 1);
    meet(&a, &b);
    UNTIL(peer_find(a.peers, 2)->in != NULL);
    start(&c, 2, 2);
    OK(peers_set(c.peers, 1, a.address));
    UNTIL(a.downs[2] == 1); /* what we hold leads to a process that is no more */
    stop(&b);
    OK(peers_set(a.peers, 2, c.address));
    UNTIL(both_up(&a, &c));
    stop(&a);
    stop(&c);
}

/* Who connects to us is there: we do not wait out our own backoff. */
static void back_at_once(void **state)
{
    (void)state;
    struct node a, b;

    start(&a, 1, 1);
    start(&b, 2, 1);
    struct peers_config cfg = config_of(&b, 2, 2);
    cfg.port = peers_port(b.peers);
    OK(peers_set(a.peers, 2, b.address));
    stop(&b);
    struct peer *peer = peer_find(a.peers, 2);
    UNTIL(peer->backoff >= 800 && peer->out == NULL);
    b = (struct node){0};
    start_as(&b, &cfg, &identities[2]);
    OK(peers_set(b.peers, 1, a.address));
    UNTIL(peer->in != NULL);
    assert_true(peer->out != NULL || peer->retry_at <= uv_now(&loop));
    UNTIL(both_up(&a, &b));
    assert_int_equal(peer->backoff, 0);
    stop(&a);
    stop(&b);
}

static void forgotten(void **state)
{
    (void)state;
    struct node a, b;
    struct sends sends = {0};

    start(&a, 1, 1);
    start(&b, 2, 1);
    meet(&a, &b);
    UNTIL(peer_find(a.peers, 2)->in != NULL);
    send_to(&a, 2, 1, false, "x", 1, &sends);
    a.verdict[2] = SYM_ENOTFOUND;
    peers_forget(a.peers, 2);
    assert_int_equal(sends.done, 0);
    assert_null(peers_heard_address(a.peers, 2));
    assert_int_equal(peers_last_heard(a.peers, 2), 0);
    UNTIL(sends.canceled == 1);
    UNTIL(b.n_refused > 0); /* it comes back, and is told */
    assert_int_equal(b.refused, SYM_ENOTFOUND);
    assert_int_equal(a.downs[2], 0);
    peers_forget(a.peers, 3); /* not known: nothing */
    stop(&a);
    stop(&b);
}

/* We leave one connection for another, and say so: the other side does not take us for dead. */
static void not_dead(void **state)
{
    (void)state;
    struct node a, b;
    struct sends sends = {0};
    char other[64];

    start(&a, 1, 1);
    start(&b, 2, 1);
    meet(&a, &b);
    const struct peer *peer = peer_find(b.peers, 1);
    UNTIL(peer->in != NULL);
    snprintf(other, sizeof other, "localhost:%u", peers_port(b.peers)); /* the same place by another name */
    for (unsigned i = 1; i < 4; i++) {
        OK(peers_set(a.peers, 2, i % 2 == 1 ? other : b.address));
        UNTIL(a.downs[2] == i && peers_is_up(a.peers, 2));
        send_to(&a, 2, 1, false, "x", 1, &sends);
        UNTIL(b.n_frames == i);
    }
    assert_int_equal(b.downs[1], 0);
    stop(&a);
    stop(&b);
}

/* An end of either connection that nobody announced takes both with it; and nobody goes on doing so to the
 * other. */
static void either_connection(void **state)
{
    (void)state;
    for (int which = 0; which < 2; which++) {
        struct node a, b;
        start(&a, 1, 1);
        start(&b, 2, 1);
        meet(&a, &b);
        struct peer *peer = peer_find(a.peers, 2);
        UNTIL(peer->in != NULL && peer_find(b.peers, 1)->in != NULL);
        struct conn *c = which == 0 ? peer->out : peer_find(b.peers, 1)->out;
        stream_close(c->stream, SYM_EIO); /* behind the back of peers, as a broken line does */
        UNTIL(a.downs[2] == 1 && b.downs[1] == 1 && both_up(&a, &b));
        /* A frame each way and a keep-alive later nothing more has happened. */
        for (int i = 0; i < 30; i++) {
            struct sends sends = {0};
            unsigned before = a.n_frames;
            send_to(&b, 1, 1, false, "x", 1, &sends);
            UNTIL(sends.done == 1 && a.n_frames == before + 1);
        }
        assert_int_equal(a.ups[2], 2);
        assert_int_equal(b.ups[1], 2);
        stop(&a);
        stop(&b);
    }
}

static struct {
    uint64_t id;
    unsigned asked;
} knows;

static bool is_known(void *arg, uint64_t id, const struct tls_peer *peer)
{
    assert_ptr_equal(arg, &knows);
    assert_true(peer->present);
    knows.asked++;
    return id == knows.id;
}

static void new_certificates(void **state)
{
    (void)state;
    struct node a, b;
    struct cert_spec spec = {.cn = "node-2",
        .ou = "manager",
        .o = "cluster",
        .not_before = time(NULL) - HOUR,
        .not_after = time(NULL) + DAY,
        .server = true};
    struct identity two = make_node(&stranger_ca, &spec);

    start(&a, 1, 1);
    start(&b, 2, 1);
    meet(&a, &b);
    /* b moves to another CA: what stands goes on, what is new fails until a trusts it. */
    OK(peers_set_tls(b.peers, two.pem, two.key, ca.pem));
    FAILS(SYM_EINVAL, peers_set_tls(b.peers, "rubbish", two.key, ca.pem));
    struct sends sends = {0};
    send_to(&a, 2, 1, false, "x", 1, &sends);
    UNTIL(b.n_frames == 1);
    OK(peers_set(a.peers, 2, "127.0.0.1:1"));
    OK(peers_set(a.peers, 2, b.address));
    struct peer *peer = peer_find(a.peers, 2);
    UNTIL(peer->backoff > BACKOFF_MIN_MS);
    assert_int_equal(a.ups[2], 1);
    char *both = join_pem(ca.pem, stranger_ca.pem);
    OK(peers_set_tls(a.peers, identities[1].pem, identities[1].key, both));
    UNTIL(peers_is_up(a.peers, 2));
    /* That CA is trusted no more: what it has signed is cut, unless it is a member's. */
    const unsigned ups = a.ups[2];
    knows.id = 0;
    peers_recheck(a.peers, both, is_known, &knows);
    assert_int_equal(knows.asked, 0);
    knows.id = 2;
    peers_recheck(a.peers, ca.pem, is_known, &knows);
    assert_true(knows.asked > 0);
    send_to(&a, 2, 1, false, "y", 1, &sends);
    UNTIL(b.n_frames == 2);
    assert_int_equal(a.ups[2], ups);
    knows.id = 0;
    OK(peers_set_tls(a.peers, identities[1].pem, identities[1].key, ca.pem));
    peers_recheck(a.peers, ca.pem, is_known, &knows);
    assert_false(peers_is_up(a.peers, 2));
    UNTIL(peer->backoff > BACKOFF_MIN_MS);
    OK(peers_set_tls(b.peers, identities[2].pem, identities[2].key, ca.pem));
    UNTIL(peers_is_up(a.peers, 2) && peers_is_up(b.peers, 1));
    free(both);
    free_identity(&two);
    stop(&a);
    stop(&b);
}

/* Lines of @text in the file @fd that has what was logged. */
static unsigned said(int fd, const char *text)
{
    static char all[65536];
    unsigned n = 0;
    ssize_t len = pread(fd, all, sizeof all - 1, 0);
    assert_true(len >= 0);
    all[len] = '\0';
    for (const char *at = all; (at = strstr(at, text)) != NULL; at++) {
        n++;
    }
    return n;
}

/* What keeps two managers apart is said, and not at each attempt. */
static void mistrust_is_logged(void **state)
{
    (void)state;
    struct node a, b;
    char path[] = "/tmp/sym-peers-XXXXXX", third[64];
    int fd = mkstemp(path), saved = dup(STDERR_FILENO);
    struct cert_spec spec = {.cn = "node-2",
        .ou = "manager",
        .o = "cluster",
        .not_before = time(NULL) - HOUR,
        .not_after = time(NULL) + DAY,
        .server = true};
    struct identity two = make_node(&stranger_ca, &spec);
    assert_true(fd >= 0 && saved >= 0);
    unlink(path);
    dup2(fd, STDERR_FILENO);
    log_setup(LOG_WARN, false);

    start(&a, 1, 1);
    b = (struct node){0};
    struct peers_config cfg = config_of(&b, 2, 1);
    start_as(&b, &cfg, &two);
    OK(peers_set(a.peers, 2, b.address));
    OK(peers_set(a.peers, 3, a.address)); /* 1 answers there */
    struct peer *peer = peer_find(a.peers, 2), *other = peer_find(a.peers, 3);
    snprintf(third, sizeof third, "raft peer 3 at %s: not its certificate", a.address);
    UNTIL(peer->backoff > 2 * BACKOFF_MIN_MS && other->backoff > 2 * BACKOFF_MIN_MS);
    unsigned first = said(fd, "raft peer 2 at"), wrong = said(fd, third), from = said(fd, "from 127.0.0.1");
    for (unsigned i = 0; i < SAID_MAX; i++) {
        peer->said[i].at -=
            peer->said[i].at > 60000 ? 60000 : peer->said[i].at; /* as if a minute had gone by */
    }
    unsigned backoff = peer->backoff;
    UNTIL(peer->backoff > backoff);
    unsigned again = said(fd, "raft peer 2 at"), reason = said(fd, "certificate is not accepted");

    log_setup(getenv("SYM_TEST_LOG") != NULL ? LOG_DEBUG : LOG_ERROR, false);
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(fd);
    assert_int_equal(first, 1);
    assert_int_equal(wrong, 1);
    assert_in_range(from, 1, SAID_MAX);
    assert_int_equal(again, 2);
    assert_int_equal(reason, 2);
    free_identity(&two);
    stop(&a);
    stop(&b);
}

/* ---- rogues ---- */

struct rogue {
    struct stream *stream;
    struct listener *listener;
    struct tls_ctx *tls;
    bool open, closed;
    int status;
    struct buf got;
    const struct buf *greeting; /* a server's answer to the first bytes */
    unsigned accepted;
};

static void rogue_open(struct stream *s)
{
    struct rogue *r = stream_data(s);
    r->open = true;
}

static void rogue_data(struct stream *s, const uint8_t *data, size_t n)
{
    struct rogue *r = stream_data(s);
    buf_append(&r->got, data, n);
    if (r->greeting != NULL) {
        stream_write(s, buf_data(r->greeting), r->greeting->len);
        r->greeting = NULL;
    }
}

static void rogue_close(struct stream *s, int status)
{
    struct rogue *r = stream_data(s);
    r->stream = NULL;
    r->closed = true;
    r->status = status;
}

static const struct stream_ops rogue_ops = {
    .on_open = rogue_open, .on_data = rogue_data, .on_close = rogue_close};

/* Connects to @to with the certificate of @who, NULL: with none. */
static void rogue_connect(struct rogue *r, const struct node *to, const struct identity *who, bool plain)
{
    *r = (struct rogue){0};
    struct stream_config cfg = {.ops = &rogue_ops, .data = r};
    if (!plain) {
        OK(tls_ctx_new(
            TLS_PEER_ANY, who != NULL ? who->pem : NULL, who != NULL ? who->key : NULL, NULL, &r->tls));
        cfg.tls = r->tls;
    }
    OK(stream_connect_tcp(&loop, "127.0.0.1", peers_port(to->peers), &cfg, &r->stream));
}

static bool rogue_accept(void *arg, const struct peer_addr *from, struct stream_config *cfg)
{
    struct rogue *r = arg;
    (void)from;
    r->accepted++;
    if (r->stream != NULL) {
        return false;
    }
    *cfg = (struct stream_config){.ops = &rogue_ops, .data = r, .tls = r->tls};
    return true;
}

static void rogue_accepted(void *arg, struct stream *s)
{
    struct rogue *r = arg;
    r->stream = s;
    r->closed = false;
}

static void rogue_end(struct rogue *r)
{
    if (r->stream != NULL) {
        stream_close(r->stream, 0);
        UNTIL(r->stream == NULL);
    }
    if (r->listener != NULL) {
        listener_close(r->listener);
    }
    if (r->tls != NULL) {
        tls_ctx_free(r->tls);
    }
    buf_free(&r->got);
    *r = (struct rogue){0};
}

static void put_control(struct buf *out, enum hello_kind kind, const struct buf *body)
{
    uint8_t head[FRAME_HEAD];
    frame_put_head(head, (uint8_t)kind, FRAME_CONTROL, body != NULL ? (uint32_t)body->len : 0, false);
    buf_append(out, head, sizeof head);
    if (body != NULL) {
        buf_append(out, buf_data(body), body->len);
    }
}

static void put_hello(struct buf *out, uint64_t from, uint64_t to)
{
    struct hello h = {.format = HELLO_FORMAT,
        .cluster_id = "cluster",
        .from = from,
        .to = to,
        .starts = 1,
        .address = "127.0.0.1:15760"};
    struct buf body = {0};
    OK(hello_encode(&h, &body));
    put_control(out, HELLO, &body);
    buf_free(&body);
}

static void put_frame(
    struct buf *out, uint8_t kind, enum frame_class class, const void *data, size_t n, bool more)
{
    uint8_t head[FRAME_HEAD];
    frame_put_head(head, kind, class, (uint32_t)n, more);
    buf_append(out, head, sizeof head);
    buf_append(out, data, n);
}

static void garbage(void **state)
{
    (void)state;
    struct node a;
    struct rogue r;
    struct buf out = {0};
    uint8_t *noise = pattern(100000, 77);

    start(&a, 1, 1);
    /* Not even TLS. */
    rogue_connect(&r, &a, NULL, true);
    UNTIL(r.open);
    stream_write(r.stream, noise, 100000);
    UNTIL(r.closed);
    rogue_end(&r);
    /* No certificate; one of another CA: the handshake ends it. */
    for (int i = 0; i < 2; i++) {
        struct cert_spec spec = {.cn = "node-2",
            .ou = "manager",
            .o = "cluster",
            .not_before = time(NULL) - HOUR,
            .not_after = time(NULL) + DAY};
        struct identity two = make_node(&stranger_ca, &spec);
        rogue_connect(&r, &a, i == 0 ? NULL : &two, false);
        UNTIL(r.closed);
        assert_int_equal(r.got.len, 0);
        rogue_end(&r);
        free_identity(&two);
    }
    /* A member's certificate, and then what nobody says. */
    for (int i = 0; i < 12; i++) {
        buf_clear(&out);
        struct buf body = {0};
        bool answered = false;
        switch (i) {
        case 0:
            buf_append(&out, noise, 100000);
            break;
        case 1:
            put_control(&out, HELLO, NULL);
            break;
        case 2:
            put_control(&out, HELLO_PING, NULL);
            break;
        case 3:
            put_control(&out, HELLO_WELCOME, NULL);
            break;
        case 4:
            put_frame(&out, 1, FRAME_NORMAL, "x", 1, false); /* before the hello */
            break;
        case 5: /* a second hello */
            put_hello(&out, 2, 1);
            put_hello(&out, 2, 1);
            answered = true;
            break;
        case 6: /* a frame that never ends */
            put_hello(&out, 2, 1);
            for (int k = 0; k < 70; k++) {
                put_frame(&out, 1, FRAME_NORMAL, noise, 65536, true);
            }
            answered = true;
            break;
        case 7:
            put_hello(&out, 2, 1);
            put_frame(&out, 1, FRAME_CLASSES, "x", 1, false);
            answered = true;
            break;
        case 8:
            put_hello(&out, 2, 1);
            put_control(&out, HELLO_ALIVE, NULL);
            answered = true;
            break;
        case 9:
            put_hello(&out, 2, 3); /* meant for another */
            answered = true;
            break;
        case 10:
            put_hello(&out, 1, 1); /* from ourselves */
            answered = true;
            break;
        case 11: { /* of a later version */
            buf_append(&body, "SMRP\x03\x00whatever", 14);
            put_control(&out, HELLO, &body);
            answered = true;
            break;
        }
        }
        buf_free(&body);
        rogue_connect(&r, &a, &identities[2], false);
        UNTIL(r.open);
        stream_write(r.stream, buf_data(&out), out.len);
        UNTIL(r.closed);
        if (answered != (r.got.len > 0)) {
            fail_msg("case %d: %zu bytes of answer", i, r.got.len);
        }
        if (i >= 9) {
            struct refusal refusal;
            assert_int_equal(buf_data(&r.got)[4], HELLO_REFUSAL);
            OK(refusal_decode(buf_data(&r.got) + FRAME_HEAD, r.got.len - FRAME_HEAD, &refusal));
            assert_int_equal(refusal.code, i == 11 ? SYM_EPROTO : SYM_EINVAL);
        }
        rogue_end(&r);
    }
    assert_int_equal(a.n_frames, 0);
    UNTIL(a.peers->strangers == 0);
    buf_free(&out);
    (free)(noise);
    stop(&a);
}

static void byte_at_a_time(void **state)
{
    (void)state;
    struct node a;
    struct rogue r;
    struct buf out = {0};

    start(&a, 1, 1);
    put_hello(&out, 2, 1);
    put_frame(&out, 7, FRAME_BULKY, "one ", 4, true);
    put_frame(&out, 8, FRAME_URGENT, "two", 3, false);
    put_frame(&out, 7, FRAME_BULKY, "three", 5, false);
    put_frame(&out, 9, FRAME_NORMAL, "", 0, false);
    rogue_connect(&r, &a, &identities[2], false);
    UNTIL(r.open);
    while (out.len > 0) {
        OK(stream_write(r.stream, buf_data(&out), 1));
        buf_consume(&out, 1);
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    UNTIL(a.n_frames == 3);
    expect(&a, 0, 2, 8, "two", 3);
    expect(&a, 1, 2, 7, "one three", 9);
    expect(&a, 2, 2, 9, "", 0);
    assert_int_equal(buf_data(&r.got)[4], HELLO_WELCOME);
    /* A second connection of the same member replaces the first, and half a frame is gone with it. */
    struct rogue again;
    put_frame(&out, 7, FRAME_NORMAL, "half", 4, true);
    OK(stream_write(r.stream, buf_data(&out), out.len));
    buf_clear(&out);
    rogue_connect(&again, &a, &identities[2], false);
    put_hello(&out, 2, 1);
    put_frame(&out, 1, FRAME_NORMAL, "whole", 5, false);
    UNTIL(again.open);
    OK(stream_write(again.stream, buf_data(&out), out.len));
    UNTIL(r.closed && a.n_frames == 4);
    expect(&a, 3, 2, 1, "whole", 5);
    assert_false(again.closed);
    buf_free(&out);
    rogue_end(&r);
    rogue_end(&again);
    stop(&a);
}

/* Holding connections open keeps no member out. */
static void crowd(void **state)
{
    (void)state;
    enum { MANY = STRANGERS_MAX + 20 };
    static struct rogue rogues[MANY];
    struct node a, b;
    unsigned gone = 0;

    start(&a, 1, 1);
    start(&b, 2, 1);
    for (int i = 0; i < MANY; i++) {
        rogue_connect(&rogues[i], &a, NULL, true);
        UNTIL(rogues[i].open);
    }
    UNTIL(a.peers->strangers <= STRANGERS_MAX);
    meet(&a, &b);
    for (int i = 0; i < MANY; i++) {
        gone += rogues[i].closed;
    }
    assert_true(gone >= 20);
    assert_true(a.peers->strangers <= STRANGERS_MAX);
    for (int i = 0; i < MANY; i++) {
        rogue_end(&rogues[i]);
    }
    stop(&a);
    stop(&b);
}

static void faster(struct node *n)
{
    uv_timer_start(&n->peers->tick, on_tick, 10, 10);
}

static void deadlines(void **state)
{
    (void)state;
    struct node a;
    struct rogue r;
    struct buf out = {0}, greeting = {0}, body = {0};

    /* No hello. */
    start(&a, 1, 1);
    faster(&a);
    rogue_connect(&r, &a, &identities[2], false);
    UNTIL(r.closed);
    assert_int_equal(r.got.len, 0);
    rogue_end(&r);
    /* A hello, and silence after it. */
    rogue_connect(&r, &a, &identities[2], false);
    put_hello(&out, 2, 1);
    UNTIL(r.open);
    OK(stream_write(r.stream, buf_data(&out), out.len));
    UNTIL(r.closed);
    assert_true(r.got.len > FRAME_HEAD); /* welcome, alive */
    rogue_end(&r);

    /* A server that never answers; one that welcomes and then is silent. */
    for (int i = 0; i < 2; i++) {
        struct welcome w = {.format = HELLO_FORMAT, .id = 2, .starts = 1};
        char address[32];
        r = (struct rogue){0};
        OK(tls_ctx_new(TLS_SERVER, identities[2].pem, identities[2].key, ca.pem, &r.tls));
        OK(listener_tcp(&loop, "127.0.0.1", 0, rogue_accept, rogue_accepted, &r, &r.listener));
        if (i == 1) {
            OK(welcome_encode(&w, &body));
            put_control(&greeting, HELLO_WELCOME, &body);
            r.greeting = &greeting;
        }
        snprintf(address, sizeof address, "127.0.0.1:%u", listener_port(r.listener));
        OK(peers_set(a.peers, 2, address));
        UNTIL(i == 0 ? r.closed : a.downs[2] == 1);
        assert_int_equal(a.ups[2], i);
        /* Given up, and tried again. */
        unsigned accepted = r.accepted;
        UNTIL(r.accepted > accepted);
        peers_forget(a.peers, 2);
        UNTIL(r.closed);
        rogue_end(&r);
    }
    stop(&a);
    buf_free(&out);
    buf_free(&greeting);
    buf_free(&body);
}

/* Two that have nothing to say to each other stay connected. */
static void idle(void **state)
{
    (void)state;
    struct node a, b;
    start(&a, 1, 1);
    start(&b, 2, 1);
    meet(&a, &b);
    faster(&a);
    faster(&b);
    uint64_t from = uv_now(&loop);
    UNTIL(uv_now(&loop) > from + 50 * 10); /* several times what silence is given */
    assert_int_equal(a.downs[2] + b.downs[1], 0);
    assert_int_equal(a.ups[2] + b.ups[1], 2);
    stop(&a);
    stop(&b);
}

/* A member of a version that knew nothing of moves, and one of ours. */
static void versions(void **state)
{
    (void)state;
    struct node a;
    struct rogue r = {0};
    struct buf out = {0}, body = {0};
    struct welcome w = {.format = HELLO_FORMAT, .id = 2, .starts = 1};
    struct refusal no = {
        .code = SYM_EPROTO, .reason = "this version of the raft transport is not known here"};
    char address[32];

    /* It comes to us: it is heard, and understands our welcome. */
    start(&a, 1, 1);
    put_hello(&out, 2, 1);
    rogue_connect(&r, &a, &identities[2], false);
    UNTIL(r.open);
    stream_write(r.stream, buf_data(&out), out.len);
    UNTIL(r.got.len > FRAME_HEAD + 2);
    assert_int_equal(buf_data(&r.got)[4], HELLO_WELCOME);
    assert_int_equal(buf_data(&r.got)[FRAME_HEAD], HELLO_FORMAT);
    assert_string_equal(peers_heard_address(a.peers, 2), "127.0.0.1:15760");
    stop(&a);
    rogue_end(&r);

    /* We come to it: as we always did when we have not moved, and otherwise it sees that we are of another version. */
    for (unsigned moves = 0; moves < 2; moves++) {
        buf_clear(&out);
        buf_clear(&body);
        a = (struct node){0};
        struct peers_config cfg = config_of(&a, 1, 1);
        cfg.moves = moves;
        start_as(&a, &cfg, &identities[1]);
        OK(tls_ctx_new(TLS_SERVER, identities[2].pem, identities[2].key, ca.pem, &r.tls));
        OK(listener_tcp(&loop, "127.0.0.1", 0, rogue_accept, rogue_accepted, &r, &r.listener));
        OK(moves == 0 ? welcome_encode(&w, &body) : refusal_encode(&no, &body));
        put_control(&out, moves == 0 ? HELLO_WELCOME : HELLO_REFUSAL, &body);
        r.greeting = &out;
        snprintf(address, sizeof address, "127.0.0.1:%u", listener_port(r.listener));
        OK(peers_set(a.peers, 2, address));
        UNTIL(moves == 0 ? peers_is_up(a.peers, 2) : a.n_refused > 0);
        /* Magic, format. */
        assert_int_equal(buf_data(&r.got)[FRAME_HEAD + 4], moves == 0 ? 1 : 2);
        assert_int_equal(a.refused, moves == 0 ? 0 : SYM_EPROTO);
        assert_int_equal(a.ups[2], moves == 0);
        stop(&a);
        rogue_end(&r);
    }
    buf_free(&out);
    buf_free(&body);
}

static void server_lies(void **state)
{
    (void)state;
    struct node a;
    /* A welcome as somebody else, of another version, twice, a refusal that is none, a frame where none
     * belongs. */
    for (int i = 0; i < 6; i++) {
        struct welcome w = {.format = i == 1 ? 2 : HELLO_FORMAT, .id = i == 0 ? 3 : 2, .starts = 1};
        struct buf greeting = {0}, body = {0};
        struct rogue r = {0};
        char address[32];
        start(&a, 1, 1);
        OK(tls_ctx_new(TLS_SERVER, identities[2].pem, identities[2].key, ca.pem, &r.tls));
        OK(listener_tcp(&loop, "127.0.0.1", 0, rogue_accept, rogue_accepted, &r, &r.listener));
        OK(welcome_encode(&w, &body));
        put_control(&greeting, i == 5 ? HELLO_REFUSAL : HELLO_WELCOME, &body);
        if (i == 2) {
            put_control(&greeting, HELLO_WELCOME, &body);
        } else if (i == 3) {
            put_frame(&greeting, 1, FRAME_NORMAL, "x", 1, false);
        } else if (i == 4) {
            put_control(&greeting, HELLO_PING, NULL);
        }
        r.greeting = &greeting;
        snprintf(address, sizeof address, "127.0.0.1:%u", listener_port(r.listener));
        OK(peers_set(a.peers, 2, address));
        UNTIL(r.closed);
        bool was_up = i == 2 || i == 3 || i == 4;
        UNTIL(a.downs[2] == was_up);
        assert_int_equal(a.ups[2], was_up);
        assert_int_equal(a.n_refused + a.n_frames, 0);
        stop(&a);
        rogue_end(&r);
        buf_free(&greeting);
        buf_free(&body);
    }
}

static void without_memory(void **state)
{
    (void)state;
    bool hit = true;
    long k;
    for (k = 0; hit; k++) {
        struct node a = {0}, b;
        struct sends sends = {0};
        start(&b, 2, 1);
        struct peers_config cfg = config_of(&a, 1, 1);
        fault_after(k, false);
        a.id = 1;
        int rv = peers_new(&cfg, identities[1].pem, identities[1].key, ca.pem, &a.peers);
        if (rv != 0) {
            assert_int_equal(rv, SYM_ENOMEM);
            assert_true(fault_end());
            start(&a, 1, 1);
        } else {
            live++;
        }
        snprintf(a.address, sizeof a.address, "127.0.0.1:%u", peers_port(a.peers));
        if (peers_set(a.peers, 2, b.address) != 0) {
            OK(peers_set(a.peers, 2, b.address));
        }
        if (peers_set(b.peers, 1, a.address) != 0) {
            OK(peers_set(b.peers, 1, a.address));
        }
        UNTIL(both_up(&a, &b));
        for (int i = 0; i < 3; i++) {
            send_to(&a, 2, 1, i == 0, "frame", 5, &sends);
        }
        UNTIL(sends.done == sends.asked);
        UNTIL(b.n_frames == sends.ok || sends.unconnected + sends.no_memory > 0 || a.downs[2] > 0 ||
              b.downs[1] > 0);
        stop(&a);
        stop(&b);
        hit = fault_end();
    }
    assert_true(k > 10);

    /* None at all for a while: every completion still comes. */
    struct node a;
    struct sends sends = {0};
    start(&a, 1, 1);
    fault_after(0, true);
    for (int i = 0; i < PEERS_RESERVE; i++) {
        send_to(&a, 2, 1, false, "x", 1, &sends);
    }
    assert_true(fault_end());
    UNTIL(sends.done == PEERS_RESERVE);
    assert_int_equal(sends.no_memory, PEERS_RESERVE);
    stop(&a);
}

static void refuses_to_start(void **state)
{
    (void)state;
    struct node a, b = {0};
    char longer[300];
    start(&a, 1, 1);
    struct peers_config cfg = config_of(&b, 2, 1);
    cfg.port = peers_port(a.peers);
    FAILS(SYM_EINUSE, peers_new(&cfg, identities[2].pem, identities[2].key, ca.pem, &b.peers));
    cfg = config_of(&b, 0, 1);
    FAILS(SYM_EINVAL, peers_new(&cfg, identities[2].pem, identities[2].key, ca.pem, &b.peers));
    cfg = config_of(&b, 2, 1);
    memset(longer, 'x', sizeof longer);
    longer[sizeof longer - 1] = '\0';
    cfg.address = longer;
    FAILS(SYM_EINVAL, peers_new(&cfg, identities[2].pem, identities[2].key, ca.pem, &b.peers));
    cfg = config_of(&b, 2, 1);
    FAILS(SYM_EINVAL, peers_new(&cfg, "rubbish", identities[2].key, ca.pem, &b.peers));
    stop(&a);
}

static int setup(void **state)
{
    (void)state;
    int64_t now = time(NULL);
    char cn[16];
    log_setup(getenv("SYM_TEST_LOG") != NULL ? LOG_DEBUG : LOG_ERROR, false);
    uv_loop_init(&loop);
    uv_timer_init(&loop, &patience);
    ca = make_ca("cluster", now - HOUR, now + DAY);
    stranger_ca = make_ca("other", now - HOUR, now + DAY);
    for (int i = 1; i < IDS; i++) {
        struct cert_spec spec = {.cn = cn,
            .ou = "manager",
            .o = "cluster",
            .not_before = now - HOUR,
            .not_after = now + DAY,
            .server = true};
        snprintf(cn, sizeof cn, "node-%d", i);
        identities[i] = make_node(&ca, &spec);
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (int i = 1; i < IDS; i++) {
        free_identity(&identities[i]);
    }
    free_identity(&ca);
    free_identity(&stranger_ca);
    if (live > 0) {
        return -1;
    }
    uv_close((uv_handle_t *)&patience, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
    return uv_loop_close(&loop);
}

/* What a failed test has left behind in the loop would fail the others too, and hide it. */
static int clean(void **state)
{
    (void)state;
    return live == 0 ? 0 : -1;
}

#define TEST(name) cmocka_unit_test_setup(name, clean)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(exchange),
        TEST(three),
        TEST(without_connection),
        TEST(from_unknown),
        TEST(urgent_overtakes),
        TEST(full_queues),
        TEST(copies),
        TEST(end_at_every_step),
        TEST(close_from_a_callback),
        TEST(send_from_completion),
        TEST(send_while_closing),
        TEST(restart),
        TEST(killed),
        TEST(refusals),
        TEST(removed_while_connected),
        TEST(starts_are_kept),
        TEST(the_wrong_one),
        TEST(change_of_address),
        TEST(moved),
        TEST(located),
        TEST(a_second_one),
        TEST(a_second_one_heard_of),
        TEST(another_process),
        TEST(back_at_once),
        TEST(forgotten),
        TEST(not_dead),
        TEST(either_connection),
        TEST(new_certificates),
        TEST(mistrust_is_logged),
        TEST(garbage),
        TEST(byte_at_a_time),
        TEST(crowd),
        TEST(deadlines),
        TEST(idle),
        TEST(versions),
        TEST(server_lies),
        TEST(without_memory),
        TEST(refuses_to_start),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
