#include "net/allowance.h"

bool allowance_take(struct allowance *a, const uint8_t digest[2], uint64_t now)
{
    uint64_t *until = &a->until[(digest[0] | digest[1] << 8) % ALLOWANCE_PLACES];
    uint64_t from = *until > now ? *until : now;
    if (from - now > (a->burst - 1) * a->every) {
        return false;
    }
    *until = from + a->every;
    return true;
}
