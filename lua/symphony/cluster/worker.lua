-- The life of a worker in this daemon: joining, resuming, its agent and gossip, its certificate, being removed,
-- leaving.
local address = require "symphony.cluster.address"
local advertise = require "symphony.cluster.advertise"
local agent = require "symphony.cluster.agent"
local async = require "symphony.async"
local busy = require "symphony.cluster.busy"
local errors = require "symphony.errors"
local gossip = require "symphony.cluster.gossip"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local log = require "sym.log"
local node = require "sym.node"
local peers = require "symphony.cluster.peers"
local pki = require "symphony.cluster.pki"
local resuming = require "symphony.cluster.resuming"
local services = require("symphony.lazy") "symphony.services.worker"
local sys = require "sym.sys"
local trust = require "symphony.cluster.trust"

local M = {}

local UPKEEP_MS = 10 * 1000
local READY_S = 30
local ADMISSION_MS = 2000       -- for the managers to say that this process is no copy
local EXPIRED_PAUSE_MS = 10 * 1000
local SPREAD_MS = 3000          -- thousands of nodes do not have their certificates renewed at one moment
local HEARD_MS = 500            -- nor do they all come back to a manager at one

local upkeep
local reporting = async.mutex()
local reported                  -- what the managers were last told, as JSON
local last_renewal = -EXPIRED_PAUSE_MS
local started_up = false        -- what only the start needed has been given back
local ending = false            -- the process is about to end, and has said so
local departing = false         -- `block leave` is under way
local mute                      -- why gossip could not begin

-- What a worker without services of its own does without; one that has had some has to say what is left of them.
local function has_services()
  return #(sys.options().lua_dirs or {}) > 0 or #require "symphony.services.built_in" > 0
    or sys.stat(identity.path("services")) ~= nil
end

-- The services of this worker, as its record and gossip have them.
local function service_names()
  return has_services() and services.names() or json.array { identity.word() }
end

-- Telling the managers ----------------------------------------------------------------------------------------------

-- A task that has waited may find that the node was stopped, and is another one by now.
local function is_serving()
  return identity.member() ~= nil and identity.tls ~= nil and node.started()
end

local function word_of(status)
  local me = identity.me
  return { status = status, starts = me.starts, instance = agent.instance, version = sys.version,
    services = service_names(), trust = me.trust or 1,
    addresses = { remote = me.advertise.remote, gossip = me.advertise.gossip } }
end

-- Does the record @status of this node say what it would say itself?
local function is_told(status, word)
  return status and status.status == "ready" and status.instance == word.instance and status.trust == word.trust
    and reported == json.encode(word)
end

-- Tells the managers what this node is, unless they know. In a task. nil, err: "closed" when it is nothing (any more).
function M.report()
  local _ <close> = reporting:lock()
  if not is_serving() then return nil, errors.new("closed", "this node is not serving") end
  local word = word_of("ready")
  local v = agent.view()
  if ending or is_told(v and v.status, word) then return true end
  local ok, err = agent.call("POST", "/v1/agent/report", word)
  if not ok then return nil, err end
  reported, identity.trouble = json.encode(word), nil
  return true
end

local function report_soon()
  async.spawn(function()
    local ok, err = M.report()
    if ok or err.code == "closed" then return end
    if err.code == "conflict" then M.refused(err) end
    log.warn("cannot report to the managers: " .. err.message)
  end)
end

-- Certificate ---------------------------------------------------------------------------------------------------------

-- Has a manager sign @csr: also for whose certificate has expired, as long as the node has not been removed.
local function ask_renewal(csr)
  return agent.call("POST", "/v1/renew", { csr = csr }, { expired_ok = true })
end

-- A new certificate for the same key. In a task. nil, err.
function M.renew()
  return trust.renew(ask_renewal, agent.view().cluster or {})
end

local function renew_if_due(expired)
  if not is_serving() then return end
  local now = sys.mono_ms()
  if not expired and sys.now() < pki.renewal_of(identity.tls.info) then return end
  if now - last_renewal < EXPIRED_PAUSE_MS then return end
  last_renewal = now
  local ok, err = M.renew()
  if not ok then log.warn("cannot renew the certificate of this node: " .. err.message) end
  agent.wake()
end

-- Learning ------------------------------------------------------------------------------------------------------------

local function remember_managers(cluster)
  local me, list = identity.me, cluster.managers
  if table.concat(list, " ") == table.concat(me.managers, " ") then return end
  me.managers = json.array(list)
  local ok, err = identity.save(me)
  if not ok then log.warn(err.message) end
end

local function gone(err)
  local me = identity.me
  if not me or me.removed or departing then return end
  me.removed, me.reason = true, "it was removed"
  log.error(("%s (%s) -- %s"):format(me.reason, err.message, identity.rejoin()))
  local ok, why = identity.save(me)
  if not ok then log.error(why.message) end
  async.spawn(function()
    if has_services() then services.leave() end
    M.deactivate()
  end)
end

-- Another daemon has this node's key.
function M.refused(err)
  if identity.trouble == err.message then return end
  identity.trouble = err.message
  log.error(err.message .. (err.hint and " -- " .. err.hint or ""))
end

local DISTRUSTED = "no manager has a certificate of a CA that this node knows"

-- Said once: it stays like that.
local function distrusted(err)
  if identity.trouble and identity.trouble:find(DISTRUSTED, 1, true) then return end
  identity.trouble = ("%s (%s): the CA of the cluster was changed while this node was no part of it, or its folder was "
    .. "put back from an older copy; `symphony %s leave --force` wipes it, then join again"):format(DISTRUSTED,
    err.message, identity.word())
  log.error(identity.trouble)
end

-- Trusts the CAs that the cluster trusts, and has the certificate renewed when another one signs. In a task.
local function adopt(cluster)
  local ok, err = trust.adopt(cluster, { renew = ask_renewal, spread_ms = SPREAD_MS })
  if not ok and err.code ~= "closed" then
    log.warn("the CAs of the cluster are not taken into use yet: " .. err.message)
  end
  return ok
end

local learned = {
  cluster = function(cluster)
    remember_managers(cluster)
    async.spawn(adopt, cluster)
  end,
  gossip = function(secret)
    if not gossip.started() then return async.spawn(M.speak) end
    async.spawn(function()
      local ok, err = gossip.set_keys(secret)
      if not ok then log.error("gossip: " .. err.message) end
    end)
  end,
  peer = function(id, peer)
    if peer then
      gossip.set_peer(id, peer.key)
    else
      gossip.forget(id)
      node.drop_peer(id)
    end
  end,
  client = function(name) node.drop_peer(name) end, -- what comes next is by the certificate of now
  synced = function()
    identity.trouble = nil
    report_soon()
    local at = agent.view().manager
    async.spawn(gossip.exchange_with, at)
    log.info(("agent: connected to the manager at %s, revision %d"):format(at, agent.view().revision))
  end,
  status = function(status)
    local v = agent.view()
    if v.synced and (not status or status.status ~= "ready") then
      reported = nil
      report_soon()
    end
  end,
  expired = function() async.spawn(renew_if_due, true) end,
  gone = gone,
  refused = function(err) M.refused(err) end,
  distrusted = distrusted,
}
local listening = false

-- Gossip hears of a manager, and the agent waits for none: it need not wait to the end.
local HEARD = { joined = true, returned = true, refuted = true, updated = true }
local waking = false

local function on_heard(what, member)
  local info = member.info
  if not HEARD[what] or info.role ~= "manager" then return end
  agent.heard_of(member.node_id, address.format(address.parse(member.address), info.remote_port))
  if waking then return end
  local v = agent.view()
  if not v or v.manager then return end
  waking = true
  async.spawn(function()
    async.sleep(math.random(HEARD_MS))
    waking = false
    agent.wake()
  end)
end

-- Who asks at the remote port: a node that the managers told of. For the router.
local function peer_record(id)
  local v = agent.view()
  local peer = v and v.peers[id]
  local fingerprint = peer and peers.fingerprint(peer.key)
  return fingerprint and { node_id = id, role = peer.role, fingerprint = fingerprint } or nil
end

-- Client certificates that the managers told of, for /metrics.
local function client_record(name)
  local v = agent.view()
  return v and v.clients[name]
end

-- Life ----------------------------------------------------------------------------------------------------------------

-- The address may have changed under a node that was not told which to use. True if it has.
local function follow_address()
  local me = identity.me
  local host = advertise.host(me, sys.options(), sys.default_address)
  local now = advertise.of(host, { remote_port = select(2, address.parse(me.advertise.remote)),
    gossip_port = select(2, address.parse(me.advertise.gossip)) })
  if now.remote == me.advertise.remote then return end
  log.info(("the address of this node is %s now, and was %s"):format(now.remote, me.advertise.remote))
  me.advertise = now
  local ok, err = identity.save(me)
  if not ok then log.warn(err.message) end
  return true
end

-- One round of upkeep: where this node is found, its certificate, and what it has not said yet. In a task.
function M.look_after()
  if not is_serving() then return end
  if follow_address() then report_soon() end
  local ok, err = gossip.announce()
  if not ok then log.warn("gossip: " .. err.message) end
  renew_if_due(false)
  local v = agent.view()
  if not gossip.started() then M.speak() end
  if v.cluster and v.cluster.trust ~= (identity.me.trust or 1) then adopt(v.cluster) end
  if v.synced and not is_told(v.status, word_of("ready")) then M.report() end
  if v.synced and not started_up then
    started_up = true
    sys.release_memory()
  end
end

-- Starts the node as @doc says; one start more is written down before. @welcome: the answer to a join, or nil. nil,
-- err.
function M.activate(doc, welcome)
  local tls, err = identity.load_tls(doc)
  if not tls then return nil, err end
  local ok
  ok, err = identity.check_folder(doc)
  if not ok then return nil, err end
  doc.starts, doc.gossip_start = doc.starts + 1, gossip.next_start(doc.gossip_start)
  ok, err = identity.become(doc)
  if not ok then return nil, err end
  local _, remote_port = address.parse(doc.advertise.remote)
  ok, err = node.start { cert = tls.cert, key = tls.key, ca = tls.ca, remote_port = remote_port }
  if not ok then
    identity.trouble = err.message
    return nil, errors.new(err.code, err.message, err.hint or resuming.start_hint(err.code))
  end
  identity.trouble, identity.tls = nil, tls
  log.info(identity.introduction())
  if not listening then
    listening = true
    agent.on(function(what, ...)
      if learned[what] then learned[what](...) end
    end)
    gossip.on_event(on_heard)
    require("symphony.api.router").set_members(peer_record, client_record)
    trust.set_reporter(M.report) -- what is reported holds the generation
  end
  reported, mute = nil, nil
  if has_services() then services.start() end
  agent.start()
  if welcome then async.spawn(M.speak, { keys = welcome.gossip_keys }) end
  upkeep = async.every(UPKEEP_MS, M.look_after)
  return true
end

-- Is this process refused as a copy? Nobody may hear it then: it would speak with a later start, and silence the one
-- whose folder it has. When no manager can say, it is not.
local function is_copy()
  local ok, err = async.with_timeout(ADMISSION_MS, M.report)
  if ok or err.code ~= "conflict" then return false end
  M.refused(err)
  return true
end

-- Begins with gossip if the keys are known: @keys, those of a join, or what a manager has said. When it cannot, it is
-- tried again by and by. In a task.
function M.speak(keys)
  local resumes = not keys
  if not (agent.view().gossip or keys) or not is_serving() or (resumes and is_copy()) then return end
  keys = agent.view().gossip or keys
  if not keys or not is_serving() then return end
  local ok, err = gossip.start(function()
    local v, all = agent.view(), {}
    for id, peer in pairs(v.peers) do all[id] = peer.key end
    return v.gossip or keys, all
  end)
  if ok then
    mute = nil
    if agent.view().synced then gossip.exchange_with(agent.view().manager) end
  elseif err.code ~= "closed" then
    if mute ~= err.message then log.error(err.message .. (err.hint and " -- " .. err.hint or "")) end
    mute = err.message
  end
end

-- Until the managers have this node as ready. In a task; "ready"; nil, err.
function M.wait_ready(say)
  local began, said = sys.mono_ms(), false
  while true do
    local me, v = identity.me, agent.view()
    if not me or me.removed then
      return nil, errors.new("removed", "this node was removed from the cluster while it joined", identity.rejoin())
    end
    if v.synced and v.status and v.status.status == "ready" then return "ready" end
    local now = sys.mono_ms()
    if not said and now - began > 2000 then
      said = true
      say("The cluster is taking this node in ...\n")
    end
    if now - began > 1000 * READY_S then
      return nil, errors.new("timeout", ("the cluster does not call this node ready within %d s"):format(READY_S),
        "it goes on trying by itself: `symphony block status` here, `symphony node ls` on a manager; its log may say "
        .. "more")
    end
    async.sleep(5)
  end
end

-- Back to idle; the control socket stays. In a task.
function M.deactivate()
  if has_services() then services.stop() end
  agent.stop()
  gossip.stop()
  if upkeep then upkeep.stop() end
  upkeep = nil
  if not node.started() then return true end
  local ok, err = async.await(node.stop)
  if not ok then return nil, errors.from(err) end
  return true
end

-- The orderly end of the process: the others need not wait for signs of life.
function M.say_goodbye()
  if not identity.member() or not node.started() then return end
  ending = true
  async.gather {
    gossip.leave,
    function() if has_services() then services.stop() end end,
    function() return agent.call("POST", "/v1/agent/report", word_of("left"), { timeout_ms = 500 }) end,
  }
end

-- Leaving -------------------------------------------------------------------------------------------------------------

-- Has the managers take this node out of the cluster. true; nil, err.
local function ask_out(force)
  local ok, err = agent.call("POST", "/v1/agent/leave", { force = force }, { timeout_ms = 8000 })
  if ok or err.code == "denied" then return true end -- it was out already
  return nil, errors.new(err.code, err.message, (err.hint and err.hint .. "; " or "")
    .. ("`symphony %s leave --force` forgets the cluster all the same"):format(identity.word()))
end

-- `block leave`. @opts: force. Returns {cluster_id, node_id, name, told}; nil, err.
function M.leave(opts)
  local fits, misfit = identity.needs("worker")
  if not fits then return nil, misfit end
  local me = identity.me
  if not me then
    return nil, errors.new("no_cluster", "this daemon belongs to no cluster: there is nothing to leave")
  end
  local lock <close>, err = busy.take(identity.word() .. " leave")
  if not lock then return nil, err end
  local handed = lock:hand_over()
  return async.spawn(function()
    local _ <close> = handed
    local _ <close> = setmetatable({}, { __close = function() departing = false end })
    departing = true
    identity.tls = identity.tls or identity.load_tls(me) or nil -- of one that could not start
    local told = me.removed or me.phase == "leave"
    if not told then
      local out, why = ask_out(opts.force or false)
      if not out and not opts.force then return nil, why end
      told = out or false
    end
    assert(identity.become(identity.changed(identity.me, { phase = "leave" })))
    gossip.leave()
    if has_services() then services.leave() end
    assert(M.deactivate())
    assert(identity.wipe())
    log.info(("%s has left cluster %s"):format(me.name, me.cluster_id))
    return { cluster_id = me.cluster_id, node_id = me.node_id, name = me.name, told = told }
  end):wait()
end

-- What `block status` shows. nil, err.
function M.status()
  local fits, misfit = identity.needs("worker")
  if not fits then return nil, misfit end
  local me, err = identity.member()
  if not me then
    local who = identity.me or {}
    return { state = err.code, message = err.message, hint = err.hint, cluster_id = who.cluster_id,
      node_id = who.node_id, name = who.name, warnings = json.array {} }
  end
  local v, warnings, assigned = agent.view() or {}, json.array {}, 0
  for _ in pairs(v.assigned or {}) do assigned = assigned + 1 end
  if identity.trouble then warnings[#warnings + 1] = identity.trouble end
  if mute then warnings[#warnings + 1] = mute end
  if not v.manager then
    warnings[#warnings + 1] = "no manager is connected: what this node has to do stays as it was"
      .. (v.why and not identity.trouble and (" (%s)"):format(v.why) or "")
  end
  local status, n = v.status or {}, v.node or {}
  return { cluster_id = me.cluster_id, cluster_name = v.cluster and v.cluster.name, node_id = me.node_id,
    name = n.name or me.name, status = status.status or "joining", availability = n.availability,
    since = status.since, reason = status.reason, manager = v.manager, revision = v.revision, assignments = assigned,
    gossip = { alive = gossip.count(), health = gossip.health() }, version = sys.version,
    certificate_expires = identity.tls and identity.tls.info.not_after, addresses = me.advertise, warnings = warnings }
end

-- Resuming ----------------------------------------------------------------------------------------------------------

local actions = {
  idle = function()
    log.info(("no cluster yet: `symphony %s join` on the control socket"):format(identity.word()))
    return true
  end,
  wipe = resuming.actions.wipe,
  removed = resuming.actions.removed,
  resume = function(doc)
    local options = advertise.options(doc.advertise)
    doc.advertise = advertise.of(options.advertise_addr or address.parse(doc.advertise.remote, 1), options)
    return M.activate(doc)
  end,
}

-- The start of a worker's daemon. What is damaged or not ours ends it, with the file and what to do in the log.
function M.start()
  node.on_quit(function()
    async.spawn(function()
      pcall(M.say_goodbye)
      node.quit()
    end)
  end)
  async.spawn(function()
    local doc, err = identity.load()
    local ok = not err
    if ok and doc then ok, err = identity.check_role(doc) end
    if ok then ok, err = actions[resuming.verdict(doc)](doc) end
    if not ok then
      err = errors.from(err)
      log.error(err.message .. (err.hint and " -- " .. err.hint or ""))
      node.quit(1)
    end
  end)
end

return M
