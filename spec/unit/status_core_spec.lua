package.path = "lua/?.lua;lua/?/init.lua;" .. package.path
local core = require "symphony.cluster.status_core"

-- A leader's view in plain tables: seen[id] = gossip's word, records[id], links[id].
local function leader(at)
  local l = { now = at or 100, seen = {}, since = {}, records = {}, links = {}, nodes = {} }
  l.mem = core.new(l.now)
  l.view = {
    self = "me", wall = 1000, gossip_since = 0, ready = 0,
    node = function(id) return l.nodes[id] end,
    status = function(id) return l.records[id] end,
    member = function(id)
      return l.seen[id] and { state = l.seen[id], age_ms = 1000 * (l.now - (l.since[id] or l.now)) } or nil
    end,
    link = function(id) return l.links[id] end,
  }
  function l:add(id, status, seen)
    self.nodes[id] = { node_id = id, name = id }
    self.records[id] = status and { status = status, since = 0 } or nil
    if status == "ready" then self.view.ready = self.view.ready + 1 end
    self:see(id, seen or "alive")
  end
  function l:see(id, what)
    self.seen[id], self.since[id] = what, self.now
    core.touch(self.mem, id)
  end
  function l:pass(seconds)
    self.now, self.view.wall = self.now + seconds, self.view.wall + seconds
  end
  function l:look()
    return core.decide(self.mem, self.view, self.now)
  end
  function l:write(plan)
    for _, c in ipairs(plan.changes) do
      local old = self.records[c.id]
      if old and old.status == "ready" then self.view.ready = self.view.ready - 1 end
      if c.status == "ready" then self.view.ready = self.view.ready + 1 end
      self.records[c.id] = { status = c.status, since = self.view.wall, reason = c.reason,
        flaps = core.flaps(old, c.status, self.view.wall) }
      core.recorded(self.mem, c.id, c.status, self.now)
    end
    return plan
  end
  function l:turn() return self:write(self:look()) end
  function l:answer(id, ok) core.probed(self.mem, id, ok, not ok and "refused" or nil, self.now) end
  for _, id in ipairs { "me", "m2", "m3", "w1", "w2", "w3", "w4", "w5" } do l:add(id, "ready") end
  l:turn()
  l:pass(10)
  return l
end

local function lost(l, id)
  l:see(id, "suspect")
  l:turn()
  l:answer(id, false)
  l:pass(2)
  l:see(id, "dead")
  return l:turn()
end

describe("the status of a node", function()
  it("is down when gossip has found it dead and the probe that was made at its word has failed", function()
    local l = leader()
    l:see("w1", "suspect")
    assert.same({ "w1" }, l:turn().probes)
    assert.equal("ready", l.records.w1.status)
    l:answer("w1", false)
    l:pass(2)
    l:see("w1", "dead")
    local plan = l:turn()
    assert.equal("down", l.records.w1.status)
    assert.truthy(plan.changes[1].reason:find("refused", 1, true))
  end)

  it("does not hang on gossip's word, nor on a probe's, alone", function()
    local l = leader()
    l:see("w1", "suspect")
    l:turn()
    l:answer("w1", false)
    l:see("w1", "alive")
    l:turn()
    l:see("w2", "dead")
    assert.same({ "w2" }, l:turn().probes)
    l:answer("w2", true)
    local plan = l:turn()
    assert.same({ id = "w2", verdict = "dead" }, plan.notes[1])
    for _ = 1, 100 do
      l:pass(1)
      for _, id in ipairs(l:turn().probes) do l:answer(id, true) end
    end
    assert.equal("ready", l.records.w1.status)
    assert.equal("ready", l.records.w2.status)
  end)

  it("probes one that answers less and less often, and no probe of long ago counts", function()
    local l, probes = leader(), 0
    l:see("w1", "dead")
    for _ = 1, 1200 do
      for _, id in ipairs(l:turn().probes) do
        l:answer(id, true)
        probes = probes + 1
      end
      l:pass(0.1)
    end
    assert.is_true(probes >= 6 and probes <= 10, probes)
    l = leader()
    l:see("w1", "suspect")
    l:turn()
    l:answer("w1", false)
    l:pass(60)
    l:see("w1", "dead")
    assert.same({ "w1" }, l:turn().probes)
    assert.equal("ready", l.records.w1.status)
  end)

  it("takes a lost connection when no probe can be made, and an answer before it", function()
    local l = leader()
    l.mem.running = core.PROBES_MAX
    l.links.w1, l.links.w2 = { up = false, s = 1 }, { up = false, s = 3600 }
    l:see("w1", "dead")
    l:see("w2", "dead")
    l:turn()
    assert.equal("down", l.records.w1.status)
    assert.equal("ready", l.records.w2.status)
    l = leader()
    l.links.w1 = { up = false, s = 1 }
    l:see("w1", "dead")
    l:turn()
    l:answer("w1", true)
    l:turn()
    assert.equal("ready", l.records.w1.status)
  end)

  it("is ready again when gossip hears of it, or when it has connected since", function()
    local l = leader()
    lost(l, "w1")
    l:see("w1", "alive")
    l:turn()
    assert.equal("ready", l.records.w1.status)
    lost(l, "w2")
    l.links.w2 = { up = true, s = 100 }
    core.touch(l.mem, "w2")
    l:pass(5)
    l:turn()
    assert.equal("down", l.records.w2.status)
    l.links.w2 = { up = true, s = 1 }
    core.touch(l.mem, "w2")
    l:turn()
    assert.equal("ready", l.records.w2.status)
  end)

  it("is not down again by what was seen of it before it has come back", function()
    for _, link in ipairs { { up = false, s = 1 }, { up = true, s = 0 } } do
      local l = leader()
      l.links.w1 = { up = false, s = 0 }
      lost(l, "w1")
      assert.equal("down", l.records.w1.status)
      l:pass(1)
      -- Its report is in the state, in the same second, and this leader has not yet heard more of it.
      l.links.w1 = link
      l.records.w1 = { status = "ready", since = l.records.w1.since, flaps = 1 }
      l.view.ready = l.view.ready + 1
      core.touch(l.mem, "w1")
      l:turn()
      assert.equal("ready", l.records.w1.status)
      core.heard(l.mem, "w1", l.now)
      l:turn()
      assert.equal("ready", l.records.w1.status)
    end
  end)

  it("is not down again by one probe in vain when it has just come back, and gossip has not heard of that", function()
    local function back()
      local l = leader()
      l.links.w1 = { up = false, s = 0 }
      lost(l, "w1")
      assert.equal("down", l.records.w1.status)
      l:pass(3)
      -- It reports, as status.lua has it.
      l.links.w1 = { up = true, s = 0 }
      l.records.w1 = { status = "ready", since = l.view.wall, flaps = 1 }
      l.view.ready = l.view.ready + 1
      core.recorded(l.mem, "w1", "ready", l.now)
      core.heard(l.mem, "w1", l.now)
      l:turn()
      l:pass(1)
      assert.same({ "w1" }, l:turn().probes)
      l:answer("w1", false)
      return l
    end
    local l = back()
    for _ = 1, 10 do
      l:turn()
      l:pass(0.1)
    end
    assert.equal("ready", l.records.w1.status)
    l:see("w1", "alive")
    l:turn()
    assert.equal("ready", l.records.w1.status)
    -- One that hangs is, for all that its connection stays.
    l = back()
    for _ = 1, 60 do
      for _, id in ipairs(l:turn().probes) do l:answer(id, false) end
      l:pass(0.1)
    end
    assert.equal("down", l.records.w1.status)
    -- Nor is one that was killed once more waited for: its connection is lost.
    l = back()
    l.links.w1 = { up = false, s = 0 }
    l:turn()
    assert.equal("down", l.records.w1.status)
  end)

  it("is left by its own word, and ready when it is back, not before gossip has heard of its leaving", function()
    local l = leader()
    l:see("w1", "left")
    l:turn()
    assert.equal("left", l.records.w1.status)
    l:see("w1", "alive")
    l:turn()
    assert.equal("ready", l.records.w1.status)
    -- The leader was told by the node, gossip is to hear of it.
    l.records.w2 = { status = "left", since = l.view.wall }
    core.recorded(l.mem, "w2", "left", l.now)
    l:turn()
    l:pass(1)
    assert.same({}, l:turn().changes)
    l:see("w2", "left")
    assert.same({}, l:turn().changes)
    l:see("w2", "alive")
    l:turn()
    assert.equal("ready", l.records.w2.status)
  end)

  it("comes back in time when the last leader's clock was an hour ahead", function()
    local l = leader()
    l.records.w1 = { status = "left", since = l.view.wall + 3600 }
    l.mem = core.new(l.now)
    core.touch(l.mem, "w1")
    l:turn()
    assert.equal("left", l.records.w1.status)
    l:pass(11)
    l:turn()
    assert.equal("ready", l.records.w1.status)
  end)

  it("is not left by a word of before the node's own", function()
    local l = leader()
    l:see("w1", "left")
    l:turn()
    l:pass(1)
    l.records.w1 = { status = "ready", since = l.view.wall }
    core.heard(l.mem, "w1", l.now)
    l:turn()
    l:pass(3)
    l:answer("w1", true)
    l:turn()
    assert.equal("ready", l.records.w1.status)
    l:see("w1", "left")
    l:turn()
    assert.equal("left", l.records.w1.status)
  end)

  it("is not left while it stays connected, though gossip has not heard of its new start", function()
    local l = leader()
    l:see("w1", "left")
    l:turn()
    assert.equal("left", l.records.w1.status)
    l.links.w1 = { up = true, s = 5 }
    for _ = 1, 24 do
      l:pass(0.5)
      l.links.w1.s = l.links.w1.s + 0.5
      l:turn()
    end
    assert.equal("ready", l.records.w1.status)
    l.links.w1 = nil
    core.touch(l.mem, "w1")
    l:turn()
    assert.equal("left", l.records.w1.status)
  end)

  it("is joining until it is heard of, and down after half a minute in vain", function()
    local l = leader()
    l:add("new", nil, "alive")
    l:turn()
    assert.equal("ready", l.records.new.status)
    l.nodes.dead = { node_id = "dead", name = "dead" }
    core.touch(l.mem, "dead")
    local at = l.now
    repeat
      for _, id in ipairs(l:turn().probes) do l:answer(id, false) end
      l:pass(0.5)
    until l.records.dead or l.now > at + 100
    assert.equal("down", l.records.dead.status)
    assert.is_true(l.now - at >= 30 and l.now - at < 33, l.now - at)
    assert.truthy(l.records.dead.reason:find("since it joined", 1, true))
  end)

  it("is held down longer and longer when it flaps, and forgiven when it has been calm", function()
    local l, waits = leader(), {}
    for i = 1, 11 do
      lost(l, "w1")
      assert.equal("down", l.records.w1.status, i)
      l:see("w1", "alive")
      local at = l.now
      while l.records.w1.status ~= "ready" do
        l:turn()
        l:pass(0.25)
        if l.now > at + 400 then error("never ready again") end
      end
      waits[i] = math.floor(l.now - at)
    end
    assert.same({ 0, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300 }, waits)
    l:pass(601)
    lost(l, "w1")
    assert.equal(1, l.records.w1.flaps)
  end)
end)

describe("a leader that was just elected", function()
  it("calls nobody down for a while, and takes over what is recorded", function()
    local l = leader()
    l.mem = core.new(l.now)
    for id in pairs(l.nodes) do core.touch(l.mem, id) end
    l.records.w1 = { status = "down", since = 0, flaps = 3 }
    l:see("w1", "dead")
    l:see("w2", "dead")
    l:turn()
    l:answer("w2", false)
    for _ = 1, 49 do
      assert.same({}, l:turn().changes)
      l:pass(0.1)
    end
    l:pass(0.2)
    l:turn()
    assert.equal("down", l.records.w2.status)
    assert.equal(3, l.records.w1.flaps)
  end)

  it("probes again meanwhile those that seem lost", function()
    local l = leader()
    l.mem = core.new(l.now)
    l:see("w1", "dead")
    local probes = 0
    for _ = 1, 48 do
      for _, id in ipairs(l:turn().probes) do
        probes = probes + 1
        l:answer(id, l.now > l.mem.began + 3)
      end
      l:pass(0.1)
    end
    assert.is_true(probes >= 3, probes)
    l:pass(0.5)
    l:turn()
    assert.equal("ready", l.records.w1.status)
  end)

  it("waits for gossip", function()
    local l = leader()
    l.mem = core.new(l.now)
    l.view.gossip_since = nil
    for id in pairs(l.nodes) do
      l.seen[id] = nil
      core.touch(l.mem, id)
    end
    for _ = 1, 100 do
      local plan = l:turn()
      assert.same({ 0, 0 }, { #plan.changes, #plan.probes })
      l:pass(1)
    end
  end)
end)

describe("a leader to which more than a third seem lost", function()
  local function third_lost()
    local l = leader()
    for _, id in ipairs { "w1", "w2", "w3" } do l:see(id, "suspect") end
    l:turn()
    for _, id in ipairs { "w1", "w2", "w3" } do l:answer(id, false) end
    local plan = l:turn()
    l:pass(2)
    for _, id in ipairs { "w1", "w2", "w3" } do l:see(id, "dead") end
    return l, plan
  end

  local function go_on(l, seconds, each)
    for _ = 1, seconds * 4 do
      local plan = l:turn()
      for _, id in ipairs(plan.probes) do l:answer(id, each.ok or false) end
      if plan.check and each.quorum then l.view.quorum_at = l.now end
      l:pass(0.25)
    end
  end

  it("says so, holds back, and believes it with a quorum and failing probes", function()
    local l, plan = third_lost()
    assert.same({ lost = 3, of = 8 }, plan.suspects)
    go_on(l, 12, { quorum = true })
    assert.equal("ready", l.records.w1.status)
    go_on(l, 4, { quorum = true })
    for _, id in ipairs { "w1", "w2", "w3" } do assert.equal("down", l.records[id].status, id) end
  end)

  it("never without a quorum, nor when they answer", function()
    local l = third_lost()
    go_on(l, 100, { quorum = false })
    assert.equal("ready", l.records.w1.status)
    l = third_lost()
    go_on(l, 100, { quorum = true, ok = true })
    assert.equal("ready", l.records.w1.status)
  end)

  it("waits longer while its own machine is slow", function()
    local l = third_lost()
    l.view.health = 6
    go_on(l, 27, { quorum = true })
    assert.equal("ready", l.records.w1.status)
    go_on(l, 4, { quorum = true })
    assert.equal("down", l.records.w1.status)
  end)

  it("counts them all, also when it looks at them in parts", function()
    local l = leader()
    for i = 1, 3000 do l:add(("x%04d"):format(i), "ready") end
    repeat until l:turn().wait > 0
    l:pass(10)
    -- A tenth of them, which no doubt holds up.
    for i = 1, 3000, 10 do l:see(("x%04d"):format(i), "suspect") end
    local function go_on_until(condition)
      for _ = 1, 2000 do
        for _, id in ipairs(l:turn().probes) do l:answer(id, false) end
        l:pass(0.05)
        if condition() then return end
      end
      error("it never happens")
    end
    go_on_until(function() return l.mem.lost_count == 300 end)
    for i = 1, 3000, 10 do l:see(("x%04d"):format(i), "dead") end
    go_on_until(function() return l.records.x2991.status == "down" and l.records.x0001.status == "down" end)
    assert.is_nil(l.mem.doubt)
    assert.equal(3008 - 300, l.view.ready)
    l:pass(60)
    -- All others at once.
    for i = 2, 2999 do
      if i % 10 ~= 1 then
        l:see(("x%04d"):format(i), "dead")
        l.links[("x%04d"):format(i)] = { up = false, s = 1 }
      end
    end
    l.mem.running = core.PROBES_MAX
    go_on_until(function() return l.mem.doubt end)
    go_on_until(function() return l.mem.lost_count > 2690 end)
    assert.equal(3008 - 300, l.view.ready)
  end)

  it("does so for those who come one after the other, and not for a single one", function()
    local l = leader()
    lost(l, "w1")
    l:pass(3)
    lost(l, "w2")
    assert.equal("down", l.records.w2.status)
    l:pass(3)
    lost(l, "w3")
    assert.equal("ready", l.records.w3.status)
    assert.truthy(l.mem.doubt)
    l = leader()
    for _, id in ipairs { "m2", "m3", "w2", "w3", "w4", "w5" } do
      l.nodes[id], l.records[id] = nil, nil
    end
    l.view.ready = 2
    lost(l, "w1")
    assert.equal("down", l.records.w1.status)
  end)
end)
