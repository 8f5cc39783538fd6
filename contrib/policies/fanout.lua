-- What happens to nodes as keys that others watch, like a webhook without the web: below hook/nodes/ stands the last of
-- each node, and hook/last says of what the last was. A node that is down for good is drained, so that others take over
-- what it had; when it is back it is active again.
--
--   symphony kv put fanout/drain yes       (drain what is down; without it nothing is)
--   symphony policy set fanout contrib/policies/fanout.lua
--   symphony --json kv watch hook/ | your-program

local FOLDER, DRAIN, DRAINED = "hook/nodes/", "/kv/fanout/drain", "fanout/drained/"

-- A text in JSON, for those that read the keys.
local function quote(text)
  return '"' .. tostring(text):gsub('[%c"\\]', function(c) return ("\\u%04x"):format(c:byte()) end) .. '"'
end

local function told(what, input)
  return ('{"event":%s,"node_id":%s,"name":%s,"reason":%s,"since":%d}'):format(quote(what), quote(input.node.node_id),
    quote(input.node.name or ""), quote(input.reason or ""), math.floor(input.since or 0))
end

local function down(input)
  local node = input.node
  local text = told("down", input)
  local list = { kv_put(FOLDER .. node.node_id, text), kv_put("hook/last", text) }
  if get(DRAIN) == "yes" and node.role == "worker" then
    local record = get("/node/" .. node.node_id)
    if record and record.availability == "active" then
      list[#list + 1] = drain(node.node_id)
      list[#list + 1] = kv_put(DRAINED .. node.node_id, "yes")
    end
  end
  return list
end

local function up(input)
  local node = input.node
  local text = told("up", input)
  local list = { kv_put(FOLDER .. node.node_id, text), kv_put("hook/last", text) }
  if get("/kv/" .. DRAINED .. node.node_id) then
    list[#list + 1] = activate(node.node_id)
    list[#list + 1] = kv_rm(DRAINED .. node.node_id)
  end
  return list
end

local function leads(input)
  return { kv_put("hook/leader", input.leader.name) }
end

local w1 = { node_id = "n1", name = "w1", role = "worker" }
local TEXT = '{"event":"down","node_id":"n1","name":"w1","reason":"no \\u0022answer\\u0022","since":7}'
local UP = '{"event":"up","node_id":"n1","name":"w1","reason":"","since":9}'

local function put(key, value) return { do_ = "kv.put", key = key, value = value } end

return {
  summary = "Tells of nodes in keys (hook/...), and drains those that are down (kv: fanout/drain)",
  hooks = { ["node.down"] = down, ["node.up"] = up, ["leader.change"] = leads },
  selftest = {
    { name = "a node goes down", hook = "node.down", input = { node = w1, reason = 'no "answer"', since = 7 },
      expect = { commands = { put("hook/nodes/n1", TEXT), put("hook/last", TEXT) } } },
    { name = "and is drained, if that is wanted", hook = "node.down",
      input = { node = w1, reason = 'no "answer"', since = 7 },
      state = { ["/kv/fanout/drain"] = "yes", ["/node/n1"] = { node_id = "n1", availability = "active" } },
      expect = { commands = { put("hook/nodes/n1", TEXT), put("hook/last", TEXT),
        { do_ = "availability", node = "n1", value = "drain" }, put("fanout/drained/n1", "yes") } } },
    { name = "one that is paused stays so", hook = "node.down",
      input = { node = w1, reason = 'no "answer"', since = 7 },
      state = { ["/kv/fanout/drain"] = "yes", ["/node/n1"] = { node_id = "n1", availability = "pause" } },
      expect = { commands = { put("hook/nodes/n1", TEXT), put("hook/last", TEXT) } } },
    { name = "back again, it is active", hook = "node.up", input = { node = w1, since = 9 },
      state = { ["/kv/fanout/drained/n1"] = "yes" },
      expect = { commands = { put("hook/nodes/n1", UP), put("hook/last", UP),
        { do_ = "availability", node = "n1", value = "active" }, { do_ = "kv.rm", key = "fanout/drained/n1" } } } },
    { name = "what somebody drained stays drained", hook = "node.up", input = { node = w1, since = 9 },
      expect = { commands = { put("hook/nodes/n1", UP), put("hook/last", UP) } } },
    { name = "another leader", hook = "leader.change", input = { leader = { node_id = "n1", name = "m2" }, term = 3 },
      expect = { commands = { put("hook/leader", "m2") } } },
  },
}
