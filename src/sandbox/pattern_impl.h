/* One match under way: pattern_match.c makes it, pattern.c makes Lua's functions of it. Private to them. */
#ifndef SYM_SANDBOX_PATTERN_IMPL_H
#define SYM_SANDBOX_PATTERN_IMPL_H

#include "sandbox/pattern.h"

#include <stdbool.h>
#include <stddef.h>

enum { CAPTURES_MAX = 32 };
enum { OPEN = -1, POSITION = -2 };
enum { UNKNOWN, YES, NO };

typedef unsigned char byte;

struct match {
    lua_State *L;
    pattern_charge *charge;
    const byte *text, *text_end, *pattern_end;
    uint64_t steps; /* not charged yet */
    int depth, n;   /* recursions left; captures */
    unsigned tries; /* places at which a match was looked for */
    /* The end of the item that every match begins with a character of; NULL: there is none, or it is not known yet. */
    const byte *first_end;
    byte begins[256]; /* whether it fits a character: UNKNOWN, YES or NO */
    struct {
        const byte *at;
        ptrdiff_t len; /* or OPEN, POSITION */
    } captures[CAPTURES_MAX];
};

/* Counts one step, and charges for them now and then. */
void pattern_step(struct match *m);
/* From @s on, the next place at which a match of the pattern from @p on is to be looked for; at the end of the text when
 * there is none. */
const byte *pattern_next(struct match *m, const byte *s, const byte *p);
/* Behind the match of the pattern from @p on at @s, or NULL. */
const byte *pattern_match_at(struct match *m, const byte *s, const byte *p);

#endif
