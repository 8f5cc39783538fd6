-- The phase "lua" of the benchmark: what a command and a piece of Lua take as whole processes, beside what Redis takes;
-- and what a policy that decides on every put costs these, with and without it by turns.
-- @b: what run.lua shares (opt, symphony, row, run_load, spawn, stop, wait_until, free_port).
local uv = require "luv"

local SAMPLES = 50 -- in each run
local WARM = 5     -- before them: pages of programs and libraries are read, modules of the daemon loaded

-- Runs a program to its end: milliseconds. Raises unless it ends well.
local function timed(argv)
  local began, took = uv.hrtime(), nil
  local handle, err
  handle, err = uv.spawn(argv[1], { args = table.move(argv, 2, #argv, 1, {}), stdio = { nil, nil, 2 } },
    function(code, signal)
      took = (uv.hrtime() - began) / 1e6
      handle:close()
      err = (code ~= 0 or signal ~= 0) and ("%s ended with %d, signal %d"):format(argv[1], code, signal) or nil
    end)
  if not handle then error(argv[1] .. ": " .. tostring(err)) end
  while not took do uv.run("once") end
  uv.run("nowait") -- the handle is closed
  if err then error(err) end
  return took
end

local function path_of(program)
  for folder in (os.getenv("PATH") or ""):gmatch("[^:]+") do
    local path = folder .. "/" .. program
    if uv.fs_access(path, "X") then return path end
  end
  error(program .. " is not installed")
end

local MANY = 64 -- clients
local TURNS = 4 -- in each run: of so many parts of the seconds

local function policies(b)
  local symphony = b.symphony
  local leader = symphony.leader()
  local dir = symphony.members[leader].dir .. ".operator"
  symphony.cli(leader, "cert issue bench --role operator --out " .. dir)
  symphony.operator = dir .. "/bench" -- a manager's certificate is for what it passes on
  symphony.cli(leader, "policy set bench spec/bench/policy.lua")
  local memory = b.wait_until("the policy to be loaded", 10, function()
    local bytes = tonumber(symphony.cli(leader, [[lua -e 'return require("sym.policy").stats().memory']]))
    return bytes > 0 and bytes
  end)
  -- Short ones by turns, and each compared with its neighbour: what else the machine does meanwhile is in both.
  local p50, per_second = { enable = {}, disable = {} }, { enable = {}, disable = {} }
  local now = "enable"
  for round = 1, b.opt.runs * TURNS do
    for _, state in ipairs(round % 2 == 1 and { "disable", "enable" } or { "enable", "disable" }) do
      if state ~= now then symphony.cli(leader, "policy " .. state .. " bench") end
      now = state
      local seconds = b.opt.seconds / TURNS
      b.run_load(symphony, "put", ("--clients %d --seconds %g"):format(MANY, seconds / 4), true) -- all have heard of it
      local one = b.run_load(symphony, "put", ("--clients 1 --seconds %g"):format(seconds), true)
      local many = b.run_load(symphony, "put", ("--clients %d --seconds %g"):format(MANY, seconds), true)
      table.insert(p50[state], one.p50_us)
      table.insert(per_second[state], many.per_second)
    end
  end
  local added, kept = {}, {}
  for i, without in ipairs(p50.disable) do
    added[i] = p50.enable[i] - without
    kept[i] = 100 * per_second.enable[i] / per_second.disable[i]
  end
  b.row("put, 1 client, no policy, p50", "us", p50.disable)
  b.row("put, 1 client, a policy decides, added to p50", "us", added, nil, nil, "under 100")
  b.row(("put, %d clients, no policy"):format(MANY), "/s", per_second.disable)
  b.row(("put, %d clients, a policy decides, kept"):format(MANY), "%", kept, nil, nil, "over 80")
  b.row("one policy loaded, memory", "KiB", { memory / 1024 }, nil, nil, "under 200")
  symphony.cli(leader, "policy rm bench")
  symphony.operator = nil
end

return function(b)
  local symphony = b.symphony

  local function redis()
    local port = b.free_port()
    local dir = symphony.members[1].dir .. ".redis"
    assert(uv.fs_mkdir(dir, 448))
    local pid = b.spawn(("%s --port %d --bind 127.0.0.1 --save '' --appendonly no --dir %s"):format(
      path_of "redis-server", port, dir), dir .. "/log")
    local ping = { path_of "redis-cli", "-h", "127.0.0.1", "-p", tostring(port), "ping" }
    b.wait_until("redis", 10, function() return (pcall(timed, ping)) end)
    return pid, ping
  end

  if #symphony.members ~= 3 then
    b.clear(symphony)
    symphony.start(3)
  end
  symphony.cli(1, "kv put bench value")
  local leader = symphony.members[symphony.leader()]
  local client = { b.opt.bin .. "/symphony", "--socket", leader.dir .. "/control.sock" }
  local function command(...)
    local argv = table.move(client, 1, #client, 1, {})
    return table.move({ ... }, 1, select("#", ...), #argv + 1, argv)
  end
  local server, ping = redis()
  local what = {
    { name = "symphony lua -e 'return 1', whole process", argv = command("lua", "-e", "return 1"), aim = "under 15" },
    { name = "symphony kv get, whole process", argv = command("kv", "get", "bench"), aim = "under 15" },
    { name = "redis-cli ping, whole process", argv = ping },
  }
  for _, each in ipairs(what) do
    each.times = {}
    for _ = 1, WARM do timed(each.argv) end
  end
  for _ = 1, b.opt.runs * SAMPLES do
    for _, each in ipairs(what) do table.insert(each.times, timed(each.argv)) end
  end
  b.stop(server)
  for _, each in ipairs(what) do b.row(each.name, "ms", each.times, nil, nil, each.aim) end
  policies(b)
end
