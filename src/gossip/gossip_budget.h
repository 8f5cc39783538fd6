/* How much may be spent on what is refused: a bucket that fills with the time. */
#ifndef SYM_GOSSIP_BUDGET_H
#define SYM_GOSSIP_BUDGET_H

#include <stdbool.h>
#include <stdint.h>

struct budget {
    uint32_t a_second, most; /* units; @most is what it holds */
    int64_t left;            /* in thousandths of a unit; may be overdrawn */
    uint64_t at;             /* ms, when that was so */
};

static inline struct budget budget_init(uint32_t a_second, uint32_t most, uint64_t now)
{
    return (struct budget){.a_second = a_second, .most = most, .left = (int64_t)most * 1000, .at = now};
}

/* Is there any? @now never goes back. */
static inline bool budget_has(struct budget *b, uint64_t now)
{
    const uint64_t hour = 3600000; /* fills any, and keeps the product small */
    uint64_t passed = now - b->at < hour ? now - b->at : hour;
    int64_t full = (int64_t)b->most * 1000;
    b->at = now;
    b->left += (int64_t)passed * b->a_second;
    b->left = b->left > full ? full : b->left;
    return b->left > 0;
}

static inline void budget_take(struct budget *b, uint32_t units)
{
    b->left -= (int64_t)units * 1000;
}

#endif
