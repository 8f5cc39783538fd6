#include "sandbox/env.h"

#include "sandbox/box.h"
#include "sandbox/env_impl.h"
#include "sandbox/pattern.h"

#include <lauxlib.h>
#include <lualib.h>

/* Registry key: true once no global can be made any more. */
static const char locked_key;

static int l_no_such_name(lua_State *L)
{
    return luaL_error(
        L, "there is no '%s' in a policy", lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "?");
}

static int l_new_global(lua_State *L)
{
    lua_rawgetp(L, LUA_REGISTRYINDEX, &locked_key);
    if (lua_toboolean(L, -1)) {
        return luaL_error(L, "'%s' is not local: a hook can make no globals",
            lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "?");
    }
    lua_settop(L, 3);
    lua_rawset(L, 1);
    return 0;
}

/* Copies @names from the table at @from to that on the top. */
static void copy(lua_State *L, int from, const char *const *names)
{
    for (; *names != NULL; names++) {
        lua_getfield(L, from, *names);
        lua_setfield(L, -2, *names);
    }
}

static void open_library(lua_State *L, const char *name, lua_CFunction open)
{
    luaL_requiref(L, name, open, 0);
}

/* A wrapper around the function @name of the table at @from, into the table on the top. */
static void wrap(lua_State *L, int from, const char *name, lua_CFunction wrapper)
{
    lua_getfield(L, from, name);
    lua_pushcclosure(L, wrapper, 1);
    lua_setfield(L, -2, name);
}

static void wrap_all(lua_State *L, int from, const char *const *names, lua_CFunction wrapper)
{
    from = lua_absindex(L, from);
    for (; *names != NULL; names++) {
        wrap(L, from, *names, wrapper);
    }
}

static void set_function(lua_State *L, const char *name, lua_CFunction fn)
{
    lua_pushcfunction(L, fn);
    lua_setfield(L, -2, name);
}

/* Puts the string library on the top of the stack, which becomes that of the methods of strings as well. */
static void open_string(lua_State *L)
{
    static const char *const names[] = {"len", "sub", NULL};
    static const char *const charged[] = {"byte", "char", "lower", "reverse", "upper", NULL};
    open_library(L, "string", luaopen_string);
    lua_newtable(L);
    copy(L, -2, names);
    wrap_all(L, -2, charged, env_charged);
    pattern_open(L, box_charge);
    wrap(L, -2, "format", env_format);
    set_function(L, "rep", env_rep);
    lua_remove(L, -2);
    lua_pushliteral(L, "");
    lua_getmetatable(L, -1);
    lua_pushvalue(L, -3);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 2);
}

static void open_table(lua_State *L)
{
    static const char *const charged[] = {"pack", "unpack", NULL};
    static const char *const moving[] = {"concat", "insert", "remove", NULL};
    open_library(L, "table", luaopen_table);
    lua_newtable(L);
    wrap_all(L, -2, charged, env_charged);
    wrap_all(L, -2, moving, env_moving);
    set_function(L, "sort", env_sort);
    lua_remove(L, -2);
}

static void open_math(lua_State *L)
{
    static const char *const names[] = {"abs", "ceil", "floor", "fmod", "huge", "max", "maxinteger", "min",
        "mininteger", "modf", "sqrt", "tointeger", "type", "ult", NULL};
    open_library(L, "math", luaopen_math);
    lua_newtable(L);
    copy(L, -2, names);
    lua_remove(L, -2);
}

static void open_utf8(lua_State *L)
{
    static const char *const names[] = {"charpattern", "codes", NULL};
    static const char *const charged[] = {"char", "codepoint", "len", "offset", NULL};
    open_library(L, "utf8", luaopen_utf8);
    lua_newtable(L);
    copy(L, -2, names);
    wrap_all(L, -2, charged, env_charged);
    lua_remove(L, -2);
}

static void open_allowed(lua_State *L)
{
    static const char *const base[] = {"assert", "error", "ipairs", "rawequal", "rawlen", "type", NULL};
    static const char *const charged[] = {"select", "tonumber", NULL};
    lua_newtable(L);
    open_library(L, "_G", luaopen_base);
    lua_insert(L, -2);
    copy(L, -2, base);
    wrap_all(L, -2, charged, env_charged);
    lua_remove(L, -2);
    set_function(L, "tostring", env_tostring);
    set_function(L, "pairs", env_sorted_pairs);
    open_string(L);
    lua_setfield(L, -2, "string");
    open_table(L);
    lua_setfield(L, -2, "table");
    open_math(L);
    lua_setfield(L, -2, "math");
    open_utf8(L);
    lua_setfield(L, -2, "utf8");
    /* The rest of what was opened is let go of. */
    lua_pushnil(L);
    lua_setfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
    lua_createtable(L, 0, 2);
    set_function(L, "__index", l_no_such_name);
    set_function(L, "__newindex", l_new_global);
    lua_setmetatable(L, -2);
    lua_pushvalue(L, -1);
    lua_rawseti(L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
}

void env_open(lua_State *L, bool full)
{
    static const luaL_Reg functions[] = {
        {"glob", env_glob}, {"sorted_pairs", env_sorted_pairs}, {NULL, NULL}};
    if (full) {
        luaL_openlibs(L);
    } else {
        open_allowed(L);
        lua_pop(L, 1);
    }
    lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
    env_add_state(L);
    env_add_decisions(L);
    luaL_setfuncs(L, functions, 0);
    lua_pop(L, 1);
}

void env_lock(lua_State *L)
{
    lua_pushboolean(L, 1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &locked_key);
}
