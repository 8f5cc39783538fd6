--- What the policies say: each is asked in the sandbox, and what comes back is checked.
local answer = require "symphony.policy.answer"
local async = require "symphony.async"
local errors = require "symphony.errors"
local failures = require "symphony.policy.failures"
local json = require "symphony.json"
local match = require "symphony.policy.match"
local set = require "symphony.policy.set"

local M = {}

--- How often what was said, on this manager, where something depended on it.
M.counts = { allow = 0, refuse = 0, amend = 0, nothing = 0, failed = 0, approve = 0, choose = 0, commands = 0 }

local function note(name, why)
  failures.note(name, set.version(name), why)
end

-- The sandbox has failed over a policy, which @err may name: what was found out before, as names() has it.
local function failed_over(err, names, dry)
  local policy = err.policy or names[1] or "?"
  local prefix = ("policy %s failed: "):format(policy)
  local why = err.message:sub(1, #prefix) == prefix and err.message:sub(#prefix + 1) or err.message
  if err.code == "too_big" and not err.policy then -- what is asked about is to blame: nobody has been asked
    return { trace = json.array {}, reads = {}, failed = { policy = policy, why = why, err = err } }
  end
  local trace = answer.trace_before(err.result)
  local last = trace[#trace]
  if not (last and last.said == "failed") then
    trace[#trace + 1] = { policy = policy, said = "failed", error = why }
  end
  if not dry then M.counts.failed = M.counts.failed + 1 end
  -- Else the sandbox is to blame: it had no time, or has yet to load the policy again.
  local own = err.policy ~= nil and err.code ~= "busy"
  if own and not dry then note(policy, why) end
  return { trace = trace, reads = {}, failed = { policy = policy, why = why, own = own } }
end

--- Asks the policies @names what they say to @input at @hook: {decision, amended, trace, reads, approve, failed =
--- {policy, why, own = it is the policy's own fault, err = what is to be told instead}}. @opts: must = the names of
--- those that have to be heard, unless somebody refuses; fake = a state to read instead of the real one; dry = nothing
--- depends on it, and it does not count. In a task.
function M.names(hook, input, names, opts)
  local must, fake, dry = opts.must, opts.fake, opts.dry
  local text, err = async.await(require("sym.policy").call, hook, json.encode(input),
    { only = names, state_json = fake and json.encode(fake) or nil })
  if not text then return failed_over(err, names, dry) end
  local ok, out = pcall(answer.of_call, text)
  if not ok then return failed_over(errors.from(out), names, dry) end
  local heard = {}
  for _, row in ipairs(out.trace) do
    heard[row.policy] = true
    if not dry then M.counts[row.said] = M.counts[row.said] + 1 end
    local bad = row.said == "failed" and (row.error or "no reason given") or nil
    if not dry then note(row.policy, bad) end
    if bad and not out.failed then out.failed = { policy = row.policy, why = bad, own = true } end
  end
  local over = out.decision and (out.decision.refuse ~= nil or out.decision.choose ~= nil)
  for _, name in ipairs(not over and must or {}) do
    if not heard[name] and not out.failed then out.failed = { policy = name, why = "it was not heard" } end
  end
  return out
end

-- Who is to be asked: the names of those with @hook that might be concerned, of those that surely are, and one of them
-- that is not in the sandbox. A name may become another one on the way.
local function concerned(list, hook, input)
  local names, must, broken = {}, json.array {}, nil
  for _, entry in ipairs(list) do
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

--- What those of the policies @list (of policy/set.lua) say that @input concerns. As names() has it, and names: who was
--- asked. @opts: fake, dry.
function M.all(list, hook, input, opts)
  local names, must, broken = concerned(list, hook, input)
  if broken then
    local why = "it does not load: " .. broken.broken.message
    if broken.own_fault and not broken.noted and not opts.dry then -- once for each try
      broken.noted = true
      note(broken.name, why)
    end
    return { trace = json.array { { policy = broken.name, said = "failed", error = why } }, reads = {}, names = names,
      failed = { policy = broken.name, why = why, own = broken.own_fault } }
  elseif #names == 0 then
    return { trace = json.array {}, reads = {}, names = names }
  end
  local out = M.names(hook, input, names, { must = must, fake = opts.fake, dry = opts.dry })
  out.names = names
  return out
end

--- The policy of @trace that has said @what, and the last of them.
function M.who_said(trace, what)
  local name
  for _, row in ipairs(trace) do
    if row.said == what then name = row.policy end
  end
  return name
end

--- The error that says that a policy refuses, which @out (of all()) is.
function M.refusal(out)
  local name = M.who_said(out.trace, "refuse")
  local why = out.decision.refuse
  local err = errors.new("denied", ("policy %s refuses: %s"):format(name or "?", json.clean(tostring(why):sub(1, 500))),
    name and ("`symphony policy show %s` shows it"):format(name) or nil)
  err.policy = name
  return err
end

--- The error when @failed, as names() has it, is all that there is at an admission.
function M.failed(failed)
  return failed.err or M.failure(failed.policy, failed.why)
end

--- The error that says that the policy @name has failed at an admission.
function M.failure(name, why)
  local err = errors.new("policy_failed", ("policy %s failed, so this is refused: %s"):format(name or "?", why),
    name and ("`symphony policy disable %s` has it go on without it"):format(name) or nil)
  err.policy = name
  return err
end

return M
