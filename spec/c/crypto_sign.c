/* Signatures by raw public keys. */
#include "crypto_support.h"

#include "codec/text.h"

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/x509.h>

static void signed_and_verified(void **state)
{
    (void)state;
    struct key *k, *other, *shared;
    uint8_t spki[SPKI_LEN], others[SPKI_LEN], print[SHA256_LEN], digest[SHA256_LEN], sig[KEY_SIG_MAX];
    size_t n;
    OK(key_generate(&k));
    OK(key_generate(&other));
    OK(key_public(k, spki));
    OK(key_public(other, others));
    OK(key_fingerprint(k, print));
    OK(crypto_sha256(spki, sizeof spki, digest));
    assert_memory_equal(print, digest, sizeof digest);
    OK(key_share(k, &shared));
    key_free(k);
    for (unsigned i = 0; i < 50; i++) { /* of different lengths */
        OK(key_sign(shared, &i, sizeof i, sig, &n));
        assert_true(n <= KEY_SIG_MAX);
        OK(spki_verify(spki, sizeof spki, &i, sizeof i, sig, n));
    }
    OK(key_sign(shared, NULL, 0, sig, &n));
    OK(spki_verify(spki, sizeof spki, NULL, 0, sig, n));
    OK(key_sign(shared, "text", 4, sig, &n));
    FAILS(SYM_EAUTH, spki_verify(others, sizeof others, "text", 4, sig, n));
    FAILS(SYM_EAUTH, spki_verify(spki, sizeof spki, "text", 3, sig, n));
    FAILS(SYM_EAUTH, spki_verify(spki, sizeof spki, "texu", 4, sig, n));
    for (size_t i = 0; i < n; i++) {
        FAILS(SYM_EAUTH, spki_verify(spki, sizeof spki, "text", 4, sig, i));
        sig[i] ^= 4;
        FAILS(SYM_EAUTH, spki_verify(spki, sizeof spki, "text", 4, sig, n));
        sig[i] ^= 4;
    }
    key_free(shared);
    key_free(other);
}

/* RFC 6979, A.2.5: "sample" with SHA-256. */
static void known_answer(void **state)
{
    (void)state;
    uint8_t spki[SPKI_LEN], sig[72];
    OK(hex_decode("3059301306072a8648ce3d020106082a8648ce3d03010703420004"
                  "60fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6"
                  "7903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299",
        182, spki, sizeof spki));
    OK(hex_decode("3046022100efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716"
                  "022100f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8",
        144, sig, sizeof sig));
    OK(spki_verify(spki, sizeof spki, "sample", 6, sig, sizeof sig));
    FAILS(SYM_EAUTH, spki_verify(spki, sizeof spki, "Sample", 6, sig, sizeof sig));
}

static void refuse(EVP_PKEY *pkey)
{
    unsigned char *der = NULL;
    int n = i2d_PUBKEY(pkey, &der);
    assert_true(n > 0);
    assert_false(spki_is_p256(der, (size_t)n));
    FAILS(SYM_EINVAL, spki_verify(der, (size_t)n, "x", 1, "y", 1));
    OPENSSL_free(der);
    EVP_PKEY_free(pkey);
}

static void other_keys(void **state)
{
    (void)state;
    struct key *k;
    uint8_t spki[SPKI_LEN + 1] = {0}, sig[KEY_SIG_MAX];
    size_t n;
    refuse(EVP_EC_gen("P-384"));
    refuse(EVP_EC_gen("secp256k1"));
    refuse(EVP_RSA_gen(2048));
    EVP_PKEY *compressed = EVP_EC_gen("P-256");
    assert_int_equal(EVP_PKEY_set_utf8_string_param(compressed, "point-format", "compressed"), 1);
    refuse(compressed);
    OK(key_generate(&k));
    OK(key_public(k, spki));
    OK(key_sign(k, "x", 1, sig, &n));
    FAILS(SYM_EINVAL, spki_verify(spki, SPKI_LEN - 1, "x", 1, sig, n));
    FAILS(SYM_EINVAL, spki_verify(spki, SPKI_LEN + 1, "x", 1, sig, n));
    FAILS(SYM_EINVAL, spki_verify(NULL, 0, "x", 1, sig, n));
    spki[SPKI_LEN - 1] ^= 1; /* a point that is not on the curve */
    assert_true(spki_is_p256(spki, SPKI_LEN));
    FAILS(SYM_EINVAL, spki_verify(spki, SPKI_LEN, "x", 1, sig, n));
    key_free(k);
}

static void of_certificates(void **state)
{
    (void)state;
    int64_t now = time(NULL);
    struct identity ca = make_ca("cluster1", now - HOUR, now + DAY);
    struct cert_info info;
    uint8_t spki[SPKI_LEN];
    OK(key_public(ca.key, spki));
    OK(cert_info(ca.pem, strlen(ca.pem), &info));
    assert_true(info.has_spki);
    assert_memory_equal(info.spki, spki, sizeof spki);
    free_identity(&ca);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(signed_and_verified),
        cmocka_unit_test(known_answer),
        cmocka_unit_test(other_keys),
        cmocka_unit_test(of_certificates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
