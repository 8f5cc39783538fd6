/* What stream.c (life, reading, writing), dial.c (connecting) and listener.c (accepting) share. */
#ifndef SYM_NET_STREAM_IMPL_H
#define SYM_NET_STREAM_IMPL_H

#include "base/buf.h"
#include "net/stream.h"

enum stream_state {
    STREAM_OPENING, /* connecting or handshaking */
    STREAM_OPEN,
    STREAM_FINISHING, /* sends what is queued, discards what comes */
    STREAM_CLOSING    /* on_close is due */
};

struct dial;

struct stream {
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } h;
    uv_timer_t timer; /* deadline of opening or finishing */
    uv_write_t write;
    uv_shutdown_t shutdown;
    uv_loop_t *loop;
    const struct stream_ops *ops;
    void *data;
    struct tls *tls;
    struct dial *dial;   /* until connected */
    struct buf corked;   /* TLS: plain bytes held back by a cork */
    struct buf out;      /* wire bytes behind those under way */
    struct buf inflight; /* wire bytes whose front the system is taking */
    size_t slice;        /* how much of inflight the write under way covers */
    uint64_t sent;
    size_t own; /* bytes that TLS sent of its own: the handshake, and answers to the peer's key updates */
    size_t high_water, max_queued;
    uint64_t open_ms;
    enum stream_state state;
    unsigned cork;
    unsigned handles; /* libuv handles that are not closed yet */
    bool attached;    /* h is open (and not being closed) */
    bool is_client;
    bool writing;
    bool above; /* was over the high-water mark and has not drained since */
    bool paused;
    bool linger;
    int status; /* for on_close, */
    char *why;  /* with this message */
    struct peer_addr addr;
};

/* A stream that is opening, with its deadline running and no connection yet. */
int stream_new(uv_loop_t *loop, const struct stream_config *cfg, struct stream **out);
/* Closes h only: the end of the connection, or of one attempt at it (then dial_next follows). */
void stream_detach(struct stream *s);
/* Frees, later, one that nobody was told of. */
void stream_discard(struct stream *s);
/* h has been connected or accepted: handshake, if there is one, and on_open. */
void stream_begin(struct stream *s);
/* Takes @fd, also when it fails. stream_begin is due next. */
int stream_accepted(uv_loop_t *loop, int fd, const struct peer_addr *from, const struct stream_config *cfg,
    struct stream **out);

/* The timer's callback. */
void stream_expired(uv_timer_t *timer);
/* A turn of the loop begins: a new budget of handshakes (see stream.c). */
void stream_new_turn(void);

/* No delays, and dead peers are found. */
void stream_tune(int fd);

/* dial.c: an attempt's handle is closed; the deadline of an attempt has passed; the stream goes away. */
void dial_next(struct stream *s);
void dial_expired(struct stream *s);
void dial_free(struct stream *s);

#endif
