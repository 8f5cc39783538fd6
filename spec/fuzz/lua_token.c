/* A join token: what parses is the token that it says, whatever its case and the space around it. */
#define PROPERTY "lua_token.lua"
#include "fuzz_lua.h"
