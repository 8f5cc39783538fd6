/* Our CRC and libraft's own are the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

unsigned __wrap_byteCrc32(const void *data, size_t n, unsigned crc);

/* As libraft's byte.c has it, with its table spelled out. */
static unsigned bytewise(const uint8_t *p, size_t n, unsigned crc)
{
    while (n-- > 0) {
        crc ^= (unsigned)*p++ << 24;
        for (int i = 0; i < 8; i++) {
            crc = crc << 1 ^ (crc >> 31 ? 0x04c11db7 : 0);
        }
    }
    return crc;
}

static void of_anything(void **state)
{
    (void)state;
    uint8_t bytes[4096];
    srand(7);
    for (int round = 0; round < 2000; round++) {
        size_t at = (size_t)rand() % 64, n = (size_t)rand() % (sizeof bytes - 64);
        unsigned init = round % 2 == 0 ? 0 : (unsigned)rand();
        for (size_t i = 0; i < sizeof bytes; i++) {
            bytes[i] = (uint8_t)(rand() >> 7);
        }
        n = round < 64 ? (size_t)round : n;
        assert_int_equal(__wrap_byteCrc32(bytes + at, n, init), bytewise(bytes + at, n, init));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(of_anything)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
