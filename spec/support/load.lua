-- Clients that write as fast as they are answered, each key once, and remember what was acknowledged.
local http = require "spec.support.http"
local json = require "spec.support.json"
local proc = require "spec.support.proc"

local M = {}

local load = {}
load.__index = load

local function write_next(self, client)
  if self.stopping then
    self.active = self.active - 1
    client.conn:close()
    return
  end
  client.n = client.n + 1
  local key = ("load/%02d/%06d"):format(client.id, client.n)
  local value = ("%s/%d"):format(key, math.random(1 << 30))
  client.conn:request("PUT", "/v1/kv/" .. key, value, { timeout = 6 }, function(err, answer)
    if not err and answer.status == 200 then
      self.acked[key] = value
      self.count = self.count + 1
      self.last_ack = proc.now()
      self.revision = math.max(self.revision, json.decode(answer.body).revision)
      return write_next(self, client)
    end
    self.errors = self.errors + 1
    self.last_error = err or answer.body
    table.insert(self.failures, { at = self.managers[client.at], err = err, status = answer and answer.status,
      body = answer and answer.body })
    client.at = client.at % #self.managers + 1
    client.conn:close()
    client.conn = http.connect(self.managers[client.at].socket)
    client.pause()
  end)
end

-- Starts @clients writers spread over the managers. They run while the loop runs.
function M.start(managers, clients)
  local uv = require "luv"
  local self = setmetatable({
    managers = managers, acked = {}, count = 0, errors = 0, failures = {}, revision = 0, active = clients, last_ack = 0,
  }, load)
  for i = 1, clients do
    local at = (i - 1) % #managers + 1
    local client = { id = i, n = 0, at = at, conn = http.connect(managers[at].socket) }
    function client.pause()
      local timer = uv.new_timer()
      timer:start(10, 0, function()
        timer:close()
        write_next(self, client)
      end)
    end
    write_next(self, client)
  end
  return self
end

-- Lets the writers finish what is under way.
function load:stop()
  self.stopping = true
  assert(proc.pump(20, function() return self.active == 0 end), "writers do not end")
end

-- Waits until writes that began after now are acknowledged; returns the seconds until the first of them.
function load:wait_progress(seconds)
  local from, count = proc.now(), self.count
  local ok = proc.pump(seconds, function() return self.count > count + self.active end)
  assert(ok, ("no write was acknowledged for %.1f s (%d before; last error: %s)"):format(proc.now() - from, count,
    tostring(self.last_error)))
  return proc.now() - from
end

-- All keys below @prefix as @manager has them: key -> value.
function M.keys(manager, prefix)
  local all, after = {}, nil
  repeat
    local target = ("/v1/kv?prefix=%s&limit=1000%s"):format(prefix, after and "&after=" .. http.escape(after) or "")
    local answer, err = manager:http("GET", target)
    assert(answer and answer.status == 200, ("%s: %s"):format(manager.label, answer and answer.body or err))
    local rows = assert(json.decode(answer.body))
    for _, row in ipairs(rows) do all[row.key] = row.value end
    after = #rows > 0 and rows[#rows].key
  until #rows == 0
  return all
end

-- Raises unless everything acknowledged is on this manager.
function load:check(manager)
  local there = M.keys(manager, "load/")
  local missing, wrong = {}, {}
  for key, value in pairs(self.acked) do
    if there[key] == nil then missing[#missing + 1] = key elseif there[key] ~= value then wrong[#wrong + 1] = key end
  end
  if #missing + #wrong > 0 then
    error(("%s: of %d acknowledged writes %d are lost (%s), %d differ (%s)"):format(manager.label, self.count,
      #missing, tostring(missing[1]), #wrong, tostring(wrong[1])), 2)
  end
end

return M
