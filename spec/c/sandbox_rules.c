/* What policies want to hear of, as they say it themselves; and what is made of their word on a change of a key. */
#include "sandbox_support.h"

#include "sandbox/glob.h"
#include "sandbox/kv_admit.h"
#include "sandbox/rules.h"

static void globs(void **state)
{
    (void)state;
    static const struct {
        const char *glob, *text;
        bool fits;
    } cases[] = {{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "a/b", true}, {"a*", "a", true},
        {"a*b", "ab", true}, {"a*b", "acbcb", true}, {"a*b", "acbc", false}, {"?", "", false},
        {"?", "a", true}, {"?*", "", false}, {"a?c", "abc", true}, {"a?c", "ac", false},
        {"*a*b*", "xxaxxbxx", true}, {"*a*b*", "xxbxxaxx", false}, {"**", "x", true}, {"a", "b", false},
        {"team/*/x", "team/a/b/x", true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (glob_match(cases[i].glob, strlen(cases[i].glob), cases[i].text, strlen(cases[i].text)) !=
            cases[i].fits) {
            fail_msg("%s %s", cases[i].glob, cases[i].text);
        }
    }
}

/* As it is said in words. */
static bool fits_by_definition(const char *glob, size_t n_glob, const char *text, size_t n_text)
{
    if (n_glob == 0) {
        return n_text == 0;
    }
    if (*glob == '*') {
        return fits_by_definition(glob + 1, n_glob - 1, text, n_text) ||
               (n_text > 0 && fits_by_definition(glob, n_glob, text + 1, n_text - 1));
    }
    return n_text > 0 && (*glob == '?' || *glob == *text) &&
           fits_by_definition(glob + 1, n_glob - 1, text + 1, n_text - 1);
}

/* The @number-th text of @n of these. */
static void spell(char *out, size_t n, const char *letters, size_t number)
{
    size_t base = strlen(letters);
    for (size_t i = 0; i < n; i++, number /= base) {
        out[i] = letters[number % base];
    }
    out[n] = '\0';
}

static void every_short_glob(void **state)
{
    (void)state;
    char glob[8], text[8];
    for (size_t n = 0, globs = 1; n <= 5; n++, globs *= 4) {
        for (size_t g = 0; g < globs; g++) {
            spell(glob, n, "ab*?", g);
            for (size_t m = 0, texts = 1; m <= 6; m++, texts *= 2) {
                for (size_t t = 0; t < texts; t++) {
                    spell(text, m, "ab", t);
                    if (glob_match(glob, n, text, m) != fits_by_definition(glob, n, text, m)) {
                        fail_msg("%s %s", glob, text);
                    }
                }
            }
        }
    }
}

/* A star, and then some of @piece, and then @end: @n bytes and a NUL. */
static void make_glob(char *out, size_t n, const char *piece, const char *end)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = piece[i % strlen(piece)];
    }
    out[0] = '*';
    memcpy(out + n - strlen(end), end, strlen(end) + 1);
}

static void long_globs(void **state)
{
    (void)state;
    char glob[GLOB_MAX + 2], text[2 * GLOB_MAX];
    for (size_t n = 60; n <= GLOB_MAX; n += n < 200 ? 1 : 103) {
        size_t m = n - 1 + 70;
        memset(text, 'a', m);
        text[m - 1] = 'b';
        make_glob(glob, n, "a", "b");
        assert_true(glob_match(glob, n, text, m));
        assert_true(glob_match(glob, n, text + 70, m - 70));
        assert_false(glob_match(glob, n, text + 71, m - 71));
        make_glob(glob, n, "?", "b");
        assert_true(glob_match(glob, n, text + 70, m - 70));
        assert_false(glob_match(glob, n, text, m - 1));
        make_glob(glob, n, "a*", "cb");
        assert_false(glob_match(glob, n, text, m));
        make_glob(glob, n, "*", "ab*");
        assert_true(glob_match(glob, n, text, m));
    }
    make_glob(glob, GLOB_MAX + 1, "*", "*");
    assert_false(glob_match(glob, GLOB_MAX + 1, text, 1));
    memset(glob, 'a', sizeof glob);
    memset(text, 'a', sizeof text);
    assert_true(glob_match(glob, sizeof glob, text, sizeof glob));
}

/* All the globs that policies may have, each as bad as it can be, and the longest of keys: so many steps are made in
 * well below five milliseconds. */
static void the_worst_globs(void **state)
{
    (void)state;
    enum { POLICIES = 64, KEY = 1024 };
    static const char *const pieces[] = {"a", "*a", "a*", "?", "*?", "?*a", "aa*", "*"};
    char glob[RULES_GLOB_MAX + 1], key[KEY];
    uint64_t worst = 0;
    memset(key, 'a', KEY);
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        for (size_t j = 0; j < 4; j++) {
            uint64_t steps = 0;
            make_glob(glob, RULES_GLOB_MAX, pieces[i], j & 1 ? "ab" : "b*a");
            glob[0] = j & 2 ? '?' : '*';
            (void)glob_match_counted(glob, RULES_GLOB_MAX, key, KEY, &steps);
            worst = steps > worst ? steps : worst;
        }
    }
    assert_in_range(worst, KEY - RULES_GLOB_MAX, KEY);
    assert_in_range(worst * POLICIES * RULES_GLOBS_MAX, 0, 1 << 20);
}

static void how_many_globs(void **state)
{
    (void)state;
    struct rules r = {.n = 0};
    char glob[RULES_GLOB_MAX + 2];
    make_glob(glob, RULES_GLOB_MAX, "a", "");
    for (int i = 0; i < RULES_GLOBS_MAX; i++) {
        OK(rules_add(&r, "admit.change", RULES_KEY, glob));
    }
    assert_int_equal(rules_add(&r, "admit.change", RULES_KEY, "a"), SYM_ETOOBIG);
    OK(rules_add(&r, "admit.change", RULES_KIND, "a"));
    OK(rules_add(&r, "admit.join", RULES_KEY, "a"));
    make_glob(glob, RULES_GLOB_MAX + 1, "a", "");
    assert_int_equal(rules_add(&r, "node.up", RULES_KEY, glob), SYM_ETOOBIG);
    rules_free(&r);
}

static void hooks(void **state)
{
    (void)state;
    static const char *const known[] = {"admit.join", "admit.change", "node.down", "node.up", "leader.change",
        "place.block", "place.a-1", "place.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "every.1s", "every.90m",
        "every.366d"};
    static const char *const unknown[] = {"", "admit", "admit.", "admit.Join", "node.dawn", "place", "place.",
        "place.Foo", "place.fOo", "place.1a", "place.-a", "place.a_b", "place.a.b", "place.a ",
        "place.\xc3\xa4", "place.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "every", "every.", "every.0s",
        "every.10", "every.s", "every.1w", "every.1ss", "every.-1s", "every.+1s", "every. 1s", "every.1.5s",
        "every.367d", "every.9999999999s"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (!rules_hook_known(known[i])) {
            fail_msg("%s", known[i]);
        }
    }
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        if (rules_hook_known(unknown[i])) {
            fail_msg("%s", unknown[i]);
        }
    }
    assert_int_equal(rules_period("every.90m"), 5400);
    assert_int_equal(rules_period("every.366d"), 366 * 86400);
    assert_int_equal(rules_period("place.a"), 0);
}

/* The rules of a policy that says @about of itself. */
static struct rules read_rules(const char *about)
{
    struct rules r = {.n = 0};
    OK(rules_read(&r, about, strlen(about)));
    return r;
}

static bool fits(
    const struct rules *r, const char *hook, const char *kind, const char *key, const char *action)
{
    const char *const values[RULES_FIELDS] = {kind, key, action, NULL, NULL};
    return rules_fit(r, hook, values);
}

static void what_they_want_to_hear_of(void **state)
{
    (void)state;
    struct rules r = read_rules(
        "{\"summary\":\"s\",\"order\":50,\"hooks\":[\"admit.change\",\"node.up\"],\"match\":{\"admit."
        "change\":"
        "{\"kinds\":[\"kv\",\"disk\"],\"keys\":[\"a/*\",\"\\u0062\"]}},\"memory\":1,\"selftest\":0}");
    assert_true(fits(&r, "admit.change", "kv", "a/x", "put"));
    assert_true(fits(&r, "admit.change", "disk", "b", NULL));
    assert_false(fits(&r, "admit.change", "node", "b", NULL));
    assert_false(fits(&r, "admit.change", "kv", "c", NULL));
    assert_false(fits(&r, "admit.change", "kv", NULL, NULL));
    assert_true(fits(&r, "node.up", NULL, NULL, NULL));
    assert_false(fits(&r, "node.down", "kv", "a/x", NULL));
    rules_free(&r);
    r = read_rules("{\"hooks\":[\"admit.change\"],\"match\":{}}");
    assert_true(fits(&r, "admit.change", NULL, NULL, NULL));
    rules_free(&r);
    static const char *const wrong[] = {"", "7", "[]", "{", "{\"hooks\":7}", "{\"hooks\":[7]}",
        "{\"hooks\":[\"a\"],\"match\":7}x", "{\"match\":{\"a\":7}}", "{\"match\":{\"a\":{\"kinds\":7}}}",
        "{\"match\":{\"a\":{\"kinds\":[7]}}}", "{\"match\":{\"a\":{\"other\":[]}}}", "{\"hooks\":[\"a\""};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        r = (struct rules){.n = 0};
        int rv = rules_read(&r, wrong[i], strlen(wrong[i]));
        rules_free(&r);
        if (rv != SYM_EINVAL) {
            fail_msg("%s", wrong[i]);
        }
    }
}

/* --- changes of keys --- */

static const char *input(const struct kv_change *change)
{
    static struct buf out;
    buf_clear(&out);
    OK(kv_admit_input(change, &out));
    OK(buf_append(&out, "", 1));
    return (const char *)buf_data(&out);
}

static struct slice bytes(const char *text)
{
    return (struct slice){(const uint8_t *)text, strlen(text)};
}

static void what_they_are_asked(void **state)
{
    (void)state;
    struct buf out = {0};
    struct kv old = {.value = bytes("1"), .mod_revision = 9};
    struct kv_change change = {
        .put = true, .key = bytes("a\"b"), .value = bytes("2"), .who_kind = "control", .who_name = "m"};
    assert_string_equal(input(&change),
        "{\"kind\":\"kv\",\"action\":\"put\",\"key\":\"a\\\"b\",\"new\":\"2\","
        "\"who\":{\"kind\":\"control\",\"name\":\"m\"}}");
    change.old = &old;
    change.put = false;
    change.who_role = "operator";
    assert_string_equal(input(&change),
        "{\"kind\":\"kv\",\"action\":\"delete\",\"key\":\"a\\\"b\",\"old\":\"1\","
        "\"old_revision\":9,\"who\":{\"kind\":\"control\",\"name\":\"m\",\"role\":\"operator\"}}");
    old.value = bytes("\xff");
    assert_int_equal(kv_admit_input(&change, &out), 1);
    change.old = NULL;
    change.key = bytes("\xff");
    assert_int_equal(kv_admit_input(&change, &out), 1);
    change.key = bytes("a");
    change.put = true;
    change.value = bytes("\xc3");
    assert_int_equal(kv_admit_input(&change, &out), 1);
    buf_free(&out);
}

static char names[256];

static void heard(void *arg, const char *name, size_t n)
{
    (void)arg;
    snprintf(names + strlen(names), sizeof names - strlen(names), "%.*s ", (int)n, name);
}

static void a_yes(void **state)
{
    (void)state;
    struct kv_admitted a;
    static const char json[] =
        "{\"decision\":{\"allow\":true,\"policy\":\"p\"},\"amended\":null,\"trace\":[{\"policy\":\"p\","
        "\"said\":\"allow\","
        "\"us\":1,\"instructions\":2,\"decision\":{\"allow\":true}},{\"policy\":\"q\",\"said\":\"nothing\"}],"
        "\"reads\":"
        "[{\"key\":\"/kv/\\u0061\",\"revision\":7},{\"prefix\":\"/res/disk/\",\"revision\":5,\"count\":2},"
        "{\"key\":\"/kv/none\",\"revision\":0}]}";
    assert_int_equal(kv_admit_result(json, strlen(json), &a, heard, NULL), 0);
    assert_string_equal(names, "p q ");
    assert_int_equal(a.n, 4);
    static const struct {
        int kind;
        const char *key;
        uint64_t number;
    } want[] = {{CMP_MOD_REVISION, "/kv/a", 7}, {CMP_PREFIX_REVISION, "/res/disk/", 5},
        {CMP_PREFIX_COUNT, "/res/disk/", 2}, {CMP_ABSENT, "/kv/none", 0}};
    for (size_t i = 0; i < a.n; i++) {
        assert_int_equal(a.cmps[i].kind, want[i].kind);
        assert_int_equal(a.cmps[i].number, want[i].number);
        assert_int_equal(a.cmps[i].key.n, strlen(want[i].key));
        assert_memory_equal(a.cmps[i].key.p, want[i].key, a.cmps[i].key.n);
    }
    kv_admitted_free(&a);
    static const char nothing[] = "{\"decision\":null,\"amended\":null,\"trace\":[],\"reads\":[]}";
    assert_int_equal(kv_admit_result(nothing, strlen(nothing), &a, NULL, NULL), 0);
    assert_int_equal(a.n, 0);
    kv_admitted_free(&a);
}

/* Everything that is not a yes, or cannot be understood, is for Lua. */
static void no_yes(void **state)
{
    (void)state;
    static const char *const results[] = {"", "{}", "null",
        "{\"decision\":null,\"amended\":null,\"trace\":[]}",
        "{\"decision\":{\"refuse\":\"x\",\"policy\":\"p\"},\"amended\":null,\"trace\":[],\"reads\":[]}",
        "{\"decision\":{\"allow\":false},\"amended\":null,\"trace\":[],\"reads\":[]}",
        "{\"decision\":{\"allow\":true,\"refuse\":\"x\"},\"amended\":null,\"trace\":[],\"reads\":[]}",
        "{\"decision\":{\"approve\":true},\"amended\":null,\"trace\":[],\"reads\":[]}",
        "{\"decision\":true,\"amended\":null,\"trace\":[],\"reads\":[]}",
        "{\"decision\":null,\"amended\":{\"new\":\"x\"},\"trace\":[],\"reads\":[]}",
        "{\"decision\":null,\"amended\":null,\"trace\":null,\"reads\":[]}",
        "{\"decision\":null,\"amended\":null,\"trace\":[],\"reads\":{}}",
        "{\"decision\":null,\"amended\":null,\"trace\":[],\"reads\":[7]}",
        "{\"decision\":null,\"amended\":null,\"trace\":[],\"reads\":[{}]}",
        "{\"decision\":null,\"amended\":null,\"trace\":[],\"reads\":[{\"key\":\"/kv/a\"}]}",
        "{\"decision\":null,\"amended\":null,\"trace\":[],\"reads\":[{\"key\":\"/secret/"
        "ca\",\"revision\":1}]}",
        "{\"decision\":null,\"amended\":null,\"trace\":[],\"reads\":[{\"key\":\"/kv/a\",\"revision\":-1}]}",
        "{\"decision\":null,\"amended\":null,\"trace\":[],\"reads\":[{\"key\":\"/kv/"
        "a\",\"revision\":1,\"count\":1}]}",
        "{\"decision\":null,\"amended\":null,\"trace\":[],\"reads\":[{\"prefix\":\"/kv/a\",\"revision\":1}]}",
        "{\"decision\":null,\"amended\":null,\"trace\":[],\"reads\":[{\"key\":\"/kv/a\",\"prefix\":\"/kv/"
        "\",\"revision\":1}]}",
        "{\"decision\":null,\"amended\":null,\"trace\":[],\"reads\":[]}x",
        "{\"decision\":null,\"amended\":null,\"trace\":[],\"reads\":[],\"more\":1}"};
    for (size_t i = 0; i < sizeof results / sizeof *results; i++) {
        struct kv_admitted a;
        if (kv_admit_result(results[i], strlen(results[i]), &a, NULL, NULL) != 1) {
            fail_msg("%s", results[i]);
        }
        kv_admitted_free(&a);
    }
    /* More than a call may read. */
    struct buf many = {0};
    struct kv_admitted a;
    OK(buf_appendf(&many, "{\"decision\":null,\"amended\":null,\"trace\":[],\"reads\":["));
    for (int i = 0; i < 2 * READS_MAX; i++) {
        OK(buf_appendf(&many, "%s{\"prefix\":\"/kv/%d\",\"revision\":1,\"count\":1}", i > 0 ? "," : "", i));
    }
    OK(buf_appendf(&many, "]}"));
    assert_int_equal(kv_admit_result((const char *)buf_data(&many), many.len, &a, NULL, NULL), 1);
    kv_admitted_free(&a);
    buf_free(&many);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(globs),
        cmocka_unit_test(every_short_glob),
        cmocka_unit_test(long_globs),
        cmocka_unit_test(the_worst_globs),
        cmocka_unit_test(how_many_globs),
        cmocka_unit_test(hooks),
        cmocka_unit_test(what_they_want_to_hear_of),
        cmocka_unit_test(what_they_are_asked),
        cmocka_unit_test(a_yes),
        cmocka_unit_test(no_yes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
