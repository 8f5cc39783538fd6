#include "raft/node_int.h"

#include "base/log.h"

/* A process that dies takes its connections with it, at once and on every follower, while libraft waits for
 * the election timeout and then once more because the others still believe in the leader. So when the
 * leader's connection goes, this node has no leader, which lets it grant a vote, and asks for votes itself
 * after a moment that is another one for each.
 *
 * Nothing of this can depose a leader that lives: the vote is a pre-vote first, and whoever still hears the
 * leader, and the leader itself, refuses it; the leader's next heartbeat then makes us its follower again.
 */

enum { STEP_MS = 25, JITTER_MS = 10, RETRY_MS = 60 };

/* How many of the other voters that may lead next come before us. */
static unsigned rank(const struct rnode *n, uint64_t dead)
{
    const struct raft_configuration *c = &n->raft.configuration;
    unsigned before = 0;
    for (unsigned i = 0; i < c->n; i++) {
        if (c->servers[i].role == RAFT_VOTER && c->servers[i].id != dead && c->servers[i].id < n->cfg.id) {
            before++;
        }
    }
    return before;
}

static bool waiting_for_leader(struct rnode *n)
{
    raft_id id;
    const char *address;
    raft_leader(&n->raft, &id, &address);
    return n->phase == NODE_RUNNING && n->raft.state != RAFT_LEADER && id == 0 &&
           raft_role(&n->raft) == RAFT_VOTER;
}

static void on_timer(uv_timer_t *timer)
{
    struct rnode *n = timer->data;
    if (!waiting_for_leader(n) || uv_now(n->loop) - n->down_since > 2 * n->raft.election_timeout) {
        return; /* from here on the usual timeouts do */
    }
    /* Expired, whatever its length: this tick asks for votes, unless entries are still being written. */
    n->raft.election_timer_start = 0;
    guard_tick(&n->guard);
    bool asked = n->raft.state == RAFT_CANDIDATE;
    if (waiting_for_leader(n)) {
        uv_timer_start(timer, on_timer, asked ? RETRY_MS + node_random(n, RETRY_MS) : 5, 0);
    }
}

void failover_down(struct rnode *n, uint64_t id)
{
    struct raft *r = &n->raft;
    if (n->phase != NODE_RUNNING || r->state != RAFT_FOLLOWER || r->follower_state.current_leader.id != id) {
        return;
    }
    log_info("the connection to the leader (%llu) is gone", (unsigned long long)id);
    guard_forget_leader(r);
    n->down_since = uv_now(n->loop);
    if (waiting_for_leader(n)) {
        uv_timer_start(&n->failover, on_timer, 1 + rank(n, id) * STEP_MS + node_random(n, JITTER_MS), 0);
    }
    node_look(n);
}

void failover_init(struct rnode *n)
{
    uv_timer_init(n->loop, &n->failover);
    n->failover.data = n;
}
