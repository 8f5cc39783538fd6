#include "store/memo.h"

#include <string.h>

enum { COUNT = -1 }; /* beside the kinds of compares */

static bool is_of_prefix(int kind)
{
    return kind == CMP_PREFIX_REVISION || kind == CMP_PREFIX_COUNT || kind == COUNT;
}

static bool same(const uint8_t *bytes, size_t n, struct slice s)
{
    return n == s.n && (n == 0 || memcmp(bytes, s.p, n) == 0);
}

static struct memo_slot *find(struct memo *m, int kind, struct slice key)
{
    for (unsigned i = 0; i < MEMO_SLOTS; i++) {
        struct memo_slot *slot = &m->slots[i];
        if (slot->used != 0 && slot->kind == kind && same(slot->key, slot->n_key, key)) {
            return slot;
        }
    }
    return NULL;
}

/* That of the same, or else the one that was not used for longest. */
static struct memo_slot *room_for(struct memo *m, int kind, struct slice key)
{
    struct memo_slot *slot = find(m, kind, key);
    if (slot != NULL) {
        return slot;
    }
    slot = &m->slots[0];
    for (unsigned i = 1; i < MEMO_SLOTS; i++) {
        slot = m->slots[i].used < slot->used ? &m->slots[i] : slot;
    }
    return slot;
}

static void keep(struct memo *m, int kind, struct slice key, struct slice value, uint64_t number)
{
    if (key.n > MEMO_KEY_MAX || value.n > MEMO_VALUE_MAX) {
        return;
    }
    struct memo_slot *slot = room_for(m, kind, key);
    slot->used = ++m->uses;
    slot->kind = kind;
    slot->n_key = key.n;
    slot->n_value = value.n;
    slot->number = number;
    memcpy(slot->key, key.n > 0 ? key.p : (const uint8_t *)"", key.n);
    memcpy(slot->value, value.n > 0 ? value.p : (const uint8_t *)"", value.n);
}

bool memo_holds(struct memo *m, const struct txn_cmp *c)
{
    struct memo_slot *slot = find(m, (int)c->kind, c->key);
    /* What no revision of a prefix is above, none is above a higher one. */
    bool held = slot != NULL && same(slot->value, slot->n_value, c->value) &&
                (slot->number == c->number || (c->kind == CMP_PREFIX_REVISION && slot->number < c->number));
    if (held) {
        slot->used = ++m->uses;
    }
    return held;
}

void memo_keep(struct memo *m, const struct txn_cmp *c)
{
    /* The others are of keys that the txn itself changes, mostly. */
    if (c->kind == CMP_VALUE || is_of_prefix((int)c->kind)) {
        keep(m, (int)c->kind, c->key, c->value, c->number);
    }
}

bool memo_count(struct memo *m, struct slice prefix, uint64_t *count)
{
    struct memo_slot *slot = find(m, COUNT, prefix);
    if (slot == NULL) {
        return false;
    }
    slot->used = ++m->uses;
    *count = slot->number;
    return true;
}

void memo_keep_count(struct memo *m, struct slice prefix, uint64_t count)
{
    keep(m, COUNT, prefix, (struct slice){NULL, 0}, count);
}

void memo_changed(struct memo *m, struct slice key)
{
    for (unsigned i = 0; i < MEMO_SLOTS; i++) {
        struct memo_slot *slot = &m->slots[i];
        struct slice part = {key.p, is_of_prefix(slot->kind) && key.n > slot->n_key ? slot->n_key : key.n};
        if (slot->used != 0 && same(slot->key, slot->n_key, part)) {
            slot->used = 0;
        }
    }
}

void memo_clear(struct memo *m)
{
    for (unsigned i = 0; i < MEMO_SLOTS; i++) {
        m->slots[i].used = 0;
    }
}
