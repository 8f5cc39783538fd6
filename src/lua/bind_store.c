/* sym.store: the replicated state as this node has it, for reading and watching. While the node is not
 * started every function answers nil, {code = "closed"}. Changes go through sym.raft.submit. */
#include "lua/bind_store.h"

#include "base/err.h"
#include "lua/fields.h"
#include "lua/vm.h"

#include <stdlib.h>
#include <string.h>

int bind_store_closed(lua_State *L)
{
    return vm_fail(L, err_setf(SYM_ECLOSED, "the node is not started"));
}

/* --- txns --- */

/* The string field @name of the table on the top; the table keeps it alive. */
static bool string_field(lua_State *L, const char *name, struct slice *out)
{
    int type = lua_getfield(L, -1, name);
    if (type == LUA_TSTRING) {
        out->p = (const uint8_t *)lua_tolstring(L, -1, &out->n);
    } else if (type != LUA_TNIL) {
        luaL_error(L, "txn: '%s' must be a string", name);
    }
    lua_pop(L, 1);
    return type == LUA_TSTRING;
}

static bool number_field(lua_State *L, const char *name, uint64_t *out)
{
    int type = lua_getfield(L, -1, name);
    if (type != LUA_TNIL) {
        int ok;
        lua_Integer v = lua_tointegerx(L, -1, &ok);
        if (!ok || v < 0) {
            luaL_error(L, "txn: '%s' must be an integer that is not negative", name);
        }
        *out = (uint64_t)v;
    }
    lua_pop(L, 1);
    return type != LUA_TNIL;
}

static void check_compare(lua_State *L, struct txn_cmp *c)
{
    *c = (struct txn_cmp){.value = {(const uint8_t *)"", 0}};
    if (string_field(L, "prefix", &c->key)) {
        if (number_field(L, "revision", &c->number)) {
            c->kind = CMP_PREFIX_REVISION;
        } else if (number_field(L, "count", &c->number)) {
            c->kind = CMP_PREFIX_COUNT;
        } else {
            luaL_error(L, "txn: a compare of a prefix needs 'revision' or 'count'");
        }
        return;
    }
    if (!string_field(L, "key", &c->key)) {
        luaL_error(L, "txn: a compare needs 'key' or 'prefix'");
    }
    lua_getfield(L, -1, "absent");
    bool absent = lua_toboolean(L, -1);
    lua_pop(L, 1);
    if (absent) {
        c->kind = CMP_ABSENT;
    } else if (string_field(L, "value", &c->value)) {
        c->kind = CMP_VALUE;
    } else if (number_field(L, "mod_revision", &c->number)) {
        c->kind = CMP_MOD_REVISION;
    } else if (number_field(L, "create_revision", &c->number)) {
        c->kind = CMP_CREATE_REVISION;
    } else {
        luaL_error(L, "txn: a compare needs 'value', 'mod_revision', 'create_revision' or 'absent'");
    }
}

static void check_op(lua_State *L, struct txn_op *op)
{
    *op = (struct txn_op){.value = {(const uint8_t *)"", 0}};
    if (string_field(L, "put", &op->key)) {
        op->kind = OP_PUT;
        if (!string_field(L, "value", &op->value)) {
            luaL_error(L, "txn: a put needs 'value'");
        }
    } else if (string_field(L, "delete", &op->key)) {
        op->kind = OP_DELETE;
    } else {
        luaL_error(L, "txn: an op needs 'put' or 'delete'");
    }
}

/* Leaves the array field @name, or nil, on the top and returns its length. */
static unsigned array_field(lua_State *L, int idx, const char *name, unsigned most)
{
    int type = lua_getfield(L, idx, name);
    if (type == LUA_TNIL) {
        return 0;
    }
    luaL_argcheck(L, type == LUA_TTABLE, idx, name);
    lua_Unsigned n = lua_rawlen(L, -1);
    luaL_argcheck(L, n <= most, idx, "a txn has at most 192 compares and 128 ops");
    return (unsigned)n;
}

void bind_store_check_txn(lua_State *L, int idx, struct txn *out)
{
    idx = lua_absindex(L, idx);
    luaL_checktype(L, idx, LUA_TTABLE);
    luaL_checkstack(L, 8, "txn");
    memset(&out->id, 0, sizeof out->id);
    out->n_cmps = array_field(L, idx, "compare", TXN_CMPS_MAX);
    for (unsigned i = 0; i < out->n_cmps; i++) {
        luaL_argcheck(L, lua_rawgeti(L, -1, i + 1) == LUA_TTABLE, idx, "compare");
        check_compare(L, &out->cmps[i]);
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
    out->n_ops = array_field(L, idx, "ops", TXN_OPS_MAX);
    for (unsigned i = 0; i < out->n_ops; i++) {
        luaL_argcheck(L, lua_rawgeti(L, -1, i + 1) == LUA_TTABLE, idx, "ops");
        check_op(L, &out->ops[i]);
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
    struct slice id;
    lua_pushvalue(L, idx);
    if (string_field(L, "id", &id)) {
        luaL_argcheck(L, id.n == sizeof out->id.bytes, idx, "an id has 16 bytes");
        memcpy(out->id.bytes, id.p, id.n);
        struct store *s = bind_store_of(L);
        (void)number_field(L, "seq", &out->id.seq);
        if (!number_field(L, "since", &out->id.since)) {
            out->id.since = s == NULL ? 0 : store_revision(s);
        }
    }
    lua_pop(L, 1);
}

void bind_store_push_result(lua_State *L, const struct txn_result *r)
{
    static const char *const names[] = {
        [TXN_APPLIED] = "applied", [TXN_CONFLICT] = "conflict", [TXN_UNKNOWN] = "unknown"};
    lua_createtable(L, 0, 4);
    set_text(L, "status", names[r->status]);
    set_integer(L, "revision", r->revision);
    set_bool(L, "repeated", r->repeated);
    if (r->status == TXN_CONFLICT) {
        set_integer(L, "failed", (uint64_t)r->failed + 1);
    }
}

/* --- reading --- */

static void push_kv(lua_State *L, const struct kv *kv)
{
    lua_createtable(L, 0, 4);
    set_bytes(L, "key", kv->key.p, kv->key.n);
    set_bytes(L, "value", kv->value.p, kv->value.n);
    set_integer(L, "create_revision", kv->create_revision);
    set_integer(L, "mod_revision", kv->mod_revision);
}

/* result(id, seq or nil) -> {status, failed, revision}: what became of the txn with that id; nil: not remembered */
static int l_result(lua_State *L)
{
    struct store *s = bind_store_of(L);
    struct txn_id id = {.seq = (uint64_t)luaL_optinteger(L, 2, 0)};
    size_t n;
    const char *bytes = luaL_checklstring(L, 1, &n);
    luaL_argcheck(L, n == sizeof id.bytes, 1, "an id has 16 bytes");
    memcpy(id.bytes, bytes, n);
    if (s == NULL) {
        return bind_store_closed(L);
    }
    const struct txn_result *found = store_result(s, &id);
    if (found == NULL) {
        lua_pushnil(L);
        return 1;
    }
    struct txn_result result = *found;
    bind_store_push_result(L, &result);
    return 1;
}

static int l_get(lua_State *L)
{
    struct store *s = bind_store_of(L);
    struct kv kv;
    size_t n;
    const char *key = luaL_checklstring(L, 1, &n);
    if (s == NULL) {
        return bind_store_closed(L);
    }
    int rv = store_get(s, key, n, &kv);
    if (rv == SYM_ENOTFOUND) {
        lua_pushnil(L);
        return 1;
    }
    if (rv != 0) {
        return vm_fail(L, rv);
    }
    push_kv(L, &kv);
    return 1;
}

struct list {
    struct buf keys; /* copies: Lua may raise, and a raise must not leave the store in the middle of a walk */
    lua_Integer left;
    bool more;
};

/* One call is one turn of the loop: it ends behind this many bytes. */
enum { LIST_BYTES = 4 << 20 };

static int list_one(void *arg, const struct kv *kv)
{
    struct list *list = arg;
    if (list->left <= 0 || list->keys.len >= LIST_BYTES) {
        list->more = true;
        return 1;
    }
    list->left--;
    struct wr w = wr_init(&list->keys);
    wr_blob(&w, kv->key.p, kv->key.n);
    wr_blob(&w, kv->value.p, kv->value.n);
    wr_u64(&w, kv->create_revision);
    wr_u64(&w, kv->mod_revision);
    return w.bad ? SYM_ENOMEM : 0;
}

static int push_list(lua_State *L)
{
    struct list *list = lua_touserdata(L, 1);
    struct rd r = rd_init(buf_data(&list->keys), list->keys.len);
    lua_newtable(L);
    for (lua_Integer i = 1; rd_left(&r) > 0; i++) {
        struct kv kv;
        kv.key.p = rd_blob(&r, KEY_MAX, &kv.key.n);
        kv.value.p = rd_blob(&r, VALUE_MAX, &kv.value.n);
        kv.create_revision = rd_u64(&r);
        kv.mod_revision = rd_u64(&r);
        push_kv(L, &kv);
        lua_rawseti(L, -2, i);
    }
    return 1;
}

static int l_list(lua_State *L)
{
    struct store *s = bind_store_of(L);
    struct slice prefix, after = {NULL, 0};
    struct list list = {.left = LUA_MAXINTEGER};
    prefix.p = (const uint8_t *)luaL_checklstring(L, 1, &prefix.n);
    if (!lua_isnoneornil(L, 2)) {
        luaL_checktype(L, 2, LUA_TTABLE);
        lua_settop(L, 2);
        lua_getfield(L, 2, "limit");
        list.left = luaL_optinteger(L, -1, LUA_MAXINTEGER);
        lua_getfield(L, 2, "after");
        after.p = (const uint8_t *)luaL_optlstring(L, -1, NULL, &after.n);
    }
    if (s == NULL) {
        return bind_store_closed(L);
    }
    int rv = store_list(s, prefix, after.p == NULL ? NULL : &after, list_one, &list);
    if (rv < 0) {
        buf_free(&list.keys);
        return vm_fail(L, rv);
    }
    lua_pushcfunction(L, push_list);
    lua_pushlightuserdata(L, &list);
    rv = lua_pcall(L, 1, 1, 0);
    buf_free(&list.keys);
    if (rv != LUA_OK) {
        return lua_error(L);
    }
    lua_pushboolean(L, list.more);
    return 2;
}

#define INTEGER_FUNCTION(name)                                                                               \
    static int l_##name(lua_State *L)                                                                        \
    {                                                                                                        \
        struct store *s = bind_store_of(L);                                                                  \
        if (s == NULL) {                                                                                     \
            return bind_store_closed(L);                                                                     \
        }                                                                                                    \
        lua_pushinteger(L, (lua_Integer)store_##name(s));                                                    \
        return 1;                                                                                            \
    }
INTEGER_FUNCTION(revision)
INTEGER_FUNCTION(applied)
INTEGER_FUNCTION(keys)
INTEGER_FUNCTION(headroom)

/* stats() -> {bytes, quota, watches, paused, cut, events, delivered, history_events, history_bytes}: see struct
 * store_stats; bytes are an upper bound of those in use */
static int l_stats(lua_State *L)
{
    struct store *s = bind_store_of(L);
    struct store_stats stats;
    if (s == NULL) {
        return bind_store_closed(L);
    }
    store_stats(s, &stats);
    lua_createtable(L, 0, 9);
    set_integer(L, "bytes", store_bytes(s));
    set_integer(L, "quota", stats.quota);
    set_integer(L, "watches", stats.watches);
    set_integer(L, "paused", stats.paused);
    set_integer(L, "cut", stats.cut);
    set_integer(L, "events", stats.events);
    set_integer(L, "delivered", stats.delivered);
    set_integer(L, "history_events", stats.history_events);
    set_integer(L, "history_bytes", stats.history_bytes);
    return 1;
}

static int count_one(void *arg, const struct kv *kv)
{
    lua_Integer *left = arg;
    (void)kv;
    return --*left == 0;
}

/* count(prefix, max): how many keys begin so; counting ends at @max. */
static int l_count(lua_State *L)
{
    struct store *s = bind_store_of(L);
    struct slice prefix;
    prefix.p = (const uint8_t *)luaL_checklstring(L, 1, &prefix.n);
    lua_Integer max = luaL_checkinteger(L, 2);
    luaL_argcheck(L, max > 0, 2, "a count from 1");
    if (s == NULL) {
        return bind_store_closed(L);
    }
    lua_Integer left = max;
    int rv = store_list(s, prefix, NULL, count_one, &left);
    if (rv < 0) {
        return vm_fail(L, rv);
    }
    lua_pushinteger(L, max - left);
    return 1;
}

/* --- watching --- */

#define WATCH_TYPE "sym.store.watch"

struct lua_watch {
    struct watch *watch; /* NULL: closed, by Lua or by the hub */
    struct vm_cb cb;
};

struct delivery {
    struct event **events;
    unsigned n;
};

static int push_events(lua_State *L, void *arg)
{
    struct delivery *delivery = arg;
    lua_createtable(L, (int)delivery->n, 0);
    for (unsigned i = 0; i < delivery->n; i++) {
        const struct event *ev = delivery->events[i];
        lua_createtable(L, 0, 4);
        lua_pushlstring(L, (const char *)ev->key.p, ev->key.n);
        lua_setfield(L, -2, "key");
        if (ev->is_delete) {
            lua_pushboolean(L, 1);
            lua_setfield(L, -2, "deleted");
        } else {
            lua_pushlstring(L, (const char *)ev->value.p, ev->value.n);
            lua_setfield(L, -2, "value");
            lua_pushinteger(L, (lua_Integer)ev->create_revision);
            lua_setfield(L, -2, "create_revision");
        }
        lua_pushinteger(L, (lua_Integer)ev->revision);
        lua_setfield(L, -2, "revision");
        lua_rawseti(L, -2, i + 1);
    }
    return 1;
}

static bool on_events(void *arg, int status, struct event **events, unsigned n)
{
    struct lua_watch *w = arg;
    struct delivery delivery = {events, n};
    if (status != 0) {
        w->watch = NULL;
        vm_cb_fire(&w->cb, status, NULL, NULL);
        return true;
    }
    vm_cb_call(&w->cb, 0, push_events, &delivery);
    return true;
}

static int watch_stop(lua_State *L)
{
    struct lua_watch *w = luaL_checkudata(L, 1, WATCH_TYPE);
    /* A node that was stopped has taken its store, and the watches in it, with it. */
    if (w->watch != NULL) {
        watch_close(w->watch);
        w->watch = NULL;
    }
    vm_cb_drop(&w->cb);
    return 0;
}

static int l_watch(lua_State *L)
{
    struct store *s = bind_store_of(L);
    struct slice prefix;
    prefix.p = (const uint8_t *)luaL_checklstring(L, 1, &prefix.n);
    lua_Integer after = luaL_checkinteger(L, 2);
    luaL_argcheck(L, after >= 0, 2, "revision");
    luaL_checktype(L, 3, LUA_TFUNCTION);
    if (s == NULL) {
        return bind_store_closed(L);
    }
    struct lua_watch *w = lua_newuserdatauv(L, sizeof *w, 0);
    memset(w, 0, sizeof *w);
    luaL_setmetatable(L, WATCH_TYPE);
    vm_cb_take(L, 3, &w->cb);
    int rv = watch_open(s, prefix, (uint64_t)after, on_events, w, &w->watch);
    if (rv != 0) {
        w->watch = NULL;
        vm_cb_drop(&w->cb);
        return vm_fail(L, rv);
    }
    return 1;
}

/* --- snapshots --- */

#define ENCODE_TYPE "sym.store.encode"

struct anchor {
    struct encode *encode;
};

struct encode {
    uv_work_t work;
    struct vm_cb cb;
    /* Where a userdata that lives until this is done points here: so a state that is closed meanwhile can say
     * so. */
    struct anchor *anchor;
    int anchor_ref;
    struct snap *snap;
    struct buf out;
    int rv;
    char message[256];
};

static void encode_run(uv_work_t *work)
{
    struct encode *e = work->data;
    e->rv = snap_encode(e->snap, &e->out);
    if (e->rv != 0) {
        strncpy(e->message, err_msg(), sizeof e->message - 1);
    }
}

static int push_bytes(lua_State *L, void *arg)
{
    struct encode *e = arg;
    lua_pushlstring(L, (const char *)buf_data(&e->out), e->out.len);
    return 1;
}

static int encode_orphaned(lua_State *L)
{
    struct anchor *anchor = luaL_checkudata(L, 1, ENCODE_TYPE);
    if (anchor->encode != NULL) {
        anchor->encode->cb.L = NULL;
        anchor->encode = NULL;
    }
    return 0;
}

static void encode_done(uv_work_t *work, int status)
{
    struct encode *e = work->data;
    (void)status;
    snap_end(e->snap);
    if (e->cb.L != NULL) {
        e->anchor->encode = NULL;
        luaL_unref(e->cb.L, LUA_REGISTRYINDEX, e->anchor_ref);
        if (e->rv != 0) {
            err_setf(e->rv, "%s", e->message);
        }
        vm_cb_fire(&e->cb, e->rv, push_bytes, e);
    }
    buf_free(&e->out);
    free(e);
}

static int l_snapshot(lua_State *L)
{
    struct store *s = bind_store_of(L);
    struct vm_cb cb;
    luaL_checktype(L, 1, LUA_TFUNCTION);
    if (s == NULL) {
        return bind_store_closed(L);
    }
    struct anchor *anchor = lua_newuserdatauv(L, sizeof *anchor, 0);
    anchor->encode = NULL;
    luaL_setmetatable(L, ENCODE_TYPE);
    int anchor_ref = luaL_ref(L, LUA_REGISTRYINDEX);
    vm_cb_take(L, 1, &cb);
    struct encode *e = calloc(1, sizeof *e);
    int rv = e == NULL ? err_setf(SYM_ENOMEM, "out of memory") : snap_begin(s, &e->snap);
    if (rv != 0) {
        free(e);
        vm_cb_drop(&cb);
        luaL_unref(L, LUA_REGISTRYINDEX, anchor_ref);
        return vm_fail(L, rv);
    }
    anchor->encode = e;
    e->anchor = anchor;
    e->anchor_ref = anchor_ref;
    e->cb = cb;
    e->work.data = e;
    uv_queue_work(vm_loop(L), &e->work, encode_run, encode_done);
    lua_pushboolean(L, 1);
    return 1;
}

struct each {
    lua_State *L;
    int status;
};

/* The callback's errors are carried out of the walk and raised behind it. */
static int snapshot_one(void *arg, const struct kv *kv)
{
    struct each *each = arg;
    lua_State *L = each->L;
    if (!lua_checkstack(L, 4)) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    lua_pushvalue(L, 2);
    lua_pushlstring(L, (const char *)kv->key.p, kv->key.n);
    lua_pushlstring(L, (const char *)kv->value.p, kv->value.n);
    each->status = lua_pcall(L, 2, 0, 0);
    return each->status == LUA_OK ? 0 : 1;
}

static int l_snapshot_list(lua_State *L)
{
    size_t n;
    struct each each = {.L = L, .status = LUA_OK};
    const char *data = luaL_checklstring(L, 1, &n);
    luaL_checktype(L, 2, LUA_TFUNCTION);
    lua_settop(L, 2);
    int rv = snap_each((const uint8_t *)data, n, snapshot_one, &each);
    if (rv < 0) {
        return vm_fail(L, rv);
    }
    if (each.status != LUA_OK) {
        return lua_error(L);
    }
    lua_pushboolean(L, 1);
    return 1;
}

int luaopen_sym_store(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"get", l_get},
        {"result", l_result},
        {"list", l_list},
        {"revision", l_revision},
        {"applied", l_applied},
        {"keys", l_keys},
        {"headroom", l_headroom},
        {"stats", l_stats},
        {"count", l_count},
        {"watch", l_watch},
        {"snapshot", l_snapshot},
        {"snapshot_list", l_snapshot_list},
        {NULL, NULL},
    };
    static const luaL_Reg methods[] = {
        {"close", watch_stop}, {"__gc", watch_stop}, {"__close", watch_stop}, {NULL, NULL}};
    luaL_newmetatable(L, WATCH_TYPE);
    luaL_setfuncs(L, methods, 0);
    lua_pushvalue(L, -1);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);
    luaL_newmetatable(L, ENCODE_TYPE);
    lua_pushcfunction(L, encode_orphaned);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
    luaL_newlib(L, functions);
    return 1;
}
