-- How the code at a prompt calls what is the daemon's: plainly, without the guard, and from coroutines of its own too.
local async = require "symphony.async"
local errors = require "symphony.errors"
local sys = require "sym.sys"

local M = {}

--- Raises what a function returned as nil, err: at a prompt an error should be seen, not lost.
function M.must(...)
  local v, err = ...
  if v == nil and err ~= nil then
    error(errors.from(err), 0)
  end
  return ...
end

-- What a coroutine of the code's own yields when it calls something that may wait: the one that resumes it does it.
local CALL = {}

local function answer(ok, ...)
  if not ok then error((...), 0) end
  return ...
end

--- fn(...), which may wait, without the guard: it is the daemon's, and must not be stopped half-way.
local function call(fn, ...)
  if async.current() then
    return sys.unguarded(fn, ...)
  elseif not coroutine.isyieldable() then
    error("only a task may wait", 3)
  end
  return answer(coroutine.yield(CALL, fn, table.pack(...)))
end
M.call = call

--- coroutine.resume and wrap that do what the coroutine calls.
function M.resume(co, ...)
  local results = table.pack(coroutine.resume(co, ...))
  while results[1] and results[2] == CALL do
    local args = results[4]
    results = table.pack(coroutine.resume(co, pcall(call, results[3], table.unpack(args, 1, args.n))))
  end
  return table.unpack(results, 1, results.n)
end

function M.wrap(fn)
  local co = coroutine.create(fn)
  return function(...)
    return answer(M.resume(co, ...))
  end
end

--- Every function of @t becomes one that runs without the guard.
function M.calls(t)
  for name, fn in pairs(t) do
    t[name] = function(...)
      return call(fn, ...)
    end
  end
  return t
end

--- What the code has given to be called, from where the guard is not on: its results, or its error.
function M.back(handler, fn, ...)
  return answer(sys.guarded(handler, fn, ...))
end

return M
