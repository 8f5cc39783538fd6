#include "daemon/daemon.h"

#include "base/err.h"
#include "base/log.h"
#include "daemon/api.h"
#include "daemon/route_class.h"
#include "lua/bind_http.h"
#include "lua/bind_store.h"
#include "raft/authorize.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct store *bind_store_of(lua_State *L)
{
    return ((struct daemon *)vm_daemon(L))->store;
}

struct rnode *bind_raft_of(lua_State *L)
{
    return ((struct daemon *)vm_daemon(L))->raft;
}

char *daemon_path(const struct daemon *d, const char *name)
{
    char *path = NULL;
    if (asprintf(&path, "%s/%s", d->opt.config_dir, name) < 0) {
        err_setf(SYM_ENOMEM, "out of memory");
        return NULL;
    }
    return path;
}

/* --- requests
 * ----------------------------------------------------------------------------------------------------- */

struct asked {
    struct http_req *req;
    bool taken; /* Lua has it, and answers */
};

static int push_request(lua_State *L, void *arg)
{
    struct asked *asked = arg;
    int n = bind_http_push_req(L, asked->req);
    asked->taken = true;
    return n;
}

static bool is_trusted(void *arg, const struct tls_peer *peer)
{
    struct daemon *d = arg;
    return api_trusts(d->api, peer);
}

void daemon_ask_lua(struct daemon *d, struct http_req *req)
{
    if (d->on_request.L == NULL || d->stopping) {
        http_respond_error(
            req, SYM_ECLOSED, d->stopping ? "this node is shutting down" : "this node is starting", NULL);
        return;
    }
    struct asked asked = {.req = req};
    vm_cb_call(&d->on_request, 0, push_request, &asked);
    if (!asked.taken) {
        http_respond_error(req, SYM_EIO, "the request was not answered", NULL);
    }
}

static void gone_before_its_turn(struct http_req *req)
{
    (void)req;
}

static void ask_first(struct http_req *req)
{
    struct daemon *d = req->data;
    req->data = NULL;
    req->on_gone = NULL;
    daemon_ask_lua(d, req);
}

/* What changes something other than a user's key comes behind the changes of those that came before it. */
static bool has_to_wait(const struct http_req *req)
{
    return http_req_before(req) != NULL && strcmp(req->method, "GET") != 0 &&
           strcmp(req->method, "HEAD") != 0;
}

static void on_request(struct http_req *req, void *arg)
{
    struct daemon *d = arg;
    req->class = route_class(req);
    if (api_handle(d->api, req)) {
        return;
    }
    if (has_to_wait(req)) {
        req->data = d;
        req->on_gone = gone_before_its_turn;
        req->on_first = ask_first;
        return;
    }
    daemon_ask_lua(d, req);
}

/* --- watches
 * ------------------------------------------------------------------------------------------------------ */

/* True if there is more to get. */
static bool deliver(struct daemon *d)
{
    if (d->store == NULL) {
        return false;
    }
    bool more = store_pump(d->store);
    if (!more) {
        api_told(d->api);
    }
    return more;
}

static void on_pump(uv_idle_t *idle)
{
    if (!deliver(idle->data)) {
        uv_idle_stop(idle);
    }
}

void daemon_pump(struct daemon *d)
{
    if (!d->stopping) {
        uv_idle_start(&d->pump, on_pump);
    }
}

void daemon_deliver(struct daemon *d)
{
    if (deliver(d)) {
        daemon_pump(d);
    }
}

static void on_watch(void *arg)
{
    daemon_pump(arg);
}

static bool on_node_event(void *arg, int status, struct event **events, unsigned n);
static bool on_client_event(void *arg, int status, struct event **events, unsigned n);

static void watch_owners(struct daemon *d, const char *prefix, watch_cb fn, struct watch **out)
{
    struct slice below = {(const uint8_t *)prefix, strlen(prefix)};
    if (watch_open(d->store, below, store_revision(d->store), fn, d, out) != 0) {
        log_error("cannot watch %s: %s", prefix, err_msg());
        *out = NULL;
    }
}

static void watch_nodes(struct daemon *d)
{
    watch_owners(d, "/node/", on_node_event, &d->nodes);
}

static void watch_clients(struct daemon *d)
{
    watch_owners(d, "/client/", on_client_event, &d->clients);
}

static bool is_known(void *arg, const struct tls_peer *peer)
{
    return api_knows(((struct daemon *)arg)->api, peer);
}

/* Cuts off who is named behind the prefix of an event's key, unless @keep. */
static void cut_off(struct daemon *d, const struct event *ev, size_t prefix,
    bool (*keep)(void *arg, const struct tls_peer *peer))
{
    char name[64];
    if (d->remote != NULL && ev->key.n > prefix && ev->key.n < prefix + sizeof name) {
        memcpy(name, ev->key.p + prefix, ev->key.n - prefix);
        name[ev->key.n - prefix] = '\0';
        http_server_drop_unless(d->remote, name, keep, d);
    }
}

/* A removed node is cut off at the revision that removed it. */
static bool on_node_event(void *arg, int status, struct event **events, unsigned n)
{
    struct daemon *d = arg;
    if (status != 0) {
        /* A snapshot came in between, and some of these may not be in it. */
        watch_nodes(d);
        api_recheck(d->api);
        return true;
    }
    for (unsigned i = 0; i < n; i++) {
        if (events[i]->is_delete) {
            cut_off(d, events[i], strlen("/node/"), NULL);
        }
    }
    return true;
}

/* The owner of a client certificate likewise, and of one in whose place another was issued. */
static bool on_client_event(void *arg, int status, struct event **events, unsigned n)
{
    struct daemon *d = arg;
    if (status != 0) {
        watch_clients(d);
        api_recheck(d->api);
        return true;
    }
    for (unsigned i = 0; i < n; i++) {
        cut_off(d, events[i], strlen("/client/"), is_known);
    }
    return true;
}

/* --- raft's callbacks
 * --------------------------------------------------------------------------------------------- */

static int authorize(void *arg, uint64_t id, const struct tls_peer *peer)
{
    return raft_authorize(((struct daemon *)arg)->store, id, peer);
}

static bool is_member(void *arg, uint64_t id, const struct tls_peer *peer)
{
    return raft_knows(((struct daemon *)arg)->store, id, peer);
}

static void on_change(void *arg)
{
    struct daemon *d = arg;
    vm_cb_call(&d->on_change, 0, NULL, NULL);
}

static void on_applied(void *arg)
{
    struct daemon *d = arg;
    /* What is gone through again after a start says nothing of the cluster. */
    if (store_applied(d->store) != d->applied) {
        d->applied = store_applied(d->store);
        d->fresh_ms = uv_now(d->loop);
    }
    daemon_deliver(d);
}

struct removal {
    int code;
    const char *reason;
};

static int push_removal(lua_State *L, void *arg)
{
    struct removal *removal = arg;
    lua_pushstring(L, err_name(removal->code));
    lua_pushstring(L, removal->reason);
    return 2;
}

static void on_removed(void *arg, int code, const char *reason)
{
    struct daemon *d = arg;
    struct removal removal = {code, reason};
    vm_cb_call(&d->on_removed, 0, push_removal, &removal);
}

/* --- start
 * ----------------------------------------------------------------------------------------------- */

/* The leaf, and behind it the CA: a joining node finds there the one that its token pins. */
static int server_tls(const struct node_config *cfg, struct tls_ctx **out)
{
    char *chain = NULL;
    if (asprintf(&chain, "%s%s", cfg->cert, cfg->ca) < 0) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    int rv = tls_ctx_new(TLS_SERVER | TLS_PEER_OPTIONAL, chain, cfg->key, cfg->ca, out);
    free(chain);
    return rv;
}

static struct store_config store_config(const struct daemon *d, const char *dir)
{
    return (struct store_config){.dir = dir, .quota = d->opt.quota, .write_map = true};
}

/* Raft and what it applies to. On failure nothing of it is left open. */
static int start_manager(struct daemon *d, const struct node_config *cfg)
{
    int rv = SYM_ENOMEM;
    char *state = daemon_path(d, "state");
    char *raft = daemon_path(d, "raft");
    if (state == NULL || raft == NULL) {
        goto free_paths;
    }
    struct store_config store = store_config(d, state);
    rv = store_open(&store, &d->store);
    if (rv != 0) {
        goto free_paths;
    }
    store_on_watch(d->store, on_watch, d);
    d->applied = store_applied(d->store);
    d->fresh_ms = 0;
    if (cfg->bootstrap) {
        rv = rnode_bootstrap(raft, cfg->raft_id, cfg->raft_address);
        if (rv != 0) {
            goto close_store;
        }
    }
    struct rnode_config node = {
        .loop = d->loop,
        .id = cfg->raft_id,
        .address = cfg->raft_address,
        .moves = cfg->raft_moves,
        .bind_addr = d->opt.bind_addr,
        .port = d->opt.raft_port,
        .dir = raft,
        .store = d->store,
        .store_config = &store,
        .cluster_id = cfg->cluster_id,
        .cert = cfg->cert,
        .key = cfg->key,
        .ca = cfg->ca,
        .starts = cfg->starts,
        .election_ms = d->opt.election_ms,
        .heartbeat_ms = d->opt.heartbeat_ms,
        .disk_floor = d->opt.disk_floor,
        .arg = d,
        .authorize = authorize,
        .on_change = on_change,
        .on_applied = on_applied,
        .on_removed = on_removed,
    };
    rv = rnode_start(&node, &d->raft);
    if (rv != 0) {
        goto close_store;
    }
    watch_nodes(d);
    watch_clients(d);
    goto free_paths;

close_store:
    store_close(d->store);
    d->store = NULL;
free_paths:
    free(state);
    free(raft);
    return rv;
}

int daemon_start(struct daemon *d, const struct node_config *cfg)
{
    if (d->stopping || d->node_stopping || d->tls != NULL) {
        return err_setf(SYM_EBUSY, d->stopping        ? "this daemon is shutting down"
                                   : d->node_stopping ? "the node is being stopped"
                                                      : "the node is already started");
    }
    int rv = server_tls(cfg, &d->tls);
    if (rv != 0) {
        return rv;
    }
    /* The doors first: a taken port is found before anything is written. */
    rv = http_server_new(d->loop, NULL, on_request, d, &d->remote);
    if (rv != 0) {
        goto free_tls;
    }
    http_server_set_trust(d->remote, is_trusted);
    rv = http_server_listen_tcp(d->remote, d->opt.bind_addr, d->opt.remote_port, d->tls, &d->opt.remote_port);
    if (rv != 0) {
        rv = err_wrapf(rv, "remote port");
        goto close_remote;
    }
    rv = cfg->raft_id != 0 ? start_manager(d, cfg) : 0;
    if (rv != 0) {
        goto close_remote;
    }
    return 0;

close_remote:
    http_server_close(d->remote, 0, NULL, NULL);
    d->remote = NULL;
free_tls:
    tls_ctx_free(d->tls);
    d->tls = NULL;
    return rv;
}

int daemon_recover(struct daemon *d, uint64_t raft_id, const char *raft_address)
{
    int rv = SYM_ENOMEM;
    char *state = daemon_path(d, "state");
    char *raft = daemon_path(d, "raft");
    if (state != NULL && raft != NULL) {
        struct store_config store = store_config(d, state);
        rv = rnode_recover(raft, &store, raft_id, raft_address);
    }
    free(state);
    free(raft);
    return rv;
}

int daemon_set_tls(struct daemon *d, const char *cert, const struct key *key, const char *ca)
{
    struct tls_ctx *tls;
    struct node_config cfg = {.cert = cert, .key = key, .ca = ca};
    if (d->remote == NULL) {
        return err_setf(SYM_ECLOSED, "the node is not started");
    }
    int rv = server_tls(&cfg, &tls);
    if (rv != 0) {
        return rv;
    }
    struct peers *peers = d->raft != NULL ? rnode_peers(d->raft) : NULL; /* a worker has none */
    rv = peers != NULL ? peers_set_tls(peers, cert, key, ca) : 0;
    if (rv != 0) {
        tls_ctx_free(tls);
        return rv;
    }
    http_server_set_tls(d->remote, tls);
    tls_ctx_free(d->tls);
    d->tls = tls;
    if (peers != NULL) {
        peers_recheck(peers, ca, is_member, d);
    }
    return 0;
}

void daemon_close(struct daemon *d)
{
    uv_run(d->loop, UV_RUN_DEFAULT); /* the deadline does not keep it running, but ends it if need be */
    uv_close((uv_handle_t *)&d->deadline, NULL);
    uv_run(d->loop, UV_RUN_DEFAULT);
    if (uv_loop_close(d->loop) != 0) {
        log_warn("something was left open at the end");
    }
}

int daemon_open(struct daemon *d, uv_loop_t *loop, const char *const *lua_paths)
{
    gid_t gid = d->opt.socket_gid;
    char *path = NULL;
    d->loop = loop;
    STAILQ_INIT(&d->waits);
    uv_idle_init(loop, &d->pump);
    d->pump.data = d;
    uv_timer_init(loop, &d->deadline);
    d->deadline.data = d;
    uv_unref((uv_handle_t *)&d->deadline);
    pulse_start(&d->pulse, loop);

    static const luaL_Reg modules[] = {
        {"sym.log", luaopen_sym_log},
        {"sym.sys", luaopen_sym_sys},
        {"sym.crypto", luaopen_sym_crypto},
        {"sym.http", luaopen_sym_http},
        {"sym.store", luaopen_sym_store},
        {"sym.raft", luaopen_sym_raft},
        {"sym.gossip", luaopen_sym_gossip},
        {"sym.node", luaopen_sym_node},
        {"sym.metrics", luaopen_sym_metrics},
        {"sym.policy", luaopen_sym_policy},
        {"sym.rules", luaopen_sym_rules},
        {NULL, NULL},
    };
    struct vm_config vm = {.loop = loop, .lua_paths = lua_paths, .daemon = d, .modules = modules};
    int rv = api_new(d, &d->api);
    if (rv != 0) {
        return rv;
    }
    rv = http_server_new(loop, NULL, on_request, d, &d->control);
    if (rv != 0) {
        goto free_api;
    }
    rv = vm_new(&vm, &d->L);
    if (rv != 0) {
        goto close_control;
    }
    path = daemon_path(d, "control.sock");
    rv = path == NULL ? SYM_ENOMEM
                      : http_server_listen_unix(d->control, path, gid == (gid_t)-1 ? 0600 : 0660, gid);
    if (rv != 0) {
        goto close_vm;
    }
    free(path);
    return 0;

close_vm:
    free(path);
    vm_close(d->L);
close_control:
    http_server_close(d->control, 0, NULL, NULL);
free_api:
    api_free(d->api);
    return rv;
}
