#include "raft/logdir.h"

#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "codec/rw.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int logdir_lock(const char *dir, int *fd)
{
    if (mkdir(dir, 0700) != 0 && errno != EEXIST) {
        return err_sysf(errno, "%s", dir);
    }
    *fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*fd < 0) {
        return err_sysf(errno, "%s", dir);
    }
    if (flock(*fd, LOCK_EX | LOCK_NB) != 0) {
        int e = errno;
        close(*fd);
        *fd = -1;
        return e == EWOULDBLOCK ? err_setf(SYM_EINUSE, "%s is in use by another process", dir)
                                : err_sysf(e, "%s", dir);
    }
    return 0;
}

int logdir_corrupt(const char *dir, const char *what)
{
    return err_setf(SYM_ECORRUPT,
        "%s: %s. Nothing was changed. Check the disk; then, if other managers have a quorum, remove this one "
        "there, empty its folder and let it join again, else make a new cluster from a backup",
        dir, what);
}

/* --- segments: the library's format, as its uv.h has it --- */

enum { SEGMENT_FORMAT = 1, BATCH_HEAD = 16, ENTRY_HEAD = 16, BATCH_ENTRIES_MAX = (8 << 20) / 32, TYPES = 3 };

static uint64_t word(const uint8_t *p)
{
    return (uint64_t)get_u32(p) | (uint64_t)get_u32(p + 4) << 32;
}

static uint32_t crc_table[256];

static uint32_t crc(const uint8_t *p, size_t n, uint32_t c)
{
    if (crc_table[1] == 0) {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t v = i << 24;
            for (int bit = 0; bit < 8; bit++) {
                v = v & 0x80000000u ? v << 1 ^ 0x04c11db7u : v << 1;
            }
            crc_table[i] = v;
        }
    }
    while (n-- > 0) {
        c = c << 8 ^ crc_table[(c >> 24 ^ *p++) & 255];
    }
    return c;
}

/* Length of the batch at @p, 0 if there is none that checks. */
static size_t batch(const uint8_t *p, size_t n)
{
    if (n < BATCH_HEAD) {
        return 0;
    }
    uint64_t entries = word(p + 8);
    if (entries == 0 || entries > BATCH_ENTRIES_MAX) {
        return 0;
    }
    size_t head = 8 + (size_t)entries * ENTRY_HEAD;
    if (head > n - 8 || crc(p + 8, head, 0) != get_u32(p)) {
        return 0;
    }
    size_t data = 0;
    for (uint64_t i = 0; i < entries; i++) {
        data += get_u32(p + 16 + i * ENTRY_HEAD + 12);
    }
    if (data > n - 8 - head || crc(p + 8 + head, data, 0) != get_u32(p + 4)) {
        return 0;
    }
    return 8 + head + data;
}

/* Whether the heads of the entries at @p are such as the library writes, type and all: what tells a batch from other
 * bytes without reading them again at every offset (a number of entries that is more than three is no type). */
static bool looks_like_batch(const uint8_t *p, size_t n)
{
    uint64_t entries = n < BATCH_HEAD ? 0 : word(p + 8);
    if (entries == 0 || entries > BATCH_ENTRIES_MAX || 8 + (size_t)entries * ENTRY_HEAD > n - 8) {
        return false;
    }
    for (uint64_t i = 0; i < entries; i++) {
        uint32_t type = get_u32(p + 16 + i * ENTRY_HEAD + 8);
        if (type == 0 || type > TYPES) {
            return false;
        }
    }
    return true;
}

enum segment_state {
    SEGMENT_EMPTY, /* nothing was written */
    SEGMENT_WHOLE, /* batches, then zeros */
    SEGMENT_TORN,  /* batches, then the beginning of a write that never ended */
    SEGMENT_DAMAGED,
};

static enum segment_state judge(const uint8_t *p, size_t n, size_t *where)
{
    size_t at = 0;
    *where = 0;
    if (n >= 8 && word(p) == SEGMENT_FORMAT) {
        at = 8;
        for (size_t len; (len = batch(p + at, n - at)) > 0;) {
            at += len;
        }
    }
    size_t rest = at;
    while (rest < n && p[rest] == 0) {
        rest++;
    }
    if (rest == n) {
        return at == 0 ? SEGMENT_EMPTY : SEGMENT_WHOLE;
    }
    *where = at;
    /* A batch that checks behind one that does not was written when that one was whole. */
    for (size_t i = (rest + 7) & ~(size_t)7; i + BATCH_HEAD <= n; i += 8) {
        if (looks_like_batch(p + i, n - i) && batch(p + i, n - i) > 0) {
            return SEGMENT_DAMAGED;
        }
    }
    return SEGMENT_TORN;
}

static int check_open(const char *dir, const char *name, enum segment_state *state, size_t *where)
{
    char path[4096];
    int rv = 0;
    *state = SEGMENT_EMPTY;
    *where = 0;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) {
        rv = err_sysf(errno, "%s", path);
        goto close;
    }
    if (st.st_size > 0) {
        uint8_t *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            rv = err_sysf(errno, "%s", path);
            goto close;
        }
        *state = judge(p, (size_t)st.st_size, where);
        munmap(p, (size_t)st.st_size);
    }
close:
    if (fd >= 0) {
        close(fd);
    }
    return rv;
}

/* --- the folder --- */

struct segment {
    bool open;
    unsigned long long first, last; /* or counter, 0 */
    char name[64];
};

static int by_age(const void *a, const void *b)
{
    const struct segment *x = a, *y = b;
    if (x->open != y->open) {
        return x->open ? 1 : -1;
    }
    if (x->first != y->first) {
        return x->first < y->first ? -1 : 1;
    }
    return x->last < y->last ? -1 : x->last > y->last;
}

/* Whether @name is "<prefix>..." in full, as sscanf with %n says. */
static bool parse(const char *name, struct segment *s)
{
    int end = 0;
    if (strlen(name) >= sizeof s->name) {
        return false;
    }
    *s = (struct segment){0};
    strcpy(s->name, name);
    if (sscanf(name, "open-%llu%n", &s->first, &end) == 1 && name[end] == '\0') {
        s->open = true;
        return true;
    }
    end = 0;
    return sscanf(name, "%16llu-%16llu%n", &s->first, &s->last, &end) == 2 && name[end] == '\0';
}

static int list(const char *dir, struct logdir *out, struct segment **segments, size_t *n)
{
    int rv = 0;
    struct dirent *e;
    DIR *d = opendir(dir);
    if (d == NULL) {
        return err_sysf(errno, "%s", dir);
    }
    while (rv == 0 && (e = readdir(d)) != NULL) {
        struct segment s;
        unsigned long long term, index, stamp;
        int end = 0;
        if (parse(e->d_name, &s)) {
            struct segment *grown = reallocarray(*segments, *n + 1, sizeof *grown);
            if (grown == NULL) {
                rv = err_setf(SYM_ENOMEM, "out of memory");
                break;
            }
            *segments = grown;
            grown[(*n)++] = s;
            out->has_segments = true;
        } else if (sscanf(e->d_name, "snapshot-%llu-%llu-%llu%n", &term, &index, &stamp, &end) == 3 &&
                   e->d_name[end] == '\0' && index > out->snapshot) {
            /* One without its .meta is a write that was cut short; libraft removes it. */
            char path[4096];
            snprintf(path, sizeof path, "%s/%s.meta", dir, e->d_name);
            if (access(path, F_OK) == 0) {
                out->snapshot = index;
                snprintf(out->snapshot_name, sizeof out->snapshot_name, "%s", e->d_name);
            }
        } else if (strcmp(e->d_name, "metadata1") == 0 || strcmp(e->d_name, "metadata2") == 0) {
            out->has_metadata = true;
        }
    }
    closedir(d);
    return rv;
}

/* Segments that a snapshot has replaced and that a crash has kept from being removed. */
static int remove_replaced(
    const char *dir, const struct logdir *log, const struct segment *segments, size_t n)
{
    for (size_t i = 0; i < n && !segments[i].open; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", dir, segments[i].name);
        log_info("%s: replaced by %s; removed", path, log->snapshot_name);
        if (unlink(path) != 0) {
            return err_sysf(errno, "%s", path);
        }
    }
    return file_sync_dir(dir);
}

static int check_segments(const char *dir, const struct logdir *log, struct segment *segments, size_t n)
{
    bool torn = false, written = false;
    unsigned long long closed_end = 0;
    char what[256] = "";
    for (size_t i = 0; i < n; i++) {
        struct segment *s = &segments[i];
        if (!s->open) {
            /* Truncating writes the shorter one first and then removes the longer one. That had not come
             * about when the process died, so it is as if the truncation had not begun. */
            if (i + 1 < n && !segments[i + 1].open && segments[i + 1].first == s->first) {
                char path[4096];
                snprintf(path, sizeof path, "%s/%s", dir, s->name);
                log_warn("%s: left by a truncation that was cut short; removed", path);
                if (unlink(path) != 0) {
                    return err_sysf(errno, "%s", path);
                }
            }
            closed_end = s->last > closed_end ? s->last : closed_end;
            continue;
        }
        enum segment_state state;
        size_t where;
        int rv = check_open(dir, s->name, &state, &where);
        if (rv != 0) {
            return rv;
        }
        if (torn && state != SEGMENT_EMPTY) {
            return logdir_corrupt(dir, what);
        }
        written |= state != SEGMENT_EMPTY;
        if (state == SEGMENT_TORN || state == SEGMENT_DAMAGED) {
            snprintf(what, sizeof what, "segment %s is damaged at byte %zu, with entries after it", s->name,
                where);
        }
        if (state == SEGMENT_DAMAGED) {
            return logdir_corrupt(dir, what);
        }
        if (state == SEGMENT_TORN) {
            log_info("%s/%s: the last write was cut short by a crash, from byte %zu on", dir, s->name, where);
            torn = true;
        }
    }
    if (closed_end == 0 || closed_end >= log->snapshot) {
        return 0;
    }
    if (written) {
        snprintf(what, sizeof what, "segments are missing between entry %llu and %s", closed_end,
            log->snapshot_name);
        return logdir_corrupt(dir, what);
    }
    return remove_replaced(dir, log, segments, n);
}

int logdir_check(const char *dir, struct logdir *out)
{
    struct segment *segments = NULL;
    size_t n = 0;
    *out = (struct logdir){0};
    int rv = list(dir, out, &segments, &n);
    if (rv == 0 && n > 0) {
        qsort(segments, n, sizeof *segments, by_age);
        rv = check_segments(dir, out, segments, n);
    }
    free(segments);
    return rv;
}

int logdir_write_snapshot(const char *dir, uint64_t term, uint64_t index, const void *conf, size_t conf_len,
    const void *data, size_t n)
{
    char path[4096];
    struct buf meta = {0};
    struct wr w = wr_init(&meta);
    wr_u64(&w, SEGMENT_FORMAT);
    wr_u64(&w, 0); /* of the checksum */
    wr_u64(&w, index);
    wr_u64(&w, conf_len);
    wr_bytes(&w, conf, conf_len);
    uint8_t *head = buf_data(&meta);
    int rv = w.bad || head == NULL ? SYM_ENOMEM : 0;
    if (rv == 0) {
        put_u32(head + 8, crc(head + 16, meta.len - 16, 0));
        snprintf(path, sizeof path, "%s/snapshot-%" PRIu64 "-%" PRIu64 "-0.meta", dir, term, index);
        rv = file_write(path, head, meta.len, 0600);
    }
    if (rv == 0) {
        path[strlen(path) - strlen(".meta")] = '\0';
        rv = file_write(path, data, n, 0600);
    }
    buf_free(&meta);
    return rv;
}

int logdir_forget_metadata(const char *dir)
{
    static const char *const names[] = {"metadata1", "metadata2"};
    for (size_t i = 0; i < 2; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        if (unlink(path) != 0 && errno != ENOENT) {
            return err_sysf(errno, "%s", path);
        }
    }
    return 0;
}

static void mark_path(const char *dir, char path[4096])
{
    snprintf(path, 4096, "%s/recovered", dir);
}

int logdir_mark_recovered(const char *dir)
{
    char path[4096];
    int rv = 0;
    mark_path(dir, path);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    int folder = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || folder < 0 || fsync(fd) != 0 || fsync(folder) != 0) {
        rv = err_sysf(errno, "%s", path);
    }
    if (fd >= 0) {
        close(fd);
    }
    if (folder >= 0) {
        close(folder);
    }
    return rv;
}

bool logdir_is_recovered(const char *dir)
{
    char path[4096];
    mark_path(dir, path);
    return access(path, F_OK) == 0;
}

void logdir_unmark_recovered(const char *dir)
{
    char path[4096];
    mark_path(dir, path);
    if (unlink(path) != 0 && errno != ENOENT) {
        log_warn("%s: %s", path, strerror(errno));
    }
}
