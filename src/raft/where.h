/* Where members are, as managers tell each other (KIND_WHERE), as bytes: any number of u64 id, u64 moves, blob
 * address. Pure, no I/O. */
#ifndef SYM_RAFT_WHERE_H
#define SYM_RAFT_WHERE_H

#include "codec/rw.h"

enum { WHERE_ADDRESS_MAX = 280 };

struct where {
    uint64_t id, moves;
    char address[WHERE_ADDRESS_MAX];
};

/* Appends one; as wr_blob fails. */
void where_put(struct wr *w, uint64_t id, uint64_t moves, const char *address);
/* The next one; false at the end, and when what is left is malformed (@r->bad). Its text is free of control
 * characters, and whether it is an address is yet to be seen. */
bool where_next(struct rd *r, struct where *out);

#endif
