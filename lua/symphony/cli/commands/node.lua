-- symphony node ...: the nodes of the cluster and who asks to become one. Runs in the daemon.
local stale = require "symphony.cli.stale"

local ls = {
  name = "ls list",
  summary = "List the nodes, managers and workers",
  description = [[
Lists the nodes of the cluster.

Example:
  symphony node ls]],
  run = function(ctx)
    local state = require "symphony.cluster.state"
    local fresh, err = state.read { stale = true }
    if not fresh then return nil, err end
    local rows
    rows, err = state.nodes()
    if not rows then return nil, err end
    stale.note(ctx, fresh)
    local out, values = require("symphony.json").array {}, require "symphony.cluster.values"
    for i, kv in ipairs(rows) do
      out[i] = kv.value
      out[i].certificate = nil
      out[i].stale = fresh.stale or nil
    end
    return out, {
      columns = { "NODE ID", "NAME", "ROLE", "ADDRESS", "AVAILABILITY", "LABELS", "VERSION" },
      row = function(n)
        return { n.node_id, n.name, n.role, n.remote_address, n.removing and "leaving" or n.availability,
          values.format_labels(n.labels), n.version }
      end,
    }
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
  args = function(parser)
    parser:argument("id", "Id as `node pending` shows it."):argname("ID")
  end,
  run = function(ctx)
    local answer, err = require("symphony.cluster.pending").reject(ctx.args.id)
    if not answer then return nil, err end
    return answer, { text = function() return ("Request %s is turned down."):format(answer.id) end }
  end,
}

return { name = "node", summary = "Nodes, and who asks to become one", commands = { ls, pending, approve, reject } }
