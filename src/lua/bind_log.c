/* require "sym.log": debug, info, warn, error(text). */
#include "lua/vm.h"

static int write_line(lua_State *L, enum log_level level)
{
    if (log_enabled(level)) {
        vm_log(level, "", luaL_tolstring(L, 1, NULL));
    }
    return 0;
}

static int l_debug(lua_State *L)
{
    return write_line(L, LOG_DEBUG);
}

static int l_info(lua_State *L)
{
    return write_line(L, LOG_INFO);
}

static int l_warn(lua_State *L)
{
    return write_line(L, LOG_WARN);
}

static int l_error(lua_State *L)
{
    return write_line(L, LOG_ERROR);
}

int luaopen_sym_log(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"debug", l_debug},
        {"info", l_info},
        {"warn", l_warn},
        {"error", l_error},
        {NULL, NULL},
    };
    luaL_newlib(L, functions);
    return 1;
}
