#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "lua/paths.h"
#include "lua/vm.h"

static const luaL_Reg modules[] = {
    {"sym.log", luaopen_sym_log},
    {"sym.sys", luaopen_sym_sys},
    {NULL, NULL},
};
static const char *const no_folders[] = {NULL};
static uv_loop_t loop;
static lua_State *L;
static int daemon_of_test;

static int open_vm(void **state)
{
    (void)state;
    struct vm_config cfg = {
        .loop = &loop, .lua_paths = no_folders, .daemon = &daemon_of_test, .modules = modules};
    log_setup(LOG_ERROR + 1, false);
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(vm_new(&cfg, &L), 0);
    return 0;
}

static int close_vm(void **state)
{
    (void)state;
    vm_close(L);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
    return 0;
}

/* Runs @code and gives its first result as text. */
static const char *run(const char *code)
{
    static char text[1024];
    uv_update_time(&loop);
    if (luaL_loadstring(L, code) != LUA_OK) {
        snprintf(text, sizeof text, "%s", lua_tostring(L, -1));
        lua_pop(L, 1);
    } else if (vm_call(L, 0, 1) != 0) {
        snprintf(text, sizeof text, "failed: %s", err_msg());
    } else {
        snprintf(text, sizeof text, "%s", luaL_tolstring(L, -1, NULL));
        lua_pop(L, 2);
    }
    assert_int_equal(lua_gettop(L), 0);
    return text;
}

static void calls(void **state)
{
    (void)state;
    assert_string_equal(run("return 1 + 1"), "2");
    assert_string_equal(run("error('oops', 0)"), "failed: oops");
    assert_string_equal(run("error('two\\nlines', 0)"), "failed: two");
    assert_non_null(strstr(run("error({})"), "failed: table: "));
    assert_string_equal(
        run("error(setmetatable({}, {__tostring = function() return 'obj' end}))"), "failed: obj");
    assert_string_equal(run("error()"), "failed: nil");
    assert_string_equal(run("local function f() return f() + 1 end return pcall(f)"), "false");
    assert_ptr_equal(vm_daemon(L), &daemon_of_test);
    assert_ptr_equal(vm_loop(L), &loop);
}

static int push_two(lua_State *S, void *arg)
{
    lua_pushinteger(S, *(int *)arg);
    lua_pushliteral(S, "x");
    return 2;
}

static void runs_modules(void **state)
{
    (void)state;
    int seven = 7;
    run("package.preload.m = function() return {f = function(...) got = table.concat({...}, ' ') end} end");
    assert_int_equal(vm_run(L, "m", "f", push_two, &seven), 0);
    assert_string_equal(run("return got"), "7 x");
    assert_int_equal(vm_run(L, "m", "f", NULL, NULL), 0);
    assert_string_equal(run("return got"), "");
    assert_int_equal(vm_run(L, "m", "none", NULL, NULL), SYM_EINVAL);
    assert_int_equal(vm_run(L, "no.such.module", "f", NULL, NULL), SYM_EINVAL);
    assert_non_null(strstr(err_msg(), "no.such.module"));
    assert_int_equal(lua_gettop(L), 0);
}

static void finds_nothing_foreign(void **state)
{
    (void)state;
    assert_string_equal(run("return package.cpath"), "");
    assert_string_equal(run("return package.path"), "/usr/share/lua/5.4/?.lua");
    assert_string_equal(run("return type(require('cjson').decode)"), "function");
    assert_string_equal(run("return type(require('sym.log').info)"), "function");
    assert_string_equal(run("return pcall(require, 'sym.raft')"), "false");
    assert_string_equal(
        run("local uv = require('luv') return uv.walk or uv.run or uv.stop or uv.loop_close"), "nil");
}

static struct vm_cb kept;

static int l_keep(lua_State *S)
{
    vm_cb_take(S, 1, &kept);
    return 0;
}

static void keep(const char *code)
{
    char text[256];
    lua_register(L, "keep", l_keep);
    snprintf(text, sizeof text,
        "log = {} keep(function(...) log[#log + 1] = {n = select('#', ...), ...} %s end)", code);
    assert_string_equal(run(text), "nil");
}

static void fires_once(void **state)
{
    (void)state;
    int nine = 9;
    keep("");
    vm_cb_fire(&kept, 0, push_two, &nine);
    vm_cb_fire(&kept, 0, push_two, &nine);
    vm_cb_drop(&kept);
    assert_string_equal(
        run("return #log .. log[1].n .. tostring(log[1][1]) .. log[1][2] .. log[1][3]"), "13nil9x");

    keep("");
    err_setf(SYM_ENOQUORUM, "alone");
    vm_cb_fire(&kept, SYM_ENOQUORUM, push_two, &nine);
    assert_string_equal(run("return log[1].n .. log[1][1].code .. log[1][1].message"), "1no_quorumalone");
    assert_string_equal(run("return tostring(log[1][1])"), "alone (no_quorum)");
}

static void keeps_for_events(void **state)
{
    (void)state;
    keep("error('in the callback')");
    vm_cb_call(&kept, 0, NULL, NULL);
    vm_cb_call(&kept, 0, NULL, NULL);
    assert_string_equal(run("return #log .. log[2].n"), "21");
    vm_cb_drop(&kept);
    vm_cb_call(&kept, 0, NULL, NULL);
    assert_string_equal(run("return #log"), "2");
    /* A place for a callback that was never taken. */
    struct vm_cb empty = {0};
    vm_cb_fire(&empty, 0, NULL, NULL);
    vm_cb_drop(&empty);
}

static void takes_functions_only(void **state)
{
    (void)state;
    lua_register(L, "keep", l_keep);
    assert_non_null(strstr(run("keep(1)"), "function expected"));
    assert_non_null(strstr(run("keep()"), "function expected"));
    /* Taken in a coroutine that is gone by then, it is called on the main state. */
    run("fired = 0 coroutine.wrap(function() keep(function() fired = fired + 1 end) end)() collectgarbage()");
    vm_cb_fire(&kept, 0, NULL, NULL);
    assert_string_equal(run("return fired"), "1");
}

static int l_fail(lua_State *S)
{
    return vm_fail(S, err_setf(SYM_EBUSY, "later"));
}

static void fails_as_nil_and_error(void **state)
{
    (void)state;
    lua_register(L, "fail", l_fail);
    assert_string_equal(run("local v, e = fail() return tostring(v) .. e.code .. e.message"), "nilbusylater");
}

static void luv_errors_do_not_end_the_process(void **state)
{
    (void)state;
    run("local uv = require 'luv' count = 0 "
        "local t = uv.new_timer() t:start(0, 1, function() count = count + 1 "
        "if count == 3 then t:close() end error('in a timer') end)");
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_string_equal(run("return count"), "3");
}

/* Frees the state while luv still has handles: active, idle, and one that is closing already. */
static void closes_what_is_open(void **state)
{
    (void)state;
    struct vm_config cfg = {.loop = &loop, .lua_paths = no_folders, .modules = modules};
    lua_State *other = L;
    assert_int_equal(vm_new(&cfg, &L), 0);
    run("local uv = require 'luv' "
        "uv.new_timer():start(100000, 0, print) "
        "uv.new_timer() "
        "uv.new_signal():start('sigusr2', print) "
        "local t = uv.new_timer() t:start(100000, 0, print) t:close()");
    vm_close(L);
    L = other;
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_alive(&loop), 0);
    vm_close(NULL);
}

/* Frees the state while luv has requests under way, of which libuv writes into the memory: alone, more than there
 * are threads for, and beside lists of folders that stay behind. */
static void closes_with_requests(void **state)
{
    (void)state;
    static const char *const cases[] = {
        "uv.fs_stat('/tmp', print_not)",
        "uv.fs_scandir('/tmp', print_not)",
        "uv.getaddrinfo('localhost', nil, nil, print_not)",
        "for i = 1, 50 do uv.fs_stat('/tmp', print_not) uv.fs_scandir('/tmp', print_not) uv.fs_open('/', "
        "'r', 0, "
        "print_not) end",
        "list = uv.fs_scandir('/tmp') uv.fs_scandir('/tmp')",
        "list = uv.fs_scandir('/tmp') uv.fs_stat('/tmp', print_not) uv.new_timer():start(100000, 0, print)",
        "local work = uv.new_work(function() local t = os.clock() while os.clock() - t < 0.02 do end end, "
        "print_not) "
        "for i = 1, 5 do work:queue() end uv.fs_stat('/tmp', print_not)",
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct vm_config cfg = {.loop = &loop, .lua_paths = no_folders, .modules = modules};
        lua_State *other = L;
        char code[512];
        snprintf(code, sizeof code, "uv = require 'luv' function print_not() end %s", cases[i]);
        assert_int_equal(vm_new(&cfg, &L), 0);
        run(code);
        vm_close(L);
        L = other;
        uv_run(&loop, UV_RUN_DEFAULT);
        assert_int_equal(uv_loop_alive(&loop), 0);
    }
}

static lua_State *to_close;

static int l_close(lua_State *S)
{
    (void)S;
    vm_close(to_close);
    return 0;
}

static void may_be_closed_from_inside(void **state)
{
    (void)state;
    struct vm_config cfg = {.loop = &loop, .lua_paths = no_folders, .modules = modules};
    lua_State *other = L;
    assert_int_equal(vm_new(&cfg, &L), 0);
    to_close = L;
    lua_register(L, "close", l_close);
    assert_string_equal(run("close() return 'still here'"), "still here");
    L = other;
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_alive(&loop), 0);
}

/* --- a loop that is kept busy --- */

static const char *guarded(const char *body)
{
    char code[1024];
    snprintf(code, sizeof code,
        "local ok, e = require('sym.sys').guarded(function(m) return m end, function() %s end) "
        "return tostring(ok) .. ' ' .. tostring(e)",
        body);
    return run(code);
}

static void guarded_passes_on(void **state)
{
    (void)state;
    assert_string_equal(guarded("return 5"), "true 5");
    assert_string_equal(guarded("error('x', 0)"), "false x");
    assert_string_equal(guarded("local n = 0 for i = 1, 100000 do n = n + 1 end return n"), "true 100000");
    assert_string_equal(run("local sys = require 'sym.sys' "
                            "local co = coroutine.wrap(function() return sys.guarded(print, function(a) "
                            "local b = coroutine.yield(a + 1) return b + 1 end, 1) end) "
                            "local first = co() local ok, second = co(10) "
                            "return first .. tostring(ok) .. second"),
        "2true11");
    assert_string_equal(
        run("local sys = require 'sym.sys' "
            "local co = coroutine.wrap(function() return sys.guarded(function(m) return 'h' .. m end, "
            "function() coroutine.yield() error('late', 0) end) end) "
            "co() local ok, e = co() return tostring(ok) .. e"),
        "falsehlate");
    assert_non_null(strstr(run("require('sym.sys').guarded(1, print)"), "function expected"));
}

static void guarded_stops(void **state)
{
    (void)state;
    static const char *const bodies[] = {
        "while true do end",
        "while true do pcall(function() while true do end end) end",
        "coroutine.wrap(function() while true do end end)()",
        "while true do pcall(coroutine.wrap(function() while true do end end)) end",
        "local function f() return pcall(f) end while true do f() end",
        "for i = 1, math.huge do local t = {i} end",
        "require('sym.sys').guarded(tostring, function() while true do end end) while true do end",
    };
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        uint64_t before = uv_hrtime();
        const char *text = guarded(bodies[i]);
        uint64_t ms = (uv_hrtime() - before) / 1000000;
        if (strncmp(text, "false ", 6) != 0 || strstr(text, "stopped: it kept the loop busy") == NULL) {
            fail_msg("%s: %s", bodies[i], text);
        }
        if (ms < 150) {
            fail_msg("%s: stopped after only %d ms", bodies[i], (int)ms);
        }
        /* Nothing stays behind: what comes next in the same turn of the loop is not under the hook. */
        assert_null(lua_gethook(L));
    }
}

static void guarded_counts_turns_of_the_loop(void **state)
{
    (void)state;
    /* More than the limit in all, but never at once. */
    run("local uv, sys = require 'luv', require 'sym.sys' "
        "local co co = coroutine.create(function() result = {sys.guarded(print, function() "
        "for i = 1, 4 do local till = sys.mono_ms() + 80 while sys.mono_ms() < till do end coroutine.yield() "
        "end "
        "return 'through' end)} end) "
        "local t = uv.new_timer() t:start(0, 1, function() coroutine.resume(co) "
        "if coroutine.status(co) == 'dead' then t:close() end end)");
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_string_equal(run("return tostring(result[1]) .. tostring(result[2])"), "truethrough");
}

/* --- without memory --- */

static lua_Alloc real_alloc;
static void *real_ud;
static long allocations_left = -1;
static bool failed;

static void *failing_alloc(void *ud, void *p, size_t old, size_t size)
{
    (void)ud;
    if (size > (p == NULL ? 0 : old) && allocations_left >= 0 && allocations_left-- == 0) {
        allocations_left = 0; /* the emergency collection's second try fails too */
        failed = true;
        return NULL;
    }
    return real_alloc(real_ud, p, old, size);
}

static int push_much(lua_State *S, void *arg)
{
    (void)arg;
    lua_newtable(S);
    lua_pushfstring(S, "%d some text that is not interned %d", 1, 2);
    lua_setfield(S, -2, "a field");
    return 1;
}

static void survives_without_memory(void **state)
{
    (void)state;
    real_alloc = lua_getallocf(L, &real_ud);
    long n = 0;
    do {
        keep("");
        lua_gc(L, LUA_GCCOLLECT);
        failed = false;
        lua_setallocf(L, failing_alloc, NULL);
        allocations_left = n++;
        vm_cb_fire(&kept, 0, push_much, NULL);
        err_setf(SYM_EIO, "disk");
        allocations_left = -1;
        lua_setallocf(L, real_alloc, real_ud);
        assert_null(kept.L);
        assert_int_equal(lua_gettop(L), 0);
    } while (failed && n < 1000);
    assert_in_range(n, 3, 999);
    assert_string_equal(run("return log[1][2]['a field']"), "1 some text that is not interned 2");
}

static void finds_lua(void **state)
{
    (void)state;
    const char *out[4];
    const char *const dirs[] = {"/one", "/two"};
    assert_int_equal(lua_paths(out, 4, dirs, 2), 0);
    assert_string_equal(out[0], "/one");
    assert_string_equal(out[1], "/two");
    assert_null(out[3]);
    /* This test lies in BUILD/bin. */
    char boot[4096];
    snprintf(boot, sizeof boot, "%s/symphony/boot.lua", out[2]);
    assert_int_equal(access(boot, R_OK), 0);
    assert_int_equal(lua_paths(out, 3, dirs, 2), SYM_ETOOBIG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calls),
        cmocka_unit_test(runs_modules),
        cmocka_unit_test(finds_nothing_foreign),
        cmocka_unit_test(fires_once),
        cmocka_unit_test(keeps_for_events),
        cmocka_unit_test(takes_functions_only),
        cmocka_unit_test(fails_as_nil_and_error),
        cmocka_unit_test(luv_errors_do_not_end_the_process),
        cmocka_unit_test(closes_what_is_open),
        cmocka_unit_test(closes_with_requests),
        cmocka_unit_test(may_be_closed_from_inside),
        cmocka_unit_test(guarded_passes_on),
        cmocka_unit_test(guarded_stops),
        cmocka_unit_test(guarded_counts_turns_of_the_loop),
        cmocka_unit_test(survives_without_memory),
        cmocka_unit_test(finds_lua),
    };
    return cmocka_run_group_tests(tests, open_vm, close_vm);
}
