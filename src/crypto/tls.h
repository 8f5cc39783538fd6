/* A TLS 1.3 engine without I/O: bytes from the wire go in, bytes for the wire come out. net/stream drives it.
 *
 * Verification is symphony's own: a peer's leaf must chain to a trusted CA; whether its name, role and
 * presence are right is asked by the caller afterwards (tls_peer). The chain is a leaf and a CA, nothing
 * between; the leaf must be made for its side of the connection. A certificate that is only expired, or not
 * yet valid, is let through and marked.
 */
#ifndef SYM_CRYPTO_TLS_H
#define SYM_CRYPTO_TLS_H

#include "base/buf.h"
#include "crypto/crypto.h"

#include <stdbool.h>
#include <stddef.h>

struct tls_ctx;
struct tls;

enum tls_flags {
    TLS_SERVER = 1,        /* else client */
    TLS_PEER_OPTIONAL = 2, /* server: a peer without a certificate is let in (tls_peer says so) */
    TLS_PEER_ANY = 4,      /* client: do not verify the chain; the caller pins what tls_peer_chain shows */
};

/* @cert (leaf first; what is sent is just this) and @key are NULL for an anonymous client; @ca is one or more
 * PEM certificates, NULL only with TLS_PEER_ANY. PEM texts are NUL-terminated. The context may be freed while
 * connections made from it live on. Sessions are neither cached nor resumed (a removed node must not come
 * back with a ticket). */
int tls_ctx_new(
    enum tls_flags flags, const char *cert, const struct key *key, const char *ca, struct tls_ctx **out);
void tls_ctx_free(struct tls_ctx *ctx);

int tls_new(struct tls_ctx *ctx, struct tls **out);
void tls_free(struct tls *t);

/* Takes @n bytes from the wire. Decrypted bytes are appended to @plain, bytes to send to @wire (either may
 * get none). Returns 0, SYM_EPROTO (broken; @wire may hold an alert to send before closing), SYM_EAUTH (peer
 * not verified, or it says that we are not), SYM_ECLOSED (close_notify), SYM_ENOMEM. After a failure every
 * call fails; after a close_notify tls_write still works. What came before the failure is in @plain. A client
 * sends its hello from a tls_feed of zero bytes. */
int tls_feed(struct tls *t, const void *data, size_t n, struct buf *plain, struct buf *wire);

/* Encrypts @n bytes, appending to @wire. SYM_EINVAL before the end of the handshake, SYM_ECLOSED after
 * tls_close, SYM_ENOMEM with nothing written and the connection as it was. */
int tls_write(struct tls *t, const void *data, size_t n, struct buf *wire);

/* Appends a close_notify. */
int tls_close(struct tls *t, struct buf *wire);

bool tls_established(const struct tls *t);

struct tls_peer {
    bool present; /* the peer showed a certificate (verified unless TLS_PEER_ANY) */
    bool expired; /* it, or its CA, was outside its validity at the handshake */
    struct cert_info cert;
};
/* Valid once established. */
const struct tls_peer *tls_peer(const struct tls *t);
/* Whether the peer's certificate is outside its validity now, since a connection may outlive it: only renewal may be
 * served. */
bool tls_peer_expired(const struct tls_peer *peer);

/* For a pinning client: the PEM of every certificate that the peer sent, leaf first. The server of a join
 * sends its CA behind its leaf for this. */
int tls_peer_chain(const struct tls *t, struct buf *out);
/* Lets go of the certificates that the peer sent, for a server that needs no more of them than tls_peer says, which
 * stays: a third of what a connection takes. From then on tls_peer_chain gives none. Before the end of the handshake
 * it does nothing. SYM_ENOMEM: some of them may be there still. */
int tls_forget_chain(struct tls *t);

#endif
