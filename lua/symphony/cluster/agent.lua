-- The agent of a worker: one connection to a manager, over which the node learns what it has to know and do. It goes to
-- another manager when that one dies, and lists again after any gap; what the lines are is in docs/api.md.
local address = require "symphony.cluster.address"
local async = require "symphony.async"
local errors = require "symphony.errors"
local http = require "sym.http"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local line = require "symphony.cluster.agent_line"
local lines = require "symphony.lines"
local log = require "sym.log"
local remote = require "symphony.cluster.remote"
local sys = require "sym.sys"

local M = {
  spread_ms = 3000, -- in which thousands of nodes do not ask at one moment
}

local ANSWER_MS = 5000         -- for an answer to begin
local SILENCE_MS = 25000       -- without a heartbeat the manager, or the way to it, is gone
local BACKOFF_MS, BACKOFF_MAX_MS = 50, 5000 -- back within 5 s when the managers are
local SPREAD_MS, SPREAD_MAX_MS = 1.5, 3000 -- for each node that there is
local QUIET_ROUNDS = 7         -- over the managers without success, some three seconds, before the log says so
local CONFLICT_MS = 30000      -- another daemon has our key: nothing that passes soon
local STEADY_MS = 10000        -- a stream that lasted so long was a good one
local LINE_MAX = 4 << 20
local KEPT_MAX = 1 << 17       -- peers and assignments: more than any cluster has
local HEARD_MAX = 64            -- managers that were heard of: more than a cluster has
local NO_MARK = "0.0"
local READY_MS = 3000          -- for a manager to say whether it is one that has the others
local REPORT_MS = 5000
local CLIENTS_MAX = 1000       -- as in certs.lua

local task
local listeners = {}
local view                     -- what is known
local wake = async.event()
local stream                   -- the one that is open: {at, cut(err), looking}; nil: none
local better                   -- the manager to go to next: "host:port"

-- {cluster, gossip, node, status (nil: none), peers (id -> {key, role}), clients (name -> {role, fingerprint}),
-- assigned (kind/id -> value), revision, mark (of the peers, for managers), manager (host:port; nil: not connected),
-- synced, kept (how many peers and assignments), why (what the last manager that was tried said, while none is
-- connected)}; nil before the start.
function M.view()
  return view
end

-- fn(what, ...) when something is learned: "cluster", "gossip", "node", "status"; "peer" (id, peer or nil);
-- "client" (name, client or nil); "assigned" (key, value or nil); "synced"; "alone": the manager has lost the others;
-- "disconnected"; "gone" (err): this node is no member any more; "refused" (err); "distrusted" (err): none of the
-- managers is one by the CAs known here.
function M.on(fn)
  listeners[#listeners + 1] = fn
end

local function tell(...)
  for _, fn in ipairs(listeners) do
    local ok, err = xpcall(fn, errors.handler, ...)
    if not ok then log.error("agent: " .. (err.traceback or err.message)) end
  end
end

-- Taking lines in ---------------------------------------------------------------------------------------------------

local present = json.nullable

-- @client: {role, fingerprint}, or nil: nobody has a certificate with this name any more.
local function take_client(v, session, name, client)
  local old = v.clients[name]
  if client and not old then
    local count = 0
    for _ in pairs(v.clients) do count = count + 1 end
    if count >= CLIENTS_MAX then return end
  end
  if session.clients and client then session.clients[name] = true end
  if (client and not (old and old.role == client.role and old.fingerprint == client.fingerprint)) or
    (not client and old) then
    v.clients[name] = client
    tell("client", name, client)
  end
end

-- Keeps @value at @key of @map, which is v.peers, or holds what is assigned; within bounds, whatever a manager sends.
local function keep(v, map, key, value)
  if value ~= nil and map[key] == nil then
    v.kept = v.kept + 1
    if v.kept > KEPT_MAX then errors.raise("protocol", ("more than %d things to know"):format(KEPT_MAX)) end
  elseif value == nil and map[key] ~= nil then
    v.kept = v.kept - 1
  end
  map[key] = value
end

-- A listing is compared with what was there before: what is not in it is gone.
local function end_listing(v, session)
  for id in pairs(session.peers and v.peers or {}) do
    if not session.peers[id] then
      keep(v, v.peers, id, nil)
      tell("peer", id, nil)
    end
  end
  for name in pairs(session.clients and v.clients or {}) do
    if not session.clients[name] then take_client(v, session, name, nil) end
  end
  local before = v.assigned
  v.assigned, session.peers, session.clients = session.assigned, nil, nil
  for key, value in pairs(v.assigned) do
    if before[key] == nil or json.encode(before[key]) ~= json.encode(value) then tell("assigned", key, value) end
  end
  for key in pairs(before) do
    v.kept = v.kept - 1
    if v.assigned[key] == nil then tell("assigned", key, nil) end
  end
end

local function assign(v, session, key, value)
  if v.synced then
    keep(v, v.assigned, key, value)
    tell("assigned", key, value)
  else
    keep(v, session.assigned, key, value)
  end
end

-- What is done with each kind of line.
local takes = {
  error = function(_, _, m) error(line.error_of(m), 0) end,
  cluster = function(v, _, m)
    -- Recovered or restored: what was known of the epoch before is no measure of what is there now.
    if v.cluster and v.cluster.epoch ~= m.cluster.epoch then v.revision, v.mark = 0, NO_MARK end
    v.cluster = m.cluster
    tell("cluster", v.cluster)
  end,
  gossip = function(v, _, m)
    v.gossip = m.gossip
    tell("gossip", v.gossip)
  end,
  node = function(v, _, m)
    v.node = present(m.node)
    tell("node", v.node)
  end,
  status = function(v, _, m)
    v.status = present(m.status)
    tell("status", v.status)
  end,
  peer = function(v, session, m)
    local id, old = m.peer, v.peers[m.peer]
    local peer = not m.gone and { key = m.key, role = m.role } or nil
    if session.peers and peer then session.peers[id] = true end
    if (peer and not (old and old.key == peer.key and old.role == peer.role)) or (not peer and old) then
      keep(v, v.peers, id, peer)
      tell("peer", id, peer)
    end
  end,
  client = function(v, session, m)
    take_client(v, session, m.client, not m.gone and { role = m.role, fingerprint = m.fingerprint } or nil)
  end,
  clients = function(_, session) session.clients = {} end,
  put = function(v, session, m) assign(v, session, m.put, m.value) end,
  delete = function(v, session, m) assign(v, session, m.delete, nil) end,
  synced = function(v, session, m)
    if v.synced then errors.raise("protocol", "the end of a listing that has ended") end
    end_listing(v, session)
    v.synced, v.mark, v.why = true, m.peers, nil
    tell("synced")
  end,
  heartbeat = function(v, _, m)
    v.alone = m.alone or nil
    if v.alone then tell("alone") end
  end,
  peers = function(v, session, m)
    if m.peers == "all" then
      session.peers = not v.synced and {} or nil
    elseif m.peers ~= "same" then
      v.mark = m.peers
    end
  end,
}

-- What is known before anything was heard, see view().
function M.new_view()
  return { revision = 0, mark = NO_MARK, peers = {}, clients = {}, assigned = {}, kept = 0 }
end

-- Takes one line @m of the stream into @v; @session is {assigned = {}} at its beginning. Raises what the manager says
-- at its end, and "protocol" for what cannot be.
function M.take(v, session, m)
  local kind = line.kind(m)
  if not kind then return end
  takes[kind](v, session, m)
  local revision = m.synced or m.heartbeat or ((kind == "put" or kind == "delete") and m.revision) or 0
  v.revision = math.max(v.revision, revision)
end

-- The connection ----------------------------------------------------------------------------------------------------

local heard, heard_count = {}, 0 -- node id -> remote address

-- Gossip says that manager @id has its remote port at @at: where the agent looks when it finds none at the addresses
-- that the managers told of, as after a move of all of them. It is the node's own word; who answers there has to have a
-- manager's certificate.
function M.heard_of(id, at)
  if not heard[id] then
    if heard_count >= HEARD_MAX then return end
    heard_count = heard_count + 1
  end
  heard[id] = at
end

-- Managers to try, in an order that differs from node to node; the one that died last. Behind those that the managers
-- told of come others that were heard of since.
local function candidates(last)
  local list, known = {}, {}
  for i, at in ipairs(identity.me.managers) do list[i], known[at] = at, true end
  for i = #list, 2, -1 do
    local j = math.random(i)
    list[i], list[j] = list[j], list[i]
  end
  for i, at in ipairs(list) do
    if at == last then
      table.insert(list, table.remove(list, i))
      break
    end
  end
  for _, at in pairs(heard) do
    if not known[at] then list[#list + 1] = at end
  end
  return list
end

local function is_ready(at)
  local tls = identity.tls
  return tls and remote.call { at = at, method = "GET", path = "/readyz", role = "manager", timeout_ms = READY_MS,
    tls = { ca = tls.ca, cert = tls.cert, key = tls.key } } ~= nil
end

-- The manager of @stream has lost the others. If one of them has not, the agent goes there; else it stays: what it has
-- is as good as anything. In a task.
local function look_elsewhere(of)
  async.sleep(math.random() * M.spread_ms)
  if is_ready(of.at) then of.looking = false end
  for _, at in ipairs(of.looking and candidates(of.at) or {}) do
    if stream ~= of then return end
    if at ~= of.at and is_ready(at) and stream == of then
      better = at
      return of.cut(errors.new("no_quorum", "it has lost the other managers, and that at " .. at .. " has not"))
    end
  end
  of.looking = false
end

-- Holds a stream with the manager at @at until it ends; returns whether it ever was in sync, and the error that ended
-- it.
local function hold(at)
  local tls, me, v = identity.tls, identity.me, view
  local host, port = address.parse(at)
  local session = { assigned = {} }
  local status, refused, failed, call = nil, {}, nil, nil
  local feed = lines.of(function(message)
    if not failed then M.take(v, session, message) end
  end, LINE_MAX)
  local function cut(err)
    failed = failed or err
    if call then call:cancel() end
  end
  local function take(chunk)
    if failed then return end
    local ok, err = xpcall(feed, errors.handler, chunk)
    if ok then return end
    if err.code == "internal" then log.error("agent: " .. (err.traceback or err.message)) end
    cut(err)
  end
  stream = { at = at, cut = cut }
  local path = ("/v1/agent?starts=%d&instance=%s&epoch=%d&min=%d&peers=%s"):format(me.starts, M.instance,
    v.cluster and v.cluster.epoch or 0, v.revision, v.mark)
  local options = { host = host, port = port, role = "manager", method = "GET", path = path,
    tls = { ca = tls.ca, cert = tls.cert, key = tls.key }, timeout_ms = ANSWER_MS, idle_ms = SILENCE_MS,
    on_head = function(code)
      status = code
      if code == 200 then v.manager = at end
    end,
    on_data = function(chunk)
      if status == 200 then
        take(chunk)
      elseif #refused < 64 then
        refused[#refused + 1] = chunk
      end
    end }
  local _, err = async.await(function(done)
    local why
    call, why = http.request(options, done)
    return call, why
  end)
  local synced = v.synced
  v.manager, v.synced, v.alone, stream = nil, nil, nil, nil
  for key in pairs(synced and {} or session.assigned) do keep(v, session.assigned, key, nil) end
  if status and status ~= 200 then
    return false, remote.answer_error(status, json.decode(table.concat(refused)), at)
  end
  return synced, failed or err or errors.new("closed", "the stream has ended")
end

-- true when it was cut short by wake().
local function pause(ms)
  return wake:wait(ms * (0.5 + math.random() / 2))
end

local in_vain = 0 -- rounds over the managers since a stream last began

-- When a manager dies, all of its agents look for another one. Where they are thousands they do not come at one moment,
-- since a handshake costs the managers a millisecond or two, which somebody else is waiting for.
local function spread_ms()
  return math.random() * math.min(SPREAD_MAX_MS, SPREAD_MS * view.kept)
end

-- One round over the managers; returns the one that was left, the pause before the next round, and what that is
-- prolonged by.
local function round(last, backoff)
  local later = math.min(math.max(2 * backoff, BACKOFF_MS), BACKOFF_MAX_MS)
  local distrusted = true
  local list = candidates(last)
  if better then table.insert(list, 1, better) end
  better = nil
  for _, at in ipairs(list) do
    local began = sys.mono_ms()
    local synced, err = hold(at)
    if synced then
      in_vain = 0
      log.info(("agent: the connection to the manager at %s has ended: %s"):format(at, err.message))
      tell("disconnected")
      -- One that takes us in and throws us out again is not asked without end.
      return at, sys.mono_ms() - began >= STEADY_MS and BACKOFF_MS or later, spread_ms()
    end
    log.debug(("agent: no stream from %s: %s"):format(at, err.message))
    view.why = err.message
    distrusted = distrusted and err.code == "unauthenticated" and err
    if err.code == "denied" then
      tell("gone", err)
      return at, BACKOFF_MAX_MS
    elseif err.code == "conflict" then
      tell("refused", err)
      return at, CONFLICT_MS
    elseif err.code == "expired" then
      tell("expired", at)
    end
  end
  if errors.is(distrusted) then tell("distrusted", distrusted) end
  in_vain = in_vain + 1
  if in_vain == QUIET_ROUNDS and view.why then
    log.warn(("agent: no manager can be reached (%s): what this node has to do stays as it was"):format(view.why))
  end
  return last, later
end

local function loop()
  local last, backoff = nil, 0
  while true do
    local ok, at, ms, more = xpcall(round, errors.handler, last, backoff)
    if ok then
      last, backoff = at, ms
    elseif at.code == "canceled" then
      return
    else
      log.error("agent: " .. (at.traceback or at.message))
      backoff = BACKOFF_MAX_MS
    end
    if pause(backoff + (ok and more or 0)) then backoff = 0 end
  end
end

-- What another manager may do better.
local ELSEWHERE = { unreachable = true, timeout = true, closed = true, no_quorum = true, not_leader = true,
  protocol = true, state_unknown = true }

-- Calls a route of a manager: that of the stream first, then the others, each for at most opts.timeout_ms. @body: a
-- table. opts.expired_ok: a manager's certificate may have expired. In a task. The decoded answer; nil, err: "closed"
-- when this node has no identity (any more).
function M.call(method, path, body, opts)
  opts = opts or {}
  local tls = identity.tls
  if not identity.me or not tls then return nil, errors.new("closed", "this node is not part of a cluster") end
  local now = view and view.manager
  local list = candidates(now)
  if now and list[#list] == now then table.remove(list) end
  if now then table.insert(list, 1, now) end
  local answer, err
  for _, at in ipairs(list) do
    answer, err = remote.call { at = at, method = method, path = path, body = body, role = "manager",
      timeout_ms = opts.timeout_ms or REPORT_MS, tls = { ca = tls.ca, cert = tls.cert, key = tls.key,
      expired_ok = opts.expired_ok } }
    if answer ~= nil then return answer end
    if not ELSEWHERE[err.code] then break end
  end
  return nil, err or errors.new("unreachable", "no manager is known")
end

M.on(function(what)
  if what ~= "alone" or not stream or stream.looking then return end
  stream.looking = true
  async.spawn(look_elsewhere, stream)
end)

-- This process, among those that may run with the same key.
M.instance = require("sym.crypto").hex(require("sym.crypto").random(8))

-- Tries again now, rather than when the pause is over, and soon again if that fails.
function M.wake()
  wake:set()
end

-- Begins with nothing known.
function M.start()
  M.stop()
  view = M.new_view()
  in_vain = 0
  task = async.spawn(loop)
end

-- Ends the connection. What is known stays, for whoever shows it.
function M.stop()
  if task then task:cancel() end
  task, stream, better = nil, nil, nil
  if view then view.manager, view.synced = nil, nil end
end

return M
