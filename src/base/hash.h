/* uthash, which by itself ends the process without memory: what has no place in the hash for want of it is marked
 * @lost (a member of every struct that is hashed), and not added. */
#ifndef SYM_BASE_HASH_H
#define SYM_BASE_HASH_H

#define HASH_NONFATAL_OOM 1
#define uthash_nonfatal_oom(item) ((item)->lost = true)
#include <uthash.h>

#endif
