/* A sealed gossip datagram. Two ways: the input as it is, which nobody has sealed and so must never open; and with its
 * first bytes as changes to a good one, which must open only if nothing was changed. */
#include "gossip/seal.h"

#include <stdlib.h>
#include <string.h>

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

static bool known(void *arg, const struct swim_id *id)
{
    (void)arg;
    return id->b[0] != 9;
}

static struct seal *node(uint8_t i)
{
    struct seal *s;
    struct swim_id id = {{i}};
    struct seal_key keys[2] = {{.id = 1, .use = true, .secret = {1}}, {.id = 2, .secret = {2}}};
    check(seal_open(&id, i, known, NULL, 4, &s) == 0 && seal_keys(s, keys, 2) == 0);
    return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static struct seal *a, *b;
    static struct seal_letter letter;
    uint8_t good[SEAL_MAX], changed[SEAL_MAX];
    struct swim_id to = {{2}};
    if (a == NULL) {
        a = node(1);
        b = node(2);
    }
    check(seal_unwrap(b, data, n, false, &letter) != SEAL_OK && !letter.derived);
    check(seal_unwrap(b, data, n, true, &letter) != SEAL_OK);
    if (n < 3) {
        return 0;
    }
    size_t len = n - 2 < SWIM_DATAGRAM_MAX ? n - 2 : SWIM_DATAGRAM_MAX, sealed = len + SEAL_OVERHEAD;
    check(seal_wrap(a, &to, data + 2, len, good) == 0);
    memcpy(changed, good, sealed);
    changed[data[0] % sealed] ^= data[1];
    enum seal_verdict verdict = seal_unwrap(b, changed, sealed, true, &letter);
    check((verdict == SEAL_OK) == (data[1] == 0));
    if (verdict != SEAL_OK) {
        check(seal_unwrap(b, changed, sealed, false, &letter) != SEAL_OK && !letter.derived);
        verdict = seal_unwrap(b, good, sealed, true, &letter);
    }
    check(verdict == SEAL_OK && letter.n == len && memcmp(letter.plain, data + 2, len) == 0);
    check(seal_unwrap(b, good, sealed, true, &letter) == SEAL_REPLAYED);
    return 0;
}
