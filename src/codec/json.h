/* JSON output, for answers that C writes itself. Reading JSON is Lua's (lua-cjson). */
#ifndef SYM_CODEC_JSON_H
#define SYM_CODEC_JSON_H

#include "base/buf.h"

#include <stdbool.h>

/* True for well-formed UTF-8 (RFC 3629: no surrogates, no overlong forms, up to U+10FFFF). */
bool utf8_valid(const uint8_t *data, size_t n);

/* How many of the @n bytes at @p, before the first that does not, stand for themselves in a JSON string: none below 0x20,
 * no quote, backslash or 0x7f. What is above may be no UTF-8. */
size_t json_plain(const uint8_t *p, size_t n);

/* Appends @data as a quoted JSON string; it must be valid UTF-8. 0 or SYM_ENOMEM. */
int json_string(struct buf *out, const uint8_t *data, size_t n);

/* json_string of any bytes: what is not UTF-8 becomes U+FFFD, one for each byte. For messages that quote. */
int json_lossy(struct buf *out, const char *text, size_t n);

/* Appends "name":"text", or "name_base64":"..." when @data is not UTF-8: bytes survive the way through JSON. */
int json_bytes(struct buf *out, const char *name, const uint8_t *data, size_t n);

#endif
