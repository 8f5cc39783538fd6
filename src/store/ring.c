#include "store/ring.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

struct ring_event *ring_event_new(
    struct slice key, struct slice value, bool is_delete, uint64_t create, uint64_t revision)
{
    struct ring_event *re = malloc(sizeof *re + key.n + value.n);
    if (re == NULL) {
        return NULL;
    }
    memcpy(re->bytes, key.p, key.n);
    if (value.n > 0) {
        memcpy(re->bytes + key.n, value.p, value.n);
    }
    re->ev = (struct event){
        .key = {re->bytes, key.n},
        .value = {re->bytes + key.n, value.n},
        .is_delete = is_delete,
        .create_revision = create,
        .revision = revision,
    };
    re->cost = sizeof *re + key.n + value.n + sizeof(void *);
    re->line_counted = false;
    return re;
}

void ring_event_free(struct ring_event *re)
{
    free(re->ev.line);
    free(re);
}

static void drop_oldest(struct ring *r)
{
    struct ring_event *re = ring_at(r, r->first);
    r->first++;
    r->bytes -= re->cost;
    r->base = re->ev.revision;
    ring_event_free(re);
}

static int grow(struct ring *r)
{
    size_t cap = r->cap == 0 ? 64 : r->cap * 2;
    struct ring_event **slots = malloc(cap * sizeof(void *));
    if (slots == NULL) {
        return err_setf(SYM_ENOMEM, "watch history");
    }
    for (uint64_t seq = r->first; seq < r->next; seq++) {
        slots[seq & (cap - 1)] = ring_at(r, seq);
    }
    free(r->slots);
    r->slots = slots;
    r->cap = cap;
    return 0;
}

int ring_push(struct ring *r, struct ring_event *re)
{
    if (r->next - r->first == r->cap && grow(r) != 0) {
        return SYM_ENOMEM;
    }
    r->slots[r->next & (r->cap - 1)] = re;
    r->next++;
    r->bytes += re->cost;
    while (r->bytes > r->limit) {
        drop_oldest(r);
    }
    return 0;
}

uint64_t ring_after(const struct ring *r, uint64_t revision)
{
    uint64_t low = r->first, high = r->next;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (ring_at(r, middle)->ev.revision > revision) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

void ring_count_line(struct ring *r, struct event *ev)
{
    struct ring_event *re = (struct ring_event *)ev; /* its first member */
    if (ev->line != NULL && !re->line_counted) {
        re->line_counted = true;
        re->cost += ev->line_len;
        r->bytes += ev->line_len;
    }
}

void ring_clear(struct ring *r, uint64_t base)
{
    while (r->first < r->next) {
        drop_oldest(r);
    }
    r->base = base;
}

void ring_free(struct ring *r)
{
    ring_clear(r, 0);
    free(r->slots);
    r->slots = NULL;
    r->cap = 0;
}
