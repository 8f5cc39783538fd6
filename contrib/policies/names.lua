-- What nodes and keys may be called. Nodes: small letters, digits and dashes, beginning with what they are, and at most
-- 40 characters; a worker gets "worker-" put in front of a name that has it not. Keys: the first folder is one that is
-- known, when the key names/folders lists them ("app, team, tmp").
--
--   symphony kv put names/folders 'app, team, tmp, names'
--   symphony policy set names contrib/policies/names.lua

local FOLDERS = "/kv/names/folders"
local LENGTH = 40

local function check(name, role)
  if #name > LENGTH then return refuse(("a name has at most %d characters: %s"):format(LENGTH, name)) end
  if name:find("[^%l%d%-]") then return refuse("a name has small letters, digits and dashes only: " .. name) end
  if role == "manager" and not name:find("^manager%-") then
    return refuse("the name of a manager begins with manager-: " .. name)
  end
end

local function join(request)
  local name = request.name:lower()
  if request.role == "worker" and not name:find("^worker%-") then name = "worker-" .. name end
  local refused = check(name, request.role)
  if refused then return refused end
  if name ~= request.name then return amend { name = name } end
end

local function change_of_key(change)
  if change.action ~= "put" or change.old ~= nil then return end
  local folders = get(FOLDERS)
  if not folders or change.key == "names/folders" then return end
  local first = change.key:match("^([^/]+)/")
  for folder in folders:gmatch("[^,%s]+") do
    if folder == first then return end
  end
  return refuse(("keys are in one of these folders: %s"):format(folders))
end

local function change(input)
  if input.kind == "kv" then return change_of_key(input) end
  local new, old = input.new, input.old or {}
  if input.kind == "node" and new and new.name ~= old.name then return check(new.name, new.role) end
end

local function joins(name, role, wanted, expect)
  return { name = name, hook = "admit.join", expect = expect,
    input = { role = role, name = wanted, address = "192.0.2.1", token = true, labels = {} } }
end

local function put(name, key, state, expect, old)
  return { name = name, hook = "admit.change", state = state, expect = expect,
    input = { kind = "kv", action = "put", key = key, new = "x", old = old } }
end

local function renamed(name, role, from, to, expect)
  return { name = name, hook = "admit.change", expect = expect, input = { kind = "node", action = "put", key = "n1",
    old = { name = from, role = role }, new = { name = to, role = role } } }
end

local known = { ["/kv/names/folders"] = "app, team" }

return {
  summary = "Names of nodes and folders of keys (kv: names/folders)",
  order = 10,
  match = { ["admit.change"] = { kinds = { "kv", "node" } } },
  hooks = { ["admit.join"] = join, ["admit.change"] = change },
  selftest = {
    joins("a good name stays", "worker", "worker-07", {}),
    joins("a worker's is completed", "worker", "DB1", { amend = { name = "worker-db1" } }),
    joins("a manager's is not", "manager", "host", { refuse = "the name of a manager begins with manager-: host" }),
    joins("dots are out", "worker", "worker-a.b", { refuse = true }),
    joins("long ones too", "worker", ("x"):rep(40), { refuse = true }),
    renamed("a node cannot be called anything", "worker", "worker-1", "Worker 1", { refuse = true }),
    renamed("one that keeps its name can be changed", "worker", "OLD", "OLD", {}),
    put("a folder that is known", "app/x", known, {}),
    put("one that is not", "tmp/x", known, { refuse = "keys are in one of these folders: app, team" }),
    put("no folder", "x", known, { refuse = true }),
    put("what is there can be changed", "x", known, {}, "1"),
    put("without a list all are", "x", {}, {}),
  },
}
