/* Addresses, CIDR blocks, names, labels and durations as Lua reads them. */
#define PROPERTY "lua_text.lua"
#include "fuzz_lua.h"
