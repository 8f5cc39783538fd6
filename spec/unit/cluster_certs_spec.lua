local fake = require "spec.unit.cluster_fake"
local certs = require "symphony.cluster.certs"
local crypto = require "sym.crypto"
local router = require "symphony.api.router"
local state = require "symphony.cluster.state"

describe("certs", function()
  local made
  local function with_cluster(body)
    return fake.task(function()
      fake.reset()
      made = fake.make()
      body()
    end)
  end
  local function csr(key) return crypto.csr({ name = key }, "x") end
  local function fingerprint(key) return (crypto.csr_check(csr(key))) end
  local function issue(name, key, more)
    local o = { name = name, role = "reader", ttl = 1000, csr = csr(key) }
    for k, v in pairs(more or {}) do o[k] = v end
    return certs.issue(o)
  end
  local function refused(code, words, ok, err)
    assert.is_nil(ok)
    assert.equal(code, err.code)
    assert.truthy(err.message:find(words, 1, true), err.message)
  end

  it("issues one for a key, which the state knows by both", with_cluster(function()
    local a = assert(issue("anna", "k9", { role = "operator" }))
    local cluster = state.cluster()
    local info = crypto.cert_info(a.certificate)
    assert.same({ "anna", "operator", cluster.id, false }, { info.cn, info.ou, info.o, info.is_server })
    assert.same({ fake.now - 3600, fake.now + 1000 }, { info.not_before, info.not_after })
    assert.same({}, crypto.cert_hosts(a.certificate))
    assert.equal(cluster.ca, a.ca)
    assert.same({ fake.now, fake.now + 1000, info.serial, fingerprint "k9", cluster.sign, true, false },
      { a.issued, a.expires, a.serial, a.fingerprint, a.issuer, a.current_ca, a.replaced })
    assert.same({ name = "anna", role = "operator", issued = fake.now, expires = fake.now + 1000, serial = info.serial,
      fingerprint = fingerprint "k9", issuer = cluster.sign }, state.get("/client/anna"))
    assert.equal("operator anna", state.text("/fingerprint/" .. fingerprint "k9"))
  end))

  it("checks what it is asked for", with_cluster(function()
    for _, name in ipairs { "ca", "", "a b", "../a", "17", made.node_id, ("a"):rep(64), "-a", 7, false } do
      refused("invalid", "", issue(name, "k9"))
    end
    refused("invalid", "", issue(nil, "k9", { name = {} }))
    for _, role in ipairs { "manager", "worker", "", 7 } do
      refused("invalid", "no role", issue("anna", "k9", { role = role }))
    end
    for _, ttl in ipairs { 0, -1, 1.5, "7", certs.TTL_MAX + 1, false } do
      refused("invalid", "1 second to 730 days", issue("anna", "k9", { ttl = ttl }))
    end
    refused("invalid", "csr", issue("anna", "k9", { csr = 7 }))
    refused("invalid", "csr", issue("anna", "k9", { csr = ("x"):rep(5000) }))
    refused("invalid", "damaged", issue("anna", "k9", { csr = "nonsense" }))
    assert.same({}, certs.list())
    assert.is_not_nil(issue("anna", "k9", { ttl = certs.TTL_MAX }))
  end))

  it("outlives no CA", with_cluster(function()
    fake.now = fake.now + require("symphony.cluster.pki").CA_LIFE - 100
    assert.equal(fake.now + 100, assert(issue("anna", "k9")).expires)
  end))

  it("replaces one only where that is wanted, and the old key is good for nothing then", with_cluster(function()
    assert(issue("anna", "k9"))
    refused("exists", "called anna", issue("anna", "k8"))
    refused("exists", "this key", issue("berta", "k9"))
    refused("exists", "this key", issue("berta", "k9", { replace = true }))
    assert.is_true(assert(issue("anna", "k8", { replace = true, role = "operator" })).replaced)
    assert.is_nil((state.text("/fingerprint/" .. fingerprint "k9")))
    assert.equal("operator anna", state.text("/fingerprint/" .. fingerprint "k8"))
    -- The same key again, for something else.
    assert(issue("anna", "k8", { replace = true }))
    assert.equal("reader anna", state.text("/fingerprint/" .. fingerprint "k8"))
    assert.equal(1, #certs.list())
    -- An expired one is in nobody's way.
    fake.now = fake.now + 1001
    assert(issue("anna", "k7"))
    assert.is_nil((state.text("/fingerprint/" .. fingerprint "k8")))
  end))

  it("takes no node's key", with_cluster(function()
    local own = require("symphony.cluster.identity").tls.key
    refused("exists", "this key", issue("anna", "", { csr = crypto.csr(own, "x") }))
  end))

  it("revokes", with_cluster(function()
    assert(issue("anna", "k9"))
    assert.same({ name = "anna", role = "reader" }, certs.revoke("anna"))
    assert.is_nil(state.get("/client/anna"))
    assert.is_nil((state.text("/fingerprint/" .. fingerprint "k9")))
    refused("not_found", "anna", certs.revoke("anna"))
    assert(issue("anna", "k9"))
  end))

  it("lists them with the CA that they are of", with_cluster(function()
    assert(issue("berta", "k8"))
    assert(issue("anna", "k9"))
    local record, kv = state.get("/client/anna")
    record.issuer = "0011"
    fake.apply { ops = { state.put(kv.key, record) } }
    local rows = certs.list()
    assert.same({ "anna", false, "berta", true },
      { rows[1].name, rows[1].current_ca, rows[2].name, rows[2].current_ca })
    assert.is_nil(rows[1].certificate)
  end))

  it("keeps no more than a thousand, and forgets old ones", with_cluster(function()
    certs.CLIENTS_MAX = 3
    for i = 1, 3 do assert(issue("c" .. i, "k" .. i .. "x")) end
    refused("too_big", "3 client certificates", issue("c4", "k4x"))
    assert(issue("c3", "k4x", { replace = true }))
    certs.CLIENTS_MAX = 1000
    certs.sweep()
    assert.equal(3, #certs.list())
    fake.now = fake.now + 1000 + 86401
    assert(issue("young", "k9"))
    certs.sweep()
    local rows = certs.list()
    assert.same({ 1, "young" }, { #rows, rows[1].name })
    assert.is_nil((state.text("/fingerprint/" .. fingerprint "k1x")))
  end))

  it("tells of what it does", with_cluster(function()
    assert(issue("anna", "k9"))
    assert(certs.revoke("anna"))
    local told = {}
    for i, event in ipairs(require("symphony.cluster.events").list { kind = "cert" }) do
      told[i] = event.kind .. ": " .. event.message
    end
    assert.same({ "cert.issued: a certificate as reader for anna", "cert.revoked: the certificate of anna is revoked" },
      told)
  end))

  it("has routes for managers only", with_cluster(function()
    router.reset()
    require("symphony.api.routes_certs").routes(router)
    local function ask(method, path, body, peer)
      return fake.ask(method, path, { body = body and require("symphony.json").encode(body), peer = peer })
    end
    local req = ask("POST", "/v1/certs", { name = "anna", role = "reader", csr = csr "k9" })
    assert.equal(200, req.status, req.answer)
    local answer = req:json()
    assert.same({ "anna", { "127.0.0.1:27242" }, fake.now + certs.DEFAULT_TTL },
      { answer.name, answer.managers, answer.expires })
    assert.equal(409, ask("POST", "/v1/certs", { name = "anna", role = "reader", csr = csr "k8" }).status)
    assert.equal(400, ask("POST", "/v1/certs", {}).status)
    assert.equal("anna", ask("GET", "/v1/certs"):json()[1].name)
    fake.apply { ops = { state.put("/client/o", { name = "o", role = "operator", fingerprint = "f" }) } }
    local peer = { tls = true, cn = "o", ou = "operator", fingerprint = "f" }
    for _, route in ipairs { { "POST", "/v1/certs" }, { "GET", "/v1/certs" }, { "DELETE", "/v1/certs/anna" } } do
      assert.equal(403, ask(route[1], route[2], route[1] == "POST" and {} or nil, peer).status)
    end
    fake.apply { ops = { state.delete("/client/o") } }
    assert.equal("anna", ask("DELETE", "/v1/certs/anna"):json().name)
    assert.equal(404, ask("DELETE", "/v1/certs/anna").status)
  end))
end)
