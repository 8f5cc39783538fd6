/* What the files of the users' keys share (api*.c): one of them routes, and each of the others does one job. Private. */
#ifndef SYM_DAEMON_API_IMPL_H
#define SYM_DAEMON_API_IMPL_H

#include "codec/text.h"
#include "crypto/crypto.h"
#include "daemon/api.h"
#include "net/allowance.h"
#include "sandbox/host.h"
#include "sandbox/kv_admit.h"

enum {
    PREFIX_LEN = 4, /* "/kv/": below it live the users' keys */
    SCRATCH_KEEP = 64 << 10,
    USER_KEY_MAX = 1024,
    KEY_ROOM = PREFIX_LEN + USER_KEY_MAX + 1
};
#define API_KV_FOLDER "/kv/"

enum access { READ = 1, WRITE = 2, UNSURE = 4 };

/* One request under way. It outlives the request when the peer goes first: req is NULL then. */
struct call {
    struct api *api;
    struct http_req *req;
    TAILQ_ENTRY(call) link; /* watches, and changes that the policies are asked about */
    enum { GET_KEY, LIST_KEYS, PUT_KEY, DELETE_KEY, WATCH_KEYS } kind;
    bool pending; /* an answer from raft is due */
    /* Change: the first compare, from 0, that is not the client's. Where such a one fails, or has failed when the
     * change was tried before, a policy has to be asked; unless it is the last, @rests_on: who asks is out. */
    unsigned undecided, rests_on;
    bool identified, has_id; /* change: its Idempotency-Key has been looked at, and it has one: */
    struct txn_id id;
    bool asking;  /* change: the policies are being asked about it, */
    bool asked;   /* have been; with what it is then bound to: */
    bool decided; /* and what is on its way into the log rests on their decision */
    uint64_t old_revision, set_revision, set_count;
    unsigned unheard; /* of those that have to be: a process that leaves one out is not believed */
    /* Change: it is on its way into the log, bound to this revision of the policies; and holds only if the one before
     * it on its connection does. */
    bool in_log, follows;
    uint64_t bound;
    /* That one, and the one that holds only if this does: until it is known what comes of the latter. */
    struct call *before, *behind;
    bool undone;    /* it has come to nothing, and waits for what comes of the one behind it; */
    bool overtaken; /* something behind it has taken effect, or may have */
    bool stale_ok;
    struct watch *watch;
    bool synced;    /* watch: has been told that it has all there was when it began */
    bool paused;    /* watch: the client is slower than the changes */
    uint64_t after; /* watch: revisions up to here are known to the client; list: limit */
    bool has_after;
    uint64_t min_revision; /* what the client has seen already */
    size_t key_len, start_len;
    uint8_t *start; /* list: the key to go on after; behind @key */
    uint8_t key[];  /* with the prefix */
};

/* How often a policy has had its say from here. */
struct heard {
    char name[BOX_NAME_MAX + 1];
    uint64_t n;
};

struct api {
    struct daemon *d;
    TAILQ_HEAD(, call) watches;
    unsigned n_unsynced;
    uint64_t
        told; /* the last revision up to which every watch that was not paused had been told everything */
    uv_timer_t heartbeat;
    uint64_t policies; /* none of those set up to this revision has a word in changes of keys */
    bool lua_decides;  /* one has */
    /* While that is so: the process of the policies holds all that there are at this revision and in this number, so
     * that it may be asked from here; 0: not. */
    uint64_t set_revision, set_count;
    char own_name[64];
    struct heard heard[BOXES_MAX];
    unsigned n_heard;
    TAILQ_HEAD(, call) asking;
    struct buf scratch; /* what is built here is copied out at once, and then trimmed to SCRATCH_KEEP */
    struct allowance looks;
};

/* --- api.c --- */

/* Where a request that is a call has its on_gone. */
void call_gone(struct http_req *req);
/* Frees @c when neither its request nor an answer to it is left. */
void call_release(struct call *c);
/* Answers with the error @code and err_msg(); @hint may be NULL. */
void api_fail(struct http_req *req, int code, const char *hint);
/* What to do about @code; NULL: nothing to say. */
const char *api_hint(int code);

/* --- api_access.c: who may --- */

/* What the state has to say for a certificate to be worth anything: of its key, whose it is. That is there until its
 * owner is removed, with the owner's node id, or with the role and the name that a client certificate was issued for.
 */
struct basis {
    char key[16 + 2 * SHA256_LEN + 1];
    char owner[2 * sizeof((struct tls_peer *)NULL)->cert.cn];
};
void basis_of(const struct tls_peer *peer, struct basis *out);

bool peer_is_role(const struct tls_peer *peer, const char *role);
bool peer_is_client(const struct tls_peer *peer);
/* What who asks may do to the users' keys: of enum access. */
int api_access_of(struct daemon *d, const struct http_req *req);
/* READ or WRITE. */
int call_needs(const struct call *c);
/* Says no to who may not. */
void api_refuse(struct http_req *req);

/* --- api_read.c: keys and lists of them --- */

/* 1: given, 0: absent, SYM_EINVAL. */
int api_number_param(struct http_req *req, const char *name, uint64_t *out);
/* At most 18 digits and nothing else. */
bool api_parse_u64(const char *text, uint64_t *out);
/* Reads @name into @to behind "/kv/"; an absent one is empty. 1, 0 or an error as above. */
int api_key_param(struct http_req *req, const char *name, uint8_t *to, size_t *len);
/* Whether this store knows enough to answer: 0 or SYM_ESTATE. */
int call_check_known(const struct call *c, bool stale);
/* These begin what @c asks for, and answer it in the end: 0, or SYM_E* and then they do not. Any kind, after a look at
 * the quorum; a list. */
int call_read(struct call *c);
int call_list(struct call *c);

/* --- api_watch.c: watches --- */

int call_watch(struct call *c); /* as above */
/* Begins the answer, when the quorum has been looked at. */
void call_answer_watch(struct call *c);
/* From here on nothing is delivered. The hub has closed it already, or does now. */
void watch_drop(struct call *c);
/* Ends it for our own reasons. */
void watch_cut(struct call *c, int code);
/* Tells the idle clients that the line is alive. */
void watches_heartbeat(uv_timer_t *timer);

/* --- api_change.c: puts and deletes --- */

/* Has the change made, and answered, in the way that is right now. */
void call_begin(struct call *c);
/* The same, as soon as all before it on its connection is over. */
void call_begin_when_first(struct call *c);
/* As call_read. @admitted: what the policies have agreed to holds as long as this does; NULL: nobody was asked. */
int call_change(struct call *c, const struct kv_admitted *admitted);
/* Has Lua answer the request, once all before it is over; @c is done with. */
void call_hand_over(struct call *c);
/* True if something before @c on its connection is not over yet; *@before: if that is a change in the hands of these
 * files, else NULL. */
bool call_has_before(const struct call *c, struct call **before);
/* Looks at the Idempotency-Key: 0 or SYM_E*. */
int call_identify(struct call *c);

/* --- api_policy.c: admission by policies --- */

/* May the policies be asked from here about the change that @req is? */
bool policies_may_be_asked(const struct api *a, const struct http_req *req);
/* Asks them, and has the change made when they agree: 0; 1: this is for Lua; SYM_E*. */
int call_ask_policies(struct call *c);

#endif
