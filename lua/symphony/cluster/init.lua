-- `manager init`: makes a cluster of this one manager.
--
-- key.json says phase "init" until the first txn is in the log; only then are tokens shown to anybody. So whatever
-- interrupts it, nobody knows of a half-made cluster, and saying it again starts afresh.
local advertise = require "symphony.cluster.advertise"
local async = require "symphony.async"
local busy = require "symphony.cluster.busy"
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local events = require "symphony.cluster.events"
local identity = require "symphony.cluster.identity"
local ids = require "symphony.cluster.ids"
local json = require "symphony.json"
local keyring = require "symphony.cluster.keyring"
local lifecycle = require "symphony.cluster.lifecycle"
local log = require "sym.log"
local peers = require "symphony.cluster.peers"
local pki = require "symphony.cluster.pki"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"
local tokens = require "symphony.cluster.tokens"
local values = require "symphony.cluster.values"

local M = {}

local FIRST_WRITE_MS = 10000

-- May this daemon make a cluster? Pure: @me is key.json or nil. true; nil, err.
function M.allowed(me)
  if not me or me.phase == "init" then return true end
  if me.removed then
    return nil, errors.new("exists", ("this folder still holds what it kept of cluster %s"):format(me.cluster_id),
      "`symphony manager leave` wipes it; then init")
  end
  return nil, errors.new("exists", ("this daemon is a manager of cluster %s already"):format(me.cluster_id),
    "another cluster needs a daemon with another --config-dir; `symphony manager status` tells more")
end

-- The whole first state as one txn. Pure but for the encoding: everything comes in @p.
function M.first_txn(p)
  local ops = {
    state.put("/cluster", { id = p.cluster_id, name = p.cluster_name, created = p.now, epoch = 1, ca = p.ca,
      trust = 1, sign = p.sign, dev = p.dev }),
    state.put("/cluster/format", "1"),
    state.put("/cluster/next_raft_id", "2"),
    state.put("/raft/1", p.node.node_id),
    state.put("/node/" .. p.node.node_id, p.node),
    state.put("/name/" .. p.node.name, p.node.node_id),
    state.put("/fingerprint/" .. p.node.fingerprint, p.node.node_id),
    peers.put(p.node),
    state.put("/secret/ca", { key = p.ca_key }),
    state.put(keyring.KEY, keyring.first(p.gossip_key, p.now)),
  }
  for _, t in ipairs(p.tokens) do ops[#ops + 1] = state.put(t.key, t.record) end
  return { compare = { state.absent("/cluster") }, ops = ops }
end

local function make(opts, host, options)
  local now = math.floor(sys.now())
  local key = assert(identity.node_key())
  local p = {
    now = now, dev = opts.dev or false, cluster_id = ids.new(), cluster_name = opts.cluster_name or "symphony",
    gossip_key = keyring.generate(),
  }
  local ca_key
  ca_key, p.ca = pki.new_ca(p.cluster_id, now)
  p.ca_key = ca_key:pem()
  local id = ids.new()
  local addresses = advertise.of(host, options)
  p.node = {
    node_id = id, name = opts.name or values.name_from(sys.hostname()), role = "manager", raft_node_id = 1,
    fingerprint = key:fingerprint(), raft_address = addresses.raft, remote_address = addresses.remote,
    gossip_address = addresses.gossip, labels = {}, availability = "active", version = sys.version, joined = now,
  }
  local cert = pki.sign(ca_key, p.ca, crypto.csr(key, id), p.node, p.cluster_id, now)
  local digest = crypto.cert_info(p.ca).digest
  p.node.certificate, p.node.certificate_expires = cert, crypto.cert_info(cert).not_after
  p.node.issuer, p.node.trust, p.sign = digest, 1, digest
  p.tokens = {}
  for i, role in ipairs { "manager", "worker" } do
    local text, at, record = tokens.fresh(digest, { role = role, ttl = opts.token_ttl }, now)
    p.tokens[i] = { role = role, text = text, key = at, record = record }
  end
  assert(identity.save_tls { ca = p.ca, cert = cert })
  local doc = {
    phase = "init", node_id = id, raft_node_id = 1, cluster_id = p.cluster_id, role = "manager", name = p.node.name,
    starts = 0, folder = assert(identity.make_raft_folder()), advertise = addresses,
    managers = json.array { addresses.remote }, removed = false,
  }
  return doc, p
end

local function run(opts, host, options)
  local doc, p = make(opts, host, options)
  doc.follows = advertise.follows(opts.advertise, options) and not p.dev or nil
  assert(lifecycle.activate(doc, { bootstrap = true, quiet = true }))
  local txn = M.first_txn(p)
  events.add(txn, { kind = "node.joined", node = p.node,
    message = ("manager %s makes the cluster"):format(p.node.name) })
  local result = assert(state.submit(txn, FIRST_WRITE_MS))
  if result.status ~= "applied" then errors.raise("exists", "there is a cluster in this folder's state already") end
  doc.phase = nil
  assert(identity.become(doc))
  lifecycle.serve()
  log.info(("cluster %s is made; this manager is %s (%s)"):format(p.cluster_id, doc.name, doc.node_id))
  return {
    cluster_id = p.cluster_id, node_id = doc.node_id, raft_node_id = 1,
    tokens = { manager = p.tokens[1].text, worker = p.tokens[2].text },
  }, { remote = doc.advertise.remote, name = doc.name, dev = p.dev, ttl = opts.token_ttl }
end

-- @opts: name, cluster_name, token_ttl (seconds or false), dev, advertise (host). Returns the answer of the command and
-- what its text needs besides; nil, err. It goes on to its end also when who asked for it has gone.
function M.run(opts)
  local ok, err = identity.needs("manager")
  if ok then ok, err = M.allowed(identity.me) end
  if ok and opts.name then ok, err = values.check_name(opts.name) end
  if ok and opts.cluster_name then ok, err = values.check_name(opts.cluster_name) end
  if not ok then return nil, err end
  local options = advertise.options()
  local host
  host, err = advertise.pick(opts.advertise, options, opts.dev, sys.default_address)
  if not host then return nil, err end
  local lock
  lock, err = busy.take("manager init")
  if not lock then return nil, err end
  return async.spawn(function()
    local _ <close> = lock
    if identity.me then assert(identity.wipe()) end
    assert(identity.check_unused())
    local made, answer, more = xpcall(run, errors.handler, opts, host, options)
    if made then return answer, more end
    -- Nobody has seen anything of it: leave the folder as it was.
    lifecycle.deactivate()
    local wiped, why = identity.wipe()
    if not wiped then log.error(why.message) end
    error(answer, 0)
  end):wait()
end

return M
