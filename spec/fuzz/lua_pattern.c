/* string.find, match, gmatch and gsub in guarded code, beside Lua's own: the same of every pattern. */
#define PROPERTY "lua_pattern.lua"
#include "fuzz_lua.h"
