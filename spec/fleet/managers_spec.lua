-- Twenty workers whose managers are killed, stopped and restarted: they go to another one, and none is called down.
local cluster = require "spec.support.cluster"
local fleet = require "spec.support.fleet"
local proc = require "spec.support.proc"

local say = fleet.say
local N = 20

-- @away: for how many seconds there is no manager.
local function all_at_once(t, m, w, away)
  fleet.crash(m)
  proc.run_for(away)
  for _, each in ipairs(w) do assert.is_true(each:is_running()) end
  local began = proc.now()
  for _, each in ipairs(m) do each:launch() end
  for _, each in ipairs(m) do each:answers() end
  local started = proc.now()
  t:wait_voters(3, m[1])
  local led = proc.now() - started
  local back = fleet.wait_agents(m, N, started)
  fleet.wait_status(w, "ready", m[1])
  say("no manager for %d s: started again they answer after %.2f s, have a leader after %.2f s more, all %d workers "
    .. "after %.2f s", away, started - began, led, N, back)
end

-- @lost is killed: its agents are with the others. It is started again.
local function kill_one(t, m, what, lost)
  local others = {}
  for _, each in ipairs(m) do
    if each ~= lost then others[#others + 1] = each end
  end
  local had, began = fleet.figure(lost, "symphony_agents"), proc.now()
  lost:crash()
  local back = fleet.wait_agents(others, N, began)
  say("%s killed: its %d workers are with the others after %.2f s, down is said after %.2f s", what, had, back,
    fleet.wait_status({ lost }, "down", others[1], 60, began))
  lost:start()
  t:wait_voters(3, others[1])
  fleet.wait_status(m, "ready", others[1], 60)
end

local function stop_one(t, m, what, lost)
  local witness = lost == m[1] and m[2] or m[1]
  local began = proc.now()
  lost:kill("sigstop")
  lost.paused = true
  local down = fleet.wait_status({ lost }, "down", witness, 60, began)
  began = proc.now()
  lost:kill("sigcont")
  lost.paused = nil
  say("SIGSTOP of %s: down after %.2f s, SIGCONT: ready after %.2f s", what, down,
    fleet.wait_status(m, "ready", witness, 60, began))
  t:wait_voters(3, witness)
end

describe("twenty workers whose managers fail", function()
  it("stay ready", cluster.scenario(function(t)
    local m = t:cluster(3)
    fleet.identify(m)
    local w, took = fleet.join(t, N, m)
    say("%d workers joined side by side in %.2f s", N, took)
    fleet.wait_status(w, "ready", m[1])
    local away = {}
    local function lost(one, times)
      away[one.node_id] = (away[one.node_id] or 0) + (times or 1)
      return one
    end
    for _, seconds in ipairs { 0, 15 } do
      all_at_once(t, m, w, seconds)
      for _, each in ipairs(m) do lost(each) end -- a new leader may have looked before they were back
    end
    local _, followers = t:leader()
    local busier = fleet.figure(followers[1], "symphony_agents") >= fleet.figure(followers[2], "symphony_agents")
    kill_one(t, m, "a follower", lost(followers[busier and 1 or 2]))
    kill_one(t, m, "the leader", lost((t:leader())))
    _, followers = t:leader()
    stop_one(t, m, "a follower", lost(followers[1]))
    stop_one(t, m, "the leader", lost((t:leader())))
    -- The one that leads now finds a dead worker like the one before.
    local began = proc.now()
    lost(w[1]):crash()
    say("after all that, a worker killed: down after %.2f s", fleet.wait_status({ w[1] }, "down", m[1], 40, began))
    fleet.wait_status(fleet.slice(w, 2, N), "ready", m[1])
    fleet.check_downs(m[1], table.move(m, 1, 3, N + 1, fleet.slice(w, 1, N)), away)
  end))
end)
