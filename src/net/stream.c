#include "net/stream_impl.h"

#include "base/err.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    READ_SIZE = 64 * 1024,
    SLICE = 256 * 1024, /* of a long queue: how far progress and drain are seen */
    SCRATCH_KEEP = 256 * 1024,
    OPEN_MS = 10000,
    ALERT_MS = 1000,
    HANDSHAKES = 4, /* of servers, in one turn of the loop */
    HIGH_WATER = 1 << 20,
    MAX_QUEUED = 64 << 20,
    OWN_MAX = 256 * 1024 /* a handshake takes a few KiB, a key update is due after 2^24 records */
};

/* One of each for all streams of a loop's thread: nothing of it outlives the callback or call that fills it,
 * so that an idle connection holds no buffer at all. */
static _Thread_local char read_buffer[READ_SIZE];
static _Thread_local struct buf plain_scratch; /* decrypted, for on_data */
static _Thread_local struct buf wire_scratch;  /* encrypted, on its way into the socket */

static void flush(struct stream *s, bool try_first);
static void finish(struct stream *s, uint64_t ms, bool linger);

/* libuv writes with write(2): a peer that is gone must be an error, not a signal. */
static void ignore_sigpipe(void)
{
    struct sigaction now;
    if (sigaction(SIGPIPE, NULL, &now) == 0 && now.sa_handler == SIG_DFL) {
        signal(SIGPIPE, SIG_IGN);
    }
}

/* --- life */

int stream_new(uv_loop_t *loop, const struct stream_config *cfg, struct stream **out)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, ignore_sigpipe);

    struct stream *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    if (cfg->tls != NULL) {
        int rv = tls_new(cfg->tls, &s->tls);
        if (rv != 0) {
            free(s);
            return rv;
        }
    }
    s->loop = loop;
    s->ops = cfg->ops;
    s->data = cfg->data;
    s->high_water = cfg->high_water != 0 ? cfg->high_water : HIGH_WATER;
    s->max_queued = cfg->max_queued != 0 ? cfg->max_queued : MAX_QUEUED;
    s->open_ms = cfg->open_ms != 0 ? cfg->open_ms : OPEN_MS;
    uv_timer_init(loop, &s->timer);
    s->timer.data = s;
    s->handles = 1;
    uv_timer_start(&s->timer, stream_expired, s->open_ms, 0);
    *out = s;
    return 0;
}

static void stream_free(struct stream *s)
{
    dial_free(s);
    if (s->tls != NULL) {
        tls_free(s->tls);
    }
    buf_free(&s->corked);
    buf_free(&s->out);
    buf_free(&s->inflight);
    free(s->why);
    free(s);
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct stream *s = handle->data;
    s->handles--;
    if (s->state != STREAM_CLOSING) {
        dial_next(s);
        return;
    }
    if (s->handles > 0) {
        return;
    }
    if (s->ops != NULL && s->ops->on_close != NULL) {
        if (s->status != 0) {
            err_setf(s->status, "%s", s->why != NULL ? s->why : err_name(s->status));
        }
        s->ops->on_close(s, s->status);
    }
    stream_free(s);
}

void stream_detach(struct stream *s)
{
    if (s->attached) {
        s->attached = false;
        uv_close(&s->h.handle, on_handle_closed);
    }
}

/* What on_close will say: the first reason counts. */
static void note_end(struct stream *s, int status)
{
    if (s->status == 0 && status != 0) {
        s->status = status;
        s->why = strdup(err_msg());
    }
}

void stream_close(struct stream *s, int status)
{
    if (s->state == STREAM_CLOSING) {
        return;
    }
    note_end(s, status);
    s->state = STREAM_CLOSING;
    uv_close((uv_handle_t *)&s->timer, on_handle_closed);
    stream_detach(s);
}

void stream_discard(struct stream *s)
{
    s->ops = NULL;
    stream_close(s, 0);
}

void stream_expired(uv_timer_t *timer)
{
    struct stream *s = timer->data;
    if (s->state == STREAM_FINISHING) {
        stream_close(s, 0);
    } else if (s->dial != NULL) {
        dial_expired(s);
    } else {
        stream_close(
            s, err_setf(SYM_ETIMEOUT, "no TLS handshake within %llu ms", (unsigned long long)s->open_ms));
    }
}

void stream_tune(int fd)
{
    static const struct {
        int level, name, value;
    } options[] = {
        {IPPROTO_TCP, TCP_NODELAY, 1},
        {SOL_SOCKET, SO_KEEPALIVE, 1},
        {IPPROTO_TCP, TCP_KEEPIDLE, 30},
        {IPPROTO_TCP, TCP_KEEPINTVL, 10},
        {IPPROTO_TCP, TCP_KEEPCNT, 3},
    };
    /* A connection without one of them still works. */
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
        (void)setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof options[i].value);
    }
}

int stream_accepted(uv_loop_t *loop, int fd, const struct peer_addr *from, const struct stream_config *cfg,
    struct stream **out)
{
    struct stream *s;
    int rv = stream_new(loop, cfg, &s);
    if (rv != 0) {
        close(fd);
        return rv;
    }
    s->addr = *from;
    rv = from->is_unix ? uv_pipe_init(loop, &s->h.pipe, 0) : uv_tcp_init(loop, &s->h.tcp);
    if (rv == 0) {
        s->attached = true;
        s->handles++;
        s->h.handle.data = s;
        rv = from->is_unix ? uv_pipe_open(&s->h.pipe, fd) : uv_tcp_open(&s->h.tcp, fd);
    }
    if (rv != 0) {
        err_sysf(rv, "connection from %s", from->is_unix ? "a unix socket" : from->host);
        close(fd);
        stream_discard(s);
        return SYM_EIO;
    }
    *out = s;
    return 0;
}

/* --- reading */

/* A server's handshake costs a millisecond or two, and hundreds may be due at once when clients come over from
 * another manager: the rest of the loop must have its turns meanwhile. An election or a write takes several of
 * them, at two managers, one after the other. */
static _Thread_local unsigned handshakes;

void stream_new_turn(void)
{
    handshakes = 0;
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct stream *s = handle->data;
    (void)suggested;
    if (s->state == STREAM_OPENING && !s->is_client && ++handshakes > HANDSHAKES) {
        *buf = uv_buf_init(NULL, 0); /* nothing is read, UV_ENOBUFS is told, and the next turn asks again */
        return;
    }
    *buf = uv_buf_init(read_buffer, sizeof read_buffer);
}

static void opened(struct stream *s)
{
    s->state = STREAM_OPEN;
    uv_timer_stop(&s->timer);
    if (s->paused) {
        uv_read_stop(&s->h.stream);
    }
    if (s->ops->on_open != NULL) {
        s->ops->on_open(s);
    }
}

static void feed(struct stream *s, const void *data, size_t n)
{
    struct buf *plain = &plain_scratch;
    char why[256];
    size_t before = s->out.len;
    int rv = tls_feed(s->tls, data, n, plain, &s->out);
    s->own += s->out.len - before;
    if (rv == 0 && s->own > OWN_MAX) {
        rv = err_setf(SYM_EPROTO, "the peer asks for key updates without end");
    }
    if (rv != 0) {
        snprintf(why, sizeof why, "%s", err_msg());
    }
    flush(s, true);
    if (s->state == STREAM_OPENING && tls_established(s->tls)) {
        opened(s);
    }
    if (s->state == STREAM_OPEN && plain->len > 0) {
        s->ops->on_data(s, buf_data(plain), plain->len);
    }
    buf_trim(plain, SCRATCH_KEEP);
    if (rv == 0 || s->state == STREAM_CLOSING || s->state == STREAM_FINISHING) {
        return;
    }
    err_setf(rv, "%s", why);
    if (rv == SYM_ECLOSED) {
        stream_close(s, rv);
    } else {
        /* The alert that says why must reach the peer, which may be sending meanwhile. */
        note_end(s, rv);
        finish(s, ALERT_MS, true);
    }
}

static void on_read(uv_stream_t *handle, ssize_t n, const uv_buf_t *buf)
{
    struct stream *s = handle->data;
    if (n == 0 || n == UV_ENOBUFS || s->state == STREAM_CLOSING) {
        return;
    }
    if (n < 0) {
        if (s->state == STREAM_FINISHING) {
            stream_close(s, 0);
        } else if (n != UV_EOF) {
            stream_close(s, err_sysf((int)n, "read"));
        } else if (s->tls != NULL) {
            /* A TLS peer says close_notify first; without it anybody could have cut the line. */
            stream_close(s, err_setf(SYM_ECONNECT, "the connection was cut"));
        } else {
            stream_close(s, err_setf(SYM_ECLOSED, "the peer closed the connection"));
        }
        return;
    }
    if (s->state == STREAM_FINISHING) {
        return;
    }
    if (s->tls != NULL) {
        feed(s, buf->base, (size_t)n);
    } else {
        s->ops->on_data(s, (const uint8_t *)buf->base, (size_t)n);
    }
}

static bool read_on(struct stream *s)
{
    int rv = uv_read_start(&s->h.stream, on_alloc, on_read);
    if (rv != 0 && rv != UV_EALREADY) {
        stream_close(s, err_sysf(rv, "read"));
        return false;
    }
    return true;
}

void stream_begin(struct stream *s)
{
    if (!read_on(s)) {
        return;
    }
    if (s->tls == NULL) {
        opened(s);
    } else if (s->is_client) {
        feed(s, "", 0);
    }
}

void stream_pause(struct stream *s)
{
    s->paused = true;
    if (s->state == STREAM_OPEN) {
        uv_read_stop(&s->h.stream);
    }
}

void stream_resume(struct stream *s)
{
    s->paused = false;
    if (s->state == STREAM_OPEN) {
        read_on(s);
    }
}

/* --- writing */

static void drained(struct stream *s);

static void took(struct stream *s, size_t n)
{
    s->sent += n;
    buf_consume(&s->inflight, n);
}

static void broken(struct stream *s, int uv_error)
{
    stream_close(s, err_sysf(uv_error, "write"));
}

static void on_written(uv_write_t *req, int status)
{
    struct stream *s = req->data;
    s->writing = false;
    if (s->state == STREAM_CLOSING) {
        return;
    }
    if (status != 0) {
        broken(s, status);
        return;
    }
    took(s, s->slice);
    if (s->above && stream_queued(s) < s->high_water / 2) {
        s->above = false;
        if (s->state == STREAM_OPEN && s->ops->on_drain != NULL) {
            s->ops->on_drain(s);
        }
    }
    if (s->state != STREAM_CLOSING && s->cork == 0) {
        flush(s, true);
    }
}

/* Hands what is queued to the system as far as it takes it. @try_first: it has not just refused some. */
static void flush(struct stream *s, bool try_first)
{
    while (!s->writing && s->state != STREAM_CLOSING) {
        if (s->inflight.len == 0) {
            if (s->out.len == 0) {
                break;
            }
            struct buf empty = s->inflight;
            s->inflight = s->out;
            s->out = empty;
        }
        s->slice = s->inflight.len < SLICE ? s->inflight.len : SLICE;
        uv_buf_t buf = uv_buf_init((char *)buf_data(&s->inflight), (unsigned)s->slice);
        /* Above the mark somebody waits for on_drain, which must come from the loop: so it is a real write
         * there. */
        if (try_first && !s->above) {
            int n = uv_try_write(&s->h.stream, &buf, 1);
            if (n < 0 && n != UV_EAGAIN) {
                broken(s, n);
                return;
            }
            try_first = n > 0 && (size_t)n == s->slice;
            if (n > 0) {
                took(s, (size_t)n);
            }
            continue;
        }
        s->write.data = s;
        int rv = uv_write(&s->write, &s->h.stream, &buf, 1, on_written);
        if (rv != 0) {
            broken(s, rv);
            return;
        }
        s->writing = true;
    }
    if (stream_queued(s) == 0) {
        buf_free(&s->inflight);
        buf_free(&s->out);
        if (s->state == STREAM_FINISHING) {
            drained(s);
        }
    }
}

static int queue(struct stream *s, struct buf *to, const void *data, size_t n)
{
    if (buf_append(to, data, n) != 0) {
        stream_close(s, SYM_ENOMEM);
        return SYM_ENOMEM;
    }
    s->above = s->above || stream_queued(s) >= s->high_water;
    return 0;
}

/* The quick way: what the socket takes at once is never copied. */
static int send_now(struct stream *s, const uint8_t *data, size_t n)
{
    bool try_first = true;
    if (!s->writing && s->inflight.len == 0 && s->out.len == 0) {
        uv_buf_t buf = uv_buf_init((char *)data, n < SLICE ? (unsigned)n : SLICE);
        int rv = uv_try_write(&s->h.stream, &buf, 1);
        if (rv < 0 && rv != UV_EAGAIN) {
            broken(s, rv);
            return SYM_ECLOSED;
        }
        if (rv > 0) {
            s->sent += (size_t)rv;
            data += rv;
            n -= (size_t)rv;
        }
        try_first = rv > 0 && (size_t)rv == buf.len;
    }
    if (n == 0) {
        return 0;
    }
    int rv = queue(s, &s->out, data, n);
    if (rv == 0) {
        flush(s, try_first);
    }
    return rv != 0 ? rv : s->state == STREAM_CLOSING ? SYM_ECLOSED : 0;
}

static int send_tls(struct stream *s, const void *data, size_t n)
{
    struct buf *wire = &wire_scratch;
    int rv = tls_write(s->tls, data, n, wire);
    if (rv != 0) {
        stream_close(s, rv);
    } else {
        rv = send_now(s, buf_data(wire), wire->len);
    }
    buf_trim(wire, SCRATCH_KEEP);
    return rv;
}

int stream_write(struct stream *s, const void *data, size_t n)
{
    if (s->state != STREAM_OPEN) {
        return err_setf(SYM_ECLOSED, "the connection is closed");
    }
    if (n == 0) {
        return 0;
    }
    size_t queued = stream_queued(s);
    if (n > s->max_queued || queued > s->max_queued - n) {
        int rv = err_setf(SYM_EBUSY, "the peer does not read: %zu bytes are waiting", queued + n);
        stream_close(s, rv);
        return rv;
    }
    if (s->cork > 0) {
        return queue(s, s->tls != NULL ? &s->corked : &s->out, data, n);
    }
    return s->tls != NULL ? send_tls(s, data, n) : send_now(s, data, n);
}

void stream_cork(struct stream *s)
{
    s->cork++;
}

void stream_uncork(struct stream *s)
{
    if (s->cork == 0 || --s->cork > 0 || (s->state != STREAM_OPEN && s->state != STREAM_FINISHING)) {
        return;
    }
    if (s->corked.len > 0) {
        struct buf held = s->corked;
        s->corked = (struct buf){0};
        int rv = tls_write(s->tls, buf_data(&held), held.len, &s->out);
        buf_free(&held);
        if (rv != 0) {
            stream_close(s, rv);
            return;
        }
    }
    flush(s, true);
}

bool stream_congested(const struct stream *s)
{
    return s->above;
}

size_t stream_queued(const struct stream *s)
{
    return s->corked.len + s->out.len + s->inflight.len;
}

uint64_t stream_sent(const struct stream *s)
{
    size_t left = s->writing ? uv_stream_get_write_queue_size(&s->h.stream) : 0;
    return s->sent + (s->writing && left <= s->slice ? s->slice - left : 0);
}

/* --- the end */

static void on_shutdown(uv_shutdown_t *req, int status)
{
    struct stream *s = req->data;
    if (status != 0) {
        stream_close(s, 0);
    }
}

/* All has been handed to the system, which sends it on after a close, too; but bytes that arrive after a
 * close make it reset the connection, and the peer may then lose what it has not read. Hence lingering. */
static void drained(struct stream *s)
{
    if (!s->linger) {
        stream_close(s, 0);
        return;
    }
    s->linger = false;
    s->shutdown.data = s;
    if (uv_shutdown(&s->shutdown, &s->h.stream, on_shutdown) != 0) {
        stream_close(s, 0);
    }
}

static void finish(struct stream *s, uint64_t ms, bool linger)
{
    if (s->state != STREAM_OPENING && s->state != STREAM_OPEN) {
        return;
    }
    while (s->cork > 0) {
        stream_uncork(s);
    }
    if (s->state == STREAM_CLOSING || !s->attached || !read_on(s)) {
        stream_close(s, 0);
        return;
    }
    if (s->tls != NULL && s->state == STREAM_OPEN && s->status == 0) {
        (void)tls_close(s->tls, &s->out); /* without it the peer sees a cut line, and no more can be done */
    }
    s->state = STREAM_FINISHING;
    s->linger = linger;
    uv_timer_start(&s->timer, stream_expired, ms, 0);
    if (stream_queued(s) == 0) {
        drained(s);
    } else {
        flush(s, true);
    }
}

void stream_finish(struct stream *s, uint64_t ms)
{
    if (s->state == STREAM_OPENING) {
        stream_close(s, 0);
    } else {
        finish(s, ms, false);
    }
}

void stream_linger(struct stream *s, uint64_t ms)
{
    if (s->state == STREAM_OPENING) {
        stream_close(s, 0);
    } else {
        finish(s, ms, true);
    }
}

/* --- about it */

void *stream_data(const struct stream *s)
{
    return s->data;
}

void stream_set_data(struct stream *s, void *data)
{
    s->data = data;
}

void stream_set_ops(struct stream *s, const struct stream_ops *ops)
{
    s->ops = ops;
}

const struct peer_addr *stream_peer_addr(const struct stream *s)
{
    return &s->addr;
}

const struct tls_peer *stream_tls_peer(const struct stream *s)
{
    return s->tls != NULL && tls_established(s->tls) ? tls_peer(s->tls) : NULL;
}

int stream_tls_chain(const struct stream *s, struct buf *out)
{
    return s->tls != NULL ? tls_peer_chain(s->tls, out) : err_setf(SYM_EINVAL, "the connection is plain");
}

void stream_forget_chain(struct stream *s)
{
    if (s->tls != NULL) {
        (void)tls_forget_chain(s->tls); /* what could not be freed now goes with the stream */
    }
}
