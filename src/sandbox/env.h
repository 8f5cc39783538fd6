/* What a policy finds around it: the library, the decisions it can make, and the state it can read. Nothing in it
 * depends on the clock, on chance, on addresses or on the order of a table's keys. */
#ifndef SYM_SANDBOX_ENV_H
#define SYM_SANDBOX_ENV_H

#include <lua.h>
#include <stdbool.h>

/* Fills a fresh state (in a protected call) and makes the environment its globals. @full: over Lua's own whole
 * library. */
void env_open(lua_State *L, bool full);
/* From here on no new global can be made. */
void env_lock(lua_State *L);
/* Replaces the value at @idx, what a hook has returned, by a decision in its plain form, checked, or nil. Raises. */
void env_check_decision(lua_State *L, int idx, const char *hook);

#endif
