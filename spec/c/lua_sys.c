#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "lua/vm.h"

static uv_loop_t loop;
static lua_State *L;
static char dir[] = "/tmp/symphony-sys-XXXXXX";

static const char *run(const char *code)
{
    static char text[1024];
    if (luaL_loadstring(L, code) != LUA_OK) {
        snprintf(text, sizeof text, "%s", lua_tostring(L, -1));
        lua_pop(L, 1);
    } else if (vm_call(L, 0, 1) != 0) {
        snprintf(text, sizeof text, "failed: %s", err_msg());
    } else {
        snprintf(text, sizeof text, "%s", luaL_tolstring(L, -1, NULL));
        lua_pop(L, 2);
    }
    assert_int_equal(lua_gettop(L), 0);
    return text;
}

static int open_all(void **state)
{
    (void)state;
    static const luaL_Reg modules[] = {{"sym.sys", luaopen_sym_sys}, {NULL, NULL}};
    struct vm_config cfg = {.loop = &loop, .daemon = &loop, .modules = modules};
    log_setup(LOG_ERROR + 1, false);
    assert_non_null(mkdtemp(dir));
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(vm_new(&cfg, &L), 0);
    lua_pushstring(L, dir);
    lua_setglobal(L, "dir");
    assert_string_equal(run("sys = require 'sym.sys' "
                            "function code(...) local v, e = ... return e and e.code or v end"),
        "nil");
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    assert_string_equal(run("return code(sys.remove_tree(dir))"), "true");
    assert_int_equal(access(dir, F_OK), -1);
    vm_close(L);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
    return 0;
}

static mode_t mode_of(const char *name)
{
    char path[256];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return stat(path, &st) == 0 ? st.st_mode & 07777 : 0;
}

static void files(void **state)
{
    (void)state;
    assert_string_equal(run("return code(sys.write_file(dir .. '/a', 'x\\0y', tonumber('640', 8)))"), "true");
    assert_int_equal(mode_of("a"), 0640);
    assert_string_equal(run("local t = sys.read_file(dir .. '/a') return #t .. t:sub(3)"), "3y");
    assert_string_equal(run("sys.write_file(dir .. '/a', '') return #sys.read_file(dir .. '/a')"), "0");
    assert_int_equal(mode_of("a"), 0600);
    assert_string_equal(
        run("sys.write_file(dir .. '/a', ('z'):rep(200000)) return #sys.read_file(dir .. '/a')"), "200000");
    assert_string_equal(run("return code(sys.read_file(dir .. '/a', 199999))"), "too_big");
    assert_string_equal(run("return #sys.read_file(dir .. '/a', 200000)"), "200000");
    assert_string_equal(run("return code(sys.read_file(dir .. '/none'))"), "not_found");
    assert_string_equal(run("return code(sys.read_file(dir))"), "io");
    assert_string_equal(run("return code(sys.write_file(dir .. '/none/a', 'x'))"), "not_found");
    assert_string_equal(run("return code(sys.write_file(dir, 'x'))"), "io");
    assert_non_null(strstr(run("sys.read_file('a\\0b')"), "not a path"));
    assert_non_null(strstr(run("sys.read_file('')"), "not a path"));
    assert_non_null(strstr(run("sys.write_file('a', 'b', 4096)"), "not a mode"));
    /* What a person reads is the name that was given. */
    assert_non_null(
        strstr(run("return select(2, sys.write_file(dir .. '/none/a', 'x')).message"), "/none/a: "));
    /* A file that an earlier try left, or a link that somebody put there, is in nobody's way. */
    char path[256];
    snprintf(path, sizeof path, "%s/b.tmp", dir);
    assert_int_equal(symlink("/nowhere/at/all", path), 0);
    assert_string_equal(run("return code(sys.write_file(dir .. '/b', 'new'))"), "true");
    assert_string_equal(run("return sys.read_file(dir .. '/b')"), "new");
    assert_int_equal(lstat(path, &(struct stat){0}), -1);
    assert_string_equal(run("return code(sys.rename(dir .. '/b', dir .. '/c'))"), "true");
    assert_string_equal(run("return code(sys.rename(dir .. '/b', dir .. '/c'))"), "not_found");
    assert_string_equal(run("return code(sys.remove(dir .. '/c'))"), "true");
    assert_string_equal(run("return code(sys.remove(dir .. '/c'))"), "not_found");
}

/* A write that fails half-way leaves what was there, and nothing else. */
static void a_write_that_fails(void **state)
{
    (void)state;
    struct rlimit old;
    run("sys.write_file(dir .. '/w', 'old')");
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    struct rlimit small = {.rlim_cur = 1000, .rlim_max = old.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    assert_string_equal(run("return code(sys.write_file(dir .. '/w', ('x'):rep(5000)))"), "io");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_string_equal(run("return sys.read_file(dir .. '/w')"), "old");
    assert_string_equal(run("return code(sys.stat(dir .. '/w.tmp'))"), "not_found");
}

static void a_file_without_an_end(void **state)
{
    (void)state;
    assert_string_equal(run("return code(sys.read_file('/dev/zero', 1000))"), "too_big");
}

static void folders(void **state)
{
    (void)state;
    assert_string_equal(run("return code(sys.mkdir(dir .. '/d', tonumber('750', 8)))"), "true");
    assert_int_equal(mode_of("d"), 0750);
    assert_string_equal(run("return code(sys.mkdir(dir .. '/d'))"), "true");
    assert_string_equal(run("sys.write_file(dir .. '/f', '') return code(sys.mkdir(dir .. '/f'))"), "exists");
    assert_string_equal(run("return code(sys.mkdir(dir .. '/x/y'))"), "not_found");
    if (geteuid() != 0) {
        assert_string_equal(run("return code(sys.mkdir('/'))"), "denied");
    } else {
        /* Somebody else's. */
        char path[256];
        snprintf(path, sizeof path, "%s/theirs", dir);
        assert_int_equal(mkdir(path, 0700), 0);
        assert_int_equal(chown(path, 54321, 54321), 0);
        assert_string_equal(run("return code(sys.mkdir(dir .. '/theirs'))"), "denied");
        assert_non_null(strstr(run("return select(2, sys.mkdir(dir .. '/theirs')).message"), "54321"));
    }
    assert_string_equal(run("sys.mkdir(dir .. '/d/e') sys.write_file(dir .. '/d/e/f', 'x') "
                            "return code(sys.remove(dir .. '/d'))"),
        "io");
    /* A link inside is removed, not what it leads to. */
    char from[256], to[256];
    snprintf(from, sizeof from, "%s/d/link", dir);
    snprintf(to, sizeof to, "%s/f", dir);
    assert_int_equal(symlink(to, from), 0);
    assert_string_equal(run("return code(sys.remove_tree(dir .. '/d'))"), "true");
    assert_string_equal(run("return code(sys.remove_tree(dir .. '/d'))"), "true");
    assert_int_equal(access(to, F_OK), 0);
}

static void stats(void **state)
{
    (void)state;
    run("sys.write_file(dir .. '/s', '12345', tonumber('600', 8))");
    assert_string_equal(
        run("local s = sys.stat(dir .. '/s') return s.type .. s.size .. s.mode .. s.uid - sys.uid()"),
        "file53840");
    assert_string_equal(run("return sys.stat(dir).type .. sys.stat('/dev/null').type"), "dirother");
    assert_string_equal(run("return code(sys.stat(dir .. '/none'))"), "not_found");
}

static void locks(void **state)
{
    (void)state;
    assert_string_equal(run("first = sys.lock(dir .. '/lock') return type(first)"), "userdata");
    assert_int_equal(mode_of("lock"), 0600);
    assert_string_equal(run("local _, e = sys.lock(dir .. '/lock') return e.code .. ' ' .. "
                            "tostring(e.message:find('process ' .. sys.pid(), 1, true) ~= nil)"),
        "in_use true");
    assert_string_equal(run("return code(sys.lock(dir .. '/none/lock'))"), "not_found");
    run("first:close() first:close()");
    assert_string_equal(run("second = sys.lock(dir .. '/lock') return type(second)"), "userdata");
    run("second:close() second = nil");
}

static void identity(void **state)
{
    (void)state;
    assert_string_equal(
        run("local a = sys.folder_identity(dir) return tostring(a == sys.folder_identity(dir) and #a > 8)"),
        "true");
    assert_string_equal(run("sys.mkdir(dir .. '/i') local a = sys.folder_identity(dir .. '/i') "
                            "sys.mkdir(dir .. '/j') local b = sys.folder_identity(dir .. '/j') "
                            "return tostring(a ~= b)"),
        "true");
    assert_string_equal(run("return code(sys.folder_identity(dir .. '/none'))"), "not_found");
}

/* The same folder on another machine, by what that says it is; in a mount namespace of a child's own. */
static void folder_on_another_machine(void **state)
{
    (void)state;
    char id[64];
    snprintf(id, sizeof id, "%s/machine-id", dir);
    FILE *f = fopen(id, "we");
    assert_non_null(f);
    assert_true(fputs("0123456789abcdef0123456789abcdef\n", f) >= 0);
    assert_int_equal(fclose(f), 0);
    char here[128];
    snprintf(here, sizeof here, "%s", run("return sys.folder_identity(dir)"));
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
            mount(id, "/etc/machine-id", NULL, MS_BIND, NULL) != 0) {
            _exit(2);
        }
        _exit(strcmp(run("return sys.folder_identity(dir)"), here) != 0 ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(unlink(id), 0);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 2) {
        skip(); /* no /etc/machine-id, or not the right to mount over it */
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void machine(void **state)
{
    (void)state;
    assert_string_equal(run("return tostring(sys.default_address():match('^[%x.:]+$') ~= nil)"), "true");
    assert_string_equal(run("return tostring(#sys.hostname() > 0)"), "true");
    assert_string_equal(run("return tostring(math.abs(sys.now() - os.time()) < 2)"), "true");
    assert_string_equal(
        run("local a = sys.mono_ms() return math.type(a) .. tostring(sys.mono_ms() >= a)"), "integertrue");
    assert_string_equal(run("return tostring(sys.isatty(99))"), "false");
    setenv("SYM_TEST", "v", 1);
    assert_string_equal(
        run("return sys.getenv('SYM_TEST') .. tostring(sys.getenv('SYM_TEST_NONE'))"), "vnil");
    assert_string_equal(run("return tostring(sys.version:match('^%d+%.%d+%.%d+') ~= nil)"), "true");
    assert_string_equal(run("return tostring(next(sys.options()))"), "nil");
    lua_newtable(L);
    lua_pushliteral(L, "manager");
    lua_setfield(L, -2, "role");
    lua_setfield(L, LUA_REGISTRYINDEX, "sym.options");
    assert_string_equal(run("return sys.options().role"), "manager");
}

static void the_daemon_does_not_exit(void **state)
{
    (void)state;
    assert_non_null(strstr(run("sys.exit(3)"), "sym.node.quit"));
}

static void the_client_does(void **state)
{
    (void)state;
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        static const luaL_Reg modules[] = {{"sym.sys", luaopen_sym_sys}, {NULL, NULL}};
        struct vm_config cfg = {.loop = &loop, .modules = modules};
        if (vm_new(&cfg, &L) == 0) {
            run("require('sym.sys').exit(7)");
        }
        _exit(1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files),
        cmocka_unit_test(a_write_that_fails),
        cmocka_unit_test(a_file_without_an_end),
        cmocka_unit_test(folders),
        cmocka_unit_test(stats),
        cmocka_unit_test(locks),
        cmocka_unit_test(identity),
        cmocka_unit_test(folder_on_another_machine),
        cmocka_unit_test(machine),
        cmocka_unit_test(the_daemon_does_not_exit),
        cmocka_unit_test(the_client_does),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
