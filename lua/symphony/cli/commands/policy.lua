-- symphony policy ...: Lua of the operator's that has a word in what the cluster decides.
local errors = require "symphony.errors"
local stale = require "symphony.cli.stale"

local SOURCE_MAX = 1 << 20 -- bytes that are read of a file; fewer are taken

-- The text of the file @path, or of standard input (-). nil, err.
local function read(path, what)
  if path == "-" then return io.read(SOURCE_MAX) or "" end
  local text, err = require("sym.sys").read_file(path, SOURCE_MAX)
  if not text then return nil, errors.new(err.code, ("cannot read %s: %s"):format(what, err.message)) end
  return text
end

local function read_source(path)
  local text, err = read(path, "the policy")
  if text and not utf8.len(text) then
    return nil, errors.new("invalid", ("%s is no text in UTF-8: a policy is a text of Lua"):format(path))
  end
  return text, err
end

local function path_of(name, more)
  require("symphony.policy.name").check(name)
  return "/v1/policies/" .. require("symphony.cluster.remote").encode_segment(name) .. (more or "")
end

local function to_version(text)
  local n = text:find("^%d+$") and #text < 16 and math.tointeger(tonumber(text))
  if not n or n < 1 then return nil, ("'%s' is no version"):format(text) end
  return n
end

local function name_argument(parser)
  parser:argument("name", "The policy's name."):argname("NAME")
end

-- A JSON object of the command line: its text, the path of a file behind @, or - for standard input. nil, err.
local function document(text)
  local path, err = text:match("^@(.+)$") or (text == "-" and "-")
  if path then
    text, err = read(path, "the input")
    if not text then return nil, err end
  end
  local doc
  doc, err = require("symphony.json").decode(text)
  if type(doc) ~= "table" or doc[1] ~= nil then
    return nil, errors.new("invalid", "the input is no JSON object" .. (err and ": " .. err.message or ""),
      "for example --input '{\"kind\": \"kv\", \"key\": \"a\", \"new\": \"1\"}'")
  end
  return doc
end

-- "version 3, enabled".
local function state_of(p)
  return ("version %d, %s"):format(p.version, p.enabled and "enabled" or "disabled")
end

-- What a change answers, in words; @done: what was done.
local function changed(answer, done)
  return answer, { text = function()
    if answer.unchanged then return ("Policy %s is so already (%s)."):format(answer.name, state_of(answer)) end
    return ("Policy %s %s (%s)."):format(answer.name, done, state_of(answer))
  end }
end

local set = {
  name = "set",
  summary = "Set a policy, new or again, from a file",
  description = [[
Sets the policy NAME to the Lua in FILE (- for standard input), and enables it. It has to load in the
sandbox and to pass the selftest that it carries; else nothing changes. What it was before is kept in its
history.

Example:
  symphony policy set quota contrib/policies/quota.lua]],
  where = "client",
  args = function(parser)
    name_argument(parser)
    parser:argument("file", "The policy's Lua."):argname("FILE")
  end,
  run = function(ctx)
    local source, err = read_source(ctx.args.file)
    if not source then return nil, err end
    local answer
    answer, err = ctx.call("PUT", path_of(ctx.args.name), { source = source })
    if not answer then return nil, err end
    return changed(answer, "is set")
  end,
}

-- The hooks of a policy, with what it matches by: "admit.change, every.30s".
local function hooks_of(p) return table.concat(p.hooks or {}, ", ") end

local ls = {
  name = "ls list",
  summary = "List the policies in the order in which they run",
  description = [[
Lists the policies: which hooks each has, in which order they run, whether it is enabled, or broken: it
does not load on this manager (`policy show` says why), is tried again, and what it guards is refused.

Example:
  symphony policy ls]],
  run = function(ctx)
    local state, values = require "symphony.cluster.state", require "symphony.cluster.values"
    local fresh, err = state.read { stale = true }
    if not fresh then return nil, err end
    local rows
    rows, err = require("symphony.policy.store").ls()
    if not rows then return nil, err end
    stale.note(ctx, fresh)
    for _, p in ipairs(rows) do p.stale = fresh.stale or nil end
    return rows, {
      columns = { "NAME", "ENABLED", "ORDER", "HOOKS", "VERSION", "SET (UTC)", "SUMMARY" },
      row = function(p)
        return { p.name, p.broken and "broken" or p.enabled, p.order, hooks_of(p), p.version,
          values.format_time(p.set_at), p.summary }
      end,
      empty = "There are no policies; `symphony policy set NAME FILE` sets one.",
    }
  end,
}

local function show_text(p, values)
  local plain = require("symphony.cli.render").plain
  local lines = {}
  local function line(name, text)
    if text and text ~= "" then lines[#lines + 1] = ("%-9s  %s"):format(name, plain(text)) end
  end
  line("name", p.name)
  line("summary", p.summary)
  line("enabled", p.enabled and "yes" or "no")
  line("reason", p.reason)
  line("broken", p.broken and p.broken .. "; it is tried again, and until then what it guards is refused")
  line("order", p.order)
  line("hooks", hooks_of(p))
  line("match", p.match and next(p.match) and require("symphony.json").encode(p.match) or nil)
  line("version", p.version)
  line("set", ("%s UTC, by %s"):format(values.format_time(p.set_at), p.set_by))
  line("sha256", p.sha256)
  line("failures", p.failures and ("%d in a row on this manager"):format(p.failures))
  return table.concat(lines, "\n")
end

local show = {
  name = "show",
  summary = "Show a policy",
  description = [[
Shows a policy, or an earlier version of it, also when it was removed; with --source its Lua, and nothing
else.

Example:
  symphony policy show quota
  symphony policy show quota --source
  symphony policy show quota --version 3 --source]],
  args = function(parser)
    name_argument(parser)
    parser:flag("--source", "Print its Lua.")
    parser:option("--version", "An earlier one, as `policy history` lists them."):argname("VERSION"):convert(to_version)
  end,
  run = function(ctx)
    local state = require "symphony.cluster.state"
    local fresh, err = state.read { stale = true }
    if not fresh then return nil, err end
    local p = require("symphony.policy.store").show(ctx.args.name, ctx.args.version)
    p.failures = require("symphony.policy.engine").failures()[p.name]
    p.stale = fresh.stale or nil
    stale.note(ctx, fresh)
    if ctx.args.source and not ctx.json then
      ctx.out(p.source)
      return p, { text = function() return "" end }
    end
    return p, { text = function() return show_text(p, require "symphony.cluster.values") end }
  end,
}

local rm = {
  name = "rm remove",
  summary = "Remove a policy",
  description = [[
Removes a policy. Its versions stay in its history; a policy that is set by the same name goes on from
there.

Example:
  symphony policy rm quota]],
  args = name_argument,
  run = function(ctx)
    local answer, err = require("symphony.cluster.leader").call("DELETE", path_of(ctx.args.name))
    if not answer then return nil, err end
    return answer, { text = function() return ("Policy %s is removed."):format(answer.name) end }
  end,
}

local enable = {
  name = "enable",
  summary = "Have a policy run again",
  description = [[
Enables a policy that was disabled, by somebody or because it failed ten times in a row. It has to load
and to pass its selftest.

Example:
  symphony policy enable quota]],
  args = name_argument,
  run = function(ctx)
    local answer, err = require("symphony.cluster.leader").call("POST", path_of(ctx.args.name, "/enable"), {})
    if not answer then return nil, err end
    return changed(answer, "is enabled")
  end,
}

local disable = {
  name = "disable",
  summary = "Have a policy not run any more",
  description = [[
Disables a policy: it stays, and has no word in anything.

Example:
  symphony policy disable quota --reason 'too strict']],
  args = function(parser)
    name_argument(parser)
    parser:option("--reason", "Why; `policy show` and the event say so."):argname("TEXT")
  end,
  run = function(ctx)
    local answer, err = require("symphony.cluster.leader").call("POST", path_of(ctx.args.name, "/disable"),
      { reason = ctx.args.reason })
    if not answer then return nil, err end
    return changed(answer, "is disabled")
  end,
}

local history = {
  name = "history",
  summary = "List the versions of a policy",
  description = [[
Lists the versions of a policy that are kept, the newest first: the present one and twenty before it.
Also of a policy that was removed.

Example:
  symphony policy history quota]],
  args = name_argument,
  run = function(ctx)
    local state, values = require "symphony.cluster.state", require "symphony.cluster.values"
    local fresh, err = state.read { stale = true }
    if not fresh then return nil, err end
    local rows = require("symphony.policy.store").history(ctx.args.name)
    stale.note(ctx, fresh)
    return rows, {
      columns = { "VERSION", "CURRENT", "SET (UTC)", "BY", "SHA256", "SUMMARY" },
      row = function(p)
        return { p.version, p.current or false, values.format_time(p.set_at), p.set_by, p.sha256:sub(1, 12), p.summary }
      end,
    }
  end,
}

local rollback = {
  name = "rollback",
  summary = "Go back to an earlier version of a policy",
  description = [[
Makes an earlier version of a policy (the one before the present one, or VERSION) the present one again,
under a new number. It has to load and to pass its selftest. A policy that was removed is there again.

Example:
  symphony policy rollback quota
  symphony policy rollback quota 3]],
  args = function(parser)
    name_argument(parser)
    parser:argument("version", "As `policy history` shows it."):args("?"):argname("VERSION"):convert(to_version)
  end,
  run = function(ctx)
    local answer, err = require("symphony.cluster.leader").call("POST", path_of(ctx.args.name, "/rollback"),
      { version = ctx.args.version })
    if not answer then return nil, err end
    return changed(answer, ("is as in version %d again"):format(answer.back_to))
  end,
}

local function case_line(case)
  local plain = require("symphony.cli.render").plain
  if case.ok then return ("ok    %s"):format(plain(case.name)) end
  return ("FAIL  %s: %s"):format(plain(case.name), plain(require("symphony.policy.cases").why_failed(case)))
end

-- What a test showed, in words; the exit status is 1 when a case fails.
local function test_text(answer, input)
  local json, plain = require "symphony.json", require("symphony.cli.render").plain
  if input then
    local case = answer.cases[1] or {}
    if case.error then return "it fails: " .. plain(case.error) end
    return case.got and plain(json.encode(case.got)) or "it has no opinion"
  end
  local lines, failed = {}, 0
  for i, case in ipairs(answer.cases) do
    lines[i] = case_line(case)
    failed = failed + (case.ok and 0 or 1)
  end
  if #answer.cases == 0 then return "It loads, and has no selftest." end
  lines[#lines + 1] = ("%d passed, %d failed"):format(#answer.cases - failed, failed)
  return table.concat(lines, "\n")
end

local test = {
  name = "test",
  summary = "Try a policy without setting it",
  description = [[
Loads the policy in FILE in the sandbox of this daemon and runs the selftest that it carries; with
--hook and --input it shows what that hook says to this input, reading from the state in --state (nothing
is there without it). JSON is given as it is, as @FILE, or - for standard input. Nothing is set. The exit
status is 1 when a case fails.

Example:
  symphony policy test quota.lua
  symphony policy test quota.lua --hook admit.change --input '{"kind": "kv", "key": "a", "new": "1"}']],
  where = "client",
  args = function(parser)
    parser:argument("file", "The policy's Lua."):argname("FILE")
    parser:option("--hook", "Ask this hook."):argname("HOOK")
    parser:option("--input", "With this input, a JSON object."):argname("JSON")
    parser:option("--state", "What the policy can read, a JSON object of keys and values."):argname("JSON")
  end,
  run = function(ctx)
    local args = ctx.args
    if (args.input == nil) ~= (args.hook == nil) then
      errors.raise("usage", "--hook and --input go together", "symphony help policy test shows how it is used")
    end
    local source, err = read_source(args.file)
    local body = { source = source, hook = args.hook }
    if not source then return nil, err end
    for _, name in ipairs { "input", "state" } do
      if args[name] then
        body[name], err = document(args[name])
        if not body[name] then return nil, err end
      end
    end
    local answer
    answer, err = ctx.call("POST", "/v1/policy/test", body)
    if not answer then return nil, err end
    for _, case in ipairs(answer.cases) do
      if not case.ok and not (args.input and not case.error) then ctx.status = 1 end
    end
    return answer, { text = function() return test_text(answer, args.input) end }
  end,
}

local function trace_text(answer)
  local plan, json, plain = require "symphony.cli.plan", require "symphony.json", require("symphony.cli.render").plain
  local lines = {}
  if #answer.policies == 0 then lines[1] = ("No enabled policy has a word at %s."):format(answer.hook) end
  for _, line in ipairs(plan.trace_lines(answer.policies)) do lines[#lines + 1] = line:sub(3) end
  if answer.allow == false then
    lines[#lines + 1] = ("refused: %s (%s)"):format(plain(answer.refuse), plain(answer.code))
  elseif answer.allow then
    lines[#lines + 1] = answer.approve and "approved" or "allowed"
  end
  for _, what in ipairs { "amended", "choose" } do -- commands are those of each policy, which are above
    if answer[what] then lines[#lines + 1] = ("%s: %s"):format(what, plain(json.encode(answer[what]))) end
  end
  return table.concat(lines, "\n")
end

local trace = {
  name = "trace",
  summary = "Show what the policies would say at a hook",
  description = [[
Asks the enabled policies on the leader what they say at HOOK to this input: which ran, in which order,
what each said and how long it took. JSON is given as it is, as @FILE, or - for standard input. Nothing is
changed.

Example:
  symphony policy trace admit.change --input '{"kind": "kv", "action": "put", "key": "a", "new": "1"}'
  symphony policy trace node.down --input @node.json]],
  where = "client",
  args = function(parser)
    parser:argument("hook", "admit.join, admit.change, place.KIND, node.down, ..."):argname("HOOK")
    parser:option("--input", "The input, a JSON object."):argname("JSON"):count(1)
    parser:option("--state", "Read from these keys and values (JSON) instead of the state."):argname("JSON")
  end,
  run = function(ctx)
    local body = { hook = ctx.args.hook }
    for _, name in ipairs { "input", "state" } do
      if ctx.args[name] then
        local doc, err = document(ctx.args[name])
        if not doc then return nil, err end
        body[name] = doc
      end
    end
    local answer, err = ctx.call("POST", "/v1/policy/trace", body)
    if not answer then return nil, err end
    return answer, { text = function() return trace_text(answer) end }
  end,
}

return {
  name = "policy",
  complete = { name = "policy", hook = { "admit.join", "admit.change", "node.down", "node.up", "leader.change" } },
  summary = "Policies: Lua that has a word in what the cluster decides",
  commands = { set, ls, show, rm, enable, disable, history, rollback, test, trace },
}
