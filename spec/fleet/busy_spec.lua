-- Two of twenty nodes have next to no processor left: they are slow, and not down.
--
-- SYMPHONY_FLEET_SECONDS: how long (20).
local cluster = require "spec.support.cluster"
local fleet = require "spec.support.fleet"
local proc = require "spec.support.proc"

local seconds = tonumber(os.getenv("SYMPHONY_FLEET_SECONDS")) or 20
local N, BUSY, HOGS, NICE = 20, 2, 4, 10

-- The processors that we may use, as taskset takes them.
local function processors()
  local list = {}
  for part in proc.read_file("/proc/self/status"):match("Cpus_allowed_list:%s*(%S+)"):gmatch("[^,]+") do
    local first, last = part:match("^(%d+)%-?(%d*)$")
    for cpu = math.tointeger(first), math.tointeger(last) or math.tointeger(first) do list[#list + 1] = cpu end
  end
  return list
end

local function cpu_seconds(pid)
  local fields = {}
  for word in proc.read_file(("/proc/%d/stat"):format(pid)):match("%) (.*)"):gmatch("%S+") do
    fields[#fields + 1] = word
  end
  return (tonumber(fields[12]) + tonumber(fields[13])) / 100
end

describe("two of twenty workers", function()
  it(("at 100 %% of a processor for %d s are not called down"):format(seconds), cluster.scenario(function(t)
    local cpus = processors()
    local crowded = tostring(table.remove(cpus))
    local rest = #cpus > 0 and table.concat(cpus, ",") or crowded
    local elsewhere, there = { "taskset", "-c", rest }, { "nice", "-n", tostring(NICE), "taskset", "-c", crowded }
    local m = t:cluster(3, { make = function() return t:manager { prefix = elsewhere } end })
    fleet.identify(m)
    local w = fleet.join(t, N, m, function(i) return t:worker { prefix = i <= BUSY and there or elsewhere } end)
    fleet.wait_status(w, "ready", m[1])
    local hogs = {}
    for i = 1, HOGS do
      hogs[i] = proc.spawn({ "taskset", "-c", crowded, "sh", "-c", "while :; do :; done" }, { log = "/dev/null" })
    end
    local began, looks, away = proc.now(), 0, {}
    while proc.now() - began < seconds do
      proc.run_for(0.5)
      for id, row in pairs(fleet.rows(m[looks % 3 + 1])) do
        if row.status ~= "ready" then away[id] = row.reason or row.status end
      end
      looks = looks + 1
    end
    local passed, spent = proc.now() - began, 0
    for _, hog in ipairs(hogs) do
      spent = spent + cpu_seconds(hog.pid)
      assert.is_nil(hog.code)
    end
    for _, hog in ipairs(hogs) do hog:kill("sigkill") end
    for _, hog in ipairs(hogs) do hog:wait(10) end
    fleet.say("%d nodes for %.0f s, %d of them (nice %d) with %d busy processes that used %.0f %% of their processor:",
      N + 3, passed, BUSY, NICE, HOGS, spent / passed * 100)
    for i = 1, BUSY + 1 do
      local function figure(name) return fleet.figure(w[i], "symphony_gossip_" .. name .. "_total") end
      fleet.say("  %s %s: %d ticks late by %.2f s together, %d refutations, %d of %d probes failed", w[i].label,
        i <= BUSY and "(busy)" or "(not busy)", figure "stalls", figure "stalled_seconds", figure "refutations",
        figure "probes_failed", figure "probes")
    end
    local downs = 0
    for _, n in pairs(fleet.counted(m[1], "node.down")) do downs = downs + n end
    fleet.say("  false downs: %d", downs)
    assert.same({}, away)
    fleet.check_downs(m[1], table.move(m, 1, 3, N + 1, fleet.slice(w, 1, N)), {})
    assert.equal(0, downs)
    assert.is_true(spent > passed / 4, "the processor was not busy")
  end))
end)
