/* The routes of the users' own keys, in C because mostly a decision is nowhere in them and speed is everything; what
 * a policy wants to decide is passed on to Lua:
 *
 *   GET|PUT|DELETE /v1/kv/<key>     GET /v1/kv?prefix=&after=&limit=
 *   GET /v1/watch?prefix=&from=     GET /healthz
 *
 * docs/api.md describes them. All other routes are Lua's.
 */
#ifndef SYM_DAEMON_API_H
#define SYM_DAEMON_API_H

#include "daemon/daemon.h"

/* What to do without a quorum; in Lua it is sym.node's quorum_hint. */
#define API_QUORUM_HINT                                                                                      \
    "`symphony manager status` shows who is missing; it works again by itself once a majority of the "       \
    "managers is back. If they are gone for good: `symphony manager recover`"

int api_new(struct daemon *d, struct api **out);
/* Ends every watch, so that the doors can close. */
void api_shut(struct api *a);
void api_free(struct api *a);

/* Whether the owner of this certificate may send large bodies: whoever may write. */
bool api_trusts(struct api *a, const struct tls_peer *peer);

/* Whether the owner of this certificate, a manager or a client, is one in the state now. */
bool api_knows(struct api *a, const struct tls_peer *peer);

/* Every watch that is not paused has been told of all that is in the store. */
void api_told(struct api *a);
/* Cuts the watches of those who may not watch any more. */
void api_recheck(struct api *a);

/* Who decides on changes of keys: Lua, or nobody as long as no policy has been set after @revision, which is compared
 * when the change takes effect. At first it is nobody while there is no policy at all. */
void api_policies(struct api *a, bool lua_decides, uint64_t revision);
/* Behind an api_policies in which Lua decides: the process of the policies holds all that there are at @revision of
 * their prefix, @count keys. It is then asked from here, and Lua only when it says anything but yes.
 * @own_name: of this manager. */
void api_policies_loaded(struct api *a, uint64_t revision, uint64_t count, const char *own_name);
/* How often the policy @name has been asked from here and has not failed. */
uint64_t api_heard(const struct api *a, const char *name);

/* True if the request was one of the above: it has been, or will be, answered. */
bool api_handle(struct api *a, struct http_req *req);

#endif
