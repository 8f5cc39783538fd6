/* Text that stands for bytes: what is decoded, encoded again, is the same text (in lower case, where both are
 * taken). */
#include "codec/text.h"

#include <ctype.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void same(const char *again, const char *text, size_t len, int any_case)
{
    if (strlen(again) != len) {
        abort();
    }
    for (size_t i = 0; i < len; i++) {
        if (again[i] != (any_case ? tolower((unsigned char)text[i]) : text[i])) {
            abort();
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < 2 || n > 4096) {
        return 0;
    }
    size_t want = data[1] % 65;
    const char *text = (const char *)data + 2;
    size_t len = n - 2, got;
    /* As large as each decoder may fill, so that one byte more is seen. */
    uint8_t *out = malloc(3 * len / 4 + 1), *fixed = malloc(want + 1), *bytes = malloc(len / 2 + 1);
    char *again = malloc(2 * len + 128);
    if (out == NULL || fixed == NULL || bytes == NULL || again == NULL) {
        abort();
    }
    switch (data[0] % 4) {
    case 0:
        if (base64_decode(text, len, out, &got) == 0) {
            base64_encode(out, got, again);
            same(again, text, len, 0);
        }
        break;
    case 1:
        if (base36_decode(text, len, fixed, want) == 0) {
            base36_encode(fixed, want, again);
            same(again, text, len, 1);
        }
        break;
    case 2:
        if (base32_decode(text, len, out, len * 5 / 8) == 0) {
            base32_encode(out, len * 5 / 8, again);
            same(again, text, len, 0);
        }
        break;
    default:
        if (hex_decode(text, len, bytes, len / 2) == 0) {
            hex_encode(bytes, len / 2, again);
            same(again, text, len, 1);
        }
    }
    /* And the other way: any bytes survive. */
    size_t some = len < 64 ? len : 64;
    uint8_t back[64];
    base36_encode((const uint8_t *)text, some, again);
    if (base36_decode(again, strlen(again), back, some) != 0 || memcmp(back, text, some) != 0) {
        abort();
    }
    free(out);
    free(fixed);
    free(bytes);
    free(again);
    return 0;
}
