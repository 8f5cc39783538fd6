/* A closed-loop load generator for symphony's HTTP API: N clients, each with one request under way. As in etcd's own
 * benchmark they share connections when there are many: the requests of one connection are pipelined.
 *
 *   bench_load OP --to HOST:PORT|/SOCKET[,...] [--cert F --key F --ca F] [--clients N] [--seconds S]
 *              [--value BYTES] [--keys N] [--connections N]
 *
 *   put, get   throughput and latency; the connections (one for each client, at most 100, unless said otherwise) are
 *              spread over the addresses
 *   fill       puts each of the N keys once, and ends then
 *   fanout     N watchers on one key, then puts one after the other: time until the last watcher has seen each
 *   gap        one client that puts without end, moving on to the next address after an error or 100 ms of
 *              silence; prints a line "ack <monotonic us at the start> <at the answer>" for each
 *
 * Prints one JSON object: counts, latencies in microseconds, and the CPU seconds that this process itself used.
 */
#include "base/err.h"
#include "net/stream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum op { PUT, GET, FILL, FANOUT, GAP };

struct target {
    char host[256]; /* or, beginning with a slash, the path of a unix socket */
    uint16_t port;
};

enum { SHARE_MAX = 64 };

struct conn {
    struct stream *stream;
    unsigned number, at;
    uint64_t started_ns[SHARE_MAX]; /* of their requests, a ring */
    unsigned first, under_way;
    struct buf in;
    bool watching;
    uint64_t seen;
};

static struct {
    enum op op;
    struct target to[16];
    unsigned n_to, clients, connections;
    double seconds;
    size_t value, keys;
    const char *cert, *key, *ca;
} opt = {.clients = 64, .seconds = 5, .value = 256, .keys = 100000};

static uv_loop_t loop;
static struct tls_ctx *tls;
static struct conn *conns;
static uint32_t *samples; /* microseconds */
static size_t n_samples, max_samples;
static uint64_t errors, counting_from, ends_at, sequence;
static size_t n_sent, n_answered; /* of a fill */
static unsigned n_open, n_seen;
static uint64_t fanout_target, fanout_started;
static char *value;
static uv_timer_t silence;

static void connect_one(struct conn *c);

static uint64_t next_random(void)
{
    static uint64_t x = 88172645463325252ULL;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return x;
}

static void die(const char *what)
{
    fprintf(stderr, "bench_load: %s: %s\n", what, err_msg());
    exit(1);
}

static void sample(uint64_t ns)
{
    if (n_samples == max_samples) {
        max_samples = max_samples == 0 ? 1 << 16 : 2 * max_samples;
        samples = realloc(samples, max_samples * sizeof *samples);
        if (samples == NULL) {
            abort();
        }
    }
    samples[n_samples++] = (uint32_t)(ns / 1000);
}

static void send_request(struct conn *c)
{
    static struct buf out;
    unsigned long key = 0;
    int rv;
    if (opt.op == FILL) {
        if (n_sent == opt.keys) {
            return;
        }
        key = (unsigned long)n_sent++;
    } else if (opt.op == PUT || opt.op == GET) {
        key = (unsigned long)(next_random() % opt.keys);
    }
    buf_clear(&out);
    if (c->watching) {
        rv = buf_appendf(&out, "GET /v1/watch?prefix=bench/fan HTTP/1.1\r\nHost: s\r\n\r\n");
    } else if (opt.op == GET) {
        rv = buf_appendf(&out, "GET /v1/kv/bench/%08lu HTTP/1.1\r\nHost: s\r\n\r\n", key);
    } else {
        rv = buf_appendf(&out, "PUT /v1/kv/bench/%s%08lu HTTP/1.1\r\nHost: s\r\nContent-Length: %zu\r\n\r\n",
            opt.op == FANOUT ? "fan" : "", key, opt.value);
        if (rv == 0) {
            snprintf(value, 32, "%020llu", (unsigned long long)sequence++);
            rv = buf_append(&out, value, opt.value);
        }
    }
    if (rv != 0) {
        die("request");
    }
    c->started_ns[(c->first + c->under_way++) % SHARE_MAX] = uv_hrtime();
    (void)stream_write(c->stream, buf_data(&out), out.len);
}

static void answered(struct conn *c, int status)
{
    uint64_t now = uv_hrtime(), started = c->started_ns[c->first];
    c->first = (c->first + 1) % SHARE_MAX;
    c->under_way--;
    if (status != 200 && !(opt.op == GET && status == 404)) {
        errors++;
    } else if (opt.op == GAP) {
        printf("ack %llu %llu\n", (unsigned long long)started / 1000, (unsigned long long)now / 1000);
        fflush(stdout);
    } else if (opt.op != FANOUT && started >= counting_from) {
        sample(now - started);
    }
    if (now >= ends_at || (opt.op == FILL && ++n_answered == opt.keys) ||
        (opt.op == FANOUT && status != 200)) {
        uv_stop(&loop);
    } else if (opt.op == GAP && status != 200) {
        stream_close(c->stream, 0);
    } else if (opt.op != FANOUT) {
        send_request(c);
    }
}

/* The length of the whole answer at the front of @in, 0 if it is not there yet. */
static size_t whole_answer(struct buf *in, int *status)
{
    char *text = (char *)buf_data(in);
    char *end = text != NULL ? memmem(text, in->len, "\r\n\r\n", 4) : NULL;
    if (text == NULL || end == NULL) {
        return 0;
    }
    *status = atoi(text + 9);
    size_t head = (size_t)(end - text) + 4;
    char *length = memmem(text, head, "ontent-", 7);
    while (length != NULL && strncasecmp(length, "ontent-length:", 14) != 0) {
        length = memmem(length + 1, head - (size_t)(length + 1 - text), "ontent-", 7);
    }
    size_t body = length == NULL ? 0 : strtoul(length + 14, NULL, 10);
    return in->len >= head + body ? head + body : 0;
}

static uint64_t from_now(double seconds)
{
    return uv_hrtime() + (uint64_t)(seconds * 1e9);
}

static void fanout_next(void)
{
    n_seen = 0;
    fanout_target = sequence;
    fanout_started = uv_hrtime();
    send_request(&conns[0]);
}

/* One more is there of the writer and the watchers; the time that is measured begins with the last of them. */
static void fanout_ready(struct conn *c)
{
    c->seen = 1;
    if (++n_open == opt.clients + 1) {
        counting_from = uv_hrtime();
        ends_at = from_now(opt.seconds);
        fanout_next();
    }
}

/* A watcher has seen a put once the value of its sequence number went by. */
static void watcher_data(struct conn *c)
{
    const uint8_t *text = buf_data(&c->in);
    char mark[32];
    if (text == NULL) {
        return;
    }
    snprintf(mark, sizeof mark, "%020llu", (unsigned long long)fanout_target);
    if (c->seen == 0 && memmem(text, c->in.len, "\"sync\"", 6) != NULL) {
        buf_clear(&c->in);
        fanout_ready(c);
        return;
    }
    if (memmem(text, c->in.len, mark, 20) != NULL) {
        buf_clear(&c->in);
        if (++n_seen == opt.clients) {
            uint64_t now = uv_hrtime();
            sample(now - fanout_started);
            if (now >= ends_at) {
                uv_stop(&loop);
            } else {
                fanout_next();
            }
        }
    }
}

static void on_data(struct stream *s, const uint8_t *data, size_t n)
{
    struct conn *c = stream_data(s);
    int status;
    size_t len;
    if (buf_append(&c->in, data, n) != 0) {
        die("answer");
    }
    if (c->watching) {
        watcher_data(c);
        return;
    }
    stream_cork(s);
    while (c->under_way > 0 && (len = whole_answer(&c->in, &status)) > 0) {
        buf_consume(&c->in, len);
        if (opt.op == GAP) {
            uv_timer_stop(&silence);
            uv_timer_start(&silence, silence.timer_cb, 100, 0);
        }
        answered(c, status);
    }
    stream_uncork(s);
}

static void on_open(struct stream *s)
{
    struct conn *c = stream_data(s);
    if (opt.op == FANOUT) {
        if (c->watching) {
            send_request(c);
        } else {
            fanout_ready(c);
        }
        return;
    }
    if (opt.op == GAP) {
        send_request(c);
        return;
    }
    if (++n_open == opt.connections) {
        /* The first fifth of the time warms up and is not counted. */
        counting_from = opt.op == FILL ? uv_hrtime() : from_now(opt.seconds * 0.2);
        ends_at = from_now(opt.seconds * 1.2);
        for (unsigned i = 0; i < opt.clients; i++) {
            send_request(&conns[i % opt.connections]);
        }
    }
}

static void on_close(struct stream *s, int status)
{
    struct conn *c = stream_data(s);
    c->under_way = 0;
    buf_free(&c->in);
    if (opt.op != GAP) {
        fprintf(stderr, "bench_load: connection %u ended: %s (%s)\n", c->number, err_name(status), err_msg());
        errors++;
        return;
    }
    c->at = (c->at + 1) % opt.n_to;
    connect_one(c);
}

static void connect_one(struct conn *c)
{
    static const struct stream_ops ops = {.on_open = on_open, .on_data = on_data, .on_close = on_close};
    struct stream_config cfg = {.ops = &ops, .data = c, .tls = tls, .open_ms = opt.op == GAP ? 100 : 30000};
    struct target *to = &opt.to[c->at % opt.n_to];
    if ((to->host[0] == '/' ? stream_connect_unix(&loop, to->host, &cfg, &c->stream)
                            : stream_connect_tcp(&loop, to->host, to->port, &cfg, &c->stream)) != 0) {
        die("connect");
    }
    if (opt.op == GAP) {
        uv_timer_start(&silence, silence.timer_cb, 100, 0);
    }
}

static void on_silence(uv_timer_t *timer)
{
    (void)timer;
    stream_close(conns[0].stream, 0);
}

static void on_end(uv_timer_t *timer)
{
    (void)timer;
    uv_stop(&loop);
}

static int by_size(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static char *read_file(const char *path)
{
    FILE *f = fopen(path, "r");
    char *text = calloc(1, 1 << 16);
    if (f == NULL || text == NULL || fread(text, 1, (1 << 16) - 1, f) == 0) {
        fprintf(stderr, "bench_load: cannot read %s\n", path);
        exit(1);
    }
    fclose(f);
    return text;
}

static void parse(int argc, char **argv)
{
    static const char *const ops[] = {"put", "get", "fill", "fanout", "gap"};
    bool known = false;
    for (int i = 0; argc > 1 && i < 5; i++) {
        if (strcmp(argv[1], ops[i]) == 0) {
            opt.op = (enum op)i;
            known = true;
        }
    }
    for (int i = 2; known && i + 1 < argc; i += 2) {
        const char *name = argv[i], *arg = argv[i + 1];
        if (strcmp(name, "--clients") == 0) {
            opt.clients = (unsigned)atoi(arg);
        } else if (strcmp(name, "--connections") == 0) {
            opt.connections = (unsigned)atoi(arg);
        } else if (strcmp(name, "--seconds") == 0) {
            opt.seconds = atof(arg);
        } else if (strcmp(name, "--value") == 0) {
            opt.value = strtoul(arg, NULL, 10);
        } else if (strcmp(name, "--keys") == 0) {
            opt.keys = strtoul(arg, NULL, 10);
        } else if (strcmp(name, "--cert") == 0) {
            opt.cert = arg;
        } else if (strcmp(name, "--key") == 0) {
            opt.key = arg;
        } else if (strcmp(name, "--ca") == 0) {
            opt.ca = arg;
        } else if (strcmp(name, "--to") == 0) {
            char *list = strdup(arg), *save = NULL;
            char *t = strtok_r(list, ",", &save);
            for (; t != NULL && opt.n_to < 16; t = strtok_r(NULL, ",", &save)) {
                struct target *to = &opt.to[opt.n_to++];
                if (*t == '/') {
                    snprintf(to->host, sizeof to->host, "%s", t);
                } else if (addr_parse(t, 27242, to->host, &to->port) != 0) {
                    die(t);
                }
            }
            free(list);
        } else {
            known = false;
        }
    }
    if (opt.connections == 0) {
        opt.connections = opt.clients < 100 ? opt.clients : 100;
    }
    if (!known || opt.n_to == 0 || opt.clients > opt.connections * SHARE_MAX ||
        opt.connections > opt.clients || opt.clients == 0 || opt.value < 32 || opt.keys == 0) {
        fprintf(stderr,
            "usage: bench_load put|get|fill|fanout|gap --to HOST:PORT,... [--clients N] ... (value: "
            "at least 32)\n");
        exit(2);
    }
}

int main(int argc, char **argv)
{
    uv_timer_t end;
    struct rusage usage;
    parse(argc, argv);
    uv_loop_init(&loop);
    uv_timer_init(&loop, &silence);
    silence.timer_cb = on_silence;
    uv_timer_init(&loop, &end);
    if (opt.ca != NULL) {
        struct key *key = NULL;
        char *pem = opt.key == NULL ? NULL : read_file(opt.key);
        if ((pem != NULL && key_from_pem(pem, strlen(pem), &key) != 0) ||
            tls_ctx_new(0, opt.cert == NULL ? NULL : read_file(opt.cert), key, read_file(opt.ca), &tls) !=
                0) {
            die("tls");
        }
    }
    value = malloc(opt.value + 1);
    unsigned n = opt.op == FANOUT ? opt.clients + 1 : opt.op == GAP ? 1 : opt.connections;
    conns = calloc(n, sizeof *conns);
    if (value == NULL || conns == NULL) {
        return 1;
    }
    memset(value, 'x', opt.value);
    sequence = uv_hrtime(); /* never the number of an earlier run */
    ends_at = UINT64_MAX;
    for (unsigned i = 0; i < n; i++) {
        conns[i].number = conns[i].at = i;
        conns[i].watching = opt.op == FANOUT && i > 0;
        connect_one(&conns[i]);
    }
    if (opt.op == GAP) {
        ends_at = from_now(opt.seconds);
    }
    /* However badly it goes, it ends. */
    uv_timer_start(&end, on_end,
        (uint64_t)(opt.seconds * (opt.op == GAP ? 1000 : 1200)) + (opt.op == GAP ? 0 : 30000), 0);
    uint64_t began = uv_hrtime();
    uv_run(&loop, UV_RUN_DEFAULT);

    uint64_t now = uv_hrtime();
    double took = (double)(now - (counting_from > 0 && counting_from < now ? counting_from : began)) / 1e9;
    errors += opt.op == FILL ? opt.keys - n_answered : 0;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = (double)usage.ru_utime.tv_sec + (double)usage.ru_stime.tv_sec +
                 (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    if (n_samples > 0) {
        qsort(samples, n_samples, sizeof *samples, by_size);
    }
#define PCT(p) (n_samples == 0 ? 0 : samples[(size_t)((double)(n_samples - 1) * (p))])
    printf("{\"ops\":%zu,\"errors\":%llu,\"seconds\":%.3f,\"per_second\":%.1f,\"p50_us\":%u,\"p99_us\":%u,"
           "\"max_us\":%u,"
           "\"client_cpu_seconds\":%.3f}\n",
        n_samples, (unsigned long long)errors, took, (double)n_samples / took, PCT(0.5), PCT(0.99), PCT(1.0),
        cpu);
    return 0;
}
