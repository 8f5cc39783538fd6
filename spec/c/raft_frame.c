/* Frames in pieces, and the control frames of a connection. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "base_fault.h"
#include "base/buf.c"
#include "raft/frame.c"
#include "raft/hello.c"
#include "raft/where.c"

/* What came out of a reader, in order. */
struct seen {
    unsigned n;
    struct {
        enum frame_class class;
        uint8_t kind;
        uint8_t *data;
        size_t n;
    } frames[64];
    unsigned stop_after;
};

static bool collect(void *arg, enum frame_class class, uint8_t kind, uint8_t *data, size_t n)
{
    struct seen *s = arg;
    assert_true(s->n < 64);
    assert_non_null(data);
    s->frames[s->n].class = class;
    s->frames[s->n].kind = kind;
    s->frames[s->n].data = data;
    s->frames[s->n++].n = n;
    return s->n != s->stop_after;
}

static void seen_free(struct seen *s)
{
    for (unsigned i = 0; i < s->n; i++) {
        (free)(s->frames[i].data);
    }
    *s = (struct seen){0};
}

static int to_buf(void *arg, const void *data, size_t n)
{
    return buf_append(arg, data, n);
}

static void never(void *arg, int status)
{
    fail_msg("%p completed with %d", arg, status);
}

static uint8_t *pattern(size_t n, unsigned seed)
{
    uint8_t *data = (malloc)(n > 0 ? n : 1);
    for (size_t i = 0; i < n; i++) {
        data[i] = (uint8_t)((i * 31 + seed) ^ (i >> 8));
    }
    return data;
}

static void add(struct frame_queue *q, uint8_t kind, bool urgent, const void *data, size_t n)
{
    int rv = 0;
    uv_buf_t buf = uv_buf_init((char *)data, (unsigned)n);
    struct frame_out *f = frame_out_new(kind, &buf, 1, never, NULL, &rv);
    assert_non_null(f);
    assert_int_equal(frame_queue_add(q, f, urgent), 0);
}

/* Writes one piece; its frame is freed when it is finished. */
static long step(struct frame_queue *q, struct buf *out)
{
    struct frame_out *finished;
    long n = frame_queue_next(q, to_buf, out, &finished);
    (free)(finished);
    return n;
}

static void sizes_and_chunks(void **state)
{
    (void)state;
    const size_t sizes[] = {
        0, 1, 100, FRAME_PIECE - 1, FRAME_PIECE, FRAME_PIECE + 1, 3 * FRAME_PIECE, 300001};
    const size_t chunks[] = {1, 7, 8, 9, 4096, 1 << 20};
    struct frame_queue q;
    struct buf wire = {0};
    uint8_t *data = pattern(300001, 1);

    for (size_t c = 0; c < sizeof chunks / sizeof chunks[0]; c++) {
        frame_queue_init(&q);
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            add(&q, (uint8_t)(200 + i), false, data, sizes[i]);
        }
        while (step(&q, &wire) > 0) {
        }
        struct frame_reader r = {0};
        struct seen s = {0};
        while (wire.len > 0) {
            size_t n = wire.len < chunks[c] ? wire.len : chunks[c];
            assert_int_equal(frame_feed(&r, buf_data(&wire), n, collect, &s), 0);
            buf_consume(&wire, n);
        }
        assert_int_equal(s.n, sizeof sizes / sizeof sizes[0]);
        for (unsigned i = 0; i < s.n; i++) {
            assert_int_equal(s.frames[i].kind, 200 + i);
            assert_int_equal(s.frames[i].class, FRAME_NORMAL);
            assert_int_equal(s.frames[i].n, sizes[i]);
            assert_memory_equal(s.frames[i].data, data, sizes[i]);
        }
        assert_int_equal(r.total, 0);
        seen_free(&s);
        frame_reader_free(&r);
    }
    (free)(data);
    buf_free(&wire);
}

static void pieces_of_areas(void **state)
{
    (void)state;
    struct frame_queue q;
    struct buf wire = {0};
    struct frame_reader r = {0};
    struct seen s = {0};
    uv_buf_t bufs[400];
    uint8_t *data = pattern(1 << 20, 5);
    size_t total = 0;
    int rv;

    for (unsigned i = 0; i < 400; i++) { /* some empty, some longer than a piece */
        size_t n = i % 7 == 0 ? 0 : i % 50 == 1 ? 70000 : i;
        bufs[i] = uv_buf_init((char *)data + total, (unsigned)n);
        total += n;
    }
    for (int copied = 0; copied < 2; copied++) {
        frame_queue_init(&q);
        struct frame_out *f = frame_out_new(9, bufs, 400, copied ? NULL : never, NULL, &rv);
        assert_non_null(f);
        assert_int_equal(f->size, total);
        assert_int_equal(frame_queue_add(&q, f, true), 0);
        if (copied) {
            memset(data, 0, total); /* no longer needed */
        }
        while (step(&q, &wire) > 0) {
        }
        (free)(data);
        data = pattern(1 << 20, 5);
        for (unsigned i = 0, at = 0; i < 400; at += (unsigned)bufs[i].len, i++) {
            bufs[i].base = (char *)data + at;
        }
        assert_int_equal(frame_feed(&r, buf_data(&wire), wire.len, collect, &s), 0);
        assert_int_equal(s.n, 1);
        assert_int_equal(s.frames[0].class, FRAME_URGENT);
        assert_int_equal(s.frames[0].n, total);
        assert_memory_equal(s.frames[0].data, data, total);
        seen_free(&s);
        buf_clear(&wire);
    }
    (free)(data);
    buf_free(&wire);
}

static void precedence(void **state)
{
    (void)state;
    struct frame_queue q;
    struct buf wire = {0};
    struct frame_reader r = {0};
    struct seen s = {0};
    uint8_t *bulk = pattern(FRAME_BULK + 1, 1), *normal = pattern(200000, 2);

    frame_queue_init(&q);
    assert_true(frame_queue_empty(&q));
    add(&q, 1, true, bulk, FRAME_BULK + 1); /* too large to be urgent */
    assert_int_equal(step(&q, &wire), FRAME_PIECE + FRAME_HEAD);
    add(&q, 2, false, normal, 200000);
    assert_int_equal(step(&q, &wire), FRAME_PIECE + FRAME_HEAD);
    add(&q, 3, false, "second", 6);
    add(&q, 4, true, "urgent", 6);
    assert_false(frame_queue_empty(&q));
    assert_int_equal(step(&q, &wire), 6 + FRAME_HEAD);
    while (step(&q, &wire) > 0) {
    }
    assert_true(frame_queue_empty(&q));
    assert_int_equal(frame_feed(&r, buf_data(&wire), wire.len, collect, &s), 0);
    const uint8_t order[] = {4, 2, 3, 1};
    assert_int_equal(s.n, 4);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(s.frames[i].kind, order[i]);
    }
    assert_memory_equal(s.frames[1].data, normal, 200000);
    assert_memory_equal(s.frames[3].data, bulk, FRAME_BULK + 1);
    seen_free(&s);
    (free)(bulk);
    (free)(normal);
    buf_free(&wire);
}

static void bounded_queue(void **state)
{
    (void)state;
    struct frame_queue q;
    struct frame_list dropped = TAILQ_HEAD_INITIALIZER(dropped);
    struct frame_out *f;
    uint8_t *data = pattern(FRAME_BULK + 1, 0);
    uv_buf_t buf = uv_buf_init((char *)data, FRAME_BULK);
    unsigned n = 0;
    int rv;

    frame_queue_init(&q);
    for (int i = 0; i < FRAME_QUEUE_BYTES / FRAME_BULK; i++, n++) {
        add(&q, 1, false, data, FRAME_BULK);
    }
    f = frame_out_new(1, &buf, 1, never, NULL, &rv);
    assert_int_equal(frame_queue_add(&q, f, false), SYM_EBUSY);
    assert_int_equal(frame_queue_add(&q, f, true), 0); /* each class has its own room */
    n++;
    add(&q, 1, false, data, 0);
    n++;
    for (int i = 0; i < FRAME_QUEUE_COUNT - 1; i++, n++) {
        add(&q, 1, true, data, 1);
    }
    f = frame_out_new(1, &buf, 0, never, NULL, &rv);
    assert_int_equal(frame_queue_add(&q, f, true), SYM_EBUSY);
    (free)(f);
    buf.len = FRAME_BULK + 1;
    add(&q, 1, false, data, FRAME_BULK + 1);
    n++;
    f = frame_out_new(1, &buf, 1, never, NULL, &rv);
    assert_int_equal(frame_queue_add(&q, f, false), SYM_EBUSY);
    (free)(f);
    buf.len = (size_t)FRAME_MAX + 1;
    assert_null(frame_out_new(1, &buf, 1, never, NULL, &rv));
    assert_int_equal(rv, SYM_ETOOBIG);

    frame_queue_drop(&q, SYM_ECONNECT, &dropped);
    assert_true(frame_queue_empty(&q));
    while ((f = TAILQ_FIRST(&dropped)) != NULL) {
        assert_int_equal(f->status, SYM_ECONNECT);
        TAILQ_REMOVE(&dropped, f, link);
        (free)(f);
        n--;
    }
    assert_int_equal(n, 0);
    (free)(data);
}

static int feed_head(
    struct frame_reader *r, uint32_t n, unsigned kind, unsigned class, unsigned flags, unsigned zero)
{
    uint8_t head[FRAME_HEAD];
    struct seen s = {0};
    put_u32(head, n);
    head[4] = (uint8_t)kind;
    head[5] = class & 0xff;
    head[6] = (uint8_t)flags;
    head[7] = (uint8_t)zero;
    int rv = frame_feed(r, head, sizeof head, collect, &s);
    seen_free(&s);
    return rv;
}

static void bad_heads(void **state)
{
    (void)state;
    struct frame_reader r = {0};
    uint8_t byte = 0;

    assert_int_equal(frame_feed(&r, &byte, 0, collect, NULL), 0);
    const struct {
        unsigned n, class, flags, zero;
        int rv;
    } heads[] = {
        {FRAME_PIECE + 1, FRAME_NORMAL, 0, 0, SYM_EPROTO},
        {UINT32_MAX, FRAME_BULKY, 1, 0, SYM_EPROTO},
        {0, FRAME_NORMAL, 1, 0, SYM_EPROTO},
        {1, FRAME_CONTROL, 1, 0, SYM_EPROTO},
        {FRAME_CONTROL_MAX + 1, FRAME_CONTROL, 0, 0, SYM_ETOOBIG},
        {1, FRAME_CLASSES, 0, 0, SYM_EPROTO},
        {1, FRAME_NORMAL, 2, 0, SYM_EPROTO},
        {1, FRAME_NORMAL, 0, 1, SYM_EPROTO},
        {FRAME_PIECE, FRAME_NORMAL, 1, 0, 0},
        {0, FRAME_URGENT, 0, 0, 0},
        {FRAME_CONTROL_MAX, FRAME_CONTROL, 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++) {
        r = (struct frame_reader){0};
        int rv = feed_head(&r, heads[i].n, 1, heads[i].class, heads[i].flags, heads[i].zero);
        if (rv != heads[i].rv) {
            fail_msg("head %zu: %s, not %s", i, err_name(rv), err_name(heads[i].rv));
        }
        frame_reader_free(&r);
    }
    /* Only control before the hello. */
    r = (struct frame_reader){.control_only = true};
    assert_int_equal(feed_head(&r, 1, 1, FRAME_NORMAL, 0, 0), SYM_EPROTO);
    r = (struct frame_reader){.control_only = true};
    assert_int_equal(feed_head(&r, 1, 1, FRAME_CONTROL, 0, 0), 0);
    frame_reader_free(&r);
    /* A frame's pieces are of one kind. */
    struct seen s = {0};
    r = (struct frame_reader){0};
    assert_int_equal(feed_head(&r, 1, 1, FRAME_NORMAL, 1, 0), 0);
    assert_int_equal(frame_feed(&r, &byte, 1, collect, &s), 0);
    assert_int_equal(feed_head(&r, 1, 2, FRAME_NORMAL, 0, 0), SYM_EPROTO);
    frame_reader_free(&r);
}

/* A claim costs nothing; what is held is in proportion to what came. */
static void memory_follows_bytes(void **state)
{
    (void)state;
    struct frame_reader r = {0};
    struct seen s = {0};
    uint8_t piece[FRAME_HEAD + FRAME_PIECE] = {0};

    assert_int_equal(feed_head(&r, FRAME_PIECE, 1, FRAME_BULKY, 1, 0), 0);
    assert_null(r.parts[FRAME_BULKY].data);
    assert_int_equal(frame_feed(&r, piece, 10, collect, &s), 0);
    assert_true(r.parts[FRAME_BULKY].cap <= 64);
    assert_int_equal(frame_feed(&r, piece, FRAME_PIECE - 10, collect, &s), 0);
    assert_true(r.parts[FRAME_BULKY].cap <= 2 * FRAME_PIECE);
    assert_int_equal(r.total, FRAME_PIECE);

    /* A normal frame ends at 4 MiB, also when its end never comes. */
    frame_put_head(piece, 1, FRAME_NORMAL, FRAME_PIECE, true);
    int rv = 0;
    unsigned pieces = 0;
    while ((rv = frame_feed(&r, piece, sizeof piece, collect, &s)) == 0) {
        pieces++;
    }
    assert_int_equal(rv, SYM_ETOOBIG);
    assert_int_equal(pieces, FRAME_BULK / FRAME_PIECE);
    frame_reader_free(&r);

    /* All of a connection's together: as if nearly everything were held already. */
    r = (struct frame_reader){.total = FRAME_MAX - FRAME_PIECE + 1};
    assert_int_equal(feed_head(&r, FRAME_PIECE, 1, FRAME_BULKY, 1, 0), SYM_ETOOBIG);
    assert_int_equal(s.n, 0);
}

static void callee_may_stop(void **state)
{
    (void)state;
    struct frame_reader r = {0};
    struct seen s = {.stop_after = 2};
    struct frame_queue q;
    struct buf wire = {0};
    frame_queue_init(&q);
    for (int i = 0; i < 5; i++) {
        add(&q, (uint8_t)i, false, "x", 1);
        step(&q, &wire);
    }
    assert_int_equal(frame_feed(&r, buf_data(&wire), wire.len, collect, &s), 0);
    assert_int_equal(s.n, 2);
    seen_free(&s);
    buf_free(&wire);
}

static int broken_pipe(void *arg, const void *data, size_t n)
{
    int *left = arg;
    (void)data;
    (void)n;
    return (*left)-- > 0 ? 0 : SYM_ECLOSED;
}

static void broken_on_the_way(void **state)
{
    (void)state;
    for (int left = 0; left < 3; left++) {
        int countdown = left;
        struct frame_queue q;
        struct frame_out *finished;
        struct frame_list dropped = TAILQ_HEAD_INITIALIZER(dropped);
        uint8_t *data = pattern(FRAME_PIECE + 1, 0);
        frame_queue_init(&q);
        add(&q, 1, false, data, FRAME_PIECE + 1);
        long rv = frame_queue_next(&q, broken_pipe, &countdown, &finished);
        if (rv > 0) {
            rv = frame_queue_next(&q, broken_pipe, &countdown, &finished);
        }
        assert_int_equal(rv, SYM_ECLOSED);
        assert_null(finished);
        frame_queue_drop(&q, SYM_ECONNECT, &dropped); /* it is still the queue's */
        assert_non_null(TAILQ_FIRST(&dropped));
        (free)(TAILQ_FIRST(&dropped));
        (free)(data);
    }
}

static void without_memory(void **state)
{
    (void)state;
    struct frame_queue q;
    struct buf wire = {0};
    int rv = 0;
    uint8_t *data = pattern(200000, 3);
    uv_buf_t buf = uv_buf_init((char *)data, 8);

    fault_after(0, false);
    assert_null(frame_out_new(1, &buf, 1, NULL, NULL, &rv));
    assert_true(fault_end());
    assert_int_equal(rv, SYM_ENOMEM);

    frame_queue_init(&q);
    add(&q, 1, false, data, 200000);
    add(&q, 2, false, data, 0);
    while (step(&q, &wire) > 0) {
    }
    bool hit = true;
    for (long k = 0; hit; k++) {
        struct frame_reader r = {0};
        struct seen s = {0};
        fault_after(k, false);
        for (size_t at = 0; rv = 0, at < wire.len && rv == 0; at += 50000) {
            size_t n = wire.len - at < 50000 ? wire.len - at : 50000;
            rv = frame_feed(&r, buf_data(&wire) + at, n, collect, &s);
            if (rv != 0) {
                break;
            }
        }
        hit = fault_end();
        /* Shrinking a finished frame may fail without harm. */
        assert_true(rv == SYM_ENOMEM || (rv == 0 && s.n == 2));
        seen_free(&s);
        frame_reader_free(&r);
    }
    (free)(data);
    buf_free(&wire);
}

static void where_they_are(void **state)
{
    (void)state;
    struct buf out = {0};
    struct wr w = wr_init(&out);
    struct where where;
    char longest[WHERE_ADDRESS_MAX + 1];

    memset(longest, 'a', sizeof longest);
    longest[WHERE_ADDRESS_MAX - 1] = '\0';
    where_put(&w, 1, UINT64_MAX, longest);
    where_put(&w, UINT64_MAX, 2, "[::1]:5");
    assert_false(w.bad);
    struct rd r = rd_init(buf_data(&out), out.len);
    assert_true(where_next(&r, &where));
    assert_int_equal(where.id, 1);
    assert_true(where.moves == UINT64_MAX);
    assert_string_equal(where.address, longest);
    assert_true(where_next(&r, &where));
    assert_true(where.id == UINT64_MAX);
    assert_string_equal(where.address, "[::1]:5");
    assert_false(where_next(&r, &where));
    assert_false(r.bad);
    /* Cut anywhere but between the two it is malformed. */
    size_t first = 8 + 8 + 4 + WHERE_ADDRESS_MAX - 1;
    for (size_t i = 1; i < out.len; i++) {
        unsigned n = 0;
        r = rd_init(buf_data(&out), i);
        while (where_next(&r, &where)) {
            n++;
        }
        assert_int_equal(n, i >= first);
        assert_int_equal(r.bad, i != first);
    }
    buf_clear(&out);
    longest[WHERE_ADDRESS_MAX - 1] = 'a';
    longest[WHERE_ADDRESS_MAX] = '\0';
    where_put(&w, 1, 1, longest);
    r = rd_init(buf_data(&out), out.len);
    assert_false(where_next(&r, &where));
    assert_true(r.bad);
    buf_clear(&out);
    where_put(&w, 1, 1, "a\x1b[2J:1");
    r = rd_init(buf_data(&out), out.len);
    assert_false(where_next(&r, &where));
    assert_true(r.bad);
    buf_free(&out);
}

static void hellos(void **state)
{
    (void)state;
    struct hello h = {.format = HELLO_FORMAT, .from = 3, .to = UINT64_MAX, .starts = 12}, back;
    struct welcome w = {.format = HELLO_FORMAT, .id = 1, .starts = 1ull << 50}, w2;
    struct buf out = {0};

    memset(h.cluster_id, 'c', sizeof h.cluster_id - 1);
    memset(h.address, 'a', sizeof h.address - 1);
    assert_int_equal(hello_encode(&h, &out), 0);
    assert_true(out.len <= FRAME_CONTROL_MAX);
    assert_int_equal(hello_decode(buf_data(&out), out.len, &back), 0);
    assert_memory_equal(&h, &back, sizeof h);
    for (size_t i = 0; i < out.len; i++) {
        uint8_t *copy = (malloc)(i > 0 ? i : 1);
        memcpy(copy, buf_data(&out), i);
        int rv = hello_decode(copy, i, &back);
        assert_int_equal(rv, SYM_EPROTO);
        (free)(copy);
    }
    buf_data(&out)[40] = '\n';
    assert_int_equal(hello_decode(buf_data(&out), out.len, &back), SYM_EPROTO);
    buf_data(&out)[40] = 'c';
    buf_append(&out, "x", 1);
    assert_int_equal(hello_decode(buf_data(&out), out.len, &back), SYM_EPROTO);
    buf_data(&out)[4] = 3; /* of a later format only that is known */
    assert_int_equal(hello_decode(buf_data(&out), out.len, &back), 0);
    assert_int_equal(back.format, 3);
    assert_int_equal(back.from, 0);
    buf_data(&out)[0] ^= 1;
    assert_int_equal(hello_decode(buf_data(&out), out.len, &back), SYM_EPROTO);
    buf_clear(&out);

    /* Of one that has moved; the others' are as they were before there was that. */
    h.format = HELLO_FORMAT_MOVED;
    h.moves = 3;
    assert_int_equal(hello_encode(&h, &out), 0);
    assert_true(out.len <= FRAME_CONTROL_MAX);
    assert_int_equal(hello_decode(buf_data(&out), out.len, &back), 0);
    assert_memory_equal(&h, &back, sizeof h);
    for (size_t i = out.len - 8; i < out.len; i++) {
        assert_int_equal(hello_decode(buf_data(&out), i, &back), SYM_EPROTO);
    }
    buf_data(&out)[4] = HELLO_FORMAT; /* which has no room for it */
    assert_int_equal(hello_decode(buf_data(&out), out.len, &back), SYM_EPROTO);
    assert_int_equal(hello_decode(buf_data(&out), out.len - 8, &back), 0);
    assert_int_equal(back.moves, 0);
    buf_data(&out)[4] = HELLO_FORMAT_MOVED;
    buf_append(&out, "x", 1);
    assert_int_equal(hello_decode(buf_data(&out), out.len, &back), SYM_EPROTO);
    memset(buf_data(&out) + out.len - 9, 0, 8); /* moved, and never */
    assert_int_equal(hello_decode(buf_data(&out), out.len - 1, &back), SYM_EPROTO);
    buf_clear(&out);

    assert_int_equal(welcome_encode(&w, &out), 0);
    assert_int_equal(welcome_decode(buf_data(&out), out.len, &w2), 0);
    assert_int_equal(w2.id, 1);
    assert_true(w2.starts == 1ull << 50);
    for (size_t i = 0; i < out.len; i++) {
        assert_int_equal(welcome_decode(buf_data(&out), i, &w2), SYM_EPROTO);
    }
    buf_clear(&out);

    const int kept[] = {
        SYM_EDENIED, SYM_ENOTFOUND, SYM_ECONFLICT, SYM_EINVAL, SYM_EBUSY, SYM_EPROTO, SYM_EIO};
    for (size_t i = 0; i < sizeof kept / sizeof kept[0]; i++) {
        struct refusal r = {.code = kept[i]}, r2;
        memset(r.reason, 'r', sizeof r.reason - 1);
        assert_int_equal(refusal_encode(&r, &out), 0);
        assert_int_equal(refusal_decode(buf_data(&out), out.len, &r2), 0);
        assert_int_equal(r2.code, kept[i] == SYM_EIO ? SYM_EPROTO : kept[i]);
        assert_string_equal(r2.reason, r.reason);
        for (size_t k = 0; k < out.len; k++) {
            assert_int_equal(refusal_decode(buf_data(&out), k, &r2), SYM_EPROTO);
        }
        buf_clear(&out);
    }
    fault_after(0, false);
    buf_free(&out);
    assert_int_equal(hello_encode(&h, &out), SYM_ENOMEM);
    fault_end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_and_chunks),
        cmocka_unit_test(pieces_of_areas),
        cmocka_unit_test(precedence),
        cmocka_unit_test(bounded_queue),
        cmocka_unit_test(bad_heads),
        cmocka_unit_test(memory_follows_bytes),
        cmocka_unit_test(callee_may_stop),
        cmocka_unit_test(broken_on_the_way),
        cmocka_unit_test(without_memory),
        cmocka_unit_test(where_they_are),
        cmocka_unit_test(hellos),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
