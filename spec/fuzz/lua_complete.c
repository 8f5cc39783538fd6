/* What may follow a piece of Lua; what a history keeps of it and a log shows. */
#define PROPERTY "lua_complete.lua"
#include "fuzz_lua.h"
