local fake = require "spec.unit.cluster_fake"
local crypto = require "sym.crypto"
local identity = require "symphony.cluster.identity"
local pki = require "symphony.cluster.pki"
local rotation = require "symphony.cluster.ca_rotation"
local state = require "symphony.cluster.state"
local tokens = require "symphony.cluster.tokens"
local trust = require "symphony.cluster.trust"

local NOW = 1700000000

describe("trust.plan", function()
  local function plan(phase, nodes, more)
    local view = { cluster = { trust = 5, sign = "new", rotation = phase and { phase = phase } or nil }, nodes = nodes }
    for k, v in pairs(more or {}) do view[k] = v end
    return trust.plan(view, NOW)
  end
  local function names(list)
    local out = {}
    for i, n in ipairs(list) do out[i] = n.name end
    return table.concat(out, " ")
  end

  it("does nothing when no change is under way", function()
    assert.equal("none", plan(nil, { { name = "a" } }).step)
    assert.equal("none", trust.plan({ nodes = {} }, NOW).step)
  end)

  it("lets the new CA sign when every node trusts it", function()
    local a, b, w = { node_id = "a", name = "a", trust = 5 }, { node_id = "b", name = "b", trust = 4 },
      { node_id = "w", name = "w", role = "worker" }
    local p = plan("both", { a, b, w })
    assert.same({ "wait", "b w" }, { p.step, names(p.waiting) })
    assert.truthy(p.waiting[1].why:find("does not trust", 1, true))
    b.trust = 6
    p = plan("both", { a, b, w }, { statuses = { w = { trust = 4, status = "down" } } })
    assert.same({ "wait", "w", "down" }, { p.step, names(p.waiting), p.waiting[1].status })
    assert.equal("sign", plan("both", { a, b, w }, { statuses = { w = { trust = 5 } } }).step)
    -- What somebody says who is on its way out is not waited for.
    assert.equal("sign", plan("both", { a, { node_id = "x", name = "x", removing = {} } }).step)
  end)

  it("drops the old CA when every node uses a certificate of the new one", function()
    local a, b = { node_id = "a", name = "a", trust = 5, issuer = "new" }, { node_id = "b", name = "b", trust = 5,
      issuer = "old" }
    local p = plan("renew", { a, b })
    assert.same({ "wait", "b" }, { p.step, names(p.waiting) })
    assert.truthy(p.waiting[1].why:find("from the old CA", 1, true))
    -- It has been signed, but does the node have it?
    b.issuer, b.trust = "new", 4
    p = plan("renew", { a, b })
    assert.same({ "wait", "b" }, { p.step, names(p.waiting) })
    assert.truthy(p.waiting[1].why:find("has not said", 1, true))
    b.trust = 5
    assert.equal("drop", plan("renew", { a, b }).step)
  end)

  it("makes void before that what pins the old CA, or is signed by it", function()
    local a = { { node_id = "a", name = "a", trust = 5, issuer = "new" } }
    local p = plan("renew", a, { tokens = { { ca = "old" }, { ca = "new" }, {} } })
    assert.same({ "void", { 1, 3 }, {} }, { p.step, p.tokens, p.clients })
    local clients = { { name = "x", issuer = "new", expires = NOW + 1 },
      { name = "y", issuer = "old", expires = NOW + 1 } }
    p = plan("renew", a, { clients = clients })
    assert.same({ "void", { 2 } }, { p.step, p.clients })
    assert.equal("drop", plan("renew", a, { tokens = { { ca = "new" } }, clients = { clients[1] } }).step)
  end)

  it("waits for client certificates where that is wanted", function()
    local view = { cluster = { trust = 5, sign = "new", rotation = { phase = "renew", wait_clients = true } },
      nodes = {}, clients = { { name = "y", issuer = "old", expires = NOW + 1 } }, tokens = { {} } }
    assert.equal("wait", trust.plan(view, NOW).step)
    assert.equal("void", trust.plan(view, NOW + 1).step) -- it has expired
    view.clients[1].issuer = "new"
    assert.equal("void", trust.plan(view, NOW).step)
  end)

  it("tells of one node how far it is", function()
    local cluster = { trust = 5, sign = "new" }
    assert.is_nil(trust.progress({}, cluster))
    assert.is_nil(trust.progress({}, nil))
    cluster.rotation = { phase = "both" }
    assert.equal("old", trust.progress({ trust = 4 }, cluster))
    assert.equal("both", trust.progress({ trust = 5 }, cluster))
    assert.equal("both", trust.progress({}, cluster, { trust = 5 }))
    cluster.rotation.phase = "renew"
    assert.equal("both", trust.progress({ trust = 4, issuer = "new" }, cluster))
    assert.equal("both", trust.progress({ trust = 5, issuer = "old" }, cluster))
    assert.equal("new", trust.progress({ trust = 5, issuer = "new" }, cluster))
  end)
end)

describe("the names in a certificate", function()
  it("are those under which a manager is found", function()
    local function names(text) return table.concat(pki.names(text, "0id"), " ") end
    assert.equal("10.0.0.5 0id", names "10.0.0.5:27242")
    assert.equal("fd00::5 0id", names "[fd00::5%eth0]:27242")
    assert.equal("a.example.org 0id", names "a.example.org.:1")
    assert.equal("127.0.0.1 0id localhost", names "127.0.0.1:1")
    assert.equal("localhost 0id 127.0.0.1", names "localhost:1")
    assert.equal("::1 0id 127.0.0.1 localhost", names "[::1]:1")
    assert.equal("0id", names "")
    assert.equal("0id", names(nil))
  end)

  it("are compared by what they mean", function()
    assert.is_true(pki.same_names({ "a", "10.0.0.1" }, { "10.0.0.1", "A" }))
    assert.is_true(pki.same_names({ "fd00:0::5" }, { "fd00::5" }))
    assert.is_true(pki.same_names({}, {}))
    assert.is_false(pki.same_names({ "a" }, { "b" }))
    assert.is_false(pki.same_names({ "a" }, { "a", "b" }))
    assert.is_false(pki.same_names({ "a", "b" }, { "a" }))
  end)
end)

describe("a change of the CA", function()
  local made
  local function with_cluster(body)
    return fake.task(function()
      fake.reset()
      made = fake.make()
      body()
    end)
  end
  local function adopt()
    local admit = require "symphony.cluster.admit"
    return trust.adopt(state.cluster(), { renew = admit.renew })
  end
  local function digests(bundle)
    local out = {}
    for i, pem in ipairs(crypto.cert_split(bundle)) do out[i] = crypto.cert_info(pem).digest end
    return out
  end
  local function own(name) return fake.files["/dir/tls/" .. name] end

  it("begins with generation 1", with_cluster(function()
    local cluster = state.cluster()
    assert.equal(1, cluster.trust)
    assert.equal(crypto.cert_info(cluster.ca).digest, cluster.sign)
    local n = state.get("/node/" .. made.node_id)
    assert.same({ cluster.sign, 1 }, { n.issuer, n.trust })
    assert.equal("idle", rotation.status().phase)
    -- One that was made before there was such a thing is taken for the same.
    local before = { ca = cluster.ca }
    assert.same({ 1, cluster.sign }, { trust.generation(before), pki.signer(before) })
  end))

  it("goes step by step to its end, on a manager alone", with_cluster(function()
    local old = state.cluster()
    local old_key = state.get("/secret/ca").key
    assert(tokens.create { role = "worker", ttl = 100 })
    fake.apply { ops = { state.put("/client/x", { name = "x", role = "reader", fingerprint = "ff", issuer = old.sign,
      expires = fake.now + 100 }), state.put("/fingerprint/ff", "reader x") } }
    assert.is_true(rotation.begin({}).started)
    local cluster, secret = state.cluster(), state.get("/secret/ca")
    assert.same({ 2, old.sign, "both" }, { cluster.trust, cluster.sign, cluster.rotation.phase })
    assert.same({ old.sign, cluster.rotation.new }, digests(cluster.ca))
    assert.equal(old_key, secret.key)
    assert.truthy(crypto.cert_check_issuer(cluster.bridge, old.ca))
    assert.is_false(rotation.begin({}).started)
    local s = rotation.status()
    assert.same({ "both", 3, { "x" } }, { s.phase, s.tokens, s.clients })

    -- Nothing goes on before this node has acknowledged.
    rotation.turn()
    assert.equal("both", state.cluster().rotation.phase)
    assert.is_true(adopt())
    assert.same({ old.sign, cluster.rotation.new }, digests(own "ca.crt"))
    assert.same({ 2, 2 }, { identity.me.trust, state.get("/node/" .. made.node_id).trust })
    assert.equal(old.sign, pki.issuer_of(own "node.crt", own "ca.crt"))

    rotation.turn()
    local signing = state.cluster()
    assert.same({ 3, cluster.rotation.new, "renew" }, { signing.trust, signing.sign, signing.rotation.phase })
    assert.same({ key = secret.next.key }, state.get("/secret/ca"))
    rotation.turn()
    assert.equal("renew", state.cluster().rotation.phase)
    local fresh = assert(tokens.create { role = "worker", ttl = 100 })
    assert.is_true(adopt())
    assert.equal(signing.sign, pki.issuer_of(own "node.crt", own "ca.crt"))
    assert.equal(2, #crypto.cert_split(own "node.crt")) -- with what the old CA says of the new one
    assert.equal(signing.sign, state.get("/node/" .. made.node_id).issuer)

    rotation.turn() -- tokens and clients
    assert.equal("renew", state.cluster().rotation.phase)
    local left = tokens.list()
    assert.same({ 1, fresh.id }, { #left, left[1].id })
    assert.is_nil(state.get("/client/x"))
    assert.is_nil((state.text("/fingerprint/ff")))
    rotation.turn()
    local done = state.cluster()
    assert.same({ 4, signing.sign }, { done.trust, done.sign })
    assert.is_nil(done.rotation)
    assert.is_nil(done.bridge)
    assert.same({ signing.sign }, digests(done.ca))
    assert.is_true(adopt())
    assert.same({ signing.sign }, digests(own "ca.crt"))
    assert.equal(1, #crypto.cert_split(own "node.crt"))
    assert.equal(4, identity.me.trust)
    assert.truthy(identity.load_tls(identity.me))
    assert.equal("idle", rotation.status().phase)
  end))

  it("is possible in a cluster that was made before there was such a thing", with_cluster(function()
    local function rewrite(key, names)
      local record, kv = state.get(key)
      for _, name in ipairs(names) do record[name] = nil end
      fake.apply { ops = { state.put(kv.key, record) } }
    end
    local old = state.cluster().sign
    rewrite("/cluster", { "trust", "sign" })
    rewrite("/node/" .. made.node_id, { "trust", "issuer" })
    for _, row in ipairs(state.list("/token/")) do rewrite(row.key, { "ca" }) end
    identity.me.trust = nil
    assert.is_true(adopt())
    assert.same({ 1, 1 }, { identity.me.trust, state.get("/node/" .. made.node_id).trust })
    assert.truthy(tokens.create { role = "worker", ttl = 100 })
    assert.is_true(rotation.begin({}).started)
    assert.same({ 2, old }, { state.cluster().trust, state.cluster().sign })
    for _ = 1, 4 do
      adopt()
      rotation.turn()
    end
    local done = state.cluster()
    assert.equal(4, done.trust)
    assert.are_not.equal(old, done.sign)
    assert.is_nil(done.rotation)
    assert.same({}, tokens.list())
  end))

  it("makes many tokens and clients void, some at a time", with_cluster(function()
    for i = 1, 100 do
      assert(tokens.create { role = "worker", ttl = 100 })
      fake.apply { ops = { state.put("/client/c" .. i, { name = "c" .. i, role = "reader", fingerprint = "ff" .. i,
        issuer = "old", expires = fake.now + 100 }), state.put("/fingerprint/ff" .. i, "reader c" .. i) } }
    end
    rotation.begin {}
    for _ = 1, 6 do
      adopt()
      rotation.turn()
    end
    assert.is_nil(state.cluster().rotation)
    assert.same({}, tokens.list())
    assert.equal(0, #state.list("/client/"))
    assert.equal(1, #state.list_raw("/fingerprint/"))
  end))

  it("goes no further on who does not lead", with_cluster(function()
    rotation.begin {}
    adopt()
    fake.status.state = "follower"
    rotation.turn()
    assert.equal("both", state.cluster().rotation.phase)
  end))

  it("is told of in the status and in a metric when it waits for long", with_cluster(function()
    local members, metric = require "symphony.cluster.members", require "symphony.metrics.ca"
    local function said()
      local warnings = assert(members.overview()).warnings
      return table.concat(warnings, "\n"):match("the change of the CA[^\n]*")
    end
    local function waiting()
      local family = (metric.families() or {})[1]
      return family and family.samples[1].value
    end
    for i = 1, 7 do
      fake.apply { ops = { state.put("/node/0w" .. i, { node_id = "0w" .. i, name = "w" .. i, role = "worker" }) } }
    end
    rotation.turn()
    assert.is_nil(waiting())
    rotation.begin {}
    adopt()
    rotation.turn()
    assert.equal(7, waiting())
    fake.now = fake.now + 3599
    assert.is_nil(said())
    fake.now = fake.now + 1
    assert.truthy(said():find("waited since 2023-11-14 22:13:20 UTC for 7 nodes (w1, w2, w3, w4, w5, ...)", 1, true),
      said())
    -- Who does not lead knows it too, but the metric is there once.
    fake.status.state = "follower"
    rotation.turn()
    assert.is_nil(waiting())
    assert.is_string(said())
    fake.status.state = "leader"
    for i = 1, 7 do fake.apply { ops = { state.delete("/node/0w" .. i) } } end
    assert.is_nil(said())
    for _ = 1, 3 do
      rotation.turn()
      adopt()
    end
    rotation.turn()
    assert.is_nil(state.cluster().rotation)
    assert.is_nil(waiting())
  end))

  it("says which damaged records it passes over", with_cluster(function()
    assert.same({}, rotation.status().damaged)
    fake.apply { ops = { state.put("/node/0w1", "no json"), state.put("/token/x", "7"),
      state.put("/node/0w2", { node_id = "0w2", name = "w2", role = "worker" }) } }
    rotation.begin {}
    adopt()
    local function said()
      local n, text = 0, nil
      for _, line in ipairs(fake.logged) do
        if line:find("damaged", 1, true) then n, text = n + 1, line end
      end
      return n, text
    end
    local before = said()
    for _ = 1, 3 do rotation.turn() end
    local n, text = said()
    assert.equal(before + 1, n)
    assert.truthy(text:find("/node/0w1, /token/x", 1, true), text)
    assert.same({ "/node/0w1", "/token/x" }, rotation.status().damaged)
    local command
    for _, leaf in ipairs(require("symphony.cli.commands.cluster").commands) do
      if leaf.name == "rotate-ca" then command = leaf end
    end
    local data, how = command.run { args = { status = true }, confirm = function() end, note = function() end }
    assert.truthy(how.text(data):find("Damaged records in the state, passed over with what they were of: /node/0w1, "
      .. "/token/x", 1, true), how.text(data))
    -- Others, and the same after a while in which there were none, are said again.
    fake.apply { ops = { state.delete("/token/x") } }
    rotation.turn()
    rotation.turn()
    assert.equal(before + 2, (said()))
  end))

  it("takes no old CA back from a state that is behind", with_cluster(function()
    local before = state.cluster()
    rotation.begin {}
    adopt()
    local now = own "ca.crt"
    assert.is_true(trust.adopt(before, { renew = function() error("not wanted") end }))
    assert.equal(now, own "ca.crt")
    assert.equal(2, identity.me.trust)
  end))

  it("is not acknowledged before it is on the disk and in use", with_cluster(function()
    rotation.begin {}
    fake.write_fails = true
    local ok, err = adopt()
    assert.is_nil(ok)
    assert.equal("no_space", err.code)
    assert.equal(1, state.get("/node/" .. made.node_id).trust)
    assert.are_not.equal(2, identity.me.trust)
    fake.write_fails = nil
    local node = require "sym.node"
    local set_tls = node.set_tls
    node.set_tls = function() return nil, { code = "closed", message = "stopping" } end
    ok, err = adopt()
    node.set_tls = set_tls
    assert.same({ nil, "closed" }, { ok, err.code })
    assert.equal(1, state.get("/node/" .. made.node_id).trust)
    assert.is_true(adopt())
    assert.equal(2, state.get("/node/" .. made.node_id).trust)
  end))

  it("asks again when the renewal fails", with_cluster(function()
    rotation.begin {}
    adopt()
    rotation.turn()
    local asked = 0
    local ok, err = trust.adopt(state.cluster(), { renew = function(csr)
      asked = asked + 1
      assert.equal(identity.tls.key:fingerprint(), (crypto.csr_check(csr)))
      return nil, { code = "no_quorum", message = "alone" }
    end })
    assert.same({ nil, "no_quorum", 1 }, { ok, err.code, asked })
    assert.equal(2, state.get("/node/" .. made.node_id).trust)
    assert.is_true(adopt())
    assert.equal(3, state.get("/node/" .. made.node_id).trust)
  end))

  it("puts no certificate onto the disk with which this node could not start again", with_cluster(function()
    local key, ca = pki.load_ca()
    local me, before = identity.me, own "node.crt"
    local n = { node_id = me.node_id, role = me.role, raft_node_id = me.raft_node_id, remote_address = "h:1" }
    local function renewed(csr, fields, cluster_id)
      local of = {}
      for k, v in pairs(n) do of[k] = v end
      for k, v in pairs(fields) do of[k] = v end
      local cert = pki.sign(key, ca, csr, of, cluster_id or me.cluster_id, fake.now)
      return trust.renew(function() return { certificate = cert, ca = ca } end, state.cluster())
    end
    local mine = crypto.csr(identity.tls.key, me.node_id)
    for _, wrong in ipairs { { mine, { node_id = "other" } }, { mine, { raft_node_id = 77 } },
      { mine, { role = "worker" } }, { mine, {}, "another" },
      { crypto.csr(crypto.key_generate(), me.node_id), {} } } do
      local ok, err = renewed(table.unpack(wrong, 1, 3))
      assert.is_nil(ok)
      assert.is_string(err.message)
      assert.equal(before, own "node.crt")
    end
    assert.is_true(renewed(mine, {}))
    assert.are_not.equal(before, own "node.crt")
    assert(identity.load_tls(me))
  end))

  it("is told by a worker's own way", with_cluster(function()
    local told = {}
    trust.set_reporter(function(generation)
      told[#told + 1] = generation
      return true
    end)
    rotation.begin {}
    assert.is_true(adopt())
    trust.set_reporter(nil)
    assert.same({ 2 }, told)
    assert.equal(1, state.get("/node/" .. made.node_id).trust)
  end))

  it("keeps to the wish for clients, which may change", with_cluster(function()
    rotation.begin { wait_clients = true }
    assert.is_true(state.cluster().rotation.wait_clients)
    assert.is_false(rotation.begin({}).started)
    assert.is_nil(state.cluster().rotation.wait_clients)
    assert.equal(2, state.cluster().trust)
  end))

  it("lets tokens of both CAs in meanwhile, by the CA that a request was made for", with_cluster(function()
    local admit = require "symphony.cluster.admit"
    local statement = require "symphony.cluster.statement"
    local function ask(name, token, digest)
      local csr = crypto.csr({ name = name }, statement.make(crypto.unhex(digest), fake.now))
      local addresses = { remote = "10.0.0.9:2", gossip = "10.0.0.9:3" }
      return admit.serve(assert(admit.check { role = "worker", csr = csr, name = name, addresses = addresses,
        token = token }), "10.0.0.9")
    end
    local old = state.cluster().sign
    rotation.begin {}
    adopt()
    rotation.turn()
    local new = state.cluster().sign
    local fresh = assert(tokens.create { role = "worker", ttl = 100 }).token
    assert.equal(200, (ask("j1", made.tokens.worker, old)))
    local status, w = ask("j2", fresh, new)
    assert.equal(200, status)
    assert.same({ new, old }, digests(w.ca))
    assert.equal(new, state.get("/node/" .. w.node_id).issuer)
    assert.equal(3, state.get("/node/" .. w.node_id).trust)
    local _, err = ask("j3", fresh, ("00"):rep(32))
    assert.equal("denied", err.code)
  end))

  it("signs nothing by a CA that has been replaced meanwhile", with_cluster(function()
    rotation.begin {}
    adopt()
    local admit, switched = require "symphony.cluster.admit", false
    -- While a certificate is being made the leader goes one step on.
    fake.before_submit = function()
      fake.before_submit = nil
      switched = true
      local cluster, secret = state.cluster(), state.get("/secret/ca")
      trust.switch(cluster, secret, fake.now)
      fake.apply { ops = { state.put("/cluster", cluster), state.put("/secret/ca", secret) } }
    end
    local fresh = assert(admit.renew(crypto.csr(identity.tls.key, made.node_id)))
    assert.is_true(switched)
    local cluster = state.cluster()
    assert.equal(cluster.sign, pki.issuer_of(fresh.certificate, cluster.ca))
    assert.equal(cluster.sign, state.get("/node/" .. made.node_id).issuer)
  end))

  it("tells of each of its steps", with_cluster(function()
    local kinds = {}
    rotation.begin {}
    for _ = 1, 3 do
      adopt()
      rotation.turn()
    end
    for _, event in ipairs(require("symphony.cluster.events").list { kind = "ca" }) do
      kinds[#kinds + 1] = event.kind
    end
    assert.same({ "ca.started", "ca.signs", "ca.void", "ca.done" }, kinds)
  end))
end)
