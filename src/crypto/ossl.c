#include "crypto/ossl.h"

#include "base/err.h"

#include <openssl/err.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int ossl_errf(int code, const char *fmt, ...)
{
    char text[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);

    /* The oldest entry is where it went wrong; what follows are its callers. */
    unsigned long first = ERR_get_error();
    for (unsigned long e = first; e != 0; e = ERR_get_error()) {
        if (ERR_GET_REASON(e) == ERR_R_MALLOC_FAILURE) {
            code = SYM_ENOMEM;
        }
    }
    const char *reason = first == 0 ? NULL : ERR_reason_error_string(first);
    if (reason == NULL) {
        return err_setf(code, "%s", text);
    }
    return err_setf(code, "%s: %s", text, reason);
}

BIO *pem_open(const char *pem, size_t n, size_t max, const char *what, int *code)
{
    if (n == 0 || n > max) {
        *code = err_setf(SYM_EINVAL, "%s of %zu bytes", what, n);
        return NULL;
    }
    BIO *bio = BIO_new_mem_buf(pem, (int)n);
    if (bio == NULL) {
        *code = ossl_errf(SYM_ENOMEM, "%s", what);
    }
    return bio;
}

int pem_no_password(char *buf, int size, int writing, void *arg)
{
    (void)buf;
    (void)size;
    (void)writing;
    (void)arg;
    return -1;
}

int pem_append(BIO *bio, struct buf *out)
{
    char *text;
    long n = BIO_get_mem_data(bio, &text);
    return n <= 0 ? ossl_errf(SYM_ENOMEM, "PEM") : buf_append(out, text, (size_t)n);
}

int name_check(const char *what, const char *name)
{
    size_t n = name == NULL ? 0 : strnlen(name, NAME_MAX_BYTES + 1);
    if (n == 0 || n > NAME_MAX_BYTES) {
        return err_setf(SYM_EINVAL, "%s is not 1 to %d bytes long", what, NAME_MAX_BYTES);
    }
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f) {
            return err_setf(SYM_EINVAL, "%s has a control character", what);
        }
    }
    return 0;
}

int name_add(X509_NAME *to, const char *field, const char *value)
{
    if (to == NULL ||
        X509_NAME_add_entry_by_txt(to, field, MBSTRING_UTF8, (const unsigned char *)value, -1, -1, 0) != 1) {
        return ossl_errf(SYM_EINVAL, "%s", field);
    }
    return 0;
}

int name_read(const char *what, const X509_NAME *from, int nid, char out[NAME_MAX_BYTES + 1])
{
    int at = X509_NAME_get_index_by_NID(from, nid, -1);
    out[0] = '\0';
    if (at < 0) {
        return 0;
    }
    if (X509_NAME_get_index_by_NID(from, nid, at) >= 0) {
        return err_setf(SYM_EINVAL, "%s: more than one %s", what, OBJ_nid2sn(nid));
    }
    unsigned char *text = NULL;
    int n = ASN1_STRING_to_UTF8(&text, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(from, at)));
    if (n < 0) {
        return ossl_errf(SYM_EINVAL, "%s: %s", what, OBJ_nid2sn(nid));
    }
    int err = 0;
    if (n > NAME_MAX_BYTES || memchr(text, '\0', (size_t)n) != NULL) {
        err = err_setf(SYM_EINVAL, "%s: %s is too long or not text", what, OBJ_nid2sn(nid));
    } else {
        memcpy(out, text, (size_t)n);
        out[n] = '\0';
        err = n == 0 ? 0 : name_check(OBJ_nid2sn(nid), out);
    }
    OPENSSL_free(text);
    return err;
}
