/* What this process uses of the machine, as the kernel counts it. */
#ifndef SYM_BASE_PROCESS_H
#define SYM_BASE_PROCESS_H

#include <stdint.h>

struct process_usage {
    double cpu_seconds; /* of all threads, in user and kernel mode, since the start */
    double start_time;  /* seconds since 1970; 0: not known */
    uint64_t resident_bytes, virtual_bytes;
    uint64_t threads;
    uint64_t open_fds, max_fds; /* max_fds UINT64_MAX: no limit */
};

/* What cannot be told stays 0. Reads files of /proc, about 20 us; on kernels before 6.2 also one entry of a folder
 * for each open descriptor. */
void process_usage(struct process_usage *out);

#endif
