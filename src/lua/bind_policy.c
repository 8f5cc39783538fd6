/* sym.policy: the policies, run by a process of their own (sandbox/host.h). One is for those that decide, another for
 * trying some out: what hangs there keeps nobody waiting.
 *
 * Callbacks get (err, json); err has policy, the name of the one to blame, where there is one, and result, what was
 * found out before (JSON as of a call), where there is something. */
#include "lua/bind_policy.h"

#include "base/err.h"
#include "lua/bind_store.h"
#include "lua/fields.h"
#include "lua/vm.h"
#include "sandbox/host.h"

#include <stdlib.h>
#include <string.h>

#define TYPE "sym.policy"

enum { MS_MAX = 60000 };

struct policy {
    lua_State *L;
    struct host *live, *tries;
    bool closing;
    uint64_t revision, count; /* of the prefix that the loaded set stands for */
};

/* Registry key of the struct policy. */
static const char policy_key;

struct host *bind_policy_host(lua_State *L)
{
    const struct policy *policy = NULL;
    if (L != NULL && lua_checkstack(L, 1)) {
        lua_rawgetp(L, LUA_REGISTRYINDEX, &policy_key);
        policy = lua_touserdata(L, -1);
        lua_pop(L, 1);
    }
    return policy != NULL ? policy->live : NULL;
}

static struct store *store_of(void *arg)
{
    const struct policy *policy = arg;
    return bind_store_of(policy->L);
}

static struct policy *self(lua_State *L)
{
    return lua_touserdata(L, lua_upvalueindex(1));
}

static int fail_closing(lua_State *L)
{
    return vm_fail(L, err_setf(SYM_ECLOSED, "this node is stopping"));
}

static void close_hosts(struct policy *policy)
{
    struct host *live = policy->live, *tries = policy->tries;
    policy->closing = true;
    policy->live = policy->tries = NULL;
    host_close(live);
    host_close(tries);
}

static int closed(lua_State *L)
{
    close_hosts(luaL_checkudata(L, 1, TYPE));
    return 0;
}

void bind_policy_close(lua_State *L)
{
    lua_rawgetp(L, LUA_REGISTRYINDEX, &policy_key);
    struct policy *policy = lua_touserdata(L, -1);
    lua_pop(L, 1);
    if (policy != NULL) {
        close_hosts(policy);
    }
}

/* --- answers --- */

struct wait {
    const struct policy *policy;
    struct vm_cb cb;
};

static int push_answer(lua_State *L, void *arg)
{
    const struct host_answer *answer = arg;
    if (answer->status == 0) {
        lua_pushnil(L);
        lua_pushlstring(L, answer->json, answer->n);
        return 2;
    }
    vm_push_error(L, answer->status);
    if (*answer->policy != '\0') {
        set_text(L, "policy", answer->policy);
    }
    if (answer->n > 0) {
        set_bytes(L, "result", answer->json, answer->n);
    }
    return 1;
}

static void on_answer(void *arg, const struct host_answer *answer)
{
    struct wait *wait = arg;
    if (wait->policy->closing) {
        vm_cb_drop(&wait->cb); /* the state is going, and calls nobody any more */
    } else {
        vm_cb_fire_raw(&wait->cb, push_answer, (void *)answer);
    }
    free(wait);
}

/* Something that was asked for could not even be begun: it is told in the same way, later, by the caller's return. */
static int begun(lua_State *L, struct wait *wait, int rv)
{
    if (rv == 0) {
        lua_pushboolean(L, 1);
        return 1;
    }
    vm_cb_drop(&wait->cb);
    free(wait);
    return vm_fail(L, rv);
}

static struct wait *wait_for(lua_State *L, int idx)
{
    struct vm_cb cb;
    vm_cb_take(L, idx, &cb);
    struct wait *wait = malloc(sizeof *wait);
    if (wait == NULL) {
        vm_cb_drop(&cb);
        luaL_error(L, "out of memory");
    } else {
        wait->policy = self(L);
        wait->cb = cb;
    }
    return wait;
}

/* --- functions --- */

static uint64_t option(lua_State *L, const char *name, lua_Integer most)
{
    int whole = 1;
    lua_Integer v = 0;
    if (lua_getfield(L, 1, name) != LUA_TNIL) {
        v = lua_tointegerx(L, -1, &whole);
        if (!whole || v < 1 || v > most) {
            luaL_error(L, "policy.configure: %s is a whole number from 1 to %I", name, most);
        }
    }
    lua_pop(L, 1);
    return (uint64_t)v;
}

/* configure{memory = bytes, instructions =, deadline_ms =, load_deadline_ms =, full = boolean} */
static int l_configure(lua_State *L)
{
    if (self(L)->closing) {
        return fail_closing(L);
    }
    struct policy *policy = self(L);
    luaL_checktype(L, 1, LUA_TTABLE);
    struct host_config cfg = {
        .memory = option(L, "memory", 1 << 30),
        .instructions = option(L, "instructions", 1000000000),
        .deadline_ms = (unsigned)option(L, "deadline_ms", MS_MAX),
        .load_deadline_ms = (unsigned)option(L, "load_deadline_ms", MS_MAX),
    };
    lua_getfield(L, 1, "full");
    cfg.full = lua_toboolean(L, -1);
    host_configure(policy->live, &cfg);
    host_configure(policy->tries, &cfg);
    return 0;
}

/* load(name, source, cb): cb(err, about) */
static int l_load(lua_State *L)
{
    if (self(L)->closing) {
        return fail_closing(L);
    }
    size_t n;
    const char *name = luaL_checkstring(L, 1);
    const char *source = luaL_checklstring(L, 2, &n);
    struct wait *wait = wait_for(L, 3);
    return begun(L, wait, host_load(self(L)->live, name, source, n, on_answer, wait));
}

static int l_drop(lua_State *L)
{
    if (self(L)->closing) {
        return fail_closing(L);
    }
    host_drop(self(L)->live, luaL_checkstring(L, 1));
    return 0;
}

/* opts.only, a name or a list of names, as text between blanks; on the top, or nil. */
static const char *push_only(lua_State *L, int idx)
{
    if (!lua_istable(L, idx) || lua_getfield(L, idx, "only") == LUA_TNIL) {
        lua_pushnil(L);
        return NULL;
    }
    if (lua_type(L, -1) != LUA_TTABLE) {
        return luaL_checkstring(L, -1);
    }
    luaL_Buffer b;
    int names = lua_gettop(L);
    luaL_buffinit(L, &b);
    for (lua_Integer i = 1; lua_rawgeti(L, names, i) != LUA_TNIL; i++) {
        if (lua_type(L, -1) != LUA_TSTRING) {
            luaL_error(L, "policy.call: only is a name, or a list of names");
        }
        luaL_addvalue(&b);
        luaL_addchar(&b, ' ');
    }
    lua_pop(L, 1);
    luaL_pushresult(&b);
    return lua_tostring(L, -1);
}

/* call(hook, input_json, {only =, state_json =}, cb): cb(err, result) */
static int l_call(lua_State *L)
{
    if (self(L)->closing) {
        return fail_closing(L);
    }
    struct host_call call = {.hook = luaL_checkstring(L, 1)};
    call.input = luaL_checklstring(L, 2, &call.n_input);
    if (!lua_isnil(L, 3)) {
        luaL_checktype(L, 3, LUA_TTABLE);
    }
    luaL_checktype(L, 4, LUA_TFUNCTION);
    lua_settop(L, 4);
    call.only = push_only(L, 3);
    if (lua_istable(L, 3)) {
        lua_getfield(L, 3, "state_json");
        call.state = luaL_optlstring(L, -1, NULL, &call.n_state);
    }
    struct wait *wait = wait_for(L, 4);
    return begun(L, wait, host_call(self(L)->live, &call, on_answer, wait));
}

/* test(source, cases_json or nil, cb): cb(err, {about, cases}) */
static int l_test(lua_State *L)
{
    if (self(L)->closing) {
        return fail_closing(L);
    }
    size_t n, n_cases = 0;
    const char *source = luaL_checklstring(L, 1, &n);
    const char *cases = luaL_optlstring(L, 2, NULL, &n_cases);
    struct wait *wait = wait_for(L, 3);
    return begun(L, wait, host_test(self(L)->tries, source, n, cases, n_cases, on_answer, wait));
}

/* loaded(revision, count) */
static int l_loaded(lua_State *L)
{
    struct policy *policy = self(L);
    policy->revision = (uint64_t)luaL_checkinteger(L, 1);
    policy->count = (uint64_t)luaL_checkinteger(L, 2);
    return 0;
}

static void add_broken(void *arg, const struct host_broken *b)
{
    lua_State *L = arg;
    lua_createtable(L, 0, 4);
    set_text(L, "name", b->name);
    set_text(L, "why", b->why);
    set_integer(L, "tries", b->tries);
    set_integer(L, "retry_ms", b->ms);
    lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
}

/* stats(): {pid, policies, waiting, started, killed, died, calls, failures, us_total, memory, revision, count, broken =
 * those that did not load again: {{name, why, tries, retry_ms}...}} */
static int l_stats(lua_State *L)
{
    if (self(L)->closing) {
        return fail_closing(L);
    }
    const struct policy *policy = self(L);
    struct host_stats stats;
    host_stats(policy->live, &stats);
    lua_createtable(L, 0, 13);
    set_integer(L, "pid", (uint64_t)stats.pid);
    set_integer(L, "policies", stats.policies);
    set_integer(L, "waiting", stats.waiting);
    set_integer(L, "started", stats.started);
    set_integer(L, "killed", stats.killed);
    set_integer(L, "died", stats.died);
    set_integer(L, "calls", stats.calls);
    set_integer(L, "failures", stats.failures);
    set_integer(L, "us_total", stats.us_total);
    set_integer(L, "memory", stats.memory);
    set_integer(L, "revision", policy->revision);
    set_integer(L, "count", policy->count);
    lua_newtable(L);
    host_broken(policy->live, add_broken, L);
    lua_setfield(L, -2, "broken");
    return 1;
}

int luaopen_sym_policy(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"configure", l_configure},
        {"load", l_load},
        {"drop", l_drop},
        {"call", l_call},
        {"test", l_test},
        {"loaded", l_loaded},
        {"stats", l_stats},
        {NULL, NULL},
    };
    luaL_newlibtable(L, functions);
    struct policy *policy = lua_newuserdatauv(L, sizeof *policy, 0);
    *policy = (struct policy){.L = L};
    luaL_newmetatable(L, TYPE);
    lua_pushcfunction(L, closed);
    lua_setfield(L, -2, "__gc");
    lua_setmetatable(L, -2);
    lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
    policy->L = lua_tothread(L, -1);
    lua_pop(L, 1);
    int rv = host_new(vm_loop(L), store_of, policy, &policy->live);
    rv = rv != 0 ? rv : host_new(vm_loop(L), store_of, policy, &policy->tries);
    if (rv != 0) {
        return luaL_error(L, "%s", err_msg());
    }
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &policy_key);
    luaL_setfuncs(L, functions, 1);
    return 1;
}
