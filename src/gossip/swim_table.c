#include "gossip/swim_table.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

enum { CAP_MIN = 16, PICK_TRIES = 4, SLOT_BITS = 20 };
#define SLOT_MASK ((UINT32_C(1) << SLOT_BITS) - 1) /* no slot: EMPTY has it */
#define EMPTY UINT32_MAX

uint64_t chance_next(struct chance *c)
{
    uint64_t z = c->state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

uint32_t chance_below(struct chance *c, uint32_t n)
{
    return (uint32_t)((chance_next(c) >> 32) * n >> 32);
}

static uint32_t hash(const struct table *t, const struct swim_id *id)
{
    uint64_t a, b;
    memcpy(&a, id->b, sizeof a);
    memcpy(&b, id->b + sizeof a, sizeof b);
    struct chance c = {a ^ t->salt};
    c.state = chance_next(&c) ^ b;
    return (uint32_t)chance_next(&c);
}

static uint32_t entry_of(uint32_t h, uint32_t slot)
{
    return (h & ~SLOT_MASK) | slot;
}

/* What a claim adds to the digest. Not salted: all nodes have to come to the same. */
static uint64_t digest_of(const struct claim *claim)
{
    uint64_t a, b;
    memcpy(&a, claim->id.b, sizeof a);
    memcpy(&b, claim->id.b + sizeof a, sizeof b);
    struct chance c = {a};
    c.state = chance_next(&c) ^ b;
    c.state = chance_next(&c) ^ claim->incarnation;
    return chance_next(&c);
}

static void index_put(const struct table *t, uint32_t slot)
{
    uint32_t h = hash(t, &t->m[slot].claim->id), at = h & t->mask;
    while (t->index[at] != EMPTY) {
        at = (at + 1) & t->mask;
    }
    t->index[at] = entry_of(h, slot);
}

/* What stands behind the hole and would no longer be found moves into it. */
static void index_drop(const struct table *t, uint32_t slot)
{
    uint32_t hole = hash(t, &t->m[slot].claim->id) & t->mask;
    while ((t->index[hole] & SLOT_MASK) != slot) {
        hole = (hole + 1) & t->mask;
    }
    for (uint32_t at = (hole + 1) & t->mask; t->index[at] != EMPTY; at = (at + 1) & t->mask) {
        uint32_t home = hash(t, &t->m[t->index[at] & SLOT_MASK].claim->id);
        if (((at - home) & t->mask) >= ((at - hole) & t->mask)) {
            t->index[hole] = t->index[at];
            hole = at;
        }
    }
    t->index[hole] = EMPTY;
}

static int grow(struct table *t, uint32_t cap)
{
    uint32_t size = 1;
    while (size - size / 4 < cap) {
        size *= 2;
    }
    struct member *m = realloc(t->m, cap * sizeof *m);
    if (m != NULL) {
        t->m = m;
    }
    uint32_t *seq = realloc(t->seq, cap * sizeof *seq);
    if (seq != NULL) {
        t->seq = seq;
    }
    uint32_t *index = malloc(size * sizeof *index);
    if (m == NULL || seq == NULL || index == NULL) {
        free(index);
        return err_setf(SYM_ENOMEM, "table of %u members", cap);
    }
    memset(index, 0xff, size * sizeof *index);
    free(t->index);
    t->index = index;
    t->mask = size - 1;
    t->cap = cap;
    for (uint32_t i = 0; i < t->n; i++) {
        if (t->m[i].claim != NULL) {
            index_put(t, i);
        }
    }
    return 0;
}

int table_init(struct table *t, uint32_t max, uint64_t salt, struct claim *self)
{
    *t = (struct table){.max = max, .free = SELF, .salt = salt};
    int rv = grow(t, max < CAP_MIN ? max : CAP_MIN);
    if (rv != 0) {
        table_free(t);
        return rv;
    }
    t->m[SELF] = (struct member){.claim = self, .state = SWIM_ALIVE, .sent = NOT_QUEUED};
    t->n = 1;
    t->digest = digest_of(self);
    index_put(t, SELF);
    return 0;
}

void table_free(struct table *t)
{
    for (uint32_t i = 0; i < t->n; i++) {
        claim_free(t->m[i].claim);
    }
    free(t->m);
    free(t->index);
    free(t->seq);
    *t = (struct table){0};
}

uint32_t table_find(const struct table *t, const struct swim_id *id)
{
    uint32_t h = hash(t, id);
    for (uint32_t at = h & t->mask; t->index[at] != EMPTY; at = (at + 1) & t->mask) {
        uint32_t slot = t->index[at] & SLOT_MASK;
        if (t->index[at] == entry_of(h, slot) && swim_id_eq(&t->m[slot].claim->id, id)) {
            return slot;
        }
    }
    return NO_SLOT;
}

static void put(struct table *t, uint32_t pos, uint32_t slot)
{
    t->seq[pos] = slot;
    t->m[slot].pos = pos & SLOT_MASK;
}

static void swap(struct table *t, uint32_t a, uint32_t b)
{
    uint32_t slot = t->seq[a];
    put(t, a, t->seq[b]);
    put(t, b, slot);
}

void table_live(struct table *t, uint32_t slot, struct chance *c)
{
    if (t->m[slot].pos >= t->n_live) {
        t->digest ^= digest_of(t->m[slot].claim);
        swap(t, t->m[slot].pos, t->n_live++);
        swap(t, t->m[slot].pos, chance_below(c, t->n_live));
    }
}

void table_gone(struct table *t, uint32_t slot)
{
    uint32_t pos = t->m[slot].pos;
    if (pos >= t->n_live) {
        return;
    }
    t->digest ^= digest_of(t->m[slot].claim);
    /* Who has been probed in this round stays before the cursor. */
    if (pos < t->cursor) {
        swap(t, pos, --t->cursor);
        pos = t->cursor;
    }
    swap(t, pos, --t->n_live);
}

void table_replace(struct table *t, uint32_t slot, struct claim *claim)
{
    struct member *m = &t->m[slot];
    if (slot == SELF || m->pos < t->n_live) {
        t->digest ^= digest_of(m->claim) ^ digest_of(claim);
    }
    claim_free(m->claim);
    m->claim = claim;
}

uint32_t table_add(struct table *t, struct claim *claim, struct chance *c, bool *full)
{
    uint32_t slot = t->free;
    *full = slot == SELF && t->n == t->max;
    if (*full) {
        return NO_SLOT;
    }
    if (slot == SELF) {
        if (t->n == t->cap && grow(t, t->cap > t->max / 2 ? t->max : 2 * t->cap) != 0) {
            return NO_SLOT;
        }
        slot = t->n++;
    } else {
        t->free = t->m[slot].pos;
    }
    t->m[slot] = (struct member){.claim = claim, .state = SWIM_ALIVE, .sent = NOT_QUEUED};
    index_put(t, slot);
    put(t, t->n_seq++, slot);
    table_live(t, slot, c);
    return slot;
}

void table_remove(struct table *t, uint32_t slot)
{
    struct member *m = &t->m[slot];
    table_gone(t, slot);
    swap(t, m->pos, --t->n_seq);
    index_drop(t, slot);
    claim_free(m->claim);
    *m = (struct member){.pos = t->free & SLOT_MASK, .sent = NOT_QUEUED};
    t->free = slot;
}

uint32_t table_probe(struct table *t, struct chance *c)
{
    if (t->n_live == 0) {
        return NO_SLOT;
    }
    if (t->cursor >= t->n_live) {
        for (uint32_t i = t->n_live; i > 1; i--) {
            swap(t, i - 1, chance_below(c, i));
        }
        t->cursor = 0;
    }
    return t->seq[t->cursor++];
}

static bool among(const uint32_t *slots, unsigned n, uint32_t slot)
{
    for (unsigned i = 0; i < n; i++) {
        if (slots[i] == slot) {
            return true;
        }
    }
    return false;
}

unsigned table_pick(const struct table *t, struct chance *c, uint32_t except, unsigned k, uint32_t *out)
{
    unsigned n = 0;
    for (unsigned i = 0; i < PICK_TRIES * k && n < k && t->n_live > 2 * k; i++) {
        uint32_t slot = t->seq[chance_below(c, t->n_live)];
        if (slot != except && !among(out, n, slot)) {
            out[n++] = slot;
        }
    }
    /* With few of them: all, from a random one on. */
    uint32_t from = n < k ? chance_below(c, t->n_live) : 0;
    for (uint32_t i = 0; n < k && i < t->n_live; i++) {
        uint32_t slot = t->seq[(from + i) % t->n_live];
        if (slot != except && !among(out, n, slot)) {
            out[n++] = slot;
        }
    }
    return n;
}
