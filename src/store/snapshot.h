/* Reading a snapshot's bytes, in the order: check, keys, entries. Private to src/store. All answer
 * SYM_ECORRUPT to bytes that are not as snap_encode makes them. */
#ifndef SYM_STORE_SNAPSHOT_H
#define SYM_STORE_SNAPSHOT_H

#include "store/state.h"

struct snap_head {
    struct meta meta;
    uint64_t entries;
};

/* Checks the digest and reads the head; @r is then before the first key, and ends where the digest begins. */
int snap_check(const uint8_t *data, size_t n, struct rd *r, struct snap_head *h);
/* Every key, checked and in order; the first non-zero answer of @each stops and is returned. */
int snap_keys(
    struct rd *r, const struct snap_head *h, int (*each)(void *arg, const struct kv *kv), void *arg);
/* Then every dedup entry, likewise, which is for @each to check; and that nothing comes behind them. */
int snap_entries(struct rd *r, const struct snap_head *h,
    int (*each)(void *arg, uint64_t index, struct slice entry), void *arg);

#endif
