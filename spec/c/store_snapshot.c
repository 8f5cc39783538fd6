/* Snapshots: the same bytes for the same state, there and back, hostile bytes, and what happens to one that
 * is being taken when the store changes under it. */
#include "crypto/crypto.h"
#include "store_support.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

static struct store_config config(void **state, const char *name)
{
    return (struct store_config){.dir = in_folder(state, name), .quota = 16 << 20, .dedup_window = 64};
}

/* Some keys, of which one is long, and some ids. */
static void fill(struct store *s, unsigned n)
{
    struct txn *t = calloc(1, sizeof *t);
    char key[32];
    uint8_t long_key[KEY_MAX];
    for (unsigned i = 0; i < n; i++) {
        snprintf(key, sizeof key, "key/%u", i * 7 % 50);
        t->n_ops = 1;
        t->ops[0] = i % 11 == 10 ? op_del(key) : op_put(key, "some value");
        t->id.seq = i % 3 == 0 ? 0 : i;
        t->id.since = store_revision(s);
        apply_one(s, t);
    }
    memset(long_key, 'l', sizeof long_key);
    t->id.seq = 0;
    t->ops[0] = (struct txn_op){OP_PUT, {long_key, sizeof long_key}, {long_key, 900}};
    apply_one(s, t);
    t->ops[0].key.n = 600;
    apply_one(s, t);
    free(t);
}

static void install(const struct store_config *cfg, struct store *s, const struct buf *snapshot)
{
    struct install *in;
    OK(install_prepare(cfg, buf_data(snapshot), snapshot->len, &in));
    OK(store_install(s, in));
}

static void there_and_back(void **state)
{
    struct store_config a_cfg = config(state, "a"), b_cfg = config(state, "b");
    struct store *a = open_store(&a_cfg), *b = open_store(&b_cfg);
    struct buf snapshot = {0}, again = {0};
    take_snapshot(a, &snapshot);
    assert_int_equal(snap_peek_index(buf_data(&snapshot), snapshot.len), 0);
    buf_clear(&snapshot);
    fill(a, 500);
    OK(buf_append(&snapshot, "before", 6)); /* appended to */
    take_snapshot(a, &snapshot);
    buf_consume(&snapshot, 6);
    take_snapshot(a, &again);
    assert_int_equal(snapshot.len, again.len);
    assert_memory_equal(buf_data(&snapshot), buf_data(&again), again.len);
    assert_int_equal(snap_peek_index(buf_data(&snapshot), snapshot.len), store_applied(a));

    /* Over an empty store, and over an older one that has other keys. */
    for (int round = 0; round < 2; round++) {
        buf_clear(&snapshot);
        take_snapshot(a, &snapshot);
        install(&b_cfg, b, &snapshot);
        assert_same(a, b);
        assert_value(b, "mine", NULL);
        assert_false(exists(in_folder(state, "b.new")));
        put(a, "later", "1");
        put(b, "mine", "1");
        put(a, "later", "2");
    }
    /* Over a newer one nothing happens, nor over an equal one. */
    uint64_t applied = store_applied(a);
    install(&a_cfg, a, &snapshot);
    assert_int_equal(store_applied(a), applied);
    assert_value(a, "later", "2");
    buf_clear(&snapshot);
    take_snapshot(a, &snapshot);
    install(&a_cfg, a, &snapshot);
    assert_false(exists(in_folder(state, "a.new")));

    /* What was installed is there after a restart, and goes on the same way. */
    install(&b_cfg, b, &snapshot);
    store_close(b);
    b = open_store(&b_cfg);
    fill(a, 100);
    fill(b, 100);
    assert_same(a, b);
    store_close(a);
    store_close(b);
    buf_free(&snapshot);
    buf_free(&again);
}

/* Ids are remembered through a snapshot. */
static void remembers(void **state)
{
    struct store_config a_cfg = config(state, "a"), b_cfg = config(state, "b");
    struct store *a = open_store(&a_cfg), *b = open_store(&b_cfg);
    struct buf snapshot = {0};
    struct txn *t = calloc(1, sizeof *t);
    t->id = (struct txn_id){.bytes = "0123456789abcdef"};
    t->n_ops = 1;
    t->ops[0] = op_put("a", "1");
    assert_int_equal(apply_one(a, t).revision, 1);
    put(a, "a", "2");
    take_snapshot(a, &snapshot);
    install(&b_cfg, b, &snapshot);
    struct txn_result r = apply_one(b, t);
    assert_true(r.repeated);
    assert_int_equal(r.revision, 1);
    assert_value(b, "a", "2");
    store_close(a);
    store_close(b);
    buf_free(&snapshot);
    free(t);
}

struct walk {
    unsigned n, stop_at;
    size_t longest;
};

static int walked(void *arg, const struct kv *kv)
{
    struct walk *w = arg;
    w->longest = kv->key.n > w->longest ? kv->key.n : w->longest;
    return ++w->n == w->stop_at ? 5 : 0;
}

static void each(void **state)
{
    struct store_config cfg = config(state, "a");
    struct store *s = open_store(&cfg);
    struct buf snapshot = {0};
    fill(s, 100);
    take_snapshot(s, &snapshot);
    struct walk w = {0};
    OK(snap_each(buf_data(&snapshot), snapshot.len, walked, &w));
    assert_int_equal(w.n, store_keys(s));
    assert_int_equal(w.longest, KEY_MAX);
    w = (struct walk){.stop_at = 3};
    assert_int_equal(snap_each(buf_data(&snapshot), snapshot.len, walked, &w), 5);
    buf_data(&snapshot)[snapshot.len / 2] ^= 1;
    w = (struct walk){0};
    FAILS(SYM_ECORRUPT, snap_each(buf_data(&snapshot), snapshot.len, walked, &w));
    assert_int_equal(w.n, 0);
    store_close(s);
    buf_free(&snapshot);
}

/* What is pinned does not change, and there is one of it at a time. */
static void pinned(void **state)
{
    struct store_config a_cfg = config(state, "a"), b_cfg = config(state, "b");
    struct store *a = open_store(&a_cfg), *b = open_store(&b_cfg);
    struct snap *sn, *second;
    struct buf snapshot = {0};
    fill(a, 50);
    fill(b, 50);
    OK(snap_begin(a, &sn));
    FAILS(SYM_EBUSY, snap_begin(a, &second));
    fill(a, 300);
    assert_int_equal(snap_index(sn), store_applied(b));
    OK(snap_encode(sn, &snapshot));
    snap_end(sn);
    struct buf expected = {0};
    take_snapshot(b, &expected);
    assert_int_equal(expected.len, snapshot.len);
    assert_memory_equal(buf_data(&expected), buf_data(&snapshot), snapshot.len);
    OK(snap_begin(a, &sn));
    snap_end(sn); /* without encoding */
    store_close(a);
    store_close(b);
    buf_free(&expected);
    buf_free(&snapshot);
}

static void cut_off(void **state)
{
    struct store_config a_cfg = config(state, "a"), b_cfg = config(state, "b");
    struct store *a = open_store(&a_cfg), *b = open_store(&b_cfg);
    struct buf snapshot = {0}, out = {0};
    struct snap *sn;
    fill(a, 100);
    take_snapshot(a, &snapshot);

    OK(snap_begin(b, &sn)); /* by an install */
    install(&b_cfg, b, &snapshot);
    FAILS(SYM_ECANCELED, snap_encode(sn, &out));
    assert_int_equal(out.len, 0);
    snap_end(sn);
    take_snapshot(b, &out);
    assert_int_equal(out.len, snapshot.len);

    OK(snap_begin(a, &sn)); /* by the end of the store */
    store_close(a);
    store_close(b);
    FAILS(SYM_ECANCELED, snap_encode(sn, &out));
    snap_end(sn);
    buf_free(&snapshot);
    buf_free(&out);
}

/* A snapshot that keeps the pages from being used again must not make an entry fail. */
static void gives_way(void **state)
{
    struct store_config cfg = config(state, "a");
    cfg.quota = 2 << 20;
    struct store *s = open_store(&cfg);
    struct snap *sn;
    struct buf out = {0};
    char *value = calloc(1, 100001);
    memset(value, 'v', 100000);
    put(s, "a", value);
    OK(snap_begin(s, &sn));
    size_t before = store_headroom(s);
    for (int i = 0; i < 10; i++) {
        put(s, "a", value);
    }
    assert_true(store_headroom(s) + 900000 < before); /* what it pins is not free */
    for (int i = 0; i < 90; i++) {
        put(s, "a", value);
    }
    FAILS(SYM_ECANCELED, snap_encode(sn, &out));
    snap_end(sn);
    put(s, "a", value);
    assert_true(store_headroom(s) > 1500000);
    store_close(s);
    free(value);
}

struct encoder {
    struct snap *sn;
    struct buf out;
    int rv;
};

static void *encode_in_thread(void *arg)
{
    struct encoder *e = arg;
    e->rv = snap_encode(e->sn, &e->out);
    return NULL;
}

/* On another thread while entries are applied, and while the store is closed. */
static void in_a_thread(void **state)
{
    struct store_config cfg = config(state, "a");
    unsigned finished = 0, canceled = 0;
    for (int round = 0; round < 60; round++) {
        struct store *s = open_store(&cfg);
        struct encoder e = {0};
        struct buf expected = {0};
        pthread_t thread;
        fill(s, 20);
        take_snapshot(s, &expected);
        OK(snap_begin(s, &e.sn));
        assert_int_equal(pthread_create(&thread, NULL, encode_in_thread, &e), 0);
        fill(s, round % 2 == 0 ? 0 : 20);
        store_close(s);
        pthread_join(thread, NULL);
        if (e.rv == 0) {
            finished++;
            assert_int_equal(e.out.len, expected.len);
            assert_memory_equal(buf_data(&e.out), buf_data(&expected), expected.len);
        } else {
            canceled++;
            assert_int_equal(e.rv, SYM_ECANCELED);
            assert_int_equal(e.out.len, 0);
        }
        snap_end(e.sn);
        buf_free(&e.out);
        buf_free(&expected);
    }
    assert_int_equal(finished + canceled, 60);
}

/* --- hostile bytes --- */

static void sign(uint8_t *data, size_t n)
{
    if (n >= SHA256_LEN) {
        OK(crypto_sha256(data, n - SHA256_LEN, data + n - SHA256_LEN));
    }
}

/* Either it is refused, and leaves nothing, or what it makes encodes to the very same bytes. */
static bool try_install(void **state, const uint8_t *data, size_t n)
{
    struct store_config cfg = config(state, "victim");
    struct install *in;
    struct buf back = {0};
    cfg.quota = 1 << 20;
    int rv = install_prepare(&cfg, data, n, &in);
    if (rv != 0) {
        assert_int_equal(rv, SYM_ECORRUPT);
        assert_false(exists(in_folder(state, "victim.new")));
        return false;
    }
    install_abandon(in);
    struct store *s = open_store(&cfg);
    OK(install_prepare(&cfg, data, n, &in));
    OK(store_install(s, in));
    if (store_applied(s) > 0) {
        take_snapshot(s, &back);
        assert_int_equal(back.len, n);
        assert_memory_equal(buf_data(&back), data, n);
    }
    store_close(s);
    buf_free(&back);
    shell("rm -rf '%s'", cfg.dir);
    return true;
}

static void hostile(void **state)
{
    struct store_config cfg = config(state, "a");
    struct store *s = open_store(&cfg);
    struct buf snapshot = {0};
    fill(s, 60);
    take_snapshot(s, &snapshot);
    store_close(s);
    size_t n = snapshot.len;
    uint8_t *data = malloc(n);
    memcpy(data, buf_data(&snapshot), n);
    for (size_t cut = 0; cut < n; cut += 97) {
        assert_false(try_install(state, data, cut));
    }
    data[n - 1] ^= 1;
    assert_false(try_install(state, data, n));

    unsigned taken = 0;
    rnd_state = 99;
    for (int round = 0; round < 400; round++) {
        memcpy(data, buf_data(&snapshot), n);
        size_t cut = n;
        for (uint64_t k = rnd(3) + 1; k > 0; k--) {
            size_t at = rnd(2) == 0 ? rnd(400) : rnd(n - SHA256_LEN);
            data[at] = rnd(3) == 0 ? (uint8_t)rnd(256) : (uint8_t)(data[at] + 1 - 2 * rnd(2));
        }
        if (rnd(10) == 0) {
            cut = rnd(n);
        }
        sign(data, cut);
        taken += try_install(state, data, cut);
    }
    assert_true(taken > 10 && taken < 390);

    /* An index that says that there is something, and nothing else. */
    memset(data, 0, 88);
    memcpy(data, "SYMSNAP\1", 8);
    data[8] = 5;
    sign(data, 88);
    assert_int_equal(snap_peek_index(data, 88), 5);
    assert_int_equal(snap_peek_index(data, 87), 0);
    assert_true(try_install(state, data, 88));
    memset(data + 40, 0xff, 8); /* 2^64 - 1 keys */
    sign(data, 88);
    assert_false(try_install(state, data, 88));
    free(data);
    buf_free(&snapshot);
}

/* --- interrupted --- */

static void leftovers(void **state)
{
    struct store_config cfg = config(state, "a"), from = config(state, "from");
    struct store *s = open_store(&from);
    struct buf snapshot = {0};
    struct install *in, *second;
    fill(s, 100);
    take_snapshot(s, &snapshot);
    store_close(s);

    s = open_store(&cfg);
    put(s, "mine", "1");
    OK(install_prepare(&cfg, buf_data(&snapshot), snapshot.len, &in));
    FAILS(SYM_EBUSY, install_prepare(&cfg, buf_data(&snapshot), snapshot.len, &second));
    install_abandon(in);
    assert_false(exists(in_folder(state, "a.new")));

    /* Killed before the files changed places: the old state, and nothing beside it. */
    OK(install_prepare(&cfg, buf_data(&snapshot), snapshot.len, &in));
    shell("cp -r '%s' '%s'", cfg.dir, in_folder(state, "killed"));
    shell("cp -r '%s.new' '%s.new'", cfg.dir, in_folder(state, "killed"));
    struct store_config killed_cfg = config(state, "killed");
    struct store *killed = open_store(&killed_cfg);
    assert_int_equal(store_applied(killed), 1);
    assert_value(killed, "mine", "1");
    assert_false(exists(in_folder(state, "killed.new")));
    store_close(killed);

    /* Killed between the rename of the data and that of the lock file: the new state. */
    shell("rm -rf '%s'", in_folder(state, "killed"));
    shell("cp -r '%s' '%s'", cfg.dir, in_folder(state, "killed"));
    shell("cp '%s.new/data.mdb' '%s/data.mdb'", cfg.dir, in_folder(state, "killed"));
    killed = open_store(&killed_cfg);
    assert_int_equal(store_applied(killed), install_index(in));
    store_close(killed);

    /* In vain over a folder that cannot be had: the store goes on. */
    shell("rm '%s.new/data.mdb'", cfg.dir);
    assert_true(store_install(s, in) != 0);
    assert_value(s, "mine", "1");
    put(s, "mine", "2");
    store_close(s);
    buf_free(&snapshot);
}

/* Takes all but one of the entries of every branch page of an environment that is open. */
static unsigned damage_branches(const char *path)
{
    struct {
        uint64_t number;
        uint16_t pad, flags, lower, upper;
    } head; /* LMDB's, of a page */
    unsigned n = 0;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    for (off_t at = 0; pread(fd, &head, sizeof head, at) == sizeof head; at += sysconf(_SC_PAGESIZE)) {
        if (head.flags == 1) {
            head.lower = 16 + 2;
            assert_int_equal(pwrite(fd, &head, sizeof head, at), sizeof head);
            n++;
        }
    }
    close(fd);
    return n;
}

/* Once it is in its place, an installed state is called by the name it has there. */
static void name_when_damaged(void **state)
{
    struct store_config a_cfg = config(state, "a"), b_cfg = config(state, "b");
    struct store *a = open_store(&a_cfg), *b = open_store(&b_cfg);
    struct buf snapshot = {0};
    char value[1001], key[8], said[1024] = "";
    memset(value, 'v', 1000);
    value[1000] = '\0';
    for (int i = 0; i < 100; i++) {
        snprintf(key, sizeof key, "%d", i);
        put(a, key, value);
    }
    take_snapshot(a, &snapshot);
    install(&b_cfg, b, &snapshot);
    int ends[2], status;
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct kv kv;
        signal(SIGABRT, SIG_DFL);
        dup2(ends[1], STDERR_FILENO);
        damage_branches(in_folder(state, "b/data.mdb"));
        store_get(b, "1", 1, &kv);
        _exit(0);
    }
    close(ends[1]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(read(ends[0], said, sizeof said - 1) >= 0);
    close(ends[0]);
    char want[300];
    snprintf(want, sizeof want, "%s is damaged", in_folder(state, "b/data.mdb"));
    if (strstr(said, want) == NULL) {
        fail_msg("it said '%s'", said);
    }
    store_close(a);
    store_close(b);
    buf_free(&snapshot);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(there_and_back, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(remembers, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(each, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(pinned, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(cut_off, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(gives_way, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(in_a_thread, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(name_when_damaged, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(hostile, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(leftovers, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
