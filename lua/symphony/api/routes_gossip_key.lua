-- The gossip key: GET /v1/gossip-key, POST /v1/gossip-key/rotate.
local rotation = require "symphony.cluster.rotation"

local M = {}

local READERS = { control = true, manager = true, operator = true, reader = true }
local MANAGERS = { control = true, manager = true }

function M.routes(router)
  router.route("GET", "/v1/gossip-key", { auth = READERS, leader_only = true }, function()
    return 200, rotation.show()
  end)

  router.route("POST", "/v1/gossip-key/rotate", { auth = MANAGERS, leader_only = true }, function()
    local answer, err = rotation.rotate("it was asked for")
    if not answer then return nil, err end
    return 200, answer
  end)
end

return M
