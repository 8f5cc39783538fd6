-- The cluster's certificates: how long they live and what is in them.
local address = require "symphony.cluster.address"
local cidr = require "symphony.cluster.cidr"
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local state = require "symphony.cluster.state"

local M = {}

local DAY = 86400
M.CA_LIFE = 3650 * DAY
M.NODE_LIFE = 90 * DAY
local BACKDATE = 3600 -- clocks differ

-- A CA for @cluster_id: key, PEM. Raises.
function M.new_ca(cluster_id, now)
  local key = assert(crypto.key_generate())
  now = math.floor(now)
  return key, assert(crypto.ca_new(key, cluster_id, now - BACKDATE, now + M.CA_LIFE))
end

-- The hosts under which the clients of others find manager @node_id with this remote address: that of the address, of
-- one that is on the loopback its usual names, and its id, for who knows the way otherwise. Pure.
function M.names(remote_address, node_id)
  local host = address.parse(remote_address, 1)
  if not host then return { node_id } end
  host = host:gsub("%%.*$", ""):gsub("%.$", "")
  local names, seen = { host, node_id }, { [host] = true }
  for _, name in ipairs(cidr.is_loopback(host) and { "127.0.0.1", "localhost" } or {}) do
    if not seen[name] then names[#names + 1] = name end
  end
  return names
end

-- Are two lists of hosts the same, in whatever order and spelling? Pure.
function M.same_names(a, b)
  local function set_of(list)
    local set, n = {}, 0
    for _, name in ipairs(list) do
      local key = cidr.parse_ip(name) or name:lower()
      n = n + (set[key] and 0 or 1)
      set[key] = true
    end
    return set, n
  end
  local set, n = set_of(a)
  local others, m = set_of(b)
  for key in pairs(others) do
    if not set[key] then return false end
  end
  return n == m
end

-- The name that every worker has for clients of others, for their setting of the name to expect; no host can have it
-- (RFC 6761), and so no manager.
M.WORKER = "worker.symphony.invalid"

local function hosts_of(n)
  if n.role == "manager" then return M.names(n.remote_address, n.node_id) end
  return { n.node_id, M.WORKER }
end

-- Signs @csr for node @n: its node_id, role and, of a manager, the raft_node_id that it may act as and the hosts at
-- which it is found. All nodes serve; that a worker is no manager says its role, and to the clients of others, who do
-- not look at that, that no name is in its certificate by which a manager could be found. Raises.
function M.sign(ca_key, ca_pem, csr, n, cluster_id, now)
  now = math.floor(now)
  return assert(crypto.cert_sign(ca_key, ca_pem, csr, { cn = n.node_id, ou = n.role, o = cluster_id,
    not_before = now - BACKDATE, not_after = now + M.NODE_LIFE, server = true,
    raft_id = n.raft_node_id, hosts = hosts_of(n) }))
end

-- Signs @csr for a person or a program: {name, role}, until @expires at most. Raises.
function M.sign_client(ca_key, ca_pem, csr, c, cluster_id, now)
  return assert(crypto.cert_sign(ca_key, ca_pem, csr, { cn = c.name, ou = c.role, o = cluster_id,
    not_before = math.floor(now) - BACKDATE, not_after = c.expires }))
end

-- Reading a key or a certificate takes the better part of a millisecond, and each join needs the CA's several times:
-- what parse(text) made of the last text is kept. nil, err is not.
local function last(parse)
  local of, result
  return function(text)
    if of ~= text then
      local fresh, err = parse(text)
      if not fresh then return nil, err end
      of, result = text, fresh
    end
    return result
  end
end

local load_key = last(crypto.key_load)

local read_cas = last(function(bundle)
  local parts, err = crypto.cert_split(bundle)
  local out = {}
  for i, pem in ipairs(parts or {}) do
    local info
    info, err = crypto.cert_info(pem)
    if not info then break end
    out[i] = { pem = pem, digest = info.digest, info = info }
  end
  if err then return nil, err end
  return out
end)

-- The CAs that @cluster trusts: {pem, digest (hex), info}, the one that signs first; nil, err.
function M.cas(cluster)
  local known, err = read_cas(cluster.ca)
  if not known then
    return nil, errors.new("corrupt", "the CA certificate in the state is damaged: " .. err.message)
  end
  local out = table.move(known, 1, #known, 1, {})
  for i, ca in ipairs(out) do
    if ca.digest == cluster.sign then table.insert(out, 1, table.remove(out, i)) end
  end
  return out
end

-- The SHA-256 (hex) of the CA certificate by which @cluster signs; nil, err.
function M.signer(cluster)
  if cluster.sign then return cluster.sign end
  local cas, err = M.cas(cluster)
  return cas and cas[1].digest, err
end

-- The digest of that one of @bundle (PEM) which has signed @cert; nil when none has.
function M.issuer_of(cert, bundle)
  for _, pem in ipairs(crypto.cert_split(bundle) or {}) do
    if crypto.cert_check_issuer(cert, pem) then return crypto.cert_info(pem).digest end
  end
end

-- The CA that signs, from the state: its key, its certificate (PEM) and that one's digest; nil, err.
function M.load_ca()
  local secret, err = state.get("/secret/ca")
  local cluster, cas
  if secret then cluster, err = state.cluster() end
  if not cluster then
    return nil, errors.is(err) and err or errors.new("not_found", "the cluster's CA is not in the state")
  end
  cas, err = M.cas(cluster)
  if not cas then return nil, err end
  local key, why = load_key(secret.key)
  if not key then return nil, errors.new("corrupt", "the CA key in the state is damaged: " .. why.message) end
  return key, cas[1].pem, cas[1].digest
end

-- When a certificate is to be renewed: a point in the second half of its life that is its own, so that the nodes of a
-- cluster that was made in one go do not all come at once. Pure: @info from cert_info, @hash a digest of its serial.
function M.renew_at(info, hash)
  local share = string.unpack(">I4", hash) / 2 ^ 32
  local life = info.not_after - info.not_before
  return math.floor(info.not_before + life * (0.5 + 0.4 * share))
end

function M.renewal_of(info)
  return M.renew_at(info, crypto.sha256(info.serial))
end

return M
