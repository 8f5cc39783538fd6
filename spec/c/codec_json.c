#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "base_fault.h"
#include "base/buf.c"
#include "codec/json.h"

static bool valid(const char *text)
{
    return utf8_valid((const uint8_t *)text, strlen(text));
}

static void utf8(void **state)
{
    (void)state;
    assert_true(utf8_valid(NULL, 0));
    assert_true(utf8_valid((const uint8_t *)"a\0b", 3));
    assert_true(valid("gr\xc3\xbc\xc3\x9f"));
    assert_true(valid(
        "\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf"));
    static const char *const bad[] = {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc3", "\xc3(", "\xe0\x9f\xbf",
        "\xe2\x82", "\xe2(\xac", "\xed\xa0\x80", "\xed\xbf\xbf", "\xf0\x8f\xbf\xbf", "\xf0\x9f\x8e",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "a\xfe"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (valid(bad[i])) {
            fail_msg("taken: number %zu", i);
        }
    }
}

/* Wherever among plain ones a byte stands, also two of them: what is looked at sixteen at a time is seen all the same. */
static void every_byte(void **state)
{
    (void)state;
    for (unsigned c = 0; c < 256; c++) {
        for (unsigned at = 0; at < 42; at++) {
            uint8_t text[43];
            struct buf b = {0};
            char want[80], middle[7];
            memset(text, c & 1 ? 'a' : ' ', sizeof text);
            text[at] = text[at + 1] = (uint8_t)c;
            assert_int_equal(utf8_valid(text, sizeof text), c < 0x80);
            bool plain = c >= 0x20 && c != '"' && c != '\\' && c != 0x7f;
            snprintf(middle, sizeof middle,
                plain                   ? "%c"
                : c == '"' || c == '\\' ? "\\%c"
                : c == '\n'             ? "\\n"
                : c == '\r'             ? "\\r"
                : c == '\t'             ? "\\t"
                                        : "\\u%04x",
                c);
            snprintf(want, sizeof want, "\"%.*s%s%s%.*s\"", (int)at, (const char *)text, middle, middle,
                (int)(41 - at), (const char *)text + at + 2);
            assert_int_equal(json_string(&b, text, sizeof text), 0);
            assert_int_equal(b.len, strlen(want));
            assert_memory_equal(buf_data(&b), want, b.len);
            buf_free(&b);
        }
    }
}

static void is_written(const struct buf *b, const char *expect)
{
    assert_int_equal(b->len, strlen(expect));
    assert_memory_equal(buf_data(b), expect, b->len);
}

static void strings(void **state)
{
    (void)state;
    struct buf b = {0};
    static const char text[] = "a\"b\\c\nd\re\tf\x01\x1f\x7f\0/\xc3\xbc";
    assert_int_equal(json_string(&b, (const uint8_t *)text, sizeof text - 1), 0);
    is_written(&b, "\"a\\\"b\\\\c\\nd\\re\\tf\\u0001\\u001f\\u007f\\u0000/\xc3\xbc\"");
    buf_clear(&b);
    assert_int_equal(json_string(&b, NULL, 0), 0);
    is_written(&b, "\"\"");
    assert_int_equal(json_string(&b, NULL, SIZE_MAX), SYM_ETOOBIG);
    buf_free(&b);
}

static void bytes(void **state)
{
    (void)state;
    struct buf b = {0};
    assert_int_equal(json_bytes(&b, "value", (const uint8_t *)"x", 1), 0);
    is_written(&b, "\"value\":\"x\"");
    buf_clear(&b);
    assert_int_equal(json_bytes(&b, "value", (const uint8_t *)"\xff\xfe", 2), 0);
    is_written(&b, "\"value_base64\":\"//4=\"");
    buf_clear(&b);
    assert_int_equal(json_bytes(&b, "value", NULL, 0), 0);
    is_written(&b, "\"value\":\"\"");
    buf_free(&b);
}

static void without_memory(void **state)
{
    (void)state;
    uint8_t text[500];
    for (int round = 0; round < 2; round++) {
        memset(text, round == 0 ? '\n' : 0xff, sizeof text);
        for (long k = 0;; k++) {
            struct buf b = {0};
            fault_after(k, true);
            int rv = json_bytes(&b, "value", text, sizeof text);
            bool hit = fault_end();
            assert_int_equal(rv, hit ? SYM_ENOMEM : 0);
            buf_free(&b);
            if (!hit) {
                break;
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(utf8),
        cmocka_unit_test(every_byte),
        cmocka_unit_test(strings),
        cmocka_unit_test(bytes),
        cmocka_unit_test(without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
