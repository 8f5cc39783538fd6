local fake = require "spec.unit.cluster_fake"
local gossip = require "symphony.cluster.gossip"
local json = require "symphony.json"
local router = require "symphony.api.router"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"

describe("POST /v1/gossip", function()
  local clock, taken, mono, exchange_step = 1000000, 0, sys.mono_ms, gossip.exchange_step

  setup(function()
    sys.mono_ms = function() return clock end
    gossip.exchange_step = function()
      taken = taken + 1
      return {}
    end
  end)
  teardown(function() sys.mono_ms, gossip.exchange_step = mono, exchange_step end)

  local function step(id)
    return fake.ask("POST", "/v1/gossip", { body = json.encode { cursor = 0 },
      peer = { tls = true, addr = "192.0.2.1", cn = id, ou = "worker", fingerprint = "f" .. id } }).status
  end

  it("takes from one node what a large cluster needs, and no more", fake.task(function()
    fake.reset()
    router.reset()
    require("symphony.api.routes_gossip").routes(router)
    for _, id in ipairs { "0w1", "0w2" } do
      fake.apply { ops = { state.put("/node/" .. id, { node_id = id, role = "worker", fingerprint = "f" .. id }) } }
    end
    local by_status = {}
    for _ = 1, 3000 do
      local status = step "0w1"
      by_status[status] = (by_status[status] or 0) + 1
    end
    assert.same({ [200] = 2000, [503] = 1000 }, by_status)
    assert.equal(2000, taken)
    assert.equal(200, step "0w2")
    clock = clock + 60
    assert.equal(200, step "0w1")
    assert.equal(503, step "0w1")
  end))
end)
