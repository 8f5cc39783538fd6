-- Changes of the users' keys: POST /v1/txn, compares and ops in one step; and PUT and DELETE /v1/kv/{key}, where
-- src/daemon/api_change.c leaves them to Lua because a policy decides on them.
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local kv = require "symphony.cluster.kv"
local leader = require "symphony.cluster.leader"
local store = require "sym.store"
local writes = require "symphony.policy.writes"

local M = {}

local IDEMPOTENCY_MAX = 256

-- The id of a txn that may be sent twice, from the client's header; nil without one. The same key with another request
-- is another request: nothing is taken for done that was not. @what: all that makes the request, as
-- src/daemon/api_change.c has it for single keys. Raises.
local function identity_of(req, ...)
  local key = req:header("idempotency-key")
  if not key then return nil end
  if #key == 0 or #key > IDEMPOTENCY_MAX then
    errors.raise("invalid", ("an Idempotency-Key has 1 to %d characters"):format(IDEMPOTENCY_MAX))
  end
  local since = req:header("idempotency-since")
  local revision = since and #since <= 18 and since:match("^%d+$") and math.tointeger(tonumber(since))
  if since and not revision then errors.raise("invalid", "Idempotency-Since is a revision") end
  return crypto.sha256(table.concat({ key, ... }, "\0")):sub(1, 16), revision or store.revision()
end

-- Is it to be carried out, or only to be told what would become of it?
local function is_plan(req)
  local plan = req:param("plan")
  return plan == "true" or plan == "yes" or plan == "1"
end

-- Has @txn carried out, here or by the leader: status, body.
local function serve(req, who, txn, explain)
  local result, err = writes.submit(txn, leader.asker(req, who))
  if result == writes.FORWARD then return leader.forward(req, nil, who) end
  if not result then return nil, err end
  if result.status == "conflict" and explain then errors.raise("conflict", explain) end
  return 200, kv.answer(result)
end

local function mod_revision(req)
  local text = req:param("mod_revision")
  if not text then return nil end
  local revision = #text <= 18 and text:match("^%d+$") and math.tointeger(tonumber(text))
  if not revision then errors.raise("invalid", "mod_revision must be a number") end
  return revision
end

-- A change of one key, in the very words of src/daemon/api_change.c.
local function change(req, who, key, op)
  kv.check_key(key)
  if op.value and #op.value > kv.VALUE_MAX then
    errors.raise("too_big", ("a value of %d bytes; at most 1 MiB fits"):format(#op.value))
  end
  local txn, at, revision = { compare = {}, ops = { op } }, kv.PREFIX .. key, mod_revision(req)
  if revision then
    txn.compare[1] = revision == 0 and { key = at, absent = true } or { key = at, mod_revision = revision }
  end
  txn.id, txn.since = identity_of(req, req.method, req.path, req.query or "", req.body or "")
  return serve(req, who, txn, "the key is not as the request expects it")
end

function M.routes(router)
  router.route("POST", "/v1/txn", {}, function(req, _, who)
    local txn = kv.parse_txn(router.json(req))
    if is_plan(req) then return 200, writes.plan(txn, leader.asker(req, who)) end
    txn.id, txn.since = identity_of(req, "txn", req.body or "")
    return serve(req, who, txn)
  end)

  router.route("PUT", "/v1/kv/{key*}", {}, function(req, params, who)
    return change(req, who, params.key, { put = kv.PREFIX .. params.key, value = req.body or "" })
  end)

  router.route("DELETE", "/v1/kv/{key*}", {}, function(req, params, who)
    return change(req, who, params.key, { delete = kv.PREFIX .. params.key })
  end)
end

return M
