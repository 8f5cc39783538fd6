/* The file with the others' starts. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base_fault.h"
#include "base/buf.c"
#include "base/file.c"
#include "raft/starts.c"

static char dir[] = "/tmp/symphony-starts-XXXXXX";
static char path[64];
static struct starts some[STARTS_MAX], got[STARTS_MAX];

static void fill(size_t n)
{
    for (size_t i = 0; i < n; i++) {
        some[i] = (struct starts){i + 1, 1000 - i, UINT64_MAX - i};
    }
}

static void expect(size_t n)
{
    size_t n_got = 99;
    memset(got, 0, sizeof got);
    assert_int_equal(starts_load(path, got, &n_got), 0);
    assert_int_equal(n_got, n);
    assert_memory_equal(got, some, n * sizeof *some);
}

static void there_and_back(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 3, STARTS_MAX, 2};
    expect(0); /* there is no file */
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        fill(sizes[i]);
        assert_int_equal(starts_save(path, some, sizes[i]), 0);
        expect(sizes[i]);
    }
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
}

static void expect_damaged(const uint8_t *data, size_t len)
{
    size_t n = 99;
    assert_int_equal(file_write(path, data, len, 0600), 0);
    assert_int_equal(starts_load(path, got, &n), SYM_ECORRUPT);
    assert_int_equal(n, 0);
    assert_non_null(strstr(err_msg(), path));
    struct buf after = {0};
    assert_int_equal(file_read(path, 1 << 20, &after), 0);
    assert_int_equal(after.len, len); /* nothing is repaired */
    buf_free(&after);
}

static void damaged_or_cut_short(void **state)
{
    (void)state;
    struct buf whole = {0};
    fill(3);
    assert_int_equal(starts_save(path, some, 3), 0);
    assert_int_equal(file_read(path, 1 << 20, &whole), 0);
    uint8_t *data = buf_data(&whole);
    for (size_t len = 0; len < whole.len; len++) {
        expect_damaged(data, len);
        data[len] ^= 1;
        expect_damaged(data, whole.len);
        data[len] ^= 1;
    }
    assert_int_equal(buf_append(&whole, "more", 4), 0);
    expect_damaged(buf_data(&whole), whole.len);
    uint8_t *large = calloc(1, 100000);
    expect_damaged(large, 100000);
    free(large);
    buf_free(&whole);

    /* Whole, but not what we write. */
    fill(1);
    some[0].id = 0;
    assert_int_equal(starts_save(path, some, 1), 0);
    size_t n;
    assert_int_equal(starts_load(path, got, &n), SYM_ECORRUPT);
}

/* What was there stays, when the new cannot be written. */
static void not_written(void **state)
{
    (void)state;
    char tmp[80];
    fill(2);
    assert_int_equal(starts_save(path, some, 2), 0);
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    assert_int_equal(mkdir(tmp, 0700), 0); /* in the way, for root too */
    fill(3);
    assert_int_not_equal(starts_save(path, some, 3), 0);
    fill(2);
    expect(2);
    assert_int_equal(rmdir(tmp), 0);
    for (long i = 0;; i++) {
        fault_after(i, false);
        int rv = starts_save(path, some, 2);
        size_t n = 0;
        if (rv == 0) {
            rv = starts_load(path, got, &n);
        }
        if (!fault_end()) {
            assert_int_equal(rv, 0);
            assert_int_equal(n, 2);
            break;
        }
        assert_int_equal(rv, SYM_ENOMEM);
    }
    expect(2);
}

static int make_dir(void **state)
{
    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/starts", dir);
    return 0;
}

static int clean(void **state)
{
    (void)state;
    unlink(path);
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(there_and_back, clean),
        cmocka_unit_test_teardown(damaged_or_cut_short, clean),
        cmocka_unit_test_teardown(not_written, clean),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
