/* Random packs against a naive model: compares, changes, revisions, results, what is remembered of ids,
 * events. And the same packs to a second store that is closed, copied while open and installed from snapshots
 * on the way: equal at every step. */
#include "store_support.h"

enum { N_KEYS = 24, WINDOW = 32, FORGET = 256, MAX_MEMORY = 100000 };

struct value {
    bool present;
    char text[24];
    uint64_t create, mod;
};

struct remembered {
    unsigned id;
    uint64_t entry;
    struct txn_result result;
};

/* What the state should be: arrays, and no shortcuts. */
static struct {
    struct value values[N_KEYS];
    uint64_t applied, revision, floor, quiet;
    struct remembered *memory;
    unsigned n_memory;
    struct {
        unsigned key;
        bool is_delete;
        char text[24];
        uint64_t create, revision;
    } events[4096];
    unsigned n_events, n_seen;
    unsigned repeated, unknown, conflicts;
} m;

/* Keys whose names are beginnings of one another, in order. */
static const char *const names[N_KEYS] = {"/a", "/a/1", "/a/1/x", "/a/1/y", "/a/2", "/a/22", "/a/3", "/b",
    "/b/1", "/b/2", "/b/2/", "/b/2/z", "/bb", "/c/1", "/c/2", "/c/3", "/d", "/e/1", "/e/2", "/e/3", "/e/4",
    "/e/5", "/f", "/g"};
static const char *const prefixes[] = {
    "", "/", "/a", "/a/", "/a/1", "/a/2", "/b", "/b/2/", "/c", "/e/", "/g", "/zz"};

static uint64_t prefix_value(enum cmp_kind kind, const char *prefix)
{
    uint64_t count = 0, newest = 0;
    for (unsigned i = 0; i < N_KEYS; i++) {
        if (m.values[i].present && strncmp(names[i], prefix, strlen(prefix)) == 0) {
            count++;
            newest = m.values[i].mod > newest ? m.values[i].mod : newest;
        }
    }
    return kind == CMP_PREFIX_COUNT ? count : newest;
}

static unsigned key_index(struct slice key)
{
    for (unsigned i = 0;; i++) {
        if (strlen(names[i]) == key.n && memcmp(names[i], key.p, key.n) == 0) {
            return i;
        }
    }
}

static bool model_holds(const struct txn_cmp *c)
{
    if (c->kind == CMP_PREFIX_COUNT) {
        return prefix_value(c->kind, (const char *)c->key.p) == c->number;
    }
    if (c->kind == CMP_PREFIX_REVISION) {
        return prefix_value(c->kind, (const char *)c->key.p) <= c->number;
    }
    const struct value *v = &m.values[key_index(c->key)];
    switch (c->kind) {
    case CMP_ABSENT:
        return !v->present;
    case CMP_VALUE:
        return v->present && strlen(v->text) == c->value.n && memcmp(v->text, c->value.p, c->value.n) == 0;
    case CMP_CREATE_REVISION:
        return v->present && v->create == c->number;
    default:
        return v->present && v->mod == c->number;
    }
}

static struct txn_result model_txn(const struct txn *t)
{
    struct txn_result r = {0};
    bool changed = false;
    if (txn_has_id(&t->id)) {
        for (unsigned i = 0; i < m.n_memory; i++) {
            if (m.memory[i].id == t->id.seq) {
                r = m.memory[i].result;
                r.repeated = true;
                m.repeated++;
                return r;
            }
        }
        if (t->id.since < m.floor) {
            m.unknown++;
            return (struct txn_result){.status = TXN_UNKNOWN, .revision = m.revision};
        }
    }
    for (unsigned i = 0; i < t->n_cmps && r.status == TXN_APPLIED; i++) {
        if (!model_holds(&t->cmps[i])) {
            r.status = TXN_CONFLICT;
            r.failed = (uint16_t)i;
            m.conflicts++;
        }
    }
    for (unsigned i = 0; i < t->n_ops && r.status == TXN_APPLIED; i++) {
        const struct txn_op *op = &t->ops[i];
        unsigned k = key_index(op->key);
        struct value *v = &m.values[k];
        if (op->kind == OP_DELETE && !v->present) {
            continue;
        }
        v->create = v->present ? v->create : m.revision + 1;
        v->mod = m.revision + 1;
        v->present = op->kind == OP_PUT;
        snprintf(v->text, sizeof v->text, "%.*s", (int)op->value.n,
            op->value.n > 0 ? (const char *)op->value.p : "");
        m.events[m.n_events].key = k;
        m.events[m.n_events].is_delete = op->kind == OP_DELETE;
        m.events[m.n_events].create = v->create;
        m.events[m.n_events].revision = v->mod;
        memcpy(m.events[m.n_events].text, v->text, sizeof v->text);
        m.n_events++;
        changed = true;
    }
    m.revision += changed;
    r.revision = m.revision;
    if (txn_has_id(&t->id)) {
        assert_true(m.n_memory < MAX_MEMORY);
        m.memory[m.n_memory++] = (struct remembered){(unsigned)t->id.seq, m.applied + 1, r};
    }
    return r;
}

/* After the txns of an entry. */
static void model_end_entry(uint64_t revision_before)
{
    static uint64_t revisions[1 << 16]; /* after each entry */
    unsigned added = 0;
    m.applied++;
    for (unsigned i = 0; i < m.n_memory; i++) {
        added += m.memory[i].entry == m.applied;
    }
    m.quiet = m.revision != revision_before ? 0 : m.quiet + added;
    if (m.quiet >= WINDOW / 2) {
        m.quiet = 0;
        m.revision++;
    }
    revisions[m.applied] = m.revision;
    if (added == 0 || m.n_memory < WINDOW + FORGET) {
        return;
    }
    for (;;) {
        unsigned oldest = 0;
        while (oldest < m.n_memory && m.memory[oldest].entry == m.memory[0].entry) {
            oldest++;
        }
        if (m.n_memory - oldest < WINDOW) {
            return;
        }
        m.floor = revisions[m.memory[0].entry] + 1;
        m.n_memory -= oldest;
        memmove(m.memory, m.memory + oldest, m.n_memory * sizeof *m.memory);
    }
}

/* --- random txns --- */

static char texts[64][TXN_OPS_MAX][24];

static void some_txn(struct txn *t, unsigned slot)
{
    static unsigned next_id;
    memset(t, 0, offsetof(struct txn, cmps));
    t->n_ops = (unsigned)rnd(4);
    for (unsigned i = 0; i < t->n_ops; i++) {
        snprintf(texts[slot][i], sizeof texts[0][0], "%u", (unsigned)rnd(6));
        const char *key = names[rnd(N_KEYS)];
        t->ops[i] = rnd(3) == 0 ? op_del(key) : op_put(key, texts[slot][i]);
    }
    t->n_cmps = (unsigned)rnd(3);
    for (unsigned i = 0; i < t->n_cmps; i++) {
        unsigned k = (unsigned)rnd(N_KEYS);
        const struct value *v = &m.values[k];
        const char *prefix = prefixes[rnd(sizeof prefixes / sizeof *prefixes)];
        bool wrong = rnd(6) == 0;
        snprintf(texts[slot][TXN_OPS_MAX - 1 - i], sizeof texts[0][0], "%s%s", v->text, wrong ? "?" : "");
        switch (rnd(6)) {
        case 0:
            t->cmps[i] = cmp_value(names[k], texts[slot][TXN_OPS_MAX - 1 - i]);
            break;
        case 1:
            t->cmps[i] = cmp_number(CMP_CREATE_REVISION, names[k], v->create + wrong);
            break;
        case 2:
            t->cmps[i] = cmp_number(CMP_MOD_REVISION, names[k], v->mod + wrong);
            break;
        case 3:
            t->cmps[i] = cmp_number(CMP_ABSENT, names[k], 0);
            break;
        case 4:
            t->cmps[i] = cmp_number(CMP_PREFIX_COUNT, prefix, prefix_value(CMP_PREFIX_COUNT, prefix) + wrong);
            break;
        default:
            t->cmps[i] = cmp_number(CMP_PREFIX_REVISION, prefix, prefix_value(CMP_PREFIX_REVISION, prefix));
            t->cmps[i].number -= wrong && t->cmps[i].number > 0;
        }
    }
    if (rnd(4) > 0) {
        t->id.bytes[3] = 1;
        t->id.seq = rnd(5) == 0 && next_id > 0 ? next_id - rnd(next_id < 600 ? next_id : 600) : ++next_id;
        t->id.since = m.revision - rnd(m.revision < 4 ? m.revision + 1 : 4);
        if (rnd(20) == 0) {
            t->id.since = rnd(m.revision + 1);
        }
    }
}

/* --- comparing --- */

static int count_keys(void *arg, const struct kv *kv)
{
    const struct value *v = &m.values[key_index(kv->key)];
    assert_true(v->present);
    (*(unsigned *)arg)++;
    return 0;
}

static void assert_state(struct store *s)
{
    unsigned present = 0, listed = 0;
    struct kv kv;
    for (unsigned i = 0; i < N_KEYS; i++) {
        const struct value *v = &m.values[i];
        assert_value(s, names[i], v->present ? v->text : NULL);
        if (v->present) {
            OK(store_get(s, names[i], strlen(names[i]), &kv));
            assert_int_equal(kv.create_revision, v->create);
            assert_int_equal(kv.mod_revision, v->mod);
            present++;
        }
    }
    OK(store_list(s, str(""), NULL, count_keys, &listed));
    assert_int_equal(listed, present);
    assert_int_equal(store_keys(s), present);
    assert_int_equal(store_revision(s), m.revision);
    assert_int_equal(store_applied(s), m.applied);
}

static bool on_events(void *arg, int status, struct event **events, unsigned n)
{
    (void)arg;
    assert_int_equal(status, 0);
    for (unsigned i = 0; i < n; i++, m.n_seen++) {
        assert_true(m.n_seen < m.n_events);
        const char *name = names[m.events[m.n_seen].key], *text = m.events[m.n_seen].text;
        assert_int_equal(events[i]->key.n, strlen(name));
        assert_memory_equal(events[i]->key.p, name, strlen(name));
        assert_int_equal(events[i]->is_delete, m.events[m.n_seen].is_delete);
        assert_int_equal(events[i]->create_revision, m.events[m.n_seen].create);
        assert_int_equal(events[i]->revision, m.events[m.n_seen].revision);
        assert_int_equal(events[i]->value.n, events[i]->is_delete ? 0 : strlen(text));
        assert_memory_equal(events[i]->value.p, text, events[i]->value.n);
    }
    return true;
}

/* The second store: whatever happens to it, it ends up the same. */
static struct store *disturb(void **state, struct store *first, struct store *s, struct store_config *cfg)
{
    struct buf snapshot = {0};
    struct install *in;
    static unsigned copies;
    switch (rnd(3)) {
    case 0:
        store_close(s);
        return open_store(cfg);
    case 1: { /* killed: what is on the disk just now goes on */
        static char dir[256];
        char old[256];
        snprintf(old, sizeof old, "%s", cfg->dir);
        snprintf(dir, sizeof dir, "%s/copy-%u", (const char *)*state, ++copies);
        shell("cp -r --sparse=always '%s' '%s'", old, dir);
        store_close(s);
        shell("rm -rf '%s'", old);
        cfg->dir = dir;
        return open_store(cfg);
    }
    default: /* a snapshot of the first; when it is no newer, nothing happens */
        take_snapshot(first, &snapshot);
        OK(install_prepare(cfg, buf_data(&snapshot), snapshot.len, &in));
        assert_int_equal(install_index(in), store_applied(first));
        OK(store_install(s, in));
        buf_free(&snapshot);
        return s;
    }
}

static void run(void **state, uint64_t seed, unsigned rounds)
{
    struct store_config a_cfg = {.dir = in_folder(state, "a"), .quota = 8 << 20, .dedup_window = WINDOW};
    struct store_config b_cfg = {
        .dir = in_folder(state, "b"), .quota = 8 << 20, .dedup_window = WINDOW, .write_map = true};
    char a_dir[256], b_dir[256];
    snprintf(a_dir, sizeof a_dir, "%s", a_cfg.dir);
    snprintf(b_dir, sizeof b_dir, "%s", b_cfg.dir);
    a_cfg.dir = a_dir;
    b_cfg.dir = b_dir;
    struct store *a = open_store(&a_cfg), *b = open_store(&b_cfg);
    struct watch *w;
    struct txn *t = calloc(1, sizeof *t);
    struct packer p = {0};
    rnd_state = seed;
    memset(&m, 0, sizeof m);
    m.memory = calloc(MAX_MEMORY, sizeof *m.memory);
    OK(watch_open(a, str(""), 0, on_events, NULL, &w));

    for (unsigned round = 0; round < rounds; round++) {
        struct txn_result expected[64], *results;
        unsigned n = (unsigned)rnd(rnd(10) == 0 ? 64 : 8), n_results;
        uint64_t before = m.revision;
        m.n_events = m.n_seen = 0;
        packer_begin(&p);
        for (unsigned i = 0; i < n; i++) {
            some_txn(t, i);
            if (rounds / 3 < round && round < rounds / 2) {
                t->n_ops = 0; /* nothing changes for long */
            }
            packer_add(&p, t);
            expected[i] = model_txn(t);
        }
        packer_end(&p);
        model_end_entry(before);
        OK(store_apply(a, m.applied, buf_data(&p.pack), p.pack.len, &results, &n_results));
        assert_int_equal(n_results, n);
        for (unsigned i = 0; i < n; i++) {
            if (results[i].status != expected[i].status || results[i].repeated != expected[i].repeated ||
                results[i].failed != expected[i].failed || results[i].revision != expected[i].revision) {
                fail_msg("seed %llu, round %u, txn %u: %u %u %u %llu instead of %u %u %u %llu",
                    (unsigned long long)seed, round, i, results[i].status, results[i].repeated,
                    results[i].failed, (unsigned long long)results[i].revision, expected[i].status,
                    expected[i].repeated, expected[i].failed, (unsigned long long)expected[i].revision);
            }
        }
        free(results);
        while (store_pump(a)) {
        }
        assert_int_equal(m.n_seen, m.n_events);
        if (round % 8 == 0) {
            assert_state(a);
        }
        /* Sometimes the other stays behind and gets a snapshot instead. */
        bool skip = rnd(20) == 0;
        if (!skip && store_applied(b) + 1 == m.applied) {
            OK(store_apply(b, m.applied, buf_data(&p.pack), p.pack.len, NULL, NULL));
        }
        if (rnd(40) == 0) {
            b = disturb(state, a, b, &b_cfg);
        }
        if (round % 16 == 0 && store_applied(b) == m.applied) {
            assert_same(a, b);
        }
        /* An entry that has been applied changes nothing, whatever it holds. */
        if (round % 32 == 0) {
            OK(store_apply(
                a, m.applied - rnd(m.applied), buf_data(&p.pack), p.pack.len, &results, &n_results));
            assert_int_equal(n_results, 0);
            assert_null(results);
            assert_int_equal(store_revision(a), m.revision);
        }
    }
    if (m.repeated < rounds / 20 || m.unknown < 3 || m.conflicts < rounds / 20) {
        fail_msg("seed %llu: %u repeated, %u unknown, %u conflicts: not much of a test",
            (unsigned long long)seed, m.repeated, m.unknown, m.conflicts);
    }
    watch_close(w);
    store_close(a);
    store_close(b);
    free(m.memory);
    free(t);
    packer_free(&p);
    shell("rm -rf '%s' '%s'", a_dir, b_cfg.dir);
}

static void random_packs(void **state)
{
    for (uint64_t seed = 1; seed <= 3; seed++) {
        run(state, seed * 104729, 1000);
    }
}

/* A txn that changes something makes exactly one revision, however many changes; one that does not makes
 * none. */
static void revisions(void **state)
{
    struct store_config cfg = {.dir = in_folder(state, "state"), .quota = 8 << 20};
    struct store *s = open_store(&cfg);
    struct txn *t = calloc(1, sizeof *t);
    struct kv kv;
    t->n_ops = 4;
    t->ops[0] = op_put("a", "1");
    t->ops[1] = op_put("a", "2");
    t->ops[2] = op_del("a");
    t->ops[3] = op_put("a", "3");
    assert_int_equal(apply_one(s, t).revision, 1);
    OK(store_get(s, "a", 1, &kv));
    assert_int_equal(kv.create_revision, 1);
    assert_int_equal(kv.mod_revision, 1);
    assert_int_equal(put(s, "a", "3").revision, 2); /* the same value is a change */
    OK(store_get(s, "a", 1, &kv));
    assert_int_equal(kv.create_revision, 1);
    assert_int_equal(del(s, "absent").revision, 2);
    assert_int_equal(del(s, "a").revision, 3);
    assert_int_equal(put(s, "a", "").revision, 4);
    OK(store_get(s, "a", 1, &kv));
    assert_int_equal(kv.create_revision, 4);
    assert_int_equal(kv.value.n, 0);
    t->n_ops = 0;
    assert_int_equal(apply_one(s, t).revision, 4);
    store_close(s);
    free(t);
}

/* A pack that does not decode leaves everything as it was, and so does its first half. */
static void bad_pack(void **state)
{
    struct store_config cfg = {.dir = in_folder(state, "state"), .quota = 8 << 20};
    struct store *s = open_store(&cfg);
    struct txn *t = calloc(1, sizeof *t);
    struct packer p = {0};
    struct txn_result *results;
    unsigned n;
    put(s, "a", "1");
    t->id.seq = 1;
    t->n_ops = 1;
    t->ops[0] = op_put("a", "2");
    packer_begin(&p);
    packer_add(&p, t);
    t->ops[0] = op_del("a");
    t->id.seq = 2;
    packer_add(&p, t);
    packer_end(&p);
    size_t kind = 8 + 4 + 34 + 1 + 2 + 1 + 4 + 1 + 4 + 34; /* of the second txn's operation */
    assert_int_equal(buf_data(&p.pack)[kind], OP_DELETE);
    buf_data(&p.pack)[kind] = 9;
    FAILS(SYM_EPROTO, store_apply(s, 2, buf_data(&p.pack), p.pack.len, &results, &n));
    assert_null(results);
    assert_value(s, "a", "1");
    assert_int_equal(store_applied(s), 1);
    buf_data(&p.pack)[kind] = OP_DELETE;
    OK(store_apply(s, 2, buf_data(&p.pack), p.pack.len, &results, &n));
    assert_int_equal(n, 2);
    assert_false(results[0].repeated);
    free(results);
    assert_value(s, "a", NULL);
    store_close(s);
    packer_free(&p);
    free(t);
}

/* What a txn's compares of prefixes go through, counted no further than is asked for. */
static void costs(void **state)
{
    struct store_config cfg = {.dir = in_folder(state, "state"), .quota = 4 << 20};
    struct store *s = open_store(&cfg);
    struct txn *t = calloc(1, sizeof *t);
    struct buf bytes = {0};
    struct txn_cost cost;
    char key[8];
    for (int i = 0; i < 20; i++) {
        snprintf(key, sizeof key, "%s%02d", i < 15 ? "a/" : "b/", i);
        put(s, key, "v");
    }
    const struct {
        struct txn_cmp cmp;
        uint64_t now, then; /* with 4 more */
    } each[] = {
        {cmp_number(CMP_ABSENT, "a/01", 0), 0, 0},
        {cmp_value("a/", "v"), 0, 0},
        {cmp_number(CMP_MOD_REVISION, "a/01", 2), 0, 0},
        {cmp_number(CMP_PREFIX_REVISION, "a/", 0), 16, 20}, /* though the first key ends it */
        {cmp_number(CMP_PREFIX_REVISION, "b/", UINT64_MAX), 6, 10},
        {cmp_number(CMP_PREFIX_REVISION, "c/", 9), 1, 5},
        {cmp_number(CMP_PREFIX_COUNT, "a/", 15), 16, 17},
        {cmp_number(CMP_PREFIX_COUNT, "", 100), 21, 25},
        {cmp_number(CMP_PREFIX_COUNT, "", UINT64_MAX), 21, 25},
        {cmp_number(CMP_PREFIX_COUNT, "", 2), 4, 4},
        {cmp_number(CMP_PREFIX_COUNT, "", 0), 2, 2},
    };
    uint64_t now = 0, then = 0;
    for (unsigned i = 0; i < sizeof each / sizeof *each; i++) {
        t->n_cmps = 1;
        t->cmps[0] = each[i].cmp;
        buf_clear(&bytes);
        OK(txn_encode(t, &bytes));
        OK(store_txn_cost(s, buf_data(&bytes), bytes.len, 4, 1000, &cost));
        assert_int_equal(cost.now, each[i].now);
        assert_int_equal(cost.then, each[i].then);
        now += each[i].now;
        then += each[i].then;
    }
    for (t->n_cmps = 0; t->n_cmps < sizeof each / sizeof *each; t->n_cmps++) {
        t->cmps[t->n_cmps] = each[t->n_cmps].cmp;
    }
    buf_clear(&bytes);
    OK(txn_encode(t, &bytes));
    OK(store_txn_cost(s, buf_data(&bytes), bytes.len, 4, 1000, &cost));
    assert_int_equal(cost.now, now);
    assert_int_equal(cost.then, then);
    for (uint64_t most = 0; most <= now; most++) {
        OK(store_txn_cost(s, buf_data(&bytes), bytes.len, 4, most, &cost));
        assert_true(most == now ? cost.now == now : cost.now > most && cost.now <= most + 2);
    }
    /* What an earlier txn of the pack or one in flight puts is what is counted for it. */
    for (int i = 0; i < 4; i++) {
        snprintf(key, sizeof key, "a/%02d", 90 + i);
        put(s, key, "v");
    }
    OK(store_txn_cost(s, buf_data(&bytes), bytes.len, 0, 1000, &cost));
    assert_true(cost.now <= then);
    FAILS(SYM_EPROTO, store_txn_cost(s, buf_data(&bytes), bytes.len - 1, 0, 1000, &cost));
    store_close(s);
    buf_free(&bytes);
    free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(random_packs, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(revisions, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(bad_pack, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(costs, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
