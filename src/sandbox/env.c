#include "sandbox/env.h"

#include "base/err.h"
#include "codec/rw.h"
#include "sandbox/box.h"
#include "sandbox/glob.h"
#include "sandbox/pattern.h"
#include "sandbox/plain.h"

#include <lauxlib.h>
#include <lualib.h>
#include <string.h>

enum {
    REP_MAX = 64 << 10,
    SORT_MAX = 10000,
    REASON_MAX = 500,
    COMMANDS_MAX = 64,
    CHOICE_MAX = 1000,
    SPECS_MAX = 64
};

/* Registry key: true once no global can be made any more. */
static const char locked_key;

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

static int l_tostring(lua_State *L)
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
static int l_sorted_pairs(lua_State *L)
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
static int l_glob(lua_State *L)
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
static int l_charged(lua_State *L)
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

static int l_rep(lua_State *L)
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
static int l_format(lua_State *L)
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
static int l_moving(lua_State *L)
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
static int l_sort(lua_State *L)
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

/* --- the state --- */

static int read_failed(lua_State *L)
{
    return luaL_error(L, "%s", err_msg());
}

/* Below /kv/ a value is the user's text; everything else is symphony's JSON. */
static void push_value(lua_State *L, const char *key, const uint8_t *value, size_t n)
{
    if (strncmp(key, "/kv/", 4) == 0) {
        lua_pushlstring(L, (const char *)value, n);
    } else {
        plain_push(L, value, n);
    }
}

/* get(key): the value, or nil */
static int l_get(lua_State *L)
{
    struct reads *reads = box_reads(L);
    size_t n, len;
    const char *key = luaL_checklstring(L, 1, &n);
    if (reads_ask(reads, READ_GET, key, n, 0) != 0) {
        return read_failed(L);
    }
    struct rd r = rd_init(buf_data(&reads->answer), reads->answer.len);
    uint64_t revision = rd_u64(&r);
    const uint8_t *value = rd_blob(&r, READS_ANSWER_MAX, &len);
    if (value == NULL || revision == 0) {
        lua_pushnil(L);
        return 1;
    }
    push_value(L, key, value, len);
    return 1;
}

/* list(prefix[, limit]): {{key=, value=}...} in order of their keys */
static int l_list(lua_State *L)
{
    struct reads *reads = box_reads(L);
    size_t n, len;
    const char *prefix = luaL_checklstring(L, 1, &n);
    lua_Integer limit = luaL_optinteger(L, 2, READS_LIST_MAX);
    luaL_argcheck(L, limit >= 1 && limit <= READS_LIST_MAX, 2, "from 1 to 1000");
    if (reads_ask(reads, READ_LIST, prefix, n, (unsigned)limit) != 0) {
        return read_failed(L);
    }
    struct rd r = rd_init(buf_data(&reads->answer), reads->answer.len);
    rd_u64(&r);
    rd_u64(&r);
    uint32_t items = rd_u32(&r);
    lua_newtable(L);
    for (uint32_t i = 1; i <= items; i++) {
        size_t n_key;
        const uint8_t *key = rd_blob(&r, READS_KEY_MAX, &n_key);
        const uint8_t *value = rd_blob(&r, READS_ANSWER_MAX, &len);
        if (value == NULL) {
            break;
        }
        lua_createtable(L, 0, 2);
        lua_pushlstring(L, (const char *)key, n_key);
        push_value(L, lua_tostring(L, -1), value, len);
        lua_setfield(L, -3, "value");
        lua_setfield(L, -2, "key");
        lua_rawseti(L, -2, i);
    }
    return 1;
}

/* count(prefix) */
static int l_count(lua_State *L)
{
    struct reads *reads = box_reads(L);
    size_t n;
    const char *prefix = luaL_checklstring(L, 1, &n);
    if (reads_ask(reads, READ_COUNT, prefix, n, 0) != 0) {
        return read_failed(L);
    }
    struct rd r = rd_init(buf_data(&reads->answer), reads->answer.len);
    rd_u64(&r);
    lua_pushinteger(L, (lua_Integer)rd_u64(&r));
    return 1;
}

/* --- decisions --- */

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

/* --- the environment --- */

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
    wrap_all(L, -2, charged, l_charged);
    pattern_open(L, box_charge);
    wrap(L, -2, "format", l_format);
    set_function(L, "rep", l_rep);
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
    wrap_all(L, -2, charged, l_charged);
    wrap_all(L, -2, moving, l_moving);
    set_function(L, "sort", l_sort);
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
    wrap_all(L, -2, charged, l_charged);
    lua_remove(L, -2);
}

static void open_own(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"allow", l_allow},
        {"refuse", l_refuse},
        {"amend", l_amend},
        {"approve", l_approve},
        {"choose", l_choose},
        {"get", l_get},
        {"list", l_list},
        {"count", l_count},
        {"glob", l_glob},
        {"sorted_pairs", l_sorted_pairs},
        {NULL, NULL},
    };
    luaL_setfuncs(L, functions, 0);
    for (int i = 0; i < N_COMMANDS; i++) {
        lua_pushinteger(L, i);
        lua_pushcclosure(L, l_command, 1);
        lua_setfield(L, -2, commands[i].function);
    }
}

static void open_allowed(lua_State *L)
{
    static const char *const base[] = {"assert", "error", "ipairs", "rawequal", "rawlen", "type", NULL};
    static const char *const charged[] = {"select", "tonumber", NULL};
    lua_newtable(L);
    open_library(L, "_G", luaopen_base);
    lua_insert(L, -2);
    copy(L, -2, base);
    wrap_all(L, -2, charged, l_charged);
    lua_remove(L, -2);
    set_function(L, "tostring", l_tostring);
    set_function(L, "pairs", l_sorted_pairs);
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
    if (full) {
        luaL_openlibs(L);
    } else {
        open_allowed(L);
        lua_pop(L, 1);
    }
    lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
    open_own(L);
    lua_pop(L, 1);
}

void env_lock(lua_State *L)
{
    lua_pushboolean(L, 1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &locked_key);
}
