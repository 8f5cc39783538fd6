/* raft/starts: what is read can be written, and read again, and is then the same. The digest is put right, or
 * nothing would ever get past it. */
#include "codec/rw.h"
#include "crypto/crypto.h"
#include "fuzz_seed.h"
#include "raft/starts.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static struct starts records[STARTS_MAX], again[STARTS_MAX];

/* Reads @data as a file that no disk holds. */
static int load(const void *data, size_t n, struct starts out[STARTS_MAX], size_t *count)
{
    char path[64];
    int fd = memfd_create("starts", 0);
    if (fd < 0 || write(fd, data, n) != (ssize_t)n) {
        abort();
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int rv = starts_load(path, out, count);
    close(fd);
    return rv;
}

/* As starts_save writes them; not by it, which would wait for a disk. */
static void encode(const struct starts *list, size_t n, struct buf *out)
{
    uint8_t digest[SHA256_LEN];
    struct wr w = wr_init(out);
    wr_bytes(&w, "SYMSTRT\1", 8);
    wr_u32(&w, (uint32_t)n);
    for (size_t i = 0; i < n; i++) {
        wr_u64(&w, list[i].id);
        wr_u64(&w, list[i].starts);
        wr_u64(&w, list[i].nonce);
    }
    if (crypto_sha256(buf_data(out), out->len, digest) != 0) {
        abort();
    }
    wr_bytes(&w, digest, sizeof digest);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    uint8_t *copy = malloc(n + SHA256_LEN);
    size_t count, same;
    struct buf bytes = {0};
    if (copy == NULL || crypto_sha256(data, n, copy + n) != 0) {
        abort();
    }
    memcpy(copy, data, n);
    (void)load(data, n, records, &count);
    if (load(copy, n + SHA256_LEN, records, &count) == 0) {
        encode(records, count, &bytes);
        if (bytes.len != n + SHA256_LEN || memcmp(buf_data(&bytes), copy, bytes.len) != 0 ||
            load(buf_data(&bytes), bytes.len, again, &same) != 0 || same != count ||
            memcmp(records, again, count * sizeof *again) != 0) {
            abort();
        }
    }
    buf_free(&bytes);
    free(copy);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned random)
{
    static struct buf seeds[2];
    if (seeds[0].len == 0) {
        struct starts some[3] = {{1, 2, 3}, {2, 9, 77}, {7, 1, UINT64_MAX}};
        encode(some, 3, &seeds[0]);
        encode(some, 0, &seeds[1]);
        seeds[0].len -= SHA256_LEN;
        seeds[1].len -= SHA256_LEN;
    }
    return seed_mutate(seeds, 2, data, n, max, random);
}
