/* What the frames between managers are. Little endian; a peer that is newer may send others, which are
 * ignored. */
#ifndef SYM_RAFT_KINDS_H
#define SYM_RAFT_KINDS_H

enum frame_kind {
    KIND_RAFT = 1, /* a message of raft's own (wire.h) */
    KIND_INFO,     /* u8 version 1, u8 flags, u64 free bytes on disk, u64 headroom of the store */
    KIND_SUBMIT,  /* to the leader: any number of u64 number, u32 milliseconds left, u8 fresh, u32 length, txn
                   */
    KIND_RESULT,  /* its answer: any number of u64 number, u8 code, u8 status, u8 repeated, u16 failed, u64
                     revision */
    KIND_CONFIRM, /* leader to voters: u64 term, u64 round. Is that still your term? */
    KIND_CONFIRMED, /* the same back, if it is */
    KIND_ASK,   /* to the leader: u64 number. Up to where must I have applied for a read that begins now? */
    KIND_INDEX, /* its answer: u64 number, u64 index */
    KIND_WHERE, /* where members are that have moved (where.h) */
};

#endif
