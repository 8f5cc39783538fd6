#include "raft/wire.h"

#include "base/err.h"
#include "codec/rw.h"
#include "raft/frame.h"

#include <stdlib.h>
#include <string.h>

enum {
    TAIL = 4,     /* the head's length */
    HEAD_MIN = 3, /* format, type, version */
    CONF_MAX = 16 + WIRE_SERVERS_MAX * (8 + WIRE_ADDRESS_MAX + 1 + 1),
    HEAD_MAX = 64 + 13 * WIRE_ENTRIES_MAX + CONF_MAX,
};
enum { VOTE_DISRUPT = 1, VOTE_PRE = 2 };     /* RequestVote */
enum { RESULT_GRANTED = 1, RESULT_PRE = 2 }; /* RequestVoteResult */
/* Indexes stay where adding a message's entries to them cannot overflow. */
static const uint64_t INDEX_MAX = UINT64_MAX >> 1;

static int bad(const char *what)
{
    return err_setf(SYM_EPROTO, "raft message: %s", what);
}

/* ---- configuration ---- */

int wire_check_configuration(const void *data, size_t n)
{
    struct rd r = rd_init(data, n);
    const char *seen[WIRE_SERVERS_MAX];
    uint64_t ids[WIRE_SERVERS_MAX];

    if (n == 0 || rd_u8(&r) != 1) {
        return bad("configuration of an unknown format");
    }
    uint64_t servers = rd_u64(&r);
    if (r.bad || servers == 0 || servers > WIRE_SERVERS_MAX) {
        return bad("configuration with an impossible number of servers");
    }
    for (uint64_t i = 0; i < servers; i++) {
        ids[i] = rd_u64(&r);
        seen[i] = (const char *)r.p;
        size_t left = rd_left(&r);
        size_t len = left == 0 ? 0 : strnlen(seen[i], left);
        if (r.bad || ids[i] == 0 || len == 0 || len == left || len > WIRE_ADDRESS_MAX) {
            return bad("configuration with a bad server");
        }
        rd_bytes(&r, len + 1);
        if (rd_u8(&r) > RAFT_SPARE || r.bad) {
            return bad("configuration with an unknown role");
        }
        for (uint64_t j = 0; j < i; j++) {
            if (ids[j] == ids[i] || strcmp(seen[j], seen[i]) == 0) {
                return bad("configuration with a server twice");
            }
        }
    }
    /* Padded with zeros to a multiple of 8. */
    if (n % 8 != 0 || rd_left(&r) > 7) {
        return bad("configuration with bytes left over");
    }
    while (rd_left(&r) > 0) {
        if (rd_u8(&r) != 0) {
            return bad("configuration with bytes left over");
        }
    }
    return 0;
}

/* ---- encoding ---- */

static int encode_entries(const struct raft_append_entries *m, struct wr *w, struct wire_out *out)
{
    if (m->n_entries > WIRE_ENTRIES_MAX) {
        return err_setf(SYM_ETOOBIG, "raft message with %u entries", m->n_entries);
    }
    wr_u64(w, m->term);
    wr_u64(w, m->prev_log_index);
    wr_u64(w, m->prev_log_term);
    wr_u64(w, m->leader_commit);
    wr_u32(w, m->n_entries);
    for (unsigned i = 0; i < m->n_entries; i++) {
        const struct raft_entry *e = &m->entries[i];
        if (e->buf.len == 0 || e->buf.len % 8 != 0) {
            return err_setf(SYM_EINVAL, "raft entry of %zu bytes", e->buf.len);
        }
        if (e->buf.len > WIRE_ENTRY_MAX) {
            return err_setf(SYM_ETOOBIG, "raft entry of %zu bytes", e->buf.len);
        }
        wr_u64(w, e->term);
        wr_u8(w, (uint8_t)e->type);
        wr_u32(w, (uint32_t)e->buf.len);
        out->bufs[out->n_bufs++] = uv_buf_init(e->buf.base, (unsigned)e->buf.len);
        out->size += e->buf.len;
    }
    return 0;
}

static int encode_snapshot(const struct raft_install_snapshot *m, struct wr *w, struct wire_out *out)
{
    struct raft_buffer conf;

    if (m->data.len == 0 || m->conf.n == 0) {
        return err_setf(SYM_EINVAL, "raft snapshot without %s", m->conf.n == 0 ? "configuration" : "data");
    }
    if (m->conf.n > WIRE_SERVERS_MAX || m->data.len > FRAME_MAX) {
        return err_setf(SYM_ETOOBIG, "raft snapshot of %zu bytes", m->data.len);
    }
    wr_u64(w, m->term);
    wr_u64(w, m->last_index);
    wr_u64(w, m->last_term);
    wr_u64(w, m->conf_index);
    if (raft_configuration_encode(&m->conf, &conf) != 0) {
        return err_setf(SYM_ENOMEM, "raft configuration");
    }
    int rv = wire_check_configuration(conf.base, conf.len);
    wr_blob(w, conf.base, conf.len);
    raft_free(conf.base);
    if (rv != 0) {
        return err_wrapf(SYM_EINVAL, "raft snapshot");
    }
    out->bufs[out->n_bufs++] = uv_buf_init(m->data.base, (unsigned)m->data.len);
    out->size += m->data.len;
    return 0;
}

static int encode_head(const struct raft_message *m, struct wr *w, struct wire_out *out)
{
    wr_u8(w, WIRE_FORMAT);
    wr_u8(w, (uint8_t)m->type);
    switch (m->type) {
    case RAFT_REQUEST_VOTE: {
        const struct raft_request_vote *v = &m->request_vote;
        wr_u8(w, v->version);
        wr_u64(w, v->term);
        wr_u64(w, v->candidate_id);
        wr_u64(w, v->last_log_index);
        wr_u64(w, v->last_log_term);
        wr_u8(w, (uint8_t)((v->disrupt_leader ? VOTE_DISRUPT : 0) | (v->pre_vote ? VOTE_PRE : 0)));
        return 0;
    }
    case RAFT_REQUEST_VOTE_RESULT: {
        const struct raft_request_vote_result *v = &m->request_vote_result;
        wr_u8(w, v->version);
        wr_u64(w, v->term);
        wr_u8(w, (uint8_t)((v->vote_granted ? RESULT_GRANTED : 0) | (v->pre_vote ? RESULT_PRE : 0)));
        wr_u16(w, v->features);
        wr_u16(w, v->capacity);
        return 0;
    }
    case RAFT_APPEND_ENTRIES:
        wr_u8(w, m->append_entries.version);
        return encode_entries(&m->append_entries, w, out);
    case RAFT_APPEND_ENTRIES_RESULT: {
        const struct raft_append_entries_result *a = &m->append_entries_result;
        wr_u8(w, a->version);
        wr_u64(w, a->term);
        wr_u64(w, a->rejected);
        wr_u64(w, a->last_log_index);
        wr_u16(w, a->features);
        wr_u16(w, a->capacity);
        return 0;
    }
    case RAFT_INSTALL_SNAPSHOT:
        wr_u8(w, m->install_snapshot.version);
        return encode_snapshot(&m->install_snapshot, w, out);
    case RAFT_TIMEOUT_NOW:
        wr_u8(w, m->timeout_now.version);
        wr_u64(w, m->timeout_now.term);
        wr_u64(w, m->timeout_now.last_log_index);
        wr_u64(w, m->timeout_now.last_log_term);
        return 0;
    default:
        return err_setf(SYM_EINVAL, "raft message of type %d", (int)m->type);
    }
}

int wire_encode(const struct raft_message *m, struct wire_out *out)
{
    unsigned payload = 0;
    int rv;

    *out = (struct wire_out){0};
    if (m->type == RAFT_APPEND_ENTRIES && m->append_entries.n_entries <= WIRE_ENTRIES_MAX) {
        payload = m->append_entries.n_entries;
    } else if (m->type == RAFT_INSTALL_SNAPSHOT) {
        payload = 1;
    }
    out->bufs = calloc(payload + 1, sizeof *out->bufs);
    if (out->bufs == NULL) {
        return err_setf(SYM_ENOMEM, "raft message");
    }
    struct wr w = wr_init(&out->head);
    rv = encode_head(m, &w, out);
    if (rv != 0) {
        goto fail;
    }
    wr_u32(&w, (uint32_t)out->head.len);
    if (w.bad) {
        rv = SYM_ENOMEM;
        goto fail;
    }
    out->bufs[out->n_bufs++] = uv_buf_init((char *)buf_data(&out->head), (unsigned)out->head.len);
    out->size += out->head.len;
    if (out->size > FRAME_MAX) {
        rv = err_setf(SYM_ETOOBIG, "raft message of %zu bytes", out->size);
        goto fail;
    }
    return 0;

fail:
    wire_out_free(out);
    return rv;
}

void wire_out_free(struct wire_out *out)
{
    free(out->bufs);
    buf_free(&out->head);
    *out = (struct wire_out){0};
}

unsigned wire_run(const struct raft_entry *entries, unsigned n)
{
    size_t bytes = 0;
    unsigned i;

    for (i = 0; i < n && i < WIRE_ENTRIES_MAX; i++) {
        bytes += entries[i].buf.len;
        if (i > 0 && (bytes > WIRE_RUN_BYTES || entries[i].type == RAFT_CHANGE)) {
            break;
        }
    }
    return i;
}

/* ---- decoding ---- */

/* The entries' descriptions from the head, and their bytes, which are all of @batch. */
static int decode_entries(struct rd *r, uint8_t *batch, size_t n, struct raft_append_entries *m)
{
    m->term = rd_u64(r);
    m->prev_log_index = rd_u64(r);
    m->prev_log_term = rd_u64(r);
    m->leader_commit = rd_u64(r);
    uint32_t n_entries = rd_u32(r);
    if (r->bad || n_entries > WIRE_ENTRIES_MAX || rd_left(r) != (size_t)n_entries * 13) {
        return bad("entries that do not fit their number");
    }
    if (m->prev_log_index > INDEX_MAX || (m->prev_log_index == 0) != (m->prev_log_term == 0) ||
        m->prev_log_term > m->term) {
        return bad("an impossible previous entry");
    }
    if (n_entries == 0) {
        return n == 0 ? 0 : bad("bytes that no entry describes");
    }
    struct raft_entry *entries = raft_malloc(n_entries * sizeof *entries);
    if (entries == NULL) {
        return err_setf(SYM_ENOMEM, "raft message of %u entries", n_entries);
    }
    raft_term term = m->prev_log_term;
    size_t at = 0;
    int rv = 0;
    for (uint32_t i = 0; i < n_entries; i++) {
        struct raft_entry *e = &entries[i];
        e->term = rd_u64(r);
        uint8_t type = rd_u8(r);
        size_t len = rd_u32(r);
        if (type != RAFT_COMMAND && type != RAFT_BARRIER && type != RAFT_CHANGE) {
            rv = bad("an entry of an unknown type");
            goto fail;
        }
        if (e->term == 0 || e->term < term || e->term > m->term) {
            rv = bad("an entry of an impossible term");
            goto fail;
        }
        if (len == 0 || len % 8 != 0 || len > WIRE_ENTRY_MAX || len > n - at) {
            rv = bad("an entry of an impossible size");
            goto fail;
        }
        e->type = type;
        e->buf = (struct raft_buffer){.base = batch + at, .len = len};
        e->batch = batch;
        if (type == RAFT_CHANGE && (rv = wire_check_configuration(e->buf.base, len)) != 0) {
            goto fail;
        }
        term = e->term;
        at += len;
    }
    if (at != n) {
        rv = bad("bytes that no entry describes");
        goto fail;
    }
    m->entries = entries;
    m->n_entries = n_entries;
    return 0;

fail:
    raft_free(entries);
    return rv;
}

static int decode_snapshot(struct rd *r, uint8_t *data, size_t n, struct raft_install_snapshot *m)
{
    size_t conf_len;

    m->term = rd_u64(r);
    m->last_index = rd_u64(r);
    m->last_term = rd_u64(r);
    m->conf_index = rd_u64(r);
    const uint8_t *conf = rd_blob(r, CONF_MAX, &conf_len);
    if (!rd_done(r)) {
        return bad("a snapshot's head of a wrong length");
    }
    if (m->last_index == 0 || m->last_index > INDEX_MAX || m->last_term == 0 || m->last_term > m->term ||
        m->conf_index > m->last_index) {
        return bad("a snapshot of an impossible index");
    }
    if (n == 0) {
        return bad("an empty snapshot");
    }
    int rv = wire_check_configuration(conf, conf_len);
    if (rv != 0) {
        return rv;
    }
    struct raft_buffer buf = {.base = (void *)conf, .len = conf_len};
    if (raft_configuration_decode(&buf, &m->conf) != 0) {
        return err_setf(SYM_ENOMEM, "raft configuration");
    }
    m->data = (struct raft_buffer){.base = data, .len = n};
    return 0;
}

static int decode_head(struct rd *r, uint8_t *payload, size_t n, struct raft_message *m)
{
    uint8_t flags;

    if (rd_u8(r) != WIRE_FORMAT) {
        return bad("an unknown format");
    }
    uint8_t type = rd_u8(r);
    uint8_t version = rd_u8(r);
    if (n > 0 && type != RAFT_APPEND_ENTRIES && type != RAFT_INSTALL_SNAPSHOT) {
        return bad("bytes that nothing describes");
    }
    m->type = type;
    switch (type) {
    case RAFT_REQUEST_VOTE:
        m->request_vote.version = version;
        m->request_vote.term = rd_u64(r);
        m->request_vote.candidate_id = rd_u64(r);
        m->request_vote.last_log_index = rd_u64(r);
        m->request_vote.last_log_term = rd_u64(r);
        flags = rd_u8(r);
        m->request_vote.disrupt_leader = (flags & VOTE_DISRUPT) != 0;
        m->request_vote.pre_vote = (flags & VOTE_PRE) != 0;
        break;
    case RAFT_REQUEST_VOTE_RESULT:
        m->request_vote_result.version = version;
        m->request_vote_result.term = rd_u64(r);
        flags = rd_u8(r);
        m->request_vote_result.vote_granted = (flags & RESULT_GRANTED) != 0;
        m->request_vote_result.pre_vote = (flags & RESULT_PRE) != 0;
        m->request_vote_result.features = rd_u16(r);
        m->request_vote_result.capacity = rd_u16(r);
        break;
    case RAFT_APPEND_ENTRIES:
        m->append_entries.version = version;
        return decode_entries(r, payload, n, &m->append_entries);
    case RAFT_APPEND_ENTRIES_RESULT:
        m->append_entries_result.version = version;
        m->append_entries_result.term = rd_u64(r);
        m->append_entries_result.rejected = rd_u64(r);
        m->append_entries_result.last_log_index = rd_u64(r);
        m->append_entries_result.features = rd_u16(r);
        m->append_entries_result.capacity = rd_u16(r);
        break;
    case RAFT_INSTALL_SNAPSHOT:
        m->install_snapshot.version = version;
        return decode_snapshot(r, payload, n, &m->install_snapshot);
    case RAFT_TIMEOUT_NOW:
        m->timeout_now.version = version;
        m->timeout_now.term = rd_u64(r);
        m->timeout_now.last_log_index = rd_u64(r);
        m->timeout_now.last_log_term = rd_u64(r);
        break;
    default:
        return bad("an unknown type");
    }
    return rd_done(r) ? 0 : bad("a head of a wrong length");
}

int wire_decode(uint8_t *data, size_t n, struct raft_message *out)
{
    size_t head;
    int rv;

    *out = (struct raft_message){0};
    if (n < HEAD_MIN + TAIL || n > FRAME_MAX) {
        rv = bad("an impossible size");
        goto fail;
    }
    head = get_u32(data + n - TAIL);
    if (head < HEAD_MIN || head > HEAD_MAX || head > n - TAIL) {
        rv = bad("a head of an impossible size");
        goto fail;
    }
    size_t payload = n - TAIL - head;
    struct rd r = rd_init(data + payload, head);
    rv = decode_head(&r, data, payload, out);
    if (rv != 0) {
        goto fail;
    }
    if (payload == 0) {
        free(data); /* nothing of the message points into it */
    }
    return 0;

fail:
    free(data);
    *out = (struct raft_message){0};
    return rv;
}

void wire_message_free(struct raft_message *m)
{
    if (m->type == RAFT_APPEND_ENTRIES && m->append_entries.n_entries > 0) {
        raft_free(m->append_entries.entries[0].batch);
        raft_free(m->append_entries.entries);
    } else if (m->type == RAFT_INSTALL_SNAPSHOT) {
        raft_free(m->install_snapshot.data.base);
        raft_configuration_close(&m->install_snapshot.conf);
    }
    *m = (struct raft_message){0};
}
