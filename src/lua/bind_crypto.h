/* What sym.crypto lends to the other binding files. */
#ifndef SYM_LUA_BIND_CRYPTO_H
#define SYM_LUA_BIND_CRYPTO_H

#include "crypto/crypto.h"

#include <lua.h>

/* The private key in the userdata at @idx; raises if it is none or closed. Borrowed: it lives as long as the
 * userdata. */
struct key *bind_crypto_check_key(lua_State *L, int idx);

/* Pushes a table with all that @info says; digests in hex. May raise for lack of memory. */
void bind_crypto_push_info(lua_State *L, const struct cert_info *info);

#endif
