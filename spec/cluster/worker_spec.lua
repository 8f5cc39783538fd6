-- Workers: joining, resuming, being removed, leaving; as processes, through the command line.
local cluster = require "spec.support.cluster"
local json = require "spec.support.json"
local proc = require "spec.support.proc"

describe("a worker", function()
  it("joins, is ready, resumes by itself, and moves to another manager", cluster.scenario(function(t)
    local m = t:cluster(3)
    local w = t:worker():start()
    local joined = w:json("block", "join", m[2]:remote(), "--token", t.tokens.worker, "--name", "store-1")
    assert.equal("store-1", joined.name)
    assert.equal("ready", joined.status)
    w.node_id = joined.node_id
    for _, manager in ipairs(m) do
      local row = t:wait_status({ w }, "ready", manager)[w.node_id]
      assert.equal("worker", row.role)
      assert.same({ "block" }, row.services)
      assert.equal(w:remote(), row.addresses.remote)
    end
    local status = w:json("block", "status")
    assert.equal(joined.node_id, status.node_id)
    assert.same({}, status.warnings)
    -- Its manager dies: it goes to another one, and stays ready.
    for _, manager in ipairs(m) do
      if manager:remote() == status.manager then manager:crash() end
    end
    local now = cluster.wait_for("another manager", 10, function()
      local s = w:json("block", "status")
      return s.manager and s.manager ~= status.manager and s, s
    end)
    assert.equal("ready", now.status)
    w:crash()
    w:start()
    cluster.wait_for("the stream after a restart", 10, function()
      local s = w:json("block", "status")
      return s.manager and s.status == "ready", s
    end)
    assert.equal(w.node_id, w:json("block", "status").node_id)
  end))

  it("is refused with the token of a manager, on a manager's daemon, and twice", cluster.scenario(function(t)
    local m = t:cluster(1)
    local w = t:worker():start()
    local err = w:fails("block", "join", m[1]:remote(), "--token", t.tokens.manager)
    assert.equal("denied", err.code)
    assert.truthy(err.message:find("for the role manager, not for worker", 1, true), err.message)
    assert.truthy(err.hint:find("--role worker", 1, true), err.hint)
    err = w:fails("manager", "join", m[1]:remote(), "--token", t.tokens.manager)
    assert.equal("conflict", err.code)
    assert.truthy(err.hint:find("symphony block join", 1, true), err.hint)
    local other = t:manager():start()
    err = other:fails("block", "join", m[1]:remote(), "--token", t.tokens.worker)
    assert.equal("conflict", err.code)
    assert.truthy(err.hint:find("symphony manager join", 1, true), err.hint)
    err = other:fails("manager", "join", m[1]:remote(), "--token", t.tokens.worker)
    assert.equal("denied", err.code)
    w:json("block", "join", m[1]:remote(), "--token", t.tokens.worker)
    err = w:fails("block", "join", m[1]:remote(), "--token", t.tokens.worker)
    assert.equal("exists", err.code)
    -- What only a manager can say, a worker says so.
    for _, words in ipairs { { "kv", "get", "a" }, { "node", "ls" }, { "manager", "members" }, { "token", "ls" },
      { "cert", "issue", "anna", "--role", "reader", "--out", t.root .. "/anna" },
      { "cluster", "backup", t.root .. "/backup" } } do
      err = w:fails(table.unpack(words))
      assert.equal("conflict", err.code)
      assert.truthy((err.message .. (err.hint or "")):find("manager", 1, true), json.encode(err))
    end
    assert.is_nil(proc.read_file(t.root .. "/backup"))
    assert.equal(0, proc.run({ "sh", "-c", 'test ! -e "$0"', t.root .. "/anna" }).code, "a folder is left behind")
  end))

  it("that was removed is cut off, and joins again after it has left", cluster.scenario(function(t)
    local m = t:cluster(1)
    local w = t:join_workers(2, m[1])
    m[1]:json("node", "rm", "--force", w[1].node_id)
    local s = cluster.wait_for("the worker to know", 10, function()
      local s = w[1]:json("block", "status")
      return s.state == "removed" and s, s
    end)
    assert.truthy(s.hint:find("block leave", 1, true), s.hint)
    assert.is_nil(t:nodes(m[1])[w[1].node_id])
    w[1]:json("block", "leave")
    local again = w[1]:json("block", "join", m[1]:remote(), "--token", t.tokens.worker)
    assert.are_not.equal(w[1].node_id, again.node_id)
    -- And one that leaves by itself is no node any more.
    local left = w[2]:json("block", "leave")
    assert.is_true(left.told)
    assert.is_nil(t:nodes(m[1])[w[2].node_id])
    local log = w[2]:log()
    assert.truthy(log:find("this is " .. w[2].name .. " (" .. w[2].node_id .. ") of cluster " .. left.cluster_id, 1,
      true), log)
    assert.truthy(log:find(w[2].name .. " has left cluster " .. left.cluster_id, 1, true), log)
    assert.falsy(log:find("error ", 1, true), log)
  end))

  it("does not start from a folder that was copied, nor as another role", cluster.scenario(function(t)
    local m = t:cluster(1)
    local w = t:join_workers(1, m[1])[1]
    assert.equal(0, (w:stop()))
    local copy = t:worker()
    assert(proc.run({ "cp", "-a", w.dir, copy.dir }).code == 0)
    copy.process = proc.spawn(copy:command(), { log = copy.log_path })
    assert.equal(1, (copy.process:wait(10)))
    assert.truthy(copy:log():find("copied from another machine", 1, true), copy:log())
    local role = t:manager { dir = w.dir }
    role.process = proc.spawn(role:command(), { log = role.log_path })
    assert.equal(1, (role.process:wait(10)))
    assert.truthy(role:log():find("is the folder of a worker", 1, true), role:log())
    w:start()
    t:wait_status({ w }, "ready", m[1])
  end))

  it("has its certificate renewed when another CA signs, and serves on", cluster.scenario(function(t)
    local m = t:cluster(1)
    local w = t:join_workers(1, m[1])[1]
    assert.is_true(m[1]:json("cluster", "rotate-ca", "--yes").started)
    cluster.wait_for("the new CA", 30, function()
      assert.is_true(w:is_running(), w:log())
      local s = m[1]:json("cluster", "rotate-ca", "--status")
      return s.phase == "idle" and s.generation == 4, s
    end)
    t:wait_status({ w }, "ready", m[1])
  end))

  it("ends in order while it waits to be let in, and leaves by force without a manager", cluster.scenario(function(t)
    local m = t:cluster(1)
    local w = t:worker():start()
    local asking = proc.spawn({ cluster.symphony, "--socket", w.socket, "block", "join", m[1]:remote() },
      { log = w.dir .. ".join" })
    cluster.wait_for("the request", 10, function() return #m[1]:json("node", "pending") == 1 end)
    local code, seconds = w:stop()
    assert.equal(0, code)
    assert.is_true(seconds < 5)
    assert.is_not.equal(0, (asking:wait(10)))
    w:start()
    assert.equal("no_cluster", w:json("block", "status").state)
    local joined = w:json("block", "join", m[1]:remote(), "--token", t.tokens.worker)
    assert.equal("ready", joined.status)
    m[1]:stop()
    local err = w:fails("block", "leave")
    assert.truthy(err.hint:find("block leave --force", 1, true), err.hint)
    assert.equal(joined.node_id, w:json("block", "status").node_id)
    assert.is_false(w:json("block", "leave", "--force").told)
    assert.equal("no_cluster", w:fails("block", "leave").code)
    m[1]:start()
    cluster.wait_for("the manager", 10, function() return m[1]:cli("node", "ls").code == 0 end)
    local again = w:json("block", "join", m[1]:remote(), "--token", t.tokens.worker)
    assert.are_not.equal(joined.node_id, again.node_id)
    assert.equal("ready", again.status)
  end))
end)
