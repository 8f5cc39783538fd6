-- May a manager be removed, and what would happen? Pure: a look ahead with the same plan that the leader carries out.
local errors = require "symphony.errors"
local json = require "symphony.json"
local voters = require "symphony.cluster.voters"

local M = {}

local function describe(step, names)
  local who = names[step.id] and ("%s (raft id %d)"):format(names[step.id], step.id) or ("raft id %d"):format(step.id)
  if step.step == "transfer" then return "the leadership goes to " .. who end
  if step.step == "remove" then return who .. " is taken out of the configuration" end
  if step.step == "add" then return who .. " is added" end
  return ("%s becomes %s"):format(who, step.role)
end

-- @members: {id, name, address, leaving, forced}; @servers and @leader as in voters.plan; @id: the raft id of the one
-- to go; @forced: whatever it costs.
-- Returns {ok, steps = {text}, why = reason against it, voters, tolerates} (what would be afterwards).
function M.decide(members, servers, leader, id, forced)
  local names, after, present = {}, {}, false
  for i, m in ipairs(members) do
    names[m.id] = m.name
    after[i] = { id = m.id, address = m.address, leaving = m.leaving or m.id == id,
      forced = m.forced or (forced and m.id == id) }
  end
  local steps, last, left = voters.simulate(after, servers, leader)
  local answer = { steps = json.array(), voters = 0 }
  for i, step in ipairs(steps) do answer.steps[i] = describe(step, names) end
  for _, server in ipairs(left) do
    present = present or server.id == id
    if server.role == "voter" then answer.voters = answer.voters + 1 end
  end
  answer.tolerates = voters.tolerates(answer.voters)
  answer.ok = not present
  if present then answer.why = last.why or "it cannot be taken out" end
  local stay = 0
  for _, m in ipairs(after) do
    if not m.leaving then stay = stay + 1 end
  end
  answer.last = stay == 0
  return answer
end

-- The error that refuses a removal; nil when the decision allows it.
function M.refusal(decision, name)
  if decision.ok then return nil end
  if decision.last then
    return errors.new("conflict", ("%s is the last manager: without it there is no quorum and no cluster"):format(name),
      "to end the cluster for good: `symphony manager leave --force` on it, which wipes its state")
  end
  return errors.new("conflict", ("removing %s would cost the quorum: %s"):format(name, decision.why),
    "bring the managers that are down back, or remove them first; --force does it all the same, and the cluster may "
    .. "then need `symphony manager recover`")
end

-- The error of a removal that would wait for ever by force, too.
function M.stuck(decision, name)
  return errors.new("conflict", ("%s cannot be removed, by force neither: %s"):format(name, decision.why),
    "bring another manager up that can vote in its place; to give this one's part up all the same: `symphony manager "
    .. "leave --force` on it, then `symphony manager recover` on another")
end

return M
