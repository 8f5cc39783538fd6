#include "sandbox/boxes.h"

#include "base/err.h"
#include "codec/json.h"
#include "sandbox/json_read.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

void boxes_init(struct boxes *set, const struct box_limits *limits)
{
    memset(set, 0, sizeof *set);
    set->limits = *limits;
}

void boxes_clear(struct boxes *set)
{
    for (unsigned i = 0; i < set->n; i++) {
        box_free(set->all[i]);
    }
    set->n = 0;
}

static unsigned find(const struct boxes *set, const char *name)
{
    unsigned i = 0;
    while (i < set->n && strcmp(box_name(set->all[i]), name) != 0) {
        i++;
    }
    return i;
}

static void remove_at(struct boxes *set, unsigned i)
{
    box_free(set->all[i]);
    set->n--;
    memmove(set->all + i, set->all + i + 1, (set->n - i) * sizeof(struct box *));
}

static void insert(struct boxes *set, struct box *box)
{
    unsigned i = set->n++;
    while (i > 0) {
        const struct box *before = set->all[i - 1];
        int order = box_order(before) - box_order(box);
        if (order < 0 || (order == 0 && strcmp(box_name(before), box_name(box)) < 0)) {
            break;
        }
        set->all[i] = set->all[i - 1];
        i--;
    }
    set->all[i] = box;
}

int boxes_load(struct boxes *set, const char *name, const char *source, size_t n, const struct box **out)
{
    struct box *box;
    unsigned old = find(set, name);
    if (old == set->n && set->n == BOXES_MAX) {
        return err_setf(SYM_ETOOBIG, "at most %d policies", BOXES_MAX);
    }
    int rv = box_load(&set->limits, &set->pool, name, source, n, &box);
    if (rv != 0) {
        return rv;
    }
    if (old < set->n) {
        remove_at(set, old);
    }
    insert(set, box);
    *out = box;
    return 0;
}

void boxes_drop(struct boxes *set, const char *name)
{
    unsigned i = find(set, name);
    if (i < set->n) {
        remove_at(set, i);
    }
}

/* --- asking them --- */

enum said { NOTHING, ALLOW, AMEND, APPROVE, CHOOSE, COMMANDS, REFUSE, FAILED };
static const char *const said_names[] = {
    "nothing", "allow", "amend", "approve", "choose", "commands", "refuse", "failed"};

struct asking {
    const struct boxes_call *call;
    struct box_result result;
    struct box_subject subject;
    struct reads reads;
    struct buf trace, decision, commands, input;
    enum said decided;
    bool amended, ended;
    unsigned asked;
    char *failed;
};

static enum said what_it_says(const struct buf *decision)
{
    struct json_reader r;
    json_begin(&r, buf_data(decision), decision->len);
    if (decision->len > 0 && json_next(&r) == JSON_OBJECT && json_next(&r) == JSON_KEY) {
        for (int i = ALLOW; i <= REFUSE; i++) {
            if (json_is(&r, said_names[i])) {
                return (enum said)i;
            }
        }
    }
    return NOTHING;
}

static uint64_t now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static int write_trace(
    struct asking *a, const struct box *box, enum said said, const char *error, uint64_t us)
{
    struct buf *out = &a->trace;
    const struct buf *decision = &a->result.decision;
    int rv = buf_appendf(out, "%s{\"policy\":\"%s\",\"said\":\"%s\",\"us\":%llu,\"instructions\":%llu",
        out->len > 0 ? "," : "", box_name(box), said_names[said], (unsigned long long)us,
        (unsigned long long)a->result.instructions);
    if (decision->len > 0) {
        rv = rv != 0 ? rv : buf_append(out, ",\"decision\":", 12);
        rv = rv != 0 ? rv : buf_append(out, buf_data(decision), decision->len);
    }
    if (error != NULL) {
        rv = rv != 0 ? rv : buf_append(out, ",\"error\":", 9);
        rv = rv != 0 ? rv : json_lossy(out, error, strlen(error));
    }
    return rv != 0 ? rv : buf_append(out, "}", 1);
}

/* The decision of all so far is this one's. */
static int decide(struct asking *a, const struct box *box, enum said said)
{
    const struct buf *decision = &a->result.decision;
    if (said <= a->decided) {
        return 0;
    }
    a->decided = said;
    buf_clear(&a->decision);
    int rv = buf_append(&a->decision, buf_data(decision), decision->len - 1);
    rv = rv != 0 ? rv : buf_append(&a->decision, ",\"policy\":\"", 11);
    rv = rv != 0 ? rv : buf_append(&a->decision, box_name(box), strlen(box_name(box)));
    return rv != 0 ? rv : buf_append(&a->decision, "\"}", 2);
}

/* Each of the commands, with the name of who wants it. */
static int gather(struct asking *a, const struct box *box)
{
    const struct buf *decision = &a->result.decision;
    struct json_reader r;
    int rv = 0;
    json_begin(&r, buf_data(decision), decision->len);
    for (enum json_token t = json_next(&r); t != JSON_END && t != JSON_BAD && rv == 0; t = json_next(&r)) {
        if (t != JSON_OBJECT || r.depth != 3) {
            continue;
        }
        const uint8_t *from = r.p;
        if (!json_skip(&r, t)) {
            break;
        }
        rv =
            buf_appendf(&a->commands, "%s{\"policy\":\"%s\",", a->commands.len > 0 ? "," : "", box_name(box));
        rv = rv != 0 ? rv : buf_append(&a->commands, from, (size_t)(r.p - from));
    }
    return rv;
}

static int amend(struct asking *a)
{
    struct buf amended = a->result.amended;
    a->result.amended = a->input;
    a->input = amended;
    a->amended = true;
    return box_subject(buf_data(&a->input), a->input.len, &a->subject);
}

static int ask(struct asking *a, struct box *box)
{
    const struct boxes_call *call = a->call;
    const void *input = a->amended ? (const void *)buf_data(&a->input) : call->input;
    size_t n_input = a->amended ? a->input.len : call->n_input;
    uint64_t began = now_us();
    if (call->running != NULL) {
        call->running(call->running_arg, box_name(box));
    }
    a->asked++;
    int rv = box_call(box, call->hook, input, n_input, &a->reads, &a->result);
    enum said said = rv != 0 ? FAILED : what_it_says(&a->result.decision);
    int wrote = write_trace(a, box, said, rv != 0 ? err_msg() : NULL, now_us() - began);
    if (wrote != 0 || rv != 0) {
        if (wrote == 0 && strncmp(call->hook, "admit.", 6) == 0) {
            a->ended = true;
            snprintf(a->failed, BOX_NAME_MAX + 1, "%s", box_name(box));
            return err_setf(SYM_EPOLICY, "policy %s failed: %s", box_name(box), err_msg());
        }
        return wrote;
    }
    switch (said) {
    case COMMANDS:
        return gather(a, box);
    case AMEND:
        return amend(a);
    case NOTHING:
        return 0;
    default:
        a->ended = said == REFUSE || said == CHOOSE;
        return decide(a, box, said);
    }
}

static int write_result(struct asking *a, struct buf *out)
{
    if (a->commands.len > 0) {
        buf_clear(&a->decision);
        if (buf_append(&a->decision, "{\"commands\":[", 13) != 0 ||
            buf_append(&a->decision, buf_data(&a->commands), a->commands.len) != 0 ||
            buf_append(&a->decision, "]}", 2) != 0) {
            return SYM_ENOMEM;
        }
    }
    int rv = buf_append(out, "{\"decision\":", 12);
    rv = rv != 0               ? rv
         : a->decision.len > 0 ? buf_append(out, buf_data(&a->decision), a->decision.len)
                               : buf_append(out, "null", 4);
    rv = rv != 0 ? rv : buf_append(out, ",\"amended\":", 11);
    rv = rv != 0      ? rv
         : a->amended ? buf_append(out, buf_data(&a->input), a->input.len)
                      : buf_append(out, "null", 4);
    rv = rv != 0 ? rv : buf_append(out, ",\"trace\":[", 10);
    rv = rv != 0 ? rv : buf_append(out, buf_data(&a->trace), a->trace.len);
    rv = rv != 0 ? rv : buf_append(out, "],\"reads\":", 10);
    rv = rv != 0 ? rv : reads_write(&a->reads, out);
    return rv != 0 ? rv : buf_append(out, "}", 1);
}

int boxes_call(
    struct boxes *set, const struct boxes_call *call, struct buf *out, char failed[BOX_NAME_MAX + 1])
{
    struct asking a = {.call = call, .failed = failed, .reads = {.fn = call->read, .arg = call->read_arg}};
    char why[BOX_ERROR_MAX + 100];
    failed[0] = '\0';
    int rv = box_subject(call->input, call->n_input, &a.subject);
    for (unsigned i = 0; i < set->n && rv == 0 && !a.ended; i++) {
        struct box *box = set->all[i];
        if (rules_name(call->only, box_name(box)) && box_matches(box, call->hook, &a.subject)) {
            rv = ask(&a, box);
        }
    }
    if (rv == 0) {
        rv = write_result(&a, out);
    } else if (rv == SYM_EPOLICY) {
        snprintf(why, sizeof why, "%s", err_msg());
        int wrote = write_result(&a, out);
        rv = wrote != 0 ? wrote : err_setf(rv, "%s", why);
    }
    box_subject_free(&a.subject);
    reads_clear(&a.reads);
    buf_free(&a.result.decision);
    buf_free(&a.result.amended);
    buf_free(&a.trace);
    buf_free(&a.decision);
    buf_free(&a.commands);
    buf_free(&a.input);
    return rv;
}

int boxes_test(
    struct boxes *set, const char *source, size_t n, const void *cases, size_t n_cases, struct buf *out)
{
    struct box *box;
    int rv = box_load(&set->limits, &set->pool, "policy", source, n, &box);
    if (rv != 0) {
        return rv;
    }
    rv = buf_appendf(out, "{\"about\":%s,\"cases\":", box_about(box));
    rv = rv != 0 ? rv : box_test(box, cases, n_cases, out);
    rv = rv != 0 ? rv : buf_append(out, "}", 1);
    box_free(box);
    return rv;
}
