-- What the benchmark has decide on its puts: twenty lines, as people write them.
local LIMIT <const> = 65536
local OWNERS <const> = { bench = true, team = true }

local function owner_of(key)
  return key:match("^([%l%d]+)/")
end

local function check(change)
  local owner = owner_of(change.key)
  if not owner or not OWNERS[owner] then return refuse("keys begin with whose they are") end
  if change.who.role == "reader" then return refuse("readers read") end
  if glob("*/locked/*", change.key) then return refuse("these are locked") end
  if change.action == "put" and #change.new > LIMIT then return refuse("at most 64 KiB") end
  if change.new and change.new:find("[\1-\8\127]") then return refuse("text alone") end
  return allow()
end

return { summary = "Keys have an owner", match = { ["admit.change"] = { kinds = { "kv" } } },
  hooks = { ["admit.change"] = check } }
