/* The inside of a rnode, shared by the files that make it up. */
#ifndef SYM_RAFT_NODE_INT_H
#define SYM_RAFT_NODE_INT_H

#include "raft/fsm.h"
#include "raft/guard.h"
#include "raft/health.h"
#include "raft/logdir.h"
#include "raft/node.h"
#include "raft/propose.h"
#include "raft/reads.h"
#include "raft/submit.h"

#include <raft.h>
#include <raft/uv.h>

enum {
    NODE_TICK_MS = 25,
    NODE_GIVEN_UP_MS = 60 * 1000,
    NODE_NOTICE_MS = 1, /* under load the next entries carry it sooner */
    NODE_PEERS_MAX = 512,
    NODE_ADDRESS_MAX = sizeof((struct rnode_server *)0)->address,
    NODE_SNAPSHOT_ENTRIES = 16384,  /* rule 14 */
    NODE_SNAPSHOT_BYTES = 16 << 20, /* or as much as the state has, up to the most */
    NODE_SNAPSHOT_BYTES_MOST = 64 << 20,
    /* When nothing was applied for so long a snapshot holds nobody up, and frees the log's memory: for so many bytes
     * of it, or an eighth of the state. So many of them stay, unless somebody is away, who may come back for more. */
    NODE_QUIET_MS = 2000,
    NODE_QUIET_BYTES = 1 << 20,
    NODE_QUIET_TRAILING_BYTES = 1 << 20,
    NODE_TRAILING_ENTRIES = 8192,
    NODE_TRAILING_BYTES = 4 << 20,
    NODE_LACKING_BYTES = 48 << 20,  /* what a member that is there has yet to get stays up to here */
    NODE_LOG_BYTES_MAX = 160 << 20, /* beyond this the leader waits for its snapshot */
    NODE_HEADROOM_FLOOR = 16 << 20, /* of the store: what still fits when writes are refused */
};

/* Another manager, as this one knows it. */
struct other {
    uint64_t id;
    bool member;  /* it is, or was, in the configuration */
    bool removed; /* it is no more: never listened to again */
    bool disk_low, store_low;
    uint64_t disk_free, headroom;
    uint64_t info_at;  /* uv_now of its last KIND_INFO, 0: none */
    uint64_t heard_at; /* and of any frame: keeps one that is in no configuration yet */
};

/* Something to be said from the loop, later. */
struct later {
    STAILQ_ENTRY(later) link;
    rnode_cb cb;
    void *arg;
    int status;
    char text[256];
};

/* The one membership change and the one transfer that can be under way; libraft keeps pointers to the
 * requests. */
struct member {
    struct raft_change change;
    struct raft_transfer transfer;
    struct raft_barrier barrier;
    bool opening; /* the barrier that opens our term is under way */
    enum member_what { MEMBER_NONE, MEMBER_ADD, MEMBER_ASSIGN, MEMBER_REMOVE } what;
    bool submitted; /* libraft has it */
    uint64_t id;
    char *address;
    int role;
    uint64_t deadline;
    rnode_cb cb;
    void *arg;
    uint64_t target; /* of the transfer, 0: none */
    uint64_t transfer_deadline;
    rnode_cb transfer_cb;
    void *transfer_arg;
};

struct rnode {
    struct rnode_config cfg;
    struct store_config store_config;
    char *address, *dir, *cluster_id, *store_dir;
    uv_loop_t *loop;
    struct raft raft;
    struct raft_io io;
    struct raft_uv_transport transport;
    struct fsm fsm;
    struct guard guard;
    struct propose propose;
    struct submit submit;
    struct reads reads;
    struct health health;
    struct member member;
    struct peers *peers;
    int lock_fd;

    uv_prepare_t prepare; /* both flush, after raft_uv's own have completed libraft's requests */
    uv_check_t check;
    uv_idle_t idle; /* active: do not sleep, there is something to flush */
    uv_timer_t tick;
    uv_timer_t failover;
    uv_timer_t notice; /* active: then those are told who do not know by then that @untold is committed */
    uint64_t untold;
    unsigned n_handles; /* open */
    bool kicked;

    struct other others[NODE_PEERS_MAX];
    unsigned n_others;
    unsigned snapshot_wait; /* milliseconds, between a snapshot that was given up and the next */
    STAILQ_HEAD(laters, later) laters;
    STAILQ_HEAD(sends, send) failed_sends; /* to be answered by the next flush */

    /* As they were when they were last looked at. */
    unsigned short state;
    uint64_t term, leader, applied;
    uint64_t applied_at; /* uv_now when that last rose */
    uint64_t config_index, config_pending;
    unsigned config_n;
    bool changed; /* tell on_change */
    bool told_removed;
    int may; /* of this flush: may the leader propose? */
    bool low_disk, low_store;

    uint64_t random;
    bool recovered; /* nobody is added before there is a snapshot past this index: see logdir.h */
    uint64_t recovered_at;
    uint64_t behind_until; /* applied: see rnode_is_behind */
    uint64_t info_sent_at;
    unsigned news;       /* peers_news as it was told on */
    uint64_t down_since; /* failover: uv_now when the leader's connection went */
    uint64_t elections;
    uint64_t leaders;        /* terms with a leader that were seen to begin */
    uint64_t given_up;       /* snapshots, as last looked at */
    uint64_t snapshot_index; /* likewise */
    uint64_t snapshot_after; /* uv_now */
    uint64_t snapshot_bytes; /* a snapshot is due with that many bytes of log since the last, */
    uint64_t quiet_bytes;    /* and with these when it is quiet */

    enum { NODE_RUNNING, NODE_STOP_ASKED, NODE_HANDING_OVER, NODE_HANDED_OVER, NODE_CLOSING } phase;
    bool raft_open, peers_open, health_open, failed_start;
    void (*stopped)(void *arg);
    void *stopped_arg;
};

/* node.c */
uint64_t node_quota(const struct rnode *n);
/* How long a leader whose state has so many bytes waits for a follower to have installed its snapshot before it
 * sends it again: 5 s, and what a slow disk or network takes for it, but no more than an hour. */
unsigned node_install_ms(uint64_t state);
void node_kick(struct rnode *n);
void node_later(struct rnode *n, rnode_cb cb, void *arg, int status); /* with err_msg() as it is now */
void node_look(struct rnode *n);                                      /* has anything changed? */
void node_fatal(void *arg, const char *what, int rv) __attribute__((noreturn));
uint64_t node_random(struct rnode *n, unsigned below);

/* others.c: the other managers, and what peers tells of them */
int others_open(struct rnode *n, const struct rnode_config *cfg);
const struct other *others_find(const struct rnode *n, uint64_t id);
const struct raft_server *node_server(
    const struct rnode *n, uint64_t id); /* NULL if it is in no configuration */
void others_sync(struct rnode *n);       /* with the configuration */
/* Where @s is, as far as it is known here, to @out. The address of raft's configuration is the one that it was
 * added with, and stays. */
void others_address(const struct rnode *n, const struct raft_server *s, char out[NODE_ADDRESS_MAX]);
void others_forget_strangers(struct rnode *n);
void others_send(struct rnode *n, uint64_t id, uint8_t kind, const void *data, size_t len); /* a copy */
void others_send_infos(struct rnode *n);
/* Passes on where members are, when more of that is known than before. */
void others_send_news(struct rnode *n);
bool others_store_low(const struct rnode *n); /* ours */

/* wiring.c: what propose, submit and reads need of the node */
extern const struct propose_ops wiring_propose;
extern const struct submit_ops wiring_submit;
extern const struct reads_ops wiring_reads;
/* A majority of the voters is this node and such that are @good. */
bool wiring_voters(const struct rnode *n, bool (*good)(const struct rnode *n, uint64_t id));
bool wiring_is_heard(const struct rnode *n, uint64_t id);
void wiring_look_for_room(struct rnode *n);
int wiring_may_propose(struct rnode *n);

/* disk.c: raft_uv without its network, for the node and offline */
int disk_open(struct raft_io *io, struct raft_uv_transport *transport, uv_loop_t *loop, const char *dir);
/* What libraft says of a failure while it reads the folder, as SYM_E*. */
int disk_error(const char *dir, const struct logdir *log, int rv, const char *errmsg);

/* sender.c: raft's messages to frames and back */
int sender_send(
    struct raft_io *io, struct raft_io_send *req, const struct raft_message *m, raft_io_send_cb cb);
void sender_receive(struct rnode *n, uint64_t id, uint8_t *data, size_t len);
void sender_flush(struct rnode *n);

/* member.c */
void member_flush(struct rnode *n);
void member_close(struct rnode *n);

/* failover.c: the leader's process is gone, not just slow */
void failover_down(struct rnode *n, uint64_t id);
void failover_init(struct rnode *n);

#endif
