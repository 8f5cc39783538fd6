-- How many there may be of what: keys below a prefix, and nodes with a label. The limits are keys themselves, so that
-- they are changed without changing the policy:
--
--   symphony kv put quota/keys/team/a/ 100        at most 100 keys below team/a/
--   symphony kv put quota/label/rack=7 12         at most 12 nodes with the label rack=7
--   symphony policy set quota contrib/policies/quota.lua
--
-- Two changes at once cannot both be the last that fits: each is bound to the count that it saw.

local KEYS, LABELS = "/kv/quota/keys/", "/kv/quota/label/"

local function limit_of(key)
  return math.tointeger(tonumber(get(key) or ""))
end

-- Keys -----------------------------------------------------------------------------------------------------------

local function change_of_key(change)
  if change.action ~= "put" or change.old ~= nil then return end
  if glob("quota/*", change.key) then return end
  -- Every folder that the key is in may have a limit: team/, team/a/, ...
  for folder in change.key:gmatch("()/") do
    local prefix = change.key:sub(1, folder)
    local limit = limit_of(KEYS .. prefix)
    if limit and count("/kv/" .. prefix) >= limit then
      return refuse(("there are %d keys below %s already"):format(limit, prefix))
    end
  end
end

-- Labels ---------------------------------------------------------------------------------------------------------

-- How many nodes but @id have the label; nil where there are more nodes than can be listed.
local function nodes_with(label, value, id)
  local n, nodes = 0, list("/node/")
  if #nodes == 1000 then return nil end
  for _, node in ipairs(nodes) do
    if node.value.node_id ~= id and (node.value.labels or {})[label] == value then n = n + 1 end
  end
  return n
end

-- Why a node may not have @labels, of which it had @before; nil when it may.
local function too_many(labels, before, id)
  for label, value in sorted_pairs(labels or {}) do
    if (before or {})[label] ~= value then
      local limit = limit_of(("%s%s=%s"):format(LABELS, label, value))
      local n = limit and nodes_with(label, value, id)
      if limit and not n then -- a failure instead would take the policy away, after ten of them
        return refuse(("%s=%s has a limit, and of 1000 nodes and more it is not known how many have it"):format(label,
          value))
      elseif limit and n >= limit then
        return refuse(("there are %d nodes with the label %s=%s already"):format(limit, label, value))
      end
    end
  end
end

local function change(input)
  if input.kind == "kv" then return change_of_key(input) end
  if input.kind == "node" and input.new then
    return too_many(input.new.labels, input.old and input.old.labels, input.key)
  end
end

local function join(request)
  return too_many(request.labels, nil, nil)
end

local function put(name, key, state, expect, old)
  return { name = name, hook = "admit.change", state = state, expect = expect,
    input = { kind = "kv", action = "put", key = key, new = "x", old = old } }
end

local two = { ["/kv/quota/keys/team/a/"] = "2", ["/kv/team/a/1"] = "x", ["/kv/team/a/2"] = "x" }
local full = { ["/kv/quota/label/rack=7"] = "1", ["/node/n1"] = { node_id = "n1", labels = { rack = "7" } } }

return {
  summary = "Limits for keys below a prefix and for nodes with a label (kv: quota/keys/..., quota/label/...)",
  match = { ["admit.change"] = { kinds = { "kv", "node" } } },
  hooks = { ["admit.change"] = change, ["admit.join"] = join },
  selftest = {
    put("one too many is refused", "team/a/3", two, { refuse = "there are 2 keys below team/a/ already" }),
    put("a key that is there can be changed", "team/a/2", two, {}, "x"),
    put("another team has no limit", "team/b/1", two, {}),
    put("up to the limit it is fine", "team/a/2",
      { ["/kv/quota/keys/team/a/"] = "2", ["/kv/team/a/1"] = "x" }, {}),
    put("an outer folder counts too", "team/b/1", { ["/kv/quota/keys/team/"] = "1", ["/kv/team/a/1"] = "x" },
      { refuse = true }),
    put("a limit that is no number is none", "team/a/1", { ["/kv/quota/keys/team/a/"] = "many" }, {}),
    put("limits themselves are free", "quota/keys/quota/", { ["/kv/quota/keys/quota/"] = "0" }, {}),
    { name = "a label has its limit", hook = "admit.change", state = full, expect = { refuse = true },
      input = { kind = "node", action = "put", key = "n2", old = { labels = {} }, new = { labels = { rack = "7" } } } },
    { name = "who has it keeps it", hook = "admit.change", state = full, expect = {},
      input = { kind = "node", action = "put", key = "n1", old = { labels = { rack = "7" } },
        new = { labels = { rack = "7", disk = "ssd" } } } },
    { name = "also for who joins", hook = "admit.join", state = full, expect = { refuse = true },
      input = { role = "worker", name = "n2", token = true, labels = { rack = "7" } } },
  },
}
