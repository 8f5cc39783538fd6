#include "lua/bind_crypto.h"

#include "base/err.h"
#include "codec/text.h"
#include "lua/fields.h"
#include "lua/vm.h"

#include <string.h>

static const char key_type[] = "sym.crypto.key";
static const char scratch_type[] = "sym.crypto.scratch";

/* What one call may take or give: enough for the largest value, and for a chunk of a backup. */
enum { TEXT_MAX = 16 * 1024 * 1024, RANDOM_MAX = 1024 * 1024, BASE36_MAX = 64 };
enum { BUNDLE_MAX = 16, HOSTS_MAX = 16 };

static const char *check_text(lua_State *L, int idx, size_t max, size_t *n)
{
    const char *text = luaL_checklstring(L, idx, n);
    luaL_argcheck(L, *n <= max, idx, "too long");
    return text;
}

/* A text that C will take for NUL-terminated. */
static const char *check_name(lua_State *L, int idx)
{
    size_t n;
    const char *name = luaL_checklstring(L, idx, &n);
    luaL_argcheck(L, strlen(name) == n, idx, "a NUL character");
    return name;
}

/* -- a buffer that Lua frees if pushing its contents raises; it may hold a secret -- */

static int scratch_gc(lua_State *L)
{
    struct buf *b = luaL_checkudata(L, 1, scratch_type);
    if (b->base != NULL) {
        crypto_wipe(b->base, b->cap);
    }
    buf_free(b);
    return 0;
}

static struct buf *push_scratch(lua_State *L)
{
    struct buf *b = lua_newuserdatauv(L, sizeof *b, 0);
    *b = (struct buf){0};
    luaL_setmetatable(L, scratch_type);
    return b;
}

/* The scratch buffer's contents, or nil and the error. */
static int give_text(lua_State *L, struct buf *b, int err)
{
    if (err != 0) {
        return vm_fail(L, err);
    }
    lua_pushlstring(L, (const char *)buf_data(b), b->len);
    crypto_wipe(b->base, b->cap);
    buf_free(b);
    return 1;
}

/* -- digests and text -- */

static int l_random(lua_State *L)
{
    lua_Integer n = luaL_checkinteger(L, 1);
    luaL_argcheck(L, n >= 0 && n <= RANDOM_MAX, 1, "out of range");
    luaL_Buffer b;
    char *to = luaL_buffinitsize(L, &b, (size_t)n);
    int err = crypto_random(to, (size_t)n);
    if (err != 0) {
        return vm_fail(L, err);
    }
    luaL_pushresultsize(&b, (size_t)n);
    return 1;
}

static int l_sha256(lua_State *L)
{
    size_t n;
    const char *data = luaL_checklstring(L, 1, &n);
    uint8_t out[SHA256_LEN];
    int err = crypto_sha256(data, n, out);
    if (err != 0) {
        return vm_fail(L, err);
    }
    lua_pushlstring(L, (const char *)out, sizeof out);
    return 1;
}

static int encode(
    lua_State *L, size_t max, size_t (*width)(size_t), void (*to)(const uint8_t *, size_t, char *))
{
    size_t n;
    const char *data = check_text(L, 1, max, &n);
    luaL_Buffer b;
    char *out = luaL_buffinitsize(L, &b, width(n) + 1);
    to((const uint8_t *)data, n, out);
    luaL_pushresultsize(&b, width(n));
    return 1;
}

static size_t hex_width(size_t n)
{
    return 2 * n;
}

static size_t base32_width(size_t n)
{
    return (8 * n + 4) / 5;
}

static int l_hex(lua_State *L)
{
    return encode(L, TEXT_MAX, hex_width, hex_encode);
}

static int l_base32(lua_State *L)
{
    return encode(L, TEXT_MAX, base32_width, base32_encode);
}

static int l_base36(lua_State *L)
{
    return encode(L, BASE36_MAX, base36_width, base36_encode);
}

static int l_base64(lua_State *L)
{
    return encode(L, TEXT_MAX, base64_width, base64_encode);
}

static int l_unhex(lua_State *L)
{
    size_t n;
    const char *text = check_text(L, 1, 2 * (size_t)TEXT_MAX, &n);
    luaL_Buffer b;
    char *out = luaL_buffinitsize(L, &b, n / 2);
    int err = hex_decode(text, n, (uint8_t *)out, n / 2);
    if (err != 0) {
        return vm_fail(L, err);
    }
    luaL_pushresultsize(&b, n / 2);
    return 1;
}

static int l_unbase36(lua_State *L)
{
    size_t n;
    const char *text = luaL_checklstring(L, 1, &n);
    lua_Integer bytes = luaL_checkinteger(L, 2);
    luaL_argcheck(L, bytes >= 0 && bytes <= BASE36_MAX, 2, "out of range");
    uint8_t out[BASE36_MAX];
    int err = base36_decode(text, n, out, (size_t)bytes);
    if (err != 0) {
        return vm_fail(L, err);
    }
    lua_pushlstring(L, (const char *)out, (size_t)bytes);
    return 1;
}

static int l_unbase64(lua_State *L)
{
    size_t n, bytes;
    const char *text = check_text(L, 1, 2 * (size_t)TEXT_MAX, &n);
    luaL_Buffer b;
    char *out = luaL_buffinitsize(L, &b, n / 4 * 3);
    int err = base64_decode(text, n, (uint8_t *)out, &bytes);
    if (err != 0) {
        return vm_fail(L, err);
    }
    luaL_pushresultsize(&b, bytes);
    return 1;
}

static int l_equal(lua_State *L)
{
    size_t na, nb;
    const char *a = luaL_checklstring(L, 1, &na);
    const char *b = luaL_checklstring(L, 2, &nb);
    lua_pushboolean(L, na == nb && crypto_equal(a, b, na));
    return 1;
}

/* -- keys -- */

struct key *bind_crypto_check_key(lua_State *L, int idx)
{
    struct key **k = luaL_checkudata(L, idx, key_type);
    luaL_argcheck(L, *k != NULL, idx, "the key is closed");
    return *k;
}

static struct key **push_key(lua_State *L)
{
    struct key **k = lua_newuserdatauv(L, sizeof(struct key *), 0);
    *k = NULL;
    luaL_setmetatable(L, key_type);
    return k;
}

static int l_key_generate(lua_State *L)
{
    int err = key_generate(push_key(L));
    return err == 0 ? 1 : vm_fail(L, err);
}

static int l_key_load(lua_State *L)
{
    size_t n;
    const char *pem = luaL_checklstring(L, 1, &n);
    int err = key_from_pem(pem, n, push_key(L));
    return err == 0 ? 1 : vm_fail(L, err);
}

static int key_pem(lua_State *L)
{
    const struct key *k = bind_crypto_check_key(L, 1);
    struct buf *b = push_scratch(L);
    return give_text(L, b, key_to_pem(k, b));
}

static int key_print(lua_State *L)
{
    uint8_t out[SHA256_LEN];
    int err = key_fingerprint(bind_crypto_check_key(L, 1), out);
    if (err != 0) {
        return vm_fail(L, err);
    }
    push_digest(L, out);
    return 1;
}

static int key_spki(lua_State *L)
{
    uint8_t out[SPKI_LEN];
    int err = key_public(bind_crypto_check_key(L, 1), out);
    if (err != 0) {
        return vm_fail(L, err);
    }
    lua_pushlstring(L, (const char *)out, sizeof out);
    return 1;
}

static int key_signature(lua_State *L)
{
    size_t n, sig_len;
    uint8_t sig[KEY_SIG_MAX];
    const struct key *k = bind_crypto_check_key(L, 1);
    const char *text = check_text(L, 2, TEXT_MAX, &n);
    int err = key_sign(k, text, n, sig, &sig_len);
    if (err != 0) {
        return vm_fail(L, err);
    }
    lua_pushlstring(L, (const char *)sig, sig_len);
    return 1;
}

static int key_close(lua_State *L)
{
    struct key **k = luaL_checkudata(L, 1, key_type);
    key_free(*k);
    *k = NULL;
    return 0;
}

/* -- requests and certificates -- */

static int l_csr(lua_State *L)
{
    const struct key *k = bind_crypto_check_key(L, 1);
    const char *cn = check_name(L, 2);
    struct buf *b = push_scratch(L);
    return give_text(L, b, csr_new(k, cn, b));
}

static int l_csr_check(lua_State *L)
{
    size_t n;
    const char *pem = luaL_checklstring(L, 1, &n);
    uint8_t out[SHA256_LEN];
    char cn[64];
    int err = csr_check(pem, n, out, cn);
    if (err != 0) {
        return vm_fail(L, err);
    }
    push_digest(L, out);
    lua_pushstring(L, cn);
    return 2;
}

static int l_ca_new(lua_State *L)
{
    const struct key *k = bind_crypto_check_key(L, 1);
    const char *o = check_name(L, 2);
    int64_t not_before = luaL_checkinteger(L, 3), not_after = luaL_checkinteger(L, 4);
    struct buf *b = push_scratch(L);
    return give_text(L, b, cert_new_ca(k, o, not_before, not_after, b));
}

/* A field of the table at @idx; it stays on the stack, which keeps it alive. */
static const char *text_field(lua_State *L, int idx, const char *name)
{
    if (lua_getfield(L, idx, name) != LUA_TSTRING) {
        luaL_error(L, "%s: a string is expected", name);
    }
    const char *text = lua_tostring(L, -1);
    if (strlen(text) != lua_rawlen(L, -1)) {
        luaL_error(L, "%s: a NUL character", name);
    }
    return text;
}

static int64_t time_field(lua_State *L, int idx, const char *name)
{
    int is_integer;
    lua_getfield(L, idx, name);
    lua_Integer at = lua_tointegerx(L, -1, &is_integer);
    if (!is_integer) {
        luaL_error(L, "%s: an integer is expected", name);
    }
    lua_pop(L, 1);
    return at;
}

/* 0 when there is none. */
static uint64_t raft_id_field(lua_State *L, int idx)
{
    lua_Integer id = 0;
    if (lua_getfield(L, idx, "raft_id") != LUA_TNIL) {
        int is_integer;
        id = lua_tointegerx(L, -1, &is_integer);
        if (!is_integer || id < 1) {
            luaL_error(L, "raft_id: a positive integer is expected");
        }
    }
    lua_pop(L, 1);
    return (uint64_t)id;
}

/* The strings of the array "hosts"; they stay on the stack. */
static size_t hosts_field(lua_State *L, int idx, const char *out[HOSTS_MAX])
{
    size_t n = 0;
    if (lua_getfield(L, idx, "hosts") == LUA_TNIL) {
        return 0;
    }
    if (!lua_istable(L, -1)) {
        luaL_error(L, "hosts: an array is expected");
    }
    luaL_checkstack(L, HOSTS_MAX + 2, "hosts");
    for (int list = lua_gettop(L); lua_geti(L, list, (lua_Integer)n + 1) != LUA_TNIL; n++) {
        if (n == HOSTS_MAX || lua_type(L, -1) != LUA_TSTRING) {
            luaL_error(L, "hosts: an array of at most %d strings is expected", HOSTS_MAX);
        }
        out[n] = check_name(L, -1);
    }
    return n;
}

static int l_cert_sign(lua_State *L)
{
    const char *hosts[HOSTS_MAX];
    size_t ca_n, csr_n;
    const struct key *k = bind_crypto_check_key(L, 1);
    const char *ca = luaL_checklstring(L, 2, &ca_n);
    const char *csr = luaL_checklstring(L, 3, &csr_n);
    luaL_checktype(L, 4, LUA_TTABLE);
    struct cert_spec spec = {
        .cn = text_field(L, 4, "cn"),
        .ou = text_field(L, 4, "ou"),
        .o = text_field(L, 4, "o"),
        .not_before = time_field(L, 4, "not_before"),
        .not_after = time_field(L, 4, "not_after"),
    };
    lua_getfield(L, 4, "server");
    spec.server = lua_toboolean(L, -1);
    lua_pop(L, 1);
    spec.raft_id = raft_id_field(L, 4);
    spec.n_hosts = hosts_field(L, 4, hosts);
    spec.hosts = hosts;
    struct buf *b = push_scratch(L);
    return give_text(L, b, cert_sign(k, ca, ca_n, csr, csr_n, &spec, b));
}

void bind_crypto_push_info(lua_State *L, const struct cert_info *info)
{
    lua_createtable(L, 0, 12);
    set_text(L, "cn", info->cn);
    set_text(L, "ou", info->ou);
    set_text(L, "o", info->o);
    set_text(L, "serial", info->serial);
    set_integer(L, "not_before", (uint64_t)info->not_before);
    set_integer(L, "not_after", (uint64_t)info->not_after);
    set_digest(L, "digest", info->digest);
    set_digest(L, "fingerprint", info->fingerprint);
    if (info->has_spki) {
        set_bytes(L, "public", info->spki, sizeof info->spki);
    }
    set_bool(L, "is_ca", info->is_ca);
    set_bool(L, "is_server", info->is_server);
    if (info->raft_id != 0) {
        set_integer(L, "raft_id", info->raft_id);
    }
}

static int l_cert_info(lua_State *L)
{
    size_t n;
    const char *pem = luaL_checklstring(L, 1, &n);
    struct cert_info info;
    int err = cert_info(pem, n, &info);
    if (err != 0) {
        return vm_fail(L, err);
    }
    bind_crypto_push_info(L, &info);
    return 1;
}

static int l_cert_cross_sign(lua_State *L)
{
    size_t ca_n, of_n;
    const struct key *k = bind_crypto_check_key(L, 1);
    const char *ca = luaL_checklstring(L, 2, &ca_n);
    const char *of = luaL_checklstring(L, 3, &of_n);
    struct buf *b = push_scratch(L);
    return give_text(L, b, cert_cross_sign(k, ca, ca_n, of, of_n, b));
}

/* {PEM, ...} of a text with one or more. */
static int l_cert_split(lua_State *L)
{
    size_t n;
    const char *pem = luaL_checklstring(L, 1, &n);
    lua_createtable(L, 2, 0);
    for (unsigned i = 0;; i++) {
        struct buf *b = push_scratch(L);
        int err = cert_nth(pem, n, i, b);
        if (err == SYM_ENOTFOUND) {
            lua_pop(L, 1);
            return 1;
        }
        if (err == 0 && i == BUNDLE_MAX) {
            err = err_setf(SYM_ETOOBIG, "more than %d certificates", BUNDLE_MAX);
        }
        if (err != 0) {
            return vm_fail(L, err);
        }
        give_text(L, b, 0);
        lua_seti(L, -3, i + 1);
        lua_pop(L, 1);
    }
}

/* {host, ...} */
static int l_cert_hosts(lua_State *L)
{
    size_t n;
    const char *pem = luaL_checklstring(L, 1, &n);
    struct buf *b = push_scratch(L);
    int err = cert_hosts(pem, n, b);
    if (err != 0) {
        return vm_fail(L, err);
    }
    lua_newtable(L);
    const char *at = (const char *)buf_data(b), *end = at + b->len;
    for (lua_Integer i = 1; at < end; i++) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        lua_pushlstring(L, at, (size_t)(stop - at));
        lua_seti(L, -2, i);
        at = stop + 1;
    }
    return 1;
}

static int give_true(lua_State *L, int err)
{
    if (err != 0) {
        return vm_fail(L, err);
    }
    lua_pushboolean(L, 1);
    return 1;
}

static int l_cert_check_key(lua_State *L)
{
    size_t n;
    const char *pem = luaL_checklstring(L, 1, &n);
    return give_true(L, cert_check_key(pem, n, bind_crypto_check_key(L, 2)));
}

static int l_cert_check_issuer(lua_State *L)
{
    size_t n, ca_n;
    const char *pem = luaL_checklstring(L, 1, &n);
    const char *ca = luaL_checklstring(L, 2, &ca_n);
    return give_true(L, cert_check_issuer(pem, n, ca, ca_n));
}

/* verify(spki, text, signature) -> true | nil, err */
static int l_verify(lua_State *L)
{
    size_t spki_len, n, sig_len;
    const char *spki = luaL_checklstring(L, 1, &spki_len);
    const char *text = check_text(L, 2, TEXT_MAX, &n);
    const char *sig = luaL_checklstring(L, 3, &sig_len);
    return give_true(L, spki_verify(spki, spki_len, text, n, sig, sig_len));
}

int luaopen_sym_crypto(lua_State *L)
{
    static const luaL_Reg key_methods[] = {{"pem", key_pem}, {"fingerprint", key_print}, {"public", key_spki},
        {"sign", key_signature}, {"close", key_close}, {NULL, NULL}};
    static const luaL_Reg functions[] = {
        {"random", l_random},
        {"sha256", l_sha256},
        {"hex", l_hex},
        {"unhex", l_unhex},
        {"base32", l_base32},
        {"base36", l_base36},
        {"unbase36", l_unbase36},
        {"base64", l_base64},
        {"unbase64", l_unbase64},
        {"equal", l_equal},
        {"key_generate", l_key_generate},
        {"key_load", l_key_load},
        {"csr", l_csr},
        {"csr_check", l_csr_check},
        {"ca_new", l_ca_new},
        {"cert_sign", l_cert_sign},
        {"cert_cross_sign", l_cert_cross_sign},
        {"cert_split", l_cert_split},
        {"cert_hosts", l_cert_hosts},
        {"cert_info", l_cert_info},
        {"cert_check_key", l_cert_check_key},
        {"cert_check_issuer", l_cert_check_issuer},
        {"verify", l_verify},
        {NULL, NULL},
    };
    luaL_newmetatable(L, scratch_type);
    lua_pushcfunction(L, scratch_gc);
    lua_setfield(L, -2, "__gc");

    luaL_newmetatable(L, key_type);
    lua_pushcfunction(L, key_close);
    lua_setfield(L, -2, "__gc");
    luaL_newlib(L, key_methods);
    lua_setfield(L, -2, "__index");

    luaL_newlib(L, functions);
    return 1;
}
