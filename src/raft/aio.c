#include "raft/aio.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { CONTEXTS = 8 };

/* Those that are known here; more than there is room for are libraft's and the kernel's alone. */
static struct context {
    aio_context_t ctx; /* 0: free slot */
    unsigned nr_events;
    long in_flight; /* submitted and not fetched: such a context is not given to somebody else */
    bool idle;
} contexts[CONTEXTS];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static struct context *find(aio_context_t ctx)
{
    for (unsigned i = 0; i < CONTEXTS; i++) {
        if (contexts[i].ctx == ctx) {
            return &contexts[i];
        }
    }
    return NULL;
}

static bool take_idle(unsigned nr_events, aio_context_t *ctx)
{
    bool found = false;
    pthread_mutex_lock(&mutex);
    for (unsigned i = 0; i < CONTEXTS && !found; i++) {
        struct context *c = &contexts[i];
        if (c->ctx != 0 && c->idle && c->nr_events == nr_events) {
            c->idle = false;
            *ctx = c->ctx;
            found = true;
        }
    }
    pthread_mutex_unlock(&mutex);
    return found;
}

int io_setup(unsigned nr_events, aio_context_t *ctx)
{
    if (take_idle(nr_events, ctx)) {
        return 0;
    }
    int rv = (int)syscall(SYS_io_setup, nr_events, ctx);
    if (rv == 0) {
        pthread_mutex_lock(&mutex);
        struct context *c = find(0);
        if (c != NULL) {
            *c = (struct context){.ctx = *ctx, .nr_events = nr_events};
        }
        pthread_mutex_unlock(&mutex);
    }
    return rv;
}

int io_destroy(aio_context_t ctx)
{
    bool kept = false;
    pthread_mutex_lock(&mutex);
    struct context *c = ctx == 0 ? NULL : find(ctx);
    if (c != NULL) {
        kept = c->in_flight == 0;
        c->idle = kept;
        if (!kept) {
            c->ctx = 0;
        }
    }
    pthread_mutex_unlock(&mutex);
    return kept ? 0 : (int)syscall(SYS_io_destroy, ctx);
}

static void count(aio_context_t ctx, long n)
{
    pthread_mutex_lock(&mutex);
    struct context *c = ctx == 0 ? NULL : find(ctx);
    if (c != NULL) {
        c->in_flight += n;
    }
    pthread_mutex_unlock(&mutex);
}

int io_submit(aio_context_t ctx, long nr, struct iocb **iocbs)
{
    /* Counted before, since it may be fetched on another thread before this call is back. */
    count(ctx, nr);
    int rv = (int)syscall(SYS_io_submit, ctx, nr, iocbs);
    int error = errno;
    if (rv < nr) {
        count(ctx, (rv < 0 ? 0 : rv) - nr);
    }
    errno = error;
    return rv;
}

int io_getevents(aio_context_t ctx, long min_nr, long nr, struct io_event *events, struct timespec *timeout)
{
    int rv = (int)syscall(SYS_io_getevents, ctx, min_nr, nr, events, timeout);
    if (rv > 0) {
        int error = errno;
        count(ctx, -(long)rv);
        errno = error;
    }
    return rv;
}

unsigned aio_contexts(void)
{
    unsigned n = 0;
    pthread_mutex_lock(&mutex);
    for (unsigned i = 0; i < CONTEXTS; i++) {
        n += contexts[i].ctx != 0;
    }
    pthread_mutex_unlock(&mutex);
    return n;
}
