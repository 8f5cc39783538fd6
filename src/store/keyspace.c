#include "store/keyspace.h"

#include "base/err.h"

#include <string.h>

enum { NODE_LEN = 8, ROOM_TOP = DB_KEY_MAX, ROOM_BELOW = DB_KEY_MAX - NODE_LEN };
_Static_assert(ROOM_TOP + ROOM_BELOW + ROOM_BELOW > KEY_MAX, "the longest key ends in the last level");

/* What stands before a value. */
struct head {
    uint64_t create, mod;
};

bool slice_begins(struct slice s, struct slice prefix)
{
    return prefix.n == 0 || (s.n >= prefix.n && memcmp(s.p, prefix.p, prefix.n) == 0);
}

int slice_cmp(struct slice a, struct slice b)
{
    size_t n = a.n < b.n ? a.n : b.n;
    int order = n == 0 ? 0 : memcmp(a.p, b.p, n);
    return order != 0 ? order : a.n < b.n ? -1 : a.n > b.n;
}

/* An empty slice may have no address. */
static void copy(uint8_t *to, struct slice s)
{
    if (s.n > 0) {
        memcpy(to, s.p, s.n);
    }
}

static int damaged(void)
{
    err_setf(SYM_ECORRUPT, "the state holds a record that is none of ours");
    return SYM_ECORRUPT;
}

static int read_leaf(struct slice data, struct kv *out)
{
    struct head head;
    if (data.n < sizeof head || data.n - sizeof head > VALUE_MAX) {
        return damaged();
    }
    memcpy(&head, data.p, sizeof head);
    out->create_revision = head.create;
    out->mod_revision = head.mod;
    out->value = (struct slice){data.p + sizeof head, data.n - sizeof head};
    return 0;
}

static int read_node(struct slice data, uint64_t *node)
{
    if (data.n != sizeof *node) {
        return damaged();
    }
    memcpy(node, data.p, sizeof *node);
    return 0;
}

/* Big endian: nodes in the order of their numbers. */
static void put_node(uint8_t *p, uint64_t node)
{
    for (int i = NODE_LEN - 1; i >= 0; i--, node >>= 8) {
        p[i] = (uint8_t)node;
    }
}

static uint64_t get_node(const uint8_t *p)
{
    uint64_t node = 0;
    for (int i = 0; i < NODE_LEN; i++) {
        node = node << 8 | p[i];
    }
    return node;
}

/* One chunk of a key: where its record is. */
struct chunk {
    enum db_table table;
    struct slice name;
    bool full; /* the key goes on in the node that the record holds */
    uint8_t bytes[DB_KEY_MAX];
};

/* Cuts the first chunk off @rest, below @node (0: the top). */
static void cut(struct slice *rest, uint64_t node, struct chunk *c)
{
    size_t room = node == 0 ? ROOM_TOP : ROOM_BELOW;
    size_t n = rest->n < room ? rest->n : room;
    c->full = n == room;
    if (node == 0) {
        c->table = DB_KEYS;
        c->name = (struct slice){rest->p, n};
    } else {
        c->table = DB_TAILS;
        put_node(c->bytes, node);
        copy(c->bytes + NODE_LEN, (struct slice){rest->p, n});
        c->name = (struct slice){c->bytes, NODE_LEN + n};
    }
    rest->p += n;
    rest->n -= n;
}

/* Goes down to the chunk that holds the key's own record: 0, or 1 when a node on the way is missing. */
static int descend(struct db_tx *tx, struct slice key, struct chunk path[KS_LEVELS], int *depth)
{
    uint64_t node = 0;
    for (*depth = 0; *depth < KS_LEVELS; (*depth)++) {
        struct chunk *c = &path[*depth];
        cut(&key, node, c);
        if (!c->full) {
            return 0;
        }
        struct slice data;
        int rv = db_get(tx, c->table, c->name, &data);
        if (rv != 0 || (rv = read_node(data, &node)) != 0) {
            return rv;
        }
    }
    return damaged();
}

int ks_get(struct db_tx *tx, struct slice key, struct kv *out)
{
    struct chunk path[KS_LEVELS];
    struct slice data;
    int depth;
    int rv = descend(tx, key, path, &depth);
    if (rv == 0) {
        rv = db_get(tx, path[depth].table, path[depth].name, &data);
    }
    out->key = key;
    return rv == 0 ? read_leaf(data, out) : rv;
}

/* --- changing --- */

static int cursor(struct ks_writer *w, enum db_table table, struct db_cur **cur)
{
    struct db_cur **kept = table == DB_KEYS ? &w->keys : &w->tails;
    int rv = *kept == NULL ? db_cur_open(w->tx, table, kept) : 0;
    *cur = *kept;
    return rv;
}

int ks_find(struct ks_writer *w, struct slice key, struct kv *out)
{
    struct chunk path[KS_LEVELS];
    struct db_cur *cur;
    struct slice data;
    int depth;
    int rv = descend(w->tx, key, path, &depth);
    if (rv == 0) {
        rv = cursor(w, path[depth].table, &cur);
    }
    if (rv == 0) {
        rv = db_cur_find(cur, path[depth].name, &data);
    }
    out->key = key;
    return rv == 0 ? read_leaf(data, out) : rv;
}

/* A number that no node has. Every node has a record in DB_TAILS but @parent, which may be just being made.
 */
static int new_node(struct ks_writer *w, uint64_t parent, uint64_t *node)
{
    struct db_cur *cur;
    struct slice name, data;
    int rv = cursor(w, DB_TAILS, &cur);
    rv = rv != 0 ? rv : db_cur_move(cur, DB_LAST, &name, &data);
    if (rv < 0 || (rv == 0 && name.n < NODE_LEN)) {
        return rv < 0 ? rv : damaged();
    }
    uint64_t last = rv == 0 ? get_node(name.p) : 0;
    *node = (last > parent ? last : parent) + 1;
    return 0;
}

/* As descend, but makes the nodes that are missing. */
static int make_path(struct ks_writer *w, struct slice key, struct chunk *c)
{
    uint64_t node = 0;
    for (int level = 0; level < KS_LEVELS; level++) {
        cut(&key, node, c);
        if (!c->full) {
            return 0;
        }
        uint64_t parent = node;
        struct slice data;
        uint8_t *to;
        int rv = db_get(w->tx, c->table, c->name, &data);
        if (rv == 0) {
            rv = read_node(data, &node);
        } else if (rv == 1 && (rv = new_node(w, parent, &node)) == 0 &&
                   (rv = db_put(w->tx, c->table, c->name, sizeof node, false, &to)) == 0) {
            memcpy(to, &node, sizeof node);
        }
        if (rv != 0) {
            return rv;
        }
    }
    return damaged();
}

static int put(struct ks_writer *w, struct slice key, struct slice value, struct head head, uint64_t *create)
{
    struct chunk c;
    struct db_cur *cur;
    struct slice old;
    uint8_t *to;
    size_t size = sizeof head + value.n;
    int rv = make_path(w, key, &c);
    if (rv == 0) {
        rv = cursor(w, c.table, &cur);
    }
    if (rv != 0) {
        return rv;
    }
    rv = db_cur_insert(cur, c.name, size, w->append && c.table == DB_KEYS, &to, &old);
    bool is_new = rv == 0;
    if (rv == 1) {
        struct kv was;
        rv = read_leaf(old, &was);
        if (rv != 0) {
            return rv;
        }
        if (create != NULL) {
            head.create = was.create_revision;
        }
        rv = db_cur_replace(cur, c.name, size, &to);
    }
    if (rv != 0) {
        return rv;
    }
    memcpy(to, &head, sizeof head);
    copy(to + sizeof head, value);
    if (create != NULL) {
        *create = head.create;
    }
    return is_new;
}

int ks_put(struct ks_writer *w, struct slice key, struct slice value, uint64_t revision, uint64_t *create)
{
    return put(w, key, value, (struct head){revision, revision}, create);
}

int ks_put_as(struct ks_writer *w, const struct kv *kv)
{
    return put(w, kv->key, kv->value, (struct head){kv->create_revision, kv->mod_revision}, NULL);
}

/* 1 when @node has no records left. */
static int is_empty(struct ks_writer *w, struct slice node)
{
    struct db_cur *cur;
    struct slice name = node, data;
    int rv = cursor(w, DB_TAILS, &cur);
    if (rv == 0) {
        rv = db_cur_seek(cur, &name, &data);
    }
    return rv == 0 && !slice_begins(name, node) ? 1 : rv;
}

int ks_del(struct ks_writer *w, struct slice key, uint64_t *create)
{
    struct chunk path[KS_LEVELS];
    struct slice data;
    struct kv was;
    int depth;
    int rv = descend(w->tx, key, path, &depth);
    if (rv == 0) {
        rv = db_get(w->tx, path[depth].table, path[depth].name, &data);
    }
    if (rv == 0) {
        rv = read_leaf(data, &was);
    }
    if (rv != 0) {
        return rv;
    }
    *create = was.create_revision;
    rv = db_del(w->tx, path[depth].table, path[depth].name);
    /* A node that has become empty goes with its last key. */
    for (; rv == 0 && depth > 0; depth--) {
        rv = is_empty(w, (struct slice){path[depth].name.p, NODE_LEN});
        if (rv != 1) {
            return rv;
        }
        rv = db_del(w->tx, path[depth - 1].table, path[depth - 1].name);
    }
    return rv == 1 ? damaged() : rv;
}

/* --- walking --- */

static size_t room(int level)
{
    return level == 0 ? ROOM_TOP : ROOM_BELOW;
}

/* Bytes of the key that stand in the levels above. */
static size_t above(int level)
{
    return level == 0 ? 0 : ROOM_TOP + (size_t)(level - 1) * ROOM_BELOW;
}

/* Puts the level's cursor at its first record at or above @rest. */
static int enter(struct ks_iter *it, struct slice rest, struct slice *name, struct slice *data)
{
    int level = it->level;
    uint8_t bytes[DB_KEY_MAX];
    if (rest.n > room(level)) {
        rest.n = room(level);
    }
    struct slice at = rest;
    if (level > 0) {
        put_node(bytes, it->node[level]);
        copy(bytes + NODE_LEN, rest);
        at = (struct slice){bytes, NODE_LEN + rest.n};
    }
    int rv = 0;
    if (it->cur[level] == NULL) {
        rv = db_cur_open(it->tx, level == 0 ? DB_KEYS : DB_TAILS, &it->cur[level]);
    }
    if (rv == 0) {
        rv = db_cur_seek(it->cur[level], &at, data);
    }
    *name = rv == 0 ? at : (struct slice){NULL, 0};
    return rv;
}

/* From where a cursor stands (@rv its answer) to the key that is there: down into nodes, up at their ends.
 * @rest is what the search is for below the record that has exactly its first chunk. */
static int settle(
    struct ks_iter *it, int rv, struct slice name, struct slice data, struct slice rest, struct kv *out)
{
    for (;;) {
        int level = it->level;
        struct slice chunk = name;
        if (rv == 0 && level > 0) {
            if (name.n < NODE_LEN) {
                return damaged();
            }
            chunk = (struct slice){name.p + NODE_LEN, name.n - NODE_LEN};
            rv = get_node(name.p) == it->node[level] ? 0 : 1;
        }
        if (rv < 0 || (rv == 1 && level == 0)) {
            return rv;
        }
        if (rv == 1) {
            it->level--;
            rest.n = 0;
            rv = db_cur_move(it->cur[it->level], DB_NEXT, &name, &data);
            continue;
        }
        if (above(level) + chunk.n > KEY_MAX) {
            return damaged();
        }
        if (chunk.n < room(level)) {
            out->key = chunk;
            if (level > 0) {
                copy(it->key + above(level), chunk);
                out->key = (struct slice){it->key, above(level) + chunk.n};
            }
            return read_leaf(data, out);
        }
        copy(it->key + above(level), chunk);
        if (level + 1 == KS_LEVELS) {
            return damaged();
        }
        if (rest.n >= room(level) && memcmp(rest.p, chunk.p, room(level)) == 0) {
            rest.p += room(level);
            rest.n -= room(level);
        } else {
            rest.n = 0;
        }
        it->level++;
        rv = read_node(data, &it->node[it->level]);
        rv = rv != 0 ? rv : enter(it, rest, &name, &data);
    }
}

int ks_seek(struct ks_iter *it, struct db_tx *tx, struct slice from, struct kv *out)
{
    struct slice name, data;
    it->tx = tx;
    it->level = 0;
    memset(it->cur, 0, sizeof it->cur);
    int rv = enter(it, from, &name, &data);
    return settle(it, rv, name, data, from, out);
}

int ks_next(struct ks_iter *it, struct kv *out)
{
    struct slice name, data;
    int rv = db_cur_move(it->cur[it->level], DB_NEXT, &name, &data);
    return settle(it, rv, name, data, (struct slice){NULL, 0}, out);
}

void ks_end(struct ks_iter *it)
{
    for (int level = 0; level < KS_LEVELS; level++) {
        db_cur_close(it->cur[level]);
    }
}
