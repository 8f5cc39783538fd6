/* How frames share a connection: queued by class, cut into pieces of at most 64 KiB so that those of
 * different classes can interleave, and put together again. Pure, no I/O; the receiving side is fed with
 * whatever arrived.
 *
 * A piece is a head of 8 bytes, little endian: u32 length, u8 kind, u8 class, u8 flags (1: more pieces of
 * this frame follow), u8 zero; then its bytes. Within a class frames follow one another, so a class has at
 * most one unfinished frame at a time and needs no number for it.
 */
#ifndef SYM_RAFT_FRAME_H
#define SYM_RAFT_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <uv.h>

enum {
    FRAME_HEAD = 8,
    FRAME_PIECE = 64 << 10,
    FRAME_CONTROL_MAX = 1024,
    FRAME_BULK = 4 << 20,         /* a frame above this size is bulk */
    FRAME_MAX = 1 << 30,          /* of one frame, and of all unfinished ones of a connection together */
    FRAME_QUEUE_BYTES = 16 << 20, /* of a queue's class; the bulk class holds one frame */
    FRAME_QUEUE_COUNT = 4096,
};

/* In the order of their precedence on the wire. Control is the connection's own (hello, keep-alive), never
 * cut. */
enum frame_class { FRAME_CONTROL, FRAME_URGENT, FRAME_NORMAL, FRAME_BULKY, FRAME_CLASSES };

/* Writes the head of a piece of @n bytes. */
void frame_put_head(uint8_t head[FRAME_HEAD], uint8_t kind, enum frame_class class, uint32_t n, bool more);

/* ---- sending ---- */

typedef void (*frame_sent)(void *arg, int status);

/* A frame on its way out. Belongs to whoever holds it; freed with free. */
struct frame_out {
    TAILQ_ENTRY(frame_out) link;
    frame_sent sent; /* for the owner to call; may be NULL */
    void *arg;
    int status;
    uint8_t kind;
    size_t size, done; /* bytes, and how many of them frame_queue_next has given out */
    unsigned n, at;    /* the pieces that it is made of, and where @done stands in them */
    size_t at_done;
    uv_buf_t bufs[];
};
TAILQ_HEAD(frame_list, frame_out);

/* A frame made of @n memory areas, which are copied if @sent is NULL and else only pointed to. NULL, with
 * SYM_ENOMEM's or SYM_ETOOBIG's message, and the code in *err. */
struct frame_out *frame_out_new(
    uint8_t kind, const uv_buf_t *bufs, unsigned n, frame_sent sent, void *arg, int *err);

struct frame_queue {
    struct frame_list of[FRAME_CLASSES];
    size_t bytes[FRAME_CLASSES];
    unsigned count[FRAME_CLASSES];
};

void frame_queue_init(struct frame_queue *q);
bool frame_queue_empty(const struct frame_queue *q);

/* 0, and the queue holds @f; or SYM_EBUSY: its class is full. */
int frame_queue_add(struct frame_queue *q, struct frame_out *f, bool urgent);

/* Gives the next piece, of the most urgent class that has one, to @emit: its head and then its bytes, in
 * several calls. *finished is the frame whose last piece this was, out of the queue now, or NULL. Returns the
 * piece's size with its head, 0 if the queue is empty, or what @emit returned below zero (the connection is
 * then of no more use). */
typedef int (*frame_emit)(void *arg, const void *data, size_t n);
long frame_queue_next(struct frame_queue *q, frame_emit emit, void *arg, struct frame_out **finished);

/* Moves every frame to the end of @to, with @status. */
void frame_queue_drop(struct frame_queue *q, int status, struct frame_list *to);

/* ---- receiving ---- */

struct frame_reader {
    bool control_only; /* set by the owner: only control frames are accepted, before the hello */
    uint8_t head[FRAME_HEAD];
    uint8_t have;  /* bytes of the head that are there */
    uint32_t left; /* bytes of the current piece still to come */
    size_t total;  /* held in all unfinished frames */
    struct frame_part {
        uint8_t *data;
        size_t len, cap;
        uint8_t kind;
        bool open; /* begun and not finished */
    } parts[FRAME_CLASSES];
};

/* A whole frame. @data is malloc'd, never NULL, and belongs to the callee. True to go on; false ends
 * frame_feed, which then returns 0 (the callee has closed the connection, say). */
typedef bool (*frame_done)(void *arg, enum frame_class class, uint8_t kind, uint8_t *data, size_t n);

/* Takes the next @n bytes. Memory grows with the bytes that came, not with a length that was only claimed. 0,
 * SYM_EPROTO, SYM_ETOOBIG or SYM_ENOMEM; after a failure only frame_reader_free is allowed. An all-zero
 * reader is a fresh one. */
int frame_feed(struct frame_reader *r, const uint8_t *data, size_t n, frame_done done, void *arg);

/* Frees what unfinished frames hold. */
void frame_reader_free(struct frame_reader *r);

#endif
