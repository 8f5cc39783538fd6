-- The tokens in the state: create, list, remove, rotate, and forgetting old ones.
local errors = require "symphony.errors"
local pki = require "symphony.cluster.pki"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"
local token = require "symphony.cluster.token"

local M = {}

local PREFIX = "/token/"
local TOKENS_MAX = 1024
local KEEP = 24 * 3600 -- an expired token is remembered so long, so that its use gets a clear answer
M.DEFAULT_TTL = 24 * 3600

-- The digest of the CA that signs, and the kv that says so.
local function ca_digest()
  local cluster, kv = state.cluster()
  if not cluster then return nil, kv end
  local digest, err = pki.signer(cluster)
  if not digest then return nil, err end
  return digest, kv
end

local function fresh(digest, options, now)
  local text, hash = token.generate(digest)
  local record = token.record(hash, options, now)
  record.ca = digest -- it is void when that CA is not trusted any more
  return text, PREFIX .. hash, record
end

local function shown(record, text)
  return { id = record.id, role = record.role, token = text, expires = record.expires, uses = record.uses,
    labels = record.labels, cidrs = record.cidrs, created = record.created }
end

-- For the first txn of a cluster: text, key, record.
M.fresh = fresh

-- Options as token.check_options has them; the answer has the text, the only time that it is seen.
function M.create(options)
  local ok, err = token.check_options(options)
  if not ok then return nil, err end
  return state.update(function()
    local digest, kv = assert(ca_digest())
    local rows = assert(state.list_raw(PREFIX, { limit = TOKENS_MAX }))
    if #rows >= TOKENS_MAX then
      errors.raise("too_big", ("there are %d tokens already"):format(#rows), "`symphony token rm` those not needed")
    end
    local text, key, record = fresh(digest, options, sys.now())
    return { compare = { state.absent(key), state.unchanged(kv) }, ops = { state.put(key, record) } },
      shown(record, text)
  end)
end

-- Records with hash, newest last.
function M.list()
  local rows, err = state.list(PREFIX)
  if not rows then return nil, err end
  local out = {}
  for _, kv in ipairs(rows) do
    local row = shown(kv.value)
    row.kv, row.hash = kv, kv.key:sub(#PREFIX + 1)
    out[#out + 1] = row
  end
  table.sort(out, function(a, b)
    if a.created ~= b.created then return a.created < b.created end
    return a.id < b.id
  end)
  return out
end

-- What @name means among @rows: an id, the beginning of one (4 characters or more), or the token itself. Pure.
function M.find(rows, name)
  if #name > 12 then
    local parsed, err = token.parse(name)
    if not parsed then return nil, err end
    name = token.hash(parsed.secret):sub(1, 10)
  end
  local found
  for _, row in ipairs(rows) do
    if row.id == name then return row end
    if #name >= 4 and row.id:sub(1, #name) == name then
      if found then return nil, errors.new("invalid", ("\"%s\" begins several token ids"):format(name)) end
      found = row
    end
  end
  if not found then
    return nil, errors.new("not_found", ("no token has the id \"%s\""):format(name), "`symphony token ls` lists them")
  end
  return found
end

function M.remove(name)
  return state.update(function()
    local row = assert(M.find(assert(M.list()), name))
    return { compare = { state.unchanged(row.kv) }, ops = { state.delete(row.kv.key) } },
      { id = row.id, role = row.role }
  end)
end

-- Replaces every token of @role by a new one, in one txn. A restricted token's limits do not carry over: rotate
-- answers "who may have seen them", and the new one is what `options` say.
function M.rotate(options)
  local ok, err = token.check_options(options)
  if not ok then return nil, err end
  return state.update(function()
    local digest, kv = assert(ca_digest())
    local rows = assert(M.list())
    local text, key, record = fresh(digest, options, sys.now())
    local txn = { compare = { state.absent(key), state.unchanged(kv) }, ops = { state.put(key, record) } }
    local removed = {}
    for _, row in ipairs(rows) do
      if row.role == options.role then
        if #txn.ops >= 126 then
          errors.raise("too_big", ("more than %d tokens of this role"):format(#removed),
            "`symphony token rm` some first")
        end
        table.insert(txn.compare, state.unchanged(row.kv))
        table.insert(txn.ops, state.delete(row.kv.key))
        removed[#removed + 1] = row.id
      end
    end
    local answer = shown(record, text)
    answer.removed = removed
    return txn, answer
  end)
end

-- Those of @rows (state.list) that are to be forgotten at @now. Pure.
function M.stale(rows, now)
  local out = {}
  for _, kv in ipairs(rows) do
    if kv.value.expires and kv.value.expires + KEEP < now then out[#out + 1] = kv end
  end
  return out
end

-- Forgets them; the leader calls this now and then.
function M.sweep()
  local rows = state.list(PREFIX)
  local old = rows and M.stale(rows, sys.now()) or {}
  if #old == 0 then return end
  local txn = { compare = {}, ops = {} }
  for i = 1, math.min(#old, 100) do
    txn.compare[i], txn.ops[i] = state.unchanged(old[i]), state.delete(old[i].key)
  end
  state.submit(txn)
end

return M
