local fake = require "spec.unit.cluster_fake"
local errors = require "symphony.errors"
local state = require "symphony.cluster.state"

describe("state", function()
  before_each(function() fake.reset() end)

  it("reads values and lists in pages", fake.task(function()
    fake.make()
    for i = 1, 600 do fake.apply { ops = { state.put(("/kv/%04d"):format(i), "v" .. i) } } end
    assert.equal(600, #state.list_raw("/kv/"))
    assert.equal("/kv/0600", state.list_raw("/kv/")[600].key)
    assert.equal(300, #state.list_raw("/kv/", { limit = 300 }))
    assert.equal("/kv/0301", state.list_raw("/kv/", { after = "/kv/0300", limit = 1 })[1].key)
    assert.equal("v7", state.text("/kv/0007"))
    assert.is_nil(state.text("/kv/none"))
    local value, err = state.get("/kv/0007")
    assert.is_nil(value)
    assert.equal("corrupt", err.code)
    assert.truthy(err.message:find("/kv/0007", 1, true))
  end))

  it("says how fresh a read is", fake.task(function()
    fake.make()
    assert.same({ stale = false, revision = 1 }, state.read())
    fake.read_error = { code = "no_quorum", message = "nobody answers" }
    local ok, err = state.read()
    assert.is_nil(ok)
    assert.equal("no_quorum", err.code)
    assert.truthy(err.hint:find("recover"))
    assert.same({ stale = true, reason = "nobody answers", revision = 1 }, state.read { stale = true })
  end))

  it("has nothing to read where there is no cluster", fake.task(function()
    local ok, err = state.read { stale = true }
    assert.is_nil(ok)
    assert.equal("no_cluster", err.code)
  end))

  it("decides anew when somebody came between", fake.task(function()
    fake.make()
    fake.apply { ops = { state.put("/kv/n", "1") } }
    local between = 3
    fake.before_submit = function()
      if between > 0 then
        between = between - 1
        fake.apply { ops = { state.put("/kv/n", tostring(tonumber(fake.kvs["/kv/n"].value) + 10)) } }
      end
    end
    local answer = assert(state.update(function()
      local text, kv = state.text("/kv/n")
      return { compare = { state.unchanged(kv) }, ops = { state.put("/kv/n", tostring(text + 1)) } }, "done"
    end))
    assert.equal("done", answer)
    assert.equal("32", state.text("/kv/n"))
  end))

  it("is what was written when an update ends, also where another manager leads by now", fake.task(function()
    fake.make()
    local raft, late = package.loaded["sym.raft"], nil
    local submit, read = raft.submit, raft.read
    local _ <close> = setmetatable({}, { __close = function() raft.submit, raft.read = submit, read end })
    raft.submit = function(txn, _, cb) -- applied there, and not here yet
      late = txn
      cb(nil, { status = "applied", revision = fake.revision + 1 })
    end
    raft.read = function(ms, cb)
      if late then fake.apply(late) end
      late = nil
      read(ms, cb)
    end
    local function write() return { compare = {}, ops = { state.put("/other", "x") } }, "done" end
    assert.equal("done", (assert(state.update(write))))
    assert.equal("x", state.text("/other"))
    -- It is done, even if that cannot be seen here.
    raft.read = function(ms, cb)
      if late then return cb { code = "no_quorum", message = "nobody answers" } end
      read(ms, cb)
    end
    assert.equal("done", (assert(state.update(write))))
  end))

  it("goes on deciding anew for as long as it has time", fake.task(function()
    fake.make()
    fake.apply { ops = { state.put("/kv/n", "1") } }
    local function increment()
      local text, kv = state.text("/kv/n")
      return { compare = { state.unchanged(kv) }, ops = { state.put("/kv/n", tostring(text + 1)) } }, "done"
    end
    local between = 12
    fake.before_submit = function()
      between = between - 1
      if between >= 0 then fake.apply { ops = { state.put("/kv/n", "10") } } end
    end
    assert.equal("done", (assert(state.update(increment))))
    assert.equal("11", state.text("/kv/n"))

    between = math.huge
    local sys = require "sym.sys"
    local began = sys.mono_ms()
    local ok, err = state.update(increment, { timeout_ms = 100 })
    assert.is_nil(ok)
    assert.equal("conflict", err.code)
    assert.is_true(sys.mono_ms() - began < 1000)
  end))

  it("hands back what a decision raises, and lets a bug through", fake.task(function()
    fake.make()
    local ok, err = state.update(function() errors.raise("denied", "no") end)
    assert.is_nil(ok)
    assert.equal("denied", err.code)
    assert.has_error(function() state.update(function() error("a bug", 0) end) end, "a bug")
    assert.equal("nothing to do", state.update(function() return nil, "nothing to do" end))
  end))
end)
