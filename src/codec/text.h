/* Binary as text: hex, base32 (RFC 4648 lower case, no padding; sorts as the bytes do only in its hex
 * variant, which this is: alphabet 0-9a-v), base36 (fixed width, big endian), base64 (RFC 4648, padded). */
#ifndef SYM_CODEC_TEXT_H
#define SYM_CODEC_TEXT_H

#include <stddef.h>
#include <stdint.h>

/* Writes 2 * n characters and a NUL. */
void hex_encode(const uint8_t *data, size_t n, char *out);
/* @len characters, either case, to exactly @n bytes; SYM_EINVAL. */
int hex_decode(const char *text, size_t len, uint8_t *out, size_t n);

/* base32hex: ceil(8 * n / 5) characters and a NUL. Keeps the order of the bytes. */
void base32_encode(const uint8_t *data, size_t n, char *out);
/* ceil(8 * n / 5) characters to exactly @n bytes; SYM_EINVAL. Strict, so that an id has one spelling: lower case, and
 * the bits behind the last byte are zero. */
int base32_decode(const char *text, size_t len, uint8_t *out, size_t n);

/* Width of @n bytes in base 36: 16 bytes are 25 characters, 32 bytes are 50. */
size_t base36_width(size_t n);
/* base36_width(n) characters, zero-padded, and a NUL. n is at most 64. */
void base36_encode(const uint8_t *data, size_t n, char *out);
/* @len characters, either case, to exactly @n bytes; SYM_EINVAL if the width, a character or the value does
 * not fit. */
int base36_decode(const char *text, size_t len, uint8_t *out, size_t n);

/* 4 * ceil(n / 3) characters and a NUL. */
size_t base64_width(size_t n);
void base64_encode(const uint8_t *data, size_t n, char *out);
/* Strict: padded, no white space. Writes at most 3 * len / 4 bytes to @out and their count to *n; SYM_EINVAL.
 */
int base64_decode(const char *text, size_t len, uint8_t *out, size_t *n);

#endif
