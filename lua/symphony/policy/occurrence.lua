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
local ASK_MAX = 20         -- times that a policy is asked which cannot be asked

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

--- Something that happens: {hook, input, upto = what was set behind this revision has no word in it, only = a policy's
--- name, take(mark, policy, last) as todo.note() has it: @policy has reacted (the last one), or nil, there is none that
--- does; close = that is to be noted too}; since (monotonic ms) and other fields are added.
function M.occurrence(fields)
  fields.asked, fields.noted, fields.tries, fields.since = {}, {}, {}, sys.mono_ms()
  return fields
end

-- The policies that react to @o, in order.
local function concerned(o)
  local out = {}
  for _, entry in ipairs(engine.list()) do
    if (not o.only or entry.name == o.only) and (not o.upto or entry.revision <= o.upto)
      and match.concerns(entry.about, o.hook, o.input) then out[#out + 1] = entry end
  end
  return out
end

-- The commands of @entry; nil, err: it could not be asked, and will be again. Raises when the task is to end.
local function ask(o, entry)
  local ok, list = pcall(engine.react, entry, o.hook, o.input)
  if not ok then
    if not errors.is(list) or list.code == "canceled" then error(list, 0) end
    local tries = (o.tries[entry.name] or 0) + 1
    o.tries[entry.name] = tries
    if tries < ASK_MAX then return nil, list end
    log.warn(("policy: %s at %s: %s"):format(entry.name, o.hook, list.message))
  end
  return within_limits(entry.name, ok and list or {})
end

--- Has the policies react to @o, and notes what they ask for. Raises, if only one of them could not be asked; said
--- again, it goes on from there.
function M.see_to(o)
  local want, failed = {}, nil
  for _, entry in ipairs(concerned(o)) do
    local name = entry.name
    if not o.asked[name] then
      local list, err = ask(o, entry)
      o.asked[name], failed = list, failed or err
    end
    if #(o.asked[name] or {}) > 0 and not o.noted[name] then want[#want + 1] = name end
  end
  for i, name in ipairs(want) do
    local last = i == #want and not failed
    todo.note(name, o.hook, o.asked[name], function(mark) return o.take(mark, name, last) end)
    o.noted[name] = true
  end
  if failed then error(failed, 0) end
  if o.close and #want == 0 then todo.note(nil, o.hook, {}, o.take) end
end

return M
