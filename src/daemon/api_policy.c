/* Changes of users' keys go past the policies: asked from here, in C, where they have no more to say than yes; else in
 * Lua. */
#include "daemon/api_impl.h"

#include "base/err.h"
#include "codec/json.h"
#include "lua/bind_policy.h"

#include <stdio.h>
#include <string.h>

static void note_heard(void *arg, const char *name, size_t n)
{
    struct call *c = arg;
    struct api *a = c->api;
    unsigned i = 0;
    c->unheard--;
    while (i < a->n_heard && (strlen(a->heard[i].name) != n || memcmp(a->heard[i].name, name, n) != 0)) {
        i++;
    }
    if (i == a->n_heard) {
        if (n > BOX_NAME_MAX) {
            return;
        }
        /* Full of those that are gone: it begins anew, which only looks like more having been heard. */
        i = i == BOXES_MAX ? 0 : i;
        a->n_heard = i;
        memcpy(a->heard[i].name, name, n);
        a->heard[i].name[n] = '\0';
        a->heard[i].n = 0;
        a->n_heard++;
    }
    a->heard[i].n++;
}

uint64_t api_heard(const struct api *a, const char *name)
{
    for (unsigned i = 0; i < a->n_heard; i++) {
        if (strcmp(a->heard[i].name, name) == 0) {
            return a->heard[i].n;
        }
    }
    return 0;
}

struct failure {
    const struct call *c;
    const struct host_answer *answer;
    const char *message;
};

static int push_failure(lua_State *L, void *arg)
{
    const struct failure *failure = arg;
    const struct call *c = failure->c;
    lua_pushstring(L, failure->answer->policy);
    lua_pushstring(L, failure->message);
    lua_pushlstring(L, (const char *)c->key + PREFIX_LEN, c->key_len - PREFIX_LEN);
    return 3;
}

/* One that did not decide in time, or took its process with it, is not asked a second time: that is the answer, in the
 * words of lua/symphony/policy/engine.lua, which is told. */
static void fail_closed(struct call *c, const struct host_answer *answer)
{
    struct daemon *d = c->api->d;
    const char *policy = *answer->policy != '\0' ? answer->policy : "?";
    char why[512], message[640];
    struct failure failure = {c, answer, why};
    struct buf *out = &c->api->scratch;
    snprintf(why, sizeof why, "%s", err_msg());
    snprintf(message, sizeof message, "policy %s failed, so this is refused: %s", policy, why);
    c->pending = true; /* it is kept meanwhile */
    vm_cb_call(&d->on_kv_failed, 0, push_failure, &failure);
    c->pending = false;
    if (c->req == NULL) {
        call_release(c);
        return;
    }
    buf_clear(out);
    int rv = buf_appendf(out, "{\"error\":{\"code\":\"%s\",\"message\":", err_name(SYM_EPOLICY));
    rv = rv != 0 ? rv : json_lossy(out, message, strlen(message));
    rv = rv != 0
             ? rv
             : buf_appendf(out,
                   ",\"hint\":\"`symphony policy disable %s` has it go on without it\",\"policy\":\"%s\"}}\n",
                   policy, policy);
    if (rv != 0) {
        api_fail(c->req, rv, NULL);
    } else {
        http_respond(c->req, err_http_status(SYM_EPOLICY), NULL, NULL, (const char *)buf_data(out), out->len);
    }
}

static void on_decided(void *arg, const struct host_answer *answer)
{
    struct call *c = arg;
    struct api *a = c->api;
    struct kv_admitted admitted;
    TAILQ_REMOVE(&a->asking, c, link);
    c->pending = c->asking = false;
    if (c->req == NULL) {
        call_release(c);
        return;
    }
    if (a->d->raft == NULL || a->d->stopping) {
        err_setf(SYM_ECLOSED, "this node is stopping");
        api_fail(c->req, SYM_ECLOSED, NULL);
        return;
    }
    /* One with an id may have been carried out before, of which this manager has not heard yet. */
    if (!c->has_id && (answer->status == SYM_EPOLICYTIME || answer->status == SYM_EPOLICYDIED)) {
        fail_closed(c, answer);
        return;
    }
    if (answer->status != 0) {
        call_hand_over(c);
        return;
    }
    if (kv_admit_result(answer->json, answer->n, &admitted, note_heard, c) != 0 || c->unheard != 0) {
        call_hand_over(c);
    } else {
        int rv = call_change(c, &admitted);
        if (rv != 0) {
            api_fail(c->req, rv, NULL);
        }
    }
    kv_admitted_free(&admitted);
}

/* The policies are asked from here for what is most: a change by who is there in person, that looks at no more than its
 * key. On any manager: what one that is behind has seen does not hold. */
bool policies_may_be_asked(const struct api *a, const struct http_req *req)
{
    return a->set_revision != 0 &&
           (*req->query == '\0' ||
               (strncmp(req->query, "mod_revision=", 13) == 0 && strchr(req->query, '&') == NULL)) &&
           (!req->tls || peer_is_client(req->peer));
}

/* Whether something before @c that is not over is of the same key, or nobody knows. What it makes of that is not seen
 * yet; and if it is what @c makes of it, too, then what comes behind @c would rest on it although @c has not taken effect.
 */
static bool has_same_key_before(const struct call *c)
{
    const struct http_req *req = c->req;
    while ((req = http_req_before(req)) != NULL) {
        const struct call *before = req->on_gone == call_gone ? req->data : NULL;
        if (before == NULL ||
            (before->key_len == c->key_len && memcmp(before->key, c->key, c->key_len) == 0)) {
            return true;
        }
    }
    return false;
}

/* 0: on_decided is told; 1: this is for Lua; SYM_E*. */
int call_ask_policies(struct call *c)
{
    struct api *a = c->api;
    struct http_req *req = c->req;
    struct host *host = bind_policy_host(a->d->L);
    struct call *before;
    struct kv old;
    int rv = call_identify(c);
    if (rv != 0) {
        return rv;
    }
    if (host == NULL || !utf8_valid(c->key, c->key_len) ||
        (c->has_id && store_result(a->d->store, &c->id) != NULL)) {
        return 1;
    }
    /* Those of one connection are asked about side by side, unless it is clear that what is seen now will not be so. */
    if (call_has_before(c, &before) &&
        (before == NULL || !(before->asking || before->in_log) || has_same_key_before(c))) {
        call_begin_when_first(c);
        return 0;
    }
    c->asked = false;
    c->set_revision = a->set_revision;
    c->set_count = a->set_count;
    char key[USER_KEY_MAX + 1];
    memcpy(key, c->key + PREFIX_LEN, c->key_len - PREFIX_LEN);
    key[c->key_len - PREFIX_LEN] = '\0';
    const char *const values[RULES_FIELDS] = {
        [RULES_KIND] = "kv", [RULES_KEY] = key, [RULES_ACTION] = c->kind == PUT_KEY ? "put" : "delete"};
    c->unheard = host_concerned(host, "admit.change", values);
    if (c->unheard == 0) {
        static const struct kv_admitted nothing = {.n = 0};
        return call_change(c, &nothing);
    }
    rv = store_get(a->d->store, c->key, c->key_len, &old);
    if (rv != 0 && rv != SYM_ENOTFOUND) {
        return rv;
    }
    struct kv_change change = {.put = c->kind == PUT_KEY,
        .key = {c->key + PREFIX_LEN, c->key_len - PREFIX_LEN},
        .value = {req->body, req->body_len},
        .old = rv == 0 ? &old : NULL,
        .who_kind = req->tls ? "certificate" : "control",
        .who_name = req->tls ? req->peer->cert.cn : a->own_name,
        .who_role = req->tls ? req->peer->cert.ou : NULL};
    c->old_revision = rv == 0 ? old.mod_revision : 0;
    buf_clear(&a->scratch);
    rv = kv_admit_input(&change, &a->scratch);
    if (rv == 0) {
        struct host_call call = {
            .hook = "admit.change", .input = buf_data(&a->scratch), .n_input = a->scratch.len};
        rv = host_call(host, &call, on_decided, c);
    }
    buf_trim(&a->scratch, SCRATCH_KEEP);
    if (rv == 0) {
        c->pending = c->asking = c->asked = true;
        TAILQ_INSERT_TAIL(&a->asking, c, link);
    }
    return rv;
}

void api_policies(struct api *a, bool lua_decides, uint64_t revision)
{
    a->lua_decides = lua_decides;
    a->policies = revision;
    a->set_revision = a->set_count = 0;
}

void api_policies_loaded(struct api *a, uint64_t revision, uint64_t count, const char *own_name)
{
    a->set_revision = revision;
    a->set_count = count;
    snprintf(a->own_name, sizeof a->own_name, "%s", own_name);
}
