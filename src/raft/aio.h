/* libraft's calls of the kernel's asynchronous I/O, in place of its own thin ones: contexts are kept and used again.
 *
 * raft_uv makes a context for each segment of its log and destroys it on the loop when the segment is full, and
 * destroying one takes the kernel 30 to 45 ms. The linker takes these functions where libraft is a static library;
 * with a shared one it may keep its own, and then only the delay is back.
 */
#ifndef SYM_RAFT_AIO_H
#define SYM_RAFT_AIO_H

#include <linux/aio_abi.h>
#include <time.h>

int io_setup(unsigned nr_events, aio_context_t *ctx);
int io_destroy(aio_context_t ctx);
int io_submit(aio_context_t ctx, long nr, struct iocb **iocbs);
int io_getevents(aio_context_t ctx, long min_nr, long nr, struct io_event *events, struct timespec *timeout);

/* How many contexts are known. Its being called is what makes the linker take this file. */
unsigned aio_contexts(void);

#endif
