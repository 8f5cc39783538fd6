/* How long things took: counts between fixed limits, from a tenth of a millisecond to five seconds, and the sum. The
 * same limits everywhere, so that whoever prints them has one table. Adding costs some nanoseconds. */
#ifndef SYM_BASE_HISTOGRAM_H
#define SYM_BASE_HISTOGRAM_H

#include <stdint.h>

enum { HISTOGRAM_LIMITS = 15 };

struct histogram {
    uint64_t
        counts[HISTOGRAM_LIMITS + 1]; /* above the limit before and up to this one; the last: above all */
    uint64_t sum_ns;
};

/* In nanoseconds, rising. */
extern const uint64_t histogram_limits[HISTOGRAM_LIMITS];

static inline void histogram_add(struct histogram *h, uint64_t ns)
{
    unsigned i = 0;
    while (i < HISTOGRAM_LIMITS && ns > histogram_limits[i]) {
        i++;
    }
    h->counts[i]++;
    h->sum_ns += ns;
}

#endif
