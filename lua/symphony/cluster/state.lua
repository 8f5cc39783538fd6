-- The replicated state as Lua sees it: JSON values under keys, txns with retry, reads that say how fresh they are.
local async = require "symphony.async"
local basis = require "symphony.cluster.basis"
local errors = require "symphony.errors"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local node = require "sym.node"
local raft = require "sym.raft"
local store = require "sym.store"
local sys = require "sym.sys"

local M = {}

M.READ_MS = 1500   -- a linearizable read
M.STALE_MS = 1200  -- how long a command that may answer from local state waits for a fresh one
M.WRITE_MS = 4000  -- a txn: leaves the client its answer within five seconds
local LAST_MS = 500      -- what a txn gets at least, however late it is
local PAUSE_MS, PAUSE_MAX_MS = 4, 200
local PAGE = 256
local TURN = 128         -- that are looked at in one turn of the loop, where they may be thousands

M.QUORUM_HINT = node.quorum_hint

-- True when there is a state to ask; else nil, err that says what this daemon is instead.
function M.ready()
  local ok, err = identity.needs("manager")
  if ok then ok, err = identity.member() end
  if not ok then return nil, err end
  if not node.started() then
    local why = identity.trouble or "it is starting or ending"
    return nil, errors.new("closed", "this manager is not serving: " .. why)
  end
  return true
end

-- An error of the store or of raft with the hint that fits it.
local function explain(err)
  local code = err.code
  if code == "no_quorum" then return errors.new(code, err.message or "no quorum", M.QUORUM_HINT) end
  if code == "outcome_unknown" then
    return errors.new(code, err.message or "no answer in time", "it may or may not have been done: look, then repeat")
  end
  if code == "no_space" then
    return errors.new(code, err.message or "no space", "make room on the managers' disks; writes resume by themselves")
  end
  if code == "too_big" then
    return errors.new(code, err.message, "compare a longer prefix, fewer of them, or one key that every change puts")
  end
  return errors.new(code or "io", err.message or tostring(err), err.hint)
end
M.explain = explain

-- The local value of @key as bytes and its kv; nil if absent; nil, err.
function M.text(key)
  local kv, err = store.get(key)
  if not kv then return nil, err and explain(err) end
  return kv.value, kv
end

local function decode(kv)
  local value, err = json.decode(kv.value)
  if value == nil then
    return nil, errors.new("corrupt", ("the value of %s is not JSON: %s"):format(kv.key, tostring(err)))
  end
  return value
end

-- The local value of @key decoded, and its kv; nil if absent; nil, err.
function M.get(key)
  local text, kv = M.text(key)
  if not text then return nil, kv end
  local value, err = decode(kv)
  if value == nil then return nil, err end
  return value, kv
end

-- Every kv below @prefix, in order, from local state: {key, value (bytes), create_revision, mod_revision}.
-- opts.limit: at most so many; opts.bytes: no page is begun behind so many of keys and values; opts.after: from behind
-- this key. And whether there are more.
function M.list_raw(prefix, opts)
  opts = opts or {}
  local out, after, bytes = json.array(), opts.after, 0
  while true do
    local want = math.min(PAGE, (opts.limit or math.huge) - #out)
    if want < 1 or bytes >= (opts.bytes or math.huge) then return out, true end
    local page, more = store.list(prefix, { after = after, limit = math.tointeger(want) })
    if not page then return nil, explain(more) end
    for _, kv in ipairs(page) do
      out[#out + 1] = kv
      bytes = bytes + #kv.key + #kv.value
    end
    if not more then return out, false end
    after = page[#page].key
  end
end

-- The same, decoded: {key, value, create_revision, mod_revision}.
function M.list(prefix, opts)
  local rows, err = M.list_raw(prefix, opts)
  if not rows then return nil, err end
  for _, kv in ipairs(rows) do
    kv.value, err = decode(kv)
    if kv.value == nil then return nil, err end
  end
  return rows
end

-- Calls fn(kv) for every kv below @prefix, as list_raw has them, page by page, with a turn for others in between: what
-- comes or goes meanwhile is in it or not. In a task. true; nil, err.
function M.each_raw(prefix, fn)
  local after, more
  repeat
    local rows
    rows, more = M.list_raw(prefix, { after = after, limit = TURN })
    if not rows then return nil, more end
    for _, kv in ipairs(rows) do
      after = kv.key -- fn may change the kv
      fn(kv)
    end
    if more then async.sleep(0) end
  until not more
  return true
end

-- The same, decoded; nil, err ("corrupt") at the first value that is not JSON.
function M.each(prefix, fn)
  local damaged
  local ok, err = M.each_raw(prefix, function(kv)
    if damaged then return end
    kv.value, damaged = decode(kv)
    if not damaged then fn(kv) end
  end)
  if not ok or damaged then return nil, err or damaged end
  return true
end

M.BEHIND = "the machine of this manager went down: its state is older than what it has served before"
local BEHIND_HINT = "its log holds what is missing, and is gone through again once there is a quorum; if the others "
  .. "are gone for good: `symphony manager recover`"

-- Waits until local state holds all that was acknowledged before this call. Returns {stale = false, revision}.
-- Without a quorum: nil, err; or with opts.stale, {stale = true, reason, revision}: not when this manager has served
-- newer state before it was started (state_unknown), unless opts.stale is "any".
function M.read(opts)
  opts = opts or {}
  local ok, err = M.ready()
  if not ok then return nil, err end
  local _, failed = async.await(raft.read, opts.timeout_ms or (opts.stale and M.STALE_MS or M.READ_MS))
  if not failed then return { stale = false, revision = store.revision() } end
  if opts.stale and failed.code ~= "closed" then
    if opts.stale ~= "any" and (raft.status() or {}).behind then
      return nil, errors.new("state_unknown", M.BEHIND .. ", and there is no quorum", BEHIND_HINT)
    end
    return { stale = true, reason = failed.message or failed.code, revision = store.revision() }
  end
  return nil, explain(failed)
end

local USERS = "/kv/"

-- How many of the ops of @txn change keys of the users'.
local function users_ops(txn)
  local n = 0
  for _, op in ipairs(txn.ops or {}) do
    if (op.put or op.delete):sub(1, #USERS) == USERS then n = n + 1 end
  end
  return n
end

-- @txn as it is submitted in a task that rests on something (basis.lua): that is compared behind the txn's own, so
-- that the number of a compare that did not hold, which is remembered of a txn with an id, means the same to whoever
-- asks again.
local function resting(txn)
  local basis_of_task = async.bound()
  if not basis_of_task then return txn end
  local own = txn.compare or {}
  local compare = table.move(basis_of_task, 1, #basis_of_task, #own + 1, table.move(own, 1, #own, 1, {}))
  return { id = txn.id, seq = txn.seq, since = txn.since, compare = compare, ops = txn.ops }
end

-- One txn. {status, failed, revision, repeated} or nil, err: "denied" when the task rests on what the state does not
-- say (any more). With an id: what is "repeated" may have failed at a compare behind those of @txn, and then it was not
-- what the txn itself compares. Changes of users' keys go past the policies, whoever asks; with decided = true they
-- have, or nobody is to be asked.
function M.submit(txn, timeout_ms)
  local n = not txn.decided and users_ops(txn) or 0
  if n > 0 then return require("symphony.policy.writes").decide_first(txn, n == #txn.ops, timeout_ms) end
  local result, err = async.await(raft.submit, resting(txn), timeout_ms or M.WRITE_MS)
  if not result then return nil, explain(err) end
  if result.status == "conflict" then
    -- What was remembered of a txn with an id may have rested on something else. And who is out by now hears nothing of
    -- the state.
    local of_task = result.failed > #(txn.compare or {}) and not (result.repeated and txn.id)
    if of_task or not basis.holds(async.bound()) then return nil, basis.outcast() end
  end
  if result.status == "unknown" then
    return nil, explain { code = "outcome_unknown", message = "this txn is too old to tell whether it was applied" }
  end
  return result
end

-- Reads, decides and writes until nobody came between. @build() looks at local state, which is fresh, and returns
-- txn, answer; or nil, answer when there is nothing to change; or raises an error of symphony.errors, which is handed
-- back. Its txn has to compare what it relied on; its conflicted(failed), if there is one, may say false, and then that
-- was the last try. Returns the answer and the txn's result, and local state has it, if there is a quorum; nil, err:
-- "conflict" when others came between until opts.timeout_ms (WRITE_MS) had gone by.
function M.update(build, opts)
  local deadline = sys.mono_ms() + (opts and opts.timeout_ms or M.WRITE_MS)
  local pause = PAUSE_MS
  while true do
    local fresh, err = M.read { timeout_ms = M.READ_MS }
    if not fresh then return nil, err end
    local ok, txn, answer = pcall(build)
    if not ok then
      if type(txn) == "table" and txn.code then return nil, txn end
      error(txn, 0)
    end
    if not txn then return answer end
    local result
    result, err = M.submit(txn, math.max(LAST_MS, math.ceil(deadline - sys.mono_ms())))
    if not result then return nil, err end
    if result.status == "applied" then
      -- By way of another manager, which leads by now, it may be done there and not here yet.
      if (result.revision or 0) > store.revision() then M.read { timeout_ms = M.READ_MS } end
      return answer, result
    end
    if txn.conflicted and txn.conflicted(result.failed) == false then break end
    -- Those who were in each other's way once would be so again if all of them came back at once.
    local wait = math.random() * pause
    if sys.mono_ms() + wait >= deadline then break end
    async.sleep(wait)
    pause = math.min(2 * pause, PAUSE_MAX_MS)
  end
  return nil, errors.new("conflict", "others kept changing the same keys", "say it again")
end

-- Parts of txns.
function M.put(key, value)
  return { put = key, value = type(value) == "string" and value or json.encode(value) }
end
function M.delete(key)
  return { delete = key }
end
function M.absent(key)
  return { key = key, absent = true }
end
function M.unchanged(kv)
  return { key = kv.key, mod_revision = kv.mod_revision }
end

-- Kinds of what the state holds.
function M.cluster()
  local cluster, kv = M.get("/cluster")
  if cluster then return cluster, kv end
  return nil, kv or errors.new("state_unknown", "this manager has not got the cluster's state yet")
end

-- Every node record with its revision, in the order of their ids: {key, value, mod_revision}.
function M.nodes()
  return M.list("/node/")
end

-- Those of the managers, by way of their raft ids: there are few, however many workers there are.
function M.managers()
  local owners, err = M.list_raw("/raft/")
  if not owners then return nil, err end
  local out = {}
  for _, owner in ipairs(owners) do
    local n, kv = M.get("/node/" .. owner.value)
    if n then
      kv.value = n
      out[#out + 1] = kv
    elseif kv then
      return nil, kv
    end
  end
  table.sort(out, function(a, b) return a.value.raft_node_id < b.value.raft_node_id end)
  return out
end

local PREFIX_MIN = 6
local NODE_HINT = "`symphony node ls` lists the nodes"

-- Is @name the beginning of node id @id, and long enough for one?
function M.begins(id, name)
  return #name >= PREFIX_MIN and id:sub(1, #name) == name
end

function M.ambiguous(name)
  return errors.new("invalid", ("\"%s\" is ambiguous: several node ids begin so"):format(name:sub(1, 80)), NODE_HINT)
end

-- The node that @name means: its name, node id or raft id, or the beginning of a node id (6 characters or more) that no
-- other has. Its record and kv from local state; nil, err: "not_found", or "invalid" when several ids begin so.
function M.node(name)
  local key = #name <= 64 and "/node/" .. name
  local id = key and (M.text("/name/" .. name) or (name:find("^%d+$") and M.text("/raft/" .. name)))
  if id then key = "/node/" .. id end
  local n, kv
  if key then n, kv = M.get(key) end
  if n or kv then return n, kv end
  if key and not id and #name >= PREFIX_MIN then
    local rows, err = M.list(key, { limit = 2 })
    if not rows then return nil, err end
    if #rows > 1 then return nil, M.ambiguous(name) end
    if rows[1] then return rows[1].value, rows[1] end
  end
  return nil, errors.new("not_found", ("no node is called \"%s\""):format(name:sub(1, 80)), NODE_HINT)
end

return M
