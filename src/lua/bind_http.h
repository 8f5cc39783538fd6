/* The object that a handler in Lua gets for a request (sym.http itself is in vm.h). */
#ifndef SYM_LUA_BIND_HTTP_H
#define SYM_LUA_BIND_HTTP_H

#include "net/http.h"

#include <lua.h>

/* Pushes the object of @req and returns 1, the number of values. It takes the request over: data, on_gone and
 * on_drain are its own from then on, and if Lua forgets it without an answer it answers 500. May raise, and
 * then has taken nothing: call it inside vm_call or as the push function of a vm_cb. */
int bind_http_push_req(lua_State *L, struct http_req *req);

#endif
