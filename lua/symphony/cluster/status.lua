-- The leader's hand on /status/node/: what status_core decides is written, each change with its event in one txn; and
-- what nodes report of themselves. On followers it waits.
local agents = require "symphony.cluster.agents"
local async = require "symphony.async"
local core = require "symphony.cluster.status_core"
local errors = require "symphony.errors"
local event_quota = require "symphony.cluster.event_quota"
local events = require "symphony.cluster.events"
local gossip = require "symphony.cluster.gossip"
local identity = require "symphony.cluster.identity"
local leading = require "symphony.cluster.lead"
local limiter = require "symphony.cluster.limiter"
local log = require "sym.log"
local reports = require "symphony.cluster.status_report"
local state = require "symphony.cluster.state"
local status_cache = require "symphony.cluster.status_cache"
local sys = require "sym.sys"

local M = {}

local IDLE_MS, SOON_MS, BUSY_MS = 500, 10, 1000
M.GAP_MS = 200           -- between two txns
local BATCH = 32         -- changes in a txn: each is up to three compares and three ops
local RESYNC_S = 10      -- every node is looked at so often, whatever was or was not heard of it
local PROBE_MS = 1500    -- a probe that has not ended by then has failed
local QUORUM_EVERY_S = 1
local REFUSED_EVERY_S = 60

local loop
local hooked = false
local gossip_since -- when gossip was first there, in this process
local lead         -- what is kept while this manager leads

-- Of reports that write: a burst of ten, then one every five seconds.
local limit = limiter.new(10, 5, 4096)
local refusals = limiter.new(1, REFUSED_EVERY_S, 1024)
-- What a node causes by itself is told some times, and then once a minute: of each node and kind.
local quota = event_quota.new(10, 60, 8192)

local function now()
  return sys.mono_ms() / 1000
end

local function touch(id)
  if not lead then return end
  core.touch(lead.mem, id)
  loop:wake()
end

-- What the leader sees -----------------------------------------------------------------------------------------------

-- Raft's connections by raft id, with the time since when they are as they are.
local function note_links(links, servers, at)
  for _, s in ipairs(servers) do
    local known = links[s.id]
    if not known or known.up ~= (s.up or false) then links[s.id] = { up = s.up or false, at = at } end
  end
end

local function link_of(l, id)
  local n = l.cache.nodes[id]
  if n.role == "manager" then
    local known = l.links[n.raft_node_id]
    return known and { up = known.up, s = now() - known.at }
  end
  local since, ended = agents.connected(id), agents.lost(id)
  if since then return { up = true, s = now() - since / 1000 } end
  return ended and { up = false, s = ended / 1000 } or nil
end

local function begin()
  local l = { mem = core.new(now()), links = {}, ids = {}, resync = -math.huge, wrote = -math.huge,
    quorum_asked = -math.huge }
  l.cache = status_cache.new(function(id)
    core.touch(l.mem, id)
    loop:wake()
  end)
  l.view = {
    self = identity.me.node_id,
    node = function(id) return l.cache.nodes[id] end,
    status = function(id) return l.cache.status[id] end,
    member = gossip.member,
    link = function(id) return link_of(l, id) end,
  }
  return l
end

local function forget()
  if lead then lead.cache:close() end
  lead = nil
end

-- What follows from it ------------------------------------------------------------------------------------------------

-- Errors that tell something about this manager, not about the node.
local OWN = { canceled = true, internal = true, out_of_memory = true, busy = true, no_cluster = true, invalid = true,
  not_found = true }

local function probe(l, id)
  local member, n = gossip.member(id), l.cache.nodes[id]
  local known = member and member.info and member.info.remote_port
  local at = not known and n and n.remote_address or nil -- gossip does not know where: the state does
  async.spawn(function()
    local done, ok, err = pcall(async.with_timeout, PROBE_MS, gossip.probe, id, at)
    if not done then ok, err = nil, errors.from(ok) end
    local verdict = ok and true or false
    if not ok and OWN[err.code] then verdict = nil end
    core.probed(l.mem, id, verdict, not ok and err.message or nil, now())
    loop:wake()
  end)
end

local function confirm_quorum(l)
  local at = now()
  if at - l.quorum_asked < QUORUM_EVERY_S then return end
  l.quorum_asked = at
  async.spawn(function()
    if state.read() then l.view.quorum_at = at end
  end)
end

local function record_event(fields)
  async.spawn(function()
    local ok, err = events.record(fields)
    if not ok then log.warn("an event could not be recorded: " .. err.message) end
  end)
end

local NOTES = { dead = "has found it dead", unknown = "does not hear of it", left = "has heard that it leaves" }

local function say(l, plan)
  for _, note in ipairs(plan.notes) do
    log.info(("status: %s answers a direct probe, though gossip %s: it stays as it is"):format(
      l.cache:name(note.id), NOTES[note.verdict]))
  end
  if plan.suspects then
    local text = ("%d of %d nodes seem to be lost at once: this leader may be the one that is cut off, and holds back")
      :format(plan.suspects.lost, plan.suspects.of)
    log.warn("status: " .. text)
    record_event { kind = "leader.suspects_itself", node = l.cache.nodes[l.view.self], message = text }
  end
  if plan.trusts then log.info("status: the nodes that seemed to be lost are heard of again") end
  if plan.certain then
    log.warn(("status: %d of %d nodes are lost: the quorum is confirmed, and none of those that were probed answers")
      :format(plan.certain.lost, plan.certain.of))
  end
end

local KINDS = { ready = "node.ready", down = "node.down", left = "node.left" }

local function sentence(name, status, reason)
  if status == "left" then return name .. " has left" end
  return ("%s is %s%s"):format(name, status, status == "down" and reason and ": " .. reason or "")
end

-- Adds the change to @txn; the text that says so. nil when the state has gone on since it was decided: a report, most
-- likely, was there before.
local function add_change(txn, l, change)
  local n, key = l.cache.nodes[change.id], status_cache.STATUS .. change.id
  local decided = l.cache.status[change.id]
  local record, kv = state.get(key)
  if (record and record.status) ~= (decided and decided.status) then
    l.cache:refresh(key)
    return nil
  end
  local fresh = {}
  for k, v in pairs(record or {}) do fresh[k] = v end
  local wall = sys.now()
  local flaps, reason = core.flaps(record, change.status, wall), change.reason
  if change.status == "down" and core.hold(flaps) > 0 then
    reason = ("flapping, lost %d times: %s; ready again when it has been heard of for %d s"):format(math.floor(flaps),
      reason, core.hold(flaps))
  end
  fresh.status, fresh.since, fresh.flaps = change.status, math.floor(wall), flaps > 0 and flaps or nil
  fresh.reason = change.status ~= "ready" and reason or nil
  table.insert(txn.compare, { key = status_cache.NODE .. change.id, create_revision = n.create_revision })
  table.insert(txn.compare, kv and state.unchanged(kv) or state.absent(key))
  table.insert(txn.ops, state.put(key, fresh))
  local text = sentence(n.name, change.status, reason)
  events.add(txn, { kind = KINDS[change.status], node = n, message = text, reason = reason })
  return text
end

-- Writes what fits into one txn. Seconds until it may be tried again.
local function write(l, changes)
  local txn, texts, written = { compare = {}, ops = {} }, {}, {}
  for i = 1, math.min(#changes, BATCH) do
    local text = add_change(txn, l, changes[i])
    if text then texts[#texts + 1], written[#written + 1] = text, changes[i] end
  end
  if #written == 0 then return 0 end
  l.wrote = now()
  local result, err = state.submit(txn)
  if lead ~= l then return 0 end
  if not result then
    log.warn("status: " .. err.message)
    return BUSY_MS / 1000
  end
  if result.status ~= "applied" then return M.GAP_MS / 1000 end
  for i, text in ipairs(texts) do
    local change = written[i]
    log[change.status == "down" and "warn" or "info"]("status: " .. text)
    l.cache:refresh(status_cache.STATUS .. change.id)
    core.recorded(l.mem, change.id, change.status, now())
  end
  return 0
end

-- Records of nodes that are gone.
local function sweep(l)
  local txn = { compare = {}, ops = {} }
  for _, id in ipairs(l.cache:orphans(BATCH)) do
    table.insert(txn.compare, state.absent(status_cache.NODE .. id))
    table.insert(txn.ops, state.delete(status_cache.STATUS .. id))
  end
  if #txn.ops > 0 then state.submit(txn) end
end

-- A part of the nodes every second, all of them within RESYNC_S.
local function resync(l, at)
  if at - l.resync < 1 then return end
  l.resync = at
  local ids = l.ids
  if #ids == 0 then
    for id in pairs(l.cache.nodes) do ids[#ids + 1] = id end
    l.part = math.ceil(#ids / RESYNC_S)
    sweep(l)
  end
  for _ = 1, math.min(l.part, #ids) do core.touch(l.mem, table.remove(ids)) end
end

-- One look; the seconds until the next.
local function lead_turn(l, status)
  if not l.cache:load() then return IDLE_MS / 1000 end
  local at = now()
  note_links(l.links, status.servers, at)
  resync(l, at)
  if lead ~= l then return 0 end
  local view = l.view
  view.wall, view.gossip_since, view.health = sys.now(), gossip.started() and gossip_since or nil, gossip.health()
  view.ready = l.cache.ready
  local plan = core.decide(l.mem, view, at)
  for _, id in ipairs(plan.probes) do probe(l, id) end
  if plan.check then confirm_quorum(l) end
  say(l, plan)
  local wait = math.min(plan.wait, 1)
  if #plan.changes > 0 then
    local gap = l.wrote + M.GAP_MS / 1000 - now()
    wait = gap > 0 and gap or write(l, plan.changes)
  end
  return wait
end

-- Gossip has begun: what was looked at without it is looked at again.
local function note_gossip()
  if gossip_since or not gossip.started() then return end
  gossip_since = now()
  for id in pairs(lead and lead.cache.nodes or {}) do core.touch(lead.mem, id) end
end

--- One look at the nodes and at most one txn; returns the milliseconds until the next look.
function M.turn()
  local status = leading.status()
  note_gossip()
  if not status or not identity.me then
    forget()
    return IDLE_MS
  end
  lead = lead or begin()
  return math.max(SOON_MS, math.ceil(lead_turn(lead, status) * 1000))
end

local function hook()
  if hooked then return end
  hooked = true
  gossip.on_event(function(_, member) touch(member.node_id) end)
  agents.on_change(touch)
end

loop = leading.loop("status", BUSY_MS, M.turn, { first_ms = SOON_MS })

--- Runs until stop(); said twice, it is one.
function M.start()
  hook()
  loop:start()
end

function M.stop()
  loop:stop()
  gossip_since = nil
  forget()
end

-- Reports -------------------------------------------------------------------------------------------------------------

local function refuse(n, err)
  if refusals:allow(n.node_id, now()) then
    log.warn(("status: a report as %s is refused: %s"):format(n.name, err.message))
    record_event { kind = "node.refused", node = n, reason = err.message,
      message = ("a process that says it is %s is refused"):format(n.name) }
  end
  return nil, err
end

-- true; nil, err.
local function check_rate(n)
  if limit:allow(n.node_id, now()) then return true end
  return nil, errors.new("busy", ("%s reports changes too often"):format(n.name), "say it again in some seconds")
end

-- Does an earlier process of the node still run, elsewhere? Then this one has a copy of its folder. To look there costs
-- a connection, to where the node has said: it counts as a change does. true; nil, err.
local function check_copy(n, r, counted)
  local other = reports.other_address(n, (state.get(status_cache.STATUS .. n.node_id)), r)
  if not other then return true end
  local ok, err = check_rate(n)
  if not ok then return nil, err end
  counted.done = true
  if gossip.probe(n.node_id, other) then return nil, reports.copy(n.name, other) end
  return true
end

local function check_dev(r)
  local cluster = assert(state.cluster())
  for _, text in pairs(cluster.dev and r.addresses or {}) do
    if not require("symphony.cluster.address").is_loopback(text) then
      errors.raise("invalid", ("this cluster is in development mode, for one machine only, but %s would be advertised")
        :format(text), "start the node with --advertise-addr 127.0.0.1")
    end
  end
end

-- Adds the event @fields to @txn, unless the node causes too many of its kind; @counted keeps what was found for a txn
-- that is built again.
local function tell(txn, counted, fields)
  local kind = fields.kind
  if counted[kind] == nil then counted[kind] = quota:take(fields.node.node_id, kind, now()) or false end
  local left_out = counted[kind]
  if not left_out then return end
  if left_out > 0 then
    fields.left_out = left_out
    fields.message = ("%s (%d more since the last one, left out)"):format(fields.message, left_out)
  end
  events.add(txn, fields)
end

-- The txn of a report and what it did to the status; nil, answer when it changes nothing. Raises.
local function report_txn(id, r, counted)
  local n, kv = state.get(status_cache.NODE .. id)
  if not n then errors.raise("denied", "this node is not a member of the cluster, or no longer one") end
  local key = status_cache.STATUS .. id
  local record, record_kv = state.get(key)
  assert(reports.check_start(record, r, n.name))
  check_dev(r)
  local change = reports.merge(n, record, r, sys.now())
  if not change then return nil, { status = record.status } end
  if not counted.done then assert(check_rate(n)) end
  counted.done = true
  local txn = { compare = { state.unchanged(kv), record_kv and state.unchanged(record_kv) or state.absent(key) },
    ops = {} }
  if change.status then table.insert(txn.ops, state.put(key, change.status)) end
  if change.node then table.insert(txn.ops, state.put(kv.key, change.node)) end
  local status = (change.status or record).status
  if change.turned then
    local reason = change.status.reason
    tell(txn, counted, { kind = KINDS[status], node = n, message = sentence(n.name, status, reason), reason = reason })
  end
  local again = not change.turned and record.starts and record.starts ~= r.starts
  local text = again and (" has started again (start %d)"):format(r.starts) or ""
  if change.node and change.changed ~= "" then text = ("%s: %s"):format(text, change.changed) end
  if text ~= "" then tell(txn, counted, { kind = "node.updated", node = n, message = n.name .. text }) end
  return txn, { status = status, turned = change.turned }
end

--- What the node with record @n says of itself, from outside (status_report.check has the fields). On the leader, in a
--- task. Returns {status = what is recorded now}; nil, err: "conflict" when it comes from a copy of the node's folder
--- or from an older one, "busy" when it changes too often, "invalid", "denied".
function M.report(n, fields)
  local r, err = reports.check(fields)
  if not r then return nil, err end
  local ok
  local counted, answer = {}
  ok, err = check_copy(n, r, counted)
  if ok then
    answer, err = state.update(function() return report_txn(n.node_id, r, counted) end)
  end
  if not answer then
    if err.copied then return refuse(n, err) end
    return nil, err
  end
  if answer.turned then log.info("status: " .. sentence(n.name, answer.status)) end
  if lead then
    if answer.turned then core.recorded(lead.mem, n.node_id, answer.status, now()) end
    if r.status == "ready" and answer.status ~= "left" then core.heard(lead.mem, n.node_id, now()) end
    touch(n.node_id)
  end
  return { status = answer.status }
end

return M
