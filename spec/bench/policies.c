/* What the policies cost: a policy of twenty lines at admit.change, asked through its process as the daemon does it.
 *
 *   bench_policies [--seconds S]
 *
 * Prints one JSON object: microseconds of one call at a time (p50, p99), of one a millisecond, of one that reads a key, calls a second with 64
 * under way, bytes of the loaded policy, milliseconds from nothing to the first answer, and what a budget of five million
 * instructions takes. This program is the child, too. */
#include "base/err.h"
#include "base/log.h"
#include "sandbox/child.h"
#include "sandbox/host.h"
#include "store/store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char source[] =
    "-- Keys of a team: at most so many, with names and values in order, and none while its switch is off.\n"
    "local LIMIT <const> = 100\n"
    "local SIZE <const> = 65536\n"
    "\n"
    "local function team_of(key)\n"
    "  return key:match('^team/([%l%d]+)/')\n"
    "end\n"
    "\n"
    "local function check(c)\n"
    "  local team = team_of(c.key)\n"
    "  if not team then return refuse('keys are team/<name>/...') end\n"
    "  if c.action == 'put' and #c.new > SIZE then return refuse('at most 64 KiB') end\n"
    "  if c.who.role == 'reader' then return refuse('readers read') end\n"
    "  if glob('team/*/locked', c.key) then return refuse('locked') end\n"
    "  if READ and get('/kv/switch/' .. team) == 'off' then return refuse('off') end\n"
    "  if c.new and c.new:find('[^%g%s]') then return refuse('text only') end\n"
    "  return allow()\n"
    "end\n"
    "return { summary = 'Keys of teams', match = { ['admit.change'] = { kinds = { 'kv' } } },\n"
    "  hooks = { ['admit.change'] = check } }\n";

static const char input[] =
    "{\"action\":\"put\",\"key\":\"team/a7/settings/colour\",\"kind\":\"kv\",\"new\":\""
    "0123456789012345678901234567890123456789012345678901234567890123\",\"old_revision\":17,"
    "\"who\":{\"kind\":\"certificate\",\"name\":\"anna\",\"role\":\"operator\"}}";

static uv_loop_t loop;
static struct host *host;
static unsigned under_way, done, failed;

static struct store *the_store(void *arg)
{
    return *(struct store **)arg;
}

static void on_answer(void *arg, const struct host_answer *answer)
{
    (void)arg;
    under_way--;
    done++;
    failed += answer->status != 0 || answer->n == 0;
}

static void ask(bool reads)
{
    struct host_call call = {.hook = "admit.change", .only = reads ? "reads" : "plain", .input = input};
    call.n_input = strlen(input);
    if (host_call(host, &call, on_answer, NULL) != 0) {
        fprintf(stderr, "bench_policies: %s\n", err_msg());
        exit(1);
    }
    under_way++;
}

static void wait_until(unsigned left)
{
    while (under_way > left) {
        uv_run(&loop, UV_RUN_ONCE);
    }
}

static void load(const char *name, const char *text)
{
    if (host_load(host, name, text, strlen(text), on_answer, NULL) != 0) {
        fprintf(stderr, "bench_policies: %s\n", err_msg());
        exit(1);
    }
    under_way++;
    wait_until(0);
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* @pause_us: before each, in which the processors may fall asleep. */
static void one_by_one(const char *name, bool reads, unsigned pause_us, double seconds)
{
    enum { MOST = 1 << 20 };
    static uint32_t ns[MOST];
    size_t n = 0;
    uint64_t end = uv_hrtime() + (uint64_t)(seconds * 1e9);
    while (uv_hrtime() < end && n < MOST) {
        if (pause_us > 0) {
            usleep(pause_us);
        }
        uint64_t began = uv_hrtime();
        ask(reads);
        wait_until(0);
        ns[n++] = (uint32_t)(uv_hrtime() - began);
    }
    qsort(ns, n, sizeof *ns, compare);
    printf("\"%s\":{\"calls\":%zu,\"p50_us\":%.1f,\"p99_us\":%.1f},", name, n, ns[n / 2] / 1e3,
        ns[n * 99 / 100] / 1e3);
}

static void many(double seconds)
{
    enum { CLIENTS = 64 };
    uint64_t began = uv_hrtime();
    done = 0;
    while ((double)(uv_hrtime() - began) < seconds * 1e9) {
        while (under_way < CLIENTS) {
            ask(false);
        }
        uv_run(&loop, UV_RUN_ONCE);
    }
    printf("\"with_64\":{\"calls_per_second\":%.0f},", done / ((double)(uv_hrtime() - began) / 1e9));
    wait_until(0);
}

static void budget(void)
{
    static const char hang[] =
        "return { hooks = { ['admit.change'] = function() local n = 0 while true do n = n + 1 end end } }";
    struct host_call call = {.hook = "admit.change", .only = "hang", .input = "{}", .n_input = 2};
    host_configure(host, &(struct host_config){.deadline_ms = 5000});
    load("hang", hang);
    uint64_t began = uv_hrtime();
    if (host_call(host, &call, on_answer, NULL) == 0) {
        under_way++;
    }
    wait_until(0);
    printf("\"budget_ms\":%.1f,", (double)(uv_hrtime() - began) / 1e6);
}

int main(int argc, char **argv)
{
    double seconds = argc > 2 && strcmp(argv[1], "--seconds") == 0 ? strtod(argv[2], NULL) : 3;
    struct host_stats stats;
    char text[4096], dir[] = "/tmp/symphony-bench-XXXXXX", path[sizeof dir + 16];
    struct store *store = NULL;
    if (child_asked(argc, argv)) {
        return child_main();
    }
    log_setup(LOG_ERROR, false);
    if (mkdtemp(dir) == NULL ||
        store_open(&(struct store_config){.dir = dir, .quota = 8 << 20}, &store) != 0 ||
        uv_loop_init(&loop) != 0 || host_new(&loop, the_store, &store, &host) != 0) {
        fprintf(stderr, "bench_policies: %s\n", err_msg());
        return 1;
    }
    uint64_t began = uv_hrtime();
    snprintf(text, sizeof text, "local READ <const> = false\n%s", source);
    load("plain", text);
    double first = (double)(uv_hrtime() - began) / 1e6;
    host_stats(host, &stats);
    snprintf(text, sizeof text, "local READ <const> = true\n%s", source);
    load("reads", text);
    printf("{\"memory\":%llu,\"start_ms\":%.1f,", (unsigned long long)stats.memory, first);
    one_by_one("one", false, 0, seconds);
    one_by_one("now_and_then", false, 1000, seconds);
    one_by_one("reading", true, 0, seconds);
    many(seconds);
    budget();
    printf("\"failed\":%u}\n", failed);
    host_close(host);
    uv_run(&loop, UV_RUN_DEFAULT);
    store_close(store);
    static const char *const files[] = {"data.mdb", "lock.mdb", "mark", ""};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        (void)remove(path);
    }
    return failed > 1; /* the one that hangs */
}
