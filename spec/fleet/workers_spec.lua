-- Twenty workers and three managers: killed, stopped, restarted in any order, removed, left, drained. Whoever is
-- healthy is never called down.
local clients = require "spec.support.clients"
local cluster = require "spec.support.cluster"
local fleet = require "spec.support.fleet"
local proc = require "spec.support.proc"

local say = fleet.say
local N = 20

local function any(list) return list[math.random(#list)] end

-- How long until the death of a worker is shown, again and again.
local function detection(m, workers, away)
  local took = {}
  for i, w in ipairs(workers) do
    local witness, began = any(m), proc.now()
    w:kill("sigkill")
    away[w.node_id] = (away[w.node_id] or 0) + 1
    took[i] = fleet.wait_status({ w }, "down", witness, 40, began)
    assert.truthy(fleet.rows(witness)[w.node_id].reason)
    w:launch()
  end
  for _, w in ipairs(workers) do w:answers() end
  local texts = {}
  for i, s in ipairs(took) do texts[i] = ("%.2f"):format(s) end
  say("kill -9 to `down` in `node ls`, %d nodes, one after the other: median %.2f s (%s)", N + 3, fleet.median(took),
    table.concat(texts, " "))
end

local function crash_some(m, workers, away)
  local began = proc.now()
  fleet.crash(workers)
  for _, w in ipairs(workers) do away[w.node_id] = (away[w.node_id] or 0) + 1 end
  say("kill -9 of %d at once: all down after %.2f s", #workers, fleet.wait_status(workers, "down", any(m), 60, began))
  local order = fleet.shuffled(workers)
  for _, w in ipairs(order) do w:launch() end
  say("... and started again: all ready after %.2f s", fleet.wait_status(workers, "ready", any(m), 60))
end

local function stopped(m, w, away)
  local began, pid = proc.now(), w.process.pid
  w:kill("sigstop")
  w.paused = true
  away[w.node_id] = (away[w.node_id] or 0) + 1
  local down = fleet.wait_status({ w }, "down", any(m), 40, began)
  began = proc.now()
  w:kill("sigcont")
  w.paused = nil
  say("SIGSTOP of a worker: down after %.2f s, SIGCONT: ready after %.2f s", down,
    fleet.wait_status({ w }, "ready", any(m), 40, began))
  assert.equal(pid, w.process.pid)
  assert.is_true(w:is_running())
end

-- All are stopped in order and started again, some at a time, in an order of the seed.
local function restart(m, workers)
  local order = fleet.shuffled(workers)
  local began = proc.now()
  for i = 1, #order, 5 do
    local some = fleet.slice(order, i, math.min(i + 4, #order))
    for _, w in ipairs(some) do w:kill("sigterm") end
    for _, w in ipairs(some) do
      assert.equal(0, (w.process:wait(15 * cluster.patience)), w.label)
    end
    for _, w in ipairs(fleet.shuffled(some)) do w:launch() end
  end
  for _, w in ipairs(workers) do w:answers() end
  fleet.wait_status(workers, "ready", any(m), 60)
  say("%d workers restarted in order, five at a time: all ready after %.2f s", #workers, proc.now() - began)
end

local function drain(m, w)
  for _, availability in ipairs { "drain", "pause", "active" } do
    m[1]:json("node", "update", w.node_id, "--availability", availability)
    for _, each in ipairs(m) do
      cluster.wait_for(availability .. " at " .. each.label, 10, function()
        local row = fleet.rows(each)[w.node_id]
        return row.availability == availability and row.status == "ready", row
      end)
    end
    -- The node itself is told.
    cluster.wait_for(availability .. " at the node", 10, function()
      local s = w:json("block", "status")
      return s.availability == availability and s.status == "ready", s
    end)
  end
end

local function known(m) return fleet.figure(m, "symphony_gossip_known_nodes") end

-- Removed while it runs: until the API refuses its certificate, and until no other node takes its datagrams.
local function remove(t, m, w, others)
  local who = { "--cert", w.dir .. "/tls/node.crt", "--key", w.dir .. "/tls/node.key" }
  local before = {}
  for _, each in ipairs(others) do before[each.label] = known(each) end
  local answer = assert(clients.secure(m[1], who, "GET", "/v1/version"))
  assert.equal(200, answer.status, answer.body)
  m[2]:json("node", "rm", "--force", w.node_id)
  local began, api, gossip = proc.now(), nil, nil
  cluster.wait_for("the removed worker to be cut off", 20, function()
    if not api then
      local refused = true
      for _, each in ipairs(m) do
        local got = clients.secure(each, who, "GET", "/v1/version")
        refused = refused and (not got or got.status == 403)
      end
      api = refused and proc.now() - began
    end
    local left = 0
    for _, each in ipairs(others) do left = left + (known(each) < before[each.label] and 0 or 1) end
    gossip = gossip or left == 0 and proc.now() - began
    return api and gossip, ("the API: %s; %d nodes still know it"):format(api and "cut" or "open", left)
  end)
  say("`node rm` of a running worker: refused at every API after %.2f s, unknown to the gossip of all %d others after "
    .. "%.2f s", api, #others, gossip)
  cluster.wait_for("it to know", 20, function()
    local s = w:json("block", "status")
    return s.state == "removed", s
  end)
  for _, each in ipairs(m) do assert.is_nil(fleet.rows(each)[w.node_id]) end
end

describe("twenty workers", function()
  it(("are what they are called (seed %d)"):format(fleet.seed), cluster.scenario(function(t)
    math.randomseed(fleet.seed)
    local m, away = t:cluster(3, { steady = true }), {}
    fleet.identify(m)
    local w, took = fleet.join(t, N, m)
    say("%d workers joined side by side in %.2f s; ready in `node ls` after %.2f s more", N, took,
      fleet.wait_status(w, "ready", m[1]))
    for _, each in ipairs(m) do fleet.wait_status(w, "ready", each) end
    local all = table.move(m, 1, 3, N + 1, fleet.slice(w, 1, N))
    detection(m, fleet.slice(w, 1, 5), away)
    fleet.wait_status(w, "ready", m[1], 60)
    crash_some(m, fleet.slice(w, 6, 10), away)
    stopped(m, w[11], away)
    fleet.wait_status(w, "ready", m[1], 60)
    restart(m, fleet.slice(w, 11, N))
    drain(m, w[12])
    local others = table.move(m, 1, 3, N, fleet.slice(w, 2, N))
    remove(t, m, w[1], others)
    local left = fleet.slice(w, 2, 3)
    for _, each in ipairs(left) do assert.is_true(each:json("block", "leave").told) end
    for _, each in ipairs(left) do assert.is_nil(fleet.rows(m[1])[each.node_id]) end
    assert.equal(0, (w[4]:stop()))
    fleet.wait_status({ w[4] }, "left", m[1])
    fleet.wait_status(fleet.slice(w, 5, N), "ready", m[1], 60)
    fleet.check_downs(m[2], all, away)
  end))
end)
