#include "sandbox/json_read.h"

#include "codec/json.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

enum { VALUE, FIRST_KEY, FIRST_ITEM, COMMA, NOTHING, BROKEN };

enum { NUMBER_MAX = 64 };

void json_begin(struct json_reader *r, const void *data, size_t n)
{
    memset(r, 0, sizeof *r);
    r->p = data;
    r->end = data == NULL ? data : (const uint8_t *)data + n;
    r->expect = VALUE;
}

static enum json_token bad(struct json_reader *r)
{
    r->expect = BROKEN;
    return JSON_BAD;
}

static void skip_blanks(struct json_reader *r)
{
    while (r->p < r->end && (*r->p == ' ' || *r->p == '\n' || *r->p == '\r' || *r->p == '\t')) {
        r->p++;
    }
}

static void value_read(struct json_reader *r)
{
    r->expect = r->depth == 0 ? NOTHING : COMMA;
}

static int hex(uint8_t c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* The four digits at @p, or -1. */
static int32_t unit(const uint8_t *p, const uint8_t *end)
{
    int32_t v = 0;
    if (end - p < 4) {
        return -1;
    }
    for (int i = 0; i < 4; i++) {
        int digit = hex(p[i]);
        if (digit < 0) {
            return -1;
        }
        v = v << 4 | digit;
    }
    return v;
}

/* Length of the escape at @p (its backslash), with what it means, or 0. */
static size_t escape(const uint8_t *p, const uint8_t *end, uint32_t *out)
{
    static const char names[] = "\"\\/bfnrt", means[] = "\"\\/\b\f\n\r\t";
    if (end - p < 2) {
        return 0;
    }
    if (p[1] != 'u') {
        const char *at = p[1] != '\0' ? strchr(names, p[1]) : NULL;
        if (at == NULL) {
            return 0;
        }
        *out = (uint8_t)means[at - names];
        return 2;
    }
    int32_t high = unit(p + 2, end);
    if (high < 0 || (high >= 0xdc00 && high < 0xe000)) {
        return 0;
    }
    *out = (uint32_t)high;
    if (high < 0xd800 || high >= 0xe000) {
        return 6;
    }
    int32_t low = end - p >= 12 && p[6] == '\\' && p[7] == 'u' ? unit(p + 8, end) : -1;
    if (low < 0xdc00 || low >= 0xe000) {
        return 0;
    }
    *out = 0x10000 + (((uint32_t)high - 0xd800) << 10) + ((uint32_t)low - 0xdc00);
    return 12;
}

static bool read_string(struct json_reader *r)
{
    const uint8_t *p = r->p + 1;
    r->text = p;
    r->escaped = false;
    while (p += json_plain(p, (size_t)(r->end - p)), p < r->end && *p != '"') {
        uint32_t meaning;
        size_t n = 1;
        if (*p < 0x20) {
            return false;
        }
        if (*p == '\\') {
            n = escape(p, r->end, &meaning);
            r->escaped = true;
        }
        if (n == 0) {
            return false;
        }
        p += n;
    }
    if (p >= r->end) {
        return false;
    }
    r->n = (size_t)(p - r->text);
    r->p = p + 1;
    return utf8_valid(r->text, r->n);
}

static size_t put_utf8(uint8_t *out, uint32_t c)
{
    if (c < 0x80) {
        out[0] = (uint8_t)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (uint8_t)(0xc0 | c >> 6);
        out[1] = (uint8_t)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (uint8_t)(0xe0 | c >> 12);
        out[1] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
        out[2] = (uint8_t)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (uint8_t)(0xf0 | c >> 18);
    out[1] = (uint8_t)(0x80 | (c >> 12 & 0x3f));
    out[2] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
    out[3] = (uint8_t)(0x80 | (c & 0x3f));
    return 4;
}

size_t json_unescape(const struct json_reader *r, uint8_t *out)
{
    const uint8_t *p = r->text, *end = r->text + r->n;
    size_t n = 0;
    if (!r->escaped) {
        memcpy(out, r->text, r->n);
        return r->n;
    }
    for (;;) {
        uint32_t meaning = 0;
        const uint8_t *slash = memchr(p, '\\', (size_t)(end - p));
        size_t run = (size_t)((slash != NULL ? slash : end) - p);
        memcpy(out + n, p, run);
        n += run;
        if (slash == NULL) {
            return n;
        }
        p = slash + escape(slash, end, &meaning);
        n += put_utf8(out + n, meaning);
    }
}

static const uint8_t *digits(const uint8_t *p, const uint8_t *end)
{
    while (p < end && *p >= '0' && *p <= '9') {
        p++;
    }
    return p;
}

static int64_t whole_number(const char *text)
{
    bool below = *text == '-';
    int64_t v = 0;
    for (text += below ? 1 : 0; *text != '\0'; text++) {
        v = 10 * v + (*text - '0');
    }
    return below ? -v : v;
}

static enum json_token read_number(struct json_reader *r)
{
    const uint8_t *p = r->p + (*r->p == '-' ? 1 : 0), *from = p;
    char text[NUMBER_MAX];
    bool whole = true;
    p = digits(p, r->end);
    if (p == from || (*from == '0' && p > from + 1)) {
        return bad(r);
    }
    if (p < r->end && *p == '.') {
        from = p + 1;
        p = digits(from, r->end);
        whole = false;
        if (p == from) {
            return bad(r);
        }
    }
    if (p < r->end && (*p == 'e' || *p == 'E')) {
        p++;
        p += p < r->end && (*p == '+' || *p == '-') ? 1 : 0;
        from = p;
        p = digits(from, r->end);
        whole = false;
        if (p == from) {
            return bad(r);
        }
    }
    size_t n = (size_t)(p - r->p);
    if (n >= sizeof text) {
        return bad(r);
    }
    memcpy(text, r->p, n);
    text[n] = '\0';
    r->p = p;
    value_read(r);
    if (whole && n <= 18) { /* so many digits always fit */
        r->integer = whole_number(text);
        r->number = (double)r->integer;
        return JSON_INTEGER;
    }
    r->integer = 0;
    r->number = strtod(text, NULL);
    return r->number > DBL_MAX || r->number < -DBL_MAX ? bad(r) : JSON_NUMBER;
}

static enum json_token open_one(struct json_reader *r, bool object)
{
    if (r->depth == JSON_DEPTH_MAX) {
        return bad(r);
    }
    r->p++;
    r->in_object[r->depth++] = object;
    r->expect = object ? FIRST_KEY : FIRST_ITEM;
    return object ? JSON_OBJECT : JSON_ARRAY;
}

static enum json_token read_word(struct json_reader *r)
{
    static const struct {
        const char *text;
        enum json_token token;
    } words[] = {{"true", JSON_TRUE}, {"false", JSON_FALSE}, {"null", JSON_NULL}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t n = strlen(words[i].text);
        if ((size_t)(r->end - r->p) >= n && memcmp(r->p, words[i].text, n) == 0) {
            r->p += n;
            value_read(r);
            return words[i].token;
        }
    }
    return bad(r);
}

static enum json_token read_value(struct json_reader *r)
{
    switch (*r->p) {
    case '{':
        return open_one(r, true);
    case '[':
        return open_one(r, false);
    case '"':
        if (!read_string(r)) {
            return bad(r);
        }
        value_read(r);
        return JSON_STRING;
    default:
        return *r->p == '-' || (*r->p >= '0' && *r->p <= '9') ? read_number(r) : read_word(r);
    }
}

static enum json_token read_key(struct json_reader *r)
{
    if (*r->p != '"' || !read_string(r)) {
        return bad(r);
    }
    skip_blanks(r);
    if (r->p == r->end || *r->p != ':') {
        return bad(r);
    }
    r->p++;
    r->expect = VALUE;
    return JSON_KEY;
}

static enum json_token close_one(struct json_reader *r)
{
    r->p++;
    r->depth--;
    value_read(r);
    return JSON_CLOSE;
}

enum json_token json_next(struct json_reader *r)
{
    if (r->expect == BROKEN) {
        return JSON_BAD;
    }
    skip_blanks(r);
    if (r->p == r->end) {
        return r->expect == NOTHING ? JSON_END : bad(r);
    }
    bool object = r->depth > 0 && r->in_object[r->depth - 1];
    bool closing = r->depth > 0 && *r->p == (object ? '}' : ']');
    switch (r->expect) {
    case COMMA:
        if (closing) {
            return close_one(r);
        }
        if (*r->p != ',') {
            return bad(r);
        }
        r->p++;
        skip_blanks(r);
        if (r->p == r->end) {
            return bad(r);
        }
        return object ? read_key(r) : read_value(r);
    case FIRST_KEY:
        return closing ? close_one(r) : read_key(r);
    case FIRST_ITEM:
        return closing ? close_one(r) : read_value(r);
    case VALUE:
        return read_value(r);
    default:
        return bad(r);
    }
}

bool json_skip(struct json_reader *r, enum json_token t)
{
    if (t == JSON_OBJECT || t == JSON_ARRAY) {
        unsigned depth = r->depth - 1;
        while (r->depth > depth) {
            if (json_next(r) == JSON_BAD) {
                return false;
            }
        }
    }
    return t != JSON_BAD && t != JSON_END && t != JSON_CLOSE;
}
