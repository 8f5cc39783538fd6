--- Changes of the users' keys, past the policies that have a word in them.
---
--- A txn that no policy concerns says so with a compare of /policy/ and goes into the log from wherever it came in; so
--- do the changes of single keys in src/daemon/api_change.c. As soon as a policy concerns them they are decided on
--- first, and a manager that has not heard of it yet finds its compare broken: nothing gets past a policy that was set
--- before.
--- Another manager than the leader tries once; where it is refused there, or was overtaken, the leader decides.
local async = require "symphony.async"
local engine = require "symphony.policy.engine"
local errors = require "symphony.errors"
local json = require "symphony.json"
local kv = require "symphony.cluster.kv"
local leader = require "symphony.cluster.leader"
local raft = require "sym.raft"
local state = require "symphony.cluster.state"
local store = require "sym.store"
local sys = require "sym.sys"
local values = require "symphony.cluster.values"

local M = {}

local LAST_MS = 500
local ATTEMPTS_MAX = 64 -- remembered of one id
local TURN = 16         -- changes of which the policies are sought in one turn of the loop

--- What submit() returns when the leader has to decide, and this manager is not the leader.
M.FORWARD = {}

-- Decisions that looked at the same would only make each other begin again: once one was in another's way, they go one
-- after the other until nobody waits.
local turn, contended = async.mutex(), 0

local function is_leader()
  local status, err = raft.status()
  if not status then error(state.explain(err), 0) end
  return status.state == "leader"
end

-- Bytes as a policy sees them: text, and beside it, where it is none, the bytes in base64.
local function show(input, name, bytes)
  if bytes == nil then return end
  values.put_bytes(input, name, bytes)
  input[name] = input[name] or json.clean(bytes)
end

-- The change that @op makes for @who, given what the key holds: {value, mod_revision} or nil.
local function input_of(op, old, who)
  local input = { kind = "kv", action = op.put and "put" or "delete", who = who,
    old_revision = old and old.mod_revision or nil }
  show(input, "key", (op.put or op.delete):sub(#kv.PREFIX + 1))
  show(input, "old", old and old.value)
  show(input, "new", op.value)
  return input
end

local function covers(read, key)
  if read.key then return read.key == key end
  return type(read.prefix) == "string" and key:sub(1, #read.prefix) == read.prefix
end

-- A policy sees the state as it is, without what stands before in the same txn: where it looked at that, its word is
-- worth nothing.
local function check_alone(admission, ops, at)
  for _, read in ipairs(admission.last_reads or {}) do
    for i = 1, at - 1 do
      if covers(read, ops[i].put or ops[i].delete) then
        errors.raise("invalid", "a policy looked at keys that the same txn changes before: it cannot decide on them "
          .. "together", "change them one by one")
      end
    end
  end
end

-- Decides on each op; the ops as they were amended, and the compares on what the keys held. Raises.
local function decide(admission, ops, who)
  local out, compares, now = {}, {}, {}
  for i, op in ipairs(ops) do
    if i % TURN == 0 then async.sleep(0) end
    local key = op.put or op.delete
    local old = now[key]
    if not old then
      local value, row = state.text(key)
      if not value and row then error(row, 0) end
      old = value and { value = value, mod_revision = row.mod_revision } or {}
      compares[#compares + 1] = value and state.unchanged(row) or state.absent(key)
    end
    local input = input_of(op, old.value and old or nil, who)
    local given = input.new
    local result = admission:decide("admit.change", input)
    check_alone(admission, ops, i)
    local value = op.value
    if op.put and result.new ~= given then
      if type(result.new) ~= "string" then
        errors.raise("policy_failed", "a policy made something else of the value than a text, so this is refused")
      end
      value = kv.check_value(result.new)
    end
    out[i] = op.put and { put = key, value = value } or { delete = key }
    now[key] = { value = value, mod_revision = old.mod_revision }
  end
  return out, compares
end

local function note(err, txn)
  local op = txn.ops[1]
  engine.note_refusal(err, ("%s of key %s"):format(op.put and "a change" or "a delete",
    json.clean((op.put or op.delete):sub(#kv.PREFIX + 1):sub(1, 100))))
end

-- What has become of @txn, which has an id, if it was tried before; else nil and the number of the next try: the first
-- one is that of the fast way, so that each finds what was done by the other. Raises.
local function tried(txn, own)
  assert(state.read())
  for seq = 0, ATTEMPTS_MAX do
    local result = store.result(txn.id, seq)
    if not result then return nil, seq end
    result.repeated = true
    if result.status == "applied" then return result end
    -- Else the owner of the certificate was no member then, or a policy was in the way: nothing was done.
    if result.failed and result.failed <= own then return result end
  end
  errors.raise("conflict", "this request was in the way of others too often", "say it with another Idempotency-Key")
end

-- @ops of @txn and those that go with them.
local function with_others(ops, txn)
  local out = table.move(ops, 1, #ops, 1, {})
  return table.move(txn.also or {}, 1, #(txn.also or {}), #out + 1, out)
end

-- Decides on @txn and submits it, bound to what was seen: the result, which may be a conflict. @seq: of its id. Returns
-- nil, err when a policy refuses or fails; raises what the submission fails with.
local function decide_once(admission, txn, who, seq, ms)
  local own = #txn.compare
  admission:begin()
  local ok, ops, compares = pcall(decide, admission, txn.ops, who)
  if not ok then
    if not errors.is(ops) or ops.code == "canceled" then error(ops, 0) end
    return nil, ops
  end
  local bound = { compare = table.move(txn.compare, 1, own, 1, {}), ops = with_others(ops, txn), id = txn.id,
    since = txn.since, seq = seq }
  table.move(compares, 1, #compares, own + 1, bound.compare)
  admission:bind(bound)
  local result = assert(state.submit(bound, ms))
  result.policies = admission:amendments() ~= "" and admission:policies() or nil
  return result
end

-- Did @result come to nothing because of what the policies saw, and not of what @txn itself compares?
local function is_overtaken(result, txn)
  return result.status == "conflict" and result.failed > #txn.compare
end

-- One try on the leader: the result; nil, true when it may be tried again. Raises.
local function try(admission, txn, who, deadline)
  local known, seq
  if txn.id then known, seq = tried(txn, #txn.compare) end
  if known then return known end
  local at = store.revision()
  local result, err = decide_once(admission, txn, who, seq, math.max(LAST_MS, math.ceil(deadline - sys.mono_ms())))
  if not result then
    -- A leader that is none any more may be behind: it makes sure once before it says no.
    if err.code == "denied" and not admission.fresh then
      assert(state.read())
      admission.fresh = true
      if store.revision() ~= at then return nil, true end
    end
    note(err, txn)
    error(err, 0)
  elseif not is_overtaken(result, txn) then
    return result
  end
  local again = admission:conflicted(result.failed)
  if again == nil then -- what the key held counts as something that the policies saw
    admission.rounds = admission.rounds + 1
    again = admission.rounds <= engine.ROUNDS
  end
  return nil, again
end

-- The same on another manager, to spare the way to the leader when all goes well: what was decided is bound to what was
-- seen there. The result; nil when the leader has to decide: it knows best, and does one after the other. Raises.
local function try_elsewhere(txn, who)
  local known, seq
  if txn.id then known, seq = tried(txn, #txn.compare) end
  if known then return known end
  local admission = engine.admission()
  local result, err = decide_once(admission, txn, who, seq)
  if not result then
    if err.code == "denied" then return nil end
    note(err, txn)
    error(err, 0)
  elseif is_overtaken(result, txn) then
    admission:conflicted(result.failed)
    return nil
  end
  return result
end

-- Gives back what take_turn took.
local function leave(lock)
  if lock.waits then contended = contended - 1 end
  if lock.held then getmetatable(lock.held).__close(lock.held) end
end

local function take_turn(lock, deadline)
  contended, lock.waits = contended + 1, true
  lock.held = turn:lock(math.max(1, deadline - sys.mono_ms()))
  if not lock.held then
    errors.raise("busy", "too many changes wait for what the policies decide", "say it again")
  end
end

-- On the leader: decides, and writes what was decided. Raises.
local function decided(txn, who)
  local deadline = sys.mono_ms() + state.WRITE_MS
  local admission = engine.admission()
  local lock <close> = setmetatable({}, { __close = leave })
  while true do
    if contended > 0 and not lock.waits then take_turn(lock, deadline) end
    local result, again = try(admission, txn, who, deadline)
    if result then return result end
    if not again or sys.mono_ms() >= deadline then error(engine.conflict(), 0) end
    if not lock.waits then take_turn(lock, deadline) end
  end
end

-- Straight into the log, as nobody decides, which @admission has seen. The result; nil when somebody does now. Raises.
local function undecided(admission, txn)
  local result, seq
  if txn.id then
    result, seq = tried(txn, #txn.compare)
    if result then return result end
  end
  local bound = { compare = table.move(txn.compare, 1, #txn.compare, 1, {}), ops = with_others(txn.ops, txn),
    id = txn.id, since = txn.since, seq = seq }
  admission:bind(bound)
  result = assert(state.submit(bound))
  if result.status == "conflict" and result.failed > #txn.compare then
    engine.changed()
    assert(state.read()) -- this manager has not heard yet of the policies that were set
    return nil
  end
  return result
end

local function submit(txn, who)
  for _ = 1, 20 do
    local admission = engine.admission()
    if not admission:decides_kv() then
      local result = undecided(admission, txn)
      if result then return result end
    elseif is_leader() then
      return decided(txn, who)
    else
      return try_elsewhere(txn, who) or M.FORWARD
    end
  end
  error(engine.conflict(), 0)
end

--- Carries out @txn ({compare, ops} of kv.parse_txn, id, since), of which every op changes a user's key, for @who
--- ({kind, name, role}). @txn.also: ops on other keys that go with it, on which nobody decides; on the leader only.
--- Returns {status, failed (of its own compares), revision, repeated, policies = who amended it}; M.FORWARD when the
--- leader has to be asked; nil, err: "denied" (err.policy refuses), "policy_failed", "conflict".
function M.submit(txn, who)
  local ready, gone = state.ready()
  if not ready then return nil, gone end
  local ok, result = pcall(submit, txn, who)
  if ok then return result end
  if errors.is(result) then return nil, result end
  error(result, 0)
end

-- The document of POST /v1/txn for @txn.
local function document(txn)
  local doc = { compare = json.array {}, ops = json.array {} }
  for i, c in ipairs(txn.compare) do
    local row = { mod_revision = c.mod_revision, create_revision = c.create_revision, absent = c.absent,
      revision = c.revision, count = c.count }
    if c.value then values.put_bytes(row, "value", c.value) end
    values.put_bytes(row, c.prefix and "prefix" or "key", (c.prefix or c.key):sub(#kv.PREFIX + 1))
    doc.compare[i] = row
  end
  for i, op in ipairs(txn.ops) do
    local row = values.put_bytes({}, op.put and "put" or "delete", (op.put or op.delete):sub(#kv.PREFIX + 1))
    if op.put then values.put_bytes(row, "value", op.value) end
    doc.ops[i] = row
  end
  return doc
end

--- The same from a command in this daemon, whoever leads: {revision, repeated, policies}; nil, err ("conflict" when
--- one of its compares does not hold).
function M.change(txn, who)
  local result, err = M.submit(txn, who)
  if result == M.FORWARD then return leader.call("POST", "/v1/txn", document(txn)) end
  if not result then return nil, err end
  local ok, answer = pcall(kv.answer, result)
  if not ok then return nil, answer end
  return answer
end

local function is_users(c)
  local name = c.prefix or c.key
  return name:sub(1, #kv.PREFIX) == kv.PREFIX
end

-- Has the leader carry out @txn, as state.submit answers.
local function ask_leader(txn)
  for _, c in ipairs(txn.compare) do
    if not is_users(c) then
      return nil, errors.new("not_leader", "only the leader can compare these keys", "ask there")
    end
  end
  local result, err = leader.call("POST", "/v1/txn", document(txn))
  if not result then return nil, err end
  result.status, result.repeated = "applied", result.repeated or false
  return result
end

--- For state.submit: @txn, which nobody has decided on, changes users' keys; @only these, or others too. As
--- state.submit answers. Others can be changed together with them only while no policy has a word in it.
function M.decide_first(txn, only, timeout_ms)
  local plain = { compare = txn.compare or {}, ops = txn.ops, id = txn.id, since = txn.since }
  if only then
    local result, err = M.submit(plain, leader.here())
    if result == M.FORWARD then return ask_leader(plain) end
    return result, err
  end
  local admission = engine.admission()
  if admission:decides_kv() then
    return nil, errors.new("denied", "policies decide on users' keys: they are not changed together with others")
  end
  plain.compare = table.move(plain.compare, 1, #plain.compare, 1, {})
  admission:bind(plain)
  local result, err = state.submit(plain, timeout_ms)
  if result and result.status == "conflict" then plain.conflicted(result.failed) end
  return result, err
end

--- What would become of @txn: {plan = true, allow, refuse, code, policy, policies = trace, ops = as they would be
--- done}. Writes nothing. Raises.
function M.plan(txn, who)
  assert(state.read())
  local admission = engine.admission()
  admission.dry = true
  admission:begin()
  local row = { plan = true, allow = true }
  local ok, ops = pcall(decide, admission, txn.ops, who)
  if not ok then
    if not errors.is(ops) then error(ops, 0) end
    row.allow, row.refuse, row.code, row.policy = false, ops.message, ops.code, ops.policy
  else
    row.ops = document({ compare = {}, ops = ops }).ops
  end
  row.policies = admission.trace
  return row
end

return M
