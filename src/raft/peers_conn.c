#include "raft/peers_impl.h"

#include "base/err.h"
#include "base/log.h"
#include "raft/hello.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    OPEN_MS = 5000,     /* connect and TLS handshake */
    ALIVE_TICKS = 2,    /* who was heard so long ago is running */
    HELLO_TICKS = 5,    /* until the hello has come, or its answer */
    QUIET_TICKS = 10,   /* until a silent connection counts as dead: its host has vanished */
    FINISH_MS = 1000,   /* for a last word before we close */
    STRANGERS_MAX = 64, /* accepted connections without a valid hello */
    REFUSAL_LOG_MS = 1000,
    WARN_AGAIN_MS = 60 * 1000, /* what keeps a peer away, for each reason */
    HIGH_WATER = 256 << 10,    /* low, so that urgent frames overtake what is behind it */
    TURN_BYTES = 128 << 10,    /* per peer and loop iteration: encryption takes the loop's time */
    MAX_QUEUED = 4 << 20,
};

/* ---- the end of a connection ---- */

/* Takes @c away from its peer, which is down with it if it was the outgoing one. */
static void conn_detach(struct conn *c, int queued_status)
{
    struct peer *peer = c->peer;

    c->closing = true;
    c->peer = NULL;
    if (peer == NULL) {
        return;
    }
    if (peer->in == c) {
        peer->in = NULL;
    }
    if (peer->out == c) {
        peer->out = NULL;
        frame_queue_drop(&peer->queue, queued_status, &c->owner->done);
        peer->down_due = peer->down_due || peer->up;
        peer->up = false;
        peers_wake(c->owner);
    }
}

void conn_cut(struct conn *c, int queued_status)
{
    conn_detach(c, queued_status);
    c->cut = true;
    stream_close(c->stream, 0);
}

/* Not @why again within a minute, nor more than a few reasons: strangers can cause as many as they like. */
static bool may_say(struct said said[SAID_MAX], uint64_t now, const char *why)
{
    uint32_t what = 2166136261u;
    struct said *oldest = said;

    for (const char *s = why; *s != '\0'; s++) {
        what = (what ^ (uint8_t)*s) * 16777619u;
    }
    for (unsigned i = 0; i < SAID_MAX; i++) {
        if (said[i].at != 0 && said[i].what == what && now - said[i].at < WARN_AGAIN_MS) {
            return false;
        }
        oldest = said[i].at < oldest->at ? &said[i] : oldest;
    }
    if (oldest->at != 0 && now - oldest->at < WARN_AGAIN_MS) {
        return false;
    }
    *oldest = (struct said){.at = now != 0 ? now : 1, .what = what};
    return true;
}

/* We do not come to @peer, and will not until somebody does something. */
static void warn_of_peer(struct peer *peer, const char *why)
{
    if (may_say(peer->said, uv_now(peer->owner->cfg.loop), why)) {
        log_warn("raft peer %" PRIu64 " at %s: %s", peer->id, peer->address, why);
    }
}

/* The end of one that never got to its hello: a matter of trust is worth a word, a manager that is down is not. */
static void warn_of_end(struct conn *c, int status)
{
    struct peers *p = c->owner;

    if (c->ready || (status != SYM_EAUTH && status != SYM_EPROTO && status != SYM_ENOTFOUND)) {
        return;
    }
    if (c->peer != NULL) {
        warn_of_peer(c->peer, err_msg());
    } else if (!c->outgoing && may_say(p->said, uv_now(p->cfg.loop), err_msg())) {
        log_warn("raft connection from %s: %s", stream_peer_addr(c->stream)->host, err_msg());
    }
}

static void log_end(const struct conn *c, const char *why)
{
    log_write(c->ready ? LOG_INFO : LOG_DEBUG, "raft connection %s %" PRIu64 " ended: %s",
        c->outgoing ? "to" : "from", c->peer != NULL ? c->peer->id : 0, why);
}

/* Closes @c because of what it did or did not do (err_msg); an outgoing one is tried again. */
static void conn_fail(struct conn *c)
{
    struct peer *peer = c->outgoing ? c->peer : NULL;

    log_end(c, err_msg());
    conn_cut(c, SYM_ECONNECT);
    if (peer != NULL) {
        peer_connect_later(peer);
    }
}

static int emit(void *arg, const void *data, size_t n)
{
    struct conn *c = arg;

    return stream_write(c->stream, data, n);
}

static int send_control(struct conn *c, enum hello_kind kind, const struct buf *body)
{
    uint8_t head[FRAME_HEAD];
    size_t n = body != NULL ? body->len : 0;

    frame_put_head(head, (uint8_t)kind, FRAME_CONTROL, (uint32_t)n, false);
    stream_cork(c->stream);
    int rv = emit(c, head, sizeof head);
    if (rv == 0 && n > 0) {
        rv = emit(c, buf_data(body), n);
    }
    stream_uncork(c->stream);
    return rv;
}

/* Closes our own connection to a peer that need not think us dead. */
void conn_part(struct conn *c, int queued_status)
{
    bool say = c->ready;

    conn_detach(c, queued_status);
    if (say && send_control(c, HELLO_BYE, NULL) == 0) {
        stream_finish(c->stream, FINISH_MS);
    } else {
        conn_cut(c, queued_status);
    }
}

/* The process behind @peer is gone, or another one now: what we hold to it leads nowhere. */
static void reconnect(struct peer *peer)
{
    if (peer->out != NULL && peer->out->ready) {
        conn_part(peer->out, SYM_ECONNECT);
        peer_connect_in(peer, 0);
    }
}

void peers_maybe_closed(struct peers *p);

static void on_close(struct stream *s, int status)
{
    struct conn *c = stream_data(s);

    if (c == NULL) {
        return;
    }
    struct peers *p = c->owner;
    struct peer *peer = c->peer;
    if (!c->closing) {
        warn_of_end(c, status);
        log_end(c, status == 0 ? "closed" : err_msg());
        conn_detach(c, SYM_ECONNECT);
        if (c->outgoing) {
            peer_connect_later(peer);
        } else if (peer != NULL && !c->bye) {
            reconnect(peer);
        }
    }
    LIST_REMOVE(c, link);
    p->strangers -= !c->outgoing && !c->ready;
    frame_reader_free(&c->reader);
    free(c);
    peers_settle(p);
    peers_maybe_closed(p);
}

/* ---- frames that arrive ---- */

static void on_hello(struct conn *c, const uint8_t *data, size_t n);
bool peer_runs_elsewhere(const struct peer *peer, const char *address)
{
    return peer->in != NULL && peer->in->quiet <= ALIVE_TICKS && peer->told != NULL &&
           strcmp(peer->told, address) != 0;
}

/* Is @peer running where it was, while one of its later starts is at @address? A manager that was moved has been
 * stopped before; what else comes is a second one with a copy of its folder, and takes nothing over, whoever of us
 * has made the connection. */
static bool is_second(const struct peer *peer, uint64_t starts, const char *address)
{
    return starts > peer->starts && peer_runs_elsewhere(peer, address);
}

static void on_welcome(struct conn *c, const uint8_t *data, size_t n);
static void on_refusal(struct conn *c, const uint8_t *data, size_t n);

static void on_control(struct conn *c, uint8_t kind, const uint8_t *data, size_t n)
{
    if (!c->outgoing && !c->ready && kind == HELLO) {
        on_hello(c, data, n);
    } else if (c->outgoing && !c->ready && kind == HELLO_WELCOME) {
        on_welcome(c, data, n);
    } else if (c->outgoing && !c->ready && kind == HELLO_REFUSAL) {
        on_refusal(c, data, n);
    } else if (!c->outgoing && c->ready && kind == HELLO_BYE) {
        c->bye = true;
    } else if (!c->ready || n > 0 || kind != (c->outgoing ? HELLO_ALIVE : HELLO_PING)) {
        err_setf(SYM_EPROTO, "control frame %u out of place", kind);
        conn_fail(c);
    }
}

static bool on_frame(void *arg, enum frame_class class, uint8_t kind, uint8_t *data, size_t n)
{
    struct conn *c = arg;
    struct peers *p = c->owner;

    if (class == FRAME_CONTROL) {
        on_control(c, kind, data, n);
        free(data);
    } else {
        uint64_t now = uv_now(p->cfg.loop);
        c->peer->last_heard = now != 0 ? now : 1;
        p->cfg.on_frame(p->cfg.arg, c->peer->id, kind, data, n);
    }
    return !c->closing;
}

static void on_data(struct stream *s, const uint8_t *data, size_t n)
{
    struct conn *c = stream_data(s);

    if (c == NULL || c->closing) {
        return;
    }
    struct peers *p = c->owner;
    c->quiet = 0;
    c->heard = true;
    int rv = frame_feed(&c->reader, data, n, on_frame, c);
    if (rv != 0 && !c->closing) {
        conn_fail(c);
    }
    peers_settle(p);
}

static void on_drain(struct stream *s)
{
    struct conn *c = stream_data(s);

    if (c != NULL && !c->closing) {
        peers_wake(c->owner);
    }
}

/* ---- connections that we open ---- */

static void on_open_out(struct stream *s)
{
    struct conn *c = stream_data(s);
    struct peers *p = c->owner;
    struct hello hello = {.format = p->cfg.moves > 0 ? HELLO_FORMAT_MOVED : HELLO_FORMAT,
        .from = p->cfg.self,
        .to = c->peer->id,
        .starts = p->cfg.starts,
        .nonce = p->cfg.nonce,
        .moves = p->cfg.moves};
    struct buf out = {0};

    int rv = p->cfg.authorize(p->cfg.arg, c->peer->id, stream_tls_peer(s));
    if (rv != 0) {
        warn_of_peer(c->peer, "not its certificate");
    }
    snprintf(hello.cluster_id, sizeof hello.cluster_id, "%s", p->cluster_id);
    snprintf(hello.address, sizeof hello.address, "%s", p->address);
    if (rv == 0 && !c->closing) {
        rv = hello_encode(&hello, &out);
    }
    if (rv == 0 && !c->closing) {
        rv = send_control(c, HELLO, &out);
    }
    buf_free(&out);
    if (rv != 0 && !c->closing) {
        conn_fail(c);
    }
    peers_settle(p);
}

/* The count is on the disk before a member starts: a lower one, or the same one of another process, comes
 * from a folder that was put back as it had been. */
static bool is_older_copy(const struct peer *peer, uint64_t starts, uint64_t nonce)
{
    return starts < peer->starts || (starts == peer->starts && peer->nonce != 0 && nonce != peer->nonce);
}

static void on_welcome(struct conn *c, const uint8_t *data, size_t n)
{
    struct peers *p = c->owner;
    struct peer *peer = c->peer;
    struct welcome welcome;

    int rv = welcome_decode(data, n, &welcome);
    if (rv == 0 && (welcome.format != HELLO_FORMAT || welcome.id != peer->id)) {
        rv = err_setf(SYM_EPROTO, "the welcome is another's");
    }
    if (rv == 0 && is_older_copy(peer, welcome.starts, welcome.nonce)) {
        rv = err_setf(SYM_ECONFLICT, "its folder is an older copy");
    }
    if (rv == 0 && peer->moved != NULL && is_second(peer, welcome.starts, peer->address)) {
        rv = err_setf(SYM_EBUSY, "it runs at %s: the folder of what answers at %s is a copy", peer->told,
            peer->address);
    }
    if (rv != 0) {
        conn_fail(c);
        return;
    }
    peer_has_started(peer, welcome.starts, welcome.nonce);
    c->starts = welcome.starts;
    peer->backoff = 0;
    peer->refused = 0;
    c->ready = true;
    peer->up = true;
    log_info("raft peer %" PRIu64 " at %s is connected", peer->id, peer->address);
    p->cfg.on_up(p->cfg.arg, peer->id);
}

static void on_refusal(struct conn *c, const uint8_t *data, size_t n)
{
    struct peers *p = c->owner;
    struct peer *peer = c->peer;
    struct refusal refusal;

    int rv = refusal_decode(data, n, &refusal);
    if (rv != 0) {
        conn_fail(c);
        return;
    }
    uint64_t id = peer->id;
    if (peer->refused != refusal.code) { /* once, not at each attempt */
        log_warn("raft peer %" PRIu64 " at %s refuses us: %s%s", id, peer->address, refusal.reason,
            refusal.code == SYM_EPROTO && p->cfg.moves > 0
                ? " -- it does not know of managers that move: upgrade it"
                : "");
    }
    peer->refused = refusal.code;
    err_setf(refusal.code, "refused: %s", refusal.reason);
    conn_fail(c);
    p->cfg.on_refused(p->cfg.arg, id, refusal.code, refusal.reason);
}

static const struct stream_ops out_ops = {
    .on_open = on_open_out, .on_data = on_data, .on_drain = on_drain, .on_close = on_close};

void conn_open(struct peer *peer)
{
    struct peers *p = peer->owner;
    char host[256];
    uint16_t port;
    struct conn *c = calloc(1, sizeof *c);

    if (c == NULL) {
        peer_connect_later(peer);
        return;
    }
    *c = (struct conn){.owner = p, .peer = peer, .outgoing = true, .reader = {.control_only = true}};
    struct stream_config cfg = {
        .ops = &out_ops,
        .data = c,
        .tls = p->client,
        .open_ms = OPEN_MS,
        .high_water = HIGH_WATER,
        .max_queued = MAX_QUEUED,
    };
    int rv = addr_parse(peer->address, PEERS_DEFAULT_PORT, host, &port);
    if (rv == 0) {
        rv = stream_connect_tcp(p->cfg.loop, host, port, &cfg, &c->stream);
    }
    if (rv != 0) {
        warn_of_peer(peer, err_msg());
        free(c);
        peer_connect_later(peer);
        return;
    }
    peer->out = c;
    LIST_INSERT_HEAD(&p->conns, c, link);
}

/* ---- connections that we accept ---- */

static void refuse(struct conn *c, const struct hello *hello, int code, const char *reason)
{
    struct peers *p = c->owner;
    struct refusal refusal = {.code = code};
    struct buf out = {0};
    uint64_t now = uv_now(p->cfg.loop);

    if (p->refusal_logged == 0 || now - p->refusal_logged >= REFUSAL_LOG_MS) {
        p->refusal_logged = now;
        log_warn("raft connection from %s as %" PRIu64 " refused: %s", stream_peer_addr(c->stream)->host,
            hello->from, reason);
    }
    snprintf(refusal.reason, sizeof refusal.reason, "%s", reason);
    conn_detach(c, SYM_ECONNECT);
    if (refusal_encode(&refusal, &out) == 0 && send_control(c, HELLO_REFUSAL, &out) == 0) {
        stream_linger(c->stream, FINISH_MS);
    } else {
        conn_cut(c, SYM_ECONNECT);
    }
    buf_free(&out);
}

/* Why @hello is refused: 0, or a code and its reason. */
static int check_hello(struct conn *c, const struct hello *hello, const char **reason)
{
    struct peers *p = c->owner;

    *reason = "";
    if (!hello_is_known(hello->format)) {
        *reason = "this version of the raft transport is not known here";
        return SYM_EPROTO;
    }
    if (strcmp(hello->cluster_id, p->cluster_id) != 0) {
        *reason = "another cluster";
        return SYM_EDENIED;
    }
    if (hello->to != p->cfg.self) {
        *reason = "another member lives at this address";
        return SYM_EINVAL;
    }
    if (hello->from == 0 || hello->from == p->cfg.self) {
        *reason = "not an id of another member";
        return SYM_EINVAL;
    }
    int rv = p->cfg.authorize(p->cfg.arg, hello->from, stream_tls_peer(c->stream));
    if (rv != 0) {
        *reason = rv == SYM_ENOTFOUND ? "this member was removed" : "the certificate is not this member's";
        return rv;
    }
    struct peer *peer = peer_find(p, hello->from);
    if (peer != NULL && is_older_copy(peer, hello->starts, hello->nonce)) {
        *reason = "this member has started more often than its folder knows: it is an older copy";
        return SYM_ECONFLICT;
    }
    if (peer != NULL && is_second(peer, hello->starts, hello->address)) {
        *reason = "this member is running at another address: was its folder copied?";
        return SYM_EBUSY;
    }
    return 0;
}

static void on_hello(struct conn *c, const uint8_t *data, size_t n)
{
    struct peers *p = c->owner;
    struct hello hello;
    struct buf out = {0};
    struct peer *peer;
    char *told = NULL;
    const char *reason;

    int rv = hello_decode(data, n, &hello);
    if (rv != 0) {
        conn_fail(c);
        return;
    }
    rv = check_hello(c, &hello, &reason);
    if (c->closing) {
        return;
    }
    if (rv != 0) {
        refuse(c, &hello, rv, reason);
        return;
    }
    struct welcome welcome = {
        .format = HELLO_FORMAT, .id = p->cfg.self, .starts = p->cfg.starts, .nonce = p->cfg.nonce};
    peer = peer_add(p, hello.from);
    told = strdup(hello.address);
    rv = peer == NULL || told == NULL ? SYM_ENOMEM : welcome_encode(&welcome, &out);
    if (rv == 0) {
        peer_has_started(peer, hello.starts, hello.nonce);
        rv = send_control(c, HELLO_WELCOME, &out);
    }
    buf_free(&out);
    if (rv != 0) {
        free(told);
        conn_fail(c);
        return;
    }
    free(peer->told);
    peer->told = told;
    if (peer->in != NULL) {
        conn_cut(peer->in, SYM_ECONNECT);
    }
    peer->in = c;
    c->peer = peer;
    c->ready = true;
    c->reader.control_only = false;
    p->strangers--;
    if (hello.moves > 0 && peers_locate(p, hello.from, hello.address, hello.moves) != 0) {
        log_warn("raft peer %" PRIu64 ": %s", peer->id, err_msg());
    }
    peer_correct(peer);
    if (peer->out != NULL && peer->out->starts < hello.starts) {
        reconnect(peer); /* that was to an earlier process */
    } else if (!peer_is_slow(peer) && peer->out == NULL) {
        peer_connect_in(peer, 0); /* it is there: no need to wait out the backoff */
    }
}

static void on_open_in(struct stream *s)
{
    struct conn *c = stream_data(s);
    const struct tls_peer *peer = stream_tls_peer(s);

    if (c != NULL && (peer == NULL || !peer->present)) {
        err_setf(SYM_EAUTH, "no certificate");
        conn_fail(c);
    }
}

static const struct stream_ops in_ops = {
    .on_open = on_open_in, .on_data = on_data, .on_drain = on_drain, .on_close = on_close};

/* Makes room for one more stranger by ending the oldest: holding connections open must not keep members out.
 */
static bool make_room(struct peers *p)
{
    struct conn *c, *oldest = NULL;

    if (p->strangers < STRANGERS_MAX) {
        return true;
    }
    LIST_FOREACH (c, &p->conns, link) {
        if (!c->outgoing && !c->ready && !c->cut) {
            oldest = c; /* the list is from new to old */
        }
    }
    if (oldest == NULL) {
        return false;
    }
    conn_cut(oldest, SYM_ECONNECT);
    return true;
}

bool conn_accept(void *arg, const struct peer_addr *from, struct stream_config *cfg)
{
    struct peers *p = arg;

    (void)from;
    if (p->closing || !make_room(p)) {
        return false;
    }
    *cfg = (struct stream_config){
        .ops = &in_ops,
        .tls = p->server,
        .open_ms = OPEN_MS,
        .high_water = HIGH_WATER,
        .max_queued = MAX_QUEUED,
    };
    return true;
}

void conn_accepted(void *arg, struct stream *s)
{
    struct peers *p = arg;
    struct conn *c = calloc(1, sizeof *c);

    if (c == NULL) {
        stream_close(s, err_setf(SYM_ENOMEM, "raft connection"));
        return;
    }
    *c = (struct conn){.owner = p, .stream = s, .reader = {.control_only = true}};
    stream_set_data(s, c);
    LIST_INSERT_HEAD(&p->conns, c, link);
    p->strangers++;
}

/* ---- writing, keep-alive ---- */

/* Writes what the stream takes. */
void conn_pump(struct peer *peer)
{
    struct conn *c = peer->out;
    struct peers *p = peer->owner;
    struct frame_out *finished;
    long n = 1;

    stream_cork(c->stream);
    for (long turn = 0; n > 0 && turn < TURN_BYTES && !stream_congested(c->stream); turn += n) {
        n = frame_queue_next(&peer->queue, emit, c, &finished);
        if (finished != NULL) {
            TAILQ_INSERT_TAIL(&p->done, finished, link);
        }
    }
    stream_uncork(c->stream);
    c->wrote = true;
    if (n < 0) {
        conn_fail(c);
    } else if (!frame_queue_empty(&peer->queue) && !stream_congested(c->stream)) {
        peers_wake(p);
    }
}

/* Who was let in on his certificate alone may turn out to have been removed as this state goes on. */
static int check_again(struct conn *c)
{
    struct peers *p = c->owner;
    if (c->outgoing || c->peer->address != NULL) {
        return 0;
    }
    int rv = p->cfg.authorize(p->cfg.arg, c->peer->id, stream_tls_peer(c->stream));
    return rv == SYM_ENOTFOUND ? rv : 0;
}

void conns_tick(struct peers *p)
{
    struct conn *c;

    /* Ticks are counted, not milliseconds: when this process was stopped for a while, nobody else was silent.
     */
    LIST_FOREACH (c, &p->conns, link) {
        int rv = 0;
        if (c->closing) {
            continue;
        }
        if (!c->ready) {
            rv = ++c->age > HELLO_TICKS ? err_setf(SYM_ETIMEOUT, "no hello in time") : 0;
        } else if (++c->quiet > QUIET_TICKS) {
            rv = err_setf(SYM_ETIMEOUT, "silent for %d s", QUIET_TICKS);
        } else if ((rv = check_again(c)) != 0) {
            ; /* it tries anew, and is told then */
        } else if (c->outgoing && !c->wrote) {
            rv = send_control(c, HELLO_PING, NULL);
        } else if (!c->outgoing && c->heard) {
            rv = send_control(c, HELLO_ALIVE, NULL);
        }
        c->wrote = c->heard = false;
        if (rv != 0) {
            conn_fail(c);
        }
    }
}
