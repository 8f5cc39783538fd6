local fake = require "spec.unit.cluster_fake"
local agent = require "symphony.cluster.agent"
local agents = require "symphony.cluster.agents"
local async = require "symphony.async"
local errors = require "symphony.errors"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local sys = require "sym.sys"

local heard
agent.on(function(...) heard[#heard + 1] = { ... } end)

local function told(what)
  local out = {}
  for _, h in ipairs(heard) do
    if h[1] == what then out[#out + 1] = table.pack(table.unpack(h, 2)) end
  end
  return out
end

-- The state as managers have it, by key.
local function put(key, value)
  fake.apply { compare = {}, ops = { { put = key, value = json.encode(value) } } }
end

local function delete(key)
  fake.apply { compare = {}, ops = { { delete = key } } }
end

describe("agent.take", function()
  local v, session
  before_each(function()
    heard = {}
    v, session = { revision = 0, mark = "0.0", peers = {}, assigned = {} }, { assigned = {} }
  end)

  local function take(...)
    for _, m in ipairs { ... } do agent.take(v, session, m) end
  end

  it("takes a listing for the whole truth", function()
    v.assigned = { ["block/a"] = { size = 1 }, ["block/b"] = { size = 2 } }
    v.peers = { one = { key = "K1", role = "worker" }, two = { key = "K2", role = "worker" } }
    take({ put = "block/b", value = { size = 2 }, revision = 7 },
      { put = "block/c", value = { size = 3 }, revision = 9 }, { peers = "all" },
      { peer = "one", key = "K1", role = "worker" }, { peer = "three", key = "K3", role = "manager" })
    assert.same({}, told("assigned")) -- not before all of it is there
    take { synced = 10, peers = "9.2" }
    assert.same({ ["block/b"] = { size = 2 }, ["block/c"] = { size = 3 } }, v.assigned)
    table.sort(heard, function(a, b) return tostring(a[2]) < tostring(b[2]) end)
    assert.same({ { "block/a", nil, n = 1 }, { "block/c", { size = 3 }, n = 2 } }, told("assigned"))
    assert.same({ "one", "three" }, (function()
      local ids = {}
      for id in pairs(v.peers) do ids[#ids + 1] = id end
      table.sort(ids)
      return ids
    end)())
    assert.equal(10, v.revision)
    assert.equal("9.2", v.mark)
  end)

  it("keeps the peers that are the same, and follows changes", function()
    v.peers = { one = { key = "K1", role = "worker" } }
    take({ peers = "same" }, { synced = 10, peers = "9.1" })
    assert.same({}, told("peer"))
    take({ peer = "two", key = "K2", role = "worker" }, { peer = "one", gone = true }, { peers = "12.1" },
      { put = "block/a", value = 1, revision = 12 }, { delete = "block/a", revision = 13 }, { heartbeat = 20 })
    assert.same({ { "two", { key = "K2", role = "worker" }, n = 2 }, { "one", nil, n = 1 } }, told("peer"))
    assert.same({ { "block/a", 1, n = 2 }, { "block/a", nil, n = 1 } }, told("assigned"))
    assert.equal("12.1", v.mark)
    assert.equal(20, v.revision)
  end)

  it("has null as nothing, and raises what the manager says at the end", function()
    take({ status = { status = "down" } }, { status = json.null }, { node = { name = "n" } })
    assert.is_nil(v.status)
    assert.equal("n", v.node.name)
    local ok, err = pcall(take, { error = { code = "conflict", message = "another daemon" } })
    assert.is_false(ok)
    assert.equal("conflict", err.code)
    ok, err = pcall(take, { error = "x" })
    assert.is_false(ok)
    assert.equal("closed", err.code)
  end)
end)

describe("agents", function()
  local made, node

  before_each(function()
    heard = {}
    fake.reset()
  end)
  after_each(function() agents.stop() end)

  -- A request of node @id's agent as the hub has it served.
  local function connect(id, opts)
    local req = fake.request("GET", "/v1/agent", { peer = {} })
    opts = opts or {}
    agents.serve(req, { node_id = id }, { starts = opts.starts or 1, instance = opts.instance or "aa",
      min = opts.min or 0, peers = opts.peers or "0.0" })
    return req
  end

  local function drain()
    for _ = 1, 4 do async.sleep(30) end
  end

  local function with_hub(body)
    return fake.task(function()
      made = fake.make()
      node = "0000000000000000000000wk01"
      put("/node/" .. node, { node_id = node, name = "w1", role = "worker", certificate = "SECRET-NOT", labels = {} })
      put("/peer/" .. node, { key = "QUFBQQ==", role = "worker" })
      put("/assign/" .. node .. "/block/v1", { size = 1 })
      put("/assign/0other/block/v2", { size = 2 })
      agents.start()
      drain()
      body()
      agents.stop()
    end)
  end

  it("tells a new agent all that is its own, and nothing of others", with_hub(function()
    local req = connect(node)
    drain()
    local lines = req:messages()
    assert.equal(200, req.status)
    assert.equal(made.cluster_id, lines[1].cluster.id)
    assert.same({ "127.0.0.1:27242" }, lines[1].cluster.managers)
    assert.equal(1, #lines[2].gossip.keys)
    assert.equal("w1", lines[3].node.name)
    assert.is_nil(lines[3].node.certificate)
    assert.equal(json.null, lines[4].status)
    assert.same({ "block/v1", { size = 1 } }, { lines[5].put, lines[5].value })
    assert.equal("all", lines[6].peers)
    assert.equal(2, #agents.mark():match("%.(%d+)$") + 1)
    local last = lines[#lines]
    assert.equal(fake.revision, last.synced)
    assert.equal(agents.mark(), last.peers)
    assert.is_nil(table.concat(req.chunks):find("v2", 1, true))
    assert.is_nil(table.concat(req.chunks):find("/secret/ca", 1, true))
    assert.is_number(agents.connected(node))
  end))

  it("follows with what changes for it, and bundles what changes for everybody", with_hub(function()
    local req = connect(node)
    drain()
    local n = #req:messages()
    put("/assign/" .. node .. "/block/v3", { size = 3 })
    put("/assign/0other/block/v4", { size = 4 })
    delete("/assign/" .. node .. "/block/v1")
    put("/status/node/" .. node, { status = "ready" })
    put("/peer/0third", { key = "BBBB", role = "worker" })
    delete("/peer/" .. node)
    drain()
    local lines = table.move(req:messages(), n + 1, #req:messages(), 1, {})
    assert.same({ "block/v3", "block/v1", "ready" }, { lines[1].put, lines[2].delete, lines[3].status.status })
    assert.same({ peer = "0third", key = "BBBB", role = "worker" }, lines[4])
    assert.same({ peer = node, gone = true }, lines[5])
    assert.same({ peers = agents.mark() }, lines[6])
    assert.is_nil(table.concat(req.chunks):find("v4", 1, true))
  end))

  it("does not list the peers again to whom has them", with_hub(function()
    local req = connect(node, { peers = agents.mark() })
    drain()
    local all = table.concat(req.chunks)
    assert.truthy(all:find('"peers":"same"', 1, true))
    assert.is_nil(all:find("QUFBQQ==", 1, true))
    put("/peer/0third", { key = "BBBB", role = "worker" })
    delete("/peer/0third")
    local text = agents.mark()
    assert.is_nil(text:match("^0%."))
  end))

  it("has one agent a node: the later start lives, a copy is refused", with_hub(function()
    local first = connect(node, { starts = 3, instance = "aa" })
    drain()
    local ok, err = pcall(connect, node, { starts = 3, instance = "bb" })
    assert.is_false(ok)
    assert.equal("conflict", err.code)
    local second = connect(node, { starts = 4, instance = "cc" })
    drain()
    assert.is_true(first.finished)
    assert.equal("conflict", first:messages()[#first:messages()].error.code)
    first:leave() -- late, and no matter
    assert.is_number(agents.connected(node))
    second:leave()
    assert.is_nil(agents.connected(node))
    assert.is_number(agents.lost(node))
  end))

  it("waits for the revision that the agent has seen, and says so when it does not come", with_hub(function()
    local ok, err = pcall(connect, node, { min = fake.revision + 5 })
    assert.is_false(ok)
    assert.equal("state_unknown", err.code)
  end))

  it("cuts off an agent that takes nothing", with_hub(function()
    local req = connect(node)
    drain()
    function req:write() return true end -- and never calls back
    local big = ("x"):rep(100000)
    for i = 1, 30 do put("/assign/" .. node .. "/block/v" .. i, { text = big }) end
    drain()
    assert.is_true(req.aborted)
  end))

  it("refuses to serve before it is there and after", fake.task(function()
    fake.make()
    agents.stop()
    local ok, err = pcall(connect, "0x")
    assert.is_false(ok)
    assert.equal("closed", err.code)
  end))
end)

describe("the agent's connection", function()
  before_each(function() fake.reset() end)

  it("goes to every manager, and says when the node is no member any more", fake.task(function()
    heard = {}
    fake.make()
    local me = identity.me
    me.managers = json.array { "10.0.0.1:27242", "10.0.0.2:27242" }
    local asked = {}
    fake.answer = function(opts)
      asked[#asked + 1] = opts.host
      if opts.host == "10.0.0.1" then return errors.new("unreachable", "no route") end
      opts.on_head(403)
      opts.on_data('{"error":{"code":"denied","message":"not a member"}}')
      return nil, { status = 403 }
    end
    agent.start()
    async.sleep(100)
    agent.stop()
    table.sort(asked)
    assert.equal("10.0.0.2", asked[#asked])
    assert.equal("denied", told("gone")[1][1].code)
  end))

  it("begins again with short pauses when it is woken", fake.task(function()
    heard = {}
    fake.make()
    identity.me.managers = json.array { "10.0.0.1:27242" }
    local calls = 0
    fake.answer = function()
      calls = calls + 1
      return errors.new("unreachable", "no route")
    end
    local function wait_calls(n, seconds)
      local deadline = sys.mono_ms() + seconds * 1000
      while calls < n and sys.mono_ms() < deadline do async.sleep(5) end
      return calls >= n
    end
    agent.start()
    local first = wait_calls(7, 30) -- the next pauses are of 0.8 s and more, and then of 1.6 and more
    agent.wake()
    local more = wait_calls(10, 2)
    agent.stop()
    assert.same({ true, true }, { first, more }, calls .. " calls")
  end))

  it("takes what comes in pieces, and ends on nonsense", fake.task(function()
    heard = {}
    fake.make()
    identity.me.managers = json.array { "10.0.0.1:27242" }
    local calls = 0
    fake.answer = function(opts)
      calls = calls + 1
      if calls > 1 then return errors.new("unreachable", "no") end
      opts.on_head(200)
      for piece in ('{"node":{"name":"w"}}\n{"synced":7,"peers":"0.0"}\n'):gmatch("..?.?") do opts.on_data(piece) end
      assert.equal("10.0.0.1:27242", agent.view().manager)
      assert.is_true(agent.view().synced)
      return errors.new("closed", "gone")
    end
    agent.start()
    async.sleep(100)
    assert.equal("w", agent.view().node.name)
    assert.is_nil(agent.view().manager)
    assert.equal(1, #told("synced"))
    assert.equal(1, #told("disconnected"))
    agent.stop()
  end))
end)
