#include "sandbox/kv_admit.h"

#include "codec/json.h"
#include "sandbox/json_read.h"

#include <string.h>

/* --- what they are asked --- */

static int put_text(struct buf *out, const char *before, struct slice text)
{
    if (!utf8_valid(text.p, text.n)) {
        return 1;
    }
    int rv = buf_text(out, before);
    return rv != 0 ? rv : json_string(out, text.p, text.n);
}

static int put_word(struct buf *out, const char *before, const char *word)
{
    struct slice text = {(const uint8_t *)word, word != NULL ? strlen(word) : 0};
    return word == NULL ? 0 : put_text(out, before, text);
}

int kv_admit_input(const struct kv_change *change, struct buf *out)
{
    int rv = put_text(out,
        change->put ? "{\"kind\":\"kv\",\"action\":\"put\",\"key\":"
                    : "{\"kind\":\"kv\",\"action\":\"delete\",\"key\":",
        change->key);
    rv = rv != 0 || !change->put ? rv : put_text(out, ",\"new\":", change->value);
    if (change->old != NULL) {
        rv = rv != 0 ? rv : put_text(out, ",\"old\":", change->old->value);
        rv = rv != 0 ? rv : buf_text(out, ",\"old_revision\":");
        rv = rv != 0 ? rv : buf_decimal(out, change->old->mod_revision);
    }
    rv = rv != 0 ? rv : put_word(out, ",\"who\":{\"kind\":", change->who_kind);
    rv = rv != 0 ? rv : put_word(out, ",\"name\":", change->who_name);
    rv = rv != 0 ? rv : put_word(out, ",\"role\":", change->who_role);
    return rv != 0 ? rv : buf_text(out, "}}");
}

/* --- what they say --- */

/* The value whose first token is @t: nothing, or {allow = true, policy =}. */
static bool is_yes(struct json_reader *r, enum json_token t)
{
    if (t != JSON_OBJECT) {
        return t == JSON_NULL;
    }
    while ((t = json_next(r)) == JSON_KEY) {
        bool allow = json_is(r, "allow"), known = allow || json_is(r, "policy");
        t = json_next(r);
        if (!known || (allow && t != JSON_TRUE) || !json_skip(r, t)) {
            return false;
        }
    }
    return t == JSON_CLOSE;
}

/* An integer that is not negative. */
static bool is_count(const struct json_reader *r, enum json_token t, uint64_t *out)
{
    *out = t == JSON_INTEGER && r->integer >= 0 ? (uint64_t)r->integer : 0;
    return t == JSON_INTEGER && r->integer >= 0;
}

/* One that was read, behind its brace: its name goes behind the others, and the compares do not point there yet. */
static bool one_read(struct json_reader *r, struct kv_admitted *out)
{
    uint64_t revision = 0, count = 0;
    bool key = false, prefix = false, has_revision = false, has_count = false;
    size_t at = out->names.len, n = 0;
    enum json_token t;
    while ((t = json_next(r)) == JSON_KEY) {
        bool is_key = json_is(r, "key"), is_prefix = json_is(r, "prefix");
        bool is_revision = json_is(r, "revision"), is_number = is_revision || json_is(r, "count");
        t = json_next(r);
        if ((is_key || is_prefix) && t == JSON_STRING && !key && !prefix) {
            uint8_t *room = buf_reserve(&out->names, r->n + 1);
            if (room == NULL) {
                return false;
            }
            n = json_unescape(r, room);
            buf_commit(&out->names, n);
            key = is_key;
            prefix = is_prefix;
        } else if (is_number && is_count(r, t, is_revision ? &revision : &count)) {
            has_revision = has_revision || is_revision;
            has_count = has_count || !is_revision;
        } else {
            return false;
        }
    }
    if (t != JSON_CLOSE || key == prefix || !has_revision || has_count != prefix ||
        out->n + 2 > sizeof out->cmps / sizeof out->cmps[0] ||
        !reads_allowed((const char *)buf_data(&out->names) + at, n)) {
        return false;
    }
    struct txn_cmp cmp = {.key = {NULL, n}, .value = {(const uint8_t *)"", 0}, .number = revision};
    cmp.kind = prefix ? CMP_PREFIX_REVISION : revision == 0 ? CMP_ABSENT : CMP_MOD_REVISION;
    out->cmps[out->n++] = cmp;
    if (prefix) {
        cmp.kind = CMP_PREFIX_COUNT;
        cmp.number = count;
        out->cmps[out->n++] = cmp;
    }
    return true;
}

static bool all_reads(struct json_reader *r, enum json_token t, struct kv_admitted *out)
{
    if (t != JSON_ARRAY) {
        return false;
    }
    while ((t = json_next(r)) == JSON_OBJECT) {
        if (!one_read(r, out)) {
            return false;
        }
    }
    return t == JSON_CLOSE;
}

static bool all_heard(
    struct json_reader *r, enum json_token t, void (*heard)(void *arg, const char *name, size_t n), void *arg)
{
    if (t != JSON_ARRAY) {
        return false;
    }
    while ((t = json_next(r)) == JSON_OBJECT) {
        while ((t = json_next(r)) == JSON_KEY) {
            bool is_name = json_is(r, "policy");
            t = json_next(r);
            if (is_name && t == JSON_STRING && heard != NULL) {
                heard(arg, (const char *)r->text, r->n);
            }
            if (!json_skip(r, t)) {
                return false;
            }
        }
        if (t != JSON_CLOSE) {
            return false;
        }
    }
    return t == JSON_CLOSE;
}

int kv_admit_result(const char *json, size_t n, struct kv_admitted *out,
    void (*heard)(void *arg, const char *name, size_t n_name), void *arg)
{
    struct json_reader r;
    enum json_token t;
    unsigned found = 0;
    out->n = 0;
    out->names = (struct buf){0};
    json_begin(&r, json, n);
    if (json_next(&r) != JSON_OBJECT) {
        return 1;
    }
    while ((t = json_next(&r)) == JSON_KEY) {
        bool decision = json_is(&r, "decision"), amended = json_is(&r, "amended");
        bool trace = json_is(&r, "trace"), reads = json_is(&r, "reads"), good;
        t = json_next(&r);
        good = decision  ? is_yes(&r, t)
               : amended ? t == JSON_NULL
               : trace   ? all_heard(&r, t, heard, arg)
               : reads   ? all_reads(&r, t, out)
                         : false;
        if (!good) {
            return 1;
        }
        found |= decision ? 1 : amended ? 2 : trace ? 4 : 8;
    }
    if (t != JSON_CLOSE || json_next(&r) != JSON_END || found != 15) {
        return 1;
    }
    const uint8_t *at = buf_data(&out->names);
    for (unsigned i = 0; i < out->n; i++) {
        out->cmps[i].key.p = at;
        /* The two compares of a prefix have one name. */
        at += out->cmps[i].kind == CMP_PREFIX_REVISION ? 0 : out->cmps[i].key.n;
    }
    return 0;
}

void kv_admitted_free(struct kv_admitted *a)
{
    buf_free(&a->names);
}
