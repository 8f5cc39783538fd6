/* The gossip protocol core in simulated time: ten to ten thousand nodes, a network that delays, loses and parts,
 * nodes that crash, stall, restart, flap and leave. Each run is made by its seed alone.
 *
 *     test_gossip_sim [--nodes N]... [--loss PERCENT]... [--scenario NAME]... [--seeds N] [--first SEED]
 *                     [--jobs N] [--settings default|memberlist|swim] [--period MS] [--timeout MS] [--alpha A]
 *                     [--no-lifeguard] [--reliable] [--verbose]
 *     test_gossip_sim --large [--first SEED] [--jobs N]
 *
 * Scenarios: steady, crash, slow, partition (halves), alone (one node is cut off), restart, flap, leave. Without options
 * all of them in sizes that take half a minute; --large: ten thousand nodes that are steady and crash, with 30 % of
 * loss only where there is a reliable channel (--reliable), as the daemon has. Checked: every crash is found by every
 * healthy node within a bound; with at most 5 % of loss no healthy node is declared dead, also not when a partition has
 * healed; after a partition, a restart of all and flapping all views are the same again; traffic of a node does not grow
 * with their number; and nobody's claim is deferred. Printed: detection times, false positives and traffic, beside what
 * the papers say of the same settings (see papers()).
 *
 * All runs of one size and seed begin with copies of one cluster in which everybody knows all, each in a process of its
 * own, N of them at a time. Ten thousand nodes take 4.3 GB, and as much again for each run that goes on just then; a
 * single run of them has no copy.
 */
#include "base/err.h"
#include "gossip/swim_claim.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    WHEEL = 16384, /* ms; nothing is planned further ahead */
    SIG_LEN = 71,  /* what an ECDSA signature takes, mostly */
    META_LEN = 24,
    OVERHEAD = 54 + 28,     /* envelope (seal.h), UDP and IPv4 */
    EXCHANGE_GAP_MS = 2000, /* and a ms for each member that has to be told */
    LISTS_MAX = 16,
    LARGE = 2000,    /* from here on what is done again and again is done less often */
    PLAIN_MAX = 300, /* SWIM alone, to compare, up to here: it drowns in suspicions */
};

enum kind { TICK, DATAGRAM, EXCHANGE, PROBED };

struct event {
    struct event *next;
    enum kind kind;
    uint32_t to, from, life; /* of @to */
    uint64_t due;
    size_t n;
    uint8_t data[];
};

struct node {
    struct sim *sim;
    uint32_t i, life, side;
    struct swim *swim;
    bool up;
    uint64_t tick_at, blocked_until, exchange_from, incarnation;
    uint64_t sent, bytes;
};

/* What the views of others say of one node that has something happen to it. */
struct watch {
    bool on;
    uint64_t since, first_suspect, first_dead, last_dead;
    uint32_t found;
    uint64_t *times; /* of each observer: when it saw it dead, 0: not */
};

struct sim {
    uint64_t seed, now, random;
    uint32_t n;
    double loss;
    struct node *nodes;
    struct {
        struct event *head, **tail;
    } wheel[WHEEL];
    struct watch watch;
    uint64_t false_dead, false_dead_healthy; /* events; those seen by a node that is not slow */
    uint64_t false_suspected, exchanges;
    uint32_t *healthy; /* 0: slow, down or cut off just now */
    uint64_t *truth;   /* incarnations, when they were last looked at */
    uint64_t deferred; /* claims, of nodes that have stopped */
    bool verbose, exchange, without_lifeguard;
};

static struct options {
    uint32_t nodes[LISTS_MAX], n_nodes, losses[LISTS_MAX], n_losses;
    const char *scenarios[LISTS_MAX];
    uint32_t n_scenarios, seeds, jobs;
    uint64_t first;
    struct swim_config config;
    const char *settings;
    bool verbose, silent, large;
} options = {.seeds = 1, .jobs = 1, .first = 1, .settings = "default"};

static unsigned passed;

static void fail(const struct sim *sim, const char *fmt, ...) __attribute__((format(printf, 2, 3), noreturn));
static void fail(const struct sim *sim, const char *fmt, ...)
{
    va_list args;
    fflush(stdout);
    fprintf(stderr, "\n%u nodes, %.0f %% loss, seed %" PRIu64 ", at %" PRIu64 " ms: ", sim->n,
        100 * sim->loss, sim->seed, sim->now);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fprintf(stderr, "\n");
    exit(1);
}

/* A line of the table; of runs with further seeds only that they hold matters. */
static void report(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void report(const char *fmt, ...)
{
    va_list args;
    if (!options.silent) {
        va_start(args, fmt);
        vprintf(fmt, args);
        va_end(args);
    }
}

static uint64_t next_random(struct sim *sim)
{
    uint64_t z = sim->random += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static uint32_t below(struct sim *sim, uint32_t n)
{
    return (uint32_t)((next_random(sim) >> 32) * n >> 32);
}

static bool happens(struct sim *sim, double p)
{
    return (double)(next_random(sim) >> 11) * 0x1p-53 < p;
}

/* ---- claims: one for all nodes, or a hundred million of them would not fit into memory. In place of swim_claim.c,
 * which is then not linked. ---- */

struct shared {
    struct shared *next;
    uint32_t refs;
    struct claim claim;
};
static struct shared *shared[1 << 16];

static uint32_t place_of(const struct swim_id *id)
{
    uint32_t i;
    memcpy(&i, id->b, sizeof i);
    return i & 0xffff; /* those of neighbours are neighbours, and of one there are few */
}

struct claim *claim_new(const struct claim_view *v)
{
    struct shared **head = &shared[place_of(&v->id)];
    for (struct shared *s = *head; s != NULL; s = s->next) {
        /* A signature here is eight bytes that depend on all that is signed. */
        if (s->claim.incarnation == v->incarnation && swim_id_eq(&s->claim.id, &v->id) &&
            memcmp(s->claim.tail + s->claim.meta_len, v->sig, sizeof(uint64_t)) == 0) {
            s->refs++;
            return &s->claim;
        }
    }
    struct shared *s = malloc(sizeof *s + v->meta_len + v->sig_len);
    if (s == NULL) {
        abort();
    }
    s->refs = 1;
    s->claim = (struct claim){.left = v->left,
        .meta_len = v->meta_len,
        .sig_len = v->sig_len,
        .id = v->id,
        .incarnation = v->incarnation,
        .addr = v->addr};
    memcpy(s->claim.tail, v->meta, v->meta_len);
    memcpy(s->claim.tail + v->meta_len, v->sig, v->sig_len);
    s->next = *head;
    *head = s;
    return &s->claim;
}

void claim_free(struct claim *c)
{
    if (c == NULL) {
        return;
    }
    struct shared **at = &shared[place_of(&c->id)];
    while (&(*at)->claim != c) {
        at = &(*at)->next;
    }
    struct shared *s = *at;
    if (--s->refs == 0) {
        *at = s->next;
        free(s);
    }
}

/* ---- the world ---- */

static struct swim_id id_of(uint32_t i)
{
    struct swim_id id = {{0}};
    memcpy(id.b, &i, sizeof i);
    return id;
}

static uint32_t index_of(const struct swim_id *id)
{
    uint32_t i;
    memcpy(&i, id->b, sizeof i);
    return i;
}

static struct swim_addr addr_of(uint32_t i)
{
    return (struct swim_addr){
        .family = 4, .port = 37065, .ip = {10, (uint8_t)(i >> 16), (uint8_t)(i >> 8), (uint8_t)i}};
}

static void plan(struct sim *sim, struct event *e, uint64_t due)
{
    e->due = due;
    e->next = NULL;
    *sim->wheel[due % WHEEL].tail = e;
    sim->wheel[due % WHEEL].tail = &e->next;
}

static struct event *event_new(enum kind kind, const struct node *to, uint32_t from, size_t n)
{
    struct event *e = malloc(sizeof *e + n);
    if (e == NULL) {
        abort();
    }
    e->kind = kind;
    e->to = to->i;
    e->life = to->life;
    e->from = from;
    e->n = n;
    return e;
}

static void plan_tick(struct node *node)
{
    uint64_t at = swim_next(node->swim);
    at = at < node->sim->now + 1 ? node->sim->now + 1 : at;
    at = at > node->sim->now + WHEEL - 1 ? node->sim->now + WHEEL - 1 : at;
    if (at < node->tick_at) {
        node->tick_at = at;
        plan(node->sim, event_new(TICK, node, 0, 0), at);
    }
}

static bool connected(const struct sim *sim, uint32_t a, uint32_t b)
{
    return sim->nodes[a].up && sim->nodes[b].up && sim->nodes[a].side == sim->nodes[b].side;
}

static void on_send(
    void *arg, const struct swim_id *to, const struct swim_addr *addr, const void *data, size_t n)
{
    struct node *node = arg;
    struct sim *sim = node->sim;
    uint32_t i = (uint32_t)addr->ip[1] << 16 | (uint32_t)addr->ip[2] << 8 | addr->ip[3];
    if (n > SWIM_DATAGRAM_MAX || i >= sim->n || (to != NULL && index_of(to) != i)) {
        fail(sim, "node %u sends %zu bytes to %u", node->i, n, i);
    }
    node->sent++;
    node->bytes += n + OVERHEAD;
    if (!connected(sim, node->i, i) || happens(sim, sim->loss)) {
        return;
    }
    struct event *e = event_new(DATAGRAM, &sim->nodes[i], node->i, n);
    memcpy(e->data, data, n);
    plan(sim, e, sim->now + 1 + below(sim, 3));
}

static bool on_known(void *arg, const struct swim_id *id)
{
    const struct node *node = arg;
    return index_of(id) < node->sim->n;
}

static void sign(const struct swim_id *id, const void *text, size_t n, uint8_t sig[SIG_LEN])
{
    uint64_t h = 0xcbf29ce484222325 ^ index_of(id), word;
    const uint8_t *p = text;
    for (; n >= sizeof word; n -= sizeof word, p += sizeof word) {
        memcpy(&word, p, sizeof word);
        h = (h ^ word) * 0x9e3779b97f4a7c15;
        h ^= h >> 29;
    }
    for (; n > 0; n--, p++) {
        h = (h ^ *p) * 0x100000001b3;
    }
    memset(sig, 0x51, SIG_LEN);
    memcpy(sig, &h, sizeof h);
}

static bool on_verify(
    void *arg, const struct swim_id *id, const void *text, size_t n, const void *sig, size_t sig_len)
{
    uint8_t right[SIG_LEN];
    (void)arg;
    sign(id, text, n, right);
    return sig_len == SIG_LEN && memcmp(sig, right, SIG_LEN) == 0;
}

static int on_sign(void *arg, const void *text, size_t n, void *sig, size_t *sig_len)
{
    const struct node *node = arg;
    struct swim_id id = id_of(node->i);
    sign(&id, text, n, sig);
    *sig_len = SIG_LEN;
    return 0;
}

static void want_exchange(struct node *node, uint32_t with)
{
    struct sim *sim = node->sim;
    if (sim->exchange && sim->now >= node->exchange_from) {
        node->exchange_from = sim->now + EXCHANGE_GAP_MS + sim->n;
        plan(sim, event_new(EXCHANGE, node, with, 0), sim->now + 5);
    }
}

/* Over the reliable channel: slower, and nothing is lost. @from is the ticket. */
static bool on_probe(void *arg, const struct swim_member *m, uint32_t ticket)
{
    struct node *node = arg;
    struct sim *sim = node->sim;
    if (connected(sim, node->i, index_of(&m->id))) {
        plan(sim, event_new(PROBED, node, ticket, 0), sim->now + 10 + below(sim, 20));
    }
    return true;
}

static const char *const event_names[] = {"joined", "suspected", "refuted", "died", "returned", "differs",
    "departed", "updated", "forgotten", "accused", "double"};

static void on_event(void *arg, enum swim_event what, const struct swim_member *m)
{
    struct node *node = arg;
    struct sim *sim = node->sim;
    struct watch *w = &sim->watch;
    uint32_t of = index_of(&m->id);
    if (sim->verbose) {
        printf("%8" PRIu64 " %u: %u %s\n", sim->now, node->i, of, event_names[what]);
    }
    bool fine = connected(sim, node->i, of);
    if (what == SWIM_SUSPECTED) {
        sim->false_suspected += fine && sim->healthy[of] ? 1 : 0;
        if (w->on && !sim->nodes[of].up && w->first_suspect == 0) {
            w->first_suspect = sim->now;
        }
    } else if (what == SWIM_DIED && fine && sim->healthy[of]) {
        sim->false_dead++;
        sim->false_dead_healthy += sim->healthy[node->i];
    } else if (what == SWIM_DIED && w->on && !sim->nodes[of].up && w->times[node->i] == 0) {
        w->times[node->i] = sim->now;
        w->first_dead = w->found++ == 0 ? sim->now : w->first_dead;
        w->last_dead = sim->now;
    } else if (what == SWIM_RETURNED || what == SWIM_DIFFERS) {
        want_exchange(node, of);
    } else if (what == SWIM_DOUBLE && m->incarnation >= node->incarnation + 1000000) {
        fail(sim, "node %u sees a double of %u", node->i, of);
    }
}

static struct swim_ops ops = {
    .send = on_send, .known = on_known, .verify = on_verify, .sign = on_sign, .event = on_event};

static void start(struct node *node)
{
    struct sim *sim = node->sim;
    uint8_t meta[META_LEN];
    memset(meta, (int)node->i, sizeof meta);
    struct swim_config c = options.config;
    c.id = id_of(node->i);
    c.addr = addr_of(node->i);
    c.meta = meta;
    c.meta_len = sizeof meta;
    c.cluster = "simulated";
    c.cluster_len = 9;
    c.incarnation = node->incarnation = sim->now + 1;
    c.seed = next_random(sim);
    c.max_members = sim->n; /* tables are then as large as what is in them, ten thousand times */
    if (swim_open(&c, &ops, node, sim->now, &node->swim) != 0) {
        fail(sim, "open: %s", err_msg());
    }
    node->up = true;
    node->life++;
    node->tick_at = UINT64_MAX;
    sim->healthy[node->i] = 1;
    plan_tick(node);
}

static void stop(struct node *node)
{
    node->sim->deferred += swim_stats(node->swim)->claims_deferred;
    swim_close(node->swim);
    node->swim = NULL;
    node->up = false;
    node->life++;
    node->sim->healthy[node->i] = 0;
}

/* @from tells @n nodes from @to on all that it knows: one of them after the other, so that its table stays at hand. */
static void pass_to_all(struct sim *sim, struct node *from, struct node *to, uint32_t n)
{
    struct buf pieces = {0};
    struct swim_id id = id_of(from->i);
    size_t *ends = calloc(sim->n + 1, sizeof *ends), n_pieces = 0;
    uint32_t cursor = 0;
    do {
        if (ends == NULL || swim_export(from->swim, &cursor, SWIM_PIECE_MAX, &pieces) != 0) {
            fail(sim, "export: %s", err_msg());
        }
        ends[++n_pieces] = pieces.len;
    } while (cursor != 0);
    for (uint32_t i = 0; i < n; i++) {
        for (size_t k = 0; k < n_pieces; k++) {
            if (swim_merge(to[i].swim, sim->now, &id, buf_data(&pieces) + ends[k], ends[k + 1] - ends[k]) !=
                0) {
                fail(sim, "merge: %s", err_msg());
            }
        }
        plan_tick(&to[i]);
    }
    buf_free(&pieces);
    free(ends);
}

/* One way of a full exchange. */
static void pass(struct sim *sim, struct node *from, struct node *to)
{
    struct buf piece = {0};
    struct swim_id id = id_of(from->i);
    uint32_t cursor = 0;
    do {
        buf_clear(&piece);
        if (swim_export(from->swim, &cursor, SWIM_PIECE_MAX, &piece) != 0 ||
            swim_merge(to->swim, sim->now, &id, buf_data(&piece), piece.len) != 0) {
            fail(sim, "exchange: %s", err_msg());
        }
    } while (cursor != 0);
    buf_free(&piece);
    plan_tick(to);
}

static void exchange(struct sim *sim, struct node *node, uint32_t with)
{
    if (connected(sim, node->i, with)) {
        sim->exchanges++;
        pass(sim, node, &sim->nodes[with]);
        pass(sim, &sim->nodes[with], node);
    }
}

static void handle(struct sim *sim, struct event *e)
{
    struct node *node = &sim->nodes[e->to];
    if (!node->up || node->life != e->life || (e->kind == TICK && node->tick_at != e->due)) {
        free(e);
        return;
    }
    if (node->blocked_until > sim->now) {
        if (e->kind == TICK) {
            node->tick_at = node->blocked_until;
        }
        plan(sim, e, node->blocked_until);
        return;
    }
    switch (e->kind) {
    case TICK:
        node->tick_at = UINT64_MAX;
        swim_tick(node->swim, sim->now);
        break;
    case DATAGRAM: {
        struct swim_id from = id_of(e->from);
        struct swim_addr addr = addr_of(e->from);
        swim_receive(node->swim, sim->now, &from, &addr, e->data, e->n);
        break;
    }
    case EXCHANGE:
        exchange(sim, node, e->from);
        break;
    case PROBED:
        swim_probe_done(node->swim, sim->now, e->from, true);
        break;
    }
    free(e);
    plan_tick(node);
}

static void run(struct sim *sim, uint64_t ms)
{
    for (uint64_t until = sim->now + ms; sim->now < until; sim->now++) {
        struct event **head = &sim->wheel[sim->now % WHEEL].head;
        while (*head != NULL) {
            struct event *e = *head;
            *head = e->next;
            if (*head == NULL) {
                sim->wheel[sim->now % WHEEL].tail = head;
            }
            handle(sim, e);
        }
    }
}

/* All nodes, who know each other, after the first news have died away. */
static struct sim *prepare(uint32_t n, uint64_t seed)
{
    struct sim *sim = calloc(1, sizeof *sim);
    if (sim == NULL) {
        abort();
    }
    *sim = (struct sim){.without_lifeguard = options.config.without_lifeguard,
        .seed = seed,
        .random = seed,
        .n = n,
        .now = 1000};
    sim->nodes = calloc(n, sizeof *sim->nodes);
    sim->healthy = calloc(n, sizeof *sim->healthy);
    sim->watch.times = calloc(n, sizeof *sim->watch.times);
    sim->truth = calloc(n, sizeof *sim->truth);
    if (sim->nodes == NULL || sim->healthy == NULL || sim->truth == NULL || sim->watch.times == NULL) {
        abort();
    }
    for (unsigned i = 0; i < WHEEL; i++) {
        sim->wheel[i].tail = &sim->wheel[i].head;
    }
    for (uint32_t i = 0; i < n; i++) {
        sim->nodes[i] = (struct node){.sim = sim, .i = i};
        start(&sim->nodes[i]);
    }
    for (uint32_t i = 1; i < n; i++) {
        pass(sim, &sim->nodes[i], &sim->nodes[0]);
    }
    pass_to_all(sim, &sim->nodes[0], &sim->nodes[1], n - 1);
    /* Everybody has all as news to tell: it takes a while until that is over. */
    sim->exchange = true;
    for (unsigned quiet = 0, waited = 0; quiet < 2; waited++) {
        uint64_t before = 0, after = 0;
        for (uint32_t i = 0; i < n; i++) {
            before += swim_stats(sim->nodes[i].swim)->news_sent;
        }
        run(sim, 1000);
        for (uint32_t i = 0; i < n; i++) {
            after += swim_stats(sim->nodes[i].swim)->news_sent;
        }
        quiet = before == after ? quiet + 1 : 0;
        if (waited > 2000) {
            fail(sim, "the news never end");
        }
    }
    return sim;
}

/* The one that is waiting, or a new one. */
static struct sim *prepared;
static struct sim *sim_new(uint32_t n, double loss, uint64_t seed)
{
    bool fits = prepared != NULL && prepared->n == n && prepared->seed == seed &&
                prepared->without_lifeguard == options.config.without_lifeguard;
    struct sim *sim = fits ? prepared : prepare(n, seed);
    prepared = fits ? NULL : prepared;
    sim->loss = loss;
    sim->verbose = options.verbose;
    run(sim, 5000);
    sim->false_dead = sim->false_dead_healthy = sim->false_suspected = sim->exchanges = 0;
    return sim;
}

static void sim_free(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->n; i++) {
        sim->deferred += sim->nodes[i].up ? swim_stats(sim->nodes[i].swim)->claims_deferred : 0;
    }
    /* All are honest: nobody's word may have had to wait. */
    if (sim->deferred > 0) {
        fail(sim, "%" PRIu64 " claims were taken for too many", sim->deferred);
    }
    if (sim->n > LARGE) {
        return; /* the process ends soon: what it shares with its parent need not become its own for that */
    }
    for (uint32_t i = 0; i < sim->n; i++) {
        swim_close(sim->nodes[i].swim);
    }
    for (unsigned i = 0; i < WHEEL; i++) {
        for (struct event *e = sim->wheel[i].head, *next; e != NULL; e = next) {
            next = e->next;
            free(e);
        }
    }
    free(sim->watch.times);
    free(sim->healthy);
    free(sim->truth);
    free(sim->nodes);
    free(sim);
}

/* ---- what is looked at ---- */

static double settings_period(void)
{
    return options.config.period_ms == 0 ? 300 : options.config.period_ms;
}

static double suspicion_min(uint32_t n)
{
    double alpha = options.config.suspicion_alpha == 0 ? 4 : options.config.suspicion_alpha;
    return alpha * (n > 10 ? log10(n) : 1) * settings_period();
}

/* By then everybody has to have found a crash: some periods until somebody probes it (SWIM 3.1), the suspicion, which
 * with few losses is the shortest, and the spreading of the news (SWIM 4.1). */
static double detection_bound(uint32_t n, double loss)
{
    double beta = options.config.suspicion_beta == 0 ? 6 : options.config.suspicion_beta;
    return settings_period() * (8 + 3 * log2(n)) * (loss > 0.1 ? 2 : 1) +
           suspicion_min(n) * (loss > 0.1 || n < 6 ? beta : 2);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* How many members @by does not see as they are: alive if they are up, and that with their last claim where it is to be
 * @exact; else gone or never known. */
static uint32_t wrong_of(const struct sim *sim, bool exact, uint32_t by, uint32_t *one)
{
    struct swim_member view;
    uint32_t cursor = 0, right = 0, up = 0, wrong = 0;
    if (!sim->nodes[by].up) {
        return 0;
    }
    while (swim_each(sim->nodes[by].swim, &cursor, &view)) {
        uint32_t of = index_of(&view.id);
        bool gone = view.state == SWIM_DEAD || view.state == SWIM_LEFT;
        bool there = view.state == SWIM_ALIVE && (!exact || view.incarnation == sim->truth[of]);
        if (of == by) {
            right++;
        } else if (sim->nodes[of].up ? !there : !gone) {
            wrong++;
            *one = of;
        } else {
            right += sim->nodes[of].up ? 1 : 0;
        }
    }
    for (uint32_t i = 0; i < sim->n; i++) {
        up += sim->nodes[i].up ? 1 : 0;
    }
    *one = wrong == 0 ? by : *one;
    return up > right ? (up - right > wrong ? up - right : wrong) : wrong;
}

static void look_at_truth(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->n; i++) {
        struct swim_id id = id_of(i);
        struct swim_member self;
        if (sim->nodes[i].up && swim_get(sim->nodes[i].swim, &id, &self)) {
            sim->truth[i] = self.incarnation;
        }
    }
}

/* Runs until all views are right, @exact or not, and returns how long that took. */
static uint64_t converge(struct sim *sim, bool exact, uint64_t bound, const char *what)
{
    uint64_t began = sim->now, all = (uint64_t)sim->n * sim->n;
    /* With much loss somebody is always suspected just now. */
    uint64_t excused = sim->loss > 0.1 ? all / 10 : 0, wrong = 0;
    uint32_t i = 0, of = 0;
    look_at_truth(sim);
    while (i < sim->n) {
        uint32_t missing = wrong_of(sim, exact, i, &of);
        wrong += missing;
        if (wrong <= excused) {
            i++;
            continue;
        }
        if (sim->now - began > bound) {
            fail(sim, "%s: after %" PRIu64 " ms node %u is still wrong about %u, one of them node %u", what,
                sim->now - began, i, missing, of);
        }
        run(sim, 100);
        look_at_truth(sim);
        /* Once it was right it mostly stays so: only the last look is at all. */
        wrong = 0;
        i = excused > 0 || wrong_of(sim, exact, i, &of) == 0 ? 0 : i;
    }
    return sim->now - began;
}

static void traffic_reset(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->n; i++) {
        sim->nodes[i].sent = sim->nodes[i].bytes = 0;
    }
}

/* What one node sent in a second, on the average. */
static void traffic(const struct sim *sim, uint64_t ms, double *messages, double *bytes)
{
    uint64_t m = 0, b = 0;
    for (uint32_t i = 0; i < sim->n; i++) {
        m += sim->nodes[i].sent;
        b += sim->nodes[i].bytes;
    }
    *messages = (double)m * 1000 / (double)ms / sim->n;
    *bytes = (double)b * 1000 / (double)ms / sim->n;
}

/* ---- scenarios ---- */

struct outcome {
    uint64_t first_suspect, first, median, all; /* ms after the crash; medians of those of all crashes */
    uint64_t worst_all;
    double messages, bytes;
};

static void no_false_deaths(const struct sim *sim, const char *what)
{
    if (sim->loss <= 0.05 && !options.config.without_lifeguard && sim->false_dead > 0) {
        fail(sim, "%s: healthy nodes were declared dead %" PRIu64 " times", what, sim->false_dead);
    }
}

static void steady(uint32_t n, double loss, uint64_t seed, uint64_t ms)
{
    struct sim *sim = sim_new(n, loss, seed);
    double messages, bytes;
    traffic_reset(sim);
    run(sim, ms);
    traffic(sim, ms, &messages, &bytes);
    no_false_deaths(sim, "steady");
    report("%6u %4.0f%%  steady     %5.1f messages/s, %6.0f bytes/s a node; false: %" PRIu64
           " suspicions, %" PRIu64 " deaths in %.0f s\n",
        n, 100 * loss, messages, bytes, sim->false_suspected, sim->false_dead, (double)ms / 1000);
    /* A period has a probe and, on the average, an answer. */
    double without_news = 2 * 1000 / settings_period() * (23 + OVERHEAD);
    if (loss == 0 && (bytes < without_news * 0.9 || bytes > without_news * 1.1)) {
        fail(sim, "steady: %.0f bytes a second instead of %.0f, whatever the size", bytes, without_news);
    }
    /* With some losses helpers are asked, but that must not become suspicions of which all talk all the time. */
    if (loss > 0 && loss <= 0.05 && !options.config.without_lifeguard && bytes > 2 * without_news) {
        fail(sim, "steady: %.0f bytes a second, more than twice those without losses", bytes);
    }
    sim_free(sim);
}

enum { CRASHES = 9, CRASHES_OF_LARGE = 4 };

static uint64_t median_of(uint64_t *v, uint32_t n)
{
    qsort(v, n, sizeof *v, by_value);
    return n == 0 ? 0 : v[n / 2];
}

static void crash_one(struct sim *sim, struct outcome *o)
{
    struct watch *w = &sim->watch;
    uint32_t victim;
    do {
        victim = below(sim, sim->n);
    } while (!sim->nodes[victim].up);
    run(sim, below(sim, 1000));
    uint32_t up = 0;
    for (uint32_t i = 0; i < sim->n; i++) {
        up += sim->nodes[i].up && i != victim;
    }
    memset(w->times, 0, sim->n * sizeof *w->times);
    *w = (struct watch){.on = true, .since = sim->now, .times = w->times};
    stop(&sim->nodes[victim]);
    double bound = detection_bound(sim->n, sim->loss);
    while (w->found < up && (double)(sim->now - w->since) <= bound) {
        run(sim, 10);
    }
    if (w->found < up) {
        fail(sim, "crash of %u: after %.0f ms only %u of %u have found it", victim, bound, w->found, up);
    }
    uint64_t *times = calloc((size_t)sim->n + 1, sizeof *times);
    uint32_t k = 0;
    if (times == NULL) {
        abort();
    }
    for (uint32_t i = 0; i < sim->n && k < up; i++) {
        if (w->times[i] != 0) {
            times[k++] = w->times[i] - w->since;
        }
    }
    *o = (struct outcome){.first_suspect = w->first_suspect - w->since,
        .first = w->first_dead - w->since,
        .median = median_of(times, k),
        .all = w->last_dead - w->since};
    free(times);
    w->on = false;
}

static void crash(uint32_t n, double loss, uint64_t seed)
{
    struct sim *sim = sim_new(n, loss, seed);
    uint32_t crashes = n < 3 * CRASHES ? n / 3 : n > LARGE ? CRASHES_OF_LARGE : CRASHES;
    uint64_t suspect[CRASHES], first[CRASHES], median[CRASHES], all[CRASHES];
    double messages, bytes;
    uint64_t began = sim->now;
    traffic_reset(sim);
    for (uint32_t i = 0; i < crashes; i++) {
        struct outcome o;
        crash_one(sim, &o);
        suspect[i] = o.first_suspect;
        first[i] = o.first;
        median[i] = o.median;
        all[i] = o.all;
        run(sim, 3000);
    }
    traffic(sim, sim->now - began, &messages, &bytes);
    no_false_deaths(sim, "crash");
    uint64_t median_all = median_of(all, crashes);
    report("%6u %4.0f%%  crash      suspected %" PRIu64 ", dead for the first %" PRIu64 ", half %" PRIu64
           ", all %" PRIu64 " ms (worst of %u: %" PRIu64 "); false deaths %" PRIu64
           "; %.1f messages/s, %.0f bytes/s\n",
        n, 100 * loss, median_of(suspect, crashes), median_of(first, crashes), median_of(median, crashes),
        median_all, crashes, all[crashes - 1], sim->false_dead, messages, bytes);
    sim_free(sim);
}

/* Some nodes do nothing for a while, again and again, as in Lifeguard V: 100 nodes there, too. */
static void slow(uint32_t n, double loss, uint64_t seed)
{
    uint32_t ill = n / 10 > 0 ? n / 10 : 1;
    uint64_t dead[2] = {0}, healthy[2] = {0}, suspected[2] = {0};
    double messages[2], bytes[2];
    unsigned rounds = n > LARGE ? 3 : 12;
    for (unsigned plain = 0; plain < (n > PLAIN_MAX ? 1 : 2); plain++) {
        bool was = options.config.without_lifeguard;
        options.config.without_lifeguard = was || plain == 1;
        struct sim *sim = sim_new(n, loss, seed);
        for (uint32_t i = 0; i < ill; i++) {
            sim->healthy[i] = 0;
        }
        uint64_t began = sim->now;
        traffic_reset(sim);
        for (unsigned round = 0; round < rounds; round++) {
            for (uint32_t i = 0; i < ill; i++) {
                sim->nodes[i].blocked_until = sim->now + 2000 + below(sim, 6000);
            }
            run(sim, 8000 + below(sim, 1500));
        }
        traffic(sim, sim->now - began, &messages[plain], &bytes[plain]);
        dead[plain] = sim->false_dead;
        healthy[plain] = sim->false_dead_healthy;
        suspected[plain] = sim->false_suspected;
        if (plain == 0) {
            no_false_deaths(sim, "slow");
        }
        options.config.without_lifeguard = was;
        sim_free(sim);
    }
    report(
        "%6u %4.0f%%  slow       %u nodes stall for 2 to 8 s, %u times: healthy nodes declared dead %" PRIu64
        " times (by healthy ones %" PRIu64 "), suspected %" PRIu64 "; %.1f messages/s, %.0f bytes/s",
        n, 100 * loss, ill, rounds, dead[0], healthy[0], suspected[0], messages[0], bytes[0]);
    if (n <= PLAIN_MAX) {
        report("; SWIM alone %" PRIu64 " (%" PRIu64 "), %" PRIu64 "; %.1f, %.0f", dead[1], healthy[1],
            suspected[1], messages[1], bytes[1]);
    }
    report("\n");
}

/* Until all see each other again, and then until they have the last claim of everybody. */
static void heal(struct sim *sim, uint64_t apart, const char *what)
{
    uint32_t n = sim->n;
    double messages, bytes;
    sim->false_dead = sim->false_suspected = 0;
    for (uint32_t i = 0; i < n; i++) {
        sim->nodes[i].side = 0;
    }
    traffic_reset(sim);
    uint64_t alive = converge(sim, false, 60000 + n * 60, what);
    uint64_t took = alive + converge(sim, true, 60000 + n * 60, what);
    traffic(sim, took > 0 ? took : 1, &messages, &bytes);
    report("%6u %4.0f%%  %-9s  for %.0f s; all alive %.1f s after it healed, all views right after %.1f s, "
           "with %" PRIu64 " full exchanges; false: %" PRIu64 " suspicions, %" PRIu64
           " deaths; %.1f messages/s, %.0f bytes/s, %.0f KB a node\n",
        n, 100 * sim->loss, what, (double)apart / 1000, (double)alive / 1000, (double)took / 1000,
        sim->exchanges, sim->false_suspected, sim->false_dead, messages, bytes, bytes * (double)took / 1e6);
    no_false_deaths(sim, what);
}

/* Into halves. */
static void partition(uint32_t n, double loss, uint64_t seed)
{
    struct sim *sim = sim_new(n, loss, seed);
    uint64_t apart = n > LARGE ? 30000 : 60000;
    for (uint32_t i = 0; i < n; i++) {
        sim->nodes[i].side = i % 2;
    }
    run(sim, apart);
    heal(sim, apart, "partition");
    sim_free(sim);
}

/* One node is cut off until all others are dead for it. */
static void alone(uint32_t n, double loss, uint64_t seed)
{
    struct sim *sim = sim_new(n, loss, seed);
    uint64_t began = sim->now;
    struct node *node = &sim->nodes[n / 2];
    node->side = 1;
    while (swim_count(node->swim) > 1) {
        run(sim, 1000);
        if ((double)(sim->now - began) > 60000 + n * 30 * settings_period()) {
            fail(sim, "alone: %zu are still alive for it", swim_count(node->swim));
        }
    }
    heal(sim, sim->now - began, "alone");
    sim_free(sim);
}

/* All but the first three restart within five seconds, and begin with a full exchange with one of these. */
static void restart(uint32_t n, double loss, uint64_t seed)
{
    struct sim *sim = sim_new(n, loss, seed);
    uint32_t *order = calloc(n, sizeof *order);
    if (order == NULL) {
        abort();
    }
    for (uint32_t i = 3; i < n; i++) {
        uint32_t j = 3 + below(sim, i - 2);
        order[i] = order[j];
        order[j] = i;
    }
    uint64_t began = sim->now;
    double messages, bytes;
    traffic_reset(sim);
    for (uint32_t i = 3; i < n; i++) {
        struct node *node = &sim->nodes[order[i]];
        uint64_t due = began + (uint64_t)5000 * i / n;
        if (due > sim->now) {
            run(sim, due - sim->now);
        }
        stop(node);
        start(node);
        want_exchange(node, below(sim, 3));
    }
    free(order);
    uint64_t took = converge(sim, true, 30000 + n * 30, "restart");
    no_false_deaths(sim, "restart");
    traffic(sim, sim->now - began, &messages, &bytes);
    report("%6u %4.0f%%  restart    of all but three within 5 s; all views right %.1f s after the last, with "
           "%" PRIu64 " full exchanges; %.1f messages/s, %.0f bytes/s\n",
        n, 100 * loss, (double)took / 1000, sim->exchanges, messages, bytes);
    sim_free(sim);
}

static void flap(uint32_t n, double loss, uint64_t seed)
{
    struct sim *sim = sim_new(n, loss, seed);
    double messages, bytes;
    uint64_t began = sim->now;
    struct node *node = &sim->nodes[n - 1];
    traffic_reset(sim);
    for (unsigned i = 0; i < 10; i++) {
        stop(node);
        run(sim, 500 + below(sim, 9000));
        start(node);
        sim->healthy[node->i] = 0; /* not its fault, but it is dead at times with good reason */
        want_exchange(node, below(sim, n - 1));
        run(sim, 500 + below(sim, 5000));
    }
    traffic(sim, sim->now - began, &messages, &bytes);
    uint64_t took = converge(sim, true, 30000, "flap");
    no_false_deaths(sim, "flap");
    report("%6u %4.0f%%  flap       one node, 10 times; %.1f messages/s, %.0f bytes/s; all views right %.1f "
           "s after the "
           "last\n",
        n, 100 * loss, messages, bytes, (double)took / 1000);
    sim_free(sim);
}

static void leave(uint32_t n, double loss, uint64_t seed)
{
    struct sim *sim = sim_new(n, loss, seed);
    struct node *node = &sim->nodes[n / 2];
    struct swim_id id = id_of(node->i);
    uint64_t began = sim->now;
    if (swim_leave(node->swim, sim->now) != 0) {
        fail(sim, "leave: %s", err_msg());
    }
    plan_tick(node);
    while (!swim_has_left(node->swim)) {
        run(sim, 10);
        if (sim->now - began > 10000) {
            fail(sim, "leave: still not told");
        }
    }
    uint64_t told = sim->now - began;
    stop(node);
    converge(sim, true, 10000, "leave");
    uint32_t left = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct swim_member m;
        left += sim->nodes[i].up && swim_get(sim->nodes[i].swim, &id, &m) && m.state == SWIM_LEFT;
    }
    report("%6u %4.0f%%  leave      told within %" PRIu64 " ms; %u of %u know it\n", n, 100 * loss, told,
        left, n - 1);
    if (loss <= 0.05 && left < n - 1) {
        fail(sim, "leave: only %u of %u know it", left, n - 1);
    }
    sim_free(sim);
}

/* ---- runs ---- */

static const char *const scenarios[] = {
    "steady", "crash", "slow", "partition", "alone", "restart", "flap", "leave"};

static void one(const char *name, uint32_t n, double loss, uint64_t seed)
{
    if (strcmp(name, "steady") == 0) {
        steady(n, loss, seed, 30000);
    } else if (strcmp(name, "crash") == 0) {
        crash(n, loss, seed);
    } else if (strcmp(name, "slow") == 0) {
        slow(n, loss, seed);
    } else if (strcmp(name, "partition") == 0) {
        partition(n, loss, seed);
    } else if (strcmp(name, "alone") == 0) {
        alone(n, loss, seed);
    } else if (strcmp(name, "restart") == 0) {
        restart(n, loss, seed);
    } else if (strcmp(name, "flap") == 0) {
        flap(n, loss, seed);
    } else {
        leave(n, loss, seed);
    }
    fflush(stdout);
}

/* A run in a process of its own, which begins with a copy of what is prepared, and whose pages are shared until they
 * change. What it prints comes in the order in which the runs were begun. */
struct job {
    pid_t pid;
    FILE *out;
    bool ended;
    int status;
};
enum { JOBS_MAX = 64 };
static struct job jobs[JOBS_MAX]; /* those from @jobs_shown to @jobs_begun, modulo their number */
static unsigned jobs_begun, jobs_shown, jobs_running, jobs_failed;

static void show_job(struct job *job)
{
    char text[4096];
    rewind(job->out);
    for (size_t n; (n = fread(text, 1, sizeof text, job->out)) > 0;) {
        fwrite(text, 1, n, stdout);
    }
    fclose(job->out);
    if (job->status != 0) {
        printf("a run ended with status %x\n", (unsigned)job->status);
        jobs_failed++;
    } else {
        passed++;
    }
    fflush(stdout);
}

/* Waits for one of them, whichever. */
static void end_job(void)
{
    int status = 0;
    pid_t pid = wait(&status);
    for (unsigned i = jobs_shown; i < jobs_begun; i++) {
        struct job *job = &jobs[i % JOBS_MAX];
        if (job->pid == pid && !job->ended) {
            job->ended = true;
            job->status = status;
            jobs_running--;
        }
    }
    while (jobs_shown < jobs_begun && jobs[jobs_shown % JOBS_MAX].ended) {
        show_job(&jobs[jobs_shown++ % JOBS_MAX]);
    }
}

static void begin_job(const char *name, uint32_t n, double loss, uint64_t seed)
{
    while (jobs_running >= options.jobs || jobs_begun - jobs_shown == JOBS_MAX) {
        end_job();
    }
    struct job *job = &jobs[jobs_begun++ % JOBS_MAX];
    *job = (struct job){.out = tmpfile()};
    jobs_running++;
    fflush(NULL);
    job->pid = job->out == NULL ? -1 : fork();
    if (job->pid < 0) {
        abort();
    }
    if (job->pid == 0) {
        dup2(fileno(job->out), STDOUT_FILENO);
        dup2(fileno(job->out), STDERR_FILENO);
        setvbuf(stdout, NULL, _IOLBF, 0);
        one(name, n, loss, seed);
        exit(0);
    }
}

static void finish(void)
{
    while (jobs_running > 0) {
        end_job();
    }
    if (prepared->n <= LARGE) {
        sim_free(prepared);
    }
    prepared = NULL;
}

/* All @names with all @losses, of one size and seed. */
static void all(const char *const *names, size_t n_names, const uint32_t *losses, size_t n_losses, uint32_t n,
    uint64_t seed)
{
    prepared = prepare(n, seed);
    if (n > LARGE && n_names * n_losses == 1 && options.seeds == 1 && options.n_nodes == 1) {
        one(names[0], n, losses[0] / 100.0,
            seed); /* nobody else begins with it, so that nothing is there twice */
        passed++;
        return;
    }
    for (size_t s = 0; s < n_names; s++) {
        for (size_t l = 0; l < n_losses; l++) {
            begin_job(names[s], n, losses[l] / 100.0, seed);
        }
    }
    finish();
}

/* What the papers say for the settings of this run. SWIM 5 measured up to 55 processes with T = 2 s and K = 1, Lifeguard V
 * 100 machines with memberlist's settings: --settings swim and memberlist. */
static void papers(uint32_t n)
{
    double period = settings_period(), e = exp(1);
    printf(
        "%6u        papers     SWIM 3.1: first probe of a crashed node after %.0f ms on the average (e/(e-1) "
        "periods), %.1f messages/s\n",
        n, e / (e - 1) * period, 2000 / period);
    printf("                     SWIM 4.1: news need about ln(n) periods by piggyback alone, %.0f ms\n",
        log(n) * period);
    printf("                     Lifeguard IV-B: the suspicion takes %.0f ms at the least (alpha log10(n) "
           "periods)\n",
        suspicion_min(n));
    printf("                     Lifeguard V: slow nodes make 50 to 100 times fewer false positives than "
           "with SWIM "
           "alone\n");
}

static bool take(const char *arg, const char *value)
{
    if (strcmp(arg, "--nodes") == 0 && options.n_nodes < LISTS_MAX) {
        options.nodes[options.n_nodes++] = (uint32_t)strtoul(value, NULL, 10);
        return options.nodes[options.n_nodes - 1] >= 5;
    }
    if (strcmp(arg, "--loss") == 0 && options.n_losses < LISTS_MAX) {
        options.losses[options.n_losses++] = (uint32_t)strtoul(value, NULL, 10);
        return true;
    }
    if (strcmp(arg, "--scenario") == 0 && options.n_scenarios < LISTS_MAX) {
        for (size_t i = 0; i < sizeof scenarios / sizeof scenarios[0]; i++) {
            if (strcmp(value, scenarios[i]) == 0) {
                options.scenarios[options.n_scenarios++] = scenarios[i];
                return true;
            }
        }
        return false;
    }
    if (strcmp(arg, "--seeds") == 0) {
        options.seeds = (uint32_t)strtoul(value, NULL, 10);
        return options.seeds > 0;
    }
    if (strcmp(arg, "--jobs") == 0) {
        options.jobs = (uint32_t)strtoul(value, NULL, 10);
        return options.jobs > 0 && options.jobs < JOBS_MAX;
    }
    if (strcmp(arg, "--period") == 0) {
        options.config.period_ms = (uint32_t)strtoul(value, NULL, 10);
        return true;
    }
    if (strcmp(arg, "--timeout") == 0) {
        options.config.probe_timeout_ms = (uint32_t)strtoul(value, NULL, 10);
        return true;
    }
    if (strcmp(arg, "--alpha") == 0) {
        options.config.suspicion_alpha = (uint32_t)strtoul(value, NULL, 10);
        return true;
    }
    if (strcmp(arg, "--first") == 0) {
        options.first = strtoull(value, NULL, 10);
        return true;
    }
    if (strcmp(arg, "--settings") == 0) {
        options.settings = value;
        if (strcmp(value, "memberlist") == 0) { /* its defaults for a LAN */
            options.config = (struct swim_config){.period_ms = 1000,
                .probe_timeout_ms = 500,
                .suspicion_alpha = 4,
                .suspicion_beta = 6,
                .confirmations = 2,
                .gossip_ms = 200,
                .fanout = 3,
                .helpers = 3,
                .lambda = 2};
        } else if (strcmp(value, "swim") ==
                   0) { /* SWIM 5: T = 2 s, K = 1, 3 ceil(log(N + 1)), piggyback alone */
            options.config = (struct swim_config){.period_ms = 2000,
                .probe_timeout_ms = 500,
                .helpers = 1,
                .suspicion_alpha = 7,
                .gossip_ms = 60000,
                .fanout = 1,
                .without_lifeguard = true};
        } else {
            return strcmp(value, "default") == 0;
        }
        return true;
    }
    return false;
}

static void chosen(void)
{
    static const uint32_t all_losses[] = {0, 5, 30};
    if (options.n_losses == 0) {
        memcpy(options.losses, all_losses, sizeof all_losses);
        options.n_losses = 3;
    }
    if (options.n_nodes == 0) {
        options.nodes[options.n_nodes++] = 100;
    }
    if (options.n_scenarios == 0) {
        memcpy(options.scenarios, scenarios, sizeof scenarios);
        options.n_scenarios = sizeof scenarios / sizeof scenarios[0];
    }
    for (uint32_t n = 0; n < options.n_nodes; n++) {
        papers(options.nodes[n]);
        for (uint32_t i = 0; i < options.seeds; i++) {
            all(options.scenarios, options.n_scenarios, options.losses, options.n_losses, options.nodes[n],
                options.first + i);
        }
    }
}

/* Of ten thousand, what a minute or two are enough for. */
static void large(void)
{
    const uint32_t n = 10000;
    papers(n);
    prepared = prepare(n, options.first);
    begin_job("steady", n, 0, options.first);
    begin_job("steady", n, 0.05, options.first);
    begin_job("crash", n, 0.05, options.first);
    ops.probe = on_probe;
    begin_job("crash", n, 0.3, options.first);
    finish();
}

/* What the test runs. */
static void usual(void)
{
    static const uint32_t sizes[] = {10, 20, 100}, seeds[] = {10, 10, 1}, losses[] = {0, 5, 30};
    const size_t n_scenarios = sizeof scenarios / sizeof scenarios[0];
    for (size_t n = 0; n < sizeof sizes / sizeof sizes[0]; n++) {
        papers(sizes[n]);
        for (uint32_t i = 0; i < seeds[n]; i++) {
            options.silent = i > 0;
            /* Where every third message is lost, suspicions are all there is to talk of, and that takes time. */
            all(scenarios, n_scenarios, losses, sizes[n] < 100 ? 3 : 2, sizes[n], options.first + i);
            if (sizes[n] >= 100) {
                all(scenarios, 2, &losses[2], 1, sizes[n], options.first + i);
            }
        }
        options.silent = false;
    }
#ifndef __SANITIZE_ADDRESS__
    papers(1000);
    all((const char *[]){"steady"}, 1, &losses[0], 1, 1000, options.first);
    all((const char *[]){"crash"}, 1, &losses[1], 1, 1000, options.first);
    all((const char *[]){"partition"}, 1, &losses[1], 1, 300, options.first);
#endif
}

/* Thousands of tables, of which every message touches another: with pages of 4 KiB most of the time goes into finding
 * them. */
static void huge_pages(char **argv)
{
#ifndef __SANITIZE_ADDRESS__
    if (setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0", 0) == 0 &&
        getenv("SYMPHONY_SIM_AGAIN") == NULL && setenv("SYMPHONY_SIM_AGAIN", "1", 1) == 0) {
        execv("/proc/self/exe", argv);
    }
#endif
    (void)argv;
}

int main(int argc, char **argv)
{
    time_t began = time(NULL);
    bool any = false;
    huge_pages(argv);
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--verbose") == 0) {
            options.verbose = true;
        } else if (strcmp(argv[i], "--large") == 0) {
            options.large = true;
        } else if (strcmp(argv[i], "--reliable") == 0) {
            ops.probe = on_probe;
        } else if (strcmp(argv[i], "--no-lifeguard") == 0) {
            options.config.without_lifeguard = true;
        } else if (i + 1 < argc && take(argv[i], argv[i + 1])) {
            any = any || (strcmp(argv[i], "--first") != 0 && strcmp(argv[i], "--jobs") != 0);
            i++;
        } else {
            fprintf(stderr, "%s: see the head of its source for the options\n", argv[i]);
            return 2;
        }
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (options.large) {
        large();
    } else if (any) {
        chosen();
    } else {
        usual();
    }
    long took = (long)(time(NULL) - began);
    if (jobs_failed > 0) {
        printf("gossip: %u of %u runs failed, settings %s, %ld s\n", jobs_failed, jobs_failed + passed,
            options.settings, took);
        return 1;
    }
    printf("gossip: %u runs, settings %s, all checks hold, %ld s\n", passed, options.settings, took);
    return 0;
}
