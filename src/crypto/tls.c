#include "crypto/tls.h"

#include "base/err.h"
#include "crypto/ossl.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* What a record adds to its bytes: header, content type, tag. */
enum { RECORD_EXTRA = 5 + 1 + 16 };
/* What a peer's chain may take before it is verified. */
enum { CHAIN_MAX = 32 * 1024 };

struct tls_ctx {
    SSL_CTX *ssl;
    enum tls_flags flags;
};

struct tls {
    SSL *ssl;
    const uint8_t *in; /* during a call: what the caller fed and OpenSSL has not taken */
    size_t in_len;
    struct buf *wire; /* during a call: where OpenSSL writes */
    size_t held;    /* bytes taken that have not come out as plain text yet; more than that cannot come out */
    int failed;     /* the code that every call gives since */
    bool no_memory; /* the wire could not grow */
    bool any;
    bool established;
    bool expired;
    bool ended;  /* the peer's close_notify came */
    bool closed; /* ours went */
    struct tls_peer peer;
};

/* -- the BIO: OpenSSL reads what was fed and writes to the caller's buffer, with nothing in between -- */

static int bio_read(BIO *bio, char *out, int n)
{
    struct tls *t = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    if (n <= 0 || t->in_len == 0) {
        BIO_set_retry_read(bio);
        return -1;
    }
    size_t k = (size_t)n < t->in_len ? (size_t)n : t->in_len;
    memcpy(out, t->in, k);
    t->in += k;
    t->in_len -= k;
    t->held += k;
    return (int)k;
}

static int bio_write(BIO *bio, const char *data, int n)
{
    struct tls *t = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    if (n < 0 || t->wire == NULL) {
        return -1;
    }
    if (buf_append(t->wire, data, (size_t)n) != 0) {
        t->no_memory = true;
        return -1;
    }
    return n;
}

static long bio_ctrl(BIO *bio, int what, long number, void *arg)
{
    (void)bio;
    (void)number;
    (void)arg;
    return what == BIO_CTRL_FLUSH;
}

static int bio_create(BIO *bio)
{
    BIO_set_init(bio, 1);
    return 1;
}

static BIO_METHOD *bio_method;
static CRYPTO_ONCE bio_once = CRYPTO_ONCE_STATIC_INIT;

static void make_bio_method(void)
{
    BIO_METHOD *m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "symphony");
    if (m != NULL && BIO_meth_set_read(m, bio_read) == 1 && BIO_meth_set_write(m, bio_write) == 1 &&
        BIO_meth_set_ctrl(m, bio_ctrl) == 1 && BIO_meth_set_create(m, bio_create) == 1) {
        bio_method = m;
    } else {
        BIO_meth_free(m);
    }
}

/* -- context -- */

/* A cluster whose certificates have all run out must still be able to renew them: only time is forgiven. */
static int on_verify(int ok, X509_STORE_CTX *store)
{
    int why = X509_STORE_CTX_get_error(store);
    if (ok || (why != X509_V_ERR_CERT_HAS_EXPIRED && why != X509_V_ERR_CERT_NOT_YET_VALID)) {
        return ok;
    }
    SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct tls *t = SSL_get_app_data(ssl);
    t->expired = true;
    X509_STORE_CTX_set_error(store, X509_V_OK);
    return 1;
}

/* OpenSSL's own way, but that the chain that it has found is not kept: nobody asks for it, and it holds the peer's
 * certificate, some 5 KiB, for as long as there is a connection. */
static int verify(X509_STORE_CTX *store, void *arg)
{
    (void)arg;
    int ok = X509_verify_cert(store);
    X509_STORE_CTX_set0_verified_chain(store, NULL);
    return ok;
}

static int accept_any(X509_STORE_CTX *store, void *arg)
{
    (void)store;
    (void)arg;
    return 1;
}

static int use_identity(SSL_CTX *ssl, const char *cert, const struct key *key)
{
    STACK_OF(X509) *chain = NULL;
    int err = certs_read(cert, strlen(cert), &chain);
    if (err != 0) {
        return err;
    }
    if (SSL_CTX_use_certificate(ssl, sk_X509_value(chain, 0)) != 1 ||
        SSL_CTX_use_PrivateKey(ssl, key->pkey) != 1) {
        err = ossl_errf(SYM_EINVAL, "certificate and key");
    }
    for (int i = 1; err == 0 && i < sk_X509_num(chain); i++) {
        if (SSL_CTX_add1_chain_cert(ssl, sk_X509_value(chain, i)) != 1) {
            err = ossl_errf(SYM_ENOMEM, "certificate chain");
        }
    }
    certs_free(chain);
    return err;
}

static int trust(SSL_CTX *ssl, const char *ca, bool server)
{
    STACK_OF(X509) *cas = NULL;
    int err = certs_read(ca, strlen(ca), &cas);
    if (err != 0) {
        return err_wrapf(err, "CA");
    }
    for (int i = 0; err == 0 && i < sk_X509_num(cas); i++) {
        X509 *x = sk_X509_value(cas, i);
        if (X509_check_ca(x) != 1) {
            err = ossl_errf(SYM_EINVAL, "CA: the certificate is not a CA's");
        } else if (X509_STORE_add_cert(SSL_CTX_get_cert_store(ssl), x) != 1 ||
                   (server && SSL_CTX_add_client_CA(ssl, x) != 1)) {
            err = ossl_errf(SYM_ENOMEM, "CA");
        }
    }
    certs_free(cas);
    return err;
}

static int set_up(SSL_CTX *ssl, bool server)
{
    SSL_CTX_set_options(ssl, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_CIPHER_SERVER_PREFERENCE);
    /* Only what the caller gave is sent as the chain. A thousand idle connections must not hold 34 KiB each.
     */
    SSL_CTX_set_mode(ssl, SSL_MODE_NO_AUTO_CHAIN | SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_max_cert_list(ssl, CHAIN_MAX);
    SSL_CTX_set_verify_depth(ssl, 0); /* no intermediate CAs */
    if (SSL_CTX_set_min_proto_version(ssl, TLS1_3_VERSION) != 1 ||
        SSL_CTX_set_ciphersuites(
            ssl, "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384") != 1 ||
        SSL_CTX_set1_groups_list(ssl, "X25519:P-256") != 1 ||
        SSL_CTX_set1_sigalgs_list(ssl, "ECDSA+SHA256") != 1 ||
        (server && SSL_CTX_set_num_tickets(ssl, 0) != 1)) {
        return ossl_errf(SYM_ENOMEM, "TLS");
    }
    return 0;
}

int tls_ctx_new(
    enum tls_flags flags, const char *cert, const struct key *key, const char *ca, struct tls_ctx **out)
{
    bool server = flags & TLS_SERVER, any = flags & TLS_PEER_ANY, optional = flags & TLS_PEER_OPTIONAL;
    if ((cert == NULL) != (key == NULL) || (server && (cert == NULL || any)) || (!server && optional) ||
        (ca == NULL && !any)) {
        return err_setf(SYM_EINVAL, "TLS: certificate, key, CA and flags do not go together");
    }
    int err;
    struct tls_ctx *ctx = calloc(1, sizeof *ctx);
    if (ctx == NULL) {
        return err_setf(SYM_ENOMEM, "TLS");
    }
    ctx->flags = flags;
    ctx->ssl = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
    if (ctx->ssl == NULL) {
        err = ossl_errf(SYM_ENOMEM, "TLS");
        goto fail;
    }
    if ((err = set_up(ctx->ssl, server)) != 0 ||
        (cert != NULL && (err = use_identity(ctx->ssl, cert, key)) != 0) ||
        (ca != NULL && (err = trust(ctx->ssl, ca, server)) != 0)) {
        goto fail;
    }
    if (any) {
        SSL_CTX_set_verify(ctx->ssl, SSL_VERIFY_NONE, NULL);
        SSL_CTX_set_cert_verify_callback(ctx->ssl, accept_any, NULL);
    } else {
        int strict = server && !optional ? SSL_VERIFY_FAIL_IF_NO_PEER_CERT : 0;
        SSL_CTX_set_verify(ctx->ssl, SSL_VERIFY_PEER | strict, on_verify);
        SSL_CTX_set_cert_verify_callback(ctx->ssl, verify, NULL);
    }
    *out = ctx;
    return 0;
fail:
    tls_ctx_free(ctx);
    return err;
}

void tls_ctx_free(struct tls_ctx *ctx)
{
    if (ctx != NULL) {
        SSL_CTX_free(ctx->ssl);
        free(ctx);
    }
}

/* -- connection -- */

int tls_new(struct tls_ctx *ctx, struct tls **out)
{
    if (CRYPTO_THREAD_run_once(&bio_once, make_bio_method) != 1 || bio_method == NULL) {
        return ossl_errf(SYM_ENOMEM, "TLS");
    }
    struct tls *t = calloc(1, sizeof *t);
    BIO *bio = BIO_new(bio_method);
    SSL *ssl = SSL_new(ctx->ssl);
    if (t == NULL || bio == NULL || ssl == NULL || SSL_set_app_data(ssl, t) != 1) {
        SSL_free(ssl);
        BIO_free(bio);
        free(t);
        return ossl_errf(SYM_ENOMEM, "TLS connection");
    }
    BIO_set_data(bio, t);
    SSL_set_bio(ssl, bio, bio);
    if (ctx->flags & TLS_SERVER) {
        SSL_set_accept_state(ssl);
    } else {
        SSL_set_connect_state(ssl);
    }
    t->ssl = ssl;
    t->any = ctx->flags & TLS_PEER_ANY;
    *out = t;
    return 0;
}

void tls_free(struct tls *t)
{
    if (t != NULL) {
        SSL_free(t->ssl);
        free(t);
    }
}

/* Whether OpenSSL's reason for a failure is about who somebody is; it then has words for a person. */
static const char *identity_reason(int reason)
{
    switch (reason) {
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
        return "the peer has no certificate";
    case SSL_R_CERTIFICATE_VERIFY_FAILED:
        return "the peer's certificate is not accepted";
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
        return "the peer asks for a certificate";
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
    case SSL_R_TLSV1_ALERT_ACCESS_DENIED:
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
        return "the peer does not accept our certificate";
    default:
        return NULL;
    }
}

/* Why the call that returned @ret did not succeed: 0 if it only waits for more bytes. */
static int outcome(struct tls *t, int ret)
{
    int why = SSL_get_error(t->ssl, ret);
    if (why == SSL_ERROR_WANT_READ) {
        return 0;
    }
    if (why == SSL_ERROR_ZERO_RETURN) {
        t->ended = true;
        return err_setf(SYM_ECLOSED, "the peer closed the connection");
    }
    unsigned long first = ERR_peek_error();
    const char *identity = ERR_GET_LIB(first) == ERR_LIB_SSL ? identity_reason(ERR_GET_REASON(first)) : NULL;
    long verify = SSL_get_verify_result(t->ssl);
    if (t->no_memory) {
        ERR_clear_error();
        t->failed = err_setf(SYM_ENOMEM, "TLS");
    } else if (identity != NULL && verify != X509_V_OK && !t->any) {
        ERR_clear_error();
        t->failed = verify == X509_V_ERR_OUT_OF_MEM
                        ? err_setf(SYM_ENOMEM, "TLS")
                        : err_setf(SYM_EAUTH, "%s: %s", identity, X509_verify_cert_error_string(verify));
    } else if (identity != NULL) {
        ERR_clear_error();
        t->failed = err_setf(SYM_EAUTH, "%s", identity);
    } else {
        t->failed = ossl_errf(SYM_EPROTO, "TLS");
    }
    return t->failed;
}

/* The peer is known: the handshake is done. */
static int note_peer(struct tls *t)
{
    X509 *x = SSL_get0_peer_certificate(t->ssl);
    if (x != NULL) {
        int err = cert_describe(x, &t->peer.cert);
        if (err != 0) {
            return t->failed = err_wrapf(err == SYM_ENOMEM ? err : SYM_EAUTH, "the peer's certificate");
        }
        time_t now = time(NULL);
        t->peer.present = true;
        t->peer.expired = t->expired || now < t->peer.cert.not_before || now > t->peer.cert.not_after;
    }
    t->established = true;
    return 0;
}

static int handshake(struct tls *t)
{
    int ret = SSL_do_handshake(t->ssl);
    return ret == 1 ? note_peer(t) : outcome(t, ret);
}

/* Decrypts all that is there. */
static int read_plain(struct tls *t, struct buf *plain)
{
    while (t->in_len > 0 || SSL_pending(t->ssl) > 0) {
        size_t most = t->in_len + t->held, got;
        if (most > SSL3_RT_MAX_PLAIN_LENGTH) {
            most = SSL3_RT_MAX_PLAIN_LENGTH;
        }
        uint8_t *to = buf_reserve(plain, most);
        if (to == NULL) {
            return t->failed = SYM_ENOMEM;
        }
        int ret = SSL_read_ex(t->ssl, to, most, &got);
        if (ret != 1) {
            return outcome(t, ret);
        }
        buf_commit(plain, got);
        t->held = (size_t)SSL_pending(t->ssl);
    }
    return 0;
}

int tls_feed(struct tls *t, const void *data, size_t n, struct buf *plain, struct buf *wire)
{
    if (t->failed != 0) {
        return err_setf(t->failed, "the TLS connection has failed");
    }
    if (t->ended) {
        return err_setf(SYM_ECLOSED, "the peer closed the connection");
    }
    ERR_clear_error();
    t->in = data;
    t->in_len = n;
    t->wire = wire;
    int err = t->established ? 0 : handshake(t);
    if (err == 0 && t->established) {
        err = read_plain(t, plain);
    }
    t->in = NULL;
    t->in_len = 0;
    t->wire = NULL;
    return err;
}

int tls_write(struct tls *t, const void *data, size_t n, struct buf *wire)
{
    if (t->failed != 0) {
        return err_setf(t->failed, "the TLS connection has failed");
    }
    if (!t->established || t->closed) {
        return err_setf(t->closed ? SYM_ECLOSED : SYM_EINVAL, "the TLS connection is not open");
    }
    if (n == 0) {
        return 0;
    }
    /* All of it grows once, and a connection whose bytes do not fit is as it was. */
    size_t records = n / SSL3_RT_MAX_PLAIN_LENGTH + 1, done;
    if (buf_reserve(wire, n + records * RECORD_EXTRA) == NULL) {
        return SYM_ENOMEM;
    }
    ERR_clear_error();
    t->wire = wire;
    int ret = SSL_write_ex(t->ssl, data, n, &done);
    t->wire = NULL;
    return ret == 1 ? 0 : outcome(t, ret);
}

int tls_close(struct tls *t, struct buf *wire)
{
    if (t->failed != 0 || !t->established || t->closed) {
        return 0;
    }
    ERR_clear_error();
    t->closed = true;
    t->wire = wire;
    int ret = SSL_shutdown(t->ssl);
    t->wire = NULL;
    return ret >= 0 ? 0 : outcome(t, ret);
}

bool tls_established(const struct tls *t)
{
    return t->established;
}

const struct tls_peer *tls_peer(const struct tls *t)
{
    return &t->peer;
}

bool tls_peer_expired(const struct tls_peer *peer)
{
    return peer->present && (peer->expired || time(NULL) > peer->cert.not_after);
}

int tls_peer_chain(const struct tls *t, struct buf *out)
{
    /* OpenSSL's chain has the leaf in front on a client and leaves it out on a server. */
    X509 *leaf = SSL_get0_peer_certificate(t->ssl);
    STACK_OF(X509) *chain = SSL_get_peer_cert_chain(t->ssl);
    int err = leaf == NULL ? 0 : cert_append_pem(leaf, out);
    for (int i = SSL_is_server(t->ssl) ? 0 : 1; err == 0 && i < sk_X509_num(chain); i++) {
        err = cert_append_pem(sk_X509_value(chain, i), out);
    }
    return err;
}

int tls_forget_chain(struct tls *t)
{
    unsigned char text[256], *to = text;
    const unsigned char *from = text;
    SSL_SESSION *session = SSL_get0_session(t->ssl);
    if (!t->established || !t->peer.present) {
        return 0;
    }
    /* What OpenSSL has no call for: the connection's session becomes one of which nothing is known but how it is
     * encrypted. It is of no use to anybody else, since there are neither tickets nor a cache. */
    ERR_clear_error();
    SSL_SESSION *blank = SSL_SESSION_new();
    int n = -1;
    if (blank != NULL &&
        SSL_SESSION_set_protocol_version(blank, SSL_SESSION_get_protocol_version(session)) == 1 &&
        SSL_SESSION_set_cipher(blank, SSL_SESSION_get0_cipher(session)) == 1) {
        n = i2d_SSL_SESSION(blank, NULL);
    }
    bool done = n > 0 && (size_t)n <= sizeof text && i2d_SSL_SESSION(blank, &to) == n &&
                d2i_SSL_SESSION(&session, &from, n) != NULL;
    SSL_SESSION_free(blank);
    return done ? 0 : ossl_errf(SYM_ENOMEM, "TLS session");
}
