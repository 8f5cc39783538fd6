/* The members: slots that stay where they are while a member is there, found by id, and partitioned into those that
 * are probed (alive and suspect) and those that are gone (dead and left). Slot 0 is this node itself and in neither. */
#ifndef SYM_GOSSIP_SWIM_TABLE_H
#define SYM_GOSSIP_SWIM_TABLE_H

#include "gossip/swim_claim.h"

enum { NO_SLOT = UINT32_MAX, SELF = 0, NOT_QUEUED = 0x7f };

/* Chance, from a seed: splitmix64 (Steele, Lea, Flood 2014). */
struct chance {
    uint64_t state;
};
uint64_t chance_next(struct chance *c);
/* 0 to @n - 1; 0 for 0. */
uint32_t chance_below(struct chance *c, uint32_t n);

struct suspicion;

/* 32 bytes: at 10,000 members what a lookup touches is to stay in a processor's cache. */
struct member {
    struct claim *claim; /* NULL: a free slot */
    union {
        uint64_t since;              /* of all others */
        struct suspicion *suspicion; /* of a suspect one */
    };
    uint32_t spent;  /* ms, cut off: until then its claims are paid for, see CLAIM_GAP_MS */
    uint32_t q_next; /* of the news, see swim_queue.h */
    uint32_t q_prev;
    uint32_t pos : 20;  /* in table.seq; of a free slot: the next free one, or SELF */
    uint32_t state : 2; /* enum swim_state */
    uint32_t sent : 7;  /* how often its news have been sent; NOT_QUEUED */
    uint32_t asks : 3;  /* turns that are left, see swim_ask.c; 0: it is not asked */
};

struct table {
    struct member *m;
    uint32_t n, cap, max; /* slots used once, allocated, allowed */
    uint32_t free;        /* list, until SELF */
    uint32_t
        *index; /* by the hash of the id: 12 bits of it and the slot; open addressing, at most 3/4 full */
    uint32_t mask;
    /* [0, n_live) are probed, in this order; [n_live, n_seq) are gone. */
    uint32_t *seq;
    uint32_t n_live, n_seq;
    uint32_t cursor; /* next to be probed */
    uint64_t salt;
    uint64_t
        digest; /* of ids and incarnations of the live ones and oneself: the same for the same, whatever the order */
};

/* 0 or SYM_ENOMEM. @self becomes slot 0 and the table's. */
int table_init(struct table *t, uint32_t max, uint64_t salt, struct claim *self);
void table_free(struct table *t);
/* NO_SLOT if there is none. */
uint32_t table_find(const struct table *t, const struct swim_id *id);
/* A new live member at a random place of the order (SWIM 4.3); takes @claim over. NO_SLOT without place or memory
 * (*@full tells), and @claim is still the caller's. */
uint32_t table_add(struct table *t, struct claim *claim, struct chance *c, bool *full);
void table_remove(struct table *t, uint32_t slot);
void table_gone(struct table *t, uint32_t slot);
/* @claim in place of the one it has; takes it over. */
void table_replace(struct table *t, uint32_t slot, struct claim *claim);
void table_live(struct table *t, uint32_t slot, struct chance *c);
/* The next to probe, after a new shuffle when all have been; NO_SLOT if nobody is live. */
uint32_t table_probe(struct table *t, struct chance *c);
/* Up to @k random live members that are not @except, all different; returns their number. */
unsigned table_pick(const struct table *t, struct chance *c, uint32_t except, unsigned k, uint32_t *out);

#endif
