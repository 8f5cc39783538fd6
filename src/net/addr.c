#include "net/addr.h"

#include "base/err.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int bad(const char *text, const char *why)
{
    return err_setf(SYM_EINVAL, "address \"%.100s\": %s", text, why);
}

/* Strict decimal, 1 to 65535. */
static bool parse_port(const char *text, uint16_t *out)
{
    unsigned long port = 0;
    size_t n = strlen(text);
    if (n == 0 || n > 5 || strspn(text, "0123456789") != n) {
        return false;
    }
    port = strtoul(text, NULL, 10);
    *out = (uint16_t)port;
    return port >= 1 && port <= 65535;
}

#define LETTERS_DIGITS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

/* Also with "%" and the name of an interface. */
static bool is_ipv6(const char *text)
{
    struct in6_addr addr;
    char plain[INET6_ADDRSTRLEN];
    size_t n = strcspn(text, "%");
    if (n >= sizeof plain) {
        return false;
    }
    if (text[n] == '%') {
        size_t scope = strspn(text + n + 1, LETTERS_DIGITS ".-_");
        if (scope == 0 || scope >= IF_NAMESIZE || text[n + 1 + scope] != '\0') {
            return false;
        }
    }
    memcpy(plain, text, n);
    plain[n] = '\0';
    return inet_pton(AF_INET6, plain, &addr) == 1;
}

static bool is_name(const char *text)
{
    size_t n = strlen(text);
    return n > 0 && text[0] != '-' && strspn(text, LETTERS_DIGITS ".-_") == n;
}

int addr_parse(const char *text, uint16_t default_port, char host[256], uint16_t *port)
{
    const char *rest;
    size_t n;
    bool v6 = text[0] == '[';
    if (v6) {
        text++;
        n = strcspn(text, "]");
        if (text[n] != ']') {
            return bad(text - 1, "the bracket is not closed");
        }
        rest = text + n + 1;
    } else {
        const char *colon = strchr(text, ':');
        v6 = colon != NULL && strchr(colon + 1, ':') != NULL; /* bare IPv6: it cannot carry a port */
        n = v6 ? strlen(text) : strcspn(text, ":");
        rest = text + n;
    }
    if (n == 0 || n > 253) {
        return bad(text, n == 0 ? "the host is missing" : "the host is longer than 253 characters");
    }
    memcpy(host, text, n);
    host[n] = '\0';
    if (v6 ? !is_ipv6(host) : !is_name(host)) {
        return bad(text, v6 ? "not an IPv6 address" : "not a host name or IP address");
    }
    if (*rest == '\0') {
        *port = default_port;
        return 0;
    }
    return *rest == ':' && parse_port(rest + 1, port)
               ? 0
               : bad(text, "the port must be a number from 1 to 65535");
}

void addr_from_system(const struct sockaddr *sa, struct peer_addr *out)
{
    out->host[0] = '\0';
    out->port = 0;
    if (sa->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)sa;
        inet_ntop(AF_INET, &in->sin_addr, out->host, sizeof out->host);
        out->port = ntohs(in->sin_port);
    } else if (sa->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)sa;
        if (IN6_IS_ADDR_V4MAPPED(&in->sin6_addr)) {
            inet_ntop(AF_INET, in->sin6_addr.s6_addr + 12, out->host, sizeof out->host);
        } else {
            inet_ntop(AF_INET6, &in->sin6_addr, out->host, sizeof out->host);
        }
        out->port = ntohs(in->sin6_port);
    }
}

int addr_to_system(const char *text, uint16_t port, struct sockaddr_storage *out, socklen_t *len)
{
    memset(out, 0, sizeof *out);
    if (uv_ip4_addr(text, port, (struct sockaddr_in *)out) == 0) {
        *len = sizeof(struct sockaddr_in);
        return 0;
    }
    if (uv_ip6_addr(text, port, (struct sockaddr_in6 *)out) == 0) {
        *len = sizeof(struct sockaddr_in6);
        return 0;
    }
    return bad(text, "not an IP address");
}

void addr_group(const struct peer_addr *from, char out[64])
{
    struct in6_addr addr;
    if (inet_pton(AF_INET6, from->host, &addr) == 1) {
        memset(addr.s6_addr + 8, 0, 8);
        inet_ntop(AF_INET6, &addr, out, 64);
    } else {
        snprintf(out, 64, "%s", from->host);
    }
}
