#include "raft/guard_impl.h"

#include "base/log.h"

#include <stdlib.h>
#include <string.h>

unsigned guard_rules_off;

/* libraft's own look-up is not exported, its data is. Same rules: 0 outside of the log, but the snapshot's
 * last entry. */
raft_term guard_term_of(const struct raft *r, raft_index index)
{
    const struct raft_trail *t = &r->trail;
    unsigned n = t->front <= t->back ? t->back - t->front : t->size - t->front + t->back;
    if (index > t->offset) {
        for (unsigned i = 0; i < n; i++) {
            unsigned at = (t->front + i) % t->size;
            if (index <= t->records[at].index) {
                return t->records[at].term;
            }
        }
    }
    return index == t->snapshot.index ? t->snapshot.term : 0;
}

raft_index guard_confirmed(const struct raft *r, raft_id id)
{
    raft_index match;
    return raft_match_index(r, id, &match) == 0 ? match : 0;
}

/* --- storage --- */

static int load(struct raft_io *io, raft_term *term, raft_id *voted_for, struct raft_snapshot **snapshot,
    raft_index *start_index, struct raft_entry *entries[], size_t *n_entries)
{
    struct guard *g = guard_of(io);
    int rv = g->inner.load(io, term, voted_for, snapshot, start_index, entries, n_entries);
    if (rv == 0) {
        g->term = *term;
        guard_count(g, *start_index, *entries, *n_entries);
    }
    return rv;
}

static int set_term(struct raft_io *io, raft_term term)
{
    struct guard *g = guard_of(io);
    /* Rule 10: storing a term forgets the vote first. libraft stores the term with each vote; after a crash
     * between the two the vote of this term would be given a second time. */
    if (guard_rule(10) && term == g->term) {
        return 0;
    }
    int rv = g->inner.set_term(io, term);
    if (rv != 0) {
        g->ops->fatal(g->arg, "storing the term", rv);
        return rv;
    }
    g->term = term;
    return 0;
}

static int set_vote(struct raft_io *io, raft_id id)
{
    struct guard *g = guard_of(io);
    int rv = g->inner.set_vote(io, id);
    if (rv != 0) {
        g->ops->fatal(g->arg, "storing the vote", rv);
    }
    return rv;
}

static int truncate_log(struct raft_io *io, raft_index index)
{
    struct guard *g = guard_of(io);
    int rv = g->inner.truncate(io, index);
    if (rv != 0) {
        g->ops->fatal(g->arg, "truncating the log", rv);
    }
    return rv;
}

struct append {
    struct raft_io_append req;
    struct guard *g;
    uint64_t began;
    struct raft_io_append *outer;
};

static void append_done(struct raft_io_append *req, int status)
{
    struct append *a = req->data;
    struct guard *g = a->g;
    struct raft_io_append *outer = a->outer;
    if (status == 0 && g->ops->clock != NULL) {
        histogram_add(&g->stats.appends, guard_clock_of(g) - a->began);
    }
    free(a);
    /* Rule 4: libraft goes on as if the entries were there. */
    if (status != 0 && !g->closing && guard_rule(4)) {
        g->ops->fatal(g->arg, "writing to the log", status);
    }
    outer->cb(outer, status);
    g->ops->changed(g->arg);
}

static int append(struct raft_io *io, struct raft_io_append *req, const struct raft_entry entries[],
    unsigned n, raft_io_append_cb cb)
{
    struct guard *g = guard_of(io);
    int rv = RAFT_NOMEM;
    struct append *a = malloc(sizeof *a);
    if (a == NULL) {
        goto fatal;
    }
    *a = (struct append){.g = g, .began = guard_clock_of(g), .outer = req};
    a->req.data = a;
    req->cb = cb;
    /* libraft has just added them to its index: they are its last. */
    guard_count(g, raft_last_index(g->raft) - n + 1, entries, n);
    for (unsigned i = 0; i < n; i++) {
        g->stats.appended += entries[i].buf.len;
    }
    rv = g->inner.append(io, &a->req, entries, n, append_done);
    if (rv == 0) {
        return 0;
    }
    free(a);
fatal:
    if (guard_rule(4)) {
        g->ops->fatal(g->arg, "writing to the log", rv);
    }
    return rv;
}

/* See guard.h. */
static bool is_behind(const struct guard *g)
{
    return raft_last_index(g->raft) < g->witnessed;
}

struct sent {
    struct raft_io_send req;
    struct guard *g;
    struct raft_io_send *outer;
};

static void snapshot_sent(struct raft_io_send *req, int status)
{
    struct sent *sent = req->data;
    struct raft_io_send *outer = sent->outer;
    sent->g->sending = false;
    free(sent);
    outer->cb(outer, status);
}

struct carried {
    struct raft_io_send req;
    struct guard *g;
    struct raft_io_send *outer;
    raft_id id;
    size_t bytes;
};

static struct flight *flight_of(struct guard *g, raft_id id, raft_term term)
{
    struct flight *f = flights_of(&g->flights, id, term);
    if (f == NULL) {
        g->ops->fatal(g->arg, "no memory", RAFT_NOMEM);
    }
    return f;
}

static void entries_taken(struct raft_io_send *req, int status)
{
    struct carried *c = req->data;
    struct raft_io_send *outer = c->outer;
    flight_taken(flight_of(c->g, c->id, c->g->raft->current_term), c->bytes, status != 0);
    free(c);
    outer->cb(outer, status);
}

static int send_entries(
    struct guard *g, struct raft_io_send *req, const struct raft_message *m, raft_io_send_cb cb)
{
    struct raft_message out = *m;
    struct flight *f = flight_of(g, m->server_id, m->append_entries.term);
    size_t bytes = flight_send(f, g->raft, &out.append_entries);
    if (out.append_entries.n_entries == 0) {
        return g->inner.send(g->raft->io, req, &out, cb);
    }
    struct carried *c = malloc(sizeof *c);
    if (c == NULL) {
        g->ops->fatal(g->arg, "no memory", RAFT_NOMEM);
        return RAFT_NOMEM;
    }
    *c = (struct carried){.g = g, .outer = req, .id = m->server_id, .bytes = bytes};
    c->req.data = c;
    req->cb = cb;
    int rv = g->inner.send(g->raft->io, &c->req, &out, entries_taken);
    if (rv != 0) {
        flight_taken(flight_of(g, m->server_id, m->append_entries.term), bytes, true);
        free(c);
    }
    return rv;
}

void guard_connected(struct guard *g, raft_id id)
{
    flight_reset(flight_of(g, id, g->raft->current_term));
}

/* Follower @i of the configuration, NULL for what libraft sends nothing to either. */
static struct flight *follower(struct guard *g, unsigned i)
{
    const struct raft_server *s = &g->raft->configuration.servers[i];
    return s->id == g->raft->id || s->role == RAFT_SPARE ? NULL : flight_of(g, s->id, g->raft->current_term);
}

raft_index guard_untold(struct guard *g)
{
    const struct raft *r = g->raft;
    for (unsigned i = 0; r->state == RAFT_LEADER && !g->closing && i < r->configuration.n; i++) {
        const struct flight *f = follower(g, i);
        if (f != NULL && flight_untold(f, r)) {
            return r->commit_index;
        }
    }
    return 0;
}

static void notice_sent(struct raft_io_send *req, int status)
{
    (void)status; /* the next heartbeat tells it as well */
    free(req);
}

/* An AppendEntries at what the follower has confirmed in this term. It has that, so it does not refuse, and
 * to libraft its answer says nothing new: progressMaybeUpdate (libraft 0.22.1, progress.c) finds no higher
 * match index, and replicationUpdate (replication.c) goes no further then. */
static void notify(struct guard *g, const struct raft_server *s, raft_index confirmed)
{
    struct raft *r = g->raft;
    struct raft_message m = {.type = RAFT_APPEND_ENTRIES, .server_id = s->id, .server_address = s->address};
    m.append_entries = (struct raft_append_entries){.term = r->current_term,
        .prev_log_index = confirmed,
        .prev_log_term = guard_term_of(r, confirmed),
        .leader_commit = r->commit_index};
    struct raft_io_send *req = calloc(1, sizeof *req);
    if (req != NULL && send_entries(g, req, &m, notice_sent) != 0) {
        free(req);
    }
}

void guard_tell(struct guard *g, raft_index index)
{
    const struct raft *r = g->raft;
    for (unsigned i = 0; r->state == RAFT_LEADER && !g->closing && i < r->configuration.n; i++) {
        const struct flight *f = follower(g, i);
        if (f != NULL && f->told < index && flight_untold(f, r)) {
            notify(g, &r->configuration.servers[i], guard_confirmed(r, f->id));
        }
    }
}

static int send_message(
    struct raft_io *io, struct raft_io_send *req, const struct raft_message *m, raft_io_send_cb cb)
{
    struct guard *g = guard_of(io);
    /* Rule 8: libraft corrects the index when a newer snapshot than it thought was loaded, but not the term.
     * The message is libraft's own and not const there. */
    if (m->type == RAFT_INSTALL_SNAPSHOT && m->install_snapshot.last_index == g->loaded_index &&
        guard_rule(8)) {
        ((struct raft_message *)m)->install_snapshot.last_term = g->loaded_term;
    }
    if (m->type == RAFT_REQUEST_VOTE && is_behind(g)) {
        ((struct raft_message *)m)->server_id = 0; /* to nobody */
    }
    if (m->type == RAFT_APPEND_ENTRIES) {
        return send_entries(g, req, m, cb);
    }
    if (m->type == RAFT_INSTALL_SNAPSHOT) {
        struct sent *sent = malloc(sizeof *sent);
        if (sent == NULL) {
            g->ops->fatal(g->arg, "no memory", RAFT_NOMEM);
            return RAFT_NOMEM;
        }
        *sent = (struct sent){.g = g, .outer = req};
        sent->req.data = sent;
        req->cb = cb;
        g->sending = true;
        int rv = g->inner.send(io, &sent->req, m, snapshot_sent);
        if (rv != 0) {
            g->sending = false;
            free(sent);
        }
        return rv;
    }
    return g->inner.send(io, req, m, cb);
}

/* --- receiving --- */

static void drop_entries(struct raft_append_entries *a)
{
    if (a->entries != NULL) {
        raft_free(a->entries[0].batch);
        raft_free(a->entries);
    }
    a->entries = NULL;
    a->n_entries = 0;
}

/* Rule 9: entries that are compacted here are committed, so the leader has them too; but libraft looks for
 * the term of the one before the message, does not find it and refuses, and the leader tries the same again.
 * Say it from the end of our snapshot on instead. */
static void anchor(const struct raft *r, struct raft_append_entries *a)
{
    raft_index at = r->trail.snapshot.index;
    if (a->prev_log_index > r->trail.offset || a->prev_log_index == at || at == 0 || r->snapshot.installing ||
        a->prev_log_index > at) {
        return;
    }
    raft_index skip = at - a->prev_log_index;
    if (skip >= a->n_entries) {
        drop_entries(a);
    } else {
        a->n_entries -= (unsigned)skip;
        memmove(a->entries, a->entries + skip, a->n_entries * sizeof *a->entries);
    }
    a->prev_log_index = at;
    a->prev_log_term = r->trail.snapshot.term;
}

/* Entries and the bytes they point to, as a message of their own. */
static bool copy_entries(const struct raft_entry *from, unsigned n, struct raft_append_entries *to)
{
    size_t size = 0;
    for (unsigned i = 0; i < n; i++) {
        size += from[i].buf.len;
    }
    uint8_t *batch = raft_malloc(size == 0 ? 8 : size);
    to->entries = raft_malloc(n * sizeof *to->entries);
    to->n_entries = n;
    if (batch == NULL || to->entries == NULL) {
        raft_free(batch);
        raft_free(to->entries);
        return false;
    }
    uint8_t *p = batch;
    for (unsigned i = 0; i < n; i++) {
        to->entries[i] = from[i];
        to->entries[i].buf.base = p;
        to->entries[i].batch = batch;
        memcpy(p, from[i].buf.base, from[i].buf.len);
        p += from[i].buf.len;
    }
    return true;
}

/* Gives libraft a message, or with NULL a tick. Who wins an election appends an entry at once; where segments of
 * the log are short libraft would refuse that with an error that nobody sees, lead nevertheless, and never end
 * its requests when it is deposed (libraft 0.22.1, convert.c, legacy.c): another leader's entries would answer
 * them. So there is no threshold for that entry, as there is none for those that are received. */
static void step(struct guard *g, struct raft_message *m)
{
    struct raft *r = g->raft;
    unsigned short threshold = r->capacity_threshold;
    r->capacity_threshold = guard_rule(3) ? 0 : threshold;
    if (m != NULL) {
        g->recv(r->io, m);
    } else {
        g->tick(r->io);
    }
    r->capacity_threshold = threshold;
}

static void deliver_entries(struct guard *g, struct raft_message *m)
{
    struct raft_append_entries *a = &m->append_entries;
    raft_index last = a->prev_log_index + a->n_entries;
    /* Rule 5: libraft takes the smaller of both, and with a late message that is below its own commit index.
     */
    if (guard_rule(5) && a->leader_commit > last) {
        a->leader_commit = last;
    }
    step(g, m);
}

/* A second leader of one term, as there may be when somebody has voted twice, or the others have come to the very
 * term that a lone survivor was given when it was made the only voter: libraft would take a leader's memory for a
 * follower's. */
static bool is_usurper(const struct raft *r, raft_term term)
{
    return r->state == RAFT_LEADER && term == r->current_term;
}

static void recv_entries(struct guard *g, struct raft_message *m)
{
    struct raft *r = g->raft;
    struct raft_append_entries *a = &m->append_entries;
    if (guard_rule(9)) {
        anchor(r, a);
    }
    /* Rule 4: libraft would answer this with an error that nobody sees, and free the batch twice. */
    if (a->term >= r->current_term && !r->snapshot.installing) {
        for (unsigned i = 0; i <= a->n_entries && a->prev_log_index + i <= r->commit_index; i++) {
            raft_term mine = guard_term_of(r, a->prev_log_index + i);
            raft_term theirs = i == 0 ? a->prev_log_term : a->entries[i - 1].term;
            if (mine != 0 && theirs != mine && guard_rule(4)) {
                drop_entries(a);
                g->ops->fatal(g->arg, "the leader's log contradicts what is committed here", RAFT_SHUTDOWN);
                return;
            }
        }
    }
    /* Rule 6: libraft notes a configuration at the index of the first new entry of the message, so it has to
     * be that. */
    for (unsigned i = 1; i < a->n_entries && guard_rule(6); i++) {
        if (a->entries[i].type != RAFT_CHANGE) {
            continue;
        }
        struct raft_message rest = *m;
        if (!copy_entries(a->entries + i, a->n_entries - i, &rest.append_entries)) {
            drop_entries(a); /* lost on the way: it will be sent again */
            return;
        }
        rest.append_entries.prev_log_index = a->prev_log_index + i;
        rest.append_entries.prev_log_term = a->entries[i - 1].term;
        a->n_entries = i;
        deliver_entries(g, m);
        *m = rest;
        i = 0;
    }
    deliver_entries(g, m);
}

/* Rule 12: a server that has just been made a voter may not know it yet, while the candidate that made it
 * one cannot win without its vote: with two voters nobody could ever lead again. Whether a vote counts is
 * the candidate's configuration's business, and it is given once in a term like any other; libraft asks
 * for the voter's own configuration instead. */
static void recv_vote_request(struct guard *g, struct raft_message *m)
{
    struct raft_configuration *c = &g->raft->configuration;
    struct raft_server *self = NULL;
    int role = RAFT_VOTER;
    for (unsigned i = 0; i < c->n; i++) {
        if (c->servers[i].id == g->raft->id) {
            self = &c->servers[i];
            role = self->role;
        }
    }
    if (self != NULL && guard_rule(12)) {
        self->role = RAFT_VOTER;
    }
    step(g, m);
    if (self != NULL) {
        self->role = role; /* a vote does not change the configuration, so it is still there */
    }
}

static void receive(struct raft_io *io, struct raft_message *m)
{
    struct guard *g = guard_of(io);
    switch (m->type) {
    case RAFT_APPEND_ENTRIES:
        if (g->closing || is_usurper(g->raft, m->append_entries.term)) {
            drop_entries(&m->append_entries);
            return;
        }
        recv_entries(g, m);
        break;
    case RAFT_INSTALL_SNAPSHOT:
        /* Rule 7: put off until the snapshot that is being taken is written, libraft loses it and follows a
         * NULL pointer. The leader sends it again after its timeout. */
        if (g->closing || is_usurper(g->raft, m->install_snapshot.term) ||
            !g->ops->room(g->arg, m->install_snapshot.data.len) ||
            (guard_rule(7) &&
                (g->put != NULL || g->raft->legacy.snapshot_taking || g->raft->snapshot.installing))) {
            raft_configuration_close(&m->install_snapshot.conf);
            raft_free(m->install_snapshot.data.base);
            return;
        }
        step(g, m);
        break;
    case RAFT_REQUEST_VOTE:
        if (g->closing || m->request_vote.candidate_id != m->server_id ||
            (is_behind(g) && m->request_vote.last_log_index < g->witnessed)) {
            return;
        }
        recv_vote_request(g, m);
        break;
    case RAFT_APPEND_ENTRIES_RESULT:
        if (g->closing) {
            return;
        }
        if (m->append_entries_result.rejected > 0) {
            flight_refused(flight_of(g, m->server_id, g->raft->current_term));
        }
        step(g, m);
        break;
    default:
        if (g->closing) {
            return;
        }
        step(g, m);
        break;
    }
    g->ops->changed(g->arg);
}

void guard_deliver(struct guard *g, struct raft_message *m)
{
    receive(g->raft->io, m);
}

void guard_forget_leader(struct raft *r)
{
    raft_free(r->follower_state.current_leader.address);
    r->follower_state.current_leader.address = NULL;
    r->follower_state.current_leader.id = 0;
}

/* A follower refuses its vote while it has a leader, and libraft takes the leader from it only when its
 * own, randomized, timeout makes it a candidate: so the slower of two survivors decides how long there is
 * none, and one that is no voter never lets go. The timeout at its shortest is enough. */
static void forget_silent_leader(struct raft *r)
{
    if (r->state == RAFT_FOLLOWER && r->follower_state.current_leader.id != 0 &&
        r->io->time(r->io) - r->election_timer_start >= r->election_timeout) {
        guard_forget_leader(r);
    }
}

/* At each tick libraft takes for lost who has not answered since the last one, and sends it nothing new until
 * the next heartbeat: one that was sent nothing meanwhile, too, as entries had gone out just before. On an idle
 * cluster most writes waited for that. Let half an election timeout go by in silence; the other half later a
 * leader without a majority steps down, as before. */
static void be_patient(struct raft *r)
{
    if (r->state == RAFT_LEADER && r->election_timer_start == r->now) {
        r->election_timer_start -= r->election_timeout / 2;
    }
}

static void tick(struct raft_io *io)
{
    struct guard *g = guard_of(io);
    if (g->closing) {
        return;
    }
    /* Rule 4: raft_uv does not report a failed write of entries but tries it again later, with a pointer to
     * something else. It leaves its message in the io first. */
    bool write_failed =
        strncmp(io->errmsg, "write failed", 12) == 0 || strncmp(io->errmsg, "short write", 11) == 0;
    if (write_failed && guard_rule(4)) {
        log_error("%s", io->errmsg);
        g->ops->fatal(g->arg, "writing to the log", RAFT_IOERR);
    }
    forget_silent_leader(g->raft);
    step(g, NULL);
    be_patient(g->raft);
    if (g->raft->state == RAFT_UNAVAILABLE) {
        g->ops->fatal(g->arg, "raft is unavailable", RAFT_SHUTDOWN);
    }
    g->ops->changed(g->arg);
}

void guard_tick(struct guard *g)
{
    tick(g->raft->io);
}

/* --- start and end --- */

static int start(struct raft_io *io, unsigned msecs, raft_io_tick_cb on_tick, raft_io_recv_cb on_recv)
{
    struct guard *g = guard_of(io);
    g->tick = on_tick;
    g->recv = on_recv;
    return g->inner.start(io, msecs, tick, receive);
}

void guard_closed(struct guard *g)
{
    if (g->closing && g->inner_closed && g->put == NULL && g->holds == 0) {
        g->close(g->raft->io);
    }
}

static void inner_closed(struct raft_io *io)
{
    struct guard *g = guard_of(io);
    g->inner_closed = true;
    /* raft_uv has completed what it had; what is on another thread still needs libraft alive. */
    guard_closed(g);
}

static void close_io(struct raft_io *io, raft_io_close_cb cb)
{
    struct guard *g = guard_of(io);
    g->closing = true;
    g->close = cb;
    g->inner.close(io, inner_closed);
}

void guard_wrap(struct guard *g, struct raft *raft, const struct guard_ops *ops, void *arg)
{
    struct raft_io *io = raft->io;
    g->raft = raft;
    g->ops = ops;
    g->arg = arg;
    g->inner = *io;
    g->first = 1;
    raft->data = g;
    io->load = load;
    io->start = start;
    io->close = close_io;
    io->set_term = set_term;
    io->set_vote = set_vote;
    io->append = append;
    io->truncate = truncate_log;
    io->snapshot_put = guard_snapshot_put;
    io->snapshot_get = guard_snapshot_get;
    io->send = send_message;
}

void guard_hold(struct guard *g)
{
    g->holds++;
}

void guard_release(struct guard *g)
{
    g->holds--;
    guard_closed(g);
}

void guard_free(struct guard *g)
{
    free(g->sums);
    g->sums = NULL;
    flights_free(&g->flights);
}
