/* Randomness, digests, keys, certificate requests and certificates: all of symphony's cryptography but TLS
 * itself (crypto/tls.h). Only src/crypto includes OpenSSL. Keys are ECDSA P-256; everything on disk and on
 * the wire is PEM. Functions return 0 or SYM_E* with a message; a parser answers SYM_EINVAL for bytes that
 * are not what they should be.
 */
#ifndef SYM_CRYPTO_CRYPTO_H
#define SYM_CRYPTO_CRYPTO_H

#include "base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SHA256_LEN 32
/* A public key as raw DER, the SubjectPublicKeyInfo of RFC 5480: P-256, named and uncompressed, has one spelling. */
#define SPKI_LEN 91
/* A signature: ECDSA with SHA-256, DER. */
#define KEY_SIG_MAX 72

/* Fills @out; SYM_EIO if the system has no randomness. */
int crypto_random(void *out, size_t n);
int crypto_sha256(const void *data, size_t n, uint8_t out[SHA256_LEN]);
/* A running digest. */
struct sha256;
int sha256_new(struct sha256 **out);
int sha256_add(struct sha256 *s, const void *data, size_t n);
int sha256_end(struct sha256 *s, uint8_t out[SHA256_LEN]); /* frees @s */
void sha256_free(struct sha256 *s);                        /* for an abandoned one; NULL is fine */
/* Constant-time. */
bool crypto_equal(const void *a, const void *b, size_t n);
/* Overwrites secrets; not optimised away. */
void crypto_wipe(void *p, size_t n);

/* A private key. */
struct key;
int key_generate(struct key **out);
int key_from_pem(const char *pem, size_t n, struct key **out);
int key_to_pem(const struct key *k, struct buf *out);
void key_free(struct key *k);
/* SHA-256 of the SubjectPublicKeyInfo: what `node approve --fingerprint` compares. */
int key_fingerprint(const struct key *k, uint8_t out[SHA256_LEN]);
int key_public(const struct key *k, uint8_t out[SPKI_LEN]);
/* The same key for another owner. SYM_ENOMEM. */
int key_share(const struct key *k, struct key **out);
/* Signs @text to @sig, which has room for KEY_SIG_MAX bytes. SYM_EIO, SYM_ENOMEM. */
int key_sign(const struct key *k, const void *text, size_t n, uint8_t *sig, size_t *sig_len);

/* Is it such a public key by its form? Whether it is on the curve shows spki_verify. */
bool spki_is_p256(const void *spki, size_t n);
/* Did the owner of @spki sign @text? SYM_EAUTH if not, SYM_EINVAL for any key but P-256, SYM_ENOMEM. Some 150 us. */
int spki_verify(
    const void *spki, size_t spki_len, const void *text, size_t n, const void *sig, size_t sig_len);

/* A request signed by @k for itself, subject CN=@cn. */
int csr_new(const struct key *k, const char *cn, struct buf *out);
/* Checks the request's own signature; the fingerprint is that of its key, @cn what its subject says ("": nothing).
 * Refuses keys that are not P-256. */
int csr_check(const char *pem, size_t n, uint8_t fingerprint[SHA256_LEN], char cn[64]);

/* What a certificate says: at most 63 characters a name. */
struct cert_spec {
    const char *cn;     /* node id, or the name of a client certificate */
    const char *ou;     /* role: manager, worker, operator, reader */
    const char *o;      /* cluster id */
    int64_t not_before; /* seconds since 1970 */
    int64_t not_after;
    bool server;      /* extendedKeyUsage serverAuth; clientAuth is always there */
    uint64_t raft_id; /* the one that a manager may act as; 0: none */
    /* Where it is reached, as the clients of others check it: IP addresses and host names (at most 253 bytes). */
    const char *const *hosts;
    size_t n_hosts;
};

/* A self-signed CA (pathlen 1, keyCertSign) for cluster @o, valid from @not_before to @not_after. */
int cert_new_ca(const struct key *k, const char *o, int64_t not_before, int64_t not_after, struct buf *out);
/* Signs the key of @csr: its subject is @spec, not the request's. Random 128-bit serial. keyUsage
 * digitalSignature and keyEncipherment. */
int cert_sign(const struct key *ca_key, const char *ca_pem, size_t ca_n, const char *csr, size_t csr_n,
    const struct cert_spec *spec, struct buf *out);

/* What CA key @ca_key says of another CA, whose certificate is @of: the same subject, key and validity, signed by
 * @ca_pem's ("new with old" of RFC 4210, 4.4). It lets those who know the one CA only believe in what the other has
 * signed. */
int cert_cross_sign(
    const struct key *ca_key, const char *ca_pem, size_t ca_n, const char *of, size_t of_n, struct buf *out);

struct cert_info {
    char cn[64], ou[64], o[64];
    char serial[64]; /* hex */
    int64_t not_before, not_after;
    uint8_t digest[SHA256_LEN];      /* of the DER certificate: what a token pins, for a CA */
    uint8_t fingerprint[SHA256_LEN]; /* of its key, as key_fingerprint */
    bool has_spki;                   /* it is P-256 */
    uint8_t spki[SPKI_LEN];
    bool is_ca, is_server;
    uint64_t raft_id; /* 0: none */
};
int cert_info(const char *pem, size_t n, struct cert_info *out);
/* The one at @at, from 0, of several certificates in one text, alone; SYM_ENOTFOUND behind the last. */
int cert_nth(const char *pem, size_t n, unsigned at, struct buf *out);
/* The hosts of the first certificate in @pem, each followed by a newline: IP addresses in their usual form, names as
 * they stand there. Others among its alternative names are left out. */
int cert_hosts(const char *pem, size_t n, struct buf *out);
/* 0 if @pem is signed by one of the certificates in @ca_pem (one or more PEM blocks); the time is not looked
 * at. */
int cert_check_issuer(const char *pem, size_t n, const char *ca_pem, size_t ca_n);
/* 0 if @pem holds the public half of @k. */
int cert_check_key(const char *pem, size_t n, const struct key *k);

#endif
