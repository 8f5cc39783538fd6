/* Several policies together: what they share is memory, and none pays for what another holds of it. */
#include "sandbox_support.h"

static const struct box_limits tight = {.memory = 4 << 20, .memory_all = 8 << 20, .instructions = 3000000};
static struct boxes set;

static int set_up(void **state)
{
    (void)state;
    boxes_init(&set, &tight);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    boxes_clear(&set);
    return set.pool.used != 0;
}

static void load(const char *name, const char *source)
{
    const struct box *box;
    if (boxes_load(&set, name, source, strlen(source), &box) != 0) {
        fail_msg("%s: %s", name, err_msg());
    }
    assert_in_range(set.pool.used, 1, tight.memory_all);
}

/* One that holds some 3 MiB from its load on, and says so. */
static const char hog[] = "local t = {} for i = 1, 96 do t[i] = ('x'):rep(32000) .. i end\n"
                          "return { hooks = { ['admit.change'] = function(c) if c.more then for i = 1, 96 do "
                          "t[#t + 1] = ('y'):rep(32000) .. i end end\n"
                          "  return refuse('it has ' .. #t) end } }";

/* What @only says, or why it failed; @failed: who did. */
static char failed[BOX_NAME_MAX + 1];
static const char *ask(const char *only, const char *input)
{
    static char text[4096];
    struct buf out = {0};
    struct boxes_call call = {.hook = "admit.change", .only = only, .input = input, .n_input = strlen(input)};
    int rv = boxes_call(&set, &call, &out, failed);
    snprintf(text, sizeof text, "%.*s", rv == 0 ? (int)out.len : 0, (const char *)buf_data(&out));
    if (rv != 0) {
        snprintf(text, sizeof text, "%s", err_msg());
    }
    buf_free(&out);
    assert_in_range(set.pool.used, 1, tight.memory_all);
    return text;
}

#define SAYS(only, input, words) assert_non_null(strstr(ask(only, input), words))

static void memory_of_all(void **state)
{
    (void)state;
    char name[8];
    load("small", policy("return allow()"));
    for (int i = 0; i < 5; i++) {
        snprintf(name, sizeof name, "hog%d", i);
        load(name, hog);
    }
    load("little",
        policy("local t = {} for i = 1, 1000 do t[i] = 'a' .. i end return refuse(#t .. ' little')"));
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 5; i++) {
            snprintf(name, sizeof name, "hog%d", i);
            SAYS(name, "{}", "\"refuse\":\"it has 96\"");
            SAYS("small", "{}", "\"allow\":true");
            SAYS("little", "{}", "1000 little");
        }
    }
    /* What is too much for one is that one's fault. */
    SAYS("hog3", "{\"more\":true}", "policy hog3 failed: it needs more than 4096 KiB of memory");
    assert_string_equal(failed, "hog3");
    SAYS("hog3", "{}", "\"refuse\":\"it has ");
    SAYS("hog4", "{}", "\"refuse\":\"it has 96\"");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(memory_of_all, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
