#include "store/state.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

enum { FORMAT = 1 };

static const struct slice META_KEY = {(const uint8_t *)"symphony", 8};

/* --- records --- */

static int not_ours(void)
{
    return err_setf(SYM_ECORRUPT, "not a state of symphony, or one of another version");
}

int meta_get(struct db_tx *tx, struct meta *meta)
{
    struct slice data;
    int rv = db_get(tx, DB_META, META_KEY, &data);
    if (rv < 0) {
        return rv;
    }
    if (rv != 0 || data.n != sizeof *meta) {
        return not_ours();
    }
    memcpy(meta, data.p, sizeof *meta);
    return meta->format == FORMAT ? 0 : not_ours();
}

int meta_put(struct db_tx *tx, const struct meta *meta)
{
    struct meta m = *meta;
    uint8_t *to;
    m.format = FORMAT;
    int rv = db_put(tx, DB_META, META_KEY, sizeof m, false, &to);
    if (rv == 0) {
        memcpy(to, &m, sizeof m);
    }
    return rv;
}

/* Big endian: in the order of the log. */
static void index_key(uint64_t index, uint8_t to[8])
{
    for (int i = 7; i >= 0; i--, index >>= 8) {
        to[i] = (uint8_t)index;
    }
}

int dedup_index(struct slice key, uint64_t *index)
{
    if (key.n != 8) {
        err_setf(SYM_ECORRUPT, "damaged record of a txn's result");
        return SYM_ECORRUPT;
    }
    *index = 0;
    for (size_t i = 0; i < 8; i++) {
        *index = *index << 8 | key.p[i];
    }
    return 0;
}

int dedup_put(struct db_tx *tx, const struct dedup_entry *e)
{
    uint8_t key[8];
    uint8_t *to;
    index_key(e->index, key);
    int rv = db_put(tx, DB_DEDUP, (struct slice){key, sizeof key}, dedup_size(e), true, &to);
    if (rv == 0) {
        dedup_write(e, to);
    }
    return rv;
}

int dedup_del(struct db_tx *tx, uint64_t index)
{
    uint8_t key[8];
    index_key(index, key);
    int rv = db_del(tx, DB_DEDUP, (struct slice){key, sizeof key});
    return rv == 1 ? err_setf(SYM_ECORRUPT, "the result of a txn is missing") : rv;
}

static int load_dedup(struct state *st, struct db_tx *tx)
{
    struct db_cur *cur;
    struct slice key, data;
    uint64_t index;
    int rv = db_cur_open(tx, DB_DEDUP, &cur);
    if (rv != 0) {
        return rv;
    }
    rv = db_cur_move(cur, DB_FIRST, &key, &data);
    while (rv == 0 && (rv = dedup_index(key, &index)) == 0 &&
           (rv = dedup_read(&st->dedup, index, data.p, data.n)) == 0) {
        rv = db_cur_move(cur, DB_NEXT, &key, &data);
    }
    db_cur_close(cur);
    return rv == 1 ? 0 : rv;
}

/* --- opening --- */

static int make(struct state *st)
{
    struct db_tx *tx;
    int rv = db_begin_write(st->db, 0, 0, &tx);
    if (rv != 0) {
        return rv;
    }
    rv = meta_put(tx, &st->meta);
    if (rv != 0) {
        db_abort(tx);
        return rv;
    }
    return db_commit(tx);
}

int state_open_db(const struct store_config *cfg, const char *dir, struct db **out)
{
    size_t quota = cfg->quota == 0 ? QUOTA_DEFAULT : cfg->quota;
    /* Twice the quota: pages that are free in pieces too small for a large value, or that a snapshot still
     * reads, do not make a change fail that the quota (store_headroom) has room for. */
    return db_open(dir, (quota * 2 + 0xffff) & ~(size_t)0xffff, cfg->write_map, out);
}

int state_open(const struct store_config *cfg, const char *dir, struct state **out)
{
    struct state *st = calloc(1, sizeof *st);
    if (st == NULL) {
        return err_setf(SYM_ENOMEM, "%s", dir);
    }
    dedup_init(&st->dedup);
    int rv = state_open_db(cfg, dir, &st->db);
    if (rv != 0) {
        goto free_state;
    }
    if (db_is_new(st->db) && (rv = make(st)) != 0) {
        goto close_db;
    }
    rv = db_begin(st->db, &st->reader);
    if (rv != 0) {
        goto close_db;
    }
    st->reading = true;
    rv = meta_get(st->reader, &st->meta);
    rv = rv != 0 ? rv : load_dedup(st, st->reader);
    if (rv != 0) {
        err_wrapf(rv, "%s/data.mdb", dir);
        goto abort_reader;
    }
    *out = st;
    return 0;
abort_reader:
    dedup_free(&st->dedup);
    db_abort(st->reader);
close_db:
    db_close(st->db);
free_state:
    free(st);
    return rv;
}

void state_close(struct state *st)
{
    if (st == NULL) {
        return;
    }
    db_abort(st->reader);
    db_close(st->db);
    dedup_free(&st->dedup);
    free(st);
}

int state_read(struct state *st, struct db_tx **tx)
{
    int rv = st->reading ? 0 : db_renew(st->reader);
    if (rv == 0) {
        st->reading = true;
        *tx = st->reader;
    }
    return rv;
}

void state_let_go(struct state *st)
{
    if (st->reading) {
        db_reset(st->reader);
        st->reading = false;
    }
}
