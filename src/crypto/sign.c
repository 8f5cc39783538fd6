#include "crypto/ossl.h"

#include "base/err.h"

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

int spki_verify(
    const void *spki, size_t spki_len, const void *text, size_t n, const void *sig, size_t sig_len)
{
    const unsigned char *at = spki;
    if (!spki_is_p256(spki, spki_len)) {
        return err_setf(SYM_EINVAL, "the key is not ECDSA P-256");
    }
    EVP_PKEY *pkey = d2i_PUBKEY(NULL, &at, (long)spki_len);
    if (pkey == NULL) {
        return ossl_errf(SYM_EINVAL, "public key"); /* not on the curve */
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
