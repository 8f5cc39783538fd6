#include "sandbox/arena.h"

#include <stdlib.h>

/* What malloc and we put before a block. */
enum { EACH = sizeof(struct arena_block) + 16 };

void arena_init(struct arena *a, size_t cap, size_t *total, size_t total_cap)
{
    *a = (struct arena){.cap = cap, .total = total, .total_cap = total_cap};
    LIST_INIT(&a->blocks);
}

static void take_out(struct arena *a, struct arena_block *block, size_t size)
{
    LIST_REMOVE(block, link);
    a->used -= size + EACH;
    *a->total -= size + EACH;
}

static void put_in(struct arena *a, struct arena_block *block, size_t size)
{
    LIST_INSERT_HEAD(&a->blocks, block, link);
    a->used += size + EACH;
    *a->total += size + EACH;
}

void *arena_alloc(void *ud, void *ptr, size_t old, size_t size)
{
    struct arena *a = ud;
    struct arena_block *block = ptr == NULL ? NULL : (struct arena_block *)ptr - 1;
    if (size == 0) {
        if (block != NULL) {
            take_out(a, block, old);
            free(block);
        }
        return NULL;
    }
    size_t more = block == NULL ? size + EACH : size > old ? size - old : 0;
    a->crowded = false;
    if (size > a->cap || (more > 0 && a->used + more > a->cap)) {
        return NULL;
    }
    a->crowded = more > 0 && *a->total + more > a->total_cap;
    if (a->crowded) {
        return NULL;
    }
    a->taken += size;
    if (block != NULL) {
        take_out(a, block, old);
    }
    struct arena_block *made = realloc(block, sizeof *made + size);
    if (made == NULL) {
        a->crowded = true;
        if (block != NULL) {
            put_in(a, block, old);
        }
        return NULL;
    }
    put_in(a, made, size);
    return made + 1;
}

void arena_clear(struct arena *a)
{
    struct arena_block *block;
    while ((block = LIST_FIRST(&a->blocks)) != NULL) {
        LIST_REMOVE(block, link);
        free(block);
    }
    *a->total -= a->used;
    a->used = 0;
}
