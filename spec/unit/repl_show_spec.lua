require "spec.unit.fake"

local show = require "symphony.repl.show"

describe("show", function()
  it("writes values that can be pasted back", function()
    local nested = { ["with space"] = true, ["end"] = 1.5, [10] = false, f = 3.0 }
    local v = { 1, "two", nested = nested, ["\n\"\0\xff"] = "\t\r" }
    local copy = assert(load("return " .. show.show(v)))()
    assert.same(v, copy)
    assert.equal('"a\\nb"', show.show("a\nb"))
    assert.equal('"\\xff\u{e9}"', show.show("\xff\u{e9}"))
    assert.equal("3.0", show.show(3.0))
    assert.equal("3", show.show(3))
    assert.equal("nil", show.show(nil))
    assert.equal("{}", show.show({}))
  end)

  it("sorts keys", function()
    assert.equal("{\n  10,\n  [5] = 1,\n  a = 1,\n  b = 2,\n  [true] = 0,\n}",
      show.show { 10, b = 2, a = 1, [5] = 1, [true] = 0 })
  end)

  it("marks cycles and stops at a depth, a count and a size", function()
    local t = { x = {} }
    t.x.up = t
    assert.truthy(show.show(t):find("up = <cycle>", 1, true))
    local deep = {}
    for _ = 1, 50 do
      deep = { deep }
    end
    assert.truthy(show.show(deep):find("{...}", 1, true))
    local long = {}
    for i = 1, 1000 do
      long[i] = i
    end
    assert.truthy(show.show(long):find("-- and 800 more", 1, true))
    local big = {}
    for i = 1, 100 do
      big[i] = ("x"):rep(100000)
    end
    assert.is_true(#show.show(big) < 1000000)
    local shared = {}
    assert.equal("{\n  {},\n  {},\n}", show.show { shared, shared })
  end)

  it("calls no metamethod", function()
    local function boom()
      error("called")
    end
    local v = setmetatable({ a = 1 }, { __index = boom, __len = boom, __pairs = boom, __tostring = boom, __name = "x" })
    assert.equal("{\n  a = 1,\n}", show.show(v))
    assert.truthy(show.show(print):find("^<function"))
    assert.truthy(show.show(io.stdout):find("^<userdata"))
  end)
end)
