--- Commands for the resources of a service: what every kind has, ready made, and helpers for the rest.
---   commands = { run, commands.ls("process"), commands.inspect("process"), commands.rm("process") }
local async = require "symphony.async"
local errors = require "symphony.errors"
local json = require "symphony.json"
local remote = require "symphony.cluster.remote"

local M = {}

local POLL_MS = 100
local STILL_MS = 120 * 1000 -- without any change there is nothing to wait for

local function resources() return require "symphony.services.resources" end

local function path(kind, id)
  return "/v1/res/" .. kind .. (id and "/" .. remote.encode_segment(id) or "")
end

local function how(ctx)
  return ctx.args.plan and "?plan=true" or ""
end

--- The options of commands that change something: --plan and --wait.
function M.write_options(parser)
  parser:flag("--plan", "Only say what would happen, and which policies said what.")
  parser:flag("--wait", "Until it is so everywhere, or has failed.")
end

-- Text ---------------------------------------------------------------------------------------------------------------

local function nodes_text(row)
  local list = {}
  for i, n in ipairs(row.nodes) do list[i] = n.name or n.node_id end
  return table.concat(list, ", ")
end

--- How @row, a resource as the API has it, is: "3/3 running", "1/3 running, 2 lack a node, rolling".
function M.state_of(row)
  if not row.replicas then return "-" end
  local counts, words = {}, {}
  for _, n in ipairs(row.nodes) do counts[n.state] = (counts[n.state] or 0) + 1 end
  words[1] = ("%d/%d running"):format(counts.running or 0, row.replicas)
  local names = {}
  for state in pairs(counts) do names[#names + 1] = state ~= "running" and state or nil end
  table.sort(names)
  for _, state in ipairs(names) do words[#words + 1] = ("%d %s"):format(counts[state], state) end
  if row.missing > 0 then words[#words + 1] = ("%d without a node"):format(row.missing) end
  local rollout = row.rollout
  if rollout and rollout.state == "rolling" then words[#words + 1] = "rolling out" end
  if rollout and rollout.state == "stopped" then words[#words + 1] = "rollout stopped" end
  return table.concat(words, ", ")
end

-- Which policies said what; true when one of them refuses it.
local function refused(row, lines)
  for _, step in ipairs(row.policies or {}) do
    local decision = type(step.decision) == "table" and step.decision or {}
    local why = decision.refuse or step.error
    lines[#lines + 1] = ("policy %s: %s%s"):format(step.policy or "?", step.said or "?", why
      and (" (%s)"):format(tostring(why)) or "")
  end
  if row.allow == false then table.insert(lines, 1, "This would be refused: " .. tostring(row.refuse)) end
  return row.allow == false
end

local function plan_text(row)
  local lines = {}
  if refused(row, lines) then return table.concat(lines, "\n") end
  lines = { ("%s %s would be on: %s"):format(row.kind, row.id, #row.nodes > 0 and nodes_text(row) or "no node") }
  if row.missing and row.missing > 0 then
    lines[#lines + 1] = ("%d would lack a node%s"):format(row.missing, row.why and ": " .. row.why or "")
  end
  for _, change in ipairs(row.changes or {}) do lines[#lines + 1] = "would change: " .. change end
  refused(row, lines)
  return table.concat(lines, "\n")
end

local function done_text(row)
  local where = #row.nodes > 0 and " on " .. nodes_text(row) or ""
  local why = row.why and (" (%s)"):format(row.why) or ""
  return ("%s %s%s: %s%s."):format(row.kind, row.id, where, M.state_of(row), why)
end

-- Writing ------------------------------------------------------------------------------------------------------------

-- Has @row got where it is to be? true; nil: not yet; nil, err: it never will by itself.
local function settled(row)
  local rollout = row.rollout
  if rollout and rollout.state == "stopped" then
    return nil, errors.new("conflict", ("%s %s: the rollout was stopped %s"):format(row.kind, row.id,
      rollout.reason or ""), "the other nodes go on with what they have; mend it and update again")
  end
  for _, n in ipairs(row.nodes) do
    if n.state == "failed" and (n.generation or row.generation) == row.generation then -- not what was there before
      return nil, errors.new("conflict", ("%s %s has failed on %s: %s"):format(row.kind, row.id, n.name or n.node_id,
        n.message or "no reason is known"), ("`symphony %s inspect %s` shows more"):format(row.service, row.id))
    end
  end
  if rollout and rollout.state == "rolling" then return nil end
  local good = 0
  for _, n in ipairs(row.nodes) do
    if (n.state == "running" or n.state == "exited") and n.generation == row.generation then good = good + 1 end
  end
  local want = row.replicas or 0 -- those of a kind that is not placed have none
  return good >= want and #row.nodes == want or nil
end

--- Waits until resource @id is as it is to be, as long as something goes on: --timeout bounds it. In a task. The row;
--- nil, err.
function M.wait(kind, id)
  local seen, since
  while true do
    local fresh, err = require("symphony.cluster.state").read()
    if not fresh then return nil, err end
    local row = resources().get(kind, id)
    local ok
    ok, err = settled(row)
    if ok then return row end
    if err then return nil, err end
    local text, now = json.encode { row.nodes, row.rollout, row.replicas }, require("sym.sys").mono_ms()
    if text ~= seen then seen, since = text, now end
    if now - since > STILL_MS then
      return nil, errors.new("timeout", ("%s %s: %s, and nothing has changed for %d s"):format(kind, id,
        M.state_of(row), STILL_MS // 1000), ("`symphony %s inspect %s` shows more"):format(row.service, id))
    end
    async.sleep(POLL_MS)
  end
end

local function answer_of(ctx, answer, err, kind, id)
  if not answer then return nil, err end
  if ctx.args.plan then return answer, { text = plan_text } end
  if ctx.args.wait then
    local row
    row, err = M.wait(kind, id)
    if not row then return nil, err end
    row.changes = answer.changes
    answer = row
  end
  return answer, { text = done_text }
end

--- Makes a resource. @body as of POST /v1/res/<kind>. What a command's run returns.
function M.create(ctx, kind, body)
  local answer, err = require("symphony.cluster.leader").call("POST", path(kind) .. how(ctx), body)
  return answer_of(ctx, answer, err, kind, body.id)
end

--- Changes one. @body as of PATCH /v1/res/<kind>/<id>, of which at least something has to be there.
function M.update(ctx, kind, id, body)
  if body.spec and next(body.spec) == nil then body.spec = nil end
  if next(body) == nil then
    return nil, errors.new("usage", "nothing is to be changed", ("symphony help %s shows what can be"):format(
      table.concat(ctx.path, " ")))
  end
  local answer, err = require("symphony.cluster.leader").call("PATCH", path(kind, id) .. how(ctx), body)
  return answer_of(ctx, answer, err, kind, id)
end

--- Takes one out.
function M.remove(ctx, kind, id)
  local answer, err = require("symphony.cluster.leader").call("DELETE", path(kind, id) .. how(ctx))
  if not answer then return nil, err end
  return answer, { text = function(data)
    if not data.plan then return ("%s %s is removed."):format(kind, id) end
    local lines = {}
    if not refused(data, lines) then table.insert(lines, 1, ("%s %s would be removed."):format(kind, id)) end
    return table.concat(lines, "\n")
  end }
end

-- Commands -----------------------------------------------------------------------------------------------------------

--- `ls`. @opts: columns = {...}, row = function(resource) -> {...}: more of them, between the name and the state.
function M.ls(kind, opts)
  opts = opts or {}
  return {
    name = "ls list", summary = ("List the resources of the kind %s"):format(kind),
    run = function(ctx)
      local fresh, err = require("symphony.cluster.state").read { stale = true }
      if not fresh then return nil, err end
      local rows = resources().list(kind)
      for _, row in ipairs(rows) do row.stale = fresh.stale or nil end
      require("symphony.cli.stale").note(ctx, fresh)
      local columns = { "NAME" }
      table.move(opts.columns or {}, 1, #(opts.columns or {}), 2, columns)
      table.move({ "STATE", "GENERATION", "NODES" }, 1, 3, #columns + 1, columns)
      local status = require("symphony.services.registry").field(kind, "status") or M.state_of
      return rows, { columns = columns, empty = "There are none.", row = function(row)
        local cells = { row.id }
        local more = opts.row and opts.row(row) or {}
        table.move(more, 1, #more, 2, cells)
        table.move({ status(row), row.generation, nodes_text(row) }, 1, 3, #cells + 1, cells)
        return cells
      end }
    end,
  }
end

local TIME_MAX = 1 << 40 -- what a node says may be anything

local function detail_text(name, v, times)
  local is_time = times[name] and math.type(v) == "integer" and v >= 0 and v < TIME_MAX
  return ("%s %s"):format(name, is_time and require("symphony.cluster.values").format_time(v) .. " UTC" or tostring(v))
end

-- @times: the set of the names in details that are times.
local function inspect_text(rows, times)
  local plain, values, out = require("symphony.cli.render").plain, require "symphony.cluster.values", {}
  for i, row in ipairs(rows) do
    local lines = { i > 1 and "" or nil }
    local function line(name, text)
      if text ~= nil and text ~= "" then lines[#lines + 1] = ("%-15s  %s"):format(name, plain(text)) end
    end
    line("name", row.id)
    line("kind", row.kind)
    line("service", row.service ~= row.kind and row.service or nil)
    line("state", M.state_of(row))
    line("generation", row.generation)
    line("labels", values.format_labels(row.constraints or {}))
    line("replicas", row.replicas)
    if row.replicas then
      line("move", row.move)
      line("move-after", ("%d s"):format(row.move_after or require("symphony.services.placement").MOVE_AFTER_S))
      line("rollout-timeout", ("%d s"):format(row.rollout_s or require("symphony.services.rollout").DEADLINE_S))
    end
    line("made", row.created and values.format_time(row.created) .. " UTC" .. (row.by and " by " .. row.by or ""))
    if row.rollout then
      line("rollout", row.rollout.state .. (row.rollout.reason and ": " .. row.rollout.reason or ""))
    end
    local names = {}
    for name in pairs(row.spec) do names[#names + 1] = name end
    table.sort(names)
    for _, name in ipairs(names) do
      local v = row.spec[name]
      line(name, type(v) == "string" and v or json.encode(v))
    end
    for _, n in ipairs(row.nodes) do
      local text = ("%s: %s"):format(n.name or n.node_id, n.state)
      if n.generation and n.generation ~= row.generation then
        text = ("%s, generation %d"):format(text, n.generation)
      end
      if n.message then text = ("%s: %s"):format(text, n.message) end
      line("on", text)
      local details = {}
      for name, v in pairs(n.detail or {}) do details[#details + 1] = detail_text(name, v, times) end
      table.sort(details)
      line("", table.concat(details, ", "))
    end
    out[i] = table.concat(lines, "\n")
  end
  return table.concat(out, "\n")
end

--- `inspect NAME...`. @opts: times = {...}: names in the detail of a status that are times, in unix seconds.
function M.inspect(kind, opts)
  local times = {}
  for _, name in ipairs(opts and opts.times or {}) do times[name] = true end
  return {
    name = "inspect", summary = ("All that is known of resources of the kind %s"):format(kind),
    args = function(parser)
      parser:argument("name", "Which."):args("+"):argname("NAME")
    end,
    complete = { name = kind },
    run = function(ctx)
      local fresh, err = require("symphony.cluster.state").read { stale = true }
      if not fresh then return nil, err end
      local out = json.array {}
      for i, name in ipairs(ctx.args.name) do
        out[i] = resources().get(kind, name)
        out[i].stale = fresh.stale or nil
      end
      require("symphony.cli.stale").note(ctx, fresh)
      return out, { text = function(data) return inspect_text(data, times) end }
    end,
  }
end

--- `rm NAME`.
function M.rm(kind)
  return {
    name = "rm remove", summary = ("Remove a resource of the kind %s"):format(kind),
    args = function(parser)
      parser:argument("name", "Which."):argname("NAME")
      parser:flag("--plan", "Only say what would happen, and which policies said what.")
    end,
    complete = { name = kind },
    run = function(ctx)
      return M.remove(ctx, kind, ctx.args.name)
    end,
  }
end

return M
