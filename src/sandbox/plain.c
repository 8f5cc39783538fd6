#include "sandbox/plain.h"

#include "codec/json.h"
#include "sandbox/json_read.h"

#include <lauxlib.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Registry key of the metatable that marks an array, for those without an element. */
static const char array_mark;

static void mark_array(lua_State *L)
{
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &array_mark) != LUA_TTABLE) {
        lua_pop(L, 1);
        lua_newtable(L);
        lua_pushvalue(L, -1);
        lua_rawsetp(L, LUA_REGISTRYINDEX, &array_mark);
    }
    lua_setmetatable(L, -2);
}

static bool is_marked(lua_State *L, int idx)
{
    bool marked = false;
    if (lua_getmetatable(L, idx)) {
        lua_rawgetp(L, LUA_REGISTRYINDEX, &array_mark);
        marked = lua_istable(L, -1) && lua_rawequal(L, -1, -2);
        lua_pop(L, 2);
    }
    return marked;
}

/* --- from JSON --- */

static void push_text(lua_State *L, const struct json_reader *r)
{
    if (!r->escaped) {
        lua_pushlstring(L, (const char *)r->text, r->n);
        return;
    }
    luaL_Buffer b;
    char *room = luaL_buffinitsize(L, &b, r->n);
    luaL_pushresultsize(&b, json_unescape(r, (uint8_t *)room));
}

/* Puts the value on the top into the container below it: an object's key is between the two. */
static void put_value(lua_State *L, bool object, lua_Integer *n)
{
    if (!object) {
        lua_rawseti(L, -2, ++*n);
    } else if (lua_islightuserdata(L, -1)) {
        lua_pop(L, 2);
    } else {
        lua_rawset(L, -3);
    }
}

void plain_push(lua_State *L, const void *json, size_t n)
{
    struct json_reader r;
    lua_Integer counts[JSON_DEPTH_MAX] = {0};
    bool objects[JSON_DEPTH_MAX] = {false};
    unsigned depth = 0; /* the reader's own, which bounds it */
    json_begin(&r, json, n);
    for (;;) {
        luaL_checkstack(L, 6, "JSON");
        enum json_token t = json_next(&r);
        bool complete = true;
        switch (t) {
        case JSON_OBJECT:
        case JSON_ARRAY:
            /* That of a hook has some eight fields, who asks three: they do not grow from nothing. */
            lua_createtable(L, 0, t == JSON_OBJECT && depth < 2 ? 8 >> depth : 0);
            objects[depth] = t == JSON_OBJECT;
            counts[depth++] = 0;
            complete = false;
            break;
        case JSON_CLOSE:
            depth -= depth > 0 ? 1 : 0;
            if (!objects[depth] && counts[depth] == 0) {
                mark_array(L);
            }
            break;
        case JSON_KEY:
        case JSON_STRING:
            push_text(L, &r);
            complete = t == JSON_STRING;
            break;
        case JSON_INTEGER:
            lua_pushinteger(L, (lua_Integer)r.integer);
            break;
        case JSON_NUMBER:
            lua_pushnumber(L, r.number);
            break;
        case JSON_TRUE:
        case JSON_FALSE:
            lua_pushboolean(L, t == JSON_TRUE);
            break;
        case JSON_NULL:
            lua_pushlightuserdata(L, NULL);
            break;
        case JSON_END:
            return;
        default:
            luaL_error(L, "not JSON");
        }
        if (complete && depth > 0) {
            put_value(L, objects[depth - 1], &counts[depth - 1]);
        }
    }
}

/* --- keys --- */

struct key {
    int type;
    lua_Number number;
    const char *text;
    size_t n;
    int at; /* in the array that keeps them alive */
};

static int compare_keys(const void *left, const void *right)
{
    const struct key *a = left, *b = right;
    if (a->type != b->type) {
        return a->type < b->type ? -1 : 1;
    }
    if (a->type != LUA_TSTRING) {
        return a->number < b->number ? -1 : a->number > b->number;
    }
    int order = memcmp(a->text, b->text, a->n < b->n ? a->n : b->n);
    return order != 0 ? order : a->n < b->n ? -1 : a->n > b->n;
}

static void read_key(lua_State *L, int idx, struct key *key)
{
    /* Numbers sort before strings, and booleans behind both. */
    switch (lua_type(L, idx)) {
    case LUA_TNUMBER:
        *key = (struct key){.type = LUA_TNUMBER, .number = lua_tonumber(L, idx)};
        break;
    case LUA_TSTRING:
        *key = (struct key){.type = LUA_TSTRING};
        key->text = lua_tolstring(L, idx, &key->n);
        break;
    case LUA_TBOOLEAN:
        *key = (struct key){.type = LUA_NUMTYPES, .number = lua_toboolean(L, idx)};
        break;
    default:
        luaL_error(L, "keys that are a %s have no order", luaL_typename(L, idx));
    }
}

void plain_push_keys(lua_State *L, int idx)
{
    idx = lua_absindex(L, idx);
    luaL_checkstack(L, 6, "keys");
    lua_newtable(L);
    int all = lua_gettop(L);
    lua_Integer n = 0;
    for (lua_pushnil(L); lua_next(L, idx) != 0; lua_pop(L, 1)) {
        lua_pushvalue(L, -2);
        lua_rawseti(L, all, ++n);
    }
    struct key *keys = lua_newuserdatauv(L, (size_t)(n + 1) * sizeof *keys, 0);
    for (lua_Integer i = 0; i < n; i++) {
        lua_rawgeti(L, all, i + 1);
        read_key(L, -1, &keys[i]);
        keys[i].at = (int)(i + 1);
        lua_pop(L, 1);
    }
    qsort(keys, (size_t)n, sizeof *keys, compare_keys);
    lua_createtable(L, (int)n, 0);
    for (lua_Integer i = 0; i < n; i++) {
        lua_rawgeti(L, all, keys[i].at);
        lua_rawseti(L, -2, i + 1);
    }
    lua_replace(L, all);
    lua_pop(L, 1);
}

/* --- to JSON --- */

struct writer {
    lua_State *L;
    struct buf *out;
    size_t max;
};

static void check(struct writer *w, int rv)
{
    if (rv != 0) {
        luaL_error(w->L, "out of memory");
    }
    if (w->out->len > w->max) {
        luaL_error(w->L, "the value is too large: more than %d bytes", (int)w->max);
    }
}

void plain_write_text(lua_State *L, const char *text, size_t n, struct buf *out)
{
    if (!utf8_valid((const uint8_t *)text, n)) {
        luaL_error(L, "text that is not UTF-8");
    }
    if (json_string(out, (const uint8_t *)text, n) != 0) {
        luaL_error(L, "out of memory");
    }
}

static void write_number(struct writer *w, int idx)
{
    const lua_Number most = 9007199254740992.0; /* 2^53 */
    lua_Number v = lua_tonumber(w->L, idx);
    if (v != v || isinf(v)) {
        luaL_error(w->L, "a number that is not finite");
    }
    if (lua_isinteger(w->L, idx) && (v > most || v < -most)) {
        luaL_error(w->L, "an integer beyond 2^53");
    }
    char text[40];
    if (v <= most && v >= -most && v == floor(v)) {
        snprintf(text, sizeof text, "%lld", (long long)v);
    } else {
        snprintf(text, sizeof text, "%.15g", v);
        if (strtod(text, NULL) != v) {
            snprintf(text, sizeof text, "%.17g", v);
        }
    }
    check(w, buf_append(w->out, text, strlen(text)));
}

static void write_value(struct writer *w, int idx, int depth);

static void write_array(struct writer *w, int idx, int depth)
{
    lua_State *L = w->L;
    lua_Integer n = (lua_Integer)lua_rawlen(L, idx), keys = 0;
    for (lua_pushnil(L); lua_next(L, idx) != 0; lua_pop(L, 1)) {
        keys++;
        if (!lua_isinteger(L, -2) || lua_tointeger(L, -2) < 1 || lua_tointeger(L, -2) > n) {
            luaL_error(L, "a table that is neither an array nor an object");
        }
    }
    if (keys != n) {
        luaL_error(L, "an array with holes");
    }
    check(w, buf_append(w->out, "[", 1));
    for (lua_Integer i = 1; i <= n; i++) {
        check(w, i > 1 ? buf_append(w->out, ",", 1) : 0);
        lua_rawgeti(L, idx, i);
        write_value(w, lua_gettop(L), depth);
        lua_pop(L, 1);
    }
    check(w, buf_append(w->out, "]", 1));
}

static void write_member(struct writer *w, int key, int depth)
{
    size_t len;
    if (lua_type(w->L, key) != LUA_TSTRING) {
        luaL_error(w->L, "a key that is not text");
    }
    const char *text = lua_tolstring(w->L, key, &len);
    plain_write_text(w->L, text, len, w->out);
    check(w, buf_append(w->out, ":", 1));
    write_value(w, key + 1, depth);
}

/* Is there no second key? Then there is nothing to sort: most decisions are such. The one is left with its value. */
static bool push_only(lua_State *L, int idx)
{
    lua_pushnil(L);
    if (lua_next(L, idx) == 0) {
        return false;
    }
    lua_pushvalue(L, -2);
    if (lua_next(L, idx) == 0) {
        return true;
    }
    lua_pop(L, 4);
    return false;
}

static void write_object(struct writer *w, int idx, int depth)
{
    lua_State *L = w->L;
    if (push_only(L, idx)) {
        check(w, buf_text(w->out, "{"));
        write_member(w, lua_gettop(L) - 1, depth);
        check(w, buf_text(w->out, "}"));
        lua_pop(L, 2);
        return;
    }
    plain_push_keys(L, idx);
    int keys = lua_gettop(L);
    lua_Integer n = (lua_Integer)lua_rawlen(L, keys);
    check(w, buf_append(w->out, "{", 1));
    for (lua_Integer i = 1; i <= n; i++) {
        check(w, i > 1 ? buf_append(w->out, ",", 1) : 0);
        lua_rawgeti(L, keys, i);
        lua_pushvalue(L, -1);
        lua_rawget(L, idx);
        write_member(w, lua_gettop(L) - 1, depth);
        lua_pop(L, 2);
    }
    lua_pop(L, 1);
    check(w, buf_append(w->out, "}", 1));
}

static void write_value(struct writer *w, int idx, int depth)
{
    lua_State *L = w->L;
    luaL_checkstack(L, 10, "plain value");
    switch (lua_type(L, idx)) {
    case LUA_TSTRING: {
        size_t n;
        const char *text = lua_tolstring(L, idx, &n);
        if (n > w->max) {
            luaL_error(L, "the value is too large: more than %d bytes", (int)w->max);
        }
        plain_write_text(L, text, n, w->out);
        check(w, 0);
        break;
    }
    case LUA_TNUMBER:
        write_number(w, idx);
        break;
    case LUA_TBOOLEAN:
        check(w, buf_text(w->out, lua_toboolean(L, idx) ? "true" : "false"));
        break;
    case LUA_TTABLE:
        if (depth == 0) {
            luaL_error(L, "a table that is too deep, or a cycle");
        }
        if (lua_rawlen(L, idx) > 0 || is_marked(L, idx)) {
            write_array(w, idx, depth - 1);
        } else {
            write_object(w, idx, depth - 1);
        }
        break;
    case LUA_TLIGHTUSERDATA:
        if (lua_touserdata(L, idx) == NULL) {
            check(w, buf_append(w->out, "null", 4));
            break;
        }
        /* fall through */
    default:
        luaL_error(L, "a %s is not plain", luaL_typename(L, idx));
    }
}

void plain_write(lua_State *L, int idx, struct buf *out, size_t max)
{
    struct writer w = {L, out, max};
    write_value(&w, lua_absindex(L, idx), PLAIN_DEPTH_MAX);
}

/* --- comparing --- */

static bool equal_tables(lua_State *L, int a, int b, int depth);

static bool equal_values(lua_State *L, int a, int b, int depth)
{
    if (lua_type(L, a) != LUA_TTABLE || lua_type(L, b) != LUA_TTABLE) {
        return lua_rawequal(L, a, b);
    }
    return depth > 0 && equal_tables(L, a, b, depth - 1);
}

static bool equal_tables(lua_State *L, int a, int b, int depth)
{
    int top = lua_gettop(L);
    size_t of_a = 0, of_b = 0;
    luaL_checkstack(L, 6, "comparison");
    for (lua_pushnil(L); lua_next(L, b) != 0; lua_pop(L, 1)) {
        of_b++;
    }
    for (lua_pushnil(L); lua_next(L, a) != 0; lua_pop(L, 1)) {
        of_a++;
        lua_pushvalue(L, -2);
        lua_rawget(L, b);
        if (!equal_values(L, lua_gettop(L) - 1, lua_gettop(L), depth)) {
            lua_settop(L, top);
            return false;
        }
        lua_pop(L, 1);
    }
    return of_a == of_b;
}

bool plain_equal(lua_State *L, int a, int b)
{
    return equal_values(L, lua_absindex(L, a), lua_absindex(L, b), PLAIN_DEPTH_MAX);
}
