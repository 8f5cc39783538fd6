/* Raft's messages as bytes. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "base_fault.h"
#include "base/buf.c"
#include "raft/wire.c"

static const char *const addresses[] = {"10.0.0.1:15760", "[fe80::1]:15760", "manager-3.example.org:15760"};

static void must(int rv, const char *what)
{
    if (rv != 0) {
        fail_msg("%s: %s (%s)", what, err_name(rv), err_msg());
    }
}

/* The encoded message as one malloc'd block, as it comes out of a connection. */
static uint8_t *join(const struct wire_out *out)
{
    uint8_t *data = (malloc)(out->size);
    size_t at = 0;
    assert_non_null(data);
    for (unsigned i = 0; i < out->n_bufs; i++) {
        memcpy(data + at, out->bufs[i].base, out->bufs[i].len);
        at += out->bufs[i].len;
    }
    assert_int_equal(at, out->size);
    return data;
}

static uint8_t *encode(const struct raft_message *m, size_t *n)
{
    struct wire_out out;
    must(wire_encode(m, &out), "encode");
    uint8_t *data = join(&out);
    *n = out.size;
    wire_out_free(&out);
    return data;
}

static void round_trip(const struct raft_message *m, struct raft_message *back)
{
    size_t n;
    uint8_t *data = encode(m, &n);
    must(wire_decode(data, n, back), "decode");
    assert_int_equal(back->type, m->type);
}

static void configuration(struct raft_configuration *conf)
{
    raft_configuration_init(conf);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(
            raft_configuration_add(conf, i + 1, addresses[i], i == 2 ? RAFT_SPARE : RAFT_VOTER), 0);
    }
}

static struct raft_message vote(void)
{
    return (struct raft_message){
        .type = RAFT_REQUEST_VOTE,
        .request_vote = {.version = 2,
            .term = 7,
            .candidate_id = UINT64_MAX,
            .last_log_index = 1ull << 40,
            .last_log_term = 6,
            .disrupt_leader = true},
    };
}

enum { N = 5 };

struct sample {
    struct raft_entry entries[N];
    struct raft_buffer change;
    uint64_t words[2 * N];
    struct raft_message m;
};

/* Entries of 16 bytes, but the third, which is a configuration. */
static void entries(struct sample *s)
{
    struct raft_configuration conf;
    configuration(&conf);
    assert_int_equal(raft_configuration_encode(&conf, &s->change), 0);
    raft_configuration_close(&conf);
    for (unsigned i = 0; i < N; i++) {
        s->words[2 * i] = i;
        s->words[2 * i + 1] = ~(uint64_t)i;
        s->entries[i] = (struct raft_entry){.term = i < 3 ? 4 : 5,
            .type = i == 4 ? RAFT_BARRIER : RAFT_COMMAND,
            .buf = {&s->words[2 * i], 16}};
    }
    s->entries[2].type = RAFT_CHANGE;
    s->entries[2].buf = s->change;
    s->m = (struct raft_message){
        .type = RAFT_APPEND_ENTRIES,
        .append_entries = {.term = 5,
            .prev_log_index = 99,
            .prev_log_term = 4,
            .leader_commit = 98,
            .entries = s->entries,
            .n_entries = N},
    };
}

static struct raft_message snapshot(void *data, size_t n)
{
    struct raft_message m = {
        .type = RAFT_INSTALL_SNAPSHOT,
        .install_snapshot = {.term = 9,
            .last_index = 1000,
            .last_term = 8,
            .conf_index = 900,
            .data = {.base = data, .len = n}},
    };
    configuration(&m.install_snapshot.conf);
    return m;
}

static void small_messages(void **state)
{
    (void)state;
    struct raft_message m = vote(), b;

    round_trip(&m, &b);
    assert_int_equal(b.request_vote.version, 2);
    assert_int_equal(b.request_vote.term, 7);
    assert_true(b.request_vote.candidate_id == UINT64_MAX);
    assert_true(b.request_vote.last_log_index == 1ull << 40);
    assert_int_equal(b.request_vote.last_log_term, 6);
    assert_true(b.request_vote.disrupt_leader);
    assert_false(b.request_vote.pre_vote);
    m.request_vote.disrupt_leader = false;
    m.request_vote.pre_vote = true;
    round_trip(&m, &b);
    assert_false(b.request_vote.disrupt_leader);
    assert_true(b.request_vote.pre_vote);

    m = (struct raft_message){
        .type = RAFT_REQUEST_VOTE_RESULT,
        .request_vote_result = {.version = 2,
            .term = 3,
            .vote_granted = true,
            .pre_vote = false,
            .features = 0xfffe,
            .capacity = 0x1234},
    };
    for (int i = 0; i < 2; i++) {
        round_trip(&m, &b);
        assert_int_equal(b.request_vote_result.version, 2);
        assert_int_equal(b.request_vote_result.term, 3);
        assert_int_equal(b.request_vote_result.vote_granted, m.request_vote_result.vote_granted);
        assert_int_equal(b.request_vote_result.pre_vote, m.request_vote_result.pre_vote);
        assert_int_equal(b.request_vote_result.features, 0xfffe);
        assert_int_equal(b.request_vote_result.capacity, 0x1234);
        m.request_vote_result.vote_granted = false;
        m.request_vote_result.pre_vote = true;
    }

    m = (struct raft_message){
        .type = RAFT_APPEND_ENTRIES_RESULT,
        .append_entries_result =
            {.version = 2, .term = 8, .rejected = 70, .last_log_index = 69, .features = 1, .capacity = 32},
    };
    round_trip(&m, &b);
    assert_int_equal(b.append_entries_result.version, 2);
    assert_int_equal(b.append_entries_result.term, 8);
    assert_int_equal(b.append_entries_result.rejected, 70);
    assert_int_equal(b.append_entries_result.last_log_index, 69);
    assert_int_equal(b.append_entries_result.features, 1);
    assert_int_equal(b.append_entries_result.capacity, 32);

    m = (struct raft_message){
        .type = RAFT_TIMEOUT_NOW, .timeout_now = {.term = 8, .last_log_index = 70, .last_log_term = 7}};
    round_trip(&m, &b);
    assert_int_equal(b.timeout_now.version, 0);
    assert_int_equal(b.timeout_now.term, 8);
    assert_int_equal(b.timeout_now.last_log_index, 70);
    assert_int_equal(b.timeout_now.last_log_term, 7);
}

static void heartbeat(void **state)
{
    (void)state;
    struct raft_message b,
        m = {
            .type = RAFT_APPEND_ENTRIES,
            .append_entries = {.term = 5, .prev_log_index = 3, .prev_log_term = 5, .leader_commit = 9},
        };
    round_trip(&m, &b);
    assert_null(b.append_entries.entries);
    assert_int_equal(b.append_entries.n_entries, 0);
    assert_int_equal(b.append_entries.leader_commit, 9); /* not clamped: that is the guard's */
    wire_message_free(&b);
    m.append_entries.prev_log_index = m.append_entries.prev_log_term = 0;
    round_trip(&m, &b);
    assert_int_equal(b.append_entries.prev_log_index, 0);
}

static void entries_are_not_copied(void **state)
{
    (void)state;
    struct sample s;
    struct wire_out out;
    struct raft_message b;

    entries(&s);
    must(wire_encode(&s.m, &out), "encode");
    assert_int_equal(out.n_bufs, N + 1);
    for (unsigned i = 0; i < N; i++) {
        assert_ptr_equal(out.bufs[i].base, s.entries[i].buf.base);
        assert_int_equal(out.bufs[i].len, s.entries[i].buf.len);
    }
    uint8_t *data = join(&out);
    must(wire_decode(data, out.size, &b), "decode");
    wire_out_free(&out);
    assert_int_equal(b.append_entries.n_entries, N);
    assert_int_equal(b.append_entries.term, 5);
    assert_int_equal(b.append_entries.prev_log_index, 99);
    assert_int_equal(b.append_entries.prev_log_term, 4);
    for (unsigned i = 0; i < N; i++) {
        const struct raft_entry *e = &b.append_entries.entries[i];
        assert_ptr_equal(e->batch, data);
        assert_true((uintptr_t)e->buf.base % 8 == 0);
        assert_int_equal(e->term, s.entries[i].term);
        assert_int_equal(e->type, s.entries[i].type);
        assert_int_equal(e->buf.len, s.entries[i].buf.len);
        assert_memory_equal(e->buf.base, s.entries[i].buf.base, e->buf.len);
    }
    wire_message_free(&b);
    raft_free(s.change.base);
}

static void snapshot_is_not_copied(void **state)
{
    (void)state;
    char text[] = "a snapshot of thirty-odd bytes";
    struct raft_message m = snapshot(text, sizeof text), b;
    size_t n;

    uint8_t *data = encode(&m, &n);
    must(wire_decode(data, n, &b), "decode");
    assert_ptr_equal(b.install_snapshot.data.base, data);
    assert_int_equal(b.install_snapshot.data.len, sizeof text);
    assert_memory_equal(data, text, sizeof text);
    assert_int_equal(b.install_snapshot.term, 9);
    assert_int_equal(b.install_snapshot.last_index, 1000);
    assert_int_equal(b.install_snapshot.last_term, 8);
    assert_int_equal(b.install_snapshot.conf_index, 900);
    assert_int_equal(b.install_snapshot.conf.n, 3);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(b.install_snapshot.conf.servers[i].id, i + 1);
        assert_string_equal(b.install_snapshot.conf.servers[i].address, addresses[i]);
    }
    assert_int_equal(b.install_snapshot.conf.servers[2].role, RAFT_SPARE);
    wire_message_free(&b);
    raft_configuration_close(&m.install_snapshot.conf);
}

static void refuses_to_encode(void **state)
{
    (void)state;
    struct sample s;
    struct wire_out out;
    uint64_t word = 0;

    entries(&s);
    s.entries[1].buf.len = 15;
    assert_int_equal(wire_encode(&s.m, &out), SYM_EINVAL);
    s.entries[1].buf.len = 0;
    assert_int_equal(wire_encode(&s.m, &out), SYM_EINVAL);
    s.entries[1].buf.len = WIRE_ENTRY_MAX + 8;
    assert_int_equal(wire_encode(&s.m, &out), SYM_ETOOBIG);
    s.m.append_entries.n_entries = WIRE_ENTRIES_MAX + 1;
    assert_int_equal(wire_encode(&s.m, &out), SYM_ETOOBIG);
    assert_null(out.bufs);
    raft_free(s.change.base);

    struct raft_message m = snapshot(&word, 0);
    assert_int_equal(wire_encode(&m, &out), SYM_EINVAL);
    m.install_snapshot.data.len = (size_t)FRAME_MAX + 1;
    assert_int_equal(wire_encode(&m, &out), SYM_ETOOBIG);
    m.install_snapshot.data.len = FRAME_MAX; /* with the head it is too long */
    assert_int_equal(wire_encode(&m, &out), SYM_ETOOBIG);
    raft_configuration_close(&m.install_snapshot.conf);
    raft_configuration_init(&m.install_snapshot.conf);
    m.install_snapshot.data.len = 8;
    assert_int_equal(wire_encode(&m, &out), SYM_EINVAL);
    m = (struct raft_message){.type = 7};
    assert_int_equal(wire_encode(&m, &out), SYM_EINVAL);
}

static void entries_up_to_the_limit(void **state)
{
    (void)state;
    static uint64_t word[2] = {1, 2};
    struct raft_entry *many = calloc(WIRE_ENTRIES_MAX, sizeof *many);
    struct raft_message b, m = {
                               .type = RAFT_APPEND_ENTRIES,
                               .append_entries = {.term = 1, .entries = many, .n_entries = WIRE_ENTRIES_MAX},
                           };
    for (unsigned i = 0; i < WIRE_ENTRIES_MAX; i++) {
        many[i] = (struct raft_entry){.term = 1, .type = RAFT_COMMAND, .buf = {word, 16}};
    }
    round_trip(&m, &b);
    assert_int_equal(b.append_entries.n_entries, WIRE_ENTRIES_MAX);
    wire_message_free(&b);

    m.append_entries.n_entries = 1;
    many[0].buf.base = calloc(1, WIRE_ENTRY_MAX);
    many[0].buf.len = WIRE_ENTRY_MAX;
    round_trip(&m, &b);
    assert_int_equal(b.append_entries.entries[0].buf.len, WIRE_ENTRY_MAX);
    wire_message_free(&b);
    free(many[0].buf.base);
    free(many);
}

static void runs(void **state)
{
    (void)state;
    struct sample s;
    entries(&s);
    assert_int_equal(wire_run(s.entries, 0), 0);
    assert_int_equal(wire_run(s.entries, 1), 1);
    assert_int_equal(wire_run(s.entries, N), 2);         /* before the CHANGE, */
    assert_int_equal(wire_run(s.entries + 2, N - 2), 3); /* which comes first */
    s.entries[3].type = RAFT_CHANGE;
    assert_int_equal(wire_run(s.entries + 2, N - 2), 1);
    s.entries[0].buf.len = WIRE_ENTRY_MAX;
    assert_int_equal(wire_run(s.entries, N), 1); /* one alone may be as long as it is */
    s.entries[0].buf.len = WIRE_RUN_BYTES - 16;
    assert_int_equal(wire_run(s.entries, N), 2);
    s.entries[0].buf.len = WIRE_RUN_BYTES - 8;
    assert_int_equal(wire_run(s.entries, N), 1);
    raft_free(s.change.base);

    struct raft_entry *many = calloc(WIRE_ENTRIES_MAX + 1, sizeof *many);
    assert_int_equal(wire_run(many, WIRE_ENTRIES_MAX + 1), WIRE_ENTRIES_MAX);
    free(many);
}

/* Decodes a copy; whatever comes out is freed as a dropped message is. */
static int decode_copy(const uint8_t *data, size_t n)
{
    struct raft_message m;
    uint8_t *copy = (malloc)(n > 0 ? n : 1);
    memcpy(copy, data, n);
    int rv = wire_decode(copy, n, &m);
    if (rv == 0) {
        wire_message_free(&m);
    }
    return rv;
}

static void damage(const struct raft_message *m)
{
    size_t n;
    uint8_t *data = encode(m, &n);
    uint8_t longer[4096] = {0};

    for (size_t i = 0; i < n; i++) {
        assert_int_equal(decode_copy(data, i), SYM_EPROTO); /* cut short */
    }
    assert_true(n < sizeof longer);
    memcpy(longer + 1, data, n);
    assert_int_equal(decode_copy(longer, n + 1), m->type == RAFT_INSTALL_SNAPSHOT ? 0 : SYM_EPROTO);
    for (size_t i = 0; i < n; i++) {
        for (unsigned bit = 0; bit < 8; bit++) {
            data[i] ^= (uint8_t)(1u << bit);
            int rv = decode_copy(data, n); /* some are other messages; none may do harm */
            assert_true(rv == 0 || rv == SYM_EPROTO);
            data[i] ^= (uint8_t)(1u << bit);
        }
    }
    (free)(data);
}

static void damaged(void **state)
{
    (void)state;
    struct sample s;
    struct raft_message m = vote();
    damage(&m);
    m = (struct raft_message){.type = RAFT_REQUEST_VOTE_RESULT};
    damage(&m);
    m = (struct raft_message){.type = RAFT_APPEND_ENTRIES_RESULT};
    damage(&m);
    m = (struct raft_message){.type = RAFT_TIMEOUT_NOW};
    damage(&m);
    m = (struct raft_message){.type = RAFT_APPEND_ENTRIES};
    damage(&m);
    entries(&s);
    damage(&s.m);
    raft_free(s.change.base);
    char text[] = "data";
    m = snapshot(text, sizeof text);
    damage(&m);
    raft_configuration_close(&m.install_snapshot.conf);
}

/* What raft would assert on. */
static void impossible(void **state)
{
    (void)state;
    struct sample s;
    size_t n;
    uint8_t *data;
    int expected;

    for (int i = 0; i < 9; i++) {
        entries(&s);
        struct raft_append_entries *a = &s.m.append_entries;
        expected = SYM_EPROTO;
        switch (i) {
        case 0:
            a->prev_log_index = 0;
            break;
        case 1:
            a->prev_log_term = 0;
            break;
        case 2:
            a->term = 4; /* of the message; the entries' go up to 5 */
            break;
        case 3:
            s.entries[3].term = 3; /* falls */
            break;
        case 4:
            a->prev_log_term = 5; /* higher than the first entry's */
            break;
        case 5:
            s.entries[0].type = 4;
            break;
        case 6:
            s.entries[2].buf.len -= 8; /* a configuration that ends early */
            break;
        case 7:
            a->prev_log_index = UINT64_MAX - 2;
            break;
        case 8:
            expected = 0;
            break;
        }
        data = encode(&s.m, &n);
        assert_int_equal(decode_copy(data, n), expected);
        (free)(data);
        raft_free(s.change.base);
    }
    for (int i = 0; i < 5; i++) {
        char text[] = "data";
        struct raft_message m = snapshot(text, sizeof text);
        struct raft_install_snapshot *a = &m.install_snapshot;
        a->last_index = i == 0 ? 0 : a->last_index;
        a->last_term = i == 1 ? 0 : i == 2 ? a->term + 1 : a->last_term;
        a->conf_index = i == 3 ? a->last_index + 1 : a->conf_index;
        data = encode(&m, &n);
        assert_int_equal(decode_copy(data, n), i == 4 ? 0 : SYM_EPROTO);
        (free)(data);
        raft_configuration_close(&m.install_snapshot.conf);
    }
}

static void configurations(void **state)
{
    (void)state;
    struct raft_configuration conf, back;
    struct raft_buffer buf;
    char address[WIRE_ADDRESS_MAX + 2];

    configuration(&conf);
    assert_int_equal(raft_configuration_encode(&conf, &buf), 0);
    raft_configuration_close(&conf);
    must(wire_check_configuration(buf.base, buf.len), "a good configuration");
    for (size_t i = 0; i < buf.len; i++) {
        /* Short by any number of bytes, in memory that ends there. */
        uint8_t *copy = (malloc)(i > 0 ? i : 1);
        memcpy(copy, buf.base, i);
        assert_int_equal(wire_check_configuration(copy, i), SYM_EPROTO);
        (free)(copy);
    }
    /* Whatever passes, raft's own decoder takes without reading past the end. */
    for (size_t i = 0; i < buf.len; i++) {
        for (unsigned bit = 0; bit < 8; bit++) {
            uint8_t *p = buf.base;
            p[i] ^= (uint8_t)(1u << bit);
            if (wire_check_configuration(buf.base, buf.len) == 0) {
                assert_int_equal(raft_configuration_decode(&buf, &back), 0);
                raft_configuration_close(&back);
            }
            p[i] ^= (uint8_t)(1u << bit);
        }
    }
    raft_free(buf.base);

    /* As many and as long as there may be, and one more. */
    for (int over = 0; over < 3; over++) {
        raft_configuration_init(&conf);
        for (unsigned i = 0; i < WIRE_SERVERS_MAX + (over == 1); i++) {
            memset(address, 'x', sizeof address);
            address[WIRE_ADDRESS_MAX + (over == 2)] = '\0';
            address[0] = (char)('A' + i % 26);
            address[1] = (char)('A' + i / 26);
            assert_int_equal(raft_configuration_add(&conf, i + 1, address, RAFT_VOTER), 0);
        }
        struct raft_message m = {
            .type = RAFT_INSTALL_SNAPSHOT,
            .install_snapshot =
                {.term = 1, .last_index = 1, .last_term = 1, .data = {address, 8}, .conf = conf},
        };
        struct wire_out out;
        int rv = wire_encode(&m, &out);
        assert_int_equal(rv, over == 0 ? 0 : over == 1 ? SYM_ETOOBIG : SYM_EINVAL);
        if (rv == 0) {
            struct raft_message b;
            must(wire_decode(join(&out), out.size, &b), "the largest configuration");
            assert_int_equal(b.install_snapshot.conf.n, WIRE_SERVERS_MAX);
            wire_message_free(&b);
        }
        wire_out_free(&out);
        raft_configuration_close(&conf);
    }
}

/* raft's allocations fail where ours do. */
static void *raft_malloc_(void *data, size_t n)
{
    (void)data;
    return malloc(n);
}
static void raft_free_(void *data, void *p)
{
    (void)data;
    free(p);
}
static void *raft_calloc_(void *data, size_t n, size_t size)
{
    (void)data;
    return calloc(n, size);
}
static void *raft_realloc_(void *data, void *p, size_t n)
{
    (void)data;
    return realloc(p, n);
}

static void without_memory(void **state)
{
    (void)state;
    struct raft_heap heap = {
        .malloc = raft_malloc_, .free = raft_free_, .calloc = raft_calloc_, .realloc = raft_realloc_};
    struct sample s;
    char text[] = "data";
    struct wire_out out;
    struct raft_message b;

    entries(&s);
    struct raft_message messages[] = {s.m, snapshot(text, sizeof text), vote()};
    raft_heap_set(&heap);
    for (unsigned i = 0; i < 3; i++) {
        bool hit = true;
        for (long k = 0; hit; k++) {
            fault_after(k, false);
            int rv = wire_encode(&messages[i], &out);
            hit = fault_end();
            assert_int_equal(rv, hit ? SYM_ENOMEM : 0);
            if (hit) {
                assert_null(out.bufs);
                assert_null(out.head.base);
            }
        }
        hit = true;
        for (long k = 0; hit; k++) {
            uint8_t *data = join(&out);
            fault_after(k, false);
            int rv = wire_decode(data, out.size, &b);
            hit = fault_end();
            assert_int_equal(rv, hit ? SYM_ENOMEM : 0);
        }
        wire_message_free(&b);
        wire_out_free(&out);
    }
    raft_heap_set_default();
    raft_free(s.change.base);
    raft_configuration_close(&messages[1].install_snapshot.conf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_messages),
        cmocka_unit_test(heartbeat),
        cmocka_unit_test(entries_are_not_copied),
        cmocka_unit_test(snapshot_is_not_copied),
        cmocka_unit_test(refuses_to_encode),
        cmocka_unit_test(entries_up_to_the_limit),
        cmocka_unit_test(runs),
        cmocka_unit_test(damaged),
        cmocka_unit_test(impossible),
        cmocka_unit_test(configurations),
        cmocka_unit_test(without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
