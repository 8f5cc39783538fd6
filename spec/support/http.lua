-- A small HTTP/1.1 client on luv, for the control socket (plain HTTP over a unix socket). One call at a time on a
-- connection, which is kept open between calls.
local uv = require "luv"
local json = require "spec.support.json"
local proc = require "spec.support.proc"

local M = {}

local connection = {}
connection.__index = connection

-- Percent-encodes a key for use in a path.
function M.escape(text)
  return (text:gsub("[^%w%-%._~/]", function(c) return ("%%%02X"):format(c:byte()) end))
end

local function parse_head(head)
  local status = tonumber(head:match("^HTTP/1%.[01] (%d%d%d)"))
  local headers = {}
  for name, value in head:gmatch("\r\n([^:\r\n]+):[ \t]*([^\r\n]*)") do headers[name:lower()] = value end
  return status, headers
end

-- Takes as much of the answer as has arrived. True when it is whole.
function connection:advance()
  local call = self.call
  if not call.status then
    local head, stop = self.buffer:match("^(.-\r\n)\r\n()")
    if not head then return false end
    call.status, call.headers = parse_head(head)
    self.buffer = self.buffer:sub(stop)
    call.length = tonumber(call.headers["content-length"])
    call.chunked = (call.headers["transfer-encoding"] or ""):lower() == "chunked"
    if not call.status then self:fail("not HTTP: " .. head:sub(1, 80)) return false end
  end
  if call.chunked then
    while true do
      local size, start = self.buffer:match("^(%x+)[^\r\n]*\r\n()")
      size = size and tonumber(size, 16)
      if not size or #self.buffer < start + size + 1 then return false end
      local piece = self.buffer:sub(start, start + size - 1)
      self.buffer = self.buffer:sub(start + size + 2)
      if size == 0 then return true end
      if call.on_data then call.on_data(piece) else call.body = call.body .. piece end
    end
  end
  local want = call.length or 0
  if #self.buffer < want then return false end
  call.body, self.buffer = self.buffer:sub(1, want), self.buffer:sub(want + 1)
  return true
end

function connection:finish(err)
  local call = self.call
  if not call then return end
  self.call = nil
  call.timer:close()
  if err then call.done(err) else call.done(nil, { status = call.status, headers = call.headers, body = call.body }) end
end

function connection:fail(why)
  self:close()
  self:finish(why)
end

function connection:close()
  if self.pipe and not self.pipe:is_closing() then self.pipe:close() end
  self.pipe = nil
end

function connection:send(text)
  local call, pipe = self.call, self.pipe
  call.sent = true
  self.buffer = ""
  pipe:write(text, function(err) if err and self.call == call and self.pipe == pipe then self:fail(err) end end)
end

-- Starts a call; done(err, {status, headers, body}) comes later, once. err is a text. options: headers (whole
-- lines), timeout in seconds (10), on_data(piece) for streamed answers. Afterwards call.sent tells whether anything
-- may have reached the server.
function connection:request(method, path, body, options, done)
  assert(not self.call, "one call at a time")
  options = options or {}
  local text = ("%s %s HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %d\r\n\r\n%s"):format(method, path,
    options.headers or "", #(body or ""), body or "")
  local call = { done = done, body = "", on_data = options.on_data, timer = uv.new_timer(), sent = false }
  self.call = call
  call.timer:start(math.floor((options.timeout or 10) * 1000), 0, function()
    if self.call == call then self:fail("timeout") end
  end)
  if self.pipe then
    self:send(text)
    return call
  end
  local pipe = uv.new_pipe(false)
  self.pipe, self.buffer = pipe, ""
  pipe:connect(self.path, function(err)
    if self.pipe ~= pipe then return end
    if err then return self:fail(err) end
    pipe:read_start(function(read_err, data)
      if self.pipe ~= pipe then return end
      if not data then return self:fail(read_err or "closed") end
      self.buffer = self.buffer .. data
      if self.call and self:advance() then self:finish() end
    end)
    if self.call == call then self:send(text) end
  end)
  return call
end

function M.connect(path)
  return setmetatable({ path = path, buffer = "" }, connection)
end

-- One call, waited for: {status, headers, body, json} or nil, err.
function M.call(path, method, target, body, options)
  options = options or {}
  local conn = M.connect(path)
  local over, failure, answer = false, nil, nil
  conn:request(method, target, body, options, function(err, got) over, failure, answer = true, err, got end)
  proc.pump((options.timeout or 10) + 1, function() return over end)
  conn:close()
  if not answer then return nil, failure or "no answer" end
  answer.json = json.decode(answer.body)
  return answer
end

return M
