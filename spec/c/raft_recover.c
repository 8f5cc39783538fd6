/* One survivor is made the only voter: with all that it has, and killed at any moment of it. */
#include "raft_cluster.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* --- to die at a chosen step ---
 * What changes names or makes something durable comes by here, libuv's calls too. */

static unsigned die_at, steps_done; /* 0: never */

static void step(void)
{
    if (die_at != 0 && ++steps_done == die_at) {
        kill(getpid(), SIGKILL);
    }
}

int rename(const char *from, const char *to)
{
    step();
    return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

int unlink(const char *path)
{
    step();
    return unlinkat(AT_FDCWD, path, 0);
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags)
{
    step();
    return (int)syscall(SYS_linkat, from_dir, from, to_dir, to, flags);
}

int fsync(int fd)
{
    step();
    return (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd)
{
    step();
    return (int)syscall(SYS_fdatasync, fd);
}

int ftruncate(int fd, off_t len)
{
    step();
    return (int)syscall(SYS_ftruncate, fd, len);
}

/* --- recovering --- */

static int recover(struct manager *m)
{
    return rnode_recover(m->raft_dir, &m->store_config, m->id, m->address);
}

static void recovered_alone(void **state)
{
    (void)state;
    struct cluster c;
    cluster_open(&c);
    form(&c, 3);
    put_ok(&c.managers[0], "a", "1");
    struct manager *m = &c.managers[1];
    put_ok(m, "b", "2");
    read_ok(m);
    assert_int_equal(recover(m), SYM_EINUSE);
    stop_all(&c);
    check_ok(recover(m));
    manager_start(m);
    run_until(&c, 5000, rnode_is_leader(m->node));
    put_ok(m, "c", "3");
    read_ok(m);
    assert_string_equal(get(m, "a"), "1");
    assert_string_equal(get(m, "b"), "2");

    /* Whoever is added from here on gets the state as a snapshot. */
    struct manager *other = manager_new(&c, 3);
    manager_start(other);
    change_ok(&c, rnode_add, other->id, other->address);
    struct rnode_status st;
    rnode_status(m->node, &st);
    assert_true(st.snapshot_index > 0);
    change_ok(&c, rnode_assign, other->id, ROLE_STANDBY);
    read_ok(other);
    assert_string_equal(get(other, "b"), "2");
    rnode_status(other->node, &st);
    assert_true(st.snapshot_index > 0);
    stop_all(&c);
    assert_int_equal(rnode_recover(c.dir, &m->store_config, 1, "a:1"), SYM_ENOTFOUND);
    cluster_close(&c);
}

static uint64_t term_of(struct manager *m)
{
    struct rnode_status s;
    rnode_status(m->node, &s);
    return s.term;
}

/* The others go on without it, in the term of before: no two lead in one. */
static void recovered_in_a_term_of_its_own(void **state)
{
    (void)state;
    struct cluster c;
    char aside[300];
    cluster_open(&c);
    form(&c, 3);
    struct manager *m = &c.managers[1];
    put_ok(m, "a", "1");
    read_ok(m);
    uint64_t before = term_of(m), once, twice;
    assert_true(before == term_of(leader_of(&c)));
    manager_stop(m);
    snprintf(aside, sizeof aside, "%s/aside", c.dir);
    copy_tree(m->raft_dir, aside);
    check_ok(recover(m));
    manager_start(m);
    run_until(&c, 5000, rnode_is_leader(m->node));
    once = term_of(m);
    struct manager *other = &c.managers[0];
    run_until(&c, 5000, rnode_is_leader(other->node) || rnode_is_leader(c.managers[2].node));
    put_ok(other, "b", "2");
    put_ok(m, "c", "3");
    printf("term %" PRIu64 ", recovered %" PRIu64 ", the others %" PRIu64 "\n", before, once, term_of(other));
    assert_true(once > before);
    assert_true(once != term_of(other));
    assert_string_equal(get(m, "b"), "");

    /* Another recovery of the same gives another term. */
    manager_stop(m);
    copy_tree(aside, m->raft_dir);
    check_ok(recover(m));
    manager_start(m);
    run_until(&c, 5000, rnode_is_leader(m->node));
    twice = term_of(m);
    assert_true(twice > before && twice != once);
    read_ok(m);
    assert_string_equal(get(m, "a"), "1");
    stop_all(&c);
    cluster_close(&c);
}

/* The state may be ahead of the log on the disk: what the others had stored was applied. */

enum { BEFORE = 8, AHEAD = 5 };

static uint64_t former_term;

static void put_n(struct manager *m, unsigned from, unsigned n)
{
    for (unsigned i = from; i < from + n; i++) {
        char key[32];
        snprintf(key, sizeof key, "n%u", i);
        put_ok(m, key, key);
    }
}

static void expect_n(struct manager *m, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        char key[32];
        snprintf(key, sizeof key, "n%u", i);
        if (strcmp(get(m, key), key) != 0) {
            fail_msg("%s was acknowledged and is \"%s\"", key, get(m, key));
        }
    }
}

static uint64_t snapshot_index(struct manager *m)
{
    struct rnode_status s;
    rnode_status(m->node, &s);
    return s.snapshot_index;
}

/* Three managers, all stopped; the second one's state holds AHEAD entries that its log does not, which begins
 * with a snapshot or not, and ends in a closed segment or in open ones. */
static struct manager *get_ahead(struct cluster *c, bool with_snapshot, bool open)
{
    char aside[300];
    form(c, 3);
    struct manager *m = &c->managers[1];
    snprintf(aside, sizeof aside, "%s/aside", c->dir);
    put_n(m, 0, BEFORE - 2);
    if (with_snapshot) {
        rnode_snapshot(m->node);
        run_until(c, 5000, snapshot_index(m) > 0);
    }
    put_n(m, BEFORE - 2, 2);
    if (open) {
        copy_tree(m->raft_dir, aside); /* as if it were killed now */
    } else {
        manager_stop(m);
        copy_tree(m->raft_dir, aside);
        manager_start(m);
    }
    put_n(m, BEFORE, AHEAD);
    read_ok(m);
    former_term = term_of(m);
    stop_all(c);
    copy_tree(aside, m->raft_dir);
    return m;
}

/* It leads at the first start, has everything, and what is written from here on is there after a crash that
 * takes the state with it. */
static void expect_recovered(struct cluster *c, struct manager *m)
{
    char aside[300];
    manager_start(m);
    run_until(c, 5000, rnode_is_leader(m->node));
    assert_true(term_of(m) > former_term);
    expect_n(m, BEFORE + AHEAD);
    put_n(m, BEFORE + AHEAD, 2 * AHEAD);
    snprintf(aside, sizeof aside, "%s/killed", c->dir);
    copy_tree(m->raft_dir, aside);
    expect_n(m, BEFORE + 3 * AHEAD);
    manager_stop(m);
    copy_tree(aside, m->raft_dir);
    remove_tree(m->state_dir);
    manager_start(m);
    run_until(c, 5000, rnode_is_leader(m->node));
    read_ok(m);
    expect_n(m, BEFORE + 3 * AHEAD);
}

static void recovered_ahead_of_its_log(void **state)
{
    (void)state;
    for (unsigned variant = 0; variant < 4; variant++) {
        struct cluster c;
        cluster_open(&c);
        struct manager *m = get_ahead(&c, variant & 1, variant & 2);
        check_ok(recover(m));
        expect_recovered(&c, m);
        manager_stop(m);
        manager_start(m);
        run_until(&c, 5000, rnode_is_leader(m->node));
        read_ok(m);
        expect_n(m, BEFORE + 3 * AHEAD);

        /* Whoever is added gets all of it. */
        struct manager *other = manager_new(&c, 3);
        manager_start(other);
        change_ok(&c, rnode_add, other->id, other->address);
        change_ok(&c, rnode_assign, other->id, ROLE_STANDBY);
        read_ok(other);
        expect_n(other, BEFORE + 3 * AHEAD);
        stop_all(&c);
        cluster_close(&c);
    }
}

/* Killed at every step in turn; then it starts as it is, and so it does after another try. */
static void killed_while_recovering(void **state)
{
    (void)state;
    for (unsigned variant = 0; variant < 4; variant += 3) {
        struct cluster c;
        char raft[300], store[300];
        bool killed = true;
        cluster_open(&c);
        struct manager *m = get_ahead(&c, variant & 1, variant & 2);
        snprintf(raft, sizeof raft, "%s/raft-before", c.dir);
        snprintf(store, sizeof store, "%s/state-before", c.dir);
        copy_tree(m->raft_dir, raft);
        copy_tree(m->state_dir, store);
        unsigned at = 0;
        while (killed) {
            at++;
            copy_tree(raft, m->raft_dir);
            copy_tree(store, m->state_dir);
            pid_t pid = fork_alone();
            assert_true(pid >= 0);
            if (pid == 0) {
                die_at = at;
                _exit(recover(m) == 0 ? 0 : 1);
            }
            int status = 0;
            assert_int_equal(waitpid(pid, &status, 0), pid);
            killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
            if (!killed && (!WIFEXITED(status) || WEXITSTATUS(status) != 0)) {
                fail_msg("recovering, to be killed at step %u, ended with status %d", at, status);
            }
            if (at % 2 == 0 || !killed) {
                manager_start(m);
                expect_n(m, BEFORE + AHEAD);
                manager_stop(m);
            }
            check_ok(recover(m));
            expect_recovered(&c, m);
            manager_stop(m);
        }
        printf("killed at each of %u steps\n", at - 1);
        assert_true(at > 5);
        cluster_close(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recovered_alone),
        cmocka_unit_test(recovered_in_a_term_of_its_own),
        cmocka_unit_test(recovered_ahead_of_its_log),
        cmocka_unit_test(killed_while_recovering),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
