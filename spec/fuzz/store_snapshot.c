/* A snapshot's bytes, which come from another manager or out of a backup file: their digest is put right
 * first, or nothing would ever get past it. */
#include "crypto/crypto.h"
#include "store/snapshot.h"

#include <stdlib.h>
#include <string.h>

static int see_key(void *arg, const struct kv *kv)
{
    uint64_t *sum = arg;
    for (size_t i = 0; i < kv->key.n; i++) {
        *sum += kv->key.p[i];
    }
    for (size_t i = 0; i < kv->value.n; i++) {
        *sum += kv->value.p[i];
    }
    return 0;
}

static int see_entry(void *arg, uint64_t index, struct slice entry)
{
    return dedup_read(arg, index, entry.p, entry.n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    uint8_t *copy = malloc(n + SHA256_LEN);
    struct snap_head head;
    struct dedup dedup;
    struct rd r;
    uint64_t sum = 0;
    if (copy == NULL) {
        return 0;
    }
    memcpy(copy, data, n);
    if (crypto_sha256(copy, n, copy + n) != 0) {
        abort();
    }
    dedup_init(&dedup);
    if (snap_check(copy, n + SHA256_LEN, &r, &head) == 0 && snap_keys(&r, &head, see_key, &sum) == 0 &&
        snap_entries(&r, &head, see_entry, &dedup) == 0 &&
        snap_each(copy, n + SHA256_LEN, see_key, &sum) != 0) {
        abort();
    }
    (void)snap_peek_index(copy, n);
    dedup_free(&dedup);
    free(copy);
    return 0;
}
