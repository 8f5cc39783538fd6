/* Who may act as a raft id, by the certificate and by what the state says. */
#ifndef SYM_RAFT_AUTHORIZE_H
#define SYM_RAFT_AUTHORIZE_H

#include "crypto/tls.h"
#include "store/store.h"

/* The certificate must be a manager's and name the raft id @id, and /raft/<id> in the state the certificate's
 * node, which must be in /node, with the key that the certificate is for (/fingerprint). A member that this state has not reached yet (its id is one of those still to
 * be given out) is let in on its certificate alone: nobody else has ever had one that names this id, and it may
 * be the leader without which this state would never get there. That it has been another id before (it lost its
 * log and was given a new one) says nothing against it, therefore.
 *
 * 0, SYM_EDENIED, or SYM_ENOTFOUND: it has been removed. */
int raft_authorize(struct store *store, uint64_t id, const struct tls_peer *peer);
/* Whether it is a member in this state, with that id and that key: nobody is let in on his certificate alone. */
bool raft_knows(struct store *store, uint64_t id, const struct tls_peer *peer);

#endif
