/* Where symphony's own Lua is. */
#ifndef SYM_LUA_PATHS_H
#define SYM_LUA_PATHS_H

#include <stddef.h>

/* Fills @out, which has @room places: the @n folders of @dirs (which come first), symphony's own, NULL.
 * Returns 0 or SYM_ETOOBIG. Its own is found by where the running program lies:
 *
 *   BUILD/bin/symphony    the source tree's lua/, if BUILD is a build folder (has a CMakeCache.txt)
 *   PREFIX/bin/symphony   PREFIX/share/symphony/lua, if that is there: an installation may be moved
 *   elsewhere             the folder that the installation was configured for
 *
 * The strings are those of @dirs and static ones. Not thread-safe. */
int lua_paths(const char **out, size_t room, const char *const *dirs, unsigned n);

#endif
