-- The nodes: GET /v1/nodes; GET, PATCH, DELETE /v1/nodes/{id}; POST /v1/nodes/{id}/remove; POST /v1/transfer.
local async = require "symphony.async"
local leader = require "symphony.cluster.leader"
local nodes = require "symphony.cluster.nodes"
local render = require "symphony.cli.render"
local remove = require "symphony.cluster.remove"
local state = require "symphony.cluster.state"

local M = {}

local READERS = { control = true, manager = true, operator = true, reader = true }
local MANAGERS = { control = true, manager = true }
local OPERATORS = { control = true, manager = true, operator = true }

-- Without a quorum an answer is given only for ?stale=ok, and marked.
local function freshness(req) return { stale = req:param("stale") == "ok" } end

local function pause() async.sleep(0) end

-- Takes the node that @id means out: a worker at once, a manager when the others can spare it.
local function take_out(id, force, who)
  assert(state.read())
  local n = state.node(id)
  if n and n.role == "worker" then return nodes.serve_remove(n.node_id, { force = force, who = who }) end
  return remove.serve(n and n.node_id or id, { force = force, who = who })
end

function M.routes(router)
  router.route("GET", "/v1/nodes", { auth = READERS }, function(req)
    return 200, render.encode(assert(nodes.list(freshness(req))), pause)
  end)

  router.route("GET", "/v1/nodes/{id}", { auth = READERS }, function(req, params)
    local fresh = assert(state.read(freshness(req)))
    return 200, (assert(nodes.get(params.id, fresh)))
  end)

  router.route("PATCH", "/v1/nodes/{id}", { auth = OPERATORS, leader_only = true }, function(req, params, who)
    return 200, nodes.serve_update(params.id, router.json(req), { who = leader.asker(req, who),
      plan = req:param("plan") == "true" })
  end)

  router.route("DELETE", "/v1/nodes/{id}", { auth = MANAGERS, leader_only = true }, function(req, params, who)
    return 200, take_out(params.id, req:param("force") == "true", leader.asker(req, who))
  end)

  router.route("POST", "/v1/nodes/{id}/remove", { auth = MANAGERS, leader_only = true }, function(req, params, who)
    local body = router.json(req)
    return 200, remove.serve(params.id, { force = body.force == true, plan = body.plan == true,
      who = leader.asker(req, who) })
  end)

  router.route("POST", "/v1/transfer", { auth = MANAGERS, leader_only = true }, function(req)
    local to = router.json(req).to
    return 200, remove.serve_transfer(type(to) == "string" and to or nil)
  end)
end

return M
