/* Token buckets by the digest of a key. */
#include "check.h"
#include "net/allowance.h"

static unsigned taken(struct allowance *a, uint8_t who, unsigned tries, uint64_t now)
{
    uint8_t digest[2] = {who, 0};
    unsigned n = 0;
    for (unsigned i = 0; i < tries; i++) {
        n += allowance_take(a, digest, now);
    }
    return n;
}

static void some_at_once_and_then_one_by_one(void **state)
{
    (void)state;
    struct allowance a = {.burst = 10, .every = 200};
    assert_int_equal(taken(&a, 1, 50, 0), 10);
    assert_int_equal(taken(&a, 1, 50, 199), 0);
    assert_int_equal(taken(&a, 1, 50, 200), 1);
    assert_int_equal(taken(&a, 1, 50, 1000), 4);
    assert_int_equal(taken(&a, 1, 50, 1000000), 10);
    struct allowance one = {.burst = 1, .every = 5};
    assert_int_equal(taken(&one, 1, 3, 7), 1);
    assert_int_equal(taken(&one, 1, 3, 11), 0);
    assert_int_equal(taken(&one, 1, 3, 12), 1);
}

static void each_has_its_own(void **state)
{
    (void)state;
    struct allowance a = {.burst = 10, .every = 200};
    for (unsigned who = 0; who < 256; who++) {
        assert_int_equal(taken(&a, (uint8_t)who, 11, 5), 10);
    }
    uint8_t last[2] = {0xff, 0xff};
    assert_true(allowance_take(&a, last, 5));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(some_at_once_and_then_one_by_one),
        cmocka_unit_test(each_has_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
