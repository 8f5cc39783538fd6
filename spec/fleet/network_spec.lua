-- Nodes whose network fails: three managers and five workers, each on a host of its own (spec/fault/network.lua).
local cluster = require "spec.support.cluster"
local fleet = require "spec.support.fleet"
local network = require "spec.fault.network"
local proc = require "spec.support.proc"

local say = fleet.say
local MANAGERS, WORKERS = 3, 5

-- Host numbers of the nodes: managers first.
local function host_of(t, node)
  for i, m in ipairs(t.managers) do
    if m == node then return i end
  end
  for i, w in ipairs(t.workers) do
    if w == node then return MANAGERS + i end
  end
end

local function build(t, net)
  local function make(kind, first)
    return function(i) return t[kind](t, { address = net:address(first + i), prefix = net:prefix(first + i) }) end
  end
  local m = t:cluster(MANAGERS, { make = make("manager", 0) })
  fleet.identify(m)
  local w = fleet.join(t, WORKERS, m, make("worker", MANAGERS))
  for _, each in ipairs(m) do fleet.wait_status(w, "ready", each) end
  return m, w, table.move(m, 1, MANAGERS, WORKERS + 1, fleet.slice(w, 1, WORKERS))
end

-- Everyone's gossip sees @n nodes alive.
local function wait_alive(nodes, n, began)
  cluster.wait_for(("everyone to see %d nodes"):format(n), 60, function()
    for _, each in ipairs(nodes) do
      local alive = fleet.figure(each, "symphony_gossip_members", { state = "alive" })
      if alive ~= n then return false, ("%s sees %d"):format(each.label, alive) end
    end
    return true
  end)
  return proc.now() - (began or proc.now())
end

-- The members that gossip at @m takes for dead.
local function dead(m)
  return fleet.figure(m, "symphony_gossip_members", { state = "dead" })
end

local function worker_cut_off(t, net, m, w)
  local pid, began = w.process.pid, proc.now()
  net:isolate(host_of(t, w))
  local down = fleet.wait_status({ w }, "down", m[1], 60, began)
  began = proc.now()
  net:heal()
  say("a worker cut off: down after %.2f s; healed: ready after %.2f s", down,
    fleet.wait_status({ w }, "ready", m[1], 60, began))
  cluster.wait_for("its agent to be connected", 30, function()
    return fleet.figure(w, "symphony_agent_synced") == 1
  end)
  assert.equal(pid, w.process.pid)
end

-- Only its datagrams are lost: it answers every direct probe, nobody takes it for dead, and the others say what is
-- wrong.
local function udp_cut(t, net, w, nodes)
  wait_alive(nodes, #nodes)
  net:cut_datagrams(host_of(t, w))
  local others = {}
  for _, node in ipairs(nodes) do
    if node ~= w then others[#others + 1] = node end
  end
  local text = ("node %s answers at its remote port"):format(w.node_id)
  local began, fallen = proc.now(), nil
  cluster.wait_for("somebody to say that its datagrams are lost", 90, function()
    for id, row in pairs(fleet.rows(t.managers[1])) do
      if row.status ~= "ready" then fallen = ("%s is %s"):format(id, row.status) end
    end
    if fallen then return true end
    for _, node in ipairs(others) do
      if node:log():find(text, 1, true) then return true end
    end
    return false, w.label
  end)
  assert.is_nil(fallen)
  local said = proc.now() - began
  for _, node in ipairs(others) do assert.equal(0, dead(node), node.label) end
  began = proc.now()
  net:heal()
  say("only the datagrams of a worker lost for %.1f s: said in the log, never down; healed: all see all after %.2f s",
    said, wait_alive(nodes, #nodes, began))
end

-- A manager alone: what it thinks of the others has no weight, whether it led or not.
local function manager_cut_off(t, net, m, lost, what, w, nodes)
  local witness = lost == m[1] and m[2] or m[1]
  local began = proc.now()
  net:isolate(host_of(t, lost))
  local down = fleet.wait_status({ lost }, "down", witness, 60, began)
  -- By now it has found them all dead; in what it has of the state none of them is down.
  cluster.wait_for("it to find the others dead", 60, function()
    return dead(lost) == MANAGERS + WORKERS - 1, dead(lost)
  end)
  for id, row in pairs(fleet.rows(lost)) do assert.are_not.equal("down", row.status, id) end
  fleet.wait_status(w, "ready", witness)
  began = proc.now()
  net:heal()
  local ready = fleet.wait_status({ lost }, "ready", witness, 60, began)
  say("%s cut off: down after %.2f s; healed: ready after %.2f s, all see all after %.2f s", what, down, ready,
    wait_alive(nodes, MANAGERS + WORKERS, began))
  t:wait_voters(MANAGERS, witness)
end

-- Two workers and a manager on one side, the rest on the other.
local function partition(t, net, m, w, nodes)
  local leader, others = t:leader()
  local side = { others[1], w[1], w[2] }
  local inside = {}
  for _, node in ipairs(side) do inside[node] = true end
  for _, a in ipairs(side) do
    for _, b in ipairs(nodes) do
      if not inside[b] then
        net:cut(host_of(t, a), host_of(t, b))
        net:cut(host_of(t, b), host_of(t, a))
      end
    end
  end
  cluster.wait_for("both sides to find the other dead", 60, function()
    local here, there = dead(others[1]), dead(leader)
    return here == #nodes - #side and there == #side, ("%d and %d"):format(here, there)
  end)
  -- Three of eight at once: the leader doubts itself before it says so.
  fleet.wait_status(side, "down", leader, 90)
  fleet.wait_status(fleet.slice(w, 3, WORKERS), "ready", leader)
  local began = proc.now()
  net:heal()
  local seen = wait_alive(nodes, #nodes, began)
  say("a partition of %d and %d nodes healed: all see all after %.2f s, all ready after %.2f s", #side,
    #nodes - #side, seen, fleet.wait_status(nodes, "ready", m[1], 60, began))
  assert.truthy(fleet.counted(m[1], "leader.suspects_itself")[leader.node_id])
  return side
end

describe("nodes whose network fails", function()
  local net, why = network.new(MANAGERS + WORKERS)
  if not net then
    say("no network namespaces here (%s)", (why:gsub("%s+$", "")))
    pending("are what they are called (it takes root)")
    return
  end
  teardown(function() net:close() end)

  it("are what they are called", cluster.scenario(function(t)
    local m, w, nodes = build(t, net)
    local away = {}
    local function lost(node)
      away[node.node_id] = (away[node.node_id] or 0) + 1
      return node
    end
    worker_cut_off(t, net, m, lost(w[5]))
    udp_cut(t, net, w[4], nodes)
    local _, followers = t:leader()
    manager_cut_off(t, net, m, lost(followers[1]), "a follower", w, nodes)
    manager_cut_off(t, net, m, lost((t:leader())), "the leader", w, nodes)
    for _, node in ipairs(partition(t, net, m, w, nodes)) do lost(node) end
    fleet.wait_status(nodes, "ready", m[2], 60)
    fleet.check_downs(m[1], nodes, away)
  end))
end)
