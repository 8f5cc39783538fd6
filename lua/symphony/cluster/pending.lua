-- Join requests without a token, waiting for a person. Few, short-lived, and never more in the log than that.
local errors = require "symphony.errors"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"

local M = {}

local PREFIX = "/pending/"
M.MAX = 64
M.LIFE = 3600
local ID_CHARS = 10
local FINGERPRINT_MIN = 16

-- The id of the request with this key: the same key is the same request.
function M.id(fingerprint)
  return fingerprint:sub(1, ID_CHARS)
end

function M.key(fingerprint)
  return PREFIX .. M.id(fingerprint)
end

-- What is kept of a request. @node: the record of the manager that asks to come back under a new raft id, or nil. Pure.
function M.record(request, from, now, node)
  return {
    id = M.id(request.fingerprint), role = request.role, csr = request.csr, fingerprint = request.fingerprint,
    name = node and node.name or request.name, named = request.named, addresses = request.addresses,
    services = request.services,
    replaces = node and node.raft_node_id, from = from, version = request.version, expires = math.floor(now) + M.LIFE,
  }
end

-- Requests that wait, oldest first.
function M.list()
  local rows, err = state.list(PREFIX)
  if not rows then return nil, err end
  local now, out = sys.now(), {}
  for _, kv in ipairs(rows) do
    if kv.value.expires > now and not kv.value.rejected then out[#out + 1] = kv end
  end
  table.sort(out, function(a, b) return a.value.expires < b.value.expires end)
  return out
end

-- A fingerprint as a person gives it, to lower case hex: colons and blanks are dropped. nil, err.
function M.parse_fingerprint(text)
  local hex = (text or ""):gsub("[:%s]", ""):lower()
  if not hex:match("^%x+$") or #hex < FINGERPRINT_MIN or #hex > 64 then
    return nil, errors.new("invalid", ("a fingerprint is 64 hex digits, or at least the first %d of them"):format(
      FINGERPRINT_MIN), "the joining machine prints it")
  end
  return hex
end

-- The request that @id means. Raises.
function M.find(id)
  local kv = state.list(PREFIX .. id)
  if not kv or #id < 4 or #kv ~= 1 or kv[1].value.rejected or kv[1].value.expires <= sys.now() then
    errors.raise("not_found", ("no request \"%s\" waits for approval"):format(id:sub(1, 64)),
      "`symphony node pending` lists them; a request lives for an hour")
  end
  return kv[1]
end

-- Is @record the one that the person at the other machine reads out? true; nil, err. Pure.
function M.confirm(record, fingerprint)
  local hex, err = M.parse_fingerprint(fingerprint)
  if not hex then return nil, err end
  if record.fingerprint:sub(1, #hex) ~= hex then
    return nil, errors.new("denied", "the fingerprint is not that of the request's key",
      "compare it with what the joining machine prints; if they differ, somebody else asks: `symphony node reject "
      .. record.id .. "`")
  end
  return true
end

-- Turns a request down. It is remembered until it would have expired, so that asking again changes nothing.
function M.reject(id)
  return state.update(function()
    local kv = M.find(id)
    local record = kv.value
    record.rejected = true
    return { compare = { state.unchanged(kv) }, ops = { state.put(kv.key, record) } },
      { id = record.id, fingerprint = record.fingerprint, name = record.name }
  end)
end

-- Forgets those that have expired; the leader calls this now and then.
function M.sweep()
  local rows = state.list(PREFIX) or {}
  local txn, now = { compare = {}, ops = {} }, sys.now()
  for _, kv in ipairs(rows) do
    if kv.value.expires <= now and #txn.ops < 100 then
      table.insert(txn.compare, state.unchanged(kv))
      table.insert(txn.ops, state.delete(kv.key))
    end
  end
  if #txn.ops > 0 then state.submit(txn) end
end

return M
