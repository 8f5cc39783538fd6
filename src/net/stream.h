/* A byte stream over TCP or a unix socket, with or without TLS, on one libuv loop.
 *
 * Ownership: the creator owns the stream until on_close has fired; stream_close may be called at any time,
 * from any callback, any number of times; on_close fires exactly once, from the loop, never inside a call
 * into the stream; the stream's memory is freed after it returns. No other callback fires once stream_close
 * has been called. The first stream of a process makes it ignore SIGPIPE.
 */
#ifndef SYM_NET_STREAM_H
#define SYM_NET_STREAM_H

#include "crypto/tls.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>

struct stream;

struct stream_ops {
    /* Connected, and with TLS, handshaken: stream_write works from here. May be NULL. */
    void (*on_open)(struct stream *s);
    /* Bytes arrived. Valid until the callback returns. The callback may close the stream. */
    void (*on_data)(struct stream *s, const uint8_t *data, size_t n);
    /* What was queued has fallen below half of the high-water mark after having been above. May be NULL. */
    void (*on_drain)(struct stream *s);
    /* Gone. @status: 0 if we closed it, SYM_ECLOSED at the peer's orderly end, else what went wrong, with
     * err_msg(). */
    void (*on_close)(struct stream *s, int status);
};

struct stream_config {
    const struct stream_ops *ops;
    void *data;          /* stream_data */
    struct tls_ctx *tls; /* NULL: plain; borrowed only during the call */
    uint64_t open_ms;    /* deadline for connect and handshake together; 0: 10 s */
    size_t high_water;   /* queued bytes from which stream_congested is true; 0: 1 MiB */
    size_t max_queued;   /* queued bytes at which stream_write closes the stream (SYM_EBUSY); 0: 64 MiB */
};

/* Connects to @host (IPv4, IPv6, name; resolved on the pool) and @port. Failure to start is returned and
 * nothing fires; later failure arrives through on_close: SYM_ENOTFOUND for a name that does not resolve,
 * SYM_ECONNECT when nobody answers, SYM_ETIMEOUT, SYM_EDENIED; with TLS also SYM_EAUTH and SYM_EPROTO. */
int stream_connect_tcp(
    uv_loop_t *loop, const char *host, uint16_t port, const struct stream_config *cfg, struct stream **out);
int stream_connect_unix(
    uv_loop_t *loop, const char *path, const struct stream_config *cfg, struct stream **out);

/* A listener: accepts and gives each connection to @on_accept, which fills in the config for it (or returns
 * false to refuse it at once). TCP_NODELAY and keep-alive are set. At EMFILE it pauses for 100 ms instead of
 * spinning. */
struct listener;
struct peer_addr {
    bool is_unix;
    char host[64]; /* numeric */
    uint16_t port;
    uid_t uid; /* unix: SO_PEERCRED */
    gid_t gid;
    pid_t pid;
};
typedef bool (*listener_accept)(void *arg, const struct peer_addr *from, struct stream_config *cfg);
/* Called with the new stream right after it was made: here the acceptor keeps the pointer. */
typedef void (*listener_opened)(void *arg, struct stream *s);

/* @port 0 takes a free one (listener_port). SYM_EINUSE when taken, with the port in the message. */
int listener_tcp(uv_loop_t *loop, const char *bind_addr, uint16_t port, listener_accept accept,
    listener_opened opened, void *arg, struct listener **out);
/* A stale socket file (nobody accepts) is replaced; a live one is SYM_EINUSE. @mode e.g. 0600; @gid or
 * (gid_t)-1. */
int listener_unix(uv_loop_t *loop, const char *path, mode_t mode, gid_t gid, listener_accept accept,
    listener_opened opened, void *arg, struct listener **out);
uint16_t listener_port(const struct listener *l);
/* Stops accepting; frees itself later from the loop. A unix socket's file is removed. */
void listener_close(struct listener *l);

/* Queues a copy of @n bytes and tries to send at once. 0, SYM_ECLOSED, SYM_ENOMEM or SYM_EBUSY (then it is
 * closing). */
int stream_write(struct stream *s, const void *data, size_t n);
/* Between cork and uncork writes are only queued, and go out as one (one TLS record run, one system call). */
void stream_cork(struct stream *s);
void stream_uncork(struct stream *s);
/* True from when the queue reached the high-water mark until on_drain. */
bool stream_congested(const struct stream *s);
size_t stream_queued(const struct stream *s);
/* Wire bytes that the system has taken since the start: a peer that does not read makes it stand still. */
uint64_t stream_sent(const struct stream *s);
/* Stops and resumes reading: back-pressure. A pause takes effect after the on_data under way. */
void stream_pause(struct stream *s);
void stream_resume(struct stream *s);

/* Closes at once; what is queued is dropped. @status reaches on_close. */
void stream_close(struct stream *s, int status);
/* Sends what is queued (at most @ms long), then closes with status 0. Reading goes on being discarded. */
void stream_finish(struct stream *s, uint64_t ms);
/* The same, but waits (within @ms) for the peer's end before it closes: for a last word to a peer that may
 * still be sending, whose bytes would make a plain close reset the connection and lose that word. */
void stream_linger(struct stream *s, uint64_t ms);

void *stream_data(const struct stream *s);
void stream_set_data(struct stream *s, void *data);
/* Replaces the ops, for a stream that is handed over after its first bytes. */
void stream_set_ops(struct stream *s, const struct stream_ops *ops);
const struct peer_addr *stream_peer_addr(const struct stream *s);
/* NULL without TLS or before on_open. */
const struct tls_peer *stream_tls_peer(const struct stream *s);
/* The certificates that the peer sent, leaf first, as PEM; none once they are forgotten. SYM_EINVAL without TLS. */
int stream_tls_chain(const struct stream *s, struct buf *out);
/* Frees them, for who needs no more than stream_tls_peer: thousands of idle connections are smaller without. */
void stream_forget_chain(struct stream *s);

/* "host:port", "[v6]:port", or "host" with @default_port; host at most 253 characters. SYM_EINVAL. */
int addr_parse(const char *text, uint16_t default_port, char host[256], uint16_t *port);

#endif
