#include "base/process.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static bool read_text(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);
    if (fd >= 0) {
        close(fd);
    }
    text[n > 0 ? n : 0] = '\0';
    return n > 0;
}

/* Field @n of /proc/self/stat, from 3 on; the second, the program's name, may hold spaces. */
static uint64_t stat_field(const char *text, unsigned n)
{
    const char *at = strrchr(text, ')');
    for (unsigned i = 2; at != NULL && i < n; i++) {
        at = strchr(at + 1, ' ');
    }
    return at == NULL ? 0 : strtoull(at + 1, NULL, 10);
}

/* When the machine was booted. */
static uint64_t boot_time(void)
{
    char line[256];
    uint64_t seconds = 0;
    FILE *f = fopen("/proc/stat", "re");
    while (f != NULL && seconds == 0 && fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, "btime ", 6) == 0) {
            seconds = strtoull(line + 6, NULL, 10);
        }
    }
    if (f != NULL) {
        fclose(f);
    }
    return seconds;
}

/* Does not change, but for what the clock is set meanwhile. */
static double start_time(const char *stat_text)
{
    static double known;
    if (known == 0) {
        uint64_t boot = boot_time();
        known =
            boot == 0 ? 0 : (double)boot + (double)stat_field(stat_text, 22) / (double)sysconf(_SC_CLK_TCK);
    }
    return known;
}

static uint64_t count_fds(void)
{
    struct stat st;
    uint64_t n = 0;
    if (stat("/proc/self/fd", &st) == 0 && st.st_size > 0) {
        return (uint64_t)st.st_size; /* since Linux 6.2 */
    }
    DIR *dir = opendir("/proc/self/fd");
    if (dir == NULL) {
        return 0;
    }
    struct dirent *entry;
    while ((entry = readdir(dir)) != NULL) {
        n += entry->d_name[0] != '.';
    }
    closedir(dir);
    return n - 1; /* without the one that was just open */
}

static double seconds_of(const struct timeval *tv)
{
    return (double)tv->tv_sec + (double)tv->tv_usec / 1e6;
}

void process_usage(struct process_usage *out)
{
    char text[1024];
    struct rusage usage;
    struct rlimit files;
    memset(out, 0, sizeof *out);
    if (getrusage(RUSAGE_SELF, &usage) == 0) {
        out->cpu_seconds = seconds_of(&usage.ru_utime) + seconds_of(&usage.ru_stime);
    }
    if (read_text("/proc/self/stat", text, sizeof text)) {
        out->threads = stat_field(text, 20);
        out->virtual_bytes = stat_field(text, 23);
        out->resident_bytes = stat_field(text, 24) * (uint64_t)sysconf(_SC_PAGESIZE);
        out->start_time = start_time(text);
    }
    out->open_fds = count_fds();
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        out->max_fds = files.rlim_cur == RLIM_INFINITY ? UINT64_MAX : files.rlim_cur;
    }
}
