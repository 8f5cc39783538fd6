/* The memory of one policy: what its Lua state has asked for, counted, capped, and given back all at once. A state that
 * was left in the middle of something (its budget ran out) can thus be dropped without being asked anything more. */
#ifndef SYM_SANDBOX_ARENA_H
#define SYM_SANDBOX_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

struct arena_block {
    LIST_ENTRY(arena_block) link;
};

struct arena {
    LIST_HEAD(arena_blocks, arena_block) blocks;
    size_t used, cap;         /* bytes, with what each block costs besides */
    size_t *total, total_cap; /* the same of all arenas of the process */
    bool crowded;   /* the last time it had NULL to give because of the others, not of its own cap */
    uint64_t taken; /* bytes ever asked for: what is freed at once costs time, too */
};

void arena_init(struct arena *a, size_t cap, size_t *total, size_t total_cap);
/* A lua_Alloc; @ud is the arena. NULL beyond a cap. */
void *arena_alloc(void *ud, void *ptr, size_t old, size_t size);
void arena_clear(struct arena *a);

#endif
