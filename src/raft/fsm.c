#include "raft/fsm.h"

#include "base/err.h"
#include "base/log.h"

#include <stdlib.h>

static struct fsm *fsm_of(struct raft_fsm *base)
{
    return base->data;
}

static int apply(struct raft_fsm *base, const struct raft_buffer *buf, void **result)
{
    struct fsm *f = fsm_of(base);
    /* libraft raises last_applied after this call, and entries that are no commands raise it too. */
    uint64_t index = f->raft->last_applied + 1;
    struct txn_result *results = NULL;
    unsigned n = 0;
    bool wanted = f->ops->wanted(f->arg, index);
    *result = NULL;
    int rv = store_apply(f->store, index, buf->base, buf->len, wanted ? &results : NULL, &n);
    if (rv != 0) {
        log_error("entry %llu: %s", (unsigned long long)index, err_msg());
        f->ops->fatal(f->arg, "applying an entry", rv);
        return RAFT_IOERR;
    }
    if (wanted) {
        f->ops->deliver(f->arg, index, results, n);
    }
    return 0;
}

static int snapshot(struct raft_fsm *base, struct raft_buffer *bufs[], unsigned *n_bufs)
{
    struct fsm *f = fsm_of(base);
    if (!f->ops->may_take(f->arg)) {
        return RAFT_BUSY;
    }
    int rv = snap_begin(f->store, &f->pinned);
    if (rv != 0) {
        /* A backup holds the one snapshot there can be, or memory is short: libraft asks again at the next
         * event. */
        f->pinned = NULL;
        return RAFT_BUSY;
    }
    f->ops->taking(f->arg);
    f->placeholder = (struct raft_buffer){0};
    *bufs = &f->placeholder;
    *n_bufs = 1;
    return 0;
}

static int snapshot_finalize(struct raft_fsm *base, struct raft_buffer *bufs[], unsigned *n_bufs)
{
    struct fsm *f = fsm_of(base);
    if (f->pinned != NULL) {
        snap_end(f->pinned);
        f->pinned = NULL;
        f->snapshots++;
    }
    *bufs = NULL;
    *n_bufs = 0;
    return 0;
}

int fsm_encode(struct fsm *f, struct raft_buffer *out)
{
    struct buf bytes = {0};
    int rv = snap_encode(f->pinned, &bytes);
    if (rv != 0) {
        log_error("encoding a snapshot: %s", err_msg());
        buf_free(&bytes);
        return rv;
    }
    size_t len;
    /* raft_malloc is malloc. */
    out->base = buf_take(&bytes, &len);
    out->len = len;
    return out->base == NULL ? SYM_ENOMEM : 0;
}

int fsm_prepare(struct fsm *f, const struct raft_buffer *data)
{
    int rv = install_prepare(&f->config, data->base, data->len, &f->prepared);
    if (rv != 0) {
        f->prepared = NULL;
        log_error("received snapshot: %s", err_msg());
    }
    return rv;
}

static int restore(struct raft_fsm *base, struct raft_buffer *buf)
{
    struct fsm *f = fsm_of(base);
    int rv = 0;
    uint64_t index = snap_peek_index(buf->base, buf->len);
    if (!f->running) {
        if (index != 0 && index <= store_applied(f->store)) {
            goto done; /* the state has come further than its snapshot */
        }
        rv = fsm_prepare(f, buf);
    }
    if (rv == 0 && f->prepared == NULL) {
        rv = err_setf(SYM_EIO, "nothing was prepared for it");
    }
    if (rv == 0) {
        rv = store_install(f->store, f->prepared);
        f->prepared = NULL;
    }
    if (rv != 0) {
        if (!f->running) {
            f->failed = rv;
            return RAFT_CORRUPT; /* libraft frees the bytes */
        }
        f->ops->fatal(f->arg, "restoring a snapshot", rv);
        return RAFT_IOERR;
    }
done:
    raft_free(buf->base);
    return 0;
}

void fsm_init(struct fsm *f, struct raft *raft, struct store *store, const struct store_config *config,
    const struct fsm_ops *ops, void *arg)
{
    *f = (struct fsm){.raft = raft, .store = store, .config = *config, .ops = ops, .arg = arg};
    f->base.version = 2;
    f->base.data = f;
    f->base.apply = apply;
    f->base.snapshot = snapshot;
    f->base.restore = restore;
    f->base.snapshot_finalize = snapshot_finalize;
}

void fsm_started(struct fsm *f)
{
    f->running = true;
}

void fsm_close(struct fsm *f)
{
    if (f->pinned != NULL) {
        snap_end(f->pinned);
        f->pinned = NULL;
    }
    if (f->prepared != NULL) {
        install_abandon(f->prepared);
        f->prepared = NULL;
    }
}
