-- The leader's hand on the gossip keys: begins what is wished for, and goes from phase to phase (keyring.lua).
local errors = require "symphony.errors"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local keyring = require "symphony.cluster.keyring"
local lead = require "symphony.cluster.lead"
local log = require "sym.log"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"

local M = {}

local IDLE_MS = 1000
local STEP_MS, STEP_MANY_MS, MANY = 200, 1000, 500 -- between two looks; with many nodes a look is work
local NAMED_MAX = 20 -- late nodes that a message names

local loop
local phase = {} -- which one this leader has seen since when: clocks of managers differ

-- The record, and its kv. Raises.
local function read()
  local doc, kv = state.get(keyring.KEY)
  if not doc then error(kv or errors.new("corrupt", "there are no gossip keys in the state"), 0) end
  return assert(keyring.read(doc)), kv
end

local function event(txn, kind, message, reason)
  require("symphony.cluster.events").add(txn, { kind = kind, message = message, reason = reason })
end

-- The ids of all nodes; others have a turn in between.
local function node_ids()
  local ids = {}
  assert(state.each_raw("/node/", function(kv) ids[#ids + 1] = kv.key:match("[^/]*$") end))
  return ids
end

-- Who has to follow; and how many nodes there are.
local function followers()
  local members, ids = {}, node_ids()
  for _, m in ipairs(require("symphony.cluster.gossip").members() or {}) do members[m.node_id] = m end
  return keyring.followers(ids, function(id) return members[id] end,
    function(id) return (state.get("/status/node/" .. id)) end, identity.me.node_id), #ids
end

local function names(ids)
  local out = {}
  for i = 1, math.min(#ids, NAMED_MAX) do
    local n = state.get("/node/" .. ids[i])
    out[i] = n and n.name or ids[i]
  end
  local text = table.concat(out, ", ")
  return #ids > NAMED_MAX and ("%s and %d more"):format(text, #ids - NAMED_MAX) or text
end

-- Seconds since this leader has seen @record's phase.
local function elapsed(record)
  local stamp = record.phase .. keyring.newest(record)
  if phase.stamp ~= stamp then phase = { stamp = stamp, at = sys.mono_ms() } end
  return (sys.mono_ms() - phase.at) / 1000
end

-- The txn that begins a rotation, and the new key's id. What was wished for until now comes with it.
local function begin(record, kv, reason)
  local fresh = assert(keyring.begin(record, keyring.generate(), reason, sys.now()))
  local txn = { compare = { state.unchanged(kv) }, ops = { state.put(keyring.KEY, fresh) } }
  local _, wish_kv = state.text(keyring.WANTED)
  table.insert(txn.compare, wish_kv and state.unchanged(wish_kv) or state.absent(keyring.WANTED))
  if wish_kv then table.insert(txn.ops, state.delete(keyring.WANTED)) end
  event(txn, "gossip_key.started", ("the gossip key is being changed: key %d is given out"):format(
    keyring.newest(fresh)), reason)
  return txn, keyring.newest(fresh)
end

local function begin_wanted()
  local id = assert(state.update(function()
    local record, kv = read()
    local wish = state.get(keyring.WANTED)
    if not wish or record.phase ~= "idle" then return nil, 0 end
    return begin(record, kv, wish.reason)
  end))
  if id ~= 0 then log.info(("gossip key: key %d is given out"):format(id)) end
end

local LATE = {
  use = "key %d is used now, though these nodes have not said that they accept it: %s",
  drop = "the old key is dropped, though these nodes have not said that they use key %d: %s",
}

local function advance(record, kv, plan)
  local fresh, id = keyring.advance(record, sys.now()), keyring.newest(record)
  local txn = { compare = { state.unchanged(kv) }, ops = { state.put(keyring.KEY, fresh) } }
  local late = plan.late and LATE[plan.step]:format(id, names(plan.waits)) or nil
  if late then event(txn, "gossip_key.late", late, ("waited for %d s"):format(keyring.LAG_S)) end
  if plan.step == "drop" then
    event(txn, "gossip_key.rotated", ("the gossip key is changed: key %d alone is accepted"):format(id), record.reason)
  end
  local result = assert(state.submit(txn))
  if result.status ~= "applied" then return end
  if late then log.warn("gossip key: " .. late) end
  log.info(("gossip key: %s"):format(plan.step == "use" and ("key %d is used"):format(id)
    or ("key %d alone is accepted"):format(id)))
end

--- One look and at most one step; returns the milliseconds until the next look.
function M.turn()
  if not lead.status() or not identity.me then
    phase = {}
    return IDLE_MS
  end
  if not state.text(keyring.KEY) then return IDLE_MS end
  local record, kv = read()
  if record.phase == "idle" then
    if not state.text(keyring.WANTED) then return IDLE_MS end
    begin_wanted()
    return STEP_MS
  end
  local who, many = followers()
  local plan = keyring.plan(record, who, elapsed(record))
  if plan.step ~= "wait" then advance(record, kv, plan) end
  return many > MANY and STEP_MANY_MS or STEP_MS
end

--- Begins a rotation, or has one follow on that which is under way. On the leader, in a task. Returns {id = of the new
--- key, phase = "accept"} or {id = of the one under way, phase, wanted = true}; nil, err.
function M.rotate(reason)
  local answer, err = state.update(function()
    local record, kv = read()
    if record.phase == "idle" then
      local txn, id = begin(record, kv, reason)
      return txn, { id = id, phase = "accept" }
    end
    local out = { id = keyring.newest(record), phase = record.phase, wanted = true }
    if state.text(keyring.WANTED) then return nil, out end
    local txn = { compare = { state.unchanged(kv), state.absent(keyring.WANTED) }, ops = {} }
    keyring.wanted(txn.ops, reason)
    return txn, out
  end)
  if not answer then return nil, err end
  loop:wake()
  return answer
end

--- How far it is: {phase, since, reason, keys = {{id, use}}, wanted, waits_for = {names}}; never a secret. On the
--- leader. Raises.
function M.show()
  assert(state.read())
  local record = read()
  local out = { phase = record.phase, since = record.since, reason = record.reason, keys = json.array {},
    wanted = state.text(keyring.WANTED) ~= nil, waits_for = json.array {} }
  for i, key in ipairs(record.keys) do out.keys[i] = { id = key.id, use = key.use } end
  for i, id in ipairs(keyring.plan(record, record.phase == "idle" and {} or followers(), 0).waits) do
    local n = state.get("/node/" .. id)
    out.waits_for[i] = n and n.name or id
  end
  return out
end

loop = lead.loop("gossip key", IDLE_MS, M.turn, { level = "warn" })

--- Runs until stop(); said twice, it is one.
function M.start()
  loop:start()
end

function M.stop()
  loop:stop()
  phase = {}
end

return M
