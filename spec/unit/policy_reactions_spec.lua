local fake = require "spec.unit.cluster_fake"
local sandbox = require "spec.unit.policy_fake"
local async = require "symphony.async"
local events = require "symphony.cluster.events"
local reactions = require "symphony.policy.reactions"
local state = require "symphony.cluster.state"
local store = require "symphony.policy.store"

local ID = "0abcdefghijklmnopqrstuvabc"

local policy, told, value = sandbox.source, sandbox.told, sandbox.value

local function cluster(fn)
  return sandbox.cluster(function()
    reactions.stop() -- a test asks for each turn
    fake.apply { ops = { state.put("/node/" .. ID, { node_id = ID, name = "w1", role = "worker", fingerprint = "f",
      labels = { zone = "a" }, availability = "active" }), state.put("/name/w1", ID) } }
    fn()
    reactions.stop()
  end)
end

local function happens(kind, more)
  local fields = { kind = kind, node = { node_id = ID, name = "w1" }, message = "x", reason = "no answer" }
  for k, v in pairs(more or {}) do fields[k] = v end
  assert(events.record(fields))
end

-- The fake's watches are told at once, and the store has no history: what is there when a turn begins is looked up.
local function turn()
  return reactions.turn()
end

describe("reactions", function()
  it("to a node that goes down and comes back carry out what they ask for", cluster(function()
    store.set("p", policy("node.down", [[return { set_label(input.node.node_id, "lost", "yes"), drain(input.node.name),
      kv_put("down/" .. input.node.name, input.reason .. " " .. input.node.role .. " " .. input.node.labels.zone),
      event("lost " .. input.node.name) }]]), "me")
    store.set("q", policy("node.up", [[return { activate("w1"), set_label("w1", "lost"), kv_rm("down/w1") }]]), "me")
    turn()
    happens "node.down"
    turn()
    assert.equal("no answer worker a", value "down/w1")
    local n = state.get("/node/" .. ID)
    assert.same({ "drain", "yes" }, { n.availability, n.labels.lost })
    assert.same({ "lost w1", "p" }, { told("policy.event")[1].message, told("policy.event")[1].policy })
    assert.equal("p", told("node.updated")[1].policy)
    happens "node.ready"
    turn()
    n = state.get("/node/" .. ID)
    assert.same({ "active", { zone = "a" } }, { n.availability, n.labels })
    assert.is_nil(value "down/w1")
  end))

  it("are carried out once, by one leader, also by the next", cluster(function()
    store.set("p", policy("node.down", [[return { kv_put("n", tostring((tonumber(get("/kv/n")) or 0) + 1)) }]]), "me")
    turn()
    happens "node.down"
    turn()
    assert.equal("1", value "n")
    turn()
    reactions.stop() -- the next leader begins behind it
    turn()
    assert.equal("1", value "n")
    reactions.stop()
    happens "node.down" -- while nobody leads
    turn()
    assert.equal("2", value "n")
    -- What happened long ago is over.
    reactions.stop()
    happens "node.down"
    fake.now = fake.now + 1000
    turn()
    assert.equal("2", value "n")
    -- So is what happened before the policy was there.
    reactions.stop()
    happens "node.down"
    store.set("q", policy("node.down", [[return { kv_put("q", "1") }]]), "me")
    turn()
    assert.same({ "3", nil }, { value "n", value "q" })
  end))

  it("wait on a follower", cluster(function()
    store.set("p", policy("node.down", [[return { kv_put("n", "1") }]]), "me")
    turn()
    fake.status.state = "follower"
    happens "node.down"
    turn()
    assert.is_nil(value "n")
  end))

  it("are one level deep, and never trigger themselves", cluster(function()
    store.set("p", policy("node.down", [[return { kv_put("n", tostring((tonumber(get("/kv/n")) or 0) + 1)) }]]), "me")
    turn()
    happens("node.down", { policy = "p" }) -- what a policy has done
    happens("policy.event", { policy = "p" })
    turn()
    assert.is_nil(value "n")
  end))

  it("are rate-limited, policy by policy, and that is told once", cluster(function()
    store.set("p", policy("node.down", [[local list = {}
      for i = 1, 15 do list[i] = kv_put("p" .. (tonumber(get("/kv/n")) or 0) .. "/" .. i, "x") end
      return list]]), "me")
    store.set("q", policy("node.down", [[return { kv_put("q", "1") }]]), "me")
    turn()
    happens "node.down"
    turn()
    assert.equal(15, #state.list_raw "/kv/p0/")
    fake.apply { ops = { state.put("/kv/n", "1") } }
    happens "node.down"
    turn()
    assert.equal(5, #state.list_raw "/kv/p1/")
    happens "node.down"
    turn()
    assert.same({ 1, "p" }, { #told "policy.limited", told("policy.limited")[1].policy })
    assert.equal("1", value "q")
    -- A minute later there are ten more.
    local sys = require "sym.sys"
    local real = sys.mono_ms
    sys.mono_ms = function() return real() + 60 * 1000 end
    fake.apply { ops = { state.put("/kv/n", "2") } }
    happens "node.down"
    turn()
    sys.mono_ms = real
    assert.equal(10, #state.list_raw "/kv/p2/")
  end))

  it("ask for no more than thirty-two things at once", cluster(function()
    reactions.BURST = 100
    reactions.stop()
    store.set("p", policy("node.down", [[local list = {}
      for i = 1, 50 do list[i] = kv_put("p/" .. i, "x") end
      return list]]), "me")
    turn()
    happens "node.down"
    turn()
    reactions.BURST = 20
    assert.equal(32, #state.list_raw "/kv/p/")
  end))

  it("are checked like any other change: one that is refused leaves the others", cluster(function()
    store.set("names", [[return { hooks = { ["admit.change"] = function(c)
      if c.kind == "kv" and glob("secret/*", c.key) then return refuse(c.who.kind .. " " .. c.who.name) end
    end } }]], "me")
    store.set("p", policy("node.down", [[return { kv_put("secret/a", "1"), kv_put("b", "1"), drain("nobody"),
      set_label("w1", "bad key!", "x"), { do_ = "reboot" }, "x", kv_put("c", "1") }]]), "me")
    turn()
    happens "node.down"
    turn()
    assert.same({ nil, "1", "1" }, { value "secret/a", value "b", value "c" })
    local event = told("policy.refused")[1]
    assert.truthy(event.message:find("a put of key secret/a, which policy p asks for at node.down, is not done: "
      .. "policy names refuses: policy p", 1, true), event.message)
    assert.same({ "names", "p" }, { event.policy, event.by_policy })
  end))

  it("that fail do nothing, ten times, and then the policy is disabled", cluster(function()
    store.set("p", policy("node.down", [[error("oops")]]), "me")
    turn()
    for _ = 1, 10 do
      happens "node.down"
      turn()
    end
    async.sleep(20)
    assert.is_false(store.show("p").enabled)
    assert.equal(1, #told "policy.disabled")
  end))

  it("come with time, at the multiples of it", cluster(function()
    store.set("p", policy("every.1m", [[return { kv_put("at", tostring(input.now)) }]]), "me")
    fake.now = 1700000010
    turn()
    assert.is_nil(value "at")
    fake.now = 1700000039
    turn()
    assert.is_nil(value "at")
    fake.now = 1700000040 + 3
    turn()
    assert.equal("1700000043", value "at")
    fake.now = 1700000099
    turn()
    assert.equal("1700000043", value "at")
    fake.now = 1700000100
    turn()
    assert.equal("1700000100", value "at")
  end))

  it("come with another leader, once a term", cluster(function()
    store.set("p", policy("leader.change", [[return { kv_put("leads/" .. input.term, input.leader.name) }]]), "me")
    turn()
    local term = fake.status.term
    assert.truthy(value("leads/" .. term))
    fake.apply { ops = { state.delete("/kv/leads/" .. term) } }
    turn()
    assert.is_nil(value("leads/" .. term))
    fake.status.term = term + 1
    turn()
    assert.truthy(value("leads/" .. (term + 1)))
    -- Not when the first policy comes in the middle of a term.
    store.rm("p", "me")
    fake.status.term = term + 2
    turn()
    store.set("p", policy("leader.change", [[return { kv_put("late", "1") }]]), "me")
    turn()
    assert.is_nil(value "late")
  end))
end)
