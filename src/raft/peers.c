#include "raft/peers.h"

#include "base/err.h"
#include "base/log.h"
#include "raft/hello.h"
#include "raft/peers_impl.h"
#include "raft/starts.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

_Static_assert(
    (int)FRAME_MAX == (int)PEER_FRAME_MAX && (int)FRAME_BULK == (int)PEER_BULK, "two names of one limit");

enum {
    TICK_MS = 1000,
    BACKOFF_MIN_MS = 100, /* half of it to all of it is waited, so 50 ms at least */
    BACKOFF_MAX_MS = 2000,
    REFUSED_MS = 5000,
};

/* ---- owed callbacks ---- */

static void on_idle(uv_idle_t *handle);

/* Has the loop come by soon: to write, and to make the callbacks that are owed. */
void peers_wake(struct peers *p)
{
    if (!p->handles_closing) {
        uv_idle_start(&p->idle, on_idle);
    }
}

/* Makes the callbacks that are owed. Called from the loop only, when nothing of ours is half done. What they
 * cause in turn waits for the next iteration. */
void peers_settle(struct peers *p)
{
    struct peer *peer;
    struct frame_out *f;

again:
    LIST_FOREACH (peer, &p->peers, link) {
        if (peer->down_due) {
            peer->down_due = false;
            p->cfg.on_down(p->cfg.arg, peer->id);
            goto again; /* the list may be another now */
        }
    }
    struct frame_list done = TAILQ_HEAD_INITIALIZER(done);
    unsigned n = p->n_reserve;
    TAILQ_CONCAT(&done, &p->done, link);
    while ((f = TAILQ_FIRST(&done)) != NULL) {
        TAILQ_REMOVE(&done, f, link);
        frame_sent sent = f->sent;
        void *arg = f->arg;
        int status = f->status;
        free(f);
        if (sent != NULL) {
            sent(arg, status);
        }
    }
    for (unsigned i = 0; i < n; i++) {
        p->reserve[i].sent(p->reserve[i].arg, SYM_ENOMEM);
    }
    p->n_reserve -= n;
    memmove(p->reserve, p->reserve + n, p->n_reserve * sizeof p->reserve[0]);
}

static bool owes(const struct peers *p)
{
    return !TAILQ_EMPTY(&p->done) || p->n_reserve > 0;
}

static void complete(struct peers *p, peers_sent sent, void *arg, int status)
{
    int rv;

    if (sent == NULL) {
        return;
    }
    struct frame_out *f = frame_out_new(0, NULL, 0, sent, arg, &rv);
    if (f != NULL) {
        f->status = status;
        TAILQ_INSERT_TAIL(&p->done, f, link);
    } else if (p->n_reserve < PEERS_RESERVE) {
        p->reserve[p->n_reserve].sent = sent;
        p->reserve[p->n_reserve++].arg = arg;
    } else {
        /* A completion that is lost would hang its owner for ever. */
        log_error("out of memory in the raft transport; this process ends");
        _exit(70);
    }
    peers_wake(p);
}

static void on_idle(uv_idle_t *handle)
{
    struct peers *p = handle->data;
    struct peer *peer;

    uv_idle_stop(&p->idle);
    LIST_FOREACH (peer, &p->peers, link) {
        if (peer->up && !frame_queue_empty(&peer->queue) && !stream_congested(peer->out->stream)) {
            conn_pump(peer);
        }
    }
    peers_settle(p);
    peers_maybe_closed(p);
}

/* ---- the table of peers ---- */

struct peer *peer_find(const struct peers *p, uint64_t id)
{
    struct peer *peer;

    LIST_FOREACH (peer, &p->peers, link) {
        if (peer->id == id) {
            return peer;
        }
    }
    return NULL;
}

struct peer *peer_add(struct peers *p, uint64_t id)
{
    struct peer *peer = peer_find(p, id);

    if (peer == NULL && (peer = calloc(1, sizeof *peer)) != NULL) {
        peer->owner = p;
        peer->id = id;
        frame_queue_init(&peer->queue);
        LIST_INSERT_HEAD(&p->peers, peer, link);
    }
    if (peer == NULL) {
        err_setf(SYM_ENOMEM, "raft peer %" PRIu64, id);
    }
    return peer;
}

/* ---- how often they have started ---- */

static int load_starts(struct peers *p)
{
    static struct starts records[STARTS_MAX];
    size_t n;

    if (p->starts_file == NULL) {
        return 0;
    }
    int rv = starts_load(p->starts_file, records, &n);
    for (size_t i = 0; rv == 0 && i < n; i++) {
        struct peer *peer = peer_add(p, records[i].id);
        if (peer == NULL) {
            return SYM_ENOMEM;
        }
        peer->starts = records[i].starts;
        peer->nonce = records[i].nonce;
    }
    return rv;
}

void peer_has_started(struct peer *peer, uint64_t starts, uint64_t nonce)
{
    static struct starts records[STARTS_MAX];
    struct peers *p = peer->owner;
    size_t n = 0;

    p->unsaved |= peer->starts != starts || peer->nonce != nonce;
    peer->starts = starts;
    peer->nonce = nonce;
    if (!p->unsaved || p->starts_file == NULL) {
        return;
    }
    LIST_FOREACH (peer, &p->peers, link) {
        if (peer->starts != 0 && n < STARTS_MAX) {
            records[n++] = (struct starts){peer->id, peer->starts, peer->nonce};
        }
    }
    if (starts_save(p->starts_file, records, n) == 0) {
        p->unsaved = false;
    } else {
        log_error("how often the other managers have started is not kept: %s", err_msg());
    }
}

/* ---- when to connect ---- */

static void on_retry(uv_timer_t *handle);

static void arm_retry(struct peers *p)
{
    uint64_t now = uv_now(p->cfg.loop);
    uint64_t first = UINT64_MAX;
    struct peer *peer;

    LIST_FOREACH (peer, &p->peers, link) {
        if (peer->retry_at != 0 && peer->retry_at < first) {
            first = peer->retry_at;
        }
    }
    if (p->closing || first == UINT64_MAX) {
        uv_timer_stop(&p->retry);
    } else {
        uv_timer_start(&p->retry, on_retry, first > now ? first - now : 0, 0);
    }
}

void peer_connect_in(struct peer *peer, uint64_t ms)
{
    if (peer->address != NULL && peer->out == NULL && !peer->owner->closing) {
        peer->retry_at = uv_now(peer->owner->cfg.loop) + ms;
        peer->retry_at += peer->retry_at == 0;
        arm_retry(peer->owner);
    }
}

/* Refused for a reason that does not pass by itself. */
bool peer_is_slow(const struct peer *peer)
{
    return peer->refused == SYM_ENOTFOUND || peer->refused == SYM_ECONFLICT;
}

/* After a failure: longer each time, and never two members in step. */
void peer_connect_later(struct peer *peer)
{
    uint32_t random = 0;
    unsigned wait = REFUSED_MS;

    if (!peer_is_slow(peer)) {
        wait = peer->backoff == 0 ? BACKOFF_MIN_MS : 2 * peer->backoff;
        wait = wait < BACKOFF_MAX_MS ? wait : BACKOFF_MAX_MS;
        peer->backoff = wait;
    }
    (void)crypto_random(&random, sizeof random); /* without it the wait is only less random */
    peer_connect_in(peer, wait / 2 + random % (wait / 2 + 1));
}

static void on_retry(uv_timer_t *handle)
{
    struct peers *p = handle->data;
    uint64_t now = uv_now(p->cfg.loop);
    struct peer *peer;

    LIST_FOREACH (peer, &p->peers, link) {
        if (peer->retry_at != 0 && peer->retry_at <= now) {
            peer_correct(peer);
            peer->retry_at = 0;
            if (peer->address != NULL && peer->out == NULL) {
                conn_open(peer);
            }
        }
    }
    arm_retry(p);
}

/* ---- interface ---- */

static void on_tick(uv_timer_t *handle)
{
    struct peers *p = handle->data;

    conns_tick(p);
    peers_settle(p);
}

static int make_tls(
    const char *cert, const struct key *key, const char *ca, struct tls_ctx **client, struct tls_ctx **server)
{
    int rv = tls_ctx_new(0, cert, key, ca, client);

    if (rv != 0) {
        return rv;
    }
    rv = tls_ctx_new(TLS_SERVER, cert, key, ca, server);
    if (rv != 0) {
        tls_ctx_free(*client);
    }
    return rv;
}

static void peers_free(struct peers *p)
{
    struct peer *peer;

    while ((peer = LIST_FIRST(&p->peers)) != NULL) {
        LIST_REMOVE(peer, link);
        free(peer->address);
        free(peer->told);
        free(peer->moved);
        free(peer);
    }
    free(p->cluster_id);
    free(p->address);
    free(p->starts_file);
    free(p);
}

static uint64_t process_nonce(void)
{
    static uint64_t nonce;
    while (nonce == 0 && crypto_random(&nonce, sizeof nonce) == 0) {
    }
    return nonce;
}

int peers_new(const struct peers_config *cfg, const char *cert, const struct key *key, const char *ca,
    struct peers **out)
{
    struct hello limits;
    int rv;

    if (cfg->self == 0 || strlen(cfg->cluster_id) >= sizeof limits.cluster_id ||
        strlen(cfg->address) >= sizeof limits.address) {
        return err_setf(SYM_EINVAL, "raft id, cluster id or address");
    }
    struct peers *p = calloc(1, sizeof *p);
    if (p == NULL) {
        return err_setf(SYM_ENOMEM, "raft transport");
    }
    p->cfg = *cfg;
    p->cfg.nonce = cfg->nonce != 0 ? cfg->nonce : process_nonce();
    LIST_INIT(&p->peers);
    LIST_INIT(&p->conns);
    TAILQ_INIT(&p->done);
    p->cluster_id = strdup(cfg->cluster_id);
    p->address = strdup(cfg->address);
    p->starts_file = cfg->starts_file != NULL ? strdup(cfg->starts_file) : NULL;
    if (p->cluster_id == NULL || p->address == NULL || (cfg->starts_file != NULL && p->starts_file == NULL)) {
        rv = err_setf(SYM_ENOMEM, "raft transport");
        goto free_peers;
    }
    rv = load_starts(p);
    if (rv == 0) {
        rv = make_tls(cert, key, ca, &p->client, &p->server);
    }
    if (rv != 0) {
        goto free_peers;
    }
    rv = listener_tcp(cfg->loop, cfg->bind_addr, cfg->port, conn_accept, conn_accepted, p, &p->listener);
    if (rv != 0) {
        goto free_tls;
    }
    uv_idle_init(cfg->loop, &p->idle);
    uv_timer_init(cfg->loop, &p->tick);
    uv_timer_init(cfg->loop, &p->retry);
    p->idle.data = p->tick.data = p->retry.data = p;
    p->n_handles = 3;
    uv_timer_start(&p->tick, on_tick, TICK_MS, TICK_MS);
    *out = p;
    return 0;

free_tls:
    tls_ctx_free(p->client);
    tls_ctx_free(p->server);
free_peers:
    peers_free(p);
    return rv;
}

uint16_t peers_port(const struct peers *p)
{
    return listener_port(p->listener);
}

int peers_set_tls(struct peers *p, const char *cert, const struct key *key, const char *ca)
{
    struct tls_ctx *client, *server;

    int rv = make_tls(cert, key, ca, &client, &server);
    if (rv != 0) {
        return rv;
    }
    tls_ctx_free(p->client);
    tls_ctx_free(p->server);
    p->client = client;
    p->server = server;
    return 0;
}

static bool signed_by(const struct conn *c, const char *ca)
{
    struct buf chain = {0};
    int rv = stream_tls_chain(c->stream, &chain);
    rv = rv != 0 ? rv : cert_check_issuer((const char *)buf_data(&chain), chain.len, ca, strlen(ca));
    buf_free(&chain);
    return rv == 0;
}

void peers_recheck(struct peers *p, const char *ca,
    bool (*knows)(void *arg, uint64_t id, const struct tls_peer *peer), void *arg)
{
    struct conn *c, *next;

    for (c = LIST_FIRST(&p->conns); c != NULL; c = next) {
        const struct tls_peer *cert = c->closing ? NULL : stream_tls_peer(c->stream);
        struct peer *peer = c->peer;
        next = LIST_NEXT(c, link);
        if (cert == NULL || signed_by(c, ca) || (peer != NULL && knows(arg, peer->id, cert))) {
            continue;
        }
        log_info("a raft connection is cut: no CA of the cluster has signed its certificate");
        conn_cut(c, SYM_ECONNECT);
        if (peer != NULL && c->outgoing) {
            peer_connect_later(peer);
        }
    }
}

/* It is looked for at @address from now on. */
static int look_at(struct peer *peer, const char *address)
{
    if (peer->address != NULL && strcmp(peer->address, address) == 0) {
        return 0;
    }
    char *copy = strdup(address);
    if (copy == NULL) {
        return err_setf(SYM_ENOMEM, "raft peer %" PRIu64, peer->id);
    }
    free(peer->address);
    peer->address = copy;
    if (peer->out != NULL) {
        conn_part(peer->out, SYM_ECONNECT);
    }
    peer->backoff = 0;
    peer->refused = 0;
    peer_connect_in(peer, 0);
    return 0;
}

/* Of another, and one can connect to @address: its peer; else NULL and *@rv. */
static struct peer *peer_of(struct peers *p, uint64_t id, const char *address, int *rv)
{
    char host[256];
    uint16_t port;

    if (id == 0 || id == p->cfg.self) {
        *rv = err_setf(SYM_EINVAL, "raft id %" PRIu64 " is not another member's", id);
        return NULL;
    }
    *rv = addr_parse(address, PEERS_DEFAULT_PORT, host, &port);
    if (*rv != 0) {
        return NULL;
    }
    struct peer *peer = peer_add(p, id);
    *rv = peer == NULL ? SYM_ENOMEM : 0;
    return peer;
}

int peers_set(struct peers *p, uint64_t id, const char *address)
{
    int rv;
    struct peer *peer = peer_of(p, id, address, &rv);

    return peer == NULL ? rv : look_at(peer, peer->moved != NULL ? peer->moved : address);
}

/* @address is where it is after so many moves, and no other. */
static int redirect(struct peer *peer, const char *address, uint64_t moves)
{
    char *copy = strdup(address);
    if (copy == NULL) {
        return err_setf(SYM_ENOMEM, "raft peer %" PRIu64, peer->id);
    }
    free(peer->moved);
    peer->moved = copy;
    peer->moves = moves;
    peer->owner->news++;
    if (peer->address == NULL) {
        return 0;
    }
    if (peer->last_heard != 0 && strcmp(peer->address, address) != 0) {
        log_info("raft peer %" PRIu64 " is at %s now, and was at %s", peer->id, address, peer->address);
    }
    return look_at(peer, address);
}

int peers_locate(struct peers *p, uint64_t id, const char *address, uint64_t moves)
{
    int rv;
    struct peer *peer = peer_of(p, id, address, &rv);

    if (peer == NULL || moves <= peer->moves || peer_runs_elsewhere(peer, address)) {
        return rv;
    }
    return redirect(peer, address, moves);
}

void peer_correct(struct peer *peer)
{
    char host[256];
    uint16_t port;

    if (peer->moved == NULL || !peer_runs_elsewhere(peer, peer->moved) ||
        addr_parse(peer->told, PEERS_DEFAULT_PORT, host, &port) != 0) {
        return;
    }
    log_warn("raft peer %" PRIu64
             " is at %s, and not at %s, as was heard: does a copy of its folder run there?",
        peer->id, peer->told, peer->moved);
    if (redirect(peer, peer->told, peer->moves) != 0) {
        log_warn("%s", err_msg());
    }
}

const char *peers_moved(const struct peers *p, uint64_t id, uint64_t *moves)
{
    const struct peer *peer = peer_find(p, id);

    *moves = peer != NULL ? peer->moves : 0;
    return peer != NULL ? peer->moved : NULL;
}

unsigned peers_news(const struct peers *p)
{
    return p->news;
}

const char *peers_address(const struct peers *p, uint64_t id)
{
    const struct peer *peer = peer_find(p, id);

    return peer != NULL ? peer->address : NULL;
}

int peers_move(struct peers *p, const char *address, uint64_t moves)
{
    struct hello limits;
    struct peer *peer;
    char host[256];
    uint16_t port;

    int rv = addr_parse(address, PEERS_DEFAULT_PORT, host, &port);
    if (rv == 0 && strlen(address) >= sizeof limits.address) {
        rv = err_setf(SYM_EINVAL, "the address is too long");
    }
    char *copy = rv == 0 ? strdup(address) : NULL;
    if (copy == NULL) {
        return rv != 0 ? rv : err_setf(SYM_ENOMEM, "raft address");
    }
    free(p->address);
    p->address = copy;
    p->cfg.moves = moves;
    LIST_FOREACH (peer, &p->peers, link) {
        if (peer->out != NULL) {
            conn_part(peer->out, SYM_ECONNECT);
            peer_connect_in(peer, 0);
        }
    }
    return 0;
}

void peers_forget(struct peers *p, uint64_t id)
{
    struct peer *peer = peer_find(p, id);

    if (peer == NULL) {
        return;
    }
    if (peer->out != NULL) {
        conn_part(peer->out, SYM_ECANCELED);
    }
    if (peer->in != NULL) {
        conn_cut(peer->in, SYM_ECANCELED);
    }
    free(peer->address);
    free(peer->told);
    peer->address = peer->told = NULL;
    peer->down_due = false;
    peer->refused = 0;
    peer->backoff = 0;
    peer->retry_at = peer->last_heard = 0;
}

bool peers_is_up(const struct peers *p, uint64_t id)
{
    const struct peer *peer = peer_find(p, id);

    return peer != NULL && peer->up;
}

uint64_t peers_last_heard(const struct peers *p, uint64_t id)
{
    const struct peer *peer = peer_find(p, id);

    return peer != NULL ? peer->last_heard : 0;
}

const char *peers_heard_address(const struct peers *p, uint64_t id)
{
    const struct peer *peer = peer_find(p, id);

    return peer != NULL ? peer->told : NULL;
}

void peers_send(struct peers *p, uint64_t id, uint8_t kind, bool urgent, const uv_buf_t *bufs,
    unsigned n_bufs, peers_sent sent, void *arg)
{
    struct peer *peer = peer_find(p, id);
    struct frame_out *f = NULL;
    int rv = 0;

    if (p->closing) {
        rv = SYM_ECANCELED;
    } else if (peer == NULL || !peer->up) {
        rv = SYM_ECONNECT;
    } else if ((f = frame_out_new(kind, bufs, n_bufs, sent, arg, &rv)) != NULL) {
        rv = frame_queue_add(&peer->queue, f, urgent);
    }
    if (rv != 0) {
        free(f);
        complete(p, sent, arg, rv);
        return;
    }
    peers_wake(p);
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct peers *p = handle->data;

    if (--p->n_handles > 0) {
        return;
    }
    while (owes(p)) {
        peers_settle(p); /* sent while the handles were closing */
    }
    tls_ctx_free(p->client);
    tls_ctx_free(p->server);
    void (*closed)(void *arg) = p->closed;
    void *arg = p->closed_arg;
    peers_free(p);
    if (closed != NULL) {
        closed(arg);
    }
}

void peers_maybe_closed(struct peers *p)
{
    if (p->closing && !p->handles_closing && LIST_EMPTY(&p->conns) && !owes(p)) {
        p->handles_closing = true;
        uv_close((uv_handle_t *)&p->idle, on_handle_closed);
        uv_close((uv_handle_t *)&p->tick, on_handle_closed);
        uv_close((uv_handle_t *)&p->retry, on_handle_closed);
    }
}

void peers_close(struct peers *p, void (*done)(void *arg), void *arg)
{
    struct peer *peer;
    struct conn *c;

    if (p->closing) {
        return;
    }
    p->closing = true;
    p->closed = done;
    p->closed_arg = arg;
    listener_close(p->listener);
    uv_timer_stop(&p->tick);
    uv_timer_stop(&p->retry);
    LIST_FOREACH (c, &p->conns, link) {
        conn_cut(c, SYM_ECANCELED); /* without a bye: that we are gone is for the others to know at once */
    }
    LIST_FOREACH (peer, &p->peers, link) {
        peer->down_due = false;
    }
    peers_wake(p);
}
