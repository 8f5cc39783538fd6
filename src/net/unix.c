#include "net/unix.h"

#include "base/err.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int unix_address(const char *path, struct sockaddr_un *out, int *dir)
{
    *dir = -1;
    memset(out, 0, sizeof *out);
    out->sun_family = AF_UNIX;
    size_t n = strlen(path);
    const char *slash = strrchr(path, '/');
    if (n == 0 || (slash != NULL && slash[1] == '\0')) {
        return err_setf(SYM_EINVAL, "\"%.100s\" is not the path of a socket", path);
    }
    if (n < sizeof out->sun_path) {
        memcpy(out->sun_path, path, n + 1);
        return 0;
    }
    if (slash == NULL) {
        return err_setf(SYM_EINVAL, "socket name of %zu bytes: at most %zu fit", n, sizeof out->sun_path - 1);
    }
    char *folder = slash == path ? strdup("/") : strndup(path, (size_t)(slash - path));
    if (folder == NULL) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    int fd = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int rv = fd < 0 ? err_sysf(errno, "folder of the socket %s", path) : 0;
    free(folder);
    if (fd < 0) {
        return rv;
    }
    int len = snprintf(out->sun_path, sizeof out->sun_path, "/proc/self/fd/%d/%s", fd, slash + 1);
    if (len < 0 || (size_t)len >= sizeof out->sun_path) {
        close(fd);
        return err_setf(SYM_EINVAL, "socket name %s is too long: use a shorter one", slash + 1);
    }
    *dir = fd;
    return 0;
}

/* Makes way for a new socket at @path: 0 if there is nothing now, or nothing any more. */
static int clear_stale(const char *path, const struct sockaddr_un *sun)
{
    struct stat st;
    if (lstat(path, &st) != 0) {
        return errno == ENOENT ? 0 : err_sysf(errno, "%s", path);
    }
    if (!S_ISSOCK(st.st_mode)) {
        return err_setf(SYM_EEXIST, "%s exists and is not a socket", path);
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return err_sysf(errno, "socket");
    }
    int rv = connect(fd, (const struct sockaddr *)sun, sizeof *sun);
    int failed = rv == 0 ? 0 : errno;
    close(fd);
    if (failed == ENOENT) {
        return 0;
    }
    if (failed == EACCES || failed == EPERM) {
        return err_sysf(failed, "%s", path);
    }
    if (failed != ECONNREFUSED) {
        return err_setf(SYM_EINUSE, "%s is in use by another process", path);
    }
    return unlink(path) == 0 || errno == ENOENT ? 0 : err_sysf(errno, "stale socket %s", path);
}

int unix_listen(const char *path, mode_t mode, gid_t gid, int *out, struct stat *st)
{
    struct sockaddr_un sun;
    int dir;
    int rv = unix_address(path, &sun, &dir);
    if (rv != 0) {
        return rv;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        rv = err_sysf(errno, "socket");
        goto close_dir;
    }
    rv = clear_stale(path, &sun);
    if (rv != 0) {
        goto close_fd;
    }
    /* Linux gives the file the mode of the socket less the umask: it must not be open to all, not even for
     * the moment between bind and chmod. */
    if (fchmod(fd, mode & 0600) != 0) {
        rv = err_sysf(errno, "socket %s", path);
        goto close_fd;
    }
    if (bind(fd, (struct sockaddr *)&sun, sizeof sun) != 0) {
        rv = err_sysf(errno, "socket %s", path);
        goto close_fd;
    }
    if ((gid != (gid_t)-1 && lchown(path, (uid_t)-1, gid) != 0) || chmod(path, mode) != 0 ||
        lstat(path, st) != 0 || listen(fd, SOMAXCONN) != 0) {
        rv = err_sysf(errno, "socket %s", path);
        unlink(path);
        goto close_fd;
    }
    *out = fd;
    fd = -1;

close_fd:
    if (fd >= 0) {
        close(fd);
    }
close_dir:
    if (dir >= 0) {
        close(dir);
    }
    return rv;
}
