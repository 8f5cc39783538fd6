/* Small pieces of HTTP's text. */
#ifndef SYM_NET_HTTP_TEXT_H
#define SYM_NET_HTTP_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Decodes @n bytes of percent-encoding to @to, which may be @from; no terminator. Returns the length,
 * SYM_EINVAL if it is bad or holds a NUL, SYM_ETOOBIG if it is longer than @room. Sets no message. */
ssize_t http_percent_decode(const char *from, size_t n, char *to, size_t room);

/* Value of @name in a raw query string: 0, SYM_ENOTFOUND, SYM_EINVAL, SYM_ETOOBIG. '+' stands for itself. */
int http_query_param(const char *query, const char *name, char *out, size_t size);

/* A method or header name. */
bool http_is_token(const char *text);

/* A path with query as a request line may carry it. */
bool http_is_target(const char *text);

/* Whole lines, each "name: value\r\n", and none that net writes itself (Host, Content-Length, ...). */
bool http_are_headers(const char *text);

#endif
