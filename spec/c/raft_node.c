/* Managers as a whole: real folders, real sockets, real certificates, one process. */
#include "raft/kinds.h"
#include "raft/node_int.h"
#include "raft/where.h"
#include "raft/wire.h"
#include "raft_cluster.h"

static void single_voter(void **state)
{
    (void)state;
    struct cluster c;
    struct answer a;
    cluster_open(&c);
    form(&c, 1);
    struct manager *m = &c.managers[0];
    put_ok(m, "a", "1");
    put_ok(m, "b", "2");
    read_ok(m);
    assert_string_equal(get(m, "a"), "1");
    assert_true(m->applied > 0);
    assert_true(m->changes > 0);
    assert_int_equal(rnode_bootstrap(m->raft_dir, 1, m->address), SYM_EINUSE);
    manager_stop(m);
    assert_int_equal(rnode_bootstrap(m->raft_dir, 1, m->address), SYM_EEXIST);

    /* What was acknowledged is there again, from the log too. */
    remove_tree(m->state_dir);
    manager_start(m);
    run_until(&c, 5000, rnode_is_leader(m->node));
    read_ok(m);
    assert_string_equal(get(m, "b"), "2");
    put(m, "c", "3", 0, &a);
    manager_stop(m);
    assert_int_equal(a.n, 1);
    cluster_close(&c);
}

static void three_voters(void **state)
{
    (void)state;
    struct cluster c;
    cluster_open(&c);
    form(&c, 3);
    cluster_print(&c);
    for (unsigned i = 0; i < 3; i++) {
        char key[16];
        snprintf(key, sizeof key, "k%u", i);
        put_ok(&c.managers[i], key, key);
        for (unsigned k = 0; k < 3; k++) {
            read_ok(&c.managers[k]);
            assert_string_equal(get(&c.managers[k], key), key);
        }
    }
    stop_all(&c);
    cluster_close(&c);
}

static int (*send_all)(
    struct raft_io *io, struct raft_io_send *req, const struct raft_message *m, raft_io_send_cb cb);

/* libraft's requests point to themselves, unlike our own. */
static int send_but_heartbeats(
    struct raft_io *io, struct raft_io_send *req, const struct raft_message *m, raft_io_send_cb cb)
{
    if (m->type == RAFT_APPEND_ENTRIES && m->append_entries.n_entries == 0 && req->data != NULL) {
        cb(req, 0);
        return 0;
    }
    return send_all(io, req, m, cb);
}

/* Followers need no heartbeat to learn what is committed. */
static void commits_are_told(void **state)
{
    (void)state;
    struct cluster c;
    cluster_open(&c);
    form(&c, 3);
    struct manager *lead = &c.managers[0];
    for (unsigned i = 0; i < 3; i++) {
        struct raft *r = &c.managers[i].node->raft;
        raft_set_election_timeout(r, 1000000);
        if (r->state == RAFT_FOLLOWER) {
            r->follower_state.randomized_election_timeout = 1000000;
        }
    }
    run_until(&c, 5000, rnode_is_leader(lead->node));
    send_all = lead->node->guard.inner.send;
    lead->node->guard.inner.send = send_but_heartbeats;
    put_ok(lead, "a", "1");
    for (unsigned i = 0; i < 3; i++) {
        run_until(&c, 5000, strcmp(get(&c.managers[i], "a"), "1") == 0);
    }
    lead->node->guard.inner.send = send_all;
    stop_all(&c);
    cluster_close(&c);
}

static void status(struct manager *m, struct rnode_status *out)
{
    rnode_status(m->node, out);
}

static uint64_t snapshot_of(struct manager *m)
{
    struct rnode_status s;
    status(m, &s);
    return s.snapshot_index;
}

static uint64_t applied_of(struct manager *m)
{
    struct rnode_status s;
    status(m, &s);
    return s.applied_index;
}

/* Rules 11 and 14, and that libraft is not left to what it takes by default. */
static void settings(void **state)
{
    (void)state;
    struct cluster c;
    cluster_open(&c);
    form(&c, 1);
    const struct raft *r = &c.managers[0].node->raft;
    assert_true(r->pre_vote);
    assert_int_equal(r->election_timeout, 400);
    assert_int_equal(r->heartbeat_timeout, 50);
    assert_in_range(r->install_snapshot_timeout, 5000, 5100); /* the state is small */
    assert_int_equal(r->max_inflight_entries, 4096);
    assert_int_equal(r->legacy.snapshot_threshold, 16384);
    assert_int_equal(r->legacy.snapshot_trailing, 8192);
    /* Two segments of 8 MiB are prepared, in KiB. */
    run_until(&c, 5000, r->io->capacity >= 2 * 8192);
    stop_all(&c);
    c.election_ms = 1000;
    c.heartbeat_ms = 100;
    manager_start(&c.managers[0]);
    r = &c.managers[0].node->raft;
    assert_int_equal(r->election_timeout, 1000);
    assert_int_equal(r->heartbeat_timeout, 100);
    stop_all(&c);
    cluster_close(&c);
}

/* Writes @n values of @size bytes over a few keys, so that the log grows and the state does not. */
static void write_much(struct manager *m, unsigned n, size_t size)
{
    char *value = malloc(size + 1);
    memset(value, 'v', size);
    value[size] = '\0';
    for (unsigned i = 0; i < n; i++) {
        char key[16];
        snprintf(key, sizeof key, "big%u", i % 4);
        put_ok(m, key, value);
    }
    free(value);
}

/* A snapshot gets as much time as it is large. */
static void time_to_install(void **state)
{
    (void)state;
    struct cluster c;
    assert_int_equal(node_install_ms(0), 5000);
    assert_in_range(node_install_ms(80 << 20), 15000, 15010);
    assert_in_range(node_install_ms((uint64_t)1 << 30), 133000, 133020);
    assert_int_equal(node_install_ms(UINT64_MAX), 3600 * 1000);
    cluster_open(&c);
    form(&c, 1);
    struct manager *m = &c.managers[0];
    unsigned before = m->node->raft.install_snapshot_timeout;
    write_much(m, 4, 1 << 20); /* under four keys */
    run_until(&c, 5000, m->node->raft.install_snapshot_timeout >= before + 500);
    stop_all(&c);
    cluster_close(&c);
}

static void snapshot_and_restart(void **state)
{
    (void)state;
    struct cluster c;
    cluster_open(&c);
    form(&c, 1);
    struct manager *m = &c.managers[0];
    put_ok(m, "a", "1");
    rnode_snapshot(m->node);
    run_until(&c, 5000, snapshot_of(m) > 0);
    put_ok(m, "b", "2");
    rnode_snapshot(m->node);
    uint64_t first = snapshot_of(m);
    run_until(&c, 5000, snapshot_of(m) > first);
    put_ok(m, "c", "3");
    manager_stop(m);

    /* The state is ahead of its snapshot: it is left alone. */
    manager_start(m);
    assert_true(
        m->node->guard.witnessed > snapshot_of(m)); /* what the state holds is known to be committed */
    run_until(&c, 5000, rnode_is_leader(m->node));
    read_ok(m);
    assert_string_equal(get(m, "c"), "3");
    manager_stop(m);

    /* It is gone: snapshot, then log. */
    remove_tree(m->state_dir);
    manager_start(m);
    run_until(&c, 5000, rnode_is_leader(m->node));
    read_ok(m);
    assert_string_equal(get(m, "a"), "1");
    assert_string_equal(get(m, "b"), "2");
    assert_string_equal(get(m, "c"), "3");
    manager_stop(m);
    cluster_close(&c);
}

static void log_is_bounded_and_catch_up_by_snapshot(void **state)
{
    (void)state;
    struct cluster c;
    struct rnode_status st;
    struct rnode_stats stats;
    cluster_open(&c);
    c.quota = 128 << 20;
    form(&c, 3);
    struct manager *lead = leader_of(&c), *away = &c.managers[2];
    put_ok(lead, "before", "1");
    manager_stop(away);
    write_much(lead, 44, 1 << 20);
    put_ok(lead, "after", "2");
    run_until(&c, 10000, snapshot_of(lead) > 0);
    status(lead, &st);
    assert_true(st.log_bytes < 44 << 20);
    /* One each time that enough was written, not another for what was written while it was being taken. */
    rnode_stats(lead->node, &stats);
    print_message("%u snapshots, %u entries\n", (unsigned)stats.snapshots, (unsigned)st.last_index);
    assert_in_range(stats.snapshots, 1, st.last_index * ((1 << 20) + 256) / NODE_SNAPSHOT_BYTES);
    uint64_t commits = 0, appends = 0, snapshots = 0;
    for (int i = 0; i <= HISTOGRAM_LIMITS; i++) {
        commits += stats.commits.counts[i];
        appends += stats.disk.appends.counts[i];
        snapshots += stats.disk.snapshots.counts[i];
    }
    assert_int_equal(commits, stats.packs);
    assert_true(stats.commits.sum_ns > 0);
    assert_true(appends >= commits);
    assert_true(snapshots <= stats.snapshots);
    assert_true(stats.disk.appended > 44 << 20);
    assert_int_equal(stats.ended[0], stats.submitted);
    assert_true(stats.leaders >= 1);

    manager_start(away);
    run_until(&c, 30000, applied_of(away) >= st.last_index);
    assert_string_equal(get(away, "before"), "1");
    assert_string_equal(get(away, "after"), "2");
    assert_true(snapshot_of(away) > 0);
    assert_int_equal(store_revision(away->store), store_revision(lead->store));
    put_ok(away, "again", "3");
    read_ok(away);
    assert_string_equal(get(away, "again"), "3");
    /* What it was given survives, too. */
    manager_stop(away);
    manager_start(away);
    read_ok(away);
    assert_string_equal(get(away, "again"), "3");
    stop_all(&c);
    cluster_close(&c);
}

/* Who waits in vain is told for what, wherever the txn came in. */
static void told_for_what_it_waited(void **state)
{
    (void)state;
    enum { WAIT = 200 };
    struct cluster c;
    struct answer a, b, later;
    cluster_open(&c);
    form(&c, 3);
    struct manager *lead = &c.managers[0], *other = &c.managers[1];
    put_ok(other, "a", "1");
    for (unsigned round = 0; round < 3; round++) {
        /* There is too much of the log in memory; or its segments are full. */
        uint64_t base = lead->node->guard.base;
        unsigned short threshold = lead->node->raft.capacity_threshold;
        if (round == 0) {
            lead->node->guard.base -= NODE_LOG_BYTES_MAX;
        } else {
            lead->node->raft.capacity_threshold = UINT16_MAX;
        }
        put(round == 1 ? lead : other, "a", "2", 5000 * PATIENCE, &later);
        put(lead, "a", "3", WAIT, &a);
        put(other, "a", "4", WAIT * PATIENCE, &b);
        run_until(&c, 5000, a.n > 0 && b.n > 0);
        assert_int_equal(a.status, round == 0 ? SYM_EBUSY : SYM_ENOSPACE);
        assert_int_equal(b.status, round == 0 ? SYM_EBUSY : SYM_ENOSPACE);
        assert_int_equal(later.n, 0);
        lead->node->guard.base = base;
        lead->node->raft.capacity_threshold = threshold;
        run_until(&c, 5000, later.n > 0);
        assert_int_equal(later.status, 0);
        read_ok(lead);
        assert_string_equal(get(lead, "a"), "2");
        put_ok(other, "a", "1");
    }
    stop_all(&c);
    cluster_close(&c);
}

/* A member that is there and takes nothing: it answers, but gets no entries and no snapshot. */
enum { STARVED = 3 };

static int send_but_to_starved(
    struct raft_io *io, struct raft_io_send *req, const struct raft_message *m, raft_io_send_cb cb)
{
    if (m->server_id == STARVED && (m->type == RAFT_INSTALL_SNAPSHOT ||
                                       (m->type == RAFT_APPEND_ENTRIES && m->append_entries.n_entries > 0))) {
        cb(req, 0);
        return 0;
    }
    return send_all(io, req, m, cb);
}

/* What such a one lacks is kept for it behind the snapshot, but not without end: it is in memory. */
static void log_for_a_member_that_lags_is_bounded(void **state)
{
    (void)state;
    enum { KEPT_MOST = 50 << 20, KEPT_LEAST = 24 << 20 };
    struct cluster c;
    struct rnode_status st;
    cluster_open(&c);
    c.quota = 128 << 20;
    form(&c, 3);
    struct manager *lead = &c.managers[0];
    put_ok(lead, "a", "1");
    send_all = lead->node->guard.inner.send;
    lead->node->guard.inner.send = send_but_to_starved;
    write_much(lead, 72, 1 << 20);
    assert_ptr_equal(leader_of(&c), lead);
    assert_true(sees_up(lead, STARVED));
    uint64_t end = applied_of(lead);
    rnode_snapshot(lead->node);
    run_until(&c, 15000, snapshot_of(lead) >= end);
    status(lead, &st);
    print_message("%u KiB of log are kept\n", (unsigned)(st.log_bytes >> 10));
    assert_in_range(st.log_bytes, KEPT_LEAST, KEPT_MOST);
    lead->node->guard.inner.send = send_all;
    run_until(&c, 30000, applied_of(&c.managers[STARVED - 1]) >= end);
    stop_all(&c);
    cluster_close(&c);
}

/* As much is written to the log as the state is large before there is a snapshot, but not without end. */
static void snapshots_of_a_large_state(void **state)
{
    (void)state;
    enum { STATE_MIB = 80, LEAST_MIB = 48, MOST_MIB = 68 };
    struct cluster c;
    cluster_open(&c);
    c.quota = 256 << 20;
    form(&c, 1);
    struct manager *m = leader_of(&c);
    char *value = malloc((1 << 20) + 1), key[16];
    unsigned n;
    memset(value, 'v', 1 << 20);
    value[1 << 20] = '\0';
    for (n = 0; n < STATE_MIB; n++) {
        snprintf(key, sizeof key, "k%u", n);
        put_ok(m, key, value);
    }
    uint64_t end = applied_of(m);
    rnode_snapshot(m->node);
    run_until(&c, 15000, snapshot_of(m) >= end);
    run_until(&c, 5000, !guard_snapshotting(&m->node->guard));
    for (n = 0; n < STATE_MIB + 20 && !guard_snapshotting(&m->node->guard); n++) {
        put_ok(m, "k0", value);
    }
    print_message("a snapshot is begun after %u MiB of log\n", n);
    assert_in_range(n, LEAST_MIB, MOST_MIB);
    free(value);
    stop_all(&c);
    cluster_close(&c);
}

/* What is too little for a snapshot under load goes into one when nothing is written any more. */
static void a_quiet_log_is_tidied(void **state)
{
    (void)state;
    struct cluster c;
    struct rnode_status st;
    cluster_open(&c);
    form(&c, 1);
    struct manager *m = leader_of(&c);
    write_much(m, 24, 1 << 18);
    status(m, &st);
    assert_true(st.log_bytes > 6 << 20 && st.snapshot_index == 0);
    run_until(&c, 15000, snapshot_of(m) == applied_of(m));
    status(m, &st);
    print_message("%u bytes of log are left\n", (unsigned)st.log_bytes);
    assert_true(st.log_bytes < NODE_QUIET_TRAILING_BYTES + (1 << 20));
    stop_all(&c);
    cluster_close(&c);
}

/* But not as much of it when somebody is away, who would else need the whole state. */
static void a_quiet_log_waits_for_who_is_away(void **state)
{
    (void)state;
    struct cluster c;
    struct rnode_status st;
    struct rnode_stats stats;
    cluster_open(&c);
    form(&c, 3);
    struct manager *m = leader_of(&c), *away = &c.managers[2];
    assert_true(m != away);
    put_ok(m, "a", "1");
    run_until(&c, 5000, applied_of(away) == applied_of(m));
    manager_stop(away);
    write_much(m, 8, 1 << 18);
    unsigned written = 2 << 20;
    run_until(&c, 15000, snapshot_of(m) == applied_of(m));
    status(m, &st);
    assert_true(st.log_bytes >= written);
    manager_start(away);
    run_until(&c, 10000, applied_of(away) == applied_of(m));
    rnode_stats(away->node, &stats);
    assert_int_equal(stats.disk.installed, 0); /* the log was enough */
    stop_all(&c);
    cluster_close(&c);
}

/* Rule 2: libraft holds in memory what is not in a snapshot yet; when that grows in spite of all, writes
 * wait for the snapshot. */
static void log_in_memory_is_bounded(void **state)
{
    (void)state;
    struct cluster c;
    struct answer a, b;
    cluster_open(&c);
    form(&c, 1);
    struct manager *m = &c.managers[0];
    put_ok(m, "a", "1");
    m->node->guard.base -= NODE_LOG_BYTES_MAX; /* as if there were so much of it */
    put(m, "a", "2", 50, &a);
    put(m, "a", "3", 5000 * PATIENCE, &b);
    run_until(&c, 5000, a.n > 0);
    assert_int_equal(a.status, SYM_EBUSY);
    assert_int_equal(b.n, 0);
    assert_string_equal(get(m, "a"), "1");
    m->node->guard.base += NODE_LOG_BYTES_MAX;
    run_until(&c, 5000, b.n > 0);
    assert_int_equal(b.status, 0);
    stop_all(&c);
    cluster_close(&c);
}

/* The state of a new leader is behind until its term's own entry is applied. */
static void no_write_before_the_terms_own_entry(void **state)
{
    (void)state;
    struct cluster c;
    struct answer a, b;
    cluster_open(&c);
    form(&c, 1);
    struct manager *m = &c.managers[0];
    put_ok(m, "a", "1");
    struct rnode_stats before, after;
    rnode_stats(m->node, &before);
    m->node->reads.term_start += 1000; /* as if so many entries of before were still to be applied */
    put(m, "a", "2", 5000 * PATIENCE, &a);
    put(m, "a", "3", 50, &b);
    run_until(&c, 5000, b.n > 0);
    assert_int_equal(b.status, SYM_ENOQUORUM);
    assert_int_equal(a.n, 0);
    rnode_stats(m->node, &after);
    assert_int_equal(after.packs, before.packs);
    m->node->reads.term_start -= 1000;
    run_until(&c, 5000, a.n > 0);
    assert_int_equal(a.status, 0);
    assert_string_equal(get(m, "a"), "2");
    stop_all(&c);
    cluster_close(&c);
}

/* Rule 13. */
static void a_leader_that_stops_hands_over(void **state)
{
    (void)state;
    struct cluster c;
    struct rnode_status st;
    cluster_open(&c);
    form(&c, 3);
    for (unsigned round = 0; round < 3; round++) {
        struct manager *lead = leader_of(&c);
        struct manager *other = lead == &c.managers[0] ? &c.managers[1] : &c.managers[0];
        status(lead, &st);
        uint64_t term = st.term;
        put_ok(other, "a", "1");
        rnode_stop(lead->node, on_stopped, lead);
        run_until(&c, 10000, lead->node == NULL);
        /* Not one that came up because the old one was gone: it leads by now. */
        bool handed_over = false;
        for (unsigned i = 0; i < 3; i++) {
            if (c.managers[i].node != NULL) {
                status(&c.managers[i], &st);
                handed_over |= st.state == STATE_LEADER && st.term > term;
            }
        }
        assert_true(handed_over);
        put_ok(other, "a", "2");
        manager_start(lead);
        run_until(&c, 5000, leader_of(&c) != NULL && sees_up(leader_of(&c), lead->id));
    }
    stop_all(&c);
    cluster_close(&c);
}

/* Rule 13: that leadership is being handed over is no failure of a write. */
static void writes_while_leadership_moves(void **state)
{
    (void)state;
    enum { ROUNDS = 6, WRITES = 30 };
    struct cluster c;
    struct answer moved, answers[WRITES];
    cluster_open(&c);
    form(&c, 3);
    for (unsigned round = 0; round < ROUNDS; round++) {
        run_until(&c, 5000, leader_of(&c) != NULL);
        memset(&moved, 0, sizeof moved);
        rnode_transfer(leader_of(&c)->node, 0, on_answer, &moved);
        for (unsigned i = 0; i < WRITES; i++) {
            put(&c.managers[i % 3], "a", "1", 5000 * PATIENCE, &answers[i]);
            uv_run(&c.loop, UV_RUN_NOWAIT);
        }
        run_until(&c, 5000, moved.n > 0);
        for (unsigned i = 0; i < WRITES; i++) {
            run_until(&c, 6000, answers[i].n > 0);
            if (answers[i].status != 0) {
                fail_msg("write %u at manager %u: %s (%s)", i, i % 3 + 1, err_name(answers[i].status),
                    answers[i].text);
            }
        }
    }
    stop_all(&c);
    cluster_close(&c);
}

/* Rule 12: no configuration before an entry of the leader's own term is committed. */
static void change_right_after_the_election(void **state)
{
    (void)state;
    struct cluster c;
    struct answer a;
    cluster_open(&c);
    form(&c, 3);
    put_ok(&c.managers[0], "a", "1");
    for (unsigned round = 0; round < 4; round++) {
        run_until(&c, 5000, leader_of(&c) != NULL);
        struct manager *lead = leader_of(&c);
        struct manager *next = lead == &c.managers[0] ? &c.managers[1] : &c.managers[0];
        const struct raft *r = &next->node->raft;
        struct answer moved = {0};
        run_until(&c, 5000, r->configuration_uncommitted_index == 0 && r->configuration.n == 3);
        rnode_transfer(lead->node, next->id, on_answer, &moved);
        run_until(&c, 5000, next->node->raft.state == RAFT_LEADER);
        memset(&a, 0, sizeof a);
        rnode_add(next->node, 8 + round, "127.0.0.1:1", on_answer, &a);
        run_until(&c, 5000, a.n > 0 || next->node->member.submitted);
        assert_int_equal(a.status, 0);
        assert_int_equal(guard_term_of(r, r->commit_index), r->current_term);
        run_until(&c, 5000, a.n > 0 && moved.n > 0);
        change_ok(&c, rnode_remove, 8 + round);
    }
    stop_all(&c);
    cluster_close(&c);
}

/* Rule 11: one that does not hear of its removal is told when it is back. */
static void removed_while_away(void **state)
{
    (void)state;
    struct cluster c;
    cluster_open(&c);
    form(&c, 3);
    struct manager *lead = leader_of(&c), *gone = &c.managers[2];
    assert_ptr_equal(lead, &c.managers[0]);
    manager_stop(gone);
    change_ok(&c, rnode_remove, gone->id);
    manager_start(gone);
    run_until(&c, 5000, gone->removed > 0);
    assert_int_equal(gone->removed_code, SYM_ENOTFOUND);
    assert_false(peers_is_up(lead->node->peers, gone->id));
    put_ok(lead, "a", "1");
    stop_all(&c);
    cluster_close(&c);
}

static void on_peers_closed(void *arg)
{
    *(bool *)arg = true;
}

static int any_peer(void *arg, uint64_t id, const struct tls_peer *peer)
{
    (void)arg;
    (void)id;
    (void)peer;
    return 0;
}

static void ignore_frame(void *arg, uint64_t id, uint8_t kind, uint8_t *data, size_t len)
{
    (void)arg;
    (void)id;
    (void)kind;
    (void)len;
    free(data);
}

static void ignore_peer(void *arg, uint64_t id)
{
    (void)arg;
    (void)id;
}

static void ignore_refusal(void *arg, uint64_t id, int code, const char *reason)
{
    (void)arg;
    (void)id;
    (void)code;
    (void)reason;
}

static void send_frame(struct peers *p, uint64_t to, uint8_t kind, const struct buf *bytes)
{
    uv_buf_t piece = uv_buf_init((char *)buf_data(bytes), (unsigned)bytes->len);
    peers_send(p, to, kind, false, &piece, 1, NULL, NULL);
}

/* Somebody with a manager's certificate who is no member: nothing is written for it, and nobody deposed. */
static void stranger(void **state)
{
    (void)state;
    struct cluster c;
    struct peers *p;
    bool closed = false;
    cluster_open(&c);
    form(&c, 3);
    struct manager *lead = leader_of(&c), *m = manager_new(&c, 7);
    uint64_t term = lead->node->raft.current_term;
    struct peers_config cfg = {.loop = &c.loop,
        .self = m->id,
        .cluster_id = "test",
        .bind_addr = "127.0.0.1",
        .address = m->address,
        .starts = 1,
        .authorize = any_peer,
        .on_frame = ignore_frame,
        .on_up = ignore_peer,
        .on_down = ignore_peer,
        .on_refused = ignore_refusal};
    struct buf ca = {0};
    check_ok(buf_append(&ca, buf_data(&c.ca), c.ca.len));
    check_ok(buf_append(&ca, "", 1));
    check_ok(peers_new(&cfg, (char *)buf_data(&m->cert), m->key, (char *)buf_data(&ca), &p));
    check_ok(peers_set(p, lead->id, lead->address));
    run_until(&c, 5000, peers_is_up(p, lead->id));

    struct txn *t = calloc(1, sizeof *t);
    struct buf txn = {0}, frame = {0};
    t->n_ops = 1;
    t->ops[0] = (struct txn_op){OP_PUT, {(const uint8_t *)"evil", 4}, {(const uint8_t *)"1", 1}};
    check_ok(txn_encode(t, &txn));
    struct wr w = wr_init(&frame);
    wr_u64(&w, 1);
    wr_u32(&w, 5000);
    wr_u8(&w, 0);
    wr_blob(&w, buf_data(&txn), txn.len);
    send_frame(p, lead->id, KIND_SUBMIT, &frame);
    struct raft_message vote = {.type = RAFT_REQUEST_VOTE};
    vote.request_vote = (struct raft_request_vote){.version = 2,
        .term = term + 1000,
        .candidate_id = m->id,
        .last_log_index = 1 << 20,
        .last_log_term = term + 999,
        .disrupt_leader = true};
    struct wire_out out = {0};
    check_ok(wire_encode(&vote, &out));
    peers_send(p, lead->id, KIND_RAFT, false, out.bufs, out.n_bufs, NULL, NULL);
    run_until(&c, 5000, peers_last_heard(lead->node->peers, m->id) != 0);
    for (unsigned i = 0; i < 20; i++) {
        put_ok(lead, "a", "1");
    }
    assert_string_equal(get(lead, "evil"), "");
    assert_int_equal(lead->node->raft.current_term, term);
    wire_out_free(&out);
    buf_free(&frame);
    buf_free(&txn);
    buf_free(&ca);
    free(t);
    peers_close(p, on_peers_closed, &closed);
    run_until(&c, 5000, closed);
    stop_all(&c);
    cluster_close(&c);
}

static void without_quorum(void **state)
{
    (void)state;
    struct cluster c;
    struct answer a;
    struct rnode_status st;
    cluster_open(&c);
    form(&c, 3);
    put_ok(&c.managers[0], "a", "1");
    manager_stop(&c.managers[2]);
    put_ok(&c.managers[1], "a", "2");
    run_until(&c, 5000, leader_of(&c) != NULL);
    struct manager *stays = leader_of(&c);
    struct manager *goes = stays == &c.managers[0] ? &c.managers[1] : &c.managers[0];
    /* Not by stopping it, which would hand over; it goes without a word. */
    manager_stop(goes);
    put(stays, "a", "3", 1500, &a);
    run_until(&c, 3000, a.n > 0);
    assert_int_equal(a.status, SYM_ENOQUORUM);
    ask(&c, 3000, a, rnode_read, stays->node, 800);
    assert_int_equal(a.status, SYM_ENOQUORUM);
    run_until(&c, 3000, (status(stays, &st), !st.has_quorum));
    assert_string_equal(get(stays, "a"), "2");

    /* What waits goes on by itself once another is back. */
    put(stays, "a", "4", 10000 * PATIENCE, &a);
    manager_start(goes);
    run_until(&c, 10000, a.n > 0);
    assert_int_equal(a.status, 0);
    read_ok(goes);
    assert_string_equal(get(goes, "a"), "4");
    stop_all(&c);
    cluster_close(&c);
}

static void members(void **state)
{
    (void)state;
    struct cluster c;
    struct answer a;
    cluster_open(&c);
    form(&c, 3);
    struct manager *lead = leader_of(&c), *follower = &c.managers[1];
    assert_ptr_equal(lead, &c.managers[0]);

    /* Not here, not now, not this. */
    ask(&c, 2000, a, rnode_remove, follower->node, 3);
    assert_int_equal(a.status, SYM_ENOTLEADER);
    ask(&c, 2000, a, rnode_remove, lead->node, 9);
    assert_int_equal(a.status, SYM_ENOTFOUND);
    ask(&c, 2000, a, rnode_remove, lead->node, 1);
    assert_int_equal(a.status, SYM_ECONFLICT);
    ask(&c, 2000, a, rnode_add, lead->node, 3, "127.0.0.1:1");
    assert_int_equal(a.status, SYM_EEXIST);
    ask(&c, 2000, a, rnode_transfer, lead->node, 9);
    assert_int_equal(a.status, SYM_ENOTFOUND);
    ask(&c, 2000, a, rnode_assign, lead->node, 2, ROLE_VOTER);
    assert_int_equal(a.status, 0);
    ask(&c, 2000, a, rnode_add, lead->node, 8, "127.0.0.1:1");
    assert_int_equal(a.status, 0);
    ask(&c, 2000, a, rnode_assign, lead->node, 8, ROLE_VOTER);
    assert_int_equal(a.status, SYM_ECONNECT);
    ask(&c, 2000, a, rnode_remove, lead->node, 8);
    assert_int_equal(a.status, 0);
    struct answer b = {0};
    rnode_assign(lead->node, 3, ROLE_STANDBY, on_answer, &a);
    rnode_remove(lead->node, 2, on_answer, &b);
    a.n = 0;
    run_until(&c, 5000, a.n == 1 && b.n == 1);
    assert_int_equal(a.status, 0);
    assert_int_equal(b.status, SYM_EBUSY);
    change_ok(&c, rnode_assign, 3, ROLE_VOTER);

    /* Handing over, to one and to whoever is best; writes go on. */
    ask(&c, 3000, a, rnode_transfer, lead->node, 2);
    assert_int_equal(a.status, 0);
    assert_int_equal(rnode_leader(lead->node), 2);
    put_ok(lead, "a", "1");
    run_until(&c, 3000, rnode_is_leader(follower->node));
    ask(&c, 3000, a, rnode_transfer, follower->node, 0);
    assert_int_equal(a.status, 0);
    run_until(&c, 3000, leader_of(&c) != NULL);
    assert_ptr_not_equal(leader_of(&c), follower);

    /* A removed one is told, stays out, and the rest goes on. */
    struct manager *gone = leader_of(&c) == lead ? &c.managers[2] : lead;
    change_ok(&c, rnode_remove, gone->id);
    run_until(&c, 5000, gone->removed == 1);
    assert_int_equal(gone->removed_code, SYM_ENOTFOUND);
    put_ok(follower, "b", "2");
    ask(&c, 5000, a, rnode_read, gone->node, 500);
    assert_int_equal(a.status, SYM_ENOQUORUM);
    assert_int_equal(gone->removed, 1);
    stop_all(&c);
    cluster_close(&c);
}

static void move(struct manager *m)
{
    m->port = free_port();
    snprintf(m->address, sizeof m->address, "127.0.0.1:%u", m->port);
    m->moves++;
}

static bool sees_all_up(struct manager *m, unsigned n)
{
    struct rnode_status s;
    unsigned up = 0;
    rnode_status(m->node, &s);
    for (unsigned i = 0; i < s.n_servers; i++) {
        up +=
            s.servers[i].up && strcmp(s.servers[i].address, m->c->managers[s.servers[i].id - 1].address) == 0;
    }
    return s.n_servers == n && up == n;
}

/* What this one's state says of the others. */
static void locate_others(struct manager *m, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        const struct manager *other = &m->c->managers[i];
        if (other->moves > 0 && other != m) {
            check_ok(rnode_locate(m->node, other->id, other->address, other->moves));
        }
    }
}

/* Who leads, once somebody does. */
static struct manager *next_leader(struct cluster *c)
{
    run_until(c, 5000, leader_of(c) != NULL);
    return leader_of(c);
}

/* Started at another address, they go on as the members that they were; and the old one may be another's. */
static void members_move(void **state)
{
    (void)state;
    struct cluster c;
    struct answer a;
    char left[64];
    cluster_open(&c);
    form(&c, 3);
    struct manager *m = c.managers;
    put_ok(next_leader(&c), "a", "1");
    snprintf(left, sizeof left, "%s", m[1].address);
    uint16_t left_port = m[1].port;

    /* One, then two at once: these know of each other only by what the third tells them. */
    manager_stop(&m[1]);
    move(&m[1]);
    manager_start(&m[1]);
    run_until(&c, 5000, sees_all_up(&m[0], 3) && sees_all_up(&m[1], 3) && sees_all_up(&m[2], 3));
    put_ok(next_leader(&c), "a", "2");
    manager_stop(&m[0]);
    manager_stop(&m[2]);
    move(&m[0]);
    move(&m[2]);
    for (unsigned i = 0; i < 3; i += 2) {
        manager_start(&m[i]);
        check_ok(rnode_locate(m[i].node, 2, m[1].address, m[1].moves));
    }
    run_until(&c, 5000, sees_all_up(&m[0], 3) && sees_all_up(&m[1], 3) && sees_all_up(&m[2], 3));
    put_ok(next_leader(&c), "a", "3");

    /* Raft's configuration still has the address that the second has left. */
    struct manager *fresh = manager_new(&c, 3);
    fresh->port = left_port;
    snprintf(fresh->address, sizeof fresh->address, "%s", left);
    manager_start(fresh);
    ask(&c, 2000, a, rnode_add, next_leader(&c)->node, 4, m[1].address);
    assert_int_equal(a.status, SYM_EEXIST);
    change_ok(&c, rnode_add, 4, fresh->address);
    change_ok(&c, rnode_assign, 4, ROLE_STANDBY);
    run_until(&c, 5000,
        leader_of(&c) != NULL && sees_all_up(leader_of(&c), 4) && knows_itself_as(fresh, ROLE_STANDBY));
    ask(&c, 2000, a, rnode_add, next_leader(&c)->node, 5, fresh->address);
    assert_int_equal(a.status, SYM_EEXIST);
    /* The others learn of the fourth from the configuration, which names it with its id. */
    for (unsigned i = 0; i < 3; i++) {
        run_until(&c, 5000, sees_all_up(&m[i], 4));
    }

    /* A start at an address that is told nobody: the configuration's own is an old one. */
    stop_all(&c);
    for (unsigned i = 0; i < 4; i++) {
        manager_start(&m[i]);
        locate_others(&m[i], 4);
    }
    put_ok(next_leader(&c), "a", "4");
    for (unsigned i = 0; i < 4; i++) {
        run_until(&c, 5000, sees_all_up(&m[i], 4));
    }

    /* Hostile bytes of that kind change nothing. */
    struct buf bytes = {0};
    struct wr w = wr_init(&bytes);
    where_put(&w, 2, 99, ":no address:");
    where_put(&w, 77, 99, "127.0.0.1:1");      /* nobody */
    where_put(&w, m[3].id, 99, "127.0.0.1:1"); /* the one that it is sent to */
    wr_u64(&w, 1);
    uint64_t moves;
    send_frame(m[0].node->peers, m[3].id, KIND_WHERE, &bytes);
    buf_clear(&bytes);
    /* This is taken of one that is not connected from elsewhere. */
    manager_stop(&m[2]);
    run_until(&c, 5000, !sees_up(&m[3], 3));
    where_put(&w, 3, 99, "127.0.0.1:1");
    where_put(&w, 2, 99, "127.0.0.1:1");
    send_frame(m[0].node->peers, m[3].id, KIND_WHERE, &bytes);
    run_until(&c, 5000, strcmp(peers_address(m[3].node->peers, 3), "127.0.0.1:1") == 0);
    assert_string_equal(peers_address(m[3].node->peers, 2), m[1].address);
    assert_null(peers_moved(m[3].node->peers, 77, &moves));
    buf_free(&bytes);
    stop_all(&c);
    cluster_close(&c);
}

static void older_copy_is_refused(void **state)
{
    (void)state;
    struct cluster c;
    cluster_open(&c);
    form(&c, 3);
    struct manager *m = &c.managers[1];
    manager_stop(m);
    manager_start(m);
    run_until(&c, 5000, leader_of(&c) != NULL && sees_up(leader_of(&c), m->id));
    manager_stop(m);
    m->starts = 0; /* as it was when it was copied */
    manager_start(m);
    run_until(&c, 5000, m->removed > 0);
    assert_int_equal(m->removed_code, SYM_ECONFLICT);
    put_ok(next_leader(&c), "a", "1");
    stop_all(&c);
    /* And the others know it still when they have all started again. */
    m->removed = 0;
    m->starts = 0;
    for (unsigned i = 0; i < 3; i++) {
        manager_start(&c.managers[i]);
    }
    run_until(&c, 5000, m->removed > 0);
    assert_int_equal(m->removed_code, SYM_ECONFLICT);
    stop_all(&c);
    cluster_close(&c);
}

static void low_disk(void **state)
{
    (void)state;
    struct cluster c;
    struct answer a;
    struct rnode_status st;
    cluster_open(&c);
    form(&c, 3);
    put_ok(&c.managers[0], "a", "1");
    struct manager *small = &c.managers[2];
    manager_stop(small);
    c.disk_floor = (uint64_t)1 << 60;
    manager_start(small);
    c.disk_floor = 0;
    struct manager *lead = leader_of(&c);
    run_until(&c, 5000, (status(lead, &st), st.no_space));
    assert_int_not_equal(st.servers[0].disk_free, 0);
    for (unsigned i = 0; i < 3; i++) {
        put(&c.managers[i], "a", "2", 3000 * PATIENCE, &a);
        run_until(&c, 5000, a.n > 0);
        assert_int_equal(a.status, SYM_ENOSPACE);
    }
    read_ok(lead);       /* reading goes on */
    manager_stop(small); /* of one that is not there nothing is known */
    put_ok(lead, "a", "3");
    manager_start(small);
    run_until(&c, 5000, sees_up(lead, small->id));
    put_ok(small, "a", "4");
    stop_all(&c);
    cluster_close(&c);
}

/* No snapshot is begun without room for it, nor at once after one that was given up. */
static void snapshots_that_wait(void **state)
{
    (void)state;
    struct cluster c;
    struct rnode_status st;
    cluster_open(&c);
    form(&c, 1);
    struct manager *m = &c.managers[0];
    struct rnode *n = m->node;
    put_ok(m, "a", "1");
    uint64_t least = n->health.least;
    n->health.least = (uint64_t)1 << 60;
    run_until(&c, 5000, (status(m, &st), st.no_space));
    n->snapshot_bytes = 1;
    for (unsigned i = 0; i < 100; i++) {
        uv_run(&c.loop, UV_RUN_ONCE);
    }
    assert_int_equal(n->fsm.snapshots, 0);
    n->guard.given_up++;
    n->health.least = least;
    run_until(&c, 5000, !n->health.low);
    assert_int_equal(n->snapshot_wait, 1000);
    run_until(&c, 5000, n->fsm.snapshots > 0);
    assert_true(uv_now(&c.loop) >= n->snapshot_after);
    run_until(&c, 5000, n->snapshot_wait == 0);
    stop_all(&c);
    cluster_close(&c);
}

/* The floor is above what the next snapshot takes. */
static void floor_and_state(void **state)
{
    (void)state;
    struct cluster c;
    struct rnode_status st;
    cluster_open(&c);
    form(&c, 1);
    struct manager *m = &c.managers[0];
    uint64_t before = m->node->health.floor;
    write_much(m, 8, 512 << 10);
    run_until(&c, 5000, m->node->health.floor >= before + (512 << 10));
    status(m, &st);
    assert_false(st.no_space);
    stop_all(&c);
    cluster_close(&c);
}

static void full_store(void **state)
{
    (void)state;
    struct cluster c;
    struct answer a = {0};
    cluster_open(&c);
    c.quota = 16 << 20;
    form(&c, 1);
    struct manager *m = &c.managers[0];
    char *value = malloc(500001);
    memset(value, 'v', 500000);
    value[500000] = '\0';
    unsigned n = 0;
    while (a.status == 0) {
        char key[16];
        snprintf(key, sizeof key, "k%u", n++);
        put(m, key, value, 5000 * PATIENCE, &a);
        run_until(&c, 6000, a.n > 0);
        assert_true(n < 100);
    }
    assert_int_equal(a.status, SYM_ENOSPACE);
    assert_true(n > 5);
    /* What makes room is let in. */
    for (unsigned i = 0; i < 5; i++) {
        char key[16];
        struct txn *t = calloc(1, sizeof *t);
        struct buf bytes = {0};
        int len = snprintf(key, sizeof key, "k%u", i);
        t->n_ops = 1;
        t->ops[0] = (struct txn_op){OP_DELETE, {(uint8_t *)key, (size_t)len}, {NULL, 0}};
        check_ok(txn_encode(t, &bytes));
        memset(&a, 0, sizeof a);
        rnode_submit(m->node, buf_data(&bytes), bytes.len, 5000 * PATIENCE, on_txn_answer, &a);
        run_until(&c, 6000, a.n > 0);
        assert_int_equal(a.status, 0);
        buf_free(&bytes);
        free(t);
    }
    put_ok(m, "small", "1");
    free(value);
    stop_all(&c);
    cluster_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(single_voter),
        cmocka_unit_test(three_voters),
        cmocka_unit_test(commits_are_told),
        cmocka_unit_test(settings),
        cmocka_unit_test(time_to_install),
        cmocka_unit_test(snapshot_and_restart),
        cmocka_unit_test(log_is_bounded_and_catch_up_by_snapshot),
        cmocka_unit_test(log_for_a_member_that_lags_is_bounded),
        cmocka_unit_test(snapshots_of_a_large_state),
        cmocka_unit_test(a_quiet_log_is_tidied),
        cmocka_unit_test(a_quiet_log_waits_for_who_is_away),
        cmocka_unit_test(log_in_memory_is_bounded),
        cmocka_unit_test(told_for_what_it_waited),
        cmocka_unit_test(no_write_before_the_terms_own_entry),
        cmocka_unit_test(a_leader_that_stops_hands_over),
        cmocka_unit_test(writes_while_leadership_moves),
        cmocka_unit_test(change_right_after_the_election),
        cmocka_unit_test(removed_while_away),
        cmocka_unit_test(stranger),
        cmocka_unit_test(without_quorum),
        cmocka_unit_test(members),
        cmocka_unit_test(members_move),
        cmocka_unit_test(older_copy_is_refused),
        cmocka_unit_test(low_disk),
        cmocka_unit_test(snapshots_that_wait),
        cmocka_unit_test(floor_and_state),
        cmocka_unit_test(full_store),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
