/* A child that is no longer ours: it sends what it should not, or nothing, or does not read. The host answers every call,
 * holds nothing without bound, and goes on. This program is the child, too; the file "mode" in its folder says how it
 * is bad. */
#include "sandbox_support.h"

#include "base/log.h"
#include "sandbox/child.h"
#include "sandbox/child_proc.h"
#include "sandbox/frame.h"
#include "sandbox/host.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

static uv_loop_t loop;
static struct host *host;
static char folder[] = "/tmp/symphony-hostile-XXXXXX";

/* --- the bad child --- */

static void put(const void *data, size_t n)
{
    for (size_t done = 0; done < n;) {
        ssize_t now = write(CHILD_CALLS, (const char *)data + done, n - done);
        if (now <= 0) {
            _exit(1);
        }
        done += (size_t)now;
    }
}

static void put_frame(struct buf *out, enum frame_kind kind, uint32_t id, int status, const char *text)
{
    struct wr w = wr_init(out);
    struct frame_answer answer = {
        .status = status, .policy = "", .message = "", .data = (const uint8_t *)text, .n = strlen(text)};
    buf_clear(out);
    if (kind == FRAME_ANSWER) {
        frame_put_answer(&w, id, &answer);
    } else {
        frame_end(&w, frame_begin(&w, kind, id));
    }
}

static void send_frame(enum frame_kind kind, uint32_t id, int status, const char *text)
{
    static struct buf out;
    put_frame(&out, kind, id, status, text);
    put(buf_data(&out), out.len);
}

/* The id of the next frame from the host. */
static uint32_t next_id(void)
{
    static struct buf in;
    struct frame f;
    long n;
    while ((n = frame_parse(buf_data(&in), in.len, FRAME_TO_CHILD_MAX, &f)) == 0) {
        uint8_t *room = buf_reserve(&in, 4096);
        ssize_t got = read(CHILD_CALLS, room, 4096);
        if (got <= 0) {
            _exit(0);
        }
        buf_commit(&in, (size_t)got);
    }
    uint32_t id = f.id;
    buf_consume(&in, (size_t)n);
    return id;
}

static uint32_t asked_for; /* the call in whose name the state is asked */

static void ask_state(uint8_t kind, uint32_t limit, const char *key)
{
    struct buf out = {0};
    struct wr w = wr_init(&out);
    wr_u32(&w, (uint32_t)(9 + strlen(key)));
    wr_u8(&w, kind);
    wr_u32(&w, asked_for);
    wr_u32(&w, limit);
    wr_bytes(&w, key, strlen(key));
    if (write(CHILD_READS, buf_data(&out), out.len) < 0) {
        _exit(1);
    }
    buf_free(&out);
}

/* Waits for the end of one answer about the state. */
static void take_state(void)
{
    uint8_t data[4096];
    if (read(CHILD_READS, data, sizeof data) <= 0) {
        _exit(0);
    }
}

static int bad_child(void)
{
    char mode[32] = "";
    int fd = open("mode", O_RDONLY);
    ssize_t got = read(fd, mode, sizeof mode - 1);
    mode[got > 0 ? got : 0] = '\0';
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    struct frame_page *page = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, CHILD_PAGE, 0);
#define IS(name) (strcmp(mode, name) == 0)
    if (IS("never ready")) {
        pause();
    }
    if (IS("exits")) {
        return 1;
    }
    if (IS("garbage")) {
        for (int i = 0;; i++) {
            put(&i, sizeof i);
        }
    }
    if (IS("not shut in")) {
        send_frame(FRAME_ANSWER, 0, SYM_EIO, "");
        pause();
    }
    if (IS("does not read")) {
        send_frame(FRAME_READY, 0, 0, "");
        pause();
    }
    next_id();
    send_frame(FRAME_READY, 0, 0, "");
    if (IS("ready again")) {
        send_frame(FRAME_READY, 0, 0, "");
    }
    if (IS("unasked")) {
        send_frame(FRAME_ANSWER, 9999, 0, "{}");
    }
    if (IS("untaken reads")) {
        struct pollfd answer = {.fd = CHILD_READS, .events = POLLIN};
        for (;;) {
            ask_state(READ_GET, 0, "/kv/a");
            poll(&answer, 1, -1);
            usleep(asked_for++ > 0 ? 100000 : 0); /* two that come at once are another matter */
        }
    }
    uint32_t id = next_id();
    page->id = asked_for = id;
    if (IS("flood")) {
        for (;;) {
            send_frame(FRAME_ANSWER, id, 0, "{}");
        }
    } else if (IS("other id")) {
        send_frame(FRAME_ANSWER, id + 1, 0, "{}");
    } else if (IS("long frame")) {
        static const uint8_t header[FRAME_HEADER] = {0xff, 0xff, 0xff, 0xff, FRAME_ANSWER};
        put(header, sizeof header);
    } else if (IS("endless frame")) {
        uint8_t header[FRAME_HEADER + 4096] = {0, 0, 0x3f, 0, FRAME_ANSWER};
        put(header, sizeof header);
        for (;;) {
            put(header + FRAME_HEADER, 100); /* never whole: it is killed at the deadline, or before */
            if (page->policy[0] == 1) {
                break;
            }
        }
    } else if (IS("no answer")) {
        page->id = 77;
        for (size_t i = 0; i < sizeof page->policy; i++) {
            page->policy[i] = '\n';
        }
    } else if (IS("changes the page")) {
        for (uint32_t i = 0;; i++) {
            page->id = id + i % 2;
        }
    } else if (IS("no JSON")) {
        send_frame(FRAME_ANSWER, id, 0, "\xff{]");
        send_frame(FRAME_ANSWER, next_id(), 0, "\xff{]");
        send_frame(FRAME_ANSWER, next_id(), 0, "\xff{]");
    } else if (IS("status")) {
        send_frame(FRAME_ANSWER, id, -200, "");
    } else if (IS("closes")) {
        close(CHILD_CALLS);
        close(CHILD_READS);
    } else if (IS("two reads")) {
        ask_state(READ_GET, 0, "/kv/a");
        ask_state(READ_GET, 0, "/kv/a");
        ask_state(READ_GET, 0, "/kv/a");
    } else if (IS("read kind")) {
        ask_state(9, 0, "/kv/a");
    } else if (IS("read limit")) {
        ask_state(READ_LIST, 1000000, "/kv/a");
    } else if (IS("long read")) {
        char key[READS_KEY_MAX + 2];
        memset(key, 'a', sizeof key);
        key[sizeof key - 1] = '\0';
        ask_state(READ_GET, 0, key);
    } else if (IS("endless reads")) {
        for (;;) {
            ask_state(READ_GET, 0, "/secret/ca");
            take_state();
        }
    } else if (IS("one read too many") || IS("one count too many")) {
        bool counts = IS("one count too many");
        for (int i = 0; i <= (counts ? READS_MAX / 2 : READS_MAX); i++) {
            ask_state(counts ? READ_COUNT : READ_GET, 0, "/kv/a");
            take_state();
        }
        for (;; id = next_id()) {
            send_frame(FRAME_ANSWER, id, 0, "{}");
        }
    } else if (IS("read of another call")) {
        asked_for = id + 1000;
        ask_state(READ_GET, 0, "/kv/a");
        take_state();
        for (;; id = next_id()) {
            send_frame(FRAME_ANSWER, id, 0, "{}");
        }
    } else if (IS("talks afterwards")) {
        static const uint8_t header[FRAME_HEADER] = {0, 0, 0x3f, 0, FRAME_ANSWER};
        send_frame(FRAME_ANSWER, id, 0, "{}");
        send_frame(FRAME_ANSWER, next_id(), 0, "{}");
        send_frame(FRAME_ANSWER, next_id(), 0, "{}");
        put(header, sizeof header);
    }
    for (;;) {
        pause();
    }
}

/* --- the host --- */

static struct store *no_store(void *arg)
{
    (void)arg;
    return NULL;
}

static unsigned answered, failed;

static void count(void *arg, const struct host_answer *answer)
{
    (void)arg;
    answered++;
    failed += answer->status != 0;
}

static int set_up(void **state)
{
    (void)state;
    answered = failed = 0;
    log_setup(LOG_ERROR + 1, false);
    if (uv_loop_init(&loop) != 0 || host_new(&loop, no_store, NULL, &host) != 0) {
        return -1;
    }
    host_configure(host, &(struct host_config){.deadline_ms = 20, .load_deadline_ms = 20});
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    host_close(host);
    uv_run(&loop, UV_RUN_DEFAULT);
    return uv_loop_close(&loop);
}

static void be(const char *mode)
{
    int fd = open("mode", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_int_equal(write(fd, mode, strlen(mode)), strlen(mode));
    close(fd);
}

static int call(const char *input, size_t n)
{
    struct host_call call = {.hook = "admit.change", .input = input, .n_input = n};
    return host_call(host, &call, count, NULL);
}

/* A few calls to a child that is @mode: each is answered, and none well. */
static void one_mode(const char *mode)
{
    struct host_stats stats;
    be(mode);
    for (int i = 0; i < 3; i++) {
        OK(call("{}", 2));
    }
    while (answered < 3) {
        assert_true(uv_run(&loop, UV_RUN_ONCE) != 0);
    }
    host_stats(host, &stats);
    assert_int_equal(stats.waiting, 0);
    if (strcmp(mode, "no JSON") != 0 && strcmp(mode, "flood") != 0) {
        if (failed != 3 || stats.killed + stats.died == 0) {
            fail_msg("%s: %u failed", mode, failed);
        }
    }
}

static void bad_ones(void **state)
{
    static const char *const modes[] = {"exits", "garbage", "not shut in", "does not read", "ready again",
        "unasked", "flood", "other id", "long frame", "endless frame", "no answer", "changes the page",
        "no JSON", "status", "closes", "two reads", "read kind", "read limit", "long read", "endless reads",
        "one read too many", "one count too many", "read of another call"};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        assert_int_equal(set_up(state), 0);
        one_mode(modes[i]);
        assert_int_equal(tear_down(state), 0);
    }
}

/* One that has nothing to say any more and does so all the same, if only half of it, is ended. */
static void talks_afterwards(void **state)
{
    (void)state;
    struct host_stats stats = {0};
    be("talks afterwards");
    for (int i = 0; i < 3; i++) {
        OK(call("{}", 2));
    }
    uint64_t end = uv_hrtime() + 20000000000;
    while (stats.died == 0 && uv_hrtime() < end) {
        uv_run(&loop, UV_RUN_NOWAIT);
        host_stats(host, &stats);
    }
    assert_int_equal(answered, 3);
    assert_int_equal(failed, 0);
    assert_int_equal(stats.died, 1);
}

/* --- what it asks and does not take --- */

static struct {
    struct child_proc *child;
    unsigned reads;
    bool lost;
} alone;

static void alone_frame(void *arg, const struct frame *f)
{
    (void)arg;
    (void)f;
}

static bool alone_expects(void *arg)
{
    (void)arg;
    return true;
}

static void alone_read(void *arg, uint32_t id, enum read_kind kind, const char *key, size_t n, unsigned limit)
{
    struct buf answer = {0};
    (void)arg, (void)id, (void)kind, (void)key, (void)n, (void)limit;
    alone.reads++;
    assert_non_null(buf_reserve(&answer, READS_ANSWER_MAX));
    memset(answer.base, 0, READS_ANSWER_MAX);
    buf_commit(&answer, READS_ANSWER_MAX);
    child_proc_reply(alone.child, 0, &answer);
    buf_free(&answer);
}

static void alone_lost(void *arg)
{
    (void)arg;
    alone.lost = true;
    child_proc_kill(alone.child);
}

/* Answers are not heaped up for one that does not take them. */
static void untaken_reads(void **state)
{
    (void)state;
    static const struct child_ops ops = {alone_frame, alone_expects, alone_read, alone_lost};
    be("untaken reads");
    OK(child_proc_start(&loop, &ops, NULL, &alone.child));
    struct wr w = wr_init(child_proc_out(alone.child));
    frame_end(&w, frame_begin(&w, FRAME_SETUP, 0));
    child_proc_flush(alone.child);
    while (!alone.lost && alone.reads < 50) {
        assert_true(uv_run(&loop, UV_RUN_ONCE) != 0);
    }
    if (!alone.lost) {
        child_proc_kill(alone.child);
    }
    assert_in_range(alone.reads, 0, 2);
    assert_non_null(strstr(err_msg(), "before it has taken"));
}

/* What waits for a child that takes nothing is bounded. */
static void the_queue(void **state)
{
    (void)state;
    static char big[1 << 20];
    int rv = 0;
    unsigned taken = 0;
    memset(big, ' ', sizeof big);
    be("does not read");
    while ((rv = call(big, sizeof big)) == 0) {
        assert_true(++taken < 100);
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    assert_int_equal(rv, SYM_EBUSY);
    while (answered < taken) {
        /* With the last of them nothing may be left on the loop. */
        assert_true(uv_run(&loop, UV_RUN_ONCE) != 0 || answered == taken);
    }
    assert_int_equal(failed, taken);
    answered = 0;
    for (taken = 0; (rv = call("{}", 2)) == 0; taken++) {
        assert_true(taken <= HOST_QUEUE_MAX);
    }
    assert_int_equal(rv, SYM_EBUSY);
}

static void on_second(uv_timer_t *timer)
{
    uv_close((uv_handle_t *)timer, NULL);
    *(bool *)timer->data = true;
}

/* A child that ends at once is not started again and again without a pause. */
static void no_storm(void **state)
{
    (void)state;
    struct host_stats stats;
    static uv_timer_t second;
    bool over = false;
    be("exits");
    uv_timer_init(&loop, &second);
    second.data = &over;
    uv_timer_start(&second, on_second, 1000, 0);
    for (int i = 0; i < 100; i++) {
        OK(call("{}", 2));
    }
    while (!over) {
        uv_run(&loop, UV_RUN_ONCE);
    }
    host_stats(host, &stats);
    assert_in_range(stats.started, 2, 8);
}

int main(int argc, char **argv)
{
    if (child_asked(argc, argv)) {
        return bad_child();
    }
    assert_non_null(mkdtemp(folder));
    assert_int_equal(chdir(folder), 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_ones),
        cmocka_unit_test_setup_teardown(talks_afterwards, set_up, tear_down),
        cmocka_unit_test_setup_teardown(untaken_reads, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_queue, set_up, tear_down),
        cmocka_unit_test_setup_teardown(no_storm, set_up, tear_down),
    };
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    unlink("mode");
    failures += chdir("/") != 0 || rmdir(folder) != 0;
    return failures;
}
