/* Simulated workers: each with a node's key, certificate and agent stream of its own, all in this one process.
 *
 *   bench_agents --to HOST:PORT,... --control SOCKET --ca FILE --token T [--agents N] [--parallel N]
 *
 * It obeys lines on standard input and answers each with one JSON object on a line:
 *   join        each joins (POST /v1/join), at most --parallel at once, spread over the managers
 *   connect     each opens its stream (GET /v1/agent) to its manager and waits until it is in sync; one that has it at
 *               another manager moves
 *   connect K   the same, but all have theirs at the Kth of --to
 *   report      each says that it is ready (POST /v1/agent/report)
 *   change S    for S seconds, one after the other: a change of the assignments of one of them, any, at SOCKET; time
 *               from the request to the line at that agent
 *   storm       waits until streams end, as those to a manager that is killed, and all are in sync again
 *   count       how many are in sync, and what has come in so far
 * A stream that ends is opened again as lua/symphony/cluster/agent.lua does it. SOCKET is the control socket of a manager
 * that has been taught POST /v1/bench/assign (spec/bench/run.lua).
 */
#include "base/err.h"
#include "net/stream_impl.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum {
    MANAGERS_MAX = 16,
    PER_ADDRESS = 500, /* agents that come from one address */
    TRIES = 5,
    BACKOFF_MS = 50,
    BACKOFF_MAX_MS = 10000,
    CHANGE_MS = 5000, /* a change that takes longer is an error */
    COMPLAINTS = 10
};

struct agent {
    unsigned number;
    struct key *key;
    struct tls_ctx *tls; /* once it has joined */
    char id[64];
    char mark[48];
    uint64_t revision;
    struct link *link; /* its stream's connection */
    uv_timer_t timer;  /* until it is opened again */
    unsigned order[MANAGERS_MAX], next, last;
    int wanted; /* the manager that it moves to; -1: none */
    unsigned backoff_ms, tries;
    bool synced;
    uint64_t lost_ns;
};

enum what { JOIN, STREAM, REPORT };

/* A connection of an agent. */
struct link {
    enum what what;
    struct agent *agent;
    struct stream *stream;
    uv_connect_t connect;
    struct buf in;
    unsigned at; /* which manager */
    uint64_t began_ns;
    bool headed; /* a stream's status line and headers have gone by */
    bool done;
};

static struct {
    struct sockaddr_in to[MANAGERS_MAX];
    unsigned n_to, agents, parallel;
    const char *control, *ca, *token;
} opt = {.agents = 2000, .parallel = 64};

static uv_loop_t loop;
static struct agent *agents;
static struct tls_ctx *anonymous;
static char instance[17];
static unsigned n_synced;
static uint64_t lines, bytes;
static uint32_t *samples; /* microseconds */
static size_t n_samples, max_samples;
static unsigned errors, again, complaints; /* again: requests that were repeated */

/* What a command has under way. */
static struct {
    enum { IDLE, EACH, CHANGE, STORM } what;
    enum what each;
    int at; /* the manager for all; -1: each has its own */
    unsigned started, under_way, done;
    uint64_t began_ns, ends_ns;
} job;

static void pump(void);
static void reopen(struct agent *a);
static void open_link(struct agent *a, enum what what, unsigned at);

static void die(const char *what)
{
    fprintf(stderr, "bench_agents: %s: %s\n", what, err_msg());
    exit(1);
}

/* For a person to see; what is tried again is no error yet. */
static void complain(const char *what, const char *why)
{
    if (complaints++ < COMPLAINTS) {
        fprintf(stderr, "bench_agents: %s: %s\n", what, why);
    }
}

static void *need(void *p)
{
    if (p == NULL) {
        abort();
    }
    return p;
}

static void sample(uint64_t ns)
{
    if (n_samples == max_samples) {
        max_samples = max_samples == 0 ? 1 << 14 : 2 * max_samples;
        samples = need(realloc(samples, max_samples * sizeof *samples));
    }
    samples[n_samples++] = (uint32_t)(ns / 1000);
}

static int by_size(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* The answer to the command under way. */
static void finish_job(uint64_t took_ns)
{
    double seconds = (double)took_ns / 1e9;
    if (n_samples > 0) {
        qsort(samples, n_samples, sizeof *samples, by_size);
    }
#define PCT(p) (n_samples == 0 ? 0 : samples[(size_t)((double)(n_samples - 1) * (p))])
    printf("{\"ops\":%zu,\"errors\":%u,\"again\":%u,\"seconds\":%.3f,\"per_second\":%.1f,\"p50_us\":%u,\"p99_"
           "us\":%u,"
           "\"max_us\":%u,"
           "\"synced\":%u,\"lines\":%llu,\"bytes\":%llu}\n",
        n_samples, errors, again, seconds, seconds > 0 ? (double)n_samples / seconds : 0, PCT(0.5), PCT(0.99),
        PCT(1.0), n_synced, (unsigned long long)lines, (unsigned long long)bytes);
    fflush(stdout);
    job.what = IDLE;
    n_samples = 0;
    errors = again = complaints = 0;
}

/* --- what answers say */

/* The string @name of JSON @text, of which it is a field; NULL if there is none. The caller frees. */
static char *json_text(const char *text, const char *name)
{
    char mark[64];
    snprintf(mark, sizeof mark, "\"%s\":\"", name);
    const char *from = strstr(text, mark);
    if (from == NULL) {
        return NULL;
    }
    from += strlen(mark);
    char *out = need(malloc(strlen(from) + 1)), *to = out;
    while (*from != '\0' && *from != '"') {
        if (*from == '\\' && *++from == 'n') {
            *to++ = '\n';
            from++;
        } else {
            *to++ = *from++;
        }
    }
    *to = '\0';
    return out;
}

/* The body of the whole answer in @in, NUL-terminated; NULL if it is not there yet. */
static const char *whole_body(struct buf *in, int *status)
{
    uint8_t *end = buf_reserve(in, 1);
    if (end == NULL) {
        abort();
    }
    *end = '\0';
    const char *text = (const char *)buf_data(in), *head = strstr(text, "\r\n\r\n");
    const char *length = head == NULL ? NULL : strcasestr(text, "content-length:");
    if (length == NULL || (size_t)(head + 4 - text) + strtoul(length + 15, NULL, 10) > in->len) {
        return NULL;
    }
    *status = atoi(text + 9);
    return head + 4;
}

/* --- changes */

static struct {
    struct stream *stream; /* to the control socket */
    struct buf in;
    struct agent *agent; /* whose change is under way */
    uint64_t began_ns;
    unsigned long long number;
    bool answered, arrived;
    uv_timer_t late;
} change;

static void next_change(void)
{
    static struct buf out;
    char body[256];
    if (uv_hrtime() >= job.ends_ns) {
        uv_timer_stop(&change.late);
        change.agent = NULL;
        finish_job(uv_hrtime() - job.began_ns);
        return;
    }
    change.agent = &agents[(unsigned)rand() % opt.agents];
    change.answered = change.arrived = false;
    change.number++;
    int n = snprintf(
        body, sizeof body, "{\"node\":\"%s\",\"value\":\"change-%llu.\"}", change.agent->id, change.number);
    buf_clear(&out);
    if (buf_appendf(&out, "POST /v1/bench/assign HTTP/1.1\r\nHost: s\r\nContent-Length: %d\r\n\r\n%s", n,
            body) != 0) {
        abort();
    }
    uv_timer_start(&change.late, change.late.timer_cb, CHANGE_MS, 0);
    change.began_ns = uv_hrtime();
    (void)stream_write(change.stream, buf_data(&out), out.len);
}

static void change_seen(bool *what)
{
    *what = true;
    if (change.answered && change.arrived) {
        next_change();
    }
}

static void change_arrived(struct agent *a, const char *line)
{
    char mark[48];
    snprintf(mark, sizeof mark, "\"change-%llu.\"", change.number);
    if (a == change.agent && !change.arrived && strstr(line, mark) != NULL) {
        sample(uv_hrtime() - change.began_ns);
        change_seen(&change.arrived);
    }
}

static void change_late(uv_timer_t *timer)
{
    (void)timer;
    errors++;
    complain("change", "did not arrive in time");
    next_change();
}

static void control_data(struct stream *s, const uint8_t *data, size_t n)
{
    int status;
    (void)s;
    if (buf_append(&change.in, data, n) != 0) {
        abort();
    }
    const char *body = whole_body(&change.in, &status);
    if (body != NULL) {
        if (status != 200) {
            errors++;
            complain("change", body);
        }
        buf_clear(&change.in);
        if (job.what == CHANGE) {
            change_seen(&change.answered);
        }
    }
}

static void control_open(struct stream *s)
{
    (void)s;
    next_change();
}

static void control_closed(struct stream *s, int status)
{
    (void)s;
    (void)status;
    change.stream = NULL;
    buf_free(&change.in);
    if (job.what == CHANGE) {
        errors++;
        complain("control socket", err_msg());
        job.ends_ns = 0;
        next_change();
    }
}

static void begin_changes(double seconds)
{
    static const struct stream_ops ops = {
        .on_open = control_open, .on_data = control_data, .on_close = control_closed};
    struct stream_config cfg = {.ops = &ops};
    job.what = CHANGE;
    job.ends_ns = job.began_ns + (uint64_t)(seconds * 1e9);
    if (change.stream != NULL) {
        next_change();
    } else if (stream_connect_unix(&loop, opt.control, &cfg, &change.stream) != 0) {
        die(opt.control);
    }
}

/* --- streams */

static void lost_sync(struct agent *a)
{
    if (a->synced) {
        a->synced = false;
        a->lost_ns = uv_hrtime();
        n_synced--;
        if (job.what == STORM && job.began_ns == 0) {
            job.began_ns = a->lost_ns;
        }
    }
}

static void in_sync(struct link *l)
{
    struct agent *a = l->agent;
    a->synced = true;
    a->backoff_ms = 0;
    a->last = l->at;
    n_synced++;
    if (job.what == EACH && job.each == STREAM && !l->done) {
        sample(uv_hrtime() - l->began_ns);
        job.done++;
        job.under_way--;
        pump();
    } else if (job.what == STORM && a->lost_ns != 0) {
        sample(uv_hrtime() - a->lost_ns);
        if (n_synced == opt.agents && job.began_ns != 0) {
            finish_job(uv_hrtime() - job.began_ns);
        }
    }
    a->lost_ns = 0;
    l->done = true;
}

static void take_mark(struct agent *a, const char *line)
{
    const char *mark = strstr(line, "\"peers\":\"");
    if (mark != NULL && strchr("0123456789", mark[9]) != NULL) {
        snprintf(a->mark, sizeof a->mark, "%.*s", (int)strcspn(mark + 9, "\""), mark + 9);
    }
}

static void take_line(struct link *l, const char *line)
{
    struct agent *a = l->agent;
    const char *at;
    lines++;
    if (strncmp(line, "{\"peer\":", 8) == 0 || strstr(line, "\"peer\":") != NULL) {
        return;
    }
    if ((at = strstr(line, "\"synced\":")) != NULL || (at = strstr(line, "\"heartbeat\":")) != NULL) {
        a->revision = strtoull(strchr(at, ':') + 1, NULL, 10);
    }
    take_mark(a, line);
    if (strstr(line, "\"put\":") != NULL) {
        change_arrived(a, line);
    } else if (strstr(line, "\"synced\":") != NULL) {
        in_sync(l);
    } else if (strncmp(line, "{\"error\":", 9) == 0) {
        fprintf(stderr, "bench_agents: stream ended: %.200s\n", line);
    }
}

/* Lines, and between them what frames chunks: the server writes whole lines only. */
static void stream_lines(struct link *l)
{
    char *text = (char *)buf_data(&l->in), *end;
    size_t used = 0;
    while ((end = memchr(text + used, '\n', l->in.len - used)) != NULL) {
        *end = '\0';
        if (text[used] == '{') {
            take_line(l, text + used);
        }
        used = (size_t)(end + 1 - text);
    }
    buf_consume(&l->in, used);
    if (l->in.len == 0) {
        buf_free(&l->in);
    }
}

static void stream_more(struct link *l)
{
    int status;
    if (!l->headed) {
        const char *text = (const char *)buf_data(&l->in);
        const char *end = memmem(text, l->in.len, "\r\n\r\n", 4);
        if (end == NULL) {
            return;
        }
        if (strncmp(text, "HTTP/1.1 200", 12) != 0) {
            const char *body = whole_body(&l->in, &status);
            if (body != NULL) {
                complain("stream", body);
                stream_close(l->stream, 0);
            }
            return;
        }
        l->headed = true;
        buf_consume(&l->in, (size_t)(end + 4 - text));
    }
    if (l->in.len > 0) {
        stream_lines(l);
    }
}

/* --- connections */

static void joined(struct link *l, const char *body)
{
    struct agent *a = l->agent;
    char *cert = json_text(body, "certificate"), *ca = json_text(body, "ca"),
         *id = json_text(body, "node_id");
    if (cert == NULL || ca == NULL || id == NULL || tls_ctx_new(0, cert, a->key, ca, &a->tls) != 0) {
        die("the answer to a join");
    }
    snprintf(a->id, sizeof a->id, "%s", id);
    free(cert);
    free(ca);
    free(id);
}

static void answered(struct link *l)
{
    int status;
    const char *body = whole_body(&l->in, &status);
    if (body == NULL) {
        return;
    }
    if (status != 200) {
        complain(l->what == JOIN ? "join" : "report", body);
    } else {
        sample(uv_hrtime() - l->began_ns);
        l->done = true;
        if (l->what == JOIN) {
            joined(l, body);
        }
    }
    stream_close(l->stream, 0);
}

static void link_data(struct stream *s, const uint8_t *data, size_t n)
{
    struct link *l = stream_data(s);
    bytes += n;
    if (buf_append(&l->in, data, n) != 0) {
        abort();
    }
    if (l->what == STREAM) {
        stream_more(l);
    } else {
        answered(l);
    }
}

static void write_join(struct buf *out, const struct agent *a)
{
    struct buf csr = {0}, body = {0};
    char states[128];
    /* What its subject says: see lua/symphony/cluster/statement.lua. The token has the CA's digest as it is wanted. */
    snprintf(states, sizeof states, "%010lld-%.50s", (long long)time(NULL), opt.token + 9);
    if (csr_new(a->key, states, &csr) != 0) {
        die("certificate request");
    }
    buf_appendf(&body,
        "{\"role\":\"worker\",\"services\":[\"block\"],\"named\":true,\"name\":\"agent-%05u\",\"token\":"
        "\"%s\",\"addresses\":{\"remote\":\"127.1.%u.%u:27242\",\"gossip\":\"127.1.%u.%u:37065\"},"
        "\"csr\":\"",
        a->number, opt.token, a->number >> 8, a->number & 255, a->number >> 8, a->number & 255);
    for (size_t i = 0; i < csr.len; i++) {
        char c = (char)buf_data(&csr)[i];
        if (c == '\n') {
            buf_append(&body, "\\n", 2);
        } else {
            buf_append(&body, &c, 1);
        }
    }
    buf_append(&body, "\"}", 2);
    buf_appendf(out, "POST /v1/join HTTP/1.1\r\nHost: s\r\nContent-Length: %zu\r\n\r\n", body.len);
    buf_append(out, buf_data(&body), body.len);
    buf_free(&body);
    buf_free(&csr);
}

static void link_open(struct stream *s)
{
    struct link *l = stream_data(s);
    struct agent *a = l->agent;
    struct buf out = {0};
    char body[512];
    if (l->what == JOIN) {
        write_join(&out, a);
    } else if (l->what == STREAM) {
        buf_appendf(&out,
            "GET /v1/agent?starts=1&instance=%s&epoch=1&min=%llu&peers=%s HTTP/1.1\r\nHost: s\r\n\r\n",
            instance, (unsigned long long)a->revision, a->mark);
    } else {
        int n = snprintf(body, sizeof body,
            "{\"status\":\"ready\",\"starts\":1,\"instance\":\"%s\",\"version\":\"0.1.0\",\"services\":["
            "\"block\"],"
            "\"trust\":1,\"addresses\":{\"remote\":\"127.1.%u.%u:27242\",\"gossip\":\"127.1.%u.%u:37065\"}}",
            instance, a->number >> 8, a->number & 255, a->number >> 8, a->number & 255);
        buf_appendf(
            &out, "POST /v1/agent/report HTTP/1.1\r\nHost: s\r\nContent-Length: %d\r\n\r\n%s", n, body);
    }
    (void)stream_write(s, buf_data(&out), out.len);
    buf_free(&out);
}

static void link_closed(struct stream *s, int status)
{
    struct link *l = stream_data(s);
    struct agent *a = l->agent;
    if (l->what == STREAM) {
        a->link = NULL;
        if (status != 0 && !l->done && status != SYM_ECONNECT) {
            complain("stream", err_msg());
        }
        lost_sync(a);
        reopen(a);
    } else {
        job.under_way--;
        if (l->done) {
            job.done++;
        } else {
            if (status != 0) {
                complain(l->what == JOIN ? "join" : "report", err_msg());
            }
            if (++a->tries < TRIES) {
                again++;
                job.under_way++;
                open_link(a, l->what, (a->number + a->tries) % opt.n_to);
            } else {
                errors++;
                job.done++;
            }
        }
        pump();
    }
    buf_free(&l->in);
    free(l);
}

static void on_connect(uv_connect_t *req, int status)
{
    struct link *l = req->data;
    uv_os_fd_t fd;
    if (l->stream->state == STREAM_CLOSING) {
        return;
    }
    if (status != 0) {
        stream_close(l->stream, err_setf(SYM_ECONNECT, "connect: %s", uv_strerror(status)));
        return;
    }
    if (uv_fileno(&l->stream->h.handle, &fd) == 0) {
        stream_tune(fd);
    }
    l->stream->is_client = true;
    stream_begin(l->stream);
}

/* As stream_connect_tcp, but from an address of the agent's: a manager admits so many of each. */
static void open_link(struct agent *a, enum what what, unsigned at)
{
    static const struct stream_ops ops = {
        .on_open = link_open, .on_data = link_data, .on_close = link_closed};
    struct link *l = need(calloc(1, sizeof *l));
    struct stream_config cfg = {
        .ops = &ops, .data = l, .tls = what == JOIN ? anonymous : a->tls, .open_ms = 30000};
    struct sockaddr_in from = {.sin_family = AF_INET};
    struct peer_addr peer = {.is_unix = false, .host = "manager"};
    from.sin_addr.s_addr = htonl(0x7f000101U + a->number / PER_ADDRESS);
    l->what = what;
    l->agent = a;
    l->at = at;
    l->began_ns = uv_hrtime();
    l->connect.data = l;
    if (what == STREAM) {
        a->link = l;
    }
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&from, sizeof from) != 0) {
        err_setf(SYM_EIO, "%s", strerror(errno));
        die("socket");
    }
    if (stream_accepted(&loop, fd, &peer, &cfg, &l->stream) != 0) {
        die("connection");
    }
    int rv = uv_tcp_connect(&l->connect, &l->stream->h.tcp, (struct sockaddr *)&opt.to[at], on_connect);
    if (rv != 0) {
        stream_close(l->stream, err_setf(SYM_ECONNECT, "connect: %s", uv_strerror(rv)));
    }
}

/* --- as agent.lua: another manager, in any order, that which died last */

static void shuffle(struct agent *a)
{
    for (unsigned i = 0; i < opt.n_to; i++) {
        a->order[i] = i;
    }
    for (unsigned i = opt.n_to - 1; i > 0; i--) {
        unsigned j = (unsigned)rand() % (i + 1), held = a->order[i];
        a->order[i] = a->order[j];
        a->order[j] = held;
    }
    for (unsigned i = 0; i + 1 < opt.n_to; i++) {
        if (a->order[i] == a->last) {
            memmove(&a->order[i], &a->order[i + 1], (opt.n_to - 1 - i) * sizeof a->order[0]);
            a->order[opt.n_to - 1] = a->last;
            break;
        }
    }
    a->next = 0;
}

static void on_pause_over(uv_timer_t *timer)
{
    struct agent *a = timer->data;
    if (a->wanted >= 0) {
        unsigned to = (unsigned)a->wanted;
        a->wanted = -1;
        open_link(a, STREAM, to);
        return;
    }
    if (a->next == 0) {
        shuffle(a);
    }
    unsigned at = a->order[a->next];
    a->next = (a->next + 1) % opt.n_to;
    open_link(a, STREAM, at);
}

static void reopen(struct agent *a)
{
    unsigned ms = 0;
    if (a->wanted >= 0) { /* it was told to move: that is no loss, and nothing to wait for */
        uv_timer_start(&a->timer, on_pause_over, 0, 0);
        return;
    }
    if (a->lost_ns != 0 && a->backoff_ms == 0 && a->next == 0) {
        /* The same spread as in lua/symphony/cluster/agent.lua. */
        double spread = opt.agents * 1.5 < 3000 ? opt.agents * 1.5 : 3000;
        ms = BACKOFF_MS + (unsigned)(spread * rand() / RAND_MAX);
        a->backoff_ms = BACKOFF_MS / 2;
    } else if (a->next == 0) { /* a round over all of them is over */
        a->backoff_ms = a->backoff_ms * 2 < BACKOFF_MAX_MS ? a->backoff_ms * 2 : BACKOFF_MAX_MS;
        a->backoff_ms = a->backoff_ms == 0 ? BACKOFF_MS : a->backoff_ms;
        ms = a->backoff_ms;
    }
    ms = (unsigned)(ms * (0.5 + (double)rand() / RAND_MAX / 2));
    uv_timer_start(&a->timer, on_pause_over, ms, 0);
}

/* --- commands */

/* Where agent @a has its stream, or goes first. */
static unsigned place_of(const struct agent *a)
{
    return job.at >= 0 ? (unsigned)job.at : (a->number + a->tries) % opt.n_to;
}

static void start(struct agent *a)
{
    unsigned at = place_of(a);
    bool wanted = job.each == JOIN ? a->tls == NULL : a->tls != NULL;
    if (!wanted || (job.each == STREAM && a->synced && a->link->at == at)) {
        return;
    }
    job.under_way++;
    if (job.each == STREAM && a->link != NULL) {
        a->wanted = (int)at;
        stream_close(a->link->stream, 0);
    } else {
        open_link(a, job.each, at);
    }
}

static void pump(void)
{
    while (job.what == EACH && job.started < opt.agents && job.under_way < opt.parallel) {
        start(&agents[job.started++]);
    }
    if (job.what == EACH && job.started == opt.agents && job.under_way == 0) {
        finish_job(uv_hrtime() - job.began_ns);
    }
}

static void begin_each(enum what what, int at)
{
    job.what = EACH;
    job.each = what;
    job.at = at;
    job.started = job.done = job.under_way = 0;
    for (unsigned i = 0; i < opt.agents; i++) {
        agents[i].tries = 0;
    }
    pump();
}

static void obey(const char *line)
{
    job.began_ns = uv_hrtime();
    if (strcmp(line, "join") == 0) {
        begin_each(JOIN, -1);
    } else if (strcmp(line, "connect") == 0) {
        begin_each(STREAM, -1);
    } else if (strncmp(line, "connect ", 8) == 0 && (unsigned)atoi(line + 8) - 1 < opt.n_to) {
        begin_each(STREAM, atoi(line + 8) - 1);
    } else if (strcmp(line, "report") == 0) {
        begin_each(REPORT, -1);
    } else if (strncmp(line, "change ", 7) == 0) {
        begin_changes(atof(line + 7));
    } else if (strcmp(line, "storm") == 0) {
        job.what = STORM;
        job.began_ns = 0;
    } else if (strcmp(line, "count") == 0) {
        finish_job(0);
    } else {
        err_setf(SYM_EINVAL, "no such command");
        die(line);
    }
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    static char text[256];
    (void)handle;
    (void)suggested;
    *buf = uv_buf_init(text, sizeof text);
}

static void on_command(uv_stream_t *in, ssize_t n, const uv_buf_t *buf)
{
    static char line[256];
    static size_t len;
    (void)in;
    if (n < 0) {
        exit(0);
    }
    for (ssize_t i = 0; i < n; i++) {
        if (buf->base[i] == '\n') {
            line[len] = '\0';
            len = 0;
            obey(line);
        } else if (len < sizeof line - 1) {
            line[len++] = buf->base[i];
        }
    }
}

static void parse_targets(const char *list)
{
    char *copy = need(strdup(list)), *save = NULL;
    for (char *t = strtok_r(copy, ",", &save); t != NULL && opt.n_to < MANAGERS_MAX;
         t = strtok_r(NULL, ",", &save)) {
        char host[256];
        uint16_t port = 0;
        if (addr_parse(t, 27242, host, &port) != 0 || uv_ip4_addr(host, port, &opt.to[opt.n_to++]) != 0) {
            die(t);
        }
    }
    free(copy);
}

static char *read_file(const char *path)
{
    FILE *f = fopen(path, "r");
    char *text = need(calloc(1, 1 << 16));
    if (f == NULL || fread(text, 1, (1 << 16) - 1, f) == 0) {
        fprintf(stderr, "bench_agents: cannot read %s\n", path);
        exit(1);
    }
    fclose(f);
    return text;
}

static void parse(int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *name = argv[i], *arg = argv[i + 1];
        if (strcmp(name, "--to") == 0) {
            parse_targets(arg);
        } else if (strcmp(name, "--control") == 0) {
            opt.control = arg;
        } else if (strcmp(name, "--ca") == 0) {
            opt.ca = read_file(arg);
        } else if (strcmp(name, "--token") == 0) {
            opt.token = arg;
        } else if (strcmp(name, "--agents") == 0) {
            opt.agents = (unsigned)atoi(arg);
        } else if (strcmp(name, "--parallel") == 0) {
            opt.parallel = (unsigned)atoi(arg);
        }
    }
    if (opt.n_to == 0 || opt.control == NULL || opt.ca == NULL || opt.token == NULL ||
        strlen(opt.token) < 60 || opt.agents == 0 || opt.agents > 50000 || opt.parallel == 0) {
        fprintf(stderr,
            "usage: bench_agents --to HOST:PORT,... --control SOCKET --ca FILE --token T [--agents N] "
            "[--parallel N]\n");
        exit(2);
    }
}

int main(int argc, char **argv)
{
    uv_pipe_t in;
    uint8_t raw[8];
    struct rlimit files;
    parse(argc, argv);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    if (crypto_random(raw, sizeof raw) != 0 || tls_ctx_new(0, NULL, NULL, opt.ca, &anonymous) != 0) {
        die("TLS");
    }
    for (int i = 0; i < 8; i++) {
        snprintf(instance + 2 * i, 3, "%02x", raw[i]);
    }
    uv_loop_init(&loop);
    uv_timer_init(&loop, &change.late);
    change.late.timer_cb = change_late;
    agents = need(calloc(opt.agents, sizeof *agents));
    for (unsigned i = 0; i < opt.agents; i++) {
        struct agent *a = &agents[i];
        a->number = i;
        a->last = i % opt.n_to;
        a->wanted = -1;
        snprintf(a->mark, sizeof a->mark, "0.0");
        uv_timer_init(&loop, &a->timer);
        a->timer.data = a;
        if (key_generate(&a->key) != 0) {
            die("key");
        }
    }
    uv_pipe_init(&loop, &in, 0);
    if (uv_pipe_open(&in, 0) != 0 || uv_read_start((uv_stream_t *)&in, on_alloc, on_command) != 0) {
        fprintf(stderr, "bench_agents: standard input must be a pipe\n");
        return 1;
    }
    printf("{\"ready\":true}\n");
    fflush(stdout);
    uv_run(&loop, UV_RUN_DEFAULT);
    return 0;
}
