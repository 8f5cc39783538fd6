#include "codec/text.h"

#include "base/err.h"

#include <string.h>

static const char digits36[] = "0123456789abcdefghijklmnopqrstuvwxyz";

void hex_encode(const uint8_t *data, size_t n, char *out)
{
    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digits36[data[i] >> 4];
        out[2 * i + 1] = digits36[data[i] & 15];
    }
    out[2 * n] = '\0';
}

static int digit36(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    if (c >= 'a' && c <= 'z') {
        return c - 'a' + 10;
    }
    if (c >= 'A' && c <= 'Z') {
        return c - 'A' + 10;
    }
    return -1;
}

int hex_decode(const char *text, size_t len, uint8_t *out, size_t n)
{
    if (len != 2 * n) {
        return err_setf(SYM_EINVAL, "%zu characters where %zu are expected", len, 2 * n);
    }
    for (size_t i = 0; i < n; i++) {
        int high = digit36(text[2 * i]), low = digit36(text[2 * i + 1]);
        if (high < 0 || high > 15 || low < 0 || low > 15) {
            return err_setf(SYM_EINVAL, "not hexadecimal");
        }
        out[i] = (uint8_t)(high << 4 | low);
    }
    return 0;
}

void base32_encode(const uint8_t *data, size_t n, char *out)
{
    uint32_t acc = 0;
    unsigned bits = 0;
    size_t o = 0;
    for (size_t i = 0; i < n; i++) {
        acc = (acc << 8 | data[i]) & 0xfff;
        bits += 8;
        while (bits >= 5) {
            bits -= 5;
            out[o++] = digits36[acc >> bits & 31];
        }
    }
    if (bits > 0) {
        out[o++] = digits36[acc << (5 - bits) & 31];
    }
    out[o] = '\0';
}

int base32_decode(const char *text, size_t len, uint8_t *out, size_t n)
{
    uint32_t acc = 0;
    unsigned bits = 0;
    size_t o = 0;
    if (len != (8 * n + 4) / 5) {
        return err_setf(SYM_EINVAL, "%zu characters where %zu are expected", len, (8 * n + 4) / 5);
    }
    for (size_t i = 0; i < len; i++) {
        int digit = text[i] >= 'A' && text[i] <= 'Z' ? -1 : digit36(text[i]);
        if (digit < 0 || digit > 31) {
            return err_setf(SYM_EINVAL, "not base32");
        }
        acc = (acc << 5 | (unsigned)digit) & 0xfff;
        bits += 5;
        if (bits >= 8) {
            bits -= 8;
            out[o++] = (uint8_t)(acc >> bits);
        }
    }
    if ((acc & ((1u << bits) - 1)) != 0) {
        return err_setf(SYM_EINVAL, "not base32");
    }
    return 0;
}

size_t base36_width(size_t n)
{
    /* 8 / log2(36) = 1.54741..., rounded up; exact for n up to 64. */
    return (n * 154741 + 99999) / 100000;
}

void base36_encode(const uint8_t *data, size_t n, char *out)
{
    uint8_t number[64];
    size_t width = base36_width(n);
    memcpy(number, data, n);
    for (size_t o = width; o-- > 0;) {
        unsigned rest = 0;
        for (size_t i = 0; i < n; i++) {
            unsigned v = rest << 8 | number[i];
            number[i] = (uint8_t)(v / 36);
            rest = v % 36;
        }
        out[o] = digits36[rest];
    }
    out[width] = '\0';
}

int base36_decode(const char *text, size_t len, uint8_t *out, size_t n)
{
    if (len != base36_width(n)) {
        return err_setf(SYM_EINVAL, "%zu characters where %zu are expected", len, base36_width(n));
    }
    memset(out, 0, n);
    for (size_t o = 0; o < len; o++) {
        int digit = digit36(text[o]);
        if (digit < 0) {
            return err_setf(SYM_EINVAL, "a character that is not a letter or digit");
        }
        unsigned carry = (unsigned)digit;
        for (size_t i = n; i-- > 0;) {
            unsigned v = out[i] * 36U + carry;
            out[i] = (uint8_t)v;
            carry = v >> 8;
        }
        if (carry != 0) {
            return err_setf(SYM_EINVAL, "value out of range");
        }
    }
    return 0;
}

static const char digits64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

size_t base64_width(size_t n)
{
    return (n + 2) / 3 * 4;
}

void base64_encode(const uint8_t *data, size_t n, char *out)
{
    size_t o = 0;
    for (size_t i = 0; i < n; i += 3) {
        uint32_t v = (uint32_t)data[i] << 16;
        v |= i + 1 < n ? (uint32_t)data[i + 1] << 8 : 0;
        v |= i + 2 < n ? data[i + 2] : 0;
        out[o++] = digits64[v >> 18];
        out[o++] = digits64[v >> 12 & 63];
        out[o++] = i + 1 < n ? digits64[v >> 6 & 63] : '=';
        out[o++] = i + 2 < n ? digits64[v & 63] : '=';
    }
    out[o] = '\0';
}

static int digit64(char c)
{
    if (c >= 'A' && c <= 'Z') {
        return c - 'A';
    }
    if (c >= 'a' && c <= 'z') {
        return c - 'a' + 26;
    }
    if (c >= '0' && c <= '9') {
        return c - '0' + 52;
    }
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

int base64_decode(const char *text, size_t len, uint8_t *out, size_t *n)
{
    size_t o = 0;
    if (len % 4 != 0) {
        return err_setf(SYM_EINVAL, "base64 of %zu characters", len);
    }
    for (size_t i = 0; i < len; i += 4) {
        uint32_t v = 0;
        int pad = 0;
        for (size_t j = 0; j < 4; j++) {
            char c = text[i + j];
            int digit = digit64(c);
            if (c == '=' && i + 4 == len && j >= 2) {
                pad++;
                v <<= 6;
            } else if (digit >= 0 && pad == 0) {
                v = v << 6 | (uint32_t)digit;
            } else {
                return err_setf(SYM_EINVAL, "not base64");
            }
        }
        /* Bits under the padding must be zero, so that a value has one spelling. */
        if ((pad == 1 && (v & 0xff) != 0) || (pad == 2 && (v & 0xffff) != 0)) {
            return err_setf(SYM_EINVAL, "not base64");
        }
        out[o++] = (uint8_t)(v >> 16);
        if (pad < 2) {
            out[o++] = (uint8_t)(v >> 8);
        }
        if (pad < 1) {
            out[o++] = (uint8_t)v;
        }
    }
    *n = o;
    return 0;
}
