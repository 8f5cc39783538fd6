/* The daemon's parts and the order in which they start and stop. Lua decides when (boot.lua); here is how.
 *
 *   idle      control socket and Lua: a fresh daemon that waits for init or join
 *   started   + store, raft, remote API (daemon_start); of a worker the remote API only
 *   stopping  leadership handed over, doors closed, raft, store, Lua, loop (daemon_quit)
 */
#ifndef SYM_DAEMON_DAEMON_H
#define SYM_DAEMON_DAEMON_H

#include "daemon/pulse.h"
#include "lua/vm.h"
#include "net/http.h"
#include "raft/node.h"

struct options {
    const char *role; /* "manager", or the service of a worker: "block" */
    const char *config_dir;
    uint16_t raft_port, remote_port, gossip_port; /* 0: a free one is taken at the start */
    bool gossip_given; /* on the command line; else the port gives way when it is taken */
    const char *advertise_addr, *bind_addr;
    const char *lua_dirs[16];
    unsigned n_lua_dirs;
    const char *socket_group;
    gid_t socket_gid; /* who may use the control socket besides root and our own user; -1: nobody */
    unsigned election_ms, heartbeat_ms; /* 0: raft's defaults */
    uint64_t quota, disk_floor;         /* bytes; 0: the defaults of store and raft */
};

struct api;
STAILQ_HEAD(stop_waits, stop_wait);

struct daemon {
    uv_loop_t *loop;
    struct options opt;
    lua_State *L;
    struct api *api;
    struct http_server *control;
    struct http_server *remote; /* NULL until the node is started, as are the next three */
    struct store *store;        /* never there in a worker, and no raft */
    struct rnode *raft;         /* NULL again as soon as it has been asked to stop */
    struct tls_ctx *tls;        /* there until the node is wholly stopped */
    struct watch *nodes;        /* sees nodes being removed */
    struct watch *clients;      /* sees client certificates being revoked */
    struct vm_cb on_request;    /* Lua: every request that C does not answer itself */
    struct vm_cb on_change;     /* Lua: leader, term or membership changed */
    struct vm_cb on_removed;    /* Lua: (err, code, reason) */
    struct vm_cb on_kv_failed;  /* Lua: (err, policy, message, key): a policy did not decide on a change in time */
    struct vm_cb on_quit;       /* Lua: the end has been asked for; it says so again when it is ready */
    uv_idle_t pump;             /* active while watches have more to get */
    uv_timer_t deadline;        /* the end of patience when stopping */
    struct pulse pulse;
    bool stopping;           /* on the way out */
    bool node_stopping;      /* the node is; its parts go one after the other */
    bool quit_waits;         /* for the node's stop */
    bool quit_asked;         /* on_quit has been told */
    struct stop_waits waits; /* who is told of its end */
    int exit_code;
    uint64_t applied;  /* of the store when raft last told of entries */
    uint64_t fresh_ms; /* uv_now when local state was last known to be current; 0: never since the start */
};

/* Serves the control socket and runs boot.lua. 0 or SYM_E* with err_msg(); then nothing is left open. */
int daemon_open(struct daemon *d, uv_loop_t *loop, const char *const *lua_paths);
/* Orderly end: uv_stop, when nothing but handles that are closing is left; after 10 s the process ends by itself. Where
 * Lua wants to know (on_quit), the first call only tells it, and the end begins with the second, or a second later. */
void daemon_quit(struct daemon *d, int code);
/* After uv_stop: lets the loop run dry and closes it, still within those 10 s. */
void daemon_close(struct daemon *d);

struct node_config {
    uint64_t raft_id; /* 0: a worker, for which what only raft needs is left out */
    uint64_t starts;
    const char *raft_address; /* advertised host:port */
    uint64_t raft_moves;      /* how often that has changed */
    const char *cluster_id, *cert, *ca;
    const struct key *key;
    bool bootstrap; /* first member of a new cluster: write the first configuration */
};
/* Store, raft and the remote API; with raft_id 0, a worker, which has neither store nor raft, the remote API only. What
 * was opened is closed again on failure. */
int daemon_start(struct daemon *d, const struct node_config *cfg);
/* Back to idle: @done from the loop. Said while a stop is under way, it waits for the end of that one.
 * SYM_ECLOSED when it is idle. */
int daemon_stop(struct daemon *d, void (*done)(void *arg), void *arg);
/* While idle: makes this manager the only voter, see rnode_recover. */
int daemon_recover(struct daemon *d, uint64_t raft_id, const char *raft_address);
/* New connections, to and from us, use the new certificate and CA. */
int daemon_set_tls(struct daemon *d, const char *cert, const struct key *key, const char *ca);

/* Delivers to watches, soon and until they have seen all that is there. */
void daemon_pump(struct daemon *d);
/* The same, and begins with it now. Not from a watch's callback. */
void daemon_deliver(struct daemon *d);

/* Hands @req, which nobody has taken, to Lua's routes. */
void daemon_ask_lua(struct daemon *d, struct http_req *req);

/* DIR/<name>, malloc'd; NULL without memory. */
char *daemon_path(const struct daemon *d, const char *name);

int luaopen_sym_node(lua_State *L);
int luaopen_sym_metrics(lua_State *L);

#endif
