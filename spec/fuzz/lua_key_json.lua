local fuzz = dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "lua_same.lua")
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"

local KINDS = { node_id = "string", cluster_id = "string", role = "string", name = "string", folder = "string",
  raft_node_id = "integer", starts = "integer", advertise = "table", managers = "table" }
local PHASES = { init = true, recover = true, leave = true }

local function check(text)
  local doc, why = identity.parse(text)
  if not doc then
    assert(type(why) == "string" and #why < 500)
    return
  end
  for name, kind in pairs(KINDS) do
    assert((math.type(doc[name]) or type(doc[name])) == kind, name)
  end
  assert(doc.raft_node_id >= 1 and doc.starts >= 0)
  assert(doc.phase == nil or PHASES[doc.phase])
  assert(doc.removed == nil or type(doc.removed) == "boolean", "removed")
  assert(doc.reason == nil or type(doc.reason) == "string", "reason")
  for _, name in ipairs { "raft", "remote", "gossip" } do assert(type(doc.advertise[name]) == "string") end
  local n = 0
  for k, address in pairs(doc.managers) do
    assert(math.type(k) == "integer" and type(address) == "string", "managers is a list of addresses")
    n = n + 1
  end
  assert(n == #doc.managers)
  -- As identity.save writes it.
  doc.format = 1
  local again = assert(identity.parse(json.encode(doc)))
  fuzz.same(doc, again)
  assert(identity.parse(json.encode(identity.changed(doc, { starts = doc.starts + 1, removed = true }))))
end

local function key(fields)
  local doc = { format = 1, node_id = "06fq0000000000000000000000", cluster_id = "c1", role = "manager", name = "m-01",
    folder = "2049:77", raft_node_id = 1, starts = 3, managers = { "10.0.0.1:27242" },
    advertise = { raft = "10.0.0.1:15760", remote = "10.0.0.1:27242", gossip = "10.0.0.1:37065" } }
  for k, v in pairs(fields) do doc[k] = v end
  return json.encode(doc)
end

return {
  check = check,
  seeds = { key {}, key { phase = "init", managers = json.array() }, key { removed = true, reason = "left" } },
  words = { '"format":1', '"phase":"leave"', '"phase":', '"removed":', '"reason":', '"managers":[]', '"managers":{}',
    '"managers":["a"]', '"a":1', "null", "true", "1e999", "9007199254740993", "0.5", "[]", "{}", '"\\u0000[]"', "," },
}
