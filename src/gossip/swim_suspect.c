/* Suspicions: who accuses whom, and when that becomes a death (Lifeguard IV-B). */
#include "gossip/swim_int.h"

#include <math.h>
#include <stdlib.h>

enum { DUE_MIN = 4 };

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

/* ---- by when they end: at 10,000 members a partition makes thousands of them, and only those that are due are looked
 * at ---- */

static bool before(const struct due *a, const struct due *b)
{
    return a->at != b->at ? a->at < b->at : (int32_t)(a->of->order - b->of->order) < 0;
}

static void due_put(struct swim *s, uint32_t place, struct due d)
{
    s->due[place] = d;
    d.of->place = place;
}

/* @d takes the free @place, or one above or below it. */
static void due_settle(struct swim *s, uint32_t place, struct due d)
{
    for (uint32_t up; place > 0 && before(&d, &s->due[up = (place - 1) / 2]); place = up) {
        due_put(s, place, s->due[up]);
    }
    for (uint32_t down; (down = 2 * place + 1) < s->n_due; place = down) {
        down += down + 1 < s->n_due && before(&s->due[down + 1], &s->due[down]);
        if (!before(&s->due[down], &d)) {
            break;
        }
        due_put(s, place, s->due[down]);
    }
    due_put(s, place, d);
}

static bool room_for_one(struct swim *s)
{
    if (s->n_due < s->due_cap) {
        return true;
    }
    uint32_t cap = s->due_cap == 0 ? DUE_MIN : 2 * s->due_cap;
    struct due *due = realloc(s->due, cap * sizeof *due);
    if (due == NULL) {
        return false;
    }
    s->due = due;
    s->due_cap = cap;
    return true;
}

/* The last one takes its place. */
static void take_out(struct swim *s, uint32_t place)
{
    struct due last = s->due[--s->n_due];
    if (place < s->n_due) {
        due_settle(s, place, last);
    } else if (s->n_due == 0) {
        suspect_free(s);
    }
}

uint64_t suspect_next(const struct swim *s)
{
    return s->n_due == 0 ? NEVER : s->due[0].at;
}

static uint64_t deadline(const struct swim *s, const struct suspicion *p)
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
    return due > s->now ? due : s->now;
}

/* ---- what becomes of one ---- */

void suspect_new(struct swim *s, uint32_t slot, const struct swim_id *accuser)
{
    struct member *m = slot_of(s, slot);
    struct suspicion *p = room_for_one(s) ? malloc(sizeof *p) : NULL;
    if (p == NULL) {
        s->stats.no_memory++;
        return;
    }
    *p = (struct suspicion){.slot = slot,
        .n = 1,
        .order = s->suspected++,
        .since = s->now,
        .start = s->now,
        .accusers = {*accuser}};
    m->suspicion = p;
    m->state = SWIM_SUSPECT;
    due_settle(s, s->n_due++, (struct due){deadline(s, p), p});
    news(s, slot, true);
    tell(s, SWIM_SUSPECTED, slot);
}

bool suspect_counts(const struct swim *s, uint32_t slot, const struct swim_id *accuser)
{
    const struct suspicion *p = s->table.m[slot].suspicion;
    if (p->n > s->c.confirmations || p->n == WIRE_ACCUSERS_MAX) {
        return false;
    }
    for (unsigned i = 0; i < p->n; i++) {
        if (swim_id_eq(&p->accusers[i], accuser)) {
            return false;
        }
    }
    return true;
}

void suspect_confirm(struct swim *s, uint32_t slot, const struct swim_id *accuser)
{
    struct suspicion *p = slot_of(s, slot)->suspicion;
    if (!suspect_counts(s, slot, accuser)) {
        return;
    }
    p->accusers[p->n++] = *accuser;
    due_settle(s, p->place, (struct due){deadline(s, p), p});
    news(s, slot, true);
}

void suspect_end(struct swim *s, uint32_t slot)
{
    struct member *m = slot_of(s, slot);
    if (m->state == SWIM_SUSPECT) {
        take_out(s, m->suspicion->place);
        free(m->suspicion);
        m->state = SWIM_ALIVE;
        m->since = s->now;
    }
}

void suspect_tick(struct swim *s)
{
    while (suspect_next(s) <= s->now) {
        die(s, s->due[0].of->slot);
    }
}

void suspect_shift(struct swim *s, uint64_t by)
{
    for (uint32_t i = 0; i < s->n_due; i++) {
        s->due[i].at += by;
        s->due[i].of->start += by;
    }
}

void suspect_free(struct swim *s)
{
    for (uint32_t i = 0; i < s->n_due; i++) {
        free(s->due[i].of);
    }
    free(s->due);
    s->due = NULL;
    s->n_due = s->due_cap = 0;
}
