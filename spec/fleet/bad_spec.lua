-- Nodes that are not as they should be, and datagrams that are none.
local clients = require "spec.support.clients"
local cluster = require "spec.support.cluster"
local fleet = require "spec.support.fleet"
local json = require "spec.support.json"
local proc = require "spec.support.proc"
local uv = require "luv"

local say = fleet.say

-- Words that run a program with a clock that is @seconds off; only the time of day.
local function with_clock(seconds)
  return { "env", "LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1", "FAKETIME=" .. ("%+ds"):format(seconds),
    "FAKETIME_DONT_FAKE_MONOTONIC=1", "ASAN_OPTIONS=verify_asan_link_order=0:allocator_may_return_null=1" }
end

local function clock_of(m)
  return clients.evaluate(m, "return { now = os.time() }").now
end

local function reason_of(m, node_id)
  return fleet.rows(m)[node_id].reason or m:json("node", "inspect", node_id)[1].reason
end

describe("nodes whose clocks are an hour off", function()
  it("join and are what they are called, also when one of them leads", cluster.scenario(function(t)
    local ahead, behind = with_clock(3590), with_clock(-3590)
    local m = t:cluster(3, { make = function(i) return t:manager { prefix = i == 3 and ahead or nil } end })
    fleet.identify(m)
    local w = fleet.join(t, 3, m, function(i) return t:worker { prefix = ({ ahead, behind })[i] } end)
    assert.is_true(math.abs(clock_of(m[3]) - os.time() - 3590) < 300 * cluster.patience, "the clock was not faked")
    assert.is_true(math.abs(clock_of(w[2]) - os.time() + 3590) < 300 * cluster.patience, "the clock was not faked")
    local nodes = table.move(m, 1, 3, 4, fleet.slice(w, 1, 3))
    local away = {}
    local function lost(node)
      away[node.node_id] = (away[node.node_id] or 0) + 1
      return node
    end
    -- The leader's clock is right, then an hour ahead, and right again.
    for _, leader in ipairs { m[1], m[3], m[2] } do
      if t:leader() ~= leader then
        m[1]:json("manager", "transfer", leader.node_id)
        cluster.wait_for(leader.label .. " to lead", 20, function() return t:leader() == leader end)
      end
      fleet.wait_status(nodes, "ready", m[1])
      local victim = leader == m[1] and w[1] or leader == m[3] and w[2] or w[3]
      local began = proc.now()
      lost(victim):crash()
      local down = fleet.wait_status({ victim }, "down", m[1], 60, began)
      began = proc.now()
      victim:start()
      say("%s leads: a worker killed is down after %.2f s, started again ready after %.2f s", leader.label, down,
        fleet.wait_status({ victim }, "ready", m[1], 60, began))
    end
    fleet.check_downs(m[2], nodes, away)
    -- What is further off does not get in, and is told why.
    local late = t:worker { prefix = with_clock(-3 * 3600) }:start()
    local err = late:fails("block", "join", m[1]:remote(), "--token", t.tokens.worker)
    assert.truthy((err.message .. (err.hint or "")):find("clock", 1, true), json.encode(err))
  end))
end)

describe("a node", function()
  it("that has another's name gets one of its own, unless a person chose it", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local w = fleet.join(t, 3, { m })
    local names, seen = {}, {}
    for i, each in ipairs(w) do
      names[i] = each.name
      assert.is_nil(seen[each.name], each.name)
      seen[each.name] = true
    end
    table.sort(names)
    local base = names[1]:gsub("%-%d+$", "")
    for _, name in ipairs(names) do
      assert.truthy(name == names[1] or name:find("^" .. base:gsub("%p", "%%%0") .. "%-%d+$"), name)
    end
    local other = t:worker():start()
    local err = other:fails("block", "join", m:remote(), "--token", t.tokens.worker, "--name", names[2])
    assert.equal("exists", err.code)
    assert.truthy(err.message:find(names[2], 1, true), err.message)
    other:json("block", "join", m:remote(), "--token", t.tokens.worker, "--name", "another")
  end))

  it("whose folder was copied to another machine is refused there, and the first stays", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local w = fleet.join(t, 2, { m })
    fleet.wait_status(w, "ready", m)
    local copy = t:copy_of(w[1], m)
    copy:start()
    local warnings = cluster.wait_for("the copy to be refused", 40, function()
      local s = copy:json("block", "status")
      local text = table.concat(s.warnings or {}, "\n")
      return text:find("copy", 1, true) and text, s
    end)
    say("the copy: %s", warnings)
    cluster.wait_for("the event", 20, function()
      return (fleet.counted(m, "node.refused")[w[1].node_id] or 0) >= 1
    end)
    copy:crash()
    fleet.wait_status(w, "ready", m)
    cluster.wait_for("the first one to be connected", 60, function()
      local s = w[1]:json("block", "status")
      return s.manager and s.status == "ready" and #s.warnings == 0, s
    end)
    fleet.check_downs(m, w, {})
  end))

  it("that dies right after it has joined is down with a reason, and can be removed", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local w = fleet.join(t, 2, { m })
    -- The join's answer was its last sign.
    local silent = { label = "the silent one", node_id = clients.worker(t, m, "silent") }
    local began = proc.now()
    -- Another one is killed as soon as the managers know it.
    local killed = t:worker():start()
    local call = proc.begin { cluster.symphony, "--socket", killed.socket, "--json", "block", "join", m:remote(),
      "--token", t.tokens.worker, "--name", "killed" }
    cluster.wait_for("the managers to know it", 20, function()
      for id, row in pairs(fleet.rows(m)) do
        if row.name == "killed" then killed.node_id = id end
      end
      return killed.node_id
    end)
    killed:crash()
    cluster.wait_for("the join to end", 20, call.ended)
    say("killed after the join's answer: down after %.1f s; never heard of: down after %.1f s",
      fleet.wait_status({ killed }, "down", m, 60, began), fleet.wait_status({ silent }, "down", m, 60, began))
    assert.truthy(reason_of(m, silent.node_id):find("not been heard of since it joined", 1, true),
      reason_of(m, silent.node_id))
    assert.truthy(reason_of(m, killed.node_id))
    for _, each in ipairs { silent, killed } do m:json("node", "rm", each.node_id) end
    fleet.wait_status(w, "ready", m)
    local rows = fleet.rows(m)
    assert.is_nil(rows[silent.node_id] or rows[killed.node_id])
    fleet.check_downs(m, w, {})
  end))

  it("whose certificate has expired while it was off gets in again with the same key", cluster.scenario(function(t)
    local m = t:cluster(3)
    local w = fleet.join(t, 2, m)
    fleet.wait_status(w, "ready", m[1])
    assert.equal(0, (w[1]:stop()))
    local made = clients.evaluate(m[1], ([[
      local crypto, state = require "sym.crypto", require "symphony.cluster.state"
      local ca_key, ca = require("symphony.cluster.pki").load_ca()
      local key = crypto.key_load(require("sym.sys").read_file(%q))
      local cert = crypto.cert_sign(ca_key, ca, crypto.csr(key, "x"), { cn = %q, ou = "worker", o = state.cluster().id,
        not_before = os.time() - 2000, not_after = os.time() - 1000, server = true })
      return { cert = cert }]]):format(w[1].dir .. "/tls/node.key", w[1].node_id))
    local key = proc.read_file(w[1].dir .. "/tls/node.key")
    proc.write_file(w[1].dir .. "/tls/node.crt", made.cert)
    local began = proc.now()
    w[1]:start()
    local s = cluster.wait_for("it to be back", 60, function()
      local s = w[1]:json("block", "status")
      return s.status == "ready" and s.manager and s.certificate_expires > os.time() + 24 * 3600 and s, s
    end)
    say("with a certificate that has expired: connected again after %.2f s", proc.now() - began)
    assert.equal(w[1].node_id, s.node_id)
    assert.equal(key, proc.read_file(w[1].dir .. "/tls/node.key"))
    assert.are_not.equal(made.cert, proc.read_file(w[1].dir .. "/tls/node.crt"))
    fleet.wait_status(w, "ready", m[2])
    fleet.check_downs(m[1], w, {})
  end))
end)

-- Datagrams --------------------------------------------------------------------------------------------------------

-- Genuine datagrams for worker @w, which is killed: we listen at its port until we have some of every node of @from.
-- Once it is known to be down nobody sends it any more, so it may have to be killed more than once. It is down in the
-- end.
local function captured(w, m, from)
  local seen, missing = {}, nil
  for _, node in ipairs(from) do seen[node.gossip_port] = {} end
  local function has_all()
    missing = nil
    for _, node in ipairs(from) do
      if #seen[node.gossip_port] == 0 then missing = node.label end
    end
    return missing == nil
  end
  for _ = 1, 10 do
    w:crash()
    local udp = uv.new_udp()
    assert(udp:bind("127.0.0.1", w.gossip_port))
    udp:recv_start(function(err, data, addr)
      if not err and data and seen[addr.port] then table.insert(seen[addr.port], data) end
    end)
    local all = proc.pump(5 * cluster.patience, has_all)
    udp:close()
    proc.run_for(0.01)
    if all then return seen end
    w:start()
    fleet.wait_status({ w }, "ready", m, 60)
  end
  error("no datagram of " .. missing)
end

local function pack(datagrams)
  local parts = {}
  for i, d in ipairs(datagrams) do parts[i] = string.pack("<s2", d) end
  return table.concat(parts)
end

local function random_bytes(n)
  local bytes = {}
  for i = 1, n do bytes[i] = string.char(math.random(0, 255)) end
  return table.concat(bytes)
end

-- @datagrams for all of @seconds at @node: what it counted of it.
local function blast(t, node, datagrams, seconds, reasons)
  local path = ("%s/datagrams-%d"):format(t.root, uv.hrtime())
  proc.write_file(path, pack(datagrams))
  local function figures()
    local f = { received = fleet.figure(node, "symphony_gossip_datagrams_received_total"),
      dropped = fleet.figure(node, "symphony_gossip_dropped_by_system_total"),
      cpu = fleet.figure(node, "process_cpu_seconds_total") }
    for _, reason in ipairs(reasons) do
      f[reason] = fleet.figure(node, "symphony_gossip_refused_total", { reason = reason })
    end
    return f
  end
  local before, began = figures(), proc.now()
  local sender = proc.spawn({ "lua5.4", "spec/support/blast.lua", tostring(node.gossip_port), path },
    { log = t.root .. "/blast.log" })
  proc.run_for(seconds)
  assert.is_nil(sender.code, proc.read_file(t.root .. "/blast.log"))
  sender:kill("sigkill")
  sender:wait(10)
  local after, passed = figures(), proc.now() - began
  local delta = {}
  for name, value in pairs(after) do delta[name] = value - before[name] end
  return delta, passed
end

describe("datagrams that are none", function()
  it("are counted, and nobody is called down", cluster.scenario(function(t)
    math.randomseed(fleet.seed)
    local m = t:cluster(1)[1]
    fleet.identify { m }
    local w = fleet.join(t, 4, { m })
    fleet.wait_status(w, "ready", m)
    local victim = w[4]
    local nodes = { m, w[1], w[2], w[3] }
    local seen = captured(victim, m, nodes)
    victim:start()
    fleet.wait_status(w, "ready", m, 60)
    local function all_heard()
      return fleet.figure(victim, "symphony_gossip_members", { state = "alive" }) == 5
    end
    cluster.wait_for("the victim to have heard of everyone", 30, all_heard)
    local before = (fleet.counted(m, "node.down")[victim.node_id] or 0)
    local theirs = seen[w[1].gossip_port]
    local garbage, cut, mine = {}, {}, seen[m.gossip_port]
    for i = 1, 64 do garbage[i] = random_bytes(math.random(0, 1400)) end
    for i = 1, 64 do
      local d = theirs[(i - 1) % #theirs + 1]
      cut[i] = d:sub(1, math.random(0, #d - 1))
    end
    local cases = {
      { m, "garbage", garbage, { "malformed", "stranger", "unknown_key" } },
      { m, "truncated", cut, { "malformed", "forged", "busy", "replayed" } },
      { m, "reflected", mine, { "reflected" } },
      { m, "meant for another", theirs, { "forged", "busy", "replayed" } },
      { victim, "garbage", garbage, { "malformed", "stranger", "unknown_key" } },
      { victim, "replayed", theirs, { "replayed" } },
    }
    for _, case in ipairs(cases) do
      local node, what, datagrams, reasons = table.unpack(case)
      local got, passed = blast(t, node, datagrams, 2, reasons)
      local counted, texts = 0, {}
      for _, reason in ipairs(reasons) do
        counted = counted + got[reason]
        if got[reason] > 0 then texts[#texts + 1] = ("%s %d"):format(reason, got[reason]) end
      end
      say("%s at %s: %.0f a second taken, %.0f dropped by the system, %.0f %% of a core; refused: %s", what, node.label,
        got.received / passed, got.dropped / passed, got.cpu / passed * 100, table.concat(texts, ", "))
      assert.is_true(counted > 100, what .. " was not counted")
    end
    fleet.wait_status(w, "ready", m)
    cluster.wait_for("everyone to be heard of", 30, all_heard)
    fleet.check_downs(m, { m, w[1], w[2], w[3], w[4] }, { [victim.node_id] = before })
  end))
end)
