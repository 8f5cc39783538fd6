/* require "sym.node": the node of this daemon, as lua/symphony/cluster starts and stops it.
 *
 * start{node_id, raft_id, raft_address, raft_moves, cluster_id, cert, key, ca, starts, bootstrap, raft_port, remote_port}
 *     -> {raft_port, remote_port} | nil, err; ports that are not given are the options'; without a raft_id it is a
 *     worker: no raft, no store, and nothing of theirs need be given
 * stop(cb) -> true | nil, err; back to idle: cb(nil) from the loop, also if it was being stopped already
 * started() -> bool: until it is wholly stopped
 * set_tls(cert, key, ca) -> true | nil, err
 * recover{raft_id, raft_address} -> true | nil, err; only while stopped: makes this member the only voter
 * drop_peer(cn): closes the remote connections of that certificate name
 * on_request(fn(err, req)), on_change(fn(err)), on_removed(fn(err, code, reason)), on_quit(fn(err)): err is nil
 * quit(code): orderly end of the daemon; the first time, on_quit's function is called instead, if there is one, and has
 *     a second to say it again
 * kv_policies(revision or nil): nobody decides on changes of users' keys while no policy has been set after @revision;
 *     nil: the routes in Lua do
 * kv_policies(nil, revision, count, name): the same, but the sandbox holds all policies of this revision and number, and
 *     on the leader it is asked without Lua, which only hears of what is not simply allowed. @name: of this manager
 * on_kv_failed(fn(err, policy, message, key)): a policy that was asked so has not decided in time, and the change of that
 *     key is refused
 * kv_heard(policy): how often it has been asked so, and has not failed
 * quorum_hint: a text, what to do without a quorum
 */
#include "base/err.h"
#include "daemon/api.h"
#include "daemon/daemon.h"
#include "lua/bind_crypto.h"

#include <stdlib.h>
#include <string.h>

static struct daemon *daemon_of(lua_State *L)
{
    return vm_daemon(L);
}

static const char *field(lua_State *L, const char *name)
{
    if (lua_getfield(L, 1, name) != LUA_TSTRING) {
        luaL_error(L, "field '%s' must be a string", name);
    }
    /* The table keeps it alive until the call is over. */
    const char *text = lua_tostring(L, -1);
    lua_pop(L, 1);
    return text;
}

static lua_Integer number(lua_State *L, const char *name, lua_Integer fallback)
{
    lua_getfield(L, 1, name);
    lua_Integer v = luaL_optinteger(L, -1, fallback);
    lua_pop(L, 1);
    return v;
}

static uint16_t port_field(lua_State *L, const char *name, uint16_t fallback)
{
    lua_Integer v = number(L, name, fallback);
    luaL_argcheck(L, v >= 0 && v <= 65535, 1, name);
    return (uint16_t)v;
}

static int l_start(lua_State *L)
{
    struct daemon *d = daemon_of(L);
    luaL_checktype(L, 1, LUA_TTABLE);
    struct node_config cfg = {
        .raft_id = (uint64_t)number(L, "raft_id", 0),
        .raft_moves = (uint64_t)number(L, "raft_moves", 0),
        .starts = (uint64_t)number(L, "starts", 0),
        .cert = field(L, "cert"),
        .ca = field(L, "ca"),
    };
    if (cfg.raft_id > 0) {
        cfg.raft_address = field(L, "raft_address");
        cfg.cluster_id = field(L, "cluster_id");
    }
    lua_getfield(L, 1, "bootstrap");
    cfg.bootstrap = lua_toboolean(L, -1);
    lua_getfield(L, 1, "key");
    cfg.key = bind_crypto_check_key(L, -1);
    d->opt.raft_port = port_field(L, "raft_port", d->opt.raft_port);
    d->opt.remote_port = port_field(L, "remote_port", d->opt.remote_port);
    lua_createtable(L, 0, 2);
    int rv = daemon_start(d, &cfg);
    if (rv != 0) {
        return vm_fail(L, rv);
    }
    if (d->raft != NULL) {
        lua_pushinteger(L, peers_port(rnode_peers(d->raft)));
        lua_setfield(L, -2, "raft_port");
    }
    lua_pushinteger(L, d->opt.remote_port);
    lua_setfield(L, -2, "remote_port");
    return 1;
}

static void stopped(void *arg)
{
    struct vm_cb *cb = arg;
    vm_cb_fire(cb, 0, NULL, NULL);
    free(cb);
}

static int l_stop(lua_State *L)
{
    struct vm_cb taken;
    vm_cb_take(L, 1, &taken);
    struct vm_cb *cb = malloc(sizeof *cb);
    if (cb == NULL) {
        vm_cb_drop(&taken);
        return vm_fail(L, err_setf(SYM_ENOMEM, "out of memory"));
    }
    *cb = taken;
    int rv = daemon_stop(daemon_of(L), stopped, cb);
    if (rv != 0) {
        vm_cb_drop(cb);
        free(cb);
        return vm_fail(L, rv);
    }
    lua_pushboolean(L, 1);
    return 1;
}

static int l_started(lua_State *L)
{
    const struct daemon *d = daemon_of(L);
    lua_pushboolean(L, d->tls != NULL);
    return 1;
}

static int l_set_tls(lua_State *L)
{
    const char *cert = luaL_checkstring(L, 1);
    const struct key *key = bind_crypto_check_key(L, 2);
    const char *ca = luaL_checkstring(L, 3);
    int rv = daemon_set_tls(daemon_of(L), cert, key, ca);
    if (rv != 0) {
        return vm_fail(L, rv);
    }
    lua_pushboolean(L, 1);
    return 1;
}

static int l_recover(lua_State *L)
{
    struct daemon *d = daemon_of(L);
    luaL_checktype(L, 1, LUA_TTABLE);
    uint64_t id = (uint64_t)number(L, "raft_id", 0);
    const char *address = field(L, "raft_address");
    if (d->tls != NULL) {
        return vm_fail(L, err_setf(SYM_EBUSY, "the node must be stopped first"));
    }
    int rv = daemon_recover(d, id, address);
    if (rv != 0) {
        return vm_fail(L, rv);
    }
    lua_pushboolean(L, 1);
    return 1;
}

static int l_drop_peer(lua_State *L)
{
    struct daemon *d = daemon_of(L);
    const char *cn = luaL_checkstring(L, 1);
    if (d->remote != NULL) {
        http_server_drop_cn(d->remote, cn);
    }
    return 0;
}

static int keep(lua_State *L, struct vm_cb *slot)
{
    struct vm_cb cb;
    vm_cb_take(L, 1, &cb);
    vm_cb_drop(slot);
    *slot = cb;
    return 0;
}

static int l_on_request(lua_State *L)
{
    return keep(L, &daemon_of(L)->on_request);
}

static int l_on_change(lua_State *L)
{
    return keep(L, &daemon_of(L)->on_change);
}

static int l_on_removed(lua_State *L)
{
    return keep(L, &daemon_of(L)->on_removed);
}

static int l_on_kv_failed(lua_State *L)
{
    return keep(L, &daemon_of(L)->on_kv_failed);
}

static int l_on_quit(lua_State *L)
{
    return keep(L, &daemon_of(L)->on_quit);
}

static int l_quit(lua_State *L)
{
    daemon_quit(daemon_of(L), (int)luaL_optinteger(L, 1, 0));
    return 0;
}

static int l_kv_policies(lua_State *L)
{
    bool lua_decides = lua_isnoneornil(L, 1);
    lua_Integer revision = luaL_optinteger(L, 1, 0);
    luaL_argcheck(L, revision >= 0, 1, "a revision from 0");
    api_policies(daemon_of(L)->api, lua_decides, (uint64_t)revision);
    if (lua_decides && !lua_isnoneornil(L, 2)) {
        lua_Integer set = luaL_checkinteger(L, 2), count = luaL_checkinteger(L, 3);
        luaL_argcheck(L, set >= 0 && count >= 0, 2, "a revision and a count");
        api_policies_loaded(daemon_of(L)->api, (uint64_t)set, (uint64_t)count, luaL_optstring(L, 4, ""));
    }
    return 0;
}

static int l_kv_heard(lua_State *L)
{
    lua_pushinteger(L, (lua_Integer)api_heard(daemon_of(L)->api, luaL_checkstring(L, 1)));
    return 1;
}

int luaopen_sym_node(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"start", l_start},
        {"stop", l_stop},
        {"started", l_started},
        {"set_tls", l_set_tls},
        {"recover", l_recover},
        {"drop_peer", l_drop_peer},
        {"on_request", l_on_request},
        {"on_change", l_on_change},
        {"on_removed", l_on_removed},
        {"on_kv_failed", l_on_kv_failed},
        {"on_quit", l_on_quit},
        {"quit", l_quit},
        {"kv_policies", l_kv_policies},
        {"kv_heard", l_kv_heard},
        {NULL, NULL},
    };
    luaL_newlib(L, functions);
    lua_pushliteral(L, API_QUORUM_HINT);
    lua_setfield(L, -2, "quorum_hint");
    return 1;
}
