/* The ordered keys on the tables of db.h. Private to src/store.
 *
 * LMDB's keys end at 511 bytes, ours at 1024. A key is cut into chunks: of 511 bytes in DB_KEYS, then of 503
 * in DB_TAILS behind the 8 bytes of a node's number. A chunk that is not full is the end of a key, and its
 * record the key's own; a full one holds the number of the node below, where the rest of the key, which may
 * be empty, is looked up. So records sort as the keys do, and a key of less than 511 bytes, which is nearly
 * every key, is one record under its own name.
 */
#ifndef SYM_STORE_KEYSPACE_H
#define SYM_STORE_KEYSPACE_H

#include "store/db.h"
#include "store/store.h"

enum { KS_LEVELS = 3 };

/* 0, or 1 when the key is absent, or SYM_E*. */
int ks_get(struct db_tx *tx, struct slice key, struct kv *out);

/* What changes keys in one write transaction. */
struct ks_writer {
    struct db_tx *tx;
    struct db_cur *keys, *tails; /* opened when first needed; closed by the transaction's end */
    bool append;                 /* keys come in ascending order, into an empty table */
};
/* As ks_get. A put of the same key right behind it mostly need not go down the tree again. */
int ks_find(struct ks_writer *w, struct slice key, struct kv *out);
/* Puts: 0 when the key was there, 1 when it is new. @create is its create_revision. */
int ks_put(struct ks_writer *w, struct slice key, struct slice value, uint64_t revision, uint64_t *create);
/* As it was elsewhere: with both revisions given. */
int ks_put_as(struct ks_writer *w, const struct kv *kv);
/* 0 with what it was (@create), or 1 when absent. */
int ks_del(struct ks_writer *w, struct slice key, uint64_t *create);

/* A walk in order. A key of 511 bytes or more is put together in the iterator: valid until the next move. */
struct ks_iter {
    struct db_tx *tx;
    struct db_cur *cur[KS_LEVELS];
    uint64_t node[KS_LEVELS];
    int level;
    uint8_t key[KEY_MAX];
};
/* The first key at or above @from (may be empty): 0, 1 at the end, or SYM_E*. The iterator is to be ended
 * whatever the answer. */
int ks_seek(struct ks_iter *it, struct db_tx *tx, struct slice from, struct kv *out);
int ks_next(struct ks_iter *it, struct kv *out);
void ks_end(struct ks_iter *it);

bool slice_begins(struct slice s, struct slice prefix);
int slice_cmp(struct slice a, struct slice b);

#endif
