/* Datagrams and pieces of a full exchange as bytes. */
#include "check.h"

#include "gossip/swim_wire.h"

#include <stdlib.h>
#include <string.h>

static const uint8_t sig[SWIM_SIG_MAX] = {0x30, 0x45};
static const uint8_t meta[SWIM_META_MAX] = {7};

static struct swim_id id(uint8_t first)
{
    return (struct swim_id){{first, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}};
}

static struct claim_view claim(uint8_t family, uint8_t meta_len, uint8_t sig_len)
{
    return (struct claim_view){.id = id(9),
        .incarnation = 0x1122334455667788,
        .left = family == 6,
        .addr = {.family = family, .port = 37065, .ip = {10, 0, 0, 1}},
        .meta = meta,
        .sig = sig,
        .meta_len = meta_len,
        .sig_len = sig_len};
}

static void heads(void **state)
{
    (void)state;
    for (int type = WIRE_PING; type <= WIRE_GOSSIP; type++) {
        struct buf b = {0};
        struct wr w = wr_init(&b);
        struct rd r;
        struct wire_head back, h = {.type = (enum wire_type)type,
                                   .want = type % 2 == 0,
                                   .quiet = type > 2,
                                   .seq = 0xdeadbeef,
                                   .incarnation = UINT64_MAX,
                                   .digest = 77,
                                   .target = id(3),
                                   .wait_ms = 180};
        wire_put_head(&w, &h);
        assert_int_equal(b.len, WIRE_HEAD_LEN + (type == WIRE_PING_REQ ? 18 : 0));
        assert_true(wire_datagram(buf_data(&b), b.len, &back, &r));
        assert_true(rd_done(&r));
        assert_int_equal(back.type, type);
        assert_int_equal(back.want, h.want);
        assert_int_equal(back.quiet, h.quiet);
        assert_int_equal(back.seq, 0xdeadbeef);
        assert_true(back.incarnation == UINT64_MAX && back.digest == 77);
        if (type == WIRE_PING_REQ) {
            assert_true(swim_id_eq(&back.target, &h.target));
            assert_int_equal(back.wait_ms, 180);
        }
        for (size_t n = 0; n < b.len; n++) {
            assert_false(wire_datagram(buf_data(&b), n, &back, &r));
        }
        for (unsigned byte = 0; byte < 3; byte++) { /* version, type, flags */
            uint8_t was = buf_data(&b)[byte];
            buf_data(&b)[byte] = 0x40;
            assert_false(wire_datagram(buf_data(&b), b.len, &back, &r));
            buf_data(&b)[byte] = was;
        }
        buf_free(&b);
    }
}

static void claims(void **state)
{
    (void)state;
    static const struct {
        uint8_t family, meta, sig;
    } kinds[] = {{4, 0, 1}, {6, SWIM_META_MAX, SWIM_SIG_MAX}, {4, 24, 71}};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        struct claim_view v = claim(kinds[i].family, kinds[i].meta, kinds[i].sig);
        struct claim *c = claim_new(&v);
        struct buf b = {0};
        struct wr w = wr_init(&b);
        struct wire_record back;
        assert_non_null(c);
        wire_put_claim(&w, &v);
        assert_int_equal(b.len, wire_claim_len(c));
        assert_true(b.len <= WIRE_CLAIM_MAX);
        struct rd r = rd_init(buf_data(&b), b.len);
        assert_true(wire_get(&r, &back));
        assert_true(rd_done(&r));
        assert_false(wire_get(&r, &back));
        assert_int_equal(back.kind, WIRE_CLAIM);
        assert_true(swim_id_eq(&back.id, &v.id));
        assert_true(claim_same(c, &back.claim));
        assert_int_equal(back.claim.sig_len, v.sig_len);
        assert_memory_equal(back.claim.sig, sig, v.sig_len);
        for (size_t n = 1; n < b.len; n++) {
            r = rd_init(buf_data(&b), n);
            assert_false(wire_get(&r, &back));
            assert_true(r.bad);
        }
        claim_free(c);
        buf_free(&b);
    }
}

static void accusations(void **state)
{
    (void)state;
    struct swim_id accusers[WIRE_ACCUSERS_MAX + 1], of = id(1);
    struct wire_record back;
    memset(accusers, 5, sizeof accusers);
    for (unsigned n = 0; n <= WIRE_ACCUSERS_MAX + 1; n++) {
        struct buf b = {0};
        struct wr w = wr_init(&b);
        wire_put_suspect(&w, &of, 8, accusers, n);
        struct rd r = rd_init(buf_data(&b), b.len);
        bool fits = n >= 1 && n <= WIRE_ACCUSERS_MAX;
        assert_int_equal(wire_get(&r, &back), fits);
        if (fits) {
            assert_true(b.len <= WIRE_SUSPECT_MAX);
            assert_int_equal(back.n_accusers, n);
            assert_memory_equal(back.accusers, accusers, (size_t)n * SWIM_ID_LEN);
        }
        buf_clear(&b);
        wire_put_dead(&w, &of, 9);
        assert_int_equal(b.len, WIRE_DEAD_LEN);
        r = rd_init(buf_data(&b), b.len);
        assert_true(wire_get(&r, &back));
        assert_int_equal(back.kind, WIRE_DEAD);
        assert_int_equal(back.incarnation, 9);
        buf_free(&b);
    }
}

/* A claim with one byte changed is either refused or says the same when it is written again. */
static void impossible_claims(void **state)
{
    (void)state;
    struct claim_view v = claim(4, 3, 4);
    struct buf b = {0};
    struct wr w = wr_init(&b);
    wire_put_claim(&w, &v);
    uint8_t *p = buf_data(&b);
    struct wire_record back;
    const size_t flags = 25, port = 26, meta_at = 32, sig_at = 36;
    static const struct {
        size_t at;
        uint8_t value;
    } bad[] = {
        {0, 0}, {0, 4}, {flags, 4}, {meta_at, SWIM_META_MAX + 1}, {sig_at, 0}, {sig_at, SWIM_SIG_MAX + 1}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        uint8_t was = p[bad[i].at];
        p[bad[i].at] = bad[i].value;
        struct rd r = rd_init(p, b.len);
        assert_false(wire_get(&r, &back));
        p[bad[i].at] = was;
    }
    p[port] = p[port + 1] = 0;
    struct rd r = rd_init(p, b.len);
    assert_false(wire_get(&r, &back));
    buf_free(&b);
}

static void whole_or_not_at_all(void **state)
{
    (void)state;
    struct claim_view v = claim(4, 3, 4);
    struct swim_id of = id(2);
    struct buf b = {0};
    struct wr w = wr_init(&b);
    struct wire_head h = {.type = WIRE_GOSSIP}, back;
    struct rd r;
    struct wire_record record;
    wire_put_head(&w, &h);
    wire_put_claim(&w, &v);
    wire_put_dead(&w, &of, 1);
    assert_true(wire_datagram(buf_data(&b), b.len, &back, &r));
    assert_true(wire_get(&r, &record) && record.kind == WIRE_CLAIM);
    assert_true(wire_get(&r, &record) && record.kind == WIRE_DEAD);
    assert_false(wire_get(&r, &record));
    assert_false(wire_datagram(buf_data(&b), b.len - 1, &back, &r));
    assert_false(wire_piece(buf_data(&b), b.len, &r));
    /* Too long, though each part of it is right. */
    while (b.len <= SWIM_DATAGRAM_MAX) {
        wire_put_dead(&w, &of, 1);
    }
    assert_false(wire_datagram(buf_data(&b), b.len, &back, &r));

    buf_clear(&b);
    wire_put_piece(&w);
    assert_true(wire_piece(buf_data(&b), b.len, &r));
    wire_put_claim(&w, &v);
    assert_true(wire_piece(buf_data(&b), b.len, &r));
    assert_false(wire_datagram(buf_data(&b), b.len, &back, &r));
    while (b.len <= SWIM_PIECE_MAX) {
        wire_put_claim(&w, &v);
    }
    assert_false(wire_piece(buf_data(&b), b.len, &r));
    assert_false(wire_piece(NULL, 0, &r));
    buf_free(&b);
}

/* Every field is signed: no two claims that differ have one text. */
static void signed_text(void **state)
{
    (void)state;
    uint8_t texts[10][CLAIM_TEXT_MAX];
    size_t lens[10], n = 0;
    struct claim_view v = claim(4, 3, 4), u = v;
    lens[n] = claim_text(&u, "c", 1, texts[n]);
    n++;
    lens[n] = claim_text(&u, "d", 1, texts[n]);
    n++;
    lens[n] = claim_text(&u, NULL, 0, texts[n]);
    n++;
    u = v, u.id.b[15]++;
    lens[n] = claim_text(&u, "c", 1, texts[n]);
    n++;
    u = v, u.incarnation++;
    lens[n] = claim_text(&u, "c", 1, texts[n]);
    n++;
    u = v, u.left = true;
    lens[n] = claim_text(&u, "c", 1, texts[n]);
    n++;
    u = v, u.addr.family = 6;
    lens[n] = claim_text(&u, "c", 1, texts[n]);
    n++;
    u = v, u.addr.port++;
    lens[n] = claim_text(&u, "c", 1, texts[n]);
    n++;
    u = v, u.addr.ip[3]++;
    lens[n] = claim_text(&u, "c", 1, texts[n]);
    n++;
    u = v, u.meta_len--;
    lens[n] = claim_text(&u, "c", 1, texts[n]);
    n++;
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < i; j++) {
            assert_false(lens[i] == lens[j] && memcmp(texts[i], texts[j], lens[i]) == 0);
        }
    }
    char whole[SWIM_CLUSTER_MAX] = {0};
    v = claim(6, SWIM_META_MAX, 1);
    assert_int_equal(claim_text(&v, whole, sizeof whole, texts[0]), CLAIM_TEXT_MAX);
}

static void ids(void **state)
{
    (void)state;
    struct swim_id a = id(200), b;
    char text[27];
    swim_id_text(&a, text);
    assert_int_equal(strlen(text), 26);
    OK(swim_id_parse(text, &b));
    assert_true(swim_id_eq(&a, &b));
    FAILS(SYM_EINVAL, swim_id_parse("too short", &b));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads),
        cmocka_unit_test(claims),
        cmocka_unit_test(accusations),
        cmocka_unit_test(impossible_claims),
        cmocka_unit_test(whole_or_not_at_all),
        cmocka_unit_test(signed_text),
        cmocka_unit_test(ids),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
