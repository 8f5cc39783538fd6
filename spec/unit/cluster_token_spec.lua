local fake = require "spec.unit.cluster_fake"
local crypto = require "sym.crypto"
local json = require "symphony.json"
local state = require "symphony.cluster.state"
local token = require "symphony.cluster.token"
local tokens = require "symphony.cluster.tokens"

local digest = crypto.sha256("ca")
local good = token.make(digest, crypto.random(16))

describe("token.parse", function()
  it("gives back what was put in", function()
    local secret = crypto.random(16)
    local text = token.make(digest, secret)
    assert.equal(token.LENGTH, #text)
    assert.truthy(text:match("^SYMTKN%-1%-%w+%-%w+$"))
    local parsed = assert(token.parse(text))
    assert.equal(digest, parsed.ca)
    assert.equal(secret, parsed.secret)
    assert.same(parsed, token.parse("  " .. text .. "\n"))
    assert.same(parsed, token.parse(text:lower()))
  end)

  local function why(text)
    local parsed, err = token.parse(text)
    assert.is_nil(parsed)
    assert.equal("invalid", err.code)
    assert.is_string(err.hint)
    return err.message
  end

  it("tells a truncated token from something else", function()
    for n = 1, token.LENGTH - 1 do assert.truthy(why(good:sub(1, n)):find("truncated"), good:sub(1, n)) end
    assert.truthy(why("hello"):find("begin"))
    assert.truthy(why("SYMTKN-2" .. good:sub(9)):find("version"))
    assert.truthy(why(good .. "a"):find("characters"))
    assert.truthy(why(good:sub(1, 20) .. "!" .. good:sub(22)):find("character"))
    assert.truthy(why(good:sub(1, 8) .. "-" .. good:sub(9)))
    assert.truthy(why(""):find("empty"))
    assert.truthy(why(good:sub(1, 9) .. ("z"):rep(50) .. good:sub(60)):find("wrong"))
    for _, other in ipairs { 7, json.null, {}, true } do assert.truthy(why(other)) end
  end)

  it("refuses a long one at once, and never shows the secret", function()
    local began = os.clock()
    for _, text in ipairs { good .. ("a"):rep(100000), ("-"):rep(100000), (" "):rep(100000), good:rep(1200) } do
      assert.is_falsy(why(text):find(good:sub(-25), 1, true))
    end
    assert.is_true(os.clock() - began < 0.5)
  end)

  it("survives any bytes", function()
    math.randomseed(7)
    for _ = 1, 2000 do
      local bytes = { good:byte(1, -1) }
      for _ = 1, math.random(4) do bytes[math.random(#bytes)] = math.random(0, 255) end
      local ok, err = token.parse(string.char(table.unpack(bytes, 1, math.random(#bytes))))
      assert.is_true(ok ~= nil or err.code == "invalid")
    end
  end)
end)

describe("token.check", function()
  local now = 1000
  local function record(options)
    options.role = options.role or "manager"
    return token.record("abcdef0123456789", options, now)
  end

  it("lets in whom it is for", function()
    assert.is_true(token.check(record { ttl = 10 }, "manager", "10.0.0.1", now))
    assert.is_true(token.check(record { ttl = false }, "manager", "10.0.0.1", now + 1e9))
    assert.is_true(token.check(record { uses = 1, cidrs = { "10.0.0.0/8", "fd00::/8" } }, "manager", "fd00::1", now))
  end)

  it("refuses all others, each with its reason", function()
    local function refused(code, word, ...)
      local ok, err = token.check(...)
      assert.is_nil(ok)
      assert.equal(code, err.code)
      assert.truthy(err.message:find(word), err.message)
      assert.is_string(err.hint)
    end
    refused("denied", "does not know", nil, "manager", "a", now)
    refused("denied", "worker", record { role = "worker" }, "manager", "a", now)
    refused("expired", "expired", record { ttl = 10 }, "manager", "a", now + 10)
    refused("denied", "used up", record { uses = 0 }, "manager", "a", now)
    refused("denied", "10.9.9.9", record { cidrs = { "10.0.0.0/16" } }, "manager", "10.9.9.9", now)
    refused("denied", "may not", record { cidrs = { "10.0.0.0/16" } }, "manager", nil, now)
  end)

  it("counts its uses down", function()
    assert.equal(1, token.used(record { uses = 2 }).uses)
    assert.is_nil(token.used(record {}).uses)
  end)

  it("checks options from outside", function()
    assert.is_true(token.check_options { role = "worker", uses = 3, labels = { a = "b" }, cidrs = { "::/0" } })
    for _, options in ipairs { { role = "king" }, { role = "worker", uses = 0 }, { role = "worker", uses = 1.5 },
      { role = "worker", cidrs = { "x" } }, { role = "worker", cidrs = 7 },
      { role = "worker", labels = { ["a b"] = "" } } } do
      local ok, err = token.check_options(options)
      assert.is_nil(ok)
      assert.equal("invalid", err.code)
    end
  end)
end)

describe("the tokens of a cluster", function()
  before_each(function()
    fake.reset()
  end)

  it("are made, listed, removed and rotated", fake.task(function()
    local first = fake.make()
    assert.equal(2, #tokens.list())
    local made = assert(tokens.create { role = "worker", ttl = 60, uses = 2, labels = { a = "b" }, cidrs = {} })
    assert.truthy(token.parse(made.token))
    assert.equal(10, #made.id)
    assert.equal(3, #tokens.list())
    for _, row in ipairs(tokens.list()) do assert.is_nil(row.token) end
    assert.is_nil(fake.kvs["/token/" .. token.hash(token.parse(made.token).secret)].value:find(made.token, 1, true))

    assert.equal(made.id, assert(tokens.remove(made.id:sub(1, 5))).id)
    local _, err = tokens.remove(made.id)
    assert.equal("not_found", err.code)
    assert.equal("manager", assert(tokens.remove(first.tokens.manager)).role)

    tokens.create { role = "worker" }
    local rotated = assert(tokens.rotate { role = "worker", ttl = 60 })
    assert.equal(2, #rotated.removed)
    assert.equal(1, #tokens.list())
    assert.equal(rotated.id, tokens.list()[1].id)
  end))

  it("are forgotten a day after they have expired", fake.task(function()
    fake.make { token_ttl = 10 }
    assert.equal(0, #tokens.stale(state.list("/token/"), fake.now + 11))
    fake.now = fake.now + 86400 + 11
    tokens.sweep()
    assert.equal(0, #tokens.list())
  end))

  it("are left alone when somebody comes between", fake.task(function()
    local first = fake.make()
    local id = token.hash(token.parse(first.tokens.manager).secret):sub(1, 10)
    local done
    fake.before_submit = function(txn)
      if not done and txn.ops[1].delete then
        done = true
        fake.apply { ops = { { put = txn.ops[1].delete, value = fake.kvs[txn.ops[1].delete].value } } }
      end
    end
    assert(tokens.remove(id))
    assert.equal(1, #tokens.list())
  end))
end)
