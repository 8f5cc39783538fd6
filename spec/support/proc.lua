-- Processes, time and conditions for the specs, on luv's default loop. Everything that waits is bounded.
local files = require "spec.support.files"
local uv = require "luv"

local M = {}

-- A peer that is killed while we write to it must not end us: the write fails, that is all. (A handler, as a signal
-- that is ignored would be ignored by every program we start. It lasts as long as its handle.)
M.sigpipe = uv.new_signal()
M.sigpipe:start("sigpipe", function() end)
M.sigpipe:unref()

-- When a callback raises, luv ends the program at once: no summary, no folder removed, and of an error that is a table,
-- as luassert's are, it shows "(null)". Here such an error is kept instead, and raised by whatever waits next.
local raised, last_raised

local function kept(err)
  raised = raised or { type(err) == "string" and debug.traceback("in a callback: " .. err, 2) or err }
end

local function guard(callback)
  return function(...)
    local results = table.pack(xpcall(callback, kept, ...))
    if results[1] then return table.unpack(results, 2, results.n) end
  end
end

local function guard_all(functions)
  for name, call in pairs(functions) do
    if type(call) == "function" then
      functions[name] = function(...)
        local args = table.pack(...)
        for i = 1, args.n do
          if type(args[i]) == "function" then args[i] = guard(args[i]) end
        end
        return call(table.unpack(args, 1, args.n))
      end
    end
  end
end

guard_all(uv)
for _, class in ipairs { "uv_tcp", "uv_pipe", "uv_timer", "uv_signal", "uv_process" } do
  guard_all(debug.getregistry()[class].__index)
end

-- Raises what a callback has raised since this was last called.
function M.check_callbacks()
  if not raised then return end
  last_raised, raised = raised[1], nil
  error(last_raised, 0)
end

-- Seconds on a clock that only goes forward.
function M.now()
  return uv.hrtime() / 1e9
end

-- Runs the loop until done() is true or the seconds are over; returns done's last answer.
function M.pump(seconds, done)
  local deadline = M.now() + seconds
  local tick = uv.new_timer()
  tick:start(5, 5, function() end)
  local _ <close> = setmetatable({}, { __close = function()
    tick:close()
    uv.run("nowait") -- luv crashes at the end of the program if a handle is still closing then
  end })
  local answer = done()
  while not answer and not raised and M.now() < deadline do
    uv.run("once")
    answer = done()
  end
  M.check_callbacks()
  return answer
end

-- Lets the loop run for a while: for load to flow, never to wait for something.
function M.run_for(seconds)
  M.pump(seconds, function() return false end)
end

local function show(value)
  if type(value) ~= "table" then return tostring(value) end
  local parts = {}
  for k, v in pairs(value) do parts[#parts + 1] = tostring(k) .. "=" .. show(v) end
  table.sort(parts)
  return "{" .. table.concat(parts, ", ") .. "}"
end
M.show = show

-- Calls check() until its first result is true. A false one may be followed by what was seen, which the error tells.
-- An error inside check counts as "not yet", but one of a callback ends the waiting. Returns check's results.
function M.wait_for(what, seconds, check)
  local results, seen
  M.pump(seconds, function()
    results = table.pack(pcall(check))
    if results[1] and results[2] then return true end
    if not results[1] and results[2] == last_raised then error(last_raised, 0) end
    seen = results[1] and results[3] or results[2]
    M.run_for(0.03)
    return false
  end)
  if results[1] and results[2] then return table.unpack(results, 2, results.n) end
  error(("waited %.0f s for %s; last seen: %s"):format(seconds, what, show(seen)), 2)
end

local function environment(extra)
  local all = uv.os_environ()
  for k, v in pairs(extra or {}) do all[k] = v or nil end
  local list = {}
  for k, v in pairs(all) do list[#list + 1] = k .. "=" .. v end
  return list
end

local running = {} -- pid -> process

local process = {}
process.__index = process

-- Signals only a process that we started and that has not been reaped.
function process:kill(signal)
  if not self.code then uv.kill(self.pid, signal or "sigkill") end
end

-- Waits for the end; returns code, signal, or nil if it is still running.
function process:wait(seconds)
  M.pump(seconds or 10, function() return self.code end)
  return self.code, self.signal
end

local function start(argv, options)
  local self = setmetatable({ argv = argv }, process)
  local args = table.move(argv, 2, #argv, 1, {})
  local handle, pid
  handle, pid = uv.spawn(argv[1], {
    args = args, stdio = options.stdio, cwd = options.cwd, env = environment(options.env), uid = options.uid,
    gid = options.gid,
  }, function(code, signal)
    self.code, self.signal = code, signal
    running[pid] = nil
    handle:close()
  end)
  if not handle then
    uv.run("nowait") -- as in pump: luv is closing what would have been the handle
    error("cannot start " .. argv[1] .. ": " .. tostring(pid), 3)
  end
  self.pid = pid
  running[pid] = self
  return self
end

-- A long-running program whose output is appended to the file options.log. It dies with us, whatever ends us.
function M.spawn(argv, options)
  local fd = assert(uv.fs_open(options.log, "a", 420))
  local full = table.move(argv, 1, #argv, 4, { "setpriv", "--pdeathsig", "KILL" })
  local ok, self = pcall(start, full, {
    stdio = { nil, fd, fd }, cwd = options.cwd, env = options.env, uid = options.uid, gid = options.gid,
  })
  uv.fs_close(fd)
  if not ok then error(self, 2) end
  return self
end

-- Starts a program whose output is collected: {process, out, err, ended() -> bool}.
function M.begin(argv, options)
  options = options or {}
  local stdin, stdout, stderr = uv.new_pipe(false), uv.new_pipe(false), uv.new_pipe(false)
  local call = { out = "", err = "" }
  call.process = start(argv, {
    stdio = { stdin, stdout, stderr }, cwd = options.cwd, env = options.env, uid = options.uid, gid = options.gid,
  })
  local open = 2
  local function collect(pipe, name)
    pipe:read_start(function(_, data)
      if data then
        call[name] = call[name] .. data
      else
        open = open - 1
        pipe:close()
      end
    end)
  end
  collect(stdout, "out")
  collect(stderr, "err")
  if options.stdin then stdin:write(options.stdin) end
  if options.hold_stdin then call.stdin = stdin else stdin:shutdown(function() stdin:close() end) end
  function call.ended() return call.process.code and open == 0 end
  return call
end

-- Runs a program to its end: {code, signal, out, err, seconds}. At the timeout it is killed and .timed_out is set.
function M.run(argv, options)
  options = options or {}
  local began = M.now()
  local call = M.begin(argv, options)
  if not M.pump(options.timeout or 20, call.ended) then
    call.timed_out = true
    call.process:kill("sigkill")
    M.pump(5, call.ended)
  end
  call.code, call.signal = call.process.code, call.process.signal
  call.seconds = M.now() - began
  return call
end

-- Kills whatever is still running.
function M.kill_all()
  local left = {}
  for _, p in pairs(running) do
    left[#left + 1] = p
  end
  for _, p in ipairs(left) do p:kill("sigkill") end
  for _, p in ipairs(left) do p:wait(10) end
end

local handed_out = {}

-- Where ports are looked for: below the ephemeral range, so that no outgoing connection takes one meanwhile. Files of
-- specs that run side by side (scripts/test) each have a part of it.
local first, last = 12000, 31000
local slot = tonumber(os.getenv("SYMPHONY_SLOT"))
if slot then
  local width = (last - first) // 16
  first = first + slot % 16 * width
  last = first + width - 1
end

-- A port that nobody uses, neither by TCP nor by UDP.
function M.free_port()
  for _ = 1, 200 do
    local port = math.random(first, last)
    if not handed_out[port] and M.port_is_free(port) then
      handed_out[port] = true
      return port
    end
  end
  error("found no free port")
end

function M.port_is_free(port)
  local probe = uv.new_tcp()
  local free = probe:bind("0.0.0.0", port) and probe:listen(1, function() end)
  local udp = uv.new_udp()
  free = free and udp:bind("0.0.0.0", port)
  probe:close()
  udp:close()
  uv.run("nowait")
  return free and true or false
end

-- Bytes that have come to TCP port @port of this machine (IPv4) and were not read yet.
function M.unread(port)
  local sum = 0
  for line in assert(M.read_file("/proc/net/tcp")):gmatch("[^\n]+") do
    local at, waiting = line:match("^%s*%d+: %x+:(%x+) %x+:%x+ 01 %x+:(%x+)")
    if at and tonumber(at, 16) == port then sum = sum + tonumber(waiting, 16) end
  end
  return sum
end

function M.temp_folder()
  return assert(uv.fs_mkdtemp((os.getenv("TMPDIR") or "/tmp") .. "/symphony-spec-XXXXXX"))
end

function M.remove_tree(path)
  assert(path:find("symphony-spec-", 1, true), "not a folder of ours: " .. path)
  M.run({ "rm", "-rf", "--", path }, { timeout = 60 })
end

M.read_file, M.write_file = files.read, files.write

math.randomseed(uv.hrtime(), uv.os_getpid())

return M
