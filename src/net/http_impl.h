/* What http_server.c (doors, limits, the end), http_conn.c (a connection and its requests) and http_answer.c
 * share. */
#ifndef SYM_NET_HTTP_IMPL_H
#define SYM_NET_HTTP_IMPL_H

#include "net/addr_count.h"
#include "net/http.h"
#include "net/http_parse.h"

#include <sys/queue.h>

/* Where a connection is. Each phase has a list in the order of entry, so the head of it is the first to
 * expire. */
enum http_phase {
    PHASE_HEAD, /* from accept or the first byte of a request */
    PHASE_BODY,
    PHASE_IDLE,
    PHASE_BUSY, /* a handler has the request */
    PHASE_END,  /* the last answer is on its way out */
    PHASE_GONE, /* on_close is due */
    PHASES
};

/* A request with its buffers. They are taken from the server's pool when the first byte of a request comes
 * and go back after its answer: an idle connection holds none, and a busy one allocates nothing. */
struct exchange {
    struct http_req req; /* first: what handlers see */
    struct http_conn *conn;
    struct http_parser parser;
    SLIST_ENTRY(exchange) link;  /* of the pool */
    TAILQ_ENTRY(exchange) order; /* of conn->due */
    struct buf kept;             /* of its answer, until it is its turn */
    uint64_t began;              /* to be served: http_clock */
    bool continued;              /* was told to send its body */
    bool given;                  /* a handler has seen it: on_gone is due */
    bool answered;
    bool streamed; /* in pieces, */
    bool chunked;  /* and how they are framed */
    bool over;     /* nothing more will be written */
    bool close;    /* the connection ends with it, */
    bool linger;   /* while the peer may still be sending */
    bool notify;   /* on_drain was asked for */
};

TAILQ_HEAD(exchanges, exchange);

struct http_conn {
    struct http_server *server;
    struct stream *stream;
    struct exchange *x;   /* being read, or whole and waiting until it may be served */
    struct exchanges due; /* being served, in the order in which they are to be answered */
    unsigned n_due;
    size_t kept;                 /* bytes of their answers that are kept */
    struct buf rest;             /* read behind x */
    TAILQ_ENTRY(http_conn) link; /* of its phase */
    TAILQ_ENTRY(http_conn) turn; /* of server->turns */
    enum http_phase phase;
    uint64_t since; /* uv_now at its entry */
    struct addr_entry *addr;
    uint64_t sent, stuck_since; /* stream_sent, and since when it stands still */
    bool tls, trusted;          /* see conn_is_trusted */
    bool opened;                /* with TLS: after the handshake */
    bool queued;                /* in server->turns */
    bool in_handler;
    bool paused;
    bool last; /* nothing behind the last of those that are due is read any more */
};

TAILQ_HEAD(http_conns, http_conn);

enum { HTTP_DOORS_MAX = 8 };

struct http_server {
    uv_loop_t *loop;
    struct http_limits limits;
    http_handler handler;
    void *arg;
    bool (*trust)(void *arg, const struct tls_peer *peer);
    struct tls_ctx *tls;
    struct http_door {
        struct http_server *server;
        struct listener *listener;
        bool tls;
    } doors[HTTP_DOORS_MAX];
    unsigned n_doors;
    struct http_conns phases[PHASES];
    /* Connections whose request is over or that have more to read. They are served before and after each poll,
     * so that none waits for the next event; idle is active while some are left over: no poll blocks then. */
    struct http_conns turns;
    uv_prepare_t prepare;
    uv_check_t check;
    uv_idle_t idle;
    uv_timer_t sweep, grace;
    unsigned handles;
    struct http_stats stats;
    /* A clock that was looked at a moment ago, and how often it was used since: see http_clock. */
    uint64_t clock_ns;
    unsigned clock_uses;
    unsigned alive; /* connections that are not GONE */
    size_t held;    /* bytes of bodies of trusted peers, */
    size_t small;   /* and of all others */
    SLIST_HEAD(, exchange) pool;
    unsigned n_pool, pool_low; /* spare ones, and the fewest since the last sweep */
    struct addr_counts addrs;
    bool closing;
    void (*done)(void *arg);
    void *done_arg;
};

enum { CLOCK_USES = 16 };

/* Nanoseconds, for the figures alone: on some machines a look at the clock costs a tenth of a microsecond, so that
 * requests that come or are answered together share one: it is at most a few requests' work behind. */
static inline uint64_t http_clock(struct http_server *s)
{
    if (s->clock_uses++ % CLOCK_USES == 0) {
        s->clock_ns = uv_hrtime();
    }
    return s->clock_ns;
}

static inline struct exchange *exchange_of(const struct http_req *req)
{
    return (struct exchange *)req; /* its first member */
}

/* http_conn.c */
extern const struct stream_ops http_conn_ops;
void conn_opened(struct http_server *s, struct stream *stream, bool tls);
/* Whether its peer may send large bodies, now. */
bool conn_is_trusted(const struct http_conn *c);
/* Closes at once, with err_msg() as the reason unless @status is 0. */
void conn_close(struct http_conn *c, int status);
/* Lets what is queued go out, then closes. */
void conn_finish(struct http_conn *c);
/* Answers the request that is being read with an error, and closes. */
void conn_fail(struct http_conn *c, int status, const char *why);
/* Writes to the peer, or keeps it until the answers before it have gone. Anything but 0: the connection is gone. */
int conn_write(struct exchange *x, const void *data, size_t n);
/* Whether on_drain must be waited for before more of a streamed answer is written. */
bool conn_congested(const struct exchange *x);
/* The answer is complete: the rest of its life follows when no caller is on the stack. */
void conn_over(struct exchange *x);
/* Bytes that are held for it. */
size_t conn_holds(const struct http_conn *c);
/* Gives it a turn soon; conn_turn is that turn. */
void conn_want_turn(struct http_conn *c);
void conn_turn(struct http_conn *c);
void exchange_free(struct exchange *x);

/* http_server.c */
void server_conn_gone(struct http_server *s);
/* Peers that are not trusted make room for @n bytes of a body of @c, which is one of them. */
void server_make_room(struct http_server *s, const struct http_conn *c, size_t n);

/* http_answer.c: an answer to a request that no handler has seen. */
void http_answer_error(struct exchange *x, int status, int code, const char *message);

#endif
