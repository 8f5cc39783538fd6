#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static enum log_level min_level = LOG_INFO;
static bool as_json = false;

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

void log_write(enum log_level level, const char *fmt, ...)
{
    if (!log_enabled(level)) {
        return;
    }
    char text[4096];
    char safe[5120];
    char line[5400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    escape(safe, sizeof safe, text);

    struct timespec now;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    char stamp[40];
    size_t n = strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(stamp + n, sizeof stamp - n, ".%03ldZ", now.tv_nsec / 1000000);

    int len = as_json ? snprintf(line, sizeof line, "{\"time\":\"%s\",\"level\":\"%s\",\"msg\":\"%s\"}\n",
                            stamp, names[level], safe)
                      : snprintf(line, sizeof line, "%s %-5s %s\n", stamp, names[level], safe);
    if (len > 0) {
        /* A log that cannot be written has nowhere to be reported to. */
        ssize_t ignored =
            write(STDERR_FILENO, line, (size_t)len < sizeof line ? (size_t)len : sizeof line - 1);
        (void)ignored;
    }
}
