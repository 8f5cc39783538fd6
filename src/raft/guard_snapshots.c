/* Snapshots on their way to the disk, and from there to be sent. */
#include "raft/guard_impl.h"

#include "base/log.h"

#include <stdlib.h>

struct guard_put {
    struct guard_job job;
    struct guard *g;
    struct raft_io_snapshot_put req;
    struct raft_io_snapshot_put *outer;
    struct raft_snapshot snapshot; /* as given, or with the encoded bytes */
    const struct raft_snapshot *given;
    struct raft_buffer data;
    unsigned trailing; /* 0: a received one is installed */
    uint64_t began;
    bool working;
    int rv;
};

static void put_finish(struct guard_put *put, int status)
{
    struct guard *g = put->g;
    struct raft_io_snapshot_put *outer = put->outer;
    g->put = NULL;
    if (status == 0 && put->trailing == 0) {
        g->stats.installed++;
    } else if (status == 0 && g->ops->clock != NULL) {
        histogram_add(&g->stats.snapshots, guard_clock_of(g) - put->began);
        g->stats.snapshot_bytes = put->data.len;
    }
    raft_free(put->data.base);
    free(put);
    if (status != 0 && !g->closing && guard_rule(4)) {
        g->ops->fatal(g->arg, "writing a snapshot", status);
    }
    outer->cb(outer, status);
    g->ops->changed(g->arg);
}

static void put_done(struct raft_io_snapshot_put *req, int status)
{
    put_finish(req->data, status);
}

static void put_run(struct guard_job *job)
{
    struct guard_put *put = (struct guard_put *)job;
    struct guard *g = put->g;
    put->rv = put->trailing == 0 ? g->ops->prepare(g->arg, &put->given->bufs[0])
                                 : g->ops->encode(g->arg, &put->data);
}

/* A snapshot that could not be encoded (it took too long, say) is left out; the log stays, and there will be
 * another. libraft takes back what it had begun only while it is closing, so for this one call it is. */
static void put_give_up(struct guard_put *put)
{
    struct guard *g = put->g;
    struct raft_io_snapshot_put *outer = put->outer;
    log_warn("raft: a snapshot is given up; the next one comes later");
    g->given_up++;
    g->put = NULL;
    raft_free(put->data.base);
    free(put);
    g->raft->legacy.closing = true;
    outer->cb(outer, RAFT_CANCELED);
    g->raft->legacy.closing = false;
    g->ops->changed(g->arg);
}

static void put_worked(struct guard_job *job)
{
    struct guard_put *put = (struct guard_put *)job;
    struct guard *g = put->g;
    put->working = false;
    if (g->closing) {
        put_finish(put, RAFT_CANCELED);
        guard_closed(g);
        return;
    }
    if (put->rv != 0 && put->trailing == 0) {
        g->ops->fatal(g->arg, "preparing a received snapshot", put->rv);
    }
    if (put->rv != 0) {
        put_give_up(put);
        return;
    }
    if (put->trailing != 0) {
        put->snapshot.bufs = &put->data;
        put->snapshot.n_bufs = 1;
    }
    int rv = g->inner.snapshot_put(g->raft->io, put->trailing, &put->req, &put->snapshot, put_done);
    if (rv != 0) {
        put_finish(put, rv);
    }
}

/* Encoding, checking and preparing take as long as the state is large: not on the loop. */
int guard_snapshot_put(struct raft_io *io, unsigned trailing, struct raft_io_snapshot_put *req,
    const struct raft_snapshot *snapshot, raft_io_snapshot_put_cb cb)
{
    struct guard *g = guard_of(io);
    struct guard_put *put = calloc(1, sizeof *put);
    if (put == NULL) {
        g->ops->fatal(g->arg, "writing a snapshot", RAFT_NOMEM);
        return RAFT_NOMEM;
    }
    put->job = (struct guard_job){.run = put_run, .done = put_worked};
    put->g = g;
    put->req.data = put;
    put->outer = req;
    put->snapshot = *snapshot;
    put->given = snapshot;
    put->trailing = trailing;
    put->working = true;
    put->began = guard_clock_of(g);
    req->cb = cb;
    if (trailing == 0) {
        g->n_sums = 0; /* libraft has dropped its log */
    }
    g->put = put;
    g->ops->work(g->arg, &put->job);
    return 0;
}

bool guard_snapshotting(const struct guard *g)
{
    return g->put != NULL;
}

struct get {
    struct raft_io_snapshot_get req;
    struct guard *g;
    struct raft_io_snapshot_get *outer;
};

void guard_free_snapshot(struct raft_snapshot *s)
{
    for (unsigned i = 0; i < s->n_bufs; i++) {
        raft_free(s->bufs[i].base);
    }
    raft_free(s->bufs);
    raft_configuration_close(&s->configuration);
    raft_free(s);
}

static void get_done(struct raft_io_snapshot_get *req, struct raft_snapshot *snapshot, int status)
{
    struct get *get = req->data;
    struct guard *g = get->g;
    struct raft_io_snapshot_get *outer = get->outer;
    free(get);
    g->sending = false; /* unless it is sent, right below */
    if (status != 0 && guard_rule(8)) {
        /* Rule 8: told of a failure, libraft frees a configuration and a buffer that it never set. Not told,
         * it would only keep its request, which is what @data points to; the follower is tried again after
         * the timeout. */
        if (!g->closing) {
            log_warn("loading a snapshot to send: %s", raft_strerror(status));
        }
        raft_free(snapshot);
        raft_free(outer->data);
        return;
    }
    if (g->closing) {
        guard_free_snapshot(snapshot);
        raft_free(outer->data);
        return;
    }
    if (status == 0) {
        g->loaded_index = snapshot->index;
        g->loaded_term = snapshot->term;
    }
    outer->cb(outer, snapshot, status);
    g->loaded_index = 0;
}

int guard_snapshot_get(struct raft_io *io, struct raft_io_snapshot_get *req, raft_io_snapshot_get_cb cb)
{
    struct guard *g = guard_of(io);
    int rv = RAFT_BUSY;
    /* A follower without the snapshot refuses the heartbeats that are sent meanwhile, and libraft then
     * sends it again, at each heartbeat. One at a time, for all followers: the others' turn comes with a
     * heartbeat, too. */
    struct get *get = g->sending ? NULL : malloc(sizeof *get);
    if (get != NULL) {
        *get = (struct get){.g = g, .outer = req};
        get->req.data = get;
        req->cb = cb;
        rv = g->inner.snapshot_get(io, &get->req, get_done);
        if (rv == 0) {
            g->sending = true;
            return 0;
        }
        free(get);
    }
    if (!guard_rule(8)) {
        return rv;
    }
    /* As above; an error here would also make libraft leave out what else the event asked for. */
    raft_free(req->data);
    return 0;
}
