/* JSON from outside: what is read can be written, and read again, and is then the same. */
#define PROPERTY "lua_json.lua"
#include "fuzz_lua.h"
