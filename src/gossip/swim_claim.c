#include "gossip/swim_claim.h"

#include <stdlib.h>
#include <string.h>

struct claim *claim_new(const struct claim_view *v)
{
    struct claim *c = malloc(sizeof *c + v->meta_len + v->sig_len);
    if (c == NULL) {
        return NULL;
    }
    c->left = v->left;
    c->meta_len = v->meta_len;
    c->sig_len = v->sig_len;
    c->id = v->id;
    c->incarnation = v->incarnation;
    c->addr = v->addr;
    if (v->meta_len > 0) {
        memcpy(c->tail, v->meta, v->meta_len);
    }
    if (v->sig_len > 0) {
        memcpy(c->tail + v->meta_len, v->sig, v->sig_len);
    }
    return c;
}

void claim_free(struct claim *c)
{
    free(c);
}
