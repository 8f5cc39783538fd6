/* string.find, match, gmatch and gsub that can be stopped: what they may have to try grows with a power of the
 * subject's length. After lstrlib.c of Lua 5.4.4, Copyright (C) 1994-2022 Lua.org, PUC-Rio, under the MIT license; the
 * same in what they accept, give and complain of, but for the steps that are counted. */
#include "lua/guard.h"

#include <ctype.h>
#include <lauxlib.h>
#include <string.h>

#define UNFINISHED (-1)
#define POSITION (-2)
#define CAPTURES_MAX 32
#define DEPTH_MAX 200
#define STEPS 16384 /* between two looks at the clock */

struct match {
    const char *begin, *end, *pattern_end;
    lua_State *L;
    size_t steps;
    int depth; /* recursions that are left */
    int level; /* captures, finished or not */
    struct {
        const char *at;
        ptrdiff_t len;
    } capture[CAPTURES_MAX];
};

static const char *match(struct match *m, const char *s, const char *p);

static unsigned char byte(const char *s)
{
    return (unsigned char)*s;
}

static void step(struct match *m, size_t n)
{
    m->steps += n;
    if (m->steps >= STEPS) {
        m->steps = 0;
        if (guard_on(m->L)) {
            guard_check(m->L);
        }
    }
}

static int check_capture(struct match *m, int digit)
{
    int i = digit - '1';
    if (i < 0 || i >= m->level || m->capture[i].len == UNFINISHED) {
        return luaL_error(m->L, "invalid capture index %%%d", i + 1);
    }
    return i;
}

static int capture_to_close(struct match *m)
{
    for (int i = m->level - 1; i >= 0; i--) {
        if (m->capture[i].len == UNFINISHED) {
            return i;
        }
    }
    return luaL_error(m->L, "invalid pattern capture");
}

/* Behind the single character, or class, that begins at @p. */
static const char *class_end(struct match *m, const char *p)
{
    char first = *p++;
    if (first == '%') {
        if (p == m->pattern_end) {
            luaL_error(m->L, "malformed pattern (ends with '%%')");
        }
        return p + 1;
    }
    if (first != '[') {
        return p;
    }
    const char *begin = p;
    if (*p == '^') {
        p++;
    }
    do {
        if (p == m->pattern_end) {
            luaL_error(m->L, "malformed pattern (missing ']')");
        }
        if (*p++ == '%' && p < m->pattern_end) {
            p++;
        }
    } while (*p != ']');
    step(m, (size_t)(p - begin));
    return p + 1;
}

static bool in_class(int c, int class)
{
    bool in;
    switch (tolower(class)) {
    case 'a':
        in = isalpha(c);
        break;
    case 'c':
        in = iscntrl(c);
        break;
    case 'd':
        in = isdigit(c);
        break;
    case 'g':
        in = isgraph(c);
        break;
    case 'l':
        in = islower(c);
        break;
    case 'p':
        in = ispunct(c);
        break;
    case 's':
        in = isspace(c);
        break;
    case 'u':
        in = isupper(c);
        break;
    case 'w':
        in = isalnum(c);
        break;
    case 'x':
        in = isxdigit(c);
        break;
    case 'z':
        in = c == 0;
        break;
    default:
        return class == c;
    }
    return islower(class) ? in : !in;
}

/* @p is at the [, @last at the ]. */
static bool in_set(struct match *m, int c, const char *p, const char *last)
{
    bool yes = true;
    step(m, (size_t)(last - p));
    if (p[1] == '^') {
        yes = false;
        p++;
    }
    while (++p < last) {
        if (*p == '%') {
            p++;
            if (in_class(c, byte(p))) {
                return yes;
            }
        } else if (p[1] == '-' && p + 2 < last) {
            p += 2;
            if (byte(p - 2) <= c && c <= byte(p)) {
                return yes;
            }
        } else if (byte(p) == c) {
            return yes;
        }
    }
    return !yes;
}

static bool single(struct match *m, const char *s, const char *p, const char *behind)
{
    step(m, 1);
    if (s >= m->end) {
        return false;
    }
    switch (*p) {
    case '.':
        return true;
    case '%':
        return in_class(byte(s), byte(p + 1));
    case '[':
        return in_set(m, byte(s), p, behind - 1);
    default:
        return *p == *s;
    }
}

static const char *balance(struct match *m, const char *s, const char *p)
{
    if (p >= m->pattern_end - 1) {
        luaL_error(m->L, "malformed pattern (missing arguments to '%%b')");
    }
    if (s >= m->end || *s != *p) {
        return NULL;
    }
    char opens = p[0], closes = p[1];
    size_t inside = 1;
    while (++s < m->end) {
        step(m, 1);
        if (*s == closes) {
            if (--inside == 0) {
                return s + 1;
            }
        } else if (*s == opens) {
            inside++;
        }
    }
    return NULL;
}

static const char *most(struct match *m, const char *s, const char *p, const char *behind)
{
    ptrdiff_t n = 0;
    while (single(m, s + n, p, behind)) {
        n++;
    }
    for (; n >= 0; n--) {
        const char *found = match(m, s + n, behind + 1);
        if (found != NULL) {
            return found;
        }
    }
    return NULL;
}

static const char *least(struct match *m, const char *s, const char *p, const char *behind)
{
    for (;; s++) {
        const char *found = match(m, s, behind + 1);
        if (found != NULL || !single(m, s, p, behind)) {
            return found;
        }
    }
}

static const char *start_capture(struct match *m, const char *s, const char *p, int what)
{
    if (m->level >= CAPTURES_MAX) {
        luaL_error(m->L, "too many captures");
    }
    m->capture[m->level].at = s;
    m->capture[m->level].len = what;
    m->level++;
    const char *found = match(m, s, p);
    if (found == NULL) {
        m->level--;
    }
    return found;
}

static const char *end_capture(struct match *m, const char *s, const char *p)
{
    int i = capture_to_close(m);
    m->capture[i].len = s - m->capture[i].at;
    const char *found = match(m, s, p);
    if (found == NULL) {
        m->capture[i].len = UNFINISHED;
    }
    return found;
}

static const char *same_as_capture(struct match *m, const char *s, int digit)
{
    int i = check_capture(m, digit);
    size_t n = (size_t)m->capture[i].len;
    if ((size_t)(m->end - s) < n) {
        return NULL;
    }
    step(m, n / 8);
    return memcmp(m->capture[i].at, s, n) == 0 ? s + n : NULL;
}

static bool at_frontier(struct match *m, const char *s, const char *p, const char *behind)
{
    int before = s == m->begin ? '\0' : byte(s - 1);
    return !in_set(m, before, p, behind - 1) && in_set(m, byte(s), p, behind - 1);
}

/* What follows a character or class with its suffix: goes on in the loop of match, or has the answer. */
static bool goes_on(struct match *m, const char **s, const char **p, const char *behind)
{
    const char *found;
    if (!single(m, *s, *p, behind)) {
        bool may_be_none = *behind == '*' || *behind == '?' || *behind == '-';
        *p = behind + 1;
        *s = may_be_none ? *s : NULL;
        return may_be_none;
    }
    switch (*behind) {
    case '?':
        found = match(m, *s + 1, behind + 1);
        *p = behind + 1;
        *s = found != NULL ? found : *s;
        return found == NULL;
    case '+':
        *s = most(m, *s + 1, *p, behind);
        return false;
    case '*':
        *s = most(m, *s, *p, behind);
        return false;
    case '-':
        *s = least(m, *s, *p, behind);
        return false;
    default:
        (*s)++;
        *p = behind;
        return true;
    }
}

/* %b, %f and %1 to %9, which take no suffix; false: another escape. */
static bool special(struct match *m, const char **s, const char **p)
{
    char kind = (*p)[1];
    if (kind == 'b') {
        *s = balance(m, *s, *p + 2);
        *p += 4;
        return true;
    }
    if (kind == 'f') {
        const char *set = *p + 2;
        if (*set != '[') {
            luaL_error(m->L, "missing '[' after '%%f' in pattern");
        }
        *p = class_end(m, set);
        *s = at_frontier(m, *s, set, *p) ? *s : NULL;
        return true;
    }
    if (isdigit((unsigned char)kind)) {
        *s = same_as_capture(m, *s, kind);
        *p += 2;
        return true;
    }
    return false;
}

/* Behind what matches the pattern from @p on at @s; NULL: nothing does. */
static const char *match(struct match *m, const char *s, const char *p)
{
    if (m->depth-- == 0) {
        luaL_error(m->L, "pattern too complex");
    }
    while (s != NULL && p != m->pattern_end) {
        step(m, 1);
        if (*p == '(') {
            s = p[1] == ')' ? start_capture(m, s, p + 2, POSITION) : start_capture(m, s, p + 1, UNFINISHED);
            break;
        }
        if (*p == ')') {
            s = end_capture(m, s, p + 1);
            break;
        }
        if (*p == '$' && p + 1 == m->pattern_end) {
            s = s == m->end ? s : NULL;
            break;
        }
        if (*p == '%' && special(m, &s, &p)) {
            continue;
        }
        if (!goes_on(m, &s, &p, class_end(m, p))) {
            break;
        }
    }
    m->depth++;
    return s;
}

/* Capture @i as text; a position is pushed instead, and the answer POSITION. Without captures the first is the whole. */
static ptrdiff_t one_capture(struct match *m, int i, const char *s, const char *e, const char **text)
{
    if (i >= m->level) {
        if (i != 0) {
            luaL_error(m->L, "invalid capture index %%%d", i + 1);
        }
        *text = s;
        return e - s;
    }
    *text = m->capture[i].at;
    if (m->capture[i].len == UNFINISHED) {
        luaL_error(m->L, "unfinished capture");
    } else if (m->capture[i].len == POSITION) {
        lua_pushinteger(m->L, m->capture[i].at - m->begin + 1);
    }
    return m->capture[i].len;
}

static void push_capture(struct match *m, int i, const char *s, const char *e)
{
    const char *text;
    ptrdiff_t n = one_capture(m, i, s, e, &text);
    if (n != POSITION) {
        lua_pushlstring(m->L, text, (size_t)n);
    }
}

static int push_captures(struct match *m, const char *s, const char *e)
{
    int n = m->level == 0 && s != NULL ? 1 : m->level;
    luaL_checkstack(m->L, n, "too many captures");
    for (int i = 0; i < n; i++) {
        push_capture(m, i, s, e);
    }
    return n;
}

static void prepare(struct match *m, lua_State *L, const char *s, size_t ls, const char *p, size_t lp)
{
    m->L = L;
    m->begin = s;
    m->end = s + ls;
    m->pattern_end = p + lp;
    m->steps = 0;
}

static const char *match_at(struct match *m, const char *s, const char *p)
{
    m->level = 0;
    m->depth = DEPTH_MAX;
    return match(m, s, p);
}

/* The offset that argument @idx names, from 1 or from the end; behind the end: @n + 1. */
static size_t offset(lua_State *L, int idx, size_t n)
{
    lua_Integer at = luaL_optinteger(L, idx, 1);
    if (at > 0) {
        return (lua_Unsigned)at - 1 > n ? n + 1 : (size_t)at - 1;
    }
    return at == 0 || at < -(lua_Integer)n ? 0 : n - (size_t)-at;
}

static bool is_plain(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (p[i] != '\0' && strchr("^$*+?.([%-", p[i]) != NULL) {
            return false;
        }
    }
    return true;
}

static int find_plain(lua_State *L, const char *s, size_t ls, size_t from, const char *p, size_t lp)
{
    const char *at = lp == 0 ? s + from : memmem(s + from, ls - from, p, lp);
    if (at == NULL) {
        luaL_pushfail(L);
        return 1;
    }
    lua_pushinteger(L, at - s + 1);
    lua_pushinteger(L, at - s + (lua_Integer)lp);
    return 2;
}

static int search(lua_State *L, bool find)
{
    size_t ls, lp;
    struct match m;
    const char *s = luaL_checklstring(L, 1, &ls);
    const char *p = luaL_checklstring(L, 2, &lp);
    size_t from = offset(L, 3, ls);
    if (from > ls) {
        luaL_pushfail(L);
        return 1;
    }
    if (find && (lua_toboolean(L, 4) || is_plain(p, lp))) {
        return find_plain(L, s, ls, from, p, lp);
    }
    bool anchored = *p == '^';
    p += anchored;
    prepare(&m, L, s, ls, p, lp - anchored);
    const char *at = s + from;
    do {
        const char *e = match_at(&m, at, p);
        if (e != NULL && find) {
            lua_pushinteger(L, at - s + 1);
            lua_pushinteger(L, e - s);
            return push_captures(&m, NULL, NULL) + 2;
        }
        if (e != NULL) {
            return push_captures(&m, at, e);
        }
    } while (at++ < m.end && !anchored);
    luaL_pushfail(L);
    return 1;
}

int pattern_find(lua_State *L)
{
    return search(L, true);
}

int pattern_match(lua_State *L)
{
    return search(L, false);
}

struct each {
    struct match m;
    const char *at, *pattern, *last; /* last: the end of the match before */
};

static int next_match(lua_State *L)
{
    struct each *each = lua_touserdata(L, lua_upvalueindex(3));
    each->m.L = L;
    for (const char *s = each->at; s <= each->m.end; s++) {
        const char *e = match_at(&each->m, s, each->pattern);
        if (e != NULL && e != each->last) {
            each->at = each->last = e;
            return push_captures(&each->m, s, e);
        }
    }
    return 0;
}

int pattern_gmatch(lua_State *L)
{
    size_t ls, lp;
    const char *s = luaL_checklstring(L, 1, &ls);
    const char *p = luaL_checklstring(L, 2, &lp);
    size_t from = offset(L, 3, ls);
    lua_settop(L, 2); /* the closure keeps both */
    struct each *each = lua_newuserdatauv(L, sizeof *each, 0);
    prepare(&each->m, L, s, ls, p, lp);
    each->at = s + from;
    each->pattern = p;
    each->last = NULL;
    lua_pushcclosure(L, next_match, 3);
    return 1;
}

static void add_template(struct match *m, luaL_Buffer *b, const char *s, const char *e)
{
    size_t n;
    const char *text = lua_tolstring(m->L, 3, &n), *sign;
    while ((sign = memchr(text, '%', n)) != NULL) {
        const char *capture;
        luaL_addlstring(b, text, (size_t)(sign - text));
        sign++;
        if (*sign == '%') {
            luaL_addchar(b, *sign);
        } else if (*sign == '0') {
            luaL_addlstring(b, s, (size_t)(e - s));
        } else if (isdigit(byte(sign))) {
            ptrdiff_t len = one_capture(m, *sign - '1', s, e, &capture);
            if (len == POSITION) {
                luaL_addvalue(b);
            } else {
                luaL_addlstring(b, capture, (size_t)len);
            }
        } else {
            luaL_error(m->L, "invalid use of '%c' in replacement string", '%');
        }
        n -= (size_t)(sign + 1 - text);
        text = sign + 1;
    }
    luaL_addlstring(b, text, n);
}

/* Adds what stands for the match; false: itself. */
static bool add_value(struct match *m, luaL_Buffer *b, const char *s, const char *e, int kind)
{
    lua_State *L = m->L;
    if (kind == LUA_TFUNCTION) {
        lua_pushvalue(L, 3);
        lua_call(L, push_captures(m, s, e), 1);
    } else if (kind == LUA_TTABLE) {
        push_capture(m, 0, s, e);
        lua_gettable(L, 3);
    } else {
        add_template(m, b, s, e);
        return true;
    }
    if (!lua_toboolean(L, -1)) {
        lua_pop(L, 1);
        luaL_addlstring(b, s, (size_t)(e - s));
        return false;
    }
    if (!lua_isstring(L, -1)) {
        return luaL_error(L, "invalid replacement value (a %s)", luaL_typename(L, -1));
    }
    luaL_addvalue(b);
    return true;
}

int pattern_gsub(lua_State *L)
{
    size_t ls, lp;
    struct match m;
    luaL_Buffer b;
    const char *s = luaL_checklstring(L, 1, &ls), *last = NULL;
    const char *p = luaL_checklstring(L, 2, &lp);
    int kind = lua_type(L, 3);
    lua_Integer max = luaL_optinteger(L, 4, (lua_Integer)ls + 1), n = 0;
    bool anchored = *p == '^', changed = false;
    luaL_argexpected(L,
        kind == LUA_TNUMBER || kind == LUA_TSTRING || kind == LUA_TFUNCTION || kind == LUA_TTABLE, 3,
        "string/function/table");
    luaL_buffinit(L, &b);
    p += anchored;
    prepare(&m, L, s, ls, p, lp - anchored);
    while (n < max) {
        const char *e = match_at(&m, s, p);
        if (e != NULL && e != last) {
            n++;
            step(&m, 8);
            changed = add_value(&m, &b, s, e, kind) || changed;
            s = last = e;
        } else if (s < m.end) {
            luaL_addchar(&b, *s++);
        } else {
            break;
        }
        if (anchored) {
            break;
        }
    }
    if (changed) {
        luaL_addlstring(&b, s, (size_t)(m.end - s));
        luaL_pushresult(&b);
    } else {
        lua_pushvalue(L, 1);
    }
    lua_pushinteger(L, n);
    return 2;
}
