/* key.json: what is taken has all that the daemon relies on, and can be written again. */
#define PROPERTY "lua_key_json.lua"
#include "fuzz_lua.h"
