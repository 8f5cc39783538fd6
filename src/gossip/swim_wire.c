#include "gossip/swim_wire.h"

#include <string.h>

enum { HEAD_WANT = 1, HEAD_QUIET = 2, CLAIM_LEFT = 1, CLAIM_V6 = 2 };

static void put_id(struct wr *w, const struct swim_id *id)
{
    wr_bytes(w, id->b, SWIM_ID_LEN);
}

static void get_id(struct rd *r, struct swim_id *id)
{
    const uint8_t *p = rd_bytes(r, SWIM_ID_LEN);
    if (p != NULL) {
        memcpy(id->b, p, SWIM_ID_LEN);
    }
}

void wire_put_head(struct wr *w, const struct wire_head *h)
{
    wr_u8(w, WIRE_VERSION);
    wr_u8(w, (uint8_t)h->type);
    wr_u8(w, (uint8_t)((h->want ? HEAD_WANT : 0) | (h->quiet ? HEAD_QUIET : 0)));
    wr_u32(w, h->seq);
    wr_u64(w, h->incarnation);
    wr_u64(w, h->digest);
    if (h->type == WIRE_PING_REQ) {
        put_id(w, &h->target);
        wr_u16(w, h->wait_ms);
    }
}

void wire_put_piece(struct wr *w)
{
    wr_u8(w, WIRE_VERSION);
    wr_u8(w, WIRE_PIECE);
}

void wire_put_claim(struct wr *w, const struct claim_view *v)
{
    bool v6 = v->addr.family == 6;
    wr_u8(w, WIRE_CLAIM);
    put_id(w, &v->id);
    wr_u64(w, v->incarnation);
    wr_u8(w, (uint8_t)((v->left ? CLAIM_LEFT : 0) | (v6 ? CLAIM_V6 : 0)));
    wr_u16(w, v->addr.port);
    wr_bytes(w, v->addr.ip, v6 ? 16 : 4);
    wr_u8(w, v->meta_len);
    wr_bytes(w, v->meta, v->meta_len);
    wr_u8(w, v->sig_len);
    wr_bytes(w, v->sig, v->sig_len);
}

size_t wire_claim_len(const struct claim *c)
{
    return 1 + SWIM_ID_LEN + 8 + 1 + 2 + (c->addr.family == 6 ? 16 : 4) + 1 + (size_t)c->meta_len + 1 +
           c->sig_len;
}

void wire_put_suspect(
    struct wr *w, const struct swim_id *id, uint64_t incarnation, const struct swim_id *accusers, unsigned n)
{
    wr_u8(w, WIRE_SUSPECT);
    put_id(w, id);
    wr_u64(w, incarnation);
    wr_u8(w, (uint8_t)n);
    wr_bytes(w, accusers, (size_t)n * SWIM_ID_LEN);
}

void wire_put_dead(struct wr *w, const struct swim_id *id, uint64_t incarnation)
{
    wr_u8(w, WIRE_DEAD);
    put_id(w, id);
    wr_u64(w, incarnation);
}

bool wire_get_head(struct rd *r, struct wire_head *out)
{
    *out = (struct wire_head){0};
    uint8_t version = rd_u8(r), type = rd_u8(r), flags = rd_u8(r);
    out->seq = rd_u32(r);
    out->incarnation = rd_u64(r);
    out->digest = rd_u64(r);
    if (version != WIRE_VERSION || type < WIRE_PING || type > WIRE_GOSSIP ||
        (flags & ~(HEAD_WANT | HEAD_QUIET)) != 0) {
        r->bad = true;
        return false;
    }
    out->type = type;
    out->want = (flags & HEAD_WANT) != 0;
    out->quiet = (flags & HEAD_QUIET) != 0;
    if (type == WIRE_PING_REQ) {
        get_id(r, &out->target);
        out->wait_ms = rd_u16(r);
    }
    return !r->bad;
}

static void get_claim(struct rd *r, struct claim_view *v)
{
    get_id(r, &v->id);
    v->incarnation = rd_u64(r);
    uint8_t flags = rd_u8(r);
    v->left = (flags & CLAIM_LEFT) != 0;
    v->addr.family = (flags & CLAIM_V6) != 0 ? 6 : 4;
    v->addr.port = rd_u16(r);
    size_t n = v->addr.family == 6 ? 16 : 4;
    const uint8_t *ip = rd_bytes(r, n);
    if (ip != NULL) {
        memcpy(v->addr.ip, ip, n);
    }
    v->meta_len = rd_u8(r);
    v->meta = rd_bytes(r, v->meta_len);
    v->sig_len = rd_u8(r);
    v->sig = rd_bytes(r, v->sig_len);
    if ((flags & ~(CLAIM_LEFT | CLAIM_V6)) != 0 || v->addr.port == 0 || v->meta_len > SWIM_META_MAX ||
        v->sig_len == 0 || v->sig_len > SWIM_SIG_MAX) {
        r->bad = true;
    }
}

bool wire_get(struct rd *r, struct wire_record *out)
{
    if (r->bad || r->p == r->end) {
        return false;
    }
    *out = (struct wire_record){.kind = rd_u8(r)};
    switch (out->kind) {
    case WIRE_CLAIM:
        get_claim(r, &out->claim);
        out->id = out->claim.id;
        out->incarnation = out->claim.incarnation;
        break;
    case WIRE_SUSPECT:
        get_id(r, &out->id);
        out->incarnation = rd_u64(r);
        out->n_accusers = rd_u8(r);
        if (out->n_accusers == 0 || out->n_accusers > WIRE_ACCUSERS_MAX) {
            r->bad = true;
        }
        out->accusers = rd_bytes(r, (size_t)out->n_accusers * SWIM_ID_LEN);
        break;
    case WIRE_DEAD:
        get_id(r, &out->id);
        out->incarnation = rd_u64(r);
        break;
    default:
        r->bad = true;
    }
    return !r->bad;
}

static bool check(struct rd r)
{
    struct wire_record record;
    while (wire_get(&r, &record)) {
    }
    return !r.bad;
}

bool wire_datagram(const void *data, size_t n, struct wire_head *out, struct rd *records)
{
    *records = rd_init(data, n);
    return n <= SWIM_DATAGRAM_MAX && wire_get_head(records, out) && check(*records);
}

bool wire_piece(const void *data, size_t n, struct rd *records)
{
    *records = rd_init(data, n);
    return n <= SWIM_PIECE_MAX && rd_u8(records) == WIRE_VERSION && rd_u8(records) == WIRE_PIECE &&
           check(*records);
}
