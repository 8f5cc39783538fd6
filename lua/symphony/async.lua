--- Tasks: coroutines that wait by yielding. Everything runs on the loop thread; a task runs until it waits or ends, and
--- only await, and what is built on it here, waits.
---
--- Cancelling: the wait that a cancelled task is in, and every later one, raises an error with the code "canceled", so
--- that it ends without being asked. What must be given back then belongs in a to-be-closed variable.
local uv = require "luv"
local log = require "sym.log"
local sys = require "sym.sys"
local errors = require "symphony.errors"

local M = {}

local Task = {}
Task.__index = Task

local CANCEL = {}

local current -- the task that is running
local queue, first, last = {}, 1, 0
local draining = false
local n_started, n_ended, n_failed = 0, 0, 0 -- tasks

local function drain()
  while first <= last do
    local entry = queue[first]
    queue[first] = nil
    first = first + 1
    current = entry.task
    local ok, err = sys.resume(entry.task.co, table.unpack(entry, 1, entry.n))
    current = nil
    if not ok then
      log.error("task: " .. tostring(err))
    end
  end
  first, last = 1, 0
end

-- Tasks are resumed one after the other, never one inside another: neither the C stack nor a caller's invariants
-- suffer from whom an event happens to wake.
local function resume(task, ...)
  local entry = table.pack(...)
  entry.task = task
  last = last + 1
  queue[last] = entry
  if not draining then
    draining = true
    local ok, err = pcall(drain)
    draining = false
    if not ok then
      error(err, 0)
    end
  end
end

local function check(level)
  if not current or current.co ~= coroutine.running() then
    error("only a task may wait", level + 1)
  end
  if current.canceled then
    errors.raise("canceled", "the task was canceled")
  end
  return current
end

local function cancel_handle(handle)
  local kind = type(handle)
  if kind == "table" or kind == "userdata" then
    pcall(function()
      handle:cancel()
    end)
  end
end

-- One wait: @start(done) begins it and may return something with :cancel(); done(...) ends it, at once or later, and
-- only its first call counts. Returns what done was given, packed.
local function wait(start)
  local task = check(3)
  local waiting, results = true, nil
  local yielded = false
  local handle, err = start(function(...)
    if not waiting then
      return
    end
    waiting = false
    if yielded then
      resume(task, ...)
    else
      results = table.pack(...)
    end
  end)
  if not waiting then
    return results
  end
  if handle == nil and err ~= nil then
    waiting = false
    return { n = 1, errors.from(err, "io") }
  end
  yielded = true
  task.interrupt = function()
    if waiting then
      waiting = false
      cancel_handle(handle)
      resume(task, CANCEL)
    end
  end
  results = table.pack(coroutine.yield())
  task.interrupt = nil
  if results[1] == CANCEL then
    check(1)
  end
  return results
end

-- What a callback was given, cb(err, ...), as Lua returns it.
local function outcome(results)
  if results[1] ~= nil then
    return nil, errors.from(results[1], "io")
  elseif results.n <= 1 then
    return true
  end
  return table.unpack(results, 2, results.n)
end

--- Calls fn(..., cb) and waits for cb(err, ...). Returns what follows err (true if nothing does), or nil, err. The
--- callback may come before fn returns. A function that returns nil, err has failed and needs no callback. If fn
--- returns something with :cancel(), that is called when the task is canceled meanwhile.
function M.await(fn, ...)
  local args = table.pack(...)
  return outcome(wait(function(done)
    args[args.n + 1] = done
    return fn(table.unpack(args, 1, args.n + 1))
  end))
end

local function finish(task, ok, ...)
  task.done = true
  n_ended = n_ended + 1
  if ok then
    task.results = table.pack(...)
  else
    task.err = ...
    if not task.watched and not task.canceled then
      n_failed = n_failed + 1
      log.error("task: " .. (task.err.traceback or tostring(task.err)))
    end
  end
  local watchers = task.watchers
  task.watchers = nil
  for _, fn in ipairs(watchers or {}) do
    fn()
  end
end

local function body(task, fn, ...)
  if task.canceled then
    finish(task, false, errors.new("canceled", "the task was canceled"))
  else
    finish(task, xpcall(fn, errors.handler, ...))
  end
end

local function start(watched, fn, ...)
  n_started = n_started + 1
  local task = setmetatable({ co = coroutine.create(body), watched = watched,
    bound = watched and current and current.bound or nil }, Task)
  resume(task, task, fn, ...)
  return task
end

--- Runs fn(...) as a task. Inside a task it begins when the running one waits, else at once. An error that nobody
--- waits for is logged.
function M.spawn(fn, ...)
  return start(false, fn, ...)
end

--- {started, alive, failed}: how many tasks there have been, have not ended, and ended with an error that was logged.
function M.stats()
  return { started = n_started, alive = n_started - n_ended, failed = n_failed }
end

--- The running task, nil outside of tasks.
function M.current()
  return current and current.co == coroutine.running() and current or nil
end

--- Keeps @value with the running task, and with those that with_timeout and gather begin for it from now on.
function M.bind(value)
  current.bound = value
end

--- What bind() has kept with the running task; nil.
function M.bound()
  return current and current.bound
end

--- Cancels the task, wherever it waits; see the top. Nothing if it has ended.
function Task:cancel()
  if not self.done and not self.canceled then
    self.canceled = true
    if self.interrupt then
      self.interrupt()
    end
  end
end

local function on_done(task, fn)
  if task.done then
    return fn()
  end
  task.watchers = task.watchers or {}
  table.insert(task.watchers, fn)
end

--- Waits for the task's end: its results, or nil, err if it failed or was canceled.
function Task:wait()
  self.watched = true
  wait(function(done)
    on_done(self, done)
  end)
  if self.err then
    return nil, self.err
  end
  return table.unpack(self.results, 1, self.results.n)
end

-- Calls fn once, after @ms, unless canceled before. With 0 the loop looks at everything else before: a timer would not
-- do, one that a timer's callback starts may end in the same turn.
local function timer(ms, fn)
  local now = ms <= 0
  local t, err = (now and uv.new_idle or uv.new_timer)()
  if not t then
    return nil, err
  end
  local handle = {}
  function handle:cancel()
    if t then
      t:close()
      t = nil
    end
  end
  local function fire()
    handle:cancel()
    fn()
  end
  if now then
    t:start(fire)
  else
    t:start(math.ceil(ms), 0, fire)
  end
  return handle
end

--- Waits @ms milliseconds; 0 lets the loop go round once.
function M.sleep(ms)
  return outcome(wait(function(done)
    return timer(ms, done)
  end))
end

local Event = {}
Event.__index = Event

--- Something to wait for: set() wakes those who wait; if nobody does, the next wait() returns at once.
function M.event()
  return setmetatable({ waiters = {} }, Event)
end

--- Wakes those who wait.
function Event:set()
  local waiters = self.waiters
  if not next(waiters) then
    self.flag = true
    return
  end
  self.waiters = {}
  for _, waiter in ipairs(waiters) do
    waiter()
  end
end

--- true, or nil, err ("timeout") after @timeout_ms (nil: never).
function Event:wait(timeout_ms)
  if self.flag then
    check(2)
    self.flag = false
    return true
  end
  return outcome(wait(function(done)
    local clock
    local handle = {}
    local function woken()
      handle:cancel()
      done()
    end
    function handle.cancel()
      if clock then
        clock:cancel()
      end
      for i, waiter in ipairs(self.waiters) do
        if waiter == woken then
          table.remove(self.waiters, i)
          break
        end
      end
    end
    table.insert(self.waiters, woken)
    if timeout_ms then
      local err
      clock, err = timer(timeout_ms, function()
        handle:cancel()
        done(errors.new("timeout", ("waited for %g s in vain"):format(timeout_ms / 1000)))
      end)
      if not clock then
        handle:cancel()
        return nil, err
      end
    end
    return handle
  end))
end

local Mutex = {}
Mutex.__index = Mutex

--- For what one task at a time may be in.
function M.mutex()
  return setmetatable({ queue = {}, first = 1, last = 0 }, Mutex)
end

-- To the first that still waits: thousands that wait cost no more for being many.
local function pass_on(self)
  while self.first <= self.last do
    local waiter = self.queue[self.first]
    self.queue[self.first] = nil
    self.first = self.first + 1
    if waiter.enter then
      return waiter.enter()
    end
  end
  self.first, self.last, self.held = 1, 0, false
end

--- Waits for its turn; who came first has it first. Returns a lock, to be kept in a to-be-closed variable, which gives
--- it back however the task leaves; or nil, err ("timeout") after @timeout_ms (nil: never).
function Mutex:lock(timeout_ms)
  local lock = setmetatable({}, {
    __close = function()
      pass_on(self)
    end,
  })
  if not self.held then
    self.held = true
    return lock
  end
  local ok, err = M.await(function(done)
    local waiter, clock = {}, nil
    function waiter.cancel()
      waiter.enter = nil
      if clock then
        clock:cancel()
      end
    end
    function waiter.enter()
      waiter.cancel()
      done()
    end
    if timeout_ms then
      local failed
      clock, failed = timer(timeout_ms, function()
        waiter.cancel()
        done(errors.new("timeout", ("waited for %g s in vain"):format(timeout_ms / 1000)))
      end)
      if not clock then
        return nil, failed
      end
    end
    self.last = self.last + 1
    self.queue[self.last] = waiter
    return waiter
  end)
  if not ok then
    return nil, err
  end
  return lock
end

--- fn(...)'s results, or nil, err ("timeout") once @ms have gone by: it is canceled then. What it raises is raised
--- here. Without @ms there is no limit.
function M.with_timeout(ms, fn, ...)
  if not ms then
    return fn(...)
  end
  local task = start(true, fn, ...)
  local results = wait(function(done)
    local clock, err = timer(ms, function()
      done(nil, "late")
    end)
    if not clock then
      task:cancel()
      return nil, err
    end
    on_done(task, function()
      clock:cancel()
      done(nil)
    end)
    return {
      cancel = function()
        clock:cancel()
        task:cancel()
      end,
    }
  end)
  if not task.done then
    task:cancel()
    return nil, results[1] or errors.new("timeout", ("not done within %g s"):format(ms / 1000))
  end
  if task.err then
    error(task.err, 0)
  end
  return table.unpack(task.results, 1, task.results.n)
end

--- Runs all functions of the list at once and waits for all of them: a list, in their order, of {ok = true, results =
--- {n =, ...}} or, where one raised or returned nil, err, {ok = false, err = err}.
function M.gather(fns)
  local tasks = {}
  for i, fn in ipairs(fns) do
    tasks[i] = start(true, fn)
  end
  local _ <close> = setmetatable({}, {
    __close = function()
      for _, task in ipairs(tasks) do
        task:cancel()
      end
    end,
  })
  local list = {}
  for i, task in ipairs(tasks) do
    task:wait()
    local results = task.results
    local err = task.err or (results[1] == nil and results[2]) or nil
    list[i] = err and { ok = false, err = errors.from(err) } or { ok = true, results = results }
  end
  return list
end

--- Runs fn() every @ms milliseconds, counted from its end: it never overlaps itself. An error is logged and does not
--- end it; handle:stop() does, also in the middle of fn.
function M.every(ms, fn)
  local task
  task = start(false, function()
    while true do
      M.sleep(ms)
      local ok, err = xpcall(fn, errors.handler)
      if not ok and not task.canceled then
        log.error("every: " .. (err.traceback or tostring(err)))
      end
    end
  end)
  return {
    stop = function()
      task:cancel()
    end,
  }
end

return M
