/* Strings of JSON: plain text is looked at in eights, so what is not plain is put at every place of one. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "sandbox/json_read.h"

#include <string.h>

enum { LONG = 27 };

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
                char text[128], wanted[128];
                uint8_t got[128];
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
            char text[128];
            struct json_reader r;
            json_begin(&r, text, document(text, before, specials[i], 9));
            if (json_next(&r) != JSON_BAD) {
                fail_msg("%zu behind %zu letters", i, before);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strings_are_read),
        cmocka_unit_test(what_is_no_string_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
