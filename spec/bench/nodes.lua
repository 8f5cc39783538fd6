-- The phase "nodes" of the benchmark: thousands of simulated agents (bench_agents: each with its own certificate, TLS
-- connection and watch) against three managers. @b: what run.lua shares (opt, symphony, row, problem, read, ...).
local cjson = require "cjson"
local uv = require "luv"

-- What a manager is taught by the administrator's own hand. A route that writes what a node has to do: that is for
-- services to decide, and there is no public one. And that gossip hears of the agents, which do not speak it: the
-- leader would look after each of them by direct probes otherwise.
local TAUGHT = [[
local router, state = require "symphony.api.router", require "symphony.cluster.state"
router.route("POST", "/v1/bench/assign", { auth = { control = true } }, function(req)
  local body = router.json(req)
  return 200, assert(state.submit { compare = {}, ops = { state.put("/assign/" .. body.node .. "/bench/x",
    { value = body.value }) } })
end)
local gossip, status = require "symphony.cluster.gossip", require "symphony.cluster.status"
local member = gossip.member
function gossip.member(id)
  return member(id) or { node_id = id, state = "alive", age_ms = 0, incarnation = 1, address = "127.0.0.1:1",
    meta = "", info = { role = "worker" } }
end
require("sym.sys").unguarded(function() -- or what it starts would keep the limits of code at a prompt
  status.stop()
  status.start()
end)]]

local SETTLE_S = 5 -- until a manager that has no more to do has given back what it can

return function(b)
  local opt, symphony, row, read = b.opt, b.symphony, b.row, b.read
  local sim

  -- Starts the simulator; its answers go to a file.
  local function start_sim()
    local managers, m = {}, symphony.members[1]
    for i, each in ipairs(symphony.members) do managers[i] = "127.0.0.1:" .. each.remote end
    sim = { log = m.dir .. ".agents", seen = 1 }
    sim.input = assert(io.popen(("exec %s/bench_agents --agents %d --to %s --control %s/control.sock "
      .. "--ca %s/tls/ca.crt --token %s >%s 2>%s.errors"):format(opt.bin, opt.agents, table.concat(managers, ","),
      m.dir, m.dir, symphony.tokens.worker, sim.log, sim.log), "w"))
  end

  -- Its next answer.
  local function answer(seconds)
    local line, to
    b.wait_until("the agents", seconds, function()
      local text = read(sim.log) or ""
      line, to = text:match("([^\n]*)\n()", sim.seen)
      return line
    end)
    sim.seen = to
    return cjson.decode(line)
  end

  local function ask(command, seconds)
    sim.input:write(command, "\n")
    sim.input:flush()
    local figures = answer(seconds or 300)
    if figures.errors > 0 then
      b.problem(("agents: %s: %d errors: %s"):format(command, figures.errors,
        (read(sim.log .. ".errors") or ""):match("bench_agents: [^\n]*")))
    end
    return figures
  end

  local function lua(i, code)
    return symphony.cli(i, "lua -e '" .. code:gsub("'", "'\\''") .. "'")
  end

  local function memory()
    local out = {}
    for i, m in ipairs(symphony.members) do out[i] = b.memory_mib(m.pid) end
    return out
  end

  local function connected()
    local out = {}
    for i in ipairs(symphony.members) do out[i] = tonumber(lua(i, 'require("symphony.cluster.agents").count()')) end
    return out
  end

  -- CPU of each manager while nobody does anything, in % of a core; the largest.
  local function idle_cpu(seconds)
    local before, most = {}, 0
    for i, m in ipairs(symphony.members) do before[i] = b.cpu_seconds { m.pid } end
    uv.sleep(seconds * 1000)
    for i, m in ipairs(symphony.members) do most = math.max(most, b.cpu_seconds { m.pid } - before[i]) end
    return 100 * most / seconds
  end

  -- One manager is killed while somebody puts at another's control socket. Returns how many agents moved, ms until the
  -- last of them was in sync again, and the longest time without an acknowledged put.
  local function storm(victim)
    local before, others, log = connected(), {}, os.tmpname()
    for i, m in ipairs(symphony.members) do
      if i ~= victim then others[#others + 1] = m.dir .. "/control.sock" end
    end
    local puts = b.spawn(symphony.load("gap", "--seconds 600", false, { others[1] }), log)
    b.wait_until("the first put", 15, function() return (read(log) or ""):find("ack %d+ %d+\n") end)
    sim.input:write("storm\n")
    sim.input:flush()
    local at = uv.hrtime() // 1000
    b.stop(symphony.members[victim].pid)
    local figures = answer(120)
    uv.sleep(100)
    b.stop(puts)
    local stall, last = 0, at
    for _, ended in (read(log) or ""):gmatch("ack (%d+) (%d+)\n") do
      ended = tonumber(ended)
      if ended > at then
        stall, last = math.max(stall, (ended - last) / 1000), ended
      end
    end
    os.remove(log)
    if figures.synced ~= opt.agents then b.problem("not all agents came back") end
    return before[victim], figures, stall
  end

  local function bring_back(victim)
    symphony.launch(victim)
    symphony.wait_socket(victim)
    b.wait_until("three voters", 60, function() return symphony.voters() == #symphony.members end)
    lua(victim, TAUGHT)
  end

  local function measure()
    local n = opt.agents
    uv.sleep(SETTLE_S * 1000)
    local bare = memory()
    row("idle CPU of a manager, no agents", "%", { idle_cpu(math.min(opt.idle, 10)) })
    local f = ask "join"
    row(("%d joins, 64 at once"):format(n), "/s", { f.per_second })
    row("  of one, p50", "ms", { f.p50_us / 1000 })
    row("  of one, p99", "ms", { f.p99_us / 1000 })
    -- All at one manager: one that does not lead.
    local leader = symphony.leader()
    local one = leader % #symphony.members + 1
    f = ask("connect " .. one)
    row(("%d agents at one manager: all in sync"):format(n), "s", { f.seconds })
    f = ask "report"
    row(("%d reports"):format(n), "/s", { f.per_second })
    uv.sleep(SETTLE_S * 1000)
    local cpu, now = idle_cpu(opt.idle), memory()
    if connected()[one] ~= n then b.problem "not all agents are connected" end
    row(("%d agents at one manager: its memory for each"):format(n), "KiB", { (now[one] - bare[one]) * 1024 / n }, nil,
      nil, "< 40")
    row("  that of the leader, which knows of them", "KiB", { (now[leader] - bare[leader]) * 1024 / n })
    row("  idle CPU, the busiest of the three", "%", { cpu }, nil, nil, "< 5")
    f = ask("change " .. opt.seconds, opt.seconds + 60)
    row("  one change reaching its agent, p50", "ms", { f.p50_us / 1000 })
    row("  one change reaching its agent, p99", "ms", { f.p99_us / 1000 }, nil, nil, "< 20")
    f = ask "connect"
    row(("%d agents spread over the managers: all in sync"):format(n), "s", { f.seconds })
    f = ask("change " .. opt.seconds, opt.seconds + 60)
    row("  one change reaching its agent, p50", "ms", { f.p50_us / 1000 })
    row("  one change reaching its agent, p99", "ms", { f.p99_us / 1000 }, nil, nil, "< 20")
    if ask("count").synced ~= n then b.problem("not all agents are in sync") end
    for _, who in ipairs { "a follower", "the leader" } do
      local all, half, stalls, moved = {}, {}, {}, nil
      for i = 1, opt.storms do
        ask "connect" -- each storm begins with all of them spread
        local lead = symphony.leader()
        local victim = who == "the leader" and lead or lead % #symphony.members + 1
        local figures
        moved, figures, stalls[i] = storm(victim)
        all[i], half[i] = figures.seconds * 1000, figures.p50_us / 1000
        bring_back(victim)
      end
      row(("kill -9 of %s, %d agents move, all in sync"):format(who, moved), "ms", all)
      row("  of one, p50", "ms", half)
      row("  longest time without a put meanwhile", "ms", stalls)
    end
  end

  b.clear(symphony)
  symphony.start(3)
  for i in ipairs(symphony.members) do lua(i, TAUGHT) end
  start_sim()
  local ok, err = xpcall(function()
    answer(60)
    measure()
  end, debug.traceback)
  sim.input:close() -- and it ends
  if not ok then error(err, 0) end
  os.remove(sim.log)
  os.remove(sim.log .. ".errors")
  b.clear(symphony)
end
