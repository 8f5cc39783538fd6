#include "store/dedup.h"

#include "base/err.h"
#include "base/hash.h"

#include <stdlib.h>
#include <string.h>

enum { ID_LEN = 24 };

struct dedup_rec {
    uint8_t id[ID_LEN];
    struct txn_result result;
    bool lost; /* not in the hash for want of memory */
    UT_hash_handle hh;
};

static void put_u64(uint8_t *p, uint64_t v)
{
    put_u32(p, (uint32_t)v);
    put_u32(p + 4, (uint32_t)(v >> 32));
}

static uint64_t get_u64(const uint8_t *p)
{
    return get_u32(p) | (uint64_t)get_u32(p + 4) << 32;
}

static void flatten(const struct txn_id *id, uint8_t to[ID_LEN])
{
    memcpy(to, id->bytes, sizeof id->bytes);
    put_u64(to + sizeof id->bytes, id->seq);
}

void dedup_init(struct dedup *d)
{
    d->by_id = NULL;
    d->n = 0;
    TAILQ_INIT(&d->entries);
}

void dedup_free(struct dedup *d)
{
    HASH_CLEAR(hh, d->by_id);
    while (!TAILQ_EMPTY(&d->entries)) {
        struct dedup_entry *e = TAILQ_FIRST(&d->entries);
        TAILQ_REMOVE(&d->entries, e, link);
        free(e);
    }
    dedup_init(d);
}

static struct dedup_rec *find(const struct dedup *d, const uint8_t id[ID_LEN])
{
    struct dedup_rec *rec;
    HASH_FIND(hh, d->by_id, id, ID_LEN, rec);
    return rec;
}

const struct txn_result *dedup_find(const struct dedup *d, const struct txn_id *id)
{
    uint8_t flat[ID_LEN];
    flatten(id, flat);
    const struct dedup_rec *rec = find(d, flat);
    return rec == NULL ? NULL : &rec->result;
}

int dedup_begin(struct dedup *d, uint64_t index, unsigned room, struct dedup_entry **out)
{
    struct dedup_entry *e = malloc(sizeof *e + (size_t)room * sizeof *e->recs);
    if (e == NULL) {
        return err_setf(SYM_ENOMEM, "results of %u txns", room);
    }
    *e = (struct dedup_entry){.index = index, .recs = (struct dedup_rec *)(e + 1)};
    TAILQ_INSERT_TAIL(&d->entries, e, link);
    *out = e;
    return 0;
}

static int add(struct dedup *d, struct dedup_entry *e, const uint8_t id[ID_LEN], struct txn_result result)
{
    struct dedup_rec *rec = &e->recs[e->n];
    memcpy(rec->id, id, ID_LEN);
    rec->result = result;
    rec->lost = false;
    HASH_ADD(hh, d->by_id, id, ID_LEN, rec);
    if (rec->lost) {
        return err_setf(SYM_ENOMEM, "results of txns");
    }
    e->n++;
    d->n++;
    return 0;
}

int dedup_add(
    struct dedup *d, struct dedup_entry *e, const struct txn_id *id, const struct txn_result *result)
{
    uint8_t flat[ID_LEN];
    flatten(id, flat);
    return add(d, e, flat, *result);
}

void dedup_drop(struct dedup *d, struct dedup_entry *e)
{
    TAILQ_REMOVE(&d->entries, e, link);
    for (unsigned i = 0; i < e->n; i++) {
        /* The analyzer does not see that all of an entry's are in the hash. */
        HASH_DELETE(hh, d->by_id, &e->recs[i]); // NOLINT(clang-analyzer-core.NullDereference)
    }
    d->n -= e->n;
    free(e);
}

void dedup_drop_oldest(struct dedup *d)
{
    dedup_drop(d, TAILQ_FIRST(&d->entries));
}

/* --- records --- */

void dedup_write(const struct dedup_entry *e, uint8_t *to)
{
    put_u64(to, e->revision);
    to += DEDUP_HEAD;
    for (unsigned i = 0; i < e->n; i++, to += DEDUP_REC) {
        const struct dedup_rec *rec = &e->recs[i];
        memcpy(to, rec->id, ID_LEN);
        to[24] = rec->result.status;
        to[25] = (uint8_t)rec->result.failed;
        to[26] = (uint8_t)(rec->result.failed >> 8);
        put_u64(to + 27, rec->result.revision);
    }
}

static int damaged(void)
{
    return err_setf(SYM_ECORRUPT, "damaged record of a txn's result");
}

int dedup_read(struct dedup *d, uint64_t index, const uint8_t *data, size_t n)
{
    struct dedup_entry *newest = TAILQ_LAST(&d->entries, dedup_list);
    struct dedup_entry *e;
    if (n <= DEDUP_HEAD || (n - DEDUP_HEAD) % DEDUP_REC != 0) {
        return damaged();
    }
    uint64_t revision = get_u64(data);
    if (newest != NULL && (newest->index >= index || newest->revision > revision)) {
        return damaged();
    }
    int rv = dedup_begin(d, index, (unsigned)((n - DEDUP_HEAD) / DEDUP_REC), &e);
    if (rv != 0) {
        return rv;
    }
    e->revision = revision;
    for (const uint8_t *p = data + DEDUP_HEAD; rv == 0 && p < data + n; p += DEDUP_REC) {
        static const uint8_t none[ID_LEN];
        struct txn_result result = {
            .status = p[24], .failed = (uint16_t)(p[25] | p[26] << 8), .revision = get_u64(p + 27)};
        if (memcmp(p, none, ID_LEN) == 0 || result.status > TXN_CONFLICT || result.revision > revision ||
            result.failed >= TXN_CMPS_MAX || find(d, p) != NULL) {
            rv = damaged();
        } else {
            rv = add(d, e, p, result);
        }
    }
    if (rv != 0) {
        dedup_drop(d, e);
    }
    return rv;
}
