-- Managers and workers as real processes on loopback, in folders of their own.
--
--   it("does something", cluster.scenario(function(t)
--     local m = t:cluster(3)
--     m[1]:json("kv", "put", "a", "b")
--     local w = t:join_workers(2, m[1])
--   end))
--
-- At the end of a scenario every daemon that still runs gets SIGTERM and must exit 0; whatever happens, nothing of
-- it is left. When it fails, the daemons' logs are shown.
--
-- SYMPHONY_BIN: the folder of the programs (build/bin). SYMPHONY_PATIENCE: factor on every deadline (1), for
-- sanitizer builds.
local uv = require "luv"
local http = require "spec.support.http"
local json = require "spec.support.json"
local proc = require "spec.support.proc"

local M = { patience = tonumber(os.getenv("SYMPHONY_PATIENCE")) or 1 }

local bin = uv.fs_realpath(os.getenv("SYMPHONY_BIN") or "build/bin") or "build/bin"
M.symphonyd, M.symphony = bin .. "/symphonyd", bin .. "/symphony"

function M.wait_for(what, seconds, check)
  return proc.wait_for(what, seconds * M.patience, check)
end

-- Runs the client with these words: {code, out, err, seconds, json, error}. json is what it printed under --json,
-- error the {code, message, hint} of a failure. A table as last argument has options for proc.run.
function M.cli(socket, ...)
  local argv = { M.symphony, "--socket", socket, ... }
  local options = {}
  if type(argv[#argv]) == "table" then options = table.remove(argv) end
  options.timeout = (options.timeout or 30) * M.patience
  local result = proc.run(argv, options)
  result.json = json.decode(result.out)
  local failure = json.decode(result.err:match("{.*}") or "")
  result.error = type(failure) == "table" and failure.error or nil
  result.command = table.concat(argv, " ", 4)
  if result.timed_out then error(("`%s` hangs: %s%s"):format(result.command, result.out, result.err), 2) end
  return result
end

local manager = {} -- and workers
manager.__index = manager

-- The command line that starts it, without what :start adds.
function manager:command()
  local argv = {
    M.symphonyd, self.kind, "--config-dir", self.dir,
    "--listen-remote-port", tostring(self.remote_port), "--listen-gossip-port", tostring(self.gossip_port),
    "--advertise-addr", self.address, "--bind-addr", self.address, "--log-format", "text",
  }
  if self.raft_port then table.move({ "--listen-raft-port", tostring(self.raft_port) }, 1, 2, #argv + 1, argv) end
  return argv
end

-- Starts the daemon; :answers tells when it is there.
function manager:launch(...)
  assert(not self:is_running(), self.label .. " runs already")
  local argv = table.move(self.prefix, 1, #self.prefix, 1, {})
  for _, words in ipairs { self:command(), { ... } } do table.move(words, 1, #words, #argv + 1, argv) end
  self.process = proc.spawn(argv, { log = self.log_path })
end

-- Waits until its control socket answers.
function manager:answers()
  M.wait_for(self.label .. " to answer on its control socket", 15, function()
    if self.process.code then
      proc.kill_all()
      error(("%s ended with code %s, signal %s:\n%s"):format(self.label, self.process.code, self.process.signal,
        self:log_tail(20)), 0)
    end
    local answer, err = http.call(self.socket, "GET", "/healthz", nil, { timeout = 1 })
    return answer and answer.status == 200, answer and answer.status or err
  end)
end

-- Starts the daemon and waits until its control socket answers.
function manager:start(...)
  self:launch(...)
  self:answers()
  return self
end

function manager:is_running()
  return self.process ~= nil and self.process.code == nil
end

function manager:kill(signal)
  self.process:kill(signal)
end

-- kill -9, and gone when this returns.
function manager:crash()
  self.process:kill("sigkill")
  assert(self.process:wait(10), "SIGKILL did not end " .. self.label)
end

-- SIGTERM; returns the exit code and the seconds it took.
function manager:stop()
  local began = proc.now()
  self.process:kill("sigterm")
  local code, signal = self.process:wait(15 * M.patience)
  if not code then error(self.label .. " does not end on SIGTERM", 2) end
  if signal ~= 0 then error(("%s ended by signal %d on SIGTERM"):format(self.label, signal), 2) end
  return code, proc.now() - began
end

function manager:cli(...)
  return M.cli(self.socket, ...)
end

-- The data that a command gives with --json; raises unless it succeeds.
function manager:json(...)
  local result = self:cli("--json", ...)
  if result.code ~= 0 or result.json == nil then
    error(("%s: `%s` gave code %s\n%s%s"):format(self.label, result.command, result.code, result.out, result.err), 2)
  end
  return result.json
end

-- A command that has to fail: its {code, message, hint} and the whole result.
function manager:fails(...)
  local result = self:cli("--json", ...)
  if result.code == 0 or not result.error then
    error(("%s: `%s` should fail, but gave code %s\n%s%s"):format(self.label, result.command, result.code,
      result.out, result.err), 2)
  end
  return result.error, result
end

function manager:http(method, path, body, options)
  return http.call(self.socket, method, path, body, options)
end

function manager:log()
  return proc.read_file(self.log_path) or ""
end

function manager:log_tail(lines)
  local all = {}
  for line in self:log():gmatch("[^\n]+") do all[#all + 1] = line end
  return table.concat(all, "\n", math.max(1, #all - lines + 1))
end

-- Its own row of `manager members`, asked of itself or of another.
function manager:member(of)
  for _, row in ipairs(self:json("manager", "members")) do
    if row.raft_address == (of or self):raft() then return row end
  end
end

function manager:raft()
  return self.address .. ":" .. self.raft_port
end

function manager:remote()
  return self.address .. ":" .. self.remote_port
end

local scope = {}
scope.__index = scope

function scope:folder(name)
  local path = self.root .. "/" .. name
  assert(uv.fs_mkdir(path, 448))
  return path
end

local function daemon(self, list, kind, options)
  options = options or {}
  local n = #list + 1
  local label = ("%s-%02d"):format(kind == "manager" and kind or "worker", n)
  local m = setmetatable({
    label = label, kind = kind, dir = options.dir or ("%s/%s"):format(self.root, label),
    log_path = ("%s/%s.log"):format(self.root, label), address = options.address or "127.0.0.1",
    prefix = options.prefix or {}, raft_port = kind == "manager" and proc.free_port() or nil,
    remote_port = proc.free_port(), gossip_port = proc.free_port(),
  }, manager)
  m.socket = m.dir .. "/control.sock"
  list[n] = m
  return m
end

-- A manager that is not started. options: dir, its config folder; address; prefix, words before its command line.
function scope:manager(options)
  return daemon(self, self.managers, "manager", options)
end

-- The same for a worker.
function scope:worker(options)
  return daemon(self, self.workers, "block", options)
end

-- A daemon whose folder is a copy of @m's, with a mark that fits, as on the copy of a whole machine; not started. @by:
-- one that runs.
function scope:copy_of(m, by, options)
  local copy = daemon(self, m.kind == "manager" and self.managers or self.workers, m.kind, options)
  assert(proc.run({ "cp", "-a", m.dir, copy.dir }).code == 0)
  os.remove(copy.socket)
  local path = copy.dir .. "/key.json"
  local doc = json.decode(proc.read_file(path))
  doc.folder = by:json("lua", "-e", ("return { require('sym.sys').folder_identity(%q) }"):format(
    copy.dir .. (m.kind == "manager" and "/raft" or "/tls")))[1]
  proc.write_file(path, json.encode(doc))
  return copy
end

-- @n started workers, joined by way of manager @m. options: make(i), as for :cluster; flags.
function scope:join_workers(n, m, options)
  options = options or {}
  local list = {}
  for i = 1, n do
    list[i] = (options.make and options.make(i) or self:worker()):start(table.unpack(options.flags or {}))
    local joined = list[i]:json("block", "join", m:remote(), "--token", self.tokens.worker)
    list[i].node_id, list[i].name = joined.node_id, joined.name
  end
  return list
end

-- The rows of `node ls` as manager @m shows them, by node id.
function scope:nodes(m)
  local rows = {}
  for _, row in ipairs(m:json("node", "ls")) do rows[row.node_id] = row end
  return rows
end

-- Waits until manager @m calls every one of @list, workers that have joined, @status.
function scope:wait_status(list, status, m, seconds)
  return M.wait_for(("%d nodes to be %s"):format(#list, status), seconds or 20, function()
    local rows, wrong = self:nodes(m), {}
    for _, w in ipairs(list) do
      local row = rows[w.node_id]
      if not row or row.status ~= status then
        wrong[#wrong + 1] = ("%s is %s"):format(w.label, row and row.status or "unknown")
      end
    end
    return #wrong == 0 and rows, table.concat(wrong, ", ")
  end)
end

local function all(self)
  local list = table.move(self.managers, 1, #self.managers, 1, {})
  return table.move(self.workers, 1, #self.workers, #list + 1, list)
end

-- @n started managers, joined, each a voter where the count allows it. options: flags for every daemon; make(i),
-- which gives a manager that is not started; steady = true where it is not about elections: a sanitizer's managers
-- take longer for everything, and have longer to be heard of.
function scope:cluster(n, options)
  options = options or {}
  local list, flags = {}, table.move(options.flags or {}, 1, #(options.flags or {}), 1, {})
  if options.steady then
    table.move({ "--election-ms", ("%d"):format(400 * M.patience // 1) }, 1, 2, #flags + 1, flags)
  end
  for i = 1, n do
    list[i] = (options.make and options.make(i) or self:manager()):start(table.unpack(flags))
    if i == 1 then
      self.tokens = list[1]:json("manager", "init").tokens
    else
      list[i]:json("manager", "join", list[1]:remote(), "--token", self.tokens.manager)
    end
  end
  self:wait_voters(n >= 5 and 5 or n >= 3 and 3 or 1, list[1])
  -- What the leader writes of its own accord, and revisions are counted from: that each is ready.
  M.wait_for("all managers to be ready", 20, function()
    local rows = list[1]:json("node", "ls")
    for _, row in ipairs(rows) do
      if not row.since then return false, rows end
    end
    return #rows == n
  end)
  return list
end

-- Waits until @m sees this many voters and a leader among them; returns the members.
function scope:wait_voters(count, m)
  return M.wait_for(("%d voters seen by %s"):format(count, m.label), 20, function()
    local members = m:json("manager", "members")
    local voters, leader = 0, false
    for _, row in ipairs(members) do
      if row.stale then return false, members end
      if row.raft_role == "voter" then voters = voters + 1 end
      leader = leader or row.leader
    end
    return voters == count and leader and members, members
  end)
end

-- Waits until @m lists exactly these managers, all reachable, one of them leading, with this many voters; nobody
-- else is known to raft. The rows.
function M.wait_members(m, present, voters)
  return M.wait_for(("%d members, %d voters"):format(#present, voters), 20, function()
    local rows = m:json("manager", "members")
    local n, up, leader, spare = 0, 0, 0, 0
    for _, row in ipairs(rows) do
      n = n + (row.raft_role == "voter" and 1 or 0)
      spare = spare + (row.raft_role == "spare" and 1 or 0)
      up = up + (row.reachable and 1 or 0)
      leader = leader + (row.leader and 1 or 0)
    end
    return #rows == #present and n == voters and up == #present and leader == 1 and spare == 0 and rows, rows
  end)
end

-- The manager of ours that leads, as the running ones say, and those that do not.
function scope:leader()
  return M.wait_for("a leader", 15, function()
    for _, m in ipairs(self.managers) do
      if m:is_running() and not m.paused then
        for _, row in ipairs(m:json("manager", "members")) do
          local found = row.leader and not row.stale and self:by_address(row.raft_address)
          if found and found:is_running() and not found.paused then
            local others = {}
            for _, other in ipairs(self.managers) do
              if other ~= found and other:is_running() then others[#others + 1] = other end
            end
            return found, others
          end
        end
      end
    end
    return false, "none"
  end)
end

function scope:by_address(raft_address)
  for _, m in ipairs(self.managers) do
    if raft_address == m:raft() then return m end
  end
end

local function sanitizer_report(log)
  return log:match("[^\n]*ERROR: %u%l+Sanitizer.*") or log:match("[^\n]*runtime error:.*")
end

function scope:close(check)
  local complaints = {}
  for _, m in ipairs(all(self)) do
    if m:is_running() then
      if m.paused then m:kill("sigcont") end
      m:kill(check and "sigterm" or "sigkill")
    end
  end
  for _, m in ipairs(all(self)) do
    if m.process then
      local ending = m:is_running()
      local code, signal = m.process:wait(15 * M.patience)
      if check and ending and (code ~= 0 or signal ~= 0) then
        complaints[#complaints + 1] = ("%s: SIGTERM at the end gave code %s, signal %s"):format(m.label, code, signal)
      end
      local report = sanitizer_report(m:log())
      if report then complaints[#complaints + 1] = m.label .. ": " .. report:sub(1, 4000) end
    end
  end
  proc.kill_all()
  return complaints
end

function scope:show_logs()
  for _, m in ipairs(all(self)) do
    io.stderr:write(("--- the end of %s's log\n%s\n"):format(m.label, m:log_tail(40)))
  end
end

-- Wraps a test body for busted's `it`.
function M.scenario(body)
  return function()
    local t = setmetatable({ root = proc.temp_folder(), managers = {}, workers = {} }, scope)
    local ok, err = xpcall(function()
      body(t)
      proc.check_callbacks()
    end, function(err)
      return type(err) == "string" and debug.traceback(err, 2) or err
    end)
    local complaints = t:close(ok)
    if not ok or #complaints > 0 then t:show_logs() end
    proc.remove_tree(t.root)
    if not ok then error(err, 0) end
    if #complaints > 0 then error(table.concat(complaints, "\n"), 0) end
  end
end

return M
