/* Join tokens, which are Lua, under an allocator that fails at each count: the call raises "not enough memory" or does
 * what it would have done, never anything else, and the next one is as if nothing had been. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

#include "base/err.h"
#include "lua/paths.h"
#include "lua/vm.h"

static uv_loop_t loop;
static lua_State *L;
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

static int open_vm(void **state)
{
    (void)state;
    static const luaL_Reg modules[] = {{"sym.log", luaopen_sym_log}, {"sym.sys", luaopen_sym_sys},
        {"sym.crypto", luaopen_sym_crypto}, {NULL, NULL}};
    const char *paths[2];
    struct vm_config cfg = {.loop = &loop, .lua_paths = paths, .modules = modules};
    uv_loop_init(&loop);
    return lua_paths(paths, 2, NULL, 0) != 0 || vm_new(&cfg, &L) != 0 ? -1 : 0;
}

static int close_vm(void **state)
{
    (void)state;
    vm_close(L);
    uv_run(&loop, UV_RUN_DEFAULT);
    return uv_loop_close(&loop);
}

/* Runs @code, which leaves a function, and calls that with one more allocation granted each time, until it needs no
 * more. What it returns has to be "right". */
static void survives(const char *code)
{
    real_alloc = lua_getallocf(L, &real_ud);
    if (luaL_dostring(L, code) != LUA_OK) {
        fail_msg("%s", lua_tostring(L, -1));
    }
    long n = 0, failures = 0;
    do {
        lua_settop(L, 1);
        lua_pushvalue(L, 1);
        lua_gc(L, LUA_GCCOLLECT);
        failed = false;
        lua_setallocf(L, failing_alloc, NULL);
        allocations_left = n++;
        int rv = lua_pcall(L, 0, 1, 0);
        allocations_left = -1;
        lua_setallocf(L, real_alloc, real_ud);
        if (rv != LUA_OK) {
            const char *why = lua_tostring(L, -1);
            assert_true(failed);
            assert_int_equal(rv, LUA_ERRMEM);
            assert_string_equal(why, "not enough memory");
            failures++;
        } else {
            assert_string_equal(lua_tostring(L, -1), "right");
        }
    } while (failed && n < 10000);
    print_message("%ld allocations\n", n - 1);
    assert_false(failed);
    assert_true(failures > 2);
    lua_settop(L, 0);
}

#define TOKEN                                                                                                \
    "local token, crypto = require 'symphony.cluster.token', require 'sym.crypto' "                          \
    "local digest = crypto.hex(crypto.sha256('ca')) "                                                        \
    "local good, hash = token.generate(digest) "

static void generate(void **state)
{
    (void)state;
    survives(TOKEN "return function() local text, hash = token.generate(digest) "
                   "local parsed = token.parse(text) "
                   "return parsed and token.hash(parsed.secret) == hash and "
                   "crypto.hex(parsed.ca) == digest and 'right' or 'wrong' end");
}

static void parse(void **state)
{
    (void)state;
    survives(TOKEN "return function() local parsed = token.parse('  ' .. good:lower() .. '\\n') "
                   "return parsed and token.hash(parsed.secret) == hash and 'right' or 'wrong' end");
    survives(TOKEN "local bad = {good:sub(1, -2), good .. 'A', 'SYMTKN-', 'hello', ('x'):rep(1000), "
                   "good:sub(1, -2) .. '\\1', ''} "
                   "return function() for _, text in ipairs(bad) do local parsed, err = token.parse(text) "
                   "if parsed or err.code ~= 'invalid' then return text end end return 'right' end");
}

static void check(void **state)
{
    (void)state;
    survives(
        TOKEN "local cidrs = {'10.0.0.0/8', 'fd00::/8'} "
              "return function() "
              "local r = token.record(hash, {role = 'manager', ttl = 10, uses = 1, cidrs = cidrs}, 1000) "
              "return token.check(r, 'manager', 'fd00::1', 1000) == true and 'right' or 'wrong' end");
    survives(TOKEN "local cidrs = {'10.0.0.0/8'} "
                   "return function() local function code(options, role, addr, now) "
                   "local ok, err = token.check(token.record(hash, options, 1000), role, addr, now) "
                   "return ok and 'let in' or err.code end "
                   "local all = code({role = 'worker'}, 'manager', '10.0.0.1', 1000) .. ' ' .. "
                   "code({role = 'manager', ttl = 1}, 'manager', '10.0.0.1', 1002) .. ' ' .. "
                   "code({role = 'manager', uses = 0}, 'manager', '10.0.0.1', 1000) .. ' ' .. "
                   "code({role = 'manager', cidrs = cidrs}, 'manager', '192.0.2.1', 1000) "
                   "return all == 'denied expired denied denied' and 'right' or all end");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(generate),
        cmocka_unit_test(parse),
        cmocka_unit_test(check),
    };
    return cmocka_run_group_tests(tests, open_vm, close_vm);
}
