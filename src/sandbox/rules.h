/* The hooks of a policy, and which of their inputs it wants to hear of: what it says under `match`, as globs that the
 * fields of an input have to fit. */
#ifndef SYM_SANDBOX_RULES_H
#define SYM_SANDBOX_RULES_H

#include <stdbool.h>
#include <stddef.h>

/* Every change is looked at with all globs, on the loop: what that takes grows with their number and lengths. */
enum {
    RULES_HOOKS_MAX = 32,
    RULES_MAX = 256,      /* globs of a policy */
    RULES_GLOBS_MAX = 16, /* for one field at one hook */
    RULES_GLOB_MAX = 64   /* bytes */
};

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

/* Is there such a hook? A place.<kind> has the name of a kind of resource: 1 to 32 of a-z, 0-9 and -, beginning with a
 * letter. */
bool rules_hook_known(const char *hook);
/* The seconds of an every.<duration>, at least 1, at most 366 days; 0 for any other hook. */
unsigned rules_period(const char *hook);

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
