/* The envelope of gossip: what opens, what does not and why; replays; rotation of the key. */
#include "check.h"

#include "gossip/seal.h"

#include <stdlib.h>
#include <string.h>

#include "base_fault.h"
#include "gossip/seal.c"

static struct swim_id id_of(uint8_t i)
{
    return (struct swim_id){{i, 1, 2, 3}};
}

static uint8_t removed; /* the first byte of the node that is not known; 0: all are */

static bool known(void *arg, const struct swim_id *id)
{
    (void)arg;
    return removed == 0 || id->b[0] != removed;
}

static struct seal_key key(uint32_t id, bool use)
{
    struct seal_key k = {.id = id, .use = use};
    memset(k.secret, (int)id, sizeof k.secret);
    return k;
}

static struct seal *node(uint8_t i, uint64_t start)
{
    struct seal *s;
    struct swim_id self = id_of(i);
    struct seal_key k = key(7, true);
    removed = 0;
    OK(seal_open(&self, start, known, NULL, 8, &s));
    OK(seal_keys(s, &k, 1));
    return s;
}

struct mail {
    size_t n;
    uint8_t data[SEAL_MAX];
};

static struct mail post(struct seal *from, uint8_t to, const char *text)
{
    struct mail m = {.n = strlen(text) + SEAL_OVERHEAD};
    struct swim_id id = id_of(to);
    OK(seal_wrap(from, to == 0 ? NULL : &id, text, strlen(text), m.data));
    return m;
}

static struct seal_letter letter;

static void opens(struct seal *s, const struct mail *m, uint8_t from, const char *text)
{
    struct swim_id id = id_of(from);
    assert_int_equal(seal_unwrap(s, m->data, m->n, true, &letter), SEAL_OK);
    assert_true(swim_id_eq(&letter.from, &id));
    assert_int_equal(letter.n, strlen(text));
    assert_memory_equal(letter.plain, text, letter.n);
}

static void refused(struct seal *s, const struct mail *m, enum seal_verdict why)
{
    uint64_t before = seal_counts(s)[why];
    assert_int_equal(seal_unwrap(s, m->data, m->n, true, &letter), why);
    assert_int_equal(seal_counts(s)[why], before + 1);
}

static void to_and_fro(void **state)
{
    (void)state;
    struct seal *a = node(1, 1000), *b = node(2, 2000), *c = node(3, 3000);
    struct mail m = post(a, 2, "hello");
    assert_int_equal(m.n, 5 + 54);
    refused(c, &m, SEAL_FORGED);    /* not for it */
    refused(a, &m, SEAL_REFLECTED); /* sent back */
    opens(b, &m, 1, "hello");
    assert_false(letter.anyone);
    assert_int_equal(letter.key, 7);
    m = post(b, 1, "hello");
    opens(a, &m, 2, "hello");
    m = post(a, 0, "whoever you are");
    opens(b, &m, 1, "whoever you are");
    assert_true(letter.anyone);
    opens(c, &m, 1, "whoever you are");
    m = post(a, 0, "for anyone");
    m.data[1] ^= 1; /* nobody can change for whom it is */
    refused(c, &m, SEAL_FORGED);
    m = post(a, 3, "for one");
    m.data[1] ^= 1;
    refused(c, &m, SEAL_FORGED);

    static uint8_t big[SWIM_DATAGRAM_MAX + 1];
    struct swim_id to = id_of(2);
    FAILS(SYM_EINVAL, seal_wrap(a, &to, big, 0, m.data));
    FAILS(SYM_EINVAL, seal_wrap(a, &to, big, sizeof big, m.data));
    OK(seal_wrap(a, &to, big, sizeof big - 1, m.data));
    m.n = SEAL_MAX;
    assert_int_equal(seal_unwrap(b, m.data, m.n, true, &letter), SEAL_OK);
    assert_int_equal(letter.n, SWIM_DATAGRAM_MAX);
    seal_close(a);
    seal_close(b);
    seal_close(c);
    seal_close(NULL);
}

/* Under a flood of starts that nobody has heard of, those that are known are heard all the same. */
static void without_deriving(void **state)
{
    (void)state;
    struct seal *a = node(1, 1000), *b = node(2, 2000);
    struct mail m = post(a, 2, "first");
    assert_int_equal(seal_unwrap(b, m.data, m.n, false, &letter), SEAL_BUSY);
    assert_false(letter.derived);
    opens(b, &m, 1, "first"); /* which did not use it up */
    assert_true(letter.derived);
    m = post(a, 2, "second");
    assert_int_equal(seal_unwrap(b, m.data, m.n, false, &letter), SEAL_OK);
    assert_false(letter.derived);
    assert_int_equal(seal_unwrap(b, m.data, m.n, false, &letter), SEAL_REPLAYED);
    m = post(a, 2, "third");
    m.data[22] ^= 1; /* the start */
    assert_int_equal(seal_unwrap(b, m.data, m.n, false, &letter), SEAL_BUSY);
    assert_int_equal(seal_unwrap(b, m.data, m.n, true, &letter), SEAL_FORGED);
    assert_true(letter.derived);
    assert_int_equal(seal_counts(b)[SEAL_BUSY], 2);
    seal_close(a);
    seal_close(b);
}

static void nothing_shows(void **state)
{
    (void)state;
    struct seal *a = node(1, 1000);
    struct mail m = post(a, 2, "secret words"), again = post(a, 2, "secret words");
    assert_memory_not_equal(m.data + SEAL_HEAD_LEN, again.data + SEAL_HEAD_LEN, 12);
    for (size_t i = 0; i + 6 <= m.n; i++) {
        assert_memory_not_equal(m.data + i, "secret", 6);
    }
    seal_close(a);
    /* Another start, another key: the same counter does not give the same bytes. */
    a = node(1, 1001);
    again = post(a, 2, "secret words");
    assert_memory_not_equal(m.data + SEAL_HEAD_LEN, again.data + SEAL_HEAD_LEN, 12);
    seal_close(a);
}

static void damaged(void **state)
{
    (void)state;
    struct seal *a = node(1, 1000), *b = node(2, 2000);
    struct mail good = post(a, 2, "hello"), m;
    for (size_t n = 0; n < good.n; n++) {
        m = good;
        m.n = n;
        assert_int_not_equal(seal_unwrap(b, m.data, m.n, true, &letter), SEAL_OK);
    }
    assert_int_not_equal(seal_unwrap(b, NULL, 0, true, &letter), SEAL_OK);
    for (size_t bit = 0; bit < 8 * good.n; bit++) {
        m = good;
        m.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        enum seal_verdict v = seal_unwrap(b, m.data, m.n, true, &letter);
        assert_int_not_equal(v, SEAL_OK);
        assert_int_not_equal(v, SEAL_REPLAYED); /* no state has come of it */
    }
    m = good;
    m.n = SEAL_MAX + 1;
    static uint8_t long_one[SEAL_MAX + 1];
    memcpy(long_one, good.data, good.n);
    assert_int_equal(seal_unwrap(b, long_one, sizeof long_one, true, &letter), SEAL_MALFORMED);
    opens(b, &good, 1, "hello"); /* all that did not use it up */
    seal_close(a);
    seal_close(b);
}

static void replays(void **state)
{
    (void)state;
    enum { N = 2 * SEAL_WINDOW };
    struct seal *a = node(1, 1000), *b = node(2, 2000);
    static struct mail m[N];
    for (unsigned i = 0; i < N; i++) {
        m[i] = post(a, 2, "x");
    }
    opens(b, &m[0], 1, "x");
    refused(b, &m[0], SEAL_REPLAYED);
    /* Out of order within the window, each once. */
    for (unsigned i = SEAL_WINDOW - 1; i > 0; i--) {
        opens(b, &m[i], 1, "x");
    }
    for (unsigned i = 0; i < SEAL_WINDOW; i++) {
        refused(b, &m[i], SEAL_REPLAYED);
    }
    opens(b, &m[SEAL_WINDOW + 9], 1, "x"); /* nine are late */
    for (unsigned i = SEAL_WINDOW; i < SEAL_WINDOW + 9; i++) {
        opens(b, &m[i], 1, "x");
        refused(b, &m[i], SEAL_REPLAYED);
    }
    opens(b, &m[N - 1], 1, "x");
    refused(b, &m[9], SEAL_REPLAYED); /* too old to tell */
    opens(b, &m[N - 2], 1, "x");
    /* A jump over more than the window. */
    a->counter += 10 * SEAL_WINDOW;
    struct mail far = post(a, 2, "far");
    opens(b, &far, 1, "far");
    refused(b, &far, SEAL_REPLAYED);
    refused(b, &m[N - 3], SEAL_REPLAYED);
    seal_close(a);
    /* The next life of the sender; then the earlier one is over, also what of it was never seen. */
    struct seal *next = node(1, 1001);
    struct mail fresh = post(next, 2, "again");
    opens(b, &fresh, 1, "again");
    refused(b, &fresh, SEAL_REPLAYED);
    a = node(1, 1000);
    a->counter = 100000;
    struct mail unseen = post(a, 2, "unseen");
    refused(b, &unseen, SEAL_REPLAYED);
    /* A forged next life does not end this one. */
    struct mail forged = post(next, 2, "more");
    forged.data[22]++;
    refused(b, &forged, SEAL_FORGED);
    forged.data[22]--;
    opens(b, &forged, 1, "more");
    seal_close(a);
    seal_close(b);
    seal_close(next);
}

static void rotation(void **state)
{
    (void)state;
    struct seal *a = node(1, 1000), *b = node(2, 2000);
    struct seal_key ring[3] = {key(7, true), key(8, false), key(9, false)};
    struct mail old = post(a, 2, "old"), late = post(a, 2, "late"), m;
    opens(b, &old, 1, "old");
    /* b uses the new key before a has it. */
    struct seal_key early[2] = {key(7, false), key(8, true)};
    OK(seal_keys(b, early, 2));
    m = post(b, 1, "new");
    refused(a, &m, SEAL_UNKNOWN_KEY);
    /* In order: all accept it, */
    OK(seal_keys(a, ring, 2));
    opens(a, &m, 2, "new");
    assert_int_equal(letter.key, 8);
    refused(a, &m, SEAL_REPLAYED); /* also across the change, */
    refused(b, &old, SEAL_REPLAYED);
    opens(b, &late, 1, "late");
    /* all use it, */
    OK(seal_keys(a, early, 2));
    m = post(a, 2, "with the new one");
    opens(b, &m, 1, "with the new one");
    assert_int_equal(letter.key, 8);
    /* and the old one is gone. */
    struct seal *c = node(3, 1);
    struct mail foreign = post(c, 2, "left behind");
    early[0] = early[1];
    OK(seal_keys(b, early, 1));
    refused(b, &foreign, SEAL_UNKNOWN_KEY);
    /* The same id, another secret. */
    early[0].secret[0]++;
    OK(seal_keys(b, early, 1));
    m = post(a, 2, "with the former");
    refused(b, &m, SEAL_FORGED);

    struct seal_key many[5] = {key(1, true), key(2, false), key(3, false), key(4, false), key(5, false)};
    FAILS(SYM_EINVAL, seal_keys(a, many, 0));
    FAILS(SYM_EINVAL, seal_keys(a, many, 5));
    FAILS(SYM_EINVAL, seal_keys(a, many + 1, 2)); /* none in use */
    many[1].use = true;
    FAILS(SYM_EINVAL, seal_keys(a, many, 2)); /* two */
    many[1] = many[0];
    many[1].use = false;
    FAILS(SYM_EINVAL, seal_keys(a, many, 2)); /* twice the same */
    struct swim_id self = id_of(1);
    struct seal *bare;
    OK(seal_open(&self, 1, known, NULL, 8, &bare));
    FAILS(SYM_ESTATE, seal_wrap(bare, &self, "x", 1, m.data));
    m = post(a, 2, "still the ring of before");
    seal_close(a);
    seal_close(b);
    seal_close(c);
    seal_close(bare);
}

/* Whoever has the key can pose as another and name a start that this one never reaches. When the key is changed, that is
 * over. */
static void usurped(void **state)
{
    (void)state;
    struct seal *a = node(1, 1000), *b = node(2, 2000), *evil = node(1, UINT64_MAX);
    struct seal_key ring[2] = {key(7, true), key(8, false)};
    struct mail m = post(a, 2, "before"), late = post(a, 2, "late");
    opens(b, &m, 1, "before");
    m = post(evil, 2, "not me");
    opens(b, &m, 1, "not me");
    refused(b, &late, SEAL_REPLAYED);
    m = post(a, 2, "silenced");
    refused(b, &m, SEAL_REPLAYED);
    OK(seal_keys(a, ring, 2));
    OK(seal_keys(b, ring, 2));
    m = post(a, 2, "silenced still");
    refused(b, &m, SEAL_REPLAYED);
    ring[0].use = false;
    ring[1].use = true;
    OK(seal_keys(a, ring, 2));
    struct mail first = post(a, 2, "first"), second = post(a, 2, "second");
    opens(b, &second, 1, "second");
    opens(b, &first, 1, "first");
    refused(b, &second, SEAL_REPLAYED);
    /* Also while the old key is still taken, it is not from this sender any more. */
    m = post(evil, 2, "not me");
    refused(b, &m, SEAL_REPLAYED);
    m = post(a, 2, "heard");
    opens(b, &m, 1, "heard");
    /* An earlier start, recorded: not by the same key. */
    struct seal *again = node(1, 3000);
    OK(seal_keys(again, ring, 2));
    struct mail kept = post(a, 2, "recorded");
    m = post(again, 2, "started again");
    opens(b, &m, 1, "started again");
    refused(b, &kept, SEAL_REPLAYED);
    /* A cluster that was recovered goes on with the key that it had then. */
    struct seal_key former = key(7, true);
    OK(seal_keys(b, &former, 1));
    OK(seal_keys(again, &former, 1));
    m = post(again, 2, "recovered");
    opens(b, &m, 1, "recovered");
    refused(b, &m, SEAL_REPLAYED);
    seal_close(a);
    seal_close(b);
    seal_close(evil);
    seal_close(again);
}

static void senders(void **state)
{
    (void)state;
    struct seal *b = node(2, 2000);
    struct mail m;
    for (uint8_t i = 10; i < 20; i++) { /* eight have room */
        struct seal *a = node(i, 1);
        m = post(a, 2, "x");
        if (i < 18) {
            opens(b, &m, i, "x");
        } else {
            refused(b, &m, SEAL_NO_ROOM);
        }
        seal_close(a);
    }
    struct swim_id gone = id_of(12);
    seal_forget(b, &gone);
    seal_forget(b, &gone);
    opens(b, &m, 19, "x");
    removed = 13;
    struct seal *a = node(13, 2);
    removed = 13;
    m = post(a, 2, "x");
    refused(b, &m, SEAL_STRANGER);
    seal_close(a);
    seal_close(b);
}

static void without_memory(void **state)
{
    (void)state;
    struct seal *a = node(1, 1000), *b = node(2, 1);
    for (long n = 0;; n++) {
        struct swim_id self = id_of(2);
        struct seal *s;
        fault_after(n, true);
        int rv = seal_open(&self, 1, known, NULL, 8, &s);
        if (!fault_end()) {
            OK(rv);
            seal_close(s);
            break;
        }
        FAILS(SYM_ENOMEM, rv);
    }
    for (long n = 0;; n++) {
        struct mail m = post(a, 2, "x");
        fault_after(n, true);
        enum seal_verdict v = seal_unwrap(b, m.data, m.n, true, &letter);
        if (!fault_end()) {
            assert_int_equal(v, SEAL_OK);
            break;
        }
        assert_int_equal(v, SEAL_NO_ROOM);
    }
    seal_close(a);
    seal_close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(to_and_fro),
        cmocka_unit_test(without_deriving),
        cmocka_unit_test(nothing_shows),
        cmocka_unit_test(damaged),
        cmocka_unit_test(replays),
        cmocka_unit_test(rotation),
        cmocka_unit_test(usurped),
        cmocka_unit_test(senders),
        cmocka_unit_test(without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
