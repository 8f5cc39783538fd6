/* What claims and ids are outside of the table: bytes to sign, text to show. */
#include "gossip/swim_claim.h"

#include "codec/text.h"

#include <string.h>

void claim_view(const struct claim *c, struct claim_view *out)
{
    *out = (struct claim_view){.id = c->id,
        .incarnation = c->incarnation,
        .left = c->left,
        .addr = c->addr,
        .meta = c->tail,
        .sig = c->tail + c->meta_len,
        .meta_len = c->meta_len,
        .sig_len = c->sig_len};
}

bool claim_same(const struct claim *c, const struct claim_view *v)
{
    return c->incarnation == v->incarnation && c->left == v->left && swim_addr_eq(&c->addr, &v->addr) &&
           c->meta_len == v->meta_len && (v->meta_len == 0 || memcmp(c->tail, v->meta, v->meta_len) == 0);
}

size_t claim_text(
    const struct claim_view *v, const void *cluster, size_t cluster_len, uint8_t out[CLAIM_TEXT_MAX])
{
    static const char domain[24] = "symphony gossip claim 1";
    uint8_t *p = out;
    memcpy(p, domain, sizeof domain);
    p += sizeof domain;
    *p++ = (uint8_t)cluster_len;
    if (cluster_len > 0) {
        memcpy(p, cluster, cluster_len);
        p += cluster_len;
    }
    memcpy(p, v->id.b, SWIM_ID_LEN);
    p += SWIM_ID_LEN;
    for (unsigned i = 0; i < 8; i++) {
        *p++ = (uint8_t)(v->incarnation >> (8 * i));
    }
    *p++ = v->left ? 1 : 0;
    *p++ = v->addr.family;
    *p++ = (uint8_t)v->addr.port;
    *p++ = (uint8_t)(v->addr.port >> 8);
    memcpy(p, v->addr.ip, sizeof v->addr.ip);
    p += sizeof v->addr.ip;
    *p++ = v->meta_len;
    if (v->meta_len > 0) {
        memcpy(p, v->meta, v->meta_len);
        p += v->meta_len;
    }
    return (size_t)(p - out);
}

int swim_id_parse(const char *text, struct swim_id *out)
{
    return base32_decode(text, strlen(text), out->b, SWIM_ID_LEN);
}

void swim_id_text(const struct swim_id *id, char out[27])
{
    base32_encode(id->b, SWIM_ID_LEN, out);
}
