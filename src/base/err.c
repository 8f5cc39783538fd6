#include "base/err.h"
#ifdef __clang_analyzer__
#undef err_setf
#undef err_wrapf
#undef err_sysf
#endif

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char message[1024];

static const struct {
    const char *name;
    int http;
} table[SYM_ERR_MAX] = {[0] = {"ok", 200},
#define SYM_ERR_ROW(code, name, http) [SYM_INDEX_##code] = {name, http},
    SYM_ERRORS(SYM_ERR_ROW)
#undef SYM_ERR_ROW
};

int err_setf(int code, const char *fmt, ...)
{
    /* Formatted beside the buffer: an argument may be err_msg() itself. */
    char text[sizeof message];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    memcpy(message, text, sizeof message);
    return code;
}

int err_wrapf(int code, const char *fmt, ...)
{
    char text[sizeof message];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (n >= 0 && (size_t)n < sizeof text) {
        snprintf(text + n, sizeof text - (size_t)n, ": %s", message);
    }
    memcpy(message, text, sizeof message);
    return code;
}

static int code_of(int errnum)
{
    switch (errnum) {
    case ENOMEM:
        return SYM_ENOMEM;
    case EINVAL:
    case ENAMETOOLONG:
        return SYM_EINVAL;
    case ENOENT:
        return SYM_ENOTFOUND;
    case EEXIST:
        return SYM_EEXIST;
    case EACCES:
    case EPERM:
    case EROFS:
        return SYM_EDENIED;
    case ENOSPC:
    case EDQUOT:
        return SYM_ENOSPACE;
    case ETIMEDOUT:
        return SYM_ETIMEOUT;
    case EADDRINUSE:
        return SYM_EINUSE;
    case ECONNREFUSED:
    case ECONNRESET:
    case EHOSTUNREACH:
    case ENETUNREACH:
        return SYM_ECONNECT;
    case ECANCELED:
        return SYM_ECANCELED;
    case EMFILE:
    case ENFILE:
    case EAGAIN:
        return SYM_EBUSY;
    default:
        return SYM_EIO;
    }
}

int err_sysf(int errnum, const char *fmt, ...)
{
    char text[sizeof message];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (errnum < 0) {
        errnum = -errnum;
    }
    char reason[128];
    return err_setf(code_of(errnum), "%s: %s", text, strerror_r(errnum, reason, sizeof reason));
}

const char *err_msg(void)
{
    return message;
}

const char *err_name(int code)
{
    return code <= 0 && code > -SYM_ERR_MAX ? table[-code].name : "internal";
}

int err_http_status(int code)
{
    return code <= 0 && code > -SYM_ERR_MAX ? table[-code].http : 500;
}
