/* What guarded code may not do: each attack has to end, with an error that says why, and leave nothing behind. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "base/err.h"
#include "base/log.h"
#include "lua/vm.h"

#include <stdio.h>
#include <string.h>

static uv_loop_t loop;
static lua_State *L;
static char answer[4096];

static const char *run(const char *code)
{
    int rv = luaL_loadstring(L, code) != LUA_OK || vm_call(L, 0, 1) != 0;
    snprintf(answer, sizeof answer, "%s", rv ? err_msg() : luaL_tolstring(L, -1, NULL));
    lua_settop(L, 0);
    return answer;
}

static int open_vm(void **state)
{
    static const luaL_Reg modules[] = {{"sym.sys", luaopen_sym_sys}, {NULL, NULL}};
    static const char *const none[] = {NULL};
    (void)state;
    log_setup(LOG_ERROR + 1, false);
    uv_loop_init(&loop);
    struct vm_config cfg = {.loop = &loop, .lua_paths = none, .modules = modules};
    assert_int_equal(vm_new(&cfg, &L), 0);
    run("sys = require 'sym.sys' "
        "function guarded(f, ...) return select(2, sys.guarded(function(m) return m end, f, ...)) end");
    return 0;
}

static int close_vm(void **state)
{
    (void)state;
    vm_close(L);
    uv_run(&loop, UV_RUN_DEFAULT);
    uv_loop_close(&loop);
    return 0;
}

/* What the code gives, or the error that it ends with, and that nothing of the guard is left. */
static const char *guarded(const char *body)
{
    static char text[4096];
    char code[2048];
    uv_update_time(&loop);
    snprintf(code, sizeof code, "return tostring(guarded(function() %s end))", body);
    snprintf(text, sizeof text, "%s", run(code));
    assert_false(guard_on(L));
    assert_false(vm_guard(L)->running);
    run("x = nil collectgarbage()");
    return text;
}

static const char busy[] = "stopped: it kept the loop busy";

static void attacks_are_stopped(void **state)
{
    (void)state;
    static const struct {
        const char *body, *says;
    } attacks[] = {
        {"while true do end", busy},
        {"while true do pcall(function() while true do end end) end", busy},
        {"local function f() return pcall(f) end while true do f() end", busy},
        {"while true do xpcall(function() while true do end end, function() while true do end end) end",
            busy},
        {"local h h = function() return xpcall(error, h) end while true do h() end", busy},
        {"coroutine.wrap(function() while true do end end)()", busy},
        {"while true do pcall(coroutine.wrap(function() while true do end end)) end", busy},
        {"while true do coroutine.resume(coroutine.create(function() while true do end end)) end", busy},
        {"coroutine.wrap(function() local c <close> = setmetatable({}, {__close = function() while true do "
         "end "
         "end}) while true do end end)()",
            busy},
        {"local co = coroutine.create(function() local c <close> = setmetatable({}, {__close = function() "
         "while true do end end}) while true do end end) coroutine.resume(co) coroutine.close(co)",
            busy},
        {"local c <close> = setmetatable({}, {__close = function() while true do pcall(error) end end})",
            busy},
        {"return setmetatable({}, {__index = function() while true do end end}).x", busy},
        {"return setmetatable({}, {__eq = function() while true do end end}) == setmetatable({}, {})", busy},
        {"local t = {} for i = 1, 10 do t[i] = i end table.sort(t, function() while true do end end)", busy},
        {"for x in function() return 1 end do end", busy},
        {"setmetatable({}, {__gc = function() while true do end end})", "finalizer"},
        {"local mt = {} local t = setmetatable({}, mt) mt.__gc = function() while true do end end "
         "setmetatable(t, mt)",
            "finalizer"},
        {"getmetatable(io.stdout).__gc = print", "nil"},
        {"getmetatable('').__index = nil", "nil"},
        {"debug.sethook() while true do end", "debug.sethook would"},
        {"string.rep('x', 1 << 30)", "4 MiB"},
        {"string.rep('', 1 << 60)", "4 MiB"},
        {"('x'):rep(1 << 20, ('y'):rep(1 << 10))", "4 MiB"},
        {"x = 'x' for i = 1, 60 do x = x .. x end", "not enough memory"},
        {"x = 'x' while true do pcall(function() x = x .. x end) end", busy},
        {"string.find(('a'):rep(1 << 20), ('a*'):rep(60) .. 'b')", busy},
        {"(('a'):rep(1 << 20)):match('.-.-.-.-b$')", busy},
        {"for _ in (('a'):rep(1 << 20)):gmatch('.-.-.-.-b') do end", busy},
        {"(('a'):rep(1 << 20)):gsub('.*.*.*b', '')", busy},
        {"(('('):rep(1 << 20)):find('%b()')", busy},
        {"local s = ('a'):rep(1 << 19) s:find('(a*)%1%1%1b')", busy},
        {"while true do (('x'):rep(1 << 22)):gsub('.', '%0') end", busy},
        {"local s = ('x'):rep(1 << 22) for i = 1, 1e9 do s:upper() end", busy},
        {"local s, t = ('x'):rep(1 << 22), ('x'):rep(1 << 22) for i = 1, 1e9 do if s ~= t then break end end",
            busy},
        {"local s = ('1'):rep(1 << 22) while true do local x = s + 1 end", busy},
        {"local s = ('x'):rep((1 << 22) - 1) while true do local x = s .. 'x' end", busy},
        {"local s = ('1'):rep(1 << 22) while true do math.floor(s) end", busy},
        {"local s = ('1'):rep(1 << 22) while true do pcall(select, s) end", busy},
        {"table.move({}, 1, 1e9, 2)", "1000000 items"},
        {"table.concat(setmetatable({}, {__index = table.concat}), '', 1, 1 << 40)", "1000000 items"},
        {"table.concat(setmetatable({}, {__len = function() return 1 << 40 end}))", "1000000 items"},
        {"table.insert(setmetatable({}, {__len = function() return 1 << 40 end}), 1, 1)", "1000000 items"},
        {"local t = {} for i = 1, 5e5 do t[i] = i end for i = 1, 1e9 do table.insert(t, 1, i) end",
            "stopped"},
        {"local t = {} for i = 1, 5e5 do t[i] = i end for i = 1, 1e9 do table.remove(t, 1) end", "stopped"},
        {"local t = {} for i = 1, 9e5 do t[i] = -i end while true do table.sort(t) end", "stopped"},
        {"local t = {} for i = 1, 9e5 do t[i] = i % 7 end table.sort(t, rawequal) while true do end",
            "stopped"},
        {"load(('x = 1 '):rep(1 << 18))", "1 MiB"},
        {"while true do load(function() return 'x = 1 ' end) end", "string expected"},
        {"load(string.dump(function() end))()", "attempt to call a nil value"},
        {"while true do collectgarbage() end", busy},
        {"os.execute('true')", "os.execute would"},
        {"os.exit()", "os.exit would"},
        {"io.read()", "io.read would"},
        {"sys.guarded(tostring, function() while true do end end) while true do end", busy},
        {"local function f(n) return n == 0 and 0 or 1 + f(n - 1) end while true do pcall(f, 1e9) end", busy},
    };
    for (size_t i = 0; i < sizeof attacks / sizeof *attacks; i++) {
        const char *text = guarded(attacks[i].body);
        if (strstr(text, attacks[i].says) == NULL) {
            fail_msg("%s: %s", attacks[i].body, text);
        }
    }
}

static void memory_is_limited(void **state)
{
    (void)state;
    /* Turn by turn, so that it is not the time that ends it. */
    run("kept = {} co = coroutine.create(function() return guarded(function() while true do "
        "for i = 1, 2000 do kept[#kept + 1] = {i, i, i, i} end coroutine.yield() end end) end)");
    for (int i = 0; i < 1000 && strcmp(run("return coroutine.status(co)"), "dead") != 0; i++) {
        uv_update_time(&loop);
        run("local _ _, result = sys.resume(co)");
    }
    assert_non_null(strstr(run("return result"), "more than 128 MiB"));
    assert_false(vm_guard(L)->running);
    run("kept = nil collectgarbage()");
    assert_in_range(vm_guard(L)->bytes, 1, 64 << 20);
}

static void others_are_not_limited(void **state)
{
    (void)state;
    assert_string_equal(run("return #string.rep('x', 20 << 20)"), "20971520");
    assert_string_equal(run("return #table.move({}, 1, 1100000, 2)"), "0");
    assert_string_equal(run("return type(load(string.dump(function() end)))"), "function");
    assert_string_equal(
        run("setmetatable({}, {__gc = function() end}) return type(getmetatable(io.stdout))"), "table");
    /* Inside of guarded code only what is said to be. */
    uv_update_time(&loop);
    assert_string_equal(
        guarded("return #sys.unguarded(function(n) return string.rep('x', n << 20) end, 20)"), "20971520");
    assert_string_equal(
        guarded("pcall(sys.unguarded, error, 'x') return pcall(string.rep, 'x', 20 << 20)"), "false");
    assert_string_equal(guarded("return select(2, pcall(sys.unguarded, error, 'as it is'))"), "as it is");
}

static void waits_without_the_guard(void **state)
{
    (void)state;
    run("co = coroutine.create(function() return guarded(function() "
        "local a = sys.unguarded(function() return coroutine.yield('first') end) "
        "local b = coroutine.yield('second') "
        "return a .. b .. tostring(pcall(string.rep, 'x', 20 << 20)) end) end) "
        "_, one = sys.resume(co)");
    assert_false(vm_guard(L)->running);
    run("_, two = sys.resume(co, 'a')");
    assert_false(vm_guard(L)->running);
    run("_, three = sys.resume(co, 'b')");
    assert_string_equal(run("return one .. ' ' .. two .. ' ' .. three"), "first second abfalse");
    assert_string_equal(run("return select('#', sys.resume(co)) .. tostring(sys.resume(co))"), "2false");
}

static void handlers_are_not_stopped(void **state)
{
    (void)state;
    uv_update_time(&loop);
    assert_string_equal(
        run("local _, m = sys.guarded(function(m) for i = 1, 20000 do m = m:gsub('x', 'y') end "
            "return #m:rep(1000) end, function() while true do end end) return m > 1000"),
        "true");
    assert_string_equal(
        run("local _, m = sys.guarded(function(m) error('bad handler', 0) end, error) return m"),
        "bad handler");
    /* One inside of another leaves the outer one under the guard. */
    assert_string_equal(
        guarded("pcall(sys.guarded, tostring, error) while true do end"), guarded("while true do end"));
}

static void closes_what_it_holds(void **state)
{
    (void)state;
    /* The first error leaves a __close the time to give something back, also beneath a pcall that goes on. */
    assert_string_equal(
        guarded("local held = true pcall(function() local lock <close> = setmetatable({}, {__close = "
                "function() for i = 1, 100 do held = i end held = false end}) while true do end end) "
                "return held"),
        "false");
    assert_string_equal(
        guarded("local held = {1, 2} pcall(function() local lock <close> = setmetatable({}, {__close = "
                "function() while #held > 0 do table.remove(held) end end}) while true do end end) "
                "return #held"),
        "0");
}

/* Nor what would run where no hook fires: in the collector, and in a coroutine that nobody goes on with. */
static void leaves_nothing_to_run(void **state)
{
    (void)state;
    const char *forever = "function() ran = true while true do end end";
    char code[512];
    snprintf(code, sizeof code, "local mt = {} setmetatable({}, mt) mt.__gc = %s return 'set'", forever);
    assert_string_equal(guarded(code), "set");
    snprintf(code, sizeof code,
        "local co = coroutine.create(function() guarded(function() local c <close> = setmetatable({}, "
        "{__close = %s}) coroutine.yield() end) end) sys.resume(co)",
        forever);
    run(code);
    assert_string_equal(run("collectgarbage() collectgarbage() return ran"), "nil");
}

/* Every pattern against every subject, guarded and not, with the same outcome. */
static void patterns_are_as_in_lua(void **state)
{
    (void)state;
    const char *code =
        "local subjects = {'', 'a', 'hello world', '  x = (a(b)c) , y', 'THE (quick) fox', '\\0a\\0b', "
        "'aaaab', "
        "'key = value', ']^-%', '2026-11-30', ('ab'):rep(20), 'x\\xff\\xfey'} "
        "local patterns = {'', '.', 'a', '^a', 'a$', '%a+', '(%a+) (%a+)', '%s*(.-)%s*$', '^%s*(.-)%s*$', "
        "'()ll()', "
        "'%b()', '%f[%w]%w+', '%f[%a]', '(a*)%1', '[^%s]+', '[a-c]*', '[]]', '[^]]', '[%]^-]+', '%d+%-%d+', "
        "'o?', "
        "'.-b', 'a-$', '%%', '%', '[a', '(', ')', '%b', '%f', '(()', '%1', '(a)%2', '[%a-z]', '%z', '%W', "
        "'%U+', "
        "'%x*', '%g', '%p', '%c', '(((a)))', '$', '^', '^$', 'a$b', '[a-]', '%1x', '\\0', '[\\0-a]', 'l+o', "
        "('a?'):rep(30), ('(a)'):rep(33), '\\xff'} "
        "local replacements = {'', '%0%0', '<%1>', '%%', '%2', '%x', 7, {a = 'A', hello = false, [1] = 'p'}, "
        "function(a, b) return b or nil end, function() return {} end} "
        "local function pack(ok, ...) local t = table.pack(ok, ...) "
        "for i = 1, t.n do t[i] = tostring(t[i]):gsub('^[^:]*:%d+: ', '') end return table.concat(t, '|') "
        "end "
        "local function all(s, p) local out = {} for _, init in ipairs {1, 3, -2, 0, 100, -100} do "
        "out[#out + 1] = pack(pcall(string.find, s, p, init)) "
        "out[#out + 1] = pack(pcall(string.match, s, p, init)) "
        "out[#out + 1] = pack(pcall(string.find, s, p, init, true)) "
        "out[#out + 1] = pack(pcall(function() local t = {} for a, b in s:gmatch(p, init) do "
        "t[#t + 1] = tostring(a) .. tostring(b) end return table.concat(t, ',') end)) end "
        "for _, r in ipairs(replacements) do out[#out + 1] = pack(pcall(string.gsub, s, p, r)) "
        "out[#out + 1] = pack(pcall(string.gsub, s, p, r, 1)) end return table.concat(out, '\\n') end "
        "local n = 0 for _, s in ipairs(subjects) do for _, p in ipairs(patterns) do "
        "local plain = all(s, p) local bounded = guarded(all, s, p) n = n + 1 "
        "if plain ~= bounded then return ('%q %q'):format(s, p) .. '\\n' .. plain .. '\\n---\\n' .. bounded "
        "end "
        "coroutine.yield() end end return n";
    run("co = nil");
    lua_State *co = lua_newthread(L);
    assert_int_equal(luaL_loadstring(co, code), LUA_OK);
    int results, status;
    do {
        uv_update_time(&loop);
        status = lua_resume(co, L, 0, &results);
    } while (status == LUA_YIELD);
    assert_int_equal(status, LUA_OK);
    assert_string_equal(luaL_tolstring(co, -1, NULL), "648");
    lua_settop(L, 0);
    for (const char *const *bad = (const char *const[]){"string.find()", "string.gsub('a', 'a')",
             "string.gsub('a', 'a', true)", "string.gmatch('a')", "string.match('a', {})", NULL};
         *bad != NULL; bad++) {
        char text[512];
        snprintf(text, sizeof text,
            "local f = function() %s end local _, a = pcall(f) return a == guarded(f) or a", *bad);
        assert_string_equal(run(text), "true");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attacks_are_stopped),
        cmocka_unit_test(memory_is_limited),
        cmocka_unit_test(others_are_not_limited),
        cmocka_unit_test(waits_without_the_guard),
        cmocka_unit_test(handlers_are_not_stopped),
        cmocka_unit_test(closes_what_it_holds),
        cmocka_unit_test(leaves_nothing_to_run),
        cmocka_unit_test(patterns_are_as_in_lua),
    };
    return cmocka_run_group_tests(tests, open_vm, close_vm);
}
