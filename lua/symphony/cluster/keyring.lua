-- The gossip keys in the state and how they are changed without a gap. Pure but for the encoding; rotation.lua carries
-- it out.
--
-- /secret/gossip: {keys = {{id, secret = base64 of 32 bytes, use}}, phase, since, reason?}. One key is in use for
-- sending, all are accepted; ids rise, so that a node can say in its metadata by one number what it accepts and uses:
--   idle    one key
--   accept  a new key was added, which nobody uses yet. When every node accepts it:
--   use     the new key is in use, the old one is accepted. When every node uses it, the old one is dropped: idle
-- Each step is one txn that compares the record: whoever leads next goes on from there. A node that does not follow
-- holds a step up for LAG_S at most. Until it has got the new key, through its agent, it then hears nobody.
--
-- /secret/gossip_wanted: {reason}: another rotation is wished for. It may be written at any time, by the txn that
-- removes a node in the first place, and is taken up when the one that is under way has ended: the key that this one
-- brings may have reached the node that was removed meanwhile.
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local json = require "symphony.json"

local M = {}

M.KEY, M.WANTED = "/secret/gossip", "/secret/gossip_wanted"
M.KEYS_MAX = 4 -- as in src/gossip/seal.h
M.LAG_S = 60
local ID_MAX = 0xffffffff

local PHASES = { idle = true, accept = true, use = true }

--- A new secret, as base64.
function M.generate()
  return crypto.base64(crypto.random(32))
end

--- The record of a new cluster.
function M.first(secret, now)
  return { keys = json.array { { id = 1, secret = secret, use = true } }, phase = "idle", since = math.floor(now) }
end

local function damaged(why)
  return nil, errors.new("corrupt", ("the gossip keys in the state (%s) are damaged: %s"):format(M.KEY, why))
end

--- The record @doc as it is meant: the first clusters had bare secrets as keys, the first of them in use. nil, err.
function M.read(doc)
  if type(doc) ~= "table" or type(doc.keys) ~= "table" or #doc.keys == 0 or #doc.keys > M.KEYS_MAX then
    return damaged("there are none, or too many")
  end
  local out = { keys = json.array {}, phase = doc.phase or "idle", since = doc.since or 0, reason = doc.reason }
  local used, last = 0, 0
  for i, key in ipairs(doc.keys) do
    if type(key) == "string" then key = { id = i, secret = key, use = i == 1 } end
    if type(key) ~= "table" or math.type(key.id) ~= "integer" or key.id <= last or key.id > ID_MAX
      or type(key.secret) ~= "string" then
      return damaged(("key %d of them"):format(i))
    end
    last = key.id
    used = used + (key.use and 1 or 0)
    out.keys[i] = { id = key.id, secret = key.secret, use = key.use == true }
  end
  if used ~= 1 or not PHASES[out.phase] then return damaged("not one of them is in use, or the phase is unknown") end
  return out
end

--- The keys for a node, {{id, secret, use}}, of the record @doc, which may be nil or damaged: then there are none.
function M.keys(doc)
  local record = doc and M.read(doc)
  return record and record.keys or json.array {}
end

--- Adds the wish for a rotation to @ops, of a txn that takes somebody out of the cluster or for another @reason.
function M.wanted(ops, reason)
  table.insert(ops, { put = M.WANTED, value = json.encode { reason = reason or "a node was removed" } })
end

--- The id of the newest key.
function M.newest(record)
  return record.keys[#record.keys].id
end

--- The record with which a rotation to @secret begins. @record is idle. nil, err.
function M.begin(record, secret, reason, now)
  local id = M.newest(record) + 1
  if id > ID_MAX then return damaged("there are no ids left") end
  local keys = json.array {}
  for _, key in ipairs(record.keys) do
    if key.use then keys[#keys + 1] = key end
  end
  keys[#keys + 1] = { id = id, secret = secret, use = false }
  return { keys = keys, phase = "accept", since = math.floor(now), reason = reason }
end

--- The record of the phase that comes next.
function M.advance(record, now)
  local keys, newest = json.array {}, M.newest(record)
  for _, key in ipairs(record.keys) do
    if record.phase == "accept" or key.id == newest then
      keys[#keys + 1] = { id = key.id, secret = key.secret, use = key.id == newest }
    end
  end
  return { keys = keys, phase = record.phase == "accept" and "use" or "idle", since = math.floor(now),
    reason = record.phase == "accept" and record.reason or nil }
end

--- Who has to follow: of the nodes with these @ids those that gossip takes for alive, and those that it does not know,
--- though they are ready or about to be. @member(id): what gossip says; @status(id): the status record; @self: the
--- leader's own id. Returns {{id, ring, ring_use}}.
function M.followers(ids, member, status, self)
  local out = {}
  for _, id in ipairs(ids) do
    local m = id ~= self and member(id) or nil
    local info = m and m.info or {}
    local follows = m and (m.state == "alive" or m.state == "suspect")
    if not m and id ~= self then
      local record = status(id)
      follows = not record or record.status == "ready"
    end
    if follows then out[#out + 1] = { id = id, ring = info.ring or 0, ring_use = info.ring_use or 0 } end
  end
  return out
end

--- The next step. @followers as above, @elapsed seconds since the phase began. Returns {step = "none" (idle), "wait",
--- "use" or "drop", waits = {ids of those that have not followed}, late = true when the step does not wait for them any
--- longer}.
function M.plan(record, followers, elapsed)
  if record.phase == "idle" then return { step = "none", waits = {} } end
  local field = record.phase == "accept" and "ring" or "ring_use"
  local id, waits = M.newest(record), {}
  for _, f in ipairs(followers) do
    if f[field] < id then waits[#waits + 1] = f.id end
  end
  local late = #waits > 0 and elapsed >= M.LAG_S
  local step = (#waits > 0 and not late) and "wait" or (record.phase == "accept" and "use" or "drop")
  return { step = step, waits = waits, late = late }
end

return M
