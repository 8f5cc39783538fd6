#include "gossip/swim_int.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

static int field(const char *name, uint32_t *value, uint32_t otherwise, uint32_t min, uint32_t max)
{
    if (*value == 0) {
        *value = otherwise;
    }
    return *value >= min && *value <= max ? 0 : err_setf(SYM_EINVAL, "swim: %s of %u", name, *value);
}

static int check_config(struct swim_config *c)
{
    const struct {
        const char *name;
        uint32_t *value, otherwise, min, max;
    } fields[] = {
        {"period_ms", &c->period_ms, 300, 20, 60000},
        {"probe_timeout_ms", &c->probe_timeout_ms, 120, 1, 59999},
        {"helpers", &c->helpers, 3, 1, SWIM_HELPERS_MAX},
        {"health_max", &c->health_max, 8, 1, 32},
        {"suspicion_alpha", &c->suspicion_alpha, 4, 1, 100},
        {"suspicion_beta", &c->suspicion_beta, 6, 1, 100},
        {"confirmations", &c->confirmations, 3, 1, SWIM_CONFIRMATIONS_MAX},
        {"lambda", &c->lambda, 3, 1, 4},
        {"gossip_ms", &c->gossip_ms, 100, 10, 60000},
        {"fanout", &c->fanout, 3, 1, 16},
        {"reconnect_ms", &c->reconnect_ms, 2000, 100, 3600000},
        {"forget_ms", &c->forget_ms, 3600000, 1000, UINT32_MAX},
        {"max_members", &c->max_members, 20000, 1, 1000000},
    };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        int rv = field(fields[i].name, fields[i].value, fields[i].otherwise, fields[i].min, fields[i].max);
        if (rv != 0) {
            return rv;
        }
    }
    if (c->probe_timeout_ms >= c->period_ms || c->cluster_len > SWIM_CLUSTER_MAX) {
        return err_setf(
            SYM_EINVAL, "swim: the probe's timeout is not below its period, or the cluster's id too long");
    }
    return 0;
}

static int check_place(const struct swim_addr *addr, size_t meta_len)
{
    if ((addr->family != 4 && addr->family != 6) || addr->port == 0 || meta_len > SWIM_META_MAX) {
        return err_setf(SYM_EINVAL, "swim: no address, or %zu bytes of metadata", meta_len);
    }
    return 0;
}

int swim_open(
    const struct swim_config *config, const struct swim_ops *ops, void *arg, uint64_t now, struct swim **out)
{
    struct swim_config c = *config;
    int rv = check_config(&c);
    if (rv == 0) {
        rv = check_place(&c.addr, c.meta_len);
    }
    if (rv != 0) {
        return rv;
    }
    struct swim *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return err_setf(SYM_ENOMEM, "swim");
    }
    s->c = c;
    s->c.meta = s->c.cluster = NULL;
    if (c.cluster_len > 0) {
        memcpy(s->cluster, c.cluster, c.cluster_len);
    }
    s->ops = ops;
    s->arg = arg;
    s->now = now;
    s->chance.state = c.seed;
    s->incarnation = c.incarnation;
    s->seq = (uint32_t)chance_next(&s->chance);
    queue_init(&s->queue);
    /* Not all nodes of a cluster in step. */
    s->probe_at = now + chance_below(&s->chance, c.period_ms);
    s->reconnect_at = now + chance_below(&s->chance, c.reconnect_ms);
    s->sweep_at = now + SWEEP_MS;
    s->settled = now + SETTLE_MS;
    s->differ_gap = DIFFER_GAP_MS;
    s->gossip_last = now;
    s->gossip_at = s->relay_at = s->refute_at = s->ask_at = NEVER;
    if (buf_reserve(&s->out, SWIM_DATAGRAM_MAX) == NULL) {
        rv = SYM_ENOMEM;
        goto fail;
    }
    rv = claim_self(s, &c.addr, c.meta, c.meta_len, false);
    if (rv != 0) {
        goto fail;
    }
    slot_of(s, SELF)->since = now;
    *out = s;
    return 0;

fail:
    swim_close(s);
    return rv;
}

void swim_close(struct swim *s)
{
    if (s == NULL) {
        return;
    }
    suspect_free(s);
    table_free(&s->table);
    buf_free(&s->out);
    free(s);
}

uint64_t swim_next(const struct swim *s)
{
    uint64_t at = earlier(earlier(s->gossip_at, suspect_next(s)), earlier(s->relay_at, s->refute_at));
    at = earlier(at, earlier(earlier(s->reconnect_at, s->sweep_at), s->ask_at));
    return earlier(at, probe_next(s));
}

/* Between when it was due and now this process did not run: nobody's silence in that time means anything. */
static void stalled(struct swim *s, uint64_t by)
{
    s->stats.stalls++;
    s->stats.stalled_ms += by;
    if (s->c.without_lifeguard) {
        return;
    }
    suspect_shift(s, by);
    s->ask_at += s->ask_at == NEVER ? 0 : by;
    probe_void(s);
    health_add(s, 1);
}

static bool sweep_one(const struct swim *s, uint32_t slot, bool all)
{
    const struct member *m = &s->table.m[slot];
    return !s->ops->known(s->arg, &m->claim->id) || (!all && s->now - m->since >= s->c.forget_ms);
}

/* Those gone for long; with @all, of all those that are no longer known. */
static void sweep(struct swim *s, bool all)
{
    for (uint32_t pos = s->table.n_seq; pos > (all ? 0 : s->table.n_live); pos--) {
        uint32_t slot = s->table.seq[pos - 1];
        if (sweep_one(s, slot, all)) {
            forget(s, slot);
        }
    }
}

void swim_tick(struct swim *s, uint64_t now)
{
    uint64_t due = swim_next(s);
    s->now = now;
    if (now > due && now - due > s->c.probe_timeout_ms) {
        stalled(s, now - due);
    }
    suspect_tick(s);
    relay_tick(s);
    probe_tick(s);
    ask_tick(s);
    refute(s);
    if (now >= s->gossip_at) {
        gossip(s);
    }
    if (now >= s->reconnect_at) {
        reconnect(s);
    }
    if (now >= s->sweep_at) {
        s->sweep_at = now + SWEEP_MS;
        sweep(s, false);
    }
}

/* What @h and the records behind it say; false if a signature was wrong, and what stands behind it is not read. */
static bool take_records(struct swim *s, const struct swim_id *from, struct rd r)
{
    struct wire_record record;
    while (wire_get(&r, &record)) {
        switch (record.kind) {
        case WIRE_CLAIM:
            if (!take_claim(s, &record.claim)) {
                return false;
            }
            break;
        case WIRE_SUSPECT:
            accuse(s, &record.id, record.incarnation, record.accusers, record.n_accusers);
            break;
        case WIRE_DEAD:
            declare_dead(s, &record.id, record.incarnation, from);
            break;
        }
    }
    return true;
}

/* What the sender has to be told at once: that it is behind (a life of ours, or one of its own), or us of it. */
static void reply(struct swim *s, const struct wire_head *h, const struct swim_id *from,
    const struct swim_addr *addr, bool refuted)
{
    uint32_t slot = table_find(&s->table, from);
    uint64_t held = slot == NO_SLOT ? 0 : slot_of(s, slot)->claim->incarnation;
    bool want = (slot == NO_SLOT || h->incarnation > held) && !s->leaving;
    struct load load = {.own = h->want || refuted, .back = slot != NO_SLOT && h->incarnation < held};
    struct wire_head answer = {.want = want, .seq = h->seq};
    if (h->type == WIRE_PING) {
        answer.type = WIRE_ACK;
    } else if (h->type == WIRE_ACK && (load.own || load.back || want)) {
        answer.type = WIRE_GOSSIP;
    } else if (h->type == WIRE_GOSSIP && h->want) {
        answer.type = WIRE_GOSSIP;
        answer.want = false; /* or two that do not believe each other would go on for ever */
    } else {
        return;
    }
    send_message(s, &answer, slot, from, addr, load);
}

void swim_receive(struct swim *s, uint64_t now, const struct swim_id *from, const struct swim_addr *addr,
    const void *data, size_t n)
{
    struct wire_head h;
    struct rd records;
    s->now = now;
    s->stats.received++;
    s->stats.received_bytes += n;
    if (swim_id_eq(from, &s->c.id) || !s->ops->known(s->arg, from)) {
        s->stats.strangers++;
        return;
    }
    if (!wire_datagram(data, n, &h, &records)) {
        s->stats.malformed++;
        return;
    }
    if (h.type == WIRE_ACK) {
        probe_ack(s, from, h.seq);
        relay_ack(s, from, h.seq);
    } else if (h.type == WIRE_NACK) {
        probe_nack(s, from, h.seq);
    }
    uint64_t own = self_claim(s)->incarnation;
    if (!take_records(s, from, records)) {
        return;
    }
    if (h.type == WIRE_ACK && h.quiet) {
        compare(s, table_find(&s->table, from), h.digest);
    }
    reply(s, &h, from, addr, self_claim(s)->incarnation > own);
    if (h.type == WIRE_PING_REQ) {
        relay_ask(s, &h, from, addr);
    }
}

void swim_join(struct swim *s, uint64_t now, const struct swim_addr *addr)
{
    struct wire_head h = {.type = WIRE_PING, .seq = ++s->seq};
    s->now = now;
    send_message(s, &h, NO_SLOT, NULL, addr, (struct load){.own = true});
}

int swim_update(struct swim *s, uint64_t now, const struct swim_addr *addr, const void *meta, size_t n)
{
    int rv = check_place(addr, n);
    s->now = now;
    return rv != 0 ? rv : claim_self(s, addr, meta, n, s->leaving);
}

int swim_leave(struct swim *s, uint64_t now)
{
    const struct claim *c = self_claim(s);
    struct swim_addr addr = c->addr;
    uint8_t meta[SWIM_META_MAX];
    memcpy(meta, c->tail, c->meta_len);
    s->now = now;
    int rv = claim_self(s, &addr, meta, c->meta_len, true);
    if (rv == 0) {
        s->leaving = true;
        slot_of(s, SELF)->state = SWIM_LEFT;
        slot_of(s, SELF)->since = now;
        s->probe.active = false;
        s->refute_at = s->reconnect_at = s->ask_at = NEVER;
    }
    return rv;
}

bool swim_has_left(const struct swim *s)
{
    return s->leaving && (s->table.n_live == 0 || s->table.m[SELF].sent == NOT_QUEUED);
}

void swim_recheck(struct swim *s, uint64_t now)
{
    s->now = now;
    sweep(s, true);
}
