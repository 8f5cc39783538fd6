/* From a snapshot's bytes to an environment in <dir>.new, and from there into the store's place. The one step
 * that counts is the rename of data.mdb: before it the old state is there, after it the new one, and
 * <dir>.new is removed by whoever comes upon it next. */
#include "base/err.h"
#include "base/log.h"
#include "store/internal.h"
#include "store/snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SLICE_BYTES = 4 << 20 }; /* put in one transaction: its pages are held in memory */

static const char *const FILES[] = {"data.mdb", "lock.mdb"};
enum { N_FILES = 2 };

/* --- folders --- */

static char *join(const char *a, const char *b)
{
    size_t n = strlen(a) + strlen(b) + 1;
    char *text = malloc(n);
    if (text == NULL) {
        err_setf(SYM_ENOMEM, "%s", a);
        return NULL;
    }
    snprintf(text, n, "%s%s", a, b);
    return text;
}

int make_dir(const char *dir)
{
    return mkdir(dir, 0700) == 0 || errno == EEXIST ? 0 : err_sysf(errno, "%s", dir);
}

int remove_env(const char *dir)
{
    for (int i = 0; i < N_FILES; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", dir, FILES[i]);
        if (unlink(path) != 0 && errno != ENOENT && errno != ENOTDIR) {
            return err_sysf(errno, "%s", path);
        }
    }
    return 0;
}

/* A path too long for remove_env and its like is refused at once. */
int check_dir(const char *dir)
{
    return strlen(dir) < 4000 ? 0 : err_setf(SYM_EINVAL, "a path of %zu bytes", strlen(dir));
}

int remove_leftovers(const char *dir)
{
    char *new = join(dir, ".new");
    if (new == NULL) {
        return SYM_ENOMEM;
    }
    int rv = remove_env(new);
    if (rv == 0) {
        rmdir(new);
    }
    free(new);
    return rv;
}

/* --- building --- */

struct build {
    struct db *db;
    struct ks_writer writer;
    struct dedup dedup;
    uint64_t revision;
    size_t bytes;
};

static int next_slice(struct build *b)
{
    int rv = b->writer.tx != NULL ? db_commit(b->writer.tx) : 0;
    b->writer = (struct ks_writer){.append = true};
    b->bytes = 0;
    return rv != 0 ? rv : db_begin_write(b->db, 0, 2 * SLICE_BYTES, &b->writer.tx);
}

static int build_key(void *arg, const struct kv *kv)
{
    struct build *b = arg;
    int rv = b->bytes < SLICE_BYTES ? 0 : next_slice(b);
    if (rv == 0) {
        rv = ks_put_as(&b->writer, kv);
        b->bytes += kv->key.n + kv->value.n + 64;
    }
    return rv < 0 ? rv : 0;
}

static int build_entry(void *arg, uint64_t index, struct slice entry)
{
    struct build *b = arg;
    int rv = b->bytes < SLICE_BYTES ? 0 : next_slice(b);
    rv = rv != 0 ? rv : dedup_read(&b->dedup, index, entry.p, entry.n);
    if (rv != 0) {
        return rv;
    }
    b->bytes += entry.n + 64;
    const struct dedup_entry *e = TAILQ_LAST(&b->dedup.entries, dedup_list);
    return e->revision <= b->revision ? dedup_put(b->writer.tx, e)
                                      : err_setf(SYM_ECORRUPT, "snapshot: impossible revisions");
}

static int build(const struct store_config *cfg, const char *dir, struct rd *r, const struct snap_head *h)
{
    struct build b = {.revision = h->meta.revision};
    dedup_init(&b.dedup);
    int rv = state_open_db(cfg, dir, &b.db);
    if (rv != 0) {
        return rv;
    }
    rv = next_slice(&b);
    if (rv == 0) {
        rv = snap_keys(r, h, build_key, &b);
    }
    if (rv == 0) {
        rv = snap_entries(r, h, build_entry, &b);
    }
    if (rv == 0) {
        rv = meta_put(b.writer.tx, &h->meta);
    }
    if (rv == 0) {
        rv = db_commit(b.writer.tx);
    } else {
        db_abort(b.writer.tx);
    }
    /* Written out here, on the pool: else the file system may do it while the loop renames the file. */
    rv = rv != 0 ? rv : db_sync(b.db);
    dedup_free(&b.dedup);
    db_close(b.db);
    return rv;
}

/* --- installing --- */

static void install_free(struct install *in)
{
    remove_env(in->dir);
    rmdir(in->dir);
    if (in->lock >= 0) {
        close(in->lock);
    }
    free(in->dir);
    free(in);
}

int install_prepare(const struct store_config *cfg, const uint8_t *data, size_t n, struct install **out)
{
    struct rd r;
    struct snap_head head;
    int rv = check_dir(cfg->dir);
    rv = rv != 0 ? rv : snap_check(data, n, &r, &head);
    if (rv != 0) {
        return rv;
    }
    struct install *in = calloc(1, sizeof *in);
    if (in == NULL) {
        return err_setf(SYM_ENOMEM, "snapshot");
    }
    in->dir = join(cfg->dir, ".new");
    if (in->dir == NULL) {
        free(in);
        return SYM_ENOMEM;
    }
    rv = make_dir(in->dir);
    if (rv != 0) {
        goto free_in;
    }
    /* One at a time, also within this process. */
    in->lock = open(in->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (in->lock < 0) {
        rv = err_sysf(errno, "%s", in->dir);
        goto free_in;
    }
    if (flock(in->lock, LOCK_EX | LOCK_NB) != 0) {
        rv = errno == EWOULDBLOCK ? err_setf(SYM_EBUSY, "%s: a snapshot is being installed", in->dir)
                                  : err_sysf(errno, "%s", in->dir);
        close(in->lock);
        goto free_in;
    }
    rv = remove_env(in->dir);
    rv = rv != 0 ? rv : build(cfg, in->dir, &r, &head);
    /* Opened again: what building took of memory goes, and what was built is read once more. */
    rv = rv != 0 ? rv : state_open(cfg, in->dir, &in->state);
    if (rv != 0) {
        install_free(in);
        return rv;
    }
    *out = in;
    return 0;
free_in:
    free(in->dir);
    free(in);
    return rv;
}

uint64_t install_index(const struct install *in)
{
    return in->state->meta.applied;
}

void install_abandon(struct install *in)
{
    state_close(in->state);
    install_free(in);
}

static int move(const char *from, const char *to, const char *file)
{
    char a[4096], b[4096];
    snprintf(a, sizeof a, "%s/%s", from, file);
    snprintf(b, sizeof b, "%s/%s", to, file);
    return rename(a, b) == 0 ? 0 : err_sysf(errno, "cannot put %s in place", a);
}

int store_install(struct store *s, struct install *in)
{
    if (in->state->meta.applied <= s->state->meta.applied) {
        install_abandon(in);
        return 0;
    }
    int rv = move(in->dir, s->dir, FILES[0]);
    if (rv != 0) {
        install_abandon(in);
        return rv;
    }
    /* The lock file of an environment is made anew by whoever opens it first: should the old one stay,
     * nothing is lost. */
    if (move(in->dir, s->dir, FILES[1]) != 0) {
        log_warn("%s", err_msg());
    }
    if (s->snap != NULL) {
        snap_cut(s->snap);
    }
    state_close(s->state);
    s->state = in->state;
    db_moved(s->state->db, s->dir);
    hub_reset(&s->hub, s->state->meta.revision);
    install_free(in);
    return 0;
}
