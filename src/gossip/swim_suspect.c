/* Suspicions: who accuses whom, and when that becomes a death (Lifeguard IV-B). */
#include "gossip/swim_int.h"

#include <math.h>
#include <stdlib.h>

uint64_t suspicion_ms(uint64_t min, uint64_t max, unsigned c, unsigned k)
{
    if (c >= k || max <= min) {
        return min;
    }
    double shrunk = (double)(max - min) * log(c + 1.0) / log(k + 1.0);
    return max - (uint64_t)shrunk;
}

uint64_t suspect_least(const struct swim *s)
{
    uint32_t n = s->table.n_live + 1;
    double decades = n > 10 ? log10(n) : 1;
    return (uint64_t)(s->c.suspicion_alpha * decades * s->c.period_ms);
}

uint64_t suspect_for(struct swim *s, uint32_t slot)
{
    uint64_t start = slot_of(s, slot)->suspicion->start;
    return s->now > start ? s->now - start : 0;
}

static void set_deadline(struct swim *s, struct suspicion *p)
{
    uint32_t n = s->table.n_live + 1;
    uint64_t min = suspect_least(s);
    /* Beside ourselves and the suspect there must be enough who could confirm. */
    unsigned k = s->c.without_lifeguard || n < 3 ? 0
                 : s->c.confirmations < n - 2    ? s->c.confirmations
                                                 : n - 2;
    uint64_t due = p->start + suspicion_ms(min, min * s->c.suspicion_beta, p->n - 1, k);
    /* What has lasted longer than that already ends now: a time in the past would look as if this process had not
     * run since. */
    p->deadline = due > s->now ? due : s->now;
    s->suspicion_at =
        earlier(s->suspicion_at, p->deadline > s->suspicion_from ? p->deadline : s->suspicion_from);
}

void suspect_new(struct swim *s, uint32_t slot, const struct swim_id *accuser)
{
    struct member *m = slot_of(s, slot);
    struct suspicion *p = malloc(sizeof *p);
    if (p == NULL) {
        s->stats.no_memory++;
        return;
    }
    *p = (struct suspicion){.slot = slot, .n = 1, .since = s->now, .start = s->now, .accusers = {*accuser}};
    TAILQ_INSERT_TAIL(&s->suspicions, p, link);
    m->suspicion = p;
    m->state = SWIM_SUSPECT;
    set_deadline(s, p);
    news(s, slot, true);
    tell(s, SWIM_SUSPECTED, slot);
}

void suspect_confirm(struct swim *s, uint32_t slot, const struct swim_id *accuser)
{
    struct suspicion *p = slot_of(s, slot)->suspicion;
    if (p->n > s->c.confirmations || p->n == WIRE_ACCUSERS_MAX) {
        return;
    }
    for (unsigned i = 0; i < p->n; i++) {
        if (swim_id_eq(&p->accusers[i], accuser)) {
            return;
        }
    }
    p->accusers[p->n++] = *accuser;
    set_deadline(s, p);
    news(s, slot, true);
}

void suspect_end(struct swim *s, uint32_t slot)
{
    struct member *m = slot_of(s, slot);
    if (m->state == SWIM_SUSPECT) {
        TAILQ_REMOVE(&s->suspicions, m->suspicion, link);
        free(m->suspicion);
        m->state = SWIM_ALIVE;
        m->since = s->now;
    }
}

void suspect_tick(struct swim *s)
{
    if (s->now < s->suspicion_at) {
        return;
    }
    struct suspicion *p = TAILQ_FIRST(&s->suspicions), *next;
    s->suspicion_at = NEVER;
    for (; p != NULL; p = next) {
        next = TAILQ_NEXT(p, link);
        if (p->deadline <= s->now) {
            die(s, p->slot);
        } else {
            s->suspicion_at = earlier(s->suspicion_at, p->deadline);
        }
    }
    /* All of them are looked at: after a partition there may be thousands, which do not end in the same millisecond. */
    s->suspicion_from = s->now + SUSPECT_GRAIN_MS;
    if (s->suspicion_at < s->suspicion_from) {
        s->suspicion_at = s->suspicion_from;
    }
}

void suspect_shift(struct swim *s, uint64_t by)
{
    struct suspicion *p;
    TAILQ_FOREACH (p, &s->suspicions, link) {
        p->start += by;
        p->deadline += by;
    }
    if (s->suspicion_at != NEVER) {
        s->suspicion_at += by;
    }
}
