#include "lua/paths.h"

#include "base/err.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifndef SYM_LUA_INSTALL_DIR
#define SYM_LUA_INSTALL_DIR "/usr/share/symphony/lua"
#endif

static char own[PATH_MAX + 32];

/* PREFIX of PREFIX/bin/program. */
static int prefix_of_program(char *out, size_t size)
{
    ssize_t n = readlink("/proc/self/exe", out, size - 1);
    if (n <= 0) {
        return -1;
    }
    out[n] = '\0';
    for (int i = 0; i < 2; i++) {
        char *slash = strrchr(out, '/');
        if (slash == NULL) {
            return -1;
        }
        *slash = '\0';
    }
    return 0;
}

static const char *find_own(void)
{
    char prefix[PATH_MAX];
    if (prefix_of_program(prefix, sizeof prefix) != 0) {
        return SYM_LUA_INSTALL_DIR;
    }
    snprintf(own, sizeof own, "%s/CMakeCache.txt", prefix);
    if (access(own, F_OK) == 0 && access(SYM_LUA_SOURCE_DIR "/symphony", F_OK) == 0) {
        return SYM_LUA_SOURCE_DIR;
    }
    snprintf(own, sizeof own, "%s/share/symphony/lua", prefix);
    return access(own, F_OK) == 0 ? own : SYM_LUA_INSTALL_DIR;
}

int lua_paths(const char **out, size_t room, const char *const *dirs, unsigned n)
{
    if ((size_t)n + 2 > room) {
        return err_setf(SYM_ETOOBIG, "too many Lua folders");
    }
    for (unsigned i = 0; i < n; i++) {
        *out++ = dirs[i];
    }
    *out++ = find_own();
    *out = NULL;
    return 0;
}
