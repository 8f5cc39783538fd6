/* What sym.policy lends to the rest of the program. */
#ifndef SYM_LUA_BIND_POLICY_H
#define SYM_LUA_BIND_POLICY_H

#include <lua.h>

struct host;

/* The host of the policies that decide; NULL while sym.policy has not been opened. As long as the state lives. */
struct host *bind_policy_host(lua_State *L);
/* Ends their processes, and tells those in C who wait for them, while these are still there. Before vm_close. */
void bind_policy_close(lua_State *L);

#endif
