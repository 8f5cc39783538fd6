/* Names with wildcards: * stands for any run of bytes (also none, and / is a byte like any other), ? for one. */
#ifndef SYM_SANDBOX_GLOB_H
#define SYM_SANDBOX_GLOB_H

#include <stdbool.h>
#include <stddef.h>

/* Whether the whole of @text fits. At most about @n_glob times @n_text steps. */
bool glob_match(const char *glob, size_t n_glob, const char *text, size_t n_text);

#endif
