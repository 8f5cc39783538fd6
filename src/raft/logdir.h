/* The raft folder before libraft reads it: whose it is, and whether it is whole.
 *
 * libraft tells a damaged closed segment, but takes everything in an open one from the first batch that does
 * not check for a write that was cut short by a crash. That is right only where nothing follows: what was
 * acknowledged must not vanish silently. And it falls back to an older snapshot when the newest cannot be
 * read.
 */
#ifndef SYM_RAFT_LOGDIR_H
#define SYM_RAFT_LOGDIR_H

#include <stdbool.h>
#include <stdint.h>

/* Makes the folder (0700) if need be and locks it for this process while *fd is open. SYM_EINUSE. */
int logdir_lock(const char *dir, int *fd);

struct logdir {
    uint64_t snapshot;       /* index of the newest snapshot, 0 if there is none */
    char snapshot_name[128]; /* its file */
    bool has_segments, has_metadata;
};
/* Looks at the files. SYM_ECORRUPT names the file that does not check and says what to do; SYM_EIO. Undoes
 * one thing: the shorter of two closed segments with the same start, which a crash in the middle of a
 * truncation leaves behind. */
int logdir_check(const char *dir, struct logdir *out);

/* Removes the traces of a bootstrap that died before it wrote its first entry. */
int logdir_forget_metadata(const char *dir);

/* The mark of a recovery: the log that was recovered may end before the state (see guard.h), so a member that
 * is added must get the state as a snapshot and not the log. The mark stays until there is one. */
int logdir_mark_recovered(const char *dir);
bool logdir_is_recovered(const char *dir);
void logdir_unmark_recovered(const char *dir);

/* SYM_ECORRUPT with "<dir>: <what>" and the advice that goes with damage. */
int logdir_corrupt(const char *dir, const char *what);

#endif
