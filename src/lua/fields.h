/* Fields of the table on top of the stack, in one line each. All may raise for lack of memory. */
#ifndef SYM_LUA_FIELDS_H
#define SYM_LUA_FIELDS_H

#include "base/histogram.h"
#include "codec/text.h"
#include "crypto/crypto.h"

#include <lua.h>
#include <stdbool.h>

static inline void set_text(lua_State *L, const char *name, const char *text)
{
    lua_pushstring(L, text);
    lua_setfield(L, -2, name);
}

static inline void set_bytes(lua_State *L, const char *name, const void *data, size_t n)
{
    lua_pushlstring(L, data, n);
    lua_setfield(L, -2, name);
}

/* Revisions, indexes and counts stay below 2^63. */
static inline void set_integer(lua_State *L, const char *name, uint64_t v)
{
    lua_pushinteger(L, (lua_Integer)v);
    lua_setfield(L, -2, name);
}

static inline void set_bool(lua_State *L, const char *name, bool v)
{
    lua_pushboolean(L, v);
    lua_setfield(L, -2, name);
}

static inline void set_number(lua_State *L, const char *name, double v)
{
    lua_pushnumber(L, v);
    lua_setfield(L, -2, name);
}

/* Its counts as an array, with a field sum, in seconds. */
static inline void set_histogram(lua_State *L, const char *name, const struct histogram *h)
{
    lua_createtable(L, HISTOGRAM_LIMITS + 1, 1);
    for (int i = 0; i <= HISTOGRAM_LIMITS; i++) {
        lua_pushinteger(L, (lua_Integer)h->counts[i]);
        lua_rawseti(L, -2, i + 1);
    }
    set_number(L, "sum", (double)h->sum_ns / 1e9);
    lua_setfield(L, -2, name);
}

static inline void push_digest(lua_State *L, const uint8_t digest[SHA256_LEN])
{
    char text[2 * SHA256_LEN + 1];
    hex_encode(digest, SHA256_LEN, text);
    lua_pushstring(L, text);
}

static inline void set_digest(lua_State *L, const char *name, const uint8_t digest[SHA256_LEN])
{
    push_digest(L, digest);
    lua_setfield(L, -2, name);
}

#endif
