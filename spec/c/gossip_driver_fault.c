/* The driver without memory: each allocation fails in turn, alone and with all behind it. Nothing leaks (ASan), nothing
 * is half done, and with memory the nodes find each other. */
#include "check.h"

#include "base_fault.h"
#include "base/buf.c"
#include "gossip/gossip.c"
#include "gossip/seal.c"
#include "gossip/swim_claim.c"
#include "gossip/swim_suspect.c"
#include "gossip/swim_table.c"

#include "gossip_nodes.h"

static int open_both(void)
{
    int rv = node_try(&loop, 0, "127.0.0.1", "127.0.0.1");
    if (rv != 0) {
        return rv;
    }
    rv = node_try(&loop, 1, "127.0.0.1", "127.0.0.1");
    if (rv != 0) {
        gossip_close(nodes[0].g, node_closed, &nodes[0]);
    }
    return rv;
}

/* All that a node does; that something of it may be missing is no failure. */
static void script(void)
{
    struct swim_member m;
    uint32_t cursor = 0;
    struct buf piece = {0};
    for (unsigned i = 0; i < 2; i++) {
        int rv = gossip_peer(nodes[i].g, &nodes[1 - i].id, nodes[1 - i].spki, SPKI_LEN);
        assert_true(rv == 0 || rv == SYM_ENOMEM);
    }
    if (swim_export(gossip_swim(nodes[0].g), &cursor, 1024, &piece) == 0) {
        (void)gossip_merge(nodes[1].g, &nodes[0].id, buf_data(&piece), piece.len);
    }
    buf_free(&piece);
    gossip_self(nodes[0].g, &m);
    struct swim_addr addr = m.addr;
    int rv = gossip_update(nodes[0].g, &addr, "new", 3);
    assert_true(rv == 0 || rv == SYM_ENOMEM);
    join(1, 0);
    for (unsigned turns = 0; turns < 10; turns++) {
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    gossip_forget(nodes[1].g, &nodes[0].id);
    uv_run(&loop, UV_RUN_NOWAIT);
}

static void each_allocation(bool sticky)
{
    long n = 0;
    for (bool failed = true; failed; n++) {
        fault_after(n, sticky);
        int rv = open_both();
        if (rv != 0) {
            assert_true(fault_end());
            assert_int_equal(rv, SYM_ENOMEM);
            uv_run(&loop, UV_RUN_DEFAULT);
            continue;
        }
        script();
        failed = fault_end();
        node_knows(0, 1);
        node_knows(1, 0);
        run_with(all_met(2), join(1, 0));
        uint64_t lost = stats_of(0).events_lost;
        run_until(lost == 0 || nodes[0].lost > 0);
        nodes_close(2);
    }
    print_message("%ld allocations\n", n - 1);
    assert_true(n > 15);
}

static void one(void **state)
{
    (void)state;
    each_allocation(false);
}

static void all_behind(void **state)
{
    (void)state;
    each_allocation(true);
}

static int begin_all(void **state)
{
    (void)state;
    nodes_begin();
    return 0;
}

static int end_all(void **state)
{
    (void)state;
    nodes_end();
    return 0;
}

#define TEST(name) cmocka_unit_test_teardown(name, nodes_close_left)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(one),
        TEST(all_behind),
    };
    return cmocka_run_group_tests(tests, begin_all, end_all);
}
