/* sym.gossip as Lua sees it: nodes on loopback in one loop. */
#include "check.h"

#include "base/log.h"
#include "lua/vm.h"

#include <stdlib.h>

static uv_loop_t loop;
static lua_State *L;
static bool finished;
static long allocations_left = -1;

static void *allocate(void *arg, void *p, size_t old, size_t n)
{
    (void)arg;
    (void)old;
    if (n == 0) {
        free(p);
        return NULL;
    }
    /* All that follow fail, too: Lua tries again after a collection. */
    if (allocations_left >= 0 && (p == NULL || n > old)) {
        if (allocations_left == 0) {
            return NULL;
        }
        allocations_left--;
    }
    return realloc(p, n);
}

static int l_finish(lua_State *l)
{
    (void)l;
    finished = true;
    return 0;
}

static const char prelude[] =
    "gossip, crypto, uv = require 'sym.gossip', require 'sym.crypto', require 'luv'\n"
    "ids, secret = {}, ('s'):rep(32)\n"
    "for i = 1, 4 do ids[i] = crypto.base32(string.char(i) .. ('i'):rep(15)) end\n"
    "pair_keys = pair_keys or {crypto.key_generate(), crypto.key_generate(), crypto.key_generate()}\n"
    "start = os.time() * 1000\n"
    "function options(i, more)\n"
    "  start = start + 1\n"
    "  local o = {node_id = ids[i], cluster_id = 'test', start = start, bind_addr = '127.0.0.1', port = 0,\n"
    "    address = '127.0.0.1', meta = 'meta' .. i, key = pair_keys[i], keys = {{id = 1, secret = secret, "
    "use = true}},\n"
    "    period_ms = 60, probe_timeout_ms = 25, gossip_ms = 20}\n"
    "  for k, v in pairs(more or {}) do o[k] = v end\n"
    "  return o\n"
    "end\n"
    "function open(i, more) return assert(gossip.open(options(i, more))) end\n"
    /* Nodes that know each other's keys. */
    "function pair()\n"
    "  local a, b = open(1), open(2)\n"
    "  assert(a:peer(ids[2], pair_keys[2]:public()) and b:peer(ids[1], pair_keys[1]:public()))\n"
    "  return a, b\n"
    "end\n"
    "function same(got, want)\n"
    "  if got ~= want then error(('%s instead of %s'):format(tostring(got), tostring(want)), 2) end\n"
    "end\n"
    "function fails(code, v, err) same(v, nil) same(err and err.code, code) assert(#err.message > 0) end\n"
    /* Calls fn again and again until it answers true; then next_one. */
    "function wait(fn, next_one)\n"
    "  local timer = uv.new_timer()\n"
    "  timer:start(0, 2, function()\n"
    "    local ok, done = pcall(fn)\n"
    "    if ok and not done then return end\n"
    "    timer:close()\n"
    "    if ok then ok, done = pcall(next_one) end\n"
    "    if not ok then failed = done finish() end\n"
    "  end)\n"
    "end\n"
    /* What raises in a callback is only logged: a test's go through here. */
    "function t(fn) return function(...)\n"
    "  local ok, e = pcall(fn, ...)\n"
    "  if not ok then failed = e finish() end\n"
    "end end\n";

static int begin(void **state)
{
    static const luaL_Reg modules[] = {
        {"sym.gossip", luaopen_sym_gossip}, {"sym.crypto", luaopen_sym_crypto}, {NULL, NULL}};
    static const char *const no_folders[] = {NULL};
    struct vm_config cfg = {.loop = &loop, .lua_paths = no_folders, .modules = modules};
    (void)state;
    log_setup(LOG_ERROR + 1, false);
    assert_int_equal(uv_loop_init(&loop), 0);
    OK(vm_new(&cfg, &L));
    lua_setallocf(L, allocate, NULL);
    lua_pushcfunction(L, l_finish);
    lua_setglobal(L, "finish");
    assert_int_equal(luaL_loadstring(L, prelude), LUA_OK);
    OK(vm_call(L, 0, 0));
    return 0;
}

static int end(void **state)
{
    (void)state;
    vm_close(L);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
    return 0;
}

static void on_give_up(uv_timer_t *timer)
{
    *(bool *)timer->data = true;
}

static void run(const char *code)
{
    if (luaL_loadstring(L, code) != LUA_OK) {
        fail_msg("%s", lua_tostring(L, -1));
    }
    OK(vm_call(L, 0, 0));
    assert_int_equal(lua_gettop(L), 0);
}

/* Runs @code, and then the loop until it has called finish. */
static void script(const char *code)
{
    bool too_late = false;
    uv_timer_t limit;
    finished = false;
    run(code);
    uv_timer_init(&loop, &limit);
    limit.data = &too_late;
    uv_timer_start(&limit, on_give_up, 30000, 0);
    while (!finished && !too_late) {
        uv_run(&loop, UV_RUN_ONCE);
    }
    uv_close((uv_handle_t *)&limit, NULL);
    uv_run(&loop, UV_RUN_NOWAIT);
    assert_false(too_late);
    lua_getglobal(L, "failed");
    if (!lua_isnil(L, -1)) {
        fail_msg("%s", luaL_tolstring(L, -1, NULL));
    }
    lua_pop(L, 1);
    assert_int_equal(lua_gettop(L), 0);
}

static void two_nodes(void **state)
{
    (void)state;
    script("local a, b = pair()\n"
           "local told, depth = {}, 0\n"
           "a:on_event(t(function(err, what, member)\n"
           "  same(err, nil) same(depth, 0) told[#told + 1] = what .. ' ' .. member.node_id\n"
           "end))\n"
           "assert(a.port > 0 and a.port ~= b.port and a.nonsense == nil)\n"
           "same(a:count(), 1) same(a:health(), 0) same(a:member(ids[2]), nil) same(#a:members(), 1)\n"
           "assert(a:members()[1].age_ms < 30000)\n"
           "depth = 1 same(b:join('127.0.0.1:' .. a.port), true) depth = 0\n"
           "wait(function() return a:member(ids[2]) and b:member(ids[1]) and #told > 0 end, function()\n"
           "  same(told[1], 'joined ' .. ids[2])\n"
           "  local m = a:member(ids[2])\n"
           "  same(m.node_id, ids[2]) same(m.state, 'alive') same(m.meta, 'meta2')\n"
           "  same(m.address, '127.0.0.1:' .. b.port) same(math.type(m.age_ms), 'integer')\n"
           "  assert(m.age_ms >= 0 and m.age_ms < 30000 and m.incarnation > 0)\n"
           "  same(#a:members(), 2) same(a:count(), 2)\n"
           "  local s = a:stats()\n"
           "  for k, v in pairs(s) do same(math.type(v), 'integer') same(type(k), 'string') end\n"
           "  assert(s.seal_ok > 0 and s.sent > 0 and s.out > 0 and s.in_bytes > 0 and s.peers == 1)\n"
           "  same(s.count, 2) same(s.keys_of_others, 1) same(s.seal_forged, 0) same(s.seal_busy, 0)\n"
           "  assert(a:key_uses()[1] < 30000)\n"
           "  same(b:update {meta = 'new'}, true)\n"
           "  wait(function() return a:member(ids[2]).meta == 'new' end, function()\n"
           "    same(a:member(ids[2]).address, '127.0.0.1:' .. b.port)\n"
           "    same(b:update {address = '127.0.0.1'}, true)\n"
           "    same(b:member(ids[2]).meta, 'new') same(b:member(ids[2]).address, '127.0.0.1:' .. b.port)\n"
           "    same(a:forget(ids[2]), true)\n"
           "    wait(function() return told[#told] == 'forgotten ' .. ids[2] end, function()\n"
           "      same(a:member(ids[2]), nil) a:close() b:close() finish()\n"
           "    end)\n"
           "  end)\n"
           "end)\n");
}

static void exchanges(void **state)
{
    (void)state;
    script("local a, b = pair()\n"
           "local bytes, cursor = a:export(0, 1024)\n"
           "same(cursor, 0) same(b:merge(ids[1], bytes), true)\n"
           "same(b:member(ids[1]).meta, 'meta1')\n"
           "fails('protocol', b:merge(ids[1], 'nonsense')) fails('protocol', b:merge(ids[1], ''))\n"
           "fails('protocol', b:merge(ids[1], ('x'):rep(16 * 1024 + 1)))\n"
           "fails('invalid', b:merge('nobody', bytes)) fails('invalid', a:export(0, 10))\n"
           "local c = open(3)\n"
           "c:peer(ids[1], pair_keys[2]:public())\n" /* not its key */
           "fails('unauthenticated', c:merge(ids[1], bytes))\n"
           "a:close() b:close() c:close() finish()\n");
}

/* Asks for the reliable channel, believes it, and is told of the death when that does not answer either. */
static void probes(void **state)
{
    (void)state;
    script("local a, b = pair()\n"
           "local asked, alive, told = 0, true, {}\n"
           "a:on_probe(t(function(err, member, ticket)\n"
           "  same(err, nil) same(member.node_id, ids[2]) same(math.type(ticket), 'integer')\n"
           "  asked = asked + 1 same(a:probe_done(ticket, alive), true)\n"
           "end))\n"
           "a:on_event(function(_, what) told[what] = (told[what] or 0) + 1 end)\n"
           "a:merge(ids[2], (b:export(0)))\n"
           "b:close()\n"
           "wait(function() return asked > 4 end, function()\n"
           "  same(told.died, nil) alive = false\n"
           "  wait(function() return told.died == 1 end, function()\n"
           "    same(a:member(ids[2]).state, 'dead')\n"
           "    same(a:on_probe(nil), true) same(a:on_event(nil), true)\n"
           "    a:close() finish()\n"
           "  end)\n"
           "end)\n");
}

static void leaves(void **state)
{
    (void)state;
    script("local a, b = pair()\n"
           "local left, inside, departed = 0, true, 0\n"
           "b:on_event(function(_, what) if what == 'departed' then departed = departed + 1 end end)\n"
           "a:join('127.0.0.1:' .. b.port)\n"
           "wait(function() return a:member(ids[2]) and b:member(ids[1]) end, function()\n"
           "  same(a:leave(t(function(err) same(err, nil) same(inside, false) left = left + 1 end)), true)\n"
           "  inside = false\n"
           "  fails('busy', a:leave(print))\n"
           "  wait(function() return left == 1 and departed == 1 end, function()\n"
           "    same(b:member(ids[1]).state, 'left')\n"
           "    a:close()\n"
           /* Closed meanwhile: its callback comes once, and says so. */
           "    local code\n"
           "    same(b:leave(t(function(err) code = (code or '') .. err.code end)), true)\n"
           "    b:close()\n"
           "    same(code, nil)\n"
           "    b = nil\n"
           "    wait(function() collectgarbage() return code end, function() same(code, 'closed') finish() "
           "end)\n"
           "  end)\n"
           "end)\n");
}

static void closed(void **state)
{
    (void)state;
    script(
        "local a, b = pair()\n"
        "local told = 0\n"
        "a:on_event(function() told = told + 1 a:close() end)\n"
        "a:merge(ids[2], (b:export(0)))\n"
        "a:on_event(function() told = told + 1 a:close() end)\n"
        "wait(function() return told > 0 end, function()\n"
        "  a:close()\n"
        "  local arguments = {peer = {ids[2], 'x'}, forget = {ids[2]}, keys = {{}}, update = {{}}, join = "
        "{'x'},\n"
        "    on_event = {print}, on_probe = {print}, probe_done = {1, true}, leave = {print}, export = {0},\n"
        "    merge = {ids[2], ''}, member = {ids[2]}, members = {}, count = {}, health = {}, stats = {},\n"
        "    key_uses = {}}\n"
        "  for name, args in pairs(arguments) do fails('closed', a[name](a, table.unpack(args))) end\n"
        "  same(told, 1) assert(a.port > 0)\n"
        "  b:on_event(function() failed = 'told after close' end)\n"
        "  b:peer(ids[3], pair_keys[3]:public())\n"
        "  local c = open(3)\n"
        "  b:merge(ids[3], (c:export(0)))\n"
        "  b:close()\n" /* with an event queued */
        "  local turns = 0\n"
        "  wait(function() turns = turns + 1 return turns > 10 end, function() c:close() finish() end)\n"
        "end)\n");
}

static void keys(void **state)
{
    (void)state;
    script("local a, b = pair()\n"
           "local two = {{id = 1, secret = secret}, {id = 2, secret = ('t'):rep(32), use = true}}\n"
           "local one = {{id = 2, secret = ('t'):rep(32), use = true}}\n"
           "fails('invalid', a:keys {}) fails('invalid', a:keys {two[1]}) fails('invalid', a:keys {one[1], "
           "one[1]})\n"
           "fails('invalid', a:keys {one[1], two[1], two[1], two[1], two[1], two[1]})\n"
           "same(a:keys(two), true) same(b:keys(two), true)\n"
           "a:join('127.0.0.1:' .. b.port)\n"
           "wait(function() return a:key_uses()[2] and b:key_uses()[2] end, function()\n"
           "  same(a:key_uses()[1], nil) same(a:keys(one), true) assert(a:key_uses()[2])\n"
           "  a:close() b:close() finish()\n"
           "end)\n");
}

static void refusals(void **state)
{
    (void)state;
    run("local a = open(1)\n"
        "local taken, err = gossip.open(options(2, {port = a.port}))\n"
        "same(taken, nil) same(err.code, 'in_use') assert(err.message:find(tostring(a.port), 1, true))\n"
        "fails('invalid', gossip.open(options(2, {node_id = 'short'})))\n"
        "fails('invalid', gossip.open(options(2, {address = 'name:1'})))\n"
        "fails('invalid', gossip.open(options(2, {bind_addr = 'name'})))\n"
        "fails('invalid', gossip.open(options(2, {meta = ('x'):rep(193)})))\n"
        "fails('invalid', gossip.open(options(2, {keys = {}})))\n"
        "fails('invalid', gossip.open(options(2, {period_ms = 5})))\n"
        "fails('invalid', gossip.open(options(2, {cluster_id = ('x'):rep(65)})))\n"
        "fails('invalid', a:peer('x', pair_keys[2]:public())) fails('invalid', a:peer(ids[2], 'x'))\n"
        "fails('invalid', a:forget('x')) fails('invalid', a:member('x')) fails('invalid', a:join('x'))\n"
        "fails('invalid', a:join('127.0.0.1')) fails('invalid', a:update {address = 'x:y'})\n"
        "fails('invalid', a:update {meta = ('x'):rep(193)})\n"
        "local function raises(fn, ...) if pcall(fn, ...) then error('was taken', 2) end end\n"
        "local o = options\n"
        "for name in pairs(o(2)) do\n"
        "  if name ~= 'meta' and not name:find('_ms') then\n"
        "    local opts = o(2) opts[name] = nil raises(gossip.open, opts)\n"
        "  end\n"
        "  raises(gossip.open, o(2, {[name] = false}))\n"
        "end\n"
        "raises(gossip.open) raises(gossip.open, o(2, {port = 65536})) raises(gossip.open, o(2, {start = "
        "-1}))\n"
        "raises(gossip.open, o(2, {start = 1.5})) raises(gossip.open, o(2, {address = 'a\\0b'}))\n"
        "raises(gossip.open, o(2, {keys = {5}})) raises(gossip.open, o(2, {keys = {{id = 1, secret = "
        "'short'}}}))\n"
        "raises(gossip.open, o(2, {keys = {{secret = secret}}})) raises(gossip.open, o(2, {key = "
        "io.stdout}))\n"
        "local closed_key = crypto.key_generate() closed_key:close()\n"
        "raises(gossip.open, o(2, {key = closed_key}))\n"
        "for _, name in ipairs {'peer', 'forget', 'keys', 'update', 'join', 'probe_done', 'leave', 'export', "
        "'merge',\n"
        "  'member'} do raises(a[name], a) end\n"
        "raises(a.on_event, a, 5) raises(a.on_probe, a, 'x') raises(a.leave, a, 5) raises(a.export, a, -1)\n"
        "raises(a.count) raises(a.count, io.stdout) raises(a.update, a, {meta = 5})\n"
        "same(getmetatable(a), false)\n"
        "a:close() a:close()\n");
}

/* Whoever is held by nobody closes itself, and its port is free; the driver keeps the private key for itself. */
static void collected(void **state)
{
    (void)state;
    script("local key = crypto.key_load(pair_keys[2]:pem())\n"
           "local a = open(2, {key = key})\n"
           "local port = a.port\n"
           "key:close()\n"
           "same(a:update {meta = 'signed'}, true)\n"
           "a = nil\n"
           "collectgarbage() collectgarbage()\n"
           "local b = open(1, {port = port})\n"
           "same(b.port, port)\n"
           "b:close() finish()\n");
}

/* The state ends with everything open, and a leave under way (ASan). */
static void left_open(void **state)
{
    (void)state;
    run("a, b = pair()\n"
        "a:merge(ids[2], (b:export(0)))\n"
        "a:on_event(print) b:on_probe(print)\n"
        "a:leave(print)\n"
        "key_that_stays = pair_keys\n");
}

static const char all_of_it[] =
    "local a, b = open(1), open(2)\n"
    "a:peer(ids[2], pair_keys[2]:public()) b:peer(ids[1], pair_keys[1]:public())\n"
    "a:on_event(function() end) a:on_probe(function() end)\n"
    "a:merge(ids[2], (b:export(0)))\n"
    "local n = #a:members() + a:count() + a:stats().count\n"
    "a:update {meta = 'x', address = '127.0.0.1'} a:key_uses() a:keys {{id = 1, secret = secret, use = "
    "true}}\n"
    "a:leave(function() end)\n"
    "a:close() b:close()\n"
    "ok = n == 6\n";

/* Without memory at each of Lua's allocations in turn: an error, and nothing is left behind (ASan). */
static void out_of_memory(void **state)
{
    (void)state;
    long k = 0;
    for (bool done = false; !done; k++) {
        assert_int_equal(luaL_loadstring(L, all_of_it), LUA_OK);
        allocations_left = k;
        int rv = lua_pcall(L, 0, 0, 0);
        done = allocations_left > 0;
        for (int i = 0; i < 3; i++) { /* and what is told then */
            uv_run(&loop, UV_RUN_NOWAIT);
        }
        allocations_left = -1;
        assert_true(rv == LUA_OK || rv == LUA_ERRMEM || rv == LUA_ERRRUN);
        if (done) {
            assert_int_equal(rv, LUA_OK);
        }
        lua_settop(L, 0);
        lua_gc(L, LUA_GCCOLLECT);
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    run("assert(ok)");
    assert_true(k > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(two_nodes, begin, end),
        cmocka_unit_test_setup_teardown(exchanges, begin, end),
        cmocka_unit_test_setup_teardown(probes, begin, end),
        cmocka_unit_test_setup_teardown(leaves, begin, end),
        cmocka_unit_test_setup_teardown(closed, begin, end),
        cmocka_unit_test_setup_teardown(keys, begin, end),
        cmocka_unit_test_setup_teardown(refusals, begin, end),
        cmocka_unit_test_setup_teardown(collected, begin, end),
        cmocka_unit_test_setup_teardown(left_open, begin, end),
        cmocka_unit_test_setup_teardown(out_of_memory, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
