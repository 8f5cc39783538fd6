/* One child process and the two streams to it, until it is gone. Private to host*.c. */
#ifndef SYM_SANDBOX_CHILD_PROC_H
#define SYM_SANDBOX_CHILD_PROC_H

#include "sandbox/frame.h"

#include <uv.h>

struct child_proc;

struct child_ops {
    /* A whole frame has come. */
    void (*on_frame)(void *arg, const struct frame *f);
    /* Is there anything that it has still to say? What it says without that is against the rules. */
    bool (*expects)(void *arg);
    /* It asks for something in the state, for the call @id, so it says: child_proc_reply is to be called, now. */
    void (*on_read)(void *arg, uint32_t id, enum read_kind kind, const char *key, size_t n, unsigned limit);
    /* It has ended, or has broken the rules (err_msg() says how); it is killed, and nothing more comes from it. */
    void (*on_lost)(void *arg);
};

/* 0, or SYM_E*. The program is this process's own. From the first one on the process ignores SIGPIPE. */
int child_proc_start(uv_loop_t *loop, const struct child_ops *ops, void *arg, struct child_proc **out);
/* Kills it, if need be, and frees it later, from the loop. No callback fires any more. */
void child_proc_kill(struct child_proc *p);

/* Queues and sends, as one write for all of a turn of the loop. */
struct buf *child_proc_out(struct child_proc *p);
void child_proc_flush(struct child_proc *p);
/* Bytes that the child has not taken yet. */
size_t child_proc_queued(const struct child_proc *p);
/* Answers the read under way. */
void child_proc_reply(struct child_proc *p, int status, const struct buf *answer);

int child_proc_pid(const struct child_proc *p);
/* CPU time that it has used, in ns; 0 when that cannot be told. */
uint64_t child_proc_cpu_ns(const struct child_proc *p);
const struct frame_page *child_proc_page(const struct child_proc *p);

#endif
