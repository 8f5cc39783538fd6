#include "store/mark.h"

#include "base/err.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The file is written as a whole, and so short that it lies in one sector: a torn write is no mark, which is
 * right. */
enum { MARK_LEN = 64 };

static void image(char to[MARK_LEN + 1], const char *what)
{
    snprintf(to, MARK_LEN + 1, "%-*.*s\n", MARK_LEN - 1, MARK_LEN - 1, what);
}

static void image_clean(char to[MARK_LEN + 1])
{
    image(to, "clean");
}

/* In use, during which boot of the machine; false when it does not say. */
static bool image_in_use(char to[MARK_LEN + 1])
{
    char text[80] = "in use, boot ";
    size_t n = strlen(text);
    ssize_t got = -1;
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        got = read(fd, text + n, 36);
        close(fd);
    }
    text[n + (got > 0 ? (size_t)got : 0)] = '\0';
    image(to, text);
    return got == 36;
}

int mark_open(const char *dir, int *fd, bool *trusted)
{
    char path[4096], is[MARK_LEN], clean[MARK_LEN + 1], used[MARK_LEN + 1];
    snprintf(path, sizeof path, "%s/mark", dir);
    *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (*fd < 0) {
        return err_sysf(errno, "%s", path);
    }
    ssize_t n = pread(*fd, is, sizeof is, 0);
    if (n < 0) {
        int rv = err_sysf(errno, "%s", path);
        close(*fd);
        return rv;
    }
    image_clean(clean);
    bool known = image_in_use(used);
    *trusted =
        n == MARK_LEN && (memcmp(is, clean, sizeof is) == 0 || (known && memcmp(is, used, sizeof is) == 0));
    return 0;
}

static int write_mark(int fd, const char image[MARK_LEN])
{
    ssize_t n = pwrite(fd, image, MARK_LEN, 0);
    if (n != MARK_LEN) {
        return err_sysf(n < 0 ? errno : EIO, "cannot mark the state");
    }
    return fdatasync(fd) == 0 ? 0 : err_sysf(errno, "cannot mark the state");
}

int mark_in_use(int fd)
{
    char to[MARK_LEN + 1];
    image_in_use(to);
    return write_mark(fd, to);
}

int mark_clean(int fd)
{
    char to[MARK_LEN + 1];
    image_clean(to);
    return write_mark(fd, to);
}
