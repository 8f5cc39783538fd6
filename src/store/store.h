/* The replicated state: an ordered keyspace with revisions, on LMDB, and the hub that tells watchers of its
 * changes.
 *
 * Used from the loop thread only, except snap_encode and install_prepare, which run on the pool. Applying is
 * deterministic: two stores that applied the same entries are equal byte for byte in snap_encode's output.
 * Every function but store_apply may fail; store_apply fails only when the disk or the memory does, and then
 * the process must end (rule 4 of the raft notes): nothing of that entry has been kept.
 */
#ifndef SYM_STORE_STORE_H
#define SYM_STORE_STORE_H

#include "store/txn.h"

#include <sys/queue.h>

struct store;

struct store_config {
    const char *dir;       /* made 0700 if it is not there; holds data.mdb */
    size_t quota;          /* bytes of pages: what store_headroom counts down from; 0: 1 GiB */
    size_t ring_bytes;     /* watch history; 0: 8 MiB */
    unsigned dedup_window; /* txns with an id whose result is remembered; 0: 16384. Same on every member. */
    /* Changes are written through the map (MDB_WRITEMAP) instead of by system calls: about a third of the
     * CPU. The price: a stray write in this process can reach the state. Where the file system cannot reserve
     * room (fallocate), which a full disk calls for, it is as if this were false. */
    bool write_map;
};

/* Opens or makes. If the machine has booted since an unclean end (boot id, no clean-shutdown mark), the
 * folder's contents are discarded and the store is empty, at index 0, to be rebuilt from raft: LMDB runs with
 * MDB_NOSYNC. SYM_ECORRUPT when the file is not an environment of ours. */
int store_open(const struct store_config *cfg, struct store **out);
/* Syncs, leaves the clean-shutdown mark (unless syncing fails), frees. Watches that are still open are closed with status
 * SYM_ECLOSED; a snapshot that is being encoded is cut off (SYM_ECANCELED) and is still to be ended. */
void store_close(struct store *s);

/* --- applying --- */

/* Applies the pack of log entry @index. An index at or below store_applied is skipped (0, *n_results 0).
 * Results, one a txn and in order, are malloc'd into *results (the caller frees); pass NULL to not have them.
 * All in one LMDB txn with the applied index. Then the watch ring has the events; call store_pump to deliver.
 */
int store_apply(struct store *s, uint64_t index, const uint8_t *pack, size_t n, struct txn_result **results,
    unsigned *n_results);

/* What applying a txn costs beyond its bytes: the keys that its compares of prefixes go through, and one for
 * each of these compares. Each counts whatever the others say, and all keys below its prefix, whichever of them
 * would end it: so only keys that are put before the txn is applied can add to it. */
struct txn_cost {
    uint64_t now;  /* in the present state; the counting ends above @most */
    uint64_t then; /* at most, when @puts more keys are there */
};
int store_txn_cost(
    struct store *s, const uint8_t *txn, size_t n, uint64_t puts, uint64_t most, struct txn_cost *out);

uint64_t store_applied(const struct store *s);  /* raft index of the last applied entry */
uint64_t store_revision(const struct store *s); /* +1 for each txn that changed something */
/* Bytes of the file that have ever been in use: an upper bound of the state's size. Cheap. */
size_t store_bytes(const struct store *s);
/* Bytes that can still be put before the quota; what the leader checks (all voters') before it proposes. */
size_t store_headroom(const struct store *s);
uint64_t store_keys(const struct store *s); /* keys present */

struct store_stats {
    size_t quota;
    unsigned watches, paused; /* open ones, and those of them whose receiver is slower than the changes */
    uint64_t cut;             /* watches that were closed because the history that they needed was gone */
    uint64_t events;          /* changes of keys that watches could see, */
    uint64_t delivered;       /* and how often one was given to a watch */
    uint64_t history_events;  /* that a watch can go back to, */
    size_t history_bytes;     /* and what they take */
};
/* Since store_open. */
void store_stats(const struct store *s, struct store_stats *out);

/* --- reading --- */

struct kv {
    struct slice key, value;
    uint64_t create_revision, mod_revision;
};
/* SYM_ENOTFOUND, SYM_EIO. Slices are valid until the next call into the store. */
int store_get(struct store *s, const void *key, size_t n, struct kv *out);
/* What became of the txn with this id (its @since counts for nothing); NULL: nothing is remembered of it. Valid until
 * the next change. */
const struct txn_result *store_result(const struct store *s, const struct txn_id *id);
/* Keys that begin with @prefix and sort after @after (NULL: from the start), in order; @each non-zero stops
 * and is returned. @each may not call into the store. */
int store_list(struct store *s, struct slice prefix, const struct slice *after,
    int (*each)(void *arg, const struct kv *kv), void *arg);

/* --- watching --- */

struct event {
    struct slice key, value; /* value empty for a delete */
    bool is_delete;
    uint64_t create_revision;
    uint64_t revision; /* of the txn; events of one txn share it */
    /* A cached encoding for everyone who sends this event (the API's JSON line): filled by the first, freed
     * by the ring. */
    uint8_t *line;
    size_t line_len;
};
struct watch;
/* A run of events below the watch's prefix, oldest first, valid during the call; the events of one txn are
 * never divided between two calls. @n 0 with @status SYM_ECOMPACTED: the history that this watch needs is
 * gone (too slow, or a snapshot was installed): it has been closed by the hub; list again. The callback may
 * close this watch and open others. Return false to be paused until watch_resume (the ring keeps what it
 * can). */
typedef bool (*watch_cb)(void *arg, int status, struct event **events, unsigned n);
/* Events with revision > @after. SYM_ECOMPACTED at once when the ring no longer reaches back that far;
 * SYM_EINVAL when
 * @after lies in the future. The first delivery comes from store_pump. */
int watch_open(
    struct store *s, struct slice prefix, uint64_t after, watch_cb cb, void *arg, struct watch **out);
void watch_resume(struct watch *w);
void watch_close(struct watch *w);
/* Delivers to every watch what it has not seen. To be called from the loop after applying; true if some watch
 * has more to get (a bounded amount is delivered in one call). */
bool store_pump(struct store *s);
/* @wake is called when a watch has something to get though nothing was applied (opened on old events,
 * resumed): it sees to it that store_pump is called soon, and does not call it itself. */
void store_on_watch(struct store *s, void (*wake)(void *arg), void *arg);

/* --- snapshots --- */

struct snap;
/* Pins the present state (a read transaction). At most one at a time (SYM_EBUSY). */
int snap_begin(struct store *s, struct snap **out);
/* On the pool: the whole state as bytes: version, applied index, revision, keys, dedup records, then SHA-256
 * of all that. Deterministic. Appends to @out. SYM_ECANCELED when the store has let go of the snapshot
 * meanwhile: it was closed, another was installed, or the snapshot was older than five minutes or kept an
 * entry from fitting into the quota. */
int snap_encode(struct snap *sn, struct buf *out);
uint64_t snap_index(const struct snap *sn);
void snap_end(struct snap *sn);

/* On the pool: checks bytes from snap_encode (hostile: any bytes) and builds a fresh environment in
 * <dir>.new. SYM_ECORRUPT; SYM_EBUSY while another is there for the same folder. */
struct install;
int install_prepare(const struct store_config *cfg, const uint8_t *data, size_t n, struct install **out);
uint64_t install_index(const struct install *in);
/* On the loop: swaps it in, unless this store has applied at least as much already (then nothing changes).
 * Every watch gets SYM_ECOMPACTED at the next pump. Frees @in. */
int store_install(struct store *s, struct install *in);
void install_abandon(struct install *in);
/* Only reads the header: the applied index of a snapshot; 0 if it is none. */
uint64_t snap_peek_index(const uint8_t *data, size_t n);
/* Walks the keys of a snapshot without building anything (backup files): @each non-zero stops. SYM_ECORRUPT.
 */
int snap_each(const uint8_t *data, size_t n, int (*each)(void *arg, const struct kv *kv), void *arg);

#endif
