/* The parts of the library that are a policy's own, or Lua's with their work counted. */
#include "sandbox/env_impl.h"

#include "sandbox/box.h"
#include "sandbox/glob.h"
#include "sandbox/plain.h"

#include <lauxlib.h>
#include <string.h>

enum { REP_MAX = 64 << 10, SORT_MAX = 10000, SPECS_MAX = 64 };

/* --- values --- */

/* As Lua's own, but a table says only that it is one: where it lies in memory is nobody's business. */
static void push_text_of(lua_State *L, int idx)
{
    switch (lua_type(L, idx)) {
    case LUA_TSTRING:
    case LUA_TNUMBER:
        lua_pushvalue(L, idx);
        lua_tolstring(L, -1, NULL);
        break;
    case LUA_TBOOLEAN:
        lua_pushstring(L, lua_toboolean(L, idx) ? "true" : "false");
        break;
    default:
        lua_pushstring(L, luaL_typename(L, idx));
        break;
    }
}

int env_tostring(lua_State *L)
{
    luaL_checkany(L, 1);
    push_text_of(L, 1);
    return 1;
}

static int next_sorted(lua_State *L)
{
    lua_Integer i = lua_tointeger(L, lua_upvalueindex(2)) + 1;
    lua_pushinteger(L, i);
    lua_replace(L, lua_upvalueindex(2));
    if (lua_rawgeti(L, lua_upvalueindex(1), i) == LUA_TNIL) {
        return 1;
    }
    lua_pushvalue(L, -1);
    lua_rawget(L, lua_upvalueindex(3));
    return 2;
}

/* pairs(t), sorted_pairs(t): numbers ascending, then texts, as they were when it began. */
int env_sorted_pairs(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    plain_push_keys(L, 1);
    box_charge(L, 4 * lua_rawlen(L, 2));
    lua_pushinteger(L, 0);
    lua_pushvalue(L, 1);
    lua_pushcclosure(L, next_sorted, 3);
    return 1;
}

/* glob(pattern, text) */
int env_glob(lua_State *L)
{
    size_t n_glob, n_text;
    const char *glob = luaL_checklstring(L, 1, &n_glob);
    const char *text = luaL_checklstring(L, 2, &n_text);
    luaL_argcheck(L, n_glob <= 1024, 1, "a glob of at most 1024 bytes");
    box_charge(L, n_glob * (uint64_t)n_text / 8 + n_text / 8);
    lua_pushboolean(L, glob_match(glob, n_glob, text, n_text));
    return 1;
}

/* The function of Lua's library (upvalue), whose work grows with its texts and with what it is given and gives. */
int env_charged(lua_State *L)
{
    int given = lua_gettop(L);
    uint64_t cost = (uint64_t)given;
    for (int i = 1; i <= given; i++) {
        cost += lua_type(L, i) == LUA_TSTRING ? lua_rawlen(L, i) / 8 : 0;
    }
    box_charge(L, cost);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_call(L, given, LUA_MULTRET);
    box_charge(L, (uint64_t)lua_gettop(L));
    return lua_gettop(L);
}

/* --- string --- */

int env_rep(lua_State *L)
{
    size_t n, n_sep;
    const char *text = luaL_checklstring(L, 1, &n);
    lua_Integer times = luaL_checkinteger(L, 2);
    const char *sep = luaL_optlstring(L, 3, "", &n_sep);
    if (times <= 0 || (n == 0 && n_sep == 0)) {
        lua_pushliteral(L, "");
        return 1;
    }
    if (n > REP_MAX || n_sep > REP_MAX || times > REP_MAX || (n + n_sep) * (size_t)times > REP_MAX) {
        return luaL_error(L, "rep: a text of more than %d bytes", REP_MAX);
    }
    luaL_Buffer b;
    luaL_buffinit(L, &b);
    for (lua_Integer i = 0; i < times; i++) {
        luaL_addlstring(&b, text, n);
        if (i + 1 < times) {
            luaL_addlstring(&b, sep, n_sep);
        }
    }
    luaL_pushresult(&b);
    return 1;
}

/* string.format: as Lua's own (upvalue), but no %p, and %s shows no addresses. */
int env_format(lua_State *L)
{
    size_t n;
    const char *p = luaL_checklstring(L, 1, &n), *end = p + n;
    int arg = 1, given = lua_gettop(L);
    for (unsigned specs = 0; (p = memchr(p, '%', (size_t)(end - p))) != NULL; specs++) {
        p++;
        if (p < end && *p == '%') {
            p++;
            continue;
        }
        arg++;
        luaL_argcheck(L, specs < SPECS_MAX, 1, "at most 64 conversions");
        while (p < end && strchr("-+ #0123456789.", *p) != NULL && *p != '\0') {
            p++;
        }
        luaL_argcheck(L, p == end || *p != 'p', 1, "there is no %p");
        box_charge(L, p < end && strchr("aAeEfgG", *p) != NULL ? 200 : 20);
        if (p < end && *p == 's' && arg <= given) {
            push_text_of(L, arg);
            lua_replace(L, arg);
        }
    }
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_call(L, given, 1);
    return 1;
}

/* --- table --- */

/* The function of Lua's library (upvalue) behind a charge for what it moves. */
int env_moving(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    box_charge(L, lua_rawlen(L, 1) / 2);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
    return lua_gettop(L);
}

/* Whether the value at @a (and not that at @b) goes first. */
static bool goes_first(lua_State *L, int a, int b)
{
    if (lua_isnil(L, 2)) {
        return lua_compare(L, a, b, LUA_OPLT);
    }
    a = lua_absindex(L, a);
    b = lua_absindex(L, b);
    lua_pushvalue(L, 2);
    lua_pushvalue(L, a);
    lua_pushvalue(L, b);
    lua_call(L, 2, 1);
    bool first = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return first;
}

/* Merges what stands at @from..@mid and @mid..@to (the latter not in it) of the table @a into the table @b. */
static void merge(lua_State *L, int a, int b, lua_Integer from, lua_Integer mid, lua_Integer to)
{
    lua_Integer left = from, right = mid;
    for (lua_Integer i = from; i < to; i++) {
        bool take_right = left == mid;
        if (left < mid && right < to) {
            lua_rawgeti(L, a, right);
            lua_rawgeti(L, a, left);
            take_right = goes_first(L, -2, -1);
            lua_pop(L, 2);
        }
        lua_rawgeti(L, a, take_right ? right++ : left++);
        lua_rawseti(L, b, i);
    }
}

/* table.sort: stable, and so the same each time. */
int env_sort(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 2);
    if (!lua_isnil(L, 2)) {
        luaL_checktype(L, 2, LUA_TFUNCTION);
    }
    lua_Unsigned len = lua_rawlen(L, 1);
    luaL_argcheck(L, len <= SORT_MAX, 1, "at most 10000 elements");
    lua_Integer n = (lua_Integer)len;
    lua_createtable(L, (int)n, 0);
    lua_createtable(L, (int)n, 0);
    int a = 3, b = 4;
    for (lua_Integer i = 1; i <= n; i++) {
        lua_rawgeti(L, 1, i);
        lua_rawseti(L, a, i);
    }
    for (lua_Integer width = 1; width < n; width *= 2) {
        box_charge(L, 2 * (uint64_t)n);
        for (lua_Integer from = 1; from <= n; from += 2 * width) {
            lua_Integer mid = from + width <= n + 1 ? from + width : n + 1;
            lua_Integer to = mid + width <= n + 1 ? mid + width : n + 1;
            merge(L, a, b, from, mid, to);
        }
        int swap = a;
        a = b;
        b = swap;
    }
    for (lua_Integer i = 1; i <= n; i++) {
        lua_rawgeti(L, a, i);
        lua_rawseti(L, 1, i);
    }
    return 0;
}
