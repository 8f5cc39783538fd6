/* What bind_http.c (requests that are served) and bind_http_call.c (calls) share. */
#ifndef SYM_LUA_BIND_HTTP_IMPL_H
#define SYM_LUA_BIND_HTTP_IMPL_H

#include "crypto/tls.h"

#include <lauxlib.h>
#include <lua.h>
#include <sys/queue.h>

/* All that a Lua state has under way. What C holds is never Lua's memory: with none left, Lua frees an object
 * without its finalizer having run. The records whose finalizer was lost go with the state. */
struct http_state {
    LIST_HEAD(, lcall) calls;
    LIST_HEAD(, lreq) reqs;
    /* The context of the last call with a certificate: nearly all have this node's own, and to make one anew takes
     * longer than the handshake. The same certificate has the same key. */
    struct tls_ctx *tls;
    unsigned tls_flags;
    char *tls_cert, *tls_ca;
};

/* Made at the first time. May raise. */
struct http_state *bind_http_state(lua_State *L);

/* Pushes the metatable @name: the functions of @meta and, unless NULL, an index of @methods. It is made at
 * the first time, and known only once it is complete. May raise. */
void bind_http_push_type(lua_State *L, const char *name, const luaL_Reg *meta, const luaL_Reg *methods);

/* Header lines, "Name: value\r\n" for each pair of the table at @idx, or the text there itself; NULL for nil.
 * Raises for what cannot be a header. The result lives on the stack. */
const char *bind_http_headers(lua_State *L, int idx);

/* http.request(opts, cb) */
int bind_http_request(lua_State *L);

/* Forgets the context that was kept. */
void bind_http_drop_tls(struct http_state *s);

/* The state is closing. */
void bind_http_end_calls(struct http_state *s);

#endif
