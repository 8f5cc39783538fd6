-- The policies in contrib: each says what it is for and passes its own cases.
local fake = require "spec.unit.cluster_fake"
require "spec.unit.policy_fake"
local engine = require "symphony.policy.engine"
local why_failed = require("symphony.policy.cases").why_failed

local function read(path)
  local f <close> = assert(io.open(path))
  return f:read "a"
end

describe("contrib/policies", function()
  for _, name in ipairs { "dev", "spread", "quota", "maintenance", "names", "fanout" } do
    it("has " .. name .. ", which passes its selftest", fake.task(function()
      fake.reset()
      local tested = assert(engine.test(read(("contrib/policies/%s.lua"):format(name))))
      assert.truthy(#tested.about.summary > 20)
      assert.is_true(#tested.cases >= 4)
      for _, case in ipairs(tested.cases) do
        assert.is_true(case.ok, ("%s: %s: %s"):format(name, case.name, case.ok or why_failed(case)))
      end
    end))
  end

  it("has no policy besides that nobody tries", function()
    local n = 0
    local folder = assert(require("luv").fs_scandir("contrib/policies"))
    for _ in require("luv").fs_scandir_next, folder do n = n + 1 end
    assert.equal(6, n)
  end)
end)
