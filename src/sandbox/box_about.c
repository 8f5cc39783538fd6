/* What a policy says of itself in the table that it returns. */
#include "sandbox/box_impl.h"

#include "base/err.h"
#include "sandbox/plain.h"

#include <lauxlib.h>
#include <string.h>

enum { SUMMARY_MAX = 200, ABOUT_MAX = 64 << 10 };

const char box_hooks_key, box_cases_key;

/* The field @name of the table at @idx, raw, on the top; its type. */
int box_raw_field(lua_State *L, int idx, const char *name)
{
    idx = lua_absindex(L, idx);
    lua_pushstring(L, name);
    return lua_rawget(L, idx);
}

void box_check(lua_State *L, int rv)
{
    if (rv != 0) {
        luaL_error(L, "%s", err_msg());
    }
}

static void check_fields(lua_State *L, int idx)
{
    static const char *const known[] = {"summary", "order", "match", "hooks", "selftest"};
    for (lua_pushnil(L); lua_next(L, idx) != 0; lua_pop(L, 1)) {
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof *known && lua_type(L, -2) == LUA_TSTRING; i++) {
            found = found || strcmp(lua_tostring(L, -2), known[i]) == 0;
        }
        if (!found) {
            luaL_error(L, "what it returns has a field that means nothing: %s",
                lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : luaL_typename(L, -2));
        }
    }
}

static void read_order(lua_State *L, struct box *box, int idx)
{
    int whole = 1;
    box->order = BOX_ORDER_DEFAULT;
    if (box_raw_field(L, idx, "order") != LUA_TNIL) {
        lua_Integer order = lua_type(L, -1) == LUA_TNUMBER ? lua_tointegerx(L, -1, &whole) : -1;
        if (!whole || order < 0 || order > 100) {
            luaL_error(L, "order is to be a whole number from 0 to 100");
        }
        box->order = (int)order;
    }
    lua_pop(L, 1);
}

static void read_hooks(lua_State *L, struct box *box, int idx)
{
    if (box_raw_field(L, idx, "hooks") != LUA_TTABLE) {
        luaL_error(
            L, "it is to return a table with hooks = { [\"admit.change\"] = function(change) ... end, ... }");
    }
    plain_push_keys(L, -1);
    int keys = lua_gettop(L);
    lua_newtable(L);
    for (lua_Integer i = 1; lua_rawgeti(L, keys, i) != LUA_TNIL; i++) {
        if (lua_type(L, -1) != LUA_TSTRING || !rules_hook_known(lua_tostring(L, -1))) {
            luaL_error(L,
                "there is no hook %s; there are admit.join, admit.change, place.<kind>, node.down, node.up, "
                "leader.change and every.<duration>, such as every.30s",
                lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : luaL_typename(L, -1));
        }
        lua_pushvalue(L, -1);
        if (lua_rawget(L, keys - 1) != LUA_TFUNCTION) {
            luaL_error(L, "hooks[\"%s\"] is to be a function", lua_tostring(L, -2));
        }
        if (!rules_have_hook(&box->rules, lua_tostring(L, -2))) {
            box_check(L, rules_add_hook(&box->rules, lua_tostring(L, -2)));
        }
        lua_rawset(L, keys + 1);
    }
    lua_pop(L, 1);
    if (lua_rawlen(L, keys) == 0) {
        luaL_error(L, "it has no hooks");
    }
    lua_rawsetp(L, LUA_REGISTRYINDEX, &box_hooks_key);
    lua_settop(L, keys - 2);
}

/* The glob on the top, of the field named by the key below. */
static void read_glob(lua_State *L, struct box *box, int hook, unsigned field)
{
    size_t n;
    if (lua_type(L, -1) != LUA_TSTRING || (lua_tolstring(L, -1, &n), n == 0)) {
        luaL_error(L, "match: %s is to be a list of texts with * and ?", rules_plural[field]);
    }
    box_check(L, rules_add(&box->rules, lua_tostring(L, hook), (enum rules_field)field, lua_tostring(L, -1)));
}

static unsigned field_of(lua_State *L)
{
    for (unsigned i = 0; i < RULES_FIELDS && lua_type(L, -2) == LUA_TSTRING; i++) {
        if (strcmp(lua_tostring(L, -2), rules_plural[i]) == 0) {
            return i;
        }
    }
    return (unsigned)luaL_error(
        L, "match: a hook's inputs are chosen by kinds, keys, actions, roles and names");
}

/* match[hook], which is on the top, with its key below. */
static void read_rules(lua_State *L, struct box *box)
{
    int hook = lua_gettop(L) - 1;
    if (lua_type(L, hook) != LUA_TSTRING || !box_has_hook(box, lua_tostring(L, hook))) {
        luaL_error(L, "match names a hook that it does not have");
    }
    if (!lua_istable(L, -1)) {
        luaL_error(L, "match[\"%s\"] is to be a table", lua_tostring(L, hook));
    }
    for (lua_pushnil(L); lua_next(L, hook + 1) != 0; lua_pop(L, 1)) {
        unsigned field = field_of(L);
        if (!lua_istable(L, -1) || lua_rawlen(L, -1) == 0) {
            luaL_error(L, "match: %s is to be a list of texts with * and ?", rules_plural[field]);
        }
        for (lua_Integer i = 1; lua_rawgeti(L, -1, i) != LUA_TNIL; i++) {
            read_glob(L, box, hook, field);
            lua_pop(L, 1);
        }
        lua_pop(L, 1);
    }
}

static void read_match(lua_State *L, struct box *box, int idx)
{
    int type = box_raw_field(L, idx, "match");
    if (type != LUA_TNIL && type != LUA_TTABLE) {
        luaL_error(L, "match is to be a table");
    }
    for (lua_pushnil(L); type == LUA_TTABLE && lua_next(L, -2) != 0; lua_pop(L, 1)) {
        read_rules(L, box);
    }
    lua_settop(L, idx);
}

static lua_Integer read_cases(lua_State *L, int idx)
{
    int type = box_raw_field(L, idx, "selftest");
    if (type != LUA_TNIL && type != LUA_TTABLE) {
        luaL_error(L, "selftest is to be a list of { name=, hook=, input=, state=, expect= }");
    }
    lua_Integer n = type == LUA_TTABLE ? (lua_Integer)lua_rawlen(L, -1) : 0;
    if (n > BOX_CASES_MAX) {
        luaL_error(L, "selftest: at most %d cases", BOX_CASES_MAX);
    }
    lua_rawsetp(L, LUA_REGISTRYINDEX, &box_cases_key);
    return n;
}

static void write_about(lua_State *L, struct box *box, int idx, lua_Integer n_cases)
{
    struct buf *out = &box->about;
    size_t n = 0;
    const char *summary = "";
    int type = box_raw_field(L, idx, "summary");
    if (type == LUA_TSTRING) {
        summary = lua_tolstring(L, -1, &n);
    }
    if ((type != LUA_TNIL && type != LUA_TSTRING) || n > SUMMARY_MAX) {
        luaL_error(L, "summary is to be a text of at most %d bytes", SUMMARY_MAX);
    }
    box_check(L, buf_appendf(out, "{\"summary\":"));
    plain_write_text(L, summary, n, out);
    box_check(L, buf_appendf(out, ",\"order\":%d,\"hooks\":[", box->order));
    for (unsigned i = 0; i < box->rules.n_hooks; i++) {
        box_check(L, buf_appendf(out, "%s\"%s\"", i > 0 ? "," : "", box->rules.hooks[i]));
    }
    box_check(L, buf_appendf(out, "],\"match\":"));
    if (box_raw_field(L, idx, "match") == LUA_TNIL) {
        box_check(L, buf_appendf(out, "{}"));
    } else {
        plain_write(L, -1, out, ABOUT_MAX);
    }
    lua_settop(L, idx);
    lua_gc(L, LUA_GCCOLLECT);
    box_check(L, buf_appendf(out, ",\"memory\":%zu,\"selftest\":%lld}", box_memory(box), (long long)n_cases));
    box_check(L, buf_append(out, "", 1));
}

void box_read(lua_State *L, struct box *box, bool again)
{
    check_fields(L, 1);
    read_hooks(L, box, 1);
    lua_Integer cases = read_cases(L, 1);
    if (!again) {
        read_order(L, box, 1);
        read_match(L, box, 1);
        write_about(L, box, 1, cases);
    }
}
