/* What a manager sends to a worker over its agent's stream. */
#define PROPERTY "lua_agent.lua"
#include "fuzz_lua.h"
