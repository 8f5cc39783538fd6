-- Lua's own library as the code at a prompt finds it: with what would end the daemon, keep it waiting, or reach others.
local async = require "symphony.async"
local env_calls = require "symphony.repl.env_calls"
local sys = require "sym.sys"

local call = env_calls.call

local M = {}

local function forbidden(what, why)
  return function()
    error(what .. " would " .. (why or "stop the daemon"), 2)
  end
end

-- Files of the daemon's machine: they may be without an end, or never answer.
function M.io(session)
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
--- print, io.write and io.stderr:write print here; files are read with loadfile and dofile only. In all functions of
--- string, table and utf8 what could keep the daemon busy is bounded: 16 MiB for a text, a million items in one call.
function M.os(session)
  local functions = { execute = forbidden "os.execute", setlocale = forbidden("os.setlocale", "change the daemon") }
  --- os.exit([status])
  --- Ends the code, and `symphony lua` with this exit status: a number, true (0) or false (1); by default 0.
  function functions.exit(status)
    if status == nil or status == true then status = 0 elseif status == false then status = 1 end
    session.exit = math.tointeger(status) and math.tointeger(status) & 255 or 1
    error(session.EXIT, 0)
  end
  return setmetatable(functions, { __index = os })
end

function M.coroutine()
  local function yield(...)
    if async.current() then error("attempt to yield from outside a coroutine", 2) end
    return coroutine.yield(...)
  end
  return setmetatable({ yield = yield, resume = env_calls.resume, wrap = env_calls.wrap }, { __index = coroutine })
end

-- Code that is loaded sees the session's environment too.
function M.loaders(env)
  local function load_here(code, name, mode, in_env)
    return load(code, name, mode, in_env == nil and env or in_env)
  end
  --- loadfile(path) -> function
  --- The code of a file on the daemon's machine as a function; nil and an error if it cannot be read.
  local function loadfile_here(path, mode, in_env)
    local st = require("luv").fs_stat(path)
    if st and st.type ~= "file" then return nil, path .. " is no file" end -- a pipe may never answer
    local text, err = sys.read_file(path, 1 << 20)
    if not text then return nil, tostring(err) end
    return load_here((text:gsub("^#[^\n]*", "")), "@" .. path, mode, in_env)
  end
  --- dofile(path) -> ...
  --- Runs a file of the daemon's machine.
  local function dofile_here(path)
    return assert(loadfile_here(path))()
  end
  return load_here, loadfile_here, dofile_here
end

return M
