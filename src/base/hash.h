/* uthash as the store uses it: what has no place in the hash for want of memory is marked @lost, and not
 * added. Private to src/store. */
#ifndef SYM_STORE_HASH_H
#define SYM_STORE_HASH_H

#define HASH_NONFATAL_OOM 1
#define uthash_nonfatal_oom(item) ((item)->lost = true)
#include <uthash.h>

#endif
