#include "crypto/ossl.h"

#include "base/err.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <limits.h>
#include <stdlib.h>

int crypto_random(void *out, size_t n)
{
    uint8_t *to = out;
    while (n > 0) {
        int step = n < INT_MAX ? (int)n : INT_MAX;
        if (RAND_bytes(to, step) != 1) {
            return ossl_errf(SYM_EIO, "no randomness");
        }
        to += step;
        n -= (size_t)step;
    }
    return 0;
}

int crypto_sha256(const void *data, size_t n, uint8_t out[SHA256_LEN])
{
    if (EVP_Digest(data, n, out, NULL, EVP_sha256(), NULL) != 1) {
        return ossl_errf(SYM_ENOMEM, "SHA-256");
    }
    return 0;
}

struct sha256 {
    EVP_MD_CTX *ctx;
};

int sha256_new(struct sha256 **out)
{
    struct sha256 *s = malloc(sizeof *s);
    if (s == NULL) {
        return err_setf(SYM_ENOMEM, "SHA-256");
    }
    s->ctx = EVP_MD_CTX_new();
    if (s->ctx == NULL || EVP_DigestInit_ex(s->ctx, EVP_sha256(), NULL) != 1) {
        sha256_free(s);
        return ossl_errf(SYM_ENOMEM, "SHA-256");
    }
    *out = s;
    return 0;
}

int sha256_add(struct sha256 *s, const void *data, size_t n)
{
    if (EVP_DigestUpdate(s->ctx, data, n) != 1) {
        return ossl_errf(SYM_ENOMEM, "SHA-256");
    }
    return 0;
}

int sha256_end(struct sha256 *s, uint8_t out[SHA256_LEN])
{
    int ok = EVP_DigestFinal_ex(s->ctx, out, NULL);
    sha256_free(s);
    return ok == 1 ? 0 : ossl_errf(SYM_ENOMEM, "SHA-256");
}

void sha256_free(struct sha256 *s)
{
    if (s != NULL) {
        EVP_MD_CTX_free(s->ctx);
        free(s);
    }
}

bool crypto_equal(const void *a, const void *b, size_t n)
{
    return CRYPTO_memcmp(a, b, n) == 0;
}

void crypto_wipe(void *p, size_t n)
{
    if (n > 0) {
        OPENSSL_cleanse(p, n);
    }
}
