#include "raft/reads.h"

#include "base/err.h"
#include "codec/rw.h"
#include "raft/kinds.h"

#include <stdlib.h>
#include <string.h>

struct read {
    TAILQ_ENTRY(read) link;
    uint64_t deadline;
    uint64_t number; /* of its round or question */
    uint64_t index;
    uint64_t from, their_number; /* a follower's question, to be answered with the index alone */
    int refusal;                 /* answered by the next flush */
    reads_cb cb;
    void *arg;
};

void reads_init(struct reads *r, struct raft *raft, uint64_t seed, const struct reads_ops *ops, void *arg)
{
    /* The start is random: an answer to what this member asked before it was restarted must fit nothing. */
    *r = (struct reads){.raft = raft, .ops = ops, .arg = arg, .number = seed >> 1};
    TAILQ_INIT(&r->fresh);
    TAILQ_INIT(&r->asking);
    TAILQ_INIT(&r->waiting);
}

static void send_numbers(struct reads *r, uint64_t id, uint8_t kind, uint64_t a, uint64_t b, unsigned n)
{
    uint8_t data[16];
    uint64_t numbers[2] = {a, b};
    for (unsigned i = 0; i < 8 * n; i++) {
        data[i] = (uint8_t)(numbers[i / 8] >> (8 * (i % 8)));
    }
    r->ops->send(r->arg, id, kind, data, 8 * n);
}

static struct read *add(struct reads *r, uint64_t timeout_ms)
{
    struct read *read = calloc(1, sizeof *read);
    if (read != NULL) {
        read->deadline = r->ops->now(r->arg) + timeout_ms;
        TAILQ_INSERT_TAIL(&r->fresh, read, link);
        r->n++;
        r->ops->kick(r->arg);
    }
    return read;
}

static void refuse(struct reads *r, reads_cb cb, void *arg)
{
    if (r->n_refused == READS_REFUSED_MAX) {
        r->ops->fatal(r->arg, "no memory", RAFT_NOMEM);
        return;
    }
    r->refused[r->n_refused].cb = cb;
    r->refused[r->n_refused++].arg = arg;
    r->ops->kick(r->arg);
}

/* Those that an answer brings wait for the next time. */
static void answer_refused(struct reads *r)
{
    unsigned n = r->n_refused;
    for (unsigned i = 0; i < n; i++) {
        err_setf(SYM_ENOMEM, "out of memory");
        r->refused[i].cb(r->refused[i].arg, SYM_ENOMEM);
    }
    r->n_refused -= n;
    memmove(r->refused, r->refused + n, r->n_refused * sizeof r->refused[0]);
}

void reads_begin(struct reads *r, uint64_t timeout_ms, reads_cb cb, void *arg)
{
    struct read *read = add(r, timeout_ms);
    if (read == NULL) {
        refuse(r, cb, arg);
        return;
    }
    read->cb = cb;
    read->arg = arg;
    read->refusal = r->closing ? SYM_ECANCELED : r->n > READS_MAX ? SYM_EBUSY : 0;
    r->count++;
}

static void finish(struct reads *r, struct read_list *list, struct read *read, int status)
{
    TAILQ_REMOVE(list, read, link);
    r->n--;
    if (read->cb == NULL) {
        if (status == 0) {
            send_numbers(r, read->from, KIND_INDEX, read->their_number, read->index, 2);
        }
    } else {
        if (status == SYM_ENOQUORUM) {
            err_setf(status, "no majority of the voting managers can be reached");
        } else if (status == SYM_EBUSY) {
            err_setf(status, "too many reads are under way");
        } else if (status == SYM_ECANCELED) {
            err_setf(status, "this node is stopping");
        }
        r->failed += status != 0;
        read->cb(read->arg, status);
    }
    free(read);
}

static bool leading(const struct reads *r)
{
    return r->raft->state == RAFT_LEADER;
}

bool reads_may_serve(const struct reads *r)
{
    return leading(r) && r->term == r->raft->current_term && r->raft->last_applied >= r->term_start;
}

void reads_changed(struct reads *r)
{
    raft_id id;
    const char *address;
    raft_leader(r->raft, &id, &address);
    uint64_t leader = leading(r) ? r->raft->id : id;
    if (r->term == r->raft->current_term && r->leader == leader) {
        return;
    }
    if (leading(r)) {
        /* Everything up to here is of former terms, or the entry that opens ours; none is added when the
         * whole log was known to be committed, and then it is enough to have applied that. */
        r->term_start = raft_last_index(r->raft);
    }
    r->term = r->raft->current_term;
    r->leader = leader;
    r->n_acks = 0;
    r->confirmed = r->number;
    /* What was under way began under another leader: once more. A follower's question is that follower's to
     * repeat. */
    struct read *read;
    while ((read = TAILQ_LAST(&r->asking, read_list)) != NULL) {
        TAILQ_REMOVE(&r->asking, read, link);
        if (read->cb == NULL) {
            r->n--;
            free(read);
        } else {
            TAILQ_INSERT_HEAD(&r->fresh, read, link);
        }
    }
    r->ops->kick(r->arg);
}

static void for_voters(struct reads *r, void (*each)(struct reads *r, uint64_t id, void *arg), void *arg)
{
    const struct raft_configuration *c = &r->raft->configuration;
    for (unsigned i = 0; i < c->n; i++) {
        if (c->servers[i].role == RAFT_VOTER) {
            each(r, c->servers[i].id, arg);
        }
    }
}

static void send_confirm(struct reads *r, uint64_t id, void *arg)
{
    (void)arg;
    if (id != r->raft->id) {
        send_numbers(r, id, KIND_CONFIRM, r->term, r->number, 2);
    }
}

struct tally {
    uint64_t number;
    unsigned voters, yes;
};

static void count_ack(struct reads *r, uint64_t id, void *arg)
{
    struct tally *t = arg;
    t->voters++;
    if (id == r->raft->id) {
        t->yes++;
        return;
    }
    for (unsigned i = 0; i < r->n_acks; i++) {
        if (r->acks[i].id == id && r->acks[i].number >= t->number) {
            t->yes++;
        }
    }
}

static bool majority(struct reads *r, uint64_t number)
{
    struct tally t = {.number = number};
    for_voters(r, count_ack, &t);
    return t.yes > t.voters / 2;
}

static void to_waiting(struct reads *r, struct read *read)
{
    TAILQ_REMOVE(&r->asking, read, link);
    struct read *before = TAILQ_LAST(&r->waiting, read_list);
    while (before != NULL && before->index > read->index) {
        before = TAILQ_PREV(before, read_list, link);
    }
    if (before == NULL) {
        TAILQ_INSERT_HEAD(&r->waiting, read, link);
    } else {
        TAILQ_INSERT_AFTER(&r->waiting, before, read, link);
    }
}

/* Those whose round a majority has confirmed. */
static void settle(struct reads *r)
{
    struct read *read;
    while ((read = TAILQ_FIRST(&r->asking)) != NULL) {
        if (read->number > r->confirmed) {
            if (!majority(r, read->number)) {
                return;
            }
            r->confirmed = read->number;
        }
        if (read->cb == NULL) {
            finish(r, &r->asking, read, 0);
        } else {
            to_waiting(r, read);
        }
    }
}

void reads_flush(struct reads *r)
{
    struct read *read, *next;
    answer_refused(r);
    for (read = TAILQ_FIRST(&r->fresh); read != NULL; read = next) {
        next = TAILQ_NEXT(read, link);
        if (read->refusal != 0) {
            finish(r, &r->fresh, read, read->refusal);
        }
    }
    if (TAILQ_EMPTY(&r->asking)) {
        r->confirmed = r->number;
    }
    bool may = leading(r) ? reads_may_serve(r) : r->leader != 0;
    if (may && !TAILQ_EMPTY(&r->fresh) && r->number - r->confirmed < READS_ROUNDS) {
        r->number++;
        r->sent_at = r->ops->now(r->arg);
        while ((read = TAILQ_FIRST(&r->fresh)) != NULL) {
            TAILQ_REMOVE(&r->fresh, read, link);
            read->number = r->number;
            read->index = leading(r) ? r->raft->commit_index : 0;
            TAILQ_INSERT_TAIL(&r->asking, read, link);
        }
        if (leading(r)) {
            r->rounds++;
            for_voters(r, send_confirm, NULL);
        } else {
            send_numbers(r, r->leader, KIND_ASK, r->number, 0, 1);
        }
    }
    if (leading(r)) {
        settle(r);
    }
    while ((read = TAILQ_FIRST(&r->waiting)) != NULL && read->index <= r->raft->last_applied) {
        finish(r, &r->waiting, read, 0);
    }
}

static void expire(struct reads *r, struct read_list *list, uint64_t now)
{
    struct read *read, *next;
    for (read = TAILQ_FIRST(list); read != NULL; read = next) {
        next = TAILQ_NEXT(read, link);
        if (read->deadline <= now) {
            finish(r, list, read, SYM_ENOQUORUM);
        }
    }
}

void reads_tick(struct reads *r)
{
    uint64_t now = r->ops->now(r->arg);
    expire(r, &r->fresh, now);
    expire(r, &r->asking, now);
    expire(r, &r->waiting, now);
    if (!TAILQ_EMPTY(&r->asking) && r->sent_at + READS_AGAIN_MS <= now) {
        /* The last number stands for all before it. */
        r->sent_at = now;
        if (leading(r)) {
            for_voters(r, send_confirm, NULL);
        } else if (r->leader != 0) {
            send_numbers(r, r->leader, KIND_ASK, r->number, 0, 1);
        }
    }
}

static void on_confirm(struct reads *r, uint64_t id, uint64_t term, uint64_t number)
{
    /* Who has seen a later term says nothing, and the round fails for want of answers. */
    if (term == r->raft->current_term && !r->closing) {
        send_numbers(r, id, KIND_CONFIRMED, term, number, 2);
    }
}

static void on_confirmed(struct reads *r, uint64_t id, uint64_t term, uint64_t number)
{
    if (!leading(r) || term != r->term || term != r->raft->current_term || number > r->number) {
        return;
    }
    unsigned i = 0;
    while (i < r->n_acks && r->acks[i].id != id) {
        i++;
    }
    if (i == READS_VOTERS_MAX) {
        return;
    }
    if (i == r->n_acks) {
        r->acks[r->n_acks++].id = id;
        r->acks[i].number = 0;
    }
    if (r->acks[i].number < number) {
        r->acks[i].number = number;
        r->ops->kick(r->arg);
    }
}

static void on_ask(struct reads *r, uint64_t id, uint64_t number)
{
    if (!leading(r) || r->closing || r->n >= READS_MAX) {
        return; /* it asks whoever leads, when it knows */
    }
    struct read *read = add(r, 2000);
    if (read != NULL) {
        read->from = id;
        read->their_number = number;
    }
}

static void on_index(struct reads *r, uint64_t id, uint64_t number, uint64_t index)
{
    if (leading(r) || id != r->leader || number > r->number) {
        return;
    }
    struct read *read;
    while ((read = TAILQ_FIRST(&r->asking)) != NULL && read->number <= number) {
        read->index = index;
        to_waiting(r, read);
    }
    if (r->confirmed < number) {
        r->confirmed = number;
    }
    r->ops->kick(r->arg);
}

void reads_on_frame(struct reads *r, uint64_t id, uint8_t kind, const uint8_t *data, size_t n)
{
    struct rd in = rd_init(data, n);
    uint64_t a = rd_u64(&in);
    uint64_t b = kind == KIND_ASK ? 0 : rd_u64(&in);
    if (!rd_done(&in)) {
        return;
    }
    switch (kind) {
    case KIND_CONFIRM:
        on_confirm(r, id, a, b);
        break;
    case KIND_CONFIRMED:
        on_confirmed(r, id, a, b);
        break;
    case KIND_ASK:
        on_ask(r, id, a);
        break;
    case KIND_INDEX:
        on_index(r, id, a, b);
        break;
    default:
        break;
    }
}

static void close_list(struct reads *r, struct read_list *list)
{
    struct read *read;
    while ((read = TAILQ_FIRST(list)) != NULL) {
        finish(r, list, read, SYM_ECANCELED);
    }
}

void reads_close(struct reads *r)
{
    r->closing = true;
    while (r->n_refused > 0) {
        answer_refused(r);
    }
    close_list(r, &r->fresh);
    close_list(r, &r->asking);
    close_list(r, &r->waiting);
}
