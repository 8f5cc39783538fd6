-- Many nodes at once: started and joined side by side, looked at often, and what was said of them in the end.
local cluster = require "spec.support.cluster"
local json = require "spec.support.json"
local prometheus = require "spec.support.prometheus"
local proc = require "spec.support.proc"

local M = {}

-- SYMPHONY_FLEET_SEED: to repeat the order of what happens (timing stays its own).
M.seed = tonumber(os.getenv("SYMPHONY_FLEET_SEED")) or os.time()

function M.say(...)
  io.write(("  "):rep(2), (...):format(select(2, ...)), "\n")
  io.flush()
end

-- @list in another order.
function M.shuffled(list)
  local out = table.move(list, 1, #list, 1, {})
  for i = #out, 2, -1 do
    local j = math.random(i)
    out[i], out[j] = out[j], out[i]
  end
  return out
end

-- @list from @first to @last.
function M.slice(list, first, last)
  return table.move(list, first, last, 1, {})
end

function M.median(list)
  local sorted = table.move(list, 1, #list, 1, {})
  table.sort(sorted)
  return (sorted[(#sorted + 1) // 2] + sorted[#sorted // 2 + 1]) / 2
end

-- Starts all of @list side by side; they answer when this returns.
function M.start(list)
  for _, m in ipairs(list) do m:launch() end
  for _, m in ipairs(list) do m:answers() end
end

-- kill -9 of all of @list, and gone when this returns.
function M.crash(list)
  for _, m in ipairs(list) do m:kill("sigkill") end
  for _, m in ipairs(list) do assert(m.process:wait(10), "SIGKILL did not end " .. m.label) end
end

-- @n workers, started and joined side by side, each by way of another one of @managers. @make(i): gives one that is not
-- started. The seconds that the joins took are the second result.
function M.join(t, n, managers, make)
  local list, calls = {}, {}
  for i = 1, n do list[i] = make and make(i) or t:worker() end
  M.start(list)
  local began = proc.now()
  for i, w in ipairs(list) do
    calls[i] = proc.begin { cluster.symphony, "--socket", w.socket, "--json", "block", "join",
      managers[(i - 1) % #managers + 1]:remote(), "--token", t.tokens.worker }
  end
  local function ended()
    for _, call in ipairs(calls) do
      if not call.ended() then return false end
    end
    return true
  end
  if not proc.pump(60 * cluster.patience, ended) then error("the joins do not end", 2) end
  for i, call in ipairs(calls) do
    local joined = call.process.code == 0 and json.decode(call.out)
    if not joined then error(("%s: join gave code %s\n%s%s"):format(list[i].label, call.process.code, call.out,
      call.err), 2) end
    list[i].node_id, list[i].name = joined.node_id, joined.name
  end
  return list, proc.now() - began
end

-- What `node ls` shows at @m, by node id; asked for without a process of its own, and without a quorum as well.
function M.rows(m)
  local answer = assert(m:http("GET", "/v1/nodes?stale=ok"))
  assert(answer.status == 200 and type(answer.json) == "table", answer.body)
  local rows = {}
  for _, row in ipairs(answer.json.nodes or answer.json) do rows[row.node_id] = row end
  return rows
end

-- Waits until manager @m calls every one of @list @status; the seconds that this took since @began (now).
function M.wait_status(list, status, m, seconds, began)
  began = began or proc.now()
  cluster.wait_for(("%d nodes to be %s"):format(#list, status), seconds or 30, function()
    local rows, wrong = M.rows(m), {}
    for _, w in ipairs(list) do
      local row = rows[w.node_id]
      if not row or row.status ~= status then
        wrong[#wrong + 1] = ("%s is %s"):format(w.label, row and row.status or "unknown")
      end
    end
    return #wrong == 0, table.concat(wrong, ", ")
  end)
  return proc.now() - began
end

-- The value of figure @name at @m, whose labels are @labels; 0 when it has none.
function M.figure(m, name, labels)
  local answer = assert(m:http("GET", "/metrics", nil, { timeout = 10 * cluster.patience }))
  local family, sum = prometheus.parse(answer.body)[name], 0
  for _, sample in ipairs(family and family.samples or {}) do
    local fits = true
    for k, v in pairs(labels or {}) do fits = fits and sample.labels[k] == v end
    if fits then sum = sum + sample.value end
  end
  return sum
end

-- Waits until @n agents are connected to @managers together; the seconds since @began.
function M.wait_agents(managers, n, began)
  cluster.wait_for(n .. " agents to be connected", 30, function()
    local sum = 0
    for _, m in ipairs(managers) do sum = sum + M.figure(m, "symphony_agents") end
    return sum == n, sum
  end)
  return proc.now() - (began or proc.now())
end

-- How often each node was called @kind ("node.down") so far, by node id, as @m shows.
function M.counted(m, kind)
  local counts = {}
  for _, event in ipairs(m:json("events")) do
    if event.kind == kind then counts[event.node_id] = (counts[event.node_id] or 0) + 1 end
  end
  return counts
end

-- Nobody was called down but those that @allowed (node id -> how often) says.
function M.check_downs(m, all, allowed)
  local wrong = {}
  local counts = M.counted(m, "node.down")
  for _, node in ipairs(all) do
    local n, most = counts[node.node_id] or 0, allowed[node.node_id] or 0
    if n > most then
      wrong[#wrong + 1] = ("%s was called down %d times, and %d times it was away"):format(node.label, n, most)
    end
  end
  if #wrong > 0 then
    for _, event in ipairs(m:json("events")) do
      M.say("event %s %s %s %s", event.at, event.kind, event.name or "", event.message or "")
    end
    error(table.concat(wrong, "\n"), 2)
  end
end

-- Managers know their own ids.
function M.identify(managers)
  for _, m in ipairs(managers) do m.node_id = m:json("manager", "status").node_id end
end

return M
