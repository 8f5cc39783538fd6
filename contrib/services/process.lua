-- The service `process`: keeps a program running on N workers that match labels. Put it into DIR/services/ of a
-- --lua-dir of the managers and of the workers that are to have it; docs/services.md has the details.
--
-- A program is a child of the daemon in a session of its own, with its output in a file that is kept short. It goes on
-- when the daemon ends or dies, and the next one takes it over: by pid, start time and boot, and, when the daemon died
-- before it could write those down, by SYMPHONY_PROCESS in its environment, which no other process has. Nothing is ever
-- sent to a process that is not known to be ours by one of these.
local uv = require "luv"
local async = require "symphony.async"
local commands = require "symphony.services.commands"
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local json = require "symphony.json"
local log = require "sym.log"
local sys = require "sym.sys"

local MARK = "SYMPHONY_PROCESS="
local PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
local LOOK_MS = 500                  -- how often programs that were taken over, and logs, are looked at
local BACKOFF_MS, BACKOFF_MAX_MS = 250, 30000
local STEADY_S = 10                  -- a program that ran so long begins anew with its backoff
local FAILED_AFTER = 3               -- ends in a row before it was running
local STOP_POLL_MS = 50
local TAIL_MAX = 64 * 1024           -- of a log, in one piece

-- The kernel's view --------------------------------------------------------------------------------------------------

local function read(path)
  local f = io.open(path, "r")
  if not f then return nil end
  local text = f:read("a")
  f:close()
  return text
end

local boot = (read("/proc/sys/kernel/random/boot_id") or ""):match("%S+")

-- {state, session, start (ticks since boot)} of process @pid; nil: there is none.
local function stat_of(pid)
  local text = read(("/proc/%d/stat"):format(pid))
  local rest = text and text:match("^.*%) (.*)$")
  if not rest then return nil end
  local fields = {}
  for word in rest:gmatch("%S+") do fields[#fields + 1] = word end
  return { state = fields[1], session = tonumber(fields[4]), start = fields[20] }
end

local function has_mark(pid, mark)
  local env = read(("/proc/%d/environ"):format(pid))
  return env ~= nil and ("\0" .. env):find("\0" .. MARK .. mark .. "\0", 1, true) ~= nil
end

-- The processes whose environment has the mark.
local function marked(mark)
  local list = {}
  local scan = uv.fs_scandir("/proc")
  while scan do
    local name = uv.fs_scandir_next(scan)
    if not name then break end
    local pid = name:match("^%d+$") and math.tointeger(tonumber(name))
    if pid and pid ~= sys.pid() and has_mark(pid, mark) then list[#list + 1] = pid end
  end
  return list
end

-- Is the program of @p, which has a pid, there, and the one that was started?
local function is_alive(p)
  if not p.pid or p.boot ~= boot then return false end
  local stat = stat_of(p.pid)
  return stat ~= nil and stat.state ~= "Z" and stat.state ~= "X" and stat.start == p.start
end

-- Records on the disk ------------------------------------------------------------------------------------------------

local function folder(ctx, id) return ctx.dir .. "/" .. id end

-- Not synced: after the machine went down there is no program to be known.
local function save(p)
  local path = p.dir .. "/record.json"
  local f, err = io.open(path .. ".new", "w")
  if not f then return nil, errors.new("io", err) end
  local ok, why = f:write(json.encode { uid = p.uid, generation = p.generation, spec = p.spec, pid = p.pid,
    start = p.start, boot = p.boot, mark = p.mark, restarts = p.restarts, began = p.began, over = p.over,
    last_end = p.last_end })
  f:close()
  if ok then ok, why = os.rename(path .. ".new", path) end
  if not ok then return nil, errors.new("io", why) end
  return true
end

local function load(ctx, id)
  local text = read(folder(ctx, id) .. "/record.json")
  local record = text and json.decode(text)
  if type(record) ~= "table" or type(record.uid) ~= "string" then return nil end
  return record
end

-- Programs -----------------------------------------------------------------------------------------------------------

local function programs(ctx)
  ctx.memory.programs = ctx.memory.programs or {}
  return ctx.memory.programs
end

local function later(ms, fn)
  return async.spawn(function()
    async.sleep(ms)
    fn()
  end)
end

local function clear_timer(p)
  if p.timer then p.timer:cancel() end
  p.timer = nil
end

-- The program has ended; @how in words, @code its exit status or nil. What follows is decided here, and done when the
-- resource is looked at.
local function on_end(p, how, code)
  local ran = p.began and sys.now() - p.began or 0
  p.child, p.pid, p.start, p.last_end, p.restarts = nil, nil, nil, how, (p.restarts or 0) + 1
  clear_timer(p)
  local restart = p.spec.restart
  if not p.stopping and (restart == "never" or (restart == "on-failure" and code == 0)) then
    p.state = code == 0 and "exited" or "failed"
    p.over = p.state -- also for the daemons to come
  end
  save(p)
  if p.stopping or p.over then return p.wake() end
  p.quick = p.state == "running" and 0 or (p.quick or 0) + 1
  p.ends = ran >= STEADY_S and 1 or (p.ends or 0) + 1
  p.state = p.quick >= FAILED_AFTER and "failed" or "backoff"
  local ms = math.min(BACKOFF_MAX_MS, BACKOFF_MS * 2 ^ math.min(p.ends - 1, 16)) * (0.75 + math.random() / 2)
  p.timer = later(ms, function()
    p.timer = nil
    p.due = true
    p.wake()
  end)
  p.wake()
end

-- It counts as running once it has been there for spec.ready_s.
local function await_running(p)
  p.state = (p.quick or 0) >= FAILED_AFTER and "failed" or "starting" -- until it has been running again
  local left = math.min(p.spec.ready_s, (p.began or 0) + p.spec.ready_s - sys.now())
  local function ready()
    p.timer = nil
    if p.pid then p.state = "running" end
    p.wake()
  end
  if left <= 0 then return ready() end
  p.timer = later(1000 * left, ready)
end

-- {uid, gid} of the user @name of this machine; nil, err.
local function user_of(name)
  local uid, gid = name:match("^(%d+):(%d+)$")
  for line in (read("/etc/passwd") or ""):gmatch("[^\n]+") do
    local user, u, g = line:match("^([^:]+):[^:]*:(%d+):(%d+):")
    if user == name then uid, gid = u, g end
  end
  if not uid then return nil, errors.new("not_found", ("this machine has no user \"%s\""):format(name)) end
  return { uid = math.tointeger(tonumber(uid)), gid = math.tointeger(tonumber(gid)) }
end

local function environment(ctx, p)
  local env = { PATH = PATH, SYMPHONY_NAME = p.id, SYMPHONY_NODE = ctx.node.name, SYMPHONY_NODE_ID = ctx.node.node_id,
    SYMPHONY_GENERATION = tostring(p.generation) }
  for name, value in pairs(p.spec.env or {}) do env[name] = value end
  local list = { MARK .. p.mark }
  for name, value in pairs(env) do list[#list + 1] = name .. "=" .. value end
  table.sort(list)
  return list
end

local function log_path(p) return p.dir .. "/log" end

-- Starts it. true; nil, err.
local function start(ctx, p)
  p.due, p.stopping = nil, nil
  p.mark, p.boot, p.began = crypto.hex(crypto.random(16)), boot, sys.now()
  local ok, err = save(p) -- with the mark: it is found by that if we die now
  if not ok then return nil, err end
  local who = {}
  if p.spec.user then
    who, err = user_of(p.spec.user)
    if not who then return nil, err end
  end
  local fd
  fd, err = uv.fs_open(log_path(p), "a", tonumber("600", 8))
  if not fd then return nil, errors.new("io", tostring(err)) end
  local args = table.move(p.spec.command, 2, #p.spec.command, 1, {})
  local child, pid
  child, pid = uv.spawn(p.spec.command[1], { args = args, env = environment(ctx, p), cwd = p.spec.cwd or "/",
    stdio = { nil, fd, fd }, detached = true, uid = who.uid, gid = who.gid }, function(code, signal)
    if p.child then p.child:close() end
    on_end(p, signal ~= 0 and ("killed by signal %d"):format(signal) or ("exit status %d"):format(code),
      signal == 0 and code or nil)
  end)
  uv.fs_close(fd)
  if not child then return nil, errors.new("io", ("cannot start %s: %s"):format(p.spec.command[1], tostring(pid))) end
  p.child, p.pid = child, pid
  p.start = (stat_of(pid) or {}).start
  save(p)
  await_running(p)
  return true
end

-- Sends @signal to the program and all in its session, if it is ours and there.
local function send(p, signal)
  if not is_alive(p) then return end
  uv.kill(-p.pid, signal) -- its group, which has its pid as long as it lives
  uv.kill(p.pid, signal)
end

-- Ends what the program has left behind, wherever that went.
local function sweep(p)
  if not p.mark then return end
  for _, pid in ipairs(marked(p.mark)) do
    if has_mark(pid, p.mark) then uv.kill(pid, "sigkill") end
  end
end

-- Ends it, with spec.grace_s to do so by itself. In a task.
local function stop(p)
  clear_timer(p)
  p.stopping = true
  send(p, "sigterm")
  local deadline = sys.mono_ms() + 1000 * (p.spec.grace_s or 10)
  local killed = false
  while is_alive(p) or p.child do
    if sys.mono_ms() >= deadline and not killed then
      send(p, "sigkill")
      killed = true
      deadline = sys.mono_ms() + 10000
    elseif sys.mono_ms() >= deadline then
      error(errors.new("busy", ("process %d does not end"):format(p.pid or 0)), 0)
    end
    async.sleep(STOP_POLL_MS)
  end
  sweep(p)
  p.pid, p.start, p.child, p.state = nil, nil, nil, "stopped"
end

-- What is kept of @id: from memory, or from the disk with the program taken over that still runs; nil.
local function find(ctx, id)
  local p = programs(ctx)[id]
  if p then return p end
  local record = load(ctx, id)
  if not record then return nil end
  p = { id = id, dir = folder(ctx, id), uid = record.uid, generation = record.generation, spec = record.spec,
    pid = record.pid, start = record.start, boot = record.boot, mark = record.mark, restarts = record.restarts,
    began = record.began, over = record.over, last_end = record.last_end, log_base = 0,
    wake = function() ctx.wake(id, "process") end }
  programs(ctx)[id] = p
  if not is_alive(p) and p.mark and p.boot == boot then
    p.pid, p.start = nil, nil
    for _, pid in ipairs(marked(p.mark)) do
      local stat = stat_of(pid)
      if stat and stat.session == pid then p.pid, p.start = pid, stat.start end
    end
  end
  if is_alive(p) then
    p.adopted = true
    log.info(("process %s: taken over as pid %d"):format(id, p.pid))
    await_running(p)
  else
    p.pid, p.start = nil, nil
    p.state, p.due = p.over, not p.over
  end
  return p
end

-- Logs ---------------------------------------------------------------------------------------------------------------

-- A log is two files: when the newer one has reached half of what is allowed, its end becomes the older one, and it is
-- emptied. The program writes at its end wherever that is. What it writes between the two steps is lost.
local function trim(p)
  local half = (p.spec.log_bytes or 0) // 2
  local stat = uv.fs_stat(log_path(p))
  if half == 0 or not stat or stat.size < half then return end
  local fd = uv.fs_open(log_path(p), "r+", tonumber("600", 8))
  if not fd then return end
  local text = uv.fs_read(fd, half, math.max(0, stat.size - half))
  local f = text and io.open(log_path(p) .. ".1.new", "w")
  if f and f:write(text) and f:close() then os.rename(log_path(p) .. ".1.new", log_path(p) .. ".1") end
  uv.fs_ftruncate(fd, 0)
  uv.fs_close(fd)
  p.log_base = (p.log_base or 0) + stat.size
end

-- What the log of @p holds from position @at on, at most @max bytes, and the position behind that.
local function tail(p, at, max)
  local base = p.log_base or 0
  if at < base then at = base end
  local fd = uv.fs_open(log_path(p), "r", 0)
  if not fd then return "", at end
  local text = uv.fs_read(fd, max, at - base) or ""
  uv.fs_close(fd)
  return text, at + #text
end

-- The last @lines of @text; nil: all of them.
local function last_lines(text, lines)
  if not lines then return text end
  local at, count = #text, 0
  if text:sub(-1) == "\n" then at = at - 1 end
  while at > 0 and count < lines do
    if text:byte(at) == 10 then count = count + 1 end
    if count < lines then at = at - 1 end
  end
  return text:sub(at + 1)
end

local function logs(ctx, body)
  local id, lines = body.id, body.lines
  if type(id) ~= "string" or not id:find("^%w[%w%._%-]*$") then errors.raise("invalid", "id is a name") end
  if lines ~= nil and (math.type(lines) ~= "integer" or lines < 0) then errors.raise("invalid", "lines is a number") end
  local p = find(ctx, id)
  if not p then errors.raise("not_found", ("there is no process %s on this node"):format(id)) end
  local old = read(log_path(p) .. ".1") or ""
  local at = p.log_base or 0
  local text
  text, at = tail(p, at, p.spec.log_bytes or TAIL_MAX)
  text = last_lines(old .. text, lines)
  ctx.write(text)
  while body.follow and programs(ctx)[id] do
    async.sleep(200)
    text, at = tail(p, at, TAIL_MAX)
    if text ~= "" then ctx.write(text) end
  end
  return true
end

-- Looks after programs that are not our children, and after logs.
local function look_after(ctx)
  if ctx.memory.task then return end
  ctx.memory.task = async.every(LOOK_MS, function()
    for _, p in pairs(programs(ctx)) do
      if p.adopted and p.pid and not is_alive(p) then
        p.adopted = nil
        on_end(p, "ended while the daemon was not its parent", nil)
      end
      trim(p)
    end
  end)
end

-- The service --------------------------------------------------------------------------------------------------------

local function status_of(p)
  local message
  if p.error then
    message = p.error
  elseif p.state == "backoff" or p.state == "failed" or p.state == "exited" then
    message = p.last_end
  end
  return { state = p.state or "starting", message = message,
    detail = { pid = p.pid, restarts = p.restarts or 0, last_end = p.last_end,
      started = p.pid and math.floor(p.began) or nil } }
end

local function begin(ctx, p)
  local ok, err = start(ctx, p)
  p.error = err and err.message
  if not ok then
    log.warn(("process %s: %s"):format(p.id, err.message))
    p.state = "starting"
    on_end(p, err.message, nil)
  end
end

local function remove(ctx, p)
  stop(p)
  programs(ctx)[p.id] = nil
  local ok, err = sys.remove_tree(p.dir)
  if not ok and err.code ~= "not_found" then error(err, 0) end
end

local function make(ctx, desired)
  local p = { id = desired.id, dir = folder(ctx, desired.id), uid = desired.uid, restarts = 0, log_base = 0, due = true,
    wake = function() ctx.wake(desired.id, "process") end }
  local ok, err = sys.mkdir(p.dir, tonumber("700", 8))
  if not ok and err.code ~= "exists" then error(err, 0) end
  programs(ctx)[desired.id] = p
  return p
end

local function reconcile(ctx, desired)
  look_after(ctx)
  local p = find(ctx, ctx.id)
  if p and (not desired or p.uid ~= desired.uid) then
    remove(ctx, p)
    p = nil
  end
  if not desired then return true end
  p = p or make(ctx, desired)
  if p.generation ~= desired.generation then
    if p.pid then
      ctx.report { state = "stopping" }
      stop(p)
    end
    clear_timer(p)
    p.generation, p.spec, p.over = desired.generation, desired.spec, nil
    p.quick, p.ends, p.restarts, p.last_end, p.error, p.due = 0, 0, 0, nil, nil, true
    begin(ctx, p)
  elseif not p.pid and p.due then
    begin(ctx, p)
  end
  return status_of(p)
end

local function actual(ctx)
  local out = {}
  for id in pairs(programs(ctx)) do out[id] = true end
  local scan = uv.fs_scandir(ctx.dir)
  while scan do
    local name = uv.fs_scandir_next(scan)
    if not name then break end
    if read(folder(ctx, name) .. "/record.json") then out[name] = true end
  end
  return out
end

local function leave(ctx)
  local fns = {}
  for id in pairs(actual(ctx)) do
    local p = find(ctx, id)
    if p then fns[#fns + 1] = function() return remove(ctx, p) or true end end
  end
  for _, done in ipairs(async.gather(fns)) do
    if not done.ok then log.error("process: " .. done.err.message) end
  end
end

local schema = {
  command = { type = "array", of = { type = "string", min = 1 }, min = 1, max = 64, required = true },
  env = { type = "map", of = { type = "string" }, keys = "^[%a_][%w_]*$", max = 64 },
  cwd = { type = "string", pattern = "^/" },
  user = { type = "string", pattern = "^[%w_][%w_%.%-:]*$", max = 64 },
  restart = { type = "string", one_of = { "always", "on-failure", "never" }, default = "always" },
  grace_s = { type = "integer", min = 0, max = 600, default = 10 },
  ready_s = { type = "number", min = 0, max = 300, default = 1 },
  log_bytes = { type = "integer", min = 4096, max = 64 << 20, default = 1 << 20 },
}

local function validate(spec)
  if spec.command[1]:sub(1, 1) ~= "/" then return nil, "the program is given with its whole path" end
  return true
end

-- Commands -----------------------------------------------------------------------------------------------------------

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
  if #args.label > 0 then body.constraints = assert(require("symphony.cluster.values").parse_labels(args.label)) end
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

-- Prints what arrives from a node; line by line behind @name when there are several; as JSON with the name of @node.
local function printer(ctx, name, node)
  local rest = ""
  return function(text)
    if ctx.json then return ctx.out(json.encode { node = node, text = json.clean(text) } .. "\n") end
    if not name then return ctx.out(text) end
    rest = rest .. text
    local whole, left = rest:match("^(.*\n)(.*)$")
    if not whole then return end
    rest = left
    ctx.out((whole:gsub("([^\n]*)\n", name .. " | %1\n")))
  end
end

local function fetch(ctx, row, body)
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
    local show = printer(ctx, #list > 1 and n.name or nil, n.name)
    fns[i] = function()
      local ok, err = ask.call(n.node_id, "process", "logs", body, { on_data = show })
      if not ok then ctx.err(("%s: %s\n"):format(n.name or n.node_id, err.message)) end
      return ok, err
    end
  end
  local failed
  for _, done in ipairs(async.gather(fns)) do failed = failed or not done.ok and done.err end
  if failed and #list == 1 then return nil, failed end
  if failed then ctx.status = 1 end
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
    local body = { id = ctx.args.name, follow = ctx.args.follow or nil, lines = ctx.args.lines }
    ctx.printed = true
    if require("symphony.cluster.identity").role() == "worker" then
      local here = require("symphony.services.worker").context(require("symphony.services.registry").get("process"))
      here.write = ctx.out
      return logs(here, body)
    end
    assert(require("symphony.cluster.state").read { stale = true })
    return fetch(ctx, require("symphony.services.resources").get("process", ctx.args.name), body)
  end,
}

return {
  kind = "process",
  summary = "Programs, kept running on workers",
  resources = { process = { schema = schema, summary = "A program on N workers" } },
  validate = validate,
  rollout = "rolling",
  move = "start-first",
  reconcile = reconcile,
  actual = actual,
  leave = leave,
  calls = { logs = logs },
  complete = { name = "process" },
  commands = { run, commands.ls("process"), commands.inspect("process"), update, scale, commands.rm("process"),
    logs_command },
}
