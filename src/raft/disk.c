#include "raft/node_int.h"

#include "base/err.h"
#include "crypto/crypto.h"

#include <string.h>
#include <unistd.h>

enum { DISK_RETRY_MS = 500, SEGMENT_BYTES = 8 << 20, RECOVER_TERMS = 1 << 20 };

/* raft_uv speaks over streams that it reads and writes itself, so TLS does not fit beneath it: it never gets
 * one, and its send is replaced. */
static int stub_init(struct raft_uv_transport *t, raft_id id, const char *address)
{
    (void)t;
    (void)id;
    (void)address;
    return 0;
}

static int stub_listen(struct raft_uv_transport *t, raft_uv_accept_cb cb)
{
    (void)t;
    (void)cb;
    return 0;
}

static int stub_connect(struct raft_uv_transport *t, struct raft_uv_connect *req, raft_id id,
    const char *address, raft_uv_connect_cb cb)
{
    (void)t;
    (void)req;
    (void)id;
    (void)address;
    (void)cb;
    return RAFT_NOCONNECTION;
}

static void stub_close(struct raft_uv_transport *t, raft_uv_transport_close_cb cb)
{
    cb(t);
}

static void stub_transport(struct raft_uv_transport *t)
{
    *t = (struct raft_uv_transport){
        .version = 1, .init = stub_init, .listen = stub_listen, .connect = stub_connect, .close = stub_close};
}

/* What libraft says of a failure while it reads the folder. */
int disk_error(const char *dir, const struct logdir *log, int rv, const char *errmsg)
{
    char what[512];
    switch (rv) {
    case RAFT_NOMEM:
        return err_setf(SYM_ENOMEM, "out of memory");
    case RAFT_UNAUTHORIZED:
        return err_setf(SYM_EDENIED, "%s", errmsg);
    case RAFT_NOSPACE:
        return err_setf(SYM_ENOSPACE, "%s: %s", dir, errmsg);
    case RAFT_CORRUPT:
    case RAFT_MALFORMED:
    case RAFT_IOERR:
        snprintf(what, sizeof what, "%s%s%s%s", errmsg,
            log->snapshot_name[0] == '\0' ? "" : " (newest snapshot: ", log->snapshot_name,
            log->snapshot_name[0] == '\0' ? "" : ")");
        return logdir_corrupt(dir, what);
    default:
        return err_setf(SYM_EIO, "%s: %s (%s)", dir, errmsg, raft_strerror(rv));
    }
}

int disk_open(struct raft_io *io, struct raft_uv_transport *transport, uv_loop_t *loop, const char *dir)
{
    stub_transport(transport);
    memset(io, 0, sizeof *io);
    int rv = raft_uv_init(io, loop, dir, transport);
    if (rv != 0) {
        return err_setf(rv == RAFT_NAMETOOLONG ? SYM_EINVAL : SYM_ENOMEM, "%s: %s", dir, io->errmsg);
    }
    raft_uv_set_auto_recovery(
        io, false); /* rule 4: it would move damaged files aside and go on without them */
    raft_uv_set_segment_size(io, SEGMENT_BYTES);
    raft_uv_set_disk_retry(io, DISK_RETRY_MS);
    raft_uv_set_tracer(io, NULL);
    return 0;
}

/* --- offline --- */

static int idle_apply(struct raft_fsm *fsm, const struct raft_buffer *buf, void **result)
{
    (void)fsm;
    (void)buf;
    *result = NULL;
    return 0;
}

/* RAFT_* or SYM_E*. */
typedef int (*offline_op)(struct raft *r, const struct raft_configuration *conf, void *arg);

/* Has libraft open a folder that nobody runs on; @op gets a configuration of this one voter. */
static int offline(
    const char *dir, const struct logdir *log, uint64_t id, const char *address, offline_op op, void *arg)
{
    uv_loop_t loop;
    struct raft_io io;
    struct raft_uv_transport transport;
    struct raft raft;
    struct raft_fsm fsm = {.version = 1, .apply = idle_apply};
    struct raft_configuration conf;
    if (uv_loop_init(&loop) != 0) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    int rv = disk_open(&io, &transport, &loop, dir);
    if (rv != 0) {
        goto close_loop;
    }
    rv = raft_init(&raft, &io, &fsm, id, address);
    if (rv != 0) {
        rv = disk_error(dir, log, rv, io.errmsg);
        goto close_io;
    }
    raft.tracer = NULL;
    raft_configuration_init(&conf);
    rv = raft_configuration_add(&conf, id, address, RAFT_VOTER);
    if (rv == 0) {
        rv = op(&raft, &conf, arg);
    }
    if (rv == RAFT_CANTBOOTSTRAP) {
        rv = err_setf(SYM_EEXIST, "%s already holds a log", dir);
    } else if (rv > 0) {
        rv = disk_error(dir, log, rv, io.errmsg);
    }
    raft_configuration_close(&conf);
    raft_close(&raft, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
close_io:
    raft_uv_close(&io);
close_loop:
    uv_loop_close(&loop);
    return rv;
}

static int bootstrap(struct raft *r, const struct raft_configuration *conf, void *arg)
{
    (void)arg;
    return raft_bootstrap(r, conf);
}

int rnode_bootstrap(const char *dir, uint64_t id, const char *address)
{
    struct logdir log;
    int fd;
    int rv = logdir_lock(dir, &fd);
    if (rv != 0) {
        return rv;
    }
    rv = logdir_check(dir, &log);
    if (rv == 0 && (log.has_segments || log.snapshot != 0)) {
        rv = err_setf(SYM_EEXIST, "%s already holds a log", dir);
    }
    if (rv == 0 && log.has_metadata) {
        rv = logdir_forget_metadata(dir); /* of a bootstrap that died before its first entry */
    }
    if (rv == 0) {
        rv = offline(dir, &log, id, address, bootstrap, NULL);
    }
    close(fd);
    return rv;
}

struct recovery {
    const char *dir;
    struct store *store;
};

/* Index of the last entry, and the highest term. Closes open segments. */
static int last_entry(struct raft *r, raft_index *last, raft_term *term)
{
    raft_id voted_for;
    struct raft_snapshot *snapshot;
    raft_index start;
    struct raft_entry *entries;
    size_t n;
    int rv = r->io->load(r->io, term, &voted_for, &snapshot, &start, &entries, &n);
    if (rv != 0) {
        return rv;
    }
    *last = start + n - 1;
    if (snapshot != NULL) {
        guard_free_snapshot(snapshot);
    }
    for (size_t i = 0; i < n; i++) {
        if (i + 1 == n || entries[i + 1].batch != entries[i].batch) {
            raft_free(entries[i].batch);
        }
    }
    raft_free(entries);
    return 0;
}

/* The state as a snapshot of @term: no entry that it holds can be of a later one. */
static int keep_state(const struct recovery *rec, raft_term term, const struct raft_configuration *conf)
{
    struct raft_buffer encoded = {0};
    struct buf bytes = {0};
    struct snap *snap;
    int rv = snap_begin(rec->store, &snap);
    if (rv != 0) {
        return rv;
    }
    rv = snap_encode(snap, &bytes);
    if (rv == 0) {
        rv = raft_configuration_encode(conf, &encoded);
    }
    if (rv == 0) {
        rv = logdir_write_snapshot(
            rec->dir, term, snap_index(snap), encoded.base, encoded.len, buf_data(&bytes), bytes.len);
    }
    snap_end(snap);
    raft_free(encoded.base);
    buf_free(&bytes);
    return rv;
}

/* The others may go on, in the term that this one knows or a later one, with a leader of theirs: from now on
 * this one is in a term that is nobody else's. Nor is it that of another survivor that is recovered likewise. */
static int leave_term(struct raft *r, raft_term term)
{
    uint32_t further;
    int rv = crypto_random(&further, sizeof further);
    return rv != 0 ? rv : r->io->set_term(r->io, term + 1 + further % RECOVER_TERMS);
}

/* libraft puts the new configuration at the end of the log. Where the state is ahead of that, entries would
 * come to stand at places that the state holds already, and be skipped. */
static int recover(struct raft *r, const struct raft_configuration *conf, void *arg)
{
    const struct recovery *rec = arg;
    raft_index last;
    raft_term term;
    int rv = last_entry(r, &last, &term);
    if (rv == 0) {
        rv = leave_term(r, term);
    }
    if (rv != 0) {
        return rv;
    }
    if (store_applied(rec->store) > last) {
        return keep_state(rec, term, conf);
    }
    rv = logdir_mark_recovered(rec->dir);
    return rv != 0 ? rv : raft_recover(r, conf);
}

int rnode_recover(const char *dir, const struct store_config *store, uint64_t id, const char *address)
{
    struct logdir log;
    struct recovery rec = {.dir = dir};
    int fd;
    int rv = logdir_lock(dir, &fd);
    if (rv != 0) {
        return rv;
    }
    rv = logdir_check(dir, &log);
    if (rv == 0 && !log.has_segments && log.snapshot == 0) {
        rv = err_setf(SYM_ENOTFOUND, "%s holds no log", dir);
    }
    if (rv == 0) {
        rv = store_open(store, &rec.store);
    }
    if (rv == 0) {
        rv = offline(dir, &log, id, address, recover, &rec);
        store_close(rec.store);
    }
    if (rv == 0) {
        rv = logdir_check(dir, &log); /* without the segments that a snapshot has replaced */
    }
    close(fd);
    return rv;
}
