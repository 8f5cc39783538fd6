/* Gossip on the network: the protocol core (swim.h) in its envelope (seal.h) on one UDP socket of a libuv loop, with the
 * table of the nodes that are known and their public keys. Who is told what of an event is the caller's.
 *
 * All callbacks fire from the loop, never from within a function of this header, and may call any of them. After
 * gossip_close none fires but the one given to it.
 *
 * What comes from the network costs little: a datagram is refused by the cheapest reason there is (seal.h), a turn of
 * the loop takes a bounded number of them, and those that are refused a bounded number a second: beyond it the socket
 * rests and the system drops what does not fit into its buffer. That hits what is genuine, too: a node under such a
 * flood does not hear others, who then reach it over the reliable channel. Before a tick of the protocol is run what has
 * arrived is taken in, so that a process that did not run for a while finds its answers. What cannot be sent at once is
 * counted and dropped: the protocol counts on losses. */
#ifndef SYM_GOSSIP_GOSSIP_H
#define SYM_GOSSIP_GOSSIP_H

#include "crypto/crypto.h"
#include "gossip/seal.h"
#include "gossip/swim.h"

#include <uv.h>

enum { GOSSIP_LEAVE_MS = 1000 };

struct gossip_ops {
    /* @m is valid during the call, and as it was when it happened. */
    void (*event)(void *arg, enum swim_event what, const struct swim_member *m);
    /* There were more events than could be kept, or no memory for them: some have not been told. All that happened
     * before this call shows in the members: look at them. May be NULL. */
    void (*lost)(void *arg);
    /* The reliable channel to @m is wanted; answer by gossip_probe_done. NULL, at any time: there is none. */
    void (*probe)(void *arg, const struct swim_member *m, uint32_t ticket);
};

struct gossip_config {
    /* Without seed. An address with port 0 gets the one that was bound. */
    struct swim_config swim;
    uint64_t start;        /* seal.h: higher than that of every earlier process of this node */
    const char *bind_addr; /* numeric; an IPv6 one takes IPv4 as well where it is "::" */
    uint16_t port;         /* 0: a free one */
    const struct key *key; /* this node's; not needed beyond the call */
    const struct seal_key *keys;
    size_t n_keys;
};

struct gossip_stats {
    struct swim_stats swim;
    uint64_t verdicts[SEAL_VERDICTS]; /* of the envelopes that came */
    uint64_t in, in_bytes;            /* on the wire, without UDP's and IP's headers */
    uint64_t out, out_bytes;
    uint64_t out_full;       /* the system had no room */
    uint64_t out_failed;     /* for another reason: no route, a firewall */
    uint64_t pauses;         /* the budget for what is refused was used up */
    uint64_t system_dropped; /* by the system, for lack of room in the socket's buffer */
    uint64_t events_lost;
    unsigned peers;          /* known nodes */
    unsigned keys_of_others; /* of the ring, that something was sealed with in the last minute */
};

struct gossip_key_use {
    uint32_t id;
    uint64_t ago_ms; /* since a datagram that was sealed with it came; UINT64_MAX: none has */
};

struct gossip;

/* SYM_EINUSE when the port is taken, with it in the message; SYM_EINVAL, SYM_EDENIED, SYM_ENOMEM, SYM_EIO. @arg is for
 * @ops, which is borrowed for good. */
int gossip_open(uv_loop_t *loop, const struct gossip_config *c, const struct gossip_ops *ops, void *arg,
    struct gossip **out);
/* @closed (may be NULL) fires from the loop when everything is freed. Once. Does not say goodbye: gossip_leave. */
void gossip_close(struct gossip *g, void (*closed)(void *arg), void *arg);
uint16_t gossip_port(const struct gossip *g);

/* As seal_keys. When a key was last used is kept for those that stay. */
int gossip_keys(struct gossip *g, const struct seal_key *keys, size_t n);
/* Of each key of the ring; how many they are, at most SEAL_KEYS_MAX. */
size_t gossip_key_uses(const struct gossip *g, struct gossip_key_use out[SEAL_KEYS_MAX]);

/* @id is a node of the cluster with this public key (again: with this one now). SYM_EINVAL for any key but P-256,
 * SYM_ENOMEM. This node's own id is taken and means nothing. */
int gossip_peer(struct gossip *g, const struct swim_id *id, const void *spki, size_t n);
/* It is no more. From now on it is ignored; its member is forgotten in the next turn of the loop. */
void gossip_forget(struct gossip *g, const struct swim_id *id);

/* As in swim.h. */
int gossip_update(struct gossip *g, const struct swim_addr *addr, const void *meta, size_t n);
void gossip_join(struct gossip *g, const struct swim_addr *addr);
int gossip_merge(struct gossip *g, const struct swim_id *from, const void *data, size_t n);
void gossip_probe_done(struct gossip *g, uint32_t ticket, bool alive);
/* Tells all that this node leaves. @done when that has been said often enough, after GOSSIP_LEAVE_MS at the latest.
 * SYM_EBUSY when it is leaving already, else as swim_leave; then @done does not fire. */
int gossip_leave(struct gossip *g, void (*done)(void *arg), void *arg);

/* The core, to look at: swim_export, swim_get, swim_each, swim_count, swim_health. Nothing else of it may be called. */
const struct swim *gossip_swim(const struct gossip *g);
/* What this node says of itself. */
void gossip_self(const struct gossip *g, struct swim_member *out);
/* How long it has been in its state, ms. */
uint64_t gossip_age(const struct gossip *g, const struct swim_member *m);
void gossip_stats(const struct gossip *g, struct gossip_stats *out);

#endif
