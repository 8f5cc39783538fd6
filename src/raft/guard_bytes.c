/* How many bytes of the log libraft holds in memory. */
#include "raft/guard_impl.h"

#include <stdlib.h>

static uint64_t *sum_at(struct guard *g, size_t i)
{
    return &g->sums[(g->head_sums + i) & (g->cap_sums - 1)];
}

/* Sum of the bytes up to and with @index. */
static uint64_t sum_to(struct guard *g, raft_index index)
{
    if (index < g->first || g->n_sums == 0) {
        return g->base;
    }
    size_t i = (size_t)(index - g->first);
    return *sum_at(g, i < g->n_sums ? i : g->n_sums - 1);
}

static bool grow_sums(struct guard *g)
{
    size_t cap = g->cap_sums == 0 ? 1024 : g->cap_sums * 2;
    uint64_t *sums = malloc(cap * sizeof *sums);
    if (sums == NULL) {
        return false;
    }
    for (size_t i = 0; i < g->n_sums; i++) {
        sums[i] = *sum_at(g, i);
    }
    free(g->sums);
    g->sums = sums;
    g->cap_sums = cap;
    g->head_sums = 0;
    return true;
}

void guard_count(struct guard *g, raft_index index, const struct raft_entry *entries, size_t n)
{
    if (index < g->first) {
        g->n_sums = 0;
    } else if (index - g->first < g->n_sums) {
        g->n_sums = (size_t)(index - g->first);
    }
    if (g->n_sums == 0) {
        g->first = index;
    }
    for (size_t i = 0; i < n; i++) {
        if (g->n_sums == g->cap_sums && !grow_sums(g)) {
            g->ops->fatal(g->arg, "no memory", RAFT_NOMEM);
            return;
        }
        uint64_t before = g->n_sums == 0 ? g->base : *sum_at(g, g->n_sums - 1);
        *sum_at(g, g->n_sums++) = before + entries[i].buf.len + sizeof entries[i];
    }
}

/* Follows libraft's own trimming of the log. */
static void count_trim(struct guard *g)
{
    const struct raft_trail *trail = &g->raft->trail;
    if (trail->snapshot.index != g->snapshot_at) {
        g->snapshot_at = trail->snapshot.index;
        g->snapshot_sum = sum_to(g, g->snapshot_at);
    }
    while (g->n_sums > 0 && g->first <= trail->offset) {
        g->base = *sum_at(g, 0);
        g->head_sums = (g->head_sums + 1) & (g->cap_sums - 1);
        g->n_sums--;
        g->first++;
    }
}

uint64_t guard_log_bytes(struct guard *g)
{
    count_trim(g);
    return g->n_sums == 0 ? 0 : *sum_at(g, g->n_sums - 1) - g->base;
}

uint64_t guard_fresh_bytes(struct guard *g)
{
    count_trim(g);
    uint64_t end = g->n_sums == 0 ? g->base : *sum_at(g, g->n_sums - 1);
    return end > g->snapshot_sum ? end - g->snapshot_sum : 0;
}

unsigned guard_trailing(struct guard *g, raft_index index, unsigned n, uint64_t bytes)
{
    count_trim(g);
    uint64_t end = sum_to(g, index);
    unsigned keep = 1;
    while (keep < n && index > keep + g->first && end - sum_to(g, index - keep - 1) <= bytes) {
        keep++;
    }
    return keep;
}
