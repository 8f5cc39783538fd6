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
#include <stddef.h>
#include <stdint.h>

/* Makes the folder (0700) if need be and locks it for this process while *fd is open. SYM_EINUSE. */
int logdir_lock(const char *dir, int *fd);

struct logdir {
    uint64_t snapshot;       /* index of the newest snapshot, 0 if there is none */
    char snapshot_name[128]; /* its file */
    bool has_segments, has_metadata;
};
/* Looks at the files. SYM_ECORRUPT names the file that does not check and says what to do; SYM_EIO. Finishes
 * what a crash has left half done: of two closed segments with the same start, the shorter one is of a
 * truncation that had not come about; and segments that end before the newest snapshot, with nothing behind
 * them, are those that an installed one has replaced (libraft passes over them, until there is a segment
 * behind them, whose entries it then counts from their end). */
int logdir_check(const char *dir, struct logdir *out);

/* Writes a snapshot as the library does: @data is the state at @index, @conf the encoded configuration. It is
 * there as a whole or not at all. What the log has before it goes with the next logdir_check. */
int logdir_write_snapshot(const char *dir, uint64_t term, uint64_t index, const void *conf, size_t conf_len,
    const void *data, size_t n);

/* Removes the traces of a bootstrap that died before it wrote its first entry. */
int logdir_forget_metadata(const char *dir);

/* The mark of a recovery: the end of the log that was recovered may be what a later leader had replaced, while
 * the state has followed that leader (see guard.h), so a member that is added must get the state as a snapshot
 * and not the log. The mark stays until there is one. */
int logdir_mark_recovered(const char *dir);
bool logdir_is_recovered(const char *dir);
void logdir_unmark_recovered(const char *dir);

/* SYM_ECORRUPT with "<dir>: <what>" and the advice that goes with damage. */
int logdir_corrupt(const char *dir, const char *what);

#endif
