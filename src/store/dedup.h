/* What is remembered of txns with an id: their results, by log entry, oldest first. Private to src/store.
 *
 * In memory for looking up; each entry is also one record of DB_DEDUP, under its index, and one in a
 * snapshot: revision (8), then for each txn id (16), seq (8), status (1), failed (2), revision (8), all
 * little endian.
 */
#ifndef SYM_STORE_DEDUP_H
#define SYM_STORE_DEDUP_H

#include "store/db.h"

#include <sys/queue.h>

enum { DEDUP_HEAD = 8, DEDUP_REC = 35 };

struct dedup_rec;
struct dedup_entry {
    TAILQ_ENTRY(dedup_entry) link;
    uint64_t index;
    uint64_t revision; /* the store's, after the log entry */
    unsigned n;
    struct dedup_rec *recs;
};
struct dedup {
    struct dedup_rec *by_id;
    TAILQ_HEAD(dedup_list, dedup_entry) entries;
    size_t n; /* txns */
};

void dedup_init(struct dedup *d);
void dedup_free(struct dedup *d);
/* The result of the txn with that id, or NULL. */
const struct txn_result *dedup_find(const struct dedup *d, const struct txn_id *id);

/* The newest entry, with room for @room txns: add them, then keep or drop it. SYM_ENOMEM. */
int dedup_begin(struct dedup *d, uint64_t index, unsigned room, struct dedup_entry **out);
/* SYM_ENOMEM; SYM_ECORRUPT when the id is there. */
int dedup_add(
    struct dedup *d, struct dedup_entry *e, const struct txn_id *id, const struct txn_result *result);
void dedup_drop(struct dedup *d, struct dedup_entry *e);
void dedup_drop_oldest(struct dedup *d);

static inline size_t dedup_size(const struct dedup_entry *e)
{
    return DEDUP_HEAD + (size_t)e->n * DEDUP_REC;
}
void dedup_write(const struct dedup_entry *e, uint8_t *to);
/* Adds an entry from its record, which is checked (any bytes). SYM_ECORRUPT, SYM_ENOMEM. */
int dedup_read(struct dedup *d, uint64_t index, const uint8_t *data, size_t n);

#endif
