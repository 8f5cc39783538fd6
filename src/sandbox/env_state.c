/* The state, as a policy reads it. */
#include "sandbox/env_impl.h"

#include "base/err.h"
#include "codec/rw.h"
#include "sandbox/box.h"
#include "sandbox/plain.h"

#include <lauxlib.h>
#include <string.h>

static int read_failed(lua_State *L)
{
    return luaL_error(L, "%s", err_msg());
}

/* Below /kv/ a value is the user's text; everything else is symphony's JSON. */
static void push_value(lua_State *L, const char *key, const uint8_t *value, size_t n)
{
    if (strncmp(key, "/kv/", 4) == 0) {
        lua_pushlstring(L, (const char *)value, n);
    } else {
        plain_push(L, value, n);
    }
}

/* get(key): the value, or nil */
static int l_get(lua_State *L)
{
    struct reads *reads = box_reads(L);
    size_t n, len;
    const char *key = luaL_checklstring(L, 1, &n);
    if (reads_ask(reads, READ_GET, key, n, 0) != 0) {
        return read_failed(L);
    }
    struct rd r = rd_init(buf_data(&reads->answer), reads->answer.len);
    uint64_t revision = rd_u64(&r);
    const uint8_t *value = rd_blob(&r, READS_ANSWER_MAX, &len);
    if (value == NULL || revision == 0) {
        lua_pushnil(L);
        return 1;
    }
    push_value(L, key, value, len);
    return 1;
}

/* list(prefix[, limit]): {{key=, value=}...} in order of their keys */
static int l_list(lua_State *L)
{
    struct reads *reads = box_reads(L);
    size_t n, len;
    const char *prefix = luaL_checklstring(L, 1, &n);
    lua_Integer limit = luaL_optinteger(L, 2, READS_LIST_MAX);
    luaL_argcheck(L, limit >= 1 && limit <= READS_LIST_MAX, 2, "from 1 to 1000");
    if (reads_ask(reads, READ_LIST, prefix, n, (unsigned)limit) != 0) {
        return read_failed(L);
    }
    struct rd r = rd_init(buf_data(&reads->answer), reads->answer.len);
    rd_u64(&r);
    rd_u64(&r);
    uint32_t items = rd_u32(&r);
    lua_newtable(L);
    for (uint32_t i = 1; i <= items; i++) {
        size_t n_key;
        const uint8_t *key = rd_blob(&r, READS_KEY_MAX, &n_key);
        const uint8_t *value = rd_blob(&r, READS_ANSWER_MAX, &len);
        if (value == NULL) {
            break;
        }
        lua_createtable(L, 0, 2);
        lua_pushlstring(L, (const char *)key, n_key);
        push_value(L, lua_tostring(L, -1), value, len);
        lua_setfield(L, -3, "value");
        lua_setfield(L, -2, "key");
        lua_rawseti(L, -2, i);
    }
    return 1;
}

/* count(prefix) */
static int l_count(lua_State *L)
{
    struct reads *reads = box_reads(L);
    size_t n;
    const char *prefix = luaL_checklstring(L, 1, &n);
    if (reads_ask(reads, READ_COUNT, prefix, n, 0) != 0) {
        return read_failed(L);
    }
    struct rd r = rd_init(buf_data(&reads->answer), reads->answer.len);
    rd_u64(&r);
    lua_pushinteger(L, (lua_Integer)rd_u64(&r));
    return 1;
}

void env_add_state(lua_State *L)
{
    static const luaL_Reg functions[] = {{"get", l_get}, {"list", l_list}, {"count", l_count}, {NULL, NULL}};
    luaL_setfuncs(L, functions, 0);
}
