#include "raft/authorize.h"

#include "base/err.h"
#include "codec/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int is_removed(uint64_t id)
{
    return err_setf(SYM_ENOTFOUND, "raft id %" PRIu64 " has been removed from the cluster", id);
}

/* Of an id that the state does not know: has it been given out, as far as this state has come? */
static int check_unknown(struct store *store, uint64_t id)
{
    static const char key[] = "/cluster/next_raft_id";
    char text[24] = "";
    struct kv kv;
    int rv = store_get(store, key, sizeof key - 1, &kv);
    if (rv == 0 && kv.value.n < sizeof text) {
        memcpy(text, kv.value.p, kv.value.n);
    }
    if (rv != 0 && rv != SYM_ENOTFOUND) {
        return rv;
    }
    return id < strtoull(text, NULL, 10) ? is_removed(id) : 0;
}

/* Whoever gets at a CA's key can sign for any name: it has to be the key that the node joined with. */
static int check_key(struct store *store, const struct tls_peer *peer)
{
    char key[16 + 2 * SHA256_LEN + 1] = "/fingerprint/";
    struct kv kv;
    hex_encode(peer->cert.fingerprint, SHA256_LEN, key + strlen(key));
    int rv = store_get(store, key, strlen(key), &kv);
    if (rv != 0 && rv != SYM_ENOTFOUND) {
        return rv;
    }
    if (rv != 0 || strlen(peer->cert.cn) != kv.value.n ||
        memcmp(kv.value.p, peer->cert.cn, kv.value.n) != 0) {
        return err_setf(SYM_EDENIED, "the certificate is not for the key of %s", peer->cert.cn);
    }
    return 0;
}

bool raft_knows(struct store *store, uint64_t id, const struct tls_peer *peer)
{
    char key[32];
    struct kv kv;
    int n = snprintf(key, sizeof key, "/raft/%" PRIu64, id);
    return store_get(store, key, (size_t)n, &kv) == 0 && raft_authorize(store, id, peer) == 0;
}

int raft_authorize(struct store *store, uint64_t id, const struct tls_peer *peer)
{
    const char *cn = peer->cert.cn;
    char key[80];
    struct kv kv;
    if (!peer->present || strcmp(peer->cert.ou, "manager") != 0) {
        return err_setf(SYM_EDENIED, "not a manager's certificate");
    }
    if (peer->cert.raft_id != id) {
        return err_setf(
            SYM_EDENIED, "the certificate is for raft id %" PRIu64 ", not %" PRIu64, peer->cert.raft_id, id);
    }
    int n = snprintf(key, sizeof key, "/raft/%" PRIu64, id);
    int rv = store_get(store, key, (size_t)n, &kv);
    if (rv != 0) {
        return rv == SYM_ENOTFOUND ? check_unknown(store, id) : rv;
    }
    if (strlen(cn) != kv.value.n || memcmp(kv.value.p, cn, kv.value.n) != 0) {
        return err_setf(SYM_EDENIED, "the certificate is not that of raft id %" PRIu64, id);
    }
    n = snprintf(key, sizeof key, "/node/%s", cn);
    rv = store_get(store, key, (size_t)n, &kv);
    if (rv != 0) {
        return rv == SYM_ENOTFOUND ? is_removed(id) : rv;
    }
    return check_key(store, peer);
}
