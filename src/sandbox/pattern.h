/* Lua's patterns as Lua has them (manual, 6.4.1), but every step counts against the budget of the policy: one that
 * backtracks without end is stopped, which Lua's own functions do not allow. */
#ifndef SYM_SANDBOX_PATTERN_H
#define SYM_SANDBOX_PATTERN_H

#include <lua.h>

/* Sets find, match, gmatch and gsub in the table on the top. */
void pattern_open(lua_State *L);

#endif
