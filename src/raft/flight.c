#include "raft/flight.h"

#include "raft/guard.h"

#include <stdlib.h>

struct flight *flights_of(struct flights *fs, raft_id id, raft_term term)
{
    struct flight *f = NULL;
    for (unsigned i = 0; i < fs->n && f == NULL; i++) {
        f = fs->all[i].id == id ? &fs->all[i] : NULL;
    }
    if (f == NULL) {
        struct flight *all = realloc(fs->all, (fs->n + 1) * sizeof *all);
        if (all == NULL) {
            return NULL;
        }
        fs->all = all;
        f = &fs->all[fs->n++];
        *f = (struct flight){.id = id, .term = term};
    }
    if (f->term != term) {
        flight_reset(f);
        f->term = term;
    }
    return f;
}

void flights_free(struct flights *fs)
{
    free(fs->all);
    *fs = (struct flights){0};
}

/* What was sent already, and what would arrive behind a gap. */
static void leave_out(const struct flight *f, struct raft_append_entries *a)
{
    if (a->prev_log_index > f->to || f->to - a->prev_log_index >= a->n_entries) {
        a->n_entries = 0;
        return;
    }
    unsigned sent = (unsigned)(f->to - a->prev_log_index);
    a->entries += sent;
    a->n_entries -= sent;
    a->prev_log_index = f->to;
    a->prev_log_term = f->to_term;
}

/* libraft takes what there is no room for as sent, too, and finds out by a refusal later, as with what is
 * lost. */
static size_t limit(const struct flight *f, struct raft_append_entries *a)
{
    size_t bytes = 0;
    unsigned n = 0;
    while (n < a->n_entries && f->queued + bytes + a->entries[n].buf.len <= FLIGHT_WINDOW) {
        bytes += a->entries[n++].buf.len;
    }
    a->n_entries = n;
    return bytes;
}

/* An empty message while entries are on their way. As long as they wait for the connection it says nothing of
 * them, so that it may overtake them: the follower's election timer must not wait for as long as they take.
 * After that nothing overtakes anything, and it is the question whether they have arrived. */
static void ask(
    const struct flight *f, const struct raft *r, raft_index confirmed, struct raft_append_entries *a)
{
    raft_term term = f->queued > 0 ? guard_term_of(r, confirmed) : 0;
    a->prev_log_index = term != 0 ? confirmed : f->to;
    a->prev_log_term = term != 0 ? term : f->to_term;
}

size_t flight_send(struct flight *f, const struct raft *r, struct raft_append_entries *a)
{
    raft_index confirmed = guard_confirmed(r, f->id);
    /* Not when libraft has gone back further, nor for the heartbeats at the snapshot that is being sent. */
    bool behind =
        f->to > confirmed && a->prev_log_index >= f->from && (a->n_entries > 0 || a->prev_log_index >= f->to);
    if (behind) {
        leave_out(f, a);
    }
    size_t bytes = limit(f, a);
    if (a->n_entries > 0) {
        f->from = behind ? f->from : a->prev_log_index;
        f->to = a->prev_log_index + a->n_entries;
        f->to_term = a->entries[a->n_entries - 1].term;
        f->queued += bytes;
    } else {
        a->entries = NULL;
        if (behind) {
            ask(f, r, confirmed, a);
        }
    }
    raft_index last = a->prev_log_index + a->n_entries;
    raft_index tells = a->leader_commit < last ? a->leader_commit : last; /* rule 5 */
    if (f->told < tells) {
        f->told = tells;
    }
    return bytes;
}

void flight_taken(struct flight *f, size_t bytes, bool failed)
{
    f->queued -= bytes;
    if (failed) {
        flight_refused(f);
    }
}

void flight_refused(struct flight *f)
{
    f->from = f->to = 0;
}

void flight_reset(struct flight *f)
{
    flight_refused(f);
    f->told = 0;
}

bool flight_untold(const struct flight *f, const struct raft *r)
{
    raft_index confirmed = guard_confirmed(r, f->id);
    return f->told < r->commit_index && f->told < confirmed && guard_term_of(r, confirmed) != 0;
}
