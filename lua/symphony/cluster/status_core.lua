-- What the leader writes of the nodes' status, decided from what it sees. Pure: time and evidence come in, changes,
-- probes and things to say come out; what it remembers is in a table of its own, gone with the leadership.
--
-- The rules:
--   down   needs two things: gossip has found the node dead (or has not known it for NEVER_S), and a direct probe has
--          failed, or, where no probe could be made, the node's connection is lost. A probe is asked for as soon as
--          gossip suspects, so that its verdict is there when it says dead. Who answers is not down, whatever gossip
--          says. A node that has spoken and is connected since gossip found it dead, as one that was killed and has
--          just been started again, is down only when it does not answer again and again.
--   ready  gossip says alive, or the node itself has said so (status_report.lua), or it has connected since.
--   left   gossip has been told so by the node, or the leader has.
-- Damping: a loss is told at once, a return the later the more often the node was lost shortly before (hold()): a node
-- that flaps is shown as down. How often is in its record, so that the next leader knows. A leader that was just
-- elected takes over what is recorded, and calls nobody down before it and its gossip have had GRACE_S. When more than
-- a third of the nodes that were ready seem lost within WINDOW_S, the leader doubts itself: it holds back for DOUBT_S,
-- and then calls them down only with a quorum that has been confirmed meanwhile and with probes that still fail.
local M = {}

M.GRACE_S = 5         -- before a new leader, or one whose gossip has just begun, calls a node down
M.READY_GRACE_S = 1   -- and ready again
M.NEVER_S = 30        -- for a node that gossip does not know to be heard of
M.FRESH_S = 3         -- a failed probe counts when it is at most so much older than gossip's word
M.AGAIN_S = 2         -- between two probes of a node that did not answer
M.OLD_FAILS = 3       -- probes in vain of a node of whom gossip has only old news
M.BACKOFF_MAX_S = 30  -- between two of one that did
M.PROBES_MAX = 32     -- at once
M.LOST_LINK_S = 60    -- a lost connection says something for so long
M.LEFT_S = 10         -- for gossip to hear that a node has left
M.CALM_S = 60         -- a node that was ready for so long has never flapped
M.HOLD_MAX_S = 300
M.WINDOW_S = 30
M.DOUBT_S, M.DOUBT_MAX_S = 15, 30 -- the longer one while gossip says that this machine itself is slow
M.DOUBT_TOLD_S = 60   -- between two events about it
M.QUORUM_S = 5        -- a confirmed quorum counts for so long
M.SAMPLE = 8          -- of the lost nodes are probed again and again meanwhile
M.HEALTH_BAD = 4      -- of gossip's local health, 0 is best
M.LOOK_MAX = 512      -- nodes in one look: some milliseconds

--- What a leader remembers. @now: seconds of a clock that only rises.
function M.new(now)
  return { began = now, nodes = {}, touched = {}, running = 0, downs = {}, lost = {}, lost_count = 0, cursor = "",
    round = 0 }
end

local function node_of(mem, id, now)
  local n = mem.nodes[id]
  if not n then
    n = { first = now, next_probe = 0, oks = 0, fails = 0 }
    mem.nodes[id] = n
  end
  return n
end

--- Something has changed about @id: it is looked at.
function M.touch(mem, id)
  mem.touched[id] = true
end

--- A probe of @id has ended: @ok true, false, or nil if it says nothing about the node; @why it failed.
function M.probed(mem, id, ok, why, now)
  mem.running = mem.running - 1
  local n = mem.nodes[id]
  if not n then return end
  n.running = nil
  if ok == nil then
    n.next_probe = now + 1
  elseif ok then
    n.verdict, n.verdict_at, n.why, n.oks, n.fails = "ok", now, nil, n.oks + 1, 0
    n.next_probe = now + math.min(2 ^ (n.oks - 1), M.BACKOFF_MAX_S)
  else
    n.verdict, n.verdict_at, n.why, n.oks, n.fails = "failed", now, why, 0, n.fails + 1
    n.next_probe = now + M.AGAIN_S
  end
  M.touch(mem, id)
end

--- The node has spoken for itself.
function M.heard(mem, id, now)
  local n = node_of(mem, id, now)
  n.heard, n.verdict, n.verdict_at, n.oks, n.fails, n.next_probe = now, "ok", now, 0, 0, now + 1
  if n.evidence == "unknown" then n.since = now end
  M.touch(mem, id)
end

local function is_gone(seen)
  return seen == "left" or seen == "dead"
end

--- @status of @id is recorded.
function M.recorded(mem, id, status, now)
  local n = node_of(mem, id, now)
  n.gone_seen, n.told = status == "left" and is_gone(n.evidence), nil
  if status == "down" then mem.downs[id] = now end
  M.touch(mem, id)
end

-- Damping -------------------------------------------------------------------------------------------------------------

--- For how many seconds a node that was lost @flaps times shortly before has to be alive before it is called ready.
function M.hold(flaps)
  flaps = math.floor(flaps or 0)
  return flaps < 2 and 0 or math.min(2 ^ (flaps - 1), M.HOLD_MAX_S)
end

--- The count that goes into the record when a node with @record becomes @status at @wall (unix seconds): leaving in
--- order counts half.
function M.flaps(record, status, wall)
  local flaps = record and record.flaps or 0
  if status == "ready" then return flaps end
  if record and record.status == "ready" and wall - record.since > math.max(M.CALM_S, 2 * M.hold(flaps)) then
    flaps = 0
  end
  return flaps + (status == "down" and 1 or 0.5)
end

-- One node ------------------------------------------------------------------------------------------------------------

-- What gossip says now, and since when.
local function observe(n, view, id, now)
  local m = id ~= view.self and view.member(id) or nil
  local seen = id == view.self and "alive" or m and m.state or "unknown"
  if seen ~= n.evidence then
    if seen == "dead" then n.oks, n.next_probe = 0, math.min(n.next_probe, now) end
    n.evidence, n.since = seen, now
    if m then n.since = now - m.age_ms / 1000 end
  elseif m then
    n.since = math.max(n.since, now - m.age_ms / 1000)
  end
  if seen == "alive" then
    n.alive_since = n.alive_since or now
    n.verdict, n.oks, n.told = nil, 0, nil
  elseif seen ~= "suspect" then
    n.alive_since = nil
  end
end

local function ask(mem, plan, id, n, now)
  if n.running then return true end
  if n.next_probe > now or mem.running >= M.PROBES_MAX then return false end
  n.running = now
  mem.running = mem.running + 1
  plan.probes[#plan.probes + 1] = id
  return true
end

-- Seconds since @record was written; the clock of the manager that did may be ahead of ours.
local function age(n, record, view, now)
  return math.max(0, view.wall - record.since, now - n.record_at)
end

-- Back from down or left, or up for the first time; @since: it is there since then.
local function rise(n, view, record, since, now)
  local early = record and record.status == "left" and not n.gone_seen and M.LEFT_S - age(n, record, view, now) or 0
  if early > 0 then return { wait = early } end
  local left = record and since + M.hold(record.flaps) - now or 0
  if left > 0 then return { wait = left } end
  return { want = "ready", reason = record and "it is heard of again" or "it has come up" }
end

local function reason_of(n, lost)
  local text = n.evidence == "unknown"
    and (n.first == n.since and "it has not been heard of since this leader took over" or "it is not heard of any more")
    or n.evidence == "left" and "gossip has last heard that it leaves" or "gossip has found it dead"
  if n.verdict == "failed" then return text .. ", and a direct probe failed" .. (n.why and ": " .. n.why or "") end
  return lost and text .. ", and its connection is lost" or text
end

-- A node that was ready or is yet to come, and that gossip takes for lost.
local function lose(mem, plan, id, n, view, record, now)
  local link = view.link(id)
  local from = n.turned_at or -math.huge
  local lost = link and not link.up and (link.s or 0) <= M.LOST_LINK_S and now - (link.s or 0) >= from
  local seems = record and record.status == "ready" or false
  local old = n.heard and n.since <= n.heard and link and link.up
  if n.verdict == "failed" and n.verdict_at >= math.max(n.since - M.FRESH_S, from)
    and (not old or n.fails >= M.OLD_FAILS) then
    local reason = not record and n.evidence == "unknown" and "it has not been heard of since it joined"
      or reason_of(n, lost)
    return { want = "down", reason = reason, lost = seems }
  end
  if n.verdict == "ok" and lost and link.s and now - link.s > n.verdict_at then n.next_probe = now end
  if n.verdict == "ok" and not n.told then
    n.told = true
    plan.notes[#plan.notes + 1] = { id = id, verdict = n.evidence }
  end
  local asked = ask(mem, plan, id, n, now)
  if n.verdict == "ok" then return { wait = math.max(0.05, n.next_probe - now) } end
  if not asked and lost then return { want = "down", reason = reason_of(n, lost), lost = seems } end
  return { wait = asked and 1 or math.max(0.1, n.next_probe - now), lost = seems }
end

-- {want = status, reason =} or {wait = seconds until the next look}, {} when all is as it should be; lost = true when
-- the node is ready in the state and seems to be lost.
local function judge(mem, plan, id, n, view, record, now)
  local is, seen = record and record.status, n.evidence
  if record and (n.record_since ~= record.since or n.record_is ~= is) then
    -- What was seen of it before, it has overtaken: its report is written before this leader goes on with it.
    n.turned_at = n.record_is and now or nil
    n.record_since, n.record_is, n.record_at = record.since, is, now
  end
  if is == "left" and is_gone(seen) then n.gone_seen = true end
  if seen == "alive" then
    if is == "ready" then return {} end
    return rise(n, view, record, n.alive_since, now)
  elseif seen == "suspect" then
    if is == "down" or is == "left" then return {} end
    ask(mem, plan, id, n, now)
    return { wait = math.max(0.1, n.running and 1 or n.next_probe - now),
      lost = is == "ready" and n.verdict == "failed" }
  end
  local link = view.link(id)
  if seen == "left" and link and link.up and now - n.since > M.LEFT_S then
    -- It is connected long after that: gossip has not heard of its new start.
    if is == "ready" then return {} end
    return rise(n, view, record, now - (link.s or 0), now)
  elseif seen == "left" and not (n.heard and n.since <= n.heard) then
    if is == "left" then return link and link.up and { wait = M.LEFT_S } or {} end
    return { want = "left", reason = "it was stopped in order" }
  end
  if is == "down" or is == "left" then
    local up = link and link.up and link.s
    if up and up < age(n, record, view, now) then return rise(n, view, record, now - up, now) end
    return {}
  elseif seen == "unknown" then
    if link and link.up then return {} end
    if now - n.since < M.NEVER_S then return { wait = M.NEVER_S - (now - n.since) } end
  end
  return lose(mem, plan, id, n, view, record, now)
end

-- All of them ---------------------------------------------------------------------------------------------------------

-- How many were called down within WINDOW_S and are still.
local function count_recent(mem, view, now)
  local n = 0
  for id, at in pairs(mem.downs) do
    local record = view.status(id)
    if now - at < M.WINDOW_S and record and record.status == "down" then
      n = n + 1
    else
      mem.downs[id] = nil
    end
  end
  return n
end

-- Do the first of @losses fail to answer still? They are probed again.
local function still_lost(mem, plan, losses, now)
  local failing = #losses > 0
  for i = 1, math.min(#losses, M.SAMPLE) do
    local n = mem.nodes[losses[i].id]
    ask(mem, plan, losses[i].id, n, now)
    failing = failing and n.verdict == "failed" and now - n.verdict_at <= 2 * M.AGAIN_S + 1
  end
  return failing
end

local function begin_doubt(mem, plan, total, population, now)
  mem.doubt = { since = now }
  if now - (mem.doubt_told or -math.huge) >= M.DOUBT_TOLD_S then
    mem.doubt_told = now
    plan.suspects = { lost = total, of = population }
  end
end

-- May @losses be called down? @lost: how many ready nodes seem lost, they among them.
local function sure(mem, plan, view, losses, lost, now)
  local recent = count_recent(mem, view, now)
  local total, population = lost + recent, view.ready + recent
  local over = lost > 0 and total >= 2 and 3 * total > population
  if over and not mem.doubt then begin_doubt(mem, plan, total, population, now) end
  local doubt = mem.doubt
  if not doubt then return true end
  if not over then
    if not doubt.certain or recent == 0 then
      mem.doubt = nil
      plan.trusts = not doubt.certain
    end
    return true
  elseif doubt.certain then
    return true
  end
  plan.check = true
  local held = now - doubt.since
  local failing = still_lost(mem, plan, losses, now)
  local quorum = view.quorum_at and view.quorum_at > doubt.since and now - view.quorum_at <= M.QUORUM_S
  local slow = (view.health or 0) >= M.HEALTH_BAD and held < M.DOUBT_MAX_S
  if held >= M.DOUBT_S and failing and quorum and not slow then
    doubt.certain = true
    plan.certain = { lost = lost, of = population }
    return true
  end
  return false
end

-- The nodes to look at now, and whether there are more.
local function next_ids(mem)
  local all, out = {}, {}
  for id in pairs(mem.touched) do all[#all + 1] = id end
  table.sort(all)
  if #all <= M.LOOK_MAX then return all, false end
  local first = 1
  while all[first] and all[first] <= mem.cursor do first = first + 1 end
  for i = first, first + M.LOOK_MAX - 1 do out[#out + 1] = all[(i - 1) % #all + 1] end
  if out[#out] <= mem.cursor then mem.round = mem.round + 1 end
  mem.cursor = out[#out]
  return out, true
end

-- Is it time to believe that a node is lost? When all cannot be looked at at once, how many there are is known only
-- after a whole round.
local function counted(mem, n, more)
  n.lost_round = n.lost_round or mem.round
  return not more or mem.round >= n.lost_round + 2
end

local function note_lost(mem, id, lost)
  lost = lost or nil
  if mem.lost[id] ~= lost then mem.lost_count = mem.lost_count + (lost and 1 or -1) end
  mem.lost[id] = lost
end

local function allowed_at(mem, view, want)
  local grace = want == "ready" and M.READY_GRACE_S or M.GRACE_S
  return math.max(mem.began, view.gossip_since or math.huge) + grace
end

--- Looks at the nodes that were touched, and at those that it waits for. @view:
---   self          this node's id                wall    unix seconds
---   gossip_since  since when gossip has a view of the whole (same clock as @now); nil: it has none
---   ready         how many nodes are recorded as ready
---   quorum_at     when the quorum was last confirmed         health  gossip's local health
---   node(id)      its record in short, nil if there is none  status(id)  its status record, nil while it joins
---   member(id)    what gossip says: {state, age_ms}          link(id)    {up, s = seconds since it came or was lost}
--- Returns {changes = {{id, status, reason}}, probes = {id}, notes = {{id, verdict}} (they answer, though gossip takes
--- them for "dead" or "unknown"), check = true when the quorum is to be confirmed, suspects, certain = {lost, of} and
--- trusts = true at the turns of a doubt, wait = seconds until the next look}. A change is repeated until it is
--- recorded().
function M.decide(mem, view, now)
  local plan = { changes = {}, probes = {}, notes = {}, wait = math.huge }
  local ids, more = next_ids(mem)
  local losses = {}
  local function later(seconds)
    plan.wait = math.min(plan.wait, seconds)
  end
  if more then later(0) end
  for _, id in ipairs(ids) do
    local node = view.node(id)
    local n = node and node_of(mem, id, now)
    local verdict = {}
    if not node then
      mem.nodes[id] = nil
    elseif view.gossip_since or id == view.self then
      observe(n, view, id, now)
      verdict = judge(mem, plan, id, n, view, view.status(id), now)
    end
    note_lost(mem, id, verdict.lost)
    local first = verdict.want == "ready" and not view.status(id)
    local early = verdict.want and not first and allowed_at(mem, view, verdict.want) - now or 0
    if n and not verdict.lost then n.lost_round = nil end
    if early > 0 then
      -- What is found meanwhile shall be of now when it is believed.
      if verdict.want == "down" then ask(mem, plan, id, n, now) end
      verdict = { wait = math.min(early, M.AGAIN_S) }
    elseif verdict.lost and verdict.want and not counted(mem, n, more) then
      verdict = { wait = 0 }
    elseif verdict.want then
      local list = verdict.lost and losses or plan.changes
      list[#list + 1] = { id = id, status = verdict.want, reason = verdict.reason }
    end
    if verdict.wait then later(verdict.wait) elseif not verdict.want then mem.touched[id] = nil end
  end
  local early = allowed_at(mem, view, "down") > now
  if early or sure(mem, plan, view, losses, mem.lost_count, now) then
    table.move(losses, 1, #losses, #plan.changes + 1, plan.changes)
  else
    later(0.5)
  end
  return plan
end

return M
