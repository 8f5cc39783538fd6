require "spec.unit.cluster_fake"
local removal = require "symphony.cluster.removal"
local voters = require "symphony.cluster.voters"

local function member(id, leaving, forced) return { id = id, name = "m" .. id, address = "a" .. id, leaving = leaving,
  forced = forced } end
local function server(id, role, down) return { id = id, role = role or "voter", up = not down, address = "a" .. id } end

local function members(n)
  local list = {}
  for i = 1, n do list[i] = member(i) end
  return list
end

local function text(step)
  return step.step .. (step.id and " " .. step.id or "") .. (step.role and " " .. step.role or "")
end

-- The whole way as text.
local function way(list, servers, leader)
  local steps, last = voters.simulate(list, servers, leader or 1)
  local out = {}
  for i, step in ipairs(steps) do out[i] = text(step) end
  out[#out + 1] = last.step
  return table.concat(out, ", ")
end

describe("voters.target", function()
  it("is 1, 3 or 5", function()
    local want = { [0] = 0, 1, 1, 3, 3, 5, 5, 5, 5 }
    for n = 0, 8 do assert.equal(want[n], voters.target(n)) end
    assert.equal(0, voters.tolerates(2))
    assert.equal(1, voters.tolerates(3))
    assert.equal(2, voters.tolerates(5))
  end)
end)

describe("voters.plan", function()
  it("takes in a second manager as a standby", function()
    assert.equal("add 2", text(voters.plan(members(2), { server(1) }, 1)))
    assert.equal("assign 2 standby", text(voters.plan(members(2), { server(1), server(2, "spare") }, 1)))
    assert.equal("none", text(voters.plan(members(2), { server(1), server(2, "standby") }, 1)))
  end)

  it("takes in who has the address of one that goes when that one is out", function()
    local list = { member(1), member(2, true), member(3), { id = 4, name = "m4", address = "a2" } }
    local servers = { server(1), server(2, "voter", true), server(3) }
    assert.equal("remove 2", text(voters.plan(list, servers, 1)))
    assert.equal("add 4", text(voters.plan({ list[1], list[3], list[4] }, { servers[1], servers[3] }, 1)))
    -- Its old id may be gone from the state already; and who comes under another address does not wait.
    assert.equal("remove 2", text(voters.plan({ list[1], list[3], list[4] }, servers, 1)))
    list[5] = member(5)
    assert.equal("add 5", text(voters.plan(list, servers, 1)))
  end)

  it("goes from one voter to three without a pause at two", function()
    assert.equal("assign 2 voter, assign 3 voter, none", way(members(3), { server(1), server(2, "standby"),
      server(3, "standby") }))
    -- Not while the third is not there.
    assert.equal("wait", way(members(3), { server(1), server(2, "standby"), server(3, "standby", true) }))
    -- But once at two, on.
    assert.equal("assign 3 voter, none", way(members(3), { server(1), server(2), server(3, "standby") }))
  end)

  it("leaves a newcomer that is down a spare", function()
    assert.equal("none", way(members(2), { server(1), server(2, "spare", true) }))
  end)

  it("grows to five and shrinks back", function()
    local servers = { server(1), server(2), server(3), server(4, "standby"), server(5, "standby") }
    assert.equal("assign 4 voter, assign 5 voter, none", way(members(5), servers))
    servers = { server(1), server(2), server(3), server(4), server(5) }
    local list = members(5)
    list[2].leaving = true
    assert.equal("remove 2, assign 5 standby, none", way(list, servers))
  end)

  it("keeps a dead voter's seat until somebody removes it", function()
    local servers = { server(1), server(2), server(3, "voter", true), server(4, "standby") }
    assert.equal("none", way(members(4), servers))
    local list = members(4)
    list[3].leaving = true
    assert.equal("remove 3, assign 4 voter, none", way(list, servers))
  end)

  it("replaces a live voter before it takes it out", function()
    local list = members(4)
    list[2].leaving = true
    assert.equal("assign 4 voter, remove 2, none", way(list, { server(1), server(2), server(3), server(4, "standby") }))
  end)

  it("hands the leadership over before it takes the leader out", function()
    local list = members(3)
    list[1].leaving = true
    assert.equal("transfer 2, remove 1, assign 3 standby, none", way(list, { server(1), server(2), server(3) }))
    list = members(2)
    list[1].leaving = true
    assert.equal("assign 2 voter, transfer 2, remove 1, none", way(list, { server(1), server(2, "standby") }))
    assert.equal("wait", way(list, { server(1), server(2, "standby", true) }))
  end)

  it("takes out who has no vote at once, and a server that no member owns", function()
    local list = members(2)
    list[2].leaving = true
    assert.equal("remove 2, none", way(list, { server(1), server(2, "standby", true) }))
    assert.equal("remove 9, none", way(members(1), { server(1), server(9, "spare") }))
    assert.equal("remove 9, none", way(members(3), { server(1), server(2), server(3), server(9) }))
  end)

  it("takes a newcomer in although a voter is down, but changes no votes then", function()
    local servers = { server(1), server(2), server(3, "voter", true) }
    assert.equal("add 4", text(voters.plan(members(4), servers, 1)))
    servers[4] = server(4, "spare")
    assert.equal("assign 4 standby", text(voters.plan(members(4), servers, 1)))
    servers = { server(1), server(2), server(3, "voter", true), server(4, "standby"), server(5, "standby") }
    assert.equal("wait", text(voters.plan(members(5), servers, 1)))
  end)

  it("waits while raft is at a change, without a majority, and before it knows anybody", function()
    assert.equal("wait", text(voters.plan(members(3), { server(1) }, 1, true)))
    assert.equal("wait", text(voters.plan(members(3), { server(1), server(2, "voter", true), server(3, "voter",
      true) }, 1)))
    assert.equal("wait", text(voters.plan({}, { server(1) }, 1)))
  end)

  it("costs the quorum only when forced", function()
    local servers = { server(1), server(2), server(3, "voter", true) }
    local list = members(3)
    list[2].leaving = true
    assert.equal("wait", way(list, servers))
    list[2].forced = true
    assert.truthy(way(list, servers):find("^remove 2"))
  end)

  -- Histories: members come, go, die and come back; a step is taken when the plan says so. What must always hold is
  -- checked at each step; when all are well again, it ends at the target.
  it("holds its invariants over random histories", function()
    for seed = 1, 400 do
      math.randomseed(seed)
      local list, servers, leader, next_id = { member(1) }, { server(1) }, 1, 2
      local function by_id(id)
        for _, s in ipairs(servers) do
          if s.id == id then return s end
        end
      end
      local function tally()
        local n, up = 0, 0
        for _, s in ipairs(servers) do
          if s.role == "voter" then
            n = n + 1
            if s.up then up = up + 1 end
          end
        end
        return n, up
      end
      local trace = {}
      local function check(ok, what)
        if not ok then error(("seed %d: %s\n%s"):format(seed, what, table.concat(trace, "\n")), 0) end
      end
      local function take_step()
        local n, up = tally()
        if not by_id(leader).up or up <= n // 2 then return false end
        local step = voters.plan(list, servers, leader)
        trace[#trace + 1] = text(step)
        if step.step == "none" or step.step == "wait" then return false end
        local target = by_id(step.id)
        local was = target and target.role
        if step.step == "transfer" then check(target.role == "voter" and target.up, "no heir") end
        if step.step == "remove" then check(step.id ~= leader, "the leader is taken out") end
        if step.step == "assign" and step.role == "voter" then
          check(was == "standby" and target.up and up == n, "a vote for one that is not ready, or with one down")
        end
        if step.step == "assign" and step.role == "standby" then check(was == "spare" or up == n,
          "demoted with one down") end
        servers, leader = voters.apply(servers, step, leader, math.random() < 0.9)
        local n_after, up_after = tally()
        check(math.abs(n_after - n) <= 1, "two votes at once")
        check(up_after > n_after // 2, "the quorum is lost by " .. text(step))
        check(n_after >= 1, "no voter left")
        -- Who is out of raft and was to go is out of the state, too.
        for i = #list, 1, -1 do
          if list[i].leaving and not by_id(list[i].id) then table.remove(list, i) end
        end
        return true
      end
      for _ = 1, 60 do
        local dice, some = math.random(10), list[math.random(#list)]
        if dice <= 3 and #list < 8 then
          list[#list + 1] = member(next_id)
          next_id = next_id + 1
        elseif dice == 4 then
          local stay = 0
          for _, m in ipairs(list) do stay = stay + (m.leaving and 0 or 1) end
          if stay > 1 then some.leaving = true end
        elseif dice == 5 and by_id(some.id) and some.id ~= leader then
          by_id(some.id).up = not by_id(some.id).up
          local n, up = tally()
          if up <= n // 2 then by_id(some.id).up = true end
        elseif dice == 6 then
          for _, s in ipairs(servers) do
            if s.role == "voter" and s.up and math.random(2) == 1 then leader = s.id end
          end
        end
        trace[#trace + 1] = "dice " .. dice .. " " .. some.id
        take_step()
      end
      for _, s in ipairs(servers) do s.up = true end
      local steps = 0
      while take_step() do
        for _, s in ipairs(servers) do s.up = true end
        steps = steps + 1
        check(steps < 100, "it never ends")
      end
      local n = tally()
      check(n == voters.target(#list), ("%d voters for %d members"):format(n, #list))
      check(#servers == #list, ("%d servers for %d members"):format(#servers, #list))
    end
  end)
end)

describe("removal.decide", function()
  local three = { server(1), server(2), server(3) }

  it("says what would happen", function()
    local d = removal.decide(members(3), three, 1, 1)
    assert.is_true(d.ok)
    assert.same({ "the leadership goes to m2 (raft id 2)", "m1 (raft id 1) is taken out of the configuration",
      "m3 (raft id 3) becomes standby" }, d.steps)
    assert.equal(1, d.voters)
    assert.equal(0, d.tolerates)
    assert.is_nil(removal.refusal(d, "m1"))
  end)

  it("refuses what would cost the quorum, and says so", function()
    local d = removal.decide(members(3), { server(1), server(2), server(3, "voter", true) }, 1, 2)
    assert.is_false(d.ok)
    local err = removal.refusal(d, "m2")
    assert.equal("conflict", err.code)
    assert.truthy(err.message:find("quorum"))
    assert.truthy(err.hint:find("--force", 1, true))
    -- The dead one may go.
    assert.is_true(removal.decide(members(3), { server(1), server(2), server(3, "voter", true) }, 1, 3).ok)
  end)

  it("refuses the last one", function()
    local d = removal.decide(members(1), { server(1) }, 1, 1)
    assert.is_false(d.ok)
    assert.is_true(d.last)
    assert.truthy(removal.refusal(d, "m1").message:find("last"))
  end)

  it("lets one go whom raft has not got yet", function()
    assert.is_true(removal.decide(members(2), { server(1) }, 1, 2).ok)
  end)

  it("takes the only voter out when a standby can follow it", function()
    assert.is_true(removal.decide(members(2), { server(1), server(2, "standby") }, 1, 1).ok)
    assert.is_false(removal.decide(members(2), { server(1), server(2, "standby", true) }, 1, 1).ok)
  end)
end)
