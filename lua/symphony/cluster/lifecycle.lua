-- The node's life in this daemon: resuming at the start, serving, renewing its certificate, learning that it is no
-- member any more, stopping.
local address = require "symphony.cluster.address"
local agents = require "symphony.cluster.agents"
local async = require "symphony.async"
local ca_rotation = require "symphony.cluster.ca_rotation"
local crypto = require "sym.crypto"
local engine = require "symphony.policy.engine"
local errors = require "symphony.errors"
local gossip = require "symphony.cluster.gossip"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local log = require "sym.log"
local members = require "symphony.cluster.members"
local node = require "sym.node"
local peers = require "symphony.cluster.peers"
local pki = require "symphony.cluster.pki"
local reactions = require "symphony.policy.reactions"
local reconcile = require "symphony.cluster.reconcile"
local resource_loop = require "symphony.services.loop"
local resuming = require "symphony.cluster.resuming"
local rotation = require "symphony.cluster.rotation"
local state = require "symphony.cluster.state"
local status = require "symphony.cluster.status"
local store = require "sym.store"
local sys = require "sym.sys"
local trust = require "symphony.cluster.trust"
local whereabouts = require "symphony.cluster.whereabouts"

local M = {
  soon_ms = 2000, -- before the first upkeep
}

local UPKEEP_MS = 60 * 1000
local UNTOLD_MS, UNTOLD_MAX_MS = 200, 5000 -- while we are not where the state says
local SPEAK_AGAIN_MS = 10 * 1000

local upkeep       -- the task of renewal and addresses
local speaking     -- the one that begins with gossip
local watches = {} -- prefix -> watch
local change = async.event()
local hooked = false
local renamed      -- the hosts for which a certificate has been asked

-- What runs while a manager serves: each has start() and stop(), and on a follower it waits, but for the agents.
local parts = { engine, reconcile, agents, status, rotation, ca_rotation, reactions, resource_loop }

local function say(err)
  return err.message .. (err.hint and " -- " .. err.hint or "")
end

-- Waits until raft's status or the nodes have changed, at most @ms.
function M.wait_change(ms)
  change:wait(ms)
end

-- What was learned of the others is kept for the next start: their addresses.
local function remember_managers()
  local me, rows = identity.me, state.managers()
  if not me or me.removed or not rows then return end
  local list, moved = members.addresses(rows, nil), whereabouts.moved(me, rows)
  if #list == 0 then return end
  if table.concat(list, " ") == table.concat(me.managers, " ")
    and whereabouts.text_of(moved) == whereabouts.text_of(me.moved) then
    return
  end
  me.managers, me.moved = list, moved
  local ok, err = identity.save(me)
  if not ok then log.warn(err.message) end
end

-- Somebody may have given this manager another name.
local function remember_name()
  local me = identity.me
  local n = me and not me.removed and state.get("/node/" .. me.node_id)
  if not n or n.name == me.name then return end
  me.name = n.name
  local ok, err = identity.save(me)
  if not ok then log.warn(err.message) end
end

-- Serving -----------------------------------------------------------------------------------------------------------

local on_gone

local function on_nodes(_, events)
  local me = identity.me
  for _, event in ipairs(events or {}) do
    if event.deleted and me and event.key == "/node/" .. me.node_id then
      return on_gone("not_found", "this manager is not in the cluster's state any more")
    end
  end
  remember_managers()
  remember_name()
  whereabouts.tell()
  reconcile.wake()
  ca_rotation.wake()
  change:set()
end

-- Gossip on a manager speaks with those, and by those keys, that its state has.
local function on_peers(_, events)
  for _, event in ipairs(events or {}) do
    local id = event.key:sub(#"/peer/" + 1)
    local peer = not event.deleted and json.decode(event.value)
    if type(peer) == "table" and type(peer.key) == "string" then
      gossip.set_peer(id, peer.key)
    elseif event.deleted then
      gossip.forget(id)
    end
  end
end

local function on_keys()
  local secret = state.get("/secret/gossip")
  if not secret then return end
  local ok, err = gossip.set_keys(secret)
  if not ok then log.error("gossip: " .. err.message) end
end

local function on_lost_history(prefix)
  if prefix == "/node/" then
    on_nodes(nil, nil)
  elseif prefix == "/peer/" then
    local all, err = peers.all()
    if all then gossip.set_peers(all) else log.error("gossip: " .. err.message) end
  else
    on_keys()
  end
end

local function watch(prefix, fn)
  if watches[prefix] then watches[prefix]:close() end
  watches[prefix] = nil
  if not node.started() then return end
  local w, err = store.watch(prefix, store.revision(), function(ended, events)
    if ended and ended.code == "compacted" then
      -- The history is gone (a snapshot came): look at the whole and watch from here.
      async.spawn(function()
        watch(prefix, fn)
        on_lost_history(prefix)
      end)
    elseif not ended then
      fn(nil, events)
    end
  end)
  if not w then log.error(("cannot watch %s: %s"):format(prefix, err.message)) end
  watches[prefix] = w
end

-- The keys and the peers of the state; nil, nil until a manager that joins has got them.
local function known_to_gossip()
  local secret = state.get("/secret/gossip")
  if secret and state.text("/peer/" .. identity.me.node_id) then return secret, peers.all() end
end

-- Gossip begins as soon as this manager's state has what it needs, and is tried again when it cannot.
local function speak()
  local said
  while true do
    if not node.started() or not identity.member() then return end
    local secret, all = known_to_gossip()
    local ok, err
    if secret and all then ok, err = gossip.start(known_to_gossip) end
    if ok then break end
    if err and err.message ~= said then
      said = err.message
      log.error(say(err))
    end
    async.sleep(err and SPEAK_AGAIN_MS or 20)
  end
  watch("/peer/", on_peers)
  watch("/secret/gossip", on_keys)
  whereabouts.seek()
end

-- A new certificate for this manager, made with the state's CA. Also for one that has expired: raft lets configured
-- managers form a quorum all the same, so that this works.
function M.renew()
  return trust.renew(require("symphony.cluster.admit").renew, state.cluster() or {})
end

-- Is our certificate to be renewed: is it old enough, or are we found elsewhere than it says?
local function is_due(tls)
  if sys.now() >= pki.renewal_of(tls.info) then return true end
  local wanted = pki.names(identity.me.advertise.remote, identity.me.node_id)
  local key = table.concat(wanted, " ")
  if renamed == key or pki.same_names(wanted, crypto.cert_hosts(tls.cert) or {}) then return false end
  renamed = key -- once is enough: if it is not as we want it then, it never will be
  return true
end

-- One round of upkeep: where this manager is found, and its certificate.
function M.look_after()
  if not node.started() or not identity.member() then return end
  whereabouts.follow()
  whereabouts.publish()
  local ok, err = gossip.announce()
  if not ok then log.warn("gossip: " .. err.message) end
  if is_due(identity.tls) then
    ok, err = M.renew()
    if not ok then
      renamed = nil
      log.warn("cannot renew the certificate of this manager: " .. err.message)
    end
  end
end

local function start_upkeep()
  upkeep = async.spawn(function()
    local pause, untold = M.soon_ms, UNTOLD_MS
    while true do
      async.sleep(whereabouts.told and pause or untold)
      pause, untold = UPKEEP_MS, whereabouts.told and UNTOLD_MS or math.min(2 * untold, UNTOLD_MAX_MS)
      local ok, err = xpcall(M.look_after, errors.handler)
      if not ok and err.code ~= "canceled" then log.error("upkeep: " .. (err.traceback or err.message)) end
    end
  end)
end

local function hook()
  if hooked then return end
  hooked = true
  node.on_change(function()
    reconcile.wake()
    change:set()
  end)
  node.on_removed(function(_, code, reason) on_gone(code, reason) end)
  gossip.on_event(function(_, member) whereabouts.heard(member) end)
end

local function begin_serving()
  watch("/node/", on_nodes)
  for _, part in ipairs(parts) do part.start() end
  start_upkeep()
  speaking = async.spawn(speak)
end

-- Starts the node as @doc says; one start more is written down before. opts.bootstrap: the first member of a new
-- cluster; opts.quiet: without the membership's reconciliation, see serve(). nil, err.
function M.activate(doc, opts)
  opts = opts or {}
  hook()
  local tls, err = identity.load_tls(doc)
  if not tls then return nil, err end
  local ok
  ok, err = identity.check_folder(doc)
  if not ok then return nil, err end
  local _, raft_port = address.parse(doc.advertise.raft)
  local _, remote_port = address.parse(doc.advertise.remote)
  doc.starts, doc.gossip_start = doc.starts + 1, gossip.next_start(doc.gossip_start)
  ok, err = identity.become(doc)
  if not ok then return nil, err end
  ok, err = node.start { node_id = doc.node_id, raft_id = doc.raft_node_id, raft_address = doc.advertise.raft,
    raft_moves = doc.moves, cluster_id = doc.cluster_id, starts = doc.starts, cert = tls.cert, key = tls.key,
    ca = tls.ca, bootstrap = opts.bootstrap or false, raft_port = raft_port, remote_port = remote_port }
  if not ok then
    identity.trouble = err.message
    return nil, errors.new(err.code, err.message, err.hint or resuming.start_hint(err.code))
  end
  identity.trouble, identity.tls = nil, tls
  ok, err = whereabouts.check_dev(doc)
  if not ok then
    M.deactivate()
    return nil, err
  end
  whereabouts.tell()
  log.info(identity.introduction())
  if not opts.quiet then begin_serving() end
  return true
end

M.serve = begin_serving

-- Back to idle; the control socket stays.
function M.deactivate()
  for _, part in ipairs(parts) do part.stop() end
  if upkeep then upkeep:cancel() end
  if speaking then speaking:cancel() end
  upkeep, speaking = nil, nil
  gossip.stop()
  for prefix, w in pairs(watches) do
    watches[prefix] = nil
    w:close()
  end
  if not node.started() then return true end
  local ok, err = async.await(node.stop)
  if not ok then return nil, errors.from(err) end
  return true
end

-- We are no member any more, or our folder is an older copy of itself. It is written down first: after a restart of
-- the daemon nobody may be there to tell us again.
function on_gone(code, reason)
  local me = identity.me
  if not me or me.removed then return end
  me.removed = true
  if code == "conflict" then
    me.reason = "this folder is an older copy of what this manager has been: " .. (reason or "")
  else
    me.reason = "it was removed"
  end
  log.error(("%s; it stops serving -- %s"):format(me.reason, identity.rejoin()))
  local ok, err = identity.save(me)
  if not ok then log.error(err.message) end
  change:set()
  async.spawn(function()
    local stopped, why = M.deactivate()
    if not stopped then log.error("stopping: " .. why.message) end
    change:set()
    if code == "conflict" then node.quit(1) end
  end)
end

-- Resuming ----------------------------------------------------------------------------------------------------------

local actions = {
  idle = function()
    log.info("no cluster yet: `symphony manager init` or `symphony manager join` on the control socket")
    return true
  end,
  unfinished = function(doc)
    identity.me = doc
    log.warn("the making of the cluster was interrupted: say `symphony manager init` again, it starts afresh")
    return true
  end,
  wipe = resuming.actions.wipe,
  removed = resuming.actions.removed,
  recover = function(doc)
    identity.me = doc
    local ok, err = whereabouts.take(doc)
    if not ok then return nil, err end
    return require("symphony.cluster.recover").finish(doc)
  end,
  resume = function(doc)
    local ok, err = whereabouts.take(doc)
    if not ok then return nil, err end
    return M.activate(doc)
  end,
}

-- The start of a manager daemon. What is damaged or not ours ends it, with the file and what to do in the log.
function M.start()
  hook()
  -- The orderly end: the others are told, and need not find this node dead.
  node.on_quit(function()
    async.spawn(function()
      pcall(gossip.leave)
      node.quit()
    end)
  end)
  async.spawn(function()
    local doc, err = identity.load()
    local ok = not err
    if ok and doc then ok, err = identity.check_role(doc) end
    if ok then ok, err = actions[resuming.verdict(doc)](doc) end
    if not ok then
      log.error(say(errors.from(err)))
      node.quit(1)
    end
  end)
end

return M
