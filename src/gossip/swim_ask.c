/* Hearsay of full exchanges: those that are to answer for themselves; see the header of swim.h. Marks in the members'
 * slots, so that nothing is allocated, and whoever is named again has no more turns for that. */
#include "gossip/swim_int.h"

enum { PINGS = 4 }; /* as many as a probe has */

void ask(struct swim *s, uint32_t slot)
{
    struct member *m = slot_of(s, slot);
    if (m->asks > 0 || s->leaving) {
        return;
    }
    m->asks = PINGS + 1;
    if (s->ask_at == NEVER) {
        s->ask_at = s->now;
        /* Not everybody who hears of the same begins with the same. */
        s->ask_next = chance_below(&s->chance, s->table.n);
        s->ask_left = s->table.n;
    }
}

/* One turn: a ping that has the accusation and wants a claim, and after the last of them what silence means. */
static void turn(struct swim *s, uint32_t slot)
{
    struct member *m = slot_of(s, slot);
    m->asks = (m->asks - 1u) & 7;
    if (m->asks > 0) {
        send_member(s, WIRE_PING, true, ++s->seq, slot, (struct load){.accuse = true});
    } else {
        unanswered(s, slot);
    }
}

static bool is_asked(const struct swim *s)
{
    for (uint32_t slot = 0; slot < s->table.n; slot++) {
        if (s->table.m[slot].asks > 0) {
            return true;
        }
    }
    return false;
}

/* In rounds over the slots, where everybody keeps its place: so that everybody has a period to answer in before its next
 * turn, and no more at once than gossip has receivers. */
void ask_tick(struct swim *s)
{
    if (s->now < s->ask_at) {
        return;
    }
    for (unsigned n = 0; s->ask_left > 0 && n < s->c.fanout; s->ask_left--) {
        uint32_t slot = s->ask_next;
        s->ask_next = slot + 1 < s->table.n ? slot + 1 : 0;
        if (slot_of(s, slot)->asks > 0) {
            turn(s, slot);
            n++;
        }
    }
    if (s->ask_left > 0) {
        s->ask_at = s->now + s->c.gossip_ms;
    } else {
        s->ask_left = s->table.n;
        s->ask_at = is_asked(s) ? s->now + (uint64_t)s->c.period_ms * (s->health + 1) : NEVER;
    }
}
