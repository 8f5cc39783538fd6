-- The managers as the state has them and as raft sees them, put together for people and for programs.
local errors = require "symphony.errors"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local raft = require "sym.raft"
local state = require "symphony.cluster.state"
local store = require "sym.store"
local voters = require "symphony.cluster.voters"

local M = {}

M.DEV_WARNING = "DEVELOPMENT MODE: whoever reaches this machine's loopback joins without a token. Never use it for "
  .. "real data."

-- Raft's status; nil, err.
function M.status()
  local status, err = raft.status()
  if not status then return nil, state.explain(err) end
  return status
end

-- What the plan works on, from the state: {id, node_id, name, address, leaving, forced, kv}, managers only.
function M.planned()
  local rows, err = state.managers()
  if not rows then return nil, err end
  local out = {}
  for i, kv in ipairs(rows) do
    local n = kv.value
    out[i] = { id = n.raft_node_id, node_id = n.node_id, name = n.name, address = n.raft_address,
      leaving = n.removing ~= nil, forced = n.removing ~= nil and n.removing.forced or false, kv = kv }
  end
  return out
end

-- One row a manager, in the order of the raft ids. Pure: @nodes are the managers' records, @status is raft's.
function M.rows(nodes, status)
  local server, known, out = {}, {}, {}
  for _, s in ipairs(status.servers) do server[s.id] = s end
  for _, n in ipairs(nodes) do
    known[n.raft_node_id] = true
    local s = server[n.raft_node_id] or {}
    out[#out + 1] = {
      raft_node_id = n.raft_node_id, node_id = n.node_id, name = n.name,
      raft_role = s.role or "spare", leader = status.leader == n.raft_node_id,
      raft_address = n.raft_address, remote_address = n.remote_address,
      reachable = n.raft_node_id == status.id or s.up or false,
      leaving = n.removing ~= nil or nil,
    }
  end
  -- A server that the state does not know is on its way out; or the state is behind, and knows hardly anybody.
  local leaving = not status.behind or nil
  for _, s in ipairs(status.servers) do
    if not known[s.id] then
      out[#out + 1] = {
        raft_node_id = s.id, node_id = "", name = "", raft_role = s.role, leader = status.leader == s.id,
        raft_address = s.address, remote_address = "",
        reachable = s.id == status.id or s.up or false, leaving = leaving,
      }
    end
  end
  table.sort(out, function(a, b) return a.raft_node_id < b.raft_node_id end)
  return out
end

-- Marks every row with where it comes from when that is not the quorum.
function M.mark(rows, fresh)
  if fresh.stale then
    for _, row in ipairs(rows) do
      row.stale, row.reason, row.revision = true, fresh.reason, fresh.revision
    end
  end
  return rows
end

local function values(kvs)
  local out = {}
  for i, kv in ipairs(kvs) do out[i] = kv.value end
  return out
end

-- Who is a member matters most when all else is lost: any view of it is better than none.
local ANY = { stale = "any" }

-- The rows, and how fresh they are; nil, err. @opts as state.read has them; by default stale ones are taken.
function M.list(opts)
  local fresh, err = state.read(opts or ANY)
  if not fresh then return nil, err end
  local nodes, status
  nodes, err = state.managers()
  if nodes then status, err = M.status() end
  if not status then return nil, err end
  return M.mark(M.rows(values(nodes), status), fresh), fresh
end

-- What `manager status` and GET /v1/status say. Pure: @me is key.json, @cluster its record or nil, @nodes the managers'
-- records, @status raft's, @fresh from state.read, @more {revision, keys, restoring, version, policies_off, ca_stalled
-- (from ca_rotation)}.
function M.summary(me, cluster, nodes, status, fresh, more)
  local n_members = status.behind and math.max(#nodes, #status.servers) or #nodes
  local name, n_voters, voters_up = {}, 0, 0
  for _, n in ipairs(nodes) do name[n.raft_node_id] = n.name end
  local role
  for _, s in ipairs(status.servers) do
    if s.id == status.id then role = s.role end
    if s.role == "voter" then
      n_voters = n_voters + 1
      if s.up or s.id == status.id then voters_up = voters_up + 1 end
    end
  end
  local quorum = not fresh.stale
  local warnings = json.array()
  local function warn(...) warnings[#warnings + 1] = (...):format(select(2, ...)) end
  if cluster and cluster.dev then
    warn("%s", M.DEV_WARNING)
  end
  if not quorum then
    warn("no quorum (%s): writes fail, and what is shown is this manager's own state at revision %d", fresh.reason or
      "unknown reason", fresh.revision)
  end
  if status.behind then
    warn("%s (log to entry %d, applied to %d)", state.BEHIND, status.last_index, status.applied_index)
  end
  if status.no_space then warn("no space: writes are refused until there is room on the managers' disks") end
  if n_members == 2 then
    warn("two managers tolerate no failure: a third one makes the cluster survive the loss of any one")
  elseif quorum and voters_up < n_voters then
    warn("%d of %d voters are reachable from here", voters_up, n_voters)
  end
  for _, policy in ipairs(more.policies_off or {}) do
    warn("policy %s is disabled: %s", policy.name, policy.reason)
  end
  local stalled = more.ca_stalled
  if stalled then
    warn("the change of the CA has waited since %s for %d nodes (%s%s): `symphony cluster rotate-ca --status`",
      os.date("!%F %T UTC", stalled.since), stalled.waiting, table.concat(stalled.names, ", "),
      stalled.waiting > #stalled.names and ", ..." or "")
  end
  if more.restoring then
    warn("a restore of %s has not finished: say `symphony cluster restore` with the same file again",
      more.restoring.source or "a backup")
  end
  return {
    cluster_id = me.cluster_id, cluster_name = cluster and cluster.name or nil, dev = cluster and cluster.dev or false,
    epoch = cluster and cluster.epoch or nil,
    node_id = me.node_id, raft_node_id = me.raft_node_id, name = me.name, version = more.version,
    state = status.state, raft_role = role or "spare",
    leader = status.leader ~= 0 and { raft_node_id = status.leader, name = name[status.leader] } or nil,
    term = status.term, quorum = quorum, members = n_members, voters = n_voters, voters_reachable = voters_up,
    tolerates = voters.tolerates(n_voters), target = voters.target(n_members),
    revision = more.revision, keys = more.keys, applied_index = status.applied_index,
    commit_index = status.commit_index, last_index = status.last_index, last_term = status.last_term,
    behind = status.behind or nil, snapshot_index = status.snapshot_index,
    log_bytes = status.log_bytes, changing = status.changing or false, no_space = status.no_space or false,
    restoring = more.restoring, warnings = warnings,
    stale = fresh.stale or nil, reason = fresh.reason,
  }
end

-- Only while the CA is changed are the nodes looked at.
local function stalled()
  local cluster = state.cluster()
  local ok, found = true, nil
  if cluster and cluster.rotation then ok, found = pcall(require("symphony.cluster.ca_rotation").stalled) end
  return ok and found or nil
end

function M.overview(opts)
  local me, err = identity.member()
  if not me then return nil, err end
  local fresh
  fresh, err = state.read(opts or ANY)
  if not fresh then return nil, err end
  local nodes, status
  nodes, err = state.managers()
  if nodes then status, err = M.status() end
  if not status then return nil, err end
  return M.summary(me, (state.cluster()), values(nodes), status, fresh, {
    revision = store.revision(), keys = store.keys(), restoring = (state.get("/cluster/restoring")),
    version = require("sym.sys").version, policies_off = require("symphony.policy.engine").off(),
    ca_stalled = stalled(),
  })
end

-- The remote addresses of the managers (state.managers), the leader first; for a joiner and for key.json.
function M.addresses(rows, leader)
  local out = {}
  for _, kv in ipairs(rows) do
    local n = kv.value
    if not n.removing then table.insert(out, n.raft_node_id == leader and 1 or #out + 1, n.remote_address) end
  end
  return out
end

-- The manager that @name means: raft id, node id or the beginning of one, or name. Its planned row; nil, err.
function M.find(rows, name)
  for _, m in ipairs(rows) do
    if m.node_id == name or m.name == name or tostring(m.id) == name then return m end
  end
  local found
  for _, m in ipairs(rows) do
    if state.begins(m.node_id, name) then
      if found then return nil, state.ambiguous(name) end
      found = m
    end
  end
  if found then return found end
  return nil, errors.new("not_found", ("no manager is called \"%s\""):format(name:sub(1, 80)),
    "`symphony manager members` lists raft ids, node ids and names")
end

return M
