#include "store/store.h"

#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "store/internal.h"
#include "store/mark.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- opening --- */

static int discard(const char *dir)
{
    char path[4096];
    struct stat st;
    snprintf(path, sizeof path, "%s/data.mdb", dir);
    if (stat(path, &st) == 0) {
        log_warn(
            "%s: the machine went down while this state was in use: it is discarded and rebuilt from the log",
            dir);
    }
    return remove_env(dir);
}

int store_open(const struct store_config *cfg, struct store **out)
{
    bool trusted;
    int rv = check_dir(cfg->dir);
    if (rv != 0) {
        return rv;
    }
    struct store *s = calloc(1, sizeof *s);
    char *dir = strdup(cfg->dir);
    if (s == NULL || dir == NULL) {
        rv = err_setf(SYM_ENOMEM, "%s", cfg->dir);
        goto free_store;
    }
    s->cfg = *cfg;
    s->cfg.dir = s->dir = dir;
    s->cfg.quota = cfg->quota == 0 ? QUOTA_DEFAULT : cfg->quota;
    s->cfg.ring_bytes = cfg->ring_bytes == 0 ? RING_DEFAULT : cfg->ring_bytes;
    s->cfg.dedup_window = cfg->dedup_window == 0 ? WINDOW_DEFAULT : cfg->dedup_window;
    rv = make_dir(dir);
    rv = rv != 0 ? rv : remove_leftovers(dir);
    rv = rv != 0 ? rv : mark_open(dir, &s->mark, &trusted);
    if (rv != 0) {
        goto free_store;
    }
    rv = trusted ? 0 : discard(dir);
    rv = rv != 0 ? rv : mark_in_use(s->mark);
    rv = rv != 0 ? rv : state_open(&s->cfg, dir, &s->state);
    if (rv != 0) {
        goto close_mark;
    }
    hub_init(&s->hub, s->cfg.ring_bytes, s->state->meta.revision);
    *out = s;
    return 0;
close_mark:
    close(s->mark);
free_store:
    free(dir);
    free(s);
    return rv;
}

void store_close(struct store *s)
{
    hub_close(&s->hub);
    if (s->snap != NULL) {
        snap_cut(s->snap);
    }
    /* The folder too: an installed snapshot's file may have its name in memory only, and after a power loss the mark
     * would vouch for the one that it replaced. */
    bool synced = db_sync(s->state->db) == 0 && file_sync_dir(s->dir) == 0;
    state_close(s->state);
    if (!synced || mark_clean(s->mark) != 0) {
        log_warn(
            "%s: %s: if the machine goes down now, the state is rebuilt from the log", s->dir, err_msg());
    }
    close(s->mark);
    free(s->dir);
    free(s);
}

/* --- applying --- */

int store_apply(struct store *s, uint64_t index, const uint8_t *pack, size_t n, struct txn_result **results,
    unsigned *n_results)
{
    struct applied out;
    int rv;
    if (results != NULL) {
        *results = NULL;
        *n_results = 0;
    }
    if (index <= s->state->meta.applied) {
        return 0;
    }
    /* What a snapshot reads cannot be used again, and the file grows meanwhile. */
    if (s->snap != NULL && snap_age(s->snap) > SNAP_MAX_AGE_S) {
        log_warn("a snapshot was not encoded within %d s: given up", SNAP_MAX_AGE_S);
        snap_cut(s->snap);
    }
    for (;;) {
        out = (struct applied){0};
        STAILQ_INIT(&out.events);
        rv = state_apply(s->state, index, s->cfg.dedup_window, pack, n, &out);
        if (rv != SYM_ENOSPACE || s->snap == NULL) {
            break;
        }
        log_warn("%s: a snapshot that is being taken is given up for it", err_msg());
        snap_cut(s->snap);
        applied_free(&out);
    }
    if (rv == 0) {
        hub_publish(&s->hub, &out.events, out.lost, s->state->meta.revision);
        if (results != NULL) {
            *results = out.results;
            *n_results = out.n;
            out.results = NULL;
        }
    }
    applied_free(&out);
    return rv;
}

int store_txn_cost(
    struct store *s, const uint8_t *txn, size_t n, uint64_t puts, uint64_t most, struct txn_cost *out)
{
    return state_cost(s->state, txn, n, puts, most, out);
}

uint64_t store_applied(const struct store *s)
{
    return s->state->meta.applied;
}

uint64_t store_revision(const struct store *s)
{
    return s->state->meta.revision;
}

uint64_t store_keys(const struct store *s)
{
    return s->state->meta.keys;
}

size_t store_bytes(const struct store *s)
{
    return db_used_at_most(s->state->db);
}

size_t store_headroom(const struct store *s)
{
    struct state *st = s->state;
    size_t quota = s->cfg.quota;
    size_t used = db_used_at_most(st->db);
    /* While the quota is far away, the pages that were freed need not be counted. */
    if (used > quota / 2) {
        if (st->used_at == 0 || st->used_at != st->meta.applied) {
            st->used_at = st->meta.applied;
            if (db_used(st->db, s->snap == NULL ? NULL : snap_tx(s->snap), &st->used) != 0) {
                log_warn("%s", err_msg());
                st->used = used;
            }
        }
        used = st->used;
    }
    return used < quota ? quota - used : 0;
}

void store_stats(const struct store *s, struct store_stats *out)
{
    const struct hub *h = &s->hub;
    *out = (struct store_stats){
        .quota = s->cfg.quota,
        .watches = h->n_watches,
        .paused = h->n_paused,
        .cut = h->cut,
        .events = h->events,
        .delivered = h->delivered,
        .history_events = h->ring.next - h->ring.first,
        .history_bytes = h->ring.bytes,
    };
}

/* --- reading --- */

const struct txn_result *store_result(const struct store *s, const struct txn_id *id)
{
    return dedup_find(&s->state->dedup, id);
}

int store_get(struct store *s, const void *key, size_t n, struct kv *out)
{
    struct db_tx *tx;
    if (n == 0 || n > KEY_MAX) {
        return err_setf(SYM_EINVAL, "key of %zu bytes: 1 to %d", n, KEY_MAX);
    }
    int rv = state_read(s->state, &tx);
    if (rv == 0) {
        rv = ks_get(tx, (struct slice){key, n}, out);
    }
    return rv == 1 ? err_setf(SYM_ENOTFOUND, "no such key") : rv;
}

int store_list(struct store *s, struct slice prefix, const struct slice *after,
    int (*each)(void *arg, const struct kv *kv), void *arg)
{
    struct db_tx *tx;
    struct ks_iter it;
    struct kv kv;
    int rv = state_read(s->state, &tx);
    if (rv != 0) {
        return rv;
    }
    bool later = after != NULL && slice_cmp(*after, prefix) > 0;
    rv = ks_seek(&it, tx, later ? *after : prefix, &kv);
    if (rv == 0 && after != NULL && slice_cmp(kv.key, *after) == 0) {
        rv = ks_next(&it, &kv);
    }
    while (rv == 0 && slice_begins(kv.key, prefix)) {
        rv = each(arg, &kv);
        if (rv != 0) {
            goto end;
        }
        rv = ks_next(&it, &kv);
    }
    rv = rv == 1 ? 0 : rv;
end:
    ks_end(&it);
    return rv;
}
