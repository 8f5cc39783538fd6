/* A raft message from the network. What is decoded must be safe for raft's own decoders and encode again. */
#include "raft/wire.h"

#include <stdlib.h>
#include <string.h>

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

static uint8_t *join(const struct wire_out *out)
{
    uint8_t *data = malloc(out->size);
    size_t at = 0;
    check(data != NULL);
    for (unsigned i = 0; i < out->n_bufs; i++) {
        memcpy(data + at, out->bufs[i].base, out->bufs[i].len);
        at += out->bufs[i].len;
    }
    check(at == out->size);
    return data;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct raft_message m, again;
    struct wire_out out;
    uint8_t *copy = malloc(n > 0 ? n : 1);

    check(copy != NULL);
    memcpy(copy, data, n);
    if (wire_decode(copy, n, &m) != 0) {
        return 0;
    }
    if (m.type == RAFT_APPEND_ENTRIES) {
        for (unsigned i = 0; i < m.append_entries.n_entries; i++) {
            const struct raft_entry *e = &m.append_entries.entries[i];
            struct raft_configuration conf;
            if (e->type == RAFT_CHANGE) {
                check(raft_configuration_decode(&e->buf, &conf) == 0);
                raft_configuration_close(&conf);
            }
        }
        unsigned run = wire_run(m.append_entries.entries, m.append_entries.n_entries);
        check((run > 0) == (m.append_entries.n_entries > 0) && run <= m.append_entries.n_entries);
    }
    check(wire_encode(&m, &out) == 0);
    check(wire_decode(join(&out), out.size, &again) == 0);
    check(again.type == m.type);
    wire_out_free(&out);
    wire_message_free(&again);
    wire_message_free(&m);
    return 0;
}
