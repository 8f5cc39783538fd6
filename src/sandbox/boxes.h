/* The policies that are loaded, in the order in which they are asked, and what they say together. */
#ifndef SYM_SANDBOX_BOXES_H
#define SYM_SANDBOX_BOXES_H

#include "sandbox/box.h"

enum { BOXES_MAX = 64 };

/* What one call is worked on in: kept from one to the next, as far as it is not large. */
struct boxes_scratch {
    struct box_result result;
    struct box_subject subject;
    struct reads reads;
    struct buf trace, decision, commands, input;
};

struct boxes {
    struct box_limits limits;
    struct box_pool pool;
    struct box *all[BOXES_MAX];
    unsigned n;
    struct boxes_scratch scratch;
};

void boxes_init(struct boxes *set, const struct box_limits *limits);
void boxes_clear(struct boxes *set); /* frees all there is in it */
/* Loads, in the place of one with the same name, which stays when this fails (SYM_EINVAL, SYM_ETOOBIG). */
int boxes_load(struct boxes *set, const char *name, const char *source, size_t n, const struct box **out);
void boxes_drop(struct boxes *set, const char *name);

struct boxes_call {
    const char *hook;
    const char *only; /* the names of those to be asked, between blanks; NULL: all */
    const void *input;
    size_t n_input;
    read_fn read; /* of the state */
    void *read_arg;
    void (*running)(void *arg, const char *name); /* the policy that is asked next; may be NULL */
    void *running_arg;
};
/* Asks the policies whose hook it is and that want to hear of it, in their order. Of admit.*, an amendment is what the
 * next one sees, and the first refusal ends it; of place.*, the first choice does; other hooks gather the commands of
 * all. Appends to @out {"decision":{...}|null, "amended":{...}|null, "trace":[{"policy","said","decision","error","us",
 * "instructions"}], "reads":[...]}. SYM_EPOLICY when a policy of admit.* failed: then its name is in @failed, and @out
 * there all the same. SYM_EINVAL for an input that is no object. */
int boxes_call(
    struct boxes *set, const struct boxes_call *call, struct buf *out, char failed[BOX_NAME_MAX + 1]);
/* Loads @source for this only, and runs its cases, or @cases: see box_test. */
int boxes_test(
    struct boxes *set, const char *source, size_t n, const void *cases, size_t n_cases, struct buf *out);

#endif
