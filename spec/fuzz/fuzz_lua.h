/* A target whose property is Lua: <target>.lua beside it gives {check = function(bytes), seeds = {...}, words = {...}},
 * run in the real state with symphony's own modules (sym.node, sym.raft,
 * sym.store and sym.gossip, which no parser asks, are empty). check() raises when something is not as it
 * should be. What lines of Lua an input reaches is told to libFuzzer, which cannot see it by itself; and an input
 * may cost no more lines, and no more time, than fits its length.
 *
 * The target is this header behind `#define PROPERTY "<target>.lua"`. */
#ifndef SYM_SPEC_FUZZ_LUA_H
#define SYM_SPEC_FUZZ_LUA_H

/* What Lua holds goes when it collects, not with the input: a look for leaks after each would be in vain. */
#define FUZZ_OPTIONS "-len_control=0", "-detect_leaks=0"

#include "fuzz_seed.h"
#include "lua/vm.h"

#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum {
    COUNTERS = 8192,
    LINES_EACH = 500,
    LINES_FREE = 100000,
    MS_MAX = 1500,
    THINGS_MAX = 64,
    SHORT = 2048,
    FEW = 4
};

__attribute__((section("__libfuzzer_extra_counters"))) static uint8_t counters[COUNTERS];
static lua_State *L;
static uv_loop_t loop;
static struct buf seeds[THINGS_MAX], words[THINGS_MAX];
static size_t n_seeds, n_words;
static size_t lines, lines_max;
static size_t before; /* the line before this one: what counts is the way from there to here */

static void give_up(const char *what)
{
    fprintf(stderr, "%s: %s\n", PROPERTY, what);
    abort();
}

static void on_line(lua_State *S, lua_Debug *ar)
{
    if (lua_getinfo(S, "S", ar) == 0) {
        return;
    }
    size_t here = (size_t)ar->currentline * 31 + ar->srclen * 7919 + (size_t)ar->linedefined;
    uint8_t *counter = &counters[(before ^ here) % COUNTERS];
    *counter += *counter < FEW; /* or long inputs would be kept for going round a loop more often */
    before = here << 1;
    if (++lines > lines_max) {
        luaL_error(S, "too much work for an input of this length");
    }
}

static size_t things(const char *name, struct buf *out)
{
    size_t n = 0;
    lua_getfield(L, -1, name);
    for (; lua_istable(L, -1) && lua_rawgeti(L, -1, (lua_Integer)n + 1) == LUA_TSTRING; n++) {
        size_t len;
        const char *text = lua_tolstring(L, -1, &len);
        if (n == THINGS_MAX || buf_append(&out[n], text, len) != 0) {
            give_up("too many seeds or words");
        }
        lua_pop(L, 1);
    }
    lua_settop(L, 1);
    return n;
}

static void open_vm(void)
{
    static const luaL_Reg modules[] = {
        {"sym.log", luaopen_sym_log},
        {"sym.sys", luaopen_sym_sys},
        {"sym.crypto", luaopen_sym_crypto},
        {"sym.http", luaopen_sym_http},
        {"sym.rules", luaopen_sym_rules},
        {NULL, NULL},
    };
    char file[] = __FILE__, path[4096], tree[4096];
    const char *here = dirname(file);
    snprintf(path, sizeof path, "%s/" PROPERTY, here);
    snprintf(tree, sizeof tree, "%s/../../lua", here);
    const char *folders[] = {tree, NULL};
    struct vm_config cfg = {.loop = &loop, .lua_paths = folders, .modules = modules};
    log_setup(LOG_ERROR + 1, false);
    if (uv_loop_init(&loop) != 0 || vm_new(&cfg, &L) != 0) {
        give_up("no state");
    }
    static const char rest[] =
        "for name in ('node raft store gossip'):gmatch('%a+') do package.loaded['sym.' .. name] = {} end";
    if (luaL_dostring(L, rest) != LUA_OK || luaL_loadfile(L, path) != LUA_OK ||
        lua_pcall(L, 0, 1, 0) != LUA_OK) {
        give_up(lua_tostring(L, -1));
    }
    n_seeds = things("seeds", seeds);
    n_words = things("words", words);
    lua_getfield(L, 1, "check");
    if (!lua_isfunction(L, -1) || n_seeds == 0) {
        give_up("gives no check or no seeds");
    }
    lua_sethook(L, on_line, LUA_MASKLINE, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct timespec from, to;
    if (L == NULL) {
        open_vm();
    }
    lines = before = 0;
    lines_max = LINES_FREE + LINES_EACH * n;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
    lua_pushvalue(L, 2);
    lua_pushlstring(L, (const char *)data, n);
    if (lua_pcall(L, 1, 0, 0) != LUA_OK) {
        give_up(luaL_tolstring(L, -1, NULL));
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
    double ms = (double)(to.tv_sec - from.tv_sec) * 1e3 + (double)(to.tv_nsec - from.tv_nsec) / 1e6;
    if (ms > MS_MAX) {
        give_up("too much time for an input");
    }
    return 0;
}

/* Where a piece of text that starts or ends with @marks is next, from @at on. */
static size_t boundary(const uint8_t *data, size_t n, size_t at, const char *marks)
{
    while (at < n && (data[at] == '\0' || strchr(marks, data[at]) == NULL)) {
        at++;
    }
    return at;
}

/* The same again and again, as long as it may be: does the time grow with the square of the length? */
static size_t repeat(const struct buf *word, uint8_t *data, size_t n, size_t max)
{
    for (; n + word->len <= max; n += word->len) {
        memcpy(data + n, buf_data(word), word->len);
    }
    return n;
}

/* Now and then a word of the language takes the place of another one, or goes in beside it. Most inputs stay short:
 * many are tried, and a long one, which tells whether the time grows too fast, is there now and then. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned random)
{
    if (L == NULL) {
        open_vm();
    }
    if (random % 61 == 0 && n_words > 0) {
        return repeat(&words[random / 64 % n_words], data, n, max);
    }
    if (max > SHORT) {
        max = SHORT;
        n = n < SHORT ? n : SHORT;
    }
    if (n < 16 || n_words == 0 || random % 2 != 0 || random % 64 == 0) {
        return seed_mutate(seeds, n_seeds, data, n, max, random);
    }
    const struct buf *word = &words[random / 4 % n_words];
    size_t at = boundary(data, n, random / 256 % n, ",:{[\n");
    at = at < n ? at + 1 : n;
    size_t over = random & 128 ? boundary(data, n, at, random & 64 ? ",}]\n" : ":,}]\n") - at : 0;
    if (n - over + word->len > max) {
        return LLVMFuzzerMutate(data, n, max);
    }
    memmove(data + at + word->len, data + at + over, n - at - over);
    memcpy(data + at, buf_data(word), word->len);
    return n - over + word->len;
}

#endif
