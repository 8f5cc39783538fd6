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
--- since}; @states: node id -> {generation, state, message}; @down_since(id): unix seconds, 0 where that is not known;
--- nil: the node is there; @now: unix seconds. One of
---   nil                               nothing to do
---   {wait = seconds}                  one is not running, and still may be soon
---   {advance = {ids}}                 these get the new generation: one, or those that are down
---   {stop = why, node = id}           it has failed there: nobody else gets it
---   {done = true, down = {ids}}       all have it; those that are down have yet to begin with it
--- What runs nowhere else is not touched while another one does not run, be it that its node is down: that one is
--- waited for as long as one that is slow, and then the others go on without it. It has its new generation when it is
--- back.
function M.next(doc, assigned, states, down_since, now)
  if not doc.rollout or doc.rollout.state ~= "rolling" then return nil end
  local generation, behind, absent, down = doc.generation, {}, {}, {}
  local patience = doc.rollout_s or M.DEADLINE_S
  local wait, broken
  for _, id in ipairs(doc.nodes) do
    local own, status, since = assigned[id], states[id], down_since(id)
    local is_new = own and own.generation == generation
    local rest
    if own and since then
      table.insert(is_new and down or absent, id)
      rest = since + patience - now
    elseif own and not is_new then
      table.insert(behind, id)
      if not status or not M.is_good(status.state) then broken = broken or id end
    elseif own and not (is_current(status, generation) and M.is_good(status.state)) then
      local said = is_current(status, generation) and status.state or "nothing was heard of it"
      rest = (own.since or now) + patience - now
      if said == "failed" then return { stop = status.message or "it has failed", node = id } end
      if rest <= 0 then return { stop = ("it is not running after %d s (%s)"):format(patience, said), node = id } end
    end
    if rest and rest > 0 then wait = math.min(wait or rest, rest) end
  end
  if wait then return { wait = wait } end
  -- What does not work now has least to lose.
  if #behind > 0 then return { advance = { broken or behind[1] } } end
  if #absent > 0 then return { advance = absent } end
  return { done = true, down = down }
end

--- Which spec a node is given that comes new: of a rollout that has stopped, that of before.
function M.spec_of(doc)
  local stable = doc.rollout and doc.rollout.state == "stopped" and doc.stable
  if stable then return stable.spec, stable.generation end
  return doc.spec, doc.generation
end

return M
