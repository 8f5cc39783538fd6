/* The host and its child, which is this program with CHILD_OPTION: what goes well, and what happens to a child that
 * does not answer in time, dies, or breaks the rules. */
#include "sandbox_support.h"

#include "base/log.h"
#include "sandbox/child.h"
#include "sandbox/host.h"
#include "sandbox_host_support.h"
#include "store_support.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

static struct store *the_store; /* NULL: there is none */

static struct store *store_of(void *arg)
{
    (void)arg;
    return the_store;
}

/* What is @cfg, with time enough for a machine that has other things to do, where it says nothing. */
static void configure(struct host_config cfg)
{
    cfg.deadline_ms = cfg.deadline_ms != 0 ? cfg.deadline_ms : 20000;
    cfg.load_deadline_ms = cfg.load_deadline_ms != 0 ? cfg.load_deadline_ms : 30000;
    host_configure(host, &cfg);
}

static int set_up(void **state)
{
    (void)state;
    log_setup(LOG_ERROR + 1, false);
    if (uv_loop_init(&loop) != 0 || host_new(&loop, store_of, NULL, &host) != 0) {
        return -1;
    }
    configure((struct host_config){0});
    return 0;
}

static struct got load(const char *name, const char *source)
{
    struct got got = {0};
    OK(host_load(host, name, source, strlen(source), keep, &got));
    assert_false(got.there);
    wait_for(&got);
    return got;
}

static void begin(struct got *got, const char *only, const char *input)
{
    struct host_call call = {.hook = "admit.change", .only = only, .input = input, .n_input = strlen(input)};
    *got = (struct got){0};
    OK(host_call(host, &call, keep, got));
    assert_false(got->there);
}

static struct got ask(const char *only, const char *input)
{
    struct got got;
    begin(&got, only, input);
    wait_for(&got);
    return got;
}

#define SAYS(what, expected)                                                                                 \
    do {                                                                                                     \
        struct got g_ = (what);                                                                              \
        if (g_.status != 0 || strncmp(g_.json, expected, strlen(expected)) != 0) {                           \
            fail_msg("%d %s %s", g_.status, g_.message, g_.json);                                            \
        }                                                                                                    \
    } while (0)
#define SAYS_NOT(what, code, name)                                                                           \
    do {                                                                                                     \
        struct got g_ = (what);                                                                              \
        if (g_.status != (code) || strcmp(g_.policy, name) != 0) {                                           \
            fail_msg("%s %s %s %s", err_name(g_.status), g_.policy, g_.message, g_.json);                    \
        }                                                                                                    \
    } while (0)

static void load_call_drop(void **state)
{
    (void)state;
    struct host_stats stats;
    host_stats(host, &stats);
    assert_int_equal(stats.pid, 0);
    SAYS(load("b", policy("return refuse('b: ' .. c.new)")),
        "{\"summary\":\"\",\"order\":50,\"hooks\":[\"admit.change\"]");
    SAYS(load("a", policy("if c.new == 'x' then return amend{ new = 'y' } end")), "{\"summary\"");
    SAYS(ask(NULL, "{\"new\":\"x\"}"),
        "{\"decision\":{\"refuse\":\"b: y\",\"policy\":\"b\"},\"amended\":{\"new\":\"y\"},"
        "\"trace\":[{\"policy\":\"a\",\"said\":\"amend\",\"us\":");
    SAYS(ask("b", "{\"new\":\"x\"}"),
        "{\"decision\":{\"refuse\":\"b: x\",\"policy\":\"b\"},\"amended\":null,");
    host_drop(host, "b");
    SAYS(ask(NULL, "{\"new\":\"x\"}"), "{\"decision\":null,\"amended\":{\"new\":\"y\"},");
    SAYS_NOT(load("a", "return {"), SYM_EINVAL, "a");
    SAYS(ask(NULL, "{\"new\":\"x\"}"), "{\"decision\":null,\"amended\":{\"new\":\"y\"},");
    SAYS_NOT(load("c", policy("error('oh')")), 0, "c");
    struct got failed = ask(NULL, "{\"new\":\"x\"}");
    SAYS_NOT(failed, SYM_EPOLICY, "c");
    assert_string_equal(failed.message, "policy c failed: c:1: oh");
    assert_non_null(strstr(failed.json, "\"error\":\"c:1: oh\""));
    host_stats(host, &stats);
    assert_int_equal(stats.policies, 2);
    assert_int_equal(stats.started, 1);
    assert_int_equal(stats.calls, 5);
    assert_int_equal(stats.failures, 1);
    assert_true(stats.memory > 0 && stats.memory < 2 * (200 << 10));
}

static void tests_of_a_policy(void **state)
{
    (void)state;
    struct got got = {0};
    const char *source =
        "return { hooks = { ['node.up'] = function() end }, selftest = { { hook = 'node.up' } } }";
    OK(host_test(host, source, strlen(source), NULL, 0, keep, &got));
    wait_for(&got);
    SAYS(got, "{\"about\":{\"summary\":\"\"");
    assert_non_null(
        strstr(got.json, "\"cases\":[{\"name\":\"case 1\",\"ok\":true,\"got\":null,\"want\":{}}]}"));
    got = (struct got){0};
    OK(host_test(host, "return 7", 8, NULL, 0, keep, &got));
    wait_for(&got);
    SAYS_NOT(got, SYM_EINVAL, "");
}

/* As much as a policy may read, as often as it may. */
static void reads_of_the_state(void **state)
{
    char value[1000], key[32];
    memset(value, 'v', sizeof value);
    value[sizeof value - 1] = '\0';
    OK(make_folder(state));
    the_store = open_store(&(struct store_config){.dir = in_folder(state, "store"), .quota = 8 << 20});
    for (int i = 0; i < 900; i++) {
        snprintf(key, sizeof key, "/kv/%d", i);
        put(the_store, key, value);
    }
    load(
        "lists", policy("local n = 0 for i = 1, 32 do for _, kv in ipairs(list('/kv/')) do n = n + #kv.value "
                        "end end return refuse(tostring(n))"));
    SAYS(ask(NULL, "{}"), "{\"decision\":{\"refuse\":\"28771200\",\"policy\":\"lists\"}");
    load("lists", policy("for i = 1, 64 do get('/kv/' .. i) end return refuse(get('/kv/1'))"));
    SAYS_NOT(ask(NULL, "{}"), SYM_EPOLICY, "lists");
    load("lists", policy("for i = 1, 63 do get('/kv/' .. i) end return refuse('' .. #get('/kv/1'))"));
    SAYS(ask(NULL, "{}"), "{\"decision\":{\"refuse\":\"999\",\"policy\":\"lists\"}");
    store_close(the_store);
    the_store = NULL;
    remove_folder(state);
}

static void what_is_wrong_at_once(void **state)
{
    (void)state;
    char name[66];
    struct host_call call = {.hook = "no.hook", .input = "{}", .n_input = 2};
    memset(name, 'a', 65);
    name[65] = '\0';
    FAILS(SYM_EINVAL, host_load(host, "a b", "", 0, keep, NULL));
    FAILS(SYM_EINVAL, host_load(host, "", "", 0, keep, NULL));
    FAILS(SYM_EINVAL, host_load(host, name, "", 0, keep, NULL));
    FAILS(SYM_ETOOBIG, host_load(host, "a", "", BOX_SOURCE_MAX + 1, keep, NULL));
    FAILS(SYM_EINVAL, host_call(host, &call, keep, NULL));
    call = (struct host_call){.hook = "admit.change", .input = "{}", .n_input = BOX_INPUT_MAX + 1};
    FAILS(SYM_ETOOBIG, host_call(host, &call, keep, NULL));
    SAYS_NOT(ask(NULL, "[]"), SYM_EINVAL, "");
    SAYS_NOT(ask(NULL, "{"), SYM_EINVAL, "");
    SAYS(ask(NULL, "{}"), "{\"decision\":null");
}

/* The call that hangs is answered, and only that; the child's successor has the same policies. */
static void one_that_hangs(void **state)
{
    (void)state;
    struct host_stats stats;
    struct got got[20];
    configure((struct host_config){.instructions = 1000000000000, .deadline_ms = 200});
    load("good", policy("return allow()"));
    load("hangs", policy("if c.hang then while true do end end"));
    for (int i = 0; i < 20; i++) {
        begin(&got[i], NULL, i == 7 || i == 12 ? "{\"hang\":true}" : "{}");
    }
    for (int i = 0; i < 20; i++) {
        wait_for(&got[i]);
        if (i == 7 || i == 12) {
            SAYS_NOT(got[i], SYM_EPOLICYTIME, "hangs");
            assert_non_null(strstr(got[i].message, "policy hangs: it was not done after 200 ms"));
        } else {
            SAYS(got[i], "{\"decision\":{\"allow\":true,\"policy\":\"good\"}");
        }
    }
    host_stats(host, &stats);
    assert_int_equal(stats.killed, 2);
    assert_int_equal(stats.policies, 2);
}

static void one_that_hangs_when_it_is_loaded(void **state)
{
    (void)state;
    load("good", policy("return allow()"));
    configure((struct host_config){.instructions = 1000000000000, .load_deadline_ms = 500});
    SAYS_NOT(load("hangs", "while true do end"), SYM_EPOLICYTIME, "hangs");
    SAYS(ask(NULL, "{}"), "{\"decision\":{\"allow\":true,\"policy\":\"good\"}");
}

/* Ended from outside, while there is something to do and while there is nothing. */
static void one_that_dies(void **state)
{
    (void)state;
    struct host_stats stats;
    struct got got[20];
    load("good", policy("return allow()"));
    for (int round = 0; round < 3; round++) {
        host_stats(host, &stats);
        kill(stats.pid, SIGKILL);
        for (int i = 0; i < 20; i++) {
            begin(&got[i], NULL, "{}");
        }
        int failed = 0;
        for (int i = 0; i < 20; i++) {
            wait_for(&got[i]);
            failed += got[i].status != 0;
        }
        assert_true(failed <= 1);
        SAYS(ask(NULL, "{}"), "{\"decision\":{\"allow\":true,\"policy\":\"good\"}");
    }
}

/* So long that a child can be caught at it; and of resources of one kind. */
static const char long_one[] =
    "for i = 1, 400000 do end return { match = { ['admit.change'] = { kinds = { 'kv' } } }, hooks = { "
    "['admit.change'] = function() return allow() end, ['node.up'] = function() end } }";

static unsigned broken(void)
{
    struct host_stats stats;
    host_stats(host, &stats);
    return stats.broken;
}

static void tell(void *arg, const struct host_broken *b)
{
    snprintf(arg, 600, "%s: %s (%u)", b->name, b->why, b->tries);
}

/* Until it is there again, what it guards is refused, and not simply allowed; nothing else is. */
static void one_that_does_not_load_again(void **state)
{
    (void)state;
    struct host_call other = {.hook = "node.up", .input = "{}", .n_input = 2};
    struct got got = {0};
    char told[600] = "";
    load("good", policy("return allow()"));
    load("long", long_one);
    SAYS(ask(NULL, "{\"kind\":\"kv\"}"), "{\"decision\":{\"allow\":true");
    configure((struct host_config){.instructions = 10000});
    SAYS_NOT(ask(NULL, "{\"kind\":\"kv\"}"), SYM_EBUSY, "long");
    assert_int_equal(broken(), 1);
    host_broken(host, tell, told);
    assert_string_equal(told, "long: it did not come to an end within 10000 instructions (1)");
    SAYS_NOT(ask("good long", "{\"kind\":\"kv\"}"), SYM_EBUSY, "long");
    SAYS(ask("good", "{\"kind\":\"kv\"}"), "{\"decision\":{\"allow\":true");
    SAYS(ask(NULL, "{\"kind\":\"node\"}"), "{\"decision\":{\"allow\":true,\"policy\":\"good\"}");
    SAYS_NOT(ask(NULL, "[]"), SYM_EINVAL, "");
    OK(host_call(host, &other, keep, &got));
    wait_for(&got);
    SAYS(got, "{\"decision\":null");
    configure((struct host_config){.instructions = 10000000});
    SAYS(ask("long", "{\"kind\":\"kv\"}"), "{\"decision\":{\"allow\":true,\"policy\":\"long\"}");
    assert_int_equal(broken(), 0);
}

static uint64_t cpu_ms(int pid)
{
    clockid_t clock;
    struct timespec ts;
    if (pid == 0 || clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &ts) != 0) {
        return 0;
    }
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* A child that is ended from outside while it loads takes nothing with it for good. */
static void an_accident_while_it_loads(void **state)
{
    (void)state;
    static const char source[] =
        "for i = 1, 60000000 do end return { match = { ['admit.change'] = { kinds = { 'kv' } } }, "
        "hooks = { ['admit.change'] = function() return allow() end } }";
    struct host_stats stats;
    configure((struct host_config){.instructions = 1000000000});
    load("good", policy("return allow()"));
    SAYS_NOT(load("long", source), 0, "long");
    host_stats(host, &stats);
    int first = stats.pid;
    kill(first, SIGKILL);
    while (stats.pid == first || cpu_ms(stats.pid) < 150) {
        uv_run(&loop, UV_RUN_NOWAIT);
        host_stats(host, &stats);
    }
    kill(stats.pid, SIGKILL);
    SAYS_NOT(ask("long", "{\"kind\":\"kv\"}"), SYM_EBUSY, "long");
    SAYS(ask(NULL, "{\"kind\":\"node\"}"), "{\"decision\":{\"allow\":true,\"policy\":\"good\"}");
    while (broken() > 0) {
        uv_run(&loop, UV_RUN_ONCE);
    }
    SAYS(ask("long", "{\"kind\":\"kv\"}"), "{\"decision\":{\"allow\":true,\"policy\":\"long\"}");
}

/* It is not brought back by a try of what it was. */
static void one_that_is_set_anew_meanwhile(void **state)
{
    (void)state;
    load("long", long_one);
    configure((struct host_config){.instructions = 10000});
    SAYS_NOT(ask(NULL, "{\"kind\":\"kv\"}"), SYM_EBUSY, "long");
    load("long", policy("return refuse('short')"));
    assert_int_equal(broken(), 0);
    SAYS(ask(NULL, "{\"kind\":\"kv\"}"), "{\"decision\":{\"refuse\":\"short\",\"policy\":\"long\"}");
    load("long", long_one);
    SAYS(ask(NULL, "{\"kind\":\"kv\"}"), "{\"decision\":{\"refuse\":\"short\",\"policy\":\"long\"}");
    host_drop(host, "long");
    SAYS(ask(NULL, "{\"kind\":\"kv\"}"), "{\"decision\":null");
}

/* Before it was there, or while its load waits to be done again: the child has not got it either. */
static void one_that_is_dropped_while_it_loads(void **state)
{
    (void)state;
    struct got got[2] = {{0}};
    static const char source[] =
        "return { hooks = { ['admit.change'] = function() return refuse('no') end } }";
    struct host_stats stats;
    OK(host_load(host, "a", source, sizeof source - 1, keep, &got[0]));
    host_drop(host, "a");
    wait_for(&got[0]);
    SAYS(ask(NULL, "{}"), "{\"decision\":null");
    configure((struct host_config){.instructions = 1000000000000, .deadline_ms = 200});
    load("hangs", policy("if c.hang then while true do end end"));
    got[0] = (struct got){0};
    begin(&got[1], NULL, "{\"hang\":true}");
    OK(host_load(host, "a", source, sizeof source - 1, keep, &got[0]));
    host_drop(host, "a");
    wait_for(&got[1]);
    wait_for(&got[0]);
    SAYS_NOT(got[1], SYM_EPOLICYTIME, "hangs");
    SAYS(ask(NULL, "{}"), "{\"decision\":null");
    host_stats(host, &stats);
    assert_int_equal(stats.policies, 1);
}

/* However long the child takes for what came before. */
static void one_that_is_dropped_while_much_is_done(void **state)
{
    (void)state;
    enum { CALLS = 70 };
    struct got got[CALLS];
    struct host_stats stats;
    load("a", policy("return refuse('no')"));
    host_stats(host, &stats);
    kill(stats.pid, SIGSTOP);
    for (int i = 0; i < CALLS; i++) {
        begin(&got[i], NULL, "{}");
    }
    host_drop(host, "a");
    wait_for(&got[CALLS - 1]);
    SAYS_NOT(got[CALLS - 1], SYM_EBUSY, "");
    kill(stats.pid, SIGCONT);
    for (int i = 0; i < CALLS; i++) {
        wait_for(&got[i]);
    }
    SAYS(ask(NULL, "{}"), "{\"decision\":null");
}

/* Also where the policies have to be loaded first. */
static void no_one_waits_for_long(void **state)
{
    (void)state;
    struct host_stats stats;
    struct got got;
    load("a", policy("return allow()"));
    host_stats(host, &stats);
    int first = stats.pid;
    kill(first, SIGKILL);
    while (stats.pid == first || stats.pid == 0) {
        uv_run(&loop, UV_RUN_NOWAIT);
        host_stats(host, &stats);
    }
    kill(stats.pid, SIGSTOP);
    begin(&got, NULL, "{}");
    wait_for(&got);
    SAYS_NOT(got, SYM_EBUSY, "");
    kill(stats.pid, SIGCONT);
    SAYS(ask(NULL, "{}"), "{\"decision\":{\"allow\":true");
}

static bool gone(int pid)
{
    return kill(pid, 0) != 0;
}

static void it_ends_with_the_host(void **state)
{
    (void)state;
    struct host_stats stats;
    load("good", policy("return allow()"));
    host_stats(host, &stats);
    assert_true(stats.pid > 0 && !gone(stats.pid));
    host_close(host);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_true(gone(stats.pid));
    OK(host_new(&loop, store_of, NULL, &host));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(load_call_drop, set_up, host_tear_down),
        cmocka_unit_test_setup_teardown(tests_of_a_policy, set_up, host_tear_down),
        cmocka_unit_test_setup_teardown(reads_of_the_state, set_up, host_tear_down),
        cmocka_unit_test_setup_teardown(what_is_wrong_at_once, set_up, host_tear_down),
        cmocka_unit_test_setup_teardown(one_that_hangs, set_up, host_tear_down),
        cmocka_unit_test_setup_teardown(one_that_hangs_when_it_is_loaded, set_up, host_tear_down),
        cmocka_unit_test_setup_teardown(one_that_dies, set_up, host_tear_down),
        cmocka_unit_test_setup_teardown(one_that_does_not_load_again, set_up, host_tear_down),
        cmocka_unit_test_setup_teardown(an_accident_while_it_loads, set_up, host_tear_down),
        cmocka_unit_test_setup_teardown(one_that_is_set_anew_meanwhile, set_up, host_tear_down),
        cmocka_unit_test_setup_teardown(one_that_is_dropped_while_it_loads, set_up, host_tear_down),
        cmocka_unit_test_setup_teardown(one_that_is_dropped_while_much_is_done, set_up, host_tear_down),
        cmocka_unit_test_setup_teardown(no_one_waits_for_long, set_up, host_tear_down),
        cmocka_unit_test_setup_teardown(it_ends_with_the_host, set_up, host_tear_down),
    };
    return child_asked(argc, argv) ? child_main() : cmocka_run_group_tests(tests, NULL, NULL);
}
