--- The leader's hand on resources: gives out what has no node, moves what sits on nodes that are drained, removed or
--- have been down for long, takes new specs from node to node, and sweeps what owners have said of what they have no
--- longer.
--- Every step is a txn that compares what it was decided on; whoever leads next goes on from the same state.
local async = require "symphony.async"
local errors = require "symphony.errors"
local json = require "symphony.json"
local leading = require "symphony.cluster.lead"
local limiter = require "symphony.cluster.limiter"
local log = require "sym.log"
local placement = require "symphony.services.placement"
local registry = require "symphony.services.registry"
local resources = require "symphony.services.resources"
local rollout = require "symphony.services.rollout"
local state = require "symphony.cluster.state"
local store = require "sym.store"
local sys = require "sym.sys"
local world = require "symphony.services.world"

local M = {}

local IDLE_MS, BUSY_MS = 500, 1000
local RESYNC_S = 30         -- every resource is looked at so often, whatever was heard
local AGAIN_S = 2           -- after a step that was not taken, or has failed
local TURN = 16             -- resources that are looked at in one turn of the loop
local SWEEP_MAX = 64        -- statuses that are deleted in a txn
local DECISIONS, DECISION_S = 20, 1 -- of a service on one resource: so many at once, then one in so long
local DECIDED_MAX = 4096    -- resources of which that is kept

local loop
local hooked = false
-- What is kept while this manager leads: {dirty, due, hungry, complaints, watches, resync, decisions = their limit}.
local lead

local function now()
  return sys.mono_ms() / 1000
end

local function mark(l, key)
  l.dirty[key] = true
  loop:wake()
end

-- Learning what may have changed -------------------------------------------------------------------------------------

local function on_node(id)
  local l = lead
  if not l then return end
  if not id then
    l.resync = -math.huge
    return loop:wake()
  end
  for key in pairs(world.work(id)) do l.dirty[key] = true end
  for key in pairs(l.hungry) do l.dirty[key] = true end
  loop:wake()
end

local function forget(l)
  if lead == l then lead = nil end
  for _, handle in ipairs(l and l.watches or {}) do handle:close() end
end

local function watch(l, prefix, pattern)
  local handle, err = store.watch(prefix, store.revision(), function(failed, events)
    if lead ~= l then return end
    if failed then
      forget(l) -- begun anew, with a look at everything
      return loop:wake()
    end
    for _, event in ipairs(events) do
      local key = event.key:match(pattern)
      if key then mark(l, key) end
    end
  end)
  if not handle then
    forget(l)
    error(errors.from(err), 0)
  end
  l.watches[#l.watches + 1] = handle
end

local function begin()
  local l = { dirty = {}, due = {}, hungry = {}, complaints = {}, watches = {}, resync = -math.huge,
    decisions = limiter.new(DECISIONS, DECISION_S, DECIDED_MAX) }
  watch(l, "/res/", "^/res/([^/]+/[^/]+)$")
  watch(l, "/status/res/", "^/status/res/([^/]+/[^/]+)/")
  return l
end

-- All of them become due.
local function resync(l)
  if now() - l.resync < RESYNC_S then return end
  l.resync = now()
  assert(state.each_raw("/res/", function(kv) l.dirty[kv.key:sub(6)] = true end))
  -- What is said of resources that are gone.
  assert(state.each_raw("/status/res/", function(kv)
    local key = kv.key:match("^/status/res/([^/]+/[^/]+)/")
    if key then l.dirty[key] = true end
  end))
end

-- One resource -------------------------------------------------------------------------------------------------------

local function name_of(nodes, id)
  return nodes[id] and nodes[id].name or id
end

local function names(nodes, ids)
  local list = {}
  for i, id in ipairs(ids) do list[i] = name_of(nodes, id) end
  return table.concat(list, ", ")
end

-- Takes statuses out of nodes that do not have the resource any more. True: there was something to do.
local function sweep(kind, id, doc)
  local has, prefix, txn = {}, resources.status_prefix(kind, id), { compare = {}, ops = {} }
  for _, node_id in ipairs(doc and doc.nodes or {}) do has[node_id] = true end
  for _, kv in ipairs(assert(state.list_raw(prefix))) do
    if not has[kv.key:sub(#prefix + 1)] and #txn.ops < SWEEP_MAX then
      table.insert(txn.ops, state.delete(kv.key))
    end
  end
  if #txn.ops == 0 then return false end
  local key = resources.key(kind, id)
  local _, kv = state.text(key)
  table.insert(txn.compare, kv and state.unchanged(kv) or state.absent(key))
  assert(state.submit(txn))
  return true
end

local function without(list, drop)
  local gone, out = {}, json.array {}
  for _, id in ipairs(drop) do gone[id] = true end
  for _, id in ipairs(list) do
    if not gone[id] then out[#out + 1] = id end
  end
  return out
end

-- Gives and takes nodes. The txn and what it does, in words; nil: nothing is to be done.
local function placing(doc, kv, nodes, plan)
  if #plan.add == 0 and #plan.drop == 0 then return nil end
  local txn, at = { compare = { state.unchanged(kv) }, ops = {} }, math.floor(sys.now())
  local fresh = {}
  for k, v in pairs(doc) do fresh[k] = v end
  fresh.nodes = without(doc.nodes, plan.drop)
  for _, id in ipairs(plan.drop) do
    table.insert(txn.ops, state.delete(resources.assign_key(id, doc.kind, doc.id)))
  end
  local spec, generation = rollout.spec_of(doc)
  for _, id in ipairs(plan.add) do
    fresh.nodes[#fresh.nodes + 1] = id
    resources.assign(txn, doc, id, spec, generation, at)
  end
  table.insert(txn.ops, state.put(kv.key, fresh))
  local words = {}
  if #plan.drop > 0 then words[#words + 1] = "from " .. names(nodes, plan.drop) end
  if #plan.add > 0 then words[#words + 1] = "to " .. names(nodes, plan.add) end
  local text = ("%s goes %s"):format(resources.title(doc), table.concat(words, " "))
  resources.event(txn, "resource.moved", doc, text)
  return txn, text
end

-- What each of its nodes has been told: node id -> assignment.
local function assigned_of(doc)
  local out = {}
  for _, id in ipairs(doc.nodes) do out[id] = state.get(resources.assign_key(id, doc.kind, doc.id)) end
  return out
end

local function rolling(doc, kv, nodes, step)
  local txn, at = { compare = { state.unchanged(kv) }, ops = {} }, math.floor(sys.now())
  if step.advance then
    for i = 1, math.min(#step.advance, placement.STEP_MAX) do
      local id = step.advance[i]
      if nodes[id] then resources.assign(txn, doc, id, doc.spec, doc.generation, at) end
    end
    return #txn.ops > 0 and txn or nil,
      ("%s: generation %d goes to %s"):format(resources.title(doc), doc.generation, names(nodes, step.advance))
  end
  local fresh = {}
  for k, v in pairs(doc) do fresh[k] = v end
  local text
  if step.done then
    fresh.rollout, fresh.stable = { state = "done", since = at }, nil
    text = ("%s: generation %d is everywhere"):format(resources.title(doc), doc.generation)
    if #step.down > 0 then
      text = ("%s; %s, which %s down, will begin with it"):format(text, names(nodes, step.down),
        #step.down == 1 and "is" or "are")
    end
    resources.event(txn, "rollout.done", doc, text)
  else
    local where = name_of(nodes, step.node)
    fresh.rollout = { state = "stopped", since = at, node_id = step.node,
      reason = ("on %s: %s"):format(where, step.stop) }
    text = ("%s: generation %d is stopped: on %s: %s"):format(resources.title(doc), doc.generation, where, step.stop)
    resources.event(txn, "rollout.stopped", doc, text, { reason = step.stop })
  end
  table.insert(txn.ops, state.put(kv.key, fresh))
  return txn, text
end

local function look_again(l, key, seconds)
  if seconds then l.due[key] = math.min(l.due[key] or math.huge, now() + seconds + 0.05) end
end

-- What the service itself makes of how it stands. One that is never content must not keep the rest from its turn.
local function deciding(l, key, doc, kv, states, nodes)
  local decide = registry.field(doc.kind, "decide")
  if not decide then return nil end
  local data, text = decide(doc, resources.surroundings(states, nodes))
  if data == nil then return nil end
  local txn = resources.data_txn(doc, kv, data, text)
  if txn and not l.decisions:allow(key, now()) then
    look_again(l, key, DECISION_S)
    return nil
  end
  return txn, text or (resources.title(doc) .. " has changed")
end

local function submit(l, key, txn, text)
  local result = assert(state.submit(txn))
  if result.status == "applied" then
    log.info("services: " .. text)
    l.dirty[key] = true -- there may be a next step
  else
    l.due[key] = now() + AGAIN_S * math.random()
  end
end

-- One look at one resource, and at most one step. Raises.
local function look(l, key)
  local kind, id = key:match("^([^/]+)/(.+)$")
  local doc, kv = state.get(resources.key(kind, id))
  if not doc and kv then error(kv, 0) end
  l.due[key], l.hungry[key] = nil, nil
  if sweep(kind, id, doc) then
    l.dirty[key] = doc and true or nil
    return
  end
  if not doc or doc.replicas == nil then return end
  local nodes, wall = assert(world.load()), sys.now()
  local states, said = resources.states(doc), {}
  for node_id, status in pairs(states) do
    -- What somebody says who is not there now is no news.
    said[node_id] = nodes[node_id] and nodes[node_id].status == "ready" and status.state or nil
  end
  local plan = placement.plan(doc, nodes, said, wall, resources.chooser(doc, nodes), l.suspended)
  look_again(l, key, plan.again)
  if plan.missing > 0 then l.hungry[key] = true end
  local txn, text = placing(doc, kv, nodes, plan)
  if not txn then txn, text = deciding(l, key, doc, kv, states, nodes) end
  if not txn then
    local step = rollout.next(doc, assigned_of(doc), states, function(node_id)
      local n = nodes[node_id]
      if not n or n.status ~= "ready" then return n and n.since or 0 end
    end, wall)
    if step and step.wait then look_again(l, key, step.wait) end
    if step and not step.wait then txn, text = rolling(doc, kv, nodes, step) end
  end
  if lead == l and txn then submit(l, key, txn, text) end
end

-- The loop -----------------------------------------------------------------------------------------------------------

local function take_due(l)
  local at = now()
  for key, when in pairs(l.due) do
    if when <= at then
      l.due[key] = nil
      l.dirty[key] = true
    end
  end
end

local function rest(l)
  local at, wait = now(), IDLE_MS / 1000
  for _, when in pairs(l.due) do wait = math.min(wait, when - at) end
  return math.max(5, math.ceil(1000 * wait))
end

-- Moves from nodes that are down are held back while a good part of the workers is.
local function note_suspension(l, nodes)
  local is = placement.is_suspended(nodes)
  if is == (l.suspended or false) then return end
  l.suspended = is
  local text = is and "more than a third of the workers are down: nothing is moved from those that are"
    or "what is on workers that are down is moved again"
  log[is and "warn" or "info"]("services: " .. text)
  l.resync = -math.huge
  async.spawn(function()
    require("symphony.cluster.events").record { kind = is and "services.suspended" or "services.resumed",
      message = text }
  end)
end

-- Without any resources, thousands of nodes need not be known.
local function is_empty()
  for _, prefix in ipairs { "/res/", "/status/res/" } do
    if #assert(state.list_raw(prefix, { limit = 1 })) > 0 then return false end
  end
  return true
end

local function complain(l, key, err)
  local text = err.traceback or err.message
  if l.complaints[key] ~= text then log.error(("services: %s: %s"):format(key, text)) end
  l.complaints[key] = text
end

-- One turn; the milliseconds until the next.
function M.turn()
  if not leading.status() then
    forget(lead)
    world.close()
    return IDLE_MS
  end
  if not lead then lead = begin() end
  local l = lead
  if not next(l.dirty) and is_empty() then
    world.close()
    return IDLE_MS
  end
  local nodes = assert(world.load())
  if lead ~= l then return 5 end
  note_suspension(l, nodes)
  resync(l)
  take_due(l)
  for _ = 1, TURN do
    local key = next(l.dirty)
    if not key or lead ~= l then break end
    l.dirty[key] = nil
    local ok, err = xpcall(look, errors.handler, l, key)
    if ok then
      l.complaints[key] = nil
    elseif err.code == "canceled" then
      error(err, 0)
    else
      complain(l, key, err) -- a bad one must not stop the others
      l.due[key] = now() + AGAIN_S
    end
  end
  if lead ~= l then return 5 end
  return next(l.dirty) and 0 or rest(l)
end

loop = leading.loop("services", BUSY_MS, M.turn, { first_ms = IDLE_MS })

--- Has resource @kind/@id looked at now.
function M.wake(kind, id)
  if lead then mark(lead, kind .. "/" .. id) end
end

--- How many resources lack a node, and whether moves are suspended, on the leader; nil elsewhere.
function M.figures()
  if not lead then return nil end
  local hungry = 0
  for _ in pairs(lead.hungry) do hungry = hungry + 1 end
  return { unplaced = hungry, suspended = lead.suspended or false }
end

--- Runs until stop(); said twice, it is one.
function M.start()
  if not hooked then
    hooked = true
    world.on_change(on_node)
  end
  loop:start()
end

function M.stop()
  loop:stop()
  forget(lead)
  world.close()
end

return M
