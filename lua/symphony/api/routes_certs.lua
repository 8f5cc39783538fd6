-- Client certificates: POST /v1/certs, GET /v1/certs, DELETE /v1/certs/{name}. Who may issue one can be anybody: it is
-- for those who hold a manager.
local certs = require "symphony.cluster.certs"
local json = require "symphony.json"
local state = require "symphony.cluster.state"

local M = {}

local MANAGERS = { control = true, manager = true }

function M.routes(router)
  router.route("POST", "/v1/certs", { auth = MANAGERS }, function(req)
    local body = router.json(req)
    local answer, err = certs.issue { name = body.name, role = body.role, csr = body.csr,
      ttl = body.ttl == nil and certs.DEFAULT_TTL or body.ttl, replace = body.replace == true }
    if not answer then return nil, err end
    local managers = json.array()
    for i, kv in ipairs(assert(state.managers())) do managers[i] = kv.value.remote_address end
    answer.managers = managers
    return 200, answer
  end)

  router.route("GET", "/v1/certs", { auth = MANAGERS }, function(req)
    assert(state.read { stale = req:param("stale") == "ok" })
    local rows, err = certs.list()
    if not rows then return nil, err end
    return 200, json.array(rows)
  end)

  router.route("DELETE", "/v1/certs/{name}", { auth = MANAGERS }, function(_, params)
    local answer, err = certs.revoke(params.name)
    if not answer then return nil, err end
    return 200, answer
  end)
end

return M
