/* require "sym.sys": the machine that the program runs on. Files here are small and few (identity, keys, what
 * a person names on the command line), so the calls block. R stands for: true | nil, err.
 *
 *   version                 text
 *   options()               what the program put at "sym.options" in the registry; empty in the client
 *   now()                   seconds since 1970, with a fraction
 *   mono_ms()               milliseconds of a clock that is never set
 *   read_file(path, max)    text | nil, err: "not_found"; "too_big" beyond max, by default 16 MiB
 *   write_file(path, text, mode)
 *                           R; atomic and durable: written beside it, synced, renamed, the folder synced
 *   mkdir(path, mode)       R; one that exists is fine if it is ours; "denied" says whose it is
 *   remove(path)            R; a file or an empty folder
 *   remove_tree(path)       R; links are not followed; fine if there is nothing
 *   rename(from, to)        R
 *   stat(path)              {type = "file"|"dir"|"socket"|"link"|"other", mode, uid, size, mtime}
 *                           | nil, err
 *   lock(path)              handle | nil, err: "in_use" says by whom; held until handle:close() or the end
 *   folder_identity(path)   text | nil, err; another one for a folder that was copied or restored
 *   default_address()       IP of the interface of the default route, else "127.0.0.1"
 *   hostname() uid() pid() isatty(fd) getenv(name)
 *   release_memory()        gives the system back what only a start needed (base/memory.h)
 *   winsize()               columns of the terminal on standard output | nil
 *   guarded(handler, fn, ...)
 *                           xpcall(fn, handler, ...), but once fn, or a coroutine that it made, has kept the
 *                           loop busy for 200 ms, or would have Lua take more than 128 MiB, it gets errors, from
 *                           which no pcall of its own saves it; the library is bounded meanwhile (lua/guard.h)
 *   unguarded(fn, ...)      fn(...) without that: for what guarded code calls and must not be stopped half-way
 *   resume(co, ...)         coroutine.resume, for what resumes coroutines that may have waited in guarded code
 *   exit(code)              ends the process; only in the client
 */
#include "base/buf.h"
#include "base/err.h"
#include "base/file.h"
#include "base/memory.h"
#include "lua/vm.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define READ_MAX (16 << 20)

static int done(lua_State *L, int rv)
{
    if (rv != 0) {
        return vm_fail(L, rv);
    }
    lua_pushboolean(L, 1);
    return 1;
}

/* A path with a NUL in it would name another file than it says. */
static const char *check_path(lua_State *L, int idx)
{
    size_t n;
    const char *path = luaL_checklstring(L, idx, &n);
    luaL_argcheck(L, n > 0 && strlen(path) == n, idx, "not a path");
    return path;
}

static mode_t opt_mode(lua_State *L, int idx, mode_t fallback)
{
    lua_Integer mode = luaL_optinteger(L, idx, (lua_Integer)fallback);
    luaL_argcheck(L, mode >= 0 && mode <= 0777, idx, "not a mode");
    return (mode_t)mode;
}

/* --- files --- */

/* A buffer that is freed also when pushing its contents raises. */
static int scratch_gc(lua_State *L)
{
    buf_free(luaL_checkudata(L, 1, "sym.scratch"));
    return 0;
}

static struct buf *scratch_new(lua_State *L)
{
    struct buf *b = lua_newuserdatauv(L, sizeof *b, 0);
    *b = (struct buf){0};
    luaL_setmetatable(L, "sym.scratch");
    return b;
}

static int l_read_file(lua_State *L)
{
    const char *path = check_path(L, 1);
    lua_Integer max = luaL_optinteger(L, 2, READ_MAX);
    luaL_argcheck(L, max >= 0, 2, "not a size");
    struct buf *b = scratch_new(L);
    int rv = file_read(path, (size_t)max, b);
    if (rv != 0) {
        buf_free(b);
        return vm_fail(L, rv);
    }
    lua_pushlstring(L, b->len > 0 ? (const char *)buf_data(b) : "", b->len);
    buf_free(b);
    return 1;
}

static int l_write_file(lua_State *L)
{
    size_t n;
    const char *path = check_path(L, 1);
    const char *data = luaL_checklstring(L, 2, &n);
    return done(L, file_write(path, data, n, opt_mode(L, 3, 0600)));
}

static const char *user_name(uid_t uid)
{
    const struct passwd *user = getpwuid(uid);
    return user != NULL ? user->pw_name : "nobody known";
}

static int make_folder(const char *path, mode_t mode)
{
    struct stat st;
    if (mkdir(path, mode) == 0) {
        return 0;
    }
    if (errno != EEXIST) {
        return err_sysf(errno, "%s", path);
    }
    if (stat(path, &st) != 0) {
        return err_sysf(errno, "%s", path);
    }
    if (!S_ISDIR(st.st_mode)) {
        return err_setf(SYM_EEXIST, "%s is there and not a folder", path);
    }
    if (st.st_uid != geteuid()) {
        return err_setf(SYM_EDENIED, "%s belongs to %s (uid %u), not to uid %u", path, user_name(st.st_uid),
            st.st_uid, geteuid());
    }
    return 0;
}

static int l_mkdir(lua_State *L)
{
    const char *path = check_path(L, 1);
    return done(L, make_folder(path, opt_mode(L, 2, 0700)));
}

static int l_remove(lua_State *L)
{
    const char *path = check_path(L, 1);
    return done(L, remove(path) != 0 ? err_sysf(errno, "%s", path) : 0);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path) != 0 && errno != ENOENT ? err_sysf(errno, "%s", path) : 0;
}

static int l_remove_tree(lua_State *L)
{
    const char *path = check_path(L, 1);
    errno = 0;
    int rv = nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
    if (rv == -1) {
        rv = errno == ENOENT ? 0 : err_sysf(errno, "%s", path);
    }
    return done(L, rv);
}

static int l_rename(lua_State *L)
{
    const char *from = check_path(L, 1);
    const char *to = check_path(L, 2);
    return done(L, rename(from, to) != 0 ? err_sysf(errno, "%s to %s", from, to) : 0);
}

static const char *type_name(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
        return "file";
    case S_IFDIR:
        return "dir";
    case S_IFSOCK:
        return "socket";
    case S_IFLNK:
        return "link";
    default:
        return "other";
    }
}

static int l_stat(lua_State *L)
{
    struct stat st;
    const char *path = check_path(L, 1);
    if (lstat(path, &st) != 0) {
        return vm_fail(L, err_sysf(errno, "%s", path));
    }
    lua_createtable(L, 0, 5);
    lua_pushstring(L, type_name(st.st_mode));
    lua_setfield(L, -2, "type");
    lua_pushinteger(L, st.st_mode & 07777);
    lua_setfield(L, -2, "mode");
    lua_pushinteger(L, st.st_uid);
    lua_setfield(L, -2, "uid");
    lua_pushinteger(L, st.st_size);
    lua_setfield(L, -2, "size");
    lua_pushinteger(L, st.st_mtime);
    lua_setfield(L, -2, "mtime");
    return 1;
}

/* The lock has no finalizer: a handle that Lua forgets must not give the folder to a second daemon. */
static int lock_close(lua_State *L)
{
    int *fd = luaL_checkudata(L, 1, "sym.lock");
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
    return 0;
}

static int take_lock(const char *path, int *out)
{
    char pid[32];
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        return err_sysf(errno, "%s", path);
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        int errnum = errno;
        ssize_t n = pread(fd, pid, sizeof pid - 1, 0);
        pid[n > 0 ? n : 0] = '\0';
        close(fd);
        if (errnum != EWOULDBLOCK) {
            return err_sysf(errnum, "%s", path);
        }
        return err_setf(
            SYM_EINUSE, "%s is in use by process %.*s", path, (int)strspn(pid, "0123456789"), pid);
    }
    /* Only for the message above; the lock is what counts. */
    int n = snprintf(pid, sizeof pid, "%d\n", (int)getpid());
    bool written = ftruncate(fd, 0) == 0 && pwrite(fd, pid, (size_t)n, 0) == n;
    int rv = written ? 0 : err_sysf(errno, "%s", path);
    if (rv != 0) {
        close(fd);
        return rv;
    }
    *out = fd;
    return 0;
}

static int l_lock(lua_State *L)
{
    const char *path = check_path(L, 1);
    int *fd = lua_newuserdatauv(L, sizeof *fd, 0);
    *fd = -1;
    luaL_setmetatable(L, "sym.lock");
    int rv = take_lock(path, fd);
    return rv != 0 ? vm_fail(L, rv) : 1;
}

/* The machine, the folder's inode and when it was made: a copy, or what an archive puts back, differs in at
 * least one. */
static int l_folder_identity(lua_State *L)
{
    struct statx st;
    char machine[64] = "";
    const char *path = check_path(L, 1);
    if (statx(AT_FDCWD, path, 0, STATX_INO | STATX_BTIME, &st) != 0) {
        return vm_fail(L, err_sysf(errno, "%s", path));
    }
    FILE *f = fopen("/etc/machine-id", "re");
    if (f != NULL) {
        if (fgets(machine, sizeof machine, f) == NULL) {
            machine[0] = '\0';
        }
        fclose(f);
        machine[strcspn(machine, "\n")] = '\0';
    }
    if (machine[0] == '\0') {
        snprintf(machine, sizeof machine, "host-%08lx", (unsigned long)gethostid() & 0xffffffffUL);
    }
    char text[160];
    bool born = (st.stx_mask & STATX_BTIME) != 0;
    snprintf(text, sizeof text, "%s/%llu/%lld.%09u", machine, (unsigned long long)st.stx_ino,
        born ? (long long)st.stx_btime.tv_sec : 0LL, born ? st.stx_btime.tv_nsec : 0U);
    lua_pushstring(L, text);
    return 1;
}

/* --- the machine --- */

/* Connecting a UDP socket sends nothing, but makes the kernel choose the address. */
static bool route_address(int family, const char *to, char *out)
{
    bool found = false;
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } addr = {0};
    addr.any.sa_family = (sa_family_t)family;
    addr.v4.sin_port = htons(9); /* at the same place in both */
    void *ip = family == AF_INET ? (void *)&addr.v4.sin_addr : (void *)&addr.v6.sin6_addr;
    socklen_t len = family == AF_INET ? sizeof addr.v4 : sizeof addr.v6;
    int fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return false;
    }
    if (inet_pton(family, to, ip) == 1 && connect(fd, &addr.any, len) == 0 &&
        getsockname(fd, &addr.any, &len) == 0) {
        found = inet_ntop(family, ip, out, INET6_ADDRSTRLEN) != NULL;
    }
    close(fd);
    return found && strcmp(out, "0.0.0.0") != 0 && strcmp(out, "::") != 0;
}

static int l_default_address(lua_State *L)
{
    char ip[INET6_ADDRSTRLEN];
    /* Addresses for documentation: they belong to nobody and go the default route. */
    bool found = route_address(AF_INET, "192.0.2.1", ip) || route_address(AF_INET6, "2001:db8::1", ip);
    lua_pushstring(L, found ? ip : "127.0.0.1");
    return 1;
}

static int l_hostname(lua_State *L)
{
    char name[HOST_NAME_MAX + 1];
    bool known = gethostname(name, sizeof name) == 0;
    name[sizeof name - 1] = '\0';
    lua_pushstring(L, known ? name : "localhost");
    return 1;
}

static int l_release_memory(lua_State *L)
{
    (void)L;
    memory_release();
    return 0;
}

static int l_uid(lua_State *L)
{
    lua_pushinteger(L, geteuid());
    return 1;
}

static int l_pid(lua_State *L)
{
    lua_pushinteger(L, getpid());
    return 1;
}

static int l_isatty(lua_State *L)
{
    lua_pushboolean(L, isatty((int)luaL_checkinteger(L, 1)));
    return 1;
}

static int l_getenv(lua_State *L)
{
    lua_pushstring(L, getenv(luaL_checkstring(L, 1)));
    return 1;
}

static int l_winsize(lua_State *L)
{
    struct winsize size;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) {
        return 0;
    }
    lua_pushinteger(L, size.ws_col);
    return 1;
}

static int l_now(lua_State *L)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    lua_pushnumber(L, (lua_Number)ts.tv_sec + (lua_Number)ts.tv_nsec / 1e9);
    return 1;
}

static int l_mono_ms(lua_State *L)
{
    lua_pushinteger(L, (lua_Integer)(uv_hrtime() / 1000000));
    return 1;
}

static int l_options(lua_State *L)
{
    if (lua_getfield(L, LUA_REGISTRYINDEX, "sym.options") != LUA_TTABLE) {
        lua_newtable(L);
    }
    return 1;
}

static int l_exit(lua_State *L)
{
    int code = (int)luaL_optinteger(L, 1, 0);
    if (vm_daemon(L) != NULL) {
        return luaL_error(L, "the daemon ends through sym.node.quit");
    }
    exit(code);
}

int luaopen_sym_sys(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"options", l_options},
        {"now", l_now},
        {"mono_ms", l_mono_ms},
        {"read_file", l_read_file},
        {"write_file", l_write_file},
        {"mkdir", l_mkdir},
        {"remove", l_remove},
        {"remove_tree", l_remove_tree},
        {"rename", l_rename},
        {"stat", l_stat},
        {"lock", l_lock},
        {"folder_identity", l_folder_identity},
        {"default_address", l_default_address},
        {"hostname", l_hostname},
        {"release_memory", l_release_memory},
        {"uid", l_uid},
        {"pid", l_pid},
        {"isatty", l_isatty},
        {"getenv", l_getenv},
        {"winsize", l_winsize},
        {"guarded", guard_guarded},
        {"unguarded", guard_unguarded},
        {"resume", guard_resume},
        {"exit", l_exit},
        {NULL, NULL},
    };
    static const luaL_Reg lock_methods[] = {{"close", lock_close}, {NULL, NULL}};
    if (luaL_newmetatable(L, "sym.scratch")) {
        lua_pushcfunction(L, scratch_gc);
        lua_setfield(L, -2, "__gc");
    }
    if (luaL_newmetatable(L, "sym.lock")) {
        luaL_newlib(L, lock_methods);
        lua_setfield(L, -2, "__index");
    }
    luaL_newlib(L, functions);
    lua_pushstring(L, SYM_VERSION);
    lua_setfield(L, -2, "version");
    return 1;
}
