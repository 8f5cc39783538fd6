/* Bounds-checked binary reading and writing, little endian. Both carry a sticky failure, so that a caller
 * reads or writes a whole record and checks once. */
#ifndef SYM_CODEC_RW_H
#define SYM_CODEC_RW_H

#include "base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A cursor over bytes that it does not own. After a read past the end, @bad is set and every read gives 0 or
 * NULL. */
struct rd {
    const uint8_t *p;
    const uint8_t *end;
    bool bad;
};

static inline struct rd rd_init(const void *data, size_t len)
{
    return (struct rd){data, data == NULL ? data : (const uint8_t *)data + len, false};
}
static inline size_t rd_left(const struct rd *r)
{
    return r->bad ? 0 : (size_t)(r->end - r->p);
}
/* @n bytes in place, or NULL. */
static inline const uint8_t *rd_bytes(struct rd *r, size_t n)
{
    if (r->bad || (size_t)(r->end - r->p) < n) {
        r->bad = true;
        return NULL;
    }
    const uint8_t *p = r->p;
    if (n > 0) {
        r->p += n;
    }
    return p;
}
static inline uint64_t rd_le(struct rd *r, size_t n)
{
    const uint8_t *p = rd_bytes(r, n);
    uint64_t v = 0;
    for (size_t i = 0; p != NULL && i < n; i++) {
        v |= (uint64_t)p[i] << (8 * i);
    }
    return v;
}
static inline uint8_t rd_u8(struct rd *r)
{
    return (uint8_t)rd_le(r, 1);
}
static inline uint16_t rd_u16(struct rd *r)
{
    return (uint16_t)rd_le(r, 2);
}
static inline uint32_t rd_u32(struct rd *r)
{
    return (uint32_t)rd_le(r, 4);
}
static inline uint64_t rd_u64(struct rd *r)
{
    return rd_le(r, 8);
}
/* A u32 length and that many bytes in place; longer than @max is a failure. A zero length gives a non-NULL
 * pointer. */
const uint8_t *rd_blob(struct rd *r, size_t max, size_t *len);
/* True if nothing failed and nothing is left. */
static inline bool rd_done(const struct rd *r)
{
    return !r->bad && r->p == r->end;
}

/* Appends to a buf; after a failed allocation, or a blob longer than a u32 can say, @bad is set and writes do
 * nothing. */
struct wr {
    struct buf *out;
    bool bad;
};
static inline struct wr wr_init(struct buf *out)
{
    return (struct wr){out, false};
}
void wr_u8(struct wr *w, uint8_t v);
void wr_u16(struct wr *w, uint16_t v);
void wr_u32(struct wr *w, uint32_t v);
void wr_u64(struct wr *w, uint64_t v);
void wr_bytes(struct wr *w, const void *data, size_t n);
void wr_blob(struct wr *w, const void *data, size_t n);

/* In-place little-endian access, for headers that are patched after the fact. */
static inline void put_u32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
    p[2] = (uint8_t)(v >> 16);
    p[3] = (uint8_t)(v >> 24);
}
static inline uint32_t get_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

#endif
