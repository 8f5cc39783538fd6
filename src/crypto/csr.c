#include "crypto/ossl.h"

#include "base/err.h"

#include <openssl/pem.h>

int csr_new(const struct key *k, const char *cn, struct buf *out)
{
    int err = name_check("CN", cn);
    if (err != 0) {
        return err;
    }
    BIO *bio = BIO_new(BIO_s_mem());
    X509_REQ *req = X509_REQ_new();
    if (bio == NULL || req == NULL) {
        err = ossl_errf(SYM_ENOMEM, "certificate request");
        goto end;
    }
    err = name_add(X509_REQ_get_subject_name(req), "CN", cn);
    if (err != 0) {
        goto end;
    }
    if (X509_REQ_set_version(req, 0) != 1 || X509_REQ_set_pubkey(req, k->pkey) != 1 ||
        X509_REQ_sign(req, k->pkey, EVP_sha256()) <= 0 || PEM_write_bio_X509_REQ(bio, req) != 1) {
        err = ossl_errf(SYM_ENOMEM, "certificate request");
        goto end;
    }
    err = pem_append(bio, out);
end:
    X509_REQ_free(req);
    BIO_free(bio);
    return err;
}

int csr_read(const char *pem, size_t n, X509_REQ **out)
{
    int err = 0;
    uint8_t fingerprint[SHA256_LEN];
    BIO *bio = pem_open(pem, n, PEM_ONE_MAX, "certificate request", &err);
    if (bio == NULL) {
        return err;
    }
    X509_REQ *req = PEM_read_bio_X509_REQ(bio, NULL, pem_no_password, NULL);
    BIO_free(bio);
    if (req == NULL) {
        return ossl_errf(SYM_EINVAL, "certificate request");
    }
    /* The kind of key first: verifying with a huge key of another kind is slow. */
    err = p256_fingerprint(X509_REQ_get0_pubkey(req), fingerprint);
    if (err == 0 && X509_REQ_verify(req, X509_REQ_get0_pubkey(req)) != 1) {
        err = ossl_errf(SYM_EINVAL, "the certificate request's signature is wrong");
    }
    if (err != 0) {
        X509_REQ_free(req);
        return err;
    }
    *out = req;
    return 0;
}

int csr_check(const char *pem, size_t n, uint8_t fingerprint[SHA256_LEN], char cn[64])
{
    X509_REQ *req = NULL;
    int err = csr_read(pem, n, &req);
    if (err != 0) {
        return err;
    }
    err = p256_fingerprint(X509_REQ_get0_pubkey(req), fingerprint);
    if (err == 0) {
        err = name_read("certificate request", X509_REQ_get_subject_name(req), NID_commonName, cn);
    }
    X509_REQ_free(req);
    return err;
}
