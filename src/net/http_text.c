#include "net/http_text.h"

#include "base/err.h"

#include <string.h>
#include <strings.h>

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

ssize_t http_percent_decode(const char *from, size_t n, char *to, size_t room)
{
    size_t len = 0;
    for (size_t i = 0; i < n; i++) {
        char c = from[i];
        if (c == '%') {
            int high = i + 2 < n ? hex_digit(from[i + 1]) : -1;
            int low = high >= 0 ? hex_digit(from[i + 2]) : -1;
            if (low < 0) {
                return SYM_EINVAL;
            }
            c = (char)(high << 4 | low);
            i += 2;
        }
        if (c == '\0') {
            return SYM_EINVAL;
        }
        if (len == room) {
            return SYM_ETOOBIG;
        }
        to[len++] = c;
    }
    return (ssize_t)len;
}

static int take_value(const char *name, const char *value, size_t n, char *out, size_t size)
{
    ssize_t len = http_percent_decode(value, n, out, size - 1);
    if (len == SYM_ETOOBIG) {
        return err_setf(SYM_ETOOBIG, "parameter %s is longer than %zu bytes", name, size - 1);
    }
    if (len < 0) {
        return err_setf(SYM_EINVAL, "parameter %s is not properly percent-encoded", name);
    }
    out[len] = '\0';
    return 0;
}

int http_query_param(const char *query, const char *name, char *out, size_t size)
{
    size_t name_len = strlen(name);
    for (const char *at = query; *at != '\0';) {
        size_t len = strcspn(at, "&");
        if (len >= name_len && memcmp(at, name, name_len) == 0 && (len == name_len || at[name_len] == '=')) {
            size_t skip = name_len + (len > name_len);
            return take_value(name, at + skip, len - skip, out, size);
        }
        at += len + (at[len] == '&');
    }
    return err_setf(SYM_ENOTFOUND, "parameter %s is missing", name);
}

bool http_is_token(const char *text)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~";
    return *text != '\0' && text[strspn(text, allowed)] == '\0';
}

bool http_is_target(const char *text)
{
    for (const char *at = text; *at != '\0'; at++) {
        if ((unsigned char)*at <= ' ' || *at == 0x7f || *at == '#') {
            return false;
        }
    }
    return *text == '/' || strcmp(text, "*") == 0;
}

bool http_are_headers(const char *text)
{
    static const char *const ours[] = {"host", "content-length", "transfer-encoding", "connection", "expect"};
    while (*text != '\0') {
        size_t line = strcspn(text, "\r\n");
        size_t n = strcspn(text, ":");
        char name[64];
        if (text[line] != '\r' || text[line + 1] != '\n' || n >= line || n >= sizeof name) {
            return false;
        }
        memcpy(name, text, n);
        name[n] = '\0';
        if (!http_is_token(name)) {
            return false;
        }
        for (size_t i = n; i < line; i++) {
            if (((unsigned char)text[i] < ' ' && text[i] != '\t') || text[i] == 0x7f) {
                return false;
            }
        }
        for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++) {
            if (strcasecmp(name, ours[i]) == 0) {
                return false;
            }
        }
        text += line + 2;
    }
    return true;
}
