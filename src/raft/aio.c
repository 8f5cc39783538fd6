/* libraft destroys a context of asynchronous I/O with each segment of the log that it closes, on the loop, and
 * the kernel waits there for a grace period of RCU: 10 to 45 ms during which nothing else happens. Nothing is
 * under way in it any more, so that a thread of its own can wait instead. The linker puts this in the place of
 * libraft's own io_destroy (--wrap, see CMakeLists.txt). */
#include <linux/aio_abi.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

int __wrap_io_destroy(aio_context_t ctx);

static void *destroy(void *arg)
{
    (void)syscall(SYS_io_destroy, (aio_context_t)(uintptr_t)arg);
    return NULL;
}

int __wrap_io_destroy(aio_context_t ctx)
{
    pthread_t thread;
    pthread_attr_t attr;
    bool started = false;
    if (pthread_attr_init(&attr) == 0) {
        started = pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED) == 0 &&
                  pthread_create(&thread, &attr, destroy, (void *)(uintptr_t)ctx) == 0;
        pthread_attr_destroy(&attr);
    }
    return started ? 0 : (int)syscall(SYS_io_destroy, ctx);
}
