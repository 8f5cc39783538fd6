/* The gossip protocol core, message by message. What many nodes make of it together is gossip_sim.c's. */
#include "gossip_support.h"

#include <math.h>

#define ALL_SILENT (~UINT64_C(0))

/* ---- probes ---- */

static void healthy(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    world_open(&w, &c, 5);
    assert_int_equal(swim_count(w.s), 5);
    live(&w, 20 * PERIOD, 0);
    const struct swim_stats *st = swim_stats(w.s);
    assert_in_range(st->probes, 19, 21);
    assert_int_equal(st->probes_indirect, 0);
    assert_int_equal(swim_health(w.s), 0);
    for (uint32_t i = 2; i <= 5; i++) {
        assert_int_equal(state_of(&w, i), SWIM_ALIVE);
        assert_int_equal(count_events(&w, SWIM_JOINED, i), 1);
    }
    assert_int_equal(w.n_events, 4);
    world_close(&w);
}

/* Runs until the next probe has been sent. */
static struct sent *next_ping(struct world *w)
{
    uint64_t probes = swim_stats(w->s)->probes;
    while (swim_stats(w->s)->probes == probes) {
        w->n_sent = 0;
        w->now = swim_next(w->s);
        swim_tick(w->s, w->now);
    }
    struct sent *ping = find_sent(w, 0, WIRE_PING, 0);
    assert_non_null(ping);
    return ping;
}

static void tick_until(struct world *w, uint64_t at)
{
    while (swim_next(w->s) <= at) {
        w->now = swim_next(w->s);
        swim_tick(w->s, w->now);
    }
    w->now = at;
}

/* Silent @ping, then what the helpers say. Returns the state of the target at the end of the period. */
static enum swim_state indirectly(struct world *w, enum wire_type type, unsigned answers, uint32_t from_other)
{
    struct sent *ping = next_ping(w);
    uint32_t target = ping->to, seq = ping->head.seq, helpers[3];
    uint64_t began = w->now;
    unsigned n = 0;
    tick_until(w, began + TIMEOUT);
    for (unsigned i = 0; i < w->n_sent; i++) {
        if (w->sent[i].head.type == WIRE_PING_REQ) {
            assert_int_equal(index_of(&w->sent[i].head.target), target);
            assert_int_not_equal(w->sent[i].to, target);
            assert_int_equal(w->sent[i].head.seq, seq);
            assert_in_range(w->sent[i].head.wait_ms, 50, PERIOD - TIMEOUT);
            helpers[n++] = w->sent[i].to;
        }
    }
    assert_int_equal(n, 3);
    for (unsigned i = 0; i < answers; i++) {
        struct said m;
        say(&m, type, seq, 10);
        deliver(w, from_other != 0 ? from_other : helpers[i], &m);
    }
    tick_until(w, began + PERIOD);
    return state_of(w, target);
}

static void through_helpers(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    world_open(&w, &c, 6);
    assert_int_equal(indirectly(&w, WIRE_ACK, 1, 0), SWIM_ALIVE);
    assert_int_equal(swim_health(w.s), 0);
    world_close(&w);
    world_open(&w, &c, 6);
    /* All helpers are there, so the target is not: our own health is fine. */
    assert_int_equal(indirectly(&w, WIRE_NACK, 3, 0), SWIM_SUSPECT);
    assert_int_equal(swim_health(w.s), 0);
    world_close(&w);

    world_open(&w, &c, 6);
    assert_int_equal(indirectly(&w, WIRE_NACK, 1, 0), SWIM_SUSPECT);
    assert_int_equal(swim_health(w.s), 2);
    world_close(&w);
    world_open(&w, &c, 6);
    assert_int_equal(indirectly(&w, WIRE_ACK, 3, 77), SWIM_SUSPECT); /* nobody had asked that one */
    assert_int_equal(swim_health(w.s), 3);
    world_close(&w);
}

/* When the next target was pinged, after the first of them, within a period in which it is silent. */
static unsigned pings_of_one(struct world *w, uint64_t after[8])
{
    struct sent *ping = next_ping(w);
    uint32_t target = ping->to, seq = ping->head.seq;
    uint64_t began = w->now;
    unsigned n = 0;
    w->n_sent = 0;
    tick_until(w, began + PERIOD - 1);
    for (unsigned i = 0; i < w->n_sent; i++) {
        if (w->sent[i].head.type == WIRE_PING && w->sent[i].to == target && w->sent[i].head.seq == seq) {
            assert_true(n < 8);
            after[n++] = w->sent[i].at - began;
        }
    }
    assert_int_equal(state_of(w, target), SWIM_ALIVE);
    return n;
}

static void pinged_again(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    uint64_t after[8];
    world_open(&w, &c, 6);
    assert_int_equal(pings_of_one(&w, after), 3);
    assert_int_equal(after[0], TIMEOUT);
    assert_int_equal(after[1], TIMEOUT + 60);
    assert_int_equal(after[2], TIMEOUT + 120);
    /* The answer to the last is as good as that to the first. */
    struct said m;
    struct sent *last = &w.sent[w.n_sent - 1];
    assert_int_equal(last->head.type, WIRE_PING);
    uint32_t target = last->to;
    say(&m, WIRE_ACK, last->head.seq, 10);
    deliver(&w, target, &m);
    tick_until(&w, w.now + 1);
    assert_int_equal(state_of(&w, target), SWIM_ALIVE);
    assert_int_equal(swim_stats(w.s)->probes_failed, 0);
    world_close(&w);
    /* SWIM alone: one direct ping more, with the helpers'. */
    c.without_lifeguard = true;
    world_open(&w, &c, 6);
    assert_int_equal(pings_of_one(&w, after), 1);
    world_close(&w);
}

/* With a thousand pieces waiting, further claims are sent half as often. */
static void fewer_sends_of_many(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    unsigned sent[1501] = {0};
    world_open(&w, &c, 1500);
    for (uint64_t news = 1, before = 0; news > before;) {
        before = swim_stats(w.s)->news_sent;
        for (unsigned i = 0; i < 200; i++) {
            w.n_sent = w.n_events = 0;
            live(&w, 10, 0);
            for (unsigned k = 0; k < w.n_sent; k++) {
                struct wire_record r;
                for (struct rd records = w.sent[k].records; wire_get(&records, &r);) {
                    sent[index_of(&r.id)] += r.kind == WIRE_CLAIM;
                }
            }
        }
        news = swim_stats(w.s)->news_sent;
    }
    /* 22 times at the most; those with a third, and with two thirds behind them from the start. */
    assert_int_equal(sent[900], 15);
    assert_int_equal(sent[1400], 8);
    world_close(&w);
}

static void raise_to(struct world *w, uint32_t i, uint64_t incarnation, bool changed)
{
    struct said m;
    say(&m, WIRE_GOSSIP, 0, incarnation);
    say_claim(&m, i, incarnation, false, "meta", changed);
    deliver(w, i, &m);
}

static uint64_t incarnation_of(const struct world *w, uint32_t i)
{
    struct swim_member m;
    struct swim_id id = id_of(i);
    assert_true(swim_get(w->s, &id, &m));
    return m.incarnation;
}

/* A member that raises its incarnation all the time has no more looked at than ten and five a second. */
static void raises_are_limited(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    world_open(&w, &c, 4);
    w.now += 5000;
    unsigned before = w.verifies;
    for (uint64_t i = 11; i <= 110; i++) {
        raise_to(&w, 3, i, false);
    }
    assert_int_equal(w.verifies - before, 10);
    assert_int_equal(swim_stats(w.s)->claims_deferred, 90);
    assert_int_equal(incarnation_of(&w, 3), 20);
    /* It is the newest that counts when its time has come; then the next has to wait again. */
    w.now += 199;
    raise_to(&w, 3, 110, false);
    assert_int_equal(incarnation_of(&w, 3), 20);
    w.now += 1;
    raise_to(&w, 3, 110, false);
    assert_int_equal(incarnation_of(&w, 3), 110);
    raise_to(&w, 3, 111, false);
    assert_int_equal(incarnation_of(&w, 3), 110);
    /* Nobody else pays for that, and after two seconds of rest it is as it was. */
    raise_to(&w, 4, 11, false);
    assert_int_equal(incarnation_of(&w, 4), 11);
    w.now += 2000;
    before = w.verifies;
    for (uint64_t i = 112; i <= 140; i++) {
        raise_to(&w, 3, i, false);
    }
    assert_int_equal(w.verifies - before, 10);
    /* Over a long time: five a second. */
    uint64_t raised = 200;
    before = w.verifies;
    for (unsigned ms = 0; ms < 60000; ms += 20) {
        w.now += 20;
        raise_to(&w, 3, raised++, false);
    }
    assert_in_range(w.verifies - before, 299, 301);
    world_close(&w);
}

/* What others forge in its name costs it nothing, and the word against an accusation is taken in time, even where
 * another accuses it as fast as he can. */
static void honest_raises_never_wait(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    world_open(&w, &c, 12);
    w.now += 5000;
    for (uint64_t i = 11; i <= 60; i++) {
        raise_to(&w, 3, i, true);
    }
    assert_int_equal(swim_stats(w.s)->bad_signatures, 50);
    assert_int_equal(swim_stats(w.s)->claims_deferred, 0);
    raise_to(&w, 3, 11, false);
    assert_int_equal(incarnation_of(&w, 3), 11);
    uint64_t mine = 11, told = 0;
    for (unsigned ms = 0; ms < 30000; ms += 10) {
        w.now += 10;
        struct said m;
        say(&m, WIRE_GOSSIP, 0, 10);
        say_suspect(&m, 3, mine, 9);
        deliver(&w, 9, &m);
        if (w.now >= told + 200) {
            told = w.now;
            raise_to(&w, 3, ++mine, false);
            assert_int_equal(incarnation_of(&w, 3), mine);
        }
        if (swim_next(w.s) <= w.now) {
            swim_tick(w.s, w.now);
        }
        w.n_sent = 0;
        w.n_events = 0;
        assert_int_not_equal(state_of(&w, 3), SWIM_DEAD);
    }
    assert_int_equal(swim_stats(w.s)->claims_deferred, 0);
    world_close(&w);
}

static void slower_when_ill(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    c.health_max = 4;
    world_open(&w, &c, 6);
    live(&w, 20 * PERIOD, ALL_SILENT);
    assert_int_equal(swim_health(w.s), 4);
    uint64_t probes = swim_stats(w.s)->probes;
    assert_in_range(probes, 3, 12);
    next_ping(&w);
    uint64_t began = w.now;
    next_ping(&w);
    assert_int_equal(w.now - began, 5 * PERIOD);
    world_close(&w);
}

static void reliable_channel(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    world_open(&w, &c, 4);
    w.can_probe = true;
    struct sent *ping = next_ping(&w);
    uint32_t target = ping->to;
    uint64_t began = w.now;
    tick_until(&w, began + TIMEOUT);
    assert_int_equal(w.probes, 1);
    swim_probe_done(w.s, w.now, w.ticket + 1, true);
    swim_probe_done(w.s, w.now, w.ticket, false);
    swim_probe_done(w.s, w.now, w.ticket, true);
    tick_until(&w, began + PERIOD);
    assert_int_equal(state_of(&w, target), SWIM_ALIVE);
    assert_int_equal(swim_stats(w.s)->probes_failed, 0);
    world_close(&w);
}

static void helping(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    struct said m;
    struct wire_head ask = {
        .type = WIRE_PING_REQ, .seq = 900, .incarnation = 10, .target = id_of(3), .wait_ms = 100};
    world_open(&w, &c, 4);
    for (unsigned i = 0; i < 2; i++) {
        m = (struct said){0};
        m.w = wr_init(&m.b);
        wire_put_head(&m.w, &ask);
        w.n_sent = 0;
        deliver(&w, 2, &m);
        struct sent *ping = find_sent(&w, 0, WIRE_PING, 3);
        assert_non_null(ping);
        if (i == 0) { /* it answers: passed on; somebody else's answer is not */
            say(&m, WIRE_ACK, ping->head.seq, 10);
            deliver(&w, 4, &m);
            assert_null(find_sent(&w, 0, WIRE_ACK, 2));
            say(&m, WIRE_ACK, ping->head.seq, 10);
            deliver(&w, 3, &m);
            struct sent *ack = find_sent(&w, 0, WIRE_ACK, 2);
            assert_non_null(ack);
            assert_int_equal(ack->head.seq, 900);
        } else { /* it does not: said, in time, and once */
            w.n_sent = 0;
            tick_until(&w, w.now + 99);
            assert_null(find_sent(&w, 0, WIRE_NACK, 2));
            tick_until(&w, w.now + 1);
            assert_non_null(find_sent(&w, 0, WIRE_NACK, 2));
            w.n_sent = 0;
            tick_until(&w, w.now + 300);
            assert_null(find_sent(&w, 0, WIRE_NACK, 2));
        }
        ask.seq = i == 0 ? 901 : ask.seq;
    }
    /* Of one that is not known: a nack at once, and no ping to anybody. */
    m = (struct said){0};
    m.w = wr_init(&m.b);
    ask.target = id_of(99);
    wire_put_head(&m.w, &ask);
    w.n_sent = 0;
    deliver(&w, 2, &m);
    assert_non_null(find_sent(&w, 0, WIRE_NACK, 2));
    assert_null(find_sent(&w, 0, WIRE_PING, 0));
    /* One may ask for two at the same time. */
    ask.target = id_of(3);
    for (unsigned i = 0; i < 10; i++) {
        m = (struct said){0};
        m.w = wr_init(&m.b);
        wire_put_head(&m.w, &ask);
        deliver(&w, 4, &m);
    }
    assert_int_equal(swim_stats(w.s)->relays_refused, 8);
    world_close(&w);
}

/* ---- suspicions ---- */

static void suspicion_times(void **state)
{
    (void)state;
    assert_int_equal(suspicion_ms(1000, 6000, 0, 3), 6000);
    assert_int_equal(suspicion_ms(1000, 6000, 1, 3), 3500);
    assert_in_range(suspicion_ms(1000, 6000, 2, 3), 2030, 2050);
    assert_int_equal(suspicion_ms(1000, 6000, 3, 3), 1000);
    assert_int_equal(suspicion_ms(1000, 6000, 9, 3), 1000);
    assert_int_equal(suspicion_ms(1000, 6000, 0, 0), 1000);
    assert_int_equal(suspicion_ms(1000, 1000, 0, 3), 1000);
}

static void accuse(struct world *w, uint32_t of, uint64_t incarnation, uint32_t by)
{
    struct said m;
    say(&m, WIRE_GOSSIP, 0, 10);
    say_suspect(&m, of, incarnation, by);
    deliver(w, 9, &m);
}

static void dead(struct world *w, uint32_t of, uint64_t incarnation, uint32_t by)
{
    struct said m;
    say(&m, WIRE_GOSSIP, 0, 10);
    say_dead(&m, of, incarnation);
    deliver(w, by, &m);
}

/* How long until 5, whom @n others accuse, is dead. */
static uint64_t death_after(unsigned n)
{
    struct world w;
    struct swim_config c = world_config();
    world_open(&w, &c, 10);
    live(&w, 3000, 0);
    uint64_t began = w.now;
    for (uint32_t by = 6; by < 6 + n; by++) {
        accuse(&w, 5, 10, by);
    }
    while (state_of(&w, 5) != SWIM_DEAD) {
        live(&w, 10, 0); /* answers, but does not refute */
        assert_true(w.now - began < 60000);
    }
    uint64_t took = w.now - began;
    assert_int_equal(count_events(&w, SWIM_SUSPECTED, 5), 1);
    assert_int_equal(count_events(&w, SWIM_DIED, 5), 1);
    world_close(&w);
    return took;
}

static void dogpile(void **state)
{
    (void)state;
    /* alpha 4 and beta 6 periods of 300 ms: 1,200 to 7,200 ms */
    assert_in_range(death_after(1), 7200, 7220);
    assert_in_range(death_after(2), 4200, 4220);
    assert_in_range(death_after(4), 1200, 1220);
}

static void who_counts(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    world_open(&w, &c, 10);
    accuse(&w, 5, 10, 77); /* nobody's */
    accuse(&w, 5, 10, 5);  /* its own */
    accuse(&w, 5, 10, ME); /* ours, which we did not raise */
    accuse(&w, 5, 9, 6);   /* of an earlier life */
    assert_int_equal(state_of(&w, 5), SWIM_ALIVE);
    for (unsigned i = 0; i < 20; i++) {
        accuse(&w, 5, 10, 6);
    }
    assert_int_equal(state_of(&w, 5), SWIM_SUSPECT);
    uint64_t began = w.now;
    live(&w, 5000, 0);
    assert_int_equal(state_of(&w, 5), SWIM_SUSPECT); /* one accuser, however often: the longest time */
    live(&w, 2300, 0);
    assert_int_equal(state_of(&w, 5), SWIM_DEAD);
    assert_true(w.now - began >= 7200);
    world_close(&w);
}

static void claim(struct world *w, uint32_t i, uint64_t incarnation, const char *meta)
{
    struct said m;
    say(&m, WIRE_GOSSIP, 0, 10);
    say_claim(&m, i, incarnation, false, meta, false);
    deliver(w, 9, &m);
}

/* Those that are told of are those that count: the first, and as many as are waited for. */
static void accusers_are_bounded(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    struct wire_record r;
    world_open(&w, &c, 20);
    live(&w, 5000, 0);
    for (uint32_t by = 6; by <= 20; by++) {
        accuse(&w, 5, 10, by);
    }
    w.n_sent = 0;
    live(&w, 200, 0);
    struct sent *m = find_sent(&w, 0, WIRE_GOSSIP, 0);
    assert_non_null(m);
    assert_true(holds(m, WIRE_SUSPECT, 5, &r));
    assert_int_equal(r.n_accusers, 4);
    world_close(&w);
}

static void only_a_higher_incarnation_refutes(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    world_open(&w, &c, 10);
    accuse(&w, 5, 10, 6);
    claim(&w, 5, 10, "meta");
    claim(&w, 5, 9, "meta");
    assert_int_equal(state_of(&w, 5), SWIM_SUSPECT);
    claim(&w, 5, 11, "meta");
    assert_int_equal(state_of(&w, 5), SWIM_ALIVE);
    assert_int_equal(count_events(&w, SWIM_REFUTED, 5), 1);
    assert_int_equal(count_events(&w, SWIM_UPDATED, 5), 0);
    accuse(&w, 5, 10, 6); /* late */
    assert_int_equal(state_of(&w, 5), SWIM_ALIVE);
    /* Nobody can accuse the future: it counts against now, and the next word is still the member's. */
    accuse(&w, 5, UINT64_MAX, 6);
    assert_int_equal(state_of(&w, 5), SWIM_SUSPECT);
    claim(&w, 5, 12, "new");
    assert_int_equal(state_of(&w, 5), SWIM_ALIVE);
    assert_int_equal(count_events(&w, SWIM_UPDATED, 5), 1);
    world_close(&w);
}

static void the_dead(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    c.forget_ms = 60000;
    world_open(&w, &c, 10);
    dead(&w, 88, 10, 6); /* nobody's */
    /* Out of the blue it is a suspicion, and so it stays for half the shortest time, 600 ms. */
    dead(&w, 5, 10, 6);
    dead(&w, 5, 10, 6);
    assert_int_equal(state_of(&w, 5), SWIM_SUSPECT);
    live(&w, 590, 0);
    dead(&w, 5, 10, 6);
    assert_int_equal(state_of(&w, 5), SWIM_SUSPECT);
    live(&w, 10, 0);
    dead(&w, 5, 9, 6);
    assert_int_equal(state_of(&w, 5), SWIM_SUSPECT);
    dead(&w, 5, 10, 6);
    assert_int_equal(state_of(&w, 5), SWIM_DEAD);
    assert_int_equal(swim_count(w.s), 9);
    claim(&w, 5, 10, "meta"); /* an old word does not wake it */
    assert_int_equal(state_of(&w, 5), SWIM_DEAD);
    /* It is told in a ping now and then. */
    w.n_sent = 0;
    struct wire_record r;
    live(&w, 2100, UINT64_C(1) << 5);
    struct sent *ping = find_sent(&w, 0, WIRE_PING, 5);
    assert_non_null(ping);
    assert_true(holds(ping, WIRE_DEAD, 5, &r));
    claim(&w, 5, 11, "meta");
    assert_int_equal(state_of(&w, 5), SWIM_ALIVE);
    assert_int_equal(count_events(&w, SWIM_RETURNED, 5), 1);
    accuse(&w, 5, 11, 6);
    live(&w, 600, 0);
    dead(&w, 5, 11, 6);
    live(&w, 75000, UINT64_C(1) << 5);
    struct swim_member gone;
    struct swim_id id = id_of(5);
    assert_false(swim_get(w.s, &id, &gone));
    assert_int_equal(count_events(&w, SWIM_FORGOTTEN, 5), 1);
    world_close(&w);
}

/* Many at the same time, of which some are confirmed, some refuted, and all wait for a process that did not run: each
 * of the others dies in its millisecond, and of those of one millisecond the first to be suspected is the first. */
static void many_end_in_time(void **state)
{
    (void)state;
    enum { FIRST = 10, LAST = 60, STALL = 5000 };
    struct world w;
    struct swim_config c = world_config();
    struct {
        uint64_t start, due;
        uint32_t of;
    } left[LAST + 1] = {{0}};
    unsigned n = 0, died = 0;
    world_open(&w, &c, LAST);
    uint64_t least = (uint64_t)(4 * log10(LAST) * PERIOD), began = w.now;
    for (uint32_t k = 0; k <= LAST - FIRST; k++) {
        uint32_t of = FIRST + k * 20 % (LAST - FIRST + 1); /* not in the order of their slots */
        accuse(&w, of, 10, 2);
        left[n].of = of, left[n++].start = w.now;
        live(&w, k % 3 == 0 ? 0 : 7, 0);
    }
    for (unsigned i = 0; i < n; i++) {
        unsigned confirmed = i / 3 % 4;
        for (uint32_t by = 3; by < 3 + confirmed; by++) {
            accuse(&w, left[i].of, 10, by);
        }
        left[i].due = left[i].start + suspicion_ms(least, 6 * least, confirmed, 3) + STALL;
    }
    for (unsigned i = 0; i < n; i += 5) {
        claim(&w, left[i].of, 11, "meta");
        left[i].due = UINT64_MAX;
    }
    assert_true(w.now < began + least);
    w.now = swim_next(w.s) + STALL;
    swim_tick(w.s, w.now);
    assert_int_equal(swim_stats(w.s)->stalled_ms, STALL);
    accuse(&w, left[1].of, 10, 3);
    left[1].due = left[1].start + suspicion_ms(least, 6 * least, 1, 3) + STALL;
    for (w.n_events = 0; w.now < began + STALL + 6 * least + 1000; w.n_events = 0) {
        live(&w, 1, 0);
        for (unsigned i = 0; i < w.n_events; i++) {
            unsigned next = 0;
            assert_int_equal(w.events[i].what, SWIM_DIED);
            for (unsigned k = 1; k < n; k++) {
                next = left[k].due < left[next].due ? k : next;
            }
            assert_int_equal(w.events[i].of, left[next].of);
            assert_int_equal(w.now, left[next].due);
            left[next].due = UINT64_MAX;
            died++;
        }
    }
    assert_int_equal(died, n - (n + 4) / 5);
    world_close(&w);
}

static void buddies(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    struct wire_record r;
    world_open(&w, &c, 10);
    live(&w, 5000, 0); /* until it is no news to anybody */
    accuse(&w, 5, 10, 6);
    w.n_sent = 0;
    live(&w, 10 * PERIOD, 0);
    unsigned pings = 0;
    for (unsigned i = 0; i < w.n_sent; i++) {
        if (w.sent[i].head.type == WIRE_PING && w.sent[i].to == 5) {
            assert_true(holds(&w.sent[i], WIRE_SUSPECT, 5, &r));
            pings++;
        }
    }
    assert_true(pings >= 1);
    /* And in what it is answered. */
    struct said m;
    say(&m, WIRE_PING, 1, 10);
    w.n_sent = 0;
    deliver(&w, 5, &m);
    struct sent *ack = find_sent(&w, 0, WIRE_ACK, 5);
    assert_non_null(ack);
    assert_true(holds(ack, WIRE_SUSPECT, 5, &r));
    world_close(&w);
}

/* ---- of oneself ---- */

static uint64_t own_incarnation(const struct world *w)
{
    struct swim_member m;
    struct swim_id id = id_of(ME);
    assert_true(swim_get(w->s, &id, &m));
    return m.incarnation;
}

static void refutes(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    struct said m;
    struct wire_record r;
    world_open(&w, &c, 10);
    live(&w, 1000, 0);
    say(&m, WIRE_PING, 1, 10);
    say_suspect(&m, ME, 100, 6);
    w.n_sent = 0;
    deliver(&w, 6, &m);
    assert_int_equal(own_incarnation(&w), 101);
    struct sent *ack = find_sent(&w, 0, WIRE_ACK, 6);
    assert_non_null(ack); /* the answer itself takes it back */
    assert_int_equal(ack->head.incarnation, 101);
    assert_true(holds(ack, WIRE_CLAIM, ME, &r) && r.incarnation == 101);
    assert_int_equal(swim_health(w.s), 1);
    assert_int_equal(count_events(&w, SWIM_ACCUSED, ME), 1);
    accuse(&w, ME, 100, 7); /* answered already */
    assert_int_equal(own_incarnation(&w), 101);
    /* A flood of accusations makes few signatures. */
    unsigned signs = w.signs;
    uint64_t until = w.now + 1000;
    for (; w.now < until; w.now++) {
        accuse(&w, ME, UINT64_MAX, 7);
        say(&m, WIRE_GOSSIP, 0, 10);
        say_dead(&m, ME, own_incarnation(&w));
        deliver(&w, 8, &m);
        if (swim_next(w.s) <= w.now) {
            swim_tick(w.s, w.now);
        }
    }
    assert_in_range(w.signs - signs, 3, 6);
    assert_int_equal(state_of(&w, ME), SWIM_ALIVE);
    world_close(&w);
}

static void cannot_sign(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    struct swim_addr addr = addr_of(300);
    world_open(&w, &c, 4);
    w.sign_error = SYM_ENOMEM;
    accuse(&w, ME, 100, 2);
    FAILS(SYM_ENOMEM, swim_update(w.s, w.now, &addr, "x", 1));
    FAILS(SYM_ENOMEM, swim_leave(w.s, w.now));
    assert_int_equal(own_incarnation(&w), 100);
    w.sign_error = 0;
    live(&w, 1500, 0);
    assert_int_equal(own_incarnation(&w), 101);
    assert_int_equal(state_of(&w, ME), SWIM_ALIVE);
    world_close(&w);
}

static void earlier_life(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    struct said m;
    world_open(&w, &c, 4);
    claim(&w, ME, 50, "old");
    assert_int_equal(own_incarnation(&w), 100);
    say(&m, WIRE_GOSSIP, 0, 10);
    say_claim(&m, ME, 5000, false, "forged", true);
    deliver(&w, 2, &m);
    assert_int_equal(own_incarnation(&w), 100);
    claim(&w, ME, 5000, "clock went back");
    assert_int_equal(own_incarnation(&w), 5001);
    assert_int_equal(count_events(&w, SWIM_DOUBLE, ME), 1);
    w.now += 1100;
    claim(&w, ME, 5001, "somebody else");
    assert_int_equal(own_incarnation(&w), 5002);
    assert_int_equal(count_events(&w, SWIM_DOUBLE, ME), 2);
    w.now += 1100;
    claim(&w, 3, 10, "two of one");
    assert_int_equal(count_events(&w, SWIM_DOUBLE, 3), 1);
    world_close(&w);
}

static void announces(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    struct wire_record r;
    struct swim_addr addr = addr_of(300), none = {0};
    char big[SWIM_META_MAX + 1] = {0};
    world_open(&w, &c, 4);
    live(&w, 3000, 0);
    w.n_sent = 0;
    FAILS(SYM_EINVAL, swim_update(w.s, w.now, &none, "", 0));
    FAILS(SYM_EINVAL, swim_update(w.s, w.now, &addr, big, sizeof big));
    OK(swim_update(w.s, w.now, &addr, "moved", 5));
    live(&w, 1000, 0);
    for (uint32_t to = 2; to <= 4; to++) {
        struct sent *m = find_sent(&w, 0, WIRE_GOSSIP, to);
        assert_non_null(m);
        assert_true(holds(m, WIRE_CLAIM, ME, &r));
        assert_true(swim_addr_eq(&r.claim.addr, &addr));
        assert_int_equal(r.claim.meta_len, 5);
        assert_int_equal(r.incarnation, 101);
    }
    world_close(&w);
}

static void leaves(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    struct wire_record r;
    struct said m;
    world_open(&w, &c, 6);
    live(&w, 3000, 0);
    w.n_sent = 0;
    assert_false(swim_has_left(w.s));
    OK(swim_leave(w.s, w.now));
    for (unsigned i = 0; !swim_has_left(w.s); i++) {
        live(&w, 50, 0);
        assert_true(i < 100);
    }
    struct sent *first = find_sent(&w, 0, WIRE_GOSSIP, 0);
    assert_non_null(first);
    assert_true(holds(first, WIRE_CLAIM, ME, &r) && r.claim.left);
    uint64_t probes = swim_stats(w.s)->probes;
    accuse(&w, ME, own_incarnation(&w), 2);
    live(&w, 3000, 0);
    assert_int_equal(swim_stats(w.s)->probes, probes);
    assert_int_equal(own_incarnation(&w), 101);
    world_close(&w);

    /* Of another. */
    world_open(&w, &c, 6);
    say(&m, WIRE_GOSSIP, 0, 10);
    say_claim(&m, 3, 11, true, "meta", false);
    say_claim(&m, 50, 11, true, "meta", false); /* and of one that was never here */
    deliver(&w, 3, &m);
    assert_int_equal(state_of(&w, 3), SWIM_LEFT);
    assert_int_equal(count_events(&w, SWIM_DEPARTED, 3), 1);
    assert_int_equal(count_events(&w, SWIM_JOINED, 50), 0);
    accuse(&w, 3, 11, 4);
    say(&m, WIRE_GOSSIP, 0, 10);
    say_dead(&m, 3, 11);
    deliver(&w, 4, &m);
    assert_int_equal(state_of(&w, 3), SWIM_LEFT);
    w.n_sent = 0;
    live(&w, 6000, 0);
    assert_null(find_sent(&w, 0, WIRE_PING, 3));
    claim(&w, 3, 12, "meta");
    assert_int_equal(state_of(&w, 3), SWIM_ALIVE);
    world_close(&w);

    world_open(&w, &c, 1);
    OK(swim_leave(w.s, w.now));
    assert_true(swim_has_left(w.s)); /* nobody to tell */
    world_close(&w);
}

/* ---- who is believed ---- */

static void strangers_and_liars(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    struct said m;
    struct swim_member x;
    world_open(&w, &c, 4);
    w.unknown = 20;
    say(&m, WIRE_PING, 1, 10);
    say_dead(&m, 3, 10);
    w.n_sent = 0;
    deliver(&w, 20, &m);
    assert_int_equal(w.n_sent, 0);
    assert_int_equal(state_of(&w, 3), SWIM_ALIVE);
    say(&m, WIRE_PING, 1, 100);
    deliver(&w, ME, &m); /* our own, sent back */
    assert_int_equal(w.n_sent, 0);
    assert_int_equal(swim_stats(w.s)->strangers, 2);
    claim(&w, 20, 10, "meta");
    struct swim_id id = id_of(20);
    assert_false(swim_get(w.s, &id, &x));
    /* A wrong signature ends the message. */
    say(&m, WIRE_PING, 1, 10);
    say_claim(&m, 3, 11, false, "forged", true);
    say_dead(&m, 3, 10);
    deliver(&w, 2, &m);
    assert_int_equal(swim_stats(w.s)->bad_signatures, 1);
    assert_int_equal(state_of(&w, 3), SWIM_ALIVE);
    assert_int_equal(w.n_sent, 0);
    /* Old claims are not even verified. */
    unsigned verifies = w.verifies;
    claim(&w, 3, 10, "meta");
    claim(&w, 3, 4, "meta");
    assert_int_equal(w.verifies, verifies);
    /* One that is removed from the cluster is forgotten. */
    w.unknown = 3;
    swim_recheck(w.s, w.now);
    id = id_of(3);
    assert_false(swim_get(w.s, &id, &x));
    assert_int_equal(count_events(&w, SWIM_FORGOTTEN, 3), 1);
    world_close(&w);
}

static void damaged(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    struct said m;
    struct swim_id from = id_of(2);
    struct swim_addr addr = addr_of(2);
    world_open(&w, &c, 4);
    w.n_sent = 0;
    say(&m, WIRE_PING, 1, 10);
    say_dead(&m, 3, 10);
    say_claim(&m, 40, 10, false, "meta", false);
    unsigned events = w.n_events;
    for (size_t n = 0; n < m.b.len; n++) {
        if (n != WIRE_HEAD_LEN && n != WIRE_HEAD_LEN + WIRE_DEAD_LEN) { /* shorter, but whole */
            swim_receive(w.s, w.now, &from, &addr, buf_data(&m.b), n);
        }
    }
    assert_int_equal(swim_stats(w.s)->malformed, m.b.len - 2);
    assert_int_equal(w.n_events, events);
    assert_int_equal(w.n_sent, 0);
    buf_free(&m.b);
    world_close(&w);
}

static void missing_claims(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    struct said m;
    struct wire_record r;
    world_open(&w, &c, 4);
    live(&w, 3000, 0);
    /* One that we know nothing of, and one of whom we know an earlier life: asked for their claims. */
    static const struct {
        uint32_t from;
        uint64_t incarnation;
        bool want, back;
    } cases[] = {{30, 10, true, false}, {3, 11, true, false}, {3, 9, false, true}, {3, 10, false, false}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        w.n_sent = 0;
        say(&m, WIRE_PING, 7, cases[i].incarnation);
        deliver(&w, cases[i].from, &m);
        struct sent *ack = find_sent(&w, 0, WIRE_ACK, cases[i].from);
        assert_non_null(ack);
        assert_int_equal(ack->head.want, cases[i].want);
        assert_int_equal(holds(ack, WIRE_CLAIM, 3, &r), cases[i].back);
        assert_false(holds(ack, WIRE_CLAIM, ME, &r));
    }
    /* And who wants ours gets it; whatever does not help does not go on for ever. */
    struct wire_head want = {.type = WIRE_ACK, .want = true, .seq = 1, .incarnation = 11};
    for (unsigned i = 0; i < 2; i++) {
        m = (struct said){0};
        m.w = wr_init(&m.b);
        wire_put_head(&m.w, &want);
        w.n_sent = 0;
        deliver(&w, 3, &m);
        assert_int_equal(w.n_sent, 1);
        assert_int_equal(w.sent[0].head.type, WIRE_GOSSIP);
        assert_true(holds(&w.sent[0], WIRE_CLAIM, ME, &r));
        assert_int_equal(w.sent[0].head.want, i == 0);
        want.type = WIRE_GOSSIP;
    }
    want.want = false;
    m = (struct said){0};
    m.w = wr_init(&m.b);
    wire_put_head(&m.w, &want);
    w.n_sent = 0;
    deliver(&w, 3, &m);
    assert_int_equal(w.n_sent, 0);
    world_close(&w);
}

static void introduction(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    struct wire_record r;
    struct swim_addr addr = addr_of(9);
    world_open(&w, &c, 1);
    swim_join(w.s, w.now, &addr);
    assert_int_equal(w.n_sent, 1);
    assert_int_equal(w.sent[0].to, 0);
    assert_true(holds(&w.sent[0], WIRE_CLAIM, ME, &r));
    world_close(&w);
}

/* ---- time ---- */

static void stalls(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    world_open(&w, &c, 10);
    live(&w, 3000, 0);
    for (uint32_t by = 6; by < 10; by++) {
        accuse(&w, 5, 10, by); /* 1,200 ms */
    }
    next_ping(&w);
    w.now += 30000; /* this process does not run, and nothing that came meanwhile has been read */
    swim_tick(w.s, w.now);
    assert_int_equal(state_of(&w, 5), SWIM_SUSPECT);
    assert_int_equal(swim_stats(w.s)->stalls, 1);
    assert_int_equal(swim_stats(w.s)->probes_void, 1);
    assert_int_equal(swim_stats(w.s)->probes_failed, 0);
    assert_int_equal(swim_health(w.s), 1);
    claim(&w, 5, 11, "meta");
    assert_int_equal(state_of(&w, 5), SWIM_ALIVE);
    for (uint32_t i = 2; i <= 10; i++) {
        assert_int_equal(state_of(&w, i), SWIM_ALIVE);
    }
    /* A tick that is somewhat late is none. */
    w.now = swim_next(w.s) + TIMEOUT;
    swim_tick(w.s, w.now);
    assert_int_equal(swim_stats(w.s)->stalls, 1);
    world_close(&w);
}

/* One that others confirm when it has lasted for long is over at that moment: this process has not missed its end. */
static void late_confirmations(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    world_open(&w, &c, 10);
    accuse(&w, 5, 10, 6);
    live(&w, 3000, 0); /* more than the 1,200 ms that four accusers leave */
    assert_int_equal(state_of(&w, 5), SWIM_SUSPECT);
    for (uint32_t by = 7; by < 10; by++) {
        accuse(&w, 5, 10, by);
    }
    assert_true(swim_next(w.s) <= w.now);
    swim_tick(w.s, ++w.now);
    assert_int_equal(state_of(&w, 5), SWIM_DEAD);
    assert_int_equal(swim_stats(w.s)->stalls, 0);
    assert_int_equal(swim_health(w.s), 0);
    world_close(&w);
}

static void news_end(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    world_open(&w, &c, 20);
    live(&w, 10000, 0);
    uint64_t told = swim_stats(w.s)->news_sent;
    assert_in_range(told, 20, (uint64_t)20 * 10); /* 3 ln 20 = 8.99 each */
    w.n_sent = 0;
    live(&w, 10000, 0);
    assert_int_equal(swim_stats(w.s)->news_sent, told);
    for (unsigned i = 0; i < w.n_sent; i++) {
        assert_int_equal(w.sent[i].head.type, WIRE_PING);
        assert_int_equal(w.sent[i].n, WIRE_HEAD_LEN);
        assert_true(w.sent[i].head.quiet);
    }
    world_close(&w);
}

/* The largest claims there are: a message holds as many as fit, and in the end all have been told. */
static void large_news(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    char meta[SWIM_META_MAX + 1];
    bool told[40] = {false};
    memset(meta, 'm', SWIM_META_MAX);
    meta[SWIM_META_MAX] = '\0';
    world_open(&w, &c, 4);
    live(&w, 5000, 0);
    w.n_sent = 0;
    for (uint32_t i = 5; i < 40; i++) {
        struct said m;
        say(&m, WIRE_GOSSIP, 0, 10);
        say_claim(&m, i, 10, false, meta, false);
        deliver(&w, i, &m);
    }
    live(&w, 4000, 0);
    for (unsigned i = 0; i < w.n_sent; i++) {
        struct rd r = w.sent[i].records;
        struct wire_record record;
        while (wire_get(&r, &record)) {
            told[index_of(&record.id)] = true;
        }
    }
    for (uint32_t i = 5; i < 40; i++) {
        assert_true(told[i]);
    }
    world_close(&w);
}

/* ---- full exchanges ---- */

static void exchanges(void **state)
{
    (void)state;
    struct world a, b;
    struct swim_config c = world_config();
    struct said m;
    struct buf piece = {0};
    uint32_t cursor = 0;
    unsigned pieces = 0;
    world_open(&a, &c, 300);
    accuse(&a, 7, 10, 6);
    accuse(&a, 20, 10, 6);
    live(&a, 2000, 0);
    dead(&a, 7, 10, 6);
    dead(&a, 20, 10, 6);
    assert_int_equal(state_of(&a, 20), SWIM_DEAD);
    accuse(&a, 5, 10, 6);
    say(&m, WIRE_GOSSIP, 0, 10);
    say_claim(&m, 11, 11, true, "meta", false);
    deliver(&a, 6, &m);

    c.id = id_of(1000);
    c.addr = addr_of(1000);
    world_open(&b, &c, 8);
    claim(&b, 3, 20, "newer");
    struct swim_id from = id_of(ME);
    do {
        buf_clear(&piece);
        OK(swim_export(a.s, &cursor, 1024, &piece));
        assert_true(piece.len <= 1024);
        OK(swim_merge(b.s, b.now, &from, buf_data(&piece), piece.len));
        pieces++;
    } while (cursor != 0);
    assert_true(pieces > 10);
    assert_int_equal(state_of(&b, 5), SWIM_ALIVE); /* their word against that of the other: see hearsay */
    assert_int_equal(state_of(&b, 7), SWIM_ALIVE);
    struct swim_member x;
    struct swim_id id = id_of(11);
    assert_false(swim_get(b.s, &id, &x)); /* left: nothing new */
    id = id_of(20);
    assert_false(swim_get(b.s, &id, &x)); /* nor the dead */
    id = id_of(3);
    assert_true(swim_get(b.s, &id, &x));
    assert_int_equal(x.incarnation, 20);
    for (uint32_t i = 21; i <= 300; i++) {
        assert_int_equal(state_of(&b, i), SWIM_ALIVE);
    }
    uint32_t n = 0;
    for (cursor = 0; swim_each(b.s, &cursor, &x);) {
        n++;
    }
    assert_int_equal(n, 299); /* 1 to 300 without 11 and 20, and itself */

    FAILS(SYM_EINVAL, swim_export(a.s, &cursor, 1000, &piece));
    FAILS(SYM_EINVAL, swim_export(a.s, &cursor, SWIM_PIECE_MAX + 1, &piece));
    FAILS(SYM_EPROTO, swim_merge(b.s, b.now, &from, "nonsense", 8));
    FAILS(SYM_EPROTO, swim_merge(b.s, b.now, &from, NULL, 0));
    m = (struct said){0};
    m.w = wr_init(&m.b);
    wire_put_piece(&m.w);
    say_claim(&m, 400, 1, false, "fine", false);
    say_claim(&m, 401, 1, false, "forged", true);
    say_claim(&m, 402, 1, false, "behind", false);
    FAILS(SYM_EAUTH, swim_merge(b.s, b.now, &from, buf_data(&m.b), m.b.len));
    id = id_of(400);
    assert_true(swim_get(b.s, &id, &x));
    id = id_of(402);
    assert_false(swim_get(b.s, &id, &x));
    buf_free(&m.b);
    buf_free(&piece);
    world_close(&a);
    world_close(&b);
}

/* ---- hearsay ---- */

static void say_piece(struct said *m)
{
    *m = (struct said){0};
    m->w = wr_init(&m->b);
    wire_put_piece(&m->w);
}

static void merge(struct world *w, uint32_t from, struct said *m)
{
    struct swim_id id = id_of(from);
    OK(swim_merge(w->s, w->now, &id, buf_data(&m->b), m->b.len));
    buf_free(&m->b);
}

/* A full exchange with 2, for whom @first to @last are dead. */
static void hear_dead(struct world *w, uint32_t first, uint32_t last, uint64_t incarnation)
{
    struct said m;
    say_piece(&m);
    for (uint32_t i = first; i <= last; i++) {
        say_claim(&m, i, incarnation, false, "meta", false);
        say_dead(&m, i, incarnation);
    }
    merge(w, 2, &m);
}

/* Is it a ping that has an accusation and wants an answer to it? */
static bool asks(const struct sent *m)
{
    struct wire_record r;
    return m->head.type == WIRE_PING && m->head.want && holds(m, WIRE_DEAD, m->to, &r);
}

static unsigned asked(const struct world *w, uint32_t of)
{
    unsigned n = 0;
    for (unsigned i = 0; i < w->n_sent; i++) {
        n += w->sent[i].to == of && asks(&w->sent[i]);
    }
    return n;
}

/* Whom a full exchange calls dead, or suspected, is not suspected but asked, and its own word is the end of that. */
static void hearsay_is_asked(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    world_open(&w, &c, 10);
    live(&w, 5000, 0);
    w.n_sent = 0;
    hear_dead(&w, 5, 5, 10);
    struct said m;
    say_piece(&m);
    say_suspect(&m, 6, 10, 7);
    say_dead(&m, 8, 9); /* of an earlier life */
    say_dead(&m, 77, 10);
    merge(&w, 2, &m);
    tick_until(&w, w.now);
    struct sent *ping = find_sent(&w, 0, WIRE_PING, 5);
    assert_non_null(ping);
    assert_int_equal(asked(&w, 5), 1);
    assert_int_equal(asked(&w, 6), 1);
    assert_int_equal(asked(&w, 8), 0);
    say(&m, WIRE_ACK, ping->head.seq, 11);
    say_claim(&m, 5, 11, false, "meta", false);
    deliver(&w, 5, &m);
    claim(&w, 6, 11, "meta"); /* from another, and before its answer */
    live(&w, 30 * PERIOD, 0);
    assert_int_equal(asked(&w, 5), 1);
    assert_int_equal(asked(&w, 6), 1);
    assert_int_equal(count_events(&w, SWIM_SUSPECTED, 5), 0);
    assert_int_equal(count_events(&w, SWIM_SUSPECTED, 6), 0);
    /* In a datagram it is a suspicion, and that of a suspect one in an exchange confirms it. */
    dead(&w, 5, 11, 2);
    assert_int_equal(state_of(&w, 5), SWIM_SUSPECT);
    live(&w, 600, 0);
    hear_dead(&w, 5, 5, 11);
    assert_int_equal(state_of(&w, 5), SWIM_DEAD);
    world_close(&w);
}

/* Silence is what it is to a probe: after four pings a period apart, of which the time in which this process did not
 * run is no part. */
static void hearsay_of_the_silent(void **state)
{
    (void)state;
    for (unsigned stall = 0; stall < 2; stall++) {
        struct world w;
        struct swim_config c = world_config();
        world_open(&w, &c, 40);
        live(&w, 5000, 0);
        uint64_t began = w.now, by = stall == 1 ? 20000 : 0, at[8];
        hear_dead(&w, 5, 5, 10);
        w.n_sent = 0;
        unsigned n = 0;
        live(&w, 3 * PERIOD + 100, UINT64_C(1) << 5);
        hear_dead(&w, 5, 5, 10); /* again, which makes no turns more */
        if (stall == 1) {
            w.now += by;
            swim_tick(w.s, w.now);
        }
        while (state_of(&w, 5) == SWIM_ALIVE) {
            live(&w, 10, UINT64_C(1) << 5);
            assert_true(w.now - began < by + 5000);
        }
        for (unsigned i = 0; i < w.n_sent; i++) {
            if (w.sent[i].to == 5 && asks(&w.sent[i])) {
                at[n++] = w.sent[i].at - began;
            }
        }
        assert_int_equal(n, 4);
        for (unsigned i = 0; i < 4; i++) {
            assert_int_equal(at[i], i * PERIOD);
        }
        assert_int_equal(state_of(&w, 5), SWIM_SUSPECT);
        /* Of a stall only what came after something was due is known. */
        assert_in_range(w.now - began, by + (stall == 1 ? 3 : 4) * PERIOD, by + 5 * PERIOD);
        /* By nobody but us, and it ends as any other. */
        live(&w, 6 * (uint64_t)(4 * log10(40) * PERIOD) + 100, UINT64_C(1) << 5);
        assert_int_equal(state_of(&w, 5), SWIM_DEAD);
        world_close(&w);
    }
}

/* However many one exchange names, and however often: as many at a time as gossip has receivers, all of them in turn,
 * and for a process that leaves none. */
static void hearsay_is_paced(void **state)
{
    (void)state;
    enum { LAST = 60 };
    struct world w;
    struct swim_config c = world_config();
    world_open(&w, &c, LAST);
    live(&w, 10000, 0);
    w.n_sent = 0;
    uint64_t began = w.now;
    for (unsigned ms = 0; ms < 3000; ms += 50) {
        if (ms % 500 == 0) {
            hear_dead(&w, 3, LAST, 10);
        }
        live(&w, 50, 0); /* answers, but makes no claim */
    }
    unsigned n = 0;
    for (unsigned i = 0; i < w.n_sent; i++) {
        if (asks(&w.sent[i])) {
            n++;
            assert_true(n <= 3 * ((w.sent[i].at - began) / 100 + 1));
        }
    }
    assert_in_range(n, 75, 93);
    for (uint32_t i = 3; i <= LAST; i++) {
        assert_in_range(asked(&w, i), 1, 2);
    }
    OK(swim_leave(w.s, w.now));
    w.n_sent = 0;
    live(&w, 3000, 0);
    for (uint32_t i = 3; i <= LAST; i++) {
        assert_int_equal(asked(&w, i), 0);
    }
    world_close(&w);
    world_open(&w, &c, 10);
    OK(swim_leave(w.s, w.now));
    hear_dead(&w, 5, 5, 10);
    live(&w, 3000, 0);
    assert_int_equal(asked(&w, 5), 0);
    world_close(&w);
}

/* Who is ill himself gives others longer. */
/* Of many that are named each has all its turns, whatever the order of the probes comes to be meanwhile: a mark that
 * stayed would take the next word against its member for one that is looked into. Half of them are
 * silent, and the others answer, but make no claim. */
static void hearsay_has_an_end(void **state)
{
    (void)state;
    enum { LAST = 60 };
    for (uint32_t seed = 1; seed <= 200; seed++) {
        struct world w;
        struct swim_config c = world_config();
        c.seed = seed;
        world_open(&w, &c, LAST);
        live(&w, 3000, 0);
        uint32_t last = 10 + seed % 50;
        hear_dead(&w, 3, last, 10);
        live(&w, 40000, UINT64_C(0x5555555555555555) << seed % 2);
        for (uint32_t i = 3; i <= last; i++) {
            if (state_of(&w, i) == SWIM_ALIVE) {
                fail_msg("seed %u: %u", (unsigned)seed, (unsigned)i);
            }
        }
        world_close(&w);
    }
}

/* Also by a process that is late for everything. */
static void hearsay_when_late(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    world_open(&w, &c, 6);
    live(&w, 3000, 0);
    w.n_sent = 0;
    hear_dead(&w, 5, 5, 10);
    for (unsigned i = 0; i < 40; i++) {
        w.now = swim_next(w.s) + 121;
        swim_tick(w.s, w.now);
    }
    assert_in_range(asked(&w, 5), 1, 4);
    world_close(&w);
}

/* What has been heard is not told to those that are dead here: it would count as told. */
static void hearsay_takes_no_news(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    struct said m;
    world_open(&w, &c, 40);
    live(&w, 3000, 0);
    live(&w, 60000, ((UINT64_C(1) << 20) - 1) << 10); /* 10 to 29 die */
    assert_int_equal(state_of(&w, 20), SWIM_DEAD);
    say_piece(&m);
    for (uint32_t i = 10; i < 30; i++) {
        say_claim(&m, i, 10, false, "meta", false);
    }
    merge(&w, 2, &m);
    claim(&w, 5, 11, "news");
    w.n_sent = 0;
    live(&w, 2000, ((UINT64_C(1) << 20) - 1) << 10);
    unsigned told = 0;
    for (unsigned i = 0; i < w.n_sent; i++) {
        struct wire_record r;
        if (asks(&w.sent[i])) {
            assert_false(holds(&w.sent[i], WIRE_CLAIM, 5, &r));
            told++;
        }
    }
    assert_in_range(told, 20, 80);
    world_close(&w);
}

static void hearsay_when_ill(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    uint64_t at = 0;
    unsigned n = 0;
    c.health_max = 4;
    world_open(&w, &c, 6);
    live(&w, 20 * PERIOD, ALL_SILENT);
    assert_int_equal(swim_health(w.s), 4);
    claim(&w, 5, 11, "meta");
    hear_dead(&w, 5, 5, 11);
    w.n_sent = 0;
    live(&w, 30 * PERIOD, ALL_SILENT);
    for (unsigned i = 0; i < w.n_sent; i++) {
        if (w.sent[i].to == 5 && w.sent[i].head.type == WIRE_PING && w.sent[i].head.want) {
            assert_true(n == 0 || w.sent[i].at - at == 5 * PERIOD);
            at = w.sent[i].at;
            n++;
        }
    }
    assert_int_equal(n, 4);
    world_close(&w);
}

/* Of one that is dead for us: that another holds it alive does not wake it, but it is asked. */
static void hearsay_of_life(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    c.reconnect_ms = 3600000;
    world_open(&w, &c, 10);
    accuse(&w, 5, 10, 6);
    accuse(&w, 7, 10, 6);
    accuse(&w, 8, 10, 6);
    live(&w, 600, 0);
    dead(&w, 5, 10, 6);
    dead(&w, 7, 10, 6);
    dead(&w, 8, 10, 6);
    assert_int_equal(state_of(&w, 5), SWIM_DEAD);
    live(&w, 5000, 0);
    w.n_sent = 0;
    struct said m;
    say_piece(&m);
    say_claim(&m, 5, 10, false, "meta", false);
    say_claim(&m, 7, 10, false, "meta", false);
    say_suspect(&m, 7, 10, 3);
    say_claim(&m, 8, 9, false, "meta", false);
    merge(&w, 2, &m);
    assert_int_equal(state_of(&w, 5), SWIM_DEAD);
    live(&w, 3000, 0);
    assert_int_equal(asked(&w, 5), 4);
    assert_int_equal(asked(&w, 7), 0);
    assert_int_equal(asked(&w, 8), 0);
    assert_int_equal(state_of(&w, 5), SWIM_DEAD);
    claim(&w, 5, 11, "meta");
    assert_int_equal(state_of(&w, 5), SWIM_ALIVE);
    world_close(&w);
}

static void digests(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    world_open(&w, &c, 4);
    live(&w, 20000, 0);
    assert_int_equal(count_events(&w, SWIM_DIFFERS, 3), 0); /* nobody said that it is quiet */
    uint64_t began = w.now;
    unsigned told = 0, seen_at_8 = 0;
    w.n_events = 0;
    while (w.now - began < 120000) {
        const struct sent *ping = next_ping(&w);
        struct wire_head h = {
            .type = WIRE_ACK, .quiet = true, .seq = ping->head.seq, .incarnation = 10, .digest = 1};
        struct said m = {0};
        m.w = wr_init(&m.b);
        wire_put_head(&m.w, &h);
        deliver(&w, ping->to, &m);
        seen_at_8 = w.now - began < 8000 ? w.n_events : seen_at_8;
    }
    for (unsigned i = 0; i < w.n_events; i++) {
        told += w.events[i].what == SWIM_DIFFERS;
    }
    assert_in_range(seen_at_8, 3, 4); /* 0, 1, 3, 7 s, ... */
    assert_in_range(told, 6, 8);
    /* With news to tell it is no wonder that digests differ. */
    live(&w, 70000, 0);
    w.n_events = 0;
    const struct sent *ping = next_ping(&w);
    struct wire_head h = {
        .type = WIRE_ACK, .quiet = true, .seq = ping->head.seq, .incarnation = 10, .digest = 1};
    struct said m = {0};
    m.w = wr_init(&m.b);
    wire_put_head(&m.w, &h);
    uint32_t from = ping->to;
    claim(&w, 30, 10, "new");
    deliver(&w, from, &m);
    for (unsigned i = 0; i < w.n_events; i++) {
        assert_int_not_equal(w.events[i].what, SWIM_DIFFERS);
    }
    world_close(&w);
}

static void refused_settings(void **state)
{
    (void)state;
    struct swim *s;
    struct world w = {.now = 1};
    struct swim_config c;
    c = world_config(), c.period_ms = 10;
    FAILS(SYM_EINVAL, swim_open(&c, &world_ops, &w, 1, &s));
    c = world_config(), c.period_ms = 100, c.probe_timeout_ms = 100;
    FAILS(SYM_EINVAL, swim_open(&c, &world_ops, &w, 1, &s));
    c = world_config(), c.helpers = SWIM_HELPERS_MAX + 1;
    FAILS(SYM_EINVAL, swim_open(&c, &world_ops, &w, 1, &s));
    c = world_config(), c.addr.family = 0;
    FAILS(SYM_EINVAL, swim_open(&c, &world_ops, &w, 1, &s));
    c = world_config(), c.meta_len = SWIM_META_MAX + 1;
    FAILS(SYM_EINVAL, swim_open(&c, &world_ops, &w, 1, &s));
    c = world_config(), c.cluster_len = SWIM_CLUSTER_MAX + 1;
    FAILS(SYM_EINVAL, swim_open(&c, &world_ops, &w, 1, &s));
    c = world_config();
    w.sign_error = SYM_EIO;
    FAILS(SYM_EIO, swim_open(&c, &world_ops, &w, 1, &s));
    swim_close(NULL);
}

static void full(void **state)
{
    (void)state;
    struct world w;
    struct swim_config c = world_config();
    c.max_members = 5;
    world_open(&w, &c, 9);
    assert_int_equal(swim_count(w.s), 5);
    assert_int_equal(swim_stats(w.s)->full, 4);
    live(&w, 5000, 0);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(healthy),
        cmocka_unit_test(through_helpers),
        cmocka_unit_test(pinged_again),
        cmocka_unit_test(fewer_sends_of_many),
        cmocka_unit_test(raises_are_limited),
        cmocka_unit_test(honest_raises_never_wait),
        cmocka_unit_test(slower_when_ill),
        cmocka_unit_test(reliable_channel),
        cmocka_unit_test(helping),
        cmocka_unit_test(suspicion_times),
        cmocka_unit_test(dogpile),
        cmocka_unit_test(who_counts),
        cmocka_unit_test(accusers_are_bounded),
        cmocka_unit_test(only_a_higher_incarnation_refutes),
        cmocka_unit_test(the_dead),
        cmocka_unit_test(many_end_in_time),
        cmocka_unit_test(buddies),
        cmocka_unit_test(refutes),
        cmocka_unit_test(cannot_sign),
        cmocka_unit_test(earlier_life),
        cmocka_unit_test(announces),
        cmocka_unit_test(leaves),
        cmocka_unit_test(strangers_and_liars),
        cmocka_unit_test(damaged),
        cmocka_unit_test(missing_claims),
        cmocka_unit_test(introduction),
        cmocka_unit_test(stalls),
        cmocka_unit_test(late_confirmations),
        cmocka_unit_test(news_end),
        cmocka_unit_test(large_news),
        cmocka_unit_test(exchanges),
        cmocka_unit_test(hearsay_is_asked),
        cmocka_unit_test(hearsay_of_the_silent),
        cmocka_unit_test(hearsay_is_paced),
        cmocka_unit_test(hearsay_has_an_end),
        cmocka_unit_test(hearsay_when_late),
        cmocka_unit_test(hearsay_takes_no_news),
        cmocka_unit_test(hearsay_when_ill),
        cmocka_unit_test(hearsay_of_life),
        cmocka_unit_test(digests),
        cmocka_unit_test(refused_settings),
        cmocka_unit_test(full),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
