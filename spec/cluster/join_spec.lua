-- A join that dies half-way: the joining daemon, the manager that is asked or the client is killed, or told to end, at
-- each of its steps. The same for leaving.
--
-- A step is held by the daemon that takes it: through its own prompt a function of it is made to stop the process
-- (SIGSTOP) before or behind its work, once. Then the victim is killed, and who was stopped goes on.
local cluster = require "spec.support.cluster"
local json = require "spec.support.json"
local proc = require "spec.support.proc"

-- At: the daemon that takes the step. Of: module and function. When: before its call, after it, or when the answer that
-- its last argument waits for is there ("done"). Skip: so many calls are let through before. Puts: of txns that is the
-- one that puts a key with this prefix; the leader submits others by itself.
local STEPS = {
  { what = "its key is written", at = "joiner", of = { "symphony.cluster.identity", "node_key" }, when = "after" },
  { what = "the token is sent", at = "leader", of = { "symphony.cluster.admit", "check" }, when = "before" },
  { what = "the request is granted", at = "leader", of = { "symphony.cluster.state", "submit" }, when = "before",
    puts = "/fingerprint/" },
  { what = "the member is recorded", at = "leader", of = { "symphony.cluster.state", "submit" }, when = "after",
    puts = "/fingerprint/" },
  { what = "the certificate has come", at = "joiner", of = { "symphony.cluster.join", "check_welcome" },
    when = "before" },
  { what = "the certificate is written", at = "joiner", of = { "symphony.cluster.identity", "save_tls" },
    when = "after" },
  { what = "key.json is written", at = "joiner", of = { "symphony.cluster.identity", "become" }, when = "after" },
  { what = "its node runs", at = "joiner", of = { "symphony.cluster.lifecycle", "activate" }, when = "after" },
  { what = "raft is to add it", at = "leader", of = { "sym.raft", "add" }, when = "before" },
  { what = "raft has added it", at = "leader", of = { "sym.raft", "add" }, when = "done" },
  { what = "it is to stand by", at = "leader", of = { "sym.raft", "assign" }, when = "before" },
  { what = "it stands by", at = "leader", of = { "sym.raft", "assign" }, when = "done" },
}

-- What comes behind that for the third manager, with which there are three voters.
local PROMOTION = {
  { what = "the first is to vote", at = "leader", of = { "sym.raft", "assign" }, when = "before", skip = 1 },
  { what = "the first votes", at = "leader", of = { "sym.raft", "assign" }, when = "done", skip = 1 },
  { what = "the second is to vote", at = "leader", of = { "sym.raft", "assign" }, when = "before", skip = 2 },
  { what = "the second votes", at = "leader", of = { "sym.raft", "assign" }, when = "done", skip = 2 },
}

local HOLD = [[
local uv, module, name, when, skip, prefix = require "luv", require %q, %q, %q, %d, %q
local real = module[name]
local function stop()
  uv.kill(uv.os_getpid(), "sigstop")
end
local function is_other(txn)
  if prefix == "" then return false end
  for _, op in ipairs(txn.ops) do
    if (op.put or ""):sub(1, #prefix) == prefix then return false end
  end
  return true
end
module[name] = function(...)
  if is_other(...) then return real(...) end
  if skip > 0 then
    skip = skip - 1
    return real(...)
  end
  module[name] = real
  local args = table.pack(...)
  if when == "before" then stop() end
  if when == "done" then
    local done = args[args.n]
    args[args.n] = function(...)
      stop()
      done(...)
    end
  end
  local results = table.pack(real(table.unpack(args, 1, args.n)))
  if when == "after" then stop() end
  return table.unpack(results, 1, results.n)
end]]

local function hold(m, step)
  local result = m:cli("lua", "-e", HOLD:format(step.of[1], step.of[2], step.when, step.skip or 0, step.puts or ""))
  assert.equal(0, result.code, result.err)
end

local function is_stopped(m)
  local stat = proc.read_file(("/proc/%d/stat"):format(m.process.pid))
  return stat ~= nil and stat:match("^%d+ %b() (%a)") == "T"
end

local settled = cluster.wait_members

local function uses_left(m, id)
  for _, row in ipairs(m:json("token", "ls")) do
    if row.id == id then return row.uses end
  end
end

local function words(joiner, at, token)
  return { cluster.symphony, "--socket", joiner.socket, "--json", "manager", "join", at:remote(),
    token and "--token", token }
end

-- Runs the client with these words; @holder stops at @step, and there @victim gets @signal (SIGKILL): the call.
local function cut(step, holder, victim, argv, signal)
  hold(holder, step)
  local call = proc.begin(argv)
  cluster.wait_for("the step at which " .. step.what, 20, function()
    return is_stopped(holder), call.out .. call.err
  end)
  holder.paused = true
  if signal then
    victim:kill(signal)
  elseif victim == "client" then
    call.process:kill("sigkill")
    assert(call.process:wait(10))
  else
    victim:crash()
  end
  if holder:is_running() then holder:kill("sigcont") end
  holder.paused = nil
  return call
end

-- The join of @joiner, which asks @leader.
local function cut_join(step, joiner, leader, victim, token, signal)
  return cut(step, step.at == "leader" and leader or joiner, victim, words(joiner, leader, token), signal)
end

-- What fails says why, and what to do.
local function is_clear(result)
  local failure = json.decode(result.err:match("{.*}") or "")
  local err = failure and failure.error
  assert.truthy(err and err.message and err.hint, result.out .. result.err)
  assert.not_equal("internal", err.code, result.err)
end

-- Says it again until it is done, or is answered that it is done already. What it is refused with meanwhile says why.
local function say_again(joiner, at, token)
  cluster.wait_for("the join said again", 30, function()
    local again = joiner:cli("--json", "manager", "join", at:remote(), "--token", token)
    if again.code == 0 then return true end
    is_clear(again)
    return again.error.code == "exists" and at:member(joiner) ~= nil, again.err
  end)
end

-- The client ends by itself, and with words when it fails.
local function ends_clearly(call, victim)
  if victim == "client" then return end
  assert.truthy(proc.pump(40 * cluster.patience, call.ended), "the client hangs: " .. call.out .. call.err)
  if call.process.code ~= 0 then is_clear(call) end
end

-- SIGTERM's whole effect on @m: it ends, with 0, soon.
local function ends_at_sigterm(m)
  local began = proc.now()
  local code, signal = m.process:wait(15 * cluster.patience)
  assert.same({ 0, 0 }, { code, signal }, m:log_tail(20))
  assert.is_true(proc.now() - began < 5 * cluster.patience, ("it took %.1f s"):format(proc.now() - began))
end

-- Calls fn(step) for each, and tells at which it failed.
local function at_each(steps, fn)
  for _, step in ipairs(steps) do
    local ok, err = xpcall(fn, function(err)
      return type(err) == "string" and debug.traceback(err, 2) or proc.show(err)
    end, step)
    if not ok then error(("when %s: %s"):format(step.what, err), 0) end
  end
end

describe("a join is finished by saying it again", function()
  for _, who in ipairs { "the joining daemon", "the manager that is asked", "the client" } do
    it("when " .. who .. " is killed, at every step", cluster.scenario(function(t)
      local m = t:cluster(1)[1]
      local joiner = t:manager():start()
      m:json("kv", "put", "a", "1")
      local rows
      at_each(STEPS, function(step)
        local token = m:json("token", "create", "--role", "manager", "--uses", "1")
        local victim = who == "the client" and "client" or who == "the joining daemon" and joiner or m
        local join = cut_join(step, joiner, m, victim, token.token)
        if victim ~= "client" then victim:start() end
        ends_clearly(join, victim)
        if victim == joiner then assert.truthy(join.err:find("say it again: it goes on", 1, true), join.err) end
        cluster.wait_for("the cluster to go on", 15, function()
          local put = m:cli("kv", "put", "step", step.what)
          return put.code == 0, put.err
        end)
        say_again(joiner, m, token.token)
        rows = settled(m, { m, joiner }, 1)
        assert.equal(0, uses_left(m, token.id), "the token's use")
        assert.equal(step.what, joiner:json("kv", "get", "step").value)
        joiner:json("manager", "leave")
        settled(m, { m }, 1)
      end)
      -- Raft ids are never given out again: with one for each join none of them was made twice.
      assert.equal(#STEPS + 1, rows[2].raft_node_id)
    end))
  end

  it("when one of them is killed at every step from one voter to three", cluster.scenario(function(t)
    local m = t:cluster(2)
    local joiner = t:manager():start()
    for i, step in ipairs(PROMOTION) do
      for _, who in ipairs { "leader", i % 2 == 0 and "joiner" or "other" } do
        local token = m[1]:json("token", "create", "--role", "manager", "--uses", "1")
        local leader = t:leader()
        local victim = ({ leader = leader, joiner = joiner, other = leader == m[1] and m[2] or m[1] })[who]
        local join = cut_join(step, joiner, leader, victim, token.token)
        victim:start()
        ends_clearly(join, victim)
        say_again(joiner, leader, token.token)
        settled(leader, t.managers, 3)
        m[2]:json("kv", "put", "step", step.what)
        assert.equal(0, uses_left(m[1], token.id), "the token's use")
        joiner:json("manager", "leave")
        cluster.wait_for("a leader of two", 15, function()
          local found = t:leader()
          return found ~= joiner and settled(found, m, 1), found.label
        end)
      end
    end
  end))

  it("when one of them is killed while its request waits for an approval", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local joiner = t:manager():start()
    local step = { what = "the request is recorded", at = "leader", of = { "symphony.cluster.state", "submit" },
      when = "after", puts = "/pending/" }
    for _, victim in ipairs { joiner, m, "client" } do
      local join = cut_join(step, joiner, m, victim)
      if victim ~= "client" then victim:start() end
      ends_clearly(join, victim)
      local again
      local request = cluster.wait_for("the request said again", 20, function()
        if not again or again.ended() then again = proc.begin(words(joiner, m)) end
        proc.pump(1, function() return again.ended() or again.err:find("fingerprint", 1, true) end)
        local rows = m:json("node", "pending")
        assert.is_true(#rows <= 1, "two requests of one key")
        return not again.ended() and rows[1], again.err
      end)
      m:json("node", "approve", request.id, "--fingerprint", request.fingerprint)
      assert.truthy(proc.pump(20 * cluster.patience, again.ended), "the join hangs")
      assert.equal(0, again.process.code, again.out .. again.err)
      settled(m, { m, joiner }, 1)
      assert.equal(0, #m:json("node", "pending"))
      joiner:json("manager", "leave")
      settled(m, { m }, 1)
    end
  end))

  it("through another manager when the leader of three is killed: they go on", cluster.scenario(function(t)
    t:cluster(3)
    local joiner = t:manager():start()
    for i, step in ipairs(STEPS) do
      if i == 4 or i == 9 or i == 11 then
        local leader, others = t:leader()
        local survivor = others[1] ~= joiner and others[1] or others[2]
        local token = leader:json("token", "create", "--role", "manager", "--uses", "1")
        local join = cut_join(step, joiner, leader, leader, token.token)
        survivor:json("kv", "put", "step", step.what)
        ends_clearly(join, leader)
        say_again(joiner, survivor, token.token)
        assert.equal(step.what, joiner:json("kv", "get", "step").value)
        leader:start()
        settled(survivor, t.managers, 3)
        assert.equal(0, uses_left(survivor, token.id), "the token's use")
        survivor:json("manager", "remove", survivor:member(joiner).node_id)
        joiner:json("manager", "leave")
      end
    end
  end))
end)

describe("a join that is never finished", function()
  it("leaves nothing that counts, and its record can be removed", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    for _, step in ipairs { STEPS[4], STEPS[7], STEPS[10] } do
      local lost = t:manager():start()
      cut_join(step, lost, m, lost, t.tokens.manager)
      local row = cluster.wait_for("the record", 10, function() return m:member(lost) end)
      assert.not_equal("voter", row.raft_role, step.what)
      assert.is_false(row.reachable)
    end
    -- Three records of nobody, and the cluster still goes on with its one voter, and grows to three.
    m:json("kv", "put", "a", "1")
    local real = { m, t:manager():start(), t:manager():start() }
    for i = 2, 3 do real[i]:json("manager", "join", m:remote(), "--token", t.tokens.manager) end
    for i = 2, 4 do m:json("manager", "remove", m:member(t.managers[i]).node_id) end
    settled(m, real, 3)
    real[2]:json("kv", "put", "a", "2")
  end))
end)

describe("SIGTERM", function()
  it("of either side of a join ends it at every step, and the join is said again", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local joiner = t:manager():start()
    at_each(STEPS, function(step)
      for _, victim in ipairs(step.at == "leader" and { m, joiner } or { joiner }) do
        local token = m:json("token", "create", "--role", "manager", "--uses", "1")
        local join = cut_join(step, joiner, m, victim, token.token, "sigterm")
        ends_at_sigterm(victim)
        victim:start()
        ends_clearly(join)
        say_again(joiner, m, token.token)
        settled(m, { m, joiner }, 1)
        assert.equal(0, uses_left(m, token.id), "the token's use")
        joiner:json("manager", "leave")
        settled(m, { m }, 1)
      end
    end)
  end))

  it("of either side of a leave ends it at every step, and the leave is said again", cluster.scenario(function(t)
    local m = t:cluster(3)
    local steps = {
      { what = "the leader is asked", at = "leader", of = { "symphony.cluster.remove", "serve" }, when = "before" },
      { what = "it is marked", at = "leader", of = { "symphony.cluster.state", "submit" }, when = "after",
        puts = "/node/" },
      { what = "raft is to remove it", at = "leader", of = { "sym.raft", "remove" }, when = "before" },
      { what = "raft has removed it", at = "leader", of = { "sym.raft", "remove" }, when = "done" },
      { what = "key.json says so", at = "leaver", of = { "symphony.cluster.identity", "become" }, when = "after" },
      { what = "its node has stopped", at = "leaver", of = { "symphony.cluster.lifecycle", "deactivate" },
        when = "after" },
      { what = "all is wiped", at = "leaver", of = { "symphony.cluster.identity", "wipe" }, when = "after" },
    }
    at_each(steps, function(step)
      for _, who in ipairs(step.at == "leader" and { "leader", "leaver" } or { "leaver" }) do
        local leader, others = t:leader()
        local leaver, stays = others[1], others[2]
        local victim = who == "leader" and leader or leaver
        local leave = cut(step, step.at == "leader" and leader or leaver, victim,
          { cluster.symphony, "--socket", leaver.socket, "--json", "manager", "leave" }, "sigterm")
        ends_at_sigterm(victim)
        victim:start()
        ends_clearly(leave)
        stays:json("kv", "put", "step", step.what)
        cluster.wait_for("the leave said again", 30, function()
          local again = leaver:cli("--json", "manager", "leave")
          if again.code == 0 or again.error and again.error.code == "no_cluster" then return true end
          is_clear(again)
          return false, again.err
        end)
        settled(stays, { leader, stays }, 1)
        leaver:json("manager", "join", stays:remote(), "--token", t.tokens.manager)
        settled(leader, m, 3)
        assert.equal(step.what, leaver:json("kv", "get", "step").value)
      end
    end)
  end))
end)
