/* sym.crypto as Lua sees it. */
#include "crypto_support.h"

#include "lua/bind_crypto.h"
#include "lua/vm.h"

/* The two functions of the vm that the binding needs, so that it is tested without the rest of it. */
void vm_push_error(lua_State *L, int code)
{
    lua_createtable(L, 0, 2);
    lua_pushstring(L, err_name(code));
    lua_setfield(L, -2, "code");
    lua_pushstring(L, err_msg());
    lua_setfield(L, -2, "message");
}

int vm_fail(lua_State *L, int code)
{
    lua_pushnil(L);
    vm_push_error(L, code);
    return 2;
}

static long allocations_left = -1;

static void *allocate(void *arg, void *p, size_t old, size_t n)
{
    (void)arg;
    (void)old;
    if (n == 0) {
        free(p);
        return NULL;
    }
    /* Lua expects that shrinking works, and tries again after a collection: so all that follow fail too. */
    if (allocations_left >= 0 && (p == NULL || n > old)) {
        if (allocations_left == 0) {
            return NULL;
        }
        allocations_left--;
    }
    return realloc(p, n);
}

static int open_all(lua_State *L)
{
    luaL_openlibs(L);
    luaL_requiref(L, "sym.crypto", luaopen_sym_crypto, 0);
    lua_setglobal(L, "crypto");
    return 0;
}

static lua_State *new_state(void)
{
    lua_State *L = lua_newstate(allocate, NULL);
    assert_non_null(L);
    lua_pushcfunction(L, open_all);
    assert_int_equal(lua_pcall(L, 0, 0, 0), LUA_OK);
    return L;
}

static void run(const char *chunk)
{
    lua_State *L = new_state();
    if (luaL_dostring(L, chunk) != LUA_OK) {
        fail_msg("%s", lua_tostring(L, -1));
    }
    lua_close(L);
}

static void texts(void **state)
{
    (void)state;
    run("local function fails(v, err) assert(v == nil and err.code == 'invalid' and #err.message > 0) end\n"
        "assert(#crypto.random(32) == 32 and crypto.random(32) ~= crypto.random(32) and crypto.random(0) == "
        "'')\n"
        "assert(crypto.hex(crypto.sha256('abc')) =="
        "  'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad')\n"
        "assert(crypto.unhex('00fF') == '\\0\\xff' and crypto.unhex('') == '')\n"
        "fails(crypto.unhex('0')) fails(crypto.unhex('xx'))\n"
        "assert(crypto.base32('foobar') == 'cpnmuoj1e8')\n"
        "assert(crypto.base64('foob') == 'Zm9vYg==' and crypto.unbase64('Zm9vYg==') == 'foob')\n"
        "fails(crypto.unbase64('Zm9vYg=')) fails(crypto.unbase64('Zm9v\\n'))\n"
        "local long = crypto.random(100000)\n"
        "assert(crypto.unbase64(crypto.base64(long)) == long and crypto.unhex(crypto.hex(long)) == long)\n"
        "local bytes = crypto.random(16)\n"
        "assert(#crypto.base36(bytes) == 25 and crypto.unbase36(crypto.base36(bytes), 16) == bytes)\n"
        "fails(crypto.unbase36('zz', 16)) fails(crypto.unbase36(('z'):rep(25), 16)) "
        "fails(crypto.unbase36('', 16))\n"
        "assert(crypto.equal('abc', 'abc') and not crypto.equal('abc', 'abd') and not crypto.equal('abc', "
        "'ab'))\n");
}

static void certificates(void **state)
{
    (void)state;
    run("local function fails(code, v, err) assert(v == nil and err.code == code, err and err.message) end\n"
        "local now = os.time()\n"
        "local ca_key, key = crypto.key_generate(), crypto.key_generate()\n"
        "local ca = crypto.ca_new(ca_key, 'cluster1', now - 10, now + 1000)\n"
        "local again = crypto.key_load(key:pem())\n"
        "assert(again:fingerprint() == key:fingerprint() and #key:fingerprint() == 64)\n"
        "local csr = crypto.csr(key, 'node1')\n"
        "local whose, says = crypto.csr_check(csr)\n"
        "assert(whose == key:fingerprint() and says == 'node1')\n"
        "local spec = {cn = 'node1', ou = 'manager', o = 'cluster1', not_before = now, not_after = now + 9, "
        "server = true}\n"
        "local cert = crypto.cert_sign(ca_key, ca, csr, spec)\n"
        "local info = crypto.cert_info(cert)\n"
        "assert(info.cn == 'node1' and info.ou == 'manager' and info.o == 'cluster1')\n"
        "assert(info.not_before == now and info.not_after == now + 9 and math.type(info.not_after) == "
        "'integer')\n"
        "assert(info.fingerprint == key:fingerprint() and #info.digest == 64 and #info.serial > 0)\n"
        "assert(info.is_server == true and info.is_ca == false and crypto.cert_info(ca).is_ca == true)\n"
        "assert(info.raft_id == nil)\n"
        "spec.raft_id = 7\n"
        "assert(crypto.cert_info(crypto.cert_sign(ca_key, ca, csr, spec)).raft_id == 7)\n"
        "spec.hosts = {'10.0.0.5', 'a.example.org'}\n"
        "local hosts = crypto.cert_hosts(crypto.cert_sign(ca_key, ca, csr, spec))\n"
        "assert(#hosts == 2 and hosts[1] == '10.0.0.5' and hosts[2] == 'a.example.org')\n"
        "assert(#crypto.cert_hosts(ca) == 0)\n"
        "fails('invalid', crypto.cert_hosts('x'))\n"
        "spec.hosts = {'a b'} fails('invalid', crypto.cert_sign(ca_key, ca, csr, spec))\n"
        "spec.hosts = nil\n"
        "local new_key = crypto.key_generate()\n"
        "local new = crypto.ca_new(new_key, 'cluster1', now - 10, now + 1000)\n"
        "local bridge = crypto.cert_cross_sign(ca_key, ca, new)\n"
        "assert(crypto.cert_check_issuer(bridge, ca) and crypto.cert_info(bridge).is_ca)\n"
        "fails('invalid', crypto.cert_cross_sign(new_key, ca, new))\n"
        "local parts = crypto.cert_split(new .. ca)\n"
        "assert(#parts == 2 and parts[1] == new and parts[2] == ca)\n"
        "fails('invalid', crypto.cert_split('x'))\n"
        "assert(#crypto.cert_split(ca:rep(16)) == 16)\n"
        "fails('too_big', crypto.cert_split(ca:rep(17)))\n"
        "spec.server = nil\n"
        "assert(crypto.cert_info(crypto.cert_sign(ca_key, ca, csr, spec)).is_server == false)\n"
        "assert(crypto.cert_check_key(cert, key) == true and crypto.cert_check_issuer(cert, ca) == true)\n"
        "fails('invalid', crypto.cert_check_key(cert, ca_key))\n"
        "fails('unauthenticated', crypto.cert_check_issuer(cert, cert))\n"
        "fails('invalid', crypto.cert_sign(key, ca, csr, spec))\n"
        "fails('invalid', crypto.cert_info('x')) fails('invalid', crypto.csr_check('x'))\n"
        "fails('invalid', crypto.key_load('x')) fails('invalid', crypto.csr(key, ''))\n"
        "fails('invalid', crypto.ca_new(key, 'c', 2, 1))\n"
        "key:close() key:close()\n"
        "assert(not pcall(key.pem, key) and again:pem())\n");
}

static void signatures(void **state)
{
    (void)state;
    run("local function fails(code, v, err) assert(v == nil and err.code == code, err and err.message) end\n"
        "local key, other = crypto.key_generate(), crypto.key_generate()\n"
        "local public = key:public()\n"
        "assert(#public == 91 and public ~= other:public())\n"
        "assert(crypto.hex(crypto.sha256(public)) == key:fingerprint())\n"
        "local ca = crypto.ca_new(key, 'c', 1, 2)\n"
        "assert(crypto.cert_info(ca).public == public)\n"
        "local sig = key:sign('text')\n"
        "assert(#sig <= 72 and crypto.verify(public, 'text', sig) == true)\n"
        "assert(crypto.verify(public, '', key:sign('')) == true)\n"
        "fails('unauthenticated', crypto.verify(public, 'Text', sig))\n"
        "fails('unauthenticated', crypto.verify(public, 'text', sig .. 'x'))\n"
        "fails('unauthenticated', crypto.verify(other:public(), 'text', sig))\n"
        "fails('invalid', crypto.verify('', 'text', sig)) fails('invalid', crypto.verify(public .. '\\0', "
        "'text', "
        "sig))\n"
        "key:close()\n"
        "assert(not pcall(key.sign, key, 'x') and not pcall(key.public, key))\n"
        "assert(not pcall(other.sign, other) and not pcall(crypto.verify, public, 'text'))\n");
}

static void misuse_raises(void **state)
{
    (void)state;
    run("local key = crypto.key_generate()\n"
        "local function raises(fn, ...) assert(not pcall(fn, ...)) end\n"
        "raises(crypto.random, -1) raises(crypto.random, 1 << 40) raises(crypto.random, 'x') "
        "raises(crypto.random)\n"
        "raises(crypto.sha256) raises(crypto.hex, {}) raises(crypto.base36, ('x'):rep(65)) "
        "raises(crypto.unbase36, '')\n"
        "raises(crypto.unbase36, '', 65) raises(crypto.unbase36, '', -1) raises(crypto.equal, 'a')\n"
        "raises(crypto.csr, 'key', 'x') raises(crypto.csr, io.stdout, 'x') raises(crypto.csr, key, 'a\\0b')\n"
        "raises(crypto.ca_new, key, 'c', 1.5, 2) raises(crypto.ca_new, key, 'c\\0', 1, 2)\n"
        "raises(crypto.cert_sign, key, '', '') raises(crypto.cert_sign, key, '', '', {})\n"
        "local spec = {cn = 'a', ou = 'b', o = 'c', not_before = 1, not_after = 'x'}\n"
        "raises(crypto.cert_sign, key, '', '', spec)\n"
        "for _, id in ipairs {0, -1, 1.5, 'x', {}} do\n"
        "  spec.not_after, spec.raft_id = 2, id raises(crypto.cert_sign, key, '', '', spec)\n"
        "end\n"
        "spec.raft_id = nil\n"
        "for _, hosts in ipairs {'a', 7, {1}, {'a\\0b'}, {('a '):rep(17):byte(1, 17)}} do\n"
        "  spec.hosts = hosts raises(crypto.cert_sign, key, '', '', spec)\n"
        "end\n"
        "spec.hosts = {} for i = 1, 17 do spec.hosts[i] = 'a' end raises(crypto.cert_sign, key, '', '', "
        "spec)\n"
        "spec.hosts = nil\n"
        "spec.not_after, spec.cn = 2, 'a\\0b' raises(crypto.cert_sign, key, '', '', spec)\n"
        "spec.cn = 1 raises(crypto.cert_sign, key, '', '', spec)\n"
        "raises(key.pem, {}) raises(getmetatable(key).__gc, 1)\n");
}

static const char all_of_it[] =
    "local key = crypto.key_generate()\n"
    "key = key and crypto.key_load(key:pem())\n"
    "local csr = key and crypto.csr(key, 'x')\n"
    "local ca = key and crypto.ca_new(key, 'c', 1, 2)\n"
    "local cert = csr and ca and crypto.cert_sign(key, ca, csr, {cn = 'a', ou = 'b', o = 'c', not_before = 1,"
    "  not_after = 2})\n"
    "local info = cert and crypto.cert_info(cert)\n"
    "local sig = info and key:sign('x')\n"
    "info = sig and crypto.verify(key:public(), 'x', sig) and info\n"
    "return info and crypto.base64(crypto.random(2000)) and crypto.unhex(crypto.hex(info.cn)) == 'a'";

/* Lua without memory, at each of its allocations in turn: an error, and nothing left behind (ASan). */
static void lua_out_of_memory(void **state)
{
    (void)state;
    long k = 0;
    for (int rv = LUA_ERRMEM; rv != LUA_OK; k++) {
        lua_State *L = new_state();
        assert_int_equal(luaL_loadstring(L, all_of_it), LUA_OK);
        allocations_left = k;
        rv = lua_pcall(L, 0, 1, 0);
        allocations_left = -1;
        assert_true(rv == LUA_OK || rv == LUA_ERRMEM);
        if (rv == LUA_OK) {
            assert_true(lua_toboolean(L, -1));
        }
        lua_close(L);
    }
    print_message("%ld allocations\n", k - 1);
    assert_true(k > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts),
        cmocka_unit_test(certificates),
        cmocka_unit_test(signatures),
        cmocka_unit_test(misuse_raises),
        cmocka_unit_test(lua_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
