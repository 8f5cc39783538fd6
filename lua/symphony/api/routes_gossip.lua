-- POST /v1/gossip: full exchanges between nodes, managers and workers alike.
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local gossip = require "symphony.cluster.gossip"
local limiter = require "symphony.cluster.limiter"
local sys = require "sym.sys"

local M = {}

local NODES = { manager = true, worker = true }
-- A step may hold a hundred claims of the node that asks, each to be verified: some 10 ms. All of a cluster of 10,000
-- nodes is four hundred steps; an exchange that breaks off is begun again by and by. By the node that asks.
local STEPS, STEP_S, NODES_MAX = 2000, 0.05, 1024
local steps

local function check_rate(_, who)
  if steps:allow(who.id, sys.mono_ms() / 1000) then return end
  errors.raise("busy", "this node exchanges what gossip knows too often", "say it again in a minute")
end

function M.routes(router)
  steps = limiter.new(STEPS, STEP_S, NODES_MAX)
  router.route("POST", "/v1/gossip", { auth = NODES, guard = check_rate }, function(req, _, who)
    local body = router.json(req)
    local piece, cursor = body.piece, body.cursor
    if type(piece) == "string" then
      piece = crypto.unbase64(piece) or errors.raise("invalid", "piece is not base64")
    else
      piece = nil
    end
    if math.type(cursor) ~= "integer" or cursor < 0 or cursor > 0xffffffff then cursor = nil end
    return 200, assert(gossip.exchange_step(who.id, piece, cursor))
  end)
end

return M
