-- Services of the operator's own: resources, placement, reconciliation; and contrib/services/process.lua as people use
-- it.
local clients = require "spec.support.clients"
local cluster = require "spec.support.cluster"
local json = require "spec.support.json"
local proc = require "spec.support.proc"
local uv = require "luv"

local CONTRIB = uv.fs_realpath "contrib"

-- A --lua-dir with @files, {[path] = text}.
local function lua_dir(t, name, files)
  local dir = t:folder(name or "own")
  for _, sub in ipairs { "commands", "services" } do assert(uv.fs_mkdir(dir .. "/" .. sub, 448)) end
  for path, text in pairs(files) do proc.write_file(dir .. "/" .. path, text) end
  return dir
end

-- A cluster of one manager and @n workers that have the service process.
local function make(t, n)
  local dir = CONTRIB
  local m = t:cluster(1, { flags = { "--lua-dir", dir } })[1]
  local w = t:join_workers(n, m, { flags = { "--lua-dir", dir } })
  t:wait_status(w, "ready", m)
  return m, w, dir
end

-- A program that writes its pid and then lives; a script of its own, so that its path tells it from others.
local function program(t, name, text)
  local path = ("%s/%s.sh"):format(t.root, name)
  proc.write_file(path, "#!/bin/sh\n" .. text)
  assert(uv.fs_chmod(path, 448))
  return path
end

local LIVES = 'echo "pid $$ is up: $1"\ntrap "echo bye; exit 0" TERM\nwhile :; do sleep 0.1; done\n'

local function inspect(m, name)
  return m:json("process", "inspect", name)[1]
end

local function wait_row(m, name, what, check)
  return cluster.wait_for(("%s of %s"):format(what, name), 20, function()
    local row = inspect(m, name)
    return check(row) and row, json.encode(row)
  end)
end

local function is_alive(pid)
  local stat = io.open(("/proc/%d/stat"):format(pid), "r")
  if not stat then return false end
  local text = stat:read("a")
  stat:close()
  return text:match("^.*%) (%S)") ~= "Z"
end

-- Whether a process with our path in its command line and a service's mark in its environment is ours to end.
local function is_program(pid, root)
  local function read(name)
    local f = io.open(("/proc/%s/%s"):format(pid, name))
    local text = f and f:read("a") or ""
    if f then f:close() end
    return text
  end
  return read("cmdline"):find(root .. "/", 1, true) and ("\0" .. read "environ"):find("\0SYMPHONY_PROCESS=", 1, true)
end

-- As cluster.scenario; what the daemons have started outlives them, and is ended behind them.
local function scenario(body)
  return function()
    local root
    local run = cluster.scenario(function(t)
      root = t.root
      body(t)
    end)
    local ok, err = pcall(run)
    local scan = root and assert(uv.fs_scandir("/proc"))
    for name in uv.fs_scandir_next, scan do
      if name:find("^%d+$") and is_program(name, root) then uv.kill(tonumber(name), "sigkill") end
    end
    if not ok then error(err, 0) end
  end
end

local function on(row, worker)
  for _, n in ipairs(row.nodes) do
    if n.node_id == worker.node_id then return n end
  end
end

local function all_running(n)
  return function(row) return row.running == n and #row.nodes == n end
end

describe("the service process", function()
  it("runs a program, restarts it, shows its log, and ends it", scenario(function(t)
    local m, w = make(t, 2)
    local path = program(t, "lives", LIVES)
    local row = m:json("process", "run", "web", "--replicas", "2", "--ready", "0", "--wait", "--", path, "one")
    assert.equal(2, row.running)
    assert.same({ path, "one" }, row.spec.command)
    local first = on(row, w[1]).detail.pid
    assert.is_true(is_alive(first))
    -- kill -9: it is there again; a service that was loaded anew has not forgotten it.
    assert.equal(0, #w[1]:json("reload").failed)
    assert(uv.kill(first, "sigkill"))
    row = wait_row(m, "web", "a restart", function(r)
      return all_running(2)(r) and on(r, w[1]).detail.pid ~= first
    end)
    assert.equal(1, on(row, w[1]).detail.restarts)
    assert.equal("killed by signal 9", on(row, w[1]).detail.last_end)
    local second = on(row, w[1]).detail.pid
    local text = m:cli("process", "logs", "web").out
    for _, n in ipairs(row.nodes) do
      assert.truthy(text:find(("%s | pid %d is up: one\n"):format(n.name, n.detail.pid), 1, true), text)
    end
    local line = json.decode(m:cli("--json", "process", "logs", "web", "--node", w[1].name, "--lines", "1").out)
    assert.same({ node = w[1].name, text = ("pid %d is up: one\n"):format(second) }, line)
    text = w[1]:cli("process", "logs", "web", "--lines", "1").out
    assert.equal(("pid %d is up: one\n"):format(second), text)
    assert.truthy(m:cli("process", "ls").out:find("web +2/2 running +1 "))
    assert.equal("", m:cli("process", "ls").err)
    -- The environment is added to.
    local env = m:json("process", "update", "web", "--env", "A=1", "--env", "B=2", "--wait").spec.env
    assert.same({ A = "1", B = "2" }, env)
    env = m:json("process", "update", "web", "--env", "C=3", "--env-rm", "A", "--wait").spec.env
    assert.same({ B = "2", C = "3" }, env)
    row = m:json("process", "update", "web", "--env-rm", "B", "--env-rm", "C", "--wait")
    assert.is_nil(row.spec.env)
    assert.equal(4, row.generation)
    m:json("process", "rm", "web")
    cluster.wait_for("the programs to end", 10, function()
      for _, n in ipairs(row.nodes) do
        if is_alive(n.detail.pid) then return false, n.detail.pid end
      end
      return true
    end)
    assert.equal("not_found", m:fails("process", "inspect", "web").code)
  end))

  it("goes on while the worker's daemon is gone, and is taken over by the next", scenario(function(t)
    local m, w, dir = make(t, 1)
    local path = program(t, "lives", LIVES)
    local row = m:json("process", "run", "web", "--ready", "0", "--wait", "--", path, "one")
    local pid = row.nodes[1].detail.pid
    local function taken_over(how)
      w[1]:start("--lua-dir", dir)
      t:wait_status(w, "ready", m)
      cluster.wait_for("the log to say so", 10, function()
        return w[1]:log():find(("taken over as pid %d"):format(pid), 1, true)
      end)
      row = inspect(m, "web")
      assert.same({ pid, 0, "running" }, { row.nodes[1].detail.pid, row.nodes[1].detail.restarts, row.nodes[1].state },
        how)
      proc.write_file(w[1].log_path, "")
    end
    w[1]:crash()
    assert.is_true(is_alive(pid))
    taken_over("kill -9")
    assert.equal(0, w[1]:stop())
    assert.is_true(is_alive(pid))
    taken_over("SIGTERM")
    -- It died before it had written down which pid it is.
    w[1]:crash()
    local file = w[1].dir .. "/services/process/web/record.json"
    local record = json.decode(proc.read_file(file))
    assert.equal(pid, record.pid)
    record.pid, record.start = nil, nil
    proc.write_file(file, json.encode(record))
    taken_over("no pid")
    -- One that was taken over is restarted when it ends, as any other.
    assert(uv.kill(pid, "sigkill"))
    row = wait_row(m, "web", "a restart", function(r) return r.running == 1 and r.nodes[1].detail.pid ~= pid end)
    -- It ended while nobody looked.
    pid = row.nodes[1].detail.pid
    w[1]:crash()
    assert(uv.kill(pid, "sigkill"))
    cluster.wait_for("its end", 5, function() return not is_alive(pid) end)
    -- And its pid is somebody else's now, who is not ours to touch.
    local other = proc.begin { "sleep", "300" }
    record = json.decode(proc.read_file(file))
    record.pid = other.process.pid
    proc.write_file(file, json.encode(record))
    w[1]:start("--lua-dir", dir)
    row = wait_row(m, "web", "a new start", function(r)
      return r.running == 1 and r.nodes[1].detail.pid ~= pid and r.nodes[1].detail.pid ~= other.process.pid
    end)
    -- Nothing that the daemon has open is open in the program.
    local function opened(whose)
      local out = {}
      for name in proc.run({ "ls", ("/proc/%d/fd"):format(whose) }).out:gmatch("%d+") do
        out[#out + 1] = uv.fs_readlink(("/proc/%d/fd/%s"):format(whose, name))
      end
      return out
    end
    local ours = { ["/dev/null"] = true, [path] = true }
    for _, target in ipairs(opened(uv.os_getpid())) do ours[target] = true end -- what the daemon was given itself
    for _, target in ipairs(opened(row.nodes[1].detail.pid)) do
      assert.truthy(ours[target] or target:find("/services/process/web/log", 1, true), target)
    end
    m:json("process", "rm", "web")
    cluster.wait_for("its end", 10, function() return not is_alive(row.nodes[1].detail.pid) end)
    assert.is_true(is_alive(other.process.pid))
    other.process:kill("sigkill")
  end))

  it("ends what it has left behind, also what ignores SIGTERM", scenario(function(t)
    local m = make(t, 1)
    local pids = t.root .. "/pids"
    local path = program(t, "stubborn", ([[
trap "" TERM
setsid sh -c 'trap "" TERM; echo $$ >>%s; while :; do sleep 0.1; done' &
sh -c 'trap "" TERM; echo $$ >>%s; while :; do sleep 0.1; done' &
echo $$ >>%s
while :; do sleep 0.1; done
]]):format(pids, pids, pids))
    m:json("process", "run", "web", "--ready", "0", "--grace", "1", "--wait", "--", path)
    local list = cluster.wait_for("three processes", 10, function()
      local out = {}
      for pid in (proc.read_file(pids) or ""):gmatch("%d+") do out[#out + 1] = tonumber(pid) end
      return #out == 3 and out
    end)
    m:json("process", "rm", "web")
    cluster.wait_for("the end of all", 15, function()
      for _, pid in ipairs(list) do
        if is_alive(pid) then return false, pid end
      end
      return true
    end)
  end))

  it("leaves nothing behind from run to run, and forgets nothing that it cannot write down", scenario(function(t)
    local m, w, dir = make(t, 1)
    local pids = t.root .. "/pids"
    -- What stays behind has a session of its own, as a daemon.
    local path = program(t, "forks", ([[
setsid sh -c 'echo $$ >>%s; while :; do sleep 0.1; done' %s/child &
while :; do sleep 0.1; done
]]):format(pids, t.root))
    local function children()
      local list = {}
      for pid in (proc.read_file(pids) or ""):gmatch("(%d+)\n") do list[#list + 1] = tonumber(pid) end
      return list
    end
    local row = m:json("process", "run", "web", "--ready", "0", "--wait", "--", path)
    cluster.wait_for("its child", 10, function() return #children() == 1 end)
    -- The program ends while nobody looks, and its child does not: that is not the program.
    w[1]:crash()
    local pid = row.nodes[1].detail.pid
    assert(uv.kill(pid, "sigkill"))
    w[1]:start("--lua-dir", dir)
    row = wait_row(m, "web", "a new start", function(r) return r.running == 1 and r.nodes[1].detail.pid ~= pid end)
    cluster.wait_for("another child, and the end of the first", 10, function()
      return #children() == 2 and not is_alive(children()[1])
    end)
    -- As it ends and is started by the same daemon.
    pid = row.nodes[1].detail.pid
    assert(uv.kill(pid, "sigkill"))
    cluster.wait_for("a third child, and the end of the second", 15, function()
      return #children() == 3 and not is_alive(children()[2])
    end)
    -- Nothing can be written: what is known of it stays, and nothing is started a second time.
    row = wait_row(m, "web", "a new start", function(r) return r.running == 1 and r.nodes[1].detail.pid ~= pid end)
    pid = row.nodes[1].detail.pid
    local folder = w[1].dir .. "/services/process/web"
    local before = proc.read_file(folder .. "/record.json")
    w[1]:crash()
    assert(uv.fs_mkdir(folder .. "/record.json.new", 448))
    proc.write_file(folder .. "/record.json.new/in-the-way", "")
    w[1]:start("--lua-dir", dir)
    t:wait_status(w, "ready", m)
    assert(uv.kill(pid, "sigkill"))
    row = wait_row(m, "web", "the complaint", function(r)
      return r.nodes[1].state ~= "running" and (r.nodes[1].message or ""):find("Is a directory", 1, true)
    end)
    assert.is_nil(row.nodes[1].detail.pid)
    assert.equal(before, proc.read_file(folder .. "/record.json"))
    assert(uv.fs_unlink(folder .. "/record.json.new/in-the-way"))
    assert(uv.fs_rmdir(folder .. "/record.json.new"))
    wait_row(m, "web", "a new start", function(r) return r.running == 1 end)
    -- A record that cannot be read keeps nobody from taking the rest away.
    w[1]:crash()
    row = inspect(m, "web")
    assert(uv.kill(row.nodes[1].detail.pid, "sigkill"))
    for _, child in ipairs(children()) do uv.kill(child, "sigkill") end
    proc.write_file(folder .. "/record.json", "")
    m:json("process", "rm", "web")
    w[1]:start("--lua-dir", dir)
    cluster.wait_for("the folder to go", 20, function() return not uv.fs_stat(folder) end)
  end))

  it("ends when what it was assigned for is gone while the daemon was down, or the node leaves", scenario(
    function(t)
      local m, w, dir = make(t, 2)
      local path = program(t, "lives", LIVES)
      for _, name in ipairs { "one", "two" } do
        m:json("process", "run", name, "--replicas", "2", "--ready", "0", "--wait", "--", path)
      end
      local one, two = inspect(m, "one"), inspect(m, "two")
      w[1]:crash()
      m:json("process", "rm", "one")
      w[1]:start("--lua-dir", dir)
      cluster.wait_for("its end", 15, function() return not is_alive(on(one, w[1]).detail.pid) end)
      assert.is_true(is_alive(on(two, w[1]).detail.pid))
      -- A node that leaves takes nothing along.
      w[1]:json("block", "leave", "--force")
      cluster.wait_for("its end", 15, function() return not is_alive(on(two, w[1]).detail.pid) end)
      wait_row(m, "two", "one node less", function(r) return #r.nodes == 1 and r.missing == 1 end)
      -- Nor does one that is thrown out while its daemon is down.
      w[2]:crash()
      t:wait_status({ w[2] }, "down", m, 30)
      m:json("node", "rm", w[2].node_id, "--force")
      assert.is_true(is_alive(on(two, w[2]).detail.pid))
      w[2]:start("--lua-dir", dir)
      cluster.wait_for("its end", 15, function() return not is_alive(on(two, w[2]).detail.pid) end)
    end))

  it("goes elsewhere from nodes that are drained or down, and not to those on pause", scenario(function(t)
    local m, w, dir = make(t, 3)
    local path = program(t, "lives", LIVES)
    m:json("node", "update", w[3].node_id, "--availability", "pause")
    local row = m:json("process", "run", "web", "--replicas", "2", "--ready", "0", "--move-after", "1", "--wait", "--",
      path)
    assert.truthy(on(row, w[1]) and on(row, w[2]))
    local plan = m:json("process", "run", "more", "--replicas", "3", "--plan", "--", path)
    assert.same({ true, 2, 1, "of the other workers 1 is on pause" }, { plan.plan, #plan.nodes, plan.missing,
      plan.why })
    assert.equal(1, #m:json("process", "ls"))
    -- Drained: first it runs elsewhere.
    m:json("node", "update", w[3].node_id, "--availability", "active")
    assert.equal(2, #inspect(m, "web").nodes)
    local old = on(row, w[1]).detail.pid
    m:json("node", "update", w[1].node_id, "--availability", "drain")
    row = wait_row(m, "web", "the move", function(r) return all_running(2)(r) and not on(r, w[1]) end)
    assert.truthy(on(row, w[3]))
    cluster.wait_for("the end of the old one", 10, function() return not is_alive(old) end)
    -- Drained, and nowhere to go: it stays.
    m:json("node", "update", w[2].node_id, "--availability", "drain")
    row = wait_row(m, "web", "a lack", function(r) return r.missing == 0 and #r.nodes == 2 end)
    assert.truthy(on(row, w[2]) and on(row, w[3]))
    m:json("node", "update", w[1].node_id, "--availability", "active")
    row = wait_row(m, "web", "the move", function(r) return all_running(2)(r) and not on(r, w[2]) end)
    assert.truthy(on(row, w[1]) and on(row, w[3]))
    -- Down for longer than it is waited for.
    m:json("node", "update", w[2].node_id, "--availability", "active")
    local orphan = on(row, w[3]).detail.pid
    w[3]:crash()
    row = wait_row(m, "web", "the move", function(r) return all_running(2)(r) and not on(r, w[3]) end)
    assert.truthy(on(row, w[1]) and on(row, w[2]))
    -- When it is back it finds that this is no longer its task.
    assert.is_true(is_alive(orphan))
    w[3]:start("--lua-dir", dir)
    cluster.wait_for("the end of the old one", 15, function() return not is_alive(orphan) end)
    local kinds = {}
    for _, e in ipairs(m:json("events", "--kind", "resource")) do kinds[e.kind] = (kinds[e.kind] or 0) + 1 end
    assert.equal(1, kinds["resource.created"])
    assert.is_true(kinds["resource.moved"] >= 3)
  end))

  it("goes where its labels say, and grows and shrinks", scenario(function(t)
    local m, w = make(t, 3)
    local path = program(t, "lives", LIVES)
    m:json("node", "update", w[1].node_id, "--label-add", "zone=a")
    local row = m:json("process", "run", "web", "--replicas", "2", "--label", "zone=a", "--ready", "0", "--", path)
    assert.same({ 1, 1 }, { #row.nodes, row.missing })
    assert.truthy(on(row, w[1]))
    assert.truthy(row.why:find("2 is not zone=a", 1, true), row.why)
    row = wait_row(m, "web", "one that runs", function(r) return r.running == 1 end)
    local first = on(row, w[1]).detail.pid
    -- A node that fits comes.
    m:json("node", "update", w[2].node_id, "--label-add", "zone=a")
    wait_row(m, "web", "the other", all_running(2))
    -- The labels of a node go, and so does it.
    m:json("node", "update", w[3].node_id, "--label-add", "zone=a")
    m:json("node", "update", w[2].node_id, "--label-rm", "zone")
    row = wait_row(m, "web", "a move", function(r) return all_running(2)(r) and not on(r, w[2]) end)
    assert.equal(first, on(row, w[1]).detail.pid)
    row = m:json("process", "scale", "web", "1", "--wait")
    assert.equal(1, #row.nodes)
    assert.equal(1, row.generation) -- that restarts nobody
    assert.same({ "replicas" }, row.changes)
    assert.same({}, m:json("process", "scale", "web", "1").changes)
    assert.equal(0, #m:json("process", "scale", "web", "0", "--wait").nodes)
    assert.truthy(m:cli("process", "ls").out:find("web +0/0 running"))
    assert.equal("invalid", m:fails("process", "scale", "web", "33").code)
    assert.equal("not_found", m:fails("process", "scale", "none", "1").code)
    assert.equal("exists", m:fails("process", "run", "web", "--", path).code)
    assert.equal("invalid", m:fails("process", "run", "bad/name", "--", path).code)
    assert.equal("invalid", m:fails("process", "run", "relative", "--", "sleep").code)
    assert.equal("usage", m:fails("process", "update", "web").code)
  end))

  it("is updated one node after the other, and a bad version stops at the first", scenario(function(t)
    local m, w = make(t, 3)
    local log = t.root .. "/starts"
    local path = program(t, "versions", ([[
echo "$1" >>%s
[ "$1" = bad ] && exit 3
echo "version $1"
while :; do sleep 0.1; done
]]):format(log))
    m:json("process", "run", "web", "--replicas", "3", "--ready", "0.3", "--grace", "1", "--wait", "--", path, "one")
    assert.equal("one\none\none\n", proc.read_file(log))
    -- While it goes from node to node, two of three run all the time.
    local changed = m:json("process", "update", "web", "--", path, "two")
    assert.same({ "spec" }, changed.changes)
    local least, generations = 3, {}
    local row = wait_row(m, "web", "the rollout", function(r)
      local up = 0
      for _, n in ipairs(r.nodes) do up = up + ((n.detail or {}).pid and 1 or 0) end
      least = math.min(least, up)
      local new = 0
      for _, n in ipairs(r.nodes) do new = new + (n.generation == 2 and n.state ~= "stopping" and 1 or 0) end
      generations[new] = true
      return r.rollout.state == "done" and all_running(3)(r)
    end)
    assert.is_true(least >= 2, least)
    assert.is_true(generations[1] or generations[2], json.encode(generations))
    assert.equal(2, row.generation)
    assert.equal("one\none\none\ntwo\ntwo\ntwo\n", proc.read_file(log))
    -- One that does not live.
    local err = m:fails("process", "update", "web", "--wait", "--", path, "bad")
    assert.equal("conflict", err.code)
    assert.truthy(err.message:find("exit status 3", 1, true), err.message)
    row = wait_row(m, "web", "the stop", function(r) return r.rollout.state == "stopped" end)
    local by = { [2] = 0, [3] = 0 }
    for _, n in ipairs(row.nodes) do by[n.generation] = by[n.generation] + 1 end
    assert.same({ [2] = 2, [3] = 1 }, by)
    assert.equal(2, row.running)
    assert.truthy(row.rollout.reason:find("exit status 3", 1, true), row.rollout.reason)
    assert.truthy(m:cli("process", "ls").out:find("rollout stopped", 1, true))
    -- Who comes new meanwhile gets what was good.
    for _, n in ipairs(row.nodes) do
      if n.generation == 3 then m:json("node", "update", n.node_id, "--label-add", "bad=yes") end
    end
    m:json("process", "scale", "web", "2")
    row = wait_row(m, "web", "two", function(r) return #r.nodes == 2 end)
    for _, n in ipairs(row.nodes) do assert.equal(2, n.generation) end
    m:json("process", "scale", "web", "3")
    row = wait_row(m, "web", "three", all_running(3))
    for _, n in ipairs(row.nodes) do assert.equal(2, n.generation) end
    -- Mended, it goes on.
    row = m:json("process", "update", "web", "--wait", "--", path, "four")
    assert.same({ "done", 4, 3 }, { row.rollout.state, row.generation, row.running })
    local kinds = {}
    for _, e in ipairs(m:json("events", "--kind", "rollout")) do kinds[#kinds + 1] = e.kind end
    assert.same({ "rollout.done", "rollout.stopped", "rollout.done" }, kinds)
    assert.is_true(#w == 3)
  end))

  it("is updated without a node that is down, which has the new version when it is back", scenario(function(t)
    local m, w, dir = make(t, 2)
    local path = program(t, "lives", LIVES)
    m:json("process", "run", "web", "--replicas", "2", "--ready", "0", "--grace", "1", "--move-after", "600",
      "--rollout-timeout", "3", "--wait", "--", path, "one")
    w[1]:crash()
    t:wait_status({ w[1] }, "down", m, 30)
    m:json("process", "update", "web", "--", path, "two")
    local row = wait_row(m, "web", "the rollout", function(r) return r.rollout.state == "done" end)
    assert.same({ 2, 2 }, { #row.nodes, on(row, w[2]).generation })
    local event = m:json("events", "--kind", "rollout")[1]
    assert.equal(("process web: generation 2 is everywhere; %s, which is down, will begin with it"):format(w[1].name),
      event.message)
    w[1]:start("--lua-dir", dir)
    row = wait_row(m, "web", "both", function(r) return all_running(2)(r) and on(r, w[1]).generation == 2 end)
    local text = m:cli("process", "logs", "web", "--node", w[1].name, "--lines", "1").out
    assert.truthy(text:find("is up: two\n", 1, true), text)
    assert.equal("done", row.rollout.state)
  end))

  it("keeps the end of what it writes, and lets it be followed", scenario(function(t)
    local m, w = make(t, 1)
    -- What comes while the log is cut is kept as well: at the last cut that is little.
    local path = program(t, "writes", [[
i=0
while [ $i -lt 3000 ]; do
  i=$((i + 1))
  echo "line $i of many, to fill the log"
  [ $i -lt 2700 ] || sleep 0.001
done
echo "whole"
while :; do [ -e "$1" ] && { cat "$1"; rm "$1"; }; sleep 0.05; done
]])
    local more = t.root .. "/more"
    m:json("process", "run", "web", "--ready", "0", "--log-bytes", "20000", "--wait", "--", path, more)
    local text = cluster.wait_for("the log to be short", 20, function()
      local out = m:cli("process", "logs", "web").out
      return out:find("whole\n", 1, true) and #out <= 21000 and out, #out
    end)
    assert.truthy(text:find("line 3000 of many", 1, true))
    assert.is_nil(text:find("line 1 of", 1, true))
    local follow = proc.begin { cluster.symphony, "--socket", m.socket, "process", "logs", "web", "--follow", "--lines",
      "1" }
    cluster.wait_for("what there is", 10, function() return follow.out == "whole\n", follow.out .. follow.err end)
    proc.write_file(more .. ".new", "and more\n")
    assert(os.rename(more .. ".new", more))
    cluster.wait_for("what is new", 10, function()
      return follow.out == "whole\nand more\n", follow.out .. follow.err
    end)
    follow.process:kill("sigint")
    assert.equal(130, (follow.process:wait(10)))
    assert.equal("whole\nand more\n", w[1]:cli("process", "logs", "web", "--lines", "2").out)
    assert.equal("not_found", m:fails("process", "logs", "none").code)
    assert.equal("not_found", m:fails("process", "logs", "web", "--node", "none").code)
    assert.equal("not_found", w[1]:fails("process", "logs", "none").code)
  end))

  it("hands out a large log whole, to a slow reader too, and grows by none of it", scenario(function(t)
    local m, w = make(t, 1)
    local path = program(t, "much", [[
i=0
while [ $i -lt 24 ]; do i=$((i + 1)); head -c 750000 /dev/urandom | base64 -w 76; done
echo whole
while :; do sleep 0.1; done
]])
    m:json("process", "run", "web", "--ready", "0", "--log-bytes", "67108864", "--wait", "--", path)
    local file = w[1].dir .. "/services/process/web/log"
    cluster.wait_for("all to be written", 60, function()
      return m:cli("process", "logs", "web", "--lines", "1").out == "whole\n", (uv.fs_stat(file) or {}).size
    end)
    assert.is_true(uv.fs_stat(file).size > 24e6)
    local function peak(one)
      local text = proc.read_file(("/proc/%d/status"):format(one.process.pid))
      return tonumber(text:match("VmHWM:%s+(%d+)"))
    end
    local before = { peak(m), peak(w[1]) }
    -- Reads a line, and the rest when it is told to.
    local out, go = t.root .. "/out", t.root .. "/go"
    local slow = proc.begin { "sh", "-c", ([[%s --socket %s process logs web |
      { head -c 77; echo begun >&2; while ! [ -e %s ]; do sleep 0.05; done; cat; } >%s]]):format(cluster.symphony,
      m.socket, go, out) }
    cluster.wait_for("a beginning", 10, function() return slow.err == "begun\n", slow.err end)
    for i = 1, 20 do m:json("kv", "put", "k" .. i, "v") end -- others have their turn
    proc.write_file(go, "")
    assert.equal(0, (slow.process:wait(60)))
    assert.equal(0, proc.run({ "cmp", file, out }).code)
    local grown = { peak(m) - before[1], peak(w[1]) - before[2] }
    -- In KiB. A sanitizer keeps what was freed.
    assert.is_true(cluster.patience > 1 or (grown[1] < 16 * 1024 and grown[2] < 16 * 1024), json.encode(grown))
    local last = proc.run({ "sh", "-c", ([[%s --socket %s process logs web --lines 200000 >%s &&
      tail -n 200000 %s | cmp %s]]):format(cluster.symphony, m.socket, out, file, out) }, { timeout = 60 })
    assert.equal(0, last.code, last.err)
  end))

  it("has its restarts as it is told", scenario(function(t)
    local m, w, dir = make(t, 1)
    local path = program(t, "ends", 'echo "$SYMPHONY_NAME $COLOR $(pwd)"\nexit $1\n')
    local row = m:json("process", "run", "good", "--restart", "on-failure", "--env", "COLOR=red", "--cwd", "/tmp",
      "--wait", "--", path, "0")
    assert.same({ "exited", "exit status 0" }, { row.nodes[1].state, row.nodes[1].detail.last_end })
    assert.equal("good red /tmp\n", m:cli("process", "logs", "good").out)
    m:json("process", "run", "never", "--restart", "never", "--", path, "4")
    row = wait_row(m, "never", "the failure", function(r) return r.nodes[1].state == "failed" end)
    assert.equal(1, row.nodes[1].detail.restarts)
    local err = m:fails("process", "run", "bad", "--wait", "--", path, "7")
    assert.truthy(err.message:find("bad has failed on .*exit status 7"), err.message)
    err = m:fails("process", "run", "none", "--wait", "--", "/nonexistent/program")
    assert.truthy(err.message:find("cannot start /nonexistent/program", 1, true), err.message)
    row = inspect(m, "bad")
    assert.is_true(row.nodes[1].detail.restarts >= 3)
    assert.equal(4, #m:json("events", "--kind", "resource.created"))
    assert.is_true(#m:json("events", "--kind", "resource.failed") >= 3)
    -- What has ended for good does not begin again with the daemon.
    w[1]:crash()
    w[1]:start("--lua-dir", dir)
    t:wait_status(w, "ready", m)
    cluster.wait_for("bad to be tried again", 20, function()
      return inspect(m, "bad").nodes[1].detail.restarts ~= row.nodes[1].detail.restarts
    end)
    for name, state in pairs { good = "exited", never = "failed" } do
      local n = inspect(m, name).nodes[1]
      assert.same({ state, 1 }, { n.state, n.detail.restarts }, name)
    end
    assert.equal("good red /tmp\n", m:cli("process", "logs", "good").out)
    if uv.getuid() == 0 then
      m:json("process", "run", "who", "--restart", "never", "--user", "nobody", "--wait", "--", "/usr/bin/id", "-un")
      assert.equal("nobody\n", m:cli("process", "logs", "who").out)
    end
    err = m:fails("process", "run", "whom", "--user", "nosuchuser", "--wait", "--", "/usr/bin/id")
    assert.truthy(err.message:find('this machine has no user "nosuchuser"', 1, true), err.message)
  end))

  it("is in several files, and where one of them is broken there is none, or that of before", scenario(function(t)
    local m = t:cluster(1, { flags = { "--lua-dir", CONTRIB } })[1]
    local dir = t:folder "own"
    assert.equal(0, proc.run({ "cp", "-r", CONTRIB .. "/services", dir }).code)
    local part, whole = dir .. "/services/process/log.lua", proc.read_file "contrib/services/process/log.lua"
    proc.write_file(part, "this is no Lua\n")
    local w = t:join_workers(1, m, { flags = { "--lua-dir", dir } })
    t:wait_status(w, "ready", m)
    local function reload() return w[1]:cli("--json", "reload").json.failed end
    local failed = reload()
    assert.same({ 1, dir .. "/services/process.lua", false }, { #failed, failed[1].file, failed[1].kept })
    assert.truthy(failed[1].message:find("process/log.lua:1: syntax error", 1, true), failed[1].message)
    local path = program(t, "lives", LIVES)
    local row = m:json("process", "run", "web", "--ready", "0", "--", path, "", "a\nb")
    assert.same({ 1, "of the other workers 1 does not have the service process" }, { row.missing, row.why })
    proc.write_file(part, whole)
    assert.same({}, reload())
    row = wait_row(m, "web", "the program", all_running(1))
    proc.write_file(part, "error 'not today'\n")
    failed = reload()
    assert.same({ 1, true }, { #failed, failed[1].kept })
    assert.truthy(failed[1].message:find("process/log.lua:1: not today", 1, true), failed[1].message)
    assert.is_true(is_alive(row.nodes[1].detail.pid))
    local text = m:cli("process", "logs", "web").out
    assert.equal(("pid %d is up: \n"):format(row.nodes[1].detail.pid), text)
    m:json("process", "rm", "web")
    cluster.wait_for("its end", 10, function() return not is_alive(row.nodes[1].detail.pid) end)
  end))

  -- The pids of processes that run @path.
  local function running(path)
    local list = {}
    local scan = assert(uv.fs_scandir("/proc"))
    for name in uv.fs_scandir_next, scan do
      local f = name:find("^%d+$") and io.open(("/proc/%s/cmdline"):format(name))
      local text = f and f:read("a") or ""
      if f then f:close() end
      if text:find("\0" .. path .. "\0", 1, true) and is_alive(tonumber(name)) then list[#list + 1] = tonumber(name) end
    end
    table.sort(list)
    return list
  end

  it("comes to rest where it should, whatever dies meanwhile", scenario(function(t)
    local seed = uv.hrtime() % 1000000
    math.randomseed(seed)
    local flags = { "--lua-dir", CONTRIB }
    local m = t:cluster(3, { flags = flags })
    local w = t:join_workers(3, m[1], { flags = flags })
    t:wait_status(w, "ready", m[1])
    local path = program(t, "lives", LIVES)
    local names, want = { "one", "two", "three" }, {}
    local function any(list)
      local up = {}
      for _, one in ipairs(list) do up[#up + 1] = one:is_running() and one or nil end
      return up[math.random(#up)], #up
    end
    -- What does not work just now is not done: that is what it is about.
    local function try(...) return any(m):cli(...).code == 0 end
    for i, name in ipairs(names) do
      t:leader():json("process", "run", name, "--replicas", tostring(i), "--ready", "0", "--grace", "1", "--move-after",
        "2", "--", path, "first")
      want[name] = i
    end
    local actions = {
      function() local one, up = any(w); if up > 1 then one:crash() end end,
      function() local one, up = any(m); if up > 2 then one:crash() end end,
      function() for _, one in ipairs(w) do if not one:is_running() then one:start(table.unpack(flags)) end end end,
      function() for _, one in ipairs(m) do if not one:is_running() then one:start(table.unpack(flags)) end end end,
      function() local one = any(w); one:stop(); one:start(table.unpack(flags)) end,
      function() try("process", "update", names[math.random(3)], "--", path, tostring(math.random(1000))) end,
      function() try("process", "scale", names[math.random(3)], tostring(math.random(0, 3))) end,
      function() try("node", "update", w[math.random(3)].node_id, "--availability", "drain") end,
      function() try("node", "update", w[math.random(3)].node_id, "--availability", "active") end,
      function() local pids = running(path); if #pids > 0 then uv.kill(pids[math.random(#pids)], "sigkill") end end,
      function() any(w):cli("reload") end,
    }
    for _ = 1, 40 do actions[math.random(#actions)]() end
    for _, list in ipairs { m, w } do
      for _, one in ipairs(list) do
        if not one:is_running() then one:start(table.unpack(flags)) end
      end
    end
    local leader = t:leader()
    t:wait_status(w, "ready", leader, 40)
    for _, one in ipairs(w) do leader:json("node", "update", one.node_id, "--availability", "active") end
    local total, pids = 0, nil
    for _, name in ipairs(names) do want[name] = inspect(leader, name).replicas end
    cluster.wait_for("rest (seed " .. seed .. ")", 60, function()
      total, pids = 0, {}
      for _, name in ipairs(names) do
        local row = inspect(leader, name)
        if row.running ~= want[name] or #row.nodes ~= want[name] or (row.rollout or {}).state == "rolling" then
          return false, json.encode(row)
        end
        for _, n in ipairs(row.nodes) do
          if n.generation ~= row.generation then return false, json.encode(row) end
          pids[#pids + 1] = n.detail.pid
        end
        total = total + want[name]
      end
      table.sort(pids)
      return json.encode(running(path)) == json.encode(pids), json.encode { running(path), pids }
    end)
    for _, name in ipairs(names) do leader:json("process", "rm", name) end
    cluster.wait_for("the end of all (seed " .. seed .. ")", 30, function() return #running(path) == 0 end)
  end))
end)

-- A service of files: "jar" is one on each of its nodes, "label" a record that is nobody's work.
local JAR = [[
local errors = require "symphony.errors"
local uv = require "luv"
local commands = require "symphony.services.commands"

local function path(ctx, id) return ctx.dir .. "/" .. id end

return {
  kind = "pantry",
  summary = "Jars",
  resources = {
    jar = {
      schema = {
        size = { type = "integer", min = 1, max = 100, required = true },
        colour = { type = "string", one_of = { "red", "green" }, default = "green" },
      },
      validate = function(spec, old)
        if old and spec.size < old.size then return nil, "a jar does not shrink" end
        return true
      end,
    },
    label = { schema = { text = { type = "string" } }, placed = false },
  },
  -- Those with the longest names.
  place = function(resource, candidates)
    if resource.spec.colour == "red" then error("red ones go nowhere in particular") end
    table.sort(candidates, function(a, b) return a.name > b.name end)
    local ids = {}
    for i, c in ipairs(candidates) do ids[i] = c.node_id end
    return ids
  end,
  reconcile = function(ctx, desired, actual)
    local broken = uv.fs_stat(ctx.dir .. "/../broken")
    ctx.memory.tries = (ctx.memory.tries or 0) + 1
    if broken then return nil, errors.new("io", "the shelf is broken") end
    if not desired then
      assert(os.remove(path(ctx, ctx.id)))
      return true
    end
    if not actual or actual.size ~= desired.spec.size then
      local f = assert(io.open(path(ctx, ctx.id), "w"))
      f:write(desired.spec.size)
      f:close()
    end
    return { state = "running", detail = { size = desired.spec.size, where = ctx.node.name } }
  end,
  actual = function(ctx)
    local out, scan = {}, uv.fs_scandir(ctx.dir)
    while scan do
      local name = uv.fs_scandir_next(scan)
      if not name then break end
      local f = io.open(path(ctx, name))
      out[name] = { size = tonumber(f:read("a")) }
      f:close()
    end
    return out
  end,
  calls = {
    tries = function(ctx, body)
      if body.fail then return nil, errors.new("conflict", "as you wish") end
      return { tries = ctx.memory.tries, generation = "GENERATION" }
    end,
  },
  status = function(row) return "holds " .. row.spec.size end,
  commands = {
    { name = "put", summary = "A new jar", args = function(p)
        p:argument("name")
        p:argument("size"):convert(tonumber)
        p:option("--replicas"):convert(tonumber)
        commands.write_options(p)
      end,
      run = function(ctx)
        return commands.create(ctx, "jar", { id = ctx.args.name, replicas = ctx.args.replicas and
          math.tointeger(ctx.args.replicas), spec = { size = math.tointeger(ctx.args.size) } })
      end },
    { name = "tries", summary = "How often it was tried on a node", args = function(p)
        p:argument("node")
        p:flag("--fail")
      end,
      run = function(ctx)
        return require("symphony.services.ask").call(ctx.args.node, "pantry", "tries", { fail = ctx.args.fail })
      end },
    commands.ls("jar", { columns = { "COLOUR" }, row = function(r) return { r.spec.colour } end }),
    commands.inspect("jar"), commands.rm("jar"),
  },
}]]

local function ask(m, who, method, path, body)
  local answer = assert(clients.secure(m, who, method, path, body and json.encode(body)))
  return answer.status, answer.json, answer
end

describe("a service", function()
  it("has resources that are made, changed and removed by whoever may", scenario(function(t)
    local dir = lua_dir(t, nil, { ["services/pantry.lua"] = JAR })
    local managers = t:cluster(3, { flags = { "--lua-dir", dir } })
    local w = t:join_workers(2, managers[1], { flags = { "--lua-dir", dir } })
    t:wait_status(w, "ready", managers[1])
    local leader, others = t:leader()
    local m = others[1] -- a follower takes it all, too
    local operator = clients.certificate(t, leader, { cn = "olga", ou = "operator" })
    local reader = clients.certificate(t, leader, { cn = "rita", ou = "reader" })

    local row = m:json("pantry", "put", "figs", "7", "--wait")
    assert.same({ 1, "vm-5" }, { #row.nodes, row.nodes[1].name }) -- as the service's place says
    assert.same({ size = 7, colour = "green" }, row.spec)
    assert.same({ size = 7, where = row.nodes[1].name }, row.nodes[1].detail)
    assert.truthy(m:cli("pantry", "ls").out:find("NAME +COLOUR +STATE.*\nfigs +green +holds 7 +1 +vm%-5\n"))
    local services = {}
    for _, n in ipairs(m:json("node", "ls")) do services[n.name] = n.services end
    assert.same({ "block", "pantry" }, services[row.nodes[1].name])

    -- Over the API.
    local status, doc = ask(leader, operator, "POST", "/v1/res/jar", { id = "jam", replicas = 2, spec = { size = 3,
      colour = "red" } })
    assert.equal(200, status, json.encode(doc))
    assert.same({ "olga", 2 }, { doc.by, #doc.nodes }) -- and a place that fails is none
    assert.truthy(leader:log():find("red ones go nowhere", 1, true) or m:log():find("red ones", 1, true))
    for _, case in ipairs {
      { "POST", "/v1/res/jar", { id = "x", spec = {} }, 400, "size is missing" },
      { "POST", "/v1/res/jar", { id = "x", spec = { size = 0 } }, 400, "at least 1" },
      { "POST", "/v1/res/jar", { id = "x", spec = { size = 1.5 } }, 400, "whole number" },
      { "POST", "/v1/res/jar", { id = "x", spec = { size = 1, lid = 2 } }, 400, "no field \"lid\"" },
      { "POST", "/v1/res/jar", { id = "x", spec = { size = 1, colour = "blue" } }, 400, "one of red, green" },
      { "POST", "/v1/res/jar", { id = "x", spec = { size = 1 }, nodes = {} }, 400, "no field \"nodes\"" },
      { "POST", "/v1/res/jar", { id = "x", spec = { size = 1 }, replicas = -1 }, 400, "replicas" },
      { "POST", "/v1/res/jar", { id = "../x", spec = { size = 1 } }, 400, "name" },
      { "POST", "/v1/res/jar", { spec = { size = 1 } }, 400, "name" },
      { "POST", "/v1/res/jar", { id = "figs", spec = { size = 1 } }, 409, "there is a jar figs already" },
      { "POST", "/v1/res/tin", { id = "x", spec = {} }, 404, "no service here" },
      { "PATCH", "/v1/res/jar/figs", { spec = { size = 6 } }, 400, "does not shrink" },
      { "PATCH", "/v1/res/jar/figs", { generation = 9, spec = { size = 8 } }, 409, "is of generation 1" },
      { "PATCH", "/v1/res/jar/none", { spec = { size = 8 } }, 404, "there is no jar none" },
      { "DELETE", "/v1/res/jar/none", nil, 404, "there is no jar none" },
      { "GET", "/v1/res/jar/none", nil, 404, "there is no jar none" },
      { "GET", "/v1/res/tin", nil, 404, "no service here" },
    } do
      status, doc = ask(m, operator, case[1], case[2], case[3])
      assert.equal(case[4], status, json.encode(doc))
      assert.truthy(doc.error.message:find(case[5], 1, true), doc.error.message)
    end
    -- A reader reads.
    status, doc = ask(m, reader, "GET", "/v1/res/jar")
    assert.same({ 200, 2, "figs" }, { status, #doc, doc[1].id })
    assert.equal(200, (ask(m, reader, "GET", "/v1/res/jar/jam")))
    status, doc = ask(m, reader, "GET", "/v1/res")
    assert.same({ 200, "jar", "label" }, { status, doc[1].kind, doc[2].kind })
    for method, path in pairs { POST = "/v1/res/jar", PATCH = "/v1/res/jar/jam", DELETE = "/v1/res/jar/jam" } do
      assert.equal(403, (ask(m, reader, method, path, {})))
    end
    -- A new spec goes to all at once.
    status, doc = ask(leader, operator, "PATCH", "/v1/res/jar/jam", { generation = 1, spec = { size = 9 } })
    assert.same({ 200, 2, 9 }, { status, doc.generation, doc.spec.size })
    cluster.wait_for("both jars to be larger", 10, function()
      doc = select(2, ask(m, reader, "GET", "/v1/res/jar/jam"))
      for _, n in ipairs(doc.nodes) do
        if n.generation ~= 2 or n.detail.size ~= 9 then return false, json.encode(doc) end
      end
      return doc.running == 2
    end)
    -- Records are nobody's work.
    status, doc = ask(m, operator, "POST", "/v1/res/label", { id = "note", spec = { text = "figs of 2026" } })
    assert.same({ 200, 0 }, { status, #doc.nodes })
    status, doc = ask(m, operator, "PATCH", "/v1/res/label/note", { spec = { text = json.null } })
    assert.same({ 200, 2 }, { status, doc.generation })
    assert.equal(200, (ask(m, operator, "DELETE", "/v1/res/label/note")))
    assert.equal(200, (ask(m, operator, "DELETE", "/v1/res/jar/jam")))
    cluster.wait_for("the files to go", 10, function()
      for _, one in ipairs(w) do
        if uv.fs_stat(one.dir .. "/services/pantry/jam") then return false end
      end
      return true
    end)
    -- What nodes have to do is shown where nodes are.
    local shown = m:json("node", "inspect", row.nodes[1].node_id)[1]
    assert.same({ 1, { "jar/figs" } }, { shown.assignments, shown.work })
    -- Whoever leads next goes on.
    leader:crash()
    local next_leader = t:leader()
    next_leader:json("pantry", "put", "nuts", "5", "--replicas", "2", "--wait")
    next_leader:json("node", "update", row.nodes[1].node_id, "--availability", "drain")
    cluster.wait_for("the move", 15, function()
      local moved = next_leader:json("pantry", "inspect", "figs")[1]
      return moved.running == 1 and moved.nodes[1].node_id ~= row.nodes[1].node_id, json.encode(moved)
    end)
  end))

  it("is tried again when it fails, and taken anew by a reload", scenario(function(t)
    local dir = lua_dir(t, nil, { ["services/pantry.lua"] = JAR })
    local m = t:cluster(1, { flags = { "--lua-dir", dir } })[1]
    local w = t:join_workers(1, m, { flags = { "--lua-dir", dir } })
    t:wait_status(w, "ready", m)
    assert(uv.fs_mkdir(w[1].dir .. "/services", 448) or true)
    proc.write_file(w[1].dir .. "/services/broken", "")
    m:json("pantry", "put", "figs", "7")
    local row = cluster.wait_for("it to have failed", 20, function()
      local r = m:json("pantry", "inspect", "figs")[1]
      return r.nodes[1].state == "failed" and r, json.encode(r)
    end)
    assert.equal("the shelf is broken", row.nodes[1].message)
    local tries = m:json("pantry", "tries", w[1].name).tries
    assert.is_true(tries >= 3 and tries < 30, tries)
    assert(uv.fs_unlink(w[1].dir .. "/services/broken"))
    cluster.wait_for("it to work", 35, function()
      local r = m:json("pantry", "inspect", "figs")[1]
      return r.nodes[1].state == "running", json.encode(r)
    end)
    assert.equal("7", proc.read_file(w[1].dir .. "/services/pantry/figs"))
    -- What somebody takes away is there again, by and by: when it is looked at.
    assert(uv.fs_unlink(w[1].dir .. "/services/pantry/figs"))
    assert.equal("GENERATION", m:json("pantry", "tries", w[1].name).generation)
    local err = m:fails("pantry", "tries", w[1].name, "--fail")
    assert.same({ "conflict", w[1].name .. ": as you wish" }, { err.code, err.message })
    -- Another version; what it keeps in ctx.memory stays.
    tries = m:json("pantry", "tries", w[1].name).tries
    proc.write_file(dir .. "/services/pantry.lua", (JAR:gsub("GENERATION", "another")))
    assert.equal(0, #w[1]:json("reload").failed)
    local answer = m:json("pantry", "tries", w[1].name)
    assert.equal("another", answer.generation)
    assert.is_true(answer.tries >= tries)
    cluster.wait_for("the jar", 10, function() return uv.fs_stat(w[1].dir .. "/services/pantry/figs") end)
    proc.write_file(dir .. "/services/pantry.lua", "return { kind = 'pantry', resources = {} }")
    local list = w[1]:cli("--json", "reload").json
    assert.same({ true, "it has no resources" }, { list.failed[1].kept, list.failed[1].message })
    assert.same({ "jar", "label" }, list.services[1].resources)
    assert.equal("another", m:json("pantry", "tries", w[1].name).generation)
    -- A bad object does not keep the others from being looked at.
    clients.evaluate(m, [[
      local state = require "symphony.cluster.state"
      assert(state.submit { ops = { { put = "/res/jar/aaa", value = "{" }, { put = "/res/jar/bad", value =
        '{"kind": "jar", "id": "bad", "nodes": 7, "replicas": 2}' } } })
      return true]])
    m:json("pantry", "put", "nuts", "5", "--wait", "--replicas", "1")
    cluster.wait_for("the log to tell", 10, function() return m:log():find("services: jar/aaa: ", 1, true) end)
  end))

  it("hears of each node what is its own, and nothing else", scenario(function(t)
    local dir = lua_dir(t, nil, { ["services/pantry.lua"] = JAR })
    local m = t:cluster(1, { flags = { "--lua-dir", dir } })[1]
    local w = t:join_workers(1, m, { flags = { "--lua-dir", dir } })
    t:wait_status(w, "ready", m)
    local row = m:json("pantry", "put", "figs", "7", "--wait")
    local id, forger = clients.worker(t, m, "forger")
    local function item(more)
      local out = { kind = "jar", id = "figs", uid = row.uid, generation = 1, state = "failed", message = "forged" }
      for k, v in pairs(more or {}) do out[k] = v end
      return out
    end
    local headers = ("symphony-forwarded: 1\r\nsymphony-node: %s"):format(w[1].node_id)
    for _, words in ipairs { "", headers } do
      local answer = assert(clients.secure(m, forger, "POST", "/v1/agent/status", json.encode { status = { item() } },
        words))
      assert.equal(200, answer.status, answer.body)
      assert.same({ "jar/figs" }, answer.json.gone)
    end
    assert.equal("running", m:json("pantry", "inspect", "figs")[1].nodes[1].state)
    local own = clients.own(w[1])
    for _, bad in ipairs { { status = {} }, { status = { 7 } }, { status = "x" },
      { status = { item { kind = "../a" } } }, { status = { item { id = "a/b" } } }, { status = { item { uid = 7 } } },
      { status = { item { generation = -1 } } },
      { status = { item { generation = 2 } } }, { status = { item { state = "\27[31m" } } },
      { status = { item { state = ("x"):rep(33) } } }, { status = { item { message = ("x"):rep(501) } } },
      { status = { item { detail = { 1 } } } }, { status = { item { detail = { a = { b = 1 } } } } },
      { status = { item { detail = { A = 1 } } } }, { status = { item { detail = { a = ("x"):rep(257) } } } } } do
      local answer = assert(clients.secure(m, own, "POST", "/v1/agent/status", json.encode(bad)))
      clients.refused(answer, 400, "invalid")
    end
    local many = {}
    for i = 1, 33 do many[i] = item() end
    clients.refused(clients.secure(m, own, "POST", "/v1/agent/status", json.encode { status = many }), 400, "invalid")
    clients.refused(clients.secure(m, own, "POST", "/v1/agent/status", ("x"):rep(70000)), 413, "too_big")
    -- Of a resource of the same name before it, it is not taken; of its own it is.
    local answer = assert(clients.secure(m, own, "POST", "/v1/agent/status", json.encode { status = {
      item { uid = "other" } } }))
    assert.same({ "jar/figs" }, answer.json.gone)
    answer = assert(clients.secure(m, own, "POST", "/v1/agent/status", json.encode { status = {
      item { message = "odd", detail = { size = 1 } } } }))
    assert.same({ 200, {} }, { answer.status, answer.json.gone })
    local said = m:json("pantry", "inspect", "figs")[1].nodes[1]
    assert.same({ "failed", "odd" }, { said.state, said.message })
    -- A worker may not ask another for what its services do; a manager may.
    assert.equal(403, clients.secure(w[1], forger, "POST", "/v1/service/pantry/tries", "{}").status)
    assert.equal(200, clients.secure(w[1], clients.own(m), "POST", "/v1/service/pantry/tries", "{}").status)
    assert.equal(404, clients.secure(w[1], clients.own(m), "POST", "/v1/service/pantry/none", "{}").status)
    -- A flood of news is held back, and the cluster goes on.
    local last
    for i = 1, 60 do
      local list = {}
      for j = 1, 10 do list[j] = item { message = ("%d %d"):format(i, j), state = "running" } end
      last = assert(clients.secure(m, own, "POST", "/v1/agent/status", json.encode { status = list }))
      if last.status ~= 200 then break end
    end
    clients.refused(last, 503, "busy")
    m:json("kv", "put", "a", "b")
    assert.is_true(#id == 26)
  end))
end)

-- A service of which one of its nodes is first, and counts.
local LEAD = [[
local errors = require "symphony.errors"
local uv = require "luv"

return {
  kind = "lead",
  summary = "Who is first",
  resources = { lead = { schema = {} } },
  decide = function(doc, ctx)
    local data = doc.data or { epoch = 0, count = 0 }
    local function is_up(id) return ctx.nodes[id] and ctx.nodes[id].status == "ready" end
    local first = data.first
    for _, id in ipairs(doc.nodes) do
      if first == id and is_up(id) then return nil end
    end
    for _, id in ipairs(doc.nodes) do
      if is_up(id) then
        return { epoch = data.epoch + 1, count = data.count, first = id }, doc.id .. " is led by " .. ctx.nodes[id].name
      end
    end
  end,
  proposals = {
    count = function(doc, ctx, body)
      if ctx.node_id ~= doc.data.first or body.epoch ~= doc.data.epoch then
        return nil, errors.new("conflict", "another one is first")
      end
      return { epoch = doc.data.epoch, first = doc.data.first, count = doc.data.count + 1 }
    end,
    wrong = function() return "no table" end,
  },
  reconcile = function(ctx, desired)
    local seen = ctx.dir .. "/" .. ctx.id
    if not desired then return os.remove(seen) end
    assert(io.open(seen, "w")):close()
    local data = desired.data
    if not data then return { state = "waiting" } end
    local go = ctx.dir .. "/../go"
    if data.first == ctx.node.node_id and uv.fs_stat(go) then
      os.remove(go)
      data = assert(ctx.propose("count", { epoch = data.epoch }))
      assert(select(2, ctx.propose("count", { epoch = data.epoch - 1 })).code == "conflict")
    end
    return { state = "running", detail = { first = data.first == ctx.node.node_id, count = data.count } }
  end,
  actual = function(ctx)
    local out, scan = {}, uv.fs_scandir(ctx.dir)
    while scan do
      local name = uv.fs_scandir_next(scan)
      if not name then break end
      out[name] = true
    end
    return out
  end,
}]]

describe("a service that comes later", function()
  it("is in the worker's record at once, and gets what waits for it", scenario(function(t)
    local dir, late = lua_dir(t, nil, { ["services/pantry.lua"] = JAR }), lua_dir(t, "late", {})
    local m = t:cluster(1, { flags = { "--lua-dir", dir } })[1]
    local w = t:join_workers(1, m, { flags = { "--lua-dir", late } })
    t:wait_status(w, "ready", m)
    local row = m:json("pantry", "put", "figs", "7")
    assert.same({ 1, "of the other workers 1 does not have the service pantry" }, { row.missing, row.why })
    proc.write_file(late .. "/services/pantry.lua", JAR)
    assert.equal(0, #w[1]:json("reload").failed)
    cluster.wait_for("the jar", 15, function()
      local r = m:json("pantry", "inspect", "figs")[1]
      return r.running == 1, json.encode(r)
    end)
    assert.same({ "block", "pantry" }, t:nodes(m)[w[1].node_id].services)
    -- One that is taken away gets nothing new, and goes on with what it has until that is to be gone.
    m:json("pantry", "put", "plums", "7")
    local function wait_node(what, id, check)
      cluster.wait_for(what, 30, function()
        local n = m:json("pantry", "inspect", id)[1].nodes[1]
        return n and check(n), json.encode(n)
      end)
    end
    wait_node("the other jar", "plums", function(n) return n.state == "running" end)
    local function path(id) return ("%s/services/pantry/%s"):format(w[1].dir, id) end
    assert(uv.fs_unlink(late .. "/services/pantry.lua"))
    w[1]:json("reload")
    cluster.wait_for("the record", 15, function()
      return #t:nodes(m)[w[1].node_id].services == 1
    end)
    wait_node("what it says of it", "figs", function(n)
      return n.state == "running" and (n.message or ""):find("pantry is not on this worker any more", 1, true)
    end)
    m:json("pantry", "rm", "figs")
    cluster.wait_for("its end", 15, function() return not uv.fs_stat(path "figs") end)
    assert.truthy(uv.fs_stat(path "plums"))
    -- The next daemon, also one without any --lua-dir, has not even that, and says so; what is left is ended when the
    -- file is back.
    assert(w[1]:stop())
    w[1]:start()
    wait_node("the state", "plums", function(n)
      return n.state == "failed" and n.message:find("has not got the service of jar", 1, true)
    end)
    assert.truthy(w[1]:log():find("nobody looks after what there is of it", 1, true))
    m:json("pantry", "rm", "plums")
    assert.truthy(uv.fs_stat(path "plums"))
    assert(w[1]:stop())
    w[1]:start("--lua-dir", late)
    assert.truthy(uv.fs_stat(path "plums"))
    proc.write_file(late .. "/services/pantry.lua", JAR)
    w[1]:json("reload")
    cluster.wait_for("its end", 30, function() return not uv.fs_stat(path "plums") end)
  end))
end)

describe("what a service keeps in a resource", function()
  it("is decided by the leader, and asked for by its nodes", scenario(function(t)
    local dir = lua_dir(t, nil, { ["services/lead.lua"] = LEAD })
    local m = t:cluster(1, { flags = { "--lua-dir", dir } })[1]
    local w = t:join_workers(2, m, { flags = { "--lua-dir", dir } })
    t:wait_status(w, "ready", m)
    local operator = clients.certificate(t, m, { cn = "olga", ou = "operator" })
    local function get() return select(2, ask(m, operator, "GET", "/v1/res/lead/x")) end
    local function wait(what, check)
      return cluster.wait_for(what, 20, function()
        local row = get()
        return check(row) and row, json.encode(row)
      end)
    end
    local status, made = ask(m, operator, "POST", "/v1/res/lead", { id = "x", replicas = 2, spec = {} })
    assert.equal(200, status, json.encode(made))
    local row = wait("a first one", function(r)
      local firsts = 0
      for _, n in ipairs(r.nodes) do firsts = firsts + ((n.detail or {}).first and 1 or 0) end
      return r.running == 2 and firsts == 1
    end)
    assert.same({ 1, 0 }, { row.data.epoch, row.data.count })
    local by = { [w[1].node_id] = w[1], [w[2].node_id] = w[2] }
    local first = by[row.data.first]
    -- It asks for a change, and all of its nodes hear of it.
    proc.write_file(first.dir .. "/services/go", "")
    first:json("reload") -- has it look
    row = wait("the count", function(r)
      local told = 0
      for _, n in ipairs(r.nodes) do told = told + ((n.detail or {}).count == 1 and 1 or 0) end
      return r.data.count == 1 and told == 2
    end)
    assert.equal(1, row.generation)
    -- Nobody else may, nor for another; and what the service does not know is no proposal.
    local id, forger = clients.worker(t, m, "forger")
    local function propose(who, more, headers)
      local body = { kind = "lead", id = "x", uid = row.uid, name = "count", body = { epoch = 1 } }
      for k, v in pairs(more or {}) do body[k] = v end
      return clients.secure(m, who, "POST", "/v1/agent/propose", json.encode(body), headers)
    end
    for _, headers in ipairs { "", "symphony-forwarded: 1\r\nsymphony-node: " .. first.node_id } do
      clients.refused(propose(forger, nil, headers), 403, "denied")
    end
    local own = clients.own(first)
    clients.refused(propose(own, { uid = "other" }), 403, "denied")
    clients.refused(propose(own, { id = "y" }), 403, "denied")
    clients.refused(propose(own, { name = "none" }), 404, "not_found")
    clients.refused(propose(own, { kind = "tin" }), 404, "not_found")
    clients.refused(propose(own, { name = "wrong" }), 400, "invalid")
    clients.refused(propose(own, { body = 7 }), 400, "invalid")
    clients.refused(propose(own, { body = { epoch = 0 } }), 409, "conflict")
    clients.refused(propose(clients.own(first == w[1] and w[2] or w[1])), 409, "conflict")
    assert.equal(200, propose(own).status)
    assert.equal(2, get().data.count)
    assert.is_true(#id == 26)
    -- It dies: the other one is first.
    first:crash()
    row = wait("the other one", function(r) return r.data.epoch == 2 and r.data.first ~= first.node_id end)
    wait("it to know", function(r)
      for _, n in ipairs(r.nodes) do
        if n.node_id == row.data.first and n.detail.first then return true end
      end
    end)
    local texts = {}
    for _, e in ipairs(m:json("events", "--kind", "resource.changed")) do texts[#texts + 1] = e.message end
    assert.equal(2, #texts, json.encode(texts))
  end))
end)

describe("policies and services", function()
  it("refuse, amend and place resources, and say so before it is done", scenario(function(t)
    local dir = lua_dir(t, nil, { ["services/pantry.lua"] = JAR })
    local m = t:cluster(1, { flags = { "--lua-dir", dir } })[1]
    local w = t:join_workers(3, m, { flags = { "--lua-dir", dir } })
    t:wait_status(w, "ready", m)
    local function policy(name, text)
      local path = ("%s/%s.lua"):format(t.root, name)
      proc.write_file(path, text)
      m:json("policy", "set", name, path)
    end
    policy("jars", [[return {
      summary = "Jars are small, and red ones green",
      match = { ["admit.change"] = { kinds = { "jar" } } },
      hooks = {
        ["admit.change"] = function(change)
          if change.action == "delete" then
            if change.key == "keep" then return refuse("it is to be kept") end
            return
          end
          if count("/res/jar/") >= 2 and not change.old then return refuse("two jars are enough") end
          if change.new.spec.size > 50 then return refuse("too large, " .. (change.who.name or "?")) end
          if change.new.spec.colour == "red" then
            local spec = { size = change.new.spec.size, colour = "green" }
            return amend { spec = spec, replicas = 2 }
          end
        end,
        ["place.jar"] = function(input)
          local best = {}
          for _, c in ipairs(input.candidates) do
            if c.labels.shelf == "top" then best[#best + 1] = c.node_id end
          end
          return choose(best)
        end,
      },
    }]])
    m:json("node", "update", w[2].node_id, "--label-add", "shelf=top")
    local row = m:json("pantry", "put", "keep", "7", "--wait")
    assert.same({ w[2].node_id }, { row.nodes[1].node_id })
    local err = m:fails("pantry", "put", "large", "51")
    assert.same({ "denied", "jars" }, { err.code, err.policy })
    assert.truthy(err.message:find("policy jars refuses: too large", 1, true), err.message)
    local plan = m:json("pantry", "put", "large", "51", "--plan")
    assert.same({ true, false, "jars" }, { plan.plan, plan.allow, plan.policy })
    local shown = m:cli("pantry", "put", "large", "51", "--plan").out
    assert.truthy(shown:find("would be refused: .*too large.*policy jars"), shown)
    -- Amended, in a plan and in truth.
    local operator = clients.certificate(t, m, { cn = "olga", ou = "operator" })
    local red = { id = "red", spec = { size = 3, colour = "red" } }
    local _, doc = ask(m, operator, "POST", "/v1/res/jar?plan=true", red)
    assert.same({ "green", 2, 2 }, { doc.spec.colour, doc.replicas, #doc.nodes })
    assert.equal(1, #m:json("pantry", "ls"))
    doc = select(2, ask(m, operator, "POST", "/v1/res/jar", red))
    assert.same({ "green", 2, "olga", { "jars" } }, { doc.spec.colour, doc.replicas, doc.by, doc.policies })
    assert.truthy(on(doc, w[2]))
    assert.equal("denied", m:fails("pantry", "put", "third", "1").code)
    assert.equal("denied", m:fails("pantry", "rm", "keep").code)
    m:json("pantry", "rm", "red")
    local kinds = {}
    for _, e in ipairs(m:json("events")) do kinds[e.kind] = e end
    assert.same({ "jars" }, kinds["resource.created"].policies)
    assert.truthy(kinds["policy.refused"].message:find("keep", 1, true))
    -- A policy that is not there any more has no word.
    m:json("policy", "rm", "jars")
    m:json("pantry", "put", "large", "51", "--wait")
  end))

  it("spread programs over zones", scenario(function(t)
    local m, w = make(t, 3)
    local path = program(t, "lives", LIVES)
    for i, zone in ipairs { "a", "a", "b" } do
      m:json("node", "update", w[i].node_id, "--label-add", "zone=" .. zone)
    end
    m:json("policy", "set", "spread", "contrib/policies/spread.lua")
    for _, name in ipairs { "one", "two" } do m:json("process", "run", name, "--label", "zone=b", "--", path) end
    local row = m:json("process", "run", "web", "--ready", "0", "--wait", "--", path)
    assert.is_nil(on(row, w[3])) -- it has most to do, and no zone has any yet
    row = m:json("process", "scale", "web", "2", "--wait")
    assert.truthy(on(row, w[3])) -- the other zone
    assert.equal(3, #m:json("process", "scale", "web", "3", "--wait").nodes)
  end))
end)
