/* sym.raft: this node's membership of the raft cluster. Nothing here waits; while the node is not started
 * every function answers nil, {code = "closed"}. */
#include "base/err.h"
#include "lua/bind_store.h"
#include "lua/fields.h"
#include "lua/vm.h"
#include "raft/node.h"

#include <stdlib.h>

static const char *const states[] = {
    [STATE_FOLLOWER] = "follower",
    [STATE_CANDIDATE] = "candidate",
    [STATE_LEADER] = "leader",
    [STATE_DOWN] = "down",
};
static const char *const roles[] = {
    [ROLE_STANDBY] = "standby", [ROLE_VOTER] = "voter", [ROLE_SPARE] = "spare", NULL};

static void push_server(lua_State *L, const struct rnode_server *s)
{
    lua_createtable(L, 0, 8);
    set_integer(L, "id", s->id);
    set_text(L, "address", s->address);
    set_text(L, "role", roles[s->role]);
    set_bool(L, "is_self", s->is_self);
    set_bool(L, "up", s->up);
    set_integer(L, "match_index", s->match_index);
    if (s->silent_ms != UINT64_MAX) {
        set_integer(L, "silent_ms", s->silent_ms);
    }
    set_integer(L, "disk_free", s->disk_free);
}

/* status() -> {state, id, leader, term, last_index, last_term, commit_index, applied_index, snapshot_index, log_bytes,
 * has_quorum, changing, no_space, behind, servers = {{id, address, role, is_self, up, match_index, silent_ms, disk_free},
 * ...}}
 */
static int l_status(lua_State *L)
{
    const struct rnode *n = bind_raft_of(L);
    struct rnode_status s;
    if (n == NULL) {
        return bind_store_closed(L);
    }
    rnode_status(n, &s);
    lua_createtable(L, 0, 16);
    set_text(L, "state", states[s.state]);
    set_integer(L, "id", s.id);
    set_integer(L, "leader", s.leader);
    set_integer(L, "term", s.term);
    set_integer(L, "last_index", s.last_index);
    set_integer(L, "last_term", s.last_term);
    set_integer(L, "commit_index", s.commit_index);
    set_integer(L, "applied_index", s.applied_index);
    set_integer(L, "snapshot_index", s.snapshot_index);
    set_integer(L, "log_bytes", s.log_bytes);
    set_bool(L, "has_quorum", s.has_quorum);
    set_bool(L, "changing", s.changing);
    set_bool(L, "no_space", s.no_space);
    set_bool(L, "behind", s.behind);
    lua_createtable(L, (int)s.n_servers, 0);
    for (unsigned i = 0; i < s.n_servers; i++) {
        push_server(L, &s.servers[i]);
        lua_rawseti(L, -2, i + 1);
    }
    lua_setfield(L, -2, "servers");
    return 1;
}

static void push_ended(lua_State *L, const struct rnode_stats *s)
{
    lua_createtable(L, 0, 8);
    set_integer(L, "applied", s->ended[0]);
    for (int i = 1; i < SYM_ERR_MAX; i++) {
        if (s->ended[i] > 0) {
            set_integer(L, err_name(-i), s->ended[i]);
        }
    }
    set_integer(L, "conflict", s->conflicts);
}

/* stats() -> {submitted, forwarded, packs, pack_txns, reads, read_rounds, read_errors, snapshots, elections, leaders,
 * txns_waiting, txn_bytes_waiting, txns_pending, reads_pending, ended = {applied, conflict, <code of an error> = count},
 * commits, pool_wait, appends, snapshot_times, appended, snapshot_bytes, installed}: see struct rnode_stats;
 * commits, pool_wait, appends and snapshot_times are histograms as in sym.metrics */
static int l_stats(lua_State *L)
{
    const struct rnode *n = bind_raft_of(L);
    struct rnode_stats s;
    if (n == NULL) {
        return bind_store_closed(L);
    }
    rnode_stats(n, &s);
    lua_createtable(L, 0, 24);
    set_integer(L, "submitted", s.submitted);
    set_integer(L, "forwarded", s.forwarded);
    set_integer(L, "packs", s.packs);
    set_integer(L, "pack_txns", s.pack_txns);
    set_integer(L, "reads", s.reads);
    set_integer(L, "read_rounds", s.read_rounds);
    set_integer(L, "snapshots", s.snapshots);
    set_integer(L, "elections", s.elections);
    set_integer(L, "leaders", s.leaders);
    set_integer(L, "read_errors", s.read_errors);
    set_integer(L, "txns_waiting", s.txns_waiting);
    set_integer(L, "txn_bytes_waiting", s.txn_bytes_waiting);
    set_integer(L, "txns_pending", s.txns_pending);
    set_integer(L, "reads_pending", s.reads_pending);
    push_ended(L, &s);
    lua_setfield(L, -2, "ended");
    set_histogram(L, "commits", &s.commits);
    set_histogram(L, "pool_wait", &s.pool_wait);
    set_histogram(L, "appends", &s.disk.appends);
    set_histogram(L, "snapshot_times", &s.disk.snapshots);
    set_integer(L, "appended", s.disk.appended);
    set_integer(L, "snapshot_bytes", s.disk.snapshot_bytes);
    set_integer(L, "installed", s.disk.installed);
    return 1;
}

/* --- calls that take a callback --- */

struct wait {
    struct vm_cb cb;
};

/* NULL without memory, and then the callback is released. */
static struct wait *wait_new(struct vm_cb *cb)
{
    struct wait *w = malloc(sizeof *w);
    if (w == NULL) {
        vm_cb_drop(cb);
        err_setf(SYM_ENOMEM, "out of memory");
        return NULL;
    }
    w->cb = *cb;
    return w;
}

static void on_done(void *arg, int status)
{
    struct wait *w = arg;
    vm_cb_fire(&w->cb, status, NULL, NULL);
    free(w);
}

static int push_result(lua_State *L, void *arg)
{
    bind_store_push_result(L, arg);
    return 1;
}

static void on_txn_done(void *arg, int status, const struct txn_result *result)
{
    struct wait *w = arg;
    vm_cb_fire(&w->cb, status, push_result, (void *)result);
    free(w);
}

static uint64_t check_ms(lua_State *L, int idx)
{
    lua_Integer ms = luaL_optinteger(L, idx, 0);
    luaL_argcheck(L, ms >= 0, idx, "milliseconds from 0");
    return (uint64_t)ms;
}

static uint64_t check_id(lua_State *L, int idx, lua_Integer least)
{
    lua_Integer id = luaL_checkinteger(L, idx);
    luaL_argcheck(L, id >= least, idx, "a raft id");
    return (uint64_t)id;
}

/* submit(txn, timeout_ms or nil, cb(err, {status = "applied"|"conflict"|"unknown", failed, revision,
 * repeated})) */
static int l_submit(lua_State *L)
{
    struct txn txn;
    struct vm_cb cb;
    bind_store_check_txn(L, 1, &txn);
    uint64_t ms = check_ms(L, 2);
    vm_cb_take(L, 3, &cb);
    struct rnode *n = bind_raft_of(L);
    if (n == NULL) {
        vm_cb_drop(&cb);
        return bind_store_closed(L);
    }
    struct buf bytes = {0};
    int rv = txn_encode(&txn, &bytes);
    if (rv != 0) {
        buf_free(&bytes);
        vm_cb_drop(&cb);
        return vm_fail(L, rv);
    }
    struct wait *w = wait_new(&cb);
    if (w != NULL) {
        rnode_submit(n, buf_data(&bytes), bytes.len, ms, on_txn_done, w);
    }
    buf_free(&bytes);
    return w != NULL ? 0 : vm_fail(L, SYM_ENOMEM);
}

/* What the rest has in common: the callback at @idx, and the node. */
static int begin(lua_State *L, int idx, struct rnode **n, struct wait **w)
{
    struct vm_cb cb;
    vm_cb_take(L, idx, &cb);
    *n = bind_raft_of(L);
    if (*n == NULL) {
        vm_cb_drop(&cb);
        return err_setf(SYM_ECLOSED, "the node is not started");
    }
    *w = wait_new(&cb);
    return *w == NULL ? SYM_ENOMEM : 0;
}

/* read(timeout_ms or nil, cb(err)): the local store then holds all that was acknowledged before. */
static int l_read(lua_State *L)
{
    struct rnode *n;
    struct wait *w;
    uint64_t ms = check_ms(L, 1);
    int rv = begin(L, 2, &n, &w);
    if (rv != 0) {
        return vm_fail(L, rv);
    }
    rnode_read(n, ms, on_done, w);
    return 0;
}

/* locate(id, address, moves) -> true | nil, err: where manager @id is since its address has changed so often, as it has
 * said itself; our own id: where we are. */
static int l_locate(lua_State *L)
{
    uint64_t id = check_id(L, 1, 1);
    const char *address = luaL_checkstring(L, 2);
    lua_Integer moves = luaL_checkinteger(L, 3);
    luaL_argcheck(L, moves >= 0, 3, "how often it has moved");
    struct rnode *n = bind_raft_of(L);
    if (n == NULL) {
        return bind_store_closed(L);
    }
    int rv = rnode_locate(n, id, address, (uint64_t)moves);
    if (rv != 0) {
        return vm_fail(L, rv);
    }
    lua_pushboolean(L, 1);
    return 1;
}

/* add(id, address, cb(err)): as a spare. */
static int l_add(lua_State *L)
{
    struct rnode *n;
    struct wait *w;
    uint64_t id = check_id(L, 1, 1);
    const char *address = luaL_checkstring(L, 2);
    int rv = begin(L, 3, &n, &w);
    if (rv != 0) {
        return vm_fail(L, rv);
    }
    rnode_add(n, id, address, on_done, w);
    return 0;
}

/* assign(id, "voter"|"standby"|"spare", cb(err)) */
static int l_assign(lua_State *L)
{
    struct rnode *n;
    struct wait *w;
    uint64_t id = check_id(L, 1, 1);
    int role = luaL_checkoption(L, 2, NULL, roles);
    int rv = begin(L, 3, &n, &w);
    if (rv != 0) {
        return vm_fail(L, rv);
    }
    rnode_assign(n, id, (enum raft_role)role, on_done, w);
    return 0;
}

/* remove(id, cb(err)) */
static int l_remove(lua_State *L)
{
    struct rnode *n;
    struct wait *w;
    uint64_t id = check_id(L, 1, 1);
    int rv = begin(L, 2, &n, &w);
    if (rv != 0) {
        return vm_fail(L, rv);
    }
    rnode_remove(n, id, on_done, w);
    return 0;
}

/* transfer(id or 0, cb(err)) */
static int l_transfer(lua_State *L)
{
    struct rnode *n;
    struct wait *w;
    uint64_t id = check_id(L, 1, 0);
    int rv = begin(L, 2, &n, &w);
    if (rv != 0) {
        return vm_fail(L, rv);
    }
    rnode_transfer(n, id, on_done, w);
    return 0;
}

/* snapshot(): takes one soon; true. */
static int l_snapshot(lua_State *L)
{
    struct rnode *n = bind_raft_of(L);
    if (n == NULL) {
        return bind_store_closed(L);
    }
    rnode_snapshot(n);
    lua_pushboolean(L, true);
    return 1;
}

int luaopen_sym_raft(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"status", l_status},
        {"stats", l_stats},
        {"submit", l_submit},
        {"read", l_read},
        {"locate", l_locate},
        {"add", l_add},
        {"assign", l_assign},
        {"remove", l_remove},
        {"transfer", l_transfer},
        {"snapshot", l_snapshot},
        {NULL, NULL},
    };
    luaL_newlib(L, functions);
    return 1;
}
