/* What is said of members, and what becomes of it. */
#include "gossip/swim_int.h"

#include "base/err.h"

#include <string.h>

void health_add(struct swim *s, int by)
{
    int health = (int)s->health + by;
    if (!s->c.without_lifeguard) {
        s->health = health < 0 ? 0 : health > (int)s->c.health_max ? s->c.health_max : (unsigned)health;
    }
}

static unsigned limit(struct swim *s)
{
    if (s->limit_n != s->table.n_live || s->limit == 0) {
        s->limit_n = s->table.n_live;
        s->limit = queue_limit(s->c.lambda, s->limit_n);
    }
    return s->limit;
}

void news_sent(struct swim *s, uint32_t slot)
{
    queue_sent(&s->queue, &s->table, slot, limit(s));
}

/* When many come or restart at once their claims fill every message for a while. A suspicion, and what refutes it, has
 * to get through at once all the same: or the healthy die. */
void news(struct swim *s, uint32_t slot, bool urgent)
{
    /* What lambda is for is that nobody misses a piece. With thousands of them that costs every member megabytes, and
     * the digests show whoever missed one what a full exchange brings. */
    unsigned skip = s->queue.n > QUEUE_LONG ? 2 : 1;
    queue_news(&s->queue, &s->table, slot, urgent ? 0 : skip * limit(s) / 3);
    if (slot == SELF) {
        s->introduced = s->table.n_live;
    }
    if (s->gossip_at == NEVER) {
        uint64_t due = s->gossip_last + s->c.gossip_ms;
        s->gossip_at = due < s->now ? s->now : due;
    }
}

static void enter(struct swim *s, uint32_t slot, enum swim_state state)
{
    struct member *m = slot_of(s, slot);
    suspect_end(s, slot);
    m->state = (unsigned)state & 3;
    m->since = s->now;
    if (slot != SELF && state == SWIM_ALIVE) {
        table_live(&s->table, slot, &s->chance);
    } else if (slot != SELF) {
        table_gone(&s->table, slot);
    }
}

void forget(struct swim *s, uint32_t slot)
{
    tell(s, SWIM_FORGOTTEN, slot);
    suspect_end(s, slot);
    queue_drop(&s->queue, &s->table, slot);
    table_remove(&s->table, slot);
}

/* ---- of oneself ---- */

int claim_self(struct swim *s, const struct swim_addr *addr, const void *meta, size_t n, bool left)
{
    uint8_t sig[SWIM_SIG_MAX], text[CLAIM_TEXT_MAX];
    size_t sig_len = 0;
    struct claim_view v = {.id = s->c.id,
        .incarnation = s->incarnation,
        .left = left,
        .addr = *addr,
        .meta = meta,
        .meta_len = (uint8_t)n};
    int rv = s->ops->sign(s->arg, text, claim_text(&v, s->cluster, s->c.cluster_len, text), sig, &sig_len);
    if (rv != 0) {
        return rv;
    }
    if (sig_len == 0 || sig_len > sizeof sig) {
        return err_setf(SYM_EINVAL, "a signature of %zu bytes", sig_len);
    }
    v.sig = sig;
    v.sig_len = (uint8_t)sig_len;
    struct claim *c = claim_new(&v);
    if (c == NULL) {
        return err_setf(SYM_ENOMEM, "claim");
    }
    s->incarnation++;
    if (s->table.m == NULL) { /* the first, of swim_open */
        rv = table_init(&s->table, s->c.max_members, chance_next(&s->chance), c);
        if (rv != 0) {
            claim_free(c);
            return rv;
        }
    } else {
        table_replace(&s->table, SELF, c);
    }
    news(s, SELF, left);
    return 0;
}

void refute(struct swim *s)
{
    if (s->now < s->refute_at) {
        return;
    }
    s->refute_at = NEVER;
    if (s->leaving) {
        return;
    }
    const struct claim *c = self_claim(s);
    struct swim_addr addr = c->addr;
    uint8_t meta[SWIM_META_MAX], n = c->meta_len;
    memcpy(meta, c->tail, n);
    if (claim_self(s, &addr, meta, n, false) != 0) {
        s->refute_at = s->now + RETRY_MS;
        return;
    }
    news(s, SELF, true);
    s->refute_from = s->now + REFUTE_GAP_MS;
    s->stats.refutations++;
    /* To be suspected is a sign of being slow (Lifeguard IV-A). */
    health_add(s, 1);
}

static void refute_soon(struct swim *s)
{
    if (!s->leaving && s->refute_at == NEVER) {
        s->refute_at = s->now < s->refute_from ? s->refute_from : s->now;
        tell(s, SWIM_ACCUSED, SELF);
        refute(s);
    }
}

static bool genuine(struct swim *s, const struct claim_view *v)
{
    uint8_t text[CLAIM_TEXT_MAX];
    size_t n = claim_text(v, s->cluster, s->c.cluster_len, text);
    bool ok = s->ops->verify(s->arg, &v->id, text, n, v->sig, v->sig_len);
    s->stats.bad_signatures += ok ? 0 : 1;
    return ok;
}

/* One's own word that is news: of an earlier life, or of somebody else with our key. */
static bool take_own(struct swim *s, const struct claim_view *v)
{
    const struct claim *mine = self_claim(s);
    if (v->incarnation < mine->incarnation || claim_same(mine, v) || s->now < s->double_from) {
        return true;
    }
    if (!genuine(s, v)) {
        return false;
    }
    s->double_from = s->now + DOUBLE_GAP_MS;
    tell(s, SWIM_DOUBLE, SELF);
    if (v->incarnation < UINT64_MAX / 2) {
        s->incarnation = v->incarnation + 1;
        refute_soon(s);
    }
    return true;
}

/* ---- of others ---- */

static bool add(struct swim *s, const struct claim_view *v)
{
    if (v->left) {
        return true; /* no need to know whoever is gone already */
    }
    if (!genuine(s, v)) {
        return false;
    }
    struct claim *c = claim_new(v);
    bool full = false;
    uint32_t slot = c == NULL ? NO_SLOT : table_add(&s->table, c, &s->chance, &full);
    if (slot == NO_SLOT) {
        claim_free(c);
        s->stats.full += full ? 1 : 0;
        s->stats.no_memory += full ? 0 : 1;
        return true;
    }
    slot_of(s, slot)->since = s->now;
    slot_of(s, slot)->spent = (uint32_t)s->now;
    if (!s->merging || s->now >= s->settled) {
        news(s, slot, false);
    }
    /* Our claim went to those that we knew. Now there are twice as many: they should hear of us, too. */
    if (s->table.n_live > 2 * s->introduced) {
        news(s, SELF, false);
    }
    tell(s, SWIM_JOINED, slot);
    return true;
}

/* How far ahead the claims of @m are paid for; what is further than that cannot be is long past. */
static uint32_t ahead(const struct swim *s, const struct member *m)
{
    uint32_t by = m->spent - (uint32_t)s->now;
    return by <= CLAIM_BURST * CLAIM_GAP_MS ? by : 0;
}

static bool too_many(const struct swim *s, const struct member *m)
{
    return ahead(s, m) > (CLAIM_BURST - 1) * CLAIM_GAP_MS;
}

static bool same_place(const struct claim *a, const struct claim *b)
{
    return swim_addr_eq(&a->addr, &b->addr) && a->meta_len == b->meta_len &&
           memcmp(a->tail, b->tail, a->meta_len) == 0;
}

static void replace(struct swim *s, uint32_t slot, struct claim *c)
{
    struct member *m = slot_of(s, slot);
    enum swim_state was = m->state;
    bool moved = !same_place(m->claim, c);
    /* The next incarnation refutes something, also where that has not been heard of yet; a new life is far off. */
    bool refutes = was == SWIM_SUSPECT || c->incarnation == m->claim->incarnation + 1;
    table_replace(&s->table, slot, c);
    m->asks = 0;
    if (c->left) {
        if (was != SWIM_LEFT) {
            enter(s, slot, SWIM_LEFT);
        }
    } else if (was != SWIM_ALIVE) {
        enter(s, slot, SWIM_ALIVE);
    }
    news(s, slot, refutes || c->left);
    if (c->left) {
        if (was != SWIM_LEFT) {
            tell(s, SWIM_DEPARTED, slot);
        }
        return;
    }
    if (was != SWIM_ALIVE) {
        tell(s, was == SWIM_SUSPECT ? SWIM_REFUTED : SWIM_RETURNED, slot);
    }
    if (moved) {
        tell(s, SWIM_UPDATED, slot);
    }
}

bool take_claim(struct swim *s, const struct claim_view *v)
{
    if (swim_id_eq(&v->id, &s->c.id)) {
        return take_own(s, v);
    }
    if (!s->ops->known(s->arg, &v->id)) {
        return true;
    }
    uint32_t slot = table_find(&s->table, &v->id);
    if (slot == NO_SLOT) {
        return add(s, v);
    }
    const struct claim *held = slot_of(s, slot)->claim;
    if (v->incarnation < held->incarnation) {
        return true;
    }
    if (v->incarnation == held->incarnation) {
        if (!claim_same(held, v) && s->now >= s->double_from) {
            if (!genuine(s, v)) {
                return false;
            }
            s->double_from = s->now + DOUBLE_GAP_MS;
            tell(s, SWIM_DOUBLE, slot);
        }
        return true;
    }
    if (too_many(s, slot_of(s, slot))) {
        s->stats.claims_deferred++;
        return true;
    }
    if (!genuine(s, v)) {
        return false;
    }
    struct claim *c = claim_new(v);
    if (c == NULL) {
        s->stats.no_memory++;
        return true;
    }
    /* Only its own signature makes a member pay. */
    slot_of(s, slot)->spent = (uint32_t)s->now + ahead(s, slot_of(s, slot)) + CLAIM_GAP_MS;
    replace(s, slot, c);
    return true;
}

/* The member that an accusation of @incarnation counts against: alive or suspect. Only what we hold a claim of has
 * been proven, so that nobody can accuse a future incarnation and take the word from whoever is accused. */
static uint32_t accused(struct swim *s, const struct swim_id *id, uint64_t incarnation)
{
    uint32_t slot = table_find(&s->table, id);
    if (slot == NO_SLOT || incarnation < slot_of(s, slot)->claim->incarnation) {
        return NO_SLOT;
    }
    if (slot == SELF) {
        refute_soon(s);
        return NO_SLOT;
    }
    return slot_of(s, slot)->state == SWIM_ALIVE || slot_of(s, slot)->state == SWIM_SUSPECT ? slot : NO_SLOT;
}

void accuse(
    struct swim *s, const struct swim_id *id, uint64_t incarnation, const uint8_t *accusers, unsigned n)
{
    uint32_t slot = accused(s, id, incarnation);
    for (unsigned i = 0; i < n && slot != NO_SLOT; i++) {
        struct swim_id accuser;
        memcpy(accuser.b, accusers + (size_t)i * SWIM_ID_LEN, SWIM_ID_LEN);
        /* Mostly not, and then it need not be looked for: all are told of it again and again. */
        if (slot_of(s, slot)->state == SWIM_SUSPECT && !suspect_counts(s, slot, &accuser)) {
            continue;
        }
        uint32_t by = table_find(&s->table, &accuser);
        /* Of ourselves we know by ourselves. */
        if (by == NO_SLOT || by == slot || by == SELF || slot_of(s, by)->state >= SWIM_DEAD) {
            continue;
        }
        if (slot_of(s, slot)->state == SWIM_ALIVE) {
            suspect_new(s, slot, &accuser);
        } else {
            suspect_confirm(s, slot, &accuser);
        }
    }
}

void die(struct swim *s, uint32_t slot)
{
    enter(s, slot, SWIM_DEAD);
    news(s, slot, true);
    tell(s, SWIM_DIED, slot);
}

/* Whoever dies has been suspected for a while, and nearly all have heard of that: it had the time to refute it. One
 * for whom that is not so is only suspected, by whoever says so. */
void declare_dead(struct swim *s, const struct swim_id *id, uint64_t incarnation, const struct swim_id *by)
{
    uint32_t slot = accused(s, id, incarnation);
    if (slot == NO_SLOT) {
        return;
    }
    if (slot_of(s, slot)->state == SWIM_SUSPECT && suspect_for(s, slot) >= suspect_least(s) / 2) {
        die(s, slot);
    } else {
        accuse(s, id, incarnation, by->b, 1);
    }
}
