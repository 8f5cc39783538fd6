#include "crypto/ossl.h"

#include "base/err.h"

#include <openssl/core_names.h>
#include <openssl/err.h>

int key_sign(const struct key *k, const void *text, size_t n, uint8_t *sig, size_t *sig_len)
{
    size_t len = KEY_SIG_MAX;
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    int ok = ctx != NULL && EVP_DigestSignInit(ctx, NULL, EVP_sha256(), NULL, k->pkey) == 1 &&
             EVP_DigestSign(ctx, sig, &len, text, n) == 1;
    EVP_MD_CTX_free(ctx);
    if (!ok) {
        return ossl_errf(SYM_EIO, "signature");
    }
    *sig_len = len;
    return 0;
}

/* From the point itself: d2i_PUBKEY goes through OpenSSL's decoders, which takes longer than the verification. NULL if
 * it is not on the curve, or without memory. */
static EVP_PKEY *key_of_point(const uint8_t *point, size_t n)
{
    static char group[] = "P-256";
    EVP_PKEY *pkey = NULL;
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, group, 0),
        OSSL_PARAM_construct_octet_string(OSSL_PKEY_PARAM_PUB_KEY, (void *)(uintptr_t)point, n),
        OSSL_PARAM_construct_end(),
    };
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "EC", NULL);
    if (ctx != NULL && EVP_PKEY_fromdata_init(ctx) == 1) {
        (void)EVP_PKEY_fromdata(ctx, &pkey, EVP_PKEY_PUBLIC_KEY, params);
    }
    EVP_PKEY_CTX_free(ctx);
    return pkey;
}

int spki_verify(
    const void *spki, size_t spki_len, const void *text, size_t n, const void *sig, size_t sig_len)
{
    enum { POINT_LEN = 65 };
    if (!spki_is_p256(spki, spki_len)) {
        return err_setf(SYM_EINVAL, "the key is not ECDSA P-256");
    }
    EVP_PKEY *pkey = key_of_point((const uint8_t *)spki + SPKI_LEN - POINT_LEN, POINT_LEN);
    if (pkey == NULL) {
        return ossl_errf(SYM_EINVAL, "public key");
    }
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    int rv = 0;
    if (ctx == NULL || EVP_DigestVerifyInit(ctx, NULL, EVP_sha256(), NULL, pkey) != 1) {
        rv = ossl_errf(SYM_ENOMEM, "signature");
    } else if (sig_len > KEY_SIG_MAX || EVP_DigestVerify(ctx, sig, sig_len, text, n) != 1) {
        rv = ossl_errf(SYM_EAUTH, "the signature is wrong");
    }
    EVP_MD_CTX_free(ctx);
    EVP_PKEY_free(pkey);
    ERR_clear_error();
    return rv;
}
