-- Which manager votes: from the members that the state names and the servers that raft has, the next single step. Pure.
--
-- 1, 3 or 5 voters, counted from the members and never from who is reachable just now. A voter that is down keeps its
-- seat; it is replaced when somebody removes it. The voters change only while all of them are up, except to take out a
-- dead one; spares and standbys, who have no vote, may come and go while a majority is up.
--
--   member  {id, address, leaving, forced}  id: raft id; leaving: it is to be removed; forced: whatever it costs
--   server  {id, role, up, address}         role: "voter" | "standby" | "spare"; the leader itself is up
--
-- A step is {step = "add"|"assign"|"remove"|"transfer", id, role?, why}; {step = "none"} when all is as it should be;
-- {step = "wait", why, blocked = id?} when something has to happen first. A wait with stuck = true will not pass while
-- the servers stay as they are.
local M = {}

-- How many of @n members vote.
function M.target(n)
  if n >= 5 then return 5 end
  if n >= 3 then return 3 end
  return n >= 1 and 1 or 0
end

-- How many of @voters may be lost.
function M.tolerates(voters)
  return voters < 1 and 0 or (voters - 1) // 2
end

local function majority(n)
  return n // 2 + 1
end

local function step(kind, id, why, role)
  return { step = kind, id = id, why = why, role = role }
end

local function wait(why, blocked)
  return { step = "wait", why = why, blocked = blocked, stuck = blocked ~= nil }
end

local function by_id(a, b)
  return a.id < b.id
end

local function survey(members, servers, leader)
  local s = { member = {}, stay = 0, voters = {}, standbys = {}, spares = {}, up = 0, server = {} }
  for _, m in ipairs(members) do
    s.member[m.id] = m
    if not m.leaving then s.stay = s.stay + 1 end
  end
  local sorted = table.move(servers, 1, #servers, 1, {})
  table.sort(sorted, by_id)
  for _, server in ipairs(sorted) do
    local m = s.member[server.id]
    local row = { id = server.id, role = server.role, up = server.up or server.id == leader,
      goes = m == nil or m.leaving or false, forced = m ~= nil and m.forced or false, leader = server.id == leader }
    s.server[row.id] = row
    if row.role == "voter" then
      table.insert(s.voters, row)
      if row.up then s.up = s.up + 1 end
    else
      table.insert(row.role == "standby" and s.standbys or s.spares, row)
    end
  end
  return s
end

local function first(list, want)
  for _, row in ipairs(list) do
    if want(row) then return row end
  end
end

local function count(list, want)
  local n = 0
  for _, row in ipairs(list) do
    if want(row) then n = n + 1 end
  end
  return n
end

local function goes(row)
  return row.goes
end

local function candidate(row)
  return row.up and not row.goes
end

-- A voter that goes and is down: out first, for as long as it is in it counts against the quorum.
local function remove_dead(s)
  local dead = first(s.voters, function(row) return row.goes and not row.up end)
  if not dead then return nil end
  if s.up < majority(#s.voters) then return wait("no majority of the voters is up", dead.id) end
  if s.up < majority(#s.voters - 1) and not dead.forced then
    return wait(("without raft id %d a majority would be missing"):format(dead.id), dead.id)
  end
  return step("remove", dead.id, "it goes, and it is down")
end

-- Takes out a voter that goes and is up; first it hands the leadership over, if it has it.
local function take_out(s, going)
  if not going.leader then return step("remove", going.id, "it goes") end
  local heir = first(s.voters, candidate)
  if not heir then return wait("no other voter is up that could lead", going.id) end
  return step("transfer", heir.id, "the leader goes")
end

local function going_voter(s)
  return first(s.voters, function(row) return row.goes and not row.leader end)
    or first(s.voters, function(row) return row.goes end)
end

-- With all voters up: the replacement votes before the one that goes stops.
local function remove_live(s)
  local going = going_voter(s)
  if not going then return nil end
  local staying = count(s.voters, candidate)
  if staying < M.target(s.stay) then
    local next_one = first(s.standbys, candidate)
    if next_one then
      return step("assign", next_one.id, ("it takes the place of raft id %d"):format(going.id), "voter")
    end
    if staying == 0 then
      return wait(s.stay == 0 and "it is the last manager" or "no other manager is up that could vote in its place",
        going.id)
    end
  end
  return take_out(s, going)
end

-- The same while a voter that stays is down: the rest has to be a majority without the one that goes.
local function remove_live_short(s, down)
  local going = going_voter(s)
  if not going then return nil end
  if s.up - 1 < majority(#s.voters - 1) and not going.forced then
    return wait(("raft id %d is down; without raft id %d too a majority would be missing"):format(down.id, going.id),
      going.id)
  end
  return take_out(s, going)
end

-- Towards the target, with all voters up. From an odd count to the next odd one only when both steps can follow each
-- other at once: two voters bear no loss at all, and four no more than three.
local function adjust(s)
  local target, n = M.target(s.stay), #s.voters
  if n < target then
    local ready = count(s.standbys, candidate)
    if ready >= (n % 2 == 0 and 1 or 2) then
      return step("assign", first(s.standbys, candidate).id, ("%d of %d voters"):format(n, target), "voter")
    end
    return wait(("%d of %d voters, and no other manager is up that could be one"):format(n, target), 0)
  end
  if n > target then
    local last
    for _, row in ipairs(s.voters) do
      if not row.leader then last = row end
    end
    return step("assign", last.id, ("%d voters where %d are enough"):format(n, target), "standby")
  end
end

-- The next step for the leader (raft id @leader). @changing: raft is at a change already.
function M.plan(members, servers, leader, changing)
  if changing then return wait("a change is under way") end
  local s = survey(members, servers, leader)
  if s.stay == 0 and #members == 0 then return wait("the members are not known yet") end
  if s.up < majority(#s.voters) then return wait("no majority of the voters is up", 0) end

  -- Those without a vote first: they change nothing for the quorum.
  local gone = first(s.spares, goes) or first(s.standbys, goes)
  if gone then return step("remove", gone.id, "it goes") end
  -- Raft has an address once: who comes under that of one who goes waits until that one is out.
  local taken, new = {}, nil
  for _, server in ipairs(servers) do taken[server.address or ""] = true end
  for _, m in ipairs(members) do
    local waits = m.leaving or s.server[m.id] or taken[m.address]
    if not waits and (not new or m.id < new.id) then new = m end
  end
  if new then return step("add", new.id, "it is a new member") end
  local spare = first(s.spares, function(row) return row.up end)
  if spare then return step("assign", spare.id, "it is a new member", "standby") end

  local dead = remove_dead(s)
  if dead then return dead end
  local down = first(s.voters, function(row) return not row.up end)
  if down then
    if #s.voters == M.target(s.stay) and not going_voter(s) then return step("none") end
    return remove_live_short(s, down) or wait(("voter %d is down"):format(down.id), down.id)
  end
  return remove_live(s) or adjust(s) or step("none")
end

-- What a step makes of the servers: a new list, and the leader's id.
function M.apply(servers, s, leader, up)
  local out = {}
  for _, row in ipairs(servers) do
    if not (s.step == "remove" and row.id == s.id) then
      out[#out + 1] = { id = row.id, role = row.role, up = row.up, address = row.address }
      if s.step == "assign" and row.id == s.id then out[#out].role = s.role end
    end
  end
  if s.step == "add" then out[#out + 1] = { id = s.id, role = "spare", up = up or false } end
  return out, s.step == "transfer" and s.id or leader
end

-- The whole way from here while nobody comes or goes: steps, and the last word ("none" or the wait that stops it).
function M.simulate(members, servers, leader)
  local steps = {}
  for _ = 1, 4 * (#members + #servers) + 8 do
    local s = M.plan(members, servers, leader, false)
    if s.step == "none" or s.step == "wait" then return steps, s, servers end
    steps[#steps + 1] = s
    servers, leader = M.apply(servers, s, leader)
  end
  return steps, { step = "wait", why = "this would never end", blocked = 0, stuck = true }, servers
end

return M
