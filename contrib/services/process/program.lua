-- A program of the service process: how it is started, ended, taken over and remembered.
--
-- It is a child of the daemon in a session of its own. It goes on when the daemon ends or dies, and the next one takes
-- it over: by pid, start time and boot, and, when the daemon died before it could write those down, by SYMPHONY_PROCESS
-- in its environment, which no other process has. Nothing is ever sent to a process that is not known to be ours by one
-- of these. What it has left behind when it ends goes before it is started again.
local uv = require "luv"
local async = require "symphony.async"
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local json = require "symphony.json"
local log = require "sym.log"
local output = require "services.process.log"
local sys = require "sym.sys"

local M = {}
M.__index = M

local MARK = "SYMPHONY_PROCESS="
local PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
local BACKOFF_MS, BACKOFF_MAX_MS = 250, 30000
local STEADY_S = 10                  -- a program that ran so long begins anew with its backoff
local FAILED_AFTER = 3               -- ends in a row before it was running
local STOP_LOOK_MS = 50              -- how often one that is not our child is looked at while it is to end
local KILLED_MS = 10000              -- for one to be gone behind SIGKILL
local TURN = 64                      -- processes that are looked at without a turn for others

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

-- The processes whose environment has the mark. @pause(), if given, is called now and then.
local function marked(mark, pause)
  local list, seen = {}, 0
  local scan = uv.fs_scandir("/proc")
  while scan do
    local name = uv.fs_scandir_next(scan)
    if not name then break end
    local pid = name:match("^%d+$") and math.tointeger(tonumber(name))
    if pid and pid ~= sys.pid() and has_mark(pid, mark) then list[#list + 1] = pid end
    seen = seen + 1
    if pause and seen % TURN == 0 then pause() end
  end
  return list
end

--- Is it there, and the one that was started?
function M.is_alive(p)
  if not p.pid or p.boot ~= boot then return false end
  local stat = stat_of(p.pid)
  return stat ~= nil and stat.state ~= "Z" and stat.state ~= "X" and stat.start == p.start
end

-- Records on the disk ------------------------------------------------------------------------------------------------

-- Not synced: after the machine went down there is no program to be known. The one of before stays when it fails.
local function save(p)
  local path = p.dir .. "/record.json"
  local f, err = io.open(path .. ".new", "w")
  if f then
    local ok, why = f:write(json.encode { uid = p.uid, generation = p.generation, spec = p.spec, pid = p.pid,
      start = p.start, boot = p.boot, mark = p.mark, restarts = p.restarts, began = p.began, over = p.over,
      ended = p.ended, last_end = p.last_end })
    local closed, lost = f:close() -- where a disk is full, that is known here
    err = not ok and why or not closed and lost or nil
    if not err then err = select(2, os.rename(path .. ".new", path)) end
  end
  if not err then return true end
  os.remove(path .. ".new")
  log.warn(("process %s: what it does cannot be written down: %s"):format(p.id, err))
  return nil, errors.new("io", err)
end

--- What there is of a program in the folder @dir: true; "broken"; nil.
function M.found(dir)
  local text = read(dir .. "/record.json")
  local record = text and json.decode(text)
  if type(record) == "table" and type(record.uid) == "string" then return true, record end
  return text and "broken" or nil
end

-- Running ------------------------------------------------------------------------------------------------------------

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

--- It has ended, or could not be started; @how in words, @code: its exit status, or nil. What follows is decided here,
--- and done when the resource is looked at.
function M:on_end(how, code)
  local p = self
  local ran = p.began and sys.now() - p.began or 0
  p.child, p.pid, p.start, p.adopted, p.ended, p.last_end = nil, nil, nil, nil, true, how
  p.restarts = (p.restarts or 0) + 1
  p.gone:set()
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

-- Ends what the program has left behind, wherever that went. In a task.
local function sweep(p)
  if not p.mark or p.boot ~= boot then return end
  for _, pid in ipairs(marked(p.mark, function() async.sleep(0) end)) do
    if has_mark(pid, p.mark) then uv.kill(pid, "sigkill") end
  end
end

-- true; nil, err.
local function start(ctx, p)
  sweep(p)
  if p.stopping or p.log.closed then return true end -- meanwhile
  p.mark, p.boot, p.began, p.ended = crypto.hex(crypto.random(16)), boot, sys.now(), nil
  local ok, err = save(p) -- with the mark: it is found by that if we die now
  if not ok then return nil, err end
  local who = {}
  if p.spec.user then
    who, err = user_of(p.spec.user)
    if not who then return nil, err end
  end
  local fd
  fd, err = uv.fs_open(p.log.path, "a", tonumber("600", 8))
  if not fd then return nil, errors.new("io", tostring(err)) end
  local args = table.move(p.spec.command, 2, #p.spec.command, 1, {})
  local child, pid
  child, pid = uv.spawn(p.spec.command[1], { args = args, env = environment(ctx, p), cwd = p.spec.cwd or "/",
    stdio = { nil, fd, fd }, detached = true, uid = who.uid, gid = who.gid }, function(code, signal)
    if p.child then p.child:close() end
    p:on_end(signal ~= 0 and ("killed by signal %d"):format(signal) or ("exit status %d"):format(code),
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

--- Starts it, when what it may have left behind is gone. What fails is told as its end. In a task.
function M:begin(ctx)
  if self.log.closed then return end -- it is being taken away
  self.due, self.stopping = nil, nil
  local ok, err = start(ctx, self)
  self.error = err and err.message
  if ok then return end
  log.warn(("process %s: %s"):format(self.id, err.message))
  self.state = "starting"
  self:on_end(err.message, nil)
end

-- Sends @signal to the program and all in its session, if it is ours and there.
local function send(p, signal)
  if not p:is_alive() then return end
  uv.kill(-p.pid, signal) -- its group, which has its pid as long as it lives
  uv.kill(p.pid, signal)
end

--- Ends it, with spec.grace_s to do so by itself, and all that it has left behind. In a task.
function M:stop()
  clear_timer(self)
  self.stopping = true
  send(self, "sigterm")
  local deadline, killed = sys.mono_ms() + 1000 * (self.spec.grace_s or 10), false
  while self:is_alive() or self.child do
    local left = deadline - sys.mono_ms()
    if left > 0 then
      self.gone:wait(self.child and left or math.min(left, STOP_LOOK_MS))
    elseif not killed then
      send(self, "sigkill")
      deadline, killed = sys.mono_ms() + KILLED_MS, true
    else
      error(errors.new("busy", ("process %d does not end"):format(self.pid or 0)), 0)
    end
  end
  sweep(self)
  self.pid, self.start, self.child, self.state = nil, nil, nil, "stopped"
end

--- It is @desired from now on, and has yet to be started. It must not run.
function M:become(desired)
  clear_timer(self)
  self.generation, self.spec, self.over = desired.generation, desired.spec, nil
  self.quick, self.ends, self.restarts, self.last_end, self.error, self.due = 0, 0, 0, nil, nil, true
end

--- Ends it, and takes its folder away. In a task.
function M:remove()
  self:stop()
  self.log:close()
  local ok, err = sys.remove_tree(self.dir)
  if not ok and err.code ~= "not_found" then error(err, 0) end
end

local function new(id, dir, wake)
  return setmetatable({ id = id, dir = dir, wake = wake, log = output.new(dir), gone = async.event() }, M)
end

--- A new one, for the resource @id with @uid, in the folder @dir; wake() has it looked at. Raises.
function M.make(id, uid, dir, wake)
  local ok, err = sys.mkdir(dir, tonumber("700", 8))
  if not ok and err.code ~= "exists" then error(err, 0) end
  local p = new(id, dir, wake)
  p.uid, p.restarts, p.due = uid, 0, true
  return p
end

-- Nobody has written down which process it is: the first of those with its mark that has a session of its own.
local function look_for(p)
  local first
  for _, pid in ipairs(marked(p.mark)) do
    local stat = stat_of(pid)
    if stat and stat.session == pid and (not first or tonumber(stat.start) < tonumber(first)) then
      p.pid, p.start, first = pid, stat.start, stat.start
    end
  end
end

--- What is kept in the folder @dir, with the program taken over if it still runs; nil.
function M.load(id, dir, wake)
  local _, record = M.found(dir)
  if not record then return nil end
  local p = new(id, dir, wake)
  for _, name in ipairs { "uid", "generation", "spec", "pid", "start", "boot", "mark", "restarts", "began", "over",
    "ended", "last_end" } do p[name] = record[name] end
  if not p.pid and not p.ended and p.mark and p.boot == boot then look_for(p) end
  if p:is_alive() then
    p.adopted = true
    log.info(("process %s: taken over as pid %d"):format(id, p.pid))
    await_running(p)
  else
    p.pid, p.start = nil, nil
    p.state, p.due = p.over, not p.over
  end
  return p
end

--- Looks whether one that is not our child has ended.
function M:look()
  if self.adopted and self.pid and not self:is_alive() then
    self:on_end("ended while the daemon was not its parent", nil)
  end
end

--- As reconcile returns it.
function M:status()
  local message = self.error
  if not message and (self.state == "backoff" or self.state == "failed" or self.state == "exited") then
    message = self.last_end
  end
  return { state = self.state or "starting", message = message,
    detail = { pid = self.pid, restarts = self.restarts or 0, last_end = self.last_end,
      started = self.pid and math.floor(self.began) or nil } }
end

return M
