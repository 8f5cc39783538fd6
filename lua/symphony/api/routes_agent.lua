-- What a worker's certificate opens: GET /v1/agent, POST /v1/agent/report, /v1/agent/status, /v1/agent/propose and
-- /v1/agent/leave. Its own part of the state, and no more.
local agents = require "symphony.cluster.agents"
local errors = require "symphony.errors"
local leader = require "symphony.cluster.leader"
local limiter = require "symphony.cluster.limiter"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"

local M = {}

local WORKERS = { worker = true }
local NODES = { worker = true, manager = true }
local INSTANCE_MAX = 32
local BODY_MAX = 16 * 1024
-- A node says what has changed, and looks for a stream when it has none: seldom. Each report costs the leader a round
-- of the quorum, and each stream a listing. By the node, whose connection has shown who it is, on each manager that it
-- asks and, of reports, on the leader.
local REPORTS, STREAMS, AGAIN_S, NODES_MAX = 60, 30, 1, 8192
local STATUSES, STATUS_MAX = 120, 64 * 1024
local PROPOSALS = 200
local reports, streams, statuses, proposals

-- The number at parameter @name; @missing: the text that stands for none. Raises.
local function number(req, name, missing)
  local text = req:param(name) or missing
  local n = text and #text <= 19 and text:match("^%d+$") and math.tointeger(tonumber(text))
  if not n then errors.raise("invalid", name .. " must be a number") end
  return n
end

-- The node that asks, also when a follower has passed it on. Raises.
local function asker(req, who)
  if who.kind ~= "manager" then return who.node end
  local id = leader.on_behalf(req, who) or who.id
  local n = state.get("/node/" .. id)
  return n or errors.raise("denied", "this node is not a member of the cluster, or no longer one")
end

local function check_rate(limit, id)
  if limit:allow(id, sys.mono_ms() / 1000) then return end
  errors.raise("busy", "this node asks too often", "once a second is enough")
end

function M.routes(router)
  reports = limiter.new(REPORTS, AGAIN_S, NODES_MAX)
  streams = limiter.new(STREAMS, AGAIN_S, NODES_MAX)
  proposals = limiter.new(PROPOSALS, AGAIN_S / 10, NODES_MAX)
  statuses = limiter.new(STATUSES, AGAIN_S / 2, NODES_MAX)
  local to_leader = { auth = NODES, leader_only = true, guard = function(req, who)
    check_rate(reports, leader.on_behalf(req, who) or who.id)
  end }

  router.route("GET", "/v1/agent", { auth = WORKERS, timeout_ms = 15000,
    guard = function(_, who) check_rate(streams, who.id) end }, function(req, _, who)
    local instance, known = req:param("instance"), req:param("peers")
    if not instance or #instance > INSTANCE_MAX or not instance:match("^%x+$") then
      errors.raise("invalid", "instance must be hex digits")
    end
    agents.serve(req, who.node, { starts = number(req, "starts"), instance = instance,
      epoch = number(req, "epoch", "0"), min = number(req, "min"), peers = known })
    return router.STREAM
  end)

  router.route("POST", "/v1/agent/report", to_leader, function(req, _, who)
    if #(req.body or "") > BODY_MAX then errors.raise("too_big", "a report of more than 16 KiB") end
    return 200, assert(require("symphony.cluster.status").report(asker(req, who), router.json(req)))
  end)

  router.route("POST", "/v1/agent/status", { auth = NODES, leader_only = true, guard = function(req, who)
    check_rate(statuses, leader.on_behalf(req, who) or who.id)
  end }, function(req, _, who)
    if #(req.body or "") > STATUS_MAX then errors.raise("too_big", "a report of more than 64 KiB") end
    return 200, require("symphony.services.report").take(asker(req, who), router.json(req))
  end)

  router.route("POST", "/v1/agent/propose", { auth = NODES, leader_only = true, guard = function(req, who)
    check_rate(proposals, leader.on_behalf(req, who) or who.id)
  end }, function(req, _, who)
    if #(req.body or "") > BODY_MAX then errors.raise("too_big", "a proposal of more than 16 KiB") end
    return 200, require("symphony.services.changes").serve_proposal(asker(req, who), router.json(req))
  end)

  router.route("POST", "/v1/agent/leave", to_leader, function(req, _, who)
    return 200, require("symphony.cluster.nodes").leave(asker(req, who), router.json(req).force == true)
  end)
end

return M
