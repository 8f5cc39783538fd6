/* The file in which a member keeps how often each of the others has started, as they have said: what tells the
 * folder of one that was put back from an older copy must outlast a restart of all.
 *
 * Magic and version (8), number of records (4), then id, starts, nonce (8 each) of each; SHA-256 of all that.
 */
#ifndef SYM_RAFT_STARTS_H
#define SYM_RAFT_STARTS_H

#include <stddef.h>
#include <stdint.h>

enum { STARTS_MAX = 1024 };

struct starts {
    uint64_t id;     /* raft id, not 0 */
    uint64_t starts; /* the highest that it has said */
    uint64_t nonce;  /* of that start */
};

/* Reads @path: *@n records, at most STARTS_MAX, into @out; none if there is no such file. SYM_ECORRUPT names
 * the file and says what to do, SYM_ENOMEM, others of file_read. */
int starts_load(const char *path, struct starts out[STARTS_MAX], size_t *n);
/* Replaces @path, durably: when this has returned 0, the next load gives these. Blocks for as long as the disk
 * takes. SYM_ENOMEM, and those of file_write; the file is then as it was. */
int starts_save(const char *path, const struct starts *records, size_t n);

#endif
