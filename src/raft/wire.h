/* Raft's messages as bytes: encoding and decoding of struct raft_message, pure, no I/O.
 *
 * A message is its payload (the entries' bytes one after the other, or the snapshot's), then a head that
 * describes it, then the head's length as u32. The head stands last so that nothing is copied on either side:
 * the sender's pieces are the entries' own memory, and the receiver hands the frame itself to raft as batch
 * or snapshot data (all offsets are multiples of 8). That needs raft_malloc to be malloc, which it is unless
 * raft_heap_set is called; symphony never does.
 *
 * Head, little endian: u8 WIRE_FORMAT, u8 raft's message type, u8 raft's version of that message, then
 *   RequestVote          u64 term, candidate, last index, last term; u8 flags (1 disrupt leader, 2 pre-vote)
 *   RequestVoteResult    u64 term; u8 flags (1 granted, 2 pre-vote); u16 features, capacity
 *   AppendEntries        u64 term, prev index, prev term, leader commit; u32 n; n times u64 term, u8 type,
 * u32 length AppendEntriesResult  u64 term, rejected, last index; u16 features, capacity InstallSnapshot u64
 * term, last index, last term, configuration's index; u32 length and the configuration TimeoutNow u64 term,
 * last index, last term
 */
#ifndef SYM_RAFT_WIRE_H
#define SYM_RAFT_WIRE_H

#include "base/buf.h"

#include <raft.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

enum {
    WIRE_FORMAT = 1,
    WIRE_ENTRY_MAX = (2 << 20) + 4096, /* an entry of 2 MiB and the slack of its own framing */
    WIRE_ENTRIES_MAX = 4096,  /* the library's limit of entries in flight, which bounds one message too */
    WIRE_RUN_BYTES = 2 << 20, /* what wire_run puts into one message */
    WIRE_SERVERS_MAX = 255,   /* of a configuration; a bound for the parser, not a policy */
    WIRE_ADDRESS_MAX = 279,   /* characters of a server's address */
};

/* An encoded message: what to give to peers_send. The pieces point at the message's own entries or snapshot
 * and at
 * @head, so all three live until the frame is sent. */
struct wire_out {
    uv_buf_t *bufs;
    unsigned n_bufs;
    size_t size; /* sum of the pieces */
    struct buf head;
};

/* Encodes @m. 0, SYM_ENOMEM, SYM_ETOOBIG (an entry, their number or the frame), SYM_EINVAL (a type that is
 * none, an entry that is empty or no multiple of 8 bytes long, an empty configuration). On failure @out is
 * empty. */
int wire_encode(const struct raft_message *m, struct wire_out *out);

/* Frees what wire_encode made; not the message. An empty @out is fine. */
void wire_out_free(struct wire_out *out);

/* How many of the first entries may travel in one AppendEntries: at least 1 (for @n > 0), at most
 * WIRE_ENTRIES_MAX and WIRE_RUN_BYTES (unless the first alone is longer), and a CHANGE only as the first
 * (rule 6 of RAFT.md). A caller sends a long message as several, each with the index and term of the entry
 * before it as prev. */
unsigned wire_run(const struct raft_entry *entries, unsigned n);

/* Decodes the @n bytes of @data, which is malloc'd and belongs to this call whatever it returns. 0,
 * SYM_EPROTO or SYM_ENOMEM.
 *
 * What raft asserts or trusts is checked here: lengths, an entry's type and size, terms that do not go down
 * within a message and are not above its own, the configuration of a snapshot and of every CHANGE entry. What
 * depends on this node's state (leader_commit, who sent it) is the caller's, as are server_id and
 * server_address.
 *
 * Of AppendEntries @entries and @data (as the batch of every entry) then belong to @out, of InstallSnapshot
 * @data (as data.base) and conf: give it to raft, or to wire_message_free. Without entries @entries is NULL
 * and there is no batch, as with libraft's own transport. An empty snapshot is refused: there is none. */
int wire_decode(uint8_t *data, size_t n, struct raft_message *out);

/* Frees what a decoded message owns, for one that is dropped and not given to raft. */
void wire_message_free(struct raft_message *m);

/* 0 if @data is a well-formed raft configuration as raft_configuration_encode writes it (ids above 0 and
 * addresses all different, roles known); else SYM_EPROTO. raft_configuration_decode itself checks no bounds.
 */
int wire_check_configuration(const void *data, size_t n);

#endif
