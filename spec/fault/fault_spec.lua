-- Concurrent clients while managers are killed, stopped, restarted and cut off from each other: every history must be
-- linearizable, and the cluster must come back from each fault by itself.
--
-- SYMPHONY_FAULT_SECONDS: how long (60). SYMPHONY_FAULT_SEED: to repeat the order of faults (timing stays its own).
local clients = require "spec.fault.clients"
local cluster = require "spec.support.cluster"
local nemesis = require "spec.fault.nemesis"
local network = require "spec.fault.network"
local proc = require "spec.support.proc"

local seconds = tonumber(os.getenv("SYMPHONY_FAULT_SECONDS")) or 60
local seed = tonumber(os.getenv("SYMPHONY_FAULT_SEED")) or os.time()
local N = 3

local function say(...)
  io.write((...):format(select(2, ...)), "\n")
  io.flush()
end

local function counts(notes)
  local list = {}
  for note, n in pairs(notes) do list[#list + 1] = ("%s %d"):format(note, n) end
  table.sort(list)
  return table.concat(list, ", ")
end

-- Waits until every manager answers again; the seconds until then.
local function recovered(t, load, what)
  local began = proc.now()
  local before = {}
  for _, m in ipairs(t.managers) do before[m.label] = load.done_via[m.label] or 0 end
  local missing
  local ok = proc.pump(25 * cluster.patience, function()
    missing = nil
    for _, m in ipairs(t.managers) do
      if (load.done_via[m.label] or 0) < before[m.label] + 3 then missing = m.label end
    end
    return not missing or load.failure
  end)
  if load.failure then error(load.failure, 0) end
  if not ok then error(("after %s: %s does not serve (%s)"):format(what, missing, counts(load.notes)), 0) end
  return proc.now() - began
end

local function run(t, net)
  math.randomseed(seed)
  t:cluster(N, {
    make = function(i)
      return net and t:manager { address = net:address(i), prefix = net:prefix(i) } or t:manager()
    end,
  })
  local load = clients.start(t.managers, 8, 1.5 * cluster.patience)
  local began, slowest, n = proc.now(), 0, 0
  local next_fault = nemesis.schedule(net)
  recovered(t, load, "the start")
  while proc.now() - began < seconds do
    local what = nemesis.strike(next_fault(), t, net)
    local took = recovered(t, load, what)
    n, slowest = n + 1, math.max(slowest, took)
    say("%5.1f s  %-60s all serve again after %.1f s", proc.now() - began, what, took)
  end
  load:stop(60 * cluster.patience)
  say("seed %d: %d faults, %d calls on %d keys are linearizable, %d of them of unknown outcome", seed, n,
    load.checked_calls, load.checked_keys, load.unknown)
  say("%d calls were refused; slowest recovery %.1f s; answers: %s", load.refused, slowest, counts(load.notes))
  assert.is_true(load.checked_calls > 10 * seconds, "too few calls to tell anything")
end

describe("three managers under faults", function()
  local net, why = network.new(N)
  if not net then say("no network namespaces here (%s): nobody is cut off", (why:gsub("%s+$", ""))) end

  it(("stay linearizable for %d s (seed %d)"):format(seconds, seed), cluster.scenario(function(t) run(t, net) end))

  if net then
    teardown(function() net:close() end)
  else
    pending("with partitions (they take root)")
  end
end)
