/* AES-256-GCM and HKDF against published vectors, and what must not open. */
#include "check.h"

#include "codec/text.h"
#include "crypto/aead.h"

#include <string.h>

static size_t bytes(const char *hex, uint8_t *out)
{
    size_t n = strlen(hex) / 2;
    OK(hex_decode(hex, 2 * n, out, n));
    return n;
}

/* Test cases 14 and 16 of McGrew and Viega, "The Galois/Counter Mode of Operation". */
static void gcm_vectors(void **state)
{
    (void)state;
    static const struct {
        const char *key, *nonce, *aad, *plain, *sealed;
    } cases[] = {
        {"0000000000000000000000000000000000000000000000000000000000000000", "000000000000000000000000", "",
            "00000000000000000000000000000000",
            "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"},
        {"feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308", "cafebabefacedbaddecaf888",
            "feedfacedeadbeeffeedfacedeadbeefabaddad2",
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525"
            "b16aed"
            "f5aa0de657ba637b39",
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838"
            "c5f61e"
            "6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b"},
    };
    struct aead *a;
    OK(aead_new(&a));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint8_t key[32], nonce[12], aad[64], plain[128], sealed[128], out[128];
        size_t n = bytes(cases[i].plain, plain), n_aad = bytes(cases[i].aad, aad);
        bytes(cases[i].key, key);
        bytes(cases[i].nonce, nonce);
        size_t n_sealed = bytes(cases[i].sealed, sealed);
        assert_int_equal(n_sealed, n + AEAD_TAG_LEN);
        OK(aead_seal(a, key, nonce, aad, n_aad, plain, n, out));
        assert_memory_equal(out, sealed, n_sealed);
        assert_true(aead_open(a, key, nonce, aad, n_aad, sealed, n_sealed, out));
        assert_memory_equal(out, plain, n);
        /* In place. */
        assert_true(aead_open(a, key, nonce, aad, n_aad, sealed, n_sealed, sealed));
        assert_memory_equal(sealed, plain, n);
        OK(aead_seal(a, key, nonce, aad, n_aad, sealed, n, sealed));
        for (size_t bit = 0; bit < 8 * n_sealed; bit++) {
            sealed[bit / 8] ^= (uint8_t)(1u << bit % 8);
            assert_false(aead_open(a, key, nonce, aad, n_aad, sealed, n_sealed, out));
            sealed[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        for (size_t less = 0; less < n_sealed; less++) {
            assert_false(aead_open(a, key, nonce, aad, n_aad, sealed, less, out));
        }
        key[31] ^= 1;
        assert_false(aead_open(a, key, nonce, aad, n_aad, sealed, n_sealed, out));
        key[31] ^= 1;
        nonce[0] ^= 1;
        assert_false(aead_open(a, key, nonce, aad, n_aad, sealed, n_sealed, out));
        nonce[0] ^= 1;
        aad[0] ^= 1;
        assert_int_equal(aead_open(a, key, nonce, aad, n_aad, sealed, n_sealed, out), n_aad == 0);
        assert_false(aead_open(a, key, nonce, aad, n_aad + 1, sealed, n_sealed, out));
        aad[0] ^= 1;
        assert_true(aead_open(a, key, nonce, aad, n_aad, sealed, n_sealed, out)); /* none of it stuck */
    }
    aead_free(a);
    aead_free(NULL);
}

/* RFC 5869, A.1 and A.3. */
static void hkdf_vectors(void **state)
{
    (void)state;
    uint8_t secret[22], salt[13], info[10], out[42], right[42];
    struct aead *a;
    memset(secret, 0x0b, sizeof secret);
    bytes("000102030405060708090a0b0c", salt);
    bytes("f0f1f2f3f4f5f6f7f8f9", info);
    OK(aead_new(&a));
    bytes("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865", right);
    OK(aead_derive(a, secret, sizeof secret, salt, sizeof salt, info, sizeof info, out, sizeof out));
    assert_memory_equal(out, right, sizeof out);
    bytes("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8", right);
    OK(aead_derive(a, secret, sizeof secret, "", 0, "", 0, out, sizeof out));
    assert_memory_equal(out, right, sizeof out);
    FAILS(SYM_EIO, aead_derive(a, secret, sizeof secret, salt, sizeof salt, info, sizeof info, out, 0));
    aead_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gcm_vectors),
        cmocka_unit_test(hkdf_vectors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
