/* Keys of all lengths in the order of their bytes, against a sorted array: LMDB's own keys end at 511 bytes,
 * ours at 1024, and nobody must see the seam. Keys are made so that many share long beginnings and end near
 * the seams. */
#include "store_support.h"

struct item {
    uint8_t key[KEY_MAX];
    size_t n;
    uint64_t create, mod;
    uint32_t value; /* the value is this number, written out, and as many bytes as it says */
};

static struct {
    struct item *items; /* in order */
    size_t n;
} model;

static int order(const uint8_t *a, size_t a_n, const uint8_t *b, size_t b_n)
{
    int d = memcmp(a, b, a_n < b_n ? a_n : b_n);
    return d != 0 ? d : (a_n > b_n) - (a_n < b_n);
}

/* The place of the first item at or above the key. */
static size_t place(const uint8_t *key, size_t n)
{
    size_t low = 0, high = model.n;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (order(model.items[middle].key, model.items[middle].n, key, n) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static bool is_at(size_t i, const uint8_t *key, size_t n)
{
    return i < model.n && order(model.items[i].key, model.items[i].n, key, n) == 0;
}

static void model_put(const uint8_t *key, size_t n, uint32_t value, uint64_t revision)
{
    size_t i = place(key, n);
    if (!is_at(i, key, n)) {
        model.items = realloc(model.items, (model.n + 1) * sizeof *model.items);
        assert_non_null(model.items);
        memmove(model.items + i + 1, model.items + i, (model.n - i) * sizeof *model.items);
        model.n++;
        memcpy(model.items[i].key, key, n);
        model.items[i].n = n;
        model.items[i].create = revision;
    }
    model.items[i].mod = revision;
    model.items[i].value = value;
}

static bool model_del(const uint8_t *key, size_t n)
{
    size_t i = place(key, n);
    if (!is_at(i, key, n)) {
        return false;
    }
    model.n--;
    memmove(model.items + i, model.items + i + 1, (model.n - i) * sizeof *model.items);
    return true;
}

/* Lengths around every seam: 511, then 503 more, then 10. */
static size_t some_length(void)
{
    static const size_t seams[] = {1, 8, 510, 511, 512, 513, 519, 700, 1013, 1014, 1015, 1023, 1024};
    return rnd(3) == 0 ? 1 + rnd(KEY_MAX) : seams[rnd(sizeof seams / sizeof *seams)];
}

static size_t some_key(uint8_t *key)
{
    static const size_t changes[] = {0, 1, 100, 509, 510, 511, 512, 600, 1012, 1013, 1014, 1015, 1023};
    size_t n = some_length();
    memset(key, 'm', KEY_MAX);
    for (uint64_t k = rnd(4); k > 0; k--) {
        static const uint8_t bytes[] = {0, 1, 'l', 'n', 0xff};
        key[changes[rnd(sizeof changes / sizeof *changes)]] = bytes[rnd(sizeof bytes)];
    }
    if (rnd(10) == 0 && model.n > 0) { /* one that is there */
        const struct item *item = &model.items[rnd(model.n)];
        memcpy(key, item->key, item->n);
        n = item->n;
    }
    return n;
}

static size_t value_of(uint32_t number, uint8_t *to)
{
    size_t n = number % 3000;
    memset(to, (int)(number & 0xff), n);
    return n;
}

static void assert_kv(const struct item *item, const struct kv *kv)
{
    uint8_t value[3000];
    size_t n = value_of(item->value, value);
    assert_int_equal(kv->key.n, item->n);
    assert_memory_equal(kv->key.p, item->key, item->n);
    assert_int_equal(kv->create_revision, item->create);
    assert_int_equal(kv->mod_revision, item->mod);
    assert_int_equal(kv->value.n, n);
    if (n > 0) {
        assert_memory_equal(kv->value.p, value, n);
    }
}

struct listing {
    size_t at, n, limit;
};

static int listed(void *arg, const struct kv *kv)
{
    struct listing *l = arg;
    assert_true(l->at < model.n);
    assert_kv(&model.items[l->at], kv);
    l->at++;
    return ++l->n == l->limit ? 7 : 0;
}

static void check_list(struct store *s)
{
    uint8_t prefix[KEY_MAX], after[KEY_MAX + 600];
    size_t prefix_n = some_key(prefix);
    prefix_n = rnd(4) == 0 ? 0 : prefix_n - rnd(prefix_n);
    size_t after_n = some_key(after);
    bool has_after = rnd(2) == 0;
    if (rnd(20) == 0) { /* longer than any key may be */
        memset(after + after_n, after[0], 600);
        after_n += 600;
    }
    size_t first = place(prefix, prefix_n);
    if (has_after) {
        size_t from = place(after, after_n);
        from += is_at(from, after, after_n);
        first = from > first ? from : first;
    }
    size_t end = first;
    while (end < model.n && model.items[end].n >= prefix_n &&
           (prefix_n == 0 || memcmp(model.items[end].key, prefix, prefix_n) == 0)) {
        end++;
    }
    struct listing l = {.at = first, .limit = rnd(2) == 0 ? 1 + rnd(10) : SIZE_MAX};
    size_t expected = end - first < l.limit ? end - first : l.limit;
    struct slice p = {prefix, prefix_n}, a = {after, after_n};
    int rv = store_list(s, p, has_after ? &a : NULL, listed, &l);
    if (l.n != expected || rv != (expected == l.limit ? 7 : 0)) {
        fail_msg("%zu keys listed (%d), not %zu, below a prefix of %zu bytes, after %zu", l.n, rv, expected,
            prefix_n, has_after ? after_n : 0);
    }
}

static void check_get(struct store *s)
{
    uint8_t key[KEY_MAX];
    struct kv kv;
    size_t n = some_key(key), i = place(key, n);
    if (is_at(i, key, n)) {
        OK(store_get(s, key, n, &kv));
        assert_kv(&model.items[i], &kv);
    } else {
        assert_int_equal(store_get(s, key, n, &kv), SYM_ENOTFOUND);
    }
}

/* Compares of a prefix see the same keys. */
static void add_prefix_compares(struct txn *t, uint8_t *prefix, size_t n)
{
    uint64_t count = 0, newest = 0;
    for (size_t i = place(prefix, n); i < model.n; i++) {
        if (model.items[i].n < n || (n > 0 && memcmp(model.items[i].key, prefix, n) != 0)) {
            break;
        }
        count++;
        newest = model.items[i].mod > newest ? model.items[i].mod : newest;
    }
    t->cmps[0] = (struct txn_cmp){.kind = CMP_PREFIX_COUNT, .key = {prefix, n}, .number = count};
    t->cmps[1] = (struct txn_cmp){.kind = CMP_PREFIX_REVISION, .key = {prefix, n}, .number = newest};
    t->n_cmps = 2;
}

static void run(void **state, uint64_t seed, unsigned rounds, bool write_map)
{
    struct store_config cfg = {
        .dir = in_folder(state, "state"), .quota = 64 << 20, .ring_bytes = 1 << 20, .write_map = write_map};
    struct store *s = open_store(&cfg);
    struct txn *t = calloc(1, sizeof *t);
    struct packer p = {0};
    uint8_t(*keys)[KEY_MAX] = calloc(TXN_OPS_MAX, sizeof *keys);
    uint8_t(*values)[3000] = calloc(TXN_OPS_MAX, sizeof *values);
    uint8_t prefix[KEY_MAX];
    rnd_state = seed;
    for (unsigned round = 0; round < rounds; round++) {
        /* Grows, and is emptied now and then, so that nodes come and go. */
        bool shrinking = round % 64 >= 48;
        packer_begin(&p);
        add_prefix_compares(t, prefix, rnd(2) == 0 ? 0 : some_key(prefix));
        t->n_ops = (unsigned)rnd(40) + 1;
        uint64_t revision = store_revision(s) + 1;
        bool changed = false;
        for (unsigned i = 0; i < t->n_ops; i++) {
            t->ops[i] = (struct txn_op){.key = {keys[i], some_key(keys[i])}};
            if (shrinking && model.n > 0 && rnd(4) > 0) {
                const struct item *item = &model.items[rnd(model.n)];
                memcpy(keys[i], item->key, item->n);
                t->ops[i].key.n = item->n;
            }
            if (rnd(4) == 0 || shrinking) {
                t->ops[i].kind = OP_DELETE;
                changed |= model_del(keys[i], t->ops[i].key.n);
            } else {
                uint32_t number = (uint32_t)rnd(rnd(4) == 0 ? 3000 : 50);
                t->ops[i].kind = OP_PUT;
                t->ops[i].value = (struct slice){values[i], value_of(number, values[i])};
                model_put(keys[i], t->ops[i].key.n, number, revision);
                changed = true;
            }
        }
        struct txn_result r = apply_one(s, t);
        if (r.status != TXN_APPLIED) {
            fail_msg(
                "seed %llu, round %u: compare %u did not hold", (unsigned long long)seed, round, r.failed);
        }
        assert_int_equal(r.revision, revision - !changed);
        assert_int_equal(store_keys(s), model.n);
        for (int i = 0; i < 4; i++) {
            check_get(s);
            check_list(s);
        }
        if (rnd(40) == 0) {
            store_close(s);
            s = open_store(&cfg);
        }
    }
    /* To the last key: the count of records says whether a node was left behind. */
    while (model.n > 0) {
        t->n_cmps = 0;
        for (t->n_ops = 0; t->n_ops < TXN_OPS_MAX && model.n > 0; t->n_ops++) {
            const struct item *item = &model.items[rnd(model.n)];
            memcpy(keys[t->n_ops], item->key, item->n);
            t->ops[t->n_ops] = (struct txn_op){.kind = OP_DELETE, .key = {keys[t->n_ops], item->n}};
            model_del(keys[t->n_ops], item->n);
        }
        apply_one(s, t);
    }
    assert_int_equal(store_keys(s), 0);
    struct listing none = {0};
    OK(store_list(s, str(""), NULL, listed, &none));
    store_close(s);
    shell("rm -rf '%s'", cfg.dir);
    packer_free(&p);
    free(keys);
    free(values);
    free(t);
    free(model.items);
    model.items = NULL;
}

static void random_keys(void **state)
{
    for (uint64_t seed = 1; seed <= 2; seed++) {
        run(state, seed * 7919, 160, seed % 2 == 0);
    }
}

static void refused(void **state)
{
    struct store_config cfg = {.dir = in_folder(state, "state"), .quota = 1 << 20};
    struct store *s = open_store(&cfg);
    uint8_t key[KEY_MAX + 1] = {0};
    struct kv kv;
    FAILS(SYM_EINVAL, store_get(s, key, 0, &kv));
    FAILS(SYM_EINVAL, store_get(s, key, sizeof key, &kv));
    FAILS(SYM_ENOTFOUND, store_get(s, key, KEY_MAX, &kv));
    store_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(random_keys, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(refused, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
