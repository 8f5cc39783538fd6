-- What a worker tells of its resources: all of it arrives, whatever else there is to tell.
local fake = require "spec.unit.fake"

local agent = { seen = {} }
function agent.view() return { synced = true } end
package.loaded["symphony.cluster.agent"] = agent

local async = require "symphony.async"
local outbox = require "symphony.services.outbox"

-- A manager that has what it takes in taken, by key; refuse(item) says why not.
local function manager(refuse, max)
  local m = { taken = {}, calls = 0 }
  function agent.call(_, _, body)
    m.calls = m.calls + 1
    if m.calls > 500 then error("it never ends") end
    async.sleep(0)
    if #body.status > (max or 32) then return nil, { code = "too_big", message = "a report of more than 64 KiB" } end
    for _, item in ipairs(body.status) do
      local err = refuse and refuse(item)
      if err then return nil, err end
    end
    for _, item in ipairs(body.status) do m.taken[item.kind .. "/" .. item.id] = item end
    return { gone = {} }
  end
  return m
end

local function item(id, more)
  local out = { kind = "jar", id = id, uid = "u", generation = 1, state = "running" }
  for k, v in pairs(more or {}) do out[k] = v end
  return out
end

local function run(fn)
  return function()
    fake.run(function()
      outbox.pause_ms = 0
      outbox.clear()
      outbox.start()
      local ok, err = pcall(fn)
      outbox.stop()
      if not ok then error(err, 0) end
    end)
  end
end

local function settled()
  for _ = 1, 2000 do
    if select(2, outbox.list()) == 0 then return true end
    async.sleep(0)
  end
  return false
end

local function count(t)
  local n = 0
  for _ in pairs(t) do n = n + 1 end
  return n
end

describe("a worker's statuses", function()
  it("arrive, all but those that are none, which are told as failed", run(function()
    local bad = { message = "state is a word", code = "invalid" }
    local m = manager(function(i) return i.state:find("%s") and bad end)
    for i = 1, 100 do outbox.note("jar/" .. i, item(tostring(i), { state = i % 30 == 7 and "not one" or nil })) end
    assert.is_true(settled())
    assert.equal(100, count(m.taken))
    for i = 1, 100 do
      local status = m.taken["jar/" .. i]
      assert.equal(i % 30 == 7 and "failed" or "running", status.state)
      assert.equal(i % 30 == 7 and "its status is not one: state is a word" or nil, status.message)
    end
    -- The same again is no news, also of a bad one; another one is.
    local calls = m.calls
    for i = 1, 100 do outbox.note("jar/" .. i, item(tostring(i), { state = i % 30 == 7 and "not one" or nil })) end
    for _ = 1, 10 do async.sleep(0) end
    assert.equal(calls, m.calls)
    outbox.note("jar/7", item "7")
    assert.is_true(settled())
    assert.equal("running", m.taken["jar/7"].state)
  end))

  it("arrive in as many reports as it takes, and what can never be told is left", run(function()
    local m = manager(nil, 5)
    for i = 1, 40 do outbox.note("jar/" .. i, item(tostring(i))) end
    assert.is_true(settled())
    assert.equal(40, count(m.taken))
    m = manager(function(i) return i.id == "3" and { code = "invalid", message = "generation 1 was not given" } end)
    outbox.again()
    assert.is_true(settled())
    assert.equal(39, count(m.taken))
  end))

  it("are told again until somebody takes them", run(function()
    local tries = 0
    local m = manager(function()
      tries = tries + 1
      return tries < 5 and { code = "unreachable", message = "nobody" } or nil
    end)
    outbox.note("jar/a", item "a")
    assert.is_true(settled())
    assert.equal("running", m.taken["jar/a"].state)
  end))

  it("have messages that are taken, whatever bytes are in them", function()
    for _, text in ipairs { "", "all is well", ("x"):rep(1000), ("\xe9"):rep(1000), ("x"):rep(479) .. "\u{20ac}" } do
      local message = outbox.words(text)
      assert.is_true(#message <= 500 and utf8.len(message) ~= nil, message)
    end
    assert.equal("a\u{FFFD}b", outbox.words "a\xe9b")
  end)
end)
