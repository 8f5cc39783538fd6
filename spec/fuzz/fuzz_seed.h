/* A fuzzer that starts from something real: now and then an input is replaced by one of the seeds that the
 * target makes for itself, and mutated from there. */
#ifndef SYM_SPEC_FUZZ_SEED_H
#define SYM_SPEC_FUZZ_SEED_H

#include "base/buf.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

size_t LLVMFuzzerMutate(uint8_t *data, size_t n, size_t max);

#ifndef FUZZ_OPTIONS
#define FUZZ_OPTIONS "-len_control=0"
#endif

/* Called by libFuzzer before it reads its options: seeds are long, so inputs may be so from the start. */
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static char options[][24] = {FUZZ_OPTIONS};
    static char *args[64];
    int n = 0;
    for (; n < *argc && n < 60; n++) {
        args[n] = (*argv)[n];
    }
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
        args[n++] = options[i];
    }
    *argc = n;
    *argv = args;
    return 0;
}

/* For LLVMFuzzerCustomMutator: one in 64 inputs, and every short one, becomes a seed. */
static inline size_t seed_mutate(
    const struct buf *seeds, size_t count, uint8_t *data, size_t n, size_t max, unsigned random)
{
    const struct buf *seed = &seeds[random / 64 % count];
    if ((n < 16 || random % 64 == 0) && seed->len <= max) {
        memcpy(data, buf_data(seed), seed->len);
        n = seed->len;
    }
    return LLVMFuzzerMutate(data, n, max);
}

#endif
