#include "raft/health.h"

#include "base/err.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* The reserve is only worth something if its blocks are its own. */
static void make_reserve(struct health_look *l)
{
    int fd = open(l->reserve, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        return;
    }
    l->has_reserve = posix_fallocate(fd, 0, HEALTH_RESERVE) == 0;
    close(fd);
    if (!l->has_reserve) {
        unlink(l->reserve);
    }
}

static void look(struct health_look *l)
{
    struct statvfs fs;
    struct stat st;
    if (statvfs(l->dir, &fs) != 0) {
        l->error = errno;
        return;
    }
    l->error = 0;
    l->free = (uint64_t)fs.f_bavail * fs.f_frsize;
    l->has_reserve = stat(l->reserve, &st) == 0 && st.st_size >= HEALTH_RESERVE;
    if (l->has_reserve && l->free < l->floor / 4) {
        l->has_reserve = unlink(l->reserve) != 0;
    } else if (!l->has_reserve && l->free > l->floor + l->floor / 4 + 2 * HEALTH_RESERVE) {
        make_reserve(l);
    }
}

static void judge(struct health *h)
{
    bool was = h->low;
    if (h->look.error != 0) {
        if (h->error == 0) {
            log_warn("cannot tell the free space of %s: %s", h->dir, strerror(h->look.error));
        }
        h->error = h->look.error;
        return;
    }
    h->error = 0;
    h->free = h->look.free;
    h->low = h->free < (was ? h->floor + h->floor / 4 : h->floor);
    if (h->low != was) {
        if (h->low) {
            log_error("%s: only %llu MiB free; writes are refused below %llu MiB", h->dir,
                (unsigned long long)(h->free >> 20), (unsigned long long)(h->floor >> 20));
        } else {
            log_info("%s: there is room again (%llu MiB free)", h->dir, (unsigned long long)(h->free >> 20));
        }
        h->changed(h->arg);
    }
}

static void on_pool(uv_work_t *work)
{
    struct health *h = work->data;
    h->look.began = uv_hrtime();
    look(&h->look);
}

static void free_health(struct health *h)
{
    free(h->dir);
    free(h->look.reserve);
    h->dir = h->look.reserve = NULL;
}

static void after(uv_work_t *work, int status)
{
    struct health *h = work->data;
    (void)status;
    h->working = false;
    if (h->closed != NULL) {
        free_health(h);
        h->closed(h->arg);
        return;
    }
    histogram_add(&h->pool_wait, h->look.began - h->queued);
    judge(h);
}

int health_open(
    struct health *h, uv_loop_t *loop, const char *dir, uint64_t floor, void (*changed)(void *arg), void *arg)
{
    *h = (struct health){
        .loop = loop, .least = floor == 0 ? HEALTH_FLOOR : floor, .changed = changed, .arg = arg};
    h->floor = h->least;
    h->dir = strdup(dir);
    if (h->dir == NULL || asprintf(&h->look.reserve, "%s/reserve", dir) < 0) {
        h->look.reserve = NULL;
        free_health(h);
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    h->look.dir = h->dir;
    h->look.floor = h->floor;
    h->work.data = h;
    look(&h->look);
    if (h->look.error != 0) {
        int rv = err_sysf(h->look.error, "%s", dir);
        free_health(h);
        return rv;
    }
    judge(h);
    h->looked_at = uv_now(loop);
    return 0;
}

void health_tick(struct health *h, uint64_t snapshot)
{
    if (h->working || h->closed != NULL || uv_now(h->loop) - h->looked_at < HEALTH_EVERY_MS) {
        return;
    }
    h->looked_at = uv_now(h->loop);
    h->floor = h->look.floor = h->least + snapshot;
    h->queued = uv_hrtime();
    h->working = uv_queue_work(h->loop, &h->work, on_pool, after) == 0;
}

void health_close(struct health *h, void (*closed)(void *arg))
{
    if (h->working) {
        h->closed = closed;
        return;
    }
    free_health(h);
    closed(h->arg);
}
