-- The leader's hand on the membership: compares what the state wants with what raft has, and takes one step after the
-- other until they agree. Whoever leads next goes on from the same state.
local async = require "symphony.async"
local certs = require "symphony.cluster.certs"
local clock = require "symphony.cluster.clock"
local erase = require "symphony.cluster.erase"
local lead = require "symphony.cluster.lead"
local log = require "sym.log"
local members = require "symphony.cluster.members"
local peers = require "symphony.cluster.peers"
local pending = require "symphony.cluster.pending"
local raft = require "sym.raft"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"
local tokens = require "symphony.cluster.tokens"
local voters = require "symphony.cluster.voters"

local M = {}

local IDLE_MS, SOON_MS, NOW_MS = 500, 20, 5
local ARRIVAL_S = 60   -- a new member that does not come up is looked for eagerly for so long
local SWEEP_S = 60

local loops            -- of the membership, and of what is cleared up
local arrivals = {}    -- raft id -> when it was first seen as a spare that is down
local last_sweep = 0

function M.wake()
  for _, loop in ipairs(loops) do loop:wake() end
end

local actions = {
  add = function(step, member) return async.await(raft.add, step.id, member.address) end,
  assign = function(step) return async.await(raft.assign, step.id, step.role) end,
  remove = function(step) return async.await(raft.remove, step.id) end,
  transfer = function(step) return async.await(raft.transfer, step.id) end,
}

-- How long to wait after a failed step: what passes by itself is tried again soon.
local function after_failure(step, err)
  if err.code == "busy" then return SOON_MS end
  if err.code == "not_leader" or err.code == "canceled" or err.code == "closed" then return IDLE_MS end
  log.warn(("membership: %s of raft id %d: %s"):format(step.step, step.id, err.message or err.code))
  return IDLE_MS
end

local function describe(step)
  local as = step.role and " as " .. step.role or ""
  return ("membership: %s raft id %d%s: %s"):format(step.step, step.id, as, step.why)
end

-- Members on their way out whom raft no longer has, out of @rows. Pure.
function M.departed(rows, servers)
  local present, out = {}, {}
  for _, s in ipairs(servers) do present[s.id] = true end
  for _, m in ipairs(rows) do
    if m.leaving and not present[m.id] then out[#out + 1] = m end
  end
  return out
end

-- The txn that takes @member out of the state.
local function farewell(member)
  local txn = { compare = { state.unchanged(member.kv) }, ops = {} }
  erase.add(txn, member.kv.value, { message = ("%s (raft id %d) is removed"):format(member.name, member.id),
    forced = member.forced or nil })
  return txn
end

local function finish(rows, servers)
  for _, m in ipairs(M.departed(rows, servers)) do
    local result, err = state.submit(farewell(m))
    if not result then return err end
    if result.status == "applied" then log.info(("membership: %s (raft id %d) is removed"):format(m.name, m.id)) end
  end
end

-- Is one on the list worth looking for at short intervals?
local function awaits_arrival(servers, now)
  local eager, seen = false, {}
  for _, s in ipairs(servers) do
    if s.role == "spare" and not s.up then
      seen[s.id] = arrivals[s.id] or now
      eager = eager or now - seen[s.id] < ARRIVAL_S
    end
  end
  arrivals = seen
  return eager
end

-- One look and at most one step; returns the milliseconds until the next look.
function M.turn()
  local status = lead.status()
  if not status then return IDLE_MS end
  if status.changing then return SOON_MS end
  local rows = members.planned()
  if not rows or #rows == 0 then return SOON_MS end
  local step = voters.plan(rows, status.servers, status.id, false)
  local gone = M.departed(rows, status.servers)
  if (step.step == "none" or step.step == "wait") and #gone == 0 then
    local soon = step.step == "wait" or awaits_arrival(status.servers, sys.mono_ms() / 1000)
    return soon and SOON_MS or IDLE_MS
  end
  -- What follows changes things: be sure that this is the state and that we lead.
  if not state.read() then return IDLE_MS end
  rows, status = members.planned(), lead.status()
  if not rows or not status then return NOW_MS end
  if #gone > 0 then
    local err = finish(rows, status.servers)
    if err then return after_failure({ step = "farewell", id = gone[1].id }, err) end
    return NOW_MS
  end
  step = voters.plan(rows, status.servers, status.id, status.changing)
  local action = actions[step.step]
  if not action then return SOON_MS end
  local member
  for _, m in ipairs(rows) do
    if m.id == step.id then member = m end
  end
  log.info(describe(step))
  local _, err = action(step, member)
  if err then return after_failure(step, err) end
  return 0
end

-- Forgets what has expired, on the leader, every SWEEP_S. What a wrong clock could take from those who need it stays
-- until the clock can be believed; who waits to be let in asks again.
function M.sweep()
  clock.watch()
  local now = sys.mono_ms() / 1000
  if now - last_sweep < SWEEP_S or not lead.status() then return end
  last_sweep = now
  pending.sweep()
  if clock.trusted() then
    tokens.sweep()
    certs.sweep()
  end
  peers.complete()
end

-- And what removed nodes have left behind.
local function round()
  local delay = M.turn()
  if not lead.status() then return delay end
  local more, err = erase.step()
  if err then log.warn("what is left of a removed node: " .. (err.message or err.code)) end
  return more and math.min(delay, NOW_MS) or delay
end

local function sweep()
  M.sweep()
  return IDLE_MS
end

loops = { lead.loop("membership", IDLE_MS, round), lead.loop("sweep", IDLE_MS, sweep) }

-- Runs until stop(); said twice, it is one.
function M.start()
  for _, loop in ipairs(loops) do loop:start() end
  M.wake()
end

function M.stop()
  for _, loop in ipairs(loops) do loop:stop() end
end

return M
