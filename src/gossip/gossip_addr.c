#include "gossip/gossip_addr.h"

#include "base/err.h"
#include "net/addr.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

int gossip_addr_parse(const char *text, uint16_t port, struct swim_addr *out)
{
    char host[256];
    struct swim_addr addr = {0};
    int rv = addr_parse(text, port, host, &addr.port);
    if (rv != 0) {
        return rv;
    }
    if (inet_pton(AF_INET, host, addr.ip) == 1) {
        addr.family = 4;
    } else if (inet_pton(AF_INET6, host, addr.ip) == 1) {
        static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
        addr.family = 6;
        if (memcmp(addr.ip, mapped, sizeof mapped) == 0) { /* one address has one form */
            addr.family = 4;
            memmove(addr.ip, addr.ip + sizeof mapped, 4);
            memset(addr.ip + 4, 0, 12);
        }
    } else {
        return err_setf(SYM_EINVAL, "address \"%.100s\": not a numeric IP address", text);
    }
    *out = addr;
    return 0;
}

void gossip_addr_text(const struct swim_addr *addr, char out[GOSSIP_ADDR_TEXT])
{
    char host[INET6_ADDRSTRLEN] = "";
    inet_ntop(addr->family == 6 ? AF_INET6 : AF_INET, addr->ip, host, sizeof host);
    snprintf(out, GOSSIP_ADDR_TEXT, addr->family == 6 ? "[%s]:%u" : "%s:%u", host, addr->port);
}

bool gossip_addr_to_system(
    const struct swim_addr *addr, int family, struct sockaddr_storage *out, socklen_t *len)
{
    memset(out, 0, sizeof *out);
    if (family == AF_INET) {
        struct sockaddr_in *in = (struct sockaddr_in *)out;
        in->sin_family = AF_INET;
        in->sin_port = htons(addr->port);
        memcpy(&in->sin_addr, addr->ip, 4);
        *len = sizeof *in;
        return addr->family == 4;
    }
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)out;
    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons(addr->port);
    *len = sizeof *in6;
    if (addr->family == 4) {
        in6->sin6_addr.s6_addr[10] = in6->sin6_addr.s6_addr[11] = 0xff;
        memcpy(in6->sin6_addr.s6_addr + 12, addr->ip, 4);
    } else {
        memcpy(&in6->sin6_addr, addr->ip, 16);
    }
    return addr->family == 4 || addr->family == 6;
}

bool gossip_addr_from_system(const struct sockaddr_storage *sa, struct swim_addr *out)
{
    *out = (struct swim_addr){0};
    if (sa->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)sa;
        out->family = 4;
        out->port = ntohs(in->sin_port);
        memcpy(out->ip, &in->sin_addr, 4);
    } else if (sa->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)sa;
        bool mapped = IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr);
        out->family = mapped ? 4 : 6;
        out->port = ntohs(in6->sin6_port);
        memcpy(out->ip, in6->sin6_addr.s6_addr + (mapped ? 12 : 0), mapped ? 4 : 16);
    }
    return out->family != 0;
}
