#include "net/addr_count.h"

#include "base/err.h"
#include "net/addr.h"

#include <stdlib.h>
#include <string.h>

static struct addr_entry *const *bucket(const struct addr_counts *t, const char *group)
{
    uint64_t h = t->seed ^ 14695981039346656037ULL;
    for (; *group != '\0'; group++) {
        h = (h ^ (uint8_t)*group) * 1099511628211ULL;
    }
    return &t->buckets[(h ^ h >> 32) % ADDR_BUCKETS];
}

static struct addr_entry *find(const struct addr_counts *t, const char *group)
{
    struct addr_entry *e = *bucket(t, group);
    while (e != NULL && strcmp(e->group, group) != 0) {
        e = e->next;
    }
    return e;
}

unsigned addr_count(const struct addr_counts *t, const struct peer_addr *from)
{
    char group[64];
    addr_group(from, group);
    const struct addr_entry *e = find(t, group);
    return e != NULL ? e->n : 0;
}

struct addr_entry *addr_count_add(struct addr_counts *t, const struct peer_addr *from)
{
    char group[64];
    addr_group(from, group);
    struct addr_entry *e = find(t, group);
    if (e == NULL) {
        e = calloc(1, sizeof *e);
        if (e == NULL) {
            err_setf(SYM_ENOMEM, "out of memory");
            return NULL;
        }
        struct addr_entry **at = (struct addr_entry **)bucket(t, group);
        memcpy(e->group, group, sizeof group);
        e->next = *at;
        *at = e;
    }
    e->n++;
    return e;
}

void addr_count_drop(struct addr_counts *t, struct addr_entry *e)
{
    if (e == NULL || --e->n > 0) {
        return;
    }
    struct addr_entry **at = (struct addr_entry **)bucket(t, e->group);
    while (*at != e) {
        at = &(*at)->next;
    }
    *at = e->next;
    free(e);
}
