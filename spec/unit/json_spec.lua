require "spec.unit.fake"
local json = require "symphony.json"

local function refused(v)
  local ok, err = pcall(json.encode, v)
  assert.is_false(ok)
  assert.equal("invalid", err.code)
end

describe("json.encode", function()
  it("sorts keys and keeps integers", function()
    assert.equal('{"a":1,"b":123456789012345,"c":[1,2.5,-3]}',
      json.encode { c = { 1, 2.5, -3 }, b = 123456789012345, a = 1 })
    assert.equal("9007199254740992", json.encode(2 ^ 53))
    assert.equal("-9007199254740992", json.encode(-(1 << 53)))
  end)

  it("writes floats so that they come back", function()
    for _, x in ipairs { 0.1, 1 / 3, 1e300, -2.5e-10, 123456.789, 5e-324 } do
      assert.equal(x, json.decode(json.encode(x)))
    end
    assert.equal("3", json.encode(3.0))
  end)

  it("escapes", function()
    assert.equal([["a\"b\\c\nd\u0000e\u001f/"]], json.encode('a"b\\c\nd\0e\31/'))
    assert.equal('"\u{e9}\u{1F600}\127"', json.encode("\u{e9}\u{1F600}\127"))
  end)

  it("knows empty arrays from empty objects", function()
    assert.equal("{}", json.encode {})
    assert.equal("[]", json.encode(json.array()))
    assert.equal('{"a":[],"o":{}}', json.encode(json.decode('{"o": {}, "a": [ ]}')))
  end)

  it("writes null", function()
    assert.equal('[null,1]', json.encode { json.null, 1 })
    assert.equal("null", json.encode(nil))
  end)

  it("refuses what it would damage", function()
    refused(0 / 0)
    refused(math.huge)
    refused(-math.huge)
    refused((1 << 53) + 1)
    refused(math.mininteger)
    refused("\xff")
    refused { ["\xc0\xaf"] = 1 }
    refused { 1, 2, x = 3 }
    refused { [1] = 1, [3] = 3 }
    refused { [true] = 1 }
    refused(print)
    local cycle = {}
    cycle.x = cycle
    refused(cycle)
  end)
end)

describe("json.decode", function()
  it("restores integers, however deep", function()
    local v = json.decode('{"a": [1, 2.0, 2.5, {"b": 9007199254740992}], "c": 1e300, "d": -0.5}')
    assert.equal("integer", math.type(v.a[1]))
    assert.equal("integer", math.type(v.a[2]))
    assert.equal(2.5, v.a[3])
    assert.equal("integer", math.type(v.a[4].b))
    assert.equal("float", math.type(v.c))
    assert.equal("integer", math.type(json.decode("7")))
  end)

  it("keeps null and empty arrays", function()
    local v = json.decode('{"n": null, "a": [], "s": "[]", "t": "x\\"[]", "o": [[], [[ ]], "[ ]"]}')
    assert.equal(json.null, v.n)
    assert.equal("[]", json.encode(v.a))
    assert.equal("[]", v.s)
    assert.equal('x"[]', v.t)
    assert.equal('[[],[[]],"[ ]"]', json.encode(v.o))
    assert.equal("[]", json.encode(json.decode "[]"))
  end)

  it("takes no text for an empty array", function()
    for _, text in ipairs { '["\\u0000[]"]', '[["\\u0000\\u005b]"],[]]', '{"a":[],"b":["\\u0000[]"]}' } do
      local v = json.decode(text)
      assert.equal("\0[]", (v.b or type(v[1]) == "table" and v[1] or v)[1])
      assert.same(v, json.decode(json.encode(v)))
    end
  end)

  it("refuses numbers that are out of range", function()
    for _, text in ipairs { "1e999", "[-1e999]", '{"a":{"b":[1,1e400]}}' } do
      local v, err = json.decode(text)
      assert.is_nil(v, text)
      assert.equal("invalid", err.code)
    end
    assert.equal(1e308, json.decode("1e308"))
  end)

  it("says what is not JSON", function()
    for _, text in ipairs { "", "{", "[1,]", "nan", "[Infinity]", "0x10", "'a'", '"\xff"', '"a', '{"a":1}x', '["[]',
      '"\\ud800"', ("["):rep(200) .. ("]"):rep(200), '["\\', "[\11]" } do
      local v, err = json.decode(text)
      assert.is_nil(v, text)
      assert.equal("invalid", err.code)
    end
  end)

  it("gives back what was encoded", function()
    local v = { a = "x\0y", b = { 1, { c = "\u{10FFFF}" } }, d = false, e = json.array { json.array() } }
    assert.same(v, json.decode(json.encode(v)))
  end)
end)

describe("json.clean", function()
  it("replaces what is not UTF-8", function()
    assert.equal("plain \u{e9}", json.clean("plain \u{e9}"))
    assert.equal("\u{FFFD}a\u{FFFD}\u{FFFD}b\u{FFFD}", json.clean("\xffa\xc0\xafb\xe2"))
    assert.equal("", json.clean(""))
  end)
end)
