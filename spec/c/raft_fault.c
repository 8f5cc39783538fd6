/* Memory that ends in the queues of src/raft: whatever allocation fails, a request is answered once, with its
 * result or an error, nothing leaks (ASan), and the next one works. What must not be lost and cannot be kept ends
 * the process with its own code. Three managers on one loop; only what is included here fails. */
#include "raft/node_int.h"
#include "raft_cluster.h"

#include <sys/wait.h>

static void *sure_calloc(size_t n, size_t size)
{
    return calloc(n, size);
}

#include "base_fault.h"
#include "base/buf.c"
#define finish reads_finish
#define refuse reads_refuse
#define answer_refused reads_answer_refused
#define add reads_add
#include "raft/reads.c"
#undef finish
#undef refuse
#undef answer_refused
#undef add
#define answer propose_answer
#include "raft/propose.c"
#undef answer
#include "raft/submit.c"
#define finish frame_finish
#include "raft/frame.c"
#undef finish
#define on_idle peers_on_idle
#define complete peers_complete
#include "raft/peers.c"
#undef on_idle
#undef complete
#include "raft/wire.c"

/* What stands for a message of libraft's must be had: see out_of_memory_in_the_sender. */
static bool spare_sends = true;
static void *sender_calloc(size_t n, size_t size)
{
    return spare_sends ? sure_calloc(n, size) : fault_calloc(n, size);
}
#undef calloc
#define calloc sender_calloc
#include "raft/sender.c"
#undef calloc
#define calloc fault_calloc

enum { MOST = 2000 };

static struct manager *follower_of(struct cluster *c)
{
    return leader_of(c) == &c->managers[0] ? &c->managers[1] : &c->managers[0];
}

struct request {
    struct cluster *c;
    bool write, at_leader;
};

/* True if it went through undisturbed. */
static bool try(struct request *r, long n)
{
    struct manager *m = r->at_leader ? leader_of(r->c) : follower_of(r->c);
    struct answer a = {0};
    char key[16];
    snprintf(key, sizeof key, "k%ld", n);
    if (r->write) {
        struct txn *t = calloc(1, sizeof *t);
        struct buf bytes = {0};
        t->n_ops = 1;
        t->ops[0] = (struct txn_op){OP_PUT, {(uint8_t *)key, strlen(key)}, {(uint8_t *)key, strlen(key)}};
        check_ok(txn_encode(t, &bytes));
        free(t);
        fault_after(n, false);
        rnode_submit(m->node, buf_data(&bytes), bytes.len, 3000 * PATIENCE, on_txn_answer, &a);
        buf_free(&bytes);
    } else {
        fault_after(n, false);
        rnode_read(m->node, 3000 * PATIENCE, on_answer, &a);
    }
    assert_int_equal(a.n, 0);
    run_until(r->c, 3500, a.n > 0);
    bool hit = fault_end();
    if (a.status != 0 && (!hit || a.status != SYM_ENOMEM)) {
        fail_msg("allocation %ld: %s: %s", n, err_name(a.status), a.text);
    }
    run_until(r->c, 3000, leader_of(r->c) != NULL);
    if (r->write && a.status == 0) {
        assert_int_equal(a.result.status, TXN_APPLIED);
        assert_false(a.result.repeated && !hit);
        read_ok(m);
        assert_string_equal(get(m, key), key);
    }
    assert_int_equal(a.n, 1);
    return !hit;
}

static void requests(void **state)
{
    (void)state;
    struct cluster c;
    cluster_open(&c);
    form(&c, 3);
    put_ok(&c.managers[0], "a", "1");
    for (unsigned i = 0; i < 4; i++) {
        struct request r = {.c = &c, .write = (i & 1) != 0, .at_leader = (i & 2) != 0};
        long n = 0;
        while (!try(&r, n)) {
            assert_true(++n < MOST);
        }
        print_message("%s at %s: %ld allocations\n", r.write ? "write" : "read",
            r.at_leader ? "the leader" : "a follower", n);
        assert_true(n > 0);
        put_ok(&c.managers[i % 3], "a", "2");
        read_ok(&c.managers[i % 3]);
    }
    stop_all(&c);
    cluster_close(&c);
}

struct chain {
    struct manager *m;
    struct answer a;
    unsigned left;
};

static void ask_again(void *arg, int status)
{
    struct chain *chain = arg;
    on_answer(&chain->a, status);
    if (chain->left-- > 0) {
        rnode_read(chain->m->node, 3000 * PATIENCE, ask_again, chain);
    }
}

/* Nothing at all can be had for a while: each is told so, also one that is asked in an answer. */
static void no_memory_at_all(void **state)
{
    (void)state;
    enum { N = 50, AGAIN = 3 };
    struct cluster c;
    struct answer writes[N], reads[N];
    cluster_open(&c);
    form(&c, 1);
    struct manager *m = &c.managers[0];
    struct txn *t = calloc(1, sizeof *t);
    struct buf bytes = {0};
    put_ok(m, "a", "1");
    t->n_ops = 1;
    t->ops[0] = (struct txn_op){OP_PUT, {(uint8_t *)"a", 1}, {(uint8_t *)"2", 1}};
    check_ok(txn_encode(t, &bytes));
    memset(writes, 0, sizeof writes);
    memset(reads, 0, sizeof reads);
    struct chain chain = {.m = m, .left = AGAIN};
    fault_after(0, true);
    for (unsigned i = 0; i < N; i++) {
        rnode_submit(m->node, buf_data(&bytes), bytes.len, 5000, on_txn_answer, &writes[i]);
        rnode_read(m->node, 5000, on_answer, &reads[i]);
    }
    rnode_read(m->node, 5000, ask_again, &chain);
    run_until(&c, 5000, chain.a.n == 1 + AGAIN);
    assert_true(fault_end());
    assert_int_equal(chain.a.status, SYM_ENOMEM);
    for (unsigned i = 0; i < N; i++) {
        assert_int_equal(writes[i].n, 1);
        assert_int_equal(writes[i].status, SYM_ENOMEM);
        assert_int_equal(reads[i].n, 1);
        assert_int_equal(reads[i].status, SYM_ENOMEM);
    }
    read_ok(m);
    assert_string_equal(get(m, "a"), "1");

    /* Those that are still to be told when the node stops. */
    struct answer last = {0};
    fault_after(0, true);
    rnode_submit(m->node, buf_data(&bytes), bytes.len, 5000, on_txn_answer, &last);
    fault_end();
    manager_stop(m);
    assert_int_equal(last.n, 1);
    assert_int_equal(last.status, SYM_ENOMEM);
    buf_free(&bytes);
    free(t);
    cluster_close(&c);
}

static void until_out_of_memory(void)
{
    struct cluster c;
    cluster_open(&c);
    form(&c, 3);
    spare_sends = false;
    fault_after(0, true);
    run_until(&c, 5000, false);
}

/* libraft would wait for ever for the fate of a message: the process ends instead, with 70. */
static void out_of_memory_in_the_sender(void **state)
{
    (void)state;
    int status;
    char dir[] = "/tmp/sym-raft-XXXXXX"; /* the child does not get to removing what it made */
    assert_non_null(mkdtemp(dir));
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        setenv("TMPDIR", dir, 1);
        alarm(60);
        until_out_of_memory();
        _exit(1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    remove_tree(dir);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 70);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(out_of_memory_in_the_sender),
        cmocka_unit_test(requests),
        cmocka_unit_test(no_memory_at_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
