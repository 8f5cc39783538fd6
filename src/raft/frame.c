#include "raft/frame.h"

#include "base/err.h"
#include "codec/rw.h"

#include <stdlib.h>
#include <string.h>

enum { FLAG_MORE = 1 };

static const size_t class_max[FRAME_CLASSES] = {
    [FRAME_CONTROL] = FRAME_CONTROL_MAX,
    [FRAME_URGENT] = FRAME_BULK,
    [FRAME_NORMAL] = FRAME_BULK,
    [FRAME_BULKY] = FRAME_MAX,
};

void frame_put_head(uint8_t head[FRAME_HEAD], uint8_t kind, enum frame_class class, uint32_t n, bool more)
{
    put_u32(head, n);
    head[4] = kind;
    head[5] = class & 0xff;
    head[6] = more ? FLAG_MORE : 0;
    head[7] = 0;
}

/* ---- sending ---- */

struct frame_out *frame_out_new(
    uint8_t kind, const uv_buf_t *bufs, unsigned n, frame_sent sent, void *arg, int *err)
{
    bool copy = sent == NULL;
    size_t size = 0;

    for (unsigned i = 0; i < n && size <= FRAME_MAX; i++) {
        size += bufs[i].len;
    }
    if (size > FRAME_MAX) {
        *err = err_setf(SYM_ETOOBIG, "a frame of more than %d bytes", (int)FRAME_MAX);
        return NULL;
    }
    struct frame_out *f = malloc(sizeof *f + (copy ? 1 : n) * sizeof f->bufs[0] + (copy ? size : 0));
    if (f == NULL) {
        *err = err_setf(SYM_ENOMEM, "a frame of %zu bytes", size);
        return NULL;
    }
    *f = (struct frame_out){.kind = kind, .sent = sent, .arg = arg, .size = size, .n = copy ? 1 : n};
    if (!copy) {
        if (n > 0) {
            memcpy(f->bufs, bufs, n * sizeof f->bufs[0]);
        }
        return f;
    }
    char *to = (char *)&f->bufs[1];
    f->bufs[0] = uv_buf_init(to, (unsigned)size);
    for (unsigned i = 0; i < n; i++) {
        if (bufs[i].len > 0) {
            memcpy(to, bufs[i].base, bufs[i].len);
            to += bufs[i].len;
        }
    }
    return f;
}

void frame_queue_init(struct frame_queue *q)
{
    *q = (struct frame_queue){0};
    for (int i = 0; i < FRAME_CLASSES; i++) {
        TAILQ_INIT(&q->of[i]);
    }
}

bool frame_queue_empty(const struct frame_queue *q)
{
    for (int i = 0; i < FRAME_CLASSES; i++) {
        if (q->count[i] > 0) {
            return false;
        }
    }
    return true;
}

static enum frame_class class_of(size_t n, bool urgent)
{
    if (n > FRAME_BULK) {
        return FRAME_BULKY;
    }
    return urgent ? FRAME_URGENT : FRAME_NORMAL;
}

int frame_queue_add(struct frame_queue *q, struct frame_out *f, bool urgent)
{
    enum frame_class class = class_of(f->size, urgent);
    bool full = class == FRAME_BULKY
                    ? q->count[class] > 0
                    : q->count[class] >= FRAME_QUEUE_COUNT || q->bytes[class] + f->size > FRAME_QUEUE_BYTES;

    if (full) {
        return err_setf(SYM_EBUSY, "%u frames of %zu bytes are waiting", q->count[class], q->bytes[class]);
    }
    TAILQ_INSERT_TAIL(&q->of[class], f, link);
    q->count[class]++;
    q->bytes[class] += f->size;
    return 0;
}

static void take_out(struct frame_queue *q, enum frame_class class, struct frame_out *f)
{
    TAILQ_REMOVE(&q->of[class], f, link);
    q->count[class]--;
    q->bytes[class] -= f->size;
}

long frame_queue_next(struct frame_queue *q, frame_emit emit, void *arg, struct frame_out **finished)
{
    uint8_t head[FRAME_HEAD];
    enum frame_class class = 0;

    *finished = NULL;
    while (class < FRAME_CLASSES && q->count[class] == 0) {
        class = class + 1;
    }
    if (class == FRAME_CLASSES) {
        return 0;
    }
    struct frame_out *f = TAILQ_FIRST(&q->of[class]);
    size_t n = f->size - f->done < FRAME_PIECE ? f->size - f->done : FRAME_PIECE;
    frame_put_head(head, f->kind, class, (uint32_t)n, f->done + n < f->size);
    int rv = emit(arg, head, sizeof head);
    for (size_t left = n; rv >= 0 && left > 0;) {
        const uv_buf_t *buf = &f->bufs[f->at];
        size_t take = buf->len - f->at_done < left ? buf->len - f->at_done : left;
        if (take > 0) {
            rv = emit(arg, buf->base + f->at_done, take);
        }
        left -= take;
        f->at_done += take;
        if (f->at_done == buf->len) {
            f->at++;
            f->at_done = 0;
        }
    }
    if (rv < 0) {
        return rv;
    }
    f->done += n;
    if (f->done == f->size) {
        take_out(q, class, f);
        *finished = f;
    }
    return (long)(n + sizeof head);
}

void frame_queue_drop(struct frame_queue *q, int status, struct frame_list *to)
{
    for (int i = 0; i < FRAME_CLASSES; i++) {
        struct frame_out *f;
        while ((f = TAILQ_FIRST(&q->of[i])) != NULL) {
            take_out(q, i, f);
            f->status = status;
            TAILQ_INSERT_TAIL(to, f, link);
        }
    }
}

/* ---- receiving ---- */

static int check_head(struct frame_reader *r)
{
    uint32_t n = get_u32(r->head);
    uint8_t class = r->head[5];
    uint8_t flags = r->head[6];

    if (class >= FRAME_CLASSES || (flags & ~FLAG_MORE) != 0 || r->head[7] != 0) {
        return err_setf(SYM_EPROTO, "a piece with an unknown head");
    }
    if (class != FRAME_CONTROL && r->control_only) {
        return err_setf(SYM_EPROTO, "a frame before the hello");
    }
    bool more = (flags & FLAG_MORE) != 0;
    if (n > FRAME_PIECE || (more && (n == 0 || class == FRAME_CONTROL))) {
        return err_setf(SYM_EPROTO, "a piece of %u bytes", (unsigned)n);
    }
    struct frame_part *part = &r->parts[class];
    if (part->open && part->kind != r->head[4]) {
        return err_setf(SYM_EPROTO, "a piece of another frame");
    }
    if (part->len + n > class_max[class] || r->total + n > FRAME_MAX) {
        return err_setf(SYM_ETOOBIG, "a frame of more than %zu bytes", part->len + n - 1);
    }
    part->open = true;
    part->kind = r->head[4];
    r->left = n;
    return 0;
}

static int append(struct frame_part *part, const uint8_t *data, size_t n, size_t left, bool more)
{
    if (part->cap - part->len < n) {
        /* A frame whose last byte is here gets its exact size; one that grows doubles. */
        size_t cap = part->len + n;
        if ((more || n < left) && cap < 2 * part->cap) {
            cap = 2 * part->cap;
        }
        uint8_t *grown = realloc(part->data, cap);
        if (grown == NULL) {
            return err_setf(SYM_ENOMEM, "a frame of %zu bytes", cap);
        }
        part->data = grown;
        part->cap = cap;
    }
    memcpy(part->data + part->len, data, n);
    part->len += n;
    return 0;
}

/* Gives the finished frame away. */
static int finish(struct frame_reader *r, enum frame_class class, frame_done done, void *arg, bool *go_on)
{
    struct frame_part part = r->parts[class];

    if (part.data == NULL || part.cap > part.len) {
        uint8_t *exact = realloc(part.data, part.len > 0 ? part.len : 1);
        if (exact == NULL && part.data == NULL) {
            return err_setf(SYM_ENOMEM, "a frame");
        }
        part.data = exact != NULL ? exact : part.data;
    }
    r->total -= part.len;
    r->parts[class] = (struct frame_part){0};
    *go_on = done(arg, class, part.kind, part.data, part.len);
    return 0;
}

int frame_feed(struct frame_reader *r, const uint8_t *data, size_t n, frame_done done, void *arg)
{
    bool go_on = true;
    int rv;

    if (n == 0) {
        return 0;
    }
    while (go_on) {
        if (r->have < FRAME_HEAD) {
            size_t take = FRAME_HEAD - r->have;
            take = take < n ? take : n;
            if (take > 0) {
                memcpy(r->head + r->have, data, take);
            }
            r->have += (uint8_t)take;
            data += take;
            n -= take;
            if (r->have < FRAME_HEAD) {
                return 0;
            }
            rv = check_head(r);
            if (rv != 0) {
                return rv;
            }
        }
        enum frame_class class = r->head[5];
        bool more = (r->head[6] & FLAG_MORE) != 0;
        size_t take = r->left < n ? r->left : n;
        if (take > 0) {
            rv = append(&r->parts[class], data, take, r->left, more);
            if (rv != 0) {
                return rv;
            }
            r->total += take;
            r->left -= (uint32_t)take;
            data += take;
            n -= take;
        }
        if (r->left > 0) {
            return 0;
        }
        r->have = 0;
        if (!more) {
            rv = finish(r, class, done, arg, &go_on);
            if (rv != 0) {
                return rv;
            }
        }
    }
    return 0;
}

void frame_reader_free(struct frame_reader *r)
{
    for (int i = 0; i < FRAME_CLASSES; i++) {
        free(r->parts[i].data);
    }
    *r = (struct frame_reader){0};
}
