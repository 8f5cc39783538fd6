-- Spreads what is placed over zones: first into the zones that hold the fewest of it, and there onto the nodes with the
-- least to do. A node's zone is its label "zone"; those without one are a zone of their own.
--
--   symphony node update worker-01 --label-add zone=a
--   symphony policy set spread contrib/policies/spread.lua

local LABEL = "zone"

-- The kinds that are spread: one hook each. Add the kinds of your own services.
local KINDS = { "block", "process" }

local function zone_of(candidate)
  return (candidate.labels or {})[LABEL] or ""
end

local function place(input)
  -- How many of it each zone has by now: what stays where it is counts, when it is still a candidate.
  local held = {}
  for _, id in ipairs(input.current or {}) do held[id] = true end
  local used, left, result = {}, {}, {}
  for _, candidate in ipairs(input.candidates) do
    local zone = zone_of(candidate)
    used[zone] = used[zone] or 0
    if held[candidate.node_id] then
      used[zone] = used[zone] + 1
      result[#result + 1] = candidate.node_id
    else
      left[#left + 1] = candidate
    end
  end
  while #left > 0 do
    table.sort(left, function(a, b)
      local x, y = used[zone_of(a)], used[zone_of(b)]
      if x ~= y then return x < y end
      if (a.load or 0) ~= (b.load or 0) then return (a.load or 0) < (b.load or 0) end
      return a.node_id < b.node_id
    end)
    local best = table.remove(left, 1)
    used[zone_of(best)] = used[zone_of(best)] + 1
    result[#result + 1] = best.node_id
  end
  return choose(result)
end

local hooks = {}
for _, kind in ipairs(KINDS) do hooks["place." .. kind] = place end

local function node(id, zone, load)
  return { node_id = id, name = id, labels = { zone = zone }, load = load }
end

local function case(name, input, expect)
  return { name = name, hook = "place.block", input = input, expect = { choose = expect } }
end

return {
  summary = "Places over zones (label zone), then onto the nodes with the least to do",
  hooks = hooks,
  selftest = {
    case("one for each zone, before a second one", { want = 2, current = {},
      candidates = { node("n1", "a", 1), node("n2", "a", 2), node("n3", "b", 9) } }, { "n1", "n3", "n2" }),
    case("the least loaded of a zone", { want = 1, current = {},
      candidates = { node("n1", "a", 5), node("n2", "a", 2) } }, { "n2", "n1" }),
    case("what is there stays, and its zone counts", { want = 2, current = { "n1" },
      candidates = { node("n1", "a", 9), node("n2", "a", 0), node("n3", "b", 5) } }, { "n1", "n3", "n2" }),
    case("nodes without a zone are one", { want = 2, current = {},
      candidates = { node("n1", nil, 0), node("n2", nil, 1), node("n3", "b", 9) } }, { "n1", "n3", "n2" }),
  },
}
