/* The rules of the notes on raft, one by one: each scenario passes with its rule and fails, by a wrong result
 * or by a crash, without it. Over a raft_io that does nothing by itself, so that the scenarios decide what
 * completes when. Each runs in a process of its own. */
#include "base/err.h"
#include "raft/guard.h"
#include "raft/propose.h"

#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { SENDS_MAX = 256, FATAL = 70, WRONG = 1 };

struct stub {
    struct raft_io io;
    struct raft raft;
    struct raft_fsm fsm;
    struct guard guard;
    raft_time now;
    /* The disk. */
    raft_term term;
    raft_id vote;
    bool forgot_vote; /* a vote of this term was not stored for a moment */
    struct raft_snapshot *snapshot;
    raft_index start;
    struct raft_entry *entries;
    unsigned n_entries;
    /* What waits for the scenario. */
    struct {
        struct raft_io_append *req;
        raft_io_append_cb cb;
        unsigned n;
        size_t bytes;
    } appends[64];
    unsigned n_appends, appended;
    int append_error, term_error, vote_error, truncate_error;
    struct raft_io_snapshot_put *put;
    raft_io_snapshot_put_cb put_cb;
    struct raft_io_snapshot_get *get;
    raft_io_snapshot_get_cb get_cb;
    struct guard_job *job;
    struct raft_message sent[SENDS_MAX];
    unsigned n_sent;
    size_t bytes_sent[4]; /* of entries, by receiver */
    struct {
        struct raft_io_send *req;
        raft_io_send_cb cb;
    } queued[SENDS_MAX];
    unsigned n_queued;
    raft_id slow; /* what is sent there waits in @queued until the scenario takes it */
    raft_io_tick_cb tick;
    raft_io_recv_cb recv;
    raft_io_close_cb close;
    bool closed;
    unsigned applies, restores, changed;
    struct txn_result *results;
};

static struct stub s;

static void expect_(bool good, const char *what, int line)
{
    if (!good) {
        fprintf(stderr, "line %d: not so: %s\n", line, what);
        _exit(WRONG);
    }
}
#define expect(cond) expect_(cond, #cond, __LINE__)

/* --- the stub --- */

static struct raft_buffer bytes_of(size_t n, int fill)
{
    struct raft_buffer b = {raft_malloc(n), n};
    memset(b.base, fill, n);
    return b;
}

static int st_init(struct raft_io *io, raft_id id, const char *address)
{
    (void)io;
    (void)id;
    (void)address;
    return 0;
}

/* The connection to the slow one takes what waits for it, or fails. */
static void taken(int status)
{
    unsigned n = s.n_queued;
    s.n_queued = 0;
    for (unsigned i = 0; i < n; i++) {
        s.queued[i].cb(s.queued[i].req, status);
    }
}

static void st_close(struct raft_io *io, raft_io_close_cb cb)
{
    s.close = cb;
    taken(RAFT_CANCELED);
    for (unsigned i = 0; i < s.n_appends; i++) {
        s.appends[i].cb(s.appends[i].req, RAFT_CANCELED);
    }
    s.n_appends = 0;
    if (s.put != NULL) {
        struct raft_io_snapshot_put *put = s.put;
        s.put = NULL;
        s.put_cb(put, RAFT_CANCELED);
    }
    cb(io);
}

static int st_load(struct raft_io *io, raft_term *term, raft_id *vote, struct raft_snapshot **snapshot,
    raft_index *start, struct raft_entry *entries[], size_t *n)
{
    (void)io;
    *term = s.term;
    *vote = s.vote;
    *snapshot = s.snapshot;
    *start = s.start;
    *entries = s.entries;
    *n = s.n_entries;
    return 0;
}

static int st_start(struct raft_io *io, unsigned msecs, raft_io_tick_cb tick, raft_io_recv_cb recv)
{
    (void)io;
    (void)msecs;
    s.tick = tick;
    s.recv = recv;
    return 0;
}

static int st_set_term(struct raft_io *io, raft_term term)
{
    (void)io;
    if (s.term_error != 0) {
        return s.term_error;
    }
    s.forgot_vote |= term == s.term && s.vote != 0;
    s.term = term;
    s.vote = 0;
    return 0;
}

static int st_set_vote(struct raft_io *io, raft_id id)
{
    (void)io;
    if (s.vote_error != 0) {
        return s.vote_error;
    }
    s.vote = id;
    return 0;
}

static int st_send(
    struct raft_io *io, struct raft_io_send *req, const struct raft_message *m, raft_io_send_cb cb)
{
    (void)io;
    expect(s.n_sent < SENDS_MAX);
    s.sent[s.n_sent] = *m;
    s.sent[s.n_sent++].server_address = NULL;
    for (unsigned i = 0; m->type == RAFT_APPEND_ENTRIES && i < m->append_entries.n_entries; i++) {
        s.bytes_sent[m->server_id] += m->append_entries.entries[i].buf.len;
    }
    if (m->server_id == s.slow) {
        s.queued[s.n_queued].req = req;
        s.queued[s.n_queued++].cb = cb;
    } else {
        cb(req, 0); /* what the copy points to is gone from here on */
    }
    return 0;
}

static int st_append(struct raft_io *io, struct raft_io_append *req, const struct raft_entry entries[],
    unsigned n, raft_io_append_cb cb)
{
    (void)io;
    if (s.append_error != 0) {
        return s.append_error;
    }
    s.appends[s.n_appends].req = req;
    s.appends[s.n_appends].cb = cb;
    s.appends[s.n_appends].n = n;
    s.appends[s.n_appends].bytes = entries[0].buf.len;
    s.n_appends++;
    s.appended += n;
    return 0;
}

static int st_truncate(struct raft_io *io, raft_index index)
{
    (void)io;
    (void)index;
    return s.truncate_error;
}

static int st_put(struct raft_io *io, unsigned trailing, struct raft_io_snapshot_put *req,
    const struct raft_snapshot *snapshot, raft_io_snapshot_put_cb cb)
{
    (void)io;
    (void)trailing;
    (void)snapshot;
    s.put = req;
    s.put_cb = cb;
    return 0;
}

static int st_get(struct raft_io *io, struct raft_io_snapshot_get *req, raft_io_snapshot_get_cb cb)
{
    (void)io;
    s.get = req;
    s.get_cb = cb;
    return 0;
}

static raft_time st_time(struct raft_io *io)
{
    (void)io;
    return s.now;
}

static int st_random(struct raft_io *io, int min, int max)
{
    (void)io;
    (void)max;
    return min;
}

static struct propose propose;
static bool proposing;

static int fsm_apply(struct raft_fsm *fsm, const struct raft_buffer *buf, void **result)
{
    (void)fsm;
    *result = NULL;
    s.applies++;
    if (proposing && propose_wanted(&propose, s.raft.last_applied + 1)) {
        uint32_t n = get_u32((const uint8_t *)buf->base + 4); /* txns of the pack */
        struct txn_result *results = calloc(n, sizeof *results);
        for (uint32_t i = 0; i < n; i++) {
            results[i].revision = i + 1;
        }
        propose_deliver(&propose, s.raft.last_applied + 1, results, n);
    }
    return 0;
}

static int fsm_snapshot(struct raft_fsm *fsm, struct raft_buffer *bufs[], unsigned *n_bufs)
{
    (void)fsm;
    static struct raft_buffer placeholder;
    *bufs = &placeholder;
    *n_bufs = 1;
    return 0;
}

static int fsm_finalize(struct raft_fsm *fsm, struct raft_buffer *bufs[], unsigned *n_bufs)
{
    (void)fsm;
    *bufs = NULL;
    *n_bufs = 0;
    return 0;
}

static int fsm_restore(struct raft_fsm *fsm, struct raft_buffer *buf)
{
    (void)fsm;
    s.restores++;
    raft_free(buf->base);
    return 0;
}

static void on_fatal(void *arg, const char *what, int rv)
{
    (void)arg;
    fprintf(stderr, "fatal: %s: %d\n", what, rv);
    _exit(FATAL);
}

static void on_changed(void *arg)
{
    (void)arg;
    s.changed++;
}

static void on_work(void *arg, struct guard_job *job)
{
    (void)arg;
    expect(s.job == NULL);
    s.job = job;
}

static int encode_error;

static int on_encode(void *arg, struct raft_buffer *out)
{
    (void)arg;
    if (encode_error != 0) {
        return encode_error;
    }
    *out = bytes_of(16, 's');
    return 0;
}

static int on_prepare(void *arg, const struct raft_buffer *data)
{
    (void)arg;
    return data->len == 16 ? 0 : RAFT_CORRUPT;
}

static bool no_room;

static bool on_room(void *arg, size_t bytes)
{
    (void)arg;
    (void)bytes;
    return !no_room;
}

static const struct guard_ops guard_ops = {.fatal = on_fatal,
    .changed = on_changed,
    .work = on_work,
    .encode = on_encode,
    .prepare = on_prepare,
    .room = on_room};

static void on_close(struct raft *raft)
{
    (void)raft;
    s.closed = true;
}

static int own_role = RAFT_VOTER;

static struct raft_buffer configuration(unsigned n_voters)
{
    struct raft_configuration c;
    struct raft_buffer buf;
    raft_configuration_init(&c);
    for (unsigned i = 1; i <= n_voters; i++) {
        char address[16];
        snprintf(address, sizeof address, "a%u", i);
        expect(raft_configuration_add(&c, i, address, i == 1 ? own_role : RAFT_VOTER) == 0);
    }
    expect(raft_configuration_encode(&c, &buf) == 0);
    raft_configuration_close(&c);
    return buf;
}

static struct raft_snapshot *snapshot_at(raft_index index, raft_term term)
{
    struct raft_snapshot *snap = raft_calloc(1, sizeof *snap);
    struct raft_buffer conf = configuration(3);
    snap->index = index;
    snap->term = term;
    expect(raft_configuration_decode(&conf, &snap->configuration) == 0);
    raft_free(conf.base);
    snap->configuration_index = 1;
    snap->bufs = raft_malloc(sizeof *snap->bufs);
    snap->bufs[0] = bytes_of(16, 's');
    snap->n_bufs = 1;
    return snap;
}

/* Server 1 of @n_voters, whose log is the configuration and @commands entries of term 1 behind it; or, with
 * @snapshot, that instead of the configuration. */
static void boot(unsigned n_voters, unsigned commands, struct raft_snapshot *snapshot)
{
    unsigned n = commands + (snapshot == NULL);
    s.term = 1;
    s.snapshot = snapshot;
    s.start = snapshot == NULL ? 1 : snapshot->index + 1;
    s.entries = n == 0 ? NULL : raft_calloc(n, sizeof *s.entries);
    s.n_entries = n;
    for (unsigned i = 0; i < n; i++) {
        bool conf = i == 0 && snapshot == NULL;
        s.entries[i].term = 1;
        s.entries[i].type = conf ? RAFT_CHANGE : RAFT_COMMAND;
        s.entries[i].buf = conf ? configuration(n_voters) : bytes_of(8, 'e');
        s.entries[i].batch = s.entries[i].buf.base;
    }
    s.io = (struct raft_io){.version = 2,
        .capacity = 8192,
        .impl = &s,
        .init = st_init,
        .close = st_close,
        .load = st_load,
        .start = st_start,
        .set_term = st_set_term,
        .set_vote = st_set_vote,
        .send = st_send,
        .append = st_append,
        .truncate = st_truncate,
        .snapshot_put = st_put,
        .snapshot_get = st_get,
        .time = st_time,
        .random = st_random};
    s.fsm = (struct raft_fsm){.version = 2,
        .apply = fsm_apply,
        .snapshot = fsm_snapshot,
        .restore = fsm_restore,
        .snapshot_finalize = fsm_finalize};
    s.now = 1000;
    expect(raft_init(&s.raft, &s.io, &s.fsm, 1, "a1") == 0);
    s.raft.tracer = NULL;
    raft_set_snapshot_threshold(&s.raft, 1000000);
    raft_set_snapshot_trailing(&s.raft, 10);
    guard_wrap(&s.guard, &s.raft, &guard_ops, NULL);
    expect(raft_start(&s.raft) == 0);
}

static void disk(void)
{
    while (s.n_appends > 0) {
        struct raft_io_append *req = s.appends[0].req;
        raft_io_append_cb cb = s.appends[0].cb;
        s.n_appends--;
        memmove(s.appends, s.appends + 1, s.n_appends * sizeof *s.appends);
        cb(req, 0);
    }
}

static void job(void)
{
    struct guard_job *j = s.job;
    s.job = NULL;
    j->run(j);
    j->done(j);
}

static void put(int status)
{
    struct raft_io_snapshot_put *req = s.put;
    s.put = NULL;
    s.put_cb(req, status);
}

static void end(void)
{
    raft_close(&s.raft, on_close);
    if (s.job != NULL) {
        expect(!s.closed); /* what is on another thread is waited for */
        job();
    }
    expect(s.closed);
    guard_free(&s.guard);
}

static void receive(struct raft_message *m, raft_id from)
{
    m->server_id = from;
    m->server_address = from == 2 ? "a2" : "a3";
    s.recv(&s.io, m);
}

/* AppendEntries of @n entries; @change: the number of the one that is a configuration, from 0, or -1. */
static void entries(
    raft_term term, raft_index prev, raft_term prev_term, raft_index commit, unsigned n, int change)
{
    struct raft_message m = {.type = RAFT_APPEND_ENTRIES};
    struct raft_append_entries *a = &m.append_entries;
    *a = (struct raft_append_entries){.term = term,
        .prev_log_index = prev,
        .prev_log_term = prev_term,
        .leader_commit = commit,
        .n_entries = n};
    if (n > 0) {
        struct raft_buffer conf = configuration(4);
        uint8_t *batch = raft_malloc(n * 8 + conf.len);
        uint8_t *p = batch;
        a->entries = raft_calloc(n, sizeof *a->entries);
        for (unsigned i = 0; i < n; i++) {
            struct raft_entry *e = &a->entries[i];
            bool is_change = (int)i == change;
            e->term = term;
            e->type = is_change ? RAFT_CHANGE : RAFT_COMMAND;
            e->batch = batch;
            e->buf = (struct raft_buffer){p, is_change ? conf.len : 8};
            memset(p, 'x', e->buf.len);
            if (is_change) {
                memcpy(p, conf.base, conf.len);
            }
            p += e->buf.len;
        }
        raft_free(conf.base);
    }
    receive(&m, 2);
}

static void vote_request(raft_id from, raft_term term, raft_index last, raft_term last_term)
{
    struct raft_message m = {.type = RAFT_REQUEST_VOTE};
    m.request_vote = (struct raft_request_vote){
        .version = 2, .term = term, .candidate_id = from, .last_log_index = last, .last_log_term = last_term};
    receive(&m, from);
}

static void become_leader(void)
{
    s.now += 5000;
    s.tick(&s.io);
    expect(s.raft.state == RAFT_CANDIDATE);
    struct raft_message m = {.type = RAFT_REQUEST_VOTE_RESULT};
    m.request_vote_result =
        (struct raft_request_vote_result){.version = 2, .term = s.raft.current_term, .vote_granted = true};
    receive(&m, 2);
    expect(s.raft.state == RAFT_LEADER);
    disk();
}

static void result(raft_id from, raft_index rejected, raft_index last)
{
    struct raft_message m = {.type = RAFT_APPEND_ENTRIES_RESULT};
    m.append_entries_result = (struct raft_append_entries_result){
        .version = 2, .term = s.raft.current_term, .rejected = rejected, .last_log_index = last};
    receive(&m, from);
}

static void take_snapshot(void)
{
    raft_set_snapshot_threshold(&s.raft, 1);
    s.now += 10;
    s.tick(&s.io);
    raft_set_snapshot_threshold(&s.raft, 1000000);
    expect(s.job != NULL);
}

/* --- running a scenario --- */

static int run(void (*scenario)(void), unsigned off)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        if (off != 0) {
            int null = open("/dev/null", O_WRONLY);
            dup2(null, STDERR_FILENO); /* the crash that is expected */
        }
        static const int crashes[] = {SIGSEGV, SIGABRT, SIGBUS, SIGILL, SIGFPE};
        for (unsigned i = 0; i < sizeof crashes / sizeof *crashes; i++) {
            signal(crashes[i], SIG_DFL); /* or cmocka would go on here */
        }
        alarm(20);
        guard_rules_off = off;
        scenario();
        exit(0); /* through the leak check */
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void good_with_bad_without(void (*scenario)(void), unsigned off)
{
    assert_int_equal(run(scenario, 0), 0);
    assert_int_not_equal(run(scenario, off), 0);
}

static void fatal_with(void (*scenario)(void), unsigned off)
{
    assert_int_equal(run(scenario, 0), FATAL);
    assert_int_not_equal(run(scenario, off), FATAL);
}

/* --- rules 1 to 3 --- */

static unsigned answered, answered_ok;

static void on_prop(void *arg, int status, const struct txn_result *r)
{
    (void)arg;
    answered++;
    answered_ok += status == 0 && r->revision == answered;
}

static int may(void *arg, const uint8_t *txn, size_t n)
{
    (void)arg;
    (void)txn;
    (void)n;
    return 0;
}

static uint64_t revision(void *arg)
{
    (void)arg;
    return 0;
}

static uint64_t visits_each, visits_per_put;

static int cost(void *arg, const uint8_t *txn, size_t n, uint64_t puts, uint64_t most, struct txn_cost *out)
{
    (void)arg;
    (void)txn;
    (void)n;
    expect(most == PROPOSE_VISITS_MAX);
    *out = (struct txn_cost){.now = visits_each, .then = visits_each + visits_per_put * puts};
    return 0;
}

static const struct propose_ops propose_ops = {
    .fatal = on_fatal, .may = may, .revision = revision, .cost = cost};

static struct buf txn_of(size_t value)
{
    struct txn *t = calloc(1, sizeof *t);
    uint8_t *v = calloc(1, value + 1);
    struct buf b = {0};
    t->n_ops = 1;
    t->ops[0] = (struct txn_op){OP_PUT, {(const uint8_t *)"k", 1}, {v, value}};
    expect(txn_encode(t, &b) == 0);
    free(t);
    free(v);
    return b;
}

static void one_entry_for_many_txns(void)
{
    enum { N = 100 };
    struct prop *prop;
    boot(1, 0, NULL);
    expect(s.raft.state == RAFT_LEADER);
    proposing = true;
    propose_init(&propose, &s.raft, &propose_ops, NULL);
    struct buf t = txn_of(13);
    for (unsigned i = 0; i < N; i++) {
        expect(propose_submit(&propose, buf_data(&t), t.len, true, on_prop, NULL, &prop) == 0);
    }
    expect(answered == 0);
    propose_flush(&propose);
    expect(s.n_appends == 1 && s.appends[0].n == 1);                       /* rule 1 */
    expect(s.appends[0].bytes > N * t.len && s.appends[0].bytes % 8 == 0); /* rule 2 */
    disk();
    expect(s.applies == 1);
    struct raft_message none = {.type = 0};
    receive(&none, 2);
    /* libraft fires its callbacks from raft_uv's handles or at the end. */
    raft_close(&s.raft, on_close);
    expect(answered == N && answered_ok == N);
    propose_close(&propose);
    guard_free(&s.guard);
    buf_free(&t);
}

static void large_txns_stay_below_the_limit(void)
{
    struct prop *prop;
    boot(1, 0, NULL);
    propose_init(&propose, &s.raft, &propose_ops, NULL);
    struct buf big = txn_of(VALUE_MAX), small = txn_of(100);
    for (unsigned i = 0; i < 8; i++) {
        struct buf *t = i % 2 == 0 ? &big : &small;
        expect(propose_submit(&propose, buf_data(t), t->len, true, on_prop, NULL, &prop) == 0);
    }
    propose_flush(&propose);
    expect(s.n_appends == PROPOSE_IN_FLIGHT);
    for (unsigned i = 0; i < s.n_appends; i++) {
        size_t n = s.appends[i].bytes;
        expect(n <= PACK_MAX && n % 8 == 0 && n > 0);
        expect(n <= PACK_TARGET || n < big.len + small.len); /* more only for one that is so large alone */
    }
    propose.closing = true;
    raft_close(&s.raft, on_close);
    propose_close(&propose);
    expect(answered == 8 && answered_ok == 0);
    guard_free(&s.guard);
    buf_free(&big);
    buf_free(&small);
}

static unsigned too_big;

static void on_counted(void *arg, int status, const struct txn_result *r)
{
    too_big += status == SYM_ETOOBIG;
    on_prop(arg, status, r);
}

static void submit(const struct buf *t, unsigned n)
{
    struct prop *prop;
    for (unsigned i = 0; i < n; i++) {
        expect(propose_submit(&propose, buf_data(t), t->len, true, on_counted, NULL, &prop) == 0);
    }
}

/* What the txns of an entry go through is bounded together; what is more goes into the next. */
static void compares_end_a_pack(void)
{
    boot(1, 0, NULL);
    propose_init(&propose, &s.raft, &propose_ops, NULL);
    struct buf t = txn_of(PROPOSE_WORTH);
    visits_each = PROPOSE_VISITS_MAX / 2;
    submit(&t, 5);
    expect(propose_flush(&propose)); /* enough for one turn of the loop, and there is more */
    expect(s.n_appends == 1 && propose.pack_txns == 2 && propose.n_waiting == 3);
    expect(propose_flush(&propose));
    expect(s.n_appends == 2 && propose.pack_txns == 4 && propose.n_waiting == 1);
    visits_each = PROPOSE_VISITS_MAX;
    submit(&t, 1);
    expect(propose_flush(&propose));
    expect(s.n_appends == 3 && propose.pack_txns == 5 && propose.n_waiting == 1);
    expect(!propose_flush(&propose));
    expect(s.n_appends == 4 && propose.pack_txns == 6 && propose.n_waiting == 0);
    raft_close(&s.raft, on_close);
    expect(propose.ops_in_flight == 0 && too_big == 0);
    propose_close(&propose);
    guard_free(&s.guard);
    buf_free(&t);
}

/* Too much alone: refused, a few a turn, and the others go their way. */
static void compares_too_big(void)
{
    boot(1, 0, NULL);
    propose_init(&propose, &s.raft, &propose_ops, NULL);
    struct buf t = txn_of(13);
    visits_each = PROPOSE_VISITS_MAX + 1;
    submit(&t, 3);
    for (unsigned i = 1; i <= 3; i++) {
        expect(propose_flush(&propose) == (i < 3));
        expect(too_big == i && s.n_appends == 0);
    }
    visits_each = PROPOSE_VISITS_MAX;
    submit(&t, 1);
    expect(!propose_flush(&propose));
    expect(s.n_appends == 1 && propose.n_waiting == 0);
    raft_close(&s.raft, on_close);
    propose_close(&propose);
    expect(too_big == 3 && answered == 4);
    guard_free(&s.guard);
    buf_free(&t);
}

/* Keys that come before it count as well, in its entry and in those in flight: it waits for them. */
static void compares_wait(void)
{
    boot(1, 0, NULL);
    propose_init(&propose, &s.raft, &propose_ops, NULL);
    struct buf t = txn_of(PROPOSE_WORTH);
    visits_each = 1;
    visits_per_put = PROPOSE_VISITS_MAX / 2;
    submit(&t, 4);
    for (int i = 0; i < 3; i++) {
        expect(!propose_flush(&propose));
        expect(s.n_appends == 1 && propose.pack_txns == 2 && propose.n_waiting == 2);
        expect(propose_waits_for(&propose) == SYM_ENOQUORUM);
    }
    visits_per_put = 0;
    propose_flush(&propose);
    expect(s.n_appends == 2 && propose.pack_txns == 4 && propose.n_waiting == 0);
    raft_close(&s.raft, on_close);
    propose_close(&propose);
    expect(propose.ops_in_flight == 0 && too_big == 0);
    guard_free(&s.guard);
    buf_free(&t);
}

static void compares_of_prefixes(void **state)
{
    (void)state;
    assert_int_equal(run(compares_end_a_pack, 0), 0);
    assert_int_equal(run(compares_too_big, 0), 0);
    assert_int_equal(run(compares_wait, 0), 0);
}

static void rule_1_and_2(void **state)
{
    (void)state;
    assert_int_equal(run(one_entry_for_many_txns, 0), 0);
    assert_int_equal(run(large_txns_stay_below_the_limit, 0), 0);
}

static void failed_apply(void)
{
    struct prop *prop;
    boot(1, 0, NULL);
    propose_init(&propose, &s.raft, &propose_ops, NULL);
    struct buf t = txn_of(13);
    expect(propose_submit(&propose, buf_data(&t), t.len, true, on_prop, NULL, &prop) == 0);
    guard_rules_off |= 1u << 4; /* or the guard sees it first */
    s.append_error = RAFT_IOERR;
    propose_flush(&propose);
}

static struct raft_apply applies[64];
static unsigned n_applies;
static int applied_status = -1;

static void on_applied(struct raft_apply *req, int status, void *result)
{
    (void)req;
    applied_status = status;
    (void)result;
}

/* An election is won while the segments of the log are short, and lost with a write under way. */
static void won_without_room(void)
{
    boot(3, 1, NULL);
    s.io.capacity = 1;
    s.now += 5000;
    s.tick(&s.io);
    struct raft_message m = {.type = RAFT_REQUEST_VOTE_RESULT};
    m.request_vote_result = (struct raft_request_vote_result){
        .version = 2, .term = s.raft.current_term, .vote_granted = true, .features = 1, .capacity = 1};
    receive(&m, 2);
    expect(s.raft.state == RAFT_LEADER && raft_last_index(&s.raft) == 3);
    disk();
    struct raft_buffer buf = bytes_of(8, 'b');
    expect(raft_apply(&s.raft, &applies[0], &buf, 1, on_applied) == RAFT_NOSPACE);
    s.io.capacity = 8192;
    struct raft_message r = {.type = RAFT_APPEND_ENTRIES_RESULT};
    r.append_entries_result = (struct raft_append_entries_result){
        .version = 2, .term = s.raft.current_term, .last_log_index = 3, .features = 1, .capacity = 8192};
    receive(&r, 2);
    expect(raft_apply(&s.raft, &applies[0], &buf, 1, on_applied) == 0);
    entries(s.raft.current_term + 1, 3, s.raft.current_term, 3, 2, -1);
    expect(s.raft.state == RAFT_FOLLOWER);
    disk();
    s.now += 10;
    s.tick(&s.io);
    raft_close(&s.raft, on_close);
    expect(applied_status == RAFT_LEADERSHIPLOST);
    guard_free(&s.guard);
}

static void rule_3(void **state)
{
    (void)state;
    fatal_with(failed_apply, 1u << 3);
    good_with_bad_without(won_without_room, 1u << 3);
}

/* --- rule 4 --- */

static void append_refused(void)
{
    boot(3, 0, NULL);
    s.append_error = RAFT_IOERR;
    entries(1, 1, 1, 1, 1, -1);
}

static void append_failed(void)
{
    boot(3, 0, NULL);
    entries(1, 1, 1, 1, 1, -1);
    s.appends[0].cb(s.appends[0].req, RAFT_IOERR);
}

static void put_failed(void)
{
    boot(3, 5, NULL);
    entries(1, 6, 1, 6, 0, -1);
    take_snapshot();
    job();
    put(RAFT_IOERR);
}

static void write_failed_unseen(void)
{
    boot(3, 0, NULL);
    snprintf(s.io.errmsg, sizeof s.io.errmsg, "write failed: -5");
    s.tick(&s.io);
}

static void bad_snapshot_received(void)
{
    boot(3, 0, NULL);
    struct raft_message m = {.type = RAFT_INSTALL_SNAPSHOT};
    struct raft_snapshot *snap = snapshot_at(50, 1);
    m.install_snapshot = (struct raft_install_snapshot){.term = 1,
        .last_index = 50,
        .last_term = 1,
        .conf = snap->configuration,
        .conf_index = 1,
        .data = bytes_of(8, 'b')};
    receive(&m, 2);
    job();
}

static void committed_entry_contradicted(void)
{
    boot(3, 5, NULL);
    entries(1, 6, 1, 6, 0, -1);
    expect(s.raft.commit_index == 6);
    entries(2, 3, 1, 6, 2, -1); /* entry 4 has term 2 there, term 1 here, and is committed */
}

static void term_not_stored(void)
{
    boot(3, 0, NULL);
    s.term_error = RAFT_IOERR;
    vote_request(2, 5, 1, 1);
}

static void vote_not_stored(void)
{
    boot(3, 0, NULL);
    s.vote_error = RAFT_IOERR;
    vote_request(2, 5, 1, 1);
}

static void log_not_truncated(void)
{
    boot(3, 5, NULL);
    s.truncate_error = RAFT_IOERR;
    entries(2, 3, 1, 1, 1, -1);
}

static void on_tick(struct raft_io *io)
{
    (void)io;
    s.raft.state = RAFT_UNAVAILABLE;
}

static void unavailable(void)
{
    boot(3, 0, NULL);
    s.guard.tick = on_tick;
    s.tick(&s.io);
}

static void rule_4(void **state)
{
    (void)state;
    fatal_with(append_refused, 1u << 4);
    fatal_with(append_failed, 1u << 4);
    fatal_with(put_failed, 1u << 4);
    fatal_with(write_failed_unseen, 1u << 4);
    assert_int_equal(run(bad_snapshot_received, 0), FATAL);
    assert_int_equal(run(term_not_stored, 0), FATAL);
    assert_int_equal(run(vote_not_stored, 0), FATAL);
    assert_int_equal(run(log_not_truncated, 0), FATAL);
    assert_int_equal(run(unavailable, 0), FATAL);
    fatal_with(committed_entry_contradicted, 1u << 4);
}

/* --- rules 5 to 10 --- */

static void late_commit(void)
{
    boot(3, 9, NULL);
    entries(1, 10, 1, 10, 0, -1);
    expect(s.raft.commit_index == 10 && s.raft.last_applied == 10);
    entries(1, 5, 1, 20, 0, -1); /* overtaken on its way */
    expect(s.raft.commit_index == 10);
    end();
}

static void rule_5(void **state)
{
    (void)state;
    good_with_bad_without(late_commit, 1u << 5);
}

static void change_behind_commands(void)
{
    boot(3, 0, NULL);
    entries(1, 1, 1, 1, 4, 2);
    expect(raft_last_index(&s.raft) == 5);
    expect(s.raft.configuration.n == 4);
    expect(s.raft.configuration_uncommitted_index == 4);
    disk();
    entries(1, 5, 1, 5, 0, -1);
    expect(s.raft.configuration_committed_index == 4 && s.raft.configuration_uncommitted_index == 0);
    expect(s.applies == 3);
    end();
}

static void rule_6(void **state)
{
    (void)state;
    good_with_bad_without(change_behind_commands, 1u << 6);
}

static void install(raft_index index, raft_term term)
{
    struct raft_message m = {.type = RAFT_INSTALL_SNAPSHOT};
    struct raft_snapshot *snap = snapshot_at(index, term);
    m.install_snapshot = (struct raft_install_snapshot){.term = term,
        .last_index = index,
        .last_term = term,
        .conf = snap->configuration,
        .conf_index = 1,
        .data = snap->bufs[0]};
    raft_free(snap->bufs);
    raft_free(snap);
    receive(&m, 2);
}

static void install_while_taking(void)
{
    boot(3, 5, NULL);
    entries(1, 6, 1, 6, 0, -1);
    take_snapshot();
    install(50, 1);
    job();
    put(0);
    expect(s.raft.trail.snapshot.index == 6);
    install(50, 1); /* sent again */
    install(50, 1); /* and once more */
    job();
    put(0);
    expect(s.restores == 1 && s.raft.last_applied == 50 && raft_last_index(&s.raft) == 50);
    end();
}

static void rule_7(void **state)
{
    (void)state;
    good_with_bad_without(install_while_taking, 1u << 7);
}

static void lead_and_need_snapshot(void)
{
    boot(3, 0, snapshot_at(10, 1));
    become_leader();
    result(3, 10, 0); /* has nothing */
    expect(s.get != NULL);
}

static void newer_snapshot_loaded(void)
{
    lead_and_need_snapshot();
    struct raft_snapshot *newer = snapshot_at(20, 2);
    struct raft_io_snapshot_get *get = s.get;
    s.get = NULL;
    s.n_sent = 0;
    s.get_cb(get, newer, 0);
    expect(s.n_sent == 1 && s.sent[0].type == RAFT_INSTALL_SNAPSHOT);
    expect(s.sent[0].install_snapshot.last_index == 20);
    expect(s.sent[0].install_snapshot.last_term == 2);
    end();
}

static void snapshot_not_loaded(void)
{
    lead_and_need_snapshot();
    struct raft_io_snapshot_get *get = s.get;
    s.get = NULL;
    s.n_sent = 0;
    /* As raft_uv does it: the memory for the snapshot is there, what it should hold is not. */
    struct raft_snapshot *none = raft_malloc(sizeof *none);
    memset(none, 0xee, sizeof *none);
    s.get_cb(get, none, RAFT_IOERR);
    expect(s.n_sent == 0 && s.raft.state == RAFT_LEADER);
    end();
}

static void asked_for_again_meanwhile(void)
{
    lead_and_need_snapshot();
    struct raft_io_snapshot_get *get = s.get;
    s.get = NULL;
    result(3, 10, 0); /* refuses the heartbeat */
    result(2, 10, 0); /* another one needs it, too */
    expect(s.get == NULL);
    s.n_sent = 0;
    s.get_cb(get, snapshot_at(20, 2), 0);
    expect(s.n_sent == 1 && !s.guard.sending); /* sent, at once with this stub */
    result(2, 10, 0);
    expect(s.get != NULL);
    get = s.get;
    s.get = NULL;
    s.get_cb(get, snapshot_at(20, 2), 0);
    end();
}

static void rule_8(void **state)
{
    (void)state;
    good_with_bad_without(newer_snapshot_loaded, 1u << 8);
    good_with_bad_without(snapshot_not_loaded, 1u << 8);
    assert_int_equal(run(asked_for_again_meanwhile, 0), 0);
}

static void prev_is_compacted(void)
{
    boot(3, 99, NULL);
    entries(1, 100, 1, 100, 0, -1);
    take_snapshot();
    job();
    put(0);
    expect(s.raft.trail.offset == 90 && s.raft.trail.snapshot.index == 100);
    s.n_sent = 0;
    entries(1, 50, 1, 100, 20, -1); /* all of it is compacted here */
    expect(s.n_sent == 1 && s.sent[0].append_entries_result.rejected == 0);
    expect(s.sent[0].append_entries_result.last_log_index == 100);
    entries(1, 50, 1, 110, 60, -1); /* the end of it is new */
    expect(raft_last_index(&s.raft) == 110);
    disk();
    expect(s.raft.commit_index == 110 && s.raft.last_applied == 110);
    expect(s.sent[s.n_sent - 1].append_entries_result.last_log_index == 110);
    entries(1, 0, 0, 110, 111, -1); /* from the very beginning */
    disk();
    expect(raft_last_index(&s.raft) == 111);
    end();
}

static void rule_9(void **state)
{
    (void)state;
    good_with_bad_without(prev_is_compacted, 1u << 9);
}

static void vote_asked_for_twice(void)
{
    boot(3, 0, NULL);
    vote_request(2, 5, 1, 1);
    expect(s.term == 5 && s.vote == 2);
    vote_request(2, 5, 1, 1); /* its first answer was lost */
    expect(s.term == 5 && s.vote == 2);
    expect(!s.forgot_vote);
    vote_request(3, 6, 1, 1);
    expect(s.term == 6 && s.vote == 3);
    end();
}

static void rule_10(void **state)
{
    (void)state;
    good_with_bad_without(vote_asked_for_twice, 1u << 10);
}

/* --- rule 12 --- */

static void made_a_voter_without_knowing(void)
{
    own_role = RAFT_STANDBY;
    boot(3, 0, NULL);
    expect(s.raft.configuration.servers[0].role == RAFT_STANDBY);
    entries(1, 1, 1, 1, 0, -1); /* the leader, which then makes it a voter and dies */
    s.n_sent = 0;
    vote_request(2, 2, 2, 1);
    expect(s.n_sent == 1 && !s.sent[0].request_vote_result.vote_granted); /* there is a leader */
    s.n_sent = 0;
    s.now += s.raft.election_timeout;
    s.tick(&s.io); /* not any more */
    vote_request(2, 2, 2, 1);
    expect(s.n_sent == 1 && s.sent[0].request_vote_result.vote_granted && s.vote == 2 && s.term == 2);
    vote_request(3, 2, 2, 1);
    expect(s.n_sent == 2 && !s.sent[1].request_vote_result.vote_granted); /* one vote a term */
    expect(s.raft.configuration.servers[0].role == RAFT_STANDBY);
    end();
}

static void rule_12(void **state)
{
    (void)state;
    good_with_bad_without(made_a_voter_without_knowing, 1u << 12);
}

/* --- the rest of the guard --- */

static void log_ends_before_the_state(void)
{
    boot(3, 9, NULL);
    s.guard.witnessed = 15;
    s.now += 5000;
    s.tick(&s.io);
    expect(s.raft.state == RAFT_CANDIDATE && s.n_sent == 2);
    expect(s.sent[0].server_id == 0 && s.sent[1].server_id == 0); /* asks nobody */
    s.n_sent = 0;
    vote_request(2, 5, 12, 2); /* has more than we have, but not all that was committed */
    expect(s.n_sent == 0 && s.vote != 2);
    vote_request(2, 6, 15, 2);
    expect(s.n_sent == 1 && s.vote == 2);
    entries(6, 10, 1, 10, 5, -1); /* caught up */
    disk();
    s.n_sent = 0;
    s.now += 5000;
    s.tick(&s.io);
    expect(s.raft.state == RAFT_CANDIDATE && s.n_sent == 2 && s.sent[0].server_id != 0);
    end();
}

static void bytes_are_counted(void)
{
    size_t each = 8 + sizeof(struct raft_entry);
    boot(3, 99, NULL);
    uint64_t conf = guard_log_bytes(&s.guard) - 99 * each;
    expect(conf > 8 && conf < 1000);
    expect(guard_fresh_bytes(&s.guard) == guard_log_bytes(&s.guard));
    entries(1, 100, 1, 100, 50, -1);
    disk();
    expect(guard_log_bytes(&s.guard) == conf + 149 * each);
    expect(guard_trailing(&s.guard, 100, 1000, 20 * each) == 20);
    expect(guard_trailing(&s.guard, 100, 5, 20 * each) == 5);
    expect(guard_trailing(&s.guard, 100, 1000, 0) == 1);
    take_snapshot();
    job();
    put(0);
    expect(guard_log_bytes(&s.guard) == 60 * each);
    expect(guard_fresh_bytes(&s.guard) == 50 * each);
    entries(2, 120, 1, 100, 0, -1);
    entries(2, 120, 1, 100, 10, -1); /* takes 30 back */
    disk();
    expect(raft_last_index(&s.raft) == 130);
    expect(guard_log_bytes(&s.guard) == 40 * each);
    for (unsigned i = 0; i < 3000; i++) {
        entries(2, 130 + i, 2, 100, 1, -1);
        disk();
        s.n_sent = 0;
    }
    expect(guard_log_bytes(&s.guard) == 3040 * each);
    install(5000, 2);
    job();
    put(0);
    expect(guard_log_bytes(&s.guard) == 0 && guard_fresh_bytes(&s.guard) == 0);
    entries(2, 5000, 2, 5000, 1, -1);
    disk();
    expect(guard_log_bytes(&s.guard) == each);
    end();
}

static void snapshot_given_up(void)
{
    boot(3, 5, NULL);
    entries(1, 6, 1, 6, 0, -1);
    take_snapshot();
    encode_error = -1;
    job();
    expect(s.put == NULL && !guard_snapshotting(&s.guard) && s.raft.trail.snapshot.index == 0);
    encode_error = 0;
    take_snapshot(); /* the next one */
    job();
    put(0);
    expect(s.raft.trail.snapshot.index == 6);
    end();
}

static void vote_asked_for_somebody_else(void)
{
    struct raft_message m = {.type = RAFT_REQUEST_VOTE};
    boot(3, 0, NULL);
    m.request_vote = (struct raft_request_vote){
        .version = 2, .term = 5, .candidate_id = 3, .last_log_index = 9, .last_log_term = 4};
    receive(&m, 2);
    expect(s.n_sent == 0 && s.vote == 0 && s.term == 1);
    end();
}

static void closed_in_the_middle_of_taking(void)
{
    boot(3, 5, NULL);
    entries(1, 6, 1, 6, 0, -1);
    take_snapshot();
    end();
}

static void closed_in_the_middle_of_installing(void)
{
    boot(3, 0, NULL);
    install(50, 1);
    expect(s.job != NULL);
    end();
}

static void closed_in_the_middle_of_writing_a_snapshot(void)
{
    boot(3, 0, NULL);
    install(50, 1);
    job();
    entries(1, 1, 1, 1, 1, -1);
    end();
}

static void closed_before_a_snapshot_is_loaded(void)
{
    lead_and_need_snapshot();
    struct raft_io_snapshot_get *get = s.get;
    raft_close(&s.raft, on_close);
    s.get_cb(get, snapshot_at(20, 2), 0);
    guard_free(&s.guard);
}

static void held(void)
{
    boot(3, 0, NULL);
    guard_hold(&s.guard);
    raft_close(&s.raft, on_close);
    expect(!s.closed);
    guard_release(&s.guard);
    expect(s.closed);
    guard_free(&s.guard);
}

/* --- what is on its way (flight.h) --- */

enum { MIB = 1 << 20 };

static void propose_bytes(size_t n)
{
    struct raft_buffer buf = bytes_of(n, 'b');
    expect(raft_apply(&s.raft, &applies[n_applies++], &buf, 1, on_applied) == 0);
    disk();
}

/* The last AppendEntries to @id. */
static const struct raft_append_entries *last_to(raft_id id)
{
    for (unsigned i = s.n_sent; i-- > 0;) {
        if (s.sent[i].type == RAFT_APPEND_ENTRIES && s.sent[i].server_id == id) {
            return &s.sent[i].append_entries;
        }
    }
    expect(false);
    return NULL;
}

/* Time goes by, in which 2 answers to everything and 3 to nothing. */
static void heartbeats(unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        s.n_sent = 0;
        s.now += s.raft.heartbeat_timeout;
        s.tick(&s.io);
        result(2, 0, raft_last_index(&s.raft));
        expect(s.raft.state == RAFT_LEADER);
    }
}

/* Leads 2 and 3, which have all of the log (the last, 3, is of this term); 3 becomes slow. */
static void lead(void)
{
    boot(3, 1, NULL);
    become_leader();
    result(2, 0, 3);
    result(3, 0, 3);
    expect(raft_last_index(&s.raft) == 3 && s.raft.commit_index == 3);
    s.slow = 3;
    memset(s.bytes_sent, 0, sizeof s.bytes_sent);
}

static void slow_one_gets_entries_once(void)
{
    lead();
    propose_bytes(MIB);
    heartbeats(20);
    expect(s.bytes_sent[2] == MIB && s.bytes_sent[3] == MIB);
    /* They wait for the connection: heartbeats may overtake them. */
    expect(last_to(3)->n_entries == 0 && last_to(3)->prev_log_index == 3);
    expect(last_to(3)->prev_log_term == s.raft.current_term);
    /* What is new goes out behind them. */
    propose_bytes(8);
    propose_bytes(8);
    heartbeats(20);
    expect(s.bytes_sent[3] == MIB + 16);
    /* They have left: have they arrived? */
    taken(0);
    s.slow = 0;
    heartbeats(20);
    expect(s.bytes_sent[3] == MIB + 16);
    expect(last_to(3)->n_entries == 0 && last_to(3)->prev_log_index == 6);
    expect(last_to(3)->prev_log_term == s.raft.current_term);
    /* They do so one by one, and libraft goes on behind each. */
    result(3, 0, 4);
    result(3, 0, 5);
    heartbeats(5);
    expect(s.bytes_sent[3] == MIB + 16);
    result(3, 0, 6);
    heartbeats(1);
    propose_bytes(8);
    expect(s.bytes_sent[3] == MIB + 24 && last_to(3)->prev_log_index == 6);
    end();
}

static void lost_entries_are_sent_again(void)
{
    lead();
    s.slow = 0;
    propose_bytes(MIB);
    heartbeats(3);
    expect(last_to(3)->n_entries == 0 && last_to(3)->prev_log_index == 4);
    result(3, 4, 3);
    heartbeats(3);
    expect(s.bytes_sent[3] == 2 * MIB);
    end();
}

static void failed_sends_are_sent_again(void)
{
    lead();
    propose_bytes(MIB);
    heartbeats(20);
    taken(RAFT_NOCONNECTION);
    heartbeats(1);
    expect(s.bytes_sent[3] == 2 * MIB);
    taken(0);
    guard_connected(&s.guard, 3); /* what the connection had taken went with it */
    heartbeats(1);
    expect(s.bytes_sent[3] == 3 * MIB);
    end();
}

/* What has been sent to 3 reaches it, and it answers; it has the entries up to @has. */
static raft_index arrive(raft_index has)
{
    taken(0);
    for (unsigned i = 0; i < s.n_sent; i++) {
        struct raft_append_entries a = s.sent[i].append_entries;
        if (s.sent[i].server_id != 3) {
            continue;
        }
        raft_index last = a.prev_log_index + a.n_entries;
        bool gap = a.prev_log_index > has;
        has = gap || last < has ? has : last;
        result(3, gap ? a.prev_log_index : 0, gap ? has : last);
        taken(0);
    }
    s.n_sent = 0;
    return has;
}

static void much_is_sent_by_and_by(void)
{
    lead();
    s.n_sent = 0;
    for (unsigned i = 0; i < 20; i++) {
        propose_bytes(MIB);
        result(2, 0, raft_last_index(&s.raft));
    }
    expect(s.bytes_sent[2] == 20 * MIB && s.bytes_sent[3] == FLIGHT_WINDOW);
    raft_index has = arrive(3);
    expect(has == 3 + FLIGHT_WINDOW / MIB);
    for (unsigned rounds = 0; has < 23; rounds++) {
        expect(rounds < 10);
        heartbeats(1);
        has = arrive(has);
    }
    expect(s.bytes_sent[3] == 20 * MIB);
    end();
}

static void sent_anew_in_a_new_term(void)
{
    lead();
    propose_bytes(MIB);
    entries(s.raft.current_term + 1, 4, s.raft.current_term, 3, 0, -1);
    taken(0);
    become_leader();
    result(3, 4, 3); /* the first heartbeat tries the end of the log */
    expect(s.bytes_sent[3] >= 2 * MIB);
    end();
}

static void commits_are_told(void)
{
    lead();
    expect(guard_untold(&s.guard) == 3);
    guard_tell(&s.guard, 3);
    expect(guard_untold(&s.guard) == 0);
    s.slow = 0;
    s.n_sent = 0;
    propose_bytes(8);
    result(2, 0, 4);
    /* 3 has no more than it has been told of. */
    expect(s.raft.commit_index == 4 && guard_untold(&s.guard) == 4);
    s.n_sent = 0;
    guard_tell(&s.guard, 4);
    expect(s.n_sent == 1 && s.sent[0].server_id == 2 && s.sent[0].type == RAFT_APPEND_ENTRIES);
    const struct raft_append_entries *a = &s.sent[0].append_entries;
    expect(a->term == s.raft.current_term && a->n_entries == 0 && a->leader_commit == 4);
    expect(a->prev_log_index == 4 && a->prev_log_term == s.raft.current_term);
    expect(guard_untold(&s.guard) == 0);
    /* The answer brings nothing about. */
    s.n_sent = 0;
    result(2, 0, 4);
    expect(s.n_sent == 0 && guard_untold(&s.guard) == 0);
    /* Now 3 has it, too. */
    result(3, 0, 4);
    expect(guard_untold(&s.guard) == 4);
    /* What the next entries have told need not be told. */
    propose_bytes(8);
    s.n_sent = 0;
    guard_tell(&s.guard, 4);
    expect(s.n_sent == 0 && guard_untold(&s.guard) == 0);
    /* A new connection, and a new term, know nothing. */
    guard_connected(&s.guard, 3);
    expect(guard_untold(&s.guard) == 4);
    guard_tell(&s.guard, 4);
    expect(s.n_sent == 1 && s.sent[0].server_id == 3 && s.sent[0].append_entries.prev_log_index == 4);
    entries(s.raft.current_term + 1, 4, s.raft.current_term, 4, 0, -1);
    expect(s.raft.state == RAFT_FOLLOWER && guard_untold(&s.guard) == 0);
    end();
}

/* Who answers each heartbeat is sent entries at once, also when ticks come a little early and there was none
 * at the last one. */
static void idle_ones_are_sent_entries_at_once(void)
{
    lead();
    s.slow = 0;
    for (unsigned i = 0; i < 10; i++) {
        s.n_sent = 0;
        s.now += s.raft.heartbeat_timeout - 1;
        s.tick(&s.io);
        for (unsigned k = 0; k < s.n_sent; k++) {
            result(s.sent[k].server_id, 0, 3);
        }
    }
    propose_bytes(8);
    expect(s.bytes_sent[2] == 8 && s.bytes_sent[3] == 8);
    /* It leads no longer than it should when nobody answers. */
    s.n_sent = 0;
    s.now += s.raft.election_timeout;
    s.tick(&s.io);
    s.now += s.raft.election_timeout / 2;
    s.tick(&s.io);
    expect(s.raft.state == RAFT_FOLLOWER);
    end();
}

static void flights(void **state)
{
    (void)state;
    assert_int_equal(run(slow_one_gets_entries_once, 0), 0);
    assert_int_equal(run(lost_entries_are_sent_again, 0), 0);
    assert_int_equal(run(failed_sends_are_sent_again, 0), 0);
    assert_int_equal(run(much_is_sent_by_and_by, 0), 0);
    assert_int_equal(run(sent_anew_in_a_new_term, 0), 0);
    assert_int_equal(run(commits_are_told, 0), 0);
    assert_int_equal(run(idle_ones_are_sent_entries_at_once, 0), 0);
}

/* A snapshot that the disk has no room for is as if lost on the way, and is taken when there is room. */
static void snapshot_without_room(void)
{
    boot(3, 1, NULL);
    no_room = true;
    install(9, 1);
    expect(s.job == NULL && raft_last_index(&s.raft) == 2);
    no_room = false;
    install(9, 1);
    expect(s.job != NULL);
    end();
}

/* Another leader in the same term: its messages are nothing to this one. */
static void two_leaders_of_a_term(void)
{
    lead();
    entries(s.raft.current_term, 3, s.raft.current_term, 3, 1, -1);
    install(9, s.raft.current_term);
    expect(s.raft.state == RAFT_LEADER && raft_last_index(&s.raft) == 3);
    propose_bytes(8);
    result(2, 0, 4);
    expect(s.raft.commit_index == 4);
    s.slow = 0;
    taken(0);
    end();
}

static void rest(void **state)
{
    (void)state;
    assert_int_equal(run(two_leaders_of_a_term, 0), 0);
    assert_int_equal(run(snapshot_without_room, 0), 0);
    assert_int_equal(run(bytes_are_counted, 0), 0);
    assert_int_equal(run(log_ends_before_the_state, 0), 0);
    assert_int_equal(run(snapshot_given_up, 0), 0);
    assert_int_equal(run(vote_asked_for_somebody_else, 0), 0);
    assert_int_equal(run(closed_in_the_middle_of_taking, 0), 0);
    assert_int_equal(run(closed_in_the_middle_of_installing, 0), 0);
    assert_int_equal(run(closed_in_the_middle_of_writing_a_snapshot, 0), 0);
    assert_int_equal(run(closed_before_a_snapshot_is_loaded, 0), 0);
    assert_int_equal(run(held, 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rule_1_and_2),
        cmocka_unit_test(compares_of_prefixes),
        cmocka_unit_test(rule_3),
        cmocka_unit_test(rule_4),
        cmocka_unit_test(rule_5),
        cmocka_unit_test(rule_6),
        cmocka_unit_test(rule_7),
        cmocka_unit_test(rule_8),
        cmocka_unit_test(rule_9),
        cmocka_unit_test(rule_10),
        cmocka_unit_test(rule_12),
        cmocka_unit_test(flights),
        cmocka_unit_test(rest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
