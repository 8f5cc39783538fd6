#include "sandbox/jail.h"

#include "base/err.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

enum { FEW = 1024 };

/* When memory runs out, this one goes first: it is made anew. */
static void volunteer(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        ssize_t n = write(fd, "800", 3);
        (void)n;
        close(fd);
    }
}

static int limit(int what, rlim_t most)
{
    struct rlimit lim = {most, most};
    return setrlimit(what, &lim) == 0 ? 0 : err_sysf(errno, "limit %d", what);
}

static size_t address_space(void)
{
    char text[64] = "";
    int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        ssize_t n = read(fd, text, sizeof text - 1);
        close(fd);
        text[n > 0 ? n : 0] = '\0';
    }
    return strtoul(text, NULL, 10) * (size_t)sysconf(_SC_PAGESIZE);
}

static int set_limits(const struct jail *jail)
{
    size_t used = address_space();
    int rv = SANITIZED || used == 0 ? 0 : limit(RLIMIT_AS, used + jail->memory);
    rv = rv != 0 ? rv : limit(RLIMIT_CORE, 0);
    rv = rv != 0 ? rv : limit(RLIMIT_FSIZE, 0);
    rv = rv != 0 ? rv : limit(RLIMIT_NPROC, 0);
    rv = rv != 0 ? rv : limit(RLIMIT_MEMLOCK, 0);
    rv = rv != 0 ? rv : limit(RLIMIT_MSGQUEUE, 0);
    return rv != 0 ? rv : limit(RLIMIT_NOFILE, 0);
}

/* A service's own filter may not let us; then it is not root's, and has none. */
static int drop_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2];
    memset(none, 0, sizeof none);
    return syscall(SYS_capset, &header, none) == 0 || geteuid() != 0 ? 0 : err_sysf(errno, "capabilities");
}

/* There should be none: ours are closed when a program is started. */
static void close_above(int first)
{
    if (close_range((unsigned)first, ~0U, 0) != 0) {
        for (int fd = first; fd < FEW; fd++) {
            close(fd);
        }
    }
}

static int filter_calls(void)
{
    static const int allowed[] = {
        SCMP_SYS(read),
        SCMP_SYS(write),
        SCMP_SYS(readv),
        SCMP_SYS(writev),
        SCMP_SYS(poll),
        SCMP_SYS(ppoll),
        SCMP_SYS(brk),
        SCMP_SYS(munmap),
        SCMP_SYS(mremap),
        SCMP_SYS(madvise),
        SCMP_SYS(futex),
        SCMP_SYS(exit),
        SCMP_SYS(exit_group),
        SCMP_SYS(clock_gettime),
        SCMP_SYS(gettimeofday),
        SCMP_SYS(time),
        SCMP_SYS(setitimer),
        SCMP_SYS(restart_syscall),
        SCMP_SYS(rt_sigreturn),
        SCMP_SYS(sysinfo),
        SCMP_SYS(getrandom),
#if SANITIZED
        SCMP_SYS(sched_yield),
        SCMP_SYS(gettid),
        SCMP_SYS(getpid),
        SCMP_SYS(sigaltstack),
        SCMP_SYS(rt_sigprocmask),
        SCMP_SYS(rt_sigaction),
#endif
    };
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
    int rv = ctx == NULL ? -ENOMEM : 0;
    for (size_t i = 0; i < sizeof allowed / sizeof *allowed && rv == 0; i++) {
        rv = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, allowed[i], 0);
        rv = rv == -EDOM ? 0 : rv; /* a call that this architecture does not have */
    }
    /* Memory, but never to be executed, and no file. */
    const struct scmp_arg_cmp no_exec = SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0);
    const struct scmp_arg_cmp no_file = SCMP_A3(SCMP_CMP_MASKED_EQ, MAP_ANONYMOUS, MAP_ANONYMOUS);
    rv = rv != 0 ? rv : seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 2, no_exec, no_file);
    rv = rv != 0 ? rv : seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1, no_exec);
    rv = rv != 0 ? rv : seccomp_load(ctx);
    seccomp_release(ctx);
    return rv == 0 ? 0 : err_sysf(-rv, "seccomp");
}

int jail_enter(const struct jail *jail)
{
    volunteer();
    close_above(jail->fds);
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        return err_sysf(errno, "privileges");
    }
    int rv = set_limits(jail);
    rv = rv != 0 ? rv : drop_capabilities();
    return rv != 0 ? rv : filter_calls();
}
