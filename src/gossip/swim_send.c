/* Messages: a head, what the receiver has to know, and news as far as there is room. */
#include "gossip/swim_int.h"

#include <string.h>

static size_t record_len(const struct member *m)
{
    switch (m->state) {
    case SWIM_SUSPECT:
        return WIRE_DEAD_LEN + 1 + (size_t)m->suspicion->n * SWIM_ID_LEN;
    case SWIM_DEAD:
        return WIRE_DEAD_LEN;
    default:
        return wire_claim_len(m->claim);
    }
}

static void put_claim(struct wr *w, const struct member *m)
{
    struct claim_view v;
    claim_view(m->claim, &v);
    wire_put_claim(w, &v);
}

static void put_record(struct wr *w, const struct member *m)
{
    switch (m->state) {
    case SWIM_SUSPECT:
        wire_put_suspect(w, &m->claim->id, m->claim->incarnation, m->suspicion->accusers, m->suspicion->n);
        break;
    case SWIM_DEAD:
        wire_put_dead(w, &m->claim->id, m->claim->incarnation);
        break;
    default:
        put_claim(w, m);
    }
}

/* Passes over what has gone with this message already: what is news to the receiver is not what it said itself. */
static void put_news(struct swim *s, struct wr *w, uint32_t receiver, bool own)
{
    uint32_t chosen[SWIM_DATAGRAM_MAX / WIRE_DEAD_LEN];
    unsigned n = 0, misfits = 0;
    size_t room = SWIM_DATAGRAM_MAX - w->out->len;
    for (unsigned i = 0; i < QUEUE_SENDS_MAX && room >= WIRE_DEAD_LEN && misfits < MISFITS_MAX; i++) {
        for (uint32_t slot = s->queue.by_sent[i].head; slot != NO_SLOT; slot = slot_of(s, slot)->q_next) {
            size_t len = record_len(slot_of(s, slot));
            if (slot == receiver || (own && slot == SELF)) {
                continue;
            }
            if (len > room) {
                if (++misfits == MISFITS_MAX) {
                    break;
                }
                continue;
            }
            put_record(w, slot_of(s, slot));
            room -= len;
            chosen[n++] = slot;
        }
    }
    for (unsigned i = 0; i < n; i++) {
        news_sent(s, chosen[i]);
    }
    s->stats.news_sent += n;
}

void send_message(struct swim *s, const struct wire_head *h, uint32_t slot, const struct swim_id *to,
    const struct swim_addr *addr, struct load load)
{
    struct wr w = wr_init(&s->out);
    buf_clear(&s->out);
    struct wire_head head = *h;
    head.incarnation = self_claim(s)->incarnation;
    head.digest = s->table.digest;
    head.quiet = s->queue.n == 0 && s->now >= s->differ_from;
    wire_put_head(&w, &head);
    /* The buddy system (Lifeguard IV-C): whoever is suspected is the first who should know. */
    if (slot != NO_SLOT && (slot_of(s, slot)->state == SWIM_DEAD ||
                               (slot_of(s, slot)->state == SWIM_SUSPECT && !s->c.without_lifeguard))) {
        put_record(&w, slot_of(s, slot));
    } else if (load.accuse) {
        wire_put_dead(&w, to, slot_of(s, slot)->claim->incarnation);
    }
    if (load.own) {
        put_claim(&w, slot_of(s, SELF));
    }
    if (load.back && slot != NO_SLOT) {
        put_claim(&w, slot_of(s, slot));
    }
    /* One that is dead here is asked on hearsay: what it is told would mostly be told to nobody. */
    bool lost = load.accuse && slot_of(s, slot)->state == SWIM_DEAD;
    if (s->queue.n > 0 && !lost) {
        put_news(s, &w, slot, load.own);
    }
    s->stats.sent++;
    s->stats.sent_bytes += s->out.len;
    s->ops->send(s->arg, to, addr, buf_data(&s->out), s->out.len);
}

void send_member(
    struct swim *s, enum wire_type type, bool want, uint32_t seq, uint32_t slot, struct load load)
{
    const struct claim *c = slot_of(s, slot)->claim;
    struct wire_head h = {.type = type, .want = want, .seq = seq};
    struct swim_id id = c->id;
    struct swim_addr addr = c->addr;
    send_message(s, &h, slot, &id, &addr, load);
}

void gossip(struct swim *s)
{
    uint32_t to[16];
    s->gossip_at = NEVER;
    if (s->queue.n == 0) {
        return;
    }
    unsigned n = table_pick(&s->table, &s->chance, NO_SLOT, s->c.fanout, to);
    for (unsigned i = 0; i < n && s->queue.n > 0; i++) {
        send_member(s, WIRE_GOSSIP, false, 0, to[i], (struct load){0});
    }
    s->gossip_last = s->now;
    if (s->queue.n > 0) {
        s->gossip_at = s->now + s->c.gossip_ms;
    }
}
