/* A growable run of bytes, consumed from the front and appended to at the back. All-zero is a valid empty buffer.
 * A buffer that failed to grow is unchanged. */
#ifndef SYM_BASE_BUF_H
#define SYM_BASE_BUF_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct buf {
    uint8_t *base; /* allocation */
    size_t off;    /* start of what is held */
    size_t len;    /* bytes held */
    size_t cap;    /* size of the allocation */
};

static inline uint8_t *buf_data(const struct buf *b)
{
    return b->base == NULL ? NULL : b->base + b->off;
}

/* Makes room for @n more bytes and returns where they go (buf_data + len); NULL, with SYM_ENOMEM's message, if there is
 * none. What is written there counts after buf_commit. */
uint8_t *buf_reserve(struct buf *b, size_t n);

static inline void buf_commit(struct buf *b, size_t n)
{
    b->len += n;
}

/* 0 or SYM_ENOMEM. */
int buf_append(struct buf *b, const void *data, size_t n);
int buf_appendf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The same without a format, for what is written with every request. */
int buf_decimal(struct buf *b, uint64_t number);
static inline int buf_text(struct buf *b, const char *text)
{
    return buf_append(b, text, strlen(text));
}

/* Drops @n bytes, at most len, from the front. */
void buf_consume(struct buf *b, size_t n);

/* Gives the contents to the caller as one malloc'd, NUL-terminated block (the NUL is not in *len) and leaves the buffer
 * empty; NULL if there is no memory, and then the buffer is unchanged. */
uint8_t *buf_take(struct buf *b, size_t *len);

/* Empties, keeping the allocation. */
static inline void buf_clear(struct buf *b)
{
    b->off = b->len = 0;
}

/* Empties; an allocation of more than @keep bytes is given back, so that one large use is not paid for ever after. */
void buf_trim(struct buf *b, size_t keep);

/* Frees; the buffer is then valid and empty. */
void buf_free(struct buf *b);

#endif
