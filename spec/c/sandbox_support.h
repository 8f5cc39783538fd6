/* What the tests of the sandbox share: a policy's source around the body of one hook, and loading. */
#ifndef SYM_SPEC_SANDBOX_SUPPORT_H
#define SYM_SPEC_SANDBOX_SUPPORT_H

#include "check.h"

#include "sandbox/boxes.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct box_limits limits = {.memory = 4 << 20, .memory_all = 32 << 20, .instructions = 300000};
static const struct box_limits full_limits = {
    .memory = 4 << 20, .memory_all = 32 << 20, .instructions = 300000, .full = true};

/* The source of a policy whose hook admit.change does @body with `c`. Valid until the next. */
static inline const char *policy(const char *body)
{
    static char source[16384];
    snprintf(source, sizeof source, "return { hooks = { [\"admit.change\"] = function(c) %s end } }", body);
    return source;
}

#endif
