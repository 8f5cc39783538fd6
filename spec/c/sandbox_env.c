/* What is around a policy: all that can be reached from its environment is known by name, and none of it leads out; what
 * takes long is stopped by the budget, also where it is one call into C. */
#include "sandbox_support.h"

#include "sandbox/env.h"

#include <lauxlib.h>
#include <time.h>

static struct box_pool pool;

static const char *says(const struct box_limits *lim, const char *body)
{
    static char text[2048];
    const char *source = policy(body);
    struct reads reads = {0};
    struct box_result result = {0};
    struct box *box = NULL;
    OK(box_load(lim, &pool, "p", source, strlen(source), &box));
    if (box_call(box, "admit.change", "{}", 2, &reads, &result) != 0) {
        snprintf(text, sizeof text, "failed: %s", err_msg());
    } else {
        snprintf(
            text, sizeof text, "%.*s", (int)result.decision.len, (const char *)buf_data(&result.decision));
    }
    reads_clear(&reads);
    buf_free(&result.decision);
    buf_free(&result.amended);
    box_free(box);
    assert_int_equal(pool.used, 0);
    return text;
}

/* --- what can be reached --- */

/* The names of all functions and values that there are to be. */
static const char *const known[] = {"_ENV", "_ENV.activate", "_ENV.allow", "_ENV.amend", "_ENV.approve",
    "_ENV.assert", "_ENV.choose", "_ENV.count", "_ENV.drain", "_ENV.error", "_ENV.event", "_ENV.get",
    "_ENV.glob", "_ENV.ipairs", "_ENV.kv_put", "_ENV.kv_rm", "_ENV.list", "_ENV.math", "_ENV.math.abs",
    "_ENV.math.ceil", "_ENV.math.floor", "_ENV.math.fmod", "_ENV.math.huge", "_ENV.math.max",
    "_ENV.math.maxinteger", "_ENV.math.min", "_ENV.math.mininteger", "_ENV.math.modf", "_ENV.math.sqrt",
    "_ENV.math.tointeger", "_ENV.math.type", "_ENV.math.ult", "_ENV.pairs", "_ENV.rawequal", "_ENV.rawlen",
    "_ENV.refuse", "_ENV.select", "_ENV.set_label", "_ENV.sorted_pairs", "_ENV.string", "_ENV.string.byte",
    "_ENV.string.char", "_ENV.string.find", "_ENV.string.format", "_ENV.string.gmatch", "_ENV.string.gsub",
    "_ENV.string.len", "_ENV.string.lower", "_ENV.string.match", "_ENV.string.rep", "_ENV.string.reverse",
    "_ENV.string.sub", "_ENV.string.upper", "_ENV.table", "_ENV.table.concat", "_ENV.table.insert",
    "_ENV.table.pack", "_ENV.table.remove", "_ENV.table.sort", "_ENV.table.unpack", "_ENV.tonumber",
    "_ENV.tostring", "_ENV.type", "_ENV.utf8", "_ENV.utf8.char", "_ENV.utf8.charpattern",
    "_ENV.utf8.codepoint", "_ENV.utf8.codes", "_ENV.utf8.len", "_ENV.utf8.offset"};

/* Never to be found below any name. */
static const char *const foreign[] = {"load", "loadstring", "loadfile", "dofile", "require", "pcall",
    "xpcall", "getmetatable", "setmetatable", "rawset", "rawget", "next", "collectgarbage", "print", "warn",
    "io", "os", "debug", "package", "coroutine", "dump", "pack", "unpack", "move", "random", "randomseed",
    "_G"};

static bool is_known(const char *path)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(path, known[i]) == 0) {
            return true;
        }
    }
    return false;
}

struct walk {
    int seen; /* index of a table: what has been gone through */
    unsigned n;
};

static void walk(lua_State *L, struct walk *w, int idx, const char *path);

static void walk_child(lua_State *L, struct walk *w, int idx, const char *path, const char *name)
{
    char below[256];
    snprintf(below, sizeof below, "%s.%s", path, name);
    if (lua_type(L, idx) == LUA_TUSERDATA || lua_type(L, idx) == LUA_TTHREAD) {
        fail_msg("%s is a %s", below, luaL_typename(L, idx));
    }
    walk(L, w, idx, below);
}

static void walk_table(lua_State *L, struct walk *w, int idx, const char *path)
{
    for (lua_pushnil(L); lua_next(L, idx) != 0; lua_pop(L, 1)) {
        char name[128];
        snprintf(name, sizeof name, "%s",
            lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : luaL_typename(L, -2));
        if (lua_type(L, -2) != LUA_TSTRING) {
            walk_child(L, w, lua_gettop(L) - 1, path, "key");
        }
        walk_child(L, w, lua_gettop(L), path, name);
    }
}

/* Keys, values, metatables and upvalues. */
static void walk(lua_State *L, struct walk *w, int idx, const char *path)
{
    int type = lua_type(L, idx), top = lua_gettop(L);
    luaL_checkstack(L, 10, "walk");
    if (!lua_checkstack(L, 10) || strncmp(path, "_ENV", 4) != 0) {
        fail_msg("%s", path);
    }
    bool of_library = strstr(path, "<") == NULL;
    if (of_library && !is_known(path)) {
        fail_msg("%s is not known", path);
    }
    if (type != LUA_TTABLE && type != LUA_TFUNCTION) {
        return;
    }
    lua_pushvalue(L, idx);
    if (lua_rawget(L, w->seen) != LUA_TNIL) {
        lua_settop(L, top);
        return;
    }
    lua_pushvalue(L, idx);
    lua_pushboolean(L, 1);
    lua_rawset(L, w->seen);
    w->n++;
    if (type == LUA_TTABLE) {
        walk_table(L, w, idx, path);
    } else {
        for (int i = 1; lua_getupvalue(L, idx, i) != NULL; i++) {
            char name[40];
            snprintf(name, sizeof name, "<upvalue %d>", i);
            walk_child(L, w, lua_gettop(L), path, name);
            lua_pop(L, 1);
        }
    }
    lua_settop(L, top);
    if (lua_getmetatable(L, idx)) {
        walk_child(L, w, lua_gettop(L), path, "<metatable>");
    }
    lua_settop(L, top);
}

static int do_walk(lua_State *L)
{
    struct walk w = {.n = 0};
    lua_settop(L, 0);
    lua_newtable(L);
    w.seen = 1;
    lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
    walk(L, &w, 2, "_ENV");
    assert_true(w.n > 60);
    /* And what a text leads to. */
    lua_pushliteral(L, "x");
    assert_true(lua_getmetatable(L, -1));
    lua_getfield(L, -1, "__index");
    lua_getfield(L, 2, "string");
    assert_true(lua_rawequal(L, -1, -2));
    for (int type = LUA_TNIL; type < LUA_NUMTYPES; type++) {
        if (type == LUA_TFUNCTION) {
            lua_pushcfunction(L, do_walk);
        } else if (type == LUA_TBOOLEAN) {
            lua_pushboolean(L, 1);
        } else if (type == LUA_TNUMBER) {
            lua_pushinteger(L, 1);
        } else {
            lua_pushnil(L);
        }
        assert_false(lua_getmetatable(L, -1));
        lua_pop(L, 1);
    }
    return 0;
}

static void all_that_can_be_reached(void **state)
{
    (void)state;
    const char *source = policy("");
    struct box *box = NULL;
    OK(box_load(&limits, &pool, "p", source, strlen(source), &box));
    OK(box_enter(box, do_walk, NULL));
    box_free(box);
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        char body[128], expected[64];
        snprintf(body, sizeof body, "return %s", foreign[i]);
        snprintf(expected, sizeof expected, "there is no '%s'", foreign[i]);
        assert_non_null(strstr(says(&limits, body), expected));
        if (strcmp(foreign[i], "pack") != 0 && strcmp(foreign[i], "unpack") != 0) {
            snprintf(body, sizeof body, "return table.%s and 1 or string.%s and 2 or math.%s and 3",
                foreign[i], foreign[i], foreign[i]);
            if (strstr(body, "load") == NULL) {
                assert_string_equal(says(&limits, body), "");
            }
        }
    }
}

/* One policy changes what it has around it; another does not see it. */
static void nothing_is_shared(void **state)
{
    (void)state;
    static const char one[] = "string.format = nil math.huge = 7 table.mine = {} function leak() end\n"
                              "return { hooks = { ['node.up'] = tostring } }";
    static const char other[] = "assert(string.format and math.huge > 7 and table.mine == nil)\n"
                                "return { hooks = { ['node.up'] = function() return leak end } }";
    struct box *a = NULL, *b = NULL;
    struct box_result result = {0};
    struct reads reads = {0};
    OK(box_load(&limits, &pool, "a", one, strlen(one), &a));
    OK(box_load(&limits, &pool, "b", other, strlen(other), &b));
    FAILS(SYM_EINVAL, box_call(b, "node.up", "{}", 2, &reads, &result));
    assert_string_equal(err_msg(), "b:2: there is no 'leak' in a policy");
    box_free(a);
    box_free(b);
}

/* --- the library --- */

#define SAYS(body, expected) assert_string_equal(says(&limits, body), "{\"refuse\":\"" expected "\"}")

static void functions(void **state)
{
    (void)state;
    SAYS("return refuse(tostring({}) .. tostring(tostring) .. tostring(nil) .. tostring(1.5) .. "
         "tostring(true))",
        "tablefunctionnil1.5true");
    SAYS("return refuse(('%s %d %5.1f %q %s%%'):format({}, 3, 1.25, 'a', error))",
        "table 3   1.2 \\\"a\\\" function%");
    SAYS("local s = '' for k, v in pairs{ b = 1, a = 2, [2] = 'y', [1] = 'x', [true] = 0 } do s = s .. "
         "tostring(k) .. v end return refuse(s)",
        "1x2ya2b1true0");
    SAYS("local t = { 3, 1, 2, 5, 4, 9, 7, 8, 6 } table.sort(t) return refuse(table.concat(t))", "123456789");
    SAYS("local t = { 'bb', 'a', 'cc', 'b', 'aa' } table.sort(t, function(x, y) return #x < #y end) "
         "return refuse(table.concat(t, ' '))",
        "a b bb cc aa");
    SAYS("return refuse(('ab'):rep(3, '-') .. ('x'):rep(0) .. ('x'):rep(-1))", "ab-ab-ab");
    SAYS("return refuse(tostring(glob('team/*', 'team/a/b')) .. tostring(glob('?b*', 'ab')) .. "
         "tostring(glob('a', 'ab')))",
        "truetruefalse");
    SAYS("local t = table.pack(1, nil, 3) return refuse(t.n .. tostring(select('#', table.unpack(t, 1, 3))))",
        "33");
    SAYS("return refuse(utf8.char(228) .. #'\\u{e4}' .. utf8.len('\\u{e4}'))", "\xc3\xa4"
                                                                               "21");
    static const struct {
        const char *body, *words;
    } wrong[] = {{"return ('%p'):format({})", "no %p"}, {"return ('%5p'):format({})", "no %p"},
        {"return ('x'):rep(65537)", "more than 65536"},
        {"return ('x'):rep(2, ('y'):rep(65536))", "more than 65536"},
        {"return ('x'):rep(1 << 62)", "more than 65536"},
        {"for k in pairs{ [{}] = 1 } do end", "have no order"},
        {"table.sort({ 1, 'a' })", "attempt to compare"},
        {"local t = {} for i = 1, 10001 do t[i] = i end table.sort(t)", "at most 10000"},
        {"string = nil x = 1", "'x' is not local"}, {"return ('%z'):format(1)", "invalid conversion"},
        {"return ('x').y.z", "index a nil"}, {"return list('/kv/', 1001)", "from 1 to 1000"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        if (strstr(says(&limits, wrong[i].body), wrong[i].words) == NULL) {
            fail_msg("%s: %s", wrong[i].body, says(&limits, wrong[i].body));
        }
    }
}

/* Each by itself would keep the processor busy for long. */
static void what_takes_long(void **state)
{
    (void)state;
    static const char *const bodies[] = {
        "while true do end",
        "local function f() return f() end f()",
        "local function f() return 1 + f() end f()",
        "local s = 'x' while true do s = s .. s end",
        "local t = {} while true do t[#t + 1] = ('x'):rep(1000) end",
        "local t = {} while true do t = { t } end",
        "local t = {} for i = 1, 1e5 do table.insert(t, 1, i) end",
        "local t = {} for i = 1, 1e5 do t[i] = i end while #t > 0 do table.remove(t, 1) end",
        "local t = {} for i = 1, 1e4 do t[i] = 'x' end while true do table.concat(t) end",
        "local t = {} for i = 1, 1e4 do t[i] = -i end while true do table.sort(t, function(a, b) return a < "
        "b end) end",
        "local t = {} for i = 1, 1e3 do t[i] = i end while true do table.sort(t) end",
        "local t = {} for i = 1, 1e4 do t['k' .. i] = i end while true do for k in pairs(t) do break end end",
        "local s = ('a'):rep(60000) while true do s:find(s .. 'b', 1, true) end",
        "local s = ('a'):rep(60000) while true do s:upper() end",
        "local s = ('a'):rep(60000) while true do s:reverse() end",
        "while true do ('%99.99f'):format(1e300) end",
        "local s = ('a'):rep(60000) while true do ('%s'):format(s) end",
        "local s = ('a'):rep(30000) s:find(('a-'):rep(100) .. 'b')",
        "local g = ('*a'):rep(500) local s = ('a'):rep(60000) while true do glob(g, s) end",
        "while true do table.unpack({}, 1, 1e5) end",
        "while true do select('#', table.unpack({}, 1, 10000)) end",
        "local s = ('\\u{e4}'):rep(20000) while true do utf8.len(s) end",
        "local s = ('x'):rep(60000) while true do s:byte(1, 10000) end",
        "local s = ('1'):rep(60000) while true do tonumber(s) end",
        "local t = {} for i = 1, 200 do t[i] = i end while true do string.char(table.unpack(t)) end",
    };
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        clock_t began = clock();
        const char *said = says(&limits, bodies[i]);
        long ms = (long)((clock() - began) * 1000 / CLOCKS_PER_SEC);
        if (ms > 50) {
            print_message("%ld ms: %s\n", ms, bodies[i]);
        }
        if (strstr(said, "instructions") == NULL && strstr(said, "memory") == NULL &&
            strstr(said, "stack overflow") == NULL) {
            fail_msg("%s: %s", bodies[i], said);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_that_can_be_reached),
        cmocka_unit_test(nothing_is_shared),
        cmocka_unit_test(functions),
        cmocka_unit_test(what_takes_long),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
