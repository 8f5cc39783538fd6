local fake = require "spec.unit.cluster_fake"
local agent = require "symphony.cluster.agent"
local agents = require "symphony.cluster.agents"
local async = require "symphony.async"
local errors = require "symphony.errors"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local sys = require "sym.sys"

agents.bundle_ms, agents.behind_ms = 2, 50

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
    v, session = agent.new_view(), { assigned = {} }
  end)

  local function take(...)
    for _, m in ipairs { ... } do agent.take(v, session, m) end
  end

  it("takes a listing for the whole truth", function()
    v.kept, v.assigned = 4, { ["block/a"] = { size = 1 }, ["block/b"] = { size = 2 } }
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
    assert.equal(4, v.kept)
  end)

  it("keeps the peers that are the same, and follows changes", function()
    v.peers = { one = { key = "K1", role = "worker" } }
    v.kept = 1
    take({ peers = "same" }, { synced = 10, peers = "9.1" })
    assert.same({}, told("peer"))
    take({ peer = "two", key = "K2", role = "worker" }, { peer = "one", gone = true }, { peers = "12.1" },
      { put = "block/a", value = 1, revision = 12 }, { delete = "block/a", revision = 13 }, { heartbeat = 20 })
    assert.same({ { "two", { key = "K2", role = "worker" }, n = 2 }, { "one", nil, n = 1 } }, told("peer"))
    assert.same({ { "block/a", 1, n = 2 }, { "block/a", nil, n = 1 } }, told("assigned"))
    assert.equal("12.1", v.mark)
    assert.equal(20, v.revision)
  end)

  it("knows the client certificates of now, and no more", function()
    v.clients = { old = { role = "reader", fingerprint = "F0" }, same = { role = "reader", fingerprint = "F1" },
      new = { role = "reader", fingerprint = "F2" } }
    take({ clients = "all" }, { client = "same", role = "reader", fingerprint = "F1" },
      { client = "new", role = "operator", fingerprint = "F3" }, { synced = 1, peers = "0.0" })
    assert.same({ same = { role = "reader", fingerprint = "F1" }, new = { role = "operator", fingerprint = "F3" } },
      v.clients)
    assert.same({ { "new", { role = "operator", fingerprint = "F3" }, n = 2 }, { "old", nil, n = 1 } }, told("client"))
    take({ client = "new", gone = true }, { client = "never", gone = true })
    assert.is_nil(v.clients.new)
    assert.same({ "new", nil, n = 1 }, told("client")[3])
    assert.equal(3, #told("client"))
    -- Without end they would fill the memory.
    for i = 1, 1200 do take { client = "c" .. i, role = "reader", fingerprint = "F" } end
    local count = 0
    for _ in pairs(v.clients) do count = count + 1 end
    assert.equal(1000, count)
    take { client = "same", role = "reader", fingerprint = "F9" } -- one that is known may change all the same
    assert.equal("F9", v.clients.same.fingerprint)
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

  it("refuses whatever is not what it should be, and skips what it does not know", function()
    local cluster = { id = "c", ca = "PEM", managers = { "10.0.0.1:1" } }
    local function with(name, value)
      local copy = {}
      for k, x in pairs(cluster) do copy[k] = x end
      copy[name] = value
      return { cluster = copy }
    end
    take({ cluster = cluster }, { news = "of another version" }, { 1, 2, 3 }, {})
    local bad = { { cluster = 5 }, { cluster = json.null }, { cluster = {} }, with("managers", "x"),
      with("managers", {}), with("managers", { "10.0.0.1:1", 7 }), with("managers", { a = "10.0.0.1:1" }),
      with("managers", { "no port" }), with("trust", 1.5), with("trust", "1"), with("trust", 0), with("trust", 2^60),
      with("epoch", -1), with("epoch", {}), with("ca", json.null), with("ca", ("x"):rep(70000)), with("name", 1),
      with("sign", true), with("id", ""), { gossip = 1 }, { gossip = { keys = 1 } }, { gossip = { keys = { 5 } } },
      { gossip = { keys = { { id = 2^33, secret = "x", use = true } } } }, { node = 3 }, { node = { 1 } },
      { status = false }, { status = {} }, { status = { status = 1 } }, { peer = 1 }, { peer = {} },
      { peer = json.null }, { peer = "x", key = 1, role = "worker" }, { peer = "x", key = "K", role = "king" },
      { peer = "x/y", gone = true },
      { peer = ("x"):rep(65), gone = true }, { peers = 5 }, { peers = "1.2 HTTP/1.1\r\nA: b" }, { peers = json.null },
      { put = 1, value = 1, revision = 1 }, { put = "a", revision = 1 }, { put = "a", value = 1, revision = "1" },
      { put = "a", value = 1, revision = 2^60 }, { delete = {}, revision = 1 }, { delete = "a", revision = 1.5 },
      { synced = true, peers = "0.0" }, { synced = 1, peers = 2 }, { synced = -1, peers = "0.0" }, { heartbeat = "x" },
      { heartbeat = 2^60 }, { heartbeat = 1, alone = "yes" } }
    for i, m in ipairs(bad) do
      local ok, err = pcall(take, m)
      assert.is_false(ok, "line " .. i)
      assert.equal("protocol", err.code, "line " .. i)
    end
    assert.same({ 0, "0.0", 0 }, { v.revision, v.mark, v.kept })
    assert.equal(1, #heard)
  end)

  it("keeps so many things, and no more", function()
    v.kept = (1 << 17) - 1
    take({ put = "a", value = 1, revision = 1 }, { put = "a", value = 2, revision = 1 })
    assert.is_false((pcall(take, { peer = "x", key = "K", role = "worker" })))
    assert.is_false((pcall(take, { put = "b", value = 1, revision = 1 })))
  end)

  it("does not hold revisions of one epoch against another", function()
    local cluster = { id = "c", ca = "PEM", epoch = 1, managers = { "10.0.0.1:1" } }
    take({ cluster = cluster }, { synced = 900, peers = "800.2" })
    v.synced, session = nil, { assigned = {} }
    take { cluster = cluster }
    assert.equal(900, v.revision)
    take { cluster = { id = "c", ca = "PEM", epoch = 2, managers = cluster.managers } }
    assert.same({ 0, "0.0" }, { v.revision, v.mark })
    take { synced = 700, peers = "600.2" }
    assert.equal(700, v.revision)
  end)
end)

describe("agents", function()
  local made, node
  local requests = {}

  before_each(function()
    heard = {}
    fake.reset()
  end)
  after_each(function()
    agents.stop()
    for i, req in ipairs(requests) do
      if not req.gone then req:leave() end
      requests[i] = nil
    end
  end)

  -- A request of node @id's agent as the hub has it served.
  local function connect(id, opts)
    local req = fake.request("GET", "/v1/agent", { peer = {} })
    requests[#requests + 1] = req
    opts = opts or {}
    agents.serve(req, { node_id = id }, { starts = opts.starts or 1, instance = opts.instance or "aa",
      epoch = opts.epoch or 1, min = opts.min or 0, peers = opts.peers or "0.0" })
    return req
  end

  -- Bundles go out, and what they lead to: of one loop's timers the one due first fires first, however slow it is.
  local function drain()
    for _ = 1, 4 do async.sleep(2 * agents.bundle_ms) end
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
    assert.equal("all", lines[6].clients)
    assert.equal("all", lines[7].peers)
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

  it("tells of client certificates, all of them at the beginning", with_hub(function()
    put("/client/rita", { name = "rita", role = "reader", fingerprint = "F1", serial = "S", issuer = "I" })
    drain()
    local req = connect(node)
    drain()
    local all, found = req:messages(), {}
    for i, m in ipairs(all) do
      if m.clients or m.client then found[#found + 1] = m end
      if m.clients then assert.equal("rita", all[i + 1].client) end
    end
    assert.same({ { clients = "all" }, { client = "rita", role = "reader", fingerprint = "F1" } }, found)
    local n = #all
    put("/client/otto", { name = "otto", role = "operator", fingerprint = "F2" })
    delete("/client/rita")
    drain()
    assert.same({ { client = "otto", role = "operator", fingerprint = "F2" }, { client = "rita", gone = true } },
      table.move(req:messages(), n + 1, #req:messages(), 1, {}))
    -- After a gap there is nothing left of what is gone.
    agents.start_over()
    local again = connect(node, { starts = 2 })
    drain()
    local text = table.concat(again.chunks)
    assert.truthy(text:find('"otto"', 1, true))
    assert.is_nil(text:find("rita", 1, true))
  end))

  it("lists to each who comes the peers that there are then", with_hub(function()
    local function listed(id)
      local found = {}
      local req = connect(id)
      drain()
      for _, m in ipairs(req:messages()) do
        if m.peer then found[#found + 1] = m.peer end
      end
      table.sort(found)
      return found, req:messages()[#req:messages()].peers
    end
    local peers = listed("0000000000000000000000wk02")
    assert.same(peers, (listed "0000000000000000000000wk03"))
    put("/peer/0third", { key = "BBBB", role = "worker" })
    drain()
    local more, known = listed "0000000000000000000000wk04"
    assert.equal(#peers + 1, #more)
    assert.truthy(table.concat(more, " "):find("0third", 1, true))
    assert.equal(agents.mark(), known)
    delete("/peer/0third")
    drain()
    assert.same(peers, (listed "0000000000000000000000wk05"))
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
    assert.equal(1, agents.count())
    first:leave() -- late, and no matter
    assert.equal(1, agents.count())
    assert.is_number(agents.connected(node))
    second:leave()
    assert.is_nil(agents.connected(node))
    assert.is_number(agents.lost(node))
    assert.equal(0, agents.count())
  end))

  it("waits for the revision that the agent has seen, and says so when it does not come", with_hub(function()
    local ok, err = pcall(connect, node, { min = fake.revision + 5 })
    assert.is_false(ok)
    assert.equal("state_unknown", err.code)
  end))

  it("does not count one that went away while its turn came", with_hub(function()
    local req = fake.request("GET", "/v1/agent", { peer = {}, gone = true })
    local ok, err = pcall(agents.serve, req, { node_id = node }, { starts = 1, instance = "aa", epoch = 1, min = 0 })
    assert.is_false(ok)
    assert.equal("closed", err.code)
    assert.is_nil(agents.connected(node))
    assert.equal(0, agents.count())
  end))

  it("may be stopped while one waits for it to catch up", with_hub(function()
    local result
    async.spawn(function() result = table.pack(pcall(connect, node, { min = fake.revision + 1 })) end)
    async.sleep(30)
    agents.stop()
    put("/kv/x", 1)
    async.sleep(50)
    assert.is_false(result[1])
    assert.equal("closed", result[2].code)
    assert.is_nil(agents.connected(node))
  end))

  it("holds no revision of an earlier epoch against an agent, and waits for a later one", with_hub(function()
    local cluster = json.decode(fake.kvs["/cluster"].value)
    cluster.epoch = 2
    put("/cluster", cluster)
    local req = connect(node, { epoch = 1, min = fake.revision + 1000, peers = agents.mark() })
    drain()
    local listed = false
    for _, m in ipairs(req:messages()) do listed = listed or m.peers == "all" end
    assert.is_true(listed)
    assert.equal(fake.revision, req:messages()[#req:messages()].synced)
    local ok, err = pcall(connect, node, { epoch = 3, min = 0 })
    assert.is_false(ok)
    assert.equal("state_unknown", err.code)
  end))

  it("does not say of peers that they were sent while they are not", with_hub(function()
    local before, sleep, out = agents.mark(), async.sleep, async.event()
    local _ <close> = setmetatable({}, { __close = function() async.sleep = sleep end })
    function async.sleep(ms) -- the bundle goes out when the test says so
      if ms == agents.bundle_ms then return out:wait() end
      return sleep(ms)
    end
    local req = connect(node, { peers = before })
    put("/peer/0third", { key = "BBBB", role = "worker" })
    drain()
    local lines = req:messages()
    assert.equal(before, lines[#lines].peers)
    out:set()
    drain()
    lines = req:messages()
    assert.equal(agents.mark(), lines[#lines].peers)
    assert.are_not.equal(before, agents.mark())
  end))

  it("says something of a value that is damaged, and goes on", with_hub(function()
    fake.apply { ops = { { put = "/assign/" .. node .. "/block/v9", value = "no JSON" } } }
    local req = connect(node)
    drain()
    assert.truthy(table.concat(req.chunks):find('"put":"block/v9","revision":%d+,"value":null'))
    assert.is_number(req:messages()[#req:messages()].synced)
  end))

  it("does not tell everybody of another leader, which is no matter to them", with_hub(function()
    local req = connect(node)
    drain()
    local n = #req:messages()
    fake.status.leader = 99
    put("/node/0other", { node_id = "0other", role = "worker" })
    drain()
    assert.equal(n, #req:messages())
  end))

  it("has all list again after a snapshot, once", with_hub(function()
    local req, open, loads = connect(node), fake.watching(), 0
    drain()
    local state = require "symphony.cluster.state"
    local list = state.list_raw
    state.list_raw = function(prefix, ...)
      if prefix == "/peer/" then loads = loads + 1 end
      return list(prefix, ...)
    end
    fake.kvs["/peer/" .. node] = nil
    fake.compact()
    async.sleep(20)
    state.list_raw = list
    assert.is_true(req.finished)
    req:leave()
    assert.equal(2, loads) -- here, and for gossip
    assert.equal(open, fake.watching())
    local again = connect(node, { instance = "aa" })
    drain()
    assert.is_nil(table.concat(again.chunks):find("QUFBQQ==", 1, true))
    fake.compact()
    agents.stop() -- before its turn
    async.sleep(20)
    assert.is_false((pcall(connect, node)))
  end))

  it("says in its heartbeat whether it has lost the others", with_hub(function()
    local req = connect(node)
    drain()
    local function heard_next()
      local n = #req:messages()
      for _ = 1, 20 do agents.beat() end -- and those that come by themselves
      drain()
      assert.is_true(#req:messages() > n)
      return req:messages()[#req:messages()]
    end
    assert.same({ heartbeat = fake.revision }, heard_next())
    fake.status.has_quorum, fake.status.leader = false, 0
    assert.same({ heartbeat = fake.revision, alone = true }, heard_next())
  end))

  it("ends a stream whose certificate has expired meanwhile", with_hub(function()
    local req = connect(node)
    drain()
    local function beat()
      for _ = 1, 20 do agents.beat() end
      drain()
    end
    req.peer.expires = require("sym.sys").now() + 100
    beat()
    assert.is_falsy(req.finished)
    req.peer.expires = require("sym.sys").now() - 1
    beat()
    assert.is_true(req.finished)
    local lines = req:messages()
    assert.equal("expired", lines[#lines].error.code)
    assert.is_nil(agents.connected(node))
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

  it("serves by and by when its state cannot be read at first", with_hub(function()
    local state = require "symphony.cluster.state"
    local list, retry, failed = state.list_raw, agents.retry_ms, 0
    agents.stop()
    agents.retry_ms = 5
    state.list_raw = function(prefix, ...)
      if prefix == "/peer/" and failed < 2 then
        failed = failed + 1
        return nil, { code = "io", message = "no reader is free" }
      end
      return list(prefix, ...)
    end
    agents.start()
    assert.is_false((pcall(connect, node)))
    async.sleep(50)
    assert.equal(200, connect(node).status)
    agents.stop()
    failed = 0
    agents.start()
    agents.stop() -- meanwhile
    async.sleep(50)
    state.list_raw, agents.retry_ms = list, retry
    assert.equal(1, failed)
    assert.is_false((pcall(connect, node)))
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

  it("says when it trusts none of them, and otherwise what was wrong last", fake.task(function()
    heard = {}
    fake.make()
    identity.me.managers = json.array { "10.0.0.1:27242", "10.0.0.2:27242" }
    local codes = { ["10.0.0.1"] = "unauthenticated", ["10.0.0.2"] = "unreachable" }
    fake.answer = function(opts) return errors.new(codes[opts.host], "it is " .. codes[opts.host]) end
    agent.start()
    async.sleep(60)
    local before, why = #told("distrusted"), agent.view().why
    codes["10.0.0.2"] = "unauthenticated"
    agent.wake()
    async.sleep(60)
    agent.stop()
    assert.equal(0, before)
    assert.truthy(why and why:find("it is un", 1, true))
    assert.equal("it is unauthenticated", told("distrusted")[1][1].message)
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

  -- Runs the agent against @answer for @ms; returns how often it has asked.
  local function run(ms, answer)
    heard = {}
    fake.make()
    identity.me.managers = json.array { "10.0.0.1:27242" }
    local calls = 0
    fake.answer = function(opts)
      calls = calls + 1
      return answer(opts, calls)
    end
    agent.start()
    async.sleep(ms)
    agent.stop()
    return calls
  end

  it("does not hammer a manager that takes it in and throws it out", fake.task(function()
    local calls = run(1000, function(opts)
      opts.on_head(200)
      opts.on_data('{"synced":7,"peers":"0.0"}\n')
      return errors.new("closed", "gone")
    end)
    assert.is_true(calls >= 3 and calls <= 8, calls)
    assert.equal(calls, #told("disconnected"))
  end))

  it("does not hammer those who do not know it, whoever listens", fake.task(function()
    assert.equal(1, run(300, function(opts)
      opts.on_head(403)
      opts.on_data('{"error":{"code":"denied","message":"not a member"}}')
      return nil, { status = 403 }
    end))
  end))

  it("says once in the log when no manager can be reached", fake.task(function()
    fake.make()
    identity.me.managers = json.array { "10.0.0.1:27242" }
    local calls, synced_at = 0, 20
    fake.answer = function(opts)
      calls = calls + 1
      if calls ~= synced_at then return errors.new("unreachable", "no route") end
      opts.on_head(200)
      opts.on_data('{"synced":7,"peers":"0.0"}\n')
      return errors.new("closed", "gone")
    end
    local function warnings()
      return select(2, table.concat(fake.logged, "\n"):gsub("warn: agent: no manager can be reached %(no route%)", ""))
    end
    local function go_on(n)
      while calls < n do
        agent.wake()
        async.sleep(1)
      end
    end
    agent.start()
    go_on(5)
    assert.equal(0, warnings())
    go_on(19)
    assert.equal(1, warnings())
    go_on(25)
    assert.equal(1, warnings())
    go_on(35)
    assert.equal(2, warnings())
    agent.stop()
  end))

  it("outlives what nobody has thought of", fake.task(function()
    local calls = run(300, function() error("boom") end)
    assert.equal(1, calls) -- it has a long pause then
    agent.start()
    fake.answer = function() return errors.new("unreachable", "no") end
    agent.wake()
    async.sleep(20)
    agent.stop()
    assert.truthy(table.concat(fake.logged, "\n"):find("error: agent: .*boom"))
  end))

  it("ends a stream on nonsense, with its reason, and says what it knows to the next manager", fake.task(function()
    local paths = {}
    run(300, function(opts, n)
      paths[n] = opts.path
      opts.on_head(200)
      opts.on_data('{"cluster":{"id":"c","ca":"P","epoch":3,"managers":["10.0.0.1:1"]}}\n{"synced":7,"peers":"5.1"}\n')
      opts.on_data('{"peers":"9.9 HTTP/1.1\\r\\nX: y"}\n{"heartbeat":99}\n')
      return errors.new("canceled", "canceled")
    end)
    assert.truthy(paths[1]:find("&epoch=0&min=0&peers=0.0", 1, true), paths[1])
    assert.truthy(paths[2]:find("&epoch=3&min=7&peers=5.1", 1, true), paths[2])
    assert.truthy(table.concat(fake.logged, "\n"):find("has ended: a line \"peers\" of the manager's stream", 1, true))
  end))

  it("says what is missing when this node has no identity any more", fake.task(function()
    fake.make()
    agent.start()
    agent.stop()
    identity.tls = nil
    local answer, err = agent.call("POST", "/v1/agent/report", {})
    assert.is_nil(answer)
    assert.equal("closed", err.code)
  end))

  -- Has the agent know three managers, all of which take it in; @ready: which have the others, by host. Returns the
  -- hosts that it has had streams with.
  local function three(ready)
    fake.make()
    identity.me.managers = json.array { "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1" }
    local hosts = {}
    fake.answer = function(opts)
      if opts.path == "/readyz" then
        if ready[opts.host] then return nil, { status = 200, body = '{"ready":true}', peer = {} } end
        return errors.new("unreachable", "no")
      end
      hosts[#hosts + 1] = opts.host
      opts.on_head(200)
      opts.on_data('{"synced":7,"peers":"0.0"}\n')
      return fake.HOLD
    end
    return hosts
  end

  it("goes from a manager that has lost the others to one that has not", fake.task(function()
    local ready = { ["10.0.0.1"] = true, ["10.0.0.2"] = true, ["10.0.0.3"] = true }
    local hosts = three(ready)
    agent.spread_ms = 1
    agent.start()
    async.sleep(20)
    local function say_alone() fake.requests[1].on_data('{"heartbeat":8,"alone":true}\n') end
    say_alone()
    async.sleep(20)
    assert.equal(1, #hosts) -- it has them again
    for _, host in ipairs { "10.0.0.1", "10.0.0.2", "10.0.0.3" } do ready[host] = false end
    say_alone()
    async.sleep(20)
    assert.equal(1, #hosts) -- nobody is better
    assert.is_true(agent.view().synced)
    local other = hosts[1] == "10.0.0.3" and "10.0.0.2" or "10.0.0.3"
    ready[other] = true
    say_alone()
    say_alone()
    async.sleep(100)
    agent.stop()
    agent.spread_ms = 3000
    assert.same({ other, 2 }, { hosts[2], #hosts })
    assert.truthy(table.concat(fake.logged, "\n"):find("it has lost the other managers", 1, true))
  end))

  it("calls the manager of its stream first, and each once", fake.task(function()
    fake.make()
    identity.me.managers = json.array { "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1" }
    agent.start()
    agent.view().manager = "10.0.0.2:1"
    local asked = {}
    fake.answer = function(opts)
      asked[#asked + 1] = opts.host
      return errors.new("unreachable", "no")
    end
    local _, err = agent.call("POST", "/v1/agent/report", {})
    agent.stop()
    assert.equal("unreachable", err.code)
    assert.equal("10.0.0.2", asked[1])
    table.sort(asked)
    assert.same({ "10.0.0.1", "10.0.0.2", "10.0.0.3" }, asked)
  end))
end)
