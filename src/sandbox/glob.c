#include "sandbox/glob.h"

/* Of several stars only the last one ever needs to give way: what stood before it has been matched as early as
 * possible, and a later match would leave less for the rest. */
bool glob_match(const char *glob, size_t n_glob, const char *text, size_t n_text)
{
    size_t g = 0, t = 0, star = n_glob, resume = 0;
    while (t < n_text) {
        if (g < n_glob && glob[g] == '*') {
            star = g++;
            resume = t;
        } else if (g < n_glob && (glob[g] == '?' || glob[g] == text[t])) {
            g++;
            t++;
        } else if (star < n_glob) {
            g = star + 1;
            t = ++resume;
        } else {
            return false;
        }
    }
    while (g < n_glob && glob[g] == '*') {
        g++;
    }
    return g == n_glob;
}
