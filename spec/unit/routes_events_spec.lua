local fake = require "spec.unit.cluster_fake"
local async = require "symphony.async"
local router = require "symphony.api.router"
local state = require "symphony.cluster.state"

describe("GET /v1/events?follow", function()
  local open = {}

  local function follow(name)
    local req = fake.ask("GET", "/v1/events", { query = "follow=true",
      peer = { tls = true, addr = "192.0.2.1", cn = name, ou = "reader", fingerprint = "f" .. name } })
    if req.status == 200 then open[#open + 1] = req end
    return req.status
  end

  local function end_all()
    while open[1] do table.remove(open):leave() end
    async.sleep(5)
  end

  it("is for many readers, and not for one alone", fake.task(function()
    fake.reset()
    router.reset()
    fake.make {}
    require("symphony.api.routes_events").routes(router)
    for i = 0, 5 do
      fake.apply { ops = { state.put("/client/r" .. i, { role = "reader", fingerprint = "fr" .. i }) } }
    end
    for _ = 1, 2 do -- they are forgotten when they go
      for _ = 1, 16 do assert.equal(200, follow "r0") end
      assert.equal(503, follow "r0")
      for i = 1, 3 do
        for _ = 1, 16 do assert.equal(200, follow("r" .. i)) end
      end
      assert.equal(503, follow "r4") -- 64 in all
      end_all()
    end
  end))
end)
