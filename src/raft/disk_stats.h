/* What the log's disk did, as guard.h counts it. */
#ifndef SYM_RAFT_DISK_STATS_H
#define SYM_RAFT_DISK_STATS_H

#include "base/histogram.h"

struct disk_stats {
    struct histogram
        appends; /* entries of the log: from their being given to the disk to their being on it */
    struct histogram snapshots; /* encoded and written; those that were received are not counted */
    uint64_t appended;          /* bytes of entries */
    uint64_t snapshot_bytes;    /* of the last one that was written, before it is compressed */
    uint64_t installed;         /* received ones */
};

#endif
