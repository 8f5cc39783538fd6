/* Plain values (strings, numbers, booleans, tables of those) between Lua and JSON. Everything here may raise, and what
 * comes from a policy is hostile: no metamethod is asked, depth and size are bounded. */
#ifndef SYM_SANDBOX_PLAIN_H
#define SYM_SANDBOX_PLAIN_H

#include "base/buf.h"

#include <lua.h>
#include <stdbool.h>
#include <stddef.h>

enum { PLAIN_DEPTH_MAX = 16 };

/* Pushes the value of a JSON text. null is no entry in an object, and a light userdata NULL elsewhere; [] is remembered
 * to be an array. */
void plain_push(lua_State *L, const void *json, size_t n);
/* Appends the value at @idx, with sorted keys. Raises when it is not plain, has a string that is not UTF-8, an integer
 * beyond 2^53 or an infinite number, is deeper than PLAIN_DEPTH_MAX, or when @out would get longer than @max. */
void plain_write(lua_State *L, int idx, struct buf *out, size_t max);
/* Appends a string, as plain_write does. */
void plain_write_text(lua_State *L, const char *text, size_t n, struct buf *out);
/* Pushes an array of the keys of the table at @idx: numbers ascending, then strings, then booleans. Raises for keys of
 * other types. */
void plain_push_keys(lua_State *L, int idx);
/* Whether both are plain and the same, with all that is in them. */
bool plain_equal(lua_State *L, int a, int b);

#endif
