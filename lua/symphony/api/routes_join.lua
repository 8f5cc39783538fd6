-- POST /v1/join and /v1/renew for other nodes, POST /v1/manager/join for the client at the control socket.
local admit = require "symphony.cluster.admit"
local async = require "symphony.async"
local errors = require "symphony.errors"
local join = require "symphony.cluster.join"
local json = require "symphony.json"
local leader = require "symphony.cluster.leader"

local M = {}

local BODY_MAX = 32 * 1024

local function body_of(router, req)
  if #(req.body or "") > BODY_MAX then
    errors.raise("too_big", ("the request has %d bytes; at most %d fit"):format(#req.body, BODY_MAX))
  end
  local body = router.json(req)
  for k, v in pairs(body) do
    if v == json.null then body[k] = nil end
  end
  return body
end

-- Streams {"say": text} while it goes on, and at the end {"done": answer} or {"error": {...}}.
local function join_here(router, req)
  local body = router.json(req)
  local task, over = async.current(), false
  req:on_gone(function()
    if not over then task:cancel() end
  end)
  req:start(200, "application/x-ndjson")
  local function send(message)
    return async.await(req.write, req, json.encode(message) .. "\n")
  end
  local function word(name)
    return type(body[name]) == "string" and body[name] or nil
  end
  local ok, answer, err = xpcall(join.run, errors.handler,
    { address = word "address" or "", token = word "token", name = word "name", advertise = word "advertise" },
    function(text) send { say = text } end)
  over = true
  if not ok then err, answer = answer, nil end
  if answer then
    send { done = answer }
  else
    err = errors.from(err)
    if err.code == "internal" then
      require("sym.log").error("join: " .. (err.traceback or err.message))
      err = errors.new("internal", "an error in symphony itself", "the log of this daemon has the details")
    end
    send(errors.body(err))
  end
  req:finish()
  return router.STREAM
end

function M.routes(router)
  router.route("POST", "/v1/join", { auth = { none = true, manager = true }, leader_only = true, timeout_ms = 15000 },
    function(req, _, who)
      local request, err = admit.check(body_of(router, req))
      if not request then return nil, err end
      return admit.serve(request, leader.origin(req, who))
    end)

  router.route("POST", "/v1/renew", { auth = { expired = true, manager = true, worker = true }, leader_only = true },
    function(req)
      local fresh, err = admit.renew(body_of(router, req).csr)
      if not fresh then return nil, err end
      return 200, fresh
    end)

  router.route("POST", "/v1/manager/join", { auth = { control = true }, timeout_ms = false }, function(req)
    return join_here(router, req)
  end)
end

return M
