/* What the files of the store share. Private to src/store. */
#ifndef SYM_STORE_INTERNAL_H
#define SYM_STORE_INTERNAL_H

#include "store/hub.h"
#include "store/state.h"

enum { RING_DEFAULT = 8 << 20, WINDOW_DEFAULT = 16384, SNAP_MAX_AGE_S = 300 };

struct store {
    struct store_config cfg;
    char *dir; /* cfg.dir, ours */
    int mark;  /* descriptor of mark.h */
    struct state *state;
    struct snap *snap; /* the one that is being taken */
    struct hub hub;
};

/* Lets go of what the snapshot pins: waits for the record that it is copying, or for the few MiB of memory that it is
 * fetching, at most. What is left of it answers SYM_ECANCELED. */
void snap_cut(struct snap *sn);
/* Seconds since it was taken. */
uint64_t snap_age(const struct snap *sn);
const struct db_tx *snap_tx(const struct snap *sn);

/* SYM_EINVAL for a path that is too long to put file names behind it. */
int check_dir(const char *dir);
int make_dir(const char *dir);
/* Removes an environment's files from a folder; there may be none. */
int remove_env(const char *dir);
/* Removes what an interrupted install left beside @dir. */
int remove_leftovers(const char *dir);

/* What install_prepare built in <dir>.new. */
struct install {
    char *dir;
    int lock;
    struct state *state;
};

#endif
