#include "lua/guard.h"

#include "lua/vm.h"

/* Instructions between two looks at the clock: few, as each of them may have a large string to copy. */
#define HOOK_EVERY 50
/* After the first error code that gives back what it holds (__close) has so many to do so; then every one fails. */
#define GRACE 2000
#define GRACE_MS 50

static bool busy_for(lua_State *L, uint64_t ms)
{
    /* The loop's own time is that of the start of its iteration. */
    return uv_hrtime() / 1000000 > uv_now(vm_loop(L)) + ms;
}

static bool too_long(lua_State *L)
{
    return busy_for(L, GUARD_BUSY_MS);
}

static void on_count(lua_State *L, lua_Debug *ar);

static bool set_hook(lua_State *L, int count)
{
    if (lua_gethookcount(L) != count || lua_gethook(L) != on_count) {
        lua_sethook(L, on_count, LUA_MASKCOUNT, count);
    }
    return true;
}

/* Once this has fired it fires again soon, and then at every instruction, so that a pcall in the way only has its turn
 * cut short; it rests again when the loop has gone round. */
static void stop(lua_State *L)
{
    set_hook(L, lua_gethookcount(L) == HOOK_EVERY ? GRACE : 1);
    if (!too_long(L)) {
        luaL_error(L,
            "stopped: the daemon's Lua would have more than %d MiB; let go of what is large, and "
            "collectgarbage()",
            (int)(GUARD_MEMORY_MAX >> 20));
    }
    luaL_error(L, "stopped: it kept the loop busy for more than %d ms", GUARD_BUSY_MS);
}

static bool over(lua_State *L)
{
    return too_long(L) || vm_guard(L)->bytes > GUARD_MEMORY_MAX;
}

static void on_count(lua_State *L, lua_Debug *ar)
{
    (void)ar;
    struct guard *g = vm_guard(L);
    g->raising = over(L);
    if (g->raising) {
        stop(L);
    }
    set_hook(L, HOOK_EVERY);
}

bool guard_on(lua_State *L)
{
    return lua_gethook(L) == on_count;
}

void guard_check(lua_State *L)
{
    bool grace = lua_gethookcount(L) == GRACE && !busy_for(L, GUARD_BUSY_MS + GRACE_MS);
    if (!grace && over(L)) {
        stop(L);
    }
}

static void begin(lua_State *L)
{
    lua_sethook(L, on_count, LUA_MASKCOUNT, HOOK_EVERY);
    vm_guard(L)->running = true;
}

static void end(lua_State *L)
{
    lua_sethook(L, NULL, 0, 0);
    vm_guard(L)->running = false;
    vm_guard(L)->raising = false;
}

/* @nested: the hook was there before. In C, because Lua code behind the call would still be under the hook. */
static int guarded_end(lua_State *L, int status, lua_KContext nested)
{
    if (nested == 0) {
        end(L);
    }
    bool ok = status == LUA_OK || status == LUA_YIELD;
    lua_pushboolean(L, ok);
    lua_replace(L, 1); /* where the handler was: what follows is the results, or the error */
    return lua_gettop(L);
}

/* The handler is not the guarded code's: it is let do its work, also when that has been stopped. */
static int on_error(lua_State *L)
{
    int count = lua_gethookcount(L);
    bool on = guard_on(L);
    lua_sethook(L, NULL, 0, 0);
    vm_guard(L)->running = false;
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_pushvalue(L, 1);
    lua_pcall(L, 1, 1, 0);
    if (on) {
        begin(L);
        set_hook(L, count);
    }
    return 1;
}

int guard_guarded(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TFUNCTION);
    luaL_checktype(L, 2, LUA_TFUNCTION);
    lua_pushvalue(L, 1);
    lua_pushcclosure(L, on_error, 1);
    lua_replace(L, 1);
    lua_KContext nested = guard_on(L);
    if (!nested) {
        begin(L);
    }
    return guarded_end(L, lua_pcallk(L, lua_gettop(L) - 2, LUA_MULTRET, 1, nested, guarded_end), nested);
}

static int unguarded_end(lua_State *L, int status, lua_KContext on)
{
    if (on != 0) {
        begin(L);
    }
    if (status != LUA_OK && status != LUA_YIELD) {
        return lua_error(L);
    }
    return lua_gettop(L);
}

int guard_unguarded(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TFUNCTION);
    lua_KContext on = guard_on(L);
    if (on) {
        end(L);
    }
    return unguarded_end(L, lua_pcallk(L, lua_gettop(L) - 1, LUA_MULTRET, 0, on, unguarded_end), on);
}

/* Control comes back here whenever the coroutine waits: only while it runs are its allocations limited. */
int guard_resume(lua_State *L)
{
    lua_State *co = lua_tothread(L, 1);
    int n = lua_gettop(L) - 1, results;
    luaL_argexpected(L, co != NULL, 1, "coroutine");
    if (!lua_checkstack(co, n)) {
        return luaL_error(L, "too many arguments to resume");
    }
    struct guard *g = vm_guard(L);
    bool before = g->running;
    lua_xmove(L, co, n);
    g->running = guard_on(co);
    int status = lua_resume(co, L, n, &results);
    g->running = before;
    bool ok = status == LUA_OK || status == LUA_YIELD;
    n = ok ? results : 1;
    luaL_checkstack(L, n + 1, "too many results");
    lua_pushboolean(L, ok);
    lua_xmove(co, L, n);
    return n + 1;
}
