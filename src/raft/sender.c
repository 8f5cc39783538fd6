#include "raft/node_int.h"

#include "base/err.h"
#include "base/log.h"
#include "raft/kinds.h"
#include "raft/wire.h"

#include <stdlib.h>

/* One message of libraft's, sent as one frame or, with many entries, as several. */
struct send {
    STAILQ_ENTRY(send) link;
    struct raft_io_send *req;
    unsigned parts; /* not sent yet */
    int status;
};

struct part {
    struct send *send;
    struct raft_message m;
    struct wire_out out;
};

static void part_done(struct send *send, int status)
{
    if (status != 0) {
        send->status = RAFT_NOCONNECTION;
    }
    if (--send->parts == 0) {
        send->req->cb(send->req, send->status);
        free(send);
    }
}

static void on_sent(void *arg, int status)
{
    struct part *part = arg;
    struct send *send = part->send;
    wire_out_free(&part->out);
    free(part);
    part_done(send, status);
}

/* Votes and answers may overtake entries, and so may a heartbeat at what the receiver has confirmed in this
 * term: it says nothing of what is on its way. Entries and other heartbeats must keep their order, and a
 * TimeoutNow comes after the entries that make its receiver fit to lead. */
static bool is_urgent(const struct rnode *n, const struct raft_message *m)
{
    const struct raft_append_entries *a = &m->append_entries;
    return m->type == RAFT_REQUEST_VOTE || m->type == RAFT_REQUEST_VOTE_RESULT ||
           m->type == RAFT_APPEND_ENTRIES_RESULT ||
           (m->type == RAFT_APPEND_ENTRIES && a->n_entries == 0 &&
               a->prev_log_index <= guard_confirmed(&n->raft, m->server_id));
}

/* False when it could not be given to the connection. */
static bool send_part(struct rnode *n, struct send *send, const struct raft_message *m)
{
    struct part *part = malloc(sizeof *part);
    if (part == NULL) {
        return false;
    }
    part->send = send;
    part->m = *m;
    part->out = (struct wire_out){0};
    if (wire_encode(&part->m, &part->out) != 0) {
        log_error("raft message of type %d: %s", (int)m->type, err_msg());
        free(part);
        return false;
    }
    send->parts++;
    peers_send(
        n->peers, m->server_id, KIND_RAFT, is_urgent(n, m), part->out.bufs, part->out.n_bufs, on_sent, part);
    return true;
}

static bool send_parts(struct rnode *n, struct send *send, const struct raft_message *m)
{
    if (m->type != RAFT_APPEND_ENTRIES || m->append_entries.n_entries == 0) {
        return send_part(n, send, m);
    }
    struct raft_message part = *m;
    struct raft_append_entries *a = &part.append_entries;
    unsigned left = m->append_entries.n_entries;
    while (left > 0) {
        a->n_entries = wire_run(a->entries, left);
        if (!send_part(n, send, &part)) {
            return false; /* what was sent is good by itself; libraft finds out what is missing */
        }
        left -= a->n_entries;
        a->prev_log_index += a->n_entries;
        a->prev_log_term = a->entries[a->n_entries - 1].term;
        a->entries += a->n_entries;
    }
    return true;
}

/* Answers 0 whatever happens; how it went is told through @cb, later. */
int sender_send(
    struct raft_io *io, struct raft_io_send *req, const struct raft_message *m, raft_io_send_cb cb)
{
    struct raft *raft = io->data;
    struct rnode *n = ((struct guard *)raft->data)->arg;
    struct send *send = calloc(1, sizeof *send);
    if (send == NULL) {
        node_fatal(n, "no memory", RAFT_NOMEM);
    }
    req->cb = cb;
    send->req = req;
    send->parts = 1; /* held until all parts are on their way */
    if (!n->peers_open || !send_parts(n, send, m)) {
        send->status = RAFT_NOCONNECTION;
    }
    if (--send->parts == 0) {
        STAILQ_INSERT_TAIL(&n->failed_sends, send, link);
        node_kick(n);
    }
    return 0;
}

void sender_flush(struct rnode *n)
{
    struct send *send;
    while ((send = STAILQ_FIRST(&n->failed_sends)) != NULL) {
        STAILQ_REMOVE_HEAD(&n->failed_sends, link);
        send->req->cb(send->req, RAFT_NOCONNECTION);
        free(send);
    }
}

void sender_receive(struct rnode *n, uint64_t id, uint8_t *data, size_t len)
{
    struct raft_message m = {0};
    if (wire_decode(data, len, &m) != 0) {
        log_warn("raft message from manager %llu: %s", (unsigned long long)id, err_msg());
        return;
    }
    const char *address = peers_heard_address(n->peers, id);
    m.server_id = id;
    m.server_address = address != NULL ? address : "?";
    guard_deliver(&n->guard, &m);
}
