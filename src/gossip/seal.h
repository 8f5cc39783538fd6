/* The envelope of a gossip datagram: encrypted, authenticated, for one receiver, and never taken twice. A pure core like
 * swim.h: no clock, no socket.
 *
 *   format (1), flags, u32 key, sender (16), u64 start, u64 counter, ciphertext, tag (16)
 *
 * AES-256-GCM with a key of the sender's own: HKDF-SHA256 of the cluster's gossip key with the sender's id and start;
 * the counter is the nonce. What stands before the ciphertext is authenticated, and so is the id of the receiver,
 * which is not sent: what was meant for one node cannot be played to another. A datagram to a node that is not known
 * (swim_join) is for anyone and says so in its flags.
 *
 * What it does not do: whoever has the gossip key can pose as any node here. That is why claims are signed (swim.h), and
 * why the key is changed when a node is removed.
 *
 * @start is what makes the key of this process its own. It must be higher than that of every earlier process of the
 * node that may have sent with the same gossip key: the same start twice would use nonces twice, which breaks the
 * encryption, and a lower one is taken for a replay by whoever has heard a higher one. The driver keeps the last one
 * on disk and takes max(ms since 1970, last + 1).
 *
 * Replays: of each sender a window over the last SEAL_WINDOW counters of its latest start, by the newest key that it has
 * been heard with; older ones are refused, of keys too (ids rise). With a newer key it begins anew: whoever had the old
 * one could have named a start that the sender never reaches, and so kept it from being heard. A receiver that has just
 * started has no past of others yet: what was recorded for it before can be played to it until the sender itself is
 * heard.
 *
 * Rotation: a ring of up to SEAL_KEYS_MAX keys that are accepted, one of them in use for sending. The driver adds the
 * new key everywhere (accept), when all have it uses it, and when nobody uses the old one any more drops it; which key
 * a sender used is told with each datagram.
 */
#ifndef SYM_GOSSIP_SEAL_H
#define SYM_GOSSIP_SEAL_H

#include "gossip/swim.h"

enum {
    SEAL_SECRET_LEN = 32,
    SEAL_KEYS_MAX = 4,
    SEAL_WINDOW = 256,
    SEAL_HEAD_LEN = 1 + 1 + 4 + SWIM_ID_LEN + 8 + 8,
    SEAL_OVERHEAD = SEAL_HEAD_LEN + 16,
    SEAL_MAX = SWIM_DATAGRAM_MAX + SEAL_OVERHEAD,
};
_Static_assert(SEAL_MAX <= 1400, "a datagram in its envelope fits into a packet");

struct seal_key {
    uint32_t id; /* which it is, for all nodes */
    bool use;    /* for sending */
    uint8_t secret[SEAL_SECRET_LEN];
};

/* Why a datagram was refused, cheapest first: nothing is decrypted before SEAL_FORGED. */
enum seal_verdict {
    SEAL_OK,
    SEAL_MALFORMED,   /* length, format, flags */
    SEAL_REFLECTED,   /* our own */
    SEAL_STRANGER,    /* from nobody that known() */
    SEAL_UNKNOWN_KEY, /* not in the ring: retired, or not here yet */
    SEAL_REPLAYED,    /* counter seen or too old, or an earlier start or key */
    SEAL_BUSY,        /* its key has not been derived yet, and that was not to be done */
    SEAL_FORGED,      /* damaged, made with another key, or for another receiver */
    SEAL_NO_ROOM,     /* no memory, or too many senders; right otherwise */
    SEAL_VERDICTS
};

struct seal_letter {
    struct swim_id from;
    uint32_t key; /* that it was sealed with */
    bool anyone;  /* not for us in particular */
    bool
        derived; /* told with every verdict: a key was derived for it, which takes as long as some decryptions */
    size_t n;
    uint8_t plain[SWIM_DATAGRAM_MAX];
};

struct seal;

/* @known as in swim_ops, with @arg. At most @max_senders are remembered: about 160 bytes each. 0 or SYM_ENOMEM. */
int seal_open(const struct swim_id *self, uint64_t start, bool (*known)(void *arg, const struct swim_id *id),
    void *arg, uint32_t max_senders, struct seal **out);
/* Wipes all keys. NULL is fine. */
void seal_close(struct seal *s);
/* The ring is these now. 0, SYM_EINVAL (none, too many, twice the same id, not exactly one in use), SYM_EIO; then it is
 * as it was. */
int seal_keys(struct seal *s, const struct seal_key *keys, size_t n);
/* @n bytes, 1 to SWIM_DATAGRAM_MAX, to n + SEAL_OVERHEAD at @out. @to NULL: for anyone. 0, SYM_EINVAL, SYM_ESTATE
 * without keys, SYM_EIO. */
int seal_wrap(struct seal *s, const struct swim_id *to, const void *plain, size_t n, uint8_t *out);
/* Only after SEAL_OK is *@out to be read, but for @derived. Without @may_derive only what comes from a start, and by a
 * key, that its sender has been heard of with is opened: anybody can name starts, and a flood of those must not cost
 * much. */
enum seal_verdict seal_unwrap(
    struct seal *s, const void *data, size_t n, bool may_derive, struct seal_letter *out);
/* Of a node that was removed. Not of one that is merely dead: its replays would be taken. */
void seal_forget(struct seal *s, const struct swim_id *id);
/* How often seal_unwrap has come to each verdict. */
const uint64_t *seal_counts(const struct seal *s);

#endif
