/* A transaction: compares, then puts and deletes; the only way to change the state. And a pack: the txns of
 * one log entry. Pure encoding and decoding; what a decoded txn points to lives as long as the bytes it was
 * decoded from.
 *
 * A pack's first byte is its version; an unknown version or operation is SYM_EPROTO from pack_check, *before*
 * applying. Limits: key 1..1088 bytes (a user's 1 KiB and the folder it lives in), value 0..1 MiB, 192
 * compares (a user's 128, those that say who may, and what a decision rests on) and 128 ops, 1.5 MiB a txn, 2 MiB a pack. A pack is padded with
 * zeros to a multiple of 8 bytes.
 */
#ifndef SYM_STORE_TXN_H
#define SYM_STORE_TXN_H

#include "codec/rw.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KEY_MAX = 1088,
    VALUE_MAX = 1 << 20,
    TXN_OPS_MAX = 128,
    TXN_CMPS_MAX = 192, /* what a client may ask, and room for what a decision about it relies on */
    TXN_MAX = 3 << 19,  /* 1.5 MiB */
    PACK_MAX = 2 << 20,
    PACK_TARGET = 256 << 10
};

struct slice {
    const uint8_t *p;
    size_t n;
};

/* Identifies a txn for ever: a retry with the same id is applied once. All zero: no id, no memory of it.
 * @since: the store's revision when it was first sent; a txn whose @since has fallen out of the dedup window
 * and whose id is not remembered is not applied (TXN_UNKNOWN). */
struct txn_id {
    uint8_t bytes[16];
    uint64_t seq;
    uint64_t since;
};

enum cmp_kind {
    CMP_VALUE = 1,       /* value equal to @value (key present) */
    CMP_CREATE_REVISION, /* create_revision equal to @number */
    CMP_MOD_REVISION,    /* mod_revision equal to @number */
    CMP_ABSENT,          /* key absent */
    CMP_PREFIX_REVISION, /* highest mod_revision below prefix @key is at most @number, deletes not seen: use
                            with */
    CMP_PREFIX_COUNT     /* number of keys below prefix @key equal to @number */
};
struct txn_cmp {
    enum cmp_kind kind;
    struct slice key;
    struct slice value;
    uint64_t number;
};

enum op_kind { OP_PUT = 1, OP_DELETE };
struct txn_op {
    enum op_kind kind;
    struct slice key;
    struct slice value;
};

struct txn {
    struct txn_id id;
    unsigned n_cmps, n_ops;
    struct txn_cmp cmps[TXN_CMPS_MAX];
    struct txn_op ops[TXN_OPS_MAX];
};

/* Whether a txn with this id is remembered. */
bool txn_has_id(const struct txn_id *id);
/* The id of an encoded txn, read and overwritten in place (it has a fixed place). SYM_EPROTO when @n bytes
 * cannot hold it. */
int txn_peek_id(const uint8_t *data, size_t n, struct txn_id *id);
int txn_set_id(uint8_t *data, size_t n, const struct txn_id *id);
/* How many operations an encoded txn says that it has; 0 when @n bytes cannot hold that. */
unsigned txn_peek_ops(const uint8_t *data, size_t n);

/* Appends the encoding of @t. SYM_EINVAL or SYM_ETOOBIG (says which limit), SYM_ENOMEM. */
int txn_encode(const struct txn *t, struct buf *out);
/* Decodes exactly @n bytes, checking every limit. SYM_EPROTO. */
int txn_decode(const uint8_t *data, size_t n, struct txn *t);

/* A pack is written by pack_begin (into an empty buffer: a pack is all that it holds), pack_add of encoded
 * txns, pack_end (patches the count, pads). pack_add answers SYM_ETOOBIG, and adds nothing, when the pack
 * would pass PACK_MAX. */
int pack_begin(struct buf *out);
int pack_add(struct buf *out, const uint8_t *txn, size_t n);
int pack_end(struct buf *out, unsigned n_txns);
/* Walks a pack: calls @each with every encoded txn; stops at its first non-zero answer and returns it. */
int pack_each(
    const uint8_t *data, size_t n, int (*each)(void *arg, const uint8_t *txn, size_t len), void *arg);
/* 0 if every txn in it decodes and is known to this version. */
int pack_check(const uint8_t *data, size_t n);

enum txn_status {
    TXN_APPLIED = 0, /* @revision is the one it made, or the store's if it had no ops */
    TXN_CONFLICT,    /* compare number @failed did not hold */
    TXN_UNKNOWN      /* its id is too old to tell whether it was applied before: it was not applied now */
};
struct txn_result {
    uint8_t status;  /* enum txn_status */
    bool repeated;   /* remembered from before */
    uint16_t failed; /* index of the compare, from 0 */
    uint64_t revision;
};

#endif
