-- The agent of a worker: one connection to a manager, over which the node learns what it has to know and do. It goes to
-- another manager when that one dies, and lists again after any gap; what the lines are is in docs/api.md.
local address = require "symphony.cluster.address"
local async = require "symphony.async"
local errors = require "symphony.errors"
local http = require "sym.http"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local lines = require "symphony.lines"
local log = require "sym.log"
local remote = require "symphony.cluster.remote"
local sys = require "sym.sys"

local M = {}

local ANSWER_MS = 5000         -- for an answer to begin
local SILENCE_MS = 25000       -- without a heartbeat the manager, or the way to it, is gone
local BACKOFF_MS, BACKOFF_MAX_MS = 50, 10000
local CONFLICT_MS = 30000      -- another daemon has our key: nothing that passes soon
local LINE_MAX = 4 << 20
local REPORT_MS = 5000

local task
local listeners = {}
local view                     -- what is known
local wake = async.event()

-- {cluster, gossip, node, status (nil: none), peers (id -> {key, role}), assigned (kind/id -> value), revision, mark
-- (of the peers, for managers), manager (host:port; nil: not connected), synced}; nil before the start.
function M.view()
  return view
end

-- fn(what, ...) when something is learned: "cluster", "gossip", "node", "status"; "peer" (id, peer or nil); "assigned"
-- (key, value or nil); "synced"; "disconnected"; "gone" (err): this node is no member any more; "refused" (err).
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

local function present(v)
  if v == json.null then return nil end
  return v
end

-- A listing is compared with what was there before: what is not in it is gone.
local function end_listing(v, session)
  for id in pairs(session.peers and v.peers or {}) do
    if not session.peers[id] then
      v.peers[id] = nil
      tell("peer", id, nil)
    end
  end
  local before = v.assigned
  v.assigned, session.peers = session.assigned, nil
  for key, value in pairs(v.assigned) do
    if before[key] == nil or json.encode(before[key]) ~= json.encode(value) then tell("assigned", key, value) end
  end
  for key in pairs(before) do
    if v.assigned[key] == nil then tell("assigned", key, nil) end
  end
end

local function assign(v, session, key, value)
  if v.synced then
    v.assigned[key] = value
    tell("assigned", key, value)
  else
    session.assigned[key] = value
  end
end

-- Takes one line @m of the stream into @v; @session is {assigned = {}} at its beginning. Raises what the manager says
-- at its end.
function M.take(v, session, m)
  local revision = m.synced or m.heartbeat or m.revision
  if math.type(revision) == "integer" then v.revision = math.max(v.revision, revision) end
  if m.error then
    local e = type(m.error) == "table" and m.error or {}
    errors.raise(tostring(e.code or "closed"):sub(1, 64), tostring(e.message or "the manager ended the stream"))
  elseif m.cluster then
    v.cluster = m.cluster
    tell("cluster", v.cluster)
  elseif m.gossip then
    v.gossip = m.gossip
    tell("gossip", v.gossip)
  elseif m.node ~= nil then
    v.node = present(m.node)
    tell("node", v.node)
  elseif m.status ~= nil then
    v.status = present(m.status)
    tell("status", v.status)
  elseif m.peer then
    local peer = not m.gone and { key = m.key, role = m.role } or nil
    if session.peers and peer then session.peers[m.peer] = true end
    local old = v.peers[m.peer]
    if (peer and not (old and old.key == peer.key and old.role == peer.role)) or (not peer and old) then
      v.peers[m.peer] = peer
      tell("peer", m.peer, peer)
    end
  elseif m.peers == "all" then
    session.peers = {}
  elseif m.put then
    assign(v, session, m.put, m.value)
  elseif m.delete then
    assign(v, session, m.delete, nil)
  elseif m.synced then
    end_listing(v, session)
    v.synced, v.mark = true, m.peers
    tell("synced")
  elseif m.peers ~= "same" and m.peers then
    v.mark = m.peers
  end
end

-- The connection ----------------------------------------------------------------------------------------------------

-- Managers to try, in an order that differs from node to node; the one that died last.
local function candidates(last)
  local list = table.move(identity.me.managers, 1, #identity.me.managers, 1, {})
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
  return list
end

-- Holds a stream with the manager at @at until it ends; returns whether it ever was in sync, and the error that ended
-- it.
local function hold(at)
  local tls, me = identity.tls, identity.me
  local host, port = address.parse(at)
  local session = { assigned = {} }
  local status, refused, failed = nil, {}, nil
  local take = lines.of(function(message)
    if failed then return end
    local ok, err = xpcall(M.take, errors.handler, view, session, message)
    if not ok then
      failed = err
      if err.code == "internal" then log.error("agent: " .. (err.traceback or err.message)) end
      error(err, 0) -- ends the call
    end
  end, LINE_MAX)
  local path = ("/v1/agent?starts=%d&instance=%s&min=%d&peers=%s"):format(me.starts, M.instance, view.revision,
    view.mark)
  local _, err = async.await(http.request, { host = host, port = port, role = "manager", method = "GET", path = path,
    tls = { ca = tls.ca, cert = tls.cert, key = tls.key }, timeout_ms = ANSWER_MS, idle_ms = SILENCE_MS,
    on_head = function(code)
      status = code
      if code == 200 then view.manager = at end
    end,
    on_data = function(chunk)
      if status == 200 then
        take(chunk)
      elseif #refused < 64 then
        refused[#refused + 1] = chunk
      end
    end })
  local synced = view.synced
  view.manager, view.synced = nil, nil
  if status and status ~= 200 then
    return false, remote.answer_error(status, json.decode(table.concat(refused)), at)
  end
  return synced, failed or err or errors.new("closed", "the stream has ended")
end

-- true when it was cut short by wake().
local function pause(ms)
  return wake:wait(ms * (0.5 + math.random() / 2))
end

local RENEW = { expired = true }

-- One round over the managers; returns the pause before the next.
local function round(last, backoff)
  for _, at in ipairs(candidates(last)) do
    local synced, err = hold(at)
    if synced then
      log.info(("agent: the connection to the manager at %s has ended: %s"):format(at, err.message))
      tell("disconnected")
      return at, 0
    end
    log.debug(("agent: no stream from %s: %s"):format(at, err.message))
    if err.code == "denied" then
      tell("gone", err)
      return nil, backoff
    elseif err.code == "conflict" then
      tell("refused", err)
      return at, CONFLICT_MS
    elseif RENEW[err.code] then
      tell("expired", at)
    end
  end
  return last, math.min(backoff == 0 and BACKOFF_MS or backoff * 2, BACKOFF_MAX_MS)
end

local function loop()
  local last, backoff = nil, 0
  while true do
    last, backoff = round(last, backoff)
    if pause(math.max(backoff, 10)) then backoff = 0 end
  end
end

-- What another manager may do better.
local ELSEWHERE = { unreachable = true, timeout = true, closed = true, no_quorum = true, not_leader = true,
  protocol = true, state_unknown = true }

-- Calls a route of a manager: that of the stream, or any. @body: a table. In a task. The decoded answer; nil, err.
function M.call(method, path, body, opts)
  opts = opts or {}
  local tls = identity.tls
  local list = candidates(nil)
  if view and view.manager then table.insert(list, 1, view.manager) end
  local answer, err
  for _, at in ipairs(list) do
    answer, err = remote.call { at = at, method = method, path = path, body = body, role = "manager",
      timeout_ms = opts.timeout_ms or REPORT_MS, tls = { ca = tls.ca, cert = tls.cert, key = tls.key,
      expired_ok = opts.expired_ok } }
    if answer then return answer end
    if not ELSEWHERE[err.code] then break end
  end
  return nil, err or errors.new("unreachable", "no manager is known")
end

-- This process, among those that may run with the same key.
M.instance = require("sym.crypto").hex(require("sym.crypto").random(8))

-- Tries again now, rather than when the pause is over, and soon again if that fails.
function M.wake()
  wake:set()
end

function M.start()
  view = { revision = 0, mark = "0.0", peers = {}, assigned = {} }
  task = async.spawn(loop)
end

function M.stop()
  if task then task:cancel() end
  task = nil
  if view then view.manager, view.synced = nil, nil end
end

-- Until the stream is in sync. In a task; nil, err ("timeout").
function M.wait_synced(ms)
  local deadline = sys.mono_ms() + ms
  while not (view and view.synced) do
    if sys.mono_ms() > deadline then return nil, errors.new("timeout", "no manager has been reached in time") end
    async.sleep(5)
  end
  return true
end

return M
