-- The nodes: GET /v1/nodes, GET /v1/nodes/{id}, POST /v1/nodes/{id}/remove; POST /v1/transfer.
local errors = require "symphony.errors"
local json = require "symphony.json"
local remove = require "symphony.cluster.remove"
local state = require "symphony.cluster.state"

local M = {}

local READERS = { control = true, manager = true, operator = true, reader = true }
local MANAGERS = { control = true, manager = true }

-- A record without what nobody needs to see.
function M.shown(n)
  n.certificate = nil
  return n
end

-- The records; without a quorum only with ?stale=ok, and marked.
local function rows(req)
  local fresh = assert(state.read { stale = req:param("stale") == "ok" })
  local list = assert(state.nodes())
  for _, kv in ipairs(list) do kv.value.stale = fresh.stale or nil end
  return list
end

function M.routes(router)
  router.route("GET", "/v1/nodes", { auth = READERS }, function(req)
    local out = json.array {}
    for i, kv in ipairs(rows(req)) do out[i] = M.shown(kv.value) end
    return 200, out
  end)

  router.route("GET", "/v1/nodes/{id}", { auth = READERS }, function(req, params)
    local kv = state.find_node(rows(req), params.id)
    if not kv then errors.raise("not_found", "there is no such node") end
    return 200, M.shown(kv.value)
  end)

  router.route("POST", "/v1/nodes/{id}/remove", { auth = MANAGERS, leader_only = true }, function(req, params)
    local body = router.json(req)
    return 200, remove.serve(params.id, { force = body.force == true, plan = body.plan == true })
  end)

  router.route("POST", "/v1/transfer", { auth = MANAGERS, leader_only = true }, function(req)
    local to = router.json(req).to
    return 200, remove.serve_transfer(type(to) == "string" and to or nil)
  end)
end

return M
