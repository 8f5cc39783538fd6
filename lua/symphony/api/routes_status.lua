-- GET /readyz, GET /v1/status, GET /v1/members.
local errors = require "symphony.errors"
local members = require "symphony.cluster.members"
local raft = require "sym.raft"
local state = require "symphony.cluster.state"

local M = {}

local ANYONE = { none = true, control = true, manager = true, worker = true, operator = true, reader = true,
  expired = true }
local READERS = { control = true, manager = true, operator = true, reader = true }

-- Ready: a member that knows a leader, so that what it is asked gets an answer.
local function readyz()
  local ok, err = state.ready()
  if not ok then errors.raise("closed", err.message, err.hint) end
  local status = raft.status()
  if not status or not status.has_quorum or not status.leader or status.leader == 0 then
    errors.raise("no_quorum", "no leader is known here")
  end
  return 200, { ready = true, leader = status.leader }
end

function M.routes(router)
  router.route("GET", "/readyz", { auth = ANYONE }, readyz)

  router.route("GET", "/v1/status", { auth = READERS }, function()
    local overview, err = members.overview { stale = true }
    if not overview then return nil, err end
    return 200, overview
  end)

  router.route("GET", "/v1/members", { auth = READERS }, function(req)
    local rows, err = members.list { stale = req:param("stale") == "ok" }
    if not rows then return nil, err end
    return 200, require("symphony.json").array(rows)
  end)
end

return M
