--- How a new spec reaches the nodes of a resource one after the other. Pure.
local M = {}

M.DEADLINE_S = 60 -- for a node to have the new generation running, unless the document says otherwise

local function is_current(status, generation)
  return status ~= nil and status.generation == generation
end

--- Is it well, when its owner says @state? A program that has ended in order is, too.
function M.is_good(state)
  return state == "running" or state == "exited"
end

--- The next step. @doc: generation, nodes, rollout ({state, ...}), rollout_s; @assigned: node id -> {generation,
--- since}; @states: node id -> {generation, state, message}; @is_ready(id): the node is there; @now: unix seconds. One
--- of
---   nil                               nothing to do
---   {wait = seconds}                  one node has not got there yet
---   {advance = {ids}}                 these get the new generation: one, or those that are not there
---   {stop = why, node = id}           it has failed there: nobody else gets it
---   {done = true}                     all have it
function M.next(doc, assigned, states, is_ready, now)
  if not doc.rollout or doc.rollout.state ~= "rolling" then return nil end
  local generation, behind, absent = doc.generation, {}, {}
  local patience = doc.rollout_s or M.DEADLINE_S
  local wait
  for _, id in ipairs(doc.nodes) do
    local own, status = assigned[id], states[id]
    if own and own.generation ~= generation then
      table.insert(is_ready(id) and behind or absent, id)
    elseif own and is_current(status, generation) and status.state == "failed" then
      return { stop = status.message or "it has failed", node = id }
    elseif own and is_ready(id) and not (is_current(status, generation) and M.is_good(status.state)) then
      local rest = (own.since or now) + patience - now
      if rest <= 0 then
        return { stop = ("it is not running after %d s (%s)"):format(patience,
          is_current(status, generation) and status.state or "nothing was heard of it"), node = id }
      end
      wait = math.min(wait or rest, rest)
    end
  end
  if wait then return { wait = wait } end
  if #behind == 0 then return #absent > 0 and { advance = absent } or { done = true } end
  -- What does not work now has least to lose.
  for _, id in ipairs(behind) do
    if not states[id] or not M.is_good(states[id].state) then return { advance = { id } } end
  end
  return { advance = { behind[1] } }
end

--- Which spec a node is given that comes new: of a rollout that has stopped, that of before.
function M.spec_of(doc)
  local stable = doc.rollout and doc.rollout.state == "stopped" and doc.stable
  if stable then return stable.spec, stable.generation end
  return doc.spec, doc.generation
end

return M
