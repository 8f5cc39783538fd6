/* A policy's own cases, or others, run. */
#include "sandbox/box_impl.h"

#include "base/err.h"
#include "codec/json.h"
#include "sandbox/plain.h"

#include <lauxlib.h>
#include <stdio.h>
#include <string.h>

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
    int type = box_raw_field(L, idx, field);
    const char *text = type == LUA_TSTRING ? lua_tostring(L, -1) : type == LUA_TNIL ? otherwise : NULL;
    buf_clear(out);
    if (text == NULL) {
        luaL_error(L, "selftest: %s is to be a text", field);
    } else {
        box_check(L, buf_append(out, text, strlen(text)));
    }
    box_check(L, buf_append(out, "", 1));
    lua_pop(L, 1);
}

static bool copy_table(lua_State *L, int idx, const char *field, struct buf *out)
{
    int type = box_raw_field(L, idx, field);
    buf_clear(out);
    if (type == LUA_TTABLE) {
        plain_write(L, -1, out, BOX_INPUT_MAX);
    } else if (type == LUA_TNIL) {
        box_check(L, buf_append(out, "{}", 2));
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
        lua_rawgetp(L, LUA_REGISTRYINDEX, &box_cases_key);
    }
    if (lua_isnil(L, 1)) {
        return 0;
    }
    if (!lua_istable(L, 1)) {
        return luaL_error(L, "the cases are to be a list");
    }
    int type = lua_rawgeti(L, 1, c->i);
    if (type == LUA_TNIL || c->i > BOX_CASES_MAX) {
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
    int rv = box->L == NULL ? box_evaluate(box, true) : 0;
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
    for (c.i = 1; rv == 0 && c.i <= BOX_CASES_MAX; c.i++) {
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
