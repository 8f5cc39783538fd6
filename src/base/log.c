#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = 5400, PATIENCE_MS = 10 };

static enum log_level min_level = LOG_INFO;
static bool as_json = false;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Below it: where to write, what is due of a line that was written in part, and the lines that there was no room for since. */
static int out;
static char rest[LINE_MAX_BYTES];
static size_t rest_len;
static unsigned long lost;

static const char *const names[] = {"debug", "info", "warn", "error"};

void log_setup(enum log_level level, bool json)
{
    min_level = level;
    as_json = json;
}

int log_level_parse(const char *name)
{
    for (int i = 0; i <= LOG_ERROR; i++) {
        if (strcmp(name, names[i]) == 0) {
            return i;
        }
    }
    return -1;
}

bool log_enabled(enum log_level level)
{
    return level >= min_level;
}

/* Bytes of the UTF-8 character at @s, 0 if it is malformed or one of the controls of U+0080 to U+009F. */
static size_t utf8_len(const unsigned char *s)
{
    size_t n = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 0;
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    bool odd = (s[0] == 0xc2 && s[1] < 0xa0) || (s[0] == 0xe0 && s[1] < 0xa0) ||
               (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
               (s[0] == 0xf4 && s[1] > 0x8f);
    return odd ? 0 : n;
}

/* A message may hold bytes from a peer: nothing of it may start a line, end a JSON string or move a cursor.
 */
static size_t escape(char *to, size_t room, const char *from)
{
    size_t n = 0;
    for (; *from != '\0' && n + 7 < room; from++) {
        unsigned char c = (unsigned char)*from;
        size_t len = utf8_len((const unsigned char *)from);
        if (c == '"' || c == '\\') {
            if (as_json) {
                to[n++] = '\\';
            }
            to[n++] = (char)c;
        } else if (c < 0x20 || c == 0x7f || len == 0) {
            n += (size_t)snprintf(to + n, room - n, "\\u%04x", c);
        } else {
            memcpy(to + n, from, len);
            n += len;
            from += len - 1;
        }
    }
    to[n] = '\0';
    return n;
}

static size_t format(char *line, enum log_level level, const char *text)
{
    char safe[5120];
    escape(safe, sizeof safe, text);

    struct timespec now;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    char stamp[40];
    size_t n = strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(stamp + n, sizeof stamp - n, ".%03ldZ", now.tv_nsec / 1000000);

    int len = as_json ? snprintf(line, LINE_MAX_BYTES, "{\"time\":\"%s\",\"level\":\"%s\",\"msg\":\"%s\"}\n",
                            stamp, names[level], safe)
                      : snprintf(line, LINE_MAX_BYTES, "%s %-5s %s\n", stamp, names[level], safe);
    return len > 0 && len < LINE_MAX_BYTES ? (size_t)len : 0;
}

/* Standard error may be shared with other processes, so it is not made non-blocking. Where poll sees room a pipe
 * takes PIPE_BUF bytes; but a terminal may have room for less than what is written, so that is opened anew, for us
 * alone. */
static void out_open(void)
{
    out = isatty(STDERR_FILENO) ? open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC) : -1;
    out = out < 0 ? STDERR_FILENO : out;
}

static void out_close(void)
{
    if (out != STDERR_FILENO) {
        close(out);
    }
}

/* Writes as much as there is room for, and returns how much that was. A log that cannot be written at all has
 * nowhere to be reported to: that is as if there were no room. */
static size_t put(const char *data, size_t n, int patience)
{
    size_t done = 0;
    while (done < n) {
        struct pollfd fd = {.fd = out, .events = POLLOUT};
        ssize_t wrote = poll(&fd, 1, patience);
        if (wrote == 0) {
            break;
        }
        if (wrote > 0) {
            wrote = write(out, data + done, n - done < PIPE_BUF ? n - done : PIPE_BUF);
        }
        if (wrote < 0 && errno != EINTR) {
            break;
        }
        done += wrote > 0 ? (size_t)wrote : 0;
    }
    return done;
}

/* False if there is no room. A line that fits in part counts as written: the next one waits for the rest of it. */
static bool put_line(const char *line, size_t n, int patience)
{
    size_t done = put(rest, rest_len, patience);
    rest_len -= done;
    memmove(rest, rest + done, rest_len);
    if (rest_len > 0) {
        return false;
    }
    done = put(line, n, patience);
    if (done > 0) {
        rest_len = n - done;
        memcpy(rest, line + done, rest_len);
    }
    return done > 0;
}

void log_write(enum log_level level, const char *fmt, ...)
{
    if (!log_enabled(level)) {
        return;
    }
    int error = errno; /* the caller's, who may not be done with it */
    char text[4096];
    char line[LINE_MAX_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    size_t n = format(line, level, text);

    pthread_mutex_lock(&lock);
    out_open();
    /* A reader is waited for once, not again at each line while he does not read. */
    int patience = lost == 0 ? PATIENCE_MS : 0;
    if (lost > 0) {
        char note[LINE_MAX_BYTES];
        snprintf(text, sizeof text, "%lu lines of this log are lost: they were not read in time", lost);
        if (put_line(note, format(note, LOG_WARN, text), patience)) {
            lost = 0;
        }
    }
    if (lost > 0 || !put_line(line, n, patience)) {
        lost++;
    }
    out_close();
    pthread_mutex_unlock(&lock);
    errno = error;
}
