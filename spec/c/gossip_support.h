/* One node of the gossip core, and the rest of the cluster played by hand: what the node sends is kept, and others say
 * to it what a test wants. */
#ifndef SYM_SPEC_GOSSIP_SUPPORT_H
#define SYM_SPEC_GOSSIP_SUPPORT_H

#include "check.h"

#include "gossip/swim.h"
#include "gossip/swim_wire.h"

#include <stdlib.h>
#include <string.h>

enum { ME = 1, SENT_MAX = 4096, EVENTS_MAX = 4096, PERIOD = 300, TIMEOUT = 120 };

struct sent {
    uint32_t to;
    uint64_t at;
    struct wire_head head;
    struct rd records; /* of @data */
    size_t n;
    uint8_t data[SWIM_DATAGRAM_MAX];
};

struct world {
    struct swim *s;
    uint64_t now;
    struct sent *sent;
    unsigned n_sent;
    struct {
        enum swim_event what;
        uint32_t of;
    } events[EVENTS_MAX];
    unsigned n_events, signs, verifies, probes;
    uint32_t ticket;
    uint32_t unknown; /* the one that is not known; 0: all are */
    int sign_error;
    bool can_probe;
};

static inline struct swim_id id_of(uint32_t i)
{
    struct swim_id id = {{0}};
    memcpy(id.b, &i, sizeof i);
    return id;
}

static inline uint32_t index_of(const struct swim_id *id)
{
    uint32_t i;
    memcpy(&i, id->b, sizeof i);
    return i;
}

static inline struct swim_addr addr_of(uint32_t i)
{
    return (struct swim_addr){.family = 4, .port = 37065, .ip = {10, 0, (uint8_t)(i >> 8), (uint8_t)i}};
}

/* Four bytes that depend on signer and text. */
static inline void sign_with(const struct swim_id *id, const void *text, size_t n, uint8_t sig[4])
{
    uint32_t h = 2166136261u ^ index_of(id);
    for (size_t i = 0; i < n; i++) {
        h = (h ^ ((const uint8_t *)text)[i]) * 16777619u;
    }
    memcpy(sig, &h, sizeof h);
}

static void world_send(
    void *arg, const struct swim_id *to, const struct swim_addr *addr, const void *data, size_t n)
{
    struct world *w = arg;
    assert_true(w->n_sent < SENT_MAX && n <= SWIM_DATAGRAM_MAX);
    struct sent *m = &w->sent[w->n_sent++];
    m->to = to == NULL ? 0 : index_of(to);
    m->at = w->now;
    m->n = n;
    memcpy(m->data, data, n);
    assert_true(wire_datagram(m->data, n, &m->head, &m->records));
    assert_int_equal(addr->family, 4);
}

static bool world_known(void *arg, const struct swim_id *id)
{
    const struct world *w = arg;
    return w->unknown == 0 || index_of(id) != w->unknown;
}

static bool world_verify(
    void *arg, const struct swim_id *id, const void *text, size_t n, const void *sig, size_t sig_len)
{
    struct world *w = arg;
    uint8_t right[4];
    w->verifies++;
    sign_with(id, text, n, right);
    return sig_len == 4 && memcmp(sig, right, 4) == 0;
}

static int world_sign(void *arg, const void *text, size_t n, void *sig, size_t *sig_len)
{
    struct world *w = arg;
    struct swim_id me = id_of(ME);
    w->signs++;
    if (w->sign_error != 0) {
        return w->sign_error;
    }
    sign_with(&me, text, n, sig);
    *sig_len = 4;
    return 0;
}

static bool world_probe(void *arg, const struct swim_member *m, uint32_t ticket)
{
    struct world *w = arg;
    (void)m;
    w->probes++;
    w->ticket = ticket;
    return w->can_probe;
}

static void world_event(void *arg, enum swim_event what, const struct swim_member *m)
{
    struct world *w = arg;
    assert_true(w->n_events < EVENTS_MAX);
    w->events[w->n_events].what = what;
    w->events[w->n_events++].of = index_of(&m->id);
}

static const struct swim_ops world_ops = {.send = world_send,
    .known = world_known,
    .verify = world_verify,
    .sign = world_sign,
    .probe = world_probe,
    .event = world_event};

static inline struct swim_config world_config(void)
{
    return (struct swim_config){.id = id_of(ME),
        .addr = addr_of(ME),
        .meta = "me",
        .meta_len = 2,
        .incarnation = 100,
        .cluster = "test",
        .cluster_len = 4,
        .seed = 5};
}

/* A datagram that is put together by hand. */
struct said {
    struct buf b;
    struct wr w;
};

static inline void say(struct said *m, enum wire_type type, uint32_t seq, uint64_t incarnation)
{
    struct wire_head h = {.type = type, .seq = seq, .incarnation = incarnation};
    /* Large enough from the start: what comes from the network does not lack memory here. */
    *m = (struct said){.b = {.base = (malloc)(2 * SWIM_DATAGRAM_MAX), .cap = 2 * SWIM_DATAGRAM_MAX}};
    assert_non_null(m->b.base);
    m->w = wr_init(&m->b);
    wire_put_head(&m->w, &h);
}

/* A claim of @i; with @changed its signature is wrong. */
static inline void say_claim(
    struct said *m, uint32_t i, uint64_t incarnation, bool left, const char *meta, bool changed)
{
    uint8_t text[CLAIM_TEXT_MAX], sig[4];
    struct claim_view v = {.id = id_of(i),
        .incarnation = incarnation,
        .left = left,
        .addr = addr_of(i),
        .meta = (const uint8_t *)meta,
        .meta_len = (uint8_t)strlen(meta),
        .sig = sig,
        .sig_len = 4};
    sign_with(&v.id, text, claim_text(&v, "test", 4, text), sig);
    sig[0] ^= changed ? 1 : 0;
    wire_put_claim(&m->w, &v);
}

static inline void say_suspect(struct said *m, uint32_t i, uint64_t incarnation, uint32_t accuser)
{
    struct swim_id id = id_of(i), by = id_of(accuser);
    wire_put_suspect(&m->w, &id, incarnation, &by, 1);
}

static inline void say_dead(struct said *m, uint32_t i, uint64_t incarnation)
{
    struct swim_id id = id_of(i);
    wire_put_dead(&m->w, &id, incarnation);
}

static inline void deliver(struct world *w, uint32_t from, struct said *m)
{
    struct swim_id id = id_of(from);
    struct swim_addr addr = addr_of(from);
    swim_receive(w->s, w->now, &id, &addr, buf_data(&m->b), m->b.len);
    buf_free(&m->b);
}

/* The claims of members 2 to @n, of incarnation 10, by gossip. */
static inline void meet(struct world *w, uint32_t n)
{
    for (uint32_t i = 2; i <= n; i++) {
        struct said m;
        say(&m, WIRE_GOSSIP, 0, 10);
        say_claim(&m, i, 10, false, "meta", false);
        deliver(w, i, &m);
    }
}

static inline void world_open(struct world *w, const struct swim_config *c, uint32_t members)
{
    *w = (struct world){.now = 1000};
    w->sent = calloc(SENT_MAX, sizeof *w->sent);
    assert_non_null(w->sent);
    OK(swim_open(c, &world_ops, w, w->now, &w->s));
    meet(w, members);
}

static inline void world_close(struct world *w)
{
    swim_close(w->s);
    free(w->sent);
}

/* The first message from @from on, of this kind; NULL: none. */
static inline struct sent *find_sent(struct world *w, unsigned from, enum wire_type type, uint32_t to)
{
    for (unsigned i = from; i < w->n_sent; i++) {
        if (w->sent[i].head.type == type && (to == 0 || w->sent[i].to == to)) {
            return &w->sent[i];
        }
    }
    return NULL;
}

/* Does the message hold a record of this kind about @of? */
static inline bool holds(const struct sent *m, enum wire_kind kind, uint32_t of, struct wire_record *out)
{
    struct rd r = m->records;
    while (wire_get(&r, out)) {
        if (out->kind == kind && index_of(&out->id) == of) {
            return true;
        }
    }
    return false;
}

static inline unsigned count_events(const struct world *w, enum swim_event what, uint32_t of)
{
    unsigned n = 0;
    for (unsigned i = 0; i < w->n_events; i++) {
        n += w->events[i].what == what && w->events[i].of == of;
    }
    return n;
}

/* Runs for @ms; everybody but those in @silent (a set of bits) answers pings at once. */
static inline void live(struct world *w, uint64_t ms, uint64_t silent)
{
    uint64_t until = w->now + ms;
    unsigned seen = w->n_sent;
    while (swim_next(w->s) <= until) {
        w->now = swim_next(w->s) > w->now ? swim_next(w->s) : w->now;
        swim_tick(w->s, w->now);
        for (; seen < w->n_sent; seen++) {
            const struct sent *m = &w->sent[seen];
            if (m->head.type == WIRE_PING && (m->to >= 64 || (silent >> m->to & 1) == 0)) {
                struct said ack;
                say(&ack, WIRE_ACK, m->head.seq, 10);
                deliver(w, m->to, &ack);
            }
        }
        if (w->n_sent > SENT_MAX / 2) { /* what is old is let go */
            w->n_sent = seen = 0;
        }
    }
    w->now = until;
}

static inline enum swim_state state_of(const struct world *w, uint32_t i)
{
    struct swim_member m;
    struct swim_id id = id_of(i);
    if (!swim_get(w->s, &id, &m)) {
        fail_msg("no member %u", i);
    }
    return m.state;
}

#endif
