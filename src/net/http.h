/* HTTP/1.1: a server over any number of listeners, and a client call. llhttp parses; here are the limits and
 * the life of a request.
 *
 * A server request is alive from on_request until it has been answered *and* its exchange is over, or the
 * peer is gone. Whoever takes it sets req->on_gone: it fires exactly once, when the request object is about
 * to be freed, after an answer or without one. Do not touch the request after it. It never fires inside
 * http_respond or another call with the request, but when the handler has returned, or later from the loop.
 * Answering a request twice is a programming error (asserted); one that its handler neither answered nor took
 * (on_gone) is answered with 500. Requests of one connection are answered in order, and served one at a time
 * (a pipelined one waits), but for those whose handler says otherwise (req->overlap). A HEAD request is answered
 * like a GET: the body is left out here.
 */
#ifndef SYM_NET_HTTP_H
#define SYM_NET_HTTP_H

#include "base/histogram.h"
#include "net/stream.h"

/* 0 means the default, and so does NULL for all of them. */
struct http_limits {
    /* Request line and headers; default 16 KiB. Beyond: 431. */
    size_t max_head;
    /* Default 3 MiB: a txn of 1.5 MiB is 2 MiB in base64, which leaves 1 MiB for its keys' names, its compares and
     * what JSON puts around them. Beyond: 413. */
    size_t max_body;
    /* The same for peers that are not trusted (http_server_set_trust); default 64 KiB. */
    size_t max_small_body;
    /* Default 4096, but never so many that less than 256 descriptors are left (a quarter, if there are less than 1024). At
     * the limit the connection that has been without a whole request for longest makes room, one of a peer that is not
     * trusted first, else the new one is refused. */
    unsigned max_conns;
    /* For each address (IPv6: each /64), unix exempt; default 2048. */
    unsigned max_conns_addr;
    /* From the first byte of a request, or from accept, to the end of its headers; default 10 s. */
    uint64_t head_ms;
    /* From there to the end of the body; default 30 s. */
    uint64_t body_ms;
    /* Keep-alive without a request; default 300 s. */
    uint64_t idle_ms;
    /* An answer of which the peer takes nothing for so long is cut; default 30 s. At a unix socket, where somebody
     * may be paging through what a command prints, it is twenty times that. */
    uint64_t send_ms;
    /* Bodies and unsent answers of all connections together; default 256 MiB. Beyond, a body is refused (503), and the
     * connection with the most unsent bytes is cut, one of a peer that is not trusted first. */
    size_t max_memory;
    /* Bodies of peers that are not trusted, which do not count above; default 16 MiB. Beyond, the one that has been
     * on its way for longest makes room (503), so that they cannot keep each other out by sending slowly. */
    size_t max_small_memory;
};

struct http_server;
struct http_req;
typedef void (*http_handler)(struct http_req *req, void *arg);

struct http_req {
    /* Read-only to handlers; strings are NUL-terminated and live as long as the request. */
    const char *method; /* "GET", ... */
    const char *path;   /* percent-decoded bytes, without the query; may hold any byte but NUL */
    size_t path_len;
    const char *query;   /* raw, "" if none */
    const uint8_t *body; /* whole body */
    size_t body_len;
    bool tls; /* came in over TLS */
    const struct peer_addr *from;
    const struct tls_peer *peer; /* NULL without TLS, and only then */
    uint64_t arrived_ms;         /* uv_now at the end of the body */
    /* The handler's own. */
    void *data;
    void (*on_gone)(struct http_req *req);
    void (*on_drain)(struct http_req *req); /* a streamed answer may go on */
    /* Where one is served beside others (overlap): fires once, from the loop, as soon as all before it on its connection
     * are over. Set while http_req_before() has one; NULL again when it fires. */
    void (*on_first)(struct http_req *req);
    /* Set inside the handler: the connection's next request may be served before this one is answered, if it is
     * of the same kind: GET and HEAD, or PUT and DELETE (RFC 9112, 9.3.2, lets a server do so for safe methods; for
     * the others whoever sets it sees to it that they take effect in the order in which they came). */
    bool overlap;
    /* Which of the HTTP_CLASSES counts of http_server_stats it goes into; 0 unless set before it is answered. */
    uint8_t class;
};

/* Header by lower-case name, NULL if absent. */
const char *http_req_header(const struct http_req *req, const char *name);
/* Percent-decoded ('+' is itself) value of query parameter @name into @out (NUL-terminated); SYM_ENOTFOUND,
 * SYM_EINVAL, SYM_ETOOBIG. */
int http_req_param(const struct http_req *req, const char *name, char *out, size_t size);

/* The one that came before it on its connection and whose answer is not over; NULL: none. */
struct http_req *http_req_before(const struct http_req *req);

int http_server_new(uv_loop_t *loop, const struct http_limits *limits, http_handler handler, void *arg,
    struct http_server **out);
/* TCP with TLS (@tls is used for new connections until http_server_set_tls replaces it), or plain if NULL. */
int http_server_listen_tcp(
    struct http_server *s, const char *bind_addr, uint16_t port, struct tls_ctx *tls, uint16_t *bound);
int http_server_listen_unix(struct http_server *s, const char *path, mode_t mode, gid_t gid);
/* Connections accepted from now on use @tls (renewed certificate, new CA). Takes ownership of neither. */
void http_server_set_tls(struct http_server *s, struct tls_ctx *tls);
/* Asked once for each connection after a handshake in which the peer has shown a certificate: whether that is good for
 * large bodies, for as long as it is valid. NULL: any is. A peer without one is never trusted, and one without TLS
 * always. */
void http_server_set_trust(struct http_server *s, bool (*trust)(void *arg, const struct tls_peer *peer));
/* Closes every connection whose peer certificate's CN is @cn (a removed node). */
void http_server_drop_cn(struct http_server *s, const char *cn);
/* The same for those of them that @keep, if it is not NULL, is false for. */
void http_server_drop_unless(
    struct http_server *s, const char *cn, bool (*keep)(void *arg, const struct tls_peer *peer), void *arg);
/* Stops listening and accepting requests, lets answers under way finish for @grace_ms (streamed ones are cut
 * at once), closes the rest, then @done (may be NULL), never inside this call. The server is freed after it.
 */
void http_server_close(struct http_server *s, uint64_t grace_ms, void (*done)(void *arg), void *arg);
enum { HTTP_CLASSES = 12 };
/* Requests of one class (http_req.class), which handlers make up. */
struct http_class {
    uint64_t answers[6]; /* by the hundreds of their status; 0: the peer went before, or the answer was cut */
    struct histogram
        durations; /* from the request's being whole to its answer, of a streamed one to its beginning */
};
struct http_stats {
    uint64_t accepted, requests, refused;
    unsigned open;
    uint64_t no_handshake; /* connections that ended before their TLS handshake was over */
    uint64_t malformed; /* requests that no handler has seen: not HTTP as it should be, too large, too slow */
    size_t waiting;     /* bytes of bodies and unsent answers, as last looked at: half a second ago at most */
    struct http_class classes[HTTP_CLASSES];
};
void http_server_stats(const struct http_server *s, struct http_stats *out);

/* One whole answer. @ctype NULL: application/json. @extra: NULL or whole header lines, each ended by \r\n. */
void http_respond(
    struct http_req *req, int status, const char *ctype, const char *extra, const void *body, size_t n);
/* {"error": {"code", "message", "hint"}} with err_http_status(code); @hint may be NULL. */
void http_respond_error(struct http_req *req, int code, const char *message, const char *hint);
/* An answer of unknown length (chunked): start, any number of writes, end. A write answers 0, SYM_EBUSY
 * (taken, but wait for on_drain before the next), or SYM_ECLOSED. */
void http_stream_start(struct http_req *req, int status, const char *ctype);
int http_stream_write(struct http_req *req, const void *data, size_t n);
void http_stream_end(struct http_req *req);
/* Asks for on_drain, later from the loop, as soon as more may be written: in the next turn if that is so
 * already. */
void http_stream_notify(struct http_req *req);
/* Ends the connection in the middle of a streamed answer, so that the client sees it is not whole. */
void http_abort(struct http_req *req);

/* --- client: one call, one connection
 * --------------------------------------------------------------------------- */

struct http_call;
struct http_call_opts {
    const char *unix_path; /* or: */
    const char *host;
    uint16_t port;
    struct tls_ctx *tls; /* NULL: plain */
    /* Asked after the handshake: non-zero closes with that code. May be NULL. */
    int (*check_peer)(void *arg, struct stream *s);
    const char *method, *path; /* path with query, already encoded */
    const char *headers;       /* NULL or whole lines, each ended by \r\n */
    const void *body;          /* copied */
    size_t body_len;
    uint64_t timeout_ms; /* to the end of the headers of the answer; 0: 10 s */
    uint64_t idle_ms;    /* between two pieces of the body; 0: 60 s */
    size_t max_body;     /* without on_data: bytes collected; 0: 16 MiB */
    /* Status and headers have arrived; may be NULL. */
    void (*on_head)(void *arg, int status);
    /* A piece of the body; NULL: the body is collected and given to on_done. */
    void (*on_data)(void *arg, const uint8_t *data, size_t n);
    /* Over, exactly once, never inside http_call_start. @err 0 or SYM_E* with err_msg(); @status 0 if no
     * answer came;
     * @body (NUL-terminated) is NULL when on_data took it. The call is freed after this returns. */
    void (*on_done)(void *arg, int err, int status, const uint8_t *body, size_t n);
    void *arg;
};
/* A failure to start is returned, and then nothing fires. */
int http_call_start(uv_loop_t *loop, const struct http_call_opts *opts, struct http_call **out);
/* on_done comes with SYM_ECANCELED. */
void http_call_cancel(struct http_call *c);
/* Back-pressure for on_data. */
void http_call_pause(struct http_call *c);
void http_call_resume(struct http_call *c);

#endif
