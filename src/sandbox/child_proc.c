#include "sandbox/child_proc.h"

#include "base/err.h"
#include "base/log.h"
#include "sandbox/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PORTION = 64 << 10, READ_HEADER = 13 };

struct child_proc {
    const struct child_ops *ops;
    void *arg;
    uv_process_t process;
    uv_pipe_t calls, reads;
    struct frame_page *page;
    struct buf out;       /* not given to libuv yet */
    struct buf in, asked; /* not whole yet */
    bool exited, closing;
    unsigned open; /* handles */
    uint8_t portion[PORTION];
};

/* --- the end --- */

static void on_handle_closed(uv_handle_t *handle)
{
    struct child_proc *p = handle->data;
    if (--p->open > 0) {
        return;
    }
    munmap(p->page, sizeof *p->page);
    buf_free(&p->out);
    buf_free(&p->in);
    buf_free(&p->asked);
    free(p);
}

/* The process's own handle is closed only when it has ended: it would stay a zombie. */
static void on_exited(uv_process_t *process, int64_t status, int signum)
{
    struct child_proc *p = process->data;
    p->exited = true;
    if (p->closing) {
        uv_close((uv_handle_t *)process, on_handle_closed);
        return;
    }
    if (signum == SIGSYS) {
        err_setf(SYM_EPOLICYDIED, "it did what a policy may not do");
    } else if (signum != 0) {
        err_setf(SYM_EPOLICYDIED, "it was ended by signal %d", signum);
    } else {
        err_setf(SYM_EPOLICYDIED, status == 12 ? "it ran out of memory" : "it ended (%d)", (int)status);
    }
    p->ops->on_lost(p->arg);
}

void child_proc_kill(struct child_proc *p)
{
    if (p->closing) {
        return;
    }
    p->closing = true;
    if (p->exited) {
        uv_close((uv_handle_t *)&p->process, on_handle_closed);
    } else {
        uv_process_kill(&p->process, SIGKILL);
    }
    uv_close((uv_handle_t *)&p->calls, on_handle_closed);
    uv_close((uv_handle_t *)&p->reads, on_handle_closed);
}

static void lost(struct child_proc *p)
{
    if (!p->closing) {
        p->ops->on_lost(p->arg);
    }
}

static void break_rules(struct child_proc *p, const char *how)
{
    err_setf(SYM_EPROTO, "%s", how);
    lost(p);
}

/* --- writing --- */

struct write {
    uv_write_t req;
    struct buf data;
};

static void on_written(uv_write_t *req, int status)
{
    struct write *w = (struct write *)req;
    (void)status; /* a child that is gone is told by its end */
    buf_free(&w->data);
    free(w);
}

/* Sends @data, which is empty afterwards. */
static void send_all(struct child_proc *p, uv_pipe_t *pipe, struct buf *data)
{
    if (p->closing || data->len == 0) {
        return;
    }
    uv_buf_t part = uv_buf_init((char *)buf_data(data), (unsigned)data->len);
    int n = uv_stream_get_write_queue_size((uv_stream_t *)pipe) == 0
                ? uv_try_write((uv_stream_t *)pipe, &part, 1)
                : 0;
    buf_consume(data, n > 0 ? (size_t)n : 0);
    if (data->len == 0) {
        return;
    }
    struct write *w = malloc(sizeof *w);
    if (w == NULL) {
        err_setf(SYM_ENOMEM, "out of memory");
        lost(p);
        return;
    }
    w->data = *data;
    *data = (struct buf){0};
    part = uv_buf_init((char *)buf_data(&w->data), (unsigned)w->data.len);
    int rv = uv_write(&w->req, (uv_stream_t *)pipe, &part, 1, on_written);
    if (rv != 0) {
        buf_free(&w->data);
        free(w);
        err_sysf(rv, "policy child");
        lost(p);
    }
}

struct buf *child_proc_out(struct child_proc *p)
{
    return &p->out;
}

void child_proc_flush(struct child_proc *p)
{
    send_all(p, &p->calls, &p->out);
}

size_t child_proc_queued(const struct child_proc *p)
{
    return p->out.len + uv_stream_get_write_queue_size((const uv_stream_t *)&p->calls);
}

void child_proc_reply(struct child_proc *p, int status, const struct buf *answer)
{
    struct buf out = {0};
    struct wr w = wr_init(&out);
    const char *message = status != 0 ? err_msg() : NULL;
    const void *data = status != 0 ? (const void *)message : buf_data(answer);
    size_t n = status != 0 ? strlen(message) : answer->len;
    wr_u32(&w, (uint32_t)n + 1);
    wr_u8(&w, (uint8_t)-status);
    wr_bytes(&w, data, n);
    if (w.bad) {
        lost(p);
    } else {
        send_all(p, &p->reads, &out);
    }
    buf_free(&out);
}

/* --- reading --- */

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *out)
{
    struct child_proc *p = handle->data;
    (void)suggested;
    *out = uv_buf_init((char *)p->portion, sizeof p->portion);
}

/* Its end is told by its exit, with the reason; what it closes by itself is just as good. */
static bool ended(struct child_proc *p, ssize_t n)
{
    if (n >= 0) {
        return false;
    }
    if (n != UV_EOF) {
        err_sysf((int)n, "policy child");
        lost(p);
    }
    return true;
}

static void take_frames(struct child_proc *p)
{
    struct frame f;
    long n = 0;
    while (!p->closing && (n = frame_parse(buf_data(&p->in), p->in.len, FRAME_FROM_CHILD_MAX, &f)) > 0) {
        p->ops->on_frame(p->arg, &f);
        if (!p->closing) {
            buf_consume(&p->in, (size_t)n);
        }
    }
    if (n < 0) {
        lost(p);
    } else if (!p->closing && p->in.len > 0 && !p->ops->expects(p->arg)) {
        break_rules(p, "it says what nobody has asked for");
    }
}

static void on_calls_data(uv_stream_t *stream, ssize_t n, const uv_buf_t *data)
{
    struct child_proc *p = stream->data;
    if (p->closing || ended(p, n)) {
        return;
    }
    if (buf_append(&p->in, data->base, (size_t)n) != 0) {
        lost(p);
        return;
    }
    take_frames(p);
}

/* A child asks one thing, and waits; one that does not is not heaped up with answers. */
static void on_reads_data(uv_stream_t *stream, ssize_t n, const uv_buf_t *data)
{
    struct child_proc *p = stream->data;
    if (p->closing || ended(p, n)) {
        return;
    }
    if (p->asked.len + (size_t)n > READ_HEADER + READS_KEY_MAX) {
        break_rules(p, "it asks for more than one thing of the state at once");
        return;
    }
    if (buf_append(&p->asked, data->base, (size_t)n) != 0) {
        lost(p);
        return;
    }
    if (uv_stream_get_write_queue_size(stream) > 0) {
        break_rules(p, "it asks for something of the state before it has taken what it asked for");
        return;
    }
    struct rd r = rd_init(buf_data(&p->asked), p->asked.len);
    size_t len = rd_u32(&r);
    uint8_t kind = rd_u8(&r);
    uint32_t id = rd_u32(&r), limit = rd_u32(&r);
    size_t n_key = rd_left(&r);
    if (r.bad || n_key + READ_HEADER - 4 < len) {
        return;
    }
    if (n_key + READ_HEADER - 4 != len || kind < READ_GET || kind > READ_COUNT || limit > READS_LIST_MAX) {
        break_rules(p, "it asks for something that there is not");
        return;
    }
    char key[READS_KEY_MAX + 1];
    memcpy(key, rd_bytes(&r, n_key), n_key);
    key[n_key] = '\0';
    buf_clear(&p->asked);
    p->ops->on_read(p->arg, id, (enum read_kind)kind, key, n_key, limit);
}

/* --- the beginning --- */

/* A page that no one can make smaller: the other side's access to it would end us. */
static int make_page(struct frame_page **out)
{
    int fd = memfd_create("symphony-policy", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) {
        return err_sysf(errno, "memfd");
    }
    if (ftruncate(fd, sizeof **out) != 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        int rv = err_sysf(errno, "memfd");
        close(fd);
        return rv;
    }
    *out = mmap(NULL, sizeof **out, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (*out == MAP_FAILED) {
        int rv = err_sysf(errno, "memfd");
        close(fd);
        return rv;
    }
    return fd;
}

static int spawn(struct child_proc *p, uv_loop_t *loop, int page)
{
    char *args[] = {(char *)"symphonyd", (char *)CHILD_OPTION, NULL};
    char *env[] = {NULL};
    uv_stdio_container_t stdio[CHILD_FDS];
    stdio[0].flags = stdio[1].flags = UV_IGNORE;
    /* What a sanitizer has to say must be seen. */
#ifdef __SANITIZE_ADDRESS__
    stdio[2].flags = UV_INHERIT_FD;
    stdio[2].data.fd = 2;
#else
    stdio[2].flags = UV_IGNORE;
#endif
    stdio[CHILD_CALLS].flags = stdio[CHILD_READS].flags =
        UV_CREATE_PIPE | UV_READABLE_PIPE | UV_WRITABLE_PIPE;
    stdio[CHILD_CALLS].data.stream = (uv_stream_t *)&p->calls;
    stdio[CHILD_READS].data.stream = (uv_stream_t *)&p->reads;
    stdio[CHILD_PAGE].flags = UV_INHERIT_FD;
    stdio[CHILD_PAGE].data.fd = page;
    uv_process_options_t options = {.file = "/proc/self/exe",
        .args = args,
        .env = env,
        .exit_cb = on_exited,
        .flags = UV_PROCESS_DETACHED, /* a terminal's signals are not for it */
        .stdio = stdio,
        .stdio_count = CHILD_FDS};
    return uv_spawn(loop, &p->process, &options);
}

int child_proc_start(uv_loop_t *loop, const struct child_ops *ops, void *arg, struct child_proc **out)
{
    struct child_proc *p = calloc(1, sizeof *p);
    signal(SIGPIPE, SIG_IGN); /* a child may be gone when it is written to */
    if (p == NULL) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    int page = make_page(&p->page);
    if (page < 0) {
        free(p);
        return page;
    }
    p->ops = ops;
    p->arg = arg;
    uv_pipe_init(loop, &p->calls, 0);
    uv_pipe_init(loop, &p->reads, 0);
    p->process.data = p->calls.data = p->reads.data = p;
    p->open = 3;
    int rv = spawn(p, loop, page);
    close(page);
    if (rv != 0) {
        p->closing = true;
        uv_close((uv_handle_t *)&p->process, on_handle_closed);
        uv_close((uv_handle_t *)&p->calls, on_handle_closed);
        uv_close((uv_handle_t *)&p->reads, on_handle_closed);
        return err_sysf(rv, "the process for policies");
    }
    uv_read_start((uv_stream_t *)&p->calls, on_alloc, on_calls_data);
    uv_read_start((uv_stream_t *)&p->reads, on_alloc, on_reads_data);
    *out = p;
    return 0;
}

int child_proc_pid(const struct child_proc *p)
{
    return uv_process_get_pid(&p->process);
}

uint64_t child_proc_cpu_ns(const struct child_proc *p)
{
    clockid_t clock;
    struct timespec ts;
    if (p->exited || clock_getcpuclockid(uv_process_get_pid(&p->process), &clock) != 0 ||
        clock_gettime(clock, &ts) != 0) {
        return 0;
    }
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

const struct frame_page *child_proc_page(const struct child_proc *p)
{
    return p->page;
}
