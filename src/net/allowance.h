/* How often those who hold a certificate may do what costs others something: some times at once, then one every so
 * many milliseconds. In fixed memory, by the digest of a key; two of them may fall into one place, and share what is
 * allowed then. Pure.
 */
#ifndef SYM_NET_ALLOWANCE_H
#define SYM_NET_ALLOWANCE_H

#include <stdbool.h>
#include <stdint.h>

enum { ALLOWANCE_PLACES = 1024 };

struct allowance {
    uint64_t burst, every;            /* above 0; milliseconds */
    uint64_t until[ALLOWANCE_PLACES]; /* all that was done would have taken until then, one at a time */
};

/* May the owner of @digest, of which two bytes are looked at, do it once more at @now (milliseconds, never less than
 * before)? Then it has done it. All zero but for burst and every is one that nobody has asked. */
bool allowance_take(struct allowance *a, const uint8_t digest[2], uint64_t now);

#endif
