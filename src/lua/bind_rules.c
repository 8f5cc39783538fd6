/* require "sym.rules": the names of hooks and the globs of policies, as the sandbox has them (sandbox/rules.h, glob.h).
 *
 *   glob(pattern, text)  does the whole of text fit? A pattern of more than 64 bytes fits nothing
 *   is_hook(name)        is there such a hook? Of any value
 *   period(name)         the seconds of an every.<duration>; nil for any other hook
 *   HOOKS_MAX, GLOBS_MAX, GLOB_MAX   hooks of a policy, globs for a field of a hook's inputs, bytes of a glob
 */
#include "lua/fields.h"
#include "lua/vm.h"
#include "sandbox/glob.h"
#include "sandbox/rules.h"

#include <lauxlib.h>
#include <string.h>

static int l_glob(lua_State *L)
{
    size_t n_glob, n_text;
    const char *glob = luaL_checklstring(L, 1, &n_glob);
    const char *text = luaL_checklstring(L, 2, &n_text);
    lua_pushboolean(L, n_glob <= RULES_GLOB_MAX && glob_match(glob, n_glob, text, n_text));
    return 1;
}

/* The name at @idx; "", of which there is no hook, when that is none. */
static const char *name_at(lua_State *L, int idx)
{
    size_t n;
    const char *name = lua_type(L, idx) == LUA_TSTRING ? lua_tolstring(L, idx, &n) : NULL;
    return name != NULL && strlen(name) == n ? name : "";
}

static int l_is_hook(lua_State *L)
{
    lua_pushboolean(L, rules_hook_known(name_at(L, 1)));
    return 1;
}

static int l_period(lua_State *L)
{
    unsigned seconds = rules_period(name_at(L, 1));
    if (seconds > 0) {
        lua_pushinteger(L, seconds);
    } else {
        lua_pushnil(L);
    }
    return 1;
}

int luaopen_sym_rules(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"glob", l_glob},
        {"is_hook", l_is_hook},
        {"period", l_period},
        {NULL, NULL},
    };
    luaL_newlib(L, functions);
    set_integer(L, "HOOKS_MAX", RULES_HOOKS_MAX);
    set_integer(L, "GLOBS_MAX", RULES_GLOBS_MAX);
    set_integer(L, "GLOB_MAX", RULES_GLOB_MAX);
    return 1;
}
