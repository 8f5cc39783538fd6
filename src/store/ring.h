/* The recent events, oldest first, as many as fit in a number of bytes: what a watch can go back to. Private
 * to src/store. Every event has a sequence number; the ring holds those from @first to @next - 1, which are
 * all events of revisions above @base. */
#ifndef SYM_STORE_RING_H
#define SYM_STORE_RING_H

#include "store/store.h"

struct ring_event {
    struct event ev;
    size_t cost; /* bytes, with the line when that is counted */
    bool line_counted;
    STAILQ_ENTRY(ring_event) link; /* until it is in the ring */
    uint8_t bytes[];               /* key and value */
};
STAILQ_HEAD(event_list, ring_event);

struct ring {
    struct ring_event **slots; /* of @cap, a power of two; NULL until the first event */
    size_t cap;
    uint64_t first, next;
    uint64_t base;
    size_t bytes, limit;
};

/* Copies key and value. NULL when there is no memory. */
struct ring_event *ring_event_new(
    struct slice key, struct slice value, bool is_delete, uint64_t create, uint64_t revision);
void ring_event_free(struct ring_event *re);

/* Takes the event over and lets go of the oldest ones. SYM_ENOMEM: not taken. */
int ring_push(struct ring *r, struct ring_event *re);
/* The event of a number that the ring holds. */
static inline struct ring_event *ring_at(const struct ring *r, uint64_t seq)
{
    return r->slots[seq & (r->cap - 1)];
}
/* The number of the first event above @revision. */
uint64_t ring_after(const struct ring *r, uint64_t revision);
/* Counts the line that a receiver has left with an event; the ring may be above its limit until the next
 * push. */
void ring_count_line(struct ring *r, struct event *ev);
/* Lets go of all events; the history begins after @base. */
void ring_clear(struct ring *r, uint64_t base);
void ring_free(struct ring *r);

#endif
