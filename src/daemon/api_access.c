/* Who may read and write the users' keys. */
#include "daemon/api_impl.h"

#include "base/err.h"

#include <stdio.h>
#include <string.h>

bool peer_is_role(const struct tls_peer *peer, const char *role)
{
    return strcmp(peer->cert.ou, role) == 0;
}

bool peer_is_client(const struct tls_peer *peer)
{
    return peer_is_role(peer, "operator") || peer_is_role(peer, "reader");
}

void basis_of(const struct tls_peer *peer, struct basis *out)
{
    char *owner = out->owner;
    hex_encode(peer->cert.fingerprint, SHA256_LEN, stpcpy(out->key, "/fingerprint/"));
    if (peer_is_client(peer)) {
        owner = stpcpy(stpcpy(owner, peer->cert.ou), " ");
    }
    strcpy(owner, peer->cert.cn);
}

static bool is_node(struct daemon *d, const char *id)
{
    char key[8 + sizeof((struct tls_peer *)NULL)->cert.cn];
    struct kv kv;
    int n = snprintf(key, sizeof key, "/node/%s", id);
    return store_get(d->store, key, (size_t)n, &kv) == 0;
}

/* What the peer may do to the users' keys: READ and WRITE, or UNSURE. A certificate is worth what the state says of its
 * key now.
 */
static int access_of_peer(struct daemon *d, const struct tls_peer *peer)
{
    struct basis basis;
    struct kv kv;
    if (!peer->present || tls_peer_expired(peer) ||
        (!peer_is_role(peer, "manager") && !peer_is_client(peer))) {
        return 0;
    }
    basis_of(peer, &basis);
    if (store_get(d->store, basis.key, strlen(basis.key), &kv) != 0) {
        return UNSURE; /* this manager may be behind */
    }
    if (strlen(basis.owner) != kv.value.n || memcmp(basis.owner, kv.value.p, kv.value.n) != 0) {
        return 0;
    }
    /* Of a node that is out, what stands elsewhere may go a little later. */
    if (!peer_is_client(peer) && !is_node(d, peer->cert.cn)) {
        return 0;
    }
    return peer_is_role(peer, "reader") ? READ : READ | WRITE;
}

int api_access_of(struct daemon *d, const struct http_req *req)
{
    return req->tls ? access_of_peer(d, req->peer)
                    : READ | WRITE; /* the control socket's own permissions decided */
}

bool api_trusts(struct api *a, const struct tls_peer *peer)
{
    /* A manager must get in where the state is behind; of a client it is rather that its certificate was revoked. */
    int enough = peer_is_role(peer, "manager") ? WRITE | UNSURE : WRITE;
    return a->d->store != NULL && (access_of_peer(a->d, peer) & enough) != 0;
}

bool api_knows(struct api *a, const struct tls_peer *peer)
{
    return a->d->store != NULL && (access_of_peer(a->d, peer) & READ) != 0;
}

int call_needs(const struct call *c)
{
    return c->kind == PUT_KEY || c->kind == DELETE_KEY ? WRITE : READ;
}

void api_refuse(struct http_req *req)
{
    const struct tls_peer *peer = req->peer;
    if (peer == NULL || !peer->present) {
        err_setf(SYM_EAUTH, "this needs a client certificate");
        api_fail(req, SYM_EAUTH, NULL);
    } else if (tls_peer_expired(peer)) {
        bool client = peer_is_client(peer);
        err_setf(SYM_EEXPIRED, client ? "the certificate has expired"
                                      : "the certificate has expired: it is good for POST /v1/renew only");
        api_fail(req, SYM_EEXPIRED, client ? "`symphony cert issue` on a manager makes another" : NULL);
    } else {
        err_setf(SYM_EDENIED, "this is not allowed to the owner of this certificate");
        api_fail(req, SYM_EDENIED, NULL);
    }
}
