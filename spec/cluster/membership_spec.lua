-- Removing, leaving, standing by, handing over; several joins at once. Joins that die half-way: join_spec.lua.
local uv = require "luv"
local cluster = require "spec.support.cluster"
local proc = require "spec.support.proc"

local function join_line(t, m, via)
  return { cluster.symphony, "--socket", m.socket, "manager", "join", via:remote(), "--token", t.tokens.manager }
end

local settled = cluster.wait_members

-- What a removed manager does: it learns of it, stops serving, and says what to do.
local function knows_it_is_removed(m)
  cluster.wait_for(m.label .. " to say that it was removed", 15, function()
    local status = m:json("manager", "status")
    return status.state == "removed" and status.hint:find("manager leave", 1, true), status
  end)
  for _, line in ipairs { { "kv", "get", "a" }, { "kv", "put", "a", "x" }, { "kv", "ls" }, { "manager", "members" } } do
    local failure = m:fails(table.unpack(line))
    assert.equal("removed", failure.code, failure.message)
    assert.truthy(failure.hint:find("manager leave", 1, true), failure.hint)
  end
  cluster.wait_for("its ports to be closed", 10, function()
    return proc.port_is_free(m.remote_port) and proc.port_is_free(m.raft_port)
  end)
  assert.truthy(m:log():find("removed; it stops serving -- `symphony manager leave`", 1, true), m:log_tail(10))
end

-- A removed manager that has changed its mind: the certificate of before, the raft id of somebody who is to come, and
-- without the look at its own files.
local AS_ANOTHER = [[
local crypto, sys = require "sym.crypto", require "sym.sys"
local identity, lifecycle = require "symphony.cluster.identity", require "symphony.cluster.lifecycle"
local function read(name) return assert(sys.read_file(identity.path("tls/" .. name))) end
function identity.load_tls()
  return { key = crypto.key_load(read "node.key"), cert = read "node.crt", ca = read "ca.crt" }
end
local doc = identity.changed(identity.me, { removed = false, raft_node_id = 1000 })
local ok, err = lifecycle.activate(doc, { quiet = true })
if not ok then error(err.message) end]]

describe("manager remove", function()
  it("removes a follower, which learns of it", cluster.scenario(function(t)
    local m = t:cluster(3)
    local leader, others = t:leader()
    local victim, rest = others[1], others[2]
    m[1]:json("kv", "put", "a", "1")
    local plan = leader:cli("manager", "remove", tostring(victim:member().raft_node_id), "--plan")
    assert.equal(0, plan.code, plan.err)
    assert.is_true(#plan.out > 0)
    assert.equal(3, #leader:json("manager", "members"), "--plan changed something")
    rest:json("manager", "remove", victim:member().node_id)
    settled(leader, { leader, rest }, 1)
    knows_it_is_removed(victim)
    assert.equal("1", rest:json("kv", "get", "a").value)
    leader:json("kv", "put", "a", "2")
    -- It knows it still after a restart, when nobody answers; and what it is told to do helps.
    assert.equal(0, victim:stop())
    for _, each in ipairs { leader, rest } do
      each:kill("sigstop")
      each.paused = true
    end
    victim:start()
    knows_it_is_removed(victim)
    for _, each in ipairs { leader, rest } do
      each:kill("sigcont")
      each.paused = nil
    end
    victim:json("manager", "leave")
    victim:json("manager", "join", rest:remote(), "--token", t.tokens.manager)
    settled(leader, m, 3)
    assert.equal("2", victim:json("kv", "get", "a").value)
  end))

  it("leaves it no way back as a member that is still to come", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    local gone = others[1]
    leader:json("manager", "remove", tostring(leader:member(gone).raft_node_id))
    cluster.wait_for("the removed one to know", 15, function()
      return gone:log():find("it stops serving", 1, true) ~= nil
    end)
    cluster.wait_for("it to have stopped, and to come up as another", 15, function()
      local result = gone:cli("lua", "-e", AS_ANOTHER)
      return result.code == 0, result.out .. result.err
    end)
    for _, m in ipairs { leader, others[2] } do
      cluster.wait_for("its certificate to be refused by " .. m.label, 15, function()
        return m:log():find("as 1000 refused: the certificate is not this member's", 1, true) ~= nil, m:log_tail(5)
      end)
    end
    leader:json("kv", "put", "a", "1")
  end))

  it("hands the leadership over before it removes the leader", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    leader:json("kv", "put", "a", "1")
    leader:json("manager", "remove", leader:member().name)
    settled(others[1], others, 1)
    knows_it_is_removed(leader)
    others[2]:json("kv", "put", "a", "2")
    assert.equal("2", others[1]:json("kv", "get", "a").value)
  end))

  it("removes a dead member by its raft id", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    local id = others[1]:member().raft_node_id
    others[1]:crash()
    leader:json("manager", "remove", tostring(id))
    settled(leader, { leader, others[2] }, 1)
    leader:json("kv", "put", "a", "1")
    -- Those that it meets again have started since: they know of it from the state.
    for _, each in ipairs { leader, others[2] } do
      assert.equal(0, each:stop())
      each:start()
    end
    settled(leader, { leader, others[2] }, 1)
    others[1]:start()
    knows_it_is_removed(others[1])
  end))

  it("refuses what would cost the quorum, and the last one", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    others[1]:crash()
    cluster.wait_for("the dead one to be seen as such", 10, function()
      local row = leader:member(others[1])
      return not row.reachable, row
    end)
    local refused = leader:fails("manager", "remove", tostring(others[2]:member().raft_node_id))
    assert.truthy(refused.message:lower():find("quorum"), refused.message)
    assert.truthy(refused.hint:find("--force", 1, true), refused.hint)
    assert.equal(3, #leader:json("manager", "members"))
    local unknown = leader:fails("manager", "remove", "no-such-member")
    assert.equal("not_found", unknown.code)
  end))

  it("refuses to remove the only manager", cluster.scenario(function(t)
    local m = t:cluster(1)
    local refused = m[1]:fails("manager", "remove", "1")
    assert.is_string(refused.code)
    m[1]:json("kv", "put", "a", "1")
  end))

  it("promotes a standby when a voter is gone for good", cluster.scenario(function(t)
    local m = t:cluster(4)
    settled(m[1], m, 3)
    local leader = t:leader()
    local victim
    for _, row in ipairs(leader:json("manager", "members")) do
      if row.raft_role == "voter" and not row.leader then victim = t:by_address(row.raft_address) end
    end
    -- Gone for a while is not gone for good.
    victim:crash()
    leader:json("kv", "put", "a", "1")
    assert.equal("voter", leader:member(victim).raft_role)
    leader:json("manager", "remove", leader:member(victim).name)
    local left = {}
    for _, each in ipairs(m) do
      if each ~= victim then left[#left + 1] = each end
    end
    settled(leader, left, 3)
  end))

  it("grows to five voters and back", cluster.scenario(function(t)
    local m = t:cluster(5)
    settled(m[1], m, 5)
    m[1]:json("kv", "put", "a", "5")
    for i = 5, 4, -1 do
      m[1]:json("manager", "remove", tostring(m[i]:member().raft_node_id))
      knows_it_is_removed(m[i])
      m[i] = nil
    end
    settled(m[1], m, 3)
    assert.equal("5", m[1]:json("kv", "get", "a").value)
  end))
end)

describe("manager leave and transfer", function()
  it("leaves by itself, leader or not, and can join anew", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    leader:json("kv", "put", "a", "1")
    leader:json("manager", "leave")
    settled(others[1], others, 1)
    assert.equal("1", others[1]:json("kv", "get", "a").value)
    if not leader:is_running() then leader:start() end
    cluster.wait_for("a new join", 20, function()
      local result = leader:cli("manager", "join", others[1]:remote(), "--token", t.tokens.manager)
      return result.code == 0, result.out .. result.err
    end)
    settled(others[1], t.managers, 3)
    assert.equal("1", leader:json("kv", "get", "a").value)
  end))

  it("hands the leadership to whom one names", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    leader:json("manager", "transfer", tostring(others[1]:member().raft_node_id))
    assert.equal(others[1], (t:leader()))
    others[1]:json("manager", "transfer")
    assert.not_equal(others[1], (t:leader()))
  end))
end)

describe("manager join", function()
  it("takes two at once", cluster.scenario(function(t)
    local m = t:cluster(1)
    local joins = {}
    for i = 2, 3 do m[i] = t:manager():start() end
    for i = 2, 3 do joins[i] = proc.begin(join_line(t, m[i], m[1])) end
    for i = 2, 3 do
      assert.truthy(proc.pump(30 * cluster.patience, joins[i].ended), "the join hangs")
      assert.equal(0, joins[i].process.code, joins[i].out .. joins[i].err)
    end
    settled(m[1], m, 3)
    m[3]:json("kv", "put", "a", "1")
  end))

  it("takes ten at once, and uses a token up exactly", cluster.scenario(function(t)
    local m = t:cluster(1)
    local token = m[1]:json("token", "create", "--role", "manager", "--uses", "9").token
    local joins = {}
    for i = 2, 11 do m[i] = t:manager():start() end
    for i = 2, 11 do
      joins[i] = proc.begin { cluster.symphony, "--socket", m[i].socket, "--json", "manager", "join", m[1]:remote(),
        "--token", token }
    end
    local outside
    for i = 2, 11 do
      assert.truthy(proc.pump(60 * cluster.patience, joins[i].ended), "the join hangs")
      local said = joins[i].out .. joins[i].err
      if joins[i].process.code ~= 0 then
        assert.is_nil(outside, said)
        assert.truthy(said:find('"code":"denied"', 1, true), said)
        outside = i
      end
    end
    local late = table.remove(m, assert(outside, "eleven members with a token for nine"))
    settled(m[1], m, 5)
    assert.equal("no_cluster", late:fails("kv", "get", "a").code)
    m[9]:json("kv", "put", "a", "1")
  end))

  it("goes through a follower", cluster.scenario(function(t)
    local m = t:cluster(3)
    local _, others = t:leader()
    m[4] = t:manager():start()
    m[4]:json("manager", "join", others[1]:remote(), "--token", t.tokens.manager)
    settled(m[1], m, 3)
  end))

  it("brings a wiped manager back as a new member", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    local wiped = others[1]
    local old = wiped:member()
    wiped:crash()
    proc.run { "rm", "-rf", "--", wiped.dir }
    leader:json("kv", "put", "a", "1")
    wiped:start()
    -- The address is still the dead member's: it says so, and uses nothing up.
    local once = leader:json("token", "create", "--role", "manager", "--uses", "1").token
    local failure = wiped:fails("manager", "join", leader:remote(), "--token", once)
    assert.equal("exists", failure.code)
    assert.truthy(failure.hint:find("manager remove " .. old.raft_node_id, 1, true), failure.hint)
    assert.equal(3, #leader:json("manager", "members"))
    leader:json("manager", "remove", tostring(old.raft_node_id))
    wiped:json("manager", "join", leader:remote(), "--token", once)
    local rows = settled(leader, t.managers, 3)
    for _, row in ipairs(rows) do assert.not_equal(old.raft_node_id, row.raft_node_id) end
    assert.equal("1", wiped:json("kv", "get", "a").value)
    assert.truthy(uv.fs_stat(wiped.dir .. "/key.json"))
  end))

  it("gives one that has kept its key alone another raft id, and a certificate for it", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    local back = others[1]
    local old = back:member()
    back:crash()
    for _, name in ipairs { "key.json", "raft", "state", "tls/node.crt" } do
      proc.run { "rm", "-rf", "--", back.dir .. "/" .. name }
    end
    cluster.wait_for("it to be missed", 15, function()
      return leader:member(back).reachable == false
    end)
    back:start()
    back:json("manager", "join", leader:remote(), "--token", t.tokens.manager)
    settled(leader, t.managers, 3)
    local now = back:member()
    assert.equal(old.node_id, now.node_id)
    assert.is_true(now.raft_node_id > old.raft_node_id)
    -- It is heard as what it is now, also after a start.
    assert.equal(0, back:stop())
    back:start()
    settled(back, t.managers, 3)
    back:json("manager", "transfer", tostring(now.raft_node_id))
    back:json("kv", "put", "a", "1")
  end))

  it("gives it one also without a token, when somebody approves it", cluster.scenario(function(t)
    t:cluster(3)
    local leader, others = t:leader()
    local back = others[1]
    local old = back:member()
    back:crash()
    for _, name in ipairs { "key.json", "raft", "state", "tls/node.crt" } do
      proc.run { "rm", "-rf", "--", back.dir .. "/" .. name }
    end
    cluster.wait_for("it to be missed", 15, function()
      return leader:member(back).reachable == false
    end)
    back:start()
    local join = proc.begin { cluster.symphony, "--socket", back.socket, "--json", "manager", "join", leader:remote() }
    local request = cluster.wait_for("the request", 20, function()
      proc.pump(1, function() return join.ended() or join.err:find("fingerprint", 1, true) end)
      return leader:json("node", "pending")[1], join.err
    end)
    assert.same({ old.name, old.raft_node_id }, { request.name, request.replaces })
    assert.equal(old.raft_node_id, leader:member(back).raft_node_id)
    leader:json("node", "approve", request.id, "--fingerprint", request.fingerprint)
    assert.truthy(proc.pump(30 * cluster.patience, join.ended), "the join hangs: " .. join.out .. join.err)
    assert.equal(0, join.process.code, join.out .. join.err)
    settled(leader, t.managers, 3)
    assert.same({ old.node_id, old.name }, { back:member().node_id, back:member().name })
    assert.is_true(back:member().raft_node_id > old.raft_node_id)
    assert.equal(0, #leader:json("node", "pending"))
  end))
end)
