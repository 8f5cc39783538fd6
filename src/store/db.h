/* The one door to LMDB: an environment with four tables, its transactions and cursors. Private to src/store.
 *
 * Found or not found is told without a message: 0 found, 1 not there, negative SYM_E* with a message. A write
 * transaction that failed once can only be aborted. One write transaction at a time; it belongs to the thread
 * that began it. A read transaction may move between threads but be used by one at a time, and pins what it
 * sees: until it ends, pages that it can reach are not used again. Data that is read lives in the map until
 * the transaction ends, or, in a write transaction, until the next change.
 */
#ifndef SYM_STORE_DB_H
#define SYM_STORE_DB_H

#include "store/txn.h"

enum db_table {
    DB_META,  /* a few records of the whole; LMDB keeps its own list of tables there too */
    DB_KEYS,  /* keyspace.h */
    DB_TAILS, /* keyspace.h */
    DB_DEDUP, /* dedup.h */
    DB_TABLES
};
enum { DB_KEY_MAX = 511 }; /* fixed when LMDB was compiled; checked by db_open */

struct db;
struct db_tx;
struct db_cur;

/* Opens <@dir>/data.mdb (made 0600 if it is not there) with room for @map bytes of pages. @write_map: see
 * struct store_config. SYM_ECORRUPT when it is not an LMDB environment or has been cut off. */
int db_open(const char *dir, size_t map, bool write_map, struct db **out);
void db_close(struct db *db);
/* Its file was renamed into @dir, whose path is no longer than that which it was opened with. */
void db_moved(struct db *db, const char *dir);
int db_sync(struct db *db); /* to the disk */
/* True when nothing was ever put. */
bool db_is_new(const struct db *db);
/* Bytes of pages in use, of @map at most. Pages that were freed count as unused when a writer could have
 * them: not those that @pin (a read transaction, or NULL) can still reach. Scans the list of free pages. */
int db_used(struct db *db, const struct db_tx *pin, size_t *used);
/* Bytes of pages ever used: at least db_used, and cheap. */
size_t db_used_at_most(const struct db *db);

int db_begin(struct db *db, struct db_tx **out); /* to read */
/* @records: how many it will put or delete, at most, besides a few; @bytes: of what it will put. With @write_map the
 * room for that is taken first: SYM_ENOSPACE when the disk has not got it. */
int db_begin_write(struct db *db, size_t records, size_t bytes, struct db_tx **out);
int db_commit(struct db_tx *tx); /* ends it, also when it fails; its cursors are closed with it */
void db_abort(struct db_tx *tx); /* NULL is fine */
/* A read transaction that is kept for later: reset lets go of what it sees, renew sees the present. */
void db_reset(struct db_tx *tx);
int db_renew(struct db_tx *tx);

int db_get(struct db_tx *tx, enum db_table table, struct slice key, struct slice *data);
/* Makes a record of @size bytes, or makes an old one that long, and gives where its data goes. @append: the
 * key is above all that are there (quicker). */
int db_put(struct db_tx *tx, enum db_table table, struct slice key, size_t size, bool append, uint8_t **data);
int db_del(struct db_tx *tx, enum db_table table, struct slice key);

/* In a read transaction a cursor is closed before its transaction ends; in a write transaction db_cur_close
 * or the end closes it. */
int db_cur_open(struct db_tx *tx, enum db_table table, struct db_cur **out);
void db_cur_close(struct db_cur *cur); /* NULL is fine */
enum db_move { DB_FIRST, DB_LAST, DB_NEXT };
int db_cur_move(struct db_cur *cur, enum db_move move, struct slice *key, struct slice *data);
/* The first record at or above @*key, which becomes its key. */
int db_cur_seek(struct db_cur *cur, struct slice *key, struct slice *data);
/* The record of @key itself: 0, or 1 when there is none. What the cursor does next near it costs less. */
int db_cur_find(struct db_cur *cur, struct slice key, struct slice *data);
/* As db_put for a key that is not there: 0. If it is there: 1, @old is its data and the cursor stands on it.
 */
int db_cur_insert(
    struct db_cur *cur, struct slice key, size_t size, bool append, uint8_t **data, struct slice *old);
/* New data for the record that the cursor stands on, whose key is @key. */
int db_cur_replace(struct db_cur *cur, struct slice key, size_t size, uint8_t **data);

#endif
