/* A file for `cluster restore`, and what the daemon streams for a backup. */
#define PROPERTY "lua_backup.lua"
#include "fuzz_lua.h"
