#include "raft/node_int.h"

#include "base/err.h"
#include "base/log.h"
#include "crypto/crypto.h"
#include "raft/kinds.h"
#include "raft/logdir.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    DEFAULT_ELECTION_MS = 400,
    DEFAULT_HEARTBEAT_MS = 50,
    DEFAULT_SUBMIT_MS = 5000,
    DEFAULT_READ_MS = 1500
};
enum { INSTALL_MS = 5000, DISK_RETRY_MS = 500, SEGMENT_BYTES = 8 << 20, IN_FLIGHT_ENTRIES = 4096 };
enum { INFO_VERSION = 1, INFO_DISK_LOW = 1, INFO_STORE_LOW = 2, INFO_LEN = 18, STRANGER_MS = 10000 };

/* Rules 3 and 4: the supervisor starts us again, and what is on disk is what counts. */
void node_fatal(void *arg, const char *what, int rv)
{
    (void)arg;
    log_error("raft: %s: %s; this process ends, to start again from what is on disk", what,
        rv > 0 ? raft_strerror(rv) : err_name(rv));
    _exit(70);
}

uint64_t node_random(struct rnode *n, unsigned below)
{
    n->random ^= n->random << 13;
    n->random ^= n->random >> 7;
    n->random ^= n->random << 17;
    return n->random % below;
}

static void on_idle(uv_idle_t *idle)
{
    (void)idle; /* its being active is what counts: the loop does not sleep */
}

void node_kick(struct rnode *n)
{
    if (!n->kicked && n->n_handles > 0 && !uv_is_closing((uv_handle_t *)&n->idle)) {
        n->kicked = true;
        uv_idle_start(&n->idle, on_idle);
    }
}

void node_later(struct rnode *n, rnode_cb cb, void *arg, int status)
{
    struct later *l = malloc(sizeof *l);
    if (l == NULL) {
        node_fatal(n, "no memory", RAFT_NOMEM);
    }
    *l = (struct later){.cb = cb, .arg = arg, .status = status};
    snprintf(l->text, sizeof l->text, "%s", err_msg());
    STAILQ_INSERT_TAIL(&n->laters, l, link);
    node_kick(n);
}

static void say_laters(struct rnode *n)
{
    struct later *l;
    while ((l = STAILQ_FIRST(&n->laters)) != NULL) {
        STAILQ_REMOVE_HEAD(&n->laters, link);
        if (l->status != 0) {
            err_setf(l->status, "%s", l->text);
        }
        l->cb(l->arg, l->status);
        free(l);
    }
}

/* --- the others --- */

static struct other *find_other(struct rnode *n, uint64_t id)
{
    for (unsigned i = 0; i < n->n_others; i++) {
        if (n->others[i].id == id) {
            return &n->others[i];
        }
    }
    return NULL;
}

static const struct other *other_of(const struct rnode *n, uint64_t id)
{
    return find_other((struct rnode *)n, id);
}

static void drop_other(struct rnode *n, struct other *o)
{
    peers_forget(n->peers, o->id);
    *o = n->others[--n->n_others];
}

static struct other *add_other(struct rnode *n, uint64_t id)
{
    struct other *o = find_other(n, id);
    if (o == NULL && n->n_others == NODE_PEERS_MAX) {
        /* One removed long ago makes room: its id is refused by what the state says of it. */
        for (unsigned i = 0; i < n->n_others && n->n_others == NODE_PEERS_MAX; i++) {
            if (n->others[i].removed) {
                drop_other(n, &n->others[i]);
            }
        }
    }
    if (o == NULL && n->n_others < NODE_PEERS_MAX) {
        o = &n->others[n->n_others++];
        *o = (struct other){.id = id};
    }
    return o;
}

const struct raft_server *node_server(const struct rnode *n, uint64_t id)
{
    const struct raft_configuration *c = &n->raft.configuration;
    for (unsigned i = 0; i < c->n; i++) {
        if (c->servers[i].id == id) {
            return &c->servers[i];
        }
    }
    return NULL;
}

static void tell_removed(struct rnode *n, int code, const char *reason)
{
    if (!n->told_removed && n->phase == NODE_RUNNING) {
        n->told_removed = true;
        log_warn("raft: %s", reason);
        n->cfg.on_removed(n->cfg.arg, code, reason);
    }
}

/* Rule 11: libraft does not tell a removed member. Its connections are cut here, and when it comes back it is
 * told. */
static void remove_others(struct rnode *n)
{
    if (n->raft.configuration_uncommitted_index != 0 || n->raft.configuration.n == 0) {
        return;
    }
    for (unsigned i = 0; i < n->n_others; i++) {
        struct other *o = &n->others[i];
        if (o->member && !o->removed && node_server(n, o->id) == NULL) {
            log_info("manager %llu is no member any more", (unsigned long long)o->id);
            o->removed = true;
            peers_forget(n->peers, o->id);
        }
    }
    if (node_server(n, n->cfg.id) != NULL) {
        n->was_member = true;
    } else if (n->was_member) {
        tell_removed(n, SYM_ENOTFOUND, "this manager has been removed from the cluster");
    }
}

static void sync_others(struct rnode *n)
{
    const struct raft_configuration *c = &n->raft.configuration;
    for (unsigned i = 0; i < c->n; i++) {
        const struct raft_server *s = &c->servers[i];
        if (s->id == n->cfg.id) {
            continue;
        }
        struct other *o = add_other(n, s->id);
        if (o == NULL) {
            continue;
        }
        o->member = true;
        o->removed = false;
        if (peers_set(n->peers, s->id, s->address) != 0) {
            log_error("manager %llu: %s", (unsigned long long)s->id, err_msg());
        }
    }
    remove_others(n);
}

/* One that speaks to us and is in no configuration that we know: the leader of the cluster that we are
 * joining. To answer it we have to connect to it. */
static void meet(struct rnode *n, uint64_t id)
{
    struct other *o = find_other(n, id);
    if (o == NULL) {
        const char *address = peers_heard_address(n->peers, id);
        o = address == NULL ? NULL : add_other(n, id);
        if (o != NULL && peers_set(n->peers, id, address) != 0) {
            log_warn("manager %llu: %s", (unsigned long long)id, err_msg());
        }
    }
    if (o != NULL) {
        o->heard_at = uv_now(n->loop);
    }
}

static void forget_strangers(struct rnode *n)
{
    uint64_t now = uv_now(n->loop);
    for (unsigned i = n->n_others; i-- > 0;) {
        struct other *o = &n->others[i];
        if (!o->member && o->id != n->leader && now - o->heard_at > STRANGER_MS) {
            drop_other(n, o);
        }
    }
}

/* Only frames that are copied. */
static void send_frame(struct rnode *n, uint64_t id, uint8_t kind, const void *data, size_t n_bytes)
{
    if (n->peers_open) {
        uv_buf_t piece = uv_buf_init((char *)data, (unsigned)n_bytes);
        bool urgent =
            kind == KIND_CONFIRM || kind == KIND_CONFIRMED || kind == KIND_ASK || kind == KIND_INDEX;
        peers_send(n->peers, id, kind, urgent, &piece, 1, NULL, NULL);
    }
}

static uint64_t headroom_floor(const struct rnode *n)
{
    uint64_t quota = n->store_config.quota == 0 ? 1u << 30 : n->store_config.quota;
    return quota / 8 < NODE_HEADROOM_FLOOR ? quota / 8 : NODE_HEADROOM_FLOOR;
}

static bool store_low(const struct rnode *n)
{
    return store_headroom(n->cfg.store) < headroom_floor(n);
}

static void send_info(struct rnode *n, uint64_t id)
{
    struct buf bytes = {0};
    struct wr w = wr_init(&bytes);
    wr_u8(&w, INFO_VERSION);
    wr_u8(&w, (n->health.low ? INFO_DISK_LOW : 0) | (store_low(n) ? INFO_STORE_LOW : 0));
    wr_u64(&w, n->health.free);
    wr_u64(&w, store_headroom(n->cfg.store));
    if (!w.bad) {
        send_frame(n, id, KIND_INFO, buf_data(&bytes), bytes.len);
    }
    buf_free(&bytes);
}

static void send_infos(struct rnode *n)
{
    n->info_sent_at = uv_now(n->loop);
    for (unsigned i = 0; i < n->n_others; i++) {
        if (peers_is_up(n->peers, n->others[i].id)) {
            send_info(n, n->others[i].id);
        }
    }
}

static void on_info(struct rnode *n, uint64_t id, const uint8_t *data, size_t len)
{
    struct other *o = find_other(n, id);
    struct rd r = rd_init(data, len);
    uint8_t version = rd_u8(&r);
    uint8_t flags = rd_u8(&r);
    uint64_t disk_free = rd_u64(&r);
    uint64_t headroom = rd_u64(&r);
    if (o == NULL || r.bad || version < INFO_VERSION) {
        return; /* a later version may have more at the end */
    }
    o->disk_low = (flags & INFO_DISK_LOW) != 0;
    o->store_low = (flags & INFO_STORE_LOW) != 0;
    o->disk_free = disk_free;
    o->headroom = headroom;
    o->info_at = uv_now(n->loop);
    node_kick(n);
}

/* --- what peers tells --- */

static int on_authorize(void *arg, uint64_t id, const struct tls_peer *peer)
{
    struct rnode *n = arg;
    const struct other *o = other_of(n, id);
    if (o != NULL && o->removed) {
        return err_setf(
            SYM_ENOTFOUND, "manager %llu has been removed from the cluster", (unsigned long long)id);
    }
    return n->cfg.authorize(n->cfg.arg, id, peer);
}

static void on_frame(void *arg, uint64_t id, uint8_t kind, uint8_t *data, size_t len)
{
    struct rnode *n = arg;
    const struct other *o = other_of(n, id);
    if (n->phase == NODE_CLOSING || (o != NULL && o->removed)) {
        free(data);
        return;
    }
    meet(n, id);
    switch (kind) {
    case KIND_RAFT:
        sender_receive(n, id, data, len); /* takes the bytes over */
        return;
    case KIND_INFO:
        on_info(n, id, data, len);
        break;
    case KIND_SUBMIT:
        submit_on_txns(&n->submit, id, data, len);
        break;
    case KIND_RESULT:
        submit_on_results(&n->submit, id, data, len);
        break;
    default:
        reads_on_frame(&n->reads, id, kind, data, len);
        break;
    }
    free(data);
}

static void on_up(void *arg, uint64_t id)
{
    struct rnode *n = arg;
    if (n->phase != NODE_CLOSING) {
        send_info(n, id);
        n->changed = true;
        node_look(n);
    }
}

static void on_down(void *arg, uint64_t id)
{
    struct rnode *n = arg;
    if (n->phase != NODE_CLOSING) {
        submit_down(&n->submit, id);
        n->changed = true;
        failover_down(n, id);
        node_look(n);
    }
}

static void on_refused(void *arg, uint64_t id, int code, const char *reason)
{
    struct rnode *n = arg;
    if (code == SYM_ENOTFOUND || code == SYM_ECONFLICT) {
        tell_removed(n, code, reason);
    } else {
        log_warn("manager %llu refuses this one: %s", (unsigned long long)id, reason);
    }
}

/* --- what libraft tells --- */

static uint64_t leader_now(const struct rnode *n)
{
    raft_id id;
    const char *address;
    if (n->raft.state == RAFT_LEADER) {
        return n->cfg.id;
    }
    raft_leader((struct raft *)&n->raft, &id, &address);
    return id;
}

void node_look(struct rnode *n)
{
    struct raft *r = &n->raft;
    if (n->phase == NODE_CLOSING) {
        return;
    }
    uint64_t leader = leader_now(n);
    if (r->state != n->state || r->current_term != n->term || leader != n->leader) {
        bool led = n->state == RAFT_LEADER;
        n->elections += r->state == RAFT_CANDIDATE && n->state != RAFT_CANDIDATE;
        n->state = r->state;
        n->term = r->current_term;
        n->leader = leader;
        n->changed = true;
        reads_changed(&n->reads);
        if (led && r->state != RAFT_LEADER) {
            propose_lost(&n->propose);
        }
    }
    if (r->configuration_committed_index != n->config_index ||
        r->configuration_uncommitted_index != n->config_pending || r->configuration.n != n->config_n) {
        n->config_index = r->configuration_committed_index;
        n->config_pending = r->configuration_uncommitted_index;
        n->config_n = r->configuration.n;
        n->changed = true;
        sync_others(n);
    }
    submit_changed(&n->submit);
    if (guard_fresh_bytes(&n->guard) >= NODE_SNAPSHOT_BYTES) {
        raft_set_snapshot_threshold(r, 1);
    }
    node_kick(n);
}

static void guard_changed(void *arg)
{
    node_look(arg);
}

struct job {
    uv_work_t work;
    struct guard_job *job;
};
_Static_assert(
    sizeof(uv_work_t) <= sizeof((struct guard_job *)0)->slot, "a guard_job has room for a uv_work_t");

static void on_pool(uv_work_t *work)
{
    struct guard_job *job = work->data;
    job->run(job);
}

static void after_pool(uv_work_t *work, int status)
{
    (void)status;
    struct guard_job *job = work->data;
    job->done(job);
}

static void guard_work(void *arg, struct guard_job *job)
{
    struct rnode *n = arg;
    uv_work_t *work = (uv_work_t *)job->slot;
    work->data = job;
    if (uv_queue_work(n->loop, work, on_pool, after_pool) != 0) {
        node_fatal(n, "queueing work", RAFT_IOERR);
    }
}

static int guard_encode(void *arg, struct raft_buffer *out)
{
    return fsm_encode(&((struct rnode *)arg)->fsm, out);
}

static int guard_prepare(void *arg, const struct raft_buffer *data)
{
    return fsm_prepare(&((struct rnode *)arg)->fsm, data);
}

static const struct guard_ops guard_ops = {
    .fatal = node_fatal,
    .changed = guard_changed,
    .work = guard_work,
    .encode = guard_encode,
    .prepare = guard_prepare,
};

static bool fsm_wanted(void *arg, uint64_t index)
{
    return propose_wanted(&((struct rnode *)arg)->propose, index);
}

static void fsm_deliver(void *arg, uint64_t index, struct txn_result *results, unsigned n_results)
{
    propose_deliver(&((struct rnode *)arg)->propose, index, results, n_results);
}

/* What stays of the log behind the snapshot is bounded in entries and in bytes. raft_uv takes 0 for an
 * installation. */
static void fsm_taking(void *arg)
{
    struct rnode *n = arg;
    unsigned keep =
        guard_trailing(&n->guard, n->raft.commit_index, NODE_TRAILING_ENTRIES, NODE_TRAILING_BYTES);
    raft_set_snapshot_trailing(&n->raft, keep);
    raft_set_snapshot_threshold(&n->raft, NODE_SNAPSHOT_ENTRIES);
}

static const struct fsm_ops fsm_ops = {
    .fatal = node_fatal,
    .wanted = fsm_wanted,
    .deliver = fsm_deliver,
    .taking = fsm_taking,
};

/* --- proposing --- */

static bool voters(const struct rnode *n, bool (*good)(const struct rnode *n, uint64_t id))
{
    const struct raft_configuration *c = &n->raft.configuration;
    unsigned all = 0, yes = 0;
    for (unsigned i = 0; i < c->n; i++) {
        if (c->servers[i].role == RAFT_VOTER) {
            all++;
            yes += c->servers[i].id == n->cfg.id || good(n, c->servers[i].id);
        }
    }
    return yes > all / 2;
}

static bool is_connected(const struct rnode *n, uint64_t id)
{
    return peers_is_up(n->peers, id);
}

static bool is_heard(const struct rnode *n, uint64_t id)
{
    uint64_t heard = peers_last_heard(n->peers, id);
    return peers_is_up(n->peers, id) && heard != 0 && uv_now(n->loop) - heard <= n->raft.election_timeout;
}

/* Rule 15: here, or on a voter that is there. */
static void look_for_room(struct rnode *n)
{
    const struct raft_configuration *c = &n->raft.configuration;
    bool disk = n->health.low, store = store_low(n);
    for (unsigned i = 0; i < c->n; i++) {
        const struct other *o = other_of(n, c->servers[i].id);
        if (o != NULL && c->servers[i].role == RAFT_VOTER && peers_is_up(n->peers, o->id)) {
            disk |= o->disk_low;
            store |= o->store_low;
        }
    }
    n->changed |= disk != n->low_disk || store != n->low_store;
    n->low_disk = disk;
    n->low_store = store;
}

/* A full store takes what only makes room. */
static bool only_deletes(const uint8_t *txn, size_t len)
{
    struct txn *t = malloc(sizeof *t);
    bool only = t != NULL && txn_decode(txn, len, t) == 0 && t->n_ops > 0;
    for (unsigned i = 0; only && i < t->n_ops; i++) {
        only = t->ops[i].kind == OP_DELETE;
    }
    free(t);
    return only;
}

static int propose_may(void *arg, const uint8_t *txn, size_t len)
{
    struct rnode *n = arg;
    if (n->may == 0 && n->low_store && !only_deletes(txn, len)) {
        return SYM_ENOSPACE;
    }
    return n->may;
}

static int may_propose(struct rnode *n)
{
    if (n->low_disk) {
        return SYM_ENOSPACE;
    }
    if (!voters(n, is_connected)) {
        return SYM_ENOQUORUM; /* it would only become uncertain */
    }
    return guard_log_bytes(&n->guard) > NODE_LOG_BYTES_MAX ? SYM_EBUSY : 0;
}

static uint64_t store_revision_of(void *arg)
{
    return store_revision(((struct rnode *)arg)->cfg.store);
}

static const struct propose_ops propose_ops = {
    .fatal = node_fatal,
    .may = propose_may,
    .revision = store_revision_of,
};

static uint64_t ops_now(void *arg)
{
    return uv_now(((struct rnode *)arg)->loop);
}

static uint64_t submit_leader(void *arg)
{
    const struct rnode *n = arg;
    if (n->raft.state == RAFT_LEADER) {
        return raft_transferee(&n->raft) == 0 ? n->cfg.id : 0;
    }
    uint64_t id = leader_now(n);
    return id != 0 && peers_is_up(n->peers, id) ? id : 0;
}

static void ops_send(void *arg, uint64_t id, uint8_t kind, const void *data, size_t len)
{
    send_frame(arg, id, kind, data, len);
}

static void ops_kick(void *arg)
{
    node_kick(arg);
}

static const struct submit_ops submit_ops = {
    .now = ops_now,
    .leader = submit_leader,
    .send = ops_send,
    .kick = ops_kick,
};

static const struct reads_ops reads_ops = {
    .fatal = node_fatal,
    .now = ops_now,
    .send = ops_send,
    .kick = ops_kick,
};

void rnode_submit(
    struct rnode *n, const uint8_t *txn, size_t len, uint64_t timeout_ms, rnode_txn_cb cb, void *arg)
{
    submit_txn(&n->submit, txn, len, timeout_ms == 0 ? DEFAULT_SUBMIT_MS : timeout_ms, cb, arg);
}

void rnode_read(struct rnode *n, uint64_t timeout_ms, rnode_cb cb, void *arg)
{
    reads_begin(&n->reads, timeout_ms == 0 ? DEFAULT_READ_MS : timeout_ms, cb, arg);
}

/* --- the loop --- */

static void begin_close(struct rnode *n);

static void handed_over(void *arg, int status)
{
    struct rnode *n = arg;
    (void)status;
    n->phase = NODE_HANDED_OVER;
    node_kick(n);
}

static void stop_step(struct rnode *n)
{
    if (n->phase == NODE_STOP_ASKED) {
        n->phase = NODE_HANDING_OVER;
        rnode_transfer(n, 0, handed_over, n);
        n->member.transfer_deadline = uv_now(n->loop) + n->raft.election_timeout;
    } else if (n->phase == NODE_HANDED_OVER) {
        begin_close(n);
    }
}

static void flush(struct rnode *n)
{
    if (!n->kicked) {
        return;
    }
    n->kicked = false;
    sender_flush(n);
    say_laters(n);
    if (n->phase != NODE_CLOSING) {
        look_for_room(n);
        n->may = may_propose(n);
        submit_flush(&n->submit);
        propose_flush(&n->propose);
        member_flush(n);
        reads_flush(&n->reads);
        if (n->applied != n->raft.last_applied) {
            n->applied = n->raft.last_applied;
            if (store_pump(n->cfg.store)) {
                n->applied--; /* there is more to tell */
                node_kick(n);
            }
            n->cfg.on_applied(n->cfg.arg);
        }
        if (n->changed) {
            n->changed = false;
            n->cfg.on_change(n->cfg.arg);
        }
        stop_step(n);
    } else {
        /* Those that still come are refused. */
        submit_flush(&n->submit);
        reads_flush(&n->reads);
    }
    if (!n->kicked) {
        uv_idle_stop(&n->idle);
    }
}

static void on_prepare(uv_prepare_t *prepare)
{
    flush(prepare->data);
}

static void on_check(uv_check_t *check)
{
    flush(check->data);
}

static void on_tick(uv_timer_t *timer)
{
    struct rnode *n = timer->data;
    if (n->phase == NODE_CLOSING) {
        return;
    }
    failover_tick(n);
    submit_tick(&n->submit);
    reads_tick(&n->reads);
    health_tick(&n->health);
    forget_strangers(n);
    if (uv_now(n->loop) - n->info_sent_at >= n->raft.election_timeout / 3) {
        send_infos(n);
    }
    node_look(n);
}

static void on_health(void *arg)
{
    struct rnode *n = arg;
    if (n->peers_open && n->phase != NODE_CLOSING) {
        send_infos(n);
        node_kick(n);
    }
}

/* --- the end --- */

static void free_node(struct rnode *n)
{
    guard_free(&n->guard);
    if (n->lock_fd >= 0) {
        close(n->lock_fd);
    }
    free(n->address);
    free(n->dir);
    free(n->cluster_id);
    free(n->store_dir);
    free(n);
}

static void finish_close(struct rnode *n)
{
    if (n->raft_open || n->peers_open || n->health_open || n->n_handles > 0) {
        return;
    }
    void (*stopped)(void *arg) = n->stopped;
    void *arg = n->stopped_arg;
    submit_close(&n->submit);
    reads_close(&n->reads);
    say_laters(n);
    free_node(n);
    if (stopped != NULL) {
        stopped(arg);
    }
}

static void handle_closed(uv_handle_t *handle)
{
    struct rnode *n = handle->data;
    n->n_handles--;
    finish_close(n);
}

static void close_handles(struct rnode *n)
{
    uv_close((uv_handle_t *)&n->prepare, handle_closed);
    uv_close((uv_handle_t *)&n->check, handle_closed);
    uv_close((uv_handle_t *)&n->idle, handle_closed);
    uv_close((uv_handle_t *)&n->tick, handle_closed);
    uv_close((uv_handle_t *)&n->failover, handle_closed);
}

static void health_closed(void *arg)
{
    struct rnode *n = arg;
    n->health_open = false;
    finish_close(n);
}

static void raft_closed(struct raft *raft)
{
    struct rnode *n = ((struct guard *)raft->data)->arg;
    n->raft_open = false;
    raft_uv_close(&n->io);
    fsm_close(&n->fsm);
    close_handles(n);
    if (n->health_open) {
        health_close(&n->health, health_closed);
    }
}

static void peers_closed(void *arg)
{
    struct rnode *n = arg;
    n->peers_open = false;
    guard_release(&n->guard);
    finish_close(n);
}

/* Everything that waits is answered first, then libraft's sends (which need its log), then its log. */
static void begin_close(struct rnode *n)
{
    n->phase = NODE_CLOSING;
    uv_timer_stop(&n->failover);
    uv_timer_stop(&n->tick);
    n->propose.closing = true;
    if (n->peers_open) {
        guard_hold(&n->guard);
    }
    raft_close(&n->raft, raft_closed);
    propose_close(&n->propose);
    submit_close(&n->submit);
    reads_close(&n->reads);
    member_close(n);
    sender_flush(n);
    say_laters(n);
    if (n->peers_open) {
        peers_close(n->peers, peers_closed, n);
    }
}

void rnode_stop(struct rnode *n, void (*done)(void *arg), void *arg)
{
    n->stopped = done;
    n->stopped_arg = arg;
    n->phase = NODE_STOP_ASKED;
    node_kick(n);
}

/* --- the start --- */

/* raft_uv speaks over streams that it reads and writes itself, so TLS does not fit beneath it: it never gets
 * one, and its send is replaced. */
static int stub_init(struct raft_uv_transport *t, raft_id id, const char *address)
{
    (void)t;
    (void)id;
    (void)address;
    return 0;
}

static int stub_listen(struct raft_uv_transport *t, raft_uv_accept_cb cb)
{
    (void)t;
    (void)cb;
    return 0;
}

static int stub_connect(struct raft_uv_transport *t, struct raft_uv_connect *req, raft_id id,
    const char *address, raft_uv_connect_cb cb)
{
    (void)t;
    (void)req;
    (void)id;
    (void)address;
    (void)cb;
    return RAFT_NOCONNECTION;
}

static void stub_close(struct raft_uv_transport *t, raft_uv_transport_close_cb cb)
{
    cb(t);
}

static void stub_transport(struct raft_uv_transport *t)
{
    *t = (struct raft_uv_transport){
        .version = 1, .init = stub_init, .listen = stub_listen, .connect = stub_connect, .close = stub_close};
}

/* What libraft says of a failure while it reads the folder. */
static int load_error(const char *dir, const struct logdir *log, int rv, const char *errmsg)
{
    char what[512];
    switch (rv) {
    case RAFT_NOMEM:
        return err_setf(SYM_ENOMEM, "out of memory");
    case RAFT_UNAUTHORIZED:
        return err_setf(SYM_EDENIED, "%s", errmsg);
    case RAFT_NOSPACE:
        return err_setf(SYM_ENOSPACE, "%s: %s", dir, errmsg);
    case RAFT_CORRUPT:
    case RAFT_MALFORMED:
    case RAFT_IOERR:
        snprintf(what, sizeof what, "%s%s%s%s", errmsg,
            log->snapshot_name[0] == '\0' ? "" : " (newest snapshot: ", log->snapshot_name,
            log->snapshot_name[0] == '\0' ? "" : ")");
        return logdir_corrupt(dir, what);
    default:
        return err_setf(SYM_EIO, "%s: %s (%s)", dir, errmsg, raft_strerror(rv));
    }
}

static int open_io(struct raft_io *io, struct raft_uv_transport *transport, uv_loop_t *loop, const char *dir)
{
    stub_transport(transport);
    memset(io, 0, sizeof *io);
    int rv = raft_uv_init(io, loop, dir, transport);
    if (rv != 0) {
        return err_setf(rv == RAFT_NAMETOOLONG ? SYM_EINVAL : SYM_ENOMEM, "%s: %s", dir, io->errmsg);
    }
    raft_uv_set_auto_recovery(
        io, false); /* rule 4: it would move damaged files aside and go on without them */
    raft_uv_set_segment_size(io, SEGMENT_BYTES);
    raft_uv_set_disk_retry(io, DISK_RETRY_MS);
    raft_uv_set_tracer(io, NULL);
    return 0;
}

static int copy_config(struct rnode *n, const struct rnode_config *cfg)
{
    n->cfg = *cfg;
    n->store_config = *cfg->store_config;
    n->address = strdup(cfg->address);
    n->dir = strdup(cfg->dir);
    n->cluster_id = strdup(cfg->cluster_id);
    n->store_dir = strdup(cfg->store_config->dir);
    if (n->address == NULL || n->dir == NULL || n->cluster_id == NULL || n->store_dir == NULL) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    n->cfg.address = n->address;
    n->cfg.dir = n->dir;
    n->cfg.cluster_id = n->cluster_id;
    n->store_config.dir = n->store_dir;
    /* Not ours to keep. */
    n->cfg.cert = n->cfg.ca = NULL;
    n->cfg.key = NULL;
    return 0;
}

static int open_peers(struct rnode *n, const struct rnode_config *cfg)
{
    struct peers_config peers = {
        .loop = cfg->loop,
        .self = cfg->id,
        .cluster_id = n->cluster_id,
        .bind_addr = cfg->bind_addr,
        .port = cfg->port,
        .address = n->address,
        .starts = cfg->starts,
        .arg = n,
        .authorize = on_authorize,
        .on_frame = on_frame,
        .on_up = on_up,
        .on_down = on_down,
        .on_refused = on_refused,
    };
    int rv = peers_new(&peers, cfg->cert, cfg->key, cfg->ca, &n->peers);
    n->peers_open = rv == 0;
    return rv;
}

static void open_handles(struct rnode *n)
{
    uv_prepare_init(n->loop, &n->prepare);
    uv_check_init(n->loop, &n->check);
    uv_idle_init(n->loop, &n->idle);
    uv_timer_init(n->loop, &n->tick);
    failover_init(n);
    n->prepare.data = n->check.data = n->idle.data = n->tick.data = n;
    n->n_handles = 5;
    /* The loop calls these in the reverse order of their start: raft_uv's come first. */
    uv_prepare_start(&n->prepare, on_prepare);
    uv_check_start(&n->check, on_check);
    uv_timer_start(&n->tick, on_tick, NODE_TICK_MS, NODE_TICK_MS);
}

static void set_up_raft(struct rnode *n)
{
    unsigned election = n->cfg.election_ms == 0 ? DEFAULT_ELECTION_MS : n->cfg.election_ms;
    unsigned heartbeat = n->cfg.heartbeat_ms == 0 ? DEFAULT_HEARTBEAT_MS : n->cfg.heartbeat_ms;
    n->raft.tracer = NULL;
    raft_set_heartbeat_timeout(&n->raft, heartbeat);
    raft_set_election_timeout(&n->raft, election);
    raft_set_install_snapshot_timeout(&n->raft, INSTALL_MS);
    raft_set_pre_vote(&n->raft, true);
    raft_set_max_inflight_entries(&n->raft, IN_FLIGHT_ENTRIES);
    raft_set_snapshot_threshold(&n->raft, NODE_SNAPSHOT_ENTRIES);
    raft_set_snapshot_trailing(&n->raft, NODE_TRAILING_ENTRIES);
    n->io.send = sender_send;
    guard_wrap(&n->guard, &n->raft, &guard_ops, n);
}

/* libraft goes on with an older snapshot or a shorter log where it can; we do not. */
static int check_loaded(struct rnode *n, const struct logdir *log)
{
    char what[256];
    uint64_t last = raft_last_index(&n->raft), applied = store_applied(n->cfg.store);
    if (n->raft.trail.snapshot.index != log->snapshot) {
        snprintf(what, sizeof what, "%s cannot be read", log->snapshot_name);
        return logdir_corrupt(n->dir, what);
    }
    if (applied > last) {
        snprintf(what, sizeof what,
            "the log ends at entry %llu, but the state holds entry %llu: segments are missing",
            (unsigned long long)last, (unsigned long long)applied);
        return logdir_corrupt(n->dir, what);
    }
    return 0;
}

static int start_raft(struct rnode *n, const struct logdir *log)
{
    char what[512];
    int rv = raft_start(&n->raft);
    if (rv == 0) {
        return check_loaded(n, log);
    }
    if (n->fsm.failed == SYM_ECORRUPT) {
        snprintf(what, sizeof what, "%s: %s", log->snapshot_name, err_msg());
        return logdir_corrupt(n->dir, what);
    }
    return n->fsm.failed != 0 ? err_wrapf(n->fsm.failed, "%s/%s", n->dir, log->snapshot_name)
                              : load_error(n->dir, log, rv, n->raft.errmsg);
}

int rnode_start(const struct rnode_config *cfg, struct rnode **out)
{
    struct logdir log;
    uint8_t origin[16];
    struct rnode *n = calloc(1, sizeof *n);
    if (n == NULL) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    n->lock_fd = -1;
    n->loop = cfg->loop;
    STAILQ_INIT(&n->laters);
    STAILQ_INIT(&n->failed_sends);
    int rv = copy_config(n, cfg);
    if (rv != 0 || (rv = crypto_random(origin, sizeof origin)) != 0 ||
        (rv = logdir_lock(n->dir, &n->lock_fd)) != 0 || (rv = logdir_check(n->dir, &log)) != 0 ||
        (rv = open_io(&n->io, &n->transport, n->loop, n->dir)) != 0) {
        goto fail;
    }
    memcpy(&n->random, origin + 8, sizeof n->random);
    n->random |= 1;
    fsm_init(&n->fsm, &n->raft, cfg->store, &n->store_config, &fsm_ops, n);
    rv = raft_init(&n->raft, &n->io, &n->fsm.base, cfg->id, n->address);
    if (rv != 0) {
        rv = load_error(n->dir, &log, rv, n->io.errmsg);
        raft_uv_close(&n->io);
        goto fail;
    }
    n->raft_open = true;
    set_up_raft(n);
    propose_init(&n->propose, &n->raft, &propose_ops, n);
    submit_init(&n->submit, &n->propose, cfg->id, origin, &submit_ops, n);
    reads_init(&n->reads, &n->raft, n->random, &reads_ops, n);
    open_handles(n);
    rv = health_open(&n->health, n->loop, n->dir, cfg->disk_floor, on_health, n);
    if (rv != 0) {
        goto close;
    }
    n->health_open = true;
    if ((rv = open_peers(n, cfg)) != 0 || (rv = start_raft(n, &log)) != 0) {
        goto close;
    }
    fsm_started(&n->fsm);
    node_look(n);
    *out = n;
    return 0;

close : {
    /* The rest of the way back takes the loop; the message must outlive it. */
    char text[512];
    snprintf(text, sizeof text, "%s", err_msg());
    begin_close(n);
    return err_setf(rv, "%s", text);
}
fail:
    free_node(n);
    return rv;
}

/* --- offline --- */

static int idle_apply(struct raft_fsm *fsm, const struct raft_buffer *buf, void **result)
{
    (void)fsm;
    (void)buf;
    *result = NULL;
    return 0;
}

typedef int (*offline_op)(struct raft *r, const struct raft_configuration *conf);

/* Has libraft write a configuration of this one voter into a folder that nobody runs on. */
static int offline(const char *dir, const struct logdir *log, uint64_t id, const char *address, offline_op op)
{
    uv_loop_t loop;
    struct raft_io io;
    struct raft_uv_transport transport;
    struct raft raft;
    struct raft_fsm fsm = {.version = 1, .apply = idle_apply};
    struct raft_configuration conf;
    if (uv_loop_init(&loop) != 0) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    int rv = open_io(&io, &transport, &loop, dir);
    if (rv != 0) {
        goto close_loop;
    }
    rv = raft_init(&raft, &io, &fsm, id, address);
    if (rv != 0) {
        rv = load_error(dir, log, rv, io.errmsg);
        goto close_io;
    }
    raft.tracer = NULL;
    raft_configuration_init(&conf);
    rv = raft_configuration_add(&conf, id, address, RAFT_VOTER);
    if (rv == 0) {
        rv = op(&raft, &conf);
    }
    if (rv == RAFT_CANTBOOTSTRAP) {
        rv = err_setf(SYM_EEXIST, "%s already holds a log", dir);
    } else if (rv != 0) {
        rv = load_error(dir, log, rv, io.errmsg);
    }
    raft_configuration_close(&conf);
    raft_close(&raft, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
close_io:
    raft_uv_close(&io);
close_loop:
    uv_loop_close(&loop);
    return rv;
}

int rnode_bootstrap(const char *dir, uint64_t id, const char *address)
{
    struct logdir log;
    int fd;
    int rv = logdir_lock(dir, &fd);
    if (rv != 0) {
        return rv;
    }
    rv = logdir_check(dir, &log);
    if (rv == 0 && (log.has_segments || log.snapshot != 0)) {
        rv = err_setf(SYM_EEXIST, "%s already holds a log", dir);
    }
    if (rv == 0 && log.has_metadata) {
        rv = logdir_forget_metadata(dir); /* of a bootstrap that died before its first entry */
    }
    if (rv == 0) {
        rv = offline(dir, &log, id, address, raft_bootstrap);
    }
    close(fd);
    return rv;
}

int rnode_recover(const char *dir, uint64_t id, const char *address)
{
    struct logdir log;
    int fd;
    int rv = logdir_lock(dir, &fd);
    if (rv != 0) {
        return rv;
    }
    rv = logdir_check(dir, &log);
    if (rv == 0 && !log.has_segments && log.snapshot == 0) {
        rv = err_setf(SYM_ENOTFOUND, "%s holds no log", dir);
    }
    if (rv == 0) {
        rv = offline(dir, &log, id, address, raft_recover);
    }
    close(fd);
    return rv;
}

/* --- looking in --- */

uint64_t rnode_leader(const struct rnode *n)
{
    return leader_now(n);
}

bool rnode_is_leader(const struct rnode *n)
{
    return n->phase == NODE_RUNNING && reads_may_serve(&n->reads);
}

struct peers *rnode_peers(struct rnode *n)
{
    return n->peers;
}

static enum rnode_state state_of(const struct rnode *n)
{
    if (n->phase == NODE_CLOSING) {
        return STATE_DOWN;
    }
    switch (n->raft.state) {
    case RAFT_LEADER:
        return STATE_LEADER;
    case RAFT_CANDIDATE:
        return STATE_CANDIDATE;
    case RAFT_FOLLOWER:
        return STATE_FOLLOWER;
    default:
        return STATE_DOWN;
    }
}

static enum raft_role role_of(int role)
{
    return role == RAFT_VOTER ? ROLE_VOTER : role == RAFT_STANDBY ? ROLE_STANDBY : ROLE_SPARE;
}

void rnode_status(const struct rnode *n, struct rnode_status *out)
{
    const struct raft *r = &n->raft;
    memset(out, 0, sizeof *out);
    out->state = state_of(n);
    out->id = n->cfg.id;
    if (out->state == STATE_DOWN) {
        return;
    }
    out->leader = leader_now(n);
    out->term = r->current_term;
    out->last_index = raft_last_index((struct raft *)r);
    out->commit_index = r->commit_index;
    /* After a restart the state is ahead of what libraft has gone through again. */
    out->applied_index =
        r->last_applied > store_applied(n->cfg.store) ? r->last_applied : store_applied(n->cfg.store);
    out->snapshot_index = r->trail.snapshot.index;
    out->log_bytes = guard_log_bytes((struct guard *)&n->guard);
    out->has_quorum = r->state == RAFT_LEADER ? voters(n, is_heard) : out->leader != 0;
    out->changing = n->member.what != MEMBER_NONE || r->configuration_uncommitted_index != 0;
    out->no_space = n->low_disk || n->low_store;
    for (unsigned i = 0; i < r->configuration.n && i < sizeof out->servers / sizeof *out->servers; i++) {
        const struct raft_server *s = &r->configuration.servers[i];
        struct rnode_server *to = &out->servers[out->n_servers++];
        const struct other *o = other_of(n, s->id);
        raft_index match;
        to->id = s->id;
        snprintf(to->address, sizeof to->address, "%s", s->address);
        to->role = role_of(s->role);
        to->is_self = s->id == n->cfg.id;
        to->up = to->is_self || is_heard(n, s->id);
        to->match_index = raft_match_index(r, s->id, &match) == 0 ? match : 0;
        to->disk_free = to->is_self ? n->health.free : o != NULL ? o->disk_free : 0;
    }
}

void rnode_snapshot(struct rnode *n)
{
    raft_set_snapshot_threshold(&n->raft, 1); /* at the next event, a tick at the latest */
}

void rnode_stats(const struct rnode *n, struct rnode_stats *out)
{
    *out = (struct rnode_stats){
        .submitted = n->submit.submitted,
        .forwarded = n->submit.forwarded,
        .packs = n->propose.packs,
        .pack_txns = n->propose.pack_txns,
        .reads = n->reads.count,
        .read_rounds = n->reads.rounds,
        .snapshots = n->fsm.snapshots,
        .elections = n->elections,
    };
}
