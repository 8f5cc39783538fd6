/* What arrives on a raft connection: pieces of frames, and the control frames in them. The first byte says in
 * what portions it comes, and whether before the hello. */
#include "raft/frame.h"
#include "raft/hello.h"
#include "raft/where.h"

#include <stdlib.h>
#include <string.h>

static bool take(void *arg, enum frame_class class, uint8_t kind, uint8_t *data, size_t n)
{
    struct hello hello;
    struct welcome welcome;
    struct refusal refusal;
    struct where where;
    struct rd r = rd_init(data, n);

    (void)arg;
    (void)kind;
    if (class == FRAME_CONTROL) {
        (void)hello_decode(data, n, &hello);
        (void)welcome_decode(data, n, &welcome);
        (void)refusal_decode(data, n, &refusal);
    }
    while (where_next(&r, &where)) {
        if (strlen(where.address) >= sizeof where.address) {
            abort();
        }
    }
    free(data);
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n == 0) {
        return 0;
    }
    struct frame_reader r = {.control_only = (data[0] & 0x80) != 0};
    size_t portion = (size_t)(data[0] & 0x7f) + 1;

    for (size_t at = 1; at < n; at += portion) {
        if (frame_feed(&r, data + at, n - at < portion ? n - at : portion, take, NULL) != 0) {
            break;
        }
    }
    size_t held = 0, room = 0;
    for (int i = 0; i < FRAME_CLASSES; i++) {
        held += r.parts[i].len;
        room += r.parts[i].cap;
    }
    if (held != r.total || room > 2 * n + 64) {
        abort();
    }
    frame_reader_free(&r);
    return 0;
}
