-- symphony events: what has happened in the cluster. Runs in the daemon.
local stale = require "symphony.cli.stale"

local WIDTHS = { 19, 22, 16 } -- of the columns before the last, line by line

local function limit_of(text)
  local n = math.tointeger(tonumber(text))
  if not n or n < 1 or n > 1000 then return nil, ("'%s' is no number from 1 to 1000"):format(text) end
  return n
end

local COLUMNS = { "TIME (UTC)", "KIND", "NODE", "MESSAGE" }

local function cells(event)
  local text, reason = event.message or "", event.reason
  if reason and not text:find(reason, 1, true) then
    text = text == "" and reason or ("%s (%s)"):format(text, reason)
  end
  return { require("symphony.cluster.values").format_time(event.at), event.kind, event.name or event.node_id, text }
end

local function line(row)
  local plain, out = require("symphony.cli.render").plain, {}
  for i = 1, #COLUMNS do
    local text = plain(row[i] or "-")
    out[i] = WIDTHS[i] and text .. (" "):rep(WIDTHS[i] - utf8.len(text)) or text
  end
  return table.concat(out, "  ") .. "\n"
end

-- Streams until the client goes away, or until it can go on no more.
local function follow(ctx, want, fresh)
  local events, json = require "symphony.cluster.events", require "symphony.json"
  if not want.since and not want.limit then want.limit = 0 end
  if not ctx.json then
    ctx.out(line(COLUMNS))
  elseif fresh.stale then
    ctx.out(json.encode { type = "stale", reason = fresh.reason, revision = fresh.revision } .. "\n")
  end
  local f <close> = events.follow(want)
  while true do
    local event, err = f:next()
    if not event then return nil, err end
    ctx.out(ctx.json and json.encode(event) .. "\n" or line(cells(event)))
  end
end

return {
  name = "events",
  summary = "What has happened in the cluster",
  reads = true,
  description = [[
Lists the last events of the cluster, the oldest first; 1000 are kept. Times are in UTC, also that of
--since. With --follow each new one is printed as it comes, until Ctrl-C (with --json one object a
line), behind those that --since or --limit ask for.

Example:
  symphony events --since 1h
  symphony events --since '2026-11-30 17:05' --kind node.down
  symphony --json events --follow --node worker-01]],
  complete = { kind = { "node", "node.joined", "node.ready", "node.down", "node.left", "node.removed", "node.updated",
    "node.refused", "leader.suspects_itself", "gossip_key", "ca", "cert", "cluster", "policy", "resource",
    "resource.created", "resource.updated", "resource.removed", "resource.moved", "resource.changed",
    "resource.failed", "resource.recovered", "rollout", "rollout.done", "rollout.stopped", "services" } },
  args = function(parser)
    parser:flag("-f --follow", "Go on with what happens from now on.")
    parser:option("--since", "Not older: 90s, 30m, 24h, 7d, or a time such as 2026-11-30 or '2026-11-30 17:05' (UTC).")
      :argname("TIME")
    parser:option("--node", "Only of this node: its name or id."):argname("NODE")
    parser:option("--kind", "Only of this kind, such as node.down, or node for all of the nodes."):argname("KIND")
    parser:option("--limit", "Only the last so many."):argname("N"):convert(limit_of)
  end,
  run = function(ctx)
    local state, values = require "symphony.cluster.state", require "symphony.cluster.values"
    local args, err = ctx.args, nil
    local want = { kind = args.kind, node = args.node, limit = args.limit }
    if args.since then want.since, err = values.parse_since(args.since, require("sym.sys").now()) end
    if err then return nil, err end
    local fresh
    fresh, err = state.read { stale = true }
    if not fresh then return nil, err end
    want.node_id = require("symphony.cluster.events").node_id(want.node)
    stale.note(ctx, fresh)
    if args.follow then return follow(ctx, want, fresh) end
    local rows
    rows, err = require("symphony.cluster.events").list(want)
    if not rows then return nil, err end
    for _, event in ipairs(rows) do event.stale = fresh.stale or nil end
    return rows, { columns = COLUMNS, row = cells, empty = "There are no such events." }
  end,
}
