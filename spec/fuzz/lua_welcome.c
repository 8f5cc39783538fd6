/* What answers a request to join, perhaps a stranger: a welcome that is taken makes a key.json that is taken. */
#define PROPERTY "lua_welcome.lua"
#include "fuzz_lua.h"
