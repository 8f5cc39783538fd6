local fake = require "spec.unit.cluster_fake"
local sandbox = require "spec.unit.policy_fake"
local async = require "symphony.async"
local events = require "symphony.cluster.events"
local occurrence = require "symphony.policy.occurrence"
local reactions = require "symphony.policy.reactions"
local state = require "symphony.cluster.state"
local store = require "symphony.policy.store"

reactions.AGAIN_MS = 0

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

  it("come in the order in which things happened, also to who leads next", cluster(function()
    store.set("p", [[return { hooks = { ["node.down"] = function() return { event("down") } end,
      ["leader.change"] = function(input) return { event("leads") } end } }]], "me")
    turn()
    reactions.stop()
    happens "node.down"
    fake.status.term = fake.status.term + 1
    turn()
    local list = {}
    for i, event in ipairs(told "policy.event") do list[i] = event.message end
    assert.same({ "leads", "down", "leads" }, list)
  end))

  it("are there to all that happened while nobody led", cluster(function()
    occurrence.BURST = 1000
    reactions.stop()
    store.set("p", policy("node.down", [[return { kv_put("p/" .. input.reason, "x") }]]), "me")
    turn()
    reactions.stop()
    for i = 1, 150 do happens("node.down", { reason = tostring(i) }) end
    turn()
    occurrence.BURST = 20
    assert.equal(150, #state.list_raw "/kv/p/")
  end))

  it("are those of a policy that has just been set, too", cluster(function()
    store.set("q", policy("node.down", [[return { kv_put("q", "1") }]]), "me")
    local record = state.text "/policy/q"
    store.rm("q", "me")
    store.set("p", policy("admit.join", "return nil"), "me")
    local slipped
    fake.before_submit = function(txn)
      if slipped or txn.ops[1].put ~= "/cluster/reactions" then return end
      slipped = true -- between the beginning of the look and what has happened
      fake.apply { ops = { state.put("/policy/q", record) } }
      fake.apply { ops = { state.put("/event/000000000900", { kind = "node.down", node_id = ID, at = fake.now }) } }
    end
    turn()
    fake.before_submit = nil
    assert.is_true(slipped)
    turn()
    assert.equal("1", value "q")
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
    occurrence.BURST = 100
    reactions.stop()
    store.set("p", policy("node.down", [[local list = {}
      for i = 1, 50 do list[i] = kv_put("p/" .. i, "x") end
      return list]]), "me")
    turn()
    happens "node.down"
    turn()
    occurrence.BURST = 20
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

  it("keep no others waiting for a node that is being removed", cluster(function()
    fake.now = 1700000010
    store.set("p", policy("node.down", [[return { drain("w1"), set_label("w1", "lost", "yes") }]]), "me")
    store.set("q", policy("node.down", [[return { kv_put("q", "1") }]]), "me")
    store.set("t", policy("every.1m", [[return { kv_put("at", tostring(input.now)) }]]), "me")
    turn()
    local n = state.get("/node/" .. ID)
    n.removing = true
    fake.apply { ops = { state.put("/node/" .. ID, n) } }
    happens "node.down"
    fake.now = 1700000040
    turn()
    assert.same({ "1", "1700000040" }, { value "q", value "at" })
    assert.truthy(told("policy.refused")[1].message:find("w1 is being removed", 1, true))
  end))

  it("wait while the policies of admission cannot be asked", cluster(function()
    store.set("names", policy("admit.change", "return nil"), "me")
    store.set("p", policy("node.down", [[return { kv_put("a", "1"), set_label("w1", "lost", "yes") }]]), "me")
    turn()
    happens "node.down"
    sandbox.before_call = function(hook)
      sandbox.call_error = hook == "admit.change" and { code = "busy", message = "no time" } or nil
    end
    assert.is_false((pcall(turn)))
    sandbox.before_call, sandbox.call_error = nil, nil
    turn()
    assert.same({ "1", "yes" }, { value "a", state.get("/node/" .. ID).labels.lost })
    assert.same({}, told "policy.refused")
    -- One that fails by itself refuses for good.
    store.set("names", policy("admit.change", [[error("oops")]]), "me")
    fake.apply { ops = { state.delete "/kv/a" } }
    happens "node.down"
    turn()
    assert.is_nil(value "a")
    assert.equal(1, #told "policy.refused")
  end))

  it("that have to wait keep those of no other policy waiting, and stay in their order", cluster(function()
    fake.now = 1700000010
    store.set("keys", [[return { match = { ["admit.change"] = { keys = { "p/*" } } },
      hooks = { ["admit.change"] = function() end } }]], "me")
    store.set("p", policy("node.down", [[return { event("before"), kv_put("p/" .. input.reason, "1"),
      event(input.reason) }]]), "me")
    store.set("q", policy("node.down", [[return { event("q " .. input.reason) }]]), "me")
    store.set("t", policy("every.1m", [[return { kv_put("at", tostring(input.now)) }]]), "me")
    turn()
    local function messages()
      local list = {}
      for i, event in ipairs(told "policy.event") do list[i] = event.message end
      return list
    end
    sandbox.before_call = function(hook)
      sandbox.call_error = hook == "admit.change" and { code = "busy", message = "no time" } or nil
    end
    happens("node.down", { reason = "one" })
    happens("node.down", { reason = "two" })
    fake.now = 1700000040
    local ok, err = pcall(turn)
    sandbox.before_call, sandbox.call_error = nil, nil
    assert.same({ false, "policy_failed" }, { ok, err.code })
    assert.same({ { "before", "q one", "q two" }, "1700000040" }, { messages(), value "at" })
    turn()
    assert.same({ "before", "q one", "q two", "one", "before", "two" }, messages())
    assert.same({ "1", "1", {} }, { value "p/one", value "p/two", (state.list_raw "/reaction/") })
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

-- Whatever fails, and whenever the leader changes, what is asked for is done once.
describe("reactions, of which something fails in the middle,", function()
  local raft, real = package.loaded["sym.raft"], nil

  -- The @n-th txn from now on is not answered: it was applied, or not. A function that says whether there was one.
  local function failing(n, how)
    local hit = false
    raft.submit = function(txn, ms, cb)
      n = n - 1
      if n ~= 0 then return real(txn, ms, cb) end
      hit = true
      if how == "applied" then fake.apply(txn) end
      cb { code = how == "applied" and "outcome_unknown" or "no_quorum", message = "no answer" }
    end
    return function() return hit end
  end

  local function turns(n)
    local failures = 0
    for _ = 1, n do
      if not pcall(reactions.turn) then failures = failures + 1 end
    end
    return failures
  end

  local function new_leader()
    reactions.stop()
    fake.status.term = fake.status.term + 1
  end

  local function injected(fn)
    return cluster(function()
      real = raft.submit
      local ok, err = pcall(fn)
      raft.submit = real
      if not ok then error(err, 0) end
    end)
  end

  -- The messages of policy.event, sorted: each is there as often as it was carried out.
  local function carried_out()
    local list = {}
    for i, event in ipairs(told "policy.event") do list[i] = event.message end
    table.sort(list)
    return list
  end

  -- happen() makes something happen; @want is what is to be carried out then, whatever txn fails.
  local function once(happen, want)
    local cases = 0
    for _, how in ipairs { "lost", "applied" } do
      for _, change in ipairs { false, true } do
        for n = 1, 40 do
          fake.apply { ops = (function()
            local ops = {}
            for i, kv in ipairs(state.list_raw "/event/") do ops[i] = state.delete(kv.key) end
            return ops
          end)() }
          happen()
          local was_hit = failing(n, how)
          turns(1)
          raft.submit = real
          if change then new_leader() end
          turns(3)
          local case = ("txn %d %s, %s"):format(n, how, change and "another leader" or "the same leader")
          assert.same(want, carried_out(), case)
          assert.same({}, state.list_raw "/reaction/", case)
          if not was_hit() then break end
          cases = cases + 1
        end
      end
    end
    return cases
  end

  local TWO = [[return { event("a"), event("b"), kv_put("n", "1"), drain("w1"), event("c") }]]

  it("to nodes", injected(function()
    store.set("p", policy("node.down", TWO), "me")
    store.set("q", policy("node.down", [[return { event("d") }]]), "me")
    store.set("r", policy("node.down", [[return nil]]), "me")
    require("symphony.policy.occurrence").BURST = 1000
    reactions.stop()
    turns(1)
    local cases = once(function()
      fake.apply { ops = { state.delete "/kv/n" } }
      happens "node.down"
    end, { "a", "b", "c", "d" })
    require("symphony.policy.occurrence").BURST = 20
    assert.is_true(cases >= 4 * 7, cases) -- two are noted, six are done
    assert.equal("drain", state.get("/node/" .. ID).availability)
  end))

  it("to another leader", injected(function()
    store.set("p", policy("leader.change", [[return { event("x" .. input.term), event("y" .. input.term) }]]), "me")
    store.set("q", policy("leader.change", [[return { event("z" .. input.term) }]]), "me")
    turns(1)
    for _, how in ipairs { "lost", "applied" } do
      for n = 1, 20 do
        new_leader()
        local was_hit = failing(n, how)
        turns(1)
        raft.submit = real
        turns(3)
        local term, count = tostring(fake.status.term), {}
        for _, text in ipairs(carried_out()) do count[text] = (count[text] or 0) + 1 end
        assert.same({ 1, 1, 1 }, { count["x" .. term], count["y" .. term], count["z" .. term] },
          ("txn %d %s"):format(n, how))
        if not was_hit() then break end
      end
    end
  end))

  it("to time", injected(function()
    fake.now = 1700000010
    store.set("p", policy("every.1m", [[local minute = input.now // 60
      return { event("a" .. minute), event("b" .. minute) }]]), "me")
    store.set("q", policy("every.1m", [[return { event("c" .. input.now // 60) }]]), "me")
    turns(1)
    local minute = 1700000010 // 60
    for _, how in ipairs { "lost", "applied" } do
      for _, change in ipairs { false, true } do
        for n = 1, 20 do
          minute = minute + 1
          fake.now = minute * 60
          local was_hit = failing(n, how)
          turns(1)
          raft.submit = real
          if change then new_leader() end
          fake.now = minute * 60 + 5
          turns(3)
          local count = {}
          for _, text in ipairs(carried_out()) do count[text] = (count[text] or 0) + 1 end
          assert.same({ 1, 1, 1 }, { count["a" .. minute], count["b" .. minute], count["c" .. minute] },
            ("txn %d %s"):format(n, how))
          if not was_hit() then break end
        end
      end
    end
  end))

  it("because a policy cannot be asked, which is not its fault", injected(function()
    store.set("p", policy("node.down", [[return { event("a") }]]), "me")
    store.set("q", policy("node.down", [[return { event("b") }]]), "me")
    store.set("r", policy("node.down", [[return { event("c") }]]), "me")
    turns(1)
    happens "node.down"
    local asked, module = {}, package.loaded["sym.policy"]
    local call = module.call
    local _ <close> = setmetatable({}, { __close = function() module.call = call end })
    module.call = function(hook, text, opts, cb)
      local name = opts.only[1]
      asked[name] = (asked[name] or 0) + 1
      if name == "q" then return cb { code = "busy", message = "it does not load again", policy = "q" } end
      call(hook, text, opts, cb)
    end
    assert.equal(1, turns(1))
    turns(1) -- that keeps the others from nothing
    assert.same({ "a", "c" }, carried_out())
    module.call = call
    turns(2)
    assert.same({ { "a", "b", "c" }, { p = 1, q = 2, r = 1 }, {} }, { carried_out(), asked,
      require("symphony.policy.engine").failures() })
    -- However often that is.
    sandbox.call_error = { code = "busy", message = "too much waits" }
    happens "node.down"
    turns(60)
    sandbox.call_error = nil
    happens "node.down"
    turns(1)
    assert.same({ "a", "a", "a", "b", "b", "b", "c", "c", "c" }, carried_out())
  end))

  it("because a policy cannot be asked: its events wait for it, and those of others do not", injected(function()
    for _, name in ipairs { "p", "q" } do
      store.set(name, policy("node.down", ([[return { event("%s " .. input.reason) }]]):format(name)), "me")
    end
    turns(1)
    local module = package.loaded["sym.policy"]
    local call = module.call
    local _ <close> = setmetatable({}, { __close = function() module.call = call end })
    local function cannot_be_asked(wanted)
      module.call = function(hook, text, opts, cb)
        if opts.only[1] == wanted then return cb { code = "busy", message = "no", policy = wanted } end
        call(hook, text, opts, cb)
      end
    end
    local function messages()
      local list = {}
      for i, event in ipairs(told "policy.event") do list[i] = event.message end
      return list
    end
    cannot_be_asked "p"
    happens("node.down", { reason = "1" })
    happens("node.down", { reason = "2" })
    turns(1)
    assert.same({ "q 1", "q 2" }, messages())
    new_leader() -- who knows what p has yet to react to, and the others not
    happens("node.down", { reason = "3" })
    turns(1)
    assert.same({ "q 1", "q 2", "q 3" }, messages())
    cannot_be_asked "q"
    turns(1)
    assert.same({ "q 1", "q 2", "q 3", "p 1", "p 2", "p 3" }, messages())
    new_leader()
    cannot_be_asked "nobody"
    turns(2)
    happens("node.down", { reason = "4" })
    turns(2)
    assert.same({ "q 1", "q 2", "q 3", "p 1", "p 2", "p 3", "p 4", "q 4" }, messages())
    local mark = require("symphony.policy.todo").mark()
    assert.is_nil(mark.own)
  end))

  -- p cannot be asked until the test says otherwise; what q asks for is done.
  local function p_is_busy()
    store.set("p", policy("node.down", [[return { event("p " .. input.reason) }]]), "me")
    store.set("q", policy("node.down", [[return { event("q " .. input.reason) }]]), "me")
    turns(1)
    local module = package.loaded["sym.policy"]
    local call = module.call
    module.call = function(hook, text, opts, cb)
      if opts.only[1] == "p" then return cb { code = "busy", message = "no", policy = "p" } end
      call(hook, text, opts, cb)
    end
    local function over() module.call = call end
    return over, setmetatable({}, { __close = over })
  end

  it("as what came is not to be had from its history any more: nothing is lost, and nobody asked twice",
    injected(function()
      local over, _ <close> = p_is_busy()
      happens("node.down", { reason = "1" })
      happens("node.down", { reason = "2" })
      turns(1)
      fake.compact()
      happens("node.down", { reason = "3" })
      turns(1)
      over()
      local asked = 0
      sandbox.before_call = function() asked = asked + 1 end
      turns(2)
      sandbox.before_call = nil
      assert.same({ "p 1", "p 2", "p 3", "q 1", "q 2", "q 3" }, carried_out())
      assert.equal(3, asked)
      assert.is_nil(require("symphony.policy.todo").mark().own)
    end))

  it("as a policy could not be asked for two minutes: it goes on behind that, also with the next leader",
    injected(function()
      local over, _ <close> = p_is_busy()
      local sys = require "sym.sys"
      local mono_ms = sys.mono_ms
      local _ <close> = setmetatable({}, { __close = function() sys.mono_ms = mono_ms end })
      happens("node.down", { reason = "1" })
      turns(1)
      sys.mono_ms = function() return mono_ms() + 121 * 1000 end
      turns(1)
      over()
      happens("node.down", { reason = "2" })
      turns(1)
      new_leader()
      turns(1)
      assert.same({ "p 2", "q 1", "q 2" }, carried_out())
    end))

  it("as it was time for a policy, which could not be asked for two minutes: it is asked when it is time again",
    injected(function()
      local sys = require "sym.sys"
      local mono_ms = sys.mono_ms
      local _ <close> = setmetatable({}, { __close = function() sys.mono_ms = mono_ms end })
      store.set("t", policy("every.1h", [[return { event("t") }]]), "me")
      fake.now = 1700000010
      turns(1)
      local hour = 1700000010 // 3600 * 3600 + 3600
      sandbox.call_error = { code = "busy", message = "too much waits" }
      fake.now = hour + 1
      turns(3)
      sys.mono_ms = function() return mono_ms() + 121 * 1000 end
      fake.now = hour + 122
      turns(1)
      sandbox.call_error = nil
      turns(3)
      assert.same({}, carried_out())
      fake.now = hour + 3601
      turns(1)
      assert.same({ "t" }, carried_out())
    end))

  it("as a policy is taken away, or set anew: nothing is kept of what waited for it", injected(function()
    for _, fn in ipairs { function() store.rm("p", "me") end,
      function() store.set("p", policy("node.down", [[return { event("newer") }]]), "me") end } do
      local over, _ <close> = p_is_busy()
      happens("node.down", { reason = "1" })
      turns(1)
      happens("node.down", { reason = "2" })
      turns(1)
      fn()
      over()
      turns(2)
      new_leader()
      turns(1)
      assert.is_nil(table.concat(carried_out(), " "):find("[pn]"))
      assert.is_nil(require("symphony.policy.todo").mark().own)
    end
  end))

  it("as another one leads: who is late with its own mark takes nothing from what waits there", injected(function()
    store.set("p", policy("node.down", [[return nil]]), "me")
    turns(1)
    local todo, slipped = require "symphony.policy.todo", nil
    happens "node.down"
    fake.before_submit = function(txn)
      local _, kv = todo.mark()
      if slipped or txn.compare[1].key ~= kv.key then return end
      -- It leads no more; with the next one, p could not be asked about this, nor about what has come behind it.
      local mark = { revision = kv.mod_revision + 100, event = 9, own = { p = { revision = 1, event = 1 } } }
      slipped = fake.apply { ops = { state.put(kv.key, mark) } }
      fake.status.term, fake.status.state = fake.status.term + 1, "follower"
    end
    turns(1)
    fake.before_submit = nil
    assert.truthy(slipped)
    assert.same({ revision = 1, event = 1 }, todo.mark().own.p)
    fake.status.state = "leader"
  end))

  it("of a policy that fails come when those of the others are done", injected(function()
    store.set("p", policy("node.down", [[error("oops")]]), "me")
    store.set("q", policy("node.down", [[return { event("q") }]]), "me")
    turns(1)
    local asked = {}
    sandbox.before_call = function() asked[#asked + 1] = sandbox.calls[#sandbox.calls].only[1] end
    for _ = 1, 4 do happens "node.down" end
    turns(1)
    assert.same({ "p", "q", "q", "q", "q" }, asked)
    happens "node.down"
    turns(3)
    sandbox.before_call = nil
    assert.equal("p q q q q q p p p", table.concat(asked, " "))
  end))

  -- A node goes down, of which two policies have something to say, and a third one of the time.
  local function down_and_clock()
    store.set("p", policy("node.down", [[return { event("a") }]]), "me")
    store.set("q", policy("node.down", [[return { event("b") }]]), "me")
    store.set("t", policy("every.1m", [[return { event("t") }]]), "me")
    fake.now = 1700000010
    turns(1)
    happens "node.down"
  end

  it("are not tried policy by policy while nothing can be done", injected(function()
    down_and_clock()
    local submitted = 0
    raft.submit = function(txn, ms, cb)
      submitted = submitted + 1
      if submitted <= 2 then return real(txn, ms, cb) end -- what they ask for is noted
      cb { code = "no_quorum", message = "no answer" }
    end
    fake.now = 1700000040
    assert.equal(2, turns(2))
    raft.submit = real
    assert.equal(4, submitted)
    turns(1)
    assert.same({ "a", "b", "t" }, carried_out())
  end))

  it("because two policies cannot be asked: each is asked as often as one alone", injected(function()
    down_and_clock()
    local asked, module = { p = 0, q = 0, t = 0 }, package.loaded["sym.policy"]
    local call = module.call
    local _ <close> = setmetatable({}, { __close = function() module.call = call end })
    module.call = function(hook, text, opts, cb)
      local name = opts.only[1]
      asked[name] = asked[name] + 1
      if name == "p" or (name == "q" and asked.q < 20) then
        return cb { code = "busy", message = "it does not load again", policy = name }
      end
      call(hook, text, opts, cb)
    end
    fake.now = 1700000040
    turns(2)
    assert.same({ "t" }, carried_out()) -- time goes on meanwhile
    turns(30)
    assert.same({ { p = 32, q = 20, t = 1 }, { "b", "t" } }, { asked, carried_out() })
  end))

  it("are told, if they are refused, also when that could not be written at first", injected(function()
    store.set("p", policy("node.down", [[return { drain("nobody") }]]), "me")
    turns(1)
    happens "node.down"
    local was_hit = failing(2, "lost")
    turns(1)
    raft.submit = real
    assert.same({ true, {} }, { was_hit(), told "policy.refused" })
    turns(1)
    assert.same({ 1, {} }, { #told "policy.refused", (state.list_raw "/reaction/") })
    happens "node.down" -- but not each of a flood
    turns(1)
    assert.equal(1, #told "policy.refused")
  end))

  it("are given up when it is too late, and when the policy has no word any more", injected(function()
    store.set("p", policy("node.down", [[return { event("a"), event("b") }]]), "me")
    turns(1)
    happens "node.down"
    failing(2, "lost")
    turns(1)
    raft.submit = real
    assert.equal(2, #state.list_raw "/reaction/")
    fake.now = fake.now + 121
    turns(1)
    assert.same({ {}, {} }, { carried_out(), (state.list_raw "/reaction/") })
    assert.truthy(told("policy.refused")[1].message:find("an event, which policy p asks for at node.down, is not done: "
      .. "it is too late for it", 1, true))
    happens "node.down"
    failing(2, "lost")
    turns(1)
    raft.submit = real
    store.disable("p", "me")
    turns(1)
    assert.same({ {}, {} }, { carried_out(), (state.list_raw "/reaction/") })
  end))
end)
