#include "lua/bind_http.h"

#include "base/err.h"
#include "lua/bind_http_impl.h"
#include "lua/fields.h"
#include "lua/vm.h"
#include "net/http_text.h"

#include <stdlib.h>
#include <string.h>

static const char type_name[] = "sym.http.req";

struct waiter {
    STAILQ_ENTRY(waiter) link;
    struct vm_cb cb;
};
STAILQ_HEAD(waiters, waiter);

/* What the userdata points to. Its user value is the table of the request's fields: they outlive the request.
 */
struct lreq {
    LIST_ENTRY(lreq) link;
    struct http_req *req; /* NULL once it is gone */
    enum { UNANSWERED, STREAMING, ANSWERED } state;
    struct waiters writing; /* called when more may be written, */
    struct waiters parting; /* and when the request is gone */
};

/* --- waiters */

static void wait_for(lua_State *L, int idx, struct waiters *list)
{
    luaL_checktype(L, idx, LUA_TFUNCTION);
    struct waiter *w = calloc(1, sizeof *w);
    if (w == NULL) {
        luaL_error(L, "out of memory");
        return;
    }
    /* In the list first: it is freed with the object should the next line raise. */
    STAILQ_INSERT_TAIL(list, w, link);
    vm_cb_take(L, idx, &w->cb);
}

/* Empties the list before anything is called, since what is called may wait again. */
static void fire_all(struct waiters *list, int status, const char *why)
{
    struct waiters due = STAILQ_HEAD_INITIALIZER(due);
    struct waiter *w;
    STAILQ_CONCAT(&due, list);
    while ((w = STAILQ_FIRST(&due)) != NULL) {
        STAILQ_REMOVE_HEAD(&due, link);
        if (status != 0) {
            err_setf(status, "%s", why);
        }
        vm_cb_fire(&w->cb, status, NULL, NULL);
        free(w);
    }
}

static void drop_all(struct waiters *list)
{
    struct waiter *w;
    while ((w = STAILQ_FIRST(list)) != NULL) {
        STAILQ_REMOVE_HEAD(list, link);
        vm_cb_drop(&w->cb);
        free(w);
    }
}

static void on_drain(struct http_req *req)
{
    struct lreq *r = req->data;
    fire_all(&r->writing, 0, NULL);
}

static void on_gone(struct http_req *req)
{
    struct lreq *r = req->data;
    /* Lua may collect the object, and so free this, in the first call. */
    struct waiters writing = STAILQ_HEAD_INITIALIZER(writing), parting = STAILQ_HEAD_INITIALIZER(parting);
    STAILQ_CONCAT(&writing, &r->writing);
    STAILQ_CONCAT(&parting, &r->parting);
    r->req = NULL;
    fire_all(&writing, SYM_ECLOSED, "the peer is gone");
    fire_all(&parting, 0, NULL);
}

/* Lua has forgotten the request, or ends. */
static void lreq_free(struct lreq *r)
{
    struct http_req *req = r->req;
    if (req != NULL) {
        req->data = NULL;
        req->on_drain = NULL;
        req->on_gone = NULL;
        if (r->state == UNANSWERED) {
            http_respond_error(req, SYM_EIO, "the request was not answered", NULL);
        } else if (r->state == STREAMING) {
            http_abort(req);
        }
    }
    drop_all(&r->writing);
    drop_all(&r->parting);
    LIST_REMOVE(r, link);
    free(r);
}

/* --- methods */

static struct lreq *check_req(lua_State *L)
{
    return *(struct lreq **)luaL_checkudata(L, 1, type_name);
}

static int closed(lua_State *L)
{
    return vm_fail(L, err_setf(SYM_ECLOSED, "the request is gone"));
}

static int done(lua_State *L)
{
    lua_pushboolean(L, 1);
    return 1;
}

static int check_status(lua_State *L, int idx)
{
    lua_Integer status = luaL_checkinteger(L, idx);
    luaL_argcheck(L, status >= 200 && status <= 599, idx, "not a status of an answer");
    return (int)status;
}

static const char *check_ctype(lua_State *L, int idx)
{
    const char *ctype = luaL_optstring(L, idx, NULL);
    for (const char *at = ctype; at != NULL && *at != '\0'; at++) {
        luaL_argcheck(
            L, (unsigned char)*at >= ' ' && *at != 0x7f, idx, "control character in a content type");
    }
    return ctype;
}

static int req_header(lua_State *L)
{
    struct lreq *r = check_req(L);
    char name[128];
    size_t n;
    const char *given = luaL_checklstring(L, 2, &n);
    if (r->req == NULL) {
        return closed(L);
    }
    if (n >= sizeof name) {
        return 0;
    }
    for (size_t i = 0; i <= n; i++) {
        name[i] = given[i] >= 'A' && given[i] <= 'Z' ? (char)(given[i] | 32) : given[i];
    }
    lua_pushstring(L, http_req_header(r->req, name)); /* NULL gives nil */
    return 1;
}

static int req_param(lua_State *L)
{
    struct lreq *r = check_req(L);
    const char *name = luaL_checkstring(L, 2);
    luaL_Buffer value;
    if (r->req == NULL) {
        return closed(L);
    }
    size_t size = strlen(r->req->query) + 1;
    char *to = luaL_buffinitsize(L, &value, size);
    int rv = http_req_param(r->req, name, to, size);
    if (rv == SYM_ENOTFOUND) {
        lua_pushnil(L);
        return 1;
    }
    if (rv != 0) {
        return vm_fail(L, rv);
    }
    luaL_pushresultsize(&value, strlen(to));
    return 1;
}

static int req_respond(lua_State *L)
{
    struct lreq *r = check_req(L);
    size_t n = 0;
    int status = check_status(L, 2);
    const char *body = luaL_optlstring(L, 3, "", &n);
    const char *ctype = check_ctype(L, 4);
    const char *extra = bind_http_headers(L, 5);
    if (r->req == NULL) {
        return closed(L);
    }
    if (r->state != UNANSWERED) {
        return luaL_error(L, "the request is answered already");
    }
    r->state = ANSWERED;
    http_respond(r->req, status, ctype, extra, body, n);
    return done(L);
}

static int req_start(lua_State *L)
{
    struct lreq *r = check_req(L);
    int status = check_status(L, 2);
    const char *ctype = check_ctype(L, 3);
    luaL_argcheck(L, status != 204 && status != 304, 2, "an answer without a body");
    if (r->req == NULL) {
        return closed(L);
    }
    if (r->state != UNANSWERED) {
        return luaL_error(L, "the request is answered already");
    }
    r->state = STREAMING;
    http_stream_start(r->req, status, ctype);
    return done(L);
}

static int req_write(lua_State *L)
{
    struct lreq *r = check_req(L);
    size_t n;
    const char *data = luaL_checklstring(L, 2, &n);
    bool wait = !lua_isnoneornil(L, 3);
    if (wait) {
        luaL_checktype(L, 3, LUA_TFUNCTION);
    }
    if (r->req == NULL || r->state == ANSWERED) {
        return closed(L);
    }
    if (r->state != STREAMING) {
        return luaL_error(L, "the answer has not been started");
    }
    int rv = http_stream_write(r->req, data, n);
    if (rv != 0 && rv != SYM_EBUSY) {
        return vm_fail(L, rv);
    }
    if (wait) {
        wait_for(L, 3, &r->writing);
        http_stream_notify(r->req);
    }
    return done(L);
}

static int req_finish(lua_State *L)
{
    struct lreq *r = check_req(L);
    if (r->req == NULL || r->state == ANSWERED) {
        return closed(L);
    }
    if (r->state != STREAMING) {
        return luaL_error(L, "the answer has not been started");
    }
    r->state = ANSWERED;
    http_stream_end(r->req);
    return done(L);
}

static int req_abort(lua_State *L)
{
    struct lreq *r = check_req(L);
    if (r->req == NULL) {
        return closed(L);
    }
    r->state = ANSWERED;
    http_abort(r->req);
    return done(L);
}

static int req_on_gone(lua_State *L)
{
    struct lreq *r = check_req(L);
    luaL_checktype(L, 2, LUA_TFUNCTION);
    if (r->req == NULL) {
        return closed(L);
    }
    wait_for(L, 2, &r->parting);
    return done(L);
}

static int req_gc(lua_State *L)
{
    struct lreq **handle = lua_touserdata(L, 1); /* checking it could fail for lack of memory */
    if (*handle != NULL) {
        lreq_free(*handle);
        *handle = NULL;
    }
    return 0;
}

/* --- the object */

static int req_index(lua_State *L)
{
    lua_getiuservalue(L, 1, 1);
    lua_pushvalue(L, 2);
    lua_gettable(L, -2); /* its metatable leads to the methods */
    return 1;
}

static const luaL_Reg methods[] = {{"header", req_header}, {"param", req_param}, {"respond", req_respond},
    {"start", req_start}, {"write", req_write}, {"finish", req_finish}, {"abort", req_abort},
    {"on_gone", req_on_gone}, {NULL, NULL}};
static const luaL_Reg meta[] = {{"__index", req_index}, {"__gc", req_gc}, {NULL, NULL}};
static const luaL_Reg none[] = {{NULL, NULL}};

static void push_peer(lua_State *L, const struct http_req *req)
{
    lua_createtable(L, 0, 9);
    if (req->from->is_unix) {
        set_bool(L, "unix", true);
        set_integer(L, "uid", req->from->uid);
        set_integer(L, "gid", req->from->gid);
        set_integer(L, "pid", (uint64_t)req->from->pid);
        return;
    }
    set_text(L, "addr", req->from->host);
    set_integer(L, "port", req->from->port);
    if (req->tls) {
        set_bool(L, "tls", true);
    }
    if (req->peer != NULL && req->peer->present) {
        set_text(L, "cn", req->peer->cert.cn);
        set_text(L, "ou", req->peer->cert.ou);
        set_text(L, "o", req->peer->cert.o);
        set_bool(L, "expired", tls_peer_expired(req->peer));
        set_integer(L, "expires", (uint64_t)req->peer->cert.not_after);
        set_digest(L, "fingerprint", req->peer->cert.fingerprint);
    }
}

int bind_http_push_req(lua_State *L, struct http_req *req)
{
    luaL_checkstack(L, 6, NULL);
    struct http_state *state = bind_http_state(L);
    struct lreq **handle = lua_newuserdatauv(L, sizeof(void *), 1);
    *handle = NULL;
    lua_createtable(L, 0, 5);
    bind_http_push_type(L, "sym.http.req.fields", none, methods);
    lua_setmetatable(L, -2);
    set_text(L, "method", req->method);
    set_bytes(L, "path", req->path, req->path_len);
    set_text(L, "query", req->query);
    set_bytes(L, "body", req->body, req->body_len);
    push_peer(L, req);
    lua_setfield(L, -2, "peer");
    lua_setiuservalue(L, -2, 1);
    bind_http_push_type(L, type_name, meta, NULL);
    lua_setmetatable(L, -2);
    struct lreq *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return luaL_error(L, "out of memory");
    }
    /* Nothing raises from here on. */
    STAILQ_INIT(&r->writing);
    STAILQ_INIT(&r->parting);
    LIST_INSERT_HEAD(&state->reqs, r, link);
    *handle = r;
    r->req = req;
    req->data = r;
    req->on_gone = on_gone;
    req->on_drain = on_drain;
    return 1;
}

/* --- the module */

const char *bind_http_headers(lua_State *L, int idx)
{
    if (lua_isnoneornil(L, idx)) {
        return NULL;
    }
    idx = lua_absindex(L, idx);
    if (lua_istable(L, idx)) {
        lua_pushliteral(L, "");
        lua_pushnil(L);
        while (lua_next(L, idx) != 0) {
            const char *value = lua_tostring(L, -1); /* a number becomes text in place */
            luaL_argcheck(L, lua_type(L, -2) == LUA_TSTRING && value != NULL, idx, "headers are texts");
            luaL_argcheck(L, strpbrk(value, "\r\n") == NULL, idx, "a header value of several lines");
            lua_pushvalue(L, -3);
            lua_pushfstring(L, "%s: %s\r\n", lua_tostring(L, -3), lua_tostring(L, -2));
            lua_concat(L, 2);
            lua_replace(L, -4);
            lua_pop(L, 1);
        }
    } else {
        luaL_checkstring(L, idx);
        lua_pushvalue(L, idx);
    }
    const char *lines = lua_tostring(L, -1);
    luaL_argcheck(L, http_are_headers(lines), idx, "not header lines, or one that is not the caller's");
    return lines;
}

static int state_gc(lua_State *L)
{
    struct http_state *s = lua_touserdata(L, 1);
    struct lreq *r;
    bind_http_end_calls(s);
    bind_http_drop_tls(s);
    while ((r = LIST_FIRST(&s->reqs)) != NULL) {
        LIST_REMOVE(r, link);
        r->link.le_next = NULL;
        r->link.le_prev = &r->link.le_next;
        lreq_free(r);
    }
    return 0;
}

struct http_state *bind_http_state(lua_State *L)
{
    static const char key = 0;
    lua_rawgetp(L, LUA_REGISTRYINDEX, &key);
    struct http_state *s = lua_touserdata(L, -1);
    lua_pop(L, 1);
    if (s == NULL) {
        s = lua_newuserdatauv(L, sizeof *s, 0);
        LIST_INIT(&s->calls);
        LIST_INIT(&s->reqs);
        s->tls = NULL;
        s->tls_cert = s->tls_ca = NULL;
        lua_createtable(L, 0, 1);
        lua_pushcfunction(L, state_gc);
        lua_setfield(L, -2, "__gc");
        lua_setmetatable(L, -2);
        lua_rawsetp(L, LUA_REGISTRYINDEX, &key);
    }
    return s;
}

void bind_http_push_type(lua_State *L, const char *name, const luaL_Reg *functions, const luaL_Reg *index)
{
    if (luaL_getmetatable(L, name) == LUA_TTABLE) {
        return;
    }
    lua_pop(L, 1);
    lua_createtable(L, 0, 4);
    luaL_setfuncs(L, functions, 0);
    if (index != NULL) {
        lua_createtable(L, 0, 8);
        luaL_setfuncs(L, index, 0);
        lua_setfield(L, -2, "__index");
    }
    lua_pushstring(L, name);
    lua_setfield(L, -2, "__name"); /* for messages about arguments */
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable"); /* out of reach, so that __gc gets nothing else */
    lua_pushvalue(L, -1);
    lua_setfield(L, LUA_REGISTRYINDEX, name);
}

int luaopen_sym_http(lua_State *L)
{
    bind_http_state(L);
    lua_createtable(L, 0, 1);
    lua_pushcfunction(L, bind_http_request);
    lua_setfield(L, -2, "request");
    return 1;
}
