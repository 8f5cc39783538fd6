#include "raft/node_int.h"

#include <string.h>

uint64_t rnode_leader(const struct rnode *n)
{
    raft_id id;
    const char *address;
    if (n->raft.state == RAFT_LEADER) {
        return n->cfg.id;
    }
    raft_leader((struct raft *)&n->raft, &id, &address);
    return id;
}

bool rnode_is_leader(const struct rnode *n)
{
    return n->phase == NODE_RUNNING && reads_may_serve(&n->reads);
}

struct peers *rnode_peers(struct rnode *n)
{
    return n->peers;
}

static enum rnode_state state_of(const struct rnode *n)
{
    if (n->phase == NODE_CLOSING) {
        return STATE_DOWN;
    }
    switch (n->raft.state) {
    case RAFT_LEADER:
        return STATE_LEADER;
    case RAFT_CANDIDATE:
        return STATE_CANDIDATE;
    case RAFT_FOLLOWER:
        return STATE_FOLLOWER;
    default:
        return STATE_DOWN;
    }
}

static enum raft_role role_of(int role)
{
    return role == RAFT_VOTER ? ROLE_VOTER : role == RAFT_STANDBY ? ROLE_STANDBY : ROLE_SPARE;
}

/* After a restart the state is ahead of what libraft has gone through again. */
static uint64_t applied(const struct rnode *n)
{
    uint64_t here = store_applied(n->cfg.store);
    return n->raft.last_applied > here ? n->raft.last_applied : here;
}

bool rnode_is_behind(const struct rnode *n)
{
    return applied(n) < n->behind_until;
}

static uint64_t silence(const struct rnode *n, uint64_t id)
{
    uint64_t heard = id == n->cfg.id ? uv_now(n->loop) : peers_last_heard(n->peers, id);
    return heard == 0 ? UINT64_MAX : uv_now(n->loop) - heard;
}

void rnode_status(const struct rnode *n, struct rnode_status *out)
{
    const struct raft *r = &n->raft;
    memset(out, 0, sizeof *out);
    out->state = state_of(n);
    out->id = n->cfg.id;
    if (out->state == STATE_DOWN) {
        return;
    }
    out->leader = rnode_leader(n);
    out->term = r->current_term;
    out->last_index = raft_last_index((struct raft *)r);
    out->last_term = guard_term_of(r, out->last_index);
    out->commit_index = r->commit_index;
    out->applied_index = applied(n);
    out->behind = rnode_is_behind(n);
    out->snapshot_index = r->trail.snapshot.index;
    out->log_bytes = guard_log_bytes((struct guard *)&n->guard);
    out->has_quorum = r->state == RAFT_LEADER ? wiring_voters(n, wiring_is_heard) : out->leader != 0;
    out->changing = n->member.what != MEMBER_NONE || r->configuration_uncommitted_index != 0;
    out->no_space = n->low_disk || n->low_store;
    for (unsigned i = 0; i < r->configuration.n && i < sizeof out->servers / sizeof *out->servers; i++) {
        const struct raft_server *s = &r->configuration.servers[i];
        struct rnode_server *to = &out->servers[out->n_servers++];
        const struct other *o = others_find(n, s->id);
        raft_index match;
        to->id = s->id;
        others_address(n, s, to->address);
        to->role = role_of(s->role);
        to->is_self = s->id == n->cfg.id;
        to->up = to->is_self || wiring_is_heard(n, s->id);
        to->silent_ms = silence(n, s->id);
        to->match_index = raft_match_index(r, s->id, &match) == 0 ? match : 0;
        to->disk_free = to->is_self ? n->health.free : o != NULL ? o->disk_free : 0;
    }
}

void rnode_snapshot(struct rnode *n)
{
    raft_set_snapshot_threshold(&n->raft, 1); /* at the next event, a tick at the latest */
}

void rnode_stats(const struct rnode *n, struct rnode_stats *out)
{
    *out = (struct rnode_stats){
        .submitted = n->submit.submitted,
        .forwarded = n->submit.forwarded,
        .packs = n->propose.packs,
        .pack_txns = n->propose.pack_txns,
        .reads = n->reads.count,
        .read_rounds = n->reads.rounds,
        .snapshots = n->fsm.snapshots,
        .elections = n->elections,
        .leaders = n->leaders,
        .read_errors = n->reads.failed,
        .conflicts = n->submit.conflicts,
        .txns_waiting = n->propose.n_waiting,
        .txn_bytes_waiting = n->propose.bytes_waiting,
        .txns_pending = n->submit.n_calls,
        .reads_pending = n->reads.n,
        .disk = n->guard.stats,
        .commits = n->propose.commits,
        .pool_wait = n->health.pool_wait,
    };
    memcpy(out->ended, n->submit.ended, sizeof out->ended);
}
