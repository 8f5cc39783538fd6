/* The state machine over a real store: what it cannot follow ends the process (rule 4). */
#include "raft/fsm.h"
#include "store_support.h"

static unsigned fatals;

static void on_fatal(void *arg, const char *what, int rv)
{
    (void)arg;
    assert_non_null(what);
    assert_int_not_equal(rv, 0);
    fatals++;
}

static bool wanted(void *arg, uint64_t index)
{
    (void)arg;
    (void)index;
    return false;
}

static const struct fsm_ops ops = {.fatal = on_fatal, .wanted = wanted};

static void what_cannot_be_followed(void **state)
{
    struct store_config cfg = {.dir = in_folder(state, "state"), .quota = 8 << 20};
    struct store *store;
    struct raft raft = {.last_applied = 6};
    struct fsm f;
    void *result;
    uint8_t bytes[64] = {0};
    assert_int_equal(store_open(&cfg, &store), 0);
    fsm_init(&f, &raft, store, &cfg, &ops, NULL);

    /* Before the start it is told, so that the file can be named. */
    struct raft_buffer snapshot = {raft_malloc(64), 64};
    memset(snapshot.base, 0, 64);
    assert_int_not_equal(f.base.restore(&f.base, &snapshot), 0);
    assert_int_equal(f.failed, SYM_ECORRUPT);
    assert_int_equal(fatals, 0);

    fsm_started(&f);
    assert_int_not_equal(f.base.restore(&f.base, &snapshot), 0); /* nothing was prepared: not on the loop */
    assert_int_equal(fatals, 1);
    raft_free(snapshot.base);

    struct raft_buffer entry = {bytes, sizeof bytes};
    assert_int_not_equal(f.base.apply(&f.base, &entry, &result), 0);
    assert_int_equal(fatals, 2);
    assert_int_equal(store_applied(store), 0);
    fsm_close(&f);
    store_close(store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_cannot_be_followed, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
