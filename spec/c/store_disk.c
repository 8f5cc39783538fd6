/* A disk that is nearly full: an entry that dirties more pages than there is room for is refused by store_apply, and
 * never a bus error. */
#include "store_support.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <sys/wait.h>

enum { KEYS = 22000, VALUE = 1900, A_TXN = 100, LEFT = 4 << 20, BAD = 1 };

static void expect_(bool good, const char *what, int line)
{
    if (!good) {
        fprintf(stderr, "line %d: not so: %s (%s)\n", line, what, err_msg());
        _exit(BAD);
    }
}
#define expect(cond) expect_(cond, #cond, __LINE__)

static char names[TXN_OPS_MAX][24];

static int apply(struct store *s, struct packer *p)
{
    packer_end(p);
    return store_apply(s, store_applied(s) + 1, buf_data(&p->pack), p->pack.len, NULL, NULL);
}

/* Two values share a page, as those of all keys do that are put in order. */
static void fill_store(struct store *s, struct packer *p, struct txn *t)
{
    static char value[VALUE + 1];
    memset(value, 'v', VALUE);
    for (unsigned i = 0; i < KEYS;) {
        for (t->n_ops = 0; t->n_ops < A_TXN; i++) {
            snprintf(names[t->n_ops], sizeof names[0], "/kv/%06u", i);
            t->ops[t->n_ops] = op_put(names[t->n_ops], value);
            t->n_ops++;
        }
        packer_begin(p);
        packer_add(p, t);
        expect(apply(s, p) == 0);
    }
}

/* One legal pack that takes one of the two from each page. */
static void pack_deletes(struct packer *p, struct txn *t)
{
    packer_begin(p);
    for (unsigned i = 0; i < KEYS;) {
        for (t->n_ops = 0; t->n_ops < A_TXN; i += 2) {
            snprintf(names[t->n_ops], sizeof names[0], "/kv/%06u", i);
            t->ops[t->n_ops] = op_del(names[t->n_ops]);
            t->n_ops++;
        }
        packer_add(p, t);
    }
    expect(p->pack.len < PACK_TARGET);
}

static void leave(const char *disk, const char *file, uint64_t left)
{
    struct statvfs v;
    expect(statvfs(disk, &v) == 0);
    uint64_t available = (uint64_t)v.f_bavail * v.f_bsize;
    expect(available > left);
    int fd = open(file, O_WRONLY | O_CREAT, 0600);
    expect(fd >= 0 && fallocate(fd, 0, 0, (off_t)(available - left)) == 0);
    close(fd);
}

static void child(const char *disk)
{
    char dir[300], file[300];
    snprintf(dir, sizeof dir, "%s/state", disk);
    snprintf(file, sizeof file, "%s/fill", disk);
    struct store_config cfg = {.dir = dir, .write_map = true};
    struct store *s = NULL;
    struct packer p = {0};
    struct txn *t = calloc(1, sizeof *t);
    expect(t != NULL && store_open(&cfg, &s) == 0);
    fill_store(s, &p, t);
    leave(disk, file, LEFT);
    uint64_t applied = store_applied(s), revision = store_revision(s);
    pack_deletes(&p, t);
    int rv = apply(s, &p);
    expect(rv == SYM_ENOSPACE);
    /* Nothing of it was kept, small ones still go, and it goes when there is room. */
    expect(store_applied(s) == applied && store_revision(s) == revision && store_keys(s) == KEYS);
    packer_begin(&p);
    t->n_ops = 1;
    t->ops[0] = op_put("/kv/000001", "w");
    packer_add(&p, t);
    expect(apply(s, &p) == 0);
    expect(remove(file) == 0);
    pack_deletes(&p, t);
    expect(apply(s, &p) == 0);
    expect(store_keys(s) == KEYS / 2);
    store_close(s);
    packer_free(&p);
    free(t);
    _exit(0);
}

static void nearly_full(void **state)
{
    const char *disk = in_folder(state, "disk");
    assert_int_equal(mkdir(disk, 0700), 0);
    /* In a mount namespace of this process's own, which takes the disk with it whatever happens. */
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", disk, "tmpfs", 0, "size=256m") != 0) {
        print_message("skipped: cannot mount a small file system here (%s)\n", strerror(errno));
        skip();
    }
    pid_t pid = fork();
    if (pid == 0) {
        static const int crashes[] = {SIGSEGV, SIGABRT, SIGBUS};
        for (unsigned i = 0; i < sizeof crashes / sizeof *crashes; i++) {
            signal(crashes[i], SIG_DFL); /* or cmocka would go on here */
        }
        child(disk);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(umount(disk), 0);
    if (WIFSIGNALED(status)) {
        fail_msg("killed by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(nearly_full, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
