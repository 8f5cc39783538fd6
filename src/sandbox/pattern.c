#include "sandbox/pattern.h"

#include "sandbox/pattern_impl.h"

#include <ctype.h>
#include <lauxlib.h>
#include <string.h>

/* --- captures --- */

/* The capture @i of the match from @s to @end; with none at all, capture 0 is the whole. */
static void push_capture(struct match *m, int i, const byte *s, const byte *end)
{
    if (i >= m->n) {
        if (i != 0) {
            luaL_error(m->L, "invalid capture index %%%d", i + 1);
        }
        lua_pushlstring(m->L, (const char *)s, (size_t)(end - s));
    } else if (m->captures[i].len == POSITION) {
        lua_pushinteger(m->L, m->captures[i].at - m->text + 1);
    } else if (m->captures[i].len == OPEN) {
        luaL_error(m->L, "unfinished capture");
    } else {
        lua_pushlstring(m->L, (const char *)m->captures[i].at, (size_t)m->captures[i].len);
    }
}

/* All of them; @s NULL: not the whole when there are none. */
static int push_captures(struct match *m, const byte *s, const byte *end)
{
    int n = m->n == 0 && s != NULL ? 1 : m->n;
    luaL_checkstack(m->L, n, "too many captures");
    for (int i = 0; i < n; i++) {
        push_capture(m, i, s, end);
    }
    return n;
}

/* --- the functions --- */

static struct match begin(
    lua_State *L, pattern_charge *charge, const char *text, size_t n, const char *pattern, size_t n_pattern)
{
    struct match m;
    m.L = L;
    m.charge = charge;
    m.text = (const byte *)text;
    m.text_end = m.text + n;
    m.pattern_end = (const byte *)pattern + n_pattern;
    m.steps = 0;
    m.tries = 0;
    m.first_end = NULL;
    return m;
}

/* The argument at @idx as an offset into @n bytes; more than @n when it is behind them. */
static size_t offset(lua_State *L, int idx, size_t n)
{
    lua_Integer i = luaL_optinteger(L, idx, 1);
    if (i > 0) {
        return (size_t)i - 1;
    }
    return i == 0 || i < -(lua_Integer)n ? 0 : n - (size_t)-i;
}

static int find_plain(lua_State *L, pattern_charge *charge, const char *text, size_t n, size_t from,
    const char *what, size_t n_what)
{
    charge(L, (n - from) / 16);
    const char *at = n_what == 0 ? text + from : memmem(text + from, n - from, what, n_what);
    if (at == NULL) {
        lua_pushnil(L);
        return 1;
    }
    lua_pushinteger(L, at - text + 1);
    lua_pushinteger(L, at - text + (lua_Integer)n_what);
    return 2;
}

/* A text that has nothing of a pattern in it, such as one with a lonely ")", is looked for as it is. */
static bool is_plain(const char *pattern, size_t n)
{
    size_t i = 0;
    while (i < n && (pattern[i] == '\0' || strchr("^$*+?.([%-", pattern[i]) == NULL)) {
        i++;
    }
    return i == n;
}

static int find_or_match(lua_State *L, pattern_charge *charge, bool find)
{
    size_t n, n_pattern;
    const char *text = luaL_checklstring(L, 1, &n);
    const char *pattern = luaL_checklstring(L, 2, &n_pattern);
    size_t from = offset(L, 3, n);
    if (from > n) {
        lua_pushnil(L);
        return 1;
    }
    if (find && (lua_toboolean(L, 4) || is_plain(pattern, n_pattern))) {
        return find_plain(L, charge, text, n, from, pattern, n_pattern);
    }
    bool anchored = *pattern == '^';
    const byte *p = (const byte *)pattern + (anchored ? 1 : 0);
    struct match m = begin(L, charge, text, n, pattern, n_pattern);
    const byte *s = m.text + from, *end = NULL;
    for (; s <= m.text_end; s++) {
        s = anchored ? s : pattern_next(&m, s, p);
        end = pattern_match_at(&m, s, p);
        if (end != NULL || anchored) {
            break;
        }
    }
    charge(L, m.steps);
    if (end == NULL) {
        lua_pushnil(L);
        return 1;
    }
    if (!find) {
        return push_captures(&m, s, end);
    }
    lua_pushinteger(L, s - m.text + 1);
    lua_pushinteger(L, end - m.text);
    return push_captures(&m, NULL, NULL) + 2;
}

int pattern_find(lua_State *L, pattern_charge *charge)
{
    return find_or_match(L, charge, true);
}

int pattern_match(lua_State *L, pattern_charge *charge)
{
    return find_or_match(L, charge, false);
}

static void push_charge(lua_State *L, pattern_charge *charge)
{
    lua_pushlightuserdata(L, (void *)(uintptr_t)charge);
}

static pattern_charge *charge_at(lua_State *L, int upvalue)
{
    return (pattern_charge *)(uintptr_t)lua_touserdata(L, lua_upvalueindex(upvalue));
}

/* Upvalues: text, pattern, where to go on, where the last match ended (-1: none), charge. */
static int next_match(lua_State *L)
{
    size_t n, n_pattern;
    const char *text = lua_tolstring(L, lua_upvalueindex(1), &n);
    const char *pattern = lua_tolstring(L, lua_upvalueindex(2), &n_pattern);
    pattern_charge *charge = charge_at(L, 5);
    struct match m = begin(L, charge, text, n, pattern, n_pattern);
    lua_Integer last = lua_tointeger(L, lua_upvalueindex(4));
    for (const byte *s = m.text + lua_tointeger(L, lua_upvalueindex(3)); s <= m.text_end; s++) {
        s = pattern_next(&m, s, (const byte *)pattern);
        const byte *end = pattern_match_at(&m, s, (const byte *)pattern);
        if (end != NULL && end - m.text != last) {
            charge(L, m.steps);
            lua_pushinteger(L, end - m.text);
            lua_pushvalue(L, -1);
            lua_replace(L, lua_upvalueindex(3));
            lua_replace(L, lua_upvalueindex(4));
            return push_captures(&m, s, end);
        }
    }
    charge(L, m.steps);
    lua_pushinteger(L, (lua_Integer)n + 1);
    lua_replace(L, lua_upvalueindex(3));
    return 0;
}

int pattern_gmatch(lua_State *L, pattern_charge *charge)
{
    size_t n;
    luaL_checklstring(L, 1, &n);
    luaL_checkstring(L, 2);
    size_t from = offset(L, 3, n);
    lua_settop(L, 2);
    lua_pushinteger(L, (lua_Integer)(from > n ? n + 1 : from));
    lua_pushinteger(L, -1);
    push_charge(L, charge);
    lua_pushcclosure(L, next_match, 5);
    return 1;
}

/* The replacement text at 3, with %0 to %9 and %% in it. */
static void add_text(struct match *m, luaL_Buffer *b, const byte *s, const byte *end)
{
    lua_State *L = m->L;
    size_t n;
    const char *p = lua_tolstring(L, 3, &n), *p_end = p + n;
    for (; p < p_end; p++) {
        pattern_step(m);
        if (*p != '%') {
            luaL_addchar(b, *p);
            continue;
        }
        p++;
        if (p < p_end && *p == '%') {
            luaL_addchar(b, '%');
        } else if (p < p_end && *p == '0') {
            luaL_addlstring(b, (const char *)s, (size_t)(end - s));
        } else if (p < p_end && isdigit((byte)*p)) {
            push_capture(m, *p - '1', s, end);
            luaL_tolstring(L, -1, NULL);
            lua_remove(L, -2);
            luaL_addvalue(b);
        } else {
            luaL_error(L, "invalid use of '%%' in replacement string");
        }
    }
}

/* What comes in the place of the match; false: it stays as it is. */
static bool add_value(struct match *m, luaL_Buffer *b, const byte *s, const byte *end, int type)
{
    lua_State *L = m->L;
    if (type == LUA_TFUNCTION) {
        lua_pushvalue(L, 3);
        lua_call(L, push_captures(m, s, end), 1);
    } else if (type == LUA_TTABLE) {
        push_capture(m, 0, s, end);
        lua_gettable(L, 3);
    } else {
        add_text(m, b, s, end);
        return true;
    }
    if (!lua_toboolean(L, -1)) {
        lua_pop(L, 1);
        luaL_addlstring(b, (const char *)s, (size_t)(end - s));
        return false;
    }
    if (!lua_isstring(L, -1)) {
        luaL_error(L, "invalid replacement value (a %s)", luaL_typename(L, -1));
    }
    luaL_addvalue(b);
    return true;
}

int pattern_gsub(lua_State *L, pattern_charge *charge)
{
    size_t n, n_pattern;
    const char *text = luaL_checklstring(L, 1, &n);
    const char *pattern = luaL_checklstring(L, 2, &n_pattern);
    int type = lua_type(L, 3);
    lua_Integer most = luaL_optinteger(L, 4, (lua_Integer)n + 1), done = 0;
    bool anchored = *pattern == '^';
    const byte *p = (const byte *)pattern + (anchored ? 1 : 0), *last = NULL;
    luaL_argexpected(L,
        type == LUA_TNUMBER || type == LUA_TSTRING || type == LUA_TFUNCTION || type == LUA_TTABLE, 3,
        "string/function/table");
    struct match m = begin(L, charge, text, n, pattern, n_pattern);
    const byte *s = m.text;
    luaL_Buffer b;
    luaL_buffinit(L, &b);
    while (done < most) {
        const byte *from = s;
        s = anchored ? s : pattern_next(&m, s, p);
        luaL_addlstring(&b, (const char *)from, (size_t)(s - from));
        const byte *end = pattern_match_at(&m, s, p);
        if (end != NULL && end != last) {
            done++;
            add_value(&m, &b, s, end, type);
            s = last = end;
        } else if (s < m.text_end) {
            luaL_addchar(&b, (char)*s++);
        } else {
            break;
        }
        if (anchored) {
            break;
        }
    }
    charge(L, m.steps);
    luaL_addlstring(&b, (const char *)s, (size_t)(m.text_end - s));
    luaL_pushresult(&b);
    lua_pushinteger(L, done);
    return 2;
}

static int l_find(lua_State *L)
{
    return pattern_find(L, charge_at(L, 1));
}

static int l_match(lua_State *L)
{
    return pattern_match(L, charge_at(L, 1));
}

static int l_gmatch(lua_State *L)
{
    return pattern_gmatch(L, charge_at(L, 1));
}

static int l_gsub(lua_State *L)
{
    return pattern_gsub(L, charge_at(L, 1));
}

void pattern_open(lua_State *L, pattern_charge *charge)
{
    static const luaL_Reg functions[] = {
        {"find", l_find}, {"match", l_match}, {"gmatch", l_gmatch}, {"gsub", l_gsub}, {NULL, NULL}};
    push_charge(L, charge);
    luaL_setfuncs(L, functions, 1);
}
