--- The policies as the rest of the manager asks them; what is behind it: set.lua, ask.lua, admission.lua, failures.lua.
---
--- What fails in a hook of admission refuses (closed); what fails in place.<kind> leaves the placement as it is; a
--- reaction that fails does nothing. A policy that fails ten times in a row is disabled.
local admission = require "symphony.policy.admission"
local answer = require "symphony.policy.answer"
local ask = require "symphony.policy.ask"
local async = require "symphony.async"
local errors = require "symphony.errors"
local failures = require "symphony.policy.failures"
local json = require "symphony.json"
local log = require "sym.log"
local match = require "symphony.policy.match"
local node = require "sym.node"
local set = require "symphony.policy.set"

local M = {}

M.PREFIX, M.FAILURES, M.ROUNDS = set.PREFIX, failures.MAX, admission.ROUNDS
local ADMISSION = "^admit%."

-- The set -------------------------------------------------------------------------------------------------------------

--- The state has other policies now, or may have: what is asked from here on goes by those.
M.changed = set.changed

--- Is there any enabled policy with @hook? From what is known now.
M.has = set.has

--- Keeps the sandbox in step with the state until stop(). Said twice, it is one.
function M.start()
  node.on_kv_failed(function(_, name, why, key) M.kv_failed(name, why, key) end)
  set.start()
end

function M.stop()
  set.stop()
  admission.reset()
end

--- The enabled policies, as {name, version, about}, in the order in which they run. Raises.
function M.list()
  return set.ensure().list
end

--- Those that are disabled for a reason, as {name, reason}: from what is known now.
function M.off()
  return (set.known() or {}).off or {}
end

--- Enabled policies that this manager's sandbox has not got: name -> why. Both it and we try again.
M.broken = set.broken

--- How often each policy has failed in a row on this manager: name -> count.
M.failures = failures.all

--- For GET /metrics: {enabled, disabled, failing = how many of them, said = {<what> = how often}}, on this manager.
function M.figures()
  local now, failed, failing = set.known() or { list = {}, count = 0 }, failures.all(), 0
  local broken = set.broken()
  for _, entry in ipairs(now.list) do
    if broken[entry.name] or failed[entry.name] then failing = failing + 1 end
  end
  return { enabled = #now.list, disabled = now.count - #now.list, failing = failing, said = ask.counts }
end

-- Admission -----------------------------------------------------------------------------------------------------------

--- The way of one change through the policies: see admission.lua.
M.admission = admission.new

--- Tells in the events and the log that @err, from decide(), has refused @what (words); now and then, of a flood.
M.note_refusal = admission.note_refusal

--- The error when a decision was made as often as it may be.
M.conflict = admission.conflict

--- The policy @name, asked without Lua (src/daemon/api_policy.c), has not decided in time on the change of @key.
function M.kv_failed(name, why, key)
  if name == "" then return end
  failures.note(name, set.version(name), why)
  M.note_refusal(ask.failure(name, why), "a change of key " .. json.clean(key:sub(1, 100)))
end

--- May this change of a resource be? @change: {kind, key, action = "put"|"delete", old, new, old_revision, who}.
--- Returns {allow = true, new = (as amended), policies} or {allow = false, error, policy}; the compares that the txn
--- needs; the trace. Raises when it cannot be told now.
function M.admit_change(change) return admission.single("admit.change", change) end

--- The same for {role, name, address, addresses, services, version, labels, token, who}; the decision has approve =
--- true when a policy lets it in without a token.
function M.admit_join(request) return admission.single("admit.join", request) end

--- What would be decided on @input at @hook, and by whom: {allow, refuse, code, policy, approve, amended, choose,
--- commands, policies = trace}. @fake: a state to read instead of the real one, or nil. Writes nothing. Raises.
function M.explain(hook, input, fake)
  if not match.is_hook(hook) then
    errors.raise("invalid", ("there is no hook %s"):format(json.clean(tostring(hook):sub(1, 80))),
      "admit.join, admit.change, place.<kind>, node.down, node.up, leader.change and every.<duration> are")
  end
  local out = ask.all(set.ensure().list, hook, input, { fake = fake, dry = true })
  local decision = out.decision or {}
  local row = { hook = hook, policies = out.trace, allow = true }
  if out.failed and hook:find(ADMISSION) then
    local err = ask.failed(out.failed)
    row.allow, row.refuse, row.code, row.policy = false, err.message, err.code, err.policy
  elseif decision.refuse ~= nil then
    local err = ask.refusal(out)
    row.allow, row.refuse, row.code, row.policy = false, tostring(decision.refuse), err.code, err.policy
  end
  if not hook:find(ADMISSION) then row.allow = nil end
  row.approve, row.choose, row.commands = out.approve, decision.choose, decision.commands
  if row.allow and out.amended then row.amended = admission.amended(hook, input, out.amended) end
  return row
end

-- Placement and reactions ---------------------------------------------------------------------------------------------

--- Which of @input.candidates ({{node_id, ...}}) get it, best first: a list of node ids of them, and the name of the
--- policy that chose; nil: no policy has said, and the default holds. @input: {resource, candidates, want, current}.
function M.place(kind, input)
  local hook = "place." .. kind
  local ok, now = pcall(set.ensure)
  if not ok then
    log.warn("policy: cannot be asked for a place: " .. errors.from(now).message)
    return nil
  end
  local out = ask.all(now.list, hook, input, {})
  local chosen = not out.failed and out.decision and out.decision.choose
  if type(chosen) ~= "table" then return nil end
  local known, list = {}, {}
  for _, candidate in ipairs(input.candidates) do known[candidate.node_id] = true end
  for _, id in ipairs(chosen) do
    if known[id] then list[#list + 1] = id end
    known[id] = nil
  end
  return list, ask.who_said(out.trace, "choose")
end

--- What the policy @entry (of list()) has to say at a hook that decides on nothing: a list of commands, not checked;
--- nil when it has nothing to say, or fails. Raises when it could not be asked, which is not its fault.
function M.react(entry, hook, input)
  local broken = entry.broken
  if broken then
    if entry.own_fault then return nil end
    error(broken, 0)
  end
  local out = ask.names(hook, input, { entry.name }, {})
  if out.failed then
    if out.failed.own then return nil end
    errors.raise("busy", ("policy %s could not be asked: %s"):format(entry.name, out.failed.why))
  end
  local commands = out.decision and out.decision.commands
  return type(commands) == "table" and commands or nil
end

-- Trying --------------------------------------------------------------------------------------------------------------

--- Loads @source in a state of its own and runs its selftest, or @cases ({{name, hook, input, state, expect}}) instead.
--- Returns {about (checked), cases = {{name, ok, got, want, error}}}. nil, err: "invalid" when it does not load.
function M.test(source, cases)
  local text, err = async.await(require("sym.policy").test, source, cases and json.encode(cases) or nil)
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
