-- contrib/services/process/program.lua: what is kept of a program on the disk.
package.path = "contrib/?.lua;" .. package.path
local fake = require "spec.unit.cluster_fake"
local async = require "symphony.async"
local files = require "spec.support.files"
local json = require "symphony.json"
local program = require "services.process.program"
local sys = require "sym.sys"
local uv = require "luv"

sys.pid = sys.pid or uv.os_getpid

local CTX = { node = { name = "n", node_id = "1" } }

-- fn(dir): with a folder of its own, in a task.
local function scenario(fn)
  return function()
    local dir = assert(uv.fs_mkdtemp("/tmp/process-program-XXXXXX"))
    local ok, err = pcall(fake.run, function() fn(dir) end)
    for _, name in ipairs { "record.json", "record.json.new", "log" } do uv.fs_unlink(dir .. "/" .. name) end
    uv.fs_rmdir(dir)
    if not ok then error(err, 0) end
  end
end

local function spec(more)
  local s = { command = { "/bin/sleep", "300" }, restart = "always", ready_s = 0, grace_s = 5 }
  for k, v in pairs(more or {}) do s[k] = v end
  return s
end

describe("a program", function()
  it("is started, ended at once when it is told to, and remembered", scenario(function(dir)
    local p = program.make("web", "u1", dir, function() end)
    p:become { generation = 3, spec = spec { grace_s = 240 } }
    p:begin(CTX)
    assert.is_true(p:is_alive())
    local status, pid = p:status(), p.pid
    assert.same({ "running", 0 }, { status.state, status.detail.restarts })
    local record = json.decode(files.read(dir .. "/record.json"))
    assert.same({ "u1", 3, pid, p.start }, { record.uid, record.generation, record.pid, record.start })
    assert.equal(true, (program.found(dir)))
    -- The next daemon takes it over, by its mark when nobody has written down the pid; not when it had ended.
    assert.equal(pid, program.load("web", dir, function() end).pid)
    record.pid, record.start = nil, nil
    local function write(doc) files.write(dir .. "/record.json", json.encode(doc)) end
    write(record)
    assert.equal(pid, program.load("web", dir, function() end).pid)
    record.ended = true
    write(record)
    local other = program.load("web", dir, function() end)
    assert.same({ true }, { other.due, other.pid })
    p:stop() -- told of its end, not by a clock that would have to run out
    assert.is_false(p:is_alive())
    assert.same({ "stopped", "killed by signal 15" }, { p.state, p.last_end })
  end))

  it("is not started when that cannot be written down, and what was stays written", scenario(function(dir)
    local p = program.make("web", "u1", dir, function() end)
    p:become { generation = 1, spec = spec() }
    p:begin(CTX)
    p:stop()
    local before = files.read(dir .. "/record.json")
    assert(uv.fs_symlink("/dev/full", dir .. "/record.json.new"))
    p:begin(CTX)
    p:stop() -- without the timer of the next try
    assert.is_nil(p.pid)
    assert.truthy(p.error:find("No space left", 1, true), p.error)
    assert.equal("u1", json.decode(before).uid)
    assert.equal("u1", json.decode(files.read(dir .. "/record.json")).uid)
  end))

  it("waits longer after each end, and not without end", scenario(function(dir)
    local p = program.make("web", "u1", dir, function() end)
    p:become { generation = 1, spec = spec() }
    local longest, sleep = 0, async.sleep
    function async.sleep(ms) -- of the timer; it ends when the next end takes it away
      longest = math.max(longest, ms)
      async.event():wait()
    end
    for i = 1, 1000 do
      p.began = fake.now
      p:on_end("exit status 1", 1)
      assert.equal(i, p.restarts)
      sleep(0)
    end
    async.sleep = sleep
    assert.equal("failed", p.state)
    assert.is_true(longest > 20000 and longest <= 37500, longest)
    p:stop()
  end))
end)
