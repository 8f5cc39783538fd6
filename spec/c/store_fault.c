/* Every allocation of ours fails, one at a time: an error comes back, nothing is lost or half done, nothing
 * leaks (ASan), and the next try works. */
#include "store_support.h"

#include "base_fault.h"
#include "base/buf.c"
#include "store/ring.c"
#include "store/hub.c"
#define damaged snapshot_damaged
#include "store/snapshot.c"
#undef damaged
#define damaged dedup_damaged
#include "store/dedup.c"
#undef damaged
#include "store/install.c"
#include "store/state.c"
#include "store/store.c"
#define apply_txn store_apply_txn
#include "store/apply.c"
#undef apply_txn

enum { QUOTA = 4 << 20 };

/* Runs @step with the first, second, ... allocation failing, until none is left to fail. */
#define EACH_FAULT(step)                                                                                     \
    do {                                                                                                     \
        bool hit_;                                                                                           \
        long at_ = 0;                                                                                        \
        do {                                                                                                 \
            fault_after(at_, false);                                                                         \
            int rv_ = (step);                                                                                \
            hit_ = fault_end();                                                                              \
            if (rv_ != 0 && (!hit_ || rv_ != SYM_ENOMEM)) {                                                  \
                fail_msg("%s, allocation %ld: %s: %s", #step, at_, err_name(rv_), err_msg());                \
            }                                                                                                \
            at_++;                                                                                           \
        } while (hit_);                                                                                      \
        assert_true(at_ > 1);                                                                                \
    } while (0)

static struct store_config cfg, other_cfg;
static struct buf snapshot;
static struct packer pack;
static struct store *s;
static uint64_t index_at;

static int open_and_close(void)
{
    struct store *st;
    int rv = store_open(&cfg, &st);
    if (rv == 0) {
        store_close(st);
    }
    return rv;
}

static int encode_all(void)
{
    struct snap *sn;
    struct buf out = {0};
    int rv = snap_begin(s, &sn);
    if (rv != 0) {
        return rv;
    }
    rv = snap_encode(sn, &out);
    snap_end(sn);
    if (rv == 0) {
        assert_int_equal(out.len, snapshot.len);
        assert_memory_equal(buf_data(&out), buf_data(&snapshot), out.len);
    } else {
        assert_int_equal(out.len, 0);
    }
    buf_free(&out);
    return rv;
}

static int prepare(void)
{
    struct install *in;
    int rv = install_prepare(&other_cfg, buf_data(&snapshot), snapshot.len, &in);
    if (rv == 0) {
        install_abandon(in);
    }
    return rv;
}

static unsigned seen, lost;

static bool see(void *arg, int status, struct event **events, unsigned n)
{
    (void)arg;
    (void)events;
    lost += status == SYM_ECOMPACTED;
    seen += n;
    return true;
}

/* One entry and what its watches get: either it was applied, and events may be lost, which is told; or
 * nothing was. */
static int apply_and_pump(void)
{
    struct txn_result *results = NULL;
    struct watch *w = NULL;
    unsigned n = 0;
    uint64_t revision = store_revision(s);
    seen = lost = 0;
    int watched = watch_open(s, str("k"), revision, see, NULL, &w);
    int rv = store_apply(s, index_at, buf_data(&pack.pack), pack.pack.len, &results, &n);
    if (rv != 0) {
        assert_null(results);
        assert_int_equal(store_applied(s), index_at - 1);
        assert_int_equal(store_revision(s), revision);
        assert_int_equal(s->state->dedup.n, 0);
    } else {
        assert_int_equal(n, 3);
        assert_false(results[2].repeated);
        while (store_pump(s)) {
        }
        assert_true(watched != 0 || seen == 3 || lost == 1);
    }
    free(results);
    if (w != NULL && lost == 0) {
        watch_close(w);
    }
    /* As it was, for the next try. */
    fault_end();
    if (rv == 0) {
        store_close(s);
        shell("rm -rf '%s'", cfg.dir);
        s = open_store(&cfg);
    }
    return rv != 0 ? rv : watched;
}

static void faults(void **state)
{
    struct txn *t = calloc(1, sizeof *t);
    char key[16];
    cfg = (struct store_config){.dir = in_folder(state, "state"), .quota = QUOTA};
    other_cfg = (struct store_config){.dir = in_folder(state, "other"), .quota = QUOTA};
    s = open_store(&cfg);
    for (unsigned i = 0; i < 40; i++) {
        snprintf(key, sizeof key, "k%u", i);
        t->id.seq = i + 1;
        t->n_ops = 1;
        t->ops[0] = op_put(key, "value");
        apply_one(s, t);
    }
    take_snapshot(s, &snapshot);
    EACH_FAULT(encode_all());
    EACH_FAULT(prepare());
    store_close(s);
    EACH_FAULT(open_and_close());
    s = open_store(&cfg);
    assert_int_equal(store_keys(s), 40);
    store_close(s);

    shell("rm -rf '%s'", cfg.dir);
    s = open_store(&cfg);
    packer_begin(&pack);
    for (unsigned i = 0; i < 3; i++) {
        snprintf(key, sizeof key, "k%u", i);
        t->id.seq = i + 1;
        packer_add(&pack, t);
    }
    packer_end(&pack);
    index_at = 1;
    EACH_FAULT(apply_and_pump());
    store_close(s);
    buf_free(&snapshot);
    packer_free(&pack);
    free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(faults, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
