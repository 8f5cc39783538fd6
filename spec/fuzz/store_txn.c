/* Txns and packs, which come in log entries and from other nodes. The first byte says which. What decodes has
 * one form: it encodes to the same bytes. */
#include "store/txn.h"

#include <stdlib.h>
#include <string.h>

static struct txn txn;

static int each(void *arg, const uint8_t *data, size_t n)
{
    unsigned *count = arg;
    struct txn_id id;
    if (txn_decode(data, n, &txn) == 0) {
        struct buf out = {0};
        if (txn_encode(&txn, &out) != 0 || out.len != n || memcmp(buf_data(&out), data, n) != 0 ||
            txn_peek_id(data, n, &id) != 0 || memcmp(id.bytes, txn.id.bytes, sizeof id.bytes) != 0) {
            abort();
        }
        buf_free(&out);
    } else {
        *count = 1;
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    unsigned bad = 0;
    if (n == 0) {
        return 0;
    }
    if (data[0] % 2 == 0) {
        each(&bad, data + 1, n - 1);
        return 0;
    }
    int walked = pack_each(data + 1, n - 1, each, &bad);
    if ((pack_check(data + 1, n - 1) == 0) != (walked == 0 && bad == 0)) {
        abort();
    }
    return 0;
}
