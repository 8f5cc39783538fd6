#include "store/txn.h"

#include "base/err.h"

#include <string.h>

/* A txn: id (16), seq (8), since (8), number of compares (1), number of ops (1), the compares, the ops.
 * A pack: version (1), zeros (3), number of txns (4), each as a length (4) and its bytes, zeros up to a
 * multiple of 8. */
enum { PACK_VERSION = 1, PACK_HEAD = 8, ID_LEN = 32, TXN_HEAD = ID_LEN + 2 };

bool txn_has_id(const struct txn_id *id)
{
    static const uint8_t zero[sizeof id->bytes];
    return id->seq != 0 || memcmp(id->bytes, zero, sizeof zero) != 0;
}

static void read_id(struct rd *r, struct txn_id *id)
{
    const uint8_t *bytes = rd_bytes(r, sizeof id->bytes);
    if (bytes != NULL) {
        memcpy(id->bytes, bytes, sizeof id->bytes);
    }
    id->seq = rd_u64(r);
    id->since = rd_u64(r);
}

int txn_peek_id(const uint8_t *data, size_t n, struct txn_id *id)
{
    struct rd r = rd_init(data, n);
    read_id(&r, id);
    return r.bad || rd_left(&r) < TXN_HEAD - ID_LEN ? err_setf(SYM_EPROTO, "txn of %zu bytes", n) : 0;
}

int txn_set_id(uint8_t *data, size_t n, const struct txn_id *id)
{
    if (n < TXN_HEAD) {
        return err_setf(SYM_EPROTO, "txn of %zu bytes", n);
    }
    memcpy(data, id->bytes, sizeof id->bytes);
    uint64_t numbers[2] = {id->seq, id->since};
    for (size_t i = 0; i < 16; i++) {
        data[16 + i] = (uint8_t)(numbers[i / 8] >> (8 * (i % 8)));
    }
    return 0;
}

unsigned txn_peek_ops(const uint8_t *data, size_t n)
{
    return n < TXN_HEAD ? 0 : data[ID_LEN + 1];
}

/* --- encoding --- */

static int check_key(struct slice key, size_t least)
{
    if (key.n < least) {
        return err_setf(SYM_EINVAL, "empty key");
    }
    if (key.n > KEY_MAX) {
        return err_setf(SYM_ETOOBIG, "key of %zu bytes: at most %d", key.n, KEY_MAX);
    }
    return 0;
}

static int check_value(struct slice value)
{
    return value.n <= VALUE_MAX ? 0
                                : err_setf(SYM_ETOOBIG, "value of %zu bytes: at most %d", value.n, VALUE_MAX);
}

static void write_key(struct wr *w, struct slice key)
{
    wr_u16(w, (uint16_t)key.n);
    wr_bytes(w, key.p, key.n);
}

static int write_cmp(struct wr *w, const struct txn_cmp *c)
{
    bool is_prefix = c->kind == CMP_PREFIX_REVISION || c->kind == CMP_PREFIX_COUNT;
    int rv = check_key(c->key, is_prefix ? 0 : 1);
    if (rv != 0) {
        return rv;
    }
    wr_u8(w, (uint8_t)c->kind);
    write_key(w, c->key);
    switch (c->kind) {
    case CMP_VALUE:
        if ((rv = check_value(c->value)) == 0) {
            wr_blob(w, c->value.p, c->value.n);
        }
        return rv;
    case CMP_CREATE_REVISION:
    case CMP_MOD_REVISION:
    case CMP_PREFIX_REVISION:
    case CMP_PREFIX_COUNT:
        wr_u64(w, c->number);
        return 0;
    case CMP_ABSENT:
        return 0;
    }
    return err_setf(SYM_EINVAL, "compare of kind %d", (int)c->kind);
}

static int write_op(struct wr *w, const struct txn_op *op)
{
    int rv = check_key(op->key, 1);
    if (rv != 0) {
        return rv;
    }
    wr_u8(w, (uint8_t)op->kind);
    write_key(w, op->key);
    switch (op->kind) {
    case OP_PUT:
        if ((rv = check_value(op->value)) == 0) {
            wr_blob(w, op->value.p, op->value.n);
        }
        return rv;
    case OP_DELETE:
        return 0;
    }
    return err_setf(SYM_EINVAL, "operation of kind %d", (int)op->kind);
}

int txn_encode(const struct txn *t, struct buf *out)
{
    size_t start = out->len;
    int rv = 0;
    if (t->n_cmps > TXN_CMPS_MAX || t->n_ops > TXN_OPS_MAX) {
        return err_setf(SYM_ETOOBIG, "%u compares and %u operations: at most %d and %d", t->n_cmps, t->n_ops,
            TXN_CMPS_MAX, TXN_OPS_MAX);
    }
    struct wr w = wr_init(out);
    wr_bytes(&w, t->id.bytes, sizeof t->id.bytes);
    wr_u64(&w, t->id.seq);
    wr_u64(&w, t->id.since);
    wr_u8(&w, (uint8_t)t->n_cmps);
    wr_u8(&w, (uint8_t)t->n_ops);
    for (unsigned i = 0; rv == 0 && i < t->n_cmps; i++) {
        rv = write_cmp(&w, &t->cmps[i]);
    }
    for (unsigned i = 0; rv == 0 && i < t->n_ops; i++) {
        rv = write_op(&w, &t->ops[i]);
    }
    if (rv == 0 && w.bad) {
        rv = SYM_ENOMEM;
    }
    if (rv == 0 && out->len - start > TXN_MAX) {
        rv = err_setf(SYM_ETOOBIG, "transaction of %zu bytes: at most %d", out->len - start, TXN_MAX);
    }
    if (rv != 0) {
        out->len = start;
    }
    return rv;
}

/* --- decoding --- */

static struct slice read_key(struct rd *r, size_t least)
{
    size_t n = rd_u16(r);
    const uint8_t *p = rd_bytes(r, n);
    if (n < least || n > KEY_MAX) {
        r->bad = true;
    }
    return (struct slice){p, r->bad ? 0 : n};
}

static struct slice read_value(struct rd *r)
{
    struct slice value;
    value.p = rd_blob(r, VALUE_MAX, &value.n);
    return value;
}

static void read_cmp(struct rd *r, struct txn_cmp *c)
{
    c->kind = rd_u8(r);
    c->key = read_key(r, c->kind == CMP_PREFIX_REVISION || c->kind == CMP_PREFIX_COUNT ? 0 : 1);
    c->value = (struct slice){NULL, 0};
    c->number = 0;
    switch (c->kind) {
    case CMP_VALUE:
        c->value = read_value(r);
        return;
    case CMP_CREATE_REVISION:
    case CMP_MOD_REVISION:
    case CMP_PREFIX_REVISION:
    case CMP_PREFIX_COUNT:
        c->number = rd_u64(r);
        return;
    case CMP_ABSENT:
        return;
    }
    r->bad = true;
}

static void read_op(struct rd *r, struct txn_op *op)
{
    op->kind = rd_u8(r);
    op->key = read_key(r, 1);
    op->value = (struct slice){NULL, 0};
    switch (op->kind) {
    case OP_PUT:
        op->value = read_value(r);
        return;
    case OP_DELETE:
        return;
    }
    r->bad = true;
}

int txn_decode(const uint8_t *data, size_t n, struct txn *t)
{
    if (n > TXN_MAX) {
        return err_setf(SYM_EPROTO, "txn of %zu bytes", n);
    }
    struct rd r = rd_init(data, n);
    read_id(&r, &t->id);
    t->n_cmps = rd_u8(&r);
    t->n_ops = rd_u8(&r);
    if (t->n_cmps > TXN_CMPS_MAX || t->n_ops > TXN_OPS_MAX) {
        r.bad = true;
    }
    for (unsigned i = 0; !r.bad && i < t->n_cmps; i++) {
        read_cmp(&r, &t->cmps[i]);
    }
    for (unsigned i = 0; !r.bad && i < t->n_ops; i++) {
        read_op(&r, &t->ops[i]);
    }
    return rd_done(&r) ? 0 : err_setf(SYM_EPROTO, "txn is damaged or of a later version");
}

/* --- packs --- */

int pack_begin(struct buf *out)
{
    static const uint8_t head[PACK_HEAD] = {PACK_VERSION};
    return buf_append(out, head, sizeof head);
}

int pack_add(struct buf *out, const uint8_t *txn, size_t n)
{
    if (n > TXN_MAX || out->len + 4 + n + 7 > PACK_MAX) {
        return err_setf(SYM_ETOOBIG, "pack of %zu bytes: at most %d", out->len + 4 + n, PACK_MAX);
    }
    uint8_t *to = buf_reserve(out, 4 + n);
    if (to == NULL) {
        return SYM_ENOMEM;
    }
    put_u32(to, (uint32_t)n);
    memcpy(to + 4, txn, n);
    buf_commit(out, 4 + n);
    return 0;
}

int pack_end(struct buf *out, unsigned n_txns)
{
    static const uint8_t zeros[8];
    int rv = buf_append(out, zeros, (8 - out->len % 8) % 8);
    if (rv == 0) {
        put_u32(buf_data(out) + 4, n_txns);
    }
    return rv;
}

static int bad_pack(const char *what)
{
    return err_setf(SYM_EPROTO, "pack: %s", what);
}

int pack_each(
    const uint8_t *data, size_t n, int (*each)(void *arg, const uint8_t *txn, size_t len), void *arg)
{
    if (n < PACK_HEAD || n > PACK_MAX || n % 8 != 0) {
        return bad_pack("impossible length");
    }
    if (data[0] != PACK_VERSION || data[1] != 0 || data[2] != 0 || data[3] != 0) {
        return bad_pack("unknown version");
    }
    struct rd r = rd_init(data, n);
    rd_bytes(&r, 4);
    uint32_t count = rd_u32(&r);
    for (uint32_t i = 0; i < count; i++) {
        size_t len;
        const uint8_t *txn = rd_blob(&r, TXN_MAX, &len);
        if (txn == NULL) {
            return bad_pack("txns are missing");
        }
        int rv = each(arg, txn, len);
        if (rv != 0) {
            return rv;
        }
    }
    size_t left = rd_left(&r);
    if (left > 7) {
        return bad_pack("bytes behind the last txn");
    }
    while (left-- > 0) {
        if (rd_u8(&r) != 0) {
            return bad_pack("padding is not zero");
        }
    }
    return 0;
}

static int check_txn(void *arg, const uint8_t *txn, size_t len)
{
    return txn_decode(txn, len, arg);
}

int pack_check(const uint8_t *data, size_t n)
{
    struct txn t;
    return pack_each(data, n, check_txn, &t);
}
