/* Names with wildcards: * stands for any run of bytes (also none, and / is a byte like any other), ? for one. */
#ifndef SYM_SANDBOX_GLOB_H
#define SYM_SANDBOX_GLOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { GLOB_MAX = 1024 }; /* bytes; a longer one with a star in it fits nothing */

/* Whether the whole of @text fits: in at most one step for each of its bytes and each 64 bytes of @glob. */
bool glob_match(const char *glob, size_t n_glob, const char *text, size_t n_text);
/* The same; adds the number of steps to @steps. */
bool glob_match_counted(const char *glob, size_t n_glob, const char *text, size_t n_text, uint64_t *steps);

#endif
