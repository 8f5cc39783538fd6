#include "raft/node_int.h"

#include "base/err.h"
#include "base/log.h"
#include "raft/kinds.h"
#include "raft/where.h"

#include <stdlib.h>
#include <string.h>

enum { INFO_VERSION = 1, INFO_DISK_LOW = 1, INFO_STORE_LOW = 2, STRANGER_MS = 10000 };

static struct other *find_other(struct rnode *n, uint64_t id)
{
    for (unsigned i = 0; i < n->n_others; i++) {
        if (n->others[i].id == id) {
            return &n->others[i];
        }
    }
    return NULL;
}

const struct other *others_find(const struct rnode *n, uint64_t id)
{
    return find_other((struct rnode *)n, id);
}

static void drop_other(struct rnode *n, struct other *o)
{
    peers_forget(n->peers, o->id);
    *o = n->others[--n->n_others];
}

static struct other *add_other(struct rnode *n, uint64_t id)
{
    struct other *o = find_other(n, id);
    if (o == NULL && n->n_others == NODE_PEERS_MAX) {
        /* One removed long ago makes room: its id is refused by what the state says of it. */
        for (unsigned i = 0; i < n->n_others && n->n_others == NODE_PEERS_MAX; i++) {
            if (n->others[i].removed) {
                drop_other(n, &n->others[i]);
            }
        }
    }
    if (o == NULL && n->n_others < NODE_PEERS_MAX) {
        o = &n->others[n->n_others++];
        *o = (struct other){.id = id};
    }
    return o;
}

const struct raft_server *node_server(const struct rnode *n, uint64_t id)
{
    const struct raft_configuration *c = &n->raft.configuration;
    for (unsigned i = 0; i < c->n; i++) {
        if (c->servers[i].id == id) {
            return &c->servers[i];
        }
    }
    return NULL;
}

static void tell_removed(struct rnode *n, int code, const char *reason)
{
    if (!n->told_removed && n->phase == NODE_RUNNING) {
        n->told_removed = true;
        log_warn("raft: %s", reason);
        n->cfg.on_removed(n->cfg.arg, code, reason);
    }
}

/* Rule 11: libraft does not tell a removed member, nor send it the entry that removes it. Its connections are
 * cut here, and when it comes back it is told. */
static void remove_others(struct rnode *n)
{
    if (n->raft.configuration_uncommitted_index != 0 || n->raft.configuration.n == 0) {
        return;
    }
    for (unsigned i = 0; i < n->n_others; i++) {
        struct other *o = &n->others[i];
        if (o->member && !o->removed && node_server(n, o->id) == NULL) {
            log_info("manager %llu is no member any more", (unsigned long long)o->id);
            o->removed = true;
            peers_forget(n->peers, o->id);
        }
    }
}

/* The address that @s was added with; what follows a slash has made it another one than that of somebody who has
 * moved away (member.c). */
static void added_address(const struct raft_server *s, char out[NODE_ADDRESS_MAX])
{
    snprintf(out, NODE_ADDRESS_MAX, "%.*s", (int)strcspn(s->address, "/"), s->address);
}

void others_address(const struct rnode *n, const struct raft_server *s, char out[NODE_ADDRESS_MAX])
{
    const char *now = s->id == n->cfg.id ? n->address : peers_address(n->peers, s->id);
    if (now != NULL) {
        snprintf(out, NODE_ADDRESS_MAX, "%s", now);
    } else {
        added_address(s, out);
    }
}

int rnode_locate(struct rnode *n, uint64_t id, const char *address, uint64_t moves)
{
    if (!n->peers_open || n->phase == NODE_CLOSING) {
        return err_setf(SYM_ECANCELED, "this node is stopping");
    }
    if (id != n->cfg.id) {
        return peers_locate(n->peers, id, address, moves);
    }
    char *copy = strdup(address);
    int rv = copy == NULL ? err_setf(SYM_ENOMEM, "out of memory") : peers_move(n->peers, address, moves);
    if (rv != 0) {
        free(copy);
        return rv;
    }
    free(n->address);
    n->address = copy;
    n->cfg.address = copy;
    return 0;
}

void others_sync(struct rnode *n)
{
    const struct raft_configuration *c = &n->raft.configuration;
    char address[NODE_ADDRESS_MAX];
    for (unsigned i = 0; i < c->n; i++) {
        const struct raft_server *s = &c->servers[i];
        if (s->id == n->cfg.id) {
            continue;
        }
        struct other *o = add_other(n, s->id);
        if (o == NULL) {
            continue;
        }
        o->member = true;
        o->removed = false;
        added_address(s, address);
        if (peers_set(n->peers, s->id, address) != 0) {
            log_error("manager %llu: %s", (unsigned long long)s->id, err_msg());
        }
    }
    remove_others(n);
}

/* One that speaks to us and is in no configuration that we know: the leader of the cluster that we are
 * joining. To answer it we have to connect to it. */
static void meet(struct rnode *n, uint64_t id)
{
    struct other *o = find_other(n, id);
    if (o == NULL) {
        const char *address = peers_heard_address(n->peers, id);
        o = address == NULL ? NULL : add_other(n, id);
        if (o != NULL && peers_set(n->peers, id, address) != 0) {
            log_warn("manager %llu: %s", (unsigned long long)id, err_msg());
        }
    }
    if (o != NULL) {
        o->heard_at = uv_now(n->loop);
    }
}

void others_forget_strangers(struct rnode *n)
{
    uint64_t now = uv_now(n->loop);
    for (unsigned i = n->n_others; i-- > 0;) {
        struct other *o = &n->others[i];
        if (!o->member && o->id != n->leader && now - o->heard_at > STRANGER_MS) {
            drop_other(n, o);
        }
    }
}

/* Only frames that are copied. */
void others_send(struct rnode *n, uint64_t id, uint8_t kind, const void *data, size_t n_bytes)
{
    if (n->peers_open) {
        uv_buf_t piece = uv_buf_init((char *)data, (unsigned)n_bytes);
        bool urgent =
            kind == KIND_CONFIRM || kind == KIND_CONFIRMED || kind == KIND_ASK || kind == KIND_INDEX;
        peers_send(n->peers, id, kind, urgent, &piece, 1, NULL, NULL);
    }
}

static uint64_t headroom_floor(const struct rnode *n)
{
    uint64_t quota = node_quota(n);
    return quota / 8 < NODE_HEADROOM_FLOOR ? quota / 8 : NODE_HEADROOM_FLOOR;
}

bool others_store_low(const struct rnode *n)
{
    return store_headroom(n->cfg.store) < headroom_floor(n);
}

static void send_info(struct rnode *n, uint64_t id)
{
    struct buf bytes = {0};
    struct wr w = wr_init(&bytes);
    wr_u8(&w, INFO_VERSION);
    wr_u8(&w, (n->health.low ? INFO_DISK_LOW : 0) | (others_store_low(n) ? INFO_STORE_LOW : 0));
    wr_u64(&w, n->health.free);
    wr_u64(&w, store_headroom(n->cfg.store));
    if (!w.bad) {
        others_send(n, id, KIND_INFO, buf_data(&bytes), bytes.len);
    }
    buf_free(&bytes);
}

void others_send_infos(struct rnode *n)
{
    n->info_sent_at = uv_now(n->loop);
    for (unsigned i = 0; i < n->n_others; i++) {
        if (peers_is_up(n->peers, n->others[i].id)) {
            send_info(n, n->others[i].id);
        }
    }
}

/* Two that have moved at the same time know of each other only by a third. Whoever goes by a wrong address finds nobody
 * there who has the certificate. */
static void send_where(struct rnode *n, uint64_t to)
{
    struct buf bytes = {0};
    struct wr w = wr_init(&bytes);
    for (unsigned i = 0; i < n->n_others; i++) {
        uint64_t id = n->others[i].id, moves;
        const char *address = peers_moved(n->peers, id, &moves);
        if (id != to && address != NULL && n->others[i].member) {
            where_put(&w, id, moves, address);
        }
    }
    if (!w.bad && bytes.len > 0) {
        others_send(n, to, KIND_WHERE, buf_data(&bytes), bytes.len);
    }
    buf_free(&bytes);
}

void others_send_news(struct rnode *n)
{
    if (n->news == peers_news(n->peers)) {
        return;
    }
    n->news = peers_news(n->peers);
    for (unsigned i = 0; i < n->n_others; i++) {
        if (peers_is_up(n->peers, n->others[i].id)) {
            send_where(n, n->others[i].id);
        }
    }
}

static void on_where(struct rnode *n, const uint8_t *data, size_t len)
{
    struct rd r = rd_init(data, len);
    struct where where;
    while (where_next(&r, &where)) {
        bool known = where.id != n->cfg.id && node_server(n, where.id) != NULL;
        if (known && peers_locate(n->peers, where.id, where.address, where.moves) != 0) {
            log_warn("manager %llu: %s", (unsigned long long)where.id, err_msg());
        }
    }
}

static void on_info(struct rnode *n, uint64_t id, const uint8_t *data, size_t len)
{
    struct other *o = find_other(n, id);
    struct rd r = rd_init(data, len);
    uint8_t version = rd_u8(&r);
    uint8_t flags = rd_u8(&r);
    uint64_t disk_free = rd_u64(&r);
    uint64_t headroom = rd_u64(&r);
    if (o == NULL || r.bad || version < INFO_VERSION) {
        return; /* a later version may have more at the end */
    }
    o->disk_low = (flags & INFO_DISK_LOW) != 0;
    o->store_low = (flags & INFO_STORE_LOW) != 0;
    o->disk_free = disk_free;
    o->headroom = headroom;
    o->info_at = uv_now(n->loop);
    node_kick(n);
}

/* --- what peers tells --- */

static int on_authorize(void *arg, uint64_t id, const struct tls_peer *peer)
{
    struct rnode *n = arg;
    const struct other *o = others_find(n, id);
    if (o != NULL && o->removed) {
        return err_setf(
            SYM_ENOTFOUND, "manager %llu has been removed from the cluster", (unsigned long long)id);
    }
    return n->cfg.authorize(n->cfg.arg, id, peer);
}

/* A certificate outlives its owner's membership, and the state here may be too old to know of that (authorize):
 * whoever is not in the configuration is heard only where this one may be the one that is behind. */
static bool is_heard(const struct rnode *n, uint64_t id, uint8_t kind)
{
    const struct raft_configuration *c = &n->raft.configuration;
    uint64_t leader = rnode_leader(n);
    for (unsigned i = 0; i < c->n; i++) {
        if (c->servers[i].id == id) {
            return true;
        }
    }
    return c->n == 0 || leader == id || (leader == 0 && kind == KIND_RAFT);
}

static void on_frame(void *arg, uint64_t id, uint8_t kind, uint8_t *data, size_t len)
{
    struct rnode *n = arg;
    const struct other *o = others_find(n, id);
    if (n->phase == NODE_CLOSING || (o != NULL && o->removed) || !is_heard(n, id, kind)) {
        free(data);
        return;
    }
    meet(n, id);
    switch (kind) {
    case KIND_RAFT:
        sender_receive(n, id, data, len); /* takes the bytes over */
        return;
    case KIND_INFO:
        on_info(n, id, data, len);
        break;
    case KIND_WHERE:
        on_where(n, data, len);
        break;
    case KIND_SUBMIT:
        submit_on_txns(&n->submit, id, data, len);
        break;
    case KIND_RESULT:
        submit_on_results(&n->submit, id, data, len);
        break;
    default:
        reads_on_frame(&n->reads, id, kind, data, len);
        break;
    }
    free(data);
}

static void on_up(void *arg, uint64_t id)
{
    struct rnode *n = arg;
    if (n->phase != NODE_CLOSING) {
        guard_connected(&n->guard, id);
        send_info(n, id);
        send_where(n, id);
        n->changed = true;
        node_look(n);
    }
}

static void on_down(void *arg, uint64_t id)
{
    struct rnode *n = arg;
    if (n->phase != NODE_CLOSING) {
        submit_down(&n->submit, id);
        n->changed = true;
        failover_down(n, id);
        node_look(n);
    }
}

static void on_refused(void *arg, uint64_t id, int code, const char *reason)
{
    struct rnode *n = arg;
    if (code == SYM_ENOTFOUND || code == SYM_ECONFLICT) {
        tell_removed(n, code, reason);
    } else {
        log_warn("manager %llu refuses this one: %s", (unsigned long long)id, reason);
    }
}

int others_open(struct rnode *n, const struct rnode_config *cfg)
{
    struct peers_config peers = {
        .loop = cfg->loop,
        .self = cfg->id,
        .cluster_id = n->cluster_id,
        .bind_addr = cfg->bind_addr,
        .port = cfg->port,
        .address = n->address,
        .moves = cfg->moves,
        .starts = cfg->starts,
        .arg = n,
        .authorize = on_authorize,
        .on_frame = on_frame,
        .on_up = on_up,
        .on_down = on_down,
        .on_refused = on_refused,
    };
    char starts_file[4096];
    snprintf(starts_file, sizeof starts_file, "%s/starts", n->dir);
    peers.starts_file = starts_file;
    int rv = peers_new(&peers, cfg->cert, cfg->key, cfg->ca, &n->peers);
    n->peers_open = rv == 0;
    return rv;
}
