#include "raft/submit.h"

#include "base/err.h"
#include "base/hash.h"
#include "raft/kinds.h"

#include <stdlib.h>
#include <string.h>

enum call_state { CALL_WAITING, CALL_LOCAL, CALL_SENT };

struct call {
    TAILQ_ENTRY(call) link;
    UT_hash_handle hh;
    struct submit *s;
    enum call_state state;
    int refusal; /* answered by the next flush */
    uint64_t number;
    uint64_t timeout, deadline, sent_at, not_before;
    int why;        /* waiting: what the leader said, when it was that it cannot take it now */
    unsigned asked; /* so often of the leader that there is, without an answer */
    bool own_id;    /* the id is ours, so we know when the txn is proposed for the first time */
    bool uncertain; /* it may have been applied */
    bool lost;      /* sent, but its answer will not be found: it is asked again */
    struct prop *prop;
    submit_cb cb;
    void *arg;
    size_t n;
    uint8_t txn[];
};

struct remote {
    TAILQ_ENTRY(remote) link;
    struct submit *s;
    uint64_t id, number;
    uint64_t deadline;
    struct prop *prop;
    uint8_t txn[];
};

void submit_init(struct submit *s, struct propose *propose, uint64_t self, const uint8_t origin[16],
    const struct submit_ops *ops, void *arg)
{
    *s = (struct submit){.ops = ops, .arg = arg, .propose = propose, .self = self};
    memcpy(s->origin, origin, sizeof s->origin);
    /* Not from 1: an answer to what this member asked before it was restarted must fit nothing. */
    memcpy(&s->next_number, origin, sizeof s->next_number);
    TAILQ_INIT(&s->waiting);
    TAILQ_INIT(&s->active);
    TAILQ_INIT(&s->remotes);
}

/* --- the node where it came in --- */

static struct calls *list_of(struct submit *s, const struct call *c)
{
    return c->state == CALL_WAITING ? &s->waiting : &s->active;
}

static void unhash(struct submit *s, struct call *c)
{
    if (c->state == CALL_SENT && !c->lost && s->by_number != NULL) {
        HASH_DEL(s->by_number, c);
    }
}

static void move(struct submit *s, struct call *c, enum call_state state)
{
    unhash(s, c);
    TAILQ_REMOVE(list_of(s, c), c, link);
    c->state = state;
    TAILQ_INSERT_TAIL(list_of(s, c), c, link);
    if (state == CALL_SENT) {
        c->lost = false;
        HASH_ADD(hh, s->by_number, number, sizeof c->number, c);
    }
}

static void finish(struct submit *s, struct call *c, int status, const struct txn_result *result)
{
    unhash(s, c);
    TAILQ_REMOVE(list_of(s, c), c, link);
    s->n_calls--;
    s->bytes -= c->n;
    unsigned outcome = status == 0 && result != NULL ? result->status : TXN_APPLIED;
    s->conflicts += outcome == TXN_CONFLICT;
    s->ended[outcome == TXN_UNKNOWN ? -SYM_EUNKNOWN : -status] += outcome != TXN_CONFLICT;
    switch (status) {
    case SYM_ENOQUORUM:
        err_setf(status, "no majority of the voting managers can be reached; nothing was written");
        break;
    case SYM_EUNKNOWN:
        err_setf(status, "no answer in time; the write may or may not have happened");
        break;
    case SYM_ENOSPACE:
        err_setf(status, "a voting manager is short of disk space or its store is full; nothing was written");
        break;
    case SYM_ECANCELED:
        err_setf(status, "this node is stopping");
        break;
    case SYM_EBUSY:
        err_setf(status, "too many writes are under way; nothing was written");
        break;
    case SYM_ENOMEM:
        err_setf(status, "out of memory");
        break;
    case SYM_ETOOBIG:
        err_setf(status,
            "the compares of prefixes have more than %d keys to go through; at most so many fit in a txn",
            PROPOSE_VISITS_MAX);
        break;
    default:
        break;
    }
    c->cb(c->arg, status, result);
    free(c);
}

/* Nothing came of the attempt: once more, when there is a leader. */
static void again(struct submit *s, struct call *c, bool uncertain, uint64_t not_before)
{
    c->uncertain |= uncertain;
    c->not_before = not_before;
    c->why = 0;
    c->asked = uncertain ? 0 : c->asked;
    c->prop = NULL;
    move(s, c, CALL_WAITING);
    s->ops->kick(s->arg);
}

/* Of a txn's time, what the leader leaves for its answer to come back. */
static uint64_t share_kept(uint64_t timeout)
{
    return timeout / 8;
}

static void out_of_time(struct submit *s, struct call *c)
{
    bool uncertain = c->uncertain || c->asked > 0;
    int why = s->leader != 0 && c->why != 0 ? c->why : SYM_ENOQUORUM;
    if (c->state == CALL_LOCAL) {
        why = propose_waits_for(s->propose);
        uncertain |= !propose_cancel(s->propose, c->prop);
        c->prop = NULL;
    }
    finish(s, c, uncertain ? SYM_EUNKNOWN : why, NULL);
}

static void refuse(struct submit *s, submit_cb cb, void *arg)
{
    if (s->n_refused == SUBMIT_REFUSED_MAX) {
        s->propose->ops->fatal(s->propose->arg, "no memory", RAFT_NOMEM);
        return;
    }
    s->refused[s->n_refused].cb = cb;
    s->refused[s->n_refused++].arg = arg;
    s->ops->kick(s->arg);
}

/* Those that an answer brings wait for the next time. */
static void answer_refused(struct submit *s)
{
    unsigned n = s->n_refused;
    for (unsigned i = 0; i < n; i++) {
        err_setf(SYM_ENOMEM, "out of memory");
        s->refused[i].cb(s->refused[i].arg, SYM_ENOMEM, NULL);
    }
    s->n_refused -= n;
    memmove(s->refused, s->refused + n, s->n_refused * sizeof s->refused[0]);
}

void submit_txn(struct submit *s, const uint8_t *txn, size_t n, uint64_t timeout_ms, submit_cb cb, void *arg)
{
    struct txn_id id;
    int refusal = 0;
    if (s->closing) {
        refusal = SYM_ECANCELED;
    } else if (s->n_calls >= SUBMIT_CALLS_MAX || s->bytes + n > SUBMIT_BYTES_MAX) {
        refusal = SYM_EBUSY;
    } else if (n > TXN_MAX || txn_peek_id(txn, n, &id) != 0) {
        refusal = SYM_EINVAL;
    }
    if (refusal != 0) {
        n = 0;
    }
    struct call *c = calloc(1, sizeof *c + n);
    if (c == NULL) {
        refuse(s, cb, arg);
        return;
    }
    *c = (struct call){.s = s, .refusal = refusal, .n = n, .cb = cb, .arg = arg};
    c->number = ++s->next_number;
    c->timeout = timeout_ms;
    c->deadline = s->ops->now(s->arg) + timeout_ms;
    if (refusal == 0) {
        memcpy(c->txn, txn, n);
        s->submitted++;
        if (!txn_has_id(&id)) {
            memcpy(id.bytes, s->origin, sizeof id.bytes);
            id.seq = ++s->next_seq;
            id.since = s->propose->ops->revision(s->propose->arg);
            txn_set_id(c->txn, n, &id);
            c->own_id = true;
        }
    }
    s->n_calls++;
    s->bytes += n;
    TAILQ_INSERT_TAIL(&s->waiting, c, link);
    s->ops->kick(s->arg);
}

static void on_local(void *arg, int status, const struct txn_result *result)
{
    struct call *c = arg;
    struct submit *s = c->s;
    c->prop = NULL;
    if (status == SYM_ENOTLEADER) {
        again(s, c, false, 0);
    } else if (status == SYM_EUNKNOWN) {
        again(s, c, true, 0);
    } else {
        /* A refusal now says nothing of an earlier attempt. */
        finish(s, c, status != 0 && c->uncertain ? SYM_EUNKNOWN : status, result);
    }
}

/* To the leader, in one frame or a few. */
static void send_txns(struct submit *s, struct calls *batch)
{
    struct buf bytes = {0};
    struct wr w = wr_init(&bytes);
    uint64_t now = s->ops->now(s->arg);
    struct call *c;
    TAILQ_FOREACH (c, batch, link) {
        wr_u64(&w, c->number);
        wr_u32(&w, c->deadline > now ? (uint32_t)(c->deadline - now) : 0);
        wr_u8(&w, c->own_id && !c->uncertain && c->asked == 0);
        wr_blob(&w, c->txn, c->n);
        struct call *next = TAILQ_NEXT(c, link);
        if (!w.bad && (next == NULL || bytes.len + next->n > SUBMIT_FRAME)) {
            s->ops->send(s->arg, s->leader, KIND_SUBMIT, buf_data(&bytes), bytes.len);
            buf_clear(&bytes);
        }
    }
    /* Without memory they are simply not sent, and said again in a while. */
    buf_free(&bytes);
}

static void dispatch(struct submit *s)
{
    uint64_t now = s->ops->now(s->arg);
    struct calls batch;
    TAILQ_INIT(&batch);
    struct call *c, *next;
    bool full = false;
    for (c = TAILQ_FIRST(&s->waiting); c != NULL; c = next) {
        next = TAILQ_NEXT(c, link);
        if (c->refusal != 0) {
            finish(s, c, c->refusal, NULL);
        } else if (s->leader == 0 || c->not_before > now || full) {
            continue; /* a small one does not overtake a large one for which there is no room */
        } else if (s->leader == s->self) {
            c->why =
                propose_submit(s->propose, c->txn, c->n, c->own_id && !c->uncertain, on_local, c, &c->prop);
            full = c->why == SYM_EBUSY;
            if (c->why == 0) {
                move(s, c, CALL_LOCAL);
            }
        } else {
            TAILQ_REMOVE(&s->waiting, c, link);
            TAILQ_INSERT_TAIL(&batch, c, link);
        }
    }
    if (TAILQ_EMPTY(&batch)) {
        return;
    }
    send_txns(s, &batch);
    while ((c = TAILQ_FIRST(&batch)) != NULL) {
        TAILQ_REMOVE(&batch, c, link);
        TAILQ_INSERT_TAIL(&s->waiting, c, link);
        c->sent_at = now;
        c->asked++;
        move(s, c, CALL_SENT);
        s->forwarded++;
    }
}

void submit_on_results(struct submit *s, uint64_t id, const uint8_t *data, size_t n)
{
    (void)id; /* whoever answers knows: a number is used once */
    struct rd r = rd_init(data, n);
    while (rd_left(&r) > 0) {
        uint64_t number = rd_u64(&r);
        int status = -(int)rd_u8(&r);
        struct txn_result result = {.status = rd_u8(&r)};
        result.repeated = rd_u8(&r) != 0;
        result.failed = rd_u16(&r);
        result.revision = rd_u64(&r);
        if (r.bad || status <= -SYM_ERR_MAX || result.status > TXN_UNKNOWN) {
            return;
        }
        struct call *c;
        HASH_FIND(hh, s->by_number, &number, sizeof number, c);
        if (c == NULL) {
            continue; /* it was answered or given up meanwhile */
        }
        if (status != 0 && c->asked > 0 && --c->asked > 0 && status != SYM_EUNKNOWN) {
            continue; /* that question came to nothing; the others may not */
        }
        uint64_t now = s->ops->now(s->arg);
        switch (status) {
        case SYM_EBUSY:
            if (now + share_kept(c->timeout) >= c->deadline) {
                finish(s, c, c->uncertain ? SYM_EUNKNOWN : status, NULL); /* it has waited there */
                break;
            }
            again(s, c, false, now + SUBMIT_DEFER_MS);
            c->why = status;
            break;
        case SYM_ENOTLEADER:
        case SYM_ECANCELED:
            again(s, c, false, now + SUBMIT_DEFER_MS);
            break;
        case SYM_EUNKNOWN:
            again(s, c, true, 0);
            break;
        default:
            finish(s, c, status != 0 && c->uncertain ? SYM_EUNKNOWN : status, status == 0 ? &result : NULL);
            break;
        }
    }
}

/* What was sent to whoever led before is asked again: it may have been applied. */
static void recall(struct submit *s)
{
    struct call *c, *next;
    for (c = TAILQ_FIRST(&s->active); c != NULL; c = next) {
        next = TAILQ_NEXT(c, link);
        if (c->state == CALL_SENT) {
            again(s, c, true, 0);
        }
    }
    TAILQ_FOREACH (c, &s->waiting, link) {
        c->uncertain |= c->asked > 0;
        c->asked = 0;
    }
}

void submit_changed(struct submit *s)
{
    uint64_t leader = s->ops->leader(s->arg);
    if (leader != s->leader) {
        s->leader = leader;
        if (leader != 0) {
            recall(s);
            s->ops->kick(s->arg);
        }
    }
}

void submit_down(struct submit *s, uint64_t id)
{
    if (id == s->leader) {
        recall(s);
    }
}

/* --- the leader's side --- */

static struct buf *outbox(struct submit *s, uint64_t id)
{
    for (unsigned i = 0; i < s->n_outboxes; i++) {
        if (s->outboxes[i].id == id) {
            return &s->outboxes[i].bytes;
        }
    }
    struct outbox *grown = realloc(s->outboxes, (s->n_outboxes + 1) * sizeof *grown);
    if (grown == NULL) {
        return NULL;
    }
    s->outboxes = grown;
    grown[s->n_outboxes] = (struct outbox){.id = id};
    return &grown[s->n_outboxes++].bytes;
}

static void reply(struct submit *s, uint64_t id, uint64_t number, int status, const struct txn_result *result)
{
    static const struct txn_result none;
    struct buf *out = outbox(s, id);
    if (out == NULL || buf_reserve(out, 21) == NULL) {
        return; /* the other side asks again */
    }
    const struct txn_result *res = result != NULL ? result : &none;
    struct wr w = wr_init(out);
    wr_u64(&w, number);
    wr_u8(&w, (uint8_t)-status);
    wr_u8(&w, res->status);
    wr_u8(&w, res->repeated);
    wr_u16(&w, res->failed);
    wr_u64(&w, res->revision);
    s->ops->kick(s->arg);
}

static void drop_remote(struct remote *m)
{
    TAILQ_REMOVE(&m->s->remotes, m, link);
    free(m);
}

static void on_remote(void *arg, int status, const struct txn_result *result)
{
    struct remote *m = arg;
    reply(m->s, m->id, m->number, status, result);
    drop_remote(m);
}

void submit_on_txns(struct submit *s, uint64_t id, const uint8_t *data, size_t n)
{
    struct rd r = rd_init(data, n);
    struct txn *decoded = malloc(sizeof *decoded);
    while (decoded != NULL && rd_left(&r) > 0) {
        uint64_t number = rd_u64(&r);
        uint32_t left = rd_u32(&r);
        bool fresh = rd_u8(&r) != 0;
        size_t len;
        const uint8_t *txn = rd_blob(&r, TXN_MAX, &len);
        if (r.bad) {
            break;
        }
        if (s->leader != s->self || s->closing) {
            reply(s, id, number, SYM_ENOTLEADER, NULL);
            continue;
        }
        /* What an entry holds must be known to be good before it is one. */
        if (txn_decode(txn, len, decoded) != 0) {
            reply(s, id, number, SYM_EINVAL, NULL);
            continue;
        }
        struct remote *m = malloc(sizeof *m + len);
        if (m == NULL) {
            break;
        }
        *m = (struct remote){.s = s, .id = id, .number = number};
        /* A little before the other side gives up, so that it hears what became of it. */
        m->deadline = s->ops->now(s->arg) + left - share_kept(left);
        memcpy(m->txn, txn, len);
        int rv = propose_submit(s->propose, m->txn, len, fresh, on_remote, m, &m->prop);
        if (rv != 0) {
            reply(s, id, number, rv, NULL);
            free(m);
            continue;
        }
        TAILQ_INSERT_TAIL(&s->remotes, m, link);
        s->ops->kick(s->arg);
    }
    free(decoded);
}

/* --- time --- */

void submit_flush(struct submit *s)
{
    answer_refused(s);
    dispatch(s);
    for (unsigned i = 0; i < s->n_outboxes; i++) {
        struct buf *out = &s->outboxes[i].bytes;
        if (out->len > 0) {
            s->ops->send(s->arg, s->outboxes[i].id, KIND_RESULT, buf_data(out), out->len);
            buf_clear(out);
        }
    }
}

void submit_tick(struct submit *s)
{
    uint64_t now = s->ops->now(s->arg);
    struct call *c, *next;
    for (c = TAILQ_FIRST(&s->active); c != NULL; c = next) {
        next = TAILQ_NEXT(c, link);
        if (c->deadline <= now) {
            out_of_time(s, c);
        } else if (c->state == CALL_SENT && c->sent_at + SUBMIT_AGAIN_MS <= now) {
            again(s, c, false, 0);
        }
    }
    for (c = TAILQ_FIRST(&s->waiting); c != NULL; c = next) {
        next = TAILQ_NEXT(c, link);
        if (c->deadline <= now && c->refusal == 0) {
            out_of_time(s, c);
        }
    }
    struct remote *m, *next_m;
    for (m = TAILQ_FIRST(&s->remotes); m != NULL; m = next_m) {
        next_m = TAILQ_NEXT(m, link);
        if (m->deadline <= now) {
            int why = propose_waits_for(s->propose);
            bool sure = propose_cancel(s->propose, m->prop);
            reply(s, m->id, m->number, sure ? why : SYM_EUNKNOWN, NULL);
            drop_remote(m);
        }
    }
    if (!TAILQ_EMPTY(&s->waiting)) {
        s->ops->kick(s->arg);
    }
}

void submit_close(struct submit *s)
{
    s->closing = true;
    while (s->n_refused > 0) {
        answer_refused(s);
    }
    /* What propose held was answered by propose_close; the rest waits or was sent. */
    struct call *c;
    while ((c = TAILQ_FIRST(&s->active)) != NULL || (c = TAILQ_FIRST(&s->waiting)) != NULL) {
        finish(s, c, c->uncertain || c->asked > 0 ? SYM_EUNKNOWN : SYM_ECANCELED, NULL);
    }
    while (!TAILQ_EMPTY(&s->remotes)) {
        drop_remote(TAILQ_FIRST(&s->remotes));
    }
    for (unsigned i = 0; i < s->n_outboxes; i++) {
        buf_free(&s->outboxes[i].bytes);
    }
    free(s->outboxes);
    s->outboxes = NULL;
    s->n_outboxes = 0;
}
