--- Calls of a service's functions on a worker: POST /v1/service/<kind>/<call>, from the managers and from the worker's
--- own control socket. A call answers with data, or with a stream when it uses ctx.write.
local address = require "symphony.cluster.address"
local async = require "symphony.async"
local errors = require "symphony.errors"
local http = require "sym.http"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local registry = require "symphony.services.registry"
local remote = require "symphony.cluster.remote"
local state = require "symphony.cluster.state"

local M = {}

local ANSWER_MS, SILENCE_MS = 10000, 30000
local QUEUE_MAX = 4 << 20 -- bytes that wait for a reader that is slow

-- On the worker ------------------------------------------------------------------------------------------------------

--- Answers @req to the call @name of service @kind. In a task. As a handler of a route.
function M.serve(router, req, kind, name)
  local worker = require "symphony.services.worker"
  local service = registry.get(kind)
  local fn = service and (service.calls or {})[name]
  if not fn then
    errors.raise("not_found", ("this node has no service \"%s\" with a call \"%s\""):format(kind, name))
  end
  local body = router.json(req)
  local ctx, started, over = worker.context(service), false, false
  local task = async.current()
  req:on_gone(function()
    if not over then task:cancel() end
  end)
  function ctx.write(text)
    if not started then
      started = true
      req:start(200, "application/octet-stream")
    end
    local ok, err = async.await(req.write, req, text)
    if not ok then error(err, 0) end
  end
  local ok, answer, err = xpcall(fn, errors.handler, ctx, body)
  over = true
  if not ok then answer, err = nil, answer end
  if started then
    -- Once it has begun there is no other way to say that it has failed.
    if answer == nil and err then req:abort() else req:finish() end
    return router.STREAM
  end
  if answer == nil then error(errors.from(err or "the call gave no answer"), 0) end
  return 200, answer == true and {} or answer
end

-- On a manager -------------------------------------------------------------------------------------------------------

-- Hands what arrives on to fn(text), in this task, whatever it waits for.
local function pump(request, fn)
  local queue, bytes, done, changed = {}, 0, nil, async.event()
  local status, head, call = nil, {}, nil
  request.on_head = function(code) status = code end
  request.on_data = function(chunk)
    if status ~= 200 then
      head[#head + 1] = #head < 64 and chunk or nil
      return
    end
    bytes = bytes + #chunk
    if bytes > QUEUE_MAX then return call:cancel() end
    queue[#queue + 1] = chunk
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
  if status and status ~= 200 then
    return nil, remote.answer_error(status, json.decode(table.concat(head)), "the worker")
  end
  if done[1] then return nil, errors.from(done[1]) end
  return true
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
    local answer, err = remote.call(request)
    return answer, err and errors.wrap(err, n.name)
  end
  local host, port = address.parse(n.remote_address)
  if not host then return nil, port end
  local ok, err = pump({ host = host, port = port, role = "worker", method = "POST", path = request.path,
    tls = request.tls, headers = { ["content-type"] = "application/json" }, body = json.encode(body),
    timeout_ms = ANSWER_MS, idle_ms = opts.idle_ms or SILENCE_MS }, opts.on_data)
  if not ok then return nil, errors.wrap(err, n.name) end
  return true
end

return M
