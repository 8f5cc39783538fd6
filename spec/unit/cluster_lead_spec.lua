local fake = require "spec.unit.cluster_fake"
local async = require "symphony.async"
local errors = require "symphony.errors"
local lead = require "symphony.cluster.lead"

describe("the leader's loops", function()
  local function complaints()
    local out = {}
    for _, text in ipairs(fake.logged) do
      if text:find("^%l+: jars: ") then out[#out + 1] = text end
    end
    return out
  end

  it("look at once, when they are woken, and again after they failed, until they are stopped", function()
    fake.reset()
    fake.run(function()
      local turns, next_ms, fails, reached = 0, 60000, nil, async.event()
      local loop = lead.loop("jars", 1, function()
        turns = turns + 1
        reached:set()
        if fails then error(fails, 0) end
        return next_ms
      end, { level = "warn" })
      local function await(n)
        while turns < n do assert(reached:wait(20000)) end
        assert.equal(n, turns)
      end
      loop:start()
      loop:start()
      loop:wake()
      await(1)
      loop:wake()
      await(2)
      fails = errors.new("io", "the shelf is broken")
      loop:wake()
      while turns < 5 do assert(reached:wait(20000)) end
      fails, next_ms = nil, 60000
      async.sleep(20)
      assert.same({ "warn: jars: the shelf is broken" }, complaints())
      local before = turns
      fails = errors.new("io", "the shelf is broken") -- it was mended meanwhile
      loop:wake()
      while turns < before + 2 do assert(reached:wait(20000)) end
      assert.equal(2, #complaints())
      -- What was called off is no complaint, and does not end it.
      fails = errors.new("canceled", "the read was called off")
      before = turns
      while turns < before + 2 do assert(reached:wait(20000)) end
      assert.equal(2, #complaints())
      loop:stop()
      before = turns
      loop:wake()
      async.sleep(5)
      assert.equal(before, turns)
    end)
  end)

  it("look at once when they are started, if that is asked for", function()
    fake.run(function()
      local turns = 0
      local function turn()
        turns = turns + 1
        return 60000
      end
      local loop, later = lead.loop("jars", 1, turn, { first_ms = 0 }), lead.loop("jars", 60000, turn)
      loop:start()
      later:start()
      async.sleep(0)
      assert.equal(1, turns)
      loop:stop()
      later:stop()
    end)
  end)

  it("know whether they lead", fake.task(function()
    fake.reset()
    assert.is_nil(lead.status())
    fake.make()
    assert.equal("leader", lead.status().state)
    fake.status.state = "follower"
    assert.is_nil(lead.status())
  end))
end)
