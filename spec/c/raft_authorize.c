/* Who may act as which raft id: the certificate's word, and the state's. */
#include "raft_cluster.h"

#include "codec/text.h"

static void write_state(struct store *s, const char *const (*pairs)[2])
{
    static uint64_t index;
    struct txn *t = calloc(1, sizeof *t);
    struct txn_result *results;
    unsigned n;
    struct buf pack = {0}, bytes = {0};
    for (; (*pairs)[0] != NULL; pairs++) {
        const char *key = (*pairs)[0], *value = (*pairs)[1];
        struct txn_op *op = &t->ops[t->n_ops++];
        op->kind = value == NULL ? OP_DELETE : OP_PUT;
        op->key = (struct slice){(const uint8_t *)key, strlen(key)};
        op->value = (struct slice){(const uint8_t *)value, value == NULL ? 0 : strlen(value)};
    }
    check_ok(txn_encode(t, &bytes));
    check_ok(pack_begin(&pack));
    check_ok(pack_add(&pack, buf_data(&bytes), bytes.len));
    check_ok(pack_end(&pack, 1));
    check_ok(store_apply(s, ++index, buf_data(&pack), pack.len, &results, &n));
    free(results);
    buf_free(&pack);
    buf_free(&bytes);
    free(t);
}

static struct tls_peer peer_of(const char *cn, const char *ou, uint64_t raft_id)
{
    /* A key of its own: the name's first letter. */
    struct tls_peer peer = {.present = true, .cert.raft_id = raft_id, .cert.fingerprint = {(uint8_t)cn[0]}};
    snprintf(peer.cert.cn, sizeof peer.cert.cn, "%s", cn);
    snprintf(peer.cert.ou, sizeof peer.cert.ou, "%s", ou);
    return peer;
}

static int may(struct store *s, uint64_t id, const char *cn, uint64_t raft_id)
{
    struct tls_peer peer = peer_of(cn, "manager", raft_id);
    return raft_authorize(s, id, &peer);
}

static bool knows(struct store *s, uint64_t id, const char *cn, uint64_t raft_id)
{
    struct tls_peer peer = peer_of(cn, "manager", raft_id);
    return raft_knows(s, id, &peer);
}

static void by_certificate_and_state(void **state)
{
    (void)state;
    struct cluster c;
    struct store *s;
    cluster_open(&c);
    struct store_config cfg = {.dir = c.dir, .quota = 16 << 20};
    check_ok(store_open(&cfg, &s));

    /* A new member, whose state is empty, believes the certificate; of which there must be one, a manager's. */
    assert_int_equal(may(s, 1, "a", 1), 0);
    assert_int_equal(may(s, 2, "a", 1), SYM_EDENIED);
    assert_int_equal(may(s, 1, "a", 0), SYM_EDENIED);
    struct tls_peer other = peer_of("a", "worker", 1);
    assert_int_equal(raft_authorize(s, 1, &other), SYM_EDENIED);
    other = (struct tls_peer){0};
    assert_int_equal(raft_authorize(s, 0, &other), SYM_EDENIED);

    /* a is 1, b was 2 and is removed, c is 3. */
    char a_key[80], c_key[80];
    snprintf(a_key, sizeof a_key, "/fingerprint/61%062d", 0);
    snprintf(c_key, sizeof c_key, "/fingerprint/63%062d", 0);
    write_state(
        s, (const char *const[][2]){{"/raft/1", "a"}, {"/node/a", "{}"}, {a_key, "a"}, {"/raft/3", "c"},
               {"/node/c", "{}"}, {c_key, "c"}, {"/cluster/next_raft_id", "4"}, {NULL, NULL}});
    assert_int_equal(may(s, 1, "a", 1), 0);
    assert_int_equal(may(s, 3, "c", 3), 0);
    /* All is as it should be, but for the key: a forged one, and another member's. */
    other = peer_of("c", "manager", 3);
    other.cert.fingerprint[31] = 1;
    assert_int_equal(raft_authorize(s, 3, &other), SYM_EDENIED);
    other.cert.fingerprint[0] = 'a';
    other.cert.fingerprint[31] = 0;
    assert_int_equal(raft_authorize(s, 3, &other), SYM_EDENIED);
    assert_int_equal(may(s, 3, "a", 3), SYM_EDENIED); /* another's */
    assert_int_equal(may(s, 3, "cc", 3), SYM_EDENIED);
    assert_int_equal(may(s, 3, "", 3), SYM_EDENIED);
    assert_int_equal(may(s, 2, "b", 2), SYM_ENOTFOUND);
    /* A removed one, and a member, as somebody who is still to come. */
    assert_int_equal(may(s, 4, "b", 2), SYM_EDENIED);
    assert_int_equal(may(s, 1000, "b", 2), SYM_EDENIED);
    assert_int_equal(may(s, 4, "c", 3), SYM_EDENIED);
    /* Who joined after what this state has seen, and a member that was given another id then. */
    assert_int_equal(may(s, 4, "d", 4), 0);
    assert_false(knows(s, 4, "d", 4));
    assert_true(knows(s, 3, "c", 3));
    assert_false(knows(s, 3, "a", 3));
    assert_int_equal(may(s, 5, "c", 5), 0);
    /* Its record has gone. */
    write_state(s, (const char *const[][2]){{"/node/c", NULL}, {NULL, NULL}});
    assert_int_equal(may(s, 3, "c", 3), SYM_ENOTFOUND);
    store_close(s);
    cluster_close(&c);
}

/* --- managers that go by it --- */

static void admit(struct manager *by, const struct manager *m)
{
    char key[80], cn[32], next[32];
    struct cert_info info;
    snprintf(cn, sizeof cn, "node-%" PRIu64, m->id);
    snprintf(key, sizeof key, "/node/%s", cn);
    put_ok(by, key, "{}");
    check_ok(cert_info((const char *)buf_data(&m->cert), m->cert.len - 1, &info));
    strcpy(key, "/fingerprint/");
    hex_encode(info.fingerprint, SHA256_LEN, key + strlen(key));
    put_ok(by, key, cn);
    snprintf(key, sizeof key, "/raft/%" PRIu64, m->id);
    put_ok(by, key, cn);
    snprintf(next, sizeof next, "%" PRIu64, m->id + 1);
    put_ok(by, "/cluster/next_raft_id", next);
}

static bool has_applied(struct manager *m, const char *key, const char *value)
{
    return strcmp(get(m, key), value) == 0;
}

static void join_as_voter(struct cluster *c, struct manager *m)
{
    admit(leader_of(c), m);
    manager_start(m);
    change_ok(c, rnode_add, m->id, m->address);
    change_ok(c, rnode_assign, m->id, ROLE_STANDBY);
    change_ok(c, rnode_assign, m->id, ROLE_VOTER);
    run_until(c, 5000, knows_itself_as(m, ROLE_VOTER));
}

/* Nothing has reached a voter since a member joined that it has never heard of; and now it is that one that
 * must lead, and that has no majority without the voter. */
static void one_that_is_behind_follows_a_new_leader(void **state)
{
    (void)state;
    struct cluster c;
    struct answer moved = {0}, a;
    char raft[300], behind[300];
    cluster_open(&c);
    c.by_state = true;
    struct manager *first = manager_new(&c, 0), *away = &c.managers[2];
    check_ok(rnode_bootstrap(first->raft_dir, first->id, first->address));
    manager_start(first);
    run_until(&c, 5000, rnode_is_leader(first->node));
    admit(first, first);
    join_as_voter(&c, manager_new(&c, 1));
    join_as_voter(&c, manager_new(&c, 2));
    run_until(&c, 5000, has_applied(away, "/raft/3", "node-3"));
    manager_stop(away);
    snprintf(raft, sizeof raft, "%s/raft-then", c.dir);
    snprintf(behind, sizeof behind, "%s/state-then", c.dir);
    copy_tree(away->raft_dir, raft);
    copy_tree(away->state_dir, behind);
    manager_start(away);

    struct manager *new = manager_new(&c, 3);
    run_until(&c, 5000, leader_of(&c) != NULL && sees_up(leader_of(&c), away->id));
    join_as_voter(&c, new);
    run_until(&c, 5000, leader_of(&c) != NULL);
    rnode_transfer(leader_of(&c)->node, new->id, on_answer, &moved);
    run_until(&c, 5000, moved.n > 0 && rnode_is_leader(new->node));
    change_ok(&c, rnode_remove, 2);
    manager_stop(&c.managers[1]);
    manager_stop(first);
    manager_stop(away);
    manager_stop(new); /* what it knew of the other's log is not so any more */
    copy_tree(raft, away->raft_dir);
    copy_tree(behind, away->state_dir);

    manager_start(new);
    put(new, "a", "1", 5000 * PATIENCE, &a);
    manager_start(away);
    assert_string_equal(get(away, "/raft/3"), "node-3");
    assert_string_equal(get(away, "/raft/4"), "");
    run_until(&c, 6000, a.n > 0);
    assert_int_equal(a.status, 0);
    run_until(&c, 5000, has_applied(away, "a", "1"));
    assert_string_equal(get(away, "/raft/4"), "node-4");
    stop_all(&c);
    cluster_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(by_certificate_and_state),
        cmocka_unit_test(one_that_is_behind_follows_a_new_leader),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
