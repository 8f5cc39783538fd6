/* Who has shut himself in can compute, and nothing else. Each try in a process of its own. */
#include "check.h"

#include "sandbox/jail.h"

#include <errno.h>
#include <fcntl.h>
#include <seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { OUT = 3, KEPT, FIRST_CLOSED, MEMORY = 64 << 20 };

static bool outside; /* a filter of a supervisor is around it, as systemd's is */

static _Noreturn void shut_in(int (*what)(void))
{
    struct jail jail = {.fds = FIRST_CLOSED, .memory = MEMORY};
    _exit(jail_enter(&jail) == 0 ? what() : 98);
}

/* libseccomp looks but once at what it may do: what follows is for a program that begins anew. */
static _Noreturn void below_filter(unsigned what)
{
    char number[16];
    char *args[] = {(char *)"jail", number, NULL};
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);
    snprintf(number, sizeof number, "%u", what);
    if (seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(seccomp), 0) == 0 &&
        seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(close_range), 0) == 0 &&
        seccomp_load(ctx) == 0) {
        execv("/proc/self/exe", args);
    }
    _exit(97);
}

static int (*const deeds[19])(void);

/* How a process ends that shuts itself in and does a deed: its signal, or -status. */
static int fate(unsigned what)
{
    int status, fds[2];
    assert_int_equal(pipe(fds), 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(fds[1], OUT);
        dup2(OUT, KEPT);
        dup2(OUT, FIRST_CLOSED);
        if (outside) {
            below_filter(what);
        }
        shut_in(deeds[what]);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    close(fds[0]);
    close(fds[1]);
    return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
}

static int compute(void)
{
    struct timespec ts;
    char *memory = malloc(8 << 20);
    memset(memory, 1, 8 << 20);
    memory = realloc(memory, 16 << 20);
    int sum = memory[100];
    free(memory);
    return sum != 1 || clock_gettime(CLOCK_MONOTONIC, &ts) != 0 || time(NULL) == 0;
}

static int use_memory(void)
{
    size_t n = 0;
    while (malloc(1 << 20) != NULL) {
        n++;
    }
    return n < 32 || n > 80;
}

static int closed_fd(void)
{
    return write(FIRST_CLOSED, "x", 1) == -1 && errno == EBADF && write(KEPT, "x", 1) != -1 ? 0 : 1;
}

static int do_open(void)
{
    return open("/etc/passwd", O_RDONLY) < 0 ? 3 : 4;
}

static int do_stat(void)
{
    struct stat st;
    return stat("/", &st);
}

static int do_unlink(void)
{
    return unlink("/tmp/nothing-of-that-name");
}

static int do_socket(void)
{
    return socket(AF_INET, SOCK_STREAM, 0);
}

static int do_fork(void)
{
    return fork() == 0 ? 0 : 1;
}

static int do_exec(void)
{
    char *args[] = {(char *)"true", NULL};
    return execv("/bin/true", args);
}

static int do_kill(void)
{
    return kill(getppid(), 0);
}

static int do_ptrace(void)
{
    return (int)ptrace(PTRACE_TRACEME, 0, NULL, NULL);
}

static int do_truncate(void)
{
    return ftruncate(KEPT, 0);
}

static int do_dup(void)
{
    return dup(KEPT);
}

static int executable_memory(void)
{
    return mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
           MAP_FAILED;
}

static int make_executable(void)
{
    void *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return mprotect(memory, 4096, PROT_READ | PROT_EXEC);
}

static int map_file(void)
{
    return mmap(NULL, 4096, PROT_READ, MAP_SHARED, KEPT, 0) == MAP_FAILED;
}

static int raise_limit(void)
{
    struct rlimit lim = {64, 64};
    return setrlimit(RLIMIT_NOFILE, &lim);
}

static int change_self(void)
{
    return prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

static int rise(void)
{
    return setuid(0);
}

/* First what may be done. */
enum { ALLOWED = 2, N_DEEDS = 18, USE_MEMORY = N_DEEDS };
static int (*const deeds[N_DEEDS + 1])(void) = {compute, closed_fd, do_open, do_stat, do_unlink, do_socket,
    do_fork, do_exec, do_kill, do_ptrace, do_truncate, do_dup, executable_memory, make_executable, map_file,
    raise_limit, change_self, rise, use_memory};

static void all(void)
{
    for (unsigned i = 0; i < N_DEEDS; i++) {
        int how = fate(i);
        if (how != (i < ALLOWED ? 0 : SIGSYS)) {
            fail_msg("%u: ended with %d", i, how);
        }
    }
#ifndef __SANITIZE_ADDRESS__
    assert_int_equal(fate(USE_MEMORY), 0); /* a sanitizer needs all that there is */
#endif
}

static void what_may_be_done(void **state)
{
    (void)state;
    outside = false;
    all();
}

static void below_another_filter(void **state)
{
    (void)state;
    outside = true;
    all();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_may_be_done),
        cmocka_unit_test(below_another_filter),
    };
    if (argc > 1) {
        shut_in(deeds[strtoul(argv[1], NULL, 10) % (N_DEEDS + 1)]);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
