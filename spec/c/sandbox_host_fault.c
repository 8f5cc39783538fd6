/* The host without memory: each allocation fails in turn, alone and with all behind it, while policies are dropped, are
 * loaded again by another child, and are tried again. What the child has is then what it ought to have, and it is never
 * sent a part of anything. */
#include "check.h"

#include "base_fault.h"
#include "base/buf.c"
#include "sandbox/child_proc.c"
#include "sandbox/host.c"
#include "sandbox/host_child.c"
#include "sandbox/host_policies.c"
#include "sandbox/host_queue.c"

#include "sandbox_host_support.h"

#include <stdio.h>

enum { POLICIES = 8 };

static struct store *no_store(void *arg)
{
    (void)arg;
    return NULL;
}

static void configure(uint64_t instructions)
{
    host_configure(host,
        &(struct host_config){.instructions = instructions, .deadline_ms = 20000, .load_deadline_ms = 30000});
}

static int set_up(void **state)
{
    (void)state;
    log_setup(LOG_ERROR + 1, false);
    if (uv_loop_init(&loop) != 0 || host_new(&loop, no_store, NULL, &host) != 0) {
        return -1;
    }
    configure(0);
    return 0;
}

static int tear_down(void **state)
{
    fault_end();
    return host_tear_down(state);
}

static void load(const char *name, const char *source)
{
    struct got got = {0};
    OK(host_load(host, name, source, strlen(source), keep, &got));
    wait_for(&got);
    OK(got.status);
}

static int begin(struct got *got)
{
    struct host_call call = {.hook = "admit.change", .input = "{}", .n_input = 2};
    *got = (struct got){0};
    return host_call(host, &call, keep, got);
}

/* How many policies have been heard. */
static unsigned heard(void)
{
    struct got got;
    unsigned n = 0;
    OK(begin(&got));
    wait_for(&got);
    if (got.status != 0) {
        fail_msg("%s: %s", err_name(got.status), got.message);
    }
    for (const char *at = got.json; (at = strstr(at, "\"said\":")) != NULL; at++) {
        n++;
    }
    return n;
}

/* It would have, of a part of something. */
static void no_child_has_died(void)
{
    struct host_stats stats;
    host_stats(host, &stats);
    assert_int_equal(stats.died, 0);
}

/* The names are long, so that a frame with one needs room of its own. */
static const char *name_of(unsigned i)
{
    static char name[BOX_NAME_MAX + 1];
    snprintf(name, sizeof name, "%050u", i);
    return name;
}

static void load_all(void)
{
    for (unsigned i = 0; i < POLICIES; i++) {
        load(name_of(i), "return { hooks = { ['admit.change'] = function() return allow() end } }");
    }
}

/* Does @step once for each allocation that there is in it, which then fails. */
static void each_allocation(void (*step)(void), bool sticky)
{
    long n = 0;
    for (bool failed = true; failed; n++) {
        load_all();
        fault_after(n, sticky);
        step();
        failed = fault_end();
        host_close(host);
        uv_run(&loop, UV_RUN_DEFAULT);
        OK(host_new(&loop, no_store, NULL, &host));
        configure(0);
    }
    print_message("%ld allocations\n", n - 1);
    assert_true(n > 4);
}

static void drop_all_but_one(void)
{
    for (unsigned i = 1; i < POLICIES; i++) {
        host_drop(host, name_of(i));
    }
    uv_run(&loop, UV_RUN_NOWAIT);
    bool failed = fault_end();
    assert_int_equal(heard(), 1);
    no_child_has_died();
    fault_hit = failed;
}

static void are_dropped(void **state)
{
    (void)state;
    each_allocation(drop_all_but_one, false);
    each_allocation(drop_all_but_one, true);
}

/* What a child says and there is no room for ends it, too; then one of the policies may be tried a second later. */
static void have_another_child(void)
{
    uint64_t before = host->stats.started;
    struct got got;
    configure(0);
    if (begin(&got) == 0) {
        wait_for(&got);
    }
    bool failed = fault_end();
    while (host->n_broken > 0) {
        assert_true(uv_run(&loop, UV_RUN_ONCE) != 0);
    }
    assert_int_equal(heard(), POLICIES);
    assert_true(host->stats.started > before);
    fault_hit = failed;
}

static void are_loaded_again(void **state)
{
    (void)state;
    each_allocation(have_another_child, false);
}

static void all_that_waits_is_whole(void)
{
    const struct job *job;
    struct frame f;
    TAILQ_FOREACH (job, &host->waiting, link) {
        assert_int_equal(
            frame_parse(buf_data(&job->frame), job->frame.len, FRAME_TO_CHILD_MAX, &f), job->frame.len);
        assert_true(f.n > 0);
    }
}

static void try_one_again(void)
{
    struct policy *p = TAILQ_FIRST(&host->policies);
    host_break(host, p, "it was somebody else's fault");
    p->due_ms = 0;
    on_mend(&host->mend);
    all_that_waits_is_whole();
    uv_run(&loop, UV_RUN_NOWAIT);
    bool failed = fault_end();
    while (host->n_broken > 0) {
        p->due_ms = p->due_ms == UINT64_MAX ? p->due_ms : 0;
        host_set_mend(host);
        assert_true(uv_run(&loop, UV_RUN_ONCE) != 0);
    }
    assert_int_equal(heard(), POLICIES);
    no_child_has_died();
    fault_hit = failed;
}

static void are_tried_again(void **state)
{
    (void)state;
    each_allocation(try_one_again, false);
    each_allocation(try_one_again, true);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(are_dropped, set_up, tear_down),
        cmocka_unit_test_setup_teardown(are_loaded_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(are_tried_again, set_up, tear_down),
    };
    return child_asked(argc, argv) ? child_main() : cmocka_run_group_tests(tests, NULL, NULL);
}
