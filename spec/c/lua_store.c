/* sym.store as Lua sees it, and the txns that sym.raft.submit takes. */
#include "store_support.h"

#include "base/log.h"
#include "lua/bind_store.h"
#include "lua/vm.h"

static struct store *store; /* NULL: the node is not started */
static uv_loop_t loop;
static lua_State *L;
static struct txn txn;

struct store *bind_store_of(lua_State *S)
{
    (void)S;
    return store;
}

struct rnode *bind_raft_of(lua_State *S)
{
    (void)S;
    return NULL;
}

/* check(txn) -> text: what bind_store_check_txn has read. */
static int l_check(lua_State *S)
{
    luaL_Buffer b;
    bind_store_check_txn(S, 1, &txn);
    luaL_buffinit(S, &b);
    for (unsigned i = 0; i < txn.n_cmps; i++) {
        const struct txn_cmp *c = &txn.cmps[i];
        lua_pushfstring(S, "%d:", (int)c->kind);
        luaL_addvalue(&b);
        luaL_addlstring(&b, (const char *)c->key.p, c->key.n);
        lua_pushfstring(S, "=%I/", (lua_Integer)c->number);
        luaL_addvalue(&b);
        luaL_addlstring(&b, (const char *)c->value.p, c->value.n);
        luaL_addchar(&b, ' ');
    }
    for (unsigned i = 0; i < txn.n_ops; i++) {
        const struct txn_op *op = &txn.ops[i];
        luaL_addstring(&b, op->kind == OP_PUT ? "put:" : "delete:");
        luaL_addlstring(&b, (const char *)op->key.p, op->key.n);
        luaL_addchar(&b, '=');
        luaL_addlstring(&b, (const char *)op->value.p, op->value.n);
        luaL_addchar(&b, ' ');
    }
    lua_pushfstring(S, "id:%d since:%I", txn_has_id(&txn.id), (lua_Integer)txn.id.since);
    luaL_addvalue(&b);
    luaL_pushresult(&b);
    return 1;
}

static const luaL_Reg modules[] = {{"sym.store", luaopen_sym_store}, {NULL, NULL}};
static const char *const no_folders[] = {NULL};

static int set_up(void **state)
{
    struct vm_config cfg = {.loop = &loop, .lua_paths = no_folders, .modules = modules};
    log_setup(LOG_ERROR + 1, false);
    if (make_folder(state) != 0 || uv_loop_init(&loop) != 0 || vm_new(&cfg, &L) != 0) {
        return -1;
    }
    struct store_config store_cfg = {.dir = in_folder(state, "state"), .quota = 8 << 20};
    store = open_store(&store_cfg);
    lua_register(L, "check", l_check);
    return luaL_dostring(L, "s = require 'sym.store'");
}

static int tear_down(void **state)
{
    vm_close(L);
    if (store != NULL) {
        store_close(store);
        store = NULL;
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
    return remove_folder(state);
}

/* Runs @code and gives its first result as text. */
static const char *run(const char *code)
{
    static char text[4096];
    text[0] = '\0';
    if (luaL_loadstring(L, code) != LUA_OK || lua_pcall(L, 0, LUA_MULTRET, 0) != LUA_OK) {
        snprintf(text, sizeof text, "raised: %s", lua_tostring(L, -1));
    } else if (lua_gettop(L) > 0) {
        snprintf(text, sizeof text, "%s", luaL_tolstring(L, 1, NULL));
    }
    lua_settop(L, 0);
    return text;
}

#define RUNS(code, expected) assert_string_equal(run(code), expected)

static void pump(void)
{
    while (store_pump(store)) {
    }
}

static void not_started(void **state)
{
    (void)state;
    store_close(store);
    store = NULL;
    static const char *const calls[] = {"s.get('a')", "s.list('')", "s.revision()", "s.applied()", "s.keys()",
        "s.headroom()", "s.watch('', 0, print)", "s.snapshot(print)"};
    for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++) {
        char code[128];
        snprintf(code, sizeof code, "local r, err = %s return tostring(r) .. ' ' .. err.code", calls[i]);
        RUNS(code, "nil closed");
    }
}

static void reading(void **state)
{
    (void)state;
    put(store, "/a/1", "one");
    put(store, "/a/2", "");
    put(store, "/a/1", "uno");
    put(store, "/b", "x");
    RUNS("local e = s.get('/a/1') return e.key .. e.value .. e.create_revision .. e.mod_revision",
        "/a/1uno13");
    RUNS("return math.type(s.get('/a/1').mod_revision)", "integer");
    RUNS("return select('#', s.get('/none')) .. tostring(s.get('/none'))", "1nil");
    RUNS("local r, err = s.get('') return tostring(r) .. err.code", "nilinvalid");
    RUNS("local t = {} for i, e in ipairs(s.list('/a/')) do t[i] = e.key .. '=' .. e.value end "
         "return table.concat(t, ' ')",
        "/a/1=uno /a/2=");
    RUNS("return #s.list('') .. #s.list('', {limit = 2}) .. #s.list('', {limit = 0}) .. "
         "#s.list('', {after = '/a/1'}) .. #s.list('/a/', {after = '/a/2'})",
        "32020");
    RUNS("return s.list('', {after = '/a/1', limit = 1})[1].key", "/a/2");
    RUNS("return s.revision() .. s.applied() .. s.keys()", "443");
    RUNS("return s.headroom() > 7000000", "true");
    static const char *const misuse[] = {"s.get()", "s.get({})", "s.list()", "s.list('', 1)",
        "s.list('', {limit = 'x'})", "s.watch('', -1, print)", "s.watch('', 0)", "s.watch('', 'x', print)",
        "s.snapshot()", "s.snapshot_list('')"};
    for (unsigned i = 0; i < sizeof misuse / sizeof *misuse; i++) {
        if (strncmp(run(misuse[i]), "raised: ", 8) != 0) {
            fail_msg("%s does not raise", misuse[i]);
        }
    }
}

static void watching(void **state)
{
    (void)state;
    put(store, "/a/1", "one");
    RUNS("log = {} "
         "function see(err, events) "
         "  if err then log[#log + 1] = err.code return end "
         "  for _, e in ipairs(events) do "
         "    log[#log + 1] = e.key .. '=' .. tostring(e.value) .. (e.deleted and '!' or '') .. e.revision "
         "  end "
         "end "
         "w = s.watch('/a/', 0, see)",
        "");
    pump();
    put(store, "/b", "x");
    put(store, "/a/2", "two");
    del(store, "/a/1");
    pump();
    RUNS("return table.concat(log, ' ')", "/a/1=one1 /a/2=two3 /a/1=nil!4");
    RUNS("w:close() w:close()", "");
    put(store, "/a/3", "x");
    pump();
    RUNS("return #log", "3");

    RUNS("local w, err = s.watch('', 99, see) return tostring(w) .. err.code", "nilinvalid");
    RUNS("w = nil collectgarbage() collectgarbage()", "");
    /* One that closes itself, and one that raises, which others do not notice. */
    RUNS("log = {} self = s.watch('', 5, function(err, events) log[#log + 1] = 'self' self:close() end) "
         "bad = s.watch('', 5, function() error('oops') end) "
         "good = s.watch('', 5, see)",
        "");
    put(store, "/x", "1");
    pump();
    put(store, "/y", "1");
    pump();
    RUNS("return table.concat(log, ' ')", "self /x=16 /y=17");
    /* The handle is gone: so is the watch. */
    RUNS("good = nil bad = nil collectgarbage() collectgarbage() log = {}", "");
    put(store, "/z", "1");
    pump();
    RUNS("return #log", "0");
    /* The node stops: told, and closing later is nothing. */
    RUNS("w = s.watch('', 8, see)", "");
    store_close(store);
    store = NULL;
    RUNS("w:close() return table.concat(log, ' ')", "closed");
}

static void snapshots(void **state)
{
    (void)state;
    put(store, "/a", "1");
    put(store, "/b", "two");
    RUNS("n = 0 s.snapshot(function(err, bytes) n = n + 1 got = bytes end)", "");
    RUNS("local r, err = s.snapshot(print) return tostring(r) .. err.code", "nilbusy");
    RUNS("return n", "0");
    uv_run(&loop, UV_RUN_DEFAULT);
    RUNS("return n .. math.type(#got)", "1integer");
    RUNS("local t = {} local ok = s.snapshot_list(got, function(k, v) t[#t + 1] = k .. '=' .. v end) "
         "return tostring(ok) .. ' ' .. table.concat(t, ' ')",
        "true /a=1 /b=two");
    RUNS("local r, err = s.snapshot_list('no snapshot', function() end) return tostring(r) .. err.code",
        "nilcorrupt");
    RUNS("local ok, err = pcall(s.snapshot_list, got, function(k) error('at ' .. k, 0) end) return err",
        "at /a");
    /* The next one works, and the store may be closed under it, and the state too. */
    RUNS("s.snapshot(function(err) n = n + 1 got = err and err.code end)", "");
    store_close(store);
    store = NULL;
    uv_run(&loop, UV_RUN_DEFAULT);
    const char *got = run("return n .. tostring(got)");
    assert_true(strcmp(got, "2canceled") == 0 || strcmp(got, "2nil") == 0);
    struct store_config cfg = {.dir = in_folder(state, "state"), .quota = 8 << 20};
    store = open_store(&cfg);
    RUNS("s.snapshot(function() error('fired into a closed state') end)", "");
}

static void txns(void **state)
{
    (void)state;
    put(store, "/a", "1");
    RUNS("return check {}", "id:0 since:0");
    RUNS("return check {compare = {{key = 'a', value = 'v'}, {key = 'b', create_revision = 3}, "
         "{key = 'c', mod_revision = 4}, {key = 'd', absent = true}, {prefix = '/p', revision = 5}, "
         "{prefix = '', count = 0}}, ops = {{put = 'k', value = 'w\\0w'}, {delete = 'l'}}, "
         "id = ('x'):rep(16)}",
        "1:a=0/v 2:b=3/ 3:c=4/ 4:d=0/ 5:/p=5/ 6:=0/ put:k=w");
    RUNS("return check {id = ('x'):rep(16)}", "id:1 since:1");
    RUNS("return check {id = ('x'):rep(16), since = 77}", "id:1 since:77");
    RUNS("return check {id = ('x'):rep(16), seq = 3}", "id:1 since:1");
    RUNS("local t = {} for i = 1, 128 do t[i] = {delete = 'x'} end return #check {ops = t}", "1292");
    static const char *const misuse[] = {"check()", "check('x')", "check {ops = 1}", "check {ops = {1}}",
        "check {ops = {{}}}", "check {ops = {{put = 'k'}}}", "check {ops = {{put = 'k', value = 1}}}",
        "check {ops = {{put = 1, value = 'v'}}}", "check {compare = {{}}}", "check {compare = {{key = 'k'}}}",
        "check {compare = {{prefix = 'k'}}}", "check {compare = {{key = 'k', mod_revision = 1.5}}}",
        "check {compare = {{key = 'k', mod_revision = -1}}}", "check {compare = {{key = 'k', value = {}}}}",
        "check {id = 'short'}", "check {id = ('x'):rep(16), since = 'x'}",
        "check {id = ('x'):rep(16), seq = -1}",
        "local t = {} for i = 1, 129 do t[i] = {delete = 'x'} end check {ops = t}",
        "local t = {} for i = 1, 193 do t[i] = {key = 'x', absent = true} end check {compare = t}"};
    for (unsigned i = 0; i < sizeof misuse / sizeof *misuse; i++) {
        if (strncmp(run(misuse[i]), "raised: ", 8) != 0) {
            fail_msg("%s does not raise", misuse[i]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(not_started, set_up, tear_down),
        cmocka_unit_test_setup_teardown(reading, set_up, tear_down),
        cmocka_unit_test_setup_teardown(watching, set_up, tear_down),
        cmocka_unit_test_setup_teardown(snapshots, set_up, tear_down),
        cmocka_unit_test_setup_teardown(txns, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
