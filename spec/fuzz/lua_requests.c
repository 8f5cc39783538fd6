/* The bodies of POST /v1/txn and /v1/join: taken with everything in its limits, or refused with a code. */
#define PROPERTY "lua_requests.lua"
#include "fuzz_lua.h"
