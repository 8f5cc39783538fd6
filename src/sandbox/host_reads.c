/* What the child asks of the state, answered from the store. */
#include "sandbox/host_impl.h"

#include "base/err.h"
#include "store/store.h"

enum { WALK_MAX = 4000 }; /* keys below a prefix that is read: each is gone through again by the compares */

struct walk {
    struct buf items;
    uint64_t revision, count;
    uint32_t given;
    unsigned limit;
};

static int walk_one(void *arg, const struct kv *kv)
{
    struct walk *walk = arg;
    if (++walk->count > WALK_MAX) {
        return err_setf(SYM_ETOOBIG, "there are more than %d keys below that prefix", WALK_MAX);
    }
    walk->revision = kv->mod_revision > walk->revision ? kv->mod_revision : walk->revision;
    if (walk->given < walk->limit) {
        struct wr w = wr_init(&walk->items);
        walk->given++;
        wr_blob(&w, kv->key.p, kv->key.n);
        wr_blob(&w, kv->value.p, kv->value.n);
        if (w.bad || walk->items.len > READS_ANSWER_MAX) {
            return err_setf(SYM_ETOOBIG, "the values below that prefix are too large to be read at once");
        }
    }
    return 0;
}

static int read_prefix(struct store *s, struct slice prefix, unsigned limit, struct buf *answer)
{
    struct walk walk = {.limit = limit};
    int rv = store_list(s, prefix, NULL, walk_one, &walk);
    if (rv == 0) {
        struct wr w = wr_init(answer);
        wr_u64(&w, walk.revision);
        wr_u64(&w, walk.count);
        wr_u32(&w, walk.given);
        wr_bytes(&w, buf_data(&walk.items), walk.items.len);
        rv = w.bad ? SYM_ENOMEM : 0;
    }
    buf_free(&walk.items);
    return rv;
}

static int read_key(struct store *s, struct slice key, struct buf *answer)
{
    struct kv kv;
    struct wr w = wr_init(answer);
    int rv = store_get(s, key.p, key.n, &kv);
    if (rv != 0 && rv != SYM_ENOTFOUND) {
        return rv;
    }
    wr_u64(&w, rv == 0 ? kv.mod_revision : 0);
    wr_blob(&w, rv == 0 ? kv.value.p : NULL, rv == 0 ? kv.value.n : 0);
    return w.bad ? SYM_ENOMEM : 0;
}

void host_on_read(void *arg, uint32_t id, enum read_kind kind, const char *key, size_t n, unsigned limit)
{
    struct host *h = arg;
    struct job *job = host_find_sent(h, id);
    struct store *s = h->store_of(h->arg);
    struct buf answer = {0};
    struct slice k = {(const uint8_t *)key, n};
    int rv;
    if (job == NULL || job->kind != FRAME_CALL) {
        err_setf(SYM_EPROTO, "it reads the state for a call that there is not");
        host_on_lost(h);
        return;
    }
    job->reads += kind == READ_GET ? 1 : 2;
    if (job->reads > READS_MAX) {
        err_setf(SYM_EPROTO, "it reads the state more than %d times in a call", READS_MAX);
        host_on_lost(h);
        return;
    }
    if (!reads_allowed(key, n)) {
        rv = err_setf(SYM_EDENIED, "that key is not for policies");
    } else if (s == NULL) {
        rv = err_setf(SYM_ECLOSED, "the node is not started");
    } else {
        rv = kind == READ_GET ? read_key(s, k, &answer)
                              : read_prefix(s, k, kind == READ_LIST ? limit : 0, &answer);
    }
    child_proc_reply(h->child, rv, &answer);
    buf_free(&answer);
}
