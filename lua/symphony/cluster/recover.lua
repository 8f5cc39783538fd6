-- `manager recover`: the quorum is gone for good; one survivor becomes the only voter, with what it has.
--
-- key.json says phase "recover" before anything is touched: a daemon that dies half-way finishes it at its next start.
-- The others are taken out of the state, so that one of them that comes back is told that it was removed.
local async = require "symphony.async"
local busy = require "symphony.cluster.busy"
local erase = require "symphony.cluster.erase"
local errors = require "symphony.errors"
local events = require "symphony.cluster.events"
local identity = require "symphony.cluster.identity"
local keyring = require "symphony.cluster.keyring"
local lifecycle = require "symphony.cluster.lifecycle"
local log = require "sym.log"
local members = require "symphony.cluster.members"
local node = require "sym.node"
local raft = require "sym.raft"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"

local M = {
  lost_for_ms = 3000, -- several elections: what passes by itself is no loss
}

local FIRST_WRITE_MS = 15000

-- Raft ids that the lost majority may have given out, and this one never heard of.
local LOST_IDS = 1000

-- Of so many there is room in one txn for the key, too; of the rest it goes behind it.
local KEYS_MAX = 20

-- The txn that leaves @me alone in the state. Pure: @rows from members.planned, @kv of /cluster, its record; @next_kv
-- of /cluster/next_raft_id.
function M.cleanup(me, rows, cluster_kv, cluster, next_kv)
  cluster.epoch = (cluster.epoch or 1) + 1
  local next_id = math.tointeger(tonumber(next_kv.value)) + LOST_IDS
  local txn = { compare = { state.unchanged(cluster_kv), state.unchanged(next_kv) },
    ops = { state.put("/cluster", cluster), state.put("/cluster/next_raft_id", tostring(next_id)) } }
  local removed = {}
  for _, m in ipairs(rows) do
    local n = m.kv.value
    if n.node_id ~= me.node_id then
      -- They may be so many that all that is kept of them does not fit into one txn.
      local also = { "/name/" .. n.name }
      table.insert(txn.ops, state.delete("/node/" .. n.node_id))
      table.insert(txn.ops, state.delete("/raft/" .. n.raft_node_id))
      if #removed < KEYS_MAX then
        table.insert(txn.ops, state.delete("/fingerprint/" .. n.fingerprint))
      else
        also[2] = "/fingerprint/" .. n.fingerprint
      end
      table.insert(txn.ops, erase.mark(n, also))
      removed[#removed + 1] = { raft_node_id = n.raft_node_id, node_id = n.node_id, name = n.name }
    elseif n.removing then
      n.removing = nil
      table.insert(txn.ops, state.put(m.kv.key, n))
    end
  end
  if #removed > 0 then keyring.wanted(txn.ops) end
  return txn, removed
end

-- From phase "recover" on: rewrites raft's configuration, starts, cleans up. Also at the start of a daemon. nil, err.
function M.finish(doc)
  local ok, err = node.recover { raft_id = doc.raft_node_id, raft_address = doc.advertise.raft }
  if not ok then return nil, err end
  ok, err = lifecycle.activate(doc, { quiet = true })
  if not ok then return nil, err end
  -- The term's own entry has to be in before anything is asked.
  local fresh
  fresh, err = state.read { timeout_ms = FIRST_WRITE_MS }
  if not fresh then return nil, err end
  local cluster, kv = state.get("/cluster")
  local _, next_kv = state.text("/cluster/next_raft_id")
  local rows
  rows, err = members.planned()
  if not cluster or not rows or not next_kv then
    return nil, err or errors.new("state_unknown", "the state of this manager does not hold the cluster")
  end
  local txn, removed = M.cleanup(doc, rows, kv, cluster, next_kv)
  events.add(txn, { kind = "cluster.recovered", node = doc,
    message = ("%s is the only voter now; %d others are out"):format(doc.name, #removed) })
  local result
  result, err = state.submit(txn, FIRST_WRITE_MS)
  if not result then return nil, err end
  if result.status ~= "applied" then
    return nil, errors.new("conflict", "the state was changed while the others were taken out of it")
  end
  doc.phase = nil
  ok, err = identity.become(doc)
  if not ok then return nil, err end
  lifecycle.serve()
  log.warn(("recovered: this manager is the only voter now; %d others are out"):format(#removed))
  return removed
end

-- True when no majority has answered for @ms, without an interruption; nil, err.
local function quorum_lost(ms)
  local since = sys.mono_ms()
  repeat
    local ok, err = state.read()
    if ok then
      return nil, errors.new("conflict", "the cluster has its quorum: there is nothing to recover",
        "`symphony manager remove` takes out managers that are gone")
    end
    if err.code ~= "no_quorum" then return nil, err end
    async.sleep(50)
  until sys.mono_ms() - since >= ms
  return true
end

-- A recovery that stopped half-way: raft knows this one only, perhaps, and the state still all.
local function is_half_done()
  return identity.me ~= nil and identity.me.phase == "recover"
end

-- The other members as raft has them: its configuration is in the log, which is what goes on.
local function others_of_raft(status)
  local out = {}
  for _, s in ipairs(status.servers) do
    if s.id ~= status.id then out[#out + 1] = { id = s.id, name = s.address } end
  end
  return out
end

-- Is there something to recover? Returns who would go, at least {id, name} each; nil, err.
function M.check()
  local ok, err = true, nil
  if not is_half_done() then
    ok, err = state.ready()
    if ok then ok, err = quorum_lost(M.lost_for_ms) end
  end
  if not ok then return nil, err end
  -- The state says nothing yet of what this manager knew: that is in its log, and comes back with it.
  local status = raft.status()
  if status and status.behind then return others_of_raft(status) end
  local cluster = state.cluster()
  local rows
  rows, err = members.planned()
  if not cluster or not rows then
    return nil, err or errors.new("state_unknown", "this manager has never got the cluster's state",
      "choose another survivor")
  end
  local others, mine = {}, false
  for _, m in ipairs(rows) do
    if m.node_id == identity.me.node_id then mine = true else others[#others + 1] = m end
  end
  if not mine then
    return nil, errors.new("state_unknown", "this manager has not got so much of the state as to know itself in it",
      "choose another survivor")
  end
  return others
end

-- Does it. Returns {removed}; nil, err.
function M.run()
  local lock, busy_err = busy.take("manager recover")
  if not lock then return nil, busy_err end
  return async.spawn(function()
    local _ <close> = lock
    -- Whoever was asked may have thought for long.
    if not is_half_done() then
      assert(state.ready())
      assert(quorum_lost(0))
    end
    local me = identity.changed(identity.me, { phase = "recover" })
    assert(identity.become(me))
    assert(lifecycle.deactivate())
    local removed, err = M.finish(me)
    if not removed then
      return nil, errors.new(err.code, "the recovery stopped half-way: " .. err.message,
        "mend that, then say `symphony manager recover` again, or start symphonyd again: either finishes it")
    end
    return { node_id = me.node_id, raft_node_id = me.raft_node_id, name = me.name, removed = removed }
  end):wait()
end

return M
