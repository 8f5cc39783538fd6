/* Unix sockets by path. A path may be longer than sockaddr_un holds: then it goes through a descriptor of its
 * folder. */
#ifndef SYM_NET_UNIX_H
#define SYM_NET_UNIX_H

#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>

/* The address of @path, valid until @dir, a descriptor or -1, is closed by the caller. SYM_EINVAL for a path
 * that cannot be a socket's, SYM_ENOTFOUND and others from opening its folder. */
int unix_address(const char *path, struct sockaddr_un *out, int *dir);

/* Binds and listens at @path, which gets @mode and, unless -1, @gid, and is never more open than that. A
 * socket file that nobody answers is replaced; SYM_EINUSE if somebody does, SYM_EEXIST if the file is no
 * socket. @st is the new file's, to tell at the end whether it is still ours. */
int unix_listen(const char *path, mode_t mode, gid_t gid, int *fd, struct stat *st);

#endif
