/* Addresses of members: as text, as the system has them, and as the protocol core has them. */
#ifndef SYM_GOSSIP_ADDR_H
#define SYM_GOSSIP_ADDR_H

#include "gossip/swim.h"

#include <stdbool.h>
#include <sys/socket.h>

enum { GOSSIP_ADDR_TEXT = 64 };

/* "192.0.2.1:37065", "[2001:db8::1]:37065"; without a port @port, which may be 0. Numeric only, and no interface names:
 * what a member claims means the same everywhere. SYM_EINVAL. */
int gossip_addr_parse(const char *text, uint16_t port, struct swim_addr *out);
void gossip_addr_text(const struct swim_addr *addr, char out[GOSSIP_ADDR_TEXT]);

/* For a socket of @family (AF_INET, AF_INET6): an IPv4 address is mapped for an IPv6 one. False: it cannot be reached
 * from there. */
bool gossip_addr_to_system(
    const struct swim_addr *addr, int family, struct sockaddr_storage *out, socklen_t *len);
/* A mapped IPv4 address is one. False for other families. */
bool gossip_addr_from_system(const struct sockaddr_storage *sa, struct swim_addr *out);

#endif
