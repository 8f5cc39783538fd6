/* What a pack does to the state: pure but for the environment it writes to, and the same on every member. */
#include "store/state.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

/* Results are forgotten this many at a time, at least: not with every pack. */
enum { FORGET_BATCH = 256 };

struct apply {
    struct state *st;
    struct ks_writer writer;
    struct meta meta;
    struct dedup_entry *entry;
    struct applied *out;
    struct txn *txn; /* room for the one at hand */
};

struct count {
    unsigned txns, with_id;
    size_t ops;
};

static int count_txn(void *arg, const uint8_t *txn, size_t len)
{
    struct count *c = arg;
    struct txn_id id;
    int rv = txn_peek_id(txn, len, &id);
    c->txns++;
    c->ops += txn_peek_ops(txn, len);
    c->with_id += rv == 0 && txn_has_id(&id);
    return rv;
}

/* --- compares --- */

static bool is_prefix(const struct txn_cmp *c)
{
    return c->kind == CMP_PREFIX_REVISION || c->kind == CMP_PREFIX_COUNT;
}

/* 1 when it holds, 0 when not. */
static int prefix_holds(struct db_tx *tx, const struct txn_cmp *c)
{
    struct ks_iter it;
    struct kv kv;
    uint64_t count = 0;
    bool broken = false;
    int rv = ks_seek(&it, tx, c->key, &kv);
    while (rv == 0 && !broken && slice_begins(kv.key, c->key)) {
        count++;
        broken = c->kind == CMP_PREFIX_REVISION ? kv.mod_revision > c->number : count > c->number;
        rv = ks_next(&it, &kv);
    }
    ks_end(&it);
    if (rv < 0) {
        return rv;
    }
    return !broken && (c->kind == CMP_PREFIX_REVISION || count == c->number);
}

static int look_up(struct ks_writer *w, const struct txn_cmp *c)
{
    struct kv kv;
    if (is_prefix(c)) {
        return prefix_holds(w->tx, c);
    }
    int rv = ks_find(w, c->key, &kv);
    if (rv != 0) {
        return rv < 0 ? rv : c->kind == CMP_ABSENT;
    }
    switch (c->kind) {
    case CMP_VALUE:
        return slice_cmp(kv.value, c->value) == 0;
    case CMP_CREATE_REVISION:
        return kv.create_revision == c->number;
    case CMP_MOD_REVISION:
        return kv.mod_revision == c->number;
    default:
        return 0;
    }
}

static int holds(struct apply *a, const struct txn_cmp *c)
{
    if (memo_holds(&a->st->memo, c)) {
        return 1;
    }
    int rv = look_up(&a->writer, c);
    if (rv == 1) {
        memo_keep(&a->st->memo, c);
    }
    return rv;
}

/* Keys below a prefix; the counting ends at @most. */
static int count_below(struct db_tx *tx, struct slice prefix, uint64_t most, uint64_t *n)
{
    struct ks_iter it;
    struct kv kv;
    int rv = ks_seek(&it, tx, prefix, &kv);
    for (*n = 0; rv == 0 && *n < most && slice_begins(kv.key, prefix); ++*n) {
        rv = ks_next(&it, &kv);
    }
    ks_end(&it);
    return rv < 0 ? rv : 0;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

int state_cost(
    struct state *st, const uint8_t *bytes, size_t n, uint64_t puts, uint64_t most, struct txn_cost *out)
{
    struct txn t;
    struct db_tx *tx = NULL;
    int rv = txn_decode(bytes, n, &t);
    *out = (struct txn_cost){0};
    for (unsigned i = 0; rv == 0 && i < t.n_cmps && out->now <= most; i++) {
        const struct txn_cmp *c = &t.cmps[i];
        if (!is_prefix(c)) {
            continue;
        }
        /* A count is known to be another one at the first key too many. */
        uint64_t end = c->kind == CMP_PREFIX_COUNT && c->number < UINT64_MAX ? c->number + 1 : UINT64_MAX;
        uint64_t present = 0;
        uint64_t enough = least(end, most + 1 - out->now);
        if (memo_count(&st->memo, c->key, &present)) {
            present = least(present, enough);
        } else {
            rv = tx != NULL ? 0 : state_read(st, &tx);
            rv = rv != 0 ? rv : count_below(tx, c->key, enough, &present);
            if (rv == 0 && present < enough) {
                memo_keep_count(&st->memo, c->key, present);
            }
        }
        out->now += 1 + present;
        out->then += 1 + least(end, present + puts);
    }
    return rv;
}

/* --- changes --- */

static void add_event(struct apply *a, const struct txn_op *op, uint64_t create, uint64_t revision)
{
    struct ring_event *re =
        a->out->lost ? NULL : ring_event_new(op->key, op->value, op->kind == OP_DELETE, create, revision);
    if (re == NULL) {
        a->out->lost = true;
        return;
    }
    STAILQ_INSERT_TAIL(&a->out->events, re, link);
}

static int change(struct apply *a, const struct txn_op *op, uint64_t revision, bool *changed)
{
    uint64_t create;
    int rv;
    memo_changed(&a->st->memo, op->key);
    if (op->kind == OP_PUT) {
        rv = ks_put(&a->writer, op->key, op->value, revision, &create);
        a->meta.keys += rv == 1;
    } else {
        rv = ks_del(&a->writer, op->key, &create);
        if (rv == 1) {
            return 0;
        }
        a->meta.keys -= rv == 0;
    }
    if (rv < 0) {
        return rv;
    }
    *changed = true;
    add_event(a, op, create, revision);
    return 0;
}

static int run_txn(struct apply *a, struct txn_result *result)
{
    const struct txn *t = a->txn;
    bool changed = false;
    for (unsigned i = 0; i < t->n_cmps; i++) {
        int rv = holds(a, &t->cmps[i]);
        if (rv < 0) {
            return rv;
        }
        if (rv == 0) {
            *result = (struct txn_result){
                .status = TXN_CONFLICT, .failed = (uint16_t)i, .revision = a->meta.revision};
            return 0;
        }
    }
    for (unsigned i = 0; i < t->n_ops; i++) {
        int rv = change(a, &t->ops[i], a->meta.revision + 1, &changed);
        if (rv != 0) {
            return rv;
        }
    }
    a->meta.revision += changed;
    *result = (struct txn_result){.status = TXN_APPLIED, .revision = a->meta.revision};
    return 0;
}

static int apply_txn(void *arg, const uint8_t *bytes, size_t len)
{
    struct apply *a = arg;
    const struct txn_id *id = &a->txn->id;
    struct txn_result *result = &a->out->results[a->out->n];
    int rv = txn_decode(bytes, len, a->txn);
    if (rv != 0) {
        return rv;
    }
    a->out->n++;
    if (!txn_has_id(id)) {
        return run_txn(a, result);
    }
    const struct txn_result *before = dedup_find(&a->st->dedup, id);
    if (before != NULL) {
        *result = *before;
        result->repeated = true;
        return 0;
    }
    if (id->since < a->meta.floor) {
        *result = (struct txn_result){.status = TXN_UNKNOWN, .revision = a->meta.revision};
        return 0;
    }
    rv = run_txn(a, result);
    return rv == 0 ? dedup_add(&a->st->dedup, a->entry, id, result) : rv;
}

/* --- what is remembered --- */

/* Takes what has fallen out of the window out of the table; @n entries are then to be dropped from memory. */
static int forget(struct apply *a, unsigned window, unsigned *n)
{
    const struct dedup *d = &a->st->dedup;
    size_t total = d->n;
    const struct dedup_entry *e;
    *n = 0;
    if (total < (size_t)window + FORGET_BATCH) {
        return 0;
    }
    TAILQ_FOREACH (e, &d->entries, link) {
        if (total - e->n < window) {
            break;
        }
        int rv = dedup_del(a->writer.tx, e->index);
        if (rv != 0) {
            return rv;
        }
        total -= e->n;
        a->meta.floor = e->revision + 1;
        (*n)++;
    }
    return 0;
}

static int remember(struct apply *a, unsigned window, unsigned *forgotten)
{
    *forgotten = 0;
    if (a->meta.revision != a->st->meta.revision) {
        a->meta.quiet = 0;
    } else {
        a->meta.quiet += a->entry->n;
        if (a->meta.quiet >= (window + 1) / 2) {
            a->meta.quiet = 0;
            a->meta.revision++;
        }
    }
    if (a->entry->n == 0) {
        return 0;
    }
    a->entry->revision = a->meta.revision;
    int rv = dedup_put(a->writer.tx, a->entry);
    return rv == 0 ? forget(a, window, forgotten) : rv;
}

/* Runs the pack in the open transaction and commits it. */
static int run_pack(struct apply *a, uint64_t index, unsigned window, const uint8_t *pack, size_t n)
{
    unsigned forgotten;
    int rv = pack_each(pack, n, apply_txn, a);
    if (rv == 0) {
        rv = remember(a, window, &forgotten);
    }
    if (rv == 0) {
        a->meta.applied = index;
        rv = meta_put(a->writer.tx, &a->meta);
    }
    if (rv != 0) {
        db_abort(a->writer.tx);
        memo_clear(&a->st->memo);
        return rv;
    }
    rv = db_commit(a->writer.tx);
    if (rv != 0) {
        memo_clear(&a->st->memo);
    }
    if (rv == 0) {
        a->st->meta = a->meta;
        while (forgotten-- > 0) {
            dedup_drop_oldest(&a->st->dedup);
        }
    }
    return rv;
}

int state_apply(
    struct state *st, uint64_t index, unsigned window, const uint8_t *pack, size_t n, struct applied *out)
{
    struct txn txn;
    struct apply a = {.st = st, .meta = st->meta, .out = out, .txn = &txn};
    struct count count = {0};
    int rv = pack_each(pack, n, count_txn, &count);
    if (rv != 0) {
        return rv;
    }
    out->results = malloc((count.txns + 1) * sizeof *out->results);
    if (out->results == NULL) {
        return err_setf(SYM_ENOMEM, "results of %u txns", count.txns);
    }
    rv = dedup_begin(&st->dedup, index, count.with_id, &a.entry);
    if (rv != 0) {
        return rv;
    }
    /* Our own reader must not keep pages from being used again. */
    state_let_go(st);
    /* A long key has a record for every 500 bytes of it (keyspace.h). */
    rv = db_begin_write(st->db, count.ops + n / 500, n, &a.writer.tx);
    if (rv == 0) {
        rv = run_pack(&a, index, window, pack, n);
    }
    if (rv != 0 || a.entry->n == 0) {
        dedup_drop(&st->dedup, a.entry);
    }
    return rv;
}

void applied_free(struct applied *out)
{
    struct ring_event *re;
    while ((re = STAILQ_FIRST(&out->events)) != NULL) {
        STAILQ_REMOVE_HEAD(&out->events, link);
        ring_event_free(re);
    }
    free(out->results);
}
