#include "raft/node_int.h"

#include "base/err.h"
#include "base/log.h"

#include <stdlib.h>
#include <string.h>

/* Rule 12: one change at a time. Rule 13: the leader hands over before it is removed. libraft's requests are
 * part of the node and live as long as it does. */

enum { CHANGE_MS = 30000, TRANSFER_SLACK_MS = 200 };

static int refuse_not_leader(void)
{
    return err_setf(SYM_ENOTLEADER, "this manager does not lead");
}

/* A configuration may only follow an entry of its leader's own term that is committed, or two configurations
 * that do not overlap could both come to be. libraft opens a term with an entry only if some entry is not
 * known to be committed. */
static bool term_is_open(const struct rnode *n)
{
    return guard_term_of(&n->raft, n->raft.commit_index) == n->raft.current_term;
}

static void opened(struct raft_barrier *barrier, int status)
{
    struct rnode *n = barrier->data;
    (void)status; /* lost: the next term opens itself */
    n->member.opening = false;
    node_kick(n);
}

static void open_term(struct rnode *n)
{
    struct member *m = &n->member;
    if (m->opening || raft_transferee(&n->raft) != 0 ||
        guard_term_of(&n->raft, raft_last_index(&n->raft)) == n->raft.current_term) {
        return;
    }
    m->barrier.data = n;
    m->opening = true;
    int rv = raft_barrier(&n->raft, &m->barrier, opened);
    if (rv != 0) {
        m->opening = false;
        if (rv != RAFT_NOTLEADER && rv != RAFT_NOSPACE && rv != RAFT_LEADERSHIPLOST) {
            node_fatal(n, "opening a term", rv);
        }
    }
}

static void change_done(struct rnode *n, int status)
{
    struct member *m = &n->member;
    rnode_cb cb = m->cb;
    void *arg = m->arg;
    /* Given up before libraft is done with it: it must not find the request when the entry commits after all.
     */
    if (n->raft.legacy.change == &m->change) {
        n->raft.legacy.change = NULL;
    }
    free(m->address);
    m->address = NULL;
    m->what = MEMBER_NONE;
    m->submitted = false;
    n->changed = true;
    node_kick(n);
    cb(arg, status);
}

static void changed(struct raft_change *change, int status)
{
    struct rnode *n = change->data;
    if (!n->member.submitted) {
        return; /* given up */
    }
    switch (status) {
    case 0:
        break;
    case RAFT_NOCONNECTION:
        status =
            err_setf(SYM_ETIMEOUT, "manager %llu did not catch up in time", (unsigned long long)n->member.id);
        break;
    default:
        status = n->phase == NODE_CLOSING
                     ? err_setf(SYM_ECANCELED, "this node is stopping")
                     : err_setf(SYM_EUNKNOWN, "leadership was lost; the change may or may not have happened");
        break;
    }
    change_done(n, status);
}

static void submit_change(struct rnode *n)
{
    struct member *m = &n->member;
    int rv = RAFT_INVALID;
    m->change.data = n;
    m->submitted = true;
    switch (m->what) {
    case MEMBER_ADD:
        rv = raft_add(&n->raft, &m->change, m->id, m->address, changed);
        break;
    case MEMBER_ASSIGN:
        rv = raft_assign(&n->raft, &m->change, m->id, m->role, changed);
        break;
    case MEMBER_REMOVE:
        rv = raft_remove(&n->raft, &m->change, m->id, changed);
        break;
    case MEMBER_NONE:
        break;
    }
    if (rv == 0) {
        return;
    }
    m->submitted = false;
    if (n->raft.legacy.change == &m->change) {
        n->raft.legacy.change = NULL; /* raft_assign leaves it there when it fails */
    }
    switch (rv) {
    case RAFT_NOSPACE:
    case RAFT_CANTCHANGE:
        return; /* a segment is being made, or libraft still has another change: again at the next tick */
    case RAFT_NOTLEADER:
    case RAFT_LEADERSHIPLOST:
        rv = refuse_not_leader();
        break;
    case RAFT_DUPLICATEID:
    case RAFT_DUPLICATEADDRESS:
        rv = err_setf(SYM_EEXIST, "raft id %llu or address %s is taken", (unsigned long long)m->id,
            m->address != NULL ? m->address : "");
        break;
    case RAFT_BADID:
    case RAFT_NOTFOUND:
        rv = err_setf(SYM_ENOTFOUND, "no manager has raft id %llu", (unsigned long long)m->id);
        break;
    case RAFT_BADROLE:
        rv = 0; /* it has it already */
        break;
    default:
        node_fatal(n, "changing the configuration", rv);
        break;
    }
    change_done(n, rv);
}

void member_flush(struct rnode *n)
{
    struct member *m = &n->member;
    bool leads = n->raft.state == RAFT_LEADER;
    if (leads && n->phase == NODE_RUNNING) {
        open_term(n);
    }
    if (m->what != MEMBER_NONE && !m->submitted) {
        if (!leads) {
            change_done(n, refuse_not_leader());
        } else if (raft_transferee(&n->raft) == 0 && term_is_open(n) &&
                   n->raft.configuration_uncommitted_index == 0) {
            submit_change(n);
        }
    }
    if (m->what != MEMBER_NONE && m->deadline <= uv_now(n->loop)) {
        bool sure = !m->submitted;
        change_done(n, sure ? err_setf(SYM_ETIMEOUT, "the change could not be begun in time")
                            : err_setf(SYM_EUNKNOWN, "no majority in time; the change may still happen"));
    }
    if (m->target != 0 && m->transfer_cb != NULL && m->transfer_deadline <= uv_now(n->loop)) {
        rnode_cb cb = m->transfer_cb;
        m->transfer_cb = NULL;
        cb(m->transfer_arg, err_setf(SYM_ETIMEOUT, "no new leader came up in time"));
    }
}

static bool is_up(const struct rnode *n, uint64_t id)
{
    return id == n->cfg.id || peers_is_up(n->peers, id);
}

/* Rule 12: a voter that does not know the configuration that made it one denies its vote, so whoever is
 * needed must be there when one is promoted. */
static int check_promotion(const struct rnode *n, uint64_t id)
{
    const struct raft_configuration *c = &n->raft.configuration;
    for (unsigned i = 0; i < c->n; i++) {
        const struct raft_server *s = &c->servers[i];
        if ((s->id == id || s->role == RAFT_VOTER) && !is_up(n, s->id)) {
            return err_setf(SYM_ECONNECT,
                "manager %llu cannot be reached; no voter is added while one is away",
                (unsigned long long)s->id);
        }
    }
    return 0;
}

/* libraft has each address once. That of one who has moved away may be another's by now: it is added with its id
 * behind it, which others_sync leaves out. SYM_EEXIST: somebody is there; SYM_ETOOBIG, SYM_ENOMEM. */
static int address_to_add(const struct rnode *n, uint64_t id, const char *address, char **out)
{
    const struct raft_configuration *c = &n->raft.configuration;
    char now[NODE_ADDRESS_MAX], own[NODE_ADDRESS_MAX];
    bool taken = false;
    for (unsigned i = 0; i < c->n; i++) {
        others_address(n, &c->servers[i], now);
        if (strcmp(now, address) == 0) {
            return err_setf(
                SYM_EEXIST, "raft id %llu is at %s", (unsigned long long)c->servers[i].id, address);
        }
        taken |= strcmp(c->servers[i].address, address) == 0;
    }
    if (taken && snprintf(own, sizeof own, "%s/%llu", address, (unsigned long long)id) >= (int)sizeof own) {
        return err_setf(SYM_ETOOBIG, "address %s", address);
    }
    *out = strdup(taken ? own : address);
    return *out == NULL ? err_setf(SYM_ENOMEM, "out of memory") : 0;
}

static int check_change(struct rnode *n, enum member_what what, uint64_t id, const char *address, int role)
{
    if (n->phase != NODE_RUNNING) {
        return err_setf(SYM_ECANCELED, "this node is stopping");
    }
    if (n->raft.state != RAFT_LEADER) {
        return refuse_not_leader();
    }
    if (n->member.what != MEMBER_NONE || n->raft.configuration_uncommitted_index != 0 ||
        n->raft.leader_state.promotee_id != 0) {
        return err_setf(SYM_EBUSY, "another change of the configuration is under way");
    }
    if (what == MEMBER_ADD) {
        if (n->recovered) {
            return err_setf(SYM_EBUSY, "the snapshot that comes after a recovery is still being written");
        }
        if (id == 0 || strlen(address) >= NODE_ADDRESS_MAX) {
            return err_setf(SYM_EINVAL, "raft id %llu, address %s", (unsigned long long)id, address);
        }
        return n->raft.configuration.n <
                       sizeof((struct rnode_status *)0)->servers / sizeof(struct rnode_server)
                   ? 0
                   : err_setf(SYM_ETOOBIG, "there are as many managers as there can be");
    }
    if (node_server(n, id) == NULL) {
        return err_setf(SYM_ENOTFOUND, "no manager has raft id %llu", (unsigned long long)id);
    }
    if (id == n->cfg.id && (what == MEMBER_REMOVE || role != RAFT_VOTER)) {
        return err_setf(SYM_ECONFLICT, "this manager leads: leadership has to be handed over first");
    }
    return what == MEMBER_ASSIGN && role == RAFT_VOTER ? check_promotion(n, id) : 0;
}

static void change(struct rnode *n, enum member_what what, uint64_t id, const char *address, int role,
    rnode_cb cb, void *arg)
{
    struct member *m = &n->member;
    char *copy = NULL;
    int rv = check_change(n, what, id, address, role);
    if (rv == 0 && address != NULL) {
        rv = address_to_add(n, id, address, &copy);
    }
    if (rv != 0) {
        node_later(n, cb, arg, rv);
        return;
    }
    m->what = what;
    m->submitted = false;
    m->id = id;
    m->address = copy;
    m->role = role;
    m->cb = cb;
    m->arg = arg;
    m->deadline = uv_now(n->loop) + CHANGE_MS;
    n->changed = true;
    node_kick(n);
}

void rnode_add(struct rnode *n, uint64_t id, const char *address, rnode_cb cb, void *arg)
{
    change(n, MEMBER_ADD, id, address, RAFT_SPARE, cb, arg);
}

void rnode_assign(struct rnode *n, uint64_t id, enum raft_role role, rnode_cb cb, void *arg)
{
    static const int roles[] = {
        [ROLE_STANDBY] = RAFT_STANDBY, [ROLE_VOTER] = RAFT_VOTER, [ROLE_SPARE] = RAFT_SPARE};
    change(n, MEMBER_ASSIGN, id, NULL, roles[role], cb, arg);
}

void rnode_remove(struct rnode *n, uint64_t id, rnode_cb cb, void *arg)
{
    change(n, MEMBER_REMOVE, id, NULL, RAFT_SPARE, cb, arg);
}

/* --- handing leadership over --- */

static void transferred(struct raft_transfer *transfer)
{
    struct rnode *n = transfer->data;
    struct member *m = &n->member;
    rnode_cb cb = m->transfer_cb;
    m->target = 0;
    m->transfer_cb = NULL;
    node_kick(n);
    if (cb == NULL) {
        return;
    }
    raft_id leader;
    const char *address;
    raft_leader(&n->raft, &leader, &address);
    if (n->phase == NODE_CLOSING) {
        cb(m->transfer_arg, err_setf(SYM_ECANCELED, "this node is stopping"));
    } else if (n->raft.state != RAFT_LEADER && leader != 0) {
        cb(m->transfer_arg, 0);
    } else {
        cb(m->transfer_arg, err_setf(SYM_ETIMEOUT, "leadership could not be handed over in time"));
    }
}

/* The voter that has most of the log; only one that can be reached. */
static uint64_t best_voter(const struct rnode *n)
{
    const struct raft_configuration *c = &n->raft.configuration;
    uint64_t best = 0;
    raft_index most = 0;
    for (unsigned i = 0; i < c->n; i++) {
        raft_index match;
        uint64_t id = c->servers[i].id;
        if (c->servers[i].role == RAFT_VOTER && id != n->cfg.id && is_up(n, id) &&
            raft_match_index(&n->raft, id, &match) == 0 && (best == 0 || match > most)) {
            best = id;
            most = match;
        }
    }
    return best;
}

static int transfer_begin(struct rnode *n, uint64_t id)
{
    struct member *m = &n->member;
    if (n->raft.state != RAFT_LEADER) {
        return refuse_not_leader();
    }
    if (n->raft.transfer != NULL || raft_transferee(&n->raft) != 0) {
        return err_setf(SYM_EBUSY, "leadership is being handed over already");
    }
    if (id == 0) {
        id = best_voter(n);
        if (id == 0) {
            return err_setf(SYM_ENOTFOUND, "there is no other voter to lead");
        }
    }
    const struct raft_server *s = node_server(n, id);
    if (s == NULL) {
        return err_setf(SYM_ENOTFOUND, "no manager has raft id %llu", (unsigned long long)id);
    }
    if (id == n->cfg.id) {
        return err_setf(SYM_EINVAL, "manager %llu leads already", (unsigned long long)id);
    }
    if (s->role != RAFT_VOTER) {
        return err_setf(SYM_EINVAL, "manager %llu is no voter", (unsigned long long)id);
    }
    if (!is_up(n, id)) {
        return err_setf(SYM_ECONNECT, "manager %llu cannot be reached", (unsigned long long)id);
    }
    m->transfer.data = n;
    int rv = raft_transfer(&n->raft, &m->transfer, id, transferred);
    if (rv != 0) {
        return rv == RAFT_NOTLEADER
                   ? refuse_not_leader()
                   : err_setf(SYM_EINVAL, "manager %llu: %s", (unsigned long long)id, raft_strerror(rv));
    }
    m->target = id;
    m->transfer_deadline = uv_now(n->loop) + 2 * n->raft.election_timeout + TRANSFER_SLACK_MS;
    return 0;
}

void rnode_transfer(struct rnode *n, uint64_t id, rnode_cb cb, void *arg)
{
    int rv =
        n->phase == NODE_CLOSING ? err_setf(SYM_ECANCELED, "this node is stopping") : transfer_begin(n, id);
    if (rv != 0) {
        node_later(n, cb, arg, rv);
        return;
    }
    n->member.transfer_cb = cb;
    n->member.transfer_arg = arg;
    node_look(n);
}

void member_close(struct rnode *n)
{
    /* raft_close has completed what libraft had. */
    if (n->member.what != MEMBER_NONE) {
        change_done(n, err_setf(SYM_ECANCELED, "this node is stopping"));
    }
}
