/* Shuts the process in: what it has open it may read and write, it may ask for memory up to a limit, and tell the time.
 * Everything else a system call could do ends it. There is no way back. */
#ifndef SYM_SANDBOX_JAIL_H
#define SYM_SANDBOX_JAIL_H

#include <stddef.h>

struct jail {
    int fds; /* the descriptors below this number stay, the others are closed */
    size_t
        memory; /* bytes of address space beyond what is in use now; not with sanitizers, which need it all */
};
/* 0, or SYM_E* with err_msg(); then the process is to end. */
int jail_enter(const struct jail *jail);

#endif
