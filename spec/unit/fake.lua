--- Stand-ins for what C gives the Lua modules, for tests under plain Lua with the real luv and cjson. Require it before
--- any module of symphony.
package.path = "lua/?.lua;lua/?/init.lua;" .. package.path

local M = { logged = {} }

local function logger(level)
  return function(text)
    M.logged[#M.logged + 1] = level .. ": " .. text
  end
end

--- A table as `require "sym.<name>"` in this file's tests.
function M.module(name, t)
  package.loaded["sym." .. name] = t
  return t
end

M.module("log", { debug = logger "debug", info = logger "info", warn = logger "warn", error = logger "error" })

local b64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
local function base64(s)
  return (s:gsub("..?.?", function(part)
    local a, b, c = part:byte(1, 3)
    local n = a << 16 | (b or 0) << 8 | (c or 0)
    local out = ""
    for i = 3, 0, -1 do
      local digit = n >> (6 * i) & 63
      out = out .. b64:sub(digit + 1, digit + 1)
    end
    return out:sub(1, #part + 1) .. ("="):rep(3 - #part)
  end))
end

local function unbase64(text)
  if #text % 4 ~= 0 or not text:match("^[%w+/]*=?=?$") then return nil, { code = "invalid", message = "not base64" } end
  local out = {}
  for four in text:gmatch("....") do
    local n, pads = 0, select(2, four:gsub("=", ""))
    for c in four:gmatch(".") do n = n << 6 | (c == "=" and 0 or b64:find(c, 1, true) - 1) end
    out[#out + 1] = string.pack(">I3", n):sub(1, 3 - pads)
  end
  return table.concat(out)
end

local counter = 0
M.module("crypto", {
  base64 = base64,
  unbase64 = unbase64,
  random = function(n)
    counter = counter + 1
    return ("%0" .. n .. "d"):format(counter)
  end,
  hex = function(s)
    return (s:gsub(".", function(c)
      return ("%02x"):format(c:byte())
    end))
  end,
})

M.module("sys", {
  version = "1.2.3",
  now = os.time,
  mono_ms = function()
    return require("luv").hrtime() // 1000000
  end,
  guarded = function(handler, fn, ...)
    return xpcall(fn, handler, ...)
  end,
  unguarded = function(fn, ...)
    return fn(...)
  end,
  resume = coroutine.resume,
  read_file = function(path)
    local file = io.open(path, "rb")
    if not file then return nil, { code = "not_found", message = path } end
    local text = file:read("a")
    file:close()
    return text
  end,
})

--- Runs fn as a task on luv's loop until nothing is left to do; raises what it raised.
function M.run(fn)
  local async = require "symphony.async"
  local ended, err = false, nil
  async.spawn(function()
    local ok, what = xpcall(fn, function(e)
      return type(e) == "table" and e or debug.traceback(e, 2)
    end)
    ended, err = true, not ok and what or nil
  end)
  require("luv").run()
  if err then
    error(err, 0)
  end
  assert(ended, "the task never ended")
end

--- Lets the loop run until it has nothing to do.
function M.loop()
  require("luv").run()
end

--- A request as bind_http gives it, which keeps its answer: status, body (text), ctype, chunks, finished, aborted.
function M.request(method, path, fields)
  local req = { method = method, path = path, query = "", body = "", peer = { unix = true, uid = 0 }, chunks = {} }
  for k, v in pairs(fields or {}) do
    req[k] = v
  end
  function req:header(name)
    return (self.headers or {})[name]
  end
  function req:param(name)
    for key, value in self.query:gmatch("([^&=]+)=([^&]*)") do
      if key == name then return value end
    end
  end
  function req:respond(status, body, ctype, extra)
    assert(not self.status, "answered twice")
    self.status, self.answer, self.ctype, self.extra = status, body, ctype, extra
    return true
  end
  function req:start(status, ctype)
    assert(not self.status, "answered twice")
    self.status, self.ctype = status, ctype
    return true
  end
  function req:write(data, cb)
    if self.gone then
      return nil, { code = "closed", message = "gone" }
    end
    self.chunks[#self.chunks + 1] = data
    local timer = require("luv").new_timer()
    timer:start(0, 0, function()
      timer:close()
      cb(nil)
    end)
    return true
  end
  function req:finish()
    self.finished = true
  end
  function req:abort()
    self.aborted = true
  end
  function req:on_gone(fn)
    if self.gone then
      return nil, { code = "closed", message = "gone" }
    end
    self.gone_cb = fn
    return true
  end
  --- The peer goes away.
  function req:leave()
    self.gone = true
    if self.gone_cb then
      self.gone_cb()
    end
  end
  --- The lines of a streamed answer, decoded.
  function req:messages()
    local list = {}
    for line in table.concat(self.chunks):gmatch("[^\n]+") do
      list[#list + 1] = assert(require("symphony.json").decode(line))
    end
    return list
  end
  --- The answer, decoded.
  function req:json()
    return assert(require("symphony.json").decode(self.answer))
  end
  return req
end

--- The request, once the routes have answered it, or begun to. In a task.
function M.ask(method, path, fields)
  local req = M.request(method, path, fields)
  require("symphony.api.router").dispatch(req)
  for turn = 1, 2000 do
    if req.status then return req end
    require("symphony.async").sleep(turn > 20 and 1 or 0) -- mostly it takes some turns of the loop
  end
  error(("%s %s has no answer"):format(method, path), 2)
end

return M
