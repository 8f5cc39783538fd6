/* The decisions that a policy can make, and whether what it returns is one. */
#include "sandbox/env.h"

#include "sandbox/env_impl.h"
#include "sandbox/plain.h"

#include <lauxlib.h>
#include <string.h>

enum { REASON_MAX = 500, COMMANDS_MAX = 64, CHOICE_MAX = 1000 };

static int flag(lua_State *L, const char *name)
{
    lua_createtable(L, 0, 1);
    lua_pushboolean(L, 1);
    lua_setfield(L, -2, name);
    return 1;
}

static int l_allow(lua_State *L)
{
    return flag(L, "allow");
}

static int l_approve(lua_State *L)
{
    return flag(L, "approve");
}

/* refuse(reason) */
static int l_refuse(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TSTRING);
    lua_createtable(L, 0, 1);
    lua_pushvalue(L, 1);
    lua_setfield(L, -2, "refuse");
    return 1;
}

/* amend{field = value, ...}, choose{node id, ...} */
static int of_table(lua_State *L, const char *name)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_createtable(L, 0, 1);
    lua_pushvalue(L, 1);
    lua_setfield(L, -2, name);
    return 1;
}

static int l_amend(lua_State *L)
{
    return of_table(L, "amend");
}

static int l_choose(lua_State *L)
{
    return of_table(L, "choose");
}

/* What a reaction may ask for: its name, the fields that it takes, and how many of them it needs. */
static const struct {
    const char *function, *does, *fields[3], *value;
    int needs;
} commands[] = {
    {"set_label", "label", {"node", "key", "value"}, NULL, 2},
    {"drain", "availability", {"node"}, "drain", 1},
    {"activate", "availability", {"node"}, "active", 1},
    {"kv_put", "kv.put", {"key", "value"}, NULL, 2},
    {"kv_rm", "kv.rm", {"key"}, NULL, 1},
    {"event", "event", {"text"}, NULL, 1},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static int l_command(lua_State *L)
{
    int which = (int)lua_tointeger(L, lua_upvalueindex(1));
    lua_settop(L, 3);
    lua_createtable(L, 0, 4);
    lua_pushstring(L, commands[which].does);
    lua_setfield(L, -2, "do_");
    for (int i = 0; i < 3 && commands[which].fields[i] != NULL; i++) {
        if (i < commands[which].needs || !lua_isnil(L, i + 1)) {
            luaL_checktype(L, i + 1, LUA_TSTRING);
        }
        lua_pushvalue(L, i + 1);
        lua_setfield(L, -2, commands[which].fields[i]);
    }
    if (commands[which].value != NULL) {
        lua_pushstring(L, commands[which].value);
        lua_setfield(L, -2, "value");
    }
    return 1;
}

void env_add_decisions(lua_State *L)
{
    static const luaL_Reg functions[] = {{"allow", l_allow}, {"refuse", l_refuse}, {"amend", l_amend},
        {"approve", l_approve}, {"choose", l_choose}, {NULL, NULL}};
    luaL_setfuncs(L, functions, 0);
    for (int i = 0; i < N_COMMANDS; i++) {
        lua_pushinteger(L, i);
        lua_pushcclosure(L, l_command, 1);
        lua_setfield(L, -2, commands[i].function);
    }
}

/* --- what a hook returns --- */

static bool text_field(lua_State *L, int idx, const char *name, bool needed)
{
    lua_pushstring(L, name);
    int type = lua_rawget(L, idx);
    lua_pop(L, 1);
    return type == LUA_TSTRING || (type == LUA_TNIL && !needed);
}

static void check_command(lua_State *L, int idx)
{
    const char *does = NULL;
    bool known = false;
    if (lua_istable(L, idx)) {
        lua_pushliteral(L, "do_");
        lua_rawget(L, idx);
        does = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : NULL;
        lua_pop(L, 1);
    }
    if (does == NULL) {
        luaL_error(L, "a reaction returns a list of commands, made by set_label, drain, activate, kv_put, "
                      "kv_rm and event");
        return;
    }
    for (int i = 0; i < N_COMMANDS; i++) {
        if (strcmp(does, commands[i].does) != 0) {
            continue;
        }
        known = true;
        for (int f = 0; f < 3 && commands[i].fields[f] != NULL; f++) {
            if (!text_field(L, idx, commands[i].fields[f], f < commands[i].needs)) {
                luaL_error(L, "the command %s needs the text '%s'", does, commands[i].fields[f]);
            }
        }
    }
    if (!known) {
        luaL_error(L, "there is no command '%s'", does);
    }
}

static void check_commands(lua_State *L, int idx)
{
    lua_Unsigned n = lua_rawlen(L, idx);
    if (n > COMMANDS_MAX) {
        luaL_error(L, "at most %d commands", COMMANDS_MAX);
    }
    for (lua_Unsigned i = 1; i <= n; i++) {
        lua_rawgeti(L, idx, (lua_Integer)i);
        check_command(L, lua_gettop(L));
        lua_pop(L, 1);
    }
}

static void check_choice(lua_State *L, int idx)
{
    lua_Unsigned n = lua_rawlen(L, idx);
    if (n > CHOICE_MAX) {
        luaL_error(L, "choose: at most %d nodes", CHOICE_MAX);
    }
    for (lua_Unsigned i = 1; i <= n; i++) {
        if (lua_rawgeti(L, idx, (lua_Integer)i) != LUA_TSTRING) {
            luaL_error(L, "choose takes a list of node ids, best first");
        }
        lua_pop(L, 1);
    }
}

/* The one field @name of a decision, whose value is on the top. */
static void check_field(lua_State *L, const char *name, const char *hook)
{
    bool admits = strncmp(hook, "admit.", 6) == 0, places = strncmp(hook, "place.", 6) == 0;
    size_t n = 0;
    if (strcmp(name, "allow") == 0 && admits) {
        luaL_argcheck(L, lua_isboolean(L, -1) && lua_toboolean(L, -1), 1, "allow is true or not there");
    } else if (strcmp(name, "approve") == 0 && strcmp(hook, "admit.join") == 0) {
        luaL_argcheck(L, lua_isboolean(L, -1) && lua_toboolean(L, -1), 1, "approve is true or not there");
    } else if (strcmp(name, "refuse") == 0 && admits) {
        if (lua_type(L, -1) != LUA_TSTRING || (lua_tolstring(L, -1, &n), n == 0 || n > REASON_MAX)) {
            luaL_error(L, "refuse takes a reason: a text of at most %d bytes", REASON_MAX);
        }
    } else if (strcmp(name, "amend") == 0 && admits) {
        if (!lua_istable(L, -1) || lua_rawlen(L, -1) > 0) {
            luaL_error(L, "amend takes a table of fields");
        }
    } else if (strcmp(name, "choose") == 0 && places) {
        if (!lua_istable(L, -1)) {
            luaL_error(L, "choose takes a list of node ids, best first");
        }
        check_choice(L, lua_gettop(L));
    } else if (strcmp(name, "commands") == 0 && !admits && !places) {
        if (!lua_istable(L, -1)) {
            luaL_error(L, "commands is to be a list");
        }
        check_commands(L, lua_gettop(L));
    } else {
        luaL_error(L, "'%s' is no decision of %s", name, hook);
    }
}

void env_check_decision(lua_State *L, int idx, const char *hook)
{
    if (lua_isnil(L, idx)) {
        return;
    }
    if (!lua_istable(L, idx)) {
        luaL_error(L, "a hook returns a decision or nothing, not a %s", luaL_typename(L, idx));
    }
    if (lua_rawlen(L, idx) > 0) {
        lua_createtable(L, 0, 1);
        lua_pushvalue(L, idx);
        lua_setfield(L, -2, "commands");
        lua_replace(L, idx);
    }
    int fields = 0;
    for (lua_pushnil(L); lua_next(L, idx) != 0; lua_pop(L, 1)) {
        if (lua_type(L, -2) != LUA_TSTRING || ++fields > 1) {
            luaL_error(L, "a decision has one field: allow, refuse, amend, approve, choose or commands");
        }
        check_field(L, lua_tostring(L, -2), hook);
    }
    if (fields == 0) {
        lua_pushnil(L);
        lua_replace(L, idx);
    }
}
