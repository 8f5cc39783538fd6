/* Full exchanges: all that a node knows, in pieces, for the reliable channel. */
#include "gossip/swim_int.h"

#include "base/err.h"

enum { MEMBER_MAX = WIRE_CLAIM_MAX + WIRE_SUSPECT_MAX, PIECE_MIN = 1024 };
_Static_assert(MEMBER_MAX + 2 <= PIECE_MIN, "a member fits into the smallest piece");

static void put_member(struct wr *w, const struct member *m)
{
    struct claim_view v;
    claim_view(m->claim, &v);
    wire_put_claim(w, &v);
    if (m->state == SWIM_SUSPECT) {
        wire_put_suspect(w, &v.id, v.incarnation, m->suspicion->accusers, m->suspicion->n);
    } else if (m->state == SWIM_DEAD) {
        wire_put_dead(w, &v.id, v.incarnation);
    }
}

int swim_export(const struct swim *s, uint32_t *cursor, size_t max, struct buf *out)
{
    if (max < PIECE_MIN || max > SWIM_PIECE_MAX) {
        return err_setf(SYM_EINVAL, "a piece of %zu bytes", max);
    }
    size_t before = out->len;
    uint32_t slot = *cursor;
    struct wr w = wr_init(out);
    wire_put_piece(&w);
    for (; slot < s->table.n && max - (out->len - before) >= MEMBER_MAX && !w.bad; slot++) {
        if (s->table.m[slot].claim != NULL) {
            put_member(&w, &s->table.m[slot]);
        }
    }
    if (w.bad) {
        out->len = before;
        return err_setf(SYM_ENOMEM, "piece of a full exchange");
    }
    *cursor = slot < s->table.n ? slot : 0;
    return 0;
}

static void exchanged(struct swim *s)
{
    if (s->now >= s->differ_from) {
        s->differ_from = s->now + s->differ_gap;
        s->differ_gap = 2 * s->differ_gap < DIFFER_GAP_MAX_MS ? 2 * s->differ_gap : DIFFER_GAP_MAX_MS;
    }
}

/* While news travel the digests differ for good reason; once it is quiet they must not. */
void compare(struct swim *s, uint32_t slot, uint64_t digest)
{
    if (digest == s->table.digest) {
        s->differ_gap = DIFFER_GAP_MS;
    } else if (slot != NO_SLOT && s->queue.n == 0 && s->now >= s->differ_from && !s->leaving) {
        exchanged(s);
        tell(s, SWIM_DIFFERS, slot);
    }
}

/* One that is @held alive or dead here, and of which the opposite is @said of the same life, or a later one: asked. */
static bool hearsay(struct swim *s, const struct wire_record *said, enum swim_state held)
{
    uint32_t slot = table_find(&s->table, &said->id);
    if (slot == NO_SLOT || slot == SELF || slot_of(s, slot)->state != held ||
        said->incarnation < slot_of(s, slot)->claim->incarnation) {
        return false;
    }
    ask(s, slot);
    return true;
}

static int merge(struct swim *s, const struct swim_id *from, struct rd r)
{
    struct wire_record record;
    while (wire_get(&r, &record)) {
        if (record.kind == WIRE_CLAIM) {
            struct rd ahead = r;
            struct wire_record next;
            bool accused =
                wire_get(&ahead, &next) && next.kind != WIRE_CLAIM && swim_id_eq(&next.id, &record.id);
            /* Who is new here and dead there would only be suspected and die again. */
            if (accused && next.kind == WIRE_DEAD && table_find(&s->table, &record.id) == NO_SLOT) {
                r = ahead;
                continue;
            }
            if (!take_claim(s, &record.claim)) {
                return err_setf(SYM_EAUTH, "a claim with a wrong signature");
            }
            if (!accused) {
                hearsay(s, &record, SWIM_DEAD);
            }
        } else if (hearsay(s, &record, SWIM_ALIVE)) {
            continue;
        } else if (record.kind == WIRE_SUSPECT) {
            accuse(s, &record.id, record.incarnation, record.accusers, record.n_accusers);
        } else {
            declare_dead(s, &record.id, record.incarnation, from);
        }
    }
    return 0;
}

int swim_merge(struct swim *s, uint64_t now, const struct swim_id *from, const void *data, size_t n)
{
    struct rd r;
    s->now = now;
    if (!wire_piece(data, n, &r)) {
        s->stats.malformed++;
        return err_setf(SYM_EPROTO, "not a piece of a full exchange");
    }
    exchanged(s);
    s->merging = true;
    int rv = merge(s, from, r);
    s->merging = false;
    return rv;
}
