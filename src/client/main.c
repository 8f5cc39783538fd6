/* symphony: starts Lua on a loop and hands it the command line; lua/symphony/cli/client.lua does the rest. */
#include "base/err.h"
#include "client/edit.h"
#include "lua/paths.h"
#include "lua/vm.h"

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

struct args {
    int argc;
    char **argv;
};

static int push_args(lua_State *L, void *arg)
{
    const struct args *args = arg;
    luaL_checkstack(L, args->argc, "too many arguments");
    for (int i = 1; i < args->argc; i++) {
        lua_pushstring(L, args->argv[i]);
    }
    return args->argc > 1 ? args->argc - 1 : 0;
}

/* Until something else is to be done for it: the daemon sees the connection end. */
static void on_interrupt(int signum)
{
    (void)signum;
    _exit(130);
}

int main(int argc, char **argv)
{
    static const luaL_Reg modules[] = {
        {"sym.log", luaopen_sym_log},
        {"sym.sys", luaopen_sym_sys},
        {"sym.crypto", luaopen_sym_crypto},
        {"sym.http", luaopen_sym_http},
        {"sym.edit", luaopen_sym_edit},
        {NULL, NULL},
    };
    const char *paths[2];
    uv_loop_t loop;
    lua_State *L;
    struct args args = {argc, argv};
    /* A reader or a daemon that goes away is an error of the write, not the end of the program. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, on_interrupt);
    lua_paths(paths, 2, NULL, 0);
    struct vm_config cfg = {.loop = &loop, .lua_paths = paths, .modules = modules};
    int rv = uv_loop_init(&loop);
    if (rv != 0) {
        err_sysf(rv, "event loop");
        goto fail;
    }
    rv = vm_new(&cfg, &L);
    if (rv == 0) {
        rv = vm_run(L, "symphony.cli.client", "main", push_args, &args);
    }
    if (rv != 0) {
        goto fail;
    }
    /* Lua ends the process with the status that the command has. */
    uv_run(&loop, UV_RUN_DEFAULT);
    err_setf(SYM_ECLOSED, "the command came to no end");
fail:
    fprintf(stderr, "symphony: %s\n", err_msg());
    return 1;
}
