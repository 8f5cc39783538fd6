require "spec.unit.cluster_fake"
local crypto = require "sym.crypto"
local statement = require "symphony.cluster.statement"

local NOW = 1700000000
local ca, other = crypto.sha256("ca"), crypto.sha256("other")

local function refused(code, word, text, now)
  local ok, err = statement.check(text, { ca }, now or NOW)
  assert.is_nil(ok, text)
  assert.equal(code, err.code, text)
  assert.truthy(err.message:find(word, 1, true), err.message)
  assert.is_string(err.hint)
end

describe("a statement", function()
  it("fits into a name of a subject", function()
    local text = statement.make(("\255"):rep(32), NOW + 0.5)
    assert.equal(61, #text)
    assert.is_true(statement.check(text, { ("\255"):rep(32) }, NOW))
  end)

  it("is good for an hour, and as long before it was made: clocks are apart", function()
    local text = statement.make(ca, NOW)
    for _, at in ipairs { 0, 1, 3600, -3600, 0.5 } do assert.is_true(statement.check(text, { ca }, NOW + at)) end
    refused("denied", "2023-11-14 22:13:20 UTC, and here it is 2023-11-14 23:13:21 UTC", text, NOW + 3601)
    refused("denied", "here it is 2023-11-14 21:13:19 UTC", text, NOW - 3601)
    refused("denied", "here it is", ("0"):rep(10) .. text:sub(11))
    refused("denied", "here it is", ("9"):rep(10) .. text:sub(11))
  end)

  it("is good for one CA", function()
    refused("denied", "another CA", statement.make(other, NOW))
    refused("denied", "another CA", statement.make(ca, NOW):sub(1, -2))
    refused("denied", "another CA", statement.make(ca, NOW):upper())
  end)

  it("is nothing else", function()
    local text = statement.make(ca, NOW)
    for _, bad in ipairs { "", "m-02", text:sub(2), "0" .. text, text:sub(1, 10), text:sub(1, 11), "-" .. text,
      "0x" .. text:sub(3), text .. "-", " " .. text, text .. "\n", "1.70000000-" .. text:sub(12) } do
      refused("invalid", "does not say when", bad)
    end
  end)
end)
