#include "codec/json.h"

#include "base/err.h"
#include "codec/text.h"

#include <endian.h>
#include <string.h>

/* Sixteen bytes that are looked at at once, each in a lane of its own. */
typedef uint8_t lanes __attribute__((vector_size(16)));

/* As many of the @n bytes as there are lanes; in those that are left over stands a letter. */
static size_t load(lanes *x, const uint8_t *p, size_t n)
{
    if (n >= sizeof *x) {
        memcpy(x, p, sizeof *x);
        return sizeof *x;
    }
    memset(x, 'a', sizeof *x);
    memcpy(x, p, n);
    return n;
}

/* The first lane that has a bit set, or the number of lanes. */
static size_t first(lanes found)
{
    uint64_t halves[2];
    memcpy(halves, &found, sizeof halves);
    for (size_t i = 0; i < 2; i++) {
        if (halves[i] != 0) {
            return 8 * i + (size_t)__builtin_ctzll(le64toh(halves[i])) / 8;
        }
    }
    return sizeof found;
}

bool utf8_valid(const uint8_t *p, size_t n)
{
    const uint8_t *end = n == 0 ? p : p + n;
    while (p < end) {
        lanes x;
        size_t some = load(&x, p, (size_t)(end - p)), ascii = first(x & 0x80);
        if (ascii >= some) {
            p += some;
            continue;
        }
        p += ascii;
        unsigned more = *p >= 0xf0 ? 3 : *p >= 0xe0 ? 2 : 1;
        uint32_t least = more == 3 ? 0x10000 : more == 2 ? 0x800 : 0x80;
        uint32_t c = *p & (0x3fU >> more);
        if (*p < 0xc2 || *p > 0xf4 || (size_t)(end - p) <= more) {
            return false;
        }
        for (unsigned i = 1; i <= more; i++) {
            if ((p[i] & 0xc0) != 0x80) {
                return false;
            }
            c = c << 6 | (p[i] & 0x3f);
        }
        if (c < least || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff)) {
            return false;
        }
        p += more + 1;
    }
    return true;
}

size_t json_plain(const uint8_t *p, size_t n)
{
    for (size_t i = 0, some; i < n; i += some) {
        lanes x;
        some = load(&x, p + i, n - i);
        size_t plain = first((lanes)(x < 0x20) | (lanes)(x == '"') | (lanes)(x == '\\') | (lanes)(x == 0x7f));
        if (plain < some) {
            return i + plain;
        }
    }
    return n;
}

int json_string(struct buf *out, const uint8_t *data, size_t n)
{
    static const char hex[] = "0123456789abcdef";
    static const char escaped[] = "\"\\\n\r\t";
    static const char letters[] = "\"\\nrt";
    if (n > SIZE_MAX / 8) {
        return err_setf(SYM_ETOOBIG, "a string of %zu bytes", n);
    }
    /* Plain runs are copied whole; only what must be escaped is looked at one by one. */
    uint8_t *to = buf_reserve(out, n + 2);
    if (to == NULL) {
        return SYM_ENOMEM;
    }
    *to = '"';
    buf_commit(out, 1);
    for (size_t from = 0, i;; from = i + 1) {
        i = from + (from < n ? json_plain(data + from, n - from) : 0);
        if (i > from && buf_append(out, data + from, i - from) != 0) {
            return SYM_ENOMEM;
        }
        if (i == n) {
            break;
        }
        uint8_t c = data[i];
        char text[7] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15], 0};
        size_t len = 6;
        const char *at = strchr(escaped, c);
        if (c != 0 && at != NULL) {
            text[1] = letters[at - escaped];
            len = 2;
        }
        if (buf_append(out, text, len) != 0) {
            return SYM_ENOMEM;
        }
    }
    return buf_append(out, "\"", 1);
}

/* Bytes of the well-formed character at @p, or 0. */
static size_t char_length(const char *p, size_t left)
{
    for (size_t n = 1; n <= 4 && n <= left; n++) {
        if (utf8_valid((const uint8_t *)p, n)) {
            return n;
        }
    }
    return 0;
}

int json_lossy(struct buf *out, const char *text, size_t n)
{
    struct buf clean = {0};
    int rv = 0;
    if (utf8_valid((const uint8_t *)text, n)) {
        return json_string(out, (const uint8_t *)text, n);
    }
    for (size_t i = 0; i < n && rv == 0;) {
        size_t len = char_length(text + i, n - i);
        rv = len > 0 ? buf_append(&clean, text + i, len) : buf_append(&clean, "\xef\xbf\xbd", 3);
        i += len > 0 ? len : 1;
    }
    rv = rv != 0 ? rv : json_string(out, buf_data(&clean), clean.len);
    buf_free(&clean);
    return rv;
}

int json_bytes(struct buf *out, const char *name, const uint8_t *data, size_t n)
{
    bool text = utf8_valid(data, n);
    int rv = buf_appendf(out, text ? "\"%s\":" : "\"%s_base64\":\"", name);
    if (rv != 0 || text) {
        return rv != 0 ? rv : json_string(out, data, n);
    }
    uint8_t *to = buf_reserve(out, base64_width(n) + 2);
    if (to == NULL) {
        return SYM_ENOMEM;
    }
    base64_encode(data, n, (char *)to);
    to[base64_width(n)] = '"';
    buf_commit(out, base64_width(n) + 1);
    return 0;
}
