/* The quick way of a change of one user's key past the policies: on the leader, in C, where they have nothing to say but
 * yes. Whatever else they say (no, something else, not in time) is asked again and dealt with in Lua. Pure. */
#ifndef SYM_SANDBOX_KV_ADMIT_H
#define SYM_SANDBOX_KV_ADMIT_H

#include "sandbox/reads.h"
#include "store/store.h"

struct kv_change {
    bool put;
    struct slice key; /* the user's */
    struct slice value;
    const struct kv *old;                       /* NULL: absent */
    const char *who_kind, *who_name, *who_role; /* NULL: not said */
};
/* Appends the input of admit.change. 0; 1 when there are bytes in it that are no text, for which Lua has another form;
 * SYM_ENOMEM. */
int kv_admit_input(const struct kv_change *change, struct buf *out);

/* What a decision has read, as compares. */
struct kv_admitted {
    struct buf names;
    struct txn_cmp cmps[2 * READS_MAX];
    unsigned n;
};
/* Reads the result of a call (see boxes_call; any bytes). 0: the change may be made as it is, if what is in @out holds;
 * 1: anything else. @heard is told of each policy that had something to say. @out is to be freed in any case. */
int kv_admit_result(const char *json, size_t n, struct kv_admitted *out,
    void (*heard)(void *arg, const char *name, size_t n_name), void *arg);
void kv_admitted_free(struct kv_admitted *a);

#endif
