/* How well the event loop is: how long its turns keep it busy, which is how long everything else waits, and how late a
 * timer comes, which also shows a process that is not let run at all.
 *
 * It wakes an idle loop once a second, and costs two looks at the clock a turn. */
#ifndef SYM_DAEMON_PULSE_H
#define SYM_DAEMON_PULSE_H

#include "base/histogram.h"

#include <uv.h>

struct pulse {
    uv_prepare_t prepare;
    uv_timer_t timer;
    uint64_t turned, idle; /* at the last turn: the clock, and all time spent waiting until then; ns */
    uint64_t due;          /* when the timer should fire, ns */
    struct histogram turns, late;
};

/* Before the loop runs. Keeps it from nothing: its handles are unreferenced. */
void pulse_start(struct pulse *p, uv_loop_t *loop);
/* Closes the handles; @p may go when the loop has run on. */
void pulse_stop(struct pulse *p);

#endif
