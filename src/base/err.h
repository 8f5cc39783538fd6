/* Errors: a negative SYM_E* code, and a message for a person in a per-thread buffer.
 *
 * A function that fails sets the message where it knows most (err_setf) and callers add what they were doing
 * (err_wrapf: "what: why"). The message is valid until the next failing call on the same thread; a function that
 * returns 0 leaves it alone. Codes have stable names (err_name) that are part of the HTTP API and of --json.
 */
#ifndef SYM_BASE_ERR_H
#define SYM_BASE_ERR_H

#define SYM_ERRORS(X)                                                                                        \
    X(ENOMEM, "out_of_memory", 500)                                                                          \
    X(EINVAL, "invalid", 400)                                                                                \
    X(ENOTFOUND, "not_found", 404)                                                                           \
    X(EEXIST, "exists", 409)                                                                                 \
    X(ECONFLICT, "conflict", 409)                                                                            \
    X(EDENIED, "denied", 403)                                                                                \
    X(EAUTH, "unauthenticated", 401)                                                                         \
    X(ENOQUORUM, "no_quorum", 503)                                                                           \
    X(ENOTLEADER, "not_leader", 503)                                                                         \
    X(EUNKNOWN, "outcome_unknown", 503)                                                                      \
    X(ESTATE, "state_unknown", 503)                                                                          \
    X(ENOSPACE, "no_space", 507)                                                                             \
    X(ETOOBIG, "too_big", 413)                                                                               \
    X(ETIMEOUT, "timeout", 504)                                                                              \
    X(ECLOSED, "closed", 503)                                                                                \
    X(EBUSY, "busy", 503)                                                                                    \
    X(ECOMPACTED, "compacted", 410)                                                                          \
    X(EEXPIRED, "expired", 403)                                                                              \
    X(ECANCELED, "canceled", 499)                                                                            \
    X(EINUSE, "in_use", 409)                                                                                 \
    X(ECORRUPT, "corrupt", 500)                                                                              \
    X(EPROTO, "protocol", 502)                                                                               \
    X(ECONNECT, "unreachable", 502)                                                                          \
    X(EIO, "io", 500)                                                                                        \
    X(EPOLICY, "policy_failed", 503)                                                                         \
    X(EPOLICYTIME, "policy_timeout", 504)                                                                    \
    X(EPOLICYDIED, "policy_died", 503)

enum {
    SYM_OK_ = 0,
#define SYM_ERR_INDEX(code, name, http) SYM_INDEX_##code,
    SYM_ERRORS(SYM_ERR_INDEX)
#undef SYM_ERR_INDEX
        SYM_ERR_MAX
};
enum {
#define SYM_ERR_CODE(code, name, http) SYM_##code = -SYM_INDEX_##code,
    SYM_ERRORS(SYM_ERR_CODE)
#undef SYM_ERR_CODE
};

/* Sets the thread's message and returns @code. */
int err_setf(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Puts "fmt: " before the thread's message and returns @code. */
int err_wrapf(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* err_setf with ": <strerror(errnum)>" behind it; the code is the fitting one for @errnum (ENOSPC: ENOSPACE,
 * EACCES: EDENIED, ENOENT: ENOTFOUND, ...). @errnum is a positive errno; -errno, as libuv has it, is taken too. */
int err_sysf(int errnum, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#ifdef __clang_analyzer__
/* The analyser sees no further than a file and would take these for returning 0. */
#define err_setf(code, ...) (code)
#define err_wrapf(code, ...) (code)
#define err_sysf(errnum, ...) (SYM_EIO)
#endif

/* The thread's message, never NULL. */
const char *err_msg(void);

/* The stable name of @code, such as "no_quorum"; "ok" for 0, "internal" for a code that is none. */
const char *err_name(int code);

/* The HTTP status that goes with @code. */
int err_http_status(int code);

#endif
