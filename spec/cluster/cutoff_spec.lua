-- Who is out is cut off at once: a worker that was removed and does not care, and a client certificate that was
-- revoked. How long it takes is printed.
local clients = require "spec.support.clients"
local cluster = require "spec.support.cluster"
local json = require "spec.support.json"
local proc = require "spec.support.proc"
local prometheus = require "spec.support.prometheus"

local AT_ONCE = 2 -- seconds

local function value(m, name, labels)
  local answer = assert(m:http("GET", "/metrics", nil, { timeout = 20 * cluster.patience }))
  assert.equal(200, answer.status, answer.body)
  return prometheus.value(prometheus.parse(answer.body), name, labels)
end

-- Datagrams that @m does not believe, because of who sends them.
local function refused(m)
  return value(m, "symphony_gossip_refused_total", { reason = "stranger" }) +
    value(m, "symphony_gossip_refused_total", { reason = "unknown_key" })
end

-- The gossip key that node @m speaks with, and how many it accepts.
local KEYS = [[
local g = require "symphony.cluster.gossip"
local agent = package.loaded["symphony.cluster.agent"]
local doc = agent and agent.view() and agent.view().gossip or require("symphony.cluster.state").get("/secret/gossip")
local _, found = g.read_keys(doc)
return { use = found.use, count = #doc.keys }]]

-- What happens by and by: wait(name, check) waits until all that were begun have come, and prints after how long each.
local function race(began)
  local waiting, said = {}, {}
  return {
    add = function(name, check) waiting[#waiting + 1] = { name = name, check = check } end,
    finish = function(seconds)
      cluster.wait_for("all of it", seconds, function()
        local left = {}
        for _, one in ipairs(waiting) do
          if one.check() then
            said[#said + 1] = ("%s %.2f s"):format(one.name, proc.now() - began)
          else
            left[#left + 1] = one
          end
        end
        waiting = left
        return #waiting == 0, waiting[1] and waiting[1].name
      end)
      waiting = {}
      return table.concat(said, ", ")
    end,
  }
end

describe("a worker that was removed", function()
  it("and does not care is cut off from the managers, the workers and gossip", cluster.scenario(function(t)
    local m = t:cluster(3)
    local w = t:join_workers(3, m[1])
    local out = table.remove(w, 1)
    local rest = table.move(w, 1, #w, 4, table.move(m, 1, 3, 1, {}))
    cluster.wait_for("gossip to know all", 30, function()
      for _, one in ipairs(rest) do
        if value(one, "symphony_gossip_members", { state = "alive" }) ~= 6 then return false, one.label end
      end
      return true
    end)
    -- Its agent does not hear that it is out, so its gossip goes on; the stream is held for it by curl.
    clients.evaluate(out, 'require("symphony.cluster.agent").stop() return true')
    local stream = cluster.wait_for("the stream", 10, function()
      local call = clients.watch(m[2], clients.own(out), "/v1/agent?starts=1000&instance=aa&min=0&peers=0.0")
      return proc.pump(5, function() return call.out:find("synced", 1, true) end) and call, call.out .. call.err
    end)
    local before = {}
    for i, one in ipairs(rest) do before[i] = refused(one) end
    local old = clients.evaluate(m[1], KEYS).use

    local began = proc.now()
    m[1]:json("node", "rm", "--force", out.node_id)
    local cut = race(began)
    cut.add("stream", function() return stream.ended() end)
    for _, one in ipairs(rest) do
      cut.add("requests to " .. one.label, function()
        local answer = assert(clients.secure(one, clients.own(out), "POST", "/v1/gossip", "{}"))
        return answer.status == 403
      end)
      cut.add("membership at " .. one.label, function()
        return value(one, "symphony_gossip_members", { state = "alive" }) == 5 and
          value(one, "symphony_gossip_known_nodes") == 4
      end)
    end
    print("\nnode rm --force to: " .. cut.finish(AT_ONCE))
    for _, line in ipairs(stream.lines()) do -- it was not told the new key
      for _, key in ipairs(line.gossip and line.gossip.keys or {}) do assert.equal(old, key.id) end
    end

    local ignored = race(began)
    for i, one in ipairs(rest) do
      ignored.add("its datagrams refused at " .. one.label, function() return refused(one) > before[i] end)
    end
    for _, one in ipairs(rest) do
      ignored.add("the new key at " .. one.label, function()
        local keys = clients.evaluate(one, KEYS)
        return keys.use > old and keys.count == 1
      end)
    end
    print("and to: " .. ignored.finish(20))
    -- It did go on, and nobody takes it in again.
    assert.is_true(value(out, "symphony_gossip_datagrams_sent_total") > 0)
    for _, one in ipairs(rest) do
      assert.equal(0, value(one, "symphony_gossip_members", { state = "suspect" }))
      assert.equal(5, value(one, "symphony_gossip_members", { state = "alive" }))
      assert.equal(403, assert(clients.secure(one, clients.own(out), "GET", "/v1/version")).status)
    end
    clients.refused(clients.secure(m[3], clients.own(out), "GET", "/v1/agent?starts=1001&instance=ab&min=0&peers=0.0"),
      403, "denied")
    t:wait_status(w, "ready", m[1])
  end))
end)

describe("a client certificate that was revoked", function()
  it("is cut off on managers and workers", cluster.scenario(function(t)
    local m = t:cluster(3)
    local w = t:join_workers(2, m[1])
    local dir = t:folder("certs")
    m[1]:json("cert", "issue", "rita", "--role", "reader", "--out", dir)
    local words = { "--cert", dir .. "/rita.crt", "--key", dir .. "/rita.key" }
    local all = table.move(w, 1, #w, 4, table.move(m, 1, 3, 1, {}))
    local function status(one) return assert(clients.secure(one, words, "GET", "/metrics")).status end
    for _, one in ipairs(all) do
      cluster.wait_for("metrics of " .. one.label, 10, function() return status(one) == 200 end)
    end
    local watches = {}
    for i, one in ipairs(m) do
      watches[i] = clients.watch(one, words, "/v1/watch")
      clients.wait_lines(watches[i], 1)
    end
    local events = clients.watch(m[2], words, "/v1/events?follow=true")
    local began = proc.now()
    m[3]:json("cert", "revoke", "rita")
    local cut = race(began)
    for i, one in ipairs(m) do cut.add("watch at " .. one.label, function() return watches[i].ended() end) end
    cut.add("events", function() return events.ended() end)
    for _, one in ipairs(all) do
      cut.add("metrics of " .. one.label, function() return status(one) == 403 end)
    end
    print("\ncert revoke to: " .. cut.finish(AT_ONCE))
  end))

  it("costs no rounds of the quorum without end when it goes on asking", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local dir = t:folder("certs")
    for _, name in ipairs { "rita", "olga" } do m:json("cert", "issue", name, "--role", "operator", "--out", dir) end
    local function ask(name, times)
      local call = clients.watch(m, { "--cert", ("%s/%s.crt"):format(dir, name), "--key", ("%s/%s.key"):format(dir,
        name) }, ("/v1/kv/none[1-%d]"):format(times))
      cluster.wait_for("all answers", 20, call.ended)
      local counts = {}
      for _, line in ipairs(call.lines()) do counts[line.error.code] = (counts[line.error.code] or 0) + 1 end
      return counts, call.out .. call.err
    end
    m:json("cert", "revoke", "rita")
    local function rounds() return value(m, "symphony_raft_read_rounds_total") end
    local before = rounds()
    local counts, seen = ask("rita", 400)
    assert.is_true((counts.denied or 0) >= 100 and (counts.busy or 0) > 0, seen)
    assert.equal(400, counts.denied + counts.busy)
    assert.is_true(rounds() - before < 400, rounds() - before)
    assert.same({ not_found = 400 }, (ask("olga", 400)))
  end))

  it("has what it was refused for under an Idempotency-Key done once, by one who may", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local dir = t:folder("certs")
    m:json("cert", "issue", "olga", "--role", "operator", "--out", dir)
    local words = { "--cert", dir .. "/olga.crt", "--key", dir .. "/olga.key" }
    -- As it is when another certificate was revoked while the request was under way.
    clients.evaluate(m, [[
      local async, crypto, state, store = require "symphony.async", require "sym.crypto",
        require "symphony.cluster.state", require "sym.store"
      local id = crypto.sha256("order 66\0PUT\0/v1/kv/once\0\0x"):sub(1, 16)
      async.bind { { key = "/fingerprint/none", value = "operator otto" } }
      local txn = { id = id, since = store.revision(), ops = { state.put("/kv/once", "x") }, decided = true }
      local result, err = state.submit(txn)
      assert(not result and err.code == "denied")
      assert(store.result(id).status == "conflict")
      return true]])
    local header = "Idempotency-Key: order 66"
    for i = 1, 2 do
      local answer = assert(clients.secure(m, words, "PUT", "/v1/kv/once", "x", header))
      assert.same({ 200, i == 2 or nil }, { answer.status, answer.json.repeated }, answer.body)
    end
    -- Its own conflict is told as one.
    local answer = assert(clients.secure(m, words, "PUT", "/v1/kv/once?mod_revision=1", "x"))
    clients.refused(answer, 409, "conflict")
    assert.truthy(answer.json.error.message:find("not as the request expects", 1, true), answer.body)
  end))

  it("is told the same of what did not hold as anybody else, whichever way it asks", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local dir = t:folder("certs")
    m:json("cert", "issue", "olga", "--role", "operator", "--out", dir)
    local words = { "--cert", dir .. "/olga.crt", "--key", dir .. "/olga.key" }
    local doors = {
      remote = function(...) return assert(clients.secure(m, words, ...)) end,
      socket = function(method, target, body, header)
        return assert(m:http(method, target, body, { headers = header .. "\r\n" }))
      end,
    }
    local function is_conflict(answer, said)
      clients.refused(answer, 409, "conflict")
      assert.truthy(answer.json.error.message:find(said, 1, true), answer.body)
    end
    for first, then_ in pairs { remote = "socket", socket = "remote" } do
      -- Neither is it done when what it asks for holds by now.
      local target, header = "/v1/kv/" .. first .. "?mod_revision=0", "Idempotency-Key: " .. first
      assert.equal(200, m:http("PUT", "/v1/kv/" .. first, "here").status)
      is_conflict(doors[first]("PUT", target, "x", header), "not as the request expects")
      assert.equal(200, m:http("DELETE", "/v1/kv/" .. first).status)
      for _, door in ipairs { then_, first } do
        is_conflict(doors[door]("PUT", target, "x", header), "not as the request expects")
      end
      assert.equal(404, m:http("GET", "/v1/kv/" .. first).status)
      local txn = [[{"compare": [{"key": "no/1", "absent": true}, {"key": "no/2", "absent": true},
        {"key": "]] .. first .. [[", "value": "here"}], "ops": [{"put": "never", "value": "x"}]}]]
      for _, door in ipairs { first, then_, first } do
        is_conflict(doors[door]("POST", "/v1/txn", txn, header), "compare 3 does not hold")
      end
      assert.equal(200, m:http("PUT", "/v1/kv/" .. first, "here").status)
      is_conflict(doors[then_]("POST", "/v1/txn", txn, header), "compare 3 does not hold")
      assert.equal(404, m:http("GET", "/v1/kv/never").status)
    end
  end))

  it("writes nothing through a manager that does not know it yet", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    local behind, dir = others[1], t:folder("certs")
    local node = json.decode(proc.read_file(behind.dir .. "/key.json")).node_id
    leader:json("kv", "put", "stays", "as it was")
    local requests = {
      { "PUT", "/v1/kv/late", "x" },
      { "DELETE", "/v1/kv/stays" },
      { "POST", "/v1/txn", '{"ops": [{"put": "late", "value": "x"}]}' },
      { "PATCH", "/v1/nodes/" .. node, '{"labels": {"late": "x"}}' },
    }
    for i, request in ipairs(requests) do
      local name, where = "olga-" .. i, table.concat(request, " ", 1, 2)
      leader:json("cert", "issue", name, "--role", "operator", "--out", dir)
      local line = clients.connect(behind, { "--cert", ("%s/%s.crt"):format(dir, name), "--key",
        ("%s/%s.key"):format(dir, name) })
      line.ask("GET", "/v1/kv")
      assert.equal(200, line.answer().status, where)
      -- What it gets to see first when it goes on is the request: of the revocation it can know only later.
      behind:kill("sigstop")
      leader:json("cert", "revoke", name)
      line.ask(table.unpack(request))
      cluster.wait_for("the request to be there", 5, function() return proc.unread(behind.remote_port) > 0 end)
      behind:kill("sigcont")
      local answer = line.answer() -- it may have been cut off already
      if answer then clients.refused(answer, 403, "denied") end
      line.close()
      behind:json("kv", "put", "marker", where) -- goes the same way, behind it
    end
    assert.equal("as it was", leader:json("kv", "get", "stays").value)
    assert.equal("not_found", leader:fails("kv", "get", "late").code)
    assert.same({}, t:nodes(leader)[node].labels)
  end))
end)

describe("a manager that is not in the state any more", function()
  it("is nobody, though something of it is left there", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    local out, rest = others[1], { leader, others[2] }
    local id = json.decode(proc.read_file(out.dir .. "/key.json")).node_id
    for _, one in ipairs(rest) do
      assert.equal(404, assert(clients.secure(one, clients.own(out), "GET", "/v1/kv/none")).status)
    end
    clients.evaluate(leader, ([[
      local state = require "symphony.cluster.state"
      return assert(state.submit { ops = { state.delete("/node/%s") } })]]):format(id))
    for _, one in ipairs(rest) do
      clients.refused(clients.secure(one, clients.own(out), "GET", "/v1/kv/none"), 403, "denied")
      clients.refused(clients.secure(one, clients.own(out), "PUT", "/v1/kv/some", "x"), 403, "denied")
      clients.refused(clients.secure(one, clients.own(out), "GET", "/v1/nodes"), 403, "denied")
    end
  end))
end)
