#include "daemon/api.h"

#include "base/err.h"
#include "codec/json.h"
#include "codec/text.h"
#include "crypto/crypto.h"
#include "sandbox/kv_admit.h"
#include "lua/bind_policy.h"
#include "sandbox/host.h"
#include "net/allowance.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PREFIX_LEN = 4, /* "/kv/": below it live the users' keys */
    WRITE_MS = 4000,
    READ_MS = 1500,
    LIST_DEFAULT = 1000,
    LIST_MAX = 10000,
    LIST_BYTES = 2 << 20, /* an answer ends early, with "more", past this: many may be due in one turn */
    SCRATCH_KEEP = 256 << 10,
    HEARTBEAT_MS = 10000,
    IDEMPOTENCY_MAX = 256,
    USER_KEY_MAX = 1024,
    /* Who is unknown here costs a round of the quorum with each request: as often as of Lua's routes (router.lua). */
    LOOKS = 100,
    LOOK_MS = 200
};

static const uint8_t kv_folder[PREFIX_LEN] = {'/', 'k', 'v', '/'};
static const char policy_folder[] = "/policy/";

enum access { READ = 1, WRITE = 2, UNSURE = 4 };

/* One request under way. It outlives the request when the peer goes first: req is NULL then. */
struct call {
    struct api *api;
    struct http_req *req;
    TAILQ_ENTRY(call) link; /* watches, and changes that the policies are asked about */
    enum { GET_KEY, LIST_KEYS, PUT_KEY, DELETE_KEY, WATCH_KEYS } kind;
    bool pending; /* an answer from raft is due */
    /* Change: the first compare, from 0, that is not the client's. Where such a one fails, or has failed when the
     * change was tried before, a policy has to be asked. */
    unsigned undecided;
    bool asked; /* policies, about a change; with what it is then bound to: */
    uint64_t old_revision, set_revision, set_count;
    unsigned unheard; /* of those that have to be: a process that leaves one out is not believed */
    bool stale_ok;
    struct watch *watch;
    bool synced;    /* watch: has been told that it has all there was when it began */
    bool paused;    /* watch: the client is slower than the changes */
    uint64_t after; /* watch: revisions up to here are known to the client; list: limit */
    bool has_after;
    uint64_t min_revision; /* what the client has seen already */
    size_t key_len, start_len;
    uint8_t *start; /* list: the key to go on after; behind @key */
    uint8_t key[];  /* with the prefix */
};
enum { KEY_ROOM = PREFIX_LEN + USER_KEY_MAX + 1 };

/* How often a policy has had its say from here. */
struct heard {
    char name[BOX_NAME_MAX + 1];
    uint64_t n;
};

struct api {
    struct daemon *d;
    TAILQ_HEAD(, call) watches;
    unsigned n_unsynced;
    uint64_t
        told; /* the last revision up to which every watch that was not paused had been told everything */
    uv_timer_t heartbeat;
    uint64_t policies; /* none of those set up to this revision has a word in changes of keys */
    bool lua_decides;  /* one has */
    /* While that is so: the process of the policies holds all that there are at this revision and in this number, so
     * that it may be asked from here; 0: not. */
    uint64_t set_revision, set_count;
    char own_name[64];
    struct heard heard[BOXES_MAX];
    unsigned n_heard;
    TAILQ_HEAD(, call) asking;
    struct buf scratch; /* answers are built here and copied out at once */
    struct allowance looks;
};

static void call_release(struct call *c)
{
    if (c->req == NULL && !c->pending) {
        free(c);
    }
}

/* From here on nothing is delivered. The hub has closed it already, or does now. */
static void watch_drop(struct call *c)
{
    if (c->watch != NULL) {
        c->api->n_unsynced -= !c->synced;
        c->watch = NULL;
    }
}

static void call_gone(struct http_req *req)
{
    struct call *c = req->data;
    c->req = NULL;
    if (c->kind == WATCH_KEYS) {
        TAILQ_REMOVE(&c->api->watches, c, link);
        if (c->watch != NULL) {
            watch_close(c->watch);
            watch_drop(c);
        }
    }
    call_release(c);
}

static void fail(struct http_req *req, int code, const char *hint)
{
    http_respond_error(req, code, err_msg(), hint);
}

static const char *hint_for(int code)
{
    switch (code) {
    case SYM_ENOQUORUM:
        return API_QUORUM_HINT;
    case SYM_EUNKNOWN:
        return "it may or may not have been carried out: read the key, or repeat it with the same "
               "Idempotency-Key";
    case SYM_ENOSPACE:
        return "free disk space on the managers, or delete keys: see `symphony manager status`";
    case SYM_ESTATE:
        return "ask another manager, or this one again later";
    default:
        return NULL;
    }
}

/* --- answers
 * ------------------------------------------------------------------------------------------------------ */

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
static int check_known(const struct call *c, bool stale)
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

static void respond_scratch(struct call *c, bool more)
{
    struct buf *out = &c->api->scratch;
    char extra[96];
    snprintf(extra, sizeof extra, "X-Revision: %llu\r\n%s",
        (unsigned long long)store_revision(c->api->d->store), more ? "X-More: true\r\n" : "");
    http_respond(c->req, 200, NULL, extra, buf_data(out), out->len);
    if (out->cap > SCRATCH_KEEP) {
        buf_free(out);
    }
}

static void answer_key(struct call *c, bool stale)
{
    struct api *a = c->api;
    struct kv kv;
    int rv = check_known(c, stale);
    rv = rv != 0 ? rv : store_get(a->d->store, c->key, c->key_len, &kv);
    if (rv != 0) {
        fail(c->req, rv, hint_for(rv));
        return;
    }
    struct buf *out = &a->scratch;
    buf_clear(out);
    rv = put_kv(out, &kv);
    rv = rv != 0 || !stale ? rv : put_stale(a, out);
    rv = rv != 0 ? rv : buf_append(out, "}\n", 2);
    if (rv != 0) {
        fail(c->req, rv, NULL);
        return;
    }
    respond_scratch(c, false);
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
    int rv = check_known(c, stale);
    rv = rv != 0 ? rv : buf_append(out, "[", 1);
    if (rv == 0) {
        rv = store_list(
            a->d->store, (struct slice){c->key, c->key_len}, c->has_after ? &after : NULL, list_one, &walk);
    }
    rv = rv < 0 ? rv : buf_append(out, "]\n", 2);
    if (rv < 0) {
        fail(c->req, rv, hint_for(rv));
        return;
    }
    respond_scratch(c, walk.more);
}

/* --- watches
 * ------------------------------------------------------------------------------------------------------ */

static int event_line(struct event *ev)
{
    struct buf line = {0};
    int rv = buf_appendf(&line, "{\"type\":\"%s\",", ev->is_delete ? "delete" : "put");
    rv = rv != 0 ? rv : json_bytes(&line, "key", ev->key.p + PREFIX_LEN, ev->key.n - PREFIX_LEN);
    if (rv == 0 && !ev->is_delete) {
        rv = buf_append(&line, ",", 1);
        rv = rv != 0 ? rv : json_bytes(&line, "value", ev->value.p, ev->value.n);
        rv = rv != 0
                 ? rv
                 : buf_appendf(&line, ",\"create_revision\":%llu", (unsigned long long)ev->create_revision);
    }
    rv = rv != 0 ? rv : buf_appendf(&line, ",\"revision\":%llu}\n", (unsigned long long)ev->revision);
    if (rv == 0) {
        ev->line = buf_take(&line, &ev->line_len);
    }
    buf_free(&line);
    return ev->line == NULL ? SYM_ENOMEM : 0;
}

static void watch_end(struct call *c, int code)
{
    char text[256];
    int n = snprintf(text, sizeof text, "{\"error\":{\"code\":\"%s\",\"message\":\"%s\"}}\n", err_name(code),
        code == SYM_ECOMPACTED ? "the history that this watch needs is gone: list again"
        : code == SYM_EEXPIRED ? "the certificate has expired"
                               : "the watch has ended");
    if (http_stream_write(c->req, text, (size_t)n) != SYM_ECLOSED) {
        http_stream_end(c->req);
    }
}

/* Ends it for our own reasons. */
static void watch_cut(struct call *c, int code)
{
    watch_close(c->watch);
    watch_drop(c);
    watch_end(c, code);
}

/* Its certificate may have expired since it began. */
static bool watch_expired(const struct call *c)
{
    return c->req->tls && tls_peer_expired(c->req->peer);
}

static bool watch_events(void *arg, int status, struct event **events, unsigned n)
{
    struct call *c = arg;
    if (status != 0) {
        watch_drop(c);
        watch_end(c, status);
        return true;
    }
    if (watch_expired(c)) {
        watch_cut(c, SYM_EEXPIRED);
        return true;
    }
    bool room = true;
    for (unsigned i = 0; i < n; i++) {
        if (events[i]->line == NULL && event_line(events[i]) != 0) {
            http_abort(c->req);
            return false;
        }
        int rv = http_stream_write(c->req, events[i]->line, events[i]->line_len);
        if (rv != 0 && rv != SYM_EBUSY) {
            return false;
        }
        room = room && rv == 0;
    }
    c->paused = !room;
    return room;
}

static void watch_drain(struct http_req *req)
{
    struct call *c = req->data;
    if (c->watch != NULL) {
        c->paused = false;
        watch_resume(c->watch);
        daemon_pump(c->api->d);
    }
}

static void answer_watch(struct call *c)
{
    struct api *a = c->api;
    uint64_t after = c->has_after ? c->after : store_revision(a->d->store);
    struct slice prefix = {c->key, c->key_len};
    int rv = check_known(c, false);
    rv = rv != 0 ? rv : watch_open(a->d->store, prefix, after, watch_events, c, &c->watch);
    if (rv != 0) {
        fail(c->req, rv,
            rv == SYM_ECOMPACTED ? "list the keys again and watch from the list's revision + 1"
                                 : hint_for(rv));
        return;
    }
    a->n_unsynced++;
    c->req->on_drain = watch_drain;
    http_stream_start(c->req, 200, "application/x-ndjson");
    daemon_pump(a->d);
}

static void watch_progress(struct call *c, const char *type)
{
    char text[80];
    int n = snprintf(
        text, sizeof text, "{\"type\":\"%s\",\"revision\":%llu}\n", type, (unsigned long long)c->api->told);
    (void)http_stream_write(c->req, text, (size_t)n); /* a peer that is gone is heard of from the stream */
}

/* A client may go on after the revision of a "sync" or "heartbeat", so it must not be ahead of the events. */
void api_told(struct api *a)
{
    struct call *c;
    a->told = store_revision(a->d->store);
    if (a->n_unsynced == 0) {
        return;
    }
    TAILQ_FOREACH (c, &a->watches, link) {
        if (c->watch != NULL && !c->synced && !c->paused) {
            c->synced = true;
            a->n_unsynced--;
            watch_progress(c, "sync");
        }
    }
}

/* Tells an idle client that the line is alive, and how far the state is. */
static void on_heartbeat(uv_timer_t *timer)
{
    struct api *a = timer->data;
    struct call *c;
    if (a->d->store == NULL) {
        return;
    }
    daemon_deliver(a->d);
    TAILQ_FOREACH (c, &a->watches, link) {
        if (c->watch != NULL && watch_expired(c)) {
            watch_cut(c, SYM_EEXPIRED);
        } else if (c->watch != NULL && c->synced && !c->paused) {
            watch_progress(c, "heartbeat");
        }
    }
}

/* --- raft's answers
 * ----------------------------------------------------------------------------------------------- */

static bool is_role(const struct tls_peer *peer, const char *role)
{
    return strcmp(peer->cert.ou, role) == 0;
}

static bool is_client(const struct tls_peer *peer)
{
    return is_role(peer, "operator") || is_role(peer, "reader");
}

/* What the state has to say for a certificate to be worth anything: of its key, whose it is. That is there until its
 * owner is removed, with the owner's node id, or with the role and the name that a client certificate was issued for.
 */
struct basis {
    char key[16 + 2 * SHA256_LEN + 1];
    char owner[2 * sizeof((struct tls_peer *)NULL)->cert.cn];
};

static void basis_of(const struct tls_peer *peer, struct basis *out)
{
    strcpy(out->key, "/fingerprint/");
    hex_encode(peer->cert.fingerprint, SHA256_LEN, out->key + strlen(out->key));
    snprintf(out->owner, sizeof out->owner, "%s%s%s", is_client(peer) ? peer->cert.ou : "",
        is_client(peer) ? " " : "", peer->cert.cn);
}

static bool is_node(struct daemon *d, const char *id)
{
    char key[8 + sizeof((struct tls_peer *)NULL)->cert.cn];
    struct kv kv;
    int n = snprintf(key, sizeof key, "/node/%s", id);
    return store_get(d->store, key, (size_t)n, &kv) == 0;
}

/* What the peer may do to the users' keys: READ and WRITE, or UNSURE. A certificate is worth what the state says of its
 * key now.
 */
static int access_of_peer(struct daemon *d, const struct tls_peer *peer)
{
    struct basis basis;
    struct kv kv;
    if (!peer->present || tls_peer_expired(peer) || (!is_role(peer, "manager") && !is_client(peer))) {
        return 0;
    }
    basis_of(peer, &basis);
    if (store_get(d->store, basis.key, strlen(basis.key), &kv) != 0) {
        return UNSURE; /* this manager may be behind */
    }
    if (strlen(basis.owner) != kv.value.n || memcmp(basis.owner, kv.value.p, kv.value.n) != 0) {
        return 0;
    }
    /* Of a node that is out, what stands elsewhere may go a little later. */
    if (!is_client(peer) && !is_node(d, peer->cert.cn)) {
        return 0;
    }
    return is_role(peer, "reader") ? READ : READ | WRITE;
}

static int access_of(struct daemon *d, const struct http_req *req)
{
    return req->tls ? access_of_peer(d, req->peer)
                    : READ | WRITE; /* the control socket's own permissions decided */
}

bool api_trusts(struct api *a, const struct tls_peer *peer)
{
    /* A manager must get in where the state is behind; of a client it is rather that its certificate was revoked. */
    int enough = is_role(peer, "manager") ? WRITE | UNSURE : WRITE;
    return a->d->store != NULL && (access_of_peer(a->d, peer) & enough) != 0;
}

bool api_knows(struct api *a, const struct tls_peer *peer)
{
    return a->d->store != NULL && (access_of_peer(a->d, peer) & READ) != 0;
}

static int needed_for(const struct call *c)
{
    return c->kind == PUT_KEY || c->kind == DELETE_KEY ? WRITE : READ;
}

static void refuse(struct http_req *req)
{
    const struct tls_peer *peer = req->peer;
    if (peer == NULL || !peer->present) {
        err_setf(SYM_EAUTH, "this needs a client certificate");
        fail(req, SYM_EAUTH, NULL);
    } else if (tls_peer_expired(peer)) {
        bool client = is_client(peer);
        err_setf(SYM_EEXPIRED, client ? "the certificate has expired"
                                      : "the certificate has expired: it is good for POST /v1/renew only");
        fail(req, SYM_EEXPIRED, client ? "`symphony cert issue` on a manager makes another" : NULL);
    } else {
        err_setf(SYM_EDENIED, "this is not allowed to the owner of this certificate");
        fail(req, SYM_EDENIED, NULL);
    }
}

void api_recheck(struct api *a)
{
    struct call *c;
    TAILQ_FOREACH (c, &a->watches, link) {
        if (c->watch != NULL && (access_of(a->d, c->req) & READ) == 0) {
            http_abort(c->req);
        }
    }
}

static int start_change(struct call *c, const struct kv_admitted *admitted);

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
        fail(c->req, status, hint_for(status));
        return;
    }
    /* Again, because now this manager knows of everything that came before the request. */
    if ((access_of(d, c->req) & needed_for(c)) == 0) {
        refuse(c->req);
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
        answer_watch(c);
        break;
    default:
        status = start_change(c, NULL);
        if (status != 0) {
            fail(c->req, status, NULL);
        }
    }
}

/* Policies have been set of which this manager did not know: what to do with the change is decided in Lua. Those that
 * came over the same connection meanwhile go the same way, side by side. */
static void hand_over(struct call *c)
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
        hand_over(c);
        return;
    }
    if (status == SYM_ECANCELED) {
        /* It may be in the log already, and those who go on have that. */
        status = err_setf(SYM_EUNKNOWN, "this node is stopping; the write may or may not have happened");
    } else if (status == 0 && result->status == TXN_CONFLICT && c->req->tls && result->failed == 0) {
        if (!result->repeated || http_req_header(c->req, "idempotency-key") == NULL) {
            refuse(c->req);
            return;
        }
        status = err_setf(
            SYM_ECONFLICT, "this request was refused under this Idempotency-Key, for its certificate");
    } else if (status == 0 && result->status == TXN_CONFLICT) {
        status = err_setf(SYM_ECONFLICT, "the key is not as the request expects it");
    } else if (status == 0 && result->status == TXN_UNKNOWN) {
        status = err_setf(SYM_EUNKNOWN, "the Idempotency-Key is older than what is remembered");
    }
    if (status != 0) {
        fail(c->req, status, hint_for(status));
        return;
    }
    char body[64];
    int n = snprintf(body, sizeof body, "{\"revision\":%llu%s}\n", (unsigned long long)result->revision,
        result->repeated ? ",\"repeated\":true" : "");
    http_respond(c->req, 200, NULL, NULL, body, (size_t)n);
}

/* --- requests
 * ----------------------------------------------------------------------------------------------------- */

static bool parse_u64(const char *text, uint64_t *out)
{
    uint64_t v = 0;
    if (*text == '\0' || strlen(text) > 19) {
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
static int number_param(struct http_req *req, const char *name, uint64_t *out)
{
    char text[24];
    int rv = http_req_param(req, name, text, sizeof text);
    if (rv == SYM_ENOTFOUND) {
        return 0;
    }
    return rv == 0 && parse_u64(text, out) ? 1 : err_setf(SYM_EINVAL, "%s must be a number", name);
}

/* Reads @name into @to behind "/kv/"; an absent one is empty. 1, 0 or an error as above. */
static int key_param(struct http_req *req, const char *name, uint8_t *to, size_t *len)
{
    char text[USER_KEY_MAX + 1];
    int rv = http_req_param(req, name, text, sizeof text);
    memcpy(to, kv_folder, PREFIX_LEN);
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
    if (since != NULL && !parse_u64(since, &id->since)) {
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
 * if the state still says the same where it is applied. The first of the compares, and *@basis lives as long as @t. */
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
static int start_change(struct call *c, const struct kv_admitted *admitted)
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
    int given = *req->query == '\0' ? 0 : number_param(req, "mod_revision", &revision);
    if (given < 0) {
        return given;
    }
    if (req->tls) {
        rest_on(&t, req->peer, &basis);
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

/* --- the policies
 * ----------------------------------------------------------------------------------------------------- */

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
        fail(c->req, rv, NULL);
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
    c->pending = false;
    if (c->req == NULL) {
        call_release(c);
        return;
    }
    if (a->d->raft == NULL || a->d->stopping) {
        err_setf(SYM_ECLOSED, "this node is stopping");
        fail(c->req, SYM_ECLOSED, NULL);
        return;
    }
    if (answer->status == SYM_EPOLICYTIME || answer->status == SYM_EPOLICYDIED) {
        fail_closed(c, answer);
        return;
    }
    if (answer->status != 0) {
        hand_over(c);
        return;
    }
    if (kv_admit_result(answer->json, answer->n, &admitted, note_heard, c) != 0 || c->unheard != 0) {
        hand_over(c);
    } else {
        int rv = start_change(c, &admitted);
        if (rv != 0) {
            fail(c->req, rv, NULL);
        }
    }
    kv_admitted_free(&admitted);
}

/* The policies are asked from here for what is most: a change by who is there in person, that is not to be remembered
 * and looks at no more than its key. On any manager: what one that is behind has seen does not hold. */
static bool may_ask(const struct api *a, const struct http_req *req)
{
    return a->set_revision != 0 &&
           (*req->query == '\0' ||
               (strncmp(req->query, "mod_revision=", 13) == 0 && strchr(req->query, '&') == NULL)) &&
           http_req_header(req, "idempotency-key") == NULL && (!req->tls || is_client(req->peer));
}

/* 0: on_decided is told; 1: this is for Lua; SYM_E*. */
static int ask_policies(struct call *c)
{
    struct api *a = c->api;
    struct http_req *req = c->req;
    struct host *host = bind_policy_host(a->d->L);
    struct kv old;
    if (host == NULL) {
        return 1;
    }
    c->set_revision = a->set_revision;
    c->set_count = a->set_count;
    char key[USER_KEY_MAX + 1];
    snprintf(key, sizeof key, "%.*s", (int)(c->key_len - PREFIX_LEN), (const char *)c->key + PREFIX_LEN);
    const char *const values[RULES_FIELDS] = {
        [RULES_KIND] = "kv", [RULES_KEY] = key, [RULES_ACTION] = c->kind == PUT_KEY ? "put" : "delete"};
    c->unheard = host_concerned(host, "admit.change", values);
    if (c->unheard == 0) {
        const struct kv_admitted nothing = {.n = 0};
        return start_change(c, &nothing);
    }
    int rv = store_get(a->d->store, c->key, c->key_len, &old);
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
    if (rv == 0) {
        c->pending = c->asked = true;
        TAILQ_INSERT_TAIL(&a->asking, c, link);
    }
    return rv;
}

static int start_read(struct call *c)
{
    char text[8];
    struct http_req *req = c->req;
    if (*req->query != '\0' && needed_for(c) == READ) {
        c->stale_ok = c->kind != WATCH_KEYS && http_req_param(req, "stale", text, sizeof text) == 0 &&
                      strcmp(text, "ok") == 0;
        int given = number_param(req, "min_revision", &c->min_revision);
        if (given < 0) {
            return given;
        }
    }
    c->pending = true;
    rnode_read(c->api->d->raft, READ_MS, on_read, c);
    return 0;
}

static int start_list(struct call *c)
{
    uint64_t limit = LIST_DEFAULT;
    int rv = key_param(c->req, "prefix", c->key, &c->key_len);
    int more = key_param(c->req, "after", c->start, &c->start_len);
    int given = number_param(c->req, "limit", &limit);
    if (rv < 0 || more < 0 || given < 0) {
        return rv < 0 ? rv : more < 0 ? more : given;
    }
    c->has_after = more == 1;
    c->after = limit > LIST_MAX ? LIST_MAX : limit;
    return start_read(c);
}

static int start_watch(struct call *c)
{
    uint64_t from = 0;
    int rv = key_param(c->req, "prefix", c->key, &c->key_len);
    int given = number_param(c->req, "from", &from);
    if (rv < 0 || given < 0) {
        return rv < 0 ? rv : given;
    }
    c->has_after = given == 1 && from > 0;
    c->after = from > 0 ? from - 1 : 0;
    return start_read(c);
}

static void refuse_method(struct http_req *req, const char *allowed)
{
    char body[192], extra[64];
    int n = snprintf(body, sizeof body,
        "{\"error\":{\"code\":\"invalid\",\"message\":\"this route has no such method\","
        "\"hint\":\"allowed: %s\"}}\n",
        allowed);
    snprintf(extra, sizeof extra, "Allow: %s\r\n", allowed);
    http_respond(req, 405, NULL, extra, body, (size_t)n);
}

static void refuse_stopped(struct daemon *d, struct http_req *req)
{
    if (d->stopping || d->node_stopping) {
        err_setf(SYM_ECLOSED, "this node is stopping");
        fail(req, SYM_ECLOSED, NULL);
    } else if (strcmp(d->opt.role, "manager") != 0) {
        err_setf(SYM_ECLOSED, "this node is a worker: the state is with the managers");
        fail(req, SYM_ECLOSED, "ask a manager");
    } else {
        err_setf(SYM_ECLOSED, "this node is not part of a cluster");
        fail(req, SYM_ECLOSED, "`symphony manager init` or `symphony manager join`");
    }
}

static int start_call(struct call *c, bool unsure)
{
    switch (c->kind) {
    case WATCH_KEYS:
        return start_watch(c);
    case LIST_KEYS:
        return start_list(c);
    case GET_KEY:
        return start_read(c);
    default:
        return unsure ? start_read(c) : c->api->lua_decides ? ask_policies(c) : start_change(c, NULL);
    }
}

bool api_handle(struct api *a, struct http_req *req)
{
    static const char kv[] = "/v1/kv";
    struct daemon *d = a->d;
    if (req->path_len < sizeof kv - 1) {
        return false;
    }
    bool is_kv = memcmp(req->path, kv, sizeof kv - 1) == 0;
    bool one = is_kv && req->path_len > sizeof kv && req->path[sizeof kv - 1] == '/';
    bool list =
        is_kv && (req->path_len == sizeof kv - 1 || (req->path_len == sizeof kv && req->path[6] == '/'));
    bool watch = !is_kv && strcmp(req->path, "/v1/watch") == 0;
    bool health = !is_kv && strcmp(req->path, "/healthz") == 0;
    if (!one && !list && !watch && !health) {
        return false;
    }
    /* The body of an answer to HEAD is left out below. */
    bool get = strcmp(req->method, "GET") == 0 || (strcmp(req->method, "HEAD") == 0 && !watch);
    bool put = one && strcmp(req->method, "PUT") == 0;
    bool del = one && strcmp(req->method, "DELETE") == 0;
    if (!get && !put && !del) {
        refuse_method(req, one ? "GET, HEAD, PUT, DELETE" : watch ? "GET" : "GET, HEAD");
        return true;
    }
    if (health) {
        http_respond(req, 200, NULL, NULL, "{\"ok\":true}\n", 12);
        return true;
    }
    if ((put || del) && req->tls && is_role(req->peer, "manager") &&
        http_req_header(req, "symphony-forwarded") != NULL) {
        return false; /* what it rests on besides that manager is in its headers: basis.lua */
    }
    if (d->raft == NULL || (watch && d->node_stopping)) {
        refuse_stopped(d, req);
        return true;
    }
    int may = access_of(d, req);
    if ((may & (UNSURE | (get ? READ : WRITE))) == 0) {
        refuse(req);
        return true;
    }
    bool unsure = (may & UNSURE) != 0;
    if (unsure && !allowance_take(&a->looks, req->peer->cert.fingerprint, uv_now(d->loop))) {
        err_setf(SYM_EBUSY, "cannot tell so often whether this peer is a member");
        fail(req, SYM_EBUSY, "say it again in some seconds");
        return true;
    }
    size_t key_len = one ? req->path_len - sizeof kv : 0;
    if (key_len > USER_KEY_MAX) {
        err_setf(SYM_ETOOBIG, "a key of %zu bytes; at most %d fit", key_len, USER_KEY_MAX);
        fail(req, SYM_ETOOBIG, NULL);
        return true;
    }
    if (!get && a->lua_decides && ((may & UNSURE) != 0 || !may_ask(a, req))) {
        return false;
    }
    /* Most are for one key, and that is short. */
    struct call *c = malloc(sizeof *c + (one ? PREFIX_LEN + key_len : 2 * KEY_ROOM));
    if (c == NULL) {
        err_setf(SYM_ENOMEM, "out of memory");
        fail(req, SYM_ENOMEM, NULL);
        return true;
    }
    *c = (struct call){.api = a, .req = req, .start = one ? NULL : c->key + KEY_ROOM};
    memcpy(c->key, kv_folder, PREFIX_LEN);
    memcpy(c->key + PREFIX_LEN, one ? req->path + sizeof kv : "", key_len);
    c->key_len = PREFIX_LEN + key_len;
    c->kind = watch ? WATCH_KEYS : list ? LIST_KEYS : put ? PUT_KEY : del ? DELETE_KEY : GET_KEY;
    req->data = c;
    req->on_gone = call_gone;
    /* Changes go into one queue, and from there into the log, as they come; but not those that wait for a read. */
    /* Nor those that wait for what policies say. */
    req->overlap = one && !unsure && (get || !a->lua_decides);
    if (watch) {
        TAILQ_INSERT_TAIL(&a->watches, c, link);
    }
    int rv = start_call(c, unsure);
    if (rv == 1) {
        hand_over(c);
    } else if (rv != 0) {
        fail(req, rv, NULL);
    }
    return true;
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

int api_new(struct daemon *d, struct api **out)
{
    struct api *a = calloc(1, sizeof *a);
    if (a == NULL) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    a->d = d;
    a->looks.burst = LOOKS;
    a->looks.every = LOOK_MS;
    TAILQ_INIT(&a->watches);
    TAILQ_INIT(&a->asking);
    uv_timer_init(d->loop, &a->heartbeat);
    uv_unref((uv_handle_t *)&a->heartbeat);
    a->heartbeat.data = a;
    uv_timer_start(&a->heartbeat, on_heartbeat, HEARTBEAT_MS, HEARTBEAT_MS);
    *out = a;
    return 0;
}

void api_shut(struct api *a)
{
    struct call *c, *next;
    for (c = TAILQ_FIRST(&a->watches); c != NULL; c = next) {
        next = TAILQ_NEXT(c, link);
        if (c->watch != NULL) {
            watch_cut(c, SYM_ECLOSED);
        }
    }
}

static void heartbeat_closed(uv_handle_t *handle)
{
    struct api *a = handle->data;
    buf_free(&a->scratch);
    free(a);
}

void api_free(struct api *a)
{
    struct call *c;
    /* Their answers do not come any more. */
    while ((c = TAILQ_FIRST(&a->asking)) != NULL) {
        TAILQ_REMOVE(&a->asking, c, link);
        if (c->req != NULL) {
            c->req->data = NULL;
            c->req->on_gone = NULL;
        }
        free(c);
    }
    uv_close((uv_handle_t *)&a->heartbeat, heartbeat_closed);
}
