#include "codec/rw.h"

#include <string.h>

const uint8_t *rd_blob(struct rd *r, size_t max, size_t *len)
{
    uint32_t n = rd_u32(r);
    if (n > max) {
        r->bad = true;
    }
    const uint8_t *p = rd_bytes(r, n);
    *len = p == NULL ? 0 : n;
    return p;
}

static void write_le(struct wr *w, uint64_t v, size_t n)
{
    uint8_t *p = w->bad ? NULL : buf_reserve(w->out, n);
    if (p == NULL) {
        w->bad = true;
        return;
    }
    for (size_t i = 0; i < n; i++) {
        p[i] = (uint8_t)(v >> (8 * i));
    }
    buf_commit(w->out, n);
}

void wr_u8(struct wr *w, uint8_t v)
{
    write_le(w, v, 1);
}

void wr_u16(struct wr *w, uint16_t v)
{
    write_le(w, v, 2);
}

void wr_u32(struct wr *w, uint32_t v)
{
    write_le(w, v, 4);
}

void wr_u64(struct wr *w, uint64_t v)
{
    write_le(w, v, 8);
}

void wr_bytes(struct wr *w, const void *data, size_t n)
{
    if (!w->bad && buf_append(w->out, data, n) != 0) {
        w->bad = true;
    }
}

void wr_blob(struct wr *w, const void *data, size_t n)
{
    if (n > UINT32_MAX) {
        w->bad = true;
    }
    wr_u32(w, (uint32_t)n);
    wr_bytes(w, data, n);
}
