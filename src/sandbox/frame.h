/* What the daemon and the child that runs the policies say to each other. Both ends treat what comes as hostile: a
 * reader takes nothing but whole frames of known kinds and bounded sizes.
 *
 * A frame on the stream of calls is a header of 9 bytes (u32 bytes behind it, u8 kind, u32 id) and a payload:
 *   SETUP   u64 memory, u64 memory of all, u64 instructions, u8 full
 *   LOAD    blob name, blob source
 *   DROP    blob name
 *   CALL    blob hook, u8 has only, blob only, u8 has state, blob state, blob input
 *   TEST    blob source, u8 has cases, blob cases
 *   READY   (child) nothing: it has shut itself in; id 0
 *   ANSWER  (child) u8 -status, blob policy that failed, blob text: the message, blob data: JSON
 * The child answers SETUP with READY, DROP not at all, and the others in the order in which they came.
 *
 * On the stream of reads the child asks (u32 bytes behind it, u8 kind, u32 id of the call, u32 limit, the key) and waits
 * for the answer (u32 bytes behind it, u8 -status, and the message or what read_fn says). */
#ifndef SYM_SANDBOX_FRAME_H
#define SYM_SANDBOX_FRAME_H

#include "base/buf.h"
#include "codec/rw.h"
#include "sandbox/box.h"

enum {
    FRAME_HEADER = 9,
    FRAME_TO_CHILD_MAX = BOX_INPUT_MAX + (1 << 20),
    FRAME_FROM_CHILD_MAX = 4 << 20,
    FRAME_HOOK_MAX = 128,
    FRAME_ONLY_MAX = 8192,
    FRAME_TEXT_MAX = 2048
};

enum frame_kind {
    FRAME_SETUP = 1,
    FRAME_LOAD,
    FRAME_DROP,
    FRAME_CALL,
    FRAME_TEST,
    FRAME_READY,
    FRAME_ANSWER
};

struct frame {
    uint8_t kind;
    uint32_t id;
    const uint8_t *data; /* payload, in place */
    size_t n;
};

/* The frame at the start of @n bytes: its whole length, 0 when there is more to come, or SYM_EPROTO when it is longer
 * than @max behind the header. */
long frame_parse(const uint8_t *data, size_t n, size_t max, struct frame *out);

/* Begins a frame at the end of @out and returns where; frame_end fills in its length. */
size_t frame_begin(struct wr *w, enum frame_kind kind, uint32_t id);
void frame_end(struct wr *w, size_t at);

struct frame_call {
    const char *hook, *only; /* only NULL: all */
    const uint8_t *input, *state;
    size_t n_input, n_state;
    bool has_state;
};
/* Texts end with a NUL on the wire, so that they can be used in place. False when it is not one. */
void frame_put_call(struct wr *w, uint32_t id, const struct frame_call *call);
bool frame_get_call(const struct frame *f, struct frame_call *out);

struct frame_answer {
    int status;
    const char *policy, *message;
    const uint8_t *data;
    size_t n;
};
void frame_put_answer(struct wr *w, uint32_t id, const struct frame_answer *answer);
bool frame_get_answer(const struct frame *f, struct frame_answer *out);

/* The page that both see: whom the child asks just now. The child may write anything into it. */
struct frame_page {
    volatile uint32_t id; /* of the frame that is being answered; 0: none */
    volatile char policy[BOX_NAME_MAX + 4];
};

/* A text with its NUL; NULL when it is longer than @max or has none. */
const char *frame_get_text(struct rd *r, size_t max);
void frame_put_text(struct wr *w, const char *text);

#endif
