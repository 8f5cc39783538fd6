local fake = require "spec.unit.fake"
local async = require "symphony.async"
local errors = require "symphony.errors"
local uv = require "luv"

-- Calls back from the loop.
local function later(...)
  local args = table.pack(...)
  local cb = args[args.n]
  local timer = uv.new_timer()
  timer:start(0, 0, function()
    timer:close()
    cb(table.unpack(args, 1, args.n - 1))
  end)
end

-- Never calls back; says when it was canceled.
local function never(log, cb)
  return {
    cancel = function()
      log.canceled = true
      cb(errors.new("canceled", "as asked"))
    end,
  }
end

describe("await", function()
  it("returns what follows the error, or nil and the error", function()
    fake.run(function()
      assert.same({ n = 2, 1, 2 }, table.pack(async.await(later, nil, 1, 2)))
      assert.same({ n = 2, nil, 5 }, table.pack(async.await(later, nil, nil, 5)))
      assert.is_true(async.await(later, nil))
      assert.is_true(async.await(later))
      local v, err = async.await(later, errors.new("busy", "b"))
      assert.is_nil(v)
      assert.equal("busy", err.code)
      v, err = async.await(later, "EPIPE: broken")
      assert.is_nil(v)
      assert.same({ "io", "EPIPE: broken" }, { err.code, err.message })
    end)
  end)

  it("takes callbacks that come at once, and only their first call", function()
    fake.run(function()
      local keep
      assert.equal("now", async.await(function(cb)
        cb(nil, "now")
        cb(nil, "again")
        keep = cb
      end))
      keep(nil, "stale")
      assert.equal("next", async.await(later, nil, "next"))
    end)
  end)

  it("ignores a late second callback", function()
    fake.run(function()
      local stale
      async.await(function(cb)
        stale = cb
        later(nil, cb)
      end)
      local timer = uv.new_timer()
      timer:start(0, 0, function()
        timer:close()
        stale(nil, "stale")
      end)
      async.sleep(5)
      assert.equal("fresh", async.await(later, nil, "fresh"))
    end)
  end)

  it("hands back a failure to start", function()
    fake.run(function()
      local v, err = async.await(function()
        return nil, errors.new("closed", "no")
      end)
      assert.is_nil(v)
      assert.equal("closed", err.code)
    end)
  end)

  it("is for tasks only", function()
    assert.has_error(function()
      async.await(later)
    end)
    fake.run(function()
      local ok, err = pcall(coroutine.wrap(function()
        async.sleep(1)
      end))
      assert.is_false(ok)
      assert.truthy(tostring(err):find("only a task may wait", 1, true))
    end)
  end)
end)

describe("tasks", function()
  it("run at once outside of tasks, and one after the other inside", function()
    local order = {}
    async.spawn(function()
      order[#order + 1] = "a"
      async.spawn(function()
        order[#order + 1] = "c"
      end)
      order[#order + 1] = "b"
    end)
    assert.same({ "a", "b", "c" }, order)
  end)

  it("give their results to who waits", function()
    fake.run(function()
      local task = async.spawn(function(x)
        async.sleep(1)
        return x, nil, "z"
      end, "y")
      assert.same({ n = 3, "y", nil, "z" }, table.pack(task:wait()))
      assert.same({ n = 3, "y", nil, "z" }, table.pack(task:wait()))
    end)
  end)

  it("give their error to who waits, else to the log", function()
    fake.run(function()
      local task = async.spawn(errors.raise, "busy", "b")
      local v, err = task:wait()
      assert.is_nil(v)
      assert.equal("busy", err.code)
    end)
    fake.logged = {}
    async.spawn(function()
      error("a bug")
    end)
    assert.equal(1, #fake.logged)
    assert.truthy(fake.logged[1]:find("async_spec", 1, true))
    assert.truthy(fake.logged[1]:find("traceback", 1, true))
  end)

  it("do not nest, however long the chain of wakings", function()
    fake.run(function()
      local events, last = {}, nil
      for i = 1, 2000 do
        events[i] = async.event()
      end
      for i = 1, 1999 do
        last = async.spawn(function()
          events[i]:wait()
          events[i + 1]:set()
        end)
      end
      events[1]:set()
      last:wait()
      assert.is_true(events[2000]:wait())
    end)
  end)

  it("know whether they run", function()
    assert.is_nil(async.current())
    fake.run(function()
      local me = async.current()
      async.sleep(0)
      assert.equal(me, async.current())
      coroutine.wrap(function()
        assert.is_nil(async.current())
      end)()
    end)
  end)
end)

describe("cancel", function()
  it("ends the wait, tells its handle and runs what is to be closed", function()
    local log = {}
    local task = async.spawn(function()
      local _ <close> = setmetatable({}, {
        __close = function()
          log.closed = true
        end,
      })
      async.await(never, log)
      log.went_on = true
    end)
    assert.is_nil(log.canceled)
    task:cancel()
    assert.same({ canceled = true, closed = true }, log)
    assert.is_true(task.done)
    task:cancel()
  end)

  it("cannot be kept off by pcall", function()
    local tries = 0
    local task = async.spawn(function()
      for _ = 1, 3 do
        local ok, err = pcall(async.sleep, 100000)
        assert.is_false(ok)
        assert.equal("canceled", err.code)
        tries = tries + 1
      end
    end)
    task:cancel()
    assert.equal(3, tries)
    assert.is_true(task.done)
    fake.loop() -- no timer is left
  end)

  it("reaches a task before it has begun, and one that waits for another", function()
    fake.run(function()
      local ran = false
      local task = async.spawn(function()
        ran = true
      end)
      task:cancel()
      local _, err = task:wait()
      assert.equal("canceled", err.code)
      assert.is_false(ran)
      local event = async.event()
      local inner = async.spawn(event.wait, event)
      local outer = async.spawn(function()
        inner:wait()
      end)
      async.sleep(0)
      outer:cancel()
      assert.equal("canceled", select(2, outer:wait()).code)
      event:set()
      assert.is_true(inner:wait())
    end)
  end)

  it("is not logged", function()
    fake.logged = {}
    async.spawn(async.sleep, 100000):cancel()
    assert.same({}, fake.logged)
  end)

  it("of itself counts from the next wait", function()
    fake.run(function()
      local task
      task = async.spawn(function()
        async.sleep(0)
        task:cancel()
        local ok = pcall(async.sleep, 0)
        return ok
      end)
      assert.is_false(task:wait())
    end)
  end)
end)

describe("events", function()
  it("wake all who wait", function()
    fake.run(function()
      local event, woken = async.event(), 0
      for _ = 1, 3 do
        async.spawn(function()
          event:wait()
          woken = woken + 1
        end)
      end
      async.sleep(1)
      event:set()
      async.sleep(1)
      assert.equal(3, woken)
    end)
  end)

  it("keep a set that nobody waited for, once", function()
    fake.run(function()
      local event = async.event()
      event:set()
      event:set()
      assert.is_true(event:wait(1000))
      local ok, err = event:wait(1)
      assert.is_nil(ok)
      assert.equal("timeout", err.code)
    end)
  end)

  it("lose nothing when a waiter has given up", function()
    fake.run(function()
      local event = async.event()
      event:wait(1)
      local task = async.spawn(function()
        event:wait()
      end)
      async.sleep(1)
      task:cancel()
      async.sleep(1)
      event:set()
      assert.is_true(event:wait(1000))
    end)
  end)

  it("may be set from outside of tasks", function()
    local event, woken = async.event(), false
    async.spawn(function()
      event:wait(100000)
      woken = true
    end)
    event:set()
    assert.is_true(woken)
    fake.loop() -- the timer of the wait is gone
  end)
end)

describe("with_timeout", function()
  it("returns the results of what is in time", function()
    fake.run(function()
      assert.same({ n = 3, 1, nil, 3 }, table.pack(async.with_timeout(100000, function(...)
        async.sleep(1)
        return ...
      end, 1, nil, 3)))
      assert.same({ 7 }, { async.with_timeout(nil, function()
        return 7
      end) })
      assert.same({ n = 2, nil, "e" }, table.pack(async.with_timeout(100000, function()
        return nil, "e"
      end)))
    end)
  end)

  it("cancels what is not", function()
    local log = {}
    fake.run(function()
      local v, err = async.with_timeout(2, function()
        async.await(never, log)
      end)
      assert.is_nil(v)
      assert.equal("timeout", err.code)
    end)
    assert.is_true(log.canceled)
  end)

  it("raises what was raised", function()
    fake.run(function()
      local ok, err = pcall(async.with_timeout, 100000, errors.raise, "denied", "no")
      assert.is_false(ok)
      assert.equal("denied", err.code)
    end)
  end)

  it("is canceled with its caller", function()
    local log = {}
    local task = async.spawn(function()
      async.with_timeout(100000, function()
        async.await(never, log)
      end)
    end)
    task:cancel()
    assert.is_true(log.canceled)
    fake.loop()
  end)
end)

describe("gather", function()
  it("waits for all and says how each ended", function()
    fake.logged = {}
    fake.run(function()
      local list = async.gather {
        function()
          async.sleep(2)
          return "slow", 2
        end,
        function()
          errors.raise("busy", "b")
        end,
        function()
          return nil, errors.new("io", "disk")
        end,
        function() end,
      }
      assert.same({ ok = true, results = { n = 2, "slow", 2 } }, list[1])
      assert.same({ false, "busy" }, { list[2].ok, list[2].err.code })
      assert.same({ false, "io" }, { list[3].ok, list[3].err.code })
      assert.is_true(list[4].ok)
      assert.same({}, async.gather {})
    end)
    assert.same({}, fake.logged)
  end)

  it("cancels all with its caller", function()
    local a, b = {}, {}
    local task = async.spawn(function()
      async.gather {
        function()
          async.await(never, a)
        end,
        function()
          async.await(never, b)
        end,
      }
    end)
    task:cancel()
    assert.is_true(a.canceled and b.canceled)
  end)
end)

describe("every", function()
  it("repeats without overlapping, logs errors, and stops", function()
    fake.logged = {}
    local runs, inside, most = 0, 0, 0
    fake.run(function()
      local event = async.event()
      local handle = async.every(1, function()
        inside = inside + 1
        most = math.max(most, inside)
        async.sleep(2)
        inside = inside - 1
        runs = runs + 1
        if runs == 2 then
          error("second")
        elseif runs == 4 then
          event:set()
        end
      end)
      assert.is_true(event:wait(10000))
      handle:stop()
      handle:stop()
    end)
    assert.equal(1, most)
    assert.equal(4, runs)
    assert.equal(1, #fake.logged)
    assert.truthy(fake.logged[1]:find("second", 1, true))
  end)

  it("stops in the middle", function()
    local log = {}
    fake.run(function()
      local event = async.event()
      local handle = async.every(0, function()
        event:set()
        async.await(never, log)
      end)
      event:wait()
      handle:stop()
    end)
    assert.is_true(log.canceled)
  end)
end)

describe("sleep", function()
  it("lets the loop look at everything else, also with 0", function()
    local arrived, rounds = false, 0
    fake.run(function()
      local message
      message = uv.new_async(function()
        arrived = true
        message:close()
      end)
      async.sleep(1) -- from a timer's callback on
      message:send()
      while not arrived and rounds < 1000 do
        async.sleep(0)
        rounds = rounds + 1
      end
    end)
    assert.is_true(rounds < 5, "it took " .. rounds)
  end)
end)

describe("mutex", function()
  it("lets in one after the other, in their order", function()
    local order, inside, most = {}, 0, 0
    fake.run(function()
      local mutex = async.mutex()
      local fns = {}
      for i = 1, 5 do
        fns[i] = function()
          local _ <close> = assert(mutex:lock())
          inside = inside + 1
          most = math.max(most, inside)
          async.sleep(1)
          inside = inside - 1
          order[#order + 1] = i
          return true
        end
      end
      for _, result in ipairs(async.gather(fns)) do
        assert.is_true(result.ok)
      end
    end)
    assert.equal(1, most)
    assert.same({ 1, 2, 3, 4, 5 }, order)
  end)

  it("goes on past those that were canceled, also when it had just come to one", function()
    fake.run(function()
      local mutex = async.mutex()
      local entered, tasks = {}, {}
      local lock = assert(mutex:lock())
      for i = 1, 4 do
        tasks[i] = async.spawn(function()
          local _ <close> = assert(mutex:lock())
          async.sleep(0)
          entered[#entered + 1] = i
        end)
      end
      async.sleep(0)
      tasks[1]:cancel()
      getmetatable(lock).__close()
      tasks[2]:cancel() -- it has the lock, and does not know yet
      assert.is_true((tasks[4]:wait()) == nil)
      assert.same({ 3, 4 }, entered)
      local _ <close> = assert(mutex:lock(0))
    end)
  end)

  it("lets thousands wait, and each in once", function()
    fake.run(function()
      local mutex, n = async.mutex(), 0
      local fns = {}
      for i = 1, 3000 do
        fns[i] = function()
          local _ <close> = assert(mutex:lock(60000))
          n = n + 1
          return true
        end
      end
      local lock = assert(mutex:lock())
      async.spawn(function()
        async.sleep(0)
        getmetatable(lock).__close()
      end)
      async.gather(fns)
      assert.equal(3000, n)
    end)
  end)

  it("is free again after an error, a cancellation and a wait in vain", function()
    fake.run(function()
      local mutex = async.mutex()
      local function hold(fn)
        return async.spawn(function()
          local _ <close> = assert(mutex:lock())
          fn()
        end)
      end
      assert.is_nil((hold(function()
        errors.raise("denied", "no")
      end):wait()))
      local log = {}
      local holder = hold(function()
        async.await(never, log)
      end)
      async.sleep(0)
      local waiter = hold(error)
      async.sleep(0)
      waiter:cancel()
      local lock, err = mutex:lock(5)
      assert.is_nil(lock)
      assert.equal("timeout", err.code)
      holder:cancel()
      local _ <close> = assert(mutex:lock(1000))
      assert.is_true(log.canceled)
    end)
  end)
end)
