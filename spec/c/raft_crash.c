/* What a crash leaves behind: managers as processes of their own that are killed in the middle of writing,
 * torn and damaged files, a full disk. Whatever was acknowledged is there afterwards. */
#include "raft_cluster.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>

/* --- a manager in a process of its own ---
 * Commands come as lines, "<number> <verb> ...", and each is answered by "<number> <code> <text>". */

struct child {
    struct cluster *c;
    struct manager *m;
    int fd;
    uv_poll_t poll;
    char in[65536];
    size_t n_in;
    bool over;
};

struct command {
    struct child *ch;
    char number[24];
};

static void say(struct child *ch, const char *number, const char *code, const char *text)
{
    char line[512];
    int n = snprintf(line, sizeof line, "%s %s %s\n", number, code, text);
    if (write(ch->fd, line, (size_t)n) != n) {
        _exit(3);
    }
}

static void on_command_done(void *arg, int status)
{
    struct command *cmd = arg;
    say(cmd->ch, cmd->number, err_name(status), status == 0 ? "" : err_msg());
    free(cmd);
}

static void on_put_done(void *arg, int status, const struct txn_result *result)
{
    struct command *cmd = arg;
    static const char *const names[] = {"applied", "conflict", "unknown"};
    char text[256];
    snprintf(text, sizeof text, "%s", status == 0 ? names[result->status] : err_msg());
    say(cmd->ch, cmd->number, err_name(status), text);
    free(cmd);
}

static void do_put(struct child *ch, struct command *cmd, const char *key, const char *value, size_t size)
{
    struct txn *t = calloc(1, sizeof *t);
    struct buf bytes = {0};
    char *padded = calloc(1, size + 256);
    size_t n = (size_t)sprintf(padded, "%s", value);
    n = n < size ? size : n;
    t->n_ops = 1;
    t->ops[0] = (struct txn_op){OP_PUT, {(const uint8_t *)key, strlen(key)}, {(uint8_t *)padded, n}};
    if (txn_encode(t, &bytes) != 0) {
        _exit(4);
    }
    rnode_submit(ch->m->node, buf_data(&bytes), bytes.len, 10000 * PATIENCE, on_put_done, cmd);
    buf_free(&bytes);
    free(padded);
    free(t);
}

static void child_stopped(void *arg)
{
    struct child *ch = arg;
    on_stopped(ch->m);
    uv_close((uv_handle_t *)&ch->poll, NULL);
    ch->over = true;
}

static void do_command(struct child *ch, char *line)
{
    char verb[32] = "", a[256] = "", b[256] = "", number[24] = "";
    sscanf(line, "%23s %31s %255s %255s", number, verb, a, b);
    struct command *cmd = malloc(sizeof *cmd);
    *cmd = (struct command){.ch = ch};
    snprintf(cmd->number, sizeof cmd->number, "%s", number);
    if (strcmp(verb, "put") == 0) {
        do_put(ch, cmd, a, b, 0);
        return;
    }
    if (strcmp(verb, "big") == 0) {
        do_put(ch, cmd, a, "x", strtoul(b, NULL, 10));
        return;
    }
    if (strcmp(verb, "read") == 0) {
        rnode_read(ch->m->node, 10000 * PATIENCE, on_command_done, cmd);
        return;
    }
    if (strcmp(verb, "add") == 0) {
        rnode_add(ch->m->node, strtoull(a, NULL, 10), b, on_command_done, cmd);
        return;
    }
    if (strcmp(verb, "voter") == 0) {
        rnode_assign(ch->m->node, strtoull(a, NULL, 10), ROLE_VOTER, on_command_done, cmd);
        return;
    }
    if (strcmp(verb, "standby") == 0) {
        rnode_assign(ch->m->node, strtoull(a, NULL, 10), ROLE_STANDBY, on_command_done, cmd);
        return;
    }
    char text[256] = "";
    struct rnode_status s;
    rnode_status(ch->m->node, &s);
    if (strcmp(verb, "role") == 0) {
        static const char *const names[] = {"standby", "voter", "spare"};
        for (unsigned i = 0; i < s.n_servers; i++) {
            if (s.servers[i].id == strtoull(a, NULL, 10)) {
                snprintf(text, sizeof text, "%s", names[s.servers[i].role]);
            }
        }
    } else if (strcmp(verb, "get") == 0) {
        snprintf(text, sizeof text, "%s", get(ch->m, a));
    } else if (strcmp(verb, "leader") == 0) {
        snprintf(text, sizeof text, "%" PRIu64, rnode_is_leader(ch->m->node) ? s.id : s.leader);
    } else if (strcmp(verb, "snapshot") == 0) {
        rnode_snapshot(ch->m->node);
    } else if (strcmp(verb, "no_space") == 0) {
        snprintf(text, sizeof text, "%d", s.no_space);
    } else if (strcmp(verb, "snapshot_index") == 0) {
        snprintf(text, sizeof text, "%" PRIu64, s.snapshot_index);
    } else if (strcmp(verb, "stop") == 0) {
        rnode_stop(ch->m->node, child_stopped, ch);
    }
    say(ch, number, "ok", text);
    free(cmd);
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    struct child *ch = poll->data;
    (void)status;
    (void)events;
    ssize_t n = read(ch->fd, ch->in + ch->n_in, sizeof ch->in - ch->n_in);
    if (n <= 0) {
        _exit(5); /* the test is over */
    }
    ch->n_in += (size_t)n;
    char *end;
    while ((end = memchr(ch->in, '\n', ch->n_in)) != NULL) {
        char line[1024];
        size_t len = (size_t)(end - ch->in);
        snprintf(line, sizeof line, "%.*s", (int)len, ch->in);
        ch->n_in -= len + 1;
        memmove(ch->in, end + 1, ch->n_in);
        do_command(ch, line);
    }
}

static void child_main(struct cluster *c, struct manager *m, int fd)
{
    static struct child ch;
    log_setup(getenv("RAFT_CRASH_LOG") != NULL ? LOG_DEBUG : LOG_ERROR, false);
    memset(&c->loop, 0, sizeof c->loop);
    uv_loop_init(&c->loop);
    ch = (struct child){.c = c, .m = m, .fd = fd};
    int rv = manager_try_start(m);
    if (rv != 0) {
        char text[400];
        snprintf(text, sizeof text, "%s", err_msg());
        say(&ch, "0", err_name(rv), text);
        _exit(6);
    }
    uv_poll_init(&c->loop, &ch.poll, fd);
    ch.poll.data = &ch;
    uv_poll_start(&ch.poll, UV_READABLE, on_readable);
    say(&ch, "0", "ok", "");
    uv_run(&c->loop, UV_RUN_DEFAULT);
    _exit(ch.over ? 0 : 7);
}

/* --- the test's side of it --- */

struct proc {
    struct manager *m;
    pid_t pid;
    int fd;
    char in[65536];
    size_t n_in;
    uint64_t next;
};

static void spawn(struct cluster *c, struct manager *m, struct proc *p)
{
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    m->starts++; /* the child counts its own copy */
    pid_t pid = fork_alone();
    assert_true(pid >= 0);
    if (pid == 0) {
        static const int crashes[] = {SIGSEGV, SIGABRT, SIGBUS, SIGILL, SIGFPE};
        for (unsigned i = 0; i < sizeof crashes / sizeof *crashes; i++) {
            signal(crashes[i], SIG_DFL);
        }
        close(fds[0]);
        m->starts--;
        child_main(c, m, fds[1]);
    }
    close(fds[1]);
    *p = (struct proc){.m = m, .pid = pid, .fd = fds[0], .next = 1};
}

static int reap(struct proc *p)
{
    int status = 0;
    assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
    close(p->fd);
    p->pid = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void kill_proc(struct proc *p)
{
    kill(p->pid, SIGKILL);
    assert_int_equal(reap(p), -SIGKILL);
}

static uint64_t tell(struct proc *p, const char *fmt, ...)
{
    char line[512];
    va_list args;
    int n = snprintf(line, sizeof line, "%" PRIu64 " ", p->next);
    va_start(args, fmt);
    n += vsnprintf(line + n, sizeof line - (size_t)n - 1, fmt, args);
    va_end(args);
    line[n++] = '\n';
    if (write(p->fd, line, (size_t)n) != n) {
        return 0;
    }
    return p->next++;
}

struct reply {
    uint64_t number;
    char code[32], text[512];
};

/* Puts of k<i> have their own numbers; which of them were acknowledged. */
enum { PUTS_MAX = 20000, PUT_NUMBER = 1000000 };
static bool acked[PUTS_MAX];
static unsigned next_put;

/* The next reply within @ms; false when none came or the process is gone. */
static bool hear(struct proc *p, int ms, struct reply *r)
{
    uint64_t end_at = now_ms() + (uint64_t)ms;
    *r = (struct reply){0};
    for (;;) {
        char *end = memchr(p->in, '\n', p->n_in);
        if (end != NULL) {
            *end = '\0';
            r->text[0] = '\0';
            sscanf(p->in, "%" SCNu64 " %31s %511[^\n]", &r->number, r->code, r->text);
            p->n_in -= (size_t)(end + 1 - p->in);
            memmove(p->in, end + 1, p->n_in);
            if (r->number >= PUT_NUMBER && strcmp(r->code, "ok") == 0) {
                acked[r->number - PUT_NUMBER] = true;
            }
            return true;
        }
        uint64_t now = now_ms();
        struct pollfd pfd = {.fd = p->fd, .events = POLLIN};
        if (now >= end_at && ms != 0) {
            return false;
        }
        if (poll(&pfd, 1, ms == 0 ? 0 : (int)(end_at - now)) <= 0) {
            if (ms == 0) {
                return false;
            }
            continue;
        }
        ssize_t n = read(p->fd, p->in + p->n_in, sizeof p->in - p->n_in);
        if (n <= 0) {
            return false;
        }
        p->n_in += (size_t)n;
    }
}

#define command(p, r, ...) command_(p, r, __LINE__, __VA_ARGS__)
/* One command and its answer. */
static void command_(struct proc *p, struct reply *r, int line, const char *fmt, const char *a, const char *b)
{
    uint64_t number = tell(p, fmt, a, b);
    do {
        if (!hear(p, 20000 * PATIENCE, r)) {
            fail_msg("line %d: no answer of manager %" PRIu64 " to: %s %s %s", line, p->m->id, fmt, a, b);
        }
    } while (r->number != number);
}

static void started(struct proc *p)
{
    struct reply r = {0};
    if (!hear(p, 20000 * PATIENCE, &r) || r.number != 0 || strcmp(r.code, "ok") != 0) {
        fail_msg("manager %" PRIu64 " did not start: %s %s", p->m->id, r.code, r.text);
    }
}

static void expect_get(struct proc *p, unsigned i)
{
    char key[32], value[32];
    struct reply r;
    snprintf(key, sizeof key, "k%u", i);
    snprintf(value, sizeof value, "v%u", i);
    command(p, &r, "get %s", key, "");
    if (strcmp(r.text, value) != 0) {
        fail_msg("manager %" PRIu64 ": %s was acknowledged and is \"%s\"", p->m->id, key, r.text);
    }
}

static void stop_proc(struct proc *p)
{
    struct reply r;
    command(p, &r, "stop", "", "");
    assert_int_equal(reap(p), 0);
}

/* --- one manager --- */

static unsigned seed(void)
{
    const char *s = getenv("SEED");
    return s != NULL ? (unsigned)strtoul(s, NULL, 10) : (unsigned)time(NULL);
}

static void lone_cluster(struct cluster *c)
{
    cluster_open(c);
    struct manager *m = manager_new(c, 0);
    check_ok(rnode_bootstrap(m->raft_dir, m->id, m->address));
}

/* Keeps 32 puts under way until @n are acknowledged, and leaves the rest of them under way. */
static void put_until(struct proc *p, unsigned n)
{
    unsigned done = 0, under_way = 0;
    while (done < n) {
        while (under_way < 32 && next_put < PUTS_MAX) {
            char line[64];
            int len =
                snprintf(line, sizeof line, "%u put k%u v%u\n", PUT_NUMBER + next_put, next_put, next_put);
            assert_int_equal(write(p->fd, line, (size_t)len), len);
            next_put++;
            under_way++;
        }
        struct reply r;
        if (!hear(p, 20000 * PATIENCE, &r)) {
            fail_msg("manager %" PRIu64 ": no answer to puts, %u under way", p->m->id, under_way);
        }
        if (r.number >= PUT_NUMBER + next_put - under_way) {
            under_way--;
            done += strcmp(r.code, "ok") == 0;
        }
    }
}

static void begin_puts(void)
{
    memset(acked, 0, sizeof acked);
    next_put = 0;
}

static void killed_while_writing(void **state)
{
    (void)state;
    enum { ROUNDS = 8 };
    struct cluster c;
    struct proc p;
    unsigned s = seed();
    printf("SEED=%u\n", s);
    srand(s);
    begin_puts();
    lone_cluster(&c);
    struct manager *m = &c.managers[0];
    for (unsigned round = 0; round < ROUNDS; round++) {
        if (round % 2 == 1) {
            remove_tree(m->state_dir); /* from the log alone */
        }
        spawn(&c, m, &p);
        started(&p);
        if (round == ROUNDS / 2) {
            struct reply r;
            command(&p, &r, "snapshot", "", "");
        }
        put_until(&p, 50 + (unsigned)rand() % 500);
        kill_proc(&p);
    }
    spawn(&c, m, &p);
    started(&p);
    struct reply r;
    command(&p, &r, "read", "", "");
    assert_string_equal(r.code, "ok");
    unsigned n = 0;
    for (unsigned i = 0; i < next_put; i++) {
        if (acked[i]) {
            expect_get(&p, i);
            n++;
        }
    }
    printf("%u acknowledged writes over %d kills, all there\n", n, ROUNDS);
    stop_proc(&p);
    cluster_close(&c);
}

/* The file in the raft folder whose name begins with @prefix and that has something in it (or the first one
 * at all). */
static bool find_file(struct manager *m, const char *prefix, char path[512])
{
    DIR *d = opendir(m->raft_dir);
    struct dirent *e;
    bool found = false;
    while (!found && (e = readdir(d)) != NULL) {
        if (strncmp(e->d_name, prefix, strlen(prefix)) == 0 && strstr(e->d_name, ".meta") == NULL) {
            char head[8] = {0};
            snprintf(path, 512, "%s/%s", m->raft_dir, e->d_name);
            int fd = open(path, O_RDONLY);
            found = pread(fd, head, sizeof head, 0) == sizeof head && head[0] != 0;
            close(fd);
        }
    }
    closedir(d);
    return found;
}

/* Where what was written ends. */
static off_t end_of_data(const char *path)
{
    int fd = open(path, O_RDONLY);
    struct stat st;
    off_t at = 0;
    static char block[4096];
    fstat(fd, &st);
    for (off_t o = 0; o < st.st_size; o += (off_t)sizeof block) {
        ssize_t n = pread(fd, block, sizeof block, o);
        for (ssize_t i = 0; i < n; i++) {
            if (block[i] != 0) {
                at = o + i + 1;
            }
        }
    }
    close(fd);
    return (at + 7) & ~(off_t)7;
}

static void flip(const char *path, off_t at)
{
    char byte;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 0x40;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

static void expect_corrupt(struct cluster *c, struct manager *m, const char *name)
{
    struct proc p;
    struct reply r;
    spawn(c, m, &p);
    assert_true(hear(&p, 20000 * PATIENCE, &r));
    if (strcmp(r.code, "corrupt") != 0 || strstr(r.text, name) == NULL) {
        fail_msg("damage to %s: %s: %s", name, r.code, r.text);
    }
    assert_int_equal(reap(&p), 6);
    printf("%s\n", r.text);
}

static const char *base_name(const char *path)
{
    return strrchr(path, '/') + 1;
}

/* The closed segment with the highest entries. */
static void last_segment(struct manager *m, char path[512])
{
    DIR *d = opendir(m->raft_dir);
    struct dirent *e;
    char last[64] = "";
    while ((e = readdir(d)) != NULL) {
        if (e->d_name[0] == '0' && strcmp(e->d_name, last) > 0) {
            snprintf(last, sizeof last, "%s", e->d_name);
        }
    }
    closedir(d);
    assert_string_not_equal(last, "");
    snprintf(path, 512, "%s/%s", m->raft_dir, last);
}

static void torn_and_damaged_segments(void **state)
{
    (void)state;
    struct cluster c;
    struct proc p;
    struct reply r;
    char path[512];
    begin_puts();
    lone_cluster(&c);
    struct manager *m = &c.managers[0];
    spawn(&c, m, &p);
    started(&p);
    put_until(&p, 300);
    kill_proc(&p);

    /* A write that was cut short: its first half is there. */
    assert_true(find_file(m, "open-", path));
    off_t end = end_of_data(path);
    int fd = open(path, O_RDWR);
    static const uint8_t half[24] = {1, 2, 3, 4, 5, 6, 7, 8, 1};
    assert_int_equal(pwrite(fd, half, sizeof half, end), sizeof half);
    close(fd);
    spawn(&c, m, &p);
    started(&p);
    command(&p, &r, "read", "", "");
    for (unsigned i = 0; i < next_put; i++) {
        if (acked[i]) {
            expect_get(&p, i);
        }
    }
    put_until(&p, 100);
    kill_proc(&p);

    /* The same, but with another one behind it that was written to later. */
    char whole[600], second[600];
    snprintf(whole, sizeof whole, "%s/whole", c.dir);
    copy_tree(m->raft_dir, whole);
    assert_true(find_file(m, "open-", path));
    snprintf(second, sizeof second, "%s/open-99", m->raft_dir);
    copy_tree(path, second);
    end = end_of_data(path);
    fd = open(path, O_RDWR);
    assert_int_equal(pwrite(fd, half, sizeof half, end), sizeof half);
    close(fd);
    expect_corrupt(&c, m, base_name(path));
    copy_tree(whole, m->raft_dir);

    /* A bit that turned in the middle of an open segment: what comes after it was acknowledged. */
    assert_true(find_file(m, "open-", path));
    flip(path, 200);
    expect_corrupt(&c, m, base_name(path));
    flip(path, 200);

    /* The same in a closed one. */
    assert_true(find_file(m, "0", path));
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    flip(path, st.st_size - 20);
    expect_corrupt(&c, m, base_name(path));
    flip(path, st.st_size - 20);

    /* Cut short. */
    char copy[600];
    snprintf(copy, sizeof copy, "%s/aside", c.dir);
    spawn(&c, m, &p);
    started(&p);
    stop_proc(&p);
    assert_true(find_file(m, "0", path));
    assert_int_equal(rename(path, copy), 0);
    /* Missing: what the state holds is not in the log. */
    expect_corrupt(&c, m, "segment");
    assert_int_equal(rename(copy, path), 0);

    /* In the last one, which libraft would put aside to go on without it. */
    spawn(&c, m, &p);
    started(&p);
    stop_proc(&p);
    last_segment(m, path);
    assert_int_equal(stat(path, &st), 0);
    flip(path, st.st_size - 20);
    expect_corrupt(&c, m, base_name(path));
    flip(path, st.st_size - 20); /* it is still there */

    spawn(&c, m, &p);
    started(&p);
    command(&p, &r, "read", "", "");
    for (unsigned i = 0; i < next_put; i++) {
        if (acked[i]) {
            expect_get(&p, i);
        }
    }
    stop_proc(&p);
    cluster_close(&c);
}

static bool find_snapshot(struct manager *m, unsigned long long index, char path[512])
{
    DIR *d = opendir(m->raft_dir);
    struct dirent *e;
    bool found = false;
    while (!found && (e = readdir(d)) != NULL) {
        unsigned long long at = 0;
        found = sscanf(e->d_name, "snapshot-%*u-%llu", &at) == 1 && at == index &&
                strstr(e->d_name, ".meta") == NULL;
        snprintf(path, 512, "%s/%s", m->raft_dir, e->d_name);
    }
    closedir(d);
    return found;
}

static void lost_tail_and_damaged_snapshot(void **state)
{
    (void)state;
    struct cluster c;
    struct proc p;
    struct reply r;
    char path[512];
    lone_cluster(&c);
    struct manager *m = &c.managers[0];
    spawn(&c, m, &p);
    started(&p);
    command(&p, &r, "put %s %s", "k0", "v0");
    command(&p, &r, "snapshot", "", "");
    do {
        command(&p, &r, "snapshot_index", "", "");
    } while (strcmp(r.text, "0") == 0);
    command(&p, &r, "put %s %s", "k1", "v1");
    kill_proc(&p);

    /* The last open segment is gone: the log ends before the state. */
    char aside[600];
    snprintf(aside, sizeof aside, "%s/aside", c.dir);
    assert_true(find_file(m, "open-", path));
    assert_int_equal(rename(path, aside), 0);
    expect_corrupt(&c, m, "the log ends at");
    assert_int_equal(rename(aside, path), 0);

    /* The snapshot's bytes are wrong, and the state that would make up for it is gone. */
    char state_aside[600];
    snprintf(state_aside, sizeof state_aside, "%s/state-aside", c.dir);
    assert_true(find_file(m, "snapshot-", path));
    assert_int_equal(rename(m->state_dir, state_aside), 0);
    flip(path, 40);
    expect_corrupt(&c, m, base_name(path));
    flip(path, 40);
    remove_tree(m->state_dir);

    spawn(&c, m, &p);
    started(&p);
    command(&p, &r, "read", "", "");
    expect_get(&p, 0);
    expect_get(&p, 1);

    /* libraft would go on with the one before it. */
    unsigned long long index = 0, newest = 0;
    command(&p, &r, "snapshot_index", "", "");
    sscanf(r.text, "%llu", &index);
    command(&p, &r, "snapshot", "", "");
    do {
        command(&p, &r, "snapshot_index", "", "");
        sscanf(r.text, "%llu", &newest);
    } while (newest == index);
    kill_proc(&p);
    char meta[600];
    assert_true(find_snapshot(m, newest, path));
    snprintf(meta, sizeof meta, "%s.meta", path);
    flip(meta, 20);
    expect_corrupt(&c, m, base_name(path));
    flip(meta, 20);
    spawn(&c, m, &p);
    started(&p);
    stop_proc(&p);
    cluster_close(&c);
}

static void damaged_metadata_and_half_a_bootstrap(void **state)
{
    (void)state;
    struct cluster c;
    struct proc p;
    struct reply r;
    char path[512], one[512];
    lone_cluster(&c);
    struct manager *m = &c.managers[0];
    spawn(&c, m, &p);
    started(&p);
    stop_proc(&p);
    snprintf(path, sizeof path, "%s/metadata1", m->raft_dir);
    int fd = open(path, O_WRONLY | O_APPEND);
    assert_int_equal(write(fd, "too long", 8), 8);
    close(fd);
    expect_corrupt(&c, m, "metadata1");
    cluster_close(&c);

    /* It died after it had written the term. */
    lone_cluster(&c);
    m = &c.managers[0];
    assert_true(find_file(m, "0", one));
    assert_int_equal(remove(one), 0);
    check_ok(rnode_bootstrap(m->raft_dir, m->id, m->address));
    spawn(&c, m, &p);
    started(&p);
    command(&p, &r, "put %s %s", "k0", "v0");
    command(&p, &r, "put %s %s", "k1", "v1");
    stop_proc(&p);

    /* A truncation that died between its two steps: the shorter segment is there beside the longer one. */
    assert_true(find_file(m, "0000000000000002-", one));
    snprintf(path, sizeof path, "%s/0000000000000002-0000000000000002", m->raft_dir);
    assert_string_not_equal(path, one);
    close(open(path, O_WRONLY | O_CREAT, 0600));
    spawn(&c, m, &p);
    started(&p);
    assert_int_equal(access(path, F_OK), -1);
    stop_proc(&p);
    cluster_close(&c);
}

/* --- three managers --- */

static struct proc *find_leader(struct proc *procs, unsigned n)
{
    for (unsigned tries = 0; tries < 20000; tries++) {
        for (unsigned i = 0; i < n; i++) {
            struct reply r;
            if (procs[i].pid == 0) {
                continue;
            }
            command(&procs[i], &r, "leader", "", "");
            unsigned id = (unsigned)strtoul(r.text, NULL, 10);
            for (unsigned k = 0; k < n; k++) {
                if (procs[k].pid != 0 && procs[k].m->id == id) {
                    return &procs[k];
                }
            }
        }
        usleep(5000);
    }
    fail_msg("no leader");
    return NULL;
}

static void until_ok(struct proc *p, const char *fmt, const char *a, const char *b)
{
    struct reply r;
    uint64_t end = now_ms() + 20000 * PATIENCE;
    do {
        command(p, &r, fmt, a, b);
        if (strcmp(r.code, "ok") != 0) {
            usleep(20000);
        }
    } while (strcmp(r.code, "ok") != 0 && now_ms() < end);
    if (strcmp(r.code, "ok") != 0) {
        fail_msg("%s %s %s: %s %s", fmt, a, b, r.code, r.text);
    }
}

static int by_size(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

static void three_processes(struct cluster *c, struct proc procs[3])
{
    for (unsigned i = 0; i < 3; i++) {
        struct manager *m = manager_new(c, i);
        if (i == 0) {
            check_ok(rnode_bootstrap(m->raft_dir, m->id, m->address));
        }
    }
    for (unsigned i = 0; i < 3; i++) {
        spawn(c, &c->managers[i], &procs[i]);
        started(&procs[i]);
    }
    struct reply r;
    command(&procs[0], &r, "read", "", "");
    until_ok(&procs[0], "add 2 %s", c->managers[1].address, "");
    until_ok(&procs[0], "voter 2", "", "");
    until_ok(&procs[0], "add 3 %s", c->managers[2].address, "");
    until_ok(&procs[0], "voter 3", "", "");
}

static void leader_killed_again_and_again(void **state)
{
    (void)state;
    enum { KILLS = 12 };
    struct cluster c;
    struct proc procs[3];
    unsigned s = seed();
    int took[KILLS];
    printf("SEED=%u\n", s);
    srand(s);
    begin_puts();
    struct reply r;
    cluster_open(&c);
    three_processes(&c, procs);
    for (unsigned kills = 0; kills < KILLS; kills++) {
        struct proc *lead = find_leader(procs, 3);
        struct proc *other = &procs[(unsigned)(lead - procs + 1 + rand() % 2) % 3];
        put_until(other, 50 + (unsigned)rand() % 100); /* forwarded */
        put_until(lead, 50 + (unsigned)rand() % 100);
        kill_proc(lead);
        uint64_t begun = now_ms();
        put_until(other, 1);
        took[kills] = (int)(now_ms() - begun);
        spawn(&c, lead->m, lead);
        started(lead);
        until_ok(lead, "read", "", "");
    }
    qsort(took, KILLS, sizeof *took, by_size);
    printf("kill -9 of the leader to the next acknowledged write: median %d ms, longest %d ms\n",
        took[KILLS / 2], took[KILLS - 1]);
    unsigned n = 0;
    for (unsigned i = 0; i < 3; i++) {
        command(&procs[i], &r, "read", "", "");
        assert_string_equal(r.code, "ok");
    }
    for (unsigned i = 0; i < next_put; i++) {
        if (acked[i]) {
            expect_get(&procs[i % 3], i);
            n++;
        }
    }
    printf("%u acknowledged writes over %d kills of the leader, all there\n", n, KILLS);
    /* All at once, as when the power goes; then back. */
    for (unsigned i = 0; i < 3; i++) {
        kill_proc(&procs[i]);
    }
    for (unsigned i = 0; i < 3; i++) {
        if (i == 1) {
            remove_tree(procs[i].m->state_dir);
        }
        spawn(&c, procs[i].m, &procs[i]);
    }
    for (unsigned i = 0; i < 3; i++) {
        started(&procs[i]);
        until_ok(&procs[i], "read", "", "");
    }
    for (unsigned i = 0; i < next_put; i++) {
        if (acked[i]) {
            expect_get(&procs[(i + 1) % 3], i);
        }
    }
    for (unsigned i = 0; i < 3; i++) {
        stop_proc(&procs[i]);
    }
    cluster_close(&c);
}

/* A leader that stands still keeps its connections; when it goes on it is a follower, and what was asked
 * of it meanwhile is answered. */
static void leader_stopped_in_its_tracks(void **state)
{
    (void)state;
    enum { STOPS = 4 };
    struct cluster c;
    struct proc procs[3];
    int took[STOPS];
    begin_puts();
    cluster_open(&c);
    three_processes(&c, procs);
    for (unsigned stops = 0; stops < STOPS; stops++) {
        struct proc *lead = find_leader(procs, 3);
        struct proc *other = &procs[(unsigned)(lead - procs + 1) % 3];
        put_until(lead, 20);
        kill(lead->pid, SIGSTOP);
        uint64_t begun = now_ms();
        tell(lead, "read", "", "");
        put_until(other, 1);
        took[stops] = (int)(now_ms() - begun);
        put_until(other, 50);
        kill(lead->pid, SIGCONT);
        until_ok(lead, "put %s %s", "last", "1");
    }
    qsort(took, STOPS, sizeof *took, by_size);
    printf("SIGSTOP of the leader to the next acknowledged write: median %d ms, longest %d ms\n",
        took[STOPS / 2], took[STOPS - 1]);
    for (unsigned i = 0; i < 3; i++) {
        until_ok(&procs[i], "read", "", "");
    }
    for (unsigned i = 0; i < next_put; i++) {
        if (acked[i]) {
            expect_get(&procs[i % 3], i);
        }
    }
    /* An orderly end hands over first. */
    struct proc *lead = find_leader(procs, 3);
    struct proc *other = &procs[(unsigned)(lead - procs + 1) % 3];
    tell(lead, "stop", "", "");
    uint64_t begun = now_ms();
    put_until(other, 1);
    printf("stop of the leader to the next acknowledged write: %d ms\n", (int)(now_ms() - begun));
    assert_int_equal(reap(lead), 0);
    for (unsigned i = 0; i < 3; i++) {
        if (procs[i].pid != 0) {
            stop_proc(&procs[i]);
        }
    }
    cluster_close(&c);
}

static bool has_role(struct proc *procs, const char *role)
{
    struct reply r;
    struct proc *lead = find_leader(procs, 2);
    command(lead, &r, "role 2", "", "");
    return strcmp(r.text, role) == 0;
}

/* Rule 12: through two voters, with one of both killed at some moment of each step. Whatever moment that
 * is, with both back the cluster goes on by itself. */
static void second_voter_with_kills_at_each_step(void **state)
{
    (void)state;
    enum { ROUNDS = 6 };
    unsigned s = seed();
    printf("SEED=%u\n", s);
    srand(s);
    for (unsigned round = 0; round < ROUNDS; round++) {
        static const char *const steps[] = {"standby 2", "voter 2"};
        static const char *const roles[] = {"standby", "voter"};
        struct cluster c;
        struct proc procs[2];
        cluster_open(&c);
        for (unsigned i = 0; i < 2; i++) {
            struct manager *m = manager_new(&c, i);
            if (i == 0) {
                check_ok(rnode_bootstrap(m->raft_dir, m->id, m->address));
            }
            spawn(&c, m, &procs[i]);
            started(&procs[i]);
        }
        struct reply r;
        command(&procs[0], &r, "read", "", "");
        until_ok(&procs[0], "add 2 %s", c.managers[1].address, "");
        for (unsigned step = 0; step < 2; step++) {
            struct proc *lead = find_leader(procs, 2);
            struct proc *victim = &procs[(round + step) % 2];
            tell(lead, "%s", steps[step]);
            usleep((unsigned)rand() % 6000);
            kill_proc(victim);
            usleep((unsigned)rand() % 20000);
            spawn(&c, victim->m, victim);
            started(victim);
            for (unsigned tries = 0; !has_role(procs, roles[step]) && tries < 1000; tries++) {
                struct reply ignored;
                command(find_leader(procs, 2), &ignored, steps[step], "", "");
                usleep(10000);
            }
            assert_true(has_role(procs, roles[step]));
        }
        for (unsigned i = 0; i < 2; i++) {
            until_ok(&procs[i], "put %s %s", "k", "v");
            until_ok(&procs[i], "read", "", "");
        }
        for (unsigned i = 0; i < 2; i++) {
            stop_proc(&procs[i]);
        }
        cluster_close(&c);
    }
}

/* --- a full disk --- */

static void full_disk(void **state)
{
    (void)state;
    struct cluster c;
    struct proc p;
    struct reply r;
    char disk[200], fill[256];
    cluster_open(&c);
    snprintf(disk, sizeof disk, "%s/disk", c.dir);
    assert_int_equal(mkdir(disk, 0700), 0);
    /* In a mount namespace of this process's own, which takes the disk with it whatever happens. */
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", disk, "tmpfs", 0, "size=160m") != 0) {
        printf("skipped: cannot mount a small file system here (%s)\n", strerror(errno));
        cluster_close(&c);
        skip();
    }
    struct manager *m = manager_new(&c, 0);
    c.disk_floor = 24 << 20;
    c.quota = 32 << 20;
    snprintf(m->raft_dir, sizeof m->raft_dir, "%s/raft", disk);
    snprintf(m->state_dir, sizeof m->state_dir, "%s/state", disk);
    check_ok(rnode_bootstrap(m->raft_dir, m->id, m->address));
    spawn(&c, m, &p);
    started(&p);
    command(&p, &r, "put %s %s", "k0", "v0");
    assert_string_equal(r.code, "ok");
    char reserve[256];
    struct stat st;
    snprintf(reserve, sizeof reserve, "%s/reserve", m->raft_dir);
    assert_int_equal(stat(reserve, &st), 0);
    assert_true(st.st_size >= 16 << 20);

    /* Somebody else fills it to the brim. */
    snprintf(fill, sizeof fill, "%s/fill", disk);
    int fd = open(fill, O_WRONLY | O_CREAT, 0600);
    static char block[1 << 16];
    memset(block, 1, sizeof block);
    while (write(fd, block, sizeof block) == sizeof block) {
    }
    close(fd);
    do {
        command(&p, &r, "no_space", "", "");
    } while (strcmp(r.text, "1") != 0);
    command(&p, &r, "put %s %s", "k1", "v1");
    assert_string_equal(r.code, "no_space");
    command(&p, &r, "read", "", "");
    assert_string_equal(r.code, "ok");
    uint64_t end = now_ms() + 10000 * PATIENCE;
    while (stat(reserve, &st) == 0 && now_ms() < end) {
        usleep(10000); /* it is given up */
    }
    assert_int_not_equal(stat(reserve, &st), 0);
    /* It lives through a restart, too. */
    kill_proc(&p);
    spawn(&c, m, &p);
    started(&p);
    command(&p, &r, "read", "", "");
    expect_get(&p, 0);
    command(&p, &r, "put %s %s", "k1", "v1");
    assert_string_equal(r.code, "no_space");

    /* Room again. */
    assert_int_equal(remove(fill), 0);
    until_ok(&p, "put %s %s", "k1", "v1");
    expect_get(&p, 1);
    while (stat(reserve, &st) != 0 && now_ms() < end + 10000 * PATIENCE) {
        usleep(10000);
    }
    assert_int_equal(stat(reserve, &st), 0);
    stop_proc(&p);
    assert_int_equal(umount(disk), 0);
    cluster_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(killed_while_writing),
        cmocka_unit_test(torn_and_damaged_segments),
        cmocka_unit_test(lost_tail_and_damaged_snapshot),
        cmocka_unit_test(damaged_metadata_and_half_a_bootstrap),
        cmocka_unit_test(leader_killed_again_and_again),
        cmocka_unit_test(leader_stopped_in_its_tracks),
        cmocka_unit_test(second_voter_with_kills_at_each_step),
        cmocka_unit_test(full_disk),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
