/* The end: of the node, and of the process. */
#include "daemon/daemon.h"

#include "base/err.h"
#include "base/log.h"
#include "daemon/api.h"
#include "lua/bind_policy.h"

#include <stdlib.h>
#include <unistd.h>

enum { GRACE_MS = 500, PATIENCE_MS = 10000, GOODBYE_MS = 1000 };

struct stop_wait {
    STAILQ_ENTRY(stop_wait) link;
    void (*done)(void *arg);
    void *arg;
};

/* A stop under way: the doors, raft, the store. */
struct stop {
    struct daemon *d;
    bool quit;
    unsigned waiting;
};

static void quit_now(struct daemon *d);
static void quit_done(struct daemon *d);

static void say_stopped(struct daemon *d)
{
    struct stop_waits due = STAILQ_HEAD_INITIALIZER(due);
    struct stop_wait *wait;
    STAILQ_CONCAT(&due, &d->waits);
    while ((wait = STAILQ_FIRST(&due)) != NULL) {
        STAILQ_REMOVE_HEAD(&due, link);
        wait->done(wait->arg);
        free(wait);
    }
}

static void stop_done(struct stop *stop)
{
    struct daemon *d = stop->d;
    bool quit = stop->quit;
    if (d->nodes != NULL) {
        watch_close(d->nodes);
        d->nodes = NULL;
    }
    if (d->clients != NULL) {
        watch_close(d->clients);
        d->clients = NULL;
    }
    if (d->store != NULL) {
        store_close(d->store);
        d->store = NULL;
    }
    tls_ctx_free(d->tls);
    d->tls = NULL;
    d->node_stopping = false;
    free(stop);
    say_stopped(d);
    if (quit) {
        quit_done(d);
    } else if (d->quit_waits) {
        d->quit_waits = false;
        quit_now(d);
    }
}

static void raft_stopped(void *arg)
{
    stop_done(arg);
}

static void door_closed(void *arg)
{
    struct stop *stop = arg;
    struct daemon *d = stop->d;
    struct rnode *raft = d->raft;
    if (--stop->waiting > 0) {
        return;
    }
    if (raft != NULL) {
        d->raft = NULL; /* nothing may be asked of it any more */
        rnode_stop(raft, raft_stopped, stop);
    } else {
        stop_done(stop);
    }
}

/* The doors close while raft still answers, so that what was asked before gets its answer. */
static void close_doors(struct stop *stop)
{
    struct daemon *d = stop->d;
    struct http_server *remote = d->remote;
    struct http_server *control = stop->quit ? d->control : NULL;
    api_shut(d->api);
    d->remote = NULL;
    stop->waiting = 1 + (remote != NULL) + (control != NULL);
    if (remote != NULL) {
        http_server_close(remote, GRACE_MS, door_closed, stop);
    }
    if (control != NULL) {
        d->control = NULL;
        http_server_close(control, GRACE_MS, door_closed, stop);
    }
    door_closed(stop);
}

static void handed_over(void *arg, int status)
{
    (void)status;
    close_doors(arg);
}

static int begin_stop(struct daemon *d, bool quit)
{
    struct stop *stop = malloc(sizeof *stop);
    if (stop == NULL) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    *stop = (struct stop){.d = d, .quit = quit};
    d->node_stopping = true;
    if (d->raft != NULL && rnode_is_leader(d->raft)) {
        rnode_transfer(d->raft, 0, handed_over, stop);
    } else {
        close_doors(stop);
    }
    return 0;
}

int daemon_stop(struct daemon *d, void (*done)(void *arg), void *arg)
{
    if (d->tls == NULL) {
        return err_setf(SYM_ECLOSED, "the node is not started");
    }
    struct stop_wait *wait = malloc(sizeof *wait);
    if (wait == NULL) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    int rv = d->node_stopping ? 0 : begin_stop(d, false);
    if (rv != 0) {
        free(wait);
        return rv;
    }
    *wait = (struct stop_wait){.done = done, .arg = arg};
    STAILQ_INSERT_TAIL(&d->waits, wait, link);
    return 0;
}

static void on_patience_end(uv_timer_t *timer)
{
    (void)timer;
    log_error("did not come to an orderly end within %d s", PATIENCE_MS / 1000);
    _exit(1);
}

static void quit_done(struct daemon *d)
{
    vm_cb_drop(&d->on_request);
    vm_cb_drop(&d->on_change);
    vm_cb_drop(&d->on_removed);
    vm_cb_drop(&d->on_kv_failed);
    vm_cb_drop(&d->on_quit);
    bind_policy_close(d->L);
    vm_close(d->L);
    d->L = NULL;
    api_free(d->api);
    d->api = NULL;
    uv_close((uv_handle_t *)&d->pump, NULL);
    pulse_stop(&d->pulse);
    uv_stop(d->loop);
}

static void quit_now(struct daemon *d)
{
    if (begin_stop(d, true) != 0) {
        _exit(70);
    }
}

static void on_goodbye_end(uv_timer_t *timer)
{
    struct daemon *d = timer->data;
    daemon_quit(d, d->exit_code);
}

void daemon_quit(struct daemon *d, int code)
{
    if (d->stopping) {
        return;
    }
    if (d->exit_code == 0) {
        d->exit_code = code;
    }
    if (d->on_quit.L != NULL && !d->quit_asked) {
        d->quit_asked = true;
        uv_timer_start(&d->deadline, on_goodbye_end, GOODBYE_MS, 0);
        vm_cb_call(&d->on_quit, 0, NULL, NULL);
        return;
    }
    d->stopping = true;
    log_info("stopping");
    uv_timer_start(&d->deadline, on_patience_end, PATIENCE_MS, 0);
    if (d->node_stopping) {
        d->quit_waits = true;
    } else {
        quit_now(d);
    }
}
