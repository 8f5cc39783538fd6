-- Where this manager is, and where the others are. A manager that is started at another address, or whose machine has
-- got one, says so itself: to the others' raft as it connects to them, by gossip, and in the state. Its addresses are
-- numbered, and of two the later one counts.
--
-- Raft's own configuration has each member's address of when it was added, for ever. Its transport goes by that only as
-- long as it has not learned of a later one.
local address = require "symphony.cluster.address"
local advertise = require "symphony.cluster.advertise"
local async = require "symphony.async"
local errors = require "symphony.errors"
local events = require "symphony.cluster.events"
local gossip = require "symphony.cluster.gossip"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local log = require "sym.log"
local node = require "sym.node"
local raft = require "sym.raft"
local remote = require "symphony.cluster.remote"
local reports = require "symphony.cluster.status_report"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"

local M = {
  told = true, -- do the others find us where the state says?
}

local PROBE_MS, PROBES = 1000, 3
local SEEK_MS, SEEK_MAX_MS = 500, 30 * 1000
local warned = false
local DEFAULT_PORT = 27242
local WORKERS = 5 -- are asked at a time for where the managers are

-- This manager --------------------------------------------------------------------------------------------------------

-- The addresses with which @doc starts now: ports and host may have been changed on the command line, and the host may
-- be another one where nobody chose it. @default: as of advertise.host. Pure but for that.
function M.addresses(doc, options, default)
  return advertise.of(advertise.host(doc, options, default), options)
end

-- Does a process of this manager still run where it was before? Then this folder is a copy of its folder. true; nil,
-- err.
local function check_second(doc, now)
  local at = doc.advertise.remote
  if at == now.remote then return true end -- that is to be ours: who has it keeps us from starting
  local tls, err = identity.load_tls(doc)
  if not tls then return nil, err end
  -- Whatever it answers: who it is is in its certificate. One that does not answer may only be slow.
  for _ = 1, PROBES do
    local _, failed, response = remote.call { at = at, method = "GET", path = "/healthz", role = "manager",
      timeout_ms = PROBE_MS, tls = { ca = tls.ca, cert = tls.cert, key = tls.key, expired_ok = true } }
    if response and response.peer and response.peer.cn == doc.node_id then return nil, reports.copy(doc.name, at) end
    if response or failed.code ~= "timeout" then break end
  end
  return true
end

-- @doc's addresses are @now; one that raft's connections go by is counted.
local function move(doc, now)
  if now.raft ~= doc.advertise.raft then
    log.info(("the raft address of this manager is %s now, and was %s: the others are told"):format(now.raft,
      doc.advertise.raft))
    doc.moves = (doc.moves or 0) + 1
  end
  M.told = false
  doc.advertise = now
end

-- Before a start: the addresses of @doc, which is not saved by this, as they are from now on. In a task. nil, err:
-- "conflict" when it seems to be the folder of a manager that runs elsewhere.
function M.take(doc)
  local now = M.addresses(doc, advertise.options(doc.advertise), sys.default_address)
  if now.raft ~= doc.advertise.raft then
    local ok, err = check_second(doc, now)
    if not ok then return nil, err end
  end
  if not advertise.same(now, doc.advertise) then move(doc, now) end
  return true
end

-- A cluster in development mode stays on its machine. true; nil, err.
function M.check_dev(doc)
  local cluster = state.cluster()
  if not (cluster and cluster.dev) or address.is_loopback(doc.advertise.raft) then return true end
  return nil, errors.new("invalid", ("this cluster is in development mode, for one machine only, but %s would be "
    .. "advertised"):format(doc.advertise.raft), "start this manager with --advertise-addr 127.0.0.1")
end

-- While it runs: the machine may have got another address.
function M.follow()
  local me, options = identity.me, {}
  if not me.follows then return end
  for k, v in pairs(sys.options()) do options[k] = v end
  for _, kind in ipairs(advertise.KINDS) do options[kind .. "_port"] = select(2, address.parse(me.advertise[kind])) end
  local now = M.addresses(me, options, sys.default_address)
  if advertise.same(now, me.advertise) then return end
  local before, moves = me.advertise, me.moves
  move(me, now)
  local ok, err = identity.save(me)
  if ok then ok, err = raft.locate(me.raft_node_id, now.raft, me.moves or 0) end
  if not ok then -- the number is not to be used as long as it is not on the disk
    me.advertise, me.moves = before, moves
    log.warn(err.message)
  end
end

local FIELDS = { raft_address = "raft", remote_address = "remote", gossip_address = "gossip" }

-- What of record @n is not as @me has it: texts. Pure.
local function differences(n, me)
  local out = {}
  for _, kind in ipairs(advertise.KINDS) do
    if n[kind .. "_address"] ~= me.advertise[kind] then
      out[#out + 1] = ("%s address %s"):format(kind, me.advertise[kind])
    end
  end
  return out
end

local function is_published(n, me)
  return #differences(n, me) == 0 and (n.raft_moves or 0) == (me.moves or 0) and n.version == sys.version
end

-- It was told to join, and has moved before raft had it: whoever is to add it looks for it where it was.
local function warn_if_lost()
  local status = raft.status()
  if M.told or warned or not status or #status.servers > 0 then return end
  warned = true
  log.warn("the cluster has not taken this manager in yet, and looks for it at its address of before -- start it "
    .. "there; or remove it on another manager, say `symphony manager leave` here, and join again")
end

-- Our record in the state says where we are now. In a task. nil, err when that could not be written.
function M.publish()
  local me = identity.me
  local n = state.get("/node/" .. me.node_id)
  local ok, err = true, nil
  if n and not is_published(n, me) then
    ok, err = state.update(function()
      local record, kv = state.get("/node/" .. me.node_id)
      if not record or is_published(record, me) then return nil, true end
      local changed = differences(record, me)
      for field, kind in pairs(FIELDS) do record[field] = me.advertise[kind] end
      record.raft_moves, record.version = me.moves, sys.version
      local txn = { compare = { state.unchanged(kv) }, ops = { state.put(kv.key, record) } }
      if #changed > 0 then
        events.add(txn, { kind = "node.updated", node = record,
          message = ("%s: %s"):format(record.name, table.concat(changed, ", ")) })
      end
      return txn, true
    end)
  end
  if n then M.told = ok ~= nil else warn_if_lost() end
  return ok, err
end

-- The others ----------------------------------------------------------------------------------------------------------

local function locate(id, at, moves)
  if moves == 0 or id == identity.me.raft_node_id then return end
  local ok, err = raft.locate(id, at, moves)
  if not ok then log.warn(("the raft address of manager %d: %s"):format(id, err.message)) end
end

-- Of the managers of the state, @rows, those that have moved, other than @me: {id, moves, address} each, in the order
-- of @rows; nil: none has. What @me has kept of one may be later than that. Pure.
function M.moved(me, rows)
  local kept, out = {}, {}
  for _, m in ipairs(me.moved or {}) do kept[m.id] = m end
  for _, kv in ipairs(rows) do
    local n = kv.value
    local said = { id = n.raft_node_id, moves = n.raft_moves or 0, address = n.raft_address }
    local known = kept[said.id]
    if known and known.moves > said.moves then said = known end
    if said.moves > 0 and said.id ~= me.raft_node_id then out[#out + 1] = said end
  end
  return #out > 0 and json.array(out) or nil
end

-- As a text, to be compared; of nil, too. Pure.
function M.text_of(moved)
  local out = {}
  for i, m in ipairs(moved or {}) do out[i] = ("%d %d %s"):format(m.id, m.moves, m.address) end
  return table.concat(out, "\n")
end

-- Tells raft what was kept and what the state says. Kept it is in key.json: after a cut of power the state is made anew
-- from raft's log, and for that the others have to be found first.
function M.tell()
  local me = node.started() and identity.member()
  if not me then return end
  local told = {}
  for _, list in ipairs { M.moved(me, state.managers() or {}) or {}, me.moved or {} } do
    for _, m in ipairs(list) do
      if not told[m.id] then locate(m.id, m.address, m.moves) end
      told[m.id] = true
    end
  end
end

-- And what manager @member says by gossip, signed: of itself, and of the raft id that the state gives it.
function M.heard(member)
  local said = member.info and member.info.raft
  local n = said and node.started() and identity.member() and state.get("/node/" .. member.node_id)
  if n and n.role == "manager" and n.raft_node_id == said.id then locate(said.id, said.address, said.moves) end
end

-- The remote addresses at which the other managers may be: as they were known at the last start, and as the state has
-- them. Pure.
function M.candidates(me, managers)
  local out, seen = {}, { [me.advertise.remote] = true }
  local function add(at)
    if not seen[at] then out[#out + 1] = at end
    seen[at] = true
  end
  for _, at in ipairs(me.managers) do add(at) end
  for _, kv in ipairs(managers or {}) do
    if kv.value.node_id ~= me.node_id then add(kv.value.remote_address) end
  end
  return out
end

local function exchange(list, role)
  for _, at in ipairs(list) do
    if gossip.exchange_with(at, role) then return true end
  end
  return false
end

-- Remote addresses of some workers: one that has not moved knows, or will soon, where managers are that have.
local function some_workers()
  local all, out = {}, {}
  for _, kv in ipairs(state.nodes() or {}) do
    if kv.value.role == "worker" then all[#all + 1] = kv.value.remote_address end
  end
  for _ = 1, math.min(WORKERS, #all) do out[#out + 1] = table.remove(all, math.random(#all)) end
  return out
end

local function has_leader()
  local status = raft.status()
  return status ~= nil and (status.leader or 0) ~= 0
end

-- For a person: learns where the others are from the node whose remote port is at @text ("host[:port]"), a manager if
-- there is one, and tells it where this one is. Returns {at, leader}; nil, err. In a task.
function M.meet(text)
  local me, err = identity.member()
  if not me then return nil, err end
  local host, port = address.parse(text, DEFAULT_PORT)
  if not host then return nil, port end
  if not gossip.started() then
    return nil, errors.new("state_unknown", "this manager's state does not hold the gossip key, so that nobody would "
      .. "listen to it", "start one of the other managers at its old address, or at one that this manager knows")
  end
  local at = address.format(host, port)
  local ok
  for _, role in ipairs { "manager", "worker" } do
    ok, err = gossip.exchange_with(at, role)
    if ok then return { at = at, leader = has_leader() } end
    if err.code == "unreachable" or err.code == "timeout" then break end
  end
  return nil, err
end

-- Has gossip meet the others: until it has met one, and until raft has a leader. In a task, for as long as it takes.
function M.seek()
  local pause, first = SEEK_MS, true
  while node.started() and identity.member() do
    local list = M.candidates(identity.me, state.managers())
    local met = #list == 0 or exchange(list, "manager")
    if not first and not has_leader() then
      met = exchange(some_workers(), "worker") or met
    end
    if met and has_leader() then return end
    async.sleep(pause)
    pause, first = math.min(2 * pause, SEEK_MAX_MS), false
  end
end

return M
