#include "base/buf.h"

#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint8_t *buf_reserve(struct buf *b, size_t n)
{
    if (n > SIZE_MAX / 4 || b->len > SIZE_MAX / 4) {
        err_setf(SYM_ENOMEM, "buffer of %zu bytes", n);
        return NULL;
    }
    if (b->base != NULL && b->cap - b->off - b->len >= n) {
        return b->base + b->off + b->len;
    }
    /* Moving to the front is cheap when it frees at least as much as it copies. */
    if (b->base != NULL && b->cap - b->len >= n && b->off >= b->len) {
        if (b->len > 0) {
            memmove(b->base, b->base + b->off, b->len);
        }
        b->off = 0;
        return b->base + b->len;
    }
    /* At least half of it is free afterwards: a long queue that moves a little at a time is not copied at
     * each step. */
    size_t cap = b->cap < 64 ? 64 : b->cap;
    while (cap < b->len + n || cap / 2 < b->len) {
        cap *= 2;
    }
    uint8_t *base = malloc(cap);
    if (base == NULL) {
        err_setf(SYM_ENOMEM, "buffer of %zu bytes", cap);
        return NULL;
    }
    if (b->base != NULL) {
        memcpy(base, b->base + b->off, b->len);
    }
    free(b->base);
    b->base = base;
    b->off = 0;
    b->cap = cap;
    return base + b->len;
}

int buf_append(struct buf *b, const void *data, size_t n)
{
    if (n == 0) {
        return 0;
    }
    uint8_t *to = buf_reserve(b, n);
    if (to == NULL) {
        return SYM_ENOMEM;
    }
    memcpy(to, data, n);
    b->len += n;
    return 0;
}

int buf_appendf(struct buf *b, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (n < 0) {
        return err_setf(SYM_EINVAL, "bad format");
    }
    uint8_t *to = buf_reserve(b, (size_t)n + 1);
    if (to == NULL) {
        return SYM_ENOMEM;
    }
    va_start(args, fmt);
    vsnprintf((char *)to, (size_t)n + 1, fmt, args);
    va_end(args);
    b->len += (size_t)n;
    return 0;
}

int buf_decimal(struct buf *b, uint64_t number)
{
    char digits[20];
    size_t at = sizeof digits;
    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    return buf_append(b, digits + at, sizeof digits - at);
}

void buf_consume(struct buf *b, size_t n)
{
    if (n >= b->len) {
        b->off = b->len = 0;
    } else {
        b->off += n;
        b->len -= n;
    }
}

uint8_t *buf_take(struct buf *b, size_t *len)
{
    uint8_t *nul = buf_reserve(b, 1);
    if (nul == NULL) {
        return NULL;
    }
    *nul = '\0';
    if (b->off > 0) {
        memmove(b->base, b->base + b->off, b->len + 1);
    }
    uint8_t *data = b->base;
    *len = b->len;
    *b = (struct buf){0};
    return data;
}

void buf_trim(struct buf *b, size_t keep)
{
    if (b->cap > keep) {
        buf_free(b);
    } else {
        buf_clear(b);
    }
}

void buf_free(struct buf *b)
{
    free(b->base);
    *b = (struct buf){0};
}
