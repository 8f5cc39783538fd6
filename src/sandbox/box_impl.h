/* What the files of a box share: box.c (its limits and its life), box_about.c, box_call.c, box_test.c. Private to
 * them. */
#ifndef SYM_SANDBOX_BOX_IMPL_H
#define SYM_SANDBOX_BOX_IMPL_H

#include "sandbox/arena.h"
#include "sandbox/box.h"

#include <setjmp.h>

enum { BOX_CASES_MAX = 64 };

struct box {
    LIST_ENTRY(box) link;
    struct box_limits limits;
    struct box_pool *pool;
    struct arena arena;
    lua_State *L; /* NULL: dropped when the budget ran out, or for the memory of another */
    jmp_buf stopped;
    bool armed; /* under way, and to be stopped when the budget is used up */
    uint64_t steps;
    struct reads *reads; /* of the call under way */
    struct reads no_reads;
    char name[BOX_NAME_MAX + 1];
    char *source;
    size_t n_source;
    int order;
    struct rules rules;
    struct buf about;
};

/* Registry keys: the hooks by name, and the cases. */
extern const char box_hooks_key, box_cases_key;

/* Makes the state anew. @again: what the policy says of itself is known already. */
int box_evaluate(struct box *box, bool again);
/* Reads what the policy has returned, the table at 1. Raises. */
void box_read(lua_State *L, struct box *box, bool again);
/* The field @name of the table at @idx, raw, on the top; its type. */
int box_raw_field(lua_State *L, int idx, const char *name);
/* Raises err_msg() unless @rv is 0. */
void box_check(lua_State *L, int rv);

#endif
