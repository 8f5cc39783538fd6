/* One policy in its box: loading, what it can say, what it sees of the state, and what stops it. */
#include "sandbox_support.h"

static struct box_pool pool;

static struct box *load_with(const struct box_limits *lim, const char *source)
{
    struct box *box = NULL;
    OK(box_load(lim, &pool, "p", source, strlen(source), &box));
    return box;
}

/* What a load fails with. */
static const char *refused(const char *source)
{
    struct box *box = NULL;
    FAILS(SYM_EINVAL, box_load(&limits, &pool, "p", source, strlen(source), &box));
    assert_int_equal(pool.used, 0);
    return err_msg();
}

#define REFUSED(source, words) assert_non_null(strstr(refused(source), words))

static struct box_result result;
static struct reads reads;
static struct reads_fake fake;

/* The decision as JSON, or "failed: ...". */
static const char *ask(struct box *box, const char *hook, const char *input)
{
    static char text[8192];
    reads_clear(&reads);
    reads.fn = reads_from_json;
    reads.arg = &fake;
    if (box_call(box, hook, input, strlen(input), &reads, &result) != 0) {
        snprintf(text, sizeof text, "failed: %s", err_msg());
    } else {
        snprintf(
            text, sizeof text, "%.*s", (int)result.decision.len, (const char *)buf_data(&result.decision));
    }
    return text;
}

static int tidy(void **state)
{
    (void)state;
    reads_clear(&reads);
    buf_free(&result.decision);
    buf_free(&result.amended);
    fake = (struct reads_fake){0};
    return pool.used != 0;
}

/* What the hook admit.change with @body says to @input. */
static const char *says_with(const struct box_limits *lim, const char *body, const char *input)
{
    struct box *box = load_with(lim, policy(body));
    const char *text = ask(box, "admit.change", input);
    box_free(box);
    return text;
}

#define SAYS(body, input, expected) assert_string_equal(says_with(&limits, body, input), expected)
#define FAILS_WITH(body, words)                                                                              \
    do {                                                                                                     \
        const char *said = says_with(&limits, body, "{}");                                                   \
        if (strncmp(said, "failed: ", 8) != 0 || strstr(said, words) == NULL) {                              \
            fail_msg("%s: %s", body, said);                                                                  \
        }                                                                                                    \
    } while (0)

static void loads(void **state)
{
    (void)state;
    struct box *box = load_with(&limits,
        "local max = 3\n"
        "function helper(n) return n > max end\n"
        "return { summary = 'No more than three', order = 7, match = { ['admit.change'] = { kinds = {'kv'} } "
        "},\n"
        "  hooks = { ['every.30s'] = function() end, ['admit.change'] = function(c) if helper(c.n) then\n"
        "  return refuse('too many') end end }, selftest = { {}, {} } }");
    assert_int_equal(box_order(box), 7);
    assert_true(box_has_hook(box, "every.30s"));
    assert_false(box_has_hook(box, "admit.join"));
    const char *begin =
        "{\"summary\":\"No more than three\",\"order\":7,\"hooks\":[\"admit.change\",\"every.30s\"],"
        "\"match\":{\"admit.change\":{\"kinds\":[\"kv\"]}},\"memory\":";
    assert_memory_equal(box_about(box), begin, strlen(begin));
    assert_non_null(strstr(box_about(box), ",\"selftest\":2}"));
    print_message("a small policy takes %zu bytes\n", box_memory(box));
    assert_true(box_memory(box) < 200 << 10);
    assert_string_equal(ask(box, "admit.change", "{\"n\":4}"), "{\"refuse\":\"too many\"}");
    assert_string_equal(ask(box, "admit.change", "{\"n\":3}"), "");
    assert_string_equal(ask(box, "node.up", "{}"), "failed: it has no hook node.up");
    box_free(box);
}

static void what_does_not_load(void **state)
{
    (void)state;
    REFUSED("return {", "p:1:");
    REFUSED("\033Lua", "binary chunk");
    REFUSED("return 7", "return a table");
    REFUSED("return {}", "hooks");
    REFUSED("return { hooks = {} }", "no hooks");
    REFUSED("return { hooks = { admit = print } }", "there is no 'print'");
    REFUSED("return { hooks = { admit = tostring } }", "no hook admit;");
    REFUSED("return { hooks = { ['every.0s'] = tostring } }", "no hook every.0s;");
    REFUSED("return { hooks = { ['every.10'] = tostring } }", "no hook");
    REFUSED("return { hooks = { ['node.up'] = 1 } }", "is to be a function");
    REFUSED("return { hooks = { ['node.up'] = tostring }, order = 101 }", "order");
    REFUSED("return { hooks = { ['node.up'] = tostring }, order = '5' }", "order");
    REFUSED("return { hooks = { ['node.up'] = tostring }, summary = 5 }", "summary");
    REFUSED("return { hooks = { ['node.up'] = tostring }, summary = '\\xff' }", "UTF-8");
    REFUSED("return { hooks = { ['node.up'] = tostring }, macth = {} }", "macth");
    REFUSED("return { hooks = { ['node.up'] = tostring }, match = { ['node.down'] = {} } }",
        "match names a hook");
    REFUSED(
        "return { hooks = { ['node.up'] = tostring }, match = { ['node.up'] = { kind = {'a'} } } }", "kinds");
    REFUSED(
        "return { hooks = { ['node.up'] = tostring }, match = { ['node.up'] = { kinds = 'a' } } }", "list");
    REFUSED(
        "return { hooks = { ['node.up'] = tostring }, match = { ['node.up'] = { kinds = {} } } }", "list");
    REFUSED("while true do end", "300000 instructions");
    REFUSED("get('/kv/a')", "in a hook only");
    REFUSED("local t = {} for i = 1, 1e9 do t[i] = 'a' .. i end", "more than 4096 KiB of memory");
}

static void decisions(void **state)
{
    (void)state;
    SAYS("return allow()", "{}", "{\"allow\":true}");
    SAYS("return refuse('no \"' .. c.key)", "{\"key\":\"\\u00e4\"}", "{\"refuse\":\"no \\\"\xc3\xa4\"}");
    SAYS("return { refuse = 'why' }", "{}", "{\"refuse\":\"why\"}");
    SAYS("return {}", "{}", "");
    SAYS("return nil", "{}", "");
    FAILS_WITH("return 1", "returns a decision or nothing");
    FAILS_WITH("return { allow = true, refuse = 'x' }", "one field");
    FAILS_WITH("return { allow = false }", "allow");
    FAILS_WITH("return { refuse = '' }", "reason");
    FAILS_WITH("return { refuse = ('x'):rep(501) }", "reason");
    FAILS_WITH("return { refuse = '\\xff' }", "UTF-8");
    FAILS_WITH("return refuse()", "string expected");
    FAILS_WITH("return approve()", "'approve' is no decision of admit.change");
    FAILS_WITH("return choose{ 'a' }", "'choose' is no decision");
    FAILS_WITH("return { event('x') }", "'commands' is no decision");
    FAILS_WITH("return { [c] = 1 }", "one field");
    FAILS_WITH("error('broken')", "p:1: broken");
    FAILS_WITH("error({})", "an error that is a table");
    FAILS_WITH("return nosuch.thing", "there is no 'nosuch' in a policy");
    FAILS_WITH("x = 1", "'x' is not local");
    struct box *box =
        load_with(&limits, "return { hooks = { ['node.down'] = function(n) return { set_label(n.node, "
                           "'zone', 'b'), set_label(n.node, 'rack'), drain(n.node), activate('m'), "
                           "kv_put('a', 'b'), kv_rm('a'), "
                           "event('told') } end, ['place.disk'] = function(p) return choose(p.current) "
                           "end, ['node.up'] = function() return { { do_ = 'reboot' } } end } }");
    assert_string_equal(ask(box, "node.down", "{\"node\":\"n\"}"),
        "{\"commands\":[{\"do_\":\"label\",\"key\":\"zone\",\"node\":\"n\",\"value\":\"b\"},"
        "{\"do_\":\"label\",\"key\":\"rack\",\"node\":\"n\"},"
        "{\"do_\":\"availability\",\"node\":\"n\",\"value\":\"drain\"},"
        "{\"do_\":\"availability\",\"node\":\"m\",\"value\":\"active\"},"
        "{\"do_\":\"kv.put\",\"key\":\"a\",\"value\":\"b\"},{\"do_\":\"kv.rm\",\"key\":\"a\"},"
        "{\"do_\":\"event\",\"text\":\"told\"}]}");
    assert_string_equal(ask(box, "place.disk", "{\"current\":[\"x\",\"y\"]}"), "{\"choose\":[\"x\",\"y\"]}");
    assert_string_equal(ask(box, "place.disk", "{\"current\":[]}"), "{\"choose\":[]}");
    assert_string_equal(
        ask(box, "place.disk", "{\"current\":[1]}"), "failed: choose takes a list of node ids, best first");
    assert_string_equal(ask(box, "node.up", "{}"), "failed: there is no command 'reboot'");
    box_free(box);
}

static void amendments(void **state)
{
    (void)state;
    SAYS("return amend{ new = c.new .. '!' }", "{\"kind\":\"kv\",\"new\":\"a\"}",
        "{\"amend\":{\"new\":\"a!\"}}");
    assert_string_equal(says_with(&limits, "c.key = 'changed' return amend{ size = 2 }",
                            "{\"key\":\"k\",\"new\":{\"size\":1,\"tags\":[],\"o\":{}}}"),
        "{\"amend\":{\"size\":2}}");
    assert_int_equal(buf_append(&result.amended, "", 1), 0);
    assert_string_equal(
        (char *)buf_data(&result.amended), "{\"key\":\"k\",\"new\":{\"o\":{},\"size\":2,\"tags\":[]}}");
    FAILS_WITH("return amend{ new = 'x' }", "nothing to amend");
    assert_non_null(strstr(says_with(&limits, "return amend{ key = 'x' }", "{\"new\":\"a\"}"), "only new"));
    assert_non_null(strstr(says_with(&limits, "return amend{ new = 1 }", "{\"new\":\"a\"}"), "only new"));
    assert_non_null(
        strstr(says_with(&limits, "local t = {} t.t = t return amend{ new = t }", "{\"new\":{}}"), "cycle"));
    assert_non_null(
        strstr(says_with(&limits, "return amend{ f = print or error }", "{\"new\":{}}"), "print"));
    assert_non_null(
        strstr(says_with(&limits, "return amend{ f = error }", "{\"new\":{}}"), "a function is not plain"));
    assert_non_null(
        strstr(says_with(&limits, "return amend{ f = 2^53 * 4 // 1 | 0 }", "{\"new\":{}}"), "2^53"));
    assert_non_null(strstr(says_with(&limits, "return amend{ f = 1 / 0 }", "{\"new\":{}}"), "finite"));
    assert_non_null(
        strstr(says_with(&limits, "return amend{ f = { 1, nil, 3, n = 1 } }", "{\"new\":{}}"), "array"));
    assert_non_null(strstr(
        says_with(&limits, "local t = {} for i = 1, 5000 do t[i] = ('x'):rep(100) end return amend{ f = t }",
            "{\"new\":{}}"),
        "too large"));
}

static void the_state(void **state)
{
    (void)state;
    static const char json[] =
        "{\"/kv/a\":\"1\",\"/kv/b\":\"x\\u0000y\",\"/res/disk/1\":{\"size\":3},\"/secret/ca\":\"s\"}";
    fake = (struct reads_fake){(const uint8_t *)json, strlen(json)};
    struct buf out = {0};
    SAYS(
        "local items = list('/kv/') return refuse(get('/kv/a') .. tostring(get('/kv/z')) .. #get('/kv/b') .. "
        "get('/res/disk/1').size .. count('/res/') .. #items .. items[2].key .. items[1].value .. "
        "#list('/kv/', 1))",
        "{}", "{\"refuse\":\"1nil3312/kv/b11\"}");
    OK(reads_write(&reads, &out));
    OK(buf_append(&out, "", 1));
    assert_string_equal((char *)buf_data(&out),
        "[{\"prefix\":\"/kv/\",\"revision\":1,\"count\":2},{\"key\":\"/kv/a\",\"revision\":1},"
        "{\"key\":\"/kv/z\",\"revision\":0},{\"key\":\"/kv/b\",\"revision\":1},{\"key\":\"/res/disk/"
        "1\",\"revision\":1},"
        "{\"prefix\":\"/res/\",\"revision\":1,\"count\":1}]");
    buf_free(&out);
    FAILS_WITH("return get('/secret/ca')", "not '/secret/ca'");
    FAILS_WITH("return list('/')", "not '/'");
    FAILS_WITH("return list('/kv')", "not '/kv'");
    FAILS_WITH("return get('/kv/\\xff')", "");
    FAILS_WITH("for i = 1, 65 do get('/kv/a') end", "at most 64 reads");
    FAILS_WITH("for i = 1, 33 do count('/kv/') end", "at most 64 reads");
    SAYS("for i = 1, 64 do get('/kv/a') end", "{}", "");
}

static void selftests(void **state)
{
    (void)state;
    struct buf out = {0};
    struct box *box = load_with(&limits,
        "return { hooks = { ['admit.change'] = function(c)\n"
        "  if get('/kv/limit') == c.new then return refuse('at the limit') end\n"
        "  if c.new == 'hang' then while true do end end\n"
        "  if c.new == 'bad' then error('oh') end\n"
        "  if c.new == 'more' then return amend{ new = 'less' } end end },\n"
        "selftest = {\n"
        "  { name = 'refuses', hook = 'admit.change', input = { new = '3' }, state = { ['/kv/limit'] = '3' "
        "}, expect = { refuse = true } },\n"
        "  { name = 'says why', hook = 'admit.change', input = { new = '3' }, state = { ['/kv/limit'] = '3' "
        "}, expect = { refuse = 'at the limit' } },\n"
        "  { name = 'other reason', hook = 'admit.change', input = { new = '3' }, state = { ['/kv/limit'] = "
        "'3' }, expect = { refuse = 'x' } },\n"
        "  { hook = 'admit.change', input = { new = '2' }, expect = {} },\n"
        "  { name = 'amends', hook = 'admit.change', input = { new = 'more' }, expect = { amend = { new = "
        "'less' } } },\n"
        "  { name = 'not nothing', hook = 'admit.change', input = { new = 'more' }, expect = {} },\n"
        "  { name = 'fails', hook = 'admit.change', input = { new = 'bad' }, expect = {} },\n"
        "  { name = 'hangs', hook = 'admit.change', input = { new = 'hang' }, expect = {} },\n"
        "  { name = 'after', hook = 'admit.change', input = { new = '2' } },\n"
        "  { name = 'no hook', hook = 'node.up', input = { new = '2' } },\n"
        "} }");
    OK(box_test(box, NULL, 0, &out));
    OK(buf_append(&out, "", 1));
    assert_string_equal((char *)buf_data(&out),
        "[{\"name\":\"refuses\",\"ok\":true,\"got\":{\"refuse\":\"at the "
        "limit\"},\"want\":{\"refuse\":true}},"
        "{\"name\":\"says why\",\"ok\":true,\"got\":{\"refuse\":\"at the limit\"},\"want\":{\"refuse\":\"at "
        "the limit\"}},"
        "{\"name\":\"other reason\",\"ok\":false,\"got\":{\"refuse\":\"at the "
        "limit\"},\"want\":{\"refuse\":\"x\"}},"
        "{\"name\":\"case 4\",\"ok\":true,\"got\":null,\"want\":{}},"
        "{\"name\":\"amends\",\"ok\":true,\"got\":{\"amend\":{\"new\":\"less\"}},\"want\":{\"amend\":{"
        "\"new\":\"less\"}}},"
        "{\"name\":\"not nothing\",\"ok\":false,\"got\":{\"amend\":{\"new\":\"less\"}},\"want\":{}},"
        "{\"name\":\"fails\",\"ok\":false,\"got\":null,\"want\":{},\"error\":\"p:4: oh\"},"
        "{\"name\":\"hangs\",\"ok\":false,\"got\":null,\"want\":{},\"error\":\"it did not come to an end "
        "within 300000 "
        "instructions\"},"
        "{\"name\":\"after\",\"ok\":true,\"got\":null,\"want\":{}},"
        "{\"name\":\"no hook\",\"ok\":false,\"got\":null,\"want\":{},\"error\":\"it has no hook node.up\"}]");
    buf_clear(&out);
    static const char cases[] =
        "[{\"hook\":\"admit.change\",\"input\":{\"new\":\"more\"},\"expect\":{\"amend\":{\"new\":\"x\"}}}]";
    OK(box_test(box, cases, strlen(cases), &out));
    OK(buf_append(&out, "", 1));
    assert_string_equal((char *)buf_data(&out),
        "[{\"name\":\"case 1\",\"ok\":false,\"got\":{\"amend\":{\"new\":\"less\"}},"
        "\"want\":{\"amend\":{\"new\":\"x\"}}}]");
    buf_clear(&out);
    OK(box_test(box, "7", 1, &out));
    OK(box_test(box, "]", 1, &out));
    buf_free(&out);
    box_free(box);
}

/* A box whose budget ran out works again. */
static void budget(void **state)
{
    (void)state;
    struct box *box = load_with(&limits, policy("if c.hang then while true do end end return allow()"));
    for (int i = 0; i < 3; i++) {
        assert_non_null(
            strstr(ask(box, "admit.change", "{\"hang\":true}"), "did not come to an end within 300000"));
        assert_string_equal(ask(box, "admit.change", "{}"), "{\"allow\":true}");
    }
    box_free(box);
    static const char *const loops[] = {"while true do end", "pcall(function() while true do end end)",
        "while true do pcall(function() while true do end end) end",
        "coroutine.wrap(function() while true do end end)()",
        "local co = coroutine.create(function() while true do end end) while true do coroutine.resume(co) "
        "end",
        "return #setmetatable({}, { __len = function() while true do end end })",
        "xpcall(function() while true do end end, function() while true do end end)",
        "string.gsub(('x'):rep(100), '.', function() while true do end end)",
        "local t = setmetatable({}, { __close = function() while true do end end }) do local x <close> = t "
        "end",
        "local s = 'x' while true do s = (s .. s):sub(1, 100000) end",
        "local function f() return f() end f()"};
    for (size_t i = 0; i < sizeof loops / sizeof *loops; i++) {
        const char *said = says_with(&full_limits, loops[i], "{}");
        if (strstr(said, "instructions") == NULL) {
            fail_msg("%s: %s", loops[i], said);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(loads, tidy),
        cmocka_unit_test_teardown(what_does_not_load, tidy),
        cmocka_unit_test_teardown(decisions, tidy),
        cmocka_unit_test_teardown(amendments, tidy),
        cmocka_unit_test_teardown(the_state, tidy),
        cmocka_unit_test_teardown(selftests, tidy),
        cmocka_unit_test_teardown(budget, tidy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
