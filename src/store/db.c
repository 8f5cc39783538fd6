#include "store/db.h"

#include "base/err.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <lmdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct db {
    MDB_env *env;
    MDB_dbi dbi[DB_TABLES];
    bool is_new;
    bool write_map;
    uint64_t allocated; /* bytes of the file that have room on the disk for sure, with @write_map */
    char path[];        /* of data.mdb */
};

enum { ROOM_LEAST = 16 << 20, ROOM_STEP = 16 << 20 }; /* see make_room */

static int fail(int rc, const char *what)
{
    switch (rc) {
    case MDB_MAP_FULL:
        return err_setf(SYM_ENOSPACE, "%s: the state has reached its quota", what);
    case MDB_INVALID:
    case MDB_VERSION_MISMATCH:
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
    case MDB_PANIC:
    case MDB_INCOMPATIBLE:
        return err_setf(SYM_ECORRUPT, "%s: %s", what, mdb_strerror(rc));
    default:
        break;
    }
    if (rc > 0) {
        return err_sysf(rc, "%s", what);
    }
    return err_setf(SYM_EIO, "%s: %s", what, mdb_strerror(rc));
}

/* MDB_NOTFOUND is an answer, not an error. */
static int answer(int rc, const char *what)
{
    return rc == 0 ? 0 : rc == MDB_NOTFOUND ? 1 : fail(rc, what);
}

static MDB_val val(struct slice s)
{
    return (MDB_val){s.n, (void *)(uintptr_t)s.p};
}

static struct slice slice(MDB_val v)
{
    return (struct slice){v.mv_data, v.mv_size};
}

static MDB_txn *txn(const struct db_tx *tx)
{
    return (MDB_txn *)(uintptr_t)tx;
}

static MDB_dbi dbi(const struct db_tx *tx, enum db_table table)
{
    const struct db *db = mdb_env_get_userctx(mdb_txn_env(txn(tx)));
    return db->dbi[table];
}

/* --- the environment --- */

/* LMDB has met a page that cannot be, and ends the process when this returns. */
static void on_assert(MDB_env *env, const char *what)
{
    const struct db *db = mdb_env_get_userctx(env);
    log_error(
        "%s is damaged (%s): stop this node and remove the folder of that file; it is rebuilt from the log",
        db->path, what);
}

static int open_tables(struct db *db)
{
    static const char *const names[DB_TABLES] = {NULL, "keys", "tails", "dedup"};
    MDB_txn *t;
    MDB_stat stat;
    int rc = mdb_txn_begin(db->env, NULL, 0, &t);
    if (rc != 0) {
        return rc;
    }
    rc = mdb_dbi_open(t, NULL, 0, &db->dbi[DB_META]);
    if (rc == 0) {
        rc = mdb_stat(t, db->dbi[DB_META], &stat);
    }
    for (int i = DB_KEYS; rc == 0 && i < DB_TABLES; i++) {
        rc = mdb_dbi_open(t, names[i], stat.ms_entries == 0 ? MDB_CREATE : 0, &db->dbi[i]);
    }
    /* Their names are all that is in there. */
    db->is_new = rc == 0 && stat.ms_entries < DB_TABLES;
    if (rc != 0) {
        mdb_txn_abort(t);
        return rc == MDB_NOTFOUND ? MDB_INVALID : rc;
    }
    return mdb_txn_commit(t);
}

/* Goes through LMDB's own table of the pages that are free: which transaction freed them, how many, which. */
static int each_free(
    MDB_txn *t, int (*each)(void *arg, size_t txnid, const size_t *pages, size_t n), void *arg)
{
    MDB_cursor *cur;
    MDB_val key, data;
    int rc = mdb_cursor_open(t, 0, &cur);
    if (rc != 0) {
        return rc;
    }
    while ((rc = mdb_cursor_get(cur, &key, &data, MDB_NEXT)) == 0) {
        const size_t *list = data.mv_data;
        if (key.mv_size != sizeof(size_t) || data.mv_size < sizeof(size_t) ||
            data.mv_size / sizeof(size_t) - 1 < list[0]) {
            rc = MDB_CORRUPTED;
            break;
        }
        if (each(arg, *(const size_t *)key.mv_data, list + 1, list[0]) != 0) {
            break;
        }
    }
    mdb_cursor_close(cur);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

struct missing {
    size_t first; /* page that is not in the file */
    size_t n_free;
};

static int count_missing(void *arg, size_t txnid, const size_t *pages, size_t n)
{
    struct missing *m = arg;
    (void)txnid;
    for (size_t i = 0; i < n; i++) {
        m->n_free += pages[i] >= m->first;
    }
    return 0;
}

/* A page behind the file's end would be a bus error when it is read. The last ones may be missing when they
 * were free before they were ever written; else the file, which had @length bytes, has been cut off. */
static int check_length(struct db *db, uint64_t length)
{
    MDB_txn *t;
    MDB_stat stat;
    size_t said = db_used_at_most(db);
    if (length == 0 || length >= said) {
        return 0;
    }
    int rc = mdb_env_stat(db->env, &stat);
    rc = rc != 0 ? rc : mdb_txn_begin(db->env, NULL, MDB_RDONLY, &t);
    if (rc != 0) {
        return rc;
    }
    struct missing m = {.first = length / stat.ms_psize};
    /* Zeros are no page: an error, where nothing would be a signal. */
    rc = truncate(db->path, (off_t)said) != 0 ? errno : each_free(t, count_missing, &m);
    mdb_txn_abort(t);
    if (rc == 0 && m.n_free != said / stat.ms_psize - m.first) {
        rc = MDB_CORRUPTED;
    }
    /* A later open is to find it as it was. */
    if (rc != 0 && truncate(db->path, (off_t)length) != 0) {
        rc = errno;
    }
    return rc;
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Pages that a change of so many records writes, at most. A record is put into a leaf, which may be split, or taken
 * out of one, which may be merged with its neighbour: two pages, of which one was there. The branches above are
 * written and split in the same way: all that there are, or those on the way to each record. */
static int count_pages(MDB_txn *t, const MDB_dbi dbi[DB_TABLES], size_t records, size_t *n)
{
    size_t leaves = 0, branches = 0, depth = 0;
    for (int i = DB_KEYS; i <= DB_TAILS; i++) {
        MDB_stat stat;
        int rc = mdb_stat(t, dbi[i], &stat);
        if (rc != 0) {
            return rc;
        }
        leaves += stat.ms_leaf_pages;
        branches += stat.ms_branch_pages;
        depth += stat.ms_depth;
    }
    *n = records + least(records, leaves) + least(2 * records * depth, 2 * branches + depth);
    return 0;
}

/* A page of the map that finds no room on the disk when it is first written is a bus error too: room for what the
 * transaction may write is taken before it writes. Besides the records and their values that is the list of the pages
 * that are free, old and new, which holds each in 8 bytes.
 *
 * Whoever proposes sees to it that this does not fail: health.h's floor is 64 MiB and the size of the state, and an
 * entry needs less than that but for the most spiteful ones. When it does fail, because the disk has become full since
 * it was last looked at, nothing has been written: the process ends, and applies the entry when it is started again
 * and there is room. */
static int make_room(struct db *db, MDB_txn *t, size_t records, size_t bytes)
{
    mdb_filehandle_t fd;
    MDB_envinfo info;
    MDB_stat stat;
    size_t used = db_used_at_most(db), pages = 0;
    int rc = mdb_env_info(db->env, &info);
    rc = rc != 0 ? rc : mdb_env_stat(db->env, &stat);
    rc = rc != 0 ? rc : mdb_env_get_fd(db->env, &fd);
    rc = rc != 0 ? rc : count_pages(t, db->dbi, records, &pages);
    if (rc != 0) {
        return fail(rc, "cannot make room");
    }
    size_t list = used / stat.ms_psize * 2 * sizeof(size_t);
    /* Behind the map's end nothing is written. */
    uint64_t needed = least(used + ROOM_LEAST + bytes + pages * stat.ms_psize + list, info.me_mapsize);
    if (needed <= db->allocated) {
        return 0;
    }
    for (uint64_t step = ROOM_STEP;; step = 0) {
        uint64_t end = least(needed + step, info.me_mapsize);
        /* Not from the start again: where it fails, some file systems give back what they had given before. */
        if (fallocate(fd, 0, (off_t)db->allocated, (off_t)(end - db->allocated)) == 0) {
            db->allocated = end;
            return 0;
        }
        if (step == 0) {
            return err_sysf(errno, "no room on the disk for the state");
        }
    }
}

/* Writing through the map needs room that can be taken ahead. */
static bool can_make_room(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        return true; /* mdb_env_open will say what is wrong */
    }
    bool can = fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 1) == 0 || errno != EOPNOTSUPP;
    close(fd);
    return can;
}

int db_open(const char *dir, size_t map, bool write_map, struct db **out)
{
    struct stat st;
    size_t path_len = strlen(dir) + sizeof "/data.mdb";
    struct db *db = calloc(1, sizeof *db + path_len);
    if (db == NULL) {
        return err_setf(SYM_ENOMEM, "%s", dir);
    }
    snprintf(db->path, path_len, "%s/data.mdb", dir);
    uint64_t length = stat(db->path, &st) == 0 ? (uint64_t)st.st_size : 0;
    write_map = write_map && can_make_room(db->path);
    db->write_map = write_map;
    int rc = mdb_env_create(&db->env);
    if (rc != 0) {
        rc = fail(rc, dir);
        goto free_db;
    }
    mdb_env_set_userctx(db->env, db);
    mdb_env_set_assert(db->env, on_assert);
    mdb_env_set_maxdbs(db->env, DB_TABLES);
    mdb_env_set_maxreaders(db->env, 8);
    rc = mdb_env_set_mapsize(db->env, map);
    /* The log is what is durable: NOSYNC. NOTLS: a snapshot's transaction is begun on one thread and read on
     * another. */
    unsigned flags = MDB_NOSYNC | MDB_NOTLS | (write_map ? MDB_WRITEMAP : 0);
    rc = rc != 0 ? rc : mdb_env_open(db->env, dir, flags, 0600);
    if (rc == 0 && mdb_env_get_maxkeysize(db->env) < DB_KEY_MAX) {
        rc = MDB_INCOMPATIBLE;
    }
    rc = rc != 0 ? rc : check_length(db, length);
    rc = rc != 0 ? rc : open_tables(db);
    if (rc != 0) {
        rc = fail(rc, db->path);
        goto close_env;
    }
    *out = db;
    return 0;
close_env:
    mdb_env_close(db->env);
free_db:
    free(db);
    return rc;
}

void db_close(struct db *db)
{
    mdb_env_close(db->env);
    free(db);
}

void db_moved(struct db *db, const char *dir)
{
    snprintf(db->path, strlen(db->path) + 1, "%s/data.mdb", dir);
}

int db_sync(struct db *db)
{
    int rc = mdb_env_sync(db->env, 1);
    return rc == 0 ? 0 : fail(rc, "cannot sync the state");
}

bool db_is_new(const struct db *db)
{
    return db->is_new;
}

size_t db_used_at_most(const struct db *db)
{
    MDB_envinfo info;
    MDB_stat stat;
    if (mdb_env_info(db->env, &info) != 0 || mdb_env_stat(db->env, &stat) != 0) {
        return SIZE_MAX;
    }
    return (info.me_last_pgno + 1) * stat.ms_psize;
}

struct reusable {
    size_t pinned; /* transaction; what it and later ones freed is still read */
    size_t n;
};

static int count_reusable(void *arg, size_t txnid, const size_t *pages, size_t n)
{
    struct reusable *r = arg;
    (void)pages;
    r->n += txnid < r->pinned ? n : 0;
    return txnid >= r->pinned;
}

int db_used(struct db *db, const struct db_tx *pin, size_t *used)
{
    MDB_txn *t;
    MDB_stat stat;
    struct reusable r = {.pinned = pin == NULL ? SIZE_MAX : mdb_txn_id(txn(pin))};
    int rc = mdb_txn_begin(db->env, NULL, MDB_RDONLY, &t);
    if (rc != 0) {
        return fail(rc, "free pages");
    }
    rc = mdb_env_stat(db->env, &stat);
    rc = rc != 0 ? rc : each_free(t, count_reusable, &r);
    mdb_txn_abort(t);
    if (rc != 0) {
        return fail(rc, "free pages");
    }
    *used = db_used_at_most(db) - r.n * stat.ms_psize;
    return 0;
}

/* --- transactions --- */

int db_begin(struct db *db, struct db_tx **out)
{
    MDB_txn *t;
    int rc = mdb_txn_begin(db->env, NULL, MDB_RDONLY, &t);
    if (rc != 0) {
        return fail(rc, "cannot begin a transaction");
    }
    *out = (struct db_tx *)t;
    return 0;
}

int db_begin_write(struct db *db, size_t records, size_t bytes, struct db_tx **out)
{
    MDB_txn *t;
    int rc = mdb_txn_begin(db->env, NULL, 0, &t);
    if (rc != 0) {
        return fail(rc, "cannot begin a transaction");
    }
    rc = db->write_map ? make_room(db, t, records, bytes) : 0;
    if (rc != 0) {
        mdb_txn_abort(t);
        return rc;
    }
    *out = (struct db_tx *)t;
    return 0;
}

int db_commit(struct db_tx *tx)
{
    int rc = mdb_txn_commit(txn(tx));
    return rc == 0 ? 0 : fail(rc, "cannot commit");
}

void db_abort(struct db_tx *tx)
{
    if (tx != NULL) {
        mdb_txn_abort(txn(tx));
    }
}

void db_reset(struct db_tx *tx)
{
    mdb_txn_reset(txn(tx));
}

int db_renew(struct db_tx *tx)
{
    int rc = mdb_txn_renew(txn(tx));
    return rc == 0 ? 0 : fail(rc, "cannot read the state");
}

/* --- records --- */

int db_get(struct db_tx *tx, enum db_table table, struct slice key, struct slice *data)
{
    MDB_val k = val(key), d;
    int rc = mdb_get(txn(tx), dbi(tx, table), &k, &d);
    if (rc == 0) {
        *data = slice(d);
    }
    return answer(rc, "read");
}

int db_put(struct db_tx *tx, enum db_table table, struct slice key, size_t size, bool append, uint8_t **data)
{
    MDB_val k = val(key), d = {size, NULL};
    int rc = mdb_put(txn(tx), dbi(tx, table), &k, &d, MDB_RESERVE | (append ? MDB_APPEND : 0));
    if (rc != 0) {
        return fail(rc, "put");
    }
    *data = d.mv_data;
    return 0;
}

int db_del(struct db_tx *tx, enum db_table table, struct slice key)
{
    MDB_val k = val(key);
    return answer(mdb_del(txn(tx), dbi(tx, table), &k, NULL), "delete");
}

/* --- cursors --- */

int db_cur_open(struct db_tx *tx, enum db_table table, struct db_cur **out)
{
    MDB_cursor *cur;
    int rc = mdb_cursor_open(txn(tx), dbi(tx, table), &cur);
    if (rc != 0) {
        return fail(rc, "cursor");
    }
    *out = (struct db_cur *)cur;
    return 0;
}

void db_cur_close(struct db_cur *cur)
{
    if (cur != NULL) {
        mdb_cursor_close((MDB_cursor *)cur);
    }
}

static int get(struct db_cur *cur, MDB_val k, MDB_cursor_op op, struct slice *key, struct slice *data)
{
    MDB_val d;
    int rc = mdb_cursor_get((MDB_cursor *)cur, &k, &d, op);
    if (rc == 0) {
        *key = slice(k);
        *data = slice(d);
    }
    return answer(rc, "read");
}

int db_cur_move(struct db_cur *cur, enum db_move move, struct slice *key, struct slice *data)
{
    static const MDB_cursor_op ops[] = {[DB_FIRST] = MDB_FIRST, [DB_LAST] = MDB_LAST, [DB_NEXT] = MDB_NEXT};
    return get(cur, (MDB_val){0, NULL}, ops[move], key, data);
}

int db_cur_seek(struct db_cur *cur, struct slice *key, struct slice *data)
{
    /* LMDB takes no empty key. */
    return get(cur, val(*key), key->n == 0 ? MDB_FIRST : MDB_SET_RANGE, key, data);
}

int db_cur_find(struct db_cur *cur, struct slice key, struct slice *data)
{
    return get(cur, val(key), MDB_SET, &key, data);
}

int db_cur_insert(
    struct db_cur *cur, struct slice key, size_t size, bool append, uint8_t **data, struct slice *old)
{
    MDB_val k = val(key), d = {size, NULL};
    int rc = mdb_cursor_put((MDB_cursor *)cur, &k, &d, MDB_RESERVE | (append ? MDB_APPEND : MDB_NOOVERWRITE));
    if (rc == MDB_KEYEXIST && !append) {
        *old = slice(d);
        return 1;
    }
    if (rc != 0) {
        return fail(rc, "put");
    }
    *data = d.mv_data;
    return 0;
}

int db_cur_replace(struct db_cur *cur, struct slice key, size_t size, uint8_t **data)
{
    MDB_val k = val(key), d = {size, NULL};
    int rc = mdb_cursor_put((MDB_cursor *)cur, &k, &d, MDB_RESERVE | MDB_CURRENT);
    if (rc != 0) {
        return fail(rc, "put");
    }
    *data = d.mv_data;
    return 0;
}
