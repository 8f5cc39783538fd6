/* The hooks of a policy, and which of their inputs it wants to hear of: what it says under `match`, as globs that the
 * fields of an input have to fit. */
#ifndef SYM_SANDBOX_RULES_H
#define SYM_SANDBOX_RULES_H

#include <stdbool.h>
#include <stddef.h>

enum { RULES_HOOKS_MAX = 32, RULES_MAX = 256, RULES_GLOB_MAX = 256 };

enum rules_field { RULES_KIND, RULES_KEY, RULES_ACTION, RULES_ROLE, RULES_NAME, RULES_FIELDS };
extern const char *const rules_plural[RULES_FIELDS];   /* as `match` has them: "kinds" */
extern const char *const rules_singular[RULES_FIELDS]; /* as an input has them: "kind" */

struct rule {
    char *hook, *glob;
    enum rules_field field;
};

/* All-zero is one with nothing in it. */
struct rules {
    char *hooks[RULES_HOOKS_MAX];
    unsigned n_hooks;
    struct rule *all;
    unsigned n;
};

/* 0, SYM_ETOOBIG or SYM_ENOMEM. */
int rules_add_hook(struct rules *r, const char *hook);
int rules_add(struct rules *r, const char *hook, enum rules_field field, const char *glob);
/* Reads both from what a policy says of itself (box_about; any bytes). SYM_EINVAL, too. */
int rules_read(struct rules *r, const char *about, size_t n);
void rules_free(struct rules *r);

bool rules_have_hook(const struct rules *r, const char *hook);
/* True if it has the hook, and the values (NULL: the input has no such text) fit. */
bool rules_fit(const struct rules *r, const char *hook, const char *const values[RULES_FIELDS]);
/* Is @name one of @names, which stand with a space between them? NULL are all. */
bool rules_name(const char *names, const char *name);

#endif
