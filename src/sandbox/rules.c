#include "sandbox/rules.h"

#include "base/err.h"
#include "sandbox/glob.h"
#include "sandbox/json_read.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

const char *const rules_plural[RULES_FIELDS] = {"kinds", "keys", "actions", "roles", "names"};
const char *const rules_singular[RULES_FIELDS] = {"kind", "key", "action", "role", "name"};

enum { TEXT_MAX = 256, KIND_MAX = 32 };

unsigned rules_period(const char *hook)
{
    static const unsigned seconds[] = {1, 60, 3600, 86400};
    static const char units[] = "smhd";
    const char *text = hook + 6;
    char *end;
    if (strncmp(hook, "every.", 6) != 0 || !isdigit((unsigned char)*text) || strlen(text) > 9) {
        return 0;
    }
    unsigned long n = strtoul(text, &end, 10);
    const char *unit = *end != '\0' && end[1] == '\0' ? strchr(units, *end) : NULL;
    if (unit == NULL || n > 366UL * 86400 / seconds[unit - units]) {
        return 0;
    }
    return (unsigned)n * seconds[unit - units];
}

static bool is_kind(const char *text)
{
    size_t n = strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-");
    return n > 0 && n <= KIND_MAX && text[n] == '\0' && islower((unsigned char)*text);
}

bool rules_hook_known(const char *hook)
{
    static const char *const names[] = {
        "admit.join", "admit.change", "node.down", "node.up", "leader.change"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(hook, names[i]) == 0) {
            return true;
        }
    }
    return rules_period(hook) > 0 || (strncmp(hook, "place.", 6) == 0 && is_kind(hook + 6));
}

int rules_add_hook(struct rules *r, const char *hook)
{
    if (r->n_hooks == RULES_HOOKS_MAX) {
        return err_setf(SYM_ETOOBIG, "at most %d hooks", RULES_HOOKS_MAX);
    }
    r->hooks[r->n_hooks] = strdup(hook);
    if (r->hooks[r->n_hooks] == NULL) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    r->n_hooks++;
    return 0;
}

int rules_add(struct rules *r, const char *hook, enum rules_field field, const char *glob)
{
    unsigned n = 0;
    for (unsigned i = 0; i < r->n; i++) {
        n += r->all[i].field == field && strcmp(r->all[i].hook, hook) == 0;
    }
    if (n == RULES_GLOBS_MAX || r->n == RULES_MAX || strlen(glob) > RULES_GLOB_MAX) {
        return err_setf(SYM_ETOOBIG,
            "match: %s are at most %d texts of at most %d bytes, and all of them together %d",
            rules_plural[field], RULES_GLOBS_MAX, RULES_GLOB_MAX, RULES_MAX);
    }
    struct rule rule = {strdup(hook), strdup(glob), field};
    struct rule *all = realloc(r->all, (r->n + 1) * sizeof *all);
    r->all = all != NULL ? all : r->all;
    if (all == NULL || rule.hook == NULL || rule.glob == NULL) {
        free(rule.hook);
        free(rule.glob);
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    all[r->n++] = rule;
    return 0;
}

void rules_free(struct rules *r)
{
    for (unsigned i = 0; i < r->n_hooks; i++) {
        free(r->hooks[i]);
    }
    for (unsigned i = 0; i < r->n; i++) {
        free(r->all[i].hook);
        free(r->all[i].glob);
    }
    free(r->all);
    *r = (struct rules){.n = 0};
}

bool rules_have_hook(const struct rules *r, const char *hook)
{
    for (unsigned i = 0; i < r->n_hooks; i++) {
        if (strcmp(r->hooks[i], hook) == 0) {
            return true;
        }
    }
    return false;
}

static bool field_fits(const struct rules *r, const char *hook, enum rules_field field, const char *value)
{
    bool asked = false;
    for (unsigned i = 0; i < r->n; i++) {
        const struct rule *rule = &r->all[i];
        if (rule->field != field || strcmp(rule->hook, hook) != 0) {
            continue;
        }
        asked = true;
        if (value != NULL && glob_match(rule->glob, strlen(rule->glob), value, strlen(value))) {
            return true;
        }
    }
    return !asked;
}

bool rules_fit(const struct rules *r, const char *hook, const char *const values[RULES_FIELDS])
{
    bool fits = rules_have_hook(r, hook);
    for (int i = 0; i < RULES_FIELDS && fits; i++) {
        fits = field_fits(r, hook, (enum rules_field)i, values[i]);
    }
    return fits;
}

/* --- from what it says of itself --- */

static int wrong(void)
{
    return err_setf(SYM_EINVAL, "what the policy says of itself cannot be read");
}

/* The reader's text, with its NUL. */
static bool text_of(const struct json_reader *j, char out[TEXT_MAX + 1])
{
    if (j->n > TEXT_MAX) {
        return false;
    }
    out[json_unescape(j, (uint8_t *)out)] = '\0';
    return true;
}

static int read_hooks(struct rules *r, struct json_reader *j)
{
    char hook[TEXT_MAX + 1];
    enum json_token t;
    int rv = 0;
    while (rv == 0 && (t = json_next(j)) != JSON_CLOSE) {
        rv = t == JSON_STRING && text_of(j, hook) ? rules_add_hook(r, hook) : wrong();
    }
    return rv;
}

static int read_globs(struct rules *r, struct json_reader *j, const char *hook, enum rules_field field)
{
    char glob[TEXT_MAX + 1];
    enum json_token t = json_next(j);
    int rv = t == JSON_ARRAY ? 0 : wrong();
    while (rv == 0 && (t = json_next(j)) != JSON_CLOSE) {
        rv = t == JSON_STRING && text_of(j, glob) ? rules_add(r, hook, field, glob) : wrong();
    }
    return rv;
}

static int read_fields(struct rules *r, struct json_reader *j, const char *hook)
{
    enum json_token t = json_next(j);
    int rv = t == JSON_OBJECT ? 0 : wrong();
    while (rv == 0 && (t = json_next(j)) != JSON_CLOSE) {
        int field = RULES_FIELDS;
        for (int i = 0; t == JSON_KEY && i < RULES_FIELDS; i++) {
            field = json_is(j, rules_plural[i]) ? i : field;
        }
        rv = field < RULES_FIELDS ? read_globs(r, j, hook, (enum rules_field)field) : wrong();
    }
    return rv;
}

static int read_match(struct rules *r, struct json_reader *j)
{
    char hook[TEXT_MAX + 1];
    enum json_token t;
    int rv = 0;
    while (rv == 0 && (t = json_next(j)) != JSON_CLOSE) {
        rv = t == JSON_KEY && text_of(j, hook) ? read_fields(r, j, hook) : wrong();
    }
    return rv;
}

int rules_read(struct rules *r, const char *about, size_t n)
{
    struct json_reader j;
    enum json_token t;
    int rv = 0;
    json_begin(&j, about, n);
    if (json_next(&j) != JSON_OBJECT) {
        return wrong();
    }
    while (rv == 0 && (t = json_next(&j)) == JSON_KEY) {
        bool hooks = json_is(&j, "hooks"), match = json_is(&j, "match");
        t = json_next(&j);
        if (hooks && t == JSON_ARRAY) {
            rv = read_hooks(r, &j);
        } else if (match && t == JSON_OBJECT) {
            rv = read_match(r, &j);
        } else {
            rv = !hooks && (!match || t == JSON_ARRAY) && json_skip(&j, t) ? 0 : wrong();
        }
    }
    return rv != 0 || t == JSON_CLOSE ? rv : wrong();
}

bool rules_name(const char *names, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = names; names != NULL && (p = strstr(p, name)) != NULL; p += n) {
        if ((p == names || p[-1] == ' ') && (p[n] == '\0' || p[n] == ' ')) {
            return true;
        }
    }
    return names == NULL;
}
