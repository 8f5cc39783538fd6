--- Who this node is, and until when its certificates are good. Nothing on one that belongs to no cluster yet.
local crypto = require "sym.crypto"
local identity = require "symphony.cluster.identity"
local metrics = require "symphony.metrics"
local sys = require "sym.sys"

local gauge = metrics.gauge

local M = {}

local read_of, ca_expires -- a PEM text, and when the first of its certificates expires

-- There may be two during a change of the CA.
local function expiry_of_ca(pem)
  if pem ~= read_of then
    read_of, ca_expires = pem, nil
    for one in pem:gmatch("%-%-%-%-%-BEGIN CERTIFICATE%-.-%-END CERTIFICATE%-%-%-%-%-\n?") do
      local info = crypto.cert_info(one)
      if info then ca_expires = math.min(ca_expires or math.huge, info.not_after) end
    end
  end
  return ca_expires
end

function M.families()
  local me, tls = identity.me, identity.tls
  if not me or not me.node_id then return nil end
  local expires = gauge("symphony_certificate_expires_seconds",
    "When this node's certificate, and the cluster's CA's, expire, in seconds since 1970.")
  if tls then
    expires:add(tls.info.not_after, { certificate = "node" })
    expires:add(expiry_of_ca(tls.ca), { certificate = "ca" })
  end
  return {
    gauge("symphony_node_info", "Always 1; who this node is.", 1, {
      cluster_id = me.cluster_id or "", node_id = me.node_id, name = me.name or "",
      role = me.role or sys.options().role or "", raft_node_id = me.raft_node_id or "",
    }),
    expires,
  }
end

function M.register()
  metrics.source("identity", M.families)
end

return M
