#include "gossip/gossip.h"

#include "base/err.h"
#include "base/hash.h"
#include "gossip/gossip_addr.h"
#include "gossip/gossip_budget.h"
#include "net/addr.h"

#include <errno.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    BATCH = 32,      /* datagrams of one system call */
    TURN_MAX = 64,   /* of one turn of the loop */
    DRAIN_MAX = 512, /* before a tick: all that the socket's buffer holds of datagrams of usual size */
    HEAVY_MAX = 32,  /* verifications of a turn, some 150 us each */
    NOTES_MAX = 4096,
    NOTES_TURN = 64,
    RCVBUF = 1024 * 1024, /* the system takes what its own limit allows */
    PAUSE_MS = 5,
    USED_MS = 60000,
    /* What is refused, in units of one cheap refusal, some 1.6 us with its part of the system call (spec/bench/garbage.c):
     * up to a fifth of a core. */
    REFUSED_A_SECOND = 120000,
    REFUSED_MOST = 12000,
    COST = 1,
    COST_OPENED = 2,   /* decrypted in vain */
    COST_SIGNED = 100, /* verified in vain */
    /* Keys that are derived in vain. Above that, only whoever has been heard of is: see seal_unwrap. */
    DERIVED_A_SECOND = 2000,
    DERIVED_MOST = 500,
};
#define NEVER UINT64_MAX

struct peer {
    struct swim_id id;
    uint8_t spki[SPKI_LEN];
    bool lost; /* base/hash.h */
    UT_hash_handle hh;
};

/* Something to tell. */
struct note {
    STAILQ_ENTRY(note) link;
    bool probe;
    enum swim_event what;
    uint32_t ticket;
    struct swim_member m;
    uint8_t meta[SWIM_META_MAX];
};

struct key_used {
    uint32_t id;
    uint64_t at; /* NEVER: not yet */
};

struct gossip {
    const struct gossip_ops *ops;
    void *arg;
    struct swim_id self;
    struct swim *swim;
    struct seal *seal;
    struct key *key;
    struct peer *peers;
    struct key_used uses[SEAL_KEYS_MAX];
    size_t n_uses;

    uv_loop_t *loop;
    int fd, family;
    uint16_t port;
    uv_poll_t poll;
    uv_timer_t tick, pause;
    uv_idle_t idle; /* runs while there is something to tell, or left to take in */
    bool polled, closing, paused;
    unsigned open_handles;
    uint64_t tick_at; /* when @tick is due; NEVER: it is not set */
    void (*closed)(void *arg);
    void *closed_arg;

    STAILQ_HEAD(notes, note) notes;
    unsigned n_notes;
    bool lost, recheck;

    bool leaving, left; /* @left: it is to be told */
    uint64_t leave_until;
    void (*leave_done)(void *arg);
    void *leave_arg;

    struct budget refused, derived;
    unsigned heavy; /* verifications since the turn began */
    struct gossip_stats stats;
    /* A batch of which @next to @n are still to be taken in. */
    int n, next;
    struct mmsghdr heads[BATCH];
    struct iovec iov[BATCH];
    struct sockaddr_storage from[BATCH];
    uint8_t in[BATCH][SEAL_MAX + 1]; /* one more shows that a datagram is too long */
    uint8_t out[SEAL_MAX];
    struct seal_letter letter;
};

static uint64_t now_of(const struct gossip *g)
{
    return uv_now(g->loop);
}

static struct peer *find_peer(const struct gossip *g, const struct swim_id *id)
{
    struct peer *p;
    HASH_FIND(hh, g->peers, id, sizeof *id, p);
    return p;
}

/* ---- what is told ---- */

static void on_idle(uv_idle_t *idle);

static void wake(struct gossip *g)
{
    if (!g->closing) {
        uv_idle_start(&g->idle, on_idle);
    }
}

static struct note *note_new(struct gossip *g, const struct swim_member *m)
{
    struct note *note = g->n_notes < NOTES_MAX ? calloc(1, sizeof *note) : NULL;
    if (note == NULL) {
        return NULL;
    }
    note->m = *m;
    note->m.meta = note->meta;
    if (m->meta_len > 0) {
        memcpy(note->meta, m->meta, m->meta_len);
    }
    g->n_notes++;
    return note;
}

/* The next note; after the last one, that some are missing. */
static void tell_one(struct gossip *g)
{
    struct note *note = STAILQ_FIRST(&g->notes);
    if (note == NULL) {
        g->lost = false;
        if (g->ops->lost != NULL) {
            g->ops->lost(g->arg);
        }
        return;
    }
    STAILQ_REMOVE_HEAD(&g->notes, link);
    g->n_notes--;
    if (!note->probe) {
        g->ops->event(g->arg, note->what, &note->m);
    } else if (g->ops->probe != NULL) {
        g->ops->probe(g->arg, &note->m, note->ticket);
    }
    free(note);
}

static void tell_left(struct gossip *g)
{
    void (*done)(void *arg) = g->leave_done;
    g->left = false;
    g->leave_done = NULL;
    if (done != NULL) {
        done(g->leave_arg);
    }
}

/* ---- the core's callbacks ---- */

static void on_event(void *arg, enum swim_event what, const struct swim_member *m)
{
    struct gossip *g = arg;
    struct note *note = note_new(g, m);
    if (note == NULL) {
        g->stats.events_lost++;
        g->lost = true;
    } else {
        note->what = what;
        STAILQ_INSERT_TAIL(&g->notes, note, link);
    }
    wake(g);
}

/* Before all events: there is one at a time, and its answer is good for a part of a period only. */
static bool on_probe(void *arg, const struct swim_member *m, uint32_t ticket)
{
    struct gossip *g = arg;
    struct note *note = g->ops->probe != NULL ? note_new(g, m) : NULL;
    if (note != NULL) {
        note->probe = true;
        note->ticket = ticket;
        STAILQ_INSERT_HEAD(&g->notes, note, link);
        wake(g);
    }
    return note != NULL;
}

static bool on_known(void *arg, const struct swim_id *id)
{
    return find_peer(arg, id) != NULL;
}

static bool on_verify(
    void *arg, const struct swim_id *id, const void *text, size_t n, const void *sig, size_t sig_len)
{
    struct gossip *g = arg;
    const struct peer *p = find_peer(g, id);
    g->heavy++;
    return p != NULL && spki_verify(p->spki, sizeof p->spki, text, n, sig, sig_len) == 0;
}

static int on_sign(void *arg, const void *text, size_t n, void *sig, size_t *sig_len)
{
    struct gossip *g = arg;
    _Static_assert(KEY_SIG_MAX <= SWIM_SIG_MAX, "a signature fits into a claim");
    return key_sign(g->key, text, n, sig, sig_len);
}

static void on_send(
    void *arg, const struct swim_id *to, const struct swim_addr *addr, const void *data, size_t n)
{
    struct gossip *g = arg;
    struct sockaddr_storage sa;
    socklen_t len;
    if (!gossip_addr_to_system(addr, g->family, &sa, &len) || seal_wrap(g->seal, to, data, n, g->out) != 0) {
        g->stats.out_failed++;
        return;
    }
    ssize_t sent =
        sendto(g->fd, g->out, n + SEAL_OVERHEAD, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&sa, len);
    if (sent >= 0) {
        g->stats.out++;
        g->stats.out_bytes += n + SEAL_OVERHEAD;
    } else if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS || errno == ENOMEM) {
        g->stats.out_full++;
    } else {
        g->stats.out_failed++;
    }
}

static const struct swim_ops core_ops = {.send = on_send,
    .known = on_known,
    .verify = on_verify,
    .sign = on_sign,
    .probe = on_probe,
    .event = on_event};

/* ---- time ---- */

static void on_tick(uv_timer_t *tick);

/* After whatever may have changed when the core is due next. */
static void settle(struct gossip *g)
{
    uint64_t now = now_of(g), at = swim_next(g->swim);
    if (g->leaving) {
        if (swim_has_left(g->swim) || now >= g->leave_until) {
            g->leaving = false;
            g->left = true;
            wake(g);
        } else if (at > g->leave_until) {
            at = g->leave_until;
        }
    }
    if (!g->closing && at != g->tick_at) {
        g->tick_at = at;
        /* Never at once: what is due again and again would run before anything else of the loop does. */
        uv_timer_start(&g->tick, on_tick, at > now ? at - now : 1, 0);
    }
}

/* ---- what comes in ---- */

static void heard(struct gossip *g, uint32_t key)
{
    for (size_t i = 0; i < g->n_uses; i++) {
        if (g->uses[i].id == key) {
            g->uses[i].at = now_of(g);
        }
    }
}

/* Datagram @i of the batch. */
static void take_one(struct gossip *g, int i)
{
    uint64_t now = now_of(g);
    size_t n = g->heads[i].msg_len;
    g->stats.in++;
    g->stats.in_bytes += n;
    enum seal_verdict verdict = seal_unwrap(g->seal, g->in[i], n, budget_has(&g->derived, now), &g->letter);
    struct swim_addr addr;
    if (verdict != SEAL_OK || !gossip_addr_from_system(&g->from[i], &addr)) {
        budget_take(&g->refused, verdict == SEAL_FORGED ? COST_OPENED : COST);
        budget_take(&g->derived, g->letter.derived ? 1 : 0);
        return;
    }
    uint64_t bad = swim_stats(g->swim)->bad_signatures;
    heard(g, g->letter.key);
    swim_receive(g->swim, now, &g->letter.from, &addr, g->letter.plain, g->letter.n);
    budget_take(&g->refused, (uint32_t)(swim_stats(g->swim)->bad_signatures - bad) * COST_SIGNED);
}

static bool fetch(struct gossip *g)
{
    for (int i = 0; i < BATCH; i++) {
        g->heads[i].msg_hdr.msg_namelen = sizeof g->from[i];
    }
    g->next = 0;
    g->n = recvmmsg(g->fd, g->heads, BATCH, MSG_DONTWAIT, NULL);
    if (g->n < 0) {
        g->n = 0; /* nothing there, or an error of something sent: the next call goes on */
    }
    return g->n > 0;
}

static void on_pause_end(uv_timer_t *pause);
static void on_readable(uv_poll_t *poll, int status, int events);

static void rest(struct gossip *g)
{
    g->paused = true;
    g->stats.pauses++;
    uv_poll_stop(&g->poll);
    uv_timer_start(&g->pause, on_pause_end, PAUSE_MS, 0);
}

/* At most about @most of what has come. What is left of a batch comes in another turn. */
static void take_in(struct gossip *g, int most)
{
    g->heavy = 0;
    while (most > 0 && !g->paused && g->heavy < HEAVY_MAX) {
        if (g->next == g->n && !fetch(g)) {
            return;
        }
        while (g->next < g->n && g->heavy < HEAVY_MAX) {
            take_one(g, g->next++);
            most--;
        }
        if (!budget_has(&g->refused, now_of(g))) {
            rest(g);
        }
    }
    if (g->next < g->n && !g->paused) {
        wake(g);
    }
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    struct gossip *g = poll->data;
    (void)events;
    if (status < 0) { /* an error of something sent: libuv has stopped looking */
        int error;
        socklen_t len = sizeof error;
        (void)getsockopt(g->fd, SOL_SOCKET, SO_ERROR, &error, &len); /* which takes it away */
        uv_poll_start(&g->poll, UV_READABLE, on_readable);
    }
    take_in(g, TURN_MAX);
    settle(g);
}

static void on_pause_end(uv_timer_t *pause)
{
    struct gossip *g = pause->data;
    g->paused = false;
    uv_poll_start(&g->poll, UV_READABLE, on_readable);
    take_in(g, TURN_MAX);
    settle(g);
}

static void on_tick(uv_timer_t *tick)
{
    struct gossip *g = tick->data;
    g->tick_at = NEVER;
    take_in(g, DRAIN_MAX);
    swim_tick(g->swim, now_of(g));
    settle(g);
}

static void on_idle(uv_idle_t *idle)
{
    struct gossip *g = idle->data;
    if (g->recheck) {
        g->recheck = false;
        swim_recheck(g->swim, now_of(g));
    }
    if (g->next < g->n && !g->paused) {
        take_in(g, TURN_MAX);
    }
    settle(g);
    for (unsigned i = 0; i < NOTES_TURN && !g->closing && (g->n_notes > 0 || g->lost); i++) {
        tell_one(g);
    }
    if (!g->closing && g->left) {
        tell_left(g);
    }
    if (!g->closing && g->n_notes == 0 && !g->lost && !g->left && !g->recheck &&
        (g->next == g->n || g->paused)) {
        uv_idle_stop(idle);
    }
}

/* ---- opening and closing ---- */

static void set_option(int fd, int level, int name, int value)
{
    (void)setsockopt(fd, level, name, &value, sizeof value); /* all of them are only better so */
}

static int open_socket(struct gossip *g, const char *host, uint16_t port)
{
    struct sockaddr_storage sa;
    socklen_t len;
    int rv = addr_to_system(host, port, &sa, &len);
    if (rv != 0) {
        return rv;
    }
    g->family = sa.ss_family;
    g->fd = socket(g->family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (g->fd < 0) {
        return err_sysf(errno, "UDP socket");
    }
    set_option(g->fd, SOL_SOCKET, SO_RCVBUF, RCVBUF);
    /* Rather in pieces than not at all where a tunnel is narrower than most. */
    if (g->family == AF_INET6) {
        set_option(g->fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
        set_option(g->fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DONT);
    } else {
        set_option(g->fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT);
    }
    if (bind(g->fd, (struct sockaddr *)&sa, len) != 0) {
        return errno == EADDRINUSE ? err_setf(SYM_EINUSE, "gossip: UDP port %u is in use", port)
                                   : err_sysf(errno, "gossip: UDP port %u of %s", port, host);
    }
    struct swim_addr bound;
    len = sizeof sa;
    if (getsockname(g->fd, (struct sockaddr *)&sa, &len) != 0 || !gossip_addr_from_system(&sa, &bound)) {
        return err_sysf(errno, "gossip: UDP port %u", port);
    }
    g->port = bound.port;
    return 0;
}

static int open_core(struct gossip *g, const struct gossip_config *c)
{
    struct swim_config swim = c->swim;
    int rv = key_share(c->key, &g->key);
    if (rv == 0) {
        rv = crypto_random(&swim.seed, sizeof swim.seed);
    }
    if (rv == 0) {
        rv = seal_open(
            &swim.id, c->start, on_known, g, swim.max_members == 0 ? 20000 : swim.max_members, &g->seal);
    }
    if (rv == 0) {
        rv = gossip_keys(g, c->keys, c->n_keys);
    }
    if (rv == 0) {
        swim.addr.port = swim.addr.port == 0 ? g->port : swim.addr.port;
        rv = swim_open(&swim, &core_ops, g, now_of(g), &g->swim);
    }
    return rv;
}

static void destroy(struct gossip *g)
{
    struct peer *p, *next;
    struct note *note;
    void (*closed)(void *arg) = g->closed;
    void *arg = g->closed_arg;
    if (g->fd >= 0) {
        close(g->fd);
    }
    swim_close(g->swim);
    seal_close(g->seal);
    key_free(g->key);
    HASH_ITER (hh, g->peers, p, next) {
        HASH_DEL(g->peers, p);
        free(p);
    }
    while ((note = STAILQ_FIRST(&g->notes)) != NULL) {
        STAILQ_REMOVE_HEAD(&g->notes, link);
        free(note);
    }
    free(g);
    if (closed != NULL) {
        closed(arg);
    }
}

int gossip_open(uv_loop_t *loop, const struct gossip_config *c, const struct gossip_ops *ops, void *arg,
    struct gossip **out)
{
    struct gossip *g = calloc(1, sizeof *g);
    if (g == NULL) {
        return err_setf(SYM_ENOMEM, "gossip");
    }
    g->ops = ops;
    g->arg = arg;
    g->loop = loop;
    g->fd = -1;
    g->self = c->swim.id;
    g->tick_at = NEVER;
    STAILQ_INIT(&g->notes);
    g->refused = budget_init(REFUSED_A_SECOND, REFUSED_MOST, now_of(g));
    g->derived = budget_init(DERIVED_A_SECOND, DERIVED_MOST, now_of(g));
    for (int i = 0; i < BATCH; i++) {
        g->iov[i] = (struct iovec){.iov_base = g->in[i], .iov_len = sizeof g->in[i]};
        g->heads[i].msg_hdr =
            (struct msghdr){.msg_name = &g->from[i], .msg_iov = &g->iov[i], .msg_iovlen = 1};
    }
    int rv = open_socket(g, c->bind_addr, c->port);
    if (rv == 0) {
        rv = open_core(g, c);
    }
    if (rv == 0) {
        int status = uv_poll_init(loop, &g->poll, g->fd);
        rv = status == 0 ? 0 : err_sysf(status, "gossip: UDP socket");
    }
    if (rv != 0) {
        destroy(g);
        return rv;
    }
    uv_timer_init(loop, &g->tick);
    uv_timer_init(loop, &g->pause);
    uv_idle_init(loop, &g->idle);
    g->poll.data = g->tick.data = g->pause.data = g->idle.data = g;
    uv_poll_start(&g->poll, UV_READABLE, on_readable);
    settle(g);
    *out = g;
    return 0;
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct gossip *g = handle->data;
    if (--g->open_handles == 0) {
        destroy(g);
    }
}

void gossip_close(struct gossip *g, void (*closed)(void *arg), void *arg)
{
    enum { HANDLES = 4 };
    uv_handle_t *handles[HANDLES] = {
        (uv_handle_t *)&g->poll, (uv_handle_t *)&g->tick, (uv_handle_t *)&g->pause, (uv_handle_t *)&g->idle};
    g->closing = true;
    g->closed = closed;
    g->closed_arg = arg;
    g->open_handles = HANDLES;
    for (int i = 0; i < HANDLES; i++) {
        uv_close(handles[i], on_handle_closed);
    }
    /* The port is free at once, and nothing is sent any more. */
    close(g->fd);
    g->fd = -1;
}

/* ---- what is asked of it ---- */

uint16_t gossip_port(const struct gossip *g)
{
    return g->port;
}

int gossip_keys(struct gossip *g, const struct seal_key *keys, size_t n)
{
    struct key_used uses[SEAL_KEYS_MAX];
    int rv = seal_keys(g->seal, keys, n);
    if (rv != 0) {
        return rv;
    }
    for (size_t i = 0; i < n; i++) {
        uses[i] = (struct key_used){.id = keys[i].id, .at = NEVER};
        for (size_t j = 0; j < g->n_uses; j++) {
            uses[i].at = g->uses[j].id == keys[i].id ? g->uses[j].at : uses[i].at;
        }
    }
    memcpy(g->uses, uses, n * sizeof *uses);
    g->n_uses = n;
    return 0;
}

size_t gossip_key_uses(const struct gossip *g, struct gossip_key_use out[SEAL_KEYS_MAX])
{
    for (size_t i = 0; i < g->n_uses; i++) {
        uint64_t at = g->uses[i].at;
        out[i] = (struct gossip_key_use){.id = g->uses[i].id, .ago_ms = at == NEVER ? NEVER : now_of(g) - at};
    }
    return g->n_uses;
}

int gossip_peer(struct gossip *g, const struct swim_id *id, const void *spki, size_t n)
{
    if (!spki_is_p256(spki, n)) {
        return err_setf(SYM_EINVAL, "the key is not ECDSA P-256");
    }
    if (swim_id_eq(id, &g->self)) {
        return 0;
    }
    struct peer *p = find_peer(g, id);
    if (p == NULL) {
        p = calloc(1, sizeof *p);
        if (p == NULL) {
            return err_setf(SYM_ENOMEM, "a node of the cluster");
        }
        p->id = *id;
        HASH_ADD(hh, g->peers, id, sizeof p->id, p);
        if (p->lost) {
            free(p);
            return err_setf(SYM_ENOMEM, "a node of the cluster");
        }
    }
    memcpy(p->spki, spki, SPKI_LEN);
    return 0;
}

void gossip_forget(struct gossip *g, const struct swim_id *id)
{
    struct peer *p = find_peer(g, id);
    if (p == NULL) {
        return;
    }
    HASH_DEL(g->peers, p);
    free(p);
    seal_forget(g->seal, id);
    /* Once for all that are removed in a row. */
    g->recheck = true;
    wake(g);
}

int gossip_update(struct gossip *g, const struct swim_addr *addr, const void *meta, size_t n)
{
    int rv = swim_update(g->swim, now_of(g), addr, meta, n);
    settle(g);
    return rv;
}

void gossip_join(struct gossip *g, const struct swim_addr *addr)
{
    swim_join(g->swim, now_of(g), addr);
    settle(g);
}

int gossip_merge(struct gossip *g, const struct swim_id *from, const void *data, size_t n)
{
    int rv = swim_merge(g->swim, now_of(g), from, data, n);
    settle(g);
    return rv;
}

void gossip_probe_done(struct gossip *g, uint32_t ticket, bool alive)
{
    swim_probe_done(g->swim, now_of(g), ticket, alive);
    settle(g);
}

int gossip_leave(struct gossip *g, void (*done)(void *arg), void *arg)
{
    if (g->leaving || g->left) {
        return err_setf(SYM_EBUSY, "this node is leaving already");
    }
    int rv = swim_leave(g->swim, now_of(g));
    if (rv == 0) {
        g->leaving = true;
        g->leave_until = now_of(g) + GOSSIP_LEAVE_MS;
        g->leave_done = done;
        g->leave_arg = arg;
    }
    settle(g);
    return rv;
}

void gossip_self(const struct gossip *g, struct swim_member *out)
{
    (void)swim_get(g->swim, &g->self, out); /* always there */
}

const struct swim *gossip_swim(const struct gossip *g)
{
    return g->swim;
}

uint64_t gossip_age(const struct gossip *g, const struct swim_member *m)
{
    uint64_t now = now_of(g);
    return now > m->since ? now - m->since : 0;
}

static uint64_t system_dropped(const struct gossip *g)
{
    uint32_t info[SK_MEMINFO_VARS] = {0};
    socklen_t len = sizeof info;
    return getsockopt(g->fd, SOL_SOCKET, SO_MEMINFO, info, &len) == 0 ? info[SK_MEMINFO_DROPS] : 0;
}

void gossip_stats(const struct gossip *g, struct gossip_stats *out)
{
    *out = g->stats;
    out->swim = *swim_stats(g->swim);
    memcpy(out->verdicts, seal_counts(g->seal), sizeof out->verdicts);
    out->system_dropped = system_dropped(g);
    out->peers = HASH_COUNT(g->peers);
    for (size_t i = 0; i < g->n_uses; i++) {
        out->keys_of_others += g->uses[i].at != NEVER && now_of(g) - g->uses[i].at < USED_MS ? 1 : 0;
    }
}
