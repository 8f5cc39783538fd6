-- The cluster's certificates: how long they live and what is in them.
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

-- Signs @csr for node @n: its node_id, role and, of a manager, the raft_node_id that it may act as. Every node serves
-- its remote port; that a worker is no manager is in its role, which whoever calls a manager looks at. Raises.
function M.sign(ca_key, ca_pem, csr, n, cluster_id, now)
  now = math.floor(now)
  return assert(crypto.cert_sign(ca_key, ca_pem, csr, { cn = n.node_id, ou = n.role, o = cluster_id,
    not_before = now - BACKDATE, not_after = now + M.NODE_LIFE, server = true,
    raft_id = n.raft_node_id }))
end

-- The CA of the state: key, PEM; nil, err.
function M.load_ca()
  local secret, err = state.get("/secret/ca")
  local cluster
  if secret then cluster, err = state.cluster() end
  if not cluster then
    return nil, errors.is(err) and err or errors.new("not_found", "the cluster's CA is not in the state")
  end
  local key, why = crypto.key_load(secret.key)
  if not key then return nil, errors.new("corrupt", "the CA key in the state is damaged: " .. why.message) end
  return key, cluster.ca
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
