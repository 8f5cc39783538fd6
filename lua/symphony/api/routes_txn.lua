-- POST /v1/txn: compares and ops on the users' keys, in one step.
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local kv = require "symphony.cluster.kv"
local state = require "symphony.cluster.state"
local store = require "sym.store"

local M = {}

local IDEMPOTENCY_MAX = 256

-- The id of a txn that may be sent twice, from the client's header; nil without one. Raises.
local function identity_of(req)
  local key = req:header("idempotency-key")
  if not key then return nil end
  if #key == 0 or #key > IDEMPOTENCY_MAX then
    errors.raise("invalid", ("an Idempotency-Key has 1 to %d characters"):format(IDEMPOTENCY_MAX))
  end
  local since = req:header("idempotency-since")
  local revision = since and #since <= 18 and since:match("^%d+$") and math.tointeger(tonumber(since))
  if since and not revision then errors.raise("invalid", "Idempotency-Since is a revision") end
  -- The same key with another request is another request: nothing is taken for done that was not.
  return crypto.sha256(key .. "\0txn\0" .. (req.body or "")):sub(1, 16), revision or store.revision()
end

function M.routes(router)
  router.route("POST", "/v1/txn", {}, function(req)
    local txn = kv.parse_txn(router.json(req))
    local ok, err = state.ready()
    if not ok then return nil, err end
    txn.id, txn.since = identity_of(req)
    local result
    result, err = state.submit(txn)
    if not result then return nil, err end
    return 200, kv.answer(result)
  end)
end

return M
