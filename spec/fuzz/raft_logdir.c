/* An open segment of the log as a crash, or a bad disk, may leave it: whatever it holds is judged, nothing is
 * changed; and what follows a batch that does not check is never taken for a write that was cut short when there is a
 * whole batch behind it. */
#include "base/err.h"
#include "codec/rw.h"
#include "fuzz_seed.h"
#include "raft/logdir.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

unsigned __wrap_byteCrc32(const void *data, size_t n, unsigned crc); /* the library's checksum */

static char dir[64];

static void must(int ok)
{
    if (!ok) {
        abort();
    }
}

static void remove_folder(void)
{
    char path[128];
    snprintf(path, sizeof path, "%s/open-1", dir);
    unlink(path);
    rmdir(dir);
}

/* A batch of one entry, as the library writes it. */
static void put_batch(struct buf *out, const uint8_t *data, size_t n)
{
    struct buf head = {0};
    struct wr w = wr_init(&head);
    uint32_t size = (uint32_t)n;
    wr_u64(&w, 1);
    wr_u64(&w, 7); /* term */
    wr_u32(&w, 1); /* a command */
    wr_u32(&w, size);
    struct wr o = wr_init(out);
    wr_u32(&o, __wrap_byteCrc32(buf_data(&head), head.len, 0));
    wr_u32(&o, __wrap_byteCrc32(data, n, 0));
    wr_bytes(&o, buf_data(&head), head.len);
    wr_bytes(&o, data, n);
    must(!w.bad && !o.bad);
    buf_free(&head);
}

/* Whether these bytes are batches, one behind the other, and nothing else. */
static bool all_batches(const uint8_t *p, size_t n)
{
    while (n > 0) {
        struct rd r = rd_init(p, n);
        uint32_t head_crc = rd_u32(&r), data_crc = rd_u32(&r);
        uint64_t entries = rd_u64(&r);
        size_t head = 8 + 16 * (size_t)entries, body = 0;
        if (r.bad || entries == 0 || entries > n / 16 || head > n - 8) {
            return false;
        }
        for (uint64_t i = 0; i < entries; i++) {
            (void)rd_u64(&r);
            (void)rd_u32(&r);
            body += rd_u32(&r);
        }
        if (body > n - 8 - head || __wrap_byteCrc32(p + 8, head, 0) != head_crc ||
            __wrap_byteCrc32(p + 8 + head, body, 0) != data_crc) {
            return false;
        }
        p += 8 + head + body;
        n -= 8 + head + body;
    }
    return true;
}

static int judge(const void *data, size_t n)
{
    char path[128];
    struct logdir found;
    if (dir[0] == '\0') {
        snprintf(dir, sizeof dir, "/dev/shm/fuzz_logdir.XXXXXX");
        must(mkdtemp(dir) != NULL);
        atexit(remove_folder);
    }
    snprintf(path, sizeof path, "%s/open-1", dir);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    must(fd >= 0 && write(fd, data, n) == (ssize_t)n);
    close(fd);
    int rv = logdir_check(dir, &found);
    must(rv == 0 || rv == SYM_ECORRUPT);
    must(found.has_segments && found.snapshot == 0 && !found.has_metadata);
    return rv;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const uint8_t entry[24] = "an entry of three words";
    struct buf segment = {0};
    if (n > 16384) {
        return 0;
    }
    n &= ~(size_t)7;
    (void)judge(data, n);
    struct wr w = wr_init(&segment);
    wr_u64(&w, 1);
    put_batch(&segment, entry, sizeof entry);
    must(judge(buf_data(&segment), segment.len) == 0);
    wr_bytes(&w, data, n);
    put_batch(&segment, entry, sizeof entry);
    must(judge(buf_data(&segment), segment.len) == (all_batches(data, n) ? 0 : SYM_ECORRUPT));
    buf_free(&segment);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned random)
{
    static struct buf seeds[3];
    if (seeds[0].len == 0) {
        static const uint8_t entry[24] = "another entry, no longer";
        put_batch(&seeds[0], entry, sizeof entry);
        struct wr w = wr_init(&seeds[1]);
        wr_u64(&w, 1);
        put_batch(&seeds[1], entry, sizeof entry);
        put_batch(&seeds[1], entry, 8);
        w = wr_init(&seeds[2]);
        for (unsigned i = 0; i < 64; i++) {
            wr_u64(&w, i % 3);
        }
    }
    return seed_mutate(seeds, 3, data, n, max, random);
}
