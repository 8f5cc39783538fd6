/* The control frames of a connection between managers, as bytes: who opens it and why it is refused. Pure, no
 * I/O.
 *
 * - hello, the opener's first: u32 magic, u16 format, blob cluster id, u64 from, to, starts, nonce, blob
 * address. Of a member that has ever moved it is of HELLO_FORMAT_MOVED, and has u64 moves behind that: whoever
 * does not know of moves refuses it, rather than look for it where it is not; all others speak as they always did
 * - welcome, the acceptor's first: u16 format, u64 id, starts, nonce
 * - refusal, the acceptor's instead: u8 code, blob reason
 * - ping, empty: from the opener when it has had nothing to say for a second
 * - alive, empty: from the acceptor once a second while something arrives
 * - bye, empty: the opener closes this connection, but lives
 */
#ifndef SYM_RAFT_HELLO_H
#define SYM_RAFT_HELLO_H

#include "base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A welcome is always of the first. */
enum { HELLO_FORMAT = 1, HELLO_FORMAT_MOVED };

/* The kinds of control frames. */
enum hello_kind { HELLO = 1, HELLO_WELCOME, HELLO_REFUSAL, HELLO_PING, HELLO_ALIVE, HELLO_BYE };

struct hello {
    uint16_t format;
    char cluster_id[64];
    uint64_t from, to;
    uint64_t starts, nonce;
    char address[280];
    uint64_t
        moves; /* how often it has had another address than before; above 0 in HELLO_FORMAT_MOVED alone */
};

struct welcome {
    uint16_t format;
    uint64_t id;
    uint64_t starts, nonce;
};

struct refusal {
    int code; /* SYM_E* */
    char reason[200];
};

/* Append to @out: 0 or SYM_ENOMEM. */
int hello_encode(const struct hello *h, struct buf *out);
int welcome_encode(const struct welcome *w, struct buf *out);
int refusal_encode(const struct refusal *r, struct buf *out);

static inline bool hello_is_known(uint16_t format)
{
    return format == HELLO_FORMAT || format == HELLO_FORMAT_MOVED;
}

/* 0 or SYM_EPROTO. Of a hello or welcome of another format only @format is filled in (its rest may look
 * different), so that it can be refused with a reason. Texts are free of control characters. */
int hello_decode(const uint8_t *data, size_t n, struct hello *out);
int welcome_decode(const uint8_t *data, size_t n, struct welcome *out);
int refusal_decode(const uint8_t *data, size_t n, struct refusal *out);

#endif
