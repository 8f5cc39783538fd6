-- The nodes for people and programs: what the state says of each, and the changes that an operator makes.
local engine = require "symphony.policy.engine"
local erase = require "symphony.cluster.erase"
local errors = require "symphony.errors"
local events = require "symphony.cluster.events"
local json = require "symphony.json"
local log = require "sym.log"
local members = require "symphony.cluster.members"
local reconcile = require "symphony.cluster.reconcile"
local state = require "symphony.cluster.state"
local trust = require "symphony.cluster.trust"
local values = require "symphony.cluster.values"

local M = {}

M.AVAILABILITY = { active = true, pause = true, drain = true }
local COUNTED_MAX = 1000   -- assignments that are counted
local SHOWN_MAX = 100      -- and that are named

local function server_of(id, status)
  for _, s in ipairs(status.servers) do
    if s.id == id then return s end
  end
end

-- What the managers' connections say of one of whom the state says nothing yet.
local function seen_by_raft(server, n, status)
  if not server then return "joining" end
  return (server.up or n.raft_node_id == status.id) and "ready" or "down"
end

-- A node as the API and `node ls` show it. Pure: @n its record, @said its /status/node record or nil, @status raft's,
-- @cluster the cluster's record.
function M.row(n, said, status, cluster)
  said = said or {}
  local row = {
    node_id = n.node_id, name = n.name, role = n.role, services = json.array(n.services), status = said.status,
    since = said.since, reason = said.reason, availability = n.availability or "active", labels = n.labels or {},
    addresses = { raft = n.raft_address, remote = n.remote_address, gossip = n.gossip_address },
    version = said.version or n.version, certificate_expires = n.certificate_expires, fingerprint = n.fingerprint,
    joined = n.joined, leaving = n.removing ~= nil or nil, ca = trust.progress(n, cluster, said),
  }
  if n.raft_node_id then
    local server = server_of(n.raft_node_id, status)
    row.raft_node_id, row.leader = n.raft_node_id, status.leader == n.raft_node_id
    row.raft_role = server and server.role or "spare"
    row.status = row.status or seen_by_raft(server, n, status)
  end
  row.status = row.status or "joining"
  return row
end

local function mark(row, fresh)
  row.stale = fresh.stale or nil
  return row
end

-- All of them, in the order of their ids, and how fresh that is; nil, err. @opts as state.read has them. In a task.
function M.list(opts)
  local fresh, err = state.read(opts)
  if not fresh then return nil, err end
  local status
  status, err = members.status()
  if not status then return nil, err end
  local said, out, cluster = {}, json.array(), state.cluster()
  local ok
  ok, err = state.each("/status/node/", function(kv) said[kv.key:match("[^/]*$")] = kv.value end)
  if ok then
    ok, err = state.each("/node/", function(kv)
      out[#out + 1] = mark(M.row(kv.value, said[kv.value.node_id], status, cluster), fresh)
    end)
  end
  if not ok then return nil, err end
  return out, fresh
end

local LOST_SHOWN = 5

-- How many nodes there are of each status, from local state as it is: {total, ready, joining, down, left}, and lost,
-- the names of the first that are down. nil, err. In a task.
function M.tally()
  local status, err = members.status()
  if not status then return nil, err end
  local said = {}
  local counts = { total = 0, ready = 0, joining = 0, down = 0, left = 0, lost = json.array() }
  local ok
  ok, err = state.each("/status/node/", function(kv) said[kv.key:match("[^/]*$")] = kv.value end)
  if ok then
    ok, err = state.each("/node/", function(kv)
      local row = M.row(kv.value, said[kv.value.node_id], status)
      counts.total, counts[row.status] = counts.total + 1, (counts[row.status] or 0) + 1
      if row.status == "down" and #counts.lost < LOST_SHOWN then counts.lost[#counts.lost + 1] = row.name end
    end)
  end
  if not ok then return nil, err end
  return counts
end

-- The one that @name means, from local state, which state.read() has said to be @fresh. nil, err.
function M.get(name, fresh)
  local n, err = state.node(name)
  if not n then return nil, err end
  local status
  status, err = members.status()
  if not status then return nil, err end
  local said, why = state.get("/status/node/" .. n.node_id)
  if not said and why then return nil, why end
  return mark(M.row(n, said, status, (state.cluster())), fresh or {})
end

-- How many things node @id has to do, and whether there are more than could be counted; nil, err.
function M.assignments(id)
  local rows, more = state.list_raw("/assign/" .. id .. "/", { limit = COUNTED_MAX })
  if not rows then return nil, more end
  return #rows, more
end

-- The first of that, as "kind/id"; nil, err.
function M.work(id)
  local prefix, out = "/assign/" .. id .. "/", json.array()
  local rows, err = state.list_raw(prefix, { limit = SHOWN_MAX })
  if not rows then return nil, err end
  for i, kv in ipairs(rows) do out[i] = kv.key:sub(#prefix + 1) end
  return out
end

-- Changing ------------------------------------------------------------------------------------------------------------

-- The label @key: is @value what it may be? json.null takes it away. Raises.
local function check_label(key, value)
  local ok, err = values.check_labels { [key] = value == json.null and "" or value }
  if not ok then error(err, 0) end
end

-- A change from outside: {name, availability, labels = {key = value, or json.null}}, of which at least one is there;
-- what is not named stays. Raises "invalid". Pure.
function M.check_patch(body)
  local known = { name = true, availability = true, labels = true }
  for field in pairs(body) do
    if not known[field] then
      errors.raise("invalid", ("a node has no field \"%s\" that could be changed"):format(tostring(field):sub(1, 40)),
        "name, availability and labels can be")
    end
  end
  if next(body) == nil then errors.raise("invalid", "nothing is to be changed") end
  if body.name ~= nil then assert(values.check_name(body.name)) end
  if body.availability ~= nil and not M.AVAILABILITY[body.availability] then
    errors.raise("invalid", ("there is no availability \"%s\""):format(tostring(body.availability):sub(1, 40)),
      "active, pause and drain are")
  end
  if body.labels ~= nil then
    if type(body.labels) ~= "table" then errors.raise("invalid", "labels are an object of strings and nulls") end
    local count = 0
    for key, value in pairs(body.labels) do
      count = count + 1
      if count > 2 * values.LABELS_MAX then errors.raise("invalid", "too many labels at once") end
      check_label(key, value)
    end
  end
  return body
end

-- Carries @patch (from check_patch) out on the record @n; returns what that changes, in words. Raises. Pure.
function M.change(n, patch)
  local changes = {}
  local function say(...) changes[#changes + 1] = (...):format(select(2, ...)) end
  if patch.name and patch.name ~= n.name then
    say("%s is called %s now", n.name, patch.name)
    n.name = patch.name
  end
  local availability = n.availability or "active"
  if patch.availability and patch.availability ~= availability then
    say("availability %s, was %s", patch.availability, availability)
    n.availability = patch.availability
  end
  local labels, keys = n.labels or {}, {}
  for key in pairs(patch.labels or {}) do keys[#keys + 1] = key end
  table.sort(keys)
  for _, key in ipairs(keys) do
    local value = patch.labels[key]
    if value == json.null then value = nil end
    if labels[key] ~= value then
      say(value and "label %s=%s" or "no label %s", key, value)
      labels[key] = value
    end
  end
  assert(values.check_labels(labels))
  n.labels = labels
  return changes
end

-- A copy of @n in which policies may change what they like.
local function copy(n) return json.decode(json.encode(n)) end

-- What a policy may make of a change of a node: another name, availability or labels, which are checked as if somebody
-- had asked for them. Raises.
local function amended(n, new)
  if type(new) ~= "table" then
    errors.raise("policy_failed", "a policy made something else of the node than a record, so this is refused")
  end
  local patch = { name = new.name, availability = new.availability, labels = {} }
  for key in pairs(n.labels or {}) do patch.labels[key] = json.null end
  for key, value in pairs(type(new.labels) == "table" and new.labels or {}) do patch.labels[key] = value end
  return M.change(n, M.check_patch(patch))
end

--- Has the policies decide on the change of node @old to @new (nil: it is removed), which they may amend: what they
--- change, in words. Raises.
function M.decide(admission, old, new, revision, who)
  admission:begin()
  local input = admission:decide("admit.change", { kind = "node", key = old.node_id, action = new and "put" or "delete",
    old = old, new = new and copy(new), old_revision = revision, who = who })
  return new and admission:amendments() ~= "" and amended(new, input.new) or {}
end

-- What the event says of the policies.
local function event_of(admission, event)
  event.message, event.policies = event.message .. admission:amendments(), admission:policies()
  return event
end

--- The txn that changes the node that @name means as @patch (check_patch) says, for @who, and the answer; nil, answer
--- when there is nothing to change. @more: fields of the event. For state.update. Raises.
function M.update_txn(admission, name, patch, who, more)
  local n, kv = state.node(name)
  if not n then error(kv, 0) end
  if n.removing then errors.raise("conflict", ("%s is being removed from the cluster"):format(n.name)) end
  local old = copy(n)
  local changes = M.change(n, patch)
  if #changes == 0 then return nil, { id = n.node_id, changes = changes } end
  for _, text in ipairs(M.decide(admission, old, n, kv.mod_revision, who)) do changes[#changes + 1] = text end
  local txn = { compare = { state.unchanged(kv) }, ops = { state.put(kv.key, n) } }
  if n.name ~= old.name then
    if state.text("/name/" .. n.name) then
      errors.raise("exists", ("a node is called %s already"):format(n.name), "choose another name")
    end
    table.insert(txn.compare, state.absent("/name/" .. n.name))
    table.insert(txn.ops, state.delete("/name/" .. old.name))
    table.insert(txn.ops, state.put("/name/" .. n.name, n.node_id))
  end
  local event = { kind = "node.updated", node = n, message = table.concat(changes, "; ") }
  for k, v in pairs(more or {}) do event[k] = v end
  events.add(txn, event_of(admission, event))
  admission:bind(txn)
  return txn, { id = n.node_id, changes = changes, new = n, policies = admission:policies() }
end

-- What would become of a change, from what its txn would be made with.
local function plan_of(admission, build)
  admission.dry = true
  local row = { plan = true, allow = true }
  local ok, _, answer = pcall(build)
  if not ok then
    local err = errors.from(_)
    if err.code == "internal" then error(_, 0) end
    row.allow, row.refuse, row.code, row.policy = false, err.message, err.code, err.policy
  else
    row.changes = json.array(answer.changes)
    row.new = answer.new and { name = answer.new.name, availability = answer.new.availability,
      labels = answer.new.labels }
  end
  row.policies = admission.trace
  return row
end

-- On the leader: changes the node that @name means as @body, from outside, says. Returns its row; with @opts.plan, what
-- would become of it. @opts: who (nobody: a command here), plan. Raises.
function M.serve_update(name, body, opts)
  opts = opts or {}
  local patch, admission = M.check_patch(body), engine.admission()
  local who = opts.who or { kind = "control" }
  local function build() return M.update_txn(admission, name, patch, who) end
  if opts.plan then
    assert(state.read())
    return plan_of(admission, build)
  end
  local answer, err = state.update(build)
  if not answer then
    engine.note_refusal(err, ("a change of node %s"):format(json.clean(name:sub(1, 80))))
    error(err, 0)
  end
  local row = assert(M.get(answer.id))
  row.policies = answer.policies
  row.changes = json.array(answer.changes)
  if #answer.changes > 0 then log.info(("node %s: %s"):format(row.name, table.concat(answer.changes, "; "))) end
  return row
end

-- Why worker @n may not simply be taken out; nil when it may. @said: its status or nil; @count: how much it has to do,
-- @more: at least that. Pure.
function M.refusal(n, said, count, more)
  local force = "; --force takes it out all the same"
  if said and said.status == "ready" then
    return errors.new("conflict", ("%s is ready"):format(n.name),
      "let it leave by itself (`symphony block leave` on it), or stop it first" .. force)
  elseif count > 0 then
    return errors.new("conflict", ("%s has %s%d assignment%s"):format(n.name, more and "more than " or "", count,
      count == 1 and "" or "s"),
      ("`symphony node update %s --availability drain` lets others take them over"):format(n.name) .. force)
  end
end

-- On the leader: takes the worker that @name means out at once. @opts: force; leaves: it asks for it itself, and may be
-- ready; reason, for the event; who asks. Returns
-- {node_id, name, role, assignments}. Raises.
function M.serve_remove(name, opts)
  local admission = engine.admission()
  local answer, refused_by = state.update(function()
    local n, kv = state.node(name)
    if not n then error(kv, 0) end
    if n.role ~= "worker" then
      errors.raise("conflict", ("%s is a manager"):format(n.name), "`symphony manager remove` takes it out")
    end
    local said, skv = state.get("/status/node/" .. n.node_id)
    if not said and skv then error(skv, 0) end
    local count, more = M.assignments(n.node_id)
    if not count then error(more, 0) end
    -- A node that leaves by itself is gone whether anybody likes it or not.
    if not opts.leaves then M.decide(admission, n, nil, kv.mod_revision, opts.who or { kind = "control" }) end
    local txn = { compare = { state.unchanged(kv) }, ops = {} }
    if not opts.force then
      local refused = M.refusal(n, not opts.leaves and said or nil, count, more)
      if refused then error(refused, 0) end
      table.insert(txn.compare, said and state.unchanged(skv) or state.absent("/status/node/" .. n.node_id))
      table.insert(txn.compare, { prefix = "/assign/" .. n.node_id .. "/", count = 0 })
    end
    erase.add(txn, n, { message = ("%s is removed"):format(n.name), reason = opts.reason,
      forced = opts.force and true or nil })
    admission:bind(txn)
    return txn, { node_id = n.node_id, name = n.name, role = n.role, assignments = count }
  end)
  if not answer then
    engine.note_refusal(refused_by, ("the removal of node %s"):format(json.clean(name:sub(1, 80))))
    error(refused_by, 0)
  end
  log.info(("membership: %s (%s) is removed"):format(answer.name, answer.node_id))
  reconcile.wake()
  return answer
end

-- On the leader: node @n asks to be taken out. Raises.
function M.leave(n, force)
  return M.serve_remove(n.node_id, { force = force, leaves = true, reason = "it has left by itself" })
end

return M
