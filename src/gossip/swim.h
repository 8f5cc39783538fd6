/* Who is there and who is not: the gossip protocol of the cluster, as a pure core. It has no clock, socket, thread or
 * global; a driver (or a simulator) gives it the time, datagrams and answers, and it calls back with datagrams to send
 * and with what changed.
 *
 * Sources, cited below by their sections:
 *   SWIM: Das, Gupta, Motivala, "SWIM: Scalable Weakly-consistent Infection-style Process Group Membership
 *     Protocol", DSN 2002.
 *   Lifeguard: Dadgar, Phillips, Currey, "Lifeguard: Local Health Awareness for More Accurate Failure Detection",
 *     arXiv:1707.00788v2.
 *
 * What it does
 *
 * - Every period one member is pinged, in an order that is shuffled after each round (SWIM 4.3). Without an answer
 *   within probe_timeout_ms, `helpers` others are asked to ping it (SWIM 3.1), it is pinged up to three times more,
 *   and the driver is asked to try the reliable channel. Who answers by the end of the period is alive. A helper that
 *   had no answer says so (nack), so that silence of the helpers points at ourselves.
 * - Otherwise it is suspected (SWIM 4.2), which only its own word with a higher incarnation takes back. A suspicion
 *   becomes death after a time that starts long and shrinks with every other member that suspects it by itself
 *   (Lifeguard IV-B), see suspicion_ms(). A suspected or dead member is told in every message to it (IV-C).
 * - Local health (Lifeguard IV-A): probes that went wrong in a way that points at ourselves, and having had to refute,
 *   make period and timeouts longer, up to `health_max` + 1 times. Beyond the paper: a tick that comes late shows that
 *   this process did not run. The time lost counts neither against a probe nor towards a suspicion.
 * - News ride on every message (SWIM 4.1), those sent least often first, each at most lambda * ln(n + 1) times. While
 *   there are news, `fanout` members get a message of them every gossip_ms, too; without news nothing is sent but the
 *   probes, so that the traffic of a node does not depend on the number of members.
 * - One dead member every reconnect_ms is pinged: after a partition both sides find each other again, and full
 *   exchanges (swim_export, swim_merge), which the driver carries over its reliable channel, do the rest. Every message
 *   has a digest of the members that its sender knows, so that a full exchange takes place where something is missing
 *   (SWIM_DIFFERS), and not by the clock.
 * - What an exchange says against a member that is alive here is hearsay: maybe minutes old, from the other side of a
 *   partition, and about half of the members at once. So many suspicions would end before the words against them have
 *   come to all. It is a reason to ask: the member is pinged, with the accusation, until its new claim is here; at most
 *   `fanout` members every gossip_ms, as many as get messages of news. Who makes none after four pings, a period or
 *   more apart, is suspected, by us and by nobody else yet. Who is dead here and alive there is asked in the same way:
 *   after a partition everybody has to make a new claim, and so hears of it soon.
 *
 * Who is believed
 *
 * - The driver authenticates the sender of each datagram (gossip/seal.h) and passes its id. Whoever is not known()
 *   is ignored and counted.
 * - What a member says of itself (alive or left, address, metadata) is a *claim* that it signed. Nobody believes an
 *   unsigned one, and only a higher incarnation replaces a claim. What is signed is bound to the cluster (claim_text in
 *   swim_text.c): id, incarnation, left or not, address, metadata. The incarnation is the version of all of it.
 * - A member can raise its incarnation without end. Ten claims at once and five a second after that are looked at;
 *   others are left until they come again, and then it is the newest of them that counts. A member refutes no more
 *   often than that, so that whoever is honest never waits.
 * - That a member is suspected or dead is said by others and not signed. It counts only against the incarnation that
 *   we hold a claim of, it is gossip's opinion and no more (the status of a node takes more than this), and the member
 *   takes it back with one signature. Only known members count as accusers, and whoever is said to be dead, but has not
 *   been suspected here for at least half of the shortest suspicion, is only suspected. Of what a full exchange says
 *   nobody becomes suspect who makes a new claim; a false one costs a ping and that of everybody whom it names.
 *
 * What a driver does: one timer at swim_next(); datagrams in and out through seal.h; a full exchange, both ways, with a
 * manager when it starts, and with the member that SWIM_RETURNED or SWIM_DIFFERS names; swim_recheck (and seal_forget)
 * when nodes are removed; swim_leave and then some ticks, until swim_has_left() or a second is over, before it stops. A
 * claim costs a signature's verification on the caller's thread: pieces of a few KiB, with the loop in between, keep
 * that short.
 *
 * Conventions: times are ms of a clock that never goes back (its zero does not matter). Functions return 0 or SYM_E*;
 * what goes wrong inside without a caller to tell is counted in swim_stats. Callbacks fire only from within swim_tick,
 * swim_receive, swim_probe_done, swim_merge, swim_update, swim_leave, swim_join and swim_recheck, and must not call
 * functions of this header other than swim_get, swim_stats and swim_health. Without memory a claim or a suspicion is
 * dropped and counted; it comes again.
 */
#ifndef SYM_GOSSIP_SWIM_H
#define SYM_GOSSIP_SWIM_H

#include "base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    SWIM_ID_LEN = 16,    /* 26 characters of base32 */
    SWIM_META_MAX = 192, /* metadata of a member, bytes */
    SWIM_SIG_MAX = 80,   /* an ECDSA P-256 signature has at most 72 */
    SWIM_CLUSTER_MAX = 64,
    /* A datagram has at most 1,400 bytes, so that with IPv6 and UDP headers and a tunnel it fits into 1,500. 64 are for
     * the envelope: format, key and flags, the sender's id and start, counter, tag (seal.h needs 54). */
    SWIM_DATAGRAM_MAX = 1400 - 64,
    /* A piece of a full exchange: a merge of one checks some 130 signatures, and no more after a wrong one. */
    SWIM_PIECE_MAX = 16 * 1024,
    SWIM_HELPERS_MAX = 8,
    SWIM_CONFIRMATIONS_MAX = 7,
};

struct swim_id {
    uint8_t b[SWIM_ID_LEN];
};

struct swim_addr {
    uint8_t family; /* 4 or 6; 0: none */
    uint16_t port;
    uint8_t ip[16]; /* network order, the first 4 for an IPv4 address, zero behind */
};

enum swim_state { SWIM_ALIVE, SWIM_SUSPECT, SWIM_DEAD, SWIM_LEFT };

/* A view that is valid until the next call that takes the time, or returns to the caller of the callback. */
struct swim_member {
    struct swim_id id;
    struct swim_addr addr;
    enum swim_state state;
    uint64_t since; /* when the state was entered here */
    uint64_t incarnation;
    const uint8_t *meta;
    size_t meta_len;
};

enum swim_event {
    SWIM_JOINED,    /* a member not known before, or forgotten meanwhile, is alive */
    SWIM_SUSPECTED, /* alive before */
    SWIM_REFUTED,   /* suspect before, alive */
    SWIM_DIED,      /* alive or suspect before */
    SWIM_RETURNED, /* dead or left before, alive. The driver exchanges full states with it, unless it did so with
                       anybody some seconds ago: it may stand for the other side of a healed partition. */
    SWIM_DIFFERS, /* it knows other members or incarnations than we do, though neither has news to tell. The driver
                       exchanges full states with it. Once a second at most, less often if that does not help. */
    SWIM_DEPARTED, /* it said that it leaves */
    SWIM_UPDATED, /* address or metadata are new; beside SWIM_REFUTED or SWIM_RETURNED where both are so, after it */
    SWIM_FORGOTTEN, /* dead or left for long, or no longer known */
    SWIM_ACCUSED,   /* of oneself: suspected or dead for somebody; it has been refuted, or will be soon */
    SWIM_DOUBLE, /* of oneself, or a member: two claims of one incarnation that differ, or one from the future of
                       this process: somebody else has the key, or the start incarnation went back. */
};

struct swim_ops {
    /* Sends one datagram, of at most SWIM_DATAGRAM_MAX bytes, valid during the call. @to is NULL for an address whose
     * node is not known (swim_join). Losing it is fine. */
    void (*send)(
        void *arg, const struct swim_id *to, const struct swim_addr *addr, const void *data, size_t n);
    /* Is this a node of the cluster, in the state as this node knows it? */
    bool (*known)(void *arg, const struct swim_id *id);
    /* Is @sig the signature of @id's key over @text? Called once for every claim that would be news. */
    bool (*verify)(
        void *arg, const struct swim_id *id, const void *text, size_t n, const void *sig, size_t sig_len);
    /* Signs with this node's key; 0 and *sig_len, at most SWIM_SIG_MAX, or SYM_E*: it is tried again when it is due
     * again. */
    int (*sign)(void *arg, const void *text, size_t n, void *sig, size_t *sig_len);
    /* May be NULL. Begins to reach @m over the reliable channel; the answer comes by swim_probe_done with @ticket, at
     * any later time but not from within. False: not available. */
    bool (*probe)(void *arg, const struct swim_member *m, uint32_t ticket);
    /* May be NULL. */
    void (*event)(void *arg, enum swim_event what, const struct swim_member *m);
};

/* 0 in a field: the default in brackets. Refused by swim_open: values out of the range behind it. */
struct swim_config {
    struct swim_id id;
    struct swim_addr addr; /* that others are to reach this node at */
    const void *meta;
    size_t meta_len;
    /* Where the incarnations of this process begin: more than any that the node had before. ms since 1970 will do; if
     * that clock went back, the node learns of its old claims from others and goes above them. */
    uint64_t incarnation;
    const void *cluster; /* what claims are bound to, the cluster's id; at most SWIM_CLUSTER_MAX */
    size_t cluster_len;
    uint64_t seed; /* of all chance; unpredictable in production */

    uint32_t period_ms; /* (300; 20 to 60,000) between two probes */
    uint32_t
        probe_timeout_ms; /* (120; less than the period) for a direct answer, above the usual round trip */
    uint32_t helpers;     /* (3; at most SWIM_HELPERS_MAX) k of SWIM 3.1 */
    uint32_t health_max;  /* (8; at most 32) S of Lifeguard IV-A */
    uint32_t suspicion_alpha; /* (4; 1 to 100) shortest suspicion: alpha * max(1, log10 n) * period */
    uint32_t suspicion_beta;  /* (6; 1 to 100) longest, in shortest ones */
    uint32_t
        confirmations;  /* (3; at most SWIM_CONFIRMATIONS_MAX) K of Lifeguard IV-B: then it is the shortest */
    uint32_t lambda;    /* (3; 1 to 4) SWIM 4.1: a piece of news is sent at most lambda * ln(n + 1) times */
    uint32_t gossip_ms; /* (100; 10 to 60,000) */
    uint32_t fanout;    /* (3; at most 16) */
    uint32_t reconnect_ms; /* (2,000; 100 to 3,600,000) */
    uint32_t forget_ms;    /* (3,600,000; at least 1,000) dead and left members are remembered */
    uint32_t max_members;  /* (20,000; at most 1,000,000) further ones are ignored and counted */
    bool
        without_lifeguard; /* SWIM alone: no local health, no nacks, suspicions of the shortest time, no buddies;
                                  to compare */
};

struct swim_stats {
    uint64_t sent, sent_bytes, received, received_bytes; /* datagrams, without their envelope */
    uint64_t malformed;      /* datagrams and pieces that are not what they should be */
    uint64_t strangers;      /* datagrams whose sender is not known */
    uint64_t bad_signatures; /* claims; the rest of the datagram is ignored */
    uint64_t
        claims_deferred; /* of members that raise their incarnation more often than five times a second */
    uint64_t probes, probes_indirect, probes_failed;
    uint64_t probes_void;    /* without a result, since this process did not run */
    uint64_t relays_refused; /* asked to help, but too much of it is under way */
    uint64_t refutations;
    uint64_t news_sent;          /* pieces of news in datagrams */
    uint64_t stalls, stalled_ms; /* ticks that came late */
    uint64_t full;               /* members that had no place */
    uint64_t no_memory;
};

struct swim;

/* 0 or SYM_EINVAL, SYM_ENOMEM, or what sign() said. @arg is for the callbacks. Begins with a claim of its own, which
 * goes out with whatever is sent. */
int swim_open(
    const struct swim_config *config, const struct swim_ops *ops, void *arg, uint64_t now, struct swim **out);
/* No callback fires. NULL is fine. */
void swim_close(struct swim *s);

/* When swim_tick is due next, maybe already. May become earlier in every other call: ask after each. */
uint64_t swim_next(const struct swim *s);
/* What is due. Call it when due; a call that is later by more than probe_timeout_ms counts as a stall. After a stall,
 * give it what has arrived meanwhile before the next tick. */
void swim_tick(struct swim *s, uint64_t now);
/* A datagram from @from, authenticated, that came from @addr. Never calls event() for a datagram that is not whole. */
void swim_receive(struct swim *s, uint64_t now, const struct swim_id *from, const struct swim_addr *addr,
    const void *data, size_t n);
/* The answer to probe(). A late or unknown ticket is ignored. */
void swim_probe_done(struct swim *s, uint64_t now, uint32_t ticket, bool alive);

/* Introduces this node to whoever listens at @addr. A full exchange with a member over the reliable channel does more:
 * this is for where there is none, and to show that UDP gets through. */
void swim_join(struct swim *s, uint64_t now, const struct swim_addr *addr);
/* A new address and metadata of this node, told to all. 0 or SYM_EINVAL, SYM_ENOMEM, sign()'s: then nothing changed. */
int swim_update(struct swim *s, uint64_t now, const struct swim_addr *addr, const void *meta, size_t n);
/* Tells all that this node leaves; from then on it pings nobody and refutes nothing. As swim_update. */
int swim_leave(struct swim *s, uint64_t now);
/* True when the leave has been sent as often as any news. Nobody to tell it to is as good. */
bool swim_has_left(const struct swim *s);
/* Nodes have been removed from the cluster: forgets those that are no longer known(). */
void swim_recheck(struct swim *s, uint64_t now);

/* One piece of the full state, at most @max bytes (1,024 to SWIM_PIECE_MAX): appended to @out, for swim_merge of
 * another node. *cursor is 0 for the first piece; it is 0 again after the last. Members that come or go meanwhile may
 * be in it or not. 0 or SYM_EINVAL, SYM_ENOMEM: @out is unchanged. */
int swim_export(const struct swim *s, uint32_t *cursor, size_t max, struct buf *out);
/* Takes in a piece that @from exported, as if it had said all of that in datagrams; but those that are new here and
 * dead or gone there are left out, and those that are alive here and suspected or dead there, or dead here and alive
 * there, are asked first. 0 or SYM_EPROTO for bytes that are no piece (nothing is changed), SYM_EAUTH for one with a
 * wrong signature (what stood before it is taken in). */
int swim_merge(struct swim *s, uint64_t now, const struct swim_id *from, const void *data, size_t n);

/* False if there is no such member. One's own id is one. */
bool swim_get(const struct swim *s, const struct swim_id *id, struct swim_member *out);
/* All members in no order: *cursor is 0 for the first; false after the last. Not while the members change. */
bool swim_each(const struct swim *s, uint32_t *cursor, struct swim_member *out);
/* Alive and suspect ones, with oneself. */
size_t swim_count(const struct swim *s);
/* Local health: 0 is well, up to health_max. */
unsigned swim_health(const struct swim *s);
const struct swim_stats *swim_stats(const struct swim *s);

static inline bool swim_id_eq(const struct swim_id *a, const struct swim_id *b)
{
    return __builtin_memcmp(a->b, b->b, SWIM_ID_LEN) == 0;
}
static inline bool swim_addr_eq(const struct swim_addr *a, const struct swim_addr *b)
{
    return a->family == b->family && a->port == b->port && __builtin_memcmp(a->ip, b->ip, sizeof a->ip) == 0;
}
/* 26 characters of base32; SYM_EINVAL. */
int swim_id_parse(const char *text, struct swim_id *out);
void swim_id_text(const struct swim_id *id, char out[27]);

/* How long a suspicion lasts: from @max down to @min with the logarithm of the confirmations @c beyond the first
 * accuser, of @k that are waited for (Lifeguard IV-B). ms. */
uint64_t suspicion_ms(uint64_t min, uint64_t max, unsigned c, unsigned k);

#endif
