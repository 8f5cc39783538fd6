/* require "sym.metrics": figures of the process, its loop and its doors; those of raft and the store are theirs.
 *
 * limits       upper limits of all histograms, in seconds, rising
 * process()    {cpu_seconds, start_time, resident_bytes, virtual_bytes, threads, open_fds, max_fds}: see
 *              base/process.h; max_fds is nil without a limit
 * loop()       {turns, late, requests, handles}: histograms of how long a turn keeps the loop busy and of how late a
 *              timer comes; libuv's requests under way and active handles
 * http()       {control = server, remote = server or nil}; a server: {accepted, open, refused, requests, no_handshake,
 *              malformed, waiting, classes}, see struct http_stats; classes[name] = {answers, durations}: answers[i]
 *              those with a status of i hundred, answers[0] those that came to none; classes nobody asked for are
 *              left out
 *
 * A histogram is an array of counts, one for each limit (above the one before and up to it) and one behind the
 * last, with a field sum, in seconds.
 */
#include "base/process.h"
#include "daemon/daemon.h"
#include "daemon/route_class.h"
#include "lua/fields.h"

static int l_process(lua_State *L)
{
    struct process_usage u;
    process_usage(&u);
    lua_createtable(L, 0, 7);
    set_number(L, "cpu_seconds", u.cpu_seconds);
    set_number(L, "start_time", u.start_time);
    set_integer(L, "resident_bytes", u.resident_bytes);
    set_integer(L, "virtual_bytes", u.virtual_bytes);
    set_integer(L, "threads", u.threads);
    set_integer(L, "open_fds", u.open_fds);
    if (u.max_fds != UINT64_MAX) {
        set_integer(L, "max_fds", u.max_fds);
    }
    return 1;
}

static int l_loop(lua_State *L)
{
    const struct daemon *d = vm_daemon(L);
    lua_createtable(L, 0, 4);
    set_histogram(L, "turns", &d->pulse.turns);
    set_histogram(L, "late", &d->pulse.late);
    set_integer(L, "requests", d->loop->active_reqs.count);
    set_integer(L, "handles", d->loop->active_handles);
    return 1;
}

static void push_class(lua_State *L, const struct http_class *class)
{
    lua_createtable(L, 0, 2);
    lua_createtable(L, 5, 1);
    for (int i = 0; i < 6; i++) {
        lua_pushinteger(L, (lua_Integer) class->answers[i]);
        lua_rawseti(L, -2, i);
    }
    lua_setfield(L, -2, "answers");
    set_histogram(L, "durations", &class->durations);
}

static bool was_used(const struct http_class *class)
{
    uint64_t all = 0;
    for (int i = 0; i < 6; i++) {
        all += class->answers[i];
    }
    return all > 0;
}

static void set_server(lua_State *L, const char *name, const struct http_server *server)
{
    struct http_stats s;
    if (server == NULL) {
        return;
    }
    http_server_stats(server, &s);
    lua_createtable(L, 0, 8);
    set_integer(L, "accepted", s.accepted);
    set_integer(L, "open", s.open);
    set_integer(L, "refused", s.refused);
    set_integer(L, "requests", s.requests);
    set_integer(L, "no_handshake", s.no_handshake);
    set_integer(L, "malformed", s.malformed);
    set_integer(L, "waiting", s.waiting);
    lua_createtable(L, 0, HTTP_CLASSES);
    for (int i = 0; route_classes[i] != NULL; i++) {
        if (was_used(&s.classes[i])) {
            push_class(L, &s.classes[i]);
            lua_setfield(L, -2, route_classes[i]);
        }
    }
    lua_setfield(L, -2, "classes");
    lua_setfield(L, -2, name);
}

static int l_http(lua_State *L)
{
    const struct daemon *d = vm_daemon(L);
    lua_createtable(L, 0, 2);
    set_server(L, "control", d->control);
    set_server(L, "remote", d->remote);
    return 1;
}

int luaopen_sym_metrics(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"process", l_process}, {"loop", l_loop}, {"http", l_http}, {NULL, NULL}};
    luaL_newlib(L, functions);
    lua_createtable(L, HISTOGRAM_LIMITS, 0);
    for (int i = 0; i < HISTOGRAM_LIMITS; i++) {
        lua_pushnumber(L, (lua_Number)histogram_limits[i] / 1e9);
        lua_rawseti(L, -2, i + 1);
    }
    lua_setfield(L, -2, "limits");
    return 1;
}
