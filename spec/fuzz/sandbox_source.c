/* A policy that is any bytes: it is loaded, called at each hook that it has, and tested, within its limits; beside one
 * that is sound, and has to make room for it now and then. */
#include "sandbox/boxes.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const struct box_limits limits = {256 << 10, 300 << 10, 20000, false};
    static const char sound[] =
        "local t = {} for i = 1, 60 do t[i] = ('x'):rep(1000) .. i end return { order = 0, hooks = { "
        "['admit.join'] = function() if #t ~= 60 then error('gone') end end } }";
    static const char *const hooks[] = {"admit.join", "admit.change", "place.a", "node.up", "every.1s"};
    struct boxes set;
    const struct box *box;
    char failed[BOX_NAME_MAX + 1];
    struct reads_fake fake = {(const uint8_t *)"{\"/kv/a\":\"b\"}", 13};
    boxes_init(&set, &limits);
    if (boxes_load(&set, "sound", sound, sizeof sound - 1, &box) != 0) {
        abort();
    }
    if (boxes_load(&set, "p", (const char *)data, n, &box) == 0) {
        for (size_t i = 0; i < sizeof hooks / sizeof *hooks; i++) {
            struct buf out = {0};
            struct boxes_call call = {.hook = hooks[i], .input = "{\"new\":{\"a\":[1]}}", .n_input = 17};
            call.read = reads_from_json;
            call.read_arg = &fake;
            (void)boxes_call(&set, &call, &out, failed);
            if (strcmp(failed, "sound") == 0 || set.pool.used > limits.memory_all) {
                abort();
            }
            buf_free(&out);
        }
        struct buf out = {0};
        (void)boxes_test(&set, (const char *)data, n, NULL, 0, &out);
        buf_free(&out);
    }
    boxes_clear(&set);
    if (set.pool.used != 0) {
        abort();
    }
    return 0;
}
