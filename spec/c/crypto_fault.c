/* Allocations of every operation fail, one at a time, ours and OpenSSL's: an error comes back, nothing leaks
 * (ASan), and the next try works. OpenSSL makes thousands, so a sample is taken; with any argument, all of
 * them in turn. */
#include "crypto_support.h"

#include "base_fault.h"
#include "base/buf.c"
#include "crypto/aead.c"
#include "crypto/digest.c"
#include "crypto/key.c"
#include "crypto/tls.c"

static void *ossl_malloc(size_t n, const char *file, int line)
{
    (void)file;
    (void)line;
    return n == 0 ? NULL : fault_malloc(n);
}

static void *ossl_realloc(void *p, size_t n, const char *file, int line)
{
    (void)file;
    (void)line;
    if (n == 0) {
        free(p);
        return NULL;
    }
    return fault_realloc(p, n);
}

static void ossl_free(void *p, const char *file, int line)
{
    (void)file;
    (void)line;
    free(p);
}

static struct {
    struct identity ca, node;
    char *csr, *key_pem;
    struct cert_spec spec;
    struct tls_ctx *listen, *dial;
} w;

static int make_world(void **state)
{
    (void)state;
    struct buf b = {0};
    int64_t now = time(NULL);
    static const char *const hosts[] = {"10.0.0.5", "a.example.org"};
    w.spec = (struct cert_spec){"node1", "manager", "cluster1", now - HOUR, now + DAY, true, 7, hosts, 2};
    w.ca = make_ca("cluster1", now - HOUR, now + DAY);
    w.node = make_node(&w.ca, &w.spec);
    OK(csr_new(w.node.key, "x", &b));
    w.csr = text_of(&b);
    OK(key_to_pem(w.node.key, &b));
    w.key_pem = text_of(&b);
    OK(tls_ctx_new(TLS_SERVER, w.node.pem, w.node.key, w.ca.pem, &w.listen));
    OK(tls_ctx_new(0, w.node.pem, w.node.key, w.ca.pem, &w.dial));
    return 0;
}

static int free_world(void **state)
{
    (void)state;
    free_identity(&w.ca);
    free_identity(&w.node);
    free(w.csr);
    free(w.key_pem);
    tls_ctx_free(w.listen);
    tls_ctx_free(w.dial);
    return 0;
}

static int digest(void)
{
    uint8_t out[SHA256_LEN];
    struct sha256 *s;
    int rv = sha256_new(&s);
    if (rv != 0) {
        return rv;
    }
    rv = sha256_add(s, "abc", 3);
    if (rv != 0) {
        sha256_free(s);
        return rv;
    }
    rv = sha256_end(s, out);
    return rv != 0 ? rv : crypto_sha256("abc", 3, out);
}

static int aead(void)
{
    static const uint8_t key[AEAD_KEY_LEN], nonce[AEAD_NONCE_LEN];
    uint8_t derived[AEAD_KEY_LEN], sealed[3 + AEAD_TAG_LEN], back[3];
    struct aead *a;
    int rv = aead_new(&a);
    if (rv != 0) {
        return rv;
    }
    rv = aead_derive(a, key, sizeof key, "s", 1, "i", 1, derived, sizeof derived);
    if (rv == 0) {
        rv = aead_seal(a, derived, nonce, "aad", 3, "abc", 3, sealed);
    }
    if (rv == 0 && !aead_open(a, derived, nonce, "aad", 3, sealed, sizeof sealed, back)) {
        rv = SYM_EAUTH;
    }
    assert_true(rv != 0 || memcmp(back, "abc", 3) == 0);
    aead_free(a);
    return rv;
}

static int new_key(void)
{
    struct key *k;
    int rv = key_generate(&k);
    if (rv == 0) {
        key_free(k);
    }
    return rv;
}

static int read_key(void)
{
    struct key *k;
    int rv = key_from_pem(w.key_pem, strlen(w.key_pem), &k);
    if (rv == 0) {
        key_free(k);
    }
    return rv;
}

static int write_key(void)
{
    struct buf b = {0};
    int rv = key_to_pem(w.node.key, &b);
    assert_true(rv == 0 || b.len == 0);
    buf_free(&b);
    return rv;
}

static int new_csr(void)
{
    struct buf b = {0};
    int rv = csr_new(w.node.key, "node", &b);
    assert_true(rv == 0 || b.len == 0);
    buf_free(&b);
    return rv;
}

static int check_csr(void)
{
    uint8_t out[SHA256_LEN];
    char cn[64];
    return csr_check(w.csr, strlen(w.csr), out, cn);
}

static int new_ca(void)
{
    struct buf b = {0};
    int rv = cert_new_ca(w.ca.key, "cluster1", w.spec.not_before, w.spec.not_after, &b);
    assert_true(rv == 0 || b.len == 0);
    buf_free(&b);
    return rv;
}

static int sign(void)
{
    struct buf b = {0};
    int rv = cert_sign(w.ca.key, w.ca.pem, strlen(w.ca.pem), w.csr, strlen(w.csr), &w.spec, &b);
    assert_true(rv == 0 || b.len == 0);
    buf_free(&b);
    return rv;
}

static int describe(void)
{
    struct cert_info info;
    return cert_info(w.node.pem, strlen(w.node.pem), &info);
}

static int sign_text(void)
{
    struct key *k;
    uint8_t spki[SPKI_LEN], sig[KEY_SIG_MAX];
    size_t n;
    int rv = key_share(w.node.key, &k);
    if (rv != 0) {
        return rv;
    }
    rv = key_public(k, spki);
    if (rv == 0) {
        rv = key_sign(k, "abc", 3, sig, &n);
    }
    if (rv == 0) {
        rv = spki_verify(spki, sizeof spki, "abc", 3, sig, n);
    }
    key_free(k);
    return rv;
}

static int cross_sign(void)
{
    struct buf b = {0};
    int rv = cert_cross_sign(w.ca.key, w.ca.pem, strlen(w.ca.pem), w.ca.pem, strlen(w.ca.pem), &b);
    assert_true(rv == 0 || b.len == 0);
    buf_free(&b);
    return rv;
}

static int hosts_of(void)
{
    struct buf b = {0};
    int rv = cert_hosts(w.node.pem, strlen(w.node.pem), &b);
    buf_free(&b);
    return rv;
}

static int nth(void)
{
    struct buf b = {0};
    int rv = cert_nth(w.node.pem, strlen(w.node.pem), 0, &b);
    buf_free(&b);
    return rv;
}

static int issuer(void)
{
    return cert_check_issuer(w.node.pem, strlen(w.node.pem), w.ca.pem, strlen(w.ca.pem));
}

static int of_key(void)
{
    return cert_check_key(w.node.pem, strlen(w.node.pem), w.node.key);
}

static int context(void)
{
    struct tls_ctx *ctx;
    int rv = tls_ctx_new(TLS_SERVER, w.node.pem, w.node.key, w.ca.pem, &ctx);
    if (rv == 0) {
        tls_ctx_free(ctx);
    }
    return rv;
}

/* A whole conversation; a side that fails makes the other one's failure uninteresting. */
static int conversation(void)
{
    struct end c = {0}, s = {0};
    struct buf chain = {0};
    int rv = tls_new(w.dial, &c.tls);
    if (rv == 0) {
        rv = tls_new(w.listen, &s.tls);
    }
    if (rv == 0) {
        shake(&c, &s, SIZE_MAX);
        rv = c.err != 0 ? c.err : s.err;
    }
    if (rv == 0) {
        rv = tls_write(c.tls, "hello", 5, &c.wire);
        /* One that had no room for its bytes goes on. */
        if (rv == SYM_ENOMEM && c.tls->failed == 0) {
            OK(tls_write(c.tls, "hello", 5, &c.wire));
        }
    }
    if (rv == 0) {
        carry(&c, &s, SIZE_MAX);
        rv = s.err;
    }
    if (rv == 0) {
        assert_int_equal(s.plain.len, 5);
        rv = tls_peer_chain(s.tls, &chain);
    }
    if (rv == 0) {
        rv = tls_forget_chain(s.tls);
    }
    if (rv == 0) {
        rv = tls_close(s.tls, &s.wire);
    }
    buf_free(&chain);
    end_free(&c);
    end_free(&s);
    return rv;
}

static bool all;

static void allocations_fail(const char *name, int (*operation)(void))
{
    enum { SAMPLE = 80 };
    OK(operation());
    long before = fault_seen;
    OK(operation());
    long total = fault_seen - before, survived = 0, tries = 0;
    for (long k = 0; k < total; k += all || total < SAMPLE ? 1 : total / SAMPLE) {
        fault_after(k, false);
        int rv = operation();
        bool hit = fault_end();
        if (!hit) {
            OK(rv);
        }
        /* Some of OpenSSL's allocations are for speed only, or for one of several ways. */
        survived += rv == 0;
        tries++;
        OK(operation());
    }
    print_message(
        "%s: %ld allocations, %ld failed, %ld of them were survived\n", name, total, tries, survived);
}

static void allocations(void **state)
{
    (void)state;
    allocations_fail("digest", digest);
    allocations_fail("aead", aead);
    allocations_fail("key_generate", new_key);
    allocations_fail("key_from_pem", read_key);
    allocations_fail("key_to_pem", write_key);
    allocations_fail("csr_new", new_csr);
    allocations_fail("csr_check", check_csr);
    allocations_fail("cert_new_ca", new_ca);
    allocations_fail("cert_sign", sign);
    allocations_fail("cert_cross_sign", cross_sign);
    allocations_fail("cert_hosts", hosts_of);
    allocations_fail("cert_nth", nth);
    allocations_fail("cert_info", describe);
    allocations_fail("key_sign", sign_text);
    allocations_fail("cert_check_issuer", issuer);
    allocations_fail("cert_check_key", of_key);
    allocations_fail("tls_ctx_new", context);
    allocations_fail("conversation", conversation);
}

int main(int argc, char **argv)
{
    (void)argv;
    all = argc > 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(allocations),
    };
    if (CRYPTO_set_mem_functions(ossl_malloc, ossl_realloc, ossl_free) != 1) {
        return 1;
    }
    return cmocka_run_group_tests(tests, make_world, free_world);
}
