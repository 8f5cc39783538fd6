-- Taking a manager out. What is wanted is written into its record ("removing"), and whoever leads carries it out
-- (reconcile): a leader that dies half-way, or that is itself the one to go, changes nothing about that.
local async = require "symphony.async"
local engine = require "symphony.policy.engine"
local errors = require "symphony.errors"
local identity = require "symphony.cluster.identity"
local leader = require "symphony.cluster.leader"
local lifecycle = require "symphony.cluster.lifecycle"
local log = require "sym.log"
local members = require "symphony.cluster.members"
local nodes = require "symphony.cluster.nodes"
local raft = require "sym.raft"
local reconcile = require "symphony.cluster.reconcile"
local remote = require "symphony.cluster.remote"
local removal = require "symphony.cluster.removal"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"

local M = {}

local WAIT_S = 30

M.CA_NOTE = "It has held the key of the cluster's CA. If somebody else may have got at that machine, replace the CA: "
  .. "`symphony cluster rotate-ca`."

-- The plan @out with what the policies would say to it. @kv: of the manager's record.
function M.with_policies(out, kv, who)
  local said = engine.explain("admit.change", { kind = "node", key = kv.value.node_id, action = "delete",
    old = kv.value, old_revision = kv.mod_revision, who = who or { kind = "control" } })
  out.policies = said.policies
  if not said.allow then out.allowed, out.reason = false, ("policy %s: %s"):format(said.policy, said.refuse) end
  return out
end

-- On the leader: looks ahead, refuses or marks. @opts: force, plan, who. Raises.
function M.serve(name, opts)
  local admission = engine.admission()
  local answer, err = state.update(function()
    local rows = assert(members.planned())
    local status = assert(members.status())
    local target = assert(members.find(rows, name))
    local decision = removal.decide(rows, status.servers, status.leader, target.id)
    local out = { name = target.name, node_id = target.node_id, raft_node_id = target.id, steps = decision.steps,
      voters = decision.voters, tolerates = decision.tolerates, allowed = decision.ok, reason = decision.why,
      last = decision.last or nil }
    if opts.plan then return nil, M.with_policies(out, target.kv, opts.who) end
    local refused = removal.refusal(decision, target.name)
    if refused and (not opts.force or decision.last) then error(refused, 0) end
    -- A mark that nothing can come of would be carried out weeks later, when somebody joins.
    local forced = refused and removal.decide(rows, status.servers, status.leader, target.id, true)
    if forced and not forced.ok then error(removal.stuck(forced, target.name), 0) end
    local record = target.kv.value
    if record.removing and (record.removing.forced or not opts.force) then return nil, out end
    nodes.decide(admission, record, nil, target.kv.mod_revision, opts.who or { kind = "control" })
    record.removing = { at = math.floor(sys.now()), forced = opts.force and refused ~= nil or nil }
    local txn = { compare = { state.unchanged(target.kv) }, ops = { state.put(target.kv.key, record) } }
    admission:bind(txn)
    return txn, out
  end)
  if not answer then
    engine.note_refusal(err, "the removal of manager " .. name:sub(1, 80))
    error(err, 0)
  end
  if not opts.plan then
    log.info(("membership: %s (raft id %d) is to be removed"):format(answer.name, answer.raft_node_id))
    reconcile.wake()
  end
  return answer
end

-- Waits until the state knows @node_id no more, or this very manager has learned that it is out.
local function wait_gone(node_id)
  local me = identity.me
  local deadline = sys.mono_ms() + 1000 * WAIT_S
  while sys.mono_ms() < deadline do
    if me.node_id == node_id then
      if me.removed then return true end
    else
      local text, err = state.text("/node/" .. node_id)
      if not text and not err and state.read() and not state.text("/node/" .. node_id) then return true end
    end
    lifecycle.wait_change(50)
  end
  return nil, errors.new("timeout", ("it is marked for removal, but not gone within %d s"):format(WAIT_S),
    "the managers go on by themselves: `symphony manager members`; is a majority of them up?")
end

-- Removes the manager that @name means, from any manager. @opts: force, plan. Returns the answer; nil, err.
function M.run(name, opts)
  local answer, err = leader.call("POST", "/v1/nodes/" .. remote.encode_segment(name) .. "/remove",
    { force = opts.force or false, plan = opts.plan or false })
  if not answer then return nil, err end
  if opts.plan then return answer end
  local gone
  gone, err = wait_gone(answer.node_id)
  if not gone then return nil, err end
  return answer
end

-- Hands the leadership to the manager that @name means, or to whom raft likes best.
function M.transfer(name)
  local answer, err = leader.call("POST", "/v1/transfer", { to = name })
  if not answer then return nil, err end
  local deadline = sys.mono_ms() + 5000
  while answer.raft_node_id and sys.mono_ms() < deadline do
    local status = raft.status()
    if status and status.leader == answer.raft_node_id then break end
    lifecycle.wait_change(20)
  end
  return answer
end

-- On the leader. Raises.
function M.serve_transfer(name)
  local rows, status = assert(members.planned()), assert(members.status())
  local id, target = 0, nil
  if name then
    target = assert(members.find(rows, name))
    id = target.id
    local server
    for _, s in ipairs(status.servers) do
      if s.id == id then server = s end
    end
    if id == status.id then return { raft_node_id = id, name = target.name, changed = false } end
    if not server or server.role ~= "voter" then
      errors.raise("conflict", ("%s is no voter and cannot lead"):format(target.name),
        "`symphony manager members` shows who votes")
    end
    if not server.up then
      errors.raise("unreachable", ("%s is not reachable"):format(target.name), "choose another voter")
    end
  else
    local others = 0
    for _, s in ipairs(status.servers) do
      if s.role == "voter" and s.id ~= status.id and s.up then others = others + 1 end
    end
    if others == 0 then
      errors.raise("conflict", "there is no other voter that could lead", "`symphony manager members` shows who votes")
    end
  end
  local done, err = async.await(raft.transfer, id)
  if not done then error(state.explain(err), 0) end
  local now = raft.status() or {}
  for _, m in ipairs(rows) do
    if m.id == now.leader then target = m end
  end
  return { raft_node_id = now.leader, name = target and target.name, changed = true }
end

return M
