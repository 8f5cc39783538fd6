/* What keeps code that somebody types from stopping the daemon: a hook that ends it once it has kept the loop busy for
 * too long, a limit on its memory, and the library in versions that the hook can end too.
 *
 * A thread of Lua is guarded while the hook is on it: the one that sys.guarded called a function in, and the coroutines
 * that guarded code makes. The library's functions (bounded.c) ask guard_on and are Lua's own for all others. */
#ifndef SYM_LUA_GUARD_H
#define SYM_LUA_GUARD_H

#include <lua.h>
#include <stdbool.h>
#include <stddef.h>

/* Limits of guarded code. A string is copied, compared or read as a number in one instruction, which nothing interrupts:
 * at most some milliseconds. */
#define GUARD_BUSY_MS 200
#define GUARD_STRING_MAX ((size_t)4 << 20)
#define GUARD_BLOCK_MAX ((size_t)32 << 20)
#define GUARD_MEMORY_MAX ((size_t)128 << 20) /* of the whole state */
#define GUARD_ITEMS_MAX 1000000              /* of a table, in one call of the library */

/* A state's part of it; vm.c has one in each. */
struct guard {
    bool running; /* guarded code runs: its allocations are limited */
    bool raising; /* the hook has raised an error and no handler has seen it */
    size_t bytes; /* that Lua has */
};

bool guard_on(lua_State *L);
/* For C code that takes long in guarded code, every now and then: raises when it has been long enough. */
void guard_check(lua_State *L);

/* sys.guarded(handler, fn, ...), sys.unguarded(fn, ...), sys.resume(co, ...): see bind_sys.c. */
int guard_guarded(lua_State *L);
int guard_unguarded(lua_State *L);
int guard_resume(lua_State *L);

/* Puts the bounded functions in the place of Lua's own, for all of the state. */
void bounded_open(lua_State *L);

#endif
