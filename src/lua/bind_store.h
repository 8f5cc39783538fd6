/* What sym.store lends to the other binding files, and what the program lends to it. */
#ifndef SYM_LUA_BIND_STORE_H
#define SYM_LUA_BIND_STORE_H

#include "store/store.h"

#include <lua.h>

struct rnode;

/* The store and the raft member of the program that this state belongs to; NULL while the node is not
 * started. Defined by the program (src/daemon), and by tests. */
struct store *bind_store_of(lua_State *L);
struct rnode *bind_raft_of(lua_State *L);

/* Reads the txn in the table at @idx:
 *   {compare = {{key=, value=} | {key=, create_revision=} | {key=, mod_revision=} | {key=, absent=true} |
 *               {prefix=, revision=} | {prefix=, count=}},
 *    ops = {{put=key, value=} | {delete=key}}, id = 16 bytes or absent, seq = number or absent, since = revision or
 *    absent}
 * Raises on misuse. What @out points to lives as long as the table is unchanged. */
void bind_store_check_txn(lua_State *L, int idx, struct txn *out);

/* {status = "applied"|"conflict"|"unknown", failed = the first compare that does not hold, from 1, revision, repeated} */
void bind_store_push_result(lua_State *L, const struct txn_result *r);

/* nil, {code = "closed"}: what every function of sym.store and sym.raft answers while the node is not started. */
int bind_store_closed(lua_State *L);

#endif
