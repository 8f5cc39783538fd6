/* What is on its way to each follower, so that no entry is sent twice and nobody has to wait for a heartbeat
 * to learn what is committed.
 *
 * libraft takes a follower for lost when the others have answered since and it has not, and from then on sends
 * it all that it has not confirmed again, at each heartbeat. Our connection keeps the order, so the copies
 * only queue up behind the first: with large entries, or a slow network, faster than they are taken. Here an
 * entry goes once over a connection. Where libraft repeats it, a question goes instead: an empty AppendEntries
 * that follows the last entry on its way. As it arrives behind that, a refusal means that entries were lost,
 * and only then are they sent again.
 */
#ifndef SYM_RAFT_FLIGHT_H
#define SYM_RAFT_FLIGHT_H

#include <raft.h>
#include <stdbool.h>
#include <stddef.h>

/* Bytes of entries that wait for one connection at a time: well below what its queue holds (peers.h). */
enum { FLIGHT_WINDOW = 8 << 20 };

struct flight {
    raft_id id;
    raft_term term; /* all but @queued is of this term and connection */
    /* The entries behind @from up to @to were sent, in order. 0 and 0: none, or it is not known. */
    raft_index from, to;
    raft_term to_term;
    raft_index told; /* up to here it was told what is committed */
    size_t queued;   /* bytes of entries that the connection has not taken yet */
};

struct flights {
    struct flight *all;
    unsigned n;
};

/* The account of @id, begun anew with a new @term. Valid until the next call; NULL without memory. */
struct flight *flights_of(struct flights *fs, raft_id id, raft_term term);
void flights_free(struct flights *fs);

/* Makes of an AppendEntries that @r, the leader, has for the follower what is to be sent, and counts it as
 * sent. The bytes of its entries: flight_taken has to be told of them when the connection has taken the
 * message, or has failed. */
size_t flight_send(struct flight *f, const struct raft *r, struct raft_append_entries *a);
void flight_taken(struct flight *f, size_t bytes, bool failed);
/* It has refused an AppendEntries: what is behind that is lost. */
void flight_refused(struct flight *f);
/* There is a new connection to it. */
void flight_reset(struct flight *f);
/* @r, the leader, could tell it of more that is committed than it has been told. */
bool flight_untold(const struct flight *f, const struct raft *r);

#endif
