--- Reactions: what policies do when a node goes down or comes back, when another manager leads, and every so often. On
--- the leader alone.
---
--- What happens is seen to once, also when the leader changes or something fails in the middle: the policies are
--- asked, what they ask for is noted in the state together with a mark that says so (todo.lua), and is then carried
--- out. Whoever leads next goes on behind the mark, and with what is noted and not done.
---
--- Bounded: a reaction has at most 32 commands; a policy may carry out 20, and then ten a minute. What a policy has
--- changed triggers no reaction, so they are one level deep and never trigger themselves. What could not be done for
--- two minutes is left out. See occurrence.lua.
local async = require "symphony.async"
local engine = require "symphony.policy.engine"
local errors = require "symphony.errors"
local follow = require "symphony.cluster.follow"
local json = require "symphony.json"
local log = require "sym.log"
local match = require "symphony.policy.match"
local node = require "sym.node"
local occurrence = require "symphony.policy.occurrence"
local raft = require "sym.raft"
local state = require "symphony.cluster.state"
local store = require "sym.store"
local sys = require "sym.sys"
local todo = require "symphony.policy.todo"

local M = {}

local EVENTS = "/event/"
M.TURN_MS = 200 -- a look is at most so long before the next
local IDLE_MS = 500
local MISSED_MAX = 100 -- events that a new leader goes back for
local BACKLOG_MAX = 1 << 20 -- bytes
local LATE_S, carry_out, see_to = occurrence.LATE_S, occurrence.carry_out, occurrence.see_to

local HOOKS = { ["node.down"] = "node.down", ["node.ready"] = "node.up" } -- by the kind of event

-- What is kept while this manager leads: {term, began = the revision at which it did, leads, led (leader.change is
-- seen to), feed, missed, next and event = what is being seen to, ticks = {["policy/hook"] = when it was last due},
-- timed = {[the same] = what is being seen to}, timely = it has looked at the clock; of this look: held = the policies
-- whose commands have to wait, failed = the first error}.
local lead
local task

-- fn(...): what fails there keeps nothing else waiting, and is raised when the look is over; unless nothing else would
-- go well either.
local function try(l, fn, ...)
  local ok, err = xpcall(fn, errors.handler, ...)
  if ok then return end
  if occurrence.nothing_goes(err) then error(err, 0) end
  l.failed = l.failed or err
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

-- Have all policies reacted to @event, or to one behind it?
local function is_behind(mark, event)
  if mark.revision ~= event.revision then return (mark.revision or 0) > event.revision end
  return mark.event > event.id or (mark.event == event.id and not mark.done)
end

local function take_event(mark, event, policy, last)
  if is_behind(mark, event) then return false end
  local done = mark.revision == event.revision and mark.event == event.id and mark.done or json.array {}
  for _, name in ipairs(done) do
    if name == policy then return false end
  end
  done[#done + 1] = policy
  mark.revision, mark.event, mark.done = event.revision, event.id, not last and policy and done or nil
  return true
end

-- What @event is for the policies; nil: nothing.
local function of_event(event)
  local hook = HOOKS[event.kind]
  if event.policy or not engine.has(hook) or is_behind(todo.mark() or {}, event) then return nil end
  return occurrence.occurrence { hook = hook, input = input_of(event), upto = event.revision, close = true,
    take = function(mark, policy, last) return take_event(mark, event, policy, last) end }
end

local function item(change)
  if change.deleted then return nil end
  local event = json.decode(change.value)
  if type(event) ~= "table" or not HOOKS[event.kind] then return nil end
  event.revision, event.id = change.revision or change.mod_revision, number_of(change.key)
  return event, #change.value
end

-- Events that came when nobody led: those behind the mark, the last of them.
local function missed()
  local mark = todo.mark()
  if not mark then return {} end
  local out, since = {}, sys.now() - LATE_S
  for _, kv in ipairs(assert(state.list_raw(EVENTS))) do
    local event = kv.mod_revision >= (mark.revision or 0) and item(kv)
    if event and (event.at or 0) >= since then out[#out + 1] = event end
  end
  table.sort(out, function(a, b)
    if a.revision ~= b.revision then return a.revision < b.revision end
    return a.id < b.id
  end)
  return table.move(out, math.max(1, #out - MISSED_MAX + 1), #out, 1, {})
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
  local feed = assert(follow.open(EVENTS, at, BACKLOG_MAX, item))
  local ok, list = pcall(missed)
  if not ok then
    feed:close()
    error(list, 0)
  end
  l.feed, l.missed = feed, list
end

-- The events, one after the other; one that could not be seen to is the first the next time.
local function on_events(l)
  follow_events(l)
  while true do
    l.next = l.next or table.remove(l.missed, 1) or l.feed:pop()
    if not l.next then return end
    l.event = l.event or of_event(l.next)
    local o = l.event
    if o and sys.mono_ms() - o.since > LATE_S * 1000 then
      log.warn(("policy: %s could not be seen to for too long, and is left out"):format(o.hook))
    elseif o then
      see_to(o)
    end
    l.next, l.event = nil, nil
    if o then try(l, carry_out, l.held) end
  end
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
    o = occurrence.occurrence { hook = hook, only = entry.name, input = { now = now }, tick = tick,
      take = function(mark) return take_time(mark, key, tick) end }
    l.timed[key] = o
  end
  see_to(o)
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
  lead = { term = status.term, began = store.revision(), ticks = {}, timed = {}, missed = {} }
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
  if engine.has "leader.change" then
    local me = require("symphony.cluster.identity").me
    l.leads = l.leads or occurrence.occurrence { hook = "leader.change", upto = l.began,
      input = { leader = { node_id = me.node_id, name = me.name }, term = l.term },
      take = function(mark, policy) return take_term(mark, l.term, policy) end }
    see_to(l.leads)
  end
  l.led, l.leads = true, nil
  try(l, carry_out, l.held)
end

--- One look at what there is to react to; the milliseconds until the next. Raises what has failed: the next look goes
--- on with it.
function M.turn()
  local status = node.started() and raft.status()
  if not status or status.state ~= "leader" then
    forget()
    return IDLE_MS
  end
  local l = begin(status)
  l.held, l.failed = {}, nil
  try(l, carry_out, l.held)
  local idle = #engine.list() == 0
  if idle then
    l.led, l.timely = true, true
  else
    try(l, on_lead, l)
    try(l, on_events, l)
    on_time(l, math.floor(sys.now()))
  end
  if l.failed then error(l.failed, 0) end
  if idle then return IDLE_MS end
  l.feed.changed:wait(M.TURN_MS)
  return 0
end

local said -- the last complaint: the same again is not worth a line a second

local function loop()
  while true do
    local ok, result = xpcall(M.turn, errors.handler)
    if not ok and result.code ~= "canceled" then
      local text = result.traceback or result.message
      if text ~= said then log.warn("policy: " .. text) end
      said = text
    elseif ok then
      said = nil
    end
    async.sleep(ok and result or IDLE_MS)
  end
end

--- Runs until stop(); said twice, it is one.
function M.start()
  if not task then task = async.spawn(loop) end
end

function M.stop()
  if task then task:cancel() end
  task = nil
  forget()
  occurrence.reset()
end

return M
