local fake = require "spec.unit.cluster_fake"

local gossip = { seen = {} }
function gossip.members()
  local out = {}
  for _, m in pairs(gossip.seen) do out[#out + 1] = m end
  return out
end
function gossip.on_event() end
function gossip.start() return true end
function gossip.stop() end
function gossip.started() return true end
function gossip.next_start() return 1 end
function gossip.set_keys() return true end
package.loaded["symphony.cluster.gossip"] = gossip

local events = {}
package.loaded["symphony.cluster.events"] = events

local async = require "symphony.async"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local keyring = require "symphony.cluster.keyring"
local reconcile = require "symphony.cluster.reconcile"
local recover = require "symphony.cluster.recover"
local rotation = require "symphony.cluster.rotation"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"

function events.add(txn, fields)
  local number = #state.list_raw("/event/") + 1
  for _, op in ipairs(txn.ops) do
    if op.put and op.put:find("^/event/") then number = number + 1 end
  end
  table.insert(txn.ops, state.put(("/event/%012d"):format(number), { kind = fields.kind, message = fields.message,
    reason = fields.reason }))
end

local function kinds()
  local out = {}
  for i, kv in ipairs(state.list("/event/")) do out[i] = kv.value.kind end
  return out
end

local function secret() return state.get(keyring.KEY) end

local function ids(record)
  local out = {}
  for i, key in ipairs(record.keys) do out[i] = (key.use and "*" or "") .. key.id end
  return table.concat(out, " ")
end

describe("the keyring", function()
  it("goes from phase to phase", function()
    local r = keyring.first("one", 7.5)
    assert.same({ "*1", "idle", 7 }, { ids(r), r.phase, r.since })
    assert.equal("none", keyring.plan(r, { { id = "a", ring = 0, ring_use = 0 } }, 1e6).step)
    r = assert(keyring.begin(r, "two", "why", 10))
    assert.same({ "*1 2", "accept", "why" }, { ids(r), r.phase, r.reason })
    local followers = { { id = "a", ring = 2, ring_use = 1 }, { id = "b", ring = 1, ring_use = 1 } }
    assert.same({ step = "wait", waits = { "b" }, late = false }, keyring.plan(r, followers, 59))
    assert.same({ step = "use", waits = { "b" }, late = true }, keyring.plan(r, followers, 60))
    followers[2].ring = 2
    assert.same({ step = "use", waits = {}, late = false }, keyring.plan(r, followers, 0))
    r = keyring.advance(r, 20)
    assert.same({ "1 *2", "use", "why" }, { ids(r), r.phase, r.reason })
    assert.same({ step = "wait", waits = { "a", "b" }, late = false }, keyring.plan(r, followers, 1))
    followers[1].ring_use, followers[2].ring_use = 2, 3
    assert.equal("drop", keyring.plan(r, followers, 0).step)
    r = keyring.advance(r, 30)
    assert.same({ "*2", "idle", nil, "two" }, { ids(r), r.phase, r.reason, r.keys[1].secret })
  end)

  it("reads the first clusters' form, and tells what is damaged", function()
    local old = keyring.read { keys = { "c2VjcmV0" } }
    assert.same({ "*1", "idle", "c2VjcmV0" }, { ids(old), old.phase, old.keys[1].secret })
    assert.equal("*1 2", ids(assert(keyring.begin(old, "x", nil, 0))))
    local function key(id, use, text) return { id = id, use = use, secret = text or "s" } end
    for _, bad in ipairs { {}, { keys = {} }, { keys = "x" }, { keys = { key(1, false) } },
      { keys = { key(1, true), key(2, true) } }, { keys = { key(2, true), key(1, false) } },
      { keys = { { id = 1, use = true } } }, { keys = { key("1", true) } }, { keys = { key(1, true) }, phase = "x" },
      { keys = { key(1, true), key(2), key(3), key(4), key(5) } } } do
      local r, err = keyring.read(bad)
      assert.is_nil(r)
      assert.equal("corrupt", err.code)
      assert.equal(0, #keyring.keys(bad))
    end
    assert.equal(0, #keyring.keys(nil))
  end)

  it("has the living follow, and those that are ready though gossip does not know them", function()
    local members = { a = { state = "alive", info = { ring = 3, ring_use = 2 } }, s = { state = "suspect" },
      d = { state = "dead" }, l = { state = "left" }, me = { state = "alive" } }
    local statuses = { r = { status = "ready" }, x = { status = "down" } }
    local got = keyring.followers({ "a", "d", "j", "l", "me", "r", "s", "x" }, function(id) return members[id] end,
      function(id) return statuses[id] end, "me")
    assert.same({ { id = "a", ring = 3, ring_use = 2 }, { id = "j", ring = 0, ring_use = 0 },
      { id = "r", ring = 0, ring_use = 0 }, { id = "s", ring = 0, ring_use = 0 } }, got)
  end)
end)

describe("the rotation of the gossip key", function()
  before_each(function() fake.reset() end)

  local clock, real = 0, sys.mono_ms
  local function leading(fn)
    return fake.task(function()
      fake.make { name = "first" }
      reconcile.stop()
      gossip.seen, clock = {}, 1000
      rotation.stop()
      sys.mono_ms = function() return clock end
      local ok, err = pcall(fn)
      sys.mono_ms = real
      if not ok then error(err, 0) end
    end)
  end

  local function add(id, ring, ring_use)
    fake.apply { ops = { state.put("/node/" .. id, { node_id = id, name = "name-" .. id, role = "worker" }) } }
    gossip.seen[id] = { node_id = id, state = "alive", info = { ring = ring, ring_use = ring_use } }
  end

  it("has every node follow before the next step", leading(function()
    add("0a", 1, 1)
    add("0b", 1, 1)
    assert.same({ id = 2, phase = "accept" }, rotation.rotate("asked for"))
    for _ = 1, 3 do rotation.turn() end
    assert.equal("*1 2", ids(secret()))
    gossip.seen["0a"].info.ring = 2
    rotation.turn()
    assert.same({ "name-0b" }, { rotation.show().waits_for[1] })
    gossip.seen["0b"].info.ring = 2
    rotation.turn()
    assert.equal("1 *2", ids(secret()))
    for _ = 1, 3 do rotation.turn() end
    for _, m in pairs(gossip.seen) do m.info.ring_use = 2 end
    rotation.turn()
    assert.same({ "*2", "idle" }, { ids(secret()), secret().phase })
    assert.same({ "node.joined", "gossip_key.started", "gossip_key.rotated" }, kinds())
    local before = fake.revision
    rotation.turn()
    assert.equal(before, fake.revision)
  end))

  it("waits for a minute at most, and names who did not follow", leading(function()
    add("0a", 1, 1)
    rotation.rotate()
    rotation.turn()
    clock = clock + 59000
    rotation.turn()
    assert.equal("accept", secret().phase)
    clock = clock + 1500
    rotation.turn()
    assert.equal("use", secret().phase)
    clock = clock + 59000
    rotation.turn()
    assert.equal("use", secret().phase)
    clock = clock + 61000
    rotation.turn()
    assert.equal("idle", secret().phase)
    assert.same({ "node.joined", "gossip_key.started", "gossip_key.late", "gossip_key.late", "gossip_key.rotated" },
      kinds())
    assert.truthy(state.list("/event/")[3].value.message:find("name-0a", 1, true))
  end))

  it("goes on with the next leader, and only there", leading(function()
    rotation.rotate()
    fake.status.state = "follower"
    rotation.turn()
    assert.equal("accept", secret().phase)
    fake.status.state = "leader"
    rotation.turn()
    rotation.turn()
    assert.same({ "*2", "idle" }, { ids(secret()), secret().phase })
  end))

  it("is begun by a wish in another txn, and one follows on another", leading(function()
    add("0a", 1, 1)
    local txn = { ops = {} }
    keyring.wanted(txn.ops)
    fake.apply(txn)
    rotation.turn()
    assert.same({ "accept", "a node was removed" }, { secret().phase, secret().reason })
    assert.is_nil(state.text(keyring.WANTED))
    assert.is_true(rotation.rotate("again").wanted)
    assert.is_true(rotation.rotate("again").wanted)
    gossip.seen["0a"].info = { ring = 9, ring_use = 9 }
    for _ = 1, 2 do rotation.turn() end
    assert.same({ "*2", "idle" }, { ids(secret()), secret().phase })
    assert.is_true(rotation.show().wanted)
    for _ = 1, 4 do rotation.turn() end
    assert.same({ "*3", "idle" }, { ids(secret()), secret().phase })
    assert.is_false(rotation.show().wanted)
  end))

  it("takes a wish that waits along when it is begun by hand", leading(function()
    local txn = { ops = {} }
    keyring.wanted(txn.ops)
    fake.apply(txn)
    assert.equal(2, rotation.rotate("by hand").id)
    for _ = 1, 5 do rotation.turn() end
    assert.equal("*2", ids(secret()))
  end))

  it("begins again when a wish comes between, and loses none", leading(function()
    fake.before_submit = function()
      fake.before_submit = nil
      local txn = { ops = {} }
      keyring.wanted(txn.ops)
      fake.apply(txn)
    end
    assert.equal(2, rotation.rotate("by hand").id)
    assert.is_nil(state.text(keyring.WANTED))
    for _ = 1, 2 do rotation.turn() end
    assert.equal("*2", ids(secret()))
  end))

  it("shows no secret", leading(function()
    rotation.rotate("why")
    local text = json.encode(rotation.show())
    for _, key in ipairs(secret().keys) do assert.is_nil(text:find(key.secret, 1, true)) end
    assert.same({ { id = 1, use = true }, { id = 2, use = false } }, { table.unpack(rotation.show().keys) })
  end))

  it("is asked for and shown on the command line, by way of the leader", leading(function()
    local execute, router = require "symphony.cli.execute", require "symphony.api.router"
    router.reset()
    require("symphony.api.routes_gossip_key").routes(router)
    fake.answer = function(opts)
      local req = fake.ask(opts.method, opts.path, { body = opts.body, headers = opts.headers })
      return nil, { status = req.status, body = req.answer }
    end
    local function say(...)
      local out = {}
      local status = execute.command({ "cluster", "gossip-key", ... }, { out = function(t) out[#out + 1] = t end,
        err = function(t) out[#out + 1] = t end }, function(err) return err end)
      assert.equal(0, status, table.concat(out))
      return table.concat(out)
    end
    add("0a", 1, 1)
    assert.truthy(say("status"):find("All nodes use key 1.", 1, true))
    assert.truthy(say("rotate"):find("Key 2 is given out.", 1, true))
    assert.truthy(say("rotate"):find("another one follows", 1, true))
    local text = say("status")
    assert.truthy(text:find("Key 2 is given out; it is used when all nodes accept it.\nNot yet: name-0a\n"
      .. "Another change follows.", 1, true), text)
    assert.same({ "accept", 2, true }, (function(s) return { s.phase, #s.keys, s.wanted } end)(
      assert(json.decode(say("status", "--json")))))
    -- Who may.
    local req = fake.request("POST", "/v1/gossip-key/rotate", { peer = { tls = true } })
    router.dispatch(req)
    async.sleep(1)
    assert.equal(401, req.status)
    router.reset()
  end))

  it("says when the keys are damaged, and keeps what is there", leading(function()
    fake.apply { ops = { state.put(keyring.KEY, { keys = json.array {} }) } }
    local ok, err = rotation.rotate()
    assert.is_nil(ok)
    assert.equal("corrupt", err.code)
    assert.has_error(rotation.turn)
    assert.equal(0, #secret().keys)
  end))

  it("is wished for when managers are lost for good", leading(function()
    fake.apply { ops = { state.put("/node/0m2", { node_id = "0m2", name = "m2", raft_node_id = 2, fingerprint = "f" }),
      state.put("/raft/2", "0m2") } }
    local cluster, kv = state.get("/cluster")
    local _, next_kv = state.text("/cluster/next_raft_id")
    fake.apply((recover.cleanup(identity.me, require("symphony.cluster.members").planned(), kv, cluster, next_kv)))
    assert.truthy(state.text(keyring.WANTED))
  end))
end)

-- Nodes that get the keys late, leaders that follow each other, and nodes that are removed at any time.
describe("rotations of the gossip key, simulated", function()
  local function simulate(seed)
    local x = seed * 2654435761 % 4294967296
    local function random(from, to)
      x = (x * 1664525 + 1013904223) % 4294967296
      return from + (to - from) * (x / 4294967296)
    end
    local now, serial, queue = 0, 0, {}
    local function after(seconds, fn)
      serial = serial + 1
      queue[#queue + 1] = { at = now + seconds, order = serial, fn = fn }
    end
    local record, revision, since, wish = keyring.first("s1", 0), 1, 0, false
    local nodes, order, removed, rotations = {}, {}, {}, 0
    local clean = 0 -- from this revision on no removed node may know the key in use

    local function tell(n)
      local r, at = record, revision
      after(random(0.01, n.slow and 30 or 2), function()
        if n.gone or at <= n.revision then return end
        n.revision, n.keys = at, {}
        for _, key in ipairs(r.keys) do
          n.keys[key.id], n.known[key.secret] = key.secret, true
          if key.use then n.use = key.id end
        end
        local ring, ring_use = keyring.newest(r), n.use
        after(random(0.05, 3), function()
          if at > n.said then n.said, n.info = at, { ring = ring, ring_use = ring_use } end
        end)
      end)
    end
    local function write(fresh)
      assert(#fresh.keys <= keyring.KEYS_MAX)
      record, revision, since = fresh, revision + 1, now
      for _, id in ipairs(order) do tell(nodes[id]) end
    end
    -- With the keys of now, as a joiner gets them; gossip knows it later.
    local function join(slow)
      local id = ("n%03d"):format(serial)
      local n = { id = id, slow = slow, keys = {}, known = {}, revision = revision, said = 0 }
      for _, key in ipairs(record.keys) do
        n.keys[key.id], n.known[key.secret] = key.secret, true
        if key.use then n.use = key.id end
      end
      order[#order + 1], nodes[id] = id, n
      local info = { ring = keyring.newest(record), ring_use = n.use }
      after(random(0.1, 3), function() n.info = n.info or info end)
    end
    for i = 1, 12 do join(i == 12) end

    local function check_sending(a)
      for _, id in ipairs(order) do
        local b = nodes[id]
        assert(b.keys[a.use] == a.keys[a.use], ("%s sends with key %d, which %s does not accept"):format(a.id, a.use,
          id))
      end
      for _, r in ipairs(removed) do
        assert(a.revision < clean or not r.known[a.keys[a.use]], ("%s reads what %s sends"):format(r.id, a.id))
      end
    end

    local last, wish_at = 1, nil
    while now < 500 do
      now = now + 0.1
      local due, rest = {}, {}
      for _, e in ipairs(queue) do table.insert(e.at <= now and due or rest, e) end
      queue = rest
      table.sort(due, function(a, b)
        if a.at ~= b.at then return a.at < b.at end
        return a.order < b.order
      end)
      for _, e in ipairs(due) do e.fn() end
      if now < 350 and #order > 5 and random(0, 1) < 0.004 then
        local n = nodes[table.remove(order, math.floor(random(1, #order + 0.999)))]
        n.gone = true
        removed[#removed + 1] = n
        wish, wish_at, clean = true, revision, math.huge
      end
      if now < 350 and random(0, 1) < 0.004 then wish = true end
      if now < 350 and random(0, 1) < 0.004 then join(false) end
      if random(0, 1) < 0.01 then since = now end -- another leader
      local followers = keyring.followers(order, function(id)
        return nodes[id].info and { state = "alive", info = nodes[id].info }
      end, function() end, "leader")
      local plan = keyring.plan(record, followers, now - since)
      if plan.step == "none" and wish then
        wish = false
        rotations = rotations + 1
        local fresh = assert(keyring.begin(record, "s" .. record.keys[1].id + 1, nil, now))
        assert(keyring.newest(fresh) > last)
        last = keyring.newest(fresh)
        write(fresh)
        if wish_at then wish_at = math.huge end -- this one is for them
      elseif plan.step == "use" or plan.step == "drop" then
        assert(not plan.late, "nobody was that late")
        write(keyring.advance(record, now))
        if plan.step == "drop" and wish_at == math.huge and not wish then clean, wish_at = revision, nil end
      end
      for _, id in ipairs(#due > 0 and order or {}) do check_sending(nodes[id]) end
    end
    assert(record.phase == "idle" and not wish and clean < math.huge, "it does not come to an end")
    for _, id in ipairs(order) do assert(nodes[id].use == keyring.newest(record)) end
    return rotations, #removed
  end

  it("never have a node send what another cannot read, nor one read that was removed before", function()
    local rotations, removed = 0, 0
    for seed = 1, 5 do
      local ok, r, gone = pcall(simulate, seed)
      if not ok then error(("seed %d: %s"):format(seed, tostring(r)), 0) end
      rotations, removed = rotations + r, removed + gone
    end
    assert.is_true(rotations > 20 and removed > 20, rotations .. " " .. removed)
  end)
end)
