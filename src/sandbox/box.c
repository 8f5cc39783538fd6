#include "sandbox/box.h"

#include "base/err.h"
#include "codec/json.h"
#include "sandbox/arena.h"
#include "sandbox/env.h"
#include "sandbox/json_read.h"
#include "sandbox/plain.h"

#include <ctype.h>
#include <lauxlib.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUMMARY_MAX = 200,
    CASES_MAX = 64,
    PERIOD = 100,    /* instructions between two looks at the budget */
    ALLOC_SHIFT = 6, /* 64 bytes of memory asked for count as one instruction */
    ABOUT_MAX = 64 << 10
};

struct box {
    LIST_ENTRY(box) link;
    struct box_limits limits;
    struct box_pool *pool;
    struct arena arena;
    lua_State *L; /* NULL: dropped when the budget ran out, or for the memory of another */
    jmp_buf stopped;
    bool armed; /* under way, and to be stopped when the budget is used up */
    uint64_t steps;
    struct reads *reads; /* of the call under way */
    struct reads no_reads;
    char name[BOX_NAME_MAX + 1];
    char *source;
    size_t n_source;
    int order;
    struct rules rules;
    struct buf about;
};

/* Registry keys. */
static const char hooks_key, cases_key;

struct box *box_of(lua_State *L)
{
    return *(struct box **)lua_getextraspace(L);
}

struct reads *box_reads(lua_State *L)
{
    struct box *box = box_of(L);
    return box->reads != NULL ? box->reads : &box->no_reads;
}

lua_State *box_state(struct box *box)
{
    return box->L;
}

const char *box_name(const struct box *box)
{
    return box->name;
}

int box_order(const struct box *box)
{
    return box->order;
}

size_t box_memory(const struct box *box)
{
    return box->arena.used + box->n_source + sizeof *box;
}

const char *box_about(const struct box *box)
{
    return (const char *)buf_data(&box->about);
}

bool box_has_hook(const struct box *box, const char *hook)
{
    return rules_have_hook(&box->rules, hook);
}

/* --- names --- */

bool box_name_valid(const char *name, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (!isalnum((unsigned char)name[i]) && strchr("._-", name[i]) == NULL) {
            return false;
        }
    }
    return n > 0 && n <= BOX_NAME_MAX && isalnum((unsigned char)name[0]);
}

/* --- limits --- */

/* The state is in the middle of something, and never asked again: its memory goes at once. */
static _Noreturn void stop(struct box *box)
{
    box->armed = false;
    _longjmp(box->stopped, 1);
}

static void count(struct box *box, uint64_t n)
{
    box->steps += n;
    if (box->armed && box->steps > box->limits.instructions) {
        stop(box);
    }
}

void box_charge(lua_State *L, uint64_t n)
{
    count(box_of(L), n);
}

static void on_count(lua_State *L, lua_Debug *ar)
{
    (void)ar;
    count(box_of(L), PERIOD);
}

static void drop_state(struct box *box)
{
    box->armed = false;
    box->L = NULL;
    arena_clear(&box->arena);
}

/* Only one runs at a time; the others' states are kept for nothing but speed. */
static bool make_room(struct box *needy)
{
    struct box *box, *largest = NULL;
    LIST_FOREACH (box, &needy->pool->boxes, link) {
        if (box != needy && box->L != NULL && (largest == NULL || box->arena.used > largest->arena.used)) {
            largest = box;
        }
    }
    if (largest != NULL) {
        drop_state(largest);
    }
    return largest != NULL;
}

static void *box_alloc(void *ud, void *ptr, size_t old, size_t size)
{
    struct box *box = ud;
    void *made;
    count(box, size >> ALLOC_SHIFT);
    do {
        made = arena_alloc(&box->arena, ptr, old, size);
    } while (made == NULL && size > 0 && box->arena.crowded && make_room(box));
    return made;
}

static int fail_text(struct box *box, int status)
{
    lua_State *L = box->L;
    if (status == LUA_ERRMEM) {
        return err_setf(SYM_EINVAL, "it needs more than %zu KiB of memory", box->limits.memory >> 10);
    }
    if (lua_type(L, -1) == LUA_TSTRING) {
        return err_setf(SYM_EINVAL, "%.*s", BOX_ERROR_MAX, lua_tostring(L, -1));
    }
    return err_setf(SYM_EINVAL, "an error that is a %s", luaL_typename(L, -1));
}

int box_enter(struct box *box, lua_CFunction fn, void *arg)
{
    int rv = 0;
    box->steps = 0;
    if (_setjmp(box->stopped) != 0) {
        drop_state(box);
        return err_setf(SYM_EINVAL, "it did not come to an end within %llu instructions",
            (unsigned long long)box->limits.instructions);
    }
    box->armed = true;
    lua_pushcfunction(box->L, fn);
    lua_pushlightuserdata(box->L, arg);
    int status = lua_pcall(box->L, 1, 0, 0);
    box->armed = false;
    if (status != LUA_OK) {
        rv = fail_text(box, status);
        lua_settop(box->L, 0);
    }
    return rv;
}

/* --- loading --- */

struct load {
    struct box *box;
    bool again; /* what is said of it is known already */
};

/* The field @name of the table at @idx, raw, on the top; its type. */
static int raw_field(lua_State *L, int idx, const char *name)
{
    idx = lua_absindex(L, idx);
    lua_pushstring(L, name);
    return lua_rawget(L, idx);
}

static void check(lua_State *L, int rv)
{
    if (rv != 0) {
        luaL_error(L, "%s", err_msg());
    }
}

static void check_fields(lua_State *L, int idx)
{
    static const char *const known[] = {"summary", "order", "match", "hooks", "selftest"};
    for (lua_pushnil(L); lua_next(L, idx) != 0; lua_pop(L, 1)) {
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof *known && lua_type(L, -2) == LUA_TSTRING; i++) {
            found = found || strcmp(lua_tostring(L, -2), known[i]) == 0;
        }
        if (!found) {
            luaL_error(L, "what it returns has a field that means nothing: %s",
                lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : luaL_typename(L, -2));
        }
    }
}

static void read_order(lua_State *L, struct box *box, int idx)
{
    int whole = 1;
    box->order = BOX_ORDER_DEFAULT;
    if (raw_field(L, idx, "order") != LUA_TNIL) {
        lua_Integer order = lua_type(L, -1) == LUA_TNUMBER ? lua_tointegerx(L, -1, &whole) : -1;
        if (!whole || order < 0 || order > 100) {
            luaL_error(L, "order is to be a whole number from 0 to 100");
        }
        box->order = (int)order;
    }
    lua_pop(L, 1);
}

static void read_hooks(lua_State *L, struct box *box, int idx)
{
    if (raw_field(L, idx, "hooks") != LUA_TTABLE) {
        luaL_error(
            L, "it is to return a table with hooks = { [\"admit.change\"] = function(change) ... end, ... }");
    }
    plain_push_keys(L, -1);
    int keys = lua_gettop(L);
    lua_newtable(L);
    for (lua_Integer i = 1; lua_rawgeti(L, keys, i) != LUA_TNIL; i++) {
        if (lua_type(L, -1) != LUA_TSTRING || !rules_hook_known(lua_tostring(L, -1))) {
            luaL_error(L,
                "there is no hook %s; there are admit.join, admit.change, place.<kind>, node.down, node.up, "
                "leader.change and every.<duration>, such as every.30s",
                lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : luaL_typename(L, -1));
        }
        lua_pushvalue(L, -1);
        if (lua_rawget(L, keys - 1) != LUA_TFUNCTION) {
            luaL_error(L, "hooks[\"%s\"] is to be a function", lua_tostring(L, -2));
        }
        if (!rules_have_hook(&box->rules, lua_tostring(L, -2))) {
            check(L, rules_add_hook(&box->rules, lua_tostring(L, -2)));
        }
        lua_rawset(L, keys + 1);
    }
    lua_pop(L, 1);
    if (lua_rawlen(L, keys) == 0) {
        luaL_error(L, "it has no hooks");
    }
    lua_rawsetp(L, LUA_REGISTRYINDEX, &hooks_key);
    lua_settop(L, keys - 2);
}

/* The glob on the top, of the field named by the key below. */
static void read_glob(lua_State *L, struct box *box, int hook, unsigned field)
{
    size_t n;
    if (lua_type(L, -1) != LUA_TSTRING || (lua_tolstring(L, -1, &n), n == 0)) {
        luaL_error(L, "match: %s is to be a list of texts with * and ?", rules_plural[field]);
    }
    check(L, rules_add(&box->rules, lua_tostring(L, hook), (enum rules_field)field, lua_tostring(L, -1)));
}

static unsigned field_of(lua_State *L)
{
    for (unsigned i = 0; i < RULES_FIELDS && lua_type(L, -2) == LUA_TSTRING; i++) {
        if (strcmp(lua_tostring(L, -2), rules_plural[i]) == 0) {
            return i;
        }
    }
    return (unsigned)luaL_error(
        L, "match: a hook's inputs are chosen by kinds, keys, actions, roles and names");
}

/* match[hook], which is on the top, with its key below. */
static void read_rules(lua_State *L, struct box *box)
{
    int hook = lua_gettop(L) - 1;
    if (lua_type(L, hook) != LUA_TSTRING || !box_has_hook(box, lua_tostring(L, hook))) {
        luaL_error(L, "match names a hook that it does not have");
    }
    if (!lua_istable(L, -1)) {
        luaL_error(L, "match[\"%s\"] is to be a table", lua_tostring(L, hook));
    }
    for (lua_pushnil(L); lua_next(L, hook + 1) != 0; lua_pop(L, 1)) {
        unsigned field = field_of(L);
        if (!lua_istable(L, -1) || lua_rawlen(L, -1) == 0) {
            luaL_error(L, "match: %s is to be a list of texts with * and ?", rules_plural[field]);
        }
        for (lua_Integer i = 1; lua_rawgeti(L, -1, i) != LUA_TNIL; i++) {
            read_glob(L, box, hook, field);
            lua_pop(L, 1);
        }
        lua_pop(L, 1);
    }
}

static void read_match(lua_State *L, struct box *box, int idx)
{
    int type = raw_field(L, idx, "match");
    if (type != LUA_TNIL && type != LUA_TTABLE) {
        luaL_error(L, "match is to be a table");
    }
    for (lua_pushnil(L); type == LUA_TTABLE && lua_next(L, -2) != 0; lua_pop(L, 1)) {
        read_rules(L, box);
    }
    lua_settop(L, idx);
}

static lua_Integer read_cases(lua_State *L, int idx)
{
    int type = raw_field(L, idx, "selftest");
    if (type != LUA_TNIL && type != LUA_TTABLE) {
        luaL_error(L, "selftest is to be a list of { name=, hook=, input=, state=, expect= }");
    }
    lua_Integer n = type == LUA_TTABLE ? (lua_Integer)lua_rawlen(L, -1) : 0;
    if (n > CASES_MAX) {
        luaL_error(L, "selftest: at most %d cases", CASES_MAX);
    }
    lua_rawsetp(L, LUA_REGISTRYINDEX, &cases_key);
    return n;
}

static void write_about(lua_State *L, struct box *box, int idx, lua_Integer n_cases)
{
    struct buf *out = &box->about;
    size_t n = 0;
    const char *summary = "";
    int type = raw_field(L, idx, "summary");
    if (type == LUA_TSTRING) {
        summary = lua_tolstring(L, -1, &n);
    }
    if ((type != LUA_TNIL && type != LUA_TSTRING) || n > SUMMARY_MAX) {
        luaL_error(L, "summary is to be a text of at most %d bytes", SUMMARY_MAX);
    }
    check(L, buf_appendf(out, "{\"summary\":"));
    plain_write_text(L, summary, n, out);
    check(L, buf_appendf(out, ",\"order\":%d,\"hooks\":[", box->order));
    for (unsigned i = 0; i < box->rules.n_hooks; i++) {
        check(L, buf_appendf(out, "%s\"%s\"", i > 0 ? "," : "", box->rules.hooks[i]));
    }
    check(L, buf_appendf(out, "],\"match\":"));
    if (raw_field(L, idx, "match") == LUA_TNIL) {
        check(L, buf_appendf(out, "{}"));
    } else {
        plain_write(L, -1, out, ABOUT_MAX);
    }
    lua_settop(L, idx);
    lua_gc(L, LUA_GCCOLLECT);
    check(L, buf_appendf(out, ",\"memory\":%zu,\"selftest\":%lld}", box_memory(box), (long long)n_cases));
    check(L, buf_append(out, "", 1));
}

static int do_load(lua_State *L)
{
    struct load *load = lua_touserdata(L, 1);
    struct box *box = load->box;
    char chunk[BOX_NAME_MAX + 2];
    lua_settop(L, 0);
    env_open(L, box->limits.full);
    snprintf(chunk, sizeof chunk, "=%s", box->name);
    if (luaL_loadbufferx(L, box->source, box->n_source, chunk, "t") != LUA_OK) {
        return lua_error(L);
    }
    lua_call(L, 0, 1);
    if (!lua_istable(L, 1)) {
        return luaL_error(L, "it is to return a table with hooks = { ... }, not a %s", luaL_typename(L, 1));
    }
    check_fields(L, 1);
    read_hooks(L, box, 1);
    lua_Integer cases = read_cases(L, 1);
    if (!load->again) {
        read_order(L, box, 1);
        read_match(L, box, 1);
        write_about(L, box, 1, cases);
    }
    env_lock(L);
    return 0;
}

static int evaluate(struct box *box, bool again)
{
    struct load load = {box, again};
    box->L = lua_newstate(box_alloc, box);
    if (box->L == NULL) {
        drop_state(box);
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    *(struct box **)lua_getextraspace(box->L) = box;
    lua_sethook(box->L, on_count, LUA_MASKCOUNT, PERIOD);
    int rv = box_enter(box, do_load, &load);
    if (rv != 0) {
        drop_state(box);
    }
    return rv;
}

int box_load(const struct box_limits *limits, struct box_pool *pool, const char *name, const char *source,
    size_t n, struct box **out)
{
    if (!box_name_valid(name, strlen(name))) {
        return err_setf(SYM_EINVAL,
            "a policy's name has up to %d letters, digits, '.', '_' and '-', and begins with a letter or "
            "digit",
            BOX_NAME_MAX);
    }
    if (n > BOX_SOURCE_MAX) {
        return err_setf(SYM_ETOOBIG, "a policy has at most %d bytes", BOX_SOURCE_MAX);
    }
    struct box *box = calloc(1, sizeof *box);
    char *copy = malloc(n + 1);
    if (box == NULL || copy == NULL) {
        free(box);
        free(copy);
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    box->limits = *limits;
    box->pool = pool;
    LIST_INSERT_HEAD(&pool->boxes, box, link);
    arena_init(&box->arena, limits->memory, &pool->used, limits->memory_all);
    snprintf(box->name, sizeof box->name, "%s", name);
    memcpy(copy, source, n);
    box->source = copy;
    box->n_source = n;
    int rv = evaluate(box, false);
    if (rv != 0) {
        box_free(box);
        return rv;
    }
    *out = box;
    return 0;
}

void box_free(struct box *box)
{
    if (box == NULL) {
        return;
    }
    drop_state(box);
    LIST_REMOVE(box, link);
    rules_free(&box->rules);
    reads_clear(&box->no_reads);
    buf_free(&box->about);
    free(box->source);
    free(box);
}

/* --- what a call is about --- */

int box_subject(const void *input, size_t n, struct box_subject *out)
{
    size_t at[RULES_FIELDS] = {0};
    struct json_reader r;
    *out = (struct box_subject){.room = out->room};
    buf_clear(&out->room);
    json_begin(&r, input, n);
    enum json_token t = json_next(&r);
    if (t != JSON_OBJECT || buf_append(&out->room, "", 1) != 0) {
        return err_setf(SYM_EINVAL, "the input of a hook is to be a JSON object");
    }
    while ((t = json_next(&r)) == JSON_KEY) {
        unsigned field = RULES_FIELDS;
        for (unsigned i = 0; i < RULES_FIELDS; i++) {
            field = json_is(&r, rules_singular[i]) ? i : field;
        }
        t = json_next(&r);
        if (t == JSON_STRING && field < RULES_FIELDS) {
            uint8_t *room = buf_reserve(&out->room, r.n + 1);
            if (room == NULL) {
                return SYM_ENOMEM;
            }
            at[field] = out->room.len;
            size_t len = json_unescape(&r, room);
            room[len] = '\0';
            buf_commit(&out->room, len + 1);
        } else if (!json_skip(&r, t)) {
            break;
        }
    }
    if (t != JSON_CLOSE || json_next(&r) != JSON_END) {
        return err_setf(SYM_EINVAL, "the input of a hook is to be a JSON object");
    }
    for (unsigned i = 0; i < RULES_FIELDS; i++) {
        out->values[i] = at[i] > 0 ? (const char *)buf_data(&out->room) + at[i] : NULL;
    }
    return 0;
}

void box_subject_free(struct box_subject *s)
{
    buf_free(&s->room);
}

bool box_matches(const struct box *box, const char *hook, const struct box_subject *s)
{
    return rules_fit(&box->rules, hook, s->values);
}

/* --- calling --- */

struct call {
    const char *hook;
    const void *input;
    size_t n;
    struct box_result *out;
};

/* The input with the fields of the amendment at @idx, as the next policy sees it. Of a resource that is changed they
 * are fields of the new document. */
static void write_amended(lua_State *L, const struct call *call, int idx)
{
    plain_push(L, call->input, call->n);
    int target = lua_gettop(L);
    bool change = strcmp(call->hook, "admit.change") == 0;
    int type = raw_field(L, target, "new");
    if (change && type == LUA_TNIL) {
        luaL_error(L, "amend: there is nothing to amend in a delete");
    }
    bool document = change && type == LUA_TTABLE;
    target += document ? 1 : 0;
    for (lua_pushnil(L); lua_next(L, idx) != 0;) {
        if (change && !document &&
            (lua_type(L, -2) != LUA_TSTRING || strcmp(lua_tostring(L, -2), "new") != 0 ||
                lua_type(L, -1) != LUA_TSTRING)) {
            luaL_error(L, "amend: of a key's value there is only new = \"text\" to amend");
        }
        lua_pushvalue(L, -2);
        lua_insert(L, -2);
        lua_rawset(L, target);
    }
    buf_clear(&call->out->amended);
    plain_write(L, idx + 1, &call->out->amended, BOX_AMENDED_MAX);
}

static int do_call(lua_State *L)
{
    const struct call *call = lua_touserdata(L, 1);
    lua_settop(L, 0);
    lua_rawgetp(L, LUA_REGISTRYINDEX, &hooks_key);
    if (raw_field(L, 1, call->hook) != LUA_TFUNCTION) {
        return luaL_error(L, "it has no hook %s", call->hook);
    }
    lua_replace(L, 1);
    plain_push(L, call->input, call->n);
    lua_call(L, 1, 1);
    env_check_decision(L, 1, call->hook);
    if (lua_isnil(L, 1)) {
        return 0;
    }
    plain_write(L, 1, &call->out->decision, BOX_DECISION_MAX);
    if (raw_field(L, 1, "amend") == LUA_TTABLE) {
        write_amended(L, call, 2);
    }
    return 0;
}

int box_call(struct box *box, const char *hook, const void *input, size_t n, struct reads *reads,
    struct box_result *out)
{
    struct call call = {hook, input, n, out};
    buf_clear(&out->decision);
    buf_clear(&out->amended);
    out->instructions = 0;
    int rv = box->L == NULL ? evaluate(box, true) : 0;
    if (rv == 0) {
        box->reads = reads;
        rv = box_enter(box, do_call, &call);
        box->reads = NULL;
        out->instructions = box->steps;
    }
    if (rv != 0) {
        buf_clear(&out->decision);
        buf_clear(&out->amended);
    }
    return rv;
}

/* --- tests --- */

struct one_case {
    const void *cases;
    size_t n;
    lua_Integer i;
    bool there, has_state;
    struct buf name, hook, input, state, want;
    const struct box_result *result;
    bool equal;
};

static void copy_text(lua_State *L, int idx, const char *field, const char *otherwise, struct buf *out)
{
    int type = raw_field(L, idx, field);
    const char *text = type == LUA_TSTRING ? lua_tostring(L, -1) : type == LUA_TNIL ? otherwise : NULL;
    buf_clear(out);
    if (text == NULL) {
        luaL_error(L, "selftest: %s is to be a text", field);
    } else {
        check(L, buf_append(out, text, strlen(text)));
    }
    check(L, buf_append(out, "", 1));
    lua_pop(L, 1);
}

static bool copy_table(lua_State *L, int idx, const char *field, struct buf *out)
{
    int type = raw_field(L, idx, field);
    buf_clear(out);
    if (type == LUA_TTABLE) {
        plain_write(L, -1, out, BOX_INPUT_MAX);
    } else if (type == LUA_TNIL) {
        check(L, buf_append(out, "{}", 2));
    } else {
        luaL_error(L, "selftest: %s is to be a table", field);
    }
    lua_pop(L, 1);
    return type == LUA_TTABLE;
}

static int do_case(lua_State *L)
{
    struct one_case *c = lua_touserdata(L, 1);
    lua_settop(L, 0);
    c->there = false;
    if (c->cases != NULL) {
        plain_push(L, c->cases, c->n);
    } else {
        lua_rawgetp(L, LUA_REGISTRYINDEX, &cases_key);
    }
    if (lua_isnil(L, 1)) {
        return 0;
    }
    if (!lua_istable(L, 1)) {
        return luaL_error(L, "the cases are to be a list");
    }
    int type = lua_rawgeti(L, 1, c->i);
    if (type == LUA_TNIL || c->i > CASES_MAX) {
        return 0;
    }
    c->there = true;
    if (type != LUA_TTABLE) {
        return luaL_error(L, "a case is to be a table { name=, hook=, input=, state=, expect= }");
    }
    copy_text(L, 2, "name", "", &c->name);
    copy_table(L, 2, "expect", &c->want);
    copy_text(L, 2, "hook", NULL, &c->hook);
    copy_table(L, 2, "input", &c->input);
    c->has_state = copy_table(L, 2, "state", &c->state);
    return 0;
}

/* Each field of what is expected is in the decision; refuse = true stands for any reason, and nothing at all for no
 * decision. */
static int do_compare(lua_State *L)
{
    struct one_case *c = lua_touserdata(L, 1);
    const struct buf *got = &c->result->decision;
    bool any = false;
    lua_settop(L, 0);
    plain_push(L, buf_data(&c->want), c->want.len);
    plain_push(L, got->len > 0 ? buf_data(got) : (const uint8_t *)"{}", got->len > 0 ? got->len : 2);
    c->equal = true;
    for (lua_pushnil(L); lua_next(L, 1) != 0; lua_settop(L, 3)) {
        any = true;
        lua_pushvalue(L, 3);
        lua_rawget(L, 2);
        bool reason = strcmp(luaL_tolstring(L, 3, NULL), "refuse") == 0 && lua_isboolean(L, 4);
        lua_pop(L, 1);
        bool same = reason ? lua_toboolean(L, 4) == !lua_isnil(L, 5) : plain_equal(L, 4, 5);
        c->equal = c->equal && same;
    }
    c->equal = c->equal && (any || got->len == 0);
    return 0;
}

static int write_case(struct buf *out, const struct one_case *c, const char *error)
{
    const char *name = c->name.len > 0 ? (const char *)buf_data(&c->name) : "";
    char number[32];
    if (*name == '\0') {
        snprintf(number, sizeof number, "case %lld", (long long)c->i);
        name = number;
    }
    int rv = buf_appendf(out, "%s{\"name\":", c->i > 1 ? "," : "");
    rv = rv != 0 ? rv : json_lossy(out, name, strlen(name));
    rv = rv != 0 ? rv : buf_appendf(out, ",\"ok\":%s,\"got\":", error == NULL && c->equal ? "true" : "false");
    const struct buf *got = &c->result->decision;
    rv = rv != 0 ? rv : got->len > 0 ? buf_append(out, buf_data(got), got->len) : buf_append(out, "null", 4);
    rv = rv != 0 ? rv : buf_append(out, ",\"want\":", 8);
    rv = rv != 0           ? rv
         : c->want.len > 0 ? buf_append(out, buf_data(&c->want), c->want.len)
                           : buf_append(out, "null", 4);
    if (error != NULL) {
        rv = rv != 0 ? rv : buf_append(out, ",\"error\":", 9);
        rv = rv != 0 ? rv : json_lossy(out, error, strlen(error));
    }
    return rv != 0 ? rv : buf_append(out, "}", 1);
}

/* One case, written whatever comes of it; 1 behind the last, SYM_ENOMEM. */
static int run_case(struct box *box, struct one_case *c, struct box_result *result, struct buf *out)
{
    struct reads_fake fake;
    struct reads reads = {.fn = reads_from_json, .arg = &fake};
    c->equal = false;
    buf_clear(&c->name);
    buf_clear(&c->want);
    buf_clear(&result->decision);
    int rv = box->L == NULL ? evaluate(box, true) : 0;
    rv = rv != 0 ? rv : box_enter(box, do_case, c);
    if (!c->there) {
        rv = rv != 0 ? write_case(out, c, err_msg()) : 0;
        return rv != 0 ? rv : 1;
    }
    if (rv == 0) {
        fake = (struct reads_fake){buf_data(&c->state), c->state.len};
        rv = box_call(
            box, (const char *)buf_data(&c->hook), buf_data(&c->input), c->input.len, &reads, result);
        reads_clear(&reads);
    }
    rv = rv != 0 ? rv : box_enter(box, do_compare, c);
    return write_case(out, c, rv != 0 ? err_msg() : NULL);
}

int box_test(struct box *box, const void *cases, size_t n, struct buf *out)
{
    struct box_result result = {0};
    struct one_case c = {.cases = cases, .n = n, .result = &result};
    int rv = buf_append(out, "[", 1);
    for (c.i = 1; rv == 0 && c.i <= CASES_MAX; c.i++) {
        rv = run_case(box, &c, &result, out);
    }
    buf_free(&c.name);
    buf_free(&c.hook);
    buf_free(&c.input);
    buf_free(&c.state);
    buf_free(&c.want);
    buf_free(&result.decision);
    buf_free(&result.amended);
    return rv < 0 ? rv : buf_append(out, "]", 1);
}
