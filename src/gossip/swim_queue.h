/* News about members that wait to be sent, one of a member: those sent least often first, and the newest of them
 * before (SWIM 4.1); what is not urgent counts as sent some times already. What is said is read from the member when
 * it is sent. Linked through the members' slots: nothing is allocated, and a member has at most one entry. */
#ifndef SYM_GOSSIP_SWIM_QUEUE_H
#define SYM_GOSSIP_SWIM_QUEUE_H

#include "gossip/swim_table.h"

enum { QUEUE_SENDS_MAX = 64 };

struct queue {
    struct {
        uint32_t head, tail;
    } by_sent[QUEUE_SENDS_MAX];
    uint32_t n;
};

void queue_init(struct queue *q);
/* New, as if it had been sent @sent times before. */
void queue_news(struct queue *q, struct table *t, uint32_t slot, unsigned sent);
void queue_drop(struct queue *q, struct table *t, uint32_t slot);
/* It has been sent once more; dropped when that was the @limit'th time. */
void queue_sent(struct queue *q, struct table *t, uint32_t slot, unsigned limit);
/* lambda * ln(n + 1) of @n members. */
unsigned queue_limit(unsigned lambda, uint32_t n);

#endif
