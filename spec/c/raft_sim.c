/* A cluster of managers in simulated time, under the library's own deterministic fixture: our guard, state
 * machine with the real store, group commit, forwarding, retries and reads, through partitions, lost and late
 * messages, pauses, snapshots, handed-over leadership and changes of roles. Each run is made by its seed
 * alone.
 *
 *     test_raft_sim [--seeds N] [--first S] [--seed S] [--without RULE] [--verbose]
 *
 * Checked: an index holds the same entry everywhere; what was acknowledged is there at the end, was applied
 * once and at the revision that was told; what was refused as surely not written is not there; a read is
 * never older than what was acknowledged before it began; and with everything healed the cluster goes on and
 * all stores are equal byte for byte.
 */
#include "base/err.h"
#include "base/log.h"
#include "raft/fsm.h"
#include "raft/guard.h"
#include "raft/kinds.h"
#include "raft/propose.h"
#include "raft/reads.h"
#include "raft/submit.h"
#include "store/store.h"

#include <ftw.h>
#include <inttypes.h>
#include <raft/fixture.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    SERVERS_MAX = 5,
    TXNS_MAX = 4000,
    INDEXES_MAX = 60000,
    TICK_MS = 25,
    DURATION_MS = 10000,
    HEALED_MS = 40000
};

/* As many as fit into a minute; sanitizers cost a multiple. */
#ifdef __SANITIZE_ADDRESS__
enum { SEEDS = 100 };
#else
enum { SEEDS = 300 };
#endif

struct frame {
    STAILQ_ENTRY(frame) link;
    uint64_t due;
    unsigned from, to;
    uint8_t kind;
    size_t n;
    uint8_t data[];
};
STAILQ_HEAD(frames, frame);

struct pending_job {
    STAILQ_ENTRY(pending_job) link;
    uint64_t due;
    struct guard_job *job;
};

struct server {
    struct sim *sim;
    unsigned i;
    struct raft *raft;
    struct store *store;
    struct store_config config;
    char dir[256];
    struct fsm fsm;
    struct guard guard;
    struct propose propose;
    struct submit submit;
    struct reads reads;
    STAILQ_HEAD(jobs, pending_job) jobs;
    int (*apply)(struct raft_fsm *fsm, const struct raft_buffer *buf, void **result);
    unsigned short state;
    uint64_t term;
    struct raft_barrier barrier;
    bool opening;
    struct raft_change change;
    struct raft_transfer transfer;
    bool changing, transferring;
    unsigned trailing, threshold;
    bool kicked;
};

enum outcome { UNKNOWN, ACKED, REFUSED };
struct client_txn {
    enum outcome outcome;
    uint64_t revision;
    bool absent; /* it compares that its key is absent */
};

struct client_read {
    struct server *server;
    uint64_t floor; /* revision that was acknowledged before it began */
};

struct sim {
    uint64_t seed, random;
    struct raft_fixture fixture;
    unsigned n, n_voters;
    struct server servers[SERVERS_MAX];
    bool cut[SERVERS_MAX][SERVERS_MAX];
    unsigned latency[SERVERS_MAX];
    struct frames frames;
    uint64_t entries[INDEXES_MAX]; /* digests, 0: not seen */
    struct client_txn txns[TXNS_MAX];
    unsigned n_txns;
    uint64_t acked_revision;
    uint64_t next_tick, next_client, next_nemesis;
    bool healing;
    unsigned acked, refused, unknown, reads_ok, reads_failed, snapshots, installs, transfers, changes,
        elections, deposed;
};

static bool verbose;
static struct sim sim;
static char root[128];

static void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
static void fail(const char *fmt, ...)
{
    va_list args;
    fprintf(stderr, "\nseed %" PRIu64 " at %llu ms: ", sim.seed, sim.fixture.time);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fprintf(stderr, "\nrun again: test_raft_sim --seed %" PRIu64 " --verbose\n", sim.seed);
    exit(1);
}

static void trace(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void trace(const char *fmt, ...)
{
    if (verbose) {
        va_list args;
        printf("%6llu ", sim.fixture.time);
        va_start(args, fmt);
        vprintf(fmt, args);
        va_end(args);
        printf("\n");
    }
}

static uint64_t rnd(uint64_t below)
{
    sim.random ^= sim.random << 13;
    sim.random ^= sim.random >> 7;
    sim.random ^= sim.random << 17;
    return below == 0 ? 0 : (sim.random >> 11) % below;
}

static bool chance(unsigned percent)
{
    return rnd(100) < percent;
}

static bool alive(unsigned i)
{
    return raft_fixture_alive(&sim.fixture, i);
}

static bool connected(unsigned from, unsigned to)
{
    return alive(from) && alive(to) && !sim.cut[from][to];
}

/* --- what a server hands out --- */

static void on_fatal(void *arg, const char *what, int rv)
{
    struct server *s = arg;
    fail("server %u: fatal: %s: %d %s", s->i + 1, what, rv, err_msg());
}

static uint64_t digest(const uint8_t *p, size_t n)
{
    uint64_t h = 14695981039346656037u;
    for (size_t i = 0; i < n; i++) {
        h = (h ^ p[i]) * 1099511628211u;
    }
    return h | 1;
}

static int sim_apply(struct raft_fsm *base, const struct raft_buffer *buf, void **result)
{
    struct fsm *f = base->data;
    struct server *s = f->arg;
    uint64_t index = s->raft->last_applied + 1, d = digest(buf->base, buf->len);
    if (index >= INDEXES_MAX) {
        fail("too many entries");
    }
    if (sim.entries[index] != 0 && sim.entries[index] != d) {
        fail("server %u applies another entry %" PRIu64 " than others did", s->i + 1, index);
    }
    sim.entries[index] = d;
    return s->apply(base, buf, result);
}

static bool on_wanted(void *arg, uint64_t index)
{
    return propose_wanted(&((struct server *)arg)->propose, index);
}

static void on_deliver(void *arg, uint64_t index, struct txn_result *results, unsigned n)
{
    propose_deliver(&((struct server *)arg)->propose, index, results, n);
}

static void on_taking(void *arg)
{
    struct server *s = arg;
    sim.snapshots++;
    raft_set_snapshot_trailing(
        s->raft, guard_trailing(&s->guard, s->raft->commit_index, s->trailing, 1 << 20));
}

static bool on_may_take(void *arg)
{
    (void)arg;
    return true;
}

static const struct fsm_ops fsm_ops = {on_fatal, on_wanted, on_deliver, on_may_take, on_taking};

static void on_kick(void *arg)
{
    ((struct server *)arg)->kicked = true;
}

static void on_opened(struct raft_barrier *barrier, int status)
{
    (void)status;
    ((struct server *)barrier->data)->opening = false;
}

/* As node.c does it. */
static void look(struct server *s)
{
    struct raft *r = s->raft;
    if (r->state != s->state || r->current_term != s->term) {
        bool led = s->state == RAFT_LEADER;
        sim.elections += r->state == RAFT_LEADER;
        s->state = r->state;
        s->term = r->current_term;
        trace("server %u: %s in term %" PRIu64, s->i + 1,
            r->state == RAFT_LEADER      ? "leads"
            : r->state == RAFT_CANDIDATE ? "candidate"
                                         : "follows",
            s->term);
        reads_changed(&s->reads);
        if (led && r->state != RAFT_LEADER) {
            sim.deposed++;
            propose_lost(&s->propose);
        }
    }
    reads_changed(&s->reads);
    submit_changed(&s->submit);
    s->kicked = true;
}

static void on_changed(void *arg)
{
    look(arg);
}

static void on_work(void *arg, struct guard_job *job)
{
    struct server *s = arg;
    struct pending_job *p = malloc(sizeof *p);
    *p = (struct pending_job){.due = sim.fixture.time + rnd(200), .job = job};
    STAILQ_INSERT_TAIL(&s->jobs, p, link);
}

static int on_encode(void *arg, struct raft_buffer *out)
{
    return fsm_encode(&((struct server *)arg)->fsm, out);
}

static int on_prepare(void *arg, const struct raft_buffer *data)
{
    sim.installs++;
    return fsm_prepare(&((struct server *)arg)->fsm, data);
}

static bool on_room(void *arg, size_t bytes)
{
    (void)arg;
    (void)bytes;
    return true;
}

static const struct guard_ops guard_ops = {
    on_fatal, on_changed, on_work, on_encode, on_prepare, on_room, NULL};

static int on_may(void *arg, const uint8_t *txn, size_t n)
{
    struct server *s = arg;
    unsigned voters = 0, near = 0;
    (void)txn;
    (void)n;
    if (!reads_may_serve(&s->reads)) {
        return SYM_ENOQUORUM;
    }
    for (unsigned i = 0; i < s->raft->configuration.n; i++) {
        unsigned id = (unsigned)s->raft->configuration.servers[i].id - 1;
        if (s->raft->configuration.servers[i].role == RAFT_VOTER) {
            voters++;
            near += id == s->i || connected(s->i, id);
        }
    }
    /* The connection's end is seen at once, or not at all. */
    return near > voters / 2 || sim.seed % 2 == 0 ? 0 : SYM_ENOQUORUM;
}

static uint64_t on_revision(void *arg)
{
    return store_revision(((struct server *)arg)->store);
}

static int on_cost(
    void *arg, const uint8_t *txn, size_t n, uint64_t puts, uint64_t most, struct txn_cost *out)
{
    return store_txn_cost(((struct server *)arg)->store, txn, n, puts, most, out);
}

static const struct propose_ops propose_ops = {on_fatal, on_may, on_revision, on_cost, NULL};

static uint64_t on_now(void *arg)
{
    (void)arg;
    return sim.fixture.time;
}

static uint64_t on_leader(void *arg)
{
    struct server *s = arg;
    raft_id id;
    const char *address;
    if (s->raft->state == RAFT_LEADER) {
        return raft_transferee(s->raft) == 0 ? s->raft->id : 0;
    }
    raft_leader(s->raft, &id, &address);
    return id;
}

static void on_send(void *arg, uint64_t id, uint8_t kind, const void *data, size_t n)
{
    struct server *s = arg;
    unsigned to = (unsigned)id - 1;
    if (!connected(s->i, to) || chance(1)) {
        return;
    }
    struct frame *f = malloc(sizeof *f + n);
    *f = (struct frame){
        .due = sim.fixture.time + sim.latency[s->i], .from = s->i, .to = to, .kind = kind, .n = n};
    memcpy(f->data, data, n);
    STAILQ_INSERT_TAIL(&sim.frames, f, link);
}

static const struct submit_ops submit_ops = {on_now, on_leader, on_send, on_kick};
static const struct reads_ops reads_ops = {on_fatal, on_now, on_send, on_kick};

/* --- the clients --- */

static void on_txn(void *arg, int status, const struct txn_result *result)
{
    struct client_txn *t = arg;
    unsigned number = (unsigned)(t - sim.txns);
    if (status == SYM_ECANCELED) {
        return; /* the end of the run */
    }
    if (status == 0 && result->status == TXN_APPLIED) {
        t->outcome = ACKED;
        t->revision = result->revision;
        sim.acked++;
        if (result->revision > sim.acked_revision) {
            sim.acked_revision = result->revision;
        }
    } else if (status == 0 && result->status == TXN_CONFLICT) {
        fail("txn %u was applied twice: its key is there", number);
    } else if (status == SYM_ENOQUORUM) {
        t->outcome = REFUSED;
        sim.refused++;
    } else if (status == SYM_EUNKNOWN || status == 0) {
        sim.unknown++;
    } else {
        fail("txn %u: %s", number, err_name(status));
    }
}

static void new_txn(struct server *s)
{
    if (sim.n_txns == TXNS_MAX) {
        return;
    }
    struct client_txn *t = &sim.txns[sim.n_txns];
    static struct txn txn;
    struct buf bytes = {0};
    char key[32];
    static uint8_t value[2000];
    int n = snprintf(key, sizeof key, "k%u", sim.n_txns);
    memset(&txn, 0, sizeof txn);
    struct slice k = {(uint8_t *)key, (size_t)n};
    t->absent = chance(50);
    if (t->absent) {
        txn.n_cmps = 1;
        txn.cmps[0] = (struct txn_cmp){.kind = CMP_ABSENT, .key = k};
    }
    txn.n_ops = 2;
    txn.ops[0] = (struct txn_op){OP_PUT, k, {value, rnd(sizeof value)}};
    txn.ops[1] = (struct txn_op){OP_PUT, {(const uint8_t *)"last", 4}, k};
    if (txn_encode(&txn, &bytes) != 0) {
        fail("encoding: %s", err_msg());
    }
    sim.n_txns++;
    submit_txn(&s->submit, buf_data(&bytes), bytes.len, 500 + rnd(5000), on_txn, t);
    buf_free(&bytes);
}

static void on_read(void *arg, int status)
{
    struct client_read *r = arg;
    if (status == 0) {
        sim.reads_ok++;
        if (store_revision(r->server->store) < r->floor) {
            fail("server %u: a read sees revision %" PRIu64 ", but %" PRIu64
                 " was acknowledged before it began",
                r->server->i + 1, store_revision(r->server->store), r->floor);
        }
    } else {
        sim.reads_failed++;
    }
    free(r);
}

static void new_read(struct server *s)
{
    struct client_read *r = malloc(sizeof *r);
    *r = (struct client_read){s, sim.acked_revision};
    reads_begin(&s->reads, 200 + rnd(2000), on_read, r);
}

static void clients(void)
{
    unsigned burst = chance(10) ? 20 : 1;
    for (unsigned k = 0; k < burst; k++) {
        struct server *s = &sim.servers[rnd(sim.n)];
        if (!alive(s->i)) {
            continue;
        }
        if (chance(60)) {
            new_txn(s);
        } else {
            new_read(s);
        }
    }
}

/* --- what goes wrong --- */

static void set_link(unsigned a, unsigned b, bool cut)
{
    if (a == b || sim.cut[a][b] == cut) {
        return;
    }
    sim.cut[a][b] = cut;
    /* Alternately told to the sender and not. */
    if ((a + b + sim.seed) % 2 == 0) {
        if (cut) {
            raft_fixture_disconnect(&sim.fixture, a, b);
        } else {
            raft_fixture_reconnect(&sim.fixture, a, b);
        }
    } else if (alive(a) && alive(b)) {
        if (cut) {
            raft_fixture_saturate(&sim.fixture, a, b);
        } else {
            raft_fixture_desaturate(&sim.fixture, a, b);
        }
    } else {
        sim.cut[a][b] = !cut; /* the fixture cannot do it to one that is down */
    }
}

static void heal_links(void)
{
    for (unsigned a = 0; a < sim.n; a++) {
        for (unsigned b = 0; b < sim.n; b++) {
            set_link(a, b, false);
        }
    }
}

static unsigned n_alive(void)
{
    unsigned n = 0;
    for (unsigned i = 0; i < sim.n; i++) {
        n += alive(i);
    }
    return n;
}

static struct server *leader(void)
{
    struct server *best = NULL;
    for (unsigned i = 0; i < sim.n; i++) {
        struct server *s = &sim.servers[i];
        if (alive(i) && s->raft->state == RAFT_LEADER &&
            (best == NULL || s->raft->current_term > best->raft->current_term)) {
            best = s;
        }
    }
    return best;
}

static void on_change_done(struct raft_change *change, int status)
{
    struct server *s = change->data;
    s->changing = false;
    sim.changes += status == 0;
}

static void on_transferred(struct raft_transfer *transfer)
{
    struct server *s = transfer->data;
    s->transferring = false;
    sim.transfers++;
}

static bool term_is_open(const struct server *s)
{
    return guard_term_of(s->raft, s->raft->commit_index) == s->raft->current_term;
}

/* Between voter and standby; only with all the voters there (rule 12), which it may stop being so at any
 * moment. */
static void change_role(void)
{
    struct server *s = leader();
    if (s == NULL || s->changing || s->raft->configuration_uncommitted_index != 0 || !term_is_open(s) ||
        raft_transferee(s->raft) != 0 || s->raft->leader_state.promotee_id != 0 ||
        s->raft->legacy.change != NULL) {
        return;
    }
    struct raft_configuration *c = &s->raft->configuration;
    unsigned voters = 0;
    for (unsigned i = 0; i < c->n; i++) {
        voters += c->servers[i].role == RAFT_VOTER;
        if (c->servers[i].role == RAFT_VOTER && c->servers[i].id - 1 != s->i &&
            !connected(s->i, (unsigned)c->servers[i].id - 1)) {
            return;
        }
    }
    unsigned pick = (unsigned)rnd(c->n);
    struct raft_server *server = &c->servers[pick];
    int role = server->role == RAFT_VOTER ? RAFT_STANDBY : RAFT_VOTER;
    if (server->id == s->raft->id || (role == RAFT_STANDBY && voters <= (sim.seed % 3 == 0 ? 1 : 3))) {
        return;
    }
    trace("server %u: makes %llu a %s", s->i + 1, server->id, role == RAFT_VOTER ? "voter" : "standby");
    s->change.data = s;
    int rv = raft_assign(s->raft, &s->change, server->id, role, on_change_done);
    s->changing = rv == 0;
    if (rv != 0) {
        s->raft->legacy.change = NULL;
    }
}

static void hand_over(void)
{
    struct server *s = leader();
    if (s != NULL && !s->transferring && s->raft->transfer == NULL && raft_transferee(s->raft) == 0) {
        s->transfer.data = s;
        s->transferring = raft_transfer(s->raft, &s->transfer, 0, on_transferred) == 0;
        trace("server %u: hands over: %d", s->i + 1, s->transferring);
    }
}

static void pause_or_revive(void)
{
    unsigned i = (unsigned)rnd(sim.n);
    struct server *s = leader();
    if (chance(40) && s != NULL) {
        i = s->i;
    }
    if (!alive(i)) {
        trace("server %u: goes on", i + 1);
        raft_fixture_revive(&sim.fixture, i);
    } else if (n_alive() > sim.n_voters / 2 + 1) {
        /* The fixture marks links of one that is down itself; ours must all be whole for that. */
        heal_links();
        trace("server %u: stands still", i + 1);
        raft_fixture_kill(&sim.fixture, i);
    }
}

/* What failover.c does when a connection ends, whether the leader's process is gone or not. */
static void lose_connection(void)
{
    struct server *s = &sim.servers[rnd(sim.n)];
    struct raft *r = s->raft;
    if (alive(s->i) && r->state == RAFT_FOLLOWER && r->follower_state.current_leader.id != 0) {
        trace("server %u: forgets its leader", s->i + 1);
        guard_forget_leader(r);
        look(s);
        if (chance(50)) {
            r->election_timer_start = 0;
            guard_tick(&s->guard);
        }
    }
}

static void partition(void)
{
    if (n_alive() < sim.n) {
        return;
    }
    unsigned side = (unsigned)rnd(1u << sim.n);
    bool one_way = chance(25);
    trace("partition %x%s", side, one_way ? ", one way" : "");
    for (unsigned a = 0; a < sim.n; a++) {
        for (unsigned b = 0; b < sim.n; b++) {
            bool across = (side >> a & 1) != (side >> b & 1);
            set_link(a, b, across && (!one_way || (side >> a & 1) == 1));
        }
    }
}

static void nemesis(void)
{
    change_role();
    if (chance(30)) {
        lose_connection();
    }
    switch (rnd(8)) {
    case 0:
    case 1:
        partition();
        break;
    case 2:
        heal_links();
        break;
    case 3:
    case 4:
        pause_or_revive();
        break;
    case 5:
        hand_over();
        break;
    default: {
        unsigned i = (unsigned)rnd(sim.n);
        sim.latency[i] = 1 + (unsigned)rnd(chance(20) ? 300 : 30);
        raft_fixture_set_network_latency(&sim.fixture, i, sim.latency[i]);
        raft_fixture_set_randomized_election_timeout(&sim.fixture, i, 1000 + (unsigned)rnd(1000));
        break;
    }
    }
}

/* --- a run --- */

static void deliver_frames(void)
{
    struct frames later;
    STAILQ_INIT(&later);
    struct frame *f;
    while ((f = STAILQ_FIRST(&sim.frames)) != NULL) {
        STAILQ_REMOVE_HEAD(&sim.frames, link);
        if (f->due > sim.fixture.time) {
            STAILQ_INSERT_TAIL(&later, f, link);
            continue;
        }
        struct server *to = &sim.servers[f->to];
        if (connected(f->from, f->to)) {
            switch (f->kind) {
            case KIND_SUBMIT:
                submit_on_txns(&to->submit, f->from + 1, f->data, f->n);
                break;
            case KIND_RESULT:
                submit_on_results(&to->submit, f->from + 1, f->data, f->n);
                break;
            default:
                reads_on_frame(&to->reads, f->from + 1, f->kind, f->data, f->n);
                break;
            }
        }
        free(f);
    }
    STAILQ_CONCAT(&sim.frames, &later);
}

static void do_jobs(struct server *s, bool all)
{
    struct pending_job *p;
    while ((p = STAILQ_FIRST(&s->jobs)) != NULL && (all || p->due <= sim.fixture.time)) {
        STAILQ_REMOVE_HEAD(&s->jobs, link);
        p->job->run(p->job);
        p->job->done(p->job);
        free(p);
    }
}

static void open_term(struct server *s)
{
    if (s->raft->state != RAFT_LEADER || s->opening || raft_transferee(s->raft) != 0 ||
        guard_term_of(s->raft, raft_last_index(s->raft)) == s->raft->current_term) {
        return;
    }
    s->barrier.data = s;
    s->opening = raft_barrier(s->raft, &s->barrier, on_opened) == 0;
}

static void flush(struct server *s)
{
    look(s);
    if (sim.seed % 2 == 0) {
        guard_tell(&s->guard, guard_untold(&s->guard)); /* in the others the heartbeats have to do */
    }
    submit_flush(&s->submit);
    propose_flush(&s->propose);
    open_term(s);
    reads_flush(&s->reads);
    submit_flush(&s->submit);
    store_pump(s->store);
    s->kicked = false;
}

static void step(void)
{
    raft_fixture_step(&sim.fixture);
    uint64_t now = sim.fixture.time;
    deliver_frames();
    bool tick = now >= sim.next_tick;
    if (tick) {
        sim.next_tick = now + TICK_MS;
    }
    for (unsigned i = 0; i < sim.n; i++) {
        struct server *s = &sim.servers[i];
        do_jobs(s, false);
        if (!alive(i)) {
            continue;
        }
        if (tick) {
            submit_tick(&s->submit);
            reads_tick(&s->reads);
        }
        if (s->kicked || tick) {
            flush(s);
        }
    }
    if (now >= sim.next_client) {
        sim.next_client = now + 1 + rnd(60);
        clients();
    }
    if (!sim.healing && now >= sim.next_nemesis) {
        sim.next_nemesis = now + 100 + rnd(900);
        nemesis();
    }
}

static int no_truncate(struct raft_io *io, raft_index index)
{
    /* The fixture's own forgets that its entries do not begin at 1 once a snapshot was installed. It never
     * reads them again, so they may stay. */
    (void)io;
    (void)index;
    return 0;
}

static void open_server(unsigned i)
{
    struct server *s = &sim.servers[i];
    uint8_t origin[16];
    *s = (struct server){.sim = &sim, .i = i};
    STAILQ_INIT(&s->jobs);
    snprintf(s->dir, sizeof s->dir, "%s/%u", root, i);
    s->config = (struct store_config){.dir = s->dir, .quota = 32 << 20, .ring_bytes = 1 << 16};
    if (store_open(&s->config, &s->store) != 0) {
        fail("store: %s", err_msg());
    }
    s->trailing = 2 + (unsigned)rnd(30);
    s->threshold = 10 + (unsigned)rnd(60);
    /* raft_init, inside, takes the state machine's version and no more. */
    fsm_init(&s->fsm, NULL, s->store, &s->config, &fsm_ops, s);
    s->apply = s->fsm.base.apply;
    s->fsm.base.apply = sim_apply;
    if (raft_fixture_grow(&sim.fixture, &s->fsm.base) != 0) {
        fail("fixture");
    }
    s->raft = raft_fixture_get(&sim.fixture, i);
    s->fsm.raft = s->raft;
    s->raft->tracer = NULL;
    s->raft->io->truncate = no_truncate;
    raft_set_pre_vote(s->raft, true);
    raft_set_snapshot_threshold(s->raft, s->threshold);
    raft_set_snapshot_trailing(s->raft, s->trailing);
    raft_set_install_snapshot_timeout(s->raft, 1000);
    raft_set_max_inflight_entries(s->raft, 64);
    guard_wrap(&s->guard, s->raft, &guard_ops, s);
    propose_init(&s->propose, s->raft, &propose_ops, s);
    for (unsigned k = 0; k < sizeof origin; k++) {
        origin[k] = (uint8_t)rnd(256);
    }
    submit_init(&s->submit, &s->propose, i + 1, origin, &submit_ops, s);
    reads_init(&s->reads, s->raft, rnd((uint64_t)1 << 60), &reads_ops, s);
    sim.latency[i] = 15;
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path);
}

static void close_servers(void)
{
    for (unsigned i = 0; i < sim.n; i++) {
        struct server *s = &sim.servers[i];
        raft_set_snapshot_threshold(s->raft, 1000000000);
        s->propose.closing = true;
        do_jobs(s, true);
    }
    raft_fixture_close(&sim.fixture);
    for (unsigned i = 0; i < sim.n; i++) {
        struct server *s = &sim.servers[i];
        propose_close(&s->propose);
        submit_close(&s->submit);
        reads_close(&s->reads);
        guard_free(&s->guard);
        fsm_close(&s->fsm);
        store_close(s->store);
        nftw(s->dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    }
    struct frame *f;
    while ((f = STAILQ_FIRST(&sim.frames)) != NULL) {
        STAILQ_REMOVE_HEAD(&sim.frames, link);
        free(f);
    }
}

static bool settled(void)
{
    struct server *lead = leader();
    if (lead == NULL || !reads_may_serve(&lead->reads)) {
        return false;
    }
    for (unsigned i = 0; i < sim.n; i++) {
        struct server *s = &sim.servers[i];
        if (s->raft->last_applied != raft_last_index(lead->raft) ||
            s->raft->configuration_uncommitted_index != 0 ||
            s->raft->configuration_committed_index != lead->raft->configuration_committed_index ||
            s->submit.n_calls > 0 || s->reads.n > 0 || guard_snapshotting(&s->guard)) {
            return false;
        }
    }
    return true;
}

static void check_txns(void)
{
    struct store *store = sim.servers[0].store;
    for (unsigned i = 0; i < sim.n_txns; i++) {
        struct client_txn *t = &sim.txns[i];
        char key[32];
        struct kv kv;
        int n = snprintf(key, sizeof key, "k%u", i);
        int rv = store_get(store, key, (size_t)n, &kv);
        if (t->outcome == ACKED && rv != 0) {
            fail("txn %u was acknowledged and is lost", i);
        }
        if (t->outcome == ACKED && kv.mod_revision != t->revision) {
            fail("txn %u was acknowledged at revision %" PRIu64 " and is at %" PRIu64, i, t->revision,
                kv.mod_revision);
        }
        if (rv == 0 && kv.create_revision != kv.mod_revision) {
            fail("txn %u was applied twice", i);
        }
        if (t->outcome == REFUSED && rv == 0) {
            fail("txn %u was refused as surely not written, and is there", i);
        }
    }
}

static void check_equal(void)
{
    struct buf first = {0};
    for (unsigned i = 0; i < sim.n; i++) {
        struct snap *snap;
        struct buf bytes = {0};
        if (snap_begin(sim.servers[i].store, &snap) != 0 || snap_encode(snap, &bytes) != 0) {
            fail("snapshot: %s", err_msg());
        }
        snap_end(snap);
        if (i == 0) {
            first = bytes;
            continue;
        }
        if (bytes.len != first.len || memcmp(buf_data(&bytes), buf_data(&first), first.len) != 0) {
            fail("the stores of servers 1 and %u differ", i + 1);
        }
        buf_free(&bytes);
    }
    buf_free(&first);
}

static void run(uint64_t seed)
{
    memset(&sim, 0, sizeof sim);
    sim.seed = seed;
    sim.random = seed * 0x9e3779b97f4a7c15u | 1;
    for (unsigned i = 0; i < 8; i++) {
        rnd(2);
    }
    STAILQ_INIT(&sim.frames);
    sim.n = 3 + (unsigned)rnd(3);
    sim.n_voters = chance(30) ? 1 + (unsigned)rnd(2) : 3 + (unsigned)rnd(sim.n - 2);
    raft_fixture_init(&sim.fixture);
    for (unsigned i = 0; i < sim.n; i++) {
        open_server(i);
    }
    struct raft_configuration conf;
    raft_fixture_configuration(&sim.fixture, sim.n_voters, &conf);
    raft_fixture_bootstrap(&sim.fixture, &conf);
    raft_configuration_close(&conf);
    for (unsigned i = 0; i < sim.n; i++) {
        /* Constant: raft_uv never completes writes out of their order. */
        raft_fixture_set_disk_latency(&sim.fixture, i, 1 + (unsigned)rnd(40));
        raft_fixture_set_randomized_election_timeout(&sim.fixture, i, 1000 + (unsigned)rnd(1000));
    }
    raft_fixture_start(&sim.fixture);
    for (unsigned i = 0; i < sim.n; i++) {
        fsm_started(&sim.servers[i].fsm);
    }
    while (sim.fixture.time < DURATION_MS) {
        step();
    }
    trace("everything is healed");
    sim.healing = true;
    for (unsigned i = 0; i < sim.n; i++) {
        if (!alive(i)) {
            raft_fixture_revive(&sim.fixture, i);
        }
        sim.latency[i] = 5;
        raft_fixture_set_network_latency(&sim.fixture, i, 5);
        raft_fixture_set_randomized_election_timeout(&sim.fixture, i, 1000 + 200 * i);
    }
    heal_links();
    unsigned acked = sim.acked;
    while (sim.fixture.time < DURATION_MS + HEALED_MS && sim.acked < acked + 10) {
        step();
    }
    if (sim.acked < acked + 10) {
        fail("no writes any more, though everything is healed");
    }
    sim.next_client = (uint64_t)-1;
    while (sim.fixture.time < DURATION_MS + 2 * HEALED_MS && !settled()) {
        step();
    }
    if (!settled()) {
        fail("the servers do not come to the same state, though everything is healed");
    }
    check_txns();
    check_equal();
    close_servers();
}

int main(int argc, char **argv)
{
    uint64_t seeds = SEEDS, first = 1;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--seeds") == 0 && i + 1 < argc) {
            seeds = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) {
            first = strtoull(argv[++i], NULL, 10);
            seeds = 1;
        } else if (strcmp(argv[i], "--first") == 0 && i + 1 < argc) {
            first = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--without") == 0 && i + 1 < argc) {
            guard_rules_off |= 1u << strtoul(argv[++i], NULL, 10); /* to see that it is missed */
        } else if (strcmp(argv[i], "--verbose") == 0) {
            verbose = true;
        } else {
            fprintf(stderr,
                "usage: test_raft_sim [--seeds N] [--first S] [--seed S] [--without RULE] [--verbose]\n");
            return 2;
        }
    }
    log_setup(LOG_ERROR, false);
    const char *tmp = access("/dev/shm", W_OK) == 0 ? "/dev/shm"
                      : getenv("TMPDIR") != NULL    ? getenv("TMPDIR")
                                                    : "/tmp";
    snprintf(root, sizeof root, "%s/sym-sim-XXXXXX", tmp);
    if (mkdtemp(root) == NULL) {
        perror(root);
        return 1;
    }
    struct sim sum = {0};
    for (uint64_t seed = first; seed < first + seeds; seed++) {
        run(seed);
        sum.acked += sim.acked;
        sum.refused += sim.refused;
        sum.unknown += sim.unknown;
        sum.reads_ok += sim.reads_ok;
        sum.reads_failed += sim.reads_failed;
        sum.snapshots += sim.snapshots;
        sum.installs += sim.installs;
        sum.transfers += sim.transfers;
        sum.changes += sim.changes;
        sum.elections += sim.elections;
        sum.deposed += sim.deposed;
    }
    rmdir(root);
    printf("%" PRIu64 " runs: %u txns acknowledged, %u refused, %u unknown; %u reads, %u without a quorum; "
           "%u terms led, %u "
           "leaders deposed, %u handed over, %u changes of roles, %u snapshots taken, %u installed\n",
        seeds, sum.acked, sum.refused, sum.unknown, sum.reads_ok, sum.reads_failed, sum.elections,
        sum.deposed, sum.transfers, sum.changes, sum.snapshots, sum.installs);
    return 0;
}
