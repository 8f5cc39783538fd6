/* The Lua state of a program: libuv's loop in Lua (luv), symphony's tables, and the one way in from C.
 *
 * Rules for a bind_*.c file:
 * - It defines `int luaopen_sym_<name>(lua_State *L)`, returning one table of functions; vm.c registers it
 *   as `require "sym.<name>"` if the program lists it. C state that belongs to the daemon is reached through
 *   vm_daemon(L) or upvalues, no globals.
 * - Misuse (wrong type, bad range) raises; failure at run time returns nil, err with err = {code=, message=}
 *   (vm_push_error / vm_fail).
 * - An asynchronous function takes a callback last and calls it exactly once, later, as cb(err, ...): err is
 *   nil or the table. Wrapped with async.await in Lua, it looks synchronous.
 * - Handles are full userdata with __gc and :close(); a callback that fires after close finds nothing to do.
 * - Between acquiring a C resource and releasing it nothing may raise. From C into Lua only through vm_call,
 *   and values are pushed inside it (an allocation that fails while pushing raises too): see struct vm_cb.
 */
#ifndef SYM_LUA_VM_H
#define SYM_LUA_VM_H

#include "base/log.h"
#include "lua/guard.h"

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdbool.h>
#include <uv.h>

struct vm_config {
    uv_loop_t *loop;
    const char *const *lua_paths; /* NULL-terminated folders that hold symphony/; the first wins */
    void *daemon;                 /* vm_daemon */
    /* What `require "sym.<name>"` finds, ended by a NULL name: the program's choice, so that the client does
     * not have to link raft. */
    const luaL_Reg *modules;
};

/* A state with the standard library, luv on @loop, @modules and the search path. SYM_E* with err_msg(). */
int vm_new(const struct vm_config *cfg, lua_State **out);
/* Closes what Lua itself has on the loop (luv's handles and requests) and then frees the state: at once if
 * there is nothing, else from the loop, which the caller runs on; a request that is under way is waited for. No
 * callback may be fired into it afterwards. NULL is nothing to do. */
void vm_close(lua_State *L);
void *vm_daemon(lua_State *L);
uv_loop_t *vm_loop(lua_State *L);
struct guard *vm_guard(lua_State *L);

/* Calls the function below its @nargs arguments, protected; an error is logged with its traceback. Leaves
 * @nresults and returns 0, or leaves nothing and returns SYM_EINVAL with err_msg() the error's text. */
int vm_call(lua_State *L, int nargs, int nresults);

/* Loads module @module and calls its function @name with what @push pushed (returns how many; may be
 * NULL). */
int vm_run(
    lua_State *L, const char *module, const char *name, int (*push)(lua_State *L, void *arg), void *arg);

/* A Lua callback kept by C for one call later. */
struct vm_cb {
    lua_State *L; /* the main state */
    int ref;
};
/* Keeps the function at @idx (checked to be one: raises). Call it before any C resource is taken. */
void vm_cb_take(lua_State *L, int idx, struct vm_cb *out);
/* Calls it as cb(err, ...): @status 0 gives nil, else {code, message = err_msg()}; then what @push pushes
 * (NULL: nothing; only called for status 0). Everything runs protected. Releases the callback; a second fire
 * does nothing. */
void vm_cb_fire(struct vm_cb *cb, int status, int (*push)(lua_State *L, void *arg), void *arg);
/* The same, but keeps it (events, streams). */
void vm_cb_call(struct vm_cb *cb, int status, int (*push)(lua_State *L, void *arg), void *arg);
/* As vm_cb_fire and vm_cb_call, but @push pushes all that it is called with. SYM_EINVAL when it raised: see vm_call. */
void vm_cb_fire_raw(struct vm_cb *cb, int (*push)(lua_State *L, void *arg), void *arg);
int vm_cb_call_raw(const struct vm_cb *cb, int (*push)(lua_State *L, void *arg), void *arg);
void vm_cb_drop(struct vm_cb *cb);

/* Logs a text of several lines, such as a traceback, as one line. */
void vm_log(enum log_level level, const char *prefix, const char *text);

/* Pushes {code = err_name(code), message = err_msg()}. */
void vm_push_error(lua_State *L, int code);
/* nil, error: `return vm_fail(L, code);`. */
int vm_fail(lua_State *L, int code);

/* The binding modules. */
int luaopen_sym_log(lua_State *L);
int luaopen_sym_sys(lua_State *L);
int luaopen_sym_crypto(lua_State *L);
int luaopen_sym_http(lua_State *L);
int luaopen_sym_store(lua_State *L);
int luaopen_sym_raft(lua_State *L);
int luaopen_sym_gossip(lua_State *L);
int luaopen_sym_node(lua_State *L);
int luaopen_sym_policy(lua_State *L);
int luaopen_sym_rules(lua_State *L);

#endif
