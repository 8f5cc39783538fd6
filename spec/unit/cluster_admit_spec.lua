local fake = require "spec.unit.cluster_fake"
local admit = require "symphony.cluster.admit"
local async = require "symphony.async"
local crypto = require "sym.crypto"
local json = require "symphony.json"
local pending = require "symphony.cluster.pending"
local state = require "symphony.cluster.state"
local token = require "symphony.cluster.token"
local tokens = require "symphony.cluster.tokens"

-- Each key on a machine of its own.
local function body(name, fields)
  local host = "10.0.0." .. (name == "j1" and 9 or name:byte(-1))
  local b = { role = "manager", csr = fake.csr(name), name = "host", named = false, version = "1",
    addresses = { raft = host .. ":1", remote = host .. ":2", gossip = host .. ":3" } }
  for k, v in pairs(fields or {}) do b[k] = v end
  return b
end

local function ask(name, fields, from)
  local request, err = admit.check(body(name, fields))
  if not request then return nil, err end
  return admit.serve(request, from or "10.0.0.9")
end

-- The same module as another manager has it, which was the leader a moment ago.
package.loaded["symphony.cluster.admit"] = nil
local other_manager = require "symphony.cluster.admit"
package.loaded["symphony.cluster.admit"] = admit

local function ask_other(name, fields)
  return other_manager.serve(assert(other_manager.check(body(name, fields))), "10.0.0.9")
end

local function count(prefix) return #state.list_raw(prefix) end

local function refused(code, word, status, err)
  assert.is_nil(status)
  assert.equal(code, err.code)
  assert.truthy(err.message:find(word), err.message)
end

describe("admit.check", function()
  it("takes what a joiner sends", function()
    local request = assert(admit.check(body("k")))
    assert.equal("manager", request.role)
    assert.is_nil(request.token)
  end)

  it("refuses everything else", function()
    for _, bad in ipairs { { role = "king" }, { csr = 7 }, { csr = ("x"):rep(5000) }, { name = "a b" }, { name = 7 },
      { addresses = "x" }, { addresses = {} }, { addresses = { raft = "a:1", remote = "b" } }, { version = {} },
      { version = ("x"):rep(65) }, { token = "hello" }, { token = 7 } } do
      local ok, err = admit.check(body("k", bad))
      assert.is_nil(ok)
      assert.equal("invalid", err.code)
    end
    for _, bad in ipairs { 7, "x", json.null } do assert.is_nil(admit.check(bad)) end
  end)

  it("never raises, whatever the fields are", function()
    math.randomseed(5)
    local odd = { 7, 1.5, true, "", ("x"):rep(100000), "\0\255", json.null, {}, { 1 }, { raft = {} },
      { raft = json.null },
      { raft = "a:1", remote = 7 }, ("["):rep(500) }
    local fields = { "role", "csr", "name", "named", "version", "addresses", "token" }
    for _ = 1, 2000 do
      local changed = {}
      for _ = 1, math.random(4) do changed[fields[math.random(#fields)]] = odd[math.random(#odd)] end
      local request, err = admit.check(body("k", changed))
      assert.is_true(request ~= nil or err.code == "invalid")
    end
  end)
end)

describe("admit.pick_name", function()
  local function taken(name) return name == "host" or name == "host-2" end
  it("puts a number behind a name that nobody chose", function()
    assert.equal("other", admit.pick_name("other", false, taken))
    assert.equal("host-3", admit.pick_name("host", false, taken))
    assert.equal(62, #admit.pick_name(("h"):rep(63), false,
      function(name) return #name == 63 and name:sub(-1) == "h" end) + 2)
  end)
  it("says so when somebody chose it", function()
    local name, err = admit.pick_name("host", true, taken)
    assert.is_nil(name)
    assert.equal("exists", err.code)
  end)
end)

describe("admit.serve", function()
  local made, good
  before_each(function()
    fake.reset()
  end)

  local function with_cluster(opts, fn)
    return fake.task(function()
      made = fake.make(opts)
      good = made.tokens.manager
      fn()
    end)
  end
  local plain = { token_ttl = 3600 }

  it("makes a node with a token, in one txn", with_cluster(plain, function()
    local before = fake.revision
    local status, w = ask("j1", { token = good })
    assert.equal(200, status)
    assert.equal(before + 1, fake.revision)
    assert.equal(2, w.raft_node_id)
    assert.equal("host-2", w.name)
    assert.equal(made.cluster_id, w.cluster_id)
    local info = crypto.cert_info(w.certificate)
    assert.same({ w.node_id, "manager", made.cluster_id, true, 2 },
      { info.cn, info.ou, info.o, info.is_server, info.raft_id })
    assert.equal(fake.now - 3600, info.not_before)
    assert.equal(fake.now + 90 * 86400, info.not_after)
    assert.equal(w.node_id, state.text("/raft/2"))
    assert.equal(w.node_id, state.text("/name/host-2"))
    assert.equal("3", state.text("/cluster/next_raft_id"))
    assert.equal(w.node_id, state.text("/fingerprint/" .. crypto.csr_check("CSR j1 x")))
    assert.equal(2, count("/node/"))
    assert.same({ "127.0.0.1:27242", "10.0.0.9:2" }, w.managers)
    assert.equal(1, #w.gossip_keys)
  end))

  it("gives the same key the same node, and uses nothing up", with_cluster(plain, function()
    local once = assert(tokens.create { role = "manager", ttl = 100, uses = 1 }).token
    local _, first = ask("j1", { token = once })
    local before = fake.revision
    local status, again = ask("j1", { token = once })
    assert.equal(200, status)
    assert.equal(before, fake.revision)
    assert.same({ first.node_id, first.raft_node_id, first.certificate }, { again.node_id, again.raft_node_id,
      again.certificate })
    -- Also when the token is used up, expired or gone.
    refused("denied", "used up", ask("j2", { token = once }))
    fake.now = fake.now + 101
    assert.equal(200, (ask("j1", { token = once })))
    tokens.remove(once)
    assert.equal(first.node_id, select(2, ask("j1", { token = once })).node_id)
    assert.equal(first.node_id, select(2, ask("j1")).node_id)
    assert.equal(2, count("/node/"))
  end))

  it("uses a token up once when two come at the same time", with_cluster(plain, function()
    local once = assert(tokens.create { role = "manager", ttl = 100, uses = 1 }).token
    local between
    fake.before_submit = function(txn)
      if not between and #txn.ops > 3 then
        between = true
        assert.equal(200, (ask_other("j1", { token = once })))
      end
    end
    refused("denied", "used up", ask("j2", { token = once }))
    assert.is_true(between)
    assert.equal(2, count("/node/"))
    assert.equal("3", state.text("/cluster/next_raft_id"))
  end))

  it("never makes two nodes of one key, nor two of one name", with_cluster(plain, function()
    local between
    fake.change_error = { code = "busy" } -- it has not come up before it has its answer
    fake.before_submit = function(txn)
      if not between and #txn.ops > 3 then
        between = true
        assert.equal(200, (ask_other("j1", { token = good })))
      end
    end
    local _, w = ask("j1", { token = good })
    assert.equal(2, w.raft_node_id)
    assert.equal(2, count("/node/"))
    between = nil
    local _, a = ask("j3", { token = good, name = "n" })
    local _, b = ask("j4", { token = good, name = "n" })
    assert.same({ "n", "n-2" }, { a.name, b.name })
    refused("exists", "called n", ask("j5", { token = good, name = "n", named = true }))
  end))

  it("says what is wrong with a token", with_cluster(plain, function()
    refused("denied", "worker", ask("j1", { token = made.tokens.worker }))
    refused("denied", "manager", ask("j1", { token = good, role = "worker" }))
    refused("denied", "does not know", ask("j1", { token = token.make(crypto.sha256("x"), crypto.random(16)) }))
    local elsewhere = assert(tokens.create { role = "manager", ttl = 100, cidrs = { "192.0.2.0/24" } }).token
    refused("denied", "10.0.0.9", ask("j1", { token = elsewhere }))
    assert.equal(200, (ask("j1", { token = elsewhere }, "192.0.2.7")))
    fake.now = fake.now + 3601
    refused("expired", "expired", ask("j2", { token = good }))
    refused("invalid", "damaged", ask("j2", { csr = "nonsense" }))
  end))

  it("stamps the token's labels on the node, and gives a worker no raft id", with_cluster(plain, function()
    local labelled = assert(tokens.create { role = "worker", ttl = 100, labels = { zone = "a" } }).token
    local _, w = ask("j1", { token = labelled, role = "worker", services = { "block" },
      addresses = { remote = "10.0.0.7:1", gossip = "10.0.0.7:2" } })
    assert.is_nil(w.raft_node_id)
    assert.same({ "block" }, state.get("/node/" .. w.node_id).services)
    assert.same({ key = crypto.base64(crypto.cert_info(w.certificate).public), role = "worker" },
      state.get("/peer/" .. w.node_id))
    assert.same({ zone = "a" }, state.get("/node/" .. w.node_id).labels)
    assert.is_nil(state.get("/node/" .. w.node_id).raft_address)
    assert.is_true(crypto.cert_info(w.certificate).is_server)
    assert.is_nil(crypto.cert_info(w.certificate).raft_id)
    -- Names for clients of others, by none of which a manager is found.
    assert.same({ w.node_id, "worker.symphony.invalid" }, crypto.cert_hosts(w.certificate))
  end))

  it("puts into a manager's certificate where it is found", with_cluster(plain, function()
    local _, w = ask("j1", { token = good })
    assert.same({ "10.0.0.9", w.node_id }, crypto.cert_hosts(w.certificate))
  end))

  it("refuses the key of a client certificate", with_cluster(plain, function()
    fake.apply { ops = { state.put("/fingerprint/" .. crypto.csr_check(fake.csr("j1")), "reader grafana") } }
    refused("exists", "client certificate grafana", ask("j1", { token = good }))
  end))

  it("signs anew, for a join said again, what a CA that is gone has signed", with_cluster(plain, function()
    local _, w = ask("j1", { token = good })
    local n, kv = state.get("/node/" .. w.node_id)
    assert.equal(state.cluster().sign, n.issuer)
    assert.equal(state.cluster().trust, n.trust)
    assert.equal(w.certificate, select(2, ask("j1", { token = good })).certificate)
    n.issuer = "0011"
    fake.apply { ops = { state.put(kv.key, n) } }
    local _, again = ask("j1", { token = good })
    assert.are_not.equal(w.certificate, again.certificate)
    assert.equal(w.node_id, again.node_id)
    assert.equal(state.cluster().sign, state.get("/node/" .. w.node_id).issuer)
    assert.equal(again.certificate, state.get("/node/" .. w.node_id).certificate)
  end))

  it("refuses a key that is another node's already", with_cluster(plain, function()
    ask("j1", { token = good })
    refused("exists", "manager host%-2", ask("j1", { token = made.tokens.worker, role = "worker" }))
    local kv = select(2, state.get("/node/" .. state.text("/raft/2")))
    local n = json.decode(kv.value)
    n.removing = { at = 1 }
    fake.apply { ops = { state.put(kv.key, n) } }
    refused("conflict", "being removed", ask("j1", { token = good }))
  end))

  it("refuses the raft address of another member before anything is used up", with_cluster(plain, function()
    local _, w = ask("j1", { token = good })
    local same = { raft = "10.0.0.9:1", remote = "10.0.0.9:2", gossip = "10.0.0.9:3" }
    local once = assert(tokens.create { role = "manager", ttl = 100, uses = 1 }).token
    local status, err = ask("j2", { token = once, addresses = same })
    refused("exists", "raft id 2", status, err)
    assert.truthy(err.hint:find("manager remove 2", 1, true))
    refused("exists", "raft id 2", ask("j2", { addresses = same }))
    fake.status.servers[2] = { id = 2, role = "voter", up = true, address = "10.0.0.9:1" }
    status, err = ask("j2", { token = once, addresses = same })
    refused("exists", "raft id 2", status, err)
    assert.truthy(err.hint:find("of its own", 1, true))
    local kv = select(2, state.get("/node/" .. w.node_id))
    local n = json.decode(kv.value)
    n.removing = { at = 1 }
    fake.apply { ops = { state.put(kv.key, n) } }
    refused("conflict", "being removed", ask("j2", { token = once, addresses = same }))
    -- A request that waits is looked at again when it is approved.
    _, w = ask("j3")
    n.removing, n.raft_address = nil, "10.0.0.51:1"
    fake.apply { ops = { state.put(kv.key, n) } }
    refused("exists", "raft id 2", admit.approve(w.pending.id, { fingerprint = w.pending.fingerprint }))
    n.raft_address = "10.0.0.9:1"
    fake.apply { ops = { state.put(kv.key, n) } }
    assert.equal(200, (ask("j2", { token = once })))
  end))

  it("never lets an empty log vote under an id that has voted", with_cluster(plain, function()
    local _, w = ask("j1", { token = good })
    fake.status.servers[2] = { id = 2, role = "spare", up = false, address = "10.0.0.9:1" }
    assert.equal(2, select(2, ask("j1")).raft_node_id)
    fake.status.servers[2].role = "voter"
    fake.status.servers[2].up = true
    refused("exists", "running", ask("j1", { token = good }))
    fake.status.servers[2].up = false
    local _, again = ask("j1", { token = good })
    assert.equal(w.node_id, again.node_id)
    assert.equal(3, again.raft_node_id)
    -- And its certificate is for the new one.
    assert.equal(3, crypto.cert_info(again.certificate).raft_id)
    assert.equal(again.certificate, state.get("/node/" .. w.node_id).certificate)
    assert.equal(3, crypto.cert_info(assert(admit.renew("CSR j1 x")).certificate).raft_id)
    assert.is_nil(state.text("/raft/2"))
    assert.equal(w.node_id, state.text("/raft/3"))
    -- Another address cannot be told to raft for the same id.
    fake.status.servers[2] = { id = 3, role = "spare", up = false, address = "10.0.0.9:1" }
    assert.equal(4, select(2, ask("j1", { token = good, addresses = { raft = "10.0.0.8:1", remote = "10.0.0.8:2",
      gossip = "h:3" } })).raft_node_id)
    assert.equal("10.0.0.8:1", state.get("/node/" .. w.node_id).raft_address)
  end))

  -- Its first request, seen by somebody else, or a fresh one of a stolen key.
  it("takes no member's raft id away for a request without a good token", with_cluster(plain, function()
    local seen = fake.csr("j1")
    local once = assert(tokens.create { role = "manager", ttl = 100, uses = 1 }).token
    local _, w = ask("j1", { token = once })
    fake.status.servers[2] = { id = 2, role = "voter", up = false, address = "10.0.0.9:1" }
    local elsewhere = { raft = "10.6.6.6:1", remote = "10.6.6.6:2", gossip = "10.6.6.6:3" }
    local before = fake.revision
    local function hinted(status, err)
      assert.truthy(err.hint:find("symphony token create", 1, true), err.hint)
      assert.truthy(err.hint:find(w.name, 1, true), err.hint)
      return status, err
    end
    refused("denied", "used up", hinted(ask("j1", { csr = seen, addresses = elsewhere, token = once })))
    fake.now = fake.now + 3601
    refused("denied", "here it is", ask("j1", { csr = seen, addresses = elsewhere, token = good }))
    refused("expired", "expired", hinted(ask("j1", { addresses = elsewhere, token = good })))
    refused("denied", "here it is", ask("j1", { csr = seen, addresses = elsewhere }))
    assert.equal(before, fake.revision)
    -- Without one it waits for a person.
    local status, answer = ask("j1", { addresses = elsewhere }, "10.6.6.6")
    assert.equal(202, status)
    assert.is_nil(answer.gossip_keys)
    assert.equal(w.node_id, state.text("/raft/2"))
    assert.equal("10.0.0.9:1", state.get("/node/" .. w.node_id).raft_address)
  end))

  it("uses a token up for a new raft id as for a new node, and once", with_cluster(plain, function()
    ask("j1", { token = good })
    fake.status.servers[2] = { id = 2, role = "voter", up = false, address = "10.0.0.9:1" }
    local once = assert(tokens.create { role = "manager", ttl = 100, uses = 1 }).token
    assert.equal(202, (ask("j1", nil, "10.0.7.1")))
    local _, again = ask("j1", { token = once })
    assert.equal(3, again.raft_node_id)
    assert.equal(0, count("/pending/"))
    -- The answer was lost: it is said again.
    assert.same({ 3, again.certificate }, { select(2, ask("j1", { token = once })).raft_node_id, again.certificate })
    refused("denied", "used up", ask("j2", { token = once }))
  end))

  it("gives a new raft id for an approval", with_cluster(plain, function()
    local _, w = ask("j1", { token = good, name = "m" })
    fake.status.servers[2] = { id = 2, role = "voter", up = false, address = "10.0.0.9:1" }
    local _, answer = ask("j1", nil, "10.0.7.1")
    local record = state.get("/pending/" .. answer.pending.id)
    assert.same({ "m", 2 }, { record.name, record.replaces })
    local opts = { fingerprint = answer.pending.fingerprint, name = "n" }
    local _, err = admit.approve(answer.pending.id, opts)
    assert.equal("invalid", err.code)
    opts.name, opts.labels = nil, { a = "b" }
    _, err = admit.approve(answer.pending.id, opts)
    assert.truthy(err.message:find("m is a node already", 1, true), err.message)
    opts.labels = {}
    -- It has come up meanwhile.
    fake.status.servers[2].up = true
    _, err = admit.approve(answer.pending.id, opts)
    assert.equal("exists", err.code)
    fake.status.servers[2].up = false
    local approved = assert(admit.approve(answer.pending.id, opts))
    assert.same({ w.node_id, 3, "m" }, { approved.node_id, approved.raft_node_id, approved.name })
    assert.equal(0, count("/pending/"))
    assert.equal(2, count("/node/"))
    assert.is_nil(state.text("/raft/2"))
    assert.equal(3, crypto.cert_info(select(2, ask("j1")).certificate).raft_id)
  end))

  it("wants a request that is fresh and of this cluster, from everybody", with_cluster(plain, function()
    local other = require("symphony.cluster.statement").make(crypto.sha256("other"), fake.now)
    local seen, before = fake.csr("j1"), fake.revision
    refused("invalid", "does not say", ask("j1", { token = good, csr = "CSR j1 host" }))
    refused("denied", "another CA", ask("j1", { token = good, csr = "CSR j1 " .. other }))
    refused("denied", "another CA", ask("j1", { csr = "CSR j1 " .. other }))
    assert.equal(before, fake.revision)
    fake.now = fake.now + 3500
    local _, w = ask("j1", { token = good, csr = seen })
    assert.equal(1, #w.gossip_keys)
    -- Who says it again has the key still.
    fake.now = fake.now + 101
    refused("denied", "here it is", ask("j1", { csr = seen }))
    refused("denied", "another CA", ask("j1", { csr = "CSR j1 " .. other }))
    fake.now = fake.now + 30 * 86400
    assert.equal(w.certificate, select(2, ask("j1", { token = good })).certificate)
  end))

  it("signs the request that waits also when it is approved late", with_cluster(plain, function()
    fake.now = fake.now - 3600 -- the joiner's clock
    local csr = fake.csr("j1")
    fake.now = fake.now + 3600
    local _, answer = ask("j1", { csr = csr }, "10.0.7.1")
    fake.now = fake.now + 3599
    assert(admit.approve(answer.pending.id, { fingerprint = answer.pending.fingerprint }))
    assert.equal(200, (ask("j1")))
  end))

  it("takes one that comes back at another raft address before raft knows it under a new id", with_cluster(plain,
    function()
    fake.change_error = { code = "busy" } -- raft does not take it in yet
    local first = select(2, ask("j1", { token = good }))
    assert.equal(1, #fake.status.servers)
    local moved = { raft = "10.0.0.9:7", remote = "10.0.0.9:8", gossip = "10.0.0.9:9" }
    local _, again = ask("j1", { token = good, addresses = moved })
    assert.equal(first.node_id, again.node_id)
    assert.equal(3, again.raft_node_id)
    assert.same(moved, again.addresses)
    assert.equal(3, crypto.cert_info(again.certificate).raft_id)
    assert.equal("10.0.0.9:7", state.get("/node/" .. first.node_id).raft_address)
    assert.is_nil(state.text("/raft/2"))
    -- Said once more it is the same; back again it is not.
    assert.equal(3, select(2, ask("j1", { addresses = moved })).raft_node_id)
    assert.equal(4, select(2, ask("j1", { token = good })).raft_node_id)
  end))

  it("refuses another member's raft address also to one that comes back", with_cluster(plain, function()
    fake.change_error = { code = "busy" }
    local theirs = select(2, ask("j2", { token = good })).addresses
    local mine = select(2, ask("j1", { token = good }))
    local before = fake.revision
    refused("exists", "raft id 2", ask("j1", { addresses = theirs }))
    fake.status.servers[2] = { id = 3, role = "voter", up = false, address = mine.addresses.raft }
    refused("exists", "raft id 2", ask("j1", { addresses = theirs }))
    assert.equal(before, fake.revision)
    assert.equal(mine.addresses.raft, state.get("/node/" .. mine.node_id).raft_address)
  end))

  it("lets a request without a token wait for an approval", with_cluster(plain, function()
    local status, answer = ask("j1")
    assert.equal(202, status)
    local fingerprint = crypto.csr_check("CSR j1 x")
    assert.equal(fingerprint, answer.pending.fingerprint)
    assert.equal(10, #answer.pending.id)
    assert.equal(1, count("/node/"))
    local before = fake.revision
    assert.same({ status, answer }, { ask("j1") })
    assert.equal(before, fake.revision)
    assert.equal(1, #pending.list())

    local id = answer.pending.id
    local _, err = admit.approve(id, { fingerprint = ("0"):rep(64) })
    assert.equal("denied", err.code)
    _, err = admit.approve(id, { fingerprint = "abc" })
    assert.equal("invalid", err.code)
    _, err = admit.approve("0000000000", { fingerprint = fingerprint })
    assert.equal("not_found", err.code)
    local approved = assert(admit.approve(id, { fingerprint = fingerprint:upper():gsub("..", "%0:"):sub(1, -2),
      labels = { a = "b" } }))
    assert.equal("host-2", approved.name)
    assert.equal(0, count("/pending/"))
    local after, w = ask("j1")
    assert.equal(200, after)
    assert.equal(approved.node_id, w.node_id)
    assert.same({ a = "b" }, state.get("/node/" .. w.node_id).labels)
  end))

  it("remembers a request that was turned down, and forgets old ones", with_cluster(plain, function()
    local _, answer = ask("j1")
    assert(pending.reject(answer.pending.id))
    refused("denied", "turned down", ask("j1"))
    assert.equal(0, #pending.list())
    local _, err = admit.approve(answer.pending.id, { fingerprint = answer.pending.fingerprint })
    assert.equal("not_found", err.code)
    fake.now = fake.now + 3601
    pending.sweep()
    assert.equal(0, count("/pending/"))
    assert.equal(202, (ask("j1")))
  end))

  it("keeps few of them, and few from one address", with_cluster(plain, function()
    local n = 0
    for i = 1, 20 do
      local status, err = ask("a" .. i, nil, "10.1.1.1")
      if status == 202 then n = n + 1 else assert.equal("busy", err.code) end
    end
    assert.equal(8, n)
    -- One that waits may go on asking.
    assert.equal(202, (ask("a1", nil, "10.1.1.1")))
    for i = 1, 100 do ask("b" .. i, nil, "10.2.0." .. i) end
    assert.equal(64, count("/pending/"))
    refused("busy", "64", ask("last", nil, "10.3.0.1"))
    -- A token still opens the door.
    assert.equal(200, (ask("last", { token = good }, "10.3.0.1")))
  end))

  it("approves by itself in development mode, on the loopback only", with_cluster({ token_ttl = 60, dev = true },
    function()
    local function here(port)
      local addresses = {}
      for i, kind in ipairs { "raft", "remote", "gossip" } do addresses[kind] = "127.0.0.1:" .. port + i end
      return { addresses = addresses }
    end
    assert.equal(202, (ask("j1", here(10), "10.0.0.9")))
    assert.equal(200, (ask("j2", here(20), "127.0.0.1")))
    assert.equal(200, (ask("j1", here(10), "::1")))
    assert.equal(0, count("/pending/"))
  end))

  it("lets nobody from another machine into development mode", with_cluster({ token_ttl = 60, dev = true }, function()
    for _, from in ipairs { "127.0.0.1", "10.0.0.9" } do
      for _, text in ipairs { good, false } do
        local status, err = ask("j1", { token = text or nil }, from)
        refused("invalid", "one machine only, but 10.0.0.9:", status, err)
        assert.truthy(err.hint:find("join 127.0.0.1:PORT", 1, true), err.hint)
      end
    end
    refused("invalid", "one machine only", ask("j1", { token = good, implied = true }, "10.0.0.9"))
    assert.equal(1, count("/node/"))
    assert.equal(0, count("/pending/"))
  end))

  it("moves an address that nobody chose to the loopback in development mode", with_cluster({ token_ttl = 60,
    dev = true }, function()
    local status, w = ask("j1", { implied = true }, "127.0.0.1")
    assert.equal(200, status)
    assert.same({ raft = "127.0.0.1:1", remote = "127.0.0.1:2", gossip = "127.0.0.1:3" }, w.addresses)
    assert.is_true(w.dev)
    assert.equal("127.0.0.1:1", state.get("/node/" .. w.node_id).raft_address)
    local _, again = ask("j1", { implied = true }, "127.0.0.1")
    assert.equal(w.node_id, again.node_id)
  end))

  it("leaves an address that nobody chose alone elsewhere", with_cluster(plain, function()
    local _, w = ask("j1", { token = good, implied = true }, "127.0.0.1")
    assert.equal("10.0.0.9:1", w.addresses.raft)
  end))

  it("answers with the error when there is no quorum, and writes nothing", with_cluster(plain, function()
    fake.read_error = { code = "no_quorum", message = "no answer" }
    local before = fake.revision
    refused("no_quorum", "no answer", ask("j1", { token = good }))
    assert.equal(before, fake.revision)
  end))
end)

describe("many requests at once", function()
  local raft = package.loaded["sym.raft"]
  local submit, read = raft.submit, raft.read

  -- As it is with a disk and a network: each answer takes its time, and others come meanwhile.
  local function later(fn)
    local timer = require("luv").new_timer()
    timer:start(1, 0, function()
      timer:close()
      fn()
    end)
  end

  before_each(function()
    fake.reset()
    raft.read = function(_, cb) later(function() cb(fake.read_error) end) end
    raft.submit = function(txn, ms, cb) later(function() submit(txn, ms, cb) end) end
  end)
  after_each(function() raft.submit, raft.read = submit, read end)

  local function all(names, fn)
    local fns = {}
    for i, name in ipairs(names) do
      fns[i] = function() return fn(name) end
    end
    return async.gather(fns)
  end

  local function names(n)
    local out = {}
    for i = 1, n do out[i] = "k" .. string.char(96 + i) end
    return out
  end

  it("all get through, and a token is used up exactly", fake.task(function()
    fake.make()
    local text = assert(tokens.create { role = "manager", ttl = 100, uses = 12 }).token
    local denied, ids, txns = 0, {}, 0
    fake.before_submit = function() txns = txns + 1 end
    for _, result in ipairs(all(names(20), function(name) return ask(name, { token = text }) end)) do
      if result.ok then
        local w = result.results[2]
        assert.is_nil(ids[w.raft_node_id])
        ids[w.raft_node_id] = w.name
      else
        assert.equal("denied", result.err.code, result.err.message)
        denied = denied + 1
      end
    end
    assert.equal(8, denied)
    for id = 2, 13 do assert.is_string(ids[id]) end
    assert.equal(13, count("/node/"))
    assert.equal(12, txns, "they were in each other's way")
  end))

  it("hold nobody up who is refused, nor those who get in", fake.task(function()
    fake.make()
    local text = assert(tokens.create { role = "manager", ttl = 100 }).token
    -- One write hangs.
    local answer
    raft.submit = function(txn, ms, cb) answer = function() submit(txn, ms, cb) end end
    local first = async.spawn(function() return ask("ka", { token = text }) end)
    while not answer do async.sleep(1) end
    local _, err = ask("kb", { token = token.make(crypto.sha256("x"), crypto.random(16)) })
    assert.equal("denied", err.code)
    answer()
    assert.equal(200, (first:wait()))
  end))

  it("are approved at once", fake.task(function()
    fake.make()
    local list = names(12)
    for _, result in ipairs(all(list, function(name) return ask(name, nil, "10.0.1." .. name:byte(-1)) end)) do
      assert.equal(202, result.results[1])
    end
    local done = all(list, function(name)
      local fingerprint = crypto.csr_check(("CSR %s x"):format(name))
      return admit.approve(fingerprint:sub(1, 10), { fingerprint = fingerprint })
    end)
    for _, result in ipairs(done) do assert.is_true(result.ok, result.err and result.err.message) end
    assert.equal(13, count("/node/"))
  end))
end)

describe("admit.renew", function()
  before_each(function() fake.reset() end)

  it("signs anew for the key that the state knows, with the role of the state", fake.task(function()
    local made = fake.make()
    local _, w = ask("j1", { token = made.tokens.manager })
    fake.now = fake.now + 100 * 86400
    local fresh = assert(admit.renew("CSR j1 whatever"))
    local info = crypto.cert_info(fresh.certificate)
    assert.same({ w.node_id, "manager", 2 }, { info.cn, info.ou, info.raft_id })
    assert.equal(fake.now + 90 * 86400, info.not_after)
    assert.equal(info.not_after, state.get("/node/" .. w.node_id).certificate_expires)
    local _, err = admit.renew("CSR stranger x")
    assert.equal("denied", err.code)
    _, err = admit.renew("nonsense")
    assert.equal("invalid", err.code)
    _, err = admit.renew(nil)
    assert.equal("invalid", err.code)
  end))
end)
