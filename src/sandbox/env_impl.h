/* What the files of a policy's environment share: env.c, env_library.c, env_state.c, env_decision.c. Private to them. */
#ifndef SYM_SANDBOX_ENV_IMPL_H
#define SYM_SANDBOX_ENV_IMPL_H

#include <lua.h>

/* env_library.c: functions of Lua. The last three wrap Lua's own, their upvalue. */
int env_tostring(lua_State *L);
int env_sorted_pairs(lua_State *L);
int env_glob(lua_State *L);
int env_rep(lua_State *L);
int env_sort(lua_State *L);
int env_charged(lua_State *L);
int env_format(lua_State *L);
int env_moving(lua_State *L);

/* Into the table on the top. */
void env_add_state(lua_State *L);
void env_add_decisions(lua_State *L);

#endif
