/* Puts and deletes of users' keys. */
#include "daemon/api_impl.h"

#include "base/err.h"

#include <stdio.h>
#include <string.h>

enum { WRITE_MS = 4000, IDEMPOTENCY_MAX = 256 };

static const char policy_folder[] = "/policy/";

/* Policies have been set of which this manager did not know: what to do with the change is decided in Lua. Those that
 * came over the same connection meanwhile go the same way, side by side. */
void call_hand_over(struct call *c)
{
    struct daemon *d = c->api->d;
    struct http_req *req = c->req;
    req->data = NULL;
    req->on_gone = NULL;
    c->req = NULL;
    call_release(c);
    daemon_ask_lua(d, req);
}

static void on_changed(void *arg, int status, const struct txn_result *result)
{
    struct call *c = arg;
    c->pending = false;
    if (c->req == NULL) {
        call_release(c);
        return;
    }
    if (status == 0 && result->status == TXN_CONFLICT && result->failed >= c->undecided) {
        if (result->failed == c->rests_on && !result->repeated) {
            api_refuse(c->req);
        } else {
            call_hand_over(c);
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

/* The set of policies, what the key held, and all that was read. There is room: a client has one compare. */
static void bind_to_decision(
    const struct call *c, const struct kv_admitted *admitted, struct txn *t, struct txn_cmp set)
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
    memset(&t.id, 0, sizeof t.id);
    t.n_cmps = 0;
    t.n_ops = 1;
    t.ops[0].kind = is_put ? OP_PUT : OP_DELETE;
    t.ops[0].key = (struct slice){c->key, c->key_len};
    t.ops[0].value =
        is_put ? (struct slice){req->body, req->body_len} : (struct slice){(const uint8_t *)"", 0};
    if (is_put && req->body_len > VALUE_MAX) {
        return err_setf(SYM_ETOOBIG, "a value of %zu bytes; at most 1 MiB fits", req->body_len);
    }
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
    /* The change is decided by nobody, as long as there is no policy that would want to; or else by what it is bound
     * to. */
    c->undecided = t.n_cmps;
    struct txn_cmp set = {.kind = CMP_PREFIX_REVISION,
        .key = {(const uint8_t *)policy_folder, sizeof policy_folder - 1},
        .value = {(const uint8_t *)"", 0},
        .number = admitted != NULL ? c->set_revision : a->policies};
    t.cmps[t.n_cmps++] = set;
    if (admitted != NULL) {
        bind_to_decision(c, admitted, &t, set);
    }
    c->rests_on = t.n_cmps;
    if (req->tls) {
        rest_on(&t, req->peer, &basis);
    }
    const char *key = http_req_header(req, "idempotency-key");
    int rv = key == NULL ? 0 : idempotency(a, req, key, &t.id);
    buf_clear(&a->scratch);
    rv = rv != 0 ? rv : txn_encode(&t, &a->scratch);
    if (rv != 0) {
        return rv;
    }
    c->pending = true;
    rnode_submit(a->d->raft, buf_data(&a->scratch), a->scratch.len, WRITE_MS, on_changed, c);
    if (a->scratch.cap > SCRATCH_KEEP) {
        buf_free(&a->scratch);
    }
    return 0;
}
