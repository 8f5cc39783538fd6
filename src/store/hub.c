#include "store/hub.h"

#include "base/err.h"
#include "base/hash.h"
#include "store/internal.h"

#include <stdlib.h>
#include <string.h>

struct group {
    UT_hash_handle hh;
    TAILQ_HEAD(, watch) watches;
    TAILQ_ENTRY(group) dirty_link;
    bool dirty;
    bool lost; /* not in the hash for want of memory */
    /* Numbers of events, oldest first, of @cap, a power of two: places @first to @next - 1 of an endless
     * array. */
    uint64_t *seqs;
    size_t cap;
    uint64_t first, next;
    size_t prefix_len;
    uint8_t prefix[];
};

struct watch {
    struct hub *hub;
    struct group *group;
    TAILQ_ENTRY(watch) group_link, ready_link;
    watch_cb cb;
    void *arg;
    uint64_t old, old_end; /* events to look through from before it was opened */
    uint64_t pos;          /* its next place in the group's array */
    bool ready, paused, closed;
    bool lost; /* something that it had to see is gone */
};

/* FNV-1a, because the hash of a key's every beginning falls off along the way. */
enum { HASH_START = 2166136261U, HASH_PRIME = 16777619 };

static unsigned hash_step(unsigned hash, uint8_t c)
{
    return (hash ^ c) * HASH_PRIME;
}

void hub_init(struct hub *h, size_t ring_bytes, uint64_t revision)
{
    memset(h, 0, sizeof *h);
    h->ring.limit = ring_bytes;
    h->ring.base = revision;
    TAILQ_INIT(&h->dirty);
    TAILQ_INIT(&h->ready);
}

/* --- groups --- */

static struct group *group_find(struct hub *h, struct slice prefix, unsigned hash)
{
    struct group *g;
    HASH_FIND_BYHASHVALUE(hh, h->groups, prefix.p, prefix.n, hash, g);
    return g;
}

static struct group *group_get(struct hub *h, struct slice prefix)
{
    unsigned hash = HASH_START;
    for (size_t i = 0; i < prefix.n; i++) {
        hash = hash_step(hash, prefix.p[i]);
    }
    struct group *g = group_find(h, prefix, hash);
    if (g != NULL) {
        return g;
    }
    g = calloc(1, sizeof *g + prefix.n);
    if (g == NULL) {
        return NULL;
    }
    TAILQ_INIT(&g->watches);
    g->prefix_len = prefix.n;
    if (prefix.n > 0) {
        memcpy(g->prefix, prefix.p, prefix.n);
    }
    HASH_ADD_KEYPTR_BYHASHVALUE(hh, h->groups, g->prefix, g->prefix_len, hash, g);
    if (g->lost) {
        free(g);
        return NULL;
    }
    h->n_of_len[prefix.n]++;
    if (prefix.n > h->longest) {
        h->longest = prefix.n;
    }
    return g;
}

static void group_free(struct hub *h, struct group *g)
{
    if (g->dirty) {
        TAILQ_REMOVE(&h->dirty, g, dirty_link);
    }
    HASH_DELETE(hh, h->groups, g);
    h->n_of_len[g->prefix_len]--;
    while (h->longest > 0 && h->n_of_len[h->longest] == 0) {
        h->longest--;
    }
    free(g->seqs);
    free(g);
}

static void group_dirty(struct hub *h, struct group *g)
{
    if (!g->dirty) {
        g->dirty = true;
        TAILQ_INSERT_TAIL(&h->dirty, g, dirty_link);
    }
}

static void group_lose(struct hub *h, struct group *g)
{
    struct watch *w;
    TAILQ_FOREACH (w, &g->watches, group_link) {
        w->lost = true;
    }
    group_dirty(h, g);
}

static int group_grow(struct hub *h, struct group *g)
{
    /* First what nobody waits for any more, or what the ring has let go of. */
    uint64_t needed = g->next;
    struct watch *w;
    TAILQ_FOREACH (w, &g->watches, group_link) {
        needed = w->pos < needed ? w->pos : needed;
    }
    while (g->first < g->next && (g->first < needed || g->seqs[g->first & (g->cap - 1)] < h->ring.first)) {
        g->first++;
    }
    if (g->next - g->first < g->cap) {
        return 0;
    }
    size_t cap = g->cap == 0 ? 8 : g->cap * 2;
    uint64_t *seqs = malloc(cap * sizeof *seqs);
    if (seqs == NULL) {
        return SYM_ENOMEM;
    }
    for (uint64_t i = g->first; i < g->next; i++) {
        seqs[i & (cap - 1)] = g->seqs[i & (g->cap - 1)];
    }
    free(g->seqs);
    g->seqs = seqs;
    g->cap = cap;
    return 0;
}

static void group_add(struct hub *h, struct group *g, uint64_t seq)
{
    if (g->next - g->first == g->cap && group_grow(h, g) != 0) {
        group_lose(h, g);
        return;
    }
    g->seqs[g->next & (g->cap - 1)] = seq;
    g->next++;
    group_dirty(h, g);
}

/* --- what is applied --- */

static void match(struct hub *h, struct slice key, uint64_t seq)
{
    unsigned hash = HASH_START;
    for (size_t len = 0;; len++) {
        if (h->n_of_len[len] > 0) {
            struct group *g = group_find(h, (struct slice){key.p, len}, hash);
            if (g != NULL) {
                group_add(h, g, seq);
            }
        }
        if (len == key.n || len == h->longest) {
            return;
        }
        hash = hash_step(hash, key.p[len]);
    }
}

void hub_publish(struct hub *h, struct event_list *events, bool lost, uint64_t revision)
{
    struct ring_event *re;
    while ((re = STAILQ_FIRST(events)) != NULL) {
        STAILQ_REMOVE_HEAD(events, link);
        h->events++;
        /* Before it is in the ring, which need not keep it. */
        if (!lost && h->groups != NULL) {
            match(h, re->ev.key, h->ring.next);
        }
        if (lost || ring_push(&h->ring, re) != 0) {
            lost = true;
            ring_event_free(re);
        }
    }
    if (lost) {
        hub_reset(h, revision);
    }
}

void hub_reset(struct hub *h, uint64_t revision)
{
    struct group *g, *next;
    ring_clear(&h->ring, revision);
    HASH_ITER (hh, h->groups, g, next) {
        group_lose(h, g);
    }
}

/* --- watches --- */

static bool has_work(const struct watch *w)
{
    return w->lost || w->old < w->old_end || w->pos < w->group->next;
}

static void set_paused(struct watch *w, bool paused)
{
    w->hub->n_paused += paused;
    w->hub->n_paused -= w->paused;
    w->paused = paused;
}

static void make_ready(struct watch *w)
{
    if (!w->ready && (!w->paused || w->lost) && has_work(w)) {
        w->ready = true;
        TAILQ_INSERT_TAIL(&w->hub->ready, w, ready_link);
    }
}

static void unlink_watch(struct watch *w)
{
    struct group *g = w->group;
    if (w->ready) {
        TAILQ_REMOVE(&w->hub->ready, w, ready_link);
    }
    TAILQ_REMOVE(&g->watches, w, group_link);
    if (TAILQ_EMPTY(&g->watches)) {
        group_free(w->hub, g);
    }
    set_paused(w, false);
    w->hub->n_watches--;
    w->closed = true;
}

int watch_open(
    struct store *s, struct slice prefix, uint64_t after, watch_cb cb, void *arg, struct watch **out)
{
    struct hub *h = &s->hub;
    if (prefix.n > KEY_MAX) {
        return err_setf(SYM_ETOOBIG, "prefix of %zu bytes: at most %d", prefix.n, KEY_MAX);
    }
    if (h->closing) {
        return err_setf(SYM_ECLOSED, "the store is closing");
    }
    if (after > store_revision(s)) {
        return err_setf(SYM_EINVAL, "revision %llu lies ahead: the state is at %llu",
            (unsigned long long)after + 1, (unsigned long long)store_revision(s));
    }
    if (after < h->ring.base) {
        return err_setf(
            SYM_ECOMPACTED, "the history begins after revision %llu", (unsigned long long)h->ring.base);
    }
    struct watch *w = calloc(1, sizeof *w);
    struct group *g = w == NULL ? NULL : group_get(h, prefix);
    if (g == NULL) {
        free(w);
        return err_setf(SYM_ENOMEM, "watch");
    }
    *w = (struct watch){
        .hub = h,
        .group = g,
        .cb = cb,
        .arg = arg,
        .old = ring_after(&h->ring, after),
        .old_end = h->ring.next,
        .pos = g->next,
    };
    TAILQ_INSERT_TAIL(&g->watches, w, group_link);
    h->n_watches++;
    make_ready(w);
    if (w->ready && h->wake != NULL) {
        h->wake(h->wake_arg);
    }
    *out = w;
    return 0;
}

void watch_resume(struct watch *w)
{
    set_paused(w, false);
    make_ready(w);
    if (w->ready && w->hub->wake != NULL) {
        w->hub->wake(w->hub->wake_arg);
    }
}

void watch_close(struct watch *w)
{
    if (w->closed) {
        return;
    }
    unlink_watch(w);
    if (w->hub->current != w) {
        free(w);
    }
}

/* Closes it for the hub's own reasons and says why. */
static void finish(struct watch *w, int status, const char *why)
{
    struct watch *outer = w->hub->current;
    unlink_watch(w);
    w->hub->current = w;
    err_setf(status, "%s", why);
    w->cb(w->arg, status, NULL, 0);
    w->hub->current = outer;
    free(w);
}

void hub_close(struct hub *h)
{
    h->closing = true;
    while (h->groups != NULL) {
        struct watch *w = TAILQ_FIRST(&h->groups->watches);
        finish(w, SYM_ECLOSED, "the store has been closed"); // NOLINT(clang-analyzer-unix.Malloc)
    }
    ring_free(&h->ring);
}

/* --- delivering --- */

struct batch {
    struct hub *hub;
    unsigned n;
    size_t bytes;
    unsigned scanned;
};

/* Whether @re may follow what is in the batch: a txn's events are not taken apart. */
static bool fits(const struct batch *b, const struct ring_event *re, uint64_t last_revision)
{
    bool full = b->n >= HUB_BATCH || b->bytes >= HUB_BATCH_BYTES || b->scanned >= HUB_SCAN;
    return !full || re->ev.revision == last_revision;
}

/* Fills a batch with what @w has to see next; false when some of that is gone. */
static bool fill(struct watch *w, struct batch *b)
{
    const struct ring *ring = &w->hub->ring;
    struct group *g = w->group;
    struct slice prefix = {g->prefix, g->prefix_len};
    uint64_t last_revision = 0;
    if (w->lost || (w->old < w->old_end && w->old < ring->first) || w->pos < g->first) {
        return false;
    }
    for (; w->old < w->old_end; w->old++, b->scanned++) {
        struct ring_event *re = ring_at(ring, w->old);
        if (!fits(b, re, last_revision)) {
            return true;
        }
        last_revision = re->ev.revision;
        if (slice_begins(re->ev.key, prefix)) {
            w->hub->batch[b->n++] = &re->ev;
            b->bytes += re->ev.key.n + re->ev.value.n;
        }
    }
    for (; w->pos < g->next; w->pos++) {
        uint64_t seq = g->seqs[w->pos & (g->cap - 1)];
        if (seq < ring->first) {
            return false;
        }
        struct ring_event *re = ring_at(ring, seq);
        if (!fits(b, re, last_revision)) {
            return true;
        }
        last_revision = re->ev.revision;
        w->hub->batch[b->n++] = &re->ev;
        b->bytes += re->ev.key.n + re->ev.value.n;
    }
    return true;
}

static void deliver(struct hub *h, struct watch *w, struct batch *b)
{
    TAILQ_REMOVE(&h->ready, w, ready_link);
    w->ready = false;
    if (!fill(w, b)) {
        h->cut++;
        finish(w, SYM_ECOMPACTED, "the history that this watch needs is gone");
        return;
    }
    if (b->n > 0) {
        h->delivered += b->n;
        h->current = w;
        bool more = w->cb(w->arg, 0, h->batch, b->n);
        h->current = NULL;
        for (unsigned i = 0; i < b->n; i++) {
            ring_count_line(&h->ring, h->batch[i]);
        }
        if (w->closed) {
            free(w);
            return;
        }
        set_paused(w, !more);
    }
    make_ready(w);
}

bool store_pump(struct store *s)
{
    struct hub *h = &s->hub;
    struct group *g;
    struct watch *w;
    if (h->pumping) {
        return true;
    }
    h->pumping = true;
    while ((g = TAILQ_FIRST(&h->dirty)) != NULL) {
        TAILQ_REMOVE(&h->dirty, g, dirty_link);
        g->dirty = false;
        TAILQ_FOREACH (w, &g->watches, group_link) {
            make_ready(w);
        }
    }
    size_t done = 0, bytes = 0;
    while (done < HUB_PUMP && bytes < HUB_PUMP_BYTES && (w = TAILQ_FIRST(&h->ready)) != NULL) {
        struct batch b = {.hub = h};
        /* The analyzer does not see that a watch that is freed has left the list. */
        deliver(h, w, &b); // NOLINT(clang-analyzer-unix.Malloc)
        done += 1 + b.n + b.scanned / 8;
        bytes += b.bytes;
    }
    h->pumping = false;
    return !TAILQ_EMPTY(&h->ready) || !TAILQ_EMPTY(&h->dirty);
}

void store_on_watch(struct store *s, void (*wake)(void *arg), void *arg)
{
    s->hub.wake = wake;
    s->hub.wake_arg = arg;
}
