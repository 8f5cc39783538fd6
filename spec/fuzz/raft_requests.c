/* What one manager asks another beside raft's own messages: forwarded txns, their results, questions for a
 * read. The first byte says which, and whether this one leads. */
#include "base/err.h"
#include "fuzz_seed.h"
#include "raft/kinds.h"
#include "raft/reads.h"
#include "raft/submit.h"

#include <stdlib.h>

static struct raft raft;
static bool leads;

static void on_fatal(void *arg, const char *what, int rv)
{
    (void)arg;
    (void)what;
    (void)rv;
    abort();
}

static int may(void *arg, const uint8_t *txn, size_t n)
{
    (void)arg;
    (void)txn;
    (void)n;
    return 0;
}

static uint64_t zero(void *arg)
{
    (void)arg;
    return 0;
}

static uint64_t leader(void *arg)
{
    (void)arg;
    return leads ? 1 : 2;
}

static void send_nothing(void *arg, uint64_t id, uint8_t kind, const void *data, size_t n)
{
    (void)arg;
    (void)id;
    (void)kind;
    (void)data;
    (void)n;
}

static void kick(void *arg)
{
    (void)arg;
}

static void on_txn(void *arg, int status, const struct txn_result *result)
{
    unsigned *answers = arg;
    if (status == 0 && result->status > TXN_UNKNOWN) {
        abort();
    }
    (*answers)++;
}

static void on_read(void *arg, int status)
{
    (void)status;
    (*(unsigned *)arg)++;
}

static int costs_nothing(
    void *arg, const uint8_t *txn, size_t n, uint64_t puts, uint64_t most, struct txn_cost *out)
{
    (void)arg;
    (void)txn;
    (void)n;
    (void)puts;
    (void)most;
    *out = (struct txn_cost){0};
    return 0;
}

static const struct propose_ops propose_ops = {on_fatal, may, zero, costs_nothing, NULL};
static const struct submit_ops submit_ops = {zero, leader, send_nothing, kick};
static const struct reads_ops reads_ops = {on_fatal, zero, send_nothing, kick};

static void encoded_txn(struct buf *out)
{
    static struct txn t;
    t.n_ops = 1;
    t.ops[0] = (struct txn_op){OP_PUT, {(const uint8_t *)"key", 3}, {(const uint8_t *)"value", 5}};
    if (txn_encode(&t, out) != 0) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const uint8_t origin[16]; /* so that numbers begin at 1 */
    struct propose propose;
    struct submit submit;
    struct reads reads;
    struct buf txn = {0};
    unsigned answers = 0;
    if (n == 0) {
        return 0;
    }
    leads = (data[0] & 0x80) != 0;
    raft.state = leads ? RAFT_LEADER : RAFT_FOLLOWER;
    raft.id = 1;
    propose_init(&propose, &raft, &propose_ops, NULL);
    submit_init(&submit, &propose, 1, origin, &submit_ops, NULL);
    reads_init(&reads, &raft, 0, &reads_ops, NULL);
    encoded_txn(&txn);
    for (unsigned i = 0; i < 3; i++) {
        submit_txn(&submit, buf_data(&txn), txn.len, 1000, on_txn, &answers);
        reads_begin(&reads, 1000, on_read, &answers);
    }
    submit_changed(&submit);
    reads_changed(&reads);
    submit_flush(&submit);
    reads_flush(&reads);
    switch (data[0] & 7) {
    case 0:
        submit_on_txns(&submit, 2, data + 1, n - 1);
        break;
    case 1:
        submit_on_results(&submit, 2, data + 1, n - 1);
        break;
    default:
        reads_on_frame(&reads, 2, (uint8_t)(KIND_CONFIRM + (data[0] & 3)), data + 1, n - 1);
        break;
    }
    submit_flush(&submit);
    reads_flush(&reads);
    submit_tick(&submit);
    reads_tick(&reads);
    propose_close(&propose);
    submit_close(&submit);
    reads_close(&reads);
    buf_free(&txn);
    if (answers != 6) {
        abort(); /* each exactly once */
    }
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned random)
{
    static struct buf seeds[2];
    if (seeds[0].len == 0) {
        struct buf txn = {0};
        encoded_txn(&txn);
        struct wr w = wr_init(&seeds[0]);
        wr_u8(&w, 0x80);
        wr_u64(&w, 1);
        wr_u32(&w, 1000);
        wr_u8(&w, 1);
        wr_blob(&w, buf_data(&txn), txn.len);
        w = wr_init(&seeds[1]);
        wr_u8(&w, 1);
        wr_u64(&w, 1);
        wr_u8(&w, 0);
        wr_u8(&w, 0);
        wr_u8(&w, 0);
        wr_u16(&w, 0);
        wr_u64(&w, 7);
        buf_free(&txn);
    }
    return seed_mutate(seeds, 2, data, n, max, random);
}
