/* The server: its doors, its limits, and its end. */
#include "net/http_impl.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum { SWEEP_MS = 500, UNIX_PATIENCE = 20 };

/* --- deadlines and limits */

static bool overdue(const struct http_conn *c, uint64_t now, uint64_t ms)
{
    return c != NULL && now - c->since >= ms;
}

static void expire(struct http_server *s, enum http_phase phase, uint64_t ms)
{
    uint64_t now = uv_now(s->loop);
    struct http_conn *c;
    while (c = TAILQ_FIRST(&s->phases[phase]), overdue(c, now, ms)) {
        if (c->x != NULL) {
            conn_fail(c, 408, "the request did not arrive in time");
        } else {
            conn_close(c, 0);
        }
    }
}

/* Cuts peers that take nothing of what is waiting for them. If more waits than may, the one with the most is
 * cut, of those that are not trusted if there are any, and true is returned: look again. */
static bool sweep_queues(struct http_server *s)
{
    uint64_t now = uv_now(s->loop);
    size_t total = s->held, most[2] = {0};
    struct http_conn *worst[2] = {NULL}; /* by trust */
    for (int i = 0; i < PHASE_GONE; i++) {
        struct http_conn *c, *next;
        for (c = TAILQ_FIRST(&s->phases[i]); c != NULL; c = next) {
            uint64_t patience =
                s->limits.send_ms * (stream_peer_addr(c->stream)->is_unix ? UNIX_PATIENCE : 1);
            next = TAILQ_NEXT(c, link);
            size_t queued = stream_queued(c->stream);
            uint64_t sent = stream_sent(c->stream);
            if (queued == 0 || sent != c->sent) {
                c->sent = sent;
                c->stuck_since = now;
            } else if (now - c->stuck_since >= patience) {
                conn_close(c, err_setf(SYM_ETIMEOUT, "the peer does not read"));
                continue;
            }
            size_t holds = conn_holds(c);
            total += holds;
            if (holds > 0) {
                bool trusted = conn_is_trusted(c);
                worst[trusted] = holds > most[trusted] ? c : worst[trusted];
                most[trusted] = holds > most[trusted] ? holds : most[trusted];
            }
        }
    }
    s->stats.waiting = total + s->small;
    struct http_conn *cut = worst[0] != NULL ? worst[0] : worst[1];
    if (total > s->limits.max_memory && cut != NULL) {
        conn_close(cut, err_setf(SYM_EBUSY, "too much is waiting to be sent"));
        return true;
    }
    return false;
}

/* Half of what was not needed since the last time goes. */
static void trim_pool(struct http_server *s, unsigned n)
{
    while (n-- > 0) {
        struct exchange *x = SLIST_FIRST(&s->pool);
        SLIST_REMOVE_HEAD(&s->pool, link);
        s->n_pool--;
        exchange_free(x);
    }
    s->pool_low = s->n_pool;
}

static void on_sweep(uv_timer_t *timer)
{
    struct http_server *s = timer->data;
    expire(s, PHASE_HEAD, s->limits.head_ms);
    expire(s, PHASE_BODY, s->limits.body_ms);
    expire(s, PHASE_IDLE, s->limits.idle_ms);
    while (sweep_queues(s)) {
    }
    trim_pool(s, (s->pool_low + 1) / 2);
    if (s->stats.open == 0 && s->n_pool == 0) {
        uv_timer_stop(timer);
    }
}

/* Often enough for the shortest deadline to be kept by about a quarter. */
static void start_sweep(struct http_server *s)
{
    const struct http_limits *l = &s->limits;
    uint64_t ms = SWEEP_MS;
    const uint64_t all[] = {l->head_ms, l->body_ms, l->idle_ms, l->send_ms};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        ms = all[i] / 4 < ms ? all[i] / 4 : ms;
    }
    if (!uv_is_active((uv_handle_t *)&s->sweep)) {
        uv_timer_start(&s->sweep, on_sweep, ms > 0 ? ms : 1, ms > 0 ? ms : 1);
    }
}

/* The connection that has been without a whole request for the longest time, of all or of those not trusted. */
static struct http_conn *longest_without(struct http_server *s, bool all)
{
    static const enum http_phase spare[] = {PHASE_END, PHASE_HEAD, PHASE_BODY, PHASE_IDLE};
    struct http_conn *oldest = NULL;
    for (size_t i = 0; i < sizeof spare / sizeof spare[0]; i++) {
        struct http_conn *c = TAILQ_FIRST(&s->phases[spare[i]]);
        while (c != NULL && !all && conn_is_trusted(c)) {
            c = TAILQ_NEXT(c, link);
        }
        if (c != NULL && (oldest == NULL || c->since < oldest->since)) {
            oldest = c;
        }
    }
    return oldest;
}

static bool close_one(struct http_server *s)
{
    struct http_conn *oldest = longest_without(s, false);
    if (oldest == NULL) {
        oldest = longest_without(s, true);
    }
    if (oldest != NULL) {
        conn_close(oldest, err_setf(SYM_EBUSY, "too many connections"));
    }
    return oldest != NULL;
}

void server_make_room(struct http_server *s, const struct http_conn *c, size_t n)
{
    struct http_conn *other, *next;
    for (other = TAILQ_FIRST(&s->phases[PHASE_BODY]);
         other != NULL && s->small + n > s->limits.max_small_memory; other = next) {
        next = TAILQ_NEXT(other, link);
        if (other != c && other->x->parser.held == &s->small) {
            conn_fail(other, 503, "too many requests are under way");
        }
    }
}

static bool on_accept(void *arg, const struct peer_addr *from, struct stream_config *cfg)
{
    struct http_door *door = arg;
    struct http_server *s = door->server;
    if (s->closing || (!from->is_unix && addr_count(&s->addrs, from) >= s->limits.max_conns_addr) ||
        (s->alive >= s->limits.max_conns && !close_one(s))) {
        s->stats.refused++;
        return false;
    }
    cfg->ops = &http_conn_ops;
    cfg->tls = door->tls ? s->tls : NULL;
    cfg->open_ms = s->limits.head_ms;
    return true;
}

static void on_opened(void *arg, struct stream *stream)
{
    struct http_door *door = arg;
    conn_opened(door->server, stream, door->tls);
    start_sweep(door->server);
}

/* --- turns */

static void noop(uv_idle_t *idle)
{
    (void)idle;
}

/* One turn for each that waits now: a peer that sends many requests at once is served in turn with the
 * others. */
static void run_turns(struct http_server *s)
{
    struct http_conn *c;
    struct http_conn *last = TAILQ_LAST(&s->turns, http_conns);
    while ((c = TAILQ_FIRST(&s->turns)) != NULL) {
        TAILQ_REMOVE(&s->turns, c, turn);
        c->queued = false;
        conn_turn(c);
        if (c == last) {
            break;
        }
    }
    if (TAILQ_EMPTY(&s->turns)) {
        uv_idle_stop(&s->idle);
    } else {
        uv_idle_start(&s->idle, noop);
    }
}

static void on_prepare(uv_prepare_t *prepare)
{
    struct http_server *s = prepare->data;
    s->clock_uses = 0;
    if (!TAILQ_EMPTY(&s->turns) || uv_is_active((uv_handle_t *)&s->idle)) {
        run_turns(s);
    }
}

static void on_check(uv_check_t *check)
{
    struct http_server *s = check->data;
    s->clock_uses = 0;
    if (!TAILQ_EMPTY(&s->turns)) {
        run_turns(s);
    }
}

/* --- life */

static void set_default(uint64_t *v, uint64_t value)
{
    *v = *v != 0 ? *v : value;
}

/* Connections must leave descriptors for the rest of the program: raft, its files, the control socket. */
static void spare_descriptors(struct http_limits *l)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur != RLIM_INFINITY) {
        rlim_t spare = files.rlim_cur < 1024 ? files.rlim_cur / 4 : 256;
        if (l->max_conns > files.rlim_cur - spare) {
            l->max_conns = (unsigned)(files.rlim_cur - spare);
        }
    }
}

static void set_limits(struct http_limits *l)
{
    l->max_head = l->max_head != 0 ? l->max_head : 16 * 1024;
    l->max_body = l->max_body != 0 ? l->max_body : 3 << 20;
    l->max_small_body = l->max_small_body != 0 ? l->max_small_body : 64 * 1024;
    l->max_conns = l->max_conns != 0 ? l->max_conns : 4096;
    l->max_conns_addr = l->max_conns_addr != 0 ? l->max_conns_addr : 2048;
    l->max_memory = l->max_memory != 0 ? l->max_memory : 256 << 20;
    l->max_small_memory = l->max_small_memory != 0 ? l->max_small_memory : 16 << 20;
    set_default(&l->head_ms, 10 * 1000);
    set_default(&l->body_ms, 30 * 1000);
    set_default(&l->idle_ms, 300 * 1000);
    set_default(&l->send_ms, 30 * 1000);
    spare_descriptors(l);
}

int http_server_new(uv_loop_t *loop, const struct http_limits *limits, http_handler handler, void *arg,
    struct http_server **out)
{
    struct http_server *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    s->loop = loop;
    if (limits != NULL) {
        s->limits = *limits;
    }
    set_limits(&s->limits);
    s->handler = handler;
    s->arg = arg;
    s->addrs.seed = uv_hrtime();
    for (int i = 0; i < PHASES; i++) {
        TAILQ_INIT(&s->phases[i]);
    }
    TAILQ_INIT(&s->turns);
    SLIST_INIT(&s->pool);
    uv_prepare_init(loop, &s->prepare);
    uv_check_init(loop, &s->check);
    uv_idle_init(loop, &s->idle);
    uv_timer_init(loop, &s->sweep);
    uv_timer_init(loop, &s->grace);
    s->prepare.data = s->check.data = s->idle.data = s->sweep.data = s->grace.data = s;
    s->handles = 5;
    uv_prepare_start(&s->prepare, on_prepare);
    uv_check_start(&s->check, on_check);
    *out = s;
    return 0;
}

static struct http_door *new_door(struct http_server *s)
{
    if (s->n_doors == HTTP_DOORS_MAX || s->closing) {
        err_setf(SYM_EINVAL, s->closing ? "the server is closing" : "too many listeners");
        return NULL;
    }
    s->doors[s->n_doors] = (struct http_door){.server = s};
    return &s->doors[s->n_doors];
}

int http_server_listen_tcp(
    struct http_server *s, const char *bind_addr, uint16_t port, struct tls_ctx *tls, uint16_t *bound)
{
    struct http_door *door = new_door(s);
    int rv = door == NULL
                 ? SYM_EINVAL
                 : listener_tcp(s->loop, bind_addr, port, on_accept, on_opened, door, &door->listener);
    if (rv != 0) {
        return rv;
    }
    door->tls = tls != NULL;
    if (tls != NULL) {
        s->tls = tls;
    }
    if (bound != NULL) {
        *bound = listener_port(door->listener);
    }
    s->n_doors++;
    return 0;
}

int http_server_listen_unix(struct http_server *s, const char *path, mode_t mode, gid_t gid)
{
    struct http_door *door = new_door(s);
    int rv = door == NULL
                 ? SYM_EINVAL
                 : listener_unix(s->loop, path, mode, gid, on_accept, on_opened, door, &door->listener);
    s->n_doors += rv == 0;
    return rv;
}

void http_server_set_tls(struct http_server *s, struct tls_ctx *tls)
{
    s->tls = tls;
}

void http_server_set_trust(struct http_server *s, bool (*trust)(void *arg, const struct tls_peer *peer))
{
    s->trust = trust;
}

void http_server_drop_cn(struct http_server *s, const char *cn)
{
    http_server_drop_unless(s, cn, NULL, NULL);
}

void http_server_drop_unless(
    struct http_server *s, const char *cn, bool (*keep)(void *arg, const struct tls_peer *peer), void *arg)
{
    for (int i = 0; i < PHASE_GONE; i++) {
        struct http_conn *c, *next;
        for (c = TAILQ_FIRST(&s->phases[i]); c != NULL; c = next) {
            next = TAILQ_NEXT(c, link);
            const struct tls_peer *peer = stream_tls_peer(c->stream);
            if (peer != NULL && peer->present && strcmp(peer->cert.cn, cn) == 0 &&
                (keep == NULL || !keep(arg, peer))) {
                conn_close(c, err_setf(SYM_EDENIED, "%s was removed", cn));
            }
        }
    }
}

void http_server_stats(const struct http_server *s, struct http_stats *out)
{
    *out = s->stats;
}

/* --- the end */

static void on_handle_closed(uv_handle_t *handle)
{
    struct http_server *s = handle->data;
    if (--s->handles > 0) {
        return;
    }
    trim_pool(s, s->n_pool);
    if (s->done != NULL) {
        s->done(s->done_arg);
    }
    free(s);
}

static void end_if_empty(struct http_server *s)
{
    if (s->stats.open > 0 || uv_is_closing((uv_handle_t *)&s->sweep)) {
        return;
    }
    uv_handle_t *all[] = {(uv_handle_t *)&s->prepare, (uv_handle_t *)&s->check, (uv_handle_t *)&s->idle,
        (uv_handle_t *)&s->sweep, (uv_handle_t *)&s->grace};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        uv_close(all[i], on_handle_closed);
    }
}

void server_conn_gone(struct http_server *s)
{
    s->stats.open--;
    if (s->closing) {
        end_if_empty(s);
    }
}

static void on_grace_end(uv_timer_t *timer)
{
    struct http_server *s = timer->data;
    for (int i = 0; i < PHASE_GONE; i++) {
        struct http_conn *c;
        while ((c = TAILQ_FIRST(&s->phases[i])) != NULL) {
            conn_close(c, err_setf(SYM_ECLOSED, "the server is closing"));
        }
    }
}

/* Only a request whose handler works on its one whole answer is worth waiting for, and an answer that is on
 * its way. */
static void wind_up(struct http_conn *c)
{
    const struct exchange *x = TAILQ_FIRST(&c->due);
    if (x != NULL && (!x->streamed || x->over)) {
        return;
    }
    bool between = c->phase == PHASE_IDLE || (c->phase == PHASE_BUSY && x == NULL);
    if (between && stream_queued(c->stream) > 0) {
        conn_finish(c);
    } else if (c->phase != PHASE_END) {
        conn_close(c, err_setf(SYM_ECLOSED, "the server is closing"));
    }
}

void http_server_close(struct http_server *s, uint64_t grace_ms, void (*done)(void *arg), void *arg)
{
    if (s->closing) {
        return;
    }
    s->closing = true;
    s->done = done;
    s->done_arg = arg;
    for (unsigned i = 0; i < s->n_doors; i++) {
        listener_close(s->doors[i].listener);
    }
    for (int i = 0; i < PHASE_GONE; i++) {
        struct http_conn *c, *next;
        for (c = TAILQ_FIRST(&s->phases[i]); c != NULL; c = next) {
            next = TAILQ_NEXT(c, link);
            wind_up(c);
        }
    }
    if (grace_ms == 0) {
        on_grace_end(&s->grace);
    } else {
        uv_timer_start(&s->grace, on_grace_end, grace_ms, 0);
    }
    end_if_empty(s);
}
