/* Watches: what is delivered, from where, in what portions, and to whom; slow ones, and callbacks that close
 * and open. */
#include "store_support.h"

struct seer {
    struct store *store;
    struct watch *watch;
    unsigned calls, n;
    unsigned most;         /* events in one call */
    uint64_t last;         /* revision */
    int status;            /* when it was ended by the hub */
    unsigned pause_at;     /* call that answers false; 0: none */
    struct watch **close1; /* closed in the callback, and then NULL */
    struct seer *opens;    /* opened in the callback */
    bool leave_line;
    char text[4096]; /* +key or -key for each event */
};

static bool see(void *arg, int status, struct event **events, unsigned n)
{
    struct seer *s = arg;
    s->calls++;
    if (status != 0) {
        assert_int_equal(n, 0);
        s->status = status;
        s->watch = NULL;
    }
    for (unsigned i = 0; i < n; i++) {
        assert_true(events[i]->revision >= s->last);
        if (i == 0) {
            assert_true(events[i]->revision > s->last); /* a txn's events come in one call */
        }
        s->last = events[i]->revision;
        if (strlen(s->text) + events[i]->key.n + 2 < sizeof s->text) {
            sprintf(s->text + strlen(s->text), "%c%.*s", events[i]->is_delete ? '-' : '+',
                (int)events[i]->key.n, events[i]->key.p);
        }
        if (s->leave_line && events[i]->line == NULL) {
            events[i]->line = malloc(1000);
            events[i]->line_len = 1000;
        }
    }
    s->n += n;
    s->most = n > s->most ? n : s->most;
    if (s->close1 != NULL && *s->close1 != NULL) {
        struct watch *w = *s->close1;
        *s->close1 = NULL;
        watch_close(w);
    }
    if (s->opens != NULL) {
        OK(watch_open(s->store, str(""), 0, see, s->opens, &s->opens->watch));
        s->opens = NULL;
    }
    return s->calls != s->pause_at;
}

static void pump(struct store *s)
{
    while (store_pump(s)) {
    }
}

static void look(struct store *s, struct seer *seer, const char *prefix, uint64_t after)
{
    seer->store = s;
    OK(watch_open(s, str(prefix), after, see, seer, &seer->watch));
}

static struct store *open_small(void **state, size_t ring_bytes)
{
    struct store_config cfg = {.dir = in_folder(state, "state"), .quota = 16 << 20, .ring_bytes = ring_bytes};
    return open_store(&cfg);
}

static void from_a_revision(void **state)
{
    struct store *s = open_small(state, 0);
    struct seer all = {0}, a = {0}, late = {0}, now = {0}, exact = {0};
    put(s, "/a/1", "x"); /* 1 */
    put(s, "/b/1", "x"); /* 2 */
    put(s, "/a/2", "x"); /* 3 */
    look(s, &all, "", 0);
    look(s, &a, "/a/", 0);
    look(s, &late, "/a/", 1);
    look(s, &now, "/", 3);
    look(s, &exact, "/a/2", 0);
    assert_int_equal(all.calls, 0); /* nothing before the pump */
    pump(s);
    del(s, "/a/1"); /* 4 */
    del(s, "/a/1"); /* changes nothing */
    put(s, "/a/2", "y");
    put(s, "/a/22", "y");
    pump(s);
    assert_string_equal(all.text, "+/a/1+/b/1+/a/2-/a/1+/a/2+/a/22");
    assert_string_equal(a.text, "+/a/1+/a/2-/a/1+/a/2+/a/22");
    assert_string_equal(late.text, "+/a/2-/a/1+/a/2+/a/22");
    assert_string_equal(now.text, "-/a/1+/a/2+/a/22");
    assert_string_equal(exact.text, "+/a/2+/a/2+/a/22");
    assert_int_equal(all.last, 6);

    struct watch *w;
    FAILS(SYM_EINVAL, watch_open(s, str(""), 7, see, &all, &w));
    assert_non_null(strstr(err_msg(), "revision 8 lies ahead")); /* the first one that would be told */
    uint8_t long_prefix[KEY_MAX + 1] = {0};
    FAILS(SYM_ETOOBIG, watch_open(s, (struct slice){long_prefix, sizeof long_prefix}, 0, see, &all, &w));
    assert_false(store_pump(s));
    struct seer *seers[] = {&all, &a, &late, &now, &exact};
    for (unsigned i = 0; i < 5; i++) {
        watch_close(seers[i]->watch);
    }
    put(s, "/a/1", "z");
    pump(s);
    assert_int_equal(all.last, 6);
    store_close(s);
}

/* The history ends where it does: at the open, and where the ring has dropped events. */
static void compacted(void **state)
{
    struct store *s = open_small(state, 4000);
    struct seer seer = {0}, old = {0};
    char value[101];
    put(s, "a", "1");
    store_close(s);
    s = open_small(state, 4000);
    FAILS(SYM_ECOMPACTED, watch_open(s, str(""), 0, see, &seer, &seer.watch));
    look(s, &seer, "", 1);
    look(s, &old, "zz", 1);
    memset(value, 'v', 100);
    value[100] = '\0';
    for (int i = 0; i < 100; i++) {
        put(s, "a", value);
    }
    pump(s); /* too late: the first of these are gone */
    assert_int_equal(seer.status, SYM_ECOMPACTED);
    assert_int_equal(seer.n, 0);
    assert_int_equal(old.status, 0); /* it has missed nothing */
    uint64_t reach = 101;
    struct watch *w;
    while (watch_open(s, str(""), reach - 1, see, &seer, &w) == 0) {
        watch_close(w);
        reach--;
    }
    assert_true(reach > 60 && reach < 95); /* 4000 bytes of about 200 */
    seer = (struct seer){0};
    look(s, &seer, "", reach);
    pump(s);
    assert_int_equal(seer.n, 101 - reach);
    watch_close(seer.watch);

    /* A value that is larger than the whole ring leaves none of the history, and one who looks is told. */
    char *big = calloc(1, 5001);
    memset(big, 'b', 5000);
    look(s, &seer, "", 101);
    put(s, "a", big);
    free(big);
    pump(s);
    assert_int_equal(seer.status, SYM_ECOMPACTED);
    FAILS(SYM_ECOMPACTED, watch_open(s, str(""), 101, see, &seer, &w));
    OK(watch_open(s, str(""), 102, see, &seer, &w));
    watch_close(w);
    watch_close(old.watch);
    store_close(s);
}

static void pausing(void **state)
{
    struct store *s = open_small(state, 20000);
    struct seer slow = {.pause_at = 1}, fast = {0};
    look(s, &slow, "", 0);
    look(s, &fast, "", 0);
    put(s, "a", "1");
    pump(s);
    put(s, "b", "2");
    put(s, "c", "3");
    pump(s);
    assert_string_equal(slow.text, "+a");
    assert_string_equal(fast.text, "+a+b+c");
    struct store_stats st;
    store_stats(s, &st);
    assert_int_equal(st.watches, 2);
    assert_int_equal(st.paused, 1);
    assert_int_equal(st.events, 3);
    assert_int_equal(st.delivered, 4);
    assert_int_equal(st.history_events, 3);
    assert_true(st.history_bytes > 0);
    watch_resume(slow.watch);
    assert_string_equal(slow.text, "+a");
    pump(s);
    assert_string_equal(slow.text, "+a+b+c");
    assert_int_equal(slow.calls, 2);

    /* Paused for longer than the ring reaches: told when it goes on. */
    slow.pause_at = 3;
    put(s, "d", "4");
    pump(s);
    for (int i = 0; i < 1000; i++) {
        put(s, "e", "5");
        pump(s);
    }
    assert_int_equal(slow.status, 0);
    assert_int_equal(slow.calls, 3);
    watch_resume(slow.watch);
    pump(s);
    assert_int_equal(slow.status, SYM_ECOMPACTED);
    assert_int_equal(fast.n, 1004);
    store_stats(s, &st);
    assert_int_equal(st.watches, 1);
    assert_int_equal(st.paused, 0);
    assert_int_equal(st.cut, 1);
    watch_close(fast.watch);
    store_stats(s, &st);
    assert_int_equal(st.watches, 0);
    store_close(s);
}

static void in_callbacks(void **state)
{
    struct store *s = open_small(state, 0);
    struct seer self = {0}, killer = {0}, victim = {0}, opener = {0}, opened = {0}, last = {0};
    self.close1 = &self.watch;
    killer.close1 = &victim.watch;
    opener.opens = &opened;
    look(s, &self, "", 0);
    look(s, &killer, "", 0);
    look(s, &victim, "", 0);
    look(s, &opener, "", 0);
    look(s, &last, "", 0);
    put(s, "a", "1");
    put(s, "b", "1");
    pump(s);
    assert_int_equal(self.n, 2);
    assert_int_equal(self.calls, 1);
    assert_int_equal(victim.n, 0);
    assert_int_equal(opened.n, 2); /* from revision 0, in the same pump */
    assert_int_equal(last.n, 2);
    put(s, "c", "1");
    pump(s);
    assert_int_equal(self.n, 2);
    assert_int_equal(killer.n, 3);
    assert_int_equal(opened.n, 3);
    watch_close(killer.watch);
    watch_close(opener.watch);

    /* An installed snapshot ends all: also the last watch of its prefix, and one that is paused. */
    struct seer lost = {0}, again = {0};
    last.pause_at = last.calls + 1;
    put(s, "d", "1");
    pump(s);
    look(s, &lost, "/only", 3);
    struct buf snapshot = {0};
    struct store_config other_cfg = {.dir = in_folder(state, "other"), .quota = 16 << 20};
    struct store *other = open_store(&other_cfg);
    for (int i = 0; i < 9; i++) {
        put(other, "x", "y");
    }
    take_snapshot(other, &snapshot);
    store_close(other);
    struct install *in;
    struct store_config cfg = {.dir = in_folder(state, "state"), .quota = 16 << 20};
    OK(install_prepare(&cfg, buf_data(&snapshot), snapshot.len, &in));
    OK(store_install(s, in));
    buf_free(&snapshot);
    pump(s);
    assert_int_equal(lost.status, SYM_ECOMPACTED);
    assert_int_equal(last.status, SYM_ECOMPACTED);
    assert_int_equal(opened.status, SYM_ECOMPACTED);
    look(s, &again, "", 9);
    put(s, "n", "1");
    pump(s);
    assert_string_equal(again.text, "+n");

    /* Closing the store ends what is left. */
    store_close(s);
    assert_int_equal(again.status, SYM_ECLOSED);
}

/* A txn's events are not divided, and no call or pump is without bound. */
static void portions(void **state)
{
    struct store *s = open_small(state, 0);
    struct txn *t = calloc(1, sizeof *t);
    struct seer live = {0}, old = {0}, none = {0};
    char keys[100][8];
    look(s, &live, "", 0);
    for (int i = 0; i < 100; i++) {
        snprintf(keys[i], sizeof keys[i], "k%d", i);
        t->ops[i] = op_put(keys[i], "v");
    }
    t->n_ops = 100;
    for (int i = 0; i < 200; i++) {
        apply_one(s, t);
    }
    look(s, &old, "k", 0);
    look(s, &none, "other", 0);
    unsigned pumps = 1;
    while (store_pump(s)) {
        pumps++;
        assert_true(live.most < 256 + 128);
    }
    assert_true(pumps > 2 && pumps < 10);
    assert_int_equal(live.n, 20000);
    assert_int_equal(old.n, 20000);
    assert_int_equal(none.calls, 0);
    assert_int_equal(live.most, 300);
    watch_close(live.watch);
    watch_close(old.watch);
    watch_close(none.watch);
    free(t);
    store_close(s);
}

/* Lines that receivers leave with events count as history, and are freed with it (ASan). */
static void lines(void **state)
{
    struct store *s = open_small(state, 10000);
    struct seer seer = {.leave_line = true}, other = {.leave_line = true};
    struct watch *w;
    look(s, &seer, "", 0);
    look(s, &other, "", 0);
    for (int i = 0; i < 50; i++) {
        put(s, "a", "1");
        pump(s);
    }
    assert_int_equal(seer.n, 50);
    assert_int_equal(other.n, 50);
    OK(watch_open(s, str(""), 44, see, &seer, &w));
    watch_close(w);
    FAILS(SYM_ECOMPACTED, watch_open(s, str(""), 38, see, &seer, &w));
    watch_close(seer.watch);
    watch_close(other.watch);
    store_close(s);
}

static void wake(void *arg)
{
    (*(unsigned *)arg)++;
}

static void waking(void **state)
{
    struct store *s = open_small(state, 0);
    struct seer a = {.pause_at = 1}, b = {0};
    unsigned wakes = 0;
    store_on_watch(s, wake, &wakes);
    look(s, &a, "", 0);
    assert_int_equal(wakes, 0); /* there is nothing yet */
    put(s, "a", "1");
    look(s, &b, "", 0);
    assert_int_equal(wakes, 1);
    pump(s);
    put(s, "a", "2");
    pump(s);
    assert_int_equal(a.n, 1);
    watch_resume(a.watch);
    assert_int_equal(wakes, 2);
    pump(s);
    assert_int_equal(a.n, 2);
    watch_resume(a.watch);
    assert_int_equal(wakes, 2);
    watch_close(a.watch);
    watch_close(b.watch);
    store_close(s);
}

/* Random watches on random prefixes, opened and closed and paused at random, each against a look through all
 * events. */
enum { N_WATCHES = 60, N_ROUNDS = 600 };
struct random_watch {
    struct watch *watch;
    char prefix[8];
    uint64_t seen; /* revision */
    bool paused;
};
static struct {
    char key[8];
    bool is_delete;
} history[N_ROUNDS * 3 + 1]; /* one for each revision */

static bool see_random(void *arg, int status, struct event **events, unsigned n)
{
    struct random_watch *w = arg;
    if (status != 0) {
        w->watch = NULL;
        return true;
    }
    for (unsigned i = 0; i < n; i++) {
        uint64_t next = w->seen + 1;
        while (strncmp(history[next].key, w->prefix, strlen(w->prefix)) != 0) {
            next++;
        }
        assert_int_equal(events[i]->revision, next);
        assert_int_equal(events[i]->key.n, strlen(history[next].key));
        assert_memory_equal(events[i]->key.p, history[next].key, events[i]->key.n);
        w->seen = next;
    }
    w->paused = rnd(10) == 0;
    return !w->paused;
}

static void random_key(char *to, size_t most)
{
    size_t n = rnd(most + 1);
    for (size_t i = 0; i < n; i++) {
        to[i] = "ab"[rnd(2)];
    }
    to[n] = '\0';
}

static void random_watches(void **state)
{
    struct store *s = open_small(state, 60000);
    struct random_watch watches[N_WATCHES] = {0};
    unsigned opened = 0, gone = 0;
    rnd_state = 4711;
    for (unsigned round = 0; round < N_ROUNDS; round++) {
        for (uint64_t k = rnd(3) + 1; k > 0; k--) {
            uint64_t next = store_revision(s) + 1;
            random_key(history[next].key + 1, 5);
            history[next].key[0] = 'a';
            put(s, history[next].key, "v");
        }
        struct random_watch *w = &watches[rnd(N_WATCHES)];
        if (w->watch == NULL) {
            random_key(w->prefix, 6);
            uint64_t back = rnd(60);
            w->seen = store_revision(s) > back ? store_revision(s) - back : 0;
            w->paused = false;
            OK(watch_open(s, str(w->prefix), w->seen, see_random, w, &w->watch));
            opened++;
        } else if (rnd(4) == 0) {
            watch_close(w->watch);
            w->watch = NULL;
        } else if (w->paused) {
            w->paused = false;
            watch_resume(w->watch);
        }
        if (rnd(3) == 0) {
            pump(s);
        }
    }
    for (unsigned i = 0; i < N_WATCHES; i++) {
        while (watches[i].watch != NULL && watches[i].paused) {
            watches[i].paused = false;
            watch_resume(watches[i].watch);
            pump(s);
        }
    }
    pump(s);
    for (unsigned i = 0; i < N_WATCHES; i++) {
        struct random_watch *w = &watches[i];
        if (w->watch == NULL) {
            gone++;
            continue;
        }
        for (uint64_t r = w->seen + 1; !w->paused && r <= store_revision(s); r++) {
            if (strncmp(history[r].key, w->prefix, strlen(w->prefix)) == 0) {
                fail_msg("a watch of '%s' has seen up to %llu and not '%s' at %llu", w->prefix,
                    (unsigned long long)w->seen, history[r].key, (unsigned long long)r);
            }
        }
        watch_close(w->watch);
    }
    assert_true(opened > 80 && gone < N_WATCHES);
    store_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(from_a_revision, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(compacted, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(pausing, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(in_callbacks, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(portions, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(lines, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(waking, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(random_watches, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
