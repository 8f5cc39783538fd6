--- Reactions: what policies do when a node goes down or comes back, when another manager leads, and every so often. On
--- the leader alone.
---
--- Nodes: the events that tell of them are gone through in their order, and a mark in the state, /cluster/reactions,
--- says how far: whoever leads next goes on behind it. The mark is moved before the commands of an event are carried
--- out, so that none is carried out twice; those of a leader that dies in the middle are lost.
---
--- Bounded: a reaction has at most commands.MAX commands; a policy may carry out BURST, and then one every EVERY_S
--- seconds. What a policy has changed triggers no reaction, so they are one level deep and never trigger themselves.
local async = require "symphony.async"
local commands = require "symphony.policy.commands"
local engine = require "symphony.policy.engine"
local errors = require "symphony.errors"
local events = require "symphony.cluster.events"
local follow = require "symphony.cluster.follow"
local json = require "symphony.json"
local limiter = require "symphony.cluster.limiter"
local log = require "sym.log"
local match = require "symphony.policy.match"
local node = require "sym.node"
local raft = require "sym.raft"
local state = require "symphony.cluster.state"
local store = require "sym.store"
local sys = require "sym.sys"

local M = {}

M.BURST, M.EVERY_S = 20, 6 -- commands of a policy: ten a minute
local MARK = "/cluster/reactions"
local EVENTS = "/event/"
local IDLE_MS, TURN_MS = 500, 200
local MISSED_MAX, MISSED_S = 100, 120 -- events that a new leader goes back for, and how far
local BACKLOG_MAX = 1 << 20 -- bytes

local HOOKS = { ["node.down"] = "node.down", ["node.ready"] = "node.up" } -- by the kind of event

local limit, told -- of commands; of words about that
local lead        -- what is kept while this manager leads: {term, feed, due = {policy/hook = next time}}
local task

local function reset_limits()
  limit, told = limiter.new(M.BURST, M.EVERY_S, 256), limiter.new(1, 60, 256)
end
reset_limits()

local function record(fields)
  local ok, err = events.record(fields)
  if not ok then log.warn("an event could not be recorded: " .. err.message) end
end

-- Carrying out --------------------------------------------------------------------------------------------------------

local function too_often(policy)
  if not told:allow(policy, sys.mono_ms() / 1000) then return end
  local text = ("policy %s asks for more than %d changes a minute: the rest is left out"):format(policy,
    60 // M.EVERY_S)
  log.warn("policy: " .. text)
  record { kind = "policy.limited", policy = policy, message = text }
end

local function run_one(policy, hook, command)
  local what = commands.describe(command)
  local ok, err = commands.run(policy, command)
  if ok then
    log.info(("policy: %s at %s: %s"):format(policy, hook, what))
    return
  end
  log.warn(("policy: %s at %s: %s: %s"):format(policy, hook, what, err.message))
  if told:allow(policy .. ":failed", sys.mono_ms() / 1000) then
    record { kind = "policy.refused", policy = err.policy or policy, by_policy = policy,
      message = ("%s, which policy %s asks for at %s, is not done: %s"):format(what, policy, hook, err.message) }
  end
end

-- Has the policy @name react, and carries out what it asks for.
local function react(name, hook, input)
  local list = engine.react(name, hook, input)
  for i, command in ipairs(list or {}) do
    if i > commands.MAX or not limit:allow(name, sys.mono_ms() / 1000) then return too_often(name) end
    run_one(name, hook, command)
  end
end

-- All policies with @hook, one after the other; not those that were set behind @revision (nil: all).
local function react_all(hook, input, revision)
  for _, entry in ipairs(engine.list()) do
    local before = not revision or entry.revision <= revision
    if before and match.concerns(entry.about, hook, input) then react(entry.name, hook, input) end
  end
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

-- Takes @event for this leader: true when nobody has taken it, or one behind it, before.
local function take(event)
  local answer = state.update(function()
    local mark, kv = state.get(MARK)
    if not mark and kv then error(kv, 0) end
    if mark and (mark.revision > event.revision or (mark.revision == event.revision and mark.event >= event.id)) then
      return nil, "taken"
    end
    return { compare = { kv and state.unchanged(kv) or state.absent(MARK) },
      ops = { state.put(MARK, { revision = event.revision, event = event.id }) } }, "ours"
  end)
  return answer == "ours"
end

local function on_event(event)
  local hook = HOOKS[event.kind]
  if not hook or event.policy or not engine.has(hook) then return end
  if take(event) then react_all(hook, input_of(event), event.revision) end
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
  local mark = state.get(MARK)
  if not mark then return {} end
  local out, since = {}, sys.now() - MISSED_S
  for _, kv in ipairs(state.list_raw(EVENTS) or {}) do
    local event = kv.mod_revision >= mark.revision and item(kv)
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
  if not state.get(MARK) then -- from here on
    state.submit { compare = { state.absent(MARK) },
      ops = { state.put(MARK, { revision = store.revision(), event = 0 }) } }
  end
  l.feed = assert(follow.open(EVENTS, store.revision(), BACKLOG_MAX, item))
  for _, event in ipairs(missed()) do on_event(event) end
end

-- Time ----------------------------------------------------------------------------------------------------------------

-- Every policy's periods; one is due at the multiples of its length since 1970, so that another leader keeps them.
local function on_time(l, now)
  local due = {}
  for _, entry in ipairs(engine.list()) do
    for _, hook in ipairs(entry.about.hooks) do
      local period = match.period(hook)
      if period then
        local key = entry.name .. "/" .. hook
        local at = l.due[key] or (now // period + 1) * period
        if now >= at then
          at = (now // period + 1) * period
          react(entry.name, hook, { now = math.floor(now) })
        end
        due[key] = at
      end
    end
  end
  l.due = due
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
  lead = { term = status.term, due = {}, fresh = true }
  return lead
end

local function on_lead(l)
  if not engine.has "leader.change" then return end
  local me = require("symphony.cluster.identity").me
  react_all("leader.change", { leader = { node_id = me.node_id, name = me.name }, term = l.term })
end

--- One look at what there is to react to; the milliseconds until the next.
function M.turn()
  local status = node.started() and raft.status()
  if not status or status.state ~= "leader" then
    forget()
    return IDLE_MS
  end
  local l = begin(status)
  local fresh = l.fresh
  l.fresh = false
  if #engine.list() == 0 then return IDLE_MS end
  follow_events(l)
  if fresh then on_lead(l) end
  while true do
    local event = l.feed:pop()
    if not event then break end
    on_event(event)
  end
  on_time(l, math.floor(sys.now()))
  l.feed.changed:wait(TURN_MS)
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
  reset_limits()
end

return M
