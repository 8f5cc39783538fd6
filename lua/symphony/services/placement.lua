--- Which nodes a resource is to be on. Pure.
---   doc       its document: service, replicas, constraints (labels), nodes (ids, in the order in which they came),
---             move, move_after (seconds)
---   node      {node_id, name, role, labels, services, availability, removing, status, since, load}; nil: removed
local rollout = require "symphony.services.rollout"

local M = {}

M.MOVE_AFTER_S = 60  -- a node that has been down for so long is not waited for
M.STEP_MAX = 24      -- nodes that come or go in one txn
local SUSPEND_OF, SUSPEND_MIN = 3, 2 -- more than one in three is lost, and at least two: something else is wrong

-- Does @node match the labels that @doc asks for, and have the service? true; nil, why not.
local function matches(doc, node)
  local found = false
  for _, service in ipairs(node.services or {}) do found = found or service == doc.service end
  if not found then return nil, "does not have the service " .. doc.service end
  for key, value in pairs(doc.constraints or {}) do
    if (node.labels or {})[key] ~= value then return nil, ("is not %s=%s"):format(key, value) end
  end
  return true
end

--- May @node be given @doc anew? true; nil, why not.
function M.eligible(doc, node)
  if node.role ~= "worker" then return nil, "is no worker" end
  if node.removing then return nil, "is being removed" end
  local ok, why = matches(doc, node)
  if not ok then return nil, why end
  if node.availability and node.availability ~= "active" then return nil, "is on " .. node.availability end
  if node.status ~= "ready" then return nil, "is " .. (node.status or "joining") end
  return true
end

--- What is to become of @doc on @node, which has it: "stay"; "wait" until it is back; "leave": it works there, and is
--- to go elsewhere; "lost"; "gone": the node was removed. And in how many seconds that may change.
function M.verdict(doc, node, now, suspended)
  if not node then return "gone" end
  if node.status == "down" or node.status == "left" then
    local rest = (node.since or now) + (doc.move_after or M.MOVE_AFTER_S) - now
    if rest > 0 then return "wait", rest end
    return suspended and "wait" or "lost"
  end
  if node.availability == "drain" or node.removing or not matches(doc, node) then return "leave" end
  return "stay"
end

--- The nodes in the order in which they are preferred: those of @prefer, ids, first; then those with least to do.
function M.order(nodes, prefer)
  local rank = {}
  for i, id in ipairs(prefer or {}) do rank[id] = rank[id] or i end
  table.sort(nodes, function(a, b)
    local ra, rb = rank[a.node_id] or math.huge, rank[b.node_id] or math.huge
    if ra ~= rb then return ra < rb end
    if a.load ~= b.load then return a.load < b.load end
    if a.name ~= b.name then return a.name < b.name end
    return a.node_id < b.node_id
  end)
  return nodes
end

--- Those of @nodes that may be given @doc anew and do not have it; and why the others may not, counted by reason.
function M.candidates(doc, nodes)
  local has, out, reasons = {}, {}, {}
  for _, id in ipairs(doc.nodes or {}) do has[id] = true end
  for _, node in pairs(nodes) do
    if not has[node.node_id] then
      local ok, why = M.eligible(doc, node)
      if ok then
        out[#out + 1] = node
      elseif node.role == "worker" then
        reasons[why] = (reasons[why] or 0) + 1
      end
    end
  end
  return out, reasons
end

--- "2 are down, 1 is not zone=a", of what M.candidates counted.
function M.because(reasons)
  local list = {}
  for why, count in pairs(reasons) do list[#list + 1] = ("%d %s"):format(count, why) end
  table.sort(list)
  return #list > 0 and "of the other workers " .. table.concat(list, ", ") or "there are no other workers"
end

local function last_of(list, count)
  return table.move(list, #list - count + 1, #list, 1, {})
end

local function clamp(n, max)
  return math.max(0, math.min(n, max))
end

-- Those of @staying that are too many: first what does not run, then where most is to do, then what came last.
local function surplus(staying, count, states, nodes)
  local at = {}
  for i, id in ipairs(staying) do at[id] = i end
  local list = table.move(staying, 1, #staying, 1, {})
  table.sort(list, function(a, b)
    local ra, rb = rollout.is_good(states[a]), rollout.is_good(states[b])
    if ra ~= rb then return ra end
    local la, lb = nodes[a] and nodes[a].load or 0, nodes[b] and nodes[b].load or 0
    if la ~= lb then return la < lb end
    return at[a] < at[b]
  end)
  return last_of(list, count)
end

--- The next step with @doc. @nodes: by id; @states: id -> what the owner says ("running", ...; only of the resource
--- that is there now); @now: unix seconds; choose(candidates, want): the same, best first; suspended: nothing is taken
--- from nodes that are down. Returns {add = {ids}, drop = {ids}, missing = how many nodes it lacks, why =, again =
--- seconds, after which to look again, or nil}.
function M.plan(doc, nodes, states, now, choose, suspended)
  local want = doc.replicas or 1
  local groups = { stay = {}, wait = {}, leave = {}, lost = {}, gone = {} }
  local again
  for _, id in ipairs(doc.nodes or {}) do
    local verdict, rest = M.verdict(doc, nodes[id], now, suspended)
    if rest then again = math.min(again or rest, rest) end
    table.insert(groups[verdict], id)
  end
  local staying = table.move(groups.stay, 1, #groups.stay, 1, {})
  table.move(groups.wait, 1, #groups.wait, #staying + 1, staying)
  local add, drop, why = {}, {}, nil
  local need = want - #staying
  if need > 0 then
    local list, reasons = M.candidates(doc, nodes)
    list = #list > 0 and choose(list, need) or {}
    for i = 1, math.min(need, #list, M.STEP_MAX) do add[i] = list[i].node_id end
    if #add < need then why = M.because(reasons) end
  elseif need < 0 then
    drop = surplus(staying, -need, states, nodes)
  end
  local placed = math.min(want, #staying) + #add
  local running = 0
  for _, id in ipairs(staying) do running = running + (rollout.is_good(states[id]) and 1 or 0) end
  -- What leaves a node goes when the others do without it.
  local without = doc.move == "start-first" and math.min(running, want) or placed
  local keep = clamp(want - without, #groups.leave)
  table.move(groups.leave, keep + 1, #groups.leave, #drop + 1, drop)
  local keep_lost = clamp(want - placed - keep, #groups.lost)
  table.move(groups.lost, keep_lost + 1, #groups.lost, #drop + 1, drop)
  table.move(groups.gone, 1, #groups.gone, #drop + 1, drop)
  local more = #drop > M.STEP_MAX
  return { add = add, drop = more and table.move(drop, 1, M.STEP_MAX, 1, {}) or drop,
    missing = math.max(0, want - placed), why = why, again = again }
end

--- Are so many of the workers lost that it is not them who are at fault? @nodes: by id.
function M.is_suspended(nodes)
  local all, lost = 0, 0
  for _, node in pairs(nodes) do
    if node.role == "worker" then
      all = all + 1
      if node.status == "down" then lost = lost + 1 end
    end
  end
  return lost >= SUSPEND_MIN and lost * SUSPEND_OF > all
end

return M
