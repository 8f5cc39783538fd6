-- The service `process`: keeps a program running on N workers that match labels. Put it and the folder process beside
-- it into DIR/services/ of a --lua-dir of the managers and of the workers that are to have it; docs/services.md has the
-- details. A program is in process/program.lua, what it writes in process/log.lua, and what people type in
-- process/commands.lua.
local uv = require "luv"
local async = require "symphony.async"
local errors = require "symphony.errors"
local log = require "sym.log"
local program = require "services.process.program"
local sys = require "sym.sys"
local values = require "symphony.cluster.values"

local LOOK_MS = 500    -- how often programs that were taken over, and logs, are looked at
local HASTE_MS = 50    -- and logs, while one is far beyond what is allowed
local WAIT_MS = 20000  -- who follows a log is answered at least so often
local GATHER_MS = 100  -- and not more often than that

local function folder(ctx, id) return ctx.dir .. "/" .. id end

local function programs(ctx)
  ctx.memory.programs = ctx.memory.programs or {}
  return ctx.memory.programs
end

local function waker(ctx, id)
  return function() ctx.wake(id, "process") end
end

-- What is kept of @id, in memory or on the disk; nil.
local function find(ctx, id)
  local list = programs(ctx)
  list[id] = list[id] or program.load(id, folder(ctx, id), waker(ctx, id))
  return list[id]
end

-- Cuts the logs. The milliseconds until they are to be looked at again.
local function trim_all(list)
  local all, hasty = {}, false
  for _, p in pairs(list) do all[#all + 1] = p end -- they come and go meanwhile
  for _, p in ipairs(all) do
    local max = (p.spec or {}).log_bytes or math.huge
    hasty = hasty or p.log:size() > 4 * max
    local ok, err = p.log:trim(max)
    if not ok and p.log_error ~= err.message then
      log.warn(("process %s: the end of its log is lost: %s"):format(p.id, err.message))
    end
    p.log_error = err and err.message
  end
  return hasty and HASTE_MS or LOOK_MS
end

local looks = {
  programs = function(list)
    for _, p in pairs(list) do p:look() end
    return LOOK_MS
  end,
  logs = trim_all,
}

-- Looks after programs that are not our children, and after logs: by the version of this module that was loaded last.
local function look_after(ctx)
  local memory, list = ctx.memory, programs(ctx)
  if memory.looks == looks then return end
  local begun = memory.looks ~= nil
  memory.looks = looks
  if begun then return end
  for name in pairs(looks) do
    async.spawn(function()
      while true do
        local ok, ms = xpcall(memory.looks[name], errors.handler, list)
        if not ok then log.error("process: " .. (ms.traceback or ms.message)) end
        async.sleep(ok and ms or LOOK_MS)
      end
    end)
  end
end

-- Reconciling --------------------------------------------------------------------------------------------------------

local function remove(ctx, p)
  p:remove()
  programs(ctx)[p.id] = nil
end

local function reconcile(ctx, desired)
  look_after(ctx)
  local p = find(ctx, ctx.id)
  if p and (not desired or p.uid ~= desired.uid) then
    remove(ctx, p)
    p = nil
  end
  if not desired then
    return sys.remove_tree(folder(ctx, ctx.id)) -- of one whose record cannot be read
  end
  if not p then
    p = program.make(ctx.id, desired.uid, folder(ctx, ctx.id), waker(ctx, ctx.id))
    programs(ctx)[ctx.id] = p
  end
  if p.generation ~= desired.generation then
    if p.pid then
      ctx.report { state = "stopping" }
      p:stop()
    end
    p:become(desired)
  end
  if p.due and not p.pid then p:begin(ctx) end
  return p:status()
end

local function actual(ctx)
  local out = {}
  for id in pairs(programs(ctx)) do out[id] = true end
  local scan = uv.fs_scandir(ctx.dir)
  while scan do
    local name = uv.fs_scandir_next(scan)
    if not name then break end
    out[name] = out[name] or program.found(folder(ctx, name)) and true or nil
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

-- Logs ---------------------------------------------------------------------------------------------------------------

local function position(body, name)
  local v = body[name]
  if v ~= nil and (math.type(v) ~= "integer" or v < 0) then errors.raise("invalid", name .. " is a whole number") end
  return v
end

-- A piece of the log of program body.id: from body.at on, else the last body.lines, else all. At most up to body.stop,
-- but with body.follow to its end, for which it waits a while. Returns {text (or text_base64), at and stop and mark:
-- for the next piece, over: there is none, gone: bytes before this one that are not kept any more}.
local function logs(ctx, body)
  if type(body.id) ~= "string" or not body.id:find("^%w[%w%._%-]*$") then errors.raise("invalid", "id is a name") end
  local lines, at, last = position(body, "lines"), position(body, "at"), position(body, "stop")
  local p = find(ctx, body.id)
  if not p then errors.raise("not_found", ("there is no process %s on this node"):format(body.id)) end
  local stop, is_new = p.log:stop(), at ~= nil and body.mark ~= p.log.mark
  if is_new then
    at = stop -- the daemon has counted anew since
  elseif not at then
    at = lines and p.log:last(lines, stop) or p.log.first
  end
  if not body.follow then
    stop = math.min(stop, last and not is_new and last or stop)
  elseif at >= stop and p.log:wait(at, WAIT_MS) then
    async.sleep(GATHER_MS)
    stop = p.log:stop()
  end
  local text, gone = "", 0
  if at < stop then
    text, at, gone = p.log:piece(at, stop)
    if text == "" and body.follow then async.sleep(LOOK_MS) end -- it cannot be read now: who asks again has to wait
  end
  local over = text == "" and (not body.follow or p.log.closed) or (not body.follow and at >= stop)
  return values.put_bytes({ at = at, stop = stop, mark = p.log.mark, over = over or nil,
    gone = gone > 0 and gone or nil }, "text", text)
end

local schema = {
  command = { type = "array", of = { type = "string" }, min = 1, max = 64, required = true },
  env = { type = "map", of = { type = "string" }, keys = "^[%a_][%w_]*$", max = 64 },
  cwd = { type = "string", pattern = "^/" },
  user = { type = "string", pattern = "^[%w_][%w_%.%-:]*$", max = 64 },
  restart = { type = "string", one_of = { "always", "on-failure", "never" }, default = "always" },
  grace_s = { type = "integer", min = 0, max = 240, default = 10 },
  ready_s = { type = "number", min = 0, max = 300, default = 1 },
  log_bytes = { type = "integer", min = 4096, max = 64 << 20, default = 1 << 20 },
}

local function validate(spec)
  if spec.command[1]:sub(1, 1) ~= "/" then return nil, "the program is given with its whole path" end
  if (spec.env or {}).SYMPHONY_PROCESS then
    return nil, "SYMPHONY_PROCESS is what a program is known by, and cannot be set"
  end
  return true
end

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
  commands = require "services.process.commands",
}
