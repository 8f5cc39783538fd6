#include "raft/where.h"

#include <string.h>

void where_put(struct wr *w, uint64_t id, uint64_t moves, const char *address)
{
    wr_u64(w, id);
    wr_u64(w, moves);
    wr_blob(w, address, strlen(address));
}

bool where_next(struct rd *r, struct where *out)
{
    size_t n;

    if (rd_left(r) == 0) {
        return false;
    }
    *out = (struct where){.id = rd_u64(r), .moves = rd_u64(r)};
    const uint8_t *text = rd_blob(r, sizeof out->address - 1, &n);
    for (size_t i = 0; i < n && !r->bad; i++) {
        r->bad = text[i] < 0x20 || text[i] == 0x7f;
    }
    if (r->bad) {
        return false;
    }
    memcpy(out->address, text, n);
    return true;
}
