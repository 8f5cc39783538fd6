/* What comes from the process that runs the policies: frames, answers, and what they say of a policy; and what it is
 * sent. */
#include "sandbox/frame.h"
#include "sandbox/json_read.h"
#include "sandbox/kv_admit.h"
#include "sandbox/rules.h"

#include <stdlib.h>
#include <string.h>

/* Goes through a JSON text; whole ones can be skipped as well. */
static void read_json(const uint8_t *data, size_t n)
{
    struct json_reader r, skipper;
    enum json_token t;
    size_t tokens = 0;
    json_begin(&r, data, n);
    do {
        t = json_next(&r);
        if (t == JSON_KEY || t == JSON_STRING) {
            uint8_t *text = malloc(r.n + 1);
            if (text == NULL || json_unescape(&r, text) > r.n) {
                abort();
            }
            free(text);
        }
        if (++tokens > 2 * n + 2 || r.depth > JSON_DEPTH_MAX) {
            abort();
        }
    } while (t != JSON_BAD && t != JSON_END);
    json_begin(&skipper, data, n);
    bool skipped = json_skip(&skipper, json_next(&skipper)) && json_next(&skipper) == JSON_END;
    if (skipped != (t == JSON_END)) {
        abort();
    }
}

/* What a policy says of itself, and what they say of a change of a key. */
static void read_words(const char *json, size_t n)
{
    static const char *const values[RULES_FIELDS] = {"kv", "a", "put", NULL, NULL};
    struct rules rules = {.n = 0};
    struct kv_admitted admitted;
    if (rules_read(&rules, json, n) == 0) {
        (void)rules_fit(&rules, "admit.change", values);
    }
    rules_free(&rules);
    if (kv_admit_result(json, n, &admitted, NULL, NULL) == 0) {
        for (unsigned i = 0; i < admitted.n; i++) {
            if (!reads_allowed((const char *)admitted.cmps[i].key.p, admitted.cmps[i].key.n)) {
                abort();
            }
        }
    }
    kv_admitted_free(&admitted);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct frame f;
    long len;
    read_json(data, n);
    read_words((const char *)data, n);
    while ((len = frame_parse(data, n, FRAME_FROM_CHILD_MAX, &f)) > 0) {
        struct frame_answer answer;
        struct frame_call call;
        if ((size_t)len > n || f.n != (size_t)len - FRAME_HEADER) {
            abort();
        }
        if (frame_get_answer(&f, &answer)) {
            if (answer.status > 0 || strlen(answer.policy) > BOX_NAME_MAX ||
                strlen(answer.message) > FRAME_TEXT_MAX) {
                abort();
            }
            read_json(answer.data, answer.n);
        }
        if (frame_get_call(&f, &call)) {
            struct box_subject subject = {0};
            (void)rules_hook_known(call.hook);
            (void)box_subject(call.input, call.n_input, &subject);
            box_subject_free(&subject);
        }
        data += len;
        n -= (size_t)len;
    }
    return 0;
}
