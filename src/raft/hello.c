#include "raft/hello.h"

#include "base/err.h"
#include "codec/rw.h"

#include <string.h>

static const uint32_t MAGIC = 0x50524d53; /* "SMRP" */

/* Codes that mean something to the refused side, in the protocol's own numbers: SYM_E* are numbered by their
 * place in a list that may change. Whatever is not here travels as 0. */
static const struct {
    uint8_t wire;
    int code;
} codes[] = {
    {0, SYM_EPROTO},
    {1, SYM_EDENIED},
    {2, SYM_ENOTFOUND},
    {3, SYM_ECONFLICT},
    {4, SYM_EINVAL},
    {5, SYM_EBUSY},
};

static int bad(const char *what)
{
    return err_setf(SYM_EPROTO, "malformed %s", what);
}

/* A blob that fits @to with its NUL and holds no control characters. */
static void read_text(struct rd *r, char *to, size_t room)
{
    size_t n;
    const uint8_t *p = rd_blob(r, room - 1, &n);

    for (size_t i = 0; i < n; i++) {
        if (p[i] < 0x20 || p[i] == 0x7f) {
            r->bad = true;
        }
    }
    if (!r->bad) {
        memcpy(to, p, n);
        to[n] = '\0';
    }
}

static int done(const struct wr *w)
{
    return w->bad ? SYM_ENOMEM : 0;
}

int hello_encode(const struct hello *h, struct buf *out)
{
    struct wr w = wr_init(out);

    wr_u32(&w, MAGIC);
    wr_u16(&w, h->format);
    wr_blob(&w, h->cluster_id, strlen(h->cluster_id));
    wr_u64(&w, h->from);
    wr_u64(&w, h->to);
    wr_u64(&w, h->starts);
    wr_u64(&w, h->nonce);
    wr_blob(&w, h->address, strlen(h->address));
    if (h->format == HELLO_FORMAT_MOVED) {
        wr_u64(&w, h->moves);
    }
    return done(&w);
}

int welcome_encode(const struct welcome *v, struct buf *out)
{
    struct wr w = wr_init(out);

    wr_u16(&w, v->format);
    wr_u64(&w, v->id);
    wr_u64(&w, v->starts);
    wr_u64(&w, v->nonce);
    return done(&w);
}

int refusal_encode(const struct refusal *v, struct buf *out)
{
    struct wr w = wr_init(out);
    uint8_t code = 0;

    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        if (codes[i].code == v->code) {
            code = codes[i].wire;
        }
    }
    wr_u8(&w, code);
    wr_blob(&w, v->reason, strlen(v->reason));
    return done(&w);
}

int hello_decode(const uint8_t *data, size_t n, struct hello *out)
{
    struct rd r = rd_init(data, n);

    *out = (struct hello){0};
    if (rd_u32(&r) != MAGIC) {
        return bad("hello");
    }
    out->format = rd_u16(&r);
    if (r.bad || !hello_is_known(out->format)) {
        return r.bad ? bad("hello") : 0;
    }
    read_text(&r, out->cluster_id, sizeof out->cluster_id);
    out->from = rd_u64(&r);
    out->to = rd_u64(&r);
    out->starts = rd_u64(&r);
    out->nonce = rd_u64(&r);
    read_text(&r, out->address, sizeof out->address);
    if (out->format == HELLO_FORMAT_MOVED) {
        out->moves = rd_u64(&r);
        r.bad = r.bad || out->moves == 0;
    }
    return rd_done(&r) ? 0 : bad("hello");
}

int welcome_decode(const uint8_t *data, size_t n, struct welcome *out)
{
    struct rd r = rd_init(data, n);

    *out = (struct welcome){.format = rd_u16(&r)};
    if (r.bad || out->format != HELLO_FORMAT) {
        return r.bad ? bad("welcome") : 0;
    }
    out->id = rd_u64(&r);
    out->starts = rd_u64(&r);
    out->nonce = rd_u64(&r);
    return rd_done(&r) ? 0 : bad("welcome");
}

int refusal_decode(const uint8_t *data, size_t n, struct refusal *out)
{
    struct rd r = rd_init(data, n);
    uint8_t code = rd_u8(&r);

    *out = (struct refusal){.code = SYM_EPROTO};
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        if (codes[i].wire == code) {
            out->code = codes[i].code;
        }
    }
    read_text(&r, out->reason, sizeof out->reason);
    return rd_done(&r) ? 0 : bad("refusal");
}
