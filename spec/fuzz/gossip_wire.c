/* A gossip datagram and a piece of a full exchange: parsed, and written again to the same bytes; then taken by a node
 * that knows some others and believes every signature, which must stand whatever it is told. */
#include "fuzz_seed.h"

#include "gossip/swim.h"
#include "gossip/swim_wire.h"

#include <stdlib.h>

enum { OTHERS = 4 };

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

static struct swim_id id_of(uint8_t i)
{
    return (struct swim_id){{i}};
}

static void put(struct wr *w, const struct wire_record *r)
{
    struct swim_id accusers[WIRE_ACCUSERS_MAX];
    switch (r->kind) {
    case WIRE_CLAIM:
        wire_put_claim(w, &r->claim);
        break;
    case WIRE_SUSPECT:
        memcpy(accusers, r->accusers, (size_t)r->n_accusers * SWIM_ID_LEN);
        wire_put_suspect(w, &r->id, r->incarnation, accusers, r->n_accusers);
        break;
    case WIRE_DEAD:
        wire_put_dead(w, &r->id, r->incarnation);
        break;
    }
}

static void again(const uint8_t *data, size_t n)
{
    struct wire_head h;
    struct wire_record record;
    struct rd r;
    struct buf b = {0};
    struct wr w = wr_init(&b);
    if (wire_datagram(data, n, &h, &r)) {
        wire_put_head(&w, &h);
    } else if (wire_piece(data, n, &r)) {
        wire_put_piece(&w);
    } else {
        return;
    }
    while (wire_get(&r, &record)) {
        put(&w, &record);
    }
    check(rd_done(&r) && b.len == n && memcmp(buf_data(&b), data, n) == 0);
    buf_free(&b);
}

static void on_send(
    void *arg, const struct swim_id *to, const struct swim_addr *addr, const void *data, size_t n)
{
    struct wire_head h;
    struct rd r;
    (void)arg, (void)to, (void)addr;
    check(n <= SWIM_DATAGRAM_MAX && wire_datagram(data, n, &h, &r));
}

static bool on_known(void *arg, const struct swim_id *id)
{
    (void)arg, (void)id;
    return true;
}

static bool on_verify(
    void *arg, const struct swim_id *id, const void *text, size_t n, const void *sig, size_t sig_len)
{
    (void)arg, (void)id, (void)text, (void)n;
    return sig_len > 0 && *(const uint8_t *)sig != 0xff;
}

static int on_sign(void *arg, const void *text, size_t n, void *sig, size_t *sig_len)
{
    (void)arg, (void)text, (void)n;
    memset(sig, 1, 8);
    *sig_len = 8;
    return 0;
}

static const struct swim_ops ops = {.send = on_send, .known = on_known, .verify = on_verify, .sign = on_sign};

static struct swim *node(uint8_t i, uint64_t now)
{
    struct swim *s;
    struct swim_config c = {.id = id_of(i),
        .addr = {.family = 4, .port = 1, .ip = {i}},
        .incarnation = 100,
        .seed = i,
        .max_members = 32};
    check(swim_open(&c, &ops, NULL, now, &s) == 0);
    return s;
}

/* Seeds: what real nodes say. */
static struct buf seeds[3];

static void make_seeds(void)
{
    struct swim *s = node(2, 0);
    struct claim_view v = {.id = id_of(3),
        .incarnation = 5,
        .addr = {.family = 6, .port = 9},
        .meta = v.id.b,
        .meta_len = 4,
        .sig = v.id.b,
        .sig_len = 9};
    struct swim_id of = id_of(1), accusers[2] = {id_of(2), id_of(4)};
    struct wire_head h = {.type = WIRE_PING, .seq = 1, .incarnation = 100};
    struct wr w = wr_init(&seeds[0]);
    uint32_t cursor = 0;
    wire_put_head(&w, &h);
    wire_put_claim(&w, &v);
    wire_put_suspect(&w, &of, 100, accusers, 2);
    wire_put_dead(&w, &of, 100);
    w = wr_init(&seeds[1]);
    h.type = WIRE_PING_REQ;
    h.want = true;
    h.target = id_of(3);
    wire_put_head(&w, &h);
    wire_put_suspect(&w, &v.id, 5, accusers, 1);
    check(swim_export(s, &cursor, 1024, &seeds[2]) == 0);
    swim_close(s);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned random)
{
    if (seeds[0].len == 0) {
        make_seeds();
    }
    return seed_mutate(seeds, 3, data, n, max, random);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct swim_addr addr = {.family = 4, .port = 1, .ip = {2}};
    struct swim_id from = id_of(2);
    struct buf piece = {0};
    uint64_t now = 0;
    uint32_t cursor = 0;
    again(data, n);
    struct swim *s = node(1, now);
    for (uint8_t i = 2; i < 2 + OTHERS; i++) {
        struct swim *other = node(i, now);
        struct swim_id id = id_of(i);
        buf_clear(&piece);
        check(swim_export(other, &cursor, 1024, &piece) == 0 && cursor == 0);
        check(swim_merge(s, now, &id, buf_data(&piece), piece.len) == 0);
        swim_close(other);
    }
    swim_receive(s, now, &from, &addr, data, n);
    swim_merge(s, now, &from, data, n);
    for (unsigned i = 0; i < 40; i++) {
        now = swim_next(s) > now ? swim_next(s) : now;
        swim_tick(s, now);
        if (i % 10 == 0) {
            swim_receive(s, now, &from, &addr, data, n);
        }
    }
    /* What it passes on is in order, too, and it can still be told apart from the dead. */
    struct swim_member me;
    struct swim_id own = id_of(1);
    check(swim_get(s, &own, &me) && me.state == SWIM_ALIVE && swim_count(s) <= 32);
    do {
        struct rd r;
        buf_clear(&piece);
        check(swim_export(s, &cursor, 1024, &piece) == 0 && wire_piece(buf_data(&piece), piece.len, &r));
    } while (cursor != 0);
    buf_free(&piece);
    swim_close(s);
    return 0;
}
