#include "base/file.h"

#include "base/err.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int file_read(const char *path, size_t max, struct buf *out)
{
    int rv = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return err_sysf(errno, "%s", path);
    }
    for (;;) {
        uint8_t *to = buf_reserve(out, 65536);
        if (to == NULL) {
            rv = SYM_ENOMEM;
            break;
        }
        ssize_t n = read(fd, to, 65536);
        if (n > 0) {
            buf_commit(out, (size_t)n);
            if (out->len > max) {
                rv = err_setf(SYM_ETOOBIG, "%s: larger than %zu bytes", path, max);
                break;
            }
        } else if (n == 0) {
            break;
        } else if (errno != EINTR) {
            rv = err_sysf(errno, "%s", path);
            break;
        }
    }
    close(fd);
    return rv;
}

static int write_all(int fd, const char *data, size_t n)
{
    while (n > 0) {
        ssize_t done_now = write(fd, data, n);
        if (done_now < 0 && errno != EINTR) {
            return -errno;
        }
        if (done_now > 0) {
            data += done_now;
            n -= (size_t)done_now;
        }
    }
    return 0;
}

int file_sync_dir(const char *dir)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return err_sysf(errno, "%s", dir);
    }
    int rv = fsync(fd) != 0 ? err_sysf(errno, "%s", dir) : 0;
    close(fd);
    return rv;
}

/* A rename is durable once the folder is. */
static int sync_folder_of(const char *path)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');
    if (slash == NULL) {
        snprintf(folder, sizeof folder, ".");
    } else {
        snprintf(folder, sizeof folder, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    }
    int rv = file_sync_dir(folder);
    return rv != 0 ? err_wrapf(rv, "%s: sync of its folder", path) : 0;
}

int file_write(const char *path, const void *data, size_t n, mode_t mode)
{
    char tmp[PATH_MAX];
    if ((size_t)snprintf(tmp, sizeof tmp, "%s.tmp", path) >= sizeof tmp) {
        return err_setf(SYM_EINVAL, "%s: too long", path);
    }
    /* What is left of an earlier try goes; a name that another user holds (in /tmp) cannot be removed and is
     * not written. */
    int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    int fd = open(tmp, flags, 0600);
    if (fd < 0 && errno == EEXIST) {
        if (unlink(tmp) != 0) {
            return err_sysf(errno, "%s is in the way", tmp);
        }
        fd = open(tmp, flags, 0600);
    }
    if (fd < 0) {
        return err_sysf(errno, "%s", path);
    }
    int rv = write_all(fd, data, n);
    if (rv == 0 && (fchmod(fd, mode) != 0 || fsync(fd) != 0)) {
        rv = -errno;
    }
    if (close(fd) != 0 && rv == 0) {
        rv = -errno;
    }
    if (rv == 0 && rename(tmp, path) != 0) {
        rv = -errno;
    }
    if (rv != 0) {
        unlink(tmp);
        return err_sysf(rv, "%s", path);
    }
    return sync_folder_of(path);
}
