#include "crypto/ossl.h"

#include "base/err.h"

#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <stdlib.h>
#include <string.h>

bool spki_is_p256(const void *spki, size_t n)
{
    /* SubjectPublicKeyInfo of id-ecPublicKey, prime256v1, and the tag of an uncompressed point (RFC 5480). */
    static const uint8_t head[] = {0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02,
        0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04};
    _Static_assert(sizeof head + 64 == SPKI_LEN, "a head and a point");
    return n == SPKI_LEN && memcmp(spki, head, sizeof head) == 0;
}

static int p256_spki(EVP_PKEY *pkey, uint8_t out[SPKI_LEN])
{
    unsigned char *der = NULL;
    int n = pkey == NULL ? -1 : i2d_PUBKEY(pkey, &der);
    if (n <= 0) {
        return ossl_errf(SYM_EINVAL, "public key");
    }
    int err = 0;
    if (spki_is_p256(der, (size_t)n)) {
        memcpy(out, der, SPKI_LEN);
    } else {
        err = err_setf(SYM_EINVAL, "the key is not ECDSA P-256");
    }
    OPENSSL_free(der);
    return err;
}

int p256_fingerprint(EVP_PKEY *pkey, uint8_t out[SHA256_LEN])
{
    uint8_t spki[SPKI_LEN];
    int err = p256_spki(pkey, spki);
    return err != 0 ? err : crypto_sha256(spki, sizeof spki, out);
}

static int wrap(EVP_PKEY *pkey, struct key **out)
{
    struct key *k = malloc(sizeof *k);
    if (k == NULL) {
        EVP_PKEY_free(pkey);
        return err_setf(SYM_ENOMEM, "private key");
    }
    k->pkey = pkey;
    *out = k;
    return 0;
}

int key_generate(struct key **out)
{
    EVP_PKEY *pkey = EVP_EC_gen("P-256");
    return pkey == NULL ? ossl_errf(SYM_EIO, "private key") : wrap(pkey, out);
}

/* A file that was damaged or put together by hand may hold a public half that is not the private one's. */
static int check_halves(EVP_PKEY *pkey)
{
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new(pkey, NULL);
    int ok = ctx != NULL && EVP_PKEY_pairwise_check(ctx) == 1;
    EVP_PKEY_CTX_free(ctx);
    return ok ? 0 : ossl_errf(SYM_EINVAL, "private key");
}

int key_from_pem(const char *pem, size_t n, struct key **out)
{
    int err = 0;
    uint8_t fingerprint[SHA256_LEN];
    EVP_PKEY *pkey = NULL;
    BIO *bio = pem_open(pem, n, PEM_ONE_MAX, "private key", &err);
    if (bio == NULL) {
        return err;
    }
    pkey = PEM_read_bio_PrivateKey(bio, NULL, pem_no_password, NULL);
    if (pkey == NULL) {
        err = ossl_errf(SYM_EINVAL, "private key");
        goto free_bio;
    }
    /* A successful decode may leave the failures of the formats that it tried first. */
    ERR_clear_error();
    err = p256_fingerprint(pkey, fingerprint);
    if (err != 0) {
        goto free_key;
    }
    err = check_halves(pkey);
    if (err != 0) {
        goto free_key;
    }
    err = wrap(pkey, out);
    goto free_bio;
free_key:
    EVP_PKEY_free(pkey);
free_bio:
    BIO_free(bio);
    return err;
}

int key_to_pem(const struct key *k, struct buf *out)
{
    int err;
    BIO *bio = BIO_new(BIO_s_mem());
    if (bio == NULL || PEM_write_bio_PKCS8PrivateKey(bio, k->pkey, NULL, NULL, 0, NULL, NULL) != 1) {
        err = ossl_errf(SYM_ENOMEM, "private key");
    } else {
        err = pem_append(bio, out);
    }
    BIO_free(bio); /* overwrites what it held */
    return err;
}

void key_free(struct key *k)
{
    if (k != NULL) {
        EVP_PKEY_free(k->pkey);
        free(k);
    }
}

int key_fingerprint(const struct key *k, uint8_t out[SHA256_LEN])
{
    return p256_fingerprint(k->pkey, out);
}

int key_public(const struct key *k, uint8_t out[SPKI_LEN])
{
    return p256_spki(k->pkey, out);
}

int key_share(const struct key *k, struct key **out)
{
    if (EVP_PKEY_up_ref(k->pkey) != 1) {
        return ossl_errf(SYM_ENOMEM, "private key");
    }
    return wrap(k->pkey, out);
}
