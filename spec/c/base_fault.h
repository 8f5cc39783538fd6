/* Allocation failure on demand. A test includes this and then the .c file under test, whose allocations come
 * here; the library's copy of that file is then not linked. */
#ifndef SYM_SPEC_BASE_FAULT_H
#define SYM_SPEC_BASE_FAULT_H

#include <stdbool.h>
#include <stdlib.h>

static long fault_countdown = -1; /* allocations until one fails; -1: none does */
static bool fault_sticky;         /* then all later ones fail too */
static bool fault_hit;
static long fault_seen; /* allocations made */

/* The allocation after @n more fails; with @sticky so do all behind it. */
static inline void fault_after(long n, bool sticky)
{
    fault_countdown = n;
    fault_sticky = sticky;
    fault_hit = false;
}

/* Back to normal; true if an allocation was made to fail. */
static inline bool fault_end(void)
{
    fault_countdown = -1;
    return fault_hit;
}

static inline bool fault_now(void)
{
    fault_seen++;
    if (fault_countdown < 0 || fault_countdown-- > 0) {
        return false;
    }
    fault_countdown = fault_sticky ? 0 : -1;
    fault_hit = true;
    return true;
}

static inline void *fault_malloc(size_t n)
{
    /* ASan ends the program where malloc says no. */
    return fault_now() || n > (size_t)1 << 40 ? NULL : malloc(n);
}
static inline void *fault_calloc(size_t n, size_t size)
{
    return fault_now() ? NULL : calloc(n, size);
}
static inline void *fault_realloc(void *p, size_t n)
{
    return fault_now() ? NULL : realloc(p, n);
}

#define malloc fault_malloc
#define calloc fault_calloc
#define realloc fault_realloc

#endif
