/* Whole files. */
#ifndef SYM_BASE_FILE_H
#define SYM_BASE_FILE_H

#include "base/buf.h"

#include <stddef.h>
#include <sys/types.h>

/* Appends what is in @path to @out. SYM_ETOOBIG beyond @max bytes, SYM_ENOTFOUND, SYM_ENOMEM, others of
 * err_sysf. */
int file_read(const char *path, size_t max, struct buf *out);
/* Makes or replaces @path with @n bytes at @data. Atomic and durable: written to <@path>.tmp, synced, renamed,
 * and the folder synced; what a crash left under that name goes. From the loop's thread only, so that no two write one
 * @path at once. Blocks for as long as the disk takes. The errors of err_sysf; @path is then as it was, or, when only the last sync failed,
 * as it was or new. */
int file_write(const char *path, const void *data, size_t n, mode_t mode);
/* Makes what was renamed or removed in folder @dir durable. */
int file_sync_dir(const char *dir);

#endif
