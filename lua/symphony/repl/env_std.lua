-- Lua's own library as the code at a prompt finds it: copies, so that what a session sets in it is its own, and with
-- other functions for what would end the daemon, keep it waiting, or reach others.
local async = require "symphony.async"
local env_calls = require "symphony.repl.env_calls"
local raised = require "symphony.repl.raised"
local source = require "symphony.repl.source"

local call = env_calls.call

local M = {}

local COPIED = { "coroutine", "debug", "math", "os", "string", "table", "utf8" }

local function forbidden(what, why)
  return function()
    error(what .. " would " .. (why or "stop the daemon"), 2)
  end
end

local function copy(t)
  local out = {}
  for name, v in next, t do out[name] = v end
  return out
end

-- Files of the daemon's machine: they may be without an end, or never answer.
local function io_of(session)
  local function writer(send)
    return function(first, ...)
      local texts = table.pack(...)
      for i = 1, texts.n do texts[i] = tostring(texts[i]) end
      call(send, table.concat(texts))
      return first
    end
  end
  local stdout = { write = writer(function(text) session.out(text) end), flush = function() end }
  local stderr = { write = writer(function(text) session.err(text) end), flush = function() end }
  local functions = { stdout = stdout, stderr = stderr, write = function(...) return stdout:write(...) end }
  for _, name in ipairs { "read", "lines", "open", "popen", "input", "output", "tmpfile", "close" } do
    functions[name] = forbidden("io." .. name)
  end
  return functions
end

--- # os: Lua's own library, but for what would end or block the daemon
--- print, io.write and io.stderr:write print here; files are read with loadfile and dofile only. What could keep the
--- daemon busy is bounded: 4 MiB for a text, a million items of a table in one call.
--- Each session has the library for itself: a function that is set in it is seen by this session alone, and not as a
--- method of texts, which have all sessions' own.
local function restrict(os, session)
  os.execute, os.setlocale = forbidden "os.execute", forbidden("os.setlocale", "change the daemon")
  --- os.exit([status])
  --- Ends the code, and `symphony lua` with this exit status: a number, true (0) or false (1); by default 0.
  function os.exit(status)
    if status == nil or status == true then status = 0 elseif status == false then status = 1 end
    session.exit = math.tointeger(status) and math.tointeger(status) & 255 or 1
    error(raised.EXIT, 0)
  end
end

local function yield(...)
  if async.current() then error("attempt to yield from outside a coroutine", 2) end
  return coroutine.yield(...)
end

-- Code that is loaded sees the session's environment too.
local function loaders(env)
  local function load_here(code, name, mode, in_env)
    return load(code, name, mode, in_env == nil and env or in_env)
  end
  --- loadfile(path) -> function
  --- The code of a file on the daemon's machine as a function; nil and an error if it cannot be read.
  local function loadfile_here(path, mode, in_env)
    local text, err = source.read(path)
    if not text then return nil, err end
    return load_here((text:gsub("^#[^\n]*", "")), "@" .. path, mode, in_env)
  end
  --- dofile(path) -> ...
  --- Runs a file of the daemon's machine.
  local function dofile_here(path)
    return assert(loadfile_here(path))()
  end
  env.load, env.loadfile, env.dofile = load_here, loadfile_here, dofile_here
end

-- What package.loaded shows, and require finds: the session's own library, and all else that the daemon has loaded.
local function modules(env)
  local loaded = { _G = env, io = env.io }
  for _, name in ipairs(COPIED) do loaded[name] = env[name] end
  local function all()
    local list = copy(package.loaded)
    for name, v in next, loaded do list[name] = v end
    return next, list
  end
  setmetatable(loaded, { __index = package.loaded, __pairs = all })
  env.package = { path = package.path, config = package.config, searchpath = package.searchpath, loaded = loaded }
  loaded.package = env.package

  --- require(name) -> module
  --- A module: of Lua's own library as this session has it, or any of the daemon's. That is the very one which the
  --- daemon uses: what is set in it changes the daemon, for all and until it ends; and what it is given to be called
  --- later, as by a timer of luv, runs without the limits that code at the prompt has.
  ---   require("symphony.cluster.identity").role() --> "manager"
  function env.require(name)
    local found = loaded[name]
    if found ~= nil then return found end
    if type(name) ~= "string" then error("require takes the name of a module", 2) end
    return call(require, name)
  end
end

--- The globals that Lua itself has, for @session (see env.lua).
function M.globals(session)
  local env = {}
  for name, v in next, _G do
    if type(v) ~= "table" then env[name] = v end
  end
  for _, name in ipairs(COPIED) do env[name] = copy(_G[name]) end
  env._G = env
  env.io = io_of(session)
  restrict(env.os, session)
  env.coroutine.yield, env.coroutine.resume, env.coroutine.wrap = yield, env_calls.resume, env_calls.wrap
  loaders(env)
  modules(env)
  return env
end

return M
