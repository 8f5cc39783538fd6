/* Probes for others (SWIM 3.1, nacks of Lifeguard IV-A). Only a member is pinged, at the address that it signed: nobody
 * can have us send to where he likes. */
#include "gossip/swim_int.h"

static void answer(struct swim *s, enum wire_type type, const struct relay *r)
{
    struct wire_head h = {.type = type, .seq = r->origin_seq};
    struct swim_id to = r->origin;
    struct swim_addr addr = r->origin_addr;
    send_message(s, &h, table_find(&s->table, &to), &to, &addr, (struct load){0});
}

static void end(struct swim *s, struct relay *r)
{
    r->active = false;
    s->n_relays--;
}

/* A free place, or NULL if the asker has enough under way, or all have. */
static struct relay *place(struct swim *s, const struct swim_id *origin)
{
    struct relay *r = NULL;
    unsigned of_one = 0;
    for (unsigned i = 0; i < RELAYS_MAX; i++) {
        if (!s->relays[i].active) {
            r = &s->relays[i];
        } else if (swim_id_eq(&s->relays[i].origin, origin) && ++of_one == RELAYS_OF_ONE) {
            return NULL;
        }
    }
    return r;
}

void relay_ask(
    struct swim *s, const struct wire_head *h, const struct swim_id *from, const struct swim_addr *addr)
{
    struct relay *r = place(s, from);
    uint32_t slot = table_find(&s->table, &h->target);
    if (r == NULL || slot == SELF) {
        s->stats.relays_refused += r == NULL ? 1 : 0;
        return;
    }
    uint64_t wait = h->wait_ms < RELAY_WAIT_MAX ? h->wait_ms : RELAY_WAIT_MAX;
    struct relay ask = {.active = true,
        .origin = *from,
        .target = h->target,
        .origin_addr = *addr,
        .origin_seq = h->seq,
        .seq = ++s->seq,
        .nack_at = s->now + wait,
        .until = s->now + 2 * wait};
    if (slot == NO_SLOT || slot_of(s, slot)->state == SWIM_LEFT) {
        answer(s, WIRE_NACK, &ask); /* we cannot help, but we are here */
        return;
    }
    *r = ask;
    s->n_relays++;
    s->relay_at = earlier(s->relay_at, ask.nack_at);
    send_member(s, WIRE_PING, false, ask.seq, slot, (struct load){0});
}

void relay_ack(struct swim *s, const struct swim_id *from, uint32_t seq)
{
    for (unsigned i = 0; i < RELAYS_MAX && s->n_relays > 0; i++) {
        struct relay *r = &s->relays[i];
        if (r->active && r->seq == seq && swim_id_eq(&r->target, from)) {
            end(s, r);
            answer(s, WIRE_ACK, r);
            return;
        }
    }
}

void relay_tick(struct swim *s)
{
    if (s->now < s->relay_at) {
        return;
    }
    s->relay_at = NEVER;
    for (unsigned i = 0; i < RELAYS_MAX && s->n_relays > 0; i++) {
        struct relay *r = &s->relays[i];
        if (r->active && s->now >= r->until) {
            end(s, r);
        } else if (r->active && !r->nacked && s->now >= r->nack_at) {
            r->nacked = true;
            if (!s->c.without_lifeguard) {
                answer(s, WIRE_NACK, r);
            }
        }
        if (r->active) {
            s->relay_at = earlier(s->relay_at, r->nacked ? r->until : r->nack_at);
        }
    }
}
