/* Compares that held when they were last looked at, of keys that have not been changed since. Nearly every change of a
 * user's key compares the same two things, of whoever asks and of the policies, and looking them up would cost as much
 * as a tenth of the change itself. What is answered is the same with it and without. Private to src/store. */
#ifndef SYM_STORE_MEMO_H
#define SYM_STORE_MEMO_H

#include "store/txn.h"

enum { MEMO_SLOTS = 8, MEMO_KEY_MAX = 96, MEMO_VALUE_MAX = 96 };

struct memo {
    uint64_t uses;
    struct memo_slot {
        uint64_t used; /* when last; 0: empty */
        int kind;      /* of the compare; or it is a count of keys */
        size_t n_key, n_value;
        uint64_t number; /* of the compare; or the count */
        uint8_t key[MEMO_KEY_MAX], value[MEMO_VALUE_MAX];
    } slots[MEMO_SLOTS];
};

/* True if @c is known to hold. */
bool memo_holds(struct memo *m, const struct txn_cmp *c);
/* @c holds. One that is too long, or not likely to come again, is not kept. */
void memo_keep(struct memo *m, const struct txn_cmp *c);
/* The same for how many keys there are below @prefix. */
bool memo_count(struct memo *m, struct slice prefix, uint64_t *count);
void memo_keep_count(struct memo *m, struct slice prefix, uint64_t count);
/* @key is put or deleted. */
void memo_changed(struct memo *m, struct slice key);
/* What was kept since may not be so. */
void memo_clear(struct memo *m);

#endif
