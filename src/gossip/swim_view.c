/* Members as others see them. */
#include "gossip/swim_int.h"

void member_view(const struct swim *s, uint32_t slot, struct swim_member *out)
{
    const struct member *m = &s->table.m[slot];
    *out = (struct swim_member){.id = m->claim->id,
        .addr = m->claim->addr,
        .state = m->state,
        .since = m->state == SWIM_SUSPECT ? m->suspicion->since : m->since,
        .incarnation = m->claim->incarnation,
        .meta = m->claim->tail,
        .meta_len = m->claim->meta_len};
}

void tell(const struct swim *s, enum swim_event what, uint32_t slot)
{
    struct swim_member view;
    if (s->ops->event != NULL) {
        member_view(s, slot, &view);
        s->ops->event(s->arg, what, &view);
    }
}

bool swim_get(const struct swim *s, const struct swim_id *id, struct swim_member *out)
{
    uint32_t slot = table_find(&s->table, id);
    if (slot != NO_SLOT) {
        member_view(s, slot, out);
    }
    return slot != NO_SLOT;
}

bool swim_each(const struct swim *s, uint32_t *cursor, struct swim_member *out)
{
    while (*cursor < s->table.n && s->table.m[*cursor].claim == NULL) {
        ++*cursor;
    }
    if (*cursor >= s->table.n) {
        return false;
    }
    member_view(s, (*cursor)++, out);
    return true;
}

size_t swim_count(const struct swim *s)
{
    return s->table.n_live + (size_t)(s->leaving ? 0 : 1);
}

unsigned swim_health(const struct swim *s)
{
    return s->health;
}

const struct swim_stats *swim_stats(const struct swim *s)
{
    return &s->stats;
}
