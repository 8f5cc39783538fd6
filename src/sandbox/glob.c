#include "sandbox/glob.h"

#include <string.h>

enum { WORD = 64, WORDS = GLOB_MAX / WORD };

/* What begins with a star, by the parallel simulation of its automaton (Baeza-Yates and Gonnet 1992; Navarro and
 * Raffinot 2002): bit i of @now says that the first i of what the glob has besides stars fit what was read, in some way.
 * So there is nothing to go back to. */
static bool run(const char *glob, size_t n_glob, const char *text, size_t n_text)
{
    uint64_t fits[256 * WORDS], any[WORDS] = {0}, stars[WORDS] = {0}, now[WORDS] = {1};
    size_t words = (n_glob - 1) / WORD + 1, n = 0;
    memset(fits, 0, 256 * words * sizeof *fits);
    for (size_t g = 0; g < n_glob; g++) {
        uint64_t bit = UINT64_C(1) << n % WORD;
        if (glob[g] == '*') {
            stars[n / WORD] |= bit;
            continue;
        }
        uint64_t *of = glob[g] == '?' ? any : fits + (unsigned char)glob[g] * words;
        of[n / WORD] |= bit;
        n++;
    }
    for (size_t t = 0; t < n_text; t++) {
        const uint64_t *of = fits + (unsigned char)text[t] * words;
        uint64_t carry = 0;
        for (size_t w = 0; w < words; w++) {
            uint64_t on = now[w] & (of[w] | any[w]);
            now[w] = on << 1 | carry | (now[w] & stars[w]);
            carry = on >> (WORD - 1);
        }
    }
    return (now[n / WORD] >> n % WORD & 1) != 0;
}

bool glob_match_counted(const char *glob, size_t n_glob, const char *text, size_t n_text, uint64_t *steps)
{
    while (n_glob > 0 && n_text > 0 && *glob != '*' && (*glob == '?' || *glob == *text)) {
        glob++;
        text++;
        n_glob--;
        n_text--;
        ++*steps;
    }
    if (n_glob == 0 || *glob != '*') {
        return n_glob == 0 && n_text == 0;
    }
    /* Most are a plain beginning and a star. */
    if (n_glob == 1 || n_glob > GLOB_MAX) {
        return n_glob == 1;
    }
    *steps += n_text * ((n_glob - 1) / WORD + 1);
    return run(glob, n_glob, text, n_text);
}

bool glob_match(const char *glob, size_t n_glob, const char *text, size_t n_text)
{
    uint64_t steps = 0;
    return glob_match_counted(glob, n_glob, text, n_text, &steps);
}
