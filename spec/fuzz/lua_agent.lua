local agent = require "symphony.cluster.agent"
local errors = require "symphony.errors"
local gossip = require "symphony.cluster.gossip"
local json = require "symphony.json"
local stream = require "symphony.lines"

-- What listeners rely on, of whatever they are told.
local heard = {
  cluster = function(c)
    assert(#c.managers > 0 and #table.concat(c.managers, " ") > 0 and #c.ca > 0)
    assert(c.trust == nil or math.type(c.trust) == "integer")
  end,
  gossip = function(doc) gossip.read_keys(doc) end,
  peer = function(id, peer)
    assert(id:match("^%w+$"))
    assert(peer == nil or (#peer.key > 0 and #peer.role > 0))
  end,
  status = function(status) assert(status == nil or #status.status > 0) end,
}
agent.on(function(what, ...)
  if heard[what] then heard[what](...) end
end)

local function count(map)
  local n = 0
  for _ in pairs(map) do n = n + 1 end
  return n
end

return {
  check = function(text)
    local v, session = agent.new_view(), { assigned = {} }
    local take = stream.of(function(message) agent.take(v, session, message) end, 1 << 16)
    local ok, err = xpcall(take, errors.handler, text)
    assert(ok or (errors.is(err) and err.code ~= "internal"), err and err.traceback)
    assert(math.type(v.revision) == "integer" and v.revision >= 0)
    assert(#v.mark <= 40 and v.mark:find("^%d+%.%d+$"))
    assert(v.kept == count(v.peers) + count(v.assigned) + (v.synced and 0 or count(session.assigned)))
    json.encode { v.cluster or json.null, v.node or json.null, v.status or json.null }
  end,
  seeds = {
    '{"cluster":{"id":"c1","name":"c1","epoch":1,"ca":"PEM","trust":2,"sign":"ab","managers":["10.0.0.1:27242"]}}\n'
      .. '{"gossip":{"keys":[{"id":1,"secret":"AAAA","use":true}]}}\n{"node":{"name":"w"}}\n{"status":null}\n'
      .. '{"put":"block/a","value":{"size":1},"revision":3}\n{"peers":"all"}\n'
      .. '{"peer":"n1","key":"QUFB","role":"worker"}\n'
      .. '{"synced":4,"peers":"4.1"}\n{"put":"block/b","value":1,"revision":5}\n{"delete":"block/b","revision":6}\n'
      .. '{"peer":"n1","gone":true}\n{"peers":"6.0"}\n{"heartbeat":7}\n{"error":{"code":"closed","message":"end"}}\n',
    '{"status":{"status":"ready","since":1}}\n{"peers":"same"}\n{"synced":4,"peers":"4.1"}\n' },
  words = { '{"cluster":', '"managers":', '"epoch":', '"trust":', '"ca":"P"', '"id":"c"', '{"gossip":', '"keys":',
    '"secret":"AAAA"', '"use":true', '{"node":', '{"status":', '{"peer":"n"', '"gone":true', '"key":"QUFB"',
    '"role":"worker"', '{"put":"a"', '{"delete":"a"', '"value":', '"revision":', '{"synced":', '"peers":', '"1.1"',
    '"all"', '{"heartbeat":', '{"error":', '"same"', "null", "[]", "{}", "true", "1e300", "9007199254740993", "-1",
    "1.5", '"10.0.0.1:1"', "\n", "}\n" },
}
