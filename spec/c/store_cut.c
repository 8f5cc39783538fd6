/* Cutting a snapshot off while its memory is being fetched. */
#include "store_support.h"

#include <sys/mman.h>

static int fetch_memory(void *p, size_t n, int advice);

#define madvise fetch_memory
#include "store/snapshot.c"
#undef madvise

static struct {
    struct snap *cut; /* is cut off at the call number @at */
    unsigned at, calls;
    size_t most, all;
} fetch;

static int fetch_memory(void *p, size_t n, int advice)
{
    fetch.calls++;
    fetch.most = n > fetch.most ? n : fetch.most;
    fetch.all += n;
    if (fetch.cut != NULL && fetch.calls == fetch.at) {
        atomic_store(&fetch.cut->cut, true);
    }
    return madvise(p, n, advice);
}

/* Who cuts it off waits for what is being done: also the memory is fetched piece by piece. */
static void cut_while_fetching(void **state)
{
    struct store_config cfg = {.dir = in_folder(state, "a"), .quota = 64 << 20};
    struct store *s = open_store(&cfg);
    struct buf out = {0};
    struct snap *sn;
    char *value = calloc(1, VALUE_MAX + 1), key[8];
    memset(value, 'v', VALUE_MAX);
    for (int i = 0; i < 20; i++) {
        snprintf(key, sizeof key, "%d", i);
        put(s, key, value);
    }
    memset(&fetch, 0, sizeof fetch);
    take_snapshot(s, &out);
    assert_int_equal(fetch.calls, 3);
    assert_true(fetch.most <= 8 << 20);
    assert_true(fetch.all <= out.len && fetch.all + (16 << 10) > out.len);
    for (unsigned at = 1; at <= 3; at++) {
        buf_free(&out);
        memset(&fetch, 0, sizeof fetch);
        OK(snap_begin(s, &sn));
        fetch.cut = sn;
        fetch.at = at;
        FAILS(SYM_ECANCELED, snap_encode(sn, &out));
        assert_int_equal(fetch.calls, at);
        assert_int_equal(out.len, 0);
        snap_end(sn);
    }
    fetch.cut = NULL;
    store_close(s);
    buf_free(&out);
    free(value);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(cut_while_fetching, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
