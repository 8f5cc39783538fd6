/* Asking a policy at a hook. */
#include "sandbox/box_impl.h"

#include "base/err.h"
#include "sandbox/env.h"
#include "sandbox/json_read.h"
#include "sandbox/plain.h"

#include <lauxlib.h>
#include <string.h>

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
    int type = box_raw_field(L, target, "new");
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
    lua_rawgetp(L, LUA_REGISTRYINDEX, &box_hooks_key);
    if (box_raw_field(L, 1, call->hook) != LUA_TFUNCTION) {
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
    if (box_raw_field(L, 1, "amend") == LUA_TTABLE) {
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
    int rv = box->L == NULL ? box_evaluate(box, true) : 0;
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
