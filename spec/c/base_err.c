#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "base/err.h"

static void names_and_statuses(void **state)
{
    (void)state;
    assert_string_equal(err_name(0), "ok");
    assert_string_equal(err_name(SYM_ENOMEM), "out_of_memory");
    assert_string_equal(err_name(SYM_ENOQUORUM), "no_quorum");
    assert_string_equal(err_name(SYM_EIO), "io");
    assert_string_equal(err_name(1), "internal");
    assert_string_equal(err_name(-SYM_ERR_MAX), "internal");
    assert_int_equal(err_http_status(0), 200);
    assert_int_equal(err_http_status(SYM_ENOSPACE), 507);
    assert_int_equal(err_http_status(-1000), 500);
    /* Codes have names and HTTP statuses, each name once. */
    for (int i = 1; i < SYM_ERR_MAX; i++) {
        assert_in_range(err_http_status(-i), 400, 599);
        for (int j = 0; j < i; j++) {
            assert_string_not_equal(err_name(-i), err_name(-j));
        }
    }
}

static void set_and_wrap(void **state)
{
    (void)state;
    assert_int_equal(err_setf(SYM_EINVAL, "port %d", 7), SYM_EINVAL);
    assert_string_equal(err_msg(), "port 7");
    assert_int_equal(err_wrapf(SYM_EIO, "reading %s", "x"), SYM_EIO);
    assert_string_equal(err_msg(), "reading x: port 7");
    /* The message as an argument of itself. */
    err_setf(SYM_EIO, "again %s", err_msg());
    assert_string_equal(err_msg(), "again reading x: port 7");
}

static void long_messages_are_cut(void **state)
{
    (void)state;
    char text[5000];
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    err_setf(SYM_EIO, "%s", text);
    assert_int_equal(strlen(err_msg()), 1023);
    err_wrapf(SYM_EIO, "b");
    assert_memory_equal(err_msg(), "b: aaa", 6);
    err_wrapf(SYM_EIO, "%s", text);
    assert_int_equal(strlen(err_msg()), 1023);
}

static void system_errors(void **state)
{
    (void)state;
    static const int pairs[][2] = {{ENOSPC, SYM_ENOSPACE}, {EACCES, SYM_EDENIED}, {ENOENT, SYM_ENOTFOUND},
        {ENOMEM, SYM_ENOMEM}, {EADDRINUSE, SYM_EINUSE}, {ETIMEDOUT, SYM_ETIMEOUT},
        {ECONNREFUSED, SYM_ECONNECT}, {EEXIST, SYM_EEXIST}, {EMFILE, SYM_EBUSY}, {EPIPE, SYM_EIO}};
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        assert_int_equal(err_sysf(pairs[i][0], "x"), pairs[i][1]);
        assert_int_equal(err_sysf(-pairs[i][0], "x"), pairs[i][1]);
    }
    err_sysf(ENOENT, "opening %s", "/nowhere");
    assert_string_equal(err_msg(), "opening /nowhere: No such file or directory");
}

static void *other_thread(void *arg)
{
    *(int *)arg = strcmp(err_msg(), "");
    err_setf(SYM_EIO, "other");
    return NULL;
}

static void each_thread_has_its_own(void **state)
{
    (void)state;
    pthread_t thread;
    int differs = -1;
    err_setf(SYM_EIO, "mine");
    assert_int_equal(pthread_create(&thread, NULL, other_thread, &differs), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(differs, 0);
    assert_string_equal(err_msg(), "mine");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_statuses),
        cmocka_unit_test(set_and_wrap),
        cmocka_unit_test(long_messages_are_cut),
        cmocka_unit_test(system_errors),
        cmocka_unit_test(each_thread_has_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
