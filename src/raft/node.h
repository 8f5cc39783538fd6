/* One member of the raft cluster: libraft with the guard, our transport, the store as its state machine, the
 * queue of proposals (group commit) and linearizable reads. Only src/raft includes <raft.h>; here are our own
 * names.
 *
 * Everything runs on the loop thread. Callbacks never fire inside the call that was given them.
 * A fault that libraft cannot survive (rules 3 and 4) is logged and ends the process with _exit(70).
 */
#ifndef SYM_RAFT_NODE_H
#define SYM_RAFT_NODE_H

#include "base/err.h"
#include "base/histogram.h"
#include "raft/disk_stats.h"
#include "raft/peers.h"
#include "store/store.h"

enum { RNODE_ELECTION_MS = 400, RNODE_HEARTBEAT_MS = 50 };

enum raft_role { ROLE_STANDBY, ROLE_VOTER, ROLE_SPARE };
enum rnode_state { STATE_FOLLOWER, STATE_CANDIDATE, STATE_LEADER, STATE_DOWN };

struct rnode;

struct rnode_config {
    uv_loop_t *loop;
    uint64_t id;
    const char *address; /* advertised host:port of the raft port */
    uint64_t moves;      /* how often that has changed, see peers.h */
    const char *bind_addr;
    uint16_t port;
    const char *dir; /* raft/ folder */
    struct store *store;
    const struct store_config
        *store_config; /* as store_open had it: an installed snapshot is built with it; copied */
    const char *cluster_id;
    const char *cert;
    const struct key *key;
    const char *ca;
    uint64_t starts;       /* see peers.h */
    unsigned election_ms;  /* 0: RNODE_ELECTION_MS */
    unsigned heartbeat_ms; /* 0: RNODE_HEARTBEAT_MS */
    uint64_t
        disk_floor; /* free bytes below which writes are refused; 0: 64 MiB. Also a reserve file of 16 MiB */
    void *arg;
    int (*authorize)(void *arg, uint64_t id, const struct tls_peer *peer);
    /* Leader, term, role or membership has changed (never more often than once a loop iteration). */
    void (*on_change)(void *arg);
    /* Entries were applied: store_pump has been called for this. */
    void (*on_applied)(void *arg);
    /* We were told by a peer that we are no longer a member (SYM_ENOTFOUND), or that our folder is an older
     * copy (SYM_ECONFLICT). At most once. */
    void (*on_removed)(void *arg, int code, const char *reason);
};

/* First start of the first member: writes term 1 and a configuration of this one voter. SYM_EEXIST if there
 * is a log. */
int rnode_bootstrap(const char *dir, uint64_t id, const char *address);
/* Offline, on one survivor: makes it the only voter, with what its log and its state (@store: as store_open
 * takes it; not open now) hold, in a later term. A state that is ahead of the log is kept as a snapshot, and
 * the log begins after it. Blocks. Killed at any moment, it leaves a folder that starts as it did before, or recovered; it may
 * be called again. SYM_ENOTFOUND if there is no log, SYM_EINUSE, and as rnode_start. */
int rnode_recover(const char *dir, const struct store_config *store, uint64_t id, const char *address);

/* Loads the log and starts. SYM_ECORRUPT names the file that does not check and what to do; nothing is
 * repaired. SYM_EINUSE when another process holds the folder. */
int rnode_start(const struct rnode_config *cfg, struct rnode **out);
/* Hands leadership over first when it can (at most one election timeout), completes everything pending with
 * SYM_ECANCELED (a txn that was under way: SYM_EUNKNOWN), then @done; the node is freed after it. Once. */
void rnode_stop(struct rnode *n, void (*done)(void *arg), void *arg);

typedef void (*rnode_txn_cb)(void *arg, int status, const struct txn_result *result);
/* Proposes an encoded txn (copied). On a follower it is passed on to the leader; a leadership change in
 * between is retried while the outcome is known, and through the txn's id also when it is not, until
 * @timeout_ms (0: 5000). @status: 0 (see result->status), SYM_EUNKNOWN (no answer in time: may have been applied);
 * and surely not applied: SYM_ENOQUORUM, SYM_ENOSPACE, SYM_EBUSY (too much is under way, here at once or on the
 * leader for all of its time), SYM_ENOMEM (not taken), SYM_ECANCELED. A txn without an id is given one of this
 * process. */
void rnode_submit(
    struct rnode *n, const uint8_t *txn, size_t len, uint64_t timeout_ms, rnode_txn_cb cb, void *arg);

typedef void (*rnode_cb)(void *arg, int status);
/* @status 0: the local store now holds everything that was acknowledged anywhere before this call (ReadIndex:
 * a confirmation round that began after the call, on the leader; a follower asks it and waits to have applied
 * that far). SYM_ENOQUORUM after @timeout_ms (0: 1500), SYM_EBUSY, SYM_ENOMEM, SYM_ECANCELED. */
void rnode_read(struct rnode *n, uint64_t timeout_ms, rnode_cb cb, void *arg);

/* Where manager @id is now, as it has said itself: peers_locate. For our own id: peers_move. */
int rnode_locate(struct rnode *n, uint64_t id, const char *address, uint64_t moves);

/* Membership, on the leader only (SYM_ENOTLEADER): one at a time (SYM_EBUSY). add: as spare;
 * SYM_EEXIST if the id is known, or another is at @address. */
void rnode_add(struct rnode *n, uint64_t id, const char *address, rnode_cb cb, void *arg);
void rnode_assign(struct rnode *n, uint64_t id, enum raft_role role, rnode_cb cb, void *arg);
void rnode_remove(struct rnode *n, uint64_t id, rnode_cb cb, void *arg);
/* @id 0: the most caught-up voter. Done when the new leader is known here; SYM_ETIMEOUT. */
void rnode_transfer(struct rnode *n, uint64_t id, rnode_cb cb, void *arg);

struct rnode_server {
    uint64_t id;
    char address[280]; /* where it is looked for; our own: where we are */
    enum raft_role role;
    bool is_self, up;     /* our connection to it stands and it was heard of within an election timeout */
    uint64_t match_index; /* leader only, else 0 */
    uint64_t silent_ms;   /* since the last frame from it; UINT64_MAX: none came yet; ourselves: 0 */
    uint64_t disk_free;   /* as it last told us; 0 unknown */
};
struct rnode_status {
    enum rnode_state state;
    uint64_t id, leader, term; /* leader 0: unknown */
    uint64_t last_index, commit_index, applied_index, snapshot_index;
    uint64_t last_term; /* of the entry at last_index; 0: not known */
    uint64_t log_bytes; /* untrimmed log held in memory */
    bool behind;        /* see rnode_is_behind */
    bool has_quorum; /* leader: a majority answered within an election timeout; follower: the leader is known
                      */
    bool changing;   /* a membership change is under way */
    bool no_space;   /* writes are refused for want of disk, here or on a voter */
    unsigned n_servers;
    struct rnode_server servers[64];
};
void rnode_status(const struct rnode *n, struct rnode_status *out);
/* The local state may be older than what this node has served before it was started: it was discarded after the
 * machine went down (store_open), made anew from the last snapshot, and what the log holds behind that has not been
 * applied again. Over when it has, for which a quorum is needed. */
bool rnode_is_behind(const struct rnode *n);
uint64_t rnode_leader(const struct rnode *n);
bool rnode_is_leader(const struct rnode *n); /* and has applied its own term's first entry */
struct peers *rnode_peers(struct rnode *n);
/* Takes a snapshot now (tests, backup). */
void rnode_snapshot(struct rnode *n);
/* Since rnode_start; times are in histograms of nanoseconds. */
struct rnode_stats {
    uint64_t submitted, forwarded, packs, pack_txns, reads, read_rounds, snapshots, elections;
    uint64_t leaders;     /* terms with a leader, another or the same, that were seen to begin */
    uint64_t read_errors; /* reads of ours without an answer */
    /* How our txns ended, by -status (SYM_E*); 0: applied, or conflicts: a compare did not hold. */
    uint64_t ended[SYM_ERR_MAX], conflicts;
    uint64_t txns_waiting, txn_bytes_waiting; /* on the leader, for the next entry */
    uint64_t txns_pending, reads_pending;     /* begun at this node and not answered */
    struct disk_stats disk;
    struct histogram commits;   /* on the leader: from an entry's being proposed to its being applied here */
    struct histogram pool_wait; /* what the thread pool had a job wait, looked at about once a second */
};
void rnode_stats(const struct rnode *n, struct rnode_stats *out);

#endif
