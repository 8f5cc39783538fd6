-- POST /v1/service/{kind}/{call}: a function of a service on this worker, for managers and for its own socket.
local errors = require "symphony.errors"
local identity = require "symphony.cluster.identity"

local M = {}

local MANAGERS = { control = true, manager = true }

function M.routes(router)
  router.route("POST", "/v1/service/{kind}/{call}", { auth = MANAGERS, timeout_ms = false }, function(req, params)
    if identity.role() ~= "worker" then
      errors.raise("conflict", "this daemon is a manager: services work on workers")
    end
    return require("symphony.services.ask").serve(router, req, params.kind, params.call)
  end)
end

return M
