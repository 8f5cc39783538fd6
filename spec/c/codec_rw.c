#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

#include "base_fault.h"
#include "base/buf.c"
#include "codec/rw.h"

static void round_trip(void **state)
{
    (void)state;
    struct buf b = {0};
    struct wr w = wr_init(&b);
    wr_u8(&w, 0xfe);
    wr_u16(&w, 0x1234);
    wr_u32(&w, 0x89abcdef);
    wr_u64(&w, 0x0123456789abcdef);
    wr_blob(&w, "blob", 4);
    wr_blob(&w, NULL, 0);
    wr_bytes(&w, "xy", 2);
    assert_false(w.bad);
    static const uint8_t expect[] =
        "\xfe\x34\x12\xef\xcd\xab\x89\xef\xcd\xab\x89\x67\x45\x23\x01\x04\0\0\0blob\0\0\0\0xy";
    assert_int_equal(b.len, sizeof expect - 1);
    assert_memory_equal(buf_data(&b), expect, b.len);

    struct rd r = rd_init(buf_data(&b), b.len);
    size_t n;
    assert_int_equal(rd_u8(&r), 0xfe);
    assert_int_equal(rd_u16(&r), 0x1234);
    assert_int_equal(rd_u32(&r), 0x89abcdef);
    assert_true(rd_u64(&r) == 0x0123456789abcdef);
    assert_memory_equal(rd_blob(&r, 4, &n), "blob", 4);
    assert_int_equal(n, 4);
    assert_non_null(rd_blob(&r, 0, &n));
    assert_int_equal(n, 0);
    assert_false(rd_done(&r));
    assert_int_equal(rd_left(&r), 2);
    assert_memory_equal(rd_bytes(&r, 2), "xy", 2);
    assert_true(rd_done(&r));
    buf_free(&b);
}

/* At every length that is too short, reading fails, stays failed, and reads nothing outside (ASan). */
static void truncated(void **state)
{
    (void)state;
    struct buf b = {0};
    struct wr w = wr_init(&b);
    wr_u64(&w, 1);
    wr_blob(&w, "0123456789", 10);
    wr_u16(&w, 2);
    for (size_t n = 0; n < b.len; n++) {
        uint8_t *copy = (malloc)(n + 1);
        size_t len;
        memcpy(copy, buf_data(&b), n);
        copy = realloc(copy, n == 0 ? 1 : n);
        struct rd r = rd_init(copy, n);
        rd_u64(&r);
        rd_blob(&r, 100, &len);
        rd_u16(&r);
        assert_true(r.bad);
        assert_false(rd_done(&r));
        assert_int_equal(rd_left(&r), 0);
        assert_int_equal(rd_u8(&r), 0);
        assert_null(rd_bytes(&r, 0));
        assert_null(rd_blob(&r, 100, &len));
        assert_int_equal(len, 0);
        free(copy);
    }
    buf_free(&b);
}

static void lengths_are_bounded(void **state)
{
    (void)state;
    size_t n = 1;
    uint8_t huge[] = {0xff, 0xff, 0xff, 0xff, 1, 2};
    struct rd r = rd_init(huge, sizeof huge);
    assert_null(rd_blob(&r, SIZE_MAX, &n));
    assert_true(r.bad);
    assert_int_equal(n, 0);

    uint8_t five[] = {5, 0, 0, 0, 1, 2, 3, 4, 5};
    r = rd_init(five, sizeof five);
    assert_null(rd_blob(&r, 4, &n));
    assert_true(r.bad);
    r = rd_init(five, sizeof five);
    assert_non_null(rd_blob(&r, 5, &n));
    assert_true(rd_done(&r));

    r = rd_init(five, sizeof five);
    assert_null(rd_bytes(&r, SIZE_MAX));
    assert_true(r.bad);

    r = rd_init(NULL, 0);
    assert_null(rd_bytes(&r, 0));
    assert_true(rd_done(&r));
    assert_int_equal(rd_u8(&r), 0);
    assert_true(r.bad);
}

static void in_place(void **state)
{
    (void)state;
    uint8_t four[4];
    put_u32(four, 0xfedcba98);
    assert_memory_equal(four, "\x98\xba\xdc\xfe", 4);
    assert_true(get_u32(four) == 0xfedcba98);
}

static void without_memory(void **state)
{
    (void)state;
    struct buf b = {0};
    struct wr w = wr_init(&b);
    fault_after(0, false);
    wr_u32(&w, 1);
    assert_true(fault_end());
    assert_true(w.bad);
    wr_u8(&w, 1);
    wr_u64(&w, 1);
    wr_bytes(&w, "a", 1);
    wr_blob(&w, "a", 1);
    assert_true(w.bad);
    assert_int_equal(b.len, 0);

    /* Each allocation of a longer record fails in turn. */
    for (long k = 0;; k++) {
        w = wr_init(&b);
        fault_after(k, true);
        for (int i = 0; i < 1000; i++) {
            wr_blob(&w, "0123456789", 10);
        }
        bool hit = fault_end();
        assert_int_equal(w.bad, hit);
        buf_free(&b);
        if (!hit) {
            assert_true(k > 3);
            break;
        }
    }
}

static void blob_longer_than_its_length_field(void **state)
{
    (void)state;
    struct buf b = {0};
    struct wr w = wr_init(&b);
    wr_blob(&w, "a", (size_t)UINT32_MAX + 2);
    assert_true(w.bad);
    assert_int_equal(b.len, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),
        cmocka_unit_test(truncated),
        cmocka_unit_test(lengths_are_bounded),
        cmocka_unit_test(in_place),
        cmocka_unit_test(without_memory),
        cmocka_unit_test(blob_longer_than_its_length_field),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
