-- What has happened, as `symphony events` and GET /v1/events tell it: the same on every manager, whoever leads.
local clients = require "spec.support.clients"
local cluster = require "spec.support.cluster"
local json = require "spec.support.json"
local proc = require "spec.support.proc"

local secure, refused = clients.secure, clients.refused

local function kinds(m, ...)
  local out = {}
  for i, event in ipairs(m:json("events", ...)) do out[i] = event.kind end
  return out
end

-- Those that say what somebody did, without the leader's words on who is ready and who is down, which come when they
-- come.
local function deeds(m, ...)
  local out = {}
  for _, event in ipairs(m:json("events", ...)) do
    if not ({ ["node.ready"] = true, ["node.down"] = true, ["node.left"] = true })[event.kind] then
      out[#out + 1] = event
    end
  end
  return out
end

-- Waits until @n managers have been called ready.
local function settled(m, n)
  cluster.wait_for(n .. " managers to be ready", 20, function()
    return #kinds(m, "--kind", "node.ready") >= n, table.concat(kinds(m), " ")
  end)
end

-- A client that follows; lines() gives what it has printed.
local function follow(m, ...)
  local call = proc.begin { cluster.symphony, "--socket", m.socket, ... }
  function call.lines()
    local list = {}
    for line in call.out:gmatch("([^\n]*)\n") do list[#list + 1] = line end
    return list
  end
  function call.wait(what, check)
    return cluster.wait_for(what, 20, function() return check(call.lines()), call.out .. call.err end)
  end
  return call
end

local function update(m, value)
  return m:json("node", "update", "w1", "--label-add", "n=" .. value)
end

describe("symphony events", function()
  it("tells the same on every manager, and goes on with another leader", cluster.scenario(function(t)
    local list = t:cluster(3)
    settled(list[1], 3)
    assert.equal(3, #deeds(list[1], "--kind", "node.joined"))
    clients.worker(t, list[2], "w1")
    for i = 1, 5 do update(list[i % 3 + 1], i) end
    local before = deeds(list[1])
    assert.equal(9, #before)
    for i = 2, 9 do
      assert.is_true(before[i].id > before[i - 1].id and before[i].revision > before[i - 1].revision)
      assert.is_true(before[i].at >= before[i - 1].at)
    end
    local leader = t:leader()
    leader:crash()
    local heir, others = t:leader()
    for i = 6, 10 do update(others[1], i) end
    leader:start()
    heir:json("node", "rm", "w1")
    local after
    cluster.wait_for("all to tell the same", 20, function()
      after = heir:json("events")
      for _, m in ipairs(list) do
        if json.encode(m:json("events")) ~= json.encode(after) then return false end
      end
      return true
    end)
    -- Nothing of before is lost or changed.
    local kept = deeds(heir)
    for i = 1, 9 do assert.same(before[i], kept[i]) end
    local mine = deeds(heir, "--node", "w1")
    assert.equal(12, #mine)
    for i = 6, 10 do assert.equal("label n=" .. i, mine[i + 1].message) end
    assert.equal("node.removed", mine[12].kind)
  end))

  it("takes what it is asked for", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    settled(m, 1)
    clients.worker(t, m, "w1")
    update(m, 1)
    assert.same({ "node.joined", "node.ready", "node.joined", "node.updated" }, kinds(m))
    assert.same({ "node.updated" }, kinds(m, "--limit", "1"))
    assert.same({ "node.updated" }, kinds(m, "--kind", "node.updated"))
    assert.equal(4, #kinds(m, "--kind", "node", "--since", "1h"))
    assert.equal(4, #kinds(m, "--since", "2020-02-29"))
    assert.equal(0, #kinds(m, "--since", "2099-01-01 00:00"))
    local id = m:json("node", "inspect", "w1")[1].node_id
    m:json("node", "update", "w1", "--name", "w2")
    assert.equal(3, #kinds(m, "--node", "w2"))
    assert.equal(3, #kinds(m, "--node", id:sub(1, 20)))
    local text = m:cli("events", "--node", "w2").out
    assert.truthy(text:find("^TIME %(UTC%) +KIND +NODE +MESSAGE\n"), text)
    assert.truthy(text:find("\n%d+%-%d%d%-%d%d %d%d:%d%d:%d%d  node.joined +w1 +worker w1 joins from 127.0.0.1 with"),
      text)
    assert.equal("There are no such events.\n", m:cli("events", "--kind", "no.such").out)
    for _, words in ipairs { { "--since", "soon" }, { "--since", "2026-13-01" } } do
      assert.equal("invalid", (m:fails("events", table.unpack(words))).code)
    end
    for _, words in ipairs { { "--limit", "0" }, { "--limit", "1001" }, { "now" } } do
      assert.equal("usage", (m:fails("events", table.unpack(words))).code)
    end
    -- The same by HTTP.
    for target, n in pairs { [""] = 5, ["?limit=2"] = 2, ["?since=1h&kind=node.joined"] = 2, ["?node=w2"] = 3,
      ["?from=" .. m:json("events")[3].revision] = 3, ["?follow=false"] = 5 } do
      local answer = assert(m:http("GET", "/v1/events" .. target))
      assert.equal(200, answer.status, answer.body)
      assert.equal(n, #answer.json, target .. answer.body)
    end
    assert.same(m:json("events"), m:http("GET", "/v1/events").json)
    for _, target in ipairs { "?limit=1001", "?limit=-1", "?limit=x", "?since=soon", "?from=1.5", "?follow&limit=x" } do
      refused(assert(m:http("GET", "/v1/events" .. target)), 400, "invalid")
    end
  end))

  it("follows: what was asked for first, then what happens, line by line, until Ctrl-C", cluster.scenario(function(t)
    local list = t:cluster(3)
    local leader, others = t:leader()
    local m = others[1]
    clients.worker(t, m, "w1")
    local text, all = follow(m, "events", "--follow"), follow(m, "--json", "events", "-f", "--since", "1h", "--kind",
      "node.joined")
    local lines = follow(m, "--json", "events", "-f", "--node", "w1")
    text.wait("the heading", function(got) return got[1] end)
    assert.equal(4, #all.wait("what there is", function(got) return #got >= 4 and got end))
    cluster.wait_for("all to follow", 20, function()
      update(m, math.random(1 << 40))
      return #text.lines() > 1 and #lines.lines() > 0
    end)
    local seen = #lines.lines()
    -- Another leader, while they follow.
    leader:crash()
    t:leader()
    update(others[2], "last")
    local got = lines.wait("what happens under the next leader", function(l)
      return l[#l]:find("n=last", 1, true) and l
    end)
    assert.is_true(#got > seen)
    local before = 0
    for _, line in ipairs(got) do
      local event = assert(json.decode(line), line)
      assert.is_true(event.revision > before)
      before = event.revision
    end
    text.wait("the same as text", function(l) return l[#l]:find("label n=last$") end)
    assert.truthy(text.lines()[1]:find("^TIME %(UTC%) +KIND +NODE +MESSAGE$"), text.out)
    assert.truthy(text.lines()[2]:find("^%d+%-%d%d%-%d%d %d%d:%d%d:%d%d  node%.updated +w1 +label n="), text.out)
    assert.equal(4, #all.lines(), all.out)
    for _, call in ipairs { text, all, lines } do
      assert.is_nil(call.process.code)
      call.process:kill("sigint")
      cluster.wait_for("its end", 10, call.ended)
      assert.equal(130, call.process.code)
    end
    assert.equal(3, #list)
  end))

  it("without a quorum is what this manager knows, and who follows waits for the next", cluster.scenario(function(t)
    local m = t:cluster(2)
    settled(m[1], 2)
    m[1]:crash()
    local rows = cluster.wait_for("the quorum to be missed", 20, function()
      local found = m[2]:json("events")
      return found[1].stale and found
    end)
    assert.equal(4, #rows)
    local result = m[2]:cli("events")
    assert.equal(0, result.code)
    assert.truthy(result.err:find("stale: no quorum", 1, true), result.err)
    refused(assert(m[2]:http("GET", "/v1/events")), 503, "no_quorum")
    assert.is_true(m[2]:http("GET", "/v1/events?stale=ok").json[1].stale)
    local call = follow(m[2], "--json", "events", "--follow")
    call.wait("the word that it is stale", function(got) return got[1] and json.decode(got[1]).type == "stale" end)
    m[1]:start()
    cluster.wait_for("a quorum", 20, function() return not m[2]:json("events")[1].stale end)
    clients.worker(t, m[2], "w1")
    call.wait("the event", function(got)
      for i = 2, #got do
        if json.decode(got[i]).name == "w1" then return true end
      end
    end)
    call.process:kill("sigint")
    cluster.wait_for("its end", 10, call.ended)
  end))
end)

describe("GET /v1/events?follow", function()
  it("streams to readers, until their certificate is worth nothing", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    settled(m, 1)
    local reader = clients.certificate(t, m, { cn = "r", ou = "reader" })
    local brief = clients.certificate(t, m, { cn = "b", ou = "reader", to = 4 })
    local w, short = clients.watch(m, reader, "/v1/events?follow"), clients.watch(m, brief, "/v1/events?follow&limit=0")
    local lines = clients.wait_lines(w, 3)
    assert.same({ "node.joined", "node.ready", "sync" }, { lines[1].kind, lines[2].kind, lines[3].type })
    assert.equal("sync", clients.wait_lines(short, 1)[1].type)
    clients.worker(t, m, "w1")
    assert.equal("w1", clients.wait_lines(w, 4)[4].name)
    assert.equal("w1", clients.wait_lines(short, 2)[2].name)
    cluster.wait_for("the end of the one whose certificate expires", 20, short.ended)
    local last = short.lines()[#short.lines()]
    assert.equal("expired", last.error.code)
    assert.equal("heartbeat", cluster.wait_for("a heartbeat", 20, function()
      local got = w.lines()
      return got[5] and got[5].type
    end))
    assert.is_nil(w.process.code)
    w.process:kill()
    assert.equal(200, secure(m, reader, "GET", "/v1/events").status)
  end))

  it("is for so many at one time", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local list = {}
    for i = 1, 64 do list[i] = proc.begin { "curl", "-sN", "--unix-socket", m.socket, "http://x/v1/events?follow" } end
    cluster.wait_for("all of them to be served", 30, function()
      for _, call in ipairs(list) do
        if not call.out:find('"sync"', 1, true) then return false, call.out .. call.err end
      end
      return true
    end)
    refused(assert(m:http("GET", "/v1/events?follow")), 503, "busy")
    assert.equal(200, m:http("GET", "/v1/events").status)
    list[1].process:kill()
    cluster.wait_for("room for another", 10, function()
      local call = proc.begin { "curl", "-sN", "--unix-socket", m.socket, "http://x/v1/events?follow" }
      proc.pump(2, function() return call.out:find("\n", 1, true) end)
      call.process:kill()
      return call.out:find('"node.joined"', 1, true), call.out
    end)
    for _, call in ipairs(list) do call.process:kill() end
  end))
end)
