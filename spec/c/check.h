/* What every test says of a call: that it succeeds, or fails with this code; and what it said otherwise. */
#ifndef SYM_SPEC_CHECK_H
#define SYM_SPEC_CHECK_H

#include "base/err.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define OK(call)                                                                                             \
    do {                                                                                                     \
        int rv_ = (call);                                                                                    \
        if (rv_ != 0) {                                                                                      \
            fail_msg("%s: %s (%s)", #call, err_name(rv_), err_msg());                                        \
        }                                                                                                    \
    } while (0)
#define FAILS(code, call)                                                                                    \
    do {                                                                                                     \
        int rv_ = (call);                                                                                    \
        if (rv_ != (code)) {                                                                                 \
            fail_msg("%s: %s, not %s (%s)", #call, err_name(rv_), err_name(code), err_msg());                \
        }                                                                                                    \
    } while (0)

#endif
