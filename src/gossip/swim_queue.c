#include "gossip/swim_queue.h"

#include <math.h>

void queue_init(struct queue *q)
{
    for (unsigned i = 0; i < QUEUE_SENDS_MAX; i++) {
        q->by_sent[i].head = q->by_sent[i].tail = NO_SLOT;
    }
    q->n = 0;
}

void queue_drop(struct queue *q, struct table *t, uint32_t slot)
{
    struct member *m = &t->m[slot];
    if (m->sent == NOT_QUEUED) {
        return;
    }
    if (m->q_prev == NO_SLOT) {
        q->by_sent[m->sent].head = m->q_next;
    } else {
        t->m[m->q_prev].q_next = m->q_next;
    }
    if (m->q_next == NO_SLOT) {
        q->by_sent[m->sent].tail = m->q_prev;
    } else {
        t->m[m->q_next].q_prev = m->q_prev;
    }
    m->sent = NOT_QUEUED;
    q->n--;
}

void queue_news(struct queue *q, struct table *t, uint32_t slot, unsigned sent)
{
    struct member *m = &t->m[slot];
    queue_drop(q, t, slot);
    m->sent = sent & NOT_QUEUED;
    m->q_prev = NO_SLOT;
    m->q_next = q->by_sent[sent].head;
    if (m->q_next == NO_SLOT) {
        q->by_sent[sent].tail = slot;
    } else {
        t->m[m->q_next].q_prev = slot;
    }
    q->by_sent[sent].head = slot;
    q->n++;
}

void queue_sent(struct queue *q, struct table *t, uint32_t slot, unsigned limit)
{
    struct member *m = &t->m[slot];
    unsigned sent = m->sent + 1u;
    queue_drop(q, t, slot);
    if (sent >= limit || sent >= QUEUE_SENDS_MAX) {
        return;
    }
    m->sent = sent & NOT_QUEUED;
    m->q_next = NO_SLOT;
    m->q_prev = q->by_sent[sent].tail;
    if (m->q_prev == NO_SLOT) {
        q->by_sent[sent].head = slot;
    } else {
        t->m[m->q_prev].q_next = slot;
    }
    q->by_sent[sent].tail = slot;
    q->n++;
}

unsigned queue_limit(unsigned lambda, uint32_t n)
{
    unsigned limit = (unsigned)ceil(lambda * log((double)n + 1));
    return limit < 1 ? 1 : limit < QUEUE_SENDS_MAX ? limit : QUEUE_SENDS_MAX;
}
