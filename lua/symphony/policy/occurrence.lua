--- What policies ask for when something happens: bounded, noted in the state (todo.lua), and carried out. On the
--- leader.
local commands = require "symphony.policy.commands"
local engine = require "symphony.policy.engine"
local errors = require "symphony.errors"
local events = require "symphony.cluster.events"
local limiter = require "symphony.cluster.limiter"
local log = require "sym.log"
local match = require "symphony.policy.match"
local sys = require "sym.sys"
local todo = require "symphony.policy.todo"

local M = {}

M.BURST, M.EVERY_S = 20, 6 -- commands of a policy: ten a minute
M.LATE_S = 120             -- what could not be done for so long is left out

-- What may go well the next time: as nothing can be done now, whoever asks for it; or not this alone. All else is the
-- command's own fault.
local NOTHING_GOES = { canceled = true, closed = true, io = true, no_quorum = true, no_space = true, not_leader = true,
  outcome_unknown = true, state_unknown = true }
local PASSING = { busy = true, conflict = true, timeout = true, unreachable = true }

local limit, told -- of commands; of words about that

--- As if nobody had asked for anything yet.
function M.reset()
  limit, told = limiter.new(M.BURST, M.EVERY_S, 256), limiter.new(1, 60, 256)
end
M.reset()

local function record(fields)
  local ok, err = events.record(fields)
  if not ok then log.warn("an event could not be recorded: " .. err.message) end
end

-- Carrying out --------------------------------------------------------------------------------------------------------

local function too_often(policy)
  if not told:allow(policy, sys.mono_ms() / 1000) then return end
  local text = ("policy %s asks for more than %d changes a minute: the rest is left out"):format(policy,
    60 // M.EVERY_S)
  log.warn("policy: " .. text)
  record { kind = "policy.limited", policy = policy, message = text }
end

-- Those of the commands @list that the policy @name may carry out now.
local function within_limits(name, list)
  local out = {}
  for i, command in ipairs(list) do
    if i > commands.MAX or not limit:allow(name, sys.mono_ms() / 1000) then
      too_often(name)
      break
    end
    out[i] = command
  end
  return out
end

-- @item will not be carried out, because of @err.
local function leave_out(item, err)
  local what, policy, hook = commands.describe(item.command), tostring(item.policy), tostring(item.hook)
  local key, now, event = policy .. ":failed", sys.mono_ms() / 1000, nil
  if told:may(key, now) then
    event = { kind = "policy.refused", policy = err.policy or policy, by_policy = policy,
      message = ("%s, which policy %s asks for at %s, is not done: %s"):format(what, policy, hook, err.message) }
  end
  item:drop(event)
  -- Only now: what could not be dropped is to be told the next time.
  if event then told:done(key, now) end
  log.warn(("policy: %s at %s: %s: %s"):format(policy, hook, what, err.message))
end

local function carry_out_one(item, enabled)
  if not enabled[item.policy] then
    log.info(("policy: %s is not enabled any more: %s is left out"):format(tostring(item.policy),
      commands.describe(item.command)))
    return item:drop()
  elseif sys.now() - (math.tointeger(item.at) or 0) > M.LATE_S then
    return leave_out(item, errors.new("timeout", "it is too late for it"))
  end
  local ok, err = commands.run(item)
  if ok then
    log.info(("policy: %s at %s: %s"):format(item.policy, item.hook, commands.describe(item.command)))
  elseif NOTHING_GOES[err.code] or PASSING[err.code] or err.passing then
    error(err, 0)
  elseif err.code ~= item.gone().code or not item:is_gone() then
    leave_out(item, err)
  end
end

--- Does @err say that nothing can be done now, whatever it is? So it does when the task is to end.
function M.nothing_goes(err)
  return NOTHING_GOES[err.code] == true
end

--- Whatever is noted, in its order; of each policy up to the first that cannot be done now: that raises, when the
--- others' is done. @held: names of policies of which nothing is done; those that have to wait are added.
function M.carry_out(held)
  local list, enabled, failed = todo.list(), {}, nil
  if #list == 0 then return end
  for _, entry in ipairs(engine.list()) do enabled[entry.name] = true end
  for _, item in ipairs(list) do
    local name = tostring(item.policy)
    if not held[name] then
      local ok, err = xpcall(carry_out_one, errors.handler, item, enabled)
      if not ok then
        if M.nothing_goes(err) then error(err, 0) end
        held[name], failed = true, failed or err
      end
    end
  end
  if failed then error(failed, 0) end
end

-- What happens --------------------------------------------------------------------------------------------------------

--- Something that happens, for one policy: {policy = its name, hook, input, upto = what was set behind this revision
--- has no word in it, take(mark) as todo.note() has it}; since (monotonic ms) and other fields are added.
function M.occurrence(fields)
  fields.since = sys.mono_ms()
  return fields
end

--- Does the policy @entry, set at or before the revision @upto (nil: whenever), react to @hook with @input?
function M.concerns(entry, hook, input, upto)
  return (not upto or entry.revision <= upto) and match.concerns(entry.about, hook, input)
end

-- What the policy has to say to @o: commands; none if it is not enabled any more. Raises when it could not be asked,
-- and will be again.
local function ask(o)
  for _, entry in ipairs(engine.list()) do
    if entry.name == o.policy and M.concerns(entry, o.hook, o.input, o.upto) then
      return within_limits(entry.name, engine.react(entry, o.hook, o.input) or {})
    end
  end
  return {}
end

--- Has the policy react to @o, and notes what it asks for. Raises; said again, it goes on from there.
function M.see_to(o)
  o.asked = o.asked or ask(o)
  if #o.asked > 0 then todo.note(o.policy, o.hook, o.asked, o.take) end
end

return M
