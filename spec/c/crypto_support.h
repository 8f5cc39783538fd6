/* A CA, nodes that it signs, and two TLS ends with the wire between them. */
#ifndef SYM_SPEC_CRYPTO_SUPPORT_H
#define SYM_SPEC_CRYPTO_SUPPORT_H

#include "check.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/buf.h"
#include "crypto/crypto.h"
#include "crypto/tls.h"

enum { HOUR = 3600, DAY = 24 * HOUR };

struct identity {
    struct key *key;
    char *pem;
};

/* The buffer's contents as a string of its own. */
static inline char *text_of(struct buf *b)
{
    size_t n;
    char *text = (char *)buf_take(b, &n);
    assert_non_null(text);
    return text;
}

static inline struct identity make_ca(const char *o, int64_t from, int64_t to)
{
    struct identity ca;
    struct buf b = {0};
    OK(key_generate(&ca.key));
    OK(cert_new_ca(ca.key, o, from, to, &b));
    ca.pem = text_of(&b);
    return ca;
}

static inline struct identity make_node(const struct identity *ca, const struct cert_spec *spec)
{
    struct identity node;
    struct buf csr = {0}, b = {0};
    OK(key_generate(&node.key));
    OK(csr_new(node.key, "request", &csr));
    OK(cert_sign(ca->key, ca->pem, strlen(ca->pem), (char *)buf_data(&csr), csr.len, spec, &b));
    node.pem = text_of(&b);
    buf_free(&csr);
    return node;
}

static inline void free_identity(struct identity *i)
{
    key_free(i->key);
    free(i->pem);
}

static inline char *join_pem(const char *a, const char *b)
{
    struct buf out = {0};
    OK(buf_appendf(&out, "%s%s", a, b));
    return text_of(&out);
}

struct end {
    struct tls *tls;
    struct buf plain, wire; /* what came out; what is to be sent */
    int err;                /* the last tls_feed */
};

static inline void end_open(struct end *e, struct tls_ctx *ctx)
{
    *e = (struct end){0};
    OK(tls_new(ctx, &e->tls));
}

static inline void end_free(struct end *e)
{
    tls_free(e->tls);
    buf_free(&e->plain);
    buf_free(&e->wire);
}

/* Gives @to what @from has to send, at most @chunk bytes at a time. True if there was something. */
static inline bool carry(struct end *from, struct end *to, size_t chunk)
{
    bool any = from->wire.len > 0;
    while (from->wire.len > 0 && to->err == 0) {
        size_t n = from->wire.len < chunk ? from->wire.len : chunk;
        to->err = tls_feed(to->tls, buf_data(&from->wire), n, &to->plain, &to->wire);
        buf_consume(&from->wire, n);
    }
    buf_clear(&from->wire);
    return any;
}

/* Client's hello, then to and fro until both are silent. */
static inline void shake(struct end *client, struct end *server, size_t chunk)
{
    client->err = tls_feed(client->tls, NULL, 0, &client->plain, &client->wire);
    for (bool more = true; more;) {
        more = carry(client, server, chunk);
        more |= carry(server, client, chunk);
    }
}

#endif
