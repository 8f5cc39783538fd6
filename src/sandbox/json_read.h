/* JSON read token by token, in place: nothing is copied and nothing allocated. Strict (RFC 8259): one value, no commas
 * too many, strings in UTF-8. Any bytes may be given. */
#ifndef SYM_SANDBOX_JSON_READ_H
#define SYM_SANDBOX_JSON_READ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { JSON_DEPTH_MAX = 32 };

enum json_token {
    JSON_BAD, /* not JSON, or deeper than JSON_DEPTH_MAX; all further tokens are this one */
    JSON_END, /* behind the value */
    JSON_OBJECT,
    JSON_ARRAY,
    JSON_CLOSE, /* of the innermost object or array */
    JSON_KEY,   /* text as with a string; the value follows */
    JSON_STRING,
    JSON_INTEGER, /* fits an int64_t and has neither fraction nor exponent */
    JSON_NUMBER,
    JSON_TRUE,
    JSON_FALSE,
    JSON_NULL
};

struct json_reader {
    const uint8_t *p, *end;
    unsigned depth;
    uint8_t expect;                 /* private */
    bool in_object[JSON_DEPTH_MAX]; /* private */
    const uint8_t *text;            /* JSON_KEY, JSON_STRING: between the quotes, as it stands there */
    size_t n;
    bool escaped; /* there are escapes in it: see json_unescape */
    int64_t integer;
    double number;
};

void json_begin(struct json_reader *r, const void *data, size_t n);
enum json_token json_next(struct json_reader *r);
/* Writes what the reader's text means to @out, which has room for its @n bytes, and returns how many it took. */
size_t json_unescape(const struct json_reader *r, uint8_t *out);
/* Behind the value whose first token @t has just been read. False when it is not JSON. */
bool json_skip(struct json_reader *r, enum json_token t);
/* True if the key or string means exactly @s (which needs no escapes). Here, so that the length of a literal is known
 * where it is compared: there are some dozens of these to a call of a policy. */
static inline bool json_is(const struct json_reader *r, const char *s)
{
    return r->n == strlen(s) && !r->escaped && memcmp(r->text, s, r->n) == 0;
}

#endif
