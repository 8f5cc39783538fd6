/* Datagrams and pieces of a full exchange as bytes. Little endian, version 1:
 *
 *   datagram: version, type, flags, u32 sequence, u64 incarnation of the sender, u64 digest of its members
 *             for PING_REQ: target (16), u16 ms until a nack
 *             records until the end
 *   piece:    version, PIECE, records until the end
 *   record:   CLAIM: id (16), u64 incarnation, flags, u16 port, address (4 or 16), u8 + metadata, u8 + signature
 *             SUSPECT: id, u64 incarnation, u8 + accusers (16 each)
 *             DEAD: id, u64 incarnation
 *
 * Reading is a pure function of the bytes: everything that came out of it is within its bounds, and writes again to
 * the same bytes. */
#ifndef SYM_GOSSIP_SWIM_WIRE_H
#define SYM_GOSSIP_SWIM_WIRE_H

#include "codec/rw.h"
#include "gossip/swim_claim.h"

enum {
    WIRE_VERSION = 1,
    WIRE_HEAD_LEN = 23,
    WIRE_ACCUSERS_MAX = SWIM_CONFIRMATIONS_MAX + 1,
    WIRE_CLAIM_MAX = 1 + SWIM_ID_LEN + 8 + 1 + 2 + 16 + 1 + SWIM_META_MAX + 1 + SWIM_SIG_MAX,
    WIRE_DEAD_LEN = 1 + SWIM_ID_LEN + 8,
    WIRE_SUSPECT_MAX = WIRE_DEAD_LEN + 1 + WIRE_ACCUSERS_MAX * SWIM_ID_LEN,
};

enum wire_type { WIRE_PING = 1, WIRE_PING_REQ, WIRE_ACK, WIRE_NACK, WIRE_GOSSIP, WIRE_PIECE = 16 };
enum wire_kind { WIRE_CLAIM = 1, WIRE_SUSPECT, WIRE_DEAD };

struct wire_head {
    enum wire_type type;
    bool want;  /* please send your claim */
    bool quiet; /* no news wait to be sent: the digest is not about to change */
    uint32_t seq;
    uint64_t incarnation, digest;
    struct swim_id target; /* of a PING_REQ */
    uint16_t wait_ms;
};

struct wire_record {
    enum wire_kind kind;
    struct claim_view claim; /* of a CLAIM */
    struct swim_id id;       /* of all */
    uint64_t incarnation;
    unsigned n_accusers;
    const uint8_t *accusers; /* SWIM_ID_LEN each */
};

void wire_put_head(struct wr *w, const struct wire_head *h);
void wire_put_piece(struct wr *w);
void wire_put_claim(struct wr *w, const struct claim_view *v);
void wire_put_suspect(
    struct wr *w, const struct swim_id *id, uint64_t incarnation, const struct swim_id *accusers, unsigned n);
void wire_put_dead(struct wr *w, const struct swim_id *id, uint64_t incarnation);
size_t wire_claim_len(const struct claim *c);

/* False for what is no head; then @r is bad. */
bool wire_get_head(struct rd *r, struct wire_head *out);
/* False at the end of @r and for what is no record; then @r is bad. */
bool wire_get(struct rd *r, struct wire_record *out);
/* Reads a datagram's head, and whether all behind it is in order: *@records are to be read with wire_get(). */
bool wire_datagram(const void *data, size_t n, struct wire_head *out, struct rd *records);
/* The same for a piece. */
bool wire_piece(const void *data, size_t n, struct rd *records);

#endif
