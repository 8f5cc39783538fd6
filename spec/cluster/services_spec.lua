-- Services of the operator's own: resources, placement, reconciliation, and contrib/services/process.lua as people use it.
local clients = require "spec.support.clients"
local cluster = require "spec.support.cluster"
local json = require "spec.support.json"
local proc = require "spec.support.proc"
local uv = require "luv"

local PROCESS = proc.read_file("contrib/services/process.lua")

local function lua_dir(t, name, files)
  local dir = t:folder(name or "own")
  for _, sub in ipairs { "commands", "services" } do assert(uv.fs_mkdir(dir .. "/" .. sub, 448)) end
  for path, text in pairs(files or { ["services/process.lua"] = PROCESS }) do proc.write_file(dir .. "/" .. path, text) end
  return dir
end

-- A cluster of one manager and @n workers that have the service.
local function make(t, n, files)
  local dir = lua_dir(t, nil, files)
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

local function on(row, worker)
  for _, n in ipairs(row.nodes) do
    if n.node_id == worker.node_id then return n end
  end
end

local function all_running(n)
  return function(row) return row.running == n and #row.nodes == n end
end

describe("the service process", function()
  it("runs a program, restarts it, shows its log, and ends it", cluster.scenario(function(t)
    local m, w = make(t, 2)
    local path = program(t, "lives", LIVES)
    local row = m:json("process", "run", "web", "--replicas", "2", "--ready", "0", "--wait", "--", path, "one")
    assert.equal(2, row.running)
    assert.same({ path, "one" }, row.spec.command)
    local first = on(row, w[1]).detail.pid
    assert.is_true(is_alive(first))
    -- kill -9: it is there again.
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
    text = w[1]:cli("process", "logs", "web", "--lines", "1").out
    assert.equal(("pid %d is up: one\n"):format(second), text)
    assert.truthy(m:cli("process", "ls").out:find("web +2/2 running +1 "))
    assert.equal("", m:cli("process", "ls").err)
    m:json("process", "rm", "web")
    cluster.wait_for("the programs to end", 10, function()
      for _, n in ipairs(row.nodes) do
        if is_alive(n.detail.pid) then return false, n.detail.pid end
      end
      return true
    end)
    assert.equal("not_found", m:fails("process", "inspect", "web").code)
  end))
end)
