local fake = require "spec.unit.cluster_fake"
local erase = require "symphony.cluster.erase"
local events = require "symphony.cluster.events"
local json = require "symphony.json"
local members = require "symphony.cluster.members"
local nodes = require "symphony.cluster.nodes"
local reconcile = require "symphony.cluster.reconcile"
local router = require "symphony.api.router"
local state = require "symphony.cluster.state"

require("symphony.api.routes_events").check_ms = 10

local W1, W2 = "0abcdef1vvvvvvvvvvvvvvvvvv", "0abcdef2vvvvvvvvvvvvvvvvvv"

local function add_worker(id, name, more)
  local n = { node_id = id, name = name, role = "worker", services = json.array { "block" }, fingerprint = "f" .. name,
    remote_address = "10.0.0.7:1", gossip_address = "10.0.0.7:2", labels = {}, availability = "active",
    version = "1.0.0", joined = 5, certificate = "C", certificate_expires = 1700009999 }
  for k, v in pairs(more or {}) do n[k] = v end
  fake.apply { ops = { state.put("/node/" .. id, n), state.put("/name/" .. name, id),
    state.put("/fingerprint/" .. n.fingerprint, id), state.put("/peer/" .. id, { key = "k", role = "worker" }) } }
  return n
end

local function says(id, fields) fake.apply { ops = { state.put("/status/node/" .. id, fields) } } end

local function assign(id, n)
  for i = 1, n do fake.apply { ops = { state.put(("/assign/%s/volume/%04d"):format(id, i), { i = i }) } } end
end

local function cluster(fn)
  return fake.task(function()
    fake.make { name = "first" }
    reconcile.stop()
    fn()
  end)
end

local function refused(code, word, fn, ...)
  local ok, err = pcall(fn, ...)
  assert.is_false(ok)
  assert.equal(code, err.code, tostring(err.message))
  assert.truthy(err.message:find(word), err.message)
  return err
end

local function last_event()
  local list = events.list {}
  return list[#list]
end

local function keys(prefix)
  local out = {}
  for i, kv in ipairs(state.list_raw(prefix)) do out[i] = kv.key end
  return out
end

describe("a node is named", function()
  before_each(function() fake.reset() end)

  it("by name, id, raft id and the beginning of an id", cluster(function()
    add_worker(W1, "w1")
    add_worker(W2, "w2")
    local first = state.node("first")
    for _, name in ipairs { "w1", W1, W1:sub(1, 8), W1:sub(1, 25) } do
      local n, kv = state.node(name)
      assert.same({ "w1", "/node/" .. W1 }, { n.name, kv.key })
    end
    assert.equal("first", state.node("1").name)
    assert.equal("first", state.node(first.node_id:sub(1, 20)).name)
    for name, code in pairs { [W1:sub(1, 7)] = "invalid", [W1:sub(1, 6)] = "invalid", [W1:sub(1, 5)] = "not_found",
      ["2"] = "not_found", [""] = "not_found", [W1 .. "x"] = "not_found", [("x"):rep(2000)] = "not_found",
      ["../name"] = "not_found" } do
      local n, err = state.node(name)
      assert.is_nil(n)
      assert.equal(code, err.code, name)
    end
    assert.truthy(select(2, state.node(W1:sub(1, 7))).message:find("ambiguous"))
    -- A name is a name first, whatever else it could mean.
    add_worker("0zzzzzz1vvvvvvvvvvvvvvvvvv", W2:sub(1, 8))
    assert.equal("0zzzzzz1vvvvvvvvvvvvvvvvvv", state.node(W2:sub(1, 8)).node_id)
  end))

  it("by the same where only managers are meant", function()
    local rows = { { id = 1, node_id = W1, name = "m1" }, { id = 2, node_id = W2, name = "m2" } }
    assert.equal(2, members.find(rows, W2:sub(1, 8)).id)
    assert.equal(1, members.find(rows, "1").id)
    for name, code in pairs { [W1:sub(1, 7)] = "invalid", [W1:sub(1, 5)] = "not_found", ["3"] = "not_found" } do
      local row, err = members.find(rows, name)
      assert.is_nil(row)
      assert.equal(code, err.code, name)
    end
  end)
end)

describe("the row of a node", function()
  local status = { id = 1, leader = 2, servers = { { id = 1, role = "voter" }, { id = 2, role = "voter", up = true },
    { id = 3, role = "standby", up = false } } }
  local function manager(id) return { node_id = "m" .. id, name = "m" .. id, role = "manager", raft_node_id = id } end

  it("has what the state says of it", function()
    local n = { node_id = W1, name = "w1", role = "worker", services = { "block" }, labels = { a = "b" },
      availability = "drain", version = "1", certificate = "C", certificate_expires = 9, remote_address = "h:1",
      gossip_address = "h:2", fingerprint = "f", joined = 3 }
    assert.same({ node_id = W1, name = "w1", role = "worker", services = { "block" }, labels = { a = "b" },
      status = "down", since = 7, reason = "no answer", availability = "drain", version = "2",
      addresses = { remote = "h:1", gossip = "h:2" }, certificate_expires = 9, fingerprint = "f", joined = 3 },
      nodes.row(n, { status = "down", since = 7, reason = "no answer", version = "2" }, status))
    assert.equal("joining", nodes.row(n, nil, status).status)
    local bare = json.decode(json.encode(nodes.row({ node_id = "x", name = "x", role = "worker" }, nil, status)))
    assert.same({}, bare.services)
    assert.equal('{"labels":{},"services":[]}', json.encode { labels = nodes.row({}, nil, status).labels,
      services = nodes.row({}, nil, status).services })
  end)

  it("of a manager has its part in raft, and raft's word as long as there is no other", function()
    local function of(n, said)
      local row = nodes.row(n, said, status)
      return { row.status, row.raft_role, row.leader, row.raft_node_id }
    end
    assert.same({ "ready", "voter", false, 1 }, of(manager(1)))
    assert.same({ "ready", "voter", true, 2 }, of(manager(2)))
    assert.same({ "down", "standby", false, 3 }, of(manager(3)))
    assert.same({ "joining", "spare", false, 4 }, of(manager(4)))
    assert.same({ "ready", "standby", false, 3 }, of(manager(3), { status = "ready" }))
    local leaving = manager(2)
    leaving.removing = { at = 1 }
    assert.is_true(nodes.row(leaving, nil, status).leaving)
  end)
end)

describe("the list of nodes", function()
  before_each(function() fake.reset() end)

  it("is whole, however long, and lets others have their turn", cluster(function()
    for i = 1, 300 do add_worker(("0w%024d"):format(i), "w" .. i) end
    for i = 1, 300, 2 do says(("0w%024d"):format(i), { status = "ready", since = i }) end
    local turns, over = 0, false
    require("symphony.async").spawn(function()
      while not over do
        turns = turns + 1
        require("symphony.async").sleep(0)
      end
    end)
    local rows = assert(nodes.list {})
    over = true
    assert.equal(301, #rows)
    assert.is_true(turns >= 3)
    local ready = 0
    for _, row in ipairs(rows) do
      if row.status == "ready" then ready = ready + 1 end
      assert.is_nil(row.certificate)
    end
    assert.equal(151, ready)
  end))
end)

describe("a change of a node", function()
  before_each(function() fake.reset() end)

  it("is what may be changed, and of the right kind", function()
    for _, body in ipairs { { name = "a", availability = "pause", labels = { a = "b", c = json.null } },
      { labels = {} } } do
      assert.equal(body, nodes.check_patch(body))
    end
    local many = {}
    for i = 1, 65 do many["l" .. i] = json.null end
    for _, body in ipairs { {}, { "name" }, { node_id = "x" }, { role = "manager" }, { name = 7 }, { name = "a b" },
      { name = json.null }, { availability = "off" }, { availability = json.null }, { labels = "a" },
      { labels = { ["a b"] = "c" } }, { labels = { a = 7 } }, { labels = { a = {} } }, { labels = { "a" } },
      { labels = { ["a b"] = json.null } }, { labels = many } } do
      refused("invalid", ".", nodes.check_patch, body)
    end
  end)

  it("says what it does", function()
    local n = { name = "w1", availability = "active", labels = { a = "1", b = "2" } }
    assert.same({}, nodes.change(n, { name = "w1", availability = "active", labels = { a = "1", c = json.null } }))
    assert.same({ "w1 is called w2 now", "availability pause, was active", "label a=3", "no label b", "label c=4" },
      nodes.change(n, { name = "w2", availability = "pause", labels = { a = "3", b = json.null, c = "4" } }))
    assert.same({ name = "w2", availability = "pause", labels = { a = "3", c = "4" } }, n)
    local labels = {}
    for i = 1, 31 do labels["l" .. i] = "x" end
    refused("invalid", "at most 32", nodes.change, n, { labels = labels })
  end)

  it("is one txn with its event, and keeps names unique", cluster(function()
    add_worker(W1, "w1")
    add_worker(W2, "w2")
    local before = fake.revision
    local row = nodes.serve_update("w1", { name = "w3", availability = "drain", labels = { zone = "a" } })
    assert.equal(before + 1, fake.revision)
    assert.same({ "w3", "drain", { zone = "a" }, 3 }, { row.name, row.availability, row.labels, #row.changes })
    assert.same({ W1, nil }, { state.text("/name/w3"), state.text("/name/w1") })
    assert.equal("C", state.get("/node/" .. W1).certificate)
    local event = last_event()
    assert.same({ "node.updated", W1, "w3", before + 1 }, { event.kind, event.node_id, event.name, event.revision })
    -- What is so already costs nothing.
    assert.same({}, nodes.serve_update("w3", { availability = "drain" }).changes)
    assert.equal(before + 1, fake.revision)
    refused("exists", "w2", nodes.serve_update, "w3", { name = "w2", availability = "active" })
    refused("not_found", "w1", nodes.serve_update, "w1", { name = "w9" })
    -- Somebody takes the name meanwhile.
    local between
    fake.before_submit = function()
      if between then return end
      between = true
      nodes.serve_update("w2", { name = "w9" })
    end
    refused("exists", "w9", nodes.serve_update, "w3", { name = "w9" })
    assert.equal(W2, state.text("/name/w9"))
    assert.equal("drain", state.get("/node/" .. W1).availability)
  end))

  it("is not for one that is on its way out", cluster(function()
    add_worker(W1, "w1", { removing = { at = 1 } })
    refused("conflict", "being removed", nodes.serve_update, "w1", { availability = "pause" })
  end))
end)

describe("the removal of a worker", function()
  before_each(function() fake.reset() end)

  it("is refused while it is ready or has something to do", cluster(function()
    add_worker(W1, "w1")
    says(W1, { status = "ready" })
    assert.truthy(refused("conflict", "ready", nodes.serve_remove, "w1", {}).hint:find("--force", 1, true))
    says(W1, { status = "down" })
    assign(W1, 2)
    assert.truthy(refused("conflict", "2 assignments", nodes.serve_remove, "w1", {}).hint:find("drain", 1, true))
    assign(W1, 1001)
    refused("conflict", "more than 1000 assignments", nodes.serve_remove, "w1", {})
    refused("conflict", "is a manager", nodes.serve_remove, "first", { force = true })
    refused("not_found", "w2", nodes.serve_remove, "w2", {})
    assert.equal("w1", state.node(W1).name)
  end))

  it("takes everything of it in one txn, and of nobody else", cluster(function()
    add_worker(W1, "w1")
    add_worker(W2, "w2")
    for _, id in ipairs { W1, W2 } do says(id, { status = "down" }) end
    local before = fake.revision
    assert.same({ node_id = W1, name = "w1", role = "worker", assignments = 0 }, nodes.serve_remove(W1:sub(1, 8), {}))
    assert.equal(before + 1, fake.revision)
    for _, prefix in ipairs { "/node/", "/peer/", "/status/node/" } do
      assert.same({}, keys(prefix .. W1))
      assert.same({ prefix .. W2 }, keys(prefix .. W2))
    end
    assert.same({}, keys("/name/w1"))
    assert.same({}, keys("/fingerprint/fw1"))
    local event = last_event()
    assert.same({ "node.removed", "w1", W1, before + 1 }, { event.kind, event.name, event.node_id, event.revision })
    assert.same({ "/removed/" .. W1 }, keys("/removed/"))
  end))

  it("looks again when the worker is back, or is given something to do, meanwhile", cluster(function()
    add_worker(W1, "w1")
    for _, case in ipairs { { "ready", says, W1, { status = "ready" } }, { "1 assignment$", assign, W1, 1 } } do
      local between
      fake.before_submit = function()
        if between then return end
        between = true
        case[2](case[3], case[4])
      end
      refused("conflict", case[1], nodes.serve_remove, "w1", {})
      fake.before_submit = nil
      says(W1, { status = "down" })
    end
    -- By force neither matters.
    fake.before_submit = function() says(W1, { status = "ready" }) end
    assert.equal(1, nodes.serve_remove("w1", { force = true }).assignments)
    assert.is_true(last_event().forced)
  end))

  it("is finished in pieces by whoever leads", cluster(function()
    add_worker(W1, "w1")
    add_worker(W2, "w2")
    assign(W1, 250)
    assign(W2, 3)
    nodes.serve_remove("w1", { force = true })
    reconcile.stop()
    says(W1, { status = "down" }) -- a late word
    local before, steps = fake.revision, 0
    while assert(erase.step() ~= nil) and #keys("/removed/") > 0 do steps = steps + 1 end
    assert.is_false(erase.step())
    assert.same({ 2, before + 3 }, { steps, fake.revision })
    assert.same({}, keys("/assign/" .. W1))
    assert.same({}, keys("/status/node/" .. W1))
    assert.equal(3, #keys("/assign/" .. W2))
  end))

  it("of all managers but one at once fits into a txn", function()
    local rows = {}
    for i = 1, 32 do
      rows[i] = { kv = { value = { node_id = "m" .. i, raft_node_id = i, name = "m" .. i, fingerprint = "f" .. i,
        removing = {} } } }
    end
    local txn = require("symphony.cluster.recover").cleanup({ node_id = "m1" }, rows, { key = "/cluster" }, {},
      { key = "/n", value = "33" })
    assert.is_true(#txn.ops <= 120, #txn.ops)
    -- What lets them in goes with them, or is named by what goes on with it.
    local gone = {}
    for _, op in ipairs(txn.ops) do
      if op.delete then gone[op.delete] = true end
      for _, key in ipairs(op.put and op.put:find("^/removed/") and json.decode(op.value).also or {}) do
        gone[key] = "later"
      end
    end
    for i = 2, 32 do
      assert.is_true(gone["/node/m" .. i])
      assert.equal(i <= 21 or "later", gone["/fingerprint/f" .. i])
      assert.equal("later", gone["/name/m" .. i])
    end
  end)

  it("is finished by the leader's loop, and only by a leader's", cluster(function()
    add_worker(W1, "w1")
    assign(W1, 150)
    fake.status.state = "follower"
    nodes.serve_remove("w1", { force = true })
    reconcile.start()
    require("symphony.async").sleep(30)
    assert.equal(150, #keys("/assign/" .. W1))
    fake.status.state = "leader"
    reconcile.wake()
    for _ = 1, 100 do
      if #keys("/removed/") == 0 then break end
      require("symphony.async").sleep(5)
    end
    assert.same({}, keys("/removed/"))
    assert.same({}, keys("/assign/" .. W1))
  end))

  it("wishes for a new gossip key in the same txn", cluster(function()
    add_worker(W1, "w1")
    local was = package.loaded["symphony.cluster.keyring"]
    package.loaded["symphony.cluster.keyring"] = { wanted = function(ops)
      ops[#ops + 1] = state.put("/secret/gossip_wanted", { at = 1 })
    end }
    local before = fake.revision
    local ok, err = pcall(nodes.serve_remove, "w1", {})
    package.loaded["symphony.cluster.keyring"] = was
    assert(ok, err)
    assert.equal(before + 1, state.list_raw("/secret/gossip_wanted")[1].mod_revision)
  end))
end)

describe("the routes of nodes and events", function()
  local function ask(method, path, peer, body, query)
    local words = {}
    for name, value in pairs(query or {}) do words[#words + 1] = name .. "=" .. value end
    return fake.ask(method, path, { peer = peer, body = body and json.encode(body) or "",
      query = table.concat(words, "&") })
  end

  before_each(function()
    fake.reset()
    router.reset()
    for _, name in ipairs { "nodes", "events" } do require("symphony.api.routes_" .. name).routes(router) end
  end)

  -- The state knows these certificates.
  local function clients()
    fake.apply { ops = { state.put("/client/o", { name = "o", role = "operator", fingerprint = "fo" }),
      state.put("/client/r", { name = "r", role = "reader", fingerprint = "fr" }) } }
  end

  it("are closed to workers, to strangers and to who has expired", cluster(function()
    add_worker(W1, "w1")
    local own = state.get("/node/" .. W1)
    local peers = {
      control = { unix = true }, manager = { cn = state.node("first").node_id, ou = "manager" },
      operator = { cn = "o", ou = "operator", fingerprint = "fo" },
      reader = { cn = "r", ou = "reader", fingerprint = "fr" },
      worker = { cn = W1, ou = "worker", fingerprint = own.fingerprint }, none = {},
      expired = { cn = "o", ou = "operator", fingerprint = "fo", expires = fake.now - 1, expired = true },
    }
    clients()
    local all = { "control", "manager", "operator", "reader" }
    local cases = {
      { "GET", "/v1/nodes", all }, { "GET", "/v1/nodes/w1", all }, { "GET", "/v1/events", all },
      { "PATCH", "/v1/nodes/w1", { "control", "manager", "operator" }, { labels = {} } },
      { "DELETE", "/v1/nodes/nobody", { "control", "manager" } },
      { "POST", "/v1/nodes/nobody/remove", { "control", "manager" }, { plan = true } },
      { "POST", "/v1/transfer", { "control", "manager" }, {} },
    }
    for _, case in ipairs(cases) do
      local may = {}
      for _, kind in ipairs(case[3]) do may[kind] = true end
      for kind, peer in pairs(peers) do
        local req = ask(case[1], case[2], peer, case[4])
        local code = req.status >= 400 and req:json().error.code
        local denied = code == "denied" or code == "unauthenticated" or code == "expired"
        assert.equal(not may[kind], denied, table.concat({ kind, case[1], case[2], tostring(code) }, " "))
      end
    end
  end))

  it("let others have their turn while a long list is written", cluster(function()
    local async = require "symphony.async"
    for i = 1, 500 do add_worker(("0w%024d"):format(i), "w" .. i) end
    local rows, turns = nodes.list {}, 0
    local task = async.spawn(function()
      while true do
        turns = turns + 1
        async.sleep(0)
      end
    end)
    local before = turns
    local req = ask("GET", "/v1/nodes", { unix = true })
    task:cancel()
    assert.same({ 200, json.encode(rows) }, { req.status, req.answer })
    assert.is_true(turns - before >= 8, turns - before) -- four pages, and as much again for the text
  end))

  it("end a stream whose reader may not read any more", cluster(function()
    local async = require "symphony.async"
    clients()
    local peer = { cn = "r", ou = "reader", fingerprint = "fr", expires = fake.now + 10 }
    local req = ask("GET", "/v1/events", peer, nil, { follow = "" })
    assert.equal(200, req.status)
    async.sleep(5)
    assert.equal("sync", req:messages()[2].type)
    fake.now = fake.now + 11
    for _ = 1, 300 do
      if req.finished then break end
      async.sleep(10)
    end
    local lines = req:messages()
    assert.equal("expired", lines[#lines].error.code)
    local watching = fake.watching()
    req = ask("GET", "/v1/events", { cn = "r", ou = "reader", fingerprint = "fr" }, nil, { follow = "" })
    assert.equal(200, req.status, req.answer)
    async.sleep(5)
    assert.equal(watching + 1, fake.watching())
    req:leave()
    async.sleep(5)
    assert.equal(watching, fake.watching())
  end))
end)

describe("state.each", function()
  it("goes through all there is, with a turn for others in between, and says what is damaged", fake.task(function()
    fake.reset()
    fake.make { name = "first" }
    for i = 1, 300 do fake.apply { ops = { state.put(("/assign/a/%03d"):format(i), { n = i }) } } end
    local sum, turns = 0, 0
    local task = require("symphony.async").spawn(function()
      while true do
        turns = turns + 1
        require("symphony.async").sleep(0)
      end
    end)
    local before = turns
    assert.is_true(state.each("/assign/a/", function(kv) sum = sum + kv.value.n end))
    task:cancel()
    assert.equal(300 * 301 // 2, sum)
    assert.is_true(turns - before >= 2, turns - before)
    fake.apply { ops = { { put = "/assign/a/100", value = "{" } } }
    local ok, err = state.each("/assign/a/", function() end)
    assert.is_nil(ok)
    assert.equal("corrupt", err.code)
  end))
end)
