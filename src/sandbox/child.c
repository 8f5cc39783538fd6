#include "sandbox/child.h"

#include "base/err.h"
#include "sandbox/boxes.h"
#include "sandbox/frame.h"
#include "sandbox/jail.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum {
    READ_PORTION = 64 << 10,
    FLUSH_BYTES = 64 << 10,
    FLUSH_NS = 1000000,    /* an answer waits no longer than this for the next ones */
    CPU_SECONDS = 10,      /* if the daemon cannot kill us: of one portion of calls */
    ALARM_NS = 1000000000, /* it is set anew no more often than this */
    OVERHEAD = 64 << 20    /* address space besides the policies': buffers, and what malloc keeps */
};

struct child {
    struct boxes set;
    struct frame_page *page;
    struct buf in, out, json;
    uint64_t oldest_ns; /* when the first answer in @out was ready */
    uint64_t alarm_ns;  /* when the alarm was set last */
};

int child_asked(int argc, char **argv)
{
    return argc == 2 && strcmp(argv[1], CHILD_OPTION) == 0;
}

static _Noreturn void end(void)
{
    _exit(0);
}

static void write_all(int fd, const uint8_t *data, size_t n)
{
    while (n > 0) {
        ssize_t done = write(fd, data, n);
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            end();
        }
        data += done;
        n -= (size_t)done;
    }
}

static void read_all(int fd, uint8_t *data, size_t n)
{
    while (n > 0) {
        ssize_t done = read(fd, data, n);
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            end();
        }
        data += done;
        n -= (size_t)done;
    }
}

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void flush(struct child *c)
{
    write_all(CHILD_CALLS, buf_data(&c->out), c->out.len);
    buf_clear(&c->out);
}

static _Noreturn void out_of_memory(void)
{
    _exit(12);
}

/* --- the state --- */

static int read_state(
    void *arg, enum read_kind kind, const char *key, size_t n, unsigned limit, struct buf *answer)
{
    const struct child *c = arg;
    uint8_t head[5];
    struct buf ask = {0};
    struct wr w = wr_init(&ask);
    wr_u32(&w, (uint32_t)(9 + n));
    wr_u8(&w, (uint8_t)kind);
    wr_u32(&w, c->page->id);
    wr_u32(&w, limit);
    wr_bytes(&w, key, n);
    if (w.bad) {
        out_of_memory();
    }
    write_all(CHILD_READS, buf_data(&ask), ask.len);
    buf_free(&ask);
    read_all(CHILD_READS, head, sizeof head);
    size_t len = get_u32(head) - 1;
    uint8_t *room = len <= 2 * READS_ANSWER_MAX ? buf_reserve(answer, len + 1) : NULL;
    if (room == NULL) {
        out_of_memory();
    }
    read_all(CHILD_READS, room, len);
    room[len] = '\0';
    if (head[4] != 0) {
        return err_setf(-(int)head[4], "%.*s", (int)len, (const char *)room);
    }
    buf_commit(answer, len);
    return 0;
}

/* --- calls --- */

static void now_runs(void *arg, const char *name)
{
    struct child *c = arg;
    size_t n = strlen(name) + 1;
    for (size_t i = 0; i < n; i++) {
        c->page->policy[i] = name[i];
    }
}

static void answer(struct child *c, uint32_t id, int status, const char *policy)
{
    struct wr w = wr_init(&c->out);
    struct frame_answer answer = {.status = status,
        .policy = policy,
        .message = status != 0 ? err_msg() : "",
        .data = buf_data(&c->json),
        .n = c->json.len};
    if (c->out.len == 0) {
        c->oldest_ns = now_ns();
    }
    frame_put_answer(&w, id, &answer);
    if (w.bad) {
        out_of_memory();
    }
}

static bool do_load(struct child *c, const struct frame *f)
{
    struct rd r = rd_init(f->data, f->n);
    size_t n;
    const struct box *box;
    const char *name = frame_get_text(&r, BOX_NAME_MAX);
    const uint8_t *source = rd_blob(&r, FRAME_TO_CHILD_MAX, &n);
    if (!rd_done(&r)) {
        return false;
    }
    now_runs(c, name);
    int rv = boxes_load(&c->set, name, (const char *)source, n, &box);
    if (rv == 0 && buf_appendf(&c->json, "%s", box_about(box)) != 0) {
        out_of_memory();
    }
    answer(c, f->id, rv, name);
    return true;
}

static bool do_drop(struct child *c, const struct frame *f)
{
    struct rd r = rd_init(f->data, f->n);
    const char *name = frame_get_text(&r, BOX_NAME_MAX);
    if (!rd_done(&r)) {
        return false;
    }
    boxes_drop(&c->set, name);
    return true;
}

static bool do_call(struct child *c, const struct frame *f)
{
    struct frame_call got;
    char failed[BOX_NAME_MAX + 1];
    if (!frame_get_call(f, &got)) {
        return false;
    }
    struct reads_fake fake = {got.state, got.n_state};
    struct boxes_call call = {.hook = got.hook,
        .only = got.only,
        .input = got.input,
        .n_input = got.n_input,
        .read = got.has_state ? reads_from_json : read_state,
        .read_arg = got.has_state ? (void *)&fake : c,
        .running = now_runs,
        .running_arg = c};
    int rv = boxes_call(&c->set, &call, &c->json, failed);
    answer(c, f->id, rv, failed);
    return true;
}

static bool do_test(struct child *c, const struct frame *f)
{
    struct rd r = rd_init(f->data, f->n);
    size_t n, n_cases;
    const uint8_t *source = rd_blob(&r, FRAME_TO_CHILD_MAX, &n);
    bool has_cases = rd_u8(&r) != 0;
    const uint8_t *cases = rd_blob(&r, FRAME_TO_CHILD_MAX, &n_cases);
    if (!rd_done(&r)) {
        return false;
    }
    now_runs(c, "");
    int rv = boxes_test(&c->set, (const char *)source, n, has_cases ? cases : NULL, n_cases, &c->json);
    answer(c, f->id, rv, "");
    return true;
}

static bool take(struct child *c, const struct frame *f)
{
    c->page->id = f->id;
    buf_clear(&c->json);
    switch (f->kind) {
    case FRAME_LOAD:
        return do_load(c, f);
    case FRAME_DROP:
        return do_drop(c, f);
    case FRAME_CALL:
        return do_call(c, f);
    case FRAME_TEST:
        return do_test(c, f);
    default:
        return false;
    }
}

/* All whole frames that are there. */
static void take_frames(struct child *c)
{
    struct frame f;
    long n;
    while ((n = frame_parse(buf_data(&c->in), c->in.len, FRAME_TO_CHILD_MAX, &f)) > 0) {
        if (!take(c, &f)) {
            _exit(71);
        }
        c->page->id = 0;
        buf_consume(&c->in, (size_t)n);
        if (c->out.len > FLUSH_BYTES || (c->out.len > 0 && now_ns() - c->oldest_ns > FLUSH_NS)) {
            flush(c);
        }
    }
    if (n < 0) {
        _exit(71);
    }
}

static void more(struct child *c)
{
    uint8_t *room = buf_reserve(&c->in, READ_PORTION);
    if (room == NULL) {
        out_of_memory();
    }
    ssize_t n = read(CHILD_CALLS, room, READ_PORTION);
    if (n < 0 && errno == EINTR) {
        return;
    }
    if (n <= 0) {
        end();
    }
    buf_commit(&c->in, (size_t)n);
}

/* The first frame. */
static bool set_up(struct child *c)
{
    struct frame f;
    long n;
    while ((n = frame_parse(buf_data(&c->in), c->in.len, FRAME_TO_CHILD_MAX, &f)) == 0) {
        more(c);
    }
    if (n < 0 || f.kind != FRAME_SETUP) {
        return false;
    }
    struct rd r = rd_init(f.data, f.n);
    struct box_limits limits;
    limits.memory = rd_u64(&r);
    limits.memory_all = rd_u64(&r);
    limits.instructions = rd_u64(&r);
    limits.full = rd_u8(&r) != 0;
    buf_consume(&c->in, (size_t)n);
    boxes_init(&c->set, &limits);
    return rd_done(&r);
}

static void ready(struct child *c, int status)
{
    struct wr w = wr_init(&c->out);
    if (status == 0) {
        frame_end(&w, frame_begin(&w, FRAME_READY, 0));
    } else {
        answer(c, 0, status, "");
    }
    flush(c);
}

static void set_alarm(struct child *c)
{
    const struct itimerval cpu = {.it_value = {.tv_sec = CPU_SECONDS}};
    uint64_t now = now_ns();
    if (c->alarm_ns == 0 || now - c->alarm_ns > ALARM_NS) {
        setitimer(ITIMER_PROF, &cpu, NULL);
        c->alarm_ns = now;
    }
}

int child_main(void)
{
    struct child c = {0};
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, SIG_IGN); /* a supervisor sends it to all; ours ends us by its own end */
    signal(SIGINT, SIG_IGN);
    prctl(PR_SET_NAME, "symphony-policy", 0, 0, 0);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0 || !set_up(&c)) {
        return 71;
    }
    c.page = mmap(NULL, sizeof *c.page, PROT_READ | PROT_WRITE, MAP_SHARED, CHILD_PAGE, 0);
    if (c.page == MAP_FAILED) {
        return 71;
    }
    struct jail jail = {.fds = CHILD_FDS, .memory = c.set.limits.memory_all + OVERHEAD};
    int rv = jail_enter(&jail);
    ready(&c, rv);
    if (rv != 0) {
        return 71;
    }
    for (;;) {
        take_frames(&c);
        if (c.out.len > 0) {
            flush(&c);
        }
        more(&c);
        set_alarm(&c);
    }
}
