-- Bringing the users' data to what a backup holds, as a sequence of txns that can be broken off and said again: each
-- time only what still differs is written. /cluster/restoring tells that one is under way.
local backup = require "symphony.cluster.backup"
local errors = require "symphony.errors"
local json = require "symphony.json"
local kv = require "symphony.cluster.kv"
local values = require "symphony.cluster.values"

local M = {}

local KEY = "/cluster/restoring"
M.OPS_MAX = 120
M.BYTES_MAX = 1 << 20
local PAGE_MAX = 512
local PAGE_BYTES = 4 << 20

-- Steps of the client -------------------------------------------------------------------------------------------------

-- What differs between @wanted (entries of a backup, sorted) and what is there. @there: an iterator over {key, hash},
-- sorted. @hash(value) as the daemon hashes. Returns an iterator over {key, value | nil}. Pure.
function M.diff(wanted, there, hash)
  local i, present = 1, there()
  return function()
    while true do
      local row = wanted[i]
      if not row and not present then return nil end
      if present and (not row or present.key < row.key) then
        local gone = present.key
        present = there()
        return { key = gone }
      elseif not present or row.key < present.key then
        i = i + 1
        return { key = row.key, value = row.value }
      end
      local same = present.hash == hash(row.value)
      i, present = i + 1, there()
      if not same then return { key = row.key, value = row.value } end
    end
  end
end

-- Groups what @changes yields into lists that fit one txn, and one request. Pure.
function M.batches(changes)
  local held
  return function()
    local batch, size = {}, 0
    while true do
      local change = held or changes()
      held = nil
      if not change then return #batch > 0 and batch or nil end
      local _, n = values.put_short({}, "v", change.value or "")
      n = n + 2 * #change.key
      if #batch >= M.OPS_MAX or (#batch > 0 and size + n > M.BYTES_MAX) then
        held = change
        return batch
      end
      batch[#batch + 1] = change
      size = size + n
    end
  end
end

-- A list of changes as JSON for POST /v1/restore/apply.
function M.encode(batch)
  local ops = json.array {}
  for i, change in ipairs(batch) do
    local op = values.put_bytes({}, "k", change.key)
    if change.value then values.put_short(op, "v", change.value) else op.d = true end
    ops[i] = op
  end
  return ops
end

-- The entries that may go into a cluster: all of them, or of another cluster those that make sense. Pure.
function M.select(entries, foreign)
  if not foreign then return entries end
  local out = {}
  for _, row in ipairs(entries) do
    if backup.is_covered(row.key, backup.FOREIGN_PREFIXES) then out[#out + 1] = row end
  end
  return out
end

-- Steps of the daemon -------------------------------------------------------------------------------------------------

local function text_field(body, name, max)
  local text = body[name]
  if type(text) ~= "string" or #text > max then errors.raise("invalid", name .. " is missing or too long") end
  return text
end

-- May a backup of cluster @theirs be restored into @ours? foreign (bool); nil, err. Pure.
function M.check_cluster(ours, theirs, force)
  if ours == theirs then return false end
  if force then return true end
  return nil, errors.new("conflict", ("this backup is of another cluster, %s; this one is %s"):format(theirs, ours),
    "--force restores it all the same: keys, policies and resources, but not tokens and assignments")
end

-- Begins, or goes on with, a restore: {foreign, prefixes}. Raises.
function M.begin(body)
  local state, sys = require "symphony.cluster.state", require "sym.sys"
  local digest, source = text_field(body, "digest", 64), text_field(body, "source", 256)
  local theirs = text_field(body, "cluster_id", 64)
  return assert(state.update(function()
    local cluster = assert(state.cluster())
    local foreign, err = M.check_cluster(cluster.id, theirs, body.force == true)
    if foreign == nil then error(err, 0) end
    local answer = { foreign = foreign, prefixes = foreign and backup.FOREIGN_PREFIXES or backup.PREFIXES }
    local known, row = state.get(KEY)
    if known and known.digest == digest then
      answer.resumed = true
      return nil, answer
    end
    local record = { digest = digest, source = source, cluster_id = theirs, foreign = foreign,
      started = math.floor(sys.now()) }
    return { compare = { row and state.unchanged(row) or state.absent(KEY) }, ops = { state.put(KEY, record) } }, answer
  end))
end

-- The restore that is under way with this digest, and its kv. Raises.
local function current(body)
  local state = require "symphony.cluster.state"
  local record, row = state.get(KEY)
  if not record or record.digest ~= body.digest then
    errors.raise("conflict", "no restore of this backup is under way", "say `symphony cluster restore` again")
  end
  return record, row
end

-- Keys with the hashes of their values: {keys, more}. @after: a key, or nil. Raises.
function M.page(prefix, after, limit)
  local state, crypto = require "symphony.cluster.state", require "sym.crypto"
  if not backup.is_covered(prefix) then errors.raise("denied", "these keys are not restored") end
  limit = math.min(limit or PAGE_MAX, PAGE_MAX)
  local keys, bytes, more = json.array {}, 0, false
  while #keys < limit and bytes < PAGE_BYTES do
    local rows = assert(state.list_raw(prefix, { after = after, limit = 16 }))
    for _, row in ipairs(rows) do
      bytes = bytes + #row.value
      keys[#keys + 1] = values.put_bytes({ h = crypto.hex(crypto.sha256(row.value)) }, "k", row.key)
      after = row.key
    end
    more = #rows == 16
    if not more then break end
  end
  return { keys = keys, more = more }
end

-- One batch. Raises.
function M.apply(body)
  local state = require "symphony.cluster.state"
  if type(body.ops) ~= "table" or #body.ops == 0 or #body.ops > M.OPS_MAX then
    errors.raise("invalid", "ops is an array of 1 to " .. M.OPS_MAX)
  end
  local record, row = current(body)
  local prefixes = record.foreign and backup.FOREIGN_PREFIXES or backup.PREFIXES
  local txn = { compare = { state.unchanged(row) }, ops = {}, decided = true } -- as it was, whatever policies say now
  for i, op in ipairs(body.ops) do
    local key = type(op) == "table" and values.get_bytes(op, "k")
    if not key or not backup.is_covered(key, prefixes) then errors.raise("denied", "this key is not restored") end
    local value, err = values.get_bytes(op, "v")
    if err then error(err, 0) end
    if value then kv.check_value(value) end
    txn.ops[i] = value and { put = key, value = value } or { delete = key }
  end
  local result = assert(state.submit(txn))
  if result.status ~= "applied" then errors.raise("conflict", "another restore has begun meanwhile") end
  return { revision = result.revision }
end

-- The end: the mark goes, and the epoch changes, so that nobody takes what he knew before for true. Raises.
function M.finish(body)
  local state = require "symphony.cluster.state"
  return assert(state.update(function()
    local _, row = current(body)
    local cluster, cluster_row = state.get("/cluster")
    if not cluster then errors.raise("corrupt", "the cluster's record is missing") end
    cluster.epoch = (cluster.epoch or 1) + 1
    return { compare = { state.unchanged(row), state.unchanged(cluster_row) },
      ops = { state.delete(KEY), state.put("/cluster", cluster) } }, { epoch = cluster.epoch }
  end))
end

return M
