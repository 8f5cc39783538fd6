/* Keys, requests and certificates from outside: as PEM, and as DER that is wrapped here, so that mutations
 * reach the structure behind the base64. What is taken must be consistent: a request or a certificate that
 * passes has names that fit and can be signed, or issued by itself at most. */
#include "fuzz_seed.h"

#include "base/buf.h"
#include "codec/text.h"
#include "crypto/crypto.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const labels[] = {"CERTIFICATE", "CERTIFICATE REQUEST", "PRIVATE KEY", "EC PRIVATE KEY"};

static struct key *ca_key;
static char *ca;
static struct buf seeds[6]; /* of each of the first three kinds, its DER and its PEM */

/* The bytes that a PEM text stands for, behind @label. */
static void add_der(struct buf *to, char label, const char *pem)
{
    char text[8192];
    uint8_t der[8192];
    size_t n = 0, len;
    for (const char *c = strchr(pem, '\n'); *c != '-'; c++) {
        if (*c != '\n') {
            text[n++] = *c;
        }
    }
    if (base64_decode(text, n, der, &len) != 0 || buf_append(to, &label, 1) != 0 ||
        buf_append(to, der, len) != 0) {
        abort();
    }
}

static void set_up(void)
{
    struct buf b[3] = {0};
    if (key_generate(&ca_key) != 0 || cert_new_ca(ca_key, "cluster", 1, 2000000000, &b[0]) != 0 ||
        csr_new(ca_key, "node", &b[1]) != 0 || key_to_pem(ca_key, &b[2]) != 0) {
        abort();
    }
    for (int i = 0; i < 3; i++) {
        size_t n;
        char *pem = (char *)buf_take(&b[i], &n);
        if (pem == NULL || buf_appendf(&seeds[2 * i + 1], "\x10%s", pem) != 0) {
            abort();
        }
        add_der(&seeds[2 * i], (char)i, pem);
        if (i == 0) {
            ca = pem;
        } else {
            free(pem);
        }
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned random)
{
    if (ca == NULL) {
        set_up();
    }
    return seed_mutate(seeds, 6, data, n, max, random);
}

static void name_fits(const char *name)
{
    if (memchr(name, '\0', 64) == NULL) {
        abort();
    }
    for (; *name != '\0'; name++) {
        if ((unsigned char)*name < 0x20 || *name == 0x7f) {
            abort();
        }
    }
}

static void try_all(const char *pem, size_t n)
{
    static const struct cert_spec spec = {"node", "worker", "cluster", 1, 2, true, 7, NULL, 0};
    struct cert_info info;
    uint8_t fingerprint[SHA256_LEN];
    char cn[64];
    struct key *k;
    struct buf out = {0};
    if (cert_info(pem, n, &info) == 0) {
        name_fits(info.cn);
        name_fits(info.ou);
        name_fits(info.o);
        name_fits(info.serial);
    }
    if (cert_check_issuer(pem, n, ca, strlen(ca)) == 0 && cert_info(pem, n, &info) == 0 && !info.is_ca) {
        abort();
    }
    (void)cert_check_key(pem, n, ca_key);
    if (cert_hosts(pem, n, &out) == 0 && out.len > 0 && buf_data(&out)[out.len - 1] != '\n') {
        abort();
    }
    buf_clear(&out);
    for (unsigned i = 0; cert_nth(pem, n, i, &out) == 0; i++) {
        buf_clear(&out);
    }
    (void)cert_cross_sign(ca_key, ca, strlen(ca), pem, n, &out);
    buf_clear(&out);
    int passes = csr_check(pem, n, fingerprint, cn) == 0;
    /* cert_sign does not care for the request's subject. */
    if (cert_sign(ca_key, ca, strlen(ca), pem, n, &spec, &out) != 0 && passes) {
        abort();
    }
    if (passes) {
        name_fits(cn);
    }
    if (passes && (cert_info((char *)buf_data(&out), out.len, &info) != 0 ||
                      memcmp(info.fingerprint, fingerprint, SHA256_LEN) != 0 || info.raft_id != 7)) {
        abort();
    }
    buf_free(&out);
    if (key_from_pem(pem, n, &k) == 0) {
        key_free(k);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (ca == NULL) {
        set_up();
    }
    if (n < 1 || n > 8192) {
        return 0;
    }
    if (data[0] >= 4) {
        try_all((const char *)data + 1, n - 1);
        return 0;
    }
    char *text = malloc(base64_width(n) + 1);
    struct buf pem = {0};
    if (text == NULL) {
        abort();
    }
    base64_encode(data + 1, n - 1, text);
    buf_appendf(&pem, "-----BEGIN %s-----\n", labels[data[0]]);
    for (size_t at = 0; at < strlen(text); at += 64) {
        buf_appendf(&pem, "%.64s\n", text + at);
    }
    buf_appendf(&pem, "-----END %s-----\n", labels[data[0]]);
    try_all((char *)buf_data(&pem), pem.len);
    buf_free(&pem);
    free(text);
    return 0;
}
