#include "crypto_support.h"

#include <malloc.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

static struct {
    int64_t now;
    struct identity ca, twin; /* the same name, another key */
    struct identity server, client, worker;
    struct tls_ctx *listen, *dial; /* mutual */
} w;

static struct cert_spec spec_of(const char *cn, const char *ou, bool server)
{
    return (struct cert_spec){cn, ou, "cluster1", w.now - HOUR, w.now + 90 * DAY, server, 0, NULL, 0};
}

static int make_world(void **state)
{
    (void)state;
    w.now = time(NULL);
    w.ca = make_ca("cluster1", w.now - HOUR, w.now + 3650 * DAY);
    w.twin = make_ca("cluster1", w.now - HOUR, w.now + 3650 * DAY);
    struct cert_spec spec = spec_of("node1", "manager", true);
    w.server = make_node(&w.ca, &spec);
    spec = spec_of("node2", "manager", true);
    w.client = make_node(&w.ca, &spec);
    spec = spec_of("node3", "worker", false);
    w.worker = make_node(&w.ca, &spec);
    OK(tls_ctx_new(TLS_SERVER, w.server.pem, w.server.key, w.ca.pem, &w.listen));
    OK(tls_ctx_new(0, w.client.pem, w.client.key, w.ca.pem, &w.dial));
    return 0;
}

static int free_world(void **state)
{
    (void)state;
    struct identity *all[] = {&w.ca, &w.twin, &w.server, &w.client, &w.worker};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        free_identity(all[i]);
    }
    tls_ctx_free(w.listen);
    tls_ctx_free(w.dial);
    tls_ctx_free(NULL);
    tls_free(NULL);
    return 0;
}

static struct tls_ctx *ctx_of(enum tls_flags flags, const struct identity *who, const char *ca)
{
    struct tls_ctx *ctx;
    OK(tls_ctx_new(flags, who == NULL ? NULL : who->pem, who == NULL ? NULL : who->key, ca, &ctx));
    return ctx;
}

/* Both ends of a connection between @dial and @listen, handshaken as far as they get; the contexts are freed
 * unless they are the world's. */
static void meet(struct tls_ctx *dial, struct tls_ctx *listen, struct end *client, struct end *server)
{
    end_open(client, dial);
    end_open(server, listen);
    if (dial != w.dial) {
        tls_ctx_free(dial);
    }
    if (listen != w.listen) {
        tls_ctx_free(listen);
    }
    shake(client, server, SIZE_MAX);
}

static void part(struct end *client, struct end *server)
{
    end_free(client);
    end_free(server);
}

static void are_open(const struct end *client, const struct end *server)
{
    if (client->err != 0 || server->err != 0) {
        fail_msg("client %s, server %s: %s", err_name(client->err), err_name(server->err), err_msg());
    }
    assert_true(tls_established(client->tls));
    assert_true(tls_established(server->tls));
}

static void say(struct end *from, struct end *to, const char *text)
{
    buf_clear(&to->plain);
    OK(tls_write(from->tls, text, strlen(text), &from->wire));
    carry(from, to, SIZE_MAX);
    assert_int_equal(to->err, 0);
    assert_int_equal(to->plain.len, strlen(text));
    assert_memory_equal(buf_data(&to->plain), text, strlen(text));
}

/* -- who is let in -- */

static void mutual(void **state)
{
    (void)state;
    struct end c, s;
    struct cert_info info;
    meet(w.dial, w.listen, &c, &s);
    are_open(&c, &s);
    const struct tls_peer *peer = tls_peer(c.tls);
    assert_true(peer->present);
    assert_false(peer->expired);
    OK(cert_info(w.server.pem, strlen(w.server.pem), &info));
    assert_memory_equal(&peer->cert, &info, sizeof info);
    peer = tls_peer(s.tls);
    assert_true(peer->present);
    assert_false(peer->expired);
    assert_string_equal(peer->cert.cn, "node2");
    assert_string_equal(peer->cert.ou, "manager");
    say(&c, &s, "hello");
    say(&s, &c, "hello yourself");

    /* One certificate was sent, though both could have added the CA. */
    struct buf chain = {0};
    OK(tls_peer_chain(s.tls, &chain));
    char *text = text_of(&chain);
    assert_string_equal(text, w.client.pem);
    free(text);
    part(&c, &s);
}

/* A server may let go of what its peer has sent, and the connection goes on. */
static void forgotten_chain(void **state)
{
    (void)state;
    struct end c, s;
    struct buf chain = {0};
    end_open(&c, w.dial);
    end_open(&s, w.listen);
    OK(tls_forget_chain(s.tls)); /* there is none yet */
    shake(&c, &s, SIZE_MAX);
    are_open(&c, &s);
    struct cert_info before = tls_peer(s.tls)->cert;
    OK(tls_forget_chain(s.tls));
    OK(tls_forget_chain(s.tls));
    assert_true(tls_peer(s.tls)->present);
    assert_memory_equal(&tls_peer(s.tls)->cert, &before, sizeof before);
    assert_false(tls_peer_expired(tls_peer(s.tls)));
    OK(tls_peer_chain(s.tls, &chain));
    assert_int_equal(chain.len, 0);
    say(&c, &s, "hello");
    say(&s, &c, "hello yourself");
    OK(tls_close(s.tls, &s.wire));
    carry(&s, &c, SIZE_MAX);
    assert_int_equal(c.err, SYM_ECLOSED);
    part(&c, &s);

    meet(ctx_of(0, NULL, w.ca.pem), ctx_of(TLS_SERVER | TLS_PEER_OPTIONAL, &w.server, w.ca.pem), &c, &s);
    are_open(&c, &s);
    OK(tls_forget_chain(s.tls));
    assert_false(tls_peer(s.tls)->present);
    say(&c, &s, "let me join");
    part(&c, &s);
}

#ifndef __SANITIZE_ADDRESS__ /* it has an allocator of its own */
static void forgotten_chains_are_freed(void **state)
{
    (void)state;
    enum { MANY = 64 }; /* malloc keeps a few of what was freed as if it were in use */
    struct end c[MANY], s[MANY];
    for (int i = 0; i < MANY; i++) {
        meet(w.dial, w.listen, &c[i], &s[i]);
        are_open(&c[i], &s[i]);
    }
    size_t before = mallinfo2().uordblks;
    for (int i = 0; i < MANY; i++) {
        OK(tls_forget_chain(s[i].tls));
    }
    size_t after = mallinfo2().uordblks;
    assert_in_range((before - after) / MANY, 4000, 8000);
    for (int i = 0; i < MANY; i++) {
        part(&c[i], &s[i]);
    }
}
#endif

static void nothing_to_resume(void **state)
{
    (void)state;
    struct end c, s;
    end_open(&c, w.dial);
    end_open(&s, w.listen);
    OK(tls_feed(c.tls, NULL, 0, &c.plain, &c.wire));
    carry(&c, &s, SIZE_MAX);
    carry(&s, &c, SIZE_MAX);
    assert_true(tls_established(c.tls));
    assert_false(tls_established(s.tls));
    carry(&c, &s, SIZE_MAX);
    assert_true(tls_established(s.tls));
    /* A ticket would be here. */
    assert_int_equal(s.wire.len, 0);
    part(&c, &s);
}

static void anonymous_client(void **state)
{
    (void)state;
    struct end c, s;
    meet(ctx_of(0, NULL, w.ca.pem), ctx_of(TLS_SERVER | TLS_PEER_OPTIONAL, &w.server, w.ca.pem), &c, &s);
    are_open(&c, &s);
    assert_false(tls_peer(s.tls)->present);
    assert_false(tls_peer(s.tls)->expired);
    assert_true(tls_peer(c.tls)->present);
    struct buf chain = {0};
    OK(tls_peer_chain(s.tls, &chain));
    assert_int_equal(chain.len, 0);
    say(&c, &s, "let me join");
    say(&s, &c, "{}");
    part(&c, &s);

    /* With a certificate, such a server looks at it. */
    meet(w.dial, ctx_of(TLS_SERVER | TLS_PEER_OPTIONAL, &w.server, w.ca.pem), &c, &s);
    are_open(&c, &s);
    assert_string_equal(tls_peer(s.tls)->cert.cn, "node2");
    part(&c, &s);

    meet(ctx_of(0, NULL, w.ca.pem), w.listen, &c, &s);
    assert_int_equal(s.err, SYM_EAUTH);
    assert_false(tls_established(s.tls));
    assert_int_equal(c.err, SYM_EAUTH);
    part(&c, &s);
}

static void refused_by_server(struct tls_ctx *dial, struct tls_ctx *listen)
{
    struct end c, s;
    meet(dial, listen, &c, &s);
    assert_int_equal(s.err, SYM_EAUTH);
    assert_false(tls_established(s.tls));
    assert_false(tls_peer(s.tls)->present);
    /* The alert tells the client, who had finished its side of the handshake. */
    assert_int_equal(c.err, SYM_EAUTH);
    FAILS(SYM_EAUTH, tls_feed(s.tls, "x", 1, &s.plain, &s.wire));
    FAILS(SYM_EAUTH, tls_write(s.tls, "x", 1, &s.wire));
    OK(tls_close(s.tls, &s.wire));
    assert_int_equal(s.plain.len, 0);
    part(&c, &s);
}

static void refused_by_client(struct tls_ctx *dial, struct tls_ctx *listen)
{
    struct end c, s;
    meet(dial, listen, &c, &s);
    assert_int_equal(c.err, SYM_EAUTH);
    assert_false(tls_established(c.tls));
    assert_false(tls_established(s.tls));
    assert_int_equal(s.err, SYM_EAUTH);
    part(&c, &s);
}

static void wrong_ca(void **state)
{
    (void)state;
    struct identity other = make_ca("cluster2", w.now - HOUR, w.now + DAY);
    struct cert_spec spec = spec_of("node2", "manager", true);
    struct identity foreign = make_node(&other, &spec), forged = make_node(&w.twin, &spec);
    refused_by_server(ctx_of(0, &foreign, w.ca.pem), w.listen);
    refused_by_server(ctx_of(0, &forged, w.ca.pem), w.listen);
    refused_by_server(
        ctx_of(0, &forged, w.ca.pem), ctx_of(TLS_SERVER | TLS_PEER_OPTIONAL, &w.server, w.ca.pem));
    refused_by_client(w.dial, ctx_of(TLS_SERVER, &foreign, w.ca.pem));
    refused_by_client(w.dial, ctx_of(TLS_SERVER, &forged, w.ca.pem));
    refused_by_client(ctx_of(0, &w.client, other.pem), w.listen);

    /* During a rotation both are trusted, in whatever order. */
    char *both[] = {join_pem(w.ca.pem, w.twin.pem), join_pem(w.twin.pem, w.ca.pem)};
    for (int i = 0; i < 2; i++) {
        struct end c, s;
        meet(ctx_of(0, &forged, w.ca.pem), ctx_of(TLS_SERVER, &w.server, both[i]), &c, &s);
        are_open(&c, &s);
        part(&c, &s);
        meet(w.dial, ctx_of(TLS_SERVER, &w.server, both[i]), &c, &s);
        are_open(&c, &s);
        part(&c, &s);
        free(both[i]);
    }
    free_identity(&foreign);
    free_identity(&forged);
    free_identity(&other);
}

static void wrong_purpose(void **state)
{
    (void)state;
    /* A worker cannot pose as a server. */
    refused_by_client(w.dial, ctx_of(TLS_SERVER, &w.worker, w.ca.pem));
    /* The CA's key is for signing: it is nobody's identity. */
    refused_by_server(ctx_of(0, &w.ca, w.ca.pem), w.listen);
}

/* A certificate for @subject's key under @issuer's, without any of the checks of cert_sign. */
static struct identity sign_anything(const struct identity *issuer, const char *cn, bool ca)
{
    struct identity made;
    struct buf b = {0};
    OK(key_generate(&made.key));
    OK(key_to_pem(made.key, &b));
    BIO *in = BIO_new_mem_buf(buf_data(&b), (int)b.len), *out = BIO_new(BIO_s_mem());
    EVP_PKEY *pkey = PEM_read_bio_PrivateKey(in, NULL, NULL, NULL);
    BIO_free(in);
    buf_clear(&b);
    OK(key_to_pem(issuer->key, &b));
    in = BIO_new_mem_buf(buf_data(&b), (int)b.len);
    EVP_PKEY *signer = PEM_read_bio_PrivateKey(in, NULL, NULL, NULL);
    BIO_free(in);
    in = BIO_new_mem_buf(issuer->pem, -1);
    X509 *parent = PEM_read_bio_X509(in, NULL, NULL, NULL);
    BIO_free(in);
    X509 *x = X509_new();
    X509_set_version(x, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(x), 77);
    X509_gmtime_adj(X509_getm_notBefore(x), -HOUR);
    X509_gmtime_adj(X509_getm_notAfter(x), DAY);
    X509_set_pubkey(x, pkey);
    X509_set_issuer_name(x, X509_get_subject_name(parent));
    X509_NAME_add_entry_by_txt(
        X509_get_subject_name(x), "CN", MBSTRING_ASC, (const unsigned char *)cn, -1, -1, 0);
    if (ca) {
        X509_EXTENSION *e = X509V3_EXT_conf_nid(NULL, NULL, NID_basic_constraints, "critical,CA:TRUE");
        X509_add_ext(x, e, -1);
        X509_EXTENSION_free(e);
    }
    assert_true(X509_sign(x, signer, EVP_sha256()) > 0);
    assert_int_equal(PEM_write_bio_X509(out, x), 1);
    char *text;
    long n = BIO_get_mem_data(out, &text);
    made.pem = strndup(text, (size_t)n);
    BIO_free(out);
    X509_free(x);
    X509_free(parent);
    EVP_PKEY_free(pkey);
    EVP_PKEY_free(signer);
    buf_free(&b);
    return made;
}

/* Whoever has a node's key cannot make nodes with it, nor has the CA any CAs under it. */
static void no_intermediates(void **state)
{
    (void)state;
    struct identity by_node = sign_anything(&w.client, "node9", false);
    struct identity middle = sign_anything(&w.ca, "middle", true);
    struct identity by_middle = sign_anything(&middle, "node9", false);
    struct identity chains[] = {{by_node.key, join_pem(by_node.pem, w.client.pem)},
        {by_middle.key, join_pem(by_middle.pem, middle.pem)}};
    for (int i = 0; i < 2; i++) {
        refused_by_server(ctx_of(0, &chains[i], w.ca.pem), w.listen);
        free(chains[i].pem);
    }
    free_identity(&by_node);
    free_identity(&by_middle);
    free_identity(&middle);
}

static void expired_is_let_in_and_marked(void **state)
{
    (void)state;
    static const int64_t times[][2] = {{-90 * DAY, -DAY}, {DAY, 90 * DAY}};
    struct end c, s;
    for (int i = 0; i < 2; i++) {
        struct cert_spec spec = spec_of("node2", "manager", true);
        spec.not_before = w.now + times[i][0];
        spec.not_after = w.now + times[i][1];
        struct identity old = make_node(&w.ca, &spec), forged = make_node(&w.twin, &spec);
        meet(ctx_of(0, &old, w.ca.pem), w.listen, &c, &s);
        are_open(&c, &s);
        assert_true(tls_peer(s.tls)->present);
        assert_true(tls_peer(s.tls)->expired);
        assert_false(tls_peer(c.tls)->expired);
        assert_string_equal(tls_peer(s.tls)->cert.cn, "node2");
        say(&c, &s, "renew me");
        part(&c, &s);

        meet(w.dial, ctx_of(TLS_SERVER, &old, w.ca.pem), &c, &s);
        are_open(&c, &s);
        assert_true(tls_peer(c.tls)->expired);
        assert_false(tls_peer(s.tls)->expired);
        part(&c, &s);

        /* Nothing but time is forgiven. */
        refused_by_server(ctx_of(0, &forged, w.ca.pem), w.listen);
        spec.server = false;
        struct identity worker = make_node(&w.ca, &spec);
        refused_by_client(w.dial, ctx_of(TLS_SERVER, &worker, w.ca.pem));
        free_identity(&worker);
        free_identity(&forged);
        free_identity(&old);
    }
}

static void expired_ca(void **state)
{
    (void)state;
    struct identity old = make_ca("cluster1", w.now - 90 * DAY, w.now - DAY);
    struct cert_spec spec = spec_of("node2", "manager", true);
    struct identity a = make_node(&old, &spec), b = make_node(&old, &spec);
    struct end c, s;
    meet(ctx_of(0, &a, old.pem), ctx_of(TLS_SERVER, &b, old.pem), &c, &s);
    are_open(&c, &s);
    assert_true(tls_peer(c.tls)->expired);
    assert_true(tls_peer(s.tls)->expired);
    part(&c, &s);
    free_identity(&a);
    free_identity(&b);
    free_identity(&old);
}

/* A join: nothing is known but the digest of the CA. */
static void pinning(void **state)
{
    (void)state;
    struct end c, s;
    struct cert_info ca, seen;
    struct identity chained = {w.server.key, join_pem(w.server.pem, w.ca.pem)};
    meet(
        ctx_of(TLS_PEER_ANY, NULL, NULL), ctx_of(TLS_SERVER | TLS_PEER_OPTIONAL, &chained, w.ca.pem), &c, &s);
    are_open(&c, &s);
    assert_true(tls_peer(c.tls)->present);
    assert_false(tls_peer(c.tls)->expired);
    assert_string_equal(tls_peer(c.tls)->cert.cn, "node1");
    assert_true(tls_peer(c.tls)->cert.is_server);
    struct buf chain = {0};
    OK(tls_peer_chain(c.tls, &chain));
    char *text = text_of(&chain);
    assert_string_equal(text, chained.pem);
    const char *second = strstr(text + 1, "-----BEGIN");
    assert_non_null(second);
    OK(cert_info(second, strlen(second), &seen));
    OK(cert_info(w.ca.pem, strlen(w.ca.pem), &ca));
    assert_memory_equal(seen.digest, ca.digest, SHA256_LEN);
    OK(cert_check_issuer(text, strlen(text), second, strlen(second)));
    say(&c, &s, "token");
    part(&c, &s);
    free(text);
    free(chained.pem);

    /* Anybody can be talked to this way, and is described as they are. */
    struct cert_spec spec = spec_of("stranger", "worker", false);
    spec.not_before = w.now - 9 * DAY;
    spec.not_after = w.now - DAY;
    struct identity stranger = make_node(&w.twin, &spec);
    meet(ctx_of(TLS_PEER_ANY, NULL, NULL), ctx_of(TLS_SERVER | TLS_PEER_OPTIONAL, &stranger, w.ca.pem), &c,
        &s);
    are_open(&c, &s);
    assert_string_equal(tls_peer(c.tls)->cert.cn, "stranger");
    assert_true(tls_peer(c.tls)->expired);
    assert_false(tls_peer(c.tls)->cert.is_server);
    part(&c, &s);
    free_identity(&stranger);
}

/* Names that are nobody's in a symphony cluster end the handshake even if nothing is verified. */
static void unreadable_names(void **state)
{
    (void)state;
    struct identity odd = sign_anything(&w.ca, "a\nb", false);
    struct end c, s;
    meet(ctx_of(TLS_PEER_ANY, NULL, NULL), ctx_of(TLS_SERVER | TLS_PEER_OPTIONAL, &odd, w.ca.pem), &c, &s);
    assert_int_equal(c.err, SYM_EAUTH);
    assert_false(tls_established(c.tls));
    FAILS(SYM_EAUTH, tls_write(c.tls, "x", 1, &c.wire));
    part(&c, &s);
    free_identity(&odd);
}

static void contexts_that_make_no_sense(void **state)
{
    (void)state;
    struct tls_ctx *ctx = NULL;
    const char *cert = w.server.pem, *ca = w.ca.pem;
    const struct key *key = w.server.key;
    FAILS(SYM_EINVAL, tls_ctx_new(TLS_SERVER, NULL, NULL, ca, &ctx));
    FAILS(SYM_EINVAL, tls_ctx_new(TLS_SERVER, cert, NULL, ca, &ctx));
    FAILS(SYM_EINVAL, tls_ctx_new(TLS_SERVER, cert, key, NULL, &ctx));
    FAILS(SYM_EINVAL, tls_ctx_new(TLS_SERVER | TLS_PEER_ANY, cert, key, NULL, &ctx));
    FAILS(SYM_EINVAL, tls_ctx_new(TLS_PEER_OPTIONAL, cert, key, ca, &ctx));
    FAILS(SYM_EINVAL, tls_ctx_new(0, NULL, key, ca, &ctx));
    FAILS(SYM_EINVAL, tls_ctx_new(0, cert, key, NULL, &ctx));
    FAILS(SYM_EINVAL, tls_ctx_new(0, cert, w.client.key, ca, &ctx));
    FAILS(SYM_EINVAL, tls_ctx_new(0, "", key, ca, &ctx));
    FAILS(SYM_EINVAL, tls_ctx_new(0, cert, key, "", &ctx));
    FAILS(SYM_EINVAL, tls_ctx_new(0, cert, key, "nonsense", &ctx));
    /* What is trusted must be a CA. */
    FAILS(SYM_EINVAL, tls_ctx_new(0, cert, key, w.client.pem, &ctx));
    assert_null(ctx);
}

/* -- what goes over the wire -- */

static void byte_at_a_time(void **state)
{
    (void)state;
    static const size_t chunks[] = {1, 3, 1000};
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        struct end c, s;
        end_open(&c, w.dial);
        end_open(&s, w.listen);
        shake(&c, &s, chunks[i]);
        are_open(&c, &s);
        for (int j = 0; j < 20; j++) {
            OK(tls_write(c.tls, "0123456789", 10, &c.wire));
        }
        carry(&c, &s, chunks[i]);
        assert_int_equal(s.err, 0);
        assert_int_equal(s.plain.len, 200);
        part(&c, &s);
    }
}

/* Data right behind the client's last handshake message, in one piece with it. */
static void data_with_the_handshake(void **state)
{
    (void)state;
    struct end c, s;
    end_open(&c, w.dial);
    end_open(&s, w.listen);
    OK(tls_feed(c.tls, NULL, 0, &c.plain, &c.wire));
    carry(&c, &s, SIZE_MAX);
    carry(&s, &c, SIZE_MAX);
    assert_true(tls_established(c.tls));
    OK(tls_write(c.tls, "early", 5, &c.wire));
    OK(tls_close(c.tls, &c.wire));
    carry(&c, &s, SIZE_MAX);
    assert_int_equal(s.err, SYM_ECLOSED);
    assert_true(tls_established(s.tls));
    assert_int_equal(s.plain.len, 5);
    part(&c, &s);
}

static void large_writes(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    static const size_t chunks[] = {SIZE_MAX, 65536, 16384, 1461};
    uint8_t *data = malloc(N);
    for (size_t i = 0; i < N; i++) {
        data[i] = (uint8_t)(i * 2654435761U >> 13);
    }
    struct end c, s;
    meet(w.dial, w.listen, &c, &s);
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        OK(tls_write(c.tls, data, N, &c.wire));
        assert_int_equal(c.wire.len, N + 64 * 22);
        carry(&c, &s, chunks[i]);
        assert_int_equal(s.err, 0);
        assert_int_equal(s.plain.len, N);
        assert_memory_equal(buf_data(&s.plain), data, N);
        buf_clear(&s.plain);
        OK(tls_write(s.tls, data, N - 1, &s.wire));
        carry(&s, &c, chunks[i]);
        assert_int_equal(c.plain.len, N - 1);
        assert_memory_equal(buf_data(&c.plain), data, N - 1);
        buf_clear(&c.plain);
    }
    /* An empty write is none. */
    OK(tls_write(c.tls, data, 0, &c.wire));
    assert_int_equal(c.wire.len, 0);
    part(&c, &s);
    free(data);
}

/* What a small record brings makes no large room. */
static void small_records_take_little(void **state)
{
    (void)state;
    struct end c, s;
    meet(w.dial, w.listen, &c, &s);
    say(&c, &s, "warm");
    buf_free(&s.plain);
    say(&c, &s, "x");
    assert_true(s.plain.cap <= 64);
    buf_free(&s.plain);
    char text[300];
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    say(&c, &s, text);
    assert_true(s.plain.cap <= 512);
    part(&c, &s);
}

static void before_the_handshake(void **state)
{
    (void)state;
    struct end c;
    end_open(&c, w.dial);
    FAILS(SYM_EINVAL, tls_write(c.tls, "x", 1, &c.wire));
    OK(tls_close(c.tls, &c.wire));
    assert_int_equal(c.wire.len, 0);
    assert_false(tls_established(c.tls));
    assert_false(tls_peer(c.tls)->present);
    OK(tls_peer_chain(c.tls, &c.plain));
    assert_int_equal(c.plain.len, 0);
    end_free(&c);
}

static void close_notify(void **state)
{
    (void)state;
    struct end c, s;
    meet(w.dial, w.listen, &c, &s);
    OK(tls_write(c.tls, "last", 4, &c.wire));
    OK(tls_close(c.tls, &c.wire));
    size_t sent = c.wire.len;
    OK(tls_close(c.tls, &c.wire));
    assert_int_equal(c.wire.len, sent);
    FAILS(SYM_ECLOSED, tls_write(c.tls, "x", 1, &c.wire));
    carry(&c, &s, SIZE_MAX);
    assert_int_equal(s.err, SYM_ECLOSED);
    assert_int_equal(s.plain.len, 4);
    FAILS(SYM_ECLOSED, tls_feed(s.tls, "x", 1, &s.plain, &s.wire));
    /* The other direction is still open: an answer can be given. */
    OK(tls_write(s.tls, "answer", 6, &s.wire));
    OK(tls_close(s.tls, &s.wire));
    carry(&s, &c, SIZE_MAX);
    assert_int_equal(c.err, SYM_ECLOSED);
    assert_int_equal(c.plain.len, 6);
    part(&c, &s);
}

/* Cut anywhere, a handshake or a record waits; it does not succeed and does not fail. */
static void truncated(void **state)
{
    (void)state;
    struct end c, s;
    end_open(&c, w.dial);
    OK(tls_feed(c.tls, NULL, 0, &c.plain, &c.wire));
    for (size_t n = 0; n < c.wire.len; n += 5) {
        end_open(&s, w.listen);
        OK(tls_feed(s.tls, buf_data(&c.wire), n, &s.plain, &s.wire));
        assert_false(tls_established(s.tls));
        assert_int_equal(s.wire.len, 0);
        end_free(&s);
    }
    end_free(&c);

    meet(w.dial, w.listen, &c, &s);
    OK(tls_write(c.tls, "0123456789", 10, &c.wire));
    OK(tls_feed(s.tls, buf_data(&c.wire), c.wire.len - 1, &s.plain, &s.wire));
    assert_int_equal(s.plain.len, 0);
    OK(tls_feed(s.tls, buf_data(&c.wire) + c.wire.len - 1, 1, &s.plain, &s.wire));
    assert_int_equal(s.plain.len, 10);
    part(&c, &s);
}

static void tampered(void **state)
{
    (void)state;
    struct end c, s;
    for (size_t at = 0; at < 32; at++) {
        meet(w.dial, w.listen, &c, &s);
        OK(tls_write(c.tls, "0123456789", 10, &c.wire));
        assert_int_equal(c.wire.len, 32);
        buf_data(&c.wire)[at] ^= 0x80;
        /* A longer length makes it wait for more. */
        uint8_t more[20000] = {0};
        OK(buf_append(&c.wire, more, sizeof more));
        carry(&c, &s, SIZE_MAX);
        assert_int_equal(s.err, SYM_EPROTO);
        assert_int_equal(s.plain.len, 0);
        FAILS(SYM_EPROTO, tls_feed(s.tls, "x", 1, &s.plain, &s.wire));
        FAILS(SYM_EPROTO, tls_write(s.tls, "x", 1, &s.wire));
        part(&c, &s);
    }
    /* The same record twice. */
    meet(w.dial, w.listen, &c, &s);
    OK(tls_write(c.tls, "0123456789", 10, &c.wire));
    OK(tls_feed(s.tls, buf_data(&c.wire), c.wire.len, &s.plain, &s.wire));
    FAILS(SYM_EPROTO, tls_feed(s.tls, buf_data(&c.wire), c.wire.len, &s.plain, &s.wire));
    assert_int_equal(s.plain.len, 10);
    assert_true(s.wire.len > 0); /* the alert */
    part(&c, &s);
}

static void garbage(void **state)
{
    (void)state;
    static const char *const texts[] = {"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "\x16\x03\x01\xff\xff",
        "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", "SSH-2.0-x\r\n", "\x15\x03\x03\x00\x02\x02\x28",
        "\x17\x03\x03\x00\x10ghijklmnopqrstuv"};
    static const size_t lens[] = {37, 5, 10, 11, 7, 21};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct end e;
        for (int side = 0; side < 2; side++) {
            end_open(&e, side == 0 ? w.listen : w.dial);
            if (side == 1) {
                OK(tls_feed(e.tls, NULL, 0, &e.plain, &e.wire));
            }
            int rv = tls_feed(e.tls, texts[i], lens[i], &e.plain, &e.wire);
            if (rv != SYM_EPROTO) {
                fail_msg("text %zu, side %d: %s", i, side, err_name(rv));
            }
            assert_int_equal(e.plain.len, 0);
            end_free(&e);
        }
    }
    uint32_t seed = 7;
    for (int i = 0; i < 300; i++) {
        struct end e;
        uint8_t noise[600];
        for (size_t j = 0; j < sizeof noise; j++) {
            seed = seed * 1664525 + 1013904223;
            noise[j] = (uint8_t)(seed >> 24);
        }
        if (i % 2) {
            memcpy(noise, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11);
        }
        end_open(&e, w.listen);
        FAILS(SYM_EPROTO, tls_feed(e.tls, noise, sizeof noise, &e.plain, &e.wire));
        assert_int_equal(e.plain.len, 0);
        end_free(&e);
    }
}

/* A letter of a real handshake changed: it never ends in two ends that agree. */
static void damaged_handshakes(void **state)
{
    (void)state;
    size_t at = 0, length;
    do {
        struct end c, s;
        end_open(&c, w.dial);
        end_open(&s, w.listen);
        OK(tls_feed(c.tls, NULL, 0, &c.plain, &c.wire));
        length = 0;
        bool done = false;
        for (int turn = 0; turn < 4; turn++) {
            struct end *from = turn % 2 ? &s : &c, *to = turn % 2 ? &c : &s;
            if (!done && at < length + from->wire.len) {
                buf_data(&from->wire)[at - length] ^= 0x55;
                done = true;
            }
            length += from->wire.len;
            carry(from, to, SIZE_MAX);
        }
        if (done && tls_established(c.tls) && tls_established(s.tls) && c.err == 0 && s.err == 0) {
            /* Outside the transcript: the version in a record's header, which receivers ignore. */
            say(&c, &s, "x");
            print_message("no harm at byte %zu\n", at);
        }
        part(&c, &s);
        at += 13;
    } while (at < length);
    assert_true(at > 1000);
}

static void an_endless_chain_is_refused(void **state)
{
    (void)state;
    struct buf b = {0};
    OK(buf_appendf(&b, "%s", w.client.pem));
    while (b.len < 60000) {
        OK(buf_appendf(&b, "%s", w.ca.pem));
    }
    struct identity many = {w.client.key, text_of(&b)};
    struct end c, s;
    meet(ctx_of(0, &many, w.ca.pem), w.listen, &c, &s);
    assert_int_equal(s.err, SYM_EPROTO);
    part(&c, &s);
    free(many.pem);
}

/* Clients of other makes: older versions are refused, and a change of keys in the middle is followed. */
static void other_clients(void **state)
{
    (void)state;
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    BIO *pem = BIO_new_mem_buf(w.client.pem, -1);
    X509 *cert = PEM_read_bio_X509(pem, NULL, NULL, NULL);
    struct buf key = {0};
    OK(key_to_pem(w.client.key, &key));
    BIO *key_pem = BIO_new_mem_buf(buf_data(&key), (int)key.len);
    EVP_PKEY *pkey = PEM_read_bio_PrivateKey(key_pem, NULL, NULL, NULL);
    assert_int_equal(SSL_CTX_use_certificate(ctx, cert), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey(ctx, pkey), 1);
    for (int round = 0; round < 2; round++) {
        struct end s;
        struct tls_ctx *listen = ctx_of(TLS_SERVER | TLS_PEER_OPTIONAL, &w.server, w.ca.pem);
        end_open(&s, listen);
        tls_ctx_free(listen);
        SSL_CTX_set_max_proto_version(ctx, round == 0 ? TLS1_2_VERSION : TLS1_3_VERSION);
        SSL *ssl = SSL_new(ctx);
        BIO *in = BIO_new(BIO_s_mem()), *out = BIO_new(BIO_s_mem());
        SSL_set_bio(ssl, in, out);
        SSL_set_connect_state(ssl);
        for (int turn = 0; turn < 8; turn++) {
            char *data;
            if (turn == 4) {
                OK(tls_forget_chain(s.tls)); /* which is nothing to what follows */
            }
            if (turn < 4) {
                SSL_do_handshake(ssl);
            } else if (round == 1) {
                assert_int_equal(
                    SSL_key_update(ssl, turn % 2 ? SSL_KEY_UPDATE_REQUESTED : SSL_KEY_UPDATE_NOT_REQUESTED),
                    1);
                assert_int_equal(SSL_write(ssl, "x", 1), 1);
            }
            long n = BIO_get_mem_data(out, &data);
            if (s.err == 0) {
                s.err = tls_feed(s.tls, data, (size_t)n, &s.plain, &s.wire);
            }
            (void)BIO_reset(out);
            BIO_write(in, buf_data(&s.wire), (int)s.wire.len);
            buf_clear(&s.wire);
        }
        assert_int_equal(s.err, round == 0 ? SYM_EPROTO : 0);
        if (round == 1) {
            char text[8] = "";
            assert_int_equal(s.plain.len, 4);
            assert_string_equal(tls_peer(s.tls)->cert.cn, "node2");
            OK(tls_write(s.tls, "answer", 6, &s.wire));
            BIO_write(in, buf_data(&s.wire), (int)s.wire.len);
            assert_int_equal(SSL_read(ssl, text, sizeof text), 6);
            assert_memory_equal(text, "answer", 6);
            assert_string_equal(SSL_get_cipher(ssl), "TLS_AES_128_GCM_SHA256");
        }
        SSL_free(ssl);
        end_free(&s);
    }
    X509_free(cert);
    EVP_PKEY_free(pkey);
    BIO_free(pem);
    BIO_free(key_pem);
    buf_free(&key);
    SSL_CTX_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mutual),
        cmocka_unit_test(forgotten_chain),
#ifndef __SANITIZE_ADDRESS__
        cmocka_unit_test(forgotten_chains_are_freed),
#endif
        cmocka_unit_test(nothing_to_resume),
        cmocka_unit_test(anonymous_client),
        cmocka_unit_test(wrong_ca),
        cmocka_unit_test(wrong_purpose),
        cmocka_unit_test(no_intermediates),
        cmocka_unit_test(expired_is_let_in_and_marked),
        cmocka_unit_test(expired_ca),
        cmocka_unit_test(pinning),
        cmocka_unit_test(unreadable_names),
        cmocka_unit_test(contexts_that_make_no_sense),
        cmocka_unit_test(byte_at_a_time),
        cmocka_unit_test(data_with_the_handshake),
        cmocka_unit_test(large_writes),
        cmocka_unit_test(small_records_take_little),
        cmocka_unit_test(before_the_handshake),
        cmocka_unit_test(close_notify),
        cmocka_unit_test(truncated),
        cmocka_unit_test(tampered),
        cmocka_unit_test(garbage),
        cmocka_unit_test(damaged_handshakes),
        cmocka_unit_test(an_endless_chain_is_refused),
        cmocka_unit_test(other_clients),
    };
    return cmocka_run_group_tests(tests, make_world, free_world);
}
