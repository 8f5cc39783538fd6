/* What the tests of the policies' host share: one host on a loop, and what a call was answered with. Behind host.h. */
#ifndef SYM_SPEC_SANDBOX_HOST_SUPPORT_H
#define SYM_SPEC_SANDBOX_HOST_SUPPORT_H

#include <stdio.h>

static uv_loop_t loop;
static struct host *host;

static int host_tear_down(void **state)
{
    (void)state;
    host_close(host);
    host = NULL;
    uv_run(&loop, UV_RUN_DEFAULT);
    return uv_loop_close(&loop);
}

/* What one call was answered with. */
struct got {
    bool there;
    int status;
    char policy[80], message[600], json[8000];
};

static void keep(void *arg, const struct host_answer *answer)
{
    struct got *got = arg;
    assert_false(got->there);
    got->there = true;
    got->status = answer->status;
    snprintf(got->policy, sizeof got->policy, "%s", answer->policy);
    snprintf(got->message, sizeof got->message, "%s", answer->status != 0 ? err_msg() : "");
    snprintf(got->json, sizeof got->json, "%.*s", (int)answer->n, answer->json);
}

static void wait_for(const struct got *got)
{
    while (!got->there) {
        assert_true(uv_run(&loop, UV_RUN_ONCE) != 0);
    }
}

#endif
