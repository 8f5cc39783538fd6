/* Puts and deletes of users' keys. */
#include "daemon/api_impl.h"

#include "base/err.h"

#include <stdio.h>
#include <string.h>

enum {
    WRITE_MS = 4000,
    IDEMPOTENCY_MAX = 256,
    FOLLOW_MAX =
        1024 /* bytes of a value that is said again in the one that follows; behind a longer one it waits */
};

static const char policy_folder[] = "/policy/";

void call_begin(struct call *c)
{
    struct api *a = c->api;
    int rv;
    if (a->d->raft == NULL || a->d->stopping) {
        rv = err_setf(SYM_ECLOSED, "this node is stopping");
    } else if (!a->lua_decides) {
        rv = call_change(c, NULL);
    } else {
        rv = policies_may_be_asked(a, c->req) ? call_ask_policies(c) : 1;
    }
    if (rv == 1) {
        call_hand_over(c);
    } else if (rv != 0) {
        api_fail(c->req, rv, NULL);
    }
}

static void begin_first(struct http_req *req)
{
    call_begin(req->data);
}

void call_begin_when_first(struct call *c)
{
    if (http_req_before(c->req) == NULL) {
        call_begin(c);
    } else {
        c->req->on_first = begin_first;
    }
}

static void hand_over_first(struct http_req *req)
{
    call_hand_over(req->data);
}

/* Policies have been set of which this manager did not know, or they have more to say than yes: what to do with the
 * change is decided in Lua. */
void call_hand_over(struct call *c)
{
    struct daemon *d = c->api->d;
    struct http_req *req = c->req;
    if (http_req_before(req) != NULL) {
        req->on_first = hand_over_first;
        return;
    }
    req->data = NULL;
    req->on_gone = NULL;
    c->req = NULL;
    call_release(c);
    daemon_ask_lua(d, req);
}

/* What it was bound to has changed. It is not done again behind one that came after it: that one held without it, as
 * somebody else had done the same. */
static void again(struct call *c)
{
    if (c->behind != NULL) {
        c->undone = true;
    } else if (c->overtaken && (api_access_of(c->api->d, c->req) & WRITE) == 0) {
        api_refuse(c->req);
    } else if (c->overtaken) {
        err_setf(SYM_ECONFLICT, "what the policies looked at kept changing");
        api_fail(c->req, SYM_ECONFLICT, "say it again");
    } else if (c->follows && !c->has_id) {
        call_begin_when_first(c);
    } else {
        call_hand_over(c);
    }
}

/* Tells the one before @c, which may wait for that, whether @c or something behind it has taken effect. */
static void tell_before(struct call *c, bool effect)
{
    struct call *before = c->before;
    if (before == NULL) {
        return;
    }
    c->before = before->behind = NULL;
    before->overtaken = effect;
    if (!before->in_log) {
        tell_before(before, effect);
    }
    if (before->undone) {
        before->undone = false;
        again(before);
    }
}

static void on_changed(void *arg, int status, const struct txn_result *result)
{
    struct call *c = arg;
    bool effect =
        status == SYM_EUNKNOWN || status == SYM_ECANCELED || (status == 0 && result->status != TXN_CONFLICT);
    c->in_log = false;
    if (effect || c->behind == NULL) {
        tell_before(c, effect || c->overtaken);
    }
    c->pending = false;
    if (c->req == NULL) {
        call_release(c);
        return;
    }
    if (status == 0 && result->status == TXN_CONFLICT && result->failed >= c->undecided) {
        if (result->failed == c->rests_on && !result->repeated) {
            api_refuse(c->req);
        } else {
            again(c);
        }
        return;
    }
    if (status == SYM_ECANCELED) {
        /* It may be in the log already, and those who go on have that. */
        status = err_setf(SYM_EUNKNOWN, "this node is stopping; the write may or may not have happened");
    } else if (status == 0 && result->status == TXN_CONFLICT) {
        if ((api_access_of(c->api->d, c->req) & WRITE) == 0) {
            api_refuse(c->req); /* who is out by now hears nothing of the state */
            return;
        }
        status = err_setf(SYM_ECONFLICT, "the key is not as the request expects it");
    } else if (status == 0 && result->status == TXN_UNKNOWN) {
        status = err_setf(SYM_EUNKNOWN, "the Idempotency-Key is older than what is remembered");
    }
    if (status != 0) {
        api_fail(c->req, status, api_hint(status));
        return;
    }
    char body[64];
    int n = snprintf(body, sizeof body, "{\"revision\":%llu%s}\n", (unsigned long long)result->revision,
        result->repeated ? ",\"repeated\":true" : "");
    http_respond(c->req, 200, NULL, NULL, body, (size_t)n);
}

/* The same key with another request is another request: nothing is taken for done that was not. */
static int idempotency(struct api *a, struct http_req *req, const char *key, struct txn_id *id)
{
    struct buf *text = &a->scratch;
    uint8_t digest[SHA256_LEN];
    const char *since = http_req_header(req, "idempotency-since");
    if (*key == '\0' || strlen(key) > IDEMPOTENCY_MAX) {
        return err_setf(SYM_EINVAL, "an Idempotency-Key has 1 to %d characters", IDEMPOTENCY_MAX);
    }
    id->since = store_revision(a->d->store);
    if (since != NULL && !api_parse_u64(since, &id->since)) {
        return err_setf(SYM_EINVAL, "Idempotency-Since is a revision");
    }
    const struct slice parts[] = {{(const uint8_t *)key, strlen(key) + 1},
        {(const uint8_t *)req->method, strlen(req->method) + 1},
        {(const uint8_t *)req->path, req->path_len + 1},
        {(const uint8_t *)req->query, strlen(req->query) + 1}, {req->body, req->body_len}};
    int rv = 0;
    buf_clear(text);
    for (size_t i = 0; rv == 0 && i < sizeof parts / sizeof parts[0]; i++) {
        rv = buf_append(text, parts[i].p, parts[i].n);
    }
    rv = rv != 0 ? rv : crypto_sha256(buf_data(text), text->len, digest);
    memcpy(id->bytes, digest, rv == 0 ? sizeof id->bytes : 0);
    buf_trim(text, SCRATCH_KEEP);
    return rv;
}

/* What this manager judges by may be behind, and the owner be removed while the change is on its way: it is made only
 * if the state still says the same where it is applied. The last of the compares: what is remembered of the change under
 * an Idempotency-Key is the number of one that did not hold, and means the same to whoever repeats it. *@basis lives as
 * long as @t. */
static void rest_on(struct txn *t, const struct tls_peer *peer, struct basis *basis)
{
    basis_of(peer, basis);
    t->cmps[t->n_cmps++] = (struct txn_cmp){.kind = CMP_VALUE,
        .key = {(const uint8_t *)basis->key, strlen(basis->key)},
        .value = {(const uint8_t *)basis->owner, strlen(basis->owner)}};
}

int call_identify(struct call *c)
{
    const char *key = c->identified ? NULL : http_req_header(c->req, "idempotency-key");
    int rv = key == NULL ? 0 : idempotency(c->api, c->req, key, &c->id);
    c->has_id = c->has_id || key != NULL;
    c->identified = true;
    return rv;
}

/* --- one behind the other
 * --------------------------------------------------------------------------------------------- */

bool call_has_before(const struct call *c, struct call **before)
{
    const struct http_req *req = http_req_before(c->req);
    *before = req != NULL && req->on_gone == call_gone ? req->data : NULL;
    return req != NULL;
}

/* What the state has if @c has taken effect. */
static struct txn_cmp effect_of(const struct call *c)
{
    bool put = c->kind == PUT_KEY;
    return (struct txn_cmp){.kind = put ? CMP_VALUE : CMP_ABSENT,
        .key = {c->key, c->key_len},
        .value =
            put ? (struct slice){c->req->body, c->req->body_len} : (struct slice){(const uint8_t *)"", 0}};
}

/* Whether that can be seen: the state has something else now, and it is not too much to be said again. */
static bool has_effect(const struct call *c)
{
    struct txn_cmp effect = effect_of(c);
    struct kv kv;
    int rv = store_get(c->api->d->store, c->key, c->key_len, &kv);
    if (effect.value.n > FOLLOW_MAX || (rv != 0 && rv != SYM_ENOTFOUND)) {
        return false;
    }
    return effect.kind == CMP_ABSENT ? rv == 0
                                     : rv != 0 || kv.value.n != effect.value.n ||
                                           memcmp(kv.value.p, effect.value.p, kv.value.n) != 0;
}

/* Whether what goes into the log behind @before has to be bound to its effect: of one with an id it may be remembered
 * that it did not hold. @decided: what is behind it has been decided on. */
static bool binds(const struct call *before, bool decided)
{
    return decided || before->has_id || before->follows;
}

/* Changes of one connection take effect in the order in which they came. So one may go into the log behind another that
 * is on its way there only if it does not take effect when that comes to nothing, and is tried again: because they are
 * bound to the same policies, which nobody has to ask; or because it is bound, besides what was seen for the decision
 * about it, to what the other does. */
static bool may_go(const struct call *c, const struct kv_admitted *admitted)
{
    bool decided = admitted != NULL;
    struct call *before;
    if (!call_has_before(c, &before)) {
        return true;
    }
    if (before == NULL || !before->in_log || before->decided != decided) {
        return false;
    }
    return binds(before, decided) ? has_effect(before) : before->bound == c->api->policies;
}

/* The set of policies, what the key held, and all that was read. There is room: a client has one compare. */
static void bind_to_decision(
    struct call *c, const struct kv_admitted *admitted, struct txn *t, struct txn_cmp set)
{
    struct txn_cmp old = {.kind = c->old_revision == 0 ? CMP_ABSENT : CMP_MOD_REVISION,
        .key = {c->key, c->key_len},
        .value = {(const uint8_t *)"", 0},
        .number = c->old_revision};
    set.kind = CMP_PREFIX_COUNT;
    set.number = c->set_count;
    t->cmps[t->n_cmps++] = set;
    if (c->asked) {
        t->cmps[t->n_cmps++] = old;
    }
    for (unsigned i = 0; i < admitted->n; i++) {
        t->cmps[t->n_cmps++] = admitted->cmps[i];
    }
}

/* @admitted: what the policies have agreed to holds as long as this does; NULL: nobody was asked. */
int call_change(struct call *c, const struct kv_admitted *admitted)
{
    struct api *a = c->api;
    struct http_req *req = c->req;
    bool is_put = c->kind == PUT_KEY;
    struct basis basis;
    struct txn t; /* 11 KiB: only what is used is set */
    struct call *before;
    int rv = call_identify(c);
    if (rv != 0) {
        return rv;
    }
    t.id = c->id;
    c->follows = false;
    t.n_cmps = 0;
    t.n_ops = 1;
    t.ops[0].kind = is_put ? OP_PUT : OP_DELETE;
    t.ops[0].key = (struct slice){c->key, c->key_len};
    t.ops[0].value =
        is_put ? (struct slice){req->body, req->body_len} : (struct slice){(const uint8_t *)"", 0};
    uint64_t revision = 0;
    int given = *req->query == '\0' ? 0 : api_number_param(req, "mod_revision", &revision);
    if (given < 0) {
        return given;
    }
    if (given == 1) {
        t.cmps[t.n_cmps++] = (struct txn_cmp){.kind = revision == 0 ? CMP_ABSENT : CMP_MOD_REVISION,
            .key = t.ops[0].key,
            .value = {(const uint8_t *)"", 0},
            .number = revision};
    }
    if (!may_go(c, admitted)) {
        call_begin_when_first(c);
        return 0;
    }
    /* The change is decided by nobody, as long as there is no policy that would want to; or else by what it is bound
     * to. */
    c->undecided = t.n_cmps;
    struct txn_cmp set = {.kind = CMP_PREFIX_REVISION,
        .key = {(const uint8_t *)policy_folder, sizeof policy_folder - 1},
        .value = {(const uint8_t *)"", 0},
        .number = admitted != NULL ? c->set_revision : a->policies};
    c->decided = admitted != NULL;
    c->bound = set.number;
    t.cmps[t.n_cmps++] = set;
    if (admitted != NULL) {
        bind_to_decision(c, admitted, &t, set);
    }
    c->follows = call_has_before(c, &before) && binds(before, c->decided);
    if (c->follows) {
        t.cmps[t.n_cmps++] = effect_of(before);
    }
    c->rests_on = t.n_cmps;
    if (req->tls) {
        rest_on(&t, req->peer, &basis);
    }
    buf_clear(&a->scratch);
    rv = txn_encode(&t, &a->scratch);
    if (rv != 0) {
        buf_trim(&a->scratch, SCRATCH_KEEP);
        return rv;
    }
    if (c->follows) {
        c->before = before;
        before->behind = c;
    }
    c->pending = c->in_log = true;
    rnode_submit(a->d->raft, buf_data(&a->scratch), a->scratch.len, WRITE_MS, on_changed, c);
    buf_trim(&a->scratch, SCRATCH_KEEP);
    return 0;
}
