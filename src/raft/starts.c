#include "raft/starts.h"

#include "base/err.h"
#include "base/file.h"
#include "codec/rw.h"
#include "crypto/crypto.h"

#include <string.h>

static const uint8_t MAGIC[8] = "SYMSTRT\1";
enum { HEAD_LEN = 12, RECORD_LEN = 24, LEAST_LEN = HEAD_LEN + SHA256_LEN };

static int damaged(const char *path)
{
    return err_setf(SYM_ECORRUPT,
        "%s is damaged. It keeps how often the other managers have started, by which one that was put back "
        "from "
        "an old copy is told. Nothing was changed. Check the disk; if no manager has been put back, remove "
        "this "
        "file: a new one is made",
        path);
}

static int decode(const char *path, const uint8_t *data, size_t len, struct starts out[STARTS_MAX], size_t *n)
{
    uint8_t digest[SHA256_LEN];
    if (len < LEAST_LEN) {
        return damaged(path);
    }
    int rv = crypto_sha256(data, len - SHA256_LEN, digest);
    if (rv != 0) {
        return rv;
    }
    struct rd r = rd_init(data, len - SHA256_LEN);
    bool known = memcmp(rd_bytes(&r, sizeof MAGIC), MAGIC, sizeof MAGIC) == 0;
    *n = rd_u32(&r);
    if (!known || memcmp(digest, data + len - SHA256_LEN, sizeof digest) != 0 || *n > STARTS_MAX) {
        return damaged(path);
    }
    for (size_t i = 0; i < *n; i++) {
        out[i].id = rd_u64(&r);
        out[i].starts = rd_u64(&r);
        out[i].nonce = rd_u64(&r);
        if (out[i].id == 0) {
            r.bad = true;
        }
    }
    return rd_done(&r) ? 0 : damaged(path);
}

int starts_load(const char *path, struct starts out[STARTS_MAX], size_t *n)
{
    struct buf bytes = {0};
    *n = 0;
    int rv = file_read(path, LEAST_LEN + STARTS_MAX * RECORD_LEN, &bytes);
    if (rv == 0) {
        rv = decode(path, buf_data(&bytes), bytes.len, out, n);
    } else if (rv == SYM_ENOTFOUND) {
        rv = 0;
    } else if (rv == SYM_ETOOBIG) {
        rv = damaged(path);
    }
    buf_free(&bytes);
    if (rv != 0) {
        *n = 0;
    }
    return rv;
}

int starts_save(const char *path, const struct starts *records, size_t n)
{
    struct buf bytes = {0};
    struct wr w = wr_init(&bytes);
    uint8_t digest[SHA256_LEN];
    wr_bytes(&w, MAGIC, sizeof MAGIC);
    wr_u32(&w, (uint32_t)n);
    for (size_t i = 0; i < n; i++) {
        wr_u64(&w, records[i].id);
        wr_u64(&w, records[i].starts);
        wr_u64(&w, records[i].nonce);
    }
    int rv = w.bad ? SYM_ENOMEM : crypto_sha256(buf_data(&bytes), bytes.len, digest);
    if (rv == 0) {
        wr_bytes(&w, digest, sizeof digest);
        rv = w.bad ? SYM_ENOMEM : file_write(path, buf_data(&bytes), bytes.len, 0600);
    }
    buf_free(&bytes);
    return rv;
}
