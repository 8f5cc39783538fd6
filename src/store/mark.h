/* The mark in the state's folder that tells a clean shutdown from a machine that went down: LMDB runs without
 * syncing, so after the latter its file may be anything. A restart of the process alone loses nothing.
 * Private to src/store. */
#ifndef SYM_STORE_MARK_H
#define SYM_STORE_MARK_H

#include <stdbool.h>

/* Opens <@dir>/mark. @trusted: the state was closed cleanly, or the machine has not booted since. */
int mark_open(const char *dir, int *fd, bool *trusted);
/* Says, on the disk, that the state is in use from now on; before it is written to. */
int mark_in_use(int fd);
/* Says that it is on the disk as a whole, with its name. */
int mark_clean(int fd);

#endif
