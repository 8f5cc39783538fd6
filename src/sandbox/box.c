#include "sandbox/box_impl.h"

#include "base/err.h"
#include "sandbox/env.h"

#include <ctype.h>
#include <lauxlib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PERIOD = 100,   /* instructions between two looks at the budget */
    ALLOC_SHIFT = 6 /* 64 bytes of memory asked for count as one instruction */
};

struct box *box_of(lua_State *L)
{
    return *(struct box **)lua_getextraspace(L);
}

struct reads *box_reads(lua_State *L)
{
    struct box *box = box_of(L);
    return box->reads != NULL ? box->reads : &box->no_reads;
}

lua_State *box_state(struct box *box)
{
    return box->L;
}

const char *box_name(const struct box *box)
{
    return box->name;
}

int box_order(const struct box *box)
{
    return box->order;
}

size_t box_memory(const struct box *box)
{
    return box->arena.used + box->n_source + sizeof *box;
}

const char *box_about(const struct box *box)
{
    return (const char *)buf_data(&box->about);
}

bool box_has_hook(const struct box *box, const char *hook)
{
    return rules_have_hook(&box->rules, hook);
}

bool box_name_valid(const char *name, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (!isalnum((unsigned char)name[i]) && strchr("._-", name[i]) == NULL) {
            return false;
        }
    }
    return n > 0 && n <= BOX_NAME_MAX && isalnum((unsigned char)name[0]);
}

/* --- limits --- */

/* The state is in the middle of something, and never asked again: its memory goes at once. */
static _Noreturn void stop(struct box *box)
{
    box->armed = false;
    _longjmp(box->stopped, 1);
}

static void count(struct box *box, uint64_t n)
{
    box->steps += n;
    if (box->armed && box->steps > box->limits.instructions) {
        stop(box);
    }
}

void box_charge(lua_State *L, uint64_t n)
{
    count(box_of(L), n);
}

static void on_count(lua_State *L, lua_Debug *ar)
{
    (void)ar;
    count(box_of(L), PERIOD);
}

static void drop_state(struct box *box)
{
    box->armed = false;
    box->L = NULL;
    arena_clear(&box->arena);
}

/* Only one runs at a time; the others' states are kept for nothing but speed. */
static bool make_room(struct box *needy)
{
    struct box *box, *largest = NULL;
    LIST_FOREACH (box, &needy->pool->boxes, link) {
        if (box != needy && box->L != NULL && (largest == NULL || box->arena.used > largest->arena.used)) {
            largest = box;
        }
    }
    if (largest != NULL) {
        drop_state(largest);
    }
    return largest != NULL;
}

static void *box_alloc(void *ud, void *ptr, size_t old, size_t size)
{
    struct box *box = ud;
    void *made;
    count(box, size >> ALLOC_SHIFT);
    do {
        made = arena_alloc(&box->arena, ptr, old, size);
    } while (made == NULL && size > 0 && box->arena.crowded && make_room(box));
    return made;
}

static int fail_text(struct box *box, int status)
{
    lua_State *L = box->L;
    if (status == LUA_ERRMEM) {
        return err_setf(SYM_EINVAL, "it needs more than %zu KiB of memory", box->limits.memory >> 10);
    }
    if (lua_type(L, -1) == LUA_TSTRING) {
        return err_setf(SYM_EINVAL, "%.*s", BOX_ERROR_MAX, lua_tostring(L, -1));
    }
    return err_setf(SYM_EINVAL, "an error that is a %s", luaL_typename(L, -1));
}

int box_enter(struct box *box, lua_CFunction fn, void *arg)
{
    int rv = 0;
    box->steps = 0;
    if (_setjmp(box->stopped) != 0) {
        drop_state(box);
        return err_setf(SYM_EINVAL, "it did not come to an end within %llu instructions",
            (unsigned long long)box->limits.instructions);
    }
    box->armed = true;
    lua_pushcfunction(box->L, fn);
    lua_pushlightuserdata(box->L, arg);
    int status = lua_pcall(box->L, 1, 0, 0);
    box->armed = false;
    if (status != LUA_OK) {
        rv = fail_text(box, status);
        lua_settop(box->L, 0);
    }
    return rv;
}

/* --- loading --- */

struct load {
    struct box *box;
    bool again; /* what is said of it is known already */
};

static int do_load(lua_State *L)
{
    struct load *load = lua_touserdata(L, 1);
    struct box *box = load->box;
    char chunk[BOX_NAME_MAX + 2];
    lua_settop(L, 0);
    env_open(L, box->limits.full);
    snprintf(chunk, sizeof chunk, "=%s", box->name);
    if (luaL_loadbufferx(L, box->source, box->n_source, chunk, "t") != LUA_OK) {
        return lua_error(L);
    }
    lua_call(L, 0, 1);
    if (!lua_istable(L, 1)) {
        return luaL_error(L, "it is to return a table with hooks = { ... }, not a %s", luaL_typename(L, 1));
    }
    box_read(L, box, load->again);
    env_lock(L);
    return 0;
}

int box_evaluate(struct box *box, bool again)
{
    struct load load = {box, again};
    box->L = lua_newstate(box_alloc, box);
    if (box->L == NULL) {
        drop_state(box);
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    *(struct box **)lua_getextraspace(box->L) = box;
    lua_sethook(box->L, on_count, LUA_MASKCOUNT, PERIOD);
    int rv = box_enter(box, do_load, &load);
    if (rv != 0) {
        drop_state(box);
    }
    return rv;
}

int box_load(const struct box_limits *limits, struct box_pool *pool, const char *name, const char *source,
    size_t n, struct box **out)
{
    if (!box_name_valid(name, strlen(name))) {
        return err_setf(SYM_EINVAL,
            "a policy's name has up to %d letters, digits, '.', '_' and '-', and begins with a letter or "
            "digit",
            BOX_NAME_MAX);
    }
    if (n > BOX_SOURCE_MAX) {
        return err_setf(SYM_ETOOBIG, "a policy has at most %d bytes", BOX_SOURCE_MAX);
    }
    struct box *box = calloc(1, sizeof *box);
    char *copy = malloc(n + 1);
    if (box == NULL || copy == NULL) {
        free(box);
        free(copy);
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    box->limits = *limits;
    box->pool = pool;
    LIST_INSERT_HEAD(&pool->boxes, box, link);
    arena_init(&box->arena, limits->memory, &pool->used, limits->memory_all);
    snprintf(box->name, sizeof box->name, "%s", name);
    memcpy(copy, source, n);
    box->source = copy;
    box->n_source = n;
    int rv = box_evaluate(box, false);
    if (rv != 0) {
        box_free(box);
        return rv;
    }
    *out = box;
    return 0;
}

void box_free(struct box *box)
{
    if (box == NULL) {
        return;
    }
    drop_state(box);
    LIST_REMOVE(box, link);
    rules_free(&box->rules);
    reads_clear(&box->no_reads);
    buf_free(&box->about);
    free(box->source);
    free(box);
}
