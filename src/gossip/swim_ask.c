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
    s->ask_more = true;
    if (s->ask_at == NEVER) {
        s->ask_at = s->now;
        s->ask_pos = 0;
    }
}

/* One turn: a ping that has the accusation and wants a claim, and after the last of them what silence means. */
static void turn(struct swim *s, uint32_t slot)
{
    struct member *m = slot_of(s, slot);
    m->asks = (m->asks - 1u) & 7;
    if (m->asks > 0) {
        s->ask_more = true;
        send_member(s, WIRE_PING, true, ++s->seq, slot, (struct load){.accuse = true});
    } else {
        unanswered(s, slot);
    }
}

/* In rounds, so that everybody has a period to answer in before its next turn, and no more at once than gossip has
 * receivers. */
void ask_tick(struct swim *s)
{
    const struct table *t = &s->table;
    if (s->now < s->ask_at) {
        return;
    }
    if (s->ask_pos == 0) {
        s->ask_more = false;
    }
    for (unsigned n = 0; s->ask_pos < t->n_seq && n < s->c.fanout; s->ask_pos++) {
        uint32_t slot = t->seq[s->ask_pos];
        if (slot_of(s, slot)->asks > 0) {
            turn(s, slot);
            n++;
        }
    }
    if (s->ask_pos < t->n_seq) {
        s->ask_at = s->now + s->c.gossip_ms;
    } else {
        s->ask_pos = 0;
        s->ask_at = s->ask_more ? s->now + (uint64_t)s->c.period_ms * (s->health + 1) : NEVER;
    }
}
