/* Opening what an earlier process left: cleanly closed, killed, after the machine went down, damaged; and the
 * quota. */
#include "store_support.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* The store's own, to see which folders are synced. */
static struct {
    bool fails;
    unsigned n;
} folder_syncs;

int fsync(int fd)
{
    struct stat st;
    if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) {
        folder_syncs.n++;
        if (folder_syncs.fails) {
            errno = EIO;
            return -1;
        }
    }
    return (int)syscall(SYS_fsync, fd);
}

static struct store_config config(void **state)
{
    return (struct store_config){.dir = in_folder(state, "state"), .quota = 4 << 20};
}

static void write_file(const char *path, const char *text, size_t n)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    fclose(f);
}

static void read_mark(void **state, char text[80])
{
    FILE *f = fopen(in_folder(state, "state/mark"), "r");
    assert_non_null(f);
    text[fread(text, 1, 79, f)] = '\0';
    fclose(f);
}

static void makes(void **state)
{
    struct store_config cfg = config(state);
    struct stat st;
    char mark[80];
    struct store *s = open_store(&cfg);
    assert_int_equal(store_applied(s), 0);
    assert_int_equal(store_revision(s), 0);
    assert_int_equal(store_keys(s), 0);
    assert_int_equal(stat(cfg.dir, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_int_equal(stat(in_folder(state, "state/data.mdb"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    read_mark(state, mark);
    assert_true(strncmp(mark, "in use, boot ", 13) == 0);
    assert_int_equal(strlen(mark), 64);
    put(s, "a", "1");
    store_close(s);
    read_mark(state, mark);
    assert_true(strncmp(mark, "clean ", 6) == 0);

    s = open_store(&cfg);
    assert_value(s, "a", "1");
    assert_int_equal(store_applied(s), 1);
    store_close(s);
}

/* The folder of a process that was killed, which has put "a", with another mark. */
static struct store *after_kill(void **state, struct store_config *cfg, const char *mark, size_t n)
{
    struct store *s = open_store(cfg);
    if (store_applied(s) == 0) {
        put(s, "a", "1");
    }
    const char *copy = in_folder(state, "killed");
    shell("rm -rf '%s' && cp -r '%s' '%s'", copy, cfg->dir, copy);
    store_close(s);
    if (mark != NULL) {
        write_file(in_folder(state, "killed/mark"), mark, n);
    }
    struct store_config killed = *cfg;
    killed.dir = copy;
    return open_store(&killed);
}

static void boots(void **state)
{
    struct store_config cfg = config(state);
    char mark[80];
    for (int write_map = 0; write_map < 2; write_map++) {
        cfg.write_map = write_map != 0;
        struct store *s = after_kill(state, &cfg, NULL, 0);
        assert_value(s, "a", "1"); /* the machine has gone on */
        store_close(s);

        /* It has booted, or the mark was torn, or is missing: nothing is trusted. */
        struct store *open = open_store(&cfg);
        read_mark(state, mark);
        store_close(open);
        mark[20] = mark[20] == '0' ? '1' : '0';
        const struct {
            const char *text;
            size_t n;
        } marks[] = {{mark, 64}, {"clean", 5}, {"", 0}};
        for (int i = 0; i < 3; i++) {
            s = after_kill(state, &cfg, marks[i].text, marks[i].n);
            assert_value(s, "a", NULL);
            assert_int_equal(store_applied(s), 0);
            assert_int_equal(store_revision(s), 0);
            put(s, "b", "1");
            store_close(s);
        }
        /* It was closed cleanly before. */
        snprintf(mark, sizeof mark, "%-63s\n", "clean");
        s = after_kill(state, &cfg, mark, 64);
        assert_value(s, "a", "1");
        store_close(s);
    }
}

/* The names in the folder are on the disk before the mark says that all is: else it could vouch for a file that an
 * installed snapshot has replaced, or that was discarded. */
static void names_first(void **state)
{
    struct store_config cfg = config(state);
    char mark[80];
    struct store *s = open_store(&cfg);
    put(s, "a", "1");
    folder_syncs.n = 0;
    folder_syncs.fails = true;
    store_close(s);
    assert_int_equal(folder_syncs.n, 1);
    read_mark(state, mark);
    assert_true(strncmp(mark, "in use, boot ", 13) == 0);
    s = open_store(&cfg);
    assert_value(s, "a", "1"); /* the machine has gone on */
    folder_syncs.fails = false;
    store_close(s);
    assert_int_equal(folder_syncs.n, 2);
    read_mark(state, mark);
    assert_true(strncmp(mark, "clean ", 6) == 0);
}

static void damaged(void **state)
{
    struct store_config cfg = config(state);
    struct store *s;
    char *garbage = malloc(100000);
    rnd_state = 5;
    for (int i = 0; i < 100000; i++) {
        garbage[i] = (char)rnd(256);
    }
    store_close(open_store(&cfg));
    const char *data = in_folder(state, "state/data.mdb");
    write_file(data, garbage, 100000);
    FAILS(SYM_ECORRUPT, store_open(&cfg, &s));
    write_file(data, garbage, 100);
    FAILS(SYM_ECORRUPT, store_open(&cfg, &s));
    shell("rm '%s' && mkdir '%s'", data, data);
    assert_true(store_open(&cfg, &s) != 0);
    shell("rmdir '%s'", data);
    s = open_store(&cfg);
    store_close(s);
    free(garbage);

    struct store_config file = cfg;
    file.dir = data;
    assert_true(store_open(&file, &s) != 0);
    file.dir = in_folder(state, "no/such/folder");
    FAILS(SYM_ENOTFOUND, store_open(&file, &s));
    char *path = calloc(1, 5000);
    memset(path, 'x', 4999);
    file.dir = path;
    FAILS(SYM_EINVAL, store_open(&file, &s));
    free(path);
}

/* A file that was cut off is told, and is no bus error. */
static void cut(void **state, bool write_map)
{
    struct store_config cfg = config(state);
    cfg.write_map = write_map;
    struct store *s = open_store(&cfg);
    char key[16];
    const char *value = "0123456789012345678901234567890123456789012345678901234567890123456789";
    for (int i = 0; i < 2000; i++) {
        snprintf(key, sizeof key, "key/%d", i);
        put(s, key, value);
    }
    store_close(s);
    struct stat st;
    const char *data = in_folder(state, "state/data.mdb");
    assert_int_equal(stat(data, &st), 0);
    unsigned refused = 0;
    shell("cp '%s' '%s.whole'", data, data);
    for (off_t n = write_map ? 1 << 20 : st.st_size - 4096; n > 8192; n -= 4096 * 5) {
        shell("cp '%s.whole' '%s' && truncate -s %ld '%s'", data, data, (long)n, data);
        int rv = store_open(&cfg, &s);
        if (rv == 0) { /* what was cut off was free */
            assert_int_equal(store_keys(s), 2000);
            store_close(s);
        } else {
            assert_int_equal(rv, SYM_ECORRUPT);
            FAILS(SYM_ECORRUPT, store_open(&cfg, &s)); /* and again */
            refused++;
        }
    }
    assert_true(refused > 5);
    shell("mv '%s.whole' '%s'", data, data);
    s = open_store(&cfg);
    assert_int_equal(store_keys(s), 2000);
    store_close(s);
    shell("rm -rf '%s'", cfg.dir);
}

static void cut_short(void **state)
{
    cut(state, false);
    cut(state, true);
}

/* --- killed for real --- */

/* Entry @index, the same for whoever asks. */
static void make_entry(struct packer *p, uint64_t index)
{
    struct txn *t = calloc(1, sizeof *t);
    char keys[8][16];
    rnd_state = index * 2654435761U + 1;
    packer_begin(p);
    for (unsigned i = 0; i < 8; i++) {
        snprintf(keys[i], sizeof keys[i], "k/%u", (unsigned)rnd(500));
        t->n_ops = 1;
        t->ops[0] = rnd(5) == 0 ? op_del(keys[i]) : op_put(keys[i], keys[rnd(i + 1)]);
        t->id.seq = index * 8 + i + 1;
        packer_add(p, t);
    }
    packer_end(p);
    free(t);
}

static void apply_from(struct store *s, uint64_t from, uint64_t to, int tell)
{
    struct packer p = {0};
    for (uint64_t index = from; index <= to; index++) {
        make_entry(&p, index);
        OK(store_apply(s, index, buf_data(&p.pack), p.pack.len, NULL, NULL));
        if (tell >= 0 && write(tell, "", 1) != 1) {
            _exit(1);
        }
    }
    packer_free(&p);
}

static void killed(void **state)
{
    struct store_config cfg = config(state), ref_cfg = config(state);
    ref_cfg.dir = in_folder(state, "reference");
    for (int round = 0; round < 12; round++) {
        int told[2];
        char byte;
        uint64_t served = 0;
        cfg.write_map = round % 2 == 1;
        cfg.dedup_window = ref_cfg.dedup_window = 100;
        assert_int_equal(pipe(told), 0);
        pid_t child = fork();
        if (child == 0) {
            close(told[0]);
            struct store *s = NULL;
            if (store_open(&cfg, &s) != 0) {
                _exit(2);
            }
            apply_from(s, store_applied(s) + 1, UINT64_MAX, told[1]);
            _exit(3);
        }
        assert_true(child > 0);
        close(told[1]);
        while (served < (uint64_t)round * 17 + 1 && read(told[0], &byte, 1) == 1) {
            served++;
        }
        kill(child, SIGKILL);
        while (read(told[0], &byte, 1) == 1) {
            served++;
        }
        close(told[0]);
        assert_int_equal(waitpid(child, NULL, 0), child);

        struct store *s = open_store(&cfg);
        assert_true(store_applied(s) >= served); /* never older than what was seen */
        struct store *ref = open_store(&ref_cfg);
        apply_from(ref, 1, store_applied(s), -1);
        assert_same(s, ref);
        store_close(s);
        store_close(ref);
        shell("rm -rf '%s' '%s'", cfg.dir, ref_cfg.dir);
    }
}

/* --- the quota --- */

static void fill_up(void **state, bool write_map)
{
    struct store_config cfg = config(state);
    cfg.quota = 1 << 20;
    cfg.write_map = write_map;
    struct store *s = open_store(&cfg);
    struct packer p = {0};
    struct txn *t = calloc(1, sizeof *t);
    char key[16], value[4001];
    unsigned n = 0;
    size_t start = store_headroom(s);
    assert_true(start > 900000 && start <= cfg.quota);
    memset(value, 'v', 4000);
    value[4000] = '\0';
    while (store_headroom(s) > 65536) {
        snprintf(key, sizeof key, "%u", n++);
        put(s, key, value);
    }
    assert_true(n > 100 && n < 256);
    /* When all has gone again there is room again. */
    for (unsigned i = 0; i < n; i++) {
        snprintf(key, sizeof key, "%u", i);
        del(s, key);
    }
    if (store_headroom(s) + 150000 < start) {
        fail_msg("room for %zu bytes at the start, for %zu at the end", start, store_headroom(s));
    }

    /* Nobody looks at the headroom: some time an entry fails, and nothing has changed by it. */
    t->n_ops = 2;
    t->id.seq = 1;
    t->ops[1] = op_put("counter", key);
    int rv = 0;
    for (n = 0; rv == 0; n++) {
        snprintf(key, sizeof key, "%u", n);
        t->ops[0] = op_put(key, value);
        t->ops[1].value.n = strlen(key);
        t->id.seq++;
        packer_begin(&p);
        packer_add(&p, t);
        packer_end(&p);
        rv = store_apply(s, store_applied(s) + 1, buf_data(&p.pack), p.pack.len, NULL, NULL);
        assert_true(n < 1000);
    }
    assert_int_equal(rv, SYM_ENOSPACE);
    assert_int_equal(store_headroom(s), 0);
    uint64_t applied = store_applied(s), revision = store_revision(s);
    FAILS(SYM_ENOSPACE, store_apply(s, applied + 1, buf_data(&p.pack), p.pack.len, NULL, NULL));
    assert_int_equal(store_applied(s), applied);
    assert_int_equal(store_revision(s), revision);
    snprintf(key, sizeof key, "%u", n - 2);
    assert_value(s, "counter", key);
    assert_value(s, key, value);
    struct buf before = {0}, after = {0};
    take_snapshot(s, &before);
    store_close(s);
    s = open_store(&cfg);
    take_snapshot(s, &after);
    assert_int_equal(before.len, after.len);
    assert_memory_equal(buf_data(&before), buf_data(&after), after.len);

    /* With a larger one it goes on; the failed txn was not remembered. */
    store_close(s);
    cfg.quota = 2 << 20;
    s = open_store(&cfg);
    struct txn_result *results;
    unsigned n_results;
    OK(store_apply(s, applied + 1, buf_data(&p.pack), p.pack.len, &results, &n_results));
    assert_int_equal(n_results, 1);
    assert_false(results[0].repeated);
    free(results);
    store_close(s);
    shell("rm -rf '%s'", cfg.dir);
    buf_free(&before);
    buf_free(&after);
    packer_free(&p);
    free(t);
}

static void quota(void **state)
{
    fill_up(state, false);
    fill_up(state, true);
}

/* The largest values come and go for long in a store that is just large enough. */
static void large_values(void **state)
{
    struct store_config cfg = config(state);
    cfg.quota = 8 << 20;
    struct store *s = open_store(&cfg);
    struct txn *t = calloc(1, sizeof *t);
    uint8_t *value = calloc(1, VALUE_MAX);
    char key[16];
    rnd_state = 77;
    for (int i = 0; i < 200; i++) {
        size_t n = rnd(2) == 0 ? VALUE_MAX : rnd(VALUE_MAX / 4);
        snprintf(key, sizeof key, "%u", (unsigned)rnd(12));
        value[0] = (uint8_t)i;
        t->n_ops = 1;
        t->ops[0] = store_headroom(s) < 3 << 20 || rnd(4) == 0
                        ? op_del(key)
                        : (struct txn_op){OP_PUT, str(key), {value, n}};
        apply_one(s, t);
        struct kv kv;
        if (t->ops[0].kind == OP_PUT) {
            OK(store_get(s, key, strlen(key), &kv));
            assert_int_equal(kv.value.n, n);
            assert_true(n == 0 || kv.value.p[0] == (uint8_t)i);
        }
    }
    store_close(s);
    free(value);
    free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(makes, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(boots, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(names_first, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(damaged, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(cut_short, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(killed, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(quota, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(large_values, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
