/* The hub: hands what is applied to the watches. Private to src/store; the watches themselves are in store.h.
 *
 * Watches of the same prefix form a group, and an event looks its groups up by its key's beginnings, one for
 * each length of prefix in use: its price does not grow with the number of watches. A group keeps the numbers
 * of the events that its watches have yet to see, so that nobody reads through what is not for him; only what
 * a watch asks for from before it was opened is searched for in the ring, in bounded portions.
 */
#ifndef SYM_STORE_HUB_H
#define SYM_STORE_HUB_H

#include "store/ring.h"

enum {
    HUB_BATCH = 256,             /* events in one call, and those of the same txn as the last */
    HUB_BATCH_BYTES = 256 << 10, /* of keys and values, likewise */
    HUB_SCAN = 4096,             /* old events looked at for one watch in one turn */
    HUB_PUMP = 16384,            /* deliveries in one store_pump */
    HUB_PUMP_BYTES = 8 << 20     /* and bytes delivered */
};

struct group;
struct hub {
    struct ring ring;
    struct group *groups;           /* by prefix */
    unsigned n_of_len[KEY_MAX + 1]; /* groups with a prefix of that length */
    size_t longest;                 /* no prefix is longer */
    TAILQ_HEAD(, group) dirty;      /* groups with events that their watches have not been told of */
    TAILQ_HEAD(, watch) ready;      /* watches with something to get */
    struct watch *current;          /* whose callback is running */
    bool pumping, closing;
    unsigned n_watches, n_paused;
    uint64_t cut, events, delivered;
    void (*wake)(void *arg);
    void *wake_arg;
    struct event *batch[HUB_BATCH + TXN_OPS_MAX];
};

void hub_init(struct hub *h, size_t ring_bytes, uint64_t revision);
/* Takes over the events of one pack; @lost: there were others, for which there was no memory. @revision is
 * the store's. */
void hub_publish(struct hub *h, struct event_list *events, bool lost, uint64_t revision);
/* The history is gone: every watch is told so. */
void hub_reset(struct hub *h, uint64_t revision);
/* Closes what is still open, with SYM_ECLOSED. */
void hub_close(struct hub *h);

#endif
