/* sym.http as Lua sees it: its client against its own request objects, in one loop. */
#include "net_support.h"

#include "base/log.h"
#include "lua/bind_http.h"
#include "lua/vm.h"

static lua_State *L;
static struct http_server *server;
static struct vm_cb handler;
static bool finished;
static unsigned served;
static struct tls_ctx *tls;
static long allocations_left = -1;

/* --- what the scripts use */

static int push_req(lua_State *l, void *arg)
{
    return bind_http_push_req(l, arg);
}

static void handle(struct http_req *req, void *arg)
{
    (void)arg;
    served++;
    vm_cb_call(&handler, 0, push_req, req);
}

static int l_serve(lua_State *l)
{
    struct vm_cb cb;
    vm_cb_take(l, 1, &cb);
    vm_cb_drop(&handler);
    handler = cb;
    return 0;
}

static int l_finish(lua_State *l)
{
    (void)l;
    finished = true;
    return 0;
}

static void set_text(const char *name, const char *text)
{
    lua_pushstring(L, text);
    lua_setglobal(L, name);
}

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

static const char prelude[] =
    "http, crypto = require 'sym.http', require 'sym.crypto'\n"
    "client_key = crypto.key_load(client_key_pem)\n"
    /* Calls fn(err, answer, ...) as http.request does, with this server as the default. */
    "function ask(opts, cb)\n"
    "  opts.host, opts.port = opts.host or not opts.unix and '127.0.0.1' or nil, opts.port or port\n"
    "  return http.request(opts, cb)\n"
    "end\n"
    "function same(got, want)\n"
    "  if got ~= want then error(('%s instead of %s'):format(tostring(got), tostring(want)), 2) end\n"
    "end\n"
    "function later(n, fn) local uv = require 'luv' local t = uv.new_timer()\n"
    "  t:start(n, 0, function() t:close() fn() end) end\n";

static int begin(void **state)
{
    static const luaL_Reg modules[] = {
        {"sym.http", luaopen_sym_http}, {"sym.crypto", luaopen_sym_crypto}, {NULL, NULL}};
    static const char *const no_folders[] = {NULL};
    struct vm_config cfg = {.loop = &loop, .lua_paths = no_folders, .modules = modules};
    uint16_t port, tls_port;
    struct cert_info info;
    struct buf pem = {0};
    log_setup(LOG_ERROR + 1, false);
    finished = false;
    served = 0;
    assert_int_equal(loop_begin(state), 0);
    assert_int_equal(vm_new(&cfg, &L), 0);
    lua_setallocf(L, allocate, NULL);
    assert_int_equal(http_server_new(&loop, NULL, handle, NULL, &server), 0);
    assert_int_equal(http_server_listen_tcp(server, "127.0.0.1", 0, NULL, &port), 0);
    assert_int_equal(
        tls_ctx_new(TLS_SERVER | TLS_PEER_OPTIONAL, server_chain, server_id.key, ca.cert, &tls), 0);
    assert_int_equal(http_server_listen_tcp(server, "127.0.0.1", 0, tls, &tls_port), 0);
    lua_pushinteger(L, port);
    lua_setglobal(L, "port");
    lua_pushinteger(L, tls_port);
    lua_setglobal(L, "tls_port");
    set_text("ca_pem", ca.cert);
    set_text("client_pem", client_id.cert);
    assert_int_equal(key_to_pem(client_id.key, &pem), 0);
    assert_int_equal(buf_append(&pem, "", 1), 0);
    set_text("client_key_pem", (char *)buf_data(&pem));
    buf_free(&pem);
    assert_int_equal(cert_info(ca.cert, strlen(ca.cert), &info), 0);
    lua_pushlstring(L, (char *)info.digest, sizeof info.digest);
    lua_setglobal(L, "pin");
    assert_int_equal(cert_info(server_id.cert, strlen(server_id.cert), &info), 0);
    lua_pushlstring(L, (char *)info.digest, sizeof info.digest);
    lua_setglobal(L, "leaf_pin");
    lua_pushcfunction(L, l_serve);
    lua_setglobal(L, "serve");
    lua_pushcfunction(L, l_finish);
    lua_setglobal(L, "finish");
    assert_int_equal(luaL_loadstring(L, prelude), LUA_OK);
    assert_int_equal(vm_call(L, 0, 0), 0);
    return 0;
}

static int end(void **state)
{
    vm_cb_drop(&handler);
    vm_close(L);
    http_server_close(server, 0, NULL, NULL);
    tls_ctx_free(tls);
    return loop_end(state);
}

/* Runs @code, and then the loop until it has called finish. */
static void script(const char *code)
{
    finished = false;
    if (luaL_loadstring(L, code) != LUA_OK) {
        print_error("%s\n", lua_tostring(L, -1));
        fail();
    }
    if (vm_call(L, 0, 0) != 0) {
        print_error("%s\n", err_msg());
        fail();
    }
    run_until(finished);
    lua_getglobal(L, "failed");
    if (!lua_isnil(L, -1)) {
        print_error("%s\n", lua_tostring(L, -1));
        fail();
    }
    lua_pop(L, 1);
    assert_int_equal(lua_gettop(L), 0);
}

/* Errors in a callback are only logged: a test's callbacks go through here. */
#define T                                                                                                    \
    "local function t(fn) return function(...) local ok, e = pcall(fn, ...) "                                \
    "if not ok then failed = tostring(e) finish() end end end\n"

/* --- tests */

static void fields(void **state)
{
    (void)state;
    script(
        T "serve(t(function(_, req)\n"
          "  same(req.method, 'PUT') same(req.path, '/a b/ü') same(req.query, 'x=1%202&y') same(req.body, "
          "'bo\\0dy')\n"
          "  same(req.peer.addr, '127.0.0.1') same(req.peer.unix, nil) same(req.peer.tls, nil)\n"
          "  same(math.type(req.peer.port), 'integer')\n"
          "  same(req:header('X-One'), '1') same(req:header('x-two'), nil) same(req:header(('h'):rep(500)), "
          "nil)\n"
          "  same(req:param('x'), '1 2') same(req:param('y'), '') same(req:param('z'), nil)\n"
          "  same(req.nonsense, nil)\n"
          "  same(req:respond(201, 'an\\0swer', 'text/plain', {['X-A'] = 'b', ['X-N'] = 5}), true)\n"
          "  same(pcall(req.respond, req, 200, ''), false)\n"
          "  same(pcall(req.start, req, 200), false)\n"
          "  same(select(2, req:write('x')).code, 'closed')\n"
          "  kept = req\n"
          "end))\n"
          "ask({method = 'PUT', path = '/a%20b/%C3%BC?x=1%202&y', body = 'bo\\0dy', headers = {['x-one'] = "
          "'1'}}, t(function(err, "
          "answer)\n"
          "  same(err, nil) same(answer.status, 201) same(answer.body, 'an\\0swer') same(answer.peer, nil)\n"
          /* What was copied outlives the request; what needs it says that it is gone. */
          "  same(kept.method, 'PUT') same(kept.body, 'bo\\0dy')\n"
          "  for _, name in ipairs {'respond', 'start', 'finish', 'abort'} do\n"
          "    local v, e = kept[name](kept, 200) same(v, nil) same(e.code, 'closed')\n"
          "  end\n"
          "  same(select(2, kept:header('x-one')).code, 'closed') same(select(2, kept:param('x')).code, "
          "'closed')\n"
          "  same(select(2, kept:on_gone(print)).code, 'closed') same(select(2, kept:write('x')).code, "
          "'closed')\n"
          "  finish()\n"
          "end))");
    assert_int_equal(served, 1);
}

static void bad_param(void **state)
{
    (void)state;
    script(T "serve(t(function(_, req) local v, e = req:param('x') same(v, nil) same(e.code, 'invalid') "
             "req:respond(204) end))\n"
             "ask({path = '/?x=%zz'}, t(function(err, answer) same(err, nil) same(answer.status, 204) "
             "finish() end))");
}

static void misuse(void **state)
{
    (void)state;
    script(T
        "serve(t(function(_, req)\n"
        "  local function bad(name, ...) if pcall(req[name], req, ...) then error(name .. ' was taken', 2) "
        "end end\n"
        "  bad('respond') bad('respond', 100) bad('respond', 600) bad('respond', 200, {}) bad('respond', "
        "200, '', 'a\\r\\nb: c')\n"
        "  bad('respond', 200, '', nil, 'no colon') bad('respond', 200, '', nil, {['Content-Length'] = "
        "'5'})\n"
        "  bad('respond', 200, '', nil, {['x y'] = '5'}) bad('respond', 200, '', nil, {x = 'a\\r\\nb: c'})\n"
        "  bad('write', 'x') bad('finish') bad('write') bad('start', 204) bad('on_gone') bad('header') "
        "bad('param')\n"
        "  req:start(200, 'text/plain')\n"
        "  bad('write', 'x', 5) bad('write', {}) bad('respond', 200) bad('start', 200)\n"
        "  req:write('ok') req:finish()\n"
        "  same(select(2, req:finish()).code, 'closed')\n"
        "end))\n"
        "local function bad(opts, cb) if pcall(http.request, opts, cb) then error('was taken', 2) end end\n"
        "local fn = function() end\n"
        "bad(nil, fn) bad({}, fn) bad({host = 'x', port = 1}, nil) bad({host = 'x', unix = 'y'}, fn) "
        "bad({host = 5}, fn)\n"
        "bad({host = 'x', port = 70000}, fn) bad({host = 'x', port = 'a'}, fn) bad({host = 'x', port = 1, "
        "path = 'x y'}, fn)\n"
        "bad({host = 'x', port = 1, method = 'G T'}, fn) bad({host = 'x', port = 1, body = {}}, fn)\n"
        "bad({host = 'x', port = 1, headers = {host = 'y'}}, fn) bad({host = 'x', port = 1, headers = {a = "
        "'b\\nc'}}, fn)\n"
        "bad({host = 'x', port = 1, timeout_ms = -1}, fn) bad({host = 'x', port = 1, on_data = 5}, fn)\n"
        "bad({host = 'x', port = 1, tls = {}}, fn) bad({host = 'x', port = 1, tls = {pin = 'short'}}, fn)\n"
        "bad({host = 'x', port = 1, tls = {ca = ca_pem, cert = client_pem, key = 'text'}}, fn)\n"
        "bad({host = 'x', port = 1, role = 'manager'}, fn) bad({host = 'a\\0b', port = 1}, fn)\n"
        "ask({}, t(function(err, answer) same(err, nil) same(answer.body, 'ok') finish() end))");
}

/* A write's callback comes later, once for each, and the pieces arrive in order. */
static void streaming(void **state)
{
    (void)state;
    script(T "local pieces, inside, calls = 300, false, 0\n"
             "serve(t(function(_, req)\n"
             "  req:start(200, 'text/plain')\n"
             "  local i = 0\n"
             "  local step\n"
             "  step = t(function(err)\n"
             "    same(err, nil) same(inside, false)\n"
             "    calls = calls + 1\n"
             "    i = i + 1\n"
             "    if i > pieces then req:finish() return end\n"
             "    inside = true\n"
             "    same(req:write(('%05d'):format(i) .. ('x'):rep(20000), step), true)\n"
             "    inside = false\n"
             "  end)\n"
             "  step(nil)\n"
             "end))\n"
             "local seen, heads = {}, 0\n"
             "ask({on_head = t(function(status) same(status, 200) heads = heads + 1 end),\n"
             "  on_data = function(chunk) seen[#seen + 1] = chunk end}, t(function(err, answer)\n"
             "  same(err, nil) same(answer.body, nil) same(heads, 1) same(calls, pieces + 1)\n"
             "  local all = table.concat(seen) same(#all, pieces * 20005)\n"
             "  for i = 1, pieces do same(all:sub((i - 1) * 20005 + 1, (i - 1) * 20005 + 5), "
             "('%05d'):format(i)) end\n"
             "  finish()\n"
             "end))");
}

static void peer_leaves(void **state)
{
    (void)state;
    script(T "local handle, order = nil, {}\n"
             "serve(t(function(_, req)\n"
             "  req:on_gone(function() order[#order + 1] = 'gone' end)\n"
             "  req:on_gone(function() order[#order + 1] = 'again' end)\n"
             "  req:start(200, 'text/plain')\n"
             "  local function flood()\n"
             "    req:write(('x'):rep(100000), function(err)\n"
             "      if err then order[#order + 1] = err.code else flood() end end)\n"
             "  end\n"
             "  flood()\n"
             "end))\n"
             "handle = ask({on_data = function() handle:cancel() end}, t(function(err)\n"
             "  same(err.code, 'canceled') handle:cancel()\n"
             "  local function look() if #order < 3 then return later(5, look) end\n"
             "    same(table.concat(order, ' '), 'closed gone again') finish() end\n"
             "  look()\n"
             "end))");
}

/* Lua forgets a request: its peer gets an answer, or sees that there is no more. */
static void forgotten(void **state)
{
    (void)state;
    script(T "local function sweep() collectgarbage() later(5, sweep) end\n"
             "later(5, sweep)\n"
             "serve(function() end)\n"
             "ask({}, t(function(err, answer) same(err, nil) same(answer.status, 500)\n"
             "serve(function(_, req) req:start(200) req:write('x') end)\n"
             "ask({}, t(function(err) same(err.code, 'closed')\n"
             "serve(function() error('on purpose') end)\n"
             "ask({}, t(function(err, answer) same(err, nil) same(answer.status, 500) sweep = function() end "
             "finish()\n"
             "end)) end)) end))");
}

static void over_tls(void **state)
{
    (void)state;
    script(
        T "serve(t(function(_, req)\n"
          "  local p = req.peer\n"
          "  if p.cn then same(p.expires - os.time() > 0, true) same(math.type(p.expires), 'integer') end\n"
          "  req:respond(200, ('%s %s %s %s %s'):format(p.tls, p.cn, p.ou, p.expired, p.fingerprint))\n"
          "end))\n"
          "local full = {ca = ca_pem, cert = client_pem, key = client_key}\n"
          "ask({port = tls_port, tls = full, role = 'manager'}, t(function(err, answer)\n"
          "  same(err, nil)\n"
          "  same(answer.body, 'true client-node worker false ' .. client_key:fingerprint())\n"
          "  same(answer.peer.cn, 'server-node') same(answer.peer.ou, 'manager') same(answer.peer.is_server, "
          "true)\n"
          "  same(answer.peer.expired, false) same(answer.ca:gsub('%s', ''), ca_pem:gsub('%s', ''))\n"
          "ask({port = tls_port, tls = {pin = pin}, role = 'manager'}, t(function(err, answer)\n"
          "  same(err, nil) same(answer.body, 'true nil nil nil nil') same(answer.peer.cn, 'server-node')\n"
          "  same(crypto.cert_info(answer.ca).digest, crypto.hex(pin))\n"
          "ask({port = tls_port, tls = {trust_any = true}}, t(function(err, answer)\n"
          "  same(err, nil) same(crypto.cert_info(answer.ca).digest, crypto.hex(pin))\n"
          "  finish()\n"
          "end)) end)) end))");
    assert_int_equal(served, 3);
}

/* A context is kept from one call to the next only where everything is the same. */
static void each_call_has_its_own_identity_and_trust(void **state)
{
    (void)state;
    script(T "serve(t(function(_, req) req:respond(200, tostring(req.peer.cn)) end))\n"
             "local other_key = crypto.key_generate()\n"
             "local other = crypto.ca_new(other_key, 'other', 0, 4000000000)\n"
             "local full = {ca = ca_pem, cert = client_pem, key = client_key}\n"
             "local astray = {ca = other, cert = client_pem, key = client_key}\n"
             "local foreign = {ca = ca_pem, cert = other, key = other_key}\n"
             "local cases = {\n"
             "  {full, 'client-node'}, {full, 'client-node'}, {astray, nil, 'unauthenticated'},\n"
             "  {full, 'client-node'}, {foreign, nil, 'unauthenticated'}, {{ca = ca_pem}, 'nil'},\n"
             "  {full, 'client-node'}, {astray, nil, 'unauthenticated'}, {astray, nil, 'unauthenticated'},\n"
             "  {full, 'client-node'},\n"
             "}\n"
             "local function go(i)\n"
             "  if not cases[i] then return finish() end\n"
             "  ask({port = tls_port, tls = cases[i][1]}, t(function(err, answer)\n"
             "    same(err and err.code, cases[i][3]) same(answer and answer.body, cases[i][2])\n"
             "    go(i + 1)\n"
             "  end))\n"
             "end\n"
             "go(1)");
}

static void wrong_peer(void **state)
{
    (void)state;
    script(T "serve(function(_, req) req:respond(200) end)\n"
             "local key = crypto.key_generate()\n"
             "local other = crypto.ca_new(key, 'other', 0, 4000000000)\n"
             "local cases = {\n"
             "  {{port = tls_port, tls = {pin = ('x'):rep(32)}, role = 'manager'}, 'unauthenticated'},\n"
             /* The pin must be that of a CA: the leaf's own does not do. */
             "  {{port = tls_port, tls = {pin = leaf_pin}}, 'unauthenticated'},\n"
             "  {{port = tls_port, tls = {ca = ca_pem}, role = 'worker'}, 'unauthenticated'},\n"
             "  {{port = tls_port, tls = {trust_any = true}, role = 'operator'}, 'unauthenticated'},\n"
             "  {{port = tls_port, tls = {ca = other}}, 'unauthenticated'},\n"
             "  {{port = tls_port, tls = {ca = 'nonsense'}}, 'invalid'},\n"
             "  {{port = port, tls = {ca = ca_pem}}, 'protocol'},\n"
             "  {{port = 1}, 'unreachable'},\n"
             "  {{port = 0}, 'invalid'},\n"
             "  {{host = 'no..such', port = 1}, 'not_found'},\n"
             "  {{unix = '/nonexistent/sock'}, 'unreachable'},\n"
             "}\n"
             "local i, go = 0, nil\n"
             "go = function()\n"
             "  i = i + 1\n"
             "  if not cases[i] then return finish() end\n"
             "  local inside = true\n"
             "  ask(cases[i][1], t(function(err, answer)\n"
             "    same(inside, false) same(answer, nil)\n"
             "    if err.code ~= cases[i][2] then error(i .. ': ' .. err.code .. ': ' .. err.message) end\n"
             "    go()\n"
             "  end))\n"
             "  inside = false\n"
             "end\n"
             "go()");
    assert_int_equal(served, 0);
}

static void expired_peer(void **state)
{
    (void)state;
    struct ident old;
    char *chain;
    struct tls_ctx *ctx;
    make_ident(&ca, "old-node", "manager", true, -60, &old);
    assert_true(asprintf(&chain, "%s%s", old.cert, ca.cert) > 0);
    assert_int_equal(tls_ctx_new(TLS_SERVER | TLS_PEER_OPTIONAL, chain, old.key, ca.cert, &ctx), 0);
    http_server_set_tls(server, ctx);
    script(T "serve(function(_, req) req:respond(200) end)\n"
             "ask({port = tls_port, tls = {ca = ca_pem}, role = 'manager'}, t(function(err)\n"
             "  same(err.code, 'expired')\n"
             "ask({port = tls_port, tls = {pin = pin}}, t(function(err)\n"
             "  same(err.code, 'expired')\n"
             "ask({port = tls_port, tls = {ca = ca_pem, expired_ok = true}, role = 'manager'}, "
             "t(function(err, answer)\n"
             "  same(err, nil) same(answer.peer.expired, true)\n"
             "  finish()\n"
             "end)) end)) end))");
    assert_int_equal(served, 1);
    tls_ctx_free(ctx);
    ident_free(&old);
    free(chain);
}

/* While one CA takes the place of another: who pins the old one believes a leaf of the new one, for which the old one
 * vouches, and no other's. */
static void vouched_for(void **state)
{
    (void)state;
    struct ident new_ca, stranger, node;
    struct buf b = {0};
    char *bridge, *false_bridge, *chain;
    struct tls_ctx *ctx;
    make_ca(&new_ca);
    make_ca(&stranger);
    make_ident(&new_ca, "node", "manager", true, 3600, &node);
    assert_int_equal(
        cert_cross_sign(ca.key, ca.cert, strlen(ca.cert), new_ca.cert, strlen(new_ca.cert), &b), 0);
    bridge = text_of(&b);
    assert_int_equal(cert_cross_sign(stranger.key, stranger.cert, strlen(stranger.cert), new_ca.cert,
                         strlen(new_ca.cert), &b),
        0);
    false_bridge = text_of(&b);
    set_text("new_ca", new_ca.cert);
    assert_true(asprintf(&chain, "%s%s%s%s", node.cert, bridge, ca.cert, new_ca.cert) > 0);
    assert_int_equal(tls_ctx_new(TLS_SERVER | TLS_PEER_OPTIONAL, chain, node.key, ca.cert, &ctx), 0);
    http_server_set_tls(server, ctx);
    script(T "serve(function(_, req) req:respond(200) end)\n"
             "local new = crypto.cert_info(new_ca).digest\n"
             "ask({port = tls_port, tls = {pin = pin}, role = 'manager'}, t(function(err, answer)\n"
             "  same(err, nil) same(crypto.cert_info(answer.ca).digest, crypto.hex(pin))\n"
             "ask({port = tls_port, tls = {pin = crypto.unhex(new)}}, t(function(err)\n"
             "  same(err, nil)\n"
             /* What is seen without a pin is the CA itself, not what another says of it. */
             "ask({port = tls_port, tls = {trust_any = true}}, t(function(err, answer)\n"
             "  same(err, nil) same(crypto.cert_info(answer.ca).digest, new)\n"
             /* Who trusts both is not led astray by what stands between them. */
             "ask({port = tls_port, tls = {ca = ca_pem .. new_ca}}, t(function(err)\n"
             "  same(err, nil)\n"
             "ask({port = tls_port, tls = {ca = new_ca}}, t(function(err)\n"
             "  same(err, nil)\n"
             "ask({port = tls_port, tls = {ca = ca_pem}}, t(function(err)\n"
             "  same(err.code, 'unauthenticated')\n"
             "  finish()\n"
             "end)) end)) end)) end)) end)) end))");
    assert_int_equal(served, 5);
    tls_ctx_free(ctx);
    free(chain);
    assert_true(asprintf(&chain, "%s%s%s%s", node.cert, false_bridge, ca.cert, new_ca.cert) > 0);
    assert_int_equal(tls_ctx_new(TLS_SERVER | TLS_PEER_OPTIONAL, chain, node.key, ca.cert, &ctx), 0);
    http_server_set_tls(server, ctx);
    finished = false;
    script(T "ask({port = tls_port, tls = {pin = pin}}, t(function(err)\n"
             "  same(err.code, 'unauthenticated') finish()\n"
             "end))");
    assert_int_equal(served, 5);
    tls_ctx_free(ctx);
    free(chain);
    free(bridge);
    free(false_bridge);
    ident_free(&node);
    ident_free(&new_ca);
    ident_free(&stranger);
}

static void raising_callbacks(void **state)
{
    (void)state;
    script(T "serve(function(_, req) req:start(200) req:write('x') end)\n"
             "ask({on_data = function() error('on purpose') end}, t(function(err)\n"
             "  same(err.code, 'canceled')\n"
             "  ask({on_head = function() error('on purpose') end}, t(function(e)\n"
             "    same(e.code, 'canceled')\n"
             "    ask({max_body = 0, idle_ms = 20}, function() finish() error('on purpose') end)\n"
             "  end))\n"
             "end))");
}

/* Calls under way, one that could not start, a request being served, when the state is closed. */
static void closed_midway(void **state)
{
    (void)state;
    script(T "serve(function(_, req) keep = req req:on_gone(function() error('called') end) req:start(200)\n"
             "  req:write('x', function() end) finish() end)\n"
             "handle = ask({on_data = function() end}, function() error('called') end)\n"
             "ask({port = 0}, function() end)\n"
             "ask({port = tls_port, tls = {ca = ca_pem}}, function() error('called') end)");
    assert_int_equal(luaL_loadstring(L, "ask({port = 0}, function() error('called') end)"), LUA_OK);
    assert_int_equal(vm_call(L, 0, 0), 0);
}

/* Wherever memory ends while a request is handed over, it is answered, and nothing is lost. */
static void no_memory(void **state)
{
    (void)state;
    script(T "serve(function(_, req) req:respond(200, 'ok') end) finish()");
    bool worked = false;
    for (long n = 0; n < 200 && !worked; n++) {
        struct seen s = {0};
        int fd;
        lua_getglobal(L, "port");
        fd = raw_connect((uint16_t)lua_tointeger(L, -1));
        lua_pop(L, 1);
        unsigned before = served;
        raw_text(fd, "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n");
        allocations_left = n;
        (void)!send(fd, "ab", 2, 0);
        run_until(served > before);
        allocations_left = -1;
        lua_gc(L, LUA_GCCOLLECT); /* a handler that failed has left the object behind */
        raw_until(fd, &s, NULL);
        assert_int_equal(served, before + 1);
        worked = s.text != NULL && strstr(s.text, "200 OK") != NULL;
        assert_true(worked || (s.text != NULL && strstr(s.text, " 500 ") != NULL));
        seen_free(&s);
        close(fd);
        assert_int_equal(lua_gettop(L), 0);
        lua_gc(L, LUA_GCCOLLECT);
    }
    assert_true(worked);

    /* And a call. */
    for (long n = 0; n < 200; n++) {
        assert_int_equal(
            luaL_loadstring(L,
                "finish() count = (count or 0) + 1\n"
                "ask({port = 0, headers = {a = 'b'}, tls = {ca = ca_pem, cert = client_pem, key = "
                "client_key}}, print)"),
            LUA_OK);
        allocations_left = n;
        (void)vm_call(L, 0, 0);
        allocations_left = -1;
        lua_settop(L, 0);
        lua_gc(L, LUA_GCCOLLECT);
    }
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, begin, end)
    const struct CMUnitTest tests[] = {
        TEST(fields),
        TEST(bad_param),
        TEST(misuse),
        TEST(streaming),
        TEST(peer_leaves),
        TEST(forgotten),
        TEST(over_tls),
        TEST(each_call_has_its_own_identity_and_trust),
        TEST(wrong_peer),
        TEST(expired_peer),
        TEST(vouched_for),
        TEST(raising_callbacks),
        TEST(closed_midway),
        TEST(no_memory),
    };
    return cmocka_run_group_tests(tests, group_begin, group_end);
}
