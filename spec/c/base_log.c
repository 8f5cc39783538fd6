#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

static char line[8192];
static size_t line_len;

/* Standard error of one log_error call. */
#define CAPTURE(...)                                                                                         \
    do {                                                                                                     \
        int to_[2], saved_ = dup(STDERR_FILENO);                                                             \
        assert_int_equal(pipe(to_), 0);                                                                      \
        dup2(to_[1], STDERR_FILENO);                                                                         \
        close(to_[1]);                                                                                       \
        __VA_ARGS__;                                                                                         \
        dup2(saved_, STDERR_FILENO);                                                                         \
        close(saved_);                                                                                       \
        line_len = 0;                                                                                        \
        for (ssize_t n_; (n_ = read(to_[0], line + line_len, sizeof line - 1 - line_len)) > 0;) {            \
            line_len += (size_t)n_;                                                                          \
        }                                                                                                    \
        close(to_[0]);                                                                                       \
        line[line_len] = '\0';                                                                               \
    } while (0)

static int restore(void **state)
{
    (void)state;
    log_setup(LOG_INFO, false);
    return 0;
}

static void levels(void **state)
{
    (void)state;
    assert_int_equal(log_level_parse("debug"), LOG_DEBUG);
    assert_int_equal(log_level_parse("error"), LOG_ERROR);
    assert_int_equal(log_level_parse("loud"), -1);
    assert_int_equal(log_level_parse(""), -1);
    CAPTURE(log_debug("hidden"));
    assert_string_equal(line, "");
    log_setup(LOG_DEBUG, false);
    CAPTURE(log_debug("shown %d", 1));
    assert_non_null(strstr(line, "Z debug shown 1\n"));
    log_setup(LOG_ERROR, false);
    CAPTURE(log_warn("hidden"));
    assert_string_equal(line, "");
}

static void text_is_one_line(void **state)
{
    (void)state;
    CAPTURE(log_error("a\nb\r\x1b[2J\x7f \"q\" \\"));
    assert_non_null(strstr(line, "a\\u000ab\\u000d\\u001b[2J\\u007f \"q\" \\\n"));
    assert_ptr_equal(strchr(line, '\n'), line + line_len - 1);
}

static void json_is_escaped(void **state)
{
    (void)state;
    log_setup(LOG_INFO, true);
    CAPTURE(log_info("say \"x\" \\ \t"));
    assert_non_null(strstr(line, "\"level\":\"info\",\"msg\":\"say \\\"x\\\" \\\\ \\u0009\"}\n"));
    assert_memory_equal(line, "{\"time\":\"2", 10);
}

/* Text of other scripts passes; bytes that are no text, and the controls beyond ASCII, do not. */
static void only_utf8_passes(void **state)
{
    (void)state;
    CAPTURE(log_info("gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x8e\xb5"));
    assert_non_null(strstr(line, "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x8e\xb5\n"));
    CAPTURE(log_info("\xff|\xc2\x9b|\xc0\xaf|\xed\xa0\x80|\xe2\x82|\xf4\x90\x80\x80|\xc3"));
    assert_non_null(strstr(line, "\\u00ff|\\u00c2\\u009b|\\u00c0\\u00af|\\u00ed\\u00a0\\u0080|\\u00e2\\u0082|"
                                 "\\u00f4\\u0090\\u0080\\u0080|\\u00c3\n"));
}

static void long_ones_are_cut(void **state)
{
    (void)state;
    char text[6000];
    for (int i = 0; i < 2; i++) {
        memset(text, i == 0 ? 'a' : '\x01', sizeof text - 1);
        text[sizeof text - 1] = '\0';
        CAPTURE(log_error("%s", text));
        assert_in_range(line_len, 4096, 5400);
        assert_ptr_equal(strchr(line, '\n'), line + line_len - 1);
        log_setup(LOG_INFO, true);
    }
    CAPTURE(log_error("%s", text));
    assert_memory_equal(line + line_len - 3, "\"}\n", 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(levels, restore),
        cmocka_unit_test_teardown(text_is_one_line, restore),
        cmocka_unit_test_teardown(json_is_escaped, restore),
        cmocka_unit_test_teardown(only_utf8_passes, restore),
        cmocka_unit_test_teardown(long_ones_are_cut, restore),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
