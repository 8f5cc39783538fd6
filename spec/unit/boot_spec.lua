local fake = require "spec.unit.cluster_fake"

local on_request
local started = false
fake.reset()
package.loaded["sym.node"].on_request = function(fn)
  on_request = fn
end
package.loaded["symphony.api.routes_cluster"] = {
  routes = function(router)
    router.route("GET", "/v1/cluster", {}, function()
      return 200, { there = true }
    end)
  end,
}
package.loaded["symphony.api.routes_metrics"] = {
  routes = function(router)
    router.route("GET", "/metrics", {}, function() return 200, "figures" end)
  end,
}
package.loaded["symphony.cluster.lifecycle"] = {
  start = function()
    assert.is_not_nil(on_request) -- requests find their routes before the node starts
    started = true
  end,
}

describe("boot", function()
  it("has the routes answered and then starts the node", function()
    require("symphony.boot").main()
    assert.is_true(started)
    local function ask(method, path, body)
      local req = fake.request(method, path, { body = body })
      on_request(nil, req)
      fake.loop()
      return req
    end
    assert.same({ version = "1.2.3" }, ask("GET", "/v1/version"):json())
    assert.same({ there = true }, ask("GET", "/v1/cluster"):json())
    assert.equal("figures", ask("GET", "/metrics").answer)
    assert.equal(0, ask("POST", "/v1/command", '{"argv": ["--version"]}'):messages()[2].exit)
    assert.equal("2\n", ask("POST", "/v1/lua", '{"code": "1 + 1"}'):messages()[1].result)
  end)
end)
