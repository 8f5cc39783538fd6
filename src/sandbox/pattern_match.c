/* The matcher. */
#include "sandbox/pattern_impl.h"

#include <ctype.h>
#include <lauxlib.h>
#include <string.h>

enum {
    DEPTH_MAX = 200,
    PORTION = 256,
    TRIES = 4 /* before it is worth while to know what a match begins with */
};

void pattern_step(struct match *m)
{
    if (++m->steps >= PORTION) {
        uint64_t steps = m->steps;
        m->steps = 0;
        m->charge(m->L, steps);
    }
}

/* --- one character --- */

/* Behind the item at @p: a character, %x, or a set. */
static const byte *item_end(struct match *m, const byte *p)
{
    byte c = *p++;
    if (c == '%') {
        if (p == m->pattern_end) {
            luaL_error(m->L, "malformed pattern (ends with '%%')");
        }
        return p + 1;
    }
    if (c != '[') {
        return p;
    }
    p += p < m->pattern_end && *p == '^' ? 1 : 0;
    do { /* a ] that comes first is one of the set */
        pattern_step(m);
        if (p == m->pattern_end) {
            luaL_error(m->L, "malformed pattern (missing ']')");
        }
        c = *p++;
        if (c == '%' && p < m->pattern_end) {
            p++;
        }
    } while (p == m->pattern_end || *p != ']');
    return p + 1;
}

static bool in_class(byte c, byte class)
{
    bool in;
    switch (tolower(class)) {
    case 'a':
        in = isalpha(c) != 0;
        break;
    case 'c':
        in = iscntrl(c) != 0;
        break;
    case 'd':
        in = isdigit(c) != 0;
        break;
    case 'g':
        in = isgraph(c) != 0;
        break;
    case 'l':
        in = islower(c) != 0;
        break;
    case 'p':
        in = ispunct(c) != 0;
        break;
    case 's':
        in = isspace(c) != 0;
        break;
    case 'u':
        in = isupper(c) != 0;
        break;
    case 'w':
        in = isalnum(c) != 0;
        break;
    case 'x':
        in = isxdigit(c) != 0;
        break;
    case 'z':
        in = c == '\0';
        break;
    default:
        return class == c;
    }
    return isupper(class) ? !in : in;
}

/* @p: the set's [, @last: its ]. */
static bool in_set(struct match *m, byte c, const byte *p, const byte *last)
{
    bool in = true;
    if (p[1] == '^') {
        in = false;
        p++;
    }
    while (++p < last) {
        pattern_step(m);
        if (*p == '%') {
            p++;
            if (in_class(c, *p)) {
                return in;
            }
        } else if (p[1] == '-' && p + 2 < last) {
            p += 2;
            if (p[-2] <= c && c <= *p) {
                return in;
            }
        } else if (*p == c) {
            return in;
        }
    }
    return !in;
}

/* Whether the character at @s fits the item from @p to @end. */
static bool fits(struct match *m, const byte *s, const byte *p, const byte *end)
{
    pattern_step(m);
    if (s >= m->text_end) {
        return false;
    }
    switch (*p) {
    case '.':
        return true;
    case '%':
        return in_class(*s, p[1]);
    case '[':
        return in_set(m, *s, p, end - 1);
    default:
        return *p == *s;
    }
}

/* --- more than one --- */

static const byte *match_here(struct match *m, const byte *s, const byte *p);

static const byte *match_balance(struct match *m, const byte *s, const byte *p)
{
    if (m->pattern_end - p < 2) {
        luaL_error(m->L, "malformed pattern (missing arguments to '%%b')");
    }
    if (s >= m->text_end || *s != p[0]) {
        return NULL;
    }
    for (int open = 1; ++s < m->text_end;) {
        pattern_step(m);
        if (*s == p[1]) {
            if (--open == 0) {
                return s + 1;
            }
        } else if (*s == p[0]) {
            open++;
        }
    }
    return NULL;
}

static const byte *match_most(struct match *m, const byte *s, const byte *p, const byte *end)
{
    ptrdiff_t n = 0;
    while (fits(m, s + n, p, end)) {
        n++;
    }
    for (; n >= 0; n--) {
        const byte *behind = match_here(m, s + n, end + 1);
        if (behind != NULL) {
            return behind;
        }
    }
    return NULL;
}

static const byte *match_least(struct match *m, const byte *s, const byte *p, const byte *end)
{
    for (;; s++) {
        const byte *behind = match_here(m, s, end + 1);
        if (behind != NULL || !fits(m, s, p, end)) {
            return behind;
        }
    }
}

static const byte *open_capture(struct match *m, const byte *s, const byte *p, ptrdiff_t what)
{
    if (m->n >= CAPTURES_MAX) {
        luaL_error(m->L, "too many captures");
    }
    m->captures[m->n].at = s;
    m->captures[m->n].len = what;
    m->n++;
    const byte *behind = match_here(m, s, p);
    m->n -= behind == NULL ? 1 : 0;
    return behind;
}

static const byte *close_capture(struct match *m, const byte *s, const byte *p)
{
    int i = m->n - 1;
    while (i >= 0 && m->captures[i].len != OPEN) {
        i--;
    }
    if (i < 0) {
        luaL_error(m->L, "invalid pattern capture");
        return NULL;
    }
    m->captures[i].len = s - m->captures[i].at;
    const byte *behind = match_here(m, s, p);
    if (behind == NULL) {
        m->captures[i].len = OPEN;
    }
    return behind;
}

static const byte *match_again(struct match *m, const byte *s, byte which)
{
    int i = which - '1';
    if (i < 0 || i >= m->n || m->captures[i].len == OPEN) {
        luaL_error(m->L, "invalid capture index %%%d", i + 1);
        return NULL;
    }
    if (m->captures[i].len == POSITION) {
        return NULL; /* as Lua: there is no text of it */
    }
    size_t len = (size_t)m->captures[i].len;
    m->steps += len / 16;
    pattern_step(m);
    return (size_t)(m->text_end - s) >= len && memcmp(m->captures[i].at, s, len) == 0 ? s + len : NULL;
}

/* At %f: whether a set begins here. */
static bool at_frontier(struct match *m, const byte *s, const byte *p, const byte *end)
{
    byte before = s == m->text ? '\0' : s[-1];
    byte here = s < m->text_end ? *s : '\0';
    return !in_set(m, before, p, end - 1) && in_set(m, here, p, end - 1);
}

/* The item at @p, with what stands behind it; NULL, or behind the match. */
static const byte *match_item(struct match *m, const byte *s, const byte *p, const byte **rest)
{
    const byte *end = item_end(m, p);
    byte how = end < m->pattern_end ? *end : '\0';
    switch (how) {
    case '?':
        if (fits(m, s, p, end)) {
            const byte *behind = match_here(m, s + 1, end + 1);
            if (behind != NULL) {
                return behind;
            }
        }
        *rest = end + 1;
        return s;
    case '+':
        return fits(m, s, p, end) ? match_most(m, s + 1, p, end) : NULL;
    case '*':
        return match_most(m, s, p, end);
    case '-':
        return match_least(m, s, p, end);
    default:
        *rest = end;
        return fits(m, s, p, end) ? s + 1 : NULL;
    }
}

/* What stands at @p and is not one character's item; @rest as in match_item. */
static bool match_special(
    struct match *m, const byte *s, const byte *p, const byte **rest, const byte **behind)
{
    byte next = p + 1 < m->pattern_end ? p[1] : '\0';
    if (*p == '(') {
        *behind = next == ')' ? open_capture(m, s, p + 2, POSITION) : open_capture(m, s, p + 1, OPEN);
    } else if (*p == ')') {
        *behind = close_capture(m, s, p + 1);
    } else if (*p == '$' && p + 1 == m->pattern_end) {
        *behind = s == m->text_end ? s : NULL;
    } else if (*p == '%' && next == 'b') {
        *behind = match_balance(m, s, p + 2);
        *rest = p + 4;
    } else if (*p == '%' && next == 'f') {
        p += 2;
        if (p == m->pattern_end || *p != '[') {
            luaL_error(m->L, "missing '[' after '%%f' in pattern");
        }
        *rest = item_end(m, p);
        *behind = at_frontier(m, s, p, *rest) ? s : NULL;
    } else if (*p == '%' && isdigit(next)) {
        *behind = match_again(m, s, next);
        *rest = p + 2;
    } else {
        return false;
    }
    return true;
}

/* Behind the match of the pattern from @p on at @s, or NULL. */
static const byte *match_here(struct match *m, const byte *s, const byte *p)
{
    if (m->depth-- == 0) {
        luaL_error(m->L, "pattern too complex");
    }
    while (s != NULL && p < m->pattern_end) {
        const byte *rest = NULL, *behind = NULL;
        pattern_step(m);
        if (!match_special(m, s, p, &rest, &behind)) {
            behind = match_item(m, s, p, &rest);
        }
        s = behind;
        if (rest == NULL) {
            break;
        }
        p = rest;
    }
    m->depth++;
    return s;
}

/* --- where it may begin --- */

/* The item that every match begins with a character of: its end, or NULL if there is none. */
static const byte *first_item(struct match *m, const byte *p)
{
    byte next = p + 1 < m->pattern_end ? p[1] : '\0';
    if (p == m->pattern_end || *p == '(' || *p == ')' || (*p == '$' && p + 1 == m->pattern_end) ||
        (*p == '%' && (next == 'b' || next == 'f' || isdigit(next)))) {
        return NULL;
    }
    const byte *end = item_end(m, p);
    bool optional = end < m->pattern_end && (*end == '?' || *end == '*' || *end == '-');
    return optional ? NULL : end;
}

const byte *pattern_next(struct match *m, const byte *s, const byte *p)
{
    const byte *from = s;
    if (m->tries < TRIES && ++m->tries == TRIES) {
        m->first_end = first_item(m, p);
        memset(m->begins, UNKNOWN, sizeof m->begins);
    }
    if (m->first_end == NULL) {
        return s;
    }
    for (; s < m->text_end; s++) {
        if (m->begins[*s] == UNKNOWN) {
            m->begins[*s] = fits(m, s, p, m->first_end) ? YES : NO;
        }
        if (m->begins[*s] == YES) {
            break;
        }
    }
    if (s - from >= 16) {
        m->charge(m->L, (uint64_t)(s - from) / 16); /* at once: what comes next may raise */
    }
    return s;
}

const byte *pattern_match_at(struct match *m, const byte *s, const byte *p)
{
    m->depth = DEPTH_MAX;
    m->n = 0;
    return match_here(m, s, p);
}
