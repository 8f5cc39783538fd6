--- The way of a change past the policies.
---
--- A decision is bound to what it saw. Whoever asks gets, beside the decision, compares on everything that was read for
--- it and on the set of policies itself; in a txn with these the change takes effect only if none of that has changed.
--- An admission does the book-keeping:
---
---   local admission = engine.admission()
---   state.update(function()
---     admission:begin()
---     ...
---     local input = admission:decide("admit.change", { kind = ..., key = ..., new = record, ... }) -- may raise
---     local txn = { compare = {...}, ops = { state.put(key, input.new) } }
---     admission:bind(txn)
---     return txn, answer
---   end)
---
--- What fails here refuses (closed).
local answer = require "symphony.policy.answer"
local ask = require "symphony.policy.ask"
local async = require "symphony.async"
local errors = require "symphony.errors"
local events = require "symphony.cluster.events"
local json = require "symphony.json"
local limiter = require "symphony.cluster.limiter"
local log = require "sym.log"
local set = require "symphony.policy.set"
local sys = require "sym.sys"

local M = {}

M.ROUNDS = 3     -- so often is a decision made again when what it saw has changed
local MOVES = 20 -- and so often when only the policies have
local COMPARES_MAX = 188 -- of a txn, without those on which a request rests (cluster/basis.lua)

-- What a policy may change of an input.
local AMENDABLE = { ["admit.change"] = { "new" }, ["admit.join"] = { "labels", "name" } }

--- @input with what a policy may change of it, as @given has it.
function M.amended(hook, input, given)
  if type(given) ~= "table" then return input end
  local out = {}
  for k, v in pairs(input) do out[k] = v end
  for _, field in ipairs(AMENDABLE[hook] or {}) do
    if given[field] ~= nil and given[field] ~= json.null then out[field] = given[field] end
  end
  return out
end

local function fingerprint(c)
  return ("%s\0%s\0%s"):format(c.key or "\1" .. c.prefix, c.count and "count" or "",
    c.count or c.revision or c.mod_revision or "absent")
end

local Admission = {}
Admission.__index = Admission

--- The way of one change, which may have to be gone again; see the top.
function M.new()
  return setmetatable({ rounds = 0, moves = 0, compares = {}, trace = json.array {} }, Admission)
end

--- Before each try: what was said the last time counts for nothing.
function Admission:begin()
  self.set, self.compares, self.seen, self.trace, self.asked = nil, {}, {}, json.array {}, false
end

--- Has any policy a word in changes of users' keys? bind() then says that it is as it was here. Raises.
function Admission:decides_kv()
  self.set = set.ensure()
  return self.set.kv
end

--- What becomes of @input at @hook: the input as the policies have amended it, or it raises: "denied", a policy refuses
--- (err.policy names it); "policy_failed", one has failed; "too_big", it is more than they can be asked about. Returns
--- the decision too ({approve = true} at admit.join).
function Admission:decide(hook, input)
  local now = set.ensure()
  if not self.seen then self:begin() end
  self.set = self.set or now
  local out = ask.all(now.list, hook, input, { dry = self.dry })
  table.move(out.trace, 1, #out.trace, #self.trace + 1, self.trace)
  self.asked = self.asked or #out.names > 0
  self.last_reads = out.reads
  if out.failed then
    local err = ask.failed(out.failed)
    -- Else the policy could not be asked, and may be the next time.
    err.passing = not (out.failed.own or out.failed.err) or nil
    error(err, 0)
  end
  local decision = out.decision or {}
  if decision.refuse ~= nil then error(ask.refusal(out), 0) end
  for _, read in ipairs(out.reads) do
    for _, c in ipairs(answer.compares(read)) do
      local text = fingerprint(c)
      if not self.seen[text] then
        self.seen[text] = true
        self.compares[#self.compares + 1] = c
      end
    end
  end
  return M.amended(hook, input, out.amended), { approve = out.approve }
end

--- Makes @txn hold only if nothing has changed that its decisions saw; for state.submit it is decided then. Raises
--- "too_big" when that is more than a txn takes.
function Admission:bind(txn)
  local seen = self.set or set.ensure()
  self.own = #txn.compare
  table.insert(txn.compare, { prefix = set.PREFIX, revision = seen.revision })
  if self.asked then table.insert(txn.compare, { prefix = set.PREFIX, count = seen.count }) end
  self.of_set = #txn.compare
  table.move(self.compares, 1, #self.compares, #txn.compare + 1, txn.compare)
  if #txn.compare > COMPARES_MAX then
    errors.raise("too_big", ("the policies looked at so much that the change takes %d compares; at most %d fit"):format(
      #txn.compare, COMPARES_MAX), "change less at once")
  end
  txn.decided = true
  txn.conflicted = function(failed) return self:conflicted(failed) end
end

--- Compare @failed of the txn that was bound last did not hold. May it be tried again? nil: it was none of ours.
function Admission:conflicted(failed)
  if not failed or failed <= self.own then return nil end
  if failed <= self.of_set then
    set.changed()
    self.moves = self.moves + 1
    return self.moves <= MOVES
  end
  self.rounds = self.rounds + 1
  return self.rounds <= M.ROUNDS
end

--- The names of the policies that said something in the last try, in order: nil if none did.
function Admission:policies()
  local out, known = json.array {}, {}
  for _, row in ipairs(self.trace) do
    if row.said ~= "nothing" and not known[row.policy] then
      known[row.policy] = true
      out[#out + 1] = row.policy
    end
  end
  return #out > 0 and out or nil
end

--- " (amended by policy x)" when the last try was, for what is told of it; else "".
function Admission:amendments()
  local names, known = {}, {}
  for _, row in ipairs(self.trace) do
    if row.said == "amend" and not known[row.policy] then
      known[row.policy] = true
      names[#names + 1] = row.policy
    end
  end
  return #names > 0 and (" (amended by policy %s)"):format(table.concat(names, ", ")) or ""
end

--- The error when a decision was made as often as it may be.
function M.conflict()
  return errors.new("conflict", "what the policies looked at kept changing", "say it again")
end

-- A refusal is told in the events, but not each of a flood.
local refusals

function M.reset()
  refusals = limiter.new(5, 10, 256)
end
M.reset()

--- Tells in the events and the log that @err, from decide(), has refused @what (words); now and then, of a flood.
function M.note_refusal(err, what)
  if not err.policy then return end
  if not refusals:allow(err.policy, sys.mono_ms() / 1000) then return end
  local text = ("%s is refused: %s"):format(what, err.message)
  log.info("policy: " .. text)
  async.spawn(function()
    local kind = err.code == "denied" and "policy.refused" or "policy.failed"
    local ok, why = events.record { kind = kind, policy = err.policy, message = text }
    if not ok then log.warn("an event could not be recorded: " .. why.message) end
  end)
end

--- One decision by itself, for whoever builds the txn in another place: decision ({allow = true, new =, policies =} or
--- {allow = false, error =, policy =}), the compares that it takes, the trace.
function M.single(hook, input)
  local admission = M.new()
  local ok, result, decision = pcall(admission.decide, admission, hook, input)
  if not ok then
    if not errors.is(result) then error(result, 0) end
    return { allow = false, error = result, policy = result.policy }, {}, admission.trace
  end
  local txn = { compare = {} }
  admission:bind(txn)
  return { allow = true, input = result, new = result.new, approve = decision.approve or nil,
    policies = admission:policies() }, txn.compare, admission.trace
end

return M
