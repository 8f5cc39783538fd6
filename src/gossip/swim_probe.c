/* One's own probes (SWIM 3.1): direct, then through helpers, by the end of the period. */
#include "gossip/swim_int.h"

#include <string.h>

static uint64_t scaled(const struct swim *s, uint32_t ms)
{
    return (uint64_t)ms * (s->health + 1);
}

static void begin(struct swim *s)
{
    uint32_t slot = table_probe(&s->table, &s->chance);
    s->probe_at = s->now + scaled(s, s->c.period_ms);
    if (slot == NO_SLOT) {
        return;
    }
    s->probe = (struct probe){.active = true,
        .target = slot_of(s, slot)->claim->id,
        .seq = ++s->seq,
        .direct_until = s->now + scaled(s, s->c.probe_timeout_ms),
        .again_at = NEVER,
        .until = s->probe_at};
    s->stats.probes++;
    send_member(s, WIRE_PING, false, s->probe.seq, slot, (struct load){0});
}

static void ask_helpers(struct swim *s, uint32_t target)
{
    struct probe *p = &s->probe;
    uint32_t helpers[SWIM_HELPERS_MAX];
    p->n_helpers = table_pick(&s->table, &s->chance, target, s->c.helpers, helpers);
    /* Early enough that a nack is back by the end of the period (Lifeguard IV-A). */
    uint64_t wait = (p->until - s->now) * 6 / 10;
    struct wire_head h = {.type = WIRE_PING_REQ,
        .seq = p->seq,
        .target = p->target,
        .wait_ms = (uint16_t)(wait < RELAY_WAIT_MAX ? wait : RELAY_WAIT_MAX)};
    for (unsigned i = 0; i < p->n_helpers; i++) {
        const struct claim *c = slot_of(s, helpers[i])->claim;
        struct swim_addr addr = c->addr;
        p->helpers[i] = c->id;
        send_message(s, &h, helpers[i], &p->helpers[i], &addr, (struct load){0});
    }
}

/* The rest of the period, in equal parts. */
static uint64_t again_gap(const struct swim *s)
{
    uint64_t gap = (s->probe.until - s->probe.direct_until) / (PROBES_AGAIN + 1);
    return gap > 0 ? gap : 1;
}

static void indirect(struct swim *s)
{
    struct probe *p = &s->probe;
    struct swim_member view;
    uint32_t slot = table_find(&s->table, &p->target);
    if (slot == NO_SLOT || slot_of(s, slot)->state >= SWIM_DEAD) {
        p->active = false; /* forgotten, or gone in the meantime */
        return;
    }
    p->indirect = true;
    s->stats.probes_indirect++;
    ask_helpers(s, slot);
    /* Once more by itself: it costs one message, and most of what is lost is lost by chance. */
    send_member(s, WIRE_PING, false, p->seq, slot, (struct load){0});
    if (!s->c.without_lifeguard) {
        p->again_at = s->now + again_gap(s);
    }
    if (s->ops->probe != NULL) {
        member_view(s, slot, &view);
        s->ops->probe(s->arg, &view, p->seq);
    }
}

/* Beyond the papers: a suspicion, and the word that takes it back, are news that every member passes on some 3 ln(n)
 * times, and n members suspect n times as often as one. A few pings more, where two were not answered, are cheap. The
 * last leaves as much time for its answer as there was before it. */
static void again(struct swim *s)
{
    struct probe *p = &s->probe;
    uint32_t slot = table_find(&s->table, &p->target);
    p->again_at = s->now + 2 * again_gap(s) <= p->until ? s->now + again_gap(s) : NEVER;
    if (slot != NO_SLOT) {
        send_member(s, WIRE_PING, false, p->seq, slot, (struct load){0});
    }
}

/* Nacks that did not come point at ourselves; when all came the silence is the target's. */
static int missing(const struct swim *s)
{
    int n = 0;
    for (unsigned i = 0; i < s->probe.n_helpers; i++) {
        n += s->probe.nacked[i] ? 0 : 1;
    }
    return s->probe.n_helpers == 0 ? 1 : n;
}

void unanswered(struct swim *s, uint32_t slot)
{
    if (slot_of(s, slot)->state == SWIM_ALIVE) {
        suspect_new(s, slot, &s->c.id);
    } else if (slot_of(s, slot)->state == SWIM_SUSPECT) {
        suspect_confirm(s, slot, &s->c.id);
    }
}

static void failed(struct swim *s)
{
    uint32_t slot = table_find(&s->table, &s->probe.target);
    s->probe.active = false;
    s->stats.probes_failed++;
    health_add(s, missing(s));
    if (slot != NO_SLOT) {
        unanswered(s, slot);
    }
}

void probe_tick(struct swim *s)
{
    if (s->probe.active && !s->probe.indirect && s->now >= s->probe.direct_until) {
        indirect(s);
    }
    if (s->probe.active && s->now >= s->probe.again_at && s->now < s->probe.until) {
        again(s);
    }
    if (s->probe.active && s->now >= s->probe.until) {
        failed(s);
    }
    if (!s->leaving && s->now >= s->probe_at) {
        begin(s);
    }
}

void probe_void(struct swim *s)
{
    if (s->probe.active) {
        s->probe.active = false;
        s->stats.probes_void++;
    }
}

static void answered(struct swim *s)
{
    s->probe.active = false;
    health_add(s, -1);
}

void probe_ack(struct swim *s, const struct swim_id *from, uint32_t seq)
{
    const struct probe *p = &s->probe;
    if (!p->active || seq != p->seq) {
        return;
    }
    bool ours = swim_id_eq(from, &p->target);
    for (unsigned i = 0; i < p->n_helpers && !ours; i++) {
        ours = swim_id_eq(from, &p->helpers[i]);
    }
    if (ours) {
        answered(s);
    }
}

void probe_nack(struct swim *s, const struct swim_id *from, uint32_t seq)
{
    struct probe *p = &s->probe;
    for (unsigned i = 0; p->active && seq == p->seq && i < p->n_helpers; i++) {
        if (swim_id_eq(from, &p->helpers[i])) {
            p->nacked[i] = true;
        }
    }
}

void swim_probe_done(struct swim *s, uint64_t now, uint32_t ticket, bool alive)
{
    s->now = now;
    if (alive && s->probe.active && s->probe.indirect && ticket == s->probe.seq) {
        answered(s);
    }
}

uint64_t probe_next(const struct swim *s)
{
    uint64_t at = s->leaving ? NEVER : s->probe_at;
    if (s->probe.active) {
        at = earlier(
            at, s->probe.indirect ? earlier(s->probe.again_at, s->probe.until) : s->probe.direct_until);
    }
    return at;
}

/* A ping that nobody waits for: what it brings is that a dead member which is none hears of it, and answers with a
 * claim (see the header of swim.h). */
void reconnect(struct swim *s)
{
    const struct table *t = &s->table;
    uint32_t n = t->n_seq - t->n_live;
    s->reconnect_at = s->now + s->c.reconnect_ms;
    for (unsigned i = 0; i < 8 && n > 0 && !s->leaving; i++) {
        uint32_t slot = t->seq[t->n_live + chance_below(&s->chance, n)];
        if (slot_of(s, slot)->state == SWIM_DEAD) {
            send_member(s, WIRE_PING, false, ++s->seq, slot, (struct load){0});
            return;
        }
    }
}
