#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "codec/text.h"

static void fill(uint8_t *to, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525 + 1013904223;
        to[i] = (uint8_t)(seed >> 24);
    }
}

static void hex(void **state)
{
    (void)state;
    char text[16];
    uint8_t back[4];
    hex_encode((const uint8_t *)"\x00\x9f\xff", 3, text);
    assert_string_equal(text, "009fff");
    hex_encode(NULL, 0, text);
    assert_string_equal(text, "");
    assert_int_equal(hex_decode("009fFf", 6, back, 3), 0);
    assert_memory_equal(back, "\x00\x9f\xff", 3);
    assert_int_equal(hex_decode("", 0, back, 0), 0);
    assert_int_equal(hex_decode("00", 2, back, 2), SYM_EINVAL);
    assert_int_equal(hex_decode("000", 3, back, 1), SYM_EINVAL);
    assert_int_equal(hex_decode("0g", 2, back, 1), SYM_EINVAL);
    assert_int_equal(hex_decode("z0", 2, back, 1), SYM_EINVAL);
    assert_int_equal(hex_decode("\0000", 2, back, 1), SYM_EINVAL);
}

/* RFC 4648, section 10 (BASE32-HEX), in lower case and without padding. */
static void base32_vectors(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {{"", ""}, {"f", "co"}, {"fo", "cpng"}, {"foo", "cpnmu"},
        {"foob", "cpnmuog"}, {"fooba", "cpnmuoj1"}, {"foobar", "cpnmuoj1e8"}};
    char text[32];
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        uint8_t back[8];
        size_t n = strlen(pairs[i][0]);
        base32_encode((const uint8_t *)pairs[i][0], n, text);
        assert_string_equal(text, pairs[i][1]);
        assert_int_equal(base32_decode(text, strlen(text), back, n), 0);
        assert_memory_equal(back, pairs[i][0], n);
    }
}

static void base32_refuses(void **state)
{
    (void)state;
    uint8_t out[16];
    static const char id[] = "0680bkq3g4vnr2jd9d8qv3m5q0";
    assert_int_equal(base32_decode(id, 26, out, 16), 0);
    assert_int_equal(base32_decode(id, 25, out, 16), SYM_EINVAL);
    assert_int_equal(base32_decode(id, 26, out, 15), SYM_EINVAL);
    assert_int_equal(base32_decode("0680BKQ3G4VNR2JD9D8QV3M5Q0", 26, out, 16), SYM_EINVAL);
    assert_int_equal(base32_decode("0680bkq3g4vnr2jd9d8qv3m5qw", 26, out, 16), SYM_EINVAL); /* not a digit */
    assert_int_equal(
        base32_decode("0680bkq3g4vnr2jd9d8qv3m5q1", 26, out, 16), SYM_EINVAL); /* a bit too many */
    assert_int_equal(base32_decode("0680bkq3g4-nr2jd9d8qv3m5q0", 26, out, 16), SYM_EINVAL);
}

static void base32_keeps_the_order(void **state)
{
    (void)state;
    uint8_t a[16], b[16];
    char ta[27], tb[27];
    for (uint32_t seed = 0; seed < 2000; seed++) {
        fill(a, sizeof a, seed);
        memcpy(b, a, sizeof b);
        b[seed % 16] ^= (uint8_t)(1U << seed % 8);
        base32_encode(a, sizeof a, ta);
        base32_encode(b, sizeof b, tb);
        assert_int_equal(strlen(ta), 26);
        assert_true((memcmp(a, b, sizeof a) < 0) == (strcmp(ta, tb) < 0));
    }
}

static void base36_widths(void **state)
{
    (void)state;
    assert_int_equal(base36_width(0), 0);
    assert_int_equal(base36_width(16), 25);
    assert_int_equal(base36_width(32), 50);
    for (size_t n = 1; n <= 64; n++) {
        assert_int_equal(base36_width(n), (size_t)ceill((long double)n * 8 / log2l(36)));
    }
}

static void base36_round_trip(void **state)
{
    (void)state;
    uint8_t data[64], back[64];
    char text[128];
    for (size_t n = 0; n <= 64; n++) {
        for (uint32_t kind = 0; kind < 20; kind++) {
            memset(data, kind == 0 ? 0 : 0xff, n);
            if (kind > 1) {
                fill(data, n, kind);
            }
            base36_encode(data, n, text);
            assert_int_equal(strlen(text), base36_width(n));
            memset(back, 0x55, sizeof back);
            assert_int_equal(base36_decode(text, strlen(text), back, n), 0);
            assert_memory_equal(back, data, n);
            for (char *c = text; *c != '\0'; c++) {
                if (*c >= 'a' && *c <= 'z') {
                    *c = (char)(*c - 'a' + 'A');
                }
            }
            assert_int_equal(base36_decode(text, strlen(text), back, n), 0);
            assert_memory_equal(back, data, n);
        }
    }
    base36_encode((const uint8_t *)"\x00\xff", 2, text);
    assert_string_equal(text, "0073");
}

static void base36_refuses(void **state)
{
    (void)state;
    uint8_t out[32];
    char text[64];
    assert_int_equal(base36_decode("000", 3, out, 2), SYM_EINVAL);
    assert_int_equal(base36_decode("00000", 5, out, 2), SYM_EINVAL);
    assert_int_equal(base36_decode("00-0", 4, out, 2), SYM_EINVAL);
    assert_int_equal(base36_decode("00\0000", 4, out, 2), SYM_EINVAL);
    assert_int_equal(base36_decode("1ekf", 4, out, 2), 0);
    assert_memory_equal(out, "\xff\xff", 2);
    assert_int_equal(base36_decode("1ekg", 4, out, 2), SYM_EINVAL);
    memset(text, 'z', 50);
    assert_int_equal(base36_decode(text, 50, out, 32), SYM_EINVAL);
    assert_int_equal(base36_decode(text, 100000, out, 32), SYM_EINVAL);
}

static void base64_vectors(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {{"", ""}, {"f", "Zg=="}, {"fo", "Zm8="}, {"foo", "Zm9v"},
        {"foob", "Zm9vYg=="}, {"fooba", "Zm9vYmE="}, {"foobar", "Zm9vYmFy"}, {"\xfb\xff\xfe", "+//+"}};
    char text[32];
    uint8_t back[32];
    size_t n;
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        size_t len = strlen(pairs[i][0]);
        assert_int_equal(base64_width(len), strlen(pairs[i][1]));
        base64_encode((const uint8_t *)pairs[i][0], len, text);
        assert_string_equal(text, pairs[i][1]);
        assert_int_equal(base64_decode(text, strlen(text), back, &n), 0);
        assert_int_equal(n, len);
        assert_memory_equal(back, pairs[i][0], len);
    }
}

static void base64_round_trip(void **state)
{
    (void)state;
    uint8_t data[200];
    char text[300];
    for (size_t n = 0; n <= sizeof data; n++) {
        size_t back_len;
        fill(data, n, (uint32_t)n);
        base64_encode(data, n, text);
        /* As small as the header says it may be. */
        uint8_t *back = malloc(3 * strlen(text) / 4 + 1);
        back = realloc(back, 3 * strlen(text) / 4 + (n == 0));
        assert_int_equal(base64_decode(text, strlen(text), back, &back_len), 0);
        assert_int_equal(back_len, n);
        assert_memory_equal(back, data, n);
        free(back);
    }
}

static void base64_refuses(void **state)
{
    (void)state;
    static const char *const bad[] = {"Z", "Zg",
        "Zg=", "====", "Z===", "=Zg=", "Zg==Zg==", "Zm8=Zm8=", "Zm=v", "Zh==", "Zm9=", "Zm9 ", "Zm9\n",
        "Zm9-", "Zm9_", "Zm\x80v", "Zg==\n"};
    uint8_t out[16];
    size_t n;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (base64_decode(bad[i], strlen(bad[i]), out, &n) != SYM_EINVAL) {
            fail_msg("taken: \"%s\"", bad[i]);
        }
    }
    assert_int_equal(base64_decode("Zm\0v", 4, out, &n), SYM_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hex),
        cmocka_unit_test(base32_vectors),
        cmocka_unit_test(base32_refuses),
        cmocka_unit_test(base32_keeps_the_order),
        cmocka_unit_test(base36_widths),
        cmocka_unit_test(base36_round_trip),
        cmocka_unit_test(base36_refuses),
        cmocka_unit_test(base64_vectors),
        cmocka_unit_test(base64_round_trip),
        cmocka_unit_test(base64_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
