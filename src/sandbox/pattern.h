/* string.find, match, gmatch and gsub as Lua has them (manual, 6.4.1), but with every step counted: a pattern that
 * backtracks without end can be stopped, which Lua's own functions do not allow. */
#ifndef SYM_SANDBOX_PATTERN_H
#define SYM_SANDBOX_PATTERN_H

#include <lua.h>
#include <stdint.h>

/* Told of work every few hundred steps, and of the rest at the end; raises to end it. */
typedef void pattern_charge(lua_State *L, uint64_t steps);

/* The functions, with their arguments on the stack as of a lua_CFunction. What gmatch returns calls @charge, too. */
int pattern_find(lua_State *L, pattern_charge *charge);
int pattern_match(lua_State *L, pattern_charge *charge);
int pattern_gmatch(lua_State *L, pattern_charge *charge);
int pattern_gsub(lua_State *L, pattern_charge *charge);

/* Sets all four in the table on the top. */
void pattern_open(lua_State *L, pattern_charge *charge);

#endif
