#include "crypto/ossl.h"

#include "base/err.h"
#include "codec/text.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <arpa/inet.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* A manager's raft id among its alternative names: "symphony:raft:7". Whose cluster's it is says the CA. */
#define RAFT_URI "symphony:raft:"
#define RAFT_ID_MAX 999999999999999999u

/* -- reading -- */

int certs_read(const char *pem, size_t n, STACK_OF(X509) * *out)
{
    int err = 0;
    BIO *bio = pem_open(pem, n, PEM_BUNDLE_MAX, "certificate", &err);
    if (bio == NULL) {
        return err;
    }
    X509 *x = NULL;
    STACK_OF(X509) *certs = sk_X509_new_null();
    if (certs == NULL) {
        err = ossl_errf(SYM_ENOMEM, "certificate");
        goto end;
    }
    while ((x = PEM_read_bio_X509(bio, NULL, pem_no_password, NULL)) != NULL) {
        if (sk_X509_push(certs, x) <= 0) {
            X509_free(x);
            err = ossl_errf(SYM_ENOMEM, "certificate");
            goto end;
        }
    }
    unsigned long why = ERR_peek_last_error();
    if (sk_X509_num(certs) > 0 && ERR_GET_LIB(why) == ERR_LIB_PEM &&
        ERR_GET_REASON(why) == PEM_R_NO_START_LINE) {
        ERR_clear_error();
        *out = certs;
        certs = NULL;
    } else {
        err = ossl_errf(SYM_EINVAL, "certificate");
    }
end:
    certs_free(certs);
    BIO_free(bio);
    return err;
}

void certs_free(STACK_OF(X509) * certs)
{
    sk_X509_pop_free(certs, X509_free);
}

static int cert_read(const char *pem, size_t n, X509 **out)
{
    STACK_OF(X509) *certs = NULL;
    int err = certs_read(pem, n, &certs);
    if (err != 0) {
        return err;
    }
    *out = sk_X509_shift(certs);
    certs_free(certs);
    return 0;
}

static int read_time(const ASN1_TIME *at, int64_t *out)
{
    struct tm tm;
    if (at == NULL || ASN1_TIME_to_tm(at, &tm) != 1) {
        return ossl_errf(SYM_EINVAL, "certificate: time");
    }
    *out = timegm(&tm);
    return 0;
}

static int read_serial(X509 *x, char *out, size_t room)
{
    const ASN1_INTEGER *serial = X509_get0_serialNumber(x);
    int n = ASN1_STRING_length(serial);
    if (ASN1_STRING_type(serial) != V_ASN1_INTEGER || n <= 0 || (size_t)n * 2 >= room) {
        return err_setf(SYM_EINVAL, "certificate: serial number");
    }
    hex_encode(ASN1_STRING_get0_data(serial), (size_t)n, out);
    return 0;
}

static int read_public(X509 *x, struct cert_info *out)
{
    unsigned char *der = NULL;
    int n = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(x), &der);
    if (n <= 0) {
        return ossl_errf(SYM_EINVAL, "certificate: public key");
    }
    out->has_spki = spki_is_p256(der, (size_t)n);
    if (out->has_spki) {
        memcpy(out->spki, der, SPKI_LEN);
    }
    int err = crypto_sha256(der, (size_t)n, out->fingerprint);
    OPENSSL_free(der);
    return err;
}

static bool is_raft_uri(const ASN1_IA5STRING *uri)
{
    size_t n = (size_t)ASN1_STRING_length(uri), prefix = strlen(RAFT_URI);
    return n >= prefix && memcmp(ASN1_STRING_get0_data(uri), RAFT_URI, prefix) == 0;
}

/* One number has one spelling. 0: it is none. */
static uint64_t raft_id_in(const ASN1_IA5STRING *uri)
{
    char digits[19] = ""; /* RAFT_ID_MAX */
    size_t n = (size_t)ASN1_STRING_length(uri) - strlen(RAFT_URI);
    if (n >= sizeof digits) {
        return 0;
    }
    memcpy(digits, ASN1_STRING_get0_data(uri) + strlen(RAFT_URI), n);
    return strspn(digits, "0123456789") != n || digits[0] == '0' ? 0 : strtoull(digits, NULL, 10);
}

static int read_raft_id(X509 *x, uint64_t *out)
{
    int err = 0, critical;
    *out = 0;
    GENERAL_NAMES *names = X509_get_ext_d2i(x, NID_subject_alt_name, &critical, NULL);
    if (names == NULL) {
        return critical == -1 ? 0 : ossl_errf(SYM_EINVAL, "certificate: alternative names");
    }
    for (int i = 0; err == 0 && i < sk_GENERAL_NAME_num(names); i++) {
        int kind;
        const void *value = GENERAL_NAME_get0_value(sk_GENERAL_NAME_value(names, i), &kind);
        if (kind == GEN_URI && is_raft_uri(value)) {
            uint64_t id = *out == 0 ? raft_id_in(value) : 0;
            err = id == 0 ? err_setf(SYM_EINVAL, "certificate: raft id") : 0;
            *out = id;
        }
    }
    GENERAL_NAMES_free(names);
    return err;
}

int cert_describe(X509 *x, struct cert_info *out)
{
    struct cert_info info = {0};
    const X509_NAME *subject = X509_get_subject_name(x);
    int err;
    if ((err = name_read("certificate", subject, NID_commonName, info.cn)) != 0 ||
        (err = name_read("certificate", subject, NID_organizationalUnitName, info.ou)) != 0 ||
        (err = name_read("certificate", subject, NID_organizationName, info.o)) != 0 ||
        (err = read_serial(x, info.serial, sizeof info.serial)) != 0 ||
        (err = read_time(X509_get0_notBefore(x), &info.not_before)) != 0 ||
        (err = read_time(X509_get0_notAfter(x), &info.not_after)) != 0 ||
        (err = read_public(x, &info)) != 0 || (err = read_raft_id(x, &info.raft_id)) != 0) {
        return err;
    }
    if (X509_digest(x, EVP_sha256(), info.digest, NULL) != 1) {
        return ossl_errf(SYM_ENOMEM, "certificate");
    }
    uint32_t flags = X509_get_extension_flags(x);
    if (flags & EXFLAG_INVALID) {
        return ossl_errf(SYM_EINVAL, "certificate: extensions");
    }
    info.is_ca = X509_check_ca(x) == 1;
    info.is_server = (flags & EXFLAG_XKUSAGE) && (X509_get_extended_key_usage(x) & XKU_SSL_SERVER);
    *out = info;
    return 0;
}

int cert_info(const char *pem, size_t n, struct cert_info *out)
{
    X509 *x = NULL;
    int err = cert_read(pem, n, &x);
    if (err != 0) {
        return err;
    }
    err = cert_describe(x, out);
    X509_free(x);
    return err;
}

int cert_nth(const char *pem, size_t n, unsigned at, struct buf *out)
{
    STACK_OF(X509) *certs = NULL;
    int err = certs_read(pem, n, &certs);
    if (err != 0) {
        return err;
    }
    if (at < (unsigned)sk_X509_num(certs)) {
        err = cert_append_pem(sk_X509_value(certs, (int)at), out);
    } else {
        err = err_setf(SYM_ENOTFOUND, "there are %d certificates", sk_X509_num(certs));
    }
    certs_free(certs);
    return err;
}

/* As it may stand in a URL: so it needs no escaping anywhere. */
static bool is_dns_name(const char *name, size_t n)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    return n > 0 && n <= HOST_MAX_BYTES && strspn(name, plain) == n;
}

/* What one alternative name says of a host, "" if it is about something else. */
static void read_host(const GENERAL_NAME *name, char out[HOST_MAX_BYTES + 1])
{
    int kind;
    const void *value = GENERAL_NAME_get0_value(name, &kind);
    out[0] = '\0';
    if (kind != GEN_IPADD && kind != GEN_DNS) {
        return; /* not all of these are strings */
    }
    const unsigned char *data = ASN1_STRING_get0_data(value);
    size_t n = (size_t)ASN1_STRING_length(value);
    if (kind == GEN_IPADD && (n == 4 || n == 16)) {
        inet_ntop(n == 4 ? AF_INET : AF_INET6, data, out, HOST_MAX_BYTES);
    } else if (kind == GEN_DNS && n <= HOST_MAX_BYTES) {
        memcpy(out, data, n);
        out[n] = '\0';
        if (!is_dns_name(out, n)) {
            out[0] = '\0';
        }
    }
}

int cert_hosts(const char *pem, size_t n, struct buf *out)
{
    X509 *x = NULL;
    int critical, err = cert_read(pem, n, &x);
    if (err != 0) {
        return err;
    }
    GENERAL_NAMES *names = X509_get_ext_d2i(x, NID_subject_alt_name, &critical, NULL);
    if (names == NULL && critical != -1) {
        err = ossl_errf(SYM_EINVAL, "certificate: alternative names");
    }
    for (int i = 0; err == 0 && i < sk_GENERAL_NAME_num(names); i++) {
        char host[HOST_MAX_BYTES + 1];
        read_host(sk_GENERAL_NAME_value(names, i), host);
        err = host[0] == '\0' ? 0 : buf_appendf(out, "%s\n", host);
    }
    GENERAL_NAMES_free(names);
    X509_free(x);
    return err;
}

int cert_check_issuer(const char *pem, size_t n, const char *ca_pem, size_t ca_n)
{
    X509 *x = NULL;
    STACK_OF(X509) *cas = NULL;
    int err = cert_read(pem, n, &x);
    if (err != 0) {
        return err;
    }
    err = certs_read(ca_pem, ca_n, &cas);
    if (err != 0) {
        goto free_cert;
    }
    err = SYM_EAUTH;
    for (int i = 0; err != 0 && i < sk_X509_num(cas); i++) {
        X509 *ca = sk_X509_value(cas, i);
        if (X509_check_ca(ca) == 1 && X509_check_issued(ca, x) == X509_V_OK &&
            X509_verify(x, X509_get0_pubkey(ca)) == 1) {
            err = 0;
        }
    }
    if (err != 0) {
        err = ossl_errf(SYM_EAUTH, "the certificate is not signed by this CA");
    }
    certs_free(cas);
free_cert:
    X509_free(x);
    return err;
}

int cert_check_key(const char *pem, size_t n, const struct key *k)
{
    X509 *x = NULL;
    int err = cert_read(pem, n, &x);
    if (err != 0) {
        return err;
    }
    if (X509_check_private_key(x, k->pkey) != 1) {
        err = ossl_errf(SYM_EINVAL, "the certificate is not this key's");
    }
    X509_free(x);
    return err;
}

/* -- signing -- */

int cert_append_pem(X509 *x, struct buf *out)
{
    int err;
    BIO *bio = BIO_new(BIO_s_mem());
    if (bio == NULL || PEM_write_bio_X509(bio, x) != 1) {
        err = ossl_errf(SYM_ENOMEM, "certificate");
    } else {
        err = pem_append(bio, out);
    }
    BIO_free(bio);
    return err;
}

static int set_serial(X509 *x)
{
    uint8_t bytes[16];
    int err = crypto_random(bytes, sizeof bytes);
    if (err != 0) {
        return err;
    }
    BIGNUM *n = BN_bin2bn(bytes, sizeof bytes, NULL);
    if (n == NULL || BN_to_ASN1_INTEGER(n, X509_get_serialNumber(x)) == NULL) {
        err = ossl_errf(SYM_ENOMEM, "serial number");
    }
    BN_free(n);
    return err;
}

static int set_times(X509 *x, int64_t not_before, int64_t not_after)
{
    const int64_t end_of_9999 = 253402300799;
    if (not_before < 0 || not_after <= not_before || not_after > end_of_9999) {
        return err_setf(
            SYM_EINVAL, "validity from %lld to %lld", (long long)not_before, (long long)not_after);
    }
    if (ASN1_TIME_set(X509_getm_notBefore(x), (time_t)not_before) == NULL ||
        ASN1_TIME_set(X509_getm_notAfter(x), (time_t)not_after) == NULL) {
        return ossl_errf(SYM_ENOMEM, "validity");
    }
    return 0;
}

static int add_extension(X509 *x, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509V3_set_ctx(&ctx, issuer, x, NULL, NULL, 0);
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    int ok = extension != NULL && X509_add_ext(x, extension, -1) == 1;
    X509_EXTENSION_free(extension);
    return ok ? 0 : ossl_errf(SYM_ENOMEM, "extension %s", OBJ_nid2sn(nid));
}

struct extension {
    int nid;
    const char *value;
};

static int add_extensions(X509 *x, X509 *issuer, const struct extension *list, size_t n)
{
    int err = 0;
    for (size_t i = 0; err == 0 && i < n; i++) {
        err = add_extension(x, issuer, list[i].nid, list[i].value);
    }
    return err;
}

static int add_subject(X509 *x, const char *cn, const char *ou, const char *o)
{
    X509_NAME *subject = X509_get_subject_name(x);
    int err = name_add(subject, "O", o);
    if (err == 0 && ou != NULL) {
        err = name_add(subject, "OU", ou);
    }
    return err != 0 ? err : name_add(subject, "CN", cn);
}

/* What a CA and a leaf have alike. */
static int start_cert(X509 *x, EVP_PKEY *pkey, int64_t not_before, int64_t not_after)
{
    int err = set_serial(x);
    if (err == 0) {
        err = set_times(x, not_before, not_after);
    }
    if (err == 0 && (X509_set_version(x, X509_VERSION_3) != 1 || X509_set_pubkey(x, pkey) != 1)) {
        err = ossl_errf(SYM_ENOMEM, "certificate");
    }
    return err;
}

static int finish_cert(X509 *x, EVP_PKEY *signer, struct buf *out)
{
    return X509_sign(x, signer, EVP_sha256()) <= 0 ? ossl_errf(SYM_ENOMEM, "signing the certificate")
                                                   : cert_append_pem(x, out);
}

/* Below a CA there may be one other: that which takes its place (cert_cross_sign). */
static int add_ca_extensions(X509 *x, X509 *issuer)
{
    const struct extension extensions[] = {
        {NID_basic_constraints, x == issuer ? "critical,CA:TRUE,pathlen:1" : "critical,CA:TRUE,pathlen:0"},
        {NID_key_usage, "critical,keyCertSign,cRLSign"},
        /* It comes before what refers to it. */
        {NID_subject_key_identifier, "hash"},
        {NID_authority_key_identifier, "keyid:always"},
    };
    return add_extensions(x, issuer, extensions, sizeof extensions / sizeof extensions[0]);
}

int cert_new_ca(const struct key *k, const char *o, int64_t not_before, int64_t not_after, struct buf *out)
{
    int err = name_check("O", o);
    if (err != 0) {
        return err;
    }
    X509 *x = X509_new();
    if (x == NULL) {
        return ossl_errf(SYM_ENOMEM, "certificate");
    }
    if ((err = start_cert(x, k->pkey, not_before, not_after)) != 0 ||
        (err = add_subject(x, "symphony CA", NULL, o)) != 0) {
        goto end;
    }
    if (X509_set_issuer_name(x, X509_get_subject_name(x)) != 1) {
        err = ossl_errf(SYM_ENOMEM, "certificate");
        goto end;
    }
    err = add_ca_extensions(x, x);
    if (err == 0) {
        err = finish_cert(x, k->pkey, out);
    }
end:
    X509_free(x);
    return err;
}

static int add_name(GENERAL_NAMES *names, int kind, ASN1_STRING *value)
{
    GENERAL_NAME *name = GENERAL_NAME_new();
    if (name != NULL && value != NULL) {
        GENERAL_NAME_set0_value(name, kind, value);
        value = NULL;
        if (sk_GENERAL_NAME_push(names, name) > 0) {
            return 0;
        }
    }
    ASN1_STRING_free(value);
    GENERAL_NAME_free(name);
    return ossl_errf(SYM_ENOMEM, "alternative names");
}

static ASN1_STRING *string_of(int type, const void *data, size_t n)
{
    ASN1_STRING *value = ASN1_STRING_type_new(type);
    if (value != NULL && ASN1_STRING_set(value, data, (int)n) != 1) {
        ASN1_STRING_free(value);
        value = NULL;
    }
    return value;
}

/* An address, else a name: a name that looks like an address is none. */
static int add_host(GENERAL_NAMES *names, const char *host)
{
    unsigned char ip[16];
    size_t n = strlen(host);
    if (inet_pton(AF_INET, host, ip) == 1) {
        return add_name(names, GEN_IPADD, string_of(V_ASN1_OCTET_STRING, ip, 4));
    }
    if (inet_pton(AF_INET6, host, ip) == 1) {
        return add_name(names, GEN_IPADD, string_of(V_ASN1_OCTET_STRING, ip, 16));
    }
    if (!is_dns_name(host, n) || strspn(host, "0123456789.") == n) {
        return err_setf(SYM_EINVAL, "\"%.80s\" is no host for a certificate", host);
    }
    return add_name(names, GEN_DNS, string_of(V_ASN1_IA5STRING, host, n));
}

/* Where a server is reached, as others' TLS clients want it, who look only here; and the raft id. */
static int add_alternative_names(X509 *x, const struct cert_spec *spec)
{
    char uri[sizeof RAFT_URI + 20];
    int err = 0;
    if (spec->n_hosts == 0 && spec->raft_id == 0) {
        return 0;
    }
    GENERAL_NAMES *names = GENERAL_NAMES_new();
    if (names == NULL) {
        return ossl_errf(SYM_ENOMEM, "alternative names");
    }
    for (size_t i = 0; err == 0 && i < spec->n_hosts; i++) {
        err = add_host(names, spec->hosts[i]);
    }
    if (err == 0 && spec->raft_id != 0) {
        snprintf(uri, sizeof uri, RAFT_URI "%" PRIu64, spec->raft_id);
        err = add_name(names, GEN_URI, string_of(V_ASN1_IA5STRING, uri, strlen(uri)));
    }
    if (err == 0 && X509_add1_ext_i2d(x, NID_subject_alt_name, names, 0, X509V3_ADD_DEFAULT) != 1) {
        err = ossl_errf(SYM_ENOMEM, "alternative names");
    }
    GENERAL_NAMES_free(names);
    return err;
}

/* The CA that signs: its certificate, which has to go with the key. */
static int read_signer(const struct key *ca_key, const char *ca_pem, size_t ca_n, X509 **out)
{
    int err = cert_read(ca_pem, ca_n, out);
    if (err == 0 && (X509_check_ca(*out) != 1 || X509_check_private_key(*out, ca_key->pkey) != 1)) {
        err = ossl_errf(SYM_EINVAL, "the certificate is not that of this CA key");
        X509_free(*out);
        *out = NULL;
    }
    return err;
}

int cert_cross_sign(
    const struct key *ca_key, const char *ca_pem, size_t ca_n, const char *of, size_t of_n, struct buf *out)
{
    X509 *ca = NULL, *other = NULL, *x = NULL;
    int64_t not_before = 0, not_after = 0;
    int err = read_signer(ca_key, ca_pem, ca_n, &ca);
    if (err != 0) {
        return err;
    }
    if ((err = cert_read(of, of_n, &other)) != 0 ||
        (err = read_time(X509_get0_notBefore(other), &not_before)) != 0 ||
        (err = read_time(X509_get0_notAfter(other), &not_after)) != 0) {
        goto end;
    }
    if (X509_check_ca(other) != 1) {
        err = ossl_errf(SYM_EINVAL, "the certificate is not a CA's");
        goto end;
    }
    x = X509_new();
    if (x == NULL || X509_set_issuer_name(x, X509_get_subject_name(ca)) != 1 ||
        X509_set_subject_name(x, X509_get_subject_name(other)) != 1) {
        err = ossl_errf(SYM_ENOMEM, "certificate");
        goto end;
    }
    if ((err = start_cert(x, X509_get0_pubkey(other), not_before, not_after)) != 0 ||
        (err = add_ca_extensions(x, ca)) != 0) {
        goto end;
    }
    err = finish_cert(x, ca_key->pkey, out);
end:
    X509_free(x);
    X509_free(other);
    X509_free(ca);
    return err;
}

int cert_sign(const struct key *ca_key, const char *ca_pem, size_t ca_n, const char *csr, size_t csr_n,
    const struct cert_spec *spec, struct buf *out)
{
    const struct extension extensions[] = {
        {NID_basic_constraints, "critical,CA:FALSE"},
        {NID_key_usage, "critical,digitalSignature,keyEncipherment"},
        {NID_ext_key_usage, spec->server ? "serverAuth,clientAuth" : "clientAuth"},
        {NID_subject_key_identifier, "hash"},
        {NID_authority_key_identifier, "keyid:always"},
    };
    X509 *ca = NULL, *x = NULL;
    X509_REQ *req = NULL;
    int err;
    if ((err = name_check("CN", spec->cn)) != 0 || (err = name_check("OU", spec->ou)) != 0 ||
        (err = name_check("O", spec->o)) != 0 || (err = read_signer(ca_key, ca_pem, ca_n, &ca)) != 0) {
        return err;
    }
    if (spec->raft_id > RAFT_ID_MAX) {
        err = err_setf(SYM_EINVAL, "raft id %" PRIu64, spec->raft_id);
        goto end;
    }
    err = csr_read(csr, csr_n, &req);
    if (err != 0) {
        goto end;
    }
    x = X509_new();
    if (x == NULL || X509_set_issuer_name(x, X509_get_subject_name(ca)) != 1) {
        err = ossl_errf(SYM_ENOMEM, "certificate");
        goto end;
    }
    if ((err = start_cert(x, X509_REQ_get0_pubkey(req), spec->not_before, spec->not_after)) != 0 ||
        (err = add_subject(x, spec->cn, spec->ou, spec->o)) != 0 ||
        (err = add_extensions(x, ca, extensions, sizeof extensions / sizeof extensions[0])) != 0) {
        goto end;
    }
    err = add_alternative_names(x, spec);
    if (err != 0) {
        goto end;
    }
    err = finish_cert(x, ca_key->pkey, out);
end:
    X509_REQ_free(req);
    X509_free(x);
    X509_free(ca);
    return err;
}
