local fake = require "spec.unit.cluster_fake"
local router = require "symphony.api.router"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"
local token = require "symphony.cluster.token"
local tokens = require "symphony.cluster.tokens"

describe("POST /v1/join", function()
  local made, clock, real, serial

  -- A request with the key of the next machine. @fields: token, role, raw (the whole body). status, code of the error.
  local function ask(from, fields)
    serial = serial + 1
    fields = fields or {}
    local at = ("10.9.%d.%d"):format(serial // 250, serial % 250)
    local body = fields.raw or require("symphony.json").encode { role = fields.role or "worker",
      csr = fake.csr("m" .. serial), name = "host", token = fields.token,
      addresses = { raft = at .. ":1", remote = at .. ":2", gossip = at .. ":3" } }
    local req = fake.ask("POST", "/v1/join", { body = body, peer = { tls = true, addr = from } })
    local answer = req:json()
    return req.status, answer.error and answer.error.code, answer.error
  end

  local function bogus() return token.generate(require("sym.crypto").hex(("c"):rep(32))) end

  -- Asks so often with a bogus token that it is told to wait; returns how often it was heard.
  local function guess(from, most)
    for i = 1, most do
      local status, code = ask(from, { token = bogus() })
      if code == "busy" then return i - 1 end
      assert.same({ 403, "denied" }, { status, code })
    end
    error(from .. " is never told to wait")
  end

  before_each(function()
    fake.reset()
    router.reset()
    require("symphony.api.routes_join").routes(router)
    serial, clock, real = 0, 1000000, sys.mono_ms
    sys.mono_ms = function() return clock end
  end)
  after_each(function() sys.mono_ms = real end)

  local function with_cluster(fn)
    return fake.task(function()
      made = fake.make { token_ttl = 3600 }
      fn()
    end)
  end

  it("with bogus tokens is heard now and then only, and costs no read of the quorum otherwise", with_cluster(function()
    assert.equal(20, guess("192.0.2.1", 50))
    local before = fake.reads
    local status, code, err = ask("192.0.2.1", { token = bogus() })
    assert.same({ 503, "busy" }, { status, code })
    assert.truthy(err.hint:find("wait", 1, true))
    assert.equal("busy", select(2, ask("192.0.2.1", { raw = "{}" })))
    assert.equal(before, fake.reads)
    -- Others are not concerned.
    assert.equal("denied", select(2, ask("192.0.2.2", { token = bogus() })))
    -- After a while it is heard again, and not more often than the time allows.
    clock = clock + 3100
    assert.equal(1, guess("192.0.2.1", 5))
    clock = clock + 3600 * 1000
    assert.equal(20, guess("192.0.2.1", 50))
  end))

  it("counts what is no token, or one of another role, or used up, alike", with_cluster(function()
    local once = assert(tokens.create { role = "worker", ttl = 100, uses = 1 }).token
    assert.equal(200, (ask("192.0.2.1", { token = once })))
    local kinds = { { { token = once }, "denied" }, { { token = made.tokens.manager }, "denied" },
      { { token = "hello" }, "invalid" }, { { raw = '{"role": "king"}' }, "invalid" } }
    for i = 0, 19 do
      local kind = kinds[i % 4 + 1]
      assert.equal(kind[2], select(2, ask("192.0.2.1", kind[1])))
    end
    for _, kind in ipairs(kinds) do assert.equal("busy", select(2, ask("192.0.2.1", kind[1]))) end
  end))

  it("with a good token is served at once, many at a time and beside those who guess", with_cluster(function()
    for _ = 1, 60 do assert.equal(200, (ask("192.0.2.1", { token = made.tokens.worker }))) end
    guess("192.0.2.1", 50)
    for _ = 1, 5 do assert.equal(200, (ask("192.0.2.1", { token = made.tokens.worker }))) end
    assert.equal("busy", select(2, ask("192.0.2.1", { token = bogus() })))
  end))

  it("takes the addresses of one IPv6 network for one", with_cluster(function()
    for i = 1, 20 do ask(("2001:db8:0:1::%x"):format(i), { token = bogus() }) end
    assert.equal("busy", select(2, ask("2001:db8:0:1:ffff::1", { token = bogus() })))
    assert.equal("denied", select(2, ask("2001:db8:0:2::1", { token = bogus() })))
  end))

  it("is passed on by a manager that does not lead, and not without end", with_cluster(function()
    fake.status.state = "follower"
    local passed = 0
    package.loaded["symphony.cluster.leader"].forward = function()
      passed = passed + 1
      return 403, { error = { code = "denied", message = "no" } }
    end
    for _ = 1, 200 do assert.equal("denied", select(2, ask("192.0.2.1", { token = bogus() }))) end
    assert.equal("busy", select(2, ask("192.0.2.1", { token = bogus() })))
    assert.equal("busy", select(2, ask("192.0.2.1", { raw = "[" })))
    assert.equal("denied", select(2, ask("192.0.2.1", { token = made.tokens.worker }))) -- as the leader says
    assert.equal("denied", select(2, ask("192.0.2.2", { token = bogus() })))
    assert.equal(202, passed)
  end))

  it("that fails for another reason does not count", with_cluster(function()
    fake.read_error = { code = "no_quorum", message = "no answer" }
    for _ = 1, 40 do assert.equal("no_quorum", select(2, ask("192.0.2.1", { token = made.tokens.worker }))) end
    fake.read_error = nil
    assert.equal(200, (ask("192.0.2.1", { token = made.tokens.worker })))
  end))

  it("without a token may be asked again, but not without end", with_cluster(function()
    assert.equal(202, (ask("192.0.2.1")))
    local body = require("symphony.json").encode { role = "worker", csr = fake.csr("m1"), name = "host",
      addresses = { remote = "10.9.0.1:2", gossip = "10.9.0.1:3" } }
    local n = 0
    repeat
      n = n + 1
      local status, code = ask("192.0.2.1", { raw = body })
    until status ~= 202 or n > 1000 or code
    assert.equal(200, n)
    clock = clock + 1000
    assert.equal(202, (ask("192.0.2.1", { raw = body })))
    assert.equal(1, #state.list_raw("/pending/"))
  end))
end)

describe("POST /v1/renew", function()
  local crypto = require "sym.crypto"
  local clock, real

  before_each(function()
    fake.reset()
    router.reset()
    require("symphony.api.routes_join").routes(router)
    clock, real = 0, sys.mono_ms
    sys.mono_ms = function() return clock end
  end)
  after_each(function() sys.mono_ms = real end)

  -- Node @id, over a connection with the key @name, asks for a certificate for the key @csr. status, code of the error.
  local function renew(id, name, csr, more)
    local peer = { tls = true, addr = "192.0.2.1", cn = id, fingerprint = crypto.csr_check(("CSR %s x"):format(name)) }
    for k, v in pairs(more or {}) do peer[k] = v end
    local req = fake.ask("POST", "/v1/renew", { body = require("symphony.json").encode { csr = csr }, peer = peer,
      headers = more and more.headers })
    local answer = req:json()
    return req.status, answer.error and answer.error.code or answer.certificate
  end

  it("signs for the key of the connection only", fake.task(function()
    local made = fake.make()
    local admit = require "symphony.cluster.admit"
    local ids = {}
    for _, name in ipairs { "a", "b" } do
      ids[name] = select(2, assert(admit.serve(assert(admit.check { role = "worker", csr = fake.csr(name), name = name,
        addresses = { remote = "10.0.0.7:1", gossip = "10.0.0.7:2" }, token = made.tokens.worker })))).node_id
    end
    local before = fake.revision
    for _, more in ipairs { {}, { expired = true }, { headers = { ["symphony-forwarded"] = "1" } } } do
      assert.same({ 403, "denied" }, { renew(ids.a, "a", "CSR b x", more) })
    end
    assert.same({ 400, "invalid" }, { renew(ids.a, "a", "nonsense") })
    assert.same({ 400, "invalid" }, { renew(ids.a, "a", 7) })
    assert.equal(before, fake.revision)
    for _, more in ipairs { {}, { expired = true } } do
      local status, certificate = renew(ids.a, "a", "CSR a x", more)
      assert.equal(200, status)
      assert.equal(ids.a, crypto.cert_info(certificate).cn)
    end
    -- What a manager passes on it has looked at.
    local me = require("symphony.cluster.identity").me.node_id
    local own = state.get("/node/" .. me).fingerprint
    local forwarded = { fingerprint = own, headers = { ["symphony-forwarded"] = "1" } }
    assert.equal(200, (renew(me, "a", "CSR b x", forwarded)))
    forwarded.headers = nil
    assert.same({ 403, "denied" }, { renew(me, "a", "CSR b x", forwarded) })
    -- One node that asks without end costs a few writes.
    before = fake.revision
    for i = 1, 30 do
      local status, code = renew(ids.a, "a", "CSR a x", { expired = true })
      if i > 10 then assert.same({ 503, "busy" }, { status, code }) end
    end
    assert.is_true(fake.revision - before <= 10)
    assert.equal(200, (renew(ids.b, "b", "CSR b x")))
  end))

  -- Workers with these names; their ids by name.
  local function workers(made, ...)
    local admit, ids = require "symphony.cluster.admit", {}
    for i, name in ipairs { ... } do
      ids[name] = select(2, assert(admit.serve(assert(admit.check { role = "worker", csr = fake.csr(name), name = name,
        addresses = { remote = ("10.0.0.%d:1"):format(i), gossip = ("10.0.0.%d:2"):format(i) },
        token = made.tokens.worker })))).node_id
    end
    return ids
  end

  it("is done for one node now and then only, however it asks", fake.task(function()
    local ids = workers(fake.make(), "a", "b")
    local kinds = { { expired = true }, {}, { addr = "192.0.2.9" }, { headers = { ["symphony-forwarded"] = "1",
      ["symphony-node"] = ids.b } } }
    for i = 1, 10 do
      local csr = i % 3 == 0 and "CSR b x" or "CSR a x" -- for another key too
      assert.equal(i % 3 == 0 and 403 or 200, (renew(ids.a, "a", csr, kinds[i % 4 + 1])))
    end
    local before, reads = fake.revision, fake.reads
    for _, more in ipairs(kinds) do assert.same({ 503, "busy" }, { renew(ids.a, "a", "CSR a x", more) }) end
    assert.same({ before, reads }, { fake.revision, fake.reads })
    assert.equal(200, (renew(ids.b, "b", "CSR b x"))) -- others are not concerned
    clock = clock + 31000
    assert.equal(200, (renew(ids.a, "a", "CSR a x")))
    assert.same({ 503, "busy" }, { renew(ids.a, "a", "CSR a x") })
  end))

  it("that managers pass on is counted for the node that asks", fake.task(function()
    local ids = workers(fake.make(), "a", "b")
    local me = require("symphony.cluster.identity").me.node_id
    local own = state.get("/node/" .. me).fingerprint
    local function passed(id, name)
      return renew(me, "x", ("CSR %s x"):format(name), { fingerprint = own, headers = { ["symphony-forwarded"] = "1",
        ["symphony-node"] = id } })
    end
    for _ = 1, 10 do assert.equal(200, (passed(ids.a, "a"))) end
    assert.same({ 503, "busy" }, { passed(ids.a, "a") })
    assert.equal(200, (passed(ids.b, "b")))
    assert.equal(200, (passed(nil, "b"))) -- a manager for itself
  end))

  it("is not passed on without end", fake.task(function()
    local ids = workers(fake.make(), "a")
    fake.status.state = "follower"
    local n = 0
    package.loaded["symphony.cluster.leader"].forward = function()
      n = n + 1
      return 200, { certificate = "C" }
    end
    for _ = 1, 15 do renew(ids.a, "a", "CSR a x", { expired = true }) end
    assert.equal(10, n)
  end))

  it("is looked at before it is passed on", fake.task(function()
    fake.make()
    fake.status.state = "follower"
    local me = require("symphony.cluster.identity").me.node_id
    local own = state.get("/node/" .. me).fingerprint
    assert.same({ 403, "denied" }, { renew(me, "x", "CSR b x", { fingerprint = own }) })
  end))
end)
