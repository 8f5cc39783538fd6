#include "raft/node_int.h"

#include "base/err.h"

#include <stdlib.h>

enum { DEFAULT_SUBMIT_MS = 5000, DEFAULT_READ_MS = 1500 };

bool wiring_voters(const struct rnode *n, bool (*good)(const struct rnode *n, uint64_t id))
{
    const struct raft_configuration *c = &n->raft.configuration;
    unsigned all = 0, yes = 0;
    for (unsigned i = 0; i < c->n; i++) {
        if (c->servers[i].role == RAFT_VOTER) {
            all++;
            yes += c->servers[i].id == n->cfg.id || good(n, c->servers[i].id);
        }
    }
    return yes > all / 2;
}

static bool is_connected(const struct rnode *n, uint64_t id)
{
    return peers_is_up(n->peers, id);
}

bool wiring_is_heard(const struct rnode *n, uint64_t id)
{
    uint64_t heard = peers_last_heard(n->peers, id);
    return peers_is_up(n->peers, id) && heard != 0 && uv_now(n->loop) - heard <= n->raft.election_timeout;
}

/* Rule 15: here, or on a voter that is there. */
void wiring_look_for_room(struct rnode *n)
{
    const struct raft_configuration *c = &n->raft.configuration;
    bool disk = n->health.low, store = others_store_low(n);
    for (unsigned i = 0; i < c->n; i++) {
        const struct other *o = others_find(n, c->servers[i].id);
        if (o != NULL && c->servers[i].role == RAFT_VOTER && peers_is_up(n->peers, o->id)) {
            disk |= o->disk_low;
            store |= o->store_low;
        }
    }
    n->changed |= disk != n->low_disk || store != n->low_store;
    n->low_disk = disk;
    n->low_store = store;
}

/* A full store takes what only makes room. */
static bool only_deletes(const uint8_t *txn, size_t len)
{
    struct txn *t = malloc(sizeof *t);
    bool only = t != NULL && txn_decode(txn, len, t) == 0 && t->n_ops > 0;
    for (unsigned i = 0; only && i < t->n_ops; i++) {
        only = t->ops[i].kind == OP_DELETE;
    }
    free(t);
    return only;
}

static int propose_may(void *arg, const uint8_t *txn, size_t len)
{
    struct rnode *n = arg;
    if (n->may == 0 && n->low_store && !only_deletes(txn, len)) {
        return SYM_ENOSPACE;
    }
    return n->may;
}

int wiring_may_propose(struct rnode *n)
{
    if (n->low_disk) {
        return SYM_ENOSPACE;
    }
    if (!wiring_voters(n, is_connected)) {
        return SYM_ENOQUORUM; /* it would only become uncertain */
    }
    if (!reads_may_serve(&n->reads)) {
        /* A txn's window of repetitions would open at the revision of a state that is behind, and might be over
         * when it is applied: it would be answered that its outcome is not known. */
        return SYM_ENOQUORUM;
    }
    return guard_log_bytes(&n->guard) > NODE_LOG_BYTES_MAX ? SYM_EBUSY : 0;
}

static uint64_t store_revision_of(void *arg)
{
    return store_revision(((struct rnode *)arg)->cfg.store);
}

static int store_cost(
    void *arg, const uint8_t *txn, size_t len, uint64_t puts, uint64_t most, struct txn_cost *out)
{
    return store_txn_cost(((struct rnode *)arg)->cfg.store, txn, len, puts, most, out);
}

static uint64_t propose_clock(void *arg)
{
    (void)arg;
    return uv_hrtime();
}

const struct propose_ops wiring_propose = {
    .fatal = node_fatal,
    .may = propose_may,
    .revision = store_revision_of,
    .cost = store_cost,
    .clock = propose_clock,
};

static uint64_t ops_now(void *arg)
{
    return uv_now(((struct rnode *)arg)->loop);
}

static uint64_t submit_leader(void *arg)
{
    const struct rnode *n = arg;
    if (n->raft.state == RAFT_LEADER) {
        return raft_transferee(&n->raft) == 0 ? n->cfg.id : 0;
    }
    uint64_t id = rnode_leader(n);
    return id != 0 && peers_is_up(n->peers, id) ? id : 0;
}

static void ops_send(void *arg, uint64_t id, uint8_t kind, const void *data, size_t len)
{
    others_send(arg, id, kind, data, len);
}

static void ops_kick(void *arg)
{
    node_kick(arg);
}

const struct submit_ops wiring_submit = {
    .now = ops_now,
    .leader = submit_leader,
    .send = ops_send,
    .kick = ops_kick,
};

const struct reads_ops wiring_reads = {
    .fatal = node_fatal,
    .now = ops_now,
    .send = ops_send,
    .kick = ops_kick,
};

void rnode_submit(
    struct rnode *n, const uint8_t *txn, size_t len, uint64_t timeout_ms, rnode_txn_cb cb, void *arg)
{
    submit_txn(&n->submit, txn, len, timeout_ms == 0 ? DEFAULT_SUBMIT_MS : timeout_ms, cb, arg);
}

void rnode_read(struct rnode *n, uint64_t timeout_ms, rnode_cb cb, void *arg)
{
    reads_begin(&n->reads, timeout_ms == 0 ? DEFAULT_READ_MS : timeout_ms, cb, arg);
}
