-- The benchmark of scripts/bench: symphony beside etcd, three members each, on loopback and one disk, interleaved runs.
-- Prints a table of medians, spreads and ratios, and writes everything measured as JSON. Judges nothing; but a figure
-- that could not be had, or came with errors, says so, and then it ends with status 1.
--
-- Besides what scripts/bench says: --keys N --rest S --load S, for the memory: keys in it, seconds until it is at rest,
-- seconds of a load; --idle S, for the nodes: seconds of which the CPU is taken; --storms N, kills of a follower,
-- and of the leader; --dir DIR, where the data goes;
-- --daemon OPTIONS, more of them for symphonyd, in one word.
local uv = require "luv"
local cjson = require "cjson"

local opt = { runs = 5, seconds = 3, failovers = 20, keys = 100000, rest = 10, load = 20, agents = 2000, idle = 30,
  storms = 5,
  daemon = "", bin = "build/bin", dir = "build", out = "build/bench.json", what = {} }
do
  local i = 1
  while i <= #arg do
    local name = arg[i]:match("^%-%-(.+)$")
    if name then
      opt[name] = tonumber(arg[i + 1]) or arg[i + 1]
      i = i + 2
    else
      opt.what[arg[i]] = true
      i = i + 1
    end
  end
end
local all = next(opt.what) == nil
local function wanted(what) return all or opt.what[what] end

-- --- processes ------------------------------------------------------------------------------------------------------

local function read(path)
  local f = io.open(path)
  local text = f and f:read("a")
  if f then f:close() end
  return text
end

local function sh(command)
  local p = assert(io.popen(command .. " 2>&1"))
  local text = p:read("a")
  local ok = p:close()
  return ok, text
end

local function must(command)
  local ok, text = sh(command)
  if not ok then error(command .. "\n" .. text, 2) end
  return text
end

-- Where the data of both goes: a real disk, or the cost of making it durable would not show.
local disk = must("df --output=fstype,source " .. opt.dir):match("\n(.-)%s*$"):gsub("%s+", " ")
if disk:find("^tmpfs") or disk:find("^ramfs") then
  print(opt.dir .. " is in memory (" .. disk .. "): give a folder on a disk with --dir")
  os.exit(1)
end
local root = must("realpath $(mktemp -d " .. opt.dir .. "/bench-data.XXXXXX)"):gsub("%s+$", "")
local running = {} -- pid -> true
local n_folders = 0

-- An empty folder for one member's data.
local function folder(name)
  n_folders = n_folders + 1
  local path = ("%s/%s-%d"):format(root, name, n_folders)
  must("mkdir " .. path)
  return path
end

local function spawn(command, log)
  local pid = tonumber(must(string.format("sh -c 'exec %s >>%s 2>&1 </dev/null & echo $!'", command, log)))
  running[pid] = true
  return pid
end

-- Until its last thread has gone a process holds its locks and ports, also as a zombie.
local function alive(pid)
  local fields = {}
  for field in ((read("/proc/" .. pid .. "/stat") or ""):match("%) (.*)") or ""):gmatch("%S+") do
    fields[#fields + 1] = field
  end
  return fields[1] ~= nil and (fields[1] ~= "Z" or tonumber(fields[18]) > 1)
end

local function wait_until(what, seconds, condition)
  local deadline = uv.hrtime() + seconds * 1e9
  while true do
    local result = condition()
    if result then return result end
    if uv.hrtime() > deadline then error("waited in vain for " .. what) end
    uv.sleep(5)
  end
end

local function stop(pid, signal)
  if pid and running[pid] then
    uv.kill(pid, signal or "sigkill")
    running[pid] = nil
    wait_until("the end of " .. pid, 15, function() return not alive(pid) end)
  end
end

local function free_port()
  local tcp = uv.new_tcp()
  tcp:bind("127.0.0.1", 0)
  local port = tcp:getsockname().port
  tcp:close()
  uv.run("nowait")
  return port
end

local function cpu_seconds(pids)
  local total = 0
  for _, pid in ipairs(pids) do
    local fields = (read("/proc/" .. pid .. "/stat") or ""):match("%) (.*)")
    local n = 0
    for field in (fields or ""):gmatch("%S+") do
      n = n + 1
      if n == 12 or n == 13 then total = total + tonumber(field) / 100 end
    end
  end
  return total
end

local function memory_mib(pid)
  local text = read("/proc/" .. pid .. "/smaps_rollup") or ""
  local function kib(name) return tonumber(text:match("\n" .. name .. ":%s+(%d+)") or 0) end
  return (kib("Private_Clean") + kib("Private_Dirty")) / 1024, kib("Pss") / 1024
end

local results -- see below
local function problem(text)
  print("  !! " .. text)
  results.problems[#results.problems + 1] = text
end

-- --- the two clusters -----------------------------------------------------------------------------------------------

local symphony = { name = "symphony", members = {} }
local etcd = { name = "etcd", members = {} }

function symphony.try(i, args)
  return sh(string.format("%s/symphony --socket %s/control.sock %s", opt.bin, symphony.members[i].dir, args))
end

function symphony.cli(i, args)
  local ok, text = symphony.try(i, args)
  return ok and text or error(args .. "\n" .. text, 2)
end

function symphony.launch(i)
  local m = symphony.members[i]
  m.pid = spawn(string.format("%s/symphonyd manager --config-dir %s --bind-addr 127.0.0.1 " ..
    "--advertise-addr 127.0.0.1 --listen-raft-port %d --listen-remote-port %d --listen-gossip-port %d %s",
    opt.bin, m.dir, m.raft, m.remote, m.gossip, opt.daemon), m.dir .. ".log")
end

function symphony.wait_socket(i)
  wait_until("the control socket", 10, function()
    return (symphony.try(i, "version"))
  end)
end

function symphony.voters()
  local ok, text = symphony.try(1, "--json manager members")
  local voters = 0
  for _, m in ipairs(ok and cjson.decode(text) or {}) do
    if m.raft_role == "voter" then voters = voters + 1 end
  end
  return voters
end

function symphony.start(n)
  for i = 1, n do
    symphony.members[i] = {
      dir = folder "symphony" .. "/config", raft = free_port(), remote = free_port(), gossip = free_port(),
    }
    symphony.launch(i)
  end
  for i = 1, n do symphony.wait_socket(i) end
  local began = uv.hrtime()
  local init = cjson.decode(symphony.cli(1, "--json manager init"))
  symphony.tokens = init.tokens
  for i = 2, n do
    symphony.cli(i, string.format("manager join 127.0.0.1:%d --token %s", symphony.members[1].remote,
      init.tokens.manager))
  end
  wait_until("three voters", 60, function() return symphony.voters() == n end)
  return (uv.hrtime() - began) / 1e9
end

-- Both: ends the cluster and removes its data.
local function clear(cluster)
  for _, m in ipairs(cluster.members) do
    stop(m.pid)
    must("rm -rf " .. m.dir .. " " .. m.dir .. ".log")
  end
  cluster.members = {}
end

-- How many keys member @i has.
function symphony.keys(i)
  return cjson.decode(symphony.cli(i, "--json manager status")).keys
end

function symphony.leader()
  return wait_until("a leader", 30, function()
    for i, m in ipairs(symphony.members) do
      if running[m.pid] then
        local ok, text = symphony.try(i, "--json manager members")
        for _, member in ipairs(ok and cjson.decode(text) or {}) do
          if member.leader and member.reachable then
            for j, other in ipairs(symphony.members) do
              if member.raft_address == "127.0.0.1:" .. other.raft and running[other.pid] then return j end
            end
          end
        end
      end
      if i == #symphony.members then uv.sleep(20) end
    end
  end)
end

function symphony.targets(tls)
  local list = {}
  for _, m in ipairs(symphony.members) do
    list[#list + 1] = tls and "127.0.0.1:" .. m.remote or m.dir .. "/control.sock"
  end
  return list
end

function symphony.load(op, args, tls, only)
  local targets = only or symphony.targets(tls)
  local m = symphony.members[1]
  local base = symphony.operator or m.dir .. "/tls/node" -- of certificate and key
  local certs = tls and ("--cert %s.crt --key %s.key --ca %s/tls/ca.crt"):format(base, base, m.dir) or ""
  return string.format("%s/bench_load %s --to %s %s %s", opt.bin, op, table.concat(targets, ","), certs, args)
end

local function certificates()
  local dir = folder "pki"
  must(string.format([[cd %s && openssl ecparam -name prime256v1 -genkey -noout -out ca.key &&
    openssl req -x509 -new -key ca.key -subj /CN=bench -days 2 -out ca.crt &&
    openssl ecparam -name prime256v1 -genkey -noout -out node.key &&
    openssl req -new -key node.key -subj /CN=bench -out node.csr &&
    printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n' >ext &&
    openssl x509 -req -in node.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out node.crt]], dir))
  return dir
end

function etcd.launch(i)
  local m = etcd.members[i]
  local scheme = etcd.tls and "https" or "http"
  local peers = {}
  for j, other in ipairs(etcd.members) do
    peers[j] = string.format("m%d=%s://127.0.0.1:%d", j, scheme, other.peer)
  end
  local tls = etcd.tls and ("--cert-file=DIR/node.crt --key-file=DIR/node.key --trusted-ca-file=DIR/ca.crt " ..
    "--client-cert-auth --peer-cert-file=DIR/node.crt --peer-key-file=DIR/node.key " ..
    "--peer-trusted-ca-file=DIR/ca.crt --peer-client-cert-auth"):gsub("DIR", etcd.pki) or ""
  m.pid = spawn(string.format("etcd --name m%d --data-dir %s --listen-client-urls %s://127.0.0.1:%d " ..
    "--advertise-client-urls %s://127.0.0.1:%d --listen-peer-urls %s://127.0.0.1:%d --initial-advertise-peer-urls " ..
    "%s://127.0.0.1:%d --initial-cluster %s --initial-cluster-state new --log-level error %s", i, m.dir, scheme,
    m.client, scheme, m.client, scheme, m.peer, scheme, m.peer, table.concat(peers, ","), tls), m.dir .. ".log")
end

function etcd.start(n, tls)
  etcd.tls = tls
  etcd.pki = etcd.pki or certificates()
  etcd.members = {}
  for i = 1, n do
    etcd.members[i] = { dir = folder "etcd" .. "/data", client = free_port(), peer = free_port() }
  end
  for i = 1, n do etcd.launch(i) end
  etcd.leader()
end

function etcd.ctl(i, args)
  local m = etcd.members[i]
  local tls = etcd.tls and string.format("--cacert %s/ca.crt --cert %s/node.crt --key %s/node.key", etcd.pki, etcd.pki,
    etcd.pki) or ""
  return sh(string.format("ETCDCTL_API=3 etcdctl --command-timeout=2s --endpoints %s://127.0.0.1:%d %s %s",
    etcd.tls and "https" or "http", m.client, tls, args))
end

function etcd.keys(i)
  local _, text = etcd.ctl(i, "get bench/ --prefix --keys-only --limit 1 -w json")
  return tonumber(text:match('"count":(%d+)')) or 0
end

function etcd.leader()
  return wait_until("etcd's leader", 30, function()
    for i, m in ipairs(etcd.members) do
      if running[m.pid] then
        local ok, text = etcd.ctl(i, "endpoint status -w json")
        local at = ok and text:find("[", 1, true)
        local status = at and cjson.decode(text:sub(at))[1]
        if status and status.Status.leader == status.Status.header.member_id then return i end
      end
    end
  end)
end

function etcd.load(op, args, tls, only)
  local targets = only or {}
  if not only then
    for i, m in ipairs(etcd.members) do targets[i] = "127.0.0.1:" .. m.client end
  end
  local certs = tls and ("-cert DIR/node.crt -key DIR/node.key -ca DIR/ca.crt"):gsub("DIR", etcd.pki) or ""
  return string.format("%s/etcd_load %s -to %s %s %s", opt.bin, op, table.concat(targets, ","), certs,
    (args:gsub("%-%-", "-")))
end

local function pids(cluster)
  local list = {}
  for i, m in ipairs(cluster.members) do list[i] = m.pid end
  return list
end

-- --- figures --------------------------------------------------------------------------------------------------------

results = { runs = opt.runs, seconds = opt.seconds, disk = disk, rows = {}, problems = {} }

local function median(list)
  local sorted = { table.unpack(list) }
  table.sort(sorted)
  return (sorted[(#sorted + 1) // 2] + sorted[#sorted // 2 + 1]) / 2, sorted[1], sorted[#sorted]
end

-- Those of the figures that are some. (JSON has no others, and one of them must not lose all.)
local function finite(list)
  local out = {}
  for _, v in ipairs(list or {}) do
    if v == v and v > -math.huge and v < math.huge then out[#out + 1] = v end
  end
  return out
end

-- @aim: text that says what it should be.
local function row(name, unit, ours, theirs, better, aim)
  ours, theirs = finite(ours), finite(theirs)
  local entry = { name = name, unit = unit, symphony = ours, etcd = #theirs > 0 and theirs or nil, aim = aim }
  local line = ("%-44s "):format(name .. ", " .. unit)
  local function add(list)
    local m, least, most = median(list)
    local samples = #list == 1 and "one sample" or ("%.4g .. %.4g"):format(least, most)
    line = line .. ("%10.4g  [%s]"):format(m, samples)
    return m
  end
  if #ours > 0 then entry.symphony_median = add(ours) else line = line .. "no figure" end
  if #theirs > 0 then
    line = line .. "  etcd "
    entry.etcd_median = add(theirs)
    local m, tm = entry.symphony_median, entry.etcd_median
    if m and m > 0 and tm > 0 then
      entry.ratio = better == "more" and m / tm or tm / m
      line = line .. ("  %.2fx"):format(entry.ratio)
    end
  end
  if aim then line = line .. "  aim " .. aim end
  print(line)
  io.stdout:flush()
  results.rows[#results.rows + 1] = entry
end

-- Ends whatever runs: the next phase begins with clusters of its own.
local function phase(name, body)
  local ok, err = xpcall(body, debug.traceback)
  if not ok then
    problem(name .. " came to an end: " .. err)
    for _, cluster in ipairs { symphony, etcd } do
      for _, m in ipairs(cluster.members) do
        stop(m.pid)
      end
      cluster.members = {}
    end
    for pid in pairs(running) do stop(pid) end
  end
end

-- Both clusters are there: those of the phase before if they are such.
local function both(tls)
  if #symphony.members ~= 3 then symphony.start(3) end
  if #etcd.members ~= 3 or etcd.tls ~= tls then
    clear(etcd)
    etcd.start(3, tls)
  end
end

local function run_load(cluster, op, args, tls)
  local before = cpu_seconds(pids(cluster))
  local text = must(cluster.load(op, args, tls))
  local figures = cjson.decode(text:match("(%b{})%s*$"))
  -- The first fifth is not counted as operations.
  figures.server_cpu_us = (cpu_seconds(pids(cluster)) - before) * 1e6 / math.max(1, figures.ops * 1.2)
  figures.client_cpu_us = figures.client_cpu_seconds * 1e6 / math.max(1, figures.ops * 1.2)
  if figures.errors > 0 or figures.ops == 0 then
    problem(("%s %s %s: %d operations, %d errors"):format(cluster.name, op, args, figures.ops, figures.errors))
  end
  return figures.ops > 0 and figures or {}
end

-- symphony has no plain TCP door: this is not like for like, and the name says so.
local PLAIN = "control socket, raft keeps TLS; etcd: TCP, no TLS"

local function throughput(op, clients, tls)
  local args = string.format("--clients %d --seconds %g", clients, opt.seconds)
  local figures = { symphony = {}, etcd = {} }
  for _ = 1, opt.runs do
    for _, cluster in ipairs { symphony, etcd } do
      local f = run_load(cluster, op, args, tls)
      for name, value in pairs(f) do
        local list = figures[cluster.name][name] or {}
        list[#list + 1] = value
        figures[cluster.name][name] = list
      end
    end
  end
  local label = string.format("%s, %d client%s%s", op, clients, clients == 1 and "" or "s",
    tls and "" or " (" .. PLAIN .. ")")
  row(label, "/s", figures.symphony.per_second, figures.etcd.per_second, "more")
  row(label .. " p50", "us", figures.symphony.p50_us, figures.etcd.p50_us, "less")
  row(label .. " p99", "us", figures.symphony.p99_us, figures.etcd.p99_us, "less")
  row(label .. " server CPU each", "us", figures.symphony.server_cpu_us, figures.etcd.server_cpu_us, "less")
  row(label .. " client CPU each", "us", figures.symphony.client_cpu_us, figures.etcd.client_cpu_us, "less")
end

-- Time from a signal to the leader until the first put that began after it is acknowledged.
local function failover(cluster, signal, tls)
  local times = {}
  for _ = 1, opt.failovers do
    local leader = cluster.leader()
    local others = {}
    for i, m in ipairs(cluster.members) do
      if i ~= leader then others[#others + 1] = "127.0.0.1:" .. (m.remote or m.client) end
    end
    local log = os.tmpname()
    local pid = spawn(cluster.load("gap", "--seconds 6", tls, others), log)
    wait_until("the first put", 15, function() return (read(log) or ""):find("ack %d+ %d+\n") end)
    local victim = cluster.members[leader].pid
    local at = uv.hrtime() // 1000
    uv.kill(victim, signal)
    local took = wait_until("a put after the failure", 15, function()
      for began, ended in (read(log) or ""):gmatch("ack (%d+) (%d+)\n") do
        if tonumber(began) > at then return (tonumber(ended) - at) / 1000 end
      end
    end)
    times[#times + 1] = took
    stop(pid)
    os.remove(log)
    if signal == "sigstop" then
      uv.kill(victim, "sigcont")
    else
      stop(victim, signal)
      cluster.launch(leader)
    end
    if cluster.wait_socket then cluster.wait_socket(leader) end
    wait_until("the member to be back", 60, function()
      if cluster == symphony then
        local ok, text = symphony.try(leader, "--json manager members")
        local up = 0
        for _, m in ipairs(ok and cjson.decode(text) or {}) do if m.reachable then up = up + 1 end end
        return up == #symphony.members and not text:find('"stale":true')
      end
      return (etcd.ctl(leader, "endpoint health"))
    end)
    uv.sleep(300) -- the new leader settles: not a part of the measurement
  end
  return times
end

local function maximum(list)
  return { math.max(table.unpack(list)) }
end

-- @cluster's keys from 0 on, each put once; counted at every member.
local function fill(cluster)
  local before = cluster.keys(1)
  local f = run_load(cluster, "fill", ("--clients 64 --keys %d --seconds 300"):format(opt.keys), true)
  for i in ipairs(cluster.members) do
    local added = cluster.keys(i) - before
    if added ~= opt.keys then
      problem(("%s has %d keys more at member %d, not %d"):format(cluster.name, added, i, opt.keys))
    end
  end
  return f
end

-- Adds to @into what the members of @cluster take: leader, the larger follower, and the largest of the three.
local function sample_memory(cluster, into)
  local leader = cluster.leader()
  local now = {}
  for i, m in ipairs(cluster.members) do
    local private, pss = memory_mib(m.pid)
    local role = i == leader and "leader" or "followers"
    for name, value in pairs { [role] = private, largest = private, pss = pss } do
      now[name] = math.max(now[name] or 0, value)
    end
  end
  for name, value in pairs(now) do
    into[name] = into[name] or {}
    table.insert(into[name], value)
  end
end

-- Clusters of their own in each run: idle; with the keys in them and nothing else, at rest (what a load has left behind
-- is collected by then); and right after a load that puts the same keys again and again.
local function memory()
  local with_keys = ("with %d keys of 256 bytes"):format(opt.keys)
  local states = {
    { name = "idle", wait = 2000 },
    { name = with_keys .. ", at rest", before = fill, wait = 1000 * opt.rest },
    { name = ("%s, right after %g s of puts to them"):format(with_keys, opt.load), before = function(cluster)
      run_load(cluster, "put", ("--clients 64 --keys %d --seconds %g"):format(opt.keys, opt.load), true)
    end, wait = 0 },
  }
  for _ = 1, opt.runs do
    for _, cluster in ipairs { symphony, etcd } do
      clear(cluster)
      cluster.start(3, true)
      for _, state in ipairs(states) do
        if state.before then state.before(cluster) end
        uv.sleep(math.floor(state.wait))
        state[cluster.name] = state[cluster.name] or {}
        sample_memory(cluster, state[cluster.name])
      end
      clear(cluster)
    end
  end
  for _, state in ipairs(states) do
    local ours, theirs = state.symphony, state.etcd
    row(state.name .. ", private, largest of the three", "MiB", ours.largest, theirs.largest, "less")
    row(state.name .. ", private, leader", "MiB", ours.leader, theirs.leader, "less")
    row(state.name .. ", private, larger follower", "MiB", ours.followers, theirs.followers, "less")
    row(state.name .. ", PSS, largest of the three", "MiB", ours.pss, theirs.pss, "less")
  end
end

-- Stops symphony's members in order and starts them again, some times: ms until a put is acknowledged.
local function cold_starts()
  local times = {}
  for run = 1, opt.runs do
    for _, m in ipairs(symphony.members) do stop(m.pid, "sigterm") end
    local began = uv.hrtime()
    for i in ipairs(symphony.members) do symphony.launch(i) end
    wait_until("a put", 30, function()
      return (symphony.try(#symphony.members > 1 and 2 or 1, "kv put cold 1"))
    end)
    times[run] = (uv.hrtime() - began) / 1e6
  end
  return times
end

local function fanout()
  both(true)
  local figures = { symphony = {}, etcd = {} }
  for _ = 1, opt.runs do
    for _, cluster in ipairs { symphony, etcd } do
      local f = run_load(cluster, "fanout", "--clients 1000 --seconds " .. opt.seconds, true)
      table.insert(figures[cluster.name], f.p50_us)
    end
  end
  row("one put seen by 1,000 watchers", "us", figures.symphony, figures.etcd, "less")
end

local function start()
  for _, members in ipairs { 3, 1 } do
    local who = members == 1 and "one manager" or "three managers"
    clear(symphony)
    symphony.start(members)
    row(("cold start of %s, a nearly empty state, to the first put"):format(who), "ms", cold_starts())
    fill(symphony)
    row(("cold start of %s, %d keys of 256 bytes in the state, to the first put"):format(who, opt.keys), "ms",
      cold_starts())
  end
  clear(symphony)
end

-- A phase that has a file of its own.
local function apart(name)
  package.path = (arg[0]:match("^(.*)/") or ".") .. "/?.lua;" .. package.path
  require(name) { opt = opt, symphony = symphony, row = row, problem = problem, read = read, spawn = spawn,
    stop = stop, wait_until = wait_until, cpu_seconds = cpu_seconds, memory_mib = memory_mib, clear = clear,
    free_port = free_port, run_load = run_load }
end

-- On a virtual machine memory that was never touched costs ten times as much when it first is: that would be measured
-- for whoever comes first. Touches as much as both will use.
local function touch_memory()
  local free = tonumber((read("/proc/meminfo") or ""):match("MemAvailable:%s+(%d+)") or 0) // 1024
  local lua = ("local t = {} for i = 1, %d do t[i] = ('x'):rep(1 << 20) end"):format(math.min(free // 2, 8192))
  must(('lua5.4 -e "%s"'):format(lua))
end

local function main()
  local beside_etcd = all
  for what in pairs(opt.what) do beside_etcd = beside_etcd or (what ~= "nodes" and what ~= "lua") end
  if beside_etcd then touch_memory() end
  print(("data on %s; runs %d, %g s each; medians [least .. most]; ratio: how much better"):format(disk, opt.runs,
    opt.seconds))
  phase("forming", function()
    local times = {}
    for run = 1, opt.runs do
      clear(symphony)
      times[run] = symphony.start(3)
    end
    row("forming three managers: init to three voters", "s", times)
  end)
  if wanted "put" then
    phase("put", function()
      both(true)
      for _, n in ipairs { 1, 64, 512 } do throughput("put", n, true) end
    end)
  end
  if wanted "get" then
    phase("get", function()
      both(true)
      for _, n in ipairs { 64, 512 } do throughput("get", n, true) end
    end)
  end
  if wanted "fanout" then phase("fanout", fanout) end
  if wanted "failover" then
    for _, how in ipairs { { "sigkill", "kill -9" }, { "sigstop", "SIGSTOP" }, { "sigterm", "SIGTERM" } } do
      phase(how[2], function()
        both(true)
        local ours, theirs = failover(symphony, how[1], true), failover(etcd, how[1], true)
        row(how[2] .. " of the leader, to the next put", "ms", ours, theirs, "less")
        row(how[2] .. " of the leader, worst", "ms", maximum(ours), maximum(theirs), "less")
      end)
    end
  end
  if wanted "memory" then phase("memory", memory) end
  if wanted "start" then phase("start", start) end
  if wanted "nodes" then phase("nodes", function() apart "nodes" end) end
  if wanted "lua" then phase("lua", function() apart "lua" end) end
  if wanted "plain" then
    phase("plain", function()
      both(false)
      for _, n in ipairs { 1, 64, 512 } do throughput("put", n, false) end
      for _, n in ipairs { 64, 512 } do throughput("get", n, false) end
    end)
  end
end

local ok, err = xpcall(main, debug.traceback)
if not ok then problem(err) end
for pid in pairs(running) do stop(pid) end
local done = #results.problems == 0
if done then must("rm -rf " .. root) else print("kept for a look: " .. root) end
local problems = results.problems
if done then results.problems = nil end -- cjson would write {}
local text = cjson.encode(results)
local f = assert(io.open(opt.out, "w"))
f:write(text, "\n")
f:close()
print("written: " .. opt.out)
for _, each in ipairs(problems) do print("problem: " .. each:match("[^\n]*")) end
os.exit(done and 0 or 1)
