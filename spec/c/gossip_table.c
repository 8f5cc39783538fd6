/* Members and their news: order of probing, slots, digest, and which news go first. Against a plain model, with
 * allocation failure. */
#include "check.h"

#include <string.h>

#include "base_fault.h"
#include "gossip/swim_claim.c"
#include "gossip/swim_table.c"
#include "gossip/swim_queue.h"

enum { MANY = 300 };

static struct claim *claim(uint32_t i, uint64_t incarnation)
{
    struct claim_view v = {
        .incarnation = incarnation, .addr = {.family = 4, .port = 1}, .sig = v.id.b, .sig_len = 1};
    memcpy(v.id.b, &i, sizeof i);
    struct claim *c = claim_new(&v);
    return c;
}

static struct swim_id id(uint32_t i)
{
    struct swim_id out = {{0}};
    memcpy(out.b, &i, sizeof i);
    return out;
}

static uint32_t add(struct table *t, uint32_t i, struct chance *c)
{
    bool full;
    struct claim *new = claim(i, 1);
    uint32_t slot = table_add(t, new, c, &full);
    assert_int_not_equal(slot, NO_SLOT);
    return slot;
}

static void everybody_once_a_round(void **state)
{
    (void)state;
    struct table t;
    struct chance c = {1};
    OK(table_init(&t, 1000, 42, claim(0, 1)));
    assert_int_equal(table_probe(&t, &c), NO_SLOT);
    for (uint32_t i = 1; i <= 50; i++) {
        add(&t, i, &c);
    }
    uint32_t orders[3][51];
    for (unsigned round = 0; round < 3; round++) {
        bool seen[60] = {false};
        t.cursor = round == 0 ? t.n_live : t.cursor;
        for (unsigned i = 0; i < 50; i++) {
            uint32_t slot = table_probe(&t, &c);
            assert_int_not_equal(slot, SELF);
            assert_false(seen[slot]);
            seen[slot] = true;
            orders[round][i] = slot;
        }
    }
    assert_memory_not_equal(orders[0], orders[1], sizeof orders[0]);
    /* Whoever goes in the middle of a round costs nobody the turn. */
    bool seen[60] = {false};
    for (unsigned i = 0; i < 25; i++) {
        seen[table_probe(&t, &c)] = true;
    }
    uint32_t done = t.seq[3], waiting = t.seq[40];
    table_gone(&t, done);
    table_gone(&t, waiting);
    for (unsigned i = 0; i < 24; i++) {
        uint32_t slot = table_probe(&t, &c);
        assert_int_not_equal(slot, waiting);
        assert_false(seen[slot]);
        seen[slot] = true;
    }
    table_free(&t);
}

/* Adds, removes, lets go and come back at random; the same is done to plain arrays. */
static void model(void **state)
{
    (void)state;
    struct table t;
    struct chance c = {7};
    uint64_t incarnations[MANY] = {0};
    bool there[MANY] = {false}, live[MANY] = {false};
    OK(table_init(&t, MANY + 1, 3, claim(0, 1)));
    for (unsigned step = 0; step < 20000; step++) {
        uint32_t i = 1 + chance_below(&c, MANY - 1);
        struct swim_id who = id(i);
        uint32_t slot = table_find(&t, &who);
        assert_int_equal(slot != NO_SLOT, there[i]);
        switch (chance_below(&c, 5)) {
        case 0:
        case 1:
            if (slot == NO_SLOT) {
                add(&t, i, &c);
                there[i] = live[i] = true;
                incarnations[i] = 1;
            } else {
                table_replace(&t, slot, claim(i, ++incarnations[i]));
            }
            break;
        case 2:
            if (slot != NO_SLOT) {
                table_gone(&t, slot);
                live[i] = false;
            }
            break;
        case 3:
            if (slot != NO_SLOT) {
                table_live(&t, slot, &c);
                live[i] = true;
            }
            break;
        default:
            if (slot != NO_SLOT) {
                table_remove(&t, slot);
                there[i] = live[i] = false;
            }
        }
        if (step % 7 == 0) {
            table_probe(&t, &c);
        }
    }
    uint32_t n = 0, n_live = 0;
    struct table fresh;
    OK(table_init(&fresh, MANY + 1, 99, claim(0, 1)));
    for (uint32_t i = 1; i < MANY; i++) {
        struct swim_id who = id(i);
        uint32_t slot = table_find(&t, &who);
        n += there[i];
        n_live += live[i];
        if (there[i]) {
            assert_int_equal(t.m[slot].claim->incarnation, incarnations[i]);
            assert_int_equal(t.seq[t.m[slot].pos], slot);
            assert_int_equal(t.m[slot].pos < t.n_live, live[i]);
        }
        if (live[i]) {
            bool full;
            assert_int_not_equal(table_add(&fresh, claim(i, incarnations[i]), &c, &full), NO_SLOT);
        }
    }
    assert_int_equal(t.n_seq, n);
    assert_int_equal(t.n_live, n_live);
    assert_true(t.n <= n + MANY);
    /* Who knows the same has the same digest, however it came about. */
    assert_true(t.digest == fresh.digest);
    table_replace(&fresh, SELF, claim(0, 2));
    assert_true(t.digest != fresh.digest);
    table_free(&t);
    table_free(&fresh);
}

static void picks(void **state)
{
    (void)state;
    struct table t;
    struct chance c = {9};
    uint32_t out[16];
    OK(table_init(&t, 100, 1, claim(0, 1)));
    assert_int_equal(table_pick(&t, &c, NO_SLOT, 3, out), 0);
    uint32_t first = add(&t, 1, &c);
    assert_int_equal(table_pick(&t, &c, first, 3, out), 0);
    assert_int_equal(table_pick(&t, &c, NO_SLOT, 3, out), 1);
    for (uint32_t i = 2; i < 40; i++) {
        add(&t, i, &c);
        for (unsigned k = 1; k <= 8; k++) {
            unsigned n = table_pick(&t, &c, first, k, out);
            assert_int_equal(n, k < i - 1 ? k : i - 1);
            for (unsigned a = 0; a < n; a++) {
                assert_int_not_equal(out[a], first);
                assert_false(among(out, a, out[a]));
            }
        }
    }
    table_free(&t);
}

static void bounded(void **state)
{
    (void)state;
    struct table t;
    struct chance c = {9};
    bool full;
    OK(table_init(&t, 3, 1, claim(0, 1)));
    add(&t, 1, &c);
    uint32_t slot = add(&t, 2, &c);
    struct claim *one = claim(3, 1);
    assert_int_equal(table_add(&t, one, &c, &full), NO_SLOT);
    assert_true(full);
    table_remove(&t, slot);
    assert_int_not_equal(table_add(&t, one, &c, &full), NO_SLOT);
    assert_false(full);
    table_free(&t);
}

static void without_memory(void **state)
{
    (void)state;
    for (long n = 0;; n++) {
        struct table t;
        struct chance c = {9};
        bool full;
        struct claim *self = claim(0, 1);
        fault_after(n, true);
        int rv = table_init(&t, 1000, 1, self);
        if (rv != 0) {
            assert_true(fault_end());
            assert_int_equal(rv, SYM_ENOMEM);
            claim_free(self);
            continue;
        }
        uint32_t added = 0;
        for (uint32_t i = 1; i <= 200; i++) {
            struct claim *c1 = claim(i, 1);
            if (c1 == NULL) {
                continue;
            }
            if (table_add(&t, c1, &c, &full) == NO_SLOT) {
                assert_false(full);
                claim_free(c1);
            } else {
                added++;
            }
        }
        bool failed = fault_end();
        assert_int_equal(t.n_live, added);
        for (uint32_t i = 1; i <= added; i++) { /* those that are there are found, and more can come */
            struct swim_id who = id(i);
            assert_int_not_equal(table_find(&t, &who), NO_SLOT);
        }
        add(&t, 500, &c);
        table_free(&t);
        if (!failed) {
            break;
        }
    }
}

static uint32_t first(const struct queue *q)
{
    for (unsigned i = 0; i < QUEUE_SENDS_MAX; i++) {
        if (q->by_sent[i].head != NO_SLOT) {
            return q->by_sent[i].head;
        }
    }
    return NO_SLOT;
}

static void least_often_first(void **state)
{
    (void)state;
    struct table t;
    struct queue q;
    struct chance c = {1};
    uint32_t slots[4];
    OK(table_init(&t, 100, 1, claim(0, 1)));
    queue_init(&q);
    for (uint32_t i = 0; i < 4; i++) {
        slots[i] = add(&t, i + 1, &c);
    }
    queue_news(&q, &t, slots[0], 0);
    queue_news(&q, &t, slots[1], 0);
    queue_news(&q, &t, slots[2], 2);
    assert_int_equal(first(&q), slots[1]); /* the newest */
    queue_sent(&q, &t, slots[1], 5);
    assert_int_equal(first(&q), slots[0]);
    queue_sent(&q, &t, slots[0], 5);
    assert_int_equal(first(&q), slots[1]); /* in turn */
    queue_sent(&q, &t, slots[1], 5);
    queue_sent(&q, &t, slots[0], 5);
    assert_int_equal(first(&q), slots[2]);
    queue_news(&q, &t, slots[2], 0); /* again: from the beginning, and once */
    assert_int_equal(q.n, 3);
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(t.m[slots[2]].sent, i);
        queue_sent(&q, &t, slots[2], 5);
    }
    assert_int_equal(t.m[slots[2]].sent, NOT_QUEUED);
    assert_int_equal(q.n, 2);
    queue_drop(&q, &t, slots[0]);
    queue_drop(&q, &t, slots[0]);
    assert_int_equal(first(&q), slots[1]);
    queue_sent(&q, &t, slots[1], 3);
    assert_int_equal(q.n, 0);
    assert_int_equal(first(&q), NO_SLOT);
    /* Whatever happens every entry stays linked: drain a large random one. */
    for (unsigned step = 0; step < 5000; step++) {
        uint32_t slot = slots[chance_below(&c, 4)];
        if (chance_below(&c, 3) == 0) {
            queue_news(&q, &t, slot, chance_below(&c, 4));
        } else if (t.m[slot].sent != NOT_QUEUED) {
            queue_sent(&q, &t, slot, 6);
        }
        uint32_t n = 0;
        for (unsigned i = 0; i < QUEUE_SENDS_MAX; i++) {
            for (uint32_t at = q.by_sent[i].head, last = NO_SLOT; at != NO_SLOT; at = t.m[at].q_next, n++) {
                assert_int_equal(t.m[at].sent, i);
                assert_int_equal(t.m[at].q_prev, last);
                last = at;
                assert_true(t.m[at].q_next != NO_SLOT || q.by_sent[i].tail == at);
            }
        }
        assert_int_equal(n, q.n);
    }
    table_free(&t);
}

static void limits(void **state)
{
    (void)state;
    assert_int_equal(queue_limit(3, 0), 1);
    assert_int_equal(queue_limit(3, 9), 7);    /* 3 ln 10 = 6.9 */
    assert_int_equal(queue_limit(3, 999), 21); /* 20.7 */
    assert_int_equal(queue_limit(4, 1000000), 56);
    assert_true(queue_limit(100, 1000000) <= QUEUE_SENDS_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everybody_once_a_round),
        cmocka_unit_test(model),
        cmocka_unit_test(picks),
        cmocka_unit_test(bounded),
        cmocka_unit_test(without_memory),
        cmocka_unit_test(least_often_first),
        cmocka_unit_test(limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
