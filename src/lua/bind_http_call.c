/* sym.http.request: the peer's certificate is checked here, before a byte of the request is sent. */
#include "base/err.h"
#include "lua/bind_crypto.h"
#include "lua/bind_http_impl.h"
#include "lua/vm.h"
#include "net/http.h"
#include "net/http_text.h"

#include <stdlib.h>
#include <string.h>

static const char type_name[] = "sym.http.call";

/* What the handle, a userdata, points to. Freed when the call is over and the handle is collected. */
struct lcall {
    LIST_ENTRY(lcall) link;
    bool held;              /* by the handle */
    bool started;           /* done will come */
    bool over;              /* it has come */
    struct http_call *call; /* NULL before the start and after the end */
    uv_timer_t later;       /* tells of a failure to start, in the next turn of the loop */
    int failed;
    char *why;
    struct vm_cb done, on_head, on_data;
    /* What is asked of the peer. */
    bool pinned, expired_ok, ca_wanted;
    uint8_t pin[SHA256_LEN];
    char role[64];
    /* What was found out about it. */
    bool has_peer, peer_expired;
    struct cert_info peer;
    char *ca; /* PEM */
    /* The answer, while it is pushed. */
    int status;
    const uint8_t *body;
    size_t body_len;
};

static void free_if_unused(struct lcall *c)
{
    if (c->held || (c->started && !c->over)) {
        return;
    }
    LIST_REMOVE(c, link);
    vm_cb_drop(&c->done);
    vm_cb_drop(&c->on_head);
    vm_cb_drop(&c->on_data);
    free(c->ca);
    free(c->why);
    free(c);
}

/* Tells Lua of the end. */
static void finish(struct lcall *c, int err, int (*push)(lua_State *L, void *arg))
{
    c->call = NULL;
    vm_cb_fire(&c->done, err, push, c);
    c->over = true;
    vm_cb_drop(&c->on_head);
    vm_cb_drop(&c->on_data);
    free_if_unused(c);
}

/* --- the peer */

/* The next certificate of a PEM text: its length, 0 at the end. *at is moved to its beginning. */
static size_t next_cert(const char **at)
{
    static const char begin[] = "-----BEGIN CERTIFICATE-----", end[] = "-----END CERTIFICATE-----";
    const char *from = strstr(*at, begin);
    const char *to = from != NULL ? strstr(from, end) : NULL;
    if (to == NULL) {
        return 0;
    }
    *at = from;
    return (size_t)(to - from) + sizeof end - 1;
}

/* Has the CA at @ca signed one of @chain that has signed the leaf? So says a CA of the one that takes its place. */
static bool vouches(const char *ca, size_t ca_len, const char *chain)
{
    const char *leaf = chain, *at;
    size_t leaf_len = next_cert(&leaf), n;
    for (at = chain; (n = next_cert(&at)) > 0; at += n) {
        struct cert_info info;
        if (cert_info(at, n, &info) == 0 && info.is_ca && cert_check_issuer(at, n, ca, ca_len) == 0 &&
            cert_check_issuer(leaf, leaf_len, at, n) == 0) {
            return true;
        }
    }
    return false;
}

static int keep_ca(struct lcall *c, const char *at, size_t n)
{
    c->ca = calloc(1, n + 2);
    if (c->ca == NULL) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    memcpy(c->ca, at, n);
    c->ca[n] = '\n';
    return 0;
}

/* Finds the CA that signed the peer's leaf, or vouches for the one that did, among what the peer sent: the pinned one,
 * or any. That none was sent at all is no matter of trust: it is another kind of port. */
static int find_ca(struct lcall *c, const char *chain)
{
    const char *leaf = chain, *at;
    size_t leaf_len = next_cert(&leaf), n;
    bool shown = false;
    for (at = chain; (n = next_cert(&at)) > 0; at += n) {
        struct cert_info info;
        bool is_ca = cert_info(at, n, &info) == 0 && info.is_ca;
        shown = shown || is_ca;
        if (!is_ca || (c->pinned && !crypto_equal(info.digest, c->pin, sizeof c->pin))) {
            continue;
        }
        if (c->pinned
                ? vouches(at, n, chain)
                : cert_check_issuer(at, n, at, n) == 0 && cert_check_issuer(leaf, leaf_len, at, n) == 0) {
            return keep_ca(c, at, n);
        }
        if (c->pinned) {
            break; /* there is no other with this digest */
        }
    }
    if (c->ca_wanted && !shown) {
        return err_setf(SYM_EPROTO, "it shows no CA with its certificate, as a raft port does");
    }
    return c->pinned ? err_setf(SYM_EAUTH, "the certificate of the peer is not from the pinned CA") : 0;
}

static int check_peer(void *arg, struct stream *s)
{
    struct lcall *c = arg;
    const struct tls_peer *peer = stream_tls_peer(s);
    struct buf chain = {0};
    if (peer == NULL || !peer->present) {
        return err_setf(SYM_EAUTH, "the peer shows no certificate");
    }
    c->peer = peer->cert;
    c->peer_expired = peer->expired;
    c->has_peer = true;
    int rv = stream_tls_chain(s, &chain);
    rv = rv != 0 ? rv : buf_append(&chain, "", 1);
    rv = rv != 0 ? rv : find_ca(c, (const char *)buf_data(&chain));
    buf_free(&chain);
    if (rv != 0) {
        return rv;
    }
    if (c->role[0] != '\0' && (strcmp(peer->cert.ou, c->role) != 0 || !peer->cert.is_server)) {
        return err_setf(SYM_EAUTH, "the peer is no %s but a %s", c->role,
            peer->cert.ou[0] == '\0' ? "stranger" : peer->cert.ou);
    }
    if (peer->expired && !c->expired_ok) {
        return err_setf(
            SYM_EEXPIRED, "the peer's certificate is not valid at this time (are the clocks right?)");
    }
    return 0;
}

/* --- callbacks into Lua */

/* Calls it back in the middle of the call, which ends when it raises. */
static void call_back(
    struct lcall *c, const struct vm_cb *cb, int (*push)(lua_State *L, void *arg), void *arg)
{
    if (vm_cb_call_raw(cb, push, arg) != 0 && c->call != NULL) {
        http_call_cancel(c->call);
    }
}

static int push_status(lua_State *L, void *arg)
{
    lua_pushinteger(L, *(const int *)arg);
    return 1;
}

static void on_head(void *arg, int status)
{
    struct lcall *c = arg;
    call_back(c, &c->on_head, push_status, &status);
}

struct portion {
    const uint8_t *data;
    size_t n;
};

static int push_data(lua_State *L, void *arg)
{
    const struct portion *portion = arg;
    lua_pushlstring(L, (const char *)portion->data, portion->n);
    return 1;
}

static void on_data(void *arg, const uint8_t *data, size_t n)
{
    struct lcall *c = arg;
    call_back(c, &c->on_data, push_data, &(struct portion){data, n});
}

static int push_answer(lua_State *L, void *arg)
{
    struct lcall *c = arg;
    lua_createtable(L, 0, 4);
    lua_pushinteger(L, c->status);
    lua_setfield(L, -2, "status");
    if (c->body != NULL) {
        lua_pushlstring(L, (const char *)c->body, c->body_len);
        lua_setfield(L, -2, "body");
    }
    if (c->has_peer) {
        bind_crypto_push_info(L, &c->peer);
        lua_pushboolean(L, c->peer_expired);
        lua_setfield(L, -2, "expired");
        lua_setfield(L, -2, "peer");
    }
    if (c->ca != NULL) {
        lua_pushstring(L, c->ca);
        lua_setfield(L, -2, "ca");
    }
    return 1;
}

static void on_done(void *arg, int err, int status, const uint8_t *body, size_t n)
{
    struct lcall *c = arg;
    c->status = status;
    c->body = body;
    c->body_len = n;
    finish(c, err, push_answer);
}

static void on_later_closed(uv_handle_t *handle)
{
    struct lcall *c = handle->data;
    err_setf(c->failed, "%s", c->why != NULL ? c->why : err_name(c->failed));
    finish(c, c->failed, NULL);
}

static void on_later(uv_timer_t *timer)
{
    uv_close((uv_handle_t *)timer, on_later_closed);
}

/* --- options */

static const char *opt_text(lua_State *L, const char *name, const char *missing)
{
    lua_getfield(L, 1, name);
    if (lua_isnil(L, -1)) {
        return missing;
    }
    size_t n;
    const char *text = lua_type(L, -1) == LUA_TSTRING ? lua_tolstring(L, -1, &n) : NULL;
    if (text == NULL || strlen(text) != n) {
        luaL_error(L, "http.request: %s must be a text without NUL", name);
    }
    return text;
}

static lua_Integer opt_number(lua_State *L, const char *name, lua_Integer max)
{
    int is_number = 1;
    lua_Integer v = 0;
    if (lua_getfield(L, 1, name) != LUA_TNIL) {
        v = lua_tointegerx(L, -1, &is_number);
    }
    if (!is_number || v < 0 || v > max) {
        luaL_error(L, "http.request: %s must be an integer from 0 to %I", name, max);
    }
    lua_pop(L, 1);
    return v;
}

static bool field_true(lua_State *L, int idx, const char *name)
{
    lua_getfield(L, idx, name);
    bool v = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return v;
}

static void opt_function(lua_State *L, const char *name, struct vm_cb *out)
{
    if (lua_getfield(L, 1, name) != LUA_TNIL) {
        vm_cb_take(L, -1, out);
    }
    lua_pop(L, 1);
}

struct tls_opts {
    bool wanted;
    unsigned flags;
    const char *cert, *ca;
    const struct key *key;
};

/* opts.tls: {ca=, cert=, key=} | {pin=} | {trust_any=true}, and expired_ok. Its values stay on the stack. */
static void read_tls(lua_State *L, struct lcall *c, struct tls_opts *out)
{
    if (lua_getfield(L, 1, "tls") == LUA_TNIL) {
        return;
    }
    if (!lua_istable(L, -1)) {
        luaL_error(L, "http.request: tls must be a table");
    }
    int tls = lua_absindex(L, -1);
    out->wanted = true;
    c->expired_ok = field_true(L, tls, "expired_ok");
    if (lua_getfield(L, tls, "pin") != LUA_TNIL) {
        size_t n;
        const char *pin = luaL_checklstring(L, -1, &n);
        if (n != sizeof c->pin) {
            luaL_error(L, "http.request: a pin has %d bytes", (int)sizeof c->pin);
        }
        memcpy(c->pin, pin, n);
        c->pinned = true;
        out->flags = TLS_PEER_ANY;
    } else if (field_true(L, tls, "trust_any")) {
        out->flags = TLS_PEER_ANY;
    }
    if (lua_getfield(L, tls, "ca") != LUA_TNIL) {
        out->ca = luaL_checkstring(L, -1);
    } else if (out->flags == 0) {
        luaL_error(L, "http.request: tls needs ca, pin or trust_any");
    }
    c->ca_wanted = out->flags == TLS_PEER_ANY && out->ca == NULL;
    if (lua_getfield(L, tls, "cert") != LUA_TNIL) {
        out->cert = luaL_checkstring(L, -1);
        lua_getfield(L, tls, "key");
        out->key = bind_crypto_check_key(L, lua_absindex(L, -1));
    }
}

/* --- the handle */

static int call_cancel(lua_State *L)
{
    struct lcall *c = *(struct lcall **)luaL_checkudata(L, 1, type_name);
    if (c->call != NULL) {
        http_call_cancel(c->call);
    }
    return 0;
}

static int call_gc(lua_State *L)
{
    struct lcall **handle = lua_touserdata(L, 1); /* checking it could fail for lack of memory */
    struct lcall *c = *handle;
    if (c != NULL) {
        *handle = NULL;
        c->held = false;
        free_if_unused(c);
    }
    return 0;
}

static struct lcall *push_handle(lua_State *L, struct http_state *state)
{
    static const luaL_Reg meta[] = {{"__gc", call_gc}, {NULL, NULL}};
    static const luaL_Reg methods[] = {{"cancel", call_cancel}, {"close", call_cancel}, {NULL, NULL}};
    struct lcall **handle = lua_newuserdatauv(L, sizeof(void *), 0);
    *handle = NULL;
    bind_http_push_type(L, type_name, meta, methods);
    lua_setmetatable(L, -2);
    struct lcall *c = calloc(1, sizeof *c);
    if (c == NULL) {
        luaL_error(L, "out of memory");
        return NULL;
    }
    c->held = true;
    LIST_INSERT_HEAD(&state->calls, c, link);
    *handle = c;
    return c;
}

/* What is still under way ends without a word to the state, which is closing. */
void bind_http_end_calls(struct http_state *s)
{
    struct lcall *c;
    while ((c = LIST_FIRST(&s->calls)) != NULL) {
        LIST_REMOVE(c, link);
        c->link.le_next = NULL;
        c->link.le_prev = &c->link.le_next; /* the head goes before it does */
        c->done.L = c->on_head.L = c->on_data.L = NULL;
        if (c->call != NULL) {
            http_call_cancel(c->call);
        }
        c->held = false;
        free_if_unused(c);
    }
}

/* --- request */

void bind_http_drop_tls(struct http_state *s)
{
    tls_ctx_free(s->tls);
    free(s->tls_cert);
    free(s->tls_ca);
    s->tls = NULL;
    s->tls_cert = s->tls_ca = NULL;
}

static bool is_kept(const struct http_state *s, const struct tls_opts *tls)
{
    return s->tls != NULL && s->tls_flags == tls->flags && strcmp(s->tls_cert, tls->cert) == 0 &&
           strcmp(s->tls_ca, tls->ca) == 0;
}

/* Keeps @ctx for the next call, or frees it. */
static void keep_tls(struct http_state *s, const struct tls_opts *tls, struct tls_ctx *ctx)
{
    bind_http_drop_tls(s);
    s->tls = ctx;
    s->tls_flags = tls->flags;
    s->tls_cert = strdup(tls->cert);
    s->tls_ca = strdup(tls->ca);
    if (s->tls_cert == NULL || s->tls_ca == NULL) {
        bind_http_drop_tls(s);
    }
}

static int start(lua_State *L, struct lcall *c, struct http_call_opts *o, const struct tls_opts *tls)
{
    struct http_state *state = bind_http_state(L);
    bool may_keep = tls->cert != NULL && tls->ca != NULL;
    bool kept = tls->wanted && may_keep && is_kept(state, tls);
    struct tls_ctx *ctx = kept ? state->tls : NULL;
    int rv = 0;
    if (tls->wanted && !kept) {
        rv = tls_ctx_new((enum tls_flags)tls->flags, tls->cert, tls->key, tls->ca, &ctx);
    }
    if (rv == 0) {
        o->tls = ctx;
        rv = http_call_start(vm_loop(L), o, &c->call);
    }
    if (ctx != NULL && !kept && may_keep) {
        keep_tls(state, tls, ctx);
    } else if (!kept) {
        tls_ctx_free(ctx);
    }
    return rv;
}

int bind_http_request(lua_State *L)
{
    struct http_state *state = bind_http_state(L);
    struct tls_opts tls = {0};
    struct http_call_opts o = {0};
    luaL_checktype(L, 1, LUA_TTABLE);
    luaL_checktype(L, 2, LUA_TFUNCTION);
    lua_settop(L, 2);
    luaL_checkstack(L, 24, NULL);

    /* The handle is what frees the rest should an option be wrong. */
    struct lcall *c = push_handle(L, state);

    o.unix_path = opt_text(L, "unix", NULL);
    o.host = opt_text(L, "host", NULL);
    if ((o.unix_path == NULL) == (o.host == NULL)) {
        return luaL_error(L, "http.request: either unix or host must be given");
    }
    o.port = (uint16_t)opt_number(L, "port", UINT16_MAX);
    o.method = opt_text(L, "method", "GET");
    o.path = opt_text(L, "path", "/");
    if (!http_is_token(o.method) || !http_is_target(o.path)) {
        return luaL_error(L, "http.request: the method or path is not well-formed");
    }
    o.timeout_ms = (uint64_t)opt_number(L, "timeout_ms", INT32_MAX);
    o.idle_ms = (uint64_t)opt_number(L, "idle_ms", INT32_MAX);
    o.max_body = (size_t)opt_number(L, "max_body", INT32_MAX);
    lua_getfield(L, 1, "headers");
    o.headers = bind_http_headers(L, -1);
    if (lua_getfield(L, 1, "body") != LUA_TNIL) {
        if (lua_type(L, -1) != LUA_TSTRING) {
            return luaL_error(L, "http.request: the body must be text");
        }
        o.body = lua_tolstring(L, -1, &o.body_len);
    }
    const char *role = opt_text(L, "role", "");
    if (strlen(role) >= sizeof c->role) {
        return luaL_error(L, "http.request: no such role");
    }
    memcpy(c->role, role, strlen(role) + 1);
    read_tls(L, c, &tls);
    if (c->role[0] != '\0' && !tls.wanted) {
        return luaL_error(L, "http.request: a role can only be asked of a peer with TLS");
    }
    opt_function(L, "on_head", &c->on_head);
    opt_function(L, "on_data", &c->on_data);
    vm_cb_take(L, 2, &c->done);

    /* Nothing raises from here on, and the call lives on without its handle. */
    o.check_peer = tls.wanted ? check_peer : NULL;
    o.on_head = c->on_head.L != NULL ? on_head : NULL;
    o.on_data = c->on_data.L != NULL ? on_data : NULL;
    o.on_done = on_done;
    o.arg = c;
    c->started = true;
    int rv = start(L, c, &o, &tls);
    if (rv != 0) {
        c->failed = rv;
        c->why = strdup(err_msg());
        uv_timer_init(vm_loop(L), &c->later);
        c->later.data = c;
        uv_timer_start(&c->later, on_later, 0, 0);
    }
    lua_pushvalue(L, 3);
    return 1;
}
