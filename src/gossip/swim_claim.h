/* What a member said of itself, with its signature. Immutable. */
#ifndef SYM_GOSSIP_SWIM_CLAIM_H
#define SYM_GOSSIP_SWIM_CLAIM_H

#include "gossip/swim.h"

enum {
    /* Domain and version, cluster, id, incarnation, left, address, metadata. */
    CLAIM_TEXT_MAX = 24 + 1 + SWIM_CLUSTER_MAX + SWIM_ID_LEN + 8 + 1 + 1 + 2 + 16 + 1 + SWIM_META_MAX,
};

/* As it stands in a datagram: the pointers go into it. */
struct claim_view {
    struct swim_id id;
    uint64_t incarnation;
    bool left;
    struct swim_addr addr;
    const uint8_t *meta, *sig;
    uint8_t meta_len, sig_len;
};

struct claim {
    bool left;
    uint8_t meta_len, sig_len;
    struct swim_id id;
    uint64_t incarnation;
    struct swim_addr addr;
    uint8_t tail[]; /* metadata, then signature */
};

/* NULL without memory. */
struct claim *claim_new(const struct claim_view *v);
void claim_free(struct claim *c); /* NULL is fine */
void claim_view(const struct claim *c, struct claim_view *out);
bool claim_same(const struct claim *c, const struct claim_view *v);

/* The bytes that are signed; returns their number. */
size_t claim_text(
    const struct claim_view *v, const void *cluster, size_t cluster_len, uint8_t out[CLAIM_TEXT_MAX]);

#endif
