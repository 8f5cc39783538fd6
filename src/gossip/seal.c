#include "gossip/seal.h"

#include "base/err.h"
#include "base/hash.h"
#include "codec/rw.h"
#include "crypto/aead.h"
#include "crypto/crypto.h"

#include <stdlib.h>
#include <string.h>

enum { FORMAT = 1, FOR_ANYONE = 1, AAD_LEN = SEAL_HEAD_LEN + SWIM_ID_LEN, WORDS = SEAL_WINDOW / 64 };

/* Somebody who has proven that it has the gossip key. */
struct sender {
    struct swim_id id;
    uint64_t start, top;
    uint64_t seen[WORDS]; /* bit counter % SEAL_WINDOW, of those from top - SEAL_WINDOW + 1 on */
    uint32_t newest; /* the highest key that it has been heard with: @start, @top and @seen are of that */
    bool has_key;
    uint32_t key; /* that @derived comes from */
    uint8_t derived[AEAD_KEY_LEN];
    bool lost; /* base/hash.h */
    UT_hash_handle hh;
};

struct seal {
    struct swim_id self;
    uint64_t start, counter;
    bool (*known)(void *arg, const struct swim_id *id);
    void *arg;
    uint32_t max_senders;
    struct aead *aead;
    struct seal_key keys[SEAL_KEYS_MAX];
    size_t n_keys;
    uint32_t own_key;
    uint8_t own[AEAD_KEY_LEN]; /* derived from the one in use */
    struct sender *senders;
    uint64_t counts[SEAL_VERDICTS];
};

struct envelope {
    uint8_t flags;
    uint32_t key;
    struct swim_id from;
    uint64_t start, counter;
};

int seal_open(const struct swim_id *self, uint64_t start, bool (*known)(void *arg, const struct swim_id *id),
    void *arg, uint32_t max_senders, struct seal **out)
{
    struct seal *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return err_setf(SYM_ENOMEM, "gossip's envelope");
    }
    s->self = *self;
    s->start = start;
    s->known = known;
    s->arg = arg;
    s->max_senders = max_senders;
    int rv = aead_new(&s->aead);
    if (rv != 0) {
        free(s);
        return rv;
    }
    *out = s;
    return 0;
}

static void drop(struct seal *s, struct sender *p)
{
    HASH_DEL(s->senders, p);
    crypto_wipe(p, sizeof *p);
    free(p);
}

void seal_close(struct seal *s)
{
    struct sender *p, *next;
    if (s == NULL) {
        return;
    }
    HASH_ITER (hh, s->senders, p, next) {
        drop(s, p);
    }
    aead_free(s->aead);
    crypto_wipe(s, sizeof *s);
    free(s);
}

static int derive(
    struct seal *s, const struct seal_key *key, const struct swim_id *sender, uint64_t start, uint8_t *out)
{
    static const char salt[] = "symphony gossip seal 1";
    uint8_t info[SWIM_ID_LEN + 8];
    memcpy(info, sender->b, SWIM_ID_LEN);
    put_u32(info + SWIM_ID_LEN, (uint32_t)start);
    put_u32(info + SWIM_ID_LEN + 4, (uint32_t)(start >> 32));
    return aead_derive(s->aead, key->secret, sizeof key->secret, salt, sizeof salt - 1, info, sizeof info,
        out, AEAD_KEY_LEN);
}

int seal_keys(struct seal *s, const struct seal_key *keys, size_t n)
{
    uint8_t own[AEAD_KEY_LEN];
    const struct seal_key *use = NULL;
    if (n == 0 || n > SEAL_KEYS_MAX) {
        return err_setf(SYM_EINVAL, "%zu gossip keys", n);
    }
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < i; j++) {
            if (keys[i].id == keys[j].id) {
                return err_setf(SYM_EINVAL, "two gossip keys %u", keys[i].id);
            }
        }
        if (keys[i].use && use != NULL) {
            return err_setf(SYM_EINVAL, "two gossip keys in use");
        }
        use = keys[i].use ? &keys[i] : use;
    }
    if (use == NULL) {
        return err_setf(SYM_EINVAL, "no gossip key in use");
    }
    int rv = derive(s, use, &s->self, s->start, own);
    if (rv != 0) {
        return rv;
    }
    s->own_key = use->id;
    memcpy(s->own, own, sizeof own);
    crypto_wipe(own, sizeof own);
    crypto_wipe(s->keys, sizeof s->keys);
    memcpy(s->keys, keys, n * sizeof *keys);
    s->n_keys = n;
    uint32_t highest = 0;
    for (size_t i = 0; i < n; i++) {
        highest = keys[i].id > highest ? keys[i].id : highest;
    }
    /* An id may stand for another secret now; and a cluster that was recovered begins again with a lower one. */
    for (struct sender *p = s->senders; p != NULL; p = p->hh.next) {
        crypto_wipe(p->derived, sizeof p->derived);
        p->has_key = false;
        p->newest = p->newest > highest ? 0 : p->newest;
    }
    return 0;
}

static void put_envelope(uint8_t *p, const struct envelope *e)
{
    p[0] = FORMAT;
    p[1] = e->flags;
    put_u32(p + 2, e->key);
    memcpy(p + 6, e->from.b, SWIM_ID_LEN);
    put_u32(p + 22, (uint32_t)e->start);
    put_u32(p + 26, (uint32_t)(e->start >> 32));
    put_u32(p + 30, (uint32_t)e->counter);
    put_u32(p + 34, (uint32_t)(e->counter >> 32));
}

static bool get_envelope(const uint8_t *p, size_t n, struct envelope *e)
{
    struct rd r = rd_init(p, n);
    uint8_t format = rd_u8(&r);
    e->flags = rd_u8(&r);
    e->key = rd_u32(&r);
    const uint8_t *from = rd_bytes(&r, SWIM_ID_LEN);
    e->start = rd_u64(&r);
    e->counter = rd_u64(&r);
    if (r.bad || rd_left(&r) <= AEAD_TAG_LEN || n > SEAL_MAX || format != FORMAT ||
        (e->flags & ~FOR_ANYONE) != 0) {
        return false;
    }
    memcpy(e->from.b, from, SWIM_ID_LEN);
    return true;
}

/* The head and for whom it is. */
static void make_aad(uint8_t aad[AAD_LEN], const uint8_t *head, const struct swim_id *to)
{
    memcpy(aad, head, SEAL_HEAD_LEN);
    if (to == NULL) {
        memset(aad + SEAL_HEAD_LEN, 0, SWIM_ID_LEN);
    } else {
        memcpy(aad + SEAL_HEAD_LEN, to->b, SWIM_ID_LEN);
    }
}

static void make_nonce(uint8_t nonce[AEAD_NONCE_LEN], uint64_t counter)
{
    memset(nonce, 0, AEAD_NONCE_LEN);
    put_u32(nonce + 4, (uint32_t)counter);
    put_u32(nonce + 8, (uint32_t)(counter >> 32));
}

int seal_wrap(struct seal *s, const struct swim_id *to, const void *plain, size_t n, uint8_t *out)
{
    uint8_t aad[AAD_LEN], nonce[AEAD_NONCE_LEN];
    if (n == 0 || n > SWIM_DATAGRAM_MAX) {
        return err_setf(SYM_EINVAL, "a datagram of %zu bytes", n);
    }
    if (s->n_keys == 0) {
        return err_setf(SYM_ESTATE, "no gossip key yet");
    }
    struct envelope e = {.flags = to == NULL ? FOR_ANYONE : 0,
        .key = s->own_key,
        .from = s->self,
        .start = s->start,
        .counter = ++s->counter};
    put_envelope(out, &e);
    make_aad(aad, out, to);
    make_nonce(nonce, e.counter);
    return aead_seal(s->aead, s->own, nonce, aad, sizeof aad, plain, n, out + SEAL_HEAD_LEN);
}

/* ---- replays ---- */

static bool replayed(const struct sender *p, const struct envelope *e)
{
    if (e->key != p->newest) {
        return e->key < p->newest;
    }
    if (e->start != p->start || e->counter > p->top) {
        return e->start < p->start;
    }
    return p->top - e->counter >= SEAL_WINDOW ||
           (p->seen[e->counter % SEAL_WINDOW / 64] >> (e->counter % 64) & 1) != 0;
}

static void mark(struct sender *p, const struct envelope *e)
{
    if (e->start != p->start || e->key > p->newest) {
        p->newest = e->key;
        p->start = e->start;
        p->top = 0; /* what is seen up to a higher one is cleared on the way there */
    }
    if (e->counter > p->top) {
        uint64_t skipped = e->counter - p->top;
        for (uint64_t i = 1; i <= skipped && i <= SEAL_WINDOW; i++) {
            uint64_t c = p->top + i;
            p->seen[c % SEAL_WINDOW / 64] &= ~(UINT64_C(1) << (c % 64));
        }
        p->top = e->counter;
    }
    p->seen[e->counter % SEAL_WINDOW / 64] |= UINT64_C(1) << (e->counter % 64);
}

static const struct seal_key *key_of(const struct seal *s, uint32_t id)
{
    for (size_t i = 0; i < s->n_keys; i++) {
        if (s->keys[i].id == id) {
            return &s->keys[i];
        }
    }
    return NULL;
}

/* Keeps what it took to open it; @p NULL: of a sender that was not heard before. */
static bool remember(struct seal *s, struct sender *p, const struct envelope *e, const uint8_t *derived)
{
    if (p == NULL) {
        p = HASH_COUNT(s->senders) < s->max_senders ? calloc(1, sizeof *p) : NULL;
        if (p == NULL) {
            return false;
        }
        p->id = e->from;
        p->start = e->start;
        HASH_ADD(hh, s->senders, id, sizeof p->id, p);
        if (p->lost) {
            free(p);
            return false;
        }
    }
    mark(p, e);
    if (derived != p->derived) {
        p->key = e->key;
        memcpy(p->derived, derived, AEAD_KEY_LEN);
    }
    p->has_key = true;
    return true;
}

static enum seal_verdict unwrap(
    struct seal *s, const uint8_t *data, size_t n, bool may_derive, struct seal_letter *out)
{
    struct envelope e;
    uint8_t aad[AAD_LEN], nonce[AEAD_NONCE_LEN], fresh[AEAD_KEY_LEN];
    struct sender *p;
    out->derived = false;
    if (!get_envelope(data, n, &e)) {
        return SEAL_MALFORMED;
    }
    if (swim_id_eq(&e.from, &s->self)) {
        return SEAL_REFLECTED;
    }
    if (!s->known(s->arg, &e.from)) {
        return SEAL_STRANGER;
    }
    const struct seal_key *key = key_of(s, e.key);
    if (key == NULL) {
        return SEAL_UNKNOWN_KEY;
    }
    HASH_FIND(hh, s->senders, &e.from, sizeof e.from, p);
    if (p != NULL && replayed(p, &e)) {
        return SEAL_REPLAYED;
    }
    const uint8_t *derived = fresh;
    if (p != NULL && p->has_key && p->key == e.key && p->start == e.start) {
        derived = p->derived;
    } else if (!may_derive) {
        return SEAL_BUSY;
    } else if (derive(s, key, &e.from, e.start, fresh) != 0) {
        return SEAL_NO_ROOM;
    }
    out->derived = derived == fresh;
    out->anyone = (e.flags & FOR_ANYONE) != 0;
    make_aad(aad, data, out->anyone ? NULL : &s->self);
    make_nonce(nonce, e.counter);
    enum seal_verdict verdict = SEAL_FORGED;
    if (aead_open(
            s->aead, derived, nonce, aad, sizeof aad, data + SEAL_HEAD_LEN, n - SEAL_HEAD_LEN, out->plain)) {
        verdict = remember(s, p, &e, derived) ? SEAL_OK : SEAL_NO_ROOM;
    }
    if (derived == fresh) {
        crypto_wipe(fresh, sizeof fresh);
    }
    out->from = e.from;
    out->key = e.key;
    out->n = n - SEAL_OVERHEAD;
    return verdict;
}

enum seal_verdict seal_unwrap(
    struct seal *s, const void *data, size_t n, bool may_derive, struct seal_letter *out)
{
    enum seal_verdict verdict = unwrap(s, data, n, may_derive, out);
    s->counts[verdict]++;
    return verdict;
}

void seal_forget(struct seal *s, const struct swim_id *id)
{
    struct sender *p;
    HASH_FIND(hh, s->senders, id, sizeof *id, p);
    if (p != NULL) {
        drop(s, p);
    }
}

const uint64_t *seal_counts(const struct seal *s)
{
    return s->counts;
}
