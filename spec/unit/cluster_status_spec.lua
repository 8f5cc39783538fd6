local fake = require "spec.unit.cluster_fake"

-- What others write, in memory: gossip's members, agents' streams, events.
local gossip = { seen = {}, probes = {}, listeners = {}, answers = {} }
function gossip.member(id) return gossip.seen[id] end
function gossip.on_event(fn) gossip.listeners[#gossip.listeners + 1] = fn end
function gossip.health() return 0 end
function gossip.probe(id, at)
  gossip.probes[#gossip.probes + 1] = at and id .. " at " .. at or id
  local answer = gossip.answers[at or id]
  if answer == true then return true end
  return nil, answer or { code = "unreachable", message = "connection refused" }
end
function gossip.start() return true end
function gossip.stop() end
function gossip.started() return gossip.there end
function gossip.next_start() return 1 end
package.loaded["symphony.cluster.gossip"] = gossip

local agents = { up = {} }
function agents.connected(id) return agents.up[id] end
function agents.lost() return nil end
function agents.on_change(fn) agents.changed = fn end
function agents.start() end
function agents.stop() end
package.loaded["symphony.cluster.agents"] = agents

local events = { all = {} }
package.loaded["symphony.cluster.events"] = events

local async = require "symphony.async"
local json = require "symphony.json"
local reconcile = require "symphony.cluster.reconcile"
local state = require "symphony.cluster.state"
local status = require "symphony.cluster.status"

function events.add(txn, fields)
  local number = #state.list_raw("/event/") + 1
  for _, op in ipairs(txn.ops) do
    if op.put and op.put:find("^/event/") then number = number + 1 end
  end
  local key = ("/event/%012d"):format(number)
  table.insert(txn.compare, state.absent(key))
  table.insert(txn.ops, state.put(key, { kind = fields.kind, node_id = fields.node and fields.node.node_id,
    message = fields.message, reason = fields.reason, left_out = fields.left_out }))
end
function events.record(fields)
  local txn = { compare = {}, ops = {} }
  events.add(txn, fields)
  return state.submit(txn)
end

local function events_of(id)
  local out = {}
  for _, kv in ipairs(state.list("/event/")) do
    if not id or kv.value.node_id == id then out[#out + 1] = kv.value.kind end
  end
  return out
end

local function add(id, fields)
  local n = { node_id = id, name = "name-" .. id, role = "worker", fingerprint = "f" .. id, version = "1.2.3",
    services = json.array { "block" }, remote_address = "10.0.0.1:1", gossip_address = "10.0.0.1:2", labels = {} }
  for k, v in pairs(fields or {}) do n[k] = v end
  fake.apply { ops = { state.put("/node/" .. id, n) } }
  return n
end

local function record(id) return state.get("/status/node/" .. id) end

local function see(id, what, age)
  gossip.seen[id] = what and { node_id = id, state = what, age_ms = age or 0,
    info = { remote_port = 1 } } or nil
  for _, fn in ipairs(gossip.listeners) do fn("updated", { node_id = id }) end
end

-- The clock of the loop, which only the test moves; later than that of any machine, which what runs beside it may have
-- seen.
local sys = require "sym.sys"
local clock, real = 1000000000000, sys.mono_ms

local function pass(seconds)
  clock, fake.now = clock + 1000 * seconds, fake.now + seconds
end

-- Turns until nothing more follows at once.
local function turns()
  for _ = 1, 20 do
    local before = fake.revision
    status.turn()
    async.sleep(0)
    pass(0.25)
    if fake.revision == before then return end
  end
end

local function leading(fn)
  return fake.task(function()
    fake.make { name = "first" }
    reconcile.stop()
    gossip.seen, gossip.probes, gossip.answers, gossip.there, agents.up = {}, {}, {}, true, {}
    status.GAP_MS = 0
    sys.mono_ms = function() return clock end
    pass(1000)
    status.start()
    status.turn()
    local ok, err = pcall(fn)
    status.stop()
    sys.mono_ms = real
    if not ok then error(err, 0) end
  end)
end

local function joined(id, fields)
  local n = add(id, fields)
  see(id, "alive")
  turns()
  return n
end

local REPORT = { status = "ready", starts = 1, instance = "ab12", version = "1.2.3", services = json.array { "block" },
  addresses = { remote = "10.0.0.1:1", gossip = "10.0.0.1:2" }, trust = 1 }

local function report(n, fields)
  local body = {}
  for k, v in pairs(REPORT) do body[k] = v end
  for k, v in pairs(fields or {}) do body[k] = v end
  return status.report(n, body)
end

describe("the leader's hand on the status", function()
  before_each(function() fake.reset() end)

  it("records what happens to a node, each change with its event and its reason", leading(function()
    joined("0w1")
    assert.equal("ready", record("0w1").status)
    pass(10)
    see("0w1", "suspect")
    turns()
    assert.same({ "0w1" }, gossip.probes)
    see("0w1", "dead")
    turns()
    local down = record("0w1")
    assert.equal("down", down.status)
    assert.truthy(down.reason:find("connection refused", 1, true))
    see("0w1", "alive")
    turns()
    assert.is_nil(record("0w1").reason)
    see("0w1", "left")
    turns()
    assert.same({ "node.ready", "node.down", "node.ready", "node.left" }, events_of("0w1"))
    assert.truthy(state.list("/event/")[4].value.message:find("name-0w1 is down", 1, true))
  end))

  it("calls itself ready, also without anybody to gossip with", leading(function()
    turns()
    assert.equal("ready", record(require("symphony.cluster.identity").me.node_id).status)
  end))

  it("puts many changes into few txns", leading(function()
    for i = 1, 100 do
      add(("0w%03d"):format(i))
      see(("0w%03d"):format(i), "alive")
    end
    local before = fake.revision
    turns()
    assert.equal(101, #state.list("/status/node/"))
    assert.is_true(fake.revision - before <= 5, fake.revision - before)
  end))

  it("keeps a pause between txns", leading(function()
    status.GAP_MS = 200
    turns()
    add("0w1")
    see("0w1", "alive")
    status.turn()
    add("0w2")
    see("0w2", "alive")
    status.turn()
    assert.is_nil(record("0w2"))
    pass(0.3)
    status.turn()
    assert.equal("ready", record("0w2").status)
  end))

  it("marks nobody down as a follower, nor right after an election, nor without gossip", leading(function()
    joined("0w1")
    pass(10)
    gossip.seen["0w1"] = { node_id = "0w1", state = "dead", age_ms = 0 }
    fake.status.state = "follower"
    turns()
    fake.status.state = "leader"
    for _ = 1, 18 do
      turns()
      assert.equal("ready", record("0w1").status)
    end
    pass(5)
    turns()
    assert.equal("down", record("0w1").status)
  end))

  it("leaves everybody as he is when all managers were restarted and gossip begins anew", leading(function()
    for i = 1, 20 do joined("0w" .. i) end
    -- As after the restart: gossip knows nobody, and hears of one after the other.
    status.stop()
    gossip.seen, gossip.there = {}, false
    status.start()
    local before = fake.revision
    turns()
    gossip.there = true
    turns()
    for i = 1, 20 do
      see("0w" .. i, "alive")
      turns()
    end
    pass(60)
    turns()
    assert.equal(before, fake.revision)
  end))

  it("looks at everybody once gossip has begun", leading(function()
    add("0w1")
    status.stop()
    gossip.there = false
    status.start()
    turns()
    gossip.seen["0w1"] = { node_id = "0w1", state = "alive", age_ms = 0 }
    gossip.there = true
    status.turn()
    assert.equal("ready", record("0w1").status)
  end))

  it("calls down who does not come back from such a restart", leading(function()
    joined("0w1")
    status.stop()
    gossip.seen = {}
    status.start()
    turns()
    for _ = 1, 45 do
      turns()
      pass(1)
    end
    assert.equal("down", record("0w1").status)
  end))

  it("says that it suspects itself, and then believes it", leading(function()
    for i = 1, 5 do joined("0w" .. i) end
    pass(10)
    for i = 1, 4 do see("0w" .. i, "dead") end
    turns()
    local own = events_of(require("symphony.cluster.identity").me.node_id)
    assert.same({ "node.joined", "node.ready", "leader.suspects_itself" }, own)
    for _ = 1, 40 do
      turns()
      assert.equal("ready", record("0w1").status)
    end
    for _ = 1, 40 do turns() end
    for i = 1, 4 do assert.equal("down", record("0w" .. i).status) end
  end))

  it("asks one that gossip does not know at the address of its record, and takes a new connection for a return",
    leading(function()
    local n = joined("0w1")
    see("0w1", nil)
    gossip.answers[n.remote_address] = true
    for _ = 1, 60 do
      turns()
      pass(1)
    end
    assert.equal("0w1 at 10.0.0.1:1", gossip.probes[1])
    assert.equal("ready", record("0w1").status)
    gossip.answers[n.remote_address] = { code = "not_found", message = "says nothing about it" }
    for _ = 1, 60 do
      turns()
      pass(1)
    end
    assert.equal("ready", record("0w1").status)
    gossip.answers[n.remote_address] = nil
    for _ = 1, 60 do
      turns()
      pass(1)
    end
    assert.equal("down", record("0w1").status)
    agents.up["0w1"] = clock
    agents.changed("0w1", true)
    for _ = 1, 3 do turns() end
    assert.equal("ready", record("0w1").status)
  end))

  it("takes raft's word for a manager's connection, and forgets the status of who is gone", leading(function()
    local n = joined("0m2", { role = "manager", raft_node_id = 2 })
    table.insert(fake.status.servers, { id = 2, role = "voter", up = true, address = "h:2" })
    assert.equal("ready", record("0m2").status)
    -- No probe can be made: only the connection tells.
    gossip.answers["0m2"] = { code = "busy", message = "too many probes" }
    pass(10)
    see("0m2", "dead")
    for _ = 1, 5 do turns() end
    assert.equal("ready", record("0m2").status)
    fake.status.servers[2].up = false
    for _ = 1, 5 do turns() end
    assert.equal("down", record("0m2").status)
    fake.apply { ops = { state.delete("/node/" .. n.node_id) } }
    for _ = 1, 12 do
      pass(1)
      turns()
    end
    assert.is_nil(record("0m2"))
  end))

  it("does not say a second time what a report has said, though its watch is late", leading(function()
    pass(10)
    local n = add("0w1")
    local store = require "sym.store"
    -- A txn that no watch has told of yet.
    local key = "/status/node/0w1"
    fake.kvs[key] = { key = key, value = json.encode { status = "ready", since = fake.now }, create_revision = 1,
      mod_revision = 1 }
    assert.equal("ready", json.decode(store.get(key).value).status)
    see(n.node_id, "alive")
    turns()
    assert.same({}, events_of("0w1"))
  end))

  it("tries again when others came between", leading(function()
    pass(10)
    add("0w1")
    see("0w1", "alive")
    fake.before_submit = function()
      fake.before_submit = nil
      fake.apply { ops = { state.put("/status/node/0w1", { status = "left", since = 1 }) } }
    end
    status.turn()
    assert.equal("left", record("0w1").status)
    turns()
    assert.equal("ready", record("0w1").status)
  end))

  it("writes that a node flaps, and until when it waits", leading(function()
    joined("0w1")
    joined("0w2")
    for _ = 1, 3 do
      pass(10)
      see("0w1", "dead")
      turns()
      turns()
      assert.equal("down", record("0w1").status)
      see("0w1", "alive")
      for _ = 1, 20 do turns() end
    end
    pass(10)
    see("0w1", "dead")
    turns()
    turns()
    assert.truthy(record("0w1").reason:find("^flapping, lost 4 times"), record("0w1").reason)
    assert.equal(4, record("0w1").flaps)
  end))
end)

describe("a node's report", function()
  before_each(function() fake.reset() end)

  it("makes it ready at once, and writes nothing when nothing changes", leading(function()
    local n = add("0w1")
    assert.same({ status = "ready" }, report(n))
    local r = record("0w1")
    assert.same({ "ready", 1, "ab12", 1 }, { r.status, r.starts, r.instance, r.trust })
    assert.same({ "node.ready" }, events_of("0w1"))
    local before = fake.revision
    assert.same({ status = "ready" }, report(n))
    turns()
    local others = fake.revision
    assert.same({ status = "ready" }, report(n))
    assert.equal(others, fake.revision)
    assert.is_true(others - before <= 1) -- the leader's own record
  end))

  it("brings new addresses, services and versions into the node's record", leading(function()
    local n = add("0w1")
    report(n)
    assert(report(n, { version = "1.3.0", services = json.array { "other", "block", "block" },
      addresses = { remote = "h.example:9", gossip = "[fd00::1]:8" } }))
    local now = state.get("/node/0w1")
    assert.same({ "1.3.0", "h.example:9", "[fd00::1]:8" }, { now.version, now.remote_address, now.gossip_address })
    assert.same({ "block", "other" }, table.move(now.services, 1, 2, 1, {}))
    assert.same({ "node.ready", "node.updated" }, events_of("0w1"))
  end))

  it("is no event each time when it changes without end", leading(function()
    local n, other = add("0w1"), add("0w2")
    report(n)
    report(other)
    for i = 1, 60 do
      pass(5)
      assert(report(n, { addresses = { remote = "h.example:" .. i, gossip = "h.example:" .. i } }))
      assert.equal("h.example:" .. i, state.get("/node/0w1").remote_address)
    end
    local told, left_out = 0, 0
    for _, kv in ipairs(state.list("/event/")) do
      if kv.value.node_id == "0w1" and kv.value.kind == "node.updated" then
        told, left_out = told + 1, left_out + (kv.value.left_out or 0)
        if kv.value.left_out then assert.truthy(kv.value.message:find("left out", 1, true), kv.value.message) end
      end
    end
    -- Ten at once and one a minute, in five minutes; the last ones are still to be told.
    assert.is_true(told >= 14 and told <= 16, told)
    assert.is_true(told + left_out > 60 - 12 and told + left_out <= 60, left_out)
    -- Other kinds, and others, are told as before.
    assert.same({ status = "left" }, report(n, { status = "left" }))
    assert(report(other, { version = "1.3.0" }))
    assert.equal("node.left", events_of("0w1")[told + 2])
    assert.same({ "node.ready", "node.updated" }, events_of("0w2"))
  end))

  it("is one event, also when another one comes between", leading(function()
    local n = add("0w1")
    report(n)
    fake.before_submit = function()
      fake.before_submit = nil
      fake.apply { ops = { state.put("/event/000000000999", {}), state.put("/node/0w1", state.get("/node/0w1")) } }
    end
    assert(report(n, { starts = 2, instance = "cd", version = "1.3.0" }))
    assert.same({ "node.ready", "node.updated" }, events_of("0w1"))
  end))

  it("is left, and ready again with the next start", leading(function()
    local n = add("0w1")
    report(n)
    assert.same({ status = "left" }, report(n, { status = "left" }))
    turns()
    assert.equal("left", record("0w1").status)
    assert.same({ status = "ready" }, report(n, { starts = 2, instance = "cd" }))
    assert.same({ "node.ready", "node.left", "node.ready" }, events_of("0w1"))
  end))

  it("counts also when the last leader's clock was an hour ahead", leading(function()
    local n = add("0w1")
    fake.apply { ops = { state.put("/status/node/0w1", { status = "left", since = fake.now + 3600, starts = 1,
      instance = "cd" }) } }
    assert.same({ status = "ready" }, report(n, { starts = 2 }))
  end))

  it("that comes late does not bring back who has left, but a later one does", leading(function()
    local n = add("0w1")
    report(n)
    report(n, { status = "left" })
    pass(1)
    assert.same({ status = "left" }, report(n))
    assert.same({ "node.ready", "node.left" }, events_of("0w1"))
    pass(30)
    assert.same({ status = "ready" }, report(n))
  end))

  it("is refused from an older copy of the folder, and from a second one", leading(function()
    local n = add("0w1")
    report(n, { starts = 5 })
    for fields, text in pairs { [{ starts = 4 }] = "older copy", [{ starts = 5, instance = "ff" }] = "was copied" } do
      local ok, err = report(n, fields)
      assert.is_nil(ok)
      assert.equal("conflict", err.code)
      assert.truthy(err.message:find(text, 1, true), err.message)
      assert.truthy(err.hint)
    end
    assert.equal(5, record("0w1").starts)
    async.sleep(0)
    assert.same({ "node.ready", "node.refused" }, events_of("0w1"))
    -- Nor does the log fill with it.
    local said = 0
    for _, text in ipairs(fake.logged) do said = said + (text:find("is refused", 1, true) and 1 or 0) end
    assert.equal(1, said)
  end))

  it("does not have the leader look without end at addresses that it names", leading(function()
    local n = add("0w1")
    report(n)
    gossip.probes, gossip.answers["10.0.0.1:1"] = {}, true
    local copy = { instance = "ff", addresses = { remote = "10.0.0.2:1", gossip = "10.0.0.2:2" } }
    local busy = 0
    for i = 2, 40 do
      copy.starts = i
      local ok, err = report(n, copy)
      assert.is_nil(ok)
      busy = busy + (err.code == "busy" and 1 or 0)
    end
    assert.is_true(#gossip.probes < 12, #gossip.probes .. " probes")
    assert.equal(39 - #gossip.probes, busy)
  end))

  it("is refused from a copy that was started on another machine while the first one runs", leading(function()
    local n = add("0w1")
    report(n)
    gossip.answers["10.0.0.1:1"] = true
    local copy = { starts = 2, instance = "ff", addresses = { remote = "10.0.0.2:1", gossip = "10.0.0.2:2" } }
    local ok, err = report(n, copy)
    assert.is_nil(ok)
    assert.equal("conflict", err.code)
    assert.truthy(err.message:find("10.0.0.1:1", 1, true))
    assert.same({ "0w1 at 10.0.0.1:1" }, gossip.probes)
    -- It was moved: nobody answers there any more.
    gossip.answers["10.0.0.1:1"] = nil
    assert(report(n, copy))
    assert.equal("10.0.0.2:1", state.get("/node/0w1").remote_address)
  end))

  it("stays down while it is held for flapping, but says which process it is", leading(function()
    local n = add("0w1")
    report(n)
    fake.apply { ops = { state.put("/status/node/0w1", { status = "down", since = fake.now, reason = "flapping",
      flaps = 4, starts = 1, instance = "ab12" }) } }
    assert.same({ status = "down" }, report(n, { starts = 2, instance = "cd" }))
    assert.same({ "down", 2 }, { record("0w1").status, record("0w1").starts })
  end))

  it("may not write without end", leading(function()
    local n, refused = add("0w1"), nil
    for i = 1, 30 do
      local ok, err = report(n, { starts = i, instance = ("%x"):format(i) })
      if not ok then refused = refused or err end
    end
    assert.equal("busy", refused.code)
    assert.equal(10, record("0w1").starts)
  end))

  it("is hostile until it is checked", leading(function()
    local n = add("0w1")
    local many = json.array {}
    for i = 1, 17 do many[i] = "s" .. i end
    for _, bad in ipairs { { status = "up" }, { status = json.null }, { starts = -1 }, { starts = 1.5 },
      { starts = "1" }, { instance = "" }, { instance = ("a"):rep(65) }, { instance = "xyz" }, { version = 1 },
      { version = ("v"):rep(65) }, { version = "a b" }, { services = "block" }, { services = { a = "b" } },
      { services = { "Block" } }, { services = many }, { services = { ("a"):rep(33) } }, { addresses = "x" },
      { addresses = { remote = "nowhere" } }, { addresses = { gossip = ("h"):rep(400) .. ":1" } },
      { addresses = { remote = 7 } }, { trust = "1" }, { trust = -1 }, { trust = 0.5 } } do
      local ok, err = report(n, bad)
      assert.is_nil(ok)
      assert.equal("invalid", err.code, json.encode(bad))
    end
    for _, bad in ipairs { "x", 7, true } do assert.equal("invalid", select(2, status.report(n, bad)).code) end
    assert.is_nil(record("0w1"))
    assert(status.report(n, { status = "ready", starts = 0, instance = "0", version = json.null, trust = json.null }))
    fake.apply { ops = { state.delete("/node/0w1") } }
    assert.equal("denied", select(2, report(n)).code)
  end))

  it("keeps a development cluster on its machine", fake.task(function()
    fake.make { dev = true }
    reconcile.stop()
    local n = add("0dev", { remote_address = "127.0.0.1:1", gossip_address = "127.0.0.1:2" })
    local ok, err = report(n)
    assert.is_nil(ok)
    assert.equal("invalid", err.code)
    assert(report(n, { addresses = { remote = "127.0.0.1:1", gossip = "127.0.0.1:2" } }))
  end))
end)
