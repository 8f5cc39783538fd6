#include "lua/vm.h"

#include "base/err.h"

#include <lua-cjson.h>
#include <luv/luv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The main state's, reached from every coroutine through its extra space. */
struct vm {
    lua_State *L;
    uv_loop_t *loop;
    void *daemon;
    unsigned depth; /* protected calls under way */
    struct guard guard;
    uv_timer_t reaper; /* waits for luv's handles to close and its requests to end */
};

static struct vm *vm_of(lua_State *L)
{
    return *(struct vm **)lua_getextraspace(L);
}

void *vm_daemon(lua_State *L)
{
    return vm_of(L)->daemon;
}

uv_loop_t *vm_loop(lua_State *L)
{
    return vm_of(L)->loop;
}

struct guard *vm_guard(lua_State *L)
{
    return &vm_of(L)->guard;
}

/* --- memory --- */

/* Lua names the type of a new object in the place of its old size. */
static bool too_big(const void *p, size_t old, size_t size)
{
    return size > (p == NULL && old == LUA_TSTRING ? GUARD_STRING_MAX + 64 : GUARD_BLOCK_MAX);
}

static void *on_alloc(void *ud, void *p, size_t old, size_t size)
{
    struct guard *g = &((struct vm *)ud)->guard;
    size_t had = p != NULL ? old : 0;
    if (size == 0) {
        free(p);
        g->bytes -= had;
        return NULL;
    }
    if (g->running && size > had && too_big(p, old, size)) {
        return NULL;
    }
    void *q = realloc(p, size);
    if (q != NULL) {
        g->bytes += size - had;
    }
    return q;
}

/* An error outside of every protected call. */
static int on_panic(lua_State *L)
{
    const char *text = lua_tostring(L, -1);
    fprintf(stderr, "Lua: unprotected error: %s\n", text != NULL ? text : "without a message");
    return 0; /* Lua aborts */
}

/* --- calls --- */

static int on_error(lua_State *L)
{
    const char *text = luaL_tolstring(L, 1, NULL);
    luaL_traceback(L, L, text, 1);
    return 1;
}

void vm_log(enum log_level level, const char *prefix, const char *text)
{
    char line[3072];
    size_t n = 0;
    for (; *text != '\0' && n + 4 < sizeof line; text++) {
        if (*text == '\n') {
            memcpy(line + n, " | ", 3);
            n += 3;
        } else if (*text != '\t') {
            line[n++] = *text;
        }
    }
    line[n] = '\0';
    log_write(level, "%s%s", prefix, line);
}

int vm_call(lua_State *L, int nargs, int nresults)
{
    struct vm *vm = vm_of(L);
    int base = lua_gettop(L) - nargs;
    if (!lua_checkstack(L, 1)) {
        lua_settop(L, base - 1);
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    lua_pushcfunction(L, on_error);
    lua_insert(L, base);
    vm->depth++;
    int rv = lua_pcall(L, nargs, nresults, base);
    vm->depth--;
    lua_remove(L, base);
    if (rv == LUA_OK) {
        return 0;
    }
    /* Without memory there may be no traceback, but always a string. */
    const char *text = lua_isstring(L, -1) ? lua_tostring(L, -1) : "an error without a message";
    vm_log(LOG_ERROR, "Lua: ", text);
    err_setf(rv == LUA_ERRMEM ? SYM_ENOMEM : SYM_EINVAL, "%.*s", (int)strcspn(text, "\n"), text);
    lua_pop(L, 1);
    return rv == LUA_ERRMEM ? SYM_ENOMEM : SYM_EINVAL;
}

/* luv's own would end the process. */
static int call_from_luv(lua_State *L, int nargs, int nresults, int flags)
{
    (void)flags;
    int below = lua_gettop(L) - nargs - 1;
    return vm_call(L, nargs, nresults) == 0 ? lua_gettop(L) - below : -LUA_ERRRUN;
}

struct run {
    const char *module, *name;
    int (*push)(lua_State *L, void *arg);
    void *arg;
};

static int do_run(lua_State *L)
{
    const struct run *run = lua_touserdata(L, 1);
    lua_getglobal(L, "require");
    lua_pushstring(L, run->module);
    lua_call(L, 1, 1);
    lua_getfield(L, -1, run->name);
    lua_call(L, run->push != NULL ? run->push(L, run->arg) : 0, 0);
    return 0;
}

int vm_run(
    lua_State *L, const char *module, const char *name, int (*push)(lua_State *L, void *arg), void *arg)
{
    struct run run = {module, name, push, arg};
    lua_pushcfunction(L, do_run);
    lua_pushlightuserdata(L, &run);
    return vm_call(L, 1, 0);
}

/* --- callbacks --- */

void vm_cb_take(lua_State *L, int idx, struct vm_cb *out)
{
    luaL_checktype(L, idx, LUA_TFUNCTION);
    lua_pushvalue(L, idx);
    out->ref = luaL_ref(L, LUA_REGISTRYINDEX);
    out->L = vm_of(L)->L;
}

struct fire {
    int ref;
    int (*push)(lua_State *L, void *arg);
    void *arg;
};

static int do_fire(lua_State *L)
{
    const struct fire *fire = lua_touserdata(L, 1);
    lua_rawgeti(L, LUA_REGISTRYINDEX, fire->ref);
    lua_call(L, fire->push(L, fire->arg), 0);
    return 0;
}

int vm_cb_call_raw(const struct vm_cb *cb, int (*push)(lua_State *L, void *arg), void *arg)
{
    lua_State *L = cb->L;
    struct fire fire = {cb->ref, push, arg};
    if (L == NULL || !lua_checkstack(L, 2)) {
        return 0;
    }
    lua_pushcfunction(L, do_fire);
    lua_pushlightuserdata(L, &fire);
    return vm_call(L, 1, 0);
}

/* Emptied first: what is called may fire or drop it again. */
void vm_cb_fire_raw(struct vm_cb *cb, int (*push)(lua_State *L, void *arg), void *arg)
{
    struct vm_cb taken = *cb;
    cb->L = NULL;
    vm_cb_call_raw(&taken, push, arg);
    vm_cb_drop(&taken);
}

struct result {
    int status;
    int (*push)(lua_State *L, void *arg);
    void *arg;
};

static int push_result(lua_State *L, void *arg)
{
    const struct result *result = arg;
    if (result->status != 0) {
        vm_push_error(L, result->status);
        return 1;
    }
    lua_pushnil(L);
    return 1 + (result->push != NULL ? result->push(L, result->arg) : 0);
}

void vm_cb_call(struct vm_cb *cb, int status, int (*push)(lua_State *L, void *arg), void *arg)
{
    vm_cb_call_raw(cb, push_result, &(struct result){status, push, arg});
}

void vm_cb_fire(struct vm_cb *cb, int status, int (*push)(lua_State *L, void *arg), void *arg)
{
    vm_cb_fire_raw(cb, push_result, &(struct result){status, push, arg});
}

void vm_cb_drop(struct vm_cb *cb)
{
    if (cb->L != NULL) {
        luaL_unref(cb->L, LUA_REGISTRYINDEX, cb->ref);
        cb->L = NULL;
    }
}

void vm_push_error(lua_State *L, int code)
{
    /* The message first: what follows may collect garbage, and a finalizer may fail. */
    lua_pushstring(L, err_msg());
    lua_createtable(L, 0, 2);
    lua_insert(L, -2);
    lua_setfield(L, -2, "message");
    lua_pushstring(L, err_name(code));
    lua_setfield(L, -2, "code");
    luaL_setmetatable(L, "sym.error");
}

int vm_fail(lua_State *L, int code)
{
    lua_pushnil(L);
    vm_push_error(L, code);
    return 2;
}

static int error_tostring(lua_State *L)
{
    lua_getfield(L, 1, "message");
    lua_getfield(L, 1, "code");
    lua_pushfstring(L, "%s (%s)", luaL_optstring(L, -2, "?"), luaL_optstring(L, -1, "?"));
    return 1;
}

/* --- opening --- */

static void set_path(lua_State *L, const char *const *folders)
{
    luaL_Buffer path;
    luaL_buffinit(L, &path);
    for (; folders != NULL && *folders != NULL; folders++) {
        luaL_addstring(&path, *folders);
        luaL_addstring(&path, "/?.lua;");
        luaL_addstring(&path, *folders);
        luaL_addstring(&path, "/?/init.lua;");
    }
    luaL_addstring(&path, "/usr/share/lua/5.4/?.lua"); /* Debian's argparse */
    luaL_pushresult(&path);
    lua_getglobal(L, "package");
    lua_insert(L, -2);
    lua_setfield(L, -2, "path");
    /* No foreign machine code, and nothing from $LUA_CPATH. */
    lua_pushliteral(L, "");
    lua_setfield(L, -2, "cpath");
    lua_pop(L, 1);
}

/* Not luv's walk, loop_close, run and stop: they would take handles that are not luv's for its own, or run
 * the loop inside itself. Nor sleep, which stops it. */
static int open_luv(lua_State *L)
{
    static const char *const unfit[] = {"walk", "loop_close", "run", "stop", "sleep", "loop_configure"};
    luaopen_luv(L);
    for (size_t i = 0; i < sizeof unfit / sizeof *unfit; i++) {
        lua_pushnil(L);
        lua_setfield(L, -2, unfit[i]);
    }
    return 1;
}

static int do_open(lua_State *L)
{
    const struct vm_config *cfg = lua_touserdata(L, 1);
    luaL_openlibs(L);
    bounded_open(L);
    set_path(L, cfg->lua_paths);

    luaL_newmetatable(L, "sym.error");
    lua_pushcfunction(L, error_tostring);
    lua_setfield(L, -2, "__tostring");

    luv_set_loop(L, cfg->loop);
    luv_context(L)->L = vm_of(L)->L;
    luv_set_callback(L, call_from_luv);

    /* Opened when first required: the client needs few of them. */
    luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
    lua_pushcfunction(L, open_luv);
    lua_setfield(L, -2, "luv");
    lua_pushcfunction(L, luaopen_cjson);
    lua_setfield(L, -2, "cjson");
    for (const luaL_Reg *m = cfg->modules; m != NULL && m->name != NULL; m++) {
        lua_pushcfunction(L, m->func);
        lua_setfield(L, -2, m->name);
    }
    return 0;
}

/* Lua's own warnings: errors in finalizers. */
static void on_warning(void *ud, const char *text, int to_continue)
{
    (void)ud;
    if (!to_continue && text[0] != '@') {
        log_warn("Lua: %s", text);
    }
}

int vm_new(const struct vm_config *cfg, lua_State **out)
{
    struct vm *vm = calloc(1, sizeof *vm);
    if (vm == NULL) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    vm->loop = cfg->loop;
    vm->daemon = cfg->daemon;
    vm->L = lua_newstate(on_alloc, vm);
    if (vm->L == NULL) {
        free(vm);
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    lua_atpanic(vm->L, on_panic);
    *(struct vm **)lua_getextraspace(vm->L) = vm;
    lua_setwarnf(vm->L, on_warning, NULL);
    lua_pushcfunction(vm->L, do_open);
    lua_pushlightuserdata(vm->L, (void *)cfg);
    int rv = vm_call(vm->L, 1, 0);
    if (rv != 0) {
        lua_close(vm->L);
        free(vm);
        return rv;
    }
    *out = vm->L;
    return 0;
}

/* --- closing --- */

enum { REAP_MS = 2 };

enum luv_kind { OTHER, HANDLE, REQUEST, WORK };

/* What the value at @idx is to luv, by its metatable. Work under way is a reference to its context. */
static enum luv_kind kind_of(lua_State *L, int idx)
{
    static const char *const names[] = {"uv_req", "uv_fs", "luv_work_ctx"};
    static const enum luv_kind kinds[] = {REQUEST, REQUEST, WORK};
    enum luv_kind kind = OTHER;
    int top = lua_gettop(L);
    if (lua_type(L, idx) != LUA_TUSERDATA || !lua_getmetatable(L, idx)) {
        return OTHER;
    }
    lua_getfield(L, LUA_REGISTRYINDEX, "uv_handle"); /* the set of all that handles have */
    lua_pushvalue(L, top + 1);
    if (lua_rawget(L, top + 2) != LUA_TNIL) {
        kind = HANDLE;
    }
    for (size_t i = 0; kind == OTHER && i < sizeof names / sizeof *names; i++) {
        luaL_getmetatable(L, names[i]);
        kind = lua_rawequal(L, top + 1, -1) ? kinds[i] : OTHER;
    }
    lua_settop(L, top);
    return kind;
}

static void close_handle(lua_State *L, int idx)
{
    lua_getfield(L, idx, "is_closing");
    lua_pushvalue(L, idx);
    lua_call(L, 1, 1);
    if (!lua_toboolean(L, -1)) {
        lua_getfield(L, idx, "close");
        lua_pushvalue(L, idx);
        lua_call(L, 1, 0);
    }
}

/* What waits for a thread need not have one any more. A folder's list stays after it has come, and cannot be told
 * from one that is on its way: it is let come. */
static void cancel(uv_req_t *req)
{
    if (req->type != UV_FS || ((uv_fs_t *)req)->fs_type != UV_FS_SCANDIR) {
        (void)uv_cancel(req);
    }
}

/* Calls close() on luv's handles that are not closing yet, cancels its requests, and answers whether there are any
 * left. luv keeps each of its handles in the registry until its close callback has run, and its requests while they
 * are under way; freeing the state before that would leave the loop with callbacks into freed memory. */
static int close_all(lua_State *L)
{
    bool *left = lua_touserdata(L, 1);
    bool requests =
        vm_of(L)->loop->active_reqs.count > 0; /* or all that there are are lists that have come */
    if (lua_getfield(L, LUA_REGISTRYINDEX, "uv_handle") != LUA_TTABLE) {
        return 0; /* luv was never opened */
    }
    lua_Integer n = (lua_Integer)lua_rawlen(L, LUA_REGISTRYINDEX);
    for (lua_Integer i = 1; i <= n; i++) {
        lua_settop(L, 1);
        lua_rawgeti(L, LUA_REGISTRYINDEX, i);
        enum luv_kind kind = kind_of(L, 2);
        if (kind == HANDLE) {
            *left = true;
            close_handle(L, 2);
        } else if (kind != OTHER && requests) {
            *left = true;
            if (kind == REQUEST) {
                cancel(lua_touserdata(L, 2));
            }
        }
    }
    return 0;
}

static bool busy(struct vm *vm)
{
    bool left = false;
    if (vm->depth > 0) {
        return true;
    }
    lua_pushcfunction(vm->L, close_all);
    lua_pushlightuserdata(vm->L, &left);
    return vm_call(vm->L, 1, 0) != 0 || left;
}

static void on_reaper_closed(uv_handle_t *handle)
{
    free(handle->data);
}

static void on_reap(uv_timer_t *reaper)
{
    struct vm *vm = reaper->data;
    if (!busy(vm)) {
        lua_close(vm->L);
        uv_close((uv_handle_t *)reaper, on_reaper_closed);
    }
}

void vm_close(lua_State *L)
{
    if (L == NULL) {
        return;
    }
    struct vm *vm = vm_of(L);
    if (!busy(vm)) {
        lua_close(L);
        free(vm);
        return;
    }
    uv_timer_init(vm->loop, &vm->reaper);
    vm->reaper.data = vm;
    uv_timer_start(&vm->reaper, on_reap, 0, REAP_MS);
}
