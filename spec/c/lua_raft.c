/* sym.raft as Lua sees it, over a single manager. */
#include "raft_cluster.h"

#include "lua/bind_store.h"
#include "lua/vm.h"

static struct cluster cluster;
static struct manager *manager; /* NULL: the node is not started */
static lua_State *L;

struct store *bind_store_of(lua_State *S)
{
    (void)S;
    return manager != NULL ? manager->store : NULL;
}

struct rnode *bind_raft_of(lua_State *S)
{
    (void)S;
    return manager != NULL ? manager->node : NULL;
}

static void run(const char *code)
{
    if (luaL_dostring(L, code)) {
        fail_msg("%s", lua_tostring(L, -1));
    }
    lua_settop(L, 0);
}

static bool is_true(const char *global)
{
    lua_getglobal(L, global);
    bool is = lua_toboolean(L, -1);
    lua_settop(L, 0);
    return is;
}

static void not_started(void **state)
{
    (void)state;
    manager = NULL;
    run("local function closed(ok, err) assert(ok == nil and err.code == 'closed', tostring(ok)) end\n"
        "local function never() error('called') end\n"
        "closed(r.status()) closed(r.stats()) closed(r.snapshot())\n"
        "closed(r.submit({ops = {{put = 'k', value = 'v'}}}, 100, never)) closed(r.read(100, never))\n"
        "closed(r.add(2, 'a:1', never)) closed(r.assign(2, 'voter', never)) closed(r.remove(2, never))\n"
        "closed(r.transfer(0, never)) closed(r.locate(2, 'a:1', 1))");
}

static void misuse(void **state)
{
    (void)state;
    run("local function bad(...) assert(not pcall(...)) end\n"
        "local function cb() end\n"
        "bad(r.submit, 1, 100, cb) bad(r.submit, {ops = {{put = 'k', value = 'v'}}}, -1, cb)\n"
        "bad(r.submit, {ops = {{put = 'k', value = 'v'}}}, 100) bad(r.read, 'x', cb) bad(r.read, 100)\n"
        "bad(r.add, 0, 'a:1', cb) bad(r.add, 2, nil, cb) bad(r.assign, 2, 'king', cb) bad(r.remove, 'x', "
        "cb)\n"
        "bad(r.transfer, -1, cb) bad(r.locate, 0, 'a:1', 1) bad(r.locate, 2, nil, 1) bad(r.locate, 2, 'a:1') "
        "bad(r.locate, 2, 'a:1', -1)");
}

static void calls(void **state)
{
    (void)state;
    manager = &cluster.managers[0];
    run("s = assert(r.status())\n"
        "assert(s.state == 'leader' and s.id == 1 and s.leader == 1 and s.has_quorum and not s.changing)\n"
        "assert(#s.servers == 1 and s.servers[1].role == 'voter' and s.servers[1].is_self and "
        "s.servers[1].up)\n"
        "assert(math.type(s.term) == 'integer' and s.last_index >= 1)\n"
        "done, answers = false, {}\n"
        "r.submit({ops = {{put = 'k', value = 'v'}}}, 50000, function(err, res) answers[1] = {err, res} done "
        "= true end)\n"
        "assert(not done)");
    run_until(&cluster, 5000, is_true("done"));
    run("local err, res = table.unpack(answers[1], 1, 2)\n"
        "assert(err == nil and res.status == 'applied' and res.revision == 1 and not res.repeated)\n"
        "done = false\n"
        "r.submit({compare = {{key = 'k', value = 'v'}, {key = 'k', absent = true}}, ops = {{delete = "
        "'k'}}}, nil,\n"
        "  function(err, res) answers[2] = {err, res} done = true end)");
    run_until(&cluster, 5000, is_true("done"));
    run("local err, res = table.unpack(answers[2], 1, 2)\n"
        "assert(err == nil and res.status == 'conflict' and res.failed == 2)\n"
        "done = false\n"
        "r.read(50000, function(...) assert(select('#', ...) == 1 and ... == nil) done = true end)");
    run_until(&cluster, 5000, is_true("done"));
    run("n = 0\n"
        "local function expect(code) return function(err) assert(err.code == code, err.code) n = n + 1 done "
        "= n == 4 end end\n"
        "done = false\n"
        "r.transfer(0, expect('not_found')) r.remove(9, expect('not_found')) r.remove(1, "
        "expect('conflict'))\n"
        "r.assign(7, 'voter', expect('not_found'))");
    run_until(&cluster, 5000, is_true("done"));
    run("assert(r.locate(2, '127.0.0.1:1', 1) == true and r.locate(1, '127.0.0.1:2', 1) == true)\n"
        "assert(r.status().servers[1].address == '127.0.0.1:2')\n"
        "for id = 1, 2 do\n"
        "  local ok, err = r.locate(id, ':', 1)\n"
        "  assert(ok == nil and err.code == 'invalid', tostring(err and err.code))\n"
        "end\n"
        "assert(r.snapshot() == true)\n"
        "local s = r.stats()\n"
        "assert(s.submitted == 2 and s.reads == 1 and s.packs >= 2)");
}

/* What waits when the node stops is answered; then the functions say so themselves. */
static void stopped(void **state)
{
    (void)state;
    run("codes = {}\n"
        "r.submit({ops = {{put = 'k', value = 'v'}}}, 50000, function(err) codes[#codes + 1] = err and "
        "err.code or 'ok' end)\n"
        "r.read(50000, function(err) codes[#codes + 1] = err and err.code or 'ok' end)");
    manager_stop(&cluster.managers[0]);
    run("assert(#codes == 2)\n"
        "for _, code in ipairs(codes) do assert(code == 'canceled' or code == 'outcome_unknown' or code == "
        "'ok', code) end");
    not_started(NULL);
}

int main(void)
{
    static const luaL_Reg modules[] = {{"sym.raft", luaopen_sym_raft}, {NULL, NULL}};
    static const char *const no_folders[] = {NULL};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(not_started),
        cmocka_unit_test(misuse),
        cmocka_unit_test(calls),
        cmocka_unit_test(stopped),
    };
    log_setup(LOG_ERROR, false);
    cluster_open(&cluster);
    form(&cluster, 1);
    struct vm_config cfg = {.loop = &cluster.loop, .lua_paths = no_folders, .modules = modules};
    if (vm_new(&cfg, &L) != 0 || luaL_dostring(L, "r = require 'sym.raft'")) {
        fprintf(stderr, "%s\n", err_msg());
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    vm_close(L);
    cluster_close(&cluster);
    return failed;
}
