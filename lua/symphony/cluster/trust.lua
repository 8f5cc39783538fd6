-- Which CAs a cluster trusts and which one signs, and how that changes while everything runs.
--
-- /cluster says it: ca, one or more certificates; sign, the digest of the one that signs; trust, a generation that
-- rises with every change of either. Each node adopts that, and acknowledges the generation in its record (a worker in
-- what it reports of itself). One CA takes the place of another in three steps, each a txn of the leader
-- (ca_rotation.lua), each when every node has acknowledged the one before:
--
--   both    the new CA is trusted beside the old one, which signs still
--   renew   the new one signs, and every node has its certificate renewed
--   (none)  the old one is trusted no more; with it go the tokens that pin it and the client certificates it has signed
local async = require "symphony.async"
local errors = require "symphony.errors"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local log = require "sym.log"
local node = require "sym.node"
local pki = require "symphony.cluster.pki"
local state = require "symphony.cluster.state"
local crypto = require "sym.crypto"

local M = {}

-- What is known of a change ---------------------------------------------------------------------------------------

-- A cluster that was made before there were generations is in the first.
function M.generation(cluster)
  return cluster.trust or 1
end

-- The generation that a node has acknowledged; 0 when it has none. @status: what the state says of it, or nil.
local function acknowledged(n, status)
  return math.max(n.trust or 0, status and status.trust or 0)
end

-- How far node @n (its record; @status, /status/node/<id>, or nil) is with the change of the CA: "old", "both" or
-- "new"; nil when none is under way. @cluster: its record. Pure.
function M.progress(n, cluster, status)
  local r = cluster and cluster.rotation
  if not r then return nil end
  local done = acknowledged(n, status) >= M.generation(cluster)
  if r.phase == "renew" then return done and n.issuer == cluster.sign and "new" or "both" end
  return done and "both" or "old"
end

local function reason(n, cluster)
  if cluster.rotation.phase == "both" then return "does not trust the new CA yet" end
  if n.issuer ~= cluster.sign then return "has its certificate from the old CA" end
  return "has not said that it uses its new certificate"
end

-- Those nodes of @view that are not as far as the step asks; who is being removed is not waited for.
local function waits_for(view)
  local cluster, waiting = view.cluster, json.array()
  local wanted = cluster.rotation.phase == "renew" and "new" or "both"
  for _, n in ipairs(view.nodes) do
    local status = view.statuses and view.statuses[n.node_id]
    if not n.removing and M.progress(n, cluster, status) ~= wanted then
      waiting[#waiting + 1] = { node_id = n.node_id, name = n.name, role = n.role, status = status and status.status,
        why = reason(n, cluster) }
    end
  end
  return waiting
end

-- The next step of a change of the CA, from what the state has: @view {cluster, nodes (records), statuses (by node id),
-- clients (records), tokens (records)}. Returns {step, waiting = {{node_id, name, role, why}}, tokens, clients}:
--   "none"  no change is under way       "wait"  for the nodes in waiting, or for the clients
--   "sign"  the new CA is to sign        "void"  tokens and clients (indexes of those that end with the old CA) go
--   "drop"  the old CA is to be trusted no more
-- Pure.
function M.plan(view, now)
  local cluster = view.cluster
  local r = cluster and cluster.rotation
  local out = { step = "none", waiting = json.array(), tokens = {}, clients = {} }
  if not r then return out end
  out.waiting = waits_for(view)
  if r.phase == "both" then
    out.step = #out.waiting == 0 and "sign" or "wait"
    return out
  end
  for i, t in ipairs(view.tokens or {}) do
    if t.ca ~= cluster.sign then out.tokens[#out.tokens + 1] = i end
  end
  local alive = 0
  for i, c in ipairs(view.clients or {}) do
    if c.issuer ~= cluster.sign then
      out.clients[#out.clients + 1] = i
      if c.expires > now then alive = alive + 1 end
    end
  end
  if #out.waiting > 0 or (r.wait_clients and alive > 0) then
    out.step = "wait"
  else
    out.step = #out.tokens + #out.clients > 0 and "void" or "drop"
  end
  return out
end

-- The records after a step ------------------------------------------------------------------------------------------

-- /cluster and /secret/ca when a change begins. @cluster, @secret: as they are; @new {key = PEM, ca = PEM, bridge =
-- what the old CA says of the new one (PEM)}; @opts {wait_clients}. Changes both.
function M.begin(cluster, secret, new, opts, now)
  local cas = assert(pki.cas(cluster))
  cluster.sign = cas[1].digest
  cluster.ca = cas[1].pem .. new.ca
  cluster.trust = M.generation(cluster) + 1
  cluster.bridge = new.bridge
  cluster.rotation = { phase = "both", began = math.floor(now), since = math.floor(now), old = cas[1].digest,
    new = crypto.cert_info(new.ca).digest, wait_clients = opts.wait_clients or nil }
  secret.next = { key = new.key, ca = new.ca }
end

-- When the new CA signs. The old one's key is forgotten.
function M.switch(cluster, secret, now)
  local old = assert(pki.cas(cluster))[1]
  cluster.ca = secret.next.ca .. old.pem
  cluster.sign = crypto.cert_info(secret.next.ca).digest
  cluster.trust = M.generation(cluster) + 1
  cluster.rotation.phase, cluster.rotation.since = "renew", math.floor(now)
  secret.key, secret.next = secret.next.key, nil
end

-- When the old one is trusted no more.
function M.finish(cluster, now)
  cluster.ca = assert(pki.cas(cluster))[1].pem
  cluster.trust = M.generation(cluster) + 1
  cluster.rotated, cluster.rotation, cluster.bridge = math.floor(now), nil, nil
end

-- This node -----------------------------------------------------------------------------------------------------------

local adopting = async.mutex()

-- Tells the cluster that this node has adopted a generation: a manager in its record. What a worker does is told by its
-- agent (set_reporter). true; nil, err.
local function publish(generation)
  local me = identity.me
  local n = state.get("/node/" .. me.node_id)
  if n and n.trust == generation then return true end
  local done, err = state.update(function()
    local record, kv = state.get("/node/" .. me.node_id)
    if not record or (record.trust or 0) >= generation then return nil, true end
    record.trust = generation
    return { compare = { state.unchanged(kv) }, ops = { state.put(kv.key, record) } }, true
  end)
  if not done then return nil, err end
  return true
end
local report = publish

function M.set_reporter(fn)
  report = fn or publish
end

function M.acknowledge(generation)
  return report(generation)
end

-- Could this node start again with @cert? It is looked at before it is on the disk. true; nil, err.
local function is_ours(cert)
  local info, err = crypto.cert_info(cert)
  if not info then return nil, err end
  local ok
  ok, err = crypto.cert_check_key(cert, identity.tls.key)
  if not ok then return nil, err end
  return identity.fits(identity.me, info)
end

-- Takes a certificate and a bundle of CAs into use: on the disk first, then in every connection from now on. @bridge:
-- what is shown behind the certificate, or nil. true; nil, err. Under the lock of adopting.
local function put_to_use(cert, ca, bridge)
  local me = identity.me
  local ok, err = crypto.cert_check_issuer(cert, ca)
  if ok then ok, err = is_ours(cert) end
  if ok then ok, err = identity.save_tls { cert = cert .. (bridge or ""), ca = ca } end
  if not ok then return nil, err end
  local tls
  tls, err = identity.load_tls(me)
  if not tls then return nil, err end
  ok, err = node.set_tls(tls.cert, tls.key, tls.ca)
  if not ok then return nil, err end
  identity.tls = tls
  return true
end

-- What stands behind a certificate that is shown: by it those who join with a token of before the change believe it.
local function bridge_of(cluster)
  return identity.me.role == "manager" and cluster.bridge or nil
end

-- A fresh certificate for this node. @renew(csr) asks for it: {certificate, ca}; nil, err. @cluster: its record.
local function renew(fn, cluster)
  local me, tls = identity.me, identity.tls
  if not me or not tls then return nil, errors.new("closed", "this node is not serving") end
  local fresh, err = fn(crypto.csr(tls.key, me.node_id))
  if not fresh then return nil, err end
  -- It may have left meanwhile, and be another node by now.
  if identity.me ~= me then return nil, errors.new("closed", "this node is not serving any more") end
  if type(fresh.certificate) ~= "string" or type(fresh.ca) ~= "string" then
    return nil, errors.new("protocol", "the answer to the request to renew cannot be read")
  end
  local ok
  ok, err = put_to_use(fresh.certificate, fresh.ca, bridge_of(cluster))
  if not ok then return nil, err end
  log.info("the certificate of this node is renewed")
  return true
end

-- The same in turn with adopt().
function M.renew(fn, cluster)
  local _ <close> = adopting:lock()
  if not identity.me or not identity.tls then return nil, errors.new("closed", "this node is not serving") end
  return renew(fn, cluster)
end

local function leaf_of(pem)
  return crypto.cert_split(pem)[1]
end

local function adopt(cluster, opts)
  local me, generation = identity.me, M.generation(cluster)
  if generation < (me.trust or 0) then return true end -- a state that is behind does not bring an old CA back
  local sign, err = pki.signer(cluster)
  if not sign then return nil, err end
  local leaf, bridge = leaf_of(identity.tls.cert), bridge_of(cluster)
  local ok = true
  if pki.issuer_of(leaf, cluster.ca) and
    (identity.tls.ca ~= cluster.ca or identity.tls.cert ~= leaf .. (bridge or "")) then
    ok, err = put_to_use(leaf, cluster.ca, bridge)
    if ok then log.info(("the CAs of generation %d are trusted"):format(generation)) end
  end
  if ok and pki.issuer_of(leaf, cluster.ca) ~= sign then
    if opts.spread_ms then async.sleep(math.random() * opts.spread_ms) end
    ok, err = renew(opts.renew, cluster)
  end
  if not ok then return nil, err end
  if me.trust ~= generation then
    local before = me.trust
    me.trust = generation
    ok, err = identity.save(me)
    if not ok then
      me.trust = before
      return nil, err
    end
  end
  return M.acknowledge(generation)
end

-- What a node does when it sees the cluster's record, or the part of it that a worker is told: {ca, trust, sign,
-- bridge?}. It trusts what is to be trusted, has its certificate renewed when another CA signs, and acknowledges.
-- @opts.renew(csr) as above; opts.spread_ms: it waits up to so long before it asks, by chance, so that thousands do not
-- come at once. In a task; said again after a failure, it goes on. true; nil, err.
function M.adopt(cluster, opts)
  local _ <close> = adopting:lock()
  if not identity.me or identity.me.removed or not identity.tls then
    return nil, errors.new("closed", "this node is not serving")
  end
  return adopt(cluster, opts)
end

return M
