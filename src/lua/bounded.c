/* The functions of Lua's library that one call, or many between two instructions, could keep the loop busy with. In
 * guarded code each asks the clock before it does anything, and those whose work has no other bound than the memory, or
 * none at all, have one. In all other code they are Lua's own: their closures cost a call. */
#include "lua/guard.h"
#include "lua/vm.h"
#include "sandbox/pattern.h"

#include <string.h>

static int original(lua_State *L)
{
    return lua_tocfunction(L, lua_upvalueindex(1))(L);
}

static int checked(lua_State *L)
{
    if (guard_on(L)) {
        guard_check(L);
    }
    return original(L);
}

static int forbidden(lua_State *L)
{
    if (guard_on(L)) {
        return luaL_error(L, "%s would stop the daemon, or free code of its limits: not here",
            lua_tostring(L, lua_upvalueindex(2)));
    }
    return original(L);
}

/* --- strings --- */

static int bounded_rep(lua_State *L)
{
    if (guard_on(L)) {
        size_t n, sep;
        guard_check(L);
        luaL_checklstring(L, 1, &n);
        lua_Integer times = luaL_checkinteger(L, 2);
        luaL_optlstring(L, 3, "", &sep);
        size_t room = n + sep > 0 ? GUARD_STRING_MAX / (n + sep) : GUARD_STRING_MAX;
        luaL_argcheck(
            L, times <= 0 || (lua_Unsigned)times <= room, 2, "the string would have more than 4 MiB");
    }
    return original(L);
}

/* An iterator of gmatch may go on outside of guarded code. */
static void charge(lua_State *L, uint64_t steps)
{
    (void)steps;
    if (guard_on(L)) {
        guard_check(L);
    }
}

static int run(lua_State *L, int (*bounded)(lua_State *L, pattern_charge *charge))
{
    if (guard_on(L)) {
        guard_check(L);
        return bounded(L, charge);
    }
    return original(L);
}

static int bounded_find(lua_State *L)
{
    return run(L, pattern_find);
}

static int bounded_match(lua_State *L)
{
    return run(L, pattern_match);
}

static int bounded_gmatch(lua_State *L)
{
    return run(L, pattern_gmatch);
}

static int bounded_gsub(lua_State *L)
{
    return run(L, pattern_gsub);
}

/* --- tables --- */

static void check_items(lua_State *L, lua_Integer from, lua_Integer to)
{
    if (to >= from && (lua_Unsigned)to - (lua_Unsigned)from >= GUARD_ITEMS_MAX) {
        luaL_error(L, "more than %d items in one call", GUARD_ITEMS_MAX);
    }
}

static int bounded_concat(lua_State *L)
{
    if (guard_on(L)) {
        guard_check(L);
        luaL_checkany(L, 1);
        lua_Integer last = lua_isnoneornil(L, 4) ? luaL_len(L, 1) : luaL_checkinteger(L, 4);
        check_items(L, luaL_optinteger(L, 3, 1), last);
    }
    return original(L);
}

/* insert and remove. */
static int bounded_shift(lua_State *L)
{
    if (guard_on(L)) {
        guard_check(L);
        luaL_checkany(L, 1);
        check_items(L, 1, luaL_len(L, 1));
    }
    return original(L);
}

static int bounded_move(lua_State *L)
{
    if (guard_on(L)) {
        guard_check(L);
        check_items(L, luaL_checkinteger(L, 2), luaL_checkinteger(L, 3));
    }
    return original(L);
}

static int less_than(lua_State *L)
{
    guard_check(L);
    lua_pushboolean(L, lua_compare(L, 1, 2, LUA_OPLT));
    return 1;
}

static int checked_order(lua_State *L)
{
    guard_check(L);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_call(L, lua_gettop(L) - 1, 1);
    return 1;
}

static int bounded_sort(lua_State *L)
{
    if (guard_on(L)) {
        luaL_checkany(L, 1);
        check_items(L, 1, luaL_len(L, 1));
        lua_settop(L, 2);
        if (lua_isnil(L, 2)) {
            lua_pushcfunction(L, less_than);
            lua_replace(L, 2);
        } else if (lua_iscfunction(L, 2)) {
            lua_pushcclosure(L, checked_order, 1);
        }
    }
    return original(L);
}

/* --- what would get round the hook --- */

/* In the handler of an error that the hook has raised no hook fires. */
static int gated_handler(lua_State *L)
{
    struct guard *g = vm_guard(L);
    if (g->raising) {
        g->raising = false;
        lua_settop(L, 1);
        return 1;
    }
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_call(L, lua_gettop(L) - 1, 1);
    return 1;
}

static int bounded_xpcall(lua_State *L)
{
    if (guard_on(L)) {
        guard_check(L);
        luaL_checktype(L, 2, LUA_TFUNCTION);
        lua_pushvalue(L, 2);
        lua_pushcclosure(L, gated_handler, 1);
        lua_replace(L, 2);
    }
    return original(L);
}

/* Nor in what a coroutine closes that the hook has ended: a protected call below it closes that before. */
static int body_end(lua_State *L, int status, lua_KContext ctx)
{
    (void)ctx;
    return status == LUA_OK || status == LUA_YIELD ? lua_gettop(L) : lua_error(L);
}

static int body(lua_State *L)
{
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    return body_end(L, lua_pcallk(L, lua_gettop(L) - 1, LUA_MULTRET, 0, 0, body_end), 0);
}

/* create and wrap. */
static int bounded_coroutine(lua_State *L)
{
    if (guard_on(L)) {
        guard_check(L);
        luaL_checktype(L, 1, LUA_TFUNCTION);
        lua_settop(L, 1);
        lua_pushcclosure(L, body, 1);
    }
    return original(L);
}

static int bounded_setmetatable(lua_State *L)
{
    if (guard_on(L) && lua_type(L, 2) == LUA_TTABLE) {
        lua_pushliteral(L, "__gc");
        if (lua_rawget(L, 2) != LUA_TNIL) {
            return luaL_error(L, "a finalizer cannot be bounded: not here");
        }
        lua_pop(L, 1);
    }
    return original(L);
}

/* A finalizer could be put into the metatable of a userdata, and all code has that of strings. */
static int bounded_getmetatable(lua_State *L)
{
    if (guard_on(L) && lua_type(L, 1) != LUA_TTABLE) {
        luaL_checkany(L, 1);
        lua_pushnil(L);
        return 1;
    }
    return original(L);
}

/* Text only, as code that no compiler has made may do anything, and no more than is compiled at once in good time. */
static int bounded_load(lua_State *L)
{
    if (guard_on(L)) {
        size_t n;
        guard_check(L);
        luaL_checklstring(L, 1, &n); /* not from a function, piece by piece: there is no end to that */
        luaL_argcheck(L, n <= 1 << 20, 1, "the code has more than 1 MiB");
        if (lua_gettop(L) < 3) {
            lua_settop(L, 3);
        }
        lua_pushliteral(L, "t");
        lua_replace(L, 3);
    }
    return original(L);
}

/* Only in steps, each of which is short. */
static int bounded_collect(lua_State *L)
{
    if (guard_on(L)) {
        const char *what = luaL_optstring(L, 1, "collect");
        guard_check(L);
        if (strcmp(what, "count") != 0 && strcmp(what, "isrunning") != 0) {
            lua_pushboolean(L, lua_gc(L, LUA_GCSTEP, 100));
            return 1;
        }
    }
    return original(L);
}

/* --- opening --- */

/* May leave more on the stack than there was. */
static void wrap(lua_State *L, lua_CFunction with, const char *table, const char *name)
{
    /* One that has upvalues could not be called as a C function alone, or is wrapped already. */
    if (lua_getfield(L, -1, name) != LUA_TFUNCTION || lua_getupvalue(L, -1, 1) != NULL) {
        return;
    }
    lua_pushfstring(
        L, strcmp(table, "_G") == 0 ? "%s%s" : "%s.%s", strcmp(table, "_G") == 0 ? "" : table, name);
    lua_pushcclosure(L, with, 2);
    lua_setfield(L, -2, name);
}

/* Every function of the table, except those that have been wrapped. */
static void wrap_all(lua_State *L, const char *table)
{
    lua_getglobal(L, table);
    int at = lua_gettop(L);
    lua_pushnil(L);
    while (lua_next(L, at) != 0) {
        if (lua_isfunction(L, -1)) {
            lua_pushvalue(L, at);
            wrap(L, checked, table, lua_tostring(L, at + 1)); /* a field that is there may be set */
        }
        lua_settop(L, at + 1);
    }
    lua_settop(L, at - 1);
}

/* Text in the place of a number is read by them. */
static void wrap_arithmetic(lua_State *L)
{
    static const char *const names[] = {
        "__add", "__sub", "__mul", "__mod", "__pow", "__div", "__idiv", "__unm", NULL};
    int top = lua_gettop(L);
    lua_pushliteral(L, "");
    lua_getmetatable(L, -1);
    for (const char *const *name = names; *name != NULL; name++) {
        wrap(L, checked, "string", *name);
        lua_settop(L, top + 2);
    }
    lua_settop(L, top);
}

void bounded_open(lua_State *L)
{
    static const char *const whole[] = {"string", "table", "utf8", "math"};
    static const struct {
        const char *table, *name;
        lua_CFunction with;
    } functions[] = {
        {"string", "rep", bounded_rep},
        {"string", "find", bounded_find},
        {"string", "match", bounded_match},
        {"string", "gmatch", bounded_gmatch},
        {"string", "gsub", bounded_gsub},
        {"table", "concat", bounded_concat},
        {"table", "insert", bounded_shift},
        {"table", "remove", bounded_shift},
        {"table", "move", bounded_move},
        {"table", "sort", bounded_sort},
        {"coroutine", "create", bounded_coroutine},
        {"coroutine", "wrap", bounded_coroutine},
        {"coroutine", "resume", checked},
        {"coroutine", "close", checked},
        {"_G", "pcall", checked},
        {"_G", "tostring", checked},
        {"_G", "tonumber", checked},
        {"_G", "select", checked},
        {"_G", "error", checked},
        {"debug", "traceback", checked},
        {"debug", "getinfo", checked},
        {"debug", "getlocal", checked},
        {"_G", "xpcall", bounded_xpcall},
        {"_G", "load", bounded_load},
        {"_G", "setmetatable", bounded_setmetatable},
        {"_G", "getmetatable", bounded_getmetatable},
        {"_G", "collectgarbage", bounded_collect},
        {"_G", "loadfile", forbidden},
        {"_G", "dofile", forbidden},
        {"os", "execute", forbidden},
        {"os", "exit", forbidden},
        {"os", "setlocale", forbidden},
        {"io", "read", forbidden},
        {"io", "lines", forbidden},
        {"io", "input", forbidden},
        {"io", "popen", forbidden},
        {"debug", "debug", forbidden},
        {"debug", "sethook", forbidden},
        {"debug", "setmetatable", forbidden},
        {"debug", "getmetatable", forbidden},
        {"debug", "getregistry", forbidden},
        {"debug", "setuservalue", forbidden},
        {"debug", "getuservalue", forbidden},
        {"debug", "setupvalue", forbidden},
        {"debug", "upvaluejoin", forbidden},
        {"debug", "setlocal", forbidden},
        {"debug", "setcstacklimit", forbidden},
        {"package", "loadlib", forbidden},
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        int top = lua_gettop(L);
        lua_getglobal(L, functions[i].table);
        wrap(L, functions[i].with, functions[i].table, functions[i].name);
        lua_settop(L, top);
    }
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) {
        wrap_all(L, whole[i]);
    }
    wrap_arithmetic(L);
}
