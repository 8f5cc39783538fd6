#include "sandbox/boxes.h"

#include "base/err.h"
#include "codec/json.h"
#include "sandbox/json_read.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

enum { SCRATCH_KEEP = 64 << 10 };

void boxes_init(struct boxes *set, const struct box_limits *limits)
{
    memset(set, 0, sizeof *set);
    set->limits = *limits;
}

static void trim(struct boxes_scratch *in, size_t keep)
{
    buf_trim(&in->result.decision, keep);
    buf_trim(&in->result.amended, keep);
    buf_trim(&in->subject.room, keep);
    buf_trim(&in->trace, keep);
    buf_trim(&in->decision, keep);
    buf_trim(&in->commands, keep);
    buf_trim(&in->input, keep);
    reads_clear(&in->reads);
}

void boxes_clear(struct boxes *set)
{
    for (unsigned i = 0; i < set->n; i++) {
        box_free(set->all[i]);
    }
    set->n = 0;
    trim(&set->scratch, 0);
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
    struct boxes_scratch *in;
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
    struct buf *out = &a->in->trace;
    const struct buf *decision = &a->in->result.decision;
    int rv = buf_text(out, out->len > 0 ? ",{\"policy\":\"" : "{\"policy\":\"");
    rv = rv != 0 ? rv : buf_text(out, box_name(box));
    rv = rv != 0 ? rv : buf_text(out, "\",\"said\":\"");
    rv = rv != 0 ? rv : buf_text(out, said_names[said]);
    rv = rv != 0 ? rv : buf_text(out, "\",\"us\":");
    rv = rv != 0 ? rv : buf_decimal(out, us);
    rv = rv != 0 ? rv : buf_text(out, ",\"instructions\":");
    rv = rv != 0 ? rv : buf_decimal(out, a->in->result.instructions);
    if (decision->len > 0) {
        rv = rv != 0 ? rv : buf_text(out, ",\"decision\":");
        rv = rv != 0 ? rv : buf_append(out, buf_data(decision), decision->len);
    }
    if (error != NULL) {
        rv = rv != 0 ? rv : buf_text(out, ",\"error\":");
        rv = rv != 0 ? rv : json_lossy(out, error, strlen(error));
    }
    return rv != 0 ? rv : buf_text(out, "}");
}

/* The decision of all so far is this one's. */
static int decide(struct asking *a, const struct box *box, enum said said)
{
    const struct buf *decision = &a->in->result.decision;
    if (said <= a->decided) {
        return 0;
    }
    a->decided = said;
    buf_clear(&a->in->decision);
    int rv = buf_append(&a->in->decision, buf_data(decision), decision->len - 1);
    rv = rv != 0 ? rv : buf_text(&a->in->decision, ",\"policy\":\"");
    rv = rv != 0 ? rv : buf_text(&a->in->decision, box_name(box));
    return rv != 0 ? rv : buf_text(&a->in->decision, "\"}");
}

/* Each of the commands, with the name of who wants it. */
static int gather(struct asking *a, const struct box *box)
{
    const struct buf *decision = &a->in->result.decision;
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
        rv = buf_appendf(
            &a->in->commands, "%s{\"policy\":\"%s\",", a->in->commands.len > 0 ? "," : "", box_name(box));
        rv = rv != 0 ? rv : buf_append(&a->in->commands, from, (size_t)(r.p - from));
    }
    return rv;
}

static int amend(struct asking *a)
{
    struct buf amended = a->in->result.amended;
    a->in->result.amended = a->in->input;
    a->in->input = amended;
    a->amended = true;
    return box_subject(buf_data(&a->in->input), a->in->input.len, &a->in->subject);
}

static int ask(struct asking *a, struct box *box)
{
    const struct boxes_call *call = a->call;
    const void *input = a->amended ? (const void *)buf_data(&a->in->input) : call->input;
    size_t n_input = a->amended ? a->in->input.len : call->n_input;
    uint64_t began = now_us();
    if (call->running != NULL) {
        call->running(call->running_arg, box_name(box));
    }
    a->asked++;
    int rv = box_call(box, call->hook, input, n_input, &a->in->reads, &a->in->result);
    enum said said = rv != 0 ? FAILED : what_it_says(&a->in->result.decision);
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
    struct boxes_scratch *in = a->in;
    if (in->commands.len > 0) {
        buf_clear(&in->decision);
        if (buf_text(&in->decision, "{\"commands\":[") != 0 ||
            buf_append(&in->decision, buf_data(&in->commands), in->commands.len) != 0 ||
            buf_text(&in->decision, "]}") != 0) {
            return SYM_ENOMEM;
        }
    }
    int rv = buf_text(out, "{\"decision\":");
    rv = rv != 0                ? rv
         : in->decision.len > 0 ? buf_append(out, buf_data(&in->decision), in->decision.len)
                                : buf_text(out, "null");
    rv = rv != 0 ? rv : buf_text(out, ",\"amended\":");
    rv = rv != 0      ? rv
         : a->amended ? buf_append(out, buf_data(&in->input), in->input.len)
                      : buf_text(out, "null");
    rv = rv != 0 ? rv : buf_text(out, ",\"trace\":[");
    rv = rv != 0 ? rv : buf_append(out, buf_data(&in->trace), in->trace.len);
    rv = rv != 0 ? rv : buf_text(out, "],\"reads\":");
    rv = rv != 0 ? rv : reads_write(&in->reads, out);
    return rv != 0 ? rv : buf_text(out, "}");
}

int boxes_call(
    struct boxes *set, const struct boxes_call *call, struct buf *out, char failed[BOX_NAME_MAX + 1])
{
    struct asking a = {.call = call, .failed = failed, .in = &set->scratch};
    struct boxes_scratch *in = a.in;
    char why[BOX_ERROR_MAX + 100];
    failed[0] = '\0';
    in->reads.fn = call->read;
    in->reads.arg = call->read_arg;
    int rv = box_subject(call->input, call->n_input, &in->subject);
    for (unsigned i = 0; i < set->n && rv == 0 && !a.ended; i++) {
        struct box *box = set->all[i];
        if (rules_name(call->only, box_name(box)) && box_matches(box, call->hook, &in->subject)) {
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
    trim(in, SCRATCH_KEEP);
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
