/* Addresses, query strings, percent-encoding and header lines from outside. */
#include "base/err.h"
#include "net/http_text.h"
#include "net/stream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void must(int ok)
{
    if (!ok) {
        abort();
    }
}

/* What is taken for an address is one again when it is written out. */
static void address(const char *text)
{
    char host[256], again[256], whole[300];
    uint16_t port, port_again;
    if (addr_parse(text, 7, host, &port) != 0) {
        return;
    }
    must(host[0] != '\0' && strlen(host) <= 253 && port != 0);
    snprintf(whole, sizeof whole, strchr(host, ':') != NULL ? "[%s]:%u" : "%s:%u", host, port);
    must(addr_parse(whole, 9, again, &port_again) == 0);
    must(strcmp(host, again) == 0 && port == port_again);
}

static void query(const char *text)
{
    for (size_t size = 1; size < 40; size += 7) {
        char *out = malloc(size);
        must(out != NULL);
        if (http_query_param(text, "key", out, size) == 0) {
            must(memchr(out, '\0', size) != NULL);
        }
        free(out);
    }
}

static void percent(const char *text, size_t n)
{
    char *out = malloc(n + 1), *copy = malloc(n + 1), *little = malloc(n / 2 + 1);
    must(out != NULL && copy != NULL && little != NULL);
    memcpy(copy, text, n);
    ssize_t len = http_percent_decode(text, n, out, n);
    ssize_t in_place = http_percent_decode(copy, n, copy, n);
    ssize_t short_of_room = http_percent_decode(text, n, little, n / 2);
    must(len == in_place && len <= (ssize_t)n && len != SYM_ETOOBIG);
    must(short_of_room == len || short_of_room == SYM_ETOOBIG);
    if (len >= 0) {
        must(memcmp(out, copy, (size_t)len) == 0 && memchr(out, '\0', (size_t)len) == NULL);
    }
    free(little);
    free(out);
    free(copy);
}

/* Nothing that is taken for header lines can end the head or name a length. */
static void headers(const char *text)
{
    if (http_are_headers(text)) {
        size_t n = strlen(text);
        must(strstr(text, "\r\n\r\n") == NULL && strncmp(text, "\r\n", 2) != 0);
        must(n == 0 || (n >= 4 && strcmp(text + n - 2, "\r\n") == 0));
        must(strcasestr(text, "\ncontent-length:") == NULL && strncasecmp(text, "content-length:", 15) != 0);
    }
    if (http_is_target(text)) {
        must(strpbrk(text, " \r\n\t") == NULL);
    }
    if (http_is_token(text)) {
        must(strpbrk(text, " \r\n\t:") == NULL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    char *text = malloc(n + 1);
    must(text != NULL);
    memcpy(text, data, n);
    text[n] = '\0';
    address(text);
    query(text);
    headers(text);
    percent(text, n);
    free(text);
    return 0;
}
