--- The policies as this manager runs them: the set that is enabled in the state, kept in the sandbox, and what they
--- say.
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
--- What fails in a hook of admission refuses (closed); what fails in place.<kind> leaves the placement as it is; a
--- reaction that fails does nothing. A policy that fails FAILURES times in a row is disabled.
local answer = require "symphony.policy.answer"
local async = require "symphony.async"
local errors = require "symphony.errors"
local events = require "symphony.cluster.events"
local json = require "symphony.json"
local limiter = require "symphony.cluster.limiter"
local log = require "sym.log"
local match = require "symphony.policy.match"
local node = require "sym.node"
local state = require "symphony.cluster.state"
local store = require "sym.store"
local sys = require "sym.sys"

local M = {}

M.PREFIX = "/policy/"
M.FAILURES = 10  -- in a row, of one policy
M.ROUNDS = 3     -- so often is a decision made again when what it saw has changed
local MOVES = 20 -- and so often when only the policies have
local COMPARES_MAX = 188 -- of a txn, without those on which a request rests (cluster/basis.lua)
local WAIT_MS = 3000  -- for the set to be in the sandbox
local RETRY_MS = 1000 -- what does not load is tried again
local ADMISSION = "^admit%."

-- {revision = the highest of /policy/, count, list = enabled policies in the order in which they run}; of each {name,
-- version, sha256, revision (of its record), about, broken = why it is not in the sandbox}. nil: not known yet.
local current
local loaded = {}      -- name -> sha256: what the sandbox holds
local dirty = true     -- the state may have gone on since
local syncing = async.mutex()
local failures = {}    -- name -> {version, n}: in a row, on this manager
local counts = { allow = 0, refuse = 0, amend = 0, nothing = 0, failed = 0, approve = 0, choose = 0, commands = 0 }
local watch, task
local wakeup = async.event()

-- A refusal is told in the events, but not each of a flood.
local function new_refusals() return limiter.new(5, 10, 256) end
local refusals = new_refusals()

local function sandbox() return require "sym.policy" end

-- The set -------------------------------------------------------------------------------------------------------------

local function in_order(a, b)
  if a.about.order ~= b.about.order then return a.about.order < b.about.order end
  return a.name < b.name
end

-- What the state has: a set as above, and the sources by name. Raises.
local function read_set()
  local rows = assert(state.list_raw(M.PREFIX))
  local set, sources = { revision = 0, count = #rows, list = {}, off = {} }, {}
  for _, kv in ipairs(rows) do
    set.revision = math.max(set.revision, kv.mod_revision)
    local record = json.decode(kv.value)
    if type(record) == "table" and record.enabled == true and type(record.source) == "string" then
      local ok, about = pcall(match.check_about, record.about)
      local entry = { name = kv.key:sub(#M.PREFIX + 1), version = record.version, sha256 = record.sha256,
        revision = kv.mod_revision }
      -- One that cannot say what it concerns may concern anything.
      entry.about = ok and about or { summary = "", order = match.ORDER, hooks = { "admit.join", "admit.change" },
        match = {} }
      entry.broken = not ok and about or nil
      entry.own_fault = not ok
      set.list[#set.list + 1] = entry
      sources[entry.name] = record.source
    elseif type(record) == "table" and record.reason then
      table.insert(set.off, { name = kv.key:sub(#M.PREFIX + 1), reason = record.reason })
    end
  end
  table.sort(set.list, in_order)
  return set, sources
end

local function concerns_kv(set)
  for _, entry in ipairs(set.list) do
    if match.concerns_kv(entry.about) then return true end
  end
  return false
end

local function load_one(entry, source)
  if loaded[entry.name] == entry.sha256 then return end
  local about, err = async.await(sandbox().load, entry.name, source)
  if about then
    loaded[entry.name], entry.broken = entry.sha256, nil
    return
  end
  loaded[entry.name] = nil
  entry.broken, entry.tried = err, sys.mono_ms()
  entry.own_fault = err.code == "invalid" or err.policy == entry.name
  log.error(("policy: %s does not load: %s"):format(entry.name, err.message))
end

-- Brings the sandbox in step with @set.
local function carry(set, sources)
  for name in pairs(loaded) do
    if not sources[name] then
      sandbox().drop(name)
      loaded[name] = nil
    end
  end
  for _, entry in ipairs(set.list) do load_one(entry, sources[entry.name]) end
  if next(loaded) or #set.list > 0 then sandbox().loaded(set.revision, set.count) end
end

-- Looks at the state and loads what is new. Raises.
local function sync()
  local lock <close>, err = syncing:lock(WAIT_MS)
  if not lock then error(err, 0) end
  while dirty or not current do
    dirty = false
    local set, sources = read_set()
    -- The fast way of changes of keys ends before the policies are ready, and begins behind them.
    local lua_decides = concerns_kv(set)
    node.kv_policies(not lua_decides and set.revision or nil)
    local ok, why = pcall(carry, set, sources)
    if not ok then
      dirty = true
      error(why, 0)
    end
    for name in pairs(failures) do
      if not sources[name] then failures[name] = nil end
    end
    set.kv = lua_decides
    current = set
    local whole = lua_decides
    for _, entry in ipairs(set.list) do whole = whole and not entry.broken end
    if whole and not dirty then
      node.kv_policies(nil, set.revision, set.count, require("symphony.cluster.leader").here().name)
    end
  end
end

local function retry_broken(set)
  for _, entry in ipairs(set.list) do
    if entry.broken and sys.mono_ms() - (entry.tried or 0) > RETRY_MS then dirty = true end
  end
end

-- The set that runs now. Raises.
local function ensure()
  if current then retry_broken(current) end
  if dirty or not current then sync() end
  return current
end

--- The state has other policies now, or may have: what is asked from here on goes by those.
function M.changed()
  dirty = true
  wakeup:set()
end

local function on_watch(ended)
  if ended and watch then
    watch:close()
    watch = nil
  end
  M.changed()
end

local function loop()
  while true do
    if not watch and node.started() then
      dirty = true
      watch = store.watch(M.PREFIX, store.revision(), on_watch)
    end
    local ok, err = xpcall(ensure, errors.handler)
    if not ok and err.code ~= "canceled" and err.code ~= "closed" then
      log.error("policy: " .. (err.traceback or err.message))
    end
    wakeup:wait(not (ok and watch) and RETRY_MS or nil)
    wakeup = async.event()
  end
end

--- Keeps the sandbox in step with the state until stop(). Said twice, it is one.
function M.start()
  node.on_kv_failed(function(_, name, why, key) M.kv_failed(name, why, key) end)
  if not task then task = async.spawn(loop) end
end

function M.stop()
  if task then task:cancel() end
  if watch then watch:close() end
  for name in pairs(loaded) do
    sandbox().drop(name)
    loaded[name] = nil
  end
  task, watch, current, dirty, failures, refusals = nil, nil, nil, true, {}, new_refusals()
  node.kv_policies(0)
end

--- Has any enabled policy a word in changes of users' keys? Raises when that cannot be told now.
function M.decides_kv()
  return ensure().kv
end

--- Is there any enabled policy with @hook? From what is known now.
function M.has(hook)
  for _, entry in ipairs(current and current.list or {}) do
    for _, name in ipairs(entry.about.hooks) do
      if name == hook then return true end
    end
  end
  return false
end

--- The enabled policies, as {name, version, about}, in the order in which they run. Raises.
function M.list()
  return ensure().list
end

-- Asking --------------------------------------------------------------------------------------------------------------

local function give_up(name, version, n, why)
  async.spawn(function()
    local ok, err = pcall(require("symphony.policy.store").give_up, name, version,
      ("it failed %d times in a row, at last: %s"):format(n, why))
    if not ok then log.error(("policy: %s cannot be disabled: %s"):format(name, errors.from(err).message)) end
  end)
end

-- A policy has failed, or has not.
local function note(name, why)
  local version
  for _, entry in ipairs(current and current.list or {}) do
    if entry.name == name then version = entry.version end
  end
  local known = failures[name]
  if not why or not version then
    failures[name] = nil
    return
  end
  -- What is decided without Lua is heard of only here.
  local heard = node.kv_heard(name)
  if not known or known.version ~= version or known.heard ~= heard then known = { version = version, n = 0 } end
  known.heard = heard
  failures[name] = known
  known.n = known.n + 1
  log.warn(("policy: %s failed: %s"):format(name, why))
  if known.n % M.FAILURES == 0 then give_up(name, version, known.n, why) end
end

--- Those that are disabled for a reason, as {name, reason}: from what is known now.
function M.off()
  return current and current.off or {}
end

--- For GET /metrics: {enabled, disabled, failing = how many of them, said = {<what> = how often}}, on this manager.
function M.figures()
  local set = current or { list = {}, count = 0 }
  local failing = 0
  for _, entry in ipairs(set.list) do
    if entry.broken or failures[entry.name] then failing = failing + 1 end
  end
  return { enabled = #set.list, disabled = set.count - #set.list, failing = failing, said = counts }
end

--- How often each policy has failed in a row on this manager: name -> count.
function M.failures()
  local out = {}
  for name, known in pairs(failures) do out[name] = known.n end
  return out
end

local function failure(name, why)
  local err = errors.new("policy_failed", ("policy %s failed, so this is refused: %s"):format(name or "?", why),
    name and ("`symphony policy disable %s` has it go on without it"):format(name) or nil)
  err.policy = name
  return err
end

-- The sandbox has failed over a policy, which @err may name: what was found out before, as ask() has it.
local function failed_over(err, names, dry)
  local policy = err.policy or names[1] or "?"
  local prefix = ("policy %s failed: "):format(policy)
  local why = err.message:sub(1, #prefix) == prefix and err.message:sub(#prefix + 1) or err.message
  local trace = answer.trace_before(err.result)
  local last = trace[#trace]
  if not (last and last.said == "failed") then
    trace[#trace + 1] = { policy = policy, said = "failed", error = why }
  end
  counts.failed = counts.failed + 1
  if err.policy and not dry then note(policy, why) end -- else the sandbox is to blame
  return { trace = trace, reads = {}, failed = { policy = policy, why = why } }
end

-- Asks the policies @names what they say to @input. {decision, amended, trace, reads, approve, failed = {policy, why}}.
-- @must: the names of those that have to be heard, unless somebody refuses.
local function ask(hook, input, names, must, fake, dry)
  local opts = { only = names, state_json = fake and json.encode(fake) or nil }
  local text, err = async.await(sandbox().call, hook, json.encode(input), opts)
  if not text then return failed_over(err, names, dry) end
  local ok, out = pcall(answer.of_call, text)
  if not ok then return failed_over(errors.from(out), names, dry) end
  local heard = {}
  for _, row in ipairs(out.trace) do
    heard[row.policy] = true
    counts[row.said] = counts[row.said] + 1
    local bad = row.said == "failed" and (row.error or "no reason given") or nil
    if not dry then note(row.policy, bad) end
    if bad and not out.failed then out.failed = { policy = row.policy, why = bad } end
  end
  local over = out.decision and (out.decision.refuse ~= nil or out.decision.choose ~= nil)
  for _, name in ipairs(not over and must or {}) do
    if not heard[name] and not out.failed then out.failed = { policy = name, why = "it was not heard" } end
  end
  return out
end

-- Who is to be asked: the names of those with @hook that might be concerned, of those that surely are, and one of them
-- that is not in the sandbox. A name may become another one on the way.
local function concerned(set, hook, input)
  local names, must, broken = {}, json.array {}, nil
  for _, entry in ipairs(set.list) do
    local by_name = hook == "admit.join" and (entry.about.match[hook] or {}).names ~= nil
    if by_name or match.concerns(entry.about, hook, input) then
      for _, known in ipairs(entry.about.hooks) do
        if known == hook then names[#names + 1] = entry.name end
      end
      if not by_name then must[#must + 1] = entry.name end
      if entry.broken and not broken then broken = entry end
    end
  end
  return names, must, broken
end

-- What the policies of @set say to @input. As ask() has it, and names: who was asked. @dry: nothing depends on it, and
-- what fails does not count.
local function consult(set, hook, input, fake, dry)
  local names, must, broken = concerned(set, hook, input)
  if broken then
    local why = "it does not load: " .. broken.broken.message
    if broken.own_fault and not dry then note(broken.name, why) end
    return { trace = json.array { { policy = broken.name, said = "failed", error = why } }, reads = {}, names = names,
      failed = { policy = broken.name, why = why } }
  elseif #names == 0 then
    return { trace = json.array {}, reads = {}, names = names }
  end
  local out = ask(hook, input, names, must, fake, dry)
  out.names = names
  return out
end

-- The policy of @trace that has said @what, and the last of them.
local function who_said(trace, what)
  local name
  for _, row in ipairs(trace) do
    if row.said == what then name = row.policy end
  end
  return name
end

local function refusal(out)
  local name = who_said(out.trace, "refuse")
  local why = out.decision.refuse
  local err = errors.new("denied", ("policy %s refuses: %s"):format(name or "?", json.clean(tostring(why):sub(1, 500))),
    name and ("`symphony policy show %s` shows it"):format(name) or nil)
  err.policy = name
  return err
end

-- Admission -----------------------------------------------------------------------------------------------------------

-- What a policy may change of an input.
local AMENDABLE = { ["admit.change"] = { "new" }, ["admit.join"] = { "labels", "name" } }

local function amended(hook, input, given)
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

--- The way of one change through the policies, which may have to be gone again; see the top.
function M.admission()
  return setmetatable({ rounds = 0, moves = 0, compares = {}, trace = json.array {}, reads = {} }, Admission)
end

--- Before each try: what was said the last time counts for nothing.
function Admission:begin()
  self.set, self.compares, self.seen, self.trace, self.reads, self.asked = nil, {}, {}, json.array {}, {}, false
end

--- What becomes of @input at @hook: the input as the policies have amended it, or it raises: "denied", a policy refuses
--- (err.policy names it); "policy_failed", one has failed. Returns the decision too ({approve = true} at admit.join).
function Admission:decide(hook, input)
  local set = ensure()
  if not self.seen then self:begin() end
  self.set = self.set or set
  local out = consult(set, hook, input, nil, self.dry)
  table.move(out.trace, 1, #out.trace, #self.trace + 1, self.trace)
  self.asked = self.asked or #out.names > 0
  self.last_reads = out.reads
  if out.failed then error(failure(out.failed.policy, out.failed.why), 0) end
  local decision = out.decision or {}
  if decision.refuse ~= nil then error(refusal(out), 0) end
  for _, read in ipairs(out.reads) do
    for _, c in ipairs(answer.compares(read)) do
      local text = fingerprint(c)
      if not self.seen[text] then
        self.seen[text] = true
        self.compares[#self.compares + 1] = c
      end
    end
  end
  return amended(hook, input, out.amended), { approve = out.approve }
end

--- Makes @txn hold only if nothing has changed that its decisions saw; for state.submit it is decided then. Raises
--- "too_big" when that is more than a txn takes.
function Admission:bind(txn)
  local set = self.set or ensure()
  self.own = #txn.compare
  table.insert(txn.compare, { prefix = M.PREFIX, revision = set.revision })
  if self.asked then table.insert(txn.compare, { prefix = M.PREFIX, count = set.count }) end
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
    M.changed()
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

M.CONFLICT = { "conflict", "what the policies looked at kept changing", "say it again" }

--- The error when a decision was made as often as it may be.
function M.conflict()
  return errors.new(table.unpack(M.CONFLICT))
end

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

--- The policy @name, asked without Lua (src/daemon/api.c), has not decided in time on the change of @key.
function M.kv_failed(name, why, key)
  if name == "" then return end
  note(name, why)
  M.note_refusal(failure(name, why), "a change of key " .. json.clean(key:sub(1, 100)))
end

-- One decision by itself, for whoever builds the txn in another place: decision ({allow = true, new =, policies =} or
-- {allow = false, error =, policy =}), the compares that it takes, the trace.
local function single(hook, input)
  local admission = M.admission()
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

--- May this change of a resource be? @change: {kind, key, action = "put"|"delete", old, new, old_revision, who}.
--- Returns {allow = true, new = (as amended), policies} or {allow = false, error, policy}; the compares that the txn
--- needs; the trace. Raises when it cannot be told now.
function M.admit_change(change) return single("admit.change", change) end

--- The same for {role, name, address, addresses, services, version, labels, token, who}; the decision has approve =
--- true when a policy lets it in without a token.
function M.admit_join(request) return single("admit.join", request) end

--- What would be decided on @input at @hook, and by whom: {allow, refuse, code, policy, approve, amended, choose,
--- commands, policies = trace}. @fake: a state to read instead of the real one, or nil. Writes nothing. Raises.
function M.explain(hook, input, fake)
  if not match.is_hook(hook) then
    errors.raise("invalid", ("there is no hook %s"):format(json.clean(tostring(hook):sub(1, 80))),
      "admit.join, admit.change, place.<kind>, node.down, node.up, leader.change and every.<duration> are")
  end
  local out = consult(ensure(), hook, input, fake, true)
  local decision = out.decision or {}
  local row = { hook = hook, policies = out.trace, allow = true }
  if out.failed and hook:find(ADMISSION) then
    local err = failure(out.failed.policy, out.failed.why)
    row.allow, row.refuse, row.code, row.policy = false, err.message, err.code, err.policy
  elseif decision.refuse ~= nil then
    local err = refusal(out)
    row.allow, row.refuse, row.code, row.policy = false, tostring(decision.refuse), err.code, err.policy
  end
  if not hook:find(ADMISSION) then row.allow = nil end
  row.approve, row.choose, row.commands = out.approve, decision.choose, decision.commands
  if row.allow and out.amended then row.amended = amended(hook, input, out.amended) end
  return row
end

-- Placement and reactions ---------------------------------------------------------------------------------------------

--- Which of @input.candidates ({{node_id, ...}}) get it, best first: a list of node ids of them, and the name of the
--- policy that chose; nil: no policy has said, and the default holds. @input: {resource, candidates, want, current}.
function M.place(kind, input)
  local hook = "place." .. kind
  local ok, set = pcall(ensure)
  if not ok then
    log.warn("policy: cannot be asked for a place: " .. errors.from(set).message)
    return nil
  end
  local out = consult(set, hook, input)
  local chosen = not out.failed and out.decision and out.decision.choose
  if type(chosen) ~= "table" then return nil end
  local known, list = {}, {}
  for _, candidate in ipairs(input.candidates) do known[candidate.node_id] = true end
  for _, id in ipairs(chosen) do
    if known[id] then list[#list + 1] = id end
    known[id] = nil
  end
  return list, who_said(out.trace, "choose")
end

--- What the policy @name has to say at a hook that decides on nothing: a list of commands, not checked; nil when it
--- has nothing to say, or fails, or is gone.
function M.react(name, hook, input)
  local set = ensure()
  for _, entry in ipairs(set.list) do
    if entry.name == name and match.concerns(entry.about, hook, input) then
      if entry.broken then return nil end
      local out = ask(hook, input, { name }, {})
      local commands = not out.failed and out.decision and out.decision.commands
      return type(commands) == "table" and commands or nil
    end
  end
end

-- Trying --------------------------------------------------------------------------------------------------------------

--- Loads @source in a state of its own and runs its selftest, or @cases ({{name, hook, input, state, expect}}) instead.
--- Returns {about (checked), cases = {{name, ok, got, want, error}}}. nil, err: "invalid" when it does not load.
function M.test(source, cases)
  local text, err = async.await(sandbox().test, source, cases and json.encode(cases) or nil)
  if not text then
    err = errors.from(err)
    local code = err.code == "policy_failed" and "invalid" or err.code
    return nil, errors.new(code, "the policy does not load: " .. err.message, err.hint)
  end
  local ok, got = pcall(answer.of_test, text)
  if not ok then return nil, got end
  ok, got.about = pcall(match.check_about, got.about)
  if not ok then return nil, got.about end
  return got
end

return M
