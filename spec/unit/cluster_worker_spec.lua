local fake = require "spec.unit.cluster_fake"
local agent = require "symphony.cluster.agent"
local async = require "symphony.async"
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local identity = require "symphony.cluster.identity"
local join = require "symphony.cluster.join"
local json = require "symphony.json"
local router = require "symphony.api.router"
local sys = require "sym.sys"
local token = require "symphony.cluster.token"
local worker = require "symphony.cluster.worker"

local NODE, OTHER = "0000000000000000000000wk01", "0000000000000000000000wk02"
local SECRET = crypto.base64(("s"):rep(32))
local KEYS = { keys = { { id = 1, secret = SECRET, use = true } } }
local ca_key, ca, manager

local function certificate(key, ends)
  return crypto.cert_sign(ca_key, ca, crypto.csr(key, "x"),
    { cn = NODE, ou = "worker", o = "c1", not_before = fake.now - 10, not_after = ends or fake.now + 1e6 })
end

-- What is on the disk of a member; its key.json.
local function member(fields, ends)
  fake.reset()
  fake.options = { role = "block", config_dir = "/dir", remote_port = 27243, gossip_port = 37066, gossip_given = true,
    bind_addr = "0.0.0.0" }
  ca_key = crypto.key_generate()
  ca = crypto.ca_new(ca_key, "c1", 0, fake.now + 1e8)
  local key = assert(identity.node_key())
  assert(identity.save_tls { ca = ca, cert = certificate(key, ends) })
  local doc = { format = 1, node_id = NODE, cluster_id = "c1", role = "worker", name = "w1", starts = 3,
    removed = false, advertise = { remote = "10.0.0.5:27243", gossip = "10.0.0.5:37066" },
    managers = { "10.0.0.1:27242" },
    folder = fake.folders["/dir/tls"] }
  for k, v in pairs(fields or {}) do doc[k] = v end
  fake.files["/dir/key.json"] = json.encode(doc)
  return doc
end

local function answer(doc, status)
  return nil, { status = status or 200, body = json.encode(doc), peer = { cn = "m1" } }
end

-- A manager that holds the agent's stream and has what it is asked, by path, in manager.answers.
local function make_manager()
  local m = { reports = {}, answers = {}, lines = nil }
  m.cluster = { id = "c1", name = "c1", epoch = 1, ca = ca, trust = 1, sign = crypto.cert_info(ca).digest,
    managers = { "10.0.0.1:27242" } }
  function m.say(...)
    for _, doc in ipairs { ... } do m.stream.on_data(json.encode(doc) .. "\n") end
  end
  m.first = function()
    m.say({ cluster = m.cluster }, { gossip = KEYS }, { node = { name = "w1", availability = "active" } },
      { status = m.status or json.null }, { peers = "all" },
      { peer = NODE, key = crypto.base64("key"), role = "worker" },
      { peer = OTHER, key = crypto.base64("other"), role = "worker" }, { synced = 5, peers = "4.2" })
  end
  m.answers["/v1/agent"] = function(opts)
    m.stream = opts
    opts.on_head(200)
    m.first()
    return fake.HOLD
  end
  m.answers["/v1/agent/report"] = function(opts)
    local body = json.decode(opts.body)
    m.reports[#m.reports + 1] = body
    m.status = { status = body.status, instance = body.instance, trust = body.trust, since = 1 }
    if m.stream and fake.is_held(m.stream) then m.say { status = m.status } end
    return answer {}
  end
  m.answers["/v1/gossip"] = function() return answer {} end
  m.answers["/v1/agent/leave"] = function() return answer { node_id = NODE } end
  fake.answer = function(opts)
    local path = opts.path:match("^[^?]*")
    m.asked = path
    return (m.answers[path] or error("asked for " .. path))(opts)
  end
  return m
end

local function soon(what, check)
  for _ = 1, 100 do
    local found = check()
    if found then return found end
    async.sleep(5)
  end
  error("in vain: " .. what, 2)
end

-- A body for a member that runs; the end of it leaves nothing behind.
local function running(fields, body, ends)
  return function()
    member(fields, ends)
    manager = make_manager()
    fake.run(function()
      local ok, what = xpcall(function()
        worker.start()
        soon("the start", function() return agent.view() and agent.view().synced end)
        soon("ready", function() return agent.view().status end)
        body()
      end, function(e) return type(e) == "table" and e or debug.traceback(e, 2) end)
      worker.deactivate()
      fake.answer = function() return errors.new("unreachable", "the test is over") end
      if not ok then error(what, 0) end
    end)
  end
end

local function saved()
  return json.decode(fake.files["/dir/key.json"])
end

local function logged(pattern)
  return table.concat(fake.logged, "\n"):find(pattern)
end

describe("a worker", function()
  it("resumes: one start more is on the disk, it hears, speaks, and reports what it is", running(nil, function()
    assert.equal(4, saved().starts)
    assert.is_true(saved().gossip_start >= fake.now * 1000)
    assert.equal(saved().gossip_start, fake.gossip.options.start)
    assert.equal("10.0.0.5:37066", fake.gossip.options.address)
    assert.equal("other", fake.gossip.peers[OTHER])
    assert.equal(1, #manager.reports)
    local word = manager.reports[1]
    assert.same({ "ready", 4, { "block" }, 1 }, { word.status, word.starts, word.services, word.trust })
    assert.same({ remote = "10.0.0.5:27243", gossip = "10.0.0.5:37066" }, word.addresses)
    local status = worker.status()
    assert.same({ "ready", "active", "10.0.0.1:27242", 5 },
      { status.status, status.availability, status.manager, status.revision })
    assert.same({}, status.warnings)
  end))

  it("knows its peers by the keys that the managers tell of", running(nil, function()
    local function ask(id, fingerprint)
      local req = fake.request("GET", "/v1/version", { peer = { cn = id, ou = "worker", fingerprint = fingerprint } })
      router.reset()
      router.route("GET", "/v1/version", { auth = { worker = true } }, function() return 200, { ok = true } end)
      router.dispatch(req)
      soon("an answer", function() return req.status end)
      return req.status
    end
    local good = crypto.hex(crypto.sha256("other"))
    assert.equal(200, ask(OTHER, good))
    assert.equal(403, ask(OTHER, crypto.hex(crypto.sha256("stolen"))))
    assert.equal(403, ask("0unknown", good))
    manager.say { peer = OTHER, key = "not base64", role = "worker" }
    assert.equal(403, ask(OTHER, good))
    manager.say { peer = OTHER, gone = true }
    assert.equal(403, ask(OTHER, good))
    assert.same({ OTHER }, fake.dropped)
    assert.is_nil(fake.gossip.peers[OTHER])
  end))

  it("says again that it is ready when the state says otherwise, and once only", running(nil, function()
    manager.say { status = { status = "down", since = 9 } }
    soon("a report", function() return #manager.reports == 2 end)
    worker.look_after()
    manager.say { heartbeat = 9 }
    async.sleep(20)
    assert.equal(2, #manager.reports)
    assert.equal("ready", agent.view().status.status)
  end))

  it("follows the machine's address only if nobody chose one", function()
    local default = sys.default_address
    sys.default_address = function() return "10.9.9.9" end
    running({ follows = true }, function()
      worker.look_after()
      assert.equal("10.9.9.9:27243", saved().advertise.remote)
      assert.equal("10.9.9.9:37066", fake.gossip.told.address)
      soon("a report", function() return #manager.reports == 2 end)
      assert.equal("10.9.9.9:27243", manager.reports[2].addresses.remote)
    end)()
    running(nil, function()
      worker.look_after()
      assert.equal("10.0.0.5:27243", saved().advertise.remote)
    end)()
    sys.default_address = default
  end)

  it("is the one whom a conflict is told to", running(nil, function()
    manager.answers["/v1/agent/report"] = function()
      return answer({ error = { code = "conflict", message = "another daemon", hint = "stop it" } }, 409)
    end
    manager.say { status = { status = "down" } }
    soon("the warning", function() return worker.status().warnings[1] end)
    assert.equal("another daemon", worker.status().warnings[1])
  end))

  it("stops when it is no member any more, for good", running(nil, function()
    manager.answers["/v1/agent"] = function(opts)
      opts.on_head(403)
      opts.on_data('{"error":{"code":"denied","message":"this node is not a member"}}')
      return nil, { status = 403 }
    end
    fake.release(manager.stream, { code = "closed", message = "cut off" })
    soon("the end", function() return not fake.started end)
    assert.is_true(saved().removed)
    assert.is_nil(fake.gossip)
    assert.equal("removed", worker.status().state)
    local answered = assert(worker.leave {})
    assert.is_true(answered.told)
    assert.is_nil(fake.files["/dir/key.json"])
    assert.is_nil(identity.me)
  end))

  it("leaves, and is not told that it was removed", running(nil, function()
    manager.answers["/v1/agent/leave"] = function()
      manager.answers["/v1/agent"] = function(opts)
        opts.on_head(403)
        opts.on_data('{"error":{"code":"denied","message":"this node is not a member"}}')
        return nil, { status = 403 }
      end
      fake.release(manager.stream, { code = "closed", message = "cut off" })
      async.sleep(100) -- the agent is back, and sent away, before the answer comes
      return answer { node_id = NODE }
    end
    local g = fake.gossip
    assert.is_true(assert(worker.leave {}).told)
    assert.is_true(g.left)
    assert.same({ false, nil, nil }, { fake.started, identity.me, fake.files["/dir/tls/node.crt"] })
    assert.is_nil(logged("error:"))
    local again, err = worker.leave {}
    assert.is_nil(again)
    assert.equal("no_cluster", err.code)
  end))

  it("leaves without a manager only with --force", running(nil, function()
    manager.answers["/v1/agent/leave"] = function() return errors.new("unreachable", "no route") end
    local left, err = worker.leave {}
    assert.is_nil(left)
    assert.truthy(err.hint:find("block leave --force", 1, true))
    assert.equal(NODE, identity.me.node_id)
    assert.is_nil(saved().phase)
    assert.is_false(assert(worker.leave { force = true }).told)
    assert.is_nil(fake.files["/dir/key.json"])
  end))

  it("leaves also when it could not start", function()
    member()
    manager = make_manager()
    fake.start_error = errors.new("in_use", "remote port: in use")
    fake.run(function()
      worker.start()
      soon("the end", function() return fake.quits[1] end)
      assert.equal(1, fake.quits[1])
      assert.equal("remote port: in use", identity.trouble)
      assert.is_true(assert(worker.leave {}).told)
      assert.equal("/v1/agent/leave", manager.asked)
    end)
  end)

  it("stays what it was when the disk is full, and can leave later", running(nil, function()
    fake.write_fails = true
    local left, err = worker.leave {}
    assert.is_nil(left)
    assert.equal("no_space", err.code)
    assert.equal(NODE, identity.me.node_id)
    manager.cluster.managers = { "10.0.0.7:1" }
    manager.say { cluster = manager.cluster }
    assert.same({ "10.0.0.7:1" }, identity.me.managers) -- in memory at least
    fake.write_fails = nil
    assert.is_true(assert(worker.leave {}).told)
  end))

  it("has nothing left of what was under way when it left", running(nil, function()
    local renewing
    manager.answers["/v1/renew"] = function(opts)
      renewing = opts
      return fake.HOLD
    end
    async.spawn(worker.renew)
    soon("the request", function() return renewing end)
    assert(worker.leave {})
    local key = crypto.key_load(("KEY %s"):format("x"))
    fake.release(renewing, answer { certificate = certificate(key), ca = ca })
    async.sleep(20)
    assert.is_nil(fake.files["/dir/tls/node.crt"])
    assert.is_nil(logged("error:"))
  end))

  it("has an expired certificate renewed, and the agent tries again at once", running(nil, function()
    local renewed = 0
    manager.answers["/v1/agent"] = function(opts)
      if renewed > 0 then
        manager.stream = opts
        opts.on_head(200)
        manager.first()
        return fake.HOLD
      end
      opts.on_head(403)
      opts.on_data('{"error":{"code":"expired","message":"the certificate has expired"}}')
      return nil, { status = 403 }
    end
    manager.answers["/v1/renew"] = function(opts)
      renewed = renewed + 1
      assert.is_true(opts.tls.expired_ok)
      return answer { certificate = certificate(identity.tls.key), ca = ca }
    end
    fake.release(manager.stream, { code = "closed", message = "gone" })
    soon("the stream", function() return renewed > 0 and agent.view().synced end)
    assert.equal(1, renewed)
    assert.equal(fake.now + 1e6, identity.tls.info.not_after)
  end))

  it("tries again with gossip when its port is taken, and says so meanwhile", function()
    member()
    manager = make_manager()
    fake.gossip_error = errors.new("in_use", "address already in use")
    fake.run(function()
      worker.start()
      soon("the warning", function() return agent.view() and agent.view().synced and worker.status().warnings[1] end)
      assert.truthy(worker.status().warnings[1]:find("gossip port", 1, true))
      fake.gossip_error = nil
      worker.look_after()
      assert.truthy(fake.gossip)
      assert.same({}, worker.status().warnings)
      worker.deactivate()
    end)
  end)

  it("is silent while it is refused as a copy, and speaks when it is not", function()
    member()
    manager = make_manager()
    local reported, refused = manager.answers["/v1/agent/report"], 0
    manager.answers["/v1/agent/report"] = function()
      refused = refused + 1
      return answer({ error = { code = "conflict", message = "this folder is a copy" } }, 409)
    end
    fake.run(function()
      worker.start()
      local silent = pcall(function()
        soon("the refusal", function() return refused >= 2 and worker.status().warnings[1] end)
      end) and not fake.gossip
      local warning = worker.status().warnings[1]
      manager.answers["/v1/agent/report"] = reported
      worker.look_after()
      local speaks, warnings = fake.gossip ~= nil, worker.status().warnings
      worker.deactivate()
      assert.is_true(silent)
      assert.equal("this folder is a copy", warning)
      assert.is_true(speaks)
      assert.same({}, warnings)
    end)
  end)

  it("takes new gossip keys into use, and new ones only", running(nil, function()
    manager.say { gossip = { keys = { { id = 1, secret = SECRET, use = true }, { id = 2, secret = SECRET } } } }
    soon("the ring", function() return #fake.gossip.ring == 2 end)
    assert.equal(2, json.decode(fake.gossip.told.meta)[5])
    manager.say { gossip = { keys = { { id = 1, secret = "short", use = true } } } }
    soon("the complaint", function() return logged("error: gossip: the gossip keys are damaged") end)
    assert.equal(2, #fake.gossip.ring)
  end))

  it("may join, leave and join again without anything that is there twice", running(nil, function()
    for _ = 1, 3 do
      assert(worker.leave {})
      member()
      manager = make_manager()
      local doc = saved()
      assert(worker.activate(doc, { gossip_keys = KEYS.keys }))
      assert.equal("ready", worker.wait_ready(function() end))
      assert.equal(1, #manager.reports)
    end
    local streams = 0
    for _, opts in ipairs(fake.requests) do
      if fake.is_held(opts) then streams = streams + 1 end
    end
    assert.equal(1, streams)
    assert.equal(1, fake.opened) -- since the last reset
  end))

  it("joins, remembers whether somebody chose its address, and begins again where it was when that fails", function()
    for _, case in ipairs { { nil, true }, { "10.0.0.6", nil }, { nil, nil, dev = true } } do
      member()
      manager = make_manager()
      for name in pairs(fake.files) do fake.files[name] = nil end
      fake.options.remote_port, fake.options.gossip_port = 0, 0
      manager.answers["/v1/join"] = function(opts)
        local body = json.decode(opts.body)
        local name = body.csr:match("^CSR (%w+) ")
        return answer { node_id = NODE, cluster_id = "c1", name = "w1", role = "worker", ca = ca, dev = case.dev,
          certificate = certificate { name = name }, addresses = body.addresses, managers = { "10.0.0.1:27242" },
          gossip_keys = KEYS.keys }
      end
      fake.run(function()
        local opts = { word = "block", address = "10.0.0.1", token = token.generate(crypto.cert_info(ca).digest),
          advertise = case[1] }
        local function say() end
        fake.write_fails = true
        local joined, err = join.run(opts, say)
        assert.is_nil(joined)
        assert.equal("no_space", err.code)
        assert.is_nil(identity.me)
        fake.write_fails = nil
        assert.equal("ready", assert(join.run(opts, say)).status)
        assert.equal(case[2], saved().follows)
        assert.equal(case.dev and "127.0.0.1" or case[1] or "10.0.0.5", saved().advertise.remote:match("^[%d.]+"))
        assert.truthy(fake.gossip) -- with the keys of the answer
        joined, err = join.run(opts, say)
        assert.is_nil(joined)
        assert.equal("exists", err.code)
        worker.deactivate()
      end)
    end
  end)

  it("keeps the gossip port that it chose itself, unless that is taken", function()
    local uv = require "luv"
    member()
    fake.options.gossip_given, fake.options.bind_addr = false, "127.0.0.1"
    local taken = uv.new_udp()
    assert(taken:bind("127.0.0.1", 0))
    local port = taken:getsockname().port
    local known = { remote = "127.0.0.1:1", gossip = "127.0.0.1:" .. port }
    local advertise = require "symphony.cluster.advertise"
    assert.are_not.equal(port, advertise.options(known).gossip_port)
    taken:close()
    fake.loop()
    assert.equal(port, advertise.options(known).gossip_port)
    fake.loop()
  end)

  -- The last one: of this process there is no more to come.
  it("says that it ends, and nothing after that", running(nil, function()
    local g = fake.gossip
    fake.hooks.quit()
    soon("the end", function() return #fake.quits == 1 end)
    assert.is_true(g.left)
    assert.equal("left", manager.reports[2].status)
    assert.is_true(worker.report())
    assert.equal(2, #manager.reports)
  end))
end)
