-- Crashes, stops, restarts, lost quorum: what was acknowledged stays, and nothing hangs.
local uv = require "luv"
local cluster = require "spec.support.cluster"
local http = require "spec.support.http"
local json = require "spec.support.json"
local load = require "spec.support.load"
local proc = require "spec.support.proc"

local ROUNDS = 20

local function wait_all_up(t, m)
  cluster.wait_for("all members to be reachable", 20, function()
    local rows = m:json("manager", "members")
    local up = 0
    for _, row in ipairs(rows) do up = up + (row.reachable and 1 or 0) end
    return up == #t.managers, rows
  end)
end

local function wait_same(t, prefix)
  local want = load.keys(t.managers[1], prefix)
  for _, m in ipairs(t.managers) do assert.same(want, load.keys(m, prefix), m.label .. " differs") end
end

describe("a cluster of three", function()
  it(("loses nothing when its leader is killed under load, %d times"):format(ROUNDS), cluster.scenario(function(t)
    t:cluster(3)
    local writers = load.start(t.managers, 8)
    writers:wait_progress(10)
    local slowest = 0
    for _ = 1, ROUNDS do
      local leader = t:leader()
      leader:crash()
      slowest = math.max(slowest, writers:wait_progress(10 * cluster.patience))
      leader:start()
      wait_all_up(t, leader)
    end
    writers:stop()
    for _, m in ipairs(t.managers) do writers:check(m) end
    wait_same(t, "load/")
    print(("kill -9 of the leader: %d writes acknowledged, longest pause %.2f s"):format(writers.count, slowest))
  end))

  it("goes on without a stopped leader, which then shows nothing old", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    leader:json("kv", "put", "a", "old")
    local writers = load.start(others, 4)
    writers:wait_progress(10)
    leader:kill("sigstop")
    leader.paused = true
    writers:wait_progress(10 * cluster.patience)
    -- Asked while it is stopped, answered when it goes on: with the new value, or an error, never with the old one.
    local conn, over, answer = http.connect(leader.socket), false, nil
    conn:request("GET", "/v1/kv/a", nil, { timeout = 20 * cluster.patience }, function(_, got)
      over, answer = true, got
    end)
    others[1]:json("kv", "put", "a", "new")
    leader:kill("sigcont")
    leader.paused = nil
    assert.truthy(proc.pump(20 * cluster.patience, function() return over end))
    conn:close()
    assert.truthy(answer, "no answer from the manager that was stopped")
    assert.falsy(answer.body:find('"old"', 1, true), answer.body)
    cluster.wait_for("the stopped one to follow", 10, function()
      local got = leader:cli("--json", "kv", "get", "a")
      return got.code == 0 and got.json.value == "new" and not got.json.stale, got.out .. got.err
    end)
    writers:stop()
    for _, m in ipairs(t.managers) do writers:check(m) end
  end))

  it("goes on while a follower is stopped", cluster.scenario(function(t)
    local m = t:cluster(3)
    local leader, others = t:leader()
    others[1]:kill("sigstop")
    others[1].paused = true
    local writers = load.start({ leader, others[2] }, 4)
    writers:wait_progress(10)
    proc.run_for(1)
    writers:wait_progress(10)
    others[1]:kill("sigcont")
    others[1].paused = nil
    writers:stop()
    for _, each in ipairs(m) do writers:check(each) end
  end))

  it("comes back from kill -9 of all three, with its revision", cluster.scenario(function(t)
    t:cluster(3)
    local writers = load.start(t.managers, 8)
    writers:wait_progress(10)
    for _, m in ipairs(t.managers) do m:kill("sigkill") end
    for _, m in ipairs(t.managers) do assert(m.process:wait(10)) end
    writers.stopping = true
    for _, m in ipairs(t.managers) do m:start() end
    proc.pump(20, function() return writers.active == 0 end)
    for _, m in ipairs(t.managers) do writers:check(m) end
    local put = t.managers[1]:json("kv", "put", "after", "1")
    assert.is_true(put.revision > writers.revision)
    wait_same(t, "load/")
  end))

  it("shows, restarted alone, no older state than it served", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    for i = 1, 20 do leader:json("kv", "put", "a", tostring(i)) end
    local seen = others[1]:json("kv", "get", "a")
    assert.equal("20", seen.value)
    for _, m in ipairs(t.managers) do m:crash() end
    others[1]:start()
    local alone = others[1]:json("kv", "get", "a")
    assert.is_true(alone.stale)
    assert.equal("20", alone.value)
    assert.equal(seen.mod_revision, alone.mod_revision)
  end))

  -- As after a power cut: the boot id that the mark names is that of another boot.
  local function lose_state(m)
    local mark = assert(io.open(m.dir .. "/state/mark", "r+"))
    mark:write("in use, boot 00000000-0000-0000-0000-000000000000")
    mark:close()
  end

  -- The state is discarded then, and what is left of it is the last snapshot, until the log is gone through again.
  it("shows, restarted alone after its machine went down, no older state either", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    local alone = others[1]
    leader:json("kv", "put", "a", "old")
    alone:json("lua", "-e", "require('sym.raft').snapshot()")
    cluster.wait_for("a snapshot", 10, function() return alone:json("manager", "status").snapshot_index > 0 end)
    leader:json("kv", "put", "a", "new")
    assert.equal("new", alone:json("kv", "get", "a").value)
    for _, m in ipairs(t.managers) do m:crash() end
    lose_state(alone)
    alone:start()
    local failed, result = alone:fails("kv", "get", "a")
    assert.equal("state_unknown", failed.code, result.out)
    assert.equal("state_unknown", alone:fails("kv", "ls").code)
    local answer = assert(alone:http("GET", "/v1/kv/a?stale=ok"))
    assert.equal(503, answer.status, answer.body)
    assert.equal("state_unknown", answer.json.error.code)
    local members = alone:json("manager", "members")
    assert.is_true(members[1] == nil or members[1].stale)
    local status = alone:json("manager", "status")
    assert.is_true(status.behind and status.last_index > status.applied_index)
    -- With a quorum the log is gone through again.
    leader:start()
    cluster.wait_for("the newest value", 20, function()
      local got = alone:cli("--json", "kv", "get", "a")
      return got.code == 0 and not got.json.stale and got.json.value == "new", got.out .. got.err
    end)
    assert.is_nil(alone:json("manager", "status").behind)
  end))

  it("recovers with one whose machine went down, from its log alone", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    local alone = others[1]
    for i = 1, 5 do leader:json("kv", "put", "a", tostring(i)) end
    assert.equal("5", alone:json("kv", "get", "a").value)
    for _, m in ipairs(t.managers) do m:crash() end
    lose_state(alone)
    alone:start()
    assert.equal("state_unknown", alone:fails("kv", "get", "a").code)
    local members = alone:json("manager", "members")
    assert.equal(3, #members)
    for _, m in ipairs(members) do assert.is_nil(m.leaving) end
    alone:json("manager", "recover", "--yes")
    assert.equal("5", alone:json("kv", "get", "a").value)
    assert.equal(1, #alone:json("manager", "members"))
  end))

  it("recovers, and takes nobody for a new member whom the lost ones had let in", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    local alone = others[1]
    alone:crash()
    local ghost = t:manager():start()
    ghost:json("manager", "join", leader:remote(), "--token", t.tokens.manager)
    local id = ghost:json("manager", "status").raft_node_id
    leader:crash()
    others[2]:crash()
    alone:start()
    alone:json("manager", "recover", "--yes")
    cluster.wait_for("it to know that it is out", 20, function()
      local s = ghost:json("manager", "status").state
      return s == "removed", s
    end)
    local new = t:manager():start()
    local joined = new:json("manager", "join", alone:remote(), "--token",
      alone:json("token", "create", "--role", "manager").token)
    assert.is_true(joined.raft_node_id > id, joined.raft_node_id)
  end))

  it("is behind only in what was committed", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    leader:json("kv", "put", "a", "1")
    local before = leader:json("manager", "status").last_index
    -- These reach the leader's log alone. It stops the others itself, since it takes no more once it misses them.
    local put = proc.begin { cluster.symphony, "--socket", leader.socket, "lua", "-e", ([[
      for _, pid in ipairs { %d, %d } do require("luv").kill(pid, "sigstop") end
      local puts = {}
      for i = 1, 6 do puts[i] = function() kv.put("lost" .. i, ("x"):rep(99999)) end end
      gather(puts)]]):format(others[1].process.pid, others[2].process.pid) }
    cluster.wait_for("entries in the leader's log", 5, function()
      return leader:json("lua", "-e", "return require('sym.raft').status().last_index") > before
    end)
    leader:crash()
    for _, m in ipairs(others) do m:crash() end
    cluster.wait_for("the end of the puts", 10, put.ended)
    for _, m in ipairs(others) do m:start() end
    cluster.wait_for("a leader of the others", 15, function() return others[1]:json("manager", "status").quorum end)
    lose_state(leader)
    leader:start()
    cluster.wait_for("nothing to be behind in", 15, function()
      local s = leader:json("manager", "status")
      return s.quorum and not s.behind and #s.warnings == 0, json.encode(s)
    end)
  end))

  it("brings back by a snapshot who was away for longer than the log reaches", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    local away = others[1]
    away:crash()
    -- 56 MiB: more than a snapshot's threshold and what trails it.
    local value = ("x"):rep(900 << 10)
    for i = 1, 64 do
      local key = ("/v1/kv/big/%02d"):format(i)
      local answer = assert(leader:http("PUT", key, value .. i, { timeout = 20 * cluster.patience }))
      assert.equal(200, answer.status, answer.body)
    end
    local function snapshots(m)
      local found = 0
      local folder = assert(uv.fs_scandir(m.dir .. "/raft"))
      for name in uv.fs_scandir_next, folder do
        if name:find("^snapshot%-") then found = found + 1 end
      end
      return found
    end
    cluster.wait_for("a snapshot of the leader", 30, function() return snapshots(leader) > 0 end)
    away:start()
    cluster.wait_for("the one that was away to have caught up", 30, function()
      local answer = away:http("GET", "/v1/kv/big/64?stale=ok")
      return answer and answer.status == 200 and answer.json.value == value .. 64, answer and answer.status
    end)
    assert.is_true(snapshots(away) > 0, "it caught up, but not by a snapshot")
    away:json("kv", "put", "small", "1")
    local rows = load.keys(away, "big/")
    for i = 1, 64 do assert.equal(#value + #tostring(i), #rows[("big/%02d"):format(i)]) end
  end))

  it("answers without a quorum, says so, and recovers by itself", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    leader:json("kv", "put", "a", "0")
    -- Who is left has followed, and then has led. From the first moment on, not only after it has noticed.
    for round, alone in ipairs { others[1], leader } do
      assert.equal(tostring(round - 1), alone:json("kv", "get", "a").value)
      if alone == leader then leader:json("manager", "transfer", tostring(leader:member().raft_node_id)) end
      for _, m in ipairs(t.managers) do
        if m ~= alone then m:crash() end
      end
      local function stale(row)
        assert.is_true(row.stale)
        assert.truthy(type(row.reason) == "string" and #row.reason > 5, row.reason)
      end
      local members = alone:cli("--json", "manager", "members")
      assert.equal(0, members.code, members.err)
      assert.is_true(members.seconds < 2 * cluster.patience, ("members took %.1f s"):format(members.seconds))
      assert.equal(3, #members.json)
      for _, row in ipairs(members.json) do stale(row) end
      local get = alone:cli("--json", "kv", "get", "a")
      assert.equal(0, get.code, get.err)
      assert.is_true(get.seconds < 2 * cluster.patience, ("kv get took %.1f s"):format(get.seconds))
      stale(get.json)
      assert.equal(tostring(round - 1), get.json.value)
      local put = alone:cli("--json", "kv", "put", "lost", "2")
      assert.equal(5, put.code, put.out .. put.err)
      assert.is_true(put.seconds < 5 * cluster.patience, ("kv put took %.1f s"):format(put.seconds))
      assert.truthy(put.error and put.error.code and put.error.hint:find("manager recover", 1, true), put.err)
      for _, code in ipairs { "kv.get('a')", "kv.put('lost', 2)" } do
        local prompt = alone:cli("lua", "-e", code)
        assert.equal(5, prompt.code, prompt.out .. prompt.err)
      end
      for _, row in ipairs(alone:json("kv", "ls")) do stale(row) end
      local plain = alone:cli("kv", "get", "a")
      assert.truthy((plain.out .. plain.err):find("quorum"), plain.out .. plain.err)
      local missing = alone:fails("kv", "get", "none")
      assert.equal("not_found", missing.code, missing.message)
      assert.is_true(missing.stale)
      local failed, watch = alone:fails("kv", "watch", "w/")
      assert.equal("no_quorum", failed.code, failed.message)
      assert.equal(5, watch.code)
      assert.truthy(failed.hint:find("--wait", 1, true), failed.hint)
      assert.is_true(watch.seconds < 5 * cluster.patience, ("kv watch took %.1f s"):format(watch.seconds))
      local waiting = proc.begin { cluster.symphony, "--socket", alone.socket, "--json", "kv", "watch", "w/", "--wait" }
      local note = cluster.wait_for("the watch to say that it waits", 5, function()
        return json.decode(waiting.out:match("^[^\n]+\n") or ""), waiting.out .. waiting.err
      end)
      assert.equal("stale", note.type)
      assert.truthy(#note.reason > 5 and math.type(note.revision) == "integer", waiting.out)
      t.managers[alone == t.managers[1] and 2 or 1]:start()
      cluster.wait_for("the same commands to work", 20, function()
        local late = alone:cli("kv", "put", "a", tostring(round))
        return late.code == 0, late.err
      end)
      get = alone:json("kv", "get", "a")
      assert.equal(tostring(round), get.value)
      assert.is_nil(get.stale)
      assert.is_nil(alone:fails("kv", "get", "none").stale)
      alone:json("kv", "put", "w/a", "1")
      cluster.wait_for("the watch to go on", 10, function()
        return waiting.out:find('"w/a"', 1, true), waiting.out .. waiting.err
      end)
      waiting.process:kill("sigint")
      assert.truthy(proc.pump(10, waiting.ended))
      for _, row in ipairs(alone:json("manager", "members")) do assert.is_nil(row.stale) end
      for _, m in ipairs(t.managers) do
        if not m:is_running() then m:start() end
      end
      wait_all_up(t, alone)
    end
  end))

  it("hands its leadership over on SIGTERM and exits 0", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    local writers = load.start(others, 4)
    writers:wait_progress(10)
    local code, seconds = leader:stop()
    assert.equal(0, code, leader:log_tail(20))
    assert.is_true(seconds < 5 * cluster.patience, ("it took %.1f s"):format(seconds))
    writers:wait_progress(5 * cluster.patience)
    writers:stop()
    for _, m in ipairs(others) do writers:check(m) end
    assert.equal(0, others[1]:stop())
    leader:start()
    others[1]:start()
    wait_all_up(t, leader)
  end))
end)

describe("a single manager", function()
  it("keeps what it acknowledged through kill -9 under load", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local writers = load.start({ m }, 8)
    for _ = 1, 5 do
      writers:wait_progress(10)
      m:crash()
      m:start()
      cluster.wait_for("it to serve again", 10, function()
        local got = m:http("PUT", "/v1/kv/probe", "1")
        return got and got.status == 200, got and got.body
      end)
    end
    writers:stop()
    writers:check(m)
  end))

  it("ends in order however often SIGTERM is said", cluster.scenario(function(t)
    local m = t:manager():start()
    m:json("manager", "init")
    for round = 1, 8 do
      local process = m.process
      while not process.code do
        process:kill("sigterm")
        uv.run("nowait")
      end
      assert.same({ 0, 0 }, { process.code, process.signal }, "round " .. round .. "\n" .. m:log_tail(5))
      m:start()
    end
  end))

  it("resumes by itself after SIGTERM", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    m:json("kv", "put", "a", "1")
    assert.equal(0, m:stop())
    assert.is_nil(uv.fs_stat(m.socket), "the socket's file is still there")
    m:start()
    cluster.wait_for("the value", 10, function()
      local got = m:cli("--json", "kv", "get", "a")
      return got.code == 0 and got.json.value == "1" and not got.json.stale, got.err
    end)
  end))
end)
