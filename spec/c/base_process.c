/* What the process is said to use, and the limits that durations are counted by. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/histogram.h"
#include "base/process.h"

static void tells_what_is_used(void **state)
{
    (void)state;
    struct process_usage u;
    process_usage(&u);
    assert_true(u.resident_bytes > 64 << 10);
    assert_true(u.virtual_bytes >= u.resident_bytes);
    assert_int_equal(u.threads, 1);
    time_t now = time(NULL);
    assert_true(u.start_time > (double)now - 3600 && u.start_time < (double)now + 60);
}

static void counts_cpu(void **state)
{
    (void)state;
    struct process_usage before, after;
    process_usage(&before);
    do {
        process_usage(&after);
    } while (after.cpu_seconds < before.cpu_seconds + 0.02);
    assert_true(after.start_time == before.start_time);
}

static void counts_descriptors(void **state)
{
    (void)state;
    struct process_usage before, after;
    struct rlimit files;
    process_usage(&before);
    int fd = open("/dev/null", O_RDONLY);
    process_usage(&after);
    close(fd);
    assert_int_equal(after.open_fds, before.open_fds + 1);
    process_usage(&after);
    assert_int_equal(after.open_fds, before.open_fds);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &files), 0);
    files.rlim_cur = 100;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &files), 0);
    process_usage(&after);
    assert_int_equal(after.max_fds, 100);
}

static void counts_between_limits(void **state)
{
    (void)state;
    struct histogram h = {0};
    uint64_t n = 0;
    for (int i = 0; i < HISTOGRAM_LIMITS; i++) {
        assert_true(i == 0 || histogram_limits[i] > histogram_limits[i - 1]);
        histogram_add(&h, histogram_limits[i]);     /* up to and with it, */
        histogram_add(&h, histogram_limits[i] + 1); /* and above */
        n += 2 * histogram_limits[i] + 1;
    }
    assert_int_equal(h.counts[0], 1);
    for (int i = 1; i < HISTOGRAM_LIMITS; i++) {
        assert_int_equal(h.counts[i], 2);
    }
    assert_int_equal(h.counts[HISTOGRAM_LIMITS], 1);
    assert_int_equal(h.sum_ns, n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tells_what_is_used),
        cmocka_unit_test(counts_cpu),
        cmocka_unit_test(counts_descriptors),
        cmocka_unit_test(counts_between_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
