#include "raft/node_int.h"

#include "base/err.h"
#include "base/log.h"
#include "crypto/crypto.h"
#include "raft/logdir.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { IN_FLIGHT_ENTRIES = 4096 };
enum { INSTALL_MS = 5000, INSTALL_MS_MOST = 3600 * 1000, INSTALL_BYTES_PER_MS = (8 << 20) / 1000 };

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

/* --- what libraft tells --- */

static void on_notice(uv_timer_t *timer);
static void look_for_given_up(struct rnode *n);

static bool is_quiet(const struct rnode *n)
{
    return uv_now(n->loop) - n->applied_at >= NODE_QUIET_MS;
}

static void look_for_untold(struct rnode *n)
{
    if (!uv_is_active((uv_handle_t *)&n->notice) && (n->untold = guard_untold(&n->guard)) != 0) {
        uv_timer_start(&n->notice, on_notice, NODE_NOTICE_MS, 0);
    }
}

static void on_notice(uv_timer_t *timer)
{
    struct rnode *n = timer->data;
    guard_tell(&n->guard, n->untold);
    look_for_untold(n);
}

void node_look(struct rnode *n)
{
    struct raft *r = &n->raft;
    if (n->phase == NODE_CLOSING) {
        return;
    }
    look_for_untold(n);
    look_for_given_up(n);
    uint64_t leader = rnode_leader(n);
    if (r->state != n->state || r->current_term != n->term || leader != n->leader) {
        bool led = n->state == RAFT_LEADER;
        n->elections += r->state == RAFT_CANDIDATE && n->state != RAFT_CANDIDATE;
        n->leaders += leader != 0 && (leader != n->leader || r->current_term != n->term);
        if (leader != 0) {
            log_info("raft: manager %llu leads in term %llu", (unsigned long long)leader,
                (unsigned long long)r->current_term);
        } else {
            log_debug("raft: %s without a leader in term %llu", raft_state_name(r->state),
                (unsigned long long)r->current_term);
        }
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
        others_sync(n);
    }
    submit_changed(&n->submit);
    if (n->recovered && r->trail.snapshot.index >= n->recovered_at) {
        n->recovered = false;
        logdir_unmark_recovered(n->dir);
    }
    /* What of the log was never committed, and so never served, another leader may have cut off. */
    if (n->behind_until > raft_last_index(r)) {
        n->behind_until = raft_last_index(r);
    }
    /* Not while one is being taken: there would be another right behind it. */
    if (!guard_snapshotting(&n->guard) &&
        (guard_fresh_bytes(&n->guard) >= (is_quiet(n) ? n->quiet_bytes : n->snapshot_bytes) ||
            (n->recovered && r->commit_index >= n->recovered_at))) {
        raft_set_snapshot_threshold(r, 1);
    }
    node_kick(n);
}

static void guard_changed(void *arg)
{
    node_look(arg);
}

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

/* Received: the state is built from it beside the one that there is, and then it is written itself. */
static bool guard_room(void *arg, size_t bytes)
{
    const struct rnode *n = arg;
    bool room = n->health.free >= 3 * (uint64_t)bytes + n->health.least / 4;
    if (!room) {
        log_warn("raft: no room on the disk for a snapshot of %zu MiB from the leader: %llu MiB are free",
            bytes >> 20, (unsigned long long)(n->health.free >> 20));
    }
    return room;
}

static uint64_t guard_clock(void *arg)
{
    (void)arg;
    return uv_hrtime();
}

static const struct guard_ops guard_ops = {
    .fatal = node_fatal,
    .changed = guard_changed,
    .work = guard_work,
    .encode = guard_encode,
    .prepare = guard_prepare,
    .room = guard_room,
    .clock = guard_clock,
};

static bool fsm_wanted(void *arg, uint64_t index)
{
    return propose_wanted(&((struct rnode *)arg)->propose, index);
}

static void fsm_deliver(void *arg, uint64_t index, struct txn_result *results, unsigned n_results)
{
    propose_deliver(&((struct rnode *)arg)->propose, index, results, n_results);
}

/* A snapshot costs as much as the state is large: under load one byte is written to a snapshot for each of the log,
 * and more only where the state is larger than what of the log may be in memory. */
static void set_snapshot_bytes(struct rnode *n)
{
    uint64_t state = store_bytes(n->cfg.store);
    uint64_t bytes = state > NODE_SNAPSHOT_BYTES ? state : NODE_SNAPSHOT_BYTES;
    n->snapshot_bytes = bytes < NODE_SNAPSHOT_BYTES_MOST ? bytes : NODE_SNAPSHOT_BYTES_MOST;
    bytes = state / 8 > NODE_QUIET_BYTES ? state / 8 : NODE_QUIET_BYTES;
    n->quiet_bytes = bytes < n->snapshot_bytes ? bytes : n->snapshot_bytes;
}

/* Up to where every member that is there has the log, as far as this one knows. */
static raft_index everywhere(const struct rnode *n)
{
    const struct raft_configuration *c = &n->raft.configuration;
    raft_index least = n->raft.commit_index, match;
    for (unsigned i = 0; i < c->n; i++) {
        if (raft_match_index(&n->raft, c->servers[i].id, &match) == 0 && match < least &&
            wiring_is_heard(n, c->servers[i].id)) {
            least = match;
        }
    }
    return least;
}

/* Whether every other member is heard of. */
static bool nobody_is_away(const struct rnode *n)
{
    const struct raft_configuration *c = &n->raft.configuration;
    for (unsigned i = 0; i < c->n; i++) {
        if (c->servers[i].id != n->raft.id && !wiring_is_heard(n, c->servers[i].id)) {
            return false;
        }
    }
    return true;
}

uint64_t node_quota(const struct rnode *n)
{
    return n->store_config.quota == 0 ? 1u << 30 : n->store_config.quota;
}

/* Bytes of the state's pages: what a snapshot of it has at most. */
static uint64_t state_bytes(const struct rnode *n)
{
    uint64_t quota = node_quota(n), left = store_headroom(n->cfg.store);
    return left < quota ? quota - left : 0;
}

unsigned node_install_ms(uint64_t state)
{
    uint64_t ms = INSTALL_MS + state / INSTALL_BYTES_PER_MS;
    return ms < INSTALL_MS_MOST ? (unsigned)ms : INSTALL_MS_MOST;
}

/* One that could not be encoded comes again later and later; and none is begun that the disk has no room for:
 * it would be written up to the disk's end, thrown away, and begun anew, over and over. */
static bool fsm_may_take(void *arg)
{
    const struct rnode *n = arg;
    return !n->health.low && uv_now(n->loop) >= n->snapshot_after;
}

static void look_for_given_up(struct rnode *n)
{
    if (n->guard.given_up != n->given_up) {
        n->given_up = n->guard.given_up;
        n->snapshot_wait = n->snapshot_wait == 0 ? 1000 : 2 * n->snapshot_wait;
        n->snapshot_wait = n->snapshot_wait > NODE_GIVEN_UP_MS ? NODE_GIVEN_UP_MS : n->snapshot_wait;
        n->snapshot_after = uv_now(n->loop) + n->snapshot_wait;
    } else if (n->raft.trail.snapshot.index != n->snapshot_index) {
        n->snapshot_index = n->raft.trail.snapshot.index;
        n->snapshot_wait = 0;
        if (is_quiet(n)) {
            malloc_trim(0); /* the log's memory, which lies scattered, back to the system */
        }
    }
}

/* What stays of the log behind the snapshot is bounded in entries and in bytes. More of it stays for those that
 * are catching up: they would need this snapshot, and the next one. raft_uv takes 0 for an installation. */
static void fsm_taking(void *arg)
{
    struct rnode *n = arg;
    raft_index end = n->raft.commit_index, lacking = end - everywhere(n);
    uint64_t bytes = is_quiet(n) && nobody_is_away(n) ? NODE_QUIET_TRAILING_BYTES : NODE_TRAILING_BYTES;
    unsigned keep = guard_trailing(&n->guard, end, NODE_TRAILING_ENTRIES, bytes);
    if (lacking > keep) {
        lacking = lacking < NODE_TRAILING_ENTRIES ? lacking : NODE_TRAILING_ENTRIES;
        keep = guard_trailing(&n->guard, end, (unsigned)lacking, NODE_LACKING_BYTES);
    }
    keep = n->recovered ? 1 : keep;
    raft_set_snapshot_trailing(&n->raft, keep);
    raft_set_snapshot_threshold(&n->raft, NODE_SNAPSHOT_ENTRIES);
    set_snapshot_bytes(n);
}

static const struct fsm_ops fsm_ops = {
    .fatal = node_fatal,
    .wanted = fsm_wanted,
    .deliver = fsm_deliver,
    .may_take = fsm_may_take,
    .taking = fsm_taking,
};

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
        wiring_look_for_room(n);
        n->may = wiring_may_propose(n);
        submit_flush(&n->submit);
        if (propose_flush(&n->propose)) {
            node_kick(n);
        }
        member_flush(n);
        reads_flush(&n->reads);
        if (n->applied != n->raft.last_applied) {
            n->applied = n->raft.last_applied;
            n->applied_at = uv_now(n->loop);
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
    uint64_t state = state_bytes(n);
    submit_tick(&n->submit);
    reads_tick(&n->reads);
    health_tick(&n->health, state);
    raft_set_install_snapshot_timeout(&n->raft, node_install_ms(state));
    others_forget_strangers(n);
    others_send_news(n);
    if (uv_now(n->loop) - n->info_sent_at >= n->raft.election_timeout / 3) {
        others_send_infos(n);
    }
    node_look(n);
}

static void on_health(void *arg)
{
    struct rnode *n = arg;
    if (n->peers_open && n->phase != NODE_CLOSING) {
        others_send_infos(n);
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
    uv_close((uv_handle_t *)&n->notice, handle_closed);
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
    uv_timer_stop(&n->notice);
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

static void open_handles(struct rnode *n)
{
    uv_prepare_init(n->loop, &n->prepare);
    uv_check_init(n->loop, &n->check);
    uv_idle_init(n->loop, &n->idle);
    uv_timer_init(n->loop, &n->tick);
    uv_timer_init(n->loop, &n->notice);
    failover_init(n);
    n->prepare.data = n->check.data = n->idle.data = n->tick.data = n->notice.data = n;
    n->n_handles = 6;
    /* The loop calls these in the reverse order of their start: raft_uv's come first. */
    uv_prepare_start(&n->prepare, on_prepare);
    uv_check_start(&n->check, on_check);
    uv_timer_start(&n->tick, on_tick, NODE_TICK_MS, NODE_TICK_MS);
}

static void set_up_raft(struct rnode *n)
{
    unsigned election = n->cfg.election_ms == 0 ? RNODE_ELECTION_MS : n->cfg.election_ms;
    unsigned heartbeat = n->cfg.heartbeat_ms == 0 ? RNODE_HEARTBEAT_MS : n->cfg.heartbeat_ms;
    n->raft.tracer = NULL;
    raft_set_heartbeat_timeout(&n->raft, heartbeat);
    raft_set_election_timeout(&n->raft, election);
    raft_set_install_snapshot_timeout(&n->raft, node_install_ms(state_bytes(n)));
    raft_set_pre_vote(&n->raft, true);
    raft_set_max_inflight_entries(&n->raft, IN_FLIGHT_ENTRIES);
    raft_set_snapshot_threshold(&n->raft, NODE_SNAPSHOT_ENTRIES);
    raft_set_snapshot_trailing(&n->raft, NODE_TRAILING_ENTRIES);
    set_snapshot_bytes(n);
    n->applied_at = uv_now(n->loop);
    n->io.send = sender_send;
    guard_wrap(&n->guard, &n->raft, &guard_ops, n);
    n->guard.witnessed = store_applied(n->cfg.store);
}

static bool is_lone_voter(const struct rnode *n)
{
    const struct raft_configuration *c = &n->raft.configuration;
    bool self = false;
    unsigned n_voters = 0;
    for (unsigned i = 0; i < c->n; i++) {
        if (c->servers[i].role == RAFT_VOTER) {
            n_voters++;
            self |= c->servers[i].id == n->cfg.id;
        }
    }
    return self && n_voters == 1;
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
    /* With several voters an entry can be committed, and applied here, before this one's own write is done.
     */
    if (applied > last && is_lone_voter(n)) {
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
                              : disk_error(n->dir, log, rv, n->raft.errmsg);
}

/* The rest of the way back takes the loop; the message must outlive it. */
static int give_up(struct rnode *n, int rv)
{
    char text[512];
    snprintf(text, sizeof text, "%s", err_msg());
    begin_close(n);
    return err_setf(rv, "%s", text);
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
        (rv = disk_open(&n->io, &n->transport, n->loop, n->dir)) != 0) {
        goto fail;
    }
    memcpy(&n->random, origin + 8, sizeof n->random);
    n->random |= 1;
    fsm_init(&n->fsm, &n->raft, cfg->store, &n->store_config, &fsm_ops, n);
    rv = raft_init(&n->raft, &n->io, &n->fsm.base, cfg->id, n->address);
    if (rv != 0) {
        rv = disk_error(n->dir, &log, rv, n->io.errmsg);
        raft_uv_close(&n->io);
        goto fail;
    }
    n->raft_open = true;
    set_up_raft(n);
    propose_init(&n->propose, &n->raft, &wiring_propose, n);
    submit_init(&n->submit, &n->propose, cfg->id, origin, &wiring_submit, n);
    reads_init(&n->reads, &n->raft, n->random, &wiring_reads, n);
    open_handles(n);
    rv = health_open(&n->health, n->loop, n->dir, cfg->disk_floor, on_health, n);
    if (rv != 0) {
        return give_up(n, rv);
    }
    n->health_open = true;
    bool from_nothing = store_applied(cfg->store) == 0;
    if ((rv = others_open(n, cfg)) != 0 || (rv = start_raft(n, &log)) != 0) {
        return give_up(n, rv);
    }
    n->behind_until = from_nothing ? raft_last_index(&n->raft) : 0;
    fsm_started(&n->fsm);
    n->recovered = logdir_is_recovered(n->dir);
    n->recovered_at = raft_last_index(&n->raft);
    node_look(n);
    *out = n;
    return 0;

fail:
    free_node(n);
    return rv;
}
