#include "sandbox/frame.h"

#include "base/err.h"

#include <string.h>

long frame_parse(const uint8_t *data, size_t n, size_t max, struct frame *out)
{
    if (n < FRAME_HEADER) {
        return 0;
    }
    size_t len = get_u32(data);
    if (len > max) {
        return err_setf(SYM_EPROTO, "a frame of %zu bytes", len);
    }
    if (n - FRAME_HEADER < len) {
        return 0;
    }
    *out = (struct frame){data[4], get_u32(data + 5), data + FRAME_HEADER, len};
    return (long)(FRAME_HEADER + len);
}

size_t frame_begin(struct wr *w, enum frame_kind kind, uint32_t id)
{
    size_t at = w->out->len;
    wr_u32(w, 0);
    wr_u8(w, (uint8_t)kind);
    wr_u32(w, id);
    return at;
}

void frame_end(struct wr *w, size_t at)
{
    if (!w->bad) {
        put_u32(buf_data(w->out) + at, (uint32_t)(w->out->len - at - FRAME_HEADER));
    }
}

void frame_put_text(struct wr *w, const char *text)
{
    wr_blob(w, text, strlen(text) + 1);
}

const char *frame_get_text(struct rd *r, size_t max)
{
    size_t n;
    const uint8_t *text = rd_blob(r, max + 1, &n);
    if (text == NULL || n == 0 || strnlen((const char *)text, n) != n - 1) {
        r->bad = true;
        return NULL;
    }
    return (const char *)text;
}

void frame_put_call(struct wr *w, uint32_t id, const struct frame_call *call)
{
    buf_reserve(w->out, call->n_input + call->n_state + FRAME_HOOK_MAX); /* once, where there is memory */
    size_t at = frame_begin(w, FRAME_CALL, id);
    frame_put_text(w, call->hook);
    wr_u8(w, call->only != NULL);
    frame_put_text(w, call->only != NULL ? call->only : "");
    wr_u8(w, call->has_state);
    wr_blob(w, call->state, call->has_state ? call->n_state : 0);
    wr_blob(w, call->input, call->n_input);
    frame_end(w, at);
}

bool frame_get_call(const struct frame *f, struct frame_call *out)
{
    struct rd r = rd_init(f->data, f->n);
    out->hook = frame_get_text(&r, FRAME_HOOK_MAX);
    bool has_only = rd_u8(&r) != 0;
    out->only = frame_get_text(&r, FRAME_ONLY_MAX);
    out->only = has_only ? out->only : NULL;
    out->has_state = rd_u8(&r) != 0;
    out->state = rd_blob(&r, FRAME_TO_CHILD_MAX, &out->n_state);
    out->input = rd_blob(&r, FRAME_TO_CHILD_MAX, &out->n_input);
    return rd_done(&r);
}

void frame_put_answer(struct wr *w, uint32_t id, const struct frame_answer *answer)
{
    size_t at = frame_begin(w, FRAME_ANSWER, id);
    wr_u8(w, (uint8_t)-answer->status);
    frame_put_text(w, answer->policy);
    frame_put_text(w, answer->message);
    wr_blob(w, answer->data, answer->n);
    frame_end(w, at);
}

bool frame_get_answer(const struct frame *f, struct frame_answer *out)
{
    struct rd r = rd_init(f->data, f->n);
    out->status = -(int)rd_u8(&r);
    out->policy = frame_get_text(&r, BOX_NAME_MAX);
    out->message = frame_get_text(&r, FRAME_TEXT_MAX);
    out->data = rd_blob(&r, FRAME_FROM_CHILD_MAX, &out->n);
    return rd_done(&r) && out->status > -SYM_ERR_MAX &&
           (*out->policy == '\0' || box_name_valid(out->policy, strlen(out->policy)));
}
