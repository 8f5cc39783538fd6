/* Whether there is room to go on writing: free space of the raft folder's disk, looked at on the pool about
 * once a second, and a file in reserve that is given up when the disk fills all the same (rule 15). The next
 * snapshot must fit as well: it is about as large as the state, and written beside the last one.
 */
#ifndef SYM_RAFT_HEALTH_H
#define SYM_RAFT_HEALTH_H

#include "base/histogram.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

enum { HEALTH_FLOOR = 64 << 20, HEALTH_RESERVE = 16 << 20, HEALTH_EVERY_MS = 1000 };

struct health {
    uv_loop_t *loop;
    char *dir;
    uint64_t least; /* the floor without the next snapshot */
    uint64_t floor;
    uint64_t free;
    bool low; /* below the floor, and not yet a quarter above it again */
    uint64_t looked_at;
    uv_work_t work;
    bool working;
    struct health_look {
        char *dir, *reserve;
        uint64_t floor, free;
        bool has_reserve;
        int error;      /* errno, 0 */
        uint64_t began; /* the clock, ns */
    } look;             /* what the pool works on */
    int error;
    uint64_t queued;            /* the clock when the pool was given the work */
    struct histogram pool_wait; /* how long that waited for a thread */
    void (*changed)(void *arg); /* low is another one now */
    void (*closed)(void *arg);
    void *arg;
};

/* Looks once, at once. 0 or SYM_ENOMEM, SYM_EIO. @floor 0: the default. */
int health_open(struct health *h, uv_loop_t *loop, const char *dir, uint64_t floor,
    void (*changed)(void *arg), void *arg);
/* @snapshot: bytes that the next snapshot will have. */
void health_tick(struct health *h, uint64_t snapshot);
/* @closed from here or from the loop. */
void health_close(struct health *h, void (*closed)(void *arg));

#endif
