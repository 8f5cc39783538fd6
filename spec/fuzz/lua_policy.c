/* What the sandbox of the policies answers, and what a policy says of itself. */
#define PROPERTY "lua_policy.lua"
#include "fuzz_lua.h"
