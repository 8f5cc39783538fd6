-- symphony token ...: what lets others join. Runs in the daemon.
local stale = require "symphony.cli.stale"

local function add_options(parser)
  parser:option("--ttl", "How long it is good: 90s, 30m, 24h, 7d, never (default 24h)."):argname("TIME")
  parser:option("--uses", "How often it may be used (default: any number)."):argname("N"):convert(function(text)
    local n = math.tointeger(tonumber(text))
    if not n or n < 1 then return nil, ("'%s' is no number of uses"):format(text) end
    return n
  end)
  parser:option("--label", "A label for the nodes that join with it; may be repeated."):argname("KEY=VALUE"):count("*")
  parser:option("--cidr", "Only from these addresses; may be repeated."):argname("BLOCK"):count("*")
end

-- Options of a token from the command line; nil, err.
local function options_of(args, role)
  local tokens, values = require "symphony.cluster.tokens", require "symphony.cluster.values"
  local ttl, err = tokens.DEFAULT_TTL, nil
  if args.ttl then ttl, err = values.parse_duration(args.ttl) end
  if err then return nil, err end
  local labels
  labels, err = values.parse_labels(args.label)
  if not labels then return nil, err end
  return { role = role, ttl = ttl, uses = args.uses, labels = labels,
    cidrs = require("symphony.json").array(args.cidr or {}) }
end

local function describe(t)
  local values, sys = require "symphony.cluster.values", require "sym.sys"
  return ("Role %s, id %s, expires %s.\n\n  %s\n\nIt is shown only now."):format(t.role, t.id,
    values.format_expiry(t.expires, sys.now()), t.token)
end

local create = {
  name = "create",
  summary = "Make a token",
  description = [[
Makes a token with which others join, and prints it: the only time that it is seen.

Example:
  symphony token create --role manager --ttl 1h --uses 2
  symphony token create --label zone=a --cidr 10.1.0.0/16]],
  complete = { role = { "manager", "worker" } },
  args = function(parser)
    parser:option("--role", "manager or worker (default worker)."):argname("ROLE"):default("worker")
      :show_default(false)
    add_options(parser)
  end,
  run = function(ctx)
    local options, err = options_of(ctx.args, ctx.args.role)
    if not options then return nil, err end
    local answer
    answer, err = require("symphony.cluster.tokens").create(options)
    if not answer then return nil, err end
    return answer, { text = describe }
  end,
}

local ls = {
  name = "ls list",
  summary = "List the tokens (never their secrets)",
  description = [[
Lists the tokens: id, role, when they expire, uses left. Their text is nowhere kept.

Example:
  symphony token ls]],
  run = function(ctx)
    local state, sys = require "symphony.cluster.state", require "sym.sys"
    local fresh, err = state.read { stale = true }
    if not fresh then return nil, err end
    local rows
    rows, err = require("symphony.cluster.tokens").list()
    if not rows then return nil, err end
    stale.note(ctx, fresh)
    local out = require("symphony.json").array {}
    for i, row in ipairs(rows) do
      row.kv, row.hash = nil, nil
      row.stale = fresh.stale or nil
      out[i] = row
    end
    local values = require "symphony.cluster.values"
    return out, {
      columns = { "ID", "ROLE", "EXPIRES", "USES", "LABELS", "FROM" },
      row = function(t)
        return { t.id, t.role, values.format_expiry(t.expires, sys.now()), t.uses or "any",
          values.format_labels(t.labels), table.concat(t.cidrs or {}, ",") }
      end,
      empty = "There are no tokens; `symphony token create` makes one.",
    }
  end,
}

local rm = {
  name = "rm remove",
  summary = "Remove a token",
  description = [[
Removes the token with this id (or its beginning, or the token itself). Who has joined with it
stays.

Example:
  symphony token rm 3f2a90cc41]],
  args = function(parser)
    parser:argument("id", "Id as `token ls` shows it."):argname("ID")
  end,
  run = function(ctx)
    local answer, err = require("symphony.cluster.tokens").remove(ctx.args.id)
    if not answer then return nil, err end
    return answer, { text = function() return ("Token %s (%s) is removed."):format(answer.id, answer.role) end }
  end,
}

local rotate = {
  name = "rotate",
  summary = "Replace all tokens of a role by a new one",
  description = [[
Removes every token of the role and makes a new one, in one step: for when a token may have been
seen by others.

Example:
  symphony token rotate --role manager]],
  complete = { role = { "manager", "worker" } },
  args = function(parser)
    parser:option("--role", "manager or worker."):argname("ROLE"):count(1)
    add_options(parser)
  end,
  run = function(ctx)
    local options, err = options_of(ctx.args, ctx.args.role)
    if not options then return nil, err end
    local answer
    answer, err = require("symphony.cluster.tokens").rotate(options)
    if not answer then return nil, err end
    answer.removed = require("symphony.json").array(answer.removed)
    return answer, { text = function()
      local n = #answer.removed
      return ("%d old token%s removed.\n"):format(n, n == 1 and " is" or "s are") .. describe(answer)
    end }
  end,
}

return { name = "token", summary = "Tokens with which others join", commands = { create, ls, rm, rotate } }
