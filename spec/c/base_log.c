#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
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
    CAPTURE(errno = E2BIG; log_error("x"); assert_int_equal(errno, E2BIG));
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

enum { TERMINAL = 0 };

/* What is read of a pipe, in pieces; whole lines are counted. */
struct reader {
    int fd, saved;
    size_t len;
    char text[16384];
    unsigned long lines, lost;
};

/* A pipe with so much @room, or a terminal. */
static void reader_open(struct reader *r, int room)
{
    int to[2];
    memset(r, 0, sizeof *r);
    r->saved = dup(STDERR_FILENO);
    if (room == TERMINAL) {
        assert_int_equal(openpty(&to[0], &to[1], NULL, NULL, NULL), 0);
    } else {
        assert_int_equal(pipe(to), 0);
        assert_true(fcntl(to[1], F_SETPIPE_SZ, room) >= room);
    }
    dup2(to[1], STDERR_FILENO);
    close(to[1]);
    r->fd = to[0];
}

static void reader_close(struct reader *r)
{
    dup2(r->saved, STDERR_FILENO);
    close(r->saved);
    close(r->fd);
}

/* Reads at most @max bytes of what is there. Each line must be whole. */
static void reader_read(struct reader *r, size_t max)
{
    struct pollfd fd = {.fd = r->fd, .events = POLLIN};
    while (max > 0 && poll(&fd, 1, 0) == 1) {
        size_t room = sizeof r->text - 1 - r->len;
        ssize_t n = read(r->fd, r->text + r->len, room < max ? room : max);
        assert_true(n > 0);
        max -= (size_t)n;
        r->len += (size_t)n;
        r->text[r->len] = '\0';
        for (char *end; (end = strchr(r->text, '\n')) != NULL;) {
            *end = '\0';
            if (end > r->text && end[-1] == '\r') { /* a terminal's */
                end[-1] = '\0';
            }
            assert_memory_equal(r->text, "{\"time\":\"2", 10);
            assert_string_equal(r->text + strlen(r->text) - 2, "\"}");
            assert_null(strstr(r->text + 1, "{\"time"));
            char *note = strstr(r->text, " lines of this log are lost");
            if (note != NULL) {
                r->lost += strtoul(strstr(r->text, "\"msg\":\"") + 7, NULL, 10);
            } else {
                r->lines++;
            }
            r->len -= (size_t)(end + 1 - r->text);
            memmove(r->text, end + 1, r->len + 1);
        }
    }
}

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void check_nobody_is_waited_for(int room)
{
    static struct reader r;
    enum { LINES = 1000 };
    log_setup(LOG_INFO, true);
    alarm(60); /* as it was: for ever */
    reader_open(&r, room);
    int64_t began = now_ms();
    for (int i = 0; i < LINES; i++) {
        log_error("%0*d", 800 + i % 100, i);
    }
    int64_t took = now_ms() - began;
    reader_read(&r, SIZE_MAX);
    unsigned long before = r.lines;
    log_error("after");
    reader_read(&r, SIZE_MAX);
    reader_close(&r);
    alarm(0);
    print_message("%lu lines fit, %lu were lost, in %d ms\n", before, r.lost, (int)took);
    assert_in_range(before, 5, 200);
    assert_int_equal(r.lines + r.lost, LINES + 1);
    assert_in_range(r.lines, before + 1, before + 2); /* one may have been written in part */
    assert_true(took < 5000);                         /* 10 ms a line would be twice that */
}

static void nobody_is_waited_for(void **state)
{
    (void)state;
    check_nobody_is_waited_for(65536);
    check_nobody_is_waited_for(TERMINAL);
    /* Others who have the same standard error are not surprised. */
    assert_int_equal(fcntl(STDERR_FILENO, F_GETFL) & O_NONBLOCK, 0);
}

/* The reader takes a few bytes now and then: no line is cut, and none is missing without being counted. */
static void lines_stay_whole(void **state)
{
    (void)state;
    static struct reader r;
    enum { LINES = 3000 };
    char text[6000];
    memset(text, 'x', sizeof text);
    log_setup(LOG_INFO, true);
    srand(7);
    alarm(120);
    reader_open(&r, 8192);
    for (int i = 0; i < LINES; i++) {
        log_error("%.*s", rand() % 10 == 0 ? rand() % 5500 : rand() % 300, text);
        if (rand() % 4 == 0) {
            reader_read(&r, (size_t)(rand() % 3000) + 1);
        }
    }
    for (int i = 0; i < 2; i++) { /* the first takes along what is left of the last one, and the note */
        reader_read(&r, SIZE_MAX);
        log_error("end");
    }
    reader_read(&r, SIZE_MAX);
    reader_close(&r);
    alarm(0);
    print_message("%lu lines were read, %lu lost\n", r.lines, r.lost);
    assert_int_equal(r.len, 0);
    assert_in_range(r.lost, 100, LINES);
    assert_in_range(r.lines, 100, LINES);
    assert_int_equal(r.lines + r.lost, LINES + 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(levels, restore),
        cmocka_unit_test_teardown(text_is_one_line, restore),
        cmocka_unit_test_teardown(json_is_escaped, restore),
        cmocka_unit_test_teardown(only_utf8_passes, restore),
        cmocka_unit_test_teardown(long_ones_are_cut, restore),
        cmocka_unit_test_teardown(nobody_is_waited_for, restore),
        cmocka_unit_test_teardown(lines_stay_whole, restore),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
