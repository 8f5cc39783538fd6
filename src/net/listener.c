/* Accepting. The descriptor is polled and accepted from here, not by uv_listen: that cannot pause, and with
 * no descriptor left it either drops the callers or spins. */
#include "base/err.h"
#include "base/log.h"
#include "net/addr.h"
#include "net/stream_impl.h"
#include "net/unix.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    BURST = 64, /* accepted before the rest of the loop has its turn */
    PAUSE_MS = 100
};

struct listener {
    uv_poll_t poll;
    uv_prepare_t turn;
    uv_timer_t pause;
    uv_loop_t *loop;
    listener_accept accept;
    listener_opened opened;
    void *arg;
    int fd;
    uint16_t port;
    char *path; /* unix */
    struct stat file;
    unsigned handles;
    bool closing, starved;
};

static void on_ready(uv_poll_t *poll, int status, int events);

static void on_pause_end(uv_timer_t *timer)
{
    struct listener *l = timer->data;
    uv_poll_start(&l->poll, UV_READABLE, on_ready);
}

/* No descriptors or no memory: the callers wait in the backlog until there is one. */
static void starve(struct listener *l, int errnum)
{
    if (!l->starved) {
        err_sysf(errnum, "cannot accept connections");
        log_warn("%s", err_msg());
    }
    l->starved = true;
    uv_poll_stop(&l->poll);
    uv_timer_start(&l->pause, on_pause_end, PAUSE_MS, 0);
}

static void accepted(struct listener *l, int fd, const struct sockaddr *sa)
{
    struct peer_addr from = {.is_unix = l->path != NULL};
    struct stream_config cfg = {0};
    struct stream *s;
    if (from.is_unix) {
        struct ucred cred;
        socklen_t len = sizeof cred;
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) != 0) {
            close(fd);
            return;
        }
        from.uid = cred.uid;
        from.gid = cred.gid;
        from.pid = cred.pid;
    } else {
        addr_from_system(sa, &from);
        stream_tune(fd);
    }
    if (!l->accept(l->arg, &from, &cfg)) {
        close(fd);
        return;
    }
    if (stream_accepted(l->loop, fd, &from, &cfg, &s) != 0) {
        log_debug("connection refused: %s", err_msg());
        return;
    }
    l->opened(l->arg, s);
    if (s->state == STREAM_OPENING) {
        stream_begin(s);
    }
}

static void on_ready(uv_poll_t *poll, int status, int events)
{
    struct listener *l = poll->data;
    (void)status;
    (void)events;
    for (int i = 0; i < BURST && !l->closing; i++) {
        struct sockaddr_storage sa;
        socklen_t len = sizeof sa;
        memset(&sa, 0, sizeof sa);
        int fd = accept4(l->fd, (struct sockaddr *)&sa, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            l->starved = false;
            accepted(l, fd, (struct sockaddr *)&sa);
        } else if (errno == EAGAIN || errno == EBADF || errno == EINVAL) {
            return;
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
            starve(l, errno);
            return;
        }
        /* Anything else is an error of that one connection, which is gone. */
    }
}

static void on_turn(uv_prepare_t *turn)
{
    (void)turn;
    stream_new_turn();
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct listener *l = handle->data;
    if (--l->handles == 0) {
        free(l->path);
        free(l);
    }
}

void listener_close(struct listener *l)
{
    if (l->closing) {
        return;
    }
    l->closing = true;
    if (l->path != NULL) {
        struct stat now;
        /* Somebody may have put another in its place. */
        if (lstat(l->path, &now) == 0 && now.st_dev == l->file.st_dev && now.st_ino == l->file.st_ino) {
            unlink(l->path);
        }
    }
    uv_close((uv_handle_t *)&l->poll, on_handle_closed);
    uv_close((uv_handle_t *)&l->turn, on_handle_closed);
    uv_close((uv_handle_t *)&l->pause, on_handle_closed);
    close(l->fd);
}

/* Takes @fd, which listens, and @path; both are released if it fails. */
static int listener_new(uv_loop_t *loop, int fd, char *path, const struct stat *file, listener_accept accept,
    listener_opened opened, void *arg, struct listener **out)
{
    int rv;
    struct listener *l = calloc(1, sizeof *l);
    if (l == NULL) {
        rv = err_setf(SYM_ENOMEM, "out of memory");
        goto close_fd;
    }
    l->loop = loop;
    l->accept = accept;
    l->opened = opened;
    l->arg = arg;
    l->fd = fd;
    l->path = path;
    if (file != NULL) {
        l->file = *file;
    }
    rv = uv_poll_init(loop, &l->poll, fd);
    if (rv != 0) {
        rv = err_sysf(rv, "listen");
        goto free_listener;
    }
    uv_prepare_init(loop, &l->turn);
    uv_prepare_start(&l->turn, on_turn);
    uv_timer_init(loop, &l->pause);
    l->poll.data = l->turn.data = l->pause.data = l;
    l->handles = 3;
    rv = uv_poll_start(&l->poll, UV_READABLE, on_ready);
    if (rv != 0) {
        rv = err_sysf(rv, "listen");
        listener_close(l);
        return rv;
    }
    *out = l;
    return 0;

free_listener:
    free(l);
close_fd:
    close(fd);
    if (path != NULL) {
        unlink(path);
        free(path);
    }
    return rv;
}

int listener_tcp(uv_loop_t *loop, const char *bind_addr, uint16_t port, listener_accept accept,
    listener_opened opened, void *arg, struct listener **out)
{
    struct sockaddr_storage sa;
    socklen_t len;
    struct peer_addr bound;
    const int on = 1, off = 0;
    int rv = addr_to_system(bind_addr != NULL ? bind_addr : "0.0.0.0", port, &sa, &len);
    if (rv != 0) {
        return rv;
    }
    int fd = socket(sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return err_sysf(errno, "socket");
    }
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        (sa.ss_family == AF_INET6 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) != 0) ||
        bind(fd, (struct sockaddr *)&sa, len) != 0 || listen(fd, SOMAXCONN) != 0 ||
        getsockname(fd, (struct sockaddr *)&sa, &len) != 0) {
        rv = errno == EADDRINUSE
                 ? err_setf(SYM_EINUSE, "port %u is in use", port)
                 : err_sysf(errno, "listen on %s port %u", bind_addr != NULL ? bind_addr : "0.0.0.0", port);
        close(fd);
        return rv;
    }
    rv = listener_new(loop, fd, NULL, NULL, accept, opened, arg, out);
    if (rv == 0) {
        addr_from_system((struct sockaddr *)&sa, &bound);
        (*out)->port = bound.port;
    }
    return rv;
}

int listener_unix(uv_loop_t *loop, const char *path, mode_t mode, gid_t gid, listener_accept accept,
    listener_opened opened, void *arg, struct listener **out)
{
    int fd;
    struct stat file;
    char *copy = strdup(path);
    if (copy == NULL) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    int rv = unix_listen(path, mode, gid, &fd, &file);
    if (rv != 0) {
        free(copy);
        return rv;
    }
    return listener_new(loop, fd, copy, &file, accept, opened, arg, out);
}

uint16_t listener_port(const struct listener *l)
{
    return l->port;
}
