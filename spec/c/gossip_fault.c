/* The gossip core without memory: each allocation fails in turn, alone and with all behind it. Nothing leaks (ASan),
 * nothing is half done, and with memory it goes on. */
#include "gossip_support.h"

#include "base_fault.h"
#include "base/buf.c"
#include "gossip/swim.c"
#include "gossip/swim_claim.c"
#include "gossip/swim_suspect.c"
#include "gossip/swim_table.c"

static void script(struct world *w)
{
    struct said m;
    meet(w, 40);
    say(&m, WIRE_GOSSIP, 0, 10);
    for (uint32_t of = 5; of < 8; of++) {
        say_suspect(&m, of, 10, 9);
        say_suspect(&m, of, 10, 10);
    }
    say_suspect(&m, ME, 100, 9);
    deliver(w, 9, &m);
    say(&m, WIRE_GOSSIP, 0, 10);
    say_claim(&m, 5, 11, false, "again", false);
    say_claim(&m, 6, 11, true, "gone", false);
    say_dead(&m, 8, 10);
    deliver(w, 9, &m);
    live(w, 3000, UINT64_C(1) << 7);
}

static void each_allocation(bool sticky)
{
    for (long n = 0;; n++) {
        struct world w = {.now = 1000};
        struct swim_config c = world_config();
        w.sent = (calloc)(SENT_MAX, sizeof *w.sent);
        assert_non_null(w.sent);
        fault_after(n, sticky);
        int rv = swim_open(&c, &world_ops, &w, w.now, &w.s);
        if (rv != 0) {
            assert_int_equal(rv, SYM_ENOMEM);
            assert_true(fault_end());
            free(w.sent);
            continue;
        }
        script(&w);
        bool failed = fault_end();
        /* With memory: all are there, and right. */
        meet(&w, 40);
        live(&w, 20000, 0);
        for (uint32_t i = 9; i <= 40; i++) {
            assert_int_equal(state_of(&w, i), SWIM_ALIVE);
        }
        assert_int_equal(state_of(&w, ME), SWIM_ALIVE);
        world_close(&w);
        if (!failed) {
            break;
        }
    }
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

static void pieces(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    world_open(&w, &c, 40);
    for (long n = 0;; n++) {
        struct buf piece = {0};
        uint32_t cursor = 0;
        OK(buf_append(&piece, "before", 6));
        fault_after(n, true);
        int rv = swim_export(w.s, &cursor, SWIM_PIECE_MAX, &piece);
        bool failed = fault_end();
        assert_int_equal(rv, failed ? SYM_ENOMEM : 0);
        if (failed) {
            assert_int_equal(piece.len, 6);
            assert_int_equal(cursor, 0);
        }
        buf_free(&piece);
        if (!failed) {
            break;
        }
    }
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one),
        cmocka_unit_test(all_behind),
        cmocka_unit_test(pieces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
