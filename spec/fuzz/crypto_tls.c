/* A peer that is not known yet: what it sends to a server, and what a server that is talked to sends, in
 * pieces. Nobody without a key of the cluster may come out verified. */
#include "fuzz_seed.h"

#include "base/buf.h"
#include "base/err.h"
#include "crypto/tls.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static struct tls_ctx *ctx[3];
static struct buf hello; /* a client's first bytes, for the server */

static void set_up(void)
{
    static const struct cert_spec spec = {"node", "manager", "cluster", 1, 2000000000, true, 0, NULL, 0};
    struct key *ca_key, *key;
    struct buf ca = {0}, csr = {0}, cert = {0};
    if (key_generate(&ca_key) != 0 || key_generate(&key) != 0 || csr_new(key, "node", &csr) != 0 ||
        cert_new_ca(ca_key, "cluster", 1, 2000000000, &ca) != 0 ||
        cert_sign(ca_key, (char *)buf_data(&ca), ca.len, (char *)buf_data(&csr), csr.len, &spec, &cert) !=
            0 ||
        buf_append(&ca, "", 1) != 0 || buf_append(&cert, "", 1) != 0) {
        abort();
    }
    const char *ca_pem = (char *)buf_data(&ca), *pem = (char *)buf_data(&cert);
    if (tls_ctx_new(TLS_SERVER, pem, key, ca_pem, &ctx[0]) != 0 ||
        tls_ctx_new(0, pem, key, ca_pem, &ctx[1]) != 0 ||
        tls_ctx_new(TLS_PEER_ANY, NULL, NULL, NULL, &ctx[2]) != 0) {
        abort();
    }
    struct tls *t;
    struct buf plain = {0};
    if (buf_append(&hello, "\0\0", 2) != 0 || tls_new(ctx[1], &t) != 0 ||
        tls_feed(t, NULL, 0, &plain, &hello) != 0) {
        abort();
    }
    tls_free(t);
    buf_free(&ca);
    buf_free(&csr);
    buf_free(&cert);
    key_free(ca_key);
    key_free(key);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned random)
{
    if (ctx[0] == NULL) {
        set_up();
    }
    return seed_mutate(&hello, 1, data, n, max, random);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct tls *t;
    struct buf plain = {0}, wire = {0};
    if (ctx[0] == NULL) {
        set_up();
    }
    if (n < 2) {
        return 0;
    }
    size_t step = data[1] == 0 ? n : data[1];
    if (tls_new(ctx[data[0] % 3], &t) != 0) {
        abort();
    }
    data += 2;
    n -= 2;
    int rv = tls_feed(t, NULL, 0, &plain, &wire);
    while (rv == 0 && n > 0) {
        size_t k = n < step ? n : step;
        rv = tls_feed(t, data, k, &plain, &wire);
        data += k;
        n -= k;
    }
    if (plain.len > 0 || tls_established(t) || tls_peer(t)->present) {
        abort();
    }
    if (tls_write(t, "x", 1, &wire) == 0 || (rv != 0 && tls_feed(t, "x", 1, &plain, &wire) == 0)) {
        abort();
    }
    tls_close(t, &wire);
    tls_free(t);
    buf_free(&plain);
    buf_free(&wire);
    return 0;
}
