/* The pattern functions of policies say what Lua's own say, and stop where those would not. */
#include "sandbox_support.h"

#include "sandbox/box.h"
#include "sandbox/pattern.h"

#include <lauxlib.h>

static struct box_pool pool;

static int do_lua(lua_State *L)
{
    const char *code = lua_touserdata(L, 1);
    lua_settop(L, 0);
    lua_newtable(L);
    pattern_open(L, box_charge);
    lua_setglobal(L, "own");
    if (luaL_loadstring(L, code) != LUA_OK) {
        return lua_error(L);
    }
    lua_call(L, 0, 0);
    return 0;
}

static int run(const char *code, uint64_t instructions)
{
    struct box_limits lim = full_limits;
    struct box *box;
    const char *source = "return { hooks = { ['node.up'] = tostring } }";
    lim.instructions = instructions;
    lim.memory = 64 << 20;
    lim.memory_all = 128 << 20;
    OK(box_load(&lim, &pool, "p", source, strlen(source), &box));
    int rv = box_enter(box, do_lua, (void *)code);
    box_free(box);
    return rv;
}

static void the_same_as_lua(void **state)
{
    (void)state;
    static const char code[] =
        ("local texts = { ('k'):rep(40) .. ' = (Value-7) ' .. ('.'):rep(20) .. '\\0x',\n"
         "  (' '):rep(30) .. 'key = [a-b]', '', 'a', 'aaa', 'hello world', 'key = value', '  x  ', 'THE "
         "(quick) fox', "
         "'[[x]]', 'a.b.c',\n"
         "  'x^y$z', 'foo123bar', 'aXb', '((a)(b))', 'abcabc', '\\0a\\0', 'a-b-c', 'one;two;;four', '%d', "
         "'\\xff\\xfe' }\n"
         "local patterns = { '', '.', 'a*', 'a-', 'a+', 'a?', '^a', 'a$', '^$', '^', '$', '%a+', '%A', "
         "'%s*(.-)%s*$', '(%w+) (%w+)',\n"
         "  '()', '()a()', '[%w_]+', '[^%s]+', '[^%sk]%d?', '%S-e', '[%u%.]', '[a-c]', '[]]', '[^]]', "
         "'[a-]', '[%a-z]', '%b()', "
         "'%f[%w]%w+', '%f[%z]', '(.)%1',\n"
         "  '(a)(b)', '((a))', '.-b', '%.', '%%d', '^(.-)=(.*)$', '[\\0-\\31]', '%p', '%x%x', '(%d*)', "
         "'[^a]*$', '%c', '%u%l', '^.-$',\n"
         "  '(', ')', '%', '[', '[a', '[^', '%b', '%bx', '%f', '(()', '%1', '(%1)', '()%1', '.()(.)%2%1', "
         "'\\0)', '\\0', 'a\\0a', '\\0.', '\\0%z', "
         "'a^', '$a', '[%', "
         "'%g+', '(.-)(.-)(.-)$' }\n"
         "local function all(f, ...)\n"
         "  local r = table.pack(pcall(f, ...))\n"
         "  for i = 1, r.n do r[i] = tostring(r[i]) end\n"
         "  return table.concat(r, '|')\n"
         "end\n"
         "local function each(gmatch, s, p, init)\n"
         "  local out = {}\n"
         "  for a, b in gmatch(s, p, init) do out[#out + 1] = tostring(a) .. ',' .. tostring(b) end\n"
         "  return table.concat(out, ';')\n"
         "end\n"
         "local n = 0\n"
         "local function same(what, a, b)\n"
         "  n = n + 1\n"
         "  if a ~= b then error(('%s: %q, not %q'):format(what, a, b)) end\n"
         "end\n"
         "local swap = { a = 'A', hello = false, x = 7 }\n"
         "for _, s in ipairs(texts) do for _, p in ipairs(patterns) do\n"
         "  local what = ('%q %q'):format(s, p)\n"
         "  for _, init in ipairs { 1, 2, -1, 100, -100, 0 } do\n"
         "    same(what .. ' find ' .. init, all(own.find, s, p, init), all(string.find, s, p, init))\n"
         "    same(what .. ' plain', all(own.find, s, p, init, true), all(string.find, s, p, init, true))\n"
         "    same(what .. ' match ' .. init, all(own.match, s, p, init), all(string.match, s, p, init))\n"
         "    same(what .. ' gmatch ' .. init, all(each, own.gmatch, s, p, init), all(each, string.gmatch, "
         "s, p, init))\n"
         "  end\n"
         "  for _, r in ipairs { '', 'x', '%0%0', '<%1>', '%%', '%', '%2', 5, swap, function(a) return a "
         "and #tostring(a) > 1 and a .. '!' end } do\n"
         "    for _, most in ipairs { 0, 1, 2, 1000, -1 } do\n"
         "      same(what .. ' gsub', all(own.gsub, s, p, r, most), all(string.gsub, s, p, r, most))\n"
         "    end\n"
         "    same(what .. ' gsub', all(own.gsub, s, p, r), all(string.gsub, s, p, r))\n"
         "  end\n"
         "end end\n"
         "assert(n > 50000)\n"
         "same('error', all(own.gsub, 'a', 'a', function() return {} end), all(string.gsub, 'a', 'a', "
         "function() return {} end))\n"
         "same('deep', all(own.match, 'a', ('(a'):rep(40)), all(string.match, 'a', ('(a'):rep(40)))\n"
         "same('deep', all(own.find, 'x', ('x?'):rep(300) .. '$'), all(string.find, 'x', ('x?'):rep(300) "
         ".. '$'))\n");
    if (run(code, 100000000000) != 0) {
        fail_msg("%s", err_msg());
    }
}

static void what_does_not_end_is_stopped(void **state)
{
    (void)state;
    static const char *const codes[] = {
        "own.find(('a'):rep(3000), ('a-'):rep(20) .. 'b')",
        "own.match(('a'):rep(200000), '.-.-.-b')",
        "own.gsub(('a'):rep(100000), 'a*b', '')",
        "for _ in own.gmatch(('a'):rep(100000), 'a*a*b') do end",
        "own.match(('('):rep(100000), '%b()%b()')  own.gsub(('('):rep(100000), '%b()', '')",
        "own.find(('x'):rep(100000), '[' .. ('a'):rep(10000) .. ']*x$')",
        "own.gsub(('x'):rep(1000000), '', ('y'):rep(1000000))",
        "local s = ('a'):rep(50000) own.match(s .. s .. s, '(.*)%1%1%1b')",
        "own.find(('ab'):rep(100000), 'ab.-x')",
        /* Each of these does little, but often. */
        "local s = ('a'):rep(3700) for _ = 1, 1e5 do own.find(s, '[b]') end",
        "local s = ('a'):rep(3700) .. 'b' for _ = 1, 1e5 do own.match(s, 'b') end",
        "local s = ('a'):rep(3700) .. 'b' for _ = 1, 1e5 do pcall(own.find, s, 'b(') end",
        "local s = ('a'):rep(3700) .. 'b' for _ = 1, 1e5 do pcall(own.find, s, 'b%') end",
        "local s = ('a'):rep(3700) for _ = 1, 1e5 do own.gsub(s, 'b', '') end",
        "local s = ('a'):rep(3700) .. 'b' for _ = 1, 1e5 do for _ in own.gmatch(s, 'b') do end end",
    };
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        if (run(codes[i], 5000000) != SYM_EINVAL ||
            (strstr(err_msg(), "instructions") == NULL && strstr(err_msg(), "memory") == NULL)) {
            fail_msg("%s: %s", codes[i], err_msg());
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_as_lua),
        cmocka_unit_test(what_does_not_end_is_stopped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
