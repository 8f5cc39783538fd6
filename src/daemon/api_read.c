/* Reads of the users' keys: one, or a list. */
#include "daemon/api_impl.h"

#include "base/err.h"
#include "codec/json.h"

#include <stdio.h>
#include <string.h>

enum {
    READ_MS = 1500,
    LIST_DEFAULT = 1000,
    LIST_MAX = 10000,
    DIGITS_MAX = 18,     /* of a number; so has lua/symphony/api/routes_txn.lua */
    LIST_BYTES = 2 << 20 /* an answer ends early, with "more", past this: many may be due in one turn */
};

static int put_kv(struct buf *out, const struct kv *kv)
{
    int rv = buf_append(out, "{", 1);
    rv = rv != 0 ? rv : json_bytes(out, "key", kv->key.p + PREFIX_LEN, kv->key.n - PREFIX_LEN);
    rv = rv != 0 ? rv : buf_append(out, ",", 1);
    rv = rv != 0 ? rv : json_bytes(out, "value", kv->value.p, kv->value.n);
    return rv != 0 ? rv
                   : buf_appendf(out, ",\"create_revision\":%llu,\"mod_revision\":%llu",
                         (unsigned long long)kv->create_revision, (unsigned long long)kv->mod_revision);
}

/* What an answer without a quorum adds: how old it may be (null: nothing was heard of the cluster since the
 * node was started) and why it is. */
static int put_stale(struct api *a, struct buf *out)
{
    char age[24] = "null";
    if (a->d->fresh_ms != 0) {
        snprintf(age, sizeof age, "%llu", (unsigned long long)(uv_now(a->d->loop) - a->d->fresh_ms));
    }
    return buf_appendf(out, ",\"stale\":true,\"revision\":%llu,\"age_ms\":%s,\"reason\":\"no_quorum\"",
        (unsigned long long)store_revision(a->d->store), age);
}

/* A store that never caught up knows nothing: that is not the same as "absent". And nobody is to go back in time:
 * neither behind what this manager has served, nor behind what the client has seen elsewhere. */
int call_check_known(const struct call *c, bool stale)
{
    const struct api *a = c->api;
    uint64_t revision = store_revision(a->d->store);
    if (c->min_revision > revision) {
        return err_setf(SYM_ESTATE,
            stale ? "this manager is at revision %llu, behind revision %llu"
                  : "the cluster is at revision %llu, and has not reached revision %llu",
            (unsigned long long)revision, (unsigned long long)c->min_revision);
    }
    if (stale && revision == 0) {
        return err_setf(SYM_ESTATE, "this manager has not caught up with the cluster yet");
    }
    return stale && a->d->raft != NULL && rnode_is_behind(a->d->raft)
               ? err_setf(SYM_ESTATE,
                     "this manager's machine went down, and its state is older than what it has served")
               : 0;
}

/* @rv: of building it; SYM_E* is the answer instead. */
static void respond_scratch(struct call *c, int rv, bool more)
{
    struct buf *out = &c->api->scratch;
    char extra[96];
    snprintf(extra, sizeof extra, "X-Revision: %llu\r\n%s",
        (unsigned long long)store_revision(c->api->d->store), more ? "X-More: true\r\n" : "");
    if (rv < 0) {
        api_fail(c->req, rv, api_hint(rv));
    } else {
        http_respond(c->req, 200, NULL, extra, buf_data(out), out->len);
    }
    buf_trim(out, SCRATCH_KEEP);
}

static void answer_key(struct call *c, bool stale)
{
    struct api *a = c->api;
    struct kv kv;
    int rv = call_check_known(c, stale);
    rv = rv != 0 ? rv : store_get(a->d->store, c->key, c->key_len, &kv);
    if (rv != 0) {
        api_fail(c->req, rv, api_hint(rv));
        return;
    }
    struct buf *out = &a->scratch;
    buf_clear(out);
    rv = put_kv(out, &kv);
    rv = rv != 0 || !stale ? rv : put_stale(a, out);
    rv = rv != 0 ? rv : buf_append(out, "}\n", 2);
    respond_scratch(c, rv, false);
}

struct list_walk {
    struct api *api;
    struct buf *out;
    uint64_t left;
    uint64_t n;
    bool stale, more;
};

static int list_one(void *arg, const struct kv *kv)
{
    struct list_walk *walk = arg;
    if (walk->left == 0 || walk->out->len > LIST_BYTES) {
        walk->more = true;
        return 1;
    }
    walk->left--;
    int rv = walk->n++ == 0 ? 0 : buf_append(walk->out, ",", 1);
    rv = rv != 0 ? rv : put_kv(walk->out, kv);
    rv = rv != 0 || !walk->stale ? rv : put_stale(walk->api, walk->out);
    return rv != 0 ? rv : buf_append(walk->out, "}", 1);
}

static void answer_list(struct call *c, bool stale)
{
    struct api *a = c->api;
    struct buf *out = &a->scratch;
    buf_clear(out);
    struct list_walk walk = {.api = a, .out = out, .left = c->after, .stale = stale};
    struct slice after = {c->start, c->start_len};
    int rv = call_check_known(c, stale);
    rv = rv != 0 ? rv : buf_append(out, "[", 1);
    if (rv == 0) {
        rv = store_list(
            a->d->store, (struct slice){c->key, c->key_len}, c->has_after ? &after : NULL, list_one, &walk);
    }
    rv = rv < 0 ? rv : buf_append(out, "]\n", 2);
    respond_scratch(c, rv, walk.more);
}

static void on_read(void *arg, int status)
{
    struct call *c = arg;
    struct daemon *d = c->api->d;
    c->pending = false;
    if (c->req == NULL) {
        call_release(c);
        return;
    }
    if (status == SYM_ECANCELED || (status == 0 && d->raft == NULL)) {
        status = err_setf(SYM_ECLOSED, "this node is stopping");
    }
    if (status == 0) {
        d->fresh_ms = uv_now(d->loop);
    }
    bool stale = status == SYM_ENOQUORUM && c->stale_ok;
    if (status != 0 && !stale) {
        api_fail(c->req, status, api_hint(status));
        return;
    }
    /* Again, because now this manager knows of everything that came before the request. */
    if ((api_access_of(d, c->req) & call_needs(c)) == 0) {
        api_refuse(c->req);
        return;
    }
    switch (c->kind) {
    case GET_KEY:
        answer_key(c, stale);
        break;
    case LIST_KEYS:
        answer_list(c, stale);
        break;
    case WATCH_KEYS:
        call_answer_watch(c);
        break;
    default:
        status = call_change(c, NULL);
        if (status != 0) {
            api_fail(c->req, status, NULL);
        }
    }
}

bool api_parse_u64(const char *text, uint64_t *out)
{
    uint64_t v = 0;
    if (*text == '\0' || strlen(text) > DIGITS_MAX) {
        return false;
    }
    for (; *text != '\0'; text++) {
        if (*text < '0' || *text > '9') {
            return false;
        }
        v = v * 10 + (uint64_t)(*text - '0');
    }
    *out = v;
    return true;
}

/* 1: given, 0: absent, SYM_EINVAL. */
int api_number_param(struct http_req *req, const char *name, uint64_t *out)
{
    char text[24];
    int rv = http_req_param(req, name, text, sizeof text);
    if (rv == SYM_ENOTFOUND) {
        return 0;
    }
    return rv == 0 && api_parse_u64(text, out) ? 1 : err_setf(SYM_EINVAL, "%s must be a number", name);
}

/* Reads @name into @to behind "/kv/"; an absent one is empty. 1, 0 or an error as above. */
int api_key_param(struct http_req *req, const char *name, uint8_t *to, size_t *len)
{
    char text[USER_KEY_MAX + 1];
    int rv = http_req_param(req, name, text, sizeof text);
    memcpy(to, API_KV_FOLDER, PREFIX_LEN);
    *len = PREFIX_LEN;
    if (rv == SYM_ENOTFOUND) {
        return 0;
    }
    if (rv != 0) {
        return err_wrapf(rv, "%s", name);
    }
    size_t n = strlen(text);
    memcpy(to + PREFIX_LEN, text, n);
    *len += n;
    return 1;
}

int call_read(struct call *c)
{
    char text[8];
    struct http_req *req = c->req;
    if (*req->query != '\0' && call_needs(c) == READ) {
        c->stale_ok = c->kind != WATCH_KEYS && http_req_param(req, "stale", text, sizeof text) == 0 &&
                      strcmp(text, "ok") == 0;
        int given = api_number_param(req, "min_revision", &c->min_revision);
        if (given < 0) {
            return given;
        }
    }
    c->pending = true;
    rnode_read(c->api->d->raft, READ_MS, on_read, c);
    return 0;
}

int call_list(struct call *c)
{
    uint64_t limit = LIST_DEFAULT;
    int rv = api_key_param(c->req, "prefix", c->key, &c->key_len);
    int more = api_key_param(c->req, "after", c->start, &c->start_len);
    int given = api_number_param(c->req, "limit", &limit);
    if (rv < 0 || more < 0 || given < 0) {
        return rv < 0 ? rv : more < 0 ? more : given;
    }
    c->has_after = more == 1;
    c->after = limit > LIST_MAX ? LIST_MAX : limit;
    return call_read(c);
}
