/* What the files of src/crypto share: OpenSSL's errors as ours, PEM in and out. Not for other floors. */
#ifndef SYM_CRYPTO_OSSL_H
#define SYM_CRYPTO_OSSL_H

#include "crypto/crypto.h"

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/x509.h>

struct key {
    EVP_PKEY *pkey;
};

/* Texts longer than these are refused unread: a request or a key, and a bundle of certificates. */
enum { PEM_ONE_MAX = 16 * 1024, PEM_BUNDLE_MAX = 64 * 1024 };
/* A field of a subject: bytes without the NUL. */
enum { NAME_MAX_BYTES = 63 };
/* A host among the alternative names. */
enum { HOST_MAX_BYTES = 253 };

/* Sets "fmt: OpenSSL's reason", empties OpenSSL's queue and returns @code, or SYM_ENOMEM if memory was the
 * reason. */
int ossl_errf(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* A source over @pem, which it borrows; NULL with SYM_EINVAL's or SYM_ENOMEM's message and the code in
 * *@code. */
BIO *pem_open(const char *pem, size_t n, size_t max, const char *what, int *code);
/* For every PEM reader: OpenSSL's own would ask for a password on the terminal. */
int pem_no_password(char *buf, int size, int writing, void *arg);
/* Appends what was written to the memory @bio. */
int pem_append(BIO *bio, struct buf *out);

/* One to many certificates, in their order; at least one. */
int certs_read(const char *pem, size_t n, STACK_OF(X509) * *out);
void certs_free(STACK_OF(X509) * certs);
/* What @x says; SYM_EINVAL if a name does not fit or is ambiguous. */
int cert_describe(X509 *x, struct cert_info *out);
int cert_append_pem(X509 *x, struct buf *out);

/* A request whose signature holds and whose key is P-256. */
int csr_read(const char *pem, size_t n, X509_REQ **out);
/* Refuses a public key that is not P-256, named and uncompressed: one key has one spelling, so one
 * fingerprint. */
int p256_fingerprint(EVP_PKEY *pkey, uint8_t out[SHA256_LEN]);
/* A name that may stand in a subject: 1 to 63 bytes, no control characters. */
int name_check(const char *what, const char *name);
int name_add(X509_NAME *to, const char *field, const char *value);
/* The one value of a field of a subject, "" if it has none. Whoever is two names at once is nobody. */
int name_read(const char *what, const X509_NAME *from, int nid, char out[NAME_MAX_BYTES + 1]);

#endif
