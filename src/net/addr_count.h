/* How many connections each address has. */
#ifndef SYM_NET_ADDR_COUNT_H
#define SYM_NET_ADDR_COUNT_H

#include "net/stream.h"

enum { ADDR_BUCKETS = 512 };

struct addr_entry {
    struct addr_entry *next;
    unsigned n;
    char group[64];
};
struct addr_counts {
    uint64_t seed; /* so that nobody can choose addresses that fall into one bucket */
    struct addr_entry *buckets[ADDR_BUCKETS];
};

/* Connections counted for the group (addr.h) of @from. */
unsigned addr_count(const struct addr_counts *t, const struct peer_addr *from);
/* Counts one more; NULL if there is no memory. */
struct addr_entry *addr_count_add(struct addr_counts *t, const struct peer_addr *from);
/* Takes one back; NULL is fine. */
void addr_count_drop(struct addr_counts *t, struct addr_entry *e);

#endif
