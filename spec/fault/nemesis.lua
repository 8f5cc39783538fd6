-- What happens to the managers: one thing after the other, each undone before the next.
local proc = require "spec.support.proc"

local M = {}

local function any(list) return list[math.random(#list)] end

local function index_of(t, m)
  for i, each in ipairs(t.managers) do
    if each == m then return i end
  end
end

-- Each takes (t, net) and returns what it did and how it is undone.
local faults = {}

local function crash(t, victims)
  local names = {}
  for i, m in ipairs(victims) do
    m:kill("sigkill")
    names[i] = m.label
  end
  for _, m in ipairs(victims) do assert(m.process:wait(10)) end
  return "kill -9 of " .. table.concat(names, ", "), function()
    for _, m in ipairs(victims) do m:start() end
  end
end

function faults.crash_leader(t) return crash(t, { (t:leader()) }) end
function faults.crash_any(t) return crash(t, { any(t.managers) }) end
function faults.crash_two(t)
  local leader, others = t:leader()
  return crash(t, { leader, any(others) })
end
function faults.crash_all(t) return crash(t, t.managers) end

local function pause(m)
  m:kill("sigstop")
  m.paused = true
  return "SIGSTOP of " .. m.label, function()
    m:kill("sigcont")
    m.paused = nil
  end
end

function faults.pause_leader(t) return pause((t:leader())) end
function faults.pause_any(t) return pause(any(t.managers)) end

function faults.restart_leader(t)
  local m = t:leader()
  assert(m:stop() == 0, "SIGTERM did not give exit code 0")
  return "SIGTERM of " .. m.label, function() m:start() end
end

function faults.transfer(t)
  local m = t:leader()
  m:cli("manager", "transfer")
  return "transfer from " .. m.label, function() end
end

local partitions = {}

function partitions.isolate_leader(t, net)
  local m = t:leader()
  net:isolate(index_of(t, m))
  return m.label .. " (leader) is cut off", function() net:heal() end
end

function partitions.isolate_any(t, net)
  local m = any(t.managers)
  net:isolate(index_of(t, m))
  return m.label .. " is cut off", function() net:heal() end
end

function partitions.cut_pair(_, net)
  local a = math.random(net.n)
  local b = (a + math.random(net.n - 1) - 1) % net.n + 1
  net:cut(a, b)
  net:cut(b, a)
  return ("manager-%02d and manager-%02d do not see each other"):format(a, b), function() net:heal() end
end

function partitions.cut_one_way(_, net)
  local a = math.random(net.n)
  local b = (a + math.random(net.n - 1) - 1) % net.n + 1
  net:cut(a, b)
  return ("what manager-%02d sends to manager-%02d is lost"):format(a, b), function() net:heal() end
end

function partitions.isolate_and_crash(t, net)
  local leader, others = t:leader()
  net:isolate(index_of(t, leader))
  local what, undo = crash(t, { any(others) })
  return leader.label .. " (leader) is cut off, " .. what, function()
    net:heal()
    undo()
  end
end

-- Names of all faults that can be done here, in random order, again and again.
function M.schedule(net)
  local names, n = {}, 0
  return function()
    if n == 0 then
      names = {}
      for _, set in ipairs { faults, net and partitions or {} } do
        for name, fault in pairs(set) do names[#names + 1] = { name = name, run = fault } end
      end
      table.sort(names, function(a, b) return a.name < b.name end)
      for i = #names, 2, -1 do
        local j = math.random(i)
        names[i], names[j] = names[j], names[i]
      end
      n = #names
    end
    n = n - 1
    return names[n + 1]
  end
end

-- Does one and undoes it after a while. Returns what it was.
function M.strike(fault, t, net)
  local what, undo = fault.run(t, net)
  proc.run_for(0.2 + 2 * math.random())
  undo()
  return what
end

return M
