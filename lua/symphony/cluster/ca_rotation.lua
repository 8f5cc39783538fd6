-- The change of the CA: begun by a person, carried on by whoever leads, followed by every manager. The rules are in
-- trust.lua; here is what carries them out. All of it is in the state, so a leader that dies only delays it.
local async = require "symphony.async"
local clock = require "symphony.cluster.clock"
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local events = require "symphony.cluster.events"
local json = require "symphony.json"
local lead = require "symphony.cluster.lead"
local log = require "sym.log"
local node = require "sym.node"
local pki = require "symphony.cluster.pki"
local state = require "symphony.cluster.state"
local store = require "sym.store"
local sys = require "sym.sys"
local trust = require "symphony.cluster.trust"

local M = {}

local IDLE_MS, SOON_MS = 1000, 200
local UPKEEP_MS, RETRY_MS = 60 * 1000, 1000
local SHARE = 20    -- of its time the look at thousands of nodes takes at most one part in so many
local VOID_MAX = 36 -- tokens, and clients, that one txn makes void
local STALLED_S = 3600 -- in one step for so long, and nodes are waited for
local NAMED_MAX = 5    -- of these
local DAMAGED_MAX = 10

local leading            -- the leader's loop
local changed = async.event()
local following, watch   -- the task of every manager, and the watch on /cluster
local complained_of
local waits_for -- how many nodes, as this leader has seen last; nil: no change is under way, or another one leads

-- What the state has --------------------------------------------------------------------------------------------------

-- Calls fn(kv) for everything below @prefix that is an object, decoded; the keys of the rest go into @damaged. Raises.
local function each(prefix, damaged, fn)
  assert(state.each_raw(prefix, function(kv)
    kv.value = json.decode(kv.value)
    if type(kv.value) == "table" then fn(kv) else damaged[#damaged + 1] = kv.key end
  end))
end

-- The view that trust.plan takes, of @cluster; with the kvs of tokens and clients, in their order, and the keys of
-- damaged records, which are passed over: one of them must not hold everything up for ever. Raises.
local function look(cluster)
  local view = { cluster = cluster, nodes = {}, statuses = {}, tokens = {}, clients = {}, token_kvs = {},
    client_kvs = {}, damaged = json.array() }
  each("/node/", view.damaged, function(kv)
    local n = kv.value
    table.insert(view.nodes, { node_id = n.node_id, name = n.name, role = n.role, trust = n.trust, issuer = n.issuer,
      removing = n.removing })
  end)
  each("/status/node/", view.damaged, function(kv)
    view.statuses[kv.key:match("[^/]*$")] = { trust = kv.value.trust, status = kv.value.status }
  end)
  each("/token/", view.damaged, function(kv)
    table.insert(view.tokens, kv.value)
    table.insert(view.token_kvs, kv)
  end)
  each("/client/", view.damaged, function(kv)
    table.insert(view.clients, kv.value)
    table.insert(view.client_kvs, kv)
  end)
  return view
end

-- Since when a change of the CA has been in its step, seconds since 1970, how many nodes it waits for, and the names of
-- the first ones: {since, waiting, names}; nil when it has not been for long. From local state. Raises.
function M.stalled()
  local cluster = state.cluster()
  local r = cluster and cluster.rotation
  if not r or sys.now() - r.since < STALLED_S then return nil end
  local waiting, names = trust.plan(look(cluster), sys.now()).waiting, {}
  if #waiting == 0 then return nil end
  for i = 1, math.min(NAMED_MAX, #waiting) do names[i] = waiting[i].name end
  return { since = r.since, names = names, waiting = #waiting }
end

-- How many nodes a change of the CA waits for, on the leader; nil when none is under way, and on others.
function M.waiting()
  return waits_for
end

-- Begin and status ----------------------------------------------------------------------------------------------------

local function new_ca(cluster, secret)
  local old, err = crypto.key_load(secret.key)
  if not old then
    errors.raise("corrupt", "the CA key in the state is damaged: " .. err.message)
  end
  local key, ca = pki.new_ca(cluster.id, sys.now())
  return { key = key:pem(), ca = ca, bridge = assert(crypto.cert_cross_sign(old, assert(pki.cas(cluster))[1].pem, ca)) }
end

-- Begins a change of the CA, on any manager; while one is under way only what it waits for changes. @opts.wait_clients:
-- the old CA stays until every client certificate has been issued anew, was revoked or has expired. Returns {started
-- (bool)}; nil, err.
function M.begin(opts)
  local answer, err = state.update(function()
    local cluster, kv = assert(state.cluster())
    local r = cluster.rotation
    if r then
      local same = (r.wait_clients or false) == (opts.wait_clients or false)
      r.wait_clients = opts.wait_clients or nil
      return not same and { compare = { state.unchanged(kv) }, ops = { state.put(kv.key, cluster) } } or nil,
        { started = false }
    end
    local secret, secret_kv = state.get("/secret/ca")
    if not secret then errors.raise("not_found", "the cluster's CA is not in the state") end
    trust.begin(cluster, secret, new_ca(cluster, secret), opts, sys.now())
    local txn = { compare = { state.unchanged(kv), state.unchanged(secret_kv) },
      ops = { state.put(kv.key, cluster), state.put(secret_kv.key, secret) } }
    events.add(txn, { kind = "ca.started", message = "a new CA is trusted beside the old one" })
    return txn, { started = true }
  end)
  if not answer then return nil, err end
  if answer.started then log.info("CA: a new one is trusted beside the old one") end
  M.wake()
  return answer
end

-- How far it is: {phase = "idle"|"both"|"renew", ca (digest of the one that signs), generation, began, since, rotated,
-- wait_clients, waiting = {{name, why, ...}}, clients = {name}, tokens (number): what ends with the old CA, damaged =
-- {key}: records that are passed over}. From local state. Raises.
function M.status()
  local cluster = assert(state.cluster())
  local view = look(cluster)
  local plan, r = trust.plan(view, sys.now()), cluster.rotation or {}
  local out = { phase = r.phase or "idle", ca = assert(pki.signer(cluster)), generation = trust.generation(cluster),
    began = r.began, since = r.since, rotated = cluster.rotated, wait_clients = r.wait_clients or false,
    waiting = plan.waiting, clients = json.array(), tokens = 0, nodes = #view.nodes,
    damaged = view.damaged }
  -- What the old CA has signed; before the new one signs that is all there is.
  for _, c in ipairs(view.clients) do
    if r.phase and c.issuer ~= r.new then table.insert(out.clients, c.name) end
  end
  for _, t in ipairs(view.tokens) do
    if r.phase and t.ca ~= r.new then out.tokens = out.tokens + 1 end
  end
  return out
end

-- On the leader -------------------------------------------------------------------------------------------------------

local actions = {}

function actions.sign(cluster, kv)
  local secret, secret_kv = state.get("/secret/ca")
  trust.switch(cluster, secret, sys.now())
  local txn = { compare = { state.unchanged(kv), state.unchanged(secret_kv) },
    ops = { state.put(kv.key, cluster), state.put(secret_kv.key, secret) } }
  return txn, { kind = "ca.signs", message = "every node trusts the new CA, which signs from now on" }
end

function actions.void(_, kv, plan, view)
  local txn = { compare = { state.unchanged(kv) }, ops = {} }
  for i = 1, math.min(VOID_MAX, #plan.tokens) do
    local row = view.token_kvs[plan.tokens[i]]
    table.insert(txn.compare, state.unchanged(row))
    table.insert(txn.ops, state.delete(row.key))
  end
  for i = 1, math.min(VOID_MAX, #plan.clients) do
    local row = view.client_kvs[plan.clients[i]]
    table.insert(txn.compare, state.unchanged(row))
    table.insert(txn.ops, state.delete(row.key))
    table.insert(txn.ops, state.delete("/fingerprint/" .. row.value.fingerprint))
  end
  return txn, { kind = "ca.void", message = ("%d tokens and %d client certificates of the old CA are void"):format(
    math.min(VOID_MAX, #plan.tokens), math.min(VOID_MAX, #plan.clients)) }
end

function actions.drop(cluster, kv)
  trust.finish(cluster, sys.now())
  return { compare = { state.unchanged(kv) }, ops = { state.put(kv.key, cluster) } },
    { kind = "ca.done", message = "every node has its certificate from the new CA; the old one is trusted no more" }
end

-- Says which records are passed over, once for each lot of them.
local function complain(damaged)
  local text = #damaged > 0 and ("%s%s"):format(table.concat(damaged, ", ", 1, math.min(DAMAGED_MAX, #damaged)),
    #damaged > DAMAGED_MAX and (" and %d more"):format(#damaged - DAMAGED_MAX) or "") or nil
  if text and text ~= complained_of then
    log.warn("CA: records in the state are damaged, and the change goes on without what they were of: " .. text)
  end
  complained_of = text
end

-- One look and at most one step; returns the milliseconds until the next look.
function M.turn()
  local cluster, kv
  if lead.status() then cluster, kv = state.get("/cluster") end
  if not cluster or not cluster.rotation then
    waits_for = nil
    return IDLE_MS
  end
  local began = sys.mono_ms()
  local view = look(cluster)
  -- By a clock that may be wrong no client certificate has expired.
  local plan = trust.plan(view, clock.trusted() and sys.now() or 0)
  waits_for = #plan.waiting
  complain(view.damaged)
  local action = actions[plan.step]
  if not action then return math.max(SOON_MS, SHARE * (sys.mono_ms() - began)) end
  local txn, told = action(cluster, kv, plan, view)
  events.add(txn, told)
  local result, err = state.submit(txn)
  if not result then
    log.warn("CA: " .. (err.message or err.code))
    return IDLE_MS
  end
  if result.status == "applied" then log.info("CA: " .. told.message) end
  return 0
end

leading = lead.loop("CA", IDLE_MS, M.turn)

-- On every manager ----------------------------------------------------------------------------------------------------

-- Takes what the state says of the CAs into use here. true; nil, err.
function M.adopt()
  local cluster = node.started() and state.get("/cluster")
  if not cluster then return true end
  return trust.adopt(cluster, { renew = require("symphony.cluster.admit").renew })
end

local function follow()
  local complained = false
  while true do
    local ok, done, err = xpcall(M.adopt, errors.handler)
    if not ok then done, err = nil, done end
    if not done and not complained and err.code ~= "closed" and err.code ~= "canceled" then
      log.warn("the CAs of the cluster are not taken into use yet: " .. (err.traceback or err.message))
    end
    complained = not done
    changed:wait(done and UPKEEP_MS or RETRY_MS)
    changed = async.event()
  end
end

local function watch_cluster()
  if watch then watch:close() end
  watch = nil
  if not node.started() then return end
  local err
  watch, err = store.watch("/cluster", store.revision(), function(status, changes)
    local seen = status ~= nil
    if status and status.code == "compacted" then async.spawn(watch_cluster) end
    for _, event in ipairs(changes or {}) do seen = seen or event.key == "/cluster" end
    if not seen then return end -- a neighbour
    changed:set()
    leading:wake()
  end)
  if not watch then log.error("cannot watch the cluster's record: " .. err.message) end
end

-- A node's record has changed.
function M.wake()
  leading:wake()
end

-- Runs until stop(); said twice, it is one.
function M.start()
  watch_cluster()
  leading:start()
  following = following or async.spawn(follow)
end

function M.stop()
  leading:stop()
  if following then following:cancel() end
  following, waits_for = nil, nil
  if watch then watch:close() end
  watch = nil
end

return M
