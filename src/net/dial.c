/* Connecting: resolve, then one address after the other until one answers or the time is up. */
#include "base/err.h"
#include "net/addr.h"
#include "net/stream_impl.h"
#include "net/unix.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TRIES_MAX = 16 };

struct dial {
    struct stream *s; /* NULL once nobody waits for the resolver any more */
    uv_getaddrinfo_t resolve;
    uv_connect_t connect;
    bool resolving;
    struct addrinfo *all;
    const struct addrinfo *next; /* not tried yet */
    unsigned left;
    uint64_t deadline; /* uv_now */
    int err;           /* of the last attempt, */
    char why[400];     /* with its message */
    char to[300];
};

/* Whatever keeps us from the peer is "unreachable", unless it is on our side. */
static void note(struct dial *d, int uv_error)
{
    int rv = err_sysf(uv_error, "connect to %s", d->to);
    if (rv != SYM_EDENIED && rv != SYM_ETIMEOUT && rv != SYM_ENOMEM && rv != SYM_EBUSY) {
        rv = SYM_ECONNECT;
    }
    d->err = rv;
    snprintf(d->why, sizeof d->why, "%s", err_msg());
}

static void give_up(struct stream *s)
{
    stream_close(s, err_setf(s->dial->err, "%s", s->dial->why));
}

void dial_free(struct stream *s)
{
    struct dial *d = s->dial;
    s->dial = NULL;
    if (d == NULL) {
        return;
    }
    if (d->resolving) {
        /* The resolver cannot be stopped once it runs; it frees this when it is through. */
        d->s = NULL;
        uv_cancel((uv_req_t *)&d->resolve);
        return;
    }
    if (d->all != NULL) {
        uv_freeaddrinfo(d->all);
    }
    free(d);
}

static void on_connected(uv_connect_t *req, int status)
{
    struct stream *s = req->data;
    uv_os_fd_t fd;
    if (!s->attached) {
        return; /* given up: the handle is being closed */
    }
    if (status != 0) {
        note(s->dial, status);
        stream_detach(s); /* the next attempt begins when the handle is closed */
        return;
    }
    if (!s->addr.is_unix && uv_fileno(&s->h.handle, &fd) == 0) {
        stream_tune(fd);
    }
    dial_free(s);
    stream_begin(s);
}

static void attached(struct stream *s)
{
    s->attached = true;
    s->handles++;
    s->h.handle.data = s;
    s->dial->connect.data = s;
}

void dial_next(struct stream *s)
{
    struct dial *d = s->dial;
    const struct addrinfo *ai = d->next;
    if (ai == NULL) {
        give_up(s);
        return;
    }
    /* Every address gets its share of what time is left: one that swallows packets must not use it all up. */
    uint64_t now = uv_now(s->loop);
    uint64_t left = d->deadline > now ? d->deadline - now : 0;
    uv_timer_start(&s->timer, stream_expired, left / d->left, 0);
    d->next = ai->ai_next;
    d->left--;

    addr_from_system(ai->ai_addr, &s->addr);
    int rv = uv_tcp_init(s->loop, &s->h.tcp);
    if (rv != 0) {
        note(d, rv);
        give_up(s);
        return;
    }
    attached(s);
    rv = uv_tcp_connect(&d->connect, &s->h.tcp, ai->ai_addr, on_connected);
    if (rv != 0) {
        note(d, rv);
        stream_detach(s);
    }
}

void dial_expired(struct stream *s)
{
    struct dial *d = s->dial;
    note(d, UV_ETIMEDOUT);
    if (d->next == NULL || d->resolving) {
        give_up(s);
    } else {
        stream_detach(s);
    }
}

static void start(struct stream *s, struct addrinfo *all)
{
    struct dial *d = s->dial;
    d->all = all;
    d->next = all;
    for (struct addrinfo *ai = all; ai != NULL && d->left < TRIES_MAX; ai = ai->ai_next) {
        if (++d->left == TRIES_MAX && ai->ai_next != NULL) {
            uv_freeaddrinfo(ai->ai_next);
            ai->ai_next = NULL;
        }
    }
    dial_next(s);
}

static int no_name(const struct dial *d, int uv_error)
{
    bool memory = uv_error == UV_ENOMEM || uv_error == UV_EAI_MEMORY;
    return err_setf(
        memory ? SYM_ENOMEM : SYM_ENOTFOUND, "cannot resolve %s: %s", d->to, uv_strerror(uv_error));
}

static void on_resolved(uv_getaddrinfo_t *req, int status, struct addrinfo *all)
{
    struct dial *d = req->data;
    struct stream *s = d->s;
    d->resolving = false;
    if (s == NULL) {
        uv_freeaddrinfo(all);
        free(d);
    } else if (status != 0) {
        uv_freeaddrinfo(all);
        if (s->state == STREAM_OPENING) {
            stream_close(s, no_name(d, status));
        }
    } else if (s->state != STREAM_OPENING) {
        d->all = all; /* freed with the stream */
    } else {
        start(s, all);
    }
}

static int dial_new(uv_loop_t *loop, const struct stream_config *cfg, struct stream **out)
{
    struct stream *s;
    uv_update_time(loop); /* what ran before this call must not count against the deadline */
    int rv = stream_new(loop, cfg, &s);
    if (rv != 0) {
        return rv;
    }
    s->is_client = true;
    s->dial = calloc(1, sizeof *s->dial);
    if (s->dial == NULL) {
        stream_discard(s);
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    s->dial->s = s;
    s->dial->err = SYM_ECONNECT;
    s->dial->deadline = uv_now(loop) + s->open_ms;
    *out = s;
    return 0;
}

int stream_connect_tcp(
    uv_loop_t *loop, const char *host, uint16_t port, const struct stream_config *cfg, struct stream **out)
{
    struct stream *s;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    struct addrinfo *all = NULL;
    char service[8];
    if (strlen(host) > 253 || *host == '\0' || port == 0) {
        return err_setf(SYM_EINVAL, "cannot connect to \"%.60s\" port %u", host, port);
    }
    int rv = dial_new(loop, cfg, &s);
    if (rv != 0) {
        return rv;
    }
    struct dial *d = s->dial;
    snprintf(service, sizeof service, "%u", port);
    snprintf(d->to, sizeof d->to, strchr(host, ':') == NULL ? "%s:%s" : "[%s]:%s", host, service);
    /* Numbers need no resolver, and so no thread. */
    if (getaddrinfo(host, service, &hints, &all) == 0) {
        start(s, all);
    } else {
        hints.ai_flags = AI_NUMERICSERV;
        d->resolve.data = d;
        rv = uv_getaddrinfo(loop, &d->resolve, on_resolved, host, service, &hints);
        if (rv != 0) {
            rv = no_name(d, rv);
            stream_discard(s);
            return rv;
        }
        d->resolving = true;
    }
    *out = s;
    return 0;
}

int stream_connect_unix(
    uv_loop_t *loop, const char *path, const struct stream_config *cfg, struct stream **out)
{
    struct stream *s;
    struct sockaddr_un sun;
    int dir;
    int rv = unix_address(path, &sun, &dir);
    if (rv != 0) {
        return rv == SYM_ENOTFOUND ? SYM_ECONNECT : rv;
    }
    rv = dial_new(loop, cfg, &s);
    if (rv != 0) {
        goto close_dir;
    }
    snprintf(s->dial->to, sizeof s->dial->to, "%s", path);
    s->addr.is_unix = true;
    rv = uv_pipe_init(loop, &s->h.pipe, 0);
    if (rv != 0) {
        rv = err_sysf(rv, "connect to %s", path);
        stream_discard(s);
        goto close_dir;
    }
    attached(s);
    uv_pipe_connect(&s->dial->connect, &s->h.pipe, sun.sun_path, on_connected);
    *out = s;

close_dir:
    if (dir >= 0) {
        close(dir);
    }
    return rv;
}
