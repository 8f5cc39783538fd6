/* What the files of the protocol core share. Not for others. */
#ifndef SYM_GOSSIP_SWIM_INT_H
#define SYM_GOSSIP_SWIM_INT_H

#include "base/buf.h"
#include "gossip/swim.h"
#include "gossip/swim_queue.h"
#include "gossip/swim_table.h"
#include "gossip/swim_wire.h"

enum {
    RELAYS_MAX = 64,   /* helping at the same time */
    RELAYS_OF_ONE = 2, /* whoever asks has one probe under way */
    RELAY_WAIT_MAX = 10000,
    PROBES_AGAIN = 2, /* further pings of one probe, while the helpers are at it */
    /* A claim of a member that would be news costs a signature's verification, and is passed on to all. So many at
     * once, and one each gap after that, are looked at; it is still the newest that comes again with later messages.
     * Of oneself: who accuses us all the time does not make us sign more often than others would look at it. */
    CLAIM_GAP_MS = 200,
    CLAIM_BURST = 10,
    REFUTE_GAP_MS = CLAIM_GAP_MS,
    DOUBLE_GAP_MS = 1000, /* nor does a second holder of our key */
    RETRY_MS = 1000,      /* what could not be signed */
    SWEEP_MS = 10000,
    DIFFER_GAP_MS = 1000, /* between two full exchanges; doubled by each that did not help */
    DIFFER_GAP_MAX_MS = 64000,
    SETTLE_MS = 10000, /* what a new node gets by full exchanges is old news to everybody else */
    QUEUE_LONG = 1000, /* pieces of news: some hundred full messages */
    MISFITS_MAX = 16,  /* pieces of news that are passed over, since they do not fit any more */
};
#define NEVER UINT64_MAX

struct suspicion {
    uint32_t slot, n;
    uint32_t place; /* in swim.due */
    uint32_t order; /* of those that end in the same ms the first to be entered is the first to end */
    uint64_t since; /* when it was entered */
    uint64_t start; /* the same without the time in which this process did not run */
    struct swim_id accusers[WIRE_ACCUSERS_MAX];
};

struct due {
    uint64_t at;
    struct suspicion *of;
};

struct probe {
    bool active, indirect;
    struct swim_id target;
    uint32_t seq;
    uint64_t direct_until, again_at, until;
    unsigned n_helpers;
    struct swim_id helpers[SWIM_HELPERS_MAX];
    bool nacked[SWIM_HELPERS_MAX];
};

/* A probe for somebody else. */
struct relay {
    bool active, nacked;
    struct swim_id origin, target;
    struct swim_addr origin_addr;
    uint32_t origin_seq, seq;
    uint64_t nack_at, until;
};

struct swim {
    struct swim_config c; /* without pointers */
    uint8_t cluster[SWIM_CLUSTER_MAX];
    const struct swim_ops *ops;
    void *arg;
    struct chance chance;
    struct table table;
    struct queue queue;
    uint32_t ask_next; /* the slot that may have to be asked next, */
    uint32_t ask_left; /* and how many slots this round has yet to look at */
    unsigned limit;    /* of sends of a piece of news, for limit_n members */
    uint32_t limit_n;
    struct due *due; /* all suspicions, a heap: the first to end is the first; NULL without any */
    uint32_t n_due, due_cap, suspected;
    struct buf out; /* as large as a datagram, for good */
    struct probe probe;
    struct relay relays[RELAYS_MAX];
    unsigned n_relays, health;
    uint32_t seq;
    uint64_t now; /* of the call that runs */
    uint64_t probe_at, gossip_at, gossip_last, reconnect_at, sweep_at, relay_at, refute_at, ask_at;
    uint64_t refute_from, double_from; /* not before */
    uint64_t differ_from, differ_gap;
    uint64_t incarnation; /* the lowest that the next claim may have */
    bool leaving, merging;
    uint64_t settled;
    uint32_t introduced; /* live members when our claim was last made news */
    struct swim_stats stats;
};

static inline struct member *slot_of(struct swim *s, uint32_t slot)
{
    return &s->table.m[slot];
}
static inline struct claim *self_claim(const struct swim *s)
{
    return s->table.m[SELF].claim;
}
static inline uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* swim_view.c */
void member_view(const struct swim *s, uint32_t slot, struct swim_member *out);
void tell(const struct swim *s, enum swim_event what, uint32_t slot);

/* swim_exchange.c */
/* A member's digest, when it has no news to send. */
void compare(struct swim *s, uint32_t slot, uint64_t digest);

/* swim_ask.c */
/* Has a member answer for itself: soon, and as often as a probe would try. */
void ask(struct swim *s, uint32_t slot);
void ask_tick(struct swim *s);

/* swim_send.c */
/* What a message carries beside news. */
struct load {
    bool own;    /* our claim */
    bool back;   /* what we hold of the receiver: it is behind its own past */
    bool accuse; /* that it is said to be dead: it is to answer for itself */
};
/* To a member, or with @slot NO_SLOT to a node without a claim here (@to NULL: whoever it is). */
void send_message(struct swim *s, const struct wire_head *h, uint32_t slot, const struct swim_id *to,
    const struct swim_addr *addr, struct load load);
/* To a member at the address that it claims. */
void send_member(
    struct swim *s, enum wire_type type, bool want, uint32_t seq, uint32_t slot, struct load load);
void gossip(struct swim *s);

/* swim_claims.c: what is said of members, and what becomes of it */
void news(struct swim *s, uint32_t slot, bool urgent);
void news_sent(struct swim *s, uint32_t slot);
/* False for a wrong signature. */
bool take_claim(struct swim *s, const struct claim_view *v);
void accuse(
    struct swim *s, const struct swim_id *id, uint64_t incarnation, const uint8_t *accusers, unsigned n);
void declare_dead(struct swim *s, const struct swim_id *id, uint64_t incarnation, const struct swim_id *by);
void die(struct swim *s, uint32_t slot);
void forget(struct swim *s, uint32_t slot);
/* A new claim of one's own. 0 or SYM_E*. */
int claim_self(struct swim *s, const struct swim_addr *addr, const void *meta, size_t n, bool left);
/* If it is due. */
void refute(struct swim *s);
void health_add(struct swim *s, int by);

/* swim_suspect.c */
void suspect_new(struct swim *s, uint32_t slot, const struct swim_id *accuser);
/* Would one more accuser of a suspect change anything? */
bool suspect_counts(const struct swim *s, uint32_t slot, const struct swim_id *accuser);
void suspect_confirm(struct swim *s, uint32_t slot, const struct swim_id *accuser);
void suspect_end(struct swim *s, uint32_t slot);
/* The shortest that a suspicion lasts, and how long that of a suspect has; ms. */
uint64_t suspect_least(const struct swim *s);
uint64_t suspect_for(struct swim *s, uint32_t slot);
void suspect_tick(struct swim *s);
uint64_t suspect_next(const struct swim *s);
void suspect_shift(struct swim *s, uint64_t by);
void suspect_free(struct swim *s);

/* swim_probe.c */
void probe_tick(struct swim *s);
/* A member was silent to all that a probe, or ask(), has tried. */
void unanswered(struct swim *s, uint32_t slot);
void probe_void(struct swim *s);
void probe_ack(struct swim *s, const struct swim_id *from, uint32_t seq);
void probe_nack(struct swim *s, const struct swim_id *from, uint32_t seq);
uint64_t probe_next(const struct swim *s);
void reconnect(struct swim *s);

/* swim_relay.c */
void relay_ask(
    struct swim *s, const struct wire_head *h, const struct swim_id *from, const struct swim_addr *addr);
void relay_ack(struct swim *s, const struct swim_id *from, uint32_t seq);
void relay_tick(struct swim *s);

#endif
