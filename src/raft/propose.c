#include "raft/propose.h"

#include "base/err.h"

#include <stdlib.h>

struct pack {
    struct raft_apply req;
    struct propose *p;
    struct pack *next;
    struct props props;
    struct raft_buffer data;
    struct txn_result *results; /* from the state machine, before libraft's callback */
    unsigned n, n_results;
    uint64_t ops;    /* of its txns */
    uint64_t visits; /* see afford */
    uint64_t proposed_at;
    raft_term term;
    bool delivered;
};

void propose_init(struct propose *p, struct raft *raft, const struct propose_ops *ops, void *arg)
{
    *p = (struct propose){
        .raft = raft, .ops = ops, .arg = arg, .max_in_flight = PROPOSE_IN_FLIGHT, .waits_for = SYM_ENOQUORUM};
    TAILQ_INIT(&p->waiting);
    p->in_flight.last = &p->in_flight.first;
}

int propose_submit(
    struct propose *p, uint8_t *txn, size_t n, bool fresh, prop_cb cb, void *arg, struct prop **out)
{
    if (p->closing) {
        return err_setf(SYM_ECANCELED, "the node is stopping");
    }
    if (p->n_waiting >= PROPOSE_TXNS_MAX || p->bytes_waiting + n > PROPOSE_BYTES_MAX) {
        return err_setf(SYM_EBUSY, "too many writes are waiting");
    }
    struct prop *prop = malloc(sizeof *prop);
    if (prop == NULL) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    *prop = (struct prop){.txn = txn, .n = n, .fresh = fresh, .cb = cb, .arg = arg};
    TAILQ_INSERT_TAIL(&p->waiting, prop, link);
    p->n_waiting++;
    p->bytes_waiting += n;
    *out = prop;
    return 0;
}

static void unqueue(struct propose *p, struct prop *prop)
{
    TAILQ_REMOVE(&p->waiting, prop, link);
    p->n_waiting--;
    p->bytes_waiting -= prop->n;
}

static void answer(struct prop *prop, int status, const struct txn_result *result)
{
    if (prop->cb != NULL) {
        prop->cb(prop->arg, status, result);
    }
    free(prop);
}

/* Back to where they came from. */
static void put_back(struct propose *p, struct pack *pack)
{
    struct prop *prop;
    while ((prop = TAILQ_LAST(&pack->props, props)) != NULL) {
        TAILQ_REMOVE(&pack->props, prop, link);
        prop->pack = NULL;
        TAILQ_INSERT_HEAD(&p->waiting, prop, link);
        p->n_waiting++;
        p->bytes_waiting += prop->n;
    }
}

bool propose_cancel(struct propose *p, struct prop *prop)
{
    if (prop->pack != NULL && prop->pack == p->stalled) {
        /* libraft has not taken it. */
        put_back(p, p->stalled);
        free(p->stalled->data.base);
        free(p->stalled);
        p->stalled = NULL;
    }
    if (prop->pack == NULL) {
        unqueue(p, prop);
        free(prop);
        return true;
    }
    prop->cb = NULL;
    return false;
}

int propose_waits_for(const struct propose *p)
{
    return p->waits_for;
}

static void answer_pack(struct pack *pack, int status)
{
    if (status == 0 && (!pack->delivered || pack->n_results != pack->n)) {
        status = SYM_EUNKNOWN;
    }
    unsigned i = 0;
    struct prop *prop;
    while ((prop = TAILQ_FIRST(&pack->props)) != NULL) {
        TAILQ_REMOVE(&pack->props, prop, link);
        answer(prop, status, status == 0 ? &pack->results[i] : NULL);
        i++;
    }
    free(pack->results);
    free(pack);
}

static void applied(struct raft_apply *req, int status, void *result)
{
    (void)result;
    struct pack *pack = req->data;
    struct propose *p = pack->p;
    /* libraft completes them in order. */
    struct pack **at = &p->in_flight.first;
    while (*at != pack) {
        at = &(*at)->next;
    }
    *at = pack->next;
    if (p->in_flight.last == &pack->next) {
        p->in_flight.last = at;
    }
    p->n_in_flight--;
    p->ops_in_flight -= pack->ops;
    if (status == 0 && p->ops->clock != NULL) {
        histogram_add(&p->commits, p->ops->clock(p->arg) - pack->proposed_at);
    }
    /* RAFT_LEADERSHIPLOST, and our own end: it may be committed by the next leader, or not. */
    answer_pack(pack, status == 0 ? 0 : SYM_EUNKNOWN);
}

/* The entry that is applied at @index may be another leader's, where ours was. */
static struct pack *of_index(const struct propose *p, uint64_t index)
{
    struct pack *pack = p->in_flight.first;
    while (pack != NULL && (pack->req.index != index || pack->delivered)) {
        pack = pack->next;
    }
    return pack != NULL && guard_term_of(p->raft, index) == pack->term ? pack : NULL;
}

bool propose_wanted(const struct propose *p, uint64_t index)
{
    return of_index(p, index) != NULL;
}

void propose_deliver(struct propose *p, uint64_t index, struct txn_result *results, unsigned n)
{
    struct pack *pack = of_index(p, index);
    if (pack == NULL) {
        free(results);
        return;
    }
    pack->results = results;
    pack->n_results = n;
    pack->delivered = true;
}

/* Applying must be quick on every member, and again whenever the log is gone through. Bytes bound most of it, but not
 * the keys that compares of prefixes go through: these are counted against the entry as the bytes are. What is there
 * when it is applied is at most what is there now and one key for each operation that comes before it: of the entries
 * in flight (those of earlier terms are applied before this leader proposes) and of this one. That is the same state
 * on every member, so what holds here holds there.
 *
 * 0; SYM_ETOOBIG when the txn alone is too much; SYM_EBUSY when it is for a later entry: with none in flight and in an
 * empty pack it fits. Or what the store says. */
static int afford(struct propose *p, struct pack *pack, const struct prop *prop)
{
    struct txn_cost cost;
    int rv =
        p->ops->cost(p->arg, prop->txn, prop->n, p->ops_in_flight + pack->ops, PROPOSE_VISITS_MAX, &cost);
    if (rv != 0) {
        return rv;
    }
    p->visits += cost.now;
    if (cost.now > PROPOSE_VISITS_MAX) {
        return SYM_ETOOBIG;
    }
    if (cost.then > 0 && pack->visits + cost.then > PROPOSE_VISITS_MAX) {
        return SYM_EBUSY;
    }
    pack->visits += cost.then;
    return 0;
}

/* Takes from the queue what fits into one entry. NULL when nothing may go, or without memory. */
static struct pack *build(struct propose *p)
{
    struct buf bytes = {0};
    struct pack *pack = calloc(1, sizeof *pack);
    /* Once for all that will be in it, with its head and its padding: growing would copy it over and over. */
    size_t room =
        (p->bytes_waiting < PACK_TARGET ? p->bytes_waiting + 4 * (size_t)p->n_waiting : PACK_TARGET) + 64;
    if (pack == NULL || buf_reserve(&bytes, room) == NULL || pack_begin(&bytes) != 0) {
        goto fail;
    }
    pack->p = p;
    pack->req.data = pack;
    TAILQ_INIT(&pack->props);
    struct prop *prop;
    while ((prop = TAILQ_FIRST(&p->waiting)) != NULL) {
        if ((pack->n > 0 && bytes.len + prop->n > PACK_TARGET) || p->visits > PROPOSE_VISITS_MAX) {
            break;
        }
        int rv = p->ops->may(p->arg, prop->txn, prop->n);
        if (rv == SYM_ENOSPACE) {
            unqueue(p, prop);
            answer(prop, rv, NULL);
            continue;
        }
        if (rv != 0) {
            p->waits_for = rv;
            break;
        }
        rv = afford(p, pack, prop);
        if (rv == SYM_EBUSY) {
            break;
        }
        if (rv != 0) {
            unqueue(p, prop);
            answer(prop, rv, NULL);
            continue;
        }
        struct txn_id id;
        if (prop->fresh && txn_peek_id(prop->txn, prop->n, &id) == 0) {
            id.since = p->ops->revision(p->arg);
            txn_set_id(prop->txn, prop->n, &id);
        }
        if (pack_add(&bytes, prop->txn, prop->n) != 0) {
            break;
        }
        unqueue(p, prop);
        prop->pack = pack;
        TAILQ_INSERT_TAIL(&pack->props, prop, link);
        pack->n++;
        pack->ops += txn_peek_ops(prop->txn, prop->n);
    }
    if (pack->n == 0) {
        goto fail;
    }
    if (pack_end(&bytes, pack->n) != 0) {
        put_back(p, pack);
        goto fail;
    }
    /* raft_malloc is malloc, and nothing was consumed from the front. It stays in memory with the log: without what
     * there was room for besides. */
    void *fit = realloc(bytes.base, bytes.len);
    pack->data = (struct raft_buffer){fit != NULL ? fit : bytes.base, bytes.len};
    return pack;

fail:
    buf_free(&bytes);
    free(pack);
    return NULL;
}

/* 0, or an error of raft_apply that leaves the pack as it was. */
static int propose(struct propose *p, struct pack *pack)
{
    pack->proposed_at = p->ops->clock != NULL ? p->ops->clock(p->arg) : 0;
    /* Rule 1: one entry in one raft_apply. */
    int rv = raft_apply(p->raft, &pack->req, &pack->data, 1, applied);
    if (rv != 0) {
        return rv;
    }
    pack->term = p->raft->current_term;
    *p->in_flight.last = pack;
    p->in_flight.last = &pack->next;
    p->n_in_flight++;
    p->ops_in_flight += pack->ops;
    p->packs++;
    p->pack_txns += pack->n;
    return 0;
}

static void unbuild(struct pack *pack, int status)
{
    free(pack->data.base);
    pack->data.base = NULL;
    answer_pack(pack, status);
}

static void flush(struct propose *p)
{
    while (!p->closing && p->raft->state == RAFT_LEADER && raft_transferee(p->raft) == 0 &&
           p->n_in_flight < p->max_in_flight) {
        if (p->stalled == NULL && p->n_in_flight > 0 && p->bytes_waiting < PROPOSE_WORTH) {
            return;
        }
        struct pack *pack = p->stalled != NULL ? p->stalled : build(p);
        if (pack == NULL) {
            return;
        }
        p->stalled = NULL;
        int rv = propose(p, pack);
        if (rv == RAFT_NOSPACE) {
            /* Between two segments; or the disk is full, which the floor should have kept away. */
            p->stalled = pack;
            p->waits_for = SYM_ENOSPACE;
            return;
        }
        if (rv == RAFT_NOTLEADER || rv == RAFT_LEADERSHIPLOST) {
            unbuild(pack, SYM_ENOTLEADER);
            return;
        }
        if (rv != 0) {
            /* Rule 3: what libraft holds and what it has written may be two things now. */
            if (guard_rule(3)) {
                p->ops->fatal(p->arg, "proposing an entry", rv);
            }
            return;
        }
    }
}

bool propose_flush(struct propose *p)
{
    p->waits_for = SYM_ENOQUORUM;
    p->visits = 0;
    flush(p);
    return p->visits > PROPOSE_VISITS_MAX && p->n_waiting > 0;
}

static void answer_waiting(struct propose *p, int status)
{
    if (p->stalled != NULL) {
        struct pack *pack = p->stalled;
        p->stalled = NULL;
        unbuild(pack, status);
    }
    /* Only those that wait now: an answer may bring another txn. */
    for (unsigned n = p->n_waiting; n > 0 && p->n_waiting > 0; n--) {
        struct prop *prop = TAILQ_FIRST(&p->waiting);
        unqueue(p, prop);
        answer(prop, status, NULL);
    }
}

void propose_lost(struct propose *p)
{
    answer_waiting(p, SYM_ENOTLEADER);
}

void propose_close(struct propose *p)
{
    p->closing = true;
    answer_waiting(p, SYM_ECANCELED);
}
