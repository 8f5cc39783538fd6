--- Reactions: what policies do when a node goes down or comes back, when another manager leads, and every so often. On
--- the leader alone.
---
--- What happens is seen to once, also when the leader changes or something fails in the middle: the policies are
--- asked, what they ask for is noted in the state together with a mark that says so (todo.lua), and is then carried
--- out. Whoever leads next goes on behind the mark, and with what is noted and not done.
---
--- Each policy has a line of what it is to react to, in order. One that cannot be asked keeps only its own line
--- waiting; one that fails comes when the others are through, and with one thing in a look.
---
--- Bounded: a reaction has at most 32 commands; a policy may carry out 20, and then ten a minute. What a policy has
--- changed triggers no reaction, so they are one level deep and never trigger themselves. What could not be done for
--- two minutes is left out. See occurrence.lua.
local engine = require "symphony.policy.engine"
local errors = require "symphony.errors"
local follow = require "symphony.cluster.follow"
local json = require "symphony.json"
local leading = require "symphony.cluster.lead"
local log = require "sym.log"
local match = require "symphony.policy.match"
local occurrence = require "symphony.policy.occurrence"
local state = require "symphony.cluster.state"
local store = require "sym.store"
local sys = require "sym.sys"
local todo = require "symphony.policy.todo"

local M = {}

local EVENTS = "/event/"
M.AGAIN_MS = 500 -- before a policy that could not be asked is asked again
local TURN_MS, IDLE_MS = 200, 500 -- between looks
local LINE_MAX = 1000 -- of what waits for one policy
local BACKLOG_MAX = 1 << 20 -- bytes
local LATE_S, carry_out = occurrence.LATE_S, occurrence.carry_out

local HOOKS = { ["node.down"] = "node.down", ["node.ready"] = "node.up" } -- by the kind of event

-- What is kept while this manager leads: {term, began = the revision at which it did, led (leader.change is in the
-- lines), feed, missed, next = an event that is not in the lines yet, lines = {[policy] = occurrences}, last = the last
-- event that is, open = the mark has yet to follow, ticks = {["policy/hook"] = when it was last due}, timed = {[the
-- same] = what is being seen to}, timely = it has looked at the clock; of this look: held = the policies whose commands
-- have to wait, failed = the first error}.
local lead
local loop

-- fn(...): what fails there keeps nothing else waiting, and is raised when the look is over; unless nothing else would
-- go well either. Whether it went well.
local function try(l, fn, ...)
  local ok, err = xpcall(fn, errors.handler, ...)
  if not ok and occurrence.nothing_goes(err) then error(err, 0) end
  if not ok then l.failed = l.failed or err end
  return ok
end

-- Lines ---------------------------------------------------------------------------------------------------------------

local function leave_out(o, why)
  log.warn(("policy: %s at %s: %s, and this is left out"):format(o.policy, o.hook, why))
end

local function add(l, o)
  local line = l.lines[o.policy] or {}
  l.lines[o.policy] = line
  line[#line + 1] = occurrence.occurrence(o)
  if #line > LINE_MAX then leave_out(table.remove(line, 1), "too much waits") end
end

-- True: @o is seen to, or too late for that; false: it has to be again.
local function see_to(l, o)
  local now = sys.mono_ms()
  if now - o.since > LATE_S * 1000 then
    leave_out(o, "it could not be asked for too long")
    return true
  end
  if o.again and o.again > now then return false end
  local ok = try(l, occurrence.see_to, o)
  if not ok then o.again = now + M.AGAIN_MS end
  return ok
end

-- The first of the line of the policy @name. True: there is another that may be seen to at once.
local function step(l, name)
  local line = l.lines[name]
  local o = line[1]
  if not see_to(l, o) then return false end
  table.remove(line, 1)
  l.open = l.open or o.event ~= nil
  if #line > 0 then return not engine.failures()[name] end
  l.lines[name] = nil
  return false
end

-- All lines, in turn; of policies that have failed the last time, at the end, the first of each.
local function on_lines(l)
  local failures, lines, well, ill = engine.failures(), {}, {}, {}
  for _, entry in ipairs(engine.list()) do
    local name = entry.name
    lines[name] = l.lines[name]
    if lines[name] then table.insert(failures[name] and ill or well, name) end
  end
  l.lines = lines -- without those of policies that are not enabled any more
  while #well > 0 do
    local names = {}
    for _, name in ipairs(well) do
      if step(l, name) then names[#names + 1] = name end
    end
    well = names
    try(l, carry_out, l.held)
  end
  for _, name in ipairs(ill) do step(l, name) end
  if #ill > 0 then try(l, carry_out, l.held) end
end

-- The milliseconds until the next look.
local function rest(l)
  local ms, now = TURN_MS, sys.mono_ms()
  for _, line in pairs(l.lines) do ms = math.min(ms, (line[1].again or 0) - now) end
  return math.max(0, ms)
end

-- Nodes ---------------------------------------------------------------------------------------------------------------

local function input_of(event)
  local n = event.node_id and state.get("/node/" .. event.node_id) or {}
  return { node = { node_id = event.node_id, name = n.name or event.name, role = n.role, labels = n.labels or {},
    services = n.services }, name = n.name or event.name, role = n.role, reason = event.reason, since = event.at }
end

-- The number of an event's key; 0 for what is none.
local function number_of(key)
  return math.tointeger(tonumber(key:sub(#EVENTS + 1), 10)) or 0
end

-- How far @policy has come: {revision, event}.
local function position(mark, policy)
  return mark.own and mark.own[policy] or mark
end

-- Is @position at @event, or behind it?
local function is_behind(at, event)
  if at.revision ~= event.revision then return (at.revision or 0) > event.revision end
  return at.event >= event.id
end

local function take_event(mark, event, policy)
  if is_behind(position(mark, policy), event) then return false end
  mark.own = mark.own or {}
  mark.own[policy] = { revision = event.revision, event = event.id }
  return true
end

-- Notes that all have reacted to @event and those before it, but for the policies that are keys of @waiting. What
-- waits is known to who leads alone: one that leads no more would take it from those that wait there.
local function close(l, event, waiting)
  todo.note(nil, nil, {}, function(mark)
    if (leading.status() or {}).term ~= l.term then return false end
    local own = {}
    for name in pairs(waiting) do
      local at = position(mark, name)
      own[name] = { revision = at.revision, event = at.event }
    end
    mark.own = next(own) and own or nil
    if not is_behind(mark, event) then mark.revision, mark.event = event.revision, event.id end
    return true
  end)
end

-- Puts @event into the lines of the policies that have not reacted to it.
local function add_event(l, event)
  local hook, list = HOOKS[event.kind], engine.list() -- with all that was set before it
  if event.policy or not engine.has(hook) then return end
  local mark, input = todo.mark() or {}, input_of(event)
  for _, entry in ipairs(list) do
    local name = entry.name
    if occurrence.concerns(entry, hook, input, event.revision) and not is_behind(position(mark, name), event) then
      add(l, { policy = name, hook = hook, input = input, upto = event.revision, event = event,
        take = function(now) return take_event(now, event, name) end })
    end
  end
  l.last, l.open = event, true
end

local function item(change)
  if change.deleted then return nil end
  local event = json.decode(change.value)
  if type(event) ~= "table" or not HOOKS[event.kind] then return nil end
  event.revision, event.id = change.revision or change.mod_revision, number_of(change.key)
  return event, #change.value
end

-- Events that came when nobody led, or that some have yet to react to, in their order.
local function missed()
  local mark = todo.mark()
  if not mark then return {} end
  local out, since, from = {}, sys.now() - LATE_S, mark.revision or 0
  for _, at in pairs(mark.own or {}) do from = math.min(from, at.revision or 0) end
  for _, kv in ipairs(assert(state.list_raw(EVENTS))) do
    local event = kv.mod_revision >= from and item(kv)
    if event and (event.at or 0) >= since then out[#out + 1] = event end
  end
  table.sort(out, function(a, b)
    if a.revision ~= b.revision then return a.revision < b.revision end
    return a.id < b.id
  end)
  return out
end

local function follow_events(l)
  if l.feed and not l.feed.failed then return end
  if l.feed then l.feed:close() end
  l.feed = nil
  local at = store.revision()
  if not todo.mark() then -- from here on
    todo.note(nil, nil, {}, function(mark)
      if mark.revision then return false end
      mark.revision, mark.event = at, 0
      return true
    end)
  end
  local feed = assert(follow.open(EVENTS, at, BACKLOG_MAX, function(change)
    local event, bytes = item(change)
    if event then loop:wake() end
    return event, bytes
  end))
  local ok, list = pcall(missed)
  if not ok then
    feed:close()
    error(list, 0)
  end
  l.feed, l.missed, l.next = feed, list, nil
  for name, line in pairs(l.lines) do -- of those there are again
    local others = {}
    for _, o in ipairs(line) do others[#others + 1] = not o.event and o or nil end
    l.lines[name] = others[1] and others
  end
end

-- Into the lines with what is new; one that could not be put there is the first the next time.
local function on_events(l)
  follow_events(l)
  while true do
    l.next = l.next or table.remove(l.missed, 1) or l.feed:pop()
    if not l.next then return end
    add_event(l, l.next)
    l.next = nil
  end
end

-- Notes how far all have come.
local function settle(l)
  if not l.open or not l.last then return end
  local waiting = {}
  for name, line in pairs(l.lines) do
    for _, o in ipairs(line) do waiting[name] = waiting[name] or o.event ~= nil or nil end
  end
  close(l, l.last, waiting)
  l.open = nil
end

-- Time ----------------------------------------------------------------------------------------------------------------

local function take_time(mark, key, tick)
  local times = mark.times or {}
  if times[key] and times[key] >= tick and times[key] <= tick + LATE_S then return false end
  -- Of policies that are gone nothing is kept.
  mark.times = {}
  for _, entry in ipairs(engine.list()) do
    for _, hook in ipairs(entry.about.hooks) do
      local name = entry.name .. "/" .. hook
      mark.times[name] = match.period(hook) and times[name] or nil
    end
  end
  mark.times[key] = tick
  return true
end

-- When @hook of @entry was last due, as far as that is seen to. Who begins to lead makes up for the last time, if that
-- was not long ago: the policy is asked again, if nothing came of it.
local function seen_to(l, entry, tick, period, now)
  local fresh = not l.timely and (entry.set_at or now) <= tick and now - tick <= LATE_S
  return fresh and tick - period or tick
end

-- @hook of @entry, which is due every @period seconds, at the multiples of that since 1970.
local function on_period(l, entry, hook, period, now)
  local key, tick = entry.name .. "/" .. hook, now // period * period
  local last = l.ticks[key] or seen_to(l, entry, tick, period, now)
  l.ticks[key] = math.min(last, tick) -- the clock may have been set back
  if l.ticks[key] == tick then return end
  local o = l.timed[key]
  if not o or o.tick ~= tick then
    o = occurrence.occurrence { policy = entry.name, hook = hook, input = { now = now }, tick = tick,
      take = function(mark) return take_time(mark, key, tick) end }
    l.timed[key] = o
  end
  if not see_to(l, o) then return end
  l.ticks[key], l.timed[key] = tick, nil
  try(l, carry_out, l.held)
end

-- Every policy's periods.
local function on_time(l, now)
  local there = {}
  for _, entry in ipairs(engine.list()) do
    for _, hook in ipairs(entry.about.hooks) do
      local period = match.period(hook)
      if period then
        there[entry.name .. "/" .. hook] = true
        try(l, on_period, l, entry, hook, period, now)
      end
    end
  end
  l.timely = true
  for key in pairs(l.ticks) do
    if not there[key] then l.ticks[key], l.timed[key] = nil, nil end
  end
end

-- Leading -------------------------------------------------------------------------------------------------------------

local function forget()
  if lead and lead.feed then lead.feed:close() end
  lead = nil
end

local function begin(status)
  if lead and lead.term == status.term then return lead end
  forget()
  assert(state.read()) -- of what went before it knows all
  lead = { term = status.term, began = store.revision(), ticks = {}, timed = {}, missed = {}, lines = {} }
  return lead
end

local function take_term(mark, term, policy)
  if (mark.term or 0) > term then return false end
  local names = mark.term == term and mark.told or json.array {}
  for _, name in ipairs(names) do
    if name == policy then return false end
  end
  names[#names + 1] = policy
  mark.term, mark.told = term, names
  return true
end

-- Once a term, of the policies that were there when it began.
local function on_lead(l)
  if l.led then return end
  local me, hook = require("symphony.cluster.identity").me, "leader.change"
  local input = { leader = { node_id = me.node_id, name = me.name }, term = l.term }
  for _, entry in ipairs(engine.list()) do
    local name = entry.name
    if engine.has(hook) and occurrence.concerns(entry, hook, input, l.began) then
      add(l, { policy = name, hook = hook, input = input, upto = l.began,
        take = function(mark) return take_term(mark, l.term, name) end })
    end
  end
  l.led = true
end

--- One look at what there is to react to; the milliseconds until the next. Raises what has failed: the next look goes
--- on with it.
function M.turn()
  local status = leading.status()
  if not status then
    forget()
    return IDLE_MS
  end
  local l = begin(status)
  l.held, l.failed = {}, nil
  try(l, carry_out, l.held)
  if #engine.list() == 0 then
    l.led, l.timely, l.lines = true, true, {}
    if l.failed then error(l.failed, 0) end
    return IDLE_MS
  end
  try(l, on_events, l)
  on_lead(l) -- behind what came before
  on_lines(l)
  try(l, settle, l)
  on_time(l, math.floor(sys.now()))
  if l.failed then error(l.failed, 0) end
  return rest(l)
end

loop = leading.loop("policy", IDLE_MS, M.turn, { level = "warn", first_ms = 0 })

--- Runs until stop(); said twice, it is one.
function M.start()
  loop:start()
end

function M.stop()
  loop:stop()
  forget()
  occurrence.reset()
end

return M
