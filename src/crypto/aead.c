#include "crypto/aead.h"

#include "base/err.h"
#include "crypto/ossl.h"

#include <limits.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/kdf.h>
#include <stdlib.h>
#include <string.h>

struct aead {
    EVP_CIPHER_CTX *ctx;
    EVP_CIPHER *cipher; /* fetched once: that is slow */
    EVP_KDF_CTX *kdf;
};

int aead_new(struct aead **out)
{
    struct aead *a = calloc(1, sizeof *a);
    if (a == NULL) {
        return err_setf(SYM_ENOMEM, "AEAD");
    }
    EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
    a->ctx = EVP_CIPHER_CTX_new();
    a->cipher = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    a->kdf = kdf == NULL ? NULL : EVP_KDF_CTX_new(kdf);
    EVP_KDF_free(kdf);
    if (a->ctx == NULL || a->cipher == NULL || a->kdf == NULL) {
        aead_free(a);
        return ossl_errf(SYM_ENOMEM, "AEAD");
    }
    *out = a;
    return 0;
}

void aead_free(struct aead *a)
{
    if (a != NULL) {
        EVP_CIPHER_CTX_free(a->ctx);
        EVP_CIPHER_free(a->cipher);
        EVP_KDF_CTX_free(a->kdf);
        free(a);
    }
}

int aead_seal(struct aead *a, const uint8_t key[AEAD_KEY_LEN], const uint8_t nonce[AEAD_NONCE_LEN],
    const void *aad, size_t aad_len, const void *plain, size_t n, uint8_t *out)
{
    int len;
    if (n > INT_MAX || aad_len > INT_MAX) {
        return err_setf(SYM_ETOOBIG, "%zu bytes to encrypt", n);
    }
    if (EVP_EncryptInit_ex2(a->ctx, a->cipher, key, nonce, NULL) != 1 ||
        EVP_EncryptUpdate(a->ctx, NULL, &len, aad, (int)aad_len) != 1 ||
        EVP_EncryptUpdate(a->ctx, out, &len, plain, (int)n) != 1 ||
        EVP_EncryptFinal_ex(a->ctx, out + len, &len) != 1 ||
        EVP_CIPHER_CTX_ctrl(a->ctx, EVP_CTRL_AEAD_GET_TAG, AEAD_TAG_LEN, out + n) != 1) {
        return ossl_errf(SYM_EIO, "encryption");
    }
    return 0;
}

bool aead_open(struct aead *a, const uint8_t key[AEAD_KEY_LEN], const uint8_t nonce[AEAD_NONCE_LEN],
    const void *aad, size_t aad_len, const void *sealed, size_t n, uint8_t *out)
{
    uint8_t tag[AEAD_TAG_LEN];
    int len;
    if (n < AEAD_TAG_LEN || n > INT_MAX || aad_len > INT_MAX) {
        return false;
    }
    n -= AEAD_TAG_LEN;
    memcpy(tag, (const uint8_t *)sealed + n, sizeof tag);
    bool ok = EVP_DecryptInit_ex2(a->ctx, a->cipher, key, nonce, NULL) == 1 &&
              EVP_DecryptUpdate(a->ctx, NULL, &len, aad, (int)aad_len) == 1 &&
              EVP_DecryptUpdate(a->ctx, out, &len, sealed, (int)n) == 1 &&
              EVP_CIPHER_CTX_ctrl(a->ctx, EVP_CTRL_AEAD_SET_TAG, AEAD_TAG_LEN, tag) == 1 &&
              EVP_DecryptFinal_ex(a->ctx, out + len, &len) == 1;
    if (!ok) {
        ERR_clear_error();
    }
    return ok;
}

int aead_derive(struct aead *a, const void *secret, size_t secret_len, const void *salt, size_t salt_len,
    const void *info, size_t info_len, uint8_t *out, size_t n)
{
    static char digest[] = "SHA256";
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, (void *)(uintptr_t)secret, secret_len),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, (void *)(uintptr_t)salt, salt_len),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, (void *)(uintptr_t)info, info_len),
        OSSL_PARAM_construct_end(),
    };
    EVP_KDF_CTX_reset(a->kdf);
    int ok = EVP_KDF_derive(a->kdf, out, n, params);
    EVP_KDF_CTX_reset(a->kdf); /* forgets the secret */
    return ok == 1 ? 0 : ossl_errf(SYM_EIO, "key derivation");
}
