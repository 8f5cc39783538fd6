--- Calls of a service's functions on a worker: POST /v1/service/<kind>/<call>, from the managers and from the worker's
--- own control socket. Who wants much asks for one piece after the other: a slow reader costs neither side anything.
local async = require "symphony.async"
local errors = require "symphony.errors"
local here = require "symphony.services.here"
local identity = require "symphony.cluster.identity"
local remote = require "symphony.cluster.remote"
local state = require "symphony.cluster.state"

local M = {}

--- Answers @req to the call @name of service @kind. In a task; as a handler of a route. It is broken off when whoever
--- asks goes away.
function M.serve(router, req, kind, name)
  local service = here.get(kind)
  local fn = service and (service.calls or {})[name]
  if not fn then
    errors.raise("not_found", ("this node has no service \"%s\" with a call \"%s\""):format(kind, name))
  end
  local body = router.json(req)
  local task, over = async.current(), false
  req:on_gone(function()
    if not over then task:cancel() end
  end)
  local answer, err = fn(require("symphony.services.worker").context(service), body)
  over = true
  if not answer then error(errors.from(err or "the call gave no answer"), 0) end
  return 200, answer == true and {} or answer
end

--- Calls @name of service @kind on worker @id. @body: a table; opts.timeout_ms: for the answer, of at most 4 MiB
--- (10 s). In a task. The decoded answer; nil, err.
function M.call(id, kind, name, body, opts)
  local n, missing = state.node(id)
  if not n then return nil, missing end
  if n.role ~= "worker" then return nil, errors.new("invalid", n.name .. " is no worker") end
  local tls = identity.tls
  if not tls then return nil, errors.new("closed", "this manager is not serving") end
  local answer, err, response = remote.call { at = n.remote_address, method = "POST", role = "worker", body = body,
    path = ("/v1/service/%s/%s"):format(kind, name), timeout_ms = opts and opts.timeout_ms,
    tls = { ca = tls.ca, cert = tls.cert, key = tls.key } }
  if answer ~= nil and not (response.peer and response.peer.cn == n.node_id) then
    answer, err = nil, errors.new("unauthenticated", "another node answers at its address")
  end
  if answer then return answer end
  if answer == false then err = errors.new("protocol", "it gave no answer") end
  return nil, errors.wrap(err, n.name)
end

return M
