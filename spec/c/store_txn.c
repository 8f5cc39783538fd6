/* Encoding and decoding of txns and packs: round trips, limits, hostile bytes, no memory. */
#include "store_support.h"

#include "base_fault.h"
#include "base/buf.c"

static struct txn *new_txn(void)
{
    struct txn *t = calloc(1, sizeof *t);
    assert_non_null(t);
    return t;
}

static void sample(struct txn *t)
{
    memset(t, 0, sizeof *t);
    memcpy(t->id.bytes, "0123456789abcdef", 16);
    t->id.seq = 0x1122334455667788;
    t->id.since = 0x99aabbccddeeff;
    t->cmps[0] = cmp_value("a", "value");
    t->cmps[1] = cmp_number(CMP_CREATE_REVISION, "b", 7);
    t->cmps[2] = cmp_number(CMP_MOD_REVISION, "c", UINT64_MAX);
    t->cmps[3] = cmp_number(CMP_ABSENT, "d", 0);
    t->cmps[4] = cmp_number(CMP_PREFIX_REVISION, "", 9);
    t->cmps[5] = cmp_number(CMP_PREFIX_COUNT, "/x/", 10);
    t->n_cmps = 6;
    t->ops[0] = op_put("key", "");
    t->ops[1] = op_put("another", "with a value");
    t->ops[2] = op_del("key");
    t->n_ops = 3;
}

static bool same_slice(struct slice a, struct slice b)
{
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

static void assert_same_txn(const struct txn *a, const struct txn *b)
{
    assert_memory_equal(a->id.bytes, b->id.bytes, 16);
    assert_int_equal(a->id.seq, b->id.seq);
    assert_int_equal(a->id.since, b->id.since);
    assert_int_equal(a->n_cmps, b->n_cmps);
    assert_int_equal(a->n_ops, b->n_ops);
    for (unsigned i = 0; i < a->n_cmps; i++) {
        assert_int_equal(a->cmps[i].kind, b->cmps[i].kind);
        assert_true(same_slice(a->cmps[i].key, b->cmps[i].key));
        assert_true(same_slice(a->cmps[i].value, b->cmps[i].value));
        assert_int_equal(a->cmps[i].number, b->cmps[i].number);
    }
    for (unsigned i = 0; i < a->n_ops; i++) {
        assert_int_equal(a->ops[i].kind, b->ops[i].kind);
        assert_true(same_slice(a->ops[i].key, b->ops[i].key));
        assert_true(same_slice(a->ops[i].value, b->ops[i].value));
    }
}

static void round_trip(void **state)
{
    (void)state;
    struct txn *a = new_txn(), *b = new_txn();
    struct buf out = {0};
    sample(a);
    OK(txn_encode(a, &out));
    OK(txn_decode(buf_data(&out), out.len, b));
    assert_same_txn(a, b);
    /* Every shorter length, and one more byte, is refused. */
    for (size_t n = 0; n < out.len; n++) {
        uint8_t *cut = malloc(n + (n == 0)); /* ASan sees a read behind it */
        memcpy(cut, buf_data(&out), n);
        FAILS(SYM_EPROTO, txn_decode(cut, n, b));
        free(cut);
    }
    OK(buf_append(&out, "", 1));
    FAILS(SYM_EPROTO, txn_decode(buf_data(&out), out.len, b));
    buf_free(&out);
    free(a);
    free(b);
}

static void ids(void **state)
{
    (void)state;
    struct txn *t = new_txn();
    struct txn_id id = {.bytes = "fedcba9876543210", .seq = 5, .since = UINT64_MAX}, got;
    struct buf out = {0};
    assert_false(txn_has_id(&t->id));
    t->id.since = 3;
    assert_false(txn_has_id(&t->id));
    OK(txn_encode(t, &out));
    OK(txn_peek_id(buf_data(&out), out.len, &got));
    assert_false(txn_has_id(&got));
    assert_int_equal(got.since, 3);
    OK(txn_set_id(buf_data(&out), out.len, &id));
    OK(txn_decode(buf_data(&out), out.len, t));
    assert_memory_equal(t->id.bytes, id.bytes, 16);
    assert_int_equal(t->id.seq, 5);
    assert_int_equal(t->id.since, UINT64_MAX);
    assert_true(txn_has_id(&t->id));
    FAILS(SYM_EPROTO, txn_peek_id(buf_data(&out), 33, &got));
    FAILS(SYM_EPROTO, txn_set_id(buf_data(&out), 33, &got));
    buf_free(&out);
    free(t);
}

static void limits(void **state)
{
    (void)state;
    struct txn *t = new_txn(), *back = new_txn();
    struct buf out = {0};
    uint8_t *big = calloc(1, VALUE_MAX + 1);
    struct slice whole_key = {big, KEY_MAX}, long_key = {big, KEY_MAX + 1};

    t->n_ops = 1;
    t->ops[0] = (struct txn_op){OP_PUT, whole_key, {big, VALUE_MAX}};
    OK(txn_encode(t, &out));
    OK(txn_decode(buf_data(&out), out.len, back));
    assert_int_equal(back->ops[0].value.n, VALUE_MAX);
    size_t held = out.len;

    /* What is refused leaves the buffer as it was. */
    t->ops[0].value.n = VALUE_MAX + 1;
    FAILS(SYM_ETOOBIG, txn_encode(t, &out));
    t->ops[0] = (struct txn_op){OP_PUT, long_key, {big, 1}};
    FAILS(SYM_ETOOBIG, txn_encode(t, &out));
    t->ops[0] = op_del("");
    FAILS(SYM_EINVAL, txn_encode(t, &out));
    t->ops[0] = (struct txn_op){.kind = 3, .key = str("k")};
    FAILS(SYM_EINVAL, txn_encode(t, &out));
    t->ops[0] = (struct txn_op){OP_PUT, whole_key, {big, VALUE_MAX}};
    t->ops[1] = (struct txn_op){OP_PUT, whole_key, {big, VALUE_MAX / 2}};
    t->n_ops = 2;
    FAILS(SYM_ETOOBIG, txn_encode(t, &out));
    t->n_ops = TXN_OPS_MAX + 1;
    FAILS(SYM_ETOOBIG, txn_encode(t, &out));
    t->n_ops = 0;
    t->n_cmps = TXN_CMPS_MAX + 1;
    FAILS(SYM_ETOOBIG, txn_encode(t, &out));
    t->n_cmps = 1;
    t->cmps[0] = cmp_number(CMP_ABSENT, "", 0);
    FAILS(SYM_EINVAL, txn_encode(t, &out));
    t->cmps[0] = (struct txn_cmp){.kind = 9, .key = str("k")};
    FAILS(SYM_EINVAL, txn_encode(t, &out));
    assert_int_equal(out.len, held);

    t->n_cmps = TXN_CMPS_MAX;
    t->n_ops = TXN_OPS_MAX;
    for (unsigned i = 0; i < TXN_CMPS_MAX; i++) {
        t->cmps[i] = cmp_number(CMP_ABSENT, "k", 0);
    }
    for (unsigned i = 0; i < TXN_OPS_MAX; i++) {
        t->ops[i] = op_put("k", "v");
    }
    buf_clear(&out);
    OK(txn_encode(t, &out));
    OK(txn_decode(buf_data(&out), out.len, back));
    assert_int_equal(back->n_cmps, TXN_CMPS_MAX);
    assert_int_equal(back->n_ops, TXN_OPS_MAX);
    buf_free(&out);
    free(big);
    free(t);
    free(back);
}

/* --- packs --- */

struct seen {
    unsigned n;
    unsigned stop_at;
    size_t bytes;
};

static int see(void *arg, const uint8_t *txn, size_t len)
{
    struct seen *seen = arg;
    (void)txn;
    seen->n++;
    seen->bytes += len;
    return seen->n == seen->stop_at ? 42 : 0;
}

static void packs(void **state)
{
    (void)state;
    struct txn *t = new_txn();
    struct packer p = {0};
    packer_begin(&p);
    packer_end(&p);
    assert_int_equal(p.pack.len % 8, 0);
    OK(pack_check(buf_data(&p.pack), p.pack.len)); /* an empty one is fine */

    for (unsigned n = 1; n < 20; n++) {
        size_t bytes = 0;
        packer_begin(&p);
        for (unsigned i = 0; i < n; i++) {
            sample(t);
            t->n_ops = i % 4;
            t->ops[3] = op_put("k", "v");
            packer_add(&p, t);
            bytes += p.txn.len;
        }
        packer_end(&p);
        assert_int_equal(p.pack.len % 8, 0);
        struct seen seen = {0};
        OK(pack_each(buf_data(&p.pack), p.pack.len, see, &seen));
        assert_int_equal(seen.n, n);
        assert_int_equal(seen.bytes, bytes);
        OK(pack_check(buf_data(&p.pack), p.pack.len));
        seen = (struct seen){.stop_at = n};
        assert_int_equal(pack_each(buf_data(&p.pack), p.pack.len, see, &seen), 42);

        /* Every cut, another version, another count, padding that is not zero. */
        for (size_t len = 0; len < p.pack.len; len++) {
            assert_int_equal(pack_check(buf_data(&p.pack), len), SYM_EPROTO);
        }
        uint8_t *data = buf_data(&p.pack);
        data[0]++;
        FAILS(SYM_EPROTO, pack_check(data, p.pack.len));
        data[0]--;
        data[4]++;
        FAILS(SYM_EPROTO, pack_check(data, p.pack.len));
        data[4] -= 2;
        FAILS(SYM_EPROTO, pack_check(data, p.pack.len));
        data[4]++;
        bool padded = (bytes + 8 + 4 * (size_t)n) % 8 != 0;
        data[p.pack.len - 1]++;
        if (padded) {
            FAILS(SYM_EPROTO, pack_check(data, p.pack.len));
        }
        data[p.pack.len - 1]--;
        OK(pack_check(data, p.pack.len));
    }

    /* An operation of a later version, in the last txn. */
    memset(t, 0, sizeof *t);
    t->n_ops = 1;
    t->ops[0] = op_del("k");
    packer_begin(&p);
    packer_add(&p, t);
    size_t at = p.pack.len + 4 + 34;
    packer_add(&p, t);
    packer_end(&p);
    OK(pack_check(buf_data(&p.pack), p.pack.len));
    buf_data(&p.pack)[at] = 3;
    FAILS(SYM_EPROTO, pack_check(buf_data(&p.pack), p.pack.len));
    packer_free(&p);
    free(t);
}

static void full_pack(void **state)
{
    (void)state;
    struct buf pack = {0};
    uint8_t *big = calloc(1, TXN_MAX + 1);
    OK(pack_begin(&pack));
    FAILS(SYM_ETOOBIG, pack_add(&pack, big, TXN_MAX + 1));
    OK(pack_add(&pack, big, TXN_MAX));
    size_t held = pack.len;
    FAILS(SYM_ETOOBIG, pack_add(&pack, big, TXN_MAX));
    assert_int_equal(pack.len, held);
    OK(pack_add(&pack, big, PACK_MAX - held - 4 - 7));
    OK(pack_end(&pack, 2));
    assert_true(pack.len <= PACK_MAX);
    struct seen seen = {0};
    OK(pack_each(buf_data(&pack), pack.len, see, &seen));
    assert_int_equal(seen.n, 2);
    buf_free(&pack);
    free(big);
}

/* What decodes encodes to the same bytes again: there is one form of each. */
static void hostile(void **state)
{
    (void)state;
    struct txn *t = new_txn();
    struct buf out = {0}, again = {0};
    sample(t);
    OK(txn_encode(t, &out));
    unsigned good = 0;
    for (unsigned round = 0; round < 200000; round++) {
        size_t n = out.len;
        uint8_t *data = malloc(n);
        memcpy(data, buf_data(&out), n);
        for (uint64_t k = rnd(3) + 1; k > 0; k--) {
            data[rnd(n)] = (uint8_t)rnd(256);
        }
        n -= rnd(8) == 0 ? rnd(n) : 0;
        if (txn_decode(data, n, t) == 0) {
            good++;
            buf_clear(&again);
            OK(txn_encode(t, &again));
            assert_int_equal(again.len, n);
            assert_memory_equal(buf_data(&again), data, n);
        }
        free(data);
    }
    assert_true(good > 1000);
    buf_free(&out);
    buf_free(&again);
    free(t);
}

static void no_memory(void **state)
{
    (void)state;
    struct txn *t = new_txn();
    sample(t);
    t->ops[2] = (struct txn_op){OP_PUT, str("k"), {(const uint8_t *)t, sizeof *t}};
    for (int what = 0;; what++) {
        struct buf txn = {0}, pack = {0};
        fault_after(what, false);
        int rv = txn_encode(t, &txn);
        rv = rv != 0 ? rv : pack_begin(&pack);
        rv = rv != 0 ? rv : pack_add(&pack, buf_data(&txn), txn.len);
        rv = rv != 0 ? rv : pack_end(&pack, 1);
        bool hit = fault_end();
        assert_int_equal(rv, hit ? SYM_ENOMEM : 0);
        buf_free(&txn);
        buf_free(&pack);
        if (!hit) {
            assert_true(what > 4);
            break;
        }
    }
    free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),
        cmocka_unit_test(ids),
        cmocka_unit_test(limits),
        cmocka_unit_test(packs),
        cmocka_unit_test(full_pack),
        cmocka_unit_test(hostile),
        cmocka_unit_test(no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
