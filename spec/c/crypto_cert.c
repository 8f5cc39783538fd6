#include "crypto_support.h"

#include <openssl/core_names.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

static const char garbage[] = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

static struct cert_spec node_spec(void)
{
    int64_t now = time(NULL);
    return (struct cert_spec){"node1", "manager", "cluster1", now - HOUR, now + 90 * DAY, true, 0, NULL, 0};
}

/* -- digests -- */

static void digests(void **state)
{
    (void)state;
    /* FIPS 180-4's examples. */
    static const uint8_t abc[SHA256_LEN] =
        "\xba\x78\x16\xbf\x8f\x01\xcf\xea\x41\x41\x40\xde\x5d\xae\x22\x23\xb0\x03\x61"
        "\xa3\x96\x17\x7a\x9c\xb4\x10\xff\x61\xf2\x00\x15\xad";
    static const uint8_t empty[SHA256_LEN] =
        "\xe3\xb0\xc4\x42\x98\xfc\x1c\x14\x9a\xfb\xf4\xc8\x99\x6f\xb9\x24\x27\xae"
        "\x41\xe4\x64\x9b\x93\x4c\xa4\x95\x99\x1b\x78\x52\xb8\x55";
    uint8_t out[SHA256_LEN];
    OK(crypto_sha256("abc", 3, out));
    assert_memory_equal(out, abc, SHA256_LEN);
    OK(crypto_sha256(NULL, 0, out));
    assert_memory_equal(out, empty, SHA256_LEN);

    struct sha256 *s;
    OK(sha256_new(&s));
    OK(sha256_add(s, "a", 1));
    OK(sha256_add(s, NULL, 0));
    OK(sha256_add(s, "bc", 2));
    OK(sha256_end(s, out));
    assert_memory_equal(out, abc, SHA256_LEN);
    OK(sha256_new(&s));
    sha256_free(s);
    sha256_free(NULL);
}

static void small_things(void **state)
{
    (void)state;
    uint8_t a[32] = {0}, b[32] = {0};
    OK(crypto_random(a, sizeof a));
    OK(crypto_random(b, sizeof b));
    assert_memory_not_equal(a, b, sizeof a);
    OK(crypto_random(NULL, 0));
    assert_true(crypto_equal("abc", "abc", 3));
    assert_false(crypto_equal("abc", "abd", 3));
    assert_true(crypto_equal("abc", "abd", 2));
    crypto_wipe(a, sizeof a);
    memset(b, 0, sizeof b);
    assert_memory_equal(a, b, sizeof a);
    crypto_wipe(NULL, 0);
}

/* -- keys -- */

static char *pem_of_key(EVP_PKEY *pkey, const EVP_CIPHER *cipher, bool traditional)
{
    char *data, *text;
    BIO *bio = BIO_new(BIO_s_mem());
    int ok =
        traditional
            ? PEM_write_bio_PrivateKey_traditional(bio, pkey, cipher, (unsigned char *)"pass", 4, NULL, NULL)
            : PEM_write_bio_PrivateKey(bio, pkey, cipher, (unsigned char *)"pass", 4, NULL, NULL);
    assert_int_equal(ok, 1);
    long n = BIO_get_mem_data(bio, &data);
    text = strndup(data, (size_t)n);
    BIO_free(bio);
    return text;
}

static void key_round_trip(void **state)
{
    (void)state;
    struct key *k, *back;
    struct buf pem = {0}, again = {0};
    uint8_t a[SHA256_LEN], b[SHA256_LEN];
    OK(key_generate(&k));
    OK(key_to_pem(k, &pem));
    OK(key_from_pem((char *)buf_data(&pem), pem.len, &back));
    OK(key_to_pem(back, &again));
    assert_int_equal(pem.len, again.len);
    assert_memory_equal(buf_data(&pem), buf_data(&again), pem.len);
    OK(key_fingerprint(k, a));
    OK(key_fingerprint(back, b));
    assert_memory_equal(a, b, SHA256_LEN);
    key_free(back);
    OK(key_generate(&back));
    OK(key_fingerprint(back, b));
    assert_memory_not_equal(a, b, SHA256_LEN);
    /* What ends early is refused, wherever. */
    for (size_t n = 0; n + 1 < pem.len; n += 7) {
        struct key *none = NULL;
        FAILS(SYM_EINVAL, key_from_pem((char *)buf_data(&pem), n, &none));
        assert_null(none);
    }
    key_free(back);
    key_free(k);
    key_free(NULL);
    buf_free(&pem);
    buf_free(&again);
}

static void refuse_key(EVP_PKEY *pkey, const EVP_CIPHER *cipher, bool traditional)
{
    struct key *k;
    char *pem = pem_of_key(pkey, cipher, traditional);
    FAILS(SYM_EINVAL, key_from_pem(pem, strlen(pem), &k));
    free(pem);
    EVP_PKEY_free(pkey);
}

static void keys_that_are_refused(void **state)
{
    (void)state;
    struct key *k;
    FAILS(SYM_EINVAL, key_from_pem("", 0, &k));
    FAILS(SYM_EINVAL, key_from_pem("nonsense", 8, &k));
    FAILS(SYM_EINVAL, key_from_pem(garbage, sizeof garbage - 1, &k));
    refuse_key(EVP_EC_gen("P-384"), NULL, false);
    refuse_key(EVP_RSA_gen(2048), NULL, false);
    refuse_key(EVP_PKEY_Q_keygen(NULL, NULL, "ED25519"), NULL, false);
    /* Encrypted: an error, never a question on the terminal. */
    refuse_key(EVP_EC_gen("P-256"), EVP_aes_128_cbc(), false);
    refuse_key(EVP_EC_gen("P-256"), EVP_aes_128_cbc(), true);
    /* The curve spelled out instead of named. */
    EVP_PKEY *explicit = EVP_EC_gen("P-256");
    assert_int_equal(EVP_PKEY_set_utf8_string_param(explicit, OSSL_PKEY_PARAM_EC_ENCODING, "explicit"), 1);
    refuse_key(explicit, NULL, false);
    EVP_PKEY *compressed = EVP_EC_gen("P-256");
    assert_int_equal(
        EVP_PKEY_set_utf8_string_param(compressed, OSSL_PKEY_PARAM_EC_POINT_CONVERSION_FORMAT, "compressed"),
        1);
    refuse_key(compressed, NULL, false);

    char *big = malloc(20000);
    memset(big, '\n', 20000);
    FAILS(SYM_EINVAL, key_from_pem(big, 20000, &k));
    free(big);
}

/* A file put together from two keys: the public half belongs to another private one. */
static void halves_that_do_not_match(void **state)
{
    (void)state;
    EVP_PKEY *a = EVP_EC_gen("P-256"), *b = EVP_EC_gen("P-256");
    unsigned char *da = NULL, *db = NULL;
    int na = i2d_PrivateKey(a, &da), nb = i2d_PrivateKey(b, &db);
    assert_int_equal(na, nb);
    /* ECPrivateKey ends with the public point. */
    memcpy(da + na - 64, db + nb - 64, 64);
    BIO *bio = BIO_new(BIO_s_mem());
    assert_true(PEM_write_bio(bio, "EC PRIVATE KEY", "", da, na) > 0);
    char *text;
    struct key *k;
    long n = BIO_get_mem_data(bio, &text);
    FAILS(SYM_EINVAL, key_from_pem(text, (size_t)n, &k));
    BIO_free(bio);
    OPENSSL_free(da);
    OPENSSL_free(db);
    EVP_PKEY_free(a);
    EVP_PKEY_free(b);
}

/* -- requests -- */

/* A request that says each of @cns, which a NULL ends. */
static char *pem_of_csr(EVP_PKEY *pkey, const char **cns)
{
    char *data, *text;
    BIO *bio = BIO_new(BIO_s_mem());
    X509_REQ *req = X509_REQ_new();
    for (; *cns != NULL; cns++) {
        assert_int_equal(X509_NAME_add_entry_by_txt(X509_REQ_get_subject_name(req), "CN", MBSTRING_UTF8,
                             (const unsigned char *)*cns, -1, -1, 0),
            1);
    }
    X509_REQ_set_pubkey(req, pkey);
    assert_true(X509_REQ_sign(req, pkey, EVP_sha256()) > 0);
    assert_int_equal(PEM_write_bio_X509_REQ(bio, req), 1);
    long n = BIO_get_mem_data(bio, &data);
    text = strndup(data, (size_t)n);
    X509_REQ_free(req);
    BIO_free(bio);
    return text;
}

static void csr_round_trip(void **state)
{
    (void)state;
    struct key *k;
    struct buf csr = {0};
    uint8_t of_key[SHA256_LEN], of_csr[SHA256_LEN];
    char cn[64];
    OK(key_generate(&k));
    OK(csr_new(k, "node1", &csr));
    OK(csr_check((char *)buf_data(&csr), csr.len, of_csr, cn));
    OK(key_fingerprint(k, of_key));
    assert_memory_equal(of_key, of_csr, SHA256_LEN);
    assert_string_equal(cn, "node1");
    for (size_t n = 0; n + 1 < csr.len; n += 5) {
        FAILS(SYM_EINVAL, csr_check((char *)buf_data(&csr), n, of_csr, cn));
    }
    /* Whatever letter is changed: refused, or the same request still, in what it says too. */
    char *text = text_of(&csr);
    for (size_t i = 0; text[i] != '\0'; i++) {
        char was = text[i];
        text[i] = was == 'A' ? 'B' : 'A';
        if (csr_check(text, strlen(text), of_csr, cn) == 0) {
            assert_memory_equal(of_key, of_csr, SHA256_LEN);
            assert_string_equal(cn, "node1");
        }
        text[i] = was;
    }
    free(text);

    FAILS(SYM_EINVAL, csr_new(k, "", &csr));
    FAILS(SYM_EINVAL, csr_new(k, "a\nb", &csr));
    FAILS(SYM_EINVAL, csr_new(k, "0123456789012345678901234567890123456789012345678901234567890123", &csr));
    OK(csr_new(k, "012345678901234567890123456789012345678901234567890123456789012", &csr));
    buf_free(&csr);
    key_free(k);
}

static void requests_that_are_refused(void **state)
{
    (void)state;
    uint8_t out[SHA256_LEN];
    char cn[64];
    EVP_PKEY *keys[] = {EVP_EC_gen("P-384"), EVP_EC_gen("secp256k1"), EVP_RSA_gen(2048), EVP_EC_gen("P-256")};
    for (size_t i = 0; i < 4; i++) {
        char *pem = pem_of_csr(keys[i], (const char *[]){NULL});
        FAILS(i < 3 ? SYM_EINVAL : 0, csr_check(pem, strlen(pem), out, cn));
        free(pem);
        if (i < 3) {
            EVP_PKEY_free(keys[i]);
        }
    }
    assert_string_equal(cn, "");
    /* What says two things says nothing. */
    const char *subjects[][3] = {{"a", "b", NULL}, {"a\nb", NULL},
        {"0123456789012345678901234567890123456789012345678901234567890123", NULL}, {"a", NULL}};
    for (size_t i = 0; i < 4; i++) {
        char *pem = pem_of_csr(keys[3], subjects[i]);
        FAILS(i < 3 ? SYM_EINVAL : 0, csr_check(pem, strlen(pem), out, cn));
        free(pem);
    }
    assert_string_equal(cn, "a");
    EVP_PKEY_free(keys[3]);
    FAILS(SYM_EINVAL, csr_check("", 0, out, cn));
    FAILS(SYM_EINVAL, csr_check(garbage, sizeof garbage - 1, out, cn));
    static const char encrypted[] = "-----BEGIN CERTIFICATE REQUEST-----\nProc-Type: 4,ENCRYPTED\n"
                                    "DEK-Info: AES-128-CBC,00112233445566778899AABBCCDDEEFF\n\n"
                                    "AAAA\n-----END CERTIFICATE REQUEST-----\n";
    FAILS(SYM_EINVAL, csr_check(encrypted, sizeof encrypted - 1, out, cn));
    char *big = malloc(100000);
    memset(big, 'A', 100000);
    FAILS(SYM_EINVAL, csr_check(big, 100000, out, cn));
    assert_non_null(strstr(err_msg(), "100000"));
    free(big);
}

/* -- certificates -- */

static X509 *parsed(const char *pem)
{
    BIO *bio = BIO_new_mem_buf(pem, -1);
    X509 *x = PEM_read_bio_X509(bio, NULL, NULL, NULL);
    BIO_free(bio);
    assert_non_null(x);
    return x;
}

static void what_is_signed(void **state)
{
    (void)state;
    struct cert_spec spec = node_spec();
    struct identity ca = make_ca("cluster1", spec.not_before, spec.not_after + DAY);
    struct identity node = make_node(&ca, &spec);
    struct cert_info info;
    uint8_t fingerprint[SHA256_LEN];

    OK(cert_info(ca.pem, strlen(ca.pem), &info));
    assert_string_equal(info.o, "cluster1");
    assert_string_equal(info.ou, "");
    assert_true(info.is_ca);
    assert_false(info.is_server);
    assert_true(info.not_before == spec.not_before && info.not_after == spec.not_after + DAY);

    OK(cert_info(node.pem, strlen(node.pem), &info));
    assert_string_equal(info.cn, "node1");
    assert_string_equal(info.ou, "manager");
    assert_string_equal(info.o, "cluster1");
    assert_in_range(strlen(info.serial), 28, 32);
    assert_true(info.not_before == spec.not_before && info.not_after == spec.not_after);
    assert_false(info.is_ca);
    assert_true(info.is_server);
    OK(key_fingerprint(node.key, fingerprint));
    assert_memory_equal(info.fingerprint, fingerprint, SHA256_LEN);

    X509 *x = parsed(node.pem), *root = parsed(ca.pem);
    uint8_t digest[SHA256_LEN];
    assert_int_equal(X509_digest(x, EVP_sha256(), digest, NULL), 1);
    assert_memory_equal(info.digest, digest, SHA256_LEN);
    assert_int_equal(X509_get_key_usage(x), KU_DIGITAL_SIGNATURE | KU_KEY_ENCIPHERMENT);
    assert_int_equal(X509_get_extended_key_usage(x), XKU_SSL_CLIENT | XKU_SSL_SERVER);
    assert_true(X509_get_extension_flags(x) & EXFLAG_BCONS);
    assert_int_equal(X509_get_pathlen(root), 1);
    assert_int_equal(X509_get_key_usage(root), KU_KEY_CERT_SIGN | KU_CRL_SIGN);
    assert_int_equal(ASN1_OCTET_STRING_cmp(X509_get0_authority_key_id(x), X509_get0_subject_key_id(root)), 0);
    assert_non_null(X509_get0_subject_key_id(x));
    assert_int_equal(X509_get_ext_by_NID(x, NID_subject_alt_name, -1), -1);

    /* As strict as OpenSSL can be, and for either purpose. */
    for (int i = 0; i < 2; i++) {
        X509_STORE *store = X509_STORE_new();
        X509_STORE_CTX *ctx = X509_STORE_CTX_new();
        X509_STORE_add_cert(store, root);
        assert_int_equal(X509_STORE_CTX_init(ctx, store, x, NULL), 1);
        X509_STORE_CTX_set_flags(ctx, X509_V_FLAG_X509_STRICT | X509_V_FLAG_CHECK_SS_SIGNATURE);
        X509_STORE_CTX_set_purpose(ctx, i == 0 ? X509_PURPOSE_SSL_CLIENT : X509_PURPOSE_SSL_SERVER);
        if (X509_verify_cert(ctx) != 1) {
            fail_msg("%s", X509_verify_cert_error_string(X509_STORE_CTX_get_error(ctx)));
        }
        X509_STORE_CTX_free(ctx);
        X509_STORE_free(store);
    }
    X509_free(x);
    X509_free(root);

    /* Another one from the same CA: client only, and another serial number. */
    char serial[64];
    strcpy(serial, info.serial);
    spec.server = false;
    spec.ou = "worker";
    struct identity worker = make_node(&ca, &spec);
    OK(cert_info(worker.pem, strlen(worker.pem), &info));
    assert_false(info.is_server);
    assert_string_not_equal(serial, info.serial);
    x = parsed(worker.pem);
    assert_int_equal(X509_get_extended_key_usage(x), XKU_SSL_CLIENT);
    X509_free(x);
    free_identity(&worker);
    free_identity(&node);
    free_identity(&ca);
}

static void names_that_fit(void **state)
{
    (void)state;
    struct cert_spec spec = node_spec();
    struct identity ca = make_ca("cluster1", spec.not_before, spec.not_after);
    struct cert_info info;
    static const char longest[] = "012345678901234567890123456789012345678901234567890123456789012";
    spec.cn = spec.ou = spec.o = longest;
    struct identity node = make_node(&ca, &spec);
    OK(cert_info(node.pem, strlen(node.pem), &info));
    assert_string_equal(info.cn, longest);
    assert_string_equal(info.ou, longest);
    assert_string_equal(info.o, longest);
    free_identity(&node);

    /* Not a host's name, so none is put in. */
    spec.cn = "J\xc3\xbcrgen, DNS:other";
    node = make_node(&ca, &spec);
    OK(cert_info(node.pem, strlen(node.pem), &info));
    assert_string_equal(info.cn, spec.cn);
    X509 *x = parsed(node.pem);
    assert_int_equal(X509_get_ext_by_NID(x, NID_subject_alt_name, -1), -1);
    X509_free(x);
    free_identity(&node);
    free_identity(&ca);
}

/* What OpenSSL's own look-up makes of them is what curl, browsers and Prometheus do. */
static void hosts_of_a_server(void **state)
{
    (void)state;
    static const char *const hosts[] = {
        "10.0.0.5", "fd00:0:0::5", "Manager-01.example.org", "localhost", "a_b"};
    struct cert_spec spec = node_spec();
    struct identity ca = make_ca("cluster1", spec.not_before, spec.not_after);
    struct cert_info info;
    struct buf b = {0};
    spec.cn = "0node";
    spec.hosts = hosts;
    spec.n_hosts = sizeof hosts / sizeof hosts[0];
    spec.raft_id = 7;
    struct identity node = make_node(&ca, &spec);
    X509 *x = parsed(node.pem);
    assert_int_equal(X509_check_ip_asc(x, "10.0.0.5", 0), 1);
    assert_int_equal(X509_check_ip_asc(x, "fd00::5", 0), 1);
    assert_int_equal(X509_check_host(x, "manager-01.EXAMPLE.org", 0, 0, NULL), 1);
    assert_int_equal(X509_check_host(x, "localhost", 0, 0, NULL), 1);
    assert_int_equal(X509_check_ip_asc(x, "10.0.0.6", 0), 0);
    assert_int_equal(X509_check_host(x, "10.0.0.5", 0, 0, NULL), 0);
    assert_int_equal(
        X509_check_host(x, "0node", 0, 0, NULL), 0); /* a CN counts only where there is no name */
    X509_free(x);
    OK(cert_info(node.pem, strlen(node.pem), &info));
    assert_int_equal(info.raft_id, 7);
    OK(cert_hosts(node.pem, strlen(node.pem), &b));
    OK(buf_append(&b, "", 1));
    assert_string_equal((char *)buf_data(&b), "10.0.0.5\nfd00::5\nManager-01.example.org\nlocalhost\na_b\n");
    buf_clear(&b);
    OK(cert_hosts(ca.pem, strlen(ca.pem), &b));
    assert_int_equal(b.len, 0);
    FAILS(SYM_EINVAL, cert_hosts(garbage, sizeof garbage - 1, &b));
    free_identity(&node);

    /* Nothing slips in beside the host. */
    char longest[256];
    memset(longest, 'a', 254);
    longest[254] = '\0';
    const char *bad[] = {"", "a,DNS:b", "a\nb", "*.example.org", "1.2.3", "10.0.0.256", "fd00::5%1", longest,
        "a b", "\xc3\xbc"};
    struct buf csr = {0};
    struct key *k;
    OK(key_generate(&k));
    OK(csr_new(k, "x", &csr));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        spec.hosts = &bad[i];
        spec.n_hosts = 1;
        int rv = cert_sign(ca.key, ca.pem, strlen(ca.pem), (char *)buf_data(&csr), csr.len, &spec, &b);
        if (rv != SYM_EINVAL) {
            fail_msg("%s: %d", bad[i], rv);
        }
    }
    key_free(k);
    buf_free(&csr);
    buf_free(&b);
    free_identity(&ca);
}

static void one_ca_vouches_for_another(void **state)
{
    (void)state;
    struct cert_spec spec = node_spec();
    struct identity old = make_ca("cluster1", spec.not_before, spec.not_after),
                    new = make_ca("cluster1", spec.not_before + HOUR, spec.not_after + DAY),
                    stranger = make_ca("cluster1", spec.not_before, spec.not_after);
    struct identity node = make_node(&new, &spec);
    struct cert_info of_new, of_bridge;
    struct buf b = {0};
    OK(cert_cross_sign(old.key, old.pem, strlen(old.pem), new.pem, strlen(new.pem), &b));
    char *bridge = text_of(&b);
    OK(cert_info(new.pem, strlen(new.pem), &of_new));
    OK(cert_info(bridge, strlen(bridge), &of_bridge));
    assert_true(of_bridge.is_ca);
    assert_memory_equal(of_bridge.fingerprint, of_new.fingerprint, SHA256_LEN);
    assert_memory_not_equal(of_bridge.digest, of_new.digest, SHA256_LEN);
    assert_true(of_bridge.not_before == of_new.not_before && of_bridge.not_after == of_new.not_after);
    OK(cert_check_issuer(bridge, strlen(bridge), old.pem, strlen(old.pem)));
    OK(cert_check_issuer(node.pem, strlen(node.pem), bridge, strlen(bridge)));
    FAILS(SYM_EAUTH, cert_check_issuer(bridge, strlen(bridge), stranger.pem, strlen(stranger.pem)));
    FAILS(SYM_EAUTH, cert_check_issuer(bridge, strlen(bridge), new.pem, strlen(new.pem)));
    FAILS(SYM_EINVAL, cert_cross_sign(stranger.key, old.pem, strlen(old.pem), new.pem, strlen(new.pem), &b));
    FAILS(SYM_EINVAL, cert_cross_sign(old.key, old.pem, strlen(old.pem), node.pem, strlen(node.pem), &b));
    FAILS(SYM_EINVAL, cert_cross_sign(old.key, old.pem, strlen(old.pem), "x", 1, &b));

    /* Who trusts the old one only, as curl or a browser with its ca.crt, comes from the leaf to it over the bridge. */
    X509 *leaf = parsed(node.pem), *between = parsed(bridge), *root = parsed(old.pem),
         *self = parsed(new.pem);
    assert_int_equal(X509_get_pathlen(between), 0);
    for (int i = 0; i < 2; i++) {
        X509_STORE *store = X509_STORE_new();
        X509_STORE_CTX *ctx = X509_STORE_CTX_new();
        STACK_OF(X509) *sent = sk_X509_new_null();
        if (i == 0) {
            sk_X509_push(sent, between);
        }
        sk_X509_push(sent, self);
        X509_STORE_add_cert(store, root);
        assert_int_equal(X509_STORE_CTX_init(ctx, store, leaf, sent), 1);
        X509_STORE_CTX_set_flags(ctx, X509_V_FLAG_X509_STRICT);
        assert_int_equal(X509_verify_cert(ctx) == 1, i == 0);
        sk_X509_free(sent);
        X509_STORE_CTX_free(ctx);
        X509_STORE_free(store);
    }
    X509_free(leaf);
    X509_free(between);
    X509_free(root);
    X509_free(self);

    /* A text of several, taken apart. */
    char *both = join_pem(new.pem, old.pem);
    OK(cert_nth(both, strlen(both), 0, &b));
    assert_int_equal(b.len, strlen(new.pem));
    assert_memory_equal(buf_data(&b), new.pem, b.len);
    buf_clear(&b);
    OK(cert_nth(both, strlen(both), 1, &b));
    assert_memory_equal(buf_data(&b), old.pem, strlen(old.pem));
    FAILS(SYM_ENOTFOUND, cert_nth(both, strlen(both), 2, &b));
    FAILS(SYM_EINVAL, cert_nth(both, strlen(both) - 30, 0, &b));
    /* Two CAs of one name: each leaf is its own's, whichever comes first. */
    OK(cert_check_issuer(node.pem, strlen(node.pem), both, strlen(both)));
    FAILS(SYM_EAUTH, cert_check_issuer(node.pem, strlen(node.pem), old.pem, strlen(old.pem)));
    buf_free(&b);
    free(both);
    free(bridge);
    free_identity(&node);
    free_identity(&old);
    free_identity(&new);
    free_identity(&stranger);
}

static int sign_with(const struct identity *ca, const char *csr, const struct cert_spec *spec)
{
    struct buf out = {0};
    int rv = cert_sign(ca->key, ca->pem, strlen(ca->pem), csr, strlen(csr), spec, &out);
    assert_true(rv == 0 || out.len == 0);
    buf_free(&out);
    return rv;
}

static void what_is_not_signed(void **state)
{
    (void)state;
    const struct cert_spec good = node_spec();
    struct identity ca = make_ca("cluster1", good.not_before, good.not_after);
    struct identity other = make_ca("cluster2", good.not_before, good.not_after);
    struct identity leaf = make_node(&ca, &good);
    struct buf b = {0};
    OK(csr_new(leaf.key, "x", &b));
    char *csr = text_of(&b);
    static const char *const bad_names[] = {NULL, "", "a\nb", "\x7f", "\xff\xfe",
        "0123456789012345678901234567890123456789012345678901234567890123"};
    for (size_t i = 0; i < sizeof bad_names / sizeof bad_names[0]; i++) {
        struct cert_spec spec = good;
        spec.cn = bad_names[i];
        FAILS(SYM_EINVAL, sign_with(&ca, csr, &spec));
        spec = good;
        spec.ou = bad_names[i];
        FAILS(SYM_EINVAL, sign_with(&ca, csr, &spec));
        spec = good;
        spec.o = bad_names[i];
        FAILS(SYM_EINVAL, sign_with(&ca, csr, &spec));
        FAILS(SYM_EINVAL, cert_new_ca(ca.key, bad_names[i], 0, 1, &b));
    }
    static const int64_t bad_times[][2] = {{-1, 1}, {5, 5}, {6, 5}, {0, INT64_MAX}, {INT64_MIN, INT64_MAX}};
    for (size_t i = 0; i < sizeof bad_times / sizeof bad_times[0]; i++) {
        struct cert_spec spec = good;
        spec.not_before = bad_times[i][0];
        spec.not_after = bad_times[i][1];
        FAILS(SYM_EINVAL, sign_with(&ca, csr, &spec));
        FAILS(SYM_EINVAL, cert_new_ca(ca.key, "c", bad_times[i][0], bad_times[i][1], &b));
    }
    /* The key of one CA with the certificate of another; a leaf as CA; nothing as CA. */
    FAILS(SYM_EINVAL, sign_with(&(struct identity){ca.key, other.pem}, csr, &good));
    FAILS(SYM_EINVAL, sign_with(&leaf, csr, &good));
    FAILS(SYM_EINVAL, sign_with(&(struct identity){ca.key, ""}, csr, &good));
    FAILS(SYM_EINVAL, sign_with(&ca, "", &good));
    FAILS(SYM_EINVAL, sign_with(&ca, leaf.pem, &good));
    OK(sign_with(&ca, csr, &good));
    free(csr);
    buf_free(&b);
    free_identity(&leaf);
    free_identity(&other);
    free_identity(&ca);
}

static void issuers(void **state)
{
    (void)state;
    struct cert_spec spec = node_spec();
    spec.not_before = 1000;
    spec.not_after = 2000;
    struct identity ca = make_ca("cluster1", 1000, 2000);
    /* Same name, other key: what a rotation or a forger makes. */
    struct identity twin = make_ca("cluster1", 1000, 2000);
    struct identity leaf = make_node(&ca, &spec);
    char *both = join_pem(twin.pem, ca.pem);
    OK(cert_check_issuer(leaf.pem, strlen(leaf.pem), ca.pem, strlen(ca.pem)));
    OK(cert_check_issuer(leaf.pem, strlen(leaf.pem), both, strlen(both)));
    OK(cert_check_issuer(ca.pem, strlen(ca.pem), ca.pem, strlen(ca.pem)));
    FAILS(SYM_EAUTH, cert_check_issuer(leaf.pem, strlen(leaf.pem), twin.pem, strlen(twin.pem)));
    FAILS(SYM_EAUTH, cert_check_issuer(leaf.pem, strlen(leaf.pem), leaf.pem, strlen(leaf.pem)));
    FAILS(SYM_EAUTH, cert_check_issuer(twin.pem, strlen(twin.pem), ca.pem, strlen(ca.pem)));
    FAILS(SYM_EINVAL, cert_check_issuer("", 0, ca.pem, strlen(ca.pem)));
    FAILS(SYM_EINVAL, cert_check_issuer(leaf.pem, strlen(leaf.pem), garbage, strlen(garbage)));

    OK(cert_check_key(leaf.pem, strlen(leaf.pem), leaf.key));
    FAILS(SYM_EINVAL, cert_check_key(leaf.pem, strlen(leaf.pem), ca.key));
    FAILS(SYM_EINVAL, cert_check_key("x", 1, ca.key));
    free(both);
    free_identity(&leaf);
    free_identity(&twin);
    free_identity(&ca);
}

static struct buf hosts_found; /* of the last one below */

/* A certificate by its own key that says what @change makes it say. */
static int info_of(void (*change)(X509 *), struct cert_info *info)
{
    char *text;
    EVP_PKEY *pkey = EVP_EC_gen("P-256");
    X509 *x = X509_new();
    BIO *bio = BIO_new(BIO_s_mem());
    X509_set_version(x, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(x), 0x1234);
    X509_gmtime_adj(X509_getm_notBefore(x), 0);
    X509_gmtime_adj(X509_getm_notAfter(x), 1000);
    X509_set_pubkey(x, pkey);
    change(x);
    assert_true(X509_sign(x, pkey, EVP_sha256()) > 0);
    assert_int_equal(PEM_write_bio_X509(bio, x), 1);
    long n = BIO_get_mem_data(bio, &text);
    int rv = cert_info(text, (size_t)n, info);
    buf_clear(&hosts_found);
    int hosts_rv = cert_hosts(text, (size_t)n, &hosts_found);
    assert_true(hosts_rv == 0 || (hosts_rv == SYM_EINVAL && rv != 0));
    OK(buf_append(&hosts_found, "", 1));
    BIO_free(bio);
    X509_free(x);
    EVP_PKEY_free(pkey);
    return rv;
}

static void add_cn(X509 *x, int type, const char *value, int n)
{
    X509_NAME_add_entry_by_NID(
        X509_get_subject_name(x), NID_commonName, type, (const unsigned char *)value, n, -1, 0);
}
static void nothing(X509 *x)
{
    (void)x;
}
static void two_cns(X509 *x)
{
    add_cn(x, MBSTRING_ASC, "node1", -1);
    add_cn(x, MBSTRING_ASC, "node2", -1);
}
static void nul_in_cn(X509 *x)
{
    add_cn(x, V_ASN1_UTF8STRING, "node1\0x", 7);
}
static void wide_cn(X509 *x)
{
    add_cn(x, V_ASN1_BMPSTRING, "\0n\0\xfc", 4);
}
static void control_in_cn(X509 *x)
{
    add_cn(x, V_ASN1_UTF8STRING, "a\nb", 3);
}
static void long_cn(X509 *x)
{
    add_cn(x, V_ASN1_UTF8STRING, "0123456789012345678901234567890123456789012345678901234567890123", 64);
}
static void negative_serial(X509 *x)
{
    ASN1_INTEGER_set(X509_get_serialNumber(x), -5);
}
static void long_serial(X509 *x)
{
    uint8_t bytes[40];
    memset(bytes, 0x55, sizeof bytes);
    BIGNUM *n = BN_bin2bn(bytes, sizeof bytes, NULL);
    BN_to_ASN1_INTEGER(n, X509_get_serialNumber(x));
    BN_free(n);
}
static void far_future(X509 *x)
{
    ASN1_TIME_set_string(X509_getm_notAfter(x), "99991231235959Z");
}

static void odd_certificates(void **state)
{
    (void)state;
    struct cert_info info;
    OK(info_of(nothing, &info));
    assert_string_equal(info.cn, "");
    assert_string_equal(info.serial, "1234");
    assert_false(info.is_ca);
    OK(info_of(wide_cn, &info));
    assert_string_equal(info.cn, "n\xc3\xbc");
    OK(info_of(far_future, &info));
    assert_true(info.not_after == 253402300799);
    void (*const bad[])(X509 *) = {two_cns, nul_in_cn, control_in_cn, long_cn, negative_serial, long_serial};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (info_of(bad[i], &info) != SYM_EINVAL) {
            fail_msg("number %zu is taken", i);
        }
    }
    FAILS(SYM_EINVAL, cert_info("", 0, &info));
    FAILS(SYM_EINVAL, cert_info("x", 1, &info));
    FAILS(SYM_EINVAL, cert_info(garbage, strlen(garbage), &info));
    char *big = calloc(1, 1 << 20);
    FAILS(SYM_EINVAL, cert_info(big, 1 << 20, &info));
    free(big);
}

static const char *alternative_names;

static void add_alternative_names(X509 *x)
{
    X509V3_CTX ctx;
    X509V3_set_ctx(&ctx, x, x, NULL, NULL, 0);
    X509_EXTENSION *ext = X509V3_EXT_conf_nid(NULL, &ctx, NID_subject_alt_name, alternative_names);
    assert_non_null(ext);
    assert_int_equal(X509_add_ext(x, ext, -1), 1);
    X509_EXTENSION_free(ext);
}

static void add_broken_names(X509 *x)
{
    ASN1_OCTET_STRING *value = ASN1_OCTET_STRING_new();
    ASN1_OCTET_STRING_set(value, (const unsigned char *)"\x30\x05junk", 6);
    X509_EXTENSION *ext = X509_EXTENSION_create_by_NID(NULL, NID_subject_alt_name, 0, value);
    assert_int_equal(X509_add_ext(x, ext, -1), 1);
    X509_EXTENSION_free(ext);
    ASN1_OCTET_STRING_free(value);
}

static void raft_ids(void **state)
{
    (void)state;
    struct cert_spec spec = node_spec();
    struct identity ca = make_ca("cluster1", spec.not_before, spec.not_after);
    struct cert_info info;
    static const uint64_t good[] = {0, 1, 7, 10, 999999999999999999};
    for (size_t i = 0; i < 2 * sizeof good / sizeof good[0]; i++) {
        spec.raft_id = good[i / 2];
        spec.cn = i % 2 == 0 ? "node1" : "no host's name, URI:symphony:raft:5";
        struct identity node = make_node(&ca, &spec);
        OK(cert_info(node.pem, strlen(node.pem), &info));
        assert_true(info.raft_id == spec.raft_id);
        assert_string_equal(info.cn, spec.cn);
        X509 *x = parsed(node.pem);
        assert_int_equal(X509_check_host(x, "node1", 0, 0, NULL), i % 2 == 0);
        X509_free(x);
        free_identity(&node);
    }
    struct key *k;
    struct buf csr = {0}, out = {0};
    OK(key_generate(&k));
    OK(csr_new(k, "x", &csr));
    spec.raft_id = 1000000000000000000;
    FAILS(
        SYM_EINVAL, cert_sign(ca.key, ca.pem, strlen(ca.pem), (char *)buf_data(&csr), csr.len, &spec, &out));
    buf_free(&csr);
    key_free(k);
    free_identity(&ca);

    /* One number, spelled in the one way. */
    static const struct {
        const char *names;
        int rv;
        uint64_t id;
    } odd[] = {
        {"URI:symphony:raft:12", 0, 12},
        {"DNS:a,URI:https://symphony:raft:1/,email:a@b,URI:symphony:raft:3,IP:127.0.0.1", 0, 3},
        {"DNS:symphony:raft:3", 0, 0},
        {"URI:symphony:raft", 0, 0},
        {"URI:symphony:raft:", SYM_EINVAL, 0},
        {"URI:symphony:raft:0", SYM_EINVAL, 0},
        {"URI:symphony:raft:07", SYM_EINVAL, 0},
        {"URI:symphony:raft:-7", SYM_EINVAL, 0},
        {"URI:symphony:raft:7x", SYM_EINVAL, 0},
        {"URI:symphony:raft:1000000000000000000", SYM_EINVAL, 0},
        {"URI:symphony:raft:7,URI:symphony:raft:7", SYM_EINVAL, 0},
        {"URI:symphony:raft:7,URI:symphony:raft:8", SYM_EINVAL, 0},
    };
    for (size_t i = 0; i < sizeof odd / sizeof odd[0]; i++) {
        alternative_names = odd[i].names;
        int rv = info_of(add_alternative_names, &info);
        if (rv != odd[i].rv || (rv == 0 && info.raft_id != odd[i].id)) {
            fail_msg("%s: %d, raft id %llu", odd[i].names, rv, (unsigned long long)info.raft_id);
        }
    }
    /* Of those that are no host's nothing is taken for one. */
    alternative_names = "email:a@b,RID:1.2.3.4,DNS:a b,otherName:1.2.3.4;UTF8:c,DNS:d,URI:https://e,IP:::1";
    OK(info_of(add_alternative_names, &info));
    assert_string_equal((char *)buf_data(&hosts_found), "d\n::1\n");
    FAILS(SYM_EINVAL, info_of(add_broken_names, &info));
    buf_free(&hosts_found);
}

static void damaged_certificates(void **state)
{
    (void)state;
    struct cert_spec spec = node_spec();
    struct identity ca = make_ca("cluster1", spec.not_before, spec.not_after);
    struct cert_info info, good;
    size_t len = strlen(ca.pem);
    OK(cert_info(ca.pem, len, &good));
    for (size_t n = 0; n + 1 < len; n++) {
        FAILS(SYM_EINVAL, cert_info(ca.pem, n, &info));
    }
    for (size_t i = 0; i < len; i++) {
        char was = ca.pem[i];
        ca.pem[i] = was == 'A' ? 'B' : 'A';
        /* Only what leaves it the same certificate passes. */
        if (cert_check_issuer(ca.pem, len, ca.pem, len) == 0) {
            OK(cert_info(ca.pem, len, &info));
            assert_memory_equal(&info, &good, sizeof info);
        }
        ca.pem[i] = was;
    }
    /* A good one followed by a broken one is not half taken. */
    char *both = join_pem(ca.pem, garbage);
    FAILS(SYM_EINVAL, cert_info(both, strlen(both), &info));
    free(both);
    free_identity(&ca);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(digests),
        cmocka_unit_test(small_things),
        cmocka_unit_test(key_round_trip),
        cmocka_unit_test(keys_that_are_refused),
        cmocka_unit_test(halves_that_do_not_match),
        cmocka_unit_test(csr_round_trip),
        cmocka_unit_test(requests_that_are_refused),
        cmocka_unit_test(what_is_signed),
        cmocka_unit_test(names_that_fit),
        cmocka_unit_test(hosts_of_a_server),
        cmocka_unit_test(one_ca_vouches_for_another),
        cmocka_unit_test(what_is_not_signed),
        cmocka_unit_test(issuers),
        cmocka_unit_test(odd_certificates),
        cmocka_unit_test(raft_ids),
        cmocka_unit_test(damaged_certificates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
