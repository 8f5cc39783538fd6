/* Addresses as text and as the system has them. */
#ifndef SYM_NET_ADDR_H
#define SYM_NET_ADDR_H

#include "net/stream.h"

#include <netinet/in.h>
#include <sys/socket.h>

/* Fills host (numeric; a mapped IPv4 address as IPv4) and port from @sa. Other families give an empty host.
 */
void addr_from_system(const struct sockaddr *sa, struct peer_addr *out);

/* @text, a numeric address, and @port as the system wants them. SYM_EINVAL. */
int addr_to_system(const char *text, uint16_t port, struct sockaddr_storage *out, socklen_t *len);

/* Who is counted as one when connections are limited by address: an IPv4 address, or an IPv6 /64, since one
 * host can take any address in its own. */
void addr_group(const struct peer_addr *from, char out[64]);

#endif
