#include "base/memory.h"

#include <malloc.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

struct mapping {
    unsigned long start, end, inode;
    char mode[5];
};

static bool is_header(const char *line, struct mapping *m)
{
    return sscanf(line, "%lx-%lx %4s %*x %*s %lu", &m->start, &m->end, m->mode, &m->inode) == 4;
}

/* Of a private mapping of a file that nobody may write and of which no page is a copy of ours, nothing can be lost. */
static bool is_clean(const struct mapping *m, const char *line)
{
    unsigned long own = 1;
    return m->inode != 0 && m->mode[1] != 'w' && m->mode[3] == 'p' &&
           sscanf(line, "Anonymous: %lu kB", &own) == 1 && own == 0;
}

void memory_release(void)
{
    char line[512];
    struct mapping m = {0};
    FILE *f = fopen("/proc/self/smaps", "re");
    (void)malloc_trim(0);
    if (f == NULL) {
        return;
    }
    while (fgets(line, sizeof line, f) != NULL) {
        struct mapping next = {0};
        if (is_header(line, &next)) {
            m = next;
        } else if (is_clean(&m, line)) {
            (void)madvise((void *)m.start, m.end - m.start, MADV_DONTNEED);
        }
    }
    fclose(f);
}
