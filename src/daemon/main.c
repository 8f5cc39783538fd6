/* symphonyd: options, the folder, the loop. */
#include "base/err.h"
#include "base/log.h"
#include "daemon/daemon.h"
#include "lua/paths.h"
#include "sandbox/child.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static const char usage[] =
    "Usage: symphonyd manager|block [OPTION]...\n"
    "\n"
    "The daemon of one node: a manager, or a worker that runs the service named. A fresh one serves only "
    "its\n"
    "control socket and waits for `symphony manager init`, `symphony manager join` or `symphony block "
    "join`;\n"
    "one that has been part of a cluster resumes by itself.\n"
    "\n"
    "      --config-dir DIR          everything the node owns; made 0700 (default .)\n"
    "      --listen-remote-port N    HTTPS API (default 27242; 0: a free one)\n"
    "      --listen-gossip-port N    gossip, UDP (default 37065, or a free one if that is taken; 0: a free "
    "one)\n"
    "      --bind-addr IP            where to listen (default 0.0.0.0)\n"
    "      --advertise-addr HOST     what others are told (default: --bind-addr or the default route)\n"
    "      --socket-group GROUP      who may use DIR/control.sock besides root and this user\n"
    "      --lua-dir DIR             the operator's own Lua modules; may be repeated\n"
    "      --log-level LEVEL         debug, info, warn or error (default info)\n"
    "      --log-format FORMAT       text or json (default text on a terminal, else json)\n"
    "  -V, --version\n"
    "  -h, --help\n"
    "\n"
    "Of a manager only:\n"
    "      --listen-raft-port N      managers to managers, TCP (default 15760; 0: a free one)\n"
    "      --election-ms N           election timeout (default 400)\n"
    "      --heartbeat-ms N          heartbeat interval (default 50)\n"
    "      --quota-mib N             most that the state may take (default 1024)\n"
    "      --disk-floor-mib N        writes are refused below this much free disk (default 64)\n"
    "\n"
    "Exit status: 0 after an orderly end, 1 when it could not start, 2 for a wrong command line, 70 when it "
    "had to\n"
    "give up in order to keep its data safe (a supervisor should start it again).\n";

enum {
    OPT_CONFIG = 256,
    OPT_RAFT,
    OPT_REMOTE,
    OPT_GOSSIP,
    OPT_BIND,
    OPT_ADVERTISE,
    OPT_GROUP,
    OPT_LUA,
    OPT_ELECTION,
    OPT_HEARTBEAT,
    OPT_QUOTA,
    OPT_FLOOR,
    OPT_LEVEL,
    OPT_FORMAT
};

enum { GROUP_MODE = 0710 }; /* of the folder, with --socket-group */

static const struct option long_options[] = {
    {"config-dir", required_argument, NULL, OPT_CONFIG},
    {"listen-raft-port", required_argument, NULL, OPT_RAFT},
    {"listen-remote-port", required_argument, NULL, OPT_REMOTE},
    {"listen-gossip-port", required_argument, NULL, OPT_GOSSIP},
    {"bind-addr", required_argument, NULL, OPT_BIND},
    {"advertise-addr", required_argument, NULL, OPT_ADVERTISE},
    {"socket-group", required_argument, NULL, OPT_GROUP},
    {"lua-dir", required_argument, NULL, OPT_LUA},
    {"election-ms", required_argument, NULL, OPT_ELECTION},
    {"heartbeat-ms", required_argument, NULL, OPT_HEARTBEAT},
    {"quota-mib", required_argument, NULL, OPT_QUOTA},
    {"disk-floor-mib", required_argument, NULL, OPT_FLOOR},
    {"log-level", required_argument, NULL, OPT_LEVEL},
    {"log-format", required_argument, NULL, OPT_FORMAT},
    {"version", no_argument, NULL, 'V'},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

/* For a person at a terminal before there is a log to speak of. */
static int complain(int status, const char *hint)
{
    fprintf(stderr, "symphonyd: %s\n", err_msg());
    if (hint != NULL) {
        fprintf(stderr, "  hint: %s\n", hint);
    }
    return status;
}

static int number(const char *name, const char *text, unsigned long most, unsigned long *out)
{
    char *end;
    errno = 0;
    *out = strtoul(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0' || errno != 0 || *out > most) {
        return err_setf(SYM_EINVAL, "--%s takes a number from 0 to %lu, not '%s'", name, most, text);
    }
    return 0;
}

static int address(const char *name, const char *text)
{
    uint8_t ip[16];
    return inet_pton(AF_INET, text, ip) == 1 || inet_pton(AF_INET6, text, ip) == 1
               ? 0
               : err_setf(SYM_EINVAL, "--%s takes an IPv4 or IPv6 address, not '%s'", name, text);
}

/* What others are told may be a name, too. */
static int host(const char *name, const char *text)
{
    char parsed[256];
    uint16_t port = 0;
    if (address(name, text) == 0) {
        return 0;
    }
    bool is_name = strchr(text, ':') == NULL && strspn(text, "0123456789.") != strlen(text) &&
                   addr_parse(text, 0, parsed, &port) == 0;
    return is_name ? 0
                   : err_setf(SYM_EINVAL, "--%s takes an IP address or a host name, not '%s'", name, text);
}

/* 0: go on; 1: answered (help, version); SYM_EINVAL. */
static int parse(int argc, char **argv, struct options *opt)
{
    int level = LOG_INFO;
    bool json = !isatty(STDERR_FILENO);
    int c, index = 0;
    const char *of_manager = NULL; /* an option that a worker does not have */
    *opt = (struct options){.config_dir = ".",
        .raft_port = 15760,
        .remote_port = 27242,
        .gossip_port = 37065,
        .bind_addr = "0.0.0.0"};
    while ((c = getopt_long(argc, argv, "hV", long_options, &index)) != -1) {
        unsigned long n = 0;
        int rv = 0;
        const char *name = c >= OPT_CONFIG ? long_options[index].name : "";
        if (c == OPT_RAFT || c == OPT_ELECTION || c == OPT_HEARTBEAT || c == OPT_QUOTA || c == OPT_FLOOR) {
            of_manager = name;
        }
        switch (c) {
        case OPT_CONFIG:
            opt->config_dir = optarg;
            break;
        case OPT_RAFT:
            rv = number(name, optarg, 65535, &n);
            opt->raft_port = (uint16_t)n;
            break;
        case OPT_REMOTE:
            rv = number(name, optarg, 65535, &n);
            opt->remote_port = (uint16_t)n;
            break;
        case OPT_GOSSIP:
            rv = number(name, optarg, 65535, &n);
            opt->gossip_port = (uint16_t)n;
            opt->gossip_given = true;
            break;
        case OPT_BIND:
            rv = address(name, optarg);
            opt->bind_addr = optarg;
            break;
        case OPT_ADVERTISE:
            rv = host(name, optarg);
            opt->advertise_addr = optarg;
            break;
        case OPT_GROUP:
            opt->socket_group = optarg;
            break;
        case OPT_LUA:
            if (opt->n_lua_dirs == sizeof opt->lua_dirs / sizeof *opt->lua_dirs) {
                rv = err_setf(SYM_EINVAL, "too many --lua-dir");
                break;
            }
            opt->lua_dirs[opt->n_lua_dirs++] = optarg;
            break;
        case OPT_ELECTION:
            rv = number(name, optarg, 60000, &n);
            opt->election_ms = (unsigned)n;
            break;
        case OPT_HEARTBEAT:
            rv = number(name, optarg, 10000, &n);
            opt->heartbeat_ms = (unsigned)n;
            break;
        case OPT_QUOTA:
            rv = number(name, optarg, 1 << 20, &n);
            opt->quota = (uint64_t)n << 20;
            break;
        case OPT_FLOOR:
            rv = number(name, optarg, 1 << 20, &n);
            opt->disk_floor = (uint64_t)n << 20;
            break;
        case OPT_LEVEL:
            level = log_level_parse(optarg);
            rv = level < 0 ? err_setf(SYM_EINVAL, "--log-level is one of debug, info, warn, error") : 0;
            break;
        case OPT_FORMAT:
            json = strcmp(optarg, "json") == 0;
            rv = json || strcmp(optarg, "text") == 0 ? 0
                                                     : err_setf(SYM_EINVAL, "--log-format is text or json");
            break;
        case 'V':
            printf("symphonyd %s\n", SYM_VERSION);
            return 1;
        case 'h':
            fputs(usage, stdout);
            return 1;
        default:
            return err_setf(SYM_EINVAL, "see symphonyd --help");
        }
        if (rv != 0) {
            return rv;
        }
    }
    if (optind + 1 != argc || (strcmp(argv[optind], "manager") != 0 && strcmp(argv[optind], "block") != 0)) {
        return err_setf(
            SYM_EINVAL, "say what this node is to be: symphonyd manager|block [OPTION]..., see --help");
    }
    opt->role = argv[optind];
    if (of_manager != NULL && strcmp(opt->role, "manager") != 0) {
        return err_setf(SYM_EINVAL, "--%s is for managers only", of_manager);
    }
    unsigned election = opt->election_ms != 0 ? opt->election_ms : RNODE_ELECTION_MS;
    unsigned heartbeat = opt->heartbeat_ms != 0 ? opt->heartbeat_ms : RNODE_HEARTBEAT_MS;
    if (election < 2 * heartbeat) {
        return err_setf(
            SYM_EINVAL, "--election-ms (%u) must be at least twice --heartbeat-ms (%u)", election, heartbeat);
    }
    log_setup((enum log_level)level, json);
    return 0;
}

/* Makes every folder on the way; the last one 0700. */
static int make_folders(const char *dir)
{
    char path[4096];
    if (snprintf(path, sizeof path, "%s", dir) >= (int)sizeof path) {
        return err_setf(SYM_EINVAL, "%s: too long", dir);
    }
    for (char *p = path + 1; *p != '\0'; p++) {
        if (*p == '/') {
            *p = '\0';
            if (mkdir(path, 0755) != 0 && errno != EEXIST) {
                return err_sysf(errno, "%s", path);
            }
            *p = '/';
        }
    }
    return mkdir(path, 0700) != 0 && errno != EEXIST ? err_sysf(errno, "%s", path) : 0;
}

/* -1 if none is given. */
static int group_named(const char *name, gid_t *gid)
{
    const struct group *group = name != NULL ? getgrnam(name) : NULL;
    *gid = group != NULL ? group->gr_gid : (gid_t)-1;
    return name != NULL && group == NULL ? err_setf(SYM_EINVAL, "--socket-group: no group is called %s", name)
                                         : 0;
}

/* Those of the socket's group may go through the folder, and not even see what else is in it; without one, what an
 * earlier --socket-group gave is taken back. */
static int admit_group(const char *dir, mode_t mode, gid_t gid)
{
    if (gid == (gid_t)-1) {
        return (mode & 07777) == GROUP_MODE && chmod(dir, 0700) != 0 ? err_sysf(errno, "%s", dir) : 0;
    }
    if (chown(dir, (uid_t)-1, gid) != 0) {
        return errno == EPERM ? err_setf(SYM_EINVAL,
                                    "--socket-group: uid %u must be a member of that group to hand %s to it",
                                    geteuid(), dir)
                              : err_sysf(errno, "%s", dir);
    }
    return chmod(dir, GROUP_MODE) != 0 ? err_sysf(errno, "%s", dir) : 0;
}

/* The folder must be ours alone, writable, and of no other daemon: two on one raft log would vote twice. */
static int take_folder(const char *dir, gid_t gid, int *lock)
{
    struct stat st;
    char path[4096];
    int rv = make_folders(dir);
    if (rv != 0) {
        return rv;
    }
    if (stat(dir, &st) != 0) {
        return err_sysf(errno, "%s", dir);
    }
    if (!S_ISDIR(st.st_mode)) {
        return err_setf(SYM_EINVAL, "%s is not a folder", dir);
    }
    if (st.st_uid != geteuid()) {
        return err_setf(SYM_EDENIED, "%s belongs to uid %u, not to uid %u that runs this daemon", dir,
            st.st_uid, geteuid());
    }
    if ((st.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
        return err_setf(
            SYM_EDENIED, "%s can be written by others (mode %03o); it must be 0700", dir, st.st_mode & 0777);
    }
    snprintf(path, sizeof path, "%s/lock", dir);
    *lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (*lock < 0) {
        return err_sysf(errno, "%s", path);
    }
    if (flock(*lock, LOCK_EX | LOCK_NB) != 0) {
        int errnum = errno;
        close(*lock);
        return errnum == EWOULDBLOCK ? err_setf(SYM_EINUSE, "%s is in use by a running daemon", dir)
                                     : err_sysf(errnum, "%s", path);
    }
    return admit_group(dir, st.st_mode, gid);
}

/* SIGTERM and SIGINT. Not libuv's signal handles: closing one gives the signal its default back, and one that is said
 * again would end the process in the middle of its orderly end. */
static uv_async_t end_asked;

static void on_signal(int signum)
{
    int errnum = errno;
    (void)signum;
    uv_async_send(&end_asked);
    errno = errnum;
}

static void on_end_asked(uv_async_t *async)
{
    daemon_quit(async->data, 0);
}

static int listen_to_signals(uv_loop_t *loop, struct daemon *d)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    int rv = uv_async_init(loop, &end_asked, on_end_asked);
    if (rv != 0) {
        return err_sysf(rv, "event loop");
    }
    end_asked.data = d;
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    return 0;
}

static void ignore_signals(void)
{
    signal(SIGTERM, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    uv_close((uv_handle_t *)&end_asked, NULL);
}

/* sym.options: what Lua may know of the command line. */
static void publish_options(lua_State *L, const struct options *opt)
{
    lua_createtable(L, 0, 12);
    const struct {
        const char *name, *value;
    } strings[] = {{"role", opt->role}, {"config_dir", opt->config_dir},
        {"advertise_addr", opt->advertise_addr}, {"bind_addr", opt->bind_addr}, {"version", SYM_VERSION}};
    for (size_t i = 0; i < sizeof strings / sizeof *strings; i++) {
        lua_pushstring(L, strings[i].value);
        lua_setfield(L, -2, strings[i].name);
    }
    const struct {
        const char *name;
        lua_Integer value;
    } numbers[] = {{"remote_port", opt->remote_port}, {"gossip_port", opt->gossip_port},
        {"raft_port", opt->raft_port},
        {"election_ms", opt->election_ms != 0 ? opt->election_ms : RNODE_ELECTION_MS}};
    size_t n_numbers = strcmp(opt->role, "manager") == 0 ? sizeof numbers / sizeof *numbers : 2;
    for (size_t i = 0; i < n_numbers; i++) {
        lua_pushinteger(L, numbers[i].value);
        lua_setfield(L, -2, numbers[i].name);
    }
    lua_pushboolean(L, opt->gossip_given);
    lua_setfield(L, -2, "gossip_given");
    lua_createtable(L, (int)opt->n_lua_dirs, 0);
    for (unsigned i = 0; i < opt->n_lua_dirs; i++) {
        lua_pushstring(L, opt->lua_dirs[i]);
        lua_rawseti(L, -2, i + 1);
    }
    lua_setfield(L, -2, "lua_dirs");
    lua_setfield(L, LUA_REGISTRYINDEX, "sym.options");
}

static const char *start_hint(int code)
{
    switch (code) {
    case SYM_EINUSE:
        return "another symphonyd runs there: stop it first, or give this one its own --config-dir";
    case SYM_EDENIED:
        return "choose another --config-dir, or hand this one over with chown and chmod 700";
    case SYM_ENOSPACE:
        return "free some disk space and start again; nothing has been lost";
    default:
        return NULL;
    }
}

static int run(struct daemon *d)
{
    const char *paths[20];
    uv_loop_t loop;
    int lock = -1;
    int rv = group_named(d->opt.socket_group, &d->opt.socket_gid);
    rv = rv != 0 ? rv : take_folder(d->opt.config_dir, d->opt.socket_gid, &lock);
    if (rv != 0) {
        return complain(1, start_hint(rv));
    }
    rv = uv_loop_init(&loop);
    if (rv != 0) {
        err_sysf(rv, "event loop");
        return complain(1, NULL);
    }
    lua_paths(paths, sizeof paths / sizeof *paths, d->opt.lua_dirs, d->opt.n_lua_dirs);
    rv = daemon_open(d, &loop, paths);
    if (rv != 0) {
        complain(1, start_hint(rv));
        _exit(1); /* nothing runs yet that would need an orderly end */
    }
    if (listen_to_signals(&loop, d) != 0) {
        complain(1, NULL);
        _exit(1);
    }
    publish_options(d->L, &d->opt);
    rv = vm_run(d->L, "symphony.boot", "main", NULL, NULL);
    if (rv != 0) {
        log_error("cannot start: %s", err_msg());
        d->exit_code = 1;
        daemon_quit(d, 1);
    } else {
        log_info(
            "symphonyd %s %s: control socket %s/control.sock", SYM_VERSION, d->opt.role, d->opt.config_dir);
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    ignore_signals();
    daemon_close(d);
    close(lock);
    log_info("stopped");
    return d->exit_code;
}

/* A connection is a descriptor, and the usual limit of 1024 is for programs that use select. */
static void raise_descriptors(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

int main(int argc, char **argv)
{
    struct daemon d = {0};
    if (child_asked(argc, argv)) {
        return child_main();
    }
    /* Arenas for each pool thread would only spread out memory that one thread uses. */
    mallopt(M_ARENA_MAX, 2);
    /* A snapshot's bytes go back to the system as soon as they are freed. By itself malloc would, from the first
     * one on, keep as much for the next. */
    mallopt(M_MMAP_THRESHOLD, 4 << 20);
    mallopt(M_TRIM_THRESHOLD, 16 << 20);
    signal(SIGPIPE, SIG_IGN);
    umask(077);
    raise_descriptors();
    int rv = parse(argc, argv, &d.opt);
    if (rv != 0) {
        return rv == 1 ? 0 : complain(2, NULL);
    }
    return run(&d);
}
