/* The process that runs the policies: `symphonyd --policy-child`, started by sandbox/host.h with
 *   CHILD_CALLS  the stream of calls, CHILD_READS  that of reads, CHILD_PAGE  the page that both see (frame.h).
 * It ends when the daemon does. */
#ifndef SYM_SANDBOX_CHILD_H
#define SYM_SANDBOX_CHILD_H

#define CHILD_OPTION "--policy-child"

enum { CHILD_CALLS = 3, CHILD_READS, CHILD_PAGE, CHILD_FDS };

/* True if that is what the command line asks for. */
int child_asked(int argc, char **argv);
/* Does not return before the end. The exit status. */
int child_main(void);

#endif
