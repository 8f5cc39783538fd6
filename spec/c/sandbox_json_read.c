/* Strings of JSON: plain text is looked at sixteen bytes at a time, so what is not plain is put at every place of one. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "sandbox/json_read.h"

#include <string.h>

enum { LONG = 43 };

/* A document of one string: @special with @before letters in front of it and @behind after it. */
static size_t document(char *out, size_t before, const char *special, size_t behind)
{
    size_t n = 0, n_special = strlen(special);
    out[n++] = '"';
    memset(out + n, 'a', before);
    n += before;
    memcpy(out + n, special, n_special);
    n += n_special;
    memset(out + n, 'z', behind);
    n += behind;
    out[n++] = '"';
    return n;
}

static void strings_are_read(void **state)
{
    (void)state;
    static const struct {
        const char *written, *meant;
    } specials[] = {{"", ""}, {"\\\"", "\""}, {"\\\\\\n", "\\\n"}, {"\x7f", "\x7f"}, {"\\u00e9", "\xc3\xa9"},
        {"\xc3\xa9", "\xc3\xa9"}, {"\\ud83d\\ude00", "\xf0\x9f\x98\x80"}, {"{}[],:", "{}[],:"}};
    for (size_t i = 0; i < sizeof specials / sizeof *specials; i++) {
        for (size_t before = 0; before < LONG; before++) {
            for (size_t behind = 0; behind < LONG; behind += 13) {
                char text[160], wanted[160];
                uint8_t got[160];
                struct json_reader r;
                size_t n = document(text, before, specials[i].written, behind);
                size_t n_wanted = document(wanted, before, specials[i].meant, behind);
                json_begin(&r, text, n);
                assert_int_equal(json_next(&r), JSON_STRING);
                assert_int_equal(json_unescape(&r, got), n_wanted - 2);
                assert_memory_equal(got, wanted + 1, n_wanted - 2);
                assert_int_equal(json_next(&r), JSON_END);
                /* Cut off anywhere it is none. */
                for (size_t cut = 1; cut < n; cut++) {
                    json_begin(&r, text, cut);
                    assert_int_equal(json_next(&r), JSON_BAD);
                }
            }
        }
    }
}

static void what_is_no_string_is_refused(void **state)
{
    (void)state;
    static const char *const specials[] = {
        "\n", "\x1f", "\\x", "\\u12g4", "\\ud83d", "\\ude00", "\xff", "\xc3", "\xe2\x82", "\xed\xa0\x80"};
    for (size_t i = 0; i < sizeof specials / sizeof *specials; i++) {
        for (size_t before = 0; before < LONG; before++) {
            char text[160];
            struct json_reader r;
            json_begin(&r, text, document(text, before, specials[i], 9));
            if (json_next(&r) != JSON_BAD) {
                fail_msg("%zu behind %zu letters", i, before);
            }
        }
    }
}

static void numbers_are_read(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        enum json_token token;
        int64_t integer;
        double number;
    } cases[] = {{"0", JSON_INTEGER, 0, 0}, {"-0", JSON_INTEGER, 0, 0}, {"-7", JSON_INTEGER, -7, -7},
        {"1234567890", JSON_INTEGER, 1234567890, 1234567890},
        {"999999999999999999", JSON_INTEGER, 999999999999999999, 1e18},
        {"-99999999999999999", JSON_INTEGER, -99999999999999999, -1e17},
        {"9007199254740993", JSON_INTEGER, 9007199254740993, 9007199254740992.0},
        {"1000000000000000000", JSON_NUMBER, 0, 1e18}, {"1.5", JSON_NUMBER, 0, 1.5},
        {"-2e3", JSON_NUMBER, 0, -2000}, {"1e400", JSON_BAD, 0, 0}, {"-1e400", JSON_BAD, 0, 0},
        {"01", JSON_BAD, 0, 0}, {"-", JSON_BAD, 0, 0}, {"1.", JSON_BAD, 0, 0}, {"1e", JSON_BAD, 0, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct json_reader r;
        json_begin(&r, cases[i].text, strlen(cases[i].text));
        enum json_token t = json_next(&r);
        if (t != cases[i].token ||
            (t != JSON_BAD && (r.integer != cases[i].integer || r.number != cases[i].number)) ||
            json_next(&r) != (t == JSON_BAD ? JSON_BAD : JSON_END)) {
            fail_msg("%s: %d, %lld, %g", cases[i].text, (int)t, (long long)r.integer, r.number);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strings_are_read),
        cmocka_unit_test(what_is_no_string_is_refused),
        cmocka_unit_test(numbers_are_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
