-- The nodes as an operator sees and changes them, on any manager: node ls, inspect, update and rm.
local clients = require "spec.support.clients"
local cluster = require "spec.support.cluster"
local json = require "spec.support.json"
local proc = require "spec.support.proc"

local evaluate, secure, refused = clients.evaluate, clients.secure, clients.refused

local function by_name(m)
  local rows = {}
  for _, row in ipairs(m:json("node", "ls")) do rows[row.name] = row end
  return rows
end

local function name_of(m) return m:member().name end

-- Gives node @id something to do, @n times.
local function assign(m, id, n)
  evaluate(m, ([[
    local state = require "symphony.cluster.state"
    for from = 1, %d, 100 do
      local ops = {}
      for i = from, math.min(from + 99, %d) do
        ops[#ops + 1] = state.put(("/assign/%s/volume/%%04d"):format(i), { size = i })
      end
      assert(state.submit { ops = ops })
    end
    return { true }]]):format(n, n, id))
end

local function count(m, prefix)
  return evaluate(m, ("assert(require('symphony.cluster.state').read()) return { n = #require('symphony.cluster.state')"
    .. ".list_raw(%q) }"):format(prefix)).n
end

local function messages(m, ...)
  local out = {}
  for i, event in ipairs(m:json("events", ...)) do out[i] = event.kind .. " " .. event.message end
  return out
end

describe("node ls", function()
  it("shows managers with their part in raft, from each of them", cluster.scenario(function(t)
    local list = t:cluster(3)
    local leader, others = t:leader()
    local lead = name_of(leader)
    for _, m in ipairs(list) do
      local rows = m:json("node", "ls")
      assert.equal(3, #rows)
      for _, row in ipairs(rows) do
        local of = t:by_address(row.addresses.raft)
        assert.same({ "manager", "ready", "active", "voter", row.name == lead, {}, {} }, { row.role, row.status,
          row.availability, row.raft_role, row.leader, row.labels, row.services })
        assert.same({ raft = of:raft(), remote = of:remote(), gossip = "127.0.0.1:" .. of.gossip_port }, row.addresses)
        assert.equal(of:member().node_id, row.node_id)
        assert.is_true(row.certificate_expires > os.time() + 80 * 86400)
        assert.is_string(row.version)
        assert.is_nil(row.certificate)
        assert.same(row, m:http("GET", "/v1/nodes/" .. row.name).json)
      end
      assert.same(rows, m:http("GET", "/v1/nodes").json)
      local text = m:cli("node", "ls").out
      assert.truthy(text:find("^ID +NAME +ROLE +STATUS +AVAILABILITY +VERSION +ADDRESS +CERT EXPIRES\n"), text)
      assert.truthy(text:find("manager: voter, leader", 1, true) and text:find("in 89d", 1, true), text)
    end
    local dead = others[1]
    local name = name_of(dead)
    dead:crash()
    cluster.wait_for("it to be down", 30, function()
      local row = by_name(leader)[name]
      return row.status == "down", row
    end)
    dead:start()
    cluster.wait_for("it to be ready", 30, function()
      local row = by_name(leader)[name]
      return row.status == "ready", row
    end)
  end))

  it("is this manager's own state when there is no quorum", cluster.scenario(function(t)
    local m = t:cluster(2)
    clients.worker(t, m[1], "w1")
    cluster.wait_for("the other to have it", 10, function() return by_name(m[2]).w1 end)
    m[1]:crash()
    local rows = cluster.wait_for("the quorum to be missed", 20, function()
      local found = by_name(m[2])
      return found.w1 and found.w1.stale and found
    end)
    assert.equal("joining", rows.w1.status)
    local result = m[2]:cli("node", "ls")
    assert.equal(0, result.code)
    assert.truthy(result.err:find("stale: no quorum", 1, true), result.err)
    assert.truthy(result.out:find("w1", 1, true), result.out)
    assert.truthy(m[2]:cli("node", "inspect", "w1").err:find("stale", 1, true))
    refused(assert(m[2]:http("GET", "/v1/nodes")), 503, "no_quorum")
    assert.is_true(m[2]:http("GET", "/v1/nodes/w1?stale=ok").json.stale)
    for _, words in ipairs { { "update", "w1", "--name", "w2" }, { "rm", "w1" } } do
      local failure, status = m[2]:fails("node", table.unpack(words))
      assert.equal("no_quorum", failure.code)
      assert.equal(5, status.code)
    end
  end))
end)

describe("node update", function()
  it("changes a worker from any manager, all at once or not at all", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    local m = others[1]
    local id = clients.worker(t, others[2], "w1")
    local row = by_name(m).w1
    assert.same({ id, "worker", "joining" }, { row.node_id, row.role, row.status })
    assert.is_nil(row.raft_role)
    row = m:json("node", "update", "w1", "--availability", "drain", "--label-add", "zone=a", "--label-add", "disk=ssd",
      "--name", "worker-01")
    assert.same({ "worker-01", "drain", { zone = "a", disk = "ssd" } }, { row.name, row.availability, row.labels })
    assert.equal(4, #row.changes)
    for _, each in ipairs { leader, others[1], others[2] } do
      row = by_name(each)["worker-01"]
      assert.same({ id, "drain", "ssd" }, { row.node_id, row.availability, row.labels.disk })
      assert.is_nil(by_name(each).w1)
    end
    -- By id, and by the beginning of one.
    assert.equal(1, #m:json("node", "update", id, "--label-rm", "zone").changes)
    assert.equal(0, #m:json("node", "update", id:sub(1, 25), "--label-rm", "zone").changes)
    -- Nothing of it is done when something cannot be.
    assert.equal("exists", (m:fails("node", "update", id, "--availability", "pause", "--name", name_of(m))).code)
    assert.equal("invalid", (m:fails("node", "update", id, "--availability", "pause", "--name", "a b")).code)
    assert.equal("drain", by_name(m)["worker-01"].availability)
    local failure, result = m:fails("node", "update", id)
    assert.same({ "usage", 2 }, { failure.code, result.code })
    assert.equal("usage", (m:fails("node", "update", id, "--availability", "off")).code)
    assert.equal("not_found", (m:fails("node", "update", "w1", "--name", "w2")).code)
    -- The old name is free; two that begin alike are not told apart.
    local second = clients.worker(t, m, "w1")
    local common = 6
    while id:sub(1, common + 1) == second:sub(1, common + 1) do common = common + 1 end
    failure = m:fails("node", "inspect", second:sub(1, common))
    if id:sub(1, common) == second:sub(1, common) then
      assert.truthy(failure.code == "invalid" and failure.message:find("ambiguous"), failure.message)
    end
    assert.same({ "node.joined worker w1 joins from 127.0.0.1 with a token", "node.updated w1 is called worker-01 now; "
      .. "availability drain, was active; label disk=ssd; label zone=a", "node.updated no label zone" },
      messages(leader, "--node", "worker-01"))
    local text = m:cli("node", "inspect", "worker-01", "w1").out
    assert.truthy(text:find("name            worker-01\nnode id         " .. id, 1, true), text)
    assert.truthy(text:find("labels          disk=ssd\n", 1, true), text)
    assert.truthy(text:find("no label zone", 1, true) and text:find("\n\nname            w1\n", 1, true), text)
  end))

  it("gives a manager another name, which it takes", cluster.scenario(function(t)
    local m = t:cluster(2)
    m[1]:json("node", "update", name_of(m[2]), "--name", "second")
    cluster.wait_for("it to know its name", 10, function()
      return json.decode(proc.read_file(m[2].dir .. "/key.json")).name == "second"
    end)
    assert.equal("second", m[2]:json("manager", "status").name)
    assert.equal(0, m[2]:stop())
    m[2]:start()
    cluster.wait_for("it to be back under it", 20, function()
      local row = by_name(m[1]).second
      return row and row.status == "ready"
    end)
    assert.equal("second", m[2]:json("manager", "status").name)
  end))

  it("is for operators by their certificate, and for nobody less", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local id, worker = clients.worker(t, m, "w1")
    local who = {
      operator = clients.certificate(t, m, { cn = "o", ou = "operator" }),
      reader = clients.certificate(t, m, { cn = "r", ou = "reader" }), worker = worker, none = {},
    }
    local patch = json.encode { availability = "pause" }
    assert.equal(200, secure(m, who.operator, "PATCH", "/v1/nodes/w1", patch).status)
    assert.equal("pause", secure(m, who.reader, "GET", "/v1/nodes/" .. id).json.availability)
    for name, status in pairs { reader = 403, worker = 403, none = 401 } do
      local code = status == 403 and "denied" or "unauthenticated"
      refused(assert(secure(m, who[name], "PATCH", "/v1/nodes/w1", patch)), status, code)
      refused(assert(secure(m, who[name], "DELETE", "/v1/nodes/w1")), status, code)
      if name ~= "reader" then
        for _, target in ipairs { "/v1/nodes", "/v1/nodes/w1", "/v1/events", "/v1/events?follow" } do
          refused(assert(secure(m, who[name], "GET", target)), status, code)
        end
      end
    end
    refused(assert(secure(m, who.operator, "DELETE", "/v1/nodes/w1")), 403, "denied")
    for _, body in ipairs { "{}", "[]", "[1]", "7", '{"availability":"off"}', '{"name":7}', '{"name":null}',
      '{"id":"x"}', '{"labels":7}', '{"labels":{"a b":"c"}}', '{"labels":{"a":7}}', '{"labels":["x"]}' } do
      refused(assert(secure(m, who.operator, "PATCH", "/v1/nodes/w1", body)), 400, "invalid")
    end
    refused(assert(secure(m, who.operator, "PATCH", "/v1/nodes/nobody", patch)), 404, "not_found")
  end))
end)

describe("node rm", function()
  it("takes a worker out, and with it all that it may do", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    local id, certificate = clients.worker(t, leader, "w1")
    for _, m in ipairs(t.managers) do
      refused(assert(secure(m, certificate, "GET", "/v1/kv/a")), 403, "denied")
      assert.equal(200, secure(m, certificate, "GET", "/v1/version").status)
    end
    assign(leader, id, 3)
    local failure = others[1]:fails("node", "rm", "w1")
    assert.truthy(failure.code == "conflict" and failure.message:find("3 assignments"), failure.message)
    assert.equal("not_found", (others[1]:fails("manager", "remove", "w1")).code)
    local gone = others[1]:json("node", "rm", "w1", "--force")
    assert.same({ node_id = id, name = "w1", role = "worker", assignments = 3 }, gone)
    for _, m in ipairs(t.managers) do
      assert.is_nil(by_name(m).w1)
      refused(assert(secure(m, certificate, "GET", "/v1/version")), 403, "denied")
    end
    assert.equal("node.removed w1 is removed", messages(others[2], "--node", id)[2])
    cluster.wait_for("what it had to do to be forgotten", 10, function()
      return count(leader, "/assign/") == 0 and count(leader, "/removed/") == 0
    end)
    for _, prefix in ipairs { "/name/w1", "/peer/" .. id, "/status/node/" .. id } do
      assert.equal(0, count(leader, prefix), prefix)
    end
    -- One that has nothing to do and is not there needs no force; its name is free.
    clients.worker(t, leader, "w1")
    others[1]:json("node", "rm", "w1")
    assert.equal("not_found", (others[1]:fails("node", "rm", "w1")).code)
  end))

  it("is finished by whoever leads next", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    local id = clients.worker(t, leader, "w1")
    local stays = clients.worker(t, leader, "w2")
    assign(leader, id, 1500)
    assign(leader, stays, 5)
    -- The leader dies with the first txn: what it would do then is kept from it.
    evaluate(leader, [[
      require("symphony.cluster.erase").step = function() return false end
      return { true }]])
    others[1]:json("node", "rm", "w1", "--force")
    assert.equal(1500, count(leader, "/assign/" .. id .. "/"))
    leader:crash()
    local heir = t:leader()
    cluster.wait_for("it to be finished", 20, function()
      return count(heir, "/assign/" .. id .. "/") == 0 and count(heir, "/removed/") == 0
    end)
    assert.equal(5, count(heir, "/assign/"))
  end))

  it("takes a manager out as manager remove does", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    local name, id = name_of(others[1]), others[1]:member().node_id
    local answer = leader:json("node", "rm", id:sub(1, 26))
    assert.same({ name, "manager" }, { answer.name, answer.role })
    assert.is_string(answer.note)
    assert.equal(2, #leader:json("node", "ls"))
    assert.truthy(messages(leader, "--kind", "node.removed")[1]:find(name, 1, true))
    cluster.wait_for("nothing of it to be left", 10, function() return count(leader, "/removed/") == 0 end)
    -- By the API, and by force neither.
    local answered = assert(leader:http("DELETE", "/v1/nodes/" .. name_of(others[2])))
    assert.equal(200, answered.status, answered.body)
    cluster.wait_for("the second to go", 20, function()
      local _, rows = pcall(leader.json, leader, "node", "ls")
      return type(rows) == "table" and #rows == 1
    end)
    assert.equal("conflict", (leader:fails("node", "rm", name_of(leader), "--force")).code)
  end))
end)
