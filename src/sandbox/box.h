/* One policy in a Lua state of its own, from which there is no way out: text chunks only, an allow-listed library,
 * memory capped by the allocator, and a budget of instructions that cannot be caught. What the budget does not see (a
 * call into C that does not come back) is for the process's deadline to end.
 *
 * A policy is a chunk that returns
 *   {summary=, order=0..100, match={[hook]={kinds|keys|actions|roles|names={glob...}}}, hooks={[hook]=function},
 *    selftest={{name=, hook=, input=, state=, expect=}...}}
 */
#ifndef SYM_SANDBOX_BOX_H
#define SYM_SANDBOX_BOX_H

#include "base/buf.h"
#include "sandbox/reads.h"
#include "sandbox/rules.h"

#include <lua.h>
#include <sys/queue.h>

enum {
    BOX_NAME_MAX = 64,
    BOX_SOURCE_MAX = 64 << 10,
    BOX_INPUT_MAX = 4 << 20,
    BOX_DECISION_MAX = 256 << 10,
    BOX_AMENDED_MAX = 3 << 19,
    BOX_ERROR_MAX = 500,
    BOX_ORDER_DEFAULT = 50
};

struct box_limits {
    size_t memory;         /* bytes, of one policy */
    size_t memory_all;     /* of all of them; at least as much as one may have */
    uint64_t instructions; /* of a load, or of a call of one hook */
    bool full;             /* with Lua's whole standard library: for tests of what is outside of it */
};

struct box;

/* Boxes that share memory_all. When that is not enough for the one that runs, another one's state goes, the largest
 * first, and that box is evaluated anew by its next call: so one fails over nothing but its own cap. All-zero is one
 * with nothing in it. */
struct box_pool {
    size_t used; /* bytes */
    LIST_HEAD(box_list, box) boxes;
};

/* Compiles and evaluates @source, @n bytes. SYM_EINVAL with a message that says where it is wrong. */
int box_load(const struct box_limits *limits, struct box_pool *pool, const char *name, const char *source,
    size_t n, struct box **out);
void box_free(struct box *box); /* NULL is fine */

const char *box_name(const struct box *box);
int box_order(const struct box *box);
size_t box_memory(const struct box *box);
bool box_has_hook(const struct box *box, const char *hook);
/* {"summary","order","hooks","match","memory","selftest"}, valid as long as the box. */
const char *box_about(const struct box *box);

/* What a hook's input says of itself, for `match`; texts in place, NULL if they are not there. */
struct box_subject {
    struct buf room;
    const char *values[RULES_FIELDS];
};
int box_subject(const void *input, size_t n, struct box_subject *out); /* SYM_EINVAL: not an object */
void box_subject_free(struct box_subject *s);
/* True if the box has the hook, and wants to hear of this. */
bool box_matches(const struct box *box, const char *hook, const struct box_subject *subject);

struct box_result {
    struct buf decision; /* JSON; empty: no opinion */
    struct buf amended;  /* JSON: the input after an amend */
    uint64_t instructions;
};
/* Calls @hook with the JSON value @input. 0; SYM_EINVAL when the policy failed, with its message; then it has no
 * decision. A box whose budget ran out is evaluated anew by the next call. */
int box_call(struct box *box, const char *hook, const void *input, size_t n, struct reads *reads,
    struct box_result *out);
/* Runs the policy's own cases, or those in the JSON array @cases: appends [{"name","ok","got","want","error"}]. */
int box_test(struct box *box, const void *cases, size_t n, struct buf *out);

/* For the library (env*.c) and its tests. */
struct box *box_of(lua_State *L);
/* Counts @n instructions more. Does not return when there are not so many left. */
void box_charge(lua_State *L, uint64_t n);
struct reads *box_reads(lua_State *L); /* never NULL */
lua_State *box_state(struct box *box);
int box_enter(struct box *box, lua_CFunction fn, void *arg);

bool box_name_valid(const char *name, size_t n);

#endif
