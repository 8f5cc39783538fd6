-- Clients that read and change a few keys at once through different managers and record every call with its outcome,
-- for the checker. Keys are used for a while and then retired: a last read, the check, and their history is dropped, so
-- that a run may be long.
local uv = require "luv"
local checker = require "spec.fault.checker"
local http = require "spec.support.http"
local json = require "spec.support.json"
local proc = require "spec.support.proc"

local KEYS, CALLS_PER_KEY = 5, 150

-- Answers that say that nothing was changed, and nothing will be.
local refused = { no_quorum = true, not_leader = true, no_space = true, busy = true, denied = true }

local M = {}

local clients = {}
clients.__index = clients

-- Calls start(resume) and waits in the coroutine until resume has been called.
local function await(start)
  local me, results, waiting = coroutine.running(), nil, false
  start(function(...)
    results = table.pack(...)
    if waiting then
      local ok, err = coroutine.resume(me)
      if not ok then error(debug.traceback(me, err), 0) end
    end
  end)
  if not results then
    waiting = true
    coroutine.yield()
  end
  return table.unpack(results, 1, results.n)
end

local function sleep(ms)
  await(function(resume)
    local timer = uv.new_timer()
    timer:start(ms, 0, function()
      timer:close()
      resume()
    end)
  end)
end

-- One try: outcome "ok", "conflict", "not_found", "refused" (surely without effect) or "unknown", and the answer.
function clients:try(client, method, target, body, headers)
  local err, answer, call
  err, answer = await(function(resume)
    call = client.conn:request(method, target, body, { timeout = self.timeout, headers = headers }, resume)
  end)
  if err then
    self.notes[err] = (self.notes[err] or 0) + 1
    self:move(client)
    return call.sent and "unknown" or "refused", nil, err
  end
  local decoded = json.decode(answer.body)
  local code = type(decoded) == "table" and decoded.error and decoded.error.code
  if answer.status == 200 then return "ok", decoded end
  if code == "conflict" or code == "not_found" then return code, decoded end
  code = code or tostring(answer.status)
  self.notes[code] = (self.notes[code] or 0) + 1
  self:move(client)
  return refused[code] and "refused" or "unknown", nil, code
end

-- To the next manager, by a new connection.
function clients:move(client)
  client.conn:close()
  client.at = client.at % #self.managers + 1
  client.conn = http.connect(self.managers[client.at].socket)
end

-- A call from its begin to its known or unknown end; true if it was answered.
function clients:perform(client, call)
  local target, headers = "/v1/kv/" .. call.key, ""
  local method, body = "GET", nil
  if call.kind == "put" then
    method, body = "PUT", call.value
  elseif call.kind == "delete" then
    method = "DELETE"
  elseif call.kind == "cas" then
    method, target = "POST", "/v1/txn"
    body = json.encode {
      compare = { { key = call.key, value = call.expected, absent = not call.expected or nil } },
      ops = { { put = call.key, value = call.value } },
    }
  end
  if call.retries > 0 then
    headers = ("Idempotency-Key: %s\r\nIdempotency-Since: %d\r\n"):format(call.value or call.token, self.revision)
  end
  call.client = "c" .. client.id
  call.from = proc.now() - self.began
  local maybe = false
  local outcome, answer, why
  repeat
    call.tries = (call.tries or 0) + 1
    call.via = self.managers[client.at].label
    outcome, answer, why = self:try(client, method, target, body, headers)
    if outcome == "unknown" or outcome == "refused" then
      maybe = maybe or outcome == "unknown"
      sleep(20)
    end
  until (outcome ~= "unknown" and outcome ~= "refused") or call.tries > call.retries
  call.note = ("%s, tries %d, %s"):format(call.via, call.tries, why or outcome)
  if outcome == "refused" and not maybe or call.kind == "get" and outcome ~= "ok" and outcome ~= "not_found" then
    self.refused = self.refused + 1
    return false
  end
  local calls = self.calls[call.key]
  calls[#calls + 1] = call
  if outcome == "unknown" or outcome == "refused" then
    self.unknown = self.unknown + 1
    return false
  end
  call.to = proc.now() - self.began
  if call.kind == "get" then call.value = outcome == "ok" and answer.value or nil end
  if call.kind == "cas" then call.ok = outcome == "ok" end
  if answer and answer.revision then self.revision = math.max(self.revision, answer.revision) end
  self.done = self.done + 1
  self.done_via[call.via] = (self.done_via[call.via] or 0) + 1
  return true
end

-- The key for the next call, with fresh ones as they are used up.
function clients:pick()
  local slot = math.random(KEYS)
  local key = self.keys[slot]
  if not key or #self.calls[key] >= CALLS_PER_KEY then
    if key then table.insert(self.retired, key) end
    self.made = self.made + 1
    key = ("fault/%d"):format(self.made)
    self.keys[slot], self.calls[key], self.busy[key] = key, {}, 0
  end
  return key
end

function clients:run(client)
  local seen = {}
  while not self.stopping do
    -- Now and then elsewhere, so that every manager is asked at all times.
    if math.random(10) == 1 then self:move(client) end
    local key = self:pick()
    local roll = math.random(100)
    client.n = client.n + 1
    local value = ("%d-%d"):format(client.id, client.n)
    local call = { key = key, token = value, retries = math.random(3) == 1 and 8 or 0 }
    if roll <= 45 then
      call.kind, call.retries = "get", 0
    elseif roll <= 75 then
      call.kind, call.value = "put", value
    elseif roll <= 82 then
      call.kind = "delete"
    else
      call.kind, call.value, call.expected = "cas", value, seen[key]
    end
    self.busy[key] = self.busy[key] + 1
    if self:perform(client, call) then
      if call.kind == "delete" then seen[key] = nil else seen[key] = call.value end
    end
    self.busy[key] = self.busy[key] - 1
    sleep(math.random(0, 6))
  end
end

-- Reads each retired key once more and checks it. Runs until everything is checked after the stop.
function clients:close_keys(client)
  while true do
    local key = self.retired[1]
    if not key and self.stopping and self.active == 1 then
      for _, left in pairs(self.keys) do table.insert(self.retired, left) end
      self.keys = {}
      key = self.retired[1]
      if not key then return end
    end
    if key and self.busy[key] == 0 then
      table.remove(self.retired, 1)
      while not self:perform(client, { key = key, kind = "get", retries = 0 }) do
        if self.abandoned then error("the last read of " .. key .. " was never answered", 0) end
        sleep(50)
      end
      local ok, culprit = checker.check_register(self.calls[key])
      if not ok then error(checker.explain(key, culprit), 0) end
      self.checked_keys, self.checked_calls = self.checked_keys + 1, self.checked_calls + #self.calls[key]
      self.calls[key] = nil
    else
      sleep(20)
    end
  end
end

function clients:spawn(body, id)
  local at = id % #self.managers + 1
  local client = { id = id, n = 0, at = at, conn = http.connect(self.managers[at].socket) }
  self.active = self.active + 1
  local thread = coroutine.create(function()
    local ok, err = xpcall(body, function(err) return err end, self, client)
    client.conn:close()
    self.active = self.active - 1
    if not ok then self.failure = self.failure or tostring(err) end
  end)
  coroutine.resume(thread)
end

-- Starts @n clients and the one that checks. They run while the loop runs; look at .failure now and then.
function M.start(managers, n, timeout)
  local self = setmetatable({
    managers = managers, timeout = timeout, began = proc.now(), active = 0, revision = 0, done = 0, unknown = 0,
    refused = 0, done_via = {}, notes = {}, calls = {}, busy = {}, keys = {}, retired = {}, made = 0, checked_keys = 0,
    checked_calls = 0,
  }, clients)
  for id = 1, n do self:spawn(self.run, id) end
  self:spawn(self.close_keys, n + 1)
  return self
end

-- Ends the clients and waits for the last checks. Raises what went wrong.
function clients:stop(seconds)
  self.stopping = true
  proc.pump(seconds, function() return self.active == 0 or self.failure end)
  self.abandoned = true
  if self.failure then error(self.failure, 0) end
  if self.active > 0 then error("the clients do not end", 0) end
end

return M
