--- A leader over hundreds of virtual nodes that crash, flap, leave and are cut off, with gossip that is late and errs,
--- and leaders that follow each other. Seeded: a failure says its seed.
package.path = "lua/?.lua;lua/?/init.lua;" .. package.path
local core = require "symphony.cluster.status_core"

local TICK, GAP, BATCH = 0.1, 0.2, 32

-- Numbers that are the same for the same seed on every machine.
local function generator(seed)
  local x = seed * 2654435761 % 4294967296
  return function(from, to)
    x = (x * 1664525 + 1013904223) % 4294967296
    return from + (to - from) * (x / 4294967296)
  end
end

local World = {}
World.__index = World

-- @opts: nodes, seed.
local function world(opts)
  local w = setmetatable({ now = 1000, random = generator(opts.seed), nodes = {}, ids = {}, queue = {}, txns = 0,
    writes = {}, records = {}, ready = 0, suspected = 0 }, World)
  for i = 1, opts.nodes do
    local id = ("n%04d"):format(i)
    w.ids[i] = id
    -- sick: the last moment at which it was not whole, as this leader can see it.
    w.nodes[id] = { id = id, up = true, seen = "alive", seen_at = 0, sick = -math.huge, cut = false, whole = w.now }
    w.records[id] = { status = "ready", since = w.now - 1000 }
    w.ready = w.ready + 1
  end
  w:elect()
  return w
end

function World:after(seconds, fn)
  self.queue[#self.queue + 1] = { at = self.now + seconds, fn = fn }
end

function World:elect()
  self.mem, self.elected, self.wrote = core.new(self.now), self.now, -1
  self.certain = -math.huge
  self.view = {
    self = self.ids[1], gossip_since = 0,
    node = function(id) return self.nodes[id] end,
    status = function(id) return self.records[id] end,
    member = function(id)
      local n = self.nodes[id]
      return { state = n.seen, age_ms = 1000 * (self.now - n.seen_at) }
    end,
    link = function(id) return self.nodes[id].link end,
  }
  for _, id in ipairs(self.ids) do core.touch(self.mem, id) end
end

local function reachable(n) return n.up and not n.cut end

function World:see(n, what)
  if n.seen ~= what then n.seen, n.seen_at = what, self.now end
  core.touch(self.mem, n.id)
end

-- Gossip finds out about @n, unless it has changed again meanwhile.
function World:detect(n)
  local turn = n.turn
  self:after(self.random(0.1, 1.2), function()
    if n.turn == turn then self:see(n, "suspect") end
  end)
  self:after(self.random(1.5, 4), function()
    if n.turn == turn then self:see(n, "dead") end
  end)
end

function World:changed(n)
  n.turn = (n.turn or 0) + 1
  if reachable(n) then
    n.whole = self.now
    local turn = n.turn
    self:after(self.random(0.05, 0.6), function()
      if n.turn == turn then self:see(n, "alive") end
    end)
  else
    n.lost = self.now
    self:detect(n)
  end
end

function World:crash(id)
  local n = self.nodes[id]
  if id ~= self.ids[1] and n.up then
    n.up = false
    self:changed(n)
  end
end

function World:start(id)
  local n = self.nodes[id]
  if not n.up then
    n.up = true
    self:changed(n)
  end
end

function World:cut(ids, cut)
  for _, id in ipairs(ids) do
    if id ~= self.ids[1] then
      self.nodes[id].cut = cut
      self:changed(self.nodes[id])
    end
  end
end

-- Gossip errs about a node that is whole: it is suspected, at times called dead, and takes it back.
function World:slander(id)
  local n = self.nodes[id]
  if not reachable(n) or id == self.ids[1] then return end
  local turn = n.turn
  local function say(seconds, what)
    self:after(seconds, function()
      if n.turn == turn and reachable(n) then self:see(n, what) end
    end)
  end
  say(0, "suspect")
  if self.random(0, 1) < 0.3 then
    say(1.5, "dead")
    say(self.random(2, 40), "alive")
  else
    say(self.random(0.2, 1.4), "alive")
  end
end

function World:probe(id)
  local n, mem = self.nodes[id], self.mem
  local takes = reachable(n) and self.random(0.005, 0.4) or (n.cut and 1 or self.random(0.001, 1))
  self:after(takes, function()
    local ok = reachable(n)
    core.probed(mem, id, ok, not ok and "no answer" or nil, self.now)
  end)
end

-- No node that is whole is called down, and no third of them without a doubt that was overcome.
function World:check_down(n)
  local whole_for = reachable(n) and self.now - n.whole or 0
  assert(whole_for < 5, ("%s is called down, whole for %.1f s"):format(n.id, whole_for))
  local recent = 0
  for id, at in pairs(self.down_at or {}) do
    if self.now - at < core.WINDOW_S and self.records[id].status == "down" then recent = recent + 1 end
  end
  local third = recent <= 2 or 3 * (recent - 1) <= self.ready + recent
  assert(third or self.certain >= self.elected, ("%d of %d are called down without a doubt"):format(recent, self.ready))
end

function World:apply(changes)
  self.txns = self.txns + 1
  for i = 1, math.min(#changes, BATCH) do
    local c = changes[i]
    local old, n = self.records[c.id], self.nodes[c.id]
    self.ready = self.ready - (old.status == "ready" and 1 or 0) + (c.status == "ready" and 1 or 0)
    self.records[c.id] = { status = c.status, since = self.now, flaps = core.flaps(old, c.status, self.now) }
    self.writes[c.id] = (self.writes[c.id] or 0) + 1
    self.down_at = self.down_at or {}
    if c.status == "down" then
      self.down_at[c.id] = self.now
      self:check_down(n)
    end
    core.recorded(self.mem, c.id, c.status, self.now)
  end
end

function World:turn()
  local due, rest = {}, {}
  for _, entry in ipairs(self.queue) do
    table.insert(entry.at <= self.now and due or rest, entry)
  end
  self.queue = rest
  table.sort(due, function(a, b) return a.at < b.at end)
  for _, entry in ipairs(due) do entry.fn() end
  self.view.wall, self.view.ready = self.now, self.ready
  local plan = core.decide(self.mem, self.view, self.now)
  for _, id in ipairs(plan.probes) do self:probe(id) end
  if plan.suspects then self.suspected = self.suspected + 1 end
  if plan.check then self.view.quorum_at = not self.no_quorum and self.now or nil end
  if plan.certain then self.certain = self.now end
  assert(#plan.changes == 0 or not self.no_quorum or not plan.certain, "certain without a quorum")
  if #plan.changes > 0 and self.now - self.wrote >= GAP then
    self.wrote = self.now
    self:apply(plan.changes)
  end
  self.now = self.now + TICK
end

function World:run(seconds, each)
  local stop = self.now + seconds
  while self.now < stop do
    if each then each() end
    self:turn()
  end
end

-- Everyone is called what he is, if that has been so for long enough.
function World:check_settled()
  for _, id in ipairs(self.ids) do
    local n, record = self.nodes[id], self.records[id]
    assert.equal(reachable(n) and "ready" or "down", record.status, id)
  end
end

local function each_seed(n, fn)
  for seed = 1, n do
    local ok, err = pcall(fn, seed)
    if not ok then error(("seed %d: %s"):format(seed, type(err) == "table" and err.message or tostring(err)), 0) end
  end
end

describe("the status of virtual nodes", function()
  it("never says down of one that is whole, and of every crashed one in time", function()
    each_seed(5, function(seed)
      local w = world { nodes = 200, seed = seed }
      local delays = {}
      w:run(10)
      for _ = 1, 40 do
        local id = w.ids[math.floor(w.random(2, 200))]
        local fell = w.records[id].status == "ready" and reachable(w.nodes[id])
        w:crash(id)
        local at = w.now
        w:run(8, function()
          if w.random(0, 1) < 0.1 then w:slander(w.ids[math.floor(w.random(2, 200))]) end
          if fell and w.records[id].status == "down" and not delays[at] then delays[at] = w.now - at end
        end)
        if fell then assert(delays[at], id .. " is not down after 8 s") end
        if w.random(0, 1) < 0.6 then w:start(id) end
      end
      assert.equal(0, w.suspected)
      w:run(400)
      w:check_settled()
      assert.is_true(w.txns < 200, w.txns)
    end)
  end)

  it("does not flood the log with one that flaps, and shows it as down", function()
    each_seed(5, function(seed)
      local w = world { nodes = 50, seed = seed }
      local down, total = 0, 0
      w:run(10)
      local flapper, goes = w.ids[7], 0
      w:run(1200, function()
        if w.now >= goes then
          if w.nodes[flapper].up then w:crash(flapper) else w:start(flapper) end
          goes = w.now + w.random(3, 9)
        end
        if w.now > 1200 then
          total = total + 1
          if w.records[flapper].status == "down" then down = down + 1 end
        end
      end)
      assert.is_true(w.writes[flapper] <= 30, w.writes[flapper])
      assert.is_true(down > 0.9 * total, down / total)
      w:start(flapper)
      w:run(330)
      assert.equal("ready", w.records[flapper].status)
    end)
  end)

  it("bounds the txns when many flap at once", function()
    each_seed(4, function(seed)
      local w = world { nodes = 300, seed = seed }
      w:run(10)
      w:run(300, function()
        for i = 2, 60 do
          local n = w.nodes[w.ids[i]]
          if not n.next or w.now >= n.next then
            if n.up then w:crash(n.id) else w:start(n.id) end
            n.next = w.now + w.random(2, 12)
          end
        end
      end)
      for i = 2, 60 do assert.is_true((w.writes[w.ids[i]] or 0) <= 24, w.writes[w.ids[i]]) end
      for i = 61, 300 do assert.is_nil(w.writes[w.ids[i]]) end
    end)
  end)

  it("holds back when it is cut off from many, and believes it in the end", function()
    each_seed(5, function(seed)
      local w = world { nodes = 120, seed = seed }
      w:run(10)
      local ids = table.move(w.ids, 30, 29 + math.floor(w.random(45, 90)), 1, {})
      w:cut(ids, true)
      w:run(w.random(5, 14))
      assert.is_true(w.suspected > 0)
      w:cut(ids, false)
      w:run(120)
      w:check_settled()
      local wrong = 0
      for _, id in ipairs(ids) do wrong = wrong + (w.writes[id] and 1 or 0) end
      assert.is_true(3 * wrong <= 120, wrong)
      -- Without a quorum it never believes it.
      w.no_quorum = true
      w:cut(ids, true)
      w:run(90)
      local ready = 0
      for _, id in ipairs(ids) do ready = ready + (w.records[id].status == "ready" and 1 or 0) end
      assert.is_true(ready >= #ids - 40, ready)
      w.no_quorum = false
      w:run(60)
      w:check_settled()
    end)
  end)

  it("goes on with the next leader, who marks nobody by what he does not know yet", function()
    each_seed(5, function(seed)
      local w = world { nodes = 150, seed = seed }
      w:run(10)
      for _ = 1, 12 do
        local id = w.ids[math.floor(w.random(2, 150))]
        w:crash(id)
        w:run(w.random(0, 4))
        local before = w.txns
        w:elect()
        w:run(0.9)
        assert.equal(before, w.txns)
        w:run(14)
        assert.equal("down", w.records[id].status)
        w:start(id)
        w:run(20)
      end
      w:run(120)
      w:check_settled()
    end)
  end)
end)
