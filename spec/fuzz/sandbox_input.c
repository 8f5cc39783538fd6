/* The input of a hook on its way into a policy and back: what is taken comes out as the same value, and any bytes may be
 * given. A first byte chooses between that and a state that is made up. */
#include "base/err.h"
#include "sandbox/box.h"
#include "sandbox/plain.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char source[] =
    "return { hooks = { ['admit.join'] = function(c) return amend(c) end,\n"
    "  ['admit.change'] = function(c) for k, v in pairs(c) do tostring(v) end local s = get('/kv/a') or ''\n"
    "  s:find('(.-)%s*$') for _, kv in pairs(list('/kv/')) do glob('*a?', kv.key) end count('/res/') "
    "get('/res/a')\n"
    "  return refuse(#s > 0 and s:sub(1, 400) or 'none') end } }";

static struct box *box;
static struct box_pool pool;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const struct box_limits limits = {4 << 20, 4 << 20, 1000000, false};
    static struct box_result result, again;
    struct reads_fake fake = {data + 1, n - 1};
    struct reads reads = {.fn = reads_from_json, .arg = &fake};
    if (n == 0) {
        return 0;
    }
    if (box == NULL && box_load(&limits, &pool, "p", source, strlen(source), &box) != 0) {
        fprintf(stderr, "%s\n", err_msg());
        abort();
    }
    if (data[0] % 2 == 0) {
        (void)box_call(box, "admit.change", "{\"new\":[]}", 10, &reads, &result);
    } else if (box_call(box, "admit.join", data + 1, n - 1, &reads, &result) == 0 && result.amended.len > 0) {
        /* Amended by itself, a value is the same. */
        if (box_call(box, "admit.join", buf_data(&result.amended), result.amended.len, &reads, &again) != 0 ||
            again.amended.len != result.amended.len ||
            memcmp(buf_data(&again.amended), buf_data(&result.amended), again.amended.len) != 0) {
            fprintf(stderr, "%.*s\n", (int)result.amended.len, (const char *)buf_data(&result.amended));
            abort();
        }
    }
    reads_clear(&reads);
    return 0;
}
