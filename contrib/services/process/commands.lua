-- What people type about programs: symphony process ...
local async = require "symphony.async"
local commands = require "symphony.services.commands"
local errors = require "symphony.errors"
local json = require "symphony.json"
local plain = require("symphony.cli.render").plain
local values = require "symphony.cluster.values"

local ANSWER_MS = 30000     -- who follows a log is answered every 20 s
local AGAIN_MS = 500        -- before the next question, when there was nothing new: a worker may not have waited for it
local LINE_MAX = 64 * 1024  -- a longer one is shown in parts

local function number(text)
  local n = math.tointeger(tonumber(text))
  if not n or n < 0 then return nil, ("'%s' is no whole number"):format(text) end
  return n
end

local function seconds(text)
  local n = tonumber(text)
  if not n or n < 0 then return nil, ("'%s' is no number of seconds"):format(text) end
  return math.tointeger(n) or n
end

local function spec_options(parser)
  parser:option("--env", "A variable of its environment; may be repeated."):argname("KEY=VALUE"):count("*")
  parser:option("--cwd", "The folder it runs in (default /)."):argname("DIR")
  parser:option("--user", "Run as this user of the worker (the daemon has to be root)."):argname("USER")
  parser:option("--restart", "When it ends: always (default), on-failure or never."):argname("WHEN")
    :choices { "always", "on-failure", "never" }
  parser:option("--grace", "How long it has to end on SIGTERM before SIGKILL (default 10)."):argname("S")
    :convert(number)
  parser:option("--ready", "It counts as running once it has run so long (default 1)."):argname("S"):convert(seconds)
  parser:option("--log-bytes", "How much of its output is kept on the worker (default 1 MiB).")
    :argname("N"):convert(number)
end

local function doc_options(parser)
  parser:option("--label", "Only on workers with this label; may be repeated."):argname("KEY=VALUE"):count("*")
  parser:option("--move", "Leaving a drained node: start-first (default) or stop-first."):argname("HOW")
    :choices { "start-first", "stop-first" }
  parser:option("--move-after", "A node that is down is not waited for longer than this (default 60)."):argname("S")
    :convert(number)
  parser:option("--rollout-timeout", "For each node to have a new version running (default 60)."):argname("S")
    :convert(number)
  commands.write_options(parser)
end

-- The spec that the options ask for.
local function spec_of(args)
  local spec = { cwd = args.cwd, user = args.user, restart = args.restart, grace_s = args.grace, ready_s = args.ready,
    log_bytes = args.log_bytes }
  if #args.command > 0 then spec.command = json.array(args.command) end
  if #args.env > 0 then
    spec.env = {}
    for _, text in ipairs(args.env) do
      local name, value = text:match("^([^=]+)=(.*)$")
      if not name then errors.raise("usage", ("--env %s is not of the form KEY=VALUE"):format(text)) end
      spec.env[name] = value
    end
  end
  return spec
end

local function body_of(args)
  local body = { replicas = args.replicas, move = args.move, move_after = args.move_after,
    rollout_s = args.rollout_timeout, spec = spec_of(args) }
  if #args.label > 0 then body.constraints = assert(values.parse_labels(args.label)) end
  return body
end

local run = {
  name = "run",
  summary = "Run a program on N workers",
  complete = { name = {}, command = "files" },
  description = [[
Has a program run, under supervision, on as many workers as --replicas says, that have the labels
asked for. It is given with its whole path; what follows -- is its command line.

Example:
  symphony process run web --replicas 3 --label zone=a -- /usr/bin/python3 -m http.server 8000]],
  args = function(parser)
    parser:argument("name", "What it is called."):argname("NAME")
    parser:argument("command", "The program and its arguments."):args("+"):argname("COMMAND")
    parser:option("--replicas", "On how many workers (default 1)."):argname("N"):convert(number)
    spec_options(parser)
    doc_options(parser)
  end,
  run = function(ctx)
    local body = body_of(ctx.args)
    body.id = ctx.args.name
    return commands.create(ctx, "process", body)
  end,
}

local update = {
  name = "update",
  summary = "Run another version, one node after the other",
  description = [[
Changes what is named of a program; --env adds to its environment, --env-rm takes from it. A new
version goes to one node after the other, each once it runs on the one before; when it fails there,
the others keep the one they have, until the next update.

Example:
  symphony process update web --env LEVEL=debug --wait
  symphony process update web -- /usr/bin/python3 -m http.server 8001]],
  args = function(parser)
    parser:argument("name", "Which."):argname("NAME")
    parser:argument("command", "The program and its arguments."):args("*"):argname("COMMAND")
    parser:option("--env-rm", "A variable to take away; may be repeated."):argname("VARIABLE"):count("*")
    spec_options(parser)
    doc_options(parser)
  end,
  run = function(ctx)
    local body = body_of(ctx.args)
    if body.spec.env or #ctx.args.env_rm > 0 then
      assert(require("symphony.cluster.state").read())
      local row = require("symphony.services.resources").get("process", ctx.args.name)
      local env = row.spec.env or {}
      for name, value in pairs(body.spec.env or {}) do env[name] = value end
      for _, name in ipairs(ctx.args.env_rm) do env[name] = nil end
      body.spec.env = next(env) and env or json.null
      body.generation = row.generation -- somebody else's change in between is not undone
    end
    return commands.update(ctx, "process", ctx.args.name, body)
  end,
}

local scale = {
  name = "scale",
  summary = "Run a program on more workers, or on fewer",
  description = [[
Changes on how many workers a program runs. Those where it runs already are not touched.

Example:
  symphony process scale web 5]],
  args = function(parser)
    parser:argument("name", "Which."):argname("NAME")
    parser:argument("replicas", "On how many workers."):argname("N"):convert(number)
    commands.write_options(parser)
  end,
  run = function(ctx)
    return commands.update(ctx, "process", ctx.args.name, { replicas = ctx.args.replicas })
  end,
}

-- Prints what arrives from a node: whole lines, behind @name, when there are several; as JSON with the name of @node.
-- show(text); show(nil) at the end.
local function printer(ctx, name, node)
  local rest = ""
  return function(text)
    if not text then
      if rest ~= "" then ctx.out(("%s | %s\n"):format(name, rest)) end
    elseif ctx.json then
      ctx.out(json.encode { node = node, text = json.clean(text) } .. "\n")
    elseif not name then
      ctx.out(text)
    else
      local whole, left = (rest .. text):match("^(.*\n)(.*)$")
      if not whole then whole, left = "", rest .. text end
      if #left > LINE_MAX then whole, left = whole .. left .. "\n", "" end
      rest = left
      if whole ~= "" then ctx.out((whole:gsub("([^\n]*)\n", name:gsub("%%", "%%%%") .. " | %1\n"))) end
    end
  end
end

-- What is wrong with @answer of the call "logs" to @body; nil: nothing. There is something new in each, but for who
-- follows.
local function flaw(body, answer)
  if type(answer) ~= "table" then return "the answer is no object" end
  if answer.over then return nil end
  if math.type(answer.at) ~= "integer" then return "the answer has no position" end
  if not body.follow and body.at and answer.at <= body.at then return "the log neither goes on nor ends" end
end

-- Asks for one piece of a log after the other, the next when the one before has been shown. ask(body): the call "logs".
-- true; nil, err.
local function read(ctx, body, node, ask, show)
  repeat
    local answer, err = ask(body)
    if answer == nil then return nil, err end
    local wrong = flaw(body, answer)
    if wrong then return nil, errors.new("protocol", ("%s: %s"):format(node, wrong)) end
    local text, damaged = values.get_bytes(answer, "text")
    if not text then return nil, damaged or errors.new("protocol", node .. ": the answer has no text") end
    if answer.gone then
      ctx.err(("%s: %s bytes were cut before they could be read\n"):format(node, plain(answer.gone)))
    end
    if text ~= "" then show(text) end
    body.at, body.stop, body.mark = answer.at, answer.stop, answer.mark
    if text == "" and not answer.over then async.sleep(AGAIN_MS) end
  until answer.over
  show(nil)
  return true
end

local function fetch(ctx, row, new_body)
  local list = {}
  for _, n in ipairs(row.nodes) do
    if not ctx.args.node or ctx.args.node == n.name or ctx.args.node == n.node_id then list[#list + 1] = n end
  end
  if #list == 0 then
    return nil, errors.new("not_found", ("process %s is on no such node"):format(row.id),
      ("`symphony process inspect %s` shows where it is"):format(row.id))
  end
  local ask, fns = require "symphony.services.ask", {}
  for i, n in ipairs(list) do
    local name = n.name or n.node_id
    fns[i] = function()
      local ok, err = read(ctx, new_body(), name, function(body)
        return ask.call(n.node_id, "process", "logs", body, { timeout_ms = ANSWER_MS })
      end, printer(ctx, #list > 1 and name or nil, n.name))
      if not ok and #list > 1 then ctx.err(plain(err.message) .. "\n") end -- which names the node
      return ok, err
    end
  end
  for _, done in ipairs(async.gather(fns)) do
    if not done.ok and #list == 1 then return nil, done.err end
    if not done.ok then ctx.status = 1 end
  end
  return true
end

local logs_command = {
  name = "logs",
  summary = "What a program has written",
  description = [[
Prints the last of what a program has written to its outputs, from the workers where it is; on a
worker's own socket that of this worker.

Example:
  symphony process logs web --lines 20
  symphony process logs web --follow --node worker-01]],
  args = function(parser)
    parser:argument("name", "Which."):argname("NAME")
    parser:flag("-f --follow", "Go on as it writes more.")
    parser:option("--lines", "Only the last so many."):argname("N"):convert(number)
    parser:option("--node", "Only of this node."):argname("NODE")
  end,
  run = function(ctx)
    local function new_body()
      return { id = ctx.args.name, follow = ctx.args.follow or nil, lines = ctx.args.lines }
    end
    ctx.printed = true
    if require("symphony.cluster.identity").role() == "worker" then
      local service = require("symphony.services.here").get("process")
      local here = require("symphony.services.worker").context(service)
      return read(ctx, new_body(), here.node.name or "here", function(body) return service.calls.logs(here, body) end,
        printer(ctx, nil, here.node.name))
    end
    assert(require("symphony.cluster.state").read { stale = true })
    return fetch(ctx, require("symphony.services.resources").get("process", ctx.args.name), new_body)
  end,
}

return { run, commands.ls("process"), commands.inspect("process", { times = { "started" } }), update, scale,
  commands.rm("process"), logs_command }
