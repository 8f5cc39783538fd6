/* sym.gossip: who is there and who is not (gossip/gossip.h). Ids are texts, addresses numeric "ip:port".
 *
 * open{node_id, cluster_id, start, incarnation (default: start), bind_addr, port, address, meta, key, keys, and whatever
 *     number swim_config has, such as period_ms} -> handle | nil, err; handle.port is the one that was bound, which an
 *     address without one gets. @key is a key of sym.crypto, keys = {{id =, secret = 32 bytes, use = bool}, ...}.
 * A handle that nobody holds closes itself. After close() no callback fires but that of a leave under way, with
 * "closed"; and everything else answers nil, {code = "closed"}.
 */
#include "base/err.h"
#include "gossip/gossip.h"
#include "gossip/gossip_addr.h"
#include "lua/bind_crypto.h"
#include "lua/fields.h"
#include "lua/vm.h"

#include <stdlib.h>
#include <string.h>

static const char type_name[] = "sym.gossip";

/* What the handle points to. It is freed when the handle has been collected and the driver is closed. */
struct lgossip {
    struct gossip *g; /* NULL: closed */
    struct gossip_ops ops;
    bool held;    /* by the handle */
    bool closing; /* the driver has not come to its end yet */
    uint16_t port;
    struct vm_cb on_event, on_probe, on_leave;
    struct vm_cb anchor; /* keeps the handle during a leave */
    struct buf piece;
};

static const char *const events[] = {
    [SWIM_JOINED] = "joined",
    [SWIM_SUSPECTED] = "suspected",
    [SWIM_REFUTED] = "refuted",
    [SWIM_DIED] = "died",
    [SWIM_RETURNED] = "returned",
    [SWIM_DIFFERS] = "differs",
    [SWIM_DEPARTED] = "departed",
    [SWIM_UPDATED] = "updated",
    [SWIM_FORGOTTEN] = "forgotten",
    [SWIM_ACCUSED] = "accused",
    [SWIM_DOUBLE] = "double",
};
static const char *const states[] = {
    [SWIM_ALIVE] = "alive", [SWIM_SUSPECT] = "suspect", [SWIM_DEAD] = "dead", [SWIM_LEFT] = "left"};

/* --- members --- */

static void push_member(lua_State *L, const struct gossip *g, const struct swim_member *from)
{
    char id[27], addr[GOSSIP_ADDR_TEXT];
    uint8_t meta[SWIM_META_MAX];
    /* What is pushed may collect garbage, and a finalizer may do anything to the members. */
    struct swim_member copy = *from, *m = &copy;
    if (m->meta_len > 0) {
        memcpy(meta, m->meta, m->meta_len);
    }
    swim_id_text(&m->id, id);
    gossip_addr_text(&m->addr, addr);
    lua_createtable(L, 0, 6);
    set_text(L, "node_id", id);
    set_text(L, "state", states[m->state]);
    set_integer(L, "age_ms", gossip_age(g, m));
    set_integer(L, "incarnation", m->incarnation);
    set_text(L, "address", addr);
    set_bytes(L, "meta", meta, m->meta_len);
}

struct told {
    const struct gossip *g;
    const char *what; /* NULL: a probe */
    const struct swim_member *m;
    uint32_t ticket;
};

static int push_told(lua_State *L, void *arg)
{
    const struct told *t = arg;
    int n = 0;
    luaL_checkstack(L, 6, NULL);
    if (t->what != NULL) {
        lua_pushstring(L, t->what);
        n++;
    }
    if (t->m != NULL) {
        push_member(L, t->g, t->m);
        n++;
    }
    if (t->what == NULL) {
        lua_pushinteger(L, t->ticket);
        n++;
    }
    return n;
}

static void on_event(void *arg, enum swim_event what, const struct swim_member *m)
{
    struct lgossip *lg = arg;
    struct told told = {.g = lg->g, .what = events[what], .m = m};
    vm_cb_call(&lg->on_event, 0, push_told, &told);
}

static void on_lost(void *arg)
{
    struct lgossip *lg = arg;
    struct told told = {.g = lg->g, .what = "lost"};
    vm_cb_call(&lg->on_event, 0, push_told, &told);
}

static void on_probe(void *arg, const struct swim_member *m, uint32_t ticket)
{
    struct lgossip *lg = arg;
    struct told told = {.g = lg->g, .m = m, .ticket = ticket};
    vm_cb_call(&lg->on_probe, 0, push_told, &told);
}

static void on_left(void *arg)
{
    struct lgossip *lg = arg;
    vm_cb_drop(&lg->anchor);
    vm_cb_fire(&lg->on_leave, 0, NULL, NULL);
}

/* --- the handle --- */

static void free_if_unused(struct lgossip *lg)
{
    if (!lg->held && !lg->closing) {
        buf_free(&lg->piece);
        free(lg);
    }
}

static void on_closed(void *arg)
{
    struct lgossip *lg = arg;
    vm_cb_drop(&lg->anchor);
    if (lg->on_leave.L != NULL) {
        err_setf(SYM_ECLOSED, "gossip is closed");
        vm_cb_fire(&lg->on_leave, SYM_ECLOSED, NULL, NULL);
    }
    lg->closing = false; /* only now: the handle may be collected in there */
    free_if_unused(lg);
}

static void close_driver(struct lgossip *lg)
{
    struct gossip *g = lg->g;
    vm_cb_drop(&lg->on_event);
    vm_cb_drop(&lg->on_probe);
    if (g != NULL) {
        lg->g = NULL;
        lg->closing = true;
        gossip_close(g, on_closed, lg);
    }
}

static int handle_gc(lua_State *L)
{
    struct lgossip **handle = lua_touserdata(L, 1); /* checking it could fail for lack of memory */
    struct lgossip *lg = *handle;
    if (lg != NULL) {
        *handle = NULL;
        lg->held = false;
        vm_cb_drop(&lg->anchor);
        vm_cb_drop(&lg->on_leave);
        close_driver(lg);
        free_if_unused(lg);
    }
    return 0;
}

static struct lgossip *check_handle(lua_State *L)
{
    struct lgossip *lg = *(struct lgossip **)luaL_checkudata(L, 1, type_name);
    luaL_argcheck(L, lg != NULL, 1, "the handle is gone");
    return lg;
}

static int closed(lua_State *L)
{
    return vm_fail(L, err_setf(SYM_ECLOSED, "gossip is closed"));
}

static int done(lua_State *L, int rv)
{
    if (rv != 0) {
        return vm_fail(L, rv);
    }
    lua_pushboolean(L, 1);
    return 1;
}

static int check_id(lua_State *L, int idx, struct swim_id *out)
{
    const char *text = luaL_checkstring(L, idx);
    int rv = swim_id_parse(text, out);
    return rv == 0 ? 0 : err_setf(SYM_EINVAL, "\"%.64s\" is not a node's id", text);
}

/* --- options --- */

/* The string at the top of the stack, a field of a table that keeps it alive. */
static const char *take_text(lua_State *L, const char *name, size_t *n)
{
    if (lua_type(L, -1) != LUA_TSTRING) {
        luaL_error(L, "gossip: '%s' must be a string", name);
    }
    const char *text = lua_tolstring(L, -1, n);
    lua_pop(L, 1);
    return text;
}

static const char *text_field(lua_State *L, int idx, const char *name)
{
    size_t n;
    lua_getfield(L, idx, name);
    const char *text = take_text(L, name, &n);
    if (strlen(text) != n) {
        luaL_error(L, "gossip: '%s' has a NUL character", name);
    }
    return text;
}

static uint64_t number_field(lua_State *L, int idx, const char *name, bool needed, lua_Integer max)
{
    int is_integer = !needed;
    lua_Integer v = 0;
    if (lua_getfield(L, idx, name) != LUA_TNIL) {
        v = lua_tointegerx(L, -1, &is_integer);
    }
    if (!is_integer || v < 0 || v > max) {
        luaL_error(L, "gossip: '%s' must be an integer from 0 to %I", name, max);
    }
    lua_pop(L, 1);
    return (uint64_t)v;
}

/* The list at @idx; one more than fits is left to seal_keys to refuse. */
static size_t check_keys(lua_State *L, int idx, struct seal_key keys[SEAL_KEYS_MAX + 1])
{
    luaL_checktype(L, idx, LUA_TTABLE);
    size_t len = lua_rawlen(L, idx), secret_len;
    size_t n = len <= SEAL_KEYS_MAX ? len : SEAL_KEYS_MAX + 1;
    for (size_t i = 0; i < n; i++) {
        if (lua_rawgeti(L, idx, (lua_Integer)i + 1) != LUA_TTABLE) {
            luaL_error(L, "gossip: a key is a table");
        }
        int key = lua_gettop(L);
        keys[i].id = (uint32_t)number_field(L, key, "id", true, UINT32_MAX);
        lua_getfield(L, key, "use");
        keys[i].use = lua_toboolean(L, -1);
        lua_pop(L, 1);
        lua_getfield(L, key, "secret");
        const char *secret = take_text(L, "secret", &secret_len);
        if (secret_len != SEAL_SECRET_LEN) {
            luaL_error(L, "gossip: a secret has %d bytes", SEAL_SECRET_LEN);
        }
        memcpy(keys[i].secret, secret, secret_len);
        lua_pop(L, 1);
    }
    return n;
}

static void check_timing(lua_State *L, struct swim_config *c)
{
    const struct {
        const char *name;
        uint32_t *value;
    } fields[] = {
        {"period_ms", &c->period_ms},
        {"probe_timeout_ms", &c->probe_timeout_ms},
        {"helpers", &c->helpers},
        {"health_max", &c->health_max},
        {"suspicion_alpha", &c->suspicion_alpha},
        {"suspicion_beta", &c->suspicion_beta},
        {"confirmations", &c->confirmations},
        {"lambda", &c->lambda},
        {"gossip_ms", &c->gossip_ms},
        {"fanout", &c->fanout},
        {"reconnect_ms", &c->reconnect_ms},
        {"forget_ms", &c->forget_ms},
        {"max_members", &c->max_members},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        *fields[i].value = (uint32_t)number_field(L, 1, fields[i].name, false, UINT32_MAX);
    }
}

static struct lgossip *push_handle(lua_State *L)
{
    struct lgossip **handle = lua_newuserdatauv(L, sizeof(void *), 0);
    *handle = NULL;
    luaL_setmetatable(L, type_name);
    *handle = calloc(1, sizeof **handle);
    if (*handle != NULL) {
        (*handle)->held = true;
    }
    return *handle;
}

static int l_open(lua_State *L)
{
    struct seal_key keys[SEAL_KEYS_MAX + 1];
    struct gossip_config c = {.keys = keys};
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    const char *id = text_field(L, 1, "node_id"), *address = text_field(L, 1, "address");
    c.swim.cluster = text_field(L, 1, "cluster_id");
    c.swim.cluster_len = strlen(c.swim.cluster);
    c.bind_addr = text_field(L, 1, "bind_addr");
    c.port = (uint16_t)number_field(L, 1, "port", true, UINT16_MAX);
    c.start = number_field(L, 1, "start", true, LUA_MAXINTEGER);
    c.swim.incarnation = number_field(L, 1, "incarnation", false, LUA_MAXINTEGER);
    c.swim.incarnation = c.swim.incarnation == 0 ? c.start : c.swim.incarnation;
    lua_getfield(L, 1, "meta");
    c.swim.meta = lua_isnil(L, -1) ? "" : take_text(L, "meta", &c.swim.meta_len);
    check_timing(L, &c.swim);
    lua_settop(L, 1);
    struct lgossip *lg = push_handle(L);
    lua_getfield(L, 1, "key");
    c.key = bind_crypto_check_key(L, -1);
    lua_getfield(L, 1, "keys");
    c.n_keys = check_keys(L, lua_gettop(L), keys);
    lua_settop(L, 2);

    int rv = lg == NULL ? err_setf(SYM_ENOMEM, "out of memory") : swim_id_parse(id, &c.swim.id);
    if (lg != NULL && rv != 0) {
        rv = err_setf(SYM_EINVAL, "\"%.64s\" is not a node's id", id);
    }
    rv = rv != 0 ? rv : gossip_addr_parse(address, 0, &c.swim.addr);
    if (rv == 0) {
        lg->ops = (struct gossip_ops){.event = on_event, .lost = on_lost};
        rv = gossip_open(vm_loop(L), &c, &lg->ops, lg, &lg->g);
    }
    crypto_wipe(keys, sizeof keys);
    if (rv != 0) {
        return vm_fail(L, rv);
    }
    lg->port = gossip_port(lg->g);
    return 1;
}

/* --- methods --- */

/* keys(list) -> true | nil, err */
static int g_keys(lua_State *L)
{
    struct seal_key keys[SEAL_KEYS_MAX + 1];
    struct lgossip *lg = check_handle(L);
    lua_settop(L, 2);
    size_t n = check_keys(L, 2, keys);
    int rv = lg->g == NULL ? err_setf(SYM_ECLOSED, "gossip is closed") : gossip_keys(lg->g, keys, n);
    crypto_wipe(keys, sizeof keys);
    return done(L, rv);
}

/* key_uses() -> {[id] = ms since something sealed with it came}, of keys that it has for */
static int g_key_uses(lua_State *L)
{
    struct gossip_key_use uses[SEAL_KEYS_MAX];
    const struct lgossip *lg = check_handle(L);
    if (lg->g == NULL) {
        return closed(L);
    }
    size_t n = gossip_key_uses(lg->g, uses);
    lua_createtable(L, 0, (int)n);
    for (size_t i = 0; i < n; i++) {
        if (uses[i].ago_ms != UINT64_MAX) {
            lua_pushinteger(L, (lua_Integer)uses[i].ago_ms);
            lua_rawseti(L, -2, uses[i].id);
        }
    }
    return 1;
}

/* peer(node_id, spki) -> true | nil, err */
static int g_peer(lua_State *L)
{
    struct swim_id id;
    size_t n;
    const struct lgossip *lg = check_handle(L);
    const char *spki = luaL_checklstring(L, 3, &n);
    int rv = check_id(L, 2, &id);
    if (lg->g == NULL) {
        return closed(L);
    }
    return done(L, rv != 0 ? rv : gossip_peer(lg->g, &id, spki, n));
}

static int g_forget(lua_State *L)
{
    struct swim_id id;
    const struct lgossip *lg = check_handle(L);
    int rv = check_id(L, 2, &id);
    if (lg->g == NULL) {
        return closed(L);
    }
    if (rv == 0) {
        gossip_forget(lg->g, &id);
    }
    return done(L, rv);
}

/* update{address, meta} -> true | nil, err; what is not given stays */
static int g_update(lua_State *L)
{
    const struct lgossip *lg = check_handle(L);
    struct swim_addr addr;
    struct swim_member me;
    uint8_t old[SWIM_META_MAX];
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 2);
    lua_getfield(L, 2, "address");
    const char *address = lua_isnil(L, -1) ? NULL : text_field(L, 2, "address");
    size_t n = 0;
    lua_getfield(L, 2, "meta");
    const void *meta = lua_isnil(L, -1) ? NULL : take_text(L, "meta", &n);
    if (lg->g == NULL) {
        return closed(L);
    }
    gossip_self(lg->g, &me);
    addr = me.addr;
    if (meta == NULL) {
        n = me.meta_len;
        if (n > 0) { /* what the core holds is replaced */
            memcpy(old, me.meta, n);
        }
        meta = old;
    }
    int rv = address == NULL ? 0 : gossip_addr_parse(address, lg->port, &addr);
    return done(L, rv != 0 ? rv : gossip_update(lg->g, &addr, meta, n));
}

/* join("ip:port") -> true | nil, err */
static int g_join(lua_State *L)
{
    struct swim_addr addr;
    const struct lgossip *lg = check_handle(L);
    const char *text = luaL_checkstring(L, 2);
    if (lg->g == NULL) {
        return closed(L);
    }
    int rv = gossip_addr_parse(text, 0, &addr);
    if (rv == 0 && addr.port == 0) {
        rv = err_setf(SYM_EINVAL, "address \"%.100s\": the port is missing", text);
    }
    if (rv == 0) {
        gossip_join(lg->g, &addr);
    }
    return done(L, rv);
}

static void take_callback(lua_State *L, struct vm_cb *to)
{
    struct vm_cb cb = {0};
    if (!lua_isnoneornil(L, 2)) {
        vm_cb_take(L, 2, &cb);
    }
    vm_cb_drop(to);
    *to = cb;
}

/* on_event(fn(err, what, member)); err is nil. nil for none. */
static int g_on_event(lua_State *L)
{
    struct lgossip *lg = check_handle(L);
    if (lg->g == NULL) {
        return closed(L);
    }
    take_callback(L, &lg->on_event);
    return done(L, 0);
}

/* on_probe(fn(err, member, ticket)); err is nil. nil: there is no reliable channel. */
static int g_on_probe(lua_State *L)
{
    struct lgossip *lg = check_handle(L);
    if (lg->g == NULL) {
        return closed(L);
    }
    take_callback(L, &lg->on_probe);
    lg->ops.probe = lg->on_probe.L == NULL ? NULL : on_probe;
    return done(L, 0);
}

/* probe_done(ticket, alive) */
static int g_probe_done(lua_State *L)
{
    const struct lgossip *lg = check_handle(L);
    lua_Integer ticket = luaL_checkinteger(L, 2);
    if (lg->g == NULL) {
        return closed(L);
    }
    gossip_probe_done(lg->g, (uint32_t)ticket, lua_toboolean(L, 3));
    return done(L, 0);
}

/* leave(cb(err)) -> true | nil, err */
static int g_leave(lua_State *L)
{
    struct lgossip *lg = check_handle(L);
    struct vm_cb cb = {0};
    luaL_checktype(L, 2, LUA_TFUNCTION);
    if (lg->g == NULL) {
        return closed(L);
    }
    if (lg->on_leave.L != NULL) {
        return vm_fail(L, err_setf(SYM_EBUSY, "this node is leaving already"));
    }
    vm_cb_take(L, 2, &lg->on_leave);
    /* Kept as a callback is, though it is not called: the handle. */
    lua_pushvalue(L, 1);
    cb.ref = luaL_ref(L, LUA_REGISTRYINDEX);
    cb.L = lg->on_leave.L;
    lg->anchor = cb;
    int rv = gossip_leave(lg->g, on_left, lg);
    if (rv != 0) {
        vm_cb_drop(&lg->anchor);
        vm_cb_drop(&lg->on_leave);
    }
    return done(L, rv);
}

static int g_close(lua_State *L)
{
    close_driver(check_handle(L));
    return 0;
}

/* export(cursor, max) -> bytes, next cursor (0: that was all) | nil, err */
static int g_export(lua_State *L)
{
    struct lgossip *lg = check_handle(L);
    lua_Integer from = luaL_checkinteger(L, 2), max = luaL_optinteger(L, 3, SWIM_PIECE_MAX);
    luaL_argcheck(L, from >= 0 && from <= UINT32_MAX, 2, "out of range");
    luaL_argcheck(L, max >= 0, 3, "out of range");
    if (lg->g == NULL) {
        return closed(L);
    }
    uint32_t cursor = (uint32_t)from;
    buf_clear(&lg->piece);
    int rv = swim_export(gossip_swim(lg->g), &cursor, (size_t)max, &lg->piece);
    if (rv != 0) {
        return vm_fail(L, rv);
    }
    lua_pushlstring(L, (const char *)buf_data(&lg->piece), lg->piece.len);
    lua_pushinteger(L, cursor);
    return 2;
}

/* merge(from_node_id, bytes) -> true | nil, err */
static int g_merge(lua_State *L)
{
    struct swim_id id;
    size_t n;
    const struct lgossip *lg = check_handle(L);
    const char *piece = luaL_checklstring(L, 3, &n);
    int rv = check_id(L, 2, &id);
    if (lg->g == NULL) {
        return closed(L);
    }
    if (rv == 0 && n > SWIM_PIECE_MAX) {
        rv = err_setf(SYM_EPROTO, "a piece of %zu bytes", n);
    }
    return done(L, rv != 0 ? rv : gossip_merge(lg->g, &id, piece, n));
}

/* member(node_id) -> member | nil (| nil, err) */
static int g_member(lua_State *L)
{
    struct swim_id id;
    struct swim_member m;
    const struct lgossip *lg = check_handle(L);
    int rv = check_id(L, 2, &id);
    if (lg->g == NULL) {
        return closed(L);
    }
    if (rv != 0) {
        return vm_fail(L, rv);
    }
    if (swim_get(gossip_swim(lg->g), &id, &m)) {
        push_member(L, lg->g, &m);
    } else {
        lua_pushnil(L);
    }
    return 1;
}

static int g_members(lua_State *L)
{
    uint32_t cursor = 0;
    struct swim_member m;
    const struct lgossip *lg = check_handle(L);
    if (lg->g == NULL) {
        return closed(L);
    }
    lua_newtable(L);
    for (lua_Integer i = 1; lg->g != NULL && swim_each(gossip_swim(lg->g), &cursor, &m); i++) {
        push_member(L, lg->g, &m);
        lua_rawseti(L, -2, i);
    }
    return 1;
}

static int g_count(lua_State *L)
{
    const struct lgossip *lg = check_handle(L);
    if (lg->g == NULL) {
        return closed(L);
    }
    lua_pushinteger(L, (lua_Integer)swim_count(gossip_swim(lg->g)));
    return 1;
}

static int g_health(lua_State *L)
{
    const struct lgossip *lg = check_handle(L);
    if (lg->g == NULL) {
        return closed(L);
    }
    lua_pushinteger(L, swim_health(gossip_swim(lg->g)));
    return 1;
}

static void set_swim_stats(lua_State *L, const struct swim_stats *s)
{
    set_integer(L, "sent", s->sent);
    set_integer(L, "sent_bytes", s->sent_bytes);
    set_integer(L, "received", s->received);
    set_integer(L, "received_bytes", s->received_bytes);
    set_integer(L, "malformed", s->malformed);
    set_integer(L, "strangers", s->strangers);
    set_integer(L, "bad_signatures", s->bad_signatures);
    set_integer(L, "claims_deferred", s->claims_deferred);
    set_integer(L, "probes", s->probes);
    set_integer(L, "probes_indirect", s->probes_indirect);
    set_integer(L, "probes_failed", s->probes_failed);
    set_integer(L, "probes_void", s->probes_void);
    set_integer(L, "relays_refused", s->relays_refused);
    set_integer(L, "refutations", s->refutations);
    set_integer(L, "news_sent", s->news_sent);
    set_integer(L, "stalls", s->stalls);
    set_integer(L, "stalled_ms", s->stalled_ms);
    set_integer(L, "full", s->full);
    set_integer(L, "no_memory", s->no_memory);
}

/* How many members there are of each state. */
static void set_states(lua_State *L, const struct swim *swim)
{
    static const char *const names[] = {[SWIM_ALIVE] = "members_alive",
        [SWIM_SUSPECT] = "members_suspect",
        [SWIM_DEAD] = "members_dead",
        [SWIM_LEFT] = "members_left"};
    uint64_t count[sizeof names / sizeof names[0]] = {0};
    uint32_t cursor = 0;
    struct swim_member m;
    while (swim_each(swim, &cursor, &m)) {
        count[m.state]++;
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        set_integer(L, names[i], count[i]);
    }
}

/* stats() -> the figures of swim_stats by their names; seal_<verdict>; what gossip_stats has beside them; count and
 * health; members_<state> */
static int g_stats(lua_State *L)
{
    static const char *const verdicts[SEAL_VERDICTS] = {
        [SEAL_OK] = "seal_ok",
        [SEAL_MALFORMED] = "seal_malformed",
        [SEAL_REFLECTED] = "seal_reflected",
        [SEAL_STRANGER] = "seal_stranger",
        [SEAL_UNKNOWN_KEY] = "seal_unknown_key",
        [SEAL_REPLAYED] = "seal_replayed",
        [SEAL_BUSY] = "seal_busy",
        [SEAL_FORGED] = "seal_forged",
        [SEAL_NO_ROOM] = "seal_no_room",
    };
    struct gossip_stats s;
    const struct lgossip *lg = check_handle(L);
    if (lg->g == NULL) {
        return closed(L);
    }
    gossip_stats(lg->g, &s);
    lua_Integer count = (lua_Integer)swim_count(gossip_swim(lg->g));
    unsigned health = swim_health(gossip_swim(lg->g));
    lua_createtable(L, 0, 46);
    set_swim_stats(L, &s.swim);
    set_states(L, gossip_swim(lg->g));
    for (size_t i = 0; i < SEAL_VERDICTS; i++) {
        set_integer(L, verdicts[i], s.verdicts[i]);
    }
    set_integer(L, "in", s.in);
    set_integer(L, "in_bytes", s.in_bytes);
    set_integer(L, "out", s.out);
    set_integer(L, "out_bytes", s.out_bytes);
    set_integer(L, "out_full", s.out_full);
    set_integer(L, "out_failed", s.out_failed);
    set_integer(L, "pauses", s.pauses);
    set_integer(L, "system_dropped", s.system_dropped);
    set_integer(L, "events_lost", s.events_lost);
    set_integer(L, "peers", s.peers);
    set_integer(L, "keys_of_others", s.keys_of_others);
    set_integer(L, "count", (uint64_t)count);
    set_integer(L, "health", health);
    return 1;
}

/* port, and the methods, which are the upvalue */
static int handle_index(lua_State *L)
{
    const char *name = lua_tostring(L, 2);
    if (name != NULL && strcmp(name, "port") == 0) {
        lua_pushinteger(L, check_handle(L)->port);
        return 1;
    }
    lua_pushvalue(L, 2);
    lua_rawget(L, lua_upvalueindex(1));
    return 1;
}

int luaopen_sym_gossip(lua_State *L)
{
    static const luaL_Reg methods[] = {
        {"keys", g_keys},
        {"key_uses", g_key_uses},
        {"peer", g_peer},
        {"forget", g_forget},
        {"update", g_update},
        {"join", g_join},
        {"on_event", g_on_event},
        {"on_probe", g_on_probe},
        {"probe_done", g_probe_done},
        {"leave", g_leave},
        {"close", g_close},
        {"export", g_export},
        {"merge", g_merge},
        {"member", g_member},
        {"members", g_members},
        {"count", g_count},
        {"health", g_health},
        {"stats", g_stats},
        {NULL, NULL},
    };
    static const luaL_Reg functions[] = {{"open", l_open}, {NULL, NULL}};
    luaL_newmetatable(L, type_name);
    lua_pushcfunction(L, handle_gc);
    lua_setfield(L, -2, "__gc");
    luaL_newlib(L, methods);
    lua_pushcclosure(L, handle_index, 1);
    lua_setfield(L, -2, "__index");
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable"); /* out of reach, so that __gc gets nothing else */
    luaL_newlib(L, functions);
    return 1;
}
