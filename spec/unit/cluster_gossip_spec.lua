local fake = require "spec.unit.cluster_fake"
local async = require "symphony.async"
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local gossip = require "symphony.cluster.gossip"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local sys = require "sym.sys"
local uv = require "luv"

local SECRET = crypto.base64(("s"):rep(32))

local function keys(...)
  local list = {}
  for i, id in ipairs { ... } do list[i] = { id = id, secret = SECRET, use = i == 1 } end
  return { keys = list }
end

local function key(text) return crypto.base64(text) end

local function known(all, secret)
  return function() return secret or keys(1), all or {} end
end

local META = { remote_port = 27243, role = "worker", services = { "block" }, ring = 2, ring_use = 1, version = "1.2.3" }

-- A node that may speak; @gossip_address: what it advertises.
local function node(gossip_address, body)
  return function()
    fake.reset()
    fake.options.role = "block"
    identity.me = { node_id = "n0", cluster_id = "c1", role = "worker", gossip_start = 7, managers = {},
      advertise = { remote = "10.0.0.5:27243", gossip = gossip_address } }
    identity.tls = { ca = "CA", cert = "CERT", key = crypto.key_generate() }
    fake.run(function()
      local ok, what = xpcall(body, function(e) return type(e) == "table" and e or debug.traceback(e, 2) end)
      gossip.stop()
      if not ok then error(what, 0) end
    end)
  end
end

local function started(all, body)
  return node("10.0.0.5:37066", function()
    assert(gossip.start(known(all)))
    body(fake.gossip)
  end)
end

local function see(id, state, meta)
  fake.gossip.members_[id] = { node_id = id, state = state or "alive", age_ms = 1, incarnation = 1,
    address = "10.0.0.9:37066", meta = meta or gossip.encode_meta(META) }
  return fake.gossip.members_[id]
end

describe("the metadata of a node", function()
  it("is small, and comes back as it was", function()
    local text = gossip.encode_meta(META)
    assert.is_true(#text < 192)
    assert.same(META, gossip.decode_meta(text))
    local manager = gossip.decode_meta(gossip.encode_meta { remote_port = 1, role = "manager", ring = 1, ring_use = 1,
      version = "x" })
    assert.same({ "manager", {} }, { manager.role, manager.services })
  end)

  it("says where a manager is whose raft address has changed, if there is room for it", function()
    local m = { remote_port = 27242, role = "manager", services = {}, ring = 3, ring_use = 3, version = "0.1.0",
      raft = { id = 2, moves = 7, address = "[fd00::5]:15760" } }
    local text = gossip.encode_meta(m)
    assert.is_true(#text <= 192)
    assert.same(m.raft, gossip.decode_meta(text).raft)
    m.raft.address = ("a"):rep(63) .. "." .. ("b"):rep(63) .. "." .. ("c"):rep(63) .. ":15760"
    text = gossip.encode_meta(m)
    assert.is_true(#text <= 192)
    assert.equal("manager", gossip.decode_meta(text).role)
    assert.is_nil(gossip.decode_meta(text).raft)
    -- Nonsense there is left out, and nothing else with it.
    for _, more in ipairs { '0,1,"a:1"', '1,0,"a:1"', '1,1,"a"', '1,1,7', '"1",1,"a:1"', '1,1.5,"a:1"', '1,1',
      'null,null,null', '1,1,"' .. ("a"):rep(100) .. ':x"' } do
      local info = gossip.decode_meta('[1,5,"m","",1,1,"v",' .. more .. "]")
      assert.same({ "manager", 5 }, { info.role, info.remote_port }, more)
      assert.is_nil(info.raft, more)
    end
  end)

  it("is nothing when it is of another version, or none", function()
    for _, text in ipairs { "", "x", "null", "5", "{}", "[]", '[1]', '[2,1,"m","",1,1,"v"]', '[1,0,"m","",1,1,"v"]',
      '[1,65536,"m","",1,1,"v"]', '[1,1,"x","",1,1,"v"]', '[1,1,7,"",1,1,"v"]', '[1,1.5,"m","",1,1,"v"]',
      '[1,1,"m",null,1,1,"v"]', '[1,1,"m","","1",1,"v"]', '[1,1,"m","",1,1,null]', "\xff", ("["):rep(190) } do
      assert.same({}, gossip.decode_meta(text), text)
    end
  end)
end)

describe("gossip", function()
  it("begins with what is known when all else is there", started({ a = key "A" }, function(g)
    assert.same({ "n0", "c1", 7, "10.0.0.5:37066", 37066 }, { g.options.node_id, g.options.cluster_id, g.options.start,
      g.options.address, g.options.port })
    assert.same({ a = "A" }, g.peers)
    assert.equal(("s"):rep(32), g.ring[1].secret)
    assert.is_true(gossip.started())
    assert.is_true(gossip.start(known())) -- said twice, it is one
    assert.equal(1, fake.opened)
  end))

  it("says why it cannot, and can later", node("10.0.0.5:37066", function()
    fake.gossip_error = errors.new("in_use", "address already in use")
    local ok, err = gossip.start(known())
    assert.is_nil(ok)
    assert.equal("in_use", err.code)
    assert.truthy(err.hint:find("--listen-gossip-port", 1, true))
    assert.is_false(gossip.started())
    for _, bad in ipairs { {}, { keys = {} }, { keys = { 5 } }, { keys = { { id = 1, secret = "x", use = true } } } } do
      ok, err = gossip.start(known({}, bad))
      assert.is_nil(ok)
      assert.equal("corrupt", err.code)
    end
    fake.gossip_error = nil
    assert(gossip.start(known()))
  end))

  describe("at an address that is a name", function()
    local resolve, waiting, hints
    before_each(function()
      resolve, waiting = uv.getaddrinfo, {}
      uv.getaddrinfo = function(_, _, how, cb)
        hints, waiting[#waiting + 1] = how, cb
        return {}
      end
    end)
    after_each(function() uv.getaddrinfo = resolve end)

    local function resolved(i) waiting[i](nil, { { addr = "10.7.7.7" } }) end

    it("takes what is known when it is resolved, not before", node("host.example.org:37066", function()
      local all, ok = { a = key "A" }, nil
      async.spawn(function() ok = gossip.start(function() return keys(1, 2), all end) end)
      async.sleep(1)
      all = { b = key "B" }
      resolved(1)
      async.sleep(1)
      assert.is_true(ok)
      assert.equal("10.7.7.7:37066", fake.gossip.options.address)
      assert.same({ b = "B" }, fake.gossip.peers)
    end))

    it("does not begin when it was stopped meanwhile, and once when it was asked twice", node("host:1", function()
      local results = {}
      local function start()
        async.spawn(function()
          local result = table.pack(gossip.start(known()))
          results[#results + 1] = result
        end)
      end
      start()
      async.sleep(1)
      gossip.stop()
      resolved(1)
      async.sleep(1)
      assert.equal("closed", results[1][2].code)
      assert.is_nil(fake.gossip)
      start()
      start()
      async.sleep(1)
      resolved(3)
      resolved(2)
      async.sleep(1)
      assert.same({ true, "closed" }, { results[2][1], results[3][2].code })
      assert.equal(1, fake.opened)
      assert.truthy(fake.gossip)
    end))

    it("announces nothing any more once it was stopped", node("host:1", function()
      async.spawn(function() gossip.start(known()) end)
      async.sleep(1)
      resolved(1)
      async.sleep(1)
      local g, ok = fake.gossip, nil
      async.spawn(function() ok = gossip.announce() end)
      async.sleep(1)
      gossip.stop()
      identity.me = nil
      resolved(2)
      async.sleep(1)
      assert.is_true(ok)
      assert.same({}, g.told)
    end))

    it("announces the address that the name means by now, and once only", node("host:1", function()
      async.spawn(function() gossip.start(known()) end)
      async.sleep(1)
      resolved(1)
      async.sleep(1)
      assert.same({ "dgram", "inet" }, { hints.socktype, hints.family })
      local g = fake.gossip
      for i, ip in ipairs { "10.7.7.7", "10.8.8.8", "10.8.8.8" } do
        async.spawn(gossip.announce)
        async.sleep(1)
        waiting[i + 1](nil, { { addr = ip } })
        async.sleep(1)
        assert.equal(i == 2 and "10.8.8.8:1" or nil, g.told.address)
        g.told = {}
      end
    end))

    it("says when it does not resolve", node("host:1", function()
      local err
      async.spawn(function() err = select(2, gossip.start(known())) end)
      async.sleep(1)
      waiting[1]("EAI_NONAME: unknown node or service")
      async.sleep(1)
      assert.equal("unreachable", err.code)
      assert.truthy(err.message:find("host does not resolve", 1, true))
    end))
  end)

  it("keeps the peers that are, whatever was missed", started({ a = key "A", b = key "B" }, function(g)
    gossip.set_peers { b = key "B2", c = key "C" }
    assert.same({ b = "B2", c = "C" }, g.peers)
    gossip.forget "b"
    gossip.set_peer("d", key "D")
    gossip.set_peer("e", "no base64 !")
    assert.same({ c = "C", d = "D" }, g.peers)
    gossip.set_peers {}
    assert.same({}, g.peers)
    gossip.stop()
    gossip.set_peer("a", key "A") -- nothing to tell
    gossip.forget "a"
    assert.is_nil(gossip.stats())
    assert.same({ 0, 0, {} }, { gossip.count(), gossip.health(), gossip.members() })
  end))

  it("tells the others of new keys once it has them", started(nil, function(g)
    assert.is_true(gossip.set_keys(keys(1)))
    assert.is_nil(g.told.meta)
    assert.is_true(gossip.set_keys(keys(1, 2)))
    local info = gossip.decode_meta(g.told.meta)
    assert.same({ 2, 1, "worker", { "block" }, 27243 }, { info.ring, info.ring_use, info.role, info.services,
      info.remote_port })
    local ok, err = gossip.set_keys { keys = { { id = 1, secret = key "short", use = true } } }
    assert.is_nil(ok)
    assert.equal("corrupt", err.code)
    assert.equal(2, #g.ring)
  end))

  it("gives members with what they say of themselves", started(nil, function()
    see("a")
    see("b", "dead", "garbage")
    assert.equal("worker", gossip.member("a").info.role)
    assert.same({}, gossip.member("b").info)
    assert.is_nil(gossip.member("c"))
    assert.equal(2, #gossip.members())
  end))

  it("tells listeners of what happens, whatever one of them does", started(nil, function(g)
    local seen = {}
    gossip.on_event(function(what, member)
      seen[#seen + 1] = what .. " " .. member.node_id .. " " .. tostring(member.info.role)
      error("a listener's bug")
    end)
    g.fns.event(nil, "joined", see("a"))
    g.fns.event(nil, "lost") -- more than could be told
    assert.same({ "joined a worker", "updated a worker" }, seen)
    assert.truthy(table.concat(fake.logged, "\n"):find("a listener's bug", 1, true))
  end))

  it("probes at the remote port: the right node, which answers", started(nil, function(g)
    see("a")
    local asked
    fake.answer = function(opts)
      asked = opts
      return nil, { status = 200, body = '{"ok":true}', peer = { cn = "a" } }
    end
    assert.is_true(gossip.probe("a"))
    assert.same({ "10.0.0.9", 27243, "worker", "/healthz" }, { asked.host, asked.port, asked.role, asked.path })
    assert.is_true(gossip.probe("a", "10.0.0.8:5"))
    assert.same({ "10.0.0.8", 5 }, { asked.host, asked.port })
    see("b")
    assert.equal("unauthenticated", select(2, gossip.probe("b")).code)
    assert.equal("not_found", select(2, gossip.probe("c")).code)
    see("d", "alive", "garbage")
    assert.equal("unreachable", select(2, gossip.probe("d")).code)
    g.fns.probe(nil, see("a"), 11)
    g.fns.probe(nil, see("b"), 12)
    async.sleep(5)
    assert.same({ [11] = true, [12] = false }, g.probed)
    fake.answer = function() return nil, { status = 200, body = "5", peer = { cn = "a" } } end
    assert.equal("protocol", select(2, gossip.probe("a")).code)
    identity.tls = nil
    assert.equal("closed", select(2, gossip.probe("a")).code)
  end))

  it("exchanges everything, both ways, and takes no nonsense", started(nil, function(g)
    local bodies, answers = {}, {}
    fake.answer = function(opts)
      bodies[#bodies + 1] = json.decode(opts.body)
      return nil, { status = 200, body = table.remove(answers, 1), peer = { cn = "a" } }
    end
    answers = { json.encode { piece = crypto.base64("theirs 1"), cursor = 5 },
      json.encode { piece = crypto.base64("theirs 2") } }
    assert.is_true(gossip.exchange_with("10.0.0.1:27242"))
    assert.same({ { cursor = 0, piece = crypto.base64("piece 0") }, { cursor = 5 } }, bodies)
    assert.same({ "a", "theirs 2" }, g.merged)
    for _, bad in ipairs { "5", "null", '"x"' } do
      answers = { bad }
      local ok, err = gossip.exchange_with("10.0.0.1:27242")
      assert.is_nil(ok)
      assert.equal("protocol", err.code)
    end
    answers = { '{"piece":7,"cursor":"x"}' }
    assert.is_true(gossip.exchange_with("10.0.0.1:27242"))
    -- One that has no end is given up.
    fake.answer = function() return nil, { status = 200, body = '{"cursor":1}', peer = { cn = "a" } } end
    assert.equal("too_big", select(2, gossip.exchange_with("10.0.0.1:27242")).code)
    fake.answer = function()
      gossip.stop()
      return nil, { status = 200, body = '{"cursor":1}', peer = { cn = "a" } }
    end
    assert.is_true(gossip.exchange_with("10.0.0.1:27242"))
    assert.equal("closed", select(2, gossip.exchange_with("10.0.0.1:27242")).code)
  end))

  it("has no more than four exchanges at once, and one with each", started(nil, function()
    local held = {}
    fake.answer = function(opts)
      held[#held + 1] = opts
      return fake.HOLD
    end
    for i = 1, 6 do
      for _ = 1, 2 do async.spawn(gossip.exchange_with, ("10.0.0.%d:1"):format(i)) end
    end
    async.sleep(5)
    assert.equal(4, #held)
    for _, opts in ipairs(held) do fake.release(opts, errors.new("unreachable", "no")) end
    async.sleep(5)
    async.spawn(gossip.exchange_with, "10.0.0.1:1")
    async.sleep(5)
    assert.equal(5, #held)
    fake.release(held[5], errors.new("unreachable", "no"))
  end))

  it("exchanges once when many return, and again after a while", started(nil, function(g)
    local asked, now, mono = {}, 1000000, sys.mono_ms
    local _ <close> = setmetatable({}, { __close = function() sys.mono_ms = mono end })
    sys.mono_ms = function() return now end
    fake.answer = function(opts)
      asked[#asked + 1] = opts
      return nil, { status = 200, body = "{}", peer = { cn = "a" } }
    end
    g.count = function() return 500 end
    for _, id in ipairs { "a", "b", "c" } do g.fns.event(nil, "returned", see(id)) end
    g.fns.event(nil, "differs", see("a"))
    async.sleep(5)
    assert.equal(1, #asked)
    now = now + 2499
    g.fns.event(nil, "returned", see("a"))
    now = now + 1
    fake.answer = function(opts)
      asked[#asked + 1] = opts
      return errors.new("unreachable", "nobody there")
    end
    g.fns.event(nil, "differs", see("b"))
    async.sleep(5)
    assert.equal(2, #asked)
    -- That was none: the next need not wait as long, and neither do they all come at once.
    g.fns.event(nil, "returned", see("c"))
    now = now + 499
    g.fns.event(nil, "returned", see("c"))
    async.sleep(5)
    assert.equal(2, #asked)
    now = now + 1
    g.fns.event(nil, "returned", see("c"))
    async.sleep(5)
    assert.equal(3, #asked)
  end))

  it("serves a step of an exchange", started(nil, function(g)
    assert.same({ piece = crypto.base64("piece 3") }, gossip.exchange_step("a", "raw", 3))
    assert.same({ "a", "raw" }, g.merged)
    assert.same({}, gossip.exchange_step("a", nil, nil))
    gossip.leave()
    assert.is_true(g.left)
    assert.equal("closed", select(2, gossip.exchange_step("a", nil, 0)).code)
    gossip.leave() -- there is nothing to leave
  end))

  it("begins with a number that rises with every start, whatever the clock does", function()
    fake.reset()
    local first = gossip.next_start(nil)
    assert.equal(fake.now * 1000, first)
    assert.equal(first + 1, gossip.next_start(first))
    fake.now = fake.now - 3600
    assert.equal(first + 1, gossip.next_start(first))
    fake.now = fake.now + 7200
    assert.equal(fake.now * 1000, gossip.next_start(first))
  end)
end)
