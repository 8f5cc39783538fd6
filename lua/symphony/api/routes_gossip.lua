-- POST /v1/gossip: full exchanges between nodes, managers and workers alike.
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local gossip = require "symphony.cluster.gossip"

local M = {}

local NODES = { manager = true, worker = true }

function M.routes(router)
  router.route("POST", "/v1/gossip", { auth = NODES }, function(req, _, who)
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
