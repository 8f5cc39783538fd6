/* What policies read: the host serves it from the store, within bounds, and nothing but what is theirs. */
#include "store_support.h"

#include "base/log.h"
#include "sandbox/child.h"
#include "sandbox/host.h"

static uv_loop_t loop;
static struct host *host;
static struct store *store;
static bool started;

static struct store *the_store(void *arg)
{
    (void)arg;
    return started ? store : NULL;
}

static int set_up(void **state)
{
    log_setup(LOG_ERROR + 1, false);
    if (make_folder(state) != 0 || uv_loop_init(&loop) != 0 || host_new(&loop, the_store, NULL, &host) != 0) {
        return -1;
    }
    store = open_store(&(struct store_config){.dir = in_folder(state, "state"), .quota = 64 << 20});
    started = true;
    return 0;
}

static int tear_down(void **state)
{
    host_close(host);
    uv_run(&loop, UV_RUN_DEFAULT);
    store_close(store);
    return uv_loop_close(&loop) != 0 ? -1 : remove_folder(state);
}

static char said[4096];
static bool answered;

static void keep(void *arg, const struct host_answer *answer)
{
    (void)arg;
    answered = true;
    snprintf(said, sizeof said, "%.*s", answer->status != 0 ? (int)strlen(err_msg()) : (int)answer->n,
        answer->status != 0 ? err_msg() : answer->json);
}

static void wait_for_it(void)
{
    while (!answered) {
        assert_true(uv_run(&loop, UV_RUN_ONCE) != 0);
    }
}

/* What a policy with this body says, or the message of its failure. */
static const char *says(const char *body)
{
    char source[1024];
    struct host_call call = {.hook = "admit.change", .input = "{}", .n_input = 2};
    snprintf(source, sizeof source, "return { hooks = { [\"admit.change\"] = function(c) %s end } }", body);
    answered = false;
    OK(host_load(host, "p", source, strlen(source), keep, NULL));
    wait_for_it();
    answered = false;
    OK(host_call(host, &call, keep, NULL));
    wait_for_it();
    return said;
}

#define SAYS(body, words)                                                                                    \
    do {                                                                                                     \
        if (strstr(says(body), words) == NULL) {                                                             \
            fail_msg("%s: %s", body, said);                                                                  \
        }                                                                                                    \
    } while (0)

static void keys_and_prefixes(void **state)
{
    (void)state;
    put(store, "/kv/a", "1");
    put(store, "/kv/b", "2");
    put(store, "/res/disk/x", "{\"size\":[1,2,3]}");
    put(store, "/node/bad", "no JSON");
    put(store, "/secret/ca", "s");
    uint64_t a = 1, b = 2, x = 3;
    char expected[256];
    SAYS("return refuse(get('/kv/a') .. get('/res/disk/x').size[3] .. count('/kv/') .. #list('/res/'))",
        "\"refuse\":\"1321\"");
    snprintf(expected, sizeof expected,
        "\"reads\":[{\"key\":\"/kv/a\",\"revision\":%d},{\"key\":\"/res/disk/x\",\"revision\":%d},"
        "{\"prefix\":\"/kv/\",\"revision\":%d,\"count\":2},{\"prefix\":\"/res/"
        "\",\"revision\":%d,\"count\":1}]}",
        (int)a, (int)x, (int)b, (int)x);
    assert_non_null(strstr(said, expected));
    SAYS("return refuse(tostring(get('/kv/none')))", "\"reads\":[{\"key\":\"/kv/none\",\"revision\":0}]");
    SAYS("return get('/secret/ca')", "not '/secret/ca'");
    SAYS("return get('/node/bad')", "not JSON");
    SAYS("local n = 0 for _, kv in ipairs(list('/kv/', 1)) do n = n + 1 end return refuse(n .. '')",
        "\"reads\":[{\"prefix\":\"/kv/\",\"revision\":2,\"count\":2}]");
    started = false;
    SAYS("return get('/kv/a')", "the node is not started");
}

static void how_much(void **state)
{
    (void)state;
    static char big[300 << 10];
    struct packer p = {.n = 0};
    struct txn t = {.n_ops = 100};
    char keys[100][32];
    memset(big, 'x', sizeof big - 1);
    for (int i = 0; i < 4; i++) {
        char key[32];
        snprintf(key, sizeof key, "/kv/big/%d", i);
        put(store, key, big);
    }
    SAYS("return refuse(#get('/kv/big/0') .. '')", "\"refuse\":\"307199\"");
    SAYS("return refuse(#list('/kv/big/', 3) .. '')", "\"refuse\":\"3\"");
    SAYS("return list('/kv/big/')", "too large to be read at once");
    SAYS("return refuse(count('/kv/big/') .. '')", "\"refuse\":\"4\"");
    for (int n = 0; n <= 40; n++) {
        for (int i = 0; i < 100; i++) {
            snprintf(keys[i], sizeof keys[i], "/kv/many/%04d", n * 100 + i);
            t.ops[i] = op_put(keys[i], "v");
        }
        packer_begin(&p);
        packer_add(&p, &t);
        packer_end(&p);
        OK(store_apply(store, store_applied(store) + 1, buf_data(&p.pack), p.pack.len, NULL, NULL));
        packer_free(&p);
    }
    SAYS("return count('/kv/many/')", "more than 4000 keys below that prefix");
    SAYS("return refuse(#list('/kv/many/1') .. ' ' .. count('/kv/many/1'))", "\"refuse\":\"1000 1000\"");
    SAYS("return refuse(#list('/kv/many/2', 7) .. '')", "\"refuse\":\"7\"");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(keys_and_prefixes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(how_much, set_up, tear_down),
    };
    return child_asked(argc, argv) ? child_main() : cmocka_run_group_tests(tests, NULL, NULL);
}
