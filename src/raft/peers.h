/* The managers' transport: framed messages between raft ids over mutual TLS.
 *
 * Each side sends on connections that it opened itself and receives on those it accepted, so two managers
 * have two connections. A connection opens with a hello (format version, cluster id, from id, to id, our raft
 * address and how often that has changed); the acceptor checks it against the certificate (authorize) and answers with a welcome or a
 * refusal with a reason. Large frames travel in pieces of 64 KiB so that small ones overtake them. Every
 * queue is bounded. Frames to one id keep their order within a class: urgent, normal, and those above
 * PEER_BULK whatever they were sent as. Knows nothing of raft: node.c gives the kinds their meaning.
 */
#ifndef SYM_RAFT_PEERS_H
#define SYM_RAFT_PEERS_H

#include "net/stream.h"

struct peers;

enum {
    PEER_FRAME_MAX = 1 << 30, /* a snapshot is the largest */
    PEER_BULK = 4 << 20,      /* larger frames go last, and only one at a time is queued for an id */
};

struct peers_config {
    uv_loop_t *loop;
    uint64_t self;
    const char *cluster_id;
    const char *bind_addr;
    uint16_t port;       /* 0: a free one, see peers_port */
    const char *address; /* our advertised host:port */
    uint64_t moves;      /* how often that has changed: only grows, see peers_locate */
    /* How often this member has started: only grows. A peer remembers the highest it saw from an id and
     * refuses a lower one, and the same one of another process (SYM_ECONFLICT): that folder was put back from
     * an older copy. */
    uint64_t starts;
    uint64_t nonce; /* tells this start from others with the same count; 0: one of this process */
    /* Where that memory is kept, so that it outlasts a restart of all (starts.h); NULL: nowhere. Read by
     * peers_new (SYM_ECORRUPT), written, on the loop, when a member has started again: before it is let in,
     * but one that cannot be written keeps nobody out. */
    const char *starts_file;
    void *arg;
    /* May the holder of this certificate act as raft id @id? Also for the servers that we connect to. 0, or
     * SYM_EDENIED (not that node, wrong role), SYM_ENOTFOUND (it was removed: the refusal tells it so). */
    int (*authorize)(void *arg, uint64_t id, const struct tls_peer *peer);
    /* A whole frame from @id. @data is malloc'd and belongs to the callee. */
    void (*on_frame)(void *arg, uint64_t id, uint8_t kind, uint8_t *data, size_t n);
    /* Our connection to @id is usable / has ended. on_down is prompt when the peer's process dies. */
    void (*on_up)(void *arg, uint64_t id);
    void (*on_down)(void *arg, uint64_t id);
    /* A peer refused us: SYM_ENOTFOUND when it says that we were removed, SYM_ECONFLICT: our folder is an
     * older copy. */
    void (*on_refused)(void *arg, uint64_t id, int code, const char *reason);
};

int peers_new(const struct peers_config *cfg, const char *cert, const struct key *key, const char *ca,
    struct peers **out);
uint16_t peers_port(const struct peers *p);
/* New connections use these from now on. */
int peers_set_tls(struct peers *p, const char *cert, const struct key *key, const char *ca);
/* Cuts the connections whose certificate none of the CAs in @ca has signed and whose owner is not in the state, as
 * @knows says: what somebody opened who had got at a CA's key must not outlive that CA. Those of members stay. */
void peers_recheck(struct peers *p, const char *ca,
    bool (*knows)(void *arg, uint64_t id, const struct tls_peer *peer), void *arg);
/* Makes @id known under @address and keeps a connection to it, with backoff (50 ms to 2 s, jitter); a changed
 * address reconnects. SYM_EINVAL for an address that is none, or our own id. peers_forget drops it, its
 * connections and its queue (SYM_ECANCELED); on_down does not fire for it. If it comes back it is authorized
 * anew. Neither calls back from inside. */
int peers_set(struct peers *p, uint64_t id, const char *address);
/* Where @id has said itself, somewhere, that it is now: from then on it is looked for there and nowhere else,
 * also when peers_set comes later or says otherwise. @moves is how often its address has changed; what is not
 * above the one that is known is old, and ignored, 0 therefore always. Its hello tells the same; as long as it is
 * connected and says another address itself, it is not there: what is there is a copy of its folder, and this is
 * ignored, too; and what was believed of that kind while it was cut off ends when it is back. A wrong address does no
 * harm but that it is not found: who answers there has to have its certificate. SYM_EINVAL as for peers_set. */
int peers_locate(struct peers *p, uint64_t id, const char *address, uint64_t moves);
/* The address that @id has after *@moves changes of it, as it is known here; NULL: none is known to have been. Valid until
 * the loop runs on. peers_news is another number when something of that kind is known that was not before. */
const char *peers_moved(const struct peers *p, uint64_t id, uint64_t *moves);
unsigned peers_news(const struct peers *p);
/* Where @id is looked for, NULL if it is not. Valid until the loop runs on. */
const char *peers_address(const struct peers *p, uint64_t id);
/* We have another address ourselves: the others are told, by connecting to them anew. SYM_EINVAL, SYM_ENOMEM. */
int peers_move(struct peers *p, const char *address, uint64_t moves);
void peers_forget(struct peers *p, uint64_t id);
bool peers_is_up(const struct peers *p, uint64_t id);
/* uv_now of the last frame from @id, 0 if none. */
uint64_t peers_last_heard(const struct peers *p, uint64_t id);
/* The advertised address that @id gave when it connected to us, NULL if it never has: how a new member learns
 * where the leader that speaks to it is. Valid until the loop runs on. */
const char *peers_heard_address(const struct peers *p, uint64_t id);

typedef void (*peers_sent)(void *arg, int status);
/* Sends one frame made of @n_bufs pieces (valid until @sent). @sent fires exactly once, from the loop, never
 * inside this call: 0 once the bytes are handed to the connection (which copies), else SYM_ECONNECT,
 * SYM_EBUSY (queue full: 16 MiB or 4096 frames, or a second frame above PEER_BULK), SYM_ECANCELED,
 * SYM_ETOOBIG, SYM_ENOMEM. When there is no connection the frame fails at once. @sent NULL: the pieces are
 * copied and failure is silent.
 * @urgent goes before what is queued (votes, answers, reads; not AppendEntries, whose order matters). */
void peers_send(struct peers *p, uint64_t id, uint8_t kind, bool urgent, const uv_buf_t *bufs,
    unsigned n_bufs, peers_sent sent, void *arg);

/* Every pending send completes with SYM_ECANCELED, connections close, then @done; memory is freed after it.
 */
void peers_close(struct peers *p, void (*done)(void *arg), void *arg);

#endif
