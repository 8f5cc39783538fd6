/* What another manager answers to a call, and what the daemon streams to the client. */
#define PROPERTY "lua_answers.lua"
#include "fuzz_lua.h"
