-- How the code at a prompt calls what is the daemon's: plainly, without the guard, and from coroutines of its own too.
-- Nothing of the code's own may run there: what it hands over is copied, see plain.
local async = require "symphony.async"
local errors = require "symphony.errors"
local raised = require "symphony.repl.raised"
local sys = require "sym.sys"

local M = {}

local DEPTH, ITEMS = 20, 10000 -- of the tables in one argument

--- Raises what a function returned as nil, err: at a prompt an error should be seen, not lost.
function M.must(...)
  local v, err = ...
  if v == nil and err ~= nil then
    error(errors.from(err), 0)
  end
  return ...
end

local WORDS = { string = "text", table = "a table", number = "a number" }

--- Raises "invalid" unless @v, which is @what of a call, is of the type @kind: "string", "table" or "number".
function M.check(v, kind, what)
  if type(v) ~= kind then errors.raise("invalid", ("%s is %s"):format(what, WORDS[kind])) end
end

-- What a coroutine of the code's own waits for: {fn, its arguments}; the one that resumes it does it. Not in what it
-- yields, which may be anything.
local wanted = setmetatable({}, { __mode = "k" })

local function answer(ok, ...)
  if not ok then error((...), 0) end
  return ...
end

--- fn(...), which may wait, without the guard: it is the daemon's, and must not be stopped half-way. Whatever it does
--- with a value of the code's own has to be raw; M.calls is for all else.
local function call(fn, ...)
  if async.current() then
    return sys.unguarded(fn, ...)
  elseif not coroutine.isyieldable() then
    error("only a task may wait", 3)
  end
  wanted[coroutine.running()] = table.pack(fn, ...)
  return answer(coroutine.yield())
end
M.call = call

--- coroutine.resume and wrap that do what the coroutine calls.
function M.resume(co, ...)
  local results = table.pack(coroutine.resume(co, ...))
  local request = wanted[co]
  while request do
    wanted[co] = nil
    results = table.pack(coroutine.resume(co, pcall(call, table.unpack(request, 1, request.n))))
    request = wanted[co]
  end
  return table.unpack(results, 1, results.n)
end

function M.wrap(fn)
  local co = coroutine.create(fn)
  return function(...)
    return answer(M.resume(co, ...))
  end
end

-- What the code has given to be called, where the guard is not on: under it.
local function back(fn)
  return function(...)
    return answer(sys.guarded(raised.handler, fn, ...))
  end
end

local function copy(t, depth, left)
  if depth > DEPTH then errors.raise("invalid", "a table is too deep, or holds itself") end
  local out = {}
  for key, v in next, t do
    left.items = left.items - 1
    if left.items < 0 then errors.raise("too_big", ("more than %d values in one argument"):format(ITEMS)) end
    if type(key) == "table" or type(key) == "function" then errors.raise("invalid", "a key is a " .. type(key)) end
    out[key] = type(v) == "table" and copy(v, depth + 1, left) or type(v) == "function" and back(v) or v
  end
  return out
end

--- @v as the daemon's own code may have it: of tables what is in them, and nothing of what they would do; functions
--- that are under the guard whenever they are called. Made in guarded code.
function M.plain(v)
  if type(v) == "table" then return copy(v, 1, { items = ITEMS }) end
  return type(v) == "function" and back(v) or v
end

--- Every function of @t becomes one that runs without the guard, with what M.plain makes of its arguments.
function M.calls(t)
  for name, fn in pairs(t) do
    t[name] = function(...)
      local args = table.pack(...)
      for i = 1, args.n do args[i] = M.plain(args[i]) end
      return call(fn, table.unpack(args, 1, args.n))
    end
  end
  return t
end

return M
