--- Calls of a service's functions on a worker: POST /v1/service/<kind>/<call>, from the managers and from the worker's
--- own control socket. A call answers with data, or with a stream when it uses ctx.write: lines of JSON, {"data": text}
--- or {"data64": base64}, empty ones as signs of life, {"error"} at its end when it has failed.
local address = require "symphony.cluster.address"
local async = require "symphony.async"
local errors = require "symphony.errors"
local http = require "sym.http"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local line = require "symphony.cluster.agent_line"
local lines = require "symphony.lines"
local log = require "sym.log"
local registry = require "symphony.services.registry"
local remote = require "symphony.cluster.remote"
local state = require "symphony.cluster.state"

local M = {}

local ANSWER_MS, SILENCE_MS = 10000, 30000
local ALIVE_MS = 10000
local PIECE = 48 * 1024
local LINE_MAX = 1 << 20
local QUEUE_MAX = 4 << 20 -- bytes that wait for a reader that is slow

-- On the worker ------------------------------------------------------------------------------------------------------

local function line_of(piece)
  if utf8.len(piece) then return json.encode { data = piece } .. "\n" end
  return json.encode { data64 = require("sym.crypto").base64(piece) } .. "\n"
end

-- A stream to @req that begins with its first write.
local function stream_to(req)
  local s = { started = false }
  local function send(text)
    local ok, err = async.await(req.write, req, text)
    if not ok then error(err, 0) end
  end
  function s.write(text)
    if not s.started then
      s.started = true
      req:start(200, "application/x-ndjson")
      s.alive = async.every(ALIVE_MS, function() send("\n") end)
    end
    for at = 1, #text, PIECE do send(line_of(text:sub(at, at + PIECE - 1))) end
  end
  function s.finish(err)
    s.alive.stop()
    if err then
      if err.code == "internal" then log.error("services: a call: " .. (err.traceback or err.message)) end
      req:write(json.encode(errors.body(err)) .. "\n", function() end)
    end
    req:finish()
  end
  return s
end

--- Answers @req to the call @name of service @kind. In a task. As a handler of a route.
function M.serve(router, req, kind, name)
  local worker = require "symphony.services.worker"
  local service = registry.get(kind)
  local fn = service and (service.calls or {})[name]
  if not fn then
    errors.raise("not_found", ("this node has no service \"%s\" with a call \"%s\""):format(kind, name))
  end
  local body = router.json(req)
  local ctx, stream, over = worker.context(service), stream_to(req), false
  ctx.write = stream.write
  local task = async.current()
  req:on_gone(function()
    if over then return end
    if stream.alive then stream.alive.stop() end
    task:cancel()
  end)
  local ok, answer, err = xpcall(fn, errors.handler, ctx, body)
  over = true
  if not ok then answer, err = nil, answer end
  if answer == nil then err = errors.from(err or "the call gave no answer") end
  if stream.started then
    stream.finish(err)
    return router.STREAM
  end
  if err then error(err, 0) end
  return 200, answer == true and {} or answer
end

-- On a manager --------------------------------------------------------------------------------------------------------

-- Hands what arrives on to fn(text), in this task, whatever it waits for. true; nil, err.
local function pump(request, fn)
  local queue, bytes, done, failed, changed = {}, 0, nil, nil, async.event()
  local status, head, call = nil, {}, nil
  local feed = lines.of(function(m)
    local text = m.data or (m.data64 and require("sym.crypto").unbase64(m.data64))
    if m.error then failed = line.error_of(m) end
    if type(text) ~= "string" then return end
    queue[#queue + 1], bytes = text, bytes + #text
    if bytes > QUEUE_MAX then failed = errors.new("busy", "the reader is too slow for what comes") end
  end, LINE_MAX)
  request.on_head = function(code) status = code end
  request.on_data = function(chunk)
    if status ~= 200 then
      head[#head + 1] = #head < 64 and chunk or nil
    elseif not failed then
      local ok, err = pcall(feed, chunk)
      if not ok then failed = errors.from(err) end
      if failed then call:cancel() end
    end
    changed:set()
  end
  local err
  call, err = http.request(request, function(...)
    done = table.pack(...)
    changed:set()
  end)
  if not call then return nil, errors.from(err) end
  local _ <close> = setmetatable({}, { __close = function()
    if not done then call:cancel() end
  end })
  while true do
    while #queue > 0 do
      local text = table.concat(queue)
      queue, bytes = {}, 0
      fn(text)
    end
    if done then break end
    changed:wait()
  end
  if failed then return nil, failed end
  if status and status ~= 200 then
    return nil, remote.answer_error(status, json.decode(table.concat(head)), "the worker")
  end
  if done[1] then return nil, errors.from(done[1]) end
  return true, done[2]
end

local function is_it(response, n)
  if response.peer and response.peer.cn == n.node_id then return true end
  return nil, errors.new("unauthenticated", "another node answers at the address of " .. n.name)
end

--- Calls @name of service @kind on worker @id. @body: a table. opts.on_data(text): the answer is a stream; it is called
--- in this task, and may wait. In a task. The decoded answer, or true; nil, err.
function M.call(id, kind, name, body, opts)
  opts = opts or {}
  local n, kv = state.node(id)
  if not n then return nil, kv end
  if n.role ~= "worker" then return nil, errors.new("invalid", n.name .. " is no worker") end
  local tls = identity.tls
  if not tls then return nil, errors.new("closed", "this manager is not serving") end
  local request = { at = n.remote_address, method = "POST", path = ("/v1/service/%s/%s"):format(kind, name),
    role = "worker", tls = { ca = tls.ca, cert = tls.cert, key = tls.key } }
  if not opts.on_data then
    request.body, request.timeout_ms = body, opts.timeout_ms or ANSWER_MS
    local answer, err, response = remote.call(request)
    if answer ~= nil then
      local ok
      ok, err = is_it(response, n)
      if ok then return answer end
    end
    return nil, errors.wrap(err, n.name)
  end
  local host, port = address.parse(n.remote_address)
  if not host then return nil, port end
  local ok, answer = pump({ host = host, port = port, role = "worker", method = "POST", path = request.path,
    tls = request.tls, headers = { ["content-type"] = "application/json" }, body = json.encode(body),
    timeout_ms = ANSWER_MS, idle_ms = SILENCE_MS }, opts.on_data)
  local err = answer
  if ok then ok, err = is_it(answer, n) end
  if not ok then return nil, errors.wrap(err, n.name) end
  return true
end

return M
