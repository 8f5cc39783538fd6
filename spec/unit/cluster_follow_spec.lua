local fake = require "spec.unit.cluster_fake"
local async = require "symphony.async"
local errors = require "symphony.errors"
local follow = require "symphony.cluster.follow"
local router = require "symphony.api.router"
local state = require "symphony.cluster.state"

local function put(key, value) fake.apply { ops = { state.put(key, value) } } end

local function key_and_size(event) return event.key, #event.key + #(event.value or "") end

describe("what follows changes", function()
  before_each(function() fake.reset() end)

  it("keeps them in order until they are taken, up to a revision if that is wanted", fake.task(function()
    fake.make()
    local began = fake.revision
    local f <close> = assert(follow.open("/kv/", began, 1 << 20, function(event)
      if event.key:find("skip") then return nil end
      return key_and_size(event)
    end))
    assert.is_nil(f:pop())
    for i = 1, 3 do
      put("/kv/" .. i, "v")
      put("/kv/skip" .. i, "v")
    end
    assert.is_true(f.changed:wait(1000))
    assert.equal(began + 6, f.seen)
    assert.is_nil(f:pop(began))
    assert.same({ "/kv/1", began + 1 }, { f:pop(began + 2) })
    assert.is_nil(f:pop(began + 2))
    assert.equal("/kv/2", f:pop())
    assert.equal("/kv/3", f:pop())
    assert.is_nil(f:pop())
    assert.equal(0, f.bytes)
    assert.is_nil(f.failed)
  end))

  it("gives up, and lets go of everything, when too much waits", fake.task(function()
    fake.make()
    local before = fake.watching()
    local f <close> = assert(follow.open("/kv/", fake.revision, 10000, key_and_size))
    put("/kv/a", ("v"):rep(9000))
    assert.equal("/kv/a", f:pop())
    put("/kv/a", ("v"):rep(9000))
    assert.equal(before + 1, fake.watching())
    assert.is_nil(f.failed)
    put("/kv/a", ("v"):rep(9000))
    assert.equal("busy", f.failed.code)
    assert.equal(before, fake.watching())
    assert.is_nil(f:pop())
    -- Whatever is still on its way changes nothing.
    f:add(nil, { { key = "/kv/late", value = "", revision = fake.revision + 1 } })
    assert.is_nil(f:pop())
    assert.is_true(f.changed:wait(1000))
  end))

  it("still gives what came before the watch ended", fake.task(function()
    fake.make()
    local f <close> = assert(follow.open("/kv/", fake.revision, 10000, key_and_size))
    put("/kv/a", "v")
    f:add(errors.new("compacted", "gone"))
    assert.equal("compacted", f.failed.code)
    assert.equal("/kv/a", f:pop())
    assert.is_nil(f:pop())
  end))
end)

describe("GET /v1/backup", function()
  -- A request whose client takes a piece only when it is told to.
  local function begin()
    router.reset()
    require("symphony.api.routes_backup").routes(router)
    local req = fake.request("GET", "/v1/backup")
    local write = req.write
    req.go = async.event()
    function req:write(data, cb)
      async.spawn(function()
        req.go:wait()
        write(self, data, cb)
        req.go:set()
      end)
      return true
    end
    router.dispatch(req)
    async.sleep(1)
    return req
  end

  before_each(function() fake.reset() end)

  it("has all that changes meanwhile, at one revision", fake.task(function()
    fake.make()
    put("/kv/a", "1")
    local req = begin()
    put("/kv/b", "2")
    put("/kv/a", "3")
    local last = fake.revision
    req.go:set()
    for _ = 1, 200 do
      if req.finished then break end
      async.sleep(1)
    end
    assert.is_true(req.finished)
    local header, entries = require("symphony.cluster.backup").collect(table.concat(req.chunks))
    assert.equal(last, header.revision)
    local found = {}
    for _, row in ipairs(entries) do found[row.key] = row.value end
    assert.same({ "3", "2" }, { found["/kv/a"], found["/kv/b"] })
  end))

  it("is cut when its client takes next to nothing, and holds nothing for it", fake.task(function()
    fake.make()
    local before = fake.watching()
    local req = begin()
    assert.equal(before + 1, fake.watching())
    local value = ("v"):rep(1 << 20)
    for i = 1, 40 do put("/kv/" .. i % 5, value) end
    assert.equal(before, fake.watching(), "it still watches")
    req.go:set()
    for _ = 1, 200 do
      if req.aborted then break end
      async.sleep(1)
    end
    assert.is_true(req.aborted)
    assert.is_nil(table.concat(req.chunks):find('{"end"', 1, true))
  end))
end)
