/* The inside of peers: peers.c has the interface, the table and the owed callbacks, peers_conn.c the
 * connections. */
#ifndef SYM_RAFT_PEERS_IMPL_H
#define SYM_RAFT_PEERS_IMPL_H

#include "raft/frame.h"
#include "raft/peers.h"

#include <sys/queue.h>

enum {
    PEERS_RESERVE = 64, /* completions that can be told when there is no memory */
    PEERS_DEFAULT_PORT = 15760,
};

/* When it was that something was said in the log, so that it is not said at each attempt. */
struct said {
    uint64_t at; /* uv_now, 0: nothing */
    uint32_t what;
};

enum { SAID_MAX = 4 };

/* One connection. @peer is NULL on an accepted one before its hello, and on any that we are done with
 * (closing). */
struct conn {
    LIST_ENTRY(conn) link;
    struct peers *owner;
    struct peer *peer;
    struct stream *stream;
    bool outgoing;
    bool ready;          /* welcomed */
    bool closing;        /* left alone until on_close */
    bool cut;            /* stream_close was called: it ends at once, not after a last word */
    bool bye;            /* the other side said that it closes this one but lives */
    bool heard, wrote;   /* since the last tick */
    unsigned age, quiet; /* ticks since it began, and since something arrived */
    uint64_t starts;     /* outgoing: what the welcome said */
    struct frame_reader reader;
};

/* A raft id that was set, or that has connected to us. Kept until the end, for the sake of @starts. */
struct peer {
    LIST_ENTRY(peer) link;
    struct peers *owner;
    uint64_t id;
    char *address; /* NULL: not set, we do not connect */
    char *told;    /* NULL, or the address that its hello gave */
    char *moved;   /* NULL, or the address that it has after so many */
    uint64_t moves;
    struct conn *out, *in;
    bool up, down_due; /* down_due: on_down is owed */
    int refused;       /* why it has refused us, 0 after a welcome */
    uint64_t retry_at; /* uv_now, 0: no attempt is due */
    unsigned backoff;  /* ms, 0 after a success */
    uint64_t starts;   /* the highest seen */
    uint64_t nonce;    /* of that start */
    uint64_t last_heard;
    struct said said[SAID_MAX];
    struct frame_queue queue;
};

struct peers {
    struct peers_config cfg;
    char *cluster_id, *address, *starts_file;
    bool unsaved; /* the file lacks a start that we have heard of */
    struct tls_ctx *client, *server;
    struct listener *listener;
    LIST_HEAD(, peer) peers;
    LIST_HEAD(, conn) conns;
    unsigned strangers;
    unsigned news; /* addresses of others that were learned */
    uint64_t refusal_logged;
    struct said said[SAID_MAX]; /* of those that are no peer yet */
    struct frame_list done;     /* frames whose callback is owed */
    struct {
        peers_sent sent;
        void *arg;
    } reserve[PEERS_RESERVE];
    unsigned n_reserve;
    uv_idle_t idle;   /* active while something is owed or can be written */
    uv_timer_t tick;  /* keep-alive and deadlines */
    uv_timer_t retry; /* the earliest retry_at */
    unsigned n_handles;
    bool closing, handles_closing;
    void (*closed)(void *arg);
    void *closed_arg;
};

/* ---- peers.c ---- */

/* Has the loop come by soon: to write, and to make the callbacks that are owed. */
void peers_wake(struct peers *p);
/* Makes the callbacks that are owed. Called from the loop only, when nothing of ours is half done. What they
 * cause in turn waits for the next iteration. */
void peers_settle(struct peers *p);
/* Goes on with peers_close if its turn has come. */
void peers_maybe_closed(struct peers *p);
struct peer *peer_find(const struct peers *p, uint64_t id);
/* The peer of @id, made if there was none; NULL without memory. */
struct peer *peer_add(struct peers *p, uint64_t id);
/* It has said how often it has started; that is remembered. */
void peer_has_started(struct peer *peer, uint64_t starts, uint64_t nonce);
/* What is connected to us says itself where it is, and nobody knows better: whoever has said otherwise holds a copy of
 * its folder, and was heard while it was cut off. It is looked for where it says. */
void peer_correct(struct peer *peer);
/* Refused for a reason that does not pass by itself. */
bool peer_is_slow(const struct peer *peer);
/* Has a connection attempt made in @ms, if there is an address and no connection. */
void peer_connect_in(struct peer *peer, uint64_t ms);
/* The same after a failure: later each time, and never two members in step. */
void peer_connect_later(struct peer *peer);

/* ---- peers_conn.c ---- */

void conn_open(struct peer *peer);
/* It is connected to us, was heard just now, and has said that it is at another address than @address. */
bool peer_runs_elsewhere(const struct peer *peer, const char *address);
/* listener_accept and listener_opened */
bool conn_accept(void *arg, const struct peer_addr *from, struct stream_config *cfg);
void conn_accepted(void *arg, struct stream *s);
/* Takes @c from its peer, which is then down if it was the outgoing one and what it had queued ends with
 * @queued_status; and closes it: cut at once; part with a word to a peer that need not think us dead. */
void conn_cut(struct conn *c, int queued_status);
void conn_part(struct conn *c, int queued_status);
/* Writes what the stream takes of the queue. */
void conn_pump(struct peer *peer);
/* Once a second: keep-alive and deadlines. */
void conns_tick(struct peers *p);

#endif
