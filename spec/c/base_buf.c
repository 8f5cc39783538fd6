#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

#include "base_fault.h"
#include "base/buf.c"

static void zero_is_empty(void **state)
{
    (void)state;
    struct buf b = {0};
    buf_consume(&b, 10);
    assert_int_equal(b.len, 0);
    assert_int_equal(buf_append(&b, NULL, 0), 0);
    assert_null(b.base);
    buf_clear(&b);
    buf_free(&b);
    buf_free(&b);
}

static void append_and_consume(void **state)
{
    (void)state;
    struct buf b = {0};
    for (int i = 0; i < 1000; i++) {
        uint8_t c = (uint8_t)i;
        assert_int_equal(buf_append(&b, &c, 1), 0);
    }
    assert_int_equal(b.len, 1000);
    for (int i = 0; i < 1000; i += 10) {
        assert_int_equal(*buf_data(&b), (uint8_t)i);
        buf_consume(&b, 10);
    }
    assert_int_equal(b.len, 0);
    assert_int_equal(b.off, 0);
    buf_free(&b);
}

/* Against a plain array, over random steps. */
static void random_steps(void **state)
{
    (void)state;
    static uint8_t model[1 << 20];
    size_t start = 0, end = 0;
    struct buf b = {0};
    uint32_t seed = 1;
    for (int i = 0; i < 20000; i++) {
        seed = seed * 1664525 + 1013904223;
        size_t n = (seed >> 8) % 97;
        if (seed >> 31 && end + n < sizeof model) {
            uint8_t *to = buf_reserve(&b, n);
            assert_non_null(to);
            for (size_t j = 0; j < n; j++) {
                to[j] = model[end + j] = (uint8_t)(seed + j);
            }
            buf_commit(&b, n);
            end += n;
        } else {
            buf_consume(&b, n);
            start = start + n > end ? end : start + n;
        }
        assert_int_equal(b.len, end - start);
        assert_true(b.off + b.len <= b.cap);
        if (b.len > 0) {
            assert_memory_equal(buf_data(&b), model + start, b.len);
        }
    }
    buf_free(&b);
}

/* A full queue that gives a little and takes a little must not move its bytes at every step. */
static void long_queue_moves_rarely(void **state)
{
    (void)state;
    static uint8_t chunk[4096];
    struct buf b = {0};
    while (b.len < 1 << 20) {
        assert_int_equal(buf_append(&b, chunk, sizeof chunk), 0);
    }
    unsigned moves = 0;
    for (int i = 0; i < 100000; i++) {
        buf_consume(&b, 16);
        uint8_t *before = b.base;
        size_t off = b.off;
        assert_int_equal(buf_append(&b, chunk, 16), 0);
        moves += b.base != before || b.off != off;
    }
    print_message("moves: %u, capacity: %zu\n", moves, b.cap);
    assert_true(moves <= 4);
    assert_true(b.cap <= 4 << 20);
    buf_free(&b);
}

static void format(void **state)
{
    (void)state;
    struct buf b = {0};
    size_t n;
    assert_int_equal(buf_appendf(&b, "%s", ""), 0);
    assert_int_equal(b.len, 0);
    assert_int_equal(buf_appendf(&b, "%d-%s", 42, "x"), 0);
    assert_int_equal(buf_appendf(&b, "%0200d", 7), 0);
    assert_int_equal(b.len, 204);
    buf_consume(&b, 3);
    uint8_t *text = buf_take(&b, &n);
    assert_non_null(text);
    assert_int_equal(n, 201);
    assert_int_equal(strlen((char *)text), 201);
    assert_int_equal(text[0], 'x');
    assert_null(b.base);
    free(text);
}

static void decimal(void **state)
{
    (void)state;
    static const uint64_t numbers[] = {0, 9, 10, 100, 12345, UINT32_MAX, UINT64_MAX};
    static const char want[] = "0 9 10 100 12345 4294967295 18446744073709551615 ";
    struct buf b = {0};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        assert_int_equal(buf_decimal(&b, numbers[i]), 0);
        assert_int_equal(buf_text(&b, " "), 0);
    }
    assert_int_equal(b.len, strlen(want));
    assert_memory_equal(buf_data(&b), want, b.len);
    buf_free(&b);
}

static void take_of_an_empty_one(void **state)
{
    (void)state;
    struct buf b = {0};
    size_t n = 1;
    uint8_t *text = buf_take(&b, &n);
    assert_string_equal((char *)text, "");
    assert_int_equal(n, 0);
    free(text);
}

static void too_big(void **state)
{
    (void)state;
    struct buf b = {0};
    assert_int_equal(buf_append(&b, "abc", 3), 0);
    assert_null(buf_reserve(&b, SIZE_MAX));
    assert_null(buf_reserve(&b, SIZE_MAX / 4));
    assert_null(buf_reserve(&b, SIZE_MAX / 8));
    assert_int_equal(b.len, 3);
    assert_memory_equal(buf_data(&b), "abc", 3);
    buf_free(&b);
}

static void trim_keeps_what_is_small(void **state)
{
    (void)state;
    struct buf b = {0};
    buf_trim(&b, 0);
    char text[100] = "";
    assert_int_equal(buf_append(&b, text, sizeof text), 0);
    buf_consume(&b, 1);
    uint8_t *base = b.base;
    assert_int_equal(b.cap, 128);
    buf_trim(&b, 128);
    assert_ptr_equal(b.base, base);
    assert_int_equal(b.off + b.len, 0);
    assert_int_equal(buf_append(&b, text, sizeof text), 0);
    buf_trim(&b, 127);
    assert_null(b.base);
    assert_int_equal(b.off + b.len + b.cap, 0);
}

static void without_memory_nothing_changes(void **state)
{
    (void)state;
    struct buf b = {0};
    size_t n;
    fault_after(0, false);
    assert_int_equal(buf_append(&b, "abc", 3), SYM_ENOMEM);
    assert_true(fault_end());
    assert_non_null(strstr(err_msg(), "buffer of"));
    assert_int_equal(b.len, 0);

    fault_after(0, false);
    assert_null(buf_take(&b, &n));
    assert_true(fault_end());

    char text[64];
    memset(text, 'a', sizeof text);
    assert_int_equal(buf_append(&b, text, sizeof text), 0);
    buf_consume(&b, 1);
    struct buf before = b;
    fault_after(0, true);
    assert_int_equal(buf_append(&b, text, sizeof text), SYM_ENOMEM);
    assert_int_equal(buf_appendf(&b, "%0100d", 1), SYM_ENOMEM);
    assert_null(buf_reserve(&b, 100));
    assert_true(fault_end());
    assert_memory_equal(&b, &before, sizeof b);
    assert_memory_equal(buf_data(&b), text, 63);
    buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(zero_is_empty),
        cmocka_unit_test(append_and_consume),
        cmocka_unit_test(trim_keeps_what_is_small),
        cmocka_unit_test(random_steps),
        cmocka_unit_test(long_queue_moves_rarely),
        cmocka_unit_test(format),
        cmocka_unit_test(decimal),
        cmocka_unit_test(take_of_an_empty_one),
        cmocka_unit_test(too_big),
        cmocka_unit_test(without_memory_nothing_changes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
