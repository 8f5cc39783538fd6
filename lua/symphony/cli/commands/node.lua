-- symphony node ...: the nodes of the cluster and who asks to become one. Runs in the daemon.
local stale = require "symphony.cli.stale"

-- "manager: voter, leader", "worker: block".
local function role_of(n)
  local more = {}
  if n.raft_role then more[1] = n.raft_role end
  if n.leader then more[#more + 1] = "leader" end
  table.move(n.services, 1, #n.services, #more + 1, more)
  return #more > 0 and ("%s: %s"):format(n.role, table.concat(more, ", ")) or n.role
end

-- "ready for 3h 2m, leaving".
local function status_of(n, now, values)
  local text = n.status
  if n.since then text = ("%s for %s"):format(text, values.format_span(now - n.since)) end
  return n.leaving and text .. ", leaving" or text
end

local ls = {
  name = "ls list",
  summary = "List the nodes, managers and workers",
  description = [[
Lists the nodes of the cluster: what each is and does, whether it is there, and until when its
certificate is good. Without a quorum the answer is this manager's own state, marked stale.

Example:
  symphony node ls
  symphony --json node ls]],
  run = function(ctx)
    local values, now = require "symphony.cluster.values", require("sym.sys").now()
    local rows, fresh = require("symphony.cluster.nodes").list { stale = true }
    if not rows then return nil, fresh end
    stale.note(ctx, fresh)
    local changing = false -- the CA; the column says how far each node is with that
    for _, n in ipairs(rows) do changing = changing or n.ca ~= nil end
    return rows, {
      columns = { "ID", "NAME", "ROLE", "STATUS", "AVAILABILITY", "VERSION", "ADDRESS", "CERT EXPIRES",
        changing and "CA" or nil },
      row = function(n)
        return { n.node_id, n.name, role_of(n), status_of(n, now, values), n.availability, n.version,
          n.addresses.remote, values.format_expiry(n.certificate_expires, now), n.ca }
      end,
    }
  end,
}

local function inspect_text(rows)
  local values, now = require "symphony.cluster.values", require("sym.sys").now()
  local plain, out = require("symphony.cli.render").plain, {}
  for i, n in ipairs(rows) do
    local lines = { i > 1 and "" or nil }
    local function line(name, text)
      if text and text ~= "" then lines[#lines + 1] = ("%-14s  %s"):format(name, plain(text)) end
    end
    line("name", n.name)
    line("node id", n.node_id)
    line("role", role_of(n))
    line("raft id", n.raft_node_id)
    line("status", status_of(n, now, values))
    line("reason", n.reason)
    line("availability", n.availability)
    line("labels", values.format_labels(n.labels))
    line("assignments", n.assignments .. (n.more_assignments and " and more" or ""))
    for _, what in ipairs(n.work or {}) do line("to do", what) end
    for _, kind in ipairs { "remote", "gossip", "raft" } do line(kind .. " address", n.addresses[kind]) end
    line("version", n.version)
    line("joined", n.joined and values.format_time(n.joined) .. " UTC")
    line("certificate", n.certificate_expires and ("until %s UTC (%s)"):format(
      values.format_time(n.certificate_expires), values.format_expiry(n.certificate_expires, now)))
    line("fingerprint", n.fingerprint)
    for _, e in ipairs(n.events) do
      line("event", ("%s UTC  %s  %s"):format(values.format_time(e.at), e.kind, e.message or e.reason or ""))
    end
    out[i] = table.concat(lines, "\n")
  end
  return table.concat(out, "\n")
end

local NODE = "Name, node id or the beginning of one (6 characters or more), or raft id."
local EVENTS = 5 -- of a node that is inspected

local inspect = {
  name = "inspect",
  summary = "All that is known of some nodes",
  description = [[
Shows all that the state says of these nodes, and the last events of each.

Example:
  symphony node inspect worker-01 worker-02]],
  args = function(parser)
    parser:argument("node", NODE):args("+"):argname("NODE")
  end,
  run = function(ctx)
    local nodes, events = require "symphony.cluster.nodes", require "symphony.cluster.events"
    local fresh, err = require("symphony.cluster.state").read { stale = true }
    if not fresh then return nil, err end
    local out = require("symphony.json").array {}
    for i, name in ipairs(ctx.args.node) do
      local row
      row, err = nodes.get(name, fresh)
      if not row then return nil, err end
      row.assignments, row.more_assignments = nodes.assignments(row.node_id)
      if not row.assignments then return nil, row.more_assignments end
      row.more_assignments = row.more_assignments or nil
      row.work, err = nodes.work(row.node_id)
      if not row.work then return nil, err end
      row.events, err = events.list { node = row.node_id, node_id = row.node_id, limit = EVENTS }
      if not row.events then return nil, err end
      out[i] = row
    end
    stale.note(ctx, fresh)
    return out, { text = inspect_text }
  end,
}

-- The change that the options of `node update` ask for. Raises.
local function patch_of(args)
  local errors, json = require "symphony.errors", require "symphony.json"
  local values = require "symphony.cluster.values"
  local patch = { name = args.name, availability = args.availability }
  local labels = assert(values.parse_labels(args.label_add))
  for _, key in ipairs(args.label_rm) do
    if labels[key] then
      errors.raise("usage", ("label %s is to be added and removed at once"):format(key), "say one of them")
    end
    labels[key] = json.null
  end
  if next(labels) then patch.labels = labels end
  if next(patch) == nil then
    errors.raise("usage", "nothing is to be changed",
      "give one of --availability, --label-add, --label-rm and --name; symphony help node update shows how it is used")
  end
  return patch
end

local update = {
  name = "update",
  summary = "Change a node's availability, labels or name",
  description = [[
Changes a node, all at once or nothing. Availability active: it is given work; pause: nothing new;
drain: what it has goes to others, too. --plan changes nothing and shows what the policies would say
to it.

Example:
  symphony node update worker-01 --availability drain
  symphony node update worker-01 --label-add zone=a --label-add disk=ssd --label-rm rack
  symphony node update 0d9k3r --name worker-07]],
  args = function(parser)
    parser:argument("node", NODE):argname("NODE")
    parser:option("--availability", "active, pause or drain."):argname("AVAILABILITY")
      :choices { "active", "pause", "drain" }
    parser:option("--label-add", "A label to set; may be repeated."):argname("KEY=VALUE"):count("*")
    parser:option("--label-rm", "A label to take away; may be repeated."):argname("KEY"):count("*")
    parser:option("--name", "Call it so."):argname("NAME")
    parser:flag("--plan", "Change nothing; show what would become of it, and which policies say what.")
  end,
  run = function(ctx)
    local patch = patch_of(ctx.args)
    local nodes, remote = require "symphony.cluster.nodes", require "symphony.cluster.remote"
    nodes.check_patch(patch)
    local answer, err = require("symphony.cluster.leader").call("PATCH",
      "/v1/nodes/" .. remote.encode_segment(ctx.args.node) .. (ctx.args.plan and "?plan=true" or ""), patch)
    if not answer then return nil, err end
    if ctx.args.plan then return answer, require("symphony.cli.plan").how end
    return answer, { text = function()
      if #answer.changes == 0 then return ("%s is so already."):format(answer.name) end
      return ("%s: %s."):format(answer.name, table.concat(answer.changes, "; "))
    end }
  end,
}

local rm = {
  name = "rm remove",
  summary = "Take a node out of the cluster",
  description = [[
Removes a worker that is not ready and has nothing to do; with --force any: it is cut off at once,
and what it had to do is forgotten. A manager goes the way of `manager remove`.

Example:
  symphony node rm worker-03
  symphony node rm 0d9k3r --force]],
  args = function(parser)
    parser:argument("node", NODE):argname("NODE")
    parser:flag("--force", "Also a worker that is ready or has assignments, or a manager that costs the quorum.")
  end,
  run = function(ctx)
    local state, remote = require "symphony.cluster.state", require "symphony.cluster.remote"
    local fresh, err = state.read()
    if not fresh then return nil, err end
    local n
    n, err = state.node(ctx.args.node)
    if not n then return nil, err end
    local answer
    if n.role == "manager" then
      local remove = require "symphony.cluster.remove"
      answer, err = remove.run(n.node_id, { force = ctx.args.force })
      if answer then answer.role, answer.note = n.role, remove.CA_NOTE end
    else
      answer, err = require("symphony.cluster.leader").call("DELETE", ("/v1/nodes/%s%s"):format(
        remote.encode_segment(n.node_id), ctx.args.force and "?force=true" or ""))
    end
    if not answer then return nil, err end
    return answer, { text = function()
      local text = ("%s %s (%s) is removed."):format(n.role, answer.name, answer.node_id)
      if answer.assignments and answer.assignments > 0 then
        text = ("%s What it had to do (%d) is forgotten."):format(text, answer.assignments)
      end
      return answer.note and text .. "\nNote: " .. answer.note or text
    end }
  end,
}

local pending = {
  name = "pending",
  summary = "List the requests to join that wait for approval",
  description = [[
Lists who asks to join without a token. Compare the fingerprint with what the joining machine
prints. "was 3" stands beside a manager that the cluster knows: it asks to come back without what it
had, and when it is approved a new raft id takes the place of the one that it had.

Example:
  symphony node pending]],
  run = function(ctx)
    local state, sys = require "symphony.cluster.state", require "sym.sys"
    local fresh, err = state.read { stale = true }
    if not fresh then return nil, err end
    local rows
    rows, err = require("symphony.cluster.pending").list()
    if not rows then return nil, err end
    stale.note(ctx, fresh)
    local out, values = require("symphony.json").array {}, require "symphony.cluster.values"
    for i, kv in ipairs(rows) do
      local r = kv.value
      out[i] = { id = r.id, role = r.role, name = r.name, fingerprint = r.fingerprint, from = r.from,
        addresses = r.addresses, replaces = r.replaces, expires = r.expires,
        stale = fresh.stale or nil }
    end
    return out, {
      columns = { "ID", "ROLE", "NAME", "FROM", "EXPIRES", "FINGERPRINT" },
      row = function(r)
        local role = r.replaces and ("%s (was %d)"):format(r.role, r.replaces) or r.role
        return { r.id, role, r.name, r.from, values.format_expiry(r.expires, sys.now()), r.fingerprint }
      end,
      empty = "No request waits.",
    }
  end,
}

local approve = {
  name = "approve",
  summary = "Let a waiting request in",
  description = [[
Approves a request to join. The fingerprint is what the joining machine prints: it proves that this
is the machine you mean.

Example:
  symphony node approve 3f2a90cc41 --fingerprint 3f2a90cc41d0...]],
  complete = { id = "pending" },
  args = function(parser)
    parser:argument("id", "Id as `node pending` shows it."):argname("ID")
    parser:option("--fingerprint", "Of the joining node's key; at least its first 16 digits."):argname("HEX"):count(1)
    parser:option("--name", "Call it so."):argname("NAME")
    parser:option("--label", "A label for it; may be repeated."):argname("KEY=VALUE"):count("*")
  end,
  run = function(ctx)
    local values = require "symphony.cluster.values"
    local labels, err = values.parse_labels(ctx.args.label)
    if labels and ctx.args.name then
      local ok, why = values.check_name(ctx.args.name)
      if not ok then return nil, why end
    end
    if not labels then return nil, err end
    local answer
    answer, err = require("symphony.cluster.admit").approve(ctx.args.id, { fingerprint = ctx.args.fingerprint,
      name = ctx.args.name, labels = labels })
    if not answer then return nil, err end
    require("symphony.cluster.reconcile").wake()
    return answer, { text = function()
      return ("%s %s (%s) is admitted."):format(answer.role, answer.name, answer.node_id)
    end }
  end,
}

local reject = {
  name = "reject",
  summary = "Turn a waiting request down",
  description = [[
Turns a request to join down; asking again with the same key does not help for an hour.

Example:
  symphony node reject 3f2a90cc41]],
  complete = { id = "pending" },
  args = function(parser)
    parser:argument("id", "Id as `node pending` shows it."):argname("ID")
  end,
  run = function(ctx)
    local answer, err = require("symphony.cluster.pending").reject(ctx.args.id)
    if not answer then return nil, err end
    return answer, { text = function() return ("Request %s is turned down."):format(answer.id) end }
  end,
}

return {
  name = "node",
  summary = "Nodes: list, change, remove; who asks to become one",
  commands = { ls, inspect, update, rm, pending, approve, reject },
}
